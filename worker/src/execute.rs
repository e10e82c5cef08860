//! One claimed task, from its inputs to how it ended.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use datafusion::error::DataFusionError;
use deltalake::kernel::Add;
use indexmap::IndexMap;
use tidegate_registry::ids::{SourceName, ViewId};
use tidegate_registry::model::{FeatureView, Project};
use tidegate_registry::retry::delay;
use tidegate_registry::run::{
    Cause, CheckResult, Claim, Pins, SourceSeen, StagedView, TaskKind, TaskOutput, Verdict, ViewPin,
};
use tidegate_registry::store::{Store, StoreError, TaskEnd};
use tidegate_registry::time::{Clock, Instant, Interval};

use crate::checks::{SourceLook, judge_source};
use crate::engine::{Engine, Joins};
use crate::executor::Outcome;
use crate::lake::Lake;
use crate::online::OnlineStore;
use crate::publish::{blocking, parse_adds, parse_set_aside, pins_of, publish, view_of};
use crate::reads::RunReads;
use crate::restore;
use crate::serving::Serving;
use crate::sources::{Sources, is_pin_violation};
use crate::stage::{StageRequest, stage};

/// The delay between attempts to finish a publication whose attempts are used up.
const PUBLISH_RETRY: Duration = Duration::from_secs(30);

/// The delay before a task is tried again that the registry's absence has stopped. (The registry is told when it is back,
/// so this needs not be long.)
const OUTAGE_RETRY: Duration = Duration::from_secs(1);

/// What every task needs.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) lake: Lake,
    pub(crate) online: Option<Arc<dyn OnlineStore>>,
    pub(crate) sources: Sources,
    pub(crate) engine: Arc<Engine>,
    pub(crate) owner: String,
}

impl Parts {
    /// What brings features online; `None` for batch-only projects.
    pub(crate) fn serving(&self) -> Option<Serving> {
        Some(Serving {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            lake: self.lake.clone(),
            online: Arc::clone(self.online.as_ref()?),
            engine: Arc::clone(&self.engine),
            owner: self.owner.clone(),
        })
    }

    /// Writes a line into the run's log; a log that cannot be written stops nothing.
    pub(crate) async fn note(&self, claim: &Claim, level: &str, message: String) {
        note(&*self.store, &*self.clock, claim, level, message).await;
    }
}

/// Writes a line into the log of the claim's run; a log that cannot be written stops nothing.
pub(crate) async fn note(store: &dyn Store, clock: &dyn Clock, claim: &Claim, level: &str, message: String) {
    let lines = [(level.to_owned(), message)];
    if let Err(error) = store.task_log(claim.token, &lines, clock.now()).await {
        tracing::debug!(run.id = %claim.run.id, "A line of the run's log was not written: {error}");
    }
}

/// A run as its tasks see it.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) project: Arc<Project>,
    pub(crate) interval: Interval,
    pub(crate) pins: Pins,
    /// Views that are staged, in dependency order.
    pub(crate) staged: IndexMap<ViewId, StagedView>,
}

impl Run {
    fn of(claim: &Claim, project: Arc<Project>) -> Self {
        let mut staged = IndexMap::new();
        for id in &claim.run.views {
            if let Some(TaskOutput::Staged(view)) = claim.inputs.get(&id.to_string()) {
                staged.insert(id.clone(), view.clone());
            }
        }
        Self { project, interval: claim.run.interval, pins: pins_of(claim), staged }
    }

    pub(crate) fn view(&self, id: &ViewId) -> Result<&FeatureView> {
        view_of(&self.project, id)
    }

    pub(crate) fn adds(&self, id: &ViewId) -> Result<Vec<Add>> {
        parse_adds(self.staged.get(id).with_context(|| format!("`{id}` was not staged"))?)
    }

    /// What this run's queries read. Staged files that cannot be parsed are left to [`Run::adds`] to report.
    pub(crate) fn reads(&self, parts: &Parts) -> RunReads {
        let staged = self.staged.iter().filter_map(|(id, view)| Some((id.clone(), parse_adds(view).ok()?))).collect();
        RunReads {
            project: Arc::clone(&self.project),
            lake: parts.lake.clone(),
            sources: parts.sources.clone(),
            interval: self.interval,
            pins: self.pins.clone(),
            staged,
        }
    }
}

/// Executes the task of `claim`.
///
/// # Errors
/// [`StoreError::LostLease`] (somewhere in the chain): somebody else goes on. Every other failure becomes a
/// [`TaskEnd`].
pub(crate) async fn execute(parts: &Parts, claim: &Claim, project: Arc<Project>) -> Result<Outcome> {
    let run = Run::of(claim, project);
    let done = match &claim.kind {
        TaskKind::Pin => pin(parts, claim, &run).await,
        TaskKind::View(id) => stage_view(parts, claim, &run, id).await,
        TaskKind::Publish => publish(parts, claim, &run).await,
        TaskKind::Restore => restore::execute(parts, claim, &run.project).await,
    };
    match done {
        Ok(outcome) => Ok(outcome),
        Err(error) if is_lost_lease(&error) => Err(error),
        Err(error) if matches!(claim.kind, TaskKind::View(_)) && is_pin_violation(&error) => {
            Ok(Outcome::End(TaskEnd::PinsChanged { reason: chain(&error) }))
        }
        Err(error) if is_registry_outage(&error) => {
            tracing::warn!(run.id = %claim.run.id, task = %claim.kind, "The registry was out of reach; the attempt is given back: {}", chain(&error));
            Ok(Outcome::End(TaskEnd::Released { retry_in: OUTAGE_RETRY, reason: Some(chain(&error)) }))
        }
        Err(error) => Ok(Outcome::End(failure(claim, &run, &error))),
    }
}

fn failure(claim: &Claim, run: &Run, error: &anyhow::Error) -> TaskEnd {
    let retries = run.project.dags.get(&claim.run.dag).map(|dag| dag.retries);
    let delay = retries.and_then(|retries| delay(&retries, claim.run.id, &claim.kind, claim.attempt));
    let hopeless = !claim.kind.publishes() && is_hopeless(error);
    // After its intent a run is retried for ever, so it needs a delay whatever its attempts.
    let delay = if claim.kind.publishes() { delay.or(Some(PUBLISH_RETRY)) } else { delay };
    TaskEnd::Failed { error: chain(error), retry_in: delay.filter(|_| !hopeless) }
}

/// Whether trying again must give the same: the query does not plan.
fn is_hopeless(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<DataFusionError>().is_some_and(|error| {
            matches!(
                error.find_root(),
                DataFusionError::Plan(_) | DataFusionError::SchemaError(..) | DataFusionError::SQL(..)
            )
        })
    })
}

/// Whether the registry could not be reached: nothing is wrong with the task, so that costs it no attempt.
pub(crate) fn is_registry_outage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::Unavailable(_))))
}

pub(crate) fn is_lost_lease(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::LostLease)))
}

/// The chain of causes on one line. Some libraries repeat their source in their own text; it is told once.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().replace("\ncaused by\n", ": ").replace('\n', " ");
        if told.contains(&cause) {
            continue;
        }
        if !told.is_empty() {
            told.push_str(": ");
        }
        told.push_str(&cause);
    }
    told
}

/// Fixes the version of everything that the run reads or writes.
async fn pin(parts: &Parts, claim: &Claim, run: &Run) -> Result<Outcome> {
    let mut pins = Pins::default();
    let mut views: Vec<ViewId> = claim.run.views.clone();
    for id in &claim.run.views {
        let view = run.view(id)?;
        for name in view.source_reads() {
            pin_source(parts, run, name, &mut pins).await?;
        }
        for read in view.view_reads() {
            if !views.contains(read) {
                views.push(read.clone());
            }
        }
    }
    let states = parts.store.view_states(&views).await?;
    for id in views {
        let state = states.get(&id).with_context(|| format!("`{id}` has no table yet: run `tidegate apply`"))?;
        // A table that is gone must refuse the run here: after the intent it would be waited for, for ever.
        parts.lake.require(&id, state.delta_version).await?;
        let newest = parts.store.ledger(&id, Some(run.interval.end()), 1).await?;
        let state_interval = newest.first().map(|entry| entry.interval);
        pins.views.insert(id, ViewPin { delta_version: state.delta_version, state: state_interval });
    }
    if let Some(end) = decided_of_others(claim, &pins) {
        return Ok(Outcome::End(end));
    }
    if let Some(end) = judge_sources(parts, claim, run, &mut pins).await? {
        return Ok(Outcome::End(end));
    }
    fail::fail_point!("pin.after");
    Ok(Outcome::End(TaskEnd::Succeeded { output: TaskOutput::Pins(pins), rows: None }))
}

async fn pin_source(parts: &Parts, run: &Run, name: &SourceName, pins: &mut Pins) -> Result<()> {
    if pins.sources.contains_key(name.as_str()) {
        return Ok(());
    }
    let source = run.project.sources.get(name).with_context(|| format!("the source `{name}` is not defined"))?;
    pins.sources.insert(name.to_string(), parts.sources.pin(source).await?);
    Ok(())
}

/// Judges the checks of what was pinned; how the run ends when one of them stops it.
async fn judge_sources(parts: &Parts, claim: &Claim, run: &Run, pins: &mut Pins) -> Result<Option<TaskEnd>> {
    for (name, pin) in &pins.sources {
        let source = run.project.sources.values().find(|source| source.name.as_str() == name);
        let Some(source) = source.filter(|source| !source.checks.is_empty()) else { continue };
        let is_reader =
            |id: &&ViewId| run.view(id).is_ok_and(|view| view.source_reads().any(|read| *read == source.name));
        let Some(reader) = claim.run.views.iter().find(is_reader) else { continue };
        let last = seen_before(parts, reader, name, None).await?;
        let earlier = seen_before(parts, reader, name, Some(run.interval.start())).await?;
        let (sources, source, pin) = (parts.sources.clone(), source.clone(), pin.clone());
        let (interval, now) = (run.interval, parts.clock.now());
        let ctx = parts.engine.context(Joins::Hash)?;
        let judging = async move {
            let (last, earlier) = (last.as_ref(), earlier.as_ref());
            let look = SourceLook { sources: &sources, source: &source, pin: &pin, interval, now, last, earlier };
            judge_source(&ctx, look).await
        };
        let seen = parts.engine.run(judging).await?.with_context(|| format!("checking the source `{name}`"))?;
        for check in seen.checks.iter().filter(|check| matches!(check.verdict, Verdict::Failed | Verdict::Error)) {
            parts.note(claim, "warn", format!("{}: {}.", check.check, check.message)).await;
        }
        pins.seen.insert(name.clone(), seen);
    }
    let (mut judged, mut stopping) = (IndexMap::new(), Vec::new());
    for id in &claim.run.views {
        let results = of_sources(claim, pins, run.view(id)?);
        for check in results.iter().filter(|check| check.blocks()) {
            // Told once, whatever the number of views that read the source.
            let reason = format!("{}: {}", check.check, check.message);
            if !stopping.contains(&reason) {
                stopping.push(reason);
            }
        }
        judged.insert(id.clone(), results);
    }
    let end = TaskEnd::Blocked { output: Some(TaskOutput::Judged(judged)), reason: stopping.join("; ") };
    Ok((!stopping.is_empty()).then_some(end))
}

/// What an earlier run for `reader` saw of a source; of the run recorded last, or of the nearest interval up to `before`.
async fn seen_before(
    parts: &Parts,
    reader: &ViewId,
    source: &str,
    before: Option<Instant>,
) -> Result<Option<SourceSeen>> {
    let manifest = parts.store.manifest(reader, before).await?;
    Ok(manifest.and_then(|mut pins| pins.seen.swap_remove(source)))
}

/// Notes which checks of `view` a person has let fail.
pub(crate) fn let_through(claim: &Claim, view: &ViewId, checks: &mut [CheckResult]) {
    let Some(decision) = &claim.run.overriding else { return };
    for check in checks.iter_mut().filter(|check| check.does_not_hold() && !check.is_built_in()) {
        check.overridden = decision.covers(view, &check.check);
    }
}

/// How the run ends when a person let it through over other sources than these.
fn decided_of_others(claim: &Claim, pins: &Pins) -> Option<TaskEnd> {
    let decision = claim.run.overriding.as_ref()?;
    let seen = decision.sources.as_ref()?;
    let (changed, _) = pins.sources.iter().find(|(name, pin)| seen.get(*name) != Some(*pin))?;
    let reason = format!(
        "the source `{changed}` has changed since run {} was checked, so that it was let through says nothing of what would \
         be published now: retry the run, and look again",
        decision.of
    );
    Some(TaskEnd::Blocked { output: None, reason })
}

/// The verdicts on the sources that a view reads, of which a person may have let some through.
fn of_sources(claim: &Claim, pins: &Pins, view: &FeatureView) -> Vec<CheckResult> {
    let seen = view.source_reads().filter_map(|source| pins.seen.get(source.as_str()));
    let overrides = claim.run.overriding.as_ref();
    let judged = |check: &CheckResult| {
        let overridden = check.does_not_hold() && overrides.is_some_and(|of| of.covers(&view.id, &check.check));
        CheckResult { overridden, ..check.clone() }
    };
    seen.flat_map(|seen| &seen.checks).map(judged).collect()
}

/// Computes, checks and stages one view.
async fn stage_view(parts: &Parts, claim: &Claim, run: &Run, id: &ViewId) -> Result<Outcome> {
    fail::fail_point!("stage.before");
    let request = StageRequest {
        reads: run.reads(parts),
        view: id.clone(),
        run: claim.run.id,
        attempt: format!("{}-{}", claim.run.restarts, claim.attempt),
        readmit: match &claim.run.cause {
            Cause::Readmit { run, view } if view == id => Some(*run),
            _ => None,
        },
        now: parts.clock.now(),
        profile: true,
    };
    let engine = Arc::clone(&parts.engine);
    let mut staged = parts.engine.run(async move { stage(&engine, &request).await }).await??;
    staged.checks.splice(0..0, of_sources(claim, &run.pins, run.view(id)?));
    let_through(claim, id, &mut staged.checks);
    let paths = parse_adds(&staged)?.into_iter().map(|add| add.path).collect();
    parts.lake.sync(id, paths).await?;
    if let Some(aside) = &staged.quarantine {
        let paths = parse_set_aside(aside)?.into_iter().map(|add| add.path).collect();
        parts.lake.quarantine().sync(id, paths).await?;
    }
    fail::fail_point!("stage.after");
    let failing = staged.checks.iter().filter(|check| check.verdict == Verdict::Failed);
    for check in failing {
        parts.note(claim, "warn", format!("{id}: {}: {}.", check.check, check.message)).await;
    }
    parts.note(claim, "info", format!("{id} is staged: {} rows, {} bytes.", staged.rows, staged.bytes)).await;
    let quarantining = staged.checks.iter().filter(|check| check.verdict == Verdict::Quarantined);
    for check in quarantining {
        parts.note(claim, "warn", format!("{id}: {}: {}.", check.check, check.message)).await;
    }
    let rows = Some(staged.rows);
    match blocking(std::iter::once((id, staged.checks.as_slice()))) {
        Some(reason) => Ok(Outcome::End(TaskEnd::Blocked { output: Some(TaskOutput::Staged(staged)), reason })),
        None => Ok(Outcome::End(TaskEnd::Succeeded { output: TaskOutput::Staged(staged), rows })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_repeats_its_own_is_told_once() {
        let root = anyhow::anyhow!("Csv error: expected 1 record, found 2");
        let error = root
            .context("processing a.csv\ncaused by\nCsv error: expected 1 record, found 2")
            .context("reading `orders`");
        assert_eq!(chain(&error), "reading `orders`: processing a.csv: Csv error: expected 1 record, found 2");
    }
}
