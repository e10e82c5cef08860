//! Faults inside a worker: a query that takes every core, a function that panics, clocks that jump and differ.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use datafusion::arrow::datatypes::DataType;
use datafusion::logical_expr::{Volatility, create_udf};
use tidegate_registry::run::{RunState, TaskState};
use tidegate_registry::store::{ClaimRequest, Store as _};
use tidegate_registry::time::{Clock, Instant};
use tokio_util::sync::CancellationToken;

use crate::Worker;
use crate::engine::{Engine, Joins};
use crate::sources::Sources;
use crate::tests::{ATTENTIVE, World, at, endless, worker_by};

#[tokio::test]
async fn a_query_that_takes_every_core_keeps_its_lease() {
    let world = World::with(&endless()).await;
    let id = world.plan(1, 0).await;
    let (ids, stop) = ([id], CancellationToken::new());
    let watch = async {
        let endless = async || {
            let (_, tasks) = world.store.run(id).await.unwrap();
            tasks.into_iter().find(|task| task.state == TaskState::Running && task.kind.to_string() == "lifetime@v1")
        };
        while endless().await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // It must be renewed more than once.
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < ATTENTIVE + Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let other = ClaimRequest::new("two", Duration::from_secs(60));
            let claimed = world.store.task_claim(&other, at("2024-01-05T00:00:00Z")).await.unwrap();
            assert!(claimed.iter().all(|claim| claim.kind.to_string() != "lifetime@v1"), "its lease ran out");
        }
        assert_eq!(endless().await.map(|task| task.attempts), Some(1));
        world.store.run_cancel(id, "ana", at("2024-01-05T00:00:00Z")).await.unwrap();
    };
    let worker = world.attentive_worker();
    let (done, ()) = tokio::join!(worker.run_only(&ids, stop), watch);
    done.unwrap();
}

#[tokio::test]
async fn a_function_that_panics_fails_its_task_and_the_engine_lives() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::new(64 << 20, folder.path()).unwrap();
    let panics = create_udf(
        "boom",
        vec![DataType::Int64],
        DataType::Int64,
        Volatility::Volatile,
        Arc::new(|_: &[datafusion::logical_expr::ColumnarValue]| panic!("the function broke")),
    );
    let ctx = engine.context(Joins::Hash).unwrap();
    ctx.register_udf(panics);
    let sql = "SELECT boom(value) FROM (VALUES (1), (2)) AS rows (value)";
    let broken = engine.run(async move { anyhow::Ok(ctx.sql(sql).await?.collect().await?) }).await;
    let error = match broken {
        Ok(done) => format!("{:#}", done.unwrap_err()),
        Err(panicked) => format!("{panicked:#}"),
    };
    assert!(error.contains("panic"), "{error}");
    let ctx = engine.context(Joins::Hash).unwrap();
    let rows = engine.run(async move { ctx.sql("SELECT 1").await.unwrap().collect().await.unwrap() }).await.unwrap();
    assert_eq!(rows[0].num_rows(), 1, "the next query runs");
}

/// A clock that is wrong by an hour, now in one direction and now in the other.
#[derive(Debug, Default)]
struct JumpingClock(AtomicU32);

impl Clock for JumpingClock {
    fn now(&self) -> Instant {
        let wrong = if self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { 1 } else { -1 };
        at("2024-01-05T12:00:00Z") + TimeDelta::hours(wrong)
    }

    fn real_until(&self, _: Instant) -> Duration {
        Duration::MAX
    }
}

fn wrong_worker(world: &World, clock: Arc<dyn Clock>, owner: &str) -> Worker {
    let sources = Sources::new(world.folder.path(), &[]).unwrap();
    worker_by(clock, &world.folder, &world.store, &world.lake, &world.online, owner, sources)
}

/// Leases run by the database's clock and waits by the monotonic one: a worker's wall clock ends none early or late.
#[tokio::test]
async fn a_clock_that_jumps_by_hours_ends_no_lease() {
    let world = World::new().await;
    let worker = wrong_worker(&world, Arc::<JumpingClock>::default(), "two");
    let ids = [world.plan(1, 0).await, world.plan(2, 0).await];
    worker.run_only(&ids, CancellationToken::new()).await.unwrap();
    for id in ids {
        let (run, tasks) = world.store.run(id).await.unwrap();
        assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
        assert!(tasks.iter().all(|task| task.attempts == 1), "{tasks:?}");
    }
}

/// A clock that is always wrong by so many minutes.
#[derive(Debug)]
struct WrongClock(i64);

impl Clock for WrongClock {
    fn now(&self) -> Instant {
        at("2024-01-05T12:00:00Z") + TimeDelta::minutes(self.0)
    }

    fn real_until(&self, _: Instant) -> Duration {
        Duration::MAX
    }
}

#[tokio::test]
async fn workers_whose_clocks_differ_by_minutes_share_runs() {
    let world = World::new().await;
    let by = |minutes, owner| wrong_worker(&world, Arc::new(WrongClock(minutes)), owner);
    let (early, late) = (by(-5, "early"), by(5, "late"));
    let ids = [world.plan(1, 0).await, world.plan(2, 0).await, world.plan(3, 0).await];
    let (one, two) =
        tokio::join!(early.run_only(&ids, CancellationToken::new()), late.run_only(&ids, CancellationToken::new()));
    one.unwrap();
    two.unwrap();
    for id in ids {
        let (run, tasks) = world.store.run(id).await.unwrap();
        assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
        assert!(tasks.iter().all(|task| task.attempts == 1), "{tasks:?}");
    }
    assert_eq!(world.store.snapshots(None, None, 0).await.unwrap().len(), 3);
}
