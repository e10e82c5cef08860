//! The moves that runs and their tasks can make. All of them happen inside a caller's transaction.
//!
//! A task is `ready` while it is queued, its run is admitted and all that it waits for has succeeded; the flag exists so
//! that claiming is one step in an index, however many runs are stored. A task that runs has a token and a lease; one
//! that ended keeps the token, so that ending it again is recognised as the same.

use tidegate_registry::ids::{LeaseToken, RunId, ViewId};
use tidegate_registry::run::{CheckResult, Run, RunState, TaskKind, TaskOutput, TaskState};
use tidegate_registry::store::{Change, Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::{json, micros, number_option};
use crate::db::{Conn, on};
use crate::notices;
use crate::runs::{self, run_fields};
use crate::sql::{Arg, Builder, Row, Sql, query};

/// All columns of [`held_from`].
macro_rules! task_fields {
    () => {
        "tasks.seq, tasks.kind, tasks.state AS task_state, tasks.attempts, tasks.attempts_max, tasks.lease_owner, \
         tasks.pool"
    };
}
pub(crate) use task_fields;

/// A task with its run.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) run: Run,
    pub(crate) seq: i64,
    pub(crate) kind: TaskKind,
    pub(crate) state: TaskState,
    /// Attempts begun.
    pub(crate) attempts: u32,
    pub(crate) attempts_max: u32,
    pub(crate) owner: Option<String>,
    /// Whether it takes a slot of a pool while it runs.
    pub(crate) is_pooled: bool,
}

impl Held {
    /// Past the point of no return: this task is tried until it succeeds or is overtaken.
    pub(crate) fn is_committed(&self) -> bool {
        self.run.state == RunState::Publishing && self.kind.publishes()
    }
}

/// The task that `token` holds.
///
/// # Errors
/// [`StoreError::LostLease`] when it holds none.
pub(crate) async fn held(tx: &mut Conn, token: LeaseToken) -> Result<Held> {
    by_token(tx, token).await?.filter(|task| task.state == TaskState::Running).ok_or(StoreError::LostLease)
}

/// The task that `token` holds or was the last to hold. Its run is locked first, then the task: what is read of both
/// stays so.
pub(crate) async fn by_token(tx: &mut Conn, token: LeaseToken) -> Result<Option<Held>> {
    let row = query(BY_TOKEN).bind(token.to_string()).fetch_optional(tx).await.map_err(on("looking for a lease"))?;
    row.map(|row| held_from(runs::run_from(&row)?, &row)).transpose()
}

/// PostgreSQL reads what is inside `WITH`, and so locks the run, before it can lock the task, of which it then takes the
/// newest version: if it was taken away while we waited for the run, there is no row.
const BY_TOKEN: Sql = Sql {
    sqlite: concat!(
        "SELECT ",
        run_fields!(),
        ", ",
        task_fields!(),
        " FROM tasks JOIN runs ON runs.id = tasks.run WHERE tasks.token = $1"
    ),
    postgres: concat!(
        "WITH held AS MATERIALIZED (SELECT ",
        run_fields!(),
        " FROM runs WHERE id = (SELECT run FROM tasks WHERE token = $1) FOR NO KEY UPDATE) SELECT held.*, ",
        task_fields!(),
        " FROM held JOIN tasks ON tasks.run = held.id WHERE tasks.token = $1 FOR NO KEY UPDATE OF tasks"
    ),
};

/// A row of [`task_fields!`] of that run.
pub(crate) fn held_from(run: Run, row: &Row) -> Result<Held> {
    Ok(Held {
        run,
        seq: row.get_as("seq")?,
        kind: row.parse("kind")?,
        state: row.parse("task_state")?,
        attempts: row.count("attempts")?,
        attempts_max: row.count("attempts_max")?,
        owner: row.get_as("lease_owner")?,
        is_pooled: row.get_as::<Option<&str>>("pool")?.is_some(),
    })
}

/// Makes those tasks of a run in `state` ready for which everything is done. The run is locked.
pub(crate) async fn refresh_ready(tx: &mut Conn, run: RunId, state: RunState) -> Result<()> {
    if !matches!(state, RunState::Queued | RunState::Running | RunState::Publishing) {
        return Ok(());
    }
    let ready = query(READY).bind(run.to_string()).execute(&mut *tx).await.map_err(on("moving tasks along"))?;
    if ready > 0 {
        tx.has_changed(Change::Tasks);
    }
    Ok(())
}

macro_rules! ready {
    ($waits_for:literal) => {
        concat!(
            "UPDATE tasks SET ready = 1 WHERE run = $1 AND ready = 0 AND state = 'queued' AND NOT EXISTS (\
             SELECT 1 FROM tasks AS before WHERE before.run = $1 AND before.state <> 'succeeded' AND before.seq IN (",
            $waits_for,
            "))"
        )
    };
}

/// What lists what a task waits for is the only function on JSON that we use in queries, and the databases name it
/// differently.
const READY: Sql = Sql {
    sqlite: ready!("SELECT value FROM json_each(tasks.waits_for)"),
    postgres: ready!("SELECT CAST(value AS BIGINT) FROM json_array_elements_text(CAST(tasks.waits_for AS json))"),
};

/// Ends a task for good.
pub(crate) async fn task_end(
    tx: &mut Conn,
    task: &Held,
    state: TaskState,
    error: Option<&str>,
    output: Option<&TaskOutput>,
    rows: Option<u64>,
    now: Instant,
) -> Result<()> {
    query(
        "UPDATE tasks SET state = $1, error = $2, output = $3, rows = $4, finished_at = $5, ready = 0, \
         retry_at = NULL, lease_owner = NULL, lease_until = NULL WHERE run = $6 AND seq = $7",
    )
    .bind(state.as_str())
    .bind(error)
    .bind(output.map(json).transpose()?)
    .bind(number_option(rows)?)
    .bind(micros(now))
    .bind(task.run.id.to_string())
    .bind(task.seq)
    .execute(&mut *tx)
    .await
    .map_err(on("ending a task"))?;
    if task.is_pooled {
        tx.has_changed(Change::Tasks);
    }
    match (&task.kind, output) {
        (TaskKind::View(view), Some(TaskOutput::Staged(staged))) => {
            verdicts_store(tx, task.run.id, view, &staged.checks).await
        }
        (TaskKind::Pin | TaskKind::Publish, Some(TaskOutput::Judged(views))) => {
            for (view, checks) in views {
                verdicts_store(tx, task.run.id, view, checks).await?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Ends a run: its other tasks are skipped and their leases void.
pub(crate) async fn run_end(tx: &mut Conn, run: RunId, state: RunState, reason: &str, now: Instant) -> Result<()> {
    debug_assert!(!state.is_open(), "{state} is not an end");
    if matches!(state, RunState::Blocked | RunState::Failed) {
        let ended = runs::get_in_tx(tx, run).await?;
        notices::run_ended_in_tx(tx, &ended, state, reason, now).await?;
    }
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    query("UPDATE runs SET state = $1, reason = $2, finished_at = $3 WHERE id = $4")
        .bind(state.as_str())
        .bind(reason)
        .bind(micros(now))
        .bind(run.to_string())
        .execute(&mut *tx)
        .await
        .map_err(on("ending a run"))?;
    query(
        "UPDATE tasks SET state = 'skipped', ready = 0, retry_at = NULL, token = NULL, lease_owner = NULL, \
         lease_until = NULL WHERE run = $1 AND state IN ('queued', 'running')",
    )
    .bind(run.to_string())
    .execute(&mut *tx)
    .await
    .map_err(on("skipping the tasks of a run"))?;
    query("UPDATE view_states SET publishing = NULL WHERE publishing = $1")
        .bind(run.to_string())
        .execute(&mut *tx)
        .await
        .map_err(on("letting go of views"))?;
    tx.has_changed(Change::Runs);
    Ok(())
}

/// Verdicts in one statement.
const CHECKS_MAX: usize = 1_000;

/// Replaces the verdicts of one view of a run.
pub(crate) async fn verdicts_store(tx: &mut Conn, run: RunId, view: &ViewId, checks: &[CheckResult]) -> Result<()> {
    let doing = "storing verdicts";
    query("DELETE FROM checks WHERE run = $1 AND view = $2")
        .bind(run.to_string())
        .bind(view.to_string())
        .execute(&mut *tx)
        .await
        .map_err(on(doing))?;
    if checks.is_empty() {
        return Ok(());
    }
    let row = query("SELECT seq FROM tasks WHERE run = $1 AND kind = $2")
        .bind(run.to_string())
        .bind(view.to_string())
        .fetch_optional(&mut *tx)
        .await
        .map_err(on(doing))?
        .ok_or_else(|| StoreError::Refused(format!("the run `{run}` does not compute `{view}`")))?;
    let seq: i64 = row.get_as("seq")?;
    let row = |(position, check): (i64, &CheckResult)| -> Result<[Arg; 6]> {
        let verdict = check.verdict.as_str().into();
        Ok([run.to_string().into(), seq.into(), position.into(), view.to_string().into(), verdict, json(check)?.into()])
    };
    let rows = (0..).zip(checks).map(row).collect::<Result<Vec<_>>>()?;
    for rows in rows.chunks(CHECKS_MAX) {
        let mut insert = Builder::new("INSERT INTO checks (run, seq, position, view, verdict, result) VALUES ");
        insert.push_rows(rows.iter().cloned());
        insert.build().execute(&mut *tx).await.map_err(on(doing))?;
    }
    Ok(())
}
