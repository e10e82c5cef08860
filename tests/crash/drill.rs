//! Death in the middle of a drill: what is live is as it was, and the next drill, or the janitor, removes what is left.

use std::os::unix::process::ExitStatusExt as _;

use tidegate_registry::drill::DrillState;

use crate::place::Backend;
use crate::world::{World, block_on, told};

/// Everything that a drill leaves while it is under way: in the lake, in the online store, in the project's folder.
fn left(world: &World) -> Vec<String> {
    let mut left = world.place.files(world.folder.path(), "_drills");
    left.extend(world.place.online_keys("*~drill-*"));
    let mut open = vec![world.folder.path().join(".tidegate")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let is_of_drill = path.file_name().is_some_and(|name| name.to_string_lossy().contains("drill"));
            if path.is_dir() {
                // The folder in the lake stands above.
                open.push(path);
            } else if is_of_drill || path.parent().is_some_and(|folder| folder.to_string_lossy().contains("drills-")) {
                left.push(path.display().to_string());
            }
        }
    }
    left
}

/// What is there but for drills.
fn content(world: &World) -> (String, Vec<String>, Vec<String>) {
    let keys = world.place.online_keys("*");
    let keys = keys.into_iter().filter(|key| !key.contains("~drill-")).collect();
    (world.outcome(), keys, world.place.files(world.folder.path(), "features"))
}

fn drill(world: &World) {
    let done = world.run(&["drill", "--all", "--scenario", "bad_deploy"]);
    assert!(done.status.success(), "{}", told(&done));
}

fn janitor(world: &World) {
    let done = world.run(&["janitor"]);
    assert!(done.status.success(), "{}", told(&done));
}

fn dies(backend: &Backend, point: &str, removed_by: fn(&World)) {
    let world = World::applied(backend);
    world.backfill();
    let before = content(&world);
    let died = world.run_at(&["drill", "--all"], &format!("{point}=panic"));
    assert_eq!(died.status.signal(), Some(6), "it did not come to `{point}`: {}", told(&died));
    assert!(!left(&world).is_empty(), "it had copied something");
    assert_eq!(content(&world), before, "what is live was only read");
    removed_by(&world);
    assert_eq!(left(&world), [""; 0]);
    assert_eq!(content(&world), before);
}

macro_rules! dies_at {
    ($($name:ident: $point:literal, $removed_by:ident;)+) => {
        mod embedded {
            $(#[test] fn $name() { super::dies(&super::Backend::Embedded, $point, super::$removed_by); })+
        }
        mod on_servers {
            $(#[test] fn $name() { super::dies(&super::Backend::shared(), $point, super::$removed_by); })+
        }
    };
}

dies_at! {
    while_something_wrong_is_published: "commit.after", drill;
    while_it_restores: "restore.commit.after", drill;
    when_it_is_live_again: "restore.cutover.after", janitor;
}

#[test]
fn a_drill_is_carried_out_when_its_definition_says_so() {
    let world = World::applied(&Backend::Embedded);
    world.backfill();
    let add = |file: &str, text: &str| {
        let file = world.folder.path().join(file);
        std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + text).unwrap();
    };
    // An hour of the project takes a second.
    add("tidegate.yaml", "clock: {start: 2024-02-10, speed: 3600}\n");
    add("shop.yaml", "drills: [{name: hourly, schedule: {cron: '0 * * * *'}, scenarios: [bad_deploy]}]\n");
    let applied = world.run(&["apply", "--yes"]);
    assert!(applied.status.success(), "{}", told(&applied));
    let up = world.start(&["up"], "");
    let begun = std::time::Instant::now();
    let drills = || block_on(async { world.registry().await.drills(0).await.unwrap() });
    while !drills().iter().any(|drill| drill.state == DrillState::Passed) {
        assert!(begun.elapsed().as_secs() < 180, "no drill was carried out: {}", up.said());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    up.signal("-INT");
    up.finish();
    assert!(drills().iter().all(|drill| drill.name.as_ref().is_some_and(|name| name.as_str() == "hourly")));
    assert_eq!(left(&world), [""; 0]);
}
