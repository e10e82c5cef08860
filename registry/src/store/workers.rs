//! Who computes: what a worker asks for and says of itself, and what waits for one.

use std::time::Duration;

use serde::Serialize;

use crate::ids::{DagName, PoolName, QueueName, RunId};
use crate::run::TaskKind;
use crate::time::{Instant, Interval};

/// See [`super::Store::task_claim`].
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Unique per process, as in `host:pid:start`.
    pub owner: String,
    /// How long the lease lasts without a heartbeat.
    pub lease: Duration,
    /// Only tasks of these runs; empty for all.
    pub only: Vec<RunId>,
    /// Only tasks in these queues; empty for all.
    pub queues: Vec<QueueName>,
    /// At most so many; at least 1 is meant.
    pub limit: u32,
}

impl ClaimRequest {
    /// One task of any run in any queue.
    pub fn new(owner: impl Into<String>, lease: Duration) -> Self {
        Self { owner: owner.into(), lease, only: Vec::new(), queues: Vec::new(), limit: 1 }
    }
}

/// What a worker says of itself from time to time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerBeat {
    /// Unique per process.
    pub owner: String,
    /// The queues that it serves; empty for all.
    pub queues: Vec<QueueName>,
    /// How many tasks it runs at once.
    pub slots: u32,
    /// How many it runs now.
    pub running: u32,
    /// The version of the program.
    pub version: String,
    /// The machine.
    pub host: String,
}

/// A worker as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerRow {
    /// What it said last.
    #[serde(flatten)]
    pub beat: WorkerBeat,
    /// When that was, by the database's clock.
    pub heard_at: Instant,
    /// Whether it gets no more tasks.
    pub drained: bool,
}

/// A task that could be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingTask {
    /// Its run.
    pub run: RunId,
    /// The run's DAG.
    pub dag: DagName,
    /// The run's interval.
    pub interval: Interval,
    /// The task.
    pub kind: TaskKind,
    /// Who may claim it.
    pub queue: QueueName,
    /// Whose slot it takes.
    pub pool: Option<PoolName>,
    /// The run's.
    pub priority: i32,
    /// How long ago the run was admitted.
    pub admitted: Duration,
    /// What it waits for.
    pub waits_for: WaitsFor,
}

/// What a task waits for that could be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitsFor {
    /// A worker that has a slot free.
    Worker,
    /// Any worker that serves its queue: none was heard of, or all are drained.
    Queue,
    /// A slot of its pool.
    Pool {
        /// How many there are.
        slots: u32,
    },
    /// The end of the pause before its next attempt.
    Retry {
        /// So much is left.
        pause: Duration,
    },
}

/// What is to do in one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueueState {
    /// The queue.
    pub queue: QueueName,
    /// Tasks that could be claimed, those included whose pause has not ended.
    pub waiting: u64,
    /// Tasks that are claimed.
    pub running: u64,
}

/// A pool and who is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolState {
    /// The pool.
    pub name: PoolName,
    /// How many tasks may run at once.
    pub slots: u32,
    /// How many run.
    pub used: u32,
    /// How many could be claimed.
    pub waiting: u64,
}
