//! A training set: 1,000,000 labels joined with 10,000,000 history rows of 200,000 entities over 90 days, 8 features that live
//! 30 days, written to Parquet.
//!
//! The history is read from one unsorted Parquet file, and from files as the platform's tables have them: one per day, sorted by
//! entity. With `--peers PYTHON`, an interpreter that has `duckdb` and `polars`, both join the unsorted file in the same run,
//! in turns, and all results must be equal. A last part joins five histories of 10 features beside one.
//!
//! Every measurement is a process of its own, so that its peak memory is its own; ours may use 768 MiB, half of which the
//! engine's pool hands out, as in the binary. CPU time is printed beside time because it compares even on a busy machine.
//!
//! `cargo bench -p tidegate-asof --bench training --profile dist -- --peers PYTHON` measures what is shipped (`-- --labels
//! 100000 --rows 1000000` makes it smaller); exits with 1 when results differ. `-- --measure tables --folder DIR --explain` shows where
//! the time goes, with files that a run with `--folder DIR` has left.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its figures and stops at the first surprise"
)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::common::Column;
use datafusion::config::{ParquetColumnOptions, TableParquetOptions};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use tidegate_asof::{History, Rule, point_in_time, register};

#[path = "support/training_set.rs"]
mod training_set;

use training_set::{
    Bench, COMPARED, DAYS, FEATURES, LITTLE_MEMORY, MEMORY, TTL_DAYS, cpu_seconds, option, peak_rss_bytes,
};

fn main() -> ExitCode {
    if let Some(what) = option("--measure") {
        measure(&what, Path::new(&option("--folder").unwrap()));
        return ExitCode::SUCCESS;
    }
    let bench = Bench::open();
    let (ours, faster) = bench.beside_peers(&["unsorted", "tables"]);
    if let Some(faster) = faster {
        println!("own tables / faster peer     {} (target: at most 0.6)", ours[1].ratio(faster));
        println!("unsorted file / faster peer  {} (target: at most 1.2)", ours[0].ratio(faster));
    }
    if !bench.equals_peers(&["out-unsorted.parquet", "out-tables.parquet"]) {
        return ExitCode::FAILURE;
    }
    println!("own tables with {} MB, on disk:", LITTLE_MEMORY >> 20);
    bench.measure(&["little-memory"]);
    println!("one history of {FEATURES} features, and five:");
    let several = bench.measure(&["one-view", "five-views"]);
    println!("five / one                   {} (target: at most 2.5)", several[1].ratio(several[0]));
    ExitCode::SUCCESS
}

/// Joins and writes; prints seconds, seconds of CPU time, and the peak of this process in bytes.
fn measure(what: &str, folder: &Path) {
    let cores = std::thread::available_parallelism().unwrap().get();
    // Files are read on threads that may block, and every thread keeps freed memory of its own: of the 512 that tokio
    // would start, a join of 90 files needs twice the memory and half as much CPU time again.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        .max_blocking_threads(2 * cores)
        .enable_all()
        .build()
        .unwrap();
    let started = Instant::now();
    runtime.block_on(join(what, folder, cores));
    println!("{} {} {}", started.elapsed().as_secs_f64(), cpu_seconds(), peak_rss_bytes());
}

async fn join(what: &str, folder: &Path, cores: usize) {
    let memory = if what == "little-memory" { LITTLE_MEMORY } else { MEMORY };
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(memory / 2)))
        .with_temp_file_path(folder)
        .build_arc()
        .unwrap();
    let config = SessionConfig::new().with_target_partitions(cores);
    let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
    let context = SessionContext::new_with_state(register(builder).build());
    let (histories, features) = match what {
        "one-view" => (1, FEATURES),
        "five-views" => (5, FEATURES),
        _ => (1, COMPARED),
    };
    let table = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let labels = context.read_parquet(table("labels.parquet"), ParquetReadOptions::default()).await.unwrap();
    let mut joined = Vec::new();
    let mut options = TableParquetOptions::default();
    for number in 0..histories {
        let files: Vec<String> = match what {
            "unsorted" => vec![table("history.parquet")],
            // The engine reads them by name, oldest first, so that rows replace each other: the dearer way round.
            _ => (0..DAYS).map(|day| table(&format!("day-{day:02}.parquet"))).collect(),
        };
        let history = context.read_parquet(files, ParquetReadOptions::default()).await.unwrap();
        let rule = Rule::Event {
            time: Column::from_name("event_timestamp"),
            delay: Duration::ZERO,
            ttl: Some(Duration::from_secs(TTL_DAYS * 86_400)),
            tie_break: Vec::new(),
        };
        let name =
            |feature: usize| if histories == 1 { format!("f{feature}") } else { format!("v{number}_f{feature}") };
        // as `dataset build` writes them
        for feature in 0..features {
            let written = ParquetColumnOptions {
                dictionary_enabled: Some(false),
                encoding: Some("byte_stream_split".to_owned()),
                ..ParquetColumnOptions::default()
            };
            options.column_specific_options.insert(name(feature), written);
        }
        joined.push(History {
            name: format!("history {number}"),
            plan: history.into_unoptimized_plan(),
            keys: vec![(Column::from_name("entity"), Column::from_name("entity"))],
            rule,
            take: (0..features).map(|feature| (Column::from_name(format!("f{feature}")), name(feature))).collect(),
        });
    }
    let plan = point_in_time(labels.into_unoptimized_plan(), Column::from_name("event_timestamp"), joined).unwrap();
    let frame = context.execute_logical_plan(plan).await.unwrap();
    if std::env::args().any(|argument| argument == "--explain") {
        return frame.explain(false, true).unwrap().show().await.unwrap();
    }
    options.global.compression = Some("zstd(1)".into());
    // a writer holds a row group of all columns
    options.global.max_row_group_size = if what == "little-memory" { 65_536 } else { 1_000_000 / histories };
    let output = folder.join(format!("out-{what}.parquet"));
    let output = output.to_str().unwrap();
    frame
        .write_parquet(output, DataFrameWriteOptions::new().with_single_file_output(true), Some(options))
        .await
        .unwrap();
}
