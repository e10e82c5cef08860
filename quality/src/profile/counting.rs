//! Counts of the different values among a few thousand: what makes profiles of repetitive columns cheap.
//!
//! Sketches are asked once per different value of a chunk instead of once per row.

/// How many values are looked at together: few enough that what is known of them stays in the processor's cache.
pub(crate) const CHUNK: usize = 2048;

const SLOTS: usize = CHUNK * 2;

/// A value of a chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// The value, or its hash.
    pub(crate) key: u64,
    /// How often it occurs in the chunk.
    pub(crate) count: u32,
    /// Where it first occurs.
    pub(crate) row: u32,
}

/// A hash table for one chunk, emptied for the next.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Position in `entries` plus one; 0 is empty.
    slots: Vec<u16>,
    entries: Vec<Entry>,
}

impl Default for Counts {
    fn default() -> Self {
        Self { slots: vec![0; SLOTS], entries: Vec::with_capacity(CHUNK) }
    }
}

impl Counts {
    pub(crate) fn clear(&mut self) {
        self.slots.fill(0);
        self.entries.clear();
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Counts one `key`; when another row has it already, `same` decides whether that row's value is really this one's.
    /// At most [`CHUNK`] values may be counted between two calls of `clear`.
    #[inline]
    pub(crate) fn add(&mut self, key: u64, row: u32, same: impl Fn(u32) -> bool) {
        // Fibonacci hashing: numbers in a row, and multiples of a power of two, are spread over all slots
        let mut slot = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros())) as usize;
        loop {
            let entry = self.slots[slot & (SLOTS - 1)];
            if entry == 0 {
                self.entries.push(Entry { key, count: 1, row });
                self.slots[slot & (SLOTS - 1)] = self.entries.len() as u16;
                return;
            }
            let entry = &mut self.entries[usize::from(entry) - 1];
            if entry.key == key && same(entry.row) {
                entry.count += 1;
                return;
            }
            slot += 1;
        }
    }
}
