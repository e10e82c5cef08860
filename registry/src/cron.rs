//! crontab(5), exactly: which minutes of a wall clock a schedule names. Zones and daylight saving are the grid's business
//! (see the `scheduler` crate); here time is a bare [`NaiveDateTime`].
//!
//! The field sets are our own because the crates that parse cron read more into it than crontab(5) says: they take
//! seconds, `L`, `W`, `#` and `?`, and treat `*/2` in a day field as a restriction, where cron treats any field that
//! begins with `*` as unrestricted. A schedule must mean here what it means on the machine it was copied from.

use std::fmt;
use std::ops::Range;

use chrono::{Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, Timelike};

/// A parsed schedule. It fires at least once in every 40 years: what can never fire does not parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    /// Bit n is minute n; likewise below. Weekdays count from Sunday = 0.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both day fields are restricted: a day that fits either of them fits.
    either_day: bool,
    elapsed: bool,
}

/// Why a text is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CronError {
    /// The fact, with names in backticks.
    pub reason: String,
    /// What to write instead, where that is known.
    pub help: Option<String>,
    /// The bytes of the text at which the reason points.
    pub place: Range<usize>,
}

impl CronError {
    fn new(place: Range<usize>, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), help: None, place }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// One of the five fields.
struct Field {
    name: &'static str,
    /// The name with its article.
    one: &'static str,
    min: u32,
    max: u32,
    /// Three-letter names; the first stands for `min`.
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const FIELDS: [Field; 5] = [
    Field { name: "minute", one: "a minute", min: 0, max: 59, names: &[] },
    Field { name: "hour", one: "an hour", min: 0, max: 23, names: &[] },
    Field { name: "day of month", one: "a day of month", min: 1, max: 31, names: &[] },
    Field { name: "month", one: "a month", min: 1, max: 12, names: MONTHS },
    // Seven is a second Sunday, folded into bit 0 after parsing.
    Field { name: "day of week", one: "a day of week", min: 0, max: 7, names: WEEKDAYS },
];

/// Longer texts are refused: the longest sensible one (every minute listed) is shorter.
const TEXT_BYTES_MAX: usize = 512;

impl Cron {
    /// Parses five fields, or `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`.
    ///
    /// # Errors
    /// When `text` is not crontab(5), or names days that no calendar has (`0 0 31 2 *`).
    pub fn parse(text: &str) -> Result<Self, CronError> {
        if text.len() > TEXT_BYTES_MAX {
            let reason = format!("the schedule has {} bytes, more than {TEXT_BYTES_MAX}", text.len());
            return Err(CronError::new(0..text.len(), reason));
        }
        let words = words(text);
        let Some((first, first_place)) = words.first() else {
            return Err(
                CronError::new(0..text.len(), "the schedule is empty").help("write five fields, as in `15 2 * * *`")
            );
        };
        if first.starts_with('@') {
            if let Some((word, place)) = words.get(1) {
                return Err(CronError::new(place.clone(), format!("`{word}` follows `{first}`, which stands alone")));
            }
            // The expansion has no places of its own: everything in it stands where the macro stands.
            let fields = expand_macro(first, first_place.clone())?.split(' ').map(|word| (word, first_place.clone()));
            return Self::from_fields(text, &fields.collect::<Vec<_>>());
        }
        if let Some((word, place)) = words.iter().find(|(word, _)| word.contains('=')) {
            return Err(CronError::new(place.clone(), format!("`{word}` is an assignment, not a field"))
                .help("the zone has its own setting, `timezone`"));
        }
        if words.len() != FIELDS.len() {
            return Err(wrong_count(text, &words));
        }
        Self::from_fields(text, &words)
    }

    fn from_fields(text: &str, words: &[(&str, Range<usize>)]) -> Result<Self, CronError> {
        let mut sets = [0_u64; FIELDS.len()];
        for ((set, field), (word, place)) in sets.iter_mut().zip(&FIELDS).zip(words) {
            *set = field.parse(word, place.clone())?;
        }
        let [minutes, hours, days, months, weekdays] = sets;
        let weekdays = (weekdays | weekdays >> 7) & 0x7f;
        let begins_with_star = |index: usize| words[index].0.starts_with('*');
        let either_day = !begins_with_star(2) && !begins_with_star(4);
        let elapsed = words[..2].iter().any(|(word, _)| word.contains(['*', '/']));
        let cron = Self { text: text.trim().to_owned(), minutes, hours, days, months, weekdays, either_day, elapsed };
        if cron.can_fire() {
            Ok(cron)
        } else {
            let place = words[2].1.start..words[3].1.end;
            Err(CronError::new(place, format!("`{}` can never fire: no month it names has a day it names", cron.text)))
        }
    }

    /// Whether some month has some of the days. Every such day falls on every weekday within the calendar's cycle of
    /// 400 years, so the weekdays need no look.
    fn can_fire(&self) -> bool {
        const LONGEST: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        self.either_day
            || (1..=12)
                .zip(LONGEST)
                .any(|(month, last)| has(self.months, month) && (1..=last).any(|day| has(self.days, day)))
    }

    /// Whether the minute or hour field has a `*` or a step: such a schedule means elapsed time ("every hour", "every ten
    /// minutes"), others mean a time of day.
    pub fn is_elapsed_time(&self) -> bool {
        self.elapsed
    }

    /// Whether the minute that `wall` lies in is named. Seconds are ignored.
    pub fn matches(&self, wall: NaiveDateTime) -> bool {
        self.matches_date(wall.date()) && has(self.hours, wall.hour()) && has(self.minutes, wall.minute())
    }

    fn matches_date(&self, date: NaiveDate) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().num_days_from_sunday());
        has(self.months, date.month()) && if self.either_day { day || weekday } else { day && weekday }
    }

    /// The first named minute at or after `wall`; `None` only at the end of chrono's calendar.
    pub fn first_from(&self, wall: NaiveDateTime) -> Option<NaiveDateTime> {
        let minute = wall.with_second(0)?.with_nanosecond(0)?;
        let from = if minute < wall { minute.checked_add_signed(chrono::TimeDelta::minutes(1))? } else { minute };
        if self.matches_date(from.date())
            && let Some(time) = self.first_time_from(from.time())
        {
            return Some(from.date().and_time(time));
        }
        let first_time = self.first_time_from(NaiveTime::MIN)?;
        let mut date = from.date().succ_opt()?;
        while !self.matches_date(date) {
            date = if has(self.months, date.month()) { date.succ_opt()? } else { next_month(date)? };
        }
        Some(date.and_time(first_time))
    }

    fn first_time_from(&self, from: NaiveTime) -> Option<NaiveTime> {
        let (hour, minute) = match next(self.hours, from.hour())? {
            hour if hour > from.hour() => (hour, next(self.minutes, 0)?),
            hour => match next(self.minutes, from.minute()) {
                Some(minute) => (hour, minute),
                None => (next(self.hours, hour + 1)?, next(self.minutes, 0)?),
            },
        };
        NaiveTime::from_hms_opt(hour, minute, 0)
    }

    /// Every named minute at or after `wall`, ascending.
    pub fn iter_from(&self, wall: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> + '_ {
        std::iter::successors(self.first_from(wall), |last| {
            self.first_from(last.checked_add_signed(chrono::TimeDelta::minutes(1))?)
        })
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl std::str::FromStr for Cron {
    type Err = CronError;
    fn from_str(text: &str) -> Result<Self, CronError> {
        Self::parse(text)
    }
}

fn has(set: u64, value: u32) -> bool {
    set >> value & 1 == 1
}

/// The smallest member of `set` that is at least `from`.
fn next(set: u64, from: u32) -> Option<u32> {
    let rest = set.checked_shr(from)?;
    (rest != 0).then(|| from + rest.trailing_zeros())
}

fn next_month(date: NaiveDate) -> Option<NaiveDate> {
    let first = date.with_day(1)?;
    // 31 days on from the first lies in the next month; its day is then reset.
    first.checked_add_days(Days::new(31))?.with_day(1)
}

/// The words of `text` with the bytes at which they stand.
fn words(text: &str) -> Vec<(&str, Range<usize>)> {
    text.split_ascii_whitespace()
        .map(|word| {
            let start = word.as_ptr() as usize - text.as_ptr() as usize;
            (word, start..start + word.len())
        })
        .collect()
}

fn expand_macro(word: &str, place: Range<usize>) -> Result<&'static str, CronError> {
    Ok(match word {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@reboot" => {
            return Err(CronError::new(place, "`@reboot` names no time").help(
                "a DAG cuts time into intervals, so its schedule must recur: `@hourly`, `@daily` or five fields",
            ));
        }
        _ => {
            return Err(CronError::new(place, format!("`{word}` is not a schedule"))
                .help("known are `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly` and `@annually`"));
        }
    })
}

fn wrong_count(text: &str, words: &[(&str, Range<usize>)]) -> CronError {
    let error = CronError::new(
        words.first().map_or(0, |(_, place)| place.start)..words.last().map_or(text.len(), |(_, place)| place.end),
        format!("the schedule has {} fields instead of five", words.len()),
    );
    if words.len() > FIELDS.len() {
        error.help("minute, hour, day of month, month, day of week: crontab(5) has no seconds, years or commands")
    } else {
        error.help("minute, hour, day of month, month, day of week, as in `15 2 * * *`")
    }
}

impl Field {
    /// The set of values that `word` names.
    fn parse(&self, word: &str, place: Range<usize>) -> Result<u64, CronError> {
        let mut set = 0;
        for item in word.split(',') {
            set |= self.parse_item(item).map_err(|mut error| {
                error.place = place.clone();
                error
            })?;
        }
        Ok(set)
    }

    /// `*`, `a`, `a-b`, `*/n` or `a-b/n`.
    fn parse_item(&self, item: &str) -> Result<u64, CronError> {
        if let Some(error) = self.extension(item) {
            return Err(error);
        }
        let (range, step) = match item.split_once('/') {
            None => (item, None),
            Some((range, step)) => (range, Some(self.step(item, step)?)),
        };
        let (first, last) = if range == "*" {
            (self.min, self.max)
        } else if let Some((first, last)) = range.split_once('-') {
            let (first, last) = (self.value(item, first)?, self.value(item, last)?);
            if first > last {
                return Err(self.backwards(item, first, last));
            }
            (first, last)
        } else {
            let value = self.value(item, range)?;
            if let Some(step) = step {
                return Err(self
                    .error(format!("`{item}` in the {} field steps without a range", self.name))
                    .help(format!("write `{value}-{}/{step}`", self.last())));
            }
            (value, value)
        };
        Ok((first..=last).step_by(step.unwrap_or(1)).fold(0, |set, value| set | 1 << value))
    }

    fn step(&self, item: &str, step: &str) -> Result<usize, CronError> {
        match number(step) {
            Some(0) => Err(self.error(format!("`{item}` in the {} field steps by zero", self.name))),
            Some(step) => Ok(step as usize),
            None => Err(self.error(format!("`{item}` in the {} field has a step that is not a number", self.name))),
        }
    }

    fn value(&self, item: &str, text: &str) -> Result<u32, CronError> {
        if let Some(value) = number(text) {
            return if (self.min..=self.max).contains(&value) {
                Ok(value)
            } else {
                let (min, max) = (self.min, self.max);
                Err(self.error(format!("`{text}` is not {}: it lies outside {min} to {max}", self.one)))
            };
        }
        let named = (self.min..).zip(self.names).find(|(_, name)| name.eq_ignore_ascii_case(text));
        named.map(|(value, _)| value).ok_or_else(|| {
            let error = if text.is_empty() {
                self.error(format!("`{item}` in the {} field lacks a value", self.name))
            } else {
                self.error(format!("`{text}` is not {}", self.one))
            };
            let short = text.get(..3).filter(|short| self.names.iter().any(|name| name.eq_ignore_ascii_case(short)));
            match short {
                Some(short) => error.help(format!("names have three letters: `{short}`")),
                None if text.is_empty() => error,
                None => error.help(format!("a number from {} to {}", self.min, self.last())),
            }
        })
    }

    fn backwards(&self, item: &str, first: u32, last: u32) -> CronError {
        let error = self.error(format!("`{item}` in the {} field runs backwards", self.name));
        match (self.max, last) {
            (7, 0) => error.help(format!("Sunday is also 7: write `{first}-7`")),
            _ => error.help(format!("write `{first}-{},{}-{last}`", self.last(), self.min)),
        }
    }

    /// What other programs accept and crontab(5) does not.
    fn extension(&self, item: &str) -> Option<CronError> {
        let upper = item.to_ascii_uppercase();
        let is_number_with = |letter: char| {
            let rest = upper.replacen(letter, "", 1);
            upper.contains(letter) && (rest.is_empty() || number(&rest).is_some())
        };
        let (sign, meaning) = if item.contains('#') {
            ("#", "the nth weekday of a month")
        } else if item.contains('?') {
            ("?", "no particular day")
        } else if item.contains('~') {
            ("~", "a random value")
        } else if is_number_with('L') {
            ("L", "the last day")
        } else if is_number_with('W') || upper == "LW" {
            ("W", "the nearest working day")
        } else {
            return None;
        };
        let error = self.error(format!("`{item}` in the {} field: crontab(5) has no `{sign}` ({meaning})", self.name));
        Some(if sign == "?" { error.help("write `*`") } else { error })
    }

    /// The highest value to recommend: Sunday is shown as 0.
    fn last(&self) -> u32 {
        self.max.min(if self.max == 7 { 6 } else { self.max })
    }

    fn error(&self, reason: String) -> CronError {
        CronError::new(0..0, reason)
    }
}

/// A decimal number without sign, of at most four digits.
fn number(text: &str) -> Option<u32> {
    (text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
#[path = "cron_tests.rs"]
mod tests;
