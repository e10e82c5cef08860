//! The last task of a run: decide, take the intent, commit, publish, cut over, record.
//!
//! Whatever can refuse a run is decided before the intent. After it only outages stand in the way: every step may be
//! repeated by any worker with the same publish numbers, and each asks what is already done instead of trusting memory.
//! Fail points stand before, after and between doing and recording of every step; the crash tests stop at each.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use datafusion::common::JoinType;
use datafusion::prelude::DataFrame;
use deltalake::kernel::Add;
use deltalake::protocol::checkpoints::create_checkpoint;
use indexmap::IndexMap;
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::model::{FeatureView, Output, Project};
use tidegate_registry::published;
use tidegate_registry::restore::Holds;
use tidegate_registry::run::{CheckResult, Claim, Intent, Pins, SetAside, StagedView, TaskOutput, Verdict};
use tidegate_registry::store::{IntentRequest, Record, StoreError, TaskEnd, ViewIntentRequest, ViewRecord, ViewState};

use crate::checks::{Measured, judge_history, needs_history};
use crate::engine::Joins;
use crate::execute::{Parts, Run, let_through};
use crate::executor::Outcome;
use crate::lake::{CommitError, CommitNote, CommitRequest, Replaces};
use crate::online::{CutOver, OnlineError, SUPERSEDED_AGE_MIN, defaults};
use crate::reads::{slice, state_schema};
use crate::serving::{Content, bring_switches, tag};

/// How long to wait for another run that publishes one of our views.
const BUSY_RETRY: Duration = Duration::from_millis(200);
/// How often history may move under our judgement before we step back.
const JUDGEMENTS_MAX: u32 = 10;
/// A checkpoint is written every so many versions: without any, reading a table takes 2 ms more for every commit.
const CHECKPOINT_EVERY: u64 = 20;

/// Publishes the run of `claim`.
///
/// # Errors
/// Outages and broken worlds; verdicts and fences are [`Outcome`]s.
pub(crate) async fn publish(parts: &Parts, claim: &Claim, run: &Run) -> Result<Outcome> {
    let intent = match parts.store.intent(claim.run.id).await? {
        Some(intent) => intent,
        None => match take_intent(parts, claim, run).await? {
            Decision::Publish(intent) => intent,
            Decision::End(end) => return Ok(Outcome::End(end)),
        },
    };
    fail::fail_point!("intent.after");
    let versions = match commit_all(parts, claim, run, &intent).await? {
        Ok(versions) => versions,
        Err(end) => return Ok(Outcome::End(end)),
    };
    let snapshot = SnapshotId(claim.run.id.0);
    let generations = match publish_online(parts, claim, run, &intent, &versions, snapshot).await? {
        Ok(generations) => generations,
        Err(end) => return Ok(Outcome::End(end)),
    };
    for (id, staged) in &run.staged {
        // Before recording, since nobody looks at a run again that is recorded.
        if let Err(error) = discard_other_attempts(parts, claim.run.id, id, staged).await {
            tracing::warn!(view = %id, run.id = %claim.run.id, "Staged files of earlier attempts were left behind: {error:#}");
        }
    }
    let mut record = record_of(parts, run, &intent, &versions, &generations, snapshot)?;
    let now = parts.clock.now();
    if let Some(dag) = run.project.dags.get(&claim.run.dag) {
        let place = |view: &ViewId| parts.lake.table_url(view).to_string();
        record.notices = published::notices(dag, &claim.run, &intent, &record, place, now);
    }
    fail::fail_point!("record.before");
    match parts.store.record(claim.token, record, now).await {
        Ok(()) => {}
        Err(StoreError::Superseded { view }) => {
            return Ok(Outcome::End(TaskEnd::Superseded { reason: format!("a later publication of `{view}`") }));
        }
        Err(error) => return Err(error.into()),
    }
    fail::fail_point!("record.after");
    tidy(parts, claim, run, &intent, &versions).await;
    Ok(Outcome::Recorded)
}

enum Decision {
    Publish(Intent),
    End(TaskEnd),
}

/// Everything that can still refuse the run, then the intent.
async fn take_intent(parts: &Parts, claim: &Claim, run: &Run) -> Result<Decision> {
    if let Some(reason) = changed_pins(parts, run).await? {
        return Ok(Decision::End(TaskEnd::PinsChanged { reason }));
    }
    fail::fail_point!("intent.before");
    for _ in 0..JUDGEMENTS_MAX {
        let holds = parts.store.holds().await?;
        if let Some(reason) = held(parts, claim, &holds).await? {
            return Ok(Decision::End(TaskEnd::Held { reason }));
        }
        let states = parts.store.view_states(&claim.run.views).await?;
        let mut views = IndexMap::new();
        for (id, staged) in &run.staged {
            let view = run.view(id)?;
            let state = states.get(id).cloned().unwrap_or_default();
            // After the intent a lost table could only be waited for.
            parts.lake.require(id, state.delta_version).await?;
            require_known(parts, id, &state).await?;
            if staged.quarantine.is_some() || state.quarantine_version.is_some() {
                require_known_aside(parts, id, &state).await?;
            }
            let mut checks = judge(parts, run, view, staged).await?;
            if let Some(result) = too_many_deletes(parts, run, view, &state).await? {
                checks.push(result);
            }
            let_through(claim, id, &mut checks);
            views.insert(id.clone(), ViewIntentRequest { records: state.records, checks });
        }
        if let Some(reason) = blocking(views.iter().map(|(id, view)| (id, view.checks.as_slice()))) {
            let judged = views.into_iter().map(|(id, view)| (id, view.checks)).collect();
            return Ok(Decision::End(TaskEnd::Blocked { output: Some(TaskOutput::Judged(judged)), reason }));
        }
        if let Some(holder) = busy(&states, claim) {
            let reason = Some(format!("waiting for the publication of {holder}"));
            return Ok(Decision::End(TaskEnd::Released { retry_in: BUSY_RETRY, reason }));
        }
        match parts
            .store
            .intent_take(claim.token, IntentRequest { views, holds: holds.revision }, parts.clock.now())
            .await
        {
            Ok(intent) => return Ok(Decision::Publish(intent)),
            Err(StoreError::Conflict(_)) => {} // somebody recorded in between: judge again
            Err(error) => return Err(error.into()),
        }
    }
    let reason = Some("waiting for other publications of the same views".to_owned());
    Ok(Decision::End(TaskEnd::Released { retry_in: BUSY_RETRY, reason }))
}

/// Why the run may not publish, when a hold is on one of its views. What counts is what is computed from what now, not when
/// the run was planned.
async fn held(parts: &Parts, claim: &Claim, holds: &Holds) -> Result<Option<String>> {
    if holds.holds.is_empty() {
        return Ok(None);
    }
    let (_, project) = parts.store.project(None).await?;
    let found = claim.run.views.iter().find_map(|view| Some((view, holds.on(&project, view)?)));
    Ok(found.map(|(view, hold)| {
        let by = if hold.view == *view { String::new() } else { format!(" with `{}`", hold.view) };
        format!("`{view}` is held{by} by {}: {}", hold.actor, hold.reason)
    }))
}

/// Refuses a registry that knows less than the lake while refusing is possible: after the intent the run could only wait.
pub(crate) async fn require_known(parts: &Parts, id: &ViewId, state: &ViewState) -> Result<()> {
    let Err(error) = parts.lake.require_known(id, state.publish_number).await else { return Ok(()) };
    // Another run may have published since the state was read.
    let known = given_out(parts, id).await?;
    if known == state.publish_number {
        return Err(error.into());
    }
    Ok(parts.lake.require_known(id, known).await?)
}

/// [`require_known`] for the table of rows that were set aside, which exists.
async fn require_known_aside(parts: &Parts, id: &ViewId, state: &ViewState) -> Result<()> {
    let tables = parts.lake.quarantine();
    tables.require(id, state.quarantine_version.unwrap_or_default()).await?;
    let Err(error) = tables.require_known(id, state.publish_number).await else { return Ok(()) };
    let known = given_out(parts, id).await?;
    if known == state.publish_number {
        return Err(error.into());
    }
    Ok(tables.require_known(id, known).await?)
}

fn busy(states: &IndexMap<ViewId, ViewState>, claim: &Claim) -> Option<String> {
    states.iter().find_map(|(view, state)| {
        state.publishing.filter(|run| *run != claim.run.id).map(|run| format!("`{view}` by run {run}"))
    })
}

/// The first reason, over all views, that stops the run.
pub(crate) fn blocking<'a>(views: impl Iterator<Item = (&'a ViewId, &'a [CheckResult])>) -> Option<String> {
    let stopping: Vec<String> = views
        .flat_map(|(id, checks)| {
            checks
                .iter()
                .filter(|check| check.blocks())
                .map(move |check| format!("{id}: {}: {}", check.check, check.message))
        })
        .collect();
    (!stopping.is_empty()).then(|| stopping.join("; "))
}

async fn changed_pins(parts: &Parts, run: &Run) -> Result<Option<String>> {
    for (name, pin) in &run.pins.sources {
        let source = run.project.sources.values().find(|source| source.name.as_str() == name);
        let source = source.with_context(|| format!("the source `{name}` is not defined"))?;
        if let Some(change) = parts.sources.changes(source, pin).await? {
            return Ok(Some(change));
        }
    }
    Ok(None)
}

/// Settles the verdicts that compare with earlier recorded intervals.
async fn judge(parts: &Parts, run: &Run, view: &FeatureView, staged: &StagedView) -> Result<Vec<CheckResult>> {
    let mut results = staged.checks.clone();
    let measured = Measured { rows: staged.rows, profile: &staged.profile };
    for check in view.checks.iter().filter(|check| needs_history(&check.rule)) {
        if let Some(result) = results.iter_mut().find(|r| r.check == check.name && r.verdict == Verdict::Pending) {
            let start = run.interval.start();
            *result = judge_history(check, &run.project, &view.id, start, measured, Some(&*parts.store)).await?;
        }
    }
    Ok(results)
}

/// `max_deletes`: the share of entities now published that the staged rows no longer have.
async fn too_many_deletes(
    parts: &Parts,
    run: &Run,
    view: &FeatureView,
    state: &ViewState,
) -> Result<Option<CheckResult>> {
    let Some(limit) = view.online.as_ref().and_then(|online| online.max_deletes) else { return Ok(None) };
    let Some(newest) = state.newest.filter(|newest| newest.end() < run.interval.end()) else { return Ok(None) };
    if view.output != Output::Full {
        return Ok(None);
    }
    let ctx = parts.engine.context(Joins::SortMerge)?;
    let reads = run.reads(parts);
    let schema = state_schema(&run.project, view);
    let keys: Vec<&str> = run.project.keys_of(view).iter().map(|key| key.name.as_str()).collect();
    let published = parts.lake.load(&view.id, Some(state.delta_version)).await?;
    let published = ctx.read_table(slice(&ctx, &published, newest, &schema).await?)?;
    let staged = ctx.read_table(reads.state(&ctx, &view.id).await?)?;
    let total = count(parts, published.clone()).await?;
    let gone = count(parts, published.join(staged, JoinType::LeftAnti, &keys, &keys, None)?).await?;
    let failed = gone as f64 > limit * total as f64;
    Ok(Some(CheckResult {
        check: "max_deletes".to_owned(),
        severity: tidegate_registry::model::Severity::Block,
        verdict: if failed { Verdict::Failed } else { Verdict::Passed },
        message: format!("{gone} of {total} published entities would vanish; at most a share of {limit} may"),
        failing_rows: if failed { gone } else { 0 },
        samples: Vec::new(),
        overridden: false,
    }))
}

async fn count(parts: &Parts, rows: DataFrame) -> Result<u64> {
    Ok(parts.engine.run(async move { rows.count().await }).await?? as u64)
}

/// Commits every view of the run; the versions at which they landed.
async fn commit_all(
    parts: &Parts,
    claim: &Claim,
    run: &Run,
    intent: &Intent,
) -> Result<Result<IndexMap<ViewId, Landed>, TaskEnd>> {
    let states = parts.store.view_states(&claim.run.views).await?;
    let mut versions = IndexMap::new();
    for (id, view_intent) in &intent.views {
        let adds = run.adds(id)?;
        let note = note_of(claim, run, id)?;
        fail::fail_point!("commit.before");
        let state = states.get(id);
        let request = CommitRequest {
            view: id,
            publish_number: view_intent.publish_number,
            publish_number_max: state.map_or(view_intent.publish_number, |state| state.publish_number),
            replaces: Replaces::Slice(run.interval),
            adds: &adds,
            run: claim.run.id,
            note: Some(&note),
            restored: None,
        };
        // First what is kept out, so that rows are never in neither table.
        let aside = match commit_aside(parts, run, &request, state).await {
            Ok(aside) => aside,
            Err(error) => return refused(parts, &request, error).await.map(Err),
        };
        fail::fail_point!("commit.between");
        let committed = match parts.lake.commit(&request).await {
            Ok(committed) => committed,
            Err(error) => return refused(parts, &request, error).await.map(Err),
        };
        fail::fail_point!("commit.after");
        let how = if committed.before { "was already committed" } else { "is committed" };
        parts.note(claim, "info", format!("{id} {how} as version {} of its table.", committed.version)).await;
        versions.insert(id.clone(), Landed { version: committed.version, aside });
    }
    Ok(Ok(versions))
}

/// Where the rows of a view are.
#[derive(Debug, Clone, Copy)]
struct Landed {
    /// The version of its table.
    version: u64,
    /// The version of its quarantine table, when there was anything to do in it.
    aside: Option<u64>,
}

/// Makes the quarantine table hold what the run set aside of its interval, and no longer what an earlier run did. Views of
/// which nothing was ever set aside have no such table, and none is asked for.
async fn commit_aside(
    parts: &Parts,
    run: &Run,
    of_view: &CommitRequest<'_>,
    state: Option<&ViewState>,
) -> Result<Option<u64>, CommitError> {
    let view = of_view.view;
    let failed = |source: anyhow::Error| CommitError::Store { view: view.clone(), source };
    let aside = run.staged.get(view).and_then(|staged| staged.quarantine.as_ref());
    if aside.is_none() && state.is_none_or(|state| state.quarantine_version.is_none()) {
        return Ok(None);
    }
    let adds = aside.map(parse_set_aside).transpose().map_err(failed)?.unwrap_or_default();
    let request = CommitRequest { adds: &adds, note: None, ..of_view.clone() };
    Ok(Some(parts.lake.quarantine().commit(&request).await?.version))
}

/// What a commit that was refused means for the run.
pub(crate) async fn refused(parts: &Parts, request: &CommitRequest<'_>, error: CommitError) -> Result<TaskEnd> {
    match error {
        error @ CommitError::Superseded { .. } => Ok(TaskEnd::Superseded { reason: error.to_string() }),
        // What the registry had given out was read before: by now it may be more.
        CommitError::RegistryBehind { view, mark, .. } if given_out(parts, &view).await? >= mark => {
            let reason = format!("publication {mark} of `{view}` overtook publication {}", request.publish_number);
            Ok(TaskEnd::Superseded { reason })
        }
        error => Err(error.into()),
    }
}

/// The highest publish number that the registry has given out for a view.
async fn given_out(parts: &Parts, id: &ViewId) -> Result<u64> {
    let states = parts.store.view_states(std::slice::from_ref(id)).await?;
    Ok(states.get(id).map_or(0, |state| state.publish_number))
}

/// What the commit of one view says of itself.
fn note_of(claim: &Claim, run: &Run, id: &ViewId) -> Result<CommitNote> {
    let staged = run.staged.get(id).with_context(|| format!("`{id}` was not staged"))?;
    Ok(CommitNote {
        dag: claim.run.dag.clone(),
        interval: run.interval,
        views: claim.run.views.clone(),
        cause: claim.run.cause.to_string(),
        revision: claim.run.revision,
        fingerprint: run.view(id)?.fingerprint.clone(),
        rows: staged.rows,
        digest: staged.digest.clone(),
        quarantined: staged.quarantine.as_ref().map_or(0, |quarantine| quarantine.rows),
    })
}

/// Brings each view that goes online into the store, then moves all of them in one step.
async fn publish_online(
    parts: &Parts,
    claim: &Claim,
    run: &Run,
    intent: &Intent,
    versions: &IndexMap<ViewId, Landed>,
    snapshot: SnapshotId,
) -> Result<Result<IndexMap<ViewId, u64>, TaskEnd>> {
    let mut generations = IndexMap::new();
    let Some(serving) = parts.serving() else { return Ok(Ok(generations)) };
    let states = parts.store.view_states(&claim.run.views).await?;
    let mut moves = Vec::new();
    for (id, view_intent) in &intent.views {
        let view = run.view(id)?;
        // The rows of an older interval are not the newest state of a `full` view, but they may be the newest living rows
        // of some entities of a `partial` one.
        let goes_online = view_intent.online || matches!(view.output, Output::Partial { .. });
        if view.online.is_none() || !goes_online {
            continue;
        }
        let newest = states.get(id).and_then(|state| state.newest).map(|newest| newest.end());
        let at = newest.map_or(run.interval.end(), |newest| newest.max(run.interval.end()));
        fail::fail_point!("publish.before");
        let content = Content {
            project: Arc::clone(&run.project),
            view: id.clone(),
            version: versions.get(id).with_context(|| format!("`{id}` was not committed"))?.version,
            interval: run.interval,
            at,
        };
        let published = match serving.publish(&content, view_intent.publish_number).await {
            Ok(published) => published,
            Err(error) => return overtaken(error).map(Err),
        };
        if let Some(note) = published.note {
            parts.note(claim, "info", note).await;
        }
        fail::fail_point!("publish.after");
        let generation = published.generation;
        moves.push(CutOver {
            view: id.clone(),
            generation,
            publish_number: view_intent.publish_number,
            tag: tag(view, snapshot),
            defaults: defaults(view),
        });
        generations.insert(id.clone(), generation);
    }
    if moves.is_empty() {
        return Ok(Ok(generations));
    }
    let going_live: Vec<_> = moves.iter().map(|step| step.view.clone()).collect();
    bring_switches(&*serving.store, &*serving.online, &going_live).await?;
    fail::fail_point!("cutover.before");
    if let Err(error) = serving.online.cut_over(&moves).await {
        return overtaken(error.into()).map(Err);
    }
    fail::fail_point!("cutover.after");
    Ok(Ok(generations))
}

/// The end of a run whose view was published later by somebody else; any other error stays one.
pub(crate) fn overtaken(error: anyhow::Error) -> Result<TaskEnd> {
    match error.downcast_ref::<OnlineError>() {
        Some(OnlineError::Superseded { view, .. }) => {
            Ok(TaskEnd::Superseded { reason: format!("a later publication of `{view}` is live online") })
        }
        _ => Err(error),
    }
}

fn record_of(
    parts: &Parts,
    run: &Run,
    intent: &Intent,
    versions: &IndexMap<ViewId, Landed>,
    generations: &IndexMap<ViewId, u64>,
    snapshot: SnapshotId,
) -> Result<Record> {
    let mut views = IndexMap::new();
    for (id, view_intent) in &intent.views {
        let staged = run.staged.get(id).with_context(|| format!("`{id}` was not staged"))?;
        let landed = versions.get(id).with_context(|| format!("`{id}` was not committed"))?;
        views.insert(
            id.clone(),
            ViewRecord {
                fingerprint: run.view(id)?.fingerprint.clone(),
                publish_number: view_intent.publish_number,
                delta_version: landed.version,
                rows: staged.rows,
                digest: staged.digest.clone(),
                online_generation: generations.get(id).copied(),
                profile: serde_json::to_value(&staged.profile).context("writing the profile")?,
                summary: staged.summary(),
                quarantined: staged.quarantine.as_ref().map_or(0, |quarantine| quarantine.rows),
                quarantine_version: landed.aside,
            },
        );
    }
    let (manifest, actor) = (run.pins.clone(), format!("worker {}", parts.owner));
    Ok(Record { snapshot, views, manifest, actor, notices: Vec::new() })
}

/// What may be done after a run and harms nothing when it is not: old generations, checkpoints.
async fn tidy(parts: &Parts, claim: &Claim, run: &Run, intent: &Intent, versions: &IndexMap<ViewId, Landed>) {
    for (id, landed) in versions {
        let outcome: Result<()> = async {
            fail::fail_point!("tidy.between");
            let aside = landed.aside.map(|version| (parts.lake.quarantine(), version));
            for (lake, version) in [(parts.lake.clone(), landed.version)].into_iter().chain(aside) {
                if version % CHECKPOINT_EVERY == 0 {
                    create_checkpoint(&lake.load(id, Some(version)).await?, None).await?;
                }
            }
            let settings = run.view(id)?.online.as_ref();
            if let (Some(online), Some(settings), Some(of_view)) = (&parts.online, settings, intent.views.get(id)) {
                online.prune(id, settings.keep, SUPERSEDED_AGE_MIN, of_view.publish_number).await?;
            }
            Ok(())
        }
        .await;
        if let Err(error) = outcome {
            tracing::warn!(view = %id, run.id = %claim.run.id, "Tidying up after a run failed; the next run tries again: {error:#}");
        }
    }
}

/// Deletes what attempts staged for a view that are not the one that is published.
///
/// # Errors
/// When the lake cannot list or delete, or `staged` cannot be read: then nothing is deleted.
pub(crate) async fn discard_other_attempts(
    parts: &Parts,
    run: RunId,
    view: &ViewId,
    staged: &StagedView,
) -> Result<usize> {
    let kept: Vec<String> = parse_adds(staged)?.into_iter().map(|add| add.path).collect();
    let discarded = parts.lake.discard_staged(view, run, &kept).await?;
    // Where this attempt set nothing aside others hardly did; what they did is the janitor's.
    let Some(aside) = &staged.quarantine else { return Ok(discarded) };
    let kept: Vec<String> = parse_set_aside(aside)?.into_iter().map(|add| add.path).collect();
    Ok(discarded + parts.lake.quarantine().discard_staged(view, run, &kept).await?)
}

/// Reads staged add actions back from what the view's task stored.
pub(crate) fn parse_adds(staged: &StagedView) -> Result<Vec<Add>> {
    parse(&staged.adds)
}

/// [`parse_adds`] for rows that were set aside.
pub(crate) fn parse_set_aside(aside: &SetAside) -> Result<Vec<Add>> {
    parse(&aside.adds)
}

fn parse(adds: &[serde_json::Value]) -> Result<Vec<Add>> {
    let parse = |add: &serde_json::Value| serde_json::from_value(add.clone());
    adds.iter().map(|add| parse(add).context("reading a staged file's description")).collect()
}

/// The pins of a run, from the outputs of its earlier tasks.
pub(crate) fn pins_of(claim: &Claim) -> Pins {
    claim
        .inputs
        .values()
        .find_map(|output| match output {
            TaskOutput::Pins(pins) => Some(pins.clone()),
            _ => None,
        })
        .unwrap_or_default()
}

/// The definitions of a run's views; a free function so that previews can share it.
pub(crate) fn view_of<'a>(project: &'a Project, id: &ViewId) -> Result<&'a FeatureView> {
    project.views.get(id).with_context(|| format!("`{id}` is not defined"))
}
