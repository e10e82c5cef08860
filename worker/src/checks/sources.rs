//! Checks of sources, judged on what a run has pinned before anything is computed from it.
//!
//! What was found out is part of the run's manifest ([`SourceSeen`]), which is what later runs compare with. A check that
//! cannot be computed is an error, which counts as failed; but a file that changed while it was looked at, or a store that
//! does not answer, is one of the whole attempt: it is made again.

use std::time::Duration;

use anyhow::{Context, Result};
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::logical_expr::cast;
use datafusion::prelude::{DataFrame, SessionContext};
use tidegate_registry::definitions::scalars::format_duration;
use tidegate_registry::model::{OnDifference, Severity, Source, SourceCheck, SourceRule, Volume};
use tidegate_registry::run::{CheckResult, SourcePin, SourceSeen, Verdict};
use tidegate_registry::time::{Instant, Interval, format_instant};

use super::history::percent;
use super::others::in_time;
use crate::execute::chain;
use crate::reads::{column, instant_literal};
use crate::sources::{Sources, is_outage, is_pin_violation};
use crate::types;

/// What checks of a source are judged by.
#[derive(Debug, Clone, Copy)]
pub struct SourceLook<'a> {
    /// Where sources are.
    pub sources: &'a Sources,
    /// The source.
    pub source: &'a Source,
    /// What the run has pinned of it.
    pub pin: &'a SourcePin,
    /// The run's interval.
    pub interval: Interval,
    /// Now, in project time.
    pub now: Instant,
    /// What the run saw that was recorded last.
    pub last: Option<&'a SourceSeen>,
    /// What the run saw that recorded the nearest earlier interval.
    pub earlier: Option<&'a SourceSeen>,
}

/// Judges the checks of a source. None of them is pending.
///
/// # Errors
/// When the source changed meanwhile or its store does not answer: nothing is known then.
pub async fn judge_source(ctx: &SessionContext, look: SourceLook<'_>) -> Result<SourceSeen> {
    let mut seen = look.sources.size(look.source, look.pin).await?;
    let table = async {
        let provider = look.sources.provider(ctx, look.source, look.pin).await?;
        Ok(ctx.read_table(provider)?)
    };
    let table: Result<DataFrame> = table.await;
    if let Ok(table) = &table {
        let schema: SchemaRef = std::sync::Arc::clone(table.schema().inner());
        let columns = schema.fields().iter();
        seen.columns = columns.map(|field| (field.name().clone(), types::describe(field.data_type()))).collect();
    }
    for check in &look.source.checks {
        let judged = match &table {
            Ok(table) => in_time(check.timeout, judge(look, check, table, &mut seen)).await,
            Err(error) => Err(anyhow::anyhow!(chain(error))),
        };
        let result = match judged {
            Ok(result) => result,
            Err(error) if is_pin_violation(&error) || is_outage(&error) => return Err(error),
            Err(error) => told(look, check, Verdict::Error, format!("could not be computed: {}", chain(&error))),
        };
        seen.checks.push(result);
    }
    Ok(seen)
}

/// A result that is told from those of the view's own checks by its name.
fn told(look: SourceLook<'_>, check: &SourceCheck, verdict: Verdict, message: String) -> CheckResult {
    CheckResult {
        check: format!("source {}: {}", look.source.name, check.name),
        severity: check.severity,
        verdict,
        message,
        failing_rows: 0,
        samples: Vec::new(),
        overridden: false,
    }
}

async fn judge(
    look: SourceLook<'_>,
    check: &SourceCheck,
    table: &DataFrame,
    seen: &mut SourceSeen,
) -> Result<CheckResult> {
    match &check.rule {
        SourceRule::Freshness { column: Some(column), max_age } => {
            rows_are_fresh(look, check, table, column, *max_age).await
        }
        SourceRule::Freshness { column: None, max_age } => files_are_fresh(look, check, seen, *max_age),
        SourceRule::Volume { of, min, max, max_change } => {
            if *of == Volume::Rows && seen.rows.is_none() {
                seen.rows = Some(rows(look, table).await?);
            }
            let counted = number(seen, *of).context("how large the source is, is not known")?;
            // Rows of an interval are like those of the interval before; all else has grown since it was last seen.
            let of_interval = *of == Volume::Rows && look.source.event_time.is_some();
            let (before, whose) = match of_interval {
                true => (look.earlier, "the interval before"),
                false => (look.last, "the run recorded last"),
            };
            let before = before.map(|before| number(before, *of));
            let shown =
                format!("{counted} {}{}", unit(*of, counted), if of_interval { " in the interval" } else { "" });
            let (verdict, message) = held(counted, &shown, (*min, *max), *max_change, before, whose);
            Ok(told(look, check, verdict, message))
        }
        SourceRule::Schema { added, removed, changed } => {
            let (severity, verdict, message) = compared(look.last, seen, [*added, *removed, *changed]);
            Ok(CheckResult { severity, ..told(look, check, verdict, message) })
        }
    }
}

fn number(seen: &SourceSeen, of: Volume) -> Option<u64> {
    match of {
        Volume::Rows => seen.rows,
        Volume::Files => Some(seen.files),
        Volume::Bytes => Some(seen.bytes),
    }
}

/// What is counted, of one or of many.
fn unit(of: Volume, number: u64) -> String {
    let many = of.to_string();
    if number == 1 { many.trim_end_matches('s').to_owned() } else { many }
}

/// The verdict on a number by its bounds, then by its change from `before`, which is `Some(None)` when it was not counted.
fn held(
    number: u64,
    counted: &str,
    (min, max): (Option<u64>, Option<u64>),
    max_change: Option<f64>,
    before: Option<Option<u64>>,
    whose: &str,
) -> (Verdict, String) {
    match (min, max) {
        (Some(min), _) if number < min => return (Verdict::Failed, format!("{counted}, fewer than {min}")),
        (_, Some(max)) if number > max => return (Verdict::Failed, format!("{counted}, more than {max}")),
        _ => {}
    }
    let Some(max_change) = max_change else { return (Verdict::Passed, format!("{counted}, as expected")) };
    let before = match before {
        None => return (Verdict::Skipped, format!("{counted}; nothing is recorded yet to compare with")),
        Some(None) => return (Verdict::Skipped, format!("{counted}; {whose} did not count them")),
        Some(Some(0)) => return (Verdict::Skipped, format!("{counted}; {whose} had none to compare with")),
        Some(Some(before)) => before,
    };
    let change = number.abs_diff(before) as f64 / before as f64;
    let broken = change > max_change;
    let than = if broken { "a larger change" } else { "no larger change" };
    let message = format!(
        "{counted} where {whose} had {before}: {than} than {} allowed ({})",
        percent(max_change),
        percent(change)
    );
    (if broken { Verdict::Failed } else { Verdict::Passed }, message)
}

/// Compares columns; what differs and matters decides how severe the result is.
fn compared(
    last: Option<&SourceSeen>,
    seen: &SourceSeen,
    [added, removed, changed]: [OnDifference; 3],
) -> (Severity, Verdict, String) {
    let Some(last) = last.filter(|last| !last.columns.is_empty()) else {
        return (Severity::Block, Verdict::Skipped, "no recorded run saw columns to compare with".to_owned());
    };
    let mut worst = OnDifference::Ignore;
    let mut differences = Vec::new();
    let mut note = |on: OnDifference, what: String| {
        worst = worst.max(on);
        differences.push(what);
    };
    for (name, kind) in &seen.columns {
        match last.columns.get(name) {
            None => note(added, format!("`{name}` ({kind}) was added")),
            Some(was) if was != kind => note(changed, format!("`{name}` was {was} and is {kind}")),
            Some(_) => {}
        }
    }
    for (name, kind) in last.columns.iter().filter(|(name, _)| !seen.columns.contains_key(*name)) {
        note(removed, format!("`{name}` ({kind}) was removed"));
    }
    let message = if differences.is_empty() {
        format!("the {} columns are those that the run recorded last saw", seen.columns.len())
    } else {
        const SHOWN_MAX: usize = 10;
        let more = differences.len().saturating_sub(SHOWN_MAX);
        differences.truncate(SHOWN_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("since the run recorded last {}{more}", differences.join(", "))
    };
    match worst {
        OnDifference::Ignore => (Severity::Block, Verdict::Passed, message),
        OnDifference::Warn => (Severity::Warn, Verdict::Failed, message),
        OnDifference::Block => (Severity::Block, Verdict::Failed, message),
    }
}

async fn rows_are_fresh(
    look: SourceLook<'_>,
    check: &SourceCheck,
    table: &DataFrame,
    name: &str,
    max_age: Duration,
) -> Result<CheckResult> {
    let end = look.interval.end();
    let oldest = chrono::TimeDelta::from_std(max_age).ok().and_then(|age| end.checked_sub_signed(age));
    let oldest = oldest.context("the age is too long")?;
    // The few rows that are young enough suffice in a source that is fresh; all are read only to say how old one is that
    // is not.
    let mut found = newest(table, name, Some(oldest), end).await?;
    let fresh = found.is_some();
    if !fresh {
        found = newest(table, name, None, end).await?;
    }
    let allowed = format!("at most {} before the interval's end {}", format_duration(max_age), format_instant(end));
    let message = match found {
        Some(newest) => format!("the newest {name} is {}; {allowed} is allowed", format_instant(newest)),
        None => format!("no row has a {name} before the interval's end {}", format_instant(end)),
    };
    Ok(told(look, check, if fresh { Verdict::Passed } else { Verdict::Failed }, message))
}

/// The newest time from `from` to before `until`.
async fn newest(table: &DataFrame, name: &str, from: Option<Instant>, until: Instant) -> Result<Option<Instant>> {
    let time = cast(column(name), types::timestamp());
    require_time(table, name)?;
    let mut rows = table.clone().filter(time.clone().lt(instant_literal(until)))?;
    if let Some(from) = from {
        rows = rows.filter(time.clone().gt_eq(instant_literal(from)))?;
    }
    let found = rows.aggregate(Vec::new(), vec![max(time).alias("newest")])?.collect().await?;
    let newest = found.iter().filter(|batch| batch.num_rows() > 0).find_map(|batch| {
        let column = batch.column(0).as_primitive_opt::<TimestampMicrosecondType>()?;
        column.iter().next().flatten()
    });
    Ok(newest.and_then(chrono::DateTime::from_timestamp_micros))
}

/// A text would be parsed, and a number be taken for microseconds.
fn require_time(table: &DataFrame, name: &str) -> Result<()> {
    let field = table.schema().inner().field_with_name(name).ok();
    let kind = field.with_context(|| format!("it has no column `{name}`"))?.data_type();
    anyhow::ensure!(
        matches!(kind, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64),
        "column `{name}` is {}, not a time",
        types::describe_one(kind)
    );
    Ok(())
}

fn files_are_fresh(
    look: SourceLook<'_>,
    check: &SourceCheck,
    seen: &SourceSeen,
    max_age: Duration,
) -> Result<CheckResult> {
    let Some(written) = seen.written_at else {
        return Ok(told(look, check, Verdict::Failed, "there are no files".to_owned()));
    };
    let age = (look.now - written).to_std().unwrap_or_default();
    let message = format!(
        "the newest file was written at {}, {} ago; at most {} are allowed",
        format_instant(written),
        format_duration(age),
        format_duration(max_age)
    );
    Ok(told(look, check, if age <= max_age { Verdict::Passed } else { Verdict::Failed }, message))
}

/// The rows of the interval, or all of a source that does not say when they happened.
async fn rows(look: SourceLook<'_>, table: &DataFrame) -> Result<u64> {
    let mut rows = table.clone();
    if let Some(name) = &look.source.event_time {
        require_time(table, name)?;
        let time = cast(column(name), types::timestamp());
        rows = rows
            .filter(time.clone().gt_eq(instant_literal(look.interval.start())))?
            .filter(time.lt(instant_literal(look.interval.end())))?;
    }
    Ok(rows.count().await? as u64)
}

#[cfg(test)]
mod tests {
    use tidegate_registry::definitions::{LoadOptions, load_files};

    use super::*;

    fn seen(columns: &[(&str, &str)]) -> SourceSeen {
        let columns = columns.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect();
        SourceSeen { columns, ..SourceSeen::default() }
    }

    #[test]
    fn sizes_are_held_to_bounds_and_then_to_what_was() {
        let said = |number, bounds, change, before| {
            let (verdict, message) = held(number, &format!("{number} rows"), bounds, change, before, "the run before");
            format!("{verdict}: {message}")
        };
        assert_eq!(said(4, (Some(5), None), None, None), "failed: 4 rows, fewer than 5");
        assert_eq!(said(6, (None, Some(5)), Some(0.1), None), "failed: 6 rows, more than 5");
        assert_eq!(said(0, (None, Some(5)), None, None), "passed: 0 rows, as expected");
        assert_eq!(said(6, (None, None), Some(0.5), None), "skipped: 6 rows; nothing is recorded yet to compare with");
        assert_eq!(said(6, (None, None), Some(0.5), Some(None)), "skipped: 6 rows; the run before did not count them");
        assert_eq!(
            said(6, (None, None), Some(0.5), Some(Some(0))),
            "skipped: 6 rows; the run before had none to compare with"
        );
        assert_eq!(
            said(6, (None, None), Some(0.5), Some(Some(4))),
            "passed: 6 rows where the run before had 4: no larger change than 50 % allowed (50 %)"
        );
        assert_eq!(
            said(0, (None, None), Some(0.5), Some(Some(4))),
            "failed: 0 rows where the run before had 4: a larger change than 50 % allowed (100 %)"
        );
    }

    #[test]
    fn each_kind_of_difference_means_what_its_author_said() {
        use OnDifference::{Block, Ignore, Warn};
        let last = seen(&[("a", "string"), ("b", "bigint")]);
        let said = |now: &SourceSeen, on| {
            let (severity, verdict, message) = compared(Some(&last), now, on);
            format!("{severity:?} {verdict}: {message}")
        };
        let same = seen(&[("b", "bigint"), ("a", "string")]);
        assert_eq!(
            said(&same, [Block; 3]),
            "Block passed: the 2 columns are those that the run recorded last saw",
            "their order is no difference"
        );
        let other = seen(&[("a", "string"), ("b", "double"), ("c", "date")]);
        let found = "since the run recorded last `b` was bigint and is double, `c` (date) was added";
        assert_eq!(said(&other, [Ignore, Block, Warn]), format!("Warn failed: {found}"));
        assert_eq!(said(&other, [Warn, Warn, Block]), format!("Block failed: {found}"));
        assert_eq!(said(&other, [Ignore, Block, Ignore]), format!("Block passed: {found}"));
        let less = seen(&[("a", "string")]);
        assert_eq!(
            said(&less, [Ignore, Block, Ignore]),
            "Block failed: since the run recorded last `b` (bigint) was removed"
        );
        let (_, verdict, message) = compared(None, &less, [Block; 3]);
        assert_eq!((verdict, message.as_str()), (Verdict::Skipped, "no recorded run saw columns to compare with"));
    }

    #[tokio::test]
    async fn a_check_with_a_time_out_is_judged_in_time() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("sales.csv"), "at,amount\n2024-01-01T10:00:00Z,1\n").unwrap();
        let definitions: [(&str, &[u8]); 2] = [
            ("tidegate.yaml", b"project: shop"),
            ("shop.yaml", b"sources: [{name: sales, csv: sales.csv, checks: [volume: {min: 1, timeout: 5m}]}]"),
        ];
        let project = load_files(folder.path(), &definitions, &LoadOptions::default()).project.unwrap();
        let source = project.sources.values().next().unwrap().clone();
        let sources = Sources::new(folder.path(), &[]).unwrap();
        let pin = sources.pin(&source).await.unwrap();
        let judged = async |source: &Source| {
            let now = Instant::UNIX_EPOCH;
            let interval = Interval::new(now, now + chrono::TimeDelta::days(1)).unwrap();
            let look = SourceLook { sources: &sources, source, pin: &pin, interval, now, last: None, earlier: None };
            let seen = judge_source(&SessionContext::new(), look).await.unwrap();
            format!("{}: {}", seen.checks[0].verdict, seen.checks[0].message)
        };
        assert_eq!(source.checks[0].timeout, Some(Duration::from_secs(300)));
        assert_eq!(judged(&source).await, "passed: 1 row, as expected");
    }
}
