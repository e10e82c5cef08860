//! Restores: deciding one, recording one, and what was when.
//!
//! `ledger_log` holds what the ledger held when, by numbers of snapshots: the ledger itself is what has no end there.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use indexmap::IndexMap;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{LeaseToken, RunId, SnapshotId, ViewId};
use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::restore::{
    AsOf, BadMark, HoldPolicy, Holds, OnlineAsOf, Restore, RestorePlan, RestoreRecord, RestoreRequest, RestoredView,
    Restoring, ResumeRequest, Slice, Validation, ViewRestore,
};
use tidegate_registry::run::{Cause, Intent, Pins, RunState, TaskKind, TaskOutput, TaskState, ViewIntent};
use tidegate_registry::store::{Change, Result, StoreError};
use tidegate_registry::time::Instant;

use crate::SqlStore;
use crate::codec::{self, limit_or_all, micros, number, number_option};
use crate::creation::{Creation, views_key};
use crate::db::postgres::{BULK_MAX, CALL_MAX};
use crate::db::{Conn, Db, commit, on};
use crate::moves;
use crate::publishing;
use crate::sql::{Arg, Builder, Row, db_now, query};
use crate::{audit, care, holds, notices, runs};

/// Rows in one statement.
const ROWS_MAX: usize = 500;

// --- what was when ---------------------------------------------------------------------------------------------------

pub(crate) async fn snapshot_number(db: &Db, id: SnapshotId) -> Result<u64> {
    let mut tx = db.read().await?;
    let row = query("SELECT number FROM snapshots WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&mut tx)
        .await
        .map_err(on("looking for a snapshot"))?
        .ok_or_else(|| StoreError::NotFound { what: "snapshot", name: id.to_string() })?;
    row.count("number")
}

pub(crate) async fn number_at(db: &Db, at: Instant) -> Result<u64> {
    let mut tx = db.read().await?;
    let row = query("SELECT coalesce(max(number), 0) AS number FROM snapshots WHERE created_at <= $1")
        .bind(micros(at))
        .fetch_one(&mut tx)
        .await
        .map_err(on("looking for what was recorded by then"))?;
    row.count("number")
}

pub(crate) async fn as_of(db: &Db, view: &ViewId, at: u64) -> Result<AsOf> {
    let mut tx = db.read_together().await?;
    let known = query(
        "SELECT s.id, s.expired_at, v.delta_version, v.quarantine_version FROM snapshot_views AS v \
         JOIN snapshots AS s ON s.id = v.snapshot WHERE v.view = $1 AND s.number <= $2 ORDER BY s.number DESC LIMIT 1",
    )
    .bind(view.to_string())
    .bind(number(at)?)
    .fetch_optional(&mut tx)
    .await
    .map_err(on("reading what a view was"))?;
    let online = query(
        "SELECT v.online_generation FROM snapshot_views AS v JOIN snapshots AS s ON s.id = v.snapshot \
         WHERE v.view = $1 AND s.number <= $2 AND v.online_generation IS NOT NULL ORDER BY s.number DESC LIMIT 1",
    )
    .bind(view.to_string())
    .bind(number(at)?)
    .fetch_optional(&mut tx)
    .await
    .map_err(on("reading what a view was online"))?;
    let online = match online.map(|row| row.count::<u64>("online_generation")).transpose()? {
        Some(generation) => written_in_tx(&mut tx, view, generation, at).await?,
        None => None,
    };
    let rows = query(
        "SELECT interval_start, interval_end, run, snapshot, rows, digest FROM ledger_log \
         WHERE view = $1 AND since <= $2 AND (until IS NULL OR until > $2) ORDER BY interval_end DESC, interval_start DESC",
    )
    .bind(view.to_string())
    .bind(number(at)?)
    .fetch_all(&mut tx)
    .await
    .map_err(on("reading what a ledger was"))?;
    let ledger = rows.iter().map(publishing::ledger_entry).collect::<Result<_>>()?;
    commit(tx).await?;
    Ok(AsOf {
        snapshot: known.as_ref().map(|row| row.parse("id")).transpose()?,
        expired: known.as_ref().map(|row| row.instant_option("expired_at")).transpose()?.flatten().is_some(),
        delta_version: known.as_ref().map(|row| row.count("delta_version")).transpose()?,
        quarantine_version: known.as_ref().map(|row| row.count_option("quarantine_version")).transpose()?.flatten(),
        online,
        ledger,
    })
}

/// Who wrote the rows of a generation last, up to the snapshot numbered `at`. One that was made live as it was has the
/// content of whoever wrote it.
async fn written_in_tx(tx: &mut Conn, view: &ViewId, generation: u64, at: u64) -> Result<Option<OnlineAsOf>> {
    let row = query(
        "SELECT v.publish_number, v.snapshot FROM snapshot_views AS v JOIN snapshots AS s ON s.id = v.snapshot \
         WHERE v.view = $1 AND v.online_generation = $2 AND v.flipped = 0 AND s.number <= $3 \
         ORDER BY s.number DESC LIMIT 1",
    )
    .bind(view.to_string())
    .bind(number(generation)?)
    .bind(number(at)?)
    .fetch_optional(tx)
    .await
    .map_err(on("reading who wrote a generation"))?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(OnlineAsOf { generation, written: row.count("publish_number")?, snapshot: row.parse("snapshot")? }))
}

pub(crate) async fn generation_written(db: &Db, view: &ViewId, generation: u64) -> Result<Option<u64>> {
    let mut tx = db.read().await?;
    let written = written_in_tx(&mut tx, view, generation, i64::MAX as u64).await?;
    Ok(written.map(|written| written.written))
}

pub(crate) async fn reads_of(db: &Db, run: RunId) -> Result<Option<Pins>> {
    let mut tx = db.read().await?;
    let row = query("SELECT pins FROM manifests WHERE run = $1")
        .bind(run.to_string())
        .fetch_optional(&mut tx)
        .await
        .map_err(on("reading what a run read"))?;
    row.map(|row| row.json("pins")).transpose()
}

pub(crate) async fn good_numbers(db: &Db, views: &[ViewId], limit: u32) -> Result<Vec<(u64, SnapshotId)>> {
    let names = || views.iter().map(ToString::to_string);
    // What the views are now was recorded last by a snapshot that still has something in the ledger.
    let mut good = Builder::new(
        "SELECT s.number, s.id FROM snapshots AS s WHERE s.expired_at IS NULL \
         AND NOT EXISTS (SELECT 1 FROM restores AS r WHERE r.run = s.run) \
         AND NOT EXISTS (SELECT 1 FROM bad_snapshots AS b WHERE b.snapshot = s.id) \
         AND EXISTS (SELECT 1 FROM snapshot_views AS v WHERE v.snapshot = s.id AND v.view IN ",
    );
    good.push_list(names());
    good.push(
        ") AND NOT EXISTS (SELECT 1 FROM ledger_log AS g JOIN snapshots AS u ON u.number = g.until \
         JOIN restores AS r ON r.run = u.run WHERE g.snapshot = s.id AND g.view IN ",
    );
    good.push_list(names());
    good.push(
        " AND NOT EXISTS (SELECT 1 FROM ledger_log AS again WHERE again.view = g.view AND again.snapshot = g.snapshot \
         AND again.until IS NULL)) AND s.number < (SELECT max(n.number) FROM ledger_log AS l \
         JOIN snapshots AS n ON n.id = l.snapshot WHERE l.until IS NULL AND l.view IN ",
    );
    good.push_list(names());
    good.push(") ORDER BY s.number DESC LIMIT ").push_bind(limit_or_all(limit));
    let mut tx = db.read().await?;
    let rows = good.build().fetch_all(&mut tx).await.map_err(on("looking for snapshots to go back to"))?;
    rows.iter().map(|row| Ok((row.count("number")?, row.parse("id")?))).collect()
}

/// Notes the intervals that a run has published, under the number of its snapshot.
pub(crate) async fn ledger_log_in_tx(tx: &mut Conn, rows: &[[Arg; 7]], at: u64) -> Result<()> {
    let doing = "noting what the ledger was";
    for rows in rows.chunks(ROWS_MAX) {
        let mut end = Builder::new("UPDATE ledger_log SET until = ");
        end.push_bind(number(at)?).push(" FROM (VALUES ");
        end.push_rows(rows.iter().map(|[view, end, start, ..]| [view.clone(), end.clone(), start.clone()]));
        end.push(
            ") AS done WHERE ledger_log.until IS NULL AND ledger_log.view = done.column1 \
             AND ledger_log.interval_end = done.column2 AND ledger_log.interval_start = done.column3",
        );
        end.build().execute(&mut *tx).await.map_err(on(doing))?;
        let mut begin = Builder::new(
            "INSERT INTO ledger_log (since, view, interval_end, interval_start, run, snapshot, rows, digest) VALUES ",
        );
        let mut noted = Vec::with_capacity(rows.len());
        for [view, end, start, run, snapshot, count, digest] in rows.iter().cloned() {
            noted.push([Arg::from(number(at)?), view, end, start, run, snapshot, count, digest]);
        }
        begin.push_rows(noted);
        begin.build().execute(&mut *tx).await.map_err(on(doing))?;
    }
    Ok(())
}

/// Makes `ledger_log` follow a ledger of `view` that was changed as a whole, under the number of the newest snapshot.
pub(crate) async fn ledger_follow_in_tx(tx: &mut Conn, view: &ViewId) -> Result<()> {
    let doing = "noting what the ledger was";
    query(
        "UPDATE ledger_log SET until = (SELECT coalesce(max(number), 0) FROM snapshots) \
         WHERE view = $1 AND until IS NULL AND NOT EXISTS (SELECT 1 FROM ledger AS l WHERE l.view = ledger_log.view \
         AND l.interval_end = ledger_log.interval_end AND l.interval_start = ledger_log.interval_start \
         AND l.snapshot = ledger_log.snapshot AND l.digest = ledger_log.digest)",
    )
    .bind(view.to_string())
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    query(
        "INSERT INTO ledger_log (view, interval_end, interval_start, since, run, snapshot, rows, digest) \
         SELECT l.view, l.interval_end, l.interval_start, (SELECT coalesce(max(number), 0) FROM snapshots), \
         l.run, l.snapshot, l.rows, l.digest FROM ledger AS l WHERE l.view = $1 AND NOT EXISTS (\
         SELECT 1 FROM ledger_log AS g WHERE g.view = l.view AND g.interval_end = l.interval_end \
         AND g.interval_start = l.interval_start AND g.until IS NULL) \
         ON CONFLICT (view, interval_end, interval_start, since) DO UPDATE SET until = NULL, run = excluded.run, \
         snapshot = excluded.snapshot, rows = excluded.rows, digest = excluded.digest",
    )
    .bind(view.to_string())
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    Ok(())
}

// --- deciding --------------------------------------------------------------------------------------------------------

pub(crate) async fn begin(db: &Db, request: &RestoreRequest) -> Result<()> {
    let mut tx = db.write_alone().await?;
    // From here on nothing expires that this one goes back to.
    tx.line_up(care::RETENTION_LINE).await?;
    let exists = query("SELECT 1 FROM restores WHERE run = $1")
        .bind(request.id.to_string())
        .fetch_optional(&mut tx)
        .await
        .map_err(on("looking for a restore"))?;
    if exists.is_some() {
        return commit(tx).await;
    }
    end_runs(&mut tx, request).await?;
    let views: Vec<ViewId> = request.plan.views.keys().cloned().collect();
    let states = publishing::lock_views(&mut tx, &views).await?;
    let mut intent = Intent { run: request.id, views: IndexMap::new() };
    for view in &views {
        let state = &publishing::known(&states, view)?.state;
        if let Some(other) = state.publishing {
            return Err(StoreError::Conflict(format!("the run `{other}` has begun to publish `{view}`")));
        }
        if request.records.get(view) != Some(&state.records) {
            return Err(StoreError::Conflict(format!("`{view}` was published since the restore was planned")));
        }
        let publish_number = state.publish_number + 1;
        intent.views.insert(view.clone(), ViewIntent { publish_number, online: true, checks: Vec::new() });
    }
    for (view, restore) in &request.plan.views {
        refuse_unless_kept(&mut tx, view, restore, publishing::known(&states, view)?.state.delta_version).await?;
    }
    insert_run(&mut tx, request, &views).await?;
    publishing::views_take(&mut tx, &intent).await?;
    publishing::intent_store(&mut tx, &intent, request.now).await?;
    insert_restore(&mut tx, request).await?;
    holds::place_in_tx(&mut tx, &holds::Placing::of(request)).await?;
    let names: Vec<String> = views.iter().map(ToString::to_string).collect();
    let message =
        format!("{} restores {} ({}): {}", request.actor, names.join(", "), request.plan.asked, request.reason);
    let notice = NewNotice::new(NoticeEvent::RestoreStarted, request.id.to_string(), request.now, message);
    notices::notify_in_tx(&mut tx, &notice.by(&request.actor).with(json!({ "views": names }))).await?;
    let detail = json!({
        "asked": request.plan.asked,
        "views": views,
        "holds": request.plan.holds,
        "superseded": request.supersedes,
        "stopped": request.stops.iter().map(|(run, _)| run).collect::<Vec<_>>(),
    });
    let event = NewAuditEvent::new(request.now, &request.actor, "restore_begin", request.id.to_string());
    audit::add_in_tx(&mut tx, &event.because(&request.reason).with(detail)).await?;
    tx.has_changed(Change::Tasks);
    tx.has_changed(Change::Runs);
    commit(tx).await
}

/// What a restore takes must be kept for somebody up to here: the janitor may have been since it was planned.
async fn refuse_unless_kept(tx: &mut Conn, view: &ViewId, restore: &ViewRestore, recorded: u64) -> Result<()> {
    for version in restore.table.versions().filter(|version| *version != recorded) {
        let kept = query(
            "SELECT 1 FROM snapshot_views AS v JOIN snapshots AS s ON s.id = v.snapshot \
             WHERE v.view = $1 AND v.delta_version = $2 AND s.expired_at IS NULL LIMIT 1",
        )
        .bind(view.to_string())
        .bind(number(version)?)
        .fetch_optional(&mut *tx)
        .await
        .map_err(on("looking for what a restore goes back to"))?;
        if kept.is_none() {
            let what = format!("version {version} of the table of `{view}` is no longer kept for anybody");
            return Err(StoreError::Conflict(what));
        }
    }
    Ok(())
}

/// The restores that are decided and not recorded.
pub(crate) async fn under_way_in_tx(tx: &mut Conn) -> Result<Vec<(RunId, RestorePlan)>> {
    let rows = query(
        "SELECT restores.run, restores.plan FROM restores JOIN runs ON runs.id = restores.run \
         WHERE runs.finished_at IS NULL ORDER BY restores.run",
    )
    .fetch_all(tx)
    .await
    .map_err(on("reading the restores under way"))?;
    rows.iter().map(|row| Ok((row.parse("run")?, row.json("plan")?))).collect()
}

/// The snapshots that restores under way go back to: whose versions they take, and whose intervals will be in the ledger.
pub(crate) async fn needed_in_tx(tx: &mut Conn) -> Result<BTreeSet<SnapshotId>> {
    let mut needed = BTreeSet::new();
    for (_, plan) in under_way_in_tx(tx).await? {
        for (view, restore) in &plan.views {
            needed.extend(restore.comes_back.iter().chain(&restore.newest).map(|slice| slice.snapshot));
            for version in restore.table.versions() {
                let rows = query("SELECT snapshot FROM snapshot_views WHERE view = $1 AND delta_version = $2")
                    .bind(view.to_string())
                    .bind(number(version)?)
                    .fetch_all(&mut *tx)
                    .await
                    .map_err(on("reading what a restore goes back to"))?;
                for row in &rows {
                    needed.insert(row.parse("snapshot")?);
                }
            }
        }
    }
    Ok(needed)
}

/// Ends every run that stands in the way, and creates those that take their places.
async fn end_runs(tx: &mut Conn, request: &RestoreRequest) -> Result<()> {
    let stops: HashMap<RunId, usize> = (0..).zip(&request.stops).map(|(at, (run, _))| (*run, at)).collect();
    let mut replaced = BTreeSet::new();
    // In the order of their ids, as everybody locks several runs.
    for run in runs::lock_open_in_tx(tx).await? {
        let touches = |view: &ViewId| request.affected.contains(view) || request.plan.views.contains_key(view);
        if !run.views.iter().any(touches) {
            continue;
        }
        let reason = format!("restore {} took back what it reads or writes", request.id);
        let has_intent = run.state == RunState::Publishing;
        if has_intent && run.views.iter().any(|view| request.plan.views.contains_key(view)) {
            if !request.supersedes.contains(&run.id) {
                return Err(StoreError::Conflict(format!("the run `{}` has taken its intent", run.id)));
            }
            moves::run_end(tx, run.id, RunState::Superseded, &reason, request.now).await?;
        } else if !has_intent && run.views.iter().any(|view| request.affected.contains(view)) {
            let Some(at) = stops.get(&run.id) else {
                return Err(StoreError::Conflict(format!("the run `{}` was planned", run.id)));
            };
            replaced.insert(*at);
            moves::run_end(tx, run.id, RunState::Superseded, &reason, request.now).await?;
        }
    }
    let anew = request.stops.iter().enumerate().filter(|(at, _)| replaced.contains(at));
    let anew: Vec<_> = anew.filter_map(|(_, (_, new))| new.as_ref()).collect();
    let mut creation = Creation::read(tx, &anew).await?;
    for run in anew {
        creation.refuse_unless_possible(run)?;
        creation.add(run);
    }
    creation.write(tx, request.now).await
}

async fn insert_run(tx: &mut Conn, request: &RestoreRequest, views: &[ViewId]) -> Result<()> {
    let doing = "creating the run of a restore";
    query(
        "INSERT INTO runs (id, dag, interval_start, interval_end, views, views_key, cause, retry, definitions, revision, \
         attempts_max, state, created_at, started_at, priority) VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, \
         (SELECT coalesce(max(revision), -1) + 1 FROM runs WHERE dag = $2 AND interval_start = $3 AND interval_end = $4), \
         1, $9, $10, $10, 100)",
    )
    .bind(request.id.to_string())
    .bind(request.dag.as_str())
    .bind(micros(request.interval.start()))
    .bind(micros(request.interval.end()))
    .bind(codec::json(views)?)
    .bind(views_key(views))
    .bind(Cause::Restore(request.id).to_string())
    .bind(request.definitions)
    .bind(RunState::Publishing.as_str())
    .bind(micros(request.now))
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    query(
        "INSERT INTO tasks (run, seq, kind, state, waits_for, attempts_max, interval_start, ready, begun, rank) \
         VALUES ($1, 0, $2, 'queued', '[]', 1, $3, 1, 1, 0)",
    )
    .bind(request.id.to_string())
    .bind(TaskKind::Restore.to_string())
    .bind(micros(request.interval.start()))
    .execute(&mut *tx)
    .await
    .map_err(on(doing))?;
    Ok(())
}

async fn insert_restore(tx: &mut Conn, request: &RestoreRequest) -> Result<()> {
    query(concat!(
        "INSERT INTO restores (run, plan, actor, reason, begun_at, begun_real) VALUES ($1, $2, $3, $4, $5, ",
        db_now!(),
        ")"
    ))
    .bind(request.id.to_string())
    .bind(codec::json(&request.plan)?)
    .bind(&request.actor)
    .bind(&request.reason)
    .bind(micros(request.now))
    .execute(tx)
    .await
    .map_err(on("storing a restore"))?;
    Ok(())
}

// --- recording -------------------------------------------------------------------------------------------------------

pub(crate) async fn record(db: &Db, token: LeaseToken, record: &RestoreRecord, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let task = moves::by_token(&mut tx, token).await?.ok_or(StoreError::LostLease)?;
    if task.kind != TaskKind::Restore {
        return Err(StoreError::Refused(format!("the task `{}` restores nothing", task.kind)));
    }
    if task.state == TaskState::Succeeded {
        return commit(tx).await;
    }
    if task.state != TaskState::Running {
        return Err(StoreError::LostLease);
    }
    let run = &task.run;
    let plan = get_in_tx(&mut tx, run.id).await?.plan;
    let intent = publishing::intent_in_tx(&mut tx, run.id)
        .await?
        .ok_or_else(|| StoreError::Refused(format!("the restore `{}` has not taken its intent", run.id)))?;
    publishing::refuse_unless_same_views(run, record.views.keys())?;
    let states = publishing::lock_views(&mut tx, &run.views).await?;
    for (view, what) in &record.views {
        publishing::refuse_unless_taken(&intent, view, what.publish_number, publishing::known(&states, view)?)?;
    }
    let output = TaskOutput::Published(SnapshotId(run.id.0));
    moves::task_end(&mut tx, &task, TaskState::Succeeded, None, Some(&output), None, now).await?;
    moves::run_end(&mut tx, run.id, RunState::Succeeded, "", now).await?;
    query(concat!("UPDATE restores SET recorded_at = $1, took = ", db_now!(), " - begun_real WHERE run = $2"))
        .bind(micros(now))
        .bind(run.id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("recording a restore"))?;
    insert_snapshot(&mut tx, run, &plan, record, now).await?;
    for (view, what) in &record.views {
        let restore = plan
            .views
            .get(view)
            .ok_or_else(|| StoreError::Refused(format!("the restore `{}` does not touch `{view}`", run.id)))?;
        ledger_change(&mut tx, view, restore).await?;
        ledger_follow_in_tx(&mut tx, view).await?;
        state_change(&mut tx, view, restore, what).await?;
    }
    tell_done(&mut tx, run.id, &record.actor, now).await?;
    commit(tx).await
}

/// Notice and audit event of a restore that was recorded.
async fn tell_done(tx: &mut Conn, id: RunId, actor: &str, now: Instant) -> Result<()> {
    let restore = get_in_tx(tx, id).await?;
    let names: Vec<String> = restore.plan.views.keys().map(ToString::to_string).collect();
    let message = format!("{} are restored ({})", names.join(", "), restore.plan.asked);
    let notice = NewNotice::new(NoticeEvent::RestoreFinished, id.to_string(), now, message);
    notices::notify_in_tx(tx, &notice.by(&restore.actor).with(json!({ "views": names }))).await?;
    let intervals = |which: fn(&ViewRestore) -> &Vec<Slice>| -> IndexMap<String, usize> {
        restore.plan.views.iter().map(|(view, what)| (view.to_string(), which(what).len())).collect()
    };
    let detail = json!({
        "asked": restore.plan.asked,
        "by": restore.actor,
        "left": intervals(|what| &what.leaves),
        "came_back": intervals(|what| &what.comes_back),
    });
    let mut event = NewAuditEvent::new(now, actor, "restore_end", id.to_string()).because(&restore.reason).with(detail);
    event.duration = restore.took_ms.map(std::time::Duration::from_millis);
    audit::add_in_tx(tx, &event).await
}

async fn insert_snapshot(
    tx: &mut Conn,
    run: &tidegate_registry::run::Run,
    plan: &RestorePlan,
    record: &RestoreRecord,
    now: Instant,
) -> Result<()> {
    let doing = "recording the snapshot of a restore";
    crate::snapshots::insert_head_in_tx(tx, run, SnapshotId(run.id.0), now).await?;
    for (position, view) in (0_i64..).zip(&run.views) {
        let (Some(restore), Some(what)) = (plan.views.get(view), record.views.get(view)) else { continue };
        let newest = restore.newest.as_ref();
        // What is known of the rows is known from when they were computed.
        let known = query("SELECT profile, summary, quarantined FROM snapshot_views WHERE snapshot = $1 AND view = $2")
            .bind(newest.map(|slice| slice.snapshot.to_string()))
            .bind(view.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(on(doing))?;
        let profile = known.as_ref().map(|row| row.get_as::<String>("profile")).transpose()?;
        let summary = known.as_ref().map(|row| row.get_as::<Option<String>>("summary")).transpose()?.flatten();
        let quarantined = known.as_ref().map(|row| row.get_as::<i64>("quarantined")).transpose()?.unwrap_or(0);
        query(
            "INSERT INTO snapshot_views (snapshot, position, view, fingerprint, delta_version, publish_number, rows, \
             digest, online_generation, profile, summary, quarantined, quarantine_version, newest_start, newest_end, \
             flipped) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
             coalesce($13, (SELECT quarantine_version FROM view_states WHERE view = $3)), $14, $15, $16)",
        )
        .bind(run.id.to_string())
        .bind(position)
        .bind(view.to_string())
        .bind(&restore.fingerprint)
        .bind(number(what.delta_version)?)
        .bind(number(what.publish_number)?)
        .bind(number(newest.map_or(0, |slice| slice.rows))?)
        .bind(newest.map_or("0".repeat(32), |slice| slice.digest.clone()))
        .bind(number_option(what.online_generation)?)
        .bind(profile.unwrap_or_else(|| "{}".to_owned()))
        .bind(summary)
        .bind(quarantined)
        .bind(number_option(what.quarantine_version)?)
        .bind(newest.map(|slice| micros(slice.interval.start())))
        .bind(newest.map(|slice| micros(slice.interval.end())))
        .bind(what.flipped)
        .execute(&mut *tx)
        .await
        .map_err(on(doing))?;
    }
    Ok(())
}

async fn ledger_change(tx: &mut Conn, view: &ViewId, restore: &ViewRestore) -> Result<()> {
    let doing = "moving the ledger back";
    for slices in restore.leaves.chunks(ROWS_MAX) {
        let mut remove = Builder::new("DELETE FROM ledger WHERE view = ");
        remove.push_bind(view.to_string()).push(" AND (interval_end, interval_start) IN (VALUES ");
        remove.push_rows(
            slices
                .iter()
                .map(|slice| [Arg::from(micros(slice.interval.end())), Arg::from(micros(slice.interval.start()))]),
        );
        remove.push(")");
        remove.build().execute(&mut *tx).await.map_err(on(doing))?;
    }
    for slices in restore.comes_back.chunks(ROWS_MAX) {
        let mut insert = Builder::new(
            "INSERT INTO ledger (view, interval_end, interval_start, run, snapshot, rows, digest) VALUES ",
        );
        let rows = slices.iter().map(|slice| ledger_row(view, slice)).collect::<Result<Vec<_>>>()?;
        insert.push_rows(rows).push(
            " ON CONFLICT (view, interval_end, interval_start) DO UPDATE SET run = excluded.run, \
             snapshot = excluded.snapshot, rows = excluded.rows, digest = excluded.digest",
        );
        insert.build().execute(&mut *tx).await.map_err(on(doing))?;
    }
    Ok(())
}

fn ledger_row(view: &ViewId, slice: &Slice) -> Result<[Arg; 7]> {
    Ok([
        Arg::from(view.to_string()),
        micros(slice.interval.end()).into(),
        micros(slice.interval.start()).into(),
        slice.run.to_string().into(),
        slice.snapshot.to_string().into(),
        number(slice.rows)?.into(),
        (&slice.digest).into(),
    ])
}

async fn state_change(tx: &mut Conn, view: &ViewId, restore: &ViewRestore, what: &RestoredView) -> Result<()> {
    let newest = restore.newest.as_ref().map(|slice| slice.interval);
    query(
        "UPDATE view_states SET recorded_number = $1, records = records + 1, delta_version = $2, \
         online_generation = coalesce($3, online_generation), newest_start = $4, newest_end = $5, \
         quarantine_version = coalesce($6, quarantine_version) WHERE view = $7",
    )
    .bind(number(what.publish_number)?)
    .bind(number(what.delta_version)?)
    .bind(number_option(what.online_generation)?)
    .bind(newest.map(|newest| micros(newest.start())))
    .bind(newest.map(|newest| micros(newest.end())))
    .bind(number_option(what.quarantine_version)?)
    .bind(view.to_string())
    .execute(tx)
    .await
    .map_err(on("recording a restored view"))?;
    Ok(())
}

pub(crate) async fn validated(db: &Db, id: RunId, validation: &Validation, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let before = get_in_tx(&mut tx, id).await?;
    let noted = query("UPDATE restores SET validation = $1 WHERE run = $2 AND validation IS NULL")
        .bind(codec::json(validation)?)
        .bind(id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("noting what was found after a restore"))?;
    if noted == 0 {
        return commit(tx).await;
    }
    if !validation.passed {
        let message =
            format!("what came of the restore {id} is not what was promised: {}", validation.findings.join("; "));
        let notice = NewNotice::new(NoticeEvent::RestoreFailed, id.to_string(), now, message);
        notices::notify_in_tx(&mut tx, &notice.by(&before.actor).once(format!("restore.failed {id}"))).await?;
    }
    let detail = json!({ "passed": validation.passed, "findings": validation.findings });
    let event = NewAuditEvent::new(now, &before.actor, "restore_validate", id.to_string()).with(detail);
    audit::add_in_tx(&mut tx, &event).await?;
    commit(tx).await
}

// --- looking ---------------------------------------------------------------------------------------------------------

macro_rules! restore_columns {
    () => {
        concat!(
            "SELECT run, plan, actor, reason, begun_at, recorded_at, took, validation, (SELECT ",
            db_now!(),
            " - begun_real FROM runs WHERE runs.id = run AND runs.finished_at IS NULL) AS under_way FROM restores "
        )
    };
}

pub(crate) async fn get(db: &Db, id: RunId) -> Result<Restore> {
    let mut tx = db.read().await?;
    get_in_tx(&mut tx, id).await
}

async fn get_in_tx(tx: &mut Conn, id: RunId) -> Result<Restore> {
    let row = query(concat!(restore_columns!(), "WHERE run = $1"))
        .bind(id.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("reading a restore"))?
        .ok_or_else(|| StoreError::NotFound { what: "restore", name: id.to_string() })?;
    restore_from(&row)
}

pub(crate) async fn list(db: &Db, limit: u32) -> Result<Vec<Restore>> {
    let mut tx = db.read().await?;
    let rows = query(concat!(restore_columns!(), "ORDER BY begun_at DESC, run DESC LIMIT $1"))
        .bind(limit_or_all(limit))
        .fetch_all(&mut tx)
        .await
        .map_err(on("listing restores"))?;
    rows.iter().map(restore_from).collect()
}

fn restore_from(row: &Row) -> Result<Restore> {
    Ok(Restore {
        id: row.parse("run")?,
        plan: row.json("plan")?,
        actor: row.get_as("actor")?,
        reason: row.get_as("reason")?,
        begun_at: row.instant("begun_at")?,
        recorded_at: row.instant_option("recorded_at")?,
        took_ms: row.count_option::<u64>("took")?.map(|micros| micros / 1_000),
        under_way_ms: row.count_option::<u64>("under_way")?.map(|micros| micros / 1_000),
        validation: row.json_option("validation")?,
    })
}

// --- marks -----------------------------------------------------------------------------------------------------------

pub(crate) async fn mark(db: &Db, id: SnapshotId, bad: Option<&BadMark>, actor: &str, now: Instant) -> Result<()> {
    snapshot_number(db, id).await?;
    let doing = "marking a snapshot";
    let mut tx = db.write().await?;
    let changed = match bad {
        Some(bad) => {
            query(
                "INSERT INTO bad_snapshots (snapshot, marked_at, actor, reason) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (snapshot) DO UPDATE SET reason = excluded.reason, actor = excluded.actor, \
                 marked_at = excluded.marked_at",
            )
            .bind(id.to_string())
            .bind(micros(bad.marked_at))
            .bind(&bad.actor)
            .bind(&bad.reason)
            .execute(&mut tx)
            .await
        }
        None => query("DELETE FROM bad_snapshots WHERE snapshot = $1").bind(id.to_string()).execute(&mut tx).await,
    };
    if changed.map_err(on(doing))? > 0 {
        let action = if bad.is_some() { "snapshot_mark_bad" } else { "snapshot_mark_good" };
        let mut event = NewAuditEvent::new(now, actor, action, id.to_string());
        event.reason = bad.map(|bad| bad.reason.clone());
        audit::add_in_tx(&mut tx, &event).await?;
    }
    commit(tx).await
}

pub(crate) async fn bad_marks(db: &Db) -> Result<IndexMap<SnapshotId, BadMark>> {
    let mut tx = db.read().await?;
    let rows = query("SELECT snapshot, marked_at, actor, reason FROM bad_snapshots ORDER BY snapshot")
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading which snapshots are bad"))?;
    rows.iter()
        .map(|row| {
            let mark = BadMark {
                marked_at: row.instant("marked_at")?,
                actor: row.get_as("actor")?,
                reason: row.get_as("reason")?,
            };
            Ok((row.parse("snapshot")?, mark))
        })
        .collect()
}

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Restoring for SqlStore<D> {
    async fn snapshot_number(&self, id: SnapshotId) -> Result<u64> {
        self.db.run(CALL_MAX, || snapshot_number(&self.db, id)).await
    }

    async fn number_at(&self, at: Instant) -> Result<u64> {
        self.db.run(CALL_MAX, || number_at(&self.db, at)).await
    }

    async fn as_of(&self, view: &ViewId, number: u64) -> Result<AsOf> {
        self.db.run(BULK_MAX, || as_of(&self.db, view, number)).await
    }

    async fn generation_written(&self, view: &ViewId, generation: u64) -> Result<Option<u64>> {
        self.db.run(CALL_MAX, || generation_written(&self.db, view, generation)).await
    }

    async fn good_numbers(&self, views: &[ViewId], limit: u32) -> Result<Vec<(u64, SnapshotId)>> {
        self.db.run(CALL_MAX, || good_numbers(&self.db, views, limit)).await
    }

    async fn restore_begin(&self, request: RestoreRequest) -> Result<()> {
        self.db.run(BULK_MAX, || begin(&self.db, &request)).await
    }

    async fn restore_of(&self, id: RunId) -> Result<Restore> {
        self.db.run(CALL_MAX, || get(&self.db, id)).await
    }

    async fn restores(&self, limit: u32) -> Result<Vec<Restore>> {
        self.db.run(CALL_MAX, || list(&self.db, limit)).await
    }

    async fn restore_record(&self, token: LeaseToken, what: RestoreRecord, now: Instant) -> Result<()> {
        self.db.run(BULK_MAX, || record(&self.db, token, &what, now)).await
    }

    async fn restore_validated(&self, id: RunId, validation: &Validation, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || validated(&self.db, id, validation, now)).await
    }

    async fn reads_of(&self, run: RunId) -> Result<Option<Pins>> {
        self.db.run(CALL_MAX, || reads_of(&self.db, run)).await
    }

    async fn holds(&self) -> Result<Holds> {
        self.db.run(CALL_MAX, || holds::list(&self.db)).await
    }

    async fn hold(&self, views: &[ViewId], policy: HoldPolicy, actor: &str, reason: &str, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || holds::place(&self.db, views, policy, actor, reason, now)).await
    }

    async fn resume(&self, request: ResumeRequest) -> Result<Vec<RunId>> {
        self.db.run(BULK_MAX, || holds::resume(&self.db, &request)).await
    }

    async fn snapshot_mark(&self, id: SnapshotId, bad: Option<BadMark>, actor: &str, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || mark(&self.db, id, bad.as_ref(), actor, now)).await
    }

    async fn bad_marks(&self) -> Result<IndexMap<SnapshotId, BadMark>> {
        self.db.run(CALL_MAX, || bad_marks(&self.db)).await
    }
}
