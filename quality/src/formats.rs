//! Which texts are UUIDs, e-mail addresses, days or instants: predicates over columns, by hand because a regular
//! expression needs several times as long.
//!
//! Each takes an array of texts of any layout and gives a boolean per row, null where the text is. Texts are judged as
//! they are: a space before or after makes them something else.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayAccessor, ArrayRef, BooleanArray};
use arrow_buffer::BooleanBuffer;
use arrow_schema::{ArrowError, DataType};

/// A format that texts can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// [`is_uuid`]
    Uuid,
    /// [`is_email`]
    Email,
    /// [`is_iso_date`]
    IsoDate,
    /// [`is_iso_timestamp`]
    IsoTimestamp,
}

impl Format {
    /// Which rows of `texts` have this format; null where the text is null.
    ///
    /// # Errors
    /// When `texts` is not an array of texts.
    pub fn matches(self, texts: &ArrayRef) -> Result<BooleanArray, ArrowError> {
        match texts.data_type() {
            DataType::Utf8 => Ok(self.judge(texts.as_string::<i32>())),
            DataType::LargeUtf8 => Ok(self.judge(texts.as_string::<i64>())),
            DataType::Utf8View => Ok(self.judge(texts.as_string_view())),
            DataType::Dictionary(_, values) if values.is_string() => {
                Ok(self.judge(arrow_cast::cast(texts, &DataType::Utf8View)?.as_string_view()))
            }
            other => Err(ArrowError::InvalidArgumentError(format!("a column of type `{other}` has no texts"))),
        }
    }

    fn judge<'a, A: Array + ?Sized>(self, texts: &'a A) -> BooleanArray
    where
        &'a A: ArrayAccessor<Item = &'a str>,
    {
        let matching = match self {
            Self::Uuid => BooleanBuffer::collect_bool(texts.len(), |row| is_uuid(texts.value(row))),
            Self::Email => BooleanBuffer::collect_bool(texts.len(), |row| is_email(texts.value(row))),
            Self::IsoDate => BooleanBuffer::collect_bool(texts.len(), |row| is_iso_date(texts.value(row))),
            Self::IsoTimestamp => BooleanBuffer::collect_bool(texts.len(), |row| is_iso_timestamp(texts.value(row))),
        };
        BooleanArray::new(matching, texts.nulls().cloned())
    }
}

/// 32 hexadecimal digits of either case with hyphens after the 8th, 12th, 16th and 20th (RFC 9562), of any version.
/// Neither braces nor `urn:uuid:`.
pub fn is_uuid(text: &str) -> bool {
    let Ok(bytes) = <&[u8; 36]>::try_from(text.as_bytes()) else { return false };
    // without leaving early, which the processor does sixteen bytes at a time
    let digits = bytes.iter().filter(|byte| byte.is_ascii_hexdigit()).count();
    digits == 32 && [8, 13, 18, 23].into_iter().all(|place| bytes[place] == b'-')
}

/// What a browser takes for an e-mail address: the rule of the HTML standard (WHATWG, "valid e-mail address"), which
/// deliberately differs from RFC 5322. One or more letters, digits and ``.!#$%&'*+/=?^_`{|}~-``, an `@`, then labels of 1
/// to 63 letters, digits and inner hyphens joined by dots. All ASCII; a domain without a dot is one.
pub fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".!#$%&'*+/=?^_`{|}~-".contains(&byte);
    let label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && label[0] != b'-'
            && label[label.len() - 1] != b'-'
    };
    !local.is_empty() && local.bytes().all(allowed) && domain.as_bytes().split(|byte| *byte == b'.').all(label)
}

/// A day that exists, as `2013-01-08`: years 0000 to 9999 of the Gregorian calendar, carried back before 1582 (ISO 8601).
pub fn is_iso_date(text: &str) -> bool {
    is_date(text.as_bytes())
}

/// A day as in [`is_iso_date`], `T` or a space, hours and minutes, and optionally seconds, a fraction of 1 to 9 digits,
/// and `Z` or an offset: `2013-01-08T14:30`, `2013-01-08 14:30:00.5+01:00`. RFC 3339 with what databases print besides.
/// A 24th hour or a 60th second is none, as no clock here can hold them.
pub fn is_iso_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some((date, rest)) = bytes.split_at_checked(10) else { return false };
    let Some((b'T' | b't' | b' ', rest)) = rest.split_first() else { return false };
    let Some((time, mut rest)) = rest.split_at_checked(5) else { return false };
    if !is_date(date) || !is_time(time) {
        return false;
    }
    if let Some((b':', seconds)) = rest.split_first() {
        let Some((seconds, after)) = seconds.split_at_checked(2) else { return false };
        if number(seconds).is_none_or(|seconds| seconds > 59) {
            return false;
        }
        rest = after;
        if let Some((b'.', fraction)) = rest.split_first() {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=9).contains(&digits) {
                return false;
            }
            rest = &fraction[digits..];
        }
    }
    match rest {
        [] | [b'Z' | b'z'] => true,
        [b'+' | b'-', offset @ ..] => is_time(offset),
        _ => false,
    }
}

fn is_date(bytes: &[u8]) -> bool {
    let [year @ .., b'-', m1, m2, b'-', d1, d2] = bytes else { return false };
    let (Some(year), Some(month), Some(day)) = (number(year), number(&[*m1, *m2]), number(&[*d1, *d2])) else {
        return false;
    };
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 0,
    };
    bytes.len() == 10 && (1..=days).contains(&day)
}

/// Hours and minutes of a day.
fn is_time(bytes: &[u8]) -> bool {
    let [h1, h2, b':', m1, m2] = bytes else { return false };
    number(&[*h1, *h2]).is_some_and(|hours| hours < 24) && number(&[*m1, *m2]).is_some_and(|minutes| minutes < 60)
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |number, byte| {
        byte.is_ascii_digit().then(|| number.wrapping_mul(10).wrapping_add(u32::from(byte - b'0')))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::types::Int32Type;
    use arrow_array::{DictionaryArray, Int32Array, LargeStringArray, StringArray, StringViewArray};
    use proptest::prelude::*;

    use super::*;

    fn check(is: fn(&str) -> bool, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(is(text), "{text}");
        }
        for text in bad {
            assert!(!is(text), "{text}");
        }
    }

    #[test]
    fn uuids() {
        check(
            is_uuid,
            &[
                "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
                "F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6",
                "00000000-0000-0000-0000-000000000000",
            ],
            &[
                "",
                "f81d4fae7dec11d0a76500a0c91e6bf6",
                "{f81d4fae-7dec-11d0-a765-00a0c91e6bf6}",
                "f81d4fae-7dec-11d0-a765-00a0c91e6bfg",
                "f81d4fae-7dec-11d0-a765-00a0c91e6bf6 ",
                "f81d4fae-7dec-11d0-a765000a0c91e6bf6",
                "f81d4fae-7dec-11d0-a765-00a0c91e6bé",
            ],
        );
    }

    #[test]
    fn emails() {
        let long = format!("a@{}.example", "b".repeat(63));
        check(
            is_email,
            &["ada@example.com", "a.b+c/d=e@x-y.co", "root@localhost", "1@2", "..@a.b", &long],
            &[
                "",
                "ada",
                "@example.com",
                "ada@",
                "ada@-x.com",
                "ada@x-.com",
                "ada@x..com",
                "ada@x.com.",
                "a b@x.com",
                "ada@x.com ",
                "ada@bücher.example",
                "ädä@example.com",
                "a@b@c",
                "\"a b\"@example.com",
                &format!("a@{}.example", "b".repeat(64)),
            ],
        );
    }

    #[test]
    fn days() {
        check(
            is_iso_date,
            &["2013-01-08", "2000-02-29", "2024-02-29", "0000-01-01", "9999-12-31", "2013-04-30"],
            &[
                "",
                "2013-1-8",
                "2013-02-29",
                "1900-02-29",
                "2013-13-01",
                "2013-00-01",
                "2013-01-00",
                "2013-01-32",
                "2013-04-31",
                "20130108",
                "2013/01/08",
                "12013-01-08",
                "-013-01-08",
                "2013-01-08T",
                "２013-01-08",
            ],
        );
    }

    #[test]
    fn instants() {
        check(
            is_iso_timestamp,
            &[
                "2013-01-08T14:30",
                "2013-01-08T14:30:00Z",
                "2013-01-08t14:30:00z",
                "2013-01-08 14:30:00.5+01:00",
                "2013-01-08T23:59:59.123456789-11:30",
                "2013-01-08T14:30+00:00",
            ],
            &[
                "",
                "2013-01-08",
                "2013-01-08T",
                "2013-01-08T24:00:00Z",
                "2013-01-08T14:60:00Z",
                "2013-01-08T14:30:60Z",
                "2013-01-08T14:30:00.Z",
                "2013-01-08T14:30:00.1234567890Z",
                "2013-01-08T14:30:00+1",
                "2013-01-08T14:30:00+24:00",
                "2013-01-08T14:30:00ZZ",
                "2013-01-08T14:3",
                "2013-02-30T14:30:00Z",
                "2013-01-08_14:30:00Z",
                "2013-01-08T14:30.5Z",
                "2013-01-0８14:30:00Z",
            ],
        );
    }

    #[test]
    fn every_layout_of_texts_is_judged_alike() {
        let texts = [Some("2013-01-08"), None, Some("soon")];
        let words = StringArray::from(vec!["soon", "2013-01-08"]);
        let keys = Int32Array::from(vec![Some(1), None, Some(0)]);
        let arrays: [ArrayRef; 4] = [
            Arc::new(StringArray::from(texts.to_vec())),
            Arc::new(LargeStringArray::from(texts.to_vec())),
            Arc::new(StringViewArray::from(texts.to_vec())),
            Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(words))),
        ];
        for array in arrays {
            let found = Format::IsoDate.matches(&array).unwrap();
            assert_eq!(found, BooleanArray::from(vec![Some(true), None, Some(false)]), "{}", array.data_type());
            assert_eq!(Format::IsoDate.matches(&array.slice(2, 1)).unwrap(), BooleanArray::from(vec![false]));
        }
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        assert!(Format::Uuid.matches(&numbers).unwrap_err().to_string().contains("`Int32` has no texts"));
    }

    proptest! {
        #[test]
        fn days_are_those_of_chrono(text in "[0-9]{4}-[01][0-9]-[0-3][0-9]") {
            prop_assert_eq!(is_iso_date(&text), chrono::NaiveDate::parse_from_str(&text, "%Y-%m-%d").is_ok());
        }

        #[test]
        fn instants_of_chrono_are_instants(seconds in -62_000_000_000i64..253_000_000_000, nanos in 0u32..1_000_000_000) {
            let at = chrono::DateTime::from_timestamp(seconds, nanos).unwrap();
            prop_assert!(is_iso_timestamp(&at.to_rfc3339()), "{}", at.to_rfc3339());
        }

        #[test]
        fn no_text_makes_trouble(text in ".{0,80}") {
            let found = [is_uuid(&text), is_email(&text), is_iso_date(&text), is_iso_timestamp(&text)];
            prop_assert!(found.iter().filter(|is| **is).count() <= 1);
        }
    }
}
