//! The most frequent values, with a bound of what their counts may lack.
//!
//! The counts of each chunk are exact. Of a chunk with more than [`KEPT`] different values, those that occur no more often
//! than the one after the first [`KEPT`] are dropped, as in a Misra–Gries summary of size [`KEPT`] (merging as in Agarwal
//! et al., "Mergeable Summaries", 2012); the rest goes to the frequent-items sketch of Apache DataSketches (Anderson et
//! al., "A High-Performance Algorithm for Identifying Frequent Items in Data Streams", 2017). So a count is never too
//! high, and lacks at most what was dropped once per chunk plus what the sketch purged: over `n` values together at most
//! `n × (1/257 + 3.5/512)`, and mostly far less, which is reported as it was.

use std::hash::Hash;

use datasketches::frequencies::{ErrorType, FrequentItemsSketch};

use super::counting::Entry;

/// Values of a chunk that are never dropped.
const KEPT: usize = 256;

/// Places in the sketch; three quarters of them are used.
const PLACES: usize = 512;

#[derive(Debug)]
pub(crate) struct Frequent<T> {
    sketch: FrequentItemsSketch<T>,
    dropped: u64,
}

/// A value, and how often it occurs at least.
pub(crate) struct Counted<T> {
    pub(crate) value: T,
    pub(crate) count: u64,
}

impl<T: Eq + Hash + Clone + Ord> Default for Frequent<T> {
    fn default() -> Self {
        let sketch = FrequentItemsSketch::new(PLACES).expect("the number of places is a power of two");
        Self { sketch, dropped: 0 }
    }
}

impl<T: Eq + Hash + Clone + Ord> Frequent<T> {
    /// Adds the values of a chunk; `value` is asked only for those that are not dropped.
    pub(crate) fn add(&mut self, entries: &[Entry], mut value: impl FnMut(&Entry) -> T) {
        let least = least_kept(entries);
        self.dropped += u64::from(least);
        for entry in entries {
            if entry.count > least {
                self.sketch.update_with_count(value(entry), u64::from(entry.count));
            }
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.sketch.merge(&other.sketch);
        self.dropped += other.dropped;
    }

    /// What each count may lack.
    pub(crate) fn error(&self) -> u64 {
        self.sketch.maximum_error() + self.dropped
    }

    /// At most `limit` values, most frequent first, of which more is known than is unsure.
    pub(crate) fn top(&self, limit: usize) -> Vec<Counted<T>> {
        let error = self.error();
        let rows = self.sketch.frequent_items(ErrorType::NoFalseNegatives);
        let sure = rows.into_iter().filter(|row| row.lower_bound() > error);
        let mut top: Vec<Counted<T>> =
            sure.map(|row| Counted { value: row.item().clone(), count: row.lower_bound() }).collect();
        top.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.cmp(&b.value)));
        top.truncate(limit);
        top
    }
}

/// The count up to which values are dropped: that of the first one after the [`KEPT`] most frequent.
fn least_kept(entries: &[Entry]) -> u32 {
    if entries.len() <= KEPT {
        return 0;
    }
    let mut repeated: Vec<u32> = entries.iter().map(|entry| entry.count).filter(|count| *count > 1).collect();
    if repeated.len() <= KEPT {
        return 1;
    }
    *repeated.select_nth_unstable_by(KEPT, |a, b| b.cmp(a)).1
}
