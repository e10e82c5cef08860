//! Uniqueness of any columns: the hash of every row's values is remembered, in memory while the pool grants it, then in
//! sorted runs on disk that are merged at the end.
//!
//! Sixteen bytes of hash stand for a row: that two different rows among a billion share one has a chance of about one
//! in 10^20, less than that of a broken disk.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::sync::Arc;

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::SpillFile;
use datafusion::execution::disk_manager::DiskManager;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use xxhash_rust::xxh3::xxh3_128;

use super::rows::{Failing, RowRule, Unjudgeable, column};
use crate::text::TextColumn;

/// Hashes that are held without asking the pool (about 1.3 MB), so that even an exhausted pool lets the check finish.
pub(super) const CAPACITY_MIN: usize = 1 << 16;
/// What a hash set needs for each of its places, at most: 16 bytes and one of control, 7 of 8 places used, and the
/// number of places a power of two.
pub(super) const BYTES_PER_HASH: usize = 40;

pub(super) struct Unique {
    columns: Vec<String>,
    seen: HashSet<u128, BuildHasherDefault<Already>>,
    /// How many hashes `seen` may hold before it asks for more.
    capacity: usize,
    capacity_min: usize,
    reservation: MemoryReservation,
    disk: Arc<DiskManager>,
    runs: Vec<Arc<dyn SpillFile>>,
    row: Vec<u8>,
}

impl std::fmt::Debug for Unique {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unique")
            .field("columns", &self.columns)
            .field("seen", &self.seen.len())
            .field("runs", &self.runs.len())
            .finish_non_exhaustive()
    }
}

impl Unique {
    pub(super) fn new(columns: &[String], runtime: &Arc<RuntimeEnv>) -> Self {
        let consumer = MemoryConsumer::new(format!("unique({})", columns.join(", "))).with_can_spill(true);
        Self {
            columns: columns.to_vec(),
            seen: HashSet::default(),
            capacity: CAPACITY_MIN,
            capacity_min: CAPACITY_MIN,
            reservation: consumer.register(&runtime.memory_pool),
            disk: Arc::clone(&runtime.disk_manager),
            runs: Vec::new(),
            row: Vec::new(),
        }
    }

    /// Whether `hash` is new, as far as memory knows.
    fn insert(&mut self, hash: u128) -> Result<bool, Unjudgeable> {
        if self.seen.len() >= self.capacity {
            self.make_room().map_err(|error| Unjudgeable(format!("keeping seen values: {error}")))?;
        }
        Ok(self.seen.insert(hash))
    }

    fn make_room(&mut self) -> anyhow::Result<()> {
        // While the set moves to its new place, both places exist.
        if self.reservation.try_grow(2 * self.capacity * BYTES_PER_HASH).is_ok() {
            self.seen.reserve(2 * self.capacity - self.seen.len());
            self.capacity *= 2;
            self.reservation.resize(self.capacity * BYTES_PER_HASH);
            return Ok(());
        }
        self.spill()
    }

    fn spill(&mut self) -> anyhow::Result<()> {
        let mut hashes: Vec<u128> = self.seen.drain().collect();
        self.seen = HashSet::default();
        self.capacity = self.capacity_min;
        hashes.sort_unstable();
        let run = self.disk.create_tmp_file("keeping the values of a uniqueness check")?;
        let mut writer = BufWriter::new(run.open_writer()?);
        for hash in &hashes {
            writer.write_all(&hash.to_le_bytes())?;
        }
        writer.flush()?;
        drop(writer);
        self.reservation.free();
        self.runs.push(run);
        Ok(())
    }

    /// How many hashes occur in more runs than one, counted without the first of each.
    fn repeated_across_runs(&mut self) -> anyhow::Result<u64> {
        if self.runs.is_empty() {
            return Ok(0);
        }
        self.spill()?;
        let mut readers = self.runs.iter().map(|run| Run::open(run.as_ref())).collect::<anyhow::Result<Vec<_>>>()?;
        let mut heads = std::collections::BinaryHeap::new();
        for (position, reader) in readers.iter_mut().enumerate() {
            heads.extend(reader.next()?.map(|hash| std::cmp::Reverse((hash, position))));
        }
        let mut last = None;
        let mut repeated = 0;
        while let Some(std::cmp::Reverse((hash, position))) = heads.pop() {
            repeated += u64::from(last == Some(hash));
            last = Some(hash);
            heads.extend(readers[position].next()?.map(|hash| std::cmp::Reverse((hash, position))));
        }
        Ok(repeated)
    }
}

/// Writes what is hashed of a row.
pub(super) fn hash_row(columns: &[TextColumn], row: usize, out: &mut Vec<u8>) {
    out.clear();
    for values in columns {
        // bytes that are in no text: null is a value of its own here, and values do not run together
        if values.is_null(row) {
            out.push(0xFE);
        } else {
            values.write(row, out);
        }
        out.push(0xFF);
    }
}

impl RowRule for Unique {
    fn columns(&self) -> &[String] {
        &self.columns
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for name in &self.columns {
            let text = TextColumn::new(column(batch, name)?).map_err(|error| Unjudgeable(error.to_string()))?;
            columns.push(text);
        }
        let mut failing = Failing::default();
        for row in 0..batch.num_rows() {
            hash_row(&columns, row, &mut self.row);
            if !self.insert(xxh3_128(&self.row))? {
                failing.push(row);
            }
        }
        Ok(failing)
    }

    fn finish(&mut self) -> Result<u64, Unjudgeable> {
        self.repeated_across_runs().map_err(|error| Unjudgeable(format!("comparing seen values: {error}")))
    }

    fn complaint(&self) -> String {
        format!("values in {} that an earlier row has", self.columns.join(", "))
    }
}

struct Run(BufReader<File>);

impl Run {
    fn open(file: &dyn SpillFile) -> anyhow::Result<Self> {
        let path = file.path().ok_or_else(|| anyhow::anyhow!("temporary files are not local"))?;
        Ok(Self(BufReader::with_capacity(1 << 14, File::open(path)?)))
    }

    fn next(&mut self) -> anyhow::Result<Option<u128>> {
        let mut bytes = [0; 16];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(u128::from_le_bytes(bytes))),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The hash of a value that is a hash already.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Already(u64);

impl Hasher for Already {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, Int64Array};
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;

    fn batch(values: impl Iterator<Item = i64>) -> RecordBatch {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
        RecordBatch::try_from_iter([("x", values)]).unwrap()
    }

    #[test]
    fn duplicates_are_found_across_spilled_runs() {
        let pool = Arc::new(GreedyMemoryPool::new(2_000 * BYTES_PER_HASH));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
        let mut unique = Unique::new(&["x".to_owned()], &runtime);
        (unique.capacity, unique.capacity_min) = (256, 256);
        let mut found = 0;
        for start in 0..10 {
            // each batch repeats the last hundred values of the one before, and one value of its own
            let first = start * 1_000 - if start > 0 { 100 } else { 0 };
            let values = (first..(start + 1) * 1_000).chain([start * 1_000 + 5]);
            found += unique.failing(&batch(values)).unwrap().rows.len() as u64;
        }
        assert!(unique.runs.len() > 3, "{unique:?}");
        found += unique.finish().unwrap();
        assert_eq!(found, 9 * 100 + 10);
        assert_eq!(unique.reservation.size(), 0);
    }

    #[test]
    fn memory_is_asked_for_before_it_is_used() {
        let runtime = Arc::new(RuntimeEnv::default());
        let mut unique = Unique::new(&["x".to_owned()], &runtime);
        unique.failing(&batch(0..200_000)).unwrap();
        assert!(unique.runs.is_empty());
        assert!(unique.reservation.size() >= unique.seen.capacity() * 17 * 8 / 7, "{unique:?}");
    }
}
