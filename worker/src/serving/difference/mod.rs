//! What differs between two contents of a view.
//!
//! Tables are written sorted by entity, so both contents are read at once, side by side, and merged: an entity that only
//! the newer one has was added, one that only the older one has is gone, and of one that both have a hash of all that is
//! published tells whether it changed. Nothing but the batches at hand stays in memory, however many entities there are.
//! What differs goes to the store while the rest is still read.
//!
//! That the rows come in order is checked on the way and not believed: another program may have rewritten the files. A row
//! of the newer content may go to the store whatever comes later; but an entity could be taken for gone that only comes
//! late, so keys that are gone wait until all was read. When the order does not hold, or too many keys would wait, all is
//! compared anew with the engine sorting both, which spills to disk.

mod features;
#[cfg(test)]
mod features_tests;
mod hashing;
mod keys;
mod merging;
mod reading;
#[cfg(test)]
mod tests;

use std::fmt;

use anyhow::{Context as _, Result};
use datafusion::arrow::array::BooleanArray;
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::record_batch::RecordBatch;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use self::features::{Example, FeatureDiff, Mixed, Moved, StateDiff, ViewState, compare_states};
use self::merging::{Was, merge};
use self::reading::{Order, Reading};
use super::Serving;
use super::content::Content;
use crate::online::{Changes, encode, encode_keys};

/// Changes that go to the store together.
const CHANGES_PER_STEP: usize = 4_096;
/// Keys that may wait until all was read: some 50 bytes each.
const GONE_WAITING_MAX: usize = if cfg!(test) { 2 } else { 500_000 };

/// How many entities an upsert concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Differences {
    pub(super) added: u64,
    pub(super) changed: u64,
    pub(super) removed: u64,
    /// Entities that there are now.
    pub(super) rows: u64,
}

/// Why contents cannot be compared in the order in which they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unfit {
    /// The rows are not sorted by entity.
    Order,
    /// More keys are gone than may wait.
    Gone,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Order => "its rows are not sorted by entity, or an entity has several",
            Self::Gone => "so many of its entities are gone that their keys should not wait in memory",
        })
    }
}

impl std::error::Error for Unfit {}

/// Sends what makes `from` into `to` to the online store, where the generation holds `from` (or a part of the way).
pub(super) async fn upsert(
    serving: &Serving,
    from: &Content,
    to: &Content,
    generation: u64,
    publish_number: u64,
) -> Result<Differences> {
    let target = Target { generation, publish_number };
    match compare(serving, from, to, target, Order::AsStored).await {
        Err(error) if error.is::<Unfit>() => {
            tracing::info!(view = %to.view, "The table of `{}` is sorted for its upsert: {error}.", to.view);
            compare(serving, from, to, target, Order::Sorted).await
        }
        done => done,
    }
}

/// What of the store is changed, and by which publication.
#[derive(Debug, Clone, Copy)]
struct Target {
    generation: u64,
    publish_number: u64,
}

async fn compare(serving: &Serving, from: &Content, to: &Content, target: Target, order: Order) -> Result<Differences> {
    let mut sink = Sink::begin(serving, to, target);
    let compared = send_differences(serving, from, to, order, &mut sink).await;
    // Why the store does not take changes matters more than that they could not be handed on.
    sink.finish().await?;
    compared
}

async fn send_differences(
    serving: &Serving,
    from: &Content,
    to: &Content,
    order: Order,
    sink: &mut Sink,
) -> Result<Differences> {
    let mut old = Reading::begin(&serving.engine, &serving.lake, from, order).await?;
    let mut new = Reading::begin(&serving.engine, &serving.lake, to, order).await?;
    let (mut before, mut now) = (old.next().await?, new.next().await?);
    let mut found = Differences::default();
    let mut gone_waiting = Vec::new();
    while before.is_some() || now.is_some() {
        merge(before.as_mut(), now.as_mut())?;
        if let Some(done) = before.take_if(|before| before.is_done()) {
            let gone = encode_keys(from.keys()?, &picked(&done.batch, &done.verdicts, Was::Alone)?)?;
            found.removed += gone.len() as u64;
            match order {
                Order::AsStored => gone_waiting.extend(gone),
                Order::Sorted => sink.changes.removed.extend(gone),
            }
            if gone_waiting.len() > GONE_WAITING_MAX {
                return Err(Unfit::Gone.into());
            }
            before = old.next().await?;
        }
        if let Some(done) = now.take_if(|now| now.is_done()) {
            let rows = |which| -> Result<_> {
                Ok(encode(to.view()?, to.keys()?, &picked(&done.batch, &done.verdicts, which)?)?)
            };
            let (added, changed) = (rows(Was::Alone)?, rows(Was::Other)?);
            found.rows += done.verdicts.len() as u64;
            found.added += added.len() as u64;
            found.changed += changed.len() as u64;
            sink.changes.added.extend(added);
            sink.changes.changed.extend(changed);
            now = new.next().await?;
        }
        sink.send(CHANGES_PER_STEP).await?;
    }
    for gone in gone_waiting.chunks(CHANGES_PER_STEP) {
        sink.changes.removed.extend_from_slice(gone);
        sink.send(CHANGES_PER_STEP).await?;
    }
    sink.send(1).await?;
    Ok(found)
}

/// The rows of `batch` with that verdict.
fn picked(batch: &RecordBatch, verdicts: &[Was], which: Was) -> Result<RecordBatch> {
    if !verdicts.contains(&which) {
        return Ok(batch.slice(0, 0));
    }
    let mask: BooleanArray = verdicts.iter().map(|was| Some(*was == which)).collect();
    filter_record_batch(batch, &mask).context("picking rows that differ")
}

/// Gathers changes until they are worth a call, and has them sent while further ones are looked for.
struct Sink {
    changes: Changes,
    sender: mpsc::Sender<Changes>,
    sending: JoinSet<Result<()>>,
}

impl Sink {
    fn begin(serving: &Serving, to: &Content, target: Target) -> Self {
        let (sender, mut steps) = mpsc::channel::<Changes>(1);
        let (online, view) = (serving.online.clone(), to.view.clone());
        let mut sending = JoinSet::new();
        sending.spawn(async move {
            while let Some(changes) = steps.recv().await {
                online.upsert(&view, target.generation, target.publish_number, &changes).await?;
                fail::fail_point!("publish.between");
            }
            Ok(())
        });
        Self { changes: Changes::default(), sender, sending }
    }

    async fn send(&mut self, least: usize) -> Result<()> {
        if self.changes.len() < least {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.changes);
        // `finish` tells why.
        self.sender.send(changes).await.ok().context("the online store takes no changes")
    }

    /// Waits until all that was handed on has arrived.
    async fn finish(self) -> Result<()> {
        let Self { sender, mut sending, .. } = self;
        drop(sender);
        sending.join_next().await.context("sending was not begun")?.context("sending was stopped")?
    }
}
