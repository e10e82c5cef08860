//! Rules about the times of a column.

use std::time::Duration;

use chrono::TimeDelta;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::arrow::record_batch::RecordBatch;
use tidegate_registry::definitions::scalars::format_duration;
use tidegate_registry::model::Edge;
use tidegate_registry::time::{Instant, Interval, format_instant};

use super::rows::{Failing, RowRule, Unjudgeable, column, recast};
use crate::types;

/// Every time is so old at an edge of the interval.
#[derive(Debug)]
pub(super) struct Aged {
    column: [String; 1],
    at: Instant,
    edge: Edge,
    min_age: Option<Duration>,
    max_age: Option<Duration>,
}

impl Aged {
    pub(super) fn new(
        column: &str,
        edge: Edge,
        min_age: Option<Duration>,
        max_age: Option<Duration>,
        interval: Interval,
    ) -> Self {
        let at = match edge {
            Edge::Start => interval.start(),
            Edge::End => interval.end(),
        };
        Self { column: [column.to_owned()], at, edge, min_age, max_age }
    }

    /// The instant that lies so long before the edge. Durations are at most a thousand years, so it can be told.
    fn before(&self, age: Duration) -> Result<Instant, Unjudgeable> {
        let earlier = TimeDelta::from_std(age).ok().and_then(|age| self.at.checked_sub_signed(age));
        earlier.ok_or_else(|| Unjudgeable(format!("there is no time {} earlier", format_duration(age))))
    }
}

impl RowRule for Aged {
    fn columns(&self) -> &[String] {
        &self.column
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let name = &self.column[0];
        let times = column(batch, name)?;
        // A text would be parsed, and a number taken for microseconds.
        if !matches!(times.data_type(), DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Null)
        {
            let kind = types::describe(times.data_type());
            return Err(Unjudgeable(format!("column `{name}` is a {kind}, not a time")));
        }
        let times = recast(times, name, &types::timestamp())?;
        let micros = |at: Instant| at.timestamp_micros();
        let oldest = self.max_age.map(|age| self.before(age).map(micros)).transpose()?.unwrap_or(i64::MIN);
        let newest = self.min_age.map(|age| self.before(age).map(micros)).transpose()?.unwrap_or(i64::MAX);
        let mut failing = Failing::default();
        for (row, at) in times.as_primitive::<TimestampMicrosecondType>().iter().enumerate() {
            if at.is_some_and(|at| at < oldest || at > newest) {
                failing.push(row);
            }
        }
        Ok(failing)
    }

    fn complaint(&self) -> String {
        let column = &self.column[0];
        let edge = match self.edge {
            Edge::Start => "start",
            Edge::End => "end",
        };
        let at = format!("the interval's {edge} {}", format_instant(self.at));
        let of = |age| format_duration(age);
        match (self.min_age, self.max_age) {
            (Some(min), Some(max)) => format!("{column} that is not {} to {} before {at}", of(min), of(max)),
            (Some(min), None) if min.is_zero() => format!("{column} after {at}"),
            (Some(min), None) => format!("{column} later than {} before {at}", of(min)),
            (None, max) => format!("{column} earlier than {} before {at}", of(max.unwrap_or_default())),
        }
    }
}
