//! What a hold has kept from being computed, for whoever lifts it.

use std::collections::BTreeSet;

use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{Catchup, Dag};
use tidegate_registry::run::RunState;
use tidegate_registry::store::DagHistory;
use tidegate_registry::time::{Instant, Interval};

use crate::grid::intervals;

/// The intervals of `dag` in which `views` are to be computed anew, when what held them since `held_since` is lifted:
/// those that were taken back, that ended as held or overtaken, and those of which no run was planned meanwhile.
///
/// Intervals that a check blocked, that failed or that a person cancelled stay closed, as they would without any hold.
pub fn missed(
    dag: &Dag,
    views: &BTreeSet<ViewId>,
    history: &DagHistory,
    held_since: Instant,
) -> Vec<(Interval, Vec<ViewId>)> {
    let latest = history.latest();
    let all: Vec<Interval> = intervals(&history.ticks).collect();
    let newest = all.last().copied();
    let is_wanted = |interval: &Interval| match dag.schedule.catchup {
        Catchup::All | Catchup::None => interval.end() > held_since,
        Catchup::Latest => interval.end() > held_since && Some(*interval) == newest,
    };
    let is_missed = |interval: &Interval, view: &ViewId| {
        !history.is_published(view, interval)
            && match latest.get(&(*interval, view)).map(|run| run.state) {
                None => is_wanted(interval),
                Some(state) => matches!(state, RunState::Succeeded | RunState::Held | RunState::Superseded),
            }
    };
    let missed = all.into_iter().map(|interval| {
        let chosen = dag.views.iter().filter(|view| views.contains(*view) && is_missed(&interval, view));
        (interval, chosen.cloned().collect::<Vec<_>>())
    });
    missed.filter(|(_, views)| !views.is_empty()).collect()
}
