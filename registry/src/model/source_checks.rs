//! Checks of sources: what must hold of a table before anything is computed from it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Severity;
use crate::diagnostics::Origin;

/// A rule over a source as a run has pinned it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceCheck {
    /// Unique in its source: the author's, or made from the rule, as in `volume(rows)`.
    pub name: String,
    /// What must hold.
    pub rule: SourceRule,
    /// What happens when it does not; not of [`SourceRule::Schema`], which says so for each kind of difference.
    pub severity: Severity,
    /// How long it may take; [`TIMEOUT`](super::TIMEOUT) when absent.
    #[serde(default, with = "super::secs_option", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

/// What a check of a source demands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceRule {
    /// It is not older than that.
    Freshness {
        /// The column whose newest time before the interval's end is compared with that end; `None`: the time at which
        /// the newest file was written is compared with now.
        column: Option<String>,
        /// The oldest age that passes.
        #[serde(with = "super::secs")]
        max_age: Duration,
    },
    /// It is as large as expected.
    Volume {
        /// What is counted.
        of: Volume,
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
        /// `|number - before| / before` at most; skipped when nothing was recorded before, or it was empty.
        max_change: Option<f64>,
    },
    /// It has the columns that it had when the view was last recorded; skipped when it never was.
    Schema {
        /// What a new column means.
        added: OnDifference,
        /// What a column that is gone means.
        removed: OnDifference,
        /// What a column of another type means.
        changed: OnDifference,
    },
}

/// What the size of a source is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Volume {
    /// Rows whose event time lies in the interval; of a source without event time all rows.
    Rows,
    /// Data files.
    Files,
    /// Bytes of the data files.
    Bytes,
}

/// As it is written.
impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rows => "rows",
            Self::Files => "files",
            Self::Bytes => "bytes",
        })
    }
}

/// What a difference between two schemas means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDifference {
    /// Nothing.
    Ignore,
    /// It is recorded.
    Warn,
    /// Nothing is computed.
    Block,
}
