//! Timestamps of any unit as whole numbers of one unit.
//!
//! Labels and history rows may come in different units. Both are counted in the finer of the two, never coarser than
//! microseconds, so that comparing them is exact: a label one nanosecond before a row does not see it. Conversions saturate;
//! with nanoseconds involved, instants before 1677 and after 2262 count as the first and the last instant of that span.
//! Zones do not matter, since a timestamp with a zone is stored in UTC; one without a zone is taken for UTC.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use datafusion::arrow::datatypes::{
    DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use datafusion::common::{Result, internal_err};
use datafusion::scalar::ScalarValue;

/// The unit of a timestamp type; `None` for other types.
pub(crate) fn unit_of(data_type: &DataType) -> Option<TimeUnit> {
    match data_type {
        DataType::Timestamp(unit, _) => Some(*unit),
        _ => None,
    }
}

/// The finest of the given units and microseconds.
pub(crate) fn finest(a: TimeUnit, b: TimeUnit) -> TimeUnit {
    if a == TimeUnit::Nanosecond || b == TimeUnit::Nanosecond { TimeUnit::Nanosecond } else { TimeUnit::Microsecond }
}

/// How many of `unit` make a second.
fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// How many of `unit`, which is not coarser, make a microsecond.
pub(crate) fn ticks_per_micro(unit: TimeUnit) -> i64 {
    per_second(unit) / per_second(TimeUnit::Microsecond)
}

/// An instant in microseconds as ticks of `unit`, which is not coarser.
pub(crate) fn micros_to_ticks(micros: i64, unit: TimeUnit) -> i64 {
    micros.saturating_mul(ticks_per_micro(unit))
}

/// The timestamps of `array` in ticks of `unit`, which is not coarser than theirs.
pub(crate) fn ticks(array: &ArrayRef, unit: TimeUnit) -> Result<Int64Array> {
    let Some(own) = unit_of(array.data_type()) else {
        return internal_err!("`{}` is no timestamp", array.data_type());
    };
    let values = match own {
        TimeUnit::Second => array.as_primitive::<TimestampSecondType>().values(),
        TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().values(),
        TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().values(),
        TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().values(),
    };
    let factor = per_second(unit) / per_second(own);
    let same = Int64Array::new(values.clone(), array.nulls().cloned());
    Ok(if factor == 1 { same } else { same.unary(|value: i64| value.saturating_mul(factor)) })
}

/// The last instant of type `data_type` that is not after `ticks` of `unit`.
pub(crate) fn scalar_floor(ticks: i64, unit: TimeUnit, data_type: &DataType) -> Option<ScalarValue> {
    scalar(ticks, unit, data_type, i64::div_euclid)
}

/// The first instant of type `data_type` that is not before `ticks` of `unit`.
pub(crate) fn scalar_ceil(ticks: i64, unit: TimeUnit, data_type: &DataType) -> Option<ScalarValue> {
    scalar(ticks, unit, data_type, |value, by| {
        value.div_euclid(by).saturating_add(i64::from(value.rem_euclid(by) != 0))
    })
}

fn scalar(ticks: i64, unit: TimeUnit, data_type: &DataType, divide: impl Fn(i64, i64) -> i64) -> Option<ScalarValue> {
    let DataType::Timestamp(own, zone) = data_type else { return None };
    let value = Some(divide(ticks, per_second(unit) / per_second(*own)));
    Some(match own {
        TimeUnit::Second => ScalarValue::TimestampSecond(value, zone.clone()),
        TimeUnit::Millisecond => ScalarValue::TimestampMillisecond(value, zone.clone()),
        TimeUnit::Microsecond => ScalarValue::TimestampMicrosecond(value, zone.clone()),
        TimeUnit::Nanosecond => ScalarValue::TimestampNanosecond(value, zone.clone()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{TimestampMicrosecondArray, TimestampSecondArray};

    use super::*;

    #[test]
    fn coarse_units_are_counted_in_fine_ones() {
        let seconds: ArrayRef = Arc::new(TimestampSecondArray::from(vec![Some(-1), None, Some(i64::MAX)]));
        let counted = ticks(&seconds, TimeUnit::Microsecond).unwrap();
        assert_eq!(counted, Int64Array::from(vec![Some(-1_000_000), None, Some(i64::MAX)]));
        let micros: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![5]));
        assert_eq!(ticks(&micros, TimeUnit::Nanosecond).unwrap().value(0), 5_000);
        assert_eq!(finest(TimeUnit::Second, TimeUnit::Second), TimeUnit::Microsecond);
        assert_eq!(finest(TimeUnit::Nanosecond, TimeUnit::Second), TimeUnit::Nanosecond);
    }

    /// A bound on a coarse column must not exclude what it bounds.
    #[test]
    fn bounds_are_rounded_outwards() {
        let seconds = DataType::Timestamp(TimeUnit::Second, None);
        let floor = |micros| scalar_floor(micros, TimeUnit::Microsecond, &seconds).unwrap();
        let ceil = |micros| scalar_ceil(micros, TimeUnit::Microsecond, &seconds).unwrap();
        let second = |second| ScalarValue::TimestampSecond(Some(second), None);
        assert_eq!((floor(1_999_999), ceil(1_000_001)), (second(1), second(2)));
        assert_eq!((floor(-1), ceil(-1)), (second(-1), second(0)));
        assert_eq!((floor(2_000_000), ceil(2_000_000)), (second(2), second(2)));
    }
}
