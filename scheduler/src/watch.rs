//! What must not be forgotten: holds that are still there, and restores that make no progress. Each is told again from time
//! to time; the registry keeps a notice from being written twice.

use std::time::Duration;

use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::restore::{Holds, Restore};
use tidegate_registry::time::Instant;

/// A restore that is not recorded after so long is stalled: nearly all take seconds.
pub const STALLED_AFTER: Duration = Duration::from_secs(300);

/// One notice for every hold and day that it has lasted.
pub fn nagging(holds: &Holds, now: Instant) -> Vec<NewNotice> {
    let nag = |hold: &tidegate_registry::restore::Hold| {
        let days = (now - hold.placed_at).num_days();
        let message = format!(
            "`{}` has been held for {days} days by {} ({}): `tidegate resume` lifts it",
            hold.view, hold.actor, hold.reason
        );
        let key = format!("hold.nagging {} {} {days}", hold.view, hold.placed_at.timestamp_micros());
        (days > 0).then(|| NewNotice::new(NoticeEvent::HoldNagging, hold.view.to_string(), now, message).once(key))
    };
    holds.holds.iter().filter_map(nag).collect()
}

/// One notice for every restore that is under way for too long.
pub fn stalled(restores: &[Restore], now: Instant) -> Vec<NewNotice> {
    let is_stalled = |restore: &&Restore| {
        restore.under_way_ms.is_some_and(|under_way| Duration::from_millis(under_way) >= STALLED_AFTER)
    };
    let tell = |restore: &Restore| {
        let id = restore.id.to_string();
        let message = format!(
            "the restore {id} by {} ({}) makes no progress: `tidegate runs show {id}` says what it waits for",
            restore.actor, restore.reason
        );
        NewNotice::new(NoticeEvent::RestoreStalled, id.clone(), now, message).once(format!("restore.stalled {id}"))
    };
    restores.iter().filter(is_stalled).map(tell).collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use indexmap::IndexMap;
    use tidegate_registry::ids::RunId;
    use tidegate_registry::restore::{Hold, HoldPolicy, RestorePlan};

    use super::*;

    fn now() -> Instant {
        "2026-03-09T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_hold_nags_once_for_every_day_that_it_lasts() {
        let held = |hours| Holds {
            revision: 1,
            holds: vec![Hold {
                view: "a@v1".parse().unwrap(),
                policy: HoldPolicy::SkipRuns,
                actor: "ana".to_owned(),
                reason: "odd".to_owned(),
                placed_at: now() - TimeDelta::hours(hours),
                restore: None,
                fingerprint: None,
            }],
        };
        assert!(nagging(&held(23), now()).is_empty());
        let first = nagging(&held(24), now()).pop().unwrap();
        assert_eq!(first.message, "`a@v1` has been held for 1 days by ana (odd): `tidegate resume` lifts it");
        let an_hour_later = nagging(&held(24), now() + TimeDelta::hours(1)).pop().unwrap();
        assert_eq!(first.key, an_hour_later.key, "the same day is told once");
        assert_ne!(first.key, nagging(&held(24), now() + TimeDelta::days(1)).pop().unwrap().key);
    }

    #[test]
    fn a_restore_is_stalled_when_it_is_not_recorded_for_long() {
        let restore = |under_way_ms| Restore {
            id: RunId::generate(),
            plan: RestorePlan {
                asked: "--last-good".to_owned(),
                views: IndexMap::new(),
                holds: Vec::new(),
                hold_policy: HoldPolicy::SkipRuns,
            },
            actor: "ana".to_owned(),
            reason: "odd".to_owned(),
            begun_at: now(),
            recorded_at: None,
            took_ms: None,
            under_way_ms,
            validation: None,
        };
        assert!(stalled(&[restore(None), restore(Some(299_999))], now()).is_empty());
        assert_eq!(stalled(&[restore(Some(300_000))], now()).len(), 1);
    }
}
