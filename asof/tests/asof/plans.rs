//! What a plan shows and refuses, what a scan is spared, and how an execution ends.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::common::stats::Precision;
use datafusion::common::{Column, Result};
use datafusion::execution::memory_pool::UnboundedMemoryPool;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, col, lit};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use tidegate_asof::{History, Period, Rule, point_in_time};

use crate::world::{Setting, block_on, context};

const HOUR: i64 = 3_600_000_000;

pub(crate) fn session() -> SessionContext {
    context(&Setting { streams: 2, batch: 100, pool: Arc::new(UnboundedMemoryPool::default()) })
}

pub(crate) fn instants(micros: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC"))
}

pub(crate) fn ints(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

pub(crate) fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

pub(crate) fn event(ttl_hours: Option<u64>) -> Rule {
    Rule::Event {
        time: Column::from_name("at"),
        delay: Duration::ZERO,
        ttl: ttl_hours.map(|hours| Duration::from_secs(hours * 3600)),
        tie_break: Vec::new(),
    }
}

pub(crate) fn history(plan: LogicalPlan, rule: Rule, take: &[&str]) -> History {
    let take = take.iter().map(|name| (Column::from_name(*name), (*name).to_owned())).collect();
    let keys = vec![(Column::from_name("id"), Column::from_name("key"))];
    History { name: "the history".to_owned(), plan, keys, rule, take }
}

async fn scan(session: &SessionContext, name: &str, rows: RecordBatch) -> LogicalPlan {
    session.register_batch(name, rows).unwrap();
    session.table(name).await.unwrap().into_unoptimized_plan()
}

pub(crate) async fn labels(session: &SessionContext) -> LogicalPlan {
    let rows = table(vec![("at", instants([5 * HOUR, 6 * HOUR])), ("id", ints([1, 2])), ("label", ints([10, 20]))]);
    scan(session, "labels", rows).await
}

async fn facts(session: &SessionContext) -> LogicalPlan {
    let rows = table(vec![
        ("at", instants([HOUR, 2 * HOUR])),
        ("key", ints([1, 2])),
        ("a", ints([7, 8])),
        ("b", ints([9, 10])),
        ("c", ints([11, 12])),
        ("text", Arc::new(StringArray::from(vec!["x", "y"])) as ArrayRef),
    ]);
    scan(session, "facts", rows).await
}

/// Hourly facts of ten keys in a Parquet file of one row group per hour.
async fn hourly(session: &SessionContext, folder: &tempfile::TempDir, hours: i64) -> LogicalPlan {
    let rows = (0..hours).flat_map(|hour| (0..10).map(move |key| (hour * HOUR, key)));
    let batch = table(vec![
        ("at", instants(rows.clone().map(|(at, _)| at))),
        ("key", ints(rows.clone().map(|(_, key)| key))),
        ("a", ints(rows.map(|(at, key)| at / HOUR * 100 + key))),
    ]);
    let path = folder.path().join("hourly.parquet");
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(10)).build();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let path = path.to_str().unwrap();
    session.read_parquet(path, ParquetReadOptions::default()).await.unwrap().into_unoptimized_plan()
}

pub(crate) async fn physical(session: &SessionContext, plan: LogicalPlan) -> Arc<dyn ExecutionPlan> {
    session.execute_logical_plan(plan).await.unwrap().create_physical_plan().await.unwrap()
}

/// The figure of this name, over all operators from `plan` down.
pub(crate) fn metric(plan: &Arc<dyn ExecutionPlan>, name: &str) -> usize {
    let own = plan.metrics().and_then(|metrics| metrics.sum_by_name(name)).map_or(0, |value| value.as_usize());
    own + plan.children().into_iter().map(|child| metric(child, name)).sum::<usize>()
}

fn refusal(plan: Result<LogicalPlan>) -> String {
    plan.unwrap_err().strip_backtrace()
}

#[test]
fn a_plan_says_what_it_joins() {
    block_on(async {
        let session = session();
        let plan = point_in_time(
            labels(&session).await,
            Column::from_name("at"),
            vec![history(facts(&session).await, event(Some(3)), &["a"])],
        )
        .unwrap();
        let shown = plan.display_indent().to_string();
        assert!(
            shown.starts_with("PointInTime: labels at at; newest at living 10800s on [id = key] takes [a]"),
            "{shown}"
        );
        let physical = physical(&session, plan).await;
        let shown = displayable(physical.as_ref()).indent(false).to_string();
        assert!(shown.starts_with("PointInTimeExec: labels at at; newest at living"), "{shown}");
        assert!(shown.contains("InOrderExec: DataSourceExec"), "{shown}");
        let statistics = StatisticsContext::new().compute(physical.as_ref(), &StatisticsArgs::new()).unwrap();
        assert_eq!(statistics.num_rows, Precision::Exact(2));
    });
}

#[test]
fn columns_that_nobody_needs_are_not_read() {
    block_on(async {
        let session = session();
        let histories = vec![history(facts(&session).await, event(None), &["a", "b", "c"])];
        let plan = point_in_time(labels(&session).await, Column::from_name("at"), histories).unwrap();
        let plan = LogicalPlanBuilder::from(plan).project([col("b")]).unwrap().build().unwrap();
        let optimized = session.state().optimize(&plan).unwrap().display_indent().to_string();
        assert!(optimized.contains("projection=[at, key, b]"), "{optimized}");
        assert!(optimized.contains("projection=[at, id]"), "{optimized}");
        let joined = session.execute_logical_plan(plan).await.unwrap().collect().await.unwrap();
        assert_eq!(joined[0].column(0).as_ref(), ints([9, 10]).as_ref());
    });
}

#[test]
fn a_history_of_which_nothing_is_taken_is_not_read() {
    block_on(async {
        let session = session();
        let histories = vec![history(facts(&session).await, event(None), &["a"])];
        let plan = point_in_time(labels(&session).await, Column::from_name("at"), histories).unwrap();
        let plan = LogicalPlanBuilder::from(plan).project([col("label")]).unwrap().build().unwrap();
        let physical = physical(&session, plan).await;
        let joined = collect(Arc::clone(&physical), session.task_ctx()).await.unwrap();
        assert_eq!(joined[0].column(0).as_ref(), ints([10, 20]).as_ref());
        assert_eq!(metric(&physical, "history_rows"), 0);
    });
}

#[test]
fn a_filter_on_the_spine_goes_below_and_one_on_a_feature_stays() {
    block_on(async {
        let session = session();
        let histories = vec![history(facts(&session).await, event(None), &["a"])];
        let plan = point_in_time(labels(&session).await, Column::from_name("at"), histories).unwrap();
        let filter = col("label").gt(lit(10i64)).and(col("a").gt(lit(7i64)));
        let plan = LogicalPlanBuilder::from(plan).filter(filter).unwrap().build().unwrap();
        let optimized = session.state().optimize(&plan).unwrap().display_indent().to_string();
        let lines: Vec<&str> = optimized.lines().map(str::trim).collect();
        assert!(lines[0].starts_with("Filter: a > "), "{optimized}");
        assert!(lines[1].starts_with("PointInTime"), "{optimized}");
        assert!(lines[2].starts_with("Filter: labels.label > "), "{optimized}");
        let joined = session.execute_logical_plan(plan).await.unwrap().collect().await.unwrap();
        assert_eq!(joined[0].column_by_name("a").unwrap().as_ref(), ints([8]).as_ref());
    });
}

#[test]
fn what_no_label_can_see_is_not_read() {
    block_on(async {
        let session = session();
        let folder = tempfile::tempdir().unwrap();
        let facts = hourly(&session, &folder, 100).await;
        let spine = table(vec![("at", instants([50 * HOUR, 52 * HOUR + 1])), ("id", ints([3, 4]))]);
        let spine = scan(&session, "labels", spine).await;
        let histories = vec![history(facts, event(Some(2)), &["a"])];
        let plan = point_in_time(spine, Column::from_name("at"), histories).unwrap();
        let physical = physical(&session, plan).await;
        let joined = collect(Arc::clone(&physical), session.task_ctx()).await.unwrap();
        assert_eq!(joined[0].column_by_name("a").unwrap().as_ref(), ints([5003, 5204]).as_ref());
        // row groups of the hours from 48 to 53, though a label sees fewer
        let read = metric(&physical, "history_rows");
        assert!((30..=60).contains(&read), "{read} of 1000 rows were read");
    });
}

#[test]
fn periods_that_no_label_can_see_are_not_read() {
    block_on(async {
        let session = session();
        let folder = tempfile::tempdir().unwrap();
        let facts = hourly(&session, &folder, 100).await;
        let spine = table(vec![("at", instants([60 * HOUR])), ("id", ints([3]))]);
        let spine = scan(&session, "labels", spine).await;
        let published = (0..100).map(|hour| Period {
            interval: hour * HOUR,
            available_from: (hour + 1) * HOUR,
            available_until: (hour + 2) * HOUR,
        });
        let rule = Rule::Interval { interval: Column::from_name("at"), published: published.collect() };
        let plan = point_in_time(spine, Column::from_name("at"), vec![history(facts, rule, &["a"])]).unwrap();
        let physical = physical(&session, plan).await;
        let joined = collect(Arc::clone(&physical), session.task_ctx()).await.unwrap();
        assert_eq!(joined[0].column_by_name("a").unwrap().as_ref(), ints([5903]).as_ref());
        // The one before ends at this very label, which does not see it any more.
        assert_eq!(metric(&physical, "history_rows"), 10, "of 1000 rows");
    });
}

#[test]
fn labels_come_out_in_the_order_of_many_files() {
    block_on(async {
        let session = session();
        let folder = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        for file in 0..7i64 {
            let numbers: Vec<i64> = (0..500).map(|row| file * 500 + row).collect();
            expected.extend(numbers.clone());
            let batch = table(vec![
                ("at", instants(numbers.clone())),
                ("id", ints(numbers.iter().map(|n| n % 3))),
                ("n", ints(numbers)),
            ]);
            let path = folder.path().join(format!("{file}.parquet"));
            let mut writer = ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
        }
        let spine = session.read_parquet(folder.path().to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
        let spine = spine.filter(col("n").not_eq(lit(-1i64))).unwrap().into_unoptimized_plan();
        let histories = vec![history(facts(&session).await, event(None), &["a"])];
        let plan = point_in_time(spine, Column::from_name("at"), histories).unwrap();
        let joined = session.execute_logical_plan(plan).await.unwrap().collect().await.unwrap();
        let numbers: Vec<i64> = joined
            .iter()
            .flat_map(|batch| {
                batch.column_by_name("n").unwrap().as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
            })
            .collect();
        assert_eq!(numbers, expected);
    });
}

#[test]
fn bad_input_is_refused_by_name() {
    block_on(async {
        let session = session();
        let spine = labels(&session).await;
        let facts = facts(&session).await;
        let at = || Column::from_name("at");
        let join = |time: Column, history: History| refusal(point_in_time(spine.clone(), time, vec![history]));
        let good = history(facts.clone(), event(None), &["a"]);
        assert!(
            join(Column::from_name("when"), good.clone()).contains("the spine has no column `when`, only `at`"),
            "missing time"
        );
        assert!(join(Column::from_name("id"), good.clone()).contains("the time `id` of labels is `Int64`"), "no time");
        let text = History { keys: vec![(Column::from_name("id"), Column::from_name("text"))], ..good.clone() };
        let said = join(at(), text);
        assert!(said.contains("the key `id` of the spine is `Int64` and `text` of the history is `Utf8`"), "{said}");
        let twice = history(facts.clone(), event(None), &["a", "a"]);
        assert!(join(at(), twice).contains("the name `a` appears twice in the output"), "twice");
        let period = |start, from, until| Period { interval: start, available_from: from, available_until: until };
        for (periods, message) in [
            (vec![period(0, 1, 3), period(1, 2, 4)], "the periods of 0 and 1 overlap"),
            (vec![period(0, 3, 1)], "the period of 0 is available until 1, before it is available from 3"),
            (vec![period(0, 1, 2), period(0, 2, 3)], "two periods are those of 0"),
        ] {
            let rule = Rule::Interval { interval: at(), published: periods.into() };
            let said = join(at(), history(facts.clone(), rule, &["b"]));
            assert!(said.contains(message), "{said}");
        }
    });
}
