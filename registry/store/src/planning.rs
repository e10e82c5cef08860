//! DAGs as the scheduler sees them: when each is due, and the grid of ticks stored so far.

use std::collections::BTreeMap;

use tidegate_registry::ids::{DagName, ViewId};
use tidegate_registry::store::{Change, DagHistory, DagState, PlanStep, Result, RunFilter, StoreError};
use tidegate_registry::time::{Instant, format_instant};

use crate::codec::micros;
use crate::db::{Conn, Db, commit, on};
use crate::runs;
use crate::sql::{Row, query};

macro_rules! dag_columns {
    () => {
        "SELECT dag, paused, planned_until, due_at, schedule_fingerprint, created_at, \
         (SELECT revision FROM registry) AS definitions FROM dags "
    };
}

/// What is due, by the index `dags_due` alone.
pub(crate) const DUE: &str = concat!(dag_columns!(), "WHERE due_at <= $1 ORDER BY due_at, dag LIMIT $2");

pub(crate) async fn dags_due(db: &Db, now: Instant, limit: u32) -> Result<Vec<DagState>> {
    let mut tx = db.read().await?;
    let rows = query(DUE).bind(micros(now)).bind(limit).fetch_all(&mut tx).await.map_err(on("reading the due DAGs"))?;
    rows.iter().map(dag_state).collect()
}

pub(crate) async fn dags(db: &Db) -> Result<Vec<DagState>> {
    let mut tx = db.read().await?;
    let rows = query(concat!(dag_columns!(), "WHERE retired = 0 ORDER BY dag"))
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading the DAGs"))?;
    rows.iter().map(dag_state).collect()
}

pub(crate) async fn next_due(db: &Db) -> Result<Option<Instant>> {
    let mut tx = db.read().await?;
    query("SELECT min(due_at) AS due_at FROM dags WHERE due_at IS NOT NULL")
        .fetch_one(&mut tx)
        .await
        .map_err(on("reading when a DAG is due"))?
        .instant_option("due_at")
}

pub(crate) async fn plan(db: &Db, step: &PlanStep, now: Instant) -> Result<()> {
    let mut tx = db.write_alone().await?;
    plan_in_tx(&mut tx, step, now).await?;
    tx.has_changed(Change::Runs);
    commit(tx).await
}

/// Each step behind a savepoint of its own, so that one that is refused takes nothing else back.
pub(crate) async fn plan_all(db: &Db, steps: &[PlanStep], now: Instant) -> Result<Vec<Result<()>>> {
    let mut tx = db.write_alone().await?;
    let mut verdicts = Vec::with_capacity(steps.len());
    for step in steps {
        tx.part().await?;
        let verdict = plan_in_tx(&mut tx, step, now).await;
        match verdict {
            Ok(()) => tx.part_keep().await?,
            Err(unavailable @ StoreError::Unavailable(_)) => return Err(unavailable),
            Err(_) => tx.part_undo().await?,
        }
        verdicts.push(verdict);
    }
    if verdicts.iter().any(Result::is_ok) {
        tx.has_changed(Change::Runs);
    }
    commit(tx).await?;
    Ok(verdicts)
}

async fn plan_in_tx(tx: &mut Conn, step: &PlanStep, now: Instant) -> Result<()> {
    let state = dag_in_tx(&mut *tx, &step.dag).await?;
    if state.planned_until != step.planned_until {
        return Err(StoreError::Conflict(format!("`{}` was planned by somebody else meanwhile", step.dag)));
    }
    let changed: i64 = query("SELECT changed FROM dags WHERE dag = $1")
        .bind(step.dag.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(on("reading a DAG"))?
        .get_as("changed")?;
    if changed > step.definitions {
        return Err(StoreError::Conflict(format!(
            "`{}` was changed at revision {changed}, and this plan was made on revision {}",
            step.dag, step.definitions
        )));
    }
    let mut last = step.planned_until;
    for tick in &step.ticks {
        if let Some(before) = last.filter(|before| before >= tick) {
            return Err(StoreError::Refused(format!(
                "the tick {} of `{}` does not come after {}",
                format_instant(*tick),
                step.dag,
                format_instant(before)
            )));
        }
        query("INSERT INTO ticks (dag, at) VALUES ($1, $2)")
            .bind(step.dag.as_str())
            .bind(micros(*tick))
            .execute(&mut *tx)
            .await
            .map_err(on("storing a tick"))?;
        last = Some(*tick);
    }
    query("UPDATE dags SET planned_until = $1, due_at = $2, schedule_fingerprint = $3 WHERE dag = $4")
        .bind(last.map(micros))
        .bind(step.due_at.map(micros))
        .bind(&step.schedule_fingerprint)
        .bind(step.dag.as_str())
        .execute(&mut *tx)
        .await
        .map_err(on("planning a DAG"))?;
    runs::create_in_tx(tx, &step.runs, now).await?;
    Ok(())
}

pub(crate) async fn ticks(db: &Db, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Instant>> {
    let mut tx = db.read().await?;
    ticks_in_tx(&mut tx, dag, from, to).await
}

async fn ticks_in_tx(tx: &mut Conn, dag: &DagName, from: Instant, to: Instant) -> Result<Vec<Instant>> {
    let rows = query("SELECT at FROM ticks WHERE dag = $1 AND at >= $2 AND at <= $3 ORDER BY at")
        .bind(dag.as_str())
        .bind(micros(from))
        .bind(micros(to))
        .fetch_all(tx)
        .await
        .map_err(on("reading ticks"))?;
    rows.iter().map(|row| row.instant("at")).collect()
}

pub(crate) async fn history(db: &Db, dag: &DagName, views: &[ViewId]) -> Result<DagHistory> {
    let mut tx = db.read_together().await?;
    let ticks = ticks_in_tx(&mut tx, dag, Instant::MIN_UTC, Instant::MAX_UTC).await?;
    let mut published = BTreeMap::new();
    for view in views {
        let rows = query("SELECT interval_start, interval_end FROM ledger WHERE view = $1")
            .bind(view.to_string())
            .fetch_all(&mut tx)
            .await
            .map_err(on("reading a ledger"))?;
        published.insert(view.clone(), rows.iter().map(Row::interval).collect::<Result<_>>()?);
    }
    let runs = runs::list_in_tx(&mut tx, &RunFilter { dag: Some(dag.clone()), ..RunFilter::default() }).await?;
    commit(tx).await?;
    Ok(DagHistory { ticks, published, runs })
}

pub(crate) async fn dag_pause(db: &Db, dag: &DagName, paused: bool) -> Result<()> {
    let mut tx = db.write_alone().await?;
    let state = dag_in_tx(&mut tx, dag).await?;
    // No `now` is needed to be due at once: the DAG's creation lies in the past by any clock of the project.
    let due_at = if state.paused && !paused { Some(state.created_at) } else { state.due_at };
    query("UPDATE dags SET paused = $1, due_at = $2 WHERE dag = $3")
        .bind(paused)
        .bind(due_at.map(micros))
        .bind(dag.as_str())
        .execute(&mut tx)
        .await
        .map_err(on("pausing a DAG"))?;
    tx.has_changed(Change::Runs);
    commit(tx).await
}

async fn dag_in_tx(tx: &mut Conn, dag: &DagName) -> Result<DagState> {
    let row = query(concat!(dag_columns!(), "WHERE dag = $1 AND retired = 0"))
        .bind(dag.as_str())
        .fetch_optional(tx)
        .await
        .map_err(on("reading a DAG"))?;
    row.as_ref().map_or_else(|| Err(StoreError::NotFound { what: "DAG", name: dag.to_string() }), dag_state)
}

fn dag_state(row: &Row) -> Result<DagState> {
    Ok(DagState {
        dag: row.parse("dag")?,
        paused: row.get_as("paused")?,
        planned_until: row.instant_option("planned_until")?,
        due_at: row.instant_option("due_at")?,
        schedule_fingerprint: row.get_as("schedule_fingerprint")?,
        created_at: row.instant("created_at")?,
        definitions: row.get_as("definitions")?,
    })
}
