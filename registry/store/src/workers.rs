//! Worker processes: who was heard of, by the database's clock, and who shall stop.

use std::time::Duration;

use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::store::{Change, Result, StoreError, WorkerBeat, WorkerRow};
use tidegate_registry::time::Instant;

use crate::audit;
use crate::codec::{duration_micros, json};
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Row, db_now, query};

/// A worker that was silent for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 60 * 60);

pub(crate) async fn heartbeat(db: &Db, beat: &WorkerBeat) -> Result<bool> {
    let mut tx = db.write_one().await?;
    let row = query(concat!(
        "INSERT INTO workers (owner, queues, slots, running, version, host, heard_at) \
         VALUES ($1, $2, $3, $4, $5, $6, ",
        db_now!(),
        ") ON CONFLICT (owner) DO UPDATE SET queues = excluded.queues, slots = excluded.slots, \
         running = excluded.running, version = excluded.version, host = excluded.host, heard_at = excluded.heard_at \
         RETURNING drained"
    ))
    .bind(&beat.owner)
    .bind(json(&beat.queues)?)
    .bind(beat.slots)
    .bind(beat.running)
    .bind(&beat.version)
    .bind(&beat.host)
    .fetch_one(&mut tx)
    .await
    .map_err(on("noting that a worker lives"))?;
    let drained = row.get_as("drained")?;
    commit(tx).await?;
    Ok(drained)
}

pub(crate) async fn goodbye(db: &Db, owner: &str) -> Result<()> {
    let mut tx = db.write_one().await?;
    query(concat!("DELETE FROM workers WHERE owner = $1 OR heard_at < ", db_now!(), " - $2"))
        .bind(owner)
        .bind(duration_micros(FORGOTTEN))
        .execute(&mut tx)
        .await
        .map_err(on("noting that a worker stopped"))?;
    commit(tx).await
}

pub(crate) async fn list(db: &Db, within: Duration) -> Result<Vec<WorkerRow>> {
    list_on(&mut *db.read().await?, within).await
}

pub(crate) async fn list_on(conn: &mut Conn, within: Duration) -> Result<Vec<WorkerRow>> {
    let rows = query(concat!(
        "SELECT owner, queues, slots, running, version, host, heard_at, drained FROM workers WHERE heard_at >= ",
        db_now!(),
        " - $1 ORDER BY owner"
    ))
    .bind(duration_micros(within))
    .fetch_all(conn)
    .await
    .map_err(on("reading which workers live"))?;
    rows.iter().map(worker_from).collect()
}

fn worker_from(row: &Row) -> Result<WorkerRow> {
    Ok(WorkerRow {
        beat: WorkerBeat {
            owner: row.get_as("owner")?,
            queues: row.json("queues")?,
            slots: row.count("slots")?,
            running: row.count("running")?,
            version: row.get_as("version")?,
            host: row.get_as("host")?,
        },
        heard_at: row.instant("heard_at")?,
        drained: row.get_as("drained")?,
    })
}

pub(crate) async fn drain(db: &Db, owner: &str, drained: bool, actor: &str, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let done = query("UPDATE workers SET drained = $1 WHERE owner = $2")
        .bind(drained)
        .bind(owner)
        .execute(&mut tx)
        .await
        .map_err(on("draining a worker"))?;
    if done == 0 {
        return Err(StoreError::NotFound { what: "worker", name: owner.to_owned() });
    }
    tx.has_changed(Change::Tasks);
    let action = if drained { "worker_drain" } else { "worker_undrain" };
    audit::add_in_tx(&mut tx, &NewAuditEvent::new(now, actor, action, owner)).await?;
    commit(tx).await
}
