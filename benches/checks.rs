//! What quality gates cost: 10,000,000 rows with 10 features (5 double, 3 bigint, 1 boolean, 1 text) are staged with the
//! profile of every column and 20 checks, and with neither, in turns (A B A B …), medians compared.
//!
//! `cargo bench -p tidegate-worker --bench checks` (an argument after `--`, as in `-- --rows 1000000`, makes it smaller)
//!
//! `--duckdb PYTHON` names an interpreter that has `duckdb`: the same 20 checks are asked of the written Parquet files then,
//! as SQL, which is what tools do that look at a table after it was written.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its figures and stops at the first surprise"
)]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use deltalake::parquet::arrow::ArrowWriter;
use tidegate_registry::run::StagedView;

use self::support::{World, median, numbers, peak_rss_bytes, ratio, timed};

const SOURCE: &str = "users.parquet";
const ROWS: usize = 10_000_000;
const ROUNDS: usize = 3;
const MEMORY: u64 = 4 << 30;

const CHECKS: &str = "
    checks:
      - not_null: {columns: [d0, d1, d2, d3, d4]}
      - not_null: {columns: [b0, b1, b2, flag, segment]}
      - unique: {columns: [id]}
      - range: {column: d0, min: 0, max: 1000}
      - range: {column: d1, min: 0, max: 1000}
      - range: {column: b0, min: 0, max: 100000}
      - range: {column: b1, min: 0, max: 100000}
      - length: {column: segment, min: 9, max: 10}
      - accepted_values: {column: flag, values: [true, false]}
      - regex: {column: segment, pattern: '^segment-[0-9]+$'}
      - expression: {condition: d2 + d3 >= 0}
      - expression: {condition: b2 <= 100000, where: flag}
      - null_rate: {column: d4, max: 0.01}
      - distinct_count: {column: segment, min: 40, max: 60}
      - mean: {column: d0, min: 400, max: 600}
      - stddev: {column: d1, max: 400}
      - sum: {column: b0, min: 1}
      - true_ratio: {column: flag, min: 0.3, max: 0.4}
      - quantile: {column: d2, rank: 0.95, max: 990}
      - row_count: {min: 1000}
";

/// The same in SQL, one aggregate per check, as checks that are independent of each other are asked.
const SQL: [&str; 20] = [
    "SELECT count(*) = 0 FROM t WHERE d0 IS NULL OR d1 IS NULL OR d2 IS NULL OR d3 IS NULL OR d4 IS NULL",
    "SELECT count(*) = 0 FROM t WHERE b0 IS NULL OR b1 IS NULL OR b2 IS NULL OR flag IS NULL OR segment IS NULL",
    "SELECT count(*) = 0 FROM (SELECT id FROM t GROUP BY id HAVING count(*) > 1)",
    "SELECT count(*) = 0 FROM t WHERE NOT d0 BETWEEN 0 AND 1000",
    "SELECT count(*) = 0 FROM t WHERE NOT d1 BETWEEN 0 AND 1000",
    "SELECT count(*) = 0 FROM t WHERE NOT b0 BETWEEN 0 AND 100000",
    "SELECT count(*) = 0 FROM t WHERE NOT b1 BETWEEN 0 AND 100000",
    "SELECT count(*) = 0 FROM t WHERE NOT length(segment) BETWEEN 9 AND 10",
    "SELECT count(*) = 0 FROM t WHERE flag NOT IN (true, false)",
    "SELECT count(*) = 0 FROM t WHERE NOT regexp_matches(segment, '^segment-[0-9]+$')",
    "SELECT count(*) = 0 FROM t WHERE NOT d2 + d3 >= 0",
    "SELECT count(*) = 0 FROM t WHERE flag AND NOT b2 <= 100000",
    "SELECT avg((d4 IS NULL)::INT) <= 0.01 FROM t",
    "SELECT approx_count_distinct(segment) BETWEEN 40 AND 60 FROM t",
    "SELECT avg(d0) BETWEEN 400 AND 600 FROM t",
    "SELECT stddev(d1) <= 400 FROM t",
    "SELECT sum(b0) >= 1 FROM t",
    "SELECT avg(flag::INT) BETWEEN 0.3 AND 0.4 FROM t",
    "SELECT approx_quantile(d2, 0.95) <= 990 FROM t",
    "SELECT count(*) >= 1000 FROM t",
];

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(compare());
}

fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

async fn compare() {
    let rows = option("--rows").map_or(ROWS, |rows| rows.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    generate(&folder.path().join(SOURCE), rows);
    let gated = World::new(folder.path(), "gated", SOURCE, &definitions(CHECKS), MEMORY).await;
    let open = World::new(folder.path(), "open", SOURCE, &definitions(""), MEMORY).await;
    let table = gated.reads.lake.table_url(&gated.view).to_file_path().unwrap();
    let all = |staged: &StagedView| assert_eq!(staged.rows, rows as u64);
    let (mut with, mut without, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(timed(open.stage(false, all)).await);
        let mut later = None;
        let ask = |staged: &StagedView| {
            all(staged);
            later = option("--duckdb").map(|python| duckdb(&python, folder.path(), &table, staged));
        };
        let mut took = timed(gated.stage(true, ask)).await;
        if let Some((seconds, whole)) = later {
            asked.push(seconds);
            took -= whole;
        }
        with.push(took);
    }
    let (with, without) = (median(with), median(without));
    println!("stage {rows} rows, 10 features (medians of {ROUNDS})");
    println!("  neither profile nor checks         {:>7.2} s", without.as_secs_f64());
    println!(
        "  profile of all columns, 20 checks  {:>7.2} s   ratio {:.2} (target: at most 1.15)",
        with.as_secs_f64(),
        ratio(with, without)
    );
    println!("    added                            {:>7.2} s", with.saturating_sub(without).as_secs_f64());
    if !asked.is_empty() {
        let asked = median(asked);
        println!("  DuckDB, 20 checks on the files     {:>7.2} s   after they were written", asked.as_secs_f64());
    }
    println!("  peak resident memory               {:>7.0} MiB", peak_rss_bytes() as f64 / f64::from(1 << 20));
}

/// How long DuckDB takes for the same checks on the files, and how long asking it took in all.
fn duckdb(
    python: &str,
    folder: &Path,
    table: &Path,
    staged: &StagedView,
) -> (std::time::Duration, std::time::Duration) {
    const SCRIPT: &str = r#"
import sys, time, duckdb
files, queries = sys.argv[1].split(","), sys.argv[2].split(";")
db = duckdb.connect()
db.execute("SET threads = 2")
db.execute("CREATE VIEW t AS SELECT * FROM read_parquet(%r)" % files)
started = time.monotonic()
for query in queries:
    (passed,) = db.execute(query).fetchone()
    assert passed, query
print("SECONDS", time.monotonic() - started)
"#;
    let started = std::time::Instant::now();
    let files: Vec<String> =
        staged.adds.iter().map(|add| table.join(add["path"].as_str().unwrap()).to_str().unwrap().to_owned()).collect();
    let script = folder.join("duckdb_peer.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let output = Command::new(python).arg(&script).arg(files.join(",")).arg(SQL.join(";")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let seconds = said.lines().find_map(|line| line.strip_prefix("SECONDS ")).unwrap();
    (std::time::Duration::from_secs_f64(seconds.trim().parse().unwrap()), started.elapsed())
}

fn definitions(checks: &str) -> String {
    let kinds = [("d", 5, "double"), ("b", 3, "bigint")];
    let numbers = kinds.iter().flat_map(|(name, count, kind)| {
        (0..*count).map(move |n| format!("      - {{name: {name}{n}, type: {kind}, description: a number}}\n"))
    });
    let features: String = numbers.collect();
    format!(
        "owners: [{{name: me, primary: me@example.com}}]
entities:
  - {{name: user, keys: [{{name: id, type: bigint}}]}}
sources:
  - {{name: events, parquet: {SOURCE}}}
feature_views:
  - name: users
    entity: user
    owner: me
    description: ten features
    sql: SELECT * FROM events
    features:
{features}      - {{name: flag, type: boolean, description: yes or no}}
      - {{name: segment, type: string, description: a word}}
{checks}
dags:
  - {{name: daily, owner: me, schedule: {{cron: '@daily', timezone: UTC, start: 2024-01-01}}, views: [users]}}
"
    )
}

/// The same rows every time, in no order of their keys.
fn generate(path: &Path, rows: usize) {
    let mut next = numbers();
    let mut writer: Option<ArrowWriter<std::fs::File>> = None;
    let chunk = 100_000.min(rows);
    for part in 0..rows / chunk {
        // an odd factor: every key once
        let ids = (part * chunk..(part + 1) * chunk).map(|n| (n as i64).wrapping_mul(0x1e37_79b9_7f4a_7c15));
        let ids: Vec<i64> = ids.collect();
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for n in 0..5 {
            let values: Float64Array = ids.iter().map(|_| Some((next() % 1_000_000) as f64 / 1_000.0)).collect();
            columns.push((format!("d{n}"), Arc::new(values)));
        }
        for n in 0..3 {
            let values: Int64Array = ids.iter().map(|_| Some((next() % 100_000) as i64)).collect();
            columns.push((format!("b{n}"), Arc::new(values)));
        }
        let flags: BooleanArray = ids.iter().map(|_| Some(next().is_multiple_of(3))).collect();
        let words: StringArray = ids.iter().map(|_| Some(format!("segment-{}", next() % 50))).collect();
        columns.push(("flag".to_owned(), Arc::new(flags)));
        columns.push(("segment".to_owned(), Arc::new(words)));
        columns.push(("id".to_owned(), Arc::new(Int64Array::from(ids))));
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let writer = writer.get_or_insert_with(|| {
            ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap()
        });
        writer.write(&batch).unwrap();
    }
    writer.unwrap().close().unwrap();
}
