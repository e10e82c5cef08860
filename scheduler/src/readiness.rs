//! Whether what a run reads from other runs is published: asked before the run starts, so that waiting holds no worker.
//!
//! A view's state must be the newest that its own grid gives up to the run's interval end, not the newest that happens to
//! be there: a daily view read at 02:15 must not depend on which of two DAGs was quicker. The upstream grid is its stored
//! ticks and, beyond them, the ticks that its schedule would still give.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_registry::cron::CronError;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{Catchup, Dag, FeatureView, OnBlocked, Output, Project, Table};
use tidegate_registry::run::Run;
use tidegate_registry::time::{Instant, Interval, format_instant};

use crate::grid::{Grid, intervals};

/// One thing that a run needs of a view.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Need {
    /// The view.
    pub view: ViewId,
    /// Published up to here: the reading run's interval end.
    pub until: Instant,
    /// Not only the newest interval but every one: its history is read, or state that older intervals add up to.
    pub whole: bool,
}

/// What `run` needs of views that it does not compute itself, under the definitions of `project`, its own.
pub fn needs(run: &Run, project: &Project) -> BTreeSet<Need> {
    let dag = project.dags.get(&run.dag);
    let reads = run.views.iter().filter_map(|view| project.views.get(view)).flat_map(FeatureView::tables);
    reads
        .filter_map(|table| match table {
            Table::Source(_) => None,
            Table::State(view) => Some((view, false)),
            Table::History(view) => Some((view, true)),
        })
        .filter(|(view, _)| !run.views.contains(view))
        .map(|(view, history)| {
            let adds_up = project.views.get(view).is_some_and(|view| matches!(view.output, Output::Partial { .. }));
            // Inside one DAG the author has said whether a blocked interval holds later ones.
            let tolerates_holes =
                dag.is_some_and(|dag| dag.views.contains(view) && dag.on_blocked == OnBlocked::Continue);
            Need { view: view.clone(), until: run.interval.end(), whole: (history || adds_up) && !tolerates_holes }
        })
        .collect()
}

/// What is known of one view that others read.
#[derive(Debug, Clone)]
pub struct Upstream {
    grid: Grid,
    ticks: Vec<Instant>,
    published: BTreeSet<Interval>,
    /// The oldest stored interval that is expected and not published: found once, asked for by every waiting run.
    first_hole: Option<Interval>,
}

impl Upstream {
    /// A view that `dag` runs, with the DAG's stored `ticks`, ascending, and the view's published intervals.
    ///
    /// # Errors
    /// When the schedule's cron is not crontab(5), which validation has refused.
    pub fn new(dag: &Dag, ticks: Vec<Instant>, published: BTreeSet<Interval>) -> Result<Self, CronError> {
        let grid = Grid::new(&dag.schedule)?;
        let wanted = intervals(&ticks).filter(|interval| grid.wants(interval));
        let first_hole = match (dag.schedule.catchup, published.first()) {
            (Catchup::All, _) => wanted.into_iter().find(|interval| !published.contains(interval)),
            // Catch-up leaves out the past: the history begins with the first published interval,
            (Catchup::Latest | Catchup::None, Some(first)) => {
                wanted.into_iter().find(|interval| interval > first && !published.contains(interval))
            }
            // or with the newest, while nothing is published.
            (Catchup::Latest | Catchup::None, None) => wanted.into_iter().last(),
        };
        Ok(Self { grid, ticks, published, first_hole })
    }

    /// The newest stored interval that the schedule wants and that ends by `until`.
    fn newest(&self, until: Instant) -> Option<Interval> {
        let stored = self.ticks.partition_point(|tick| *tick <= until);
        let ends = self.ticks[..stored].windows(2).rev();
        ends.filter_map(|pair| Interval::new(pair[0], pair[1]).ok()).find(|interval| self.grid.wants(interval))
    }

    /// Whether an interval that ends by `until` is yet to be planned.
    fn is_behind(&self, until: Instant) -> bool {
        let planned_until = self.ticks.last().copied();
        // Three ticks bound an interval inside the schedule even when the first one bridges from an older schedule.
        let bounds: Vec<Instant> =
            planned_until.into_iter().chain(self.grid.ticks(planned_until, until).take(3)).collect();
        intervals(&bounds).any(|interval| self.grid.wants(&interval))
    }
}

/// The views that open runs need; a view that no DAG runs is absent.
pub type Upstreams = BTreeMap<ViewId, Arc<Upstream>>;

/// Whether `need` is met; if not, what is waited for, in a sentence that stays the same while nothing changes.
///
/// A grid that has no interval up to the need yet has nothing to wait for.
///
/// # Errors
/// What the run waits for.
pub fn check(need: &Need, upstreams: &Upstreams) -> Result<(), String> {
    let Some(upstream) = upstreams.get(&need.view) else {
        return Err(format!("waits for `{}`, which no DAG runs", need.view));
    };
    if upstream.is_behind(need.until) {
        return Err(format!("waits for `{}` to be planned until {}", need.view, format_instant(need.until)));
    }
    let missing = if need.whole {
        upstream.first_hole.filter(|hole| hole.end() <= need.until)
    } else {
        upstream.newest(need.until).filter(|newest| !upstream.published.contains(newest))
    };
    match missing {
        None => Ok(()),
        Some(interval) => Err(format!(
            "waits for `{}` to publish the interval from {} to {}",
            need.view,
            format_instant(interval.start()),
            format_instant(interval.end())
        )),
    }
}

#[cfg(test)]
#[path = "readiness_tests.rs"]
mod tests;
