//! A small project in a store, and the moves of a worker on it. Supplies all that a promise does not speak of.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use indexmap::IndexMap;
use serde::Serialize;
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::ids::{DagName, LeaseToken, RunId, SnapshotId, ViewId};
use tidegate_registry::model::{
    Catchup, Dag, FeatureView, OnBlocked, Output, Pool, PublishUnit, Retries, Schedule, Severity, Source,
    SourceLocation, SqlText, Table, TableRef,
};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::profile::ViewProfile;
use tidegate_registry::run::{
    Cause, CheckResult, Claim, Intent, NewRun, Pins, Run, RunState, StagedView, Task, TaskKind, TaskOutput, Verdict,
};
use tidegate_registry::store::{
    ApplyChanges, ApplyRequest, ClaimRequest, DefinitionRow, IntentRequest, Record, Result, Store, StoreError, TaskEnd,
    ViewIntentRequest, ViewRecord, WorkerBeat,
};
use tidegate_registry::time::{Instant, Interval};

/// Long enough for no test to outlast it.
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// As whoever works does: again, as long as the registry is away. (Of two processes that write to one file without a
/// pause, SQLite may let either wait too long on a slow disk.)
pub(crate) async fn insist<T, F: Future<Output = Result<T>>>(call: impl Fn() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Ok(done) => return done,
            Err(StoreError::Unavailable(cause)) => {
                assert!(tokio::time::Instant::now() < deadline, "still away: {cause:?}");
            }
            Err(error) => panic!("{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Midnight of the given day of 2013.
pub(crate) fn day(number: i64) -> Instant {
    DateTime::from_timestamp(1_356_998_400, 0).unwrap() + TimeDelta::days(number)
}

/// From the midnight of that day to the next.
pub(crate) fn interval(number: i64) -> Interval {
    Interval::new(day(number), day(number + 1)).unwrap()
}

pub(crate) fn view(text: &str) -> ViewId {
    text.parse().unwrap()
}

pub(crate) fn dag(text: &str) -> DagName {
    text.parse().unwrap()
}

fn row<T: Serialize>(kind: DefinitionKind, name: &str, definition: &T) -> DefinitionRow {
    let body = serde_json::to_value(definition).unwrap();
    DefinitionRow { kind, name: name.to_owned(), fingerprint: body.to_string(), body }
}

pub(crate) fn source_row(name: &str, place: &str) -> DefinitionRow {
    let source = Source {
        name: name.parse().unwrap(),
        location: SourceLocation::Parquet(place.to_owned()),
        event_time: None,
        description: None,
        owner: None,
        tags: Vec::new(),
        checks: Vec::new(),
        origin: Origin::default(),
    };
    row(DefinitionKind::Source, name, &source)
}

pub(crate) fn pool_row(name: &str, slots: u32) -> DefinitionRow {
    row(DefinitionKind::Pool, name, &Pool { name: name.parse().unwrap(), slots, description: None })
}

/// `row` of a view, in `queue` and `pool`.
pub(crate) fn placed(mut row: DefinitionRow, queue: Option<&str>, pool: Option<&str>) -> DefinitionRow {
    row.body["queue"] = queue.into();
    row.body["pool"] = pool.into();
    row
}

pub(crate) fn beat(owner: &str, queues: &[&str]) -> WorkerBeat {
    WorkerBeat {
        owner: owner.to_owned(),
        queues: queues.iter().map(|queue| queue.parse().unwrap()).collect(),
        slots: 4,
        running: 1,
        version: "0.1.0".to_owned(),
        host: "here".to_owned(),
    }
}

/// A view that reads the source `flights` and the given views.
pub(crate) fn view_row(id: &str, reads: &[&str], description: &str) -> DefinitionRow {
    let source = TableRef { name: "flights".to_owned(), table: Table::Source("flights".parse().unwrap()) };
    let views = reads.iter().map(|read| TableRef { name: (*read).to_owned(), table: Table::State(view(read)) });
    let definition = FeatureView {
        id: view(id),
        entity: "carrier".parse().unwrap(),
        owner: "delays".parse().unwrap(),
        description: description.to_owned(),
        tags: Vec::new(),
        sql: SqlText { text: "SELECT 1".to_owned(), origin: Origin::default() },
        reads: std::iter::once(source).chain(views).collect(),
        checked_against: Vec::new(),
        output: Output::Full,
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
    };
    row(DefinitionKind::FeatureView, id, &definition)
}

pub(crate) fn dag_row(name: &str, views: &[&str], cron: &str) -> DefinitionRow {
    let definition = Dag {
        name: dag(name),
        owner: "delays".parse().unwrap(),
        description: None,
        tags: Vec::new(),
        schedule: Schedule {
            cron: cron.to_owned(),
            timezone: "UTC".parse().unwrap(),
            start: day(0),
            end: None,
            catchup: Catchup::All,
            gap: None,
            overlap: None,
        },
        views: views.iter().map(|id| view(id)).collect(),
        retries: Retries { max: 2, backoff: Duration::from_secs(1) },
        timeout: None,
        max_active_runs: 1,
        priority: 0,
        in_order: false,
        on_blocked: OnBlocked::Continue,
        publish: PublishUnit::Together,
        on_published: Vec::new(),
        origin: Origin::default(),
    };
    row(DefinitionKind::Dag, name, &definition)
}

pub(crate) fn check(name: &str, verdict: Verdict) -> CheckResult {
    CheckResult {
        check: name.to_owned(),
        severity: Severity::Block,
        verdict,
        message: format!("{name} {verdict}"),
        failing_rows: 0,
        samples: Vec::new(),
        overridden: false,
    }
}

pub(crate) fn staged(rows: u64, checks: Vec<CheckResult>) -> TaskOutput {
    TaskOutput::Staged(StagedView {
        adds: vec![serde_json::json!({ "path": "part-0.parquet" })],
        rows,
        bytes: 100,
        digest: "0".repeat(32),
        checks,
        profile: IndexMap::new(),
        quarantine: None,
    })
}

pub(crate) fn pins() -> TaskOutput {
    TaskOutput::Pins(Pins::default())
}

pub(crate) fn succeeded(output: TaskOutput) -> TaskEnd {
    TaskEnd::Succeeded { output, rows: None }
}

pub(crate) fn failed(retry_in: Option<Duration>) -> TaskEnd {
    TaskEnd::Failed { error: "it broke".to_owned(), retry_in }
}

/// The project: DAG `daily` runs `a@v1` and `b@v1`, of which `b` reads `a`; DAG `other` runs `c@v1`.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
}

impl World {
    /// The project applied as revision 1, on day 0.
    pub(crate) async fn new(store: Arc<dyn Store>) -> Self {
        let world = Self { store };
        let upserts = vec![
            source_row("flights", "data/flights.parquet"),
            view_row("a@v1", &[], "first"),
            view_row("b@v1", &["a@v1"], "second"),
            view_row("c@v1", &[], "third"),
            dag_row("daily", &["a@v1", "b@v1"], "@daily"),
            dag_row("other", &["c@v1"], "@daily"),
        ];
        assert_eq!(world.apply(0, upserts, Vec::new(), day(0)).await, 1);
        world
    }

    pub(crate) async fn apply(
        &self,
        base: i64,
        upserts: Vec<DefinitionRow>,
        removals: Vec<(DefinitionKind, String)>,
        now: Instant,
    ) -> i64 {
        self.store.apply(apply_request(base, upserts, removals, now)).await.unwrap()
    }

    pub(crate) fn new_run(name: &str, number: i64) -> NewRun {
        NewRun {
            dag: dag(name),
            interval: interval(number),
            views: if name == "daily" { vec![view("a@v1"), view("b@v1")] } else { vec![view("c@v1")] },
            cause: Cause::Tick,
            definitions: 1,
            attempts_max: 3,
            priority: 0,
        }
    }

    pub(crate) async fn create(&self, run: NewRun) -> RunId {
        let now = run.interval.end();
        insist(|| self.store.runs_create(vec![run.clone()], now)).await[0]
    }

    /// A run of that DAG and day, admitted.
    pub(crate) async fn admitted(&self, name: &str, number: i64) -> RunId {
        let run = self.create(Self::new_run(name, number)).await;
        insist(|| self.store.run_admit(run)).await;
        run
    }

    pub(crate) async fn state(&self, run: RunId) -> RunState {
        self.run(run).await.0.state
    }

    pub(crate) async fn run(&self, run: RunId) -> (Run, Vec<Task>) {
        self.store.run(run).await.unwrap()
    }

    pub(crate) async fn task(&self, run: RunId, kind: &str) -> Task {
        let kind: TaskKind = kind.parse().unwrap();
        self.run(run).await.1.into_iter().find(|task| task.kind == kind).unwrap()
    }

    pub(crate) async fn try_claim(&self, owner: &str, lease: Duration, only: &[RunId]) -> Option<Claim> {
        let request = ClaimRequest { only: only.to_vec(), ..ClaimRequest::new(owner, lease) };
        self.claim_by(&request).await.pop()
    }

    pub(crate) async fn claim_by(&self, request: &ClaimRequest) -> Vec<Claim> {
        insist(|| self.store.task_claim(request, day(10))).await
    }

    /// The next task of `run`.
    pub(crate) async fn claim(&self, run: RunId) -> Claim {
        self.try_claim("w1", LONG, &[run]).await.expect("a task of the run is claimable")
    }

    pub(crate) async fn end(&self, token: LeaseToken, end: TaskEnd) {
        insist(|| self.store.task_end(token, end.clone(), day(10))).await;
    }

    /// Does everything up to the publish task, and claims that.
    pub(crate) async fn claim_publish(&self, run: RunId) -> Claim {
        loop {
            let claim = self.claim(run).await;
            match claim.kind {
                TaskKind::Pin => self.end(claim.token, succeeded(pins())).await,
                TaskKind::View(_) => {
                    let checks = vec![check("not_null", Verdict::Passed), check("row_count", Verdict::Pending)];
                    self.end(claim.token, succeeded(staged(7, checks))).await;
                }
                TaskKind::Publish | TaskKind::Restore => return claim,
            }
        }
    }

    /// The request that a worker makes when all checks pass.
    pub(crate) async fn intent_request(&self, run: &Run) -> IntentRequest {
        let states = self.store.view_states(&run.views).await.unwrap();
        let judged = |view: &ViewId| ViewIntentRequest {
            records: states[view].records,
            checks: vec![check("not_null", Verdict::Passed), check("row_count", Verdict::Passed)],
        };
        let holds = self.store.holds().await.unwrap().revision;
        IntentRequest { views: run.views.iter().map(|view| (view.clone(), judged(view))).collect(), holds }
    }

    pub(crate) async fn take(&self, claim: &Claim) -> Intent {
        let request = self.intent_request(&claim.run).await;
        self.store.intent_take(claim.token, request, day(10)).await.unwrap()
    }

    pub(crate) fn record(snapshot: SnapshotId, intent: &Intent) -> Record {
        let views = intent.views.iter().map(|(view, what)| {
            let record = ViewRecord {
                fingerprint: "f".to_owned(),
                publish_number: what.publish_number,
                delta_version: what.publish_number + 10,
                rows: 7,
                digest: "0".repeat(32),
                online_generation: what.online.then_some(what.publish_number),
                profile: serde_json::json!({}),
                summary: ViewProfile::default(),
                quarantined: 0,
                quarantine_version: None,
            };
            (view.clone(), record)
        });
        Record {
            snapshot,
            views: views.collect(),
            manifest: Pins::default(),
            actor: "worker".to_owned(),
            notices: Vec::new(),
        }
    }

    /// Takes a run from the beginning to its record.
    pub(crate) async fn publish(&self, run: RunId) -> SnapshotId {
        let claim = self.claim_publish(run).await;
        let intent = self.take(&claim).await;
        let snapshot = SnapshotId::generate();
        self.store.record(claim.token, Self::record(snapshot, &intent), day(10)).await.unwrap();
        snapshot
    }
}

pub(crate) fn apply_request(
    base: i64,
    upserts: Vec<DefinitionRow>,
    removals: Vec<(DefinitionKind, String)>,
    now: Instant,
) -> ApplyRequest {
    let tables =
        upserts.iter().filter(|row| row.kind == DefinitionKind::FeatureView).map(|row| (view(&row.name), 0)).collect();
    ApplyRequest {
        project: "flights".to_owned(),
        base,
        changes: ApplyChanges { upserts, removals },
        tables,
        actor: "ana".to_owned(),
        message: Some("because".to_owned()),
        now,
    }
}
