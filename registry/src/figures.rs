//! How a registry stands in numbers, for whoever watches it from outside: what the `/metrics` of a process is made of.
//!
//! Each number is read over an index or a small table, since it is asked for every few seconds, whatever the registry holds.

use std::time::Duration;

use async_trait::async_trait;

use crate::firing::FiringState;
use crate::run::RunState;
use crate::store::Result;
use crate::time::Instant;

/// Runs that ended are counted for so long, in project time.
pub const ENDED_WITHIN: Duration = Duration::from_secs(24 * 3_600);

/// Numbers of a registry, as of one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Open runs, by state; a state in which there is none is left out.
    pub runs_open: Vec<(RunState, u64)>,
    /// Runs that ended within [`ENDED_WITHIN`], by state.
    pub runs_ended: Vec<(RunState, u64)>,
    /// Deliveries of notices that are still to be made.
    pub deliveries_due: u64,
    /// Deliveries of notices that were given up.
    pub deliveries_given_up: u64,
    /// All restores, in no particular order.
    pub restores: Vec<RestoreFigure>,
    /// Requests that wait for a second person.
    pub approvals_waiting: u64,
    /// Triggered recipes, by state.
    pub firings: Vec<(FiringState, u64)>,
}

/// One restore in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreFigure {
    /// How long it took until it was recorded; `None` when it is not.
    pub took: Option<Duration>,
    /// Whether what came of it was as promised; `None` when nobody has compared.
    pub passed: Option<bool>,
    /// For how long it has been under way; `None` when it has ended.
    pub under_way: Option<Duration>,
}

/// The part of the registry that counts; beside [`crate::store::Store`], whose semantics hold here too.
#[async_trait]
pub trait Measuring {
    /// The figures at `now`.
    async fn figures(&self, now: Instant) -> Result<Figures>;
}
