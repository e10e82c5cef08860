//! Where a dataset is, and what is there already.

use std::path::Path as FsPath;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use chrono::{TimeDelta, Utc};
use futures::StreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};
use tidegate_registry::dataset::{DatasetFilter, MANIFEST_FORMAT, Manifest, OutputFile};
use tidegate_registry::store::Store;
use url::Url;

use super::{DatasetError, DatasetRequest};
use crate::objects::{Stores, is_object_url};

/// A file follows its manifest at once; nobody needs so long for it.
const SHOWN_WITHIN: TimeDelta = TimeDelta::minutes(1);

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
    pub(super) name: String,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: Path,
    pub(super) url: Url,
    pub(super) format: PlaceFormat,
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
    pub(super) fn manifest(&self) -> Path {
        match self.format {
            PlaceFormat::Parquet => Path::from(format!("{}.manifest.json", self.path)),
            PlaceFormat::Delta => self.path.clone().join("_tidegate_manifest.json"),
        }
    }

    /// The data file, named after what it belongs to when it is one of a table.
    pub(super) fn file(&self, request: &DatasetRequest) -> (String, Path) {
        match self.format {
            PlaceFormat::Parquet => (self.path.filename().unwrap_or_default().to_owned(), self.path.clone()),
            PlaceFormat::Delta => {
                let name = format!("part-00000-{}.zstd.parquet", request.number);
                (name.clone(), self.path.clone().join(name))
            }
        }
    }

    /// Removes a manifest whose file somebody has removed, or whose build died before the file was there.
    ///
    /// # Errors
    /// [`DatasetError::Wrong`] when the file may be about to follow.
    pub(super) async fn forget_what_is_gone(&self, registry: &dyn Store) -> Result<(), DatasetError> {
        let manifest = self.manifest();
        let looking = || format!("looking at `{manifest}`");
        let found = match self.store.get(&manifest).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(anyhow!(error).context(looking()).into()),
        };
        #[expect(clippy::disallowed_methods, reason = "stores date what they hold by the real time")]
        let is_new = Utc::now() - found.meta.last_modified < SHOWN_WITHIN;
        if is_new && !self.is_recorded(&found.bytes().await.with_context(looking)?, registry).await? {
            return Err(DatasetError::wrong(
                format!(
                    "`{}` has a manifest of this minute: its build is about to finish, or has just died",
                    self.name
                ),
                "wait a minute and try again, or name another place",
            ));
        }
        match self.store.delete(&manifest).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(anyhow!(error).context(format!("removing `{manifest}`")).into()),
        }
    }

    /// Whether the registry knows a dataset of this place with this manifest: one whose file was there.
    async fn is_recorded(&self, manifest: &[u8], registry: &dyn Store) -> Result<bool> {
        let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else { return Ok(false) };
        let there = DatasetFilter { place: Some(self.name.clone()), ..DatasetFilter::default() };
        let recorded = registry.datasets(&there).await.context("reading the datasets")?;
        Ok(recorded.iter().any(|dataset| dataset.manifest == manifest))
    }

    /// Whether its first commit is there, after which its files are not only ours.
    pub(super) async fn is_table(&self) -> Result<bool> {
        self.has(&self.path.clone().join("_delta_log").join("00000000000000000000.json")).await
    }

    async fn has(&self, path: &Path) -> Result<bool> {
        match self.store.head(path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("looking at `{path}`")),
        }
    }

    /// Whether something stands there.
    pub(super) async fn is_taken(&self) -> Result<bool> {
        if self.format == PlaceFormat::Parquet {
            return Ok(self.has(&self.path).await? || FsPath::new(&self.name).is_dir());
        }
        let mut found = self.store.list(Some(&self.path));
        let first = found.next().await.transpose().with_context(|| format!("looking at `{}`", self.name))?;
        Ok(first.is_some())
    }
}

/// The manifest of the dataset at `place`, when its files are there and are what it says: all of them are read.
///
/// # Errors
/// [`DatasetError::Wrong`] when there is no dataset, it is not whole, or its bytes are others.
pub async fn imported(place: &Place) -> Result<Manifest, DatasetError> {
    let manifest = place.manifest();
    let nothing = |what: &str| {
        DatasetError::wrong(
            format!("`{}` {what}", place.name),
            "only what `tidegate dataset build` has finished can be imported; remove what it left, and build it again",
        )
    };
    let text = match place.store.get(&manifest).await {
        Ok(found) => found.bytes().await.with_context(|| format!("reading `{manifest}`"))?,
        Err(object_store::Error::NotFound { .. }) => return Err(nothing("has no manifest")),
        Err(error) => return Err(anyhow!(error).context(format!("reading `{manifest}`")).into()),
    };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| {
        DatasetError::wrong(format!("the manifest of `{}` cannot be read: {error}", place.name), "build it again")
    })?;
    if manifest.format != MANIFEST_FORMAT || manifest.output.format != place.format.as_str() {
        return Err(nothing(&format!(
            "is described by a manifest of format {} for {}",
            manifest.format, manifest.output.format
        )));
    }
    for file in &manifest.output.files {
        if !is_whole(place, file).await? {
            return Err(nothing(&format!("does not have the bytes of `{}` that its manifest tells of", file.path)));
        }
    }
    if place.format == PlaceFormat::Delta && !place.is_table().await? {
        return Err(nothing("is not a table yet"));
    }
    Ok(manifest)
}

/// Whether `file` is there with its bytes.
async fn is_whole(place: &Place, file: &OutputFile) -> Result<bool> {
    let path = match place.format {
        PlaceFormat::Parquet => place.path.clone(),
        PlaceFormat::Delta => place.path.clone().join(file.path.as_str()),
    };
    let reading = || format!("reading `{path}`");
    let mut bytes = match place.store.get(&path).await {
        Ok(found) if found.meta.size == file.size => found.into_stream(),
        Ok(_) | Err(object_store::Error::NotFound { .. }) => return Ok(false),
        Err(error) => return Err(error).with_context(reading),
    };
    let mut sum = Sha256::new();
    while let Some(bytes) = bytes.next().await {
        sum.update(&bytes.with_context(reading)?);
    }
    Ok(format!("{:x}", sum.finalize()) == file.sha256)
}
