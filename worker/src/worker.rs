//! The worker's loop: claim, execute with a heartbeat beside it, tell the registry how it ended.
//!
//! A worker holds nothing that the registry does not know: it may die at any instruction, and another goes on when the lease
//! runs out. Stopping is a sequence: claim no more, finish what is short, hand the rest back.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use tidegate_registry::ids::{QueueName, RunId};
use tidegate_registry::model::Project;
use tidegate_registry::pulse::Pulse;
use tidegate_registry::run::{Claim, RunState, TaskKind, TaskOutput};
use tidegate_registry::store::{ClaimRequest, RunFilter, Store, StoreError, TaskEnd, WorkerBeat};
use tidegate_registry::time::Clock;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::execute::{Parts, chain, is_lost_lease, note};
use crate::executor::{Executor, Outcome};
use crate::lake::Lake;
use crate::online::OnlineStore;
use crate::serving::{Serving, reconcile};
use crate::sources::Sources;
use crate::timing::{interval, sleep, timeout};

/// How long a stopping worker lets its tasks finish before it hands them back.
const GRACE: Duration = Duration::from_secs(8);
/// How often an idle worker looks for work when nobody wakes it.
const POLL: Duration = Duration::from_millis(500);
/// How often a worker that is stopping tries to tell how a task ended: some 10 s in all.
const TELL_STOPPING_MAX: u32 = 8;
/// How often what is live online is looked after, unless told.
const RECONCILE_EVERY: Duration = Duration::from_secs(60);
/// Projects that are kept in memory, by revision.
const PROJECTS_KEPT: usize = 4;

/// The ends of runs that had no intent, so that no table can name their files. (A superseded run may have committed some
/// of its views.)
const NEVER_PUBLISHED: [RunState; 4] = [RunState::Blocked, RunState::Failed, RunState::Cancelled, RunState::Held];

/// What a worker is made of.
#[derive(Debug)]
pub struct WorkerParts {
    /// The registry.
    pub store: Arc<dyn Store>,
    /// Project time.
    pub clock: Arc<dyn Clock>,
    /// The lake.
    pub lake: Lake,
    /// The online store; `None` for batch-only projects.
    pub online: Option<Arc<dyn OnlineStore>>,
    /// The sources.
    pub sources: Sources,
    /// Settings.
    pub options: WorkerOptions,
    /// Notified by others when there may be work.
    pub wake: Arc<Notify>,
    /// Notified by the worker when a task has ended: there may be something to admit.
    pub progress: Arc<Notify>,
}

/// What a worker's loop works with, whoever executes its tasks.
#[derive(Debug, Clone)]
pub struct Hands {
    /// The registry.
    pub store: Arc<dyn Store>,
    /// Project time.
    pub clock: Arc<dyn Clock>,
    /// Executes claimed tasks.
    pub executor: Arc<dyn Executor>,
    /// Notified by others when there may be work.
    pub wake: Arc<Notify>,
    /// Notified by the worker when a task has ended: there may be something to admit.
    pub progress: Arc<Notify>,
}

/// Settings of a worker.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Unique per process, as in `host:pid:start`.
    pub owner: String,
    /// How long a claim lasts without a heartbeat; heartbeats come three times as often.
    pub lease: Duration,
    /// How many tasks run at once.
    pub slots: usize,
    /// The queues that it serves; empty for all.
    pub queues: Vec<QueueName>,
    /// The machine, for people.
    pub host: String,
    /// What the process may occupy, in bytes.
    pub memory_bytes: u64,
    /// Where queries spill.
    pub spill_dir: PathBuf,
}

/// Claims tasks and sees them through.
#[derive(Debug)]
pub struct Worker {
    hands: Hands,
    options: WorkerOptions,
    projects: Arc<Projects>,
    pulse: Pulse,
    /// What is looked after beside tasks.
    serving: Vec<Serving>,
    reconcile_every: Option<Duration>,
}

impl Worker {
    /// Sets a worker up; nothing is claimed yet.
    ///
    /// # Errors
    /// When the engine cannot be set up.
    pub fn new(parts: WorkerParts) -> Result<Self> {
        let engine = Arc::new(Engine::new(parts.options.memory_bytes, &parts.options.spill_dir)?);
        let executor = Parts {
            store: Arc::clone(&parts.store),
            clock: Arc::clone(&parts.clock),
            lake: parts.lake,
            online: parts.online,
            sources: parts.sources,
            engine,
            owner: parts.options.owner.clone(),
        };
        let serving = executor.serving().map(|serving| serving.of_each_member()).unwrap_or_default();
        let hands = Hands {
            store: parts.store,
            clock: parts.clock,
            executor: Arc::new(executor),
            wake: parts.wake,
            progress: parts.progress,
        };
        Ok(Self { serving, ..Self::with_hands(hands, parts.options) })
    }

    /// Looks every `period` whether what was published is still live online, instead of every minute; `None` for never.
    #[must_use]
    pub fn reconcile_every(self, period: Option<Duration>) -> Self {
        Self { reconcile_every: period, ..self }
    }

    /// A worker whose tasks are executed by somebody else than the engine.
    pub fn with_hands(hands: Hands, options: WorkerOptions) -> Self {
        Self {
            hands,
            options,
            projects: Arc::default(),
            pulse: Pulse::default(),
            serving: Vec::new(),
            reconcile_every: Some(RECONCILE_EVERY),
        }
    }

    /// Beats with every turn of the loop.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Executes whatever there is until `cancel`, then finishes or hands back.
    ///
    /// # Errors
    /// Never for trouble with a task or an outage of the registry: those are logged and tried again.
    pub async fn run(&self, cancel: CancellationToken) -> Result<()> {
        self.sweep().await;
        cancel.run_until_cancelled(self.read_ahead()).await;
        let mut beside = JoinSet::new();
        if let Some(period) = self.reconcile_every.filter(|_| !self.serving.is_empty()) {
            beside.spawn(reconcile(self.serving.clone(), period));
        }
        let executor = Arc::clone(&self.hands.executor);
        beside.spawn(async move {
            loop {
                if let Err(error) = executor.compare_restores().await {
                    tracing::warn!("Restores could not be compared; trying again: {error:#}");
                }
                sleep(RECONCILE_EVERY).await;
            }
        });
        self.work(&[], &cancel).await
    }

    /// Compares what came of restores with what was promised, where whoever recorded them has not. Returns how many.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn compare_restores(&self) -> Result<usize> {
        self.hands.executor.compare_restores().await
    }

    /// Executes the tasks of `runs` until all of them have ended, or until `cancel`.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub async fn run_only(&self, runs: &[RunId], cancel: CancellationToken) -> Result<()> {
        self.work(runs, &cancel).await
    }

    async fn work(&self, only: &[RunId], cancel: &CancellationToken) -> Result<()> {
        let mut tasks: JoinSet<()> = JoinSet::new();
        // Tasks outlive the loop by the grace period, so they have their own stop.
        let stop = CancellationToken::new();
        let mut heard = interval(self.options.lease / 3);
        loop {
            self.pulse.beat();
            // Interest is registered before looking, so that nothing is missed in between.
            let woken = self.hands.wake.notified();
            let mut claimed = false;
            while tasks.len() < self.options.slots && !cancel.is_cancelled() {
                let claims = self.claim(only, self.options.slots - tasks.len()).await;
                if claims.is_empty() {
                    break;
                }
                claimed = true;
                for claim in claims {
                    tasks.spawn(self.task(claim, stop.clone()));
                }
            }
            if cancel.is_cancelled() || (!claimed && tasks.is_empty() && !only.is_empty() && self.all_ended(only).await)
            {
                break;
            }
            tokio::select! {
                // What has to be done goes before reasons to look.
                biased;
                () = cancel.cancelled() => {}
                _ = heard.tick() => self.say_alive(tasks.len()).await,
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    report(ended);
                    // One claim for all that are free by now.
                    while let Some(ended) = tasks.try_join_next() {
                        report(ended);
                    }
                }
                () = woken => {}
                () = sleep(POLL) => {}
            }
        }
        let finish = async {
            while let Some(ended) = tasks.join_next().await {
                report(ended);
            }
        };
        if timeout(GRACE, finish).await.is_err() {
            stop.cancel();
            while let Some(ended) = tasks.join_next().await {
                report(ended);
            }
        }
        if let Err(error) = self.hands.store.worker_goodbye(&self.options.owner).await {
            tracing::debug!("The registry was not told that this worker stopped: {error}");
        }
        Ok(())
    }

    async fn claim(&self, only: &[RunId], limit: usize) -> Vec<Claim> {
        let request = ClaimRequest {
            only: only.to_vec(),
            queues: self.options.queues.clone(),
            limit: limit.try_into().unwrap_or(u32::MAX),
            ..ClaimRequest::new(&self.options.owner, self.options.lease)
        };
        match self.hands.store.task_claim(&request, self.hands.clock.now()).await {
            Ok(claims) => {
                if !claims.is_empty() {
                    fail::fail_point!("claim.after");
                }
                claims
            }
            Err(error) => {
                tracing::warn!("Claiming tasks failed; trying again: {}", chain(&error.into()));
                Vec::new()
            }
        }
    }

    async fn all_ended(&self, runs: &[RunId]) -> bool {
        match self.hands.store.runs_open().await {
            Ok(open) => open.iter().all(|run| !runs.contains(&run.id)),
            Err(_) => false,
        }
    }

    async fn say_alive(&self, running: usize) {
        let count = |number: usize| number.try_into().unwrap_or(u32::MAX);
        let beat = WorkerBeat {
            owner: self.options.owner.clone(),
            queues: self.options.queues.clone(),
            slots: count(self.options.slots),
            running: count(running),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.options.host.clone(),
        };
        if let Err(error) = self.hands.store.worker_heartbeat(&beat).await {
            tracing::warn!("The registry could not be told that this worker lives: {}", chain(&error.into()));
        }
    }

    /// One claimed task with its heartbeat, owning all it needs.
    fn task(&self, claim: Claim, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let hands = self.hands.clone();
        let lease = self.options.lease;
        let projects = Arc::clone(&self.projects);
        async move {
            let project = projects.get(&*hands.store, claim.run.definitions).await;
            attend(&hands, &claim, project, lease, &stop).await;
            // A task that ended may make others claimable, here and elsewhere.
            hands.wake.notify_waiters();
            hands.progress.notify_waiters();
        }
    }

    /// Reads the newest definitions, so that the first tasks need not wait for them.
    async fn read_ahead(&self) {
        let store = &*self.hands.store;
        let read = async { self.projects.get(store, store.info().await?.revision).await };
        if let Err(error) = read.await {
            tracing::debug!("The definitions were not read ahead of the first task: {error:#}");
        }
    }

    /// Deletes staged files of runs that ended without publishing: what a crash or a cancellation left behind.
    async fn sweep(&self) {
        let ended = NEVER_PUBLISHED;
        let filter = RunFilter { states: ended.to_vec(), limit: 1_000, ..RunFilter::default() };
        let runs = match self.hands.store.runs(&filter).await {
            Ok(runs) => runs,
            Err(error) => return tracing::warn!("Looking for leftovers failed: {error}"),
        };
        for run in runs {
            self.hands.executor.discard(run.id, &run.views).await;
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!("A task's attendant died: {error}");
    }
}

/// The newest definitions that runs used: most runs use the same.
#[derive(Debug, Default)]
struct Projects {
    kept: Mutex<VecDeque<(i64, Arc<Project>)>>,
    /// Tasks that begin together need the same, and large definitions take long to read: one reads, the others wait.
    reading: tokio::sync::Mutex<()>,
}

impl Projects {
    async fn get(&self, store: &dyn Store, revision: i64) -> Result<Arc<Project>> {
        if let Some(project) = self.find(revision) {
            return Ok(project);
        }
        let _reading = self.reading.lock().await;
        if let Some(project) = self.find(revision) {
            return Ok(project);
        }
        let (_, project) = store.project(Some(revision)).await.context("reading the run's definitions")?;
        let project = Arc::new(project);
        if let Ok(mut kept) = self.kept.lock() {
            kept.push_front((revision, Arc::clone(&project)));
            kept.truncate(PROJECTS_KEPT);
        }
        Ok(project)
    }

    fn find(&self, revision: i64) -> Option<Arc<Project>> {
        let kept = self.kept.lock().ok()?;
        kept.iter().find(|(known, _)| *known == revision).map(|(_, project)| Arc::clone(project))
    }
}

/// Executes a task beside its heartbeat, and tells the registry how it ended.
async fn attend(
    hands: &Hands,
    claim: &Claim,
    project: Result<Arc<Project>>,
    lease: Duration,
    stop: &CancellationToken,
) {
    let end = match project {
        Err(error) => TaskEnd::Failed { error: chain(&error), retry_in: Some(Duration::from_secs(5)) },
        Ok(project) => {
            let timeout = project.dags.get(&claim.run.dag).and_then(|dag| dag.timeout);
            tokio::select! {
                // Who is done is not late.
                biased;
                outcome = hands.executor.execute(claim, project) => match outcome {
                    Ok(Outcome::Recorded) => return,
                    Ok(Outcome::End(end)) => end,
                    Err(error) => {
                        debug_assert!(is_lost_lease(&error), "execute hands up nothing else");
                        tracing::info!(run.id = %claim.run.id, task = %claim.kind, "The lease was lost; another worker goes on.");
                        return discard_if_ended(hands, claim).await;
                    }
                },
                () = keep_alive(hands, claim, lease) => {
                    tracing::warn!(run.id = %claim.run.id, task = %claim.kind, "The lease was lost while working; stopping.");
                    return discard_if_ended(hands, claim).await;
                }
                timeout = deadline(timeout) => TaskEnd::Failed {
                    error: format!("the task took longer than its timeout of {timeout:?}"),
                    retry_in: Some(Duration::from_secs(1)),
                },
                () = stop.cancelled() => TaskEnd::Released {
                    retry_in: Duration::ZERO,
                    reason: Some("its worker stopped; another goes on".to_owned()),
                },
            }
        }
    };
    tell(hands, claim, end, stop).await;
}

/// Returns the timeout when it has passed.
async fn deadline(timeout: Option<Duration>) -> Duration {
    match timeout {
        Some(timeout) => {
            sleep(timeout).await;
            timeout
        }
        None => std::future::pending().await,
    }
}

/// Extends the lease until it is lost. A registry that cannot be reached is waited for: fences, not clocks, keep a worker
/// that is out of touch from doing harm.
async fn keep_alive(hands: &Hands, claim: &Claim, lease: Duration) {
    if is_deaf() {
        return std::future::pending().await;
    }
    loop {
        sleep(lease / 3).await;
        // One that hangs must not keep the next from being tried while there is still time.
        let heard = timeout(lease / 3, hands.store.task_heartbeat(claim.token, lease)).await;
        match heard.unwrap_or_else(|late| Err(StoreError::Unavailable(late.into()))) {
            Ok(()) => {}
            // Recording ends a lease as well: what comes after it, tidying up, is not to be cut short.
            Err(StoreError::LostLease) if is_recorded(hands, claim).await => std::future::pending().await,
            Err(StoreError::LostLease) => return,
            Err(error) => tracing::warn!(run.id = %claim.run.id, "A heartbeat failed; trying again: {error}"),
        }
    }
}

/// Whether a test wants to see what becomes of a worker that never learns that its lease is lost.
fn is_deaf() -> bool {
    fail::fail_point!("heartbeat.deaf", |_| true);
    false
}

/// Whether the claimed task is the publication of a run that has been recorded, by us or by somebody else.
async fn is_recorded(hands: &Hands, claim: &Claim) -> bool {
    claim.kind.publishes() && hands.store.run(claim.run.id).await.is_ok_and(|(run, _)| run.state == RunState::Succeeded)
}

/// Tells the registry how a task ended. One that is out of reach is waited for, since the work is done and would be done
/// again otherwise; a worker that is asked to stop waits for some seconds only.
async fn tell(hands: &Hands, claim: &Claim, end: TaskEnd, stop: &CancellationToken) {
    let may_end_run = matches!(
        end,
        TaskEnd::Blocked { .. } | TaskEnd::Failed { .. } | TaskEnd::PinsChanged { .. } | TaskEnd::Held { .. }
    );
    if let TaskEnd::Failed { error, .. } = &end {
        note(&*hands.store, &*hands.clock, claim, "error", error.clone()).await;
    }
    fail::fail_point!("end.before");
    for attempt in 0_u32.. {
        match hands.store.task_end(claim.token, end.clone(), hands.clock.now()).await {
            Ok(()) => break,
            Err(StoreError::Unavailable(error)) if attempt < TELL_STOPPING_MAX || !stop.is_cancelled() => {
                tracing::warn!(run.id = %claim.run.id, "The registry could not be told how a task ended; trying again: {error}");
                sleep(Duration::from_millis(100 << attempt.min(6))).await;
            }
            Err(StoreError::LostLease) => {
                tracing::info!(
                    run.id = %claim.run.id,
                    task = %claim.kind,
                    "The lease was lost before the registry was told that {}; another worker goes on.",
                    told(&end)
                );
                return discard_if_ended(hands, claim).await;
            }
            Err(error) => {
                tracing::error!(run.id = %claim.run.id, task = %claim.kind, "The registry refused how a task ended: {}", chain(&error.into()));
                return;
            }
        }
    }
    // Only now: a task whose run ended meanwhile (another view was blocked) fails because its files are gone.
    if let TaskEnd::Failed { error, retry_in } = &end {
        let next = match retry_in.filter(|_| claim.attempt < claim.attempts_max || claim.kind.publishes()) {
            Some(delay) => format!("trying again in {}s", delay.as_secs_f64().round()),
            None => "not trying again".to_owned(),
        };
        tracing::warn!(
            run.id = %claim.run.id,
            task = %claim.kind,
            "A task failed in attempt {} of {}, {next}: {error}",
            claim.attempt,
            claim.attempts_max,
        );
    }
    fail::fail_point!("end.after");
    if may_end_run {
        discard_if_ended(hands, claim).await;
    }
}

/// How a task ended, after "that".
fn told(end: &TaskEnd) -> String {
    match end {
        TaskEnd::Succeeded { .. } => "the task succeeded".to_owned(),
        TaskEnd::Released { reason, .. } => format!("it was handed back ({})", reason.as_deref().unwrap_or("stopping")),
        TaskEnd::Blocked { reason, .. } => format!("checks stopped the run ({reason})"),
        TaskEnd::Superseded { reason } => format!("the run is superseded ({reason})"),
        TaskEnd::Held { reason } => format!("the run is held ({reason})"),
        TaskEnd::PinsChanged { reason } => format!("what it read has changed ({reason})"),
        TaskEnd::Failed { error, .. } => format!("the task failed ({error})"),
    }
}

/// Deletes the staged files of the claim's run that nobody will need, if it has ended. A task that lost its lease asks too:
/// when another view's check has ended the run, or another worker has published it, files may have been written after those
/// of the run were deleted.
async fn discard_if_ended(hands: &Hands, claim: &Claim) {
    let Ok((run, tasks)) = hands.store.run(claim.run.id).await else { return };
    if NEVER_PUBLISHED.contains(&run.state) {
        return hands.executor.discard(run.id, &run.views).await;
    }
    let TaskKind::View(view) = &claim.kind else { return };
    let output = tasks.into_iter().find(|task| task.kind == claim.kind).and_then(|task| task.output);
    if let (RunState::Succeeded, Some(TaskOutput::Staged(staged))) = (run.state, output) {
        hands.executor.discard_other_attempts(run.id, view, &staged).await;
    }
}
