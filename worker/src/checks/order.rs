//! No entity twice, in constant memory: rows arrive sorted, so equal ones are neighbours.
//!
//! The order itself is verified, since a writer that got it wrong would make duplicates invisible. Rows with a null in
//! a column are passed over here: `not_null` names them, and where they sort is nobody's business.
//!
//! [`SortedUnique`] counts what an earlier row has. [`Doubled`] is for setting rows aside: of two rows of one entity nobody can
//! tell which is wrong, and which comes first is chance, so that all of them break it, whoever computes them and however
//! they come in batches.

use std::cmp::Ordering;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::compute::kernels::cmp::gt;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::row::{OwnedRow, RowConverter, SortField};

use super::rows::{Failing, RowRule, Unjudgeable, column};
use crate::types::EVENT_TIMESTAMP;

/// Whether each key is there and above the one before, as nearly all are: found out without copying any.
fn ascends(keys: &ArrayRef) -> Result<bool, ArrowError> {
    if keys.is_empty() || keys.logical_null_count() > 0 || keys.data_type().is_nested() {
        return Ok(false);
    }
    let pairs = keys.len() - 1;
    Ok(gt(&keys.slice(1, pairs), &keys.slice(0, pairs))?.true_count() == pairs)
}

/// Rows that come sorted by columns, from batch to batch.
#[derive(Debug)]
struct Sorted {
    columns: Vec<String>,
    converter: Option<RowConverter>,
    last: Option<OwnedRow>,
}

impl Sorted {
    fn new(columns: &[String]) -> Self {
        Self { columns: columns.to_vec(), converter: None, last: None }
    }

    fn unsorted(&self) -> Unjudgeable {
        Unjudgeable(format!("rows are not sorted by {}", self.columns.join(", ")))
    }

    /// Calls `each` with rows without nulls in the columns, and whether the one before it is equal: with all that are, with
    /// the first and the last, and mostly with no others.
    fn compare(&mut self, batch: &RecordBatch, mut each: impl FnMut(usize, bool)) -> Result<(), Unjudgeable> {
        let arrays = self.columns.iter().map(|name| column(batch, name).cloned());
        let arrays: Vec<ArrayRef> = arrays.collect::<Result<_, _>>()?;
        let broken = |error: &dyn std::fmt::Display| Unjudgeable(format!("comparing keys: {error}"));
        if self.converter.is_none() {
            let fields = arrays.iter().map(|array| SortField::new(array.data_type().clone())).collect();
            self.converter = Some(RowConverter::new(fields).map_err(|error| broken(&error))?);
        }
        let Some(converter) = &self.converter else { return Err(broken(&"no converter")) };
        if let [keys] = arrays.as_slice()
            && ascends(keys).map_err(|error| broken(&error))?
        {
            let ends = [keys.slice(0, 1), keys.slice(keys.len() - 1, 1)];
            let [first, end] = ends.map(|end| converter.convert_columns(&[end]));
            let (first, end) = (first.map_err(|error| broken(&error))?, end.map_err(|error| broken(&error))?);
            let last = self.last.replace(end.row(0).owned());
            let order = last.map(|last| first.row(0).cmp(&last.row()));
            if order == Some(Ordering::Less) {
                return Err(self.unsorted());
            }
            // Of the others nothing is to be told.
            each(0, order == Some(Ordering::Equal));
            if keys.len() > 1 {
                each(keys.len() - 1, false);
            }
            return Ok(());
        }
        let rows = converter.convert_columns(&arrays).map_err(|error| broken(&error))?;
        let nulls: Vec<_> = arrays.iter().filter_map(Array::logical_nulls).collect();
        let mut last = self.last.as_ref().map(OwnedRow::row);
        for (position, row) in rows.iter().enumerate() {
            if nulls.iter().any(|nulls| nulls.is_null(position)) {
                continue;
            }
            let order = last.map(|last| row.cmp(&last));
            if order == Some(Ordering::Less) {
                return Err(self.unsorted());
            }
            each(position, order == Some(Ordering::Equal));
            last = Some(row);
        }
        let last = last.map(|row| row.owned());
        self.last = last;
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct SortedUnique {
    sorted: Sorted,
    with_time: bool,
}

impl SortedUnique {
    /// Rows sorted by `keys` must differ in `columns`, which are the keys, alone or followed by `event_timestamp`.
    pub(super) fn new(keys: &[String], columns: &[String]) -> Self {
        Self { sorted: Sorted::new(columns), with_time: columns.len() > keys.len() }
    }
}

impl RowRule for SortedUnique {
    fn columns(&self) -> &[String] {
        &self.sorted.columns
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let mut failing = Failing::default();
        self.sorted.compare(batch, |row, same| {
            if same {
                failing.push(row);
            }
        })?;
        Ok(failing)
    }

    fn complaint(&self) -> String {
        if self.with_time {
            format!("an entity and {EVENT_TIMESTAMP} that an earlier row has")
        } else {
            "an entity that an earlier row has".to_owned()
        }
    }
}

/// All rows whose values in the first columns by which they are sorted come more than once.
#[derive(Debug)]
pub(super) struct Doubled {
    sorted: Sorted,
    what: String,
    /// Whether the row after the last batch tells if that batch's last one is doubled.
    open: bool,
}

impl Doubled {
    /// Of the columns by which rows are sorted (`keys`, of partial views followed by `event_timestamp`), those in `columns`.
    pub(super) fn new(keys: &[String], columns: &[String]) -> Self {
        let time = EVENT_TIMESTAMP.to_owned();
        let order = keys.iter().chain((!keys.contains(&time)).then_some(&time));
        let order: Vec<String> = order.filter(|name| columns.contains(name)).cloned().collect();
        let what = if order.len() > keys.len() {
            format!("an entity and {EVENT_TIMESTAMP}")
        } else if order == keys {
            "an entity".to_owned()
        } else {
            format!("values in {}", order.join(", "))
        };
        Self { sorted: Sorted::new(&order), what, open: false }
    }
}

impl RowRule for Doubled {
    fn columns(&self) -> &[String] {
        &self.sorted.columns
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let mut failing = Failing { open: self.open, ..Failing::default() };
        if batch.num_rows() == 0 {
            return Ok(failing);
        }
        let mut last: Option<usize> = None;
        self.sorted.compare(batch, |row, same| {
            if same {
                match last {
                    Some(last) if failing.rows.last() != Some(&last) => failing.push(last),
                    Some(_) => {}
                    None => failing.earlier = failing.open,
                }
                failing.push(row);
            }
            last = Some(row);
        })?;
        // Rows with a null stand between entities, never between rows of one.
        let end = batch.num_rows() - 1;
        failing.open = last == Some(end) && failing.rows.last() != Some(&end);
        self.open = failing.open;
        Ok(failing)
    }

    fn complaint(&self) -> String {
        format!("{} that another row has", self.what)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Int64Array, StringArray};
    use proptest::prelude::*;

    use super::*;

    /// The rows that repeat the one before, of all batches.
    fn found(keys: &[ArrayRef]) -> Result<Vec<usize>, Unjudgeable> {
        let mut rule = SortedUnique::new(&["k".to_owned()], &["k".to_owned()]);
        let (mut rows, mut before) = (Vec::new(), 0);
        for keys in keys {
            let batch = RecordBatch::try_from_iter([("k", Arc::clone(keys))]).unwrap();
            rows.extend(rule.failing(&batch)?.rows.into_iter().map(|row| row + before));
            before += keys.len();
        }
        Ok(rows)
    }

    proptest! {
        #[test]
        fn repeated_keys_are_found_however_they_are_cut(
            mut keys in prop::collection::vec(0..40_i64, 0..60),
            cuts in prop::collection::vec(1..9_usize, 60),
            sorted in prop::bool::weighted(0.8),
        ) {
            if sorted {
                keys.sort_unstable();
            }
            let (mut numbers, mut texts): (Vec<ArrayRef>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
            let mut rest = keys.as_slice();
            for cut in cuts {
                let (some, others) = rest.split_at(cut.min(rest.len()));
                numbers.push(Arc::new(Int64Array::from(some.to_vec())));
                texts.push(Arc::new(StringArray::from_iter_values(some.iter().map(|key| format!("{key:02}")))));
                rest = others;
            }
            for batches in [numbers, texts] {
                match found(&batches) {
                    Ok(rows) => {
                        let expected: Vec<usize> = (1..keys.len()).filter(|&row| keys[row] == keys[row - 1]).collect();
                        prop_assert!(keys.is_sorted());
                        prop_assert_eq!(rows, expected);
                    }
                    Err(_) => prop_assert!(!keys.is_sorted()),
                }
            }
        }
    }
}
