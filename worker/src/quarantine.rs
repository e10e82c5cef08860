//! Rows that were computed and set aside: writing, reading and letting them through.
//!
//! They lie in a Delta table of their own beside the view's ([`Lake::quarantine`]), staged with the same run and committed
//! under the same publish number. Its slice of an interval is replaced with the view's: it holds what the publication that
//! is in force kept out, so the rows of both tables are what that run computed. A run that is blocked or fails leaves
//! nothing here.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::logical_expr::lit;
use datafusion::prelude::{DataFrame, SessionContext};
use delta_kernel::expressions::Scalar;
use delta_kernel::table_properties::DataSkippingNumIndexedCols;
use deltalake::datafile::writer::{PartitionWriter, PartitionWriterConfig};
use deltalake::parquet::basic::{Compression, ZstdLevel};
use deltalake::parquet::file::properties::WriterProperties;
use futures::StreamExt;
use indexmap::IndexMap;
use object_store::path::Path;
use serde_json::Value;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::run::SetAside;
use tidegate_registry::time::{Instant, Interval};

use crate::checks::Readmitted;
use crate::engine::{Engine, Joins};
use crate::lake::{Lake, TableSchema};
use crate::reads::{column, instant_literal, partition_value, scan};
use crate::stage::{FILE_BYTES, StageRequest};
use crate::text::TextColumn;
use crate::types::{EVENT_TIMESTAMP, QUARANTINE_END, QUARANTINE_RUN, QUARANTINE_START, QUARANTINED_AT};

/// Statistics in the log cover so many leading columns: Delta's default.
const INDEXED_COLUMNS: u64 = 32;

/// Stages rows that are set aside, from the first one on: a run without any touches nothing.
pub(crate) struct Aside<'a> {
    request: &'a StageRequest,
    prefix: Path,
    schema: TableSchema,
    writer: Option<PartitionWriter>,
    rows: u64,
}

impl<'a> Aside<'a> {
    /// Files will lie below `prefix` in the quarantine table.
    ///
    /// # Errors
    /// When the view is not defined.
    pub(crate) fn new(request: &'a StageRequest, prefix: Path) -> Result<Self> {
        let schema = TableSchema::of_quarantine(&request.reads.project, &request.view)?;
        Ok(Self { request, prefix, schema, writer: None, rows: 0 })
    }

    /// Stages `rows`: computed columns with `_rule` and `_reason`.
    ///
    /// # Errors
    /// When the table cannot be made or a file cannot be written.
    pub(crate) async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let doing = || format!("setting rows of `{}` aside", self.request.view);
        let stored = self.stored(rows).with_context(doing)?;
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => open(self.request, &self.schema, &self.prefix).await.with_context(doing)?,
        };
        let written = writer.write(&stored).await;
        // Kept whatever came of it, so that it can be aborted.
        self.writer = Some(writer);
        written.with_context(|| format!("setting rows of `{}` aside", self.request.view))?;
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    /// `rows` with the columns that are the same for all of them.
    fn stored(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let count = rows.num_rows();
        let instant = |at: Instant| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from_value(at.timestamp_micros(), count).with_timezone("UTC"))
        };
        let mut columns = Vec::with_capacity(self.schema.file.fields().len());
        for field in self.schema.file.fields() {
            columns.push(match field.name().as_str() {
                QUARANTINE_RUN => {
                    let run = self.request.run.to_string();
                    Arc::new(StringArray::from_iter_values(std::iter::repeat_n(run, count))) as ArrayRef
                }
                QUARANTINE_END => instant(self.request.reads.interval.end()),
                QUARANTINED_AT => instant(self.request.now),
                name => {
                    Arc::clone(rows.column_by_name(name).with_context(|| format!("the rows have no column `{name}`"))?)
                }
            });
        }
        RecordBatch::try_new(Arc::clone(&self.schema.file), columns).context("putting the columns together")
    }

    /// What was staged; `None` when nothing was set aside.
    ///
    /// # Errors
    /// When a file cannot be finished.
    pub(crate) async fn close(self) -> Result<Option<SetAside>> {
        let Some(writer) = self.writer else { return Ok(None) };
        let doing = || format!("setting rows of `{}` aside", self.request.view);
        let mut adds = writer.close().await.with_context(doing)?;
        for add in &mut adds {
            let start = partition_value(self.request.reads.interval.start());
            add.partition_values.insert(QUARANTINE_START.to_owned(), Some(start));
        }
        let adds =
            adds.iter().map(serde_json::to_value).collect::<Result<_, _>>().context("describing staged files")?;
        Ok(Some(SetAside { adds, rows: self.rows }))
    }

    /// Drops what was staged so far.
    pub(crate) async fn abort(self) {
        if let Some(writer) = self.writer
            && let Err(left) = writer.abort().await
        {
            tracing::debug!(view = %self.request.view, "What was set aside so far was not dropped: {left}");
        }
    }
}

async fn open(request: &StageRequest, schema: &TableSchema, prefix: &Path) -> Result<PartitionWriter> {
    let lake = &request.reads.lake;
    lake.ensure_quarantine(&request.view, schema).await?;
    let start = Scalar::Timestamp(request.reads.interval.start().timestamp_micros());
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(concat!("tidegate ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    let config = PartitionWriterConfig::try_new(
        Arc::clone(&schema.file),
        IndexMap::from([(QUARANTINE_START.to_owned(), start)]),
        Some(properties),
        Some(FILE_BYTES),
        None,
        None,
        Some(prefix.clone()),
    )?;
    let indexed = DataSkippingNumIndexedCols::NumColumns(INDEXED_COLUMNS);
    let store = lake.quarantine().open_table(&request.view)?.object_store();
    Ok(PartitionWriter::try_with_config(store, config, indexed, None)?)
}

/// The rows of `interval` that `run` has set aside in `view`, by the columns `identity`.
///
/// # Errors
/// When they are no longer what is set aside of the interval, or cannot be read.
pub(crate) async fn readmitted(
    ctx: &SessionContext,
    lake: &Lake,
    view: &ViewId,
    interval: Interval,
    run: RunId,
    identity: &[String],
) -> Result<Readmitted> {
    let rows = slice(ctx, lake, view, None).await?;
    let rows = rows
        .filter(column(QUARANTINE_START).eq(instant_literal(interval.start())))?
        .filter(column(QUARANTINE_RUN).eq(lit(run.to_string())))?
        .select(identity.iter().map(|name| column(name)).collect::<Vec<_>>())?;
    let mut readmitted = Readmitted::default();
    let mut count = 0;
    let mut stream = rows.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        count += batch.num_rows();
        readmitted.add(&batch, identity)?;
    }
    ensure!(
        count > 0,
        "what run {run} had set aside of `{view}` is replaced by what a later run of the interval set aside"
    );
    Ok(readmitted)
}

async fn slice(ctx: &SessionContext, lake: &Lake, view: &ViewId, version: Option<u64>) -> Result<DataFrame> {
    let table =
        lake.quarantine().load(view, version).await.with_context(|| format!("reading what `{view}` set aside"))?;
    scan(ctx, &table).await
}

/// Rows that were set aside, as JSON objects by column name.
pub type Rows = Vec<serde_json::Map<String, Value>>;

/// What lies in the quarantine table of `view` at `version`: of `run`, or of all; the newest interval first, then by
/// entity (`keys`) and time; at most `limit` rows.
///
/// # Errors
/// When the table cannot be read.
pub async fn rows(
    engine: &Engine,
    lake: &Lake,
    view: &ViewId,
    version: u64,
    run: Option<RunId>,
    keys: &[String],
    limit: usize,
) -> Result<Rows> {
    let ctx = engine.context(Joins::Hash)?;
    let mut found = slice(&ctx, lake, view, Some(version)).await?;
    if let Some(run) = run {
        found = found.filter(column(QUARANTINE_RUN).eq(lit(run.to_string())))?;
    }
    let mut order = vec![column(QUARANTINE_START).sort(false, false)];
    order.extend(keys.iter().map(String::as_str).chain([EVENT_TIMESTAMP]).map(|key| column(key).sort(true, false)));
    let found = found.sort(order)?.limit(0, Some(limit))?;
    engine
        .run(async move {
            let mut rows = Rows::new();
            let mut stream = found.execute_stream().await?;
            while let Some(batch) = stream.next().await {
                let batch = batch?;
                let mut columns = Vec::with_capacity(batch.num_columns());
                for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
                    let texts = TextColumn::new(array).with_context(|| format!("printing `{}`", field.name()))?;
                    columns.push((field.name().clone(), texts));
                }
                let row = |row| columns.iter().map(|(name, texts)| (name.clone(), texts.json(row))).collect();
                rows.extend((0..batch.num_rows()).map(row));
            }
            anyhow::Ok(rows)
        })
        .await?
}

#[cfg(test)]
#[path = "quarantine_tests.rs"]
mod tests;
