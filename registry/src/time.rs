//! Instants, intervals and the clock that is handed in.
//!
//! Two times must not be mixed. *Project time* is what users see: ticks, intervals, ages, record times. It comes from a
//! [`Clock`] and may be simulated. *Lease time* (leases, retry delays, time-outs) is real: it belongs to the registry's
//! own clock and never passes through here.

use std::fmt;

use chrono::{DateTime, Duration, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// A point in project time, in UTC, at microsecond precision (what Parquet, Delta and the registry can all hold).
pub type Instant = DateTime<Utc>;

/// RFC 3339 in UTC with as many digits as needed: how every instant is printed and stored as text.
pub fn format_instant(at: Instant) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Half-open `[start, end)` in UTC, never empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawInterval", into = "RawInterval")]
pub struct Interval {
    start: Instant,
    end: Instant,
}

#[derive(Serialize, Deserialize)]
struct RawInterval {
    start: Instant,
    end: Instant,
}

/// An interval whose end is not after its start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the interval from {} to {} is empty", format_instant(*.start), format_instant(*.end))]
pub struct EmptyInterval {
    /// The start as given.
    pub start: Instant,
    /// The end as given.
    pub end: Instant,
}

impl Interval {
    /// The interval from `start` (inside) to `end` (outside).
    ///
    /// # Errors
    /// When `end <= start`.
    pub fn new(start: Instant, end: Instant) -> Result<Self, EmptyInterval> {
        if start < end { Ok(Self { start, end }) } else { Err(EmptyInterval { start, end }) }
    }

    /// The first instant inside.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// The first instant after.
    pub fn end(&self) -> Instant {
        self.end
    }

    /// `end - start`.
    pub fn length(&self) -> Duration {
        self.end - self.start
    }
}

impl TryFrom<RawInterval> for Interval {
    type Error = EmptyInterval;
    fn try_from(raw: RawInterval) -> Result<Self, EmptyInterval> {
        Self::new(raw.start, raw.end)
    }
}

impl From<Interval> for RawInterval {
    fn from(interval: Interval) -> Self {
        Self { start: interval.start, end: interval.end }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", format_instant(self.start), format_instant(self.end)))
    }
}

impl fmt::Debug for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self})")
    }
}

/// Where project time comes from. Everything that decides by time takes a `now` or one of these.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The present instant in project time.
    fn now(&self) -> Instant;

    /// How long to sleep in real time until project time reaches `at`; zero when it has passed.
    fn real_until(&self, at: Instant) -> std::time::Duration;
}

/// Project time is real time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where project time reads the wall clock")]
    fn now(&self) -> Instant {
        truncate(Utc::now())
    }

    fn real_until(&self, at: Instant) -> std::time::Duration {
        (at - self.now()).to_std().unwrap_or_default()
    }
}

/// Project time runs from `project_start` at `speed` seconds per real second, counted from `real_start`: how old data
/// behaves as on its day.
#[derive(Debug, Clone, Copy)]
pub struct SimulatedClock {
    /// The real instant at which project time was `project_start`.
    pub real_start: Instant,
    /// Project time at `real_start`.
    pub project_start: Instant,
    /// Project seconds per real second; greater than 0.
    pub speed: f64,
}

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        let real = (SystemClock.now() - self.real_start).as_seconds_f64().max(0.0);
        // An f64 of seconds holds microseconds for 285 years; speeds beyond that saturate instead of wrapping.
        let micros = (real * self.speed * 1e6).min(9e15) as i64;
        truncate(self.project_start + Duration::microseconds(micros))
    }

    fn real_until(&self, at: Instant) -> std::time::Duration {
        let project = (at - self.now()).as_seconds_f64().max(0.0);
        std::time::Duration::try_from_secs_f64(project / self.speed).unwrap_or(std::time::Duration::MAX)
    }
}

/// Project time stands still: tests, dry runs, previews.
#[derive(Debug, Clone, Copy)]
pub struct FixedClock(pub Instant);

impl Clock for FixedClock {
    fn now(&self) -> Instant {
        self.0
    }

    fn real_until(&self, _at: Instant) -> std::time::Duration {
        std::time::Duration::MAX
    }
}

fn truncate(at: Instant) -> Instant {
    DateTime::from_timestamp_micros(at.timestamp_micros()).unwrap_or(at)
}
