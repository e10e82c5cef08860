//! The intent: the point of no return.

use std::time::Duration;

use tidegate_registry::ids::SnapshotId;
use tidegate_registry::run::{Cause, NewRun, RunState, TaskState, Verdict};
use tidegate_registry::store::{StoreError, TaskEnd};

use super::Fixture;
use super::world::{LONG, World, check, day, failed, interval, view};

/// A run that cannot have one of its views locks none of them.
pub async fn an_intent_takes_all_views_or_none(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let only_b = NewRun { views: vec![view("b@v1")], cause: Cause::Manual(1), ..World::new_run("daily", 0) };
    let first = world.create(only_b).await;
    world.store.run_admit(first).await.unwrap();
    let second = world.admitted("daily", 1).await;
    let (holder, waiting) = (world.claim_publish(first).await, world.claim_publish(second).await);
    let intent = world.take(&holder).await;
    let states = world.store.view_states(&waiting.run.views).await.unwrap();
    assert_eq!((states[0].publishing, states[1].publishing), (None, Some(first)));

    let request = world.intent_request(&waiting.run).await;
    let refused = world.store.intent_take(waiting.token, request.clone(), day(10)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(world.store.view_states(&waiting.run.views).await.unwrap(), states);
    assert_eq!((world.state(second).await, world.store.intent(second).await.unwrap()), (RunState::Running, None));

    // It hands its task back, and its turn comes when the other has recorded.
    world.end(waiting.token, TaskEnd::Released { retry_in: Duration::ZERO, reason: None }).await;
    world.store.record(holder.token, World::record(SnapshotId::generate(), &intent), day(10)).await.unwrap();
    let waiting = world.claim(second).await;
    let refused = world.store.intent_take(waiting.token, request, day(10)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "history moved on: {refused:?}");
    let intent = world.take(&waiting).await;
    assert_eq!((intent.views[0].publish_number, intent.views[1].publish_number), (1, 2));
}

/// Repeating it, by this worker or the next, yields the same numbers.
pub async fn an_intent_is_taken_once(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    let request = world.intent_request(&claim.run).await;
    let intent = world.store.intent_take(claim.token, request.clone(), day(10)).await.unwrap();
    assert_eq!(intent.run, run);
    assert_eq!(intent.views.keys().collect::<Vec<_>>(), [&view("a@v1"), &view("b@v1")]);
    assert_eq!(intent.views[0].checks, request.views[0].checks);
    assert_eq!(world.store.intent_take(claim.token, request.clone(), day(10)).await.unwrap(), intent);
    assert_eq!(world.store.intent(run).await.unwrap(), Some(intent.clone()));
    assert_eq!(world.state(run).await, RunState::Publishing);

    world.end(claim.token, failed(Some(Duration::ZERO))).await;
    let next = world.claim(run).await;
    assert_eq!(next.run.state, RunState::Publishing);
    assert_eq!(world.store.intent_take(next.token, request, day(10)).await.unwrap(), intent);
    let states = world.store.view_states(&claim.run.views).await.unwrap();
    assert!(states.values().all(|state| state.publish_number == 1 && state.publishing == Some(run)));
}

/// Checks against history were judged on what was recorded then.
pub async fn an_intent_rests_on_the_history_it_was_judged_by(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let (first, second) = (world.admitted("other", 0).await, world.admitted("other", 1).await);
    let claim = world.claim_publish(second).await;
    let judged = world.intent_request(&claim.run).await;
    world.publish(first).await;
    let refused = world.store.intent_take(claim.token, judged, day(10)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    let state = world.store.view_states(&claim.run.views).await.unwrap()[0].clone();
    assert_eq!((state.publishing, state.publish_number, state.records), (None, 1, 1));
    assert_eq!(world.take(&claim).await.views[0].publish_number, 2);
}

/// Whoever calls: a blocking verdict, an open verdict, other views, or a task that does not publish.
pub async fn nothing_that_a_check_stops_gets_an_intent(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let pin = world.claim(run).await;
    let request = world.intent_request(&pin.run).await;
    let refused = world.store.intent_take(pin.token, request.clone(), day(10)).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    world.end(pin.token, TaskEnd::Released { retry_in: Duration::ZERO, reason: None }).await;

    let claim = world.claim_publish(run).await;
    for verdict in [Verdict::Failed, Verdict::Error, Verdict::Pending] {
        let mut bad = request.clone();
        bad.views[1].checks.push(check("range", verdict));
        let refused = world.store.intent_take(claim.token, bad, day(10)).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{verdict}: {refused:?}");
    }
    let mut partial = request.clone();
    partial.views.pop();
    let refused = world.store.intent_take(claim.token, partial, day(10)).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(world.store.intent(run).await.unwrap(), None);
    assert_eq!(world.store.view_states(&claim.run.views).await.unwrap()[0].publishing, None);
    world.take(&claim).await;
}

/// What may already be visible in part can only be finished.
pub async fn after_its_intent_a_run_only_rolls_forward(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let mut claim = world.claim_publish(run).await;
    let intent = world.take(&claim).await;
    for end in [
        TaskEnd::PinsChanged { reason: "changed".to_owned() },
        TaskEnd::Blocked { output: None, reason: "blocked".to_owned() },
    ] {
        let refused = world.store.task_end(claim.token, end, day(10)).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    for attempt in 1..8 {
        assert_eq!(claim.attempt, attempt, "more attempts than the run gives");
        world.end(claim.token, failed(Some(Duration::ZERO))).await;
        assert_eq!(world.state(run).await, RunState::Publishing);
        claim = world.claim(run).await;
    }
    world.end(claim.token, failed(None)).await;
    assert_eq!(world.state(run).await, RunState::Publishing);
    let task = world.task(run, "publish").await;
    assert_eq!((task.state, task.error.as_deref()), (TaskState::Queued, Some("it broke")));
    assert_eq!(world.store.intent(run).await.unwrap(), Some(intent));
}

/// Workers may die as often as they like.
pub async fn a_lost_worker_after_the_intent_is_replaced_for_ever(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    let intent = world.take(&claim).await;
    for _ in 0..8 {
        world.store.leases_release("w1").await.unwrap();
        world.try_claim("w1", Duration::ZERO, &[]).await.unwrap();
    }
    let claim = world.claim(run).await;
    assert_eq!(world.take(&claim).await, intent);
    world.store.record(claim.token, World::record(SnapshotId::generate(), &intent), day(10)).await.unwrap();
    assert_eq!(world.state(run).await, RunState::Succeeded);
}

/// Nobody waits for a run that can never publish.
pub async fn an_overtaken_run_lets_its_views_go(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    world.take(&claim).await;
    world.end(claim.token, TaskEnd::Superseded { reason: "a restore of `a@v1`".to_owned() }).await;
    let stored = world.run(run).await.0;
    assert_eq!((stored.state, stored.reason.as_deref()), (RunState::Superseded, Some("a restore of `a@v1`")));
    let states = world.store.view_states(&claim.run.views).await.unwrap();
    assert!(states.values().all(|state| state.publishing.is_none() && state.publish_number == 1));
    assert_eq!(world.try_claim("w1", LONG, &[]).await, None);
    let next = world.admitted("daily", 1).await;
    world.publish(next).await;
    assert_eq!(world.store.view_states(&[view("a@v1")]).await.unwrap()[0].publish_number, 2);
}

/// Backfilled history must not replace what is served.
pub async fn an_older_interval_does_not_go_online(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    for number in [3, 1, 3, 4] {
        let mut new = World::new_run("other", number);
        new.cause = Cause::Manual(u32::try_from(world.store.snapshots(None, None, 0).await.unwrap().len()).unwrap());
        let run = world.create(new).await;
        world.store.run_admit(run).await.unwrap();
        let claim = world.claim_publish(run).await;
        let intent = world.take(&claim).await;
        assert_eq!(intent.views[0].online, number != 1, "interval {number}");
        world.store.record(claim.token, World::record(SnapshotId::generate(), &intent), day(10)).await.unwrap();
    }
    let state = world.store.view_states(&[view("c@v1")]).await.unwrap()[0].clone();
    assert_eq!((state.newest, state.online_generation, state.records), (Some(interval(4)), Some(4), 4));
}

/// Numbers are never given twice, not even for a run that came to nothing.
pub async fn every_intent_takes_the_next_number(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    for number in 0..4 {
        let run = world.admitted("other", number).await;
        let claim = world.claim_publish(run).await;
        let given = world.take(&claim).await.views[0].publish_number;
        assert_eq!(given, u64::try_from(number).unwrap() + 1);
        world.end(claim.token, TaskEnd::Superseded { reason: "overtaken".to_owned() }).await;
    }
}
