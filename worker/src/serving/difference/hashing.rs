//! A 64-bit hash of a row, taken column by column.
//!
//! Each value is mixed into its row's hash by a function that is one-to-one in the value and in the hash so far. So two
//! rows that differ in one value of at most 64 bits never have the same hash, other rows by chance once in 2^64; and a null
//! is mixed in by another function, so that `(null, x)` is not `(x, null)`, and null is not zero or the empty text.

use anyhow::{Context as _, Result};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType,
};
use datafusion::arrow::row::{RowConverter, SortField};
use xxhash_rust::xxh3::xxh3_64;

/// Per row the hash of its values in `columns`.
pub(super) fn hash_rows(columns: &[ArrayRef], rows: usize) -> Result<Vec<u64>> {
    let mut hashes = vec![0; rows];
    for column in columns {
        mix_column(column, &mut hashes)?;
    }
    Ok(hashes)
}

fn mix_column(column: &ArrayRef, hashes: &mut [u64]) -> Result<()> {
    match column.data_type() {
        DataType::Int32 => mix_numbers::<Int32Type>(column, hashes, |value| value as u64),
        DataType::Int64 => mix_numbers::<Int64Type>(column, hashes, |value| value as u64),
        DataType::Float32 => mix_numbers::<Float32Type>(column, hashes, |value| u64::from(value.to_bits())),
        DataType::Float64 => mix_numbers::<Float64Type>(column, hashes, f64::to_bits),
        DataType::Date32 => mix_numbers::<Date32Type>(column, hashes, |value| value as u64),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            mix_numbers::<TimestampMicrosecondType>(column, hashes, |value| value as u64);
        }
        DataType::Boolean => {
            let flags = column.as_boolean();
            mix_each(column, hashes, |row| u64::from(flags.value(row)));
        }
        DataType::Utf8 => {
            let texts = column.as_string::<i32>();
            mix_each(column, hashes, |row| xxh3_64(texts.value(row).as_bytes()));
        }
        DataType::LargeUtf8 => {
            let texts = column.as_string::<i64>();
            mix_each(column, hashes, |row| xxh3_64(texts.value(row).as_bytes()));
        }
        DataType::Utf8View => {
            let texts = column.as_string_view();
            mix_each(column, hashes, |row| xxh3_64(texts.value(row).as_bytes()));
        }
        // Lists and what else there may be: two values are equal exactly when their bytes in arrow's row format are.
        other => {
            let converter = RowConverter::new(vec![SortField::new(other.clone())]).context("comparing rows")?;
            let values = converter.convert_columns(std::slice::from_ref(column)).context("comparing rows")?;
            mix_each(column, hashes, |row| xxh3_64(values.row(row).as_ref()));
        }
    }
    Ok(())
}

fn mix_numbers<T: ArrowPrimitiveType>(column: &ArrayRef, hashes: &mut [u64], bits: impl Fn(T::Native) -> u64) {
    let numbers: &PrimitiveArray<T> = column.as_primitive();
    if numbers.null_count() == 0 {
        for (hash, value) in hashes.iter_mut().zip(numbers.values()) {
            *hash = mix(*hash, bits(*value));
        }
    } else {
        mix_each(column, hashes, |row| bits(numbers.value(row)));
    }
}

fn mix_each(column: &ArrayRef, hashes: &mut [u64], value: impl Fn(usize) -> u64) {
    match column.logical_nulls().filter(|nulls| nulls.null_count() > 0) {
        None => hashes.iter_mut().enumerate().for_each(|(row, hash)| *hash = mix(*hash, value(row))),
        Some(nulls) => {
            for (row, hash) in hashes.iter_mut().enumerate() {
                *hash = if nulls.is_null(row) { mix_null(*hash) } else { mix(*hash, value(row)) };
            }
        }
    }
}

/// One-to-one in each of its arguments: odd factors, and the finish of SplitMix64.
fn mix(hash: u64, value: u64) -> u64 {
    let sum = hash.wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_add(value.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    let once = (sum ^ (sum >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let twice = (once ^ (once >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    twice ^ (twice >> 31)
}

fn mix_null(hash: u64) -> u64 {
    mix(hash.rotate_left(32) ^ 0xA076_1D64_78BD_642F, 0x8EBC_6AF0_9C88_C6E3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use datafusion::arrow::array::{BooleanArray, Float64Array, Int64Array, ListArray, StringArray, StringViewArray};

    fn hashes<const N: usize>(columns: &[ArrayRef; N]) -> Vec<u64> {
        hash_rows(columns, columns[0].len()).unwrap()
    }

    fn differ(mut hashes: Vec<u64>) {
        let all = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), all);
    }

    #[test]
    fn a_null_is_no_value_and_stands_in_its_column() {
        let one = Int64Array::from(vec![None, Some(1), None, Some(0), Some(1), Some(0)]);
        let other = Int64Array::from(vec![Some(1), None, None, None, Some(0), Some(1)]);
        differ(hashes(&[Arc::new(one), Arc::new(other)]));
        let texts = StringArray::from(vec![None, Some(""), Some("0")]);
        differ(hashes(&[Arc::new(texts)]));
        let flags = BooleanArray::from(vec![None, Some(false), Some(true)]);
        differ(hashes(&[Arc::new(flags)]));
        let lists = ListArray::from_iter_primitive::<Float64Type, _, _>(vec![
            None,
            Some(vec![]),
            Some(vec![None]),
            Some(vec![Some(0.0)]),
            Some(vec![Some(0.0), None]),
        ]);
        differ(hashes(&[Arc::new(lists)]));
    }

    #[test]
    fn floats_differ_where_their_texts_do() {
        differ(hashes(&[Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, f64::INFINITY, 1.0]))]));
    }

    #[test]
    fn texts_do_not_run_into_each_other() {
        let one = StringArray::from(vec!["a", "ab", ""]);
        let other = StringArray::from(vec!["bc", "c", "abc"]);
        differ(hashes(&[Arc::new(one), Arc::new(other)]));
    }

    #[test]
    fn physical_types_do_not_show() {
        let texts = [Some("short"), None, Some("longer than what fits into a view")];
        let plain = hashes(&[Arc::new(StringArray::from(texts.to_vec()))]);
        assert_eq!(plain, hashes(&[Arc::new(StringViewArray::from(texts.to_vec()))]));
    }

    #[test]
    fn one_changed_number_is_never_missed() {
        let many: Vec<i64> = (-50_000..50_000).collect();
        let same = Int64Array::from(vec![7; many.len()]);
        differ(hashes(&[Arc::new(Int64Array::from(many)), Arc::new(same)]));
    }
}
