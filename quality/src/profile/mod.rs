//! One pass over a column: [`ColumnProfiler`].
//!
//! Arrays are looked at in chunks of a few thousand values. What can be exact is (counts, extremes, sums; mean and spread
//! up to rounding); the rest is sketched in bounded memory, with errors that are stated: different values ([`DISTINCT_ERROR`]),
//! quantiles ([`SKETCH_ERROR`], [`DRAW_ERROR`]), most frequent values (counted in the profile itself). Profilers of parts
//! are merged into what one profiler of the whole would know, sketches within the same bounds.

mod counting;
mod frequent;
mod moments;
mod numbers;
mod quantiles;
mod texts;

use std::cell::RefCell;

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use datasketches::hll::{Coupon, HllSketch, HllType, HllUnion};
use tidegate_registry::profile::{ColumnProfile, FrequentValue, ProfileKind};

use self::counting::{CHUNK, Counts};
use self::numbers::{Floats, Integers};
pub use self::quantiles::{DRAW_ERROR, SKETCH_ERROR};
use self::texts::Texts;

/// Standard deviation of the number of different values, as a part of it (HyperLogLog with 2¹² registers: 1.04 / 2⁶; below
/// a few hundred values it is next to nothing).
pub const DISTINCT_ERROR: f64 = 0.01625;

/// How many frequent values a profile lists at most.
pub const FREQUENT_MAX: usize = 16;

/// What a profiler holds in memory at most, in bytes, however many rows it sees and whatever they hold. (Besides, each
/// thread that profiles keeps 128 KiB to work with.)
pub const BYTES_MAX: usize = 72 * 1024;

const REGISTERS_LOG2: u8 = 12;

/// Collects the statistics of one column.
///
/// ```
/// use std::sync::Arc;
/// use arrow_array::{ArrayRef, Int64Array};
/// use tidegate_quality::profile::ColumnProfiler;
///
/// let first: ArrayRef = Arc::new(Int64Array::from(vec![Some(3), None, Some(5)]));
/// let second: ArrayRef = Arc::new(Int64Array::from(vec![4, 4]));
/// let mut profiler = ColumnProfiler::new(first.data_type());
/// profiler.update(&first)?;
/// let mut other = ColumnProfiler::new(second.data_type());
/// other.update(&second)?;
/// profiler.merge(other);
/// let profile = profiler.finish();
/// assert_eq!((profile.rows, profile.nulls, profile.mean), (5, 1, Some(4.0)));
/// assert_eq!(profile.max.as_deref(), Some("5"));
/// # Ok::<(), arrow_schema::ArrowError>(())
/// ```
#[derive(Debug)]
pub struct ColumnProfiler {
    rows: u64,
    nulls: u64,
    of: Of,
}

/// Large parts are boxed: profilers are kept by the thousand.
#[derive(Debug)]
enum Of {
    Integers(Box<Integers>),
    Floats(Box<Floats>),
    Texts(Box<Texts>),
    Booleans { trues: u64 },
    Other,
}

impl ColumnProfiler {
    /// For a column of type `data_type`. Of types that have no statistics here (lists, structs, decimals…), rows and nulls
    /// are counted.
    pub fn new(data_type: &DataType) -> Self {
        let integers = |kind| Of::Integers(Box::new(Integers::new(kind)));
        let of = match logical(data_type) {
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => integers(ProfileKind::Integer),
            DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => integers(ProfileKind::Integer),
            DataType::Date32 => integers(ProfileKind::Date),
            DataType::Timestamp(..) => integers(ProfileKind::Instant),
            DataType::Float32 => Of::Floats(Box::new(Floats::new(true))),
            DataType::Float16 | DataType::Float64 => Of::Floats(Box::new(Floats::new(false))),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Of::Texts(Box::default()),
            DataType::Boolean => Of::Booleans { trues: 0 },
            _ => Of::Other,
        };
        Self { rows: 0, nulls: 0, of }
    }

    /// Adds the values of `array`. Its type may differ from that of `new` in how values are laid out (a dictionary, a
    /// view, another width or unit), not in what they are.
    ///
    /// # Errors
    /// When values of the array's type cannot be taken for values of the column's; nothing was added then.
    pub fn update(&mut self, array: &ArrayRef) -> Result<(), ArrowError> {
        WORK.with_borrow_mut(|work| self.of.update(array, work))?;
        self.rows += array.len() as u64;
        self.nulls += array.logical_null_count() as u64;
        Ok(())
    }

    /// Adds what `other` has seen, as if it had been added here.
    ///
    /// # Panics
    /// When `other` was made for values of another kind, such as texts here and numbers there.
    pub fn merge(&mut self, other: Self) {
        match (&mut self.of, other.of) {
            (Of::Integers(ours), Of::Integers(theirs)) => ours.merge(&theirs),
            (Of::Floats(ours), Of::Floats(theirs)) => ours.merge(&theirs),
            (Of::Texts(ours), Of::Texts(theirs)) => ours.merge(*theirs),
            (Of::Booleans { trues }, Of::Booleans { trues: more }) => *trues += more,
            (Of::Other, Of::Other) => {}
            (ours, theirs) => panic!("profilers of one column merge, not {ours:?} with {theirs:?}"),
        }
        self.rows += other.rows;
        self.nulls += other.nulls;
    }

    /// What was found out.
    pub fn finish(self) -> ColumnProfile {
        let profile = ColumnProfile { rows: self.rows, nulls: self.nulls, ..ColumnProfile::default() };
        match self.of {
            Of::Integers(integers) => integers.finish(profile),
            Of::Floats(floats) => floats.finish(profile),
            Of::Texts(texts) => texts.finish(profile),
            Of::Booleans { trues } => booleans(profile, trues),
            Of::Other => profile,
        }
    }
}

/// The type of the values, without how they are packed.
fn logical(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => logical(values),
        DataType::RunEndEncoded(_, values) => logical(values.data_type()),
        plain => plain,
    }
}

impl Of {
    fn update(&mut self, array: &ArrayRef, work: &mut Work) -> Result<(), ArrowError> {
        match self {
            Self::Integers(integers) => match (integers.kind(), array.data_type()) {
                (ProfileKind::Integer, DataType::Int64) => integers.update::<Int64Type>(array.as_primitive(), work),
                (ProfileKind::Integer, DataType::Int32) => integers.update::<Int32Type>(array.as_primitive(), work),
                (ProfileKind::Integer, _) => {
                    integers.update::<Int64Type>(recast(array, &DataType::Int64)?.as_primitive(), work);
                }
                (ProfileKind::Date, _) => {
                    integers.update::<Date32Type>(recast(array, &DataType::Date32)?.as_primitive(), work);
                }
                (_, DataType::Timestamp(_, zone)) => {
                    let micros = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
                    integers.update::<TimestampMicrosecondType>(recast(array, &micros)?.as_primitive(), work);
                }
                (_, _) => {
                    let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
                    integers.update::<TimestampMicrosecondType>(recast(array, &micros)?.as_primitive(), work);
                }
            },
            Self::Floats(floats) => match array.data_type() {
                DataType::Float32 => floats.update::<Float32Type>(array.as_primitive(), work),
                _ => floats.update::<Float64Type>(recast(array, &DataType::Float64)?.as_primitive(), work),
            },
            Self::Texts(texts) => match array.data_type() {
                DataType::Utf8 => texts.update(array.as_string::<i32>(), work),
                DataType::LargeUtf8 => texts.update(array.as_string::<i64>(), work),
                _ => texts.update(recast(array, &DataType::Utf8View)?.as_string_view(), work),
            },
            Self::Booleans { trues } => *trues += recast(array, &DataType::Boolean)?.as_boolean().true_count() as u64,
            Self::Other => {}
        }
        Ok(())
    }
}

/// `array` as it is, or cast without turning what does not fit into nulls.
fn recast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(array.clone());
    }
    arrow_cast::cast_with_options(array, to, &arrow_cast::CastOptions { safe: false, ..Default::default() })
}

fn booleans(profile: ColumnProfile, trues: u64) -> ColumnProfile {
    let falses = profile.values() - trues;
    let mut frequent: Vec<FrequentValue> = [("false", falses), ("true", trues)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(value, count)| FrequentValue { value: value.to_owned(), count })
        .collect();
    frequent.sort_by_key(|value| std::cmp::Reverse(value.count));
    let text = |value: bool| (profile.values() > 0).then(|| value.to_string());
    ColumnProfile {
        kind: ProfileKind::Boolean,
        distinct: Some(frequent.len() as u64),
        min: text(falses == 0),
        max: text(trues > 0),
        trues: Some(trues),
        frequent,
        ..profile
    }
}

/// What a thread works with, whatever column it is at.
#[derive(Debug, Default)]
struct Work {
    floats: Vec<f64>,
    integers: Vec<i64>,
    counts: Counts,
}

thread_local! {
    static WORK: RefCell<Work> = RefCell::default();
}

/// How many different values there are.
#[derive(Debug)]
struct Distinct(HllSketch);

impl Default for Distinct {
    fn default() -> Self {
        Self(HllSketch::new(REGISTERS_LOG2, HllType::Hll8).expect("the number of registers is one of those allowed"))
    }
}

impl Distinct {
    /// Adds a value by its bits or its hash.
    #[inline]
    fn add(&mut self, key: u64) {
        self.0.update_with_coupon(Coupon::from_value(key));
    }

    fn merge(&mut self, other: &Self) {
        let mut union = HllUnion::new(REGISTERS_LOG2).expect("the number of registers is one of those allowed");
        union.update(&self.0);
        union.update(&other.0);
        self.0 = union.to_sketch(HllType::Hll8);
    }

    fn estimate(&self) -> u64 {
        self.0.estimate().round() as u64
    }
}

/// Calls `each` with the valid values of `values` as `to` makes them, at most [`CHUNK`] at a time, collected in `work`.
fn chunks<T: ArrowPrimitiveType, V: Copy + Default>(
    array: &arrow_array::PrimitiveArray<T>,
    work: &mut Vec<V>,
    to: impl Fn(T::Native) -> V,
    mut each: impl FnMut(&[V]),
) {
    work.resize(CHUNK, V::default());
    let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
    for start in (0..array.len()).step_by(CHUNK) {
        let values = &array.values()[start..array.len().min(start + CHUNK)];
        let mut filled = 0;
        if let Some(nulls) = nulls {
            // without a branch, which the processor would guess wrong where nulls are scattered
            for (row, value) in values.iter().enumerate() {
                work[filled] = to(*value);
                filled += usize::from(nulls.is_valid(start + row));
            }
        } else {
            for (place, value) in work.iter_mut().zip(values) {
                *place = to(*value);
            }
            filled = values.len();
        }
        each(&work[..filled]);
    }
}
