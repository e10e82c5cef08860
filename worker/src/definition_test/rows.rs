//! Rows of a test as Arrow: values by the types of their columns, strictly, so that nothing is rounded or guessed.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use datafusion::arrow::array::{
    Array as _, ArrayRef, ListArray, RecordBatch, RecordBatchOptions, StringArray, new_null_array,
};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use indexmap::IndexMap;
use serde_json::Value;
use tidegate_registry::definitions::scalars::{WrittenTime, parse_time};
use tidegate_registry::model::{TestRow, TestValue};

use crate::types::{describe_one, timestamp};

/// A value that is none of its column.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{value}` cannot be a value of `{column}`, which is {kind}")]
pub(super) struct BadValue {
    value: String,
    column: String,
    kind: String,
}

impl BadValue {
    /// Why `value` cannot stand in a column of type `kind`, if it cannot.
    pub(super) fn of(column: &str, value: &TestValue, kind: &DataType) -> Option<Self> {
        array(kind, &[&value.value]).is_none().then(|| {
            let text = match &value.value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            Self { value: text, column: column.to_owned(), kind: describe_one(kind) }
        })
    }
}

/// `schema` whose columns may all be null: a test gives only what matters.
pub(super) fn nullable(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The columns that `rows` name, with types guessed from their values: booleans, bigints, doubles (if one has a fraction),
/// dates, timestamps (if all are), else strings.
pub(super) fn guessed(rows: &[TestRow]) -> SchemaRef {
    let mut columns: IndexMap<&str, Vec<&Value>> = IndexMap::new();
    for (name, value) in rows.iter().flat_map(|row| &row.values) {
        columns.entry(name).or_default().push(&value.value);
    }
    let fields = columns.iter().map(|(name, values)| Field::new(*name, guess(values), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn guess(values: &[&Value]) -> DataType {
    let values: Vec<&Value> = values.iter().copied().filter(|value| !value.is_null()).collect();
    let all = |fits: &dyn Fn(&Value) -> bool| values.iter().all(|value| fits(value));
    match values.as_slice() {
        [] => DataType::Null,
        _ if all(&Value::is_boolean) => DataType::Boolean,
        _ if all(&Value::is_i64) => DataType::Int64,
        _ if all(&Value::is_number) => DataType::Float64,
        _ if all(&|value| matches!(time(value), Some(WrittenTime::Date(_)))) => DataType::Date32,
        _ if all(&|value| matches!(time(value), Some(WrittenTime::Instant(_)))) => timestamp(),
        _ if all(&Value::is_array) => {
            let items: Vec<&Value> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
            DataType::List(Arc::new(Field::new("element", guess(&items), true)))
        }
        _ => DataType::Utf8,
    }
}

/// `rows` as a batch of `schema`; columns that a row leaves out are null, those that the schema does not have are ignored.
///
/// # Errors
/// [`BadValue`] for the first value that is none of its column.
pub(super) fn batch(schema: &SchemaRef, rows: &[TestRow]) -> Result<RecordBatch> {
    let mut arrays = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let of_column: Vec<Option<&TestValue>> = rows.iter().map(|row| row.values.get(field.name())).collect();
        let values: Vec<&Value> =
            of_column.iter().map(|value| value.map_or(&Value::Null, |value| &value.value)).collect();
        let Some(array) = array(field.data_type(), &values) else {
            let bad = of_column.into_iter().flatten();
            let bad = bad.filter_map(|value| BadValue::of(field.name(), value, field.data_type())).next();
            return Err(bad.with_context(|| format!("reading `{}`", field.name()))?.into());
        };
        arrays.push(array);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)?)
}

/// `None` when one of the values is none of this type.
fn array(kind: &DataType, values: &[&Value]) -> Option<ArrayRef> {
    if values.iter().all(|value| value.is_null()) {
        return Some(new_null_array(kind, values.len()));
    }
    if !values.iter().all(|value| value.is_null() || fits(kind, value)) {
        return None;
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    if let DataType::List(item) = kind {
        let items: Vec<&Value> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
        let lengths = values.iter().map(|value| value.as_array().map_or(0, Vec::len));
        let nulls: NullBuffer = values.iter().map(|value| !value.is_null()).collect();
        let items = array(item.data_type(), &items)?;
        let offsets = OffsetBuffer::from_lengths(lengths);
        return Some(Arc::new(ListArray::try_new(Arc::clone(item), offsets, items, Some(nulls)).ok()?));
    }
    if let Some(item) = item_of(kind) {
        let list = DataType::List(Arc::new(Field::new("element", item, true)));
        return cast_with_options(&array(&list, values)?, kind, &strict).ok();
    }
    let texts: StringArray = values
        .iter()
        .map(|value| match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
        .collect();
    let cast = cast_with_options(&texts, kind, &strict).ok()?;
    (cast.null_count() == texts.null_count()).then_some(cast)
}

fn item_of(kind: &DataType) -> Option<DataType> {
    match kind {
        DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => Some(item.data_type().clone()),
        _ => None,
    }
}

fn time(value: &Value) -> Option<WrittenTime> {
    value.as_str().and_then(parse_time)
}

/// Whether a value is written as one of this type is; what it says is found out by the cast.
fn fits(kind: &DataType, value: &Value) -> bool {
    match kind {
        DataType::Dictionary(_, kind) => fits(kind, value),
        DataType::Boolean => value.is_boolean(),
        DataType::List(_) => value.is_array(),
        other if item_of(other).is_some() => value.is_array(),
        DataType::Date32 | DataType::Date64 => matches!(time(value), Some(WrittenTime::Date(_))),
        DataType::Timestamp(_, Some(_)) => matches!(time(value), Some(WrittenTime::Instant(_))),
        other if other.is_floating() => {
            value.is_number() || matches!(value.as_str(), Some("NaN" | "Infinity" | "-Infinity"))
        }
        other if other.is_numeric() => value.is_number(),
        _ => value.is_string(),
    }
}
