//! What a commit promises, against the pinned delta-rs: one version with the right content, whatever comes back.

mod faulty;
mod s3;
mod suite;

use std::collections::BTreeMap;
use std::path::Path as FsPath;
use std::sync::Arc;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int64Type};
use datafusion::prelude::SessionContext;
use deltalake::kernel::Add;
use indexmap::IndexMap;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::ids::{EntityName, OwnerName, ProjectName, RunId, ViewId};
use tidegate_registry::model::{ColumnType, Entity, Feature, FeatureView, Key, Output, Project, SqlText};
use tidegate_registry::run::{Pins, StagedView, ViewPin};
use tidegate_registry::time::{Instant, Interval};
use tidegate_servers::{S3Endpoint, S3Fake};
use url::Url;

use super::{CommitError, CommitRequest, Committed, Lake};
use crate::engine::Engine;
use crate::lake::Replaces;
use crate::objects::{Patience, testing};
use crate::reads::{RunReads, column, scan};
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
        checked_against: Vec::new(),
        output: Output::Full,
        serving_delay: std::time::Duration::ZERO,
        features: vec![feature("flights", ColumnType::Bigint), feature("half", ColumnType::Double)],
        checks: Vec::new(),
        online: None,
        freshness: None,
        restore_target: None,
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

/// What a lake lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Folder,
    Fake,
    Moto,
}

fn in_store(endpoint: &S3Endpoint, patience: Patience) -> Lake {
    Lake::open_in(&testing::place(), &testing::stores(endpoint, patience), "test").unwrap()
}

/// A lake of its own, with what is needed to stage into it.
struct World {
    folder: tempfile::TempDir,
    engine: Engine,
    lake: Lake,
    /// Only on [`On::Fake`].
    fake: Option<S3Fake>,
}

impl World {
    async fn new(on: On) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = (on == On::Fake).then(testing::fake);
        let lake = match (on, &fake) {
            (On::Moto, _) => in_store(&testing::moto(), Patience::default()),
            (_, Some(fake)) => in_store(&fake.endpoint(), Patience::default()),
            (_, None) => Lake::open(folder.path().join("lake").to_str().unwrap(), "test").unwrap(),
        };
        Self::over(folder, lake, fake).await
    }

    /// On a fake of its own, waiting less than people would.
    async fn on_fake() -> Self {
        let fake = testing::fake();
        let lake = in_store(&fake.endpoint(), testing::short());
        Self::over(tempfile::tempdir().unwrap(), lake, Some(fake)).await
    }

    async fn over(folder: tempfile::TempDir, lake: Lake, fake: Option<S3Fake>) -> Self {
        lake.ensure_tables(&project(0), &[view()]).await.unwrap();
        let engine = Engine::new(256 << 20, &folder.path().join("spill")).unwrap();
        Self { folder, engine, lake, fake }
    }

    /// The same lake through a store that does something to requests.
    fn lake_over<S: ObjectStore>(&self, through: impl FnOnce(Arc<dyn ObjectStore>) -> S) -> Lake {
        Lake::with_store(self.lake.root().clone(), Arc::new(through(Arc::clone(&self.lake.store))), "test")
    }

    /// The same lake as a process sees it that has read nothing yet.
    fn fresh_lake(&self) -> Lake {
        Lake::with_store(self.lake.root().clone(), Arc::clone(&self.lake.store), "test")
    }

    async fn stage(&self, run: RunId, interval: Interval, flights: i64) -> Vec<Add> {
        self.try_stage(run, interval, flights).await.unwrap()
    }

    async fn try_stage(&self, run: RunId, interval: Interval, flights: i64) -> anyhow::Result<Vec<Add>> {
        let project = project(flights);
        let staged = self.stage_sql(run, interval, &project.views[&view()].sql.text).await?;
        assert_eq!(staged.rows, 2);
        assert!(staged.checks.iter().all(|check| !check.blocks()), "{:?}", staged.checks);
        Ok(staged.adds.into_iter().map(|add| serde_json::from_value(add).unwrap()).collect())
    }

    async fn stage_sql(&self, run: RunId, interval: Interval, sql: &str) -> anyhow::Result<StagedView> {
        let mut project = project(0);
        sql.clone_into(&mut project.views[&view()].sql.text);
        let pins =
            Pins { views: IndexMap::from([(view(), ViewPin { delta_version: 0, state: None })]), ..Pins::default() };
        let request = StageRequest {
            reads: RunReads {
                project: Arc::new(project),
                lake: self.lake.clone(),
                sources: Sources::new(self.folder.path(), &[]).unwrap(),
                interval,
                pins,
                staged: IndexMap::new(),
            },
            view: view(),
            run,
            attempt: "0-1".to_owned(),
            readmit: None,
            now: interval.end(),
            profile: true,
        };
        stage(&self.engine, &request).await
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
    let replaces = Replaces::Slice(interval);
    let restored = None;
    lake.commit(&CommitRequest { view: &view, publish_number, publish_number_max, replaces, adds, run, note, restored })
        .await
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

#[test]
fn a_lake_elsewhere_is_refused_by_name() {
    for place in ["s3://bucket/lake", "https://example.com/lake"] {
        let error = Lake::open(place, "test").unwrap_err();
        assert!(error.to_string().contains("is no local folder"), "{error}");
    }
}

#[test]
fn tables_lie_where_the_layout_says() {
    let root = Url::from_directory_path(FsPath::new("/lake")).unwrap();
    let lake = Lake::with_store(root, Arc::new(LocalFileSystem::new()), "test");
    assert_eq!(lake.table_url(&view()).as_str(), "file:///lake/features/carrier_delays/v1/");
}

/// Other writers may do as they like, and then rows are no longer what files hold.
#[tokio::test]
async fn a_table_that_another_writer_upgraded_is_refused_by_the_name_of_the_feature() {
    for feature in ["deletionVectors", "columnMapping"] {
        let world = World::new(On::Folder).await;
        world.lake.require_known(&view(), 0).await.unwrap();
        let log = world.lake.table_url(&view()).to_file_path().unwrap().join("_delta_log/00000000000000000001.json");
        let upgrade = serde_json::json!({"protocol": {
            "minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [feature], "writerFeatures": [feature],
        }});
        std::fs::write(log, upgrade.to_string()).unwrap();
        let error = world.lake.require_known(&view(), 0).await.unwrap_err();
        let error = crate::execute::chain(&error.into());
        assert!(error.contains(&format!("upgraded the table to `{feature}`")), "{error}");
    }
}
