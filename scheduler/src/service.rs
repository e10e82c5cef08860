//! The thin loop around the decisions: read what is due, decide, write; then let in what may start.
//!
//! A pass takes no arguments and remembers nothing that matters, so lost, late and doubled wake-ups are harmless, and
//! start-up, crash and normal days are one path. Several schedulers on one registry do no harm: a step of planning is
//! written only while the grid is as it was when the step was decided, and creating or admitting a run twice changes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tidegate_registry::ids::{BackfillId, DagName, RunId};
use tidegate_registry::model::Dag;
use tidegate_registry::pulse::Pulse;
use tidegate_registry::restore::Holds;
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{DagHistory, DagState, PlanStep, Store, StoreError};
use tidegate_registry::time::{Clock, Instant};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::admission::{self, Decision, Limits, Turns};
use crate::backfill::{BackfillPlan, Reprocess, plan_backfill};
use crate::facts::Facts;
use crate::grid::Grid;
use crate::planning;
use crate::watch::{nagging, stalled};

/// How often holds and restores are looked at, in real time.
const WATCH_EVERY: Duration = Duration::from_secs(60);

/// Restores that are looked at: those under way are among the newest.
const RESTORES_WATCHED: u32 = 50;

/// How the loop behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Look at least this often, whatever wakes us or not.
    pub poll: Duration,
    /// DAGs planned in one pass; the rest follows in the next, which comes at once.
    pub dags_max: u32,
    /// Bounds of admission.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { poll: Duration::from_millis(500), dags_max: 500, limits: Limits::default() }
    }
}

/// Waiting runs per DAG whose reason is kept up to date: those whose turn is near.
const REASONS_PER_DAG: usize = 20;

/// Reasons written in one pass: each is a transaction, and none is urgent.
const REASONS_PER_PASS: usize = 100;

/// Runs let in, or DAGs planned with a tick and a run each, in one transaction: the disk is waited for once, and no
/// other writer waits long.
const BATCH_MAX: usize = 200;

/// The longest pause after failed passes.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What one pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepSummary {
    /// DAGs that were due and are planned.
    pub dags_planned: usize,
    /// DAGs that were due and could not be planned; why is in the log.
    pub dags_failed: usize,
    /// Ticks stored.
    pub ticks: usize,
    /// Runs planned.
    pub runs_planned: usize,
    /// Runs let in.
    pub admitted: usize,
    /// Runs that go on waiting.
    pub waiting: usize,
    /// Some DAG has more to plan now: look again at once.
    pub more: bool,
}

impl StepSummary {
    fn planned(&mut self, step: &PlanStep, now: Instant) {
        self.dags_planned += 1;
        self.ticks += step.ticks.len();
        self.runs_planned += step.runs.len();
        self.more |= step.due_at.is_some_and(|due| due <= now);
    }

    /// Whether the registry is other than before.
    pub fn did_anything(&self) -> bool {
        self.ticks + self.runs_planned + self.admitted > 0
    }
}

/// Decides when everything runs.
#[derive(Debug)]
pub struct Scheduler {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    options: Options,
    wake: Arc<Notify>,
    /// Held for a whole pass: passes of one scheduler do not overlap.
    memory: Mutex<Memory>,
    pulse: Pulse,
}

/// What spares work in the next pass; all of it may be lost.
#[derive(Debug, Default)]
struct Memory {
    facts: Facts,
    turns: Turns,
    /// DAGs that could not be planned, by the revision at which that was said.
    complained: BTreeMap<DagName, i64>,
    /// When holds and restores were looked at last.
    watched: Option<tokio::time::Instant>,
}

impl Memory {
    /// Says once per revision why a DAG cannot be planned; what passes by itself is passed over.
    fn complain(&mut self, state: &DagState, failure: anyhow::Error, summary: &mut StepSummary) -> anyhow::Result<()> {
        match failure.downcast_ref::<StoreError>() {
            Some(StoreError::Unavailable(_)) => return Err(failure),
            Some(StoreError::Conflict(_) | StoreError::NotFound { .. }) => {
                debug!(dag.name = %state.dag, "the DAG changed while it was planned; it comes again if it is due");
            }
            _ => {
                summary.dags_failed += 1;
                if self.complained.insert(state.dag.clone(), state.definitions) != Some(state.definitions) {
                    error!(dag.name = %state.dag, error = format!("{failure:#}"), "the DAG cannot be planned");
                }
            }
        }
        Ok(())
    }
}

/// Steps that are written together.
#[derive(Debug, Default)]
struct Batch {
    states: Vec<DagState>,
    steps: Vec<PlanStep>,
}

impl Batch {
    fn add(&mut self, state: &DagState, step: PlanStep) {
        self.states.push(state.clone());
        self.steps.push(step);
    }

    fn is_full(&self) -> bool {
        self.steps.iter().map(|step| 1 + step.ticks.len() + step.runs.len()).sum::<usize>() >= 3 * BATCH_MAX
    }
}

impl Scheduler {
    /// A scheduler over `store`, by `clock`.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, options: Options) -> Self {
        Self { store, clock, options, wake: Arc::new(Notify::new()), memory: Mutex::default(), pulse: Pulse::default() }
    }

    /// Notify this after anything that may give the scheduler something to do: an apply, a run's end, an unpause. Without
    /// it the scheduler notices within [`Options::poll`].
    pub fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Beats with every pass of [`Scheduler::run`].
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Passes until `cancel`: at the next due tick, when woken, and every [`Options::poll`]. Failures are logged and
    /// tried again.
    pub async fn run(&self, cancel: CancellationToken) {
        let mut failures = 0_u32;
        if cancel.run_until_cancelled(self.read_ahead()).await.is_none() {
            return;
        }
        loop {
            self.pulse.beat();
            // Subscribed before looking: what happens during the pass wakes the next one.
            let woken = self.wake.notified();
            let Some(passed) = cancel.run_until_cancelled(self.pass()).await else { return };
            let pause = match passed {
                Ok(pause) => {
                    if failures > 0 {
                        info!("the scheduler goes on after {failures} failed passes");
                    }
                    failures = 0;
                    pause
                }
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    let pause = backoff(self.options.poll, failures);
                    error!(error = format!("{failure:#}"), "the scheduler tries again in {pause:?}");
                    pause
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = woken, if failures == 0 => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Reads the newest definitions, so that the first tick need not wait for them.
    async fn read_ahead(&self) {
        let read = async {
            let revision = self.store.info().await?.revision;
            self.memory.lock().await.facts.definitions(&*self.store, revision).await.map(drop)
        };
        if let Err(failure) = read.await {
            debug!(error = format!("{failure:#}"), "the definitions were not read ahead of the first pass");
        }
    }

    /// One pass, and how long to sleep after it.
    async fn pass(&self) -> anyhow::Result<Duration> {
        let summary = self.step().await?;
        if summary.more {
            return Ok(Duration::ZERO);
        }
        let next_due = self.store.next_due().await.context("asking when the next DAG is due")?;
        // A DAG that cannot be planned stays due; the poll looks at it again.
        let until_due = next_due.map_or(Duration::MAX, |due| self.clock.real_until(due));
        Ok(if until_due.is_zero() { self.options.poll } else { until_due.min(self.options.poll) })
    }

    /// One pass: plans what is due, then lets in what may start. Repeating it is harmless.
    ///
    /// # Errors
    /// When the store cannot be read or written; a DAG that cannot be planned is logged and does not stop the others.
    pub async fn step(&self) -> anyhow::Result<StepSummary> {
        let mut memory = self.memory.lock().await;
        let now = self.clock.now();
        let mut summary = StepSummary::default();
        self.plan_due(&mut memory, now, &mut summary).await?;
        self.admit(&mut memory, None, &mut summary).await?;
        if memory.watched.is_none_or(|at| at.elapsed() >= WATCH_EVERY) {
            memory.watched = Some(tokio::time::Instant::now());
            self.watch(now).await?;
        }
        if summary.did_anything() {
            info!(
                ticks = summary.ticks,
                runs = summary.runs_planned,
                admitted = summary.admitted,
                waiting = summary.waiting,
                "planned {} DAGs",
                summary.dags_planned
            );
        }
        Ok(summary)
    }

    /// Tells of what must not be forgotten.
    async fn watch(&self, now: Instant) -> anyhow::Result<()> {
        let holds = self.store.holds().await.context("reading what is held")?;
        let restores = self.store.restores(RESTORES_WATCHED).await.context("reading the restores")?;
        for notice in nagging(&holds, now).into_iter().chain(stalled(&restores, now)) {
            self.store.notify(notice).await.context("writing a notice")?;
        }
        Ok(())
    }

    /// Lets in those of `only` that may start, and plans nothing: for a process that computes a few runs by itself, while no
    /// worker is about that would take up what else is waiting.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn admit_only(&self, only: &BTreeSet<RunId>) -> anyhow::Result<StepSummary> {
        let mut memory = self.memory.lock().await;
        let mut summary = StepSummary::default();
        self.admit(&mut memory, Some(only), &mut summary).await?;
        Ok(summary)
    }

    async fn plan_due(&self, memory: &mut Memory, now: Instant, summary: &mut StepSummary) -> anyhow::Result<()> {
        let due = self.store.dags_due(now, self.options.dags_max).await.context("reading the DAGs that are due")?;
        summary.more = due.len() >= self.options.dags_max as usize;
        if due.is_empty() {
            summary.more = false;
            return Ok(());
        }
        let holds = self.store.holds().await.context("reading what is held")?;
        let mut batch = Batch::default();
        for state in &due {
            match self.decide_one(&mut memory.facts, &holds, state, now).await {
                Ok(step) => batch.add(state, step),
                Err(failure) => memory.complain(state, failure, summary)?,
            }
            if batch.is_full() {
                self.write(&mut batch, memory, now, summary).await?;
            }
        }
        self.write(&mut batch, memory, now, summary).await?;
        // Nothing but failures would spin.
        summary.more &= summary.dags_planned > 0;
        Ok(())
    }

    /// Stores the steps of `batch` and empties it.
    async fn write(
        &self,
        batch: &mut Batch,
        memory: &mut Memory,
        now: Instant,
        summary: &mut StepSummary,
    ) -> anyhow::Result<()> {
        let Batch { states, steps } = std::mem::take(batch);
        if steps.is_empty() {
            return Ok(());
        }
        let verdicts = self.store.plan_all(&steps, now).await.context("planning what is due")?;
        for ((state, step), verdict) in states.iter().zip(&steps).zip(verdicts) {
            match verdict {
                Ok(()) => {
                    summary.planned(step, now);
                    memory.complained.remove(&state.dag);
                }
                Err(refused) => {
                    let failure = anyhow::Error::new(refused).context(format!("planning `{}`", state.dag));
                    memory.complain(state, failure, summary)?;
                }
            }
        }
        Ok(())
    }

    async fn decide_one(
        &self,
        facts: &mut Facts,
        holds: &Holds,
        state: &DagState,
        now: Instant,
    ) -> anyhow::Result<PlanStep> {
        let definitions = facts.definitions(&*self.store, state.definitions).await?;
        let dag = definitions
            .project
            .dags
            .get(&state.dag)
            .ok_or_else(|| anyhow!("`{}` is not defined in revision {}", state.dag, state.definitions))?;
        let (dag, aside) = &holds.apart(&definitions.project, dag);
        let history =
            if planning::needs_history(dag, state) { self.history(dag).await? } else { DagHistory::default() };
        planning::plan(dag, aside, state, &history, now)
            .with_context(|| format!("reading the schedule of `{}`", dag.name))
    }

    async fn admit(
        &self,
        memory: &mut Memory,
        only: Option<&BTreeSet<RunId>>,
        summary: &mut StepSummary,
    ) -> anyhow::Result<()> {
        let runs = self.store.runs_open().await.context("reading the open runs")?;
        if !runs.iter().any(|run| run.state == RunState::Waiting) {
            return Ok(());
        }
        let mut situation = memory.facts.situation(&*self.store, runs).await?;
        situation.only = only.cloned();
        let decisions = admission::decide(&situation, &self.options.limits, &mut memory.turns);
        let mut admitted = Vec::new();
        let mut waiting: Vec<(&Run, String)> = Vec::new();
        let runs: BTreeMap<RunId, &Run> = situation.runs.iter().map(|run| (run.id, run)).collect();
        for (id, decision) in decisions {
            match decision {
                Decision::Admit => admitted.push(id),
                Decision::Wait(reason) => {
                    summary.waiting += 1;
                    waiting.extend(runs.get(&id).map(|run| (*run, reason)));
                }
            }
        }
        for ids in admitted.chunks(BATCH_MAX) {
            self.store.runs_admit(ids).await.context("letting in runs")?;
            summary.admitted += ids.len();
        }
        self.explain(&waiting).await
    }

    /// Writes what the foremost waiting runs wait for, where it is not what they last said.
    async fn explain(&self, waiting: &[(&Run, String)]) -> anyhow::Result<()> {
        let mut places: BTreeMap<&DagName, usize> = BTreeMap::new();
        let mut written = 0;
        for (run, reason) in waiting {
            let place = places.entry(&run.dag).or_default();
            *place += 1;
            if *place <= REASONS_PER_DAG && written < REASONS_PER_PASS && run.reason.as_deref() != Some(reason) {
                written += 1;
                self.store.run_wait_reason(run.id, reason).await.context("noting what a run waits for")?;
            }
        }
        Ok(())
    }

    /// What `dag` has planned, computed and published.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn history(&self, dag: &Dag) -> anyhow::Result<DagHistory> {
        let read = self.store.dag_history(&dag.name, &dag.views).await;
        read.with_context(|| format!("reading the history of `{}`", dag.name))
    }

    /// What a backfill of the intervals whose start lies in `[from, to)` would do. Changes nothing.
    ///
    /// # Errors
    /// When there is no such DAG, or the store cannot be read.
    pub async fn backfill_preview(
        &self,
        dag: &DagName,
        from: Instant,
        to: Instant,
        reprocess: Reprocess,
    ) -> anyhow::Result<BackfillPlan> {
        let (dag, _) = self.dag(dag).await?;
        let mut history = self.history(&dag).await?;
        let grid = Grid::new(&dag.schedule).with_context(|| format!("reading the schedule of `{}`", dag.name))?;
        let planned_until = history.ticks.last().copied();
        history.ticks.extend(grid.ticks(planned_until, self.clock.now()));
        Ok(plan_backfill(&dag, &history, from, to, reprocess))
    }

    /// Plans that backfill and creates its runs. Extends the stored grid up to now first, as the schedule would.
    ///
    /// # Errors
    /// When there is no such DAG, or the store cannot be read or written.
    pub async fn backfill(
        &self,
        dag: &DagName,
        from: Instant,
        to: Instant,
        reprocess: Reprocess,
    ) -> anyhow::Result<(BackfillId, BackfillPlan)> {
        let now = self.clock.now();
        self.extend_grid(dag, now).await?;
        let (dag, definitions) = self.dag(dag).await?;
        let plan = plan_backfill(&dag, &self.history(&dag).await?, from, to, reprocess);
        let id = BackfillId::generate();
        let runs = plan.runs(&dag, definitions, id);
        self.store.runs_create(runs, now).await.with_context(|| format!("creating the runs of backfill {id}"))?;
        self.wake.notify_one();
        Ok((id, plan))
    }

    /// The DAG without views that are held.
    async fn dag(&self, name: &DagName) -> anyhow::Result<(Dag, i64)> {
        let (revision, project) = self.store.project(None).await.context("reading the definitions")?;
        let dag = project.dags.get(name).ok_or_else(|| anyhow!("there is no DAG `{name}`"))?;
        let holds = self.store.holds().await.context("reading what is held")?;
        Ok((holds.apart(&project, dag).0, revision))
    }

    /// Stores the ticks of `dag` up to `now`, and the runs that its schedule wants for them, as a pass would.
    ///
    /// # Errors
    /// When there is no such DAG, or the store cannot be read or written.
    pub async fn extend_grid(&self, dag: &DagName, now: Instant) -> anyhow::Result<()> {
        let mut memory = self.memory.lock().await;
        loop {
            let states = self.store.dags().await.context("reading the DAGs")?;
            let state = states.into_iter().find(|state| state.dag == *dag);
            let state = state.ok_or_else(|| anyhow!("there is no DAG `{dag}`"))?;
            let holds = self.store.holds().await?;
            let step = self.decide_one(&mut memory.facts, &holds, &state, now).await?;
            let more = step.due_at.is_some_and(|due| due <= now);
            match self.store.plan(step, now).await {
                Ok(()) if !more => return Ok(()),
                Ok(()) => {}
                Err(StoreError::Conflict(_)) => warn!(dag.name = %dag, "another scheduler plans the DAG too"),
                Err(failure) => return Err(failure).with_context(|| format!("planning `{dag}`")),
            }
        }
    }
}

/// The pause after so many failed passes in a row.
fn backoff(poll: Duration, failures: u32) -> Duration {
    poll.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX)
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
