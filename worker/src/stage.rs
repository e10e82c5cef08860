//! Staging: a view's query streams into Parquet files that no log entry names, and is checked on the way.
//!
//! One pass does everything: the rows are sorted by entity, cast to the declared types, checked, hashed and written. What
//! comes out are the exact `add` actions of the later commit.

use std::num::NonZeroU64;
use std::sync::Arc;

use anyhow::{Context, Result};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::Column;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, cast, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use delta_kernel::expressions::Scalar;
use delta_kernel::table_properties::DataSkippingNumIndexedCols;
use deltalake::datafile::writer::{PartitionWriter, PartitionWriterConfig};
use deltalake::kernel::Add;
use deltalake::parquet::basic::{Compression, Encoding, ZstdLevel};
use deltalake::parquet::file::properties::{EnabledStatistics, WriterProperties};
use deltalake::parquet::schema::types::ColumnPath;
use futures::StreamExt;
use indexmap::IndexMap;
use object_store::path::Path;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::{FeatureView, Output, Project, Rule};
use tidegate_registry::run::{StagedView, Verdict};
use tidegate_registry::time::{Instant, Interval};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::checks::{CheckRunner, Diverter, Split, read_others, run_sql_check};
use crate::digest::{DigestError, Digester};
use crate::engine::{Engine, Joins};
use crate::lake::TableSchema;
use crate::quarantine::{Aside, readmitted};
use crate::reads::{RunReads, column, instant_literal, partition_value, register};
use crate::session::plan_query;

/// Files are rolled above this size.
pub(crate) const FILE_BYTES: NonZeroU64 = NonZeroU64::new(256 << 20).expect("it is not 0");
/// Larger row groups share dictionaries better; smaller ones cost a third more space.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// Batches that may wait for the checks.
const BATCHES_AHEAD: usize = 4;
/// Statistics in the log cover so many leading columns: Delta's default.
const INDEXED_COLUMNS: u64 = 32;
/// The writer is fed in chunks of this many rows.
const WRITE_ROWS: usize = 8_192;

/// What to stage.
#[derive(Debug, Clone)]
pub struct StageRequest {
    /// What the query reads.
    pub reads: RunReads,
    /// The view.
    pub view: ViewId,
    /// The run, whose files lie below `data/{run}/`.
    pub run: RunId,
    /// Which attempt: attempts never share files.
    pub attempt: String,
    /// The run whose rows, set aside by it, are let through.
    pub readmit: Option<RunId>,
    /// Project time, noted with rows that are set aside.
    pub now: Instant,
    /// Whether columns are profiled. Runs always do; a benchmark shows what it costs.
    pub profile: bool,
}

/// Computes, checks and stages one view.
///
/// A query that runs out of memory with hash joins is tried once more with joins that spill.
///
/// # Errors
/// When the query fails or files cannot be written. A failed check is not an error: it is a verdict.
pub async fn stage(engine: &Engine, request: &StageRequest) -> Result<StagedView> {
    match stage_with(engine, request, Joins::Hash, "h").await {
        Err(error) if is_out_of_memory(&error) => {
            tracing::info!(view = %request.view, run.id = %request.run, "Out of memory with hash joins; trying sort-merge joins.");
            stage_with(engine, request, Joins::SortMerge, "m").await
        }
        done => done,
    }
}

/// Whether the memory pool refused something: other joins may need less.
fn is_out_of_memory(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<DataFusionError>()
            .is_some_and(|error| matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)))
    })
}

async fn stage_with(engine: &Engine, request: &StageRequest, joins: Joins, suffix: &str) -> Result<StagedView> {
    let reads = &request.reads;
    let project = reads.project.as_ref();
    let view = project.views.get(&request.view).with_context(|| format!("`{}` is not defined", request.view))?;
    let schema = TableSchema::of(project, &view.id)?;
    let ctx = engine.context(joins)?;
    reads.register(&ctx, view).await?;
    let computing = || format!("computing `{}`", view.id);
    let rows = output(&ctx, project, view, &schema.file, reads.interval, request.run).await.with_context(computing)?;
    let prefix = Path::from(format!("data/{}/{}{suffix}", request.run, request.attempt));
    let others = reads.other_tables(&ctx, view).await?;
    let mut others = read_others(&ctx, view, &schema.file, reads.interval, &others).await?;
    let table = reads.lake.open_table(&view.id)?;
    let mut aside = Aside::new(request, prefix.clone())?;
    let mut writer = writer(&table, project, view, &schema.file, reads.interval, prefix)?;
    let mut diverter = Diverter::new(view, project.keys_of(view), reads.interval, &ctx.state());
    if let (Some(run), Some(diverter)) = (request.readmit, &mut diverter) {
        let identity = diverter.identity().to_vec();
        diverter.readmit(readmitted(&ctx, &reads.lake, &view.id, reads.interval, run, &identity).await?);
    }
    if let Some(diverter) = &mut diverter {
        diverter.compare_with(&mut others);
    }
    let checks = CheckRunner::new(view, project.keys_of(view), reads.interval, &ctx.state());
    let mut checks = checks.compare_with(others).profiling(request.profile);
    // All look at the same batches at the same time: each costs about as much as writing them does.
    let profiler = Watching::begin(checks.detach_profiler(), |profiler, batch| {
        profiler.update(batch);
        Ok(())
    });
    let checks = Watching::begin(checks, |checks, batch| {
        checks.update(batch);
        Ok(())
    });
    let digest = Watching::begin(Digester::new(digest_columns(project, view)), Digester::update);
    let mut writable = true;
    let writing = async {
        let mut stream = rows.execute_stream().await.with_context(computing)?;
        let mut more = true;
        while more {
            let next = stream.next().await.transpose().with_context(computing)?;
            more = next.is_some();
            let parts = match &mut diverter {
                None => next.into_iter().map(|kept| Split { kept, aside: None }).collect(),
                Some(diverter) => {
                    diverter.split(next.as_ref()).with_context(|| format!("setting rows of `{}` aside", view.id))?
                }
            };
            for Split { kept: batch, aside: rows } in parts {
                if let Some(rows) = &rows {
                    aside.write(rows).await?;
                    fail::fail_point!("stage.aside");
                }
                // Rows with a null key cannot be stored, and are never published: their check blocks.
                let storable = RecordBatch::try_new(Arc::clone(&schema.file), batch.columns().to_vec());
                // Who is gone has failed; why is asked below.
                if !(checks.see(&batch).await && profiler.see(&batch).await && digest.see(&batch).await) {
                    return Ok(());
                }
                match storable {
                    Ok(batch) if writable => {
                        writer.write(&batch).await.with_context(|| format!("staging `{}`", view.id))?;
                        fail::fail_point!("stage.between");
                    }
                    _ => writable = false,
                }
            }
        }
        anyhow::Ok(())
    };
    if let Err(error) = writing.await {
        // An upload that is not aborted is invisible and costs space for good.
        if let Err(left) = writer.abort().await {
            tracing::debug!(view = %view.id, "What was staged so far was not dropped: {left}");
        }
        aside.abort().await;
        return Err(error);
    }
    let hashing = || format!("hashing `{}`", view.id);
    let judging = || format!("judging `{}`", view.id);
    let digest = digest.end().await.with_context(hashing)?;
    let mut checks = checks.end().await.with_context(judging)?;
    checks.attach_profiler(profiler.end().await.with_context(judging)?);
    let digest = digest.digest().to_string();
    let (mut results, profile, rows) = checks.finish();
    results.extend(diverter.map(Diverter::finish).into_iter().flatten());
    if !writable {
        writer.abort().await.with_context(|| format!("dropping the staged files of `{}`", view.id))?;
        aside.abort().await;
        return Ok(StagedView { adds: Vec::new(), rows, bytes: 0, digest, checks: results, profile, quarantine: None });
    }
    let mut adds = writer.close().await.with_context(|| format!("staging `{}`", view.id))?;
    let quarantine = aside.close().await?;
    fail::fail_point!("stage.written");
    for add in &mut adds {
        let start = partition_value(reads.interval.start());
        add.partition_values.insert("interval_start".to_owned(), Some(start));
    }
    run_sql_checks(engine, request, view, &adds, rows, &mut results).await?;
    let bytes = adds.iter().filter_map(|add| u64::try_from(add.size).ok()).sum();
    let adds = adds.iter().map(serde_json::to_value).collect::<Result<_, _>>().context("describing staged files")?;
    Ok(StagedView { adds, rows, bytes, digest, checks: results, profile, quarantine })
}

/// Something that looks at every staged batch, beside whoever writes them.
pub(crate) struct Watching<T> {
    batches: mpsc::Sender<RecordBatch>,
    task: JoinSet<Result<T, DigestError>>,
}

impl<T: Send + 'static> Watching<T> {
    pub(crate) fn begin(
        mut who: T,
        look: impl Fn(&mut T, &RecordBatch) -> Result<(), DigestError> + Send + 'static,
    ) -> Self {
        let (batches, mut coming) = mpsc::channel::<RecordBatch>(BATCHES_AHEAD);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(batch) = coming.recv().await {
                look(&mut who, &batch)?;
            }
            Ok(who)
        });
        Self { batches, task }
    }

    /// Hands a batch on; false when nobody looks any more.
    pub(crate) async fn see(&self, batch: &RecordBatch) -> bool {
        self.batches.send(batch.clone()).await.is_ok()
    }

    /// What has seen all.
    pub(crate) async fn end(self) -> Result<T> {
        let Self { batches, mut task } = self;
        drop(batches);
        Ok(task.join_next().await.context("nobody looked at the rows")???)
    }
}

/// The columns that a row's digest covers: what readers get, not how the run that made it was called.
pub(crate) fn digest_columns(project: &Project, view: &FeatureView) -> Vec<String> {
    let keys = project.keys_of(view).iter().map(|key| key.name.clone());
    keys.chain(["event_timestamp".to_owned()]).chain(view.features.iter().map(|feature| feature.name.clone())).collect()
}

/// The view's query with its output in the table's columns and types, sorted by entity (and time).
///
/// # Errors
/// When the query does not plan or lacks a column.
pub(crate) async fn output(
    ctx: &SessionContext,
    project: &Project,
    view: &FeatureView,
    file_schema: &SchemaRef,
    interval: Interval,
    run: RunId,
) -> Result<DataFrame> {
    let plan = plan_query(ctx, &view.sql.text, interval).await?;
    let query = DataFrame::new(ctx.state(), plan);
    // Columns that are the same in every row are added after the sort, which would copy them twice for nothing.
    let (mut sorted, mut all) = (Vec::new(), Vec::with_capacity(file_schema.fields().len()));
    for field in file_schema.fields() {
        let name = field.name().as_str();
        let constant = match computed(&query, name) {
            Some(value) => {
                sorted.push(cast(value, field.data_type().clone()).alias(name));
                all.push(column(name));
                continue;
            }
            None => match name {
                "event_timestamp" | "interval_end" => instant_literal(interval.end()),
                "run_id" => lit(run.to_string()),
                name => anyhow::bail!("the query of `{}` does not give the column `{name}`", view.id),
            },
        };
        all.push(cast(constant, field.data_type().clone()).alias(name));
    }
    let mut order: Vec<_> = project.keys_of(view).iter().map(|key| column(&key.name).sort(true, false)).collect();
    if matches!(view.output, Output::Partial { .. }) && computed(&query, "event_timestamp").is_some() {
        order.push(column("event_timestamp").sort(true, false));
    }
    Ok(query.select(sorted)?.sort(order)?.select(all)?)
}

/// A column of the query's output; the table's own columns are never taken from it.
fn computed(query: &DataFrame, name: &str) -> Option<Expr> {
    if matches!(name, "interval_end" | "run_id") {
        return None;
    }
    query
        .schema()
        .iter()
        .find(|(_, field)| field.name() == name)
        .map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name())))
}

pub(crate) fn writer(
    table: &deltalake::DeltaTable,
    project: &Project,
    view: &FeatureView,
    file_schema: &SchemaRef,
    interval: Interval,
    prefix: Path,
) -> Result<PartitionWriter> {
    let values =
        IndexMap::from([("interval_start".to_owned(), Scalar::Timestamp(interval.start().timestamp_micros()))]);
    let (file_bytes, write_rows) = file_sizes();
    let config = PartitionWriterConfig::try_new(
        Arc::clone(file_schema),
        values,
        Some(writer_properties(project, view, file_schema)),
        Some(file_bytes),
        Some(write_rows),
        None,
        Some(prefix),
    )?;
    let indexed = DataSkippingNumIndexedCols::NumColumns(INDEXED_COLUMNS);
    Ok(PartitionWriter::try_with_config(table.object_store(), config, indexed, None)?)
}

/// How large files become, and how many rows the writer is fed at a time; tests ask for a file per row.
fn file_sizes() -> (NonZeroU64, usize) {
    fail::fail_point!("stage.small", |_| (NonZeroU64::MIN, 1));
    (FILE_BYTES, WRITE_ROWS)
}

/// zstd with dictionaries where they pay: not for keys (one row each) nor for floating point numbers (mostly distinct),
/// which compress better byte by byte.
fn writer_properties(project: &Project, view: &FeatureView, schema: &SchemaRef) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_created_by(concat!("tidegate ", env!("CARGO_PKG_VERSION")).to_owned());
    if view.output == Output::Full {
        for key in project.keys_of(view) {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(key.name.as_str()), false);
        }
    }
    for field in schema.fields() {
        if matches!(field.data_type(), DataType::Float32 | DataType::Float64) {
            let path = ColumnPath::from(field.name().as_str());
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT);
        }
    }
    properties.build()
}

/// Judges the `sql` checks, which need the staged rows as a table.
async fn run_sql_checks(
    engine: &Engine,
    request: &StageRequest,
    view: &FeatureView,
    adds: &[Add],
    rows: u64,
    results: &mut [tidegate_registry::run::CheckResult],
) -> Result<()> {
    if !view.checks.iter().any(|check| matches!(check.rule, Rule::Sql { .. })) {
        return Ok(());
    }
    let ctx = engine.context(Joins::Hash)?;
    let mut reads = request.reads.clone();
    reads.staged.insert(view.id.clone(), adds.to_vec());
    for (name, source) in &reads.project.sources {
        // A check may also name the sources that the view itself reads.
        if let Some(pin) = reads.pins.sources.get(name.as_str()) {
            register(&ctx, name.as_str(), reads.sources.provider(&ctx, source, pin).await?)?;
        }
    }
    let staged = reads.state_of_staged(&ctx, &view.id).await?;
    register(&ctx, view.id.name.as_str(), Arc::clone(&staged))?;
    register(&ctx, &view.id.to_string(), staged)?;
    for check in &view.checks {
        if !matches!(check.rule, Rule::Sql { .. }) {
            continue;
        }
        let Some(result) = results.iter_mut().find(|result| result.check == check.name) else { continue };
        debug_assert_eq!(result.verdict, Verdict::Pending, "sql checks are judged here");
        *result = run_sql_check(&ctx, check, request.reads.interval, rows).await;
    }
    Ok(())
}
