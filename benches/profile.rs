//! What the profile of a column costs: nanoseconds per value for every type, on one core.
//!
//! Values come in batches of 8,192, as from the engine. The goal is 20 ns a value for numbers: a profile of ten columns of
//! 10 million rows in 2 seconds of one core.
//!
//! `cargo bench -p tidegate-quality --bench profile --profile dist` measures what is shipped; without the profile,
//! dependencies, and with them the sketches, are only lightly optimised and take twice as long.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its figures and stops at the first surprise"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BooleanArray, Date32Array, DictionaryArray, Float32Array, Float64Array, Int32Array, Int64Array,
    StringArray, StringViewArray, TimestampMicrosecondArray,
};
use tidegate_quality::formats::Format;
use tidegate_quality::profile::ColumnProfiler;

const ROWS: usize = 4_000_000;
const BATCH: usize = 8192;

fn main() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut numbers = 0.0;
    let mut kinds = 0;
    let mut number = |name: &str, columns: Vec<ArrayRef>| {
        numbers += profile(name, &columns);
        kinds += 1;
    };
    number(
        "float64, normal",
        batches(|| Arc::new(Float64Array::from_iter_values((0..BATCH).map(|_| random.normal())))),
    );
    number(
        "float64, normal, 10 % null",
        batches(|| Arc::new(Float64Array::from_iter((0..BATCH).map(|_| random.unless(10).map(Random::normal))))),
    );
    number(
        "float64, 100 different",
        batches(|| Arc::new(Float64Array::from_iter_values((0..BATCH).map(|_| random.below(100) as f64 / 4.0)))),
    );
    number(
        "float32, normal",
        batches(|| Arc::new(Float32Array::from_iter_values((0..BATCH).map(|_| random.normal() as f32)))),
    );
    number(
        "int64, all different",
        batches(|| Arc::new(Int64Array::from_iter_values((0..BATCH).map(|_| random.next() as i64 >> 20)))),
    );
    number(
        "int64, 10,000 different",
        batches(|| Arc::new(Int64Array::from_iter_values((0..BATCH).map(|_| random.below(10_000) as i64)))),
    );
    number(
        "int32, 100 different",
        batches(|| Arc::new(Int32Array::from_iter_values((0..BATCH).map(|_| random.below(100) as i32)))),
    );
    number(
        "date32, one year",
        batches(|| Arc::new(Date32Array::from_iter_values((0..BATCH).map(|_| 15_706 + random.below(365) as i32)))),
    );
    number(
        "timestamp, one year",
        batches(|| {
            let values = (0..BATCH).map(|_| 1_357_000_000_000_000 + random.below(31_536_000_000_000) as i64);
            Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
        }),
    );
    println!("numbers on average {:>35.1} ns a value (goal: at most 20)", numbers / f64::from(kinds));
    profile("boolean", &batches(|| Arc::new(BooleanArray::from_iter((0..BATCH).map(|_| Some(random.below(2) == 0))))));
    let words: Vec<String> = (0..20).map(|word| format!("category {word}")).collect();
    profile(
        "utf8, 20 different",
        &batches(|| Arc::new(StringArray::from_iter_values((0..BATCH).map(|_| &words[random.below(20) as usize])))),
    );
    profile(
        "utf8 view, 20 different",
        &batches(|| Arc::new(StringViewArray::from_iter_values((0..BATCH).map(|_| &words[random.below(20) as usize])))),
    );
    let dictionary: ArrayRef = Arc::new(StringArray::from(words));
    profile(
        "dictionary, 20 different",
        &batches(|| {
            let keys = Int32Array::from_iter_values((0..BATCH).map(|_| random.below(20) as i32));
            Arc::new(DictionaryArray::<Int32Type>::new(keys, dictionary.clone()))
        }),
    );
    let names =
        batches(|| Arc::new(StringArray::from_iter_values((0..BATCH).map(|_| format!("user-{:016x}", random.next())))));
    profile("utf8, all different", &names);
    let days = batches(|| {
        let day = |random: &mut Random| format!("2013-{:02}-{:02}", 1 + random.below(12), 1 + random.below(28));
        Arc::new(StringArray::from_iter_values((0..BATCH).map(|_| day(&mut random))))
    });
    format("iso_date", Format::IsoDate, &days);
    let mails = batches(|| {
        Arc::new(StringArray::from_iter_values((0..BATCH).map(|_| format!("u{}@example.com", random.below(1000)))))
    });
    format("email", Format::Email, &mails);
    let ids = batches(|| {
        let id =
            |random: &mut Random| format!("{:08x}-0000-4000-8000-{:012x}", random.next() >> 32, random.next() >> 16);
        Arc::new(StringArray::from_iter_values((0..BATCH).map(|_| id(&mut random))))
    });
    format("uuid", Format::Uuid, &ids);
}

fn batches(mut batch: impl FnMut() -> ArrayRef) -> Vec<ArrayRef> {
    (0..ROWS / BATCH).map(|_| batch()).collect()
}

/// Nanoseconds a value.
fn profile(name: &str, batches: &[ArrayRef]) -> f64 {
    let run = || {
        let started = Clock::start();
        let mut profiler = ColumnProfiler::new(batches[0].data_type());
        for batch in batches {
            profiler.update(batch).unwrap();
        }
        let profile = profiler.finish();
        assert_eq!(profile.rows, (batches.len() * BATCH) as u64);
        started.elapsed()
    };
    shown(name, run(), run().min(run()), batches.len() * BATCH)
}

fn format(name: &str, format: Format, batches: &[ArrayRef]) {
    let run = || {
        let started = Clock::start();
        let good: usize = batches.iter().map(|batch| format.matches(batch).unwrap().true_count()).sum();
        assert_eq!(good, batches.len() * BATCH);
        started.elapsed()
    };
    shown(&format!("format {name}"), run(), run().min(run()), batches.len() * BATCH);
}

fn shown(name: &str, first: Duration, best: Duration, values: usize) -> f64 {
    let each = first.min(best).as_nanos() as f64 / values as f64;
    println!("{name:<28} {each:>25.1} ns a value");
    each
}

/// The time that this thread computed, where the system tells (Linux), so that what else runs does not count; else the
/// time that went by.
struct Clock(Option<u64>, Instant);

impl Clock {
    fn start() -> Self {
        Self(computed(), Instant::now())
    }

    fn elapsed(&self) -> Duration {
        match (self.0, computed()) {
            (Some(before), Some(after)) => Duration::from_nanos(after - before),
            _ => self.1.elapsed(),
        }
    }
}

fn computed() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse().ok()
}

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn normal(&mut self) -> f64 {
        let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (-2.0 * unit(self.next()).ln()).sqrt() * (std::f64::consts::TAU * unit(self.next())).cos()
    }

    fn unless(&mut self, percent: u64) -> Option<&mut Self> {
        (self.below(100) >= percent).then_some(self)
    }
}
