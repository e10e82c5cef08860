//! Numbers about the rows of a run, taken from their profile.

use indexmap::IndexMap;
use tidegate_registry::model::{Check, Metric, Rule};
use tidegate_registry::profile::ColumnProfile;
use tidegate_registry::run::{CheckResult, Verdict};

use super::{pending, result};

/// What is known of the rows of one run.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'a> {
    /// How many there are.
    pub rows: u64,
    /// Their columns.
    pub profile: &'a IndexMap<String, ColumnProfile>,
}

impl Measured<'_> {
    /// The number; `None` when the rows have no value to take it from.
    pub fn value(self, metric: &Metric) -> Option<f64> {
        let Some(column) = metric.column() else { return Some(self.rows as f64) };
        let profile = self.profile.get(column)?;
        match metric {
            Metric::RowCount => Some(self.rows as f64),
            Metric::NullRate(_) => profile.null_rate(),
            Metric::DistinctCount(_) => profile.distinct.map(|distinct| distinct as f64),
            Metric::Mean(_) => profile.mean,
            Metric::Stddev(_) => profile.stddev,
            Metric::Sum(_) => profile.sum,
            Metric::Quantile { rank, .. } => profile.quantile(*rank),
            Metric::TrueRatio(_) => profile.true_ratio(),
        }
    }
}

/// Judges a check about the bounds of a number; others wait for their history.
pub(super) fn judge_bounds(check: &Check, measured: Measured<'_>) -> CheckResult {
    let Rule::Bounds { metric, min, max } = &check.rule else {
        return pending(check, "to be compared with earlier intervals".to_owned());
    };
    let Some(value) = measured.value(metric) else { return none(check, metric) };
    let judged = |verdict, than: String| result(check, verdict, format!("the {metric} is {}{than}", shown(value)));
    match (min, max) {
        (Some(min), _) if value < *min => judged(Verdict::Failed, format!(", below {min}")),
        (_, Some(max)) if value > *max => judged(Verdict::Failed, format!(", above {max}")),
        _ => judged(Verdict::Passed, ", as expected".to_owned()),
    }
}

/// The rows have no such number.
pub(super) fn none(check: &Check, metric: &Metric) -> CheckResult {
    result(check, Verdict::Skipped, format!("no row has a value to take the {metric} from"))
}

/// A number for people: whole numbers as they are, others with six digits that matter.
pub(super) fn shown(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let digits = 5 - value.abs().log10().floor() as i32;
    if (0..=12).contains(&digits) {
        let text = format!("{value:.*}", digits as usize);
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    format!("{value:.5e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_tell_their_size() {
        let numbers = [0.0, -3.0, 0.1 + 0.2, 1234.567891, 2.5e-7, 1e20, 123456.7, 0.000123456789];
        let shown: Vec<_> = numbers.into_iter().map(shown).collect();
        assert_eq!(shown, ["0", "-3", "0.3", "1234.57", "0.00000025", "1.00000e20", "123457", "0.000123457"]);
    }
}
