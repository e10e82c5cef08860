//! Two batches that are sorted by key, row by row beside each other.

use std::cmp::Ordering;

use anyhow::Result;
use datafusion::arrow::record_batch::RecordBatch;

use super::keys::{Keys, Merging, compare};

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
    /// Per row its key; strictly ascending.
    pub(super) keys: Keys,
    /// Per row a hash of all else that is published of it.
    pub(super) hashes: Vec<u64>,
    /// Of the rows that were compared.
    pub(super) verdicts: Vec<Was>,
}

impl Batch {
    pub(super) fn new(batch: RecordBatch, keys: Keys, hashes: Vec<u64>) -> Self {
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
///
/// # Errors
/// When the keys are not of one view.
pub(super) fn merge(old: Option<&mut Batch>, new: Option<&mut Batch>) -> Result<()> {
    match (old, new) {
        (Some(old), Some(new)) => {
            let sides = Sides {
                old: Side { hashes: &old.hashes, verdicts: &mut old.verdicts },
                new: Side { hashes: &new.hashes, verdicts: &mut new.verdicts },
            };
            compare(&old.keys, &new.keys, sides)?;
        }
        (Some(alone), None) | (None, Some(alone)) => alone.rest_is_alone(),
        (None, None) => {}
    }
    Ok(())
}

/// Two batches without their keys.
struct Sides<'a> {
    old: Side<'a>,
    new: Side<'a>,
}

struct Side<'a> {
    hashes: &'a [u64],
    verdicts: &'a mut Vec<Was>,
}

impl Side<'_> {
    fn is_done(&self) -> bool {
        self.verdicts.len() == self.hashes.len()
    }
}

impl Merging for Sides<'_> {
    fn run(self, compare: impl Fn(usize, usize) -> Ordering) {
        let Self { old, new } = self;
        while !old.is_done() && !new.is_done() {
            let (before, now) = (old.verdicts.len(), new.verdicts.len());
            match compare(before, now) {
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
}
