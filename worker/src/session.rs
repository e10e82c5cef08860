//! The one way in which SQL is read: which functions exist, which settings hold, how a query becomes a plan.
//!
//! Validation, previews and runs all build their sessions here, so that a query which `validate` accepts means the same
//! in a run. Three rules make a view's rows depend on its inputs and its interval alone:
//!
//! - Only functions that always give the same answer are known ([`is_volatile_function`] names the others), and no table
//!   functions: nothing reads the clock, random numbers or a path.
//! - Only a single query is a query: no DDL, DML, `SET`, `EXPLAIN` ([`plan_query`]).
//! - The session's zone is UTC, so zoneless text never means the machine's wall clock.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ParamValues, ScalarValue, plan_err};
use datafusion::config::Dialect;
use datafusion::error::Result;
use datafusion::execution::SessionStateDefaults;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::sqlparser::ast::Statement as SqlStatement;
use datafusion::logical_expr::{Expr, LogicalPlan, Signature, Volatility, lit};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use tidegate_registry::time::Interval;

/// A builder of session states that know exactly the functions a view may use, and nothing that touches files.
pub fn session_state_builder() -> SessionStateBuilder {
    SessionStateBuilder::new()
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_scalar_functions(kept(SessionStateDefaults::default_scalar_functions(), |f| f.signature()))
        .with_aggregate_functions(kept(SessionStateDefaults::default_aggregate_functions(), |f| f.signature()))
        .with_window_functions(kept(SessionStateDefaults::default_window_functions(), |f| f.signature()))
        .with_higher_order_functions(SessionStateDefaults::default_higher_order_functions())
}

/// A context for views' queries: `config` with the settings above laid over it, in `runtime`.
pub fn new_context(config: SessionConfig, runtime: Arc<RuntimeEnv>) -> SessionContext {
    let builder = session_state_builder().with_config(settled(config)).with_runtime_env(runtime);
    let state = tidegate_asof::register(builder).build();
    SessionContext::new_with_state(state)
}

/// Whether `name` is a function that is left out because its answer changes from call to call or from day to day.
pub fn is_volatile_function(name: &str) -> bool {
    static NAMES: LazyLock<HashSet<String>> = LazyLock::new(|| {
        SessionStateDefaults::default_scalar_functions()
            .iter()
            .filter(|function| !is_repeatable(function.signature()))
            .flat_map(|function| {
                function
                    .aliases()
                    .iter()
                    .map(String::as_str)
                    .chain([function.name()])
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect()
    });
    NAMES.contains(&name.to_lowercase())
}

/// Plans `sql` against the tables registered in `ctx`, with `$interval_start` and `$interval_end` bound.
///
/// The plan is not optimized; its types are those of the bound query.
///
/// # Errors
/// When `sql` is not exactly one query, does not parse, names unknown tables, columns, functions or placeholders, or
/// its types do not fit. Errors carry places inside `sql` where DataFusion knows them.
pub async fn plan_query(ctx: &SessionContext, sql: &str, params: Interval) -> Result<LogicalPlan> {
    plan_in(&ctx.state(), sql, params).await
}

/// [`plan_query`] for callers who plan many queries in one state.
pub(crate) async fn plan_in(state: &SessionState, sql: &str, params: Interval) -> Result<LogicalPlan> {
    let statement = state.sql_to_statement(sql, &Dialect::PostgreSQL)?;
    if !is_query(&statement) {
        return plan_err!("only a query can define a view: begin with SELECT, WITH or VALUES");
    }
    let plan = state.statement_to_plan(statement).await?;
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    read_only.verify_plan(&plan)?;
    // Bound before anything looks at types: an unbound placeholder's type is guessed from its surroundings, wrongly.
    plan.with_param_values(ParamValues::from(vec![
        ("interval_start", instant(params.start().timestamp_micros())),
        ("interval_end", instant(params.end().timestamp_micros())),
    ]))
}

/// Plans `sql` as a condition over the columns of `schema`, with the same functions and placeholders as a query.
///
/// # Errors
/// When `sql` is not exactly one expression over these columns, looks at other rows or tables, or is not true or false.
pub(crate) fn plan_condition(
    state: &SessionState,
    sql: &str,
    schema: &DFSchema,
    params: Interval,
) -> Result<Arc<dyn PhysicalExpr>> {
    let condition = state.create_physical_expr(logical_condition(state, sql, schema, params)?, schema)?;
    match condition.data_type(schema.as_arrow())? {
        DataType::Boolean | DataType::Null => Ok(condition),
        other => plan_err!("a condition is true or false, and this is a {}", crate::types::describe(&other)),
    }
}

/// [`plan_condition`] as an expression of a plan, which then says whether it is true or false.
///
/// # Errors
/// When `sql` is not exactly one expression over these columns, or looks at other rows or tables.
pub(crate) fn logical_condition(state: &SessionState, sql: &str, schema: &DFSchema, params: Interval) -> Result<Expr> {
    let condition = state.create_logical_expr(sql, schema)?;
    let of_many = |part: &Expr| matches!(part, Expr::AggregateFunction(_) | Expr::WindowFunction(_));
    if condition.exists(|part| Ok(of_many(part)))? {
        return plan_err!("a condition looks at one row at a time: write a `sql` check to compare rows");
    }
    let bound = condition.transform(|part| match &part {
        Expr::Placeholder(placeholder) => match placeholder.id.as_str() {
            "$interval_start" => Ok(Transformed::yes(lit(instant(params.start().timestamp_micros())))),
            "$interval_end" => Ok(Transformed::yes(lit(instant(params.end().timestamp_micros())))),
            other => plan_err!("there is no placeholder {other}: write $interval_start or $interval_end"),
        },
        _ => Ok(Transformed::no(part)),
    })?;
    Ok(bound.data)
}

fn instant(micros: i64) -> ScalarValue {
    ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()))
}

fn is_query(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(inner) if matches!(**inner, SqlStatement::Query(_)))
}

fn settled(mut config: SessionConfig) -> SessionConfig {
    let options = config.options_mut();
    options.execution.time_zone = Some("+00:00".to_owned());
    options.sql_parser.dialect = Dialect::PostgreSQL;
    options.sql_parser.collect_spans = true;
    options.catalog.information_schema = false;
    config
}

fn kept<F>(functions: Vec<Arc<F>>, signature: impl Fn(&F) -> &Signature) -> Vec<Arc<F>> {
    functions.into_iter().filter(|function| is_repeatable(signature(function))).collect()
}

fn is_repeatable(signature: &Signature) -> bool {
    signature.volatility == Volatility::Immutable
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    use datafusion::datasource::empty::EmptyTable;

    fn context() -> SessionContext {
        let ctx = new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default()));
        let schema = Schema::new(vec![
            Field::new("carrier", DataType::Utf8, true),
            Field::new("dep_delay", DataType::Float64, true),
            Field::new("time_hour", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        ]);
        ctx.register_table("flights", Arc::new(EmptyTable::new(Arc::new(schema)))).unwrap();
        ctx
    }

    fn interval() -> Interval {
        Interval::new("2013-01-08T00:00:00Z".parse().unwrap(), "2013-01-09T00:00:00Z".parse().unwrap()).unwrap()
    }

    async fn plan(sql: &str) -> Result<LogicalPlan> {
        let ctx = context();
        let plan = plan_query(&ctx, sql, interval()).await?;
        ctx.state().optimize(&plan)?;
        Ok(plan)
    }

    #[tokio::test]
    async fn placeholders_are_instants_wherever_they_stand() {
        let sql = "SELECT carrier, $interval_end AS event_timestamp, $interval_start - INTERVAL '1 day' AS before, \
                   (SELECT max(time_hour) FROM flights WHERE time_hour < $interval_end) AS newest, count(*) AS n \
                   FROM flights WHERE time_hour >= $interval_end - INTERVAL '7 days' AND time_hour < $interval_end \
                   GROUP BY carrier";
        let plan = plan(sql).await.unwrap();
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        for column in ["event_timestamp", "before", "newest"] {
            assert_eq!(plan.schema().field_with_unqualified_name(column).unwrap().data_type(), &utc, "{column}");
        }
    }

    #[tokio::test]
    async fn only_one_query_is_a_query() {
        for sql in [
            "CREATE TABLE t AS SELECT 1",
            "SELECT 1 AS a INTO t",
            "INSERT INTO flights SELECT * FROM flights",
            "COPY flights TO '/tmp/x.parquet'",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE SELECT 1",
            "DESCRIBE flights",
            "SET datafusion.execution.time_zone = '+02:00'",
            "SHOW TABLES",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "SELECT 1; SELECT 2",
            "DELETE FROM flights",
            "WITH x AS (DELETE FROM flights RETURNING *) SELECT * FROM x",
            "",
        ] {
            assert!(plan(sql).await.is_err(), "{sql}");
        }
        plan("WITH x AS (SELECT 1 AS a) SELECT a FROM x").await.unwrap();
    }

    #[tokio::test]
    async fn nothing_reads_the_clock_or_chance_or_a_path() {
        for name in ["now()", "current_timestamp", "current_date", "current_time", "random()", "uuid()"] {
            let function = name.trim_end_matches("()");
            assert!(plan(&format!("SELECT {name}")).await.is_err(), "{name}");
            assert!(is_volatile_function(function), "{function}");
        }
        for sql in [
            "SELECT * FROM '/etc/passwd'",
            "SELECT * FROM generate_series(1, 3)",
            "SELECT * FROM information_schema.tables",
            "SELECT * FROM read_parquet('/etc/x')",
        ] {
            assert!(plan(sql).await.is_err(), "{sql}");
        }
    }

    #[tokio::test]
    async fn everyday_functions_are_there() {
        plan(
            "SELECT round(abs(avg(dep_delay))), sqrt(stddev(dep_delay)), ln(max(dep_delay) + 1), \
             coalesce(sum(dep_delay), 0), approx_percentile_cont(dep_delay, 0.9), \
             date_trunc('day', max(time_hour)), extract(hour FROM min(time_hour)), upper(min(carrier)), \
             substring(min(carrier) FROM 1 FOR 2), array_agg(carrier), least(1, 2), nullif(1, 1) FROM flights",
        )
        .await
        .unwrap();
        plan("SELECT carrier, lag(dep_delay) OVER (PARTITION BY carrier ORDER BY time_hour) FROM flights")
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn unknown_placeholders_are_refused() {
        let error = plan("SELECT $run_id AS x").await.unwrap_err();
        assert!(error.to_string().contains("run_id"), "{error}");
    }
}
