//! A registry that is made anew from the lake knows what was restored: nothing that was taken back is in its ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_registry::care::Care as _;
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::restore::plan::Target;
use tidegate_registry::restore::{Restore, Restoring as _};
use tidegate_registry::store::{LedgerEntry, Snapshot, SnapshotView, Store as _};
use tidegate_registry::time::Interval;
use tidegate_store::SqliteStore;

use super::{DEFINITIONS, Published, all_published, begun, carried_out, planned, restored, sell, view, views};
use crate::engine::Engine;
use crate::rebuild::{RebuildParts, RebuildPlan, plan};
use crate::tests::{World, at, interval};

async fn rebuild(world: &World) -> RebuildPlan {
    let parts = RebuildParts {
        store: Arc::<SqliteStore>::clone(&world.store),
        lake: world.fresh_lake(),
        online: Some(Arc::clone(&world.online)),
        engine: Arc::new(Engine::new(256 << 20, &world.folder.path().join("rebuild")).unwrap()),
        project: Arc::clone(&world.project),
    };
    let found = plan(&parts).await.unwrap();
    found.clone().perform(&parts, BTreeMap::new(), "ana", at(super::NOW)).await.unwrap();
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

/// What is in each ledger.
async fn ledgers(world: &World) -> BTreeMap<ViewId, Vec<LedgerEntry>> {
    let mut ledgers = BTreeMap::new();
    for view in views() {
        ledgers.insert(view.clone(), world.store.ledger(&view, None, 0).await.unwrap());
    }
    ledgers
}

/// What was in each ledger when each snapshot had been recorded.
async fn histories(world: &World, snapshots: &[SnapshotId]) -> Vec<Vec<LedgerEntry>> {
    let mut histories = Vec::new();
    for id in snapshots {
        let number = world.store.snapshot_number(*id).await.unwrap();
        for view in views() {
            histories.push(world.store.as_of(&view, number).await.unwrap().ledger);
        }
    }
    histories
}

/// What restores there were, as far as the lake keeps it.
async fn restores(world: &World) -> Vec<(RunId, String, String, Vec<ViewId>, usize)> {
    let restores = world.store.restores(0).await.unwrap();
    let of = |restore: Restore| {
        let left = restore.plan.views.values().map(|what| what.leaves.len()).sum();
        assert!(restore.recorded_at.is_some());
        let views = restore.plan.views.keys().cloned().collect();
        (restore.id, restore.plan.asked, format!("{}: {}", restore.actor, restore.reason), views, left)
    };
    let mut restores: Vec<_> = restores.into_iter().map(of).collect();
    restores.sort_unstable();
    restores
}

/// How each snapshot is looked upon, and what each holds of each view.
async fn told(world: &World) -> BTreeMap<SnapshotId, (String, Vec<(ViewId, u64, u64, Option<Interval>)>)> {
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    let of = |view: SnapshotView| (view.view, view.delta_version, view.rows, view.interval);
    let line =
        |snapshot: Snapshot| (snapshot.id, (snapshot.status, snapshot.views.into_iter().map(of).collect::<Vec<_>>()));
    snapshots.into_iter().map(line).collect()
}

/// Day 1, day 2 (of which one view's rows are set aside, and which sold nothing at last), day 1 again; and back.
async fn lived() -> (World, Vec<SnapshotId>) {
    let world = World::with(DEFINITIONS).await;
    let mut snapshots = Vec::new();
    for (day, cause, shops, amount) in [(1, 0, 7, 400), (2, 0, 0, 1), (1, 1, 3, 20), (3, 0, 15, 30)] {
        sell(&world, day, shops, amount).await;
        snapshots.push(SnapshotId(world.succeed(day, cause).await.id.0));
    }
    (world, snapshots)
}

#[tokio::test]
async fn a_registry_that_is_made_anew_knows_what_was_taken_back() {
    let (world, mut snapshots) = lived().await;
    let back = restored(&world, &views(), Target::To(snapshots[1])).await;
    snapshots.push(SnapshotId(back.id.0));
    let (then, was) = (ledgers(&world).await, histories(&world, &snapshots).await);
    let before = all_published(&world).await;
    let (done, status) = (restores(&world).await, told(&world).await);
    let good = world.store.good_numbers(&views(), 0).await.unwrap();
    assert_eq!((done.len(), good.len()), (1, 1), "only the first run can be gone back to");
    let world = registry_lost(world).await;
    rebuild(&world).await;
    assert_eq!(restores(&world).await, done);
    assert_eq!(told(&world).await, status);
    assert_eq!(world.store.good_numbers(&views(), 0).await.unwrap(), good);
    let now = ledgers(&world).await;
    assert_eq!(now, then, "day 1 is of its first run, day 2 is empty and there, day 3 is gone");
    assert_eq!(now[&view("revenue")].iter().map(|entry| entry.rows).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(histories(&world, &snapshots).await, was, "and so it was at every moment");
    assert_eq!(all_published(&world).await, before);
    // Going back and forth goes on from there.
    restored(&world, &views(), Target::To(snapshots[3])).await;
    assert_eq!(ledgers(&world).await[&view("revenue")].len(), 3);
    restored(&world, &views(), Target::To(snapshots[1])).await;
    assert_eq!(all_published(&world).await, before);
    sell(&world, 3, 1, 5).await;
    world.succeed(3, 7).await;
}

/// A restore may leave nothing of a view. That, too, is something to go back to.
#[tokio::test]
async fn a_registry_that_is_made_anew_knows_that_a_view_was_emptied() {
    let world = World::with(DEFINITIONS).await;
    sell(&world, 1, 7, 400).await;
    let first = world.succeed(1, 0).await.id;
    let emptied = restored(&world, &views(), Target::Run(first)).await;
    // The lake does not tell which generation held what, so it is written anew, under a tag of its own.
    let untagged = |all: BTreeMap<ViewId, Published>| -> Vec<Published> {
        all.into_values().map(|published| Published { tag: None, ..published }).collect()
    };
    let nothing = untagged(all_published(&world).await);
    sell(&world, 2, 7, 30).await;
    world.succeed(2, 0).await;
    let (then, status) = (ledgers(&world).await, told(&world).await);
    let world = registry_lost(world).await;
    rebuild(&world).await;
    assert_eq!(ledgers(&world).await, then);
    assert_eq!(told(&world).await, status);
    restored(&world, &views(), Target::To(SnapshotId(emptied.id.0))).await;
    assert!(ledgers(&world).await.values().all(Vec::is_empty));
    assert_eq!(untagged(all_published(&world).await), nothing);
}

#[tokio::test]
async fn what_was_published_again_since_is_there() {
    let (world, snapshots) = lived().await;
    restored(&world, &views(), Target::To(snapshots[0])).await;
    sell(&world, 2, 7, 9).await;
    world.succeed(2, 5).await;
    restored(&world, &[view("ranking")], Target::Run(RunId(snapshots[0].0))).await;
    let then = ledgers(&world).await;
    assert_eq!(then[&view("ranking")].iter().map(|entry| entry.interval).collect::<Vec<_>>(), [interval(2)]);
    let world = registry_lost(world).await;
    rebuild(&world).await;
    assert_eq!(ledgers(&world).await, then);
}

#[tokio::test]
async fn a_registry_that_knows_its_restores_is_left_as_it_is() {
    let (world, snapshots) = lived().await;
    restored(&world, &views(), Target::To(snapshots[1])).await;
    let (then, was) = (ledgers(&world).await, histories(&world, &snapshots).await);
    let found = rebuild(&world).await;
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(ledgers(&world).await, then);
    assert_eq!(histories(&world, &snapshots).await, was);
}

/// An old copy of the registry, from before the restore.
#[tokio::test]
async fn an_old_copy_learns_what_was_taken_back() {
    let (world, snapshots) = lived().await;
    let copy = world.folder.path().join("copy.db");
    world.store.backup(&copy).await.unwrap();
    restored(&world, &views(), Target::To(snapshots[0])).await;
    let then = ledgers(&world).await;
    world.store.restore(&copy, true, "ana", at(super::NOW)).await.unwrap();
    let found = rebuild(&world).await;
    assert!(found.findings.iter().all(|view| view.lost == [interval(2), interval(3)]), "{found:#?}");
    assert_eq!(ledgers(&world).await, then);
}

/// A restore that is under way, or has committed and is not recorded, is left to the workers.
#[tokio::test]
async fn a_restore_under_way_finishes_after_a_rebuild() {
    let (world, snapshots) = lived().await;
    let request = begun(&world, planned(&world, &views(), Target::To(snapshots[0])).await.unwrap()).await;
    let then = ledgers(&world).await;
    // As far as its first table.
    let revenue = view("revenue");
    let what = &request.plan.views[&revenue];
    let adds = world.lake.target_files(&revenue, &what.table).await.unwrap();
    let number = world.store.intent(request.id).await.unwrap().unwrap().views[&revenue].publish_number;
    let note = crate::lake::RestoreNote {
        dag: request.dag.clone(),
        interval: request.interval,
        views: views(),
        fingerprint: what.fingerprint.clone(),
        newest: what.newest.clone(),
        leaves: what.leaves.clone(),
        comes_back: what.comes_back.clone(),
        from_version: what.from_version,
        table: Some(what.table.clone()),
        decided: None,
    };
    let commit = crate::lake::CommitRequest {
        view: &revenue,
        publish_number: number,
        publish_number_max: number,
        replaces: crate::lake::Replaces::Table,
        adds: &adds,
        run: request.id,
        note: None,
        restored: Some(&note),
    };
    world.lake.commit(&commit).await.unwrap();
    rebuild(&world).await;
    assert_eq!(ledgers(&world).await, then);
    assert!(world.store.run(request.id).await.unwrap().0.state.is_open());
    carried_out(&world, request.id).await;
    assert_eq!(ledgers(&world).await[&revenue].len(), 1);
}
