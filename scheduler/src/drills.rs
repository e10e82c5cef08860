//! When drills that definitions ask for are due: by the same rules of the wall clock as DAGs.

use tidegate_registry::cron::CronError;
use tidegate_registry::model::{Catchup, Schedule, ScheduledDrill};
use tidegate_registry::time::Instant;

use crate::grid::Grid;

/// The tick for which a drill is due at `now`: the first since it was begun last (`last`), or since its definition was
/// applied, whichever is later. `None` while that lies ahead. Ticks that were missed count once.
///
/// # Errors
/// When the cron cannot be read, which validation refuses.
pub fn due(
    drill: &ScheduledDrill,
    last: Option<Instant>,
    applied: Instant,
    now: Instant,
) -> Result<Option<Instant>, CronError> {
    let since = last.map_or(applied, |last| last.max(applied));
    let grid = Grid::new(&Schedule {
        cron: drill.cron.clone(),
        timezone: drill.timezone,
        start: since,
        end: None,
        catchup: Catchup::Latest,
        gap: None,
        overlap: None,
    })?;
    Ok(grid.ticks(Some(since), now).next())
}

#[cfg(test)]
mod tests {
    use tidegate_registry::diagnostics::Origin;
    use tidegate_registry::ids::DrillName;
    use tidegate_registry::model::Matching;

    use super::*;

    fn at(text: &str) -> Instant {
        text.parse().unwrap()
    }

    #[test]
    fn a_drill_is_due_once_a_tick_has_passed_and_once_for_all_that_were_missed() {
        let drill = ScheduledDrill {
            name: DrillName::new("weekly").unwrap(),
            description: None,
            matching: Matching::default(),
            cron: "0 5 * * 0".to_owned(),
            timezone: chrono_tz::Europe::Berlin,
            scenarios: Vec::new(),
            origin: Origin::default(),
        };
        let due = |last: Option<&str>, applied, now| due(&drill, last.map(at), at(applied), at(now)).unwrap();
        // Sundays, at five in the morning of Berlin: four o'clock in winter, three in summer.
        let applied = "2026-03-17T12:00:00Z";
        assert_eq!(due(None, applied, "2026-03-22T03:59:59Z"), None);
        assert_eq!(due(None, applied, "2026-03-22T04:00:00Z"), Some(at("2026-03-22T04:00:00Z")));
        let last = Some("2026-03-22T04:00:07Z");
        assert_eq!(due(last, applied, "2026-03-29T02:59:59Z"), None);
        assert_eq!(due(last, applied, "2026-04-30T00:00:00Z"), Some(at("2026-03-29T03:00:00Z")));
        assert_eq!(due(Some("2026-04-30T00:00:00Z"), applied, "2026-05-02T00:00:00Z"), None, "caught up by one drill");
        // What is applied anew begins anew.
        assert_eq!(due(last, "2026-03-30T00:00:00Z", "2026-04-04T00:00:00Z"), None);
    }
}
