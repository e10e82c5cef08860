//! Two batches that are sorted by key, row by row beside each other.

use std::cmp::Ordering;

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::row::Rows;

/// What the other content says of an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Was {
    /// Nothing: the entity is in this content alone.
    Alone,
    /// Something else.
    Other,
    /// The same.
    Same,
}

/// A batch of one content, as far as it was compared.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) batch: RecordBatch,
    /// Per row its key, comparable byte by byte; strictly ascending.
    pub(super) keys: Rows,
    /// Per row a hash of all else that is published of it.
    pub(super) hashes: Vec<u64>,
    /// Of the rows that were compared.
    pub(super) verdicts: Vec<Was>,
}

impl Batch {
    pub(super) fn new(batch: RecordBatch, keys: Rows, hashes: Vec<u64>) -> Self {
        let verdicts = Vec::with_capacity(hashes.len());
        Self { batch, keys, hashes, verdicts }
    }

    pub(super) fn is_done(&self) -> bool {
        self.verdicts.len() == self.hashes.len()
    }

    fn rest_is_alone(&mut self) {
        self.verdicts.resize(self.hashes.len(), Was::Alone);
    }
}

/// Compares the rows at hand until one of the batches is done; `None` is a content that has ended.
pub(super) fn merge(old: Option<&mut Batch>, new: Option<&mut Batch>) {
    match (old, new) {
        (Some(old), Some(new)) => merge_both(old, new),
        (Some(alone), None) | (None, Some(alone)) => alone.rest_is_alone(),
        (None, None) => {}
    }
}

fn merge_both(old: &mut Batch, new: &mut Batch) {
    while !old.is_done() && !new.is_done() {
        let (before, now) = (old.verdicts.len(), new.verdicts.len());
        match old.keys.row(before).cmp(&new.keys.row(now)) {
            Ordering::Less => old.verdicts.push(Was::Alone),
            Ordering::Greater => new.verdicts.push(Was::Alone),
            Ordering::Equal => {
                let was = if old.hashes[before] == new.hashes[now] { Was::Same } else { Was::Other };
                old.verdicts.push(was);
                new.verdicts.push(was);
            }
        }
    }
}
