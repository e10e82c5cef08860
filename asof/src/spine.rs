//! The label rows, kept in the order in which they came: in memory, or in a file when memory is needed elsewhere.

use std::collections::VecDeque;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::{Result, internal_err};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{SendableRecordBatchStream, SpillFile};
use datafusion::physical_plan::SpillManager;
use futures::StreamExt;

use crate::memory::{Share, batch_bytes, is_exhausted};
use crate::spill::SpillWriter;

/// Batches in order, to be read as often as needed.
pub(crate) struct Sequence {
    pub(crate) rows: usize,
    schema: SchemaRef,
    place: Place,
    spills: SpillManager,
}

enum Place {
    Memory { held: Vec<RecordBatch>, _share: Share },
    File(Option<Arc<dyn SpillFile>>),
}

impl Sequence {
    /// Reads `stream` to its end, calling `look` on every batch.
    ///
    /// # Errors
    /// Those of the stream, of `look`, and of the disk.
    pub(crate) async fn collect(
        mut stream: SendableRecordBatchStream,
        reservation: &Arc<MemoryReservation>,
        spills: SpillManager,
        mut look: impl FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<Self> {
        let schema = stream.schema();
        let mut rows = 0;
        let mut share = Share::new(reservation);
        let mut held = Vec::new();
        let mut file = None;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            if batch.num_rows() == 0 {
                continue;
            }
            look(&batch)?;
            rows += batch.num_rows();
            if file.is_none() {
                match share.try_grow(batch_bytes(&batch)) {
                    Ok(()) => {
                        held.push(batch);
                        continue;
                    }
                    Err(error) if is_exhausted(&error) => {
                        let mut new = SpillWriter::new(&spills, "label rows of a point-in-time join")?;
                        for batch in held.drain(..) {
                            new.append(&batch)?;
                        }
                        share.try_resize(0)?;
                        file = Some(new);
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(file) = &mut file {
                file.append(&batch)?;
            }
        }
        let place = match file {
            Some(file) => Place::File(file.finish()?),
            None => Place::Memory { held, _share: share },
        };
        Ok(Self { rows, schema, place, spills })
    }

    /// A sequence that was written to `file` (`None`: nothing was).
    pub(crate) fn of_file(rows: usize, file: Option<Arc<dyn SpillFile>>, spills: SpillManager) -> Self {
        Self { rows, schema: Arc::clone(spills.schema()), place: Place::File(file), spills }
    }

    /// Moves what is in memory into a file. Whether there was anything.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn spill(&mut self) -> Result<bool> {
        let Place::Memory { held, .. } = &self.place else { return Ok(false) };
        let file = self.spills.spill_record_batch_and_finish(held, "label rows of a point-in-time join")?;
        self.place = Place::File(file);
        Ok(true)
    }

    /// How many columns there are.
    pub(crate) fn columns(&self) -> usize {
        self.schema.fields().len()
    }

    /// The batches from the beginning.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub(crate) fn read(&self) -> Result<Cursor> {
        let source = match &self.place {
            Place::Memory { held, .. } => Source::Held(held.clone().into()),
            Place::File(None) => Source::Held(VecDeque::new()),
            Place::File(Some(file)) => {
                Source::Stream(self.spills.read_spill_as_stream_unbuffered(Arc::clone(file), None)?)
            }
        };
        Ok(Cursor { schema: Arc::clone(&self.schema), source, rest: None })
    }
}

/// A place in a [`Sequence`].
pub(crate) struct Cursor {
    schema: SchemaRef,
    source: Source,
    rest: Option<RecordBatch>,
}

enum Source {
    Held(VecDeque<RecordBatch>),
    Stream(SendableRecordBatchStream),
}

impl Cursor {
    /// The next rows, as they were written; `None` at the end.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        match &mut self.source {
            Source::Held(held) => Ok(held.pop_front()),
            Source::Stream(stream) => stream.next().await.transpose(),
        }
    }

    /// Gives back the rows of the last batch that are still to be read.
    pub(crate) fn put_back(&mut self, rest: RecordBatch) {
        debug_assert!(self.rest.is_none());
        self.rest = (rest.num_rows() > 0).then_some(rest);
    }

    /// Passes over so many rows.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) async fn skip(&mut self, mut rows: usize) -> Result<()> {
        while rows > 0 {
            let Some(batch) = self.next().await? else { return Ok(()) };
            let passed = rows.min(batch.num_rows());
            self.put_back(batch.slice(passed, batch.num_rows() - passed));
            rows -= passed;
        }
        Ok(())
    }

    /// Exactly the next `rows` rows.
    ///
    /// # Errors
    /// Those of the disk, and when there are fewer.
    pub(crate) async fn exactly(&mut self, rows: usize) -> Result<RecordBatch> {
        let mut parts = Vec::new();
        let mut missing = rows;
        while missing > 0 {
            let Some(batch) = self.next().await? else {
                return internal_err!("{missing} of {rows} rows are missing from a sequence");
            };
            let taken = missing.min(batch.num_rows());
            self.put_back(batch.slice(taken, batch.num_rows() - taken));
            parts.push(batch.slice(0, taken));
            missing -= taken;
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Ok(concat_batches(&self.schema, &parts)?),
        }
    }
}
