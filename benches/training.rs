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

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt64Array,
};
use datafusion::arrow::compute::take_record_batch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::Column;
use datafusion::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, Encoding, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::parquet::schema::types::ColumnPath;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use tidegate_asof::{History, Rule, point_in_time, register};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PEERS: &str = include_str!("support/training_peers.py");
const MEMORY: usize = 768 << 20;
/// Not enough for the labels and the rows that they see.
const LITTLE_MEMORY: usize = 96 << 20;
const ROUNDS: usize = 3;
const ENTITIES: u64 = 200_000;
const DAYS: u64 = 90;
const DAY_MICROS: u64 = 86_400_000_000;
const TTL: Duration = Duration::from_secs(30 * 86_400);
const FEATURES: usize = 10;
/// How many of them the comparison with peers takes.
const COMPARED: usize = 8;
const START_MICROS: i64 = 1_700_006_400_000_000;

fn main() -> ExitCode {
    if let Some(what) = option("--measure") {
        measure(&what, Path::new(&option("--folder").unwrap()));
        return ExitCode::SUCCESS;
    }
    let number = |name: &str, default: u64| option(name).map_or(default, |text| text.parse().unwrap());
    let (labels, rows) = (number("--labels", 1_000_000), number("--rows", 10_000_000));
    let kept = option("--folder").map(PathBuf::from);
    let made = tempfile::tempdir().unwrap();
    let folder = kept.as_deref().unwrap_or(made.path());
    if !folder.join("labels.parquet").exists() {
        generate(folder, labels, rows);
    }
    println!("{labels} labels, {rows} history rows, {ENTITIES} entities, {COMPARED} features, Parquet out");

    let peers = option("--peers");
    let mut contestants = vec!["unsorted", "tables"];
    if let Some(python) = &peers {
        std::fs::write(folder.join("peers.py"), PEERS).unwrap();
        println!("peers: {}", text(Command::new(python).arg(folder.join("peers.py")).arg("versions")));
        contestants.extend(["duckdb", "polars"]);
    }
    let mut figures = vec![Vec::new(); contestants.len()];
    for _ in 0..ROUNDS {
        for (contestant, figures) in contestants.iter().zip(&mut figures) {
            figures.push(run(contestant, folder, peers.as_deref()));
        }
    }
    let figures: Vec<Figure> = figures.into_iter().map(median).collect();
    for (contestant, figure) in contestants.iter().zip(&figures) {
        println!("{contestant:<12} {figure}");
    }
    if let [unsorted, tables, peers @ ..] = figures.as_slice()
        && let Some(faster) = peers.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds))
    {
        println!("own tables / faster peer     {} (target: at most 0.6)", tables.ratio(*faster));
        println!("unsorted file / faster peer  {} (target: at most 1.2)", unsorted.ratio(*faster));
    }
    if let Some(python) = &peers {
        let outputs = contestants.iter().map(|contestant| folder.join(format!("out-{contestant}.parquet")));
        let compared = text(Command::new(python).arg(folder.join("peers.py")).arg("compare").args(outputs));
        println!("{compared}");
        if !compared.starts_with("equal") {
            return ExitCode::FAILURE;
        }
    }
    let little = run("little-memory", folder, None);
    println!("own tables with {} MB, on disk: {little}", LITTLE_MEMORY >> 20);
    let mut several = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (what, figures) in ["one-view", "five-views"].into_iter().zip(&mut several) {
            figures.push(run(what, folder, None));
        }
    }
    let [one, five] = several.map(median);
    println!("one history of {FEATURES} features   {one}");
    println!("five of {FEATURES} features          {five}");
    println!("five / one                   {} (target: at most 2.5)", five.ratio(one));
    ExitCode::SUCCESS
}

/// The value that follows `name` among the arguments.
fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

#[derive(Debug, Clone, Copy)]
struct Figure {
    seconds: f64,
    /// Of all cores together: what is left to compare on a machine that does other things meanwhile.
    cpu_seconds: f64,
    peak_bytes: u64,
}

impl Figure {
    fn ratio(self, other: Self) -> String {
        let (time, cpu) = (self.seconds / other.seconds, self.cpu_seconds / other.cpu_seconds);
        format!("{time:>5.2}, of CPU time {cpu:>5.2}")
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peak = self.peak_bytes >> 20;
        write!(f, "{:>7.2} s, {:>6.2} s of CPU time, peak {peak:>5} MB", self.seconds, self.cpu_seconds)
    }
}

fn median(mut figures: Vec<Figure>) -> Figure {
    figures.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    figures[figures.len() / 2]
}

/// Measures `what` in a process of its own.
fn run(what: &str, folder: &Path, python: Option<&str>) -> Figure {
    let answer = match (what, python) {
        ("duckdb" | "polars", Some(python)) => {
            text(Command::new(python).arg(folder.join("peers.py")).arg(what).arg(folder))
        }
        _ => {
            text(Command::new(std::env::current_exe().unwrap()).arg("--measure").arg(what).arg("--folder").arg(folder))
        }
    };
    let mut numbers = answer.split_whitespace();
    let mut next = || numbers.next().unwrap().parse::<f64>().unwrap();
    Figure { seconds: next(), cpu_seconds: next(), peak_bytes: next() as u64 }
}

fn text(command: &mut Command) -> String {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
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
    for number in 0..histories {
        let files: Vec<String> = match what {
            "unsorted" => vec![table("history.parquet")],
            // newest first: fewer candidates are replaced
            _ => (0..DAYS).rev().map(|day| table(&format!("day-{day:02}.parquet"))).collect(),
        };
        let history = context.read_parquet(files, ParquetReadOptions::default()).await.unwrap();
        let rule = Rule::Event {
            time: Column::from_name("event_timestamp"),
            delay: Duration::ZERO,
            ttl: Some(TTL),
            tie_break: Vec::new(),
        };
        let name =
            |feature: usize| if histories == 1 { format!("f{feature}") } else { format!("v{number}_f{feature}") };
        joined.push(History {
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
    let mut options = TableParquetOptions::default();
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

/// What this process has used of all cores.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // counted after the name of the program, in hundredths of a second
    let numbers = stat.rsplit(')').next().unwrap().split_whitespace();
    numbers.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// The most memory that this process has occupied.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// 30 bits behind the point, so that sums are exact.
    fn unit(&mut self) -> f64 {
        self.below(1 << 30) as f64 / f64::from(1 << 30)
    }
}

fn generate(folder: &Path, labels: u64, rows: u64) {
    let mut random = Random(42);
    let instant = |random: &mut Random| START_MICROS + i64::try_from(random.below(DAYS * DAY_MICROS)).unwrap();
    let time = Field::new("event_timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false);
    let entity = Field::new("entity", DataType::Int64, false);

    let schema = Arc::new(Schema::new(vec![Field::new("row", DataType::Int64, false), entity.clone(), time.clone()]));
    let entities = Int64Array::from_iter_values((0..labels).map(|_| random.below(ENTITIES).cast_signed()));
    let times = TimestampMicrosecondArray::from_iter_values((0..labels).map(|_| instant(&mut random)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(0..labels.cast_signed())),
        Arc::new(entities),
        Arc::new(times.with_timezone("UTC")),
    ];
    write(&folder.join("labels.parquet"), &schema, &RecordBatch::try_new(Arc::clone(&schema), columns).unwrap(), false);

    let mut fields = vec![entity, time];
    fields.extend((0..FEATURES).map(|feature| Field::new(format!("f{feature}"), DataType::Float64, true)));
    let schema = Arc::new(Schema::new(fields));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values((0..rows).map(|_| random.below(ENTITIES).cast_signed()))),
        Arc::new(
            TimestampMicrosecondArray::from_iter_values((0..rows).map(|_| instant(&mut random))).with_timezone("UTC"),
        ),
    ];
    for _ in 0..FEATURES {
        columns.push(Arc::new(Float64Array::from_iter_values((0..rows).map(|_| random.unit()))));
    }
    let history = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    write(&folder.join("history.parquet"), &schema, &history, false);

    let entities = history.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
    let times = history.column(1).as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap();
    let mut days: Vec<Vec<u64>> = vec![Vec::new(); usize::try_from(DAYS).unwrap()];
    for row in 0..history.num_rows() {
        let day = (times.value(row) - START_MICROS).cast_unsigned() / DAY_MICROS;
        days[usize::try_from(day).unwrap()].push(row as u64);
    }
    for (day, mut rows) in days.into_iter().enumerate() {
        rows.sort_by_key(|row| {
            let row = usize::try_from(*row).unwrap();
            (entities.value(row), times.value(row))
        });
        let rows = take_record_batch(&history, &UInt64Array::from(rows)).unwrap();
        write(&folder.join(format!("day-{day:02}.parquet")), &schema, &rows, true);
    }
}

fn write(path: &Path, schema: &SchemaRef, rows: &RecordBatch, ours: bool) {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(1_000_000));
    // as the platform writes its tables
    for field in schema.fields().iter().filter(|field| ours && field.data_type().is_floating()) {
        let column = ColumnPath::from(field.name().as_str());
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::BYTE_STREAM_SPLIT);
    }
    let properties = properties.build();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), Arc::clone(schema), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
}
