//! Rules that look at one row at a time.

use std::collections::HashSet;
use std::fmt;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use datafusion::arrow::record_batch::RecordBatch;
use tidegate_registry::time::{Instant, format_instant};

use super::others::Found;
use crate::text::TextColumn;
use crate::types::{self, EVENT_TIMESTAMP};

/// A rule over a stream of batches.
pub(super) trait RowRule: Send + fmt::Debug {
    /// The columns that it looks at; shown in samples.
    fn columns(&self) -> &[String];

    /// What was found in the other table that the rule is about; asked for before the first row.
    fn given(&mut self, _: Result<Found, String>) {}

    /// The rows of `batch` that break it.
    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable>;

    /// Rows that turn out to break it once all have been seen.
    fn finish(&mut self) -> Result<u64, Unjudgeable> {
        Ok(0)
    }

    /// What is said of a row that breaks it, after "has": `a null in flights_7d`.
    fn complaint(&self) -> String;
}

/// Why a rule could not be judged.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unjudgeable(pub(super) String);

/// The rows of a batch that break a rule.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Failing {
    /// Their positions, ascending.
    pub(super) rows: Vec<usize>,
    /// Whether the last row of the batch before, which was `open`, breaks it, too.
    pub(super) earlier: bool,
    /// Whether the next row tells if the last one breaks it.
    pub(super) open: bool,
}

impl Failing {
    /// The rows for which `holds` is false; not those for which it is null.
    pub(super) fn where_false(holds: &BooleanArray) -> Self {
        let mut failing = Self::default();
        if holds.true_count() + holds.null_count() < holds.len() {
            let rows = holds.iter().enumerate().filter(|(_, holds)| *holds == Some(false));
            rows.for_each(|(row, _)| failing.push(row));
        }
        failing
    }

    pub(super) fn push(&mut self, row: usize) {
        self.rows.push(row);
    }
}

pub(super) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, Unjudgeable> {
    batch.column_by_name(name).ok_or_else(|| Unjudgeable(format!("the rows have no column `{name}`")))
}

pub(super) fn recast(array: &ArrayRef, name: &str, to: &DataType) -> Result<ArrayRef, Unjudgeable> {
    let refused = || Unjudgeable(format!("column `{name}` is a {}", types::describe(array.data_type())));
    if array.data_type() == to { Ok(ArrayRef::clone(array)) } else { cast(array, to).map_err(|_| refused()) }
}

#[derive(Debug)]
pub(super) struct NotNull {
    columns: Vec<String>,
}

impl NotNull {
    pub(super) fn new(columns: &[String]) -> Self {
        Self { columns: columns.to_vec() }
    }
}

impl RowRule for NotNull {
    fn columns(&self) -> &[String] {
        &self.columns
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let mut valid: Option<NullBuffer> = None;
        for name in &self.columns {
            valid = NullBuffer::union(valid.as_ref(), column(batch, name)?.logical_nulls().as_ref());
        }
        let Some(valid) = valid.filter(|valid| valid.null_count() > 0) else { return Ok(Failing::default()) };
        Ok(Failing { rows: (0..valid.len()).filter(|&row| valid.is_null(row)).collect(), ..Failing::default() })
    }

    fn complaint(&self) -> String {
        format!("a null in {}", self.columns.join(" or "))
    }
}

#[derive(Debug)]
pub(super) struct Range {
    column: [String; 1],
    min: Option<f64>,
    max: Option<f64>,
}

impl Range {
    pub(super) fn new(column: &str, min: Option<f64>, max: Option<f64>) -> Self {
        Self { column: [column.to_owned()], min, max }
    }
}

impl RowRule for Range {
    fn columns(&self) -> &[String] {
        &self.column
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let array = column(batch, &self.column[0])?;
        if !array.data_type().is_numeric() && *array.data_type() != DataType::Null {
            return Err(Unjudgeable(format!(
                "column `{}` is a {}, not a number",
                self.column[0],
                types::describe(array.data_type())
            )));
        }
        let numbers = recast(array, &self.column[0], &DataType::Float64)?;
        let numbers = numbers.as_primitive::<Float64Type>();
        let (min, max) = (self.min.unwrap_or(f64::NEG_INFINITY), self.max.unwrap_or(f64::INFINITY));
        // IEEE comparison on purpose: NaN is inside no range, not even an open one
        let inside = |value: f64| value >= min && value <= max;
        if numbers.null_count() == 0 && numbers.values().iter().all(|&value| inside(value)) {
            return Ok(Failing::default());
        }
        let mut failing = Failing::default();
        for (row, value) in numbers.iter().enumerate() {
            if value.is_some_and(|value| !inside(value)) {
                failing.push(row);
            }
        }
        Ok(failing)
    }

    fn complaint(&self) -> String {
        let column = &self.column[0];
        match (self.min, self.max) {
            (Some(min), Some(max)) => format!("{column} outside {min} to {max}"),
            (Some(min), None) => format!("{column} below {min}"),
            (None, Some(max)) => format!("{column} above {max}"),
            (None, None) => format!("{column} that is not a number"),
        }
    }
}

#[derive(Debug)]
pub(super) struct AcceptedValues {
    column: [String; 1],
    /// Canonical texts.
    accepted: HashSet<Vec<u8>>,
    shown: String,
    text: Vec<u8>,
}

impl AcceptedValues {
    pub(super) fn new(column: &str, values: &[serde_json::Value]) -> Self {
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        const SHOWN_MAX: usize = 8;
        let mut shown = values.iter().take(SHOWN_MAX).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if values.len() > SHOWN_MAX {
            shown.push_str(", …");
        }
        let accepted = values.iter().map(|value| text(value).into_bytes()).collect();
        Self { column: [column.to_owned()], accepted, shown, text: Vec::new() }
    }
}

impl RowRule for AcceptedValues {
    fn columns(&self) -> &[String] {
        &self.column
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let array = column(batch, &self.column[0])?;
        if let Some(booleans) = array.as_boolean_opt() {
            let trues = booleans.true_count();
            let falses = booleans.len() - booleans.null_count() - trues;
            let has = |text: &str| self.accepted.contains(text.as_bytes());
            if (trues == 0 || has("true")) && (falses == 0 || has("false")) {
                return Ok(Failing::default());
            }
        }
        let values = TextColumn::new(array).map_err(|error| Unjudgeable(error.to_string()))?;
        let mut failing = Failing::default();
        for row in (0..batch.num_rows()).filter(|&row| !values.is_null(row)) {
            self.text.clear();
            values.write(row, &mut self.text);
            if !self.accepted.contains(&self.text) {
                failing.push(row);
            }
        }
        Ok(failing)
    }

    fn complaint(&self) -> String {
        format!("a value in {} that is none of {}", self.column[0], self.shown)
    }
}

/// `event_timestamp` is there and not after the interval's end: a feature known only later would leak the future into
/// training sets.
#[derive(Debug)]
pub(super) struct InTime {
    column: [String; 1],
    latest: Instant,
}

impl InTime {
    pub(super) fn new(latest: Instant) -> Self {
        Self { column: [EVENT_TIMESTAMP.to_owned()], latest }
    }
}

impl RowRule for InTime {
    fn columns(&self) -> &[String] {
        &self.column
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let array = recast(column(batch, EVENT_TIMESTAMP)?, EVENT_TIMESTAMP, &types::timestamp())?;
        let latest = self.latest.timestamp_micros();
        let mut failing = Failing::default();
        for (row, at) in array.as_primitive::<TimestampMicrosecondType>().iter().enumerate() {
            if at.is_none_or(|at| at > latest) {
                failing.push(row);
            }
        }
        Ok(failing)
    }

    fn complaint(&self) -> String {
        format!("an {EVENT_TIMESTAMP} that is null or after the interval's end {}", format_instant(self.latest))
    }
}
