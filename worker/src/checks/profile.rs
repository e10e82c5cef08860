//! Per-column statistics of what is staged: nulls, smallest and largest value.

use std::cmp::Ordering;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray};
use datafusion::arrow::compute::{cast, max, max_boolean, max_string, min, min_boolean, min_string};
use datafusion::arrow::datatypes::{
    ArrowNumericType, DataType, Date32Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use indexmap::IndexMap;
use tidegate_registry::profile::ColumnProfile;

use crate::text::TextColumn;

/// Longer texts are cut in profiles: they are for people, and kept for every run.
const TEXT_CHARACTERS_MAX: usize = 200;

#[derive(Debug)]
pub(super) struct Profiler {
    columns: IndexMap<String, Extremes>,
}

#[derive(Debug, Default)]
struct Extremes {
    nulls: u64,
    min: Option<ScalarValue>,
    max: Option<ScalarValue>,
}

impl Profiler {
    pub(super) fn new(columns: impl Iterator<Item = String>) -> Self {
        Self { columns: columns.map(|name| (name, Extremes::default())).collect() }
    }

    pub(super) fn update(&mut self, batch: &RecordBatch) {
        for (name, extremes) in &mut self.columns {
            if let Some(array) = batch.column_by_name(name) {
                extremes.update(array);
            }
        }
    }

    pub(super) fn finish(self) -> IndexMap<String, ColumnProfile> {
        let profile = |extremes: Extremes| ColumnProfile {
            nulls: extremes.nulls,
            min: extremes.min.as_ref().and_then(text),
            max: extremes.max.as_ref().and_then(text),
            ..ColumnProfile::default()
        };
        self.columns.into_iter().map(|(name, extremes)| (name, profile(extremes))).collect()
    }
}

impl Extremes {
    fn update(&mut self, array: &ArrayRef) {
        self.nulls += array.logical_null_count() as u64;
        if let Some((low, high)) = extremes(array) {
            replace(&mut self.min, low, Ordering::Less);
            replace(&mut self.max, high, Ordering::Greater);
        }
    }
}

fn replace(kept: &mut Option<ScalarValue>, candidate: ScalarValue, when: Ordering) {
    if kept.as_ref().is_none_or(|kept| candidate.partial_cmp(kept) == Some(when)) {
        *kept = Some(candidate);
    }
}

/// Smallest and largest value; none for lists, for types that views do not store, and when all are null.
fn extremes(array: &ArrayRef) -> Option<(ScalarValue, ScalarValue)> {
    match array.data_type() {
        DataType::Utf8 => {
            let texts = array.as_string::<i32>();
            Some((ScalarValue::from(min_string(texts)?), ScalarValue::from(max_string(texts)?)))
        }
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
            extremes(&cast(array, &DataType::Utf8).ok()?)
        }
        DataType::Boolean => {
            let values = array.as_boolean();
            Some((ScalarValue::from(min_boolean(values)?), ScalarValue::from(max_boolean(values)?)))
        }
        DataType::Int32 => numeric::<Int32Type>(array),
        DataType::Int64 => numeric::<Int64Type>(array),
        DataType::Float32 => numeric::<Float32Type>(array),
        DataType::Float64 => numeric::<Float64Type>(array),
        DataType::Date32 => numeric::<Date32Type>(array),
        DataType::Timestamp(_, Some(_)) => {
            numeric::<TimestampMicrosecondType>(&cast(array, &crate::types::timestamp()).ok()?)
        }
        _ => None,
    }
}

fn numeric<T: ArrowNumericType + ArrowPrimitiveType>(array: &ArrayRef) -> Option<(ScalarValue, ScalarValue)> {
    let values = array.as_primitive::<T>();
    let scalar = |value: T::Native| {
        let one = PrimitiveArray::<T>::from_iter_values([value]).with_data_type(array.data_type().clone());
        ScalarValue::try_from_array(&(Arc::new(one) as ArrayRef), 0).ok()
    };
    Some((scalar(min(values)?)?, scalar(max(values)?)?))
}

fn text(value: &ScalarValue) -> Option<String> {
    let text = TextColumn::new(&value.to_array().ok()?).ok()?.text(0)?;
    match text.char_indices().nth(TEXT_CHARACTERS_MAX) {
        Some((end, _)) => Some(format!("{}…", &text[..end])),
        None => Some(text),
    }
}
