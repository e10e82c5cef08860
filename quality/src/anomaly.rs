//! How odd a number is among those before it: row counts, null rates, means of runs.
//!
//! Medians instead of means, so that one bad run in the history neither hides the next nor accuses a good one.

use chrono::{Datelike, Timelike};
use chrono_tz::Tz;
use tidegate_registry::time::Instant;

/// How a number stands among those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Oddness {
    /// Distance from the median in robust standard deviations, with its sign; infinite when a history of equal numbers is
    /// left. Beyond ±3.5 is the customary meaning of odd (Iglewicz and Hoaglin).
    pub z: f64,
    /// The median of the history.
    pub median: f64,
    /// The standard deviation as estimated; 0 for a history of equal numbers.
    pub deviation: f64,
    /// How many numbers of the history counted.
    pub history: usize,
}

/// Why a number cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Unjudged {
    /// Too few numbers of the history count.
    #[error("too few earlier values to judge by: {have} of {need}")]
    TooFew {
        /// How many there are.
        have: usize,
        /// How many were asked for.
        need: usize,
    },
    /// The number itself is infinite or not a number.
    #[error("the value is not a finite number")]
    NotFinite,
}

/// Which earlier numbers are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Season {
    /// Those of the same day of the week.
    Weekday,
    /// Those of the same hour of the day.
    Hour,
    /// Those of the same hour of the same day of the week.
    WeekdayHour,
}

/// The modified z-score of `value` among `history`, of which numbers that are not finite are left out:
/// `(value − median) / deviation`, where the deviation is 1.4826 times the median absolute deviation (Iglewicz and
/// Hoaglin, "How to Detect and Handle Outliers", 1993: their 0.6745 is its inverse).
///
/// When more than half of the history is equal, the median absolute deviation is 0 and would make every other number
/// infinitely odd; the deviation then is 1.2533 times the mean absolute deviation from the median, which is what
/// a normal distribution would have. When all of the history is equal, the same number has `z` 0, and any other is
/// infinitely odd.
///
/// # Errors
/// When fewer than `need` numbers (at least one) count, or `value` is not finite.
pub fn robust_z(value: f64, history: &[f64], need: usize) -> Result<Oddness, Unjudged> {
    if !value.is_finite() {
        return Err(Unjudged::NotFinite);
    }
    let mut numbers: Vec<f64> = history.iter().copied().filter(|number| number.is_finite()).collect();
    let have = numbers.len();
    if have < need.max(1) {
        return Err(Unjudged::TooFew { have, need: need.max(1) });
    }
    let median = median(&mut numbers);
    let mut distances: Vec<f64> = numbers.iter().map(|number| (number - median).abs()).collect();
    let mean = distances.iter().map(|distance| distance / have as f64).sum::<f64>();
    let typical = self::median(&mut distances);
    let deviation = if typical > 0.0 { 1.482_602_218_505_602 * typical } else { 1.253_314_137_315_5 * mean };
    let apart = value - median;
    // 0 / 0 would be no number
    let z = if apart == 0.0 { 0.0 } else { apart / deviation };
    Ok(Oddness { z, median, deviation, history: have })
}

/// [`robust_z`] among those numbers of `history` that belong to the season of `at`, as clocks in `zone` show it.
///
/// # Errors
/// When fewer than `need` numbers of the season (at least one) count, or `value` is not finite.
pub fn seasonal(
    value: f64,
    at: Instant,
    history: &[(Instant, f64)],
    season: Season,
    zone: Tz,
    need: usize,
) -> Result<Oddness, Unjudged> {
    let place = |at: Instant| {
        let local = at.with_timezone(&zone);
        let (weekday, hour) = (local.weekday(), local.hour());
        match season {
            Season::Weekday => (Some(weekday), None),
            Season::Hour => (None, Some(hour)),
            Season::WeekdayHour => (Some(weekday), Some(hour)),
        }
    };
    let same = history.iter().filter(|(then, _)| place(*then) == place(at));
    robust_z(value, &same.map(|(_, number)| *number).collect::<Vec<_>>(), need)
}

/// The middle one, or the mean of the two in the middle; `numbers` are finite, at least one, and come back in order.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    if numbers.len().is_multiple_of(2) { numbers[middle - 1] / 2.0 + numbers[middle] / 2.0 } else { numbers[middle] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_far_from_its_history_is_odd() {
        let history = [10.0, 11.0, 9.0, 10.5, 9.5, 1000.0];
        let found = robust_z(20.0, &history, 5).unwrap();
        assert_eq!((found.median, found.history), (10.25, 6));
        // distances 0.25, 0.25, 0.75, 0.75, 1.25, 989.75
        assert!((found.deviation - 1.482_602_218_505_602 * 0.75).abs() < 1e-12, "{found:?}");
        assert!(found.z > 8.0 && robust_z(10.0, &history, 5).unwrap().z.abs() < 1.0);
        assert!(robust_z(1.0, &history, 5).unwrap().z < -8.0);
    }

    #[test]
    fn equal_histories_judge_too() {
        let mostly = [5.0, 5.0, 5.0, 5.0, 7.0];
        let found = robust_z(6.0, &mostly, 1).unwrap();
        assert!((found.deviation - 1.253_314_137_315_5 * 0.4).abs() < 1e-12, "{found:?}");
        assert_eq!(robust_z(5.0, &[5.0; 4], 1).unwrap().z, 0.0);
        assert_eq!(robust_z(5.1, &[5.0; 4], 1).unwrap().z, f64::INFINITY);
        assert_eq!(robust_z(4.9, &[5.0; 4], 1).unwrap().z, f64::NEG_INFINITY);
    }

    #[test]
    fn what_cannot_be_judged_says_why() {
        assert_eq!(robust_z(1.0, &[1.0, f64::NAN], 2), Err(Unjudged::TooFew { have: 1, need: 2 }));
        assert_eq!(robust_z(1.0, &[], 0), Err(Unjudged::TooFew { have: 0, need: 1 }));
        assert_eq!(robust_z(f64::INFINITY, &[1.0], 1), Err(Unjudged::NotFinite));
        assert_eq!(robust_z(1.0, &[1.0], 5).unwrap_err().to_string(), "too few earlier values to judge by: 1 of 5");
    }

    #[test]
    fn seasons_are_those_of_local_clocks() {
        let at = |text: &str| text.parse::<Instant>().unwrap();
        let zone = chrono_tz::America::New_York;
        // three Mondays and a Sunday in New York; the first two stand on different sides of daylight saving
        let history = [
            (at("2024-03-04T15:00:00Z"), 10.0),
            (at("2024-03-11T14:00:00Z"), 12.0),
            (at("2024-03-18T14:00:00Z"), 11.0),
            (at("2024-03-18T02:00:00Z"), 500.0),
        ];
        let monday = at("2024-03-25T14:00:00Z");
        for (season, counted) in [(Season::Weekday, 3), (Season::Hour, 3), (Season::WeekdayHour, 3)] {
            let found = seasonal(11.0, monday, &history, season, zone, 1).unwrap();
            assert_eq!((found.history, found.median), (counted, 11.0), "{season:?}");
        }
        let sunday = at("2024-03-25T02:30:00Z");
        assert_eq!(seasonal(500.0, sunday, &history, Season::WeekdayHour, zone, 1).unwrap().history, 1);
        let found = seasonal(1.0, sunday, &history, Season::Weekday, zone, 2);
        assert_eq!(found, Err(Unjudged::TooFew { have: 1, need: 2 }));
    }

    proptest! {
        #[test]
        fn neither_order_nor_unit_matters(
            mut history in prop::collection::vec(-1e6..1e6f64, 1..40), value in -1e6..1e6f64,
        ) {
            let found = robust_z(value, &history, 1).unwrap();
            history.reverse();
            prop_assert_eq!(robust_z(value, &history, 1).unwrap(), found);
            let doubled: Vec<f64> = history.iter().map(|number| number * 2.0).collect();
            let scaled = robust_z(value * 2.0, &doubled, 1).unwrap();
            prop_assert!(scaled.z == found.z || (scaled.z - found.z).abs() <= found.z.abs() * 1e-9);
        }
    }
}
