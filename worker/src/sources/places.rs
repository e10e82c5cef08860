//! Where a source may lie: below the project, or in what `allowed_roots` names, on this machine or in an object store.

use std::path::{Component, Path as FsPath, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tidegate_registry::run::PinnedFile;
use url::Url;

use crate::objects::{Stores, bucket_of, is_object_url};

/// Finds places, and refuses those that nobody allowed.
#[derive(Debug, Clone)]
pub(super) struct Places {
    root: PathBuf,
    folders: Vec<PathBuf>,
    /// Buckets with what is allowed in them.
    buckets: Vec<(String, Path)>,
    local: Arc<dyn ObjectStore>,
    stores: Stores,
}

/// A file or folder.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) store: Arc<dyn ObjectStore>,
    /// As the store knows it.
    pub(super) path: Path,
    /// As in `s3://bucket`; `None` on this machine.
    bucket: Option<Url>,
    /// Whether it was written as a folder, or is one on this machine.
    is_folder: bool,
}

impl Places {
    pub(super) fn new(root: &FsPath, allowed_roots: &[String], stores: Stores) -> Result<Self> {
        let canonical = |folder: &FsPath| {
            folder.canonicalize().with_context(|| format!("opening the folder `{}`", folder.display()))
        };
        let (mut folders, mut buckets) = (Vec::new(), Vec::new());
        for place in allowed_roots {
            match Url::parse(place) {
                Ok(url) if url.scheme() == "file" => {
                    let folder = url.to_file_path().map_err(|()| anyhow::anyhow!("`{place}` is not a local folder"))?;
                    folders.push(canonical(&folder)?);
                }
                Ok(url) if url.scheme().len() > 1 => {
                    let path = Path::from_url_path(url.path()).context("an allowed root is not a path")?;
                    buckets.push((bucket_of(&url)?, path));
                }
                _ => folders.push(canonical(FsPath::new(place))?),
            }
        }
        Ok(Self { root: canonical(root)?, folders, buckets, local: Arc::new(LocalFileSystem::new()), stores })
    }

    /// Where `place` is.
    ///
    /// # Errors
    /// When nobody allowed it; on this machine, also when it does not exist.
    pub(super) fn find(&self, place: &str) -> Result<Place> {
        match Url::parse(place) {
            Ok(url) if is_object_url(place) => self.in_store(&url),
            Ok(url) if url.scheme() != "file" && url.scheme().len() > 1 => {
                bail!("`{}://` is not a kind of store that Tidegate knows", url.scheme())
            }
            _ => {
                let path = self.on_this_machine(place)?;
                Ok(Place {
                    store: Arc::clone(&self.local),
                    path: Path::from_absolute_path(&path)?,
                    bucket: None,
                    is_folder: path.is_dir(),
                })
            }
        }
    }

    fn in_store(&self, url: &Url) -> Result<Place> {
        let bucket = bucket_of(url)?;
        let path = Path::from_url_path(url.path()).context("it is not a path in an object store")?;
        // Whole segments: `data` does not allow `data-secret`.
        let allowed = self.buckets.iter().any(|(allowed, below)| *allowed == bucket && path.prefix_matches(below));
        if !allowed {
            bail!("`{bucket}/{path}` lies outside the `allowed_roots` of tidegate.yaml");
        }
        let base = Url::parse(&bucket).with_context(|| format!("`{bucket}` is not a URL"))?;
        Ok(Place { store: self.stores.get(url)?, path, bucket: Some(base), is_folder: url.path().ends_with('/') })
    }

    /// The real path of a place, which must exist and lie in the project or an allowed folder, links followed.
    fn on_this_machine(&self, place: &str) -> Result<PathBuf> {
        let path = match Url::parse(place) {
            Ok(url) if url.scheme() == "file" => {
                url.to_file_path().map_err(|()| anyhow::anyhow!("`{place}` is not the URL of a local file"))?
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
        let inside = real.starts_with(&self.root) || self.folders.iter().any(|root| real.starts_with(root));
        if !inside {
            bail!("`{}` lies outside the project and the `allowed_roots` of tidegate.yaml", real.display());
        }
        Ok(real)
    }

    /// The store that pinned files are in.
    ///
    /// # Errors
    /// When nobody allows them any more.
    pub(super) fn store_of(&self, files: &[PinnedFile]) -> Result<Arc<dyn ObjectStore>> {
        match files.first() {
            Some(file) if is_object_url(&file.url) => Ok(self.find(&file.url)?.store),
            _ => Ok(Arc::clone(&self.local)),
        }
    }
}

impl Place {
    /// The file that stands here; `None` when it is a folder.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn file(&self, must_be_folder: bool) -> Result<Option<ObjectMeta>> {
        if self.is_folder || (must_be_folder && self.bucket.is_some()) {
            return Ok(None);
        }
        match self.store.head(&self.path).await {
            // An object store has no folders: what is no object may be the beginning of others' names.
            Err(object_store::Error::NotFound { .. }) if self.bucket.is_some() => Ok(None),
            found => Ok(Some(found?)),
        }
    }

    /// The URL of a file that the store knows as `location`.
    ///
    /// # Errors
    /// When it cannot be written as one.
    pub(super) fn url_of(&self, location: &Path) -> Result<Url> {
        let Some(bucket) = &self.bucket else {
            let path = FsPath::new("/").join(location.as_ref());
            return Url::from_file_path(&path)
                .map_err(|()| anyhow::anyhow!("`{}` cannot be written as a URL", path.display()));
        };
        let mut url = bucket.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow::anyhow!("`{bucket}` has no paths"))?
            .clear()
            .extend(location.parts().map(|part| part.as_ref().to_owned()));
        Ok(url)
    }

    /// The URL of this place as a folder.
    ///
    /// # Errors
    /// When it cannot be written as one.
    pub(super) fn folder_url(&self) -> Result<Url> {
        let mut url = self.url_of(&self.path)?;
        url.set_path(&format!("{}/", url.path().trim_end_matches('/')));
        Ok(url)
    }
}
