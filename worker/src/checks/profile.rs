//! Statistics of every staged column, from the same pass as the checks.

use datafusion::arrow::record_batch::RecordBatch;
use indexmap::IndexMap;
use tidegate_quality::profile::ColumnProfiler;
use tidegate_registry::profile::ColumnProfile;

/// Profiles the columns that it was told of. A column's type is that of the first batch.
#[derive(Debug)]
pub(crate) struct Profiler {
    columns: IndexMap<String, Option<ColumnProfiler>>,
}

impl Profiler {
    pub(super) fn new(columns: impl Iterator<Item = String>) -> Self {
        Self { columns: columns.map(|name| (name, None)).collect() }
    }

    pub(crate) fn update(&mut self, batch: &RecordBatch) {
        for (name, profiler) in &mut self.columns {
            let Some(array) = batch.column_by_name(name) else { continue };
            let profiler = profiler.get_or_insert_with(|| ColumnProfiler::new(array.data_type()));
            // Batches of one query have one type; a column that had two would end up without statistics for the rest.
            if let Err(error) = profiler.update(array) {
                tracing::warn!(column = %name, "Values were left out of the profile: {error}");
            }
        }
    }

    pub(super) fn finish(self) -> IndexMap<String, ColumnProfile> {
        let finished = |profiler: Option<ColumnProfiler>| profiler.map(ColumnProfiler::finish).unwrap_or_default();
        self.columns.into_iter().map(|(name, profiler)| (name, finished(profiler))).collect()
    }
}
