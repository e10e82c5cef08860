//! What groups change in verdicts, and what becomes of many of them.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionConfig;
use tidegate_registry::model::{Check, Edge, Rule, SqlText, TextFormat};
use tidegate_registry::run::{CheckResult, Verdict};
use tidegate_registry::time::Interval;

use super::super::Judge;
use super::*;
use crate::session::new_context;

/// Microseconds of the interval's end.
const END: i64 = 1_357_603_200_000_000;

fn sql(text: &str) -> SqlText {
    SqlText { text: text.to_owned(), origin: Default::default() }
}

fn no_null_in_x() -> Rule {
    Rule::NotNull { columns: vec!["x".into()] }
}

fn grouped(rule: Rule, tolerance: Option<Tolerance>, by: &[&str]) -> Check {
    Check { tolerance, group_by: by.iter().map(|name| (*name).to_owned()).collect(), ..Check::new("c", rule) }
}

fn judge_within(check: &Check, batches: &[RecordBatch], runtime: Arc<RuntimeEnv>) -> CheckResult {
    let interval = Interval::new("2013-01-07T00:00:00Z".parse().unwrap(), "2013-01-08T00:00:00Z".parse().unwrap());
    let state = new_context(SessionConfig::new(), runtime).state();
    let mut judge = Judge::of(check, &[], interval.unwrap(), &state).expect("it is about rows");
    let mut rows = 0;
    for batch in batches {
        rows += batch.num_rows() as u64;
        judge.update(batch, &[]);
    }
    judge.finish(rows)
}

fn judge(check: &Check, batches: &[RecordBatch]) -> CheckResult {
    judge_within(check, batches, Arc::new(RuntimeEnv::default()))
}

fn said(check: &Check, batches: &[RecordBatch]) -> String {
    let result = judge(check, batches);
    format!("{}: {}", result.verdict, result.message)
}

type Row<'a> = (Option<&'a str>, Option<f64>);

fn rows(rows: &[Row<'_>]) -> RecordBatch {
    let origins: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<StringArray>());
    let values: ArrayRef = Arc::new(rows.iter().map(|row| row.1).collect::<Float64Array>());
    RecordBatch::try_from_iter_with_nullable([("origin", origins, true), ("x", values, true)]).unwrap()
}

/// Of each group, so many rows with a null among so many.
fn nulls(groups: &[(&str, usize, usize)]) -> RecordBatch {
    let groups = groups.iter().flat_map(|&(origin, bad, all)| (0..all).map(move |row| (origin, row < bad)));
    rows(&groups.map(|(origin, bad)| (Some(origin), (!bad).then_some(1.0))).collect::<Vec<_>>())
}

#[test]
fn a_small_group_that_is_all_wrong_does_not_hide_in_a_share_of_all_rows() {
    let found = nulls(&[("JFK", 0, 100), ("LGA", 2, 2)]);
    let tolerance = Some(Tolerance::Ratio(0.05));
    let together = said(&grouped(no_null_in_x(), tolerance, &[]), std::slice::from_ref(&found));
    assert_eq!(together, "passed: 2 of 102 rows have a null in x; 5 % are tolerated");
    assert_eq!(
        said(&grouped(no_null_in_x(), tolerance, &["origin"]), &[found]),
        "failed: 2 of 102 rows have a null in x; 1 of 2 groups of origin has more than the tolerated 5 %; worst: \"LGA\" 2 of 2"
    );
}

#[test]
fn what_every_group_tolerates_passes_though_it_is_more_in_all() {
    let found = nulls(&[("EWR", 1, 3), ("JFK", 1, 2), ("LGA", 0, 2)]);
    let by_rows =
        |most| said(&grouped(no_null_in_x(), Some(Tolerance::Rows(most)), &["origin"]), std::slice::from_ref(&found));
    assert_eq!(
        by_rows(1),
        "passed: 2 of 7 rows have a null in x; none of 3 groups of origin has more than the tolerated 1 row; worst: \"JFK\" 1 of 2, \"EWR\" 1 of 3"
    );
    assert_eq!(
        by_rows(0),
        "failed: 2 of 7 rows have a null in x; 2 of 3 groups of origin have more than the tolerated 0 rows; worst: \"JFK\" 1 of 2, \"EWR\" 1 of 3"
    );
}

#[test]
fn without_a_tolerance_groups_are_only_named() {
    let check = grouped(no_null_in_x(), None, &["origin"]);
    let bad = nulls(&[("EWR", 1, 3), ("JFK", 0, 2)]);
    assert_eq!(
        said(&check, &[bad]),
        "failed: 1 of 5 rows has a null in x; in 1 of 2 groups of origin; worst: \"EWR\" 1 of 3"
    );
    assert_eq!(said(&check, &[nulls(&[("EWR", 0, 3)])]), "passed: none of 3 rows has a null in x");
}

#[test]
fn three_groups_are_named_the_worst_by_what_is_tolerated_first_and_always_the_same() {
    let groups = [("A", 4, 100), ("B", 3, 3), ("C", 3, 6), ("D", 1, 1), ("E", 1, 1), ("F", 0, 9)];
    let worst = |tolerance, groups: &[(&str, usize, usize)]| {
        let message = said(&grouped(no_null_in_x(), Some(tolerance), &["origin"]), &[nulls(groups)]);
        message.split_once(BEFORE_GROUPS).unwrap().1.to_owned()
    };
    let mut backwards = groups;
    backwards.reverse();
    for groups in [groups, backwards] {
        assert_eq!(worst(Tolerance::Rows(0), &groups), "\"A\" 4 of 100, \"B\" 3 of 3, \"C\" 3 of 6");
        assert_eq!(worst(Tolerance::Ratio(0.0), &groups), "\"B\" 3 of 3, \"D\" 1 of 1, \"E\" 1 of 1");
    }
}

#[test]
fn a_null_is_a_group_of_its_own_and_no_text_is_taken_for_it() {
    let found =
        rows(&[(None, None), (None, Some(1.0)), (Some("null"), None), (Some(""), None), (Some("null"), Some(2.0))]);
    assert_eq!(
        said(&grouped(no_null_in_x(), None, &["origin"]), &[found]),
        "failed: 3 of 5 rows have a null in x; in 3 of 3 groups of origin; worst: \"\" 1 of 1, \"null\" 1 of 2, null 1 of 2"
    );
}

#[test]
fn no_rows_pass_and_one_row_is_one_group() {
    let check = grouped(no_null_in_x(), Some(Tolerance::Ratio(0.5)), &["origin"]);
    assert_eq!(said(&check, &[]), "passed: there are no rows");
    assert_eq!(said(&check, &[rows(&[])]), "passed: there are no rows");
    assert_eq!(said(&check, &[rows(&[(Some("EWR"), Some(1.0))])]), "passed: none of 1 rows has a null in x");
    assert_eq!(
        said(&check, &[rows(&[(Some("EWR"), None)])]),
        "failed: 1 of 1 rows has a null in x; 1 of 1 group of origin has more than the tolerated 50 %; worst: \"EWR\" 1 of 1"
    );
}

#[test]
fn groups_go_on_from_batch_to_batch_and_hold_only_rows_that_are_looked_at() {
    let found = [nulls(&[("EWR", 1, 2), ("JFK", 1, 5)]), rows(&[]), nulls(&[("EWR", 1, 1), ("LGA", 3, 3)])];
    let check = Check {
        filter: Some(sql("origin <> 'LGA'")),
        ..grouped(no_null_in_x(), Some(Tolerance::Rows(1)), &["origin"])
    };
    let result = judge(&check, &found);
    assert_eq!(
        result.message,
        "3 of 8 rows where origin <> 'LGA' have a null in x; 1 of 2 groups of origin has more than the tolerated 1 row; \
         worst: \"EWR\" 2 of 3, \"JFK\" 1 of 5"
    );
    assert_eq!((result.verdict, result.failing_rows, result.samples.len()), (Verdict::Failed, 3, 3));
}

#[test]
fn several_columns_make_a_group_of_each_combination() {
    let found = rows(&[(Some("EWR"), Some(1.0)), (Some("EWR"), Some(2.0)), (Some("JFK"), Some(1.0)), (None, None)]);
    let rule = Rule::Range { column: "x".into(), min: Some(1.5), max: None };
    assert_eq!(
        said(&grouped(rule, Some(Tolerance::Rows(0)), &["origin", "x"]), &[found]),
        "failed: 2 of 4 rows have x below 1.5; 2 of 4 groups of origin, x have more than the tolerated 0 rows; worst: \
         (\"EWR\", 1.0) 1 of 1, (\"JFK\", 1.0) 1 of 1"
    );
}

#[test]
fn long_values_are_named_by_how_they_begin() {
    let long = "ä".repeat(1_000);
    let message = said(&grouped(no_null_in_x(), None, &["origin"]), &[rows(&[(Some(&long), None)])]);
    let name = message.split_once(BEFORE_GROUPS).unwrap().1;
    assert!(name.starts_with("\"ää") && name.ends_with("ä… 1 of 1"), "{name}");
    assert!(name.len() <= NAME_BYTES_MAX + " 1 of 1".len(), "{name}");
}

#[test]
fn a_column_that_is_not_there_makes_an_error() {
    let result = judge(&grouped(no_null_in_x(), None, &["gone"]), &[nulls(&[("EWR", 0, 1)])]);
    assert_eq!(result.message, "could not be computed: the rows have no column `gone`");
    assert!(result.verdict == Verdict::Error && result.blocks());
}

fn numbered(groups: std::ops::Range<i64>) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(groups.clone()));
    let values: ArrayRef = Arc::new(groups.map(|_| None).collect::<Float64Array>());
    RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("x", values, true)]).unwrap()
}

#[test]
fn more_groups_than_the_bound_block_and_as_many_do_not() {
    let check = grouped(no_null_in_x(), Some(Tolerance::Rows(1)), &["n"]);
    let most = GROUPS_MAX as i64;
    let result = judge(&check, &[numbered(0..most), numbered(0..1)]);
    assert_eq!(
        result.message,
        "100001 of 100001 rows have a null in x; 1 of 100000 groups of n has more than the tolerated 1 row; worst: \
         0 2 of 2, 1 1 of 1, 10 1 of 1"
    );
    let result = judge(&check, &[numbered(0..most), numbered(most..most + 1)]);
    assert_eq!(result.message, "could not be computed: there are more than 100000 groups of n");
    assert!(result.verdict == Verdict::Error && result.blocks());
}

#[test]
fn groups_are_held_in_memory_that_the_pool_grants() {
    let check = grouped(no_null_in_x(), Some(Tolerance::Rows(1)), &["n"]);
    let within = |bytes: usize, groups: i64| {
        let pool = Arc::new(GreedyMemoryPool::new(bytes));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
        judge_within(&check, &[numbered(0..groups)], runtime)
    };
    let at_once = GRANTED_AT_ONCE as i64;
    assert_eq!(within(0, at_once).verdict, Verdict::Passed);
    let result = within(0, at_once + 1);
    assert_eq!(result.message, "could not be computed: more than 4096 groups of n do not fit into `memory:`");
    assert!(result.blocks());
    assert_eq!(within(GRANTED_AT_ONCE * BYTES_PER_GROUP, 2 * at_once).verdict, Verdict::Passed);
    assert_eq!(within(GRANTED_AT_ONCE * BYTES_PER_GROUP, 2 * at_once + 1).verdict, Verdict::Error);
}

#[test]
fn a_group_needs_no_more_than_it_is_said_to() {
    // A table has a power of two of places, with a byte for each, of which it fills 7/8 before it doubles; while it does, both
    // the old and the new one are there.
    let place = size_of::<(u128, Group)>() + 1;
    assert!(place * 3 * 8 / 7 + NAME_BYTES_MAX <= BYTES_PER_GROUP, "{place}");
}

/// Four groups, one of them null; texts, numbers and times of which some break each rule.
fn mixed() -> RecordBatch {
    let groups = |row: usize| [Some("A"), Some("B"), None, Some("C")][row * 7 / 3 % 4];
    let origins: ArrayRef = Arc::new((0..200).map(groups).collect::<StringArray>());
    let texts = (0..200).map(|row| [Some("2013-01-07"), None, Some("x"), Some("y@z.de"), Some("")][row % 5]);
    let numbers = (0..200).map(|row| (row % 11 != 0).then_some(if row % 13 == 0 { f64::NAN } else { f64::from(row) }));
    let times = (0..200).map(|row| (row % 17 != 0).then_some(END - i64::from(row) * 3_600_000_000));
    RecordBatch::try_from_iter_with_nullable([
        ("origin", origins, true),
        ("t", Arc::new(texts.collect::<StringArray>()) as ArrayRef, true),
        ("x", Arc::new(numbers.collect::<Float64Array>()), true),
        ("at", Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC")), true),
    ])
    .unwrap()
}

#[test]
fn of_every_kind_the_verdict_is_that_of_a_check_of_each_group_alone() {
    let t = || "t".to_owned();
    let day = Some(std::time::Duration::from_secs(86_400));
    let rules = [
        Rule::NotNull { columns: vec![t(), "x".into()] },
        Rule::Range { column: "x".into(), min: Some(20.0), max: Some(190.0) },
        Rule::AcceptedValues { column: t(), values: vec!["x".into(), "".into()] },
        Rule::Regex { column: t(), pattern: "^[0-9-]+$".into() },
        Rule::Format { column: t(), format: TextFormat::IsoDate },
        Rule::Length { column: t(), min: Some(1), max: Some(6) },
        Rule::EventTime { column: "at".into(), at: Edge::End, min_age: day, max_age: None },
        Rule::Expression { condition: sql("x > 30 OR t = 'x'") },
    ];
    let all = mixed();
    let origins = all["origin"].as_any().downcast_ref::<StringArray>().unwrap();
    let alone = [Some("A"), Some("B"), Some("C"), None].map(|group| {
        let mask = origins.iter().map(|origin| Some(origin == group)).collect();
        filter_record_batch(&all, &mask).unwrap()
    });
    assert!(alone.iter().all(|rows| rows.num_rows() > 10));
    for rule in rules {
        let (mut passed, mut failed) = (0, 0);
        let tolerances =
            (0..40).map(|most| Tolerance::Rows(2 * most)).chain((0..40).map(|n| Tolerance::Ratio(n as f64 / 40.0)));
        for tolerance in tolerances {
            let check = grouped(rule.clone(), Some(tolerance), &[]);
            let each = alone.each_ref().map(|rows| judge(&check, std::slice::from_ref(rows)));
            let found =
                judge(&grouped(rule.clone(), Some(tolerance), &["origin"]), &[all.slice(0, 90), all.slice(90, 110)]);
            let expected = each.iter().all(|result| result.verdict == Verdict::Passed);
            assert_eq!(found.verdict == Verdict::Passed, expected, "{rule:?} {tolerance:?}: {}", found.message);
            assert_ne!(found.verdict, Verdict::Error, "{}", found.message);
            assert_eq!(found.failing_rows, each.iter().map(|result| result.failing_rows).sum::<u64>());
            let worst = each.iter().map(|result| result.failing_rows).max().unwrap();
            let names_it = found.message.split_once(BEFORE_GROUPS).unwrap().1.contains(&format!(" {worst} of "));
            assert!(names_it || matches!(tolerance, Tolerance::Ratio(_)), "{}", found.message);
            if expected { passed += 1 } else { failed += 1 }
        }
        assert!(passed > 0 && failed > 0, "{rule:?}: {passed} passed, {failed} failed");
    }
}
