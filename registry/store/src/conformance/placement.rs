//! Who gets which task: queues, pools, priorities, drained workers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_registry::ids::RunId;
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::run::{Claim, NewRun, RunState, TaskKind};
use tidegate_registry::store::{Change, ClaimRequest, StoreError, TaskEnd, WaitsFor};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Fixture;
use super::world::{LONG, World, beat, day, pins, placed, pool_row, staged, succeeded, view_row};

const EXPIRED: Duration = Duration::ZERO;

/// The project with the view `c@v1` in `queue` and `pool`, the pool having `slots`.
async fn world(fixture: &Fixture, queue: Option<&str>, pool: Option<&str>, slots: u32) -> World {
    let world = World::new(fixture.store.clone()).await;
    let mut upserts = vec![placed(view_row("c@v1", &[], "placed"), queue, pool)];
    upserts.extend(pool.map(|pool| pool_row(pool, slots)));
    world.apply(1, upserts, Vec::new(), day(0)).await;
    world
}

/// Runs of `other` whose pin is done: the task of `c@v1` is next.
async fn pinned(world: &World, numbers: std::ops::Range<i64>) -> Vec<RunId> {
    let mut runs = Vec::new();
    for number in numbers {
        let run = world.create(NewRun { definitions: 2, ..World::new_run("other", number) }).await;
        world.store.run_admit(run).await.unwrap();
        let pin = world.claim(run).await;
        world.end(pin.token, succeeded(pins())).await;
        runs.push(run);
    }
    runs
}

fn request(owner: &str, queues: &[&str], limit: u32) -> ClaimRequest {
    let queues = queues.iter().map(|queue| queue.parse().unwrap()).collect();
    ClaimRequest { queues, limit, ..ClaimRequest::new(owner, LONG) }
}

fn runs_of(claims: &[Claim]) -> Vec<RunId> {
    claims.iter().map(|claim| claim.run.id).collect()
}

/// One question brings as many as asked for, in order, each under a token of its own.
pub async fn several_tasks_are_claimed_at_once(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let runs: Vec<NewRun> = (0..6).map(|number| World::new_run("other", number)).collect();
    let ids = world.store.runs_create(runs, day(10)).await.unwrap();
    world.store.runs_admit(&ids).await.unwrap();
    let some = world.claim_by(&request("w1", &[], 4)).await;
    assert_eq!(runs_of(&some), ids[..4]);
    assert!(some.iter().all(|claim| claim.run.state == RunState::Running && claim.attempt == 1));
    let rest = world.claim_by(&request("w2", &[], 4)).await;
    assert_eq!(runs_of(&rest), ids[4..]);
    let tokens: BTreeSet<String> = some.iter().chain(&rest).map(|claim| claim.token.to_string()).collect();
    assert_eq!(tokens.len(), 6);
    for claim in some.iter().chain(&rest) {
        world.end(claim.token, succeeded(pins())).await;
    }
    assert_eq!(world.claim_by(&request("w1", &[], 100)).await.len(), 6);
}

/// A view can ask for a big machine; everything else of its run is done by anybody.
pub async fn a_worker_gets_only_tasks_of_its_queues(fixture: &Fixture) {
    let world = world(fixture, Some("big"), None, 0).await;
    let runs = pinned(&world, 0..2).await;
    assert_eq!(world.claim_by(&request("w1", &["default"], 10)).await, []);
    assert_eq!(world.claim_by(&request("w1", &["small", "default"], 10)).await, []);
    let big = world.claim_by(&request("w2", &["big"], 1)).await;
    assert_eq!((runs_of(&big), big[0].kind.to_string()), (vec![runs[0]], "c@v1".to_owned()));
    world.end(big[0].token, succeeded(staged(1, Vec::new()))).await;
    let publish = world.claim_by(&request("w1", &["default"], 10)).await;
    assert_eq!((publish.len(), &publish[0].kind), (1, &TaskKind::Publish));
    let any = world.claim_by(&request("w3", &[], 10)).await;
    assert_eq!(runs_of(&any), [runs[1]]);
    let states = world.store.queues().await.unwrap();
    let states: Vec<_> = states.iter().map(|state| (state.queue.as_str(), state.waiting, state.running)).collect();
    assert_eq!(states, [("big", 0, 1), ("default", 0, 1)]);
}

/// However many ask at once; and all of its slots can be had.
pub async fn a_pool_is_never_overdrawn(fixture: &Fixture) {
    const TASKS: usize = 24;
    let world = world(fixture, None, Some("warehouse"), 3).await;
    pinned(&world, 0..24).await;
    let (now_held, _) = watch::channel(0);
    let (most_held, _) = watch::channel(0);
    let (done, _) = watch::channel(0);
    let mut workers = JoinSet::new();
    for number in 0..8 {
        let store = if number % 2 == 0 { &fixture.store } else { &fixture.twin };
        let world = World { store: Arc::clone(store) };
        let (now_held, most_held, done) = (now_held.clone(), most_held.clone(), done.clone());
        workers.spawn(async move {
            while *done.borrow() < TASKS {
                let mut claims = world.claim_by(&request(&format!("w{number}"), &[], 2)).await;
                claims.retain(|claim| claim.kind != TaskKind::Publish);
                now_held.send_modify(|held| *held += claims.len());
                let held = *now_held.borrow();
                most_held.send_modify(|most| *most = held.max(*most));
                for claim in claims {
                    // Kept until every slot was once in use, however slowly the others come.
                    most_held.subscribe().wait_for(|most| *most >= 3).await.unwrap();
                    // Given up before the registry knows, so that what we count is never more than what is held.
                    now_held.send_modify(|held| *held -= 1);
                    world.end(claim.token, succeeded(staged(1, Vec::new()))).await;
                    done.send_modify(|done| *done += 1);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    let all = tokio::time::timeout(Duration::from_secs(60), workers.join_all()).await;
    assert!(all.is_ok(), "{} of {TASKS} done, {} held at most", *done.borrow(), *most_held.borrow());
    assert_eq!((*most_held.borrow(), *done.borrow()), (3, TASKS));
}

/// Tasks behind a full pool do not keep those without a pool from being claimed.
pub async fn a_full_pool_stands_in_nobodys_way(fixture: &Fixture) {
    let world = world(fixture, None, Some("warehouse"), 1).await;
    let pooled = pinned(&world, 0..5).await;
    let free = world.admitted("daily", 7).await;
    let claims = world.claim_by(&request("w1", &[], 3)).await;
    assert_eq!(runs_of(&claims), [pooled[0], free]);
    let pools = world.store.pools().await.unwrap();
    let pools: Vec<_> = pools.iter().map(|pool| (pool.name.as_str(), pool.slots, pool.used, pool.waiting)).collect();
    assert_eq!(pools, [("warehouse", 1, 1, 4)]);
}

/// Nothing has to be given back by the dead.
pub async fn a_slot_of_a_pool_ends_with_its_lease(fixture: &Fixture) {
    let world = world(fixture, None, Some("warehouse"), 1).await;
    let runs = pinned(&world, 0..2).await;
    let lost = world.claim_by(&ClaimRequest::new("gone", EXPIRED)).await;
    assert_eq!(runs_of(&lost), [runs[0]]);
    // Also when the claim is for other runs only.
    let next = world.try_claim("w2", LONG, &[runs[1]]).await.expect("the slot is free again");
    assert_eq!(next.run.id, runs[1]);
    assert_eq!(world.try_claim("w3", LONG, &[]).await, None);
    assert!(matches!(world.store.task_heartbeat(lost[0].token, LONG).await, Err(StoreError::LostLease)));
    world.end(next.token, TaskEnd::Released { retry_in: LONG, reason: None }).await;
    assert_eq!(world.try_claim("w3", LONG, &[]).await.unwrap().run.id, runs[0]);
}

/// Slots follow the definitions at once; tasks of a pool that is gone are like any other.
pub async fn a_pool_is_as_large_as_it_is_defined_now(fixture: &Fixture) {
    let world = world(fixture, None, Some("warehouse"), 1).await;
    pinned(&world, 0..6).await;
    assert_eq!(world.claim_by(&request("w1", &[], 10)).await.len(), 1);
    world.apply(2, vec![pool_row("warehouse", 3)], Vec::new(), day(0)).await;
    assert_eq!(world.claim_by(&request("w1", &[], 10)).await.len(), 2);
    let (_, project) = world.store.project(None).await.unwrap();
    assert_eq!(project.pools[0].slots, 3);
    world.apply(3, Vec::new(), vec![(DefinitionKind::Pool, "warehouse".to_owned())], day(0)).await;
    assert_eq!(world.claim_by(&request("w1", &[], 10)).await.len(), 3);
    assert_eq!(world.store.pools().await.unwrap(), []);
}

/// Each point is worth a minute of waiting, counted from when the run was let in.
pub async fn a_priority_moves_a_run_ahead(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let mut expected = Vec::new();
    for (number, priority) in [(0, 0), (1, -1), (2, 5), (3, 0)] {
        let run = world.create(NewRun { priority, ..World::new_run("other", number) }).await;
        world.store.run_admit(run).await.unwrap();
        expected.push((-priority, number, run));
    }
    // An older interval that comes later waits its turn.
    let late = world.create(World::new_run("other", -1)).await;
    world.store.run_admit(late).await.unwrap();
    expected.push((0, 4, late));
    expected.sort_unstable();
    let expected: Vec<RunId> = expected.into_iter().map(|(.., run)| run).collect();
    let waiting = world.store.tasks_waiting(10, LONG).await.unwrap();
    assert_eq!(waiting.iter().map(|task| task.run).collect::<Vec<_>>(), expected);
    assert_eq!(waiting[0].priority, 5);
    assert!(waiting.iter().all(|task| task.admitted < LONG), "{waiting:?}");
    assert_eq!(runs_of(&world.claim_by(&request("w1", &[], 10)).await), expected);
}

/// A run made anew keeps its priority.
pub async fn a_retry_keeps_its_priority(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.create(NewRun { priority: 7, ..World::new_run("other", 0) }).await;
    world.store.run_cancel(run, "ana", day(1)).await.unwrap();
    let again = world.store.run_retry(run, 3, "ana", day(2)).await.unwrap();
    world.store.run_admit(again).await.unwrap();
    let waiting = world.store.tasks_waiting(1, LONG).await.unwrap();
    assert_eq!((waiting[0].run, waiting[0].priority), (again, 7));
}

/// What it has it may finish; it may also be let work again.
pub async fn a_drained_worker_claims_nothing(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let unknown = world.store.worker_drain("w1", true, "ana", day(3)).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { what: "worker", .. })), "{unknown:?}");
    assert!(!world.store.worker_heartbeat(&beat("w1", &[])).await.unwrap());
    let pin = world.claim(run).await;
    fixture.twin.worker_drain("w1", true, "ana", day(3)).await.unwrap();
    world.store.task_heartbeat(pin.token, LONG).await.unwrap();
    world.end(pin.token, succeeded(pins())).await;
    assert_eq!(world.claim_by(&request("w1", &[], 10)).await, []);
    assert!(world.store.worker_heartbeat(&beat("w1", &[])).await.unwrap(), "it is told");
    assert!(world.store.workers(LONG).await.unwrap()[0].drained);
    let other = world.claim_by(&request("w2", &[], 1)).await;
    world.end(other[0].token, TaskEnd::Released { retry_in: Duration::ZERO, reason: None }).await;
    fixture.twin.worker_drain("w1", false, "ana", day(3)).await.unwrap();
    assert_eq!(world.claim_by(&request("w1", &[], 10)).await.len(), 1);
}

/// In the order in which they will be claimed.
pub async fn waiting_tasks_say_what_they_wait_for(fixture: &Fixture) {
    let world = world(fixture, Some("big"), Some("warehouse"), 1).await;
    let runs = pinned(&world, 0..3).await;
    let free = world.admitted("daily", 5).await;
    let why = async || -> Vec<WaitsFor> {
        world.store.tasks_waiting(10, LONG).await.unwrap().into_iter().map(|task| task.waits_for).collect()
    };
    assert_eq!(why().await, [WaitsFor::Queue, WaitsFor::Queue, WaitsFor::Queue, WaitsFor::Queue]);
    world.store.worker_heartbeat(&beat("w1", &["default"])).await.unwrap();
    assert_eq!(why().await, [WaitsFor::Queue, WaitsFor::Queue, WaitsFor::Queue, WaitsFor::Worker]);
    world.store.worker_heartbeat(&beat("w2", &["big"])).await.unwrap();
    let full = WaitsFor::Pool { slots: 1 };
    assert_eq!(why().await, [WaitsFor::Worker, full.clone(), full, WaitsFor::Worker]);
    world.store.worker_drain("w2", true, "ana", day(3)).await.unwrap();
    assert_eq!(why().await, [WaitsFor::Queue, WaitsFor::Queue, WaitsFor::Queue, WaitsFor::Worker]);
    let claim = world.try_claim("w3", LONG, &[runs[0]]).await.unwrap();
    world.end(claim.token, TaskEnd::Failed { error: "it broke".to_owned(), retry_in: Some(LONG) }).await;
    let waiting = world.store.tasks_waiting(2, LONG).await.unwrap();
    assert!(matches!(waiting[0].waits_for, WaitsFor::Retry { pause } if pause <= LONG), "{waiting:?}");
    assert_eq!((waiting.len(), waiting[0].run), (2, runs[0]));
    assert_eq!((waiting[0].queue.as_str(), waiting[0].pool.as_ref().unwrap().as_str()), ("big", "warehouse"));
    assert_eq!(world.state(free).await, RunState::Queued);
}

/// So that nobody has to look all the time.
pub async fn whoever_listens_is_told_of_changes(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    fixture.store.listen(Arc::new(move |change| ear.lock().unwrap().push(change)));
    let tell = async |what: Change| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !heard.lock().unwrap().contains(&what) {
            assert!(tokio::time::Instant::now() < deadline, "nobody told of {what:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // What a listener is told when it begins to listen may still come.
        tokio::time::sleep(Duration::from_millis(50)).await;
        heard.lock().unwrap().clear();
    };
    let run = world.create(World::new_run("other", 0)).await;
    tell(Change::Runs).await;
    world.store.run_admit(run).await.unwrap();
    tell(Change::Tasks).await;
    let pin = world.claim(run).await;
    world.end(pin.token, succeeded(pins())).await;
    tell(Change::Tasks).await;
    world.store.run_cancel(run, "ana", day(1)).await.unwrap();
    tell(Change::Runs).await;
}
