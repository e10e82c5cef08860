//! The moves that runs and their tasks can make. All of them happen inside a caller's transaction.
//!
//! A task is `ready` while it is queued, its run is admitted and all that it waits for has succeeded; the flag exists so
//! that claiming is one step in an index, however many runs are stored. A task that runs has a token and a lease; one
//! that ended keeps the token, so that ending it again is recognised as the same.

use std::collections::HashMap;

use tidegate_registry::ids::{LeaseToken, RunId, ViewId};
use tidegate_registry::run::{CheckResult, Run, RunState, TaskKind, TaskOutput, TaskState};
use tidegate_registry::store::{Change, Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::{json, micros, number_option};
use crate::db::{Conn, on};
use crate::runs;
use crate::sql::{Builder, Row, query};

macro_rules! task_columns {
    () => {
        "SELECT seq, kind, state, attempts, attempts_max, lease_owner, pool FROM tasks "
    };
}
pub(crate) use task_columns;

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
        self.run.state == RunState::Publishing && self.kind == TaskKind::Publish
    }
}

/// The task that `token` holds.
///
/// # Errors
/// [`StoreError::LostLease`] when it holds none.
pub(crate) async fn held(tx: &mut Conn, token: LeaseToken) -> Result<Held> {
    by_token(tx, token).await?.filter(|task| task.state == TaskState::Running).ok_or(StoreError::LostLease)
}

/// The task that `token` holds or was the last to hold. Its run is locked first: what is read of both stays so.
pub(crate) async fn by_token(tx: &mut Conn, token: LeaseToken) -> Result<Option<Held>> {
    let Some(run) = runs::lock_by_token(tx, token).await? else { return Ok(None) };
    let row = query(concat!(task_columns!(), "WHERE token = $1"))
        .bind(token.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("looking for a lease"))?;
    // It may have been taken away while we waited for the lock.
    row.map(|row| held_from(run, &row)).transpose()
}

/// A row of [`task_columns!`] of that run.
pub(crate) fn held_from(run: Run, row: &Row) -> Result<Held> {
    Ok(Held {
        run,
        seq: row.get_as("seq")?,
        kind: row.parse("kind")?,
        state: row.parse("state")?,
        attempts: row.count("attempts")?,
        attempts_max: row.count("attempts_max")?,
        owner: row.get_as("lease_owner")?,
        is_pooled: row.get_as::<Option<&str>>("pool")?.is_some(),
    })
}

/// Brings `ready` of the tasks of a run in `state` up to date. The run is locked.
pub(crate) async fn refresh_ready(tx: &mut Conn, run: RunId, state: RunState) -> Result<()> {
    let admitted = matches!(state, RunState::Queued | RunState::Running | RunState::Publishing);
    let rows = query("SELECT seq, state, waits_for, ready FROM tasks WHERE run = $1 ORDER BY seq")
        .bind(run.to_string())
        .fetch_all(&mut *tx)
        .await
        .map_err(on("reading the tasks of a run"))?;
    let mut states = HashMap::new();
    for row in &rows {
        states.insert(row.get_as::<i64>("seq")?, row.parse::<TaskState>("state")?);
    }
    let (mut begin, mut stop) = (Vec::new(), Vec::new());
    for row in &rows {
        let seq: i64 = row.get_as("seq")?;
        let waits_for: Vec<i64> = row.json("waits_for")?;
        let done = waits_for.iter().all(|before| states.get(before) == Some(&TaskState::Succeeded));
        let ready = admitted && done && states.get(&seq) == Some(&TaskState::Queued);
        if ready != row.get_as::<bool>("ready")? {
            if ready { &mut begin } else { &mut stop }.push(seq);
        }
    }
    for (ready, tasks) in [(true, begin), (false, stop)] {
        if !tasks.is_empty() {
            let mut change = Builder::new("UPDATE tasks SET ready = ");
            change.push_bind(ready).push(" WHERE run = ").push_bind(run.to_string()).push(" AND seq IN ");
            change.push_list(tasks);
            if ready {
                tx.has_changed(Change::Tasks);
            }
            change.build().execute(&mut *tx).await.map_err(on("moving tasks along"))?;
        }
    }
    Ok(())
}

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
        (TaskKind::Publish, Some(TaskOutput::Judged(views))) => {
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

/// Replaces the verdicts of one view of a run.
pub(crate) async fn verdicts_store(tx: &mut Conn, run: RunId, view: &ViewId, checks: &[CheckResult]) -> Result<()> {
    let doing = "storing verdicts";
    let row = query("SELECT seq FROM tasks WHERE run = $1 AND kind = $2")
        .bind(run.to_string())
        .bind(view.to_string())
        .fetch_optional(&mut *tx)
        .await
        .map_err(on(doing))?
        .ok_or_else(|| StoreError::Refused(format!("the run `{run}` does not compute `{view}`")))?;
    let seq: i64 = row.get_as("seq")?;
    query("DELETE FROM checks WHERE run = $1 AND seq = $2")
        .bind(run.to_string())
        .bind(seq)
        .execute(&mut *tx)
        .await
        .map_err(on(doing))?;
    for (position, check) in (0_i64..).zip(checks) {
        query("INSERT INTO checks (run, seq, position, view, verdict, result) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(run.to_string())
            .bind(seq)
            .bind(position)
            .bind(view.to_string())
            .bind(check.verdict.as_str())
            .bind(json(check)?)
            .execute(&mut *tx)
            .await
            .map_err(on(doing))?;
    }
    Ok(())
}
