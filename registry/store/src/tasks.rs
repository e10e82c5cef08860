//! Tasks as workers see them: claiming by lease, and what the end of an attempt does to the run.

use std::time::Duration;

use indexmap::IndexMap;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use tidegate_registry::ids::{LeaseToken, RunId};
use tidegate_registry::run::{Claim, RunState, TaskKind, TaskOutput, TaskState};
use tidegate_registry::store::{ClaimRequest, Result, StoreError, TaskEnd};
use tidegate_registry::time::Instant;

use crate::codec::{Columns, duration_micros, micros};
use crate::db::{Db, commit, db_now, on};
use crate::moves::{self, Held};

/// How often a process may die with a task before the task is taken for the reason. Such deaths cost no attempt, since
/// machines are also switched off; without a bound a task that kills its process would do so for ever.
const CRASHES_MAX: i64 = 5;

/// How often a run may begin anew because a pinned file changed.
const RESTARTS_MAX: u32 = 1;

/// Between attempts of a publish task that can no longer fail, when the worker gave no delay.
const ROLL_FORWARD_PAUSE: Duration = Duration::from_secs(30);

/// The next task to claim, by the index `tasks_ready` alone.
pub(crate) const NEXT: &str = concat!(
    "SELECT run, seq FROM tasks WHERE ready = 1 AND (retry_at IS NULL OR retry_at <= ",
    db_now!(),
    ") ORDER BY begun DESC, interval_start, run, seq LIMIT 1"
);

/// Tasks whose lease has expired, by the index `tasks_leased` alone.
pub(crate) const EXPIRED: &str =
    concat!("SELECT run, seq FROM tasks WHERE lease_until <= ", db_now!(), " ORDER BY lease_until");

pub(crate) async fn claim(db: &Db, request: &ClaimRequest, now: Instant) -> Result<Option<Claim>> {
    // Idle workers ask often: they look without taking the lock that only one can have.
    let mut look = db.read().await?;
    if next(&mut look, &request.only).await?.is_none() && expired(&mut look, &request.only).await?.is_empty() {
        return Ok(None);
    }
    drop(look);

    let mut tx = db.write().await?;
    for (run, seq) in expired(&mut tx, &request.only).await? {
        take_back(&mut tx, run, seq, now).await?;
    }
    let claim = match next(&mut tx, &request.only).await? {
        Some((run, seq)) => Some(lease(&mut tx, run, seq, request, now).await?),
        None => None,
    };
    commit(tx).await?;
    Ok(claim)
}

async fn next(tx: &mut SqliteConnection, only: &[RunId]) -> Result<Option<(RunId, i64)>> {
    let row = if only.is_empty() {
        sqlx::query(NEXT).fetch_optional(tx).await
    } else {
        let mut query = QueryBuilder::<Sqlite>::new(concat!(
            "SELECT run, seq FROM tasks WHERE ready = 1 AND (retry_at IS NULL OR retry_at <= ",
            db_now!(),
            ")"
        ));
        push_only(&mut query, only);
        query.push(" ORDER BY begun DESC, interval_start, run, seq LIMIT 1");
        query.build().fetch_optional(tx).await
    };
    let row = row.map_err(on("looking for a task"))?;
    row.map(|row| Ok((row.parse("run")?, row.get_as("seq")?))).transpose()
}

async fn expired(tx: &mut SqliteConnection, only: &[RunId]) -> Result<Vec<(RunId, i64)>> {
    let rows = if only.is_empty() {
        sqlx::query(EXPIRED).fetch_all(tx).await
    } else {
        let mut query =
            QueryBuilder::<Sqlite>::new(concat!("SELECT run, seq FROM tasks WHERE lease_until <= ", db_now!()));
        push_only(&mut query, only);
        query.push(" ORDER BY lease_until");
        query.build().fetch_all(tx).await
    };
    let rows = rows.map_err(on("looking for expired leases"))?;
    rows.iter().map(|row| Ok((row.parse("run")?, row.get_as("seq")?))).collect()
}

fn push_only(query: &mut QueryBuilder<Sqlite>, only: &[RunId]) {
    query.push(" AND run IN (");
    let mut list = query.separated(", ");
    for run in only {
        list.push_bind(run.to_string());
    }
    query.push(")");
}

/// Takes a task from a worker that let its lease expire.
async fn take_back(tx: &mut SqliteConnection, run: RunId, seq: i64, now: Instant) -> Result<()> {
    let task = moves::task(tx, run, seq).await?;
    if task.state != TaskState::Running {
        // Its run has just ended because of a sibling.
        return Ok(());
    }
    let lost = match &task.owner {
        Some(owner) => format!("worker lost: `{owner}` no longer renewed its lease"),
        None => "worker lost: its process died".to_owned(),
    };
    if task.attempts >= task.attempts_max && !task.is_committed() {
        return fail(tx, &task, &lost, now).await;
    }
    sqlx::query(
        "UPDATE tasks SET state = 'queued', ready = 1, error = $1, finished_at = $2, retry_at = NULL, token = NULL, \
         lease_owner = NULL, lease_until = NULL WHERE run = $3 AND seq = $4",
    )
    .bind(lost)
    .bind(micros(now))
    .bind(run.to_string())
    .bind(seq)
    .execute(tx)
    .await
    .map_err(on("taking back a task"))?;
    Ok(())
}

async fn lease(tx: &mut SqliteConnection, run: RunId, seq: i64, request: &ClaimRequest, now: Instant) -> Result<Claim> {
    let token = LeaseToken::generate();
    sqlx::query(concat!(
        "UPDATE tasks SET state = 'running', ready = 0, attempts = attempts + 1, started_at = $1, \
         finished_at = NULL, retry_at = NULL, token = $2, lease_owner = $3, lease_until = $4 + ",
        db_now!(),
        " WHERE run = $5 AND seq = $6"
    ))
    .bind(micros(now))
    .bind(token.to_string())
    .bind(&request.owner)
    .bind(duration_micros(request.lease))
    .bind(run.to_string())
    .bind(seq)
    .execute(&mut *tx)
    .await
    .map_err(on("claiming a task"))?;
    sqlx::query("UPDATE tasks SET begun = 1 WHERE run = $1 AND begun = 0")
        .bind(run.to_string())
        .execute(&mut *tx)
        .await
        .map_err(on("beginning a run"))?;
    sqlx::query(
        "UPDATE runs SET state = CASE state WHEN 'queued' THEN 'running' ELSE state END, \
         started_at = coalesce(started_at, $1), reason = NULL WHERE id = $2",
    )
    .bind(micros(now))
    .bind(run.to_string())
    .execute(&mut *tx)
    .await
    .map_err(on("beginning a run"))?;
    let task = moves::task(tx, run, seq).await?;
    Ok(Claim {
        token,
        inputs: inputs(tx, run, seq).await?,
        run: task.run,
        kind: task.kind,
        attempt: task.attempts,
        attempts_max: task.attempts_max,
    })
}

/// The outputs of what a task waits for.
async fn inputs(tx: &mut SqliteConnection, run: RunId, seq: i64) -> Result<IndexMap<String, TaskOutput>> {
    let doing = "reading the inputs of a task";
    let row = sqlx::query("SELECT waits_for FROM tasks WHERE run = $1 AND seq = $2")
        .bind(run.to_string())
        .bind(seq)
        .fetch_one(&mut *tx)
        .await
        .map_err(on(doing))?;
    let waits_for: Vec<i64> = row.json("waits_for")?;
    let rows = sqlx::query("SELECT seq, kind, output FROM tasks WHERE run = $1 AND seq < $2 ORDER BY seq")
        .bind(run.to_string())
        .bind(seq)
        .fetch_all(tx)
        .await
        .map_err(on(doing))?;
    let mut inputs = IndexMap::new();
    for row in &rows {
        if waits_for.contains(&row.get_as::<i64>("seq")?)
            && let Some(output) = row.json_option("output")?
        {
            inputs.insert(row.get_as("kind")?, output);
        }
    }
    Ok(inputs)
}

pub(crate) async fn heartbeat(db: &Db, token: LeaseToken, lease: Duration) -> Result<()> {
    let mut tx = db.write().await?;
    let done = sqlx::query(concat!(
        "UPDATE tasks SET lease_until = $1 + ",
        db_now!(),
        " WHERE token = $2 AND state = 'running'"
    ))
    .bind(duration_micros(lease))
    .bind(token.to_string())
    .execute(&mut *tx)
    .await
    .map_err(on("renewing a lease"))?;
    if done.rows_affected() == 0 {
        return Err(StoreError::LostLease);
    }
    commit(tx).await
}

pub(crate) async fn end(db: &Db, token: LeaseToken, end: TaskEnd, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let task = moves::by_token(&mut tx, token).await?.ok_or(StoreError::LostLease)?;
    if task.state != TaskState::Running {
        // This very attempt has ended already, and the answer was lost.
        return Ok(());
    }
    end_in_tx(&mut tx, &task, end, now).await?;
    commit(tx).await
}

async fn end_in_tx(tx: &mut SqliteConnection, task: &Held, end: TaskEnd, now: Instant) -> Result<()> {
    match end {
        TaskEnd::Succeeded { output, rows } => {
            if !output_fits(&task.kind, &output) {
                return Err(StoreError::Refused(format!(
                    "the task `{}` cannot succeed with this output{}",
                    task.kind,
                    if task.kind == TaskKind::Publish { ": it ends when its run is recorded" } else { "" }
                )));
            }
            moves::task_end(tx, task, TaskState::Succeeded, None, Some(&output), rows, now).await?;
            moves::refresh_ready(tx, task.run.id).await
        }
        TaskEnd::Blocked { output, reason } => {
            refuse_if_committed(task, "be blocked")?;
            let rows = match &output {
                Some(TaskOutput::Staged(staged)) => Some(staged.rows),
                _ => None,
            };
            moves::task_end(tx, task, TaskState::Blocked, Some(&reason), output.as_ref(), rows, now).await?;
            moves::run_end(tx, task.run.id, RunState::Blocked, &reason, now).await
        }
        TaskEnd::Failed { error, retry_in } => match retry_in {
            _ if task.is_committed() => {
                requeue(tx, task, Some(&error), retry_in.unwrap_or(ROLL_FORWARD_PAUSE), false, now).await
            }
            Some(retry_in) if task.attempts < task.attempts_max => {
                requeue(tx, task, Some(&error), retry_in, false, now).await
            }
            _ => fail(tx, task, &error, now).await,
        },
        TaskEnd::Released { retry_in, reason } => {
            if let Some(reason) = reason {
                sqlx::query("UPDATE runs SET reason = $1 WHERE id = $2")
                    .bind(reason)
                    .bind(task.run.id.to_string())
                    .execute(&mut *tx)
                    .await
                    .map_err(on("noting what a run waits for"))?;
            }
            requeue(tx, task, None, retry_in, true, now).await
        }
        TaskEnd::PinsChanged { reason } => {
            refuse_if_committed(task, "begin anew")?;
            if task.run.restarts >= RESTARTS_MAX {
                return fail(tx, task, &reason, now).await;
            }
            restart(tx, task, &reason).await
        }
        TaskEnd::Superseded { reason } => {
            moves::task_end(tx, task, TaskState::Failed, Some(&reason), None, None, now).await?;
            moves::run_end(tx, task.run.id, RunState::Superseded, &reason, now).await
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
async fn fail(tx: &mut SqliteConnection, task: &Held, error: &str, now: Instant) -> Result<()> {
    moves::task_end(tx, task, TaskState::Failed, Some(error), None, None, now).await?;
    let reason = format!("task `{}` failed: {error}", task.kind);
    moves::run_end(tx, task.run.id, RunState::Failed, &reason, now).await
}

/// Back into the queue after `retry_in`. A released attempt counts as never begun.
async fn requeue(
    tx: &mut SqliteConnection,
    task: &Held,
    error: Option<&str>,
    retry_in: Duration,
    released: bool,
    now: Instant,
) -> Result<()> {
    sqlx::query(concat!(
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
    .execute(tx)
    .await
    .map_err(on("queueing a task again"))?;
    Ok(())
}

/// Everything from step 1. Attempts go on counting, since staged files are named by them: a worker that still writes
/// for the run as it was must not meet its successor in one file.
async fn restart(tx: &mut SqliteConnection, task: &Held, reason: &str) -> Result<()> {
    let run = task.run.id.to_string();
    sqlx::query(
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
    sqlx::query("DELETE FROM checks WHERE run = $1")
        .bind(&run)
        .execute(&mut *tx)
        .await
        .map_err(on("throwing verdicts away"))?;
    sqlx::query("UPDATE runs SET restarts = restarts + 1, reason = $1 WHERE id = $2")
        .bind(reason)
        .bind(&run)
        .execute(&mut *tx)
        .await
        .map_err(on("beginning a run anew"))?;
    moves::refresh_ready(tx, task.run.id).await
}

pub(crate) async fn log(db: &Db, token: LeaseToken, lines: &[(String, String)], now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let task = moves::held(&mut tx, token).await?;
    for (level, message) in lines {
        sqlx::query("INSERT INTO task_logs (run, at, task, attempt, level, message) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(task.run.id.to_string())
            .bind(micros(now))
            .bind(task.kind.to_string())
            .bind(task.attempts)
            .bind(level)
            .bind(message)
            .execute(&mut *tx)
            .await
            .map_err(on("writing a line of a task"))?;
    }
    commit(tx).await
}

/// The leases of a dead process expire at once. That costs no attempt, within reason.
pub(crate) async fn leases_release(db: &Db, owner: &str) -> Result<u64> {
    let mut tx = db.write().await?;
    let done = sqlx::query(
        "UPDATE tasks SET crashes = crashes + 1, \
         attempts = CASE WHEN crashes < $1 THEN attempts - 1 ELSE max(attempts, attempts_max) END, \
         token = NULL, lease_owner = NULL, lease_until = 0 WHERE lease_until IS NOT NULL AND lease_owner = $2",
    )
    .bind(CRASHES_MAX)
    .bind(owner)
    .execute(&mut *tx)
    .await
    .map_err(on("releasing leases"))?;
    commit(tx).await?;
    Ok(done.rows_affected())
}

pub(crate) async fn lease_owners(db: &Db) -> Result<Vec<String>> {
    let mut tx = db.read().await?;
    let rows = sqlx::query(
        "SELECT DISTINCT lease_owner FROM tasks WHERE lease_until IS NOT NULL AND lease_owner IS NOT NULL \
         ORDER BY lease_owner",
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(on("reading who holds leases"))?;
    rows.iter().map(|row| row.get_as("lease_owner")).collect()
}
