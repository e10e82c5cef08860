//! Who gets which task: claiming by lease, and taking back what the dead hold.

use std::collections::HashMap;
use std::time::Duration;

use indexmap::IndexMap;
use tidegate_registry::ids::{LeaseToken, QueueName, RunId};
use tidegate_registry::run::{Claim, Run, RunState, TaskKind, TaskOutput, TaskState};
use tidegate_registry::store::{ClaimRequest, Result};
use tidegate_registry::time::Instant;

use crate::codec::{duration_micros, micros};
use crate::db::{Conn, Db, commit, on};
use crate::moves::{self, task_columns};
use crate::runs::{self, run_fields};
use crate::sql::{Builder, Row, Sql, db_now, locked, query};
use crate::{pools, tasks};

/// Tasks that may be claimed now, by the index `tasks_ready` alone.
macro_rules! ready {
    () => {
        concat!("tasks.ready = 1 AND (tasks.retry_at IS NULL OR tasks.retry_at <= ", db_now!(), ")")
    };
}

/// The order in which tasks are claimed, which is that of the index.
macro_rules! claim_order {
    () => {
        " ORDER BY tasks.begun DESC, tasks.rank, tasks.interval_start, tasks.run, tasks.seq"
    };
}
pub(crate) use claim_order;

/// The next tasks to claim, with their runs.
macro_rules! next {
    () => {
        concat!(
            "SELECT ",
            run_fields!(),
            ", tasks.seq, tasks.kind, tasks.attempts, tasks.attempts_max, tasks.waits_for, tasks.begun, tasks.pool FROM tasks \
             JOIN runs ON runs.id = tasks.run WHERE ",
            ready!()
        )
    };
}

/// For the tests of query plans.
#[cfg(test)]
pub(crate) const NEXT: &str = concat!(next!(), claim_order!(), " LIMIT 1");

/// Tasks whose lease has expired, by the index `tasks_leased` alone.
macro_rules! expired {
    () => {
        concat!("SELECT run, seq FROM tasks WHERE lease_until <= ", db_now!())
    };
}

/// For the tests of query plans.
#[cfg(test)]
pub(crate) const EXPIRED: &str = concat!(expired!(), " ORDER BY lease_until LIMIT 100");

/// Between two looks at tasks of runs that others held for a moment.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(2), Duration::from_millis(5), Duration::from_millis(15)];

/// How often a claim goes on past pools that turned out to be full.
const ROUNDS: u32 = 8;

pub(crate) async fn claim(db: &Db, request: &ClaimRequest, now: Instant) -> Result<Vec<Claim>> {
    for pause in LOOKS {
        // A sleep of no time takes a millisecond.
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        // Idle workers ask often: they look without taking any lock.
        let mut look = db.read().await?;
        let found = is_anything_to_do(&mut look, request).await?;
        drop(look);
        if !found {
            break;
        }
        let mut tx = db.write().await?;
        take_back_expired(&mut tx, request, now).await?;
        let claims = claim_in_tx(&mut tx, request, now).await?;
        commit(tx).await?;
        if !claims.is_empty() {
            return Ok(claims);
        }
    }
    Ok(Vec::new())
}

async fn claim_in_tx(tx: &mut Conn, request: &ClaimRequest, now: Instant) -> Result<Vec<Claim>> {
    let limit = request.limit.max(1) as usize;
    let mut claims = Vec::new();
    let mut full = pools::full(tx).await?;
    for _ in 0..ROUNDS {
        let rows = next(tx, request, &full, limit - claims.len()).await?;
        let mut free = free_slots(tx, &rows).await?;
        let before = full.len();
        for row in &rows {
            let pool: Option<&str> = row.get_as("pool")?;
            match pool.and_then(|pool| free.get_mut(pool).map(|free| (pool, free))) {
                Some((pool, free)) if *free <= 0 => full.push(pool.to_owned()),
                Some((_, free)) => {
                    *free -= 1;
                    claims.push(lease(tx, row, request, now).await?);
                }
                None => claims.push(lease(tx, row, request, now).await?),
            }
        }
        if full.len() == before || claims.len() >= limit {
            break;
        }
    }
    Ok(claims)
}

/// The free slots of the pools that `rows` are in and that are still defined, for nobody else to take.
async fn free_slots(tx: &mut Conn, rows: &[Row]) -> Result<HashMap<String, i64>> {
    let mut names = Vec::new();
    for row in rows {
        names.extend(row.get_as::<Option<String>>("pool")?);
    }
    if names.is_empty() { Ok(HashMap::new()) } else { pools::lock_free(tx, &names).await }
}

async fn is_anything_to_do(conn: &mut Conn, request: &ClaimRequest) -> Result<bool> {
    let mut look = Builder::new("SELECT 1 WHERE EXISTS (SELECT 1 FROM tasks WHERE ");
    look.push(ready!());
    push_wanted(&mut look, request);
    look.push(concat!(") OR EXISTS (", expired!()));
    push_own(&mut look, request);
    look.push(")");
    Ok(look.build().fetch_optional(conn).await.map_err(on("looking for a task"))?.is_some())
}

/// The next tasks, locked with their runs. Those that somebody else holds are passed over, and those in `full` pools.
async fn next(tx: &mut Conn, request: &ClaimRequest, full: &[String], limit: usize) -> Result<Vec<Row>> {
    let mut next = Builder::new(next!());
    push_wanted(&mut next, request);
    if !full.is_empty() {
        next.push(" AND (tasks.pool IS NULL OR tasks.pool NOT IN ").push_list(full).push(")");
    }
    next.push(concat!(claim_order!(), " LIMIT ")).push_bind(limit as i64);
    next.push_end(Sql { sqlite: "", postgres: " FOR NO KEY UPDATE OF runs, tasks SKIP LOCKED" });
    next.build().fetch_all(tx).await.map_err(on("looking for a task"))
}

/// Only what this worker may claim.
fn push_wanted(query: &mut Builder, request: &ClaimRequest) {
    if !request.only.is_empty() {
        query.push(" AND tasks.run IN ").push_list(request.only.iter().map(ToString::to_string));
    }
    if !request.queues.is_empty() {
        query.push(" AND tasks.queue IN ").push_list(request.queues.iter().map(QueueName::as_str));
    }
    query.push(" AND NOT EXISTS (SELECT 1 FROM workers WHERE drained = 1 AND owner = ").push_bind(&request.owner);
    query.push(")");
}

/// Only the leases that a claim for certain runs may take back: theirs, and those that hold slots of pools.
fn push_own(query: &mut Builder, request: &ClaimRequest) {
    if !request.only.is_empty() {
        query.push(" AND (pool IS NOT NULL OR run IN ").push_list(request.only.iter().map(ToString::to_string));
        query.push(")");
    }
}

/// Takes tasks from workers that let their leases expire.
async fn take_back_expired(tx: &mut Conn, request: &ClaimRequest, now: Instant) -> Result<()> {
    let mut expired = Builder::new(expired!());
    push_own(&mut expired, request);
    expired.push(" ORDER BY lease_until LIMIT 100");
    let rows = expired.build().fetch_all(&mut *tx).await.map_err(on("looking for expired leases"))?;
    for row in &rows {
        let (id, seq) = (row.parse("run")?, row.get_as("seq")?);
        // Somebody holds the run: whoever claims next sees to it.
        let Some(run) = runs::lock_if_free_in_tx(tx, id).await? else { continue };
        take_back(tx, run, seq, now).await?;
    }
    Ok(())
}

async fn take_back(tx: &mut Conn, run: Run, seq: i64, now: Instant) -> Result<()> {
    // Looked at again under the lock: a heartbeat may have come in between.
    let row = query(locked!(task_columns!(), "WHERE run = $1 AND seq = $2 AND lease_until <= ", db_now!()))
        .bind(run.id.to_string())
        .bind(seq)
        .fetch_optional(&mut *tx)
        .await
        .map_err(on("looking at an expired lease"))?;
    let Some(row) = row else { return Ok(()) };
    let task = moves::held_from(run, &row)?;
    if task.state != TaskState::Running {
        // Its run has just ended because of a sibling.
        return Ok(());
    }
    let lost = match &task.owner {
        Some(owner) => format!("worker lost: `{owner}` no longer renewed its lease"),
        None => "worker lost: its process died".to_owned(),
    };
    if task.attempts >= task.attempts_max && !task.is_committed() {
        return tasks::fail(tx, &task, &lost, now).await;
    }
    query(
        "UPDATE tasks SET state = 'queued', ready = 1, error = $1, finished_at = $2, retry_at = NULL, token = NULL, \
         lease_owner = NULL, lease_until = NULL WHERE run = $3 AND seq = $4",
    )
    .bind(lost)
    .bind(micros(now))
    .bind(task.run.id.to_string())
    .bind(seq)
    .execute(tx)
    .await
    .map_err(on("taking back a task"))?;
    Ok(())
}

/// Gives a task of [`next`] to whoever asked.
async fn lease(tx: &mut Conn, row: &Row, request: &ClaimRequest, now: Instant) -> Result<Claim> {
    let token = LeaseToken::generate();
    let mut run = runs::run_from(row)?;
    let seq: i64 = row.get_as("seq")?;
    query(concat!(
        "UPDATE tasks SET state = 'running', ready = 0, attempts = attempts + 1, started_at = $1, \
         finished_at = NULL, retry_at = NULL, token = $2, lease_owner = $3, lease_until = $4 + ",
        db_now!(),
        " WHERE run = $5 AND seq = $6"
    ))
    .bind(micros(now))
    .bind(token.to_string())
    .bind(&request.owner)
    .bind(duration_micros(request.lease))
    .bind(run.id.to_string())
    .bind(seq)
    .execute(&mut *tx)
    .await
    .map_err(on("claiming a task"))?;
    if !row.get_as::<bool>("begun")? {
        query("UPDATE tasks SET begun = 1 WHERE run = $1 AND begun = 0")
            .bind(run.id.to_string())
            .execute(&mut *tx)
            .await
            .map_err(on("beginning a run"))?;
    }
    if run.state == RunState::Queued || run.started_at.is_none() || run.reason.is_some() {
        if run.state == RunState::Queued {
            run.state = RunState::Running;
        }
        run.started_at = run.started_at.or(Some(now));
        run.reason = None;
        query("UPDATE runs SET state = $1, started_at = $2, reason = NULL WHERE id = $3")
            .bind(run.state.as_str())
            .bind(run.started_at.map(micros))
            .bind(run.id.to_string())
            .execute(&mut *tx)
            .await
            .map_err(on("beginning a run"))?;
    }
    Ok(Claim {
        token,
        kind: row.parse::<TaskKind>("kind")?,
        attempt: row.count::<u32>("attempts")? + 1,
        attempts_max: row.count("attempts_max")?,
        inputs: inputs(tx, run.id, seq, &row.json::<Vec<i64>>("waits_for")?).await?,
        run,
    })
}

/// The outputs of what a task waits for.
async fn inputs(tx: &mut Conn, run: RunId, seq: i64, waits_for: &[i64]) -> Result<IndexMap<String, TaskOutput>> {
    let mut inputs = IndexMap::new();
    if waits_for.is_empty() {
        return Ok(inputs);
    }
    let rows = query("SELECT seq, kind, output FROM tasks WHERE run = $1 AND seq < $2 ORDER BY seq")
        .bind(run.to_string())
        .bind(seq)
        .fetch_all(tx)
        .await
        .map_err(on("reading the inputs of a task"))?;
    for row in &rows {
        if waits_for.contains(&row.get_as::<i64>("seq")?)
            && let Some(output) = row.json_option("output")?
        {
            inputs.insert(row.get_as("kind")?, output);
        }
    }
    Ok(inputs)
}
