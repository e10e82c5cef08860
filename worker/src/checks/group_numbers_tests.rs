//! Numbers of groups are those that a profile of the group's rows alone would have, and each of them is judged.

use std::sync::Arc;

use datafusion::arrow::array::StringArray;
use datafusion::arrow::compute::filter_record_batch;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use indexmap::IndexMap;
use tidegate_quality::profile::ColumnProfiler;

use super::super::Measured;
use super::*;

fn check(rule: Rule, by: &[&str]) -> Check {
    Check { group_by: by.iter().map(|name| (*name).to_owned()).collect(), ..Check::new("c", rule) }
}

fn bounds(metric: Metric, min: Option<f64>, max: Option<f64>) -> Check {
    check(Rule::Bounds { metric, min, max }, &["g"])
}

fn row_count(min: Option<u64>, max: Option<u64>) -> Check {
    check(Rule::RowCount { min, max, max_change: None, season: None }, &["g"])
}

fn counted(check: &Check, batches: &[RecordBatch]) -> GroupNumbers {
    let mut numbers = GroupNumbers::of(check, &RuntimeEnv::default()).expect("it is about groups");
    batches.iter().for_each(|batch| numbers.update(batch));
    numbers
}

fn said(check: &Check, batches: &[RecordBatch]) -> String {
    let result = counted(check, batches).finish();
    format!("{}: {}", result.verdict, result.message)
}

/// Rows of groups, each with a number, the same as a whole number, and whether it is above 1.
fn rows(rows: &[(Option<&str>, Option<f64>)]) -> RecordBatch {
    let groups: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<StringArray>());
    let numbers: ArrayRef = Arc::new(rows.iter().map(|row| row.1).collect::<Float64Array>());
    let whole: ArrayRef = Arc::new(rows.iter().map(|row| row.1.map(|x| x as i64)).collect::<Int64Array>());
    let trues: ArrayRef = Arc::new(rows.iter().map(|row| row.1.map(|x| x > 1.0)).collect::<BooleanArray>());
    RecordBatch::try_from_iter_with_nullable([
        ("g", groups, true),
        ("x", numbers, true),
        ("n", whole, true),
        ("b", trues, true),
    ])
    .unwrap()
}

const SOME: &[(Option<&str>, Option<f64>)] = &[
    (Some("JFK"), Some(1.0)),
    (Some("JFK"), Some(3.0)),
    (Some("EWR"), Some(10.0)),
    (Some("JFK"), Some(2.0)),
    (None, Some(4.0)),
    (Some("LGA"), None),
];

#[test]
fn one_group_that_is_outside_is_enough_and_the_worst_are_named() {
    let cases = [
        (row_count(Some(1), None), "passed: the number of rows is as expected in each of 4 groups of g"),
        (
            row_count(Some(2), Some(3)),
            "failed: the number of rows is outside 2 to 3 in 3 of 4 groups of g; worst: \"EWR\" 1, \"LGA\" 1, null 1",
        ),
        (row_count(None, Some(2)), "failed: the number of rows is above 2 in 1 of 4 groups of g; worst: \"JFK\" 3"),
        (
            bounds(Metric::Mean("x".into()), Some(2.0), Some(10.0)),
            "passed: the mean of x is as expected in each of 3 groups of g; 1 more has no value to take it from",
        ),
        (
            bounds(Metric::Mean("x".into()), Some(3.0), None),
            "failed: the mean of x is below 3 in 1 of 3 groups of g; 1 more has no value to take it from; worst: \
             \"JFK\" 2 (3 rows)",
        ),
        (
            bounds(Metric::NullRate("x".into()), None, Some(0.5)),
            "failed: the share of nulls in x is above 0.5 in 1 of 4 groups of g; worst: \"LGA\" 1 (1 row)",
        ),
        (
            bounds(Metric::Stddev("x".into()), None, Some(1.0)),
            "passed: the standard deviation of x is as expected in each of 1 group of g; 3 more have no value to take it \
             from",
        ),
    ];
    for (check, expected) in cases {
        assert_eq!(said(&check, &[rows(SOME)]), expected);
        let (first, second) = (rows(&SOME[..2]), rows(&SOME[2..]));
        assert_eq!(said(&check, &[first, second]), expected, "batches make no difference");
    }
}

#[test]
fn without_rows_or_values_there_is_nothing_to_judge() {
    let skipped = "skipped: there are no rows, and so no groups of g";
    assert_eq!(said(&row_count(Some(1), None), &[]), skipped);
    assert_eq!(said(&row_count(Some(1), None), &[rows(&[])]), skipped);
    let mean = bounds(Metric::Mean("x".into()), Some(1.0), None);
    for value in [None, Some(f64::NAN), Some(f64::INFINITY)] {
        assert_eq!(
            said(&mean, &[rows(&[(Some("a"), value)])]),
            "skipped: no row has a value to take the mean of x from"
        );
    }
}

#[test]
fn every_number_is_that_of_the_rows_of_its_group() {
    // Numbers of every kind that a column may hold, in groups of very different sizes.
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let names = ["a", "b", "c", "d", "e"];
    let mut all = Vec::new();
    for _ in 0..2_000 {
        let group = names.get((random() % 36).isqrt() as usize).copied();
        let value = match random() % 20 {
            0 => None,
            1 => Some(f64::NAN),
            2 => Some(-0.0),
            3 => Some(0.0),
            4 => Some(f64::NEG_INFINITY),
            _ => Some((random() % 1_000) as f64 / 8.0 + 1e6),
        };
        all.push((group, value));
    }
    let batches: Vec<RecordBatch> = all.chunks(300).map(rows).collect();
    let metrics = [
        Metric::NullRate("x".into()),
        Metric::DistinctCount("x".into()),
        Metric::DistinctCount("n".into()),
        Metric::Mean("x".into()),
        Metric::Mean("n".into()),
        Metric::Stddev("x".into()),
        Metric::Sum("x".into()),
        Metric::Sum("n".into()),
        Metric::TrueRatio("b".into()),
    ];
    for metric in metrics {
        let numbers = counted(&bounds(metric.clone(), None, Some(0.0)), &batches);
        assert_eq!(numbers.found.len(), 6, "five groups, and that of null");
        for group in numbers.found.values() {
            let name: Option<String> = serde_json::from_str(&group.name).unwrap();
            let column = metric.column().unwrap();
            let mut profiler: Option<ColumnProfiler> = None;
            for batch in &batches {
                let groups = batch.column(0).as_string::<i32>();
                let mask: BooleanArray = groups.iter().map(|value| Some(value == name.as_deref())).collect();
                let chosen = filter_record_batch(batch, &mask).unwrap();
                let array = chosen.column_by_name(column).unwrap();
                profiler.get_or_insert_with(|| ColumnProfiler::new(array.data_type())).update(array).unwrap();
            }
            let profile = IndexMap::from([(column.to_owned(), profiler.unwrap().finish())]);
            let wanted = Measured { rows: group.rows, profile: &profile }.value(&metric).unwrap();
            let found = group.found.value(&metric).unwrap();
            // A profile estimates how many different values there are.
            let near = if matches!(metric, Metric::DistinctCount(_)) { 0.05 } else { 1e-9 };
            assert!((found - wanted).abs() <= near * wanted.abs(), "{metric} of {name:?}: {found}, not {wanted}");
        }
    }
}

#[test]
fn different_values_are_counted_exactly_within_a_group() {
    let values = [0.0, -0.0, 1.0, 1.0, f64::NAN, 2.0].map(|x| (Some("a"), Some(x)));
    let batch = rows(&[&values[..], &[(Some("b"), Some(1.0)), (Some("b"), None)]].concat());
    let said = said(&bounds(Metric::DistinctCount("x".into()), Some(5.0), None), &[batch]);
    let message = "failed: the number of different values of x is below 5 in 2 of 2 groups of g; worst: \"b\" 1 (2 rows), \
                   \"a\" 3 (6 rows)";
    assert_eq!(said, message);
}

#[test]
fn what_cannot_be_counted_blocks() {
    let unknown = counted(&bounds(Metric::Mean("y".into()), Some(1.0), None), &[rows(SOME)]).finish();
    assert!(unknown.blocks(), "{unknown:?}");
    assert_eq!(unknown.message, "could not be computed: the rows have no column `y`");
}

#[test]
fn groups_and_their_values_have_bounds() {
    let many = |from: i64, to: i64| {
        let groups: ArrayRef = Arc::new(Int64Array::from_iter_values(from..to));
        let same: ArrayRef = Arc::new(Int64Array::from_iter_values((from..to).map(|_| 1)));
        RecordBatch::try_from_iter([("g", groups.clone()), ("x", groups), ("same", same)]).unwrap()
    };
    let most = 100_000;
    let fits = counted(&row_count(Some(1), None), &[many(0, most)]);
    assert_eq!(fits.finish().verdict, Verdict::Passed);
    let over = counted(&row_count(Some(1), None), &[many(0, most), many(most, most + 1)]).finish();
    assert!(over.blocks(), "{over:?}");
    assert_eq!(over.message, "could not be computed: there are more than 100000 groups of g");

    let small =
        RuntimeEnvBuilder::new().with_memory_pool(Arc::new(GreedyMemoryPool::new(1 << 20))).build_arc().unwrap();
    let mut numbers = GroupNumbers::of(&row_count(Some(1), None), &small).unwrap();
    numbers.update(&many(0, 10_000));
    assert_eq!(numbers.finish().message, "could not be computed: more than 4096 groups of g do not fit into `memory:`");
    // One group with many values is as bounded.
    let distinct =
        check(Rule::Bounds { metric: Metric::DistinctCount("x".into()), min: Some(1.0), max: None }, &["same"]);
    let mut numbers = GroupNumbers::of(&distinct, &small).unwrap();
    numbers.update(&many(0, 100_000));
    let said = numbers.finish();
    assert!(said.blocks(), "{said:?}");
    assert!(said.message.contains("different values do not fit into `memory:`"), "{said:?}");
}

#[test]
fn what_a_group_needs_is_no_more_than_is_asked_for() {
    // Twice as many places as are used, each with a byte of control, at most eight sevenths of a power of two; and a name.
    let place = size_of::<(u128, Group)>() + 1;
    assert!(place * 2 * 8 / 7 + 80 + 16 <= BYTES_PER_GROUP, "{place}");
}
