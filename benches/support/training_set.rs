//! What the benchmarks of training sets share: the data, processes of their own for every measurement, and figures of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt64Array,
};
use datafusion::arrow::compute::take_record_batch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, Encoding, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::parquet::schema::types::ColumnPath;
use tempfile::TempDir;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PEERS: &str = include_str!("training_peers.py");
/// What ours may use, in bytes.
pub(crate) const MEMORY: usize = 768 << 20;
/// Not enough for the labels and the rows that they see.
pub(crate) const LITTLE_MEMORY: usize = 96 << 20;
const ROUNDS: usize = 3;
const ENTITIES: u64 = 200_000;
pub(crate) const DAYS: u64 = 90;
const DAY_MICROS: u64 = 86_400_000_000;
/// Days for which a history row counts.
pub(crate) const TTL_DAYS: u64 = 30;
pub(crate) const FEATURES: usize = 10;
/// How many of them the comparison with peers takes.
pub(crate) const COMPARED: usize = 8;
/// 2023-11-15T00:00:00Z.
const START_MICROS: i64 = 1_700_006_400_000_000;

/// A folder with the data, and who joins it.
pub(crate) struct Bench {
    pub(crate) folder: PathBuf,
    python: Option<String>,
    _made: Option<TempDir>,
}

impl Bench {
    /// As the arguments say: `--labels N --rows N` for the sizes, `--peers PYTHON` for DuckDB and Polars, `--folder DIR` to keep
    /// what is made or to find it there.
    pub(crate) fn open() -> Self {
        let number = |name: &str, default: u64| option(name).map_or(default, |text| text.parse().unwrap());
        let (labels, rows) = (number("--labels", 1_000_000), number("--rows", 10_000_000));
        let made = option("--folder").is_none().then(|| tempfile::tempdir().unwrap());
        let folder =
            made.as_ref().map_or_else(|| PathBuf::from(option("--folder").unwrap()), |made| made.path().into());
        std::fs::create_dir_all(&folder).unwrap();
        if !folder.join("labels.parquet").exists() {
            generate(&folder, labels, rows);
        }
        println!("{labels} labels, {rows} history rows, {ENTITIES} entities, {COMPARED} features, Parquet out");
        let python = option("--peers");
        if let Some(python) = &python {
            std::fs::write(folder.join("peers.py"), PEERS).unwrap();
            println!("peers: {}", text(Command::new(python).arg(folder.join("peers.py")).arg("versions")));
        }
        Self { folder, python, _made: made }
    }

    /// The medians of these measurements, made in turns and printed.
    pub(crate) fn measure(&self, contestants: &[&str]) -> Vec<Figure> {
        let mut figures = vec![Vec::new(); contestants.len()];
        for _ in 0..ROUNDS {
            for (contestant, figures) in contestants.iter().zip(&mut figures) {
                figures.push(self.run(contestant));
            }
        }
        let figures: Vec<Figure> = figures.into_iter().map(median).collect();
        for (contestant, figure) in contestants.iter().zip(&figures) {
            println!("{contestant:<14} {figure}");
        }
        figures
    }

    /// [`Bench::measure`] of ours and then of the peers, if there are any; the figures of ours, and the faster peer's.
    pub(crate) fn beside_peers(&self, ours: &[&str]) -> (Vec<Figure>, Option<Figure>) {
        let peers: &[&str] = if self.python.is_some() { &["duckdb", "polars"] } else { &[] };
        let mut figures = self.measure(&[ours, peers].concat());
        let faster = figures.split_off(ours.len()).into_iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds));
        (figures, faster)
    }

    /// Whether these files in the folder hold the same rows as those of the peers.
    pub(crate) fn equals_peers(&self, ours: &[&str]) -> bool {
        let Some(python) = &self.python else { return true };
        let outputs = ours.iter().chain(&["out-duckdb.parquet", "out-polars.parquet"]).map(|out| self.folder.join(out));
        let compared = text(Command::new(python).arg(self.folder.join("peers.py")).arg("compare").args(outputs));
        println!("{compared}");
        compared.starts_with("equal")
    }

    /// Measures `what` in a process of its own.
    fn run(&self, what: &str) -> Figure {
        let answer = match (what, &self.python) {
            ("duckdb" | "polars", Some(python)) => {
                text(Command::new(python).arg(self.folder.join("peers.py")).arg(what).arg(&self.folder))
            }
            _ => {
                let mut program = Command::new(std::env::current_exe().unwrap());
                text(program.args(["--measure", what, "--folder"]).arg(&self.folder))
            }
        };
        let mut numbers = answer.split_whitespace();
        let mut next = || numbers.next().unwrap().parse::<f64>().unwrap();
        Figure { seconds: next(), cpu_seconds: next(), peak_bytes: next() as u64 }
    }
}

/// The value that follows `name` among the arguments.
pub(crate) fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    seconds: f64,
    /// Of all cores together: what is left to compare on a machine that does other things meanwhile.
    cpu_seconds: f64,
    peak_bytes: u64,
}

impl Figure {
    pub(crate) fn ratio(self, other: Self) -> String {
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

fn text(command: &mut Command) -> String {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// What this process has used of all cores.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // counted after the name of the program, in hundredths of a second
    let numbers = stat.rsplit(')').next().unwrap().split_whitespace();
    numbers.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// The most memory that this process has occupied.
pub(crate) fn peak_rss_bytes() -> u64 {
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
