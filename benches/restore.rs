//! What taking a view back costs: from the decision to the validation, and the moment in which readers change over.
//!
//! * `swap`: views of 10,000 and of 1,000,000 entities with 10 features, published twice and then taken back to and fro.
//!   The kept generation is made live again, so the time must not depend on the number of entities.
//! * `upsert`: 1,000,000 entities, of which the second run changed 5 %. Only what changed is written again; the yardstick
//!   is filling the emptied store with all of them.
//! * The peer's way is to materialize the older range again. By default the ratio is taken to the time that was measured
//!   on the machine on which the targets were set; `--feast PYTHON` measures it here (see `publish.rs` for what it takes).
//!
//! Before a time is printed, all entities online were compared with the lake, and the table with the digest of the first
//! run.
//!
//! `cargo bench -p tidegate-worker --bench restore` (`-- --entities 100000` makes the large views smaller)

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its figures and stops at the first surprise"
)]

#[expect(dead_code, reason = "shared with benchmarks that need more of it")]
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use deltalake::parquet::arrow::ArrowWriter;
use tidegate_registry::definitions::settings::RedisLocation;
use tidegate_registry::definitions::{LoadOptions, load};
use tidegate_registry::ids::{DagName, ProjectName, RunId, SnapshotId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::plan::diff;
use tidegate_registry::restore::plan::{Asked, Definitions, Target, plan};
use tidegate_registry::restore::{HoldPolicy, Restoring};
use tidegate_registry::run::{Cause, NewRun, RunState};
use tidegate_registry::store::{ApplyRequest, Store};
use tidegate_registry::time::{Clock, Interval, SystemClock};
use tidegate_servers::Redis;
use tidegate_store::SqliteStore;
use tidegate_worker::engine::Engine;
use tidegate_worker::lake::Lake;
use tidegate_worker::online::{CutOver, OnlineStore, RedisOnline};
use tidegate_worker::restore::{WayOnline, check};
use tidegate_worker::serving::{AuditOptions, Rebuilt, Serving};
use tidegate_worker::sources::Sources;
use tidegate_worker::{Worker, WorkerOptions, WorkerParts};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use support::{median, numbers, ratio};

const SMALL: usize = 10_000;
const LARGE: usize = 1_000_000;
/// Restores to and fro whose median counts.
const ROUNDS: usize = 5;
const CUT_OVERS: u64 = 21;
const MEMORY: u64 = 512 << 20;
/// What Feast 0.67 took on 2 cores to write 1,000,000 × 10 features into Redis, as `benches/publish.rs` measures it: its way
/// back is to materialize the older range again.
const FEAST_SECONDS: f64 = 76.0;

const DEFINITIONS: &str = "owners: [{name: me, primary: me@example.com}]
entities:
  - {name: user, keys: [{name: id, type: bigint}]}
sources:
  - {name: users, parquet: users.parquet}
feature_views:
  - name: profile
    entity: user
    owner: me
    description: ten features
    sql: SELECT * FROM users
    features:
      - {name: d0, type: double, description: a number}
      - {name: d1, type: double, description: a number}
      - {name: d2, type: double, description: a number}
      - {name: d3, type: double, description: a number}
      - {name: d4, type: double, description: a number}
      - {name: b0, type: bigint, description: a count}
      - {name: b1, type: bigint, description: a count}
      - {name: b2, type: bigint, description: a count}
      - {name: flag, type: boolean, description: yes or no}
      - {name: segment, type: string, description: a word}
    online: {strategy: STRATEGY}
dags:
  - {name: daily, owner: me, schedule: {cron: '@daily', timezone: UTC, start: 2024-01-01}, views: [profile]}
";

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(measure());
}

fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

async fn measure() {
    let large = option("--entities").map_or(LARGE, |entities| entities.parse().unwrap());
    let small = swap(SMALL.min(large)).await;
    let big = swap(large).await;
    let upsert = upsert(large).await;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!("restore, 10 features, Redis (medians of {} restores to and fro)", 2 * ROUNDS);
    for (what, entities) in [(&small, SMALL.min(large)), (&big, large)] {
        println!(
            "  swap {entities:>9} entities   whole {:>8.1} ms (target: under 2000)   cut-over {:>6.2} ms, at worst {:.2} \
             (target: under 50)",
            ms(what.whole),
            ms(what.cut_over),
            ms(what.cut_over_max)
        );
    }
    println!("  swap, large to small        whole {:>8.2} times (target: under 1.5)", ratio(big.whole, small.whole));
    println!(
        "  upsert {large:>7} entities, 5 % changed: {:>8.1} ms; all of them filled again {:>8.1} ms: {:.1} times (target: \
         at least 5)",
        ms(upsert.whole),
        ms(upsert.filled),
        ratio(upsert.filled, upsert.whole)
    );
    let feast = match option("--feast") {
        Some(python) => feast(&python, large),
        None => Duration::from_secs_f64(FEAST_SECONDS * large as f64 / LARGE as f64),
    };
    println!(
        "  Feast, materialize again{}: {:.1} s: {:.0} times the swap, {:.0} times the upsert",
        if option("--feast").is_some() { "" } else { " (not measured here)" },
        feast.as_secs_f64(),
        ratio(feast, big.whole),
        ratio(feast, upsert.whole)
    );
}

struct Swap {
    whole: Duration,
    cut_over: Duration,
    cut_over_max: Duration,
}

/// A view that is taken back by making its kept generation live again.
async fn swap(entities: usize) -> Swap {
    let redis = Redis::start().unwrap();
    let world = World::new("swap", entities, &redis).await;
    let snapshots = world.publish_twice(entities).await;
    let mut whole = Vec::new();
    for _ in 0..ROUNDS {
        for snapshot in [snapshots[0], snapshots[1]] {
            whole.push(world.restore(snapshot, true).await);
        }
    }
    world.restore(snapshots[0], true).await;
    world.compare(entities, snapshots[0]).await;
    let (cut_over, cut_over_max) = world.cut_overs().await;
    Swap { whole: median(whole), cut_over, cut_over_max }
}

struct Upsert {
    whole: Duration,
    filled: Duration,
}

/// A view of which only what changed is written again.
async fn upsert(entities: usize) -> Upsert {
    let redis = Redis::start().unwrap();
    let world = World::new("upsert", entities, &redis).await;
    let snapshots = world.publish_twice(entities).await;
    let mut whole = Vec::new();
    for _ in 0..ROUNDS.div_ceil(2) {
        for snapshot in [snapshots[1], snapshots[0]] {
            if snapshot == snapshots[0] || !whole.is_empty() {
                whole.push(world.restore(snapshot, false).await);
            }
        }
    }
    world.compare(entities, snapshots[0]).await;
    let mut filled = Vec::new();
    for _ in 0..3 {
        redis.cli(&["flushall"]).unwrap();
        let serving = world.serving();
        let started = Instant::now();
        let rebuilt = serving.rebuild(&view()).await.unwrap();
        filled.push(started.elapsed());
        assert!(matches!(rebuilt, Rebuilt::Filled { rows, .. } if rows == entities as u64), "{rebuilt:?}");
    }
    world.compare(entities, snapshots[0]).await;
    Upsert { whole: median(whole), filled: median(filled) }
}

struct World {
    folder: tempfile::TempDir,
    store: Arc<SqliteStore>,
    lake: Lake,
    online: Arc<dyn OnlineStore>,
    project: Project,
    worker: Worker,
}

impl World {
    async fn new(strategy: &str, entities: usize, redis: &Redis) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        std::fs::write(at.join("tidegate.yaml"), "project: bench\n").unwrap();
        std::fs::write(at.join("bench.yaml"), DEFINITIONS.replace("STRATEGY", strategy)).unwrap();
        generate(&at.join("users.parquet"), entities, false);
        let loaded = load(at, &LoadOptions::default());
        let project = loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        let location = RedisLocation::parse(&redis.url()).unwrap();
        let store = Arc::new(SqliteStore::open(&at.join("registry.db")).await.unwrap());
        let lake = Lake::open(at.join("lake").to_str().unwrap(), "bench").unwrap();
        let online: Arc<dyn OnlineStore> =
            Arc::new(RedisOnline::open(&location, &ProjectName::new("bench").unwrap(), false).await.unwrap());
        let worker = worker(at, Arc::<SqliteStore>::clone(&store), lake.clone(), Arc::clone(&online));
        let world = Self { folder, store, lake, online, project, worker };
        let empty = Project::empty(ProjectName::new("bench").unwrap());
        let request = ApplyRequest {
            project: "bench".to_owned(),
            base: 0,
            changes: diff(0, &empty, &world.project, &BTreeSet::new()).unwrap().changes(),
            tables: world.lake.ensure_tables(&world.project, &[view()]).await.unwrap(),
            actor: "bench".to_owned(),
            message: None,
            now: SystemClock.now(),
        };
        world.store.apply(request).await.unwrap();
        world
    }

    /// The snapshots of two runs, of which the second changed one feature of every twentieth entity.
    async fn publish_twice(&self, entities: usize) -> [SnapshotId; 2] {
        let first = self.publish(1).await;
        generate(&self.folder.path().join("users.parquet"), entities, true);
        [first, self.publish(2).await]
    }

    async fn publish(&self, day: u32) -> SnapshotId {
        let start = format!("2024-01-{day:02}T00:00:00Z").parse().unwrap();
        let dag = &self.project.dags[&DagName::new("daily").unwrap()];
        let run = NewRun {
            dag: dag.name.clone(),
            interval: Interval::new(start, start + chrono::Duration::days(1)).unwrap(),
            views: dag.views.clone(),
            cause: Cause::Manual(0),
            definitions: 1,
            attempts_max: 1,
            priority: 0,
        };
        let id = self.store.runs_create(vec![run], SystemClock.now()).await.unwrap()[0];
        self.store.run_admit(id).await.unwrap();
        self.execute(id).await;
        SnapshotId(id.0)
    }

    async fn execute(&self, id: RunId) {
        self.worker.run_only(&[id], CancellationToken::new()).await.unwrap();
        let (run, _) = self.store.run(id).await.unwrap();
        assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
    }

    /// From the plan to the validation.
    async fn restore(&self, to: SnapshotId, flips: bool) -> Duration {
        let started = Instant::now();
        let asked =
            Asked { views: vec![view()], target: Target::To(to), cascade: false, hold_policy: HoldPolicy::default() };
        let definitions = Definitions { revision: 1, project: &self.project };
        let mut planned = plan(&*self.store, definitions, &asked, RunId::generate(), SystemClock.now()).await.unwrap();
        let effects = check(&*self.store, &self.lake, Some(&*self.online), &planned).await.unwrap();
        let way = effects[&view()].online;
        planned.request.actor = "bench".to_owned();
        planned.request.reason = "to measure it".to_owned();
        let id = planned.request.id;
        self.store.restore_begin(planned.request).await.unwrap();
        self.execute(id).await;
        let took = started.elapsed();
        assert_eq!(matches!(way, WayOnline::Flip { .. }), flips, "{way:?}");
        let validation = self.store.restore_of(id).await.unwrap().validation.unwrap();
        assert!(validation.passed, "{validation:?}");
        if std::env::args().any(|arg| arg == "--verbose") {
            println!("  restore {took:?}, of which {} ms validation", validation.took_ms);
        }
        took
    }

    /// Every entity online with the lake, and the ledger with what the snapshot had.
    async fn compare(&self, entities: usize, snapshot: SnapshotId) {
        let audit = self.serving().audit(&view(), AuditOptions::default()).await.unwrap();
        assert_eq!((audit.compared, audit.differing()), (entities as u64, 0), "{audit:?}");
        let then = self.store.snapshot(snapshot).await.unwrap();
        let now = self.store.ledger(&view(), None, 0).await.unwrap();
        assert_eq!(now[0].digest, then.views[0].digest, "the table is as it was");
    }

    fn serving(&self) -> Serving {
        Serving {
            store: Arc::<SqliteStore>::clone(&self.store),
            clock: Arc::new(SystemClock),
            lake: self.lake.clone(),
            online: Arc::clone(&self.online),
            engine: Arc::new(Engine::new(MEMORY, &self.folder.path().join("spill-audit")).unwrap()),
            owner: "bench".to_owned(),
        }
    }

    /// How long readers' change-over takes by itself: median and worst. Later than anything that the registry knows.
    async fn cut_overs(&self) -> (Duration, Duration) {
        let live = self.online.live(&view()).await.unwrap().unwrap();
        let mut times = Vec::new();
        for n in 1..=CUT_OVERS {
            let to = CutOver {
                view: view(),
                generation: 1 + n % 2,
                publish_number: live.publish_number + n,
                tag: live.tag.clone(),
                defaults: Default::default(),
            };
            let started = Instant::now();
            self.online.cut_over(&[to]).await.unwrap();
            times.push(started.elapsed());
            let now = self.online.live(&view()).await.unwrap().unwrap();
            assert_eq!(now.generation, 1 + n % 2);
        }
        let worst = times.iter().max().copied().unwrap();
        (median(times), worst)
    }
}

fn worker(folder: &Path, store: Arc<SqliteStore>, lake: Lake, online: Arc<dyn OnlineStore>) -> Worker {
    Worker::new(WorkerParts {
        store,
        clock: Arc::new(SystemClock),
        lake,
        online: Some(online),
        sources: Sources::new(folder, &[]).unwrap(),
        options: WorkerOptions {
            owner: format!("bench:{}", std::process::id()),
            host: "here".to_owned(),
            queues: Vec::new(),
            lease: Duration::from_secs(60),
            slots: 1,
            memory_bytes: MEMORY,
            spill_dir: folder.join("spill"),
        },
        wake: Arc::new(Notify::new()),
        progress: Arc::new(Notify::new()),
    })
    .unwrap()
}

fn view() -> ViewId {
    "profile@v1".parse().unwrap()
}

/// The same rows every time. On the second day one feature of every twentieth is another.
fn generate(path: &Path, entities: usize, second_day: bool) {
    let mut next = numbers();
    let mut writer: Option<ArrowWriter<File>> = None;
    let chunk = 100_000.min(entities);
    for part in 0..entities / chunk {
        let ids: Vec<i64> = (0..chunk).map(|n| (part * chunk + n) as i64).collect();
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for n in 0..5 {
            let changed = |id: &i64| second_day && n == 0 && id % 20 == 3;
            let values = ids.iter().map(|id| {
                let value = (next() % 1_000_000) as f64 / 1_000.0;
                Some(if changed(id) { value + 1.0 } else { value })
            });
            columns.push((format!("d{n}"), Arc::new(values.collect::<Float64Array>())));
        }
        for n in 0..3 {
            let values: Int64Array = ids.iter().map(|_| Some((next() % 100_000) as i64)).collect();
            columns.push((format!("b{n}"), Arc::new(values)));
        }
        let flags: BooleanArray = ids.iter().map(|id| Some(id % 3 == 0)).collect();
        let words: StringArray = ids.iter().map(|id| Some(format!("segment-{}", id % 50))).collect();
        columns.push(("flag".to_owned(), Arc::new(flags)));
        columns.push(("segment".to_owned(), Arc::new(words)));
        columns.push(("id".to_owned(), Arc::new(Int64Array::from(ids))));
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let writer = writer
            .get_or_insert_with(|| ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap());
        writer.write(&batch).unwrap();
    }
    writer.unwrap().close().unwrap();
}

/// The peer's way back: the older range is materialized again, into a store that has the newer one.
fn feast(python: &str, entities: usize) -> Duration {
    const SCRIPT: &str = r#"
import sys, time, datetime as dt, pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Bool, Float64, Int64, String
folder, port = sys.argv[1], sys.argv[2]
frame = pd.read_parquet(f"{folder}/users.parquet")
frame["at"] = pd.Timestamp("2024-01-01", tz="UTC")
frame.to_parquet(f"{folder}/feast.parquet")
config = RepoConfig(project="bench", provider="local", registry=f"{folder}/feast.db", offline_store={"type": "file"},
                    online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}"}, entity_key_serialization_version=3)
store = FeatureStore(config=config)
user = Entity(name="user", join_keys=["id"], value_type=ValueType.INT64)
schema = [Field(name=f"d{n}", dtype=Float64) for n in range(5)] + [Field(name=f"b{n}", dtype=Int64) for n in range(3)]
schema += [Field(name="flag", dtype=Bool), Field(name="segment", dtype=String)]
view = FeatureView(name="profile", entities=[user], schema=schema, ttl=dt.timedelta(days=36500),
                   source=FileSource(path=f"{folder}/feast.parquet", timestamp_field="at"))
store.apply([user, view])
started = time.monotonic()
store.materialize(dt.datetime(2023, 1, 1), dt.datetime(2025, 1, 1))
print("SECONDS", time.monotonic() - started)
"#;
    let folder = tempfile::tempdir().unwrap();
    let redis = Redis::start().unwrap();
    generate(&folder.path().join("users.parquet"), entities, false);
    let script = folder.path().join("feast_peer.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let output = Command::new(python).arg(&script).arg(folder.path()).arg(redis.port().to_string()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let seconds = said.lines().find_map(|line| line.strip_prefix("SECONDS ")).unwrap();
    Duration::from_secs_f64(seconds.trim().parse().unwrap())
}
