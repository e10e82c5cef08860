//! What waits to be claimed, and for what.

use std::collections::HashMap;
use std::time::Duration;

use tidegate_registry::ids::{PoolName, QueueName};
use tidegate_registry::store::{QueueState, Result, WaitingTask, WaitsFor, WorkerRow};

use crate::claims::claim_order;
use crate::codec::limit_or_all;
use crate::db::{Db, commit, on};
use crate::sql::{Row, db_now, query};
use crate::{pools, workers};

/// The order of claiming, except that tasks whose pause has not ended stand where they will.
const WAITING: &str = concat!(
    "SELECT runs.id, runs.dag, runs.interval_start, runs.interval_end, runs.priority, tasks.kind, tasks.queue, tasks.pool, ",
    db_now!(),
    " - tasks.rank - runs.priority * 60000000 AS admitted, tasks.retry_at - ",
    db_now!(),
    " AS pause FROM tasks JOIN runs ON runs.id = tasks.run WHERE tasks.ready = 1",
    claim_order!(),
    " LIMIT $1"
);

pub(crate) async fn waiting(db: &Db, limit: u32, within: Duration) -> Result<Vec<WaitingTask>> {
    let mut tx = db.read_together().await?;
    let workers = workers::list_on(&mut tx, within).await?;
    let pools = pools::states_on(&mut tx).await?;
    let mut slots: HashMap<PoolName, Slots> = HashMap::new();
    for pool in pools {
        slots.insert(pool.name, Slots { all: pool.slots, free: pool.slots.saturating_sub(pool.used) });
    }
    let rows = query(WAITING)
        .bind(limit_or_all(limit))
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading what waits to be claimed"))?;
    commit(tx).await?;
    rows.iter().map(|row| waiting_from(row, &workers, &mut slots)).collect()
}

struct Slots {
    all: u32,
    free: u32,
}

fn waiting_from(row: &Row, workers: &[WorkerRow], slots: &mut HashMap<PoolName, Slots>) -> Result<WaitingTask> {
    let queue: QueueName = row.parse("queue")?;
    let pool: Option<PoolName> = row.parse_option("pool")?;
    let pause = row.get_as::<Option<i64>>("pause")?.and_then(|left| u64::try_from(left).ok()).filter(|left| *left > 0);
    let served = workers
        .iter()
        .any(|worker| !worker.drained && (worker.beat.queues.is_empty() || worker.beat.queues.contains(&queue)));
    let waits_for = if let Some(pause) = pause {
        WaitsFor::Retry { pause: Duration::from_micros(pause) }
    } else if !served {
        WaitsFor::Queue
    } else {
        // Those before it get the free slots.
        match pool.as_ref().and_then(|pool| slots.get_mut(pool)) {
            Some(Slots { all, free: 0 }) => WaitsFor::Pool { slots: *all },
            Some(Slots { free, .. }) => {
                *free -= 1;
                WaitsFor::Worker
            }
            None => WaitsFor::Worker,
        }
    };
    Ok(WaitingTask {
        run: row.parse("id")?,
        dag: row.parse("dag")?,
        interval: row.interval()?,
        kind: row.parse("kind")?,
        queue,
        pool,
        priority: row.signed("priority")?,
        admitted: Duration::from_micros(u64::try_from(row.get_as::<i64>("admitted")?).unwrap_or_default()),
        waits_for,
    })
}

pub(crate) async fn states(db: &Db) -> Result<Vec<QueueState>> {
    // Both parts by indexes that hold open tasks only.
    let rows = query(
        "SELECT queue, CAST(sum(waiting) AS BIGINT) AS waiting, CAST(sum(running) AS BIGINT) AS running FROM (\
         SELECT queue, 1 AS waiting, 0 AS running FROM tasks WHERE ready = 1 UNION ALL \
         SELECT queue, 0, 1 FROM tasks WHERE lease_until IS NOT NULL) AS open GROUP BY queue ORDER BY queue",
    )
    .fetch_all(&mut *db.read().await?)
    .await
    .map_err(on("counting what is to do"))?;
    rows.iter()
        .map(|row| {
            Ok(QueueState {
                queue: row.parse("queue")?,
                waiting: row.count("waiting")?,
                running: row.count("running")?,
            })
        })
        .collect()
}
