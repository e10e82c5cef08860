//! What a commit promises, against the pinned delta-rs: one version with the right content, whatever comes back.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int64Type};
use datafusion::prelude::SessionContext;
use deltalake::kernel::Add;
use futures::stream::BoxStream;
use indexmap::IndexMap;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::ids::{EntityName, OwnerName, ProjectName, RunId, ViewId};
use tidegate_registry::model::{ColumnType, Entity, Feature, FeatureView, Key, Output, Project, SqlText};
use tidegate_registry::run::{Pins, ViewPin};
use tidegate_registry::time::{Instant, Interval};
use url::Url;

use super::{CommitError, CommitRequest, Committed, Lake};
use crate::engine::Engine;
use crate::reads::{RunReads, column, scan, slice, state_schema};
use crate::sources::Sources;
use crate::stage::{StageRequest, stage};

/// A project with one view whose query needs no source: two carriers, with a number that the test chooses.
fn project(flights: i64) -> Project {
    let mut project = Project::empty(ProjectName::new("test").unwrap());
    let entity = EntityName::new("carrier").unwrap();
    let key = Key { name: "carrier".to_owned(), kind: ColumnType::String };
    project.entities.insert(entity.clone(), Entity { name: entity.clone(), keys: vec![key], description: None });
    let feature = |name: &str, kind| Feature {
        name: name.to_owned(),
        kind,
        description: String::new(),
        default: None,
        tags: Vec::new(),
        origin: Origin::default(),
    };
    let view = FeatureView {
        id: view(),
        entity,
        owner: OwnerName::new("delays").unwrap(),
        description: String::new(),
        tags: Vec::new(),
        sql: SqlText {
            text: format!(
                "SELECT carrier, flights, CAST(flights AS DOUBLE) / 2 AS half \
                 FROM (VALUES ('UA', {flights}), ('AA', {})) AS t (carrier, flights)",
                flights + 1
            ),
            origin: Origin::default(),
        },
        reads: Vec::new(),
        output: Output::Full,
        serving_delay: std::time::Duration::ZERO,
        features: vec![feature("flights", ColumnType::Bigint), feature("half", ColumnType::Double)],
        checks: Vec::new(),
        online: None,
        freshness: None,
        queue: None,
        pool: None,
        fingerprint: "test".to_owned(),
        origin: Origin::default(),
    };
    project.views.insert(view.id.clone(), view);
    project
}

fn view() -> ViewId {
    "carrier_delays@v1".parse().unwrap()
}

fn day(day: u32) -> Interval {
    let at = |day: u32| format!("2013-01-{day:02}T07:15:00Z").parse::<Instant>().unwrap();
    Interval::new(at(day), at(day + 1)).unwrap()
}

/// A lake in a temporary folder, with what is needed to stage into it.
struct World {
    folder: tempfile::TempDir,
    engine: Engine,
    lake: Lake,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::open(folder.path().join("lake").to_str().unwrap(), "test").unwrap();
        lake.ensure_tables(&project(0), &[view()]).await.unwrap();
        let engine = Engine::new(256 << 20, &folder.path().join("spill")).unwrap();
        Self { folder, engine, lake }
    }

    /// The same lake through a store that does something to requests.
    fn lake_over(&self, store: impl ObjectStore) -> Lake {
        Lake::with_store(self.lake.root().clone(), Arc::new(store), "test")
    }

    async fn stage(&self, run: RunId, interval: Interval, flights: i64) -> Vec<Add> {
        let pins =
            Pins { views: IndexMap::from([(view(), ViewPin { delta_version: 0, state: None })]), ..Pins::default() };
        let request = StageRequest {
            reads: RunReads {
                project: Arc::new(project(flights)),
                lake: self.lake.clone(),
                sources: Sources::new(self.folder.path(), &[]).unwrap(),
                interval,
                pins,
                staged: IndexMap::new(),
            },
            view: view(),
            run,
            attempt: "0-1".to_owned(),
        };
        let staged = stage(&self.engine, &request).await.unwrap();
        assert_eq!(staged.rows, 2);
        assert!(staged.checks.iter().all(|check| !check.blocks()), "{:?}", staged.checks);
        staged.adds.into_iter().map(|add| serde_json::from_value(add).unwrap()).collect()
    }

    async fn commit(&self, number: u64, interval: Interval, adds: &[Add]) -> Result<Committed, CommitError> {
        commit(&self.lake, number, interval, adds).await
    }

    /// What a reader of the table's head sees: flights by interval start and carrier.
    async fn content(&self) -> BTreeMap<(String, String), (i64, f64)> {
        read(&self.lake.load(&view(), None).await.unwrap()).await
    }

    async fn head(&self) -> u64 {
        self.lake.load(&view(), None).await.unwrap().version().unwrap()
    }
}

async fn commit(lake: &Lake, number: u64, interval: Interval, adds: &[Add]) -> Result<Committed, CommitError> {
    let (view, run) = (view(), publisher(number));
    let (publish_number, publish_number_max, note) = (number, 9, None);
    lake.commit(&CommitRequest { view: &view, publish_number, publish_number_max, interval, adds, run, note }).await
}

/// The run whose publication has `number`.
fn publisher(number: u64) -> RunId {
    format!("00000000-0000-7000-8000-{number:012}").parse().unwrap()
}

async fn read(table: &deltalake::DeltaTable) -> BTreeMap<(String, String), (i64, f64)> {
    let ctx = SessionContext::new();
    let rows = scan(&ctx, table).await.unwrap();
    let text = datafusion::arrow::datatypes::DataType::Utf8;
    let cast = |name| datafusion::logical_expr::cast(column(name), text.clone()).alias(name);
    let rows = rows.select(vec![cast("interval_start"), cast("carrier"), column("flights"), column("half")]).unwrap();
    let mut content = BTreeMap::new();
    for batch in rows.collect().await.unwrap() {
        gather(&batch, &mut content);
    }
    content
}

fn gather(batch: &RecordBatch, content: &mut BTreeMap<(String, String), (i64, f64)>) {
    let start = batch.column(0).as_string::<i32>();
    let carrier = batch.column(1).as_string::<i32>();
    let flights = batch.column(2).as_primitive::<Int64Type>();
    let half = batch.column(3).as_primitive::<Float64Type>();
    for row in 0..batch.num_rows() {
        let key = (start.value(row).to_owned(), carrier.value(row).to_owned());
        let twice = content.insert(key, (flights.value(row), half.value(row)));
        assert!(twice.is_none(), "a row stands twice");
    }
}

fn rows(days: &[(u32, i64)]) -> BTreeMap<(String, String), (i64, f64)> {
    days.iter()
        .flat_map(|(day, flights)| {
            let key = |carrier: &str| (format!("2013-01-{day:02}T07:15:00Z"), carrier.to_owned());
            [(key("UA"), (*flights, *flights as f64 / 2.0)), (key("AA"), (flights + 1, (flights + 1) as f64 / 2.0))]
        })
        .collect()
}

#[tokio::test]
async fn staged_rows_are_invisible_until_they_are_committed_and_then_stand_once() {
    let world = World::new().await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    assert_eq!(world.content().await, rows(&[]));
    assert_eq!(adds[0].partition_values["interval_start"].as_deref(), Some("2013-01-08T07:15:00.000000Z"));
    let done = world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!((done.version, done.before), (1, false));
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

#[tokio::test]
async fn a_commit_replaces_its_slice_and_no_other() {
    let world = World::new().await;
    for (number, (d, flights)) in [(8, 10), (9, 20), (8, 30)].into_iter().enumerate() {
        let adds = world.stage(RunId::generate(), day(d), flights).await;
        world.commit(number as u64 + 1, day(d), &adds).await.unwrap();
    }
    assert_eq!(world.content().await, rows(&[(8, 30), (9, 20)]));
    // an empty slice removes what was there
    world.commit(4, day(9), &[]).await.unwrap();
    assert_eq!(world.content().await, rows(&[(8, 30)]));
}

#[tokio::test]
async fn committing_the_same_publication_again_finds_it_done() {
    let world = World::new().await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    let first = world.commit(1, day(8), &adds).await.unwrap();
    let again = world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!((again.version, again.before), (first.version, true));
    assert_eq!(world.head().await, 1);
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

#[tokio::test]
async fn an_older_run_that_wakes_after_a_newer_one_committed_changes_nothing() {
    let world = World::new().await;
    let old = world.stage(RunId::generate(), day(8), 10).await;
    let new = world.stage(RunId::generate(), day(8), 20).await;
    world.commit(2, day(8), &new).await.unwrap();
    let error = world.commit(1, day(8), &old).await.unwrap_err();
    assert!(matches!(error, CommitError::Superseded { mark: 2, ours: 1, .. }), "{error}");
    assert_eq!((world.head().await, world.content().await), (1, rows(&[(8, 20)])));
}

#[tokio::test]
async fn two_workers_with_the_same_intent_make_one_version() {
    let world = World::new().await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    let (one, two) = (world.lake.clone(), world.lake.clone());
    let (one, two) = tokio::join!(commit(&one, 1, day(8), &adds), commit(&two, 1, day(8), &adds));
    assert_eq!((one.unwrap().version, two.unwrap().version), (1, 1));
    assert_eq!((world.head().await, world.content().await), (1, rows(&[(8, 10)])));
}

#[tokio::test]
async fn two_runs_of_different_slices_both_land() {
    let world = World::new().await;
    // publish numbers are exclusive per view, so the second waits for the first; rivals are compactions and the like
    for number in 1..=5 {
        let adds = world.stage(RunId::generate(), day(7 + number), i64::from(number)).await;
        world.commit(u64::from(number), day(7 + number), &adds).await.unwrap();
    }
    assert_eq!(world.content().await, rows(&[(8, 1), (9, 2), (10, 3), (11, 4), (12, 5)]));
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_recognised_as_done() {
    let world = World::new().await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    for fault in [Fault::AnswerLost, Fault::AnswerSaysExists] {
        let world_adds =
            if fault == Fault::AnswerLost { adds.clone() } else { world.stage(RunId::generate(), day(8), 20).await };
        let number = if fault == Fault::AnswerLost { 1 } else { 2 };
        let lake = world.lake_over(FaultyLog::new(fault, 1));
        let done = commit(&lake, number, day(8), &world_adds).await.unwrap();
        assert_eq!(done.version, number, "{fault:?}");
        assert_eq!(world.head().await, number, "{fault:?}: one version for one commit");
    }
    assert_eq!(world.content().await, rows(&[(8, 20)]));
}

#[tokio::test]
async fn a_commit_that_fails_before_it_lands_is_tried_again() {
    let world = World::new().await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    let lake = world.lake_over(FaultyLog::new(Fault::RequestLost, 3));
    assert_eq!(commit(&lake, 1, day(8), &adds).await.unwrap().version, 1);
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

#[tokio::test]
async fn a_missing_staged_file_is_never_committed() {
    let world = World::new().await;
    let run = RunId::generate();
    let adds = world.stage(run, day(8), 10).await;
    assert_eq!(world.lake.discard_staged(&view(), run, &[]).await.unwrap(), 1);
    let error = world.commit(1, day(8), &adds).await.unwrap_err();
    assert!(matches!(error, CommitError::StagedMissing { .. }), "{error}");
    assert_eq!(world.head().await, 0);
}

#[tokio::test]
async fn discarding_keeps_what_is_named() {
    let world = World::new().await;
    let run = RunId::generate();
    let adds = world.stage(run, day(8), 10).await;
    assert_eq!(world.lake.discard_staged(&view(), run, &[adds[0].path.clone()]).await.unwrap(), 0);
    world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

#[tokio::test]
async fn a_registry_that_is_older_than_the_lake_writes_nothing() {
    let world = World::new().await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    world.commit(9, day(8), &adds).await.unwrap();
    let (view, run) = (view(), RunId::generate());
    let request = CommitRequest {
        view: &view,
        publish_number: 3,
        publish_number_max: 3,
        interval: day(8),
        adds: &adds,
        run,
        note: None,
    };
    let error = world.lake.commit(&request).await.unwrap_err();
    assert!(matches!(error, CommitError::RegistryBehind { mark: 9, given_out: 3, .. }), "{error}");
    assert!(matches!(world.lake.require_known(&view, 3).await, Err(CommitError::RegistryBehind { .. })));
    world.lake.require_known(&view, 9).await.unwrap();
    // The same number, given out a second time, to another run.
    let again = CommitRequest { publish_number: 9, publish_number_max: 9, ..request };
    let error = world.lake.commit(&again).await.unwrap_err();
    assert!(matches!(error, CommitError::Foreign { mark: 9, .. }), "{error}");
    assert!(error.to_string().contains(&publisher(9).to_string()), "{error}");
}

#[tokio::test]
async fn an_overlay_shows_the_future_of_an_old_version_and_moves_nothing() {
    let world = World::new().await;
    for (number, (d, flights)) in [(8, 10), (9, 20), (10, 30)].into_iter().enumerate() {
        let adds = world.stage(RunId::generate(), day(d), flights).await;
        world.commit(number as u64 + 1, day(d), &adds).await.unwrap();
    }
    let staged = world.stage(RunId::generate(), day(9), 99).await;
    // version 2 is what a run pinned; version 3 came later and must not show
    let overlay = world.lake.overlay(&view(), 2, day(9), &staged).await.unwrap();
    assert_eq!(read(&overlay).await, rows(&[(8, 10), (9, 99)]));
    assert_eq!((world.head().await, world.content().await), (3, rows(&[(8, 10), (9, 20), (10, 30)])));

    let ctx = SessionContext::new();
    let schema = state_schema(&project(0), &project(0).views[&view()]);
    let state = slice(&ctx, &overlay, day(9), &schema).await.unwrap();
    assert_eq!(ctx.read_table(state).unwrap().count().await.unwrap(), 2);
}

#[tokio::test]
async fn a_lake_has_one_registry() {
    let world = World::new().await;
    let ours = tidegate_registry::ids::RegistryId::generate();
    world.lake.claim(ours).await.unwrap();
    world.lake.claim(ours).await.unwrap();
    let error = world.lake.claim(tidegate_registry::ids::RegistryId::generate()).await.unwrap_err();
    assert!(error.to_string().contains("belongs to project `test`"), "{error}");
}

#[tokio::test]
async fn a_table_is_made_once_and_an_empty_one_may_change_its_columns() {
    let world = World::new().await;
    let versions = world.lake.ensure_tables(&project(0), &[view()]).await.unwrap();
    assert_eq!(versions[&view()], 0);
    let mut changed = project(0);
    changed.views[&view()].features[0].name = "departures".to_owned();
    assert_eq!(world.lake.ensure_tables(&changed, &[view()]).await.unwrap()[&view()], 1);
    let back = world.lake.ensure_tables(&project(0), &[view()]).await.unwrap();
    assert_eq!(back[&view()], 2);
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    world.commit(1, day(8), &adds).await.unwrap();
    let error = world.lake.ensure_tables(&changed, &[view()]).await.unwrap_err();
    assert!(error.to_string().contains("give the changed view a new `version:`"), "{error}");
}

#[test]
fn a_lake_elsewhere_is_refused_by_name() {
    for place in ["s3://bucket/lake", "https://example.com/lake"] {
        let error = Lake::open(place, "test").unwrap_err();
        assert!(error.to_string().contains("is not supported"), "{error}");
    }
}

#[test]
fn tables_lie_where_the_layout_says() {
    let root = Url::from_directory_path(FsPath::new("/lake")).unwrap();
    let lake = Lake::with_store(root, Arc::new(LocalFileSystem::new()), "test");
    assert_eq!(lake.table_url(&view()).as_str(), "file:///lake/features/carrier_delays/v1/");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The log entry lands, and the caller hears of an error.
    AnswerLost,
    /// The log entry lands, and a retry below the caller makes it hear that somebody else was first.
    AnswerSaysExists,
    /// The log entry does not land.
    RequestLost,
}

/// A local store that fails the next writes of log entries.
#[derive(Debug)]
struct FaultyLog {
    inner: LocalFileSystem,
    fault: Fault,
    left: AtomicU32,
}

impl FaultyLog {
    fn new(fault: Fault, times: u32) -> Self {
        Self { inner: LocalFileSystem::new(), fault, left: AtomicU32::new(times) }
    }
}

impl fmt::Display for FaultyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on {}", self.fault, self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyLog {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        let is_log = at.as_ref().contains("_delta_log");
        let strikes =
            is_log && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if !strikes {
            return self.inner.put_opts(at, payload, options).await;
        }
        if self.fault != Fault::RequestLost {
            self.inner.put_opts(at, payload, options).await?;
        }
        match self.fault {
            Fault::AnswerSaysExists => {
                Err(object_store::Error::AlreadyExists { path: at.to_string(), source: "it is there".into() })
            }
            _ => Err(object_store::Error::Generic { store: "test", source: "the connection was cut".into() }),
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
