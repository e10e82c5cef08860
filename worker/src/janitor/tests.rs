//! The janitor on a real registry and lake: what stays reads as before, what goes is gone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_registry::care::{Care as _, Pin};
use tidegate_registry::definitions::settings::Retention;
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::run::Run;
use tidegate_registry::store::{LedgerEntry, Snapshot, Store as _};
use tidegate_registry::time::FixedClock;
use tokio_util::sync::CancellationToken;

use super::compact::slice_rows;
use super::{Janitor, JanitorParts, Need, Report};
use crate::digest::Digester;
use crate::engine::{Engine, Joins};
use crate::lake::{CompactionRequest, TableSchema};
use crate::stage::{digest_columns, writer};
use crate::tests::{DEFINITIONS, Place, World, at, in_every_place, only};

in_every_place! {
    what_retention_lets_go_of_is_removed_and_all_else_reads_as_before,
    leftovers_of_dead_runs_go_when_they_are_old,
    a_log_is_shortened_to_what_is_asked_for,
    many_small_files_become_one_and_no_digest_changes,
    rows_that_are_not_what_the_ledger_says_are_left_alone,
    a_registry_that_is_older_than_the_lake_removes_nothing,
}

/// Everything old goes at once.
const NOTHING: Retention =
    Retention { snapshots: Duration::ZERO, snapshots_min: 1, log: Duration::ZERO, staged: Duration::ZERO };

fn janitor(world: &World, retention: Retention) -> Janitor {
    let engine = Engine::new(256 << 20, &world.folder.path().join("janitor")).unwrap();
    Janitor::new(JanitorParts {
        store: Arc::<tidegate_store::SqliteStore>::clone(&world.store),
        clock: Arc::new(FixedClock(at("2024-01-05T00:00:00Z"))),
        lake: world.lake.clone(),
        online: Some(Arc::clone(&world.online)),
        engine: Some(Arc::new(engine)),
        retention,
        drills: None,
        owner: "janitor".to_owned(),
    })
}

async fn clean(world: &World, retention: Retention) -> Report {
    let report = janitor(world, retention).pass(false).await.unwrap().expect("nobody else is at it");
    let problems: Vec<_> = report.views.iter().filter_map(|view| view.problem.as_ref()).collect();
    assert!(problems.is_empty(), "{problems:?}");
    report
}

/// The digest of one slice as a version of its table holds it.
async fn digest(world: &World, view: &ViewId, version: u64, entry: &LedgerEntry) -> String {
    let engine = Engine::new(256 << 20, &world.folder.path().join("reader")).unwrap();
    let ctx = engine.context(Joins::Hash).unwrap();
    let table = world.fresh_lake().load(view, Some(version)).await.unwrap();
    let batches = slice_rows(&ctx, &table, entry).await.unwrap().collect().await.unwrap();
    let mut digest = Digester::new(digest_columns(&world.project, &world.project.views[view]));
    batches.iter().for_each(|batch| digest.update(batch).unwrap());
    digest.digest().to_string()
}

/// Every view of a snapshot can be read at its version, with the digest that was recorded.
async fn assert_restorable(world: &World, snapshot: &Snapshot) {
    for view in &snapshot.views {
        let entry = LedgerEntry {
            interval: snapshot.interval,
            run: snapshot.run,
            snapshot: snapshot.id,
            rows: view.rows,
            digest: view.digest.clone(),
        };
        assert_eq!(digest(world, &view.view, view.delta_version, &entry).await, view.digest, "{}", view.view);
    }
}

async fn snapshot(world: &World, run: &Run) -> Snapshot {
    world.store.snapshot(SnapshotId(run.id.0)).await.unwrap()
}

async fn what_retention_lets_go_of_is_removed_and_all_else_reads_as_before(place: Place) {
    let world = World::at(place, DEFINITIONS).await;
    let runs =
        [world.succeed(1, 0).await, world.succeed(2, 0).await, world.succeed(1, 1).await, world.succeed(1, 2).await];
    let mut files = BTreeMap::new();
    let pinned = snapshot(&world, &runs[0]).await;
    for view in &pinned.views {
        files.insert(view.view.clone(), world.lake.pinned_files(&view.view, view.delta_version).await.unwrap());
    }
    let (actor, reason) = ("ana".to_owned(), "audit".to_owned());
    let pin = Pin { pinned_at: at("2024-01-05T00:00:00Z"), actor, reason, files };
    world.store.snapshot_pin(pinned.id, pin).await.unwrap();
    assert_eq!(world.staged_files().await, 16, "four views, four runs");

    let dry = janitor(&world, NOTHING).pass(true).await.unwrap().unwrap();
    assert_eq!(dry.expired, [SnapshotId(runs[2].id.0)]);
    assert_eq!(dry.views.iter().map(|view| view.removed.files).sum::<u64>(), 4);
    assert_eq!(world.staged_files().await, 16, "a dry run removes nothing");
    assert_eq!(snapshot(&world, &runs[2]).await.status, "superseded");

    // The usual safety age keeps what somebody may be reading.
    assert_eq!(clean(&world, Retention { staged: Duration::from_secs(3_600), ..NOTHING }).await.expired.len(), 1);
    assert_eq!(world.staged_files().await, 16);

    let done = clean(&world, NOTHING).await;
    assert_eq!(world.staged_files().await, 12);
    assert!(done.views.iter().all(|view| view.oldest_why.contains(&Need::Pinned(pinned.id))), "{done:?}");
    assert_eq!(snapshot(&world, &runs[2]).await.status, "expired");
    for kept in [&runs[0], &runs[1], &runs[3]] {
        assert_restorable(&world, &snapshot(&world, kept).await).await;
    }
    assert_eq!(clean(&world, NOTHING).await.views.iter().map(|view| view.removed.files).sum::<u64>(), 0);

    world.store.snapshot_unpin(pinned.id, "ana", at("2024-01-05T00:00:00Z")).await.unwrap();
    // The snapshot of day 2 is live and names day 1 as it was then. With day 2 computed again it goes, too.
    clean(&world, NOTHING).await;
    assert_eq!(world.staged_files().await, 12);
    let last = world.succeed(2, 1).await;
    clean(&world, NOTHING).await;
    assert_eq!(world.staged_files().await, 8, "two days of four views");
    assert_restorable(&world, &snapshot(&world, &last).await).await;
}

async fn leftovers_of_dead_runs_go_when_they_are_old(place: Place) {
    let world = World::at(place, DEFINITIONS).await;
    world.succeed(1, 0).await;
    let table = "features/revenue/v1/data";
    let dead = format!("{table}/{}", RunId::generate());
    let ours = format!("{table}/{}", world.plan(2, 0).await);
    // How a local store names what is being written; in an object store nobody sees that.
    let unfinished = if matches!(world.place, Place::Folder) { "part-1.parquet#1" } else { "part-1.parquet" };
    for run in [&dead, &ours] {
        world.write(&format!("{run}/0-1h/part-0.parquet"), "PAR1").await;
        world.write(&format!("{run}/0-1h/{unfinished}"), "PAR1").await;
    }
    world.write(&format!("{table}/notes.txt"), "somebody else's").await;

    let young = clean(&world, Retention { staged: Duration::from_secs(3_600), ..NOTHING }).await;
    let view = |report: &Report| report.views.iter().find(|view| view.view.name.as_str() == "revenue").unwrap().clone();
    assert_eq!((view(&young).kept.young.files, view(&young).kept.open_runs.files), (2, 2));
    assert_eq!(view(&young).kept.foreign.files, 1);
    let old = clean(&world, NOTHING).await;
    assert_eq!(view(&old).removed.files, 2);
    assert_eq!(world.objects(&dead).await, [""; 0]);
    assert!(!world.folder.path().join("lake").join(dead).exists(), "its folder goes with it");
    assert_eq!(world.objects(&ours).await.len(), 2, "an open run's files are its own");
    assert_eq!(world.read(&format!("{table}/notes.txt")).await, "somebody else's");
}

fn revenue() -> ViewId {
    "revenue@v1".parse().unwrap()
}

async fn a_log_is_shortened_to_what_is_asked_for(place: Place) {
    let world = World::at(place, &only(&["revenue"])).await;
    world.succeed(2, 0).await;
    let reader = world.fresh_lake();
    reader.load(&revenue(), Some(1)).await.unwrap();
    for cause in 0..22 {
        world.succeed(1, cause).await;
    }
    // What is live never expires, so the newest interval must not be the oldest version.
    world.succeed(2, 1).await;
    let before = world.lake("revenue@v1", "SELECT shop, total, interval_start FROM t ORDER BY 3, 1").await;
    let log = async || world.objects("features/revenue/v1/_delta_log").await.len();
    assert!(log().await > 22);
    for _ in 0..2 {
        clean(&world, NOTHING).await;
    }
    assert!(log().await < 14, "{} objects are left of a log of 24 versions", log().await);
    assert_eq!(world.lake("revenue@v1", "SELECT shop, total, interval_start FROM t ORDER BY 3, 1").await, before);
    // Somebody who has not looked for long begins anew instead of failing.
    assert_eq!(reader.load(&revenue(), None).await.unwrap().version(), Some(24));
    assert!(world.fresh_lake().load(&revenue(), Some(3)).await.is_err(), "nobody asks for that version");
    for snapshot in world.store.snapshots(None, None, 0).await.unwrap() {
        if snapshot.status != "expired" {
            assert_restorable(&world, &snapshot).await;
        }
    }
    world.succeed(1, 99).await;
}

/// Writes the slice of day 1 anew, each row a file of its own, as a publication of the same content.
async fn shatter(world: &World, recorded: bool) {
    let view = revenue();
    let engine = Engine::new(256 << 20, &world.folder.path().join("shatter")).unwrap();
    let table = world.lake.load(&view, None).await.unwrap();
    let entry = world.store.ledger(&view, None, 0).await.unwrap().pop().unwrap();
    let schema = TableSchema::of(&world.project, &view).unwrap();
    let ctx = engine.context(Joins::Hash).unwrap();
    let columns: Vec<_> = schema
        .file
        .fields()
        .iter()
        .map(|field| {
            datafusion::logical_expr::cast(crate::reads::column(field.name()), field.data_type().clone())
                .alias(field.name())
        })
        .collect();
    let rows = slice_rows(&ctx, &table, &entry).await.unwrap().select(columns).unwrap().collect().await.unwrap();
    let folder = RunId::generate();
    let mut adds = Vec::new();
    for (number, row) in rows.iter().flat_map(|batch| (0..batch.num_rows()).map(|row| batch.slice(row, 1))).enumerate()
    {
        let prefix = object_store::path::Path::from(format!("data/{folder}/{number}"));
        let definition = &world.project.views[&view];
        let mut writer = writer(&table, &world.project, definition, &schema.file, entry.interval, prefix).unwrap();
        let row = datafusion::arrow::array::RecordBatch::try_new(Arc::clone(&schema.file), row.columns().to_vec());
        writer.write(&row.unwrap()).await.unwrap();
        adds.extend(writer.close().await.unwrap());
    }
    for add in &mut adds {
        let start = crate::reads::partition_value(entry.interval.start());
        add.partition_values.insert("interval_start".to_owned(), Some(start));
    }
    let publish_number = world.store.compaction_take(&view).await.unwrap().unwrap();
    let request = CompactionRequest { view: &view, publish_number, interval: entry.interval, adds: &adds };
    let version = world.lake.commit_compaction(&table, &request).await.unwrap().unwrap();
    if recorded {
        assert!(world.store.compaction_record(&view, publish_number, version).await.unwrap());
    }
}

async fn many_small_files_become_one_and_no_digest_changes(place: Place) {
    let world = World::at(place, &only(&["revenue"])).await;
    let shops: String = (0..6).map(|shop| format!("s{shop},2024-01-01T10:00:00Z,{shop}\n")).collect();
    world.sell(&format!("shop,at,amount\n{shops}")).await;
    let run = world.succeed(1, 0).await;
    let content = world.lake("revenue@v1", "SELECT * FROM t ORDER BY shop").await;
    // The process that did it died before it recorded it.
    shatter(&world, false).await;
    assert_eq!(world.staged_files().await, 7);

    let done = clean(&world, Retention { staged: Duration::from_secs(3_600), ..NOTHING }).await;
    assert_eq!(done.views[0].compacted, [run.interval.start()]);
    let state = world.store.view_states(&[revenue()]).await.unwrap()[&revenue()].clone();
    assert_eq!((state.delta_version, state.publish_number, state.records), (3, 3, 1));
    assert_eq!(world.lake("revenue@v1", "SELECT * FROM t ORDER BY shop").await, content);
    let entry = world.store.ledger(&revenue(), None, 0).await.unwrap().pop().unwrap();
    for version in [1, 2, 3] {
        assert_eq!(digest(&world, &revenue(), version, &entry).await, entry.digest, "version {version}");
    }
    assert_restorable(&world, &snapshot(&world, &run).await).await;

    let again = clean(&world, NOTHING).await;
    assert!(again.views[0].compacted.is_empty());
    assert_eq!(world.staged_files().await, 2, "the snapshot's own file, and the one that took its place");
    world.succeed(2, 0).await;
    world.succeed(1, 1).await;
}

async fn rows_that_are_not_what_the_ledger_says_are_left_alone(place: Place) {
    let world = World::at(place, &only(&["revenue"])).await;
    let shops: String = (0..6).map(|shop| format!("s{shop},2024-01-01T10:00:00Z,{shop}\n")).collect();
    world.sell(&format!("shop,at,amount\n{shops}")).await;
    world.succeed(1, 0).await;
    shatter(&world, true).await;
    // A file is taken out by another program.
    let second = "features/revenue/v1/_delta_log/00000000000000000002.json";
    let entry = world.read(second).await;
    let mut adds = entry.lines().filter(|line| line.starts_with("{\"add\""));
    let dropped = adds.next().unwrap();
    let kept: String = entry.lines().filter(|line| *line != dropped).map(|line| format!("{line}\n")).collect();
    world.write(second, &kept).await;
    let world = world.afresh();
    let report =
        janitor(&world, Retention { staged: Duration::from_secs(3_600), ..NOTHING }).pass(false).await.unwrap();
    let problem = report.unwrap().views[0].problem.clone().unwrap();
    assert!(problem.contains("digest"), "{problem}");
}

async fn a_registry_that_is_older_than_the_lake_removes_nothing(place: Place) {
    let world = World::at(place, &only(&["revenue"])).await;
    let copy: PathBuf = world.folder.path().join("copy.db");
    world.succeed(1, 0).await;
    world.store.backup(&copy).await.unwrap();
    world.succeed(1, 1).await;
    world.succeed(2, 0).await;
    world.store.restore(&copy, true, "ana", at("2024-01-05T00:00:00Z")).await.unwrap();
    let report = janitor(&world, NOTHING).pass(false).await.unwrap().unwrap();
    let problem = report.views[0].problem.clone().unwrap();
    assert!(problem.contains("registry rebuild --from-lake"), "{problem}");
    assert_eq!(world.staged_files().await, 3);
}

#[tokio::test]
async fn one_janitor_at_a_time() {
    let world = World::with(&only(&["revenue"])).await;
    assert!(world.store.duty_take(super::DUTY, "another", Duration::from_secs(60)).await.unwrap());
    assert!(janitor(&world, NOTHING).pass(false).await.unwrap().is_none());
    assert!(janitor(&world, NOTHING).pass(true).await.unwrap().is_some(), "looking is free");
    world.store.duty_release(super::DUTY, "another").await.unwrap();
    assert!(janitor(&world, NOTHING).pass(false).await.unwrap().is_some());
    assert!(janitor(&world, NOTHING).pass(false).await.unwrap().is_some(), "it lets go when it is done");
}

/// Nobody waits for a pass over a thousand tables to stop a process.
#[tokio::test]
async fn one_that_is_stopped_leaves_the_rest_to_the_next() {
    let world = World::new().await;
    let mut newest = None;
    for (interval, repeat) in [(1, 0), (2, 0), (2, 1)] {
        newest = Some(world.succeed(interval, repeat).await);
    }
    let files = world.staged_files().await;
    for milliseconds in [0, 0, 1, 2, 5, 10, 20, 40] {
        let stop = CancellationToken::new();
        if milliseconds == 0 {
            stop.cancel();
        }
        let janitor = janitor(&world, NOTHING);
        let stopping = async {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            stop.cancel();
        };
        tokio::join!(janitor.run(Duration::from_secs(3_600), stop.clone()), stopping);
        if milliseconds == 0 {
            assert_eq!(world.staged_files().await, files, "it did not even begin");
        }
        assert!(world.store.duty_take(super::DUTY, "another", Duration::from_secs(60)).await.unwrap());
        world.store.duty_release(super::DUTY, "another").await.unwrap();
    }
    clean(&world, NOTHING).await;
    assert!(world.staged_files().await < files, "what the stopped ones left was removed");
    assert_restorable(&world, &snapshot(&world, &newest.unwrap()).await).await;
}
