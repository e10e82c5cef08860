//! Many small files of one slice become one; no row and no digest changes.
//!
//! The new file is written from what the head names, its rows are hashed on the way in and again on the way out, and both
//! must be what the ledger says. The commit is the same compare-and-swap that runs use, with a publish number of its own:
//! it lands on the very head that was read, or not at all, and then it is left to a later pass.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use datafusion::prelude::{DataFrame, SessionContext};
use deltalake::DeltaTable;
use deltalake::kernel::Add;
use futures::StreamExt;
use object_store::path::Path;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::{FeatureView, Output, Project};
use tidegate_registry::store::LedgerEntry;
use tidegate_registry::time::Instant;

use super::JanitorParts;
use super::plan::TableFacts;
use crate::digest::Digester;
use crate::engine::{Engine, Joins};
use crate::lake::care::TableFile;
use crate::lake::{CompactionRequest, Lake, TableSchema};
use crate::reads::{column, instant_literal, scan};
use crate::stage::{FILE_BYTES, digest_columns, writer};

/// A slice with fewer files is left as it is.
const FILES_MIN: usize = 4;
/// Files of this size are large enough.
const FILE_SMALL_BYTES: u64 = 32 << 20;
/// Slices compacted in one pass of one view, so that a pass ends.
const SLICES_MAX: usize = 8;

/// The slices (their interval's start) that are worth it.
fn worth(files: &[TableFile]) -> BTreeSet<i64> {
    let mut slices: BTreeMap<i64, (usize, u64)> = BTreeMap::new();
    for file in files.iter().filter(|file| file.size < FILE_SMALL_BYTES) {
        let slice = slices.entry(file.slice).or_default();
        slice.0 += 1;
        slice.1 += file.size;
    }
    let worth = slices.into_iter().filter(|(_, (count, bytes))| *count >= FILES_MIN && *bytes <= FILE_BYTES.get());
    worth.take(SLICES_MAX).map(|(slice, _)| slice).collect()
}

/// The slices that a pass would compact.
pub(super) async fn candidates(lake: &Lake, view: &ViewId, facts: &TableFacts) -> Result<Vec<Instant>> {
    let table = lake.load(view, facts.log.head()).await?;
    Ok(worth(&Lake::files_of(&table)?).into_iter().filter_map(DateTime::from_timestamp_micros).collect())
}

/// The newest compaction after `recorded`, when nothing but compactions came after it: its publish number and version.
pub(super) async fn unrecorded(lake: &Lake, view: &ViewId, recorded: u64, head: u64) -> Result<Option<(u64, u64)>> {
    if recorded >= head {
        return Ok(None);
    }
    let entries = lake.log_entries(view, (recorded + 1..=head).collect()).await?;
    if entries.iter().any(|(_, entry)| entry.run.as_deref() != Some(crate::lake::COMPACTION)) {
        return Ok(None);
    }
    Ok(entries.last().and_then(|(version, entry)| Some((entry.publish?, *version))))
}

/// Compacts what is worth it; the slices that were.
pub(super) async fn compact(
    parts: &JanitorParts,
    engine: &Arc<Engine>,
    project: &Project,
    view: &ViewId,
) -> Result<Vec<Instant>> {
    let Some(definition) = project.views.get(view) else { return Ok(Vec::new()) };
    let mut done = Vec::new();
    let slices = worth(&Lake::files_of(&parts.lake.load(view, None).await?)?);
    if slices.is_empty() {
        return Ok(done);
    }
    let ledger: BTreeMap<i64, LedgerEntry> = parts
        .store
        .ledger(view, None, 0)
        .await?
        .into_iter()
        .map(|entry| (entry.interval.start().timestamp_micros(), entry))
        .collect();
    for slice in slices {
        // What the ledger does not have is not published, and none of our business.
        let Some(entry) = ledger.get(&slice) else { continue };
        if compact_slice(parts, engine, project, definition, entry).await? {
            done.push(entry.interval.start());
        }
    }
    Ok(done)
}

async fn compact_slice(
    parts: &JanitorParts,
    engine: &Arc<Engine>,
    project: &Project,
    view: &FeatureView,
    entry: &LedgerEntry,
) -> Result<bool> {
    let id = &view.id;
    // Shaped like a run's, so that what a dead janitor leaves is found and deleted like anything else.
    let folder = RunId::generate();
    let table = parts.lake.load(id, None).await?;
    let written = {
        let (engine, project, view, entry) = (Arc::clone(engine), project.clone(), view.clone(), entry.clone());
        let (lake, table) = (parts.lake.clone(), table.clone());
        let write = async move { rewrite(&engine, &lake, &table, (&project, &view), &entry, folder).await };
        parts.engine.as_ref().context("there is no engine")?.run(write).await?
    };
    let adds = match written {
        Ok(adds) => adds,
        Err(error) => {
            parts.lake.discard_staged(id, folder, &[]).await?;
            return Err(error).with_context(|| format!("compacting a slice of `{id}`"));
        }
    };
    fail::fail_point!("compact.written");
    let Some(publish_number) = parts.store.compaction_take(id).await? else {
        // A run is publishing: another time.
        parts.lake.discard_staged(id, folder, &[]).await?;
        return Ok(false);
    };
    fail::fail_point!("compact.taken");
    let request = CompactionRequest { view: id, publish_number, interval: entry.interval, adds: &adds };
    let Some(version) = parts.lake.commit_compaction(&table, &request).await? else {
        // The files stay until they are old: a commit whose answer was lost may have been built upon since.
        return Ok(false);
    };
    fail::fail_point!("compact.landed");
    parts.store.compaction_record(id, publish_number, version).await?;
    fail::fail_point!("compact.recorded");
    Ok(true)
}

/// Writes the slice anew and proves that it is the same.
async fn rewrite(
    engine: &Engine,
    lake: &Lake,
    table: &DeltaTable,
    (project, view): (&Project, &FeatureView),
    entry: &LedgerEntry,
    folder: RunId,
) -> Result<Vec<Add>> {
    let schema = TableSchema::of(project, &view.id)?;
    let ctx = engine.context(Joins::Hash)?;
    let mut order: Vec<_> = project.keys_of(view).iter().map(|key| column(&key.name).sort(true, false)).collect();
    if matches!(view.output, Output::Partial { .. }) {
        order.push(column("event_timestamp").sort(true, false));
    }
    let columns: Vec<_> = schema
        .file
        .fields()
        .iter()
        .map(|field| {
            datafusion::logical_expr::cast(column(field.name()), field.data_type().clone()).alias(field.name())
        })
        .collect();
    let rows = slice_rows(&ctx, table, entry).await?.select(columns)?.sort(order)?;
    let prefix = Path::from(format!("data/{folder}/compacted"));
    let mut writer = writer(table, project, view, &schema.file, entry.interval, prefix)?;
    let mut digest = Digester::new(digest_columns(project, view));
    let mut stream = rows.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        digest.update(&batch)?;
        let batch = datafusion::arrow::array::RecordBatch::try_new(Arc::clone(&schema.file), batch.columns().to_vec())?;
        writer.write(&batch).await?;
    }
    let mut adds = writer.close().await?;
    for add in &mut adds {
        let start = crate::reads::partition_value(entry.interval.start());
        add.partition_values.insert("interval_start".to_owned(), Some(start));
        add.data_change = false;
    }
    let read = digest.digest().to_string();
    ensure!(
        read == entry.digest,
        "the rows of the interval {} of `{}` have the digest {read}, and the ledger says {}: the table was changed by \
         another program, or its files are damaged",
        entry.interval,
        view.id,
        entry.digest
    );
    let written = written_digest(&ctx, lake, table, (project, view), entry, &adds).await?;
    ensure!(written == entry.digest, "what was written has the digest {written}, not {}", entry.digest);
    lake.sync(&view.id, adds.iter().map(|add| add.path.clone()).collect()).await?;
    Ok(adds)
}

async fn written_digest(
    ctx: &SessionContext,
    lake: &Lake,
    table: &DeltaTable,
    (project, view): (&Project, &FeatureView),
    entry: &LedgerEntry,
    adds: &[Add],
) -> Result<String> {
    let version = table.version().context("the table has no version")?;
    let overlay = lake.overlay(&view.id, version, entry.interval, adds).await?;
    let mut digest = Digester::new(digest_columns(project, view));
    let mut stream = slice_rows(ctx, &overlay, entry).await?.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        digest.update(&batch?)?;
    }
    Ok(digest.digest().to_string())
}

pub(super) async fn slice_rows(ctx: &SessionContext, table: &DeltaTable, entry: &LedgerEntry) -> Result<DataFrame> {
    let start = instant_literal(entry.interval.start());
    Ok(scan(ctx, table).await?.filter(column("interval_start").eq(start))?)
}
