//! Death at any instruction, and being asked to stop.

use std::time::{Duration, Instant};

use crate::place::Backend;
use crate::points::assert_undisturbed;
use crate::world::{World, backfill, told};

/// Kills backfills at moments within ever shorter spans, until one was hit: how long a start takes is the machine's affair.
fn killed_until_done(backend: &Backend, seed: u64) {
    let hit = [1_200, 600, 300, 150, 75, 35].into_iter().any(|span_ms| kills_within(backend, span_ms, seed) > 0);
    assert!(hit, "it was never killed");
}

/// Kills a backfill after delays that grow and shrink by a fixed rule, until one start lives to its end; how often.
fn kills_within(backend: &Backend, span_ms: u64, seed: u64) -> u32 {
    let world = World::applied(backend);
    let mut delay = seed;
    let mut kills = 0;
    loop {
        // A linear congruence: the same delays each time, spread over the span.
        delay = delay.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut running = world.start(&backfill(), "");
        // Four times at most: a task in which process after process dies is given up, as it should be.
        let until = Instant::now() + Duration::from_millis(if kills < 4 { (delay >> 33) % span_ms } else { 60_000 });
        while Instant::now() < until && running.is_alive() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if running.is_alive() && kills < 4 {
            running.signal("-KILL");
            running.finish();
            kills += 1;
            continue;
        }
        let done = running.finish();
        assert!(matches!(done.status.code(), Some(0 | 1)), "{}", told(&done));
        break;
    }
    assert_undisturbed(&world);
    kills
}

macro_rules! killed_with_seed {
    ($($name:ident: $seed:literal on $backend:expr,)+) => {
        $(#[test] fn $name() { killed_until_done(&$backend, $seed); })+
    };
}

killed_with_seed! {
    killed_anywhere_one: 1 on Backend::Embedded,
    killed_anywhere_two: 2 on Backend::Embedded,
    killed_anywhere_three: 3 on Backend::Embedded,
    killed_anywhere_four: 4 on Backend::Embedded,
    killed_anywhere_five: 5 on Backend::Embedded,
    killed_anywhere_six: 6 on Backend::Embedded,
    killed_anywhere_on_servers_one: 1 on Backend::shared(),
    killed_anywhere_on_servers_two: 2 on Backend::shared(),
    killed_anywhere_on_servers_three: 3 on Backend::shared(),
}

/// Longer than a stopping worker waits, and shorter than what it would have to wait for.
const STOPPED_MAX: Duration = Duration::from_secs(30);

/// Signals a backfill while it is at `point` for a while; it must end in time and hand back what it holds.
fn stopped(backend: &Backend, signal: &str, point: &str) {
    let world = World::applied(backend);
    // The first run passes the point once for each of its four views and ends as always; the others dawdle.
    let running = world.start(&backfill(), &format!("{point}=4*off->sleep(1000)"));
    world.wait_for(|runs| runs.iter().any(|run| run.state.as_str() == "succeeded"));
    let asked = Instant::now();
    running.signal(signal);
    let ended = running.finish();
    assert!(asked.elapsed() < STOPPED_MAX, "it took {:?}", asked.elapsed());
    assert_eq!(ended.status.code(), Some(2), "{}", told(&ended));
    assert!(told(&ended).contains("stopped; the next start goes on"), "{}", told(&ended));
    assert!(!world.holds_leases(), "what it held was not handed back");
    world.backfill();
    assert_undisturbed(&world);
}

#[test]
fn stopped_by_sigterm_while_staging() {
    stopped(&Backend::Embedded, "-TERM", "stage.written");
}

#[test]
fn stopped_by_sigterm_while_staging_on_servers() {
    stopped(&Backend::shared(), "-TERM", "stage.written");
}

#[test]
fn stopped_by_sigterm_while_publishing_on_servers() {
    stopped(&Backend::shared(), "-TERM", "commit.after");
}

#[test]
fn stopped_by_ctrl_c_while_publishing() {
    stopped(&Backend::Embedded, "-INT", "commit.after");
}

/// A query that takes longer than a stopping worker lets its tasks go on: it is left and handed back.
#[test]
fn stopped_in_a_query_that_takes_minutes() {
    let world = World::bare(&Backend::Embedded);
    let file = world.folder.path().join("shop.yaml");
    let quick = std::fs::read_to_string(&file).unwrap();
    let all: String = (0..4).map(|n| format!(" CROSS JOIN (SELECT amount AS a{n} FROM receipts) AS r{n}")).collect();
    std::fs::write(&file, quick.replacen("FROM receipts WHERE", &format!("FROM receipts{all} WHERE"), 1)).unwrap();
    world.sell(100, 5, 0);
    let done = world.run(&["apply", "--yes"]);
    assert!(done.status.success(), "{}", told(&done));
    let running = world.start(&backfill(), "");
    world.wait_for(|runs| runs.iter().any(|run| run.state.as_str() == "running"));
    std::thread::sleep(Duration::from_secs(1));
    let asked = Instant::now();
    running.signal("-TERM");
    let ended = running.finish();
    assert!(asked.elapsed() < STOPPED_MAX, "it took {:?}", asked.elapsed());
    assert_eq!(ended.status.code(), Some(2), "{}", told(&ended));
    assert!(!world.holds_leases(), "what it held was not handed back");
}
