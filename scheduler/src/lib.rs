//! When: grids, planning, readiness, retries, freshness.
//!
//! Every decision is a pure function from plain data to plain data; [`service::Scheduler`] is the thin loop that reads,
//! decides and writes. Begin with [`grid::Grid`] (how a schedule cuts time) and [`planning::plan`] (which runs shall
//! exist); [`admission`] says when they may start.
//!
//! May not know: DataFusion, Delta, SQL, HTTP, the `worker` crate, or any clock but the one handed in.

pub mod admission;
pub mod backfill;
pub mod drills;
mod facts;
pub mod freshness;
pub mod grid;
pub mod planning;
pub mod readiness;
pub mod resume;
pub mod service;
#[cfg(test)]
mod testing;
pub mod watch;
