//! The record, and what can be read of it afterwards.

use std::time::Duration;

use chrono::TimeDelta;
use indexmap::IndexMap;
use tidegate_registry::ids::SnapshotId;
use tidegate_registry::model::{Alike, Season};
use tidegate_registry::profile::{ColumnProfile, ViewProfile};
use tidegate_registry::run::{Cause, NewRun, RunState, SourceSeen, TaskKind, TaskOutput, TaskState, Verdict};
use tidegate_registry::store::{CheckFilter, StoreError, TaskEnd};
use tidegate_registry::time::{Instant, Interval};

use super::Fixture;
use super::world::{World, check, dag, day, interval, pins, staged, succeeded, view};

/// The whole way of a run: its views become visible together, with their ledger and snapshot.
pub async fn a_run_goes_from_pin_to_record(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let snapshot = world.publish(run).await;

    let (stored, tasks) = world.run(run).await;
    assert_eq!((stored.state, &stored.reason), (RunState::Succeeded, &None));
    assert_eq!((stored.started_at, stored.finished_at), (Some(day(10)), Some(day(10))));
    assert!(tasks.iter().all(|task| task.state == TaskState::Succeeded && task.attempts == 1), "{tasks:?}");
    assert_eq!(tasks.last().unwrap().output, Some(TaskOutput::Published(snapshot)));
    assert_eq!(tasks.last().unwrap().rows, Some(14));

    let states = world.store.view_states(&[view("a@v1"), view("b@v1"), view("nowhere@v1")]).await.unwrap();
    assert_eq!(states.len(), 2, "absent views are left out");
    for state in states.values() {
        assert_eq!((state.publish_number, state.publishing, state.records), (1, None, 1));
        assert_eq!((state.delta_version, state.online_generation), (11, Some(1)));
        assert_eq!(state.newest, Some(interval(0)));
    }
    let ledger = world.store.ledger(&view("b@v1"), None, 0).await.unwrap();
    assert_eq!(ledger.len(), 1);
    assert_eq!((ledger[0].interval, ledger[0].run, ledger[0].snapshot), (interval(0), run, snapshot));
    assert_eq!((ledger[0].rows, ledger[0].digest.len()), (7, 32));
    let views = [view("a@v1"), view("nowhere@v1")];
    let history = world.store.dag_history(&dag("daily"), &views).await.unwrap();
    assert!(history.is_published(&views[0], &interval(0)) && !history.is_published(&views[1], &interval(0)));
    assert_eq!(history.runs, [stored]);
    assert_eq!(history.ticks, world.store.ticks(&dag("daily"), day(0), day(99)).await.unwrap());

    let stored = world.store.snapshot(snapshot).await.unwrap();
    assert_eq!((stored.id, stored.run, stored.interval, stored.created_at), (snapshot, run, interval(0), day(10)));
    assert_eq!(stored.views.iter().map(|of| of.view.to_string()).collect::<Vec<_>>(), ["a@v1", "b@v1"]);
    let first = &stored.views[0];
    assert_eq!((first.delta_version, first.publish_number, first.online_generation), (11, 1, Some(1)));
    assert!(matches!(world.store.snapshot(SnapshotId::generate()).await, Err(StoreError::NotFound { .. })));
}

/// The worker that recorded may not have heard that it did.
pub async fn recording_twice_is_harmless(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    let intent = world.take(&claim).await;
    let record = World::record(SnapshotId::generate(), &intent);
    world.store.record(claim.token, record.clone(), day(10)).await.unwrap();
    let states = world.store.view_states(&claim.run.views).await.unwrap();
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    world.store.record(claim.token, record, day(11)).await.unwrap();
    world.end(claim.token, succeeded(TaskOutput::Published(snapshots[0].id))).await;
    assert_eq!(world.store.view_states(&claim.run.views).await.unwrap(), states);
    assert_eq!(world.store.snapshots(None, None, 0).await.unwrap(), snapshots);
    assert_eq!(world.run(run).await.0.finished_at, Some(day(10)));

    let other = World::record(SnapshotId::generate(), &intent);
    let refused = world.store.record(claim.token, other, day(11)).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
}

/// Nor with other numbers or views than the intent's.
pub async fn nothing_is_recorded_without_an_intent(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    let imagined = tidegate_registry::run::Intent { run, views: Default::default() };
    let record = World::record(SnapshotId::generate(), &imagined);
    assert!(matches!(world.store.record(claim.token, record, day(10)).await, Err(StoreError::Refused(_))));

    let intent = world.take(&claim).await;
    let right = World::record(SnapshotId::generate(), &intent);
    let mut other_number = right.clone();
    other_number.views[1].publish_number = 7;
    let mut fewer = right.clone();
    fewer.views.pop();
    for wrong in [other_number, fewer] {
        let refused = world.store.record(claim.token, wrong, day(10)).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    assert!(world.store.snapshots(None, None, 0).await.unwrap().is_empty());
    assert!(world.store.ledger(&view("a@v1"), None, 0).await.unwrap().is_empty());
    world.store.record(claim.token, right, day(10)).await.unwrap();
}

/// An id that another run has used is refused, and nothing is recorded.
pub async fn a_snapshot_id_names_one_run(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let first = world.admitted("other", 0).await;
    let snapshot = world.publish(first).await;
    let second = world.admitted("other", 1).await;
    let claim = world.claim_publish(second).await;
    let intent = world.take(&claim).await;
    let refused = world.store.record(claim.token, World::record(snapshot, &intent), day(10)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(world.store.ledger(&view("c@v1"), None, 0).await.unwrap().len(), 1);
    assert_eq!(world.state(second).await, RunState::Publishing);
}

/// Live as long as each of its views still shows it.
pub async fn a_snapshot_is_live_until_every_view_moves_on(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let statuses = async || -> Vec<(SnapshotId, String)> {
        let listed = world.store.snapshots(None, None, 0).await.unwrap();
        listed.into_iter().map(|snapshot| (snapshot.id, snapshot.status)).collect()
    };
    let new = World::admitted(&world, "daily", 2).await;
    let new = world.publish(new).await;
    assert_eq!(statuses().await, [(new, "live".to_owned())]);

    let old = World::admitted(&world, "daily", 1).await;
    let old = world.publish(old).await;
    assert_eq!(statuses().await, [(old, "superseded".to_owned()), (new, "live".to_owned())], "an older interval");

    // One of the two views is computed again: what the DAG's snapshot holds is no longer what is shown.
    let again = NewRun { views: vec![view("b@v1")], cause: Cause::Manual(1), ..World::new_run("daily", 2) };
    let again = world.create(again).await;
    world.store.run_admit(again).await.unwrap();
    let again = world.publish(again).await;
    let expected = [(again, "live".to_owned()), (old, "superseded".to_owned()), (new, "superseded".to_owned())];
    assert_eq!(statuses().await, expected);
    assert_eq!(world.store.snapshot(new).await.unwrap().status, "superseded");

    let other = World::admitted(&world, "other", 0).await;
    let other = world.publish(other).await;
    let ids = async |dag_name: Option<&str>, of: Option<&str>, limit| -> Vec<SnapshotId> {
        let (name, of) = (dag_name.map(dag), of.map(view));
        let listed = world.store.snapshots(name.as_ref(), of.as_ref(), limit).await.unwrap();
        listed.iter().map(|snapshot| snapshot.id).collect()
    };
    assert_eq!(ids(None, None, 0).await, [other, again, old, new]);
    assert_eq!(ids(None, None, 2).await, [other, again]);
    assert_eq!(ids(Some("daily"), None, 0).await, [again, old, new]);
    assert_eq!(ids(Some("daily"), Some("a@v1"), 0).await, [old, new]);
    assert_eq!(ids(None, Some("c@v1"), 1).await, [other]);
    assert_eq!(ids(Some("other"), Some("a@v1"), 0).await, []);
}

/// Of intervals that end at or before an instant; with a season those that begin as it does.
pub async fn what_was_recorded_is_found_by_interval_and_season(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let c = view("c@v1");
    let nulls = |nulls| IndexMap::from([("x".to_owned(), ColumnProfile { nulls, ..ColumnProfile::default() })]);
    let summary = |number| ViewProfile {
        rows: 7,
        bytes: 100,
        first_event: Some(day(number)),
        last_event: Some(day(number + 1)),
        ..ViewProfile::default()
    };
    let mut snapshots = Vec::new();
    for number in 0..9 {
        let run = world.admitted("other", number).await;
        let claim = world.claim_publish(run).await;
        let intent = world.take(&claim).await;
        let mut record = World::record(SnapshotId::generate(), &intent);
        record.views[&c].profile = serde_json::to_value(nulls(number as u64)).unwrap();
        record.views[&c].summary = summary(number);
        snapshots.push(record.snapshot);
        world.store.record(claim.token, record, day(20)).await.unwrap();
    }
    let find = async |before, season: Option<Season>, limit| {
        let season = season.map(|season| Alike { season, zone: "UTC".parse().unwrap() });
        let found = world.store.recorded(&c, before, season, limit).await.unwrap();
        found.iter().map(|recorded| recorded.interval).collect::<Vec<_>>()
    };
    assert_eq!(find(day(3), None, 2).await, [interval(2), interval(1)]);
    assert_eq!(find(day(8), Some(Season::Weekday), 9).await, [interval(1)], "the same day one week before");
    assert_eq!(find(day(2), Some(Season::Hour), 9).await, [interval(1), interval(0)]);
    assert!(find(day(2) + TimeDelta::hours(1), Some(Season::Hour), 9).await.is_empty());
    assert_eq!(find(day(9), Some(Season::WeekdayHour), 9).await, [interval(2)]);
    assert_eq!(world.store.recorded(&view("nowhere@v1"), day(9), None, 9).await.unwrap(), []);

    let third = world.store.recorded_in(snapshots[3], &c).await.unwrap();
    assert_eq!((third.interval, third.snapshot, third.rows, &third.profile), (interval(3), snapshots[3], 7, &nulls(3)));
    assert_eq!(third.summary, Some(summary(3)));
    assert_eq!(world.store.recorded(&c, day(4), None, 1).await.unwrap(), [third]);
    let missing = world.store.recorded_in(snapshots[3], &view("a@v1")).await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })), "{missing:?}");
}

/// Days begin at midnight in New York: at 05:00 UTC until Sunday, 10 March 2013, and at 04:00 UTC from then on.
pub async fn seasons_are_those_of_the_clock_on_the_wall(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let c = view("c@v1");
    let (sunday_3, monday_4, tuesday_5, change, tuesday_12) = (61, 62, 63, 68, 70);
    let midnight = |number: i64| day(number) + TimeDelta::hours(if number <= change { 5 } else { 4 });
    let later = |number: i64| midnight(number) + TimeDelta::hours(12);
    for number in sunday_3..tuesday_12 {
        for (start, end) in [(midnight(number), later(number)), (later(number), midnight(number + 1))] {
            let interval = Interval::new(start, end).unwrap();
            let run = world.create(NewRun { interval, ..World::new_run("other", number) }).await;
            world.store.run_admit(run).await.unwrap();
            world.publish(run).await;
        }
    }
    let find = async |before: Instant, season, zone: &str, limit| {
        let alike = Alike { season, zone: zone.parse().unwrap() };
        let found = world.store.recorded(&c, before, Some(alike), limit).await.unwrap();
        found.iter().map(|recorded| recorded.interval.start()).collect::<Vec<_>>()
    };
    let (york, utc) = ("America/New_York", "UTC");
    let tuesday = midnight(tuesday_12);
    assert_eq!(
        find(tuesday, Season::Hour, york, 4).await,
        [midnight(69), midnight(68), midnight(67), midnight(66)],
        "midnight is one hour on both sides of the change"
    );
    assert_eq!(find(tuesday, Season::Hour, york, 0).await.len(), 9, "all of them");
    assert_eq!(find(tuesday, Season::Hour, utc, 9).await, [midnight(69)], "which it is not in UTC");
    assert_eq!(find(tuesday, Season::WeekdayHour, york, 9).await, [midnight(tuesday_5)]);
    assert!(find(tuesday, Season::WeekdayHour, utc, 9).await.is_empty());
    assert_eq!(find(tuesday, Season::Weekday, york, 9).await, [later(tuesday_5), midnight(tuesday_5)]);
    assert_eq!(find(tuesday, Season::Weekday, york, 1).await, [later(tuesday_5)]);
    // Late on Monday there is early on Tuesday in UTC.
    let monday_evening = tuesday - TimeDelta::minutes(150);
    let mondays = [midnight(69), later(monday_4), midnight(monday_4)];
    assert_eq!(find(monday_evening, Season::Weekday, york, 9).await, mondays);
    assert_eq!(find(monday_evening, Season::Weekday, utc, 9).await, [later(tuesday_5), midnight(tuesday_5)]);
}

/// By interval, or by when it was recorded: an interval that is computed again comes last, and counts as computed last.
pub async fn what_a_run_read_is_found_by_interval_and_by_when_it_was_recorded(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let c = view("c@v1");
    let publish = async |run, files| {
        world.store.run_admit(run).await.unwrap();
        let claim = world.claim_publish(run).await;
        let intent = world.take(&claim).await;
        let mut record = World::record(SnapshotId::generate(), &intent);
        let seen = SourceSeen { files, ..SourceSeen::default() };
        record.manifest.seen = IndexMap::from([("flights".to_owned(), seen)]);
        world.store.record(claim.token, record, day(20)).await.unwrap();
    };
    let find = async |before| {
        let found = world.store.manifest(&c, before).await.unwrap();
        found.map(|pins| pins.seen["flights"].files)
    };
    assert_eq!((find(None).await, find(Some(day(9))).await), (None, None));
    for number in [1, 3, 2] {
        publish(world.create(World::new_run("other", number)).await, number as u64).await;
    }
    assert_eq!(find(None).await, Some(2));
    assert_eq!(find(Some(day(4))).await, Some(3));
    assert_eq!(find(Some(day(3))).await, Some(2));
    assert_eq!(find(Some(day(1))).await, None);
    publish(world.create(NewRun { cause: Cause::Manual(1), ..World::new_run("other", 1) }).await, 7).await;
    assert_eq!((find(None).await, find(Some(day(2))).await, find(Some(day(9))).await), (Some(7), Some(7), Some(3)));
}

/// With end ≤ the bound; one that was computed again stands there once, as computed last.
pub async fn the_ledger_lists_newest_intervals_first(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    for number in [1, 3, 2] {
        let run = world.admitted("other", number).await;
        world.publish(run).await;
    }
    let again = world.create(NewRun { cause: Cause::Manual(1), ..World::new_run("other", 2) }).await;
    world.store.run_admit(again).await.unwrap();
    let snapshot = world.publish(again).await;
    let list = async |until, limit| {
        let entries = world.store.ledger(&view("c@v1"), until, limit).await.unwrap();
        entries.iter().map(|entry| entry.interval).collect::<Vec<_>>()
    };
    assert_eq!(list(None, 0).await, [interval(3), interval(2), interval(1)]);
    assert_eq!(list(None, 1).await, [interval(3)]);
    assert_eq!(list(Some(interval(2).end()), 0).await, [interval(2), interval(1)]);
    assert_eq!(list(Some(interval(2).end()), 1).await, [interval(2)]);
    assert_eq!(list(Some(day(0)), 0).await, []);
    let entry = world.store.ledger(&view("c@v1"), Some(interval(2).end()), 1).await.unwrap().remove(0);
    assert_eq!((entry.run, entry.snapshot), (again, snapshot));
    assert!(world.store.ledger(&view("a@v1"), None, 0).await.unwrap().is_empty());
}

/// As staged at first, as judged from the intent on; those of runs that came to nothing too.
pub async fn verdicts_are_listed_newest_run_first(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let good = world.admitted("daily", 0).await;
    let bad = world.admitted("other", 1).await;
    let claim = world.claim_publish(good).await;
    let list = async |filter: CheckFilter| -> Vec<String> {
        let rows = world.store.checks(&filter).await.unwrap();
        rows.iter().map(|row| format!("{} {} {}", row.view, row.result.check, row.result.verdict)).collect()
    };
    let pending = CheckFilter { verdict: Some(Verdict::Pending), ..CheckFilter::default() };
    assert_eq!(list(pending.clone()).await, ["a@v1 row_count pending", "b@v1 row_count pending"]);
    world.take(&claim).await;
    assert!(list(pending).await.is_empty(), "judged with the intent");

    let pin = world.claim(bad).await;
    world.end(pin.token, succeeded(pins())).await;
    let claim = world.claim(bad).await;
    let mut failing = check("range", Verdict::Failed);
    failing.samples = vec![serde_json::json!({ "carrier": "AA" })];
    let output = Some(staged(3, vec![check("not_null", Verdict::Passed), failing.clone()]));
    world.end(claim.token, TaskEnd::Blocked { output, reason: "range".to_owned() }).await;

    let all = CheckFilter::default();
    let expected = [
        "c@v1 not_null passed",
        "c@v1 range failed",
        "a@v1 not_null passed",
        "a@v1 row_count passed",
        "b@v1 not_null passed",
        "b@v1 row_count passed",
    ];
    assert_eq!(list(all.clone()).await, expected);
    assert_eq!(list(CheckFilter { limit: 2, ..all.clone() }).await, expected[..2]);
    assert_eq!(list(CheckFilter { run: Some(bad), ..all.clone() }).await, expected[..2]);
    assert_eq!(list(CheckFilter { view: Some(view("b@v1")), ..all.clone() }).await, expected[4..]);
    let rows = world.store.checks(&CheckFilter { verdict: Some(Verdict::Failed), ..all }).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].run, &rows[0].dag, rows[0].interval), (bad, &dag("other"), interval(1)));
    assert_eq!(rows[0].result, failing);
}

/// A check against history is judged by the publish task, which then leaves the verdicts.
pub async fn verdicts_against_history_are_kept_when_they_stop_a_run(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("other", 0).await;
    let claim = world.claim_publish(run).await;
    let judged = vec![check("not_null", Verdict::Passed), check("row_count", Verdict::Failed)];
    let output = TaskOutput::Judged([(view("c@v1"), judged.clone())].into_iter().collect());
    let end = TaskEnd::Blocked { output: Some(output.clone()), reason: "row_count".to_owned() };
    world.end(claim.token, end).await;
    let rows = world.store.checks(&CheckFilter { run: Some(run), ..CheckFilter::default() }).await.unwrap();
    assert_eq!(rows.into_iter().map(|row| row.result).collect::<Vec<_>>(), judged);
    let task = world.task(run, "publish").await;
    assert_eq!((task.state, task.output), (TaskState::Blocked, Some(output)));
    assert_eq!(world.state(run).await, RunState::Blocked);
    assert_eq!(world.try_claim("w1", Duration::ZERO, &[]).await, None);
}

/// A check of a source is judged by the pin task, before any view is computed.
pub async fn verdicts_on_sources_are_kept_when_they_stop_a_run(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let run = world.admitted("other", 0).await;
    let claim = world.claim(run).await;
    assert_eq!((claim.run.id, &claim.kind), (run, &TaskKind::Pin));
    let judged = vec![check("source flights: freshness", Verdict::Failed)];
    let output = TaskOutput::Judged([(view("c@v1"), judged.clone())].into_iter().collect());
    let end = TaskEnd::Blocked { output: Some(output.clone()), reason: "freshness".to_owned() };
    world.end(claim.token, end).await;
    let rows = world.store.checks(&CheckFilter { run: Some(run), ..CheckFilter::default() }).await.unwrap();
    assert_eq!(rows.into_iter().map(|row| row.result).collect::<Vec<_>>(), judged);
    let task = world.task(run, "pin").await;
    assert_eq!((task.state, task.output), (TaskState::Blocked, Some(output)));
    assert_eq!(world.state(run).await, RunState::Blocked);
    assert_eq!(world.try_claim("w1", Duration::ZERO, &[]).await, None);
}
