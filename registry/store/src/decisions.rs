//! What people decide over runs: that one publishes although checks fail, and that rows which one has set aside are let
//! through. Both make a run that computes the interval anew, carries the decision, and is like any other in all else.

use indexmap::IndexMap;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::run::{Cause, NewRun, Override, Run, RunState, TaskOutput};
use tidegate_registry::store::{Change, CheckRow, Decision, Result, StoreError};

use crate::codec::{json as to_json, micros};
use crate::creation::Creation;
use crate::db::{Conn, Db, commit, on};
use crate::runs::{get_in_tx, lock_in_tx, open_of_interval, priority_in_tx};
use crate::sql::query;
use crate::{audit, definitions};

/// See [`tidegate_registry::store::Store::run_override`].
pub(crate) async fn override_blocked(db: &Db, id: RunId, decision: &Decision) -> Result<RunId> {
    let mut tx = db.write_alone().await?;
    let old = lock_in_tx(&mut tx, id).await?;
    if old.state != RunState::Blocked {
        return Err(refused(format!(
            "the run `{id}` is {}: only a run that checks have stopped can be let through",
            old.state
        )));
    }
    refuse_if_open(&mut tx, &old).await?;
    if let Some(later) = published_later(&mut tx, &old).await? {
        return Err(refused(format!(
            "the run `{later}` has published this interval since, and letting `{id}` through would take that back"
        )));
    }
    let new = NewRun { cause: old.cause.clone(), ..of_same_views(&mut tx, &old, decision).await? };
    refuse_if_redefined(&mut tx, &old, new.definitions).await?;
    let mut checks = old.overriding.clone().map(|earlier| earlier.checks).unwrap_or_default();
    let failing = failing(&mut tx, id).await?;
    if failing.is_empty() {
        return Err(refused(format!("which checks stopped the run `{id}` is no longer known: retry it")));
    }
    for row in failing {
        if row.result.is_built_in() {
            return Err(refused(format!(
                "`{}` of `{}` holds for every view, and nobody can let a run through that breaks it",
                row.result.check, row.view
            )));
        }
        checks.entry(row.view).or_default().push(row.result.check);
    }
    let overriding = overriding(id, decision, checks, pinned_sources(&mut tx, id).await?);
    let mut creation = Creation::read_again(&mut tx, &new).await?;
    let made = creation.add_again(&new);
    creation.write(&mut tx, decision.now).await?;
    tx.has_changed(Change::Runs);
    note(&mut tx, made, &old, &overriding, "run_override").await?;
    commit(tx).await?;
    Ok(made)
}

/// See [`tidegate_registry::store::Store::run_readmit`].
pub(crate) async fn readmit(db: &Db, id: RunId, view: &ViewId, decision: &Decision) -> Result<RunId> {
    let mut tx = db.write_alone().await?;
    let old = lock_in_tx(&mut tx, id).await?;
    let cause = Cause::Readmit { run: id, view: view.clone() };
    let new = NewRun { cause, ..of_same_views(&mut tx, &old, decision).await? };
    let mut creation = Creation::read(&mut tx, &[&new]).await?;
    if let Some(made) = creation.existing(&new) {
        // Decided before; `run_retry` is for one that came to nothing.
        commit(tx).await?;
        return Ok(made);
    }
    let row = query(
        "SELECT v.quarantined FROM snapshot_views AS v JOIN snapshots AS s ON s.id = v.snapshot \
         WHERE s.run = $1 AND v.view = $2",
    )
    .bind(id.to_string())
    .bind(view.to_string())
    .fetch_optional(&mut tx)
    .await
    .map_err(on("looking for rows that were set aside"))?;
    let rows: i64 = row.map(|row| row.get_as("quarantined")).transpose()?.unwrap_or(0);
    if rows == 0 {
        return Err(refused(format!("the run `{id}` has set nothing of `{view}` aside")));
    }
    let row = query("SELECT run FROM ledger WHERE view = $1 AND interval_end = $2 AND interval_start = $3")
        .bind(view.to_string())
        .bind(micros(old.interval.end()))
        .bind(micros(old.interval.start()))
        .fetch_optional(&mut tx)
        .await
        .map_err(on("looking for who published an interval"))?;
    let current: Option<RunId> = row.map(|row| row.parse("run")).transpose()?;
    if current != Some(id) {
        return Err(refused(format!(
            "what the run `{id}` has set aside of `{view}` is replaced by what a later run of the interval computed"
        )));
    }
    refuse_if_open(&mut tx, &old).await?;
    let overriding = overriding(id, decision, IndexMap::new(), None);
    let made = creation.add(&new);
    creation.write(&mut tx, decision.now).await?;
    tx.has_changed(Change::Runs);
    note(&mut tx, made, &old, &overriding, "quarantine_readmit").await?;
    commit(tx).await?;
    Ok(made)
}

fn refused(why: String) -> StoreError {
    StoreError::Refused(why)
}

async fn refuse_if_open(tx: &mut Conn, run: &Run) -> Result<()> {
    match open_of_interval(tx, &run.dag, run.interval).await? {
        None => Ok(()),
        Some(open) => Err(refused(format!(
            "the run `{open}` of the same interval is still open: wait for it, or cancel it first"
        ))),
    }
}

/// A run of the same interval and views as `old`, by the newest definitions.
async fn of_same_views(tx: &mut Conn, old: &Run, decision: &Decision) -> Result<NewRun> {
    let definitions = definitions::revision_in_tx(tx).await?;
    let (_, project) = definitions::project_in_tx(tx, Some(definitions)).await?;
    if let Some(gone) = old.views.iter().find(|view| !project.views.contains_key(*view)) {
        return Err(refused(format!("the view `{gone}` of this run is no longer defined")));
    }
    Ok(NewRun {
        dag: old.dag.clone(),
        interval: old.interval,
        views: project.in_dependency_order(&old.views).into_iter().cloned().collect(),
        cause: old.cause.clone(),
        definitions,
        attempts_max: decision.attempts_max,
        priority: priority_in_tx(tx, old.id).await?,
    })
}

/// What somebody looked at was computed and checked by these definitions.
async fn refuse_if_redefined(tx: &mut Conn, old: &Run, definitions: i64) -> Result<()> {
    if old.definitions == definitions {
        return Ok(());
    }
    let (_, then) = definitions::project_in_tx(tx, Some(old.definitions)).await?;
    let (_, now) = definitions::project_in_tx(tx, Some(definitions)).await?;
    match old.views.iter().find(|view| then.views.get(*view) != now.views.get(*view)) {
        None => Ok(()),
        Some(view) => Err(refused(format!(
            "`{view}` is defined otherwise than when the run `{}` was checked: retry the run instead",
            old.id
        ))),
    }
}

async fn published_later(tx: &mut Conn, run: &Run) -> Result<Option<RunId>> {
    let row = query(
        "SELECT id FROM runs WHERE dag = $1 AND interval_start = $2 AND interval_end = $3 AND revision > $4 \
         AND state = 'succeeded' ORDER BY revision DESC LIMIT 1",
    )
    .bind(run.dag.as_str())
    .bind(micros(run.interval.start()))
    .bind(micros(run.interval.end()))
    .bind(i64::from(run.revision))
    .fetch_optional(tx)
    .await
    .map_err(on("looking for later runs"))?;
    row.map(|row| row.parse("id")).transpose()
}

/// The checks that stopped a run.
async fn failing(tx: &mut Conn, run: RunId) -> Result<Vec<CheckRow>> {
    let run = get_in_tx(tx, run).await?;
    let rows = query("SELECT view, result FROM checks WHERE run = $1 ORDER BY seq, position")
        .bind(run.id.to_string())
        .fetch_all(tx)
        .await
        .map_err(on("reading what stopped a run"))?;
    let mut failing = Vec::new();
    for row in &rows {
        let (dag, interval) = (run.dag.clone(), run.interval);
        let check = CheckRow { run: run.id, dag, interval, view: row.parse("view")?, result: row.json("result")? };
        if check.result.blocks() {
            failing.push(check);
        }
    }
    Ok(failing)
}

/// The sources as a run had pinned them; `None` when it did not come so far, or nobody remembers.
async fn pinned_sources(
    tx: &mut Conn,
    run: RunId,
) -> Result<Option<IndexMap<String, tidegate_registry::run::SourcePin>>> {
    let row = query("SELECT output FROM tasks WHERE run = $1 AND kind = 'pin'")
        .bind(run.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("reading what a run had pinned"))?;
    let output: Option<TaskOutput> = row.map(|row| row.json_option("output")).transpose()?.flatten();
    Ok(match output {
        Some(TaskOutput::Pins(pins)) => Some(pins.sources),
        _ => None,
    })
}

fn overriding(
    of: RunId,
    decision: &Decision,
    checks: IndexMap<ViewId, Vec<String>>,
    sources: Option<IndexMap<String, tidegate_registry::run::SourcePin>>,
) -> Override {
    Override { of, actor: decision.actor.clone(), reason: decision.reason.clone(), at: decision.now, checks, sources }
}

/// Writes the decision to the run that carries it, and into the audit trail.
async fn note(tx: &mut Conn, made: RunId, old: &Run, overriding: &Override, action: &'static str) -> Result<()> {
    query("UPDATE runs SET overriding = $1 WHERE id = $2")
        .bind(to_json(overriding)?)
        .bind(made.to_string())
        .execute(&mut *tx)
        .await
        .map_err(on("storing a decision"))?;
    let subject = old.id.to_string();
    let event = NewAuditEvent::new(overriding.at, &overriding.actor, action, subject)
        .because(&overriding.reason)
        .change(json!({ "run": old.id, "state": old.state }), json!({ "run": made }))
        .with(json!({ "dag": old.dag, "interval": old.interval, "views": old.views, "checks": overriding.checks }));
    audit::add_in_tx(tx, &event).await
}
