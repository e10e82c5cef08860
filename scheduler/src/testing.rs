//! The least definitions, runs and registry that show a point.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::TimeDelta;
use chrono_tz::Tz;
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::ids::{DagName, EntityName, OwnerName, ProjectName, RunId, ViewId};
use tidegate_registry::model::{
    Catchup, Dag, FeatureView, OnBlocked, Output, Project, PublishUnit, Retries, Schedule, SqlText, Table, TableRef,
};
use tidegate_registry::run::{Cause, NewRun, Run, RunState};
use tidegate_registry::store::{DagHistory, DagState, PlanStep};
use tidegate_registry::time::{Instant, Interval};

use crate::planning;

pub(crate) fn at(text: &str) -> Instant {
    let text = if text.contains('T') { format!("{text}:00Z") } else { format!("{text}T00:00:00Z") };
    text.parse().unwrap()
}

/// Midnight of a day of January 2024 (day 32 is the first of February).
pub(crate) fn day(day: i64) -> Instant {
    at("2024-01-01") + TimeDelta::days(day - 1)
}

/// The interval that begins on that day.
pub(crate) fn daily(number: i64) -> Interval {
    Interval::new(day(number), day(number + 1)).unwrap()
}

pub(crate) fn view_id(name: &str) -> ViewId {
    format!("{name}@v1").parse().unwrap()
}

/// A DAG that runs `views` every midnight from 2024-01-01 on.
pub(crate) fn dag(name: &str, views: &[&str]) -> Dag {
    Dag {
        name: name.parse().unwrap(),
        owner: OwnerName::new("ana").unwrap(),
        description: None,
        tags: Vec::new(),
        schedule: Schedule {
            cron: "@daily".to_owned(),
            timezone: Tz::UTC,
            start: day(1),
            end: None,
            catchup: Catchup::All,
            gap: None,
            overlap: None,
        },
        views: views.iter().map(|view| view_id(view)).collect(),
        retries: Retries { max: 2, backoff: Duration::from_secs(1) },
        timeout: None,
        max_active_runs: 100,
        priority: 0,
        in_order: false,
        on_blocked: OnBlocked::Continue,
        publish: PublishUnit::Together,
        on_published: Vec::new(),
        origin: Origin::default(),
    }
}

/// A view that reads these tables: `x` is a view's state, `history.x` its history.
pub(crate) fn view(name: &str, output: Output, reads: &[&str]) -> FeatureView {
    let table = |read: &&str| match read.strip_prefix("history.") {
        Some(view) => Table::History(view_id(view)),
        None => Table::State(view_id(read)),
    };
    FeatureView {
        id: view_id(name),
        entity: EntityName::new("carrier").unwrap(),
        owner: OwnerName::new("ana").unwrap(),
        description: "a view".to_owned(),
        tags: Vec::new(),
        sql: SqlText { text: "SELECT 1".to_owned(), origin: Origin::default() },
        reads: reads.iter().map(|read| TableRef { name: (*read).to_owned(), table: table(read) }).collect(),
        checked_against: Vec::new(),
        output,
        serving_delay: Duration::ZERO,
        features: Vec::new(),
        checks: Vec::new(),
        online: None,
        freshness: None,
        restore_target: None,
        queue: None,
        pool: None,
        fingerprint: "f".to_owned(),
        origin: Origin::default(),
    }
}

pub(crate) fn project(views: Vec<FeatureView>, dags: Vec<Dag>) -> Project {
    let mut project = Project::empty(ProjectName::new("test").unwrap());
    project.views = views.into_iter().map(|view| (view.id.clone(), view)).collect();
    project.dags = dags.into_iter().map(|dag| (dag.name.clone(), dag)).collect();
    project
}

/// A DAG that was applied on 2024-01-01 and never planned.
pub(crate) fn dag_state(dag: &Dag) -> DagState {
    DagState {
        dag: dag.name.clone(),
        paused: false,
        planned_until: None,
        due_at: Some(day(1)),
        schedule_fingerprint: None,
        created_at: day(1),
        definitions: 1,
    }
}

pub(crate) fn run(dag: &str, interval: Interval, views: &[&str], state: RunState) -> Run {
    Run {
        id: RunId::generate(),
        dag: DagName::new(dag).unwrap(),
        interval,
        views: views.iter().map(|view| view_id(view)).collect(),
        cause: Cause::Tick,
        definitions: 1,
        revision: 0,
        state,
        reason: None,
        created_at: interval.end(),
        started_at: None,
        finished_at: None,
        restarts: 0,
        overriding: None,
    }
}

/// One DAG's part of a registry, with the promises of [`tidegate_registry::store::Store`] that planning rests on.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) dag: Dag,
    pub(crate) state: DagState,
    pub(crate) history: DagHistory,
}

impl Model {
    pub(crate) fn new(dag: Dag) -> Self {
        Self { state: dag_state(&dag), history: DagHistory::default(), dag }
    }

    pub(crate) fn decide(&self, now: Instant) -> PlanStep {
        let needed = planning::needs_history(&self.dag, &self.state);
        let history = if needed { self.history.clone() } else { DagHistory::default() };
        planning::plan(&self.dag, &[], &self.state, &history, now).unwrap()
    }

    /// Writes a step, unless the grid has moved on since it was decided.
    pub(crate) fn write(&mut self, step: PlanStep) -> bool {
        if step.planned_until != self.state.planned_until {
            return false;
        }
        for tick in step.ticks {
            assert!(self.state.planned_until.is_none_or(|last| last < tick), "ticks ascend");
            self.state.planned_until = Some(tick);
            self.history.ticks.push(tick);
        }
        self.state.due_at = step.due_at;
        self.state.schedule_fingerprint = Some(step.schedule_fingerprint);
        self.create(step.runs);
        true
    }

    /// Plans for as long as the DAG is due, and returns the intervals whose runs that created, as days.
    pub(crate) fn plan(&mut self, now: Instant) -> Vec<String> {
        let before = self.history.runs.len();
        let mut steps = 0;
        while self.state.due_at.is_some_and(|due| due <= now) {
            let step = self.decide(now);
            assert!(self.write(step));
            steps += 1;
            assert!(steps < 100, "planning never rests");
        }
        let days = |run: &Run| format!("{}-{}", run.interval.start().format("%d"), run.interval.end().format("%d"));
        self.history.runs[before..].iter().map(days).collect()
    }

    pub(crate) fn create(&mut self, runs: Vec<NewRun>) {
        for new in runs {
            let same = |run: &&Run| run.interval == new.interval && run.views == new.views && run.cause == new.cause;
            if self.history.runs.iter().any(|run| same(&run)) {
                continue;
            }
            let revision = self.history.runs.iter().filter(|run| run.interval == new.interval).count();
            self.history.runs.push(Run {
                views: new.views,
                cause: new.cause,
                revision: u32::try_from(revision).unwrap(),
                ..run(new.dag.as_str(), new.interval, &[], RunState::Waiting)
            });
        }
    }

    /// Ends a run; a success publishes.
    pub(crate) fn end(&mut self, index: usize, state: RunState) {
        let run = &mut self.history.runs[index];
        run.state = state;
        if state == RunState::Succeeded {
            for view in &run.views {
                self.history.published.entry(view.clone()).or_default().insert(run.interval);
            }
        }
    }

    pub(crate) fn open(&self) -> Vec<usize> {
        self.history.runs.iter().enumerate().filter(|(_, run)| run.state.is_open()).map(|(index, _)| index).collect()
    }

    pub(crate) fn pause(&mut self, paused: bool) {
        if self.state.paused && !paused {
            self.state.due_at = Some(self.state.created_at);
        }
        self.state.paused = paused;
    }

    /// A changed definition makes the DAG due at once.
    pub(crate) fn apply(&mut self, dag: Dag) {
        self.dag = dag;
        self.state.due_at = Some(self.state.created_at);
    }

    pub(crate) fn ledger(&self) -> BTreeMap<ViewId, BTreeSet<Interval>> {
        self.history.published.clone()
    }
}
