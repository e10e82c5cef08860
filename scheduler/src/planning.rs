//! Which runs shall exist: the stored grid is extended up to now, and every interval that has become complete gets its
//! runs.
//!
//! A step is small and says itself when the next one is due, so a DAG with years to catch up on does not hold up the
//! others. Ticks and runs of a step are written in one transaction, so on normal days nothing but the new ticks needs a
//! look. Only when more than time has changed (a pause ended, the DAG's views or schedule are others) is the whole
//! history compared with what it should hold; the DAG's stored planning mark tells.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use tidegate_registry::cron::CronError;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::{Catchup, Dag, PublishUnit};
use tidegate_registry::run::{Cause, NewRun, Run, RunState};
use tidegate_registry::store::{DagHistory, DagState, PlanStep};
use tidegate_registry::time::{Instant, Interval};

use crate::grid::{Grid, intervals};

/// Ticks stored in one step.
pub const TICKS_MAX: usize = 1_000;

/// Runs created in one step (one interval may exceed it when its views are published each on its own).
pub const RUNS_MAX: usize = 1_000;

/// Whether a run in this state keeps the schedule from planning its interval again: it is under way, or it ended in a way
/// that only a person, a new definition or new data may reopen.
pub fn is_settled(state: RunState) -> bool {
    state.is_open()
        || matches!(
            state,
            RunState::Blocked | RunState::Failed | RunState::Cancelled | RunState::Superseded | RunState::Held
        )
}

/// What a DAG was planned under: stored with every step, so that the next one can tell what has changed. The first part
/// is the schedule's alone.
fn mark(dag: &Dag, paused: bool) -> String {
    let schedule = serde_json::to_string(&dag.schedule).unwrap_or_default();
    let views = dag.views.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let state = if paused { "paused" } else { "active" };
    format!("{}-{}-{state}", text_fingerprint(&schedule), text_fingerprint(&views))
}

/// The first 16 hexadecimal digits of the text's SHA-256.
fn text_fingerprint(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether [`plan`] must compare the whole history: more than time has changed since the last step.
pub fn needs_history(dag: &Dag, state: &DagState) -> bool {
    !state.paused
        && state.planned_until.is_some()
        && state.schedule_fingerprint.as_deref().is_some_and(|planned| planned != mark(dag, false))
}

/// What planning adds to `dag` at `now`. `history` may be empty unless [`needs_history`].
///
/// While views are held, `dag` comes without them ([`tidegate_registry::restore::Holds::apart`]), and those that are to be
/// computed all the same are `aside`: they get runs of their own. What a hold has left out is made up for by whoever lifts
/// it.
///
/// A changed schedule goes on from the last stored tick: the interval from there to the new schedule's first tick bridges
/// the two, so there is neither hole nor overlap. `due_at` lies in the past when the step was full: there is more.
///
/// # Errors
/// When the schedule's cron is not crontab(5), which validation has refused.
pub fn plan(
    dag: &Dag,
    aside: &[ViewId],
    state: &DagState,
    history: &DagHistory,
    now: Instant,
) -> Result<PlanStep, CronError> {
    let grid = Grid::new(&dag.schedule)?;
    let ticks: Vec<Instant> = grid.ticks(state.planned_until, now).take(TICKS_MAX).collect();
    let planned_until = ticks.last().copied().or(state.planned_until);
    let next_tick = grid.next_tick(planned_until);
    let more_ticks = next_tick.is_some_and(|next| next <= now);

    let reconciles = needs_history(dag, state);
    let mut mark = mark(dag, state.paused);
    let mut due_at = next_tick;
    let wanted = match (state.paused, reconciles) {
        (true, _) => Vec::new(),
        // The history is looked at once, when the grid has reached now; until then the old mark keeps the debt.
        (false, true) if more_ticks => {
            mark = state.schedule_fingerprint.clone().unwrap_or(mark);
            Vec::new()
        }
        (false, true) => missing(dag, &grid, state, history, &ticks),
        (false, false) => fresh(dag, &grid, state, &ticks, more_ticks),
    };
    let mut runs = Vec::new();
    for (interval, views) in wanted {
        if runs.len() >= RUNS_MAX {
            // Only a reconciliation comes here: keep its debt and look again at once.
            mark = state.schedule_fingerprint.clone().unwrap_or(mark);
            due_at = Some(now);
            break;
        }
        if !views.is_empty() {
            runs.extend(new_runs(dag, state.definitions, interval, views, &Cause::Tick));
        }
        if !aside.is_empty() && !reconciles {
            runs.extend(new_runs(dag, state.definitions, interval, aside.to_vec(), &Cause::Tick));
        }
    }
    Ok(PlanStep {
        dag: dag.name.clone(),
        planned_until: state.planned_until,
        definitions: state.definitions,
        ticks,
        runs,
        due_at,
        schedule_fingerprint: mark,
    })
}

/// The intervals, with their views, for which planning `dag` up to `now` would make runs: what an apply sets off. `history`
/// may be empty unless [`needs_history`].
///
/// # Errors
/// As [`plan`].
pub fn preview(
    dag: &Dag,
    mut state: DagState,
    mut history: DagHistory,
    now: Instant,
) -> Result<Vec<(Interval, Vec<ViewId>)>, CronError> {
    let mut found = Vec::new();
    loop {
        let step = plan(dag, &[], &state, &history, now)?;
        let more = step.due_at.is_some_and(|due| due <= now) && !(step.ticks.is_empty() && step.runs.is_empty());
        state.planned_until = step.ticks.last().copied().or(state.planned_until);
        state.schedule_fingerprint = Some(step.schedule_fingerprint);
        history.ticks.extend(step.ticks);
        for new in step.runs {
            found.push((new.interval, new.views.clone()));
            history.runs.push(as_planned(new, now));
        }
        if !more {
            return Ok(found);
        }
    }
}

fn as_planned(new: NewRun, now: Instant) -> Run {
    Run {
        id: RunId::generate(),
        dag: new.dag,
        interval: new.interval,
        views: new.views,
        cause: new.cause,
        definitions: new.definitions,
        revision: 0,
        state: RunState::Waiting,
        reason: None,
        created_at: now,
        started_at: None,
        finished_at: None,
        restarts: 0,
        overriding: None,
    }
}

/// The intervals that `ticks` complete, as far as the catch-up policy wants them.
fn fresh(dag: &Dag, grid: &Grid, state: &DagState, ticks: &[Instant], more: bool) -> Vec<(Interval, Vec<ViewId>)> {
    let bounds: Vec<Instant> = state.planned_until.iter().chain(ticks).copied().collect();
    let all = intervals(&bounds).filter(|interval| grid.wants(interval));
    let chosen: Vec<Interval> = match dag.schedule.catchup {
        Catchup::All => all.collect(),
        // While there are more ticks to come, the newest is not among these.
        Catchup::Latest => all.last().filter(|_| !more).into_iter().collect(),
        Catchup::None => all.filter(|interval| interval.end() > state.created_at).collect(),
    };
    chosen.into_iter().map(|interval| (interval, dag.views.clone())).collect()
}

/// Wanted − ledger − settled, over the whole history.
fn missing(
    dag: &Dag,
    grid: &Grid,
    state: &DagState,
    history: &DagHistory,
    ticks: &[Instant],
) -> Vec<(Interval, Vec<ViewId>)> {
    let bounds: Vec<Instant> = history.ticks.iter().chain(ticks).copied().collect();
    let mut wanted: Vec<Interval> = intervals(&bounds).filter(|interval| grid.wants(interval)).collect();
    match dag.schedule.catchup {
        Catchup::All => {}
        Catchup::Latest => {
            wanted.drain(..wanted.len().saturating_sub(1));
        }
        // "From now on" begins anew when a pause ends: what passed meanwhile is not made up for.
        Catchup::None => {
            let is_new = |end| state.planned_until.is_none_or(|planned_until| end > planned_until);
            wanted.retain(|interval| interval.end() > state.created_at && is_new(interval.end()));
        }
    }
    let latest = history.latest();
    // Asking for a run that exists would change nothing and come up again in every step.
    let planned: BTreeSet<(Interval, &[ViewId])> = history
        .runs
        .iter()
        .filter(|run| run.cause == Cause::Tick)
        .map(|run| (run.interval, run.views.as_slice()))
        .collect();
    let is_missing = |interval: &Interval, view: &ViewId| {
        !history.is_published(view, interval)
            && !latest.get(&(*interval, view)).is_some_and(|run| is_settled(run.state))
    };
    wanted
        .into_iter()
        .filter_map(|interval| {
            let views: Vec<ViewId> = dag.views.iter().filter(|view| is_missing(&interval, view)).cloned().collect();
            let exists = match dag.publish {
                PublishUnit::Together => planned.contains(&(interval, views.as_slice())),
                PublishUnit::Each => views.iter().all(|view| planned.contains(&(interval, std::slice::from_ref(view)))),
            };
            (!views.is_empty() && !exists).then_some((interval, views))
        })
        .collect()
}

/// The runs that compute `views` over `interval`: one, or one per view when they are published each on its own.
pub fn new_runs(dag: &Dag, definitions: i64, interval: Interval, views: Vec<ViewId>, cause: &Cause) -> Vec<NewRun> {
    let units = match dag.publish {
        PublishUnit::Together => vec![views],
        PublishUnit::Each => views.into_iter().map(|view| vec![view]).collect(),
    };
    let run = |views| NewRun {
        dag: dag.name.clone(),
        interval,
        views,
        cause: cause.clone(),
        definitions,
        attempts_max: 1 + dag.retries.max,
        priority: dag.priority,
    };
    units.into_iter().map(run).collect()
}

#[cfg(test)]
#[path = "planning_tests.rs"]
mod tests;
