//! What a history suggests, and what it does not.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};
use indexmap::IndexMap;
use tidegate_quality::profile::ColumnProfiler;
use tidegate_registry::definitions::{LoadOptions, load_files};
use tidegate_registry::ids::SnapshotId;
use tidegate_registry::model::Project;
use tidegate_registry::time::{Instant, Interval};

use super::*;

/// The project of the view, with more checks.
fn definitions(checks: &str) -> (Option<Project>, String) {
    let checks = if checks.is_empty() { String::new() } else { format!("    checks:\n{checks}") };
    let text = format!(
        "owners: [{{name: ana, primary: ana@example.com}}]
entities: [{{name: shop, keys: [{{name: shop, type: bigint}}]}}]
sources: [{{name: sales, parquet: sales.parquet}}]
feature_views:
  - name: shops
    entity: shop
    owner: ana
    description: x
    sql: SELECT * FROM sales
    features:
      - {{name: code, type: string, description: x}}
      - {{name: country, type: string, description: x}}
      - {{name: visits, type: bigint, description: x}}
      - {{name: share, type: double, description: x}}
      - {{name: change, type: double, description: x}}
      - {{name: is_open, type: boolean, description: x}}
      - {{name: keeper, type: string, description: x, tags: [pii]}}
{checks}dags: [{{name: daily, owner: ana, schedule: {{cron: '@daily', start: 2026-01-01}}, views: [shops]}}]
"
    );
    let files = [("tidegate.yaml", &b"project: shop\n"[..]), ("views.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/shop"), &files, &LoadOptions::default());
    (loaded.project, format!("{:?}", loaded.diagnostics))
}

/// A run of the view, `age` days ago, of `rows` rows.
fn run(age: usize, rows: usize) -> Recorded {
    let profile = |array: ArrayRef| {
        let mut profiler = ColumnProfiler::new(array.data_type());
        profiler.update(&array).unwrap();
        profiler.finish()
    };
    let number = |row: usize| (row + age) as f64;
    let countries = ["DE", "FR", "\"NL: x"];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("code", Arc::new((0..rows).map(|row| Some(format!("S{:04}", row + 10 * age))).collect::<StringArray>())),
        (
            "country",
            Arc::new((0..rows).map(|row| (row % 7 > 0).then_some(countries[row % 3])).collect::<StringArray>()),
        ),
        ("visits", Arc::new((0..rows).map(|row| Some((row * 3 + age % 5) as i64)).collect::<Int64Array>())),
        ("share", Arc::new((0..rows).map(|row| Some(number(row) % 10.0 / 10.0)).collect::<Float64Array>())),
        ("change", Arc::new((0..rows).map(|row| Some(number(row) % 50.0 - 25.0)).collect::<Float64Array>())),
        ("is_open", Arc::new((0..rows).map(|row| Some(row % 10 > 0)).collect::<BooleanArray>())),
        ("keeper", Arc::new((0..rows).map(|row| Some(["ana", "ben"][row % 2])).collect::<StringArray>())),
    ];
    let profile: IndexMap<String, _> =
        columns.into_iter().map(|(name, array)| (name.to_owned(), profile(array))).collect();
    let start = Instant::UNIX_EPOCH + chrono::TimeDelta::days(1_000 - age as i64);
    let interval = Interval::new(start, start + chrono::TimeDelta::days(1)).unwrap();
    Recorded { interval, snapshot: SnapshotId::generate(), rows: rows as u64, profile, summary: None }
}

fn suggested(checks: &str, history: &[Recorded]) -> Suggestions {
    let (project, diagnostics) = definitions(checks);
    let project = project.unwrap_or_else(|| panic!("{diagnostics}"));
    let view = project.views.values().next().unwrap();
    suggest(view, project.keys_of(view), history, 20)
}

#[test]
fn suggestions_say_what_they_rest_on_and_are_accepted_by_the_view() {
    let history: Vec<Recorded> = (0..12).map(|age| run(age, 100 + age % 4)).collect();
    let found = suggested("", &history);
    insta::assert_snapshot!(found.yaml(6));
    let (project, diagnostics) = definitions(&found.yaml(6));
    let project = project.unwrap_or_else(|| panic!("{diagnostics}"));
    assert_eq!(project.views[0].checks.len(), found.checks.len());
    assert!(!diagnostics.contains("views.yaml"), "{diagnostics}");
    assert_eq!(found, suggested("", &history), "the same history suggests the same");
    // What is there already is not proposed again.
    let again = suggested(&found.yaml(6), &history);
    assert_eq!((again.checks.len(), again.known), (0, found.checks.len()), "{again:?}");
}

#[test]
fn too_little_history_suggests_nothing() {
    let history: Vec<Recorded> = (0..4).map(|age| run(age, 100)).collect();
    let found = suggested("", &history);
    assert_eq!((found.checks.len(), found.runs), (0, 4));
    // Runs without a profile are no history.
    let unknown = (0..20).map(|age| Recorded { profile: IndexMap::new(), ..run(age, 100) });
    let found = suggested("", &unknown.chain(history).collect::<Vec<_>>());
    assert_eq!((found.checks.len(), found.runs), (0, 4));
}

#[test]
fn values_of_persons_are_not_proposed() {
    let history: Vec<Recorded> = (0..12).map(|age| run(age, 100)).collect();
    let yaml = suggested("", &history).yaml(0);
    assert!(!yaml.contains("ana") && !yaml.contains("column: keeper, values"), "{yaml}");
    assert!(yaml.contains("keeper"), "that it is never null tells nothing of persons:\n{yaml}");
}

#[test]
fn a_list_of_values_that_still_grows_is_none() {
    let mut history: Vec<Recorded> = (0..12).map(|age| run(age, 100)).collect();
    assert!(suggested("", &history).yaml(0).contains("accepted_values: {column: country"));
    let mut newer = run(0, 100);
    newer.profile["country"].frequent[0].value = "BE".to_owned();
    history[1] = newer;
    assert!(!suggested("", &history).yaml(0).contains("accepted_values: {column: country"));
}

#[test]
fn empty_runs_and_columns_without_values_suggest_no_bounds_of_them() {
    let empty: Vec<Recorded> = (0..12).map(|age| run(age, 0)).collect();
    let found = suggested("", &empty);
    assert_eq!(found.yaml(0), "# 0 rows in 12 runs\n- row_count: {max: 1, severity: warn}\n");
    let some: Vec<Recorded> = (0..12).map(|age| run(age, if age == 3 { 0 } else { 100 })).collect();
    let yaml = suggested("", &some).yaml(0);
    assert!(yaml.contains("row_count: {max: 130, severity: warn}"), "{yaml}");
    assert!(yaml.contains("not_null: {columns: [code, visits, share, change, is_open, keeper]}"), "{yaml}");
}

#[test]
fn bounds_are_short_and_never_narrower() {
    for value in [0.0, 1.0, 99.4, -99.4, 12_345.0, -0.001_234, 1e300, 5e-324, 0.3] {
        let (low, high) = (down(value), up(value));
        assert!(low <= value && value <= high, "{low} {value} {high}");
    }
    assert_eq!([down(123.4), up(123.4), down(-123.4), up(0.3), up(-0.0)], [120.0, 130.0, -130.0, 0.3, 0.0]);
}

/// Runs of a view of which `code` has these texts and `visits` these numbers, and `country` so many nulls; newest first.
fn runs_of(number: usize, of: impl Fn(usize) -> (Vec<String>, Vec<i64>, usize)) -> Vec<Recorded> {
    let profile = |array: ArrayRef| {
        let mut profiler = ColumnProfiler::new(array.data_type());
        profiler.update(&array).unwrap();
        profiler.finish()
    };
    let one = |age: usize| {
        let (codes, visits, nulls) = of(age);
        let rows = codes.len();
        let mut recorded = run(age, rows);
        let countries: StringArray = (0..rows).map(|row| (row >= nulls).then_some("DE")).collect();
        recorded.profile["code"] = profile(Arc::new(StringArray::from(codes)));
        recorded.profile["visits"] = profile(Arc::new(Int64Array::from(visits)));
        recorded.profile["country"] = profile(Arc::new(countries));
        recorded
    };
    (0..number).map(one).collect()
}

/// The proposals of that kind about the column.
fn of_kind(history: &[Recorded], kind: &str, column: &str) -> String {
    let found = suggested("", history);
    let wanted = |one: &&Suggestion| one.check.starts_with(&format!("{kind}: ")) && one.check.contains(column);
    found.checks.iter().filter(wanted).map(|one| format!("{} # {}", one.check, one.why)).collect::<Vec<_>>().join("\n")
}

#[test]
fn values_are_unique_only_where_profiles_prove_it() {
    let codes = |rows: usize, age: usize| (0..rows).map(|row| format!("S{:06}", row + 7 * age)).collect::<Vec<_>>();
    let of = |rows: usize, apart: i64| {
        runs_of(6, move |age| (codes(rows, age), (0..rows as i64).map(|row| row * apart).collect(), 0))
    };
    assert_eq!(
        of_kind(&of(100, 3), "unique", "code"),
        "unique: {columns: [code], severity: warn} # all values were counted, and none came twice, in 6 runs (600 values)"
    );
    assert!(of_kind(&of(100, 3), "unique", "visits").starts_with("unique: {columns: [visits]"));
    // A hundred numbers of a million are mostly different anyway.
    assert_eq!(of_kind(&of(100, 10_000), "unique", "visits"), "");
    assert_eq!(of_kind(&of(10, 3), "unique", "code"), "", "60 values");
    assert_eq!(of_kind(&of(5_000, 1), "unique", "code"), "", "an estimate is no proof");
    assert_eq!(of_kind(&of(5_000, 1), "unique", "visits"), "");
    let mut twice = of(100, 3);
    let mut doubled = codes(100, 0);
    doubled[7] = doubled[8].clone();
    twice[2] = runs_of(1, |_| (doubled.clone(), (0..100).collect(), 0)).remove(0);
    assert_eq!(of_kind(&twice, "unique", "code"), "", "once in one run");
    let mut null = of(100, 3);
    null[3].profile["code"].nulls = 1;
    assert_eq!(of_kind(&null, "unique", "code"), "", "two nulls would be equal");
}

fn uuid(number: usize) -> String {
    format!("{number:08x}-0000-4000-8000-{:012x}", number * 7_919)
}

#[test]
fn formats_say_of_how_many_values_they_are_told() {
    let of_runs = |runs: usize, rows: usize, text: fn(usize) -> String| {
        let history = runs_of(runs, move |age| {
            ((0..rows).map(|row| text(row + age * rows)).collect(), (0..rows as i64).collect(), 0)
        });
        of_kind(&history, "format", "code")
    };
    let of = |rows, text| of_runs(6, rows, text);
    assert_eq!(
        of(10, uuid),
        "format: {column: code, is: uuid, severity: warn} # all 60 different values of 6 runs are UUIDs of 36 characters"
    );
    // Of many different values a profile keeps the smallest and the largest.
    assert_eq!(
        of_runs(12, 1_000, uuid),
        "format: {column: code, is: uuid, severity: warn} # the 24 values that the profiles of 12 runs keep are UUIDs of 36 \
         characters; they keep only a part"
    );
    assert_eq!(of_runs(6, 1_000, uuid), "", "12 values");
    assert!(of(10, |number| format!("somebody.{number}@example.com")).contains("is: email"));
    assert!(of(10, |number| format!("2026-{:02}-{:02}", number % 12 + 1, number % 28 + 1)).contains("is: iso_date"));
    assert_eq!(of(10, |number| format!("{number:036}")), "", "as long as a UUID, and none");
    assert_eq!(of(10, |number| if number == 30 { "none".to_owned() } else { uuid(number) }), "", "all but one");
    assert_eq!(of(3, uuid), "", "18 values");
}

#[test]
fn numbers_that_were_never_odd_are_watched() {
    let rows = |number: usize| (0..number).map(|row| format!("S{row}")).collect::<Vec<_>>();
    let of = |runs: usize, last: usize| {
        runs_of(runs, move |age| {
            let number = if age == 0 { last } else { 100 + age * 37 % 11 };
            (rows(number), (0..number as i64).collect(), 10 + age * 5 % 7)
        })
    };
    let told = of_kind(&of(14, 104), "anomaly", "row_count");
    assert!(told.starts_with("anomaly: {of: row_count, last: 14, severity: warn} # at most "), "{told}");
    assert!(told.ends_with("runs before, in 7 runs; 3.5 are allowed"), "{told}");
    let told = of_kind(&of(14, 104), "anomaly", "country");
    assert!(told.starts_with("anomaly: {of: null_rate, column: country, last: 14, severity: warn}"), "{told}");
    assert_eq!(of_kind(&of(14, 400), "anomaly", "row_count"), "", "the last would have been");
    assert_eq!(of_kind(&of(11, 104), "anomaly", "row_count"), "", "four of them could be judged");
    let steady = runs_of(14, |_| (rows(100), (0..100).collect(), 10));
    assert_eq!(of_kind(&steady, "anomaly", ""), "", "nothing ever varied");
}
