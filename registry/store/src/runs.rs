//! Runs: creating them with their tasks, listing them, and what people do to them.

use std::collections::HashMap;

use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{DagName, RunId};
use tidegate_registry::run::{Cause, NewRun, Run, RunState, Task, TaskState};
use tidegate_registry::store::{Change, LogLine, Result, RunFilter, StoreError};
use tidegate_registry::time::{Instant, Interval};

use crate::codec::{limit_or_all, micros};
use crate::creation::Creation;
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, Row, Sql, db_now, locked, query};
use crate::{audit, definitions, moves};

/// All columns of [`run_from`].
macro_rules! run_fields {
    () => {
        "runs.id, runs.dag, runs.interval_start, runs.interval_end, runs.views, runs.cause, runs.definitions, \
         runs.revision, runs.state, runs.reason, runs.created_at, runs.started_at, runs.finished_at, runs.restarts, \
         runs.overriding"
    };
}
pub(crate) use run_fields;

macro_rules! run_columns {
    () => {
        concat!("SELECT ", run_fields!(), " FROM runs ")
    };
}

pub(crate) async fn create(db: &Db, runs: &[NewRun], now: Instant) -> Result<Vec<RunId>> {
    let mut tx = db.write_alone().await?;
    let ids = create_in_tx(&mut tx, runs, now).await?;
    tx.has_changed(Change::Runs);
    commit(tx).await?;
    Ok(ids)
}

/// Creates those of `runs` that do not exist. A run that was made anew by a retry exists under its newest id.
async fn create_in_tx(tx: &mut Conn, runs: &[NewRun], now: Instant) -> Result<Vec<RunId>> {
    let mut creation = Creation::read(tx, &runs.iter().collect::<Vec<_>>()).await?;
    let mut ids = Vec::with_capacity(runs.len());
    for run in runs {
        creation.refuse_unless_possible(run)?;
        ids.push(creation.add(run));
    }
    creation.write(tx, now).await?;
    Ok(ids)
}

pub(crate) async fn list(db: &Db, filter: &RunFilter) -> Result<Vec<Run>> {
    let mut tx = db.read().await?;
    list_in_tx(&mut tx, filter).await
}

pub(crate) async fn list_in_tx(tx: &mut Conn, filter: &RunFilter) -> Result<Vec<Run>> {
    let mut query = Builder::new(run_columns!());
    query.push("WHERE 1 = 1");
    if let Some(dag) = &filter.dag {
        query.push(" AND dag = ").push_bind(dag.as_str());
    }
    if let Some(from) = filter.from {
        query.push(" AND interval_start >= ").push_bind(micros(from));
    }
    if let Some(to) = filter.to {
        query.push(" AND interval_start < ").push_bind(micros(to));
    }
    if let Some(cause) = &filter.cause {
        query.push(" AND cause = ").push_bind(cause);
    }
    if !filter.states.is_empty() {
        query.push(" AND state IN ").push_list(filter.states.iter().map(|state| state.as_str()));
        if filter.states.iter().all(|state| state.is_open()) {
            // Leads to the index of open runs.
            query.push(" AND finished_at IS NULL");
        }
    }
    query.push(" ORDER BY interval_start DESC, revision DESC, dag LIMIT ").push_bind(limit_or_all(filter.limit));
    let rows = query.build().fetch_all(tx).await.map_err(on("listing runs"))?;
    rows.iter().map(run_from).collect()
}

pub(crate) async fn get(db: &Db, id: RunId) -> Result<(Run, Vec<Task>)> {
    let mut tx = db.read_together().await?;
    let run = get_in_tx(&mut tx, id).await?;
    let rows = query(
        "SELECT kind, state, attempts, rows, started_at, finished_at, error, output FROM tasks \
         WHERE run = $1 ORDER BY seq",
    )
    .bind(id.to_string())
    .fetch_all(&mut tx)
    .await
    .map_err(on("reading the tasks of a run"))?;
    commit(tx).await?;
    Ok((run, rows.iter().map(task_from).collect::<Result<_>>()?))
}

pub(crate) async fn get_in_tx(tx: &mut Conn, id: RunId) -> Result<Run> {
    let row = query(concat!(run_columns!(), "WHERE id = $1"))
        .bind(id.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("reading a run"))?;
    known(id, row.as_ref())
}

/// The same, for whoever will change the run or its tasks: nobody else does until the transaction ends.
pub(crate) async fn lock_in_tx(tx: &mut Conn, id: RunId) -> Result<Run> {
    let row = query(locked!(run_columns!(), "WHERE id = $1"))
        .bind(id.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("locking a run"))?;
    known(id, row.as_ref())
}

/// All open runs, for whoever will end some of them, in the order in which runs are locked.
pub(crate) async fn lock_open_in_tx(tx: &mut Conn) -> Result<Vec<Run>> {
    let rows = query(locked!(run_columns!(), "WHERE finished_at IS NULL ORDER BY id"))
        .fetch_all(tx)
        .await
        .map_err(on("locking the open runs"))?;
    rows.iter().map(run_from).collect()
}

/// The same, unless somebody else holds it now or it does not exist.
pub(crate) async fn lock_if_free_in_tx(tx: &mut Conn, id: RunId) -> Result<Option<Run>> {
    let row = query(Sql {
        sqlite: concat!(run_columns!(), "WHERE id = $1"),
        postgres: concat!(run_columns!(), "WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED"),
    })
    .bind(id.to_string())
    .fetch_optional(tx)
    .await
    .map_err(on("locking a run"))?;
    row.as_ref().map(run_from).transpose()
}

fn known(id: RunId, row: Option<&Row>) -> Result<Run> {
    row.map_or_else(|| Err(StoreError::NotFound { what: "run", name: id.to_string() }), run_from)
}

pub(crate) async fn by_prefix(db: &Db, prefix: &str) -> Result<Vec<RunId>> {
    let prefix = prefix.to_ascii_lowercase();
    if !prefix.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Ok(Vec::new());
    }
    let mut tx = db.read().await?;
    // `g` sorts after every digit of an id.
    let rows = query("SELECT id FROM runs WHERE id >= $1 AND id < $1 || 'g' ORDER BY id LIMIT 10")
        .bind(prefix)
        .fetch_all(&mut tx)
        .await
        .map_err(on("looking for runs by id"))?;
    rows.iter().map(|row| row.parse("id")).collect()
}

pub(crate) async fn open(db: &Db) -> Result<Vec<Run>> {
    let mut tx = db.read().await?;
    let rows = query(concat!(run_columns!(), "WHERE finished_at IS NULL ORDER BY interval_start, dag, revision"))
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading the open runs"))?;
    rows.iter().map(run_from).collect()
}

pub(crate) async fn latest(db: &Db, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Run>> {
    let mut tx = db.read().await?;
    let rows = query(concat!(
        run_columns!(),
        "WHERE dag = $1 AND interval_start >= $2 AND interval_start < $3 AND revision = (\
         SELECT max(other.revision) FROM runs AS other WHERE other.dag = runs.dag \
         AND other.interval_start = runs.interval_start AND other.interval_end = runs.interval_end) \
         ORDER BY interval_start, interval_end"
    ))
    .bind(dag.as_str())
    .bind(micros(from))
    .bind(micros(to))
    .fetch_all(&mut tx)
    .await
    .map_err(on("reading the latest runs"))?;
    rows.iter().map(run_from).collect()
}

pub(crate) async fn admit(db: &Db, id: RunId) -> Result<()> {
    admit_all(db, &[id]).await
}

/// Runs in one question.
const RUNS_MAX: usize = 1_000;

/// The turn of a run is fixed here: who is let in later is overtaken by no more than the lead of its priority.
const RANK: &str = concat!(
    "UPDATE tasks SET rank = ",
    db_now!(),
    " - 60000000 * (SELECT priority FROM runs WHERE runs.id = tasks.run), \
     ready = CASE WHEN state = 'queued' AND waits_for = '[]' THEN 1 ELSE 0 END WHERE run IN "
);

pub(crate) async fn admit_all(db: &Db, ids: &[RunId]) -> Result<()> {
    let mut tx = db.write_alone().await?;
    for ids in ids.chunks(RUNS_MAX) {
        let mut lock = Builder::new("SELECT id, state FROM runs WHERE id IN ");
        lock.push_list(ids.iter().map(ToString::to_string)).push(" ORDER BY id").push_end(locked!(""));
        let rows = lock.build().fetch_all(&mut tx).await.map_err(on("locking runs"))?;
        let mut states = HashMap::new();
        for row in &rows {
            states.insert(row.parse::<RunId>("id")?, row.parse::<RunState>("state")?);
        }
        if let Some(unknown) = ids.iter().find(|id| !states.contains_key(id)) {
            return Err(StoreError::NotFound { what: "run", name: unknown.to_string() });
        }
        states.retain(|_, state| *state == RunState::Waiting);
        if states.is_empty() {
            continue;
        }
        let waiting: Vec<String> = states.keys().map(ToString::to_string).collect();
        let mut admit = Builder::new("UPDATE runs SET state = 'queued', reason = NULL WHERE id IN ");
        admit.push_list(&waiting);
        admit.build().execute(&mut tx).await.map_err(on("admitting runs"))?;
        let mut rank = Builder::new(RANK);
        rank.push_list(&waiting);
        rank.build().execute(&mut tx).await.map_err(on("admitting runs"))?;
        tx.has_changed(Change::Tasks);
    }
    commit(tx).await
}

pub(crate) async fn wait_reason(db: &Db, id: RunId, reason: &str) -> Result<()> {
    let mut tx = db.write().await?;
    if lock_in_tx(&mut tx, id).await?.state == RunState::Waiting {
        query("UPDATE runs SET reason = $1 WHERE id = $2")
            .bind(reason)
            .bind(id.to_string())
            .execute(&mut tx)
            .await
            .map_err(on("noting what a run waits for"))?;
    }
    commit(tx).await
}

pub(crate) async fn cancel(db: &Db, id: RunId, actor: &str, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let run = lock_in_tx(&mut tx, id).await?;
    if run.state == RunState::Publishing {
        return Err(StoreError::Refused(format!(
            "the run `{id}` is already publishing and can only finish: restore its views afterwards instead"
        )));
    }
    if !run.state.is_open() {
        return Err(StoreError::Refused(format!("the run `{id}` has already ended: it {}", ended(run.state))));
    }
    moves::run_end(&mut tx, id, RunState::Cancelled, &format!("cancelled by {actor}"), now).await?;
    let event = NewAuditEvent::new(now, actor, "run_cancel", id.to_string())
        .change(json!(run.state), json!(RunState::Cancelled))
        .with(json!({ "dag": run.dag, "interval": run.interval, "views": run.views }));
    audit::add_in_tx(&mut tx, &event).await?;
    commit(tx).await
}

fn ended(state: RunState) -> String {
    match state {
        RunState::Succeeded | RunState::Failed => state.to_string(),
        other => format!("was {other}"),
    }
}

pub(crate) async fn retry(db: &Db, id: RunId, attempts_max: u32, actor: &str, now: Instant) -> Result<RunId> {
    let mut tx = db.write_alone().await?;
    let old = lock_in_tx(&mut tx, id).await?;
    if !matches!(old.state, RunState::Blocked | RunState::Failed | RunState::Cancelled) {
        return Err(StoreError::Refused(format!(
            "the run `{id}` is {}: only blocked, failed and cancelled runs can be retried",
            old.state
        )));
    }
    if let Some(open) = open_of_interval(&mut tx, &old.dag, old.interval).await? {
        return Err(StoreError::Refused(format!(
            "the run `{open}` of the same interval is still open: wait for it, or cancel it first"
        )));
    }
    let definitions = definitions::revision_in_tx(&mut tx).await?;
    let (_, project) = definitions::project_in_tx(&mut tx, Some(definitions)).await?;
    if let Some(gone) = old.views.iter().find(|view| !project.views.contains_key(*view)) {
        return Err(StoreError::Refused(format!("the view `{gone}` of this run is no longer defined")));
    }
    let new = NewRun {
        dag: old.dag,
        interval: old.interval,
        views: project.in_dependency_order(&old.views).into_iter().cloned().collect(),
        cause: old.cause,
        definitions,
        attempts_max,
        priority: priority_in_tx(&mut tx, id).await?,
    };
    let mut creation = Creation::read_again(&mut tx, &new).await?;
    let again = creation.add_again(&new);
    creation.write(&mut tx, now).await?;
    tx.has_changed(Change::Runs);
    let event = NewAuditEvent::new(now, actor, "run_retry", id.to_string())
        .change(json!({ "run": id, "state": old.state }), json!({ "run": again }))
        .with(json!({ "dag": new.dag, "interval": new.interval, "views": new.views }));
    audit::add_in_tx(&mut tx, &event).await?;
    commit(tx).await?;
    Ok(again)
}

pub(crate) async fn priority_in_tx(tx: &mut Conn, id: RunId) -> Result<i32> {
    let row = query("SELECT priority FROM runs WHERE id = $1").bind(id.to_string()).fetch_one(tx).await;
    row.map_err(on("reading the priority of a run"))?.signed("priority")
}

pub(crate) async fn open_of_interval(tx: &mut Conn, dag: &DagName, interval: Interval) -> Result<Option<RunId>> {
    let row = query(
        "SELECT id FROM runs WHERE dag = $1 AND interval_start = $2 AND interval_end = $3 AND finished_at IS NULL \
         LIMIT 1",
    )
    .bind(dag.as_str())
    .bind(micros(interval.start()))
    .bind(micros(interval.end()))
    .fetch_optional(tx)
    .await
    .map_err(on("looking for open runs"))?;
    row.map(|row| row.parse("id")).transpose()
}

pub(crate) async fn logs(db: &Db, id: RunId) -> Result<Vec<LogLine>> {
    let mut tx = db.read().await?;
    get_in_tx(&mut tx, id).await?;
    let rows = query("SELECT at, task, attempt, level, message FROM task_logs WHERE run = $1 ORDER BY id")
        .bind(id.to_string())
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading the lines of a run"))?;
    rows.iter()
        .map(|row| {
            Ok(LogLine {
                at: row.instant("at")?,
                task: row.get_as("task")?,
                attempt: row.count("attempt")?,
                level: row.get_as("level")?,
                message: row.get_as("message")?,
            })
        })
        .collect()
}

/// A row with [`run_fields!`].
pub(crate) fn run_from(row: &Row) -> Result<Run> {
    Ok(Run {
        id: row.parse("id")?,
        dag: row.parse("dag")?,
        interval: row.interval()?,
        views: row.json("views")?,
        cause: row.parse::<Cause>("cause")?,
        definitions: row.get_as("definitions")?,
        revision: row.count("revision")?,
        state: row.parse("state")?,
        reason: row.get_as("reason")?,
        created_at: row.instant("created_at")?,
        started_at: row.instant_option("started_at")?,
        finished_at: row.instant_option("finished_at")?,
        restarts: row.count("restarts")?,
        overriding: row.json_option("overriding")?,
    })
}

fn task_from(row: &Row) -> Result<Task> {
    Ok(Task {
        kind: row.parse("kind")?,
        state: row.parse::<TaskState>("state")?,
        attempts: row.count("attempts")?,
        rows: row.count_option("rows")?,
        started_at: row.instant_option("started_at")?,
        finished_at: row.instant_option("finished_at")?,
        error: row.get_as("error")?,
        output: row.json_option("output")?,
    })
}
