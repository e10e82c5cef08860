//! What others do to what a restore needs: the janitor, compaction, pruning, a store that loses rows, another restore.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_registry::care::Care as _;
use tidegate_registry::definitions::settings::Retention;
use tidegate_registry::ids::{RunId, SnapshotId};
use tidegate_registry::restore::plan::Target;
use tidegate_registry::restore::{RestoreRequest, Restoring as _};
use tidegate_registry::run::RunState;
use tidegate_registry::store::{Store as _, StoreError};
use tidegate_registry::time::FixedClock;
use tokio_util::sync::CancellationToken;

use super::{DEFINITIONS, all_published, begun, carried_out, planned, published, restored, sell, view, views};
use crate::engine::Engine;
use crate::janitor::{Janitor, JanitorParts, Report};
use crate::restore::{WayOnline, check};
use crate::tests::{World, at};

/// Everything old goes at once.
const NOTHING: Retention =
    Retention { snapshots: Duration::ZERO, snapshots_min: 1, log: Duration::ZERO, staged: Duration::ZERO };

async fn clean(world: &World, retention: Retention) -> Report {
    let engine = Engine::new(256 << 20, &world.folder.path().join("janitor")).unwrap();
    let janitor = Janitor::new(JanitorParts {
        store: Arc::<tidegate_store::SqliteStore>::clone(&world.store),
        clock: Arc::new(FixedClock(at(super::NOW))),
        lake: world.lake.clone(),
        online: Some(Arc::clone(&world.online)),
        engine: Some(Arc::new(engine)),
        retention,
        drills: None,
        owner: "janitor".to_owned(),
    });
    let report = janitor.pass(false).await.unwrap().expect("nobody else is at it");
    let problems: Vec<_> = report.views.iter().filter_map(|view| view.problem.as_ref()).collect();
    assert!(problems.is_empty(), "{problems:?}");
    report
}

/// One day, computed three times; the snapshots.
async fn three_times() -> (World, Vec<SnapshotId>) {
    let world = World::with(DEFINITIONS).await;
    let mut snapshots = Vec::new();
    for (time, amount) in [400, 30, 20].into_iter().enumerate() {
        sell(&world, 1, 7, amount).await;
        let run = world.succeed(1, time.try_into().unwrap()).await;
        snapshots.push(SnapshotId(run.id.0));
    }
    (world, snapshots)
}

async fn statuses(world: &World, of: &[SnapshotId]) -> Vec<String> {
    let mut statuses = Vec::new();
    for id in of {
        statuses.push(world.store.snapshot(*id).await.unwrap().status);
    }
    statuses
}

#[tokio::test]
async fn the_janitor_leaves_what_a_restore_under_way_goes_back_to() {
    let (world, snapshots) = three_times().await;
    let request = begun(&world, planned(&world, &views(), Target::To(snapshots[0])).await.unwrap()).await;
    assert_eq!(clean(&world, NOTHING).await.expired, [snapshots[1]]);
    // Nor does anybody else get it to expire.
    assert!(world.store.snapshots_expire(&[snapshots[0]], at(super::NOW)).await.unwrap().is_empty());
    carried_out(&world, request.id).await;
    let restored = published(&world, &view("revenue")).await;
    assert_eq!(restored.ledger[0].snapshot, snapshots[0]);
    assert_eq!(restored.aside.len(), 1, "what was set aside is back");
}

#[tokio::test]
async fn the_target_of_taking_a_run_back_is_left_too() {
    let (world, snapshots) = three_times().await;
    let request = begun(&world, planned(&world, &[], Target::Run(RunId(snapshots[2].0))).await.unwrap()).await;
    assert_eq!(clean(&world, NOTHING).await.expired, [snapshots[0]]);
    carried_out(&world, request.id).await;
    assert_eq!(published(&world, &view("revenue")).await.ledger[0].snapshot, snapshots[1]);
}

#[tokio::test]
async fn what_expired_after_it_was_planned_is_not_gone_back_to() {
    let (world, snapshots) = three_times().await;
    let plan = planned(&world, &views(), Target::To(snapshots[0])).await.unwrap();
    clean(&world, NOTHING).await;
    let request = RestoreRequest { actor: "ana".to_owned(), ..plan.request };
    let refused = world.store.restore_begin(request).await;
    assert!(matches!(&refused, Err(StoreError::Conflict(what)) if what.contains("no longer kept")), "{refused:?}");
    let why = planned(&world, &views(), Target::To(snapshots[0])).await.unwrap_err().to_string();
    assert!(why.contains("has expired"), "{why}");
    assert!(world.store.holds().await.unwrap().holds.is_empty());
}

#[tokio::test]
async fn a_snapshot_that_is_kept_has_what_was_set_aside() {
    let (world, snapshots) = three_times().await;
    let all = clean(&world, Retention { snapshots_min: 3, ..NOTHING }).await;
    assert!(all.expired.is_empty());
    assert_eq!(statuses(&world, &snapshots).await, ["superseded", "superseded", "live"]);
    restored(&world, &views(), Target::To(snapshots[0])).await;
    assert_eq!(published(&world, &view("revenue")).await.aside.len(), 1);
    // With its snapshots goes what only they name, here, too.
    restored(&world, &views(), Target::To(snapshots[2])).await;
    sell(&world, 1, 7, 10).await;
    world.succeed(1, 9).await;
    let aside = async || world.objects("quarantine/revenue/v1/data").await.len();
    assert_eq!(aside().await, 1);
    clean(&world, NOTHING).await;
    assert_eq!(aside().await, 0);
}

/// A restore is a snapshot of its own: what it brought back stays when the snapshot that it came from expires.
#[tokio::test]
async fn what_a_restore_brought_back_outlives_the_snapshot_that_it_came_from() {
    let (world, snapshots) = three_times().await;
    let back = restored(&world, &views(), Target::To(snapshots[0])).await;
    let was = all_published(&world).await;
    sell(&world, 2, 7, 50).await;
    world.succeed(2, 0).await;
    let expired = clean(&world, Retention { snapshots_min: 2, ..NOTHING }).await.expired;
    assert_eq!(expired.into_iter().collect::<BTreeSet<_>>(), snapshots.iter().copied().collect());
    restored(&world, &views(), Target::To(SnapshotId(back.id.0))).await;
    assert_eq!(all_published(&world).await, was);
}

#[tokio::test]
async fn a_restore_goes_back_over_a_compaction() {
    let (world, snapshots) = three_times().await;
    let was = all_published(&world).await;
    // Numbers and versions go on as after a compaction of the slice.
    sell(&world, 2, 7, 50).await;
    world.succeed(2, 0).await;
    let revenue = view("revenue");
    let number = world.store.compaction_take(&revenue).await.unwrap().unwrap();
    let table = world.lake.load(&revenue, None).await.unwrap();
    let adds = {
        let target = tidegate_registry::restore::TableTarget { version: table.version(), slices: Vec::new() };
        let files = world.lake.target_files(&revenue, &target).await.unwrap();
        let of = |add: &deltalake::kernel::Add| {
            add.partition_values["interval_start"] == Some("2024-01-02T00:00:00.000000Z".into())
        };
        let mut adds: Vec<_> = files.into_iter().filter(of).collect();
        for add in &mut adds {
            let path = format!("data/{}/compacted/part-0.parquet", RunId::generate());
            let from = world.folder.path().join("lake/features/revenue/v1").join(&add.path);
            let to = world.folder.path().join("lake/features/revenue/v1").join(&path);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
            add.path = path;
        }
        adds
    };
    let interval = crate::tests::interval(2);
    let request = crate::lake::CompactionRequest { view: &revenue, publish_number: number, interval, adds: &adds };
    let version = world.lake.commit_compaction(&table, &request).await.unwrap().unwrap();
    assert!(world.store.compaction_record(&revenue, number, version).await.unwrap());
    let compacted = all_published(&world).await;
    let last = world.store.snapshots(None, None, 1).await.unwrap()[0].id;
    restored(&world, &views(), Target::To(snapshots[2])).await;
    assert_eq!(all_published(&world).await, was);
    restored(&world, &views(), Target::To(last)).await;
    assert_eq!(all_published(&world).await, compacted, "the same rows, from the files before the compaction");
}

#[tokio::test]
async fn a_generation_that_is_gone_or_lost_rows_is_written_anew() {
    let (world, snapshots) = three_times().await;
    let revenue = view("revenue");
    let way = async |to: SnapshotId| {
        let plan = planned(&world, &views(), Target::To(to)).await.unwrap();
        check(&*world.store, &world.lake, Some(&*world.online), &plan).await.unwrap()[&revenue].online
    };
    let generation = world.store.snapshot(snapshots[1]).await.unwrap().views[0].online_generation.unwrap();
    assert_eq!(way(snapshots[1]).await, WayOnline::Flip { generation });
    // The store lost a row of it.
    let file = format!("sqlite://{}", world.folder.path().join("online.db").display());
    let pool = sqlx::SqlitePool::connect(&file).await.unwrap();
    let lost = "DELETE FROM feature_rows WHERE view = 'revenue@v1' AND generation = $1 AND entity_key = 'a'";
    sqlx::query(lost).bind(i64::try_from(generation).unwrap()).execute(&pool).await.unwrap();
    pool.close().await;
    assert!(matches!(way(snapshots[1]).await, WayOnline::Republish { .. }));
    restored(&world, &views(), Target::To(snapshots[1])).await;
    assert_eq!(published(&world, &revenue).await.online.len(), 3);
    // All that is not live was pruned.
    world.online.prune(&revenue, 0, Duration::ZERO, 0).await.unwrap();
    assert!(matches!(way(snapshots[2]).await, WayOnline::Republish { .. }));
    let back = restored(&world, &views(), Target::To(snapshots[2])).await;
    assert!(back.validation.unwrap().passed);
    assert_eq!(published(&world, &revenue).await.online.len(), 3);
}

/// Another restore of the same views takes the place of one that is decided and not recorded.
#[tokio::test]
async fn a_second_restore_supersedes_the_first_one_and_nothing_else() {
    let (world, snapshots) = three_times().await;
    let first = begun(&world, planned(&world, &views(), Target::To(snapshots[0])).await.unwrap()).await;
    let second = begun(&world, planned(&world, &[view("ranking")], Target::To(snapshots[1])).await.unwrap()).await;
    assert_eq!(second.supersedes, BTreeSet::from([first.id]));
    assert_eq!(second.plan.views.len(), 4, "the first one may have begun with all of its views");
    world.worker.run_only(&[first.id], CancellationToken::new()).await.unwrap();
    assert_eq!(world.store.run(first.id).await.unwrap().0.state, RunState::Superseded);
    carried_out(&world, second.id).await;
    for (name, snapshot) in [("ranking", snapshots[1]), ("revenue", snapshots[2]), ("last_amount", snapshots[2])] {
        assert_eq!(published(&world, &view(name)).await.ledger[0].snapshot, snapshot, "{name}");
    }
}
