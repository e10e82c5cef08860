//! Between columns and domain types.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use chrono::DateTime;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::{Instant, Interval};

use crate::sql::{Cell, Row};

/// An instant as stored.
pub(crate) fn micros(at: Instant) -> i64 {
    at.timestamp_micros()
}

/// A duration as stored; one beyond the range counts as the longest.
pub(crate) fn duration_micros(duration: Duration) -> i64 {
    // A quarter of the range, so that adding it to the present cannot overflow.
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

/// A count as stored.
pub(crate) fn number(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|source| internal(format!("storing the number {value}"), source))
}

/// The same where there may be none.
pub(crate) fn number_option(value: Option<u64>) -> Result<Option<i64>> {
    value.map(number).transpose()
}

/// A `LIMIT`: 0 means all, for which the two databases have no common word.
pub(crate) fn limit_or_all(limit: u32) -> i64 {
    if limit == 0 { i64::MAX } else { i64::from(limit) }
}

/// A value as JSON text.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|source| internal("writing JSON", source))
}

/// Something that cannot happen unless the database or this program is damaged.
pub(crate) fn internal(
    doing: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Internal { doing: doing.into(), source: source.into() }
}

/// Reads columns as domain types. A value that does not parse is [`StoreError::Internal`] naming the column.
impl Row {
    /// Of a plain type.
    pub(crate) fn get_as<'r, T: Cell<'r>>(&'r self, column: &'static str) -> Result<T> {
        T::of(self, column).map_err(|source| internal(format!("reading the column `{column}`"), source))
    }

    /// Stored as text.
    pub(crate) fn parse<T>(&self, column: &'static str) -> Result<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        let text: &str = self.get_as(column)?;
        text.parse().map_err(|error: T::Err| internal(format!("reading the column `{column}`"), error.to_string()))
    }

    /// Stored as text, or null.
    pub(crate) fn parse_option<T>(&self, column: &'static str) -> Result<Option<T>>
    where
        T: FromStr,
        T::Err: Display,
    {
        if self.get_as::<Option<&str>>(column)?.is_none() { Ok(None) } else { self.parse(column).map(Some) }
    }

    /// Stored as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T> {
        let text: &str = self.get_as(column)?;
        serde_json::from_str(text).map_err(|source| internal(format!("reading the column `{column}`"), source))
    }

    /// Stored as JSON, or null.
    pub(crate) fn json_option<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>> {
        if self.get_as::<Option<&str>>(column)?.is_none() { Ok(None) } else { self.json(column).map(Some) }
    }

    /// A count.
    pub(crate) fn count<T: TryFrom<i64>>(&self, column: &'static str) -> Result<T>
    where
        T::Error: std::error::Error + Send + Sync + 'static,
    {
        T::try_from(self.get_as::<i64>(column)?)
            .map_err(|source| internal(format!("reading the column `{column}`"), source))
    }

    /// A whole number that may be negative.
    pub(crate) fn signed(&self, column: &'static str) -> Result<i32> {
        i32::try_from(self.get_as::<i64>(column)?)
            .map_err(|source| internal(format!("reading the column `{column}`"), source))
    }

    /// A count, or null.
    pub(crate) fn count_option<T: TryFrom<i64>>(&self, column: &'static str) -> Result<Option<T>>
    where
        T::Error: std::error::Error + Send + Sync + 'static,
    {
        if self.get_as::<Option<i64>>(column)?.is_none() { Ok(None) } else { self.count(column).map(Some) }
    }

    /// An instant.
    pub(crate) fn instant(&self, column: &'static str) -> Result<Instant> {
        DateTime::from_timestamp_micros(self.get_as(column)?)
            .ok_or_else(|| internal(format!("reading the column `{column}`"), "no such instant"))
    }

    /// An instant, or null.
    pub(crate) fn instant_option(&self, column: &'static str) -> Result<Option<Instant>> {
        if self.get_as::<Option<i64>>(column)?.is_none() { Ok(None) } else { self.instant(column).map(Some) }
    }

    /// The columns `interval_start` and `interval_end`.
    pub(crate) fn interval(&self) -> Result<Interval> {
        Interval::new(self.instant("interval_start")?, self.instant("interval_end")?)
            .map_err(|source| internal("reading an interval", source))
    }
}
