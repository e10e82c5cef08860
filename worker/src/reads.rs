//! What the table names in a view's SQL mean inside a run: sources as pinned, views as of interval end.
//!
//! A view's own name is its *state*; `history.view` is all its rows. Views of the same run are read through an overlay that
//! holds their staged rows; others at the Delta version that was recorded when the run began. Nothing is ever read at a
//! log's head.

use std::sync::Arc;

use anyhow::{Context, Result};
use chrono::SecondsFormat;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::{Column, ScalarValue, TableReference};
use datafusion::datasource::empty::EmptyTable;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, SortExpr, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use deltalake::DeltaTable;
use deltalake::kernel::Add;
use indexmap::IndexMap;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{FeatureView, Output, Project, Table};
use tidegate_registry::run::Pins;
use tidegate_registry::time::{Instant, Interval};

use crate::checks::OtherTables;
use crate::lake::Lake;
use crate::sources::Sources;
use crate::types::{INTERVAL_END, INTERVAL_START, RUN_ID, view_schema};

/// The column of an instant's type.
pub(crate) fn instant_literal(at: Instant) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(at.timestamp_micros()), Some("UTC".into())))
}

/// An instant as partition values write it: explicit zone, so that every engine reads the same instant.
pub(crate) fn partition_value(at: Instant) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Everything that the views of one run read.
#[derive(Debug, Clone)]
pub struct RunReads {
    /// The definitions that the run began with.
    pub project: Arc<Project>,
    /// The lake.
    pub lake: Lake,
    /// The sources.
    pub sources: Sources,
    /// The run's interval.
    pub interval: Interval,
    /// The versions that the run is bound to.
    pub pins: Pins,
    /// Staged files of the run's views that are done.
    pub staged: IndexMap<ViewId, Vec<Add>>,
}

impl RunReads {
    /// Registers every table that `view`'s SQL names in `ctx`.
    ///
    /// # Errors
    /// When a source or table cannot be read as pinned.
    pub async fn register(&self, ctx: &SessionContext, view: &FeatureView) -> Result<()> {
        for read in &view.reads {
            register(ctx, &read.name, self.provider(ctx, &read.table).await?)?;
        }
        Ok(())
    }

    /// A table as pinned.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn provider(&self, ctx: &SessionContext, table: &Table) -> Result<Arc<dyn TableProvider>> {
        match table {
            Table::Source(name) => {
                let source = self.project.sources.get(name).with_context(|| format!("`{name}` is not defined"))?;
                let pin = self.pins.sources.get(name.as_str());
                let pin = pin.with_context(|| format!("the source `{name}` was not pinned"))?;
                self.sources.provider(ctx, source, pin).await
            }
            Table::State(id) => self.state(ctx, id).await,
            Table::History(id) => self.history(ctx, id).await,
        }
    }

    /// The tables that the checks of `view` compare its rows with.
    ///
    /// # Errors
    /// When one of them cannot be read as pinned.
    pub async fn other_tables(&self, ctx: &SessionContext, view: &FeatureView) -> Result<OtherTables> {
        let mut tables = OtherTables::new();
        for table in &view.checked_against {
            tables.insert(table.clone(), self.provider(ctx, table).await?);
        }
        Ok(tables)
    }

    /// The state of a view as of the run's interval end.
    ///
    /// # Errors
    /// When its table cannot be read.
    pub async fn state(&self, ctx: &SessionContext, id: &ViewId) -> Result<Arc<dyn TableProvider>> {
        let view = self.view(id)?;
        let schema = state_schema(&self.project, view);
        let interval = if self.staged.contains_key(id) { Some(self.interval) } else { self.pin(id)?.state };
        match (view.output, interval) {
            (_, None) => Ok(Arc::new(EmptyTable::new(schema))),
            (Output::Full, Some(interval)) => {
                let table = self.table(id).await?;
                slice(ctx, &table, interval, &schema).await
            }
            (Output::Partial { ttl }, Some(_)) => {
                let table = self.table(id).await?;
                let keys: Vec<&str> = self.project.keys_of(view).iter().map(|key| key.name.as_str()).collect();
                living(ctx, &table, &keys, self.interval.end(), ttl, &schema).await
            }
        }
    }

    /// The staged rows of a view, whatever its output: what its checks look at.
    ///
    /// # Errors
    /// When its table cannot be read, or nothing of it is staged.
    pub async fn state_of_staged(&self, ctx: &SessionContext, id: &ViewId) -> Result<Arc<dyn TableProvider>> {
        anyhow::ensure!(self.staged.contains_key(id), "nothing of `{id}` is staged");
        let table = self.table(id).await?;
        slice(ctx, &table, self.interval, &state_schema(&self.project, self.view(id)?)).await
    }

    /// All rows of a view up to the run's interval end.
    ///
    /// # Errors
    /// When its table cannot be read.
    pub async fn history(&self, ctx: &SessionContext, id: &ViewId) -> Result<Arc<dyn TableProvider>> {
        let table = self.table(id).await?;
        let all = scan(ctx, &table).await?;
        let past = all.filter(column("interval_end").lt_eq(instant_literal(self.interval.end())))?;
        Ok(columns_of(past, &history_schema(&self.project, self.view(id)?))?.into_view())
    }

    /// A view's table as this run sees it.
    async fn table(&self, id: &ViewId) -> Result<DeltaTable> {
        let version = self.pin(id)?.delta_version;
        match self.staged.get(id) {
            Some(adds) => self.lake.overlay(id, version, self.interval, adds).await,
            None => self.lake.load(id, Some(version)).await,
        }
    }

    fn view(&self, id: &ViewId) -> Result<&FeatureView> {
        self.project.views.get(id).with_context(|| format!("`{id}` is not defined"))
    }

    fn pin(&self, id: &ViewId) -> Result<&tidegate_registry::run::ViewPin> {
        self.pins.views.get(id).with_context(|| format!("the view `{id}` was not pinned"))
    }
}

/// Registers a table under the name that SQL uses: `name`, or `history.name`.
pub(crate) fn register(ctx: &SessionContext, name: &str, provider: Arc<dyn TableProvider>) -> Result<()> {
    let reference = match name.strip_prefix("history.") {
        None => TableReference::bare(name),
        Some(name) => {
            let catalog = ctx.catalog("datafusion").context("the session has no catalog")?;
            if catalog.schema("history").is_none() {
                catalog.register_schema("history", Arc::new(MemorySchemaProvider::new()))?;
            }
            TableReference::partial("history", name)
        }
    };
    ctx.register_table(reference, provider).with_context(|| format!("registering `{name}`"))?;
    Ok(())
}

/// The rows of one interval.
pub(crate) async fn slice(
    ctx: &SessionContext,
    table: &DeltaTable,
    interval: Interval,
    schema: &SchemaRef,
) -> Result<Arc<dyn TableProvider>> {
    let rows = scan(ctx, table).await?.filter(column("interval_start").eq(instant_literal(interval.start())))?;
    Ok(columns_of(rows, schema)?.into_view())
}

/// The newest row of each entity that still counts at `at`: `event_timestamp <= at < event_timestamp + ttl`.
pub(crate) async fn living(
    ctx: &SessionContext,
    table: &DeltaTable,
    keys: &[&str],
    at: Instant,
    ttl: std::time::Duration,
    schema: &SchemaRef,
) -> Result<Arc<dyn TableProvider>> {
    let oldest = at - chrono::Duration::from_std(ttl).context("the ttl is too long")?;
    let newest_first: Vec<SortExpr> =
        vec![column("event_timestamp").sort(false, false), column("interval_start").sort(false, false)];
    let rank = row_number()
        .partition_by(keys.iter().map(|key| column(key)).collect())
        .order_by(newest_first)
        .build()?
        .alias("__rank");
    let rows = scan(ctx, table)
        .await?
        .filter(column("interval_end").lt_eq(instant_literal(at)))?
        .filter(column("event_timestamp").gt(instant_literal(oldest)))?
        .window(vec![rank])?
        .filter(column("__rank").eq(lit(1_u64)))?;
    Ok(columns_of(rows, schema)?.into_view())
}

/// A Delta table as a data frame, with its store known to the session.
pub(crate) async fn scan(ctx: &SessionContext, table: &DeltaTable) -> Result<DataFrame> {
    table.update_datafusion_session(&ctx.state())?;
    let provider = table.table_provider().await?;
    Ok(ctx.read_table(provider)?)
}

/// A column by its exact name (`col` would parse and fold it).
pub(crate) fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

fn columns_of(rows: DataFrame, schema: &SchemaRef) -> Result<DataFrame> {
    Ok(rows.select(schema.fields().iter().map(|field| column(field.name())).collect::<Vec<_>>())?)
}

/// The columns of a view's state: keys, `event_timestamp`, features.
pub fn state_schema(project: &Project, view: &FeatureView) -> SchemaRef {
    without(&view_schema(project, view), &[INTERVAL_START, INTERVAL_END, RUN_ID])
}

/// The columns of a view's history: its state's, and the interval that each row belongs to.
pub fn history_schema(project: &Project, view: &FeatureView) -> SchemaRef {
    without(&view_schema(project, view), &[RUN_ID])
}

fn without(schema: &SchemaRef, left_out: &[&str]) -> SchemaRef {
    let kept = schema.fields().iter().filter(|field| !left_out.contains(&field.name().as_str())).cloned();
    Arc::new(Schema::new(kept.collect::<Vec<_>>()))
}
