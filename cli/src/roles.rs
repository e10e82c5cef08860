//! The roles that a process can play, and seeing runs through to their end.
//!
//! A scheduler decides when, a worker computes; they meet in rows of the registry, in one process or in several. A command
//! that waits for runs computes them itself while no worker is about, and follows them otherwise.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tidegate_registry::definitions::Settings;
use tidegate_registry::ids::RunId;
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{Change, Store};
use tidegate_scheduler::service::{Options, Scheduler};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::commands::up::{Serving, Slots};
use crate::context::{Context, Registry, release_dead_leases};
use crate::drills;
use crate::engine::{self, Bells};
use crate::error::UserError;
use crate::firing;
use crate::health::{self, Health, Listen};
use crate::metrics::Metrics;
use crate::notices;
use crate::process;
use crate::shutdown::Stopped;

/// A worker that was not heard of for longer is taken for gone. Heartbeats come every third of a lease.
pub const WORKER_SILENCE_MAX: Duration = Duration::from_secs(60);

/// How often a waiting command looks at its runs.
const LOOK: Duration = Duration::from_millis(200);

/// Which roles a process plays.
#[derive(Debug, Clone)]
pub struct Roles {
    /// Decide when.
    pub scheduler: bool,
    /// Compute: how much, and what.
    pub worker: Option<(Slots, Serving)>,
}

/// Plays `roles` until the process is asked to stop; then finishes or hands back what is running.
///
/// # Errors
/// When nothing was applied, or a part cannot be opened.
pub async fn play(roles: Roles, listen: Listen, context: &Context) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let registry = context.registry().await?;
    release_dead_leases(&*registry.store).await?;
    let cancel = context.shutdown.gentle.clone();
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let mut bells = Bells::default();
    let mut pulses = Vec::new();
    if roles.scheduler {
        let scheduler = scheduler(&registry);
        pulses.push(("scheduler", scheduler.pulse()));
        bells.progress = scheduler.waker();
        let cancel = cancel.clone();
        tasks.spawn(async move {
            scheduler.run(cancel).await;
            Ok(())
        });
    }
    let mut notices = Arc::default();
    if roles.scheduler {
        let sender = notices::sender(&settings, &registry)?;
        notices = sender.waker();
        let cancel = cancel.clone();
        tasks.spawn(async move {
            sender.run(cancel).await;
            Ok(())
        });
    }
    if roles.scheduler {
        let (registry, context, cancel) = (registry.clone(), context.clone(), cancel.clone());
        tasks.spawn(async move {
            firing::run(registry, context, cancel).await;
            Ok(())
        });
    }
    if let Some(every) = settings.janitor_every.filter(|_| roles.scheduler) {
        let janitor = engine::janitor(&settings, &registry).await?;
        let cancel = cancel.clone();
        tasks.spawn(async move {
            janitor.run(every, cancel).await;
            Ok(())
        });
    }
    if let Some((slots, serving)) = roles.worker {
        let worker = engine::worker(&settings, &registry, slots, serving, &bells).await?;
        pulses.push(("worker", worker.pulse()));
        let (rehearsing, stop) = ((settings.clone(), registry.clone()), cancel.clone());
        tasks.spawn(async move {
            drills::run(rehearsing.0, rehearsing.1, stop).await;
            Ok(())
        });
        let cancel = cancel.clone();
        tasks.spawn(async move { worker.run(cancel).await });
    }
    // What other processes do wakes us as what we do ourselves.
    let (work, progress, notices) = (Arc::clone(&bells.work), Arc::clone(&bells.progress), notices);
    registry.store.listen(Arc::new(move |change| match change {
        Change::Tasks => work.notify_waiters(),
        Change::Runs => progress.notify_waiters(),
        Change::Notices => notices.notify_waiters(),
    }));
    // Answers on while the roles finish what they hold.
    let answering = CancellationToken::new();
    let _stop_answering = answering.clone().drop_guard();
    let mut listener: JoinSet<anyhow::Result<()>> = JoinSet::new();
    if let Some(address) = listen.health {
        let health = Health {
            pulses,
            store: Arc::clone(&registry.store),
            metrics: Metrics::of(registry.clone()),
            stopping: cancel.clone(),
        };
        listener.spawn(health::serve(address, health, answering));
    }
    info!(
        project = %settings.project,
        revision = registry.revision,
        project_time = %tidegate_registry::time::format_instant(registry.clock.now()),
        "started; Ctrl-C stops"
    );
    loop {
        let ended = tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(ended) => ended,
                None => break,
            },
            // Only when it cannot listen.
            Some(ended) = listener.join_next() => ended,
        };
        // A role that fails takes the others with it: half a process helps nobody.
        cancel.cancel();
        ended.context("a role ended unexpectedly")??;
    }
    info!("stopped");
    Ok(())
}

/// A scheduler over the registry.
pub fn scheduler(registry: &Registry) -> Scheduler {
    Scheduler::new(Arc::clone(&registry.store), Arc::clone(&registry.clock), Options::default())
}

/// The workers that are about: heard of lately, and not known to be dead.
///
/// # Errors
/// When the registry cannot be read.
pub async fn workers_alive(store: &dyn Store) -> anyhow::Result<Vec<String>> {
    let mut workers = store.workers_alive(WORKER_SILENCE_MAX).await.context("asking which workers are alive")?;
    workers.retain(|owner| !process::is_dead(owner));
    Ok(workers)
}

/// What is known of the runs that a command waits for.
#[derive(Debug)]
pub struct Sight<'a> {
    /// Those that are still open.
    pub open: &'a [Run],
    /// How many have ended.
    pub ended: usize,
}

/// Sees `runs` through to their end and tells `look` how they stand. Computes them in this process while no worker is
/// alive.
///
/// # Errors
/// [`Stopped`] when the process was asked to stop first; a [`UserError`] when a run waits for something that nobody about
/// will bring; and failures of the registry, the lake or the online store.
pub async fn see_through(
    runs: &[RunId],
    slots: Slots,
    settings: &Settings,
    registry: &Registry,
    context: &Context,
    mut look: impl FnMut(&Sight<'_>),
) -> anyhow::Result<()> {
    let scheduler = scheduler(registry);
    let ours: BTreeSet<RunId> = runs.iter().copied().collect();
    let hands = CancellationToken::new();
    let bells = Bells::default();
    let mut working: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let mut stuck = 0;
    let ended = loop {
        if context.shutdown.gentle.is_cancelled() {
            break Err(Stopped.into());
        }
        if working.is_empty() && workers_alive(&*registry.store).await?.is_empty() {
            release_dead_leases(&*registry.store).await?;
            let worker = engine::worker(settings, registry, slots, Serving::default(), &bells).await?;
            let hands = hands.clone();
            working.spawn(async move { worker.run(hands).await });
        }
        // Heard before looking, so that nothing is missed in between.
        let progress = bells.progress.notified();
        let admitted = scheduler.admit_only(&ours).await?.admitted;
        if admitted > 0 {
            bells.work.notify_waiters();
        }
        let all = registry.store.runs_open().await.context("reading the open runs")?;
        let nothing_moves = admitted == 0 && all.iter().all(|run| run.state == RunState::Waiting);
        let open: Vec<Run> = all.into_iter().filter(|run| ours.contains(&run.id)).collect();
        look(&Sight { open: &open, ended: ours.len() - open.len() });
        let Some(first) = open.first() else { break Ok(()) };
        stuck = if nothing_moves && !working.is_empty() { stuck + 1 } else { 0 };
        if stuck > 3 {
            break Err(waits_in_vain(first).into());
        }
        tokio::select! {
            () = context.shutdown.gentle.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
            () = progress => {}
            Some(finished) = working.join_next() => {
                finished.context("the worker ended unexpectedly")??;
            }
        }
    };
    hands.cancel();
    while let Some(finished) = working.join_next().await {
        finished.context("the worker ended unexpectedly")??;
    }
    ended
}

fn waits_in_vain(run: &Run) -> UserError {
    let reason = run.reason.clone().unwrap_or_else(|| "waits".to_owned());
    UserError::new(format!("run `{}` of `{}` {reason}", run.id, run.dag)).hint(
        "it stays planned and starts when that is there; `tidegate backfill` computes missing intervals, `tidegate up` all \
         that is due",
    )
}
