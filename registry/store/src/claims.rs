//! Who gets which task: claiming by lease, and taking back what the dead hold.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use indexmap::IndexMap;
use tidegate_registry::ids::{LeaseToken, QueueName, RunId};
use tidegate_registry::run::{Claim, Run, RunState, TaskKind, TaskOutput, TaskState};
use tidegate_registry::store::{ClaimRequest, Result};
use tidegate_registry::time::Instant;

use crate::codec::{duration_micros, micros};
use crate::db::{Conn, Db, commit, on};
use crate::moves::{self, task_fields};
use crate::runs::{self, run_fields};
use crate::sql::{Arg, Builder, Row, Sql, db_now, locked, query};
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
        let found = look_around(&mut look, request).await?;
        drop(look);
        if !found.is_anything {
            break;
        }
        let mut tx = db.write().await?;
        if found.is_expired {
            take_back_expired(&mut tx, request, now).await?;
        }
        let claims = claim_in_tx(&mut tx, request, found.has_pools, now).await?;
        commit(tx).await?;
        if !claims.is_empty() {
            return Ok(claims);
        }
    }
    Ok(Vec::new())
}

async fn claim_in_tx(tx: &mut Conn, request: &ClaimRequest, has_pools: bool, now: Instant) -> Result<Vec<Claim>> {
    let limit = request.limit.max(1) as usize;
    let mut claims = Vec::new();
    let mut full = if has_pools { pools::full(tx).await? } else { Vec::new() };
    for _ in 0..ROUNDS {
        let rows = next(tx, request, &full, limit - claims.len()).await?;
        let mut free = free_slots(tx, &rows).await?;
        let before = full.len();
        let mut taken = Vec::with_capacity(rows.len());
        for row in &rows {
            let pool: Option<&str> = row.get_as("pool")?;
            match pool.and_then(|pool| free.get_mut(pool).map(|free| (pool, free))) {
                Some((pool, free)) if *free <= 0 => full.push(pool.to_owned()),
                Some((_, free)) => {
                    *free -= 1;
                    taken.push(row);
                }
                None => taken.push(row),
            }
        }
        claims.extend(lease(tx, &taken, request, now).await?);
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

/// What a worker sees before it claims.
struct Look {
    /// There is something to claim or to take back.
    is_anything: bool,
    is_expired: bool,
    has_pools: bool,
}

async fn look_around(conn: &mut Conn, request: &ClaimRequest) -> Result<Look> {
    let mut look = Builder::new("SELECT CASE WHEN EXISTS (SELECT 1 FROM tasks WHERE ");
    look.push(ready!());
    push_wanted(&mut look, request);
    look.push(concat!(") THEN CAST(1 AS BIGINT) ELSE 0 END AS ready, CASE WHEN EXISTS (", expired!()));
    push_own(&mut look, request);
    look.push(
        ") THEN CAST(1 AS BIGINT) ELSE 0 END AS expired, \
         CASE WHEN EXISTS (SELECT 1 FROM pools) THEN CAST(1 AS BIGINT) ELSE 0 END AS pools",
    );
    let row = look.build().fetch_one(conn).await.map_err(on("looking for a task"))?;
    let is_expired: bool = row.get_as("expired")?;
    Ok(Look { is_anything: is_expired || row.get_as("ready")?, is_expired, has_pools: row.get_as("pools")? })
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
    let row = query(locked!(
        "SELECT ",
        task_fields!(),
        " FROM tasks WHERE run = $1 AND seq = $2 AND lease_until <= ",
        db_now!()
    ))
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

/// Gives tasks of [`next`] to whoever asked.
async fn lease(tx: &mut Conn, rows: &[&Row], request: &ClaimRequest, now: Instant) -> Result<Vec<Claim>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut claims = rows.iter().map(|row| claim_from(row)).collect::<Result<Vec<_>>>()?;
    let seqs = rows.iter().map(|row| row.get_as::<i64>("seq")).collect::<Result<Vec<_>>>()?;
    let mut lease = Builder::new(
        "UPDATE tasks SET state = 'running', ready = 0, attempts = attempts + 1, finished_at = NULL, retry_at = NULL, \
         token = given.column3, started_at = ",
    );
    lease.push_bind(micros(now)).push(", lease_owner = ").push_bind(&request.owner).push(", lease_until = ");
    lease.push_bind(duration_micros(request.lease)).push(concat!(" + ", db_now!(), " FROM (VALUES "));
    lease.push_rows(
        claims
            .iter()
            .zip(&seqs)
            .map(|(claim, seq)| [Arg::from(claim.run.id.to_string()), (*seq).into(), claim.token.to_string().into()]),
    );
    lease.push(") AS given WHERE tasks.run = given.column1 AND tasks.seq = given.column2");
    lease.build().execute(&mut *tx).await.map_err(on("claiming tasks"))?;
    begin(tx, rows, &mut claims, now).await?;
    give_inputs(tx, rows, &mut claims).await?;
    Ok(claims)
}

/// The runs of `claims` are under way from now on.
async fn begin(tx: &mut Conn, rows: &[&Row], claims: &mut [Claim], now: Instant) -> Result<()> {
    let (mut fresh, mut resting) = (BTreeSet::new(), BTreeSet::new());
    for (row, Claim { run, .. }) in rows.iter().zip(claims) {
        if !row.get_as::<bool>("begun")? {
            fresh.insert(run.id);
        }
        if run.state == RunState::Queued || run.started_at.is_none() || run.reason.is_some() {
            resting.insert(run.id);
            if run.state == RunState::Queued {
                run.state = RunState::Running;
            }
            run.started_at = run.started_at.or(Some(now));
            run.reason = None;
        }
    }
    if !fresh.is_empty() {
        let mut begun = Builder::new("UPDATE tasks SET begun = 1 WHERE begun = 0 AND run IN ");
        begun.push_list(fresh.iter().map(ToString::to_string));
        begun.build().execute(&mut *tx).await.map_err(on("beginning runs"))?;
    }
    if !resting.is_empty() {
        let mut begun = Builder::new(
            "UPDATE runs SET state = CASE state WHEN 'queued' THEN 'running' ELSE state END, reason = NULL, \
             started_at = coalesce(started_at, ",
        );
        begun.push_bind(micros(now)).push(") WHERE id IN ").push_list(resting.iter().map(ToString::to_string));
        begun.build().execute(&mut *tx).await.map_err(on("beginning runs"))?;
    }
    Ok(())
}

/// A claim on the task of `row`, as it will be, yet without inputs.
fn claim_from(row: &Row) -> Result<Claim> {
    Ok(Claim {
        token: LeaseToken::generate(),
        kind: row.parse::<TaskKind>("kind")?,
        attempt: row.count::<u32>("attempts")? + 1,
        attempts_max: row.count("attempts_max")?,
        inputs: IndexMap::new(),
        run: runs::run_from(row)?,
    })
}

/// Tasks whose outputs are read by one statement.
const INPUTS_MAX: usize = 1_000;

/// Adds the outputs of what the claimed tasks wait for, in the order of the tasks.
async fn give_inputs(tx: &mut Conn, rows: &[&Row], claims: &mut [Claim]) -> Result<()> {
    let mut wanted: HashMap<(RunId, i64), Vec<usize>> = HashMap::new();
    for (position, (row, claim)) in rows.iter().zip(&*claims).enumerate() {
        for before in row.json::<Vec<i64>>("waits_for")? {
            wanted.entry((claim.run.id, before)).or_default().push(position);
        }
    }
    let mut places: Vec<(RunId, i64)> = wanted.keys().copied().collect();
    places.sort();
    for places in places.chunks(INPUTS_MAX) {
        let mut outputs = Builder::new("SELECT tasks.run, tasks.seq, tasks.kind, tasks.output FROM (VALUES ");
        outputs.push_rows(places.iter().map(|(run, seq)| [Arg::from(run.to_string()), (*seq).into()]));
        outputs.push(
            ") AS place JOIN tasks ON tasks.run = place.column1 AND tasks.seq = place.column2 \
             WHERE tasks.output IS NOT NULL ORDER BY tasks.run, tasks.seq",
        );
        for row in outputs.build().fetch_all(&mut *tx).await.map_err(on("reading the inputs of tasks"))? {
            let output: TaskOutput = row.json("output")?;
            for position in wanted.get(&(row.parse("run")?, row.get_as("seq")?)).into_iter().flatten() {
                claims[*position].inputs.insert(row.get_as("kind")?, output.clone());
            }
        }
    }
    Ok(())
}
