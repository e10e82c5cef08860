//! The one spelling of a value as text: what online stores hold, what digests are taken of, what samples and profiles
//! show.
//!
//! Integers in decimal; floats as the shortest text that reads back equal (`7.0`, `1e16`, `NaN`, `Infinity`); days as
//! `2013-01-08`; instants as RFC 3339 in UTC with 0, 3, 6 or 9 digits after the second. How columns of Arrow are written
//! this way is the worker's (`worker/src/text.rs`).

use std::io::Write as _;

/// Appends `value` in decimal.
#[inline]
pub fn write_integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends the shortest text that reads back equal.
#[inline]
pub fn write_float<F: zmij::Float + Into<f64>>(value: F, out: &mut Vec<u8>) {
    let wide: f64 = value.into();
    let text = if wide.is_nan() {
        "NaN"
    } else if wide == f64::INFINITY {
        "Infinity"
    } else if wide == f64::NEG_INFINITY {
        "-Infinity"
    } else {
        let mut buffer = zmij::Buffer::new();
        let text = buffer.format_finite(value);
        // Exponents above zero come with a sign, which ours do not have; smaller numbers have no such exponent.
        return match (wide.abs() >= 1e12).then(|| text.split_once('+')).flatten() {
            Some((digits, exponent)) => {
                out.extend_from_slice(digits.as_bytes());
                out.extend_from_slice(exponent.as_bytes());
            }
            None => out.extend_from_slice(text.as_bytes()),
        };
    };
    out.extend_from_slice(text.as_bytes());
}

/// Appends a count of days since 1970 as `2013-01-08`.
#[inline]
pub fn write_date(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil(days);
    if (0..=9999).contains(&year) {
        digits::<4>(year as u64, out);
    } else {
        // outside RFC 3339, which has four digits; as ISO 8601 and chrono write it
        write!(out, "{year:+05}").expect("writing to memory cannot fail");
    }
    out.push(b'-');
    digits::<2>(month, out);
    out.push(b'-');
    digits::<2>(day, out);
}

/// Appends the instant `units` after 1970, `per_second` of them in a second, as RFC 3339 in UTC.
#[inline]
pub fn write_instant(units: i64, per_second: i64, out: &mut Vec<u8>) {
    let seconds = units.div_euclid(per_second);
    let fraction = units.rem_euclid(per_second) * (1_000_000_000 / per_second);
    write_date(seconds.div_euclid(86_400), out);
    let second_of_day = seconds.rem_euclid(86_400) as u64;
    out.push(b'T');
    digits::<2>(second_of_day / 3600, out);
    out.push(b':');
    digits::<2>(second_of_day / 60 % 60, out);
    out.push(b':');
    digits::<2>(second_of_day % 60, out);
    let fraction = fraction as u64;
    if fraction > 0 {
        out.push(b'.');
        if fraction.is_multiple_of(1_000_000) {
            digits::<3>(fraction / 1_000_000, out);
        } else if fraction.is_multiple_of(1_000) {
            digits::<6>(fraction / 1_000, out);
        } else {
            digits::<9>(fraction, out);
        }
    }
    out.push(b'Z');
}

#[inline]
fn digits<const WIDTH: usize>(mut value: u64, out: &mut Vec<u8>) {
    let mut buffer = [b'0'; WIDTH];
    for digit in buffer.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&buffer);
}

/// Year, month and day of a count of days since 1970 (Howard Hinnant's `civil_from_days`).
#[inline]
fn civil(days: i64) -> (i64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u64, day as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn float<F: zmij::Float + Into<f64>>(value: F) -> String {
        let mut out = Vec::new();
        write_float(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_text_of_a_number_never_changes() {
        // Digests are stored for years, and online stores hold these texts.
        let texts = [0.0, -0.0, 7.0, 0.1, 1e-5, 1e-6, 1.5e-7, 5e-324, 1e15, 1e16, 1.25e17, f64::MAX].map(float);
        let kept = [
            "0.0",
            "-0.0",
            "7.0",
            "0.1",
            "0.00001",
            "1e-6",
            "1.5e-7",
            "5e-324",
            "1000000000000000.0",
            "1e16",
            "1.25e17",
            "1.7976931348623157e308",
        ];
        assert_eq!(texts, kept);
        assert_eq!(
            [1e12_f32, 1e13, -1e13, 0.1, f32::MAX].map(float),
            ["1000000000000.0", "1e13", "-1e13", "0.1", "3.4028235e38"]
        );
        assert_eq!([f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(float), ["NaN", "Infinity", "-Infinity"]);
    }

    proptest! {
        /// Another algorithm finds the same digits.
        #[test]
        fn the_shortest_text_is_that_of_ryu(bits in any::<u64>(), whole in any::<i64>(), shift in 0_u32..64) {
            for value in [f64::from_bits(bits), (whole >> shift) as f64, (whole >> shift) as f64 / 100.0] {
                if value.is_finite() {
                    prop_assert_eq!(float(value), ryu::Buffer::new().format_finite(value).to_owned());
                }
            }
            let value = f32::from_bits(bits as u32);
            if value.is_finite() {
                prop_assert_eq!(float(value), ryu::Buffer::new().format_finite(value).to_owned());
            }
        }
    }
}
