//! The canonical text of a value: what online stores hold, what digests are taken of, what samples and profiles show.
//!
//! Integers in decimal; floats as the shortest text that reads back equal (`7.0`, `1e16`, `NaN`, `Infinity`); `true` and
//! `false`; days as `2013-01-08`; instants as RFC 3339 in UTC with 0, 3, 6 or 9 digits after the second; lists as JSON.
//! A null has no text. Two Arrow columns that hold the same values have the same text, whatever their physical type
//! (`Utf8View` or a dictionary, microseconds or nanoseconds).

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, GenericStringArray, PrimitiveArray, StringViewArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Field, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt64Type,
};
use std::sync::Arc;

use tidegate_registry::text::{write_date, write_float, write_instant, write_integer};

/// A column whose type has no canonical text (binary, maps, decimals…); views cannot declare such columns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a column of type `{0}` has no canonical text")]
pub struct NoText(pub DataType);

/// One column, ready to be written value by value.
#[derive(Debug)]
pub struct TextColumn {
    values: Values,
}

#[derive(Debug)]
enum Values {
    Null,
    Text(GenericStringArray<i32>),
    LargeText(GenericStringArray<i64>),
    TextView(StringViewArray),
    Boolean(BooleanArray),
    Int32(PrimitiveArray<Int32Type>),
    Int64(PrimitiveArray<Int64Type>),
    UInt64(PrimitiveArray<UInt64Type>),
    Float32(PrimitiveArray<Float32Type>),
    Float64(PrimitiveArray<Float64Type>),
    Date(PrimitiveArray<Date32Type>),
    Seconds(PrimitiveArray<TimestampSecondType>),
    Millis(PrimitiveArray<TimestampMillisecondType>),
    Micros(PrimitiveArray<TimestampMicrosecondType>),
    Nanos(PrimitiveArray<TimestampNanosecondType>),
    List { lists: ArrayRef, items: Box<TextColumn> },
}

impl TextColumn {
    /// Prepares `array`; cheap for the types that views are stored as, one cast for others.
    ///
    /// # Errors
    /// When values of the array's type have no canonical text.
    pub fn new(array: &dyn Array) -> Result<Self, NoText> {
        let unsupported = || NoText(array.data_type().clone());
        let recast = |to: &DataType| cast(array, to).map_err(|_| unsupported());
        let values = match array.data_type() {
            DataType::Null => Values::Null,
            DataType::Utf8 => Values::Text(array.as_string().clone()),
            DataType::LargeUtf8 => Values::LargeText(array.as_string().clone()),
            DataType::Utf8View => Values::TextView(array.as_string_view().clone()),
            DataType::Dictionary(_, value) => return Self::new(&recast(value)?),
            DataType::Boolean => Values::Boolean(array.as_boolean().clone()),
            DataType::Int32 => Values::Int32(array.as_primitive().clone()),
            DataType::Int64 => Values::Int64(array.as_primitive().clone()),
            DataType::UInt64 => Values::UInt64(array.as_primitive().clone()),
            other if other.is_integer() => return Self::new(&recast(&DataType::Int64)?),
            DataType::Float16 => return Self::new(&recast(&DataType::Float32)?),
            DataType::Float32 => Values::Float32(array.as_primitive().clone()),
            DataType::Float64 => Values::Float64(array.as_primitive().clone()),
            DataType::Date32 => Values::Date(array.as_primitive().clone()),
            DataType::Date64 => return Self::new(&recast(&DataType::Date32)?),
            DataType::Timestamp(TimeUnit::Second, Some(_)) => Values::Seconds(array.as_primitive().clone()),
            DataType::Timestamp(TimeUnit::Millisecond, Some(_)) => Values::Millis(array.as_primitive().clone()),
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => Values::Micros(array.as_primitive().clone()),
            DataType::Timestamp(TimeUnit::Nanosecond, Some(_)) => Values::Nanos(array.as_primitive().clone()),
            DataType::List(item) => {
                let lists: ArrayRef = Arc::new(array.as_list::<i32>().clone());
                let items = Box::new(Self::new(array.as_list::<i32>().values())?);
                debug_assert_eq!(item.data_type(), array.as_list::<i32>().values().data_type());
                Values::List { lists, items }
            }
            DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::ListView(item)
            | DataType::LargeListView(item) => {
                let list = DataType::List(Arc::new(Field::new("element", item.data_type().clone(), true)));
                return Self::new(&recast(&list)?);
            }
            _ => return Err(unsupported()),
        };
        Ok(Self { values })
    }

    /// Whether the value in `row` is null, and so has no text.
    pub fn is_null(&self, row: usize) -> bool {
        match &self.values {
            Values::Null => true,
            Values::Text(array) => array.is_null(row),
            Values::LargeText(array) => array.is_null(row),
            Values::TextView(array) => array.is_null(row),
            Values::Boolean(array) => array.is_null(row),
            Values::Int32(array) => array.is_null(row),
            Values::Int64(array) => array.is_null(row),
            Values::UInt64(array) => array.is_null(row),
            Values::Float32(array) => array.is_null(row),
            Values::Float64(array) => array.is_null(row),
            Values::Date(array) => array.is_null(row),
            Values::Seconds(array) => array.is_null(row),
            Values::Millis(array) => array.is_null(row),
            Values::Micros(array) => array.is_null(row),
            Values::Nanos(array) => array.is_null(row),
            Values::List { lists, .. } => lists.is_null(row),
        }
    }

    /// Appends the text of the value in `row`, which must not be null (a null appends what lies beneath it).
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        match &self.values {
            Values::Null => {}
            Values::Text(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Values::LargeText(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Values::TextView(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Values::Boolean(array) => out.extend_from_slice(if array.value(row) { b"true" } else { b"false" }),
            Values::Int32(array) => write_integer(array.value(row), out),
            Values::Int64(array) => write_integer(array.value(row), out),
            Values::UInt64(array) => write_integer(array.value(row), out),
            Values::Float32(array) => write_float(array.value(row), out),
            Values::Float64(array) => write_float(array.value(row), out),
            Values::Date(array) => write_date(i64::from(array.value(row)), out),
            Values::Seconds(array) => write_instant(array.value(row), 1, out),
            Values::Millis(array) => write_instant(array.value(row), 1_000, out),
            Values::Micros(array) => write_instant(array.value(row), 1_000_000, out),
            Values::Nanos(array) => write_instant(array.value(row), 1_000_000_000, out),
            Values::List { lists, items } => {
                let offsets = lists.as_list::<i32>().value_offsets();
                items.write_list(offsets[row] as usize..offsets[row + 1] as usize, out);
            }
        }
    }

    /// The text of the value in `row`; `None` when it is null.
    pub fn text(&self, row: usize) -> Option<String> {
        if self.is_null(row) {
            return None;
        }
        let mut out = Vec::new();
        self.write(row, &mut out);
        Some(into_text(out))
    }

    /// The value in `row` as JSON: numbers and booleans as such (what is not a JSON number as text), lists as arrays,
    /// everything else as its text.
    pub fn json(&self, row: usize) -> serde_json::Value {
        if self.is_null(row) {
            return serde_json::Value::Null;
        }
        let mut out = Vec::new();
        self.write_json(row, &mut out);
        serde_json::from_slice(&out).unwrap_or_else(|_| serde_json::Value::String(into_text(out)))
    }

    fn write_list(&self, rows: std::ops::Range<usize>, out: &mut Vec<u8>) {
        out.push(b'[');
        for (position, row) in rows.enumerate() {
            if position > 0 {
                out.push(b',');
            }
            if self.is_null(row) {
                out.extend_from_slice(b"null");
            } else {
                self.write_json(row, out);
            }
        }
        out.push(b']');
    }

    fn write_json(&self, row: usize, out: &mut Vec<u8>) {
        let finite = match &self.values {
            Values::Float32(array) => array.value(row).is_finite(),
            Values::Float64(array) => array.value(row).is_finite(),
            _ => true,
        };
        if finite && !self.is_text_in_json() {
            return self.write(row, out);
        }
        let mut text = Vec::new();
        self.write(row, &mut text);
        write_json_string(&into_text(text), out);
    }

    fn is_text_in_json(&self) -> bool {
        match &self.values {
            Values::Null
            | Values::Boolean(_)
            | Values::Int32(_)
            | Values::Int64(_)
            | Values::UInt64(_)
            | Values::Float32(_)
            | Values::Float64(_)
            | Values::List { .. } => false,
            Values::Text(_)
            | Values::LargeText(_)
            | Values::TextView(_)
            | Values::Date(_)
            | Values::Seconds(_)
            | Values::Millis(_)
            | Values::Micros(_)
            | Values::Nanos(_) => true,
        }
    }
}

/// Bytes written by this module as text.
pub(crate) fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn write_json_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("writing a string to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use datafusion::arrow::array::{
        BinaryArray, Date32Array, DictionaryArray, Float32Array, Float64Array, Int8Array, Int64Array, ListArray,
        StringArray, TimestampMicrosecondArray, TimestampNanosecondArray, UInt64Array,
    };
    use proptest::prelude::*;
    use tidegate_registry::time::format_instant;

    fn texts(array: &dyn Array) -> Vec<Option<String>> {
        let column = TextColumn::new(array).unwrap();
        (0..array.len()).map(|row| column.text(row)).collect()
    }

    fn some(values: &[&str]) -> Vec<Option<String>> {
        values.iter().map(|value| Some((*value).to_owned())).collect()
    }

    #[test]
    fn each_type_has_one_spelling() {
        assert_eq!(texts(&Int8Array::from(vec![Some(-8), None])), vec![Some("-8".into()), None]);
        assert_eq!(texts(&Int64Array::from(vec![i64::MIN])), some(&["-9223372036854775808"]));
        assert_eq!(texts(&UInt64Array::from(vec![u64::MAX])), some(&["18446744073709551615"]));
        assert_eq!(
            texts(&Float64Array::from(vec![7.0, 0.1, -0.0, 1e16, 1.5e-7, f64::NAN, f64::INFINITY, f64::NEG_INFINITY])),
            some(&["7.0", "0.1", "-0.0", "1e16", "1.5e-7", "NaN", "Infinity", "-Infinity"])
        );
        assert_eq!(texts(&Float32Array::from(vec![0.1])), some(&["0.1"]));
        assert_eq!(texts(&BooleanArray::from(vec![true, false])), some(&["true", "false"]));
        assert_eq!(texts(&Date32Array::from(vec![0, 15_713, -1])), some(&["1970-01-01", "2013-01-08", "1969-12-31"]));
        let micros = TimestampMicrosecondArray::from(vec![0, 1_500_000, 1, -1]).with_timezone("UTC");
        assert_eq!(
            texts(&micros),
            some(&[
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:01.500Z",
                "1970-01-01T00:00:00.000001Z",
                "1969-12-31T23:59:59.999999Z"
            ])
        );
        let nanos = TimestampNanosecondArray::from(vec![1_500_000_000]).with_timezone("+00:00");
        assert_eq!(texts(&nanos), some(&["1970-01-01T00:00:01.500Z"]));
    }

    #[test]
    fn physical_types_do_not_show() {
        let plain = StringArray::from(vec![Some("a"), None, Some("")]);
        let expected = texts(&plain);
        for to in [
            DataType::LargeUtf8,
            DataType::Utf8View,
            DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)),
        ] {
            assert_eq!(texts(&cast(&plain, &to).unwrap()), expected, "{to}");
        }
        let dictionary: DictionaryArray<Int32Type> = vec!["x", "y", "x"].into_iter().collect();
        assert_eq!(texts(&dictionary), some(&["x", "y", "x"]));
    }

    #[test]
    fn lists_are_json() {
        let numbers = ListArray::from_iter_primitive::<Float64Type, _, _>(vec![
            Some(vec![Some(1.0), None, Some(f64::NAN)]),
            None,
            Some(vec![]),
        ]);
        assert_eq!(texts(&numbers), vec![Some("[1.0,null,\"NaN\"]".into()), None, Some("[]".into())]);
        assert_eq!(texts(&numbers.slice(2, 1)), some(&["[]"]));
        let mut words = datafusion::arrow::array::ListBuilder::new(datafusion::arrow::array::StringBuilder::new());
        words.append_value([Some("a\"b"), Some("c,d")]);
        assert_eq!(texts(&words.finish()), some(&["[\"a\\\"b\",\"c,d\"]"]));
    }

    #[test]
    fn what_has_no_text_says_so() {
        let error = TextColumn::new(&BinaryArray::from(vec![&b"x"[..]])).unwrap_err();
        assert_eq!(error.to_string(), "a column of type `Binary` has no canonical text");
        // an instant without a zone could be anybody's
        assert!(TextColumn::new(&TimestampMicrosecondArray::from(vec![0])).is_err());
    }

    #[test]
    fn json_keeps_what_json_has() {
        let json = |array: &dyn Array| TextColumn::new(array).unwrap().json(0);
        assert_eq!(json(&Int64Array::from(vec![3])), serde_json::json!(3));
        assert_eq!(json(&Float64Array::from(vec![0.5])), serde_json::json!(0.5));
        assert_eq!(json(&Float64Array::from(vec![f64::NAN])), serde_json::json!("NaN"));
        assert_eq!(json(&StringArray::from(vec!["3"])), serde_json::json!("3"));
        assert_eq!(json(&Int64Array::from(vec![None::<i64>])), serde_json::Value::Null);
    }

    proptest! {
        #[test]
        fn floats_read_back_equal(value in any::<f64>()) {
            let text = texts(&Float64Array::from(vec![value])).remove(0).unwrap();
            let back: f64 = text.parse().unwrap();
            prop_assert!(back == value || (back.is_nan() && value.is_nan()), "{} {}", value, text);
        }

        #[test]
        fn instants_are_written_as_everywhere_else(micros in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
            let text = texts(&TimestampMicrosecondArray::from(vec![micros]).with_timezone("UTC")).remove(0).unwrap();
            prop_assert_eq!(text, format_instant(DateTime::from_timestamp_micros(micros).unwrap()));
        }
    }
}
