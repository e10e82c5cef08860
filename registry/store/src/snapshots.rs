//! What recorded runs left behind, and the verdicts on all that was staged.

use tidegate_registry::ids::{DagName, SnapshotId, ViewId};
use tidegate_registry::run::Run;
use tidegate_registry::store::{CheckFilter, CheckRow, Record, Result, Snapshot, SnapshotView, StoreError};
use tidegate_registry::time::{Instant, Interval};

use crate::codec::{internal, json, limit_or_all, micros, number, number_option};
use crate::db::{Conn, Db, on};
use crate::sql::{Arg, Builder, Row, query};

/// Live is a snapshot when for each of its views it holds the newest interval, as published last.
macro_rules! snapshot_columns {
    () => {
        "SELECT s.id, s.run, s.dag, s.interval_start, s.interval_end, s.created_at, s.number, s.expired_at, CASE WHEN EXISTS (\
         SELECT 1 FROM snapshot_views AS v \
         LEFT JOIN ledger AS l ON l.view = v.view AND l.interval_end = s.interval_end \
         AND l.interval_start = s.interval_start AND l.snapshot = s.id \
         LEFT JOIN view_states AS n ON n.view = v.view AND n.newest_end = s.interval_end \
         AND n.newest_start = s.interval_start \
         WHERE v.snapshot = s.id AND (l.view IS NULL OR n.view IS NULL)) THEN CAST(1 AS BIGINT) ELSE 0 END AS superseded, \
         CASE WHEN EXISTS (SELECT 1 FROM restores AS r WHERE r.run = s.run) THEN CAST(1 AS BIGINT) ELSE 0 END AS restores, \
         CASE WHEN EXISTS (SELECT 1 FROM snapshot_views AS v JOIN snapshot_views AS w ON w.view = v.view \
         JOIN snapshots AS t ON t.id = w.snapshot WHERE v.snapshot = s.id AND t.number > s.number) \
         THEN CAST(1 AS BIGINT) ELSE 0 END AS followed, \
         CASE WHEN EXISTS (SELECT 1 FROM ledger_log AS g JOIN snapshots AS u ON u.number = g.until \
         JOIN restores AS r ON r.run = u.run WHERE g.snapshot = s.id AND NOT EXISTS (SELECT 1 FROM ledger_log AS a \
         WHERE a.view = g.view AND a.snapshot = g.snapshot AND a.until IS NULL)) \
         THEN CAST(1 AS BIGINT) ELSE 0 END AS restored_away, \
         (SELECT r.overriding FROM runs AS r WHERE r.id = s.run) AS overriding \
         FROM snapshots AS s "
    };
}

/// Views in one statement.
const VIEWS_MAX: usize = 500;

/// # Errors
/// [`StoreError::Conflict`] when the id is taken by another run.
pub(crate) async fn insert_in_tx(tx: &mut Conn, run: &Run, record: &Record, now: Instant) -> Result<u64> {
    let doing = "recording a snapshot";
    let id = record.snapshot.to_string();
    let number_given = insert_head_in_tx(tx, run, record.snapshot, now).await?;
    let mut rows = Vec::with_capacity(run.views.len());
    for (position, view) in (0_i64..).zip(&run.views) {
        let Some(what) = record.views.get(view) else { continue };
        rows.push([
            Arg::from(&id),
            position.into(),
            view.to_string().into(),
            (&what.fingerprint).into(),
            number(what.delta_version)?.into(),
            number(what.publish_number)?.into(),
            number(what.rows)?.into(),
            (&what.digest).into(),
            number_option(what.online_generation)?.into(),
            json(&what.profile)?.into(),
            json(&what.summary)?.into(),
            number(what.quarantined)?.into(),
            number_option(what.quarantine_version)?.into(),
        ]);
    }
    for rows in rows.chunks(VIEWS_MAX) {
        let mut insert = Builder::new(
            "INSERT INTO snapshot_views (snapshot, position, view, fingerprint, delta_version, publish_number, rows, \
             digest, online_generation, profile, summary, quarantined, quarantine_version) VALUES ",
        );
        insert.push_rows(rows.iter().cloned());
        insert.build().execute(&mut *tx).await.map_err(on(doing))?;
    }
    query(
        "UPDATE snapshot_views SET quarantine_version = (SELECT n.quarantine_version FROM view_states AS n \
         WHERE n.view = snapshot_views.view) WHERE snapshot = $1 AND quarantine_version IS NULL",
    )
    .bind(&id)
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    Ok(number_given)
}

/// A snapshot without its views; the number that it got.
pub(crate) async fn insert_head_in_tx(tx: &mut Conn, run: &Run, id: SnapshotId, now: Instant) -> Result<u64> {
    let doing = "recording a snapshot";
    // For the number.
    tx.line_up("tidegate snapshots").await?;
    query(
        "INSERT INTO snapshots (id, run, dag, interval_start, interval_end, created_at, number) \
         VALUES ($1, $2, $3, $4, $5, $6, (SELECT coalesce(max(number), 0) + 1 FROM snapshots))",
    )
    .bind(id.to_string())
    .bind(run.id.to_string())
    .bind(run.dag.as_str())
    .bind(micros(run.interval.start()))
    .bind(micros(run.interval.end()))
    .bind(micros(now))
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    let row = query("SELECT number FROM snapshots WHERE id = $1").bind(id.to_string()).fetch_one(tx).await;
    row.map_err(on(doing))?.count("number")
}

pub(crate) async fn list(db: &Db, dag: Option<&DagName>, view: Option<&ViewId>, limit: u32) -> Result<Vec<Snapshot>> {
    let mut query = Builder::new(snapshot_columns!());
    query.push("WHERE 1 = 1");
    if let Some(dag) = dag {
        query.push(" AND s.dag = ").push_bind(dag.as_str());
    }
    if let Some(view) = view {
        query
            .push(" AND s.id IN (SELECT snapshot FROM snapshot_views WHERE view = ")
            .push_bind(view.to_string())
            .push(")");
    }
    query.push(" ORDER BY s.number DESC LIMIT ").push_bind(limit_or_all(limit));
    let mut tx = db.read().await?;
    let rows = query.build().fetch_all(&mut tx).await.map_err(on("listing snapshots"))?;
    let mut snapshots = Vec::with_capacity(rows.len());
    for row in &rows {
        snapshots.push(snapshot_from(&mut tx, row).await?);
    }
    Ok(snapshots)
}

pub(crate) async fn get(db: &Db, id: SnapshotId) -> Result<Snapshot> {
    let mut tx = db.read().await?;
    let row = query(concat!(snapshot_columns!(), "WHERE s.id = $1"))
        .bind(id.to_string())
        .fetch_optional(&mut tx)
        .await
        .map_err(on("reading a snapshot"))?
        .ok_or_else(|| StoreError::NotFound { what: "snapshot", name: id.to_string() })?;
    snapshot_from(&mut tx, &row).await
}

async fn snapshot_from(tx: &mut Conn, row: &Row) -> Result<Snapshot> {
    let views = query(
        "SELECT view, fingerprint, delta_version, publish_number, rows, digest, online_generation, quarantined, \
         quarantine_version, newest_start, newest_end FROM snapshot_views WHERE snapshot = $1 ORDER BY position",
    )
    .bind(row.get_as::<&str>("id")?)
    .fetch_all(tx)
    .await
    .map_err(on("reading the views of a snapshot"))?;
    Ok(Snapshot {
        id: row.parse("id")?,
        dag: row.parse("dag")?,
        run: row.parse("run")?,
        interval: row.interval()?,
        created_at: row.instant("created_at")?,
        number: row.count("number")?,
        status: status(row)?.to_owned(),
        views: views.iter().map(|view| snapshot_view_from(row, view)).collect::<Result<_>>()?,
        decision: row.json_option("overriding")?,
    })
}

fn status(row: &Row) -> Result<&'static str> {
    let is = |column| row.get_as::<bool>(column);
    let superseded = if is("restores")? { is("followed")? } else { is("superseded")? };
    Ok(match row.instant_option("expired_at")? {
        Some(_) => "expired",
        None if is("restored_away")? => "restored_away",
        None if superseded => "superseded",
        None => "live",
    })
}

fn snapshot_view_from(snapshot: &Row, row: &Row) -> Result<SnapshotView> {
    let newest = match (row.instant_option("newest_start")?, row.instant_option("newest_end")?) {
        (Some(start), Some(end)) => {
            Some(Interval::new(start, end).map_err(|error| internal("reading an interval", error))?)
        }
        _ if snapshot.get_as::<bool>("restores")? => None,
        _ => Some(snapshot.interval()?),
    };
    Ok(SnapshotView {
        view: row.parse("view")?,
        fingerprint: row.get_as("fingerprint")?,
        delta_version: row.count("delta_version")?,
        publish_number: row.count("publish_number")?,
        rows: row.count("rows")?,
        digest: row.get_as("digest")?,
        online_generation: row.count_option("online_generation")?,
        quarantined: row.count("quarantined")?,
        quarantine_version: row.count_option("quarantine_version")?,
        interval: newest,
    })
}

pub(crate) async fn checks(db: &Db, filter: &CheckFilter) -> Result<Vec<CheckRow>> {
    let mut query = Builder::new(
        "SELECT c.run, c.view, c.result, r.dag, r.interval_start, r.interval_end \
         FROM checks AS c JOIN runs AS r ON r.id = c.run WHERE 1 = 1",
    );
    if let Some(view) = &filter.view {
        query.push(" AND c.view = ").push_bind(view.to_string());
    }
    if let Some(run) = filter.run {
        query.push(" AND c.run = ").push_bind(run.to_string());
    }
    if let Some(verdict) = filter.verdict {
        query.push(" AND c.verdict = ").push_bind(verdict.as_str());
    }
    // Ids of runs grow with time.
    query.push(" ORDER BY c.run DESC, c.seq, c.position LIMIT ").push_bind(limit_or_all(filter.limit));
    let mut tx = db.read().await?;
    let rows = query.build().fetch_all(&mut tx).await.map_err(on("listing verdicts"))?;
    rows.iter()
        .map(|row| {
            Ok(CheckRow {
                run: row.parse("run")?,
                dag: row.parse("dag")?,
                interval: row.interval()?,
                view: row.parse("view")?,
                result: row.json("result")?,
            })
        })
        .collect()
}
