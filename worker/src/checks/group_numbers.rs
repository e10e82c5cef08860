//! Numbers of each group of rows that have equal values in some columns: a mean, a share, how many rows there are.
//!
//! Profiles know columns as a whole, so these are counted beside them, in a bounded number of bytes for each of a bounded
//! number of groups (see [`super::groups`]). Different values are told by their hashes, which the memory pool must grant.
//! Quantiles would need a sketch for every group, and earlier intervals keep no groups: neither is offered.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::runtime_env::RuntimeEnv;
use tidegate_registry::model::{Check, Metric, Rule};
use tidegate_registry::run::{CheckResult, Verdict};
use xxhash_rust::xxh3::xxh3_128;

use super::groups::{BEFORE_GROUPS, NAMED_MAX, Room, name, texts};
use super::metrics::{none, shown};
use super::others::{Keys, Sum};
use super::result;
use super::rows::{Unjudgeable, column, recast};
use super::unique::{Already, hash_row};
use crate::text::TextColumn;

/// What a group needs, at most: its place among the others, where up to twice as many places are kept, and its name.
const BYTES_PER_GROUP: usize = 448;

/// The number of every group, for one check.
pub(super) struct GroupNumbers {
    check: Check,
    metric: Metric,
    bounds: (Option<f64>, Option<f64>),
    found: HashMap<u128, Group, BuildHasherDefault<Already>>,
    room: Room,
    /// Which values of which groups were seen, when different ones are counted.
    values: Keys,
    row: Vec<u8>,
    error: Option<Unjudgeable>,
}

impl std::fmt::Debug for GroupNumbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupNumbers")
            .field("check", &self.check.name)
            .field("found", &self.found.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Group {
    name: Box<str>,
    rows: u64,
    found: Found,
}

/// What a number is made from.
#[derive(Debug)]
enum Found {
    /// Rows, or different values.
    Count(u64),
    Share {
        part: u64,
        of: u64,
    },
    /// After Welford.
    Moments {
        count: u64,
        mean: f64,
        squares: f64,
    },
    Sum {
        count: u64,
        sum: Sum,
    },
}

impl Found {
    fn nothing(metric: &Metric) -> Self {
        match metric {
            Metric::RowCount | Metric::DistinctCount(_) | Metric::Quantile { .. } => Self::Count(0),
            Metric::NullRate(_) | Metric::TrueRatio(_) => Self::Share { part: 0, of: 0 },
            Metric::Mean(_) | Metric::Stddev(_) => Self::Moments { count: 0, mean: 0.0, squares: 0.0 },
            Metric::Sum(_) => Self::Sum { count: 0, sum: Sum::default() },
        }
    }

    /// Adds one of so many.
    fn counts(&mut self, is: bool) {
        match self {
            Self::Count(count) => *count += u64::from(is),
            Self::Share { part, of } => {
                *part += u64::from(is);
                *of += 1;
            }
            Self::Moments { .. } | Self::Sum { .. } => {}
        }
    }

    fn number(&mut self, value: f64) {
        match self {
            Self::Moments { count, mean, squares } => {
                *count += 1;
                let before = value - *mean;
                *mean += before / *count as f64;
                *squares += before * (value - *mean);
            }
            Self::Sum { count, sum } => {
                *count += 1;
                sum.add(value);
            }
            Self::Count(_) | Self::Share { .. } => {}
        }
    }

    fn whole(&mut self, value: i64) {
        if let Self::Sum { count, sum } = self {
            *count += 1;
            sum.add_whole(value);
        }
    }

    /// The number; `None` when there is nothing to take it from, as in profiles.
    fn value(&self, metric: &Metric) -> Option<f64> {
        let value = match *self {
            Self::Count(count) => Some(count as f64),
            Self::Share { part, of } => (of > 0).then(|| part as f64 / of as f64),
            Self::Moments { count, squares, .. } if matches!(metric, Metric::Stddev(_)) => {
                (count > 1).then(|| (squares / (count - 1) as f64).sqrt())
            }
            Self::Moments { count, mean, .. } => (count > 0).then_some(mean),
            Self::Sum { count, sum } => (count > 0).then(|| sum.value()),
        };
        value.filter(|value| value.is_finite())
    }
}

/// The column of a batch that a number is about.
enum Values<'a> {
    Rows,
    Nulls(Option<NullBuffer>),
    Different(TextColumn, Option<Float64Array>),
    Numbers(Float64Array),
    Whole(Int64Array),
    Trues(&'a BooleanArray),
}

impl<'a> Values<'a> {
    fn of(metric: &Metric, batch: &'a RecordBatch) -> Result<Self, Unjudgeable> {
        let Some(name) = metric.column() else { return Ok(Self::Rows) };
        let array = column(batch, name)?;
        let numbers =
            |array: &ArrayRef| Ok(recast(array, name, &DataType::Float64)?.as_primitive::<Float64Type>().clone());
        Ok(match metric {
            Metric::RowCount => Self::Rows,
            Metric::NullRate(_) => Self::Nulls(array.logical_nulls()),
            Metric::DistinctCount(_) => {
                let text = TextColumn::new(array).map_err(|error| Unjudgeable(error.to_string()))?;
                Self::Different(text, array.data_type().is_floating().then(|| numbers(array)).transpose()?)
            }
            Metric::Sum(_) if array.data_type().is_integer() => {
                Self::Whole(recast(array, name, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
            }
            Metric::Mean(_) | Metric::Stddev(_) | Metric::Sum(_) => Self::Numbers(numbers(array)?),
            Metric::TrueRatio(_) => {
                let trues = array.as_boolean_opt();
                Self::Trues(trues.ok_or_else(|| Unjudgeable(format!("`{name}` is not true or false")))?)
            }
            Metric::Quantile { .. } => return Err(Unjudgeable("quantiles are not known by group".to_owned())),
        })
    }

    /// Adds the value at `row` to what is found of its group, whose hash is `hash`.
    fn add(&self, row: usize, hash: u128, found: &mut Found, seen: &mut Keys) -> Result<(), Unjudgeable> {
        match self {
            Self::Rows => found.counts(true),
            Self::Nulls(nulls) => found.counts(nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))),
            Self::Trues(trues) if trues.is_valid(row) => found.counts(trues.value(row)),
            Self::Whole(values) if values.is_valid(row) => found.whole(values.value(row)),
            Self::Numbers(values) if values.is_valid(row) && values.value(row).is_finite() => {
                found.number(values.value(row));
            }
            Self::Different(texts, numbers) if !texts.is_null(row) => {
                let mut bytes = hash.to_le_bytes().to_vec();
                match numbers.as_ref().map(|numbers| numbers.value(row)) {
                    // As in profiles: NaN is no value, and the zeros are one.
                    Some(number) if number.is_nan() => return Ok(()),
                    Some(0.0) => bytes.push(b'0'),
                    _ => texts.write(row, &mut bytes),
                }
                let new = seen.insert(xxh3_128(&bytes)).map_err(|error| Unjudgeable(error.to_string()))?;
                found.counts(new);
            }
            // A value that is none.
            Self::Trues(_) | Self::Whole(_) | Self::Numbers(_) | Self::Different(..) => {}
        }
        Ok(())
    }
}

impl GroupNumbers {
    /// For `check`, when it is about a number of every group.
    pub(super) fn of(check: &Check, runtime: &RuntimeEnv) -> Option<Self> {
        if check.group_by.is_empty() {
            return None;
        }
        let (metric, bounds) = match &check.rule {
            Rule::RowCount { min, max, .. } => {
                (Metric::RowCount, (min.map(|min| min as f64), max.map(|max| max as f64)))
            }
            Rule::Bounds { metric, min, max } => (metric.clone(), (*min, *max)),
            _ => return None,
        };
        Some(Self {
            check: check.clone(),
            metric,
            bounds,
            found: HashMap::default(),
            room: Room::new(&check.group_by, BYTES_PER_GROUP, runtime),
            values: Keys::new("different values of groups", runtime),
            row: Vec::new(),
            error: None,
        })
    }

    /// The name of its check.
    pub(super) fn check(&self) -> &str {
        &self.check.name
    }

    pub(super) fn update(&mut self, batch: &RecordBatch) {
        if self.error.is_none() {
            self.error = self.count(batch).err();
        }
    }

    fn count(&mut self, batch: &RecordBatch) -> Result<(), Unjudgeable> {
        let texts = texts(batch, &self.check.group_by)?;
        let values = Values::of(&self.metric, batch)?;
        for row in 0..batch.num_rows() {
            hash_row(&texts, row, &mut self.row);
            let hash = xxh3_128(&self.row);
            if !self.found.contains_key(&hash) {
                self.room.make(self.found.len())?;
            }
            let new = || Group { name: name(&texts, row), rows: 0, found: Found::nothing(&self.metric) };
            let group = self.found.entry(hash).or_insert_with(new);
            group.rows += 1;
            values.add(row, hash, &mut group.found, &mut self.values)?;
        }
        Ok(())
    }

    /// How far `value` lies outside the bounds; `None` when it does not.
    fn outside(&self, value: f64) -> Option<f64> {
        let below = self.bounds.0.map(|min| min - value);
        let above = self.bounds.1.map(|max| value - max);
        below.into_iter().chain(above).find(|far| *far > 0.0)
    }

    /// The verdict.
    pub(super) fn finish(&self) -> CheckResult {
        let judged = |verdict, message| result(&self.check, verdict, message);
        if let Some(error) = &self.error {
            return judged(Verdict::Error, format!("could not be computed: {error}"));
        }
        let (all, of) = (self.found.len(), self.check.group_by.join(", "));
        if all == 0 {
            return judged(Verdict::Skipped, format!("there are no rows, and so no groups of {of}"));
        }
        let known = self.found.iter().filter_map(|(hash, group)| Some((hash, group, group.found.value(&self.metric)?)));
        let known: Vec<(&u128, &Group, f64)> = known.collect();
        if known.is_empty() {
            return none(&self.check, &self.metric);
        }
        let mut beyond: Vec<_> = known
            .iter()
            .filter_map(|(hash, group, value)| Some((self.outside(*value)?, &group.name, *hash, *group, *value)))
            .collect();
        // The hash makes the order the same every time where shortened names are equal.
        beyond.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
        let groups = |number: usize| if number == 1 { "group" } else { "groups" };
        let without = match all - known.len() {
            0 => String::new(),
            1 => "; 1 more has no value to take it from".to_owned(),
            more => format!("; {more} more have no value to take it from"),
        };
        let (metric, number) = (&self.metric, known.len());
        if beyond.is_empty() {
            let said = format!("the {metric} is as expected in each of {number} {} of {of}{without}", groups(number));
            return judged(Verdict::Passed, said);
        }
        let allowed = match self.bounds {
            (Some(min), Some(max)) => format!("outside {min} to {max}"),
            (Some(min), None) => format!("below {min}"),
            (None, Some(max)) => format!("above {max}"),
            (None, None) => "not allowed".to_owned(),
        };
        let worst = beyond.iter().take(NAMED_MAX).map(|(_, name, _, group, value)| match metric {
            Metric::RowCount => format!("{name} {}", shown(*value)),
            _ if group.rows == 1 => format!("{name} {} (1 row)", shown(*value)),
            _ => format!("{name} {} ({} rows)", shown(*value), group.rows),
        });
        let worst = worst.collect::<Vec<_>>().join(", ");
        let beyond = beyond.len();
        let said = format!("the {metric} is {allowed} in {beyond} of {number} {} of {of}{without}", groups(number));
        judged(Verdict::Failed, format!("{said}{BEFORE_GROUPS}{worst}"))
    }
}

#[cfg(test)]
#[path = "group_numbers_tests.rs"]
mod tests;
