use std::path::Path;

use datafusion::arrow::datatypes::{Field, Schema, TimeUnit};
use indexmap::IndexMap;
use serde_json::json;
use tidegate_registry::definitions::{LoadOptions, load_files};
use tidegate_registry::diagnostics::{RenderStyle, SourceMap, render};

use super::*;

const VIEWS: &str = r#"owners: [{name: ana, primary: ana@example.com}]
entities: [{name: shop, keys: [{name: shop, type: string}]}]
sources:
  - {name: receipts, parquet: receipts.parquet}
feature_views:
  - name: revenue
    entity: shop
    owner: ana
    description: x
    sql: |
      SELECT shop, sum(amount) AS total, count(*) AS receipts, array_agg(amount ORDER BY at) AS amounts,
             CAST(max(at) AS DATE) AS last_on, min(kind) AS kind
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features:
      - {name: total, type: double, description: x}
      - {name: receipts, type: bigint, description: x}
      - {name: amounts, type: array<double>, description: x}
      - {name: last_on, type: date, description: x}
      - {name: kind, type: string, description: x}
  - name: ranking
    entity: shop
    owner: ana
    description: x
    sql: SELECT shop, total / sum(total) OVER () AS share FROM revenue
    features: [{name: share, type: double, description: x}]
  - name: lifetime
    entity: shop
    owner: ana
    description: x
    sql: SELECT shop, sum(total) AS total, min(interval_start) AS since FROM history.revenue GROUP BY shop
    features: [{name: total, type: double, description: x}, {name: since, type: timestamp, description: x}]
dags:
  - name: daily
    owner: ana
    schedule: {cron: "0 0 * * *", timezone: America/New_York, start: 2024-01-01}
    views: [revenue, ranking, lifetime]
tests:
"#;

fn readable() -> SourceSchemas {
    let receipts = Schema::new(vec![
        Field::new("shop", DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), false),
        Field::new("at", DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())), true),
        Field::new("amount", DataType::Float64, true),
        Field::new("kind", DataType::Utf8View, true),
    ]);
    IndexMap::from([("receipts".parse().unwrap(), Ok(Arc::new(receipts)))])
}

fn unreadable() -> SourceSchemas {
    IndexMap::from([("receipts".parse().unwrap(), Err("there are no files".to_owned()))])
}

/// The project with one test `t`, whose lines after its name are `test`.
fn load(test: &str) -> (Project, Vec<DefinitionTest>, SourceMap) {
    load_of(VIEWS, test)
}

fn load_of(views: &str, test: &str) -> (Project, Vec<DefinitionTest>, SourceMap) {
    let test: String = test.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!("{views}  - name: t\n{test}");
    let files = [("tidegate.yaml", &b"project: shops\n"[..]), ("shops.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/shops"), &files, &LoadOptions::default());
    assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "", "{text}");
    (loaded.project.unwrap(), loaded.tests, loaded.files)
}

async fn run(test: &str, schemas: &SourceSchemas) -> Result<TestOutcome> {
    let (project, tests, _) = load(test);
    let spill = tempfile::tempdir().unwrap();
    let engine = Engine::new(64 << 20, spill.path()).unwrap();
    run_test(&engine, &project, schemas, &tests[0]).await
}

fn told(test: &str) -> String {
    let (project, tests, files) = load(test);
    render(&check_tests(&project, &readable(), &tests), &files, RenderStyle::default())
}

const GIVEN: &str = "view: revenue
interval: 2024-01-01/2024-01-02
given:
  receipts:
    - {shop: a, at: 2024-01-01T10:00:00Z, amount: 0.1, kind: x}
    - {shop: a, at: 2024-01-01T11:00:00Z, amount: 0.2}
    - {shop: b, at: 2024-01-01T12:00:00Z, amount: null}
    - {shop: b, at: 2024-01-02T05:00:00Z, amount: 7}
";

#[tokio::test]
async fn rows_are_equal_in_any_order_and_on_the_columns_that_are_named() {
    for schemas in [readable(), unreadable()] {
        let rows = "  - {shop: b, total: null, receipts: 1}
  - {shop: a, total: 0.3, receipts: 2, amounts: [0.1, 0.2], last_on: 2024-01-01, kind: x}";
        let outcome = run(&format!("{GIVEN}expect:\n{rows}"), &schemas).await.unwrap();
        let amounts_of_b = Difference {
            expected: true,
            values: vec![json!("b"), json!(null), json!(1), json!(null), json!(null), json!(null)],
        };
        assert_eq!(outcome.columns, ["shop", "total", "receipts", "amounts", "last_on", "kind"]);
        // 0.1 + 0.2 is not 0.3, and near enough; a column that another row names is null where it is left out.
        assert_eq!(outcome.differences[0], amounts_of_b);
        assert_eq!(outcome.differences.len(), 2, "{outcome:?}");
        let outcome = run(&format!("{GIVEN}expect: [{{shop: b}}, {{shop: a}}]"), &schemas).await.unwrap();
        assert!(outcome.passed(), "{outcome:?}");
    }
}

#[tokio::test]
async fn what_is_missing_stands_before_what_came_instead() {
    let outcome = run(&format!("{GIVEN}expect: [{{shop: c, receipts: 1}}, {{shop: a, receipts: 3}}]"), &readable())
        .await
        .unwrap();
    let rows: Vec<_> = outcome.differences.iter().map(|row| (row.expected, row.values.clone())).collect();
    assert_eq!(
        rows,
        [
            (true, vec![json!("c"), json!(1)]),
            (true, vec![json!("a"), json!(3)]),
            (false, vec![json!("a"), json!(2)]),
            (false, vec![json!("b"), json!(1)]),
        ]
    );
}

#[tokio::test]
async fn the_same_row_twice_is_expected_twice() {
    let twice = differences(vec![vec![json!("a")], vec![json!("a")]], vec![vec![json!("a")]], &[DataType::Utf8], &[0]);
    assert_eq!(twice, [Difference { expected: true, values: vec![json!("a")] }]);
}

#[tokio::test]
async fn nothing_can_be_expected() {
    let nothing = "view: revenue\ninterval: 2024-01-01/2024-01-02\ngiven: {receipts: []}\nexpect: []";
    assert!(run(nothing, &readable()).await.unwrap().passed());
    let outcome = run(&format!("{GIVEN}expect: []"), &readable()).await.unwrap();
    assert_eq!(outcome.columns, ["shop"]);
    assert_eq!(outcome.differences.len(), 2);
}

#[tokio::test]
async fn views_are_given_or_computed() {
    let given = "view: ranking
interval: 2024-01-01/2024-01-02
given: {revenue: [{shop: a, total: 1}, {shop: b, total: 3}]}
expect: [{shop: a, share: 0.25}, {shop: b, share: 0.75}]";
    assert!(run(given, &unreadable()).await.unwrap().passed());
    let computed = "view: lifetime
interval: 2024-01-01/2024-01-02
given: {receipts: [{shop: a, at: 2024-01-01T10:00:00Z, amount: 2.5, kind: x}]}
expect: [{shop: a, total: 2.5, since: 2024-01-01T05:00:00Z}]";
    let outcome = run(computed, &readable()).await.unwrap();
    assert!(outcome.passed(), "{outcome:?}");
    let history = "view: lifetime
interval: 2024-01-01/2024-01-02
given:
  history.revenue:
    - {shop: a, total: 1, interval_start: 2023-12-31T05:00:00Z}
    - {shop: a, total: 2, interval_start: 2023-12-30T05:00:00Z}
expect: [{shop: a, total: 3, since: 2023-12-30T05:00:00Z}]";
    let outcome = run(history, &readable()).await.unwrap();
    assert!(outcome.passed(), "{outcome:?}");
}

#[tokio::test]
async fn numbers_are_compared_by_the_digits_that_are_stored() {
    for (a, b, tolerance, equal) in [
        (json!(1.0), json!(1.000_000_000_1), DOUBLE_TOLERANCE, true),
        (json!(1.0), json!(1.000_000_01), DOUBLE_TOLERANCE, false),
        (json!(0.0), json!(1e-12), DOUBLE_TOLERANCE, false),
        (json!(9_007_199_254_740_993_i64), json!(9_007_199_254_740_992_i64), 0.0, false),
        (json!([1.0, null]), json!([1.000_000_000_1, null]), DOUBLE_TOLERANCE, true),
        (json!([1.0]), json!([1.0, 1.0]), DOUBLE_TOLERANCE, false),
        (json!("NaN"), json!("NaN"), DOUBLE_TOLERANCE, true),
        (json!(null), json!(0.0), DOUBLE_TOLERANCE, false),
    ] {
        assert_eq!(alike(&a, &b, tolerance), equal, "{a} {b}");
    }
    let nan = "view: revenue
interval: 2024-01-01/2024-01-02
given: {receipts: [{shop: a, at: 2024-01-01T10:00:00Z, amount: NaN}, {shop: b, at: 2024-01-01T10:00:00Z, amount: -Infinity}]}
expect: [{shop: a, total: NaN}, {shop: b, total: -Infinity}]";
    assert!(run(nan, &readable()).await.unwrap().passed());
}

#[tokio::test]
async fn a_query_that_fails_is_told() {
    let rows = "view: revenue\ninterval: 2024-01-01/2024-01-02\ngiven: {receipts: [{shop: a}]}\nexpect: []";
    let error = run(rows, &unreadable()).await.unwrap_err();
    assert!(format!("{error:#}").contains("No field named at"), "{error:#}");
}

#[test]
fn columns_and_values_are_looked_at_before_anything_runs() {
    let text = told(
        "view: revenue
interval: 2024-01-01/2024-01-02
given:
  receipts:
    - {shp: a, at: yesterday, amount: much, kind: 7}
    - {shp: b, at: today}
expect:
  - {shop: a, receipts: 1.5, last_on: 2024-01-01T00:00:00, amounts: 1.0}
  - {shop: true, amounts: [x]}",
    );
    insta::assert_snapshot!(text);
    let good = "view: revenue\ninterval: 2024-01-01/2024-01-02\ngiven: {receipts: []}\n\
                expect: [{shop: '1', receipts: 1, total: 1, amounts: [1, null, 0.5], last_on: 2024-01-01, kind: null}]";
    assert_eq!(told(good), "");
}

/// The view `revenue` with these checks, one a line.
fn checked(checks: &str) -> String {
    let checks: String = checks.lines().map(|line| format!("      - {}\n", line.trim())).collect();
    VIEWS.replacen("  - name: ranking\n", &format!("    checks:\n{checks}  - name: ranking\n"), 1)
}

/// What the checks say of the rows of `GIVEN`, whose sums are 0.3 of shop `a` and none of `b`.
async fn verdicts(checks: &str, expected: &str) -> Vec<String> {
    let (project, tests, _) = load_of(&checked(checks), &format!("{GIVEN}checks:\n{expected}"));
    let spill = tempfile::tempdir().unwrap();
    let engine = Engine::new(64 << 20, spill.path()).unwrap();
    let outcome = run_test(&engine, &project, &readable(), &tests[0]).await.unwrap();
    assert_eq!(outcome.passed(), outcome.checks.iter().all(CheckOutcome::passed), "{outcome:?}");
    let told = |check: &CheckOutcome| {
        let is = if check.passed() { "as expected" } else { "else" };
        format!("{}, {is}: {}: {}", check.check, check.verdict, check.message)
    };
    outcome.checks.iter().map(told).collect()
}

#[tokio::test]
async fn checks_are_judged_on_the_rows_that_come_out() {
    let told = verdicts(
        "not_null: {columns: [total]}
         not_null: {columns: [kind], where: shop = 'a'}
         range: {column: total, min: 0, max: 1}
         mean: {column: receipts, max: 1}
         row_count: {min: 3}
         sql: {query: SELECT shop FROM revenue WHERE receipts > 1}",
        "  not_null(total): failed
  not_null(kind): failed
  range(total): passed
  mean(receipts): failed
  row_count: failed
  sql: failed",
    );
    assert_eq!(
        told.await,
        [
            "not_null(total), as expected: failed: 1 of 2 rows has a null in total",
            "not_null(kind), else: passed: none of 1 rows where shop = 'a' has a null in kind",
            "range(total), as expected: passed: none of 2 rows has total outside 0 to 1",
            "mean(receipts), as expected: failed: the mean of receipts is 1.5, above 1",
            "row_count, as expected: failed: 2 rows, fewer than 3",
            "sql, as expected: failed: the query returned 1 row",
        ]
    );
}

#[tokio::test]
async fn rows_that_are_set_aside_are_seen_by_no_other_check() {
    let told = verdicts(
        "not_null: {columns: [total], on_fail: {quarantine: {max_rows: 1}}}
         sql: {query: SELECT shop FROM revenue WHERE total IS NULL}
         row_count: {max: 1}",
        "  not_null(total): quarantined
  sql: passed
  row_count: passed",
    );
    assert_eq!(
        told.await,
        [
            "not_null(total), as expected: quarantined: 1 of 2 rows has a null in total; set aside",
            "sql, as expected: passed: the query returned no row",
            "row_count, as expected: passed: 1 row, as expected",
        ]
    );
}

#[tokio::test]
async fn what_a_test_has_no_data_for_is_skipped() {
    let told = verdicts(
        "row_count: {min: 1, max_change: 0.5}
         row_count: {min: 3, max_change: 0.5, name: few}
         anomaly: {of: row_count}
         drift: {column: kind}
         referential: {columns: [shop], references: {source: receipts}}
         reconciliation: {of: count, equals: {source: receipts}}",
        "  row_count: skipped
  few: failed
  anomaly(row_count): skipped
  drift(kind): skipped
  referential(shop): passed
  reconciliation: skipped",
    );
    let earlier = "skipped: it compares with earlier intervals, which a test does not have";
    let other = "skipped: it compares with another table, which a test does not have";
    assert_eq!(
        told.await,
        [
            format!("row_count, as expected: {earlier}"),
            "few, as expected: failed: 2 rows, fewer than 3".to_owned(),
            format!("anomaly(row_count), as expected: {earlier}"),
            format!("drift(kind), as expected: {earlier}"),
            format!("referential(shop), else: {other}"),
            format!("reconciliation, as expected: {other}"),
        ]
    );
}
