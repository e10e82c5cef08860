//! Checks that compare a run with the intervals recorded before it.

use tidegate_quality::anomaly::{Oddness, robust_z};
use tidegate_quality::drift;
use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::model::{Check, Direction, DriftMeasure, Metric, Project, Rule, Season};
use tidegate_registry::profile::ColumnProfile;
use tidegate_registry::run::{CheckResult, Verdict};
use tidegate_registry::store::{self, Recorded, Store, StoreError};
use tidegate_registry::time::Instant;

use super::metrics::{self, Measured, shown};
use super::{pending, result};

/// Whether the verdict depends on what was recorded before the run.
pub fn needs_history(rule: &Rule) -> bool {
    matches!(
        rule,
        Rule::RowCount { max_change: Some(_), .. } | Rule::Anomaly { .. } | Rule::Monotonic { .. } | Rule::Drift { .. }
    )
}

/// Judges a check that [`needs_history`] of a run of `view` that staged `measured` for an interval that begins at `start`;
/// which weekday and hour that is, the clock of the view's DAG in `project` says. What was recorded is read from `store`; without one there is nothing recorded.
///
/// Skipped, with the reason, when there is nothing to compare with; the bounds of a row count hold all the same.
///
/// # Errors
/// When the store cannot be read.
pub async fn judge_history(
    check: &Check,
    project: &Project,
    view: &ViewId,
    start: Instant,
    measured: Measured<'_>,
    store: Option<&dyn Store>,
) -> store::Result<CheckResult> {
    let read = async |season: Option<Season>, limit: u32| match store {
        Some(store) => store.recorded(view, start, season.map(|season| project.alike(view, season)), limit).await,
        None => Ok(Vec::new()),
    };
    Ok(match &check.rule {
        Rule::RowCount { max_change: Some(_), season, .. } => {
            let before = read(*season, 1).await?;
            judge_change(check, measured.rows, before.first().map(|before| before.rows), *season)
        }
        Rule::Anomaly { metric, last, least, threshold, season } => {
            let before = read(*season, *last).await?;
            judge_anomaly(check, metric, measured, &before, *least, *threshold)
        }
        Rule::Monotonic { metric, direction } => {
            judge_monotonic(check, metric, *direction, measured, read(None, 1).await?.first())
        }
        Rule::Drift { column, measure, limit, last, snapshot } => {
            let reference = match (snapshot, store) {
                (Some(snapshot), Some(store)) => match of_snapshot(store, *snapshot, view).await? {
                    Some(recorded) => vec![recorded],
                    None => {
                        let why =
                            format!("the snapshot `{snapshot}`, which is the reference, is not known or has no {view}");
                        return Ok(result(check, Verdict::Error, format!("could not be computed: {why}")));
                    }
                },
                _ => read(None, *last).await?,
            };
            judge_drift(check, column, *measure, *limit, measured, &reference)
        }
        _ => judge_bounds(check, measured.rows),
    })
}

async fn of_snapshot(store: &dyn Store, snapshot: SnapshotId, view: &ViewId) -> store::Result<Option<Recorded>> {
    match store.recorded_in(snapshot, view).await {
        Ok(recorded) => Ok(Some(recorded)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn measured(recorded: &Recorded) -> Measured<'_> {
    Measured { rows: recorded.rows, profile: &recorded.profile }
}

fn judge_anomaly(
    check: &Check,
    metric: &Metric,
    now: Measured<'_>,
    before: &[Recorded],
    least: u32,
    threshold: f64,
) -> CheckResult {
    let Some(value) = now.value(metric) else { return metrics::none(check, metric) };
    let history: Vec<f64> = before.iter().filter_map(|before| measured(before).value(metric)).collect();
    let is = format!("the {metric} is {}", shown(value));
    match robust_z(value, &history, least as usize) {
        Err(reason) => result(check, Verdict::Skipped, format!("{is}; {reason}")),
        Ok(Oddness { z, median, history, .. }) if z.is_infinite() => {
            let message = format!("{is} where each of {history} earlier intervals has {}", shown(median));
            result(check, Verdict::Failed, message)
        }
        Ok(Oddness { z, median, history, .. }) => {
            let away = format!(
                "{is}, {} robust standard deviations from {}, the median of {history} earlier intervals; {} are allowed",
                shown((z.abs() * 100.0).round() / 100.0),
                shown(median),
                shown(threshold)
            );
            result(check, if z.abs() > threshold { Verdict::Failed } else { Verdict::Passed }, away)
        }
    }
}

fn judge_monotonic(
    check: &Check,
    metric: &Metric,
    direction: Direction,
    now: Measured<'_>,
    before: Option<&Recorded>,
) -> CheckResult {
    let Some(value) = now.value(metric) else { return metrics::none(check, metric) };
    let is = format!("the {metric} is {}", shown(value));
    let Some(before) = before else {
        return result(check, Verdict::Skipped, format!("{is}; there is no earlier interval to compare with"));
    };
    let Some(was) = measured(before).value(metric) else {
        return result(check, Verdict::Skipped, format!("{is}; the interval before has none to compare with"));
    };
    let (broken, may) = match direction {
        Direction::Up => (value < was, "it may not go down"),
        Direction::Down => (value > was, "it may not go up"),
    };
    let message = format!("{is} where the interval before has {}; {may}", shown(was));
    result(check, if broken { Verdict::Failed } else { Verdict::Passed }, message)
}

fn judge_drift(
    check: &Check,
    column: &str,
    measure: DriftMeasure,
    limit: f64,
    now: Measured<'_>,
    before: &[Recorded],
) -> CheckResult {
    let skipped = |why: String| result(check, Verdict::Skipped, why);
    if before.is_empty() {
        return skipped("there is no earlier interval to compare with".to_owned());
    }
    let Some(current) = now.profile.get(column) else {
        return result(check, Verdict::Error, format!("could not be computed: there is no profile of `{column}`"));
    };
    let profiles = before.iter().filter_map(|before| before.profile.get(column));
    let reference = match drift::pooled(profiles) {
        Ok(reference) => reference,
        Err(reason) => return skipped(reason.to_string()),
    };
    let Apart { value, far, largest } = match distance(measure, &reference, current) {
        Ok(apart) => apart,
        Err(reason) => return skipped(reason.to_string()),
    };
    let from = match (&check.rule, before.len()) {
        (Rule::Drift { snapshot: Some(snapshot), .. }, _) => format!("snapshot `{snapshot}`"),
        (_, 1) => "the interval before".to_owned(),
        (_, intervals) => format!("{intervals} earlier intervals"),
    };
    // A p-value is small where a distance is large.
    let (broken, bound) = match measure {
        DriftMeasure::ChiSquare => (value < limit, "at least"),
        _ => (value > limit, "at most"),
    };
    let mut message =
        format!("{far} of {column} against {from} is {}, {bound} {} is allowed", shown(value), shown(limit));
    if broken && let Some(largest) = largest {
        message.push_str(&format!("; most of it: {largest}"));
    }
    result(check, if broken { Verdict::Failed } else { Verdict::Passed }, message)
}

/// How far two columns are apart.
struct Apart {
    value: f64,
    /// What it is called.
    far: &'static str,
    /// The bins that differ most.
    largest: Option<String>,
}

fn distance(
    measure: DriftMeasure,
    reference: &ColumnProfile,
    current: &ColumnProfile,
) -> Result<Apart, drift::NotComparable> {
    let told = |shares: &[drift::Share]| {
        let told = shares
            .iter()
            .map(|share| format!("{} {} → {}", share.bin, percent(share.reference), percent(share.current)));
        (!shares.is_empty()).then(|| told.collect::<Vec<_>>().join(", "))
    };
    Ok(match measure {
        DriftMeasure::Psi => {
            let found = drift::psi(reference, current)?;
            Apart { value: found.value, far: "the population stability index", largest: told(&found.largest) }
        }
        DriftMeasure::JensenShannon => {
            let found = drift::jensen_shannon(reference, current)?;
            Apart { value: found.value, far: "the Jensen–Shannon distance", largest: told(&found.largest) }
        }
        DriftMeasure::KolmogorovSmirnov => {
            let found = drift::kolmogorov_smirnov(reference, current)?;
            let largest = Some(format!("the share up to {}", shown(found.at)));
            Apart { value: found.statistic, far: "the Kolmogorov–Smirnov statistic", largest }
        }
        DriftMeasure::ChiSquare => {
            let found = drift::chi_square(reference, current)?;
            Apart { value: found.p_value, far: "the chi-square test's p-value", largest: told(&found.largest) }
        }
    })
}

/// Judges the bounds of a row count, then its change from `before`, the rows of an earlier interval.
fn judge_change(check: &Check, rows: u64, before: Option<u64>, season: Option<Season>) -> CheckResult {
    let judged = judge_bounds(check, rows);
    let (Rule::RowCount { max_change: Some(max_change), .. }, Verdict::Pending) = (&check.rule, judged.verdict) else {
        return judged;
    };
    let (there_is_none, the_interval) = match season {
        None => ("there is no earlier interval to compare with", "the interval before"),
        Some(Season::Weekday) => ("there is no earlier interval of this weekday", "that of the same weekday before"),
        Some(Season::Hour) => ("there is no earlier interval of this hour", "that of the same hour before"),
        Some(Season::WeekdayHour) => {
            ("there is no earlier interval of this weekday and hour", "that of the same weekday and hour before")
        }
    };
    let skipped = |why: &str| result(check, Verdict::Skipped, format!("{}; {why}", counted(rows)));
    let before = match before {
        None => return skipped(there_is_none),
        Some(0) => return skipped(&format!("{the_interval} has none to compare with")),
        Some(before) => before,
    };
    let change = rows.abs_diff(before) as f64 / before as f64;
    let found = format!(
        "{} where {the_interval} has {before}: {} than {} allowed ({})",
        counted(rows),
        if change > *max_change { "a larger change" } else { "no larger change" },
        percent(*max_change),
        percent(change),
    );
    result(check, if change > *max_change { Verdict::Failed } else { Verdict::Passed }, found)
}

/// Judges `min` and `max`; pending when they hold and the change is still to be judged.
pub(super) fn judge_bounds(check: &Check, rows: u64) -> CheckResult {
    let Rule::RowCount { min, max, max_change, .. } = &check.rule else {
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
    use std::sync::Arc;

    use datafusion::arrow::array::{Array, ArrayRef, StringArray};
    use indexmap::IndexMap;
    use tidegate_quality::profile::ColumnProfiler;
    use tidegate_registry::time::Interval;

    use super::*;

    fn judge(min: Option<u64>, max: Option<u64>, max_change: Option<f64>, rows: u64, before: Option<u64>) -> String {
        let check = Check::new("row_count", Rule::RowCount { min, max, max_change, season: None });
        let result = judge_change(&check, rows, before, None);
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

    /// Runs of which the mean of `x` is known, newest first.
    fn recorded(means: &[Option<f64>]) -> Vec<Recorded> {
        let day = |number: i64| Instant::UNIX_EPOCH + chrono::TimeDelta::days(number);
        let of = |(number, mean): (usize, &Option<f64>)| Recorded {
            interval: Interval::new(day(-(number as i64)), day(1 - number as i64)).unwrap(),
            snapshot: SnapshotId::generate(),
            rows: 10,
            profile: IndexMap::from([("x".to_owned(), ColumnProfile { mean: *mean, ..ColumnProfile::default() })]),
            summary: None,
        };
        means.iter().enumerate().map(of).collect()
    }

    fn said(result: &CheckResult) -> String {
        format!("{}: {}", result.verdict, result.message)
    }

    fn mean() -> Metric {
        Metric::Mean("x".to_owned())
    }

    fn anomaly(value: Option<f64>, before: &[Option<f64>]) -> String {
        let rule = Rule::Anomaly { metric: mean(), last: 30, least: 3, threshold: 3.5, season: None };
        let now = recorded(&[value]).remove(0);
        said(&judge_anomaly(&Check::new("anomaly", rule), &mean(), measured(&now), &recorded(before), 3, 3.5))
    }

    #[test]
    fn odd_numbers_are_found_by_their_distance_from_the_median() {
        let before = [10.0, 11.0, 9.0, 10.5, 9.5, 1000.0].map(Some);
        assert_eq!(
            anomaly(Some(12.0), &before),
            "passed: the mean of x is 12, 1.57 robust standard deviations from 10.25, the median of 6 earlier intervals; \
             3.5 are allowed"
        );
        assert!(anomaly(Some(20.0), &before).starts_with("failed: the mean of x is 20, 8.77 robust"));
        assert!(anomaly(Some(0.5), &before).starts_with("failed: the mean of x is 0.5, 8.77 robust"));
        assert_eq!(
            anomaly(Some(2.0), &[Some(1.0); 4]),
            "failed: the mean of x is 2 where each of 4 earlier intervals has 1"
        );
        assert_eq!(
            anomaly(Some(2.0), &[Some(2.0), None, Some(2.0), None]),
            "skipped: the mean of x is 2; too few earlier values to judge by: 2 of 3"
        );
        assert_eq!(anomaly(None, &before), "skipped: no row has a value to take the mean of x from");
    }

    #[test]
    fn what_only_grows_may_not_shrink() {
        let judge = |direction, value, before: &[Option<f64>]| {
            let check = Check::new("monotonic", Rule::Monotonic { metric: mean(), direction });
            let now = recorded(&[value]).remove(0);
            said(&judge_monotonic(&check, &mean(), direction, measured(&now), recorded(before).first()))
        };
        let up = |value, before: &[Option<f64>]| judge(Direction::Up, Some(value), before);
        assert_eq!(
            up(3.0, &[Some(3.0)]),
            "passed: the mean of x is 3 where the interval before has 3; it may not go down"
        );
        assert!(up(2.9, &[Some(3.0)]).starts_with("failed: the mean of x is 2.9 "));
        assert!(judge(Direction::Down, Some(2.9), &[Some(3.0)]).starts_with("passed: "));
        assert!(judge(Direction::Down, Some(3.1), &[Some(3.0)]).ends_with("; it may not go up"));
        assert_eq!(up(3.0, &[]), "skipped: the mean of x is 3; there is no earlier interval to compare with");
        assert_eq!(up(3.0, &[None]), "skipped: the mean of x is 3; the interval before has none to compare with");
    }

    #[test]
    fn drift_is_told_with_what_moved() {
        let texts = |texts: &[(&str, usize)]| {
            let values: Vec<&str> = texts.iter().flat_map(|(text, times)| std::iter::repeat_n(*text, *times)).collect();
            let array: ArrayRef = Arc::new(StringArray::from(values));
            let mut profiler = ColumnProfiler::new(array.data_type());
            profiler.update(&array).unwrap();
            let profile = IndexMap::from([("x".to_owned(), profiler.finish())]);
            Recorded { profile, ..recorded(&[None]).remove(0) }
        };
        let judge = |measure, limit, now: &[(&str, usize)], before: &[Recorded]| {
            let rule = Rule::Drift { column: "x".to_owned(), measure, limit, last: 7, snapshot: None };
            said(&judge_drift(&Check::new("drift", rule), "x", measure, limit, measured(&texts(now)), before))
        };
        let before = [texts(&[("AA", 60), ("DL", 40)]), texts(&[("AA", 50), ("DL", 50)])];
        assert!(
            judge(DriftMeasure::Psi, 0.25, &[("AA", 55), ("DL", 45)], &before)
                .starts_with("passed: the population stability index of x against 2 earlier intervals is 0")
        );
        let moved = judge(DriftMeasure::Psi, 0.25, &[("AA", 10), ("ZZ", 90)], &before);
        assert!(
            moved.starts_with("failed: the population stability index of x against 2 earlier intervals is "),
            "{moved}"
        );
        assert!(moved.contains("; most of it: ZZ 0 % → 90 %, DL 45 % → 0 %"), "{moved}");
        let by_chance = judge(DriftMeasure::ChiSquare, 0.001, &[("AA", 52), ("DL", 48)], &before);
        assert!(
            by_chance.starts_with("passed: the chi-square test's p-value of x against 2 earlier intervals is 0."),
            "{by_chance}"
        );
        assert!(judge(DriftMeasure::ChiSquare, 0.001, &[("AA", 5), ("DL", 95)], &before).starts_with("failed: "));
        let distance = judge(DriftMeasure::JensenShannon, 0.1, &[("ZZ", 5)], &before[..1]);
        assert!(
            distance.starts_with("failed: the Jensen–Shannon distance of x against the interval before is 1, "),
            "{distance}"
        );
        assert_eq!(
            judge(DriftMeasure::Psi, 0.25, &[("AA", 1)], &[]),
            "skipped: there is no earlier interval to compare with"
        );
        assert_eq!(judge(DriftMeasure::Psi, 0.25, &[], &before), "skipped: there are no values to compare");
        assert_eq!(
            judge(DriftMeasure::KolmogorovSmirnov, 0.1, &[("AA", 1)], &before),
            "skipped: the measure does not apply to the column's values"
        );
        assert_eq!(
            judge(DriftMeasure::Psi, 0.25, &[("AA", 1)], &recorded(&[None])),
            "skipped: the reference has no values to compare with"
        );
    }
}
