//! Drills that definitions ask for, carried out by whatever process works: when nothing waits for a worker, one at a time.

use std::time::Duration;

use anyhow::Context as _;
use chrono::TimeDelta;
use tidegate_registry::definitions::Settings;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::ScheduledDrill;
use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::store::Store;
use tidegate_registry::time::Instant;
use tidegate_scheduler::drills::due;
use tidegate_worker::drill::drill;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::commands::drill::new;
use crate::context::Registry;
use crate::engine;
use crate::process;
use crate::roles::WORKER_SILENCE_MAX;

/// How often it is looked whether a drill is due.
const LOOK: Duration = Duration::from_secs(5);
/// After so long without an idle moment somebody is told.
const BUSY_MAX: TimeDelta = TimeDelta::days(1);

/// Carries out what is due, until `cancel`.
pub async fn run(settings: Settings, mut registry: Registry, cancel: CancellationToken) {
    loop {
        if let Err(error) = look(&settings, &mut registry, &cancel).await {
            warn!("Drills could not be looked after; trying again: {error:#}");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Looks once; carries out the first that is due.
///
/// # Errors
/// When the registry or the lake cannot be reached.
async fn look(settings: &Settings, registry: &mut Registry, cancel: &CancellationToken) -> anyhow::Result<()> {
    if registry.store.info().await.context("reading the definitions")?.revision != registry.revision {
        (registry.revision, registry.project) =
            registry.store.project(None).await.context("reading the definitions")?;
    }
    let (store, project) = (&*registry.store, &registry.project);
    for scheduled in project.drills.values() {
        let now = registry.clock.now();
        let Some(tick) = is_due(store, scheduled, now).await? else { continue };
        if gives_way(store).await? {
            debug!(drill = %scheduled.name, "A drill is due and gives way to runs.");
            if now - tick > BUSY_MAX {
                tell_busy(store, scheduled, tick, now).await?;
            }
            return Ok(());
        }
        let views: Vec<ViewId> =
            project.views.values().filter(|view| scheduled.matching.means(view)).map(|view| view.id.clone()).collect();
        let parts = engine::drills(settings, registry).await?;
        let actor = format!("worker {}", process::owner());
        let begun = new(Some(scheduled.name.clone()), views, &scheduled.scenarios, actor, registry);
        match drill(&parts, begun, cancel).await {
            Ok(done) => {
                info!(drill = %scheduled.name, drill.id = %done.id, state = %done.state, "A drill was carried out.");
            }
            // As a rule since another process was faster.
            Err(error) => warn!(drill = %scheduled.name, "A drill was not carried out here: {error:#}"),
        }
        return Ok(());
    }
    Ok(())
}

async fn is_due(store: &dyn Store, scheduled: &ScheduledDrill, now: Instant) -> anyhow::Result<Option<Instant>> {
    let versions = store.definition_versions(DefinitionKind::Drill, scheduled.name.as_str()).await?;
    let since = versions.iter().map(|version| version.since).max().unwrap_or_default();
    let applies = store.applies().await?;
    let applied = applies.iter().find(|apply| apply.revision == since).map_or(now, |apply| apply.applied_at);
    let last = store.drilled_last(&scheduled.name).await?;
    due(scheduled, last, applied, now)
        .with_context(|| format!("reading the schedule of the drill `{}`", scheduled.name))
}

/// Whether something waits for a worker: then a drill would be in its way.
async fn gives_way(store: &dyn Store) -> anyhow::Result<bool> {
    Ok(!store.tasks_waiting(1, WORKER_SILENCE_MAX).await.context("asking what waits")?.is_empty())
}

async fn tell_busy(store: &dyn Store, drill: &ScheduledDrill, tick: Instant, now: Instant) -> anyhow::Result<()> {
    let message = format!("the drill `{}` has found no moment without runs for a day", drill.name);
    let notice = NewNotice::new(NoticeEvent::DrillFailed, drill.name.to_string(), now, message);
    let key = format!("drill.busy {} {}", drill.name, tick.timestamp_micros());
    store.notify(notice.once(key)).await.context("telling that a drill waits")
}
