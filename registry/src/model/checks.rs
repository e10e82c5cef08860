//! Checks of feature views: what staged rows must be like.

use std::fmt;
use std::time::Duration;

use chrono::{Datelike as _, Timelike as _};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::{SqlText, Table};
use crate::diagnostics::Origin;
use crate::ids::SnapshotId;
use crate::time::Instant;

/// A rule over staged rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Unique in its view: the author's, or made from the rule, as in `range(avg_dep_delay_7d)`.
    pub name: String,
    /// What must hold.
    pub rule: Rule,
    /// What happens when it does not.
    pub severity: Severity,
    /// A condition over the view's columns: only rows for which it is true are looked at. For rules about rows.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<SqlText>,
    /// How many rows may break the rule all the same; none when absent. For rules about rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Tolerance>,
    /// Columns whose values make groups, a null being one, at most [`GROUPS_MAX`]: the tolerance holds in each of them. For
    /// rules about single rows, when it is not set aside what breaks them; and for [`Rule::Bounds`] (not of quantiles) and
    /// [`Rule::RowCount`] (without `max_change`), whose number is then that of each group that has rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_by: Vec<String>,
    /// How long it may take; [`TIMEOUT`] when absent. For rules that read other tables, or the staged rows again.
    #[serde(default, with = "super::secs_option", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Rows that break the rule are set aside, as long as they are not more than this; the run stops for them when absent.
    /// For rules that judge single rows, and for [`Rule::Unique`] of the first columns by which rows are sorted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Budget>,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

impl Check {
    /// A check that blocks, of all rows, and tolerates nothing.
    pub fn new(name: impl Into<String>, rule: Rule) -> Self {
        let severity = Severity::default();
        let (filter, tolerance, timeout, quarantine) = (None, None, None, None);
        let (group_by, origin) = (Vec::new(), Origin::default());
        Self { name: name.into(), rule, severity, filter, tolerance, group_by, timeout, quarantine, origin }
    }
}

/// How long a check may take that has no time-out of its own.
pub const TIMEOUT: Duration = Duration::from_secs(3_600);

/// How many groups a check can tell apart; with more it cannot be computed.
pub const GROUPS_MAX: usize = 100_000;

/// How many rows may break a rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tolerance {
    /// So many.
    Rows(u64),
    /// This share of those that were looked at, from 0 to 1.
    Ratio(f64),
}

impl Tolerance {
    /// Whether `failing` of `rows` rows are few enough.
    pub fn covers(self, failing: u64, rows: u64) -> bool {
        match self {
            Self::Rows(most) => failing <= most,
            // Compared without dividing, so that no rows at all are no question.
            Self::Ratio(most) => failing as f64 <= most * rows as f64,
        }
    }
}

/// How many rows a check may set aside. All that is given must hold; at least one is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// At most so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u64>,
    /// At most this share of all rows that were computed, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ratio: Option<f64>,
}

impl Budget {
    /// Whether `failing` of `rows` rows may be set aside.
    pub fn covers(self, failing: u64, rows: u64) -> bool {
        self.max_rows.is_none_or(|most| failing <= most)
            && self.max_ratio.is_none_or(|most| Tolerance::Ratio(most).covers(failing, rows))
    }
}

/// What happens when a check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing of the run is published.
    #[default]
    Block,
    /// The run is published, and the failure is recorded.
    Warn,
}

/// What a check demands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// No null in any of the columns.
    NotNull {
        /// Column names.
        columns: Vec<String>,
    },
    /// No two rows with equal values in all of the columns (nulls are equal to each other here, unless all of the columns are
    /// keys, of which a null is a fault of its own). With a quarantine all rows of a value that comes twice break it, else
    /// all but the first.
    Unique {
        /// Column names.
        columns: Vec<String>,
    },
    /// Every non-null value lies in `[min, max]`; NaN never does.
    Range {
        /// A numeric column.
        column: String,
        /// Lowest allowed value.
        min: Option<f64>,
        /// Highest allowed value.
        max: Option<f64>,
    },
    /// Every non-null value is one of these.
    AcceptedValues {
        /// A column of type string, boolean, integer or bigint.
        column: String,
        /// JSON scalars of the column's type.
        values: Vec<serde_json::Value>,
    },
    /// Every non-null text has a match of the pattern somewhere in it.
    Regex {
        /// A column of type string.
        column: String,
        /// A regular expression in the syntax of the crate `regex`; `^` and `$` tie it to the ends.
        pattern: String,
    },
    /// Every non-null text has this format.
    Format {
        /// A column of type string.
        column: String,
        /// Which.
        format: TextFormat,
    },
    /// Every non-null text has so many characters.
    Length {
        /// A column of type string.
        column: String,
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
    },
    /// Every non-null time is so old at an edge of the run's interval.
    EventTime {
        /// A column of type timestamp or date (whose days begin in UTC).
        column: String,
        /// What ages are measured at.
        at: Edge,
        /// At least so old.
        #[serde(default, with = "super::secs_option", skip_serializing_if = "Option::is_none")]
        min_age: Option<Duration>,
        /// At most so old.
        #[serde(default, with = "super::secs_option", skip_serializing_if = "Option::is_none")]
        max_age: Option<Duration>,
    },
    /// No row for which the condition is false (as with SQL's CHECK constraints, one for which it is null passes).
    Expression {
        /// A condition over the view's columns.
        condition: SqlText,
    },
    /// The values of the columns occur together in another table; rows with a null in one of them pass.
    Referential {
        /// Column names.
        columns: Vec<String>,
        /// Where they occur.
        table: Table,
        /// The columns there, in the same order.
        references: Vec<String>,
    },
    /// A total over the run's rows (where the check's filter is true) equals one over another table.
    Reconciliation {
        /// Of the run's rows.
        total: Total,
        /// The other table.
        table: Table,
        /// Of the other table.
        other: Total,
        /// A condition over the other table's columns: only rows for which it is true count.
        other_filter: Option<SqlText>,
        /// How far they may be apart.
        within: Within,
    },
    /// A number about the run's rows lies in `[min, max]`; skipped where there is no such number.
    Bounds {
        /// Which number.
        metric: Metric,
        /// Lowest allowed value.
        min: Option<f64>,
        /// Highest allowed value.
        max: Option<f64>,
    },
    /// A number about the run's rows is not odd among those of earlier intervals.
    Anomaly {
        /// Which number.
        metric: Metric,
        /// How many earlier intervals count, at most.
        last: u32,
        /// How many of them must be known, else the check is skipped.
        least: u32,
        /// The largest robust z-score that passes.
        threshold: f64,
        /// Which of the earlier intervals count.
        season: Option<Season>,
    },
    /// A number about the run's rows does not go back behind that of the nearest earlier interval.
    Monotonic {
        /// Which number.
        metric: Metric,
        /// Where it may go.
        direction: Direction,
    },
    /// The values of a column are spread as they were.
    Drift {
        /// The column.
        column: String,
        /// How the distance is measured.
        measure: DriftMeasure,
        /// The largest distance that passes; for chi-square the smallest p-value.
        limit: f64,
        /// How many earlier intervals together are the reference, unless a snapshot is.
        last: u32,
        /// A snapshot that is the reference.
        snapshot: Option<SnapshotId>,
    },
    /// The number of rows of the run's slice.
    RowCount {
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
        /// `|rows - before| / before` at most, where `before` is the nearest earlier recorded interval (of the season);
        /// skipped when there is none or it was empty.
        max_change: Option<f64>,
        /// Which earlier intervals `max_change` may compare with; all when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        season: Option<Season>,
    },
    /// A query that returns the offending rows; the view's own name means the staged rows.
    Sql {
        /// The query.
        query: SqlText,
    },
}

impl Rule {
    /// The table that it compares the run's rows with.
    pub fn other_table(&self) -> Option<&Table> {
        match self {
            Self::Referential { table, .. } | Self::Reconciliation { table, .. } => Some(table),
            _ => None,
        }
    }
}

/// What adds up over rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Total {
    /// The rows; with a column those in which it is not null.
    Count(Option<String>),
    /// The values of a numeric column; nulls do not count.
    Sum(String),
}

impl Total {
    /// The column that it is about.
    pub fn column(&self) -> Option<&str> {
        match self {
            Self::Count(column) => column.as_deref(),
            Self::Sum(column) => Some(column),
        }
    }
}

/// As it is said in messages: `sum of delay`.
impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(None) => f.write_str("number of rows"),
            Self::Count(Some(column)) => write!(f, "number of values of {column}"),
            Self::Sum(column) => write!(f, "sum of {column}"),
        }
    }
}

/// How far two numbers may be apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Within {
    /// By so much.
    Value(f64),
    /// By this share of the other one.
    Ratio(f64),
}

/// A number about the rows of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// How many rows there are.
    RowCount,
    /// Share of rows that are null in the column.
    NullRate(String),
    /// How many different values the column has, estimated within about 2 %.
    DistinctCount(String),
    /// Mean of a numeric column's finite values.
    Mean(String),
    /// Standard deviation (of the sample) of a numeric column's finite values.
    Stddev(String),
    /// Sum of a numeric column's finite values.
    Sum(String),
    /// The value of a numeric column below which the share `rank` of its finite values lies, estimated within about 1 % of rank.
    Quantile {
        /// A numeric column.
        column: String,
        /// From 0 to 1.
        rank: f64,
    },
    /// Share of a boolean column's values that are true.
    TrueRatio(String),
}

impl Metric {
    /// The column that it is about.
    pub fn column(&self) -> Option<&str> {
        match self {
            Self::RowCount => None,
            Self::NullRate(column)
            | Self::DistinctCount(column)
            | Self::Mean(column)
            | Self::Stddev(column)
            | Self::Sum(column)
            | Self::TrueRatio(column)
            | Self::Quantile { column, .. } => Some(column),
        }
    }
}

/// As it is said in messages: `mean of delay`.
impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RowCount => f.write_str("number of rows"),
            Self::NullRate(column) => write!(f, "share of nulls in {column}"),
            Self::DistinctCount(column) => write!(f, "number of different values of {column}"),
            Self::Mean(column) => write!(f, "mean of {column}"),
            Self::Stddev(column) => write!(f, "standard deviation of {column}"),
            Self::Sum(column) => write!(f, "sum of {column}"),
            Self::Quantile { column, rank } => write!(f, "quantile {rank} of {column}"),
            Self::TrueRatio(column) => write!(f, "share of true in {column}"),
        }
    }
}

/// Which earlier intervals are like one: those that begin on the same weekday, or in the same hour, on the wall clock of the
/// view's DAG (see [`Alike`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Season {
    /// The same day of the week.
    Weekday,
    /// The same hour of the day.
    Hour,
    /// Both.
    WeekdayHour,
}

/// How intervals that are like one are told from others: by what the clock on the wall shows when they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alike {
    /// What they have in common.
    pub season: Season,
    /// The zone of the clock, which is that of the DAG's schedule. So a daily run at midnight in New York belongs to the same
    /// hour and weekday all year, though in UTC it begins an hour later in winter.
    pub zone: Tz,
}

impl Alike {
    /// Whether both begin on the same weekday, in the same hour, or both.
    pub fn holds(self, one: Instant, other: Instant) -> bool {
        let weekday = |at: Instant| at.with_timezone(&self.zone).weekday();
        let hour = |at: Instant| at.with_timezone(&self.zone).hour();
        match self.season {
            Season::Weekday => weekday(one) == weekday(other),
            Season::Hour => hour(one) == hour(other),
            Season::WeekdayHour => weekday(one) == weekday(other) && hour(one) == hour(other),
        }
    }
}

/// An edge of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    /// Its first instant.
    Start,
    /// The first instant after it.
    End,
}

/// A format of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextFormat {
    /// 32 hexadecimal digits with hyphens, as in RFC 9562.
    Uuid,
    /// What HTML takes for an e-mail address.
    Email,
    /// A day, as in `2013-01-08`.
    IsoDate,
    /// An instant with a zone, as in `2013-01-08T07:15:00Z`.
    IsoTimestamp,
}

/// As it is written, without an article.
impl fmt::Display for TextFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uuid => "uuid",
            Self::Email => "email",
            Self::IsoDate => "iso_date",
            Self::IsoTimestamp => "iso_timestamp",
        })
    }
}

/// Where a number may go from run to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Never down.
    Up,
    /// Never up.
    Down,
}

/// How far two sets of values are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftMeasure {
    /// The population stability index, from 0.
    Psi,
    /// The Jensen–Shannon distance, from 0 to 1.
    JensenShannon,
    /// The statistic of Kolmogorov and Smirnov, from 0 to 1; for numbers.
    KolmogorovSmirnov,
    /// The p-value of Pearson's chi-square test, from 1 down to 0; for categories.
    ChiSquare,
}
