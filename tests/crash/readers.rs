//! Readers at work during runs: what they see is always whole.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::prelude::SessionContext;
use tidegate_registry::ids::ViewId;
use tidegate_worker::entity_key;
use tidegate_worker::lake::Lake;

use crate::place::Backend;
use crate::world::{BAD_DAY, Running, VIEWS, World, block_on, told};

/// Enough for several rows to be on their way at any time.
const SHOPS: u32 = 40;
const DAYS: u32 = 6;
/// What the second computation of each day adds to its label.
const AGAIN: i64 = 100;

/// Runs dawdle wherever something could be seen by halves.
const DAWDLING: &str = "stage.after=sleep(10);lake.commit.loaded=sleep(10);lake.commit.landed=sleep(15);\
     commit.after=sleep(15);publish.before=sleep(15);publish.between=sleep(15);publish.written=sleep(15);\
     publish.after=sleep(15);cutover.before=sleep(20);cutover.after=sleep(20);record.before=sleep(20)";

/// So do restores.
const RESTORE_DAWDLING: &str = "restore.commit.between=sleep(20);restore.commit.after=sleep(30);restore.publish.before=sleep(20);\
     restore.publish.after=sleep(30);restore.cutover.before=sleep(40);restore.cutover.after=sleep(40);\
     restore.record.before=sleep(40)";

/// Views that are online, of which all rows of a run carry the same label.
const ONLINE: [&str; 3] = ["revenue@v1", "ranking@v1", "last_receipt@v1"];

#[test]
fn readers_never_see_a_run_by_halves() {
    whole_to_readers(&Backend::Embedded);
}

#[test]
fn readers_of_servers_never_see_a_run_by_halves() {
    whole_to_readers(&Backend::shared());
}

#[test]
fn readers_see_the_old_or_the_new_of_a_restore() {
    old_or_new_to_readers(&Backend::Embedded);
}

#[test]
fn readers_of_servers_see_the_old_or_the_new_of_a_restore() {
    old_or_new_to_readers(&Backend::shared());
}

fn old_or_new_to_readers(backend: &Backend) {
    let world = World::applied(backend);
    world.sell(SHOPS, DAYS, 0);
    let computed = world.run(&["backfill", "daily", "--from", "2024-01-01", "--to", "2024-01-07"]);
    assert_eq!(computed.status.code(), Some(1), "one run is blocked: {}", told(&computed));
    let mut snapshots = block_on(async { world.registry().await.snapshots(None, None, 0).await.unwrap() });
    snapshots.sort_by_key(|snapshot| snapshot.interval.start());
    let (first, last) = (snapshots[0].id.to_string(), snapshots[snapshots.len() - 1].id.to_string());
    let restore = |to: &str| -> Vec<String> {
        ["restore", "--dag", "daily", "--to", to, "--reason", "incident", "--yes"].map(str::to_owned).into()
    };
    let watched = |to: &str, fail_points: &str| {
        let mut seen = Seen::default();
        let command = restore(to);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        watch_at(&world, &command, fail_points, 0, &mut seen);
        seen.online
    };
    // Back by generations that are kept, and forth again; then with one that has to be written.
    assert_eq!(watched(&first, RESTORE_DAWDLING), [1, 6].into());
    assert_eq!(watched(&last, RESTORE_DAWDLING), [1, 6].into());
    block_on(async {
        let online = world.online().await;
        for view in ONLINE {
            online.prune(&view.parse().unwrap(), 0, std::time::Duration::ZERO, 0).await.unwrap();
        }
        online.close().await;
    });
    assert_eq!(watched(&first, RESTORE_DAWDLING), [1, 6].into());
}

fn whole_to_readers(backend: &Backend) {
    let world = World::applied(backend);
    let mut seen = Seen::default();
    world.sell(SHOPS, DAYS, 0);
    watch(&world, &["backfill", "daily", "--from", "2024-01-01", "--to", "2024-01-07"], &mut seen);
    // Once more over what is there: slices and generations are replaced, and neither old nor new rows may be missed.
    // And once more as long as we looked too seldom to prove anything: each time something new is live.
    for again in 1..20 {
        world.sell(SHOPS, DAYS, again * u32::try_from(AGAIN).unwrap());
        watch(
            &world,
            &["backfill", "daily", "--from", "2024-01-01", "--to", "2024-01-07", "--reprocess", "all"],
            &mut seen,
        );
        if seen.online.len() >= 5 && seen.looks > 100 {
            break;
        }
    }
    let days: BTreeSet<i64> = [1, 2, 4, 5, 6].into();
    assert_eq!(seen.lake["revenue@v1"].iter().map(|label| label % AGAIN).collect::<BTreeSet<_>>(), days, "{seen:?}");
    assert!(seen.lake["revenue@v1"].iter().any(|label| *label > AGAIN), "{seen:?}");
    assert!(seen.online.len() >= 5 && seen.looks > 100, "{seen:?}");
}

/// What readers have seen.
#[derive(Debug, Default)]
struct Seen {
    /// Labels, by view.
    lake: BTreeMap<&'static str, BTreeSet<i64>>,
    /// Labels that all views had at once.
    online: BTreeSet<i64>,
    looks: u32,
}

/// Reads all there is, again and again, until the command has ended.
fn watch(world: &World, command: &[&str], seen: &mut Seen) {
    // One run is blocked.
    watch_at(world, command, DAWDLING, 1, seen);
}

fn watch_at(world: &World, command: &[&str], fail_points: &str, code: i32, seen: &mut Seen) {
    block_on(async {
        let (lake, online) = (world.lake(), world.online().await);
        let keys: Vec<(ViewId, String)> = ONLINE
            .iter()
            .flat_map(|view| (0..SHOPS).map(|shop| (view.parse().unwrap(), entity_key::join(&[&World::shop(shop)]))))
            .collect();
        let now = "2024-02-01T00:00:00Z".parse().unwrap();
        // Once before it begins, and once after it has ended.
        let mut running = None;
        loop {
            let is_alive = running.as_mut().is_none_or(Running::is_alive);
            for view in VIEWS {
                for label in whole_days(&lake, view).await {
                    seen.lake.entry(view).or_default().insert(label);
                }
                let rows = online.get_many(&keys, now).await.unwrap();
                let labels: BTreeSet<Option<String>> = rows
                    .into_iter()
                    .map(|row| row.and_then(|row| row.features.into_iter().find(|(name, _)| name == "day")))
                    .map(|day| day.map(|(_, label)| label))
                    .collect();
                assert_eq!(labels.len(), 1, "half a run, or two runs, are online: {labels:?}");
                seen.online.extend(labels.into_iter().flatten().map(|label| label.parse::<i64>().unwrap()));
                seen.looks += 1;
            }
            if !is_alive {
                break;
            }
            running.get_or_insert_with(|| world.start(command, fail_points));
        }
        let done = running.unwrap().finish();
        assert_eq!(done.status.code(), Some(code), "{}", told(&done));
        online.close().await;
    });
}

/// The labels in the head of a view's table, after making sure that every day in it is there with all its rows, of one run.
async fn whole_days(lake: &Lake, view: &str) -> Vec<i64> {
    let ctx = SessionContext::new();
    let table = lake.load(&view.parse().unwrap(), None).await.unwrap();
    table.update_datafusion_session(&ctx.state()).unwrap();
    ctx.register_table("t", table.table_provider().await.unwrap()).unwrap();
    let sql = "SELECT CAST(extract(day FROM interval_start) AS BIGINT), count(*), count(DISTINCT shop), \
               count(DISTINCT run_id), min(day), max(day) FROM t GROUP BY interval_start";
    let mut labels = Vec::new();
    for batch in ctx.sql(sql).await.unwrap().collect().await.unwrap() {
        let columns: Vec<_> = batch.columns().iter().map(AsArray::as_primitive::<Int64Type>).collect();
        for row in 0..batch.num_rows() {
            let found: Vec<i64> = columns.iter().map(|column| column.value(row)).collect();
            let [day, rows, shops, runs, lowest, highest] = found[..] else { unreachable!("six columns") };
            assert_ne!(day, i64::from(BAD_DAY), "rows of a blocked run are in `{view}`");
            assert_eq!(
                (rows, shops, runs),
                (i64::from(SHOPS), i64::from(SHOPS), 1),
                "day {day} of `{view}` is not whole"
            );
            // `lifetime` takes the highest label of all days before.
            assert!(
                lowest == highest && (lowest % AGAIN == day || view == "lifetime@v1"),
                "`{view}` mixes runs: {found:?}"
            );
            labels.push(lowest);
        }
    }
    labels
}
