//! Which intervals a backfill computes, and why not the others. A plan first, so that it can be shown before it runs.
//!
//! Backfills of any ranges in any order, interrupted anywhere, end in the same ledger: each interval is computed on its
//! own, and what a backfill leaves out is exactly what is already there or under way.

use std::collections::BTreeSet;

use chrono::{Days, LocalResult, NaiveDate, NaiveDateTime, TimeDelta, TimeZone};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use tidegate_registry::ids::{BackfillId, DagName, ViewId};
use tidegate_registry::model::Dag;
use tidegate_registry::run::{Cause, NewRun, Run, RunState};
use tidegate_registry::store::DagHistory;
use tidegate_registry::time::{Instant, Interval};

use crate::grid::intervals;
use crate::planning::new_runs;

/// Which intervals are computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reprocess {
    /// Those that are not published and whose latest run did not end without publishing.
    #[default]
    Missing,
    /// Also those whose latest run was blocked, failed, was cancelled or was overtaken.
    Failed,
    /// Also those that are published.
    All,
}

/// What a backfill will do.
#[derive(Debug, Clone, PartialEq)]
pub struct BackfillPlan {
    /// The DAG.
    pub dag: DagName,
    /// Every interval of the range, ascending.
    pub intervals: Vec<BackfillInterval>,
}

/// What becomes of one interval.
#[derive(Debug, Clone, PartialEq)]
pub struct BackfillInterval {
    /// The interval.
    pub interval: Interval,
    /// The views to compute; none when the interval is left alone.
    pub views: Vec<ViewId>,
    /// Why it is computed or left alone.
    pub reason: &'static str,
}

impl BackfillPlan {
    /// The intervals that will be computed.
    pub fn selected(&self) -> impl Iterator<Item = &BackfillInterval> {
        self.intervals.iter().filter(|interval| !interval.views.is_empty())
    }

    /// The runs that do it.
    pub fn runs(&self, dag: &Dag, definitions: i64, id: BackfillId) -> Vec<NewRun> {
        let cause = Cause::Backfill(id);
        let runs =
            |selected: &BackfillInterval| new_runs(dag, definitions, selected.interval, selected.views.clone(), &cause);
        self.selected().flat_map(runs).collect()
    }
}

/// Plans a backfill of the intervals of `history.ticks` whose start lies in `[from, to)`. The stored grid must reach as far
/// as it is to be filled: intervals that are not complete do not appear.
pub fn plan_backfill(
    dag: &Dag,
    history: &DagHistory,
    from: Instant,
    to: Instant,
    reprocess: Reprocess,
) -> BackfillPlan {
    let latest = history.latest();
    let open: BTreeSet<Interval> =
        history.runs.iter().filter(|run| run.state.is_open()).map(|run| run.interval).collect();
    let in_range = intervals(&history.ticks).filter(|interval| from <= interval.start() && interval.start() < to);
    let choose = |interval: Interval| {
        if open.contains(&interval) {
            return BackfillInterval { interval, views: Vec::new(), reason: "a run of it is under way" };
        }
        let chosen: Vec<(ViewId, &str)> = dag
            .views
            .iter()
            .map(|view| {
                let published = history.is_published(view, &interval);
                (view, chooses(published, latest.get(&(interval, view)).copied(), reprocess))
            })
            .filter_map(|(view, reason)| Some((view.clone(), reason.ok()?)))
            .collect();
        // With `all` everything is computed; else the reason of the first view chosen speaks for the interval.
        match chosen.first() {
            Some((_, reason)) => {
                let reason = *reason;
                BackfillInterval { interval, views: chosen.into_iter().map(|(view, _)| view).collect(), reason }
            }
            None => BackfillInterval { interval, views: Vec::new(), reason: left_alone(dag, history, &interval) },
        }
    };
    BackfillPlan { dag: dag.name.clone(), intervals: in_range.map(choose).collect() }
}

/// Why one view of an interval is computed, or `Err` when it is not.
fn chooses(published: bool, latest: Option<&Run>, reprocess: Reprocess) -> Result<&'static str, ()> {
    match (published, latest.map(|run| run.state), reprocess) {
        (true, _, Reprocess::All) => Ok("published, and all are asked for"),
        (true, ..) => Err(()),
        (false, None, _) => Ok("never computed"),
        (false, Some(RunState::Succeeded), _) => Ok("computed, but no longer published"),
        (false, Some(_), Reprocess::Missing) => Err(()),
        (false, Some(RunState::Blocked), _) => Ok("blocked by a check"),
        (false, Some(RunState::Cancelled), _) => Ok("cancelled"),
        (false, Some(_), _) => Ok("failed"),
    }
}

fn left_alone(dag: &Dag, history: &DagHistory, interval: &Interval) -> &'static str {
    if dag.views.iter().all(|view| history.is_published(view, interval)) {
        "published"
    } else {
        "its last run published nothing; `--reprocess failed` computes it again"
    }
}

/// Midnight of `date` in `timezone`: the first instant that the zone's calendar counts to that day. Where a zone left a
/// whole day out, it is the first instant after it.
pub fn midnight(date: NaiveDate, timezone: Tz) -> Instant {
    let wall = date.and_time(chrono::NaiveTime::MIN);
    let mut probe = wall;
    // A gap is at most a day long and begins and ends on a whole second; a quarter of an hour divides all there are.
    for _ in 0..=(24 * 4 + 4) {
        if let Some(instant) = earliest(probe, timezone) {
            return instant;
        }
        probe += TimeDelta::minutes(15);
    }
    (date + Days::new(1)).and_time(chrono::NaiveTime::MIN).and_utc()
}

fn earliest(wall: NaiveDateTime, timezone: Tz) -> Option<Instant> {
    match timezone.from_local_datetime(&wall) {
        LocalResult::Single(at) => Some(at.to_utc()),
        LocalResult::Ambiguous(first, _) => Some(first.to_utc()),
        LocalResult::None => None,
    }
}

#[cfg(test)]
#[path = "backfill_tests.rs"]
mod tests;
