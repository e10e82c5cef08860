//! Tidegate's domain: what is defined, what is planned, what ran, and the [`store::Store`] in which all of it is kept.
//!
//! Begin with [`model::Project`] (what is true of a project), [`run`] (what becomes of it) and [`store::Store`] (where
//! scheduler and worker meet). [`definitions`] turns an author's YAML into a `Project` or into
//! [`diagnostics::Diagnostic`]s; [`plan`] compares two projects.
//!
//! May not know: SQL databases, DataFusion, HTTP. It reads files only in [`definitions`].

pub mod address;
pub mod audit;
pub mod care;
pub mod cron;
pub mod dataset;
pub mod definitions;
pub mod diagnostics;
pub mod drill;
pub mod features;
pub mod figures;
pub mod fingerprint;
pub mod firing;
pub mod ids;
pub mod model;
pub mod notice;
pub mod plan;
pub mod profile;
pub mod published;
pub mod pulse;
pub mod restore;
pub mod retry;
pub mod run;
pub mod store;
pub mod switches;
pub mod text;
pub mod time;
