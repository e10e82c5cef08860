//! One content as batches that are ready to be compared, prepared beside the one who compares them.

use anyhow::{Context as _, Result, bail};
use datafusion::arrow::array::{ArrayRef, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use datafusion::arrow::record_batch::RecordBatch;
use futures::StreamExt;
use tidegate_registry::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::content::Content;
use super::Unfit;
use super::hashing::hash_rows;
use super::keys::{KeyMaker, Keys, LastKey};
use super::merging::Batch;
use crate::engine::Engine;
use crate::lake::Lake;
pub(super) use crate::serving::content::Order;
use crate::types::{EVENT_TIMESTAMP, timestamp};

/// Batches that are prepared ahead.
const BATCHES_AHEAD: usize = 4;

/// The rows of a content, sorted by entity.
pub(super) struct Reading {
    batches: mpsc::Receiver<Batch>,
    task: JoinSet<Result<()>>,
}

impl Reading {
    pub(super) async fn begin(engine: &Engine, lake: &Lake, content: &Content, order: Order) -> Result<Self> {
        let mut rows = content.rows_by_entity(engine, lake, order).await?;
        let mut preparing = Preparing::new(content.clone(), order)?;
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(batch) = rows.next().await {
                let batch = batch.with_context(|| format!("reading the rows of `{}`", preparing.content.view))?;
                if batch.num_rows() > 0 && sender.send(preparing.prepare(batch)?).await.is_err() {
                    break; // whoever compares them has failed and says why
                }
            }
            Ok(())
        });
        Ok(Self { batches, task })
    }

    /// The next batch, which has rows; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Batch>> {
        if let Some(batch) = self.batches.recv().await {
            return Ok(Some(batch));
        }
        // Whether all of them came: reading that failed ends like reading that is done.
        match self.task.join_next().await {
            Some(task) => task.context("reading was stopped")?.map(|()| None),
            None => Ok(None),
        }
    }
}

/// Makes keys comparable, hashes the rest, and sees to the order.
struct Preparing {
    content: Content,
    order: Order,
    maker: KeyMaker,
    last: Option<LastKey>,
}

impl Preparing {
    fn new(content: Content, order: Order) -> Result<Self> {
        let maker = KeyMaker::new(content.keys()?)?;
        Ok(Self { content, order, maker, last: None })
    }

    fn prepare(&mut self, batch: RecordBatch) -> Result<Batch> {
        let keys = self.keys(&batch)?;
        self.require_order(&keys)?;
        let hashes = hash_rows(&values(&self.content, &batch)?, batch.num_rows())?;
        Ok(Batch::new(batch, keys, hashes))
    }

    fn keys(&self, batch: &RecordBatch) -> Result<Keys> {
        let columns = self.content.keys()?.iter().map(|key| named(batch, &key.name));
        self.maker.keys(&columns.collect::<Result<Vec<_>>>()?)
    }

    fn require_order(&mut self, keys: &Keys) -> Result<()> {
        if keys.ascend_from(self.last.as_ref()) {
            self.last = keys.last();
            return Ok(());
        }
        match self.order {
            Order::AsStored => Err(Unfit::Order.into()),
            Order::Sorted => bail!("an entity of `{}` has several rows in its table", self.content.view),
        }
    }
}

/// The columns whose change is a change. A row whose time is only that of its interval's end has none of its own: it did
/// not change because time went on.
fn values(content: &Content, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    let features = content.view()?.features.iter();
    let mut values = features.map(|feature| named(batch, &feature.name)).collect::<Result<Vec<_>>>()?;
    values.push(own_times(&named(batch, EVENT_TIMESTAMP)?, content.interval.end())?);
    Ok(values)
}

pub(super) fn named(batch: &RecordBatch, name: &str) -> Result<ArrayRef> {
    batch.column_by_name(name).cloned().with_context(|| format!("the rows have no column `{name}`"))
}

pub(super) fn own_times(times: &ArrayRef, interval_end: Instant) -> Result<ArrayRef> {
    let times = cast(times, &timestamp()).context("reading the times of rows")?;
    let end = interval_end.timestamp_micros();
    let own = times.as_primitive::<TimestampMicrosecondType>().unary_opt::<_, TimestampMicrosecondType>(|time| {
        // Null for none of its own: no published row has a null time.
        (time != end).then_some(time)
    });
    Ok(std::sync::Arc::new(own))
}
