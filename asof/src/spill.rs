//! Files that batches are written to one by one.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::execution::SpillFile;
use datafusion::physical_plan::SpillManager;

type Write = dyn FnMut(Option<&RecordBatch>) -> Result<Option<Arc<dyn SpillFile>>> + Send;

/// A spill file that is being written. DataFusion's own type for it has no public name, so it lives in a closure.
pub(crate) struct SpillWriter {
    /// Appends a batch, or finishes the file.
    write: Box<Write>,
}

impl SpillWriter {
    /// A new file of `spills`, made for `purpose` (as errors say).
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn new(spills: &SpillManager, purpose: &str) -> Result<Self> {
        let mut file = spills.create_in_progress_file(purpose)?;
        let write = move |batch: Option<&RecordBatch>| match batch {
            Some(batch) => file.append_batch(batch).map(|_| None),
            None => file.finish(),
        };
        Ok(Self { write: Box::new(write) })
    }

    /// Adds `batch`, which has rows.
    ///
    /// # Errors
    /// Those of the disk, and when spill files take more of it than they may.
    pub(crate) fn append(&mut self, batch: &RecordBatch) -> Result<()> {
        (self.write)(Some(batch)).map(|_| ())
    }

    /// The file; `None` when nothing was added.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn finish(mut self) -> Result<Option<Arc<dyn SpillFile>>> {
        (self.write)(None)
    }
}
