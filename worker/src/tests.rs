//! Whole runs on embedded parts: what becomes visible, when, and what does not.

mod objects;
mod other_tables;
mod source_checks;
mod world;

use std::time::Duration;

use tidegate_registry::ids::ViewId;
use tidegate_registry::run::{Run, RunState, Verdict};
use tidegate_registry::store::{CheckFilter, Decision, Store as _};
use tokio_util::sync::CancellationToken;

pub(crate) use self::world::*;

#[tokio::test]
async fn a_run_computes_checks_commits_publishes_and_records() {
    let world = World::new().await;
    let run = world.succeed(1, 0).await;
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "30.0"), ("receipts", "2")]));
    assert_eq!(world.online("ranking@v1", "b", now).await, features(&[("share", "0.7")]));
    assert_eq!(world.online("lifetime@v1", "a", now).await, None, "it is not published online");
    insta::assert_snapshot!(
        world.lake("lifetime@v1", "SELECT shop, total, days, interval_start FROM t ORDER BY shop").await
    );
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    assert_eq!((snapshots.len(), snapshots[0].run, snapshots[0].status.as_str()), (1, run.id, "live"));
    let ledger = world.store.ledger(&"revenue@v1".parse().unwrap(), None, 0).await.unwrap();
    assert_eq!((ledger.len(), ledger[0].interval, ledger[0].rows), (1, interval(1), 2));
}

#[tokio::test]
async fn views_read_each_others_staged_rows_and_all_their_history() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    world.succeed(3, 0).await;
    insta::assert_snapshot!(
        world.lake("lifetime@v1", "SELECT interval_start, shop, total, days FROM t ORDER BY 1, 2").await
    );
    // the newest living row of each shop: a sold nothing on the third
    let now = "2024-01-04T00:00:00Z";
    assert_eq!(world.online("last_receipt@v1", "a", now).await, features(&[("largest", "50")]));
    assert_eq!(world.online("last_receipt@v1", "b", now).await, features(&[("largest", "60")]));
    // its ttl of two days ends two days after the receipt
    assert_eq!(world.online("last_receipt@v1", "a", "2024-01-04T09:00:00Z").await, None);
    // and a full view has only the shops of its newest interval
    assert_eq!(world.online("revenue@v1", "a", now).await, None);
}

#[tokio::test]
async fn a_blocked_run_leaves_nothing_behind_and_readers_keep_the_last_good_values() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    let before = (world.staged_files().await, world.lake("revenue@v1", "SELECT count(*) FROM t").await);
    let run = world.execute(4, 0).await;
    assert_eq!(run.state, RunState::Blocked);
    insta::assert_snapshot!(run.reason.unwrap());
    assert_eq!((world.staged_files().await, world.lake("revenue@v1", "SELECT count(*) FROM t").await), before);
    let now = "2024-01-05T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "30.0"), ("receipts", "2")]));
    let filter = CheckFilter { run: Some(run.id), verdict: Some(Verdict::Failed), ..CheckFilter::default() };
    let failed = world.store.checks(&filter).await.unwrap();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].result.check.as_str(), failed[0].result.failing_rows), ("range(total)", 1));
}

#[tokio::test]
async fn a_person_lets_a_blocked_run_through_and_nothing_else_with_it() {
    let world = World::new().await;
    let blocked = world.execute(4, 0).await;
    assert_eq!(blocked.state, RunState::Blocked);
    let decision = |reason: &str| Decision {
        actor: "ana".to_owned(),
        reason: reason.to_owned(),
        now: at("2024-01-05T00:00:00Z"),
        attempts_max: 1,
    };
    let work = async |run| {
        world.store.run_admit(run).await.unwrap();
        world.worker.run_only(&[run], CancellationToken::new()).await.unwrap();
        world.store.run(run).await.unwrap().0
    };
    // What the person saw is no longer what would be published.
    let receipts = std::fs::read_to_string(world.folder.path().join("receipts.csv")).unwrap();
    let run = world.store.run_override(blocked.id, decision("a fair")).await.unwrap();
    world.sell(&receipts.replace("5000", "6000")).await;
    let stopped = work(run).await;
    assert_eq!(stopped.state, RunState::Blocked);
    assert!(stopped.reason.as_ref().unwrap().contains("the source `receipts` has changed"), "{:?}", stopped.reason);
    assert!(world.store.run_override(run, decision("still")).await.is_err(), "it stopped before any check");

    let again = world.store.run_retry(run, 1, "ana", at("2024-01-05T00:00:00Z")).await.unwrap();
    assert_eq!(work(again).await.state, RunState::Blocked, "a retry carries no decision");
    let run = world.store.run_override(again, decision("a fair")).await.unwrap();
    let done = work(run).await;
    assert_eq!(done.state, RunState::Succeeded, "{:?}", done.reason);
    let now = "2024-01-05T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "6000.0"), ("receipts", "1")]));
    let snapshot = &world.store.snapshots(None, None, 1).await.unwrap()[0];
    let told = snapshot.decision.as_ref().unwrap();
    assert_eq!((told.of, told.actor.as_str(), told.reason.as_str()), (again, "ana", "a fair"));
    let filter = CheckFilter { run: Some(run), verdict: Some(Verdict::Failed), ..CheckFilter::default() };
    let failed = world.store.checks(&filter).await.unwrap();
    assert!(failed.iter().all(|row| row.result.overridden && row.result.check == "range(total)"), "{failed:?}");
    assert_eq!(failed.len(), 1);
}

#[tokio::test]
async fn a_check_against_history_blocks_before_the_intent() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    std::fs::write(
        world.folder.path().join("receipts.csv"),
        "shop,at,amount\na,2024-01-02T10:00:00Z,1\nb,2024-01-02T10:00:00Z,1\nc,2024-01-02T10:00:00Z,1\nd,2024-01-02T10:00:00Z,1\n",
    )
    .unwrap();
    let run = world.execute(2, 0).await;
    assert_eq!(run.state, RunState::Blocked);
    assert!(run.reason.as_ref().unwrap().contains("row_count"), "{:?}", run.reason);
    assert!(world.store.intent(run.id).await.unwrap().is_none());
}

#[tokio::test]
async fn numbers_of_a_run_are_compared_with_those_recorded_before() {
    let checks = "- mean: {column: total, min: 1}\n      - monotonic: {of: sum, column: total}\n      \
                  - anomaly: {of: row_count, last: 2, least: 2, severity: warn}\n      \
                  - drift: {column: total, last: 1, severity: warn}";
    let definitions = DEFINITIONS.replace("- range: {column: total, min: 0, max: 1000}", checks);
    let definitions = definitions.replace("      - row_count: {max_change: 0.5}\n", "");
    let world = World::with(&definitions).await;
    let revenue: ViewId = "revenue@v1".parse().unwrap();
    let verdicts = async |run: &Run| {
        let filter = CheckFilter { run: Some(run.id), view: Some(revenue.clone()), ..CheckFilter::default() };
        let checks = world.store.checks(&filter).await.unwrap();
        checks.iter().skip(3).map(|row| format!("{}: {}", row.result.check, row.result.message)).collect::<Vec<_>>()
    };

    let first = world.succeed(1, 0).await;
    let second = world.succeed(2, 0).await;
    let third = world.execute(3, 0).await;
    assert_eq!(third.state, RunState::Blocked, "{:?}", third.reason);
    assert!(world.store.intent(third.id).await.unwrap().is_none());
    let said = [verdicts(&first).await, verdicts(&second).await, verdicts(&third).await];
    insta::assert_snapshot!(said.map(|said| said.join("\n")).join("\n\n"));

    let recorded = world.store.recorded(&revenue, interval(3).start(), None, 9).await.unwrap();
    let sums: Vec<_> = recorded.iter().map(|recorded| (recorded.interval, recorded.profile["total"].sum)).collect();
    assert_eq!(sums, [(interval(2), Some(100.0)), (interval(1), Some(100.0))], "a blocked run is no history");
}

#[tokio::test]
async fn a_run_of_an_older_interval_fills_the_lake_and_leaves_online_alone() {
    let world = World::new().await;
    world.succeed(2, 0).await;
    world.succeed(1, 0).await;
    let now = "2024-01-03T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "50.0"), ("receipts", "1")]));
    insta::assert_snapshot!(
        world.lake("revenue@v1", "SELECT interval_start, shop, total, receipts FROM t ORDER BY 1, 2").await
    );
}

#[tokio::test]
async fn an_older_interval_brings_the_entities_of_a_partial_view_that_nothing_newer_has() {
    let world = World::new().await;
    world.succeed(3, 0).await;
    world.succeed(2, 0).await;
    let now = "2024-01-04T00:00:00Z";
    assert_eq!(world.online("last_receipt@v1", "a", now).await, features(&[("largest", "50")]), "of the second");
    assert_eq!(world.online("last_receipt@v1", "b", now).await, features(&[("largest", "60")]), "of the third");
}

#[tokio::test]
async fn computing_an_interval_again_replaces_it() {
    let world = World::new().await;
    let first = world.succeed(1, 0).await;
    let again = world.succeed(1, 1).await;
    assert_eq!((first.revision, again.revision), (0, 1));
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "30.0"), ("receipts", "2")]));
    let ledger = world.store.ledger(&"revenue@v1".parse().unwrap(), None, 0).await.unwrap();
    assert_eq!((ledger.len(), ledger[0].run), (1, again.id));
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    assert_eq!(snapshots[0].views[0].digest, snapshots[1].views[0].digest, "the same rows have the same digest");
    let rows = world.lake("revenue@v1", "SELECT shop, total FROM t ORDER BY shop").await;
    assert_eq!(rows.lines().count(), 6, "two rows, not four:\n{rows}");
}

#[tokio::test]
async fn a_source_that_cannot_be_read_fails_the_run_with_its_name() {
    let world = World::new().await;
    std::fs::remove_file(world.folder.path().join("receipts.csv")).unwrap();
    let run = world.execute(1, 0).await;
    assert_eq!(run.state, RunState::Failed);
    let (_, tasks) = world.store.run(run.id).await.unwrap();
    assert!(tasks[0].error.as_ref().unwrap().contains("reading the source `receipts` at `receipts.csv`"), "{tasks:?}");
}

#[tokio::test]
async fn a_table_that_is_gone_fails_the_run_before_its_intent() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    std::fs::remove_dir_all(world.lake.table_url(&"revenue@v1".parse().unwrap()).to_file_path().unwrap()).unwrap();
    let run = world.execute(2, 0).await;
    assert_eq!(run.state, RunState::Failed, "it would be tried for ever");
    let reason = run.reason.unwrap();
    assert!(reason.contains("task `pin` failed") && reason.contains("the table of `revenue@v1`"), "{reason}");
}

#[tokio::test]
async fn two_workers_share_a_run_and_it_is_published_once() {
    let world = World::new().await;
    let other = world.another_worker("two");
    let ids = [world.plan(1, 0).await, world.plan(2, 0).await, world.plan(3, 0).await];
    let (one, two) = tokio::join!(
        world.worker.run_only(&ids, CancellationToken::new()),
        other.run_only(&ids, CancellationToken::new())
    );
    one.unwrap();
    two.unwrap();
    for id in ids {
        assert_eq!(world.store.run(id).await.unwrap().0.state, RunState::Succeeded);
    }
    // runs that nobody put in order publish in any order; each interval stands once
    let rows = world.lake("revenue@v1", "SELECT shop, interval_start FROM t").await;
    assert_eq!(rows.lines().count() - 4, 5, "two, two and one shop:\n{rows}");
    assert_eq!(world.store.snapshots(None, None, 0).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_stopped_worker_hands_back_and_another_finishes() {
    let world = World::new().await;
    let id = world.plan(1, 0).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    world.worker.run_only(&[id], cancel).await.unwrap();
    assert_ne!(world.store.run(id).await.unwrap().0.state, RunState::Succeeded);
    let other = world.another_worker("two");
    other.run_only(&[id], CancellationToken::new()).await.unwrap();
    assert_eq!(world.store.run(id).await.unwrap().0.state, RunState::Succeeded);
}

#[tokio::test]
async fn a_task_that_takes_too_long_fails_and_its_worker_lives() {
    let world = World::with(&endless().replace("retries:", "timeout: 1s\n    retries:")).await;
    let run = world.execute(1, 0).await;
    assert_eq!(run.state, RunState::Failed);
    let (_, tasks) = world.store.run(run.id).await.unwrap();
    let errors: Vec<&str> = tasks.iter().filter_map(|task| task.error.as_deref()).collect();
    assert_eq!(errors, ["the task took longer than its timeout of 1s"]);
    assert_eq!(world.staged_files().await, 0, "nothing of it is left");
}

#[tokio::test]
async fn a_cancelled_run_stops_and_leaves_nothing() {
    let world = World::with(&endless()).await;
    let id = world.plan(1, 0).await;
    let cancel = async {
        while world.store.run(id).await.unwrap().0.state != RunState::Running {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.store.run_cancel(id, "ana", at("2024-01-05T00:00:00Z")).await.unwrap();
    };
    let (worker, ids) = (world.attentive_worker(), [id]);
    let (done, ()) = tokio::join!(worker.run_only(&ids, CancellationToken::new()), cancel);
    done.unwrap();
    assert_eq!(world.store.run(id).await.unwrap().0.state, RunState::Cancelled);
    assert_eq!(world.staged_files().await, 0, "nothing of it is left");
    assert!(world.store.snapshots(None, None, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failure_that_passes_is_tried_again() {
    let world = World::with(&DEFINITIONS.replace("{max: 0,", "{max: 5,")).await;
    let source = world.folder.path().join("receipts.csv");
    std::fs::remove_file(&source).unwrap();
    let id = world.plan(1, 0).await;
    let mend = async {
        while world.store.run(id).await.unwrap().1[0].error.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::fs::write(&source, RECEIPTS).unwrap();
    };
    let ids = [id];
    let (done, ()) = tokio::join!(world.worker.run_only(&ids, CancellationToken::new()), mend);
    done.unwrap();
    let (run, tasks) = world.store.run(id).await.unwrap();
    assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
    assert!(tasks[0].attempts >= 2, "attempts: {}", tasks[0].attempts);
}

#[tokio::test]
async fn a_source_that_changes_during_a_run_starts_it_again_and_is_read_as_it_is_then() {
    let world = World::new().await;
    let id = world.plan(1, 0).await;
    let source = world.folder.path().join("receipts.csv");
    // pinned, and not yet decided
    let worker = world.worker_with_change(move || {
        std::fs::write(source, RECEIPTS.replace("11:00:00Z,20", "11:00:00Z,200")).unwrap();
    });
    worker.run_only(&[id], CancellationToken::new()).await.unwrap();
    let (run, _) = world.store.run(id).await.unwrap();
    assert_eq!((run.state, run.restarts), (RunState::Succeeded, 1), "{:?}", run.reason);
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "210.0"), ("receipts", "2")]));
}
