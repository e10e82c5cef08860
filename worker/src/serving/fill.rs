//! A whole generation.

use anyhow::{Context as _, Result};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinSet;

use super::Serving;
use super::content::Content;
use crate::online::{EncodedRow, OnlineError, encode};

/// Batches that are encoded ahead of the store.
const BATCHES_AHEAD: usize = 2;
/// Batches that are written at once, so that the store is never idle between two of them.
const BATCHES_IN_FLIGHT: usize = 2;

/// Writes a generation that was begun, and finishes it; how many entities it has. When that fails, what was written is
/// dropped: it would only take the room that may be missing.
pub(super) async fn fill(serving: &Serving, content: &Content, generation: u64) -> Result<u64> {
    let filled = write(serving, content, generation).await;
    if filled.is_err()
        && let Err(error) = serving.online.discard(&content.view, generation).await
    {
        tracing::debug!(view = %content.view, "What was written of a generation stays until it is begun again: {error}");
    }
    filled
}

async fn write(serving: &Serving, content: &Content, generation: u64) -> Result<u64> {
    let (mut batches, mut encoding) = encoded(serving, content).await?;
    let (online, view) = (&serving.online, &content.view);
    let rows = stream::poll_fn(move |context| batches.poll_recv(context));
    let written = rows
        .map(|rows| async move {
            online.write(view, generation, &rows).await?;
            fail::fail_point!("publish.between");
            Ok::<u64, OnlineError>(rows.len() as u64)
        })
        .buffer_unordered(BATCHES_IN_FLIGHT)
        .try_fold(0, |sum, rows| async move { Ok(sum + rows) })
        .await?;
    // Whether all of them came: a stream that failed ends like one that is done.
    encoding.join_next().await.context("encoding was not begun")?.context("encoding was stopped")??;
    fail::fail_point!("publish.written");
    online.finish_generation(view, generation, written).await?;
    Ok(written)
}

type Batches = tokio::sync::mpsc::Receiver<Vec<EncodedRow>>;

/// The rows of `content`, encoded beside the one who takes them.
pub(super) async fn encoded(serving: &Serving, content: &Content) -> Result<(Batches, JoinSet<Result<()>>)> {
    let mut rows = content.rows(&serving.engine, &serving.lake).await?;
    let (view, keys) = (content.view()?.clone(), content.keys()?.to_vec());
    let (sender, batches) = tokio::sync::mpsc::channel(BATCHES_AHEAD);
    let mut encoding = JoinSet::new();
    encoding.spawn(async move {
        while let Some(batch) = rows.next().await {
            let encoded = encode(&view, &keys, &batch?)?;
            if sender.send(encoded).await.is_err() {
                break; // whoever takes them has failed and says why
            }
        }
        Ok(())
    });
    Ok((batches, encoding))
}
