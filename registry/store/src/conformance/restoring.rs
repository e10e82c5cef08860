//! Restores and holds: what was when, what a restore moves, and what a hold stops.

use indexmap::IndexMap;
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::restore::plan::{Asked, Definitions, PlanError, Planned, Target, plan};
use tidegate_registry::restore::{
    BadMark, HoldPolicy, RestoreRecord, RestoreRequest, RestoredView, ResumeRequest, Validation,
};
use tidegate_registry::run::{Cause, Claim, RunState, TaskKind};
use tidegate_registry::store::StoreError;

use super::Fixture;
use super::world::{LONG, World, day, interval, view};

/// Plans a restore of views `a` and `b`.
async fn planned(world: &World, target: Target) -> Result<Planned, PlanError> {
    let (revision, project) = world.store.project(None).await.unwrap();
    let asked =
        Asked { views: vec![view("a@v1"), view("b@v1")], target, cascade: false, hold_policy: HoldPolicy::SkipRuns };
    let definitions = Definitions { revision, project: &project };
    plan(&*world.store, definitions, &asked, RunId::generate(), day(10)).await
}

/// Begins a restore of views `a` and `b`.
async fn begun(world: &World, target: Target) -> RestoreRequest {
    let planned = planned(world, target).await.unwrap();
    let request = RestoreRequest { actor: "ana".to_owned(), reason: "incident".to_owned(), ..planned.request };
    world.store.restore_begin(request.clone()).await.unwrap();
    request
}

async fn claimed(world: &World, id: RunId) -> Claim {
    let claim = world.try_claim("w1", LONG, &[id]).await.expect("the restore can be claimed");
    assert_eq!(claim.kind, TaskKind::Restore);
    claim
}

fn record(request: &RestoreRequest, numbers: &IndexMap<ViewId, u64>) -> RestoreRecord {
    let views = request.plan.views.keys().map(|view| {
        let restored = RestoredView {
            publish_number: numbers[view],
            delta_version: numbers[view] + 10,
            quarantine_version: None,
            online_generation: None,
            flipped: false,
        };
        (view.clone(), restored)
    });
    RestoreRecord { views: views.collect(), actor: "w1".to_owned() }
}

/// Begins, claims and records.
pub(crate) async fn restored(world: &World, target: Target) -> RestoreRequest {
    let request = begun(world, target).await;
    let claim = claimed(world, request.id).await;
    let record = record(&request, &numbers(world, request.id).await);
    world.store.restore_record(claim.token, record, day(10)).await.unwrap();
    request
}

async fn numbers(world: &World, run: RunId) -> IndexMap<ViewId, u64> {
    let intent = world.store.intent(run).await.unwrap().unwrap();
    intent.views.into_iter().map(|(view, what)| (view, what.publish_number)).collect()
}

/// Publishes days 0, 1 and 2; their snapshots.
async fn three_days(world: &World) -> Vec<SnapshotId> {
    let mut snapshots = Vec::new();
    for number in 0..3 {
        snapshots.push(world.publish(world.admitted("daily", number).await).await);
    }
    snapshots
}

/// The days in the ledger of `a`, newest first, each with the snapshot that it comes from.
async fn ledger(world: &World) -> Vec<SnapshotId> {
    let ledger = world.store.ledger(&view("a@v1"), None, 0).await.unwrap();
    ledger.into_iter().map(|entry| entry.snapshot).collect()
}

/// Table, ledger and what was live are known as of every snapshot.
pub async fn what_a_view_was_is_known_of_every_moment(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let days = three_days(&world).await;
    let a = view("a@v1");
    for (position, snapshot) in days.iter().enumerate() {
        let number = world.store.snapshot_number(*snapshot).await.unwrap();
        let then = world.store.as_of(&a, number).await.unwrap();
        let expected: Vec<SnapshotId> = days[..=position].iter().rev().copied().collect();
        assert_eq!(then.ledger.iter().map(|entry| entry.snapshot).collect::<Vec<_>>(), expected);
        let of_it = world.store.snapshot(*snapshot).await.unwrap();
        let of_view = of_it.views.iter().find(|of_view| of_view.view == a).unwrap();
        assert_eq!((then.snapshot, then.delta_version), (Some(*snapshot), Some(of_view.delta_version)));
        assert_eq!(then.online.map(|online| online.generation), of_view.online_generation);
        assert_eq!(of_it.number, number);
    }
    let before = world.store.as_of(&a, 0).await.unwrap();
    assert_eq!((before.snapshot, before.delta_version, before.ledger.len()), (None, None, 0));
    assert_eq!(world.store.number_at(day(9)).await.unwrap(), 0);
    assert_eq!(world.store.number_at(day(10)).await.unwrap(), world.store.snapshot_number(days[2]).await.unwrap());
    let unknown = world.store.snapshot_number(SnapshotId::generate()).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })), "{unknown:?}");
}

/// A restore moves ledger and states; one more takes that back; planning it again finds nothing to do.
pub async fn a_restore_moves_ledger_and_states_and_can_be_undone(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let days = three_days(&world).await;
    let before = world.store.view_states(&[view("a@v1")]).await.unwrap()[&view("a@v1")].clone();
    let request = restored(&world, Target::To(days[0])).await;
    assert_eq!(ledger(&world).await, vec![days[0]]);
    let state = world.store.view_states(&[view("a@v1")]).await.unwrap()[&view("a@v1")].clone();
    assert_eq!(state.newest, Some(interval(0)));
    assert_eq!((state.publishing, state.publish_number), (None, before.publish_number + 1), "the fence has moved");
    assert_eq!((state.records, state.delta_version), (before.records + 1, before.publish_number + 11));
    let status = async |id: SnapshotId| world.store.snapshot(id).await.unwrap().status;
    assert_eq!(status(days[0]).await, "live");
    assert_eq!(status(days[2]).await, "restored_away");
    let own = world.store.snapshot(SnapshotId(request.id.0)).await.unwrap();
    assert_eq!((own.status.as_str(), own.views.len()), ("live", 2));
    assert_eq!(own.views[0].interval, Some(interval(0)), "whose rows are the view's now");
    let (run, _) = world.run(request.id).await;
    assert_eq!((run.state, run.cause.clone()), (RunState::Succeeded, Cause::Restore(request.id)));
    // Beginning and planning again find nothing to do.
    world.store.restore_begin(request.clone()).await.unwrap();
    assert!(planned(&world, Target::To(days[0])).await.unwrap().is_nothing());
    // The undoing is one more restore.
    restored(&world, Target::To(days[2])).await;
    assert_eq!(ledger(&world).await, vec![days[2], days[1], days[0]]);
    assert_eq!(status(days[2]).await, "live");
    assert_eq!(status(SnapshotId(request.id.0)).await, "superseded");
    restored(&world, Target::To(SnapshotId(request.id.0))).await;
    assert_eq!(ledger(&world).await, vec![days[0]], "what a restore left is a snapshot like any other");
    let listed = world.store.restores(0).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|restore| restore.recorded_at == Some(day(10)) && restore.took_ms.is_some()));
    assert!(listed.iter().all(|restore| restore.under_way_ms.is_none()));
    let found = Validation {
        passed: false,
        findings: vec!["a row is missing".to_owned()],
        took_ms: 3,
        commit_ms: Some(1),
        online_ms: None,
    };
    world.store.restore_validated(request.id, &found, day(10)).await.unwrap();
    assert_eq!(world.store.restore_of(request.id).await.unwrap().validation, Some(found));
}

/// An interval that was computed again goes back to the run before.
pub async fn one_run_is_taken_back_and_its_interval_returns_to_the_run_before(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let days = three_days(&world).await;
    let again = tidegate_registry::run::NewRun { cause: Cause::Manual(1), ..World::new_run("daily", 1) };
    let again = world.create(again).await;
    world.store.run_admit(again).await.unwrap();
    let redone = world.publish(again).await;
    assert_eq!(ledger(&world).await, vec![days[2], redone, days[0]]);
    // Snapshots of the world have ids of their own; those of workers are their runs'.
    let refused = planned(&world, Target::Run(again)).await;
    assert!(matches!(&refused, Err(PlanError::Refused(why)) if why[0].contains("published nothing")), "{refused:?}");
    restored(&world, Target::To(days[2])).await;
    assert_eq!(ledger(&world).await, vec![days[2], days[1], days[0]]);
}

/// Open runs of the views and of what reads them end, also those that have an intent; others go on.
pub async fn a_restore_stops_what_writes_or_reads_its_views(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let days = three_days(&world).await;
    let queued = world.admitted("daily", 3).await;
    let claimed_pin = world.claim(queued).await;
    let other = world.admitted("other", 3).await;
    let publishing = world.claim_publish(world.admitted("daily", 4).await).await;
    let intent = world.take(&publishing).await;
    let request = begun(&world, Target::To(days[1])).await;
    assert_eq!(request.supersedes.iter().copied().collect::<Vec<_>>(), vec![publishing.run.id]);
    assert_eq!(world.state(queued).await, RunState::Superseded);
    assert_eq!(world.state(publishing.run.id).await, RunState::Superseded);
    assert_eq!(world.state(other).await, RunState::Queued, "it has nothing to do with it");
    // Whoever was at work finds out.
    let late = world.store.task_end(claimed_pin.token, super::world::succeeded(super::world::pins()), day(10)).await;
    assert!(matches!(late, Err(StoreError::LostLease)), "{late:?}");
    let record_late = World::record(SnapshotId::generate(), &intent);
    assert!(world.store.record(publishing.token, record_late, day(10)).await.is_err());
    let claim = claimed(&world, request.id).await;
    let numbers = numbers(&world, request.id).await;
    assert!(
        numbers.iter().all(|(view, number)| intent.views[view].publish_number < *number),
        "later than the zombie's"
    );
    world.store.restore_record(claim.token, record(&request, &numbers), day(10)).await.unwrap();
    assert_eq!(ledger(&world).await, vec![days[1], days[0]]);
}

/// A plan that rests on something that has moved is refused, and nothing of it stays.
pub async fn a_plan_that_is_outdated_begins_nothing(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let days = three_days(&world).await;
    let planned_before = planned(&world, Target::To(days[0])).await.unwrap().request;
    world.publish(world.admitted("daily", 3).await).await;
    let refused = world.store.restore_begin(planned_before).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    let planned_before = planned(&world, Target::To(days[0])).await.unwrap().request;
    let new = world.admitted("daily", 4).await;
    let refused = world.store.restore_begin(planned_before).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(world.state(new).await, RunState::Queued);
    assert!(world.store.holds().await.unwrap().holds.is_empty(), "nothing of it stays");
    assert!(world.store.restores(0).await.unwrap().is_empty());
}

/// A hold refuses intents that were judged before it, and is lifted by a person who saw all holds.
pub async fn nothing_of_a_held_view_gets_an_intent_until_it_is_resumed(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let claim = world.claim_publish(world.admitted("daily", 0).await).await;
    let judged = world.intent_request(&claim.run).await;
    world.store.hold(&[view("a@v1")], HoldPolicy::StageOnly, "ana", "looks odd", day(10)).await.unwrap();
    world.store.hold(&[view("a@v1")], HoldPolicy::SkipRuns, "ben", "again", day(10)).await.unwrap();
    let refused = world.store.intent_take(claim.token, judged, day(10)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "it was judged before the hold: {refused:?}");
    let holds = world.store.holds().await.unwrap();
    assert_eq!(holds.holds.len(), 1, "who is held stays held as before");
    let (_, project) = world.store.project(None).await.unwrap();
    let held = holds.of(&project);
    assert_eq!(held.get(&view("a@v1")), Some(&HoldPolicy::StageOnly));
    assert_eq!(held.get(&view("b@v1")), Some(&HoldPolicy::StageOnly), "it is computed from the other");
    assert_eq!(held.get(&view("c@v1")), None);
    world.end(claim.token, tidegate_registry::store::TaskEnd::Held { reason: "held".to_owned() }).await;
    assert_eq!(world.state(claim.run.id).await, RunState::Held);
    let resume = |revision| ResumeRequest {
        views: vec![view("a@v1")],
        revision,
        runs: vec![tidegate_registry::run::NewRun {
            cause: Cause::Resume(RunId::generate()),
            ..World::new_run("daily", 0)
        }],
        actor: "ana".to_owned(),
        reason: "mended".to_owned(),
        now: day(10),
    };
    let refused = world.store.resume(resume(holds.revision + 1)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    let made = world.store.resume(resume(holds.revision)).await.unwrap();
    assert_eq!(world.state(made[0]).await, RunState::Waiting);
    let lifted = world.store.holds().await.unwrap();
    assert!(lifted.holds.is_empty() && lifted.revision > holds.revision);
    let refused = world.store.resume(resume(lifted.revision)).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
}

/// Nobody resumes what is still being restored.
pub async fn a_hold_stays_while_its_restore_is_under_way(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let days = three_days(&world).await;
    let request = begun(&world, Target::To(days[0])).await;
    assert!(world.store.restore_of(request.id).await.unwrap().under_way_ms.is_some());
    let holds = world.store.holds().await.unwrap();
    assert_eq!(holds.holds.iter().map(|hold| hold.restore).collect::<Vec<_>>(), vec![Some(request.id); 2]);
    let resume = ResumeRequest {
        views: vec![view("a@v1")],
        revision: holds.revision,
        runs: Vec::new(),
        actor: "ana".to_owned(),
        reason: String::new(),
        now: day(10),
    };
    let refused = world.store.resume(resume).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
}

/// Restores, what they took back, and bad snapshots are passed over.
pub async fn the_last_good_snapshot_is_no_restore_and_not_bad(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let days = three_days(&world).await;
    let views = [view("a@v1"), view("b@v1")];
    let good = async || {
        let found = world.store.good_numbers(&views, 0).await.unwrap();
        found.into_iter().map(|(_, snapshot)| snapshot).collect::<Vec<_>>()
    };
    assert_eq!(good().await, vec![days[1], days[0]], "what is live now is not before it");
    let bad = BadMark { marked_at: day(10), actor: "ana".to_owned(), reason: "wrong unit".to_owned() };
    world.store.snapshot_mark(days[1], Some(bad.clone()), "ana", day(10)).await.unwrap();
    assert_eq!(good().await, vec![days[0]]);
    assert_eq!(world.store.bad_marks().await.unwrap(), IndexMap::from([(days[1], bad)]));
    world.store.snapshot_mark(days[1], None, "ana", day(10)).await.unwrap();
    restored(&world, Target::LastGood).await;
    assert_eq!(ledger(&world).await, vec![days[1], days[0]]);
    assert_eq!(good().await, vec![days[0]], "neither the restore, nor what it took back");
    let refused = world.store.snapshot_mark(SnapshotId::generate(), None, "ana", day(10)).await;
    assert!(matches!(refused, Err(StoreError::NotFound { .. })), "{refused:?}");
}

/// Nothing expires that a restore under way goes back to; and none begins that goes back to what has expired.
pub async fn what_a_restore_goes_back_to_stays(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let days = three_days(&world).await;
    let expire = async |id: SnapshotId| world.store.snapshots_expire(&[id], day(10)).await.unwrap();
    let planned_before = planned(&world, Target::To(days[0])).await.unwrap().request;
    assert_eq!(expire(days[0]).await, vec![days[0]]);
    let refused = world.store.restore_begin(planned_before).await;
    assert!(matches!(&refused, Err(StoreError::Conflict(what)) if what.contains("no longer kept")), "{refused:?}");
    let request = begun(&world, Target::To(days[1])).await;
    assert!(expire(days[1]).await.is_empty());
    let a = view("a@v1");
    let version = world.store.snapshot(days[1]).await.unwrap().views[0].delta_version;
    let keep = async || world.store.keep(std::slice::from_ref(&a)).await.unwrap().swap_remove(&a).unwrap();
    assert_eq!(keep().await.targets, std::collections::BTreeSet::from([(request.id, version)]));
    let claim = claimed(&world, request.id).await;
    let record = record(&request, &numbers(&world, request.id).await);
    world.store.restore_record(claim.token, record, day(10)).await.unwrap();
    assert!(keep().await.targets.is_empty(), "what it left is a snapshot");
}
