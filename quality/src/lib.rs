//! What is known of data, apart from where it lies and who asks: statistics, without I/O, clock or query engine.
//!
//! - [`profile::ColumnProfiler`] turns a stream of Arrow arrays into a
//!   [`ColumnProfile`](tidegate_registry::profile::ColumnProfile) in one pass and bounded memory; parts of the stream may
//!   be profiled side by side and merged.
//! - [`drift`] says how far two profiles of a column are apart; [`anomaly`] how odd a number is among those before it.
//! - [`formats`] says which texts are UUIDs, e-mail addresses, days or instants.
//!
//! Whoever asks decides what is too much: nothing here knows thresholds, and what cannot be told is an error with its
//! reason, never a number.
//!
//! May not know: files, DataFusion, SQL, HTTP, the time of day.

pub mod anomaly;
mod distributions;
pub mod drift;
pub mod formats;
pub mod histogram;
pub mod profile;
