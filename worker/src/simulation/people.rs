//! What people do meanwhile: cancel, retry, pause, backfill, apply, change files; and when the storm is over, they repair.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::OnBlocked;
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{RunFilter, Store};
use tidegate_registry::time::{Clock, Interval};
use tidegate_scheduler::backfill::Reprocess;
use tidegate_scheduler::service::{Options, Scheduler};

use super::actor::Actor;
use super::project::{project, wanted};
use super::world::SkewedClock;
use super::{CALM_MAX, STORM, Stage, apply};

/// Breaks things until the storm ends, then repairs until nothing is missing.
///
/// # Errors
/// What is still missing when everything had time to come to rest.
pub(crate) async fn live(stage: &Stage) -> Result<(), String> {
    let actor = Actor::new("ana".to_owned(), &stage.world, &stage.registry, true);
    let store: Arc<dyn Store> = actor.store();
    let clock = Arc::new(SkewedClock { time: Arc::clone(&stage.world.time), skew: 0.into() });
    while stage.world.time.now() < STORM {
        stage.world.time.sleep(Duration::from_millis(200 + stage.world.dice(1_000))).await;
        meddle(stage, &store, &clock).await;
    }
    *stage.world.storm.lock().unwrap() = false;
    let scheduler = Scheduler::new(Arc::clone(&store), clock.clone(), Options::default());
    for name in project().dags.keys() {
        store.dag_pause(name, false, "ana", clock.now()).await.unwrap();
        // What a pause has passed over is caught up with, whatever the rule.
        scheduler.extend_grid(name, clock.now()).await.unwrap();
    }
    loop {
        let missing = repair(&store, &*clock).await;
        if missing.is_empty() {
            return Ok(());
        }
        if stage.world.time.now() > STORM + CALM_MAX {
            return Err(format!("stuck:\n{}", missing.join("\n")));
        }
        stage.world.time.sleep(Duration::from_secs(1)).await;
    }
}

async fn meddle(stage: &Stage, store: &Arc<dyn Store>, clock: &Arc<SkewedClock>) {
    let world = &stage.world;
    let project = project();
    let (name, dag) = project.dags.get_index(world.dice(project.dags.len() as u64) as usize).unwrap();
    match world.dice(8) {
        0 => {
            let open = store.runs_open().await.unwrap();
            if let Some(run) = open.get(world.dice(open.len().max(1) as u64) as usize) {
                let told = store.run_cancel(run.id, "ana", clock.now()).await;
                world.note(&format!("ana cancels {} {}: {}", run.dag, run.interval, told.is_ok()));
            }
        }
        1 => {
            let scheduler = Scheduler::new(Arc::clone(store), clock.clone(), Options::default());
            let from = clock.now() - chrono::TimeDelta::minutes(30);
            let told = scheduler.backfill(name, from, clock.now(), Reprocess::All).await;
            world.note(&format!("ana backfills {name}: {}", told.is_ok()));
        }
        2 => {
            world.note(&format!("ana pauses {name}"));
            store.dag_pause(name, true, "ana", clock.now()).await.unwrap();
            world.time.sleep(Duration::from_millis(world.dice(2_000))).await;
            store.dag_pause(name, false, "ana", clock.now()).await.unwrap();
        }
        3 if world.dice(3) == 0 => {
            world.note("the source changes");
            world.outside.lock().unwrap().source += 1;
        }
        4 => {
            let mut changed = project.clone();
            let description = format!("as of {}", world.time.now().as_micros());
            changed.dags.get_mut(name).unwrap().description = Some(description);
            apply(&**store, &changed, clock.now()).await;
            world.note(&format!("ana applies {name}"));
        }
        5 | 6 => {
            let runs = store.runs(&RunFilter { dag: Some(dag.name.clone()), ..RunFilter::default() }).await.unwrap();
            let closed = runs.iter().find(|run| !run.state.is_open() && run.state != RunState::Succeeded);
            if let Some(run) = closed {
                let told = store.run_retry(run.id, 4, "ana", clock.now()).await;
                world.note(&format!("ana retries {} {}: {}", run.dag, run.interval, told.is_ok()));
            }
        }
        _ => {}
    }
}

/// Retries what was closed without publishing; what is still missing or under way.
async fn repair(store: &Arc<dyn Store>, clock: &dyn Clock) -> Vec<String> {
    let open = store.runs_open().await.unwrap();
    let mut missing: Vec<String> = open.iter().map(describe).collect();
    for dag in project().dags.values() {
        let runs = store.runs(&RunFilter { dag: Some(dag.name.clone()), ..RunFilter::default() }).await.unwrap();
        let mut latest: BTreeMap<(&ViewId, Interval), &Run> = BTreeMap::new();
        for run in &runs {
            for view in &run.views {
                let kept = latest.entry((view, run.interval)).or_insert(run);
                if kept.revision < run.revision {
                    *kept = run;
                }
            }
        }
        let mut retried: Vec<RunId> = Vec::new();
        for view in &dag.views {
            let published: Vec<Interval> =
                store.ledger(view, None, 0).await.unwrap().iter().map(|entry| entry.interval).collect();
            for interval in wanted(view) {
                let run = latest.get(&(view, interval));
                // Where later intervals wait for whoever settles this one, it does not matter what was published before.
                let is_closed = |run: &&&Run| !run.state.is_open() && run.state != RunState::Succeeded;
                let holds = dag.on_blocked == OnBlocked::Wait && run.filter(is_closed).is_some();
                if published.contains(&interval) && !holds {
                    continue;
                }
                missing.push(format!("{view} {interval}: {}", run.map_or("no run".to_owned(), |run| describe(run))));
                if let Some(run) = run.filter(|run| !run.state.is_open() && !retried.contains(&run.id)) {
                    retried.push(run.id);
                    // Refused while another run of the interval is open: then later.
                    drop(store.run_retry(run.id, 4, "ana", clock.now()).await);
                }
            }
        }
    }
    missing
}

fn describe(run: &Run) -> String {
    let reason = run.reason.as_deref().unwrap_or_default();
    format!("{} {} ({}, revision {}) is {}: {reason}", run.dag, run.interval, run.cause, run.revision, run.state)
}
