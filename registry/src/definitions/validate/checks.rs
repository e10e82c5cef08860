//! Checks of a view: their columns, bounds and names. Their SQL is resolved with the views' in [`super::graph`].

mod metrics;
mod others;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::Catalog;
use crate::definitions::read::{At, Field, Sql, nearest};
use crate::definitions::scalars::WrittenDuration;
use crate::definitions::written::{
    CheckFile, ColumnsCheck, EventTimeCheck, LengthCheck, MetricWord, OnFailFile, OutputWord, PatternCheck, RangeCheck,
    RowCountCheck, ToleranceFile, ValuesCheck, ViewFile,
};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::model::{Budget, Check, ColumnType, Edge, Rule, Severity, SqlText, Tolerance};

/// The column that every view has.
const EVENT_TIMESTAMP: &str = "event_timestamp";

type Columns = HashMap<String, Option<ColumnType>>;

/// The checks of `file`, each with a name of its own.
pub(super) fn checks(
    file: &At<ViewFile>,
    columns: &Columns,
    keys: &[&str],
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Vec<Check> {
    let Some(written) = file.checks.get() else { return Vec::new() };
    // When the entity or the features are wrong, their names are not known well enough to blame a check.
    let known = (!keys.is_empty() && file.features.get().is_some()).then_some(Known { columns, keys });
    let sorted_by = sorted_by(file, keys);
    let mut named: HashMap<String, Origin> = HashMap::new();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut checks = Vec::with_capacity(written.len());
    for check in written.iter() {
        let common = Common::of(&check.value);
        if let Some(name) = common.name.get() {
            if let Some(first) = named.get(&name.value) {
                out.push(super::duplicate(&format!("check `{}`", name.value), &name.origin, first));
            }
            named.entry(name.value.clone()).or_insert_with(|| name.origin.clone());
            taken.insert(name.value.clone());
        }
        let tolerance = common.tolerate.and_then(|tolerate| tolerance(tolerate, out));
        let quarantine = common.on_fail.and_then(|on_fail| quarantine(on_fail, &check.value, &common, &sorted_by, out));
        let group_by = common.group_by.and_then(|columns| group_by(columns, &check.value, &common, known, out));
        let timeout = common.timeout.and_then(|timeout| self::timeout(timeout, out));
        let Some(rule) = rule(check, known, catalog, out) else { continue };
        checks.push(Check {
            name: common.name.value().unwrap_or_default(),
            rule,
            severity: common.severity.value().unwrap_or_default(),
            filter: common.filter.and_then(sql_text),
            tolerance,
            group_by: group_by.unwrap_or_default(),
            timeout,
            quarantine,
            origin: check.origin.clone(),
        });
    }
    // The author's names go first, so that a made one never takes one of them.
    for check in checks.iter_mut().filter(|check| check.name.is_empty()) {
        check.name = free_name(&made_name(&check.rule), &taken);
        taken.insert(check.name.clone());
    }
    checks
}

/// What checks of several kinds have.
struct Common<'a> {
    name: &'a Field<String>,
    severity: &'a Field<Severity>,
    filter: Option<&'a Field<Sql>>,
    tolerate: Option<&'a Field<ToleranceFile>>,
    group_by: Option<&'a Field<Vec<At<String>>>>,
    on_fail: Option<&'a Field<OnFailFile>>,
    timeout: Option<&'a Field<WrittenDuration>>,
}

impl<'a> Common<'a> {
    fn of(check: &'a CheckFile) -> Self {
        macro_rules! of_rows {
            ($check:expr) => {
                Self {
                    name: &$check.name,
                    severity: &$check.severity,
                    filter: Some(&$check.r#where),
                    tolerate: Some(&$check.tolerate),
                    group_by: Some(&$check.group_by),
                    on_fail: Some(&$check.on_fail),
                    timeout: None,
                }
            };
        }
        macro_rules! of_run {
            ($check:expr) => {
                Self {
                    name: &$check.name,
                    severity: &$check.severity,
                    filter: None,
                    tolerate: None,
                    group_by: None,
                    on_fail: None,
                    timeout: None,
                }
            };
        }
        match check {
            CheckFile::NotNull(check) | CheckFile::Unique(check) => of_rows!(check),
            CheckFile::Range(check) => of_rows!(check),
            CheckFile::AcceptedValues(check) => of_rows!(check),
            CheckFile::Regex(check) => of_rows!(check),
            CheckFile::Format(check) => of_rows!(check),
            CheckFile::Length(check) => of_rows!(check),
            CheckFile::EventTime(check) => of_rows!(check),
            CheckFile::Expression(check) => of_rows!(check),
            CheckFile::NullRate(check)
            | CheckFile::DistinctCount(check)
            | CheckFile::Mean(check)
            | CheckFile::Stddev(check)
            | CheckFile::Sum(check)
            | CheckFile::TrueRatio(check) => Self { group_by: Some(&check.group_by), ..of_run!(check) },
            CheckFile::Quantile(check) => of_run!(check),
            CheckFile::Anomaly(check) => of_run!(check),
            CheckFile::Monotonic(check) => of_run!(check),
            CheckFile::Drift(check) => of_run!(check),
            CheckFile::RowCount(check) => Self { group_by: Some(&check.group_by), ..of_run!(check) },
            CheckFile::Referential(check) => Self {
                filter: Some(&check.r#where),
                tolerate: Some(&check.tolerate),
                group_by: Some(&check.group_by),
                on_fail: Some(&check.on_fail),
                timeout: Some(&check.timeout),
                ..of_run!(check)
            },
            CheckFile::Reconciliation(check) => {
                Self { filter: Some(&check.r#where), timeout: Some(&check.timeout), ..of_run!(check) }
            }
            CheckFile::Sql(check) => {
                Self { tolerate: Some(&check.tolerate), timeout: Some(&check.timeout), ..of_run!(check) }
            }
        }
    }
}

fn tolerance(written: &Field<ToleranceFile>, out: &mut Vec<Diagnostic>) -> Option<Tolerance> {
    let written = written.get()?;
    match written.value {
        ToleranceFile::Rows(rows) => Some(Tolerance::Rows(rows)),
        ToleranceFile::Ratio(ratio) if (0.0..=1.0).contains(&ratio) => Some(Tolerance::Ratio(ratio)),
        ToleranceFile::Ratio(_) => {
            out.push(bad(&written.origin, "`ratio` is not between 0 and 1", "write `0.01` for one row in a hundred"));
            None
        }
    }
}

/// How long a check may take, when its author says so.
pub(super) fn timeout(written: &Field<WrittenDuration>, out: &mut Vec<Diagnostic>) -> Option<Duration> {
    let written = written.get()?;
    if written.0.is_zero() {
        out.push(bad(&written.origin, "`timeout` must be longer than nothing", "write for example `timeout: 5m`"));
        return None;
    }
    Some(written.value.into())
}

/// The columns by which rows of a run are sorted, in order; none when the entity is not known.
fn sorted_by<'a>(file: &ViewFile, keys: &[&'a str]) -> Vec<&'a str> {
    let partial = file.output.value() == Some(OutputWord::Partial);
    keys.iter().copied().chain((partial && !keys.is_empty()).then_some(EVENT_TIMESTAMP)).collect()
}

/// What a check may set aside, when it may; rows come sorted by `sorted_by`.
fn quarantine(
    written: &Field<OnFailFile>,
    check: &CheckFile,
    common: &Common<'_>,
    sorted_by: &[&str],
    out: &mut Vec<Diagnostic>,
) -> Option<Budget> {
    let written = written.get()?;
    let OnFailFile::Quarantine(budget) = &written.value;
    if let CheckFile::Unique(unique) = check
        && !neighbours(unique, sorted_by, out)
    {
        return None;
    }
    let mut refuse = |title: &str, help: &str| out.push(bad(&written.origin, title, help));
    if common.tolerate.is_some_and(|tolerate| !tolerate.is_missing()) {
        refuse("the check tolerates rows and sets them aside", "remove `tolerate:` or `on_fail:`");
        return None;
    }
    if common.severity.value() == Some(Severity::Warn) {
        refuse(
            "the check only warns and sets rows aside",
            "remove `severity: warn`: with more rows than may be set aside the run must stop",
        );
        return None;
    }
    if budget.max_rows.is_missing() && budget.max_ratio.is_missing() {
        refuse("`quarantine` has no limit", "add `max_rows:` or `max_ratio:`, or both, above which the run is stopped");
        return None;
    }
    if let Some(ratio) = budget.max_ratio.get().filter(|ratio| !(0.0..=1.0).contains(&ratio.value)) {
        out.push(bad(&ratio.origin, "`max_ratio` is not between 0 and 1", "write `0.01` for one row in a hundred"));
        return None;
    }
    Some(Budget { max_rows: budget.max_rows.value(), max_ratio: budget.max_ratio.value() })
}

/// Whether rows that a `unique` check sets aside stand next to each other: only these are all seen in one pass before any
/// of them has gone on.
fn neighbours(unique: &ColumnsCheck, sorted_by: &[&str], out: &mut Vec<Diagnostic>) -> bool {
    const IN_SQL: &str = "or keep one row of each in the view's SQL, as with `row_number()`";
    if let Some(filter) = unique.r#where.get() {
        let title = "`unique` with `on_fail` is about all rows";
        out.push(bad(&filter.origin, title, &format!("remove `where:`, {IN_SQL}")));
        return false;
    }
    let Some(columns) = unique.columns.get() else { return true };
    let named: BTreeSet<&str> = columns.iter().map(|column| column.value.as_str()).collect();
    let first: BTreeSet<&str> = sorted_by.iter().take(named.len()).copied().collect();
    if columns.is_empty() || sorted_by.is_empty() || named == first {
        return true;
    }
    let order = sorted_by.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let help = match sorted_by {
        [_] => format!("rows are looked at once, sorted by {order}: name that column alone, {IN_SQL}"),
        _ => format!(
            "rows are looked at once, sorted by {order}: name the first of these, as many as you like, {IN_SQL}"
        ),
    };
    out.push(bad(&columns.origin, "`unique` of these columns cannot set rows aside", &help));
    false
}

/// The columns that make groups, when they may.
fn group_by(
    written: &Field<Vec<At<String>>>,
    check: &CheckFile,
    common: &Common<'_>,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Vec<String>> {
    let At { value, origin } = written.get()?;
    if value.is_empty() {
        let empty = Diagnostic::error(ids::EMPTY_LIST, origin.clone(), "`group_by` names no column");
        out.push(empty.with_help("write for example `group_by: [carrier]`, or remove it"));
        return None;
    }
    if matches!(check, CheckFile::Unique(_)) {
        let help = "equal rows may lie in different groups: for values that are unique in each group, add its columns to \
                    `columns:`";
        out.push(bad(origin, "`unique` cannot be judged by group", help));
        return None;
    }
    if let CheckFile::RowCount(check) = check
        && !check.max_change.is_missing()
    {
        let help = "write two checks: of earlier intervals only the number of all rows is known";
        out.push(bad(origin, "`max_change` cannot be judged by group", help));
        return None;
    }
    if common.on_fail.is_some_and(|on_fail| !on_fail.is_missing()) {
        let help = "remove `group_by:` or `on_fail:`: how many rows may be set aside is said of all rows";
        out.push(bad(origin, "the check judges groups and sets rows aside", help));
        return None;
    }
    columns(written, known, out)
}

fn sql_text(field: &Field<Sql>) -> Option<SqlText> {
    field.get().map(|sql| SqlText { text: sql.value.0.clone(), origin: sql.origin.clone() })
}

fn made_name(rule: &Rule) -> String {
    match rule {
        Rule::NotNull { columns } => format!("not_null({})", columns.join(", ")),
        Rule::Unique { columns } => format!("unique({})", columns.join(", ")),
        Rule::Range { column, .. } => format!("range({column})"),
        Rule::AcceptedValues { column, .. } => format!("accepted_values({column})"),
        Rule::Regex { column, .. } => format!("regex({column})"),
        Rule::Format { column, format } => format!("{format}({column})"),
        Rule::Length { column, .. } => format!("length({column})"),
        Rule::EventTime { column, .. } if column == EVENT_TIMESTAMP => "event_time".to_owned(),
        Rule::EventTime { column, .. } => format!("event_time({column})"),
        Rule::Expression { .. } => "expression".to_owned(),
        Rule::Bounds { metric, .. } => metrics::made_name(metric),
        Rule::Anomaly { metric, .. } => format!("anomaly({})", metrics::made_name(metric)),
        Rule::Monotonic { metric, .. } => format!("monotonic({})", metrics::made_name(metric)),
        Rule::Drift { column, .. } => format!("drift({column})"),
        Rule::Referential { columns, .. } => format!("referential({})", columns.join(", ")),
        Rule::Reconciliation { total, .. } => match total.column() {
            Some(column) => format!("reconciliation({column})"),
            None => "reconciliation".to_owned(),
        },
        Rule::RowCount { .. } => "row_count".to_owned(),
        Rule::Sql { .. } => "sql".to_owned(),
    }
}

pub(super) fn free_name(wanted: &str, taken: &BTreeSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{wanted} {number}"));
    std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or_default()
}

#[derive(Clone, Copy)]
struct Known<'a> {
    columns: &'a Columns,
    keys: &'a [&'a str],
}

impl<'a> Known<'a> {
    fn check(self, column: &At<String>, out: &mut Vec<Diagnostic>) -> bool {
        let name = column.value.as_str();
        if self.columns.contains_key(name) || self.keys.contains(&name) || name == EVENT_TIMESTAMP {
            return true;
        }
        let names = self.columns.keys().map(String::as_str).chain(self.keys.iter().copied());
        let help = nearest(name, names).map_or_else(
            || "a check may name features, keys of the entity and `event_timestamp`".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        out.push(
            Diagnostic::error(
                ids::UNKNOWN_CHECK_COLUMN,
                column.origin.clone(),
                format!("the check names `{name}`, which is not a column of the view"),
            )
            .with_label("no feature or key with this name")
            .with_help(help),
        );
        false
    }

    fn kind(self, column: &str) -> Option<&'a ColumnType> {
        self.columns.get(column).and_then(Option::as_ref)
    }
}

fn rule(check: &At<CheckFile>, known: Option<Known<'_>>, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<Rule> {
    match &check.value {
        CheckFile::NotNull(file) => Some(Rule::NotNull { columns: columns(&file.columns, known, out)? }),
        CheckFile::Unique(file) => Some(Rule::Unique { columns: columns(&file.columns, known, out)? }),
        CheckFile::Range(file) => range(file, &check.origin, known, out),
        CheckFile::AcceptedValues(file) => accepted_values(file, known, out),
        CheckFile::RowCount(file) => row_count(file, &check.origin, out),
        CheckFile::Regex(file) => regex(file, known, out),
        CheckFile::Format(file) => {
            Some(Rule::Format { column: text_column("format", &file.column, known, out)?, format: file.is.value()? })
        }
        CheckFile::Length(file) => length(file, &check.origin, known, out),
        CheckFile::NullRate(file) => metrics::bounds_of(file, MetricWord::NullRate, &check.origin, known, out),
        CheckFile::DistinctCount(file) => {
            metrics::bounds_of(file, MetricWord::DistinctCount, &check.origin, known, out)
        }
        CheckFile::Mean(file) => metrics::bounds_of(file, MetricWord::Mean, &check.origin, known, out),
        CheckFile::Stddev(file) => metrics::bounds_of(file, MetricWord::Stddev, &check.origin, known, out),
        CheckFile::Sum(file) => metrics::bounds_of(file, MetricWord::Sum, &check.origin, known, out),
        CheckFile::TrueRatio(file) => metrics::bounds_of(file, MetricWord::TrueRatio, &check.origin, known, out),
        CheckFile::Quantile(file) => metrics::quantile(file, &check.origin, known, out),
        CheckFile::Anomaly(file) => metrics::anomaly(file, &check.origin, known, out),
        CheckFile::Monotonic(file) => metrics::monotonic(file, &check.origin, known, out),
        CheckFile::Drift(file) => metrics::drift(file, known, out),
        CheckFile::EventTime(file) => event_time(file, &check.origin, known, out),
        CheckFile::Expression(file) => Some(Rule::Expression { condition: sql_text(&file.condition)? }),
        CheckFile::Referential(file) => others::referential(file, known, catalog, out),
        CheckFile::Reconciliation(file) => others::reconciliation(file, &check.origin, known, catalog, out),
        CheckFile::Sql(file) => Some(Rule::Sql { query: sql_text(&file.query)? }),
    }
}

fn columns(field: &Field<Vec<At<String>>>, known: Option<Known<'_>>, out: &mut Vec<Diagnostic>) -> Option<Vec<String>> {
    let columns = field.get()?;
    if columns.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, columns.origin.clone(), "the check names no column")
                .with_help("write for example `columns: [flights_7d]`"),
        );
        return None;
    }
    let mut good = true;
    for column in columns.iter() {
        good &= known.is_none_or(|known| known.check(column, out));
    }
    good.then(|| columns.iter().map(|column| column.value.clone()).collect())
}

pub(super) fn bad(origin: &Origin, title: impl Into<String>, help: &str) -> Diagnostic {
    Diagnostic::error(ids::BAD_CHECK, origin.clone(), title).with_help(help)
}

fn range(file: &RangeCheck, origin: &Origin, known: Option<Known<'_>>, out: &mut Vec<Diagnostic>) -> Option<Rule> {
    let column = file.column.get()?;
    if let Some(known) = known {
        if !known.check(column, out) {
            return None;
        }
        let numeric = |kind: &ColumnType| {
            matches!(kind, ColumnType::Integer | ColumnType::Bigint | ColumnType::Float | ColumnType::Double)
        };
        if let Some(kind) = known.kind(&column.value).filter(|kind| !numeric(kind)) {
            let title = format!("`range` cannot check a column of type `{kind}`");
            out.push(bad(&column.origin, title, "use it on numbers; for other types write a `sql` check"));
            return None;
        }
    }
    if file.min.is_missing() && file.max.is_missing() {
        out.push(bad(origin, "`range` has no bounds", "add `min:` or `max:`, or both"));
        return None;
    }
    let (min, max) = bounds(&file.min, &file.max, "no value can pass", out)?;
    Some(Rule::Range { column: column.value.clone(), min, max })
}

/// Both bounds, when they leave something between them.
pub(super) fn bounds<T: Clone + PartialOrd>(
    min: &Field<T>,
    max: &Field<T>,
    label: &str,
    out: &mut Vec<Diagnostic>,
) -> Option<(Option<T>, Option<T>)> {
    if let (Some(min), Some(max)) = (min.get(), max.get())
        && min.value > max.value
    {
        out.push(
            bad(&max.origin, "`max` is below `min`", "exchange them")
                .with_label(label)
                .with_related(min.origin.clone(), "above `max`"),
        );
        return None;
    }
    Some((min.value(), max.value()))
}

/// The column of a rule about texts.
fn text_column(
    rule: &str,
    column: &Field<String>,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<String> {
    let column = column.get()?;
    if let Some(known) = known {
        if !known.check(column, out) {
            return None;
        }
        if let Some(kind) = known.kind(&column.value).filter(|kind| **kind != ColumnType::String) {
            let title = format!("`{rule}` cannot check a column of type `{kind}`");
            out.push(bad(&column.origin, title, "use it on `string`; for other types write an `expression` check"));
            return None;
        }
    }
    Some(column.value.clone())
}

fn regex(file: &PatternCheck, known: Option<Known<'_>>, out: &mut Vec<Diagnostic>) -> Option<Rule> {
    let column = text_column("regex", &file.column, known, out);
    let pattern = file.pattern.get()?;
    if let Err(error) = regex::Regex::new(&pattern.value) {
        // The last line says what is wrong; those before draw the pattern.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        out.push(
            bad(&pattern.origin, "the pattern is not a regular expression", "see the syntax of the crate `regex`")
                .with_label(reason),
        );
        return None;
    }
    Some(Rule::Regex { column: column?, pattern: pattern.value.clone() })
}

fn length(file: &LengthCheck, origin: &Origin, known: Option<Known<'_>>, out: &mut Vec<Diagnostic>) -> Option<Rule> {
    let column = text_column("length", &file.column, known, out);
    if file.min.is_missing() && file.max.is_missing() {
        out.push(bad(origin, "`length` has no bounds", "add `min:` or `max:`, or both"));
        return None;
    }
    let (min, max) = bounds(&file.min, &file.max, "no text can pass", out)?;
    Some(Rule::Length { column: column?, min, max })
}

fn event_time(
    file: &EventTimeCheck,
    origin: &Origin,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Rule> {
    if let (Some(column), Some(known)) = (file.column.get(), known) {
        if !known.check(column, out) {
            return None;
        }
        let is_time = |kind: &ColumnType| matches!(kind, ColumnType::Timestamp | ColumnType::Date);
        if let Some(kind) = known.kind(&column.value).filter(|kind| !is_time(kind)) {
            let title = format!("`event_time` cannot check a column of type `{kind}`");
            out.push(bad(&column.origin, title, "use it on `timestamp` or `date`"));
            return None;
        }
    }
    if file.min_age.is_missing() && file.max_age.is_missing() {
        out.push(bad(origin, "`event_time` has no bounds", "add `min_age:` or `max_age:`, or both"));
        return None;
    }
    if let (Some(min), Some(max)) = (file.min_age.get(), file.max_age.get())
        && min.value > max.value
    {
        out.push(
            bad(&max.origin, "`max_age` is below `min_age`", "exchange them")
                .with_label("no time can pass")
                .with_related(min.origin.clone(), "at least this old"),
        );
        return None;
    }
    Some(Rule::EventTime {
        column: file.column.value().unwrap_or_else(|| EVENT_TIMESTAMP.to_owned()),
        at: file.at.value().unwrap_or(Edge::End),
        min_age: file.min_age.value().map(Duration::from),
        max_age: file.max_age.value().map(Duration::from),
    })
}

fn accepted_values(file: &ValuesCheck, known: Option<Known<'_>>, out: &mut Vec<Diagnostic>) -> Option<Rule> {
    let column = file.column.get()?;
    let values = file.values.get()?;
    if known.is_some_and(|known| !known.check(column, out)) {
        return None;
    }
    if values.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, values.origin.clone(), "no value would be accepted")
                .with_help("list the allowed values"),
        );
        return None;
    }
    let kind = known.and_then(|known| known.kind(&column.value));
    if let Some(kind) = kind {
        let scalar =
            matches!(kind, ColumnType::String | ColumnType::Boolean | ColumnType::Integer | ColumnType::Bigint);
        if !scalar {
            let title = format!("`accepted_values` cannot check a column of type `{kind}`");
            out.push(bad(&column.origin, title, "use it on `string`, `boolean`, `integer` or `bigint`"));
            return None;
        }
        let mut good = true;
        for value in values.iter().filter(|value| super::views::typed(&value.value, kind).is_none()) {
            let title = format!("the value is not a `{kind}`");
            out.push(bad(&value.origin, title, "quote text; leave numbers without quotes").with_label("wrong type"));
            good = false;
        }
        if !good {
            return None;
        }
    }
    let values = values.iter().map(|value| value.value.clone()).collect();
    Some(Rule::AcceptedValues { column: column.value.clone(), values })
}

fn row_count(file: &RowCountCheck, origin: &Origin, out: &mut Vec<Diagnostic>) -> Option<Rule> {
    if file.min.is_missing() && file.max.is_missing() && file.max_change.is_missing() {
        out.push(bad(origin, "`row_count` has no bounds", "add `min:`, `max:` or `max_change:`"));
        return None;
    }
    if let Some(change) = file.max_change.get().filter(|change| change.value < 0.0) {
        out.push(bad(&change.origin, "`max_change` is below 0", "write `0.5` for half of the rows"));
        return None;
    }
    let (min, max) = bounds(&file.min, &file.max, "no number of rows can pass", out)?;
    if let Some(same) = file.same.get().filter(|_| file.max_change.is_missing()) {
        out.push(bad(
            &same.origin,
            "`same` says what `max_change` compares with, and there is none",
            "add `max_change:`",
        ));
        return None;
    }
    Some(Rule::RowCount { min, max, max_change: file.max_change.value(), season: file.same.value() })
}
