//! Tasks as workers see them once they are claimed: renewing the lease, and what the end of an attempt does to the run.

use std::time::Duration;

use tidegate_registry::ids::LeaseToken;
use tidegate_registry::run::{RunState, TaskKind, TaskOutput, TaskState};
use tidegate_registry::store::{Change, Result, StoreError, TaskEnd};
use tidegate_registry::time::Instant;

use crate::codec::{duration_micros, micros};
use crate::db::{Conn, Db, commit, on};
use crate::moves::{self, Held};
use crate::sql::{Builder, db_now, locked, query};

/// How often a process may die with a task before the task is taken for the reason. Such deaths cost no attempt, since
/// machines are also switched off; without a bound a task that kills its process would do so for ever.
const CRASHES_MAX: i64 = 5;

/// How often a run may begin anew because a pinned file changed.
const RESTARTS_MAX: u32 = 1;

/// Between attempts of a publish task that can no longer fail, when the worker gave no delay.
const ROLL_FORWARD_PAUSE: Duration = Duration::from_secs(30);

pub(crate) async fn heartbeat(db: &Db, token: LeaseToken, lease: Duration) -> Result<()> {
    let mut tx = db.write_one().await?;
    let done =
        query(concat!("UPDATE tasks SET lease_until = $1 + ", db_now!(), " WHERE token = $2 AND state = 'running'"))
            .bind(duration_micros(lease))
            .bind(token.to_string())
            .execute(&mut tx)
            .await
            .map_err(on("renewing a lease"))?;
    if done == 0 {
        return Err(StoreError::LostLease);
    }
    commit(tx).await
}

pub(crate) async fn end(db: &Db, token: LeaseToken, end: &TaskEnd, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let task = moves::by_token(&mut tx, token).await?.ok_or(StoreError::LostLease)?;
    if task.state != TaskState::Running {
        // This very attempt has ended already, and the answer was lost.
        return commit(tx).await;
    }
    end_in_tx(&mut tx, &task, end, now).await?;
    commit(tx).await
}

async fn end_in_tx(tx: &mut Conn, task: &Held, end: &TaskEnd, now: Instant) -> Result<()> {
    match end {
        TaskEnd::Succeeded { output, rows } => {
            if !output_fits(&task.kind, output) {
                return Err(StoreError::Refused(format!(
                    "the task `{}` cannot succeed with this output{}",
                    task.kind,
                    if task.kind == TaskKind::Publish { ": it ends when its run is recorded" } else { "" }
                )));
            }
            moves::task_end(tx, task, TaskState::Succeeded, None, Some(output), *rows, now).await?;
            moves::refresh_ready(tx, task.run.id, task.run.state).await
        }
        TaskEnd::Blocked { output, reason } => {
            refuse_if_committed(task, "be blocked")?;
            let rows = match output {
                Some(TaskOutput::Staged(staged)) => Some(staged.rows),
                _ => None,
            };
            moves::task_end(tx, task, TaskState::Blocked, Some(reason), output.as_ref(), rows, now).await?;
            moves::run_end(tx, task.run.id, RunState::Blocked, reason, now).await
        }
        TaskEnd::Failed { error, retry_in } => match retry_in {
            _ if task.is_committed() => {
                requeue(tx, task, Some(error), retry_in.unwrap_or(ROLL_FORWARD_PAUSE), false, now).await
            }
            Some(retry_in) if task.attempts < task.attempts_max => {
                requeue(tx, task, Some(error), *retry_in, false, now).await
            }
            _ => fail(tx, task, error, now).await,
        },
        TaskEnd::Released { retry_in, reason } => {
            if let Some(reason) = reason {
                query("UPDATE runs SET reason = $1 WHERE id = $2")
                    .bind(reason)
                    .bind(task.run.id.to_string())
                    .execute(&mut *tx)
                    .await
                    .map_err(on("noting what a run waits for"))?;
            }
            requeue(tx, task, None, *retry_in, true, now).await
        }
        TaskEnd::PinsChanged { reason } => {
            refuse_if_committed(task, "begin anew")?;
            if task.run.restarts >= RESTARTS_MAX {
                return fail(tx, task, reason, now).await;
            }
            restart(tx, task, reason).await
        }
        TaskEnd::Held { reason } => {
            refuse_if_committed(task, "be held")?;
            moves::task_end(tx, task, TaskState::Skipped, None, None, None, now).await?;
            moves::run_end(tx, task.run.id, RunState::Held, reason, now).await
        }
        TaskEnd::Superseded { reason } => {
            moves::task_end(tx, task, TaskState::Failed, Some(reason), None, None, now).await?;
            moves::run_end(tx, task.run.id, RunState::Superseded, reason, now).await
        }
    }
}

fn output_fits(kind: &TaskKind, output: &TaskOutput) -> bool {
    matches!((kind, output), (TaskKind::Pin, TaskOutput::Pins(_)) | (TaskKind::View(_), TaskOutput::Staged(_)))
}

fn refuse_if_committed(task: &Held, what: &str) -> Result<()> {
    if task.is_committed() {
        return Err(StoreError::Refused(format!(
            "the run `{}` is past its intent and can no longer {what}: it only rolls forward",
            task.run.id
        )));
    }
    Ok(())
}

/// The task and with it the run fail.
pub(crate) async fn fail(tx: &mut Conn, task: &Held, error: &str, now: Instant) -> Result<()> {
    moves::task_end(tx, task, TaskState::Failed, Some(error), None, None, now).await?;
    let reason = format!("task `{}` failed: {error}", task.kind);
    moves::run_end(tx, task.run.id, RunState::Failed, &reason, now).await
}

/// Back into the queue after `retry_in`. A released attempt counts as never begun.
async fn requeue(
    tx: &mut Conn,
    task: &Held,
    error: Option<&str>,
    retry_in: Duration,
    released: bool,
    now: Instant,
) -> Result<()> {
    query(concat!(
        "UPDATE tasks SET state = 'queued', ready = 1, error = coalesce($1, error), finished_at = $2, \
         attempts = attempts - $3, lease_owner = NULL, lease_until = NULL, retry_at = $4 + ",
        db_now!(),
        " WHERE run = $5 AND seq = $6"
    ))
    .bind(error)
    .bind(micros(now))
    .bind(released)
    .bind(duration_micros(retry_in))
    .bind(task.run.id.to_string())
    .bind(task.seq)
    .execute(&mut *tx)
    .await
    .map_err(on("queueing a task again"))?;
    if retry_in.is_zero() || task.is_pooled {
        tx.has_changed(Change::Tasks);
    }
    Ok(())
}

/// Everything from step 1. Attempts go on counting, since staged files are named by them: a worker that still writes
/// for the run as it was must not meet its successor in one file.
async fn restart(tx: &mut Conn, task: &Held, reason: &str) -> Result<()> {
    let run = task.run.id.to_string();
    query(
        "UPDATE tasks SET state = 'queued', ready = 0, output = NULL, rows = NULL, error = NULL, retry_at = NULL, \
         finished_at = NULL, lease_owner = NULL, lease_until = NULL, \
         token = CASE seq WHEN $1 THEN token END, \
         attempts_max = attempts + (SELECT attempts_max FROM runs WHERE id = $2) WHERE run = $2",
    )
    .bind(task.seq)
    .bind(&run)
    .execute(&mut *tx)
    .await
    .map_err(on("beginning a run anew"))?;
    query("DELETE FROM checks WHERE run = $1")
        .bind(&run)
        .execute(&mut *tx)
        .await
        .map_err(on("throwing verdicts away"))?;
    query("UPDATE runs SET restarts = restarts + 1, reason = $1 WHERE id = $2")
        .bind(reason)
        .bind(&run)
        .execute(&mut *tx)
        .await
        .map_err(on("beginning a run anew"))?;
    moves::refresh_ready(tx, task.run.id, task.run.state).await
}

/// Lines that fit into one statement.
const LINES_MAX: usize = 1_000;

pub(crate) async fn log(db: &Db, token: LeaseToken, lines: &[(String, String)], now: Instant) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut tx = if lines.len() > LINES_MAX { db.write().await? } else { db.write_one().await? };
    for lines in lines.chunks(LINES_MAX) {
        // One statement sees one state, so it needs no lock: either the token holds its task here or nothing is written.
        let mut insert = Builder::new("INSERT INTO task_logs (run, at, task, attempt, level, message) SELECT run, ");
        insert.push_bind(micros(now)).push(", kind, attempts, line.column2, line.column3 FROM tasks, (VALUES ");
        for (position, (level, message)) in (0_i64..).zip(lines) {
            insert.push(if position == 0 { "(" } else { ", (" }).push_bind(position).push(", ").push_bind(level);
            insert.push(", ").push_bind(message).push(")");
        }
        insert.push(") AS line WHERE token = ").push_bind(token.to_string());
        insert.push(" AND state = 'running' ORDER BY line.column1");
        if insert.build().execute(&mut tx).await.map_err(on("writing the lines of a task"))? == 0 {
            return Err(StoreError::LostLease);
        }
    }
    commit(tx).await
}

/// The leases of a dead process expire at once. That costs no attempt, within reason.
pub(crate) async fn leases_release(db: &Db, owner: &str) -> Result<u64> {
    let mut tx = db.write().await?;
    query(locked!(
        "SELECT id FROM runs WHERE id IN (SELECT run FROM tasks WHERE lease_until IS NOT NULL AND lease_owner = $1) \
         ORDER BY id"
    ))
    .bind(owner)
    .fetch_all(&mut tx)
    .await
    .map_err(on("locking the runs of a dead process"))?;
    let done = query(
        "UPDATE tasks SET crashes = crashes + 1, attempts = CASE WHEN crashes < $1 THEN attempts - 1 \
         WHEN attempts > attempts_max THEN attempts ELSE attempts_max END, \
         token = NULL, lease_owner = NULL, lease_until = 0 WHERE lease_until IS NOT NULL AND lease_owner = $2",
    )
    .bind(CRASHES_MAX)
    .bind(owner)
    .execute(&mut tx)
    .await
    .map_err(on("releasing leases"))?;
    tx.has_changed(Change::Tasks);
    commit(tx).await?;
    Ok(done)
}

pub(crate) async fn lease_owners(db: &Db) -> Result<Vec<String>> {
    let mut tx = db.read().await?;
    let rows = query(
        "SELECT DISTINCT lease_owner FROM tasks WHERE lease_until IS NOT NULL AND lease_owner IS NOT NULL \
         ORDER BY lease_owner",
    )
    .fetch_all(&mut tx)
    .await
    .map_err(on("reading who holds leases"))?;
    rows.iter().map(|row| row.get_as("lease_owner")).collect()
}
