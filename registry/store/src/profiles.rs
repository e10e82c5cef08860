//! What was found out about rows when they were recorded.

use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::model::Season;
use tidegate_registry::run::Pins;
use tidegate_registry::store::{Recorded, Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::{limit_or_all, micros};
use crate::db::{Db, on};
use crate::sql::{Row, query};

const HOUR: i64 = 3_600_000_000;

pub(crate) async fn recorded(
    db: &Db,
    view: &ViewId,
    before: Instant,
    season: Option<Season>,
    limit: u32,
) -> Result<Vec<Recorded>> {
    // Days, hours and weeks of UTC all have one length.
    let (unit, period) = match season {
        None => (1, 1),
        Some(Season::Weekday) => (24 * HOUR, 7),
        Some(Season::Hour) => (HOUR, 24),
        Some(Season::WeekdayHour) => (HOUR, 7 * 24),
    };
    let mut tx = db.read().await?;
    let rows = query(
        "SELECT l.interval_start, l.interval_end, l.snapshot, l.rows, v.profile, v.summary \
         FROM ledger AS l JOIN snapshot_views AS v ON v.snapshot = l.snapshot AND v.view = l.view \
         WHERE l.view = $1 AND l.interval_end <= $2 AND (l.interval_start / $3) % $4 = $5 \
         ORDER BY l.interval_end DESC, l.interval_start DESC LIMIT $6",
    )
    .bind(view.to_string())
    .bind(micros(before))
    .bind(unit)
    .bind(period)
    .bind(micros(before) / unit % period)
    .bind(limit_or_all(limit))
    .fetch_all(&mut tx)
    .await
    .map_err(on("reading what was recorded"))?;
    rows.iter().map(recorded_from).collect()
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
