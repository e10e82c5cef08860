//! A table as it would be if a run's staged files were committed: the same actions, committed into memory.
//!
//! Reads fall through to the real store and log writes stay in memory, so the ordinary Delta reader (with its pruning and
//! its types) serves the views of a run that read each other, and the real table does not move.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use deltalake::kernel::Add;
use deltalake::kernel::transaction::CommitBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::{DeltaTable, DeltaTableBuilder};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use tidegate_registry::ids::ViewId;
use tidegate_registry::time::Interval;

use super::Lake;
use super::commit::{commit_properties, replace_slice};
use crate::types::INTERVAL_START;

impl Lake {
    /// The table of `view` at `version` with the slice of `interval` replaced by `adds`, in memory only.
    ///
    /// # Errors
    /// When the table cannot be read at that version.
    pub async fn overlay(&self, view: &ViewId, version: u64, interval: Interval, adds: &[Add]) -> Result<DeltaTable> {
        let url = self.table_url(view);
        let layered = Layered {
            top: Arc::new(InMemory::new()),
            base: Arc::clone(&self.store),
            log: self.table_prefix(view).join("_delta_log"),
            head: version,
        };
        let mut table = DeltaTableBuilder::from_url(url.clone())?
            .with_storage_backend(Arc::new(layered), url)
            .build()
            .with_context(|| format!("opening the table of `{view}`"))?;
        table.state = self.seen(view, Some(version));
        table
            .update_incremental(Some(version))
            .await
            .with_context(|| format!("reading version {version} of the table of `{view}`"))?;
        let actions = replace_slice(&table, interval, adds)?;
        if actions.is_empty() {
            return Ok(table);
        }
        let operation = DeltaOperation::Write {
            mode: SaveMode::Overwrite,
            partition_by: Some(vec![INTERVAL_START.to_owned()]),
            predicate: None,
        };
        let done = CommitBuilder::from(commit_properties())
            .with_actions(actions)
            .build(Some(table.snapshot()?), table.log_store(), operation)
            .await
            .with_context(|| format!("laying staged files over version {version} of `{view}`"))?;
        table.state = Some(done.snapshot());
        Ok(table)
    }
}

/// Reads through to `base`; log entries written here stay in `top`; log entries of `base` after `head` do not exist.
#[derive(Debug)]
struct Layered {
    top: Arc<InMemory>,
    base: Arc<dyn ObjectStore>,
    log: Path,
    head: u64,
}

impl Layered {
    fn read_only(what: &str) -> object_store::Error {
        object_store::Error::NotImplemented { operation: what.to_owned(), implementer: "an overlay".to_owned() }
    }

    fn in_log(&self, location: &Path) -> bool {
        location.prefix_matches(&self.log)
    }
}

/// Whether an object of the real table's log came after `head`. The hint at the newest checkpoint may point past it, so
/// that is left out too: without it the log is listed.
fn is_later(log: &Path, head: u64, location: &Path) -> bool {
    location.prefix_matches(log)
        && location.filename().is_some_and(|name| {
            name == "_last_checkpoint"
                || name
                    .split('.')
                    .next()
                    .and_then(|digits| digits.parse::<u64>().ok())
                    .is_some_and(|version| version > head)
        })
}

impl fmt::Display for Layered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an overlay on {}", self.base)
    }
}

#[async_trait]
impl ObjectStore for Layered {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if self.in_log(location) {
            self.top.put_opts(location, payload, options).await
        } else {
            Err(Self::read_only("put"))
        }
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(Self::read_only("put_multipart"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        match self.top.get_opts(location, options.clone()).await {
            Err(object_store::Error::NotFound { .. }) if !is_later(&self.log, self.head, location) => {
                self.base.get_opts(location, options).await
            }
            answer => answer,
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        match self.top.get_ranges(location, ranges).await {
            Err(object_store::Error::NotFound { .. }) if !is_later(&self.log, self.head, location) => {
                self.base.get_ranges(location, ranges).await
            }
            answer => answer,
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        locations.map(|_| Err(Self::read_only("delete"))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (top, base, log, head) = (self.top.list(prefix), self.base.list(prefix), self.log.clone(), self.head);
        // A log has few entries, and they must come in order, so both sides are gathered.
        let merged = async move {
            let mut all: Vec<ObjectMeta> = top.try_collect().await?;
            let hidden: HashSet<Path> = all.iter().map(|object| object.location.clone()).collect();
            let below: Vec<ObjectMeta> = base.try_collect().await?;
            all.extend(
                below
                    .into_iter()
                    .filter(|object| !hidden.contains(&object.location) && !is_later(&log, head, &object.location)),
            );
            all.sort_by(|a, b| a.location.cmp(&b.location));
            Ok::<_, object_store::Error>(stream::iter(all.into_iter().map(Ok)))
        };
        stream::once(merged).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        let top = self.top.list_with_delimiter(prefix).await?;
        let mut all = self.base.list_with_delimiter(prefix).await?;
        all.objects.retain(|object| {
            !is_later(&self.log, self.head, &object.location)
                && top.objects.iter().all(|hiding| hiding.location != object.location)
        });
        all.objects.extend(top.objects);
        all.objects.sort_by(|a, b| a.location.cmp(&b.location));
        all.common_prefixes.extend(top.common_prefixes);
        all.common_prefixes.sort();
        all.common_prefixes.dedup();
        Ok(all)
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> object_store::Result<()> {
        Err(Self::read_only("copy"))
    }
}
