//! What people decide over runs.

use tidegate_registry::ids::{RunId, SnapshotId};
use tidegate_registry::run::{Cause, CheckResult, OF_EVERY_VIEW, RunState, TaskKind, Verdict};
use tidegate_registry::store::{Decision, StoreError, TaskEnd};

use super::Fixture;
use super::world::{World, check, day, pins, staged, succeeded, view, view_row};

fn decision(reason: &str) -> Decision {
    Decision { actor: "ana".to_owned(), reason: reason.to_owned(), now: day(3), attempts_max: 2 }
}

/// A run of day 0 that these checks of `a@v1` have stopped.
async fn blocked(world: &World, checks: Vec<CheckResult>) -> RunId {
    let run = world.admitted("daily", 0).await;
    block(world, run, checks).await;
    run
}

async fn block(world: &World, run: RunId, checks: Vec<CheckResult>) {
    loop {
        let claim = world.claim(run).await;
        match claim.kind {
            TaskKind::Pin => world.end(claim.token, succeeded(pins())).await,
            _ => {
                let end = TaskEnd::Blocked { output: Some(staged(3, checks)), reason: "checks".to_owned() };
                return world.end(claim.token, end).await;
            }
        }
    }
}

fn overridden(name: &str) -> CheckResult {
    CheckResult { overridden: true, ..check(name, Verdict::Failed) }
}

/// The blocked run stays what it was; the new one carries the decision, and those before it.
pub async fn a_blocked_run_is_let_through_by_a_run_that_says_who_and_why(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = blocked(&world, vec![check("range", Verdict::Failed), check("regex", Verdict::Passed)]).await;
    let new = world.store.run_override(run, decision("known outage")).await.unwrap();
    assert_eq!(world.state(run).await, RunState::Blocked);
    let made = world.run(new).await.0;
    assert_eq!((made.state, made.revision, &made.cause), (RunState::Waiting, 1, &world.run(run).await.0.cause));
    let overriding = made.overriding.unwrap();
    assert_eq!((overriding.of, overriding.actor.as_str(), overriding.at), (run, "ana", day(3)));
    assert_eq!(overriding.reason, "known outage");
    assert!(overriding.covers(&view("a@v1"), "range") && !overriding.covers(&view("a@v1"), "regex"));
    assert!(!overriding.covers(&view("b@v1"), "range"));
    assert!(overriding.sources.is_some(), "of what it had read");
    let again = world.store.run_override(run, decision("again")).await;
    assert!(matches!(again, Err(StoreError::Refused(_))), "one is open: {again:?}");

    world.store.run_admit(new).await.unwrap();
    block(&world, new, vec![overridden("range"), check("length", Verdict::Error)]).await;
    let third = world.store.run_override(new, decision("that, too")).await.unwrap();
    let overriding = world.run(third).await.0.overriding.unwrap();
    assert!(overriding.covers(&view("a@v1"), "range") && overriding.covers(&view("a@v1"), "length"));

    world.store.run_admit(third).await.unwrap();
    let claim = world.claim_publish(third).await;
    assert_eq!(claim.run.overriding.as_ref(), Some(&overriding), "the worker is told");
    let mut request = world.intent_request(&claim.run).await;
    request.views[&view("a@v1")].checks.push(overridden("range"));
    let intent = world.store.intent_take(claim.token, request, day(10)).await.unwrap();
    world.store.record(claim.token, World::record(SnapshotId::generate(), &intent), day(10)).await.unwrap();
    assert_eq!(world.state(third).await, RunState::Succeeded);
}

/// Not what holds for every view, and not what ended otherwise.
pub async fn only_what_checks_of_authors_stopped_is_let_through(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let built_in = format!("not_null(carrier){OF_EVERY_VIEW}");
    let run = blocked(&world, vec![check("range", Verdict::Failed), check(&built_in, Verdict::Failed)]).await;
    let refused = world.store.run_override(run, decision("x")).await;
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("holds for every view")), "{refused:?}");
    let cancelled = world.store.run_retry(run, 1, "ana", day(3)).await.unwrap();
    world.store.run_cancel(cancelled, "ana", day(3)).await.unwrap();
    for run in [cancelled, world.admitted("daily", 1).await] {
        let refused = world.store.run_override(run, decision("x")).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    let unknown = world.store.run_override(RunId::generate(), decision("x")).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })), "{unknown:?}");
}

/// Somebody looked at something else than what would be published.
pub async fn what_was_published_or_redefined_since_is_not_let_through(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = blocked(&world, vec![check("range", Verdict::Failed)]).await;
    world.apply(1, vec![view_row("a@v1", &[], "another")], Vec::new(), day(1)).await;
    let refused = world.store.run_override(run, decision("x")).await;
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("defined otherwise")), "{refused:?}");
    let later = world.store.run_retry(run, 1, "ana", day(3)).await.unwrap();
    world.store.run_admit(later).await.unwrap();
    world.publish(later).await;
    let refused = world.store.run_override(run, decision("x")).await;
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains(&later.to_string())), "{refused:?}");
}

/// Whoever calls.
pub async fn an_intent_takes_no_decision_that_nobody_made(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = blocked(&world, vec![check("range", Verdict::Failed)]).await;
    let new = world.store.run_override(run, decision("x")).await.unwrap();
    world.store.run_admit(new).await.unwrap();
    let claim = world.claim_publish(new).await;
    let built_in = format!("range{OF_EVERY_VIEW}");
    for (of, name) in [("a@v1", "regex"), ("b@v1", "range"), ("a@v1", built_in.as_str())] {
        let mut request = world.intent_request(&claim.run).await;
        request.views[&view(of)].checks.push(overridden(name));
        let refused = world.store.intent_take(claim.token, request, day(10)).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{of} {name}: {refused:?}");
    }
    world.take(&claim).await;
}

/// It is a run of its own, whoever asks how often.
pub async fn rows_are_readmitted_once_and_only_while_they_are_set_aside(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    let intent = world.take(&claim).await;
    let mut record = World::record(SnapshotId::generate(), &intent);
    let (a, b) = (view("a@v1"), view("b@v1"));
    record.views[&a].quarantined = 2;
    record.views[&a].quarantine_version = Some(1);
    world.store.record(claim.token, record, day(10)).await.unwrap();
    let state = world.store.view_states(&[a.clone(), b.clone()]).await.unwrap();
    assert_eq!((state[&a].quarantine_version, state[&b].quarantine_version), (Some(1), None));
    let snapshot = &world.store.snapshots(None, None, 1).await.unwrap()[0];
    assert_eq!(snapshot.views.iter().map(|view| view.quarantined).collect::<Vec<_>>(), [2, 0]);

    let nothing = world.store.run_readmit(run, &b, decision("x")).await;
    assert!(matches!(&nothing, Err(StoreError::Refused(why)) if why.contains("set nothing")), "{nothing:?}");
    let new = world.store.run_readmit(run, &a, decision("they are right")).await.unwrap();
    let made = world.run(new).await.0;
    assert_eq!(made.cause, Cause::Readmit { run, view: a.clone() });
    assert_eq!((made.views, made.revision), (world.run(run).await.0.views, 1));
    assert_eq!(
        made.overriding.map(|decision| (decision.of, decision.reason)),
        Some((run, "they are right".to_owned()))
    );
    assert_eq!(world.store.run_readmit(run, &a, decision("again")).await.unwrap(), new);
    world.store.run_admit(new).await.unwrap();
    world.publish(new).await;
    assert_eq!(world.store.run_readmit(run, &a, decision("again")).await.unwrap(), new, "it is done");
    let state = world.store.view_states(std::slice::from_ref(&a)).await.unwrap();
    assert_eq!(state[&a].quarantine_version, Some(1), "a record that says nothing of it leaves it");

    // Of another interval, computed again in the meantime.
    let first = world.admitted("daily", 1).await;
    let claim = world.claim_publish(first).await;
    let intent = world.take(&claim).await;
    let mut record = World::record(SnapshotId::generate(), &intent);
    record.views[&a].quarantined = 1;
    world.store.record(claim.token, record, day(10)).await.unwrap();
    let again =
        world.create(tidegate_registry::run::NewRun { cause: Cause::Manual(1), ..World::new_run("daily", 1) }).await;
    let open = world.store.run_readmit(first, &a, decision("x")).await;
    assert!(matches!(&open, Err(StoreError::Refused(why)) if why.contains("still open")), "{open:?}");
    world.store.run_admit(again).await.unwrap();
    world.publish(again).await;
    let replaced = world.store.run_readmit(first, &a, decision("x")).await;
    assert!(matches!(&replaced, Err(StoreError::Refused(why)) if why.contains("replaced")), "{replaced:?}");
}
