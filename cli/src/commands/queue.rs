//! `tidegate queue`: what workers will take next, and what keeps it waiting.

use anyhow::Context as _;
use serde::Serialize;
use tidegate_registry::store::{QueueState, WaitingTask, WaitsFor};
use tidegate_registry::time::format_instant;

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::roles::WORKER_SILENCE_MAX;
use crate::times::short_std;

/// List tasks in the order in which workers will take them, or queues with how much there is to do
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List tasks that could be taken, first come first, and what each waits for
    List {
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
    },
    /// List queues with how many tasks wait and run
    Depth {},
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let store = context.registry().await?.store;
    match arguments.action {
        Action::List { limit } => {
            let tasks = store.tasks_waiting(limit, WORKER_SILENCE_MAX).await.context("listing the queue")?;
            let rows: Vec<Waiting> = tasks.into_iter().map(Waiting::of).collect();
            context.output.list(&rows)?;
        }
        Action::Depth {} => {
            let queues = store.queues().await.context("listing the queues")?;
            let rows: Vec<Depth> = queues.iter().map(Depth::of).collect();
            context.output.list(&rows)?;
        }
    }
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Waiting {
    dag: String,
    run: String,
    interval_start: String,
    interval_end: String,
    task: String,
    queue: String,
    pool: Option<String>,
    priority: i32,
    admitted_seconds_ago: u64,
    #[serde(skip)]
    since: String,
    waits_for: &'static str,
    reason: String,
}

impl Waiting {
    fn of(task: WaitingTask) -> Self {
        let (waits_for, reason) = match task.waits_for {
            WaitsFor::Worker => ("worker", "a worker with a free slot".to_owned()),
            WaitsFor::Queue => ("queue", format!("any worker that serves `{}`: none is about", task.queue)),
            WaitsFor::Pool { slots } => ("pool", format!("one of {slots} slots of its pool")),
            WaitsFor::Retry { pause } => ("retry", format!("its next attempt in {}", short_std(pause))),
        };
        Self {
            dag: task.dag.to_string(),
            run: task.run.to_string(),
            interval_start: format_instant(task.interval.start()),
            interval_end: format_instant(task.interval.end()),
            task: task.kind.to_string(),
            queue: task.queue.to_string(),
            pool: task.pool.map(|pool| pool.to_string()),
            priority: task.priority,
            admitted_seconds_ago: task.admitted.as_secs(),
            since: short_std(task.admitted),
            waits_for,
            reason,
        }
    }
}

impl Row for Waiting {
    const HEADINGS: &'static [&'static str] =
        &["DAG", "INTERVAL START", "TASK", "QUEUE", "POOL", "PRIORITY", "SINCE", "WAITS FOR"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.dag.clone(),
            self.interval_start.clone(),
            self.task.clone(),
            self.queue.clone(),
            self.pool.clone().unwrap_or_else(|| "-".to_owned()),
            self.priority.to_string(),
            self.since.clone(),
            self.reason.clone(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Depth {
    queue: String,
    waiting: u64,
    running: u64,
}

impl Depth {
    fn of(queue: &QueueState) -> Self {
        Self { queue: queue.queue.to_string(), waiting: queue.waiting, running: queue.running }
    }
}

impl Row for Depth {
    const HEADINGS: &'static [&'static str] = &["QUEUE", "WAITING", "RUNNING"];

    fn cells(&self) -> Vec<String> {
        vec![self.queue.clone(), self.waiting.to_string(), self.running.to_string()]
    }
}
