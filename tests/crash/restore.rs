//! Death in the middle of a restore: whoever goes on comes to the same end, and what was published before is exactly what is
//! there again, offline and online.

use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::LazyLock;

use tidegate_registry::ids::ViewId;
use tidegate_registry::run::RunState;

use crate::place::Backend;
use crate::points::assert_outcome;
use crate::world::{VIEWS, World, backfill, block_on, rows, told};

/// Fail points that only restores pass.
pub(crate) const POINTS: [&str; 10] = [
    "restore.begun",
    "restore.commit.before",
    "restore.commit.between",
    "restore.commit.after",
    "restore.publish.before",
    "restore.publish.after",
    "restore.cutover.before",
    "restore.cutover.after",
    "restore.record.before",
    "restore.record.after",
];

/// All days are computed, but for the bad one.
fn world(backend: &Backend) -> World {
    let world = World::applied(backend);
    world.backfill();
    world
}

/// The snapshots of runs, the oldest first.
fn snapshots(world: &World) -> Vec<String> {
    block_on(async {
        let mut found = world.registry().await.snapshots(None, None, 0).await.unwrap();
        found.sort_by_key(|snapshot| snapshot.number);
        found.into_iter().map(|snapshot| snapshot.id.to_string()).collect()
    })
}

fn restore(snapshot: &str) -> [&str; 8] {
    ["restore", "--dag", "daily", "--to", snapshot, "--reason", "incident", "--yes"]
}

fn done(world: &World, arguments: &[&str]) {
    let done = world.run(arguments);
    assert!(done.status.success(), "{}", told(&done));
}

/// What readers can see: ledger, rows of the lake, rows online.
fn content(world: &World) -> String {
    block_on(async {
        let mut text = String::new();
        let (registry, online, lake) = (world.registry().await, world.online().await, world.lake());
        for view in VIEWS {
            let id: ViewId = view.parse().unwrap();
            for entry in registry.ledger(&id, None, 0).await.unwrap() {
                writeln!(text, "{view}: {} {} {}", entry.interval, entry.rows, entry.digest).unwrap();
            }
            let newest = registry.view_states(std::slice::from_ref(&id)).await.unwrap()[&id].newest;
            writeln!(text, "newest {newest:?}").unwrap();
            for row in rows(&lake, view).await {
                writeln!(text, "  {row}").unwrap();
            }
            if let Some(live) = online.live(&id).await.unwrap() {
                for (key, row) in online.scan(&id, live.generation, None, 1_000).await.unwrap() {
                    writeln!(text, "  online {key} {row:?} of {}", live.tag).unwrap();
                }
            }
        }
        online.close().await;
        text
    })
}

static UNDISTURBED: LazyLock<String> = LazyLock::new(|| {
    let world = world(&Backend::Embedded);
    done(&world, &restore(&snapshots(&world)[0]));
    world.outcome()
});

fn dies(backend: &Backend, point: &str, skips: &[u32]) {
    let world = world(backend);
    let to = snapshots(&world)[0].clone();
    for skip in skips {
        let died = world.run_at(&restore(&to), &format!("{point}={skip}*off->panic"));
        assert_eq!(died.status.signal(), Some(6), "it did not come to `{point}`: {}", told(&died));
    }
    done(&world, &restore(&to));
    assert_outcome(&world, &UNDISTURBED);
}

macro_rules! dies_at {
    ($($name:ident: $point:literal after $skips:expr,)+) => {
        mod embedded {
            $(#[test] fn $name() { super::dies(&super::Backend::Embedded, $point, &$skips); })+
        }
        mod on_servers {
            $(#[test] fn $name() {
                let skips = $skips;
                super::dies(&super::Backend::shared(), $point, &skips[skips.len() - 1..]);
            })+
        }
    };
}

dies_at! {
    when_it_is_decided: "restore.begun" after [0],
    before_a_commit: "restore.commit.before" after [0, 2],
    between_the_tables_of_a_view: "restore.commit.between" after [1],
    with_a_commit_decided: "lake.commit.loaded" after [1, 1],
    when_a_commit_has_landed: "lake.commit.landed" after [0, 1],
    after_a_commit: "restore.commit.after" after [1, 3],
    before_publishing: "restore.publish.before" after [0, 1],
    after_publishing: "restore.publish.after" after [0, 2],
    before_cutting_over: "restore.cutover.before" after [0, 0],
    after_cutting_over: "restore.cutover.after" after [0, 0],
    before_recording: "restore.record.before" after [0],
}

/// A second restore, to another snapshot, takes over wherever the first one died: what is there then is the second's.
fn gives_way(backend: &Backend, point: &str, skip: u32) {
    let world = World::applied(backend);
    for (from, to) in [("2024-01-01", "2024-01-02"), ("2024-01-02", "2024-01-03")] {
        done(&world, &["backfill", "daily", "--from", from, "--to", to]);
    }
    let second = content(&world);
    world.backfill();
    let of_runs = snapshots(&world);
    assert_eq!(of_runs.len(), 3, "one day is blocked");
    let died = world.run_at(&restore(&of_runs[0]), &format!("{point}={skip}*off->panic"));
    assert_eq!(died.status.signal(), Some(6), "it did not come to `{point}`: {}", told(&died));
    done(&world, &restore(&of_runs[1]));
    assert_eq!(content(&world), second);
    block_on(async {
        let registry = world.registry().await;
        assert!(registry.runs_open().await.unwrap().is_empty());
        let states: Vec<RunState> = {
            let mut states = Vec::new();
            for restore in registry.restores(0).await.unwrap() {
                states.push(registry.run(restore.id).await.unwrap().0.state);
            }
            states
        };
        assert_eq!(states.len(), 2);
        assert!(states.contains(&RunState::Superseded) && states.contains(&RunState::Succeeded), "{states:?}");
    });
    // Neither it nor a run undoes that.
    world.backfill();
    assert_eq!(content(&world), second);
}

macro_rules! gives_way_at {
    ($($name:ident: $point:literal after $skip:literal,)+) => {
        mod another_restore {
            mod embedded {
                $(#[test] fn $name() { super::super::gives_way(&super::super::Backend::Embedded, $point, $skip); })+
            }
            mod on_servers {
                $(#[test] fn $name() { super::super::gives_way(&super::super::Backend::shared(), $point, $skip); })+
            }
        }
    };
}

gives_way_at! {
    when_it_is_decided: "restore.begun" after 0,
    before_a_commit: "restore.commit.before" after 1,
    between_the_tables_of_a_view: "restore.commit.between" after 2,
    after_a_commit: "restore.commit.after" after 1,
    before_publishing: "restore.publish.before" after 1,
    after_publishing: "restore.publish.after" after 2,
    before_cutting_over: "restore.cutover.before" after 0,
    after_cutting_over: "restore.cutover.after" after 0,
    before_recording: "restore.record.before" after 0,
}

#[test]
fn a_restore_that_dies_when_it_is_recorded_has_nothing_left_to_do() {
    let world = world(&Backend::Embedded);
    let to = snapshots(&world)[0].clone();
    let died = world.run_at(&restore(&to), "restore.record.after=panic");
    assert_eq!(died.status.signal(), Some(6), "{}", told(&died));
    assert_outcome(&world, &UNDISTURBED);
    let validation = || block_on(async { world.registry().await.restores(1).await.unwrap().remove(0).validation });
    assert_eq!(validation(), None, "nobody has compared");
    done(&world, &restore(&to));
    assert_outcome(&world, &UNDISTURBED);
    assert!(validation().is_some_and(|validation| validation.passed), "whoever comes next does");
}

/// A switch that is stored and not yet online: the same command brings it there.
fn dies_switching(backend: &Backend) {
    let world = world(backend);
    let disable = ["feature", "disable", "revenue.total", "--serve", "null", "--reason", "odd"];
    let died = world.run_at(&disable, &format!("{SWITCH}=panic"));
    assert_eq!(died.status.signal(), Some(6), "it did not come to `{SWITCH}`: {}", told(&died));
    let online = || {
        block_on(async {
            let online = world.online().await;
            let switches = online.switches(&VIEWS[0].parse().unwrap()).await.unwrap();
            online.close().await;
            switches.off.len()
        })
    };
    let stored = block_on(async { world.registry().await.switches().await.unwrap().switches.len() });
    assert_eq!((stored, online()), (1, 0));
    done(&world, &disable);
    assert_eq!(online(), 1);
}

/// The fail point of `feature`.
pub(crate) const SWITCH: &str = "switch.stored";

#[test]
fn a_switch_that_is_only_stored_is_brought_online_by_the_same_command() {
    dies_switching(&Backend::Embedded);
}

#[test]
fn a_switch_that_is_only_stored_is_brought_online_by_the_same_command_on_servers() {
    dies_switching(&Backend::shared());
}

fn brings_back_exactly_what_was(backend: &Backend) {
    let world = World::applied(backend);
    done(&world, &["backfill", "daily", "--from", "2024-01-01", "--to", "2024-01-02"]);
    let first = content(&world);
    world.backfill();
    let last = content(&world);
    assert_ne!(first, last);
    let of_runs = snapshots(&world);
    assert_eq!(of_runs.len(), 3, "one day is blocked");
    done(&world, &restore(&of_runs[0]));
    assert_eq!(content(&world), first);
    // The next runs do not undo it.
    world.backfill();
    assert_eq!(content(&world), first);
    // Nor does repeating it change anything.
    done(&world, &restore(&of_runs[0]));
    assert_eq!(snapshots(&world).len(), 4);
    // A restore of the restore undoes it; and back, which is known by its snapshot, too.
    done(&world, &restore(&of_runs[2]));
    assert_eq!(content(&world), last);
    done(&world, &restore(&snapshots(&world)[3]));
    assert_eq!(content(&world), first);
    // What was taken back comes out the same when it is computed again.
    done(&world, &["resume", "--dag", "daily", "--yes"]);
    world.backfill();
    let again = content(&world);
    let without_tags = |content: &str| content.replace(|c: char| c.is_ascii_hexdigit() || c == '-', "");
    assert_eq!(again.lines().count(), last.lines().count());
    assert_eq!(without_tags(&again), without_tags(&last));
}

#[test]
fn a_restore_brings_back_exactly_what_was() {
    brings_back_exactly_what_was(&Backend::Embedded);
}

#[test]
fn a_restore_brings_back_exactly_what_was_on_servers() {
    brings_back_exactly_what_was(&Backend::shared());
}

/// A run died between its commits, its cut-over and its record: nothing of it may stay.
fn takes_back_what_was_not_recorded(backend: &Backend, point: &str) {
    let world = World::applied(backend);
    done(&world, &["backfill", "daily", "--from", "2024-01-01", "--to", "2024-01-02"]);
    let first = content(&world);
    let to = snapshots(&world)[0].clone();
    let died = world.run_at(&backfill(), point);
    assert_eq!(died.status.signal(), Some(6), "{}", told(&died));
    assert_ne!(content(&world), first, "something of it is visible already");
    // Only one of its views is asked for: the others would be left half published.
    let only = ["restore", "--view", "revenue", "--to", &to, "--reason", "incident", "--yes"];
    done(&world, &only);
    assert_eq!(content(&world), first);
    world.backfill();
    assert!(!content(&world).contains("revenue@v1: 2024-01-02"), "it is held");
}

#[test]
fn a_restore_takes_back_what_was_committed_and_not_recorded() {
    takes_back_what_was_not_recorded(&Backend::Embedded, "commit.after=2*off->panic");
}

#[test]
fn a_restore_takes_back_what_was_live_and_not_recorded() {
    takes_back_what_was_not_recorded(&Backend::Embedded, "cutover.after=panic");
}

#[test]
fn a_restore_takes_back_what_was_live_and_not_recorded_on_servers() {
    takes_back_what_was_not_recorded(&Backend::shared(), "cutover.after=panic");
}
