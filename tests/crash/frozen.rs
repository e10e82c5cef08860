//! A worker that stops being scheduled in the middle of a task and wakes when others have long gone on.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tidegate_registry::run::TaskState;
use tidegate_registry::store::{RunFilter, Store as _};

use crate::points::{UNDISTURBED, assert_same};
use crate::world::{Running, World, backfill, block_on, told};

/// The shortest lease there is, and one task at a time, so that the frozen worker holds nothing else.
const WORKER: [&str; 5] = ["worker", "--lease", "1s", "--slots", "1"];

/// What comes after [`backfill`].
const NEXT_DAY: [&str; 6] = ["backfill", "daily", "--from", "2024-01-05", "--to", "2024-01-06"];

/// What is there when nothing goes wrong, a day later.
static UNDISTURBED_LONGER: LazyLock<String> = LazyLock::new(|| {
    let world = World::applied();
    world.sell(3, 5, 0);
    world.backfill();
    assert_same(&world, &UNDISTURBED);
    let done = world.run(&NEXT_DAY);
    assert!(done.status.success(), "{}", told(&done));
    world.outcome()
});

/// Longer than any step of a healthy worker here, shorter than the sleep at the fail point.
const STILL: Duration = Duration::from_millis(500);

/// Freezes a worker at `point` of the second run, lets another do all that is left, and wakes the first.
fn frozen(point: &str, skip: u32) {
    let world = World::applied();
    world.sell(3, 5, 0);
    let sleeper = world.start(&WORKER, &format!("{point}={skip}*off->1*sleep(5000)"));
    world.wait_for_workers(1);
    let driver = world.start(&backfill(), "");
    wait_until_still(&world);
    freeze(&world, &sleeper);
    let before = sleeper.said();
    assert!(!before.contains("lease was lost"), "it was frozen in time: {before}");
    let other = world.start(&WORKER, "");
    let done = driver.finish();
    assert_eq!(done.status.code(), Some(1), "one run is blocked: {}", told(&done));
    other.signal("-TERM");
    let other = other.finish();
    assert!(other.status.success(), "{}", told(&other));
    assert_eq!(sleeper.said(), before, "it slept while the other worked");
    assert_same(&world, &UNDISTURBED);
    // It wakes in the middle of its step, with all it had in hand, and goes on to other work, which nobody else can do.
    sleeper.signal("-CONT");
    let done = world.run(&NEXT_DAY);
    assert!(done.status.success(), "{}\n{}", told(&done), sleeper.said());
    sleeper.signal("-TERM");
    let sleeper = sleeper.finish();
    assert!(sleeper.status.success(), "{}", told(&sleeper));
    assert_same(&world, &UNDISTURBED_LONGER);
}

/// Waits until one task has been running for longer than any does by itself.
fn wait_until_still(world: &World) {
    let begun = Instant::now();
    block_on(async {
        let registry = world.registry().await;
        let mut seen = (String::new(), Instant::now());
        while seen.0.is_empty() || seen.1.elapsed() < STILL {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody stood still");
            let mut now = String::new();
            for run in registry.runs(&RunFilter::default()).await.unwrap() {
                let (_, tasks) = registry.run(run.id).await.unwrap();
                let running = tasks.iter().filter(|task| task.state == TaskState::Running);
                now.extend(running.map(|task| format!("{} {} {}\n", run.id, task.kind, task.attempts)));
            }
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

/// Stops a process while it holds no lock of the registry: one that is stopped inside a transaction stops everybody.
fn freeze(world: &World, running: &Running) {
    block_on(async {
        let registry = world.registry().await;
        loop {
            running.signal("-STOP");
            let writes = registry.leases_release("nobody");
            if let Ok(done) = tokio::time::timeout(Duration::from_secs(1), writes).await {
                done.unwrap();
                break;
            }
            running.signal("-CONT");
        }
    });
}

macro_rules! frozen_at {
    ($($name:ident: $point:literal after $skip:literal,)+) => { $(#[test] fn $name() { frozen($point, $skip); })+ };
}

frozen_at! {
    frozen_while_staging: "stage.written" after 5,
    frozen_before_the_intent: "intent.before" after 1,
    frozen_after_the_intent: "intent.after" after 1,
    frozen_with_a_commit_decided: "lake.commit.loaded" after 5,
    frozen_between_two_commits: "commit.after" after 4,
    frozen_while_publishing: "publish.between" after 4,
    frozen_before_cutting_over: "cutover.before" after 1,
    frozen_before_recording: "record.before" after 1,
}
