//! Whole runs on embedded parts: what becomes visible, when, and what does not.

mod objects;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_registry::definitions::{LoadOptions, load};
use tidegate_registry::ids::{DagName, ProjectName, RunId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::plan::diff;
use tidegate_registry::run::{Cause, NewRun, Run, RunState, Verdict};
use tidegate_registry::store::{ApplyRequest, CheckFilter, Store};
use tidegate_registry::time::{Clock, FixedClock, Instant, Interval};
use tidegate_store::SqliteStore;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::entity_key;
use crate::lake::Lake;
use crate::objects::Stores;
use crate::online::{self, OnlineStore};
use crate::sources::Sources;
use crate::{Worker, WorkerOptions, WorkerParts};

/// What sources outside of the project may lie in.
const ROOT: &str = "s3://lake";

/// Sales of two shops; what each view makes of them is easy to work out by hand.
pub(crate) const DEFINITIONS: &str = r"
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
      SELECT shop, CAST(sum(amount) AS DOUBLE) AS total, count(*) AS receipts
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features:
      - {name: total, type: double, description: euros, default: 0.0}
      - {name: receipts, type: bigint, description: number of receipts}
    checks:
      - range: {column: total, min: 0, max: 1000}
      - row_count: {max_change: 0.5}
      - sql: {query: SELECT * FROM revenue WHERE receipts > 100}
    online: {strategy: swap}
  - name: ranking
    entity: shop
    owner: sales
    description: Share of the day's revenue, read from the state of another view
    sql: |
      SELECT shop, total / sum(total) OVER () AS share FROM revenue
    features: [{name: share, type: double, description: 0 to 1}]
    online: {strategy: swap}
  - name: lifetime
    entity: shop
    owner: sales
    description: Revenue of all days, read from the history of another view
    sql: |
      SELECT shop, sum(total) AS total, count(*) AS days FROM history.revenue GROUP BY shop
    features:
      - {name: total, type: double, description: euros}
      - {name: days, type: bigint, description: days with revenue}
  - name: last_receipt
    entity: shop
    owner: sales
    description: The last receipt of shops that had one
    output: partial
    ttl: 2d
    sql: |
      SELECT shop, max(at) AS event_timestamp, max(amount) AS largest
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features: [{name: largest, type: bigint, description: euros}]
    online: {strategy: swap}
dags:
  - name: daily
    owner: sales
    schedule: {cron: '0 0 * * *', timezone: UTC, start: 2024-01-01}
    views: [revenue, ranking, lifetime, last_receipt]
    retries: {max: 0, backoff: 1s}
";

const RECEIPTS: &str = "shop,at,amount
a,2024-01-01T10:00:00Z,10
a,2024-01-01T11:00:00Z,20
b,2024-01-01T12:00:00Z,70
a,2024-01-02T09:00:00Z,50
b,2024-01-02T09:30:00Z,50
b,2024-01-03T09:30:00Z,60
a,2024-01-04T09:30:00Z,5000
b,2024-01-04T09:30:00Z,60
";

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Arc<SqliteStore>,
    pub(crate) lake: Lake,
    pub(crate) online: Arc<dyn OnlineStore>,
    pub(crate) project: Arc<Project>,
    pub(crate) worker: Worker,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(DEFINITIONS).await
    }

    pub(crate) async fn with(definitions: &str) -> Self {
        Self::over(definitions, None).await
    }

    /// With this online store instead of SQLite.
    pub(crate) async fn over(definitions: &str, online: Option<Arc<dyn OnlineStore>>) -> Self {
        Self::on(definitions, online, None, Stores::default()).await
    }

    /// With a lake in an object store, unless it is to lie in a folder.
    async fn on(definitions: &str, online: Option<Arc<dyn OnlineStore>>, lake: Option<Lake>, stores: Stores) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = format!("project: shop\nonline: sqlite://online.db\nallowed_roots: ['{ROOT}']\n");
        std::fs::write(folder.path().join("tidegate.yaml"), settings).unwrap();
        std::fs::write(folder.path().join("shop.yaml"), definitions).unwrap();
        std::fs::write(folder.path().join("receipts.csv"), RECEIPTS).unwrap();
        let loaded = load(folder.path(), &LoadOptions::default());
        let project = loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        let store = Arc::new(SqliteStore::open(&folder.path().join("registry.db")).await.unwrap());
        let in_folder = || Lake::open(folder.path().join("lake").to_str().unwrap(), "shop").unwrap();
        let lake = lake.unwrap_or_else(in_folder);
        let sources = Sources::with_stores(folder.path(), &[ROOT.to_owned()], stores).unwrap();
        let settings = loaded.settings.unwrap();
        let sqlite =
            online::open(&settings.online[0].location, &settings.project, settings.clock.is_some()).await.unwrap();
        let online = online.unwrap_or(sqlite);
        let empty = Project::empty(ProjectName::new("shop").unwrap());
        let plan = diff(0, &empty, &project, &BTreeSet::new()).unwrap();
        let views: Vec<ViewId> = project.views.keys().cloned().collect();
        let request = ApplyRequest {
            project: "shop".to_owned(),
            base: 0,
            changes: plan.changes(),
            tables: lake.ensure_tables(&project, &views).await.unwrap(),
            actor: "test".to_owned(),
            message: None,
            now: at("2024-01-05T00:00:00Z"),
        };
        store.apply(request).await.unwrap();
        let worker = worker_with(&folder, &store, &lake, &online, "one", sources);
        Self { folder, store, lake, online, project: Arc::new(project), worker }
    }

    /// Plans and admits a run of one day.
    pub(crate) async fn plan(&self, day: u32, cause: u32) -> RunId {
        let dag = &self.project.dags[&DagName::new("daily").unwrap()];
        let run = NewRun {
            dag: dag.name.clone(),
            interval: interval(day),
            views: dag.views.clone(),
            cause: Cause::Manual(cause),
            definitions: 1,
            attempts_max: 1 + dag.retries.max,
            priority: 0,
        };
        let ids = self.store.runs_create(vec![run], at("2024-01-05T00:00:00Z")).await.unwrap();
        self.store.run_admit(ids[0]).await.unwrap();
        ids[0]
    }

    pub(crate) async fn execute(&self, day: u32, cause: u32) -> Run {
        let id = self.plan(day, cause).await;
        self.worker.run_only(&[id], CancellationToken::new()).await.unwrap();
        self.store.run(id).await.unwrap().0
    }

    pub(crate) async fn succeed(&self, day: u32, cause: u32) -> Run {
        let run = self.execute(day, cause).await;
        assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
        run
    }

    /// What a reader gets online: feature texts in declared order.
    pub(crate) async fn online(&self, view: &str, shop: &str, now: &str) -> Option<Vec<(String, String)>> {
        let key = entity_key::join(&[shop]);
        let row = self.online.get(&view.parse().unwrap(), &key, at(now)).await.unwrap();
        row.map(|row| row.features)
    }

    /// Rows of a view's table by SQL over its head, as text.
    pub(crate) async fn lake(&self, view: &str, select: &str) -> String {
        let ctx = datafusion::prelude::SessionContext::new();
        let table = self.lake.load(&view.parse().unwrap(), None).await.unwrap();
        table.update_datafusion_session(&ctx.state()).unwrap();
        ctx.register_table("t", table.table_provider().await.unwrap()).unwrap();
        let batches = ctx.sql(select).await.unwrap().collect().await.unwrap();
        datafusion::arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string()
    }

    pub(crate) fn staged_files(&self) -> usize {
        let mut count = 0;
        let mut open = vec![self.folder.path().join("lake")];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|ext| ext == "parquet")
                    && !path.to_string_lossy().contains("_delta_log")
                {
                    count += 1;
                }
            }
        }
        count
    }
}

pub(crate) fn worker(
    folder: &tempfile::TempDir,
    store: &Arc<SqliteStore>,
    lake: &Lake,
    online: &Arc<dyn OnlineStore>,
    owner: &str,
) -> Worker {
    let sources = Sources::new(folder.path(), &[]).unwrap();
    worker_with(folder, store, lake, online, owner, sources)
}

fn worker_with(
    folder: &tempfile::TempDir,
    store: &Arc<SqliteStore>,
    lake: &Lake,
    online: &Arc<dyn OnlineStore>,
    owner: &str,
    sources: Sources,
) -> Worker {
    let clock = Arc::new(FixedClock(at("2024-01-05T00:00:00Z")));
    worker_by(clock, folder, store, lake, online, owner, sources)
}

/// A worker with a clock of its own.
pub(crate) fn worker_by(
    clock: Arc<dyn Clock>,
    folder: &tempfile::TempDir,
    store: &Arc<SqliteStore>,
    lake: &Lake,
    online: &Arc<dyn OnlineStore>,
    owner: &str,
    sources: Sources,
) -> Worker {
    let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(store);
    Worker::new(WorkerParts {
        store,
        clock,
        lake: lake.clone(),
        online: Some(Arc::clone(online)),
        sources,
        options: WorkerOptions {
            owner: owner.to_owned(),
            lease: Duration::from_millis(1500),
            slots: 2,
            queues: Vec::new(),
            host: "here".to_owned(),
            memory_bytes: 256 << 20,
            spill_dir: PathBuf::from(folder.path()).join("spill"),
        },
        wake: Arc::new(Notify::new()),
        progress: Arc::new(Notify::new()),
    })
    .unwrap()
}

pub(crate) fn at(text: &str) -> Instant {
    text.parse().unwrap()
}

pub(crate) fn interval(day: u32) -> Interval {
    let start = at(&format!("2024-01-{day:02}T00:00:00Z"));
    Interval::new(start, start + chrono::Duration::days(1)).unwrap()
}

pub(crate) fn features(pairs: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
    Some(pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
}

#[tokio::test]
async fn a_run_computes_checks_commits_publishes_and_records() {
    let world = World::new().await;
    let run = world.succeed(1, 0).await;
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "30.0"), ("receipts", "2")]));
    assert_eq!(world.online("ranking@v1", "b", now).await, features(&[("share", "0.7")]));
    assert_eq!(world.online("lifetime@v1", "a", now).await, None, "it is not published online");
    insta::assert_snapshot!(
        world.lake("lifetime@v1", "SELECT shop, total, days, interval_start FROM t ORDER BY shop").await
    );
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    assert_eq!((snapshots.len(), snapshots[0].run, snapshots[0].status.as_str()), (1, run.id, "live"));
    let ledger = world.store.ledger(&"revenue@v1".parse().unwrap(), None, 0).await.unwrap();
    assert_eq!((ledger.len(), ledger[0].interval, ledger[0].rows), (1, interval(1), 2));
}

#[tokio::test]
async fn views_read_each_others_staged_rows_and_all_their_history() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    world.succeed(3, 0).await;
    insta::assert_snapshot!(
        world.lake("lifetime@v1", "SELECT interval_start, shop, total, days FROM t ORDER BY 1, 2").await
    );
    // the newest living row of each shop: a sold nothing on the third
    let now = "2024-01-04T00:00:00Z";
    assert_eq!(world.online("last_receipt@v1", "a", now).await, features(&[("largest", "50")]));
    assert_eq!(world.online("last_receipt@v1", "b", now).await, features(&[("largest", "60")]));
    // its ttl of two days ends two days after the receipt
    assert_eq!(world.online("last_receipt@v1", "a", "2024-01-04T09:00:00Z").await, None);
    // and a full view has only the shops of its newest interval
    assert_eq!(world.online("revenue@v1", "a", now).await, None);
}

#[tokio::test]
async fn a_blocked_run_leaves_nothing_behind_and_readers_keep_the_last_good_values() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    let before = (world.staged_files(), world.lake("revenue@v1", "SELECT count(*) FROM t").await);
    let run = world.execute(4, 0).await;
    assert_eq!(run.state, RunState::Blocked);
    insta::assert_snapshot!(run.reason.unwrap());
    assert_eq!((world.staged_files(), world.lake("revenue@v1", "SELECT count(*) FROM t").await), before);
    let now = "2024-01-05T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "30.0"), ("receipts", "2")]));
    let filter = CheckFilter { run: Some(run.id), verdict: Some(Verdict::Failed), ..CheckFilter::default() };
    let failed = world.store.checks(&filter).await.unwrap();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].result.check.as_str(), failed[0].result.failing_rows), ("range(total)", 1));
}

#[tokio::test]
async fn a_check_against_history_blocks_before_the_intent() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    std::fs::write(
        world.folder.path().join("receipts.csv"),
        "shop,at,amount\na,2024-01-02T10:00:00Z,1\nb,2024-01-02T10:00:00Z,1\nc,2024-01-02T10:00:00Z,1\nd,2024-01-02T10:00:00Z,1\n",
    )
    .unwrap();
    let run = world.execute(2, 0).await;
    assert_eq!(run.state, RunState::Blocked);
    assert!(run.reason.as_ref().unwrap().contains("row_count"), "{:?}", run.reason);
    assert!(world.store.intent(run.id).await.unwrap().is_none());
}

#[tokio::test]
async fn a_run_of_an_older_interval_fills_the_lake_and_leaves_online_alone() {
    let world = World::new().await;
    world.succeed(2, 0).await;
    world.succeed(1, 0).await;
    let now = "2024-01-03T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "50.0"), ("receipts", "1")]));
    insta::assert_snapshot!(
        world.lake("revenue@v1", "SELECT interval_start, shop, total, receipts FROM t ORDER BY 1, 2").await
    );
}

#[tokio::test]
async fn an_older_interval_brings_the_entities_of_a_partial_view_that_nothing_newer_has() {
    let world = World::new().await;
    world.succeed(3, 0).await;
    world.succeed(2, 0).await;
    let now = "2024-01-04T00:00:00Z";
    assert_eq!(world.online("last_receipt@v1", "a", now).await, features(&[("largest", "50")]), "of the second");
    assert_eq!(world.online("last_receipt@v1", "b", now).await, features(&[("largest", "60")]), "of the third");
}

#[tokio::test]
async fn computing_an_interval_again_replaces_it() {
    let world = World::new().await;
    let first = world.succeed(1, 0).await;
    let again = world.succeed(1, 1).await;
    assert_eq!((first.revision, again.revision), (0, 1));
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "30.0"), ("receipts", "2")]));
    let ledger = world.store.ledger(&"revenue@v1".parse().unwrap(), None, 0).await.unwrap();
    assert_eq!((ledger.len(), ledger[0].run), (1, again.id));
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    assert_eq!(snapshots[0].views[0].digest, snapshots[1].views[0].digest, "the same rows have the same digest");
    let rows = world.lake("revenue@v1", "SELECT shop, total FROM t ORDER BY shop").await;
    assert_eq!(rows.lines().count(), 6, "two rows, not four:\n{rows}");
}

#[tokio::test]
async fn a_source_that_cannot_be_read_fails_the_run_with_its_name() {
    let world = World::new().await;
    std::fs::remove_file(world.folder.path().join("receipts.csv")).unwrap();
    let run = world.execute(1, 0).await;
    assert_eq!(run.state, RunState::Failed);
    let (_, tasks) = world.store.run(run.id).await.unwrap();
    assert!(tasks[0].error.as_ref().unwrap().contains("reading the source `receipts` at `receipts.csv`"), "{tasks:?}");
}

#[tokio::test]
async fn a_table_that_is_gone_fails_the_run_before_its_intent() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    std::fs::remove_dir_all(world.lake.table_url(&"revenue@v1".parse().unwrap()).to_file_path().unwrap()).unwrap();
    let run = world.execute(2, 0).await;
    assert_eq!(run.state, RunState::Failed, "it would be tried for ever");
    let reason = run.reason.unwrap();
    assert!(reason.contains("task `pin` failed") && reason.contains("the table of `revenue@v1`"), "{reason}");
}

#[tokio::test]
async fn two_workers_share_a_run_and_it_is_published_once() {
    let world = World::new().await;
    let other = worker(&world.folder, &world.store, &world.lake, &world.online, "two");
    let ids = [world.plan(1, 0).await, world.plan(2, 0).await, world.plan(3, 0).await];
    let (one, two) = tokio::join!(
        world.worker.run_only(&ids, CancellationToken::new()),
        other.run_only(&ids, CancellationToken::new())
    );
    one.unwrap();
    two.unwrap();
    for id in ids {
        assert_eq!(world.store.run(id).await.unwrap().0.state, RunState::Succeeded);
    }
    // runs that nobody put in order publish in any order; each interval stands once
    let rows = world.lake("revenue@v1", "SELECT shop, interval_start FROM t").await;
    assert_eq!(rows.lines().count() - 4, 5, "two, two and one shop:\n{rows}");
    assert_eq!(world.store.snapshots(None, None, 0).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_stopped_worker_hands_back_and_another_finishes() {
    let world = World::new().await;
    let id = world.plan(1, 0).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    world.worker.run_only(&[id], cancel).await.unwrap();
    assert_ne!(world.store.run(id).await.unwrap().0.state, RunState::Succeeded);
    let other = worker(&world.folder, &world.store, &world.lake, &world.online, "two");
    other.run_only(&[id], CancellationToken::new()).await.unwrap();
    assert_eq!(world.store.run(id).await.unwrap().0.state, RunState::Succeeded);
}

/// A view that multiplies the receipts with themselves until nobody waits for it.
pub(crate) fn endless() -> String {
    let product = (0..12).map(|n| format!("receipts AS r{n}")).collect::<Vec<_>>().join(", ");
    DEFINITIONS.replace(
        "SELECT shop, sum(total) AS total, count(*) AS days FROM history.revenue GROUP BY shop",
        &format!("SELECT r0.shop AS shop, CAST(sum(r1.amount) AS DOUBLE) AS total, count(*) AS days FROM {product} GROUP BY r0.shop"),
    )
}

#[tokio::test]
async fn a_task_that_takes_too_long_fails_and_its_worker_lives() {
    let world = World::with(&endless().replace("retries:", "timeout: 1s\n    retries:")).await;
    let run = world.execute(1, 0).await;
    assert_eq!(run.state, RunState::Failed);
    let (_, tasks) = world.store.run(run.id).await.unwrap();
    let errors: Vec<&str> = tasks.iter().filter_map(|task| task.error.as_deref()).collect();
    assert_eq!(errors, ["the task took longer than its timeout of 1s"]);
    assert_eq!(world.staged_files(), 0, "nothing of it is left");
}

#[tokio::test]
async fn a_cancelled_run_stops_and_leaves_nothing() {
    let world = World::with(&endless()).await;
    let id = world.plan(1, 0).await;
    let cancel = async {
        while world.store.run(id).await.unwrap().0.state != RunState::Running {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.store.run_cancel(id, "ana", at("2024-01-05T00:00:00Z")).await.unwrap();
    };
    let ids = [id];
    let (done, ()) = tokio::join!(world.worker.run_only(&ids, CancellationToken::new()), cancel);
    done.unwrap();
    assert_eq!(world.store.run(id).await.unwrap().0.state, RunState::Cancelled);
    assert_eq!(world.staged_files(), 0, "nothing of it is left");
    assert!(world.store.snapshots(None, None, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failure_that_passes_is_tried_again() {
    let world = World::with(&DEFINITIONS.replace("{max: 0,", "{max: 5,")).await;
    let source = world.folder.path().join("receipts.csv");
    std::fs::remove_file(&source).unwrap();
    let id = world.plan(1, 0).await;
    let mend = async {
        while world.store.run(id).await.unwrap().1[0].error.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::fs::write(&source, RECEIPTS).unwrap();
    };
    let ids = [id];
    let (done, ()) = tokio::join!(world.worker.run_only(&ids, CancellationToken::new()), mend);
    done.unwrap();
    let (run, tasks) = world.store.run(id).await.unwrap();
    assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
    assert!(tasks[0].attempts >= 2, "attempts: {}", tasks[0].attempts);
}

#[tokio::test]
async fn a_source_that_changes_during_a_run_starts_it_again_and_is_read_as_it_is_then() {
    let world = World::new().await;
    let id = world.plan(1, 0).await;
    let change = async {
        // pinned, and not yet decided
        while world.store.run(id).await.unwrap().1[0].output.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::write(world.folder.path().join("receipts.csv"), RECEIPTS.replace("11:00:00Z,20", "11:00:00Z,200"))
            .unwrap();
    };
    let ids = [id];
    let (done, ()) = tokio::join!(world.worker.run_only(&ids, CancellationToken::new()), change);
    done.unwrap();
    let (run, _) = world.store.run(id).await.unwrap();
    assert_eq!((run.state, run.restarts), (RunState::Succeeded, 1), "{:?}", run.reason);
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "210.0"), ("receipts", "2")]));
}
