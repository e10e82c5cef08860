//! The best history row of each slot so far, with the values that will be taken from it.
//!
//! Values are held in *chunks*, one for each batch that brought winners. A winner that a newer row replaces stays in its chunk
//! as garbage; when garbage outweighs what lives, and when many small chunks have gathered, chunks are copied together. So
//! memory follows the number of slots, not the length of the history.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, DynComparator, UInt32Array, make_array, make_comparator, new_null_array,
};
use datafusion::arrow::buffer::{BooleanBuffer, NullBuffer};
use datafusion::arrow::compute::{SortOptions, interleave, take};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::execution::memory_pool::MemoryReservation;

use crate::keys::NONE;
use crate::labels::Labels;
use crate::memory::{Share, array_bytes, compact, is_exhausted};
use crate::rule::Timing;

/// A chunk below this many rows is small.
const SMALL_ROWS: usize = 256;
/// So many small chunks are copied together.
const SMALL_CHUNKS_MAX: usize = 1024;
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
    /// The values: of its rows, or of a whole batch from which they are still being copied.
    columns: Vec<ArrayRef>,
    /// Where each row is in a whole batch.
    of_batch: Option<UInt32Array>,
    /// The slot that each row won.
    slots: Vec<u32>,
    /// How many rows are still the winners of their slots.
    live: usize,
    share: Share,
}

impl Chunk {
    /// Takes memory for its own values.
    fn account(&mut self) -> Result<()> {
        let bytes = self.columns.iter().map(|column| array_bytes(column) + size_of::<ArrayRef>() * 8).sum::<usize>();
        self.share.try_resize(bytes + self.slots.len() * 4 + size_of::<Self>())
    }

    /// Where the values of a row are.
    fn index(&self, position: usize) -> usize {
        self.of_batch.as_ref().map_or(position, |rows| rows.value(position) as usize)
    }
}

/// The rows of a batch that won, and the number of their chunk, which still holds the whole batch.
#[derive(Debug)]
pub(crate) struct Claim {
    chunk: usize,
    rows: UInt32Array,
}

impl Claim {
    /// Copies the winners out of their batch: most of the work, for which nobody has to wait.
    ///
    /// # Errors
    /// Those of Arrow.
    pub(crate) fn copy(&self, columns: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        columns.iter().map(|column| Ok(compact(take(column, &self.rows, None)?))).collect()
    }
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
    /// wins; of equally new ones the one that is greater in its columns. What won, if anything did, is to be copied and handed
    /// to [`Candidates::settle`]; until then it holds the batch.
    ///
    /// # Errors
    /// Those of Arrow.
    pub(crate) fn offer(&mut self, slots: &[u32], orders: &[i64], columns: &[ArrayRef]) -> Result<Option<Claim>> {
        let number = u32::try_from(self.chunks.len()).expect("fewer chunks than batches, fewer batches than 2^32");
        let mut ties = Ties { columns, with: HashMap::new() };
        let mut won_rows: Vec<u32> = Vec::new();
        let mut won_slots: Vec<u32> = Vec::new();
        // Most rows are too old. Whether they are is asked of memory that is far away: of all of them first and without a
        // decision in between, so that many of these requests are under way at a time.
        let newest: Vec<i64> =
            slots.iter().map(|slot| self.entries.get(*slot as usize).map_or(i64::MAX, |entry| entry.order)).collect();
        for (row, ((slot, order), newest)) in (0u32..).zip(slots.iter().zip(orders).zip(newest)) {
            if *order < newest || *slot == NONE {
                continue;
            }
            let entry = &mut self.entries[*slot as usize];
            if entry.chunk != NONE {
                let newer = match order.cmp(&entry.order) {
                    Ordering::Less => false,
                    Ordering::Greater => true,
                    Ordering::Equal if entry.chunk == number => {
                        ties.greater(row, number, columns, won_rows[entry.position as usize] as usize)?
                    }
                    Ordering::Equal => {
                        let other = self.chunks[entry.chunk as usize].as_ref().expect("entries name chunks that are");
                        ties.greater(row, entry.chunk, &other.columns, other.index(entry.position as usize))?
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
            return Ok(None);
        }
        let rows = UInt32Array::from(won_rows);
        let live = won_slots.len();
        self.rows += live;
        self.chunks.push(Some(Chunk {
            columns: columns.to_vec(),
            of_batch: Some(rows.clone()),
            slots: won_slots,
            live,
            share: Share::new(&self.reservation),
        }));
        Ok(Some(Claim { chunk: number as usize, rows }))
    }

    /// Takes in what [`Claim::copy`] gave.
    ///
    /// # Errors
    /// When memory runs out. The rows have been taken even so: nothing is lost, and the caller may go on by
    /// [`Candidates::drain`].
    pub(crate) fn settle(&mut self, claim: &Claim, columns: Vec<ArrayRef>) -> Result<()> {
        // gone when others were copied together meanwhile, and this one with them
        if let Some(chunk) = &mut self.chunks[claim.chunk] {
            chunk.columns = columns;
            chunk.of_batch = None;
            chunk.account()?;
        }
        self.tidy()
    }

    /// Adds a chunk of which every row lives. It is there even when memory for it is refused.
    fn add(&mut self, columns: Vec<ArrayRef>, slots: Vec<u32>) -> Result<()> {
        let live = slots.len();
        let share = Share::new(&self.reservation);
        let mut chunk = Chunk { columns, of_batch: None, slots, live, share };
        let granted = chunk.account();
        self.chunks.push(Some(chunk));
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
                    indices.push((source, chunk.index(position)));
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
            let columns = self.values(0, entries.iter().copied())?;
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

    /// The values of the columns from number `from` on for these entries, null for an empty one.
    fn values(&self, from: usize, entries: impl Iterator<Item = Entry>) -> Result<Vec<ArrayRef>> {
        let mut places = vec![0usize; self.chunks.len()];
        let mut sources: Vec<&Chunk> = Vec::with_capacity(self.chunks.len());
        for (place, chunk) in places.iter_mut().zip(&self.chunks) {
            if let Some(chunk) = chunk {
                *place = sources.len();
                sources.push(chunk);
            }
        }
        // the places of values, found once for all columns; those of empty entries are beyond all sources
        let empty = (sources.len(), 0);
        let mut indices: Vec<(usize, usize)> = entries
            .map(|entry| match entry.chunk {
                NONE => empty,
                chunk => {
                    let place = places[chunk as usize];
                    (place, sources[place].index(entry.position as usize))
                }
            })
            .collect();
        fn arrays<'a>(sources: &[&'a Chunk], column: usize) -> Vec<&'a dyn Array> {
            sources.iter().map(|chunk| chunk.columns[column].as_ref()).collect()
        }
        let (plain, others): (Vec<usize>, Vec<usize>) = (from..self.schema.fields().len())
            .partition(|column| self.schema.field(*column).data_type().is_primitive());
        let mut columns: Vec<(usize, ArrayRef)> = Vec::with_capacity(plain.len() + others.len());
        for column in others {
            let null = new_null_array(self.schema.field(column).data_type(), 1);
            let mut arrays = arrays(&sources, column);
            arrays.push(null.as_ref());
            columns.push((column, compact(interleave(&arrays, &indices)?)));
        }
        // Numbers are gathered as if none were null, and what is empty is taken out again, which is the same for all columns:
        // asking every value costs more than copying it.
        let found = (indices.contains(&empty))
            .then(|| NullBuffer::new(BooleanBuffer::collect_bool(indices.len(), |row| indices[row] != empty)));
        for index in indices.iter_mut().filter(|index| **index == empty) {
            *index = (0, 0);
        }
        for column in plain {
            let data_type = self.schema.field(column).data_type();
            if sources.is_empty() {
                columns.push((column, new_null_array(data_type, indices.len())));
                continue;
            }
            let array = interleave(&arrays(&sources, column), &indices)?;
            columns.push((
                column,
                match &found {
                    None => array,
                    Some(_) => {
                        let nulls = NullBuffer::union(array.nulls(), found.as_ref());
                        make_array(array.to_data().into_builder().nulls(nulls).build()?)
                    }
                },
            ));
        }
        columns.sort_unstable_by_key(|(column, _)| *column);
        Ok(columns.into_iter().map(|(_, array)| array).collect())
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
        let entries = self.labels.row_slots[rows]
            .iter()
            .map(|slot| if *slot == NONE { EMPTY } else { self.candidates.entries[*slot as usize] });
        self.candidates.values(from, entries)
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
    fn greater(&mut self, row: u32, chunk: u32, other: &[ArrayRef], other_row: usize) -> Result<bool> {
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
        let order =
            comparisons.iter().map(|compare| compare(row as usize, other_row)).find(|order| *order != Ordering::Equal);
        Ok(order == Some(Ordering::Greater))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{AsArray, Int64Array, StringArray};
    use datafusion::arrow::datatypes::{DataType, Field, Int64Type};
    use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, UnboundedMemoryPool};

    use super::*;

    fn candidates(slots: usize) -> Candidates {
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let reservation = Arc::new(MemoryConsumer::new("test").register(&pool));
        let fields = vec![Field::new("number", DataType::Int64, true), Field::new("text", DataType::Utf8, true)];
        Candidates::new(slots, Arc::new(Schema::new(fields)), &reservation).unwrap()
    }

    fn columns(numbers: &[Option<i64>]) -> Vec<ArrayRef> {
        let texts = numbers.iter().map(|number| number.map(|number| number.to_string()));
        vec![Arc::new(numbers.iter().copied().collect::<Int64Array>()), Arc::new(texts.collect::<StringArray>())]
    }

    fn won(candidates: &Candidates) -> Vec<Option<i64>> {
        let found = candidates.values(0, candidates.entries.iter().copied()).unwrap();
        let numbers: Vec<Option<i64>> = found[0].as_primitive::<Int64Type>().iter().collect();
        let texts = found[1].as_string::<i32>().iter().map(|text| text.map(|text| text.parse().unwrap()));
        assert_eq!(texts.collect::<Vec<_>>(), numbers);
        numbers
    }

    #[test]
    fn rows_may_be_copied_together_while_their_batch_is_still_being_read() {
        let mut candidates = candidates(4);
        let (early, late) = (columns(&[Some(0), Some(1), Some(2)]), columns(&[Some(10), None]));
        let first = candidates.offer(&[0, NONE, 2], &[5, 5, 5], &early).unwrap().unwrap();
        let second = candidates.offer(&[0, 3], &[6, 6], &late).unwrap().unwrap();
        assert_eq!(won(&candidates), [Some(10), None, Some(2), None], "out of whole batches");
        let copied = second.copy(&late).unwrap();
        candidates.settle(&second, copied).unwrap();
        candidates.copy_together(0..2).unwrap();
        let copied = first.copy(&early).unwrap();
        candidates.settle(&first, copied).unwrap();
        assert_eq!(won(&candidates), [Some(10), None, Some(2), None]);
        assert!(candidates.offer(&[0, 2], &[5, 4], &early[..]).unwrap().is_none(), "both are older");
    }

    #[test]
    fn of_equally_new_rows_the_greater_wins_even_in_a_batch_still_being_read() {
        let mut candidates = candidates(1);
        for (numbers, wins) in
            [([Some(3), Some(1)], Some(3)), ([None, Some(2)], Some(3)), ([Some(4), Some(3)], Some(4))]
        {
            candidates.offer(&[0, 0], &[7, 7], &columns(&numbers)).unwrap();
            assert_eq!(won(&candidates), [wins]);
        }
    }
}
