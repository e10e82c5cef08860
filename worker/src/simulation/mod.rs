//! An hour of two schedulers and three workers in which everything goes wrong that a registry, a lake and an online store
//! can do to them, some thousand times over.
//!
//! The loops are the real ones ([`crate::Worker`], with its claims, heartbeats and retries, and
//! [`tidegate_scheduler::service::Scheduler::step`]), and so is the registry (SQLite). Lake and online store are models
//! with the fences of the real ones ([`world`]), tasks cost nothing ([`executor`]), and time is virtual ([`time`]): the
//! hour takes 10 seconds, of which none passes while somebody has something to do. Every call of a process has a fate
//! ([`actor`]): it is refused, its answer is lost, it happens long after its caller gave up, or in its middle the process
//! dies (another takes its place) or freezes past its leases. Clocks are wrong by minutes, wakes get lost, checks block,
//! files change, people cancel, retry, pause, backfill and apply. Then the storm ends, somebody retries what was closed,
//! and [`checks`] compares the world with the one in which nothing went wrong.
//!
//! *What a seed decides.* Everything but the ids, which come from the machine; nothing depends on their values, only on
//! their order. A call to the registry is one indivisible step here, so what happens *between* its statements is not
//! explored: that is for the conformance suite, on the real databases. `TIDEGATE_SIMULATION_SEED=n` replays one history
//! and prints it; `TIDEGATE_SIMULATION_RUNS=n` simulates so many, from `TIDEGATE_SIMULATION_FIRST` on, and begins none
//! after `TIDEGATE_SIMULATION_SECONDS`.

mod actor;
mod checks;
mod executor;
mod people;
mod project;
mod racing;
pub(crate) mod time;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_registry::model::Project;
use tidegate_registry::plan;
use tidegate_registry::store::{ApplyRequest, Store};
use tidegate_scheduler::service::{Options, Scheduler};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::actor::{Actor, Registry, at_once};
use self::executor::Model;
use self::time::Time;
use self::world::{SkewedClock, World, start};
use crate::{Hands, Worker, WorkerOptions};

/// When people stop breaking things; the hour is over by then.
const STORM: Duration = Duration::from_secs(11);
/// What goes on longer after the storm is stuck: leases run out in 3 seconds, processes freeze for 6 and what was sent
/// arrives within 8.
const CALM_MAX: Duration = Duration::from_secs(240);
/// The longest that anything sent before its end is under way.
const LATEST: Duration = Duration::from_secs(9);
const LEASE: Duration = Duration::from_secs(3);

/// What everybody shares who takes part.
#[derive(Debug, Clone)]
struct Stage {
    world: Arc<World>,
    registry: Arc<Registry>,
    /// Wakes workers.
    wake: Arc<Notify>,
    /// Wakes schedulers.
    progress: Arc<Notify>,
    end: CancellationToken,
}

impl Stage {
    fn clock(&self) -> Arc<SkewedClock> {
        // Up to twenty minutes fast or slow, every second process.
        let skew = if self.world.strikes(2) { self.world.dice(2_400) as i64 - 1_200 } else { 0 };
        Arc::new(SkewedClock { time: Arc::clone(&self.world.time), skew: skew.into() })
    }
}

/// One life after the other of a worker.
async fn worker_lives(stage: Stage, number: u32) {
    for life in 0.. {
        let actor = Actor::new(format!("worker {number}.{life}"), &stage.world, &stage.registry, false);
        let store: Arc<dyn Store> = actor.store();
        let clock = stage.clock();
        let executor = Model { actor: Arc::clone(&actor), store: Arc::clone(&store), clock: clock.clone() };
        let hands = Hands {
            store: Arc::clone(&store),
            clock,
            executor: Arc::new(executor),
            wake: Arc::clone(&stage.wake),
            progress: Arc::clone(&stage.progress),
        };
        let options = WorkerOptions {
            owner: actor.name.clone(),
            lease: LEASE,
            slots: 2,
            queues: Vec::new(),
            host: "here".to_owned(),
            memory_bytes: 0,
            spill_dir: Path::new("/").to_owned(),
        };
        let worker = Worker::with_hands(hands, options);
        let stop = stage.end.child_token();
        // Now and then somebody stops it in good order.
        let patience =
            if stage.world.strikes(3) { Duration::from_millis(stage.world.dice(10_000)) } else { CALM_MAX * 2 };
        let life = async {
            if life > 0 && stage.world.dice(2) == 0 {
                // As a process does that finds a dead one of its machine.
                drop(store.leases_release(&format!("worker {number}.{}", life - 1)).await);
            }
            tokio::select! {
                biased;
                _ = worker.run(stop.clone()) => {}
                () = async { stage.world.time.sleep(patience).await; stop.cancel(); std::future::pending().await } => {}
            }
        };
        tokio::select! {
            biased;
            () = actor.death.notified() => stage.world.note(&format!("{} dies", actor.name)),
            () = life => stage.world.note(&format!("{} stops", actor.name)),
        }
        if stage.end.is_cancelled() {
            return;
        }
        stage.world.time.sleep(Duration::from_millis(1 + stage.world.dice(2_000))).await;
    }
}

/// One life after the other of a scheduler. The loop is not [`Scheduler::run`], whose pauses would be real, but as thin.
async fn scheduler_lives(stage: Stage, number: u32) {
    for life in 0.. {
        let actor = Actor::new(format!("scheduler {number}.{life}"), &stage.world, &stage.registry, false);
        let clock = stage.clock();
        let options = Options::default();
        let scheduler = Scheduler::new(actor.store(), clock.clone(), options);
        let life = async {
            loop {
                let woken = stage.progress.notified();
                let pause = match scheduler.step().await {
                    Ok(step) if step.more => Duration::ZERO,
                    Ok(step) => {
                        // Every fourth wake gets lost.
                        if step.admitted > 0 && stage.world.dice(4) > 0 {
                            stage.wake.notify_waiters();
                        }
                        options.poll
                    }
                    Err(error) => {
                        stage.world.note(&format!("{}: {error:#}", actor.name));
                        options.poll * 2
                    }
                };
                tokio::select! {
                    biased;
                    () = stage.end.cancelled() => return,
                    () = woken => {}
                    () = stage.world.time.sleep(pause) => {}
                }
                if stage.world.strikes(20) {
                    *clock.skew.lock().unwrap() = stage.world.dice(2_400) as i64 - 1_200;
                }
                if !*stage.world.storm.lock().unwrap() {
                    *clock.skew.lock().unwrap() = 0;
                }
            }
        };
        tokio::select! {
            biased;
            () = actor.death.notified() => stage.world.note(&format!("{} dies", actor.name)),
            () = life => return,
        }
        stage.world.time.sleep(Duration::from_millis(1 + stage.world.dice(2_000))).await;
    }
}

/// Writes `project` as a new revision.
async fn apply(store: &dyn Store, project: &Project, now: tidegate_registry::time::Instant) {
    let (base, current) = store.project(None).await.unwrap();
    let Ok(plan) = plan::diff(base, &current, project, &Default::default()) else {
        panic!("the project cannot be applied")
    };
    let known = &current.views;
    let tables = project.views.keys().filter(|view| !known.contains_key(*view)).map(|view| (view.clone(), 0)).collect();
    let request = ApplyRequest {
        project: project.name.to_string(),
        base,
        changes: plan.changes(),
        tables,
        actor: "ana".to_owned(),
        message: None,
        now,
    };
    // Two people may apply at once.
    drop(store.apply(request).await);
}

/// What happened, or which promise was broken.
type Story = Result<Vec<String>, String>;

/// One simulation; the seed's, and not that of a machine that stood still in its middle.
fn simulate(seed: u64, template: &Path) -> Story {
    let mut stories = (0..20).map(|_| simulate_once(seed, template));
    let undoubted = stories.find_map(|(story, is_doubtful)| (!is_doubtful).then_some(story));
    undoubted.unwrap_or_else(|| Err("the machine stands still all the time".to_owned()))
}

/// What happened, and whether the machine had a hand in it.
fn simulate_once(seed: u64, template: &Path) -> (Story, bool) {
    let folder = tempfile::Builder::new().tempdir_in(memory()).unwrap();
    let path = folder.path().join("registry.db");
    std::fs::copy(template, &path).unwrap();
    let story = Time::run(|time| async move {
        let world = Arc::new(World::new(seed, time));
        let stage = Stage {
            registry: Arc::new(Registry::open(&path)),
            world: Arc::clone(&world),
            wake: Arc::default(),
            progress: Arc::default(),
            end: CancellationToken::new(),
        };
        let mut processes = JoinSet::new();
        for number in 0..3 {
            processes.spawn(worker_lives(stage.clone(), number));
        }
        for number in 0..2 {
            processes.spawn(scheduler_lives(stage.clone(), number));
        }
        let hour = async {
            let told = people::live(&stage).await;
            if told.is_ok() {
                // The frozen wake and the late arrive, and find everything done.
                world.time.sleep(LATEST).await;
            }
            stage.end.cancel();
            while let Some(ended) = processes.join_next().await {
                if let Err(error) = ended {
                    world.outside.lock().unwrap().broken.push(format!("a process broke: {error}"));
                }
            }
            told.and(checks::check(&stage).await)
        };
        let found = tokio::select! {
            biased;
            found = hour => found,
            () = world.time.stuck() => Err("everybody waits for something that will not happen".to_owned()),
        };
        world.late.lock().unwrap().abort_all();
        world.note_calls();
        let history = std::mem::take(&mut world.outside.lock().unwrap().history);
        let story = found.map(|()| history.clone()).map_err(|broken| format!("{}\n\n{broken}", history.join("\n")));
        (story, stage.registry.is_doubtful.load(Ordering::Relaxed))
    });
    drop(folder);
    story
}

/// Where files need not be waited for.
fn memory() -> std::path::PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() }
}

/// A registry to which the project has been applied.
fn template() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::Builder::new().tempdir_in(memory()).unwrap();
    let path = folder.path().join("registry.db");
    at_once(async {
        let store = tidegate_store::SqliteStore::open(&path).await.unwrap();
        apply(&store, &project::project(), start()).await;
        store.close().await;
    });
    (folder, path)
}

#[expect(clippy::disallowed_methods, reason = "what a developer asks of a test")]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many are simulated unless somebody asks for more: about a minute of two cores, in debug.
const RUNS: u64 = 100;

#[test]
fn whatever_fails_every_interval_is_published_once() {
    let (_folder, template) = template();
    if let Some(seed) = asked("TIDEGATE_SIMULATION_SEED") {
        match simulate(seed, &template) {
            Ok(history) => println!("{}", history.join("\n")),
            Err(broken) => panic!("seed {seed}:\n{broken}"),
        }
        return;
    }
    let (first, runs) = (asked("TIDEGATE_SIMULATION_FIRST").unwrap_or_default(), asked("TIDEGATE_SIMULATION_RUNS"));
    let next = AtomicU64::new(first);
    let end = first + runs.unwrap_or(RUNS);
    let began = std::time::Instant::now();
    let patience = asked("TIDEGATE_SIMULATION_SECONDS").map_or(Duration::MAX, Duration::from_secs);
    let broken: Vec<(u64, String)> = std::thread::scope(|scope| {
        let simulate_some = || {
            let mut broken = Vec::new();
            while broken.is_empty() && began.elapsed() < patience {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    break;
                }
                broken.extend(simulate(seed, &template).err().map(|what| (seed, what)));
            }
            broken
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(simulate_some)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let simulated = next.into_inner().min(end) - first;
    println!("{simulated} of {} simulations took {:?}", end - first, began.elapsed());
    assert!(simulated > 0, "nothing was simulated");
    if let Some((seed, what)) = broken.first() {
        panic!(
            "{what}\n\nreplay this with TIDEGATE_SIMULATION_SEED={seed} \
             cargo test -p tidegate-worker --lib whatever_fails -- --nocapture"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let (_folder, template) = template();
    for seed in [3, 4] {
        let (first, second) = (simulate(seed, &template), simulate(seed, &template));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(first.len() > 30, "{} things happened", first.len());
        let differs = first.iter().zip(&second).position(|(left, right)| left != right);
        assert_eq!(differs.map(|line| (&first[line], &second[line])), None);
        assert_eq!(first.len(), second.len());
    }
}
