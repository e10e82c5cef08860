//! What a run costs beside plain DataFusion: 5 million rows grouped into 500,000 entities, 10 features, 6 checks.
//!
//! The yardstick is DataFusion running the same query into one Parquet file, in the same process with the same memory
//! pool, in turns (A B A B …), medians compared. A second part gives a run less memory than its state needs and prints the
//! peak of a process of its own.
//!
//! `cargo bench -p tidegate-worker --bench materialise`

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its figures and stops at the first surprise"
)]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use datafusion::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::ParquetReadOptions;
use deltalake::parquet::arrow::ArrowWriter;
use tidegate_registry::run::StagedView;
use tidegate_worker::engine::Joins;
use tidegate_worker::session::plan_query;

use self::support::{World, at, median, numbers, peak_rss_bytes, ratio, timed};

const SOURCE: &str = "events.parquet";
const ROWS: usize = 5_000_000;
const ENTITIES: u64 = 500_000;
const ROUNDS: usize = 5;
const MEMORY: u64 = 4 << 30;
const SMALL_MEMORY: u64 = 512 << 20;

const SQL: &str = "SELECT id, avg(amount) AS f0, sum(amount) AS f1, min(amount) AS f2, max(amount) AS f3, \
    count(*) AS f4, avg(score) AS f5, sum(score) AS f6, min(score) AS f7, max(score) AS f8, \
    sum(amount * score) AS f9 FROM events GROUP BY id";

const CHECKS: &str = "
    checks:
      - not_null: {columns: [f0, f1, f4]}
      - unique: {columns: [id]}
      - range: {column: f0, min: 0, max: 1000}
      - range: {column: f7, min: 0}
      - row_count: {min: 1000}
      - not_null: {columns: [f5, f6, f7, f8, f9]}
";

/// Few groups fit: every row of the source is its own entity, so the state is larger than the memory.
const WIDE_SQL: &str = "SELECT row AS id, avg(amount) AS f0, sum(amount) AS f1, min(amount) AS f2, max(amount) AS f3, \
    count(*) AS f4, avg(score) AS f5, sum(score) AS f6, min(score) AS f7, max(score) AS f8, \
    sum(amount * score) AS f9 FROM events GROUP BY row";

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = std::env::args().skip_while(|arg| arg != "--small-memory").nth(1);
    match folder {
        Some(folder) => runtime.block_on(small_memory(Path::new(&folder))),
        None => runtime.block_on(compare()),
    }
}

async fn compare() {
    let folder = tempfile::tempdir().unwrap();
    generate(&folder.path().join(SOURCE));
    let checked = World::new(folder.path(), "checked", SOURCE, &definitions(SQL, CHECKS), MEMORY).await;
    let unchecked = World::new(folder.path(), "unchecked", SOURCE, &definitions(SQL, ""), MEMORY).await;
    let (mut alone, mut with, mut without) = (Vec::new(), Vec::new(), Vec::new());
    plain(&checked, folder.path()).await;
    checked.stage(true, enough).await;
    for _ in 0..ROUNDS {
        alone.push(timed(plain(&checked, folder.path())).await);
        with.push(timed(checked.stage(true, enough)).await);
        without.push(timed(unchecked.stage(true, enough)).await);
    }
    let (alone, with, without) = (median(alone), median(with), median(without));
    println!("materialise {ROWS} rows into {ENTITIES} entities, 10 features (medians of {ROUNDS})");
    println!("  plain DataFusion into Parquet      {:>7.2} s", alone.as_secs_f64());
    println!(
        "  staged, 6 checks                   {:>7.2} s   ratio {:.2} (target: at most 1.30)",
        with.as_secs_f64(),
        ratio(with, alone)
    );
    println!(
        "  staged, built-in checks only       {:>7.2} s   ratio {:.2}",
        without.as_secs_f64(),
        ratio(without, alone)
    );
    let cost = (ratio(with, without) - 1.0) * 100.0;
    println!("  the 6 checks cost                  {cost:>7.1} %   of the run (target: at most 10 %)");

    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("--small-memory")
        .arg(folder.path())
        .status()
        .unwrap();
    assert!(status.success(), "the run with little memory failed");
}

/// In a process of its own, so that its peak is its own.
async fn small_memory(folder: &Path) {
    let world = World::new(folder, "small", SOURCE, &definitions(WIDE_SQL, CHECKS), SMALL_MEMORY).await;
    let started = Instant::now();
    world.stage(true, enough).await;
    let peak = peak_rss_bytes();
    println!("group {ROWS} rows into {ROWS} entities with `memory: 512MiB` (the state needs more)");
    println!("  finished in                        {:>7.2} s", started.elapsed().as_secs_f64());
    println!(
        "  peak resident memory               {:>7.0} MiB (target: under 1229 MiB)",
        peak as f64 / f64::from(1 << 20)
    );
}

fn enough(staged: &StagedView) {
    assert!(staged.rows >= ENTITIES - ENTITIES / 100);
}

/// The same query into Parquet, with nothing around it.
async fn plain(world: &World, folder: &Path) {
    let ctx = world.engine.context(Joins::Hash).unwrap();
    let file = folder.join("events.parquet");
    ctx.register_parquet("events", file.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    let plan = plan_query(&ctx, SQL, world.reads.interval).await.unwrap();
    let rows = ctx.execute_logical_plan(plan).await.unwrap();
    let mut options = TableParquetOptions::default();
    options.global.compression = Some("zstd(1)".to_owned());
    let out = folder.join("plain.parquet");
    let write = DataFrameWriteOptions::new().with_single_file_output(true);
    rows.write_parquet(out.to_str().unwrap(), write, Some(options)).await.unwrap();
    std::fs::remove_file(out).unwrap();
}

fn definitions(sql: &str, checks: &str) -> String {
    let features: String = (0..10)
        .map(|n| {
            let kind = if n == 4 { "bigint" } else { "double" };
            format!("      - {{name: f{n}, type: {kind}, description: number {n}}}\n")
        })
        .collect();
    format!(
        "owners: [{{name: me, primary: me@example.com}}]
entities:
  - {{name: thing, keys: [{{name: id, type: bigint}}]}}
sources:
  - {{name: events, parquet: events.parquet, event_time: at}}
feature_views:
  - name: stats
    entity: thing
    owner: me
    description: ten aggregates
    sql: |
      {sql}
    features:
{features}{checks}
dags:
  - {{name: daily, owner: me, schedule: {{cron: '@daily', timezone: UTC, start: 2024-01-01}}, views: [stats]}}
"
    )
}

/// The same rows every time.
fn generate(path: &Path) {
    let mut next = numbers();
    let mut writer: Option<ArrowWriter<std::fs::File>> = None;
    let chunk = 500_000;
    for part in 0..ROWS / chunk {
        let base = (part * chunk) as i64;
        let id: Int64Array = (0..chunk).map(|_| Some((next() % ENTITIES) as i64)).collect();
        let row: Int64Array = (0..chunk as i64).map(|n| Some(base + n)).collect();
        let amount: Float64Array = (0..chunk).map(|_| Some((next() % 100_000) as f64 / 100.0)).collect();
        let score: Float64Array = (0..chunk).map(|_| Some((next() % 1_000) as f64 / 1_000.0)).collect();
        let start = at("2024-01-01T00:00:00Z").timestamp_micros();
        let times: TimestampMicrosecondArray = (0..chunk as i64).map(|n| Some(start + base + n)).collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(id)),
            ("row", Arc::new(row)),
            ("amount", Arc::new(amount)),
            ("score", Arc::new(score)),
            ("at", Arc::new(times.with_timezone("UTC"))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let writer = writer.get_or_insert_with(|| {
            ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap()
        });
        writer.write(&batch).unwrap();
    }
    writer.unwrap().close().unwrap();
}
