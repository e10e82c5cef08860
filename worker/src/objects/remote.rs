//! A client of an object store with its manners mended: errors name the object, long bodies come in pieces, short ones
//! are errors, and nobody can print its credentials.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Bytes that are asked for at once. What the client has received and nobody has read is kept in memory without a limit of
/// its own, and the deadline of a request covers its whole body: both call for bodies that are not too long.
const PIECE_BYTES: u64 = 8 << 20;

/// One bucket.
pub(super) struct Remote {
    /// As in `s3://bucket`.
    name: String,
    client: Arc<dyn ObjectStore>,
}

impl Remote {
    pub(super) fn new(name: String, client: Arc<dyn ObjectStore>) -> Self {
        Self { name, client }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Remote {
    /// The bucket: the client's own `Debug` shows its credentials' id and more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.name)
    }
}

/// What went wrong with which object. It tells its cause as well: the client's errors do, and delta-rs passes on no more
/// than this text.
#[derive(Debug, thiserror::Error)]
#[error("`{object}` could not be read: {source}")]
struct Unreadable {
    object: String,
    #[source]
    source: Error,
}

#[derive(Debug, thiserror::Error)]
#[error("the store's answer ended at byte {at} and not at {wanted}")]
struct Short {
    at: u64,
    wanted: u64,
}

/// Puts the object's name into an error that lacks it.
fn unreadable(store: &str, location: &Path, error: Error) -> Error {
    match error {
        Error::Generic { store: kind, source } => {
            let source = Error::Generic { store: kind, source };
            let object = format!("{store}/{location}");
            Error::Generic { store: kind, source: Box::new(Unreadable { object, source }) }
        }
        // These name it already, and callers branch on them.
        named => named,
    }
}

/// A body that comes in pieces, each asked for when the one before is used up. It ends where it should or with an error:
/// some layer may have cut a piece and called it whole.
struct Pieces {
    name: String,
    client: Arc<dyn ObjectStore>,
    location: Path,
    /// For the pieces that follow: of the same object as the first.
    options: GetOptions,
    /// What is being read.
    body: Option<BoxStream<'static, Result<Bytes>>>,
    /// The next byte.
    at: u64,
    /// Where the piece in `body` ends.
    piece_end: u64,
    /// Where it all ends.
    end: u64,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(body) = &mut self.body {
                match body.next().await.transpose()? {
                    Some(bytes) => {
                        self.at += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                    None if self.at == self.piece_end => self.body = None,
                    None => {
                        let short = Short { at: self.at, wanted: self.piece_end };
                        return Err(Error::Generic { store: "object store", source: Box::new(short) });
                    }
                }
            } else if self.at == self.end {
                return Ok(None);
            } else {
                self.piece_end = self.end.min(self.at + PIECE_BYTES);
                let range = Some(GetRange::Bounded(self.at..self.piece_end));
                let piece = self.client.get_opts(&self.location, GetOptions { range, ..self.options.clone() }).await?;
                self.body = Some(piece.into_stream());
            }
        }
    }

    fn into_stream(self) -> BoxStream<'static, Result<Bytes>> {
        let pieces = stream::unfold(Some(self), |pieces| async move {
            let mut pieces = pieces?;
            match pieces.next().await {
                Ok(bytes) => Some((Ok(bytes?), Some(pieces))),
                Err(error) => Some((Err(unreadable(&pieces.name, &pieces.location, error)), None)),
            }
        });
        // Readers of the log ask again after the end.
        pieces.fuse().boxed()
    }
}

#[async_trait]
impl ObjectStore for Remote {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.client.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.client.put_multipart_opts(location, options).await
    }

    // `get_ranges` is the default one on purpose: it comes through here.
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let named = |error| unreadable(&self.name, location, error);
        if options.head {
            return self.client.get_opts(location, options).await.map_err(named);
        }
        let bounded = match &options.range {
            Some(GetRange::Bounded(range)) => Some(range.clone()),
            _ => None,
        };
        let mut first = options.clone();
        if let Some(range) = bounded.as_ref().filter(|range| range.end.saturating_sub(range.start) > PIECE_BYTES) {
            first.range = Some(GetRange::Bounded(range.start..range.start + PIECE_BYTES));
        }
        let found = self.client.get_opts(location, first).await.map_err(named)?;
        let (meta, attributes, piece) = (found.meta.clone(), found.attributes.clone(), found.range.clone());
        let end = bounded.map_or(piece.end, |range| range.end.min(meta.size));
        // An answer of more than a piece, to a request without a range, is let go and asked for again in pieces.
        let body = (piece.end - piece.start <= PIECE_BYTES).then(|| found.into_stream());
        let pieces = Pieces {
            name: self.name.clone(),
            client: Arc::clone(&self.client),
            location: location.clone(),
            options: GetOptions { if_match: meta.e_tag.clone().or(options.if_match.clone()), ..options },
            body,
            at: piece.start,
            piece_end: piece.end,
            end,
        };
        let payload = GetResultPayload::Stream(pieces.into_stream());
        Ok(GetResult { payload, meta, range: piece.start..end, attributes })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.client.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.client.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.client.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.client.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.client.copy_opts(from, to, options).await
    }
}
