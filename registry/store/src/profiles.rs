//! What was found out about rows when they were recorded.

use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::model::Alike;
use tidegate_registry::run::Pins;
use tidegate_registry::store::{Recorded, Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::{limit_or_all, micros};
use crate::db::{Conn, Db, on};
use crate::sql::{Row, query};

/// How many entries of a ledger are looked at in one go for those that begin alike.
const PAGE: u32 = 500;

pub(crate) async fn recorded(
    db: &Db,
    view: &ViewId,
    before: Instant,
    alike: Option<Alike>,
    limit: u32,
) -> Result<Vec<Recorded>> {
    let mut tx = db.read().await?;
    let Some(alike) = alike else {
        let rows = query(
            "SELECT l.interval_start, l.interval_end, l.snapshot, l.rows, v.profile, v.summary \
             FROM ledger AS l JOIN snapshot_views AS v ON v.snapshot = l.snapshot AND v.view = l.view \
             WHERE l.view = $1 AND l.interval_end <= $2 \
             ORDER BY l.interval_end DESC, l.interval_start DESC LIMIT $3",
        )
        .bind(view.to_string())
        .bind(micros(before))
        .bind(limit_or_all(limit))
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading what was recorded"))?;
        return rows.iter().map(recorded_from).collect();
    };
    // What a clock on the wall shows, databases do not know or know from zone files of their own. So intervals are chosen
    // here, and profiles, which are large, are read of the chosen ones alone.
    let wanted = if limit == 0 { usize::MAX } else { limit as usize };
    let mut found = Vec::new();
    let (mut end, mut start) = (micros(before), i64::MAX);
    loop {
        let page = query(
            "SELECT interval_start, interval_end FROM ledger \
             WHERE view = $1 AND (interval_end, interval_start) < ($2, $3) \
             ORDER BY interval_end DESC, interval_start DESC LIMIT $4",
        )
        .bind(view.to_string())
        .bind(end)
        .bind(start)
        .bind(PAGE)
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading a ledger"))?;
        for row in &page {
            let interval = row.interval()?;
            (end, start) = (micros(interval.end()), micros(interval.start()));
            if alike.holds(interval.start(), before) {
                found.push(recorded_of(&mut tx, view, end, start).await?);
                if found.len() == wanted {
                    return Ok(found);
                }
            }
        }
        if page.len() < PAGE as usize {
            return Ok(found);
        }
    }
}

/// What was recorded of one interval that is in the ledger.
async fn recorded_of(tx: &mut Conn, view: &ViewId, end: i64, start: i64) -> Result<Recorded> {
    let row = query(
        "SELECT l.interval_start, l.interval_end, l.snapshot, l.rows, v.profile, v.summary \
         FROM ledger AS l JOIN snapshot_views AS v ON v.snapshot = l.snapshot AND v.view = l.view \
         WHERE l.view = $1 AND l.interval_end = $2 AND l.interval_start = $3",
    )
    .bind(view.to_string())
    .bind(end)
    .bind(start)
    .fetch_one(tx)
    .await
    .map_err(on("reading what was recorded"))?;
    recorded_from(&row)
}

pub(crate) async fn recorded_in(db: &Db, snapshot: SnapshotId, view: &ViewId) -> Result<Recorded> {
    let mut tx = db.read().await?;
    let row = query(
        "SELECT s.interval_start, s.interval_end, v.snapshot, v.rows, v.profile, v.summary \
         FROM snapshots AS s JOIN snapshot_views AS v ON v.snapshot = s.id WHERE s.id = $1 AND v.view = $2",
    )
    .bind(snapshot.to_string())
    .bind(view.to_string())
    .fetch_optional(&mut tx)
    .await
    .map_err(on("reading what was recorded"))?;
    row.as_ref().map_or_else(
        || Err(StoreError::NotFound { what: "snapshot", name: format!("{snapshot} of {view}") }),
        recorded_from,
    )
}

pub(crate) async fn manifest(db: &Db, view: &ViewId, before: Option<Instant>) -> Result<Option<Pins>> {
    let mut tx = db.read().await?;
    let query = match before {
        Some(before) => query(
            "SELECT m.pins FROM ledger AS l JOIN manifests AS m ON m.run = l.run \
             WHERE l.view = $1 AND l.interval_end <= $2 ORDER BY l.interval_end DESC, l.interval_start DESC LIMIT 1",
        )
        .bind(view.to_string())
        .bind(micros(before)),
        // Snapshots are numbered in the order in which they are recorded.
        None => query(
            "SELECT m.pins FROM snapshots AS s JOIN manifests AS m ON m.run = s.run \
             WHERE s.id IN (SELECT snapshot FROM snapshot_views WHERE view = $1) ORDER BY s.number DESC LIMIT 1",
        )
        .bind(view.to_string()),
    };
    let row = query.fetch_optional(&mut tx).await.map_err(on("reading what a run read"))?;
    row.map(|row| row.json("pins")).transpose()
}

fn recorded_from(row: &Row) -> Result<Recorded> {
    Ok(Recorded {
        interval: row.interval()?,
        snapshot: row.parse("snapshot")?,
        rows: row.count("rows")?,
        profile: row.json("profile")?,
        summary: row.json_option("summary")?,
    })
}
