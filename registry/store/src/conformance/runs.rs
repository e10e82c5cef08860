//! Runs: creating, listing, admitting, cancelling, retrying.

use tidegate_registry::ids::{BackfillId, RunId};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::run::{Cause, NewRun, RunState, TaskKind, TaskState};
use tidegate_registry::store::{RunFilter, StoreError};

use super::Fixture;
use super::world::{LONG, World, dag, day, failed, interval, view, view_row};

/// Double planning is harmless; another cause or other views make another run, numbered by revision.
pub async fn a_run_exists_once(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let tick = World::new_run("daily", 0);
    let mut swapped = tick.clone();
    swapped.views.reverse();
    let manual = NewRun { cause: Cause::Manual(1), ..tick.clone() };
    let single = NewRun { views: vec![view("a@v1")], ..tick.clone() };
    let next = World::new_run("daily", 1);
    let given = vec![tick.clone(), manual.clone(), tick.clone(), swapped, single, next];
    let ids = world.store.runs_create(given, day(1)).await.unwrap();
    assert_eq!(ids.len(), 6);
    assert_eq!(ids[0], ids[2]);
    assert_eq!(ids[0], ids[3], "the same views in another order");
    assert_eq!(world.store.runs_create(vec![manual, tick], day(2)).await.unwrap(), [ids[1], ids[0]]);

    let mut revisions = Vec::new();
    for id in [ids[0], ids[1], ids[4], ids[5]] {
        revisions.push(world.run(id).await.0.revision);
    }
    assert_eq!(revisions, [0, 1, 2, 0]);

    let (run, tasks) = world.run(ids[0]).await;
    assert_eq!((run.state, run.created_at, run.cause), (RunState::Waiting, day(1), Cause::Tick));
    assert_eq!((run.started_at, run.finished_at, run.restarts), (None, None, 0));
    assert_eq!(run.views, [view("a@v1"), view("b@v1")]);
    let kinds: Vec<String> = tasks.iter().map(|task| task.kind.to_string()).collect();
    assert_eq!(kinds, ["pin", "a@v1", "b@v1", "publish"]);
    assert!(tasks.iter().all(|task| task.state == TaskState::Queued && task.attempts == 0));
}

/// A run that nobody can compute is found out when it is planned; all runs of the call are refused together.
pub async fn a_run_of_an_unknown_view_is_not_created(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let unknown = NewRun { views: vec![view("x@v1")], ..World::new_run("daily", 1) };
    let refused = world.store.runs_create(vec![World::new_run("daily", 0), unknown], day(1)).await;
    assert!(matches!(refused, Err(StoreError::NotFound { .. })), "{refused:?}");
    let empty = NewRun { views: Vec::new(), ..World::new_run("daily", 1) };
    assert!(matches!(world.store.runs_create(vec![empty], day(1)).await, Err(StoreError::Refused(_))));
    assert!(world.store.runs_open().await.unwrap().is_empty());
}

/// Every filter narrows the list, and the order does not depend on it.
pub async fn runs_are_listed_newest_interval_first(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let backfill = BackfillId::generate();
    let old = world.create(World::new_run("daily", 0)).await;
    let new = world.create(World::new_run("daily", 2)).await;
    let other = world.create(World::new_run("other", 1)).await;
    let again = world.create(NewRun { cause: Cause::Backfill(backfill), ..World::new_run("daily", 0) }).await;
    world.store.run_admit(other).await.unwrap();
    let list = async |filter: RunFilter| -> Vec<RunId> {
        world.store.runs(&filter).await.unwrap().iter().map(|run| run.id).collect()
    };
    let all = RunFilter::default();
    assert_eq!(list(all.clone()).await, [new, other, again, old]);
    assert_eq!(list(RunFilter { limit: 2, ..all.clone() }).await, [new, other]);
    assert_eq!(list(RunFilter { dag: Some(dag("daily")), ..all.clone() }).await, [new, again, old]);
    assert_eq!(list(RunFilter { states: vec![RunState::Queued], ..all.clone() }).await, [other]);
    let states = vec![RunState::Waiting, RunState::Failed];
    assert_eq!(list(RunFilter { states, ..all.clone() }).await, [new, again, old]);
    let bounds = RunFilter { from: Some(day(1)), to: Some(day(2)), ..all.clone() };
    assert_eq!(list(bounds).await, [other], "the start lies in [from, to)");
    let cause = Some(format!("backfill {backfill}"));
    assert_eq!(list(RunFilter { cause, ..all.clone() }).await, [again]);

    let open: Vec<RunId> = world.store.runs_open().await.unwrap().iter().map(|run| run.id).collect();
    assert_eq!(open, [old, again, other, new], "oldest interval first");
}

/// Of several runs of one interval the last counts.
pub async fn the_latest_run_of_each_interval_speaks_for_it(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    world.create(World::new_run("daily", 0)).await;
    let again = world.create(NewRun { cause: Cause::Manual(1), ..World::new_run("daily", 0) }).await;
    let next = world.create(World::new_run("daily", 1)).await;
    world.create(World::new_run("daily", 2)).await;
    world.create(World::new_run("other", 0)).await;
    let latest = world.store.latest_runs(&dag("daily"), day(0), day(2)).await.unwrap();
    assert_eq!(latest.iter().map(|run| run.id).collect::<Vec<_>>(), [again, next]);
}

/// As people type ids.
pub async fn a_run_is_found_by_the_beginning_of_its_id(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.create(World::new_run("daily", 0)).await;
    let text = run.to_string();
    assert_eq!(world.store.runs_by_prefix(&text).await.unwrap(), [run]);
    assert_eq!(world.store.runs_by_prefix(&text[..6].to_uppercase()).await.unwrap(), [run]);
    for unknown in ["ffff", "%", "'; --", "zzz"] {
        assert!(world.store.runs_by_prefix(unknown).await.unwrap().is_empty(), "{unknown}");
    }
    assert!(matches!(world.store.run(RunId::generate()).await, Err(StoreError::NotFound { .. })));
    for number in 1..12 {
        world.create(World::new_run("daily", number)).await;
    }
    assert_eq!(world.store.runs_by_prefix("").await.unwrap().len(), 10);
}

/// Until then a run says what it waits for.
pub async fn only_admitted_runs_are_claimed(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.create(World::new_run("daily", 0)).await;
    assert_eq!(world.try_claim("w1", LONG, &[]).await, None);
    world.store.run_wait_reason(run, "waiting for `weather`").await.unwrap();
    assert_eq!(world.run(run).await.0.reason.as_deref(), Some("waiting for `weather`"));
    world.store.run_admit(run).await.unwrap();
    world.store.run_wait_reason(run, "too late").await.unwrap();
    assert_eq!((world.state(run).await, world.run(run).await.0.reason), (RunState::Queued, None));

    let claim = world.claim(run).await;
    assert_eq!((claim.run.state, claim.run.started_at, claim.kind), (RunState::Running, Some(day(10)), TaskKind::Pin));
    world.store.run_admit(run).await.unwrap();
    assert_eq!(world.state(run).await, RunState::Running);
    assert!(matches!(world.store.run_admit(RunId::generate()).await, Err(StoreError::NotFound { .. })));
}

/// Whatever was under way loses its lease and nothing is claimed any more.
pub async fn a_run_is_cancelled_before_its_intent(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    world.store.run_cancel(run, "ben", day(3)).await.unwrap();
    let (stored, tasks) = world.run(run).await;
    assert_eq!((stored.state, stored.finished_at), (RunState::Cancelled, Some(day(3))));
    assert!(stored.reason.unwrap().contains("ben"));
    assert_eq!((tasks[1].state, tasks[3].state), (TaskState::Succeeded, TaskState::Skipped));
    assert!(matches!(world.store.task_heartbeat(claim.token, LONG).await, Err(StoreError::LostLease)));
    assert_eq!(world.try_claim("w1", LONG, &[]).await, None);
    assert!(matches!(world.store.run_cancel(run, "ben", day(4)).await, Err(StoreError::Refused(_))));
}

/// Its publication may already be visible in part.
pub async fn a_run_is_not_cancelled_after_its_intent(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    let intent = world.take(&claim).await;
    let refused = world.store.run_cancel(run, "ben", day(3)).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(world.state(run).await, RunState::Publishing);
    let record = World::record(tidegate_registry::ids::SnapshotId::generate(), &intent);
    world.store.record(claim.token, record, day(3)).await.unwrap();
    assert!(matches!(world.store.run_cancel(run, "ben", day(3)).await, Err(StoreError::Refused(_))));
}

/// A retry is a run of its own with the next revision, and there is never more than one open.
pub async fn a_run_that_came_to_nothing_is_made_anew(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    assert!(matches!(world.store.run_retry(run, 2, "ana", day(3)).await, Err(StoreError::Refused(_))), "still open");
    let claim = world.claim(run).await;
    world.end(claim.token, failed(None)).await;
    let new = world.store.run_retry(run, 2, "ana", day(3)).await.unwrap();
    let (made, tasks) = world.run(new).await;
    let old = world.run(run).await.0;
    assert_eq!((made.state, made.revision, made.created_at), (RunState::Waiting, 1, day(3)));
    assert_eq!((&made.dag, made.interval, &made.views, &made.cause), (&old.dag, interval(0), &old.views, &old.cause));
    assert_eq!(tasks.len(), 4);
    assert!(
        matches!(world.store.run_retry(run, 2, "ana", day(3)).await, Err(StoreError::Refused(_))),
        "the new one is open"
    );
    assert_eq!(world.create(World::new_run("daily", 0)).await, new, "planning it again finds the newest");

    world.store.run_admit(new).await.unwrap();
    world.publish(new).await;
    assert!(matches!(world.store.run_retry(new, 2, "ana", day(3)).await, Err(StoreError::Refused(_))), "it succeeded");
    assert!(matches!(
        world.store.run_retry(RunId::generate(), 2, "ana", day(3)).await,
        Err(StoreError::NotFound { .. })
    ));
}

/// The usual reason for a retry is a definition that was put right.
pub async fn a_retry_uses_the_newest_definitions(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    world.store.run_cancel(run, "ana", day(1)).await.unwrap();
    // Now `a` reads `b` instead of `b` reading `a`.
    let turned = vec![view_row("a@v1", &["b@v1"], "first"), view_row("b@v1", &[], "second")];
    world.apply(1, turned, Vec::new(), day(1)).await;
    let new = world.store.run_retry(run, 2, "ana", day(3)).await.unwrap();
    let made = world.run(new).await.0;
    assert_eq!(made.definitions, 2);
    assert_eq!(made.views, [view("b@v1"), view("a@v1")]);

    world.store.run_cancel(new, "ana", day(1)).await.unwrap();
    world.apply(2, Vec::new(), vec![(DefinitionKind::FeatureView, "a@v1".to_owned())], day(1)).await;
    let refused = world.store.run_retry(new, 2, "ana", day(3)).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
}
