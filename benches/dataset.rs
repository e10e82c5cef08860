//! `dataset build`, whole: 1,000,000 labels joined with 10,000,000 history rows of 200,000 entities over 90 days, 8 features that
//! live 30 days, from Delta tables that runs of the platform wrote day by day, to Parquet and to Delta, with digests, rates of
//! nulls and a manifest.
//!
//! With `--peers PYTHON`, an interpreter that has `duckdb` and `polars`, both join the same rows from one unsorted Parquet file
//! in the same run, in turns, and all results must be equal. Then five views of 10 features beside one, and a build that may
//! use so little memory that neither labels nor history fit.
//!
//! Every measurement is a process of its own, so that its peak memory is its own. CPU time is printed beside time because it
//! compares even on a busy machine.
//!
//! `cargo bench -p tidegate-worker --bench dataset --profile dist -- --peers PYTHON` measures what is shipped (`-- --labels
//! 100000 --rows 1000000` makes it smaller, `--folder DIR` keeps the tables for the next time: they take minutes to make); exits
//! with 1 when results differ.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its figures and stops at the first surprise"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_registry::dataset::{ColumnNames, Manifest};
use tidegate_registry::definitions::{LoadOptions, load};
use tidegate_registry::features::Selection;
use tidegate_registry::ids::{DagName, ProjectName};
use tidegate_registry::model::Project;
use tidegate_registry::plan::diff;
use tidegate_registry::restore::Restoring as _;
use tidegate_registry::run::{Cause, NewRun, RunState};
use tidegate_registry::store::{ApplyRequest, Store};
use tidegate_registry::time::{Clock, Interval, SystemClock};
use tidegate_store::SqliteStore;
use tidegate_worker::dataset::{DatasetParts, DatasetRequest, LABEL_TIME, Place, PlaceFormat, Spine, build};
use tidegate_worker::engine::Engine;
use tidegate_worker::lake::Lake;
use tidegate_worker::objects::Stores;
use tidegate_worker::sources::Sources;
use tidegate_worker::{Worker, WorkerOptions, WorkerParts};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[path = "support/training_set.rs"]
mod training_set;

use training_set::{
    Bench, COMPARED, DAYS, FEATURES, LITTLE_MEMORY, MEMORY, TTL_DAYS, cpu_seconds, option, peak_rss_bytes,
};

/// Views over the same rows, each with a table of its own.
const VIEWS: usize = 5;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Some(what) = option("--measure") {
        let folder = option("--folder").unwrap();
        let started = Instant::now();
        runtime.block_on(measure(&what, Path::new(&folder)));
        println!("{} {} {}", started.elapsed().as_secs_f64(), cpu_seconds(), peak_rss_bytes());
        return ExitCode::SUCCESS;
    }
    let bench = Bench::open();
    runtime.block_on(make_tables(&bench.folder));
    let (ours, faster) = bench.beside_peers(&["parquet", "delta"]);
    if let Some(faster) = faster {
        println!("dataset build / faster peer  {} (target: at most 0.6)", ours[0].ratio(faster));
        println!("the same to Delta            {}", ours[1].ratio(faster));
    }
    if !bench.equals_peers(&["out-parquet.parquet", "out-delta/*.parquet"]) {
        return ExitCode::FAILURE;
    }
    println!("with {} MB, on disk:", LITTLE_MEMORY >> 20);
    bench.measure(&["little-memory"]);
    let bytes = |out: &str| std::fs::read(bench.folder.join(out)).unwrap();
    if bytes("out-little-memory.parquet") != bytes("out-parquet.parquet") {
        println!("little memory gave another file");
        return ExitCode::FAILURE;
    }
    println!("one view of {FEATURES} features, and {VIEWS}:");
    let several = bench.measure(&["one-view", "five-views"]);
    println!("five / one                   {} (target: at most 2.5)", several[1].ratio(several[0]));
    ExitCode::SUCCESS
}

/// Builds one dataset.
async fn measure(what: &str, folder: &Path) {
    let world = World::open(folder).await;
    let (views, features) = match what {
        "one-view" => (1, FEATURES),
        "five-views" => (VIEWS, FEATURES),
        _ => (1, COMPARED),
    };
    let asked: Vec<_> = (0..views)
        .flat_map(|view| (0..features).map(move |feature| format!("v{view}.f{feature}").parse().unwrap()))
        .collect();
    let request = DatasetRequest {
        project: Arc::clone(&world.project),
        definitions: 1,
        spine: Spine::File { place: "labels.parquet".to_owned() },
        label_time: LABEL_TIME.to_owned(),
        features: Selection::of(&world.project, &asked).unwrap(),
        names: if views == 1 { ColumnNames::Short } else { ColumnNames::Full },
        number: world.store.number_at(SystemClock.now()).await.unwrap(),
        known_at: None,
    };
    let (out, format) = match what {
        "delta" => (folder.join("out-delta"), PlaceFormat::Delta),
        _ => (folder.join(format!("out-{what}.parquet")), PlaceFormat::Parquet),
    };
    let _ = std::fs::remove_dir_all(&out);
    let _ = std::fs::remove_file(&out);
    // Without it nobody could know that the build before has ended: the registry is not told of these.
    let _ = std::fs::remove_file(out.with_added_extension("manifest.json"));
    let place = Place::new(out.to_str().unwrap(), format, &Stores::default()).unwrap();
    let parts = DatasetParts {
        store: Arc::<SqliteStore>::clone(&world.store),
        lake: world.lake.clone(),
        sources: Sources::new(folder, &[]).unwrap(),
        spines: Sources::new(folder, &[]).unwrap(),
    };
    let memory = if what == "little-memory" { LITTLE_MEMORY } else { MEMORY };
    let engine = Arc::new(Engine::new(memory as u64, &folder.join("spill")).unwrap());
    let working = Arc::clone(&engine);
    let building =
        async move { build(&working, &parts, &request, &place, &CancellationToken::new(), &mut |_| {}).await };
    let manifest: Manifest = engine.run(building).await.unwrap().unwrap();
    assert!(
        manifest.output.columns.iter().any(|column| column.feature.is_some() && column.nulls < manifest.output.rows)
    );
}

/// Publishes every day of every view, unless the folder has them already.
async fn make_tables(folder: &Path) {
    if folder.join("made").exists() {
        return;
    }
    std::fs::write(folder.join("tidegate.yaml"), "project: bench\n").unwrap();
    std::fs::write(folder.join("bench.yaml"), definitions()).unwrap();
    let world = World::open(folder).await;
    world.apply().await;
    world.run_all(folder).await;
    std::fs::write(folder.join("made"), "").unwrap();
}

fn definitions() -> String {
    let mut text = "owners: [{name: me, primary: me@example.com}]
entities:
  - {name: one, keys: [{name: entity, type: bigint}]}
sources:
  - {name: history, parquet: 'day-*.parquet', event_time: event_timestamp}
feature_views:
"
    .to_owned();
    for view in 0..VIEWS {
        write!(
            text,
            "  - name: v{view}
    entity: one
    owner: me
    description: ten features
    output: partial
    ttl: {TTL_DAYS}d
    sql: |
      SELECT * FROM history WHERE event_timestamp >= $interval_start AND event_timestamp < $interval_end
    features:
"
        )
        .unwrap();
        for feature in 0..FEATURES {
            writeln!(text, "      - {{name: f{feature}, type: double, description: a number}}").unwrap();
        }
    }
    let views: Vec<String> = (0..VIEWS).map(|view| format!("v{view}")).collect();
    writeln!(
        text,
        "dags:
  - {{name: daily, owner: me, schedule: {{cron: '@daily', timezone: UTC, start: 2023-11-15}}, views: [{}]}}",
        views.join(", ")
    )
    .unwrap();
    text
}

struct World {
    store: Arc<SqliteStore>,
    lake: Lake,
    project: Arc<Project>,
}

impl World {
    async fn open(folder: &Path) -> Self {
        let loaded = load(folder, &LoadOptions::default());
        let project = loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        Self {
            store: Arc::new(SqliteStore::open(&folder.join("registry.db")).await.unwrap()),
            lake: Lake::open(folder.join("lake").to_str().unwrap(), "bench").unwrap(),
            project: Arc::new(project),
        }
    }

    async fn apply(&self) {
        let empty = Project::empty(ProjectName::new("bench").unwrap());
        let plan = diff(0, &empty, &self.project, &BTreeSet::new()).unwrap();
        let views: Vec<_> = self.project.views.keys().cloned().collect();
        let request = ApplyRequest {
            project: "bench".to_owned(),
            base: 0,
            changes: plan.changes(),
            tables: self.lake.ensure_tables(&self.project, &views).await.unwrap(),
            actor: "bench".to_owned(),
            message: None,
            now: SystemClock.now(),
        };
        self.store.apply(request).await.unwrap();
    }

    /// One run per day.
    async fn run_all(&self, folder: &Path) {
        let dag = &self.project.dags[&DagName::new("daily").unwrap()];
        let first: tidegate_registry::time::Instant = "2023-11-15T00:00:00Z".parse().unwrap();
        let run = |day: u64| {
            let start = first + chrono::Duration::days(day.cast_signed());
            NewRun {
                dag: dag.name.clone(),
                interval: Interval::new(start, start + chrono::Duration::days(1)).unwrap(),
                views: dag.views.clone(),
                cause: Cause::Manual(0),
                definitions: 1,
                attempts_max: 1,
                priority: 0,
            }
        };
        let ids = self.store.runs_create((0..DAYS).map(run).collect(), SystemClock.now()).await.unwrap();
        for id in &ids {
            self.store.run_admit(*id).await.unwrap();
        }
        let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&self.store);
        let worker = Worker::new(WorkerParts {
            store,
            clock: Arc::new(SystemClock),
            lake: self.lake.clone(),
            online: None,
            sources: Sources::new(folder, &[]).unwrap(),
            options: WorkerOptions {
                owner: format!("bench:{}", std::process::id()),
                host: "here".to_owned(),
                queues: Vec::new(),
                lease: Duration::from_secs(60),
                slots: 2,
                memory_bytes: 2 << 30,
                spill_dir: folder.join("spill"),
            },
            wake: Arc::new(Notify::new()),
            progress: Arc::new(Notify::new()),
        })
        .unwrap();
        worker.run_only(&ids, CancellationToken::new()).await.unwrap();
        for id in ids {
            let (run, _) = self.store.run(id).await.unwrap();
            assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
        }
    }
}
