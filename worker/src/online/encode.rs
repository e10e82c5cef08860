//! Staged rows as an online store wants them.

use chrono::{DateTime, Duration};
use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use datafusion::arrow::record_batch::RecordBatch;
use tidegate_registry::model::{ColumnType, FeatureView, Key, Output};
use tidegate_registry::text::write_float;

use super::EncodedRow;
use crate::entity_key;
use crate::text::{NoText, TextColumn, into_text};
use crate::types::{EVENT_TIMESTAMP, timestamp};

/// Why rows could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The batch lacks a column.
    #[error("the rows have no column `{0}`")]
    MissingColumn(String),
    /// A column's values have no text.
    #[error("column `{column}` cannot be written as text")]
    NoText {
        /// The column.
        column: String,
        /// Its type.
        #[source]
        source: NoText,
    },
    /// A key or `event_timestamp` is null, or a time beyond what can be written.
    #[error("row {row} has no usable `{column}`")]
    Null {
        /// The column.
        column: String,
        /// The row's position in its batch.
        row: usize,
    },
}

/// A JSON object of feature name → canonical text, as rows have it, for the features of `view` that have a default.
pub fn defaults(view: &FeatureView) -> String {
    let with_default = view.features.iter().filter_map(|feature| Some((feature, feature.default.as_ref()?)));
    let texts = with_default.map(|(feature, default)| {
        let text = match (default, default.as_f64(), &feature.kind) {
            (serde_json::Value::String(text), ..) => text.clone(),
            // Written as `0`, it is still `0.0` in a column of floats.
            (_, Some(number), ColumnType::Float | ColumnType::Double) => {
                let mut text = Vec::new();
                write_float(number, &mut text);
                into_text(text)
            }
            (other, ..) => other.to_string(),
        };
        (feature.name.clone(), serde_json::Value::String(text))
    });
    serde_json::Value::Object(texts.collect()).to_string()
}

/// Encodes rows of `view`, which must have its keys, `event_timestamp` and features. Rows of a `partial` view expire
/// `ttl` after their `event_timestamp`.
///
/// # Errors
/// When a column is missing or cannot be written as text, or a key or time is null.
pub fn encode(view: &FeatureView, keys: &[Key], batch: &RecordBatch) -> Result<Vec<EncodedRow>, EncodeError> {
    let ttl = match view.output {
        Output::Full => None,
        // A time to live beyond what a date can hold is none.
        Output::Partial { ttl } => Duration::from_std(ttl).ok(),
    };
    let keys = keys.iter().map(|key| text_column(batch, &key.name)).collect::<Result<Vec<_>, _>>()?;
    let features = view.features.iter().map(|feature| text_column(batch, &feature.name));
    let features = features.collect::<Result<Vec<_>, _>>()?;
    let times = batch.column_by_name(EVENT_TIMESTAMP);
    let times = times.and_then(|times| cast(times, &timestamp()).ok());
    let times = times.ok_or_else(|| EncodeError::MissingColumn(EVENT_TIMESTAMP.to_owned()))?;
    let times = times.as_primitive::<TimestampMicrosecondType>();

    let mut rows = Vec::with_capacity(batch.num_rows());
    let mut text = Vec::new();
    for row in 0..batch.num_rows() {
        let null = |column: &str| EncodeError::Null { column: column.to_owned(), row };
        let entity_key = entity_key(&keys, row, &mut text)?;
        let micros = times.is_valid(row).then(|| times.value(row));
        let event_timestamp = micros.and_then(DateTime::from_timestamp_micros).ok_or_else(|| null(EVENT_TIMESTAMP))?;
        let features = features.iter().filter_map(|(name, values)| Some(((*name).to_owned(), values.text(row)?)));
        rows.push(EncodedRow {
            entity_key,
            event_timestamp,
            expires_at: ttl.and_then(|ttl| event_timestamp.checked_add_signed(ttl)),
            features: features.collect(),
        });
    }
    Ok(rows)
}

/// The keys of the entities in `batch`, which must have the columns `keys`.
///
/// # Errors
/// When a column is missing or cannot be written as text, or a key is null.
pub fn encode_keys(keys: &[Key], batch: &RecordBatch) -> Result<Vec<String>, EncodeError> {
    let columns = keys.iter().map(|key| text_column(batch, &key.name)).collect::<Result<Vec<_>, _>>()?;
    let mut text = Vec::new();
    (0..batch.num_rows()).map(|row| entity_key(&columns, row, &mut text)).collect()
}

/// The key of the entity in `row`; `text` is for use inside.
fn entity_key(keys: &[(&str, TextColumn)], row: usize, text: &mut Vec<u8>) -> Result<String, EncodeError> {
    let mut joined = Vec::new();
    for (position, (name, key)) in keys.iter().enumerate() {
        if key.is_null(row) {
            return Err(EncodeError::Null { column: (*name).to_owned(), row });
        }
        text.clear();
        key.write(row, text);
        entity_key::push_value(text, position == 0, &mut joined);
    }
    Ok(into_text(joined))
}

fn text_column<'a>(batch: &RecordBatch, name: &'a str) -> Result<(&'a str, TextColumn), EncodeError> {
    let array = batch.column_by_name(name).ok_or_else(|| EncodeError::MissingColumn(name.to_owned()))?;
    let column = TextColumn::new(array).map_err(|source| EncodeError::NoText { column: name.to_owned(), source })?;
    Ok((name, column))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use std::sync::Arc;
    use tidegate_registry::model::{Feature, SqlText};

    pub(in crate::online) fn view(output: Output) -> FeatureView {
        let feature = |name: &str, kind| Feature {
            name: name.to_owned(),
            kind,
            description: String::new(),
            default: None,
            tags: Vec::new(),
            origin: Default::default(),
        };
        FeatureView {
            id: "delays@v1".parse().unwrap(),
            entity: "route".parse().unwrap(),
            owner: "ana".parse().unwrap(),
            description: String::new(),
            tags: Vec::new(),
            sql: SqlText { text: String::new(), origin: Default::default() },
            reads: Vec::new(),
            checked_against: Vec::new(),
            output,
            serving_delay: Default::default(),
            features: vec![feature("x", ColumnType::Double), feature("n", ColumnType::Bigint)],
            checks: Vec::new(),
            online: None,
            freshness: None,
            restore_target: None,
            queue: None,
            pool: None,
            fingerprint: String::new(),
            origin: Default::default(),
        }
    }

    #[test]
    fn defaults_are_written_as_rows_have_them() {
        let mut view = view(Output::Full);
        assert_eq!(defaults(&view), "{}");
        view.features[0].default = Some(serde_json::json!(0));
        view.features[1].default = Some(serde_json::json!(-1));
        assert_eq!(defaults(&view), r#"{"x":"0.0","n":"-1"}"#);
    }

    fn keys() -> Vec<Key> {
        let key = |name: &str| Key { name: name.to_owned(), kind: ColumnType::String };
        vec![key("origin"), key("carrier")]
    }

    fn batch(time: Option<i64>) -> RecordBatch {
        let times = TimestampMicrosecondArray::from(vec![Some(1_000_000), time]).with_timezone("UTC");
        let columns: [(&str, ArrayRef); 5] = [
            ("carrier", Arc::new(StringArray::from(vec!["AA", "B:6"]))),
            ("origin", Arc::new(StringArray::from(vec!["EWR", "JFK"]))),
            (EVENT_TIMESTAMP, Arc::new(times)),
            ("n", Arc::new(Int64Array::from(vec![None, Some(-3)]))),
            ("x", Arc::new(Float64Array::from(vec![7.0, 0.1]))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
    }

    #[test]
    fn keys_are_joined_in_declared_order_and_nulls_left_out() {
        let rows = encode(&view(Output::Full), &keys(), &batch(Some(2_000_000))).unwrap();
        let shown: Vec<_> =
            rows.iter().map(|row| format!("{} {:?} {:?}", row.entity_key, row.features, row.expires_at)).collect();
        assert_eq!(shown, [r#"EWR:AA [("x", "7.0")] None"#, r#"JFK:B\:6 [("x", "0.1"), ("n", "-3")] None"#,]);
    }

    #[test]
    fn rows_of_a_partial_view_expire() {
        let partial = view(Output::Partial { ttl: std::time::Duration::from_secs(60) });
        let rows = encode(&partial, &keys(), &batch(Some(2_000_000))).unwrap();
        assert_eq!(rows[1].expires_at, DateTime::from_timestamp(62, 0));
        let forever = view(Output::Partial { ttl: std::time::Duration::MAX });
        assert_eq!(encode(&forever, &keys(), &batch(Some(0))).unwrap()[0].expires_at, None);
    }

    #[test]
    fn a_row_without_a_time_is_refused() {
        let error = encode(&view(Output::Full), &keys(), &batch(None)).unwrap_err();
        assert_eq!(error.to_string(), "row 1 has no usable `event_timestamp`");
    }
}
