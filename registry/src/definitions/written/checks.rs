//! Checks as authors write them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::definitions::read::{
    At, Field, Read, Sql, check_keys, described, key_name, missing, nearest, one_key, record, scalar, schema_of, words,
};
use crate::definitions::scalars::WrittenDuration;
use crate::definitions::yaml::{Node, Value};
use crate::diagnostics::{Diagnostic, ids};
use crate::model::{Direction, DriftMeasure, Edge, Season, Severity, TextFormat};

one_key! {
    /// A rule over staged rows.
    CheckFile "check" {
        /// No null in any of the columns.
        NotNull = "not_null": ColumnsCheck,
        /// No two rows with equal values in all of the columns; a null equals a null.
        Unique = "unique": ColumnsCheck,
        /// Every value that is not null lies between `min` and `max`.
        Range = "range": RangeCheck,
        /// Every value that is not null is one of `values`.
        AcceptedValues = "accepted_values": ValuesCheck,
        /// Every text that is not null matches `pattern`.
        Regex = "regex": PatternCheck,
        /// Every text that is not null is a `uuid`, an `email`, an `iso_date` or an `iso_timestamp`.
        Format = "format": FormatCheck,
        /// Every text that is not null has between `min` and `max` characters.
        Length = "length": LengthCheck,
        /// Every time that is not null is at least and at most so old when the interval ends, or begins.
        EventTime = "event_time": EventTimeCheck,
        /// A condition is false for no row.
        Expression = "expression": ExpressionCheck,
        /// The share of nulls in a column.
        NullRate = "null_rate": BoundsCheck,
        /// How many different values a column has, estimated within about 2 %.
        DistinctCount = "distinct_count": BoundsCheck,
        /// The mean of a numeric column.
        Mean = "mean": BoundsCheck,
        /// The standard deviation of a numeric column.
        Stddev = "stddev": BoundsCheck,
        /// The sum of a numeric column.
        Sum = "sum": BoundsCheck,
        /// The share of true in a boolean column.
        TrueRatio = "true_ratio": BoundsCheck,
        /// The value below which a share of a numeric column's values lies, estimated within about 1 % of rank.
        Quantile = "quantile": QuantileCheck,
        /// A number that is odd among those of earlier intervals.
        Anomaly = "anomaly": AnomalyCheck,
        /// A number that only grows, or only shrinks, from interval to interval.
        Monotonic = "monotonic": MonotonicCheck,
        /// Values that are spread otherwise than they were.
        Drift = "drift": DriftCheck,
        /// The values of columns occur in a source or in another view; rows with a null in one of them pass.
        Referential = "referential": ReferentialCheck,
        /// A sum or a count equals that of a source or of another view.
        Reconciliation = "reconciliation": ReconciliationCheck,
        /// The number of rows of an interval.
        RowCount = "row_count": RowCountCheck,
        /// A query that returns the offending rows.
        Sql = "sql": SqlCheck,
    }
}

record! {
    /// A rule about several columns.
    ColumnsCheck "check" {
        /// Column names.
        columns: required Vec<At<String>>,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst; not
        /// for `unique`.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run. For `unique` all rows of a value that comes
        /// twice, of the first keys of the entity only.
        on_fail: optional OnFailFile,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about the values of a numeric column.
    RangeCheck "check" {
        /// Column name.
        column: required String,
        /// Lowest allowed value.
        min: optional f64,
        /// Highest allowed value.
        max: optional f64,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run.
        on_fail: optional OnFailFile,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about the values of a column.
    ValuesCheck "check" {
        /// Column name.
        column: required String,
        /// What is allowed.
        values: required Vec<At<serde_json::Value>>,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run.
        on_fail: optional OnFailFile,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about the texts of a column.
    PatternCheck "check" {
        /// Column name, of type `string`.
        column: required String,
        /// A regular expression that must match somewhere in each text; tie it to the ends with `^` and `$`.
        pattern: required String,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run.
        on_fail: optional OnFailFile,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about what the texts of a column are.
    FormatCheck "check" {
        /// Column name, of type `string`.
        column: required String,
        /// `uuid`, `email`, `iso_date` (`2013-01-08`) or `iso_timestamp` (`2013-01-08T07:15:00Z`).
        is: required TextFormat,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run.
        on_fail: optional OnFailFile,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about the lengths of texts, in characters.
    LengthCheck "check" {
        /// Column name, of type `string`.
        column: required String,
        /// At least so many characters.
        min: optional u64,
        /// At most so many characters.
        max: optional u64,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run.
        on_fail: optional OnFailFile,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about how old times are.
    EventTimeCheck "check" {
        /// Column name, of type `timestamp` or `date`; `event_timestamp` when left out.
        column: optional String,
        /// How old a time must be at least, as in `2h`; `0s` for none in the future.
        min_age: optional WrittenDuration,
        /// How old a time may be at most, as in `30d`.
        max_age: optional WrittenDuration,
        /// What ages are measured at: `interval_end` (default) or `interval_start`.
        at: optional Edge,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run.
        on_fail: optional OnFailFile,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule as a condition.
    ExpressionCheck "check" {
        /// A condition in SQL over the view's columns that is false for no row; null passes.
        condition: required Sql,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run.
        on_fail: optional OnFailFile,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

one_key! {
    /// How many rows may break a rule: a number or a share.
    ToleranceFile "tolerance" {
        /// At most so many rows.
        Rows = "rows": u64,
        /// At most this share of the rows looked at, from 0 to 1.
        Ratio = "ratio": f64,
    }
}

one_key! {
    /// What becomes of rows that break a rule.
    OnFailFile "on_fail" {
        /// They are set aside: kept out of the view, and put into its quarantine table.
        Quarantine = "quarantine": QuarantineFile,
    }
}

record! {
    /// How many rows a rule may set aside; with more the run is stopped.
    QuarantineFile "quarantine" {
        /// At most so many rows.
        max_rows: optional u64,
        /// At most this share of all rows that were computed, from 0 to 1.
        max_ratio: optional f64,
    }
}

record! {
    /// A rule about the number of rows.
    RowCountCheck "check" {
        /// At least.
        min: optional u64,
        /// At most.
        max: optional u64,
        /// Largest allowed share of change from the interval before, as in `0.5`.
        max_change: optional f64,
        /// Which interval before: the nearest one that begins on the same `weekday`, in the same `hour`, or both
        /// (`weekday_hour`), in the time zone of the view's DAG; the nearest of all when left out.
        same: optional Season,
        /// Column names whose values make groups: every group that has a row must have so many, and the verdict names the
        /// worst. Not with `max_change`.
        group_by: optional Vec<At<String>>,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about values that another table must have.
    ReferentialCheck "check" {
        /// Column names.
        columns: required Vec<At<String>>,
        /// Where they occur: `{source: NAME}` or `{view: NAME}`, with `columns:` when they are called otherwise there. A view
        /// is read as of the interval's end, and the run waits until it is published up to there.
        references: required ReferenceFile,
        /// A condition in SQL: only rows for which it is true are looked at.
        r#where: optional Sql,
        /// How many rows may break the rule all the same.
        tolerate: optional ToleranceFile,
        /// Column names whose values make groups: `tolerate` then holds in every group, and the verdict names the worst.
        group_by: optional Vec<At<String>>,
        /// What becomes of rows that break the rule, instead of stopping the run.
        on_fail: optional OnFailFile,
        /// How long reading the other table may take; `1h` when left out. A check that takes longer counts as failed.
        timeout: optional WrittenDuration,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// Columns of another table.
    ReferenceFile "reference" {
        /// A source.
        source: optional String,
        /// A view, or one version of it (`name@vN`).
        view: optional String,
        /// Its columns, in the same order; the same names when left out.
        columns: optional Vec<At<String>>,
    }
}

record! {
    /// A rule about a total that must equal that of another table.
    ReconciliationCheck "check" {
        /// `sum` or `count`.
        of: required TotalWord,
        /// Column name; a `count` without one is that of rows.
        column: optional String,
        /// A condition in SQL: only rows of the view for which it is true count.
        r#where: optional Sql,
        /// The other side: `{source: NAME}` or `{view: NAME}` with `of:` and `column:` (the same when left out) and `where:`,
        /// a condition in SQL over its columns.
        equals: required OtherTotalFile,
        /// How far they may be apart: `{value: 5}` or `{ratio: 0.01}` of the other side; what rounding explains when left out.
        within: optional WithinFile,
        /// How long reading the other table may take; `1h` when left out. A check that takes longer counts as failed.
        timeout: optional WrittenDuration,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A total of another table.
    OtherTotalFile "other side" {
        /// A source.
        source: optional String,
        /// A view, or one version of it (`name@vN`).
        view: optional String,
        /// `sum` or `count`; as on this side when left out.
        of: optional TotalWord,
        /// Column name; as on this side when `of:` and this are left out.
        column: optional String,
        /// A condition in SQL: only rows for which it is true count.
        r#where: optional Sql,
    }
}

one_key! {
    /// How far two numbers may be apart.
    WithinFile "distance" {
        /// By so much.
        Value = "value": f64,
        /// By this share of the other side.
        Ratio = "ratio": f64,
    }
}

record! {
    /// A rule as a query.
    SqlCheck "check" {
        /// Returns the offending rows; may name the view itself (the staged rows) and the sources that it reads.
        query: required Sql,
        /// How many rows may come back all the same.
        tolerate: optional ToleranceFile,
        /// How long it may take; `1h` when left out. A check that takes longer counts as failed.
        timeout: optional WrittenDuration,
        /// Unique in its view; `sql` when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about one number of a column; skipped where no row has a value to take it from.
    BoundsCheck "check" {
        /// Column name.
        column: required String,
        /// Lowest allowed value.
        min: optional f64,
        /// Highest allowed value.
        max: optional f64,
        /// Column names whose values make groups: the number of every group must lie within the bounds, and the verdict names
        /// the worst. A group without a value to take it from is passed over.
        group_by: optional Vec<At<String>>,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about a quantile of a numeric column.
    QuantileCheck "check" {
        /// Column name.
        column: required String,
        /// From 0 to 1: `0.5` is the median.
        rank: required f64,
        /// Lowest allowed value.
        min: optional f64,
        /// Highest allowed value.
        max: optional f64,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule that compares a number with those of earlier intervals, by its distance from their median in robust standard deviations.
    AnomalyCheck "check" {
        /// `row_count`, `null_rate`, `distinct_count`, `mean`, `stddev`, `sum`, `quantile` or `true_ratio`.
        of: required MetricWord,
        /// Column name; not for `row_count`.
        column: optional String,
        /// For `quantile`: which, from 0 to 1.
        rank: optional f64,
        /// How many earlier intervals count at most; 30 when left out.
        last: optional u32,
        /// How many of them there must be; 7 when left out. With fewer the check is skipped.
        least: optional u32,
        /// The largest distance that passes; 3.5 when left out.
        threshold: optional f64,
        /// Which intervals count: those that begin on the same `weekday`, in the same `hour`, or both (`weekday_hour`), in
        /// the time zone of the view's DAG; all when left out.
        same: optional Season,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule that compares a number with that of the interval before.
    MonotonicCheck "check" {
        /// `row_count`, `null_rate`, `distinct_count`, `mean`, `stddev`, `sum`, `quantile` or `true_ratio`.
        of: required MetricWord,
        /// Column name; not for `row_count`.
        column: optional String,
        /// For `quantile`: which, from 0 to 1.
        rank: optional f64,
        /// `up` (default): never below; `down`: never above.
        direction: optional Direction,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule that compares the values of a column with those of earlier intervals or of one snapshot.
    DriftCheck "check" {
        /// Column name.
        column: required String,
        /// `psi` (default), `jensen_shannon`, `kolmogorov_smirnov` (numbers) or `chi_square` (categories).
        measure: optional DriftMeasure,
        /// The largest distance that passes: 0.25 for `psi`, 0.1 for the others when left out. Not for `chi_square`.
        max: optional f64,
        /// For `chi_square`: the smallest p-value that passes; 0.001 when left out.
        min_p_value: optional f64,
        /// How many earlier intervals together are the reference; 7 when left out.
        last: optional u32,
        /// The id of a snapshot that is the reference, instead of earlier intervals; pin it, so that it is kept.
        snapshot: optional String,
        /// Unique in its view; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

/// The word for what adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) enum TotalWord {
    Sum,
    Count,
}

/// The word for a number of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) enum MetricWord {
    RowCount,
    NullRate,
    DistinctCount,
    Mean,
    Stddev,
    Sum,
    Quantile,
    TrueRatio,
}

words!(MetricWord, "a number of a run" {
    "row_count" => Self::RowCount, "null_rate" => Self::NullRate, "distinct_count" => Self::DistinctCount,
    "mean" => Self::Mean, "stddev" => Self::Stddev, "sum" => Self::Sum, "quantile" => Self::Quantile,
    "true_ratio" => Self::TrueRatio,
});
words!(TotalWord, "what adds up" { "sum" => Self::Sum, "count" => Self::Count, });
words!(TextFormat, "a format of texts" {
    "uuid" => Self::Uuid, "email" => Self::Email, "iso_date" => Self::IsoDate, "iso_timestamp" => Self::IsoTimestamp,
});
words!(Edge, "an edge of the interval" { "interval_start" => Self::Start, "interval_end" => Self::End, });
words!(Severity, "a severity" { "block" => Self::Block, "warn" => Self::Warn, });
words!(Season, "what intervals have in common" {
    "weekday" => Self::Weekday, "hour" => Self::Hour, "weekday_hour" => Self::WeekdayHour,
});
words!(Direction, "a direction" { "up" => Self::Up, "down" => Self::Down, });
words!(DriftMeasure, "a measure of drift" {
    "psi" => Self::Psi, "jensen_shannon" => Self::JensenShannon, "kolmogorov_smirnov" => Self::KolmogorovSmirnov,
    "chi_square" => Self::ChiSquare,
});

schema_of!(MetricWord, "metric", {
    "enum": ["row_count", "null_rate", "distinct_count", "mean", "stddev", "sum", "quantile", "true_ratio"]
});
schema_of!(TotalWord, "total", { "enum": ["sum", "count"] });
schema_of!(TextFormat, "text_format", { "enum": ["uuid", "email", "iso_date", "iso_timestamp"] });
schema_of!(Edge, "edge", { "enum": ["interval_start", "interval_end"] });
schema_of!(Severity, "severity", { "enum": ["block", "warn"] });
schema_of!(Season, "season", { "enum": ["weekday", "hour", "weekday_hour"] });
schema_of!(Direction, "direction", { "enum": ["up", "down"] });
schema_of!(DriftMeasure, "drift_measure", { "enum": ["psi", "jensen_shannon", "kolmogorov_smirnov", "chi_square"] });
