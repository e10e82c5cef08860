//! The commands, one file each: its arguments, and what it does with them.

pub mod apply;
pub mod backfill;
pub mod checks;
pub mod dags;
pub mod demo;
pub mod entities;
pub mod features;
pub mod init;
pub mod janitor;
pub mod online;
pub mod owners;
pub mod plan;
pub mod preview;
pub mod registry;
pub mod run;
pub mod runs;
pub mod scheduler;
pub mod schema;
pub mod snapshots;
pub mod sources;
pub mod status;
pub mod up;
pub mod validate;
pub mod views;
pub mod worker;
