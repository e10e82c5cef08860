use super::*;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int32Array, Int64Array, ListArray, StringArray,
    TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use tidegate_registry::definitions::{LoadOptions, load_files};
use tidegate_registry::model::{ColumnType, Edge, Feature, Metric, SqlText, Table, TextFormat, Total, Within};

use crate::session::new_context;

/// Microseconds of the interval's end.
const END: i64 = 1_357_603_200_000_000;

fn interval() -> Interval {
    Interval::new("2013-01-07T00:00:00Z".parse().unwrap(), "2013-01-08T00:00:00Z".parse().unwrap()).unwrap()
}

fn state() -> SessionState {
    new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default())).state()
}

fn check(name: &str, rule: Rule) -> Check {
    Check::new(name, rule)
}

fn view(features: &[(&str, &str)], checks: Vec<Check>) -> FeatureView {
    FeatureView {
        id: "delays@v1".parse().unwrap(),
        entity: "carrier".parse().unwrap(),
        owner: "ana".parse().unwrap(),
        description: String::new(),
        tags: Vec::new(),
        sql: SqlText { text: String::new(), origin: Default::default() },
        reads: Vec::new(),
        checked_against: Vec::new(),
        output: Output::Full,
        serving_delay: Default::default(),
        features: features
            .iter()
            .map(|(name, kind)| Feature {
                name: (*name).into(),
                kind: kind.parse().unwrap(),
                description: String::new(),
                default: None,
                tags: Vec::new(),
                origin: Default::default(),
            })
            .collect(),
        checks,
        online: None,
        freshness: None,
        restore_target: None,
        queue: None,
        pool: None,
        fingerprint: String::new(),
        origin: Default::default(),
    }
}

fn keys() -> Vec<Key> {
    vec![Key { name: "carrier".into(), kind: ColumnType::String }]
}

fn batch(carriers: &[&str], others: &[(&str, ArrayRef)]) -> RecordBatch {
    let carriers: ArrayRef = Arc::new(StringArray::from(carriers.to_vec()));
    let times = TimestampMicrosecondArray::from(vec![END; carriers.len()]).with_timezone("UTC");
    let fixed = [("carrier", carriers), (EVENT_TIMESTAMP, Arc::new(times) as ArrayRef)];
    let columns = fixed.into_iter().chain(others.iter().map(|(name, array)| (*name, Arc::clone(array))));
    RecordBatch::try_from_iter(columns).unwrap()
}

fn judge(view: &FeatureView, batches: &[RecordBatch]) -> Vec<CheckResult> {
    let mut runner = CheckRunner::new(view, &keys(), interval(), &state());
    for batch in batches {
        runner.update(batch);
    }
    runner.finish().0
}

fn lines(results: &[CheckResult]) -> Vec<String> {
    results.iter().map(|result| format!("{}: {}: {}", result.check, result.verdict, result.message)).collect()
}

#[test]
fn messages_say_numbers_and_samples_say_which() {
    let checks = vec![
        check("not_null(n)", Rule::NotNull { columns: vec!["n".into()] }),
        check("range(x)", Rule::Range { column: "x".into(), min: Some(-60.0), max: Some(600.0) }),
        check("accepted_values(n)", Rule::AcceptedValues { column: "n".into(), values: vec![json!(1), json!(2)] }),
    ];
    let view = view(&[("n", "bigint"), ("x", "double")], checks);
    let n: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3), Some(2)]));
    let x: ArrayRef = Arc::new(Float64Array::from(vec![Some(600.0), Some(f64::NAN), Some(-60.5), None]));
    let results = judge(&view, &[batch(&["AA", "B6", "DL", "UA"], &[("n", n), ("x", x)])]);
    assert_eq!(
        lines(&results),
        [
            "not_null(carrier) of every view: passed: none of 4 rows has a null in carrier",
            "unique(carrier) of every view: passed: none of 4 rows has an entity that an earlier row has",
            "event_timestamp of every view: passed: none of 4 rows has an event_timestamp that is null or after the \
             interval's end 2013-01-08T00:00:00Z",
            "not_null(n): failed: 1 of 4 rows has a null in n",
            "range(x): failed: 2 of 4 rows have x outside -60 to 600",
            "accepted_values(n): failed: 1 of 4 rows has a value in n that is none of 1, 2",
        ]
    );
    assert_eq!(results[3].samples, [json!({"carrier": "B6", "n": null})]);
    assert_eq!(results[4].samples, [json!({"carrier": "B6", "x": "NaN"}), json!({"carrier": "DL", "x": -60.5})]);
    assert_eq!((results[5].failing_rows, results[5].samples.len()), (1, 1));
    assert!(results[3].blocks() && !results[0].blocks());
}

#[test]
fn an_entity_twice_is_found_across_the_border_of_two_batches() {
    let view = view(&[], vec![]);
    let results = judge(&view, &[batch(&["AA", "B6"], &[]), batch(&[], &[]), batch(&["B6", "B6", "DL"], &[])]);
    assert_eq!(results[1].verdict, Verdict::Failed);
    assert_eq!(results[1].message, "2 of 5 rows have an entity that an earlier row has");
    assert_eq!(results[1].samples, [json!({"carrier": "B6"}), json!({"carrier": "B6"})]);
}

#[test]
fn unsorted_rows_are_an_error_since_they_could_hide_a_duplicate() {
    let results = judge(&view(&[], vec![]), &[batch(&["B6", "AA"], &[]), batch(&["B6"], &[])]);
    assert_eq!(results[1].verdict, Verdict::Error);
    assert_eq!(results[1].message, "could not be computed: rows are not sorted by carrier");
    assert!(results[1].blocks());
}

#[test]
fn of_a_partial_view_an_entity_may_come_at_several_times() {
    let mut view = view(&[], vec![]);
    view.output = Output::Partial { ttl: std::time::Duration::from_secs(60) };
    let carriers: ArrayRef = Arc::new(StringArray::from(vec![Some("AA"), Some("AA"), Some("AA"), Some("B6"), None]));
    let times = TimestampMicrosecondArray::from(vec![Some(END - 1), Some(END), Some(END), Some(END + 1), None]);
    let times: ArrayRef = Arc::new(times.with_timezone("UTC"));
    let rows = RecordBatch::try_from_iter([("carrier", carriers), (EVENT_TIMESTAMP, times)]).unwrap();
    let results = judge(&view, &[rows]);
    assert_eq!(
        lines(&results),
        [
            "not_null(carrier) of every view: failed: 1 of 5 rows has a null in carrier",
            "unique(carrier, event_timestamp) of every view: failed: 1 of 5 rows has an entity and event_timestamp that \
             an earlier row has",
            "event_timestamp of every view: failed: 2 of 5 rows have an event_timestamp that is null or after the \
             interval's end 2013-01-08T00:00:00Z",
        ]
    );
    let after = json!({"carrier": "B6", "event_timestamp": "2013-01-08T00:00:00.000001Z"});
    assert_eq!(results[2].samples[0]["event_timestamp"], after["event_timestamp"]);
}

#[test]
fn unique_takes_nulls_as_equal_and_columns_apart() {
    let columns = vec!["a".to_owned(), "b".to_owned()];
    let view = view(&[("a", "string"), ("b", "string")], vec![check("unique(a, b)", Rule::Unique { columns })]);
    let a: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), Some("xy"), None, None, Some("")]));
    let b: ArrayRef = Arc::new(StringArray::from(vec![Some("yz"), Some("z"), Some("q"), Some("q"), Some("q")]));
    let results = judge(&view, &[batch(&["A", "B", "C", "D", "E"], &[("a", a), ("b", b)])]);
    assert_eq!(results[3].message, "1 of 5 rows has values in a, b that an earlier row has");
    assert_eq!(results[3].samples, [json!({"carrier": "D", "a": null, "b": "q"})]);
}

#[test]
fn what_cannot_be_computed_blocks() {
    let checks = vec![
        check("range(t)", Rule::Range { column: "t".into(), min: Some(0.0), max: None }),
        check("not_null(gone)", Rule::NotNull { columns: vec!["gone".into()] }),
    ];
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let results = judge(&view(&[("t", "string")], checks), &[batch(&["A"], &[("t", texts)])]);
    assert_eq!(
        lines(&results)[3..],
        [
            "range(t): error: could not be computed: column `t` is a string, not a number",
            "not_null(gone): error: could not be computed: the rows have no column `gone`",
        ]
    );
    assert!(results[3].blocks() && results[4].blocks());
}

#[test]
fn no_rows_pass_what_looks_at_rows() {
    let rules = vec![
        check("row_count", Rule::RowCount { min: Some(1), max: None, max_change: None, season: None }),
        check("row_count 2", Rule::RowCount { min: None, max: None, max_change: Some(0.1), season: None }),
    ];
    let results = judge(&view(&[], rules), &[]);
    assert_eq!(
        lines(&results)[2..],
        [
            "event_timestamp of every view: passed: there are no rows",
            "row_count: failed: 0 rows, fewer than 1",
            "row_count 2: pending: 0 rows, to be compared with the interval before",
        ]
    );
}

fn sql(text: &str) -> SqlText {
    SqlText { text: text.to_owned(), origin: Default::default() }
}

/// Three texts and a null: `AA-1`, empty, `é`.
fn texts() -> RecordBatch {
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("AA-1"), Some(""), None, Some("é")]));
    batch(&["A", "B", "C", "D"], &[("t", texts)])
}

fn judge_texts(check: Check) -> CheckResult {
    judge(&view(&[("t", "string")], vec![check]), &[texts()]).remove(3)
}

#[test]
fn patterns_match_anywhere_unless_tied() {
    let said = |pattern: &str| {
        let rule = Rule::Regex { column: "t".into(), pattern: pattern.into() };
        lines(&[judge_texts(check("r", rule))]).remove(0)
    };
    assert_eq!(
        said("^[A-Z]{2}-[0-9]$"),
        "r: failed: 2 of 4 rows have a text in t that does not match `^[A-Z]{2}-[0-9]$`"
    );
    assert_eq!(said("-"), "r: failed: 2 of 4 rows have a text in t that does not match `-`");
    assert_eq!(said(".*"), "r: passed: none of 4 rows has a text in t that does not match `.*`");
    assert!(said("(").starts_with("r: error: could not be computed: "));
}

#[test]
fn formats_are_those_of_their_standards() {
    let said = |format, good: &str, bad: &str| {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some(good), None, Some(bad), Some("")]));
        let view = view(&[("t", "string")], vec![check("f", Rule::Format { column: "t".into(), format })]);
        lines(&[judge(&view, &[batch(&["A", "B", "C", "D"], &[("t", texts)])]).remove(3)]).remove(0)
    };
    let uuid = "01890a5d-ac96-774b-bcce-b302099a8057";
    let found = |what: &str| format!("f: failed: 2 of 4 rows have a text in t that is not {what}");
    assert_eq!(said(TextFormat::Uuid, uuid, &uuid[1..]), found("a UUID"));
    assert_eq!(said(TextFormat::Email, "ana@example.com", "ana@"), found("an e-mail address"));
    assert_eq!(said(TextFormat::IsoDate, "2012-02-29", "2013-02-29"), found("a day"));
    assert_eq!(said(TextFormat::IsoTimestamp, "2013-01-08T07:15:00Z", "2013-01-08"), found("an instant"));
}

#[test]
fn lengths_count_characters() {
    let said = |min, max| lines(&[judge_texts(check("l", Rule::Length { column: "t".into(), min, max }))]).remove(0);
    assert_eq!(said(Some(1), Some(4)), "l: failed: 1 of 4 rows has a text in t that has not 1 to 4 characters");
    assert_eq!(said(Some(2), None), "l: failed: 2 of 4 rows have a text in t that has fewer than 2 characters");
    assert_eq!(said(None, Some(3)), "l: failed: 1 of 4 rows has a text in t that has more than 3 characters");
    assert_eq!(said(None, Some(4)), "l: passed: none of 4 rows has a text in t that has more than 4 characters");
}

#[test]
fn times_are_as_old_as_they_may_be_at_an_edge_of_the_interval() {
    const HOUR: i64 = 3_600_000_000;
    let hours = |hours: u64| Some(std::time::Duration::from_secs(hours * 3_600));
    let said = |times: &[Option<i64>], at, min_age, max_age| {
        let carriers: Vec<&str> = ["A", "B", "C", "D"][..times.len()].to_vec();
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC"));
        let rule = Rule::EventTime { column: "t".into(), at, min_age, max_age };
        let view = view(&[("t", "timestamp")], vec![check("c", rule)]);
        lines(&[judge(&view, &[batch(&carriers, &[("t", times)])]).remove(3)]).remove(0)
    };
    let times = [Some(END), Some(END - HOUR), Some(END - 25 * HOUR), None];
    assert_eq!(
        said(&times, Edge::End, hours(1), hours(24)),
        "c: failed: 2 of 4 rows have t that is not 1h to 1d before the interval's end 2013-01-08T00:00:00Z"
    );
    assert_eq!(
        said(&times, Edge::End, hours(0), hours(25)),
        "c: passed: none of 4 rows has t that is not 0s to 25h before the interval's end 2013-01-08T00:00:00Z",
    );
    assert_eq!(
        said(&[Some(END + 1), Some(END)], Edge::End, hours(0), None),
        "c: failed: 1 of 2 rows has t after the interval's end 2013-01-08T00:00:00Z"
    );
    assert_eq!(
        said(&times, Edge::Start, None, hours(0)),
        "c: failed: 1 of 4 rows has t earlier than 0s before the interval's start 2013-01-07T00:00:00Z"
    );
    assert_eq!(
        said(&times, Edge::End, hours(2), None),
        "c: failed: 2 of 4 rows have t later than 2h before the interval's end 2013-01-08T00:00:00Z"
    );
    assert!(said(&[None, None], Edge::End, hours(2), None).starts_with("c: passed: none of 2 rows"));
    assert_eq!(said(&[], Edge::End, hours(2), None), "c: passed: there are no rows");
}

#[test]
fn days_begin_in_utc_and_only_times_have_an_age() {
    let said = |name: &str, kind: &str, values: ArrayRef| {
        let day = Some(std::time::Duration::from_secs(86_400));
        let rule = Rule::EventTime { column: name.into(), at: Edge::End, min_age: None, max_age: day };
        let view = view(&[(name, kind)], vec![check("c", rule)]);
        lines(&[judge(&view, &[batch(&["A", "B"], &[(name, values)])]).remove(3)]).remove(0)
    };
    let days = Arc::new(Date32Array::from(vec![15_712, 15_711])); // 2013-01-07, and the day before
    assert_eq!(
        said("d", "date", days),
        "c: failed: 1 of 2 rows has d earlier than 1d before the interval's end 2013-01-08T00:00:00Z"
    );
    let texts = Arc::new(StringArray::from(vec!["2013-01-07", "x"]));
    assert_eq!(said("s", "string", texts), "c: error: could not be computed: column `s` is a string, not a time");
}

#[test]
fn a_condition_fails_rows_for_which_it_is_false_and_not_those_for_which_it_is_null() {
    let said =
        |condition: &str| lines(&[judge_texts(check("e", Rule::Expression { condition: sql(condition) }))]).remove(0);
    assert_eq!(said("length(t) > 0"), "e: failed: 1 of 4 rows has something else than `length(t) > 0`");
    assert_eq!(said("t IS NOT NULL"), "e: failed: 1 of 4 rows has something else than `t IS NOT NULL`");
    assert_eq!(
        said("event_timestamp\n <= $interval_end"),
        "e: passed: none of 4 rows has something else than `event_timestamp <= $interval_end`"
    );
    assert_eq!(said("NULL"), "e: passed: none of 4 rows has something else than `NULL`");
    for broken in [
        "gone > 1",
        "length(t)",
        "t = 'a'; DROP TABLE t",
        "t IN (SELECT t FROM other)",
        "max(t) = 'a'",
        "1 / (length(t) - length(t)) = 1",
        "$other",
    ] {
        let verdict = judge_texts(check("e", Rule::Expression { condition: sql(broken) }));
        assert_eq!(verdict.verdict, Verdict::Error, "{broken}: {}", verdict.message);
        assert!(verdict.blocks());
    }
}

#[test]
fn a_check_looks_only_at_rows_where_its_condition_is_true() {
    let not_null = || Rule::NotNull { columns: vec!["t".into()] };
    let said =
        |filter: &str| lines(&[judge_texts(Check { filter: Some(sql(filter)), ..check("n", not_null()) })]).remove(0);
    assert_eq!(said("carrier <> 'C'"), "n: passed: none of 3 rows where carrier <> 'C' has a null in t");
    assert_eq!(said("carrier >= 'B'"), "n: failed: 1 of 3 rows where carrier >= 'B' has a null in t");
    assert_eq!(said("t = 'x'"), "n: passed: there are no rows where t = 'x'");
    assert!(said("gone = 1").starts_with("n: error: could not be computed: `gone = 1`: "));
}

#[test]
fn what_is_tolerated_passes_and_is_told() {
    let said = |tolerance| {
        let not_empty = Rule::Length { column: "t".into(), min: Some(1), max: None };
        let result = judge_texts(Check { tolerance: Some(tolerance), ..check("l", not_empty) });
        assert_eq!((result.failing_rows, result.samples.len()), (1, 1));
        lines(&[result]).remove(0)
    };
    let found = "1 of 4 rows has a text in t that has fewer than 1 characters";
    assert_eq!(said(Tolerance::Rows(1)), format!("l: passed: {found}; 1 is tolerated"));
    assert_eq!(said(Tolerance::Rows(0)), format!("l: failed: {found}; 0 are tolerated"));
    assert_eq!(said(Tolerance::Ratio(0.25)), format!("l: passed: {found}; 25 % are tolerated"));
    assert_eq!(said(Tolerance::Ratio(0.249)), format!("l: failed: {found}; 24.9 % are tolerated"));
}

#[test]
fn numbers_of_a_run_are_held_to_bounds() {
    let said = |metric: Metric, min, max| {
        let x: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.0), Some(3.0), None, Some(f64::NAN)]));
        let b: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]));
        let nothing: ArrayRef = Arc::new(Float64Array::from(vec![None::<f64>; 4]));
        let view = view(
            &[("x", "double"), ("b", "boolean"), ("nothing", "double")],
            vec![check("c", Rule::Bounds { metric, min, max })],
        );
        let rows = batch(&["A", "B", "C", "D"], &[("x", x), ("b", b), ("nothing", nothing)]);
        lines(&[judge(&view, &[rows]).remove(3)]).remove(0)
    };
    let x = || "x".to_owned();
    assert_eq!(said(Metric::Mean(x()), Some(2.0), Some(2.0)), "c: passed: the mean of x is 2, as expected");
    assert_eq!(said(Metric::Sum(x()), Some(4.5), None), "c: failed: the sum of x is 4, below 4.5");
    assert_eq!(
        said(Metric::Stddev(x()), None, Some(1.4)),
        "c: failed: the standard deviation of x is 1.41421, above 1.4"
    );
    assert_eq!(said(Metric::NullRate(x()), None, Some(0.2)), "c: failed: the share of nulls in x is 0.25, above 0.2");
    assert_eq!(
        said(Metric::DistinctCount(x()), Some(2.0), Some(2.0)),
        "c: passed: the number of different values of x is 2, as expected"
    );
    assert_eq!(
        said(Metric::Quantile { column: x(), rank: 1.0 }, None, Some(2.5)),
        "c: failed: the quantile 1 of x is 3, above 2.5"
    );
    assert_eq!(said(Metric::RowCount, Some(5.0), None), "c: failed: the number of rows is 4, below 5");
    assert_eq!(
        said(Metric::TrueRatio("b".into()), Some(0.7), None),
        "c: failed: the share of true in b is 0.666667, below 0.7"
    );
    assert_eq!(
        said(Metric::Mean("nothing".into()), Some(0.0), None),
        "c: skipped: no row has a value to take the mean of nothing from"
    );
}

#[test]
fn at_most_five_samples_are_kept() {
    let view = view(&[("n", "bigint")], vec![check("c", Rule::NotNull { columns: vec!["n".into()] })]);
    let nulls: ArrayRef = Arc::new(Int64Array::from(vec![None::<i64>; 4]));
    let (first, second) = (["A", "B", "C", "D"], ["E", "F", "G", "H"]);
    let results = judge(&view, &[batch(&first, &[("n", Arc::clone(&nulls))]), batch(&second, &[("n", nulls)])]);
    assert_eq!((results[3].failing_rows, results[3].samples.len()), (8, SAMPLES_MAX));
}

#[test]
fn profiles_know_nulls_and_extremes() {
    let view = view(&[("n", "bigint"), ("x", "double"), ("b", "boolean"), ("l", "array<bigint>")], vec![]);
    let mut runner = CheckRunner::new(&view, &keys(), interval(), &state());
    for (carriers, n, x) in
        [(["AA", "B6"], [None, Some(7)], [0.5, -1.0]), (["DL", "UA"], [Some(-3), None], [2.0, 1e20])]
    {
        let n: ArrayRef = Arc::new(Int64Array::from(n.to_vec()));
        let x: ArrayRef = Arc::new(Float64Array::from(x.to_vec()));
        let b: ArrayRef = Arc::new(BooleanArray::from(vec![None::<bool>; 2]));
        let l: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(1)]), None]));
        runner.update(&batch(&carriers, &[("n", n), ("x", x), ("b", b), ("l", l)]));
    }
    let (_, profile, rows) = runner.finish();
    let shown: Vec<_> = profile
        .iter()
        .map(|(name, p)| {
            format!("{name} {} {} {}", p.nulls, p.min.as_deref().unwrap_or("-"), p.max.as_deref().unwrap_or("-"))
        })
        .collect();
    assert_eq!(rows, 4);
    assert_eq!(
        shown,
        [
            "carrier 0 AA UA",
            "event_timestamp 0 2013-01-08T00:00:00Z 2013-01-08T00:00:00Z",
            "n 2 -3 7",
            "x 0 -1.0 1e20",
            "b 4 - -",
            "l 2 - -",
        ]
    );
}

#[tokio::test]
async fn queries_return_the_offending_rows() {
    let ctx = new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default()));
    let n: ArrayRef = Arc::new(Int64Array::from(vec![-1, 5, -2]));
    let staged = batch(&["AA", "B6", "DL"], &[("n", n)]);
    ctx.register_table("delays", Arc::new(MemTable::try_new(staged.schema(), vec![vec![staged]]).unwrap())).unwrap();
    let run = async |sql: &str| {
        let query = SqlText { text: sql.to_owned(), origin: Default::default() };
        run_sql_check(&ctx, &check("sql", Rule::Sql { query }), interval(), 3).await
    };
    let failed =
        run("SELECT carrier, n FROM delays WHERE n < 0 AND event_timestamp <= $interval_end ORDER BY carrier").await;
    assert_eq!(lines(std::slice::from_ref(&failed)), ["sql: failed: the query returned 2 rows"]);
    assert_eq!(failed.samples, [json!({"carrier": "AA", "n": -1}), json!({"carrier": "DL", "n": -2})]);
    assert_eq!(lines(&[run("SELECT 1 FROM delays WHERE n > 9").await]), ["sql: passed: the query returned no row"]);
    let broken = run("SELECT gone FROM delays").await;
    assert_eq!(broken.verdict, Verdict::Error);
    let at_run_time = run("SELECT CAST(carrier AS BIGINT) FROM delays").await;
    assert_eq!(at_run_time.verdict, Verdict::Error, "{at_run_time:?}");
}

/// Judges `batches`, with other tables beside them.
async fn judge_with(view: &FeatureView, batches: &[RecordBatch], others: &[(&str, RecordBatch)]) -> Vec<CheckResult> {
    let ctx = new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default()));
    let tables = others.iter().map(|(name, rows)| {
        let table: Arc<dyn TableProvider> =
            Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows.clone()]]).unwrap());
        (Table::Source(name.parse().unwrap()), table)
    });
    let rows = batches.first().map_or_else(|| batch(&[], &[]).schema(), RecordBatch::schema);
    let others = read_others(&ctx, view, &rows, interval(), &tables.collect()).await.unwrap();
    let mut runner = CheckRunner::new(view, &keys(), interval(), &state()).compare_with(others);
    batches.iter().for_each(|batch| runner.update(batch));
    runner.finish().0
}

#[tokio::test]
async fn values_must_occur_in_the_other_table_and_nulls_need_not() {
    let texts = |texts: &[Option<&str>]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
    let numbers = |numbers: &[Option<i32>]| Arc::new(Int32Array::from(numbers.to_vec())) as ArrayRef;
    let said = async |carriers: &[&str], a: &[Option<&str>], n: &[Option<i32>], tolerance, by: &[&str]| {
        let rule = Rule::Referential {
            columns: vec!["a".into(), "n".into()],
            table: Table::Source("known".parse().unwrap()),
            references: vec!["x".into(), "y".into()],
        };
        let group_by = by.iter().map(|name| (*name).to_owned()).collect();
        let view = view(&[("a", "string"), ("n", "integer")], vec![Check { tolerance, group_by, ..check("r", rule) }]);
        // other types there: numbers as wide ones, and texts that are no number
        let x = texts(&[Some("p"), Some("q"), None, Some("r")]);
        let y: ArrayRef = Arc::new(StringArray::from(vec!["1", "2", "3", "three"]));
        let known = RecordBatch::try_from_iter([("x", x), ("y", y)]).unwrap();
        let rows = batch(carriers, &[("a", texts(a)), ("n", numbers(n))]);
        judge_with(&view, &[rows], &[("known", known)]).await.remove(3)
    };
    let carriers = ["A", "B", "C", "D"];
    let a = [Some("p"), Some("p"), None, Some("r")];
    let n = [Some(1), Some(2), Some(9), None];
    let failed = said(&carriers, &a, &n, None, &[]).await;
    assert_eq!(
        lines(std::slice::from_ref(&failed)),
        ["r: failed: 1 of 4 rows has a value in a, n that is none in x, y of source known"]
    );
    assert_eq!(failed.samples, [json!({"carrier": "B", "a": "p", "n": 2})], "p occurs, and 2 does, but not together");
    let passed = said(&carriers, &a, &n, Some(Tolerance::Rows(1)), &[]).await;
    assert_eq!(passed.verdict, Verdict::Passed);
    let in_groups = said(&carriers, &a, &n, Some(Tolerance::Ratio(0.3)), &["a"]).await;
    assert_eq!(
        lines(&[in_groups]),
        [
            "r: failed: 1 of 4 rows has a value in a, n that is none in x, y of source known; 1 of 3 groups of a has more \
          than the tolerated 30 %; worst: \"p\" 1 of 2"
        ]
    );
    let nulls = said(&["A"], &[None], &[None], None, &[]).await;
    assert_eq!(lines(&[nulls]), ["r: passed: none of 1 rows has a value in a, n that is none in x, y of source known"]);
    assert_eq!(lines(&[said(&[], &[], &[], None, &[]).await]), ["r: passed: there are no rows"]);
}

#[tokio::test]
async fn a_table_that_was_not_read_blocks_even_without_a_row() {
    let table = || Table::Source("known".parse().unwrap());
    let (total, other) = (Total::Count(None), Total::Count(None));
    let checks = vec![
        check("r", Rule::Referential { columns: vec!["a".into()], table: table(), references: vec!["x".into()] }),
        check(
            "e",
            Rule::Reconciliation { total, table: table(), other, other_filter: None, within: Within::Value(0.0) },
        ),
    ];
    let results = judge(&view(&[("a", "string")], checks), &[]);
    assert_eq!(
        lines(&results)[3..],
        [
            "r: error: could not be computed: the other table was not read",
            "e: error: could not be computed: the other table was not read",
        ]
    );
    assert!(results[3].blocks() && results[4].blocks());
}

#[tokio::test]
async fn values_that_do_not_fit_into_memory_are_an_error_of_the_check() {
    let pool = Arc::new(GreedyMemoryPool::new(1 << 20));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
    let ctx = new_context(SessionConfig::new(), runtime);
    let n: ArrayRef = Arc::new(Int64Array::from_iter_values(0..200_000));
    let known = RecordBatch::try_from_iter([("n", n)]).unwrap();
    let known: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(known.schema(), vec![vec![known]]).unwrap());
    let table = Table::Source("known".parse().unwrap());
    let rule = Rule::Referential { columns: vec!["n".into()], table: table.clone(), references: vec!["n".into()] };
    let view = view(&[("n", "bigint")], vec![check("r", rule)]);
    let n: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let rows = batch(&["A"], &[("n", n)]);
    let tables = [(table, known)].into_iter().collect();
    let others = read_others(&ctx, &view, &rows.schema(), interval(), &tables).await.unwrap();
    let mut runner = CheckRunner::new(&view, &keys(), interval(), &state()).compare_with(others);
    runner.update(&rows);
    assert_eq!(
        lines(&runner.finish().0)[3..],
        ["r: error: could not be computed: more than 65536 different values do not fit into `memory:`; write a `sql` \
             check instead"]
    );
}

#[tokio::test]
async fn totals_must_be_equal_within_a_distance() {
    let doubles = |values: &[Option<f64>]| Arc::new(Float64Array::from(values.to_vec())) as ArrayRef;
    let (sum, count) = (|name: &str| Total::Sum(name.into()), || Total::Count(None));
    let said =
        async |x: &[Option<f64>], total: Total, filter: Option<&str>, other, other_filter: Option<&str>, within| {
            let table = Table::Source("known".parse().unwrap());
            let rule = Rule::Reconciliation { total, table, other, other_filter: other_filter.map(sql), within };
            let check = Check { filter: filter.map(sql), ..check("e", rule) };
            let y: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), None, Some(4)]));
            let known = RecordBatch::try_from_iter([("y", y)]).unwrap();
            let carriers: Vec<&str> = ["A", "B", "C"][..x.len()].to_vec();
            let rows = batch(&carriers, &[("x", doubles(x))]);
            let view = view(&[("x", "double")], vec![check]);
            lines(&[judge_with(&view, &[rows], &[("known", known)]).await.remove(3)]).remove(0)
        };
    let x = [Some(3.5), Some(3.5), None];
    let exact = Within::Ratio(1e-9);
    assert_eq!(
        said(&x, sum("x"), None, sum("y"), None, exact).await,
        "e: passed: the sum of x is 7, the sum of y of source known is 7"
    );
    assert_eq!(
        said(&x, sum("x"), Some("carrier = 'A'"), sum("y"), None, exact).await,
        "e: failed: the sum of x is 3.5, the sum of y of source known is 7: they are not equal"
    );
    assert_eq!(
        said(&x, sum("x"), None, sum("y"), Some("y > 1"), Within::Value(1.0)).await,
        "e: passed: the sum of x is 7, the sum of y of source known is 6: no more than 1 apart"
    );
    assert_eq!(
        said(&x, sum("x"), None, sum("y"), Some("y > 1"), Within::Ratio(0.1)).await,
        "e: failed: the sum of x is 7, the sum of y of source known is 6: more than 10 % apart"
    );
    assert_eq!(
        said(&x, count(), None, Total::Count(Some("y".into())), None, Within::Value(0.0)).await,
        "e: passed: the number of rows is 3, the number of values of y of source known is 3"
    );
    assert_eq!(
        said(&[], sum("x"), None, sum("y"), Some("y > 9"), exact).await,
        "e: passed: the sum of x is 0, the sum of y of source known is 0"
    );
    assert_eq!(
        said(&[None], count(), None, count(), None, Within::Value(2.0)).await,
        "e: failed: the number of rows is 1, the number of rows of source known is 4: more than 2 apart"
    );
    let nan = said(&[Some(f64::NAN)], sum("x"), None, sum("y"), None, Within::Value(1e300)).await;
    assert!(nan.starts_with("e: failed: the sum of x is NaN, the sum of y of source known is 7: "), "{nan}");
    assert!(said(&x, sum("gone"), None, sum("y"), None, exact).await.starts_with("e: error: could not be computed: "));
    let gone = said(&x, sum("x"), None, sum("gone"), None, exact).await;
    assert_eq!(gone, "e: error: could not be computed: it has no column `gone`");
    let filter = said(&x, sum("x"), None, sum("y"), Some("gone > 1"), exact).await;
    assert!(filter.starts_with("e: error: could not be computed: "), "{filter}");
}

/// Every example on the page about checks is judged: rows that pass what needs no history.
#[tokio::test]
async fn the_examples_on_the_page_hold_for_good_rows() {
    let page = include_str!("../../../docs/checks.md");
    let examples: Vec<&str> = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let indented = |text: &str, by: &str| text.lines().map(|line| format!("{by}{line}\n")).collect::<String>();
    let features = examples.iter().find(|example| example.starts_with("features:")).unwrap();
    let checks: String = examples
        .iter()
        .filter(|example| example.starts_with("- "))
        .map(|example| indented(example, "      "))
        .collect();
    let text = format!(
        "owners: [{{name: ana, primary: ana@example.com}}]\n\
         entities: [{{name: carrier, keys: [{{name: carrier, type: string}}]}}]\n\
         sources: [{{name: flights, parquet: flights.parquet}}, {{name: airlines, csv: airlines.csv}}]\n\
         feature_views:\n  - name: carrier_delays\n    entity: carrier\n    owner: ana\n    description: x\n    \
         sql: SELECT * FROM flights\n{}    checks:\n{checks}",
        indented(features, "    ")
    );
    let files = [("tidegate.yaml", &b"project: flights\n"[..]), ("views.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    let project = loaded.project.unwrap();
    let view = project.views.values().next().unwrap();
    assert_eq!(view.checks.len(), examples.iter().filter(|example| example.starts_with("- ")).count());

    let doubles = |values: &[f64]| Arc::new(Float64Array::from(values.to_vec())) as ArrayRef;
    let texts = |values: [&str; 6]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let rows = batch(
        &["AA", "AS", "B6", "DL", "UA", "WN"],
        &[
            ("avg_dep_delay_7d", doubles(&[-2.0, 1.5, 12.0, 8.0, 30.0, 17.0])),
            ("worst_dep_delay_7d", doubles(&[10.0, 40.0, 300.0, 120.0, 600.0, 90.0])),
            ("flights_7d", Arc::new(Int64Array::from(vec![600, 14, 1000, 900, 1100, 200]))),
            ("tailnum", texts(["N1", "N402AS", "N566JB", "N3760C", "N14228", "N253WN"])),
            ("alliance", texts(["oneworld", "oneworld", "SkyTeam", "SkyTeam", "Star Alliance", "SkyTeam"])),
            ("contact", texts(["a@a.com", "b@b.com", "c@c.com", "d@d.com", "u@u.com", "w@w.com"])),
            ("is_low_cost", Arc::new(BooleanArray::from(vec![false, false, true, false, false, true]))),
        ],
    );
    let flights = batch(&[], &[]).slice(0, 0);
    let flights = RecordBatch::try_new(
        flights.schema(),
        vec![
            Arc::new(StringArray::from(vec!["x"; 3_814])) as ArrayRef,
            Arc::new(TimestampMicrosecondArray::from(vec![END; 3_814]).with_timezone("UTC")),
        ],
    );
    let codes: ArrayRef = Arc::new(StringArray::from(vec!["AA", "AS", "B6", "DL", "UA", "WN", "HA"]));
    let airlines = RecordBatch::try_from_iter([("code", codes)]);
    let others = [("airlines", airlines.unwrap()), ("flights", flights.unwrap())];
    for result in judge_with(view, &[rows], &others).await {
        let waits = result.verdict == Verdict::Pending;
        assert!(result.verdict == Verdict::Passed || waits, "{}: {}", result.check, result.message);
        let of_history = ["anomaly", "monotonic", "drift", "row_count", "sql"];
        assert_eq!(waits, of_history.iter().any(|kind| result.check.starts_with(kind)));
    }
}
