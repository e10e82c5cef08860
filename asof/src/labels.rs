//! Where a history row takes effect: the instants of all labels of a key, in order.
//!
//! A *slot* is a label row's place in the order (key, instant). A history row concerns one slot directly, the first of its key
//! at or after the instant from which it is visible; later slots of the key inherit it unless they have a newer one
//! (`candidates.rs`). Finding the slot is one look-up of the key and one binary search, whatever the order of the history.

use std::sync::Arc;

use datafusion::arrow::array::{Array, Int64Array};
use datafusion::common::{Result, exec_err};
use datafusion::execution::memory_pool::MemoryReservation;

use crate::keys::{KeyColumn, KeyIndex, KeyReader, NONE};
use crate::memory::Share;

/// The slots of some label rows.
#[derive(Debug)]
pub(crate) struct Labels {
    pub(crate) keys: KeyIndex,
    /// The slots of key `k` are `starts[k]..starts[k + 1]`.
    pub(crate) starts: Vec<u32>,
    /// The instant of each slot.
    pub(crate) times: Vec<i64>,
    /// The slot of each row, or [`NONE`] for a row that nothing can match: its instant or one of its keys is null.
    pub(crate) row_slots: Vec<u32>,
    _share: Share,
}

impl Labels {
    /// The slot of key number `key` that a row visible from `instant` concerns directly, if there is one.
    #[inline]
    pub(crate) fn slot(&self, key: u32, instant: i64) -> Option<u32> {
        let (start, end) = (self.starts[key as usize], self.starts[key as usize + 1]);
        let times = &self.times[start as usize..end as usize];
        let place = times.partition_point(|time| *time < instant);
        (place < times.len()).then(|| start + u32::try_from(place).expect("slots are counted in 32 bits"))
    }

    /// The number of the key of a slot.
    pub(crate) fn key_of(&self, slot: u32) -> u32 {
        // the last key that does not begin after the slot; keys without slots begin where the next one does
        let after = self.starts.partition_point(|start| *start <= slot);
        u32::try_from(after - 1).expect("slots are counted in 32 bits, and keys are not more")
    }

    /// How many slots there are.
    pub(crate) fn slots(&self) -> usize {
        self.times.len()
    }
}

/// Collects label rows.
#[derive(Debug)]
pub(crate) struct LabelsBuilder {
    keys: KeyIndex,
    row_keys: Vec<u32>,
    row_times: Vec<i64>,
    share: Share,
}

impl LabelsBuilder {
    /// Bytes per row while the slots are being computed.
    pub(crate) const BYTES_PER_ROW: usize = 4 + 8 + 8 + 4 + 4;

    /// A builder without rows, for keys as `keys` reads them.
    pub(crate) fn new(keys: &KeyReader, reservation: &Arc<MemoryReservation>) -> Self {
        Self { keys: KeyIndex::new(keys), row_keys: Vec::new(), row_times: Vec::new(), share: Share::new(reservation) }
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.row_keys.len()
    }

    /// Adds label rows with these keys and instants, all of them or none.
    ///
    /// # Errors
    /// When memory runs out, and when there are more rows than 32 bits count.
    pub(crate) fn push(&mut self, keys: &KeyColumn, times: &Int64Array) -> Result<()> {
        let rows = self.rows() + keys.len();
        if rows >= NONE as usize {
            return exec_err!("a point-in-time join of {rows} label rows at once: at most {} are possible", NONE - 1);
        }
        // a table that doubles needs its old places for a moment
        let index = self.keys.size() + keys.len() * size_of::<(u32, u32)>() * 4;
        self.share.try_resize(rows * Self::BYTES_PER_ROW + index)?;
        let before = self.rows();
        self.keys.insert(keys, &mut self.row_keys);
        self.row_times.extend_from_slice(times.values());
        if let Some(nulls) = times.nulls() {
            for (key, valid) in self.row_keys[before..].iter_mut().zip(nulls) {
                if !valid {
                    *key = NONE;
                }
            }
        }
        Ok(())
    }

    /// Puts the rows in order.
    ///
    /// # Errors
    /// When memory runs out.
    pub(crate) fn finish(mut self) -> Result<Labels> {
        // keys are copied once while they are sorted
        let keys = self.keys.size() * 2 + (self.keys.len() + 1) * 12;
        self.share.try_resize(self.rows() * Self::BYTES_PER_ROW + keys)?;
        let ranks = self.keys.sort();
        for key in self.row_keys.iter_mut().filter(|key| **key != NONE) {
            *key = ranks[*key as usize];
        }
        drop(ranks);
        let mut starts = vec![0u32; self.keys.len() + 1];
        for key in self.row_keys.iter().filter(|key| **key != NONE) {
            starts[*key as usize + 1] += 1;
        }
        for key in 1..starts.len() {
            starts[key] += starts[key - 1];
        }
        // counting sort by key: the rows of each key, in the order of the input
        let mut ends = starts.clone();
        let mut rows = vec![0u32; starts[self.keys.len()] as usize];
        for (row, key) in (0u32..).zip(&self.row_keys).filter(|(_, key)| **key != NONE) {
            let end = &mut ends[*key as usize];
            rows[*end as usize] = row;
            *end += 1;
        }
        drop(ends);
        for pair in starts.windows(2) {
            rows[pair[0] as usize..pair[1] as usize].sort_unstable_by_key(|row| (self.row_times[*row as usize], *row));
        }
        let times = rows.iter().map(|row| self.row_times[*row as usize]).collect();
        let mut row_slots = self.row_keys;
        row_slots.fill(NONE);
        for (slot, row) in (0u32..).zip(&rows) {
            row_slots[*row as usize] = slot;
        }
        drop(rows);
        let kept = row_slots.len() * (4 + 8) + self.keys.size() + starts.len() * 4;
        self.share.try_resize(kept)?;
        Ok(Labels { keys: self.keys, starts, times, row_slots, _share: self.share })
    }
}
