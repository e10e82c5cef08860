//! One history against one set of labels, in memory.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::execution::memory_pool::MemoryReservation;

use crate::candidates::{Candidates, Matches};
use crate::keys::{KeyColumn, KeyReader, KeyType, NONE};
use crate::labels::Labels;
use crate::rule::{Rule, Timing};
use crate::ticks::{finest, ticks, unit_of};

/// A history whose columns are known by their places.
#[derive(Debug, Clone)]
pub(crate) struct HistorySpec {
    /// Key columns: of the spine, of the history.
    pub(crate) keys: Vec<(usize, usize)>,
    pub(crate) rule: Rule,
    /// What orders the rows.
    pub(crate) time: usize,
    pub(crate) tie_break: Vec<usize>,
    /// Columns to take and what they are called in the output.
    pub(crate) take: Vec<(usize, String)>,
}

/// How batches of the spine and of one history are read, whether from the engine or from spill files.
#[derive(Debug)]
pub(crate) struct Reader {
    label_time: usize,
    unit: TimeUnit,
    spine_key_types: Vec<(usize, KeyType)>,
    spine_keys: KeyReader,
    history_keys: KeyReader,
    history_time: usize,
    pub(crate) timing: Timing,
    /// The columns that are kept of a history row: first those that break ties, then those that are taken.
    stored: Vec<usize>,
    pub(crate) stored_schema: SchemaRef,
    /// How many of them only break ties.
    pub(crate) ties: usize,
}

/// History rows as the join sees them.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) keys: KeyColumn,
    /// How new each row is; null when it does not exist.
    pub(crate) orders: Int64Array,
    pub(crate) columns: Vec<ArrayRef>,
}

impl Reader {
    /// A reader for this history and a spine whose instants are in column `label_time`.
    ///
    /// # Errors
    /// Those of Arrow; types were checked when the query was planned.
    pub(crate) fn new(spec: &HistorySpec, label_time: usize, spine: &Schema, history: &Schema) -> Result<Self> {
        let unit = |schema: &Schema, column: usize| {
            unit_of(schema.field(column).data_type())
                .ok_or_else(|| internal_datafusion_err!("`{}` is no timestamp", schema.field(column).name()))
        };
        let unit = finest(unit(spine, label_time)?, unit(history, spec.time)?);
        let mut spine_keys = Vec::new();
        let mut history_keys = Vec::new();
        for (of_spine, of_history) in &spec.keys {
            let (a, b) = (spine.field(*of_spine), history.field(*of_history));
            let common = KeyType::common(a.data_type(), b.data_type())
                .ok_or_else(|| internal_datafusion_err!("keys `{}` and `{}` do not compare", a.name(), b.name()))?;
            spine_keys.push((*of_spine, common.clone()));
            history_keys.push((*of_history, common));
        }
        let stored: Vec<usize> =
            spec.tie_break.iter().copied().chain(spec.take.iter().map(|(column, _)| *column)).collect();
        let fields: Vec<Field> = stored
            .iter()
            .enumerate()
            .map(|(place, column)| Field::new(place.to_string(), history.field(*column).data_type().clone(), true))
            .collect();
        Ok(Self {
            label_time,
            unit,
            spine_keys: KeyReader::new(spine_keys.clone())?,
            spine_key_types: spine_keys,
            history_keys: KeyReader::new(history_keys)?,
            history_time: spec.time,
            timing: spec.rule.timing(unit),
            stored,
            stored_schema: Arc::new(Schema::new(fields)),
            ties: spec.tie_break.len(),
        })
    }

    /// Keys and instants of label rows.
    pub(crate) fn labels(&self, batch: &RecordBatch) -> Result<(KeyColumn, Int64Array)> {
        Ok((self.spine_keys.read(batch)?, ticks(batch.column(self.label_time), self.unit)?))
    }

    /// How the spine's keys are read.
    pub(crate) fn spine_keys(&self) -> &KeyReader {
        &self.spine_keys
    }

    /// What must be equal for two histories to share their [`Labels`].
    pub(crate) fn labels_signature(&self) -> (TimeUnit, &[(usize, KeyType)]) {
        (self.unit, &self.spine_key_types)
    }

    /// The type in which keys are spilled; `None` when there are none.
    pub(crate) fn key_type(&self) -> Option<DataType> {
        self.spine_keys.spilled_type()
    }

    /// The rows of a batch of the history.
    pub(crate) fn rows(&self, batch: &RecordBatch) -> Result<Rows> {
        Ok(Rows {
            keys: self.history_keys.read(batch)?,
            orders: self.timing.orders(ticks(batch.column(self.history_time), self.unit)?),
            columns: self.stored.iter().map(|column| Arc::clone(batch.column(*column))).collect(),
        })
    }
}

/// The join while history rows come in, in any order and from any thread.
#[derive(Debug)]
pub(crate) struct Join {
    labels: Arc<Labels>,
    reader: Arc<Reader>,
    candidates: Mutex<Candidates>,
}

impl Join {
    /// A join that has seen no history rows.
    ///
    /// # Errors
    /// When memory runs out.
    pub(crate) fn new(labels: Arc<Labels>, reader: Arc<Reader>, reservation: &Arc<MemoryReservation>) -> Result<Self> {
        let candidates = Candidates::new(labels.slots(), Arc::clone(&reader.stored_schema), reservation)?;
        Ok(Self { labels, reader, candidates: Mutex::new(candidates) })
    }

    /// Takes rows in.
    ///
    /// # Errors
    /// When memory runs out; the rows were taken in even so.
    pub(crate) fn offer(&self, rows: &Rows) -> Result<()> {
        let mut slots = Vec::with_capacity(rows.orders.len());
        self.labels.keys.find(&rows.keys, &mut slots);
        let orders = rows.orders.values();
        let timing = &self.reader.timing;
        let mut concerned = false;
        for (row, slot) in slots.iter_mut().enumerate() {
            if *slot == NONE {
                continue;
            }
            let order = orders[row];
            *slot = match timing_slot(&self.labels, timing, *slot, order, rows.orders.is_valid(row)) {
                Some(found) => found,
                None => NONE,
            };
            concerned |= *slot != NONE;
        }
        if !concerned {
            return Ok(());
        }
        let candidates = || self.candidates.lock().unwrap_or_else(PoisonError::into_inner);
        let claim = candidates().offer(&slots, orders, &rows.columns)?;
        let Some(claim) = claim else { return Ok(()) };
        let columns = claim.copy(&rows.columns)?;
        candidates().settle(&claim, columns)
    }

    /// The answer.
    ///
    /// # Errors
    /// Those of Arrow.
    pub(crate) fn finish(self) -> Result<Matches> {
        self.candidates.into_inner().unwrap_or_else(PoisonError::into_inner).finish(self.labels, &self.reader.timing)
    }

    /// What was taken in, as history rows again, and nothing that a newer row has made pointless.
    ///
    /// # Errors
    /// Those of `each`.
    pub(crate) fn drain(self, rows_max: usize, mut each: impl FnMut(Rows) -> Result<()>) -> Result<()> {
        let key_type = self.reader.key_type();
        let candidates = self.candidates.into_inner().unwrap_or_else(PoisonError::into_inner);
        candidates.drain(&self.labels, rows_max, |keys, orders, columns| {
            let keys = self.labels.keys.keys(keys, key_type.as_ref());
            each(Rows { keys, orders: orders.into(), columns })
        })
    }
}

/// The slot that a row of key number `key` concerns, when any label sees the row.
#[inline]
fn timing_slot(labels: &Labels, timing: &Timing, key: u32, order: i64, exists: bool) -> Option<u32> {
    if !exists {
        return None;
    }
    let slot = labels.slot(key, timing.visible_from(order)?)?;
    timing.alive(order, labels.times[slot as usize]).then_some(slot)
}
