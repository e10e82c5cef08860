//! No entity twice, in constant memory: rows arrive sorted, so equal ones are neighbours.
//!
//! The order itself is verified, since a writer that got it wrong would make duplicates invisible. Rows with a null in
//! a column are passed over here: `not_null` names them, and where they sort is nobody's business.

use std::cmp::Ordering;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::row::{OwnedRow, RowConverter, SortField};

use super::rows::{Failing, RowRule, Unjudgeable, column};
use crate::types::EVENT_TIMESTAMP;

#[derive(Debug)]
pub(super) struct SortedUnique {
    columns: Vec<String>,
    with_time: bool,
    converter: Option<RowConverter>,
    last: Option<OwnedRow>,
}

impl SortedUnique {
    /// Rows sorted by `keys` must differ in `columns`, which are the keys, alone or followed by `event_timestamp`.
    pub(super) fn new(keys: &[String], columns: &[String]) -> Self {
        Self { columns: columns.to_vec(), with_time: columns.len() > keys.len(), converter: None, last: None }
    }
}

impl RowRule for SortedUnique {
    fn columns(&self) -> &[String] {
        &self.columns
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let arrays = self.columns.iter().map(|name| column(batch, name).cloned());
        let arrays: Vec<ArrayRef> = arrays.collect::<Result<_, _>>()?;
        let broken = |error: &dyn std::fmt::Display| Unjudgeable(format!("comparing keys: {error}"));
        if self.converter.is_none() {
            let fields = arrays.iter().map(|array| SortField::new(array.data_type().clone())).collect();
            self.converter = Some(RowConverter::new(fields).map_err(|error| broken(&error))?);
        }
        let Some(converter) = &self.converter else { return Err(broken(&"no converter")) };
        let rows = converter.convert_columns(&arrays).map_err(|error| broken(&error))?;
        let nulls: Vec<_> = arrays.iter().filter_map(|array| array.logical_nulls()).collect();
        let mut failing = Failing::default();
        let mut last = self.last.as_ref().map(OwnedRow::row);
        for (position, row) in rows.iter().enumerate() {
            if nulls.iter().any(|nulls| nulls.is_null(position)) {
                continue;
            }
            match last.map(|last| row.cmp(&last)) {
                Some(Ordering::Less) => {
                    return Err(Unjudgeable(format!("rows are not sorted by {}", self.columns.join(", "))));
                }
                Some(Ordering::Equal) => failing.push(position),
                Some(Ordering::Greater) | None => {}
            }
            last = Some(row);
        }
        let last = last.map(|row| row.owned());
        self.last = last;
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
