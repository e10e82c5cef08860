//! Restores: what was decided is carried out, whatever dies in between, and looked at afterwards.
//!
//! [`check`] asks, before anything is decided, whether the lake still has what a plan takes, and how the views would go
//! back online. `execute` is the one task of a restore's run: commits, online, cut over, record, in this order and with
//! the numbers of its intent, so each step may be repeated by any worker. `validate` compares what came of it.

#[cfg(test)]
mod tests;
pub(crate) mod validate;

use std::sync::Arc;

use anyhow::{Context, Result};
use indexmap::IndexMap;
use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::restore::plan::Planned;
use tidegate_registry::restore::{
    OnlineTarget, Restore, RestoreRecord, RestoredView, TableTarget, Validation, ViewRestore,
};
use tidegate_registry::run::{Claim, Intent};
use tidegate_registry::store::{Store, StoreError, TaskEnd};
use tidegate_registry::time::Interval;

use crate::execute::Parts;
use crate::executor::Outcome;
use crate::lake::{CommitError, CommitRequest, DecidedNote, Lake, Replaces, RestoreNote, TableChange};
use crate::online::{Begun, CutOver, OnlineError, OnlineStore, defaults};
use crate::publish::{overtaken, refused, view_of};
use crate::serving::{Content, bring_switches};

/// How a view would go back online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WayOnline {
    /// The generation is kept: it is made live again as it is.
    Flip {
        /// Which.
        generation: u64,
    },
    /// It is written from the lake: so many rows, where that is known.
    Republish {
        /// Rows of the view's state.
        rows: Option<u64>,
    },
    /// It is not online.
    Not,
}

/// What a restore would do to one view, beyond what the registry tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// In its table.
    pub table: TableChange,
    /// In its quarantine table.
    pub quarantine: TableChange,
    /// Online.
    pub online: WayOnline,
}

/// Makes sure that everything that a plan takes is there, and tells what would change. Nothing is changed.
///
/// # Errors
/// With every reason why it cannot be done, or when lake or online store cannot be asked.
pub async fn check(
    store: &dyn Store,
    lake: &Lake,
    online: Option<&dyn OnlineStore>,
    planned: &Planned,
) -> Result<IndexMap<ViewId, Effect>> {
    let mut effects = IndexMap::new();
    let mut problems = Vec::new();
    let ids: Vec<ViewId> = planned.request.plan.views.keys().cloned().collect();
    let states = store.view_states(&ids).await?;
    for (view, restore) in &planned.request.plan.views {
        let checked = async {
            let state = states.get(view).with_context(|| format!("`{view}` has no table yet"))?;
            lake.require_known(view, state.publish_number).await?;
            let table = lake.check_target(view, restore.from_version, &restore.table).await?;
            let quarantine = match (&restore.quarantine, state.quarantine_version) {
                (Some(target), Some(recorded)) => lake.quarantine().check_target(view, recorded, target).await?,
                _ => TableChange::default(),
            };
            let online = match (&restore.online, online) {
                (Some(target), Some(online)) => way_online(online, view, target).await?,
                _ => WayOnline::Not,
            };
            anyhow::Ok(Effect { table, quarantine, online })
        };
        match checked.await {
            Ok(effect) => {
                effects.insert(view.clone(), effect);
            }
            Err(error) => problems.push(format!("`{view}`: {}", crate::execute::chain(&error))),
        }
    }
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(effects)
}

async fn way_online(online: &dyn OnlineStore, view: &ViewId, target: &OnlineTarget) -> Result<WayOnline> {
    let rows = target.rows;
    let Some(generation) = target.generation else { return Ok(WayOnline::Republish { rows }) };
    let found = online.rows_kept(view, generation).await?;
    // One that lost rows is written anew. Rows of partial views expire by themselves, so their number says nothing but that
    // there are any.
    let is_whole = target.rows.map_or(found > 0, |rows| rows == found);
    Ok(if is_whole { WayOnline::Flip { generation } } else { WayOnline::Republish { rows } })
}

/// Carries the restore of `claim` out.
///
/// # Errors
/// Outages and broken worlds; fences are [`Outcome`]s.
pub(crate) async fn execute(parts: &Parts, claim: &Claim, project: &Arc<Project>) -> Result<Outcome> {
    let restore = parts.store.restore_of(claim.run.id).await?;
    let intent = parts.store.intent(claim.run.id).await?.context("a restore has its intent from the beginning")?;
    let begun = tokio::time::Instant::now();
    let mut views = match commit_all(parts, claim, &restore, &intent).await? {
        Ok(views) => views,
        Err(end) => return Ok(Outcome::End(end)),
    };
    let committed = tokio::time::Instant::now();
    if let Err(end) = go_online(parts, claim, project, &restore, &mut views).await? {
        return Ok(Outcome::End(end));
    }
    let is_live = tokio::time::Instant::now();
    fail::fail_point!("restore.record.before");
    let record = RestoreRecord { views, actor: format!("worker {}", parts.owner) };
    match parts.store.restore_record(claim.token, record, parts.clock.now()).await {
        Ok(()) => {}
        Err(StoreError::Superseded { view }) => {
            return Ok(Outcome::End(TaskEnd::Superseded { reason: format!("a later publication of `{view}`") }));
        }
        Err(error) => return Err(error.into()),
    }
    fail::fail_point!("restore.record.after");
    let between = |from: tokio::time::Instant, to: tokio::time::Instant| {
        u64::try_from((to - from).as_millis()).unwrap_or(u64::MAX)
    };
    let validation = Validation {
        commit_ms: Some(between(begun, committed)),
        online_ms: parts.online.is_some().then(|| between(committed, is_live)),
        ..validate::validate(parts, project, &restore).await
    };
    if let Err(error) = parts.store.restore_validated(claim.run.id, &validation, parts.clock.now()).await {
        tracing::warn!(run.id = %claim.run.id, "What was found after a restore was not noted: {error}");
    }
    Ok(Outcome::Recorded)
}

/// How many restores back one is looked for that nobody has compared.
const COMPARED_MAX: u32 = 20;

/// Compares what came of restores that were recorded by a process which died before it did so, where nothing was published
/// since. Returns how many.
///
/// # Errors
/// When the registry cannot be reached.
pub(crate) async fn compare_pending(parts: &Parts) -> Result<usize> {
    let mut compared = 0;
    let restores = parts.store.restores(COMPARED_MAX).await.context("looking for restores to compare")?;
    for restore in restores.iter().filter(|restore| restore.recorded_at.is_some() && restore.validation.is_none()) {
        let snapshot = parts.store.snapshot(SnapshotId(restore.id.0)).await?;
        if snapshot.status != "live" {
            continue;
        }
        let (run, _) = parts.store.run(restore.id).await?;
        let (_, project) = parts.store.project(Some(run.definitions)).await?;
        let validation = validate::validate(parts, &Arc::new(project), restore).await;
        parts.store.restore_validated(restore.id, &validation, parts.clock.now()).await?;
        tracing::info!(run.id = %restore.id, passed = validation.passed, "Compared what came of a restore that nobody had.");
        compared += 1;
    }
    Ok(compared)
}

/// Commits every table; what is known of each view then.
async fn commit_all(
    parts: &Parts,
    claim: &Claim,
    restore: &Restore,
    intent: &Intent,
) -> Result<Result<IndexMap<ViewId, RestoredView>, TaskEnd>> {
    let states = parts.store.view_states(&claim.run.views).await?;
    let mut views = IndexMap::new();
    for (view, what) in &restore.plan.views {
        let publish_number = intent.views.get(view).context("a view has no publish number")?.publish_number;
        let publish_number_max = states.get(view).map_or(publish_number, |state| state.publish_number);
        let note = RestoreNote {
            dag: claim.run.dag.clone(),
            interval: claim.run.interval,
            views: claim.run.views.clone(),
            fingerprint: what.fingerprint.clone(),
            newest: what.newest.clone(),
            leaves: what.leaves.clone(),
            comes_back: what.comes_back.clone(),
            from_version: what.from_version,
            table: Some(what.table.clone()),
            decided: Some(DecidedNote {
                asked: restore.plan.asked.clone(),
                actor: restore.actor.clone(),
                reason: restore.reason.clone(),
                begun_at: restore.begun_at,
                holds: restore.plan.holds.clone(),
                hold_policy: restore.plan.hold_policy,
            }),
        };
        let commit = async |lake: &Lake, target: &TableTarget| {
            let failed = |source: anyhow::Error| CommitError::Store { view: view.clone(), source };
            let adds = lake.target_files(view, target).await.map_err(failed)?;
            let (replaces, run) = (Replaces::Table, claim.run.id);
            let request = CommitRequest {
                view,
                publish_number,
                publish_number_max,
                replaces,
                adds: &adds,
                run,
                note: None,
                restored: Some(&note).filter(|_| !lake.is_quarantine()),
            };
            match lake.commit(&request).await {
                Ok(committed) => Ok(Ok(committed.version)),
                Err(error) => refused(parts, &request, error).await.map(Err),
            }
        };
        fail::fail_point!("restore.commit.before");
        // First what is kept out, as every run does.
        let aside = match &what.quarantine {
            Some(target) => match commit(&parts.lake.quarantine(), target).await? {
                Ok(version) => Some(version),
                Err(end) => return Ok(Err(end)),
            },
            None => None,
        };
        fail::fail_point!("restore.commit.between");
        let version = match commit(&parts.lake, &what.table).await? {
            Ok(version) => version,
            Err(end) => return Ok(Err(end)),
        };
        fail::fail_point!("restore.commit.after");
        parts.note(claim, "info", format!("{view} is restored as version {version} of its table.")).await;
        let restored = RestoredView {
            publish_number,
            delta_version: version,
            quarantine_version: aside,
            online_generation: None,
            flipped: false,
        };
        views.insert(view.clone(), restored);
    }
    Ok(Ok(views))
}

/// Makes what is restored live, of all views in one step.
async fn go_online(
    parts: &Parts,
    claim: &Claim,
    project: &Arc<Project>,
    restore: &Restore,
    views: &mut IndexMap<ViewId, RestoredView>,
) -> Result<Result<(), TaskEnd>> {
    let Some(serving) = parts.serving() else { return Ok(Ok(())) };
    let mut lost: Vec<ViewId> = Vec::new();
    loop {
        let mut moves = Vec::new();
        for (view, what) in &restore.plan.views {
            let (Some(target), Some(restored)) = (&what.online, views.get_mut(view)) else { continue };
            let definition = view_of(project, view)?;
            fail::fail_point!("restore.publish.before");
            let way = match lost.contains(view) {
                true => WayOnline::Republish { rows: None },
                false => way_online(&*serving.online, view, target).await?,
            };
            let generation = match way {
                WayOnline::Flip { generation } => {
                    restored.flipped = true;
                    generation
                }
                WayOnline::Republish { .. } | WayOnline::Not => {
                    restored.flipped = false;
                    let number = restored.publish_number;
                    match republish(parts, project, view, what, restored.delta_version, number).await {
                        Ok(generation) => generation,
                        Err(error) => return overtaken(error).map(Err),
                    }
                }
            };
            fail::fail_point!("restore.publish.after");
            let how = if restored.flipped { "live again as it was" } else { "written from the lake" };
            parts.note(claim, "info", format!("{view}: generation {generation} is {how}.")).await;
            restored.online_generation = Some(generation);
            moves.push(CutOver {
                view: view.clone(),
                generation,
                publish_number: restored.publish_number,
                tag: target.tag.clone(),
                defaults: defaults(definition),
            });
        }
        if moves.is_empty() {
            return Ok(Ok(()));
        }
        let going_live: Vec<_> = moves.iter().map(|step| step.view.clone()).collect();
        bring_switches(&*serving.store, &*serving.online, &going_live).await?;
        fail::fail_point!("restore.cutover.before");
        match serving.online.cut_over(&moves).await {
            Ok(()) => break,
            // Pruned since it was looked at.
            Err(OnlineError::Generation { view, .. }) if !lost.contains(&view) => lost.push(view),
            Err(error) => return overtaken(error.into()).map(Err),
        }
    }
    fail::fail_point!("restore.cutover.after");
    Ok(Ok(()))
}

/// Writes the view online from its restored table; the generation to cut over to.
async fn republish(
    parts: &Parts,
    project: &Arc<Project>,
    view: &ViewId,
    restore: &ViewRestore,
    version: u64,
    publish_number: u64,
) -> Result<u64> {
    let serving = parts.serving().context("there is no online store")?;
    let Some(newest) = &restore.newest else {
        if serving.online.begin_generation(view, publish_number).await? == Begun::Empty {
            serving.online.finish_generation(view, publish_number, 0).await?;
        }
        return Ok(publish_number);
    };
    let content = content(project, view, version, newest.interval);
    Ok(serving.publish(&content, publish_number).await?.generation)
}

/// What a view is online, by a version of its table.
fn content(project: &Arc<Project>, view: &ViewId, version: u64, newest: Interval) -> Content {
    Content { project: Arc::clone(project), view: view.clone(), version, interval: newest, at: newest.end() }
}
