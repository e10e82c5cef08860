//! Tasks: every claim is exclusive, and what the end of an attempt does to its run.

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate_registry::ids::{LeaseToken, RunId, SnapshotId, ViewId};
use tidegate_registry::run::{NewRun, RunState, TaskKind, TaskOutput, TaskState, Verdict};
use tidegate_registry::store::{CheckFilter, ClaimRequest, IntentRequest, StoreError, TaskEnd};
use tokio::task::JoinSet;

use super::Fixture;
use super::world::{LONG, World, check, day, failed, pins, staged, succeeded, view, view_row};

/// Over as soon as it is given.
const EXPIRED: Duration = Duration::ZERO;

/// Two thousand tasks, thirty-two claimers, two processes.
pub async fn each_task_is_claimed_once(fixture: &Fixture) {
    const RUNS: i64 = 125;
    const VIEWS: usize = 16;
    let world = World::new(fixture.store.clone()).await;
    let names: Vec<String> = (0..VIEWS).map(|number| format!("wide_{number}@v1")).collect();
    world.apply(1, names.iter().map(|name| view_row(name, &[], "")).collect(), Vec::new(), day(0)).await;
    let views: Vec<ViewId> = names.iter().map(|name| view(name)).collect();
    let wide = |number| NewRun { views: views.clone(), definitions: 2, ..World::new_run("daily", number) };
    for run in world.store.runs_create((0..RUNS).map(wide).collect(), day(0)).await.unwrap() {
        world.store.run_admit(run).await.unwrap();
        let pin = world.claim(run).await;
        world.end(pin.token, succeeded(pins())).await;
    }
    let mut claimers = JoinSet::new();
    for number in 0..32 {
        let store = if number % 8 == 0 { fixture.twin.clone() } else { fixture.store.clone() };
        let world = World { store };
        claimers.spawn(async move {
            let mut claimed = Vec::new();
            while let Some(claim) = world.try_claim(&format!("w{number}"), LONG, &[]).await {
                assert_eq!(claim.attempt, 1);
                claimed.push((claim.run.id, claim.kind));
            }
            claimed
        });
    }
    let claimed: Vec<(RunId, TaskKind)> = claimers.join_all().await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), RUNS as usize * VIEWS, "each task once");
    let distinct: BTreeSet<_> = claimed.iter().collect();
    assert_eq!(distinct.len(), claimed.len(), "no task twice");
}

/// First `pin`, then a view once all that it reads is staged, last `publish`; each gets the outputs of those before it.
pub async fn tasks_come_after_what_they_read(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let pin = world.claim(run).await;
    assert_eq!((pin.kind.clone(), pin.attempts_max, pin.inputs.len()), (TaskKind::Pin, 3, 0));
    assert_eq!(world.try_claim("w2", LONG, &[run]).await, None, "everything waits for the pins");
    world.end(pin.token, succeeded(pins())).await;

    let first = world.claim(run).await;
    assert_eq!(first.kind.to_string(), "a@v1");
    assert_eq!(first.inputs.keys().collect::<Vec<_>>(), ["pin"]);
    assert_eq!(world.try_claim("w2", LONG, &[run]).await, None, "`b` reads `a`");
    let end = TaskEnd::Succeeded { output: staged(5, Vec::new()), rows: Some(5) };
    world.end(first.token, end).await;
    let task = world.task(run, "a@v1").await;
    assert_eq!((task.state, task.rows, task.output), (TaskState::Succeeded, Some(5), Some(staged(5, Vec::new()))));
    assert_eq!((task.started_at, task.finished_at), (Some(day(10)), Some(day(10))));

    let second = world.claim(run).await;
    assert_eq!(second.inputs.keys().collect::<Vec<_>>(), ["pin", "a@v1"]);
    world.end(second.token, succeeded(staged(6, Vec::new()))).await;

    let publish = world.claim(run).await;
    assert_eq!(publish.kind, TaskKind::Publish);
    assert_eq!(publish.inputs.keys().collect::<Vec<_>>(), ["pin", "a@v1", "b@v1"]);
    assert_eq!(publish.inputs["b@v1"], staged(6, Vec::new()));
}

/// A worker with free slots takes several tasks in one go, of one run and of others.
pub async fn tasks_claimed_together_get_their_own_inputs(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let (daily, other) = (world.admitted("daily", 0).await, world.admitted("other", 0).await);
    let request = ClaimRequest { limit: 5, ..ClaimRequest::new("w1", LONG) };
    let pinned = world.claim_by(&request).await;
    assert_eq!(pinned.iter().map(|claim| claim.run.id).collect::<Vec<_>>(), [daily, other]);
    assert!(pinned.iter().all(|claim| claim.run.state == RunState::Running && claim.run.started_at == Some(day(10))));
    for claim in &pinned {
        assert_eq!(world.run(claim.run.id).await.0, claim.run, "as it is stored");
        world.end(claim.token, succeeded(pins())).await;
    }
    let staging = world.claim_by(&request).await;
    let found: Vec<_> = staging.iter().map(|claim| (claim.kind.to_string(), claim.inputs.keys().collect())).collect();
    let pin = "pin".to_owned();
    let expected: [(String, Vec<&String>); 2] = [("a@v1".to_owned(), vec![&pin]), ("c@v1".to_owned(), vec![&pin])];
    assert_eq!(found, expected);
    for (claim, rows) in staging.iter().zip([4, 5]) {
        world.end(claim.token, succeeded(staged(rows, Vec::new()))).await;
    }
    let next = world.claim_by(&request).await;
    assert_eq!(next.iter().map(|claim| claim.kind.to_string()).collect::<Vec<_>>(), ["b@v1", "publish"]);
    assert_eq!(next[0].inputs.get("a@v1"), Some(&staged(4, Vec::new())));
    assert_eq!(next[1].inputs.keys().collect::<Vec<_>>(), ["pin", "c@v1"]);
    assert_eq!(next[1].inputs["c@v1"], staged(5, Vec::new()));
}

/// What has begun is finished before something new begins; then the oldest interval comes first.
pub async fn runs_already_begun_come_first(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let late = world.admitted("daily", 5).await;
    let pin = world.try_claim("w1", LONG, &[]).await.unwrap();
    let early = world.admitted("daily", 1).await;
    let middle = world.admitted("daily", 3).await;
    world.end(pin.token, succeeded(pins())).await;
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(world.try_claim("w1", LONG, &[]).await.unwrap().run.id);
    }
    assert_eq!(order, [late, early, middle]);
    let other = world.admitted("other", 0).await;
    assert_eq!(world.try_claim("w1", LONG, &[late, middle]).await, None, "restricted to these runs");
    assert_eq!(world.try_claim("w1", LONG, &[late, other]).await.unwrap().run.id, other);
}

/// A worker that slept through its lease changes nothing, whatever it calls.
pub async fn a_lost_lease_does_nothing(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let publish = world.claim_publish(run).await;
    let request = world.intent_request(&publish.run).await;
    world.end(publish.token, TaskEnd::Released { retry_in: EXPIRED, reason: None }).await;
    let lost = world.try_claim("sleeper", EXPIRED, &[run]).await.unwrap();
    let holder = world.claim(run).await;
    assert_ne!(lost.token, holder.token);
    assert_eq!(holder.kind, TaskKind::Publish);

    let before = (world.run(run).await, world.store.view_states(&publish.run.views).await.unwrap());
    refuses_everything(&world, lost.token, request.clone(), &before.0.0.views).await;
    refuses_everything(&world, LeaseToken::generate(), request, &before.0.0.views).await;
    let after = (world.run(run).await, world.store.view_states(&publish.run.views).await.unwrap());
    assert_eq!(before, after);
    assert_eq!(world.store.intent(run).await.unwrap(), None);
    assert!(world.store.run_logs(run).await.unwrap().is_empty());
    assert!(world.store.snapshots(None, None, 0).await.unwrap().is_empty());
    world.store.task_heartbeat(holder.token, LONG).await.unwrap();
}

async fn refuses_everything(world: &World, token: LeaseToken, request: IntentRequest, views: &[ViewId]) {
    let ends = [
        succeeded(pins()),
        TaskEnd::Blocked { output: None, reason: "r".to_owned() },
        failed(None),
        TaskEnd::Released { retry_in: EXPIRED, reason: Some("r".to_owned()) },
        TaskEnd::PinsChanged { reason: "r".to_owned() },
        TaskEnd::Superseded { reason: "r".to_owned() },
    ];
    for end in ends {
        let answer = world.store.task_end(token, end.clone(), day(11)).await;
        assert!(matches!(answer, Err(StoreError::LostLease)), "{end:?}: {answer:?}");
    }
    let intent = tidegate_registry::run::Intent { run: RunId::generate(), views: Default::default() };
    let mut record = World::record(SnapshotId::generate(), &intent);
    record.views.reserve(views.len());
    assert!(matches!(world.store.task_heartbeat(token, LONG).await, Err(StoreError::LostLease)));
    let lines = [("info".to_owned(), "still here".to_owned())];
    assert!(matches!(world.store.task_log(token, &lines, day(11)).await, Err(StoreError::LostLease)));
    assert!(matches!(world.store.intent_take(token, request, day(11)).await, Err(StoreError::LostLease)));
    assert!(matches!(world.store.record(token, record, day(11)).await, Err(StoreError::LostLease)));
}

/// The answer to a worker may get lost: it asks again.
pub async fn ending_an_attempt_twice_is_harmless(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let pin = world.claim(run).await;
    world.end(pin.token, failed(Some(EXPIRED))).await;
    world.end(pin.token, failed(Some(EXPIRED))).await;
    let again = world.claim(run).await;
    assert_eq!(again.attempt, 2);
    assert!(matches!(world.store.task_end(pin.token, failed(None), day(10)).await, Err(StoreError::LostLease)));
    world.end(again.token, succeeded(pins())).await;
    let before = world.run(run).await;
    world.end(again.token, succeeded(pins())).await;
    assert_eq!(world.run(run).await, before);
    assert!(matches!(world.store.task_heartbeat(again.token, LONG).await, Err(StoreError::LostLease)));
}

/// Nobody needs to notice that a worker is gone.
pub async fn an_expired_lease_is_taken_over(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let lost = world.try_claim("gone", EXPIRED, &[]).await.unwrap();
    let other = world.admitted("other", 0).await;
    assert_eq!(world.claim(other).await.run.id, other, "a claim for other runs leaves it alone");
    // The registry may take as long as the lease, or a second: then it is said again.
    within(Duration::from_secs(30), async || world.store.task_heartbeat(lost.token, EXPIRED).await.ok()).await;
    let taken = world.try_claim("w2", LONG, &[]).await.unwrap();
    assert_eq!((taken.run.id, taken.kind.clone(), taken.attempt), (run, TaskKind::Pin, 2));
    assert!(world.task(run, "pin").await.error.unwrap().contains("`gone`"));
    assert_eq!(world.try_claim("w3", LONG, &[run]).await, None);
    world.end(taken.token, succeeded(pins())).await;
    assert_eq!(world.task(run, "pin").await.error, None);
}

/// A heartbeat keeps others away.
pub async fn a_renewed_lease_is_kept(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.try_claim("w1", EXPIRED, &[]).await.unwrap();
    world.store.task_heartbeat(claim.token, LONG).await.unwrap();
    assert_eq!(world.try_claim("w2", LONG, &[]).await, None);
    assert_eq!(world.store.lease_owners().await.unwrap(), ["w1"]);
    world.end(claim.token, succeeded(pins())).await;
    assert!(world.store.lease_owners().await.unwrap().is_empty());
    assert_eq!(world.state(run).await, RunState::Running);
}

/// A task that takes its workers with it comes to an end.
pub async fn the_last_attempt_lost_fails_the_run(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    for attempt in 1..=3 {
        assert_eq!(world.try_claim("gone", EXPIRED, &[]).await.unwrap().attempt, attempt);
    }
    assert_eq!(world.try_claim("w1", LONG, &[]).await, None);
    let (stored, tasks) = world.run(run).await;
    assert_eq!((stored.state, stored.finished_at), (RunState::Failed, Some(day(10))));
    assert!(stored.reason.unwrap().contains("worker lost"));
    assert_eq!((tasks[0].state, tasks[1].state), (TaskState::Failed, TaskState::Skipped));
}

/// By the database's clock, not by project time.
pub async fn a_failed_attempt_is_tried_again_after_its_delay(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let (patient, other) = (world.admitted("daily", 0).await, world.admitted("other", 5).await);
    let claim = world.claim(patient).await;
    world.end(claim.token, failed(Some(LONG))).await;
    let task = world.task(patient, "pin").await;
    assert_eq!((task.state, task.attempts, task.error.as_deref()), (TaskState::Queued, 1, Some("it broke")));
    assert_eq!(task.finished_at, Some(day(10)));
    let claim = world.try_claim("w1", LONG, &[]).await.expect("others do not wait behind it");
    assert_eq!(claim.run.id, other);
    assert_eq!(world.try_claim("w1", LONG, &[]).await, None, "not yet");
    world.end(claim.token, failed(Some(Duration::from_millis(50)))).await;
    let again = within(Duration::from_secs(30), async || world.try_claim("w1", LONG, &[]).await).await;
    assert_eq!((again.run.id, again.attempt), (other, 2));
}

async fn within<T>(limit: Duration, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let poll = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, poll).await.expect("it happens in time")
}

/// As many attempts as the run gives, then the error stands.
pub async fn used_up_attempts_fail_the_run(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    for _ in 0..3 {
        assert!(world.state(run).await.is_open());
        let claim = world.claim(run).await;
        world.end(claim.token, failed(Some(EXPIRED))).await;
    }
    let (stored, tasks) = world.run(run).await;
    assert_eq!(stored.state, RunState::Failed);
    assert!(stored.reason.unwrap().contains("it broke"));
    assert_eq!((tasks[0].state, tasks[0].attempts), (TaskState::Failed, 3));
    assert_eq!(tasks[0].error.as_deref(), Some("it broke"));
    assert!(tasks[1..].iter().all(|task| task.state == TaskState::Skipped));
    assert_eq!(world.try_claim("w1", LONG, &[]).await, None);
    assert!(world.store.runs_open().await.unwrap().is_empty());
}

/// An error that another attempt cannot mend.
pub async fn an_error_that_stays_is_not_tried_again(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim(run).await;
    world.end(claim.token, failed(None)).await;
    assert_eq!((world.state(run).await, world.task(run, "pin").await.attempts), (RunState::Failed, 1));
}

/// A worker that is told to stop hands its work back.
pub async fn a_released_task_keeps_its_attempt(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    for _ in 0..5 {
        let claim = world.claim(run).await;
        assert_eq!((claim.attempt, &claim.run.reason), (1, &None));
        let reason = Some("waiting for `b`".to_owned());
        world.end(claim.token, TaskEnd::Released { retry_in: EXPIRED, reason }).await;
        let (stored, tasks) = world.run(run).await;
        assert_eq!((stored.reason.as_deref(), tasks[0].state), (Some("waiting for `b`"), TaskState::Queued));
    }
}

/// The next process on the machine knows that its predecessor is dead, and goes on at once.
pub async fn a_dead_process_costs_no_attempt(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let (run, other) = (world.admitted("daily", 0).await, world.admitted("other", 0).await);
    let dead = world.try_claim("dead", LONG, &[run]).await.unwrap();
    world.try_claim("alive", LONG, &[other]).await.unwrap();
    assert_eq!(world.store.lease_owners().await.unwrap(), ["alive", "dead"]);
    assert_eq!(world.store.leases_release("dead").await.unwrap(), 1);
    assert_eq!(world.store.leases_release("dead").await.unwrap(), 0);
    assert_eq!(world.store.lease_owners().await.unwrap(), ["alive"]);
    assert!(matches!(world.store.task_heartbeat(dead.token, LONG).await, Err(StoreError::LostLease)));
    let claim = world.try_claim("next", LONG, &[]).await.unwrap();
    assert_eq!((claim.run.id, claim.attempt), (run, 1));
}

/// Such deaths are forgiven, but not without end.
pub async fn a_task_that_kills_its_process_fails_in_the_end(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let mut deaths = 0;
    while world.try_claim("dead", LONG, &[]).await.is_some() {
        world.store.leases_release("dead").await.unwrap();
        deaths += 1;
        assert!(deaths < 20, "it must end");
    }
    assert!(deaths > 3, "some are forgiven, though it has three attempts: {deaths}");
    assert_eq!(world.state(run).await, RunState::Failed);
}

/// Staging made from other bytes is worthless: everything begins again from the pins.
pub async fn a_changed_file_starts_the_run_again_once(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let publish = world.claim_publish(run).await;
    world.end(publish.token, TaskEnd::PinsChanged { reason: "`x.parquet` changed".to_owned() }).await;
    let (stored, tasks) = world.run(run).await;
    assert_eq!((stored.state, stored.restarts), (RunState::Running, 1));
    assert!(tasks.iter().all(|task| task.state == TaskState::Queued && task.output.is_none()), "{tasks:?}");
    assert!(world.store.checks(&CheckFilter::default()).await.unwrap().is_empty());

    let pin = world.claim(run).await;
    assert_eq!(pin.kind, TaskKind::Pin);
    assert!(pin.attempt == 2 && pin.attempts_max == 4, "a full set of attempts under new numbers");
    world.end(pin.token, succeeded(pins())).await;
    let view = world.claim(run).await;
    world.end(view.token, TaskEnd::PinsChanged { reason: "`y.parquet` changed".to_owned() }).await;
    let stored = world.run(run).await.0;
    assert_eq!(stored.state, RunState::Failed);
    assert!(stored.reason.unwrap().contains("y.parquet"));
}

/// Nothing of the run is published; its siblings stop, its verdicts stay.
pub async fn a_check_that_fails_ends_the_run(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    // Two views that do not read each other run at the same time.
    let mut new = World::new_run("daily", 0);
    new.views = vec!["a@v1".parse().unwrap(), "c@v1".parse().unwrap()];
    let run = world.create(new).await;
    world.store.run_admit(run).await.unwrap();
    let pin = world.claim(run).await;
    world.end(pin.token, succeeded(pins())).await;
    let (bad, sibling) = (world.claim(run).await, world.claim(run).await);
    assert_eq!((bad.kind.to_string(), sibling.kind.to_string()), ("a@v1".to_owned(), "c@v1".to_owned()));

    let output = Some(staged(3, vec![check("not_null", Verdict::Failed)]));
    world.end(bad.token, TaskEnd::Blocked { output: output.clone(), reason: "3 rows".to_owned() }).await;
    let (stored, tasks) = world.run(run).await;
    assert_eq!((stored.state, stored.reason.as_deref()), (RunState::Blocked, Some("3 rows")));
    assert_eq!(stored.finished_at, Some(day(10)));
    let states: Vec<TaskState> = tasks.iter().map(|task| task.state).collect();
    assert_eq!(states, [TaskState::Succeeded, TaskState::Blocked, TaskState::Skipped, TaskState::Skipped]);
    assert_eq!((tasks[1].output.clone(), tasks[1].rows), (output, Some(3)));
    for end in [succeeded(staged(1, Vec::new())), failed(None)] {
        let answer = world.store.task_end(sibling.token, end, day(10)).await;
        assert!(matches!(answer, Err(StoreError::LostLease)), "{answer:?}");
    }
    assert!(matches!(world.store.task_heartbeat(sibling.token, LONG).await, Err(StoreError::LostLease)));
    assert_eq!(world.try_claim("w1", LONG, &[]).await, None);
    assert_eq!(world.store.checks(&CheckFilter::default()).await.unwrap().len(), 1);
}

/// A mix-up in a worker must not reach the tasks after it.
pub async fn a_task_leaves_only_what_fits_it(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let pin = world.claim(run).await;
    let wrong = world.store.task_end(pin.token, succeeded(staged(1, Vec::new())), day(10)).await;
    assert!(matches!(wrong, Err(StoreError::Refused(_))), "{wrong:?}");
    world.end(pin.token, succeeded(pins())).await;
    let publish = world.claim_publish(run).await;
    let output = TaskOutput::Published(SnapshotId::generate());
    let wrong = world.store.task_end(publish.token, succeeded(output), day(10)).await;
    assert!(matches!(wrong, Err(StoreError::Refused(_))), "publishing ends by its record: {wrong:?}");
    assert_eq!(world.state(run).await, RunState::Running);
}

/// What the tasks of a run said, oldest first.
pub async fn lines_are_kept_in_order(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let line = |level: &str, text: &str| (level.to_owned(), text.to_owned());
    let pin = world.claim(run).await;
    world.store.task_log(pin.token, &[line("info", "one"), line("warn", "two")], day(3)).await.unwrap();
    world.end(pin.token, failed(Some(EXPIRED))).await;
    let pin = world.claim(run).await;
    world.store.task_log(pin.token, &[line("error", "three")], day(2)).await.unwrap();
    let lines = world.store.run_logs(run).await.unwrap();
    let told: Vec<_> = lines.iter().map(|line| (line.message.as_str(), line.level.as_str(), line.attempt)).collect();
    assert_eq!(told, [("one", "info", 1), ("two", "warn", 1), ("three", "error", 2)]);
    assert_eq!((lines[0].task.as_str(), lines[0].at), ("pin", day(3)));
    let tasks: BTreeSet<&str> = lines.iter().map(|line| line.task.as_str()).collect();
    assert_eq!(tasks.len(), 1);
    assert!(matches!(world.store.run_logs(RunId::generate()).await, Err(StoreError::NotFound { .. })));
}
