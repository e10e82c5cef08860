//! Retention, pins, duties, compaction; copies of a registry, and one made anew.

use std::collections::BTreeMap;
use std::time::Duration;

use indexmap::IndexMap;
use tidegate_registry::care::{FoundInterval, FoundRun, Pin, PinnedTableFile, Rebuild, ViewRebuild};
use tidegate_registry::ids::{RegistryId, RunId, SnapshotId};
use tidegate_registry::run::{Cause, Pins, RunState, TaskKind, TaskOutput, ViewPin};
use tidegate_registry::store::{Store, StoreError};

use super::Fixture;
use super::world::{LONG, World, dag, day, interval, succeeded, view};

fn pin(reason: &str) -> Pin {
    let file = PinnedTableFile { path: "data/r/part-0.parquet".to_owned(), size: 100 };
    Pin {
        pinned_at: day(11),
        actor: "ana".to_owned(),
        reason: reason.to_owned(),
        files: BTreeMap::from([(view("a@v1"), vec![file])]),
    }
}

/// What is published for days 0 to `count`, oldest first.
async fn published(world: &World, count: i64) -> Vec<SnapshotId> {
    let mut snapshots = Vec::new();
    for number in 0..count {
        let run = world.admitted("daily", number).await;
        snapshots.push(world.publish(run).await);
    }
    snapshots
}

/// Whatever the caller believes: what is live now, or pinned, stays.
pub async fn live_and_pinned_snapshots_never_expire(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let snapshots = published(&world, 3).await;
    world.store.snapshot_pin(snapshots[1], pin("audit")).await.unwrap();
    assert_eq!(world.store.snapshots_expire(&snapshots, day(20)).await.unwrap(), [snapshots[0]]);
    assert_eq!(world.store.snapshots_expire(&snapshots, day(21)).await.unwrap(), [snapshots[0]], "again is harmless");
    let status = async |id| world.store.snapshot(id).await.unwrap().status;
    assert_eq!(status(snapshots[0]).await, "expired");
    assert_eq!((status(snapshots[1]).await, status(snapshots[2]).await), ("superseded".into(), "live".into()));

    let refused = world.store.snapshot_pin(snapshots[0], pin("too late")).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    world.store.snapshot_unpin(snapshots[1], "ana", day(22)).await.unwrap();
    world.store.snapshot_unpin(snapshots[1], "ana", day(22)).await.unwrap();
    assert!(world.store.pins().await.unwrap().is_empty());
    assert_eq!(world.store.snapshots_expire(&[snapshots[1]], day(23)).await.unwrap(), [snapshots[1]]);
    let unknown = world.store.snapshot_pin(SnapshotId::generate(), pin("nothing")).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })), "{unknown:?}");
}

/// Snapshots that are not expired with their pins, and what open runs are bound to.
pub async fn what_must_be_kept_is_read_at_once(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let snapshots = published(&world, 3).await;
    world.store.snapshot_pin(snapshots[1], pin("audit")).await.unwrap();
    world.store.snapshots_expire(&snapshots[..1], day(20)).await.unwrap();
    let run = world.admitted("daily", 3).await;
    let claim = world.claim(run).await;
    assert_eq!(claim.kind, TaskKind::Pin);
    let pins =
        Pins { views: IndexMap::from([(view("a@v1"), ViewPin { delta_version: 12, state: None })]), ..Pins::default() };
    world.end(claim.token, succeeded(TaskOutput::Pins(pins))).await;

    let keep = world.store.keep(&[view("a@v1"), view("b@v1"), view("nowhere@v1")]).await.unwrap();
    assert_eq!(keep.len(), 2);
    let a = &keep[&view("a@v1")];
    assert_eq!((a.delta_version, a.publish_number, a.publishing), (13, 3, None));
    assert_eq!(a.pinned_versions, BTreeMap::from([(run, 12)]));
    let kept: Vec<_> = a.snapshots.iter().map(|kept| (kept.id, kept.delta_version, kept.live)).collect();
    assert_eq!(kept, [(snapshots[1], 12, false), (snapshots[2], 13, true)]);
    assert_eq!(a.snapshots[0].pin, Some(pin("audit")));
    assert!(keep[&view("b@v1")].pinned_versions.is_empty());
    assert_eq!(world.store.open_run_ids().await.unwrap(), [run]);
    assert_eq!(world.store.known_views().await.unwrap(), [view("a@v1"), view("b@v1"), view("c@v1")]);
}

/// One process at a time, until it lets go or is not heard of for as long as it asked for.
pub async fn a_duty_is_one_process_at_a_time(fixture: &Fixture) {
    let (one, two) = (&fixture.store, &fixture.twin);
    assert!(one.duty_take("janitor", "a", LONG).await.unwrap());
    assert!(one.duty_take("janitor", "a", LONG).await.unwrap(), "extended");
    assert!(!two.duty_take("janitor", "b", LONG).await.unwrap());
    assert!(two.duty_take("another", "b", LONG).await.unwrap());
    let owned = [("another", "b"), ("janitor", "a")].map(|(name, owner)| (name.to_owned(), owner.to_owned()));
    assert_eq!(two.duties().await.unwrap(), owned);
    two.duty_release("janitor", "b").await.unwrap();
    assert!(!two.duty_take("janitor", "b", LONG).await.unwrap(), "only its holder lets go");
    one.duty_release("janitor", "a").await.unwrap();
    assert!(two.duty_take("janitor", "b", Duration::ZERO).await.unwrap());
    assert_eq!(one.duties().await.unwrap().len(), 1, "what ran out is nobody's");
    assert!(one.duty_take("janitor", "a", LONG).await.unwrap(), "it ran out");
}

/// Compactions and runs share the fence, and never the time from intent to record.
pub async fn a_compaction_takes_a_number_while_nobody_publishes(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    published(&world, 1).await;
    let a = view("a@v1");
    assert_eq!(world.store.compaction_take(&a).await.unwrap(), Some(2));
    assert!(world.store.compaction_record(&a, 2, 12).await.unwrap());
    assert!(world.store.compaction_record(&a, 2, 12).await.unwrap(), "again is harmless");
    let state = async || world.store.view_states(std::slice::from_ref(&a)).await.unwrap()[&a].clone();
    assert_eq!((state().await.delta_version, state().await.publish_number, state().await.records), (12, 2, 1));

    let run = world.admitted("daily", 1).await;
    let claim = world.claim_publish(run).await;
    assert_eq!(world.store.compaction_take(&a).await.unwrap(), Some(3), "before the intent");
    let intent = world.take(&claim).await;
    assert_eq!(intent.views[&a].publish_number, 4);
    assert_eq!(world.store.compaction_take(&a).await.unwrap(), None, "after it");
    assert!(!world.store.compaction_record(&a, 3, 13).await.unwrap(), "the run has overtaken it");
    world.store.record(claim.token, World::record(SnapshotId::generate(), &intent), day(10)).await.unwrap();
    assert!(!world.store.compaction_record(&a, 3, 13).await.unwrap());
    assert_eq!(state().await.delta_version, 14);
}

/// Only what ended long ago, and nothing that is still asked for.
pub async fn old_lines_and_outputs_are_removed(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim(run).await;
    let line = [("info".to_owned(), "a line".to_owned())];
    world.store.task_log(claim.token, &line, day(10)).await.unwrap();
    world.end(claim.token, succeeded(super::world::pins())).await;
    world.publish(run).await;
    let open = world.admitted("daily", 1).await;
    let claim = world.claim(open).await;
    world.store.task_log(claim.token, &line, day(10)).await.unwrap();
    world.end(claim.token, succeeded(super::world::pins())).await;

    assert_eq!(world.store.rows_prune(day(10)).await.unwrap(), Default::default(), "it ended on day 10");
    let pruned = world.store.rows_prune(day(11)).await.unwrap();
    assert_eq!((pruned.log_lines, pruned.outputs), (1, 4));
    assert!(world.store.run_logs(run).await.unwrap().is_empty());
    assert_eq!(world.store.run_logs(open).await.unwrap().len(), 1);
    assert_eq!(world.store.ledger(&view("a@v1"), None, 0).await.unwrap().len(), 1);
    assert_eq!(world.store.rows_prune(day(11)).await.unwrap(), Default::default());
}

/// Everything comes back as it was, the id included; what was under way is taken up again.
pub async fn a_copy_brings_everything_back(fixture: &Fixture) {
    let folder = Folder(std::env::temp_dir().join(format!("tidegate-copies-{}", RunId::generate())));
    std::fs::create_dir(&folder.0).unwrap();
    let file = folder.0.join("copy.db");
    let world = World::new(fixture.store.clone()).await;
    let snapshots = published(&world, 2).await;
    world.store.snapshot_pin(snapshots[0], pin("audit")).await.unwrap();
    let open = world.admitted("daily", 2).await;
    let claim = world.claim(open).await;
    let before = everything(&*world.store).await;
    let id = world.store.info().await.unwrap().id;

    let copied = world.store.backup(&file).await.unwrap();
    assert!(copied.iter().any(|table| table.table == "ledger" && table.rows == 4), "{copied:?}");
    assert!(matches!(world.store.backup(&file).await, Err(StoreError::Refused(_))), "nothing is overwritten");

    // An hour passes.
    world.end(claim.token, succeeded(super::world::pins())).await;
    let later = world.admitted("other", 0).await;
    world.publish(later).await;
    assert_ne!(everything(&*world.store).await, before);

    let refused = world.store.restore(&file, false, "ana", day(3)).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(world.store.restore(&file, true, "ana", day(3)).await.unwrap(), copied);
    assert_eq!(everything(&*world.store).await, before);
    assert_eq!(world.store.info().await.unwrap().id, id);
    assert!(matches!(world.store.run(later).await, Err(StoreError::NotFound { .. })));
    let again = world.claim(open).await;
    assert_eq!((again.kind, again.attempt), (TaskKind::Pin, 2), "its lease was given up");

    let nothing = folder.0.join("nothing.db");
    assert!(matches!(world.store.restore(&nothing, true, "ana", day(3)).await, Err(StoreError::Refused(_))));
    std::fs::write(&nothing, "no database").unwrap();
    assert!(matches!(world.store.restore(&nothing, true, "ana", day(3)).await, Err(StoreError::Refused(_))));
    assert_eq!(world.store.row_counts().await.unwrap().iter().find(|table| table.table == "runs").unwrap().rows, 3);
}

/// Goes away with its content.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

async fn everything(store: &dyn Store) -> String {
    let views = store.known_views().await.unwrap();
    let mut ledgers = Vec::new();
    for view in &views {
        ledgers.push(store.ledger(view, None, 0).await.unwrap());
    }
    format!(
        "{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}",
        store.project(None).await.unwrap(),
        store.applies().await.unwrap(),
        store.dags().await.unwrap(),
        store.runs(&Default::default()).await.unwrap(),
        store.view_states(&views).await.unwrap(),
        ledgers,
        store.snapshots(None, None, 0).await.unwrap(),
        store.pins().await.unwrap(),
    )
}

/// The id of a registry that is lost is taken before anything else.
pub async fn only_an_empty_registry_takes_another_id(fixture: &Fixture) {
    let id = RegistryId::generate();
    fixture.store.adopt_id(id).await.unwrap();
    assert_eq!(fixture.twin.info().await.unwrap().id, id);
    World::new(fixture.store.clone()).await;
    let refused = fixture.store.adopt_id(RegistryId::generate()).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(fixture.store.info().await.unwrap().id, id);
}

fn found(number: i64, run: RunId, publish_number: u64) -> FoundInterval {
    FoundInterval {
        interval: interval(number),
        run,
        delta_version: publish_number + 10,
        publish_number,
        fingerprint: "f".to_owned(),
        rows: 7,
        digest: "0".repeat(32),
        quarantined: 0,
        quarantine_version: None,
        by: run,
    }
}

/// Days 0 and 1 of `daily`, of which day 1 was published twice.
fn from_lake(runs: &[RunId]) -> Rebuild {
    let mut rebuild = Rebuild { actor: "ana".to_owned(), ..Rebuild::default() };
    for (id, (number, revision)) in runs.iter().zip([(0, 0), (1, 0), (1, 1)]) {
        rebuild.runs.insert(
            *id,
            FoundRun {
                dag: dag("daily"),
                interval: interval(number),
                views: vec![view("a@v1"), view("b@v1")],
                cause: Some(if revision == 0 { Cause::Tick } else { Cause::Manual(0) }),
                revision,
                committed_at: day(10 + number + i64::from(revision)),
                restorable: true,
                restore: None,
            },
        );
    }
    for name in ["a@v1", "b@v1"] {
        rebuild.views.insert(
            view(name),
            ViewRebuild {
                publish_number: 3,
                recorded_number: 3,
                delta_version: 13,
                online_generation: Some(3),
                quarantine_version: None,
                table_lost: false,
                lost: Vec::new(),
                left: Vec::new(),
                found: vec![found(0, runs[0], 1), found(1, runs[1], 2), found(1, runs[2], 3)],
            },
        );
    }
    rebuild.ticks.insert(dag("daily"), vec![day(0), day(1), day(2)]);
    rebuild
}

/// Ledger, snapshots, numbers and grid are there, and the schedule does not do again what is done.
pub async fn a_lost_registry_is_made_anew(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let runs: Vec<RunId> = (0..3).map(|_| RunId::generate()).collect();
    let rebuild = from_lake(&runs);
    world.store.rebuild(&rebuild, day(20)).await.unwrap();

    for name in ["a@v1", "b@v1"] {
        let ledger = world.store.ledger(&view(name), None, 0).await.unwrap();
        let told: Vec<_> = ledger.iter().map(|entry| (entry.interval, entry.run, entry.rows)).collect();
        assert_eq!(told, [(interval(1), runs[2], 7), (interval(0), runs[0], 7)]);
        let state = &world.store.view_states(&[view(name)]).await.unwrap()[&view(name)];
        assert_eq!((state.publish_number, state.delta_version, state.online_generation), (3, 13, Some(3)));
        assert_eq!((state.newest, state.publishing), (Some(interval(1)), None));
    }
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    let told: Vec<_> = snapshots.iter().map(|of| (of.run, of.status.as_str(), of.views.len())).collect();
    assert_eq!(told, [(runs[2], "live", 2), (runs[1], "superseded", 2), (runs[0], "superseded", 2)]);
    assert_eq!(snapshots[1].views[0].delta_version, 12);
    assert!(world.store.runs_open().await.unwrap().is_empty());
    assert_eq!(world.store.latest_runs(&dag("daily"), day(0), day(9)).await.unwrap().len(), 2);
    let again = world.create(World::new_run("daily", 1)).await;
    assert_eq!(again, runs[1], "the schedule's own run of that day exists");
    let state = world.store.dags().await.unwrap().into_iter().find(|state| state.dag == dag("daily")).unwrap();
    assert_eq!((state.planned_until, state.due_at), (Some(day(2)), Some(day(20))));
    assert_eq!(world.store.ticks(&dag("daily"), day(0), day(9)).await.unwrap(), [day(0), day(1), day(2)]);

    let before = everything(&*world.store).await.replace("records: 1", "");
    world.store.rebuild(&rebuild, day(20)).await.unwrap();
    assert_eq!(everything(&*world.store).await.replace("records: 2", ""), before, "again is harmless");
    let next = world.admitted("daily", 2).await;
    let claim = world.claim_publish(next).await;
    assert_eq!(world.take(&claim).await.views[&view("a@v1")].publish_number, 4, "the fence goes on");
}

/// What an old copy believes to be under way is settled by what the lake holds.
pub async fn an_old_copy_is_brought_up_to_the_lake(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let first = world.admitted("daily", 0).await;
    world.publish(first).await;
    // When the copy was made, day 1 was publishing. Then it landed; day 2 came and landed, too.
    let second = world.admitted("daily", 1).await;
    let claim = world.claim_publish(second).await;
    world.take(&claim).await;
    let third = RunId::generate();
    // Restored, the schedule planned day 2 a second time.
    let doubled = world.create(World::new_run("daily", 2)).await;

    let mut rebuild = from_lake(&[first, second, third]);
    let views = vec![view("a@v1"), view("b@v1")];
    let (cause, committed_at) = (Some(Cause::Tick), day(14));
    let run = FoundRun {
        dag: dag("daily"),
        interval: interval(2),
        views,
        cause,
        revision: 0,
        committed_at,
        restorable: true,
        restore: None,
    };
    rebuild.runs.insert(third, run);
    for what in rebuild.views.values_mut() {
        what.found = vec![found(0, first, 1), found(1, second, 2), found(2, third, 3)];
    }
    world.store.rebuild(&rebuild, day(20)).await.unwrap();
    assert_eq!(world.state(second).await, RunState::Succeeded);
    assert_eq!(world.state(third).await, RunState::Succeeded);
    assert_eq!(world.state(doubled).await, RunState::Cancelled);
    assert!(matches!(world.store.task_heartbeat(claim.token, LONG).await, Err(StoreError::LostLease)));
    let ledger = world.store.ledger(&view("a@v1"), None, 0).await.unwrap();
    assert_eq!(ledger.iter().map(|entry| entry.run).collect::<Vec<_>>(), [third, second, first]);
    assert_eq!(world.create(World::new_run("daily", 2)).await, third);
}

/// Intervals that the lake no longer holds are missing again; a run that can never land ends.
pub async fn what_the_lake_lost_leaves_the_ledger(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    published(&world, 2).await;
    let stuck = world.admitted("daily", 2).await;
    let claim = world.claim_publish(stuck).await;
    world.take(&claim).await;
    let mut rebuild = Rebuild { actor: "ana".to_owned(), overtaken: vec![stuck], ..Rebuild::default() };
    for name in ["a@v1", "b@v1"] {
        let lost = vec![interval(1)];
        rebuild.views.insert(
            view(name),
            ViewRebuild { delta_version: 5, lost, table_lost: name == "b@v1", ..ViewRebuild::default() },
        );
    }
    world.store.rebuild(&rebuild, day(20)).await.unwrap();
    assert_eq!(world.state(stuck).await, RunState::Superseded);
    let state = world.store.view_states(&[view("a@v1")]).await.unwrap()[&view("a@v1")].clone();
    assert_eq!((state.publish_number, state.delta_version, state.publishing), (3, 5, None), "numbers never fall");
    assert_eq!(state.newest, Some(interval(0)));
    assert_eq!(world.store.ledger(&view("b@v1"), None, 0).await.unwrap().len(), 1);
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    let named =
        |of: &tidegate_registry::store::Snapshot| of.views.iter().map(|of| of.view.to_string()).collect::<Vec<_>>();
    assert!(snapshots.iter().all(|of| named(of) == ["a@v1"]), "no snapshot gives a lost table back: {snapshots:?}");
    let unknown =
        Rebuild { views: IndexMap::from([(view("nowhere@v1"), ViewRebuild::default())]), ..Rebuild::default() };
    let refused = world.store.rebuild(&unknown, day(20)).await;
    assert!(matches!(refused, Err(StoreError::NotFound { .. })), "{refused:?}");
}
