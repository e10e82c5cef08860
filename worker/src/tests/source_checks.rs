//! Checks of sources in whole runs: what they stop, and what they compare with.

use std::fs;
use std::time::{Duration, SystemTime};

use tidegate_registry::run::{Run, RunState, TaskState, Verdict};
use tidegate_registry::store::{CheckFilter, Store as _};

use super::*;

/// The definitions with these checks of their source, one a line.
fn with(checks: &str) -> String {
    let checks: String = checks.lines().map(|line| format!("      - {}\n", line.trim())).collect();
    DEFINITIONS.replace(
        "  - {name: receipts, csv: receipts.csv, event_time: at}\n",
        &format!("  - name: receipts\n    csv: receipts.csv\n    event_time: at\n    checks:\n{checks}"),
    )
}

/// The verdicts of a run on the source, with the view that they stand with.
async fn verdicts(world: &World, run: &Run) -> Vec<String> {
    let filter = CheckFilter { run: Some(run.id), ..CheckFilter::default() };
    let rows = world.store.checks(&filter).await.unwrap();
    let of_source = rows.iter().filter(|row| row.result.check.starts_with("source "));
    of_source
        .map(|row| format!("{} {}: {}: {}", row.view, row.result.check, row.result.verdict, row.result.message))
        .collect()
}

fn receipts(world: &World, text: &str) {
    fs::write(world.folder.path().join("receipts.csv"), text).unwrap();
}

#[tokio::test]
async fn a_source_that_is_too_old_or_too_small_stops_the_run_before_anything_is_computed() {
    let world = World::with(&with("freshness: {max_age: 15h}\nvolume: {min: 2}")).await;
    let good = world.succeed(1, 0).await;
    let staged = world.staged_files().await;
    assert_eq!(
        verdicts(&world, &good).await,
        [
            "revenue@v1 source receipts: freshness: passed: the newest at is 2024-01-01T12:00:00Z; at most 15h before \
             the interval's end 2024-01-02T00:00:00Z is allowed",
            "revenue@v1 source receipts: volume(rows): passed: 3 rows in the interval, as expected",
            "last_receipt@v1 source receipts: freshness: passed: the newest at is 2024-01-01T12:00:00Z; at most 15h \
             before the interval's end 2024-01-02T00:00:00Z is allowed",
            "last_receipt@v1 source receipts: volume(rows): passed: 3 rows in the interval, as expected",
        ]
    );

    let small = world.execute(3, 0).await;
    assert_eq!(small.state, RunState::Blocked);
    assert_eq!(small.reason.as_deref(), Some("source receipts: volume(rows): 1 row in the interval, fewer than 2"));
    let old = world.execute(5, 0).await;
    assert_eq!(
        old.reason.as_deref(),
        Some(
            "source receipts: freshness: the newest at is 2024-01-04T09:30:00Z; at most 15h before the interval's end \
             2024-01-06T00:00:00Z is allowed; source receipts: volume(rows): 0 rows in the interval, fewer than 2"
        )
    );
    assert_eq!(verdicts(&world, &old).await.len(), 4, "a blocked run tells what stopped it, too");
    let (_, tasks) = world.store.run(old.id).await.unwrap();
    let states: Vec<_> = tasks.iter().map(|task| task.state).collect();
    assert_eq!((states[0], states[1..].iter().all(|state| *state == TaskState::Skipped)), (TaskState::Blocked, true));
    assert_eq!(world.staged_files().await, staged, "nothing was computed");
    let now = "2024-01-06T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "30.0"), ("receipts", "2")]));
}

#[tokio::test]
async fn a_source_without_rows_is_as_old_as_can_be() {
    let world = World::with(&with("freshness: {max_age: 900d}")).await;
    receipts(&world, "shop,at,amount\na,2024-02-01T10:00:00Z,10\n");
    let run = world.execute(1, 0).await;
    assert_eq!(
        (run.state, run.reason.as_deref()),
        (
            RunState::Blocked,
            Some("source receipts: freshness: no row has a at before the interval's end 2024-01-02T00:00:00Z")
        )
    );
}

#[tokio::test]
async fn a_warning_about_a_source_is_recorded_and_stops_nothing() {
    let world = World::with(&with("volume: {min: 100, severity: warn}")).await;
    let run = world.succeed(1, 0).await;
    assert_eq!(
        verdicts(&world, &run).await[0],
        "revenue@v1 source receipts: volume(rows): failed: 3 rows in the interval, fewer than 100"
    );
}

#[tokio::test]
async fn a_check_of_a_source_that_cannot_be_computed_blocks() {
    let world =
        World::with(&with("freshness: {max_age: 1d, column: shop}\nfreshness: {max_age: 1d, column: gone}")).await;
    let run = world.execute(1, 0).await;
    assert_eq!(
        (run.state, run.reason.as_deref()),
        (
            RunState::Blocked,
            Some(
                "source receipts: freshness: could not be computed: column `shop` is a string, not a time; source \
                 receipts: freshness 2: could not be computed: it has no column `gone`"
            )
        )
    );
    let filter = CheckFilter { run: Some(run.id), verdict: Some(Verdict::Error), ..CheckFilter::default() };
    assert_eq!(world.store.checks(&filter).await.unwrap().len(), 4);
}

#[tokio::test]
async fn what_recorded_runs_saw_is_compared_and_what_blocked_ones_saw_is_not() {
    let world =
        World::with(&with("volume: {max_change: 0.4}\nschema: {added: warn}\nvolume: {of: bytes, max_change: 9}"))
            .await;
    let said = async |run: &Run| {
        let all = verdicts(&world, run).await;
        all.into_iter()
            .filter_map(|line| Some(line.strip_prefix("revenue@v1 source receipts: ")?.to_owned()))
            .collect::<Vec<_>>()
    };
    let first = world.succeed(1, 0).await;
    let bytes = RECEIPTS.len();
    assert_eq!(
        said(&first).await,
        [
            "volume(rows): skipped: 3 rows in the interval; nothing is recorded yet to compare with".to_owned(),
            "schema: skipped: no recorded run saw columns to compare with".to_owned(),
            format!("volume(bytes): skipped: {bytes} bytes; nothing is recorded yet to compare with"),
        ]
    );

    receipts(&world, "shop,at,amount,till\na,2024-01-02T09:00:00Z,50,1\nb,2024-01-02T09:30:00Z,50,2\n");
    let second = world.succeed(2, 0).await;
    assert_eq!(
        said(&second).await[..2],
        [
            "volume(rows): passed: 2 rows in the interval where the interval before had 3: no larger change than 40 % \
             allowed (33.3 %)",
            "schema: failed: since the run recorded last `till` (bigint) was added",
        ]
    );

    // `amount` becomes a number with a fraction, `till` goes
    receipts(&world, "shop,at,amount\na,2024-01-03T09:00:00Z,0.5\n");
    for manual in 0..2 {
        let third = world.execute(3, manual).await;
        assert_eq!(third.state, RunState::Blocked);
        assert_eq!(
            said(&third).await[..2],
            [
                "volume(rows): failed: 1 row in the interval where the interval before had 2: a larger change than 40 % \
                 allowed (50 %)",
                "schema: failed: since the run recorded last `amount` was bigint and is double, `till` (bigint) was removed",
            ],
            "a blocked run is nothing to compare with"
        );
    }
}

#[tokio::test]
async fn files_are_as_old_as_the_newest_of_them() {
    let world = World::with(&with("freshness: {max_age: 400d, of: files}")).await;
    let file = fs::File::options().write(true).open(world.folder.path().join("receipts.csv")).unwrap();
    let written = |before: Duration| {
        // 2024-01-10, which is later than any instant of the world's clock, and so long before it
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_704_844_800) - before).unwrap();
    };
    written(Duration::ZERO);
    world.succeed(1, 0).await;
    written(Duration::from_secs(500 * 86_400));
    let run = world.execute(2, 0).await;
    assert_eq!(run.state, RunState::Blocked);
    let reason = run.reason.unwrap();
    assert!(
        reason.starts_with("source receipts: freshness: the newest file was written at 2022-08-28T00:00:00Z, "),
        "{reason}"
    );
    assert!(reason.ends_with(" ago; at most 400d are allowed"), "{reason}");
}
