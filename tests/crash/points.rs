//! Death at a named instruction: before, after and between doing and recording of every step.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::LazyLock;

use crate::place::Backend;
use crate::world::{World, backfill, told};
use crate::{janitor, quarantine, recipe, restore};

/// What is there when nothing goes wrong, whatever the world is built of: compared by entity and text.
pub(crate) static UNDISTURBED: LazyLock<String> = LazyLock::new(|| {
    let world = World::applied(&Backend::Embedded);
    world.backfill();
    let outcome = world.outcome();
    assert_eq!(world.leftovers(), [""; 0]);
    assert_eq!(outcome.matches("snapshot of").count(), 3, "{outcome}");
    assert_eq!(outcome.matches(" is blocked because").count(), 1, "{outcome}");
    outcome
});

/// Asserts that `world` has come to what an undisturbed run leaves.
pub(crate) fn assert_undisturbed(world: &World) {
    assert_same(world, &UNDISTURBED);
}

/// Asserts that `world` holds what `undisturbed` says, and no files besides.
pub(crate) fn assert_same(world: &World, undisturbed: &str) {
    assert_outcome(world, undisturbed);
    assert_eq!(world.leftovers(), [""; 0], "files are left that no table names");
}

/// Asserts that `world` holds what `undisturbed` says.
pub(crate) fn assert_outcome(world: &World, undisturbed: &str) {
    let outcome = world.outcome();
    if outcome != undisturbed {
        let (is, should): (Vec<&str>, Vec<&str>) = (outcome.lines().collect(), undisturbed.lines().collect());
        let extra: Vec<_> = is.iter().filter(|line| !should.contains(line)).collect();
        let missing: Vec<_> = should.iter().filter(|line| !is.contains(line)).collect();
        panic!("it differs from an undisturbed run\nextra: {extra:#?}\nmissing: {missing:#?}");
    }
}

/// Lets a backfill die at `point` as often as `actions` lists counts, starts it once more, and compares.
fn dies(backend: &Backend, point: &str, skips: &[u32]) {
    let world = World::applied(backend);
    for skip in skips {
        let died = world.run_at(&backfill(), &format!("{point}={skip}*off->panic"));
        assert_eq!(died.status.signal(), Some(6), "it did not come to `{point}`: {}", told(&died));
    }
    world.backfill();
    assert_undisturbed(&world);
}

macro_rules! dies_at {
    ($($name:ident: $point:literal after $skips:expr,)+) => {
        /// Every fail point that kills a backfill here.
        pub(crate) const POINTS: &[&str] = &[$($point),+];
        mod embedded {
            $(#[test] fn $name() { super::dies(&super::Backend::Embedded, $point, &$skips); })+
        }
        mod on_servers {
            // Once, where it is most in the middle of things: servers make each start dearer.
            $(#[test] fn $name() {
                let skips = $skips;
                super::dies(&super::Backend::shared(), $point, &skips[skips.len() - 1..]);
            })+
        }
    };
}

// The numbers say how often the point is passed before the process dies there, start after start: 0 is the first view of
// the first run, 1 its second, and so on.
dies_at! {
    when_a_task_is_claimed: "claim.after" after [0, 1, 5],
    when_versions_are_pinned: "pin.after" after [0, 1],
    before_staging: "stage.before" after [0, 1],
    while_staging: "stage.between" after [0, 2],
    when_files_are_staged: "stage.written" after [1, 2],
    after_staging: "stage.after" after [0, 3],
    before_a_task_ends: "end.before" after [0, 2, 5],
    when_a_task_has_ended: "end.after" after [0, 2, 7],
    before_the_intent: "intent.before" after [0, 1],
    after_the_intent: "intent.after" after [0, 1],
    before_a_commit: "commit.before" after [0, 1],
    with_a_commit_decided: "lake.commit.loaded" after [0, 2],
    when_a_commit_has_landed: "lake.commit.landed" after [0, 1],
    after_a_commit: "commit.after" after [1, 3],
    before_publishing: "publish.before" after [0, 1],
    while_publishing: "publish.between" after [0, 1],
    when_all_is_written_online: "publish.written" after [0, 1],
    after_publishing: "publish.after" after [1, 2],
    before_cutting_over: "cutover.before" after [0, 1],
    after_cutting_over: "cutover.after" after [0, 1],
    before_recording: "record.before" after [0, 1],
    after_recording: "record.after" after [0, 0],
    while_tidying: "tidy.between" after [0, 1],
}

#[test]
fn an_undisturbed_run_ends_alike_on_servers() {
    let world = World::applied(&Backend::shared());
    world.backfill();
    assert_undisturbed(&world);
}

#[test]
fn what_a_cut_off_write_left_is_removed() {
    let world = World::applied(&Backend::Embedded);
    let died = world.run_at(&backfill(), "stage.written=1*off->panic");
    assert_eq!(died.status.signal(), Some(6), "{}", told(&died));
    let left = world.leftovers();
    assert!(!left.is_empty(), "staged files lie there");
    // Local files are written under a name of this form until they are whole; large ones for minutes.
    for file in &left {
        let file = world.folder.path().join(".tidegate/lake").join(file);
        std::fs::write(format!("{}#1", file.display()), "PAR1").unwrap();
    }
    // Nobody looks at a run again that is recorded: so it must have happened before.
    let died = world.run_at(&backfill(), "record.after=panic");
    assert_eq!(died.status.signal(), Some(6), "{}", told(&died));
    world.backfill();
    assert_undisturbed(&world);
}

/// Fail points of `apply`, which a backfill does not pass.
const APPLY: [&str; 3] = ["lake.table.created", "apply.tables", "apply.after"];

#[test]
fn while_applying() {
    dies_applying(&Backend::Embedded);
}

#[test]
fn while_applying_on_servers() {
    dies_applying(&Backend::shared());
}

fn dies_applying(backend: &Backend) {
    for point in APPLY {
        let world = World::bare(backend);
        for skip in if point == "lake.table.created" { vec![0, 1] } else { vec![0] } {
            let died = world.run_at(&["apply", "--yes"], &format!("{point}={skip}*off->panic"));
            assert_eq!(died.status.signal(), Some(6), "it did not come to `{point}`: {}", told(&died));
        }
        let done = world.run(&["apply", "--yes"]);
        assert!(done.status.success(), "{}", told(&done));
        if point == "apply.after" {
            world.backfill();
            assert_undisturbed(&world);
        }
    }
}

/// A revert that is noted and not done counts for nothing; the next one does it.
#[test]
fn while_reverting_definitions() {
    let world = World::applied(&Backend::Embedded);
    let file = world.folder.path().join("shop.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("Revenue of the day", "Takings of the day")).unwrap();
    let done = world.run(&["apply", "--yes"]);
    assert!(done.status.success(), "{}", told(&done));
    let revert = ["definitions", "revert", "--reason", "odd", "--yes"];
    let died = world.run_at(&revert, &format!("{REVERT}=panic"));
    assert_eq!(died.status.signal(), Some(6), "it did not come to `{REVERT}`: {}", told(&died));
    std::fs::write(&file, text.replace("Revenue of the day", "Takings of a day")).unwrap();
    let done = world.run(&["apply", "--yes"]);
    assert!(done.status.success(), "nothing was reverted: {}", told(&done));
    let done = world.run(&revert);
    assert!(done.status.success(), "{}", told(&done));
    let refused = world.run(&["apply", "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
}

/// The fail point of `definitions revert`.
const REVERT: &str = "definitions.revert.noted";

/// Fail points that do something else than stop: `frozen`, `outages` and `janitor` use them.
const NOT_DEADLY: [&str; 4] = ["heartbeat.deaf", "lake.sync", "stage.small", "prune.now"];

#[test]
fn every_fail_point_kills_somewhere() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut open = vec![sources.join("worker/src"), sources.join("cli/src")];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                let points = text.split("fail_point!(\"").skip(1).filter_map(|rest| rest.split('"').next());
                found.extend(points.map(str::to_owned));
            }
        }
    }
    assert!(found.len() > 20, "{found:?}");
    let known = [
        POINTS,
        &APPLY,
        &[REVERT],
        &NOT_DEADLY,
        &janitor::POINTS,
        &[janitor::LAST],
        &quarantine::POINTS,
        &recipe::POINTS,
        &restore::POINTS,
        &[restore::SWITCH],
    ];
    found.retain(|point| known.iter().all(|known| !known.contains(&point.as_str())));
    assert_eq!(found, Vec::<String>::new(), "no test dies at these");
}
