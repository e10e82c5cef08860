//! The report of a run's checks as one HTML page, to be looked at rather than read.
//!
//! [`Facts`] is what it tells, gathered from the registry; [`render`] is a pure function of it. The page needs nothing but
//! itself: no network, no script. What it shows of data is escaped, and hidden where features are tagged `pii`
//! ([`Hidden`]).

mod aside;
mod checks;
mod features;
mod hidden;
mod html;
mod numbers;
mod page;
mod picture;
#[cfg(test)]
mod tests;

use anyhow::Context as _;
use indexmap::IndexMap;
use tidegate_registry::ids::{RunId, SnapshotId};
use tidegate_registry::model::{FeatureView, Project};
use tidegate_registry::profile::ColumnProfile;
use tidegate_registry::run::{CheckResult, Run, RunState, TaskKind, TaskOutput};
use tidegate_registry::store::{CheckFilter, Recorded, Store};
use tidegate_registry::time::Interval;

pub use self::hidden::Hidden;
pub use self::page::render;
use crate::error::UserError;

/// What a report tells.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The definitions that the run used.
    pub project: Project,
    /// The run.
    pub run: Run,
    /// Its views, in dependency order.
    pub views: Vec<ViewFacts>,
}

/// One view of a run.
#[derive(Debug, Clone)]
pub struct ViewFacts {
    /// The view.
    pub view: FeatureView,
    /// The run's interval.
    pub interval: Interval,
    /// Its verdicts; none when the run ended before it was computed.
    pub checks: Vec<CheckResult>,
    /// What the run found out about its rows, when that is still known.
    pub now: Option<Profiled>,
    /// The nearest earlier interval that is published.
    pub before: Option<Recorded>,
}

/// What is known of the rows of one view.
#[derive(Debug, Clone, Default)]
pub struct Profiled {
    /// How many there are.
    pub rows: u64,
    /// Bytes staged, where known.
    pub bytes: Option<u64>,
    /// How many more were computed and set aside, where known.
    pub aside: Option<u64>,
    /// How many have the key of another, beyond the first of each key; where known.
    pub duplicate_keys: Option<u64>,
    /// Their columns.
    pub columns: IndexMap<String, ColumnProfile>,
}

/// Gathers what there is to tell of a run.
///
/// # Errors
/// When the registry cannot be read, and when the run has no verdicts (yet).
pub async fn gather(store: &dyn Store, id: RunId) -> anyhow::Result<Facts> {
    let (run, mut tasks) = store.run(id).await?;
    let verdicts = store.checks(&CheckFilter { run: Some(id), limit: 0, ..CheckFilter::default() }).await?;
    if verdicts.is_empty() {
        return Err(no_verdicts(&run).into());
    }
    let (_, project) = store.project(Some(run.definitions)).await.context("reading the definitions of the run")?;
    let mut views = Vec::new();
    for id in &run.views {
        let view = project.views.get(id).with_context(|| format!("the run's definitions lack `{id}`"))?.clone();
        let task = tasks.iter_mut().find(|task| task.kind == TaskKind::View(id.clone()));
        let now = match task.and_then(|task| task.output.take()) {
            Some(TaskOutput::Staged(staged)) => {
                let bytes = (staged.bytes > 0).then_some(staged.bytes);
                let aside = Some(staged.quarantine.as_ref().map_or(0, |aside| aside.rows));
                let duplicate_keys = Some(staged.summary().duplicate_keys);
                Some(Profiled { rows: staged.rows, bytes, aside, duplicate_keys, columns: staged.profile })
            }
            // Of old runs only what they published is kept. A snapshot's id is its run's.
            _ if run.state == RunState::Succeeded => {
                let recorded = store.recorded_in(SnapshotId(run.id.0), id).await.ok();
                let snapshot = store.snapshot(SnapshotId(run.id.0)).await.ok();
                let of_view = snapshot.and_then(|snapshot| snapshot.views.into_iter().find(|view| view.view == *id));
                recorded.map(|recorded| Profiled {
                    rows: recorded.rows,
                    bytes: None,
                    aside: of_view.map(|view| view.quarantined),
                    duplicate_keys: recorded.summary.map(|summary| summary.duplicate_keys),
                    columns: recorded.profile,
                })
            }
            _ => None,
        };
        let before = store.recorded(id, run.interval.start(), None, 1).await?.into_iter().next();
        let checks = verdicts.iter().filter(|row| row.view == *id).map(|row| row.result.clone()).collect();
        views.push(ViewFacts { view, interval: run.interval, checks, now, before });
    }
    Ok(Facts { project, run, views })
}

fn no_verdicts(run: &Run) -> UserError {
    let error = UserError::new(format!("run `{}` is {} and has no verdicts of checks", run.id, run.state));
    if run.state.is_open() {
        error.hint(format!("`tidegate runs show {}` tells what it waits for", run.id))
    } else {
        error.hint(format!("it ended before its checks were judged; `tidegate runs show {}` tells why", run.id))
    }
}
