//! A janitor that dies at every step that destroys or decides something: the next one comes to the same end.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;
use std::sync::LazyLock;

use crate::place::Backend;
use crate::world::{VIEWS, World, backfill, told};

/// The fail points of a pass, in the order in which it comes to them.
pub(crate) const POINTS: [&str; 9] = [
    "janitor.expired",
    "lake.delete.between",
    "janitor.deleted",
    "prune.doomed",
    "prune.wiped",
    "compact.written",
    "compact.taken",
    "compact.landed",
    "compact.recorded",
];

/// After all views.
pub(crate) const LAST: &str = "janitor.rows";

/// Nothing is kept for being young.
const RETENTION: [(&str, &str); 4] = [
    ("TIDEGATE_RETENTION_SNAPSHOTS", "0s"),
    ("TIDEGATE_RETENTION_MIN_SNAPSHOTS", "1"),
    ("TIDEGATE_RETENTION_LOG", "0s"),
    ("TIDEGATE_RETENTION_STAGED", "0s"),
];

/// A project that has something of everything that a janitor sees to: days computed twice, and a file for every row.
fn cluttered(backend: &Backend) -> World {
    let world = World::applied(backend);
    world.sell(4, 4, 0);
    for more in [&["--reprocess", "missing"], &["--reprocess", "all"]] {
        let arguments: Vec<&str> = backfill().into_iter().chain(more.iter().copied()).collect();
        let done = world.run_at(&arguments, "stage.small=return");
        assert!(matches!(done.status.code(), Some(0 | 1)), "{}", told(&done));
    }
    world
}

fn clean(world: &World, fail_points: &str) -> Output {
    let fail_points = format!("prune.now=return;{fail_points}");
    let environment: Vec<_> = RETENTION.into_iter().chain([("FAILPOINTS", fail_points.as_str())]).collect();
    world.start_in(&["janitor"], &environment).finish()
}

/// What is left when there is nothing left to do: all that can be read, and how many files each table has. Numbers and
/// versions are those of how often somebody tried.
fn end(world: &World) -> String {
    for _ in 0..2 {
        let done = clean(world, "");
        assert!(done.status.success(), "{}", told(&done));
    }
    let outcome = world.outcome();
    let of_tries = |line: &&str| !line.starts_with("state of ") && !line.starts_with("table of ");
    let mut text: String = outcome.lines().filter(of_tries).map(|line| format!("{line}\n")).collect();
    for view in VIEWS {
        let (name, _) = view.split_once('@').unwrap();
        let files = world.place.files(world.folder.path(), &format!("features/{name}/v1/data"));
        text += &format!("{view} has {} files\n", files.len());
    }
    text
}

static UNDISTURBED: LazyLock<String> = LazyLock::new(|| {
    let world = cluttered(&Backend::Embedded);
    let before = world.place.files(world.folder.path(), "features/revenue/v1/data").len();
    assert_eq!(before, 2 * 3 * 4, "a file for every row");
    let end = end(&world);
    assert_eq!(end.matches(" is expired").count(), 5, "{end}");
    assert!(!end.contains("\n  1 s0000 "), "the first generation is gone: {end}");
    end
});

fn dies_again_and_again(backend: &Backend) {
    let undisturbed = &*UNDISTURBED;
    let world = cluttered(backend);
    for point in POINTS.into_iter().chain([LAST]) {
        let died = clean(&world, &format!("{point}=panic"));
        assert_eq!(died.status.signal(), Some(6), "it did not come to `{point}`: {}", told(&died));
    }
    let end = end(&world);
    let (is, should): (Vec<&str>, Vec<&str>) = (end.lines().collect(), undisturbed.lines().collect());
    let extra: Vec<_> = is.iter().filter(|line| !should.contains(line)).collect();
    let missing: Vec<_> = should.iter().filter(|line| !is.contains(line)).collect();
    assert!(end == *undisturbed, "it differs from an undisturbed janitor\nextra: {extra:#?}\nmissing: {missing:#?}");
}

#[test]
fn a_janitor_that_dies_at_every_step_comes_to_the_same_end() {
    dies_again_and_again(&Backend::Embedded);
}

#[test]
fn a_janitor_that_dies_at_every_step_comes_to_the_same_end_on_servers() {
    dies_again_and_again(&Backend::shared());
}
