//! What publishing costs beside `redis-cli --pipe`: 1,000,000 entities with 10 features (5 double, 3 bigint, 1 boolean, 1
//! text) go from their committed Delta table into an empty Redis; then a second run in which 5 % of them changed and 1 %
//! vanished changes them in place.
//!
//! The yardstick loads the same hashes from a file that was encoded beforehand into the same Redis, in turns (A B A B …),
//! medians compared. The times are those of the run's publish task, from claim to record, in a process of its own whose
//! peak of memory is printed too.
//!
//! `cargo bench -p tidegate-worker --bench publish` (an argument after `--`, as in `-- --entities 100000`, makes it smaller)
//!
//! Feast is measured beside it when `--feast PYTHON` names an interpreter that has `feast[redis]`, `redis` and `pandas`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its figures and stops at the first surprise"
)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use deltalake::parquet::arrow::ArrowWriter;
use tidegate_registry::definitions::settings::RedisLocation;
use tidegate_registry::definitions::{LoadOptions, load};
use tidegate_registry::ids::{DagName, ProjectName, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::plan::diff;
use tidegate_registry::run::{Cause, NewRun, RunState, TaskKind};
use tidegate_registry::store::{ApplyRequest, Store};
use tidegate_registry::time::{Clock, Interval, SystemClock};
use tidegate_servers::Redis;
use tidegate_store::SqliteStore;
use tidegate_worker::lake::Lake;
use tidegate_worker::online::{OnlineStore, RedisOnline};
use tidegate_worker::sources::Sources;
use tidegate_worker::{Worker, WorkerOptions, WorkerParts};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENTITIES: usize = 1_000_000;
const ROUNDS: u32 = 3;
const MEMORY: u64 = 512 << 20;

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
    online: {strategy: upsert}
dags:
  - {name: daily, owner: me, schedule: {cron: '@daily', timezone: UTC, start: 2024-01-01}, views: [profile]}
";

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match option("--publish") {
        Some(folder) => runtime.block_on(publish(Path::new(&folder))),
        None => runtime.block_on(compare()),
    }
}

fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

async fn compare() {
    let entities = option("--entities").map_or(ENTITIES, |entities| entities.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let redis = Redis::start().unwrap();
    std::fs::write(folder.path().join("tidegate.yaml"), "project: bench\n").unwrap();
    std::fs::write(folder.path().join("bench.yaml"), DEFINITIONS).unwrap();
    generate(&folder.path().join("users.parquet"), entities, false);
    let world = World::open(folder.path(), &redis.url()).await;
    world.apply().await;

    let prepared = folder.path().join("hashes.resp");
    let (mut pipes, mut swaps, mut upserts, mut peak) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        redis.cli(&["flushall"]).unwrap();
        // Later days only: an older interval does not go online.
        let swap = child(folder.path(), &redis.url(), 2 * round + 1);
        if round == 0 {
            world.dump(&prepared, entities).await;
        }
        generate(&folder.path().join("users.parquet"), entities, true);
        let upsert = child(folder.path(), &redis.url(), 2 * round + 2);
        let kept = entities - entities / 100;
        assert_eq!(world.live_rows().await, kept as u64, "the vanished are gone");
        generate(&folder.path().join("users.parquet"), entities, false);
        redis.cli(&["flushall"]).unwrap();
        pipes.push(pipe(&redis, &prepared));
        swaps.push(swap.0);
        upserts.push(upsert.0);
        peak = peak.max(swap.1).max(upsert.1);
    }
    let (pipe, swap, upsert) = (median(pipes), median(swaps), median(upserts));
    println!("publish {entities} entities, 10 features, from Delta into Redis (medians of {ROUNDS})");
    println!("  redis-cli --pipe, encoded before   {:>7.2} s", pipe.as_secs_f64());
    println!(
        "  publish task into an empty Redis   {:>7.2} s   ratio {:.2} (target: at most 1.50)",
        swap.as_secs_f64(),
        swap.as_secs_f64() / pipe.as_secs_f64()
    );
    println!(
        "  upsert, 5 % changed, 1 % vanished  {:>7.2} s   {:>5.1} % of that (target: at most 12 %)",
        upsert.as_secs_f64(),
        100.0 * upsert.as_secs_f64() / swap.as_secs_f64()
    );
    println!(
        "  peak resident memory of the worker {:>7.0} MiB (target: under 572 MiB = 600 MB)",
        peak as f64 / f64::from(1 << 20)
    );
    if let Some(python) = option("--feast") {
        redis.cli(&["flushall"]).unwrap();
        let feast = feast(&python, folder.path(), redis.port());
        println!(
            "  Feast, materialize from Parquet    {:>7.2} s   {:.1} times ours",
            feast.as_secs_f64(),
            feast.as_secs_f64() / swap.as_secs_f64()
        );
    }
}

/// One run in a process of its own: the time of its publish task, and the peak of its memory in bytes.
fn child(folder: &Path, url: &str, day: u32) -> (Duration, u64) {
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("--publish")
        .arg(folder)
        .args(["--redis", url, "--day", &day.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let mut numbers = said.split_whitespace().map(|number| number.parse::<u64>().unwrap());
    (Duration::from_micros(numbers.next().unwrap()), numbers.next().unwrap())
}

async fn publish(folder: &Path) {
    let world = World::open(folder, &option("--redis").unwrap()).await;
    let took = world.run(option("--day").unwrap().parse().unwrap()).await;
    println!("{} {}", took.as_micros(), peak_rss_bytes());
}

struct World {
    folder: PathBuf,
    store: Arc<SqliteStore>,
    lake: Lake,
    online: Arc<dyn OnlineStore>,
    project: Project,
}

impl World {
    async fn open(folder: &Path, url: &str) -> Self {
        let loaded = load(folder, &LoadOptions::default());
        let project = loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        let location = RedisLocation::parse(url).unwrap();
        Self {
            folder: folder.to_owned(),
            store: Arc::new(SqliteStore::open(&folder.join("registry.db")).await.unwrap()),
            lake: Lake::open(folder.join("lake").to_str().unwrap(), "bench").unwrap(),
            online: Arc::new(RedisOnline::open(&location, &ProjectName::new("bench").unwrap(), false).await.unwrap()),
            project,
        }
    }

    async fn apply(&self) {
        let empty = Project::empty(ProjectName::new("bench").unwrap());
        let plan = diff(0, &empty, &self.project, &BTreeSet::new()).unwrap();
        let request = ApplyRequest {
            project: "bench".to_owned(),
            base: 0,
            changes: plan.changes(),
            tables: self.lake.ensure_tables(&self.project, &[view()]).await.unwrap(),
            actor: "bench".to_owned(),
            message: None,
            now: SystemClock.now(),
        };
        self.store.apply(request).await.unwrap();
    }

    /// The time from claim to record of the publish task of a run of `day`.
    async fn run(&self, day: u32) -> Duration {
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
        let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&self.store);
        let worker = Worker::new(WorkerParts {
            store,
            clock: Arc::new(SystemClock),
            lake: self.lake.clone(),
            online: Some(Arc::clone(&self.online)),
            sources: Sources::new(&self.folder, &[]).unwrap(),
            options: WorkerOptions {
                owner: format!("bench:{}", std::process::id()),
                host: "here".to_owned(),
                queues: Vec::new(),
                lease: Duration::from_secs(60),
                slots: 1,
                memory_bytes: MEMORY,
                spill_dir: self.folder.join("spill"),
            },
            wake: Arc::new(Notify::new()),
            progress: Arc::new(Notify::new()),
        })
        .unwrap();
        worker.run_only(&[id], CancellationToken::new()).await.unwrap();
        let (run, tasks) = self.store.run(id).await.unwrap();
        assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
        let publish = tasks.iter().find(|task| task.kind == TaskKind::Publish).unwrap();
        (publish.finished_at.unwrap() - publish.started_at.unwrap()).to_std().unwrap()
    }

    async fn live_rows(&self) -> u64 {
        let live = self.online.live(&view()).await.unwrap().unwrap();
        self.online.count(&view(), live.generation).await.unwrap()
    }

    /// What is live, as `redis-cli --pipe` takes it.
    async fn dump(&self, path: &Path, entities: usize) {
        let generation = self.online.live(&view()).await.unwrap().unwrap().generation;
        let mut file = BufWriter::new(File::create(path).unwrap());
        let (mut cursor, mut rows) = (None, 0);
        loop {
            let (keys, next) = self.online.keys(&view(), generation, cursor.as_deref()).await.unwrap();
            let found = self.online.rows(&view(), generation, &keys).await.unwrap();
            for (key, row) in keys.iter().zip(found) {
                let row = row.unwrap();
                let key = format!("tg:bench:{}:g{generation}:{key}", view());
                let time = row.event_timestamp.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
                let mut words = vec!["HSET", &key, "_event_timestamp", &time];
                words.extend(row.features.iter().flat_map(|(name, text)| [name.as_str(), text.as_str()]));
                write!(file, "*{}\r\n", words.len()).unwrap();
                for word in words {
                    write!(file, "${}\r\n{word}\r\n", word.len()).unwrap();
                }
                rows += 1;
            }
            match next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(rows, entities);
    }
}

fn view() -> ViewId {
    "profile@v1".parse().unwrap()
}

fn pipe(redis: &Redis, prepared: &Path) -> Duration {
    let started = Instant::now();
    let status = Command::new("redis-cli")
        .args(["-p", &redis.port().to_string(), "--pipe"])
        .stdin(File::open(prepared).unwrap())
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    started.elapsed()
}

/// The same rows every time: a linear congruential generator. As of the second day every hundredth entity is gone and of
/// every twentieth one feature is another.
fn generate(path: &Path, entities: usize, second_day: bool) {
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut writer: Option<ArrowWriter<File>> = None;
    let chunk = 100_000.min(entities);
    for part in 0..entities / chunk {
        let ids: Vec<i64> = (0..chunk).map(|n| (part * chunk + n) as i64).collect();
        let gone = |id: &i64| second_day && id % 100 == 7;
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for n in 0..5 {
            let values: Float64Array = ids
                .iter()
                .filter_map(|id| {
                    let value = (next() % 1_000_000) as f64 / 1_000.0;
                    let changed = second_day && n == 0 && id % 20 == 3;
                    (!gone(id)).then_some(Some(if changed { value + 1.0 } else { value }))
                })
                .collect();
            columns.push((format!("d{n}"), Arc::new(values)));
        }
        for n in 0..3 {
            let values: Int64Array = ids
                .iter()
                .filter_map(|id| {
                    let value = (next() % 100_000) as i64;
                    (!gone(id)).then_some(Some(value))
                })
                .collect();
            columns.push((format!("b{n}"), Arc::new(values)));
        }
        let left: Vec<i64> = ids.into_iter().filter(|id| !gone(id)).collect();
        let flags: BooleanArray = left.iter().map(|id| Some(id % 3 == 0)).collect();
        let words: StringArray = left.iter().map(|id| Some(format!("segment-{}", id % 50))).collect();
        columns.push(("flag".to_owned(), Arc::new(flags)));
        columns.push(("segment".to_owned(), Arc::new(words)));
        columns.push(("id".to_owned(), Arc::new(Int64Array::from(left))));
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let writer = writer
            .get_or_insert_with(|| ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap());
        writer.write(&batch).unwrap();
    }
    writer.unwrap().close().unwrap();
}

/// Feast materializes the same Parquet file into the same Redis.
fn feast(python: &str, folder: &Path, port: u16) -> Duration {
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
    let script = folder.join("feast_peer.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let output = Command::new(python).arg(&script).arg(folder).arg(port.to_string()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let seconds = said.lines().find_map(|line| line.strip_prefix("SECONDS ")).unwrap();
    Duration::from_secs_f64(seconds.trim().parse().unwrap())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The kernel's own figure for this process.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}
