//! Accounting: every buffer of the join holds a [`Share`] of one reservation in the engine's memory pool.
//!
//! One reservation, because a fair pool divides memory between reservations: many small ones would be refused long before
//! the join holds what it may hold.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;

/// Part of a reservation, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    reservation: Arc<MemoryReservation>,
    bytes: usize,
}

impl Share {
    /// A share of nothing.
    pub(crate) fn new(reservation: &Arc<MemoryReservation>) -> Self {
        Self { reservation: Arc::clone(reservation), bytes: 0 }
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`DataFusionError::ResourcesExhausted`], and the share is as it was.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> Result<()> {
        self.reservation.try_grow(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Makes this share `bytes` large.
    ///
    /// # Errors
    /// [`DataFusionError::ResourcesExhausted`], and the share is as it was.
    pub(crate) fn try_resize(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.bytes {
            return self.try_grow(bytes - self.bytes);
        }
        self.reservation.shrink(self.bytes - bytes);
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.reservation.shrink(self.bytes);
    }
}

/// Whether the memory pool refused.
pub(crate) fn is_exhausted(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::ResourcesExhausted(_))
}

/// What the rows of `batch` occupy, in bytes. A batch may be a slice of larger buffers, which are not counted: they belong to
/// whoever shares them.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| array_bytes(column)).sum()
}

/// What the values of `array` occupy, in bytes.
pub(crate) fn array_bytes(array: &dyn Array) -> usize {
    let long = |length: u32| if length > 12 { length as usize } else { 0 };
    let apart: usize = match array.data_type() {
        DataType::Utf8View => array.as_string_view().lengths().map(long).sum(),
        DataType::BinaryView => array.as_binary_view().lengths().map(long).sum(),
        _ => 0,
    };
    // an array that cannot tell the size of a slice of it is counted whole
    array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()) + apart
}

/// A guess of what a value of this type occupies, in bytes, before any was seen.
pub(crate) fn guessed_width(data_type: &DataType) -> usize {
    data_type.primitive_width().unwrap_or(match data_type {
        DataType::Boolean | DataType::Null => 1,
        _ => 40,
    })
}

/// Views keep the whole of the buffers alive in which a few of their strings lie: copied out, only those remain.
pub(crate) fn compact(array: ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View => Arc::new(array.as_string_view().gc()),
        DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
        _ => array,
    }
}
