//! A store that loses answers above the client, whatever it is made of.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The log entry lands, and the caller hears of an error.
    AnswerLost,
    /// The log entry lands, and a retry below the caller makes it hear that somebody else was first.
    AnswerSaysExists,
    /// The log entry does not land.
    RequestLost,
}

/// A store that fails the next writes of log entries.
#[derive(Debug)]
pub(super) struct FaultyLog {
    inner: Arc<dyn ObjectStore>,
    fault: Fault,
    left: AtomicU32,
}

impl FaultyLog {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, fault: Fault, times: u32) -> Self {
        Self { inner, fault, left: AtomicU32::new(times) }
    }
}

impl fmt::Display for FaultyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on {}", self.fault, self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyLog {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        let is_log = at.as_ref().contains("_delta_log");
        let strikes =
            is_log && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if !strikes {
            return self.inner.put_opts(at, payload, options).await;
        }
        if self.fault != Fault::RequestLost {
            self.inner.put_opts(at, payload, options).await?;
        }
        match self.fault {
            Fault::AnswerSaysExists => {
                Err(object_store::Error::AlreadyExists { path: at.to_string(), source: "it is there".into() })
            }
            _ => Err(object_store::Error::Generic { store: "test", source: "the connection was cut".into() }),
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
