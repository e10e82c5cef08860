//! How long what is no longer current is kept, and how often the janitor and others look.

use std::time::Duration;

use super::resolve::Raw;
use crate::definitions::scalars;
use crate::diagnostics::{Diagnostic, ids};

/// What the janitor must keep, beside what live snapshots, pins, open runs and intents name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A snapshot can be restored for so long after it was recorded, in project time.
    pub snapshots: Duration,
    /// The newest snapshots of each view that are kept whatever their age.
    pub snapshots_min: u32,
    /// Log lines and outputs of ended runs are kept for so long after their end, in project time.
    pub log: Duration,
    /// A file in the lake that nothing names is kept for so long after it was written, by the store's clock.
    pub staged: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self { snapshots: 30 * DAY, snapshots_min: 3, log: 90 * DAY, staged: DAY }
    }
}

/// What is written for retention and the janitor, in whatever place; anything may be missing after a mistake.
pub(super) struct Written {
    pub(super) snapshots: Option<Raw>,
    pub(super) snapshots_min: Option<Raw>,
    pub(super) log: Option<Raw>,
    pub(super) staged: Option<Raw>,
}

/// `None` when something is wrong, which is then reported.
pub(super) fn retention(written: &Written, out: &mut Vec<Diagnostic>) -> Option<Retention> {
    let snapshots = duration(written.snapshots.as_ref()?, "30d", out);
    let snapshots_min = count(written.snapshots_min.as_ref()?, out);
    let log = duration(written.log.as_ref()?, "90d", out);
    let staged = duration(written.staged.as_ref()?, "24h", out);
    Some(Retention { snapshots: snapshots?, snapshots_min: snapshots_min?, log: log?, staged: staged? })
}

/// How often somebody looks, as in `the janitor`; `Some(None)` for `off`.
pub(super) fn every(raw: &Raw, who: &str, example: &str, out: &mut Vec<Diagnostic>) -> Option<Option<Duration>> {
    if raw.text == "off" {
        return Some(None);
    }
    let every = duration(raw, example, out)?;
    if every.is_zero() {
        out.push(
            raw.error(ids::OUT_OF_RANGE, "is zero")
                .with_label(format!("{who} would never rest"))
                .with_help(format!("write for example `{example}`, or `off`")),
        );
        return None;
    }
    Some(Some(every))
}

fn duration(raw: &Raw, example: &str, out: &mut Vec<Diagnostic>) -> Option<Duration> {
    let duration = scalars::parse_duration(&raw.text);
    if duration.is_none() {
        out.push(
            raw.error(ids::BAD_SETTING, "is not a duration")
                .with_label("expected a number and `s`, `m`, `h` or `d`")
                .with_help(format!("write for example `{example}`")),
        );
    }
    duration
}

fn count(raw: &Raw, out: &mut Vec<Diagnostic>) -> Option<u32> {
    // The newest snapshot is what the table shows now.
    let count = raw.text.parse().ok().filter(|count: &u32| *count >= 1);
    if count.is_none() {
        out.push(
            raw.error(ids::OUT_OF_RANGE, "is not a number of snapshots")
                .with_label("expected a whole number of at least 1")
                .with_help("write for example `3`"),
        );
    }
    count
}
