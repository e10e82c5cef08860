//! The best history row of each slot so far, with the values that will be taken from it.
//!
//! Values are held in *chunks*, one for each batch that brought winners. A winner that a newer row replaces stays in its chunk
//! as garbage; when garbage outweighs what lives, and when many small chunks have gathered, chunks are copied together. So
//! memory follows the number of slots, not the length of the history.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, DynComparator, UInt32Array, make_comparator, new_null_array};
use datafusion::arrow::compute::{SortOptions, interleave, take};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::execution::memory_pool::MemoryReservation;

use crate::keys::NONE;
use crate::labels::Labels;
use crate::memory::{Share, array_bytes, compact, is_exhausted};
use crate::rule::Timing;

/// A chunk below this many rows is small.
const SMALL_ROWS: usize = 4096;
/// So many small chunks are copied together.
const SMALL_CHUNKS_MAX: usize = 256;
/// A copy is cut into chunks of about so many rows, so that the old ones can go early.
const COPIED_ROWS: usize = 65_536;

/// The winner of a slot.
#[derive(Debug, Clone, Copy)]
struct Entry {
    order: i64,
    /// [`NONE`]: no row.
    chunk: u32,
    position: u32,
}

const EMPTY: Entry = Entry { order: i64::MIN, chunk: NONE, position: 0 };

#[derive(Debug)]
struct Chunk {
    columns: Vec<ArrayRef>,
    /// The slot that each row won.
    slots: Vec<u32>,
    /// How many rows are still the winners of their slots.
    live: usize,
    _share: Share,
}

/// The winners so far of one history.
#[derive(Debug)]
pub(crate) struct Candidates {
    entries: Vec<Entry>,
    /// By number; `None` when copied into another one.
    chunks: Vec<Option<Chunk>>,
    /// Chunks before this one are not small, or were the last time somebody looked.
    small_from: usize,
    rows: usize,
    live: usize,
    schema: SchemaRef,
    reservation: Arc<MemoryReservation>,
    _share: Share,
}

impl Candidates {
    /// Bytes per slot, without values.
    pub(crate) const BYTES_PER_SLOT: usize = size_of::<Entry>();

    /// No winners for `slots` slots; the values will be of `schema`.
    ///
    /// # Errors
    /// When memory runs out.
    pub(crate) fn new(slots: usize, schema: SchemaRef, reservation: &Arc<MemoryReservation>) -> Result<Self> {
        let mut share = Share::new(reservation);
        share.try_grow(slots * Self::BYTES_PER_SLOT)?;
        Ok(Self {
            entries: vec![EMPTY; slots],
            chunks: Vec::new(),
            small_from: 0,
            rows: 0,
            live: 0,
            schema,
            reservation: Arc::clone(reservation),
            _share: share,
        })
    }

    /// Offers rows: `slots[i]` is the slot that row `i` concerns or [`NONE`], `orders[i]` says how new it is. A newer row
    /// wins; of equally new ones the one that is greater in its columns.
    ///
    /// # Errors
    /// When memory runs out. The rows have been taken even so: nothing is lost, and the caller may go on by
    /// [`Candidates::drain`].
    pub(crate) fn offer(&mut self, slots: &[u32], orders: &[i64], columns: &[ArrayRef]) -> Result<()> {
        let number = u32::try_from(self.chunks.len()).expect("fewer chunks than batches, fewer batches than 2^32");
        let mut ties = Ties { columns, with: HashMap::new() };
        let mut won_rows: Vec<u32> = Vec::new();
        let mut won_slots: Vec<u32> = Vec::new();
        for (row, (slot, order)) in (0u32..).zip(slots.iter().zip(orders)) {
            if *slot == NONE {
                continue;
            }
            let entry = &mut self.entries[*slot as usize];
            if entry.chunk != NONE {
                let newer = match order.cmp(&entry.order) {
                    Ordering::Less => false,
                    Ordering::Greater => true,
                    Ordering::Equal if entry.chunk == number => {
                        ties.greater(row, number, columns, won_rows[entry.position as usize])?
                    }
                    Ordering::Equal => {
                        let other = self.chunks[entry.chunk as usize].as_ref().expect("entries name chunks that are");
                        ties.greater(row, entry.chunk, &other.columns, entry.position)?
                    }
                };
                if !newer {
                    continue;
                }
                if entry.chunk == number {
                    won_rows[entry.position as usize] = row;
                    entry.order = *order;
                    continue;
                }
                let old = self.chunks[entry.chunk as usize].as_mut().expect("entries name chunks that are");
                old.live -= 1;
                self.live -= 1;
            }
            let position = u32::try_from(won_rows.len()).expect("fewer winners than rows of a batch");
            *entry = Entry { order: *order, chunk: number, position };
            won_rows.push(row);
            won_slots.push(*slot);
            self.live += 1;
        }
        if won_rows.is_empty() {
            return Ok(());
        }
        let won_rows = UInt32Array::from(won_rows);
        let columns =
            columns.iter().map(|column| Ok(compact(take(column, &won_rows, None)?))).collect::<Result<_>>()?;
        self.rows += won_slots.len();
        self.add(columns, won_slots)?;
        self.tidy()
    }

    /// Adds a chunk of which every row lives. It is there even when memory for it is refused.
    fn add(&mut self, columns: Vec<ArrayRef>, slots: Vec<u32>) -> Result<()> {
        let mut share = Share::new(&self.reservation);
        let bytes = columns.iter().map(|column| array_bytes(column) + size_of::<ArrayRef>() * 8).sum::<usize>();
        let granted = share.try_grow(bytes + slots.len() * 4 + size_of::<Chunk>());
        let live = slots.len();
        self.chunks.push(Some(Chunk { columns, slots, live, _share: share }));
        granted
    }

    /// Copies chunks together when too many are small, or too much in them is garbage.
    fn tidy(&mut self) -> Result<()> {
        if self.rows > self.live * 2 + COPIED_ROWS {
            let all = 0..self.chunks.len();
            self.copy_together(all)?;
        } else if self.chunks.len() - self.small_from >= SMALL_CHUNKS_MAX {
            let recent = self.small_from..self.chunks.len();
            let small = |chunk: &&Option<Chunk>| chunk.as_ref().is_some_and(|chunk| chunk.slots.len() < SMALL_ROWS);
            if self.chunks[recent.clone()].iter().filter(small).count() * 2 >= SMALL_CHUNKS_MAX {
                self.copy_together(recent)?;
            }
            self.small_from = self.chunks.len();
        }
        Ok(())
    }

    /// Replaces these chunks by ones without garbage, group by group.
    fn copy_together(&mut self, range: std::ops::Range<usize>) -> Result<()> {
        let mut group: Vec<usize> = Vec::new();
        let mut rows = 0;
        for number in range {
            let Some(chunk) = &self.chunks[number] else { continue };
            rows += chunk.live;
            group.push(number);
            if rows >= COPIED_ROWS {
                self.copy_group(&std::mem::take(&mut group))?;
                rows = 0;
            }
        }
        self.copy_group(&group)?;
        self.small_from = self.chunks.len();
        Ok(())
    }

    fn copy_group(&mut self, group: &[usize]) -> Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        let sources: Vec<&Chunk> = group.iter().filter_map(|number| self.chunks[*number].as_ref()).collect();
        let mut indices: Vec<(usize, usize)> = Vec::new();
        let mut slots: Vec<u32> = Vec::new();
        for ((source, chunk), number) in sources.iter().enumerate().zip(group) {
            for (position, slot) in chunk.slots.iter().enumerate() {
                let entry = self.entries[*slot as usize];
                if entry.chunk as usize == *number && entry.position as usize == position {
                    indices.push((source, position));
                    slots.push(*slot);
                }
            }
        }
        let columns = (0..self.schema.fields().len())
            .map(|column| {
                let arrays: Vec<&dyn Array> = sources.iter().map(|chunk| chunk.columns[column].as_ref()).collect();
                Ok(compact(interleave(&arrays, &indices)?))
            })
            .collect::<Result<Vec<_>>>()?;
        for number in group {
            if let Some(old) = self.chunks[*number].take() {
                self.rows -= old.slots.len();
            }
        }
        if slots.is_empty() {
            return Ok(());
        }
        let new = u32::try_from(self.chunks.len()).expect("fewer chunks than batches, fewer batches than 2^32");
        for (position, slot) in (0u32..).zip(&slots) {
            let entry = &mut self.entries[*slot as usize];
            (entry.chunk, entry.position) = (new, position);
        }
        self.rows += slots.len();
        self.add(columns, slots)
    }

    /// Hands out what won so far, as history rows again: keys by their number in `labels`, orders, columns. At most `rows_max`
    /// rows at a time.
    ///
    /// # Errors
    /// Those of `each`.
    pub(crate) fn drain(
        self,
        labels: &Labels,
        rows_max: usize,
        mut each: impl FnMut(&[u32], Vec<i64>, Vec<ArrayRef>) -> Result<()>,
    ) -> Result<()> {
        let slots: Vec<u32> =
            (0u32..).zip(&self.entries).filter_map(|(slot, entry)| (entry.chunk != NONE).then_some(slot)).collect();
        for slots in slots.chunks(rows_max.max(1)) {
            let entries: Vec<Entry> = slots.iter().map(|slot| self.entries[*slot as usize]).collect();
            let keys: Vec<u32> = slots.iter().map(|slot| labels.key_of(*slot)).collect();
            let orders = entries.iter().map(|entry| entry.order).collect();
            let columns = (0..self.schema.fields().len())
                .map(|column| self.values(column, entries.iter().copied()))
                .collect::<Result<_>>()?;
            each(&keys, orders, columns)?;
        }
        Ok(())
    }

    /// Lets later slots inherit, and gives the answer.
    ///
    /// # Errors
    /// Those of Arrow.
    pub(crate) fn finish(mut self, labels: Arc<Labels>, timing: &Timing) -> Result<Matches> {
        // answers may wait for other histories
        if self.rows > self.live + self.live / 4 {
            let all = 0..self.chunks.len();
            match self.copy_together(all) {
                Err(error) if !is_exhausted(&error) => return Err(error),
                // without memory the rest is left as it is
                _ => {}
            }
        }
        for pair in labels.starts.windows(2) {
            let mut newest = EMPTY;
            for slot in pair[0] as usize..pair[1] as usize {
                let own = self.entries[slot];
                if own.chunk != NONE {
                    newest = own;
                } else if newest.chunk != NONE && timing.alive(newest.order, labels.times[slot]) {
                    self.entries[slot] = newest;
                }
            }
        }
        Ok(Matches { candidates: self, labels })
    }

    /// The values of one column for these entries, null for an empty one.
    fn values(&self, column: usize, entries: impl Iterator<Item = Entry>) -> Result<ArrayRef> {
        let data_type = self.schema.field(column).data_type();
        let null = new_null_array(data_type, 1);
        let mut arrays: Vec<&dyn Array> = vec![null.as_ref()];
        let mut places = vec![0usize; self.chunks.len()];
        for (place, chunk) in places.iter_mut().zip(&self.chunks) {
            if let Some(chunk) = chunk {
                *place = arrays.len();
                arrays.push(chunk.columns[column].as_ref());
            }
        }
        let indices: Vec<(usize, usize)> = entries
            .map(|entry| match entry.chunk {
                NONE => (0, 0),
                chunk => (places[chunk as usize], entry.position as usize),
            })
            .collect();
        Ok(compact(interleave(&arrays, &indices)?))
    }
}

/// For every row of some labels the history row that it sees.
#[derive(Debug)]
pub(crate) struct Matches {
    candidates: Candidates,
    labels: Arc<Labels>,
}

impl Matches {
    /// The columns from number `from` on, for these label rows.
    ///
    /// # Errors
    /// Those of Arrow.
    pub(crate) fn columns(&self, from: usize, rows: std::ops::Range<usize>) -> Result<Vec<ArrayRef>> {
        let entries: Vec<Entry> = self.labels.row_slots[rows]
            .iter()
            .map(|slot| if *slot == NONE { EMPTY } else { self.candidates.entries[*slot as usize] })
            .collect();
        (from..self.candidates.schema.fields().len())
            .map(|column| self.candidates.values(column, entries.iter().copied()))
            .collect()
    }

    /// The schema of [`Matches::columns`].
    pub(crate) fn schema(&self, from: usize) -> SchemaRef {
        let fields: Vec<_> = self.candidates.schema.fields().iter().skip(from).cloned().collect();
        Arc::new(Schema::new(fields))
    }

    /// How many label rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.labels.row_slots.len()
    }

    /// How many label rows see a history row.
    pub(crate) fn matched(&self) -> usize {
        self.candidates.entries.iter().filter(|entry| entry.chunk != NONE).count()
    }
}

/// Comparisons of rows that are equally new.
struct Ties<'a> {
    columns: &'a [ArrayRef],
    /// By chunk, since building a comparison costs more than using it.
    with: HashMap<u32, Vec<DynComparator>>,
}

impl Ties<'_> {
    /// Whether `row` of the batch is greater than `other_row` of a chunk.
    fn greater(&mut self, row: u32, chunk: u32, other: &[ArrayRef], other_row: u32) -> Result<bool> {
        let comparisons = match self.with.entry(chunk) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                let options = SortOptions { descending: false, nulls_first: true };
                let built = self
                    .columns
                    .iter()
                    .zip(other)
                    .map(|(a, b)| make_comparator(a, b, options))
                    .collect::<Result<Vec<_>, _>>()?;
                new.insert(built)
            }
        };
        let order = comparisons
            .iter()
            .map(|compare| compare(row as usize, other_row as usize))
            .find(|order| *order != Ordering::Equal);
        Ok(order == Some(Ordering::Greater))
    }
}
