//! Sources: tables that Tidegate reads and does not own, pinned for the length of a run.
//!
//! A Delta source is pinned by its version. Files are pinned by a list of names, sizes and entity tags: they are read with
//! conditional requests (`PinnedStore`), so a file that is replaced in the middle of a run fails the read instead of
//! mixing two states, and they are compared once more before the run's intent.

use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path as FsPath, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::SessionContext;
use deltalake::{DeltaTable, DeltaTableBuilder};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use indexmap::IndexMap;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tidegate_registry::ids::SourceName;
use tidegate_registry::model::{Project, Source, SourceLocation};
use tidegate_registry::run::{PinnedFile, SourcePin};
use url::Url;

use crate::execute::chain;

/// The most files that one source may have: their list is part of every run's manifest.
const FILES_MAX: usize = 100_000;

/// Finds and reads sources.
#[derive(Debug, Clone)]
pub struct Sources {
    root: PathBuf,
    allowed_roots: Vec<PathBuf>,
    store: Arc<dyn ObjectStore>,
}

impl Sources {
    /// Sources of the project at `root`; places outside of it must lie in one of `allowed_roots` (folders or `file://`
    /// URLs).
    ///
    /// # Errors
    /// When a folder does not exist.
    pub fn new(root: &FsPath, allowed_roots: &[String]) -> Result<Self> {
        let canonical = |folder: &FsPath| {
            folder.canonicalize().with_context(|| format!("opening the folder `{}`", folder.display()))
        };
        let allowed_roots = allowed_roots
            .iter()
            .map(|place| match Url::parse(place) {
                Ok(url) if url.scheme() == "file" => {
                    let folder = url.to_file_path().map_err(|()| anyhow::anyhow!("`{place}` is not a local folder"))?;
                    canonical(&folder)
                }
                Ok(url) if url.scheme().len() > 1 => {
                    bail!("sources at `{}://` are not supported by this version", url.scheme())
                }
                _ => canonical(FsPath::new(place)),
            })
            .collect::<Result<_>>()?;
        Ok(Self { root: canonical(root)?, allowed_roots, store: Arc::new(LocalFileSystem::new()) })
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
        let reading = || format!("reading the source `{}` at `{}`", source.name, source.location.place());
        match (pin, &source.location) {
            (SourcePin::Delta { version }, location) => {
                let table = self.delta(location.place(), Some(*version)).await.with_context(reading)?;
                table.update_datafusion_session(&ctx.state()).with_context(reading)?;
                Ok(table.table_provider().await.with_context(reading)?)
            }
            (SourcePin::Files(files), location) => {
                let format: Arc<dyn FileFormat> = match location {
                    SourceLocation::Csv(_) => Arc::new(CsvFormat::default().with_has_header(true)),
                    _ => Arc::new(ParquetFormat::default()),
                };
                self.listing(ctx, source, files, format).await.with_context(reading)
            }
        }
    }

    async fn listing(
        &self,
        ctx: &SessionContext,
        source: &Source,
        files: &[PinnedFile],
        format: Arc<dyn FileFormat>,
    ) -> Result<Arc<dyn TableProvider>> {
        let pinned: Arc<dyn ObjectStore> = Arc::new(PinnedStore::new(Arc::clone(&self.store), files)?);
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
        let state = ctx.state();
        let schema = format.infer_schema(&state, &pinned, &metas).await?;
        if schema.fields().is_empty() {
            bail!("it has no columns (a CSV file needs a header line)");
        }
        let options = ListingOptions::new(format).with_file_extension("");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
        Ok(Arc::new(ListingTable::try_new(config)?))
    }

    async fn delta(&self, place: &str, version: Option<u64>) -> Result<DeltaTable> {
        let folder = self.resolve(place)?;
        let url = Url::from_directory_path(&folder)
            .map_err(|()| anyhow::anyhow!("`{}` cannot be written as a URL", folder.display()))?;
        let mut builder = DeltaTableBuilder::from_url(url.clone())?.with_storage_backend(Arc::clone(&self.store), url);
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
        let path = self.resolve(folder.unwrap_or(place))?;
        let location = Path::from_absolute_path(&path)?;
        let metas = if path.is_dir() {
            let pattern =
                pattern.map(glob::Pattern::new).transpose().context("the pattern in the last segment is broken")?;
            let listed = self.store.list_with_delimiter(Some(&location)).await?;
            let mut metas = listed.objects;
            metas.retain(|meta| {
                meta.location.filename().is_some_and(|name| {
                    !name.starts_with(['.', '_']) && pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
                })
            });
            metas.sort_by(|a, b| a.location.cmp(&b.location));
            metas
        } else {
            vec![self.store.head(&location).await?]
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
                let path = FsPath::new("/").join(meta.location.as_ref());
                let url = Url::from_file_path(&path)
                    .map_err(|()| anyhow::anyhow!("`{}` cannot be written as a URL", path.display()))?;
                Ok(PinnedFile {
                    url: url.into(),
                    size: meta.size,
                    etag: meta.e_tag,
                    modified_micros: meta.last_modified.timestamp_micros(),
                })
            })
            .collect()
    }

    /// The real path of a place, which must exist and lie in the project or an allowed folder, links followed.
    fn resolve(&self, place: &str) -> Result<PathBuf> {
        let path = match Url::parse(place) {
            Ok(url) if url.scheme() == "file" => {
                url.to_file_path().map_err(|()| anyhow::anyhow!("`{place}` is not the URL of a local file"))?
            }
            Ok(url) if url.scheme().len() > 1 => {
                bail!("sources at `{}://` are not supported by this version", url.scheme())
            }
            _ => {
                let path = PathBuf::from(place);
                if path.components().any(|part| part == Component::ParentDir) {
                    bail!("`..` is not allowed in a path");
                }
                path
            }
        };
        let real = self.root.join(path).canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow::anyhow!("there is no such file or folder"),
            _ => anyhow::Error::new(error).context("it cannot be opened"),
        })?;
        let inside = real.starts_with(&self.root) || self.allowed_roots.iter().any(|root| real.starts_with(root));
        if !inside {
            bail!("`{}` lies outside the project and the `allowed_roots` of tidegate.yaml", real.display());
        }
        Ok(real)
    }
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

/// Said by [`PinnedStore`], and looked for where DataFusion has turned the error into text.
const PIN_VIOLATION: &str = "changed after it was pinned";

/// Only the pinned files, only as they were: every read carries the entity tag.
#[derive(Debug)]
struct PinnedStore {
    inner: Arc<dyn ObjectStore>,
    pins: HashMap<Path, PinnedFile>,
}

impl PinnedStore {
    fn new(inner: Arc<dyn ObjectStore>, files: &[PinnedFile]) -> Result<Self> {
        let mut pins = HashMap::with_capacity(files.len());
        for file in files {
            let url = Url::parse(&file.url).with_context(|| format!("`{}` is not a URL", file.url))?;
            pins.insert(Path::from_url_path(url.path())?, file.clone());
        }
        Ok(Self { inner, pins })
    }

    fn refuse(what: &str) -> object_store::Error {
        object_store::Error::NotImplemented { operation: what.to_owned(), implementer: "a pinned source".to_owned() }
    }

    fn violated(location: &Path) -> object_store::Error {
        object_store::Error::Precondition {
            path: location.to_string(),
            source: format!("`{location}` {PIN_VIOLATION}").into(),
        }
    }
}

impl fmt::Display for PinnedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pinned files of {}", self.pins.len(), self.inner)
    }
}

#[async_trait]
impl ObjectStore for PinnedStore {
    async fn get_opts(&self, location: &Path, mut options: GetOptions) -> object_store::Result<GetResult> {
        let Some(pin) = self.pins.get(location) else {
            return Err(object_store::Error::NotFound {
                path: location.to_string(),
                source: "it is not one of the pinned files".into(),
            });
        };
        options.if_match = pin.etag.clone();
        match self.inner.get_opts(location, options).await {
            Ok(found) if found.meta.size == pin.size => Ok(found),
            Ok(_) | Err(object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. }) => {
                Err(Self::violated(location))
            }
            Err(error) => Err(error),
        }
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> object_store::Result<PutResult> {
        Err(Self::refuse("put"))
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(Self::refuse("put_multipart"))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        locations.map(|_| Err(Self::refuse("delete"))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let inner = Arc::clone(&self.inner);
        let mut wanted: Vec<Path> =
            self.pins.keys().filter(|path| prefix.is_none_or(|prefix| path.prefix_matches(prefix))).cloned().collect();
        wanted.sort();
        stream::iter(wanted)
            .then(move |path| {
                let inner = Arc::clone(&inner);
                async move { inner.head(&path).await }
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        Ok(ListResult { objects: self.list(prefix).try_collect().await?, common_prefixes: Vec::new() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> object_store::Result<()> {
        Err(Self::refuse("copy"))
    }
}

#[cfg(test)]
mod tests {
    use tidegate_registry::definitions::{LoadOptions, load_files};

    use super::*;

    /// Why the source at `data/orders.csv` with this content cannot be read.
    async fn reason(content: Option<&str>) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        if let Some(content) = content {
            std::fs::write(folder.path().join("data/orders.csv"), content).unwrap();
        }
        let files: [(&str, &[u8]); 2] =
            [("tidegate.yaml", b"project: shop"), ("shop.yaml", b"sources: [{name: orders, csv: data/orders.csv}]")];
        let project = load_files(folder.path(), &files, &LoadOptions::default()).project.unwrap();
        let schemas = Sources::new(folder.path(), &[]).unwrap().schemas(&project).await;
        schemas.values().next().unwrap().as_ref().unwrap_err().clone()
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_says_why_once() {
        let reading = "reading the source `orders` at `data/orders.csv`: ";
        assert_eq!(reason(None).await, format!("{reading}there is no such file or folder"));
        assert_eq!(reason(Some("")).await, format!("{reading}it has no columns (a CSV file needs a header line)"));
        let uneven = reason(Some("a;b\n1;2,5\n")).await;
        assert_eq!(uneven.matches("unequal lengths").count(), 1, "{uneven}");
    }
}
