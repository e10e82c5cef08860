//! Durations, dates and sizes as authors write them.

use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc};
use chrono_tz::Tz;

use crate::time::Instant;

/// A duration as written. Not plain `Duration`, whose JSON Schema is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WrittenDuration(pub(super) Duration);

impl From<WrittenDuration> for Duration {
    fn from(written: WrittenDuration) -> Self {
        written.0
    }
}

/// A number and a unit of `s`, `m`, `h` or `d`, as in `30h`; at most a thousand years.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let secs: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number = &text[..text.len() - unit.len_utf8()];
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let total = number.parse::<u64>().ok()?.checked_mul(secs)?;
    (total <= 1_000 * 366 * 86_400).then(|| Duration::from_secs(total))
}

/// The shortest way to write `duration` that [`parse_duration`] reads back (fractions of a second are dropped).
pub fn format_duration(duration: Duration) -> String {
    let secs = duration.as_secs();
    match secs {
        0 => "0s".to_owned(),
        _ if secs.is_multiple_of(86_400) => format!("{}d", secs / 86_400),
        _ if secs.is_multiple_of(3_600) => format!("{}h", secs / 3_600),
        _ if secs.is_multiple_of(60) => format!("{}m", secs / 60),
        _ => format!("{secs}s"),
    }
}

/// A point in time as written: a date means nothing without a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrittenTime {
    /// A date: midnight in the zone where it is used.
    Date(NaiveDate),
    /// An instant, from RFC 3339.
    Instant(Instant),
}

impl WrittenTime {
    /// The instant meant in `zone`. A midnight that does not exist there is the first instant of that day; one that
    /// exists twice is the first.
    pub fn resolve(self, zone: Tz) -> Instant {
        match self {
            Self::Instant(at) => at,
            Self::Date(date) => midnight(date, zone),
        }
    }
}

/// `2013-01-08`, or RFC 3339; only years 1 to 9999, so that every later computation stays in range.
pub fn parse_time(text: &str) -> Option<WrittenTime> {
    use chrono::Datelike;
    if text.len() == 10
        && let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d")
    {
        return (1..=9999).contains(&date.year()).then_some(WrittenTime::Date(date));
    }
    let at = DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc);
    let at = DateTime::from_timestamp_micros(at.timestamp_micros())?;
    (1..=9999).contains(&at.year()).then_some(WrittenTime::Instant(at))
}

fn midnight(date: NaiveDate, zone: Tz) -> Instant {
    let mut local: NaiveDateTime = date.and_time(NaiveTime::MIN);
    // Gaps are at most a day long (Samoa, Kwajalein) and end on a quarter of an hour.
    let limit = date.checked_add_days(Days::new(2)).map(|date| date.and_time(NaiveTime::MIN));
    loop {
        if let Some(at) = zone.from_local_datetime(&local).earliest() {
            return at.with_timezone(&Utc);
        }
        local += chrono::Duration::minutes(1);
        if limit.is_none_or(|limit| local > limit) {
            return Utc.from_utc_datetime(&local);
        }
    }
}

/// Bytes with an optional unit: `512MiB`, `2GiB`, `1.5GB`, `1073741824`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim() {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * factor;
    (bytes.is_finite() && bytes < 9e15).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_they_print() {
        for (text, secs) in [("90s", 90), ("15m", 900), ("30h", 108_000), ("7d", 604_800), ("0s", 0)] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration.as_secs(), secs, "{text}");
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
        for bad in ["", "s", "5", "5 m", "-5m", "1.5h", "5w", "99999999999999999999d", "400000d0"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_date_is_midnight_in_the_zone_even_where_midnight_is_skipped() {
        let at = |text: &str, zone: Tz| crate::time::format_instant(parse_time(text).unwrap().resolve(zone));
        assert_eq!(at("2013-01-08", chrono_tz::America::New_York), "2013-01-08T05:00:00Z");
        assert_eq!(at("2013-01-08T02:15:00+01:00", chrono_tz::America::New_York), "2013-01-08T01:15:00Z");
        // Clocks in São Paulo went from 23:59:59 to 01:00:00 that night.
        assert_eq!(at("2018-11-04", chrono_tz::America::Sao_Paulo), "2018-11-04T03:00:00Z");
        for bad in ["2013-1-8", "2013-02-30", "08.01.2013", "2013-01-08T02:15:00", "0000-01-01", "yesterday"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("2GiB"), Some(2 << 30));
        assert_eq!(parse_bytes("1.5MB"), Some(1_500_000));
        assert_eq!(parse_bytes("4096"), Some(4096));
        for bad in ["", "2G", "GiB", "-1GiB", "2 gigs", "1e400"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }
}
