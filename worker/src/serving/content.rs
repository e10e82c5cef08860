//! What a view is online: its state at an instant, by a version of its table.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::{DataFrame, SessionContext};
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{FeatureView, Key, Output, Project};
use tidegate_registry::time::{Instant, Interval};

use crate::engine::{Engine, Joins};
use crate::lake::Lake;
use crate::reads::{column, living, slice, state_schema};

/// How rows come to be sorted by entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As their files have them: every run sorts what it writes.
    AsStored,
    /// By the engine, which spills what does not fit into memory.
    Sorted,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) project: Arc<Project>,
    pub(crate) view: ViewId,
    /// The table's version.
    pub(crate) version: u64,
    /// Of a `full` view: the interval whose rows are the state.
    pub(crate) interval: Interval,
    /// Of a `partial` view: when its rows must be alive.
    pub(crate) at: Instant,
}

impl Content {
    pub(crate) fn view(&self) -> Result<&FeatureView> {
        self.project.views.get(&self.view).with_context(|| format!("`{}` is not defined", self.view))
    }

    pub(crate) fn keys(&self) -> Result<&[Key]> {
        Ok(self.project.keys_of(self.view()?))
    }

    /// Its rows: keys, `event_timestamp`, features.
    pub(crate) async fn rows(&self, engine: &Engine, lake: &Lake) -> Result<SendableRecordBatchStream> {
        let frame = self.frame(&engine.context(Joins::Hash)?, lake).await?;
        frame.execute_stream().await.with_context(|| format!("reading the rows of `{}`", self.view))
    }

    /// Up to `limit` of its rows.
    pub(crate) async fn some_rows(&self, engine: &Engine, lake: &Lake, limit: usize) -> Result<Vec<RecordBatch>> {
        let frame = self.frame(&engine.context(Joins::Hash)?, lake).await?.limit(0, Some(limit))?;
        frame.collect().await.with_context(|| format!("reading rows of `{}`", self.view))
    }

    /// Its rows one after the other in the order of their entities, which [`Order::AsStored`] only hopes for.
    pub(super) async fn rows_by_entity(
        &self,
        engine: &Engine,
        lake: &Lake,
        order: Order,
    ) -> Result<SendableRecordBatchStream> {
        let frame = match order {
            Order::AsStored => self.frame(&engine.context_in_order()?, lake).await?,
            Order::Sorted => {
                let keys = self.keys()?.iter().map(|key| column(&key.name).sort(true, false)).collect();
                self.frame(&engine.context(Joins::Hash)?, lake).await?.sort(keys)?
            }
        };
        frame.execute_stream().await.with_context(|| format!("reading the rows of `{}`", self.view))
    }

    async fn frame(&self, ctx: &SessionContext, lake: &Lake) -> Result<DataFrame> {
        let view = self.view()?;
        let table = lake.load(&self.view, Some(self.version)).await?;
        let schema = state_schema(&self.project, view);
        let provider = match view.output {
            Output::Full => slice(ctx, &table, self.interval, &schema).await?,
            Output::Partial { ttl } => {
                let names: Vec<&str> = self.keys()?.iter().map(|key| key.name.as_str()).collect();
                living(ctx, &table, &names, self.at, ttl, &schema).await?
            }
        };
        Ok(ctx.read_table(provider)?)
    }
}
