//! Keys of entities, comparable in the order in which tables are written.

use std::cmp::Ordering;

use anyhow::{Context as _, Result, ensure};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::arrow::row::{OwnedRow, RowConverter, Rows, SortField};
use tidegate_registry::model::Key;

use crate::types::arrow_type;

/// Makes the keys of a view's batches comparable. What it makes of them depends on the declared types alone.
#[derive(Debug)]
pub(super) struct KeyMaker {
    types: Vec<DataType>,
    converter: RowConverter,
}

/// The keys of a batch. Most entities have one text or one number: those are compared as they are. Others are brought into
/// arrow's row format, in which keys are compared byte by byte.
#[derive(Debug)]
pub(super) enum Keys {
    Texts(StringArray),
    Numbers(Int64Array),
    Rows(Rows),
}

/// One key, kept.
#[derive(Debug)]
pub(super) enum LastKey {
    Text(String),
    Number(i64),
    Row(OwnedRow),
}

impl KeyMaker {
    pub(super) fn new(keys: &[Key]) -> Result<Self> {
        let types: Vec<DataType> = keys.iter().map(|key| arrow_type(&key.kind)).collect();
        let fields = types.iter().map(|kind| SortField::new(kind.clone())).collect();
        Ok(Self { types, converter: RowConverter::new(fields).context("comparing keys")? })
    }

    /// `columns` in the order of the view's keys.
    pub(super) fn keys(&self, columns: &[ArrayRef]) -> Result<Keys> {
        // Always of the declared types: keys of different types must not be compared byte by byte.
        let columns = columns.iter().zip(&self.types).map(|(column, kind)| cast(column, kind));
        let columns = columns.collect::<Result<Vec<_>, _>>().context("comparing keys")?;
        ensure!(columns.iter().all(|column| column.null_count() == 0), "a key is null");
        Ok(match columns.as_slice() {
            [texts] if texts.data_type() == &DataType::Utf8 => Keys::Texts(texts.as_string::<i32>().clone()),
            [numbers] if numbers.data_type() == &DataType::Int64 => {
                Keys::Numbers(numbers.as_primitive::<Int64Type>().clone())
            }
            columns => Keys::Rows(self.converter.convert_columns(columns).context("comparing keys")?),
        })
    }
}

impl Keys {
    /// Whether each key is above the one before it, and the first above `last`.
    pub(super) fn ascend_from(&self, last: Option<&LastKey>) -> bool {
        match (self, last) {
            (Self::Texts(texts), None) => ascends(texts.len(), |row| texts.value(row)),
            (Self::Texts(texts), Some(LastKey::Text(last))) => {
                texts.is_empty() || last.as_str() < texts.value(0) && ascends(texts.len(), |row| texts.value(row))
            }
            (Self::Numbers(numbers), None) => ascends(numbers.len(), |row| numbers.value(row)),
            (Self::Numbers(numbers), Some(LastKey::Number(last))) => {
                numbers.is_empty() || *last < numbers.value(0) && ascends(numbers.len(), |row| numbers.value(row))
            }
            (Self::Rows(rows), None) => ascends(rows.num_rows(), |row| rows.row(row)),
            (Self::Rows(rows), Some(LastKey::Row(last))) => {
                rows.num_rows() == 0 || last.row() < rows.row(0) && ascends(rows.num_rows(), |row| rows.row(row))
            }
            // Of another kind: not of this view.
            _ => false,
        }
    }

    /// The last of them.
    pub(super) fn last(&self) -> Option<LastKey> {
        match self {
            Self::Texts(texts) => Some(LastKey::Text(texts.value(texts.len().checked_sub(1)?).to_owned())),
            Self::Numbers(numbers) => Some(LastKey::Number(numbers.value(numbers.len().checked_sub(1)?))),
            Self::Rows(rows) => Some(LastKey::Row(rows.row(rows.num_rows().checked_sub(1)?).owned())),
        }
    }
}

fn ascends<T: PartialOrd>(keys: usize, key: impl Fn(usize) -> T) -> bool {
    (1..keys).all(|row| key(row - 1) < key(row))
}

/// Has two batches of keys merged.
///
/// # Errors
/// When the keys are not of one view.
pub(super) fn compare(old: &Keys, new: &Keys, merge: impl Merging) -> Result<()> {
    match (old, new) {
        (Keys::Texts(old), Keys::Texts(new)) => merge.run(|before, now| old.value(before).cmp(new.value(now))),
        (Keys::Numbers(old), Keys::Numbers(new)) => {
            merge.run(|before, now| old.value(before).cmp(&new.value(now)));
        }
        (Keys::Rows(old), Keys::Rows(new)) => merge.run(|before, now| old.row(before).cmp(&new.row(now))),
        _ => anyhow::bail!("keys of different kinds are compared"),
    }
    Ok(())
}

/// What is done with two batches of keys, made anew for each kind of key so that comparing costs no choice per row.
pub(super) trait Merging {
    /// Given how the key at a position of the older batch compares with that at a position of the newer one.
    fn run(self, compare: impl Fn(usize, usize) -> Ordering);
}
