//! Death while rows are being set aside: none of them is lost, none is there twice, and none reaches a reader.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::LazyLock;

use crate::place::Backend;
use crate::world::{World, backfill, block_on, rows, told};

/// Fail points that only runs pass of which rows are set aside, or where that matters most.
pub(crate) const POINTS: [&str; 2] = ["stage.aside", "commit.between"];

const VIEW: &str = "last_receipt@v1";

/// The project with a view of which one shop is set aside on every day but the first.
fn world(backend: &Backend) -> World {
    let world = World::bare(backend);
    let file = world.folder.path().join("shop.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let features =
        "    features: [{name: day, type: bigint, description: day of the month}]\n    online: {strategy: swap}\n";
    let check = "    checks:\n      - expression: {condition: day = 1 OR shop <> 's0001', on_fail: {quarantine: {max_rows: 1}}}\n";
    assert_eq!(text.matches(features).count(), 1);
    fs::write(file, text.replace(features, &format!("{features}{check}"))).unwrap();
    let done = world.run(&["apply", "--yes"]);
    assert!(done.status.success(), "{}", told(&done));
    world
}

/// All that can be read, and what is set aside.
fn outcome(world: &World) -> String {
    let lake = world.lake();
    let aside = block_on(rows(&lake.quarantine(), VIEW));
    format!("{}set aside:\n{}", world.outcome(), aside.join("\n"))
}

static UNDISTURBED: LazyLock<String> = LazyLock::new(|| {
    let world = world(&Backend::Embedded);
    world.backfill();
    let outcome = outcome(&world);
    let (published, aside) = outcome.split_once("set aside:\n").unwrap();
    // Days 2 and 4; day 3 is blocked by another view.
    assert_eq!(aside.lines().count(), 2, "{outcome}");
    assert_eq!(published.matches("quarantined: 1,").count(), 2, "{outcome}");
    assert_eq!(published.matches("rows: 2, ").count(), 2, "two shops of three: {outcome}");
    outcome
});

fn dies(backend: &Backend, point: &str, skips: &[u32]) {
    let world = world(backend);
    for skip in skips {
        let died = world.run_at(&backfill(), &format!("{point}={skip}*off->panic"));
        assert_eq!(died.status.signal(), Some(6), "it did not come to `{point}`: {}", told(&died));
    }
    world.backfill();
    let (is, should) = (outcome(&world), &*UNDISTURBED);
    assert!(is == *should, "it differs from an undisturbed run:\n{is}\ninstead of:\n{should}");
}

#[test]
fn while_rows_are_set_aside() {
    dies(&Backend::Embedded, "stage.aside", &[0, 1]);
}

#[test]
fn between_what_is_kept_out_and_what_is_published() {
    // Each run commits four views, and this one last.
    dies(&Backend::Embedded, "commit.between", &[3, 3]);
}

#[test]
fn between_what_is_kept_out_and_what_is_published_on_servers() {
    dies(&Backend::shared(), "commit.between", &[7]);
}

#[test]
fn when_all_is_published_and_not_recorded() {
    dies(&Backend::Embedded, "record.before", &[1]);
}
