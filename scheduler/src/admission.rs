//! Which waiting runs may start, and what the others wait for.
//!
//! Runs wait as rows, not as workers: a run is let in only when its turn has come and all that it reads is there. Turns
//! are oldest interval first within the schedule and within backfills; between the two they alternate, so neither years
//! of backfill nor a busy schedule starves the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_registry::ids::{DagName, RunId};
use tidegate_registry::model::{Dag, OnBlocked, Project};
use tidegate_registry::run::{Cause, Run, RunState};
use tidegate_registry::time::{Interval, format_instant};

use crate::readiness::{self, Upstreams};

/// The two queues between which turns alternate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Queue {
    /// Ticks and what people ask for by hand.
    Schedule,
    Backfill,
}

impl Queue {
    fn of(run: &Run) -> Self {
        match run.cause {
            Cause::Tick | Cause::Manual(_) | Cause::Readmit { .. } | Cause::Restore(_) | Cause::Resume(_) => {
                Self::Schedule
            }
            Cause::Backfill(_) => Self::Backfill,
        }
    }
}

/// Bounds that hold across DAGs.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Backfill runs under way at once, in the whole project; at least 1.
    pub backfill_runs_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { backfill_runs_max: 4 }
    }
}

/// Everything that admission decides over.
#[derive(Debug, Default)]
pub struct Situation {
    /// Open runs, oldest interval first.
    pub runs: Vec<Run>,
    /// The definitions of every revision that an open run uses.
    pub projects: BTreeMap<i64, Arc<Project>>,
    /// Intervals whose latest run ended without publishing, of DAGs that say `on_blocked: wait`.
    pub closed: BTreeMap<DagName, BTreeSet<Interval>>,
    /// The views that waiting runs need.
    pub upstreams: Upstreams,
    /// Only these may be let in; the other waiting runs are not judged, but still come before later intervals of a DAG
    /// that runs in order. `None`: all.
    pub only: Option<BTreeSet<RunId>>,
}

/// Whose turn is next: what is remembered from one pass to the next. Losing it costs nothing but one turn.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    last: HashMap<DagName, Queue>,
    /// Runs of the schedule that were still unclaimed when the last backfill run was let in.
    unserved: BTreeSet<RunId>,
}

/// What becomes of one waiting run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It may start.
    Admit,
    /// It goes on waiting, for this reason.
    Wait(String),
}

/// Decides over every waiting run, oldest interval first, and notes in `turns` whose turn it was.
pub fn decide(situation: &Situation, limits: &Limits, turns: &mut Turns) -> Vec<(RunId, Decision)> {
    let mut hall = Hall::new(situation, limits, turns);
    for run in hall.in_turn() {
        let decision = hall.judge(run);
        hall.enter(run, decision);
    }
    let decisions = hall.decisions;
    let waiting = situation.runs.iter().filter(|run| run.state == RunState::Waiting);
    waiting.filter_map(|run| Some((run.id, decisions.get(&run.id)?.clone()))).collect()
}

/// The runs under way while the waiting ones are judged one by one.
struct Hall<'a> {
    situation: &'a Situation,
    limits: &'a Limits,
    turns: &'a mut Turns,
    /// Runs under way, by DAG.
    active: HashMap<&'a DagName, Vec<&'a Run>>,
    /// Unclaimed runs of the schedule.
    unclaimed: BTreeSet<RunId>,
    backfills: usize,
    /// The start of the oldest open interval, by DAG.
    oldest: HashMap<&'a DagName, Interval>,
    decisions: HashMap<RunId, Decision>,
}

impl<'a> Hall<'a> {
    fn new(situation: &'a Situation, limits: &'a Limits, turns: &'a mut Turns) -> Self {
        let mut active: HashMap<&DagName, Vec<&Run>> = HashMap::new();
        let mut oldest: HashMap<&DagName, Interval> = HashMap::new();
        let mut unclaimed = BTreeSet::new();
        let mut backfills = 0;
        for run in &situation.runs {
            let first = oldest.entry(&run.dag).or_insert(run.interval);
            *first = (*first).min(run.interval);
            if run.state == RunState::Waiting {
                continue;
            }
            active.entry(&run.dag).or_default().push(run);
            match Queue::of(run) {
                Queue::Backfill => backfills += 1,
                Queue::Schedule if run.state == RunState::Queued => {
                    unclaimed.insert(run.id);
                }
                Queue::Schedule => {}
            }
        }
        turns.unserved.retain(|run| unclaimed.contains(run));
        let dags: BTreeSet<&DagName> = oldest.keys().copied().collect();
        turns.last.retain(|dag, _| dags.contains(dag));
        Self { situation, limits, turns, active, unclaimed, backfills, oldest, decisions: HashMap::new() }
    }

    /// The waiting runs in the order in which they are judged: each DAG alternates between its two queues, beginning with
    /// the one whose turn it is; across DAGs the older interval goes first.
    fn in_turn(&self) -> Vec<&'a Run> {
        let mut queues: HashMap<(&DagName, Queue), usize> = HashMap::new();
        let mut ordered: Vec<(usize, &Run)> = Vec::new();
        let may_enter = |run: &&Run| self.situation.only.as_ref().is_none_or(|only| only.contains(&run.id));
        for run in self.situation.runs.iter().filter(|run| run.state == RunState::Waiting).filter(may_enter) {
            let queue = Queue::of(run);
            let place = queues.entry((&run.dag, queue)).or_default();
            let goes_second = self.turns.last.get(&run.dag).map_or(queue == Queue::Backfill, |last| *last == queue);
            ordered.push((2 * *place + usize::from(goes_second), run));
            *place += 1;
        }
        ordered.sort_by_key(|(place, run)| (*place, run.interval));
        ordered.into_iter().map(|(_, run)| run).collect()
    }

    fn judge(&self, run: &Run) -> Decision {
        let Some((project, dag)) = self.definitions(run) else {
            return Decision::Wait(format!("waits for the definition of `{}`, which is gone", run.dag));
        };
        let reasons =
            [self.same_interval(run), self.earlier_interval(run, dag), self.no_slot(run, dag), self.not_its_turn(run)];
        if let Some(reason) = reasons.into_iter().flatten().next() {
            return Decision::Wait(reason);
        }
        let unmet = readiness::needs(run, project)
            .iter()
            .find_map(|need| readiness::check(need, &self.situation.upstreams).err());
        unmet.map_or(Decision::Admit, Decision::Wait)
    }

    fn definitions(&self, run: &Run) -> Option<(&'a Project, &'a Dag)> {
        let project = self.situation.projects.get(&run.definitions)?;
        Some((project, project.dags.get(&run.dag)?))
    }

    fn active(&self, dag: &DagName) -> &[&'a Run] {
        self.active.get(dag).map_or(&[], Vec::as_slice)
    }

    /// Two runs never compute the same view over the same interval at once.
    fn same_interval(&self, run: &Run) -> Option<String> {
        let shares =
            |other: &&&Run| other.interval == run.interval && other.views.iter().any(|view| run.views.contains(view));
        let other = self.active(&run.dag).iter().find(shares)?;
        Some(format!("waits for the {} run of the same interval, `{}`", other.cause, other.id))
    }

    /// In order means: nothing earlier is open, and with `on_blocked: wait` nothing earlier ended without publishing.
    fn earlier_interval(&self, run: &Run, dag: &Dag) -> Option<String> {
        let earlier = self.oldest.get(&run.dag).filter(|oldest| dag.in_order && oldest.start() < run.interval.start());
        if let Some(earlier) = earlier {
            return Some(format!("waits for the earlier interval from {}", format_instant(earlier.start())));
        }
        if dag.on_blocked != OnBlocked::Wait {
            return None;
        }
        let closed = self.situation.closed.get(&run.dag)?;
        let blocked = closed.iter().find(|interval| interval.start() < run.interval.start())?;
        Some(format!(
            "waits until the earlier interval from {} is settled: its last run published nothing",
            format_instant(blocked.start())
        ))
    }

    fn no_slot(&self, run: &Run, dag: &Dag) -> Option<String> {
        let max = dag.max_active_runs.max(1) as usize;
        (self.active(&run.dag).len() >= max).then(|| format!("waits its turn: `{}` runs {max} at a time", run.dag))
    }

    /// Workers take older intervals first, so a backfill run that is let in beside unclaimed ticks goes before them. One
    /// may; the next only after those ticks have been served.
    fn not_its_turn(&self, run: &Run) -> Option<String> {
        if Queue::of(run) == Queue::Schedule {
            return None;
        }
        let max = self.limits.backfill_runs_max.max(1);
        if self.backfills >= max {
            return Some(format!("waits its turn: {max} backfill runs at a time"));
        }
        (!self.turns.unserved.is_empty()).then(|| "waits its turn: runs of the schedule come first".to_owned())
    }

    fn enter(&mut self, run: &'a Run, decision: Decision) {
        if decision == Decision::Admit {
            let queue = Queue::of(run);
            self.active.entry(&run.dag).or_default().push(run);
            self.turns.last.insert(run.dag.clone(), queue);
            match queue {
                Queue::Schedule => {
                    self.unclaimed.insert(run.id);
                }
                Queue::Backfill => {
                    self.backfills += 1;
                    self.turns.unserved = self.unclaimed.clone();
                }
            }
        }
        self.decisions.insert(run.id, decision);
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
