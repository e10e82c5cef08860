//! Several processes on one registry.

use std::time::Duration;

use tidegate_registry::ids::SnapshotId;
use tidegate_registry::run::{RunState, TaskKind};
use tidegate_registry::store::StoreError;
use tokio::task::JoinSet;

use super::Fixture;
use super::world::{LONG, World, beat, day, pins, staged, succeeded, view};

/// Each sees at once what the other did, and both may write at any time.
pub async fn two_processes_work_on_one_registry(fixture: &Fixture) {
    let here = World::new(fixture.store.clone()).await;
    let there = World { store: fixture.twin.clone() };
    let run = here.admitted("other", 0).await;
    let pin = there.claim(run).await;
    assert_eq!(here.try_claim("w2", LONG, &[]).await, None);
    there.end(pin.token, succeeded(pins())).await;
    let stage = here.claim(run).await;
    here.end(stage.token, succeeded(staged(1, Vec::new()))).await;
    let publish = there.claim(run).await;
    let intent = there.take(&publish).await;
    assert!(matches!(here.store.run_cancel(run, "ana", day(10)).await, Err(StoreError::Refused(_))));
    there.store.record(publish.token, World::record(SnapshotId::generate(), &intent), day(10)).await.unwrap();
    assert_eq!(here.state(run).await, RunState::Succeeded);
    assert_eq!(here.store.view_states(&[view("c@v1")]).await.unwrap()[0].records, 1);

    let mut writers = JoinSet::new();
    for number in 0..8 {
        let world = if number % 2 == 0 { here.clone() } else { there.clone() };
        writers.spawn(async move {
            for interval in 0..10 {
                let run = world.admitted("daily", number * 10 + interval).await;
                let claim = world.claim(run).await;
                assert_eq!((claim.run.id, claim.kind), (run, TaskKind::Pin));
            }
        });
    }
    writers.join_all().await;
    assert_eq!(here.store.runs_open().await.unwrap().len(), 80);
}

/// It is let go of for good, by whoever holds the same store too, and other processes go on.
pub async fn a_closed_registry_is_unavailable(fixture: &Fixture) {
    let same = fixture.store.clone();
    same.info().await.unwrap();
    fixture.store.close().await;
    fixture.store.close().await;
    assert!(matches!(same.info().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(same.worker_goodbye("host:1").await, Err(StoreError::Unavailable(_))));
    fixture.twin.info().await.unwrap();
    fixture.twin.worker_goodbye("host:1").await.unwrap();
}

/// By the database's clock, which all processes share.
pub async fn a_worker_is_alive_while_it_is_heard_of(fixture: &Fixture) {
    let store = &fixture.store;
    assert!(!store.worker_heartbeat(&beat("host:2", &["big"])).await.unwrap());
    assert!(!store.worker_heartbeat(&beat("host:1", &[])).await.unwrap());
    assert!(!store.worker_heartbeat(&beat("host:1", &[])).await.unwrap());
    assert_eq!(fixture.twin.workers_alive(LONG).await.unwrap(), ["host:1", "host:2"]);
    let workers = fixture.twin.workers(LONG).await.unwrap();
    assert_eq!(workers[1].beat, beat("host:2", &["big"]));
    assert!(workers[0].heard_at <= workers[1].heard_at + LONG && !workers[0].drained);
    store.worker_goodbye("host:2").await.unwrap();
    store.worker_goodbye("host:2").await.unwrap();
    assert_eq!(store.workers_alive(LONG).await.unwrap(), ["host:1"]);
    let silent = async {
        while !store.workers_alive(Duration::from_millis(20)).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), silent).await.expect("a silent worker is soon not alive");
}

/// So that all processes of a project live in one simulated time.
pub async fn whoever_asks_first_anchors_the_clock(fixture: &Fixture) {
    let first = fixture.store.clock_anchor(day(100), day(0)).await.unwrap();
    assert_eq!(first, (day(100), day(0)));
    assert_eq!(fixture.twin.clock_anchor(day(101), day(1)).await.unwrap(), first);
}
