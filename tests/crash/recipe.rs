//! Death in the middle of a recipe that something has triggered: whoever looks next goes on with it, and it is done once.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;

use tidegate_registry::firing::FiringState;
use tidegate_registry::ids::ViewId;

use crate::place::Backend;
use crate::world::{World, block_on, told};

/// Fail points that only triggered recipes pass.
pub(crate) const POINTS: [&str; 2] = ["recipe.restore.before", "recipe.restore.after"];

const RECIPE: &str = r"
recipes:
  - name: back
    description: What is bad goes
    match: {views: [revenue]}
    on: [marked_bad]
    steps:
      - notify: {message: it goes}
      - restore: {to: last_good, cascade: with}
      - hold: {}
";

const FIRE: [&str; 2] = ["recipe", "fire"];

fn done(world: &World, arguments: &[&str]) {
    let done = world.run(arguments);
    assert!(done.status.success(), "{}", told(&done));
}

fn dies(backend: &Backend, point: &str) {
    let world = World::applied(backend);
    let file = world.folder.path().join("shop.yaml");
    fs::write(&file, fs::read_to_string(&file).unwrap() + RECIPE).unwrap();
    done(&world, &["apply", "--yes"]);
    world.backfill();
    let live = || {
        block_on(async {
            let registry = world.registry().await;
            let revenue: ViewId = "revenue@v1".parse().unwrap();
            registry
                .ledger(&revenue, None, 0)
                .await
                .unwrap()
                .into_iter()
                .map(|entry| entry.snapshot)
                .collect::<Vec<_>>()
        })
    };
    let before = live();
    done(&world, &["snapshots", "mark", &before[0].to_string(), "--bad", "--reason", "odd"]);
    let died = world.run_at(&FIRE, &format!("{point}=panic"));
    assert_eq!(died.status.signal(), Some(6), "it did not come to `{point}`: {}", told(&died));
    done(&world, &FIRE);
    assert_eq!(live(), before[1..], "the newest is gone, and nothing but that");
    block_on(async {
        let registry = world.registry().await;
        assert_eq!(registry.restores(0).await.unwrap().len(), 1);
        let firings = registry.firings(0).await.unwrap();
        assert_eq!(firings.len(), 1);
        assert_eq!((firings[0].progress.state, firings[0].progress.steps_done), (FiringState::Done, 3));
    });
    // Nothing is left to do.
    done(&world, &FIRE);
    assert_eq!(live(), before[1..]);
}

macro_rules! dies_at {
    ($($name:ident: $point:literal,)+) => {
        mod embedded {
            $(#[test] fn $name() { super::dies(&super::Backend::Embedded, $point); })+
        }
        mod on_servers {
            $(#[test] fn $name() { super::dies(&super::Backend::shared(), $point); })+
        }
    };
}

dies_at! {
    before_its_restore_begins: "recipe.restore.before",
    when_its_restore_is_decided: "restore.begun",
    when_a_table_is_taken_back: "restore.commit.after",
    when_its_restore_is_recorded: "restore.record.after",
    after_its_restore: "recipe.restore.after",
}
