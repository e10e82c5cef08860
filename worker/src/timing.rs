//! Waiting, for the worker's loop. It is tokio's; only in this crate's own tests a simulation may put a clock of its own
//! in its place (see `simulation`), so that hours pass in milliseconds and the same seed gives the same history.

#[cfg(not(test))]
pub(crate) use tokio::time::{interval, sleep, timeout};

#[cfg(test)]
pub(crate) use crate::simulation::time::{interval, sleep, timeout};
