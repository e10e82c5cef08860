//! A worker that stops being scheduled in the middle of a task and wakes when others have long gone on.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::place::Backend;
use crate::points::{UNDISTURBED, assert_same};
use crate::seen::saw;
use crate::world::{Running, World, backfill, block_on, told};

/// A short lease, and one task at a time, so that the frozen worker holds nothing else.
const WORKER: [&str; 5] = ["worker", "--lease", "1s", "--slots", "1"];

/// What comes after [`backfill`].
const NEXT_DAY: [&str; 6] = ["backfill", "daily", "--from", "2024-01-05", "--to", "2024-01-06"];

/// What is there when nothing goes wrong, a day later.
static UNDISTURBED_LONGER: LazyLock<String> = LazyLock::new(|| {
    let world = World::applied(&Backend::Embedded);
    world.sell(3, 5, 0);
    world.backfill();
    assert_same(&world, &UNDISTURBED);
    let done = world.run(&NEXT_DAY);
    assert!(done.status.success(), "{}", told(&done));
    world.outcome()
});

/// Longer than a worker takes to come to any point.
const PATIENCE: Duration = Duration::from_secs(100);

/// Freezes a worker at `point` of the second run, lets another do all that is left, and wakes the first; what it said.
fn frozen(backend: &Backend, point: &str, skip: u32, more_points: &str) -> String {
    let world = World::applied(backend);
    world.sell(3, 5, 0);
    let halt = [("FAILPOINTS", more_points), ("FAILPOINT_HALT", &format!("{point}={skip}"))];
    let sleeper = world.start_in(&WORKER, &halt);
    world.wait_for_workers(1);
    let driver = world.start(&backfill(), "");
    let begun = Instant::now();
    while !sleeper.said().contains("standing still") {
        assert!(begun.elapsed() < PATIENCE, "it never came to `{point}`: {}", sleeper.said());
        std::thread::sleep(Duration::from_millis(10));
    }
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
    told(&sleeper)
}

/// The same with a worker that does not even notice that its lease is lost: it takes its next step as if nothing had
/// happened, until it is refused there as `refused` says.
fn refused(backend: &Backend, point: &str, skip: u32, refused: &str) {
    let said = frozen(backend, point, skip, "heartbeat.deaf=return;");
    assert!(said.contains(refused), "it was not refused as expected ({refused}): {said}");
    let place = match point {
        "stage.after" => "at the registry, after staging",
        "intent.before" => "at the registry, taking the intent",
        "lake.commit.loaded" => "at the Delta commit",
        "cutover.before" => "at the online cut-over",
        "record.before" => "at the registry, recording",
        _ => unreachable!("a place has a name"),
    };
    saw("F3", backend, &format!("a worker frozen past its lease wakes {place}"), "refused; nothing changed");
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
    ($($name:ident: $point:literal after $skip:literal,)+) => {
        mod embedded {
            $(#[test] fn $name() { super::frozen(&super::Backend::Embedded, $point, $skip, ""); })+
        }
        mod on_servers {
            $(#[test] fn $name() { super::frozen(&super::Backend::shared(), $point, $skip, ""); })+
        }
    };
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

macro_rules! refused_at {
    ($($name:ident: $point:literal after $skip:literal, $refused:literal,)+) => {
        mod refused_embedded {
            $(#[test] fn $name() { super::refused(&super::Backend::Embedded, $point, $skip, $refused); })+
        }
        mod refused_on_servers {
            $(#[test] fn $name() { super::refused(&super::Backend::shared(), $point, $skip, $refused); })+
        }
    };
}

refused_at! {
    refused_at_the_registry_after_staging: "stage.after" after 5, "before the registry was told that",
    refused_an_intent: "intent.before" after 1, "The lease was lost; another worker goes on",
    refused_a_commit: "lake.commit.loaded" after 5, "overtook",
    refused_a_cut_over: "cutover.before" after 1, "is live online",
    refused_a_record: "record.before" after 1, "The lease was lost; another worker goes on",
}
