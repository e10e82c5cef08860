//! A registry that was lost, or is an old copy, against the lake that went on: no interval lost, none doubled.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_registry::care::Care as _;
use tidegate_registry::ids::ViewId;
use tidegate_registry::run::RunState;
use tidegate_registry::store::Store as _;
use tidegate_registry::time::Interval;
use tidegate_store::SqliteStore;

use super::{RebuildParts, RebuildPlan, plan};
use crate::engine::Engine;
use crate::tests::{DEFINITIONS, Place, World, at, in_every_place, interval};

in_every_place! {
    a_lost_registry_comes_back_from_the_lake,
    an_old_copy_publishes_nothing_until_it_is_brought_up_to_the_lake,
    a_registry_that_is_up_to_date_is_left_as_it_is,
    slices_of_which_the_log_no_longer_tells_speak_for_themselves,
    an_interval_that_only_some_tables_have_is_missing,
    what_a_lost_table_held_can_be_computed_again,
}

const NOW: &str = "2024-01-05T00:00:00Z";

fn parts(world: &World) -> RebuildParts {
    RebuildParts {
        store: Arc::<SqliteStore>::clone(&world.store),
        lake: world.lake.clone(),
        online: Some(Arc::clone(&world.online)),
        engine: Arc::new(Engine::new(256 << 20, &world.folder.path().join("rebuild")).unwrap()),
        project: Arc::clone(&world.project),
    }
}

async fn rebuild(world: &World) -> RebuildPlan {
    let parts = parts(world);
    let found = plan(&parts).await.unwrap();
    found.clone().perform(&parts, BTreeMap::new(), "ana", at(NOW)).await.unwrap();
    let again = plan(&parts).await.unwrap();
    assert!(again.is_empty(), "{again:#?}");
    found
}

/// The same project on a new registry, as after its file was deleted.
async fn registry_lost(world: World) -> World {
    let id = world.store.info().await.unwrap().id;
    world.store.close().await;
    let store = SqliteStore::open(&world.folder.path().join("new.db")).await.unwrap();
    store.adopt_id(id).await.unwrap();
    world.on_registry(store).await
}

/// What the registry says of everything that the lake holds too.
async fn told(world: &World) -> Vec<String> {
    let mut told = Vec::new();
    let views: Vec<ViewId> = world.project.views.keys().cloned().collect();
    for view in &views {
        for entry in world.store.ledger(view, None, 0).await.unwrap() {
            told.push(format!("{view} {} {} {} {}", entry.interval, entry.run, entry.rows, entry.digest));
        }
    }
    for (view, state) in world.store.view_states(&views).await.unwrap() {
        told.push(format!(
            "{view} {} {} {:?} {:?}",
            state.publish_number, state.delta_version, state.online_generation, state.newest
        ));
    }
    for snapshot in world.store.snapshots(None, None, 0).await.unwrap() {
        let views: Vec<_> =
            snapshot.views.iter().map(|view| format!("{} {} {}", view.view, view.delta_version, view.digest)).collect();
        told.push(format!("{} {} {} {views:?}", snapshot.id, snapshot.interval, snapshot.status));
    }
    told
}

async fn a_lost_registry_comes_back_from_the_lake(place: Place) {
    let world = World::at(place, DEFINITIONS).await;
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    world.succeed(1, 1).await;
    let before = told(&world).await;
    let world = registry_lost(world).await;
    let refused = world.execute(3, 0).await;
    assert_eq!(refused.state, RunState::Failed, "before the rebuild nothing is published");
    assert!(refused.reason.unwrap().contains("registry rebuild --from-lake"));

    let found = rebuild(&world).await;
    assert!(found.findings.iter().all(|view| view.adopted.len() == 2 && !view.other_definition), "{found:#?}");
    assert_eq!(told(&world).await, before);
    // The history is read, the fence goes on.
    let next = world.succeed(3, 1).await;
    let lifetime: ViewId = "lifetime@v1".parse().unwrap();
    assert_eq!(world.store.intent(next.id).await.unwrap().unwrap().views[&lifetime].publish_number, 4);
    assert_eq!(world.store.ledger(&lifetime, None, 0).await.unwrap().len(), 3);
}

async fn an_old_copy_publishes_nothing_until_it_is_brought_up_to_the_lake(place: Place) {
    let world = World::at(place, DEFINITIONS).await;
    let copy: PathBuf = world.folder.path().join("copy.db");
    world.succeed(1, 0).await;
    // Planned when the copy was made; done afterwards.
    let planned = world.plan(2, 0).await;
    world.store.backup(&copy).await.unwrap();
    world.worker.run_only(&[planned], tokio_util::sync::CancellationToken::new()).await.unwrap();
    world.succeed(1, 1).await;
    let before = told(&world).await;
    world.store.restore(&copy, true, "ana", at("2024-01-05T00:00:00Z")).await.unwrap();

    let refused = world.execute(3, 0).await;
    assert_eq!(refused.state, RunState::Failed);
    assert!(refused.reason.unwrap().contains("registry rebuild --from-lake"));
    rebuild(&world).await;
    assert_eq!(told(&world).await, before);
    assert_eq!(world.store.run(planned).await.unwrap().0.state, RunState::Succeeded);
    assert!(world.store.runs_open().await.unwrap().is_empty());
    world.succeed(3, 1).await;
}

async fn a_registry_that_is_up_to_date_is_left_as_it_is(place: Place) {
    let world = World::at(place, DEFINITIONS).await;
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    let found = plan(&parts(&world)).await.unwrap();
    assert!(found.is_empty(), "{found:#?}");
}

async fn slices_of_which_the_log_no_longer_tells_speak_for_themselves(place: Place) {
    let world = World::at(place, DEFINITIONS).await;
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    let ledger = async |world: &World| {
        let view: ViewId = "revenue@v1".parse().unwrap();
        let entries = world.store.ledger(&view, None, 0).await.unwrap();
        entries.into_iter().map(|entry| (entry.interval, entry.run, entry.rows, entry.digest)).collect::<Vec<_>>()
    };
    let before = ledger(&world).await;
    for view in world.project.views.keys() {
        world.lake.checkpoint(view, 2).await.unwrap();
        for version in 0..=1 {
            world.remove(&format!("features/{}/v1/_delta_log/{version:020}.json", view.name)).await;
        }
    }
    let world = registry_lost(world).await;
    rebuild(&world).await;
    assert_eq!(ledger(&world).await, before);
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    let status: BTreeMap<Interval, String> = snapshots.into_iter().map(|of| (of.interval, of.status)).collect();
    assert_eq!((status[&interval(1)].as_str(), status[&interval(2)].as_str()), ("expired", "live"));
    world.succeed(3, 0).await;
}

async fn an_interval_that_only_some_tables_have_is_missing(place: Place) {
    let world = World::at(place, DEFINITIONS).await;
    // Only a log that is older than a run can deny its commit, and object stores tell times in whole seconds.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    // The process died between two commits, and the registry with it.
    world.remove("features/lifetime/v1/_delta_log/00000000000000000002.json").await;
    let world = registry_lost(world).await;
    let found = rebuild(&world).await;
    assert!(found.findings.iter().all(|view| view.half_published == [interval(2)]), "{found:#?}");
    for view in world.project.views.keys() {
        let ledger = world.store.ledger(view, None, 0).await.unwrap();
        assert_eq!(ledger.iter().map(|entry| entry.interval).collect::<Vec<_>>(), [interval(1)], "{view}");
    }
    world.succeed(2, 5).await;
    for view in world.project.views.keys() {
        assert_eq!(world.store.ledger(view, None, 0).await.unwrap().len(), 2, "{view}");
    }
}

async fn what_a_lost_table_held_can_be_computed_again(place: Place) {
    let world = World::at(place, DEFINITIONS).await;
    world.succeed(1, 0).await;
    let second = world.succeed(2, 0).await;
    let before = world.lake("revenue@v1", "SELECT shop, total FROM t ORDER BY interval_start, shop").await;
    world.remove("features/revenue/v1/").await;
    let world = world.afresh();
    let found = rebuild(&world).await;
    assert_eq!(found.tables_lost, ["revenue@v1".parse::<ViewId>().unwrap()]);
    let revenue: ViewId = "revenue@v1".parse().unwrap();
    assert!(world.store.ledger(&revenue, None, 0).await.unwrap().is_empty());
    assert_eq!(world.store.ledger(&"ranking@v1".parse().unwrap(), None, 0).await.unwrap().len(), 2);
    let snapshot = world.store.snapshot(tidegate_registry::ids::SnapshotId(second.id.0)).await.unwrap();
    assert_eq!(snapshot.views.len(), 3, "it can give back all but the table that is gone");
    world.succeed(1, 7).await;
    world.succeed(2, 7).await;
    assert_eq!(world.lake("revenue@v1", "SELECT shop, total FROM t ORDER BY interval_start, shop").await, before);
}
