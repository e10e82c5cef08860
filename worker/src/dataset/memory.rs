//! A dataset as rows at hand, for callers that go on with them: the same rows as a file would have, with the same manifest.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use tidegate_registry::dataset::Manifest;

use super::watch::Watched;
use super::{DatasetError, DatasetParts, DatasetRequest, PlaceFormat, open};
use crate::engine::Engine;

/// The rows of a dataset, and what they were made of.
#[derive(Debug, Clone)]
pub struct Collected {
    /// The columns of the spine, then those of the features.
    pub schema: SchemaRef,
    /// The rows, in the order of the spine.
    pub batches: Vec<RecordBatch>,
    /// As it would be written beside a file, with the format `arrow` and no files.
    pub manifest: Manifest,
}

/// Computes a dataset into memory, whole.
///
/// # Errors
/// Those of [`super::open`]; [`DatasetError::Wrong`] when a label has no instant.
pub async fn collect(
    engine: &Engine,
    parts: &DatasetParts,
    request: &DatasetRequest,
) -> Result<Collected, DatasetError> {
    let mut watched = Watched::begin(open(engine, parts, request, PlaceFormat::Parquet).await?, request);
    let schema = Arc::clone(watched.schema());
    let mut batches = Vec::new();
    while let Some(batch) = watched.next().await? {
        batches.push(batch);
    }
    Ok(Collected { schema, batches, manifest: watched.manifest(request, "arrow").await? })
}
