//! How old a view is: now − end of its newest published interval. Not the time of the last write, so neither a backfill of
//! an old slice nor an empty retry makes a view look fresh.

use std::fmt;

use serde::{Deserialize, Serialize};
use tidegate_registry::model::Freshness;
use tidegate_registry::time::Instant;

/// Whether a view is as young as its owner promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FreshnessState {
    /// Nothing was ever published: there is no age, and nobody is paged.
    Unknown,
    /// Young enough.
    Fresh,
    /// Above `warn_age`.
    Warn,
    /// Above `max_age`.
    Breached,
    /// A person keeps it from being published: its age says nothing about the pipeline.
    Held,
}

impl FreshnessState {
    /// The word that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Fresh => "fresh",
            Self::Warn => "warn",
            Self::Breached => "breached",
            Self::Held => "held",
        }
    }
}

impl fmt::Display for FreshnessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The age of a view whose newest published interval ends at `newest_end`. Negative when `now` lies before it.
pub fn age(newest_end: Instant, now: Instant) -> chrono::Duration {
    now - newest_end
}

/// The state of a view; an age exactly at a limit has not passed it.
pub fn state(freshness: &Freshness, newest_end: Option<Instant>, now: Instant) -> FreshnessState {
    let Some(newest_end) = newest_end else { return FreshnessState::Unknown };
    // An age below zero is younger than any limit.
    let age = age(newest_end, now).to_std().unwrap_or_default();
    if age > freshness.max_age {
        FreshnessState::Breached
    } else if freshness.warn_age.is_some_and(|warn_age| age > warn_age) {
        FreshnessState::Warn
    } else {
        FreshnessState::Fresh
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_view_ages_from_the_end_of_its_newest_published_interval() {
        let published: Instant = "2024-03-01T00:00:00Z".parse().unwrap();
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let strict = Freshness { max_age: hours(30), warn_age: Some(hours(26)) };
        let plain = Freshness { max_age: hours(30), warn_age: None };
        for (age_mins, expected_strict, expected_plain) in [
            (-60, FreshnessState::Fresh, FreshnessState::Fresh),
            (0, FreshnessState::Fresh, FreshnessState::Fresh),
            (26 * 60, FreshnessState::Fresh, FreshnessState::Fresh),
            (26 * 60 + 1, FreshnessState::Warn, FreshnessState::Fresh),
            (30 * 60, FreshnessState::Warn, FreshnessState::Fresh),
            (30 * 60 + 1, FreshnessState::Breached, FreshnessState::Breached),
        ] {
            let now = published + chrono::Duration::minutes(age_mins);
            assert_eq!(state(&strict, Some(published), now), expected_strict, "{age_mins}");
            assert_eq!(state(&plain, Some(published), now), expected_plain, "{age_mins}");
        }
        assert_eq!(state(&strict, None, published), FreshnessState::Unknown);
    }
}
