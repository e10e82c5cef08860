//! Numbers as people read them.

use tidegate_registry::profile::ProfileKind;
use tidegate_registry::text;
use tidegate_registry::time::{Instant, format_instant};

/// Thin and unbreakable.
const GROUP: char = '\u{202f}';

/// With four digits that matter, and groups of three.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let size = value.abs();
    if value == value.trunc() && size < 1e15 {
        return grouped(&format!("{value:.0}"));
    }
    if !(1e-4..1e12).contains(&size) {
        return format!("{value:.2e}").replace('-', "−");
    }
    let digits = (3 - size.log10().floor() as i32).max(0) as usize;
    let text = format!("{value:.digits$}");
    grouped(if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text })
}

/// A whole number, in groups of three.
pub(super) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// `3 rows`.
pub(super) fn counted(value: u64, what: &str) -> String {
    format!("{} {what}{}", count(value), if value == 1 { "" } else { "s" })
}

/// A share of 1 in percent; what is not 0 is not shown as 0, nor as 100 what is less.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 0.1 {
        return "< 0.1 %".to_owned();
    }
    if percent < 100.0 && percent > 99.9 {
        return "> 99.9 %".to_owned();
    }
    let text = format!("{percent:.1}");
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

/// A number of a column, as the value that it stands for.
pub(super) fn value(kind: ProfileKind, value: f64) -> String {
    let mut out = Vec::new();
    match kind {
        ProfileKind::Date => text::write_date(value.floor() as i64, &mut out),
        ProfileKind::Instant => {
            text::write_instant(value.floor() as i64, 1_000_000, &mut out);
            return short_instant(&String::from_utf8_lossy(&out));
        }
        _ => return number(value),
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// An instant in UTC, to the minute where that is all.
pub(super) fn instant(at: Instant) -> String {
    short_instant(&format_instant(at))
}

fn short_instant(text: &str) -> String {
    let text = text.trim_end_matches('Z');
    let (text, fraction) = text.split_once('.').map_or((text, ""), |(whole, rest)| (whole, rest));
    let text = text.strip_suffix(":00").filter(|_| fraction.is_empty()).unwrap_or(text);
    let text = text.replacen('T', " ", 1);
    if fraction.is_empty() { text } else { format!("{text}.{}", &fraction[..fraction.len().min(3)]) }
}

/// `1.4 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, "bytes");
    for larger in ["kB", "MB", "GB", "TB"] {
        if size < 1000.0 {
            break;
        }
        (size, unit) = (size / 1000.0, larger);
    }
    format!("{} {unit}", if size < 10.0 && unit != "bytes" { format!("{size:.1}") } else { format!("{size:.0}") })
}

/// At most `most` characters of a text.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

fn grouped(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("−", rest));
    let (whole, rest) = digits.find('.').map_or((digits, ""), |at| digits.split_at(at));
    let mut out = sign.to_owned();
    for (at, digit) in whole.char_indices() {
        // four digits read well without
        if at > 0 && whole.len() > 4 && (whole.len() - at).is_multiple_of(3) {
            out.push(GROUP);
        }
        out.push(digit);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        let shown: Vec<_> =
            [0.0, -3.0, 1440.0, 78_060.0, 1_234_567.89, 0.333_333, 18.4267, -2.5, 1e-9, 2.5e15, f64::NAN]
                .into_iter()
                .map(|value| number(value).replace(GROUP, "_"))
                .collect();
        let expected =
            ["0", "−3", "1440", "78_060", "1_234_568", "0.3333", "18.43", "−2.5", "1.00e−9", "2.50e15", "NaN"];
        assert_eq!(shown, expected);
        assert_eq!([0.0, 0.00001, 0.125, 0.99999, 1.0].map(percent), ["0 %", "< 0.1 %", "12.5 %", "> 99.9 %", "100 %"]);
        assert_eq!([2, 999, 4_200, 73_000_000].map(bytes), ["2 bytes", "999 bytes", "4.2 kB", "73 MB"]);
        let instants = [1_357_603_200e6, 1_357_603_201e6, 1_357_603_201.25e6].map(|at| value(ProfileKind::Instant, at));
        assert_eq!(instants, ["2013-01-08 00:00", "2013-01-08 00:00:01", "2013-01-08 00:00:01.250"]);
        assert_eq!((cut("äöü", 3), cut("äöü", 2)), ("äöü".to_owned(), "äö…".to_owned()));
    }
}
