//! What differs between two contents of a view.
//!
//! Both are read as streams. Of the older one only hashes stay in memory, some 40 bytes per entity (128 bits of the key, 64 of
//! the row); the newer one is compared row by row as it comes, and what differs goes to the store at once. What is then left
//! of the older one has vanished: its keys are read once more. Views of many entities are compared in several passes, so
//! that memory stays bounded.
//!
//! Rows are hashed over arrow's row format, in which two rows are equal byte by byte exactly when all their values are;
//! hashing the columns themselves would take `(null, x)` for `(x, null)`.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::compute::{cast, filter_record_batch};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::row::{RowConverter, SortField};
use futures::StreamExt;
use tidegate_registry::time::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::Serving;
use super::content::Content;
use crate::online::{Changes, EncodedRow, encode, encode_keys};
use crate::types::{EVENT_TIMESTAMP, timestamp};

/// Entities of one pass.
const ENTITIES_PER_PASS: u64 = 2_000_000;
/// Changes that go to the store together.
const CHANGES_PER_STEP: usize = 8_192;

/// How many entities an upsert concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Differences {
    pub(super) added: u64,
    pub(super) changed: u64,
    pub(super) removed: u64,
    /// Entities that there are now.
    pub(super) rows: u64,
}

/// Sends what makes `from` into `to` to the online store, where the generation holds `from` (or a part of the way).
pub(super) async fn upsert(
    serving: &Serving,
    from: &Content,
    to: &Content,
    generation: u64,
    publish_number: u64,
    entities: u64,
) -> Result<Differences> {
    let mut found = Differences::default();
    let passes = entities.div_ceil(ENTITIES_PER_PASS).max(1);
    let mut sink = Sink { serving, to, generation, publish_number, changes: Changes::default() };
    for pass in 0..passes {
        let mut hashing = Hashing::new(pass, passes);
        let mut old: HashMap<u128, u64> = HashMap::new();
        let mut rows = from.rows(&serving.engine, &serving.lake).await?;
        while let Some(batch) = rows.next().await {
            let hashed = hashing.rows(from, &batch?)?;
            old.extend(hashed.into_iter().flatten());
        }
        let mut rows = to.rows(&serving.engine, &serving.lake).await?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let hashed = hashing.rows(to, &batch)?;
            found.rows += hashed.iter().flatten().count() as u64;
            let was: Vec<Was> = hashed
                .into_iter()
                .map(|hashed| match hashed {
                    None => Was::Same,
                    Some((key, row)) => match old.remove(&key) {
                        None => Was::Absent,
                        Some(before) if before == row => Was::Same,
                        Some(_) => Was::Other,
                    },
                })
                .collect();
            let added = picked(to, &batch, &was, Was::Absent)?;
            let changed = picked(to, &batch, &was, Was::Other)?;
            found.added += added.len() as u64;
            found.changed += changed.len() as u64;
            sink.changes.added.extend(added);
            sink.changes.changed.extend(changed);
            sink.send(CHANGES_PER_STEP).await?;
        }
        if old.is_empty() {
            continue;
        }
        let mut rows = from.entities(&serving.engine, &serving.lake).await?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let gone: BooleanArray =
                hashing.keys(from, &batch)?.iter().map(|key| Some(old.contains_key(key))).collect();
            let batch = filter_record_batch(&batch, &gone).context("picking rows that are gone")?;
            let gone = encode_keys(from.keys()?, &batch)?;
            found.removed += gone.len() as u64;
            sink.changes.removed.extend(gone);
            sink.send(CHANGES_PER_STEP).await?;
        }
    }
    sink.send(1).await?;
    Ok(found)
}

/// What an entity was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Was {
    Absent,
    Other,
    Same,
}

fn picked(content: &Content, batch: &RecordBatch, was: &[Was], which: Was) -> Result<Vec<EncodedRow>> {
    if !was.contains(&which) {
        return Ok(Vec::new());
    }
    let mask: BooleanArray = was.iter().map(|was| Some(*was == which)).collect();
    let batch = filter_record_batch(batch, &mask).context("picking rows that differ")?;
    Ok(encode(content.view()?, content.keys()?, &batch)?)
}

/// Gathers changes until they are worth a call.
struct Sink<'a> {
    serving: &'a Serving,
    to: &'a Content,
    generation: u64,
    publish_number: u64,
    changes: Changes,
}

impl Sink<'_> {
    async fn send(&mut self, least: usize) -> Result<()> {
        if self.changes.len() < least {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.changes);
        self.serving.online.upsert(&self.to.view, self.generation, self.publish_number, &changes).await?;
        fail::fail_point!("publish.between");
        Ok(())
    }
}

/// Hashes rows of one pass.
struct Hashing {
    pass: u64,
    passes: u64,
    converters: Option<(RowConverter, RowConverter)>,
}

impl Hashing {
    fn new(pass: u64, passes: u64) -> Self {
        Self { pass, passes, converters: None }
    }

    /// Per row the hashes of its key and of all that is published of it; `None` for those of other passes.
    fn rows(&mut self, content: &Content, batch: &RecordBatch) -> Result<Vec<Option<(u128, u64)>>> {
        let (keys, values) = columns(content, batch)?;
        let (of_keys, of_values) = self.converters(&keys, &values)?;
        let keys = of_keys.convert_columns(&keys).context("comparing keys")?;
        let values = of_values.convert_columns(&values).context("comparing rows")?;
        let hashed = keys.iter().zip(values.iter()).map(|(key, value)| {
            let key = xxh3_128(key.as_ref());
            self.is_ours(key).then(|| (key, xxh3_64(value.as_ref())))
        });
        Ok(hashed.collect())
    }

    /// Per row the hash of its key, where the batch may have nothing else.
    fn keys(&mut self, content: &Content, batch: &RecordBatch) -> Result<Vec<u128>> {
        let (of_keys, _) = self.converters.as_ref().context("keys are read after rows")?;
        let keys = of_keys.convert_columns(&key_columns(content, batch)?).context("comparing keys")?;
        Ok(keys.iter().map(|key| xxh3_128(key.as_ref())).collect())
    }

    fn is_ours(&self, key: u128) -> bool {
        self.passes == 1 || (key >> 64) as u64 % self.passes == self.pass
    }

    fn converters(&mut self, keys: &[ArrayRef], values: &[ArrayRef]) -> Result<(&RowConverter, &RowConverter)> {
        if self.converters.is_none() {
            let converter = |columns: &[ArrayRef]| {
                let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
                RowConverter::new(fields).context("comparing rows")
            };
            self.converters = Some((converter(keys)?, converter(values)?));
        }
        let (of_keys, of_values) = self.converters.as_ref().context("there is no converter")?;
        Ok((of_keys, of_values))
    }
}

/// The columns of the key, and those whose change is a change. A row whose time is only that of its interval's end has none
/// of its own: it did not change because time went on.
fn columns(content: &Content, batch: &RecordBatch) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>)> {
    let features = content.view()?.features.iter();
    let mut values = features.map(|feature| named(batch, &feature.name)).collect::<Result<Vec<_>>>()?;
    values.push(own_times(&named(batch, EVENT_TIMESTAMP)?, content.interval.end())?);
    Ok((key_columns(content, batch)?, values))
}

fn key_columns(content: &Content, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    content.keys()?.iter().map(|key| named(batch, &key.name)).collect()
}

fn named(batch: &RecordBatch, name: &str) -> Result<ArrayRef> {
    batch.column_by_name(name).map(Arc::clone).with_context(|| format!("the rows have no column `{name}`"))
}

fn own_times(times: &ArrayRef, interval_end: Instant) -> Result<ArrayRef> {
    let times = cast(times, &timestamp()).context("reading the times of rows")?;
    let end = interval_end.timestamp_micros();
    let own = times.as_primitive::<TimestampMicrosecondType>().unary_opt::<_, TimestampMicrosecondType>(|time| {
        // Null for none of its own: no published row has a null time.
        (time != end).then_some(time)
    });
    Ok(Arc::new(own))
}
