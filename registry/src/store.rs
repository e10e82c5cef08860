//! What the registry must be able to do, whatever database holds it.
//!
//! Semantics common to all methods:
//! * Each method is one transaction: all of it happens or none.
//! * `now` is project time and is only recorded or compared with ticks. Leases, retry delays and liveness use the
//!   database's own clock.
//! * A method that takes a [`LeaseToken`] changes nothing and returns [`StoreError::LostLease`] unless the token still
//!   holds its task: a worker that slept through its lease can do no harm here.
//! * Creating what exists, finishing what is finished and recording what is recorded are harmless.

mod publishing;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::Serialize;

use crate::audit::{AuditEvent, AuditFilter, AuditVerdict, NewAuditEvent};
use crate::care::Care;
use crate::dataset::Datasets;
use crate::drill::Drilling;
use crate::figures::Measuring;
use crate::firing::Triggering;
use crate::ids::{DagName, LeaseToken, RegistryId, RunId, SnapshotId, ViewId};
use crate::model::{Alike, Project};
use crate::notice::Outbox;
use crate::plan::DefinitionKind;
use crate::restore::Restoring;
use crate::restore::policy::Approving;
use crate::run::{Claim, Intent, NewRun, Pins, Run, RunState, Task, TaskOutput};
use crate::switches::Switching;
use crate::time::{Instant, Interval};

pub use self::publishing::{
    CheckFilter, CheckRow, IntentRequest, LedgerEntry, Record, Recorded, Snapshot, SnapshotView, ViewIntentRequest,
    ViewRecord, ViewState,
};
pub use self::workers::{ClaimRequest, PoolState, QueueState, WaitingTask, WaitsFor, WorkerBeat, WorkerRow};

/// Why a store did not do what was asked: one variant per reaction.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such thing.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// The kind of thing.
        what: &'static str,
        /// Its name or id as asked for.
        name: String,
    },
    /// Somebody else changed what the caller's decision rests on: read again and decide again.
    #[error("{0}")]
    Conflict(String),
    /// The lease is gone: stop, somebody else goes on.
    #[error("the lease on this task was lost; another worker goes on with it")]
    LostLease,
    /// A publish number of ours was overtaken: the run can never publish.
    #[error("a later publication of {view} overtook this run")]
    Superseded {
        /// The view.
        view: ViewId,
    },
    /// The state of the thing forbids it, with what to do instead.
    #[error("{0}")]
    Refused(String),
    /// The database cannot be reached or is busy: try again later.
    #[error("the registry database is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The registry holds something that this program does not understand or did something unexpected.
    #[error("the registry failed while {doing}")]
    Internal {
        /// What was being done.
        doing: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The result of a store method.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What a registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryInfo {
    /// Written into the lake and the online store.
    pub id: RegistryId,
    /// The project that it serves; `None` until the first apply.
    pub project: Option<String>,
    /// The definitions' revision: grows by one with every apply; 0 before the first.
    pub revision: i64,
}

/// One definition to write.
#[derive(Debug, Clone, PartialEq)]
pub struct DefinitionRow {
    /// What it is.
    pub kind: DefinitionKind,
    /// Its name; for views `name@vN`.
    pub name: String,
    /// Identifies its content: views, the logic fingerprint; others, a hash of the body.
    pub fingerprint: String,
    /// The definition as JSON.
    pub body: serde_json::Value,
}

/// What an apply writes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ApplyChanges {
    /// Added or changed.
    pub upserts: Vec<DefinitionRow>,
    /// Removed: kept as versions, no longer current.
    pub removals: Vec<(DefinitionKind, String)>,
}

/// One apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApplyRecord {
    /// The revision it made.
    pub revision: i64,
    /// When, in project time.
    pub applied_at: Instant,
    /// Who.
    pub actor: String,
    /// Why, as they said.
    pub message: Option<String>,
}

/// One kept version of a definition.
#[derive(Debug, Clone, PartialEq)]
pub struct DefinitionVersion {
    /// The definition.
    pub row: DefinitionRow,
    /// The first revision with it.
    pub since: i64,
    /// The first revision without it; `None` while it is current.
    pub until: Option<i64>,
}

/// A DAG as the scheduler sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct DagState {
    /// The DAG.
    pub dag: DagName,
    /// Whether a person has paused it: ticks are stored, runs are not created.
    pub paused: bool,
    /// The last stored tick; `None` before the first.
    pub planned_until: Option<Instant>,
    /// When the scheduler should look at it next; `None` when there is nothing to come.
    pub due_at: Option<Instant>,
    /// Identifies the schedule under which `planned_until` was reached.
    pub schedule_fingerprint: Option<String>,
    /// The project time of the DAG's first apply: `catchup: none` starts here.
    pub created_at: Instant,
    /// The revision of the definitions in force.
    pub definitions: i64,
}

/// What has come of a DAG so far.
#[derive(Debug, Clone, Default)]
pub struct DagHistory {
    /// Every stored tick, ascending.
    pub ticks: Vec<Instant>,
    /// Published intervals of the DAG's views.
    pub published: BTreeMap<ViewId, BTreeSet<Interval>>,
    /// Every run of the DAG.
    pub runs: Vec<Run>,
}

impl DagHistory {
    /// Whether `interval` of `view` is in the ledger.
    pub fn is_published(&self, view: &ViewId, interval: &Interval) -> bool {
        self.published.get(view).is_some_and(|published| published.contains(interval))
    }

    /// The latest run of each interval and view.
    pub fn latest(&self) -> HashMap<(Interval, &ViewId), &Run> {
        let mut latest: HashMap<(Interval, &ViewId), &Run> = HashMap::new();
        for run in self.runs.iter().filter(|run| !run.is_restore()) {
            for view in &run.views {
                let kept = latest.entry((run.interval, view)).or_insert(run);
                if kept.revision < run.revision {
                    *kept = run;
                }
            }
        }
        latest
    }
}

/// What planning one DAG adds. Written only while `planned_until` is still what the decision rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanStep {
    /// The DAG.
    pub dag: DagName,
    /// The last stored tick when this was decided.
    pub planned_until: Option<Instant>,
    /// The revision of the definitions that this was decided by: [`DagState::definitions`] as read.
    pub definitions: i64,
    /// New ticks, ascending, all after `planned_until`.
    pub ticks: Vec<Instant>,
    /// Runs to create.
    pub runs: Vec<NewRun>,
    /// When to look again.
    pub due_at: Option<Instant>,
    /// The schedule that this follows.
    pub schedule_fingerprint: String,
}

/// Which runs to list. Everything is optional; the newest come first.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Of this DAG.
    pub dag: Option<DagName>,
    /// In one of these states; empty for all.
    pub states: Vec<RunState>,
    /// Of intervals whose start lies in [from, to).
    pub from: Option<Instant>,
    /// See `from`.
    pub to: Option<Instant>,
    /// With this cause, as printed.
    pub cause: Option<String>,
    /// At most so many; 0 for all.
    pub limit: u32,
}

/// How a task's attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskEnd {
    /// Done.
    Succeeded {
        /// For the tasks after it.
        output: TaskOutput,
        /// Rows staged or published.
        rows: Option<u64>,
    },
    /// Checks stopped it: the run ends `blocked` (its other tasks are skipped).
    Blocked {
        /// With the verdicts: what was staged, or from `publish` what was judged.
        output: Option<TaskOutput>,
        /// Which check, in a sentence.
        reason: String,
    },
    /// It failed; tried again after `retry_in` unless its attempts are used up (`None`: never, whatever is left).
    Failed {
        /// The chain of causes.
        error: String,
        /// Real time until the next attempt.
        retry_in: Option<Duration>,
    },
    /// Handed back without burning the attempt (the worker is stopping, or must wait for another run's publication).
    Released {
        /// Real time until somebody should try again.
        retry_in: Duration,
        /// Shown while it waits.
        reason: Option<String>,
    },
    /// A pinned file changed: the run starts again from step 1; after one restart the run fails with this text.
    PinsChanged {
        /// What changed.
        reason: String,
    },
    /// A later publication overtook the run: it ends `superseded`.
    Superseded {
        /// By what.
        reason: String,
    },
    /// A hold is on a view of the run: it ends `held`.
    Held {
        /// Whose, and why.
        reason: String,
    },
}

/// One line that a task wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// When, in project time.
    pub at: Instant,
    /// Which task.
    pub task: String,
    /// Which attempt.
    pub attempt: u32,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// The sentence.
    pub message: String,
}

/// The registry.
#[async_trait]
pub trait Store:
    Approving + Care + Datasets + Drilling + Measuring + Outbox + Restoring + Switching + Triggering + Send + Sync + Debug
{
    // --- definitions -------------------------------------------------------------------------------------------------

    /// What this registry is.
    async fn info(&self) -> Result<RegistryInfo>;

    /// Writes a new revision of the definitions: those of `changes`, on top of revision `base`.
    ///
    /// Every added DAG gets its [`DagState`], due at once; every DAG whose definition, views or sources changed is due at
    /// once. Every added view gets a [`ViewState`] with the Delta version given in `tables`. Records who and why.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the registry is no longer at `base`; [`StoreError::Refused`] when it serves another
    /// project.
    async fn apply(&self, request: ApplyRequest) -> Result<i64>;

    /// The applies, newest first.
    async fn applies(&self) -> Result<Vec<ApplyRecord>>;

    /// The project as of `revision` (`None`: the newest). An empty project when nothing was applied.
    async fn project(&self, revision: Option<i64>) -> Result<(i64, Project)>;

    /// Every kept version of one definition, newest first.
    async fn definition_versions(&self, kind: DefinitionKind, name: &str) -> Result<Vec<DefinitionVersion>>;

    // --- planning ----------------------------------------------------------------------------------------------------

    /// DAGs that are due at `now`, the longest waiting first, at most `limit`. Reads only what is due (an index).
    async fn dags_due(&self, now: Instant, limit: u32) -> Result<Vec<DagState>>;

    /// All DAGs, by name.
    async fn dags(&self) -> Result<Vec<DagState>>;

    /// The earliest `due_at` of all DAGs.
    async fn next_due(&self) -> Result<Option<Instant>>;

    /// Stores ticks and creates runs.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the DAG's `planned_until` is no longer what `step` says, or the DAG was changed by an
    /// apply since `step.definitions` (which made it due at once: an old plan must not put that off).
    async fn plan(&self, step: PlanStep, now: Instant) -> Result<()>;

    /// [`Self::plan`] for several DAGs in one transaction: a step that is refused leaves no trace and stops no other.
    /// One verdict per step, in order.
    ///
    /// # Errors
    /// When the registry cannot be written: then nothing of any step is stored.
    async fn plan_all(&self, steps: &[PlanStep], now: Instant) -> Result<Vec<Result<()>>>;

    /// The stored ticks of `dag` in `[from, to]`, ascending.
    async fn ticks(&self, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Instant>>;

    /// What has come of a DAG and of `views`, which are its own, all as of one moment: read one after the other, a run
    /// that is recorded meanwhile looks as if it had left out some of its views.
    async fn dag_history(&self, dag: &DagName, views: &[ViewId]) -> Result<DagHistory>;

    /// Pauses or unpauses a DAG; a DAG that is unpaused is due at once. Writes an audit event when that changes anything.
    async fn dag_pause(&self, dag: &DagName, paused: bool, actor: &str, now: Instant) -> Result<()>;

    // --- runs --------------------------------------------------------------------------------------------------------

    /// Creates runs with their tasks, `waiting`; a run whose (DAG, interval, views, cause) exists is left as it is.
    /// Returns the ids in the order given. The next revision of its (DAG, interval) is taken inside.
    async fn runs_create(&self, runs: Vec<NewRun>, now: Instant) -> Result<Vec<RunId>>;

    /// Runs, newest interval first, then newest revision.
    async fn runs(&self, filter: &RunFilter) -> Result<Vec<Run>>;

    /// One run with its tasks in order.
    async fn run(&self, id: RunId) -> Result<(Run, Vec<Task>)>;

    /// The runs whose id begins with `prefix` (at most 10).
    async fn runs_by_prefix(&self, prefix: &str) -> Result<Vec<RunId>>;

    /// Open runs, oldest interval first, then by DAG: what admission decides over.
    async fn runs_open(&self) -> Result<Vec<Run>>;

    /// Lets a waiting run's tasks be claimed; nothing when it is not waiting.
    async fn run_admit(&self, id: RunId) -> Result<()>;

    /// [`Self::run_admit`] for several runs in one transaction.
    async fn runs_admit(&self, ids: &[RunId]) -> Result<()>;

    /// Notes what a waiting run waits for; nothing when it is not waiting.
    async fn run_wait_reason(&self, id: RunId, reason: &str) -> Result<()>;

    /// Ends a run before its intent.
    ///
    /// # Errors
    /// [`StoreError::Refused`] after the intent ("restoring is the way") and when it has ended.
    async fn run_cancel(&self, id: RunId, actor: &str, now: Instant) -> Result<()>;

    /// Makes a blocked, failed or cancelled run anew: a run of the same DAG, interval, views and cause (so that a backfill
    /// still counts it), with the newest definitions and the next revision. Returns its id, which is also what
    /// [`Store::runs_create`] finds from then on. Writes an audit event.
    ///
    /// # Errors
    /// [`StoreError::Refused`] while a run of that interval is open, and when the run succeeded.
    async fn run_retry(&self, id: RunId, attempts_max: u32, actor: &str, now: Instant) -> Result<RunId>;

    /// Lets a blocked run through: makes it anew as [`Store::run_retry`] does, with the decision that the checks which
    /// stopped it (and those that an earlier decision named) may fail, over the sources that it had read. Writes an audit
    /// event. Returns the new run's id.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the run is not blocked, a check that holds for every view stopped it, its interval was
    /// published since, a run of that interval is open, or its views are defined otherwise by now.
    async fn run_override(&self, id: RunId, decision: Decision) -> Result<RunId>;

    /// Makes a run of the same interval and views that lets the rows through which `id` has set aside of `view`, with the
    /// newest definitions. Writes an audit event. Returns its id; repeating it returns the same one and changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when `id` has set nothing of `view` aside or is not what is published of its interval, and
    /// while a run of that interval is open.
    async fn run_readmit(&self, id: RunId, view: &ViewId, decision: Decision) -> Result<RunId>;

    /// The state of the latest run of each interval of `dag` whose start lies in `[from, to)`, by interval.
    async fn latest_runs(&self, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Run>>;

    /// Lines that tasks wrote, oldest first.
    async fn run_logs(&self, id: RunId) -> Result<Vec<LogLine>>;

    // --- tasks -------------------------------------------------------------------------------------------------------

    /// Claims the next tasks whose run is admitted (`queued`, `running` or `publishing`), whose predecessors are done and
    /// whose retry delay has passed; or whose lease has expired (with the attempt number kept if it was released, one
    /// higher otherwise). Fewer than asked for, or none, when there are no more for this worker.
    ///
    /// *Order.* Runs already begun come first. Then those admitted first, where each point of a run's priority counts as
    /// a minute: the order is fixed at admission and a run that waits is overtaken only by runs admitted less than their
    /// lead later, so nothing starves. Then older intervals.
    ///
    /// *For whom.* A task is in the queue that its view asks for (`pin` and `publish` are in the default queue) and goes to
    /// workers that serve it. A worker that is drained gets nothing.
    ///
    /// *Pools.* A task whose view is in a pool holds one of its slots by its lease: it is never claimed while as many hold
    /// one as the pool has. A pool that is no longer defined has no limit.
    ///
    /// A task whose lease expired with its last attempt used up fails here, with its run.
    async fn task_claim(&self, request: &ClaimRequest, now: Instant) -> Result<Vec<Claim>>;

    /// Extends the lease.
    async fn task_heartbeat(&self, token: LeaseToken, lease: Duration) -> Result<()>;

    /// Ends the attempt and moves the run along. After the intent a run can only succeed or be superseded: whatever fails
    /// is tried again for ever, and ends that contradict it are [`StoreError::Refused`]. `publish` succeeds by
    /// [`Store::record`] alone.
    async fn task_end(&self, token: LeaseToken, end: TaskEnd, now: Instant) -> Result<()>;

    /// Writes lines of the claimed task.
    async fn task_log(&self, token: LeaseToken, lines: &[(String, String)], now: Instant) -> Result<()>;

    /// Lets go of every lease of `owner` at once: after a crash, by the next process on the same machine that knows the
    /// owner to be dead. That costs no attempt; but a task during which process after process dies fails in the end.
    /// Returns how many.
    async fn leases_release(&self, owner: &str) -> Result<u64>;

    /// Owners that hold leases now.
    async fn lease_owners(&self) -> Result<Vec<String>>;

    // --- publishing --------------------------------------------------------------------------------------------------

    /// What is known of each of `views`; absent views are left out.
    async fn view_states(&self, views: &[ViewId]) -> Result<IndexMap<ViewId, ViewState>>;

    /// Published intervals of `view` with end ≤ `until` (`None`: all), newest first, at most `limit` (0: all).
    async fn ledger(&self, view: &ViewId, until: Option<Instant>, limit: u32) -> Result<Vec<LedgerEntry>>;

    /// Takes the intent of the run that `token` publishes: locks all its views or none, gives each its next publish
    /// number, decides whether it goes online, moves the run to `publishing`. Repeating it returns the stored intent.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when another run holds a view or history moved on since it was judged.
    async fn intent_take(&self, token: LeaseToken, request: IntentRequest, now: Instant) -> Result<Intent>;

    /// The intent of a run, if taken.
    async fn intent(&self, run: RunId) -> Result<Option<Intent>>;

    /// Records the run that `token` publishes as done: snapshot, ledger, profile, manifest, verdicts, audit event; lets
    /// the views go; ends the task and the run as succeeded. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Superseded`] when a view has recorded a higher publish number.
    async fn record(&self, token: LeaseToken, record: Record, now: Instant) -> Result<()>;

    /// Snapshots, newest first: of a DAG, of a view, or all; at most `limit` (0: all).
    async fn snapshots(&self, dag: Option<&DagName>, view: Option<&ViewId>, limit: u32) -> Result<Vec<Snapshot>>;

    /// What was recorded of the intervals of `view` that end at or before `before`, newest first, of each what is in the
    /// ledger now; of those alone that begin as `before` does, when it is said how ([`Alike`]).
    async fn recorded(&self, view: &ViewId, before: Instant, alike: Option<Alike>, limit: u32)
    -> Result<Vec<Recorded>>;

    /// What `snapshot` recorded of `view`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such snapshot, or the view is not in it.
    async fn recorded_in(&self, snapshot: SnapshotId, view: &ViewId) -> Result<Recorded>;

    /// What the run read that recorded the newest interval of `view` that ends at or before `before`, of the interval what is
    /// in the ledger now; without `before` the run that recorded the view last, whatever its interval.
    async fn manifest(&self, view: &ViewId, before: Option<Instant>) -> Result<Option<Pins>>;

    /// One snapshot.
    async fn snapshot(&self, id: SnapshotId) -> Result<Snapshot>;

    /// Verdicts, newest run first.
    async fn checks(&self, filter: &CheckFilter) -> Result<Vec<CheckRow>>;

    // --- processes ---------------------------------------------------------------------------------------------------

    /// Says that a worker lives, and how it is. Returns whether it is drained: then it finishes what it has, and claims no
    /// more.
    async fn worker_heartbeat(&self, beat: &WorkerBeat) -> Result<bool>;

    /// Says that a worker has stopped.
    async fn worker_goodbye(&self, owner: &str) -> Result<()>;

    /// Workers heard of within `within`, by the database's clock; by owner.
    async fn workers(&self, within: Duration) -> Result<Vec<WorkerRow>>;

    /// The owners of [`Store::workers`].
    async fn workers_alive(&self, within: Duration) -> Result<Vec<String>> {
        Ok(self.workers(within).await?.into_iter().map(|worker| worker.beat.owner).collect())
    }

    /// Drains a worker (it gets no more tasks), or lets it work again. Writes an audit event.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no such worker was ever heard of, or it has said goodbye.
    async fn worker_drain(&self, owner: &str, drained: bool, actor: &str, now: Instant) -> Result<()>;

    /// The first `limit` tasks that could be claimed, in the order in which they will be, and what each waits for.
    /// Workers that were not heard of `within` count for nothing.
    async fn tasks_waiting(&self, limit: u32, within: Duration) -> Result<Vec<WaitingTask>>;

    /// How much there is to do, by queue; queues in which nothing waits or runs are left out.
    async fn queues(&self) -> Result<Vec<QueueState>>;

    /// The defined pools, by name.
    async fn pools(&self) -> Result<Vec<PoolState>>;

    /// Calls `listener` after something has changed, in this process or (as far as the database can tell) in another. A
    /// call means "look": some come late, doubled or for nothing, and after an outage some are missing, so whoever listens
    /// also looks from time to time. It is called from any thread and must not block.
    fn listen(&self, listener: Listener);

    // --- the audit trail ---------------------------------------------------------------------------------------------

    /// Adds an event to the audit trail by itself: for what is done outside of the registry. Methods that change something
    /// because a person said so write theirs in the same transaction.
    async fn audit(&self, event: NewAuditEvent) -> Result<()>;

    /// Events of the audit trail.
    async fn audit_events(&self, filter: &AuditFilter) -> Result<Vec<AuditEvent>>;

    /// Computes the whole chain anew and says where it first differs from what is stored. `noted` is a head that somebody
    /// noted elsewhere: it must be the hash of one of the events, or [`crate::audit::GENESIS`].
    async fn audit_verify(&self, noted: Option<String>) -> Result<AuditVerdict>;

    // --- time --------------------------------------------------------------------------------------------------------

    /// The real instant and project time at which this project's simulated clock started; stored by whoever asks first.
    async fn clock_anchor(&self, real_now: Instant, project_start: Instant) -> Result<(Instant, Instant)>;

    // --- the end -----------------------------------------------------------------------------------------------------

    /// Waits for what is under way and lets go of files and connections. Later calls fail as unavailable.
    async fn close(&self);
}

/// See [`Store::apply`].
#[derive(Debug, Clone)]
pub struct ApplyRequest {
    /// The project.
    pub project: String,
    /// The revision that the plan was made on.
    pub base: i64,
    /// What changes.
    pub changes: ApplyChanges,
    /// Delta version of the (empty) table of every added view.
    pub tables: IndexMap<ViewId, u64>,
    /// Who.
    pub actor: String,
    /// Why.
    pub message: Option<String>,
    /// When, in project time.
    pub now: Instant,
}

/// Who decides over a run, and why.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in project time.
    pub now: Instant,
    /// Attempts that each task of the new run has.
    pub attempts_max: u32,
}

/// What may have changed; see [`Store::listen`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There may be tasks to claim.
    Tasks,
    /// There may be DAGs to plan or runs to let in.
    Runs,
    /// There may be notices to send.
    Notices,
}

/// Whom to call; see [`Store::listen`].
pub type Listener = Arc<dyn Fn(Change) + Send + Sync>;
