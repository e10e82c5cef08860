//! Schedulers side by side in real time, on real databases: what one call does between its statements is interleaved by
//! the machine, and passes are given up in the middle, as by a death.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use tidegate_registry::run::RunState;
use tidegate_registry::store::{RunFilter, Store};
use tidegate_registry::time::{Clock, Instant, Interval};
use tidegate_scheduler::service::{Options, Scheduler};
use tidegate_store::{PostgresStore, SqliteStore};
use tokio::task::JoinSet;

use super::apply;
use super::project::{project, wanted};
use super::world::{Dice, start};

/// An hour that passes as passes are made; some minutes wrong.
#[derive(Debug)]
struct Passes {
    minute: Arc<AtomicI64>,
    skew: i64,
}

impl Clock for Passes {
    fn now(&self) -> Instant {
        start() + TimeDelta::minutes((self.minute.load(Ordering::Relaxed) + self.skew).clamp(0, 61))
    }

    fn real_until(&self, _at: Instant) -> Duration {
        Duration::ZERO
    }
}

/// Three schedulers, each with connections of its own, over an hour of ticks.
async fn race(stores: [Arc<dyn Store>; 3]) {
    apply(&*stores[0], &project(), start()).await;
    let minute = Arc::new(AtomicI64::new(0));
    let mut schedulers = JoinSet::new();
    for (number, store) in (0..).zip(stores.clone()) {
        let minute = Arc::clone(&minute);
        schedulers.spawn(async move {
            let mut dice = Dice::new(number);
            while minute.load(Ordering::Relaxed) < 62 {
                let clock = Passes { minute: Arc::clone(&minute), skew: dice.below(20) as i64 - 10 };
                let scheduler = Scheduler::new(Arc::clone(&store), Arc::new(clock), Options::default());
                for _ in 0..2 {
                    let patience = Duration::from_micros(dice.below(40_000));
                    // Given up in the middle, it is as if it died there; one whose plan was overtaken goes on.
                    match tokio::time::timeout(patience, scheduler.step()).await {
                        Err(_) => break,
                        Ok(done) => drop(done.unwrap()),
                    }
                }
                if number == 0 {
                    minute.fetch_add(1 + dice.below(3) as i64, Ordering::Relaxed);
                }
            }
        });
    }
    schedulers.join_all().await;
    let clock = Arc::new(Passes { minute, skew: 0 });
    while Scheduler::new(Arc::clone(&stores[1]), clock.clone(), Options::default()).step().await.unwrap().did_anything()
    {
    }

    let runs = stores[2].runs(&RunFilter::default()).await.unwrap();
    let mut planned: BTreeSet<_> = BTreeSet::new();
    for dag in project().dags.values() {
        let intervals = wanted(&dag.views[0]);
        let mut ticks: Vec<Instant> = intervals.iter().map(Interval::start).collect();
        ticks.extend(intervals.last().map(Interval::end));
        assert_eq!(stores[2].ticks(&dag.name, start(), start() + TimeDelta::hours(2)).await.unwrap(), ticks);
        for interval in intervals {
            match dag.publish {
                tidegate_registry::model::PublishUnit::Together => drop(planned.insert((interval, dag.views.clone()))),
                tidegate_registry::model::PublishUnit::Each => {
                    planned.extend(dag.views.iter().map(|view| (interval, vec![view.clone()])));
                }
            }
        }
    }
    let found: BTreeSet<_> = runs.iter().map(|run| (run.interval, run.views.clone())).collect();
    assert_eq!(found, planned);
    assert_eq!(runs.len(), planned.len(), "no run exists twice");
    assert!(runs.iter().all(|run| run.revision < 2), "revisions are those of a world without rivals");
    assert!(runs.iter().any(|run| run.state == RunState::Queued));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_schedulers_plan_every_interval_once_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let open = async || {
        let store = SqliteStore::open(&folder.path().join("registry.db")).await.unwrap();
        Arc::new(store) as Arc<dyn Store>
    };
    race([open().await, open().await, open().await]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_schedulers_plan_every_interval_once_on_postgresql() {
    let url = tidegate_servers::Postgres::shared().database().unwrap();
    let open = async || Arc::new(PostgresStore::open(&url).await.unwrap()) as Arc<dyn Store>;
    race([open().await, open().await, open().await]).await;
}
