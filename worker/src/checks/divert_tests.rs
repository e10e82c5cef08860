//! What each kind of rule takes out of the stream, and what it leaves there.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray, Float64Array, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionConfig;
use tidegate_registry::model::{
    Budget, Check, ColumnType, Edge, FeatureView, Output, Rule, SqlText, Table, TextFormat,
};
use tidegate_registry::run::Verdict;

use super::super::read_others;
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
        restore_target: None,
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
    let split = diverter.split(Some(batch)).unwrap().remove(0);
    assert!(diverter.split(None).unwrap().is_empty());
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
    let aside = forwards.split(Some(&rows())).unwrap().remove(0).aside.unwrap();
    assert_eq!(named(&aside, RULE), "named; small,small");
    assert_eq!(named(&aside, REASON), "a null in t; x above 4,x above 4");
    let mut backwards = diverter(checks().into_iter().rev().collect());
    let aside = backwards.split(Some(&rows())).unwrap().remove(0).aside.unwrap();
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
        diverter.split(Some(&rows())).unwrap();
        diverter.split(Some(&batch(&[Some(""); 5], &[Some(0.0); 5]))).unwrap();
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
    let split = diverter.split(Some(&rows())).unwrap().remove(0);
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

/// Rows of these entities and numbers, in that order.
fn entities(rows: &[(Option<&str>, f64)]) -> RecordBatch {
    let carriers: StringArray = rows.iter().map(|row| row.0).collect();
    let numbers: Float64Array = rows.iter().map(|row| Some(row.1)).collect();
    let times: TimestampMicrosecondArray = rows.iter().map(|row| Some(row.1 as i64)).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("carrier", Arc::new(carriers) as ArrayRef, true),
        (EVENT_TIMESTAMP, Arc::new(times.with_timezone("UTC")), true),
        ("x", Arc::new(numbers), true),
    ])
    .unwrap()
}

/// Everything that comes out of a diverter, each row as `A1`: those kept, and those set aside with the rules they broke.
fn parted(diverter: &mut Diverter, batches: &[RecordBatch]) -> (String, String) {
    let (mut kept, mut aside) = (Vec::new(), Vec::new());
    for batch in batches.iter().map(Some).chain([None]) {
        for split in diverter.split(batch).unwrap() {
            let row = |batch: &RecordBatch, row: usize| {
                let carriers = batch.column(0).as_string::<i32>();
                let carrier = if carriers.is_null(row) { "-" } else { carriers.value(row) };
                format!("{carrier}{}", batch.column(2).as_primitive::<Float64Type>().value(row))
            };
            kept.extend((0..split.kept.num_rows()).map(|at| row(&split.kept, at)));
            if let Some(rows) = split.aside {
                let rules = rows.column_by_name(RULE).unwrap().as_string::<i32>();
                aside.extend((0..rows.num_rows()).map(|at| format!("{} {}", row(&rows, at), rules.value(at))));
            }
        }
    }
    (kept.join(","), aside.join(","))
}

fn unique(columns: &[&str]) -> Check {
    let columns = columns.iter().map(|name| (*name).to_owned()).collect();
    setting_aside("unique", Rule::Unique { columns })
}

#[test]
fn of_a_doubled_entity_all_rows_are_taken_out_however_they_come() {
    let rows = [
        (Some("A"), 1.0),
        (Some("B"), 1.0),
        (Some("B"), 9.0),
        (Some("B"), 3.0),
        (Some("C"), 9.0),
        (Some("D"), 1.0),
        (Some("D"), 2.0),
        (Some("E"), 1.0),
        (None, 1.0),
        (None, 2.0),
    ];
    let small = Rule::Range { column: "x".into(), min: None, max: Some(5.0) };
    // Every way to cut ten rows into batches.
    for cuts in 0..1_u32 << (rows.len() - 1) {
        let mut batches = Vec::new();
        let mut from = 0;
        for end in 1..=rows.len() {
            if end == rows.len() || cuts & (1 << (end - 1)) != 0 {
                batches.push(entities(&rows[from..end]));
                batches.push(entities(&[]));
                from = end;
            }
        }
        let checks = vec![unique(&["carrier"]), setting_aside("small", small.clone())];
        let mut diverter = diverter(checks);
        let (kept, aside) = parted(&mut diverter, &batches);
        assert_eq!(kept, "A1,E1,-1,-2", "{cuts:b}");
        assert_eq!(aside, "B1 unique,B9 unique; small,B3 unique,C9 small,D1 unique,D2 unique", "{cuts:b}");
        let results = diverter.finish();
        assert_eq!(results[0].message, "5 of 10 rows have an entity that another row has; set aside");
        assert_eq!((results[0].verdict, results[0].samples.len()), (Verdict::Quarantined, 5));
        assert_eq!(results[0].samples[0], serde_json::json!({"carrier": "B"}));
        assert_eq!(results[1].failing_rows, 2);
    }
}

#[test]
fn only_equal_neighbours_are_doubled() {
    for (rows, kept, message) in [
        (&[][..], "", "there are no rows"),
        (&[(Some("A"), 1.0)], "A1", "none of 1 rows has an entity that another row has"),
        (&[(None, 1.0), (None, 1.0)], "-1,-1", "none of 2 rows has an entity that another row has"),
    ] {
        let mut diverter = diverter(vec![unique(&["carrier"])]);
        assert_eq!(parted(&mut diverter, &[entities(rows)]), (kept.to_owned(), String::new()));
        assert_eq!(diverter.finish().remove(0).message, message);
    }
    // With the time beside it, what differs in time is not the same.
    let mut with_time = diverter(vec![unique(&[EVENT_TIMESTAMP, "carrier"])]);
    let rows = entities(&[(Some("A"), 1.0), (Some("A"), 2.0), (Some("A"), 2.0), (Some("B"), 2.0)]);
    assert_eq!(parted(&mut with_time, &[rows]), ("A1,B2".to_owned(), "A2 unique,A2 unique".to_owned()));
    let message = with_time.finish().remove(0).message;
    assert_eq!(message, "2 of 4 rows have an entity and event_timestamp that another row has; set aside");
}

#[test]
fn the_first_of_several_keys_may_be_unique_alone() {
    let keys = ["carrier", "x"].map(|name| Key { name: name.into(), kind: ColumnType::String });
    let interval = Interval::new("2013-01-07T00:00:00Z".parse().unwrap(), "2013-01-08T00:00:00Z".parse().unwrap());
    let state = new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default())).state();
    let mut diverter = Diverter::new(&view(vec![unique(&["carrier"])]), &keys, interval.unwrap(), &state).unwrap();
    let rows = entities(&[(Some("A"), 1.0), (Some("B"), 1.0), (Some("B"), 2.0)]);
    assert_eq!(parted(&mut diverter, &[rows]), ("A1".to_owned(), "B1 unique,B2 unique".to_owned()));
    let message = diverter.finish().remove(0).message;
    assert_eq!(message, "2 of 3 rows have values in carrier that another row has; set aside");
}

#[test]
fn doubled_rows_above_the_limit_and_rows_out_of_order_stop_the_run() {
    let rows = entities(&[(Some("A"), 1.0), (Some("A"), 2.0)]);
    let few = Budget { max_rows: Some(1), max_ratio: None };
    let mut diverter_of_few = diverter(vec![Check { quarantine: Some(few), ..unique(&["carrier"]) }]);
    parted(&mut diverter_of_few, &[rows]);
    let result = diverter_of_few.finish().remove(0);
    assert!(result.blocks(), "{result:?}");
    assert!(result.message.ends_with("; at most 1 may be set aside"), "{result:?}");
    let mut unsorted = diverter(vec![unique(&["carrier"])]);
    let rows = entities(&[(Some("B"), 1.0), (Some("A"), 2.0), (Some("A"), 2.0)]);
    assert_eq!(parted(&mut unsorted, &[rows]).1, "");
    let result = unsorted.finish().remove(0);
    assert!(result.blocks(), "{result:?}");
    assert_eq!(result.message, "could not be computed: rows are not sorted by carrier");
}

#[test]
fn a_row_that_waited_may_be_readmitted() {
    let (first, second) = (entities(&[(Some("A"), 1.0)]), entities(&[(Some("A"), 2.0), (Some("B"), 1.0)]));
    let mut diverter = diverter(vec![unique(&["carrier"])]);
    let mut readmitted = Readmitted::default();
    readmitted.add(&first, diverter.identity()).unwrap();
    diverter.readmit(readmitted);
    // Which of the two is meant, nobody has said: both go on, and the check of every view sees them.
    assert_eq!(parted(&mut diverter, &[first, second]), ("A1,A2,B1".to_owned(), String::new()));
    assert_eq!(diverter.finish().remove(0).verdict, Verdict::Passed);
}

#[tokio::test]
async fn rows_without_their_counterpart_are_taken_out() {
    let references = || Rule::Referential {
        columns: vec!["carrier".into()],
        table: Table::Source("airlines".parse().unwrap()),
        references: vec!["code".into()],
    };
    let rows = entities(&[(Some("A"), 1.0), (Some("B"), 2.0), (None, 3.0)]);
    let ctx = new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default()));
    for (codes, kept, aside, message) in [
        (
            Some(&["A", "X"][..]),
            "A1,-3",
            "B2 r",
            "1 of 3 rows has a value in carrier that is none in code of source airlines; set aside",
        ),
        (
            Some(&["A", "B"]),
            "A1,B2,-3",
            "",
            "none of 3 rows has a value in carrier that is none in code of source airlines",
        ),
        (
            Some(&[]),
            "-3",
            "A1 r,B2 r",
            "2 of 3 rows have a value in carrier that is none in code of source airlines; set aside",
        ),
        (None, "A1,B2,-3", "", "could not be computed: the other table was not opened"),
    ] {
        let view = view(vec![setting_aside("r", references())]);
        let table = codes.map(|codes| {
            let codes: ArrayRef = Arc::new(codes.iter().map(|code| Some(*code)).collect::<StringArray>());
            let codes = RecordBatch::try_from_iter([("code", codes)]).unwrap();
            let table: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(codes.schema(), vec![vec![codes]]).unwrap());
            (Table::Source("airlines".parse().unwrap()), table)
        });
        let tables = table.into_iter().collect();
        let interval = Interval::new("2013-01-07T00:00:00Z".parse().unwrap(), "2013-01-08T00:00:00Z".parse().unwrap());
        let mut others = read_others(&ctx, &view, &rows.schema(), interval.unwrap(), &tables).await.unwrap();
        let mut diverter = diverter(view.checks);
        diverter.compare_with(&mut others);
        let found = parted(&mut diverter, &[rows.slice(0, 1), rows.slice(1, 2)]);
        assert_eq!((found.0.as_str(), found.1.as_str()), (kept, aside));
        let result = diverter.finish().remove(0);
        assert_eq!(result.message, message);
        assert_eq!(result.blocks(), codes.is_none());
    }
}
