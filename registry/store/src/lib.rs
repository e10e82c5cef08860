//! The registry's [`Store`] on a SQL database.
//!
//! Begin with [`SqlStore`]: [`SqliteStore`] is one file for the processes of one machine, [`PostgresStore`] a schema of a
//! server for those of many. The modules follow the resources of the trait: definitions, planning, runs, tasks,
//! publishing, snapshots, workers, pools, queues; `moves` holds what runs and tasks may become, `wakes` who is told. `sql` is how one text of a query serves
//! both databases, `db` is how each is opened and why what runs side by side stays right, `schema` the steps of the
//! schema. Rows are turned into domain types where they are read and never leave the crate. [`mod@conformance`] is what
//! every implementation of the trait must pass, these two included; [`faults`] breaks one on purpose.
//!
//! May not know: what a definition means beyond the tables it reads, the lake, HTTP.

mod approvals;
mod audit;
mod care;
mod claims;
mod codec;
pub mod conformance;
mod creation;
mod datasets;
mod db;
mod decisions;
mod definitions;
mod drills;
pub mod faults;
mod figures;
mod firings;
mod holds;
mod moves;
mod notices;
mod planning;
mod pools;
#[cfg(test)]
mod postgres_tests;
mod profiles;
mod publishing;
#[cfg(test)]
mod query_plans;
mod queues;
mod restoring;
mod runs;
mod schema;
mod snapshots;
mod sql;
mod switches;
mod tasks;
mod wakes;
mod workers;

use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use tidegate_registry::audit::{AuditEvent, AuditFilter, AuditVerdict, NewAuditEvent};
use tidegate_registry::ids::{DagName, LeaseToken, RunId, SnapshotId, ViewId};
use tidegate_registry::model::{Alike, Project};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::run::{Claim, Intent, NewRun, Pins, Run, Task};
use tidegate_registry::store::{
    ApplyRecord, ApplyRequest, CheckFilter, CheckRow, ClaimRequest, DagHistory, DagState, Decision, DefinitionVersion,
    IntentRequest, LedgerEntry, Listener, LogLine, PlanStep, PoolState, QueueState, Record, Recorded, RegistryInfo,
    Result, RunFilter, Snapshot, Store, TaskEnd, ViewState, WaitingTask, WorkerBeat, WorkerRow,
};
use tidegate_registry::time::Instant;

use crate::db::postgres::{BULK_MAX, CALL_MAX};

/// A heartbeat waits for at least so long, however short its lease.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);

/// A registry in a SQL database of the kind `D`, which only says how it is opened.
#[derive(Debug, Clone)]
pub struct SqlStore<D> {
    db: db::Db,
    kind: PhantomData<D>,
}

/// SQLite, for [`SqlStore`].
#[derive(Debug, Clone, Copy)]
pub struct Sqlite;

/// PostgreSQL, for [`SqlStore`].
#[derive(Debug, Clone, Copy)]
pub struct Postgres;

/// A registry in one SQLite file. Several processes on one machine may share it.
pub type SqliteStore = SqlStore<Sqlite>;

/// A registry in a schema of a PostgreSQL database. Many processes on many machines may share it.
pub type PostgresStore = SqlStore<Postgres>;

impl SqliteStore {
    /// Opens the registry at `path`, creating its folders, the file and the schema where they are missing, and bringing
    /// an older schema up to date.
    ///
    /// # Errors
    /// [`tidegate_registry::store::StoreError::Refused`] when a newer program has changed the schema beyond what this one
    /// can work with; [`tidegate_registry::store::StoreError::Unavailable`] when the file cannot be opened or stays
    /// locked.
    pub async fn open(path: &Path) -> Result<Self> {
        Ok(Self { db: db::Db::sqlite(path).await?, kind: PhantomData })
    }
}

impl PostgresStore {
    /// Opens the registry at `url`, creating its schema where it is missing and bringing an older one up to date. The
    /// database itself must exist.
    ///
    /// `url` is `postgres://user:password@host:port/database` with the parameters of libpq (`sslmode=verify-full`,
    /// `sslrootcert=FILE`, …) and two more: `schema=name` (default `public`) lets several registries share a database,
    /// `connections=n` (default 6) bounds how many connections this process opens.
    ///
    /// # Errors
    /// [`tidegate_registry::store::StoreError::Refused`] when the URL is wrong, or a newer program has changed the schema
    /// beyond what this one can work with; [`tidegate_registry::store::StoreError::Unavailable`] when the server does not
    /// answer. None of them tells the password.
    pub async fn open(url: &str) -> Result<Self> {
        Ok(Self { db: db::Db::postgres(url).await?, kind: PhantomData })
    }
}

impl<D> SqlStore<D> {
    /// Waits for what is under way and lets go of the database. Later calls fail as unavailable.
    pub async fn close(&self) {
        self.db.close().await;
    }
}

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Store for SqlStore<D> {
    async fn info(&self) -> Result<RegistryInfo> {
        self.db.run(CALL_MAX, || definitions::info(&self.db)).await
    }

    async fn apply(&self, request: ApplyRequest) -> Result<i64> {
        self.db.run(BULK_MAX, || definitions::apply(&self.db, &request)).await
    }

    async fn applies(&self) -> Result<Vec<ApplyRecord>> {
        self.db.run(CALL_MAX, || definitions::applies(&self.db)).await
    }

    async fn project(&self, revision: Option<i64>) -> Result<(i64, Project)> {
        self.db.run(BULK_MAX, || definitions::project(&self.db, revision)).await
    }

    async fn definition_versions(&self, kind: DefinitionKind, name: &str) -> Result<Vec<DefinitionVersion>> {
        self.db.run(CALL_MAX, || definitions::definition_versions(&self.db, kind, name)).await
    }

    async fn dags_due(&self, now: Instant, limit: u32) -> Result<Vec<DagState>> {
        self.db.run(CALL_MAX, || planning::dags_due(&self.db, now, limit)).await
    }

    async fn dags(&self) -> Result<Vec<DagState>> {
        self.db.run(CALL_MAX, || planning::dags(&self.db)).await
    }

    async fn next_due(&self) -> Result<Option<Instant>> {
        self.db.run(CALL_MAX, || planning::next_due(&self.db)).await
    }

    async fn plan(&self, step: PlanStep, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || planning::plan(&self.db, &step, now)).await
    }

    async fn plan_all(&self, steps: &[PlanStep], now: Instant) -> Result<Vec<Result<()>>> {
        self.db.run(BULK_MAX, || planning::plan_all(&self.db, steps, now)).await
    }

    async fn ticks(&self, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Instant>> {
        self.db.run(CALL_MAX, || planning::ticks(&self.db, dag, from, to)).await
    }

    async fn dag_history(&self, dag: &DagName, views: &[ViewId]) -> Result<DagHistory> {
        self.db.run(BULK_MAX, || planning::history(&self.db, dag, views)).await
    }

    async fn dag_pause(&self, dag: &DagName, paused: bool, actor: &str, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || planning::dag_pause(&self.db, dag, paused, actor, now)).await
    }

    async fn runs_create(&self, runs: Vec<NewRun>, now: Instant) -> Result<Vec<RunId>> {
        self.db.run(BULK_MAX, || runs::create(&self.db, &runs, now)).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<Run>> {
        self.db.run(CALL_MAX, || runs::list(&self.db, filter)).await
    }

    async fn run(&self, id: RunId) -> Result<(Run, Vec<Task>)> {
        self.db.run(CALL_MAX, || runs::get(&self.db, id)).await
    }

    async fn runs_by_prefix(&self, prefix: &str) -> Result<Vec<RunId>> {
        self.db.run(CALL_MAX, || runs::by_prefix(&self.db, prefix)).await
    }

    async fn runs_open(&self) -> Result<Vec<Run>> {
        self.db.run(BULK_MAX, || runs::open(&self.db)).await
    }

    async fn run_admit(&self, id: RunId) -> Result<()> {
        self.db.run(CALL_MAX, || runs::admit(&self.db, id)).await
    }

    async fn runs_admit(&self, ids: &[RunId]) -> Result<()> {
        self.db.run(BULK_MAX, || runs::admit_all(&self.db, ids)).await
    }

    async fn run_wait_reason(&self, id: RunId, reason: &str) -> Result<()> {
        self.db.run(CALL_MAX, || runs::wait_reason(&self.db, id, reason)).await
    }

    async fn run_cancel(&self, id: RunId, actor: &str, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || runs::cancel(&self.db, id, actor, now)).await
    }

    async fn run_retry(&self, id: RunId, attempts_max: u32, actor: &str, now: Instant) -> Result<RunId> {
        self.db.run(CALL_MAX, || runs::retry(&self.db, id, attempts_max, actor, now)).await
    }

    async fn run_override(&self, id: RunId, decision: Decision) -> Result<RunId> {
        self.db.run(CALL_MAX, || decisions::override_blocked(&self.db, id, &decision)).await
    }

    async fn run_readmit(&self, id: RunId, view: &ViewId, decision: Decision) -> Result<RunId> {
        self.db.run(CALL_MAX, || decisions::readmit(&self.db, id, view, &decision)).await
    }

    async fn latest_runs(&self, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Run>> {
        self.db.run(CALL_MAX, || runs::latest(&self.db, dag, from, to)).await
    }

    async fn run_logs(&self, id: RunId) -> Result<Vec<LogLine>> {
        self.db.run(CALL_MAX, || runs::logs(&self.db, id)).await
    }

    async fn task_claim(&self, request: &ClaimRequest, now: Instant) -> Result<Vec<Claim>> {
        self.db.run(CALL_MAX, || claims::claim(&self.db, request, now)).await
    }

    async fn task_heartbeat(&self, token: LeaseToken, lease: Duration) -> Result<()> {
        self.db.run(HEARTBEAT_MIN.max(lease / 3).min(CALL_MAX), || tasks::heartbeat(&self.db, token, lease)).await
    }

    async fn task_end(&self, token: LeaseToken, end: TaskEnd, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || tasks::end(&self.db, token, &end, now)).await
    }

    async fn task_log(&self, token: LeaseToken, lines: &[(String, String)], now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || tasks::log(&self.db, token, lines, now)).await
    }

    async fn leases_release(&self, owner: &str) -> Result<u64> {
        self.db.run(CALL_MAX, || tasks::leases_release(&self.db, owner)).await
    }

    async fn lease_owners(&self) -> Result<Vec<String>> {
        self.db.run(CALL_MAX, || tasks::lease_owners(&self.db)).await
    }

    async fn view_states(&self, views: &[ViewId]) -> Result<IndexMap<ViewId, ViewState>> {
        self.db.run(CALL_MAX, || publishing::view_states(&self.db, views)).await
    }

    async fn ledger(&self, view: &ViewId, until: Option<Instant>, limit: u32) -> Result<Vec<LedgerEntry>> {
        self.db.run(CALL_MAX, || publishing::ledger(&self.db, view, until, limit)).await
    }

    async fn recorded(
        &self,
        view: &ViewId,
        before: Instant,
        alike: Option<Alike>,
        limit: u32,
    ) -> Result<Vec<Recorded>> {
        self.db.run(CALL_MAX, || profiles::recorded(&self.db, view, before, alike, limit)).await
    }

    async fn manifest(&self, view: &ViewId, before: Option<Instant>) -> Result<Option<Pins>> {
        self.db.run(CALL_MAX, || profiles::manifest(&self.db, view, before)).await
    }

    async fn recorded_in(&self, snapshot: SnapshotId, view: &ViewId) -> Result<Recorded> {
        self.db.run(CALL_MAX, || profiles::recorded_in(&self.db, snapshot, view)).await
    }

    async fn intent_take(&self, token: LeaseToken, request: IntentRequest, now: Instant) -> Result<Intent> {
        self.db.run(CALL_MAX, || publishing::intent_take(&self.db, token, &request, now)).await
    }

    async fn intent(&self, run: RunId) -> Result<Option<Intent>> {
        self.db.run(CALL_MAX, || publishing::intent(&self.db, run)).await
    }

    async fn record(&self, token: LeaseToken, record: Record, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || publishing::record(&self.db, token, &record, now)).await
    }

    async fn snapshots(&self, dag: Option<&DagName>, view: Option<&ViewId>, limit: u32) -> Result<Vec<Snapshot>> {
        self.db.run(CALL_MAX, || snapshots::list(&self.db, dag, view, limit)).await
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        self.db.run(CALL_MAX, || snapshots::get(&self.db, id)).await
    }

    async fn checks(&self, filter: &CheckFilter) -> Result<Vec<CheckRow>> {
        self.db.run(CALL_MAX, || snapshots::checks(&self.db, filter)).await
    }

    async fn worker_heartbeat(&self, beat: &WorkerBeat) -> Result<bool> {
        self.db.run(CALL_MAX, || workers::heartbeat(&self.db, beat)).await
    }

    async fn worker_goodbye(&self, owner: &str) -> Result<()> {
        self.db.run(CALL_MAX, || workers::goodbye(&self.db, owner)).await
    }

    async fn workers(&self, within: Duration) -> Result<Vec<WorkerRow>> {
        self.db.run(CALL_MAX, || workers::list(&self.db, within)).await
    }

    async fn worker_drain(&self, owner: &str, drained: bool, actor: &str, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || workers::drain(&self.db, owner, drained, actor, now)).await
    }

    async fn tasks_waiting(&self, limit: u32, within: Duration) -> Result<Vec<WaitingTask>> {
        self.db.run(CALL_MAX, || queues::waiting(&self.db, limit, within)).await
    }

    async fn queues(&self) -> Result<Vec<QueueState>> {
        self.db.run(CALL_MAX, || queues::states(&self.db)).await
    }

    async fn pools(&self) -> Result<Vec<PoolState>> {
        self.db.run(CALL_MAX, || pools::states(&self.db)).await
    }

    fn listen(&self, listener: Listener) {
        self.db.listen(listener);
    }

    async fn audit(&self, event: NewAuditEvent) -> Result<()> {
        self.db.run(CALL_MAX, || audit::add(&self.db, &event)).await
    }

    async fn audit_events(&self, filter: &AuditFilter) -> Result<Vec<AuditEvent>> {
        self.db.run(BULK_MAX, || audit::list(&self.db, filter)).await
    }

    async fn audit_verify(&self, noted: Option<String>) -> Result<AuditVerdict> {
        self.db.run(BULK_MAX, || audit::verify(&self.db, noted.as_deref())).await
    }

    async fn clock_anchor(&self, real_now: Instant, project_start: Instant) -> Result<(Instant, Instant)> {
        self.db.run(CALL_MAX, || definitions::clock_anchor(&self.db, real_now, project_start)).await
    }

    async fn close(&self) {
        self.db.close().await;
    }
}
