//! `tidegate workers`: who computes, and keeping somebody from taking more.

use anyhow::Context as _;
use serde::Serialize;
use tidegate_registry::store::WorkerRow;
use tidegate_registry::time::format_instant;

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::process;
use crate::roles::WORKER_SILENCE_MAX;
use crate::select;

/// List workers, or drain one before its machine goes away
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the workers heard of within a minute
    List {},
    /// Give a worker no more tasks; it finishes what it has and waits
    Drain {
        /// Its name, as listed
        worker: String,
    },
    /// Give a drained worker tasks again
    Undrain {
        /// Its name, as listed
        worker: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or written, or there is no such worker.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let store = &*registry.store;
    let mut workers = store.workers(WORKER_SILENCE_MAX).await.context("listing the workers")?;
    workers.retain(|worker| !process::is_dead(&worker.beat.owner));
    let (worker, drained) = match arguments.action {
        Action::List {} => {
            let rows: Vec<Worker> = workers.iter().map(Worker::of).collect();
            context.output.list(&rows)?;
            return Ok(Exit::Done);
        }
        Action::Drain { worker } => (worker, true),
        Action::Undrain { worker } => (worker, false),
    };
    let found = workers.iter().find(|known| known.beat.owner == worker);
    let known = workers.iter().map(|known| known.beat.owner.as_str());
    let owner = &select::named("worker", &worker, found, known)?.beat.owner;
    let (actor, now) = (context.actor(), registry.clock.now());
    store.worker_drain(owner, drained, &actor, now).await.with_context(|| format!("telling `{owner}`"))?;
    let told = if drained { "gets no more tasks; it finishes what it has" } else { "gets tasks again" };
    crate::progress::note(format!("`{owner}` {told}"));
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Worker {
    worker: String,
    host: String,
    version: String,
    queues: Vec<String>,
    slots: u32,
    running: u32,
    drained: bool,
    heard_at: String,
}

impl Worker {
    fn of(worker: &WorkerRow) -> Self {
        Self {
            worker: worker.beat.owner.clone(),
            host: worker.beat.host.clone(),
            version: worker.beat.version.clone(),
            queues: worker.beat.queues.iter().map(ToString::to_string).collect(),
            slots: worker.beat.slots,
            running: worker.beat.running,
            drained: worker.drained,
            heard_at: format_instant(worker.heard_at),
        }
    }
}

impl Row for Worker {
    const HEADINGS: &'static [&'static str] = &["WORKER", "VERSION", "QUEUES", "RUNNING", "STATE", "HEARD OF"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.worker.clone(),
            self.version.clone(),
            if self.queues.is_empty() { "all".to_owned() } else { self.queues.join(",") },
            format!("{} of {}", self.running, self.slots),
            if self.drained { "drained" } else { "working" }.to_owned(),
            self.heard_at.clone(),
        ]
    }
}
