//! The N-th fault: one small run with a fault at its first remote call, one with a fault at its second, and so on until a
//! run meets none; for every way in which a call can fail. After each the run must have ended as if nothing had
//! happened, without a hand.
//!
//! Remote are the calls of the object store (struck on the wire, below the client's own retries) and of the online store.
//! Those of the registry are struck in the simulation.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::prelude::{SessionContext, col};
use futures::future::join_all;
use tidegate_registry::definitions::{LoadOptions, load};
use tidegate_registry::ids::{DagName, ProjectName, RegistryId, RunId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::plan::diff;
use tidegate_registry::run::{Cause, NewRun, RunState};
use tidegate_registry::store::{ApplyRequest, Store};
use tidegate_registry::time::{FixedClock, Instant};
use tidegate_servers::{Fault, Mode, S3Endpoint, S3Fake};
use tidegate_store::SqliteStore;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::lake::Lake;
use crate::objects::{Patience, testing};
use crate::online::{
    Begun, Changes, CutOver, EncodedRow, Expected, InPlace, Live, OnlineError, OnlineRow, OnlineStore, Result,
    SqliteOnline, Standing,
};
use crate::sources::Sources;
use crate::tests::{at, interval};
use crate::{Worker, WorkerOptions, WorkerParts};

/// A view over a source and one over its history: every kind of step, and little else.
const DEFINITIONS: &str = r"
owners: [{name: sales, primary: sales@example.com}]
entities:
  - {name: shop, keys: [{name: shop, type: string}]}
sources:
  - {name: receipts, csv: receipts.csv, event_time: at}
feature_views:
  - name: revenue
    entity: shop
    owner: sales
    description: Revenue of the day
    sql: |
      SELECT shop, CAST(sum(amount) AS BIGINT) AS total
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features: [{name: total, type: bigint, description: euros}]
    online: {strategy: swap}
  - name: lifetime
    entity: shop
    owner: sales
    description: Revenue of all days
    sql: SELECT shop, CAST(sum(total) AS BIGINT) AS total FROM history.revenue GROUP BY shop
    features: [{name: total, type: bigint, description: euros}]
    online: {strategy: swap}
dags:
  - name: daily
    owner: sales
    schedule: {cron: '0 0 * * *', timezone: UTC, start: 2024-01-01}
    views: [revenue, lifetime]
    retries: {max: 4, backoff: 1s}
";

const RECEIPTS: &str =
    "shop,at,amount\na,2024-01-01T10:00:00Z,10\na,2024-01-01T11:00:00Z,20\nb,2024-01-01T12:00:00Z,70\n";

/// What both views say after the first day.
const ROWS: [(&str, &str); 2] = [("a", "30"), ("b", "70")];

/// So many runs at the same time: most of what they do is wait.
const AT_ONCE: u64 = 6;

/// No run has so many calls: one that has goes round in circles.
const CALLS_MAX: u64 = 400;

/// Shorter than what hangs.
fn impatient() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        request: Duration::from_millis(700),
        retries: 3,
        retry_for: Duration::from_secs(5),
        backoff: Duration::from_millis(5),
        backoff_max: Duration::from_millis(20),
    }
}

const HANG: Duration = Duration::from_secs(2);

/// A project that is applied, to be copied.
struct Pattern {
    folder: tempfile::TempDir,
    project: Arc<Project>,
    objects: Vec<(String, Vec<u8>)>,
}

impl Pattern {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tidegate.yaml"), "project: shop\n").unwrap();
        std::fs::write(folder.path().join("shop.yaml"), DEFINITIONS).unwrap();
        std::fs::write(folder.path().join("receipts.csv"), RECEIPTS).unwrap();
        let loaded = load(folder.path(), &LoadOptions::default());
        let project = loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        let fake = testing::fake();
        let store = SqliteStore::open(&folder.path().join("registry.db")).await.unwrap();
        let empty = Project::empty(ProjectName::new("shop").unwrap());
        let views: Vec<ViewId> = project.views.keys().cloned().collect();
        let request = ApplyRequest {
            project: "shop".to_owned(),
            base: 0,
            changes: diff(0, &empty, &project, &BTreeSet::new()).unwrap().changes(),
            tables: lake(&fake).ensure_tables(&project, &views).await.unwrap(),
            actor: "test".to_owned(),
            message: None,
            now: now(),
        };
        store.apply(request).await.unwrap();
        store.close().await;
        let keys = fake.keys(testing::BUCKET, "");
        let objects = keys.into_iter().map(|key| (key.clone(), fake.get(testing::BUCKET, &key).unwrap())).collect();
        Self { folder, project: Arc::new(project), objects }
    }
}

fn now() -> Instant {
    at("2024-01-05T00:00:00Z")
}

fn lake(fake: &S3Fake) -> Lake {
    let stores = testing::stores(&fake.endpoint(), impatient());
    Lake::open_in(&format!("s3://{}/lake", testing::BUCKET).parse().unwrap(), &stores, "shop").unwrap()
}

/// What one run is made of.
struct Trial {
    folder: tempfile::TempDir,
    fake: S3Fake,
    store: Arc<SqliteStore>,
    online: Arc<FaultyOnline>,
    project: Arc<Project>,
}

impl Trial {
    async fn new(pattern: &Pattern) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(pattern.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let fake = testing::fake();
        for (key, content) in &pattern.objects {
            fake.put(testing::BUCKET, key, content);
        }
        let store = Arc::new(SqliteStore::open(&folder.path().join("registry.db")).await.unwrap());
        let online = SqliteOnline::open(&folder.path().join("online.db")).await.unwrap();
        let online = Arc::new(FaultyOnline { inner: online, calls: AtomicU64::new(0), fault: None });
        Self { folder, fake, store, online, project: Arc::clone(&pattern.project) }
    }

    /// Lets the online store fail at its call number `call`, from 0.
    fn fail_online(&mut self, call: u64, after: bool) {
        Arc::get_mut(&mut self.online).unwrap().fault = Some((call, after));
    }

    /// One run of the first day from its plan to its end.
    async fn run(&self) -> RunId {
        let dag = &self.project.dags[&DagName::new("daily").unwrap()];
        let run = NewRun {
            dag: dag.name.clone(),
            interval: interval(1),
            views: dag.views.clone(),
            cause: Cause::Manual(0),
            definitions: 1,
            attempts_max: 1 + dag.retries.max,
            priority: 0,
        };
        let id = self.store.runs_create(vec![run], now()).await.unwrap()[0];
        self.store.run_admit(id).await.unwrap();
        let worker = Worker::new(WorkerParts {
            store: Arc::<SqliteStore>::clone(&self.store),
            clock: Arc::new(FixedClock(now())),
            lake: lake(&self.fake),
            online: Some(Arc::<FaultyOnline>::clone(&self.online)),
            sources: Sources::new(self.folder.path(), &[]).unwrap(),
            options: WorkerOptions {
                owner: "one".to_owned(),
                lease: Duration::from_secs(30),
                slots: 1,
                queues: Vec::new(),
                host: "here".to_owned(),
                memory_bytes: 256 << 20,
                spill_dir: self.folder.path().join("spill"),
            },
            wake: Arc::new(Notify::new()),
            progress: Arc::new(Notify::new()),
        })
        .unwrap();
        let ids = [id];
        let done = tokio::time::timeout(Duration::from_secs(90), worker.run_only(&ids, CancellationToken::new()));
        done.await.expect("I2: a run that met one fault is stuck").unwrap();
        id
    }

    /// The invariants, as far as one run can break them. (I5, ticks, is the scheduler's; I3 is `tests/crash/readers.rs`.)
    async fn assert_whole(&self, run: RunId, what: &str) {
        self.fake.heal();
        // I7: what was acknowledged is read from the file by somebody else.
        let store = SqliteStore::open(&self.folder.path().join("registry.db")).await.unwrap();
        let (ended, tasks) = store.run(run).await.unwrap();
        assert_eq!(ended.state, RunState::Succeeded, "{what}: {:?} {tasks:?}", ended.reason);
        // I9: one fault costs one attempt at most.
        assert!(tasks.iter().all(|task| task.attempts <= 2), "{what}: {tasks:?}");
        let views: Vec<ViewId> = self.project.views.keys().cloned().collect();
        let states = store.view_states(&views).await.unwrap();
        let snapshots = store.snapshots(None, None, 0).await.unwrap();
        assert_eq!((snapshots.len(), snapshots[0].status.as_str()), (1, "live"), "{what}");
        let lake = lake(&self.fake);
        for view in &views {
            // I1: the slice is there once, in the table and in the ledger; two versions, the empty one and the run's.
            let rows = rows_of(&lake, view).await;
            assert_eq!(rows, ROWS.map(|(shop, total)| format!("{shop} {total}")), "{what}: {view}");
            let ledger = store.ledger(view, None, 0).await.unwrap();
            assert_eq!((ledger.len(), ledger[0].run, ledger[0].rows), (1, run, 2), "{what}: {view}");
            let table = lake.load(view, None).await.unwrap();
            assert_eq!(table.version(), Some(1), "{what}: {view}");
            // I4: registry, log and online store agree.
            let recorded = snapshots[0].views.iter().find(|recorded| recorded.view == *view).unwrap();
            assert_eq!((states[view].delta_version, recorded.delta_version), (1, 1), "{what}: {view}");
            let live = self.online.inner.live(view).await.unwrap().expect("it is live");
            assert_eq!(
                (Some(live.generation), live.publish_number),
                (states[view].online_generation, recorded.publish_number),
                "{what}: {view}"
            );
            let online = self.online.inner.scan(view, live.generation, None, 10).await.unwrap();
            let online: Vec<(&str, &str)> =
                online.iter().map(|(key, row)| (key.as_str(), row.features[0].1.as_str())).collect();
            assert_eq!(online, ROWS, "{what}: {view}");
            // I6: nothing referenced is missing, nothing else is there.
            let named: BTreeSet<String> = table.get_file_uris().unwrap().collect();
            let folder = format!("lake/features/{}/v1/data", view.name);
            let found = self.fake.keys(testing::BUCKET, &folder).into_iter();
            let found: BTreeSet<String> = found.map(|key| format!("s3://{}/{key}", testing::BUCKET)).collect();
            assert_eq!(found, named, "{what}: {view}");
        }
        // I8: the key stands nowhere.
        let told = format!("{tasks:?}{:?}", store.run_logs(run).await.unwrap());
        assert!(!told.contains(S3Endpoint::SECRET_KEY), "{what}: {told}");
    }
}

/// Shop and total of each row of a table's head.
async fn rows_of(lake: &Lake, view: &ViewId) -> Vec<String> {
    let ctx = SessionContext::new();
    let table = lake.load(view, None).await.unwrap();
    let rows = crate::reads::scan(&ctx, &table).await.unwrap();
    let rows = rows.select_columns(&["shop", "total"]).unwrap().sort_by(vec![col("shop")]).unwrap();
    let mut found = Vec::new();
    for batch in rows.collect().await.unwrap() {
        for row in 0..batch.num_rows() {
            let text = |column| array_value_to_string(batch.column(column), row).unwrap();
            found.push(format!("{} {}", text(0), text(1)));
        }
    }
    found
}

/// Strikes the first call, the second, and so on, until a run meets no fault; how many calls that is.
async fn every_call<T: Future<Output = bool>>(trial: impl Fn(u64) -> T) -> u64 {
    let mut first = 0;
    loop {
        let struck = join_all((first..first + AT_ONCE).map(&trial)).await;
        if let Some(index) = struck.iter().position(|struck| !struck) {
            return first + index as u64;
        }
        first += AT_ONCE;
        assert!(first < CALLS_MAX, "it calls for ever");
    }
}

async fn every_object_call(mode: Mode) {
    let pattern = Pattern::new().await;
    let calls = every_call(|call| {
        let pattern = &pattern;
        async move {
            let trial = Trial::new(pattern).await;
            trial.fake.inject(Fault::new(mode).after(call).times(1));
            let run = trial.run().await;
            let struck = trial.fake.strikes() > 0;
            trial.assert_whole(run, &format!("{mode:?} at call {call}")).await;
            struck
        }
    })
    .await;
    assert!(calls > 20, "{mode:?}: only {calls} calls");
}

macro_rules! at_every_object_call {
    ($($name:ident: $mode:expr,)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { every_object_call($mode).await; })+
    };
}

at_every_object_call! {
    // What the client does not try again by itself: so the task must.
    every_object_call_may_fail_before: Mode::Refuse(403),
    every_object_call_may_fail_after_success: Mode::ApplyThenRefuse(500),
    every_object_call_may_lose_its_connection_after_success: Mode::ApplyThenCut,
    every_object_call_may_hang: Mode::ApplyThenHang(HANG),
    every_object_call_may_be_cut_in_its_body: Mode::CutBody(10),
}

async fn every_online_call(after: bool) {
    let pattern = Pattern::new().await;
    let calls = every_call(|call| {
        let pattern = &pattern;
        async move {
            let mut trial = Trial::new(pattern).await;
            trial.fail_online(call, after);
            let run = trial.run().await;
            let struck = trial.online.calls.load(Ordering::Relaxed) > call;
            trial.assert_whole(run, &format!("online call {call}, after: {after}")).await;
            struck
        }
    })
    .await;
    assert!(calls >= 7, "only {calls} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_online_call_may_fail_before() {
    every_online_call(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_online_call_may_fail_after_success() {
    every_online_call(true).await;
}

/// An online store one call of which fails: before it is done, or after.
#[derive(Debug)]
struct FaultyOnline {
    inner: SqliteOnline,
    calls: AtomicU64,
    /// Which, from 0, and whether it is done.
    fault: Option<(u64, bool)>,
}

impl FaultyOnline {
    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Some((wanted, after)) if wanted == number => {
                if after {
                    call.await?;
                }
                Err(OnlineError::Unavailable("the answer is lost".into()))
            }
            _ => call.await,
        }
    }
}

impl fmt::Display for FaultyOnline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

macro_rules! faulty_calls {
    ($($(#[$attribute:meta])* $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)+) => {
        #[async_trait]
        impl OnlineStore for FaultyOnline {
            $($(#[$attribute])* async fn $name(&self, $($argument: $kind),*) -> Result<$answer> {
                self.call(self.inner.$name($($argument),*)).await
            })+

            async fn close(&self) {
                self.inner.close().await;
            }
        }
    };
}

faulty_calls! {
    claim_owner(project: &ProjectName, registry: RegistryId) -> ();
    claim_care(view: &ViewId, owner: &str, lasts: Duration) -> bool;
    begin_generation(view: &ViewId, generation: u64) -> Begun;
    write(view: &ViewId, generation: u64, rows: &[EncodedRow]) -> ();
    finish_generation(view: &ViewId, generation: u64, rows: u64) -> ();
    cut_over(views: &[CutOver]) -> ();
    begin_upsert(view: &ViewId, generation: u64, publish_number: u64) -> InPlace;
    upsert(view: &ViewId, generation: u64, publish_number: u64, changes: &Changes) -> ();
    finish_upsert(view: &ViewId, generation: u64, publish_number: u64, rows: u64) -> ();
    repair(view: &ViewId, live: Expected, changes: &Changes) -> ();
    check(view: &ViewId, expected: Expected) -> Standing;
    live(view: &ViewId) -> Option<Live>;
    get_many(keys: &[(ViewId, String)], now: Instant) -> Vec<Option<OnlineRow>>;
    discard(view: &ViewId, generation: u64) -> ();
    prune(view: &ViewId, keep: u32, age_min: Duration, dead_below: u64) -> Vec<u64>;
    count(view: &ViewId, generation: u64) -> u64;
    scan(view: &ViewId, generation: u64, after: Option<&str>, limit: u32) -> Vec<(String, OnlineRow)>;
    keys(view: &ViewId, generation: u64, cursor: Option<&str>) -> (Vec<String>, Option<String>);
    rows(view: &ViewId, generation: u64, keys: &[String]) -> Vec<Option<OnlineRow>>;
}
