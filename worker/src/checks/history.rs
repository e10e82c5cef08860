//! Row counts: against bounds at once, against the interval before when that is known.

use tidegate_registry::model::{Check, Rule};
use tidegate_registry::run::{CheckResult, Verdict};

use super::{pending, result};

/// Judges a `row_count` check of a run that staged `rows`, given how many rows the nearest earlier recorded interval
/// has (`None` when there is none). Other rules have no history and come out as an error.
///
/// Skipped, with the reason, when there is nothing to compare with; bounds hold all the same.
pub fn judge_history(check: &Check, rows: u64, before: Option<u64>) -> CheckResult {
    let judged = judge_bounds(check, rows);
    let (Rule::RowCount { max_change: Some(max_change), .. }, Verdict::Pending) = (&check.rule, judged.verdict) else {
        return judged;
    };
    let skipped = |why: &str| result(check, Verdict::Skipped, format!("{}; {why}", counted(rows)));
    let before = match before {
        None => return skipped("there is no earlier interval to compare with"),
        Some(0) => return skipped("the interval before has none to compare with"),
        Some(before) => before,
    };
    let change = rows.abs_diff(before) as f64 / before as f64;
    let found = format!(
        "{} where the interval before has {before}: {} than {} allowed ({})",
        counted(rows),
        if change > *max_change { "a larger change" } else { "no larger change" },
        percent(*max_change),
        percent(change),
    );
    result(check, if change > *max_change { Verdict::Failed } else { Verdict::Passed }, found)
}

/// Judges `min` and `max`; pending when they hold and the change is still to be judged.
pub(super) fn judge_bounds(check: &Check, rows: u64) -> CheckResult {
    let Rule::RowCount { min, max, max_change } = &check.rule else {
        return result(check, Verdict::Error, "could not be computed: not a rule about the number of rows".to_owned());
    };
    let verdict = |verdict, text: String| result(check, verdict, format!("{}, {text}", counted(rows)));
    match (min, max) {
        (Some(min), _) if rows < *min => verdict(Verdict::Failed, format!("fewer than {min}")),
        (_, Some(max)) if rows > *max => verdict(Verdict::Failed, format!("more than {max}")),
        _ if max_change.is_some() => {
            pending(check, format!("{}, to be compared with the interval before", counted(rows)))
        }
        _ => verdict(Verdict::Passed, "as expected".to_owned()),
    }
}

fn counted(rows: u64) -> String {
    if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }
}

pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == percent.round() { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(min: Option<u64>, max: Option<u64>, max_change: Option<f64>, rows: u64, before: Option<u64>) -> String {
        let check = Check::new("row_count", Rule::RowCount { min, max, max_change });
        let result = judge_history(&check, rows, before);
        format!("{}: {}", result.verdict, result.message)
    }

    #[test]
    fn counts_are_compared_with_bounds_first_and_then_with_history() {
        assert_eq!(judge(Some(5), None, None, 4, Some(4)), "failed: 4 rows, fewer than 5");
        assert_eq!(judge(None, Some(5), Some(9.0), 6, Some(6)), "failed: 6 rows, more than 5");
        assert_eq!(judge(Some(1), Some(1), None, 1, None), "passed: 1 row, as expected");
        assert_eq!(
            judge(None, None, Some(0.5), 16, None),
            "skipped: 16 rows; there is no earlier interval to compare with"
        );
        assert_eq!(
            judge(None, None, Some(0.5), 16, Some(0)),
            "skipped: 16 rows; the interval before has none to compare with"
        );
        assert_eq!(
            judge(None, None, Some(0.5), 24, Some(16)),
            "passed: 24 rows where the interval before has 16: no larger change than 50 % allowed (50 %)"
        );
        assert_eq!(
            judge(None, None, Some(0.5), 7, Some(16)),
            "failed: 7 rows where the interval before has 16: a larger change than 50 % allowed (56.2 %)"
        );
        assert!(judge(None, None, Some(0.5), 0, Some(16)).starts_with("failed: 0 rows"));
    }
}
