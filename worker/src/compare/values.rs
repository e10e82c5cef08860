//! Two columns of what should be the same feature: in which type they can be compared, and whether two values agree.
//!
//! Nothing is lost on the way into the common type, so values that differ never look alike: whole numbers and floating-point
//! numbers are compared exactly, although neither type holds all values of the other. The one exception is a decimal beside
//! a floating-point number, which agrees when the latter is the nearest one there is.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use datafusion::arrow::array::{Array, ArrayRef, AsArray as _, PrimitiveArray};
use datafusion::arrow::array::{BooleanArray, StringViewArray};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Date32Type, Decimal128Type, Field, Float64Type, Int64Type, TimeUnit};

use crate::types::timestamp;

/// Digits of a bigint.
const BIGINT_DIGITS: u8 = 19;
/// Digits of an unsigned 64-bit number.
const UNSIGNED_DIGITS: u8 = 20;
/// Digits of the largest decimals that are compared.
const DECIMAL_DIGITS: u8 = 38;

/// How far apart two numbers may be and still agree.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Tolerance {
    /// Not at all; NaN agrees with NaN, and -0 with 0.
    #[default]
    Exact,
    /// So far, in the feature's own unit.
    Absolute(f64),
    /// So large a share (1 is all) of the larger of the two magnitudes.
    Relative(f64),
}

impl Tolerance {
    fn allows(self, ours: f64, theirs: f64, distance: f64) -> bool {
        match self {
            Self::Exact => false,
            Self::Absolute(most) => distance <= most,
            Self::Relative(share) => distance <= share * ours.abs().max(theirs.abs()),
        }
    }
}

impl FromStr for Tolerance {
    type Err = String;

    /// `0.001` is absolute, `0.1%` relative.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (number, percent) = text.strip_suffix('%').map_or((text, false), |number| (number.trim(), true));
        let number: Option<f64> = number.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
        match number {
            None => Err("expected a number of at least 0, as in 0.001, or a share, as in 0.1%".to_owned()),
            Some(0.0) => Ok(Self::Exact),
            Some(number) if percent => Ok(Self::Relative(number / 100.0)),
            Some(number) => Ok(Self::Absolute(number)),
        }
    }
}

/// The types into which a feature's two columns are cast to be compared; `None` when they hold different kinds of things.
pub(super) fn common(ours: &DataType, theirs: &DataType) -> Option<(DataType, DataType)> {
    use DataType as T;
    let both = |kind: DataType| Some((kind.clone(), kind));
    match (plain(ours), plain(theirs)) {
        (T::Null, T::Null) => both(T::Boolean),
        (T::Null, kind) | (kind, T::Null) => common(&kind, &kind),
        (T::UInt64, T::UInt64) => both(T::Decimal128(UNSIGNED_DIGITS, 0)),
        (T::UInt64, other) | (other, T::UInt64) if other.is_integer() => both(T::Decimal128(UNSIGNED_DIGITS, 0)),
        (ours, theirs) if ours.is_integer() && theirs.is_integer() => both(T::Int64),
        (ours, theirs) if ours.is_floating() && theirs.is_floating() => both(T::Float64),
        (ours, theirs) if ours.is_integer() && theirs.is_floating() => Some((T::Int64, T::Float64)),
        (ours, theirs) if ours.is_floating() && theirs.is_integer() => Some((T::Float64, T::Int64)),
        (T::Decimal128(p, s), T::Decimal128(q, r)) => both(decimal(whole(p, s)?.max(whole(q, r)?), s.max(r))?),
        (T::Decimal128(p, s), other) | (other, T::Decimal128(p, s)) if other.is_integer() => {
            let digits = if other == T::UInt64 { UNSIGNED_DIGITS } else { BIGINT_DIGITS };
            both(decimal(whole(p, s)?.max(digits), s)?)
        }
        (T::Decimal128(..), other) | (other, T::Decimal128(..)) if other.is_floating() => both(T::Float64),
        (T::Utf8View, T::Utf8View) => both(T::Utf8View),
        (T::Boolean, T::Boolean) => both(T::Boolean),
        (T::Date32, T::Date32) => both(T::Date32),
        (T::Date32, T::Timestamp(unit, _)) | (T::Timestamp(unit, _), T::Date32) => both(instant(unit)),
        (T::Timestamp(one, _), T::Timestamp(other, _)) => both(instant(finer(one, other))),
        (T::List(ours), T::List(theirs)) => {
            let (ours, theirs) = common(ours.data_type(), theirs.data_type())?;
            Some((list(ours), list(theirs)))
        }
        _ => None,
    }
}

/// The type in which two key columns find each other; `None` when they cannot.
pub(super) fn common_key(ours: &DataType, theirs: &DataType) -> Option<DataType> {
    match (plain(ours), plain(theirs)) {
        (ours, theirs) if ours.is_integer() && theirs.is_integer() => Some(DataType::Int64),
        // A join of views of text is none in every version of the engine.
        (DataType::Utf8View, DataType::Utf8View) => Some(DataType::Utf8),
        (ours, theirs) => {
            let exact = matches!(ours, DataType::Boolean | DataType::Date32 | DataType::Timestamp(..));
            let (ours, theirs) = common(&ours, &theirs).filter(|_| exact)?;
            (ours == theirs).then_some(ours)
        }
    }
}

/// One type for all that hold the same kind of thing.
fn plain(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Dictionary(_, values) => plain(values),
        DataType::Date64 => DataType::Date32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => DataType::List(Arc::clone(item)),
        other => other.clone(),
    }
}

fn instant(unit: TimeUnit) -> DataType {
    // As fine as our own at least, which is what a zoneless or coarse one is cast to.
    match unit {
        TimeUnit::Nanosecond => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        _ => timestamp(),
    }
}

fn finer(one: TimeUnit, other: TimeUnit) -> TimeUnit {
    if one == TimeUnit::Nanosecond { one } else { other }
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", item, true)))
}

/// Digits before the point.
fn whole(precision: u8, scale: i8) -> Option<u8> {
    precision.checked_sub(u8::try_from(scale).ok()?)
}

fn decimal(whole: u8, scale: i8) -> Option<DataType> {
    let digits = whole.checked_add(u8::try_from(scale).ok()?).filter(|digits| *digits <= DECIMAL_DIGITS)?;
    Some(DataType::Decimal128(digits.max(1), scale))
}

/// What became of two values of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Verdict {
    /// They agree; both may be null.
    Equal,
    /// Only ours is null.
    NullOurs,
    /// Only theirs is null.
    NullTheirs,
    /// They differ.
    Different,
}

/// Two columns of the types that [`common`] gave.
pub(super) struct Pair {
    ours: ArrayRef,
    theirs: ArrayRef,
    values: Values,
    tolerance: Tolerance,
}

enum Values {
    Bigints(PrimitiveArray<Int64Type>, PrimitiveArray<Int64Type>),
    Doubles(PrimitiveArray<Float64Type>, PrimitiveArray<Float64Type>),
    /// Whether the whole numbers are ours.
    Mixed(PrimitiveArray<Int64Type>, PrimitiveArray<Float64Type>, bool),
    /// Of one scale.
    Decimals(PrimitiveArray<Decimal128Type>, PrimitiveArray<Decimal128Type>, f64),
    Texts(StringViewArray, StringViewArray),
    Booleans(BooleanArray, BooleanArray),
    Dates(PrimitiveArray<Date32Type>, PrimitiveArray<Date32Type>),
    /// Of one unit.
    Instants(PrimitiveArray<Int64Type>, PrimitiveArray<Int64Type>),
    Lists(OffsetBuffer<i32>, OffsetBuffer<i32>, Box<Pair>),
}

impl Pair {
    /// Prepares two columns of one length.
    ///
    /// # Errors
    /// When their types are none that [`common`] gives.
    pub(super) fn new(ours: &ArrayRef, theirs: &ArrayRef, tolerance: Tolerance) -> Result<Self> {
        use DataType as T;
        let numbers = |array: &ArrayRef| -> Result<PrimitiveArray<Int64Type>> {
            Ok(cast(array, &DataType::Int64).context("reading instants")?.as_primitive::<Int64Type>().clone())
        };
        let values = match (ours.data_type(), theirs.data_type()) {
            (T::Int64, T::Int64) => Values::Bigints(ours.as_primitive().clone(), theirs.as_primitive().clone()),
            (T::Float64, T::Float64) => Values::Doubles(ours.as_primitive().clone(), theirs.as_primitive().clone()),
            (T::Int64, T::Float64) => Values::Mixed(ours.as_primitive().clone(), theirs.as_primitive().clone(), true),
            (T::Float64, T::Int64) => Values::Mixed(theirs.as_primitive().clone(), ours.as_primitive().clone(), false),
            (T::Decimal128(_, scale), T::Decimal128(_, same)) if scale == same => {
                let unit = 10_f64.powi(-i32::from(*scale));
                Values::Decimals(ours.as_primitive().clone(), theirs.as_primitive().clone(), unit)
            }
            (T::Utf8View, T::Utf8View) => Values::Texts(ours.as_string_view().clone(), theirs.as_string_view().clone()),
            (T::Boolean, T::Boolean) => Values::Booleans(ours.as_boolean().clone(), theirs.as_boolean().clone()),
            (T::Date32, T::Date32) => Values::Dates(ours.as_primitive().clone(), theirs.as_primitive().clone()),
            (T::Timestamp(unit, _), T::Timestamp(same, _)) if unit == same => {
                Values::Instants(numbers(ours)?, numbers(theirs)?)
            }
            (T::List(_), T::List(_)) => {
                let (a, b) = (ours.as_list::<i32>(), theirs.as_list::<i32>());
                let items = Self::new(a.values(), b.values(), tolerance)?;
                Values::Lists(a.offsets().clone(), b.offsets().clone(), Box::new(items))
            }
            (ours, theirs) => bail!("columns of {ours} and {theirs} were not made comparable"),
        };
        Ok(Self { ours: Arc::clone(ours), theirs: Arc::clone(theirs), values, tolerance })
    }

    /// What becomes of our value in `row` beside theirs in the same row; and how far apart they are when both are finite
    /// numbers, 0 when they are the same.
    pub(super) fn judge(&self, row: usize) -> (Verdict, Option<f64>) {
        self.judge_apart(row, row)
    }

    fn judge_apart(&self, our_row: usize, their_row: usize) -> (Verdict, Option<f64>) {
        match (self.ours.is_null(our_row), self.theirs.is_null(their_row)) {
            (true, true) => (Verdict::Equal, None),
            (true, false) => (Verdict::NullOurs, None),
            (false, true) => (Verdict::NullTheirs, None),
            (false, false) => self.judge_values(our_row, their_row),
        }
    }

    fn judge_values(&self, a: usize, b: usize) -> (Verdict, Option<f64>) {
        let plain = |equal: bool| (if equal { Verdict::Equal } else { Verdict::Different }, None);
        match &self.values {
            Values::Bigints(ours, theirs) => {
                let (ours, theirs) = (ours.value(a), theirs.value(b));
                self.numbers(ours == theirs, ours as f64, theirs as f64, ours.abs_diff(theirs) as f64)
            }
            Values::Doubles(ours, theirs) => {
                let (ours, theirs) = (ours.value(a), theirs.value(b));
                let equal = ours == theirs || ours.is_nan() && theirs.is_nan();
                self.numbers(equal, ours, theirs, (ours - theirs).abs())
            }
            Values::Mixed(whole, floating, whole_is_ours) => {
                let (at_whole, at_floating) = if *whole_is_ours { (a, b) } else { (b, a) };
                let (whole, floating) = (whole.value(at_whole), floating.value(at_floating));
                let (equal, distance) = apart(whole, floating);
                self.numbers(equal, whole as f64, floating, distance)
            }
            Values::Decimals(ours, theirs, unit) => {
                let (ours, theirs) = (ours.value(a), theirs.value(b));
                let distance = ours.abs_diff(theirs) as f64 * unit;
                self.numbers(ours == theirs, ours as f64 * unit, theirs as f64 * unit, distance)
            }
            Values::Texts(ours, theirs) => plain(ours.value(a) == theirs.value(b)),
            Values::Booleans(ours, theirs) => plain(ours.value(a) == theirs.value(b)),
            Values::Dates(ours, theirs) => plain(ours.value(a) == theirs.value(b)),
            Values::Instants(ours, theirs) => plain(ours.value(a) == theirs.value(b)),
            Values::Lists(ours, theirs, items) => {
                let range = |offsets: &OffsetBuffer<i32>, row: usize| offsets[row] as usize..offsets[row + 1] as usize;
                let (ours, theirs) = (range(ours, a), range(theirs, b));
                let same = |(a, b)| items.judge_apart(a, b).0 == Verdict::Equal;
                plain(ours.len() == theirs.len() && ours.zip(theirs).all(same))
            }
        }
    }

    fn numbers(&self, equal: bool, ours: f64, theirs: f64, distance: f64) -> (Verdict, Option<f64>) {
        // Infinities that are the same are no NaN apart.
        let distance = if equal { 0.0 } else { distance };
        let known = (ours.is_finite() && theirs.is_finite()).then_some(distance);
        let agrees = equal || known.is_some() && self.tolerance.allows(ours, theirs, distance);
        (if agrees { Verdict::Equal } else { Verdict::Different }, known)
    }
}

/// Whether a whole number is the same as a floating-point one, and how far they are apart.
fn apart(whole: i64, floating: f64) -> (bool, f64) {
    // Beyond these no bigint can be equal, and within them the whole part of the other is one.
    let fits = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&floating);
    if !fits {
        return (false, (whole as f64 - floating).abs());
    }
    let near = floating.trunc() as i64;
    let rest = floating - floating.trunc();
    if whole == near {
        (rest == 0.0, rest.abs())
    } else {
        (false, ((whole as i128 - near as i128) as f64 - rest).abs())
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Decimal128Array, TimestampMicrosecondArray, TimestampNanosecondArray, UInt64Array};
    use datafusion::arrow::array::{Float32Array, Float64Array, Int32Array, Int64Array, ListArray, StringArray};
    use proptest::prelude::*;

    use super::*;

    fn array<A: Array + 'static>(array: A) -> ArrayRef {
        Arc::new(array)
    }

    /// Row by row, after both were cast to their common types.
    fn judge(ours: &ArrayRef, theirs: &ArrayRef, tolerance: &str) -> Vec<(Verdict, Option<f64>)> {
        let (a, b) = common(ours.data_type(), theirs.data_type()).unwrap();
        let (ours, theirs) = (cast(ours, &a).unwrap(), cast(theirs, &b).unwrap());
        let pair = Pair::new(&ours, &theirs, tolerance.parse().unwrap()).unwrap();
        (0..ours.len()).map(|row| pair.judge(row)).collect()
    }

    #[test]
    fn a_number_agrees_with_itself_in_any_type() {
        use Verdict::{Different, Equal, NullOurs, NullTheirs};
        let doubles = array(Float64Array::from(vec![
            Some(1.0),
            Some(-0.0),
            Some(f64::NAN),
            None,
            Some(0.1),
            Some(f64::INFINITY),
        ]));
        let floats = array(Float32Array::from(vec![
            Some(1.0),
            Some(0.0),
            Some(f32::NAN),
            Some(2.0),
            Some(0.1),
            Some(f32::INFINITY),
        ]));
        let found = judge(&doubles, &floats, "0");
        assert_eq!(found[..4], [(Equal, Some(0.0)), (Equal, Some(0.0)), (Equal, None), (NullOurs, None)]);
        assert_eq!(found[4].0, Different, "the nearest float of 0.1 is not its nearest double");
        assert_eq!(found[5], (Equal, None));
        assert_eq!(judge(&doubles, &floats, "0.00001%")[4].0, Equal);
        assert_eq!(judge(&floats, &doubles, "0.0000001")[3].0, NullTheirs);

        let big = (1_i64 << 53) + 1;
        let whole = array(Int64Array::from(vec![3, big, i64::MAX, i64::MIN, -7]));
        let floating = array(Float64Array::from(vec![
            3.0,
            big as f64,
            9_223_372_036_854_775_807.0,
            -9_223_372_036_854_775_808.0,
            -7.5,
        ]));
        let expected = [
            (Equal, Some(0.0)),
            (Different, Some(1.0)),
            (Different, Some(0.0)),
            (Equal, Some(0.0)),
            (Different, Some(0.5)),
        ];
        // The largest bigint and the double that looks like it are one apart, which no double near it can say.
        assert_eq!(judge(&whole, &floating, "0"), expected);
        assert_eq!(judge(&floating, &whole, "0"), expected);

        let unsigned = array(UInt64Array::from(vec![Some(u64::MAX), Some(5), Some(5)]));
        let signed = array(Int32Array::from(vec![Some(-1), Some(5), Some(6)]));
        let verdicts: Vec<_> = judge(&unsigned, &signed, "0").into_iter().map(|(verdict, _)| verdict).collect();
        assert_eq!(verdicts, [Different, Equal, Different]);
        let money = array(Decimal128Array::from(vec![1_235, 500, 599]).with_precision_and_scale(10, 2).unwrap());
        let same = array(Float64Array::from(vec![12.35, 5.0, 6.0]));
        let verdicts: Vec<_> = judge(&money, &same, "0").into_iter().map(|(verdict, _)| verdict).collect();
        assert_eq!(verdicts, [Equal, Equal, Different]);
        let found = judge(&money, &array(Int64Array::from(vec![12, 5, 6])), "0.02");
        assert_eq!((found[0].0, found[1], found[2].0), (Different, (Equal, Some(0.0)), Equal));
    }

    #[test]
    fn tolerances_are_absolute_or_a_share() {
        let (ours, theirs) = (array(Float64Array::from(vec![100.0, 0.0])), array(Float64Array::from(vec![101.0, 0.5])));
        let verdicts = |tolerance: &str| -> Vec<bool> {
            judge(&ours, &theirs, tolerance).into_iter().map(|(verdict, _)| verdict == Verdict::Equal).collect()
        };
        assert_eq!(verdicts("0"), [false, false]);
        assert_eq!(verdicts("1"), [true, true]);
        assert_eq!(verdicts("0.5"), [false, true]);
        assert_eq!(verdicts("1%"), [true, false]);
        assert_eq!(verdicts("100 %"), [true, true]);
        for wrong in ["", "%", "-1", "nan", "inf", "1%%", "a"] {
            assert!(wrong.parse::<Tolerance>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn instants_texts_and_lists_are_compared_as_what_they_mean() {
        use Verdict::{Different, Equal};
        let micros = array(TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("America/New_York"));
        let nanos = array(TimestampNanosecondArray::from(vec![1_000, 2_001]));
        assert_eq!(judge(&micros, &nanos, "1"), [(Equal, None), (Different, None)]);
        let days = array(datafusion::arrow::array::Date32Array::from(vec![0, 1]));
        let instants = array(TimestampMicrosecondArray::from(vec![0, 86_400_000_001]));
        assert_eq!(judge(&days, &instants, "0"), [(Equal, None), (Different, None)]);
        let texts = array(StringArray::from(vec!["1", "ü"]));
        assert_eq!(judge(&texts, &cast(&texts, &DataType::LargeUtf8).unwrap(), "0"), [(Equal, None), (Equal, None)]);
        let ints = array(ListArray::from_iter_primitive::<Int64Type, _, _>([
            Some(vec![Some(1), None]),
            Some(vec![]),
            Some(vec![Some(1)]),
            Some(vec![Some(2)]),
        ]));
        let floats = array(ListArray::from_iter_primitive::<Float64Type, _, _>([
            Some(vec![Some(1.0), None]),
            Some(vec![]),
            Some(vec![Some(1.0), Some(2.0)]),
            Some(vec![Some(2.5)]),
        ]));
        let verdicts = |tolerance: &str| -> Vec<Verdict> {
            judge(&ints, &floats, tolerance).into_iter().map(|(verdict, _)| verdict).collect()
        };
        assert_eq!(verdicts("0"), [Equal, Equal, Different, Different]);
        assert_eq!(verdicts("0.5"), [Equal, Equal, Different, Equal]);
    }

    #[test]
    fn different_kinds_of_things_are_not_compared() {
        use DataType::{Binary, Boolean, Date32, Decimal128, Float64, Int64, Utf8};
        let pairs = [(Utf8, Int64), (Boolean, Int64), (Float64, Boolean), (Date32, Int64), (Utf8, timestamp())];
        for (ours, theirs) in pairs {
            assert_eq!((common(&ours, &theirs), common(&theirs, &ours)), (None, None), "{ours} {theirs}");
        }
        assert_eq!(common(&Binary, &Binary), None);
        assert_eq!(common(&Decimal128(38, 30), &Int64), None, "19 digits and 30 are too many");
        assert_eq!(common_key(&Int64, &Float64), None);
        assert_eq!(common_key(&Utf8, &DataType::Utf8View), Some(Utf8));
        assert_eq!(common_key(&Int64, &DataType::UInt8), Some(Int64));
        assert_eq!(common(&DataType::Null, &Utf8), Some((DataType::Utf8View, DataType::Utf8View)));
    }

    proptest! {
        /// A bigint and a double are the same number exactly when the engine that knows both would say so.
        #[test]
        fn whole_and_floating_numbers_are_compared_exactly(whole in any::<i64>(), near in -3_i64..3, half in any::<bool>()) {
            let floating = whole.saturating_add(near) as f64 + if half { 0.5 } else { 0.0 };
            // 128 bits hold both; a fraction is left only where doubles are fine enough to have one.
            let twice = (floating * 2.0) as i128;
            prop_assert_eq!(apart(whole, floating).0, i128::from(whole) * 2 == twice);
        }
    }
}
