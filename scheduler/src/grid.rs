//! How a schedule cuts time: cron's minutes, enumerated on the wall clock of the zone and resolved to UTC.
//!
//! The wall clock skips an hour in spring and repeats one in autumn, and programs that run cron disagree about both. Here
//! the author may choose ([`Gap`], [`Overlap`]), and the ticks of a grid strictly increase whatever the zone does, so
//! consecutive ticks cut time into intervals with neither hole nor overlap.
//!
//! Ticks are found by walking UTC from one change of the zone's offset to the next: between two changes the wall clock
//! is UTC plus a constant, so order is never in doubt. The tempting alternative, resolving wall-clock minutes one by
//! one, yields them out of order wherever an hour repeats.

use chrono::{DateTime, LocalResult, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use tidegate_registry::cron::{Cron, CronError};
use tidegate_registry::model::{Gap, Overlap, Schedule};
use tidegate_registry::time::{Instant, Interval};

/// No zone has changed its offset twice within a week, so looking this often misses no change.
const PROBE_SECS: i64 = 72 * 3600;

/// 9999-12-31T00:00:00Z: nothing is planned beyond, because not every format can write a year of five digits.
const LAST_SECS: i64 = 253_402_214_400;

/// A schedule, parsed: the ticks that it gives.
#[derive(Debug, Clone)]
pub struct Grid {
    cron: Cron,
    timezone: Tz,
    gap: Gap,
    overlap: Overlap,
    start: Instant,
    end: Option<Instant>,
}

impl Grid {
    /// The grid of `schedule`, with its choices for gap and overlap or the defaults: elapsed time (`skip`, `both`) when
    /// the minute or hour field has a `*` or a step, else `run_after` and `first`.
    ///
    /// # Errors
    /// When its cron is not crontab(5).
    pub fn new(schedule: &Schedule) -> Result<Self, CronError> {
        let cron = Cron::parse(&schedule.cron)?;
        let (gap, overlap) =
            if cron.is_elapsed_time() { (Gap::Skip, Overlap::Both) } else { (Gap::RunAfter, Overlap::First) };
        Ok(Self {
            timezone: schedule.timezone,
            gap: schedule.gap.unwrap_or(gap),
            overlap: schedule.overlap.unwrap_or(overlap),
            start: schedule.start,
            end: schedule.end,
            cron,
        })
    }

    /// What becomes of ticks that the wall clock skips.
    pub fn gap(&self) -> Gap {
        self.gap
    }

    /// What becomes of ticks that the wall clock shows twice.
    pub fn overlap(&self) -> Overlap {
        self.overlap
    }

    /// The zone on whose wall clock the ticks are read.
    pub fn timezone(&self) -> Tz {
        self.timezone
    }

    /// Every tick of the cron in `(after, until]`, ascending, whatever the schedule's start and end.
    pub fn cron_ticks(&self, after: Instant, until: Instant) -> Ticks<'_> {
        Ticks { grid: self, after: after.timestamp(), until: until.timestamp().min(LAST_SECS) }
    }

    /// The ticks that bound the schedule's intervals, in `(after, until]` (`after: None`: from the first): the first is
    /// the first tick at or after `start`, the last is the first at or after `end`.
    pub fn ticks(&self, after: Option<Instant>, until: Instant) -> impl Iterator<Item = Instant> + '_ {
        // A microsecond is the precision of instants, and a tick at `start` itself counts.
        let before_start = self.start - TimeDelta::microseconds(1);
        let after = after.map_or(before_start, |after| after.max(before_start));
        // The tick that closes the last interval may be as far off as the calendar is long, so the walk, not a date,
        // says where to stop.
        let mut ended = self.end.is_some_and(|end| {
            after >= end || after == before_start && self.cron_ticks(after, until).next().is_none_or(|tick| tick >= end)
        });
        let mut ticks = self.cron_ticks(after, until);
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let tick = ticks.next()?;
            ended = self.end.is_some_and(|end| tick >= end);
            Some(tick)
        })
    }

    /// The first of [`Self::ticks`] after `after`.
    pub fn next_tick(&self, after: Option<Instant>) -> Option<Instant> {
        self.ticks(after, DateTime::<Utc>::MAX_UTC).next()
    }

    /// Whether `interval` is one that the schedule wants: its start lies in `[start, end)`.
    pub fn wants(&self, interval: &Interval) -> bool {
        interval.start() >= self.start && self.end.is_none_or(|end| interval.start() < end)
    }

    fn offset(&self, at: i64) -> i64 {
        let naive = naive(at);
        i64::from(self.timezone.offset_from_utc_datetime(&naive).fix().local_minus_utc())
    }

    /// The first second in `(from, until]` with another offset than the one before it.
    fn next_change(&self, from: i64, until: i64) -> Option<i64> {
        let offset = self.offset(from);
        let mut before = from;
        while before < until {
            let probe = (before + PROBE_SECS).min(until);
            if self.offset(probe) != offset {
                return Some(self.bisect(before, probe, offset));
            }
            before = probe;
        }
        None
    }

    /// The first second in `(before, after]` whose offset is not `offset`.
    fn bisect(&self, mut before: i64, mut after: i64, offset: i64) -> i64 {
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            if self.offset(middle) == offset { before = middle } else { after = middle }
        }
        after
    }

    /// The first tick in `[from, until]`.
    fn first_tick(&self, mut from: i64, until: i64) -> Option<i64> {
        while from <= until {
            if self.gap == Gap::RunAfter && self.ends_gap_with_tick(from) {
                return Some(from);
            }
            let offset = self.offset(from);
            let tick = self.cron.first_from(naive(from + offset)).map(|wall| wall.and_utc().timestamp() - offset);
            let reach = tick.map_or(until, |tick| tick.min(until));
            match (self.next_change(from, reach), tick) {
                (Some(change), _) => from = change,
                (None, Some(tick)) if tick > until => return None,
                (None, Some(tick)) if self.keeps(tick, tick + offset) => return Some(tick),
                (None, Some(tick)) => from = tick + 1,
                (None, None) => return None,
            }
        }
        None
    }

    /// Whether at `at` the wall clock jumps over a minute that the cron names.
    fn ends_gap_with_tick(&self, at: i64) -> bool {
        let (before, after) = (self.offset(at - 1), self.offset(at));
        before < after && self.cron.first_from(naive(at + before)).is_some_and(|wall| wall < naive(at + after))
    }

    /// Whether the tick at `at`, when the wall clock shows `wall`, is one of those that [`Overlap`] chooses.
    fn keeps(&self, at: i64, wall: i64) -> bool {
        if self.overlap == Overlap::Both {
            return true;
        }
        match (self.overlap, self.timezone.offset_from_local_datetime(&naive(wall))) {
            (Overlap::First, LocalResult::Ambiguous(first, _)) => wall - seconds(&first) == at,
            (Overlap::Second, LocalResult::Ambiguous(_, second)) => wall - seconds(&second) == at,
            _ => true,
        }
    }
}

fn seconds(offset: &impl Offset) -> i64 {
    i64::from(offset.fix().local_minus_utc())
}

/// Seconds since 1970 as a calendar date; the ends of the calendar stand for what lies beyond.
fn naive(secs: i64) -> NaiveDateTime {
    DateTime::from_timestamp(secs, 0)
        .map_or(if secs < 0 { NaiveDateTime::MIN } else { NaiveDateTime::MAX }, |instant| instant.naive_utc())
}

/// See [`Grid::cron_ticks`].
#[derive(Debug, Clone)]
pub struct Ticks<'a> {
    grid: &'a Grid,
    /// Whole seconds, as every tick is: a tick is after `after` when its second is.
    after: i64,
    until: i64,
}

impl Iterator for Ticks<'_> {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        let tick = self.grid.first_tick(self.after + 1, self.until)?;
        self.after = tick;
        DateTime::from_timestamp(tick, 0)
    }
}

/// The intervals between consecutive `ticks`, which must ascend; equal neighbours bound none.
pub fn intervals(ticks: &[Instant]) -> impl Iterator<Item = Interval> + '_ {
    ticks.windows(2).filter_map(|pair| Interval::new(pair[0], pair[1]).ok())
}

/// The next `count` ticks of `schedule` after `after`, each in UTC and as its zone's wall clock shows it.
///
/// # Errors
/// When the schedule's cron is not crontab(5).
pub fn next_fire_times(
    schedule: &Schedule,
    after: Instant,
    count: usize,
) -> Result<Vec<(Instant, DateTime<Tz>)>, CronError> {
    let grid = Grid::new(schedule)?;
    let ticks = grid.ticks(Some(after), DateTime::<Utc>::MAX_UTC).take(count);
    Ok(ticks.map(|tick| (tick, tick.with_timezone(&schedule.timezone))).collect())
}

#[cfg(test)]
#[path = "grid_tests.rs"]
mod tests;
