//! Making a registry say what the lake holds: see [`tidegate_registry::care::Care::rebuild`].
//!
//! Everything is one transaction, so a registry is never half rebuilt. What is already so is left as it is; a run that
//! the registry knows keeps its row and ends as succeeded, since its publication landed.

use std::collections::BTreeMap;

use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::care::{FoundInterval, FoundRestore, FoundRun, Rebuild, ViewRebuild};
use tidegate_registry::ids::{BackfillId, DagName, RunId, ViewId};
use tidegate_registry::run::{Cause, RunState};
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::{Instant, Interval};

use crate::codec::{json as to_json, micros, number, number_option};
use crate::db::{Conn, Db, commit, on};
use crate::sql::{db_now, query};
use crate::{audit, creation, definitions, moves, restoring, runs};

/// What is stored as a DAG's planning mark so that the next planning compares its whole history.
const REBUILT: &str = "rebuilt";

pub(super) async fn rebuild(db: &Db, request: &Rebuild, now: Instant) -> Result<()> {
    let mut tx = db.write_alone().await?;
    // New numbers, here and where runs are recorded.
    tx.line_up("tidegate snapshots").await?;
    let definitions = definitions::revision_in_tx(&mut tx).await?;
    for run in &request.overtaken {
        if runs::get_in_tx(&mut tx, *run).await?.state.is_open() {
            let reason = "a later publication that the lake holds overtook it";
            moves::run_end(&mut tx, *run, RunState::Superseded, reason, now).await?;
        }
    }
    // In the order in which they landed, so that numbers of snapshots follow it.
    let mut found: Vec<(&RunId, &FoundRun)> = request.runs.iter().collect();
    found.sort_by_key(|(id, run)| (run.committed_at, **id));
    for (id, run) in found {
        run_ensure(&mut tx, *id, run, definitions, now).await?;
        snapshot_ensure(&mut tx, *id, run, request, now).await?;
        if let Some(restore) = &run.restore {
            restore_ensure(&mut tx, *id, restore, now).await?;
        }
    }
    for (view, what) in &request.views {
        view_rebuild(&mut tx, view, what).await?;
        log_rebuild(&mut tx, view, what).await?;
        restoring::ledger_follow_in_tx(&mut tx, view).await?;
    }
    for (dag, ticks) in &request.ticks {
        ticks_ensure(&mut tx, dag, ticks, now).await?;
    }
    let views: BTreeMap<&ViewId, serde_json::Value> = request
        .views
        .iter()
        .map(|(view, what)| {
            let detail = json!({
                "publish_number": what.publish_number,
                "delta_version": what.delta_version,
                "lost": what.lost,
            });
            (view, detail)
        })
        .collect();
    let event = NewAuditEvent::new(now, &request.actor, "registry_rebuild", "registry")
        .with(json!({ "views": views, "overtaken": request.overtaken }));
    audit::add_in_tx(&mut tx, &event).await?;
    commit(tx).await
}

/// Makes the run exist and be succeeded.
async fn run_ensure(tx: &mut Conn, id: RunId, run: &FoundRun, definitions: i64, now: Instant) -> Result<()> {
    match runs::get_in_tx(tx, id).await {
        Ok(known) if known.state == RunState::Succeeded => return Ok(()),
        Ok(_) => {
            moves::run_end(tx, id, RunState::Succeeded, "", now).await?;
            return Ok(());
        }
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    let doing = "storing a run that the lake tells of";
    // A cause that the lake no longer tells must not look like the schedule's own run.
    let cause = run.cause.clone().unwrap_or(Cause::Backfill(BackfillId(id.0)));
    let twins = query(
        "SELECT id, state FROM runs WHERE dag = $1 AND interval_start = $2 AND interval_end = $3 AND views_key = $4 \
         AND cause = $5",
    )
    .bind(run.dag.as_str())
    .bind(micros(run.interval.start()))
    .bind(micros(run.interval.end()))
    .bind(creation::views_key(&run.views))
    .bind(cause.to_string())
    .fetch_all(&mut *tx)
    .await
    .map_err(on(doing))?;
    for twin in &twins {
        // Planned a second time by a registry that had forgotten this one: doing it would double the work.
        if matches!(twin.parse::<RunState>("state")?, RunState::Waiting | RunState::Queued | RunState::Running) {
            let reason = format!("run {id}, which the lake tells of, has published this interval");
            moves::run_end(tx, twin.parse("id")?, RunState::Cancelled, &reason, now).await?;
        }
    }
    let row = query(
        "SELECT max(revision) AS newest, count(CASE WHEN revision = $4 THEN 1 END) AS taken FROM runs \
         WHERE dag = $1 AND interval_start = $2 AND interval_end = $3",
    )
    .bind(run.dag.as_str())
    .bind(micros(run.interval.start()))
    .bind(micros(run.interval.end()))
    .bind(i64::from(run.revision))
    .fetch_one(&mut *tx)
    .await
    .map_err(on(doing))?;
    let taken = row.get_as::<i64>("taken")? != 0;
    let newest: Option<i64> = row.get_as("newest")?;
    let revision = if taken { newest.unwrap_or(-1) + 1 } else { i64::from(run.revision) };
    query(
        "INSERT INTO runs (id, dag, interval_start, interval_end, views, views_key, cause, retry, definitions, \
         revision, attempts_max, state, reason, created_at, started_at, finished_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, $11, $12, $13, $13, $13)",
    )
    .bind(id.to_string())
    .bind(run.dag.as_str())
    .bind(micros(run.interval.start()))
    .bind(micros(run.interval.end()))
    .bind(to_json(&run.views)?)
    .bind(creation::views_key(&run.views))
    .bind(cause.to_string())
    // Only one run of a kind has 0 here. Revisions differ, and 0 is no retry's.
    .bind(if twins.is_empty() { 0 } else { revision.max(1) })
    .bind(definitions)
    .bind(revision)
    .bind(RunState::Succeeded.as_str())
    .bind("found in the lake")
    .bind(micros(now))
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    Ok(())
}

/// Makes the snapshot of a run exist, with those of its views that were found.
async fn snapshot_ensure(tx: &mut Conn, id: RunId, run: &FoundRun, request: &Rebuild, now: Instant) -> Result<()> {
    let doing = "storing a snapshot that the lake tells of";
    let known = query("SELECT 1 FROM snapshots WHERE run = $1")
        .bind(id.to_string())
        .fetch_optional(&mut *tx)
        .await
        .map_err(on(doing))?;
    if known.is_some() {
        return Ok(());
    }
    let views: Vec<(&ViewId, &FoundInterval, &ViewRebuild)> = run
        .views
        .iter()
        .filter_map(|view| {
            let what = request.views.get(view)?;
            let found = what.found.iter().rev().find(|found| found.run == id)?;
            Some((view, found, what))
        })
        .collect();
    query(
        "INSERT INTO snapshots (id, run, dag, interval_start, interval_end, created_at, number, expired_at) \
         VALUES ($1, $1, $2, $3, $4, $5, (SELECT coalesce(max(number), 0) + 1 FROM snapshots), $6)",
    )
    .bind(id.to_string())
    .bind(run.dag.as_str())
    .bind(micros(run.interval.start()))
    .bind(micros(run.interval.end()))
    .bind(micros(now))
    .bind((!run.restorable).then(|| micros(now)))
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    if let Some(restore) = &run.restore {
        return restored_views(tx, id, restore, request).await;
    }
    for (position, (view, found, what)) in (0_i64..).zip(views) {
        let generation = what.online_generation.filter(|live| *live == found.publish_number);
        query(
            "INSERT INTO snapshot_views (snapshot, position, view, fingerprint, delta_version, publish_number, rows, \
             digest, online_generation, profile, quarantined, quarantine_version) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, '{}', $10, $11)",
        )
        .bind(id.to_string())
        .bind(position)
        .bind(view.to_string())
        .bind(&found.fingerprint)
        .bind(number(found.delta_version)?)
        .bind(number(found.publish_number)?)
        .bind(number(found.rows)?)
        .bind(&found.digest)
        .bind(number_option(generation)?)
        .bind(number(found.quarantined)?)
        .bind(number_option(found.quarantine_version)?)
        .execute(&mut *tx)
        .await
        .map_err(on(doing))?;
    }
    Ok(())
}

/// What a restore made of each view: the newest interval afterwards, or nothing.
async fn restored_views(tx: &mut Conn, id: RunId, restore: &FoundRestore, request: &Rebuild) -> Result<()> {
    for (position, (view, what)) in (0_i64..).zip(&restore.plan.views) {
        let (Some(landed), Some(of)) = (restore.landed.get(view), request.views.get(view)) else {
            continue;
        };
        let newest = what.newest.as_ref();
        let generation = of.online_generation.filter(|live| *live == landed.publish_number);
        query(
            "INSERT INTO snapshot_views (snapshot, position, view, fingerprint, delta_version, publish_number, rows, \
             digest, online_generation, profile, newest_start, newest_end, quarantine_version) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, '{}', $10, $11, $12)",
        )
        .bind(id.to_string())
        .bind(position)
        .bind(view.to_string())
        .bind(&what.fingerprint)
        .bind(number(landed.delta_version)?)
        .bind(number(landed.publish_number)?)
        .bind(number(newest.map_or(0, |slice| slice.rows))?)
        .bind(newest.map_or("0".repeat(32), |slice| slice.digest.clone()))
        .bind(number_option(generation)?)
        .bind(newest.map(|slice| micros(slice.interval.start())))
        .bind(newest.map(|slice| micros(slice.interval.end())))
        .bind(number_option(landed.quarantine_version)?)
        .execute(&mut *tx)
        .await
        .map_err(on("storing a snapshot that the lake tells of"))?;
    }
    Ok(())
}

/// Makes the restore exist, as recorded.
async fn restore_ensure(tx: &mut Conn, id: RunId, restore: &FoundRestore, now: Instant) -> Result<()> {
    let at = restore.begun_at.unwrap_or(now);
    query(concat!(
        "INSERT INTO restores (run, plan, actor, reason, begun_at, recorded_at, begun_real) \
         VALUES ($1, $2, $3, $4, $5, $5, ",
        db_now!(),
        ") ON CONFLICT (run) DO NOTHING"
    ))
    .bind(id.to_string())
    .bind(to_json(&restore.plan)?)
    .bind(&restore.actor)
    .bind(&restore.reason)
    .bind(micros(at))
    .execute(tx)
    .await
    .map_err(on("storing a restore that the lake tells of"))?;
    Ok(())
}

async fn view_rebuild(tx: &mut Conn, view: &ViewId, what: &ViewRebuild) -> Result<()> {
    let doing = "making a view say what the lake holds";
    if what.table_lost {
        query(
            "DELETE FROM snapshot_views WHERE view = $1 \
             AND snapshot IN (SELECT id FROM snapshots WHERE expired_at IS NULL)",
        )
        .bind(view.to_string())
        .execute(&mut *tx)
        .await
        .map_err(on(doing))?;
    }
    for found in &what.found {
        query(
            "INSERT INTO ledger (view, interval_end, interval_start, run, snapshot, rows, digest) \
             SELECT $1, $2, $3, $4, s.id, $5, $6 FROM snapshots AS s WHERE s.run = $4 \
             ON CONFLICT (view, interval_end, interval_start) DO UPDATE SET run = excluded.run, \
             snapshot = excluded.snapshot, rows = excluded.rows, digest = excluded.digest",
        )
        .bind(view.to_string())
        .bind(micros(found.interval.end()))
        .bind(micros(found.interval.start()))
        .bind(found.run.to_string())
        .bind(number(found.rows)?)
        .bind(&found.digest)
        .execute(&mut *tx)
        .await
        .map_err(on(doing))?;
    }
    for lost in &what.lost {
        query("DELETE FROM ledger WHERE view = $1 AND interval_end = $2 AND interval_start = $3")
            .bind(view.to_string())
            .bind(micros(lost.end()))
            .bind(micros(lost.start()))
            .execute(&mut *tx)
            .await
            .map_err(on(doing))?;
    }
    // The greater of two, spelled so that both databases know it.
    let done = query(
        "UPDATE view_states SET \
         publish_number = CASE WHEN publish_number > $1 THEN publish_number ELSE $1 END, \
         recorded_number = CASE WHEN recorded_number > $2 THEN recorded_number ELSE $2 END, \
         delta_version = $3, online_generation = $4, quarantine_version = $6, records = records + 1, \
         newest_end = (SELECT max(l.interval_end) FROM ledger AS l WHERE l.view = view_states.view), \
         newest_start = (SELECT max(l.interval_start) FROM ledger AS l WHERE l.view = view_states.view \
         AND l.interval_end = (SELECT max(m.interval_end) FROM ledger AS m WHERE m.view = view_states.view)) \
         WHERE view = $5",
    )
    .bind(number(what.publish_number)?)
    .bind(number(what.recorded_number)?)
    .bind(number(what.delta_version)?)
    .bind(number_option(what.online_generation)?)
    .bind(view.to_string())
    .bind(number_option(what.quarantine_version)?)
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    if done == 0 {
        return Err(StoreError::NotFound { what: "feature view", name: view.to_string() });
    }
    Ok(())
}

/// Notes what the ledger of a view was when: each interval since the snapshot of whatever brought it there, until the next
/// one replaced it or took it out.
async fn log_rebuild(tx: &mut Conn, view: &ViewId, what: &ViewRebuild) -> Result<()> {
    let doing = "noting what the ledger was";
    let mut changes: BTreeMap<Interval, BTreeMap<i64, Option<&FoundInterval>>> = BTreeMap::new();
    for (interval, restore) in &what.left {
        if let Some(at) = number_of(tx, *restore).await? {
            changes.entry(*interval).or_default().insert(at, None);
        }
    }
    for found in &what.found {
        if let Some(at) = number_of(tx, found.by).await? {
            let of = changes.entry(found.interval).or_default();
            // A restore notes the newest interval, whether or not it came back by it.
            let before = of.range(..at).next_back().and_then(|(_, before)| *before);
            if of.contains_key(&at) || before.is_none_or(|before| before.run != found.run) {
                of.insert(at, Some(found));
            }
        }
    }
    for (interval, changes) in &changes {
        let ends = changes.keys().skip(1).copied().map(Some).chain([None]);
        for ((since, found), until) in changes.iter().zip(ends) {
            let Some(found) = found else { continue };
            query(
                "INSERT INTO ledger_log (view, interval_end, interval_start, since, until, run, snapshot, rows, digest) \
                 SELECT $1, $2, $3, $4, $5, $6, s.id, $7, $8 FROM snapshots AS s WHERE s.run = $6 \
                 ON CONFLICT (view, interval_end, interval_start, since) DO UPDATE SET until = excluded.until, \
                 run = excluded.run, snapshot = excluded.snapshot, rows = excluded.rows, digest = excluded.digest",
            )
            .bind(view.to_string())
            .bind(micros(interval.end()))
            .bind(micros(interval.start()))
            .bind(*since)
            .bind(until)
            .bind(found.run.to_string())
            .bind(number(found.rows)?)
            .bind(&found.digest)
            .execute(&mut *tx)
            .await
            .map_err(on(doing))?;
        }
    }
    Ok(())
}

/// The number of the snapshot that a run left.
async fn number_of(tx: &mut Conn, run: RunId) -> Result<Option<i64>> {
    let row = query("SELECT number FROM snapshots WHERE run = $1")
        .bind(run.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("looking for a snapshot"))?;
    row.map(|row| row.get_as("number")).transpose()
}

/// Stores the ticks that are after the last stored one, and has the DAG's history looked at as a whole.
async fn ticks_ensure(tx: &mut Conn, dag: &DagName, ticks: &[Instant], now: Instant) -> Result<()> {
    let doing = "storing the ticks that the lake tells of";
    let row = query("SELECT planned_until FROM dags WHERE dag = $1")
        .bind(dag.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(on(doing))?
        .ok_or_else(|| StoreError::NotFound { what: "DAG", name: dag.to_string() })?;
    let planned = row.instant_option("planned_until")?;
    let new: Vec<Instant> =
        ticks.iter().copied().filter(|tick| planned.is_none_or(|planned| *tick > planned)).collect();
    for tick in &new {
        query("INSERT INTO ticks (dag, at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(dag.as_str())
            .bind(micros(*tick))
            .execute(&mut *tx)
            .await
            .map_err(on(doing))?;
    }
    let until = new.last().copied().or(planned);
    query("UPDATE dags SET planned_until = $1, due_at = $2, schedule_fingerprint = $3 WHERE dag = $4")
        .bind(until.map(micros))
        .bind(micros(now))
        .bind(REBUILT)
        .bind(dag.as_str())
        .execute(&mut *tx)
        .await
        .map_err(on(doing))?;
    Ok(())
}
