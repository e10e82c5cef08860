//! Writing a dataset down: a Parquet file or a Delta table, whole or not at all, with what it was made of.
//!
//! The bytes of a file follow from its rows alone: batches are cut anew to one size, and one writer writes them in order.
//! So the same manifest gives the same bytes, which `sha256` proves.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::BatchCoalescer;
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use deltalake::DeltaTableBuilder;
use deltalake::kernel::transaction::CommitProperties;
use deltalake::kernel::{Action, Add, StructType};
use deltalake::operations::create::CreateBuilder;
use deltalake::parquet::arrow::AsyncArrowWriter;
use deltalake::parquet::arrow::async_writer::AsyncFileWriter;
use deltalake::parquet::basic::{Compression, Encoding, ZstdLevel};
use deltalake::parquet::errors::ParquetError;
use deltalake::parquet::file::properties::WriterProperties;
use deltalake::parquet::schema::types::ColumnPath;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use sha2::{Digest as _, Sha256};
use tidegate_registry::dataset::{Manifest, OutputFile};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::place::{Place, PlaceFormat};
use super::watch::Watched;
use super::{DatasetError, DatasetParts, DatasetRequest, Opened, open};
use crate::engine::Engine;

/// Rows per batch that is written: pages and row groups begin where these say.
const WRITE_ROWS: usize = 8_192;
/// As the lake's files: larger row groups share dictionaries better.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// A row group is held in memory until it is whole, so wide ones are shorter: values in one.
const ROW_GROUP_VALUES: usize = 16 << 20;
/// Batches that may wait for the writer.
const BATCHES_AHEAD: usize = 4;

/// Builds a dataset at `place` and gives its manifest, which is written beside it, too. `told` is called with the rows
/// written so far. Cancelling `stop` stops it.
///
/// The manifest is there before its file becomes visible, so that a process which dies before the registry has heard of the
/// dataset leaves one that [`super::imported`] takes; and of two builds that want one place at a time, one gets it.
///
/// # Errors
/// Those of [`super::open`]; [`DatasetError::Wrong`] when something stands at `place`, or a label has no instant;
/// [`DatasetError::Stopped`]. Nothing is left there then, but for a table whose commit was not answered, which may be whole.
pub async fn build(
    engine: &Engine,
    parts: &DatasetParts,
    request: &DatasetRequest,
    place: &Place,
    stop: &CancellationToken,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<Manifest, DatasetError> {
    if place.is_taken().await? {
        return Err(taken(place));
    }
    place.forget_what_is_gone(&*parts.store).await?;
    let opened = open(engine, parts, request, place.format).await?;
    let mut made = Vec::new();
    match write(request, place, opened, stop, told, &mut made).await {
        Ok(manifest) => Ok(manifest),
        // The commit landed, and its answer did not come: what it names is not to be touched any more.
        Err(error) if !made.is_empty() && place.is_table().await.unwrap_or(true) => {
            let error = error.into_anyhow();
            Err(error.context(format!("`{0}` may be whole: `tidegate dataset import {0}` tells", place.name)).into())
        }
        Err(error) => {
            for left in made {
                match place.store.delete(&left).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(stays) => tracing::warn!("`{left}` was left behind: {stays}."),
                }
            }
            Err(error)
        }
    }
}

fn taken(place: &Place) -> DatasetError {
    DatasetError::wrong(
        format!("`{}` exists, and a dataset never overwrites", place.name),
        "name another place, or remove what is there; a dataset that was written and never recorded is taken in by \
         `tidegate dataset import`",
    )
}

/// Writes all of it. `made` is what this build alone has made visible: another one may want the same place, and whose
/// manifest comes first has it.
async fn write(
    request: &DatasetRequest,
    place: &Place,
    opened: Opened,
    stop: &CancellationToken,
    told: &mut (dyn FnMut(u64) + Send),
    made: &mut Vec<Path>,
) -> Result<Manifest, DatasetError> {
    let mut watched = Watched::begin(opened, request);
    let schema = Arc::clone(watched.schema());
    let table = (place.format == PlaceFormat::Delta).then(|| columns_of_table(&schema)).transpose()?;
    let (name, path) = place.file(request);
    let writer = Writer::begin(Arc::clone(&place.store), path.clone(), schema)?;
    if let Err(error) = copy(&mut watched, &writer, stop, told).await {
        return Err(writer.give_up(error).await);
    }
    let mut manifest = match watched.manifest(request, place.format.as_str()).await {
        Ok(manifest) => manifest,
        Err(error) => return Err(writer.give_up(error.into()).await),
    };
    let written = writer.end().await?;
    manifest.output.files.push(OutputFile { path: name, size: written.bytes, sha256: written.sum() });
    if let Err(error) = claim(place, &manifest).await {
        return Err(written.drop_it(error).await);
    }
    made.extend([place.manifest(), path]);
    written.show().await?;
    if let Some(columns) = table {
        create_table(place, columns, &manifest).await?;
    }
    Ok(manifest)
}

/// Writes the manifest, with which the place is ours.
async fn claim(place: &Place, manifest: &Manifest) -> Result<(), DatasetError> {
    if place.is_taken().await? {
        return Err(taken(place));
    }
    let text = serde_json::to_vec_pretty(manifest).context("writing the manifest")?;
    match place.store.put_opts(&place.manifest(), text.into(), PutMode::Create.into()).await {
        Ok(_) => Ok(()),
        Err(object_store::Error::AlreadyExists { .. }) => Err(taken(place)),
        Err(error) => Err(anyhow!(error).context(format!("writing `{}`", place.manifest())).into()),
    }
}

/// Writes all rows, in batches of one size.
async fn copy(
    rows: &mut Watched,
    writer: &Writer,
    stop: &CancellationToken,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<(), DatasetError> {
    let mut cut = BatchCoalescer::new(Arc::clone(rows.schema()), WRITE_ROWS);
    let mut written = 0;
    while let Some(batch) = next(rows, stop).await? {
        cut.push_batch(batch).context("cutting batches")?;
        while let Some(batch) = cut.next_completed_batch() {
            written += batch.num_rows() as u64;
            writer.write(batch).await?;
            told(written);
        }
    }
    cut.finish_buffered_batch().context("cutting batches")?;
    while let Some(batch) = cut.next_completed_batch() {
        writer.write(batch).await?;
    }
    Ok(())
}

/// The next batch, unless the build shall stop.
async fn next(rows: &mut Watched, stop: &CancellationToken) -> Result<Option<RecordBatch>, DatasetError> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(DatasetError::Stopped),
        batch = rows.next() => batch,
    }
}

/// Writes batches in a task of its own, and counts and hashes the bytes. Nothing becomes visible before [`Hashed::show`].
struct Writer {
    /// `None` says that all is there; a channel that just ends says that nothing is to be kept.
    batches: mpsc::Sender<Option<RecordBatch>>,
    task: JoinSet<Result<Option<Hashed>>>,
}

impl Writer {
    fn begin(store: Arc<dyn ObjectStore>, path: Path, schema: SchemaRef) -> Result<Self> {
        let (batches, mut coming) = mpsc::channel::<Option<RecordBatch>>(BATCHES_AHEAD);
        let mut hashed = Hashed { inner: BufWriter::new(store, path), sha256: Sha256::new(), bytes: 0 };
        let mut task = JoinSet::new();
        let properties = properties(&schema);
        task.spawn(async move {
            let mut writer = AsyncArrowWriter::try_new(&mut hashed, schema, Some(properties))?;
            while let Some(batch) = coming.recv().await {
                let Some(batch) = batch else {
                    writer.close().await.context("writing the dataset")?;
                    return Ok(Some(hashed));
                };
                writer.write(&batch).await.context("writing the dataset")?;
            }
            drop(writer);
            // An upload that is not aborted is invisible and costs space for good.
            hashed.inner.abort().await.context("dropping what was written")?;
            Ok(None)
        });
        Ok(Self { batches, task })
    }

    /// Hands a batch on. A writer that has stopped says why at the end.
    async fn write(&self, batch: RecordBatch) -> Result<()> {
        self.batches.send(Some(batch)).await.map_err(|_| anyhow!("the writer stopped"))
    }

    /// The whole file, which is not visible yet.
    async fn end(mut self) -> Result<Hashed> {
        let _ = self.batches.send(None).await;
        self.task.join_next().await.context("the writer is gone")???.context("nothing was written")
    }

    /// Drops what was written because of `error`, or says why the writer stopped before.
    async fn give_up(self, error: DatasetError) -> DatasetError {
        let Self { batches, mut task } = self;
        drop(batches);
        match task.join_next().await {
            Some(Ok(Err(first))) => first.into(),
            _ => error,
        }
    }
}

/// A file that is hashed as it is written.
struct Hashed {
    inner: BufWriter,
    sha256: Sha256,
    bytes: u64,
}

impl Hashed {
    /// The checksum of what was written, in hexadecimal digits.
    fn sum(&self) -> String {
        format!("{:x}", self.sha256.clone().finalize())
    }

    /// Makes the file visible.
    async fn show(mut self) -> Result<()> {
        self.inner.shutdown().await.context("finishing the dataset's file")
    }

    /// Drops what was written because of `error`.
    async fn drop_it(mut self, error: DatasetError) -> DatasetError {
        match self.inner.abort().await {
            Ok(()) => error,
            Err(stays) => error.into_anyhow().context(format!("an upload was left behind: {stays}")).into(),
        }
    }
}

impl AsyncFileWriter for &mut Hashed {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), ParquetError>> {
        async move {
            self.sha256.update(&bytes);
            self.bytes += bytes.len() as u64;
            self.inner.put(bytes).await.map_err(|error| ParquetError::External(Box::new(error)))
        }
        .boxed()
    }

    /// Leaves it invisible: a manifest is to be there first.
    fn complete(&mut self) -> BoxFuture<'_, Result<(), ParquetError>> {
        async { Ok(()) }.boxed()
    }
}

/// As the lake's files are written.
fn properties(schema: &SchemaRef) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS.min(ROW_GROUP_VALUES / schema.fields().len().max(1)).max(1)))
        .set_created_by(concat!("tidegate ", env!("CARGO_PKG_VERSION")).to_owned());
    for field in schema.fields() {
        if matches!(field.data_type(), DataType::Float32 | DataType::Float64) {
            let path = ColumnPath::new(vec![field.name().clone()]);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT);
        }
    }
    properties.build()
}

/// The columns as a Delta table has them.
fn columns_of_table(schema: &Schema) -> Result<StructType, DatasetError> {
    use deltalake::kernel::engine::arrow_conversion::TryIntoKernel as _;

    schema.try_into_kernel().map_err(|error| {
        DatasetError::wrong(
            format!("a column of the spine cannot be stored in a Delta table: {error}"),
            "write Parquet (`--out FILE.parquet`), or give the column another type",
        )
    })
}

/// Makes the written file a table, in one commit.
async fn create_table(place: &Place, columns: StructType, manifest: &Manifest) -> Result<(), DatasetError> {
    let adds = manifest.output.files.iter().map(|file| {
        Ok(Action::Add(Add {
            path: file.path.clone(),
            size: i64::try_from(file.size).context("the file is too large")?,
            modification_time: 0,
            data_change: true,
            stats: Some(serde_json::json!({ "numRecords": manifest.output.rows }).to_string()),
            ..Add::default()
        }))
    });
    let adds: Vec<Action> = adds.collect::<Result<_>>()?;
    let mut url = place.url.clone();
    url.set_path(&format!("{}/", url.path().trim_end_matches('/')));
    let creating = || format!("making `{}` a Delta table", place.name);
    let table = DeltaTableBuilder::from_url(url.clone())
        .with_context(creating)?
        .with_storage_backend(Arc::clone(&place.store), url)
        .build()
        .with_context(creating)?;
    CreateBuilder::new()
        .with_log_store(table.log_store())
        .with_columns(columns.fields().cloned())
        .with_actions(adds)
        .with_commit_properties(CommitProperties::default().with_create_checkpoint(false))
        .await
        .with_context(creating)?;
    Ok(())
}
