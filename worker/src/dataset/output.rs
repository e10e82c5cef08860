//! Writing a dataset down: a Parquet file or a Delta table, whole or not at all, with what it was made of.
//!
//! The bytes of a file follow from its rows alone: batches are cut anew to one size, and one writer writes them in order.
//! So the same manifest gives the same bytes, which `sha256` proves.

use std::path::Path as FsPath;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use chrono::DateTime;
use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::{BatchCoalescer, cast, max, min};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef, TimestampMicrosecondType};
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
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest as _, Sha256};
use tidegate_registry::dataset::{MANIFEST_FORMAT, Manifest, Output, OutputFile, Spine};
use tidegate_registry::time::Instant;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use url::Url;

use super::{DatasetError, DatasetParts, DatasetRequest, Opened, open};
use crate::digest::Digester;
use crate::engine::Engine;
use crate::objects::{Stores, is_object_url};
use crate::stage::Watching;
use crate::text::TextColumn;
use crate::types::timestamp;

/// Rows per batch that is written: pages and row groups begin where these say.
const WRITE_ROWS: usize = 8_192;
/// As the lake's files: larger row groups share dictionaries better.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// A row group is held in memory until it is whole, so wide ones are shorter: values in one.
const ROW_GROUP_VALUES: usize = 16 << 20;
/// Batches that may wait for the writer.
const BATCHES_AHEAD: usize = 4;

/// How a dataset is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceFormat {
    /// One Parquet file.
    Parquet,
    /// A Delta table with one file.
    Delta,
}

impl PlaceFormat {
    /// The word of manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Delta => "delta",
        }
    }
}

/// Where a dataset goes.
#[derive(Debug, Clone)]
pub struct Place {
    /// An absolute path or a URL.
    name: String,
    store: Arc<dyn ObjectStore>,
    path: Path,
    url: Url,
    format: PlaceFormat,
}

impl Place {
    /// The place that `out` names: an absolute path of this machine, or a URL of an object store.
    ///
    /// # Errors
    /// When it is neither.
    pub fn new(out: &str, format: PlaceFormat, stores: &Stores) -> Result<Self> {
        if is_object_url(out) {
            let url = Url::parse(out).with_context(|| format!("`{out}` is not a URL"))?;
            let path = Path::from_url_path(url.path()).with_context(|| format!("`{out}` is not a path in a store"))?;
            return Ok(Self { name: out.to_owned(), store: stores.get(&url)?, path, url, format });
        }
        if out.contains("://") {
            bail!(
                "`{out}` is not in a kind of store that Tidegate knows: name a path, or a URL such as `s3://bucket/prefix`"
            );
        }
        let absolute = std::path::absolute(out).with_context(|| format!("finding `{out}`"))?;
        let path = Path::from_absolute_path(&absolute).with_context(|| format!("`{out}` is not a path"))?;
        let url = Url::from_file_path(&absolute).map_err(|()| anyhow!("`{out}` cannot be written as a URL"))?;
        let name = absolute.to_string_lossy().into_owned();
        Ok(Self { name, store: Arc::new(LocalFileSystem::new()), path, url, format })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its manifest goes: beside the file, or in the table's folder.
    fn manifest(&self) -> Path {
        match self.format {
            PlaceFormat::Parquet => Path::from(format!("{}.manifest.json", self.path)),
            PlaceFormat::Delta => self.path.clone().join("_tidegate_manifest.json"),
        }
    }

    /// The data file, named after what it belongs to when it is one of a table.
    fn file(&self, request: &DatasetRequest) -> (String, Path) {
        match self.format {
            PlaceFormat::Parquet => (self.path.filename().unwrap_or_default().to_owned(), self.path.clone()),
            PlaceFormat::Delta => {
                let name = format!("part-00000-{}.zstd.parquet", request.number);
                (name.clone(), self.path.clone().join(name))
            }
        }
    }

    /// Whether something stands there.
    async fn is_taken(&self) -> Result<bool> {
        let looking = || format!("looking at `{}`", self.name);
        if self.format == PlaceFormat::Parquet {
            return match self.store.head(&self.path).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(FsPath::new(&self.name).is_dir()),
                Err(error) => Err(error).with_context(looking),
            };
        }
        Ok(self.store.list(Some(&self.path)).next().await.transpose().with_context(looking)?.is_some())
    }
}

/// Builds a dataset at `place` and gives its manifest, which is written beside it, too. `told` is called with the rows
/// written so far.
///
/// # Errors
/// Those of [`super::open`]; [`DatasetError::Wrong`] when something stands at `place`, or a label has no instant. Nothing is
/// left there then.
pub async fn build(
    engine: &Engine,
    parts: &DatasetParts,
    request: &DatasetRequest,
    place: &Place,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<Manifest, DatasetError> {
    if place.is_taken().await? {
        return Err(DatasetError::wrong(
            format!("`{}` exists, and a dataset never overwrites", place.name),
            "name another place, or remove what is there",
        ));
    }
    let opened = open(engine, parts, request).await?;
    let (name, path) = place.file(request);
    match write(request, place, opened, &name, &path, told).await {
        Ok(manifest) => Ok(manifest),
        Err(error) => {
            // A file that is begun becomes visible when it is whole; this is for what came after.
            for left in [path, place.manifest()] {
                match place.store.delete(&left).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(stays) => tracing::warn!("`{left}` was left behind: {stays}."),
                }
            }
            Err(error)
        }
    }
}

async fn write(
    request: &DatasetRequest,
    place: &Place,
    opened: Opened,
    name: &str,
    path: &Path,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<Manifest, DatasetError> {
    let Opened { mut rows, mut columns, label, spine, views } = opened;
    let schema = nullable(&rows.schema(), columns.len());
    let of_spine: Vec<String> = columns.iter().filter(|c| c.feature.is_none()).map(|c| c.name.clone()).collect();
    let mut looked = Looked::default();
    // All look at the same batches at the same time: each costs about as much as writing them does.
    let spine_digest = Watching::begin(Digester::new(printable(&schema, &of_spine)), Digester::update);
    let every: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let digest = Watching::begin(Digester::new(printable(&schema, &every)), Digester::update);
    let writer = Writer::begin(Arc::clone(&place.store), path.clone(), Arc::clone(&schema))?;
    let mut cut = BatchCoalescer::new(Arc::clone(&schema), WRITE_ROWS);
    let copying = async {
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(|error| super::failed("computing the dataset", error))?;
            looked.labels(batch.column(label), &request.label_time)?;
            let batch = batch.project(&(0..columns.len()).collect::<Vec<_>>()).context("leaving a column out")?;
            let batch =
                RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec()).context("naming columns")?;
            for (column, array) in columns.iter_mut().zip(batch.columns()) {
                column.nulls += array.null_count() as u64;
            }
            cut.push_batch(batch).context("cutting batches")?;
            while let Some(batch) = cut.next_completed_batch() {
                looked.rows += batch.num_rows() as u64;
                hand_on(batch, &digest, &spine_digest, &writer).await?;
                told(looked.rows);
            }
        }
        cut.finish_buffered_batch().context("cutting batches")?;
        while let Some(batch) = cut.next_completed_batch() {
            looked.rows += batch.num_rows() as u64;
            hand_on(batch, &digest, &spine_digest, &writer).await?;
        }
        Ok::<_, DatasetError>(())
    };
    if let Err(error) = copying.await {
        return Err(writer.give_up(error).await);
    }
    let digest = digest.end().await.context("hashing rows")?.digest().to_string();
    let spine_digest = spine_digest.end().await.context("hashing the spine")?.digest().to_string();
    let (size, sha256) = writer.end().await?;
    let manifest = Manifest {
        format: MANIFEST_FORMAT,
        tidegate: env!("CARGO_PKG_VERSION").to_owned(),
        project: request.project.name.to_string(),
        definitions: request.definitions,
        number: request.number,
        known_at: request.known_at,
        spine: Spine {
            from: spine,
            label_time: request.label_time.clone(),
            rows: looked.rows,
            digest: spine_digest,
            labels: looked.labels,
        },
        features: request.features.clone(),
        names: request.names,
        views,
        output: Output {
            format: place.format.as_str().to_owned(),
            rows: looked.rows,
            digest,
            columns,
            files: vec![OutputFile { path: name.to_owned(), size, sha256 }],
        },
    };
    write_manifest(place, &manifest).await?;
    if place.format == PlaceFormat::Delta {
        create_table(place, &schema, name, size, &manifest).await?;
    }
    Ok(manifest)
}

async fn hand_on(
    batch: RecordBatch,
    digest: &Watching<Digester>,
    spine: &Watching<Digester>,
    writer: &Writer,
) -> Result<()> {
    // Who is gone has failed; why is asked at the end.
    let _ = digest.see(&batch).await && spine.see(&batch).await;
    writer.write(batch).await
}

/// What is seen of labels on the way.
#[derive(Default)]
struct Looked {
    rows: u64,
    labels: Option<(Instant, Instant)>,
}

impl Looked {
    fn labels(&mut self, label: &dyn Array, name: &str) -> Result<(), DatasetError> {
        if label.null_count() > 0 {
            return Err(DatasetError::wrong(
                format!("a row of the spine has no `{name}`, so nobody knows when its features are wanted"),
                "leave such rows out, or give them an instant",
            ));
        }
        let label = cast(label, &timestamp()).context("reading the labels' instants")?;
        let label = label.as_primitive::<TimestampMicrosecondType>();
        let instant = |micros: Option<i64>| micros.and_then(DateTime::from_timestamp_micros);
        let (first, last) = (instant(min(label)), instant(max(label)));
        if let (Some(first), Some(last)) = (first, last) {
            let (before, after) = self.labels.unwrap_or((first, last));
            self.labels = Some((before.min(first), after.max(last)));
        }
        Ok(())
    }
}

/// The columns as they are written: the first `count`, each nullable, texts in the form that every reader knows.
fn nullable(schema: &SchemaRef, count: usize) -> SchemaRef {
    let fields = schema.fields().iter().take(count);
    Arc::new(Schema::new(fields.map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>()))
}

/// Of `names` those whose values have one spelling; the others count by the file's checksum alone.
fn printable(schema: &SchemaRef, names: &[String]) -> Vec<String> {
    let prints = |name: &&String| {
        let field = schema.field_with_name(name);
        field.is_ok_and(|field| {
            let none = datafusion::arrow::array::new_empty_array(field.data_type());
            TextColumn::new(&none).is_ok()
        })
    };
    names.iter().filter(prints).cloned().collect()
}

/// Writes batches in a task of its own, and counts and hashes the bytes. Nothing becomes visible before [`Writer::end`].
struct Writer {
    /// `None` says that all is there; a channel that just ends says that nothing is to be kept.
    batches: mpsc::Sender<Option<RecordBatch>>,
    task: JoinSet<Result<Option<(u64, String)>>>,
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
                    return Ok(Some((hashed.bytes, format!("{:x}", hashed.sha256.finalize()))));
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

    /// The bytes of the file, which is there now, and their checksum.
    async fn end(mut self) -> Result<(u64, String)> {
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

/// A file that is hashed as it is written. It becomes visible when it is whole.
struct Hashed {
    inner: BufWriter,
    sha256: Sha256,
    bytes: u64,
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

    fn complete(&mut self) -> BoxFuture<'_, Result<(), ParquetError>> {
        async move { self.inner.shutdown().await.map_err(|error| ParquetError::External(Box::new(error))) }.boxed()
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

async fn write_manifest(place: &Place, manifest: &Manifest) -> Result<()> {
    let text = serde_json::to_vec_pretty(manifest).context("writing the manifest")?;
    place.store.put(&place.manifest(), text.into()).await.with_context(|| format!("writing `{}`", place.manifest()))?;
    Ok(())
}

/// Makes the written file a table, in one commit.
async fn create_table(
    place: &Place,
    schema: &SchemaRef,
    name: &str,
    size: u64,
    manifest: &Manifest,
) -> Result<(), DatasetError> {
    use deltalake::kernel::engine::arrow_conversion::TryIntoKernel as _;

    let struct_type: StructType = schema.as_ref().try_into_kernel().map_err(|error| {
        DatasetError::wrong(
            format!("a column of the spine cannot be stored in a Delta table: {error}"),
            "write Parquet (`--out FILE.parquet`), or give the column another type",
        )
    })?;
    let add = Add {
        path: name.to_owned(),
        size: i64::try_from(size).context("the file is too large")?,
        modification_time: 0,
        data_change: true,
        stats: Some(serde_json::json!({ "numRecords": manifest.output.rows }).to_string()),
        ..Add::default()
    };
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
        .with_columns(struct_type.fields().cloned())
        .with_actions([Action::Add(add)])
        .with_commit_properties(CommitProperties::default().with_create_checkpoint(false))
        .await
        .with_context(creating)?;
    Ok(())
}
