//! DAGs as the scheduler sees them: when each is due, and the grid of ticks stored so far.

use std::collections::{BTreeMap, HashMap, HashSet};

use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{DagName, ViewId};
use tidegate_registry::run::NewRun;
use tidegate_registry::store::{Change, DagHistory, DagState, PlanStep, Result, RunFilter, StoreError};
use tidegate_registry::time::{Instant, format_instant};

use crate::codec::micros;
use crate::creation::Creation;
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Arg, Builder, Row, query};
use crate::{audit, runs};

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
    plan_all(db, std::slice::from_ref(step), now).await?.into_iter().collect()
}

pub(crate) async fn plan_all(db: &Db, steps: &[PlanStep], now: Instant) -> Result<Vec<Result<()>>> {
    let mut tx = db.write_alone().await?;
    let mut verdicts = Vec::with_capacity(steps.len());
    let mut rest = steps;
    while !rest.is_empty() {
        let (some, later) = rest.split_at(distinct(rest));
        verdicts.extend(plan_in_tx(&mut tx, some, now).await?);
        rest = later;
    }
    if verdicts.iter().any(Result::is_ok) {
        tx.has_changed(Change::Runs);
    }
    commit(tx).await?;
    Ok(verdicts)
}

/// Steps that are judged and written together.
const STEPS_MAX: usize = 500;

/// How many of the first `steps` are of one DAG each: a second step of a DAG builds on the first.
fn distinct(steps: &[PlanStep]) -> usize {
    let mut dags = HashSet::new();
    steps.iter().take(STEPS_MAX).take_while(|step| dags.insert(&step.dag)).count()
}

/// First judges all of `steps`, then writes those that hold: a handful of questions, however many steps there are.
async fn plan_in_tx(tx: &mut Conn, steps: &[PlanStep], now: Instant) -> Result<Vec<Result<()>>> {
    let planned = planned(tx, steps).await?;
    let runs: Vec<&NewRun> = steps.iter().flat_map(|step| &step.runs).collect();
    let mut creation = Creation::read(tx, &runs).await?;
    let mut verdicts = Vec::with_capacity(steps.len());
    let mut kept = Vec::new();
    for step in steps {
        let verdict = judge(step, &planned, &creation);
        if verdict.is_ok() {
            kept.push(step);
            step.runs.iter().for_each(|run| _ = creation.add(run));
        }
        verdicts.push(verdict);
    }
    write(tx, &kept).await?;
    creation.write(tx, now).await?;
    Ok(verdicts)
}

/// How far the DAGs of `steps` are planned, and the revision that changed each last.
async fn planned(tx: &mut Conn, steps: &[PlanStep]) -> Result<HashMap<DagName, (Option<Instant>, i64)>> {
    let mut dags = Builder::new("SELECT dag, planned_until, changed FROM dags WHERE retired = 0 AND dag IN ");
    dags.push_list(steps.iter().map(|step| step.dag.as_str()));
    let rows = dags.build().fetch_all(tx).await.map_err(on("reading DAGs"))?;
    rows.iter()
        .map(|row| Ok((row.parse("dag")?, (row.instant_option("planned_until")?, row.get_as("changed")?))))
        .collect()
}

fn judge(step: &PlanStep, planned: &HashMap<DagName, (Option<Instant>, i64)>, creation: &Creation<'_>) -> Result<()> {
    let Some((planned_until, changed)) = planned.get(&step.dag) else {
        return Err(StoreError::NotFound { what: "DAG", name: step.dag.to_string() });
    };
    if *planned_until != step.planned_until {
        return Err(StoreError::Conflict(format!("`{}` was planned by somebody else meanwhile", step.dag)));
    }
    if *changed > step.definitions {
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
        last = Some(*tick);
    }
    step.runs.iter().try_for_each(|run| creation.refuse_unless_possible(run))
}

/// Ticks that are stored by one statement.
const TICKS_MAX: usize = 2_000;

/// Stores what `steps` add to the grids.
async fn write(tx: &mut Conn, steps: &[&PlanStep]) -> Result<()> {
    if steps.is_empty() {
        return Ok(());
    }
    let ticks: Vec<(&DagName, Instant)> =
        steps.iter().flat_map(|step| step.ticks.iter().map(|tick| (&step.dag, *tick))).collect();
    for ticks in ticks.chunks(TICKS_MAX) {
        let mut insert = Builder::new("INSERT INTO ticks (dag, at) VALUES ");
        insert.push_rows(ticks.iter().map(|(dag, tick)| [Arg::from(dag.as_str()), micros(*tick).into()]));
        insert.build().execute(&mut *tx).await.map_err(on("storing ticks"))?;
    }
    let mut update = Builder::new(
        "UPDATE dags SET planned_until = step.column2, due_at = step.column3, schedule_fingerprint = step.column4 \
         FROM (VALUES ",
    );
    update.push_rows(steps.iter().map(|step| {
        let planned_until = step.ticks.last().copied().or(step.planned_until);
        [
            Arg::from(step.dag.as_str()),
            planned_until.map(micros).into(),
            step.due_at.map(micros).into(),
            (&step.schedule_fingerprint).into(),
        ]
    }));
    update.push(") AS step WHERE dags.dag = step.column1");
    update.build().execute(tx).await.map_err(on("planning DAGs"))?;
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

pub(crate) async fn dag_pause(db: &Db, dag: &DagName, paused: bool, actor: &str, now: Instant) -> Result<()> {
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
    if state.paused != paused {
        let event = NewAuditEvent::new(now, actor, if paused { "dag_pause" } else { "dag_unpause" }, dag.as_str());
        audit::add_in_tx(&mut tx, &event).await?;
    }
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
