//! What each kind of rule takes out of the stream, and what it leaves there.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array, StringArray, TimestampMicrosecondArray};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionConfig;
use tidegate_registry::model::{Budget, Check, ColumnType, Edge, FeatureView, Output, Rule, SqlText, TextFormat};
use tidegate_registry::run::Verdict;

use super::*;
use crate::session::new_context;
use crate::types::EVENT_TIMESTAMP;

/// Microseconds of the interval's end.
const END: i64 = 1_357_603_200_000_000;

fn view(checks: Vec<Check>) -> FeatureView {
    FeatureView {
        id: "delays@v1".parse().unwrap(),
        entity: "carrier".parse().unwrap(),
        owner: "ana".parse().unwrap(),
        description: String::new(),
        tags: Vec::new(),
        sql: sql(""),
        reads: Vec::new(),
        checked_against: Vec::new(),
        output: Output::Full,
        serving_delay: Default::default(),
        features: Vec::new(),
        checks,
        online: None,
        freshness: None,
        queue: None,
        pool: None,
        fingerprint: String::new(),
        origin: Default::default(),
    }
}

fn sql(text: &str) -> SqlText {
    SqlText { text: text.to_owned(), origin: Default::default() }
}

fn setting_aside(name: &str, rule: Rule) -> Check {
    let budget = Budget { max_rows: Some(100), max_ratio: None };
    Check { quarantine: Some(budget), ..Check::new(name, rule) }
}

fn diverter(checks: Vec<Check>) -> Diverter {
    let interval = Interval::new("2013-01-07T00:00:00Z".parse().unwrap(), "2013-01-08T00:00:00Z".parse().unwrap());
    let state = new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default())).state();
    let keys = [Key { name: "carrier".into(), kind: ColumnType::String }];
    Diverter::new(&view(checks), &keys, interval.unwrap(), &state).expect("it sets rows aside")
}

/// Rows `A`, `B`, … with texts, numbers and times.
fn batch(texts: &[Option<&str>], numbers: &[Option<f64>]) -> RecordBatch {
    let carriers: StringArray = (0..texts.len()).map(|row| Some(char::from(b'A' + row as u8).to_string())).collect();
    let ages = (0..texts.len()).map(|row| (row > 0).then_some(END - row as i64 * 3_600_000_000));
    let times = ages.collect::<TimestampMicrosecondArray>().with_timezone("UTC");
    let at = TimestampMicrosecondArray::from(vec![END; texts.len()]).with_timezone("UTC");
    RecordBatch::try_from_iter([
        ("carrier", Arc::new(carriers) as ArrayRef),
        (EVENT_TIMESTAMP, Arc::new(at)),
        ("t", Arc::new(StringArray::from(texts.to_vec()))),
        ("x", Arc::new(Float64Array::from(numbers.to_vec()))),
        ("at", Arc::new(times)),
    ])
    .unwrap()
}

/// A null and a NaN are among the values.
fn rows() -> RecordBatch {
    let texts = [Some("2013-01-07"), None, Some(""), Some("x"), Some("2013-01-08")];
    batch(&texts, &[Some(1.0), Some(f64::NAN), None, Some(-1.0), Some(5.0)])
}

fn named(batch: &RecordBatch, column: &str) -> String {
    let values = batch.column_by_name(column).unwrap();
    values.as_string::<i32>().iter().map(|value| value.unwrap_or("null")).collect::<Vec<_>>().join(",")
}

/// Which rows are kept and set aside, and the verdict.
fn split(checks: Vec<Check>, batch: &RecordBatch) -> (String, String, CheckResult) {
    let mut diverter = diverter(checks);
    let split = diverter.split(batch).unwrap();
    let aside = split.aside.map(|aside| named(&aside, "carrier")).unwrap_or_default();
    (named(&split.kept, "carrier"), aside, diverter.finish().remove(0))
}

#[test]
fn every_kind_of_rule_about_rows_takes_out_what_it_would_count() {
    let column = || "t".to_owned();
    let hours = |hours: u64| Some(std::time::Duration::from_secs(hours * 3_600));
    let rules = [
        (Rule::NotNull { columns: vec![column(), "x".to_owned()] }, "A,D,E", "B,C"),
        (Rule::Range { column: "x".into(), min: Some(0.0), max: Some(4.0) }, "A,C", "B,D,E"),
        (Rule::AcceptedValues { column: column(), values: vec!["x".into()] }, "B,D", "A,C,E"),
        (Rule::Regex { column: column(), pattern: "^2013".into() }, "A,B,E", "C,D"),
        (Rule::Format { column: column(), format: TextFormat::IsoDate }, "A,B,E", "C,D"),
        (Rule::Length { column: column(), min: Some(1), max: Some(9) }, "B,D", "A,C,E"),
        (Rule::EventTime { column: "at".into(), at: Edge::End, min_age: hours(2), max_age: hours(3) }, "A,C,D", "B,E"),
        // Null passes, as everywhere; NaN is greater than any number in SQL.
        (Rule::Expression { condition: sql("x <= 4") }, "A,C,D", "B,E"),
    ];
    for (rule, kept, aside) in rules {
        let kind = format!("{rule:?}");
        let result = split(vec![setting_aside("r", rule.clone())], &rows());
        assert_eq!((result.0.as_str(), result.1.as_str()), (kept, aside), "{kind}");
        assert_eq!(result.2.verdict, Verdict::Quarantined, "{kind}: {}", result.2.message);
        assert_eq!(result.2.failing_rows, aside.split(',').count() as u64);
        assert!(!result.2.blocks());
        let good = rows().slice(0, 0);
        let result = split(vec![setting_aside("r", rule)], &good);
        assert_eq!((result.0.as_str(), result.1.as_str()), ("", ""), "{kind}");
        assert_eq!((result.2.verdict, result.2.message.as_str()), (Verdict::Passed, "there are no rows"));
    }
}

#[test]
fn a_row_names_all_rules_that_it_broke_whatever_their_order() {
    let checks = || {
        vec![
            setting_aside("named", Rule::NotNull { columns: vec!["t".into()] }),
            setting_aside("small", Rule::Range { column: "x".into(), min: None, max: Some(4.0) }),
        ]
    };
    let mut forwards = diverter(checks());
    let aside = forwards.split(&rows()).unwrap().aside.unwrap();
    assert_eq!(named(&aside, RULE), "named; small,small");
    assert_eq!(named(&aside, REASON), "a null in t; x above 4,x above 4");
    let mut backwards = diverter(checks().into_iter().rev().collect());
    let aside = backwards.split(&rows()).unwrap().aside.unwrap();
    assert_eq!((named(&aside, "carrier").as_str(), named(&aside, RULE).as_str()), ("B,E", "small; named,small"));
}

#[test]
fn only_rows_that_where_chooses_are_taken_out() {
    let rule = Rule::Range { column: "x".into(), min: Some(0.0), max: Some(4.0) };
    let check = Check { filter: Some(sql("carrier >= 'D'")), ..setting_aside("r", rule) };
    let (kept, aside, result) = split(vec![check], &rows());
    assert_eq!((kept.as_str(), aside.as_str()), ("A,B,C", "D,E"));
    assert_eq!(result.message, "2 of 2 rows where carrier >= 'D' have x outside 0 to 4; set aside");
}

#[test]
fn all_rows_may_go_and_none_may() {
    let all = Rule::Expression { condition: sql("false") };
    let (kept, aside, result) = split(vec![setting_aside("r", all)], &rows());
    assert_eq!((kept.as_str(), aside.as_str(), result.verdict), ("", "A,B,C,D,E", Verdict::Quarantined));
    let none = Rule::Expression { condition: sql("true") };
    let (kept, aside, result) = split(vec![setting_aside("r", none)], &rows());
    assert_eq!((kept.as_str(), aside.as_str(), result.verdict), ("A,B,C,D,E", "", Verdict::Passed));
}

#[test]
fn limits_are_of_all_rows_and_all_of_them_hold() {
    let verdict = |max_rows, max_ratio| {
        let rule = Rule::NotNull { columns: vec!["t".into(), "x".into()] };
        let check = Check { quarantine: Some(Budget { max_rows, max_ratio }), ..Check::new("r", rule) };
        // Two of five rows; over two batches two of ten.
        let mut diverter = diverter(vec![check]);
        diverter.split(&rows()).unwrap();
        diverter.split(&batch(&[Some(""); 5], &[Some(0.0); 5])).unwrap();
        let result = diverter.finish().remove(0);
        (result.blocks(), result.message)
    };
    let set_aside = |what: &str| format!("2 of 10 rows have a null in t or x; {what}");
    assert_eq!(verdict(Some(2), Some(0.2)), (false, set_aside("set aside")));
    assert_eq!(verdict(Some(1), None), (true, set_aside("at most 1 may be set aside")));
    assert_eq!(verdict(Some(9), Some(0.1)), (true, set_aside("at most 9 and 10 % of all rows may be set aside")));
}

#[test]
fn a_rule_that_cannot_be_judged_takes_nothing_out_and_blocks() {
    let rule = Rule::Range { column: "t".into(), min: Some(0.0), max: None };
    let (kept, aside, result) = split(vec![setting_aside("r", rule)], &rows());
    assert_eq!((kept.as_str(), aside.as_str(), result.verdict), ("A,B,C,D,E", "", Verdict::Error));
    assert!(result.blocks());
}

#[test]
fn readmitted_rows_go_on_and_count_for_nothing() {
    let mut diverter = diverter(vec![setting_aside("r", Rule::NotNull { columns: vec!["t".into(), "x".into()] })]);
    let mut readmitted = Readmitted::default();
    readmitted.add(&rows().slice(1, 1), diverter.identity()).unwrap();
    diverter.readmit(readmitted);
    let split = diverter.split(&rows()).unwrap();
    assert_eq!(
        (named(&split.kept, "carrier").as_str(), named(&split.aside.unwrap(), "carrier").as_str()),
        ("A,B,D,E", "C")
    );
    assert_eq!(diverter.finish().remove(0).failing_rows, 1);
}

#[test]
fn a_view_without_such_checks_needs_no_diverter() {
    let view = view(vec![Check::new("r", Rule::NotNull { columns: vec!["t".into()] })]);
    let interval = Interval::new("2013-01-07T00:00:00Z".parse().unwrap(), "2013-01-08T00:00:00Z".parse().unwrap());
    let state = new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default())).state();
    assert!(Diverter::new(&view, &[], interval.unwrap(), &state).is_none());
}
