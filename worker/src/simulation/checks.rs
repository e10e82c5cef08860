//! What must be true when everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_registry::ids::RunId;
use tidegate_registry::run::{Cause, Run, RunState};
use tidegate_registry::store::{RunFilter, Store};
use tidegate_registry::time::{Instant, Interval};

use super::Stage;
use super::actor::Actor;
use super::project::{project, reference, wanted};
use super::world::{Outside, start};

/// # Errors
/// Every promise that was broken.
pub(crate) async fn check(stage: &Stage) -> Result<(), String> {
    let store = Actor::new("checks".to_owned(), &stage.world, &stage.registry, true).store();
    let mut broken = stage.world.outside.lock().unwrap().broken.clone();
    let runs = store.runs(&RunFilter::default()).await.unwrap();
    let by_id: BTreeMap<RunId, &Run> = runs.iter().map(|run| (run.id, run)).collect();
    let succeeded = runs.iter().filter(|run| run.state == RunState::Succeeded).count();
    for run in runs.iter().filter(|run| run.state.is_open() || run.state == RunState::Superseded) {
        broken.push(format!("a run of {} {} is {}", run.dag, run.interval, run.state));
    }

    // The plan is that of a world without faults.
    for dag in project().dags.values() {
        let planned = wanted(&dag.views[0]);
        let last = planned.last().unwrap().end();
        let mut ticks: Vec<Instant> = planned.iter().map(Interval::start).collect();
        ticks.push(last);
        let stored = store.ticks(&dag.name, start(), last).await.unwrap();
        if stored != ticks {
            broken.push(format!("{} has the ticks {stored:?}", dag.name));
        }
        let units = if dag.publish == tidegate_registry::model::PublishUnit::Each { dag.views.len() } else { 1 };
        let mut first = BTreeSet::new();
        for run in runs.iter().filter(|run| run.dag == dag.name && run.cause == Cause::Tick) {
            first.insert((run.interval, run.views.clone()));
        }
        if first.len() != planned.len() * units {
            broken.push(format!("{} has {} planned runs: {first:?}", dag.name, first.len()));
        }
        let unknown: Vec<&Run> =
            runs.iter().filter(|run| run.dag == dag.name && !planned.contains(&run.interval)).collect();
        if !unknown.is_empty() {
            broken.push(format!("{} has runs of other intervals: {unknown:?}", dag.name));
        }
    }
    for view in project().views.keys() {
        let ledger = store.ledger(view, None, 0).await.unwrap();
        let state = store.view_states(std::slice::from_ref(view)).await.unwrap()[view].clone();
        let outside = stage.world.outside.lock().unwrap();
        let mut recorded: BTreeMap<_, _> = ledger.iter().map(|entry| (entry.interval, entry)).collect();
        if recorded.len() != ledger.len() {
            broken.push(format!("{view} has an interval twice in its ledger"));
        }
        let table = &outside.tables[view];
        let slices = table.slices();
        for interval in wanted(view) {
            let digest = reference(view, interval);
            let Some(entry) = recorded.remove(&interval) else {
                broken.push(format!("{view} {interval} is not published"));
                continue;
            };
            if entry.digest != digest {
                broken.push(format!("{view} {interval} holds something else"));
            }
            match slices.get(&interval) {
                Some(slice) if slice.digest == digest && slice.run == entry.run => {}
                other => {
                    broken.push(format!("{view} {interval}: the ledger names {}, the lake has {other:?}", entry.run));
                }
            }
        }
        if !recorded.is_empty() || slices.len() != wanted(view).len() {
            broken.push(format!("{view} has intervals that nobody wanted"));
        }
        // The change feed: each run once, each number once, growing, and only of runs that were recorded.
        let mut publishers = BTreeSet::new();
        for (before, commit) in std::iter::once(None).chain(table.log.iter().map(Some)).zip(&table.log) {
            if before.is_some_and(|before| before.publish_number >= commit.publish_number) {
                broken.push(format!("{view}: publication {} came too late", commit.publish_number));
            }
            if !publishers.insert(commit.run) {
                broken.push(format!("{view}: a run is twice in the change feed"));
            }
            if by_id[&commit.run].state != RunState::Succeeded {
                broken.push(format!("{view}: a run that is {} has changed the table", by_id[&commit.run].state));
            }
        }
        if state.publishing.is_some()
            || state.delta_version != table.log.len() as u64
            || state.records != table.log.len() as u64
            || table.log.last().map(|commit| commit.publish_number) != Some(state.publish_number)
        {
            broken.push(format!("{view} has {} commits, but the registry says {state:?}", table.log.len()));
        }
        online(&outside, view, &state, &mut broken);
    }

    let snapshots = store.snapshots(None, None, 0).await.unwrap();
    let distinct: BTreeSet<_> = snapshots.iter().map(|snapshot| snapshot.run).collect();
    if snapshots.len() != succeeded || distinct.len() != succeeded {
        broken.push(format!("{succeeded} runs left {} snapshots", snapshots.len()));
    }
    let events = "SELECT count(*) FROM (SELECT DISTINCT subject FROM audit_events WHERE action = 'publish')";
    let all = "SELECT count(*) FROM audit_events WHERE action = 'publish'";
    if (stage.registry.number(events), stage.registry.number(all)) != (succeeded as i64, succeeded as i64) {
        broken.push(format!("{succeeded} runs left {} audit events", stage.registry.number(all)));
    }
    if stage.registry.number("SELECT count(*) FROM tasks WHERE lease_until IS NOT NULL OR state = 'running'") != 0 {
        broken.push("a task holds a lease for ever".to_owned());
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\n")) }
}

/// What is live is the newest interval, as last published.
fn online(
    outside: &Outside,
    view: &tidegate_registry::ids::ViewId,
    state: &tidegate_registry::store::ViewState,
    broken: &mut Vec<String>,
) {
    let newest = *wanted(view).last().unwrap();
    let last = outside.tables[view].log.iter().rfind(|commit| commit.interval == newest);
    let live = outside.live.get(view);
    let is_newest = live.zip(last).is_some_and(|(live, last)| {
        live.interval == newest && live.digest == last.digest && live.publish_number == last.publish_number
    });
    if !is_newest || live.map(|live| live.publish_number) != state.online_generation || state.newest != Some(newest) {
        broken.push(format!("{view}: {live:?} is live, {last:?} is newest, the registry says {state:?}"));
    }
}
