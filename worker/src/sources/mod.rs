//! Sources: tables that Tidegate reads and does not own, pinned for the length of a run.
//!
//! A Delta source is pinned by its version. Files are pinned by a list of names, sizes and entity tags: they are read with
//! conditional requests (`PinnedStore`), so a file that is replaced in the middle of a run fails the read instead of
//! mixing two states, and they are compared once more before the run's intent.

mod pinned;
mod places;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path as FsPath;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::session_state::SessionState;
use datafusion::prelude::SessionContext;
use deltalake::{DeltaTable, DeltaTableBuilder};
use futures::stream::{self, StreamExt};
use indexmap::IndexMap;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tidegate_registry::ids::SourceName;
use tidegate_registry::model::{Project, Source, SourceLocation};
use tidegate_registry::run::{PinnedFile, SourcePin, SourceSeen};
use tidegate_registry::time::Instant;
use url::Url;

use self::pinned::{PIN_VIOLATION, PinnedStore};
use self::places::Places;

/// Files whose schemas are read at once.
const SCHEMAS_AT_ONCE: usize = 32;
use crate::execute::chain;
use crate::objects::Stores;

/// The most files that one source may have: their list is part of every run's manifest.
const FILES_MAX: usize = 100_000;

/// Types of columns, by their names.
pub(crate) type ColumnTypes = HashMap<String, DataType>;

/// Finds and reads sources.
#[derive(Debug, Clone)]
pub struct Sources {
    places: Places,
}

impl Sources {
    /// Sources of the project at `root` on this machine; places outside of it must lie in one of `allowed_roots` (folders
    /// or `file://` URLs).
    ///
    /// # Errors
    /// When a folder does not exist.
    pub fn new(root: &FsPath, allowed_roots: &[String]) -> Result<Self> {
        Self::with_stores(root, allowed_roots, Stores::default())
    }

    /// The same with object stores: an allowed root may be a place in one, as in `s3://bucket/prefix`.
    ///
    /// # Errors
    /// When a folder does not exist, or a URL is not one of an object store.
    pub fn with_stores(root: &FsPath, allowed_roots: &[String], stores: Stores) -> Result<Self> {
        Ok(Self { places: Places::new(root, allowed_roots, stores)? })
    }

    /// The schema of every source of `project`, or why it cannot be read, in a sentence.
    pub async fn schemas(&self, project: &Project) -> IndexMap<SourceName, Result<SchemaRef, String>> {
        let mut schemas = IndexMap::with_capacity(project.sources.len());
        for source in project.sources.values() {
            let schema = self.schema(source).await.map_err(|error| chain(&error));
            schemas.insert(source.name.clone(), schema);
        }
        schemas
    }

    async fn schema(&self, source: &Source) -> Result<SchemaRef> {
        let ctx = SessionContext::new();
        let pin = self.pin(source).await?;
        Ok(self.provider(&ctx, source, &pin).await?.schema())
    }

    /// Whether a Delta table stands at `place`: a folder with a log.
    ///
    /// # Errors
    /// When the place is missing, outside the allowed folders, or its store does not answer.
    pub(crate) async fn is_table(&self, place: &str) -> Result<bool> {
        let place = self.places.find(place)?;
        if place.file(false).await?.is_some() {
            return Ok(false);
        }
        let log = place.path.clone().join("_delta_log");
        Ok(place.store.list(Some(&log)).next().await.transpose()?.is_some())
    }

    /// Fixes what `source` is now.
    ///
    /// # Errors
    /// When it is missing, outside the allowed folders, or cannot be read.
    pub async fn pin(&self, source: &Source) -> Result<SourcePin> {
        let pinned = match &source.location {
            SourceLocation::Delta(place) => self
                .delta(place, None)
                .await
                .and_then(|table| table.version().context("the table has no version"))
                .map(|version| SourcePin::Delta { version }),
            SourceLocation::Parquet(place) | SourceLocation::Csv(place) => {
                self.files(place).await.map(SourcePin::Files)
            }
        };
        pinned.with_context(|| format!("reading the source `{}` at `{}`", source.name, source.location.place()))
    }

    /// What has changed since `pin` was taken, in a sentence; `None` when nothing has.
    ///
    /// # Errors
    /// When the source cannot be looked at (not when it has vanished: that is a change).
    pub async fn changes(&self, source: &Source, pin: &SourcePin) -> Result<Option<String>> {
        let SourcePin::Files(pinned) = pin else {
            return Ok(None); // a Delta version never changes
        };
        let found = match self.files(source.location.place()).await {
            Ok(found) => found,
            Err(error) if is_outage(&error) => {
                return Err(error).with_context(|| format!("looking at the source `{}` again", source.name));
            }
            Err(error) => {
                return Ok(Some(format!("the source `{}` can no longer be read: {}", source.name, chain(&error))));
            }
        };
        if found == *pinned {
            return Ok(None);
        }
        let changed = pinned
            .iter()
            .find(|file| !found.contains(file))
            .or_else(|| found.iter().find(|file| !pinned.contains(file)))
            .map_or_else(String::new, |file| format!(": `{}`", file.url));
        Ok(Some(format!("a file of the source `{}` changed during the run{changed}", source.name)))
    }

    /// A table over `source` exactly as pinned.
    ///
    /// # Errors
    /// When its schema cannot be read.
    pub async fn provider(
        &self,
        ctx: &SessionContext,
        source: &Source,
        pin: &SourcePin,
    ) -> Result<Arc<dyn TableProvider>> {
        self.provider_with(ctx, source, pin, &ColumnTypes::default()).await
    }

    /// The same, with these types instead of those that the values of a CSV file look like.
    ///
    /// # Errors
    /// When its schema cannot be read.
    pub(crate) async fn provider_with(
        &self,
        ctx: &SessionContext,
        source: &Source,
        pin: &SourcePin,
        types: &ColumnTypes,
    ) -> Result<Arc<dyn TableProvider>> {
        let reading = || format!("reading the source `{}` at `{}`", source.name, source.location.place());
        match (pin, &source.location) {
            (SourcePin::Delta { version }, location) => {
                let table = self.delta(location.place(), Some(*version)).await.with_context(reading)?;
                table.update_datafusion_session(&ctx.state()).with_context(reading)?;
                Ok(table.table_provider().await.with_context(reading)?)
            }
            (SourcePin::Files(files), location) => {
                let none = ColumnTypes::default();
                let (format, types): (Arc<dyn FileFormat>, _) = match location {
                    SourceLocation::Csv(_) => (Arc::new(CsvFormat::default().with_has_header(true)), types),
                    _ => (Arc::new(ParquetFormat::default()), &none),
                };
                self.listing(ctx, source, files, format, types).await.with_context(reading)
            }
        }
    }

    /// How much there is of `source` as pinned, and when the newest of it was written. Reads no data.
    ///
    /// # Errors
    /// When the log of a Delta table cannot be read.
    pub(crate) async fn size(&self, source: &Source, pin: &SourcePin) -> Result<SourceSeen> {
        let mut seen = SourceSeen::default();
        let mut add = |bytes: u64, written_at: Option<Instant>| {
            seen.files += 1;
            seen.bytes += bytes;
            seen.written_at = seen.written_at.max(written_at);
        };
        match pin {
            SourcePin::Files(files) => {
                files.iter().for_each(|file| add(file.size, Instant::from_timestamp_micros(file.modified_micros)));
            }
            SourcePin::Delta { version } => {
                let reading = || format!("reading the source `{}` at `{}`", source.name, source.location.place());
                let table = self.delta(source.location.place(), Some(*version)).await.with_context(reading)?;
                for file in table.snapshot().with_context(reading)?.log_data().iter() {
                    let written_at = file.modification_datetime().with_context(reading)?;
                    add(u64::try_from(file.size()).unwrap_or_default(), Some(written_at));
                }
            }
        }
        Ok(seen)
    }

    async fn listing(
        &self,
        ctx: &SessionContext,
        source: &Source,
        files: &[PinnedFile],
        format: Arc<dyn FileFormat>,
        types: &ColumnTypes,
    ) -> Result<Arc<dyn TableProvider>> {
        let pinned: Arc<dyn ObjectStore> = Arc::new(PinnedStore::new(self.places.store_of(files)?, files)?);
        // A host of its own per source, so that no other reader of the session shares the conditional store.
        let host = source.name.as_str().replace('_', "-");
        let base = Url::parse(&format!("tidegate-source://{host}/")).context("naming the source's store")?;
        ctx.register_object_store(&base, Arc::clone(&pinned));
        let mut urls = Vec::with_capacity(files.len());
        let mut metas = Vec::with_capacity(files.len());
        for file in files {
            let url = Url::parse(&file.url).with_context(|| format!("`{}` is not a URL", file.url))?;
            let mut here = base.clone();
            here.set_path(url.path());
            urls.push(ListingTableUrl::try_new(here, None)?);
            metas.push(pinned.head(&Path::from_url_path(url.path())?).await?);
        }
        let schema = schema_of(&ctx.state(), &format, &pinned, &metas, files, types).await?;
        if schema.fields().is_empty() {
            bail!("it has no columns (a CSV file needs a header line)");
        }
        let options = ListingOptions::new(format).with_file_extension("");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
        Ok(Arc::new(ListingTable::try_new(config)?))
    }

    async fn delta(&self, place: &str, version: Option<u64>) -> Result<DeltaTable> {
        let place = self.places.find(place)?;
        let url = place.folder_url()?;
        let mut builder = DeltaTableBuilder::from_url(url.clone())?.with_storage_backend(place.store, url);
        if let Some(version) = version {
            builder = builder.with_version(version);
        }
        Ok(builder.load().await?)
    }

    /// The files of a place, by name: one file, all data files of a folder (`data/`), or those that match a pattern in
    /// the last segment (`data/flights-*.parquet`).
    async fn files(&self, place: &str) -> Result<Vec<PinnedFile>> {
        let (folder, pattern) = match place.rsplit_once('/') {
            Some((folder, last)) if last.contains('*') => (Some(folder), Some(last)),
            None if place.contains('*') => (Some("."), Some(place)),
            _ => (None, None),
        };
        let pattern =
            pattern.map(glob::Pattern::new).transpose().context("the pattern in the last segment is broken")?;
        let place = self.places.find(folder.unwrap_or(place))?;
        let metas = match place.file(pattern.is_some()).await? {
            Some(file) => vec![file],
            None => {
                let mut metas = place.store.list_with_delimiter(Some(&place.path)).await?.objects;
                metas.retain(|meta| {
                    meta.location.filename().is_some_and(|name| {
                        // Some tools leave an empty object that stands for the folder itself.
                        meta.location != place.path
                            && !name.starts_with(['.', '_'])
                            && pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
                    })
                });
                metas.sort_by(|a, b| a.location.cmp(&b.location));
                metas
            }
        };
        if metas.is_empty() {
            bail!("there are no files");
        }
        if metas.len() > FILES_MAX {
            bail!("there are {} files, and a source may have at most {FILES_MAX}", metas.len());
        }
        metas
            .into_iter()
            .map(|meta| {
                Ok(PinnedFile {
                    url: place.url_of(&meta.location)?.into(),
                    size: meta.size,
                    etag: meta.e_tag,
                    modified_micros: meta.last_modified.timestamp_micros(),
                })
            })
            .collect()
    }
}

/// The columns of all files together, with these types instead of their own.
async fn schema_of(
    state: &SessionState,
    format: &Arc<dyn FileFormat>,
    store: &Arc<dyn ObjectStore>,
    metas: &[ObjectMeta],
    files: &[PinnedFile],
    types: &ColumnTypes,
) -> Result<SchemaRef> {
    let typed = |schema: &Schema| {
        let fields = schema.fields().iter().map(|field| match types.get(field.name()) {
            Some(kind) => Arc::new(field.as_ref().clone().with_data_type(kind.clone())),
            None => Arc::clone(field),
        });
        Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone())
    };
    let error = match format.infer_schema(state, store, metas).await {
        Ok(schema) => return Ok(Arc::new(typed(&schema))),
        Err(error) if files.len() == 1 => return Err(error.into()),
        Err(error) => error,
    };
    // The reader does not say which file is broken. And it compares types as they were written: programs write one type
    // of text in several ways, of which a file's own schema is free.
    let of_file = |meta: ObjectMeta| async move { format.infer_schema(state, store, &[meta]).await };
    let schemas: Vec<_> = stream::iter(metas.to_vec()).map(of_file).buffered(SCHEMAS_AT_ONCE).collect().await;
    let mut all = Schema::empty();
    for (schema, file) in schemas.into_iter().zip(files) {
        let Ok(schema) = schema else {
            return Err(anyhow::Error::new(error).context(format!("the file `{}` cannot be read", file.url)));
        };
        all = Schema::try_merge([all, typed(&schema)])
            .with_context(|| format!("the columns of `{}` are not those of the files before it", file.url))?;
    }
    Ok(Arc::new(all))
}

/// Whether an error comes from a store that does not answer well now, and not from what is in it.
pub(crate) fn is_outage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref::<object_store::Error>(),
            Some(
                object_store::Error::Generic { .. }
                    | object_store::Error::PermissionDenied { .. }
                    | object_store::Error::Unauthenticated { .. }
            )
        )
    })
}

/// Whether an error, or a cause of it, says that a pinned file is no longer what it was.
pub fn is_pin_violation(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref::<object_store::Error>(),
            Some(object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. })
        ) || cause.to_string().contains(PIN_VIOLATION)
    })
}
