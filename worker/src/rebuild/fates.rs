//! What becomes of runs that landed in some of their tables.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use indexmap::IndexMap;
use tidegate_registry::care::FoundRun;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::run::RunState;
use tidegate_registry::store::RunFilter;

use super::RebuildParts;
use super::table::Table;

/// What becomes of a run that the lake or an open intent tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// All its tables have its commit.
    Whole,
    /// The registry knows its intent, and it can still finish: it is left to the workers.
    InFlight,
    /// The registry knows its intent, and later publications make it impossible to finish.
    Overtaken,
    /// Some of its tables have its commit, and nobody will finish it.
    Half,
}

/// Runs of the registry between intent and record, with the publish number of each view.
pub(super) async fn open_intents(parts: &RebuildParts) -> Result<BTreeMap<RunId, BTreeMap<ViewId, u64>>> {
    let filter = RunFilter { states: vec![RunState::Publishing], ..RunFilter::default() };
    let mut open = BTreeMap::new();
    for run in parts.store.runs(&filter).await.context("reading which runs are publishing")? {
        if let Some(intent) = parts.store.intent(run.id).await.context("reading an intent")? {
            let numbers = intent.views.into_iter().map(|(view, intent)| (view, intent.publish_number));
            open.insert(run.id, numbers.collect());
        }
    }
    Ok(open)
}

pub(super) fn fates(
    runs: &BTreeMap<RunId, FoundRun>,
    tables: &IndexMap<ViewId, Option<Table>>,
    open: &BTreeMap<RunId, BTreeMap<ViewId, u64>>,
) -> BTreeMap<RunId, Fate> {
    let landed = |run: RunId, view: &ViewId| {
        let table = tables.get(view).and_then(Option::as_ref);
        table.is_some_and(|table| table.has(run))
    };
    // One that is under way goes on by itself, wherever it is: what it will record is not only in the lake.
    let is_restore = |run: RunId| {
        let mut restores = tables.values().flatten().flat_map(|table| &table.restores);
        restores.any(|restore| restore.run == run)
    };
    let mut fates = BTreeMap::new();
    for (run, numbers) in open {
        let whole = numbers.keys().all(|view| landed(*run, view));
        let mark = |view: &ViewId| tables.get(view).and_then(Option::as_ref).and_then(|table| table.mark);
        let overtaken =
            numbers.iter().any(|(view, number)| !landed(*run, view) && mark(view).is_some_and(|mark| mark >= *number));
        let fate = match (whole, overtaken) {
            (true, _) if is_restore(*run) && numbers.iter().all(|(view, number)| mark(view) == Some(*number)) => {
                Fate::InFlight
            }
            (true, _) => Fate::Whole,
            (false, true) => Fate::Overtaken,
            (false, false) => Fate::InFlight,
        };
        fates.insert(*run, fate);
    }
    for (run, found) in runs {
        // A log that was shortened since may have held the commit: only one that reaches back further can deny it.
        let denied = |view: &ViewId| {
            let Some(table) = tables.get(view).and_then(Option::as_ref) else { return false };
            let first = table.log.entries.values().next();
            !landed(*run, view) && first.is_some_and(|first| first.modified < found.committed_at)
        };
        let fate = if found.views.iter().any(denied) { Fate::Half } else { Fate::Whole };
        fates.entry(*run).or_insert(fate);
    }
    fates
}
