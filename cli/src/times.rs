//! Times as people write them on the command line, and as tables show them.

use std::str::FromStr;

use chrono::{DateTime, Duration, LocalResult, NaiveDate, NaiveDateTime, TimeZone as _};
use chrono_tz::Tz;
use tidegate_registry::time::{Instant, Interval};

use crate::error::UserError;

/// A time as written: with an offset it stands for itself, without one it is read in a zone (the DAG's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeArgument {
    /// `2013-01-08T02:15:00-05:00` or `…Z`.
    Instant(Instant),
    /// `2013-01-08` (midnight) or `2013-01-08T02:15`.
    Local(NaiveDateTime),
}

impl FromStr for TimeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self::Instant(at.to_utc()));
        }
        if let Ok(day) = NaiveDate::from_str(text) {
            return Ok(Self::Local(day.and_time(chrono::NaiveTime::MIN)));
        }
        ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"]
            .into_iter()
            .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
            .map(Self::Local)
            .ok_or_else(|| "expected a date (2013-01-08) or a time (2013-01-08T07:15:00Z)".to_owned())
    }
}

impl TimeArgument {
    /// The instant in `zone`: of a time that happens twice the first, of one that never happens the first after.
    pub fn in_zone(self, zone: Tz) -> Instant {
        match self {
            Self::Instant(at) => at,
            Self::Local(local) => {
                let mut probe = local;
                loop {
                    match zone.from_local_datetime(&probe) {
                        LocalResult::Single(at) | LocalResult::Ambiguous(at, _) => return at.to_utc(),
                        // Gaps end on a whole minute; the longest known lasted a day.
                        LocalResult::None => probe += Duration::minutes(1),
                    }
                }
            }
        }
    }
}

/// An interval as written: `START/END`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntervalArgument {
    start: TimeArgument,
    end: TimeArgument,
}

impl FromStr for IntervalArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (start, end) = text.split_once('/').ok_or("expected START/END, as in 2013-01-08/2013-01-09")?;
        Ok(Self { start: start.parse()?, end: end.parse()? })
    }
}

impl IntervalArgument {
    /// The interval in `zone`.
    ///
    /// # Errors
    /// When it is empty.
    pub fn in_zone(self, zone: Tz) -> anyhow::Result<Interval> {
        Interval::new(self.start.in_zone(zone), self.end.in_zone(zone))
            .map_err(|error| UserError::new(error.to_string()).hint("the end comes second, and is not inside").into())
    }
}

/// A length of time in at most two units, as in `1h 30m`.
pub fn short(length: Duration) -> String {
    let seconds = length.num_seconds().unsigned_abs();
    let sign = if length < Duration::zero() { "-" } else { "" };
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let Some(first) = units.iter().position(|(unit, _)| seconds >= *unit) else {
        return format!("{sign}{}ms", length.num_milliseconds().unsigned_abs());
    };
    let (unit, name) = units[first];
    let mut text = format!("{sign}{}{name}", seconds / unit);
    if let Some((next, next_name)) = units.get(first + 1)
        && seconds % unit / next > 0
    {
        text.push_str(&format!(" {}{next_name}", seconds % unit / next));
    }
    text
}

/// A standard length of time as [`short`] shows it.
pub fn short_std(length: std::time::Duration) -> String {
    short(Duration::from_std(length).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use tidegate_registry::time::format_instant;

    use super::*;

    #[test]
    fn dates_are_midnight_in_the_zone_and_offsets_stand_for_themselves() {
        let zone = chrono_tz::America::New_York;
        let table = [
            ("2013-01-08", "2013-01-08T05:00:00Z"),
            ("2013-03-11", "2013-03-11T04:00:00Z"),
            ("2013-01-08T02:15", "2013-01-08T07:15:00Z"),
            ("2013-01-08 02:15:30", "2013-01-08T07:15:30Z"),
            ("2013-01-08T02:15:00Z", "2013-01-08T02:15:00Z"),
            ("2013-01-08T02:15:00+01:00", "2013-01-08T01:15:00Z"),
            ("2013-03-10T02:30", "2013-03-10T07:00:00Z"),
            ("2013-11-03T01:30", "2013-11-03T05:30:00Z"),
        ];
        for (text, expected) in table {
            let at = text.parse::<TimeArgument>().unwrap().in_zone(zone);
            assert_eq!(format_instant(at), expected, "{text}");
        }
        for bad in ["", "yesterday", "2013-13-01", "08.01.2013", "2013-01-08T25:00"] {
            assert!(bad.parse::<TimeArgument>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_interval_needs_two_times_in_order() {
        let zone = chrono_tz::UTC;
        let interval = "2013-01-08/2013-01-09".parse::<IntervalArgument>().unwrap().in_zone(zone).unwrap();
        assert_eq!(interval.to_string(), "2013-01-08T00:00:00Z/2013-01-09T00:00:00Z");
        assert!("2013-01-09/2013-01-08".parse::<IntervalArgument>().unwrap().in_zone(zone).is_err());
        assert!("2013-01-09".parse::<IntervalArgument>().is_err());
    }

    #[test]
    fn lengths_are_short() {
        for (milliseconds, text) in [
            (0, "0ms"),
            (250, "250ms"),
            (1_000, "1s"),
            (61_000, "1m 1s"),
            (3_600_000, "1h"),
            (90_000_000, "1d 1h"),
            (-60_000, "-1m"),
        ] {
            assert_eq!(short(Duration::milliseconds(milliseconds)), text);
        }
    }
}
