//! Keys of labels and of history rows in one comparable form, and a dense number for each distinct one.
//!
//! Two columns of a key pair may differ in representation (a `Utf8` label file, a `Utf8View` history). [`KeyType::common`]
//! finds the type in which both are compared, [`KeyReader`] brings a batch into it, and the whole key of a row becomes either
//! one integer or one string of bytes: those are the two that [`KeyIndex`] has to know.

use std::hash::Hash;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, Int64Array, PrimitiveArray, RecordBatch,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type, TimeUnit, UInt64Type};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::Result;
use xxhash_rust::xxh3::xxh3_64;

use crate::ticks::{finest, ticks, unit_of};

/// A number that stands for no key, no slot, no chunk.
pub(crate) const NONE: u32 = u32::MAX;

/// The type in which the two columns of a key pair are compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum KeyType {
    /// Integers, as 64 bits with a sign. A value that does not fit equals nothing on the other side.
    Int,
    /// Unsigned integers of 64 bits on both sides.
    Unsigned,
    /// Instants, counted in this unit.
    Time(TimeUnit),
    /// Strings of any representation.
    Text,
    /// Bytes of any representation.
    Bytes,
    /// The same type on both sides.
    Same(DataType),
}

impl KeyType {
    /// The type in which a column of type `a` is compared with one of type `b`; `None` when they cannot be equal, or when
    /// equality is not what people expect (floating-point numbers) or not defined (nested types).
    pub(crate) fn common(a: &DataType, b: &DataType) -> Option<Self> {
        let (a, b) = (plain(a), plain(b));
        match (a, b) {
            (DataType::UInt64, DataType::UInt64) => Some(Self::Unsigned),
            _ if a.is_integer() && b.is_integer() => Some(Self::Int),
            _ if is_text(a) && is_text(b) => Some(Self::Text),
            _ if is_bytes(a) && is_bytes(b) => Some(Self::Bytes),
            _ => match (unit_of(a), unit_of(b)) {
                (Some(a), Some(b)) => Some(Self::Time(finest(a, b))),
                _ if a == b && !a.is_floating() && !a.is_nested() && !a.is_null() => Some(Self::Same(a.clone())),
                _ => None,
            },
        }
    }

    /// The type of [`KeyType::read`]'s result.
    fn arrow(&self) -> DataType {
        match self {
            Self::Int | Self::Unsigned | Self::Time(_) => DataType::Int64,
            Self::Text | Self::Bytes => DataType::BinaryView,
            Self::Same(DataType::Boolean | DataType::Date32 | DataType::Date64) => DataType::Int64,
            Self::Same(other) => other.clone(),
        }
    }

    fn read(&self, array: &ArrayRef) -> Result<ArrayRef> {
        let array = match array.data_type() {
            DataType::Dictionary(_, values) => &cast(array, values)?,
            _ => array,
        };
        Ok(match self {
            Self::Unsigned => Arc::new(array.as_primitive::<UInt64Type>().unary::<_, Int64Type>(u64::cast_signed)),
            Self::Time(unit) => Arc::new(ticks(array, *unit)?),
            Self::Text => Arc::new(cast(array, &DataType::Utf8View)?.as_string_view().clone().to_binary_view()),
            Self::Int | Self::Bytes | Self::Same(_) => cast(array, &self.arrow())?,
        })
    }
}

fn plain(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// Reads the keys of batches of one schema.
#[derive(Debug)]
pub(crate) struct KeyReader {
    columns: Vec<(usize, KeyType)>,
    /// For keys of several columns, and of columns that are neither integers nor bytes.
    rows: Option<RowConverter>,
}

impl KeyReader {
    /// A reader of these columns of a batch, each compared in its type.
    pub(crate) fn new(columns: Vec<(usize, KeyType)>) -> Result<Self> {
        let types: Vec<DataType> = columns.iter().map(|(_, key_type)| key_type.arrow()).collect();
        let rows = match types.as_slice() {
            [] | [DataType::Int64 | DataType::BinaryView] => None,
            _ => Some(RowConverter::new(types.into_iter().map(SortField::new).collect())?),
        };
        Ok(Self { columns, rows })
    }

    /// The key of each row of `batch`, null where one of its columns is.
    pub(crate) fn read(&self, batch: &RecordBatch) -> Result<KeyColumn> {
        let mut columns: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|(column, key_type)| key_type.read(batch.column(*column)))
            .collect::<Result<_>>()?;
        let Some(rows) = &self.rows else {
            return Ok(match columns.pop() {
                None => KeyColumn::Global(batch.num_rows()),
                Some(column) => KeyColumn::from_array(&column),
            });
        };
        let nulls = columns
            .iter()
            .fold(None, |nulls, column| NullBuffer::union(nulls.as_ref(), column.logical_nulls().as_ref()));
        let (offsets, values, _) = rows.convert_columns(&columns)?.try_into_binary()?.into_parts();
        Ok(KeyColumn::Rows(BinaryArray::new(offsets, values, nulls)))
    }

    /// The type of [`KeyColumn::to_array`] for keys of this reader; `None` when there are no keys.
    pub(crate) fn spilled_type(&self) -> Option<DataType> {
        match (&self.rows, self.columns.first()) {
            (Some(_), _) => Some(DataType::Binary),
            (None, Some((_, key_type))) => Some(key_type.arrow()),
            (None, None) => None,
        }
    }
}

/// The keys of a batch.
#[derive(Debug, Clone)]
pub(crate) enum KeyColumn {
    /// So many rows, and all have the same key: the join has none.
    Global(usize),
    Int(Int64Array),
    Bytes(BinaryViewArray),
    Rows(BinaryArray),
}

impl KeyColumn {
    /// The keys that [`KeyColumn::to_array`] gave.
    pub(crate) fn from_array(array: &ArrayRef) -> Self {
        match array.data_type() {
            DataType::Int64 => Self::Int(array.as_primitive().clone()),
            DataType::Binary => Self::Rows(array.as_binary::<i32>().clone()),
            _ => Self::Bytes(array.as_binary_view().clone()),
        }
    }

    /// The keys as one column, of which equal values are equal keys; `None` when there are no keys.
    pub(crate) fn to_array(&self) -> Option<ArrayRef> {
        match self {
            Self::Global(_) => None,
            Self::Int(keys) => Some(Arc::new(keys.clone())),
            Self::Bytes(keys) => Some(Arc::new(keys.clone())),
            Self::Rows(keys) => Some(Arc::new(keys.clone())),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Global(rows) => *rows,
            Self::Int(keys) => keys.len(),
            Self::Bytes(keys) => keys.len(),
            Self::Rows(keys) => keys.len(),
        }
    }

    /// Calls `each` with the number and the hash of every row; `None` for a null key.
    pub(crate) fn hashes(&self, mut each: impl FnMut(usize, Option<u64>)) {
        match self {
            Self::Global(rows) => (0..*rows).for_each(|row| each(row, Some(0))),
            Self::Int(keys) => keys.iter().enumerate().for_each(|(row, key)| each(row, key.map(hash_int))),
            Self::Bytes(keys) => keys.iter().enumerate().for_each(|(row, key)| each(row, key.map(hash_bytes))),
            Self::Rows(keys) => keys.iter().enumerate().for_each(|(row, key)| each(row, key.map(hash_bytes))),
        }
    }
}

/// The finalizer of MurmurHash3: every bit of the key moves every bit of the hash.
#[inline]
fn hash_int(key: i64) -> u64 {
    let mut hash = key.cast_unsigned();
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[inline]
fn hash_bytes(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// A dense number, counted from 0, for every distinct key: an open-addressing table over a list of keys.
///
/// Once [`KeyIndex::sort`] has been called, numbers are in the order of keys. Tables are often sorted by key, so a search looks
/// among the keys that follow the last one found before it goes to the table; and what is kept by number is then read in
/// order, too.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    /// Upper half of the hash, and the number of the key, or [`NONE`]. At most half of the places are taken.
    table: Vec<(u32, u32)>,
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    Global,
    Int(Vec<i64>),
    Bytes { ends: Vec<usize>, bytes: Vec<u8> },
}

impl Keys {
    fn bytes(ends: &[usize], bytes: &[u8], number: usize) -> std::ops::Range<usize> {
        debug_assert!(ends[number] <= bytes.len());
        number.checked_sub(1).map_or(0, |before| ends[before])..ends[number]
    }
}

impl KeyIndex {
    const SMALLEST: usize = 64;

    /// An index for keys as `keys` has them.
    pub(crate) fn new(keys: &KeyReader) -> Self {
        let keys = match keys.spilled_type() {
            None => Keys::Global,
            Some(DataType::Int64) => Keys::Int(Vec::new()),
            Some(_) => Keys::Bytes { ends: Vec::new(), bytes: Vec::new() },
        };
        Self { table: vec![(0, NONE); Self::SMALLEST], keys }
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        match &self.keys {
            Keys::Global => 1,
            Keys::Int(keys) => keys.len(),
            Keys::Bytes { ends, .. } => ends.len(),
        }
    }

    /// Memory held, in bytes.
    pub(crate) fn size(&self) -> usize {
        let keys = match &self.keys {
            Keys::Global => 0,
            Keys::Int(keys) => keys.capacity() * size_of::<i64>(),
            Keys::Bytes { ends, bytes } => ends.capacity() * size_of::<usize>() + bytes.capacity(),
        };
        self.table.capacity() * size_of::<(u32, u32)>() + keys
    }

    /// Appends the number of each key to `numbers`, giving new keys new numbers; [`NONE`] for null.
    pub(crate) fn insert(&mut self, column: &KeyColumn, numbers: &mut Vec<u32>) {
        match column {
            KeyColumn::Global(rows) => numbers.extend(std::iter::repeat_n(0, *rows)),
            KeyColumn::Int(keys) => {
                numbers.extend(keys.iter().map(|key| key.map_or(NONE, |key| self.insert_int(key))));
            }
            KeyColumn::Bytes(keys) => {
                numbers.extend(keys.iter().map(|key| key.map_or(NONE, |key| self.insert_bytes(key))));
            }
            KeyColumn::Rows(keys) => {
                numbers.extend(keys.iter().map(|key| key.map_or(NONE, |key| self.insert_bytes(key))));
            }
        }
    }

    /// Appends the number of each key to `numbers`; [`NONE`] for null and for keys that are not here.
    pub(crate) fn find(&self, column: &KeyColumn, numbers: &mut Vec<u32>) {
        match column {
            KeyColumn::Global(rows) => numbers.extend(std::iter::repeat_n(0, *rows)),
            KeyColumn::Int(keys) if keys.null_count() == 0 => {
                self.find_ints(keys.values().iter().map(|key| Some(*key)), numbers);
            }
            KeyColumn::Int(keys) => self.find_ints(keys.iter(), numbers),
            KeyColumn::Bytes(keys) => self.find_all_bytes(keys.iter(), numbers),
            KeyColumn::Rows(keys) => self.find_all_bytes(keys.iter(), numbers),
        }
    }

    fn find_ints(&self, sought: impl Iterator<Item = Option<i64>>, numbers: &mut Vec<u32>) {
        let Keys::Int(keys) = &self.keys else { return };
        find_near(keys.len(), |number| keys[number], |key| self.find_int(key), sought, numbers);
    }

    fn find_all_bytes<'a>(&'a self, sought: impl Iterator<Item = Option<&'a [u8]>>, numbers: &mut Vec<u32>) {
        let Keys::Bytes { ends, bytes } = &self.keys else { return };
        let key = |number| &bytes[Keys::bytes(ends, bytes, number)];
        find_near(ends.len(), key, |key| self.find_bytes(key), sought, numbers);
    }

    /// Numbers keys anew in their order. The new number of each old one.
    pub(crate) fn sort(&mut self) -> Vec<u32> {
        let mut order: Vec<u32> = (0u32..).take(self.len()).collect();
        match &mut self.keys {
            Keys::Global => {}
            Keys::Int(keys) => {
                order.sort_unstable_by_key(|number| keys[*number as usize]);
                keys.sort_unstable();
            }
            Keys::Bytes { ends, bytes } => {
                let key = |number: u32| &bytes[Keys::bytes(ends, bytes, number as usize)];
                order.sort_unstable_by(|a, b| key(*a).cmp(key(*b)));
                let mut sorted = Vec::with_capacity(bytes.len());
                let mut sorted_ends = Vec::with_capacity(ends.len());
                for number in &order {
                    sorted.extend_from_slice(key(*number));
                    sorted_ends.push(sorted.len());
                }
                (*ends, *bytes) = (sorted_ends, sorted);
            }
        }
        let mut ranks = vec![0; order.len()];
        for (rank, number) in (0u32..).zip(order) {
            ranks[number as usize] = rank;
        }
        for (_, number) in self.table.iter_mut().filter(|(_, number)| *number != NONE) {
            *number = ranks[*number as usize];
        }
        ranks
    }

    /// The keys of these numbers, as `like` has them.
    pub(crate) fn keys(&self, numbers: &[u32], like: Option<&DataType>) -> KeyColumn {
        match &self.keys {
            Keys::Global => KeyColumn::Global(numbers.len()),
            Keys::Int(keys) => {
                let keys = numbers.iter().map(|number| keys[*number as usize]);
                KeyColumn::Int(PrimitiveArray::from_iter_values(keys))
            }
            Keys::Bytes { ends, bytes } => {
                let keys = numbers.iter().map(|number| &bytes[Keys::bytes(ends, bytes, *number as usize)]);
                match like {
                    Some(DataType::Binary) => KeyColumn::Rows(BinaryArray::from_iter_values(keys)),
                    _ => KeyColumn::Bytes(BinaryViewArray::from_iter_values(keys)),
                }
            }
        }
    }

    /// The least and the greatest key when keys are integers. After [`KeyIndex::sort`].
    pub(crate) fn bounds(&self) -> Option<(i64, i64)> {
        let Keys::Int(keys) = &self.keys else { return None };
        Some((*keys.first()?, *keys.last()?))
    }

    fn find_int(&self, key: i64) -> u32 {
        let Keys::Int(keys) = &self.keys else { return NONE };
        self.probe(hash_int(key), |number| keys[number as usize] == key).unwrap_or(NONE)
    }

    fn find_bytes(&self, key: &[u8]) -> u32 {
        let Keys::Bytes { ends, bytes } = &self.keys else { return NONE };
        let same = |number: u32| &bytes[Keys::bytes(ends, bytes, number as usize)] == key;
        self.probe(hash_bytes(key), same).unwrap_or(NONE)
    }

    fn insert_int(&mut self, key: i64) -> u32 {
        let found = self.find_int(key);
        if found != NONE {
            return found;
        }
        let Keys::Int(keys) = &mut self.keys else { return NONE };
        keys.push(key);
        self.place_new(hash_int(key))
    }

    fn insert_bytes(&mut self, key: &[u8]) -> u32 {
        let found = self.find_bytes(key);
        if found != NONE {
            return found;
        }
        let Keys::Bytes { ends, bytes } = &mut self.keys else { return NONE };
        bytes.extend_from_slice(key);
        ends.push(bytes.len());
        self.place_new(hash_bytes(key))
    }

    /// The number in the first place of the chain of `hash` for which `same` holds.
    #[inline]
    fn probe(&self, hash: u64, same: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.table.len() - 1;
        let (mut place, tag) = parts(hash);
        loop {
            let (known, number) = self.table[place & mask];
            if number == NONE {
                return None;
            }
            if known == tag && same(number) {
                return Some(number);
            }
            place += 1;
        }
    }

    /// Enters the key that was added last.
    fn place_new(&mut self, hash: u64) -> u32 {
        if self.len() * 2 > self.table.len() {
            self.table = vec![(0, NONE); self.table.len() * 2];
            for number in 0..self.len() {
                let hash = match &self.keys {
                    Keys::Global => 0,
                    Keys::Int(keys) => hash_int(keys[number]),
                    Keys::Bytes { ends, bytes } => hash_bytes(&bytes[Keys::bytes(ends, bytes, number)]),
                };
                self.place(hash, number);
            }
        } else {
            self.place(hash, self.len() - 1);
        }
        u32::try_from(self.len() - 1).expect("rows of a join are counted in 32 bits, and there are not more keys")
    }

    fn place(&mut self, hash: u64, number: usize) {
        let mask = self.table.len() - 1;
        let (mut place, tag) = parts(hash);
        while self.table[place & mask].1 != NONE {
            place += 1;
        }
        self.table[place & mask] = (tag, u32::try_from(number).expect("not more keys than rows"));
    }
}

/// Appends the number of every sought key. `keys` gives the key of each of the `len` numbers, in ascending order; `probe` finds
/// any key.
#[inline]
fn find_near<K: Ord + Copy>(
    len: usize,
    keys: impl Fn(usize) -> K,
    probe: impl Fn(K) -> u32,
    sought: impl Iterator<Item = Option<K>>,
    numbers: &mut Vec<u32>,
) {
    /// So many keys from the last one on are near.
    const NEAR: usize = 8;
    /// After so many keys in a row that were not near only some are tried.
    const PATIENCE: u32 = 4;
    const TRIED: usize = 64;
    let mut last = 0;
    let mut misses = 0;
    numbers.extend(sought.enumerate().map(|(row, key)| {
        let Some(key) = key else { return NONE };
        if (misses < PATIENCE || row % TRIED == 0) && last < len {
            let end = (last + NEAR).min(len) - 1;
            if keys(last) <= key && key <= keys(end) {
                misses = 0;
                while keys(last) < key {
                    last += 1;
                }
                // between two neighbours there is none
                return if keys(last) == key { u32::try_from(last).unwrap_or(NONE) } else { NONE };
            }
            misses += 1;
        }
        let found = probe(key);
        if found != NONE {
            last = found as usize;
        }
        found
    }));
}

/// Where a key's chain begins, and what of its hash is compared before the key.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves of a hash")]
fn parts(hash: u64) -> (usize, u32) {
    (hash as u32 as usize, (hash >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{
        BooleanArray, Date32Array, Decimal128Array, Int8Array, StringArray, TimestampMillisecondArray,
        TimestampNanosecondArray, UInt64Array,
    };

    use super::*;

    /// The places in `history` of the keys in `labels`.
    fn places(labels: &ArrayRef, history: &ArrayRef) -> Vec<Option<u32>> {
        let common = KeyType::common(labels.data_type(), history.data_type()).unwrap();
        let read = |column: &ArrayRef| {
            let batch = RecordBatch::try_from_iter_with_nullable([("key", Arc::clone(column), true)]).unwrap();
            let reader = KeyReader::new(vec![(0, common.clone())]).unwrap();
            let keys = reader.read(&batch).unwrap();
            (reader, keys)
        };
        let (reader, keys) = read(history);
        let mut index = KeyIndex::new(&reader);
        let mut numbers = Vec::new();
        index.insert(&keys, &mut numbers);
        let ranks = index.sort();
        let mut found = Vec::new();
        index.find(&read(labels).1, &mut found);
        let row = |number: &u32| numbers.iter().position(|old| *old != NONE && ranks[*old as usize] == *number);
        found.iter().map(|number| row(number).map(|row| u32::try_from(row).unwrap())).collect()
    }

    #[test]
    fn integers_of_any_width_are_compared_by_value() {
        let small: ArrayRef = Arc::new(Int8Array::from(vec![Some(-1), None, Some(7), Some(9)]));
        let large: ArrayRef = Arc::new(UInt64Array::from(vec![Some(7), None, Some(u64::MAX)]));
        assert_eq!(places(&small, &large), [None, None, Some(0), None]);
        assert_eq!(places(&large, &large), [Some(0), None, Some(2)]);
    }

    #[test]
    fn instants_of_any_unit_are_compared_by_value() {
        let coarse: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![1, 2]).with_timezone("Europe/Berlin"));
        let fine: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![2_000_001, 2_000_000]));
        assert_eq!(places(&coarse, &fine), [None, Some(1)]);
    }

    #[test]
    fn other_keys_must_have_one_type() {
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
        assert_eq!(places(&flags, &flags), [Some(0), Some(1)]);
        let days: ArrayRef = Arc::new(Date32Array::from(vec![-3, 5]));
        assert_eq!(places(&days, &days), [Some(0), Some(1)]);
        let prices: ArrayRef = Arc::new(Decimal128Array::from(vec![1, 250]).with_precision_and_scale(10, 2).unwrap());
        assert_eq!(places(&prices, &prices), [Some(0), Some(1)]);
        assert_eq!(KeyType::common(days.data_type(), flags.data_type()), None);
        assert_eq!(KeyType::common(&DataType::Float64, &DataType::Float64), None);
        assert_eq!(KeyType::common(&DataType::Utf8, &DataType::Int64), None);
    }

    #[test]
    fn keys_are_found_in_any_order_and_among_many() {
        let ascending: ArrayRef = Arc::new(Int64Array::from_iter_values((0..1000).map(|key| key * 3)));
        let wanted = |keys: Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(keys)) };
        let forwards: Vec<i64> = (0..3000).collect();
        let backwards: Vec<i64> = forwards.iter().rev().copied().collect();
        let expected = |keys: &[i64]| -> Vec<Option<u32>> {
            keys.iter().map(|key| (key % 3 == 0).then(|| u32::try_from(key / 3).unwrap())).collect()
        };
        assert_eq!(places(&wanted(forwards.clone()), &ascending), expected(&forwards));
        assert_eq!(places(&wanted(backwards.clone()), &ascending), expected(&backwards));
        let text = |keys: &[i64]| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(keys.iter().map(|key| format!("{key:08}"))))
        };
        let thirds: Vec<i64> = (0..1000).map(|key| key * 3).collect();
        assert_eq!(places(&text(&forwards), &text(&thirds)), expected(&forwards));
        assert_eq!(places(&text(&backwards), &text(&thirds)), expected(&backwards));
    }
}
