//! What is seen of a dataset's rows on their way to whoever wants them: what its manifest tells.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use chrono::DateTime;
use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, StringArray};
use datafusion::arrow::compute::{cast, max, min};
use datafusion::arrow::datatypes::{Schema, SchemaRef, TimestampMicrosecondType};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt as _;
use indexmap::IndexMap;
use tidegate_registry::dataset::{MANIFEST_FORMAT, Manifest, Output, OutputColumn, Spine, SpineFrom, ViewInput};
use tidegate_registry::ids::ViewId;
use tidegate_registry::time::Instant;

use super::digests::Digests;
use super::inputs::Ages;
use super::{DatasetError, DatasetRequest, Opened};
use crate::text::TextColumn;
use crate::types::timestamp;

/// The rows of a dataset, looked at as they pass.
pub(super) struct Watched {
    rows: SendableRecordBatchStream,
    schema: SchemaRef,
    columns: Vec<OutputColumn>,
    /// Where the instants are in `rows`.
    label: usize,
    label_time: String,
    from: SpineFrom,
    views: IndexMap<ViewId, ViewInput>,
    ages: IndexMap<ViewId, Ages>,
    stale: IndexMap<ViewId, u64>,
    count: u64,
    labels: Option<(Instant, Instant)>,
    of_spine: Digests,
    of_all: Digests,
}

impl Watched {
    /// Begins to look at what was opened for `request`.
    pub(super) fn begin(opened: Opened, request: &DatasetRequest) -> Self {
        let Opened { rows, columns, label, spine: from, views, ages } = opened;
        let schema = nullable(&rows.schema(), columns.len());
        let names = |column: &OutputColumn| column.name.clone();
        let of_spine = columns.iter().filter(|column| column.feature.is_none()).map(names).collect();
        let of_spine = Digests::begin(of_spine);
        let of_all = Digests::begin(columns.iter().map(names).collect());
        let (stale, label_time) = (IndexMap::new(), request.label_time.clone());
        Self {
            rows,
            schema,
            columns,
            label,
            label_time,
            from,
            views,
            ages,
            stale,
            count: 0,
            labels: None,
            of_spine,
            of_all,
        }
    }

    /// The columns of what [`Watched::next`] gives: each nullable, texts in the form that every reader knows.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next rows; `None` when there are no more.
    ///
    /// # Errors
    /// [`DatasetError::Wrong`] when a label has no instant, and failures of computing.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>, DatasetError> {
        let Some(batch) = self.rows.next().await else { return Ok(None) };
        let batch = batch.map_err(|error| super::failed("computing the dataset", error))?;
        self.look_at_labels(batch.column(self.label))?;
        let kept: Vec<usize> = (0..self.columns.len()).collect();
        let batch = batch.project(&kept).context("leaving a column out")?;
        let batch =
            RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec()).context("naming columns")?;
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            column.nulls += array.null_count() as u64;
        }
        self.count += batch.num_rows() as u64;
        let spelled = spelled(&batch).context("spelling values")?;
        // Who is gone has failed; why is asked at the end.
        let _ = self.of_all.see(&spelled).await && self.of_spine.see(&spelled).await;
        Ok(Some(batch))
    }

    fn look_at_labels(&mut self, labels: &ArrayRef) -> Result<(), DatasetError> {
        if labels.null_count() > 0 {
            return Err(DatasetError::wrong(
                format!(
                    "a row of the spine has no `{}`, so nobody knows when its features are wanted",
                    self.label_time
                ),
                "leave such rows out, or give them an instant",
            ));
        }
        let labels = cast(labels, &timestamp()).context("reading the labels' instants")?;
        let labels = labels.as_primitive::<TimestampMicrosecondType>();
        let instant = |micros: Option<i64>| micros.and_then(DateTime::from_timestamp_micros);
        if let (Some(first), Some(last)) = (instant(min(labels)), instant(max(labels))) {
            let (before, after) = self.labels.unwrap_or((first, last));
            self.labels = Some((before.min(first), after.max(last)));
        }
        for (view, ages) in &self.ages {
            let stale = labels.values().iter().filter(|label| ages.is_stale(**label)).count() as u64;
            if stale > 0 {
                *self.stale.entry(view.clone()).or_default() += stale;
            }
        }
        Ok(())
    }

    /// What is to be said of the rows, all of which have been seen, when they are kept as `format`; files are not named yet.
    ///
    /// # Errors
    /// When a digest failed.
    pub(super) async fn manifest(self, request: &DatasetRequest, format: &str) -> Result<Manifest> {
        let digest = self.of_all.end().await.context("hashing rows")?.to_string();
        let spine_digest = self.of_spine.end().await.context("hashing the spine")?.to_string();
        Ok(Manifest {
            format: MANIFEST_FORMAT,
            tidegate: env!("CARGO_PKG_VERSION").to_owned(),
            project: request.project.name.to_string(),
            definitions: request.definitions,
            number: request.number,
            known_at: request.known_at,
            spine: Spine {
                from: self.from,
                label_time: self.label_time,
                rows: self.count,
                digest: spine_digest,
                labels: self.labels,
            },
            features: request.features.clone(),
            names: request.names,
            views: self.views,
            output: Output {
                format: format.to_owned(),
                rows: self.count,
                digest,
                columns: self.columns,
                stale: self.stale,
                files: Vec::new(),
            },
        })
    }
}

/// The first `count` columns of `schema` as they are written.
fn nullable(schema: &SchemaRef, count: usize) -> SchemaRef {
    let fields = schema.fields().iter().take(count);
    Arc::new(Schema::new(fields.map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>()))
}

/// The batch as digests see it: a spine may bring types, such as decimals, that no feature has and that have no canonical
/// text. Theirs is that of Arrow.
fn spelled(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let spell = |array: &ArrayRef| -> Result<ArrayRef, ArrowError> {
        if TextColumn::new(array).is_ok() {
            return Ok(Arc::clone(array));
        }
        let options = FormatOptions::default();
        let texts = ArrayFormatter::try_new(array, &options)?;
        let text = |row| array.is_valid(row).then(|| texts.value(row).try_to_string()).transpose();
        Ok(Arc::new((0..array.len()).map(text).collect::<Result<StringArray, _>>()?))
    };
    let columns = batch.schema_ref().fields().iter().zip(batch.columns());
    let columns = columns.map(|(field, array)| Ok((field.name(), spell(array)?, true)));
    RecordBatch::try_from_iter_with_nullable(columns.collect::<Result<Vec<_>, ArrowError>>()?)
}
