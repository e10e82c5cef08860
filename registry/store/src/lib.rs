//! The registry's [`Store`] on a SQL database.
//!
//! Begin with [`SqliteStore`]. The modules follow the resources of the trait: definitions, planning, runs, tasks,
//! publishing, snapshots, workers; `moves` holds what runs and tasks may become, `db` the file itself. Rows are turned
//! into domain types where they are read and never leave the crate. [`mod@conformance`] is what every implementation of the
//! trait must pass, this one included.
//!
//! May not know: what a definition means beyond the tables it reads, the lake, HTTP.

mod audit;
mod codec;
pub mod conformance;
mod db;
mod definitions;
mod moves;
mod planning;
mod publishing;
#[cfg(test)]
mod query_plans;
mod runs;
mod snapshots;
mod tasks;
mod workers;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use tidegate_registry::ids::{DagName, LeaseToken, RunId, SnapshotId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::run::{Claim, Intent, NewRun, Run, Task};
use tidegate_registry::store::{
    ApplyRecord, ApplyRequest, CheckFilter, CheckRow, ClaimRequest, DagState, DefinitionVersion, IntentRequest,
    LedgerEntry, LogLine, PlanStep, Record, RegistryInfo, Result, RunFilter, Snapshot, Store, TaskEnd, ViewState,
};
use tidegate_registry::time::Instant;

/// A registry in one SQLite file. Several processes on one machine may share it.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    db: db::Db,
}

impl SqliteStore {
    /// Opens the registry at `path`, creating its folders, the file and the schema where they are missing, and bringing
    /// an older schema up to date.
    ///
    /// # Errors
    /// [`tidegate_registry::store::StoreError::Refused`] when a newer program has changed the schema;
    /// [`tidegate_registry::store::StoreError::Unavailable`] when the file cannot be opened or stays locked.
    pub async fn open(path: &Path) -> Result<Self> {
        Ok(Self { db: db::Db::open(path).await? })
    }

    /// Waits for what is under way and lets go of the file. Later calls fail as unavailable.
    pub async fn close(&self) {
        self.db.close().await;
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn info(&self) -> Result<RegistryInfo> {
        definitions::info(&self.db).await
    }

    async fn apply(&self, request: ApplyRequest) -> Result<i64> {
        definitions::apply(&self.db, request).await
    }

    async fn applies(&self) -> Result<Vec<ApplyRecord>> {
        definitions::applies(&self.db).await
    }

    async fn project(&self, revision: Option<i64>) -> Result<(i64, Project)> {
        definitions::project(&self.db, revision).await
    }

    async fn definition_versions(&self, kind: DefinitionKind, name: &str) -> Result<Vec<DefinitionVersion>> {
        definitions::definition_versions(&self.db, kind, name).await
    }

    async fn dags_due(&self, now: Instant, limit: u32) -> Result<Vec<DagState>> {
        planning::dags_due(&self.db, now, limit).await
    }

    async fn dags(&self) -> Result<Vec<DagState>> {
        planning::dags(&self.db).await
    }

    async fn next_due(&self) -> Result<Option<Instant>> {
        planning::next_due(&self.db).await
    }

    async fn plan(&self, step: PlanStep, now: Instant) -> Result<()> {
        planning::plan(&self.db, &step, now).await
    }

    async fn plan_all(&self, steps: &[PlanStep], now: Instant) -> Result<Vec<Result<()>>> {
        planning::plan_all(&self.db, steps, now).await
    }

    async fn ticks(&self, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Instant>> {
        planning::ticks(&self.db, dag, from, to).await
    }

    async fn dag_pause(&self, dag: &DagName, paused: bool) -> Result<()> {
        planning::dag_pause(&self.db, dag, paused).await
    }

    async fn runs_create(&self, runs: Vec<NewRun>, now: Instant) -> Result<Vec<RunId>> {
        runs::create(&self.db, &runs, now).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<Run>> {
        runs::list(&self.db, filter).await
    }

    async fn run(&self, id: RunId) -> Result<(Run, Vec<Task>)> {
        runs::get(&self.db, id).await
    }

    async fn runs_by_prefix(&self, prefix: &str) -> Result<Vec<RunId>> {
        runs::by_prefix(&self.db, prefix).await
    }

    async fn runs_open(&self) -> Result<Vec<Run>> {
        runs::open(&self.db).await
    }

    async fn run_admit(&self, id: RunId) -> Result<()> {
        runs::admit(&self.db, id).await
    }

    async fn runs_admit(&self, ids: &[RunId]) -> Result<()> {
        runs::admit_all(&self.db, ids).await
    }

    async fn run_wait_reason(&self, id: RunId, reason: &str) -> Result<()> {
        runs::wait_reason(&self.db, id, reason).await
    }

    async fn run_cancel(&self, id: RunId, actor: &str, now: Instant) -> Result<()> {
        runs::cancel(&self.db, id, actor, now).await
    }

    async fn run_retry(&self, id: RunId, attempts_max: u32, now: Instant) -> Result<RunId> {
        runs::retry(&self.db, id, attempts_max, now).await
    }

    async fn latest_runs(&self, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Run>> {
        runs::latest(&self.db, dag, from, to).await
    }

    async fn run_logs(&self, id: RunId) -> Result<Vec<LogLine>> {
        runs::logs(&self.db, id).await
    }

    async fn task_claim(&self, request: &ClaimRequest, now: Instant) -> Result<Option<Claim>> {
        tasks::claim(&self.db, request, now).await
    }

    async fn task_heartbeat(&self, token: LeaseToken, lease: Duration) -> Result<()> {
        tasks::heartbeat(&self.db, token, lease).await
    }

    async fn task_end(&self, token: LeaseToken, end: TaskEnd, now: Instant) -> Result<()> {
        tasks::end(&self.db, token, end, now).await
    }

    async fn task_log(&self, token: LeaseToken, lines: &[(String, String)], now: Instant) -> Result<()> {
        tasks::log(&self.db, token, lines, now).await
    }

    async fn leases_release(&self, owner: &str) -> Result<u64> {
        tasks::leases_release(&self.db, owner).await
    }

    async fn lease_owners(&self) -> Result<Vec<String>> {
        tasks::lease_owners(&self.db).await
    }

    async fn view_states(&self, views: &[ViewId]) -> Result<IndexMap<ViewId, ViewState>> {
        publishing::view_states(&self.db, views).await
    }

    async fn ledger(&self, view: &ViewId, until: Option<Instant>, limit: u32) -> Result<Vec<LedgerEntry>> {
        publishing::ledger(&self.db, view, until, limit).await
    }

    async fn intent_take(&self, token: LeaseToken, request: IntentRequest, now: Instant) -> Result<Intent> {
        publishing::intent_take(&self.db, token, request, now).await
    }

    async fn intent(&self, run: RunId) -> Result<Option<Intent>> {
        publishing::intent(&self.db, run).await
    }

    async fn record(&self, token: LeaseToken, record: Record, now: Instant) -> Result<()> {
        publishing::record(&self.db, token, record, now).await
    }

    async fn snapshots(&self, dag: Option<&DagName>, view: Option<&ViewId>, limit: u32) -> Result<Vec<Snapshot>> {
        snapshots::list(&self.db, dag, view, limit).await
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        snapshots::get(&self.db, id).await
    }

    async fn checks(&self, filter: &CheckFilter) -> Result<Vec<CheckRow>> {
        snapshots::checks(&self.db, filter).await
    }

    async fn worker_heartbeat(&self, owner: &str) -> Result<()> {
        workers::heartbeat(&self.db, owner).await
    }

    async fn worker_goodbye(&self, owner: &str) -> Result<()> {
        workers::goodbye(&self.db, owner).await
    }

    async fn workers_alive(&self, within: Duration) -> Result<Vec<String>> {
        workers::alive(&self.db, within).await
    }

    async fn clock_anchor(&self, real_now: Instant, project_start: Instant) -> Result<(Instant, Instant)> {
        definitions::clock_anchor(&self.db, real_now, project_start).await
    }
}
