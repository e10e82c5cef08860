//! Checks written as queries: every row that comes back breaks the rule.

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use tidegate_registry::model::{Check, Rule};
use tidegate_registry::run::{CheckResult, Verdict};
use tidegate_registry::time::Interval;

use super::others::in_time;
use super::{SAMPLES_MAX, result, tolerated};
use crate::execute::chain;
use crate::session::plan_query;
use crate::text::TextColumn;

/// Runs the query of an `sql` check in `ctx`, where the view's own name must mean the staged rows. Rows are counted as
/// they stream by, and only the first few are kept. A tolerated share is one of `staged`, the number of staged rows.
pub async fn run_sql_check(ctx: &SessionContext, check: &Check, interval: Interval, staged: u64) -> CheckResult {
    match in_time(check.timeout, offending(ctx, check, interval)).await {
        Ok((0, _)) => result(check, Verdict::Passed, "the query returned no row".to_owned()),
        Ok((rows, samples)) => {
            let (verdict, tolerated) = tolerated(check.tolerance, rows, staged);
            let returned = format!("the query returned {rows} {}{tolerated}", if rows == 1 { "row" } else { "rows" });
            CheckResult { failing_rows: rows, samples, ..result(check, verdict, returned) }
        }
        Err(error) => result(check, Verdict::Error, format!("could not be computed: {}", chain(&error))),
    }
}

async fn offending(
    ctx: &SessionContext,
    check: &Check,
    interval: Interval,
) -> anyhow::Result<(u64, Vec<serde_json::Value>)> {
    let Rule::Sql { query } = &check.rule else { anyhow::bail!("not a rule with a query") };
    let plan = plan_query(ctx, &query.text, interval).await?;
    let mut stream = ctx.execute_logical_plan(plan).await?.execute_stream().await?;
    let (mut rows, mut samples) = (0, Vec::new());
    while let Some(batch) = stream.try_next().await? {
        rows += batch.num_rows() as u64;
        let wanted = (SAMPLES_MAX - samples.len()).min(batch.num_rows());
        samples.extend((0..wanted).map(|row| whole_row(&batch, row)));
    }
    Ok((rows, samples))
}

fn whole_row(batch: &RecordBatch, row: usize) -> serde_json::Value {
    let schema = batch.schema();
    let values = batch.columns().iter().zip(schema.fields()).map(|(array, field)| {
        // a query may return types that views cannot store; people can read those too
        let value = TextColumn::new(&array.slice(row, 1)).map_or_else(
            |_| array_value_to_string(array, row).map_or(serde_json::Value::Null, serde_json::Value::String),
            |column| column.json(0),
        );
        (field.name().clone(), value)
    });
    serde_json::Value::Object(values.collect())
}
