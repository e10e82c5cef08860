//! Checks about numbers of a run: their columns, ranks, bounds and histories.

use super::{Known, bad, bounds};
use crate::definitions::read::{At, Field};
use crate::definitions::written::{AnomalyCheck, BoundsCheck, DriftCheck, MetricWord, MonotonicCheck, QuantileCheck};
use crate::diagnostics::{Diagnostic, Origin};
use crate::model::{ColumnType, Direction, DriftMeasure, Metric, Rule};

/// Earlier intervals that an anomaly is judged by, unless the author says otherwise.
const ANOMALY_LAST: u32 = 30;
/// How many of them there must be.
const ANOMALY_LEAST: u32 = 7;
/// Where Iglewicz and Hoaglin draw the line ("How to Detect and Handle Outliers", 1993).
const ANOMALY_THRESHOLD: f64 = 3.5;
/// Earlier intervals that are the reference of drift.
const DRIFT_LAST: u32 = 7;
/// More would be read for every run.
const LAST_MAX: u32 = 400;

/// The metric as a check about its bounds would be called.
pub(super) fn made_name(metric: &Metric) -> String {
    match metric {
        Metric::RowCount => "row_count".to_owned(),
        Metric::NullRate(column) => format!("null_rate({column})"),
        Metric::DistinctCount(column) => format!("distinct_count({column})"),
        Metric::Mean(column) => format!("mean({column})"),
        Metric::Stddev(column) => format!("stddev({column})"),
        Metric::Sum(column) => format!("sum({column})"),
        Metric::Quantile { column, rank } => format!("quantile({column}, {rank})"),
        Metric::TrueRatio(column) => format!("true_ratio({column})"),
    }
}

pub(super) fn bounds_of(
    file: &BoundsCheck,
    word: MetricWord,
    origin: &Origin,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Rule> {
    let metric = of_column(word, file.column.get()?, None, known, out);
    bounded(metric, &file.min, &file.max, origin, out)
}

pub(super) fn quantile(
    file: &QuantileCheck,
    origin: &Origin,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Rule> {
    let metric = of_column(MetricWord::Quantile, file.column.get()?, Some(file.rank.get()?), known, out);
    bounded(metric, &file.min, &file.max, origin, out)
}

fn bounded(
    metric: Option<Metric>,
    min: &Field<f64>,
    max: &Field<f64>,
    origin: &Origin,
    out: &mut Vec<Diagnostic>,
) -> Option<Rule> {
    if min.is_missing() && max.is_missing() {
        out.push(bad(origin, "the check has no bounds", "add `min:` or `max:`, or both"));
        return None;
    }
    let (min, max) = bounds(min, max, "no value can pass", out)?;
    Some(Rule::Bounds { metric: metric?, min, max })
}

pub(super) fn anomaly(
    file: &AnomalyCheck,
    origin: &Origin,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Rule> {
    let metric = metric(&file.of, &file.column, &file.rank, origin, known, out);
    let last = window(&file.last, ANOMALY_LAST, out);
    let least = file.least.value().unwrap_or(ANOMALY_LEAST.min(last?));
    if let Some(written) = file.least.get().filter(|least| least.value == 0 || Some(least.value) > last) {
        out.push(bad(
            &written.origin,
            "`least` is not between 1 and `last`",
            "fewer than `last` intervals may be known",
        ));
        return None;
    }
    if let Some(written) = file.threshold.get().filter(|threshold| threshold.value.is_nan() || threshold.value <= 0.0) {
        out.push(bad(&written.origin, "`threshold` is not above 0", "write for example `3.5`"));
        return None;
    }
    let threshold = file.threshold.value().unwrap_or(ANOMALY_THRESHOLD);
    Some(Rule::Anomaly { metric: metric?, last: last?, least, threshold, season: file.same.value() })
}

pub(super) fn monotonic(
    file: &MonotonicCheck,
    origin: &Origin,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Rule> {
    let metric = metric(&file.of, &file.column, &file.rank, origin, known, out)?;
    Some(Rule::Monotonic { metric, direction: file.direction.value().unwrap_or(Direction::Up) })
}

pub(super) fn drift(file: &DriftCheck, known: Option<Known<'_>>, out: &mut Vec<Diagnostic>) -> Option<Rule> {
    let column = file.column.get()?;
    let measure = file.measure.value().unwrap_or(DriftMeasure::Psi);
    if let Some(known) = known {
        if !known.check(column, out) {
            return None;
        }
        let fits = |kind: &ColumnType| match measure {
            DriftMeasure::KolmogorovSmirnov => {
                is_number(kind) || matches!(kind, ColumnType::Date | ColumnType::Timestamp)
            }
            DriftMeasure::ChiSquare => {
                matches!(kind, ColumnType::String | ColumnType::Boolean | ColumnType::Integer | ColumnType::Bigint)
            }
            DriftMeasure::Psi | DriftMeasure::JensenShannon => !matches!(kind, ColumnType::Array(_)),
        };
        if let Some(kind) = known.kind(&column.value).filter(|kind| !fits(kind)) {
            let title = format!("this measure of drift does not apply to a column of type `{kind}`");
            let help = "`kolmogorov_smirnov` is for numbers, `chi_square` for categories, the others for all but lists";
            out.push(bad(&column.origin, title, help));
            return None;
        }
    }
    let of_chi_square = measure == DriftMeasure::ChiSquare;
    let (limit, other) = if of_chi_square { (&file.min_p_value, &file.max) } else { (&file.max, &file.min_p_value) };
    if let Some(other) = other.get() {
        let help = "`chi_square` passes from `min_p_value` up, the other measures up to `max`";
        out.push(bad(&other.origin, "this bound is not one of the measure", help));
        return None;
    }
    if let Some(limit) = limit.get().filter(|limit| limit.value.is_nan() || limit.value < 0.0) {
        out.push(bad(&limit.origin, "the bound is below 0", "distances and p-values are 0 or more"));
        return None;
    }
    let usual = match measure {
        DriftMeasure::Psi => 0.25,
        DriftMeasure::JensenShannon | DriftMeasure::KolmogorovSmirnov => 0.1,
        DriftMeasure::ChiSquare => 0.001,
    };
    let snapshot = match file.snapshot.get() {
        None => None,
        Some(written) => match written.value.parse() {
            Ok(id) => Some(id),
            Err(_) => {
                let title = format!("`{}` is not the id of a snapshot", written.value);
                out.push(bad(&written.origin, title, "take it from `tidegate snapshots list`, in full"));
                return None;
            }
        },
    };
    if let (Some(_), Some(last)) = (snapshot, file.last.get()) {
        out.push(bad(
            &last.origin,
            "a snapshot is the reference, so no earlier intervals are",
            "leave one of them out",
        ));
        return None;
    }
    let last = window(&file.last, DRIFT_LAST, out)?;
    Some(Rule::Drift { column: column.value.clone(), measure, limit: limit.value().unwrap_or(usual), last, snapshot })
}

fn window(written: &Field<u32>, usual: u32, out: &mut Vec<Diagnostic>) -> Option<u32> {
    if let Some(last) = written.get().filter(|last| last.value == 0 || last.value > LAST_MAX) {
        let title = format!("`last` is not between 1 and {LAST_MAX}");
        out.push(bad(&last.origin, title, "it is the number of earlier intervals to compare with"));
        return None;
    }
    Some(written.value().unwrap_or(usual))
}

/// The number that `of`, `column` and `rank` name together.
fn metric(
    of: &Field<MetricWord>,
    column: &Field<String>,
    rank: &Field<f64>,
    origin: &Origin,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Metric> {
    let word = of.get()?.value;
    if let Some(rank) = rank.get().filter(|_| word != MetricWord::Quantile) {
        out.push(bad(&rank.origin, "only `of: quantile` has a rank", "leave it out"));
        return None;
    }
    match (word, column.get()) {
        (MetricWord::RowCount, None) => Some(Metric::RowCount),
        (MetricWord::RowCount, Some(column)) => {
            out.push(bad(&column.origin, "the number of rows is not one of a column", "leave `column:` out"));
            None
        }
        (_, None) => {
            if column.is_missing() {
                out.push(bad(origin, "the check names no column", "add `column:`"));
            }
            None
        }
        (MetricWord::Quantile, Some(_)) if rank.is_missing() => {
            out.push(bad(origin, "which quantile is meant is not said", "add `rank:`, as in `rank: 0.95`"));
            None
        }
        (word, Some(column)) => of_column(word, column, rank.get(), known, out),
    }
}

fn of_column(
    word: MetricWord,
    column: &At<String>,
    rank: Option<&At<f64>>,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Metric> {
    if let Some(rank) = rank.filter(|rank| !(0.0..=1.0).contains(&rank.value)) {
        out.push(bad(&rank.origin, "`rank` is not between 0 and 1", "write `0.95` for the 95th percentile"));
        return None;
    }
    if let Some(known) = known {
        if !known.check(column, out) {
            return None;
        }
        let fits = |kind: &ColumnType| match word {
            MetricWord::Mean | MetricWord::Stddev | MetricWord::Sum | MetricWord::Quantile => is_number(kind),
            MetricWord::TrueRatio => *kind == ColumnType::Boolean,
            MetricWord::DistinctCount => !matches!(kind, ColumnType::Array(_)),
            MetricWord::RowCount | MetricWord::NullRate => true,
        };
        if let Some(kind) = known.kind(&column.value).filter(|kind| !fits(kind)) {
            let title = format!("a column of type `{kind}` has no such number");
            let help = "means, sums and quantiles are of numbers, `true_ratio` is of booleans";
            out.push(bad(&column.origin, title, help));
            return None;
        }
    }
    let column = column.value.clone();
    Some(match word {
        MetricWord::RowCount => Metric::RowCount,
        MetricWord::NullRate => Metric::NullRate(column),
        MetricWord::DistinctCount => Metric::DistinctCount(column),
        MetricWord::Mean => Metric::Mean(column),
        MetricWord::Stddev => Metric::Stddev(column),
        MetricWord::Sum => Metric::Sum(column),
        MetricWord::Quantile => Metric::Quantile { column, rank: rank?.value },
        MetricWord::TrueRatio => Metric::TrueRatio(column),
    })
}

pub(super) fn is_number(kind: &ColumnType) -> bool {
    matches!(kind, ColumnType::Integer | ColumnType::Bigint | ColumnType::Float | ColumnType::Double)
}
