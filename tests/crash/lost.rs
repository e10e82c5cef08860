//! The registry is lost, or an old copy takes its place; tables are lost. What was published comes back from the lake, and
//! the rest is computed as if nothing had happened.

use std::fs;

use crate::place::Backend;
use crate::points::UNDISTURBED;
use crate::world::{World, backfill, told};

/// Days 1 and 2 of the small project.
const FIRST_DAYS: [&str; 6] = ["backfill", "daily", "--from", "2024-01-01", "--to", "2024-01-03"];
const REBUILD: [&str; 4] = ["registry", "rebuild", "--from-lake", "--yes"];

fn done(world: &World, arguments: &[&str]) -> String {
    let done = world.run(arguments);
    assert!(done.status.success(), "{}", told(&done));
    told(&done)
}

/// Rows, ledger and online content: what is left of an outcome when runs and their numbers are left out.
fn published(outcome: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut keep = false;
    for line in outcome.lines() {
        if !line.starts_with("  ") {
            keep = line.starts_with("table of") || line.starts_with("ledger of");
            if let Some((interval, rest)) = line.strip_prefix("ledger of ").and_then(|rest| rest.split_once(" by ")) {
                let content = rest.rsplit_once(": ").map_or(rest, |(_, content)| content);
                lines.push(format!("{interval} {content}"));
            }
            continue;
        }
        if keep {
            lines.push(line.to_owned());
        }
    }
    lines
}

fn assert_published_once(world: &World) {
    let (is, should) = (published(&world.outcome()), published(&UNDISTURBED));
    assert!(should.len() > 20, "{should:?}");
    assert_eq!(is, should);
    assert_eq!(world.leftovers(), [""; 0]);
}

fn forget_registry(world: &World) {
    for file in ["registry.db", "registry.db-wal", "registry.db-shm"] {
        drop(fs::remove_file(world.folder.path().join(".tidegate").join(file)));
    }
}

#[test]
fn a_registry_that_is_gone_comes_back_from_the_lake() {
    let world = World::applied(&Backend::Embedded);
    done(&world, &FIRST_DAYS);
    forget_registry(&world);
    let refused = world.run(&["apply", "--yes"]);
    assert!(told(&refused).contains("belongs to"), "a new registry does not take a lake by itself: {}", told(&refused));
    forget_registry(&world);
    let refused = world.run(&REBUILD);
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert!(told(&refused).contains("--adopt"), "{}", told(&refused));
    let mut adopt = REBUILD.to_vec();
    adopt.push("--adopt");
    let rebuilt = done(&world, &adopt);
    assert!(rebuilt.contains("8 intervals entered the ledger, 0 left it"), "{rebuilt}");
    assert!(done(&world, &REBUILD).contains("nothing to do"));
    // Only what is missing is computed.
    let shown = world.run(&[&backfill()[..], &["--dry-run"]].concat());
    assert!(shown.status.success(), "{}", told(&shown));
    world.backfill();
    assert_published_once(&world);
}

#[test]
fn an_hour_old_copy_loses_and_doubles_nothing() {
    let world = World::applied(&Backend::Embedded);
    done(&world, &["backfill", "daily", "--from", "2024-01-01", "--to", "2024-01-02"]);
    let copy = world.folder.path().join("copy.db");
    let copy = copy.to_str().unwrap();
    done(&world, &["registry", "backup", copy]);
    done(&world, &["backfill", "daily", "--from", "2024-01-02", "--to", "2024-01-03"]);
    done(&world, &["registry", "restore", copy, "--force"]);
    // The schedule plans the second day again, as the very run that the lake holds. It is refused, and the files that it
    // published before are not taken for what it staged now.
    let refused = world.run(&FIRST_DAYS);
    assert_eq!(refused.status.code(), Some(2), "{}", told(&refused));
    assert!(told(&refused).contains("tidegate registry rebuild --from-lake"), "{}", told(&refused));
    let rebuilt = done(&world, &REBUILD);
    assert!(rebuilt.contains("4 intervals entered the ledger, 0 left it"), "{rebuilt}");
    world.backfill();
    let retention = "project: shop\nonline: sqlite://.tidegate/online.db\nretention: {staged: 0s}\n";
    fs::write(world.folder.path().join("tidegate.yaml"), retention).unwrap();
    done(&world, &["janitor"]);
    assert_published_once(&world);
}

#[test]
fn tables_that_are_gone_are_computed_again() {
    let world = World::applied(&Backend::Embedded);
    done(&world, &FIRST_DAYS);
    fs::remove_dir_all(world.folder.path().join(".tidegate/lake/features/ranking")).unwrap();
    let rebuilt = done(&world, &REBUILD);
    assert!(rebuilt.contains("ranking@v1: its table is gone"), "{rebuilt}");
    assert!(rebuilt.contains("0 intervals entered the ledger, 2 left it"), "{rebuilt}");
    world.backfill();
    assert_published_once(&world);
}

#[test]
fn the_janitor_leaves_what_is_published_as_it_is() {
    let world = World::applied(&Backend::Embedded);
    world.backfill();
    let before = world.outcome();
    let retention = "project: shop\nonline: sqlite://.tidegate/online.db\n\
                     retention: {snapshots: 0s, min_snapshots: 1, staged: 0s, log: 0s}\n";
    fs::write(world.folder.path().join("tidegate.yaml"), retention).unwrap();
    done(&world, &["janitor", "--dry-run"]);
    assert_eq!(world.outcome(), before, "looking changes nothing");
    done(&world, &["janitor"]);
    assert_eq!(published(&world.outcome()), published(&before));
    assert!(world.outcome().contains(" is expired"), "{}", world.outcome());
}
