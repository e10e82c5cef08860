//! The digest of a dataset, taken on several threads while the rows go by: it is a sum, to which each adds what it sees.

use anyhow::Result;
use datafusion::arrow::array::RecordBatch;

use crate::digest::{Digest, Digester};
use crate::stage::Watching;

/// Text is made of every value, which takes as long as compressing and writing it: so many tasks do it.
const TASKS: usize = 4;

/// A digest of batches that are handed on one after the other.
pub(super) struct Digests {
    tasks: Vec<Watching<Digester>>,
    next: usize,
}

impl Digests {
    /// One of these columns that has seen nothing.
    pub(super) fn begin(columns: Vec<String>) -> Self {
        let digester = Digester::new(columns);
        let tasks = (0..TASKS).map(|_| Watching::begin(digester.clone(), Digester::update)).collect();
        Self { tasks, next: 0 }
    }

    /// Hands a batch on; false when nobody looks any more, because of an error that [`Digests::end`] gives.
    pub(super) async fn see(&mut self, batch: &RecordBatch) -> bool {
        self.next = (self.next + 1) % self.tasks.len();
        self.tasks[self.next].see(batch).await
    }

    /// The digest of all batches.
    ///
    /// # Errors
    /// When a batch could not be digested.
    pub(super) async fn end(self) -> Result<Digest> {
        let mut sum = Digest::default();
        for task in self.tasks {
            sum = sum.merge(task.end().await?.digest());
        }
        Ok(sum)
    }
}
