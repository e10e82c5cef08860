//! Tests of definitions: what they name, and whether they give all that is read. Values and the columns of sources are
//! looked at when the sources' schemas are known.

use std::collections::{HashMap, HashSet};

use chrono_tz::Tz;
use indexmap::IndexMap;

use super::graph::{suggest_table, view_named};
use super::{Catalog, Written, define, parse_name};
use crate::definitions::read::{At, nearest};
use crate::definitions::scalars::parse_time;
use crate::definitions::written::{Named, RowFile, TestFile, VerdictWord};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::ids::{TestName, ViewId};
use crate::model::{DefinitionTest, ExpectedVerdict, FeatureView, GivenTable, Project, Table, TestRow, TestValue};
use crate::time::Interval;

/// The tests that can be run; those of views with a mistake are left out in silence.
pub(super) fn tests(
    written: &Written,
    project: &Project,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Vec<DefinitionTest> {
    let mut names = HashMap::new();
    for file in &written.tests {
        define("test", &file.name, &mut names, out);
    }
    written.tests.iter().filter_map(|file| test(file, project, catalog, out)).collect()
}

fn test(
    file: &At<TestFile>,
    project: &Project,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<DefinitionTest> {
    let name = parse_name(&file.name, TestName::new, out);
    let view = file.view.get().and_then(|view| self::view(view, catalog, out));
    let zone = view.as_ref().and_then(|view| project.dag_of(view)).map_or(Tz::UTC, |dag| dag.schedule.timezone);
    let interval = file.interval.get().and_then(|text| interval(text, zone, out));
    // A view with a mistake is known, and not whole.
    let view = project.views.get(&view?)?;
    let given = given(file, view, project, catalog, out)?;
    let origin = file.name.origin_or(&file.origin);
    if file.expect.is_missing() && file.checks.is_missing() {
        out.push(
            Diagnostic::error(ids::MISSING_FIELD, origin.clone(), "the test expects nothing")
                .with_label("neither `expect` nor `checks`")
                .with_help("add `expect:` with the rows that shall come out, or `checks:` with verdicts"),
        );
        return None;
    }
    let expect: Option<Vec<TestRow>> = file.expect.get().map(|rows| rows.iter().map(row).collect());
    check_columns(
        expect.as_deref().unwrap_or_default(),
        &of_state(project, view),
        &format!("the view `{}`", view.id),
        out,
    );
    let checks = file.checks.get().map(|written| verdicts(&written.value, view, out)).unwrap_or_default();
    Some(DefinitionTest { name: name?, view: view.id.clone(), interval: interval?, given, expect, checks, origin })
}

fn view(name: &At<String>, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<ViewId> {
    let found = view_named(name, catalog);
    if found.is_none() {
        let bare = name.split('@').next().unwrap_or_default();
        let help = match (catalog.highest(bare), nearest(bare, catalog.views.keys().map(String::as_str))) {
            (Some(highest), _) => format!("there is `{highest}`"),
            (None, Some(near)) => format!("did you mean `{near}`?"),
            (None, None) => "add it to `feature_views:`, or name one that is there".to_owned(),
        };
        out.push(
            Diagnostic::error(
                ids::UNKNOWN_VIEW,
                name.origin.clone(),
                format!("there is no feature view `{}`", name.value),
            )
            .with_label("no feature view with this name")
            .with_help(help),
        );
    }
    found
}

fn interval(text: &At<String>, zone: Tz, out: &mut Vec<Diagnostic>) -> Option<Interval> {
    let times = text.split_once('/').and_then(|(start, end)| Some((parse_time(start)?, parse_time(end)?)));
    let bad = |title: String, help: &str| Diagnostic::error(ids::BAD_TEST, text.origin.clone(), title).with_help(help);
    let Some((start, end)) = times else {
        let example = "write START/END, as in `2013-01-08/2013-01-09` (midnights in the DAG's zone) or \
                       `2013-01-08T07:15:00Z/2013-01-09T07:15:00Z`";
        out.push(bad(format!("`{}` is not an interval", text.value), example));
        return None;
    };
    let interval = Interval::new(start.resolve(zone), end.resolve(zone));
    if let Err(error) = &interval {
        out.push(bad(error.to_string(), "the end comes second, and is not inside"));
    }
    interval.ok()
}

/// The tables that stand in for real ones, once they are all that is needed.
fn given(
    file: &At<TestFile>,
    view: &FeatureView,
    project: &Project,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<Vec<GivenTable>> {
    let written = file.given.get()?;
    let before = out.len();
    let mut tables: IndexMap<Table, GivenTable> = IndexMap::new();
    for (name, rows) in &written.value.0 {
        let Some(table) = table(name, project, catalog, out) else { continue };
        let rows: Vec<TestRow> = rows.iter().map(row).collect();
        let columns = match &table {
            Table::Source(_) => None,
            Table::State(id) => project.views.get(id).map(|view| of_state(project, view)),
            Table::History(id) => project.views.get(id).map(|view| of_history(project, view)),
        };
        if let Some(columns) = columns {
            check_columns(&rows, &columns, &format!("the view `{}`", name.value), out);
        }
        match tables.get(&table) {
            Some(first) => out.push(super::duplicate(&format!("table `{}`", name.value), &name.origin, &first.origin)),
            None => {
                tables.insert(table.clone(), GivenTable { table, rows, origin: name.origin.clone() });
            }
        }
    }
    let read = read_by(view, &tables, project);
    for given in tables.values().filter(|given| !read.contains(&given.table)) {
        let title = format!("`{}` does not read the table that is given here", view.id);
        out.push(
            Diagnostic::error(ids::BAD_TEST, given.origin.clone(), title)
                .with_label("not read")
                .with_help("leave it out; of a view that is given, what it reads need not be"),
        );
    }
    // A table with a mistake is not missing as well.
    if out.len() == before {
        let sources = read.iter().filter_map(|table| match table {
            Table::Source(name) if !tables.contains_key(table) => Some(name),
            _ => None,
        });
        out.extend(sources.map(|name| {
            let title = format!("`{}` reads `{name}`, which this test does not give", view.id);
            Diagnostic::error(ids::BAD_TEST, written.origin.clone(), title)
                .with_help(format!("add `{name}: []` for no rows, or the rows that it shall see"))
        }));
    }
    (out.len() == before).then(|| tables.into_values().collect())
}

/// The verdicts that are expected, of checks that the view has.
fn verdicts(written: &Named<VerdictWord>, view: &FeatureView, out: &mut Vec<Diagnostic>) -> Vec<ExpectedVerdict> {
    let mut expected = Vec::with_capacity(written.0.len());
    for (name, verdict) in &written.0 {
        if view.checks.iter().any(|check| check.name == name.value) {
            let (check, origin) = (name.value.clone(), name.origin.clone());
            expected.push(ExpectedVerdict { check, verdict: verdict.value.into(), origin });
            continue;
        }
        let names = || view.checks.iter().map(|check| check.name.as_str());
        let help = match (nearest(name, names()), view.checks.is_empty()) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, false) => format!("it has the checks `{}`", names().collect::<Vec<_>>().join("`, `")),
            (None, true) => "it has no checks: write some below its `checks:`".to_owned(),
        };
        let title = format!("`{}` is not a check of the view `{}`", name.value, view.id);
        out.push(
            Diagnostic::error(ids::BAD_TEST, name.origin.clone(), title)
                .with_label("no check with this name")
                .with_help(help),
        );
    }
    expected
}

/// What a name under `given:` stands for: as in SQL.
fn table(name: &At<String>, project: &Project, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<Table> {
    let (history, bare) = match name.strip_prefix("history.") {
        Some(bare) => (true, bare),
        None => (false, name.as_str()),
    };
    if let Some(view) = view_named(bare, catalog) {
        return Some(if history { Table::History(view) } else { Table::State(view) });
    }
    if let Some(source) = project.sources.keys().find(|source| !history && source.as_str() == bare) {
        return Some(Table::Source(source.clone()));
    }
    // A source with a mistake is known, and the views that read it are not whole.
    if history || !catalog.sources.contains_key(bare) {
        out.push(
            Diagnostic::error(ids::BAD_TEST, name.origin.clone(), format!("there is no table `{}`", name.value))
                .with_label("no source or feature view with this name")
                .with_help(suggest_table(bare, catalog)),
        );
    }
    None
}

/// The tables that `view` reads, itself or through views that have to be computed, in order of first use.
fn read_by(view: &FeatureView, given: &IndexMap<Table, GivenTable>, project: &Project) -> Vec<Table> {
    let mut read: Vec<Table> = Vec::new();
    let mut known: HashSet<&Table> = HashSet::new();
    let mut next = vec![view];
    while let Some(view) = next.pop() {
        for table in view.reads.iter().map(|read| &read.table).filter(|table| known.insert(table)).collect::<Vec<_>>() {
            read.push(table.clone());
            if let (Table::State(id) | Table::History(id), false) = (table, given.contains_key(table)) {
                next.extend(project.views.get(id));
            }
        }
    }
    read
}

fn row(file: &At<RowFile>) -> TestRow {
    let value = |(column, value): &(At<String>, At<serde_json::Value>)| {
        let (name, column) = (column.value.clone(), column.origin.clone());
        (name, TestValue { value: value.value.clone(), column, origin: value.origin.clone() })
    };
    TestRow { values: file.value.0.iter().map(value).collect(), origin: file.origin.clone() }
}

/// Keys, `event_timestamp` and features.
fn of_state(project: &Project, view: &FeatureView) -> Vec<String> {
    let keys = project.keys_of(view).iter().map(|key| key.name.clone());
    let features = view.features.iter().map(|feature| feature.name.clone());
    keys.chain(["event_timestamp".to_owned()]).chain(features).collect()
}

/// What a state has, and the interval of each row.
fn of_history(project: &Project, view: &FeatureView) -> Vec<String> {
    let mut columns = of_state(project, view);
    columns.extend(["interval_start".to_owned(), "interval_end".to_owned()]);
    columns
}

/// Reports each unknown column once.
fn check_columns(rows: &[TestRow], columns: &[String], of: &str, out: &mut Vec<Diagnostic>) {
    let mut told: HashSet<&str> = HashSet::new();
    for (name, value) in rows.iter().flat_map(|row| &row.values) {
        if !columns.contains(name) && told.insert(name) {
            out.push(unknown_column(name, &value.column, of, columns.iter().map(String::as_str)));
        }
    }
}

fn unknown_column<'a>(
    name: &str,
    origin: &Origin,
    of: &str,
    columns: impl Iterator<Item = &'a str> + Clone,
) -> Diagnostic {
    let help = nearest(name, columns.clone()).map_or_else(
        || format!("it has the columns `{}`", columns.collect::<Vec<_>>().join("`, `")),
        |near| format!("did you mean `{near}`?"),
    );
    Diagnostic::error(ids::BAD_TEST, origin.clone(), format!("`{name}` is not a column of {of}"))
        .with_label("no such column")
        .with_help(help)
}
