//! When a history row counts for a label: what a caller states ([`Rule`]) and what the join computes with ([`Timing`]).
//!
//! Both rules come down to the same three numbers per history row: an *order* (which of two visible rows is newer), the
//! first instant at which a label sees the row, and the instant from which no label sees it any more. The join knows only
//! these.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::Int64Array;
use datafusion::arrow::datatypes::TimeUnit;
use datafusion::common::{Column, Result, plan_err};

use crate::ticks::{micros_to_ticks, ticks_per_micro};

/// Which row of a history a label at `t` sees, among the rows with the label's keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Hash)]
pub enum Rule {
    /// The newest row with `time + delay <= t`, unless `t >= time + ttl`: then there is none. Nothing older than the newest
    /// is looked at, because it would have expired before.
    Event {
        /// The timestamp of a history row. Rows in which it is null do not exist.
        time: Column,
        /// How long after its time a row becomes visible, to the microsecond.
        delay: Duration,
        /// How long after its time a row is no longer visible, to the microsecond. `None`: never.
        ttl: Option<Duration>,
        /// Of rows with the same keys and time the one that is greater in these columns wins, in this order; null is less
        /// than anything. When these are equal too, the columns taken decide, so that the answer never depends on the order
        /// of the rows.
        tie_break: Vec<Column>,
    },
    /// The row of the one period that is available at `t`. A label whose keys have no row in that period sees nothing,
    /// whatever earlier periods hold.
    Interval {
        /// The timestamp that says to which period a history row belongs. Rows that belong to none do not exist.
        interval: Column,
        /// The periods, sorted by availability and without overlap ([`Period`]).
        published: Arc<[Period]>,
    },
}

/// One complete state of a history, and when labels see it. Instants are microseconds since 1970 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period {
    /// What the rows of this state hold in [`Rule::Interval::interval`].
    pub interval: i64,
    /// The first instant at which a label sees this state.
    pub available_from: i64,
    /// The first instant at which it sees it no more; `i64::MAX` when no later state has taken its place.
    pub available_until: i64,
}

impl Rule {
    /// Checks what does not depend on any schema.
    pub(crate) fn validate(&self) -> Result<()> {
        let Self::Interval { published, .. } = self else { return Ok(()) };
        for period in published.iter() {
            if period.available_from > period.available_until {
                return plan_err!(
                    "the period of {} is available until {}, before it is available from {}",
                    period.interval,
                    period.available_until,
                    period.available_from
                );
            }
        }
        for pair in published.windows(2) {
            if pair[0].available_until > pair[1].available_from {
                return plan_err!(
                    "the periods of {} and {} overlap: sort them by availability and end each where the next begins",
                    pair[0].interval,
                    pair[1].interval
                );
            }
        }
        let mut values: Vec<i64> = published.iter().map(|period| period.interval).collect();
        values.sort_unstable();
        if let Some(pair) = values.windows(2).find(|pair| pair[0] == pair[1]) {
            return plan_err!("two periods are those of {}: a state is available once", pair[0]);
        }
        Ok(())
    }

    /// The column that orders the rows of the history.
    pub(crate) fn time(&self) -> &Column {
        match self {
            Self::Event { time, .. } => time,
            Self::Interval { interval, .. } => interval,
        }
    }

    /// The columns that decide between rows of one time.
    pub(crate) fn tie_break(&self) -> &[Column] {
        match self {
            Self::Event { tie_break, .. } => tie_break,
            Self::Interval { .. } => &[],
        }
    }

    /// The rule in ticks of `unit`, in which both labels and history rows are counted.
    pub(crate) fn timing(&self, unit: TimeUnit) -> Timing {
        match self {
            Self::Event { delay, ttl, .. } => Timing::Event {
                delay: duration_to_ticks(*delay, unit),
                ttl: ttl.map(|ttl| duration_to_ticks(ttl, unit)),
            },
            Self::Interval { published, .. } => {
                let mut by_start: Vec<(i64, u32)> = (0u32..)
                    .zip(published.iter())
                    .map(|(number, period)| (micros_to_ticks(period.interval, unit), number))
                    .collect();
                by_start.sort_unstable();
                let spans = published
                    .iter()
                    .map(|period| Span {
                        from: micros_to_ticks(period.available_from, unit),
                        until: micros_to_ticks(period.available_until, unit),
                    })
                    .collect();
                Timing::Periods { by_start, spans }
            }
        }
    }
}

fn duration_to_ticks(duration: Duration, unit: TimeUnit) -> i64 {
    let ticks = duration.as_micros().saturating_mul(ticks_per_micro(unit).unsigned_abs().into());
    i64::try_from(ticks).unwrap_or(i64::MAX)
}

/// [`Rule`] without columns, in ticks.
#[derive(Debug, Clone)]
pub(crate) enum Timing {
    /// [`Rule::Event`]: the order of a row is its time.
    Event { delay: i64, ttl: Option<i64> },
    /// [`Rule::Interval`]: the order of a row is the number of its period.
    Periods {
        /// Starts of periods and their numbers, sorted.
        by_start: Vec<(i64, u32)>,
        spans: Vec<Span>,
    },
}

/// When labels see a period.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) from: i64,
    pub(crate) until: i64,
}

impl Timing {
    /// The orders of rows from their times; null where a row does not exist.
    pub(crate) fn orders(&self, times: Int64Array) -> Int64Array {
        let Self::Periods { by_start, .. } = self else { return times };
        // rows of one batch mostly belong to one period
        let mut last: Option<(i64, Option<i64>)> = None;
        times
            .iter()
            .map(|time| {
                let time = time?;
                match last {
                    Some((known, order)) if known == time => order,
                    _ => {
                        let found = by_start.binary_search_by_key(&time, |(start, _)| *start).ok();
                        let order = found.map(|place| i64::from(by_start[place].1));
                        last = Some((time, order));
                        order
                    }
                }
            })
            .collect()
    }

    /// The first instant at which a label sees a row of this order; `None` when that is after all time.
    #[inline]
    pub(crate) fn visible_from(&self, order: i64) -> Option<i64> {
        match self {
            Self::Event { delay, .. } => order.checked_add(*delay),
            Self::Periods { spans, .. } => Some(span(spans, order).from),
        }
    }

    /// Whether a label at `t`, which is not before [`Timing::visible_from`], still sees a row of this order.
    #[inline]
    pub(crate) fn alive(&self, order: i64, t: i64) -> bool {
        match self {
            Self::Event { ttl: None, .. } => true,
            // in 128 bits, since the distance of two instants may exceed 64
            Self::Event { ttl: Some(ttl), .. } => i128::from(t) - i128::from(order) < i128::from(*ttl),
            Self::Periods { spans, .. } => {
                let until = span(spans, order).until;
                t < until || until == i64::MAX
            }
        }
    }
}

fn span(spans: &[Span], order: i64) -> Span {
    spans[usize::try_from(order).expect("an order of periods is the number of one")]
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event { time, delay, ttl, tie_break } => {
                write!(f, "newest {}", time.name())?;
                if !delay.is_zero() {
                    write!(f, " delayed by {delay:?}")?;
                }
                if let Some(ttl) = ttl {
                    write!(f, " living {ttl:?}")?;
                }
                if !tie_break.is_empty() {
                    let names: Vec<&str> = tie_break.iter().map(Column::name).collect();
                    write!(f, " then greatest {}", names.join(", "))?;
                }
                Ok(())
            }
            Self::Interval { interval, published } => {
                write!(f, "{} of the period available, of {}", interval.name(), published.len())
            }
        }
    }
}
