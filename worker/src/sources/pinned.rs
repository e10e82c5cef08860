//! A store of pinned files: they are read as they were when they were pinned, or not at all.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tidegate_registry::run::PinnedFile;
use url::Url;

/// Said when a file is no longer what it was, and looked for where DataFusion has turned the error into text.
pub(super) const PIN_VIOLATION: &str = "changed after it was pinned";

/// Only the pinned files, only as they were: every read carries the entity tag.
#[derive(Debug)]
pub(super) struct PinnedStore {
    inner: Arc<dyn ObjectStore>,
    pins: HashMap<Path, PinnedFile>,
}

impl PinnedStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, files: &[PinnedFile]) -> Result<Self> {
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
            // Compared here as well: not every store heeds the condition of a read.
            Ok(found) if found.meta.size == pin.size && found.meta.e_tag == pin.etag => Ok(found),
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
