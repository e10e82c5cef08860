//! The small project that this crate's tests run, and where it keeps what it has: a registry, a lake in a folder or in an
//! object store, an online store.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::TryStreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tidegate_registry::definitions::{LoadOptions, load};
use tidegate_registry::ids::{DagName, ProjectName, RunId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::plan::diff;
use tidegate_registry::run::{Cause, NewRun, Run, RunState};
use tidegate_registry::store::{ApplyRequest, Store};
use tidegate_registry::time::{Clock, FixedClock, Instant, Interval};
use tidegate_servers::{S3Endpoint, S3Fake};
use tidegate_store::SqliteStore;
use tidegate_store::faults::{Fault, FaultStore, Script};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::entity_key;
use crate::lake::Lake;
use crate::objects::{Patience, Stores, testing};
use crate::online::{OnlineStore, SqliteOnline};
use crate::sources::Sources;
use crate::{Worker, WorkerOptions, WorkerParts};

/// What sources outside of the project may lie in.
const ROOT: &str = "s3://lake";

/// Short, for a lease.
pub(crate) const ATTENTIVE: Duration = Duration::from_millis(4_500);

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

pub(crate) const RECEIPTS: &str = "shop,at,amount
a,2024-01-01T10:00:00Z,10
a,2024-01-01T11:00:00Z,20
b,2024-01-01T12:00:00Z,70
a,2024-01-02T09:00:00Z,50
b,2024-01-02T09:30:00Z,50
b,2024-01-03T09:30:00Z,60
a,2024-01-04T09:30:00Z,5000
b,2024-01-04T09:30:00Z,60
";

/// A view that multiplies the receipts with themselves until nobody waits for it.
pub(crate) fn endless() -> String {
    let product = (0..12).map(|n| format!("receipts AS r{n}")).collect::<Vec<_>>().join(", ");
    DEFINITIONS.replace(
        "SELECT shop, sum(total) AS total, count(*) AS days FROM history.revenue GROUP BY shop",
        &format!("SELECT r0.shop AS shop, CAST(sum(r1.amount) AS DOUBLE) AS total, count(*) AS days FROM {product} GROUP BY r0.shop"),
    )
}

/// [`DEFINITIONS`] with these views only and without their checks, so that any receipts will do.
pub(crate) fn only(views: &[&str]) -> String {
    let (head, rest) = DEFINITIONS.split_once("feature_views:\n").unwrap();
    let (written, dags) = rest.split_once("dags:\n").unwrap();
    let mut text = format!("{head}feature_views:\n");
    for view in written.split("  - name: ").filter(|view| views.contains(&view.lines().next().unwrap_or_default())) {
        let (before, checked) = view.split_once("    checks:\n").unwrap_or((view, ""));
        let after = checked.lines().skip_while(|line| line.starts_with("      "));
        text += &format!("  - name: {before}{}\n", after.collect::<Vec<_>>().join("\n"));
    }
    text + "dags:\n" + &dags.replace("[revenue, ranking, lifetime, last_receipt]", &format!("[{}]", views.join(", ")))
}

/// Where a world's lake and source lie.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In the world's folder.
    Folder,
    /// In an object store, below a URL.
    Store(Box<Stores>, Url),
}

impl Place {
    /// One that nobody else has, in a server's store.
    pub(crate) fn in_store(endpoint: &S3Endpoint, patience: Patience) -> Self {
        Self::Store(Box::new(testing::stores(endpoint, patience)), testing::place())
    }

    /// One that nobody else has, in a store that no test harms.
    pub(crate) fn in_object_store() -> Self {
        static FAKE: OnceLock<S3Fake> = OnceLock::new();
        Self::in_store(&FAKE.get_or_init(testing::fake).endpoint(), Patience::default())
    }

    /// The lake as a process finds it that has seen nothing of it yet.
    fn lake(&self, folder: &Path) -> Lake {
        match self {
            Self::Folder => Lake::open(folder.join("lake").to_str().unwrap(), "shop").unwrap(),
            Self::Store(stores, root) => Lake::open_in(&root.join("lake").unwrap(), stores, "shop").unwrap(),
        }
    }

    fn sources(&self, folder: &Path) -> Sources {
        let stores = match self {
            Self::Folder => Stores::default(),
            Self::Store(stores, _) => (**stores).clone(),
        };
        Sources::with_stores(folder, &[ROOT.to_owned()], stores).unwrap()
    }

    /// The store, and the key of what `path` names in it.
    fn find(&self, path: &str) -> Option<(Arc<dyn ObjectStore>, Key)> {
        let Self::Store(stores, root) = self else { return None };
        Some((stores.get(root).unwrap(), Key::parse(format!("{}{path}", root.path())).unwrap()))
    }

    /// The objects below a folder of the lake, as paths in it, in order.
    async fn objects(&self, folder: &Path, below: &str) -> Vec<String> {
        let mut found = Vec::new();
        if let Some((store, key)) = self.find(&format!("lake/{below}")) {
            let listed: Vec<_> = store.list(Some(&key)).try_collect().await.unwrap();
            let relative = |of: &Key| format!("{below}{}", of.as_ref().strip_prefix(key.as_ref()).unwrap());
            found.extend(listed.iter().map(|object| relative(&object.location)));
        } else {
            let lake = folder.join("lake");
            let mut open = vec![lake.join(below)];
            while let Some(folder) = open.pop() {
                for entry in std::fs::read_dir(folder).into_iter().flatten() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        open.push(path);
                    } else {
                        found.push(path.strip_prefix(&lake).unwrap().to_str().unwrap().to_owned());
                    }
                }
            }
        }
        found.sort();
        found
    }
}

/// Runs each test with the lake in a folder, and with the lake in an object store: a test takes the [`Place`].
macro_rules! in_every_place {
    ($($name:ident,)+) => {
        mod in_a_folder {
            $(#[tokio::test] async fn $name() { super::$name(crate::tests::Place::Folder).await; })+
        }
        mod in_an_object_store {
            $(#[tokio::test] async fn $name() { super::$name(crate::tests::Place::in_object_store()).await; })+
        }
    };
}
pub(crate) use in_every_place;

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) place: Place,
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
        Self::on(definitions, online, Place::Folder).await
    }

    /// With lake and source in this place.
    pub(crate) async fn at(place: Place, definitions: &str) -> Self {
        Self::on(definitions, None, place).await
    }

    async fn on(definitions: &str, online: Option<Arc<dyn OnlineStore>>, place: Place) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = format!("project: shop\nonline: sqlite://online.db\nallowed_roots: ['{ROOT}']\n");
        std::fs::write(folder.path().join("tidegate.yaml"), settings).unwrap();
        let definitions = match &place {
            Place::Folder => definitions.to_owned(),
            Place::Store(_, root) => {
                definitions.replace("csv: receipts.csv", &format!("csv: '{}'", root.join("receipts.csv").unwrap()))
            }
        };
        std::fs::write(folder.path().join("shop.yaml"), definitions).unwrap();
        sell(&place, folder.path(), RECEIPTS).await;
        let loaded = load(folder.path(), &LoadOptions::default());
        let project = loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        let store = SqliteStore::open(&folder.path().join("registry.db")).await.unwrap();
        let lake = place.lake(folder.path());
        lake.claim(store.info().await.unwrap().id).await.unwrap();
        apply(&store, &lake, &project).await;
        store.close().await;
        Self::open(folder, place, Arc::new(project), online).await
    }

    /// A world that was made before, or a copy of one: what `folder` and `place` hold.
    pub(crate) async fn open(
        folder: tempfile::TempDir,
        place: Place,
        project: Arc<Project>,
        online: Option<Arc<dyn OnlineStore>>,
    ) -> Self {
        let store = Arc::new(SqliteStore::open(&folder.path().join("registry.db")).await.unwrap());
        let sqlite = SqliteOnline::open(&folder.path().join("online.db")).await.unwrap();
        let online = online.unwrap_or_else(|| Arc::new(sqlite));
        let lake = place.lake(folder.path());
        let worker = worker(&folder, &store, &lake, &online, "one", &place);
        Self { folder, place, store, lake, online, project, worker }
    }

    /// What a worker of this project works with.
    pub(crate) fn parts(&self, owner: &str) -> WorkerParts {
        let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&self.store);
        parts(clock(), &self.folder, store, &self.lake, &self.online, owner, self.place.sources(self.folder.path()))
    }

    /// The same project on another registry.
    pub(crate) async fn on_registry(self, store: SqliteStore) -> Self {
        let (store, lake) = (Arc::new(store), self.fresh_lake());
        apply(&store, &lake, &self.project).await;
        let worker = worker(&self.folder, &store, &lake, &self.online, "two", &self.place);
        Self { store, lake, worker, ..self }
    }

    /// The same as a process finds it that has seen nothing of it yet.
    pub(crate) fn afresh(self) -> Self {
        let lake = self.fresh_lake();
        let worker = worker(&self.folder, &self.store, &lake, &self.online, "two", &self.place);
        Self { lake, worker, ..self }
    }

    /// A lake that has seen nothing yet.
    pub(crate) fn fresh_lake(&self) -> Lake {
        self.place.lake(self.folder.path())
    }

    /// Another worker of the same project.
    pub(crate) fn another_worker(&self, owner: &str) -> Worker {
        worker(&self.folder, &self.store, &self.lake, &self.online, owner, &self.place)
    }

    /// A worker with a lease of [`ATTENTIVE`]: it learns of a lost one within a third of that, and loses none on a
    /// machine that stands still for two.
    pub(crate) fn attentive_worker(&self) -> Worker {
        let parts = self.parts("attentive");
        Worker::new(WorkerParts { options: WorkerOptions { lease: ATTENTIVE, ..parts.options }, ..parts }).unwrap()
    }

    /// A worker for which `change` happens when its first task has been computed, before the registry knows.
    pub(crate) fn worker_with_change(&self, change: impl FnOnce() + Send + 'static) -> Worker {
        let parts = self.parts("one");
        let script = Arc::new(Meanwhile(Mutex::new(Some(Box::new(change)))));
        Worker::new(WorkerParts { store: Arc::new(FaultStore::new(parts.store, script)), ..parts }).unwrap()
    }

    /// Lets the source hold these receipts.
    pub(crate) async fn sell(&self, receipts: &str) {
        sell(&self.place, self.folder.path(), receipts).await;
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

    /// The objects below a folder of the lake, as paths in it, in order.
    pub(crate) async fn objects(&self, below: &str) -> Vec<String> {
        self.place.objects(self.folder.path(), below).await
    }

    /// What an object of the lake holds.
    pub(crate) async fn read(&self, path: &str) -> String {
        let bytes = match self.place.find(&format!("lake/{path}")) {
            Some((store, key)) => store.get(&key).await.unwrap().bytes().await.unwrap().to_vec(),
            None => std::fs::read(self.folder.path().join("lake").join(path)).unwrap(),
        };
        String::from_utf8(bytes).unwrap()
    }

    /// Writes an object of the lake behind everybody's back.
    pub(crate) async fn write(&self, path: &str, content: &str) {
        write(&self.place, self.folder.path(), &format!("lake/{path}"), content).await;
    }

    /// Deletes an object of the lake, or all of a folder, behind everybody's back.
    pub(crate) async fn remove(&self, path: &str) {
        let found =
            if path.ends_with('/') { self.objects(path.trim_end_matches('/')).await } else { vec![path.to_owned()] };
        assert!(!found.is_empty(), "there is nothing at {path}");
        for path in found {
            match self.place.find(&format!("lake/{path}")) {
                Some((store, key)) => store.delete(&key).await.unwrap(),
                None => std::fs::remove_file(self.folder.path().join("lake").join(path)).unwrap(),
            }
        }
    }

    /// How many data files the lake holds, whether or not a table names them.
    pub(crate) async fn staged_files(&self) -> usize {
        let data = |path: &&String| path.ends_with(".parquet") && !path.contains("_delta_log");
        self.objects("features").await.iter().filter(data).count()
    }
}

/// A script in which nothing goes wrong; what it holds happens before the first task ends.
struct Meanwhile(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl Script for Meanwhile {
    fn next(&self, method: &'static str) -> Fault {
        if method == "task_end"
            && let Some(change) = self.0.lock().unwrap().take()
        {
            change();
        }
        Fault::NONE
    }
}

/// Applies the whole project for the first time.
async fn apply(store: &SqliteStore, lake: &Lake, project: &Project) {
    let empty = Project::empty(ProjectName::new("shop").unwrap());
    let views: Vec<ViewId> = project.views.keys().cloned().collect();
    let request = ApplyRequest {
        project: "shop".to_owned(),
        base: 0,
        changes: diff(0, &empty, project, &BTreeSet::new()).unwrap().changes(),
        tables: lake.ensure_tables(project, &views).await.unwrap(),
        actor: "test".to_owned(),
        message: None,
        now: at("2024-01-05T00:00:00Z"),
    };
    store.apply(request).await.unwrap();
}

async fn sell(place: &Place, folder: &Path, receipts: &str) {
    write(place, folder, "receipts.csv", receipts).await;
}

async fn write(place: &Place, folder: &Path, path: &str, content: &str) {
    if let Some((store, key)) = place.find(path) {
        store.put(&key, content.to_owned().into()).await.unwrap();
        return;
    }
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn worker(
    folder: &tempfile::TempDir,
    store: &Arc<SqliteStore>,
    lake: &Lake,
    online: &Arc<dyn OnlineStore>,
    owner: &str,
    place: &Place,
) -> Worker {
    worker_by(clock(), folder, store, lake, online, owner, place.sources(folder.path()))
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
    Worker::new(parts(clock, folder, store, lake, online, owner, sources)).unwrap()
}

fn parts(
    clock: Arc<dyn Clock>,
    folder: &tempfile::TempDir,
    store: Arc<dyn Store>,
    lake: &Lake,
    online: &Arc<dyn OnlineStore>,
    owner: &str,
    sources: Sources,
) -> WorkerParts {
    WorkerParts {
        store,
        clock,
        lake: lake.clone(),
        online: Some(Arc::clone(online)),
        sources,
        options: WorkerOptions {
            owner: owner.to_owned(),
            // No machine stands still for so long.
            lease: Duration::from_secs(60),
            slots: 2,
            queues: Vec::new(),
            host: "here".to_owned(),
            memory_bytes: 256 << 20,
            spill_dir: PathBuf::from(folder.path()).join("spill"),
        },
        wake: Arc::new(Notify::new()),
        progress: Arc::new(Notify::new()),
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(FixedClock(at("2024-01-05T00:00:00Z")))
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
