//! What is rehearsed: each scenario breaks the copy in its own way, takes it back, and compares.

mod damage;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use indexmap::IndexMap;
use tidegate_registry::dataset::{
    ColumnNames, Dataset, DatasetFilter, MANIFEST_FORMAT, Manifest, Output, Spine, SpineFrom, ViewInput,
};
use tidegate_registry::drill::{DrillPhases, DrillState, Scenario, ScenarioReport};
use tidegate_registry::features::Selection;
use tidegate_registry::ids::{DagName, DatasetId, RunId, ViewId};
use tidegate_registry::restore::plan::{Asked, Definitions, Target, plan};
use tidegate_registry::restore::{HoldPolicy, Restore, ResumeRequest};
use tidegate_registry::run::{Cause, NewRun, RunState};
use tidegate_registry::store::LedgerEntry;
use tidegate_registry::time::Interval;

use self::damage::Damage;
use super::shadow::{Baseline, Shadow, audit, fill};
use super::{millis, skipped};
use crate::dataset::LABEL_TIME;
use crate::online::{CutOver, EncodedRow, Expected, Standing};
use crate::restore::check;
use crate::restore::validate::digest;

/// Why restores are begun in the copy.
const REASON: &str = "drill";
/// Rows of which a digest is computed again.
const DIGEST_ROWS_MAX: u64 = 1_000_000;

/// Rehearses one scenario. The copy comes back unless it is lost.
pub(super) async fn rehearse(mut shadow: Shadow, scenario: Scenario) -> (Option<Shadow>, ScenarioReport) {
    let online: Vec<ViewId> =
        shadow.views.iter().filter(|(_, was)| was.tag.is_some()).map(|(view, _)| view.clone()).collect();
    let views = if scenario.needs_online() { online } else { shadow.views.keys().cloned().collect() };
    if views.is_empty() {
        let why =
            if shadow.online.is_none() { "the project has no online store" } else { "none of the views is online" };
        return (Some(shadow), skipped(scenario, why));
    }
    let mut found = Found { views: views.clone(), ..Found::default() };
    let rehearsed = match scenario {
        Scenario::BadDeploy => take_back(&mut shadow, Damage::Values, &mut found).await,
        Scenario::PartialData => take_back(&mut shadow, Damage::Rows, &mut found).await,
        Scenario::TrainingSetOutOfStep => out_of_step(&mut shadow, &mut found).await,
        Scenario::TagMismatch | Scenario::OnlineStoreLost => match shadow.online_lost().await {
            Err(error) => {
                found.wrong.push(crate::execute::chain(&error));
                return (None, found.report(scenario));
            }
            Ok(empty) => {
                shadow = empty;
                if scenario == Scenario::TagMismatch {
                    tag_mismatch(&shadow, &views, &mut found).await
                } else {
                    store_lost(&shadow, &views, &mut found).await
                }
            }
        },
    };
    if let Err(error) = rehearsed {
        found.wrong.insert(0, crate::execute::chain(&error));
    }
    let report = found.report(scenario);
    (Some(shadow), report)
}

/// What a scenario has found so far.
#[derive(Debug, Default)]
struct Found {
    views: Vec<ViewId>,
    phases: Option<DrillPhases>,
    wrong: Vec<String>,
    right: Vec<String>,
    /// Why it could not be tried.
    skipped: Option<String>,
}

impl Found {
    fn report(self, scenario: Scenario) -> ScenarioReport {
        if let Some(why) = self.skipped.filter(|_| self.wrong.is_empty()) {
            return skipped(scenario, &why);
        }
        let outcome = if self.wrong.is_empty() { DrillState::Passed } else { DrillState::Failed };
        let findings = self.wrong.into_iter().chain(self.right).collect();
        ScenarioReport { scenario, outcome, views: self.views, phases: self.phases, findings }
    }
}

/// Publishes something wrong and takes it back.
async fn take_back(shadow: &mut Shadow, damage: Damage, found: &mut Found) -> Result<()> {
    let Some(damaged) = publish_wrong(shadow, damage, found).await? else { return Ok(()) };
    let (restore, phases) = restore(shadow, damaged.keys().cloned().collect()).await?;
    found.phases = Some(phases);
    came_back(shadow, &damaged, &restore, found).await
}

/// Whether views are as they were when they were copied.
async fn came_back(
    shadow: &Shadow,
    damaged: &IndexMap<ViewId, LedgerEntry>,
    restore: &Restore,
    found: &mut Found,
) -> Result<()> {
    match &restore.validation {
        Some(validation) if validation.passed => found.right.extend(validation.findings.iter().cloned()),
        Some(validation) => found.wrong.extend(validation.findings.iter().cloned()),
        None => found.wrong.push("what came of the restore was not compared".to_owned()),
    }
    for view in damaged.keys() {
        let was = shadow.views.get(view).context("a view was not copied")?;
        let differs = shadow.differs(view, was).await?;
        if differs.is_empty() {
            found.right.push(format!("{view}: intervals, files and digests are those from before"));
        }
        found.wrong.extend(differs);
    }
    Ok(())
}

/// Computes the newest interval of every view with other results, and publishes that; per view what is in the ledger then.
/// `None` when nothing can be made wrong.
async fn publish_wrong(
    shadow: &mut Shadow,
    damage: Damage,
    found: &mut Found,
) -> Result<Option<IndexMap<ViewId, LedgerEntry>>> {
    lift_holds(shadow).await?;
    let revision = damage::apply(shadow, damage).await.context("applying wrong definitions to the copy")?;
    let mut groups: BTreeMap<(DagName, Interval), Vec<ViewId>> = BTreeMap::new();
    for (view, was) in &shadow.views {
        let dag = shadow.project.dag_of(view).context("no DAG runs it")?;
        let newest = was.ledger.first().context("nothing of it is published")?;
        groups.entry((dag.name.clone(), newest.interval)).or_default().push(view.clone());
    }
    let mut runs = Vec::with_capacity(groups.len());
    for ((dag, interval), views) in groups {
        shadow.runs += 1;
        let cause = Cause::Manual(u32::MAX - shadow.runs);
        runs.push(NewRun { dag, interval, views, cause, definitions: revision, attempts_max: 1, priority: 0 });
    }
    let runs = shadow.store.runs_create(runs, shadow.clock.now()).await.context("planning a run of the copy")?;
    shadow.store.runs_admit(&runs).await.context("admitting a run of the copy")?;
    for run in shadow.work(&runs).await? {
        let why = run.reason.unwrap_or_default();
        ensure!(run.state == RunState::Succeeded, "the wrong definitions could not be published: {} {why}", run.state);
    }
    let mut damaged = IndexMap::new();
    for (view, was) in &shadow.views {
        let now = shadow.store.ledger(view, None, 1).await?;
        let now = now.into_iter().next().context("nothing of it is published")?;
        if was.ledger.first().is_some_and(|was| was.digest != now.digest) {
            damaged.insert(view.clone(), now);
        } else {
            found.right.push(format!("{view}: its newest interval holds nothing that could be wrong"));
            // It was published all the same, so it is taken back with the others.
            damaged.insert(view.clone(), now);
        }
    }
    if found.right.len() == shadow.views.len() {
        let all: Vec<ViewId> = damaged.keys().cloned().collect();
        restore(shadow, all).await?;
        found.skipped = Some("the newest intervals hold nothing that could be wrong".to_owned());
        return Ok(None);
    }
    Ok(Some(damaged))
}

/// So that something can be published.
async fn lift_holds(shadow: &Shadow) -> Result<()> {
    let holds = shadow.store.holds().await?;
    if holds.holds.is_empty() {
        return Ok(());
    }
    let request = ResumeRequest {
        views: holds.holds.iter().map(|hold| hold.view.clone()).collect(),
        revision: holds.revision,
        runs: Vec::new(),
        actor: REASON.to_owned(),
        reason: REASON.to_owned(),
        now: shadow.clock.now(),
    };
    shadow.store.resume(request).await.context("lifting the holds of the copy")?;
    Ok(())
}

/// Takes views of the copy back to what was copied, as `tidegate restore` does; what came of it, and how long each step took.
async fn restore(shadow: &Shadow, views: Vec<ViewId>) -> Result<(Restore, DrillPhases)> {
    let store = &*shadow.store;
    let (revision, project) = store.project(None).await?;
    let begun = tokio::time::Instant::now();
    let asked = Asked { views, target: Target::To(shadow.newest), cascade: false, hold_policy: HoldPolicy::SkipRuns };
    let id = RunId::generate();
    let definitions = Definitions { revision, project: &project };
    let mut planned = plan(store, definitions, &asked, id, shadow.clock.now()).await.context("planning the restore")?;
    let plan_ms = millis(begun);
    ensure!(!planned.is_nothing(), "the plan of the restore is empty, though something else was published");
    let checking = tokio::time::Instant::now();
    let online = shadow.online.as_ref().map(|online| &*online.store);
    check(store, &shadow.lake, online, &planned).await.context("checking the restore")?;
    planned.request.actor = REASON.to_owned();
    planned.request.reason = REASON.to_owned();
    store.restore_begin(planned.request).await.context("beginning the restore")?;
    let check_ms = millis(checking);
    for run in shadow.work(&[id]).await? {
        let why = run.reason.unwrap_or_default();
        ensure!(run.state == RunState::Succeeded, "the restore ended as {}: {why}", run.state);
    }
    let whole_ms = millis(begun);
    let restore = store.restore_of(id).await?;
    let validation = restore.validation.as_ref();
    let phases = DrillPhases {
        plan_ms,
        check_ms,
        commit_ms: validation.and_then(|validation| validation.commit_ms).unwrap_or_default(),
        online_ms: validation.and_then(|validation| validation.online_ms).unwrap_or_default(),
        validate_ms: validation.map_or(0, |validation| validation.took_ms),
        whole_ms,
    };
    Ok((restore, phases))
}

/// Notes a dataset that was built from what is published now.
async fn record_dataset(
    shadow: &Shadow,
    damaged: &IndexMap<ViewId, LedgerEntry>,
    versions: &IndexMap<ViewId, u64>,
) -> Result<DatasetId> {
    let (definitions, project) = shadow.store.project(None).await?;
    let newest = shadow.store.snapshots(None, None, 1).await?;
    let mut selection = Selection::default();
    let mut views = IndexMap::new();
    for (view, entry) in damaged {
        let definition = project.views.get(view).context("it is not defined")?;
        let features = definition.features.iter().map(|feature| feature.name.clone()).collect();
        selection.views.insert(view.clone(), features);
        let input = ViewInput {
            fingerprint: definition.fingerprint.clone(),
            snapshot: Some(entry.snapshot),
            delta_version: versions.get(view).copied(),
            intervals: shadow.views.get(view).map_or(0, |was| was.ledger.len() as u64),
            covers: Some(entry.interval.end()),
        };
        views.insert(view.clone(), input);
    }
    let (rows, digest) = (0, String::new());
    let manifest = Manifest {
        format: MANIFEST_FORMAT,
        tidegate: env!("CARGO_PKG_VERSION").to_owned(),
        project: project.name.to_string(),
        definitions,
        number: newest.first().map_or(0, |newest| newest.number),
        known_at: None,
        spine: Spine {
            from: SpineFrom::Rows,
            label_time: LABEL_TIME.to_owned(),
            rows,
            digest: digest.clone(),
            labels: None,
        },
        features: selection,
        names: ColumnNames::default(),
        views,
        output: Output {
            format: "parquet".to_owned(),
            rows,
            digest,
            columns: Vec::new(),
            stale: IndexMap::new(),
            files: Vec::new(),
        },
    };
    let id = DatasetId::generate();
    let (place, actor) = (shadow.lake.root().to_string(), REASON.to_owned());
    let dataset = Dataset { id, name: None, place, created_at: shadow.clock.now(), actor, manifest, pin: None };
    shadow.store.dataset_record(&dataset).await?;
    Ok(id)
}

/// Something is read at a snapshot that is then taken back: the plan must name that snapshot, and what was read must still be
/// there as it was, beside what is published again.
async fn out_of_step(shadow: &mut Shadow, found: &mut Found) -> Result<()> {
    let Some(damaged) = publish_wrong(shadow, Damage::Values, found).await? else { return Ok(()) };
    let states = shadow.store.view_states(&damaged.keys().cloned().collect::<Vec<_>>()).await?;
    let read_at: IndexMap<ViewId, u64> = states.into_iter().map(|(view, state)| (view, state.delta_version)).collect();
    let dataset = record_dataset(shadow, &damaged, &read_at).await.context("recording a dataset in the copy")?;
    let (restore, phases) = restore(shadow, damaged.keys().cloned().collect()).await?;
    found.phases = Some(phases);
    let leaves = restore
        .plan
        .views
        .iter()
        .flat_map(|(view, what)| what.leaves.iter().map(move |slice| (view.clone(), slice.snapshot)));
    let filter = DatasetFilter { built_from: Some(leaves.collect()), ..DatasetFilter::default() };
    match shadow.store.datasets(&filter).await?.iter().any(|known| known.id == dataset) {
        true => found.right.push("a dataset that was built from what is taken back is found by what leaves".to_owned()),
        false => {
            found.wrong.push("a dataset was built from what is taken back, and is not found by what leaves".to_owned());
        }
    }
    let parts = shadow.executor()?;
    let after = shadow.store.view_states(&damaged.keys().cloned().collect::<Vec<_>>()).await?;
    for (view, entry) in &damaged {
        let named = restore.plan.views.get(view).is_some_and(|what| {
            what.leaves.iter().any(|slice| slice.snapshot == entry.snapshot && slice.interval == entry.interval)
        });
        if !named {
            found.wrong.push(format!("{view}: the plan does not name the snapshot {} that leaves", entry.snapshot));
        }
        let was = shadow.views.get(view).and_then(|was| was.ledger.first()).context("nothing of it was published")?;
        let (Some(read), Some(now)) = (read_at.get(view), after.get(view)) else { continue };
        if entry.rows.max(was.rows) > DIGEST_ROWS_MAX {
            found.right.push(format!("{view}: its newest interval is too large to be read again here"));
            continue;
        }
        let definition = shadow.project.views.get(view).context("it is not defined")?;
        let before = digest(&parts, &shadow.project, definition, *read, entry.interval).await?;
        let current = digest(&parts, &shadow.project, definition, now.delta_version, was.interval).await?;
        if before != entry.digest {
            found.wrong.push(format!("{view}: what was read at version {read} can no longer be read as it was"));
        } else if current != was.digest {
            found.wrong.push(format!("{view}: what is published again does not read as before"));
        } else {
            found.right.push(format!(
                "{view}: what was read at version {read} reads as it did, and the plan names its snapshot as leaving"
            ));
        }
    }
    came_back(shadow, &damaged, &restore, found).await
}

/// The store, which is empty, must be found so, and filled again.
async fn store_lost(shadow: &Shadow, views: &[ViewId], found: &mut Found) -> Result<()> {
    let serving = shadow.serving().context("there is no online store")?;
    for view in views {
        let begun = tokio::time::Instant::now();
        let rows = fill(&serving, view).await?;
        found.right.push(format!("{view}: {rows} entities were written again from the lake in {} ms", millis(begun)));
        match audit(&serving, view, None).await? {
            Ok(said) => found.right.push(said),
            Err(differs) => found.wrong.push(differs),
        }
        has_tag(shadow, view, found).await?;
    }
    Ok(())
}

/// The store, which is empty, gets an older publication than the registry knows: as after it was brought back from a copy of its
/// own. That must be noticed, and put right.
async fn tag_mismatch(shadow: &Shadow, views: &[ViewId], found: &mut Found) -> Result<()> {
    let serving = shadow.serving().context("there is no online store")?;
    let states = shadow.store.view_states(views).await?;
    for view in views {
        let state = states.get(view).context("it has no state")?;
        let snapshots = shadow.store.snapshots(None, Some(view), 0).await?;
        let generation = state.online_generation.context("it is not online")?;
        let of_view = |snapshot: &tidegate_registry::store::Snapshot| {
            let mut views = snapshot.views.iter();
            views.find(|of| of.view == *view && of.online_generation == Some(generation)).map(|of| of.publish_number)
        };
        let publish_number = snapshots.iter().find_map(of_view).context("no snapshot tells when it went online")?;
        let expected = Expected { generation, publish_number };
        let wrong = publish_number.saturating_sub(1);
        let other = if wrong == generation { publish_number + 1 } else { wrong };
        let row = EncodedRow {
            entity_key: "drill".to_owned(),
            event_timestamp: shadow.clock.now(),
            expires_at: None,
            features: Vec::new(),
        };
        let tag = format!("{view}#another@snapshot");
        for member in serving.of_each_member() {
            member.online.begin_generation(view, other).await?;
            member.online.write(view, other, std::slice::from_ref(&row)).await?;
            member.online.finish_generation(view, other, 1).await?;
            let step = CutOver {
                view: view.clone(),
                generation: other,
                publish_number: wrong,
                tag: tag.clone(),
                defaults: "{}".to_owned(),
            };
            member.online.cut_over(&[step]).await?;
            match member.online.check(view, expected).await? {
                Standing::NotLive(how) => found.right.push(format!("{view}: noticed: {how}")),
                standing => {
                    found.wrong.push(format!("{view}: another snapshot is live, and it was not noticed: {standing:?}"));
                }
            }
        }
        let rows = fill(&serving, view).await?;
        found.right.push(format!("{view}: put right: {rows} entities were written from the lake"));
        match audit(&serving, view, None).await? {
            Ok(said) => found.right.push(said),
            Err(differs) => found.wrong.push(differs),
        }
        has_tag(shadow, view, found).await?;
    }
    Ok(())
}

/// Whether readers are told the snapshot that they were told before.
async fn has_tag(shadow: &Shadow, view: &ViewId, found: &mut Found) -> Result<()> {
    let Some(Baseline { tag: Some(tag), .. }) = shadow.views.get(view) else { return Ok(()) };
    let serving = shadow.serving().context("there is no online store")?;
    for member in serving.of_each_member() {
        let live = member.online.live(view).await?.map(|live| live.tag).unwrap_or_default();
        if live != *tag {
            found.wrong.push(format!("{view}: `{live}` is live online instead of `{tag}`"));
        }
    }
    Ok(())
}
