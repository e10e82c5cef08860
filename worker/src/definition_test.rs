//! Tests of definitions: a view computed from a few rows in memory, by the same planning, casting and sorting as a run.
//!
//! Neither registry, nor lake, nor a source's data is needed. A source's schema is used where it is known, so that a test
//! sees the types that a run would see; else types are guessed from the rows.

mod rows;
#[cfg(test)]
mod tests;
mod verdicts;

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use futures::future::BoxFuture;
use serde_json::Value;
use tidegate_registry::diagnostics::{Diagnostic, Origin, ids};
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::{DefinitionTest, FeatureView, Project, Table, TestRow};

pub use self::verdicts::CheckOutcome;

use self::rows::{BadValue, batch, guessed, nullable};
use crate::engine::{Engine, Joins};
use crate::lake::TableSchema;
use crate::reads::{column, history_schema, instant_literal, register, state_schema};
use crate::sqlcheck::{SourceSchemas, nearest};
use crate::stage::output;
use crate::text::TextColumn;
use crate::types::describe_one;

/// Doubles that differ by no more than this share of the larger are equal.
const DOUBLE_TOLERANCE: f64 = 1e-9;
/// The same for floats, of which fewer digits are stored.
const FLOAT_TOLERANCE: f64 = 1e-6;

/// What a test found.
#[derive(Debug, Clone, PartialEq)]
pub struct TestOutcome {
    /// The columns that are compared: those that an expected row names, else the view's keys; none where no rows are expected
    /// or refused.
    pub columns: Vec<String>,
    /// The rows that are on one side only: each expected one is followed by those computed for the same keys.
    pub differences: Vec<Difference>,
    /// What the checks say whose verdicts are expected, in the order as written.
    pub checks: Vec<CheckOutcome>,
}

impl TestOutcome {
    /// Whether what was computed is what was expected.
    pub fn passed(&self) -> bool {
        self.differences.is_empty() && self.checks.iter().all(CheckOutcome::passed)
    }
}

/// A row that is on one side only.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Expected and not computed; else computed and not expected.
    pub expected: bool,
    /// One JSON value for each of the compared columns.
    pub values: Vec<Value>,
}

/// Computes the view of `test` from the rows that it gives.
///
/// # Errors
/// When the query fails, or a value that the test gives or expects is not one of its column.
pub async fn run_test(
    engine: &Engine,
    project: &Project,
    schemas: &SourceSchemas,
    test: &DefinitionTest,
) -> Result<TestOutcome> {
    let view = project.views.get(&test.view).with_context(|| format!("`{}` is not defined", test.view))?;
    let base = engine.context(Joins::Hash)?;
    let resolver = Resolver { engine, base: &base, project, schemas, test };
    let (ctx, computed) = resolver.rows(view).await?;
    let checks =
        verdicts::judge(&ctx, project, view, test, &TableSchema::of(project, &view.id)?.file, &computed).await?;
    let Some(expect) = &test.expect else {
        return Ok(TestOutcome { columns: Vec::new(), differences: Vec::new(), checks });
    };
    let state = nullable(&state_schema(project, view));
    let named = |name: &str| expect.iter().any(|row| row.values.contains_key(name));
    let mut columns: Vec<String> = state.fields().iter().map(|field| field.name().clone()).collect();
    columns.retain(|name| named(name));
    if columns.is_empty() {
        columns = project.keys_of(view).iter().map(|key| key.name.clone()).collect();
    }
    let mut kinds = Vec::with_capacity(columns.len());
    for name in &columns {
        kinds.push(state.field_with_name(name)?.data_type().clone());
    }
    let expected = batch(&state, expect)?;
    let expected = values(std::slice::from_ref(&expected), &columns)?;
    let computed = values(&computed, &columns)?;
    let keys: Vec<usize> =
        (0..columns.len()).filter(|&at| project.keys_of(view).iter().any(|key| key.name == columns[at])).collect();
    Ok(TestOutcome { differences: differences(expected, computed, &kinds, &keys), columns, checks })
}

/// The rows as JSON values of `columns`.
fn values(batches: &[RecordBatch], columns: &[String]) -> Result<Vec<Vec<Value>>> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns = columns
            .iter()
            .map(|name| {
                let array = batch.column_by_name(name).with_context(|| format!("no column `{name}`"))?;
                TextColumn::new(array).with_context(|| format!("printing `{name}`"))
            })
            .collect::<Result<Vec<_>>>()?;
        rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|column| column.json(row)).collect()));
    }
    Ok(rows)
}

/// Takes equal rows away from both sides; what is left differs.
fn differences(
    expected: Vec<Vec<Value>>,
    mut computed: Vec<Vec<Value>>,
    kinds: &[DataType],
    keys: &[usize],
) -> Vec<Difference> {
    let equal = |a: &[Value], b: &[Value]| (0..kinds.len()).all(|at| alike(&a[at], &b[at], tolerance(&kinds[at])));
    let mut missing = Vec::new();
    for row in expected {
        match computed.iter().position(|other| equal(&row, other)) {
            Some(same) => drop(computed.remove(same)),
            None => missing.push(row),
        }
    }
    let mut found = Vec::with_capacity(missing.len() + computed.len());
    for row in missing {
        let of_keys = |other: &Vec<Value>| !keys.is_empty() && keys.iter().all(|&at| row[at] == other[at]);
        let (same, other) = std::mem::take(&mut computed).into_iter().partition::<Vec<_>, _>(of_keys);
        computed = other;
        found.push(Difference { expected: true, values: row });
        found.extend(same.into_iter().map(|values| Difference { expected: false, values }));
    }
    found.extend(computed.into_iter().map(|values| Difference { expected: false, values }));
    found
}

fn tolerance(kind: &DataType) -> f64 {
    match kind {
        DataType::Float32 => FLOAT_TOLERANCE,
        DataType::Float64 => DOUBLE_TOLERANCE,
        DataType::List(item) => tolerance(item.data_type()),
        _ => 0.0,
    }
}

fn alike(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) if tolerance > 0.0 => match (x.as_f64(), y.as_f64()) {
            (Some(x), Some(y)) => x == y || (x - y).abs() <= tolerance * x.abs().max(y.abs()),
            _ => x == y,
        },
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| alike(x, y, tolerance))
        }
        _ => a == b,
    }
}

/// Finds what table names mean: rows of the test where it gives them, else another query.
struct Resolver<'a> {
    engine: &'a Engine,
    base: &'a SessionContext,
    project: &'a Project,
    schemas: &'a SourceSchemas,
    test: &'a DefinitionTest,
}

impl Resolver<'_> {
    /// The rows, and the session that computed them.
    async fn rows(&self, view: &FeatureView) -> Result<(SessionContext, Vec<RecordBatch>)> {
        let ctx = self.session_for(view).await?;
        let schema = TableSchema::of(self.project, &view.id)?;
        let computing = || format!("computing `{}`", view.id);
        let run = RunId::generate();
        let rows = output(&ctx, self.project, view, &schema.file, self.test.interval, run).await;
        let rows = rows.with_context(computing)?.collect().await.with_context(computing)?;
        Ok((ctx, rows))
    }

    /// A session in which every table that `view` names is registered.
    fn session_for<'b>(&'b self, view: &'b FeatureView) -> BoxFuture<'b, Result<SessionContext>> {
        Box::pin(async move {
            let ctx = self.engine.context_beside(self.base);
            for read in &view.reads {
                register(&ctx, &read.name, self.provider(&read.table).await?)?;
            }
            Ok(ctx)
        })
    }

    async fn provider(&self, table: &Table) -> Result<Arc<dyn TableProvider>> {
        let Some(given) = self.test.given(table) else {
            return match table {
                Table::Source(name) => anyhow::bail!("the test does not give rows for `{name}`"),
                Table::State(id) => self.computed(id, false).await,
                Table::History(id) => self.computed(id, true).await,
            };
        };
        let schema = schema_of(self.project, self.schemas, table).unwrap_or_else(|| guessed(&given.rows));
        let rows = batch(&schema, &given.rows)?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![rows]])?))
    }

    /// A view that is read and not given: its rows of this interval are all that there are.
    async fn computed(&self, id: &ViewId, history: bool) -> Result<Arc<dyn TableProvider>> {
        let view = self.project.views.get(id).with_context(|| format!("`{id}` is not defined"))?;
        let inner = self.session_for(view).await?;
        let schema = TableSchema::of(self.project, id)?;
        let interval = self.test.interval;
        let rows = output(&inner, self.project, view, &schema.file, interval, RunId::generate()).await;
        let rows = rows.with_context(|| format!("computing `{id}`"))?;
        let rows = rows.with_column("interval_start", instant_literal(interval.start()))?;
        let wanted = if history { history_schema(self.project, view) } else { state_schema(self.project, view) };
        Ok(rows.select(wanted.fields().iter().map(|field| column(field.name())).collect::<Vec<_>>())?.into_view())
    }
}

/// The columns of a table, all of them nullable; `None` of a source that cannot be read.
fn schema_of(project: &Project, schemas: &SourceSchemas, table: &Table) -> Option<SchemaRef> {
    let schema = match table {
        Table::Source(name) => Arc::clone(schemas.get(name)?.as_ref().ok()?),
        Table::State(id) => state_schema(project, project.views.get(id)?),
        Table::History(id) => history_schema(project, project.views.get(id)?),
    };
    Some(nullable(&schema))
}

/// What is wrong with what `tests` give and expect: columns that a source does not have, and values that are none of their
/// column. Of each column the first.
pub fn check_tests(project: &Project, schemas: &SourceSchemas, tests: &[DefinitionTest]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for test in tests {
        let made = Table::State(test.view.clone());
        let given = test.given.iter().map(|given| (&given.table, &given.rows));
        for (table, rows) in given.chain(test.expect.iter().map(|rows| (&made, rows))) {
            if let Some(schema) = schema_of(project, schemas, table) {
                check_rows(table, &schema, rows, &mut found);
            }
        }
    }
    found
}

fn check_rows(table: &Table, schema: &SchemaRef, rows: &[TestRow], found: &mut Vec<Diagnostic>) {
    let mut told: HashSet<&str> = HashSet::new();
    for (name, value) in rows.iter().flat_map(|row| &row.values) {
        let bad = match (schema.field_with_name(name), table) {
            (Ok(field), _) => BadValue::of(name, value, field.data_type()).map(|bad| {
                Diagnostic::error(ids::BAD_TEST, value.origin.clone(), bad.to_string())
                    .with_label(format!("not {}", describe_one(field.data_type())))
                    .with_help(
                        "days and times are written as `2013-01-08` and `2013-01-08T07:15:00Z`, and text that looks like a \
                         number in quotes",
                    )
            }),
            (Err(_), Table::Source(source)) => Some(unknown_column(name, &value.column, source.as_str(), schema)),
            // Of views it has been told by now.
            (Err(_), Table::State(_) | Table::History(_)) => None,
        };
        if let Some(bad) = bad
            && told.insert(name)
        {
            found.push(bad);
        }
    }
}

fn unknown_column(name: &str, origin: &Origin, source: &str, schema: &SchemaRef) -> Diagnostic {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let help = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it has the columns `{}`", names.join("`, `")),
    };
    Diagnostic::error(ids::BAD_TEST, origin.clone(), format!("`{name}` is not a column of the source `{source}`"))
        .with_label("no such column")
        .with_help(help)
}
