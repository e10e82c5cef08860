//! Whole runs whose lake and source lie in an object store: the same rows as on folders, whatever happens on the way.

use std::sync::Arc;

use futures::stream;
use tidegate_servers::{Fault, Mode, S3Endpoint, S3Fake};

use super::*;
use crate::objects::Patience;
use crate::objects::testing::{self, BUCKET};

/// A world with everything in a place of its own in the store.
async fn in_store(endpoint: &S3Endpoint, patience: Patience, definitions: &str) -> World {
    World::at(Place::in_store(endpoint, patience), definitions).await
}

/// All rows of all tables, but for the names of runs.
async fn everything(world: &World) -> Vec<String> {
    let mut tables = Vec::new();
    for view in world.project.views.keys() {
        let rows = world.lake(&view.to_string(), "SELECT * EXCEPT (run_id) FROM t ORDER BY interval_start, shop").await;
        tables.push(format!("{view}\n{rows}"));
    }
    let snapshots = world.store.snapshots(None, None, 0).await.unwrap();
    tables.extend(
        snapshots.iter().flat_map(|snapshot| {
            snapshot.views.iter().map(|view| format!("{} {} {}", view.view, view.rows, view.digest))
        }),
    );
    tables
}

async fn three_days(world: &World) -> Vec<String> {
    for day in 1..=3 {
        world.succeed(day, 0).await;
    }
    everything(world).await
}

#[tokio::test]
async fn runs_over_an_object_store_give_the_same_rows_as_over_a_folder() {
    let expected = three_days(&World::new().await).await;
    let fake = testing::fake();
    fake.set_page_size(3);
    for endpoint in [fake.endpoint(), testing::moto()] {
        let world = in_store(&endpoint, Patience::default(), DEFINITIONS).await;
        assert_eq!(three_days(&world).await, expected, "{}", endpoint.url);
        let now = "2024-01-04T00:00:00Z";
        assert_eq!(world.online("last_receipt@v1", "a", now).await, features(&[("largest", "50")]));
        // the fourth day's receipts are refused by a check
        assert_eq!(world.execute(4, 0).await.state, RunState::Blocked);
        assert_eq!(everything(&world).await, expected);
    }
    assert_eq!((named_files(&fake), fake.open_uploads()), (parquet_files(&fake), 0), "nothing of the refused is left");
}

#[tokio::test]
async fn a_source_in_a_store_that_changes_during_a_run_starts_it_again() {
    let fake = Arc::new(testing::fake());
    let world = in_store(&fake.endpoint(), Patience::default(), DEFINITIONS).await;
    let id = world.plan(1, 0).await;
    let key = fake.keys(BUCKET, "").into_iter().find(|key| key.ends_with("receipts.csv")).unwrap();
    let store = Arc::clone(&fake);
    let worker = world.worker_with_change(move || {
        store.put(BUCKET, &key, RECEIPTS.replace("11:00:00Z,20", "11:00:00Z,25").as_bytes());
    });
    worker.run_only(&[id], CancellationToken::new()).await.unwrap();
    let (run, _) = world.store.run(id).await.unwrap();
    assert_eq!((run.state, run.restarts), (RunState::Succeeded, 1), "{:?}", run.reason);
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "35.0"), ("receipts", "2")]));
}

/// Data files in the store.
fn parquet_files(fake: &S3Fake) -> usize {
    fake.keys(BUCKET, "").iter().filter(|key| key.ends_with(".parquet")).count()
}

/// Data files that some log names; each entry that adds one counts, so one that is added twice shows.
fn named_files(fake: &S3Fake) -> usize {
    let logs = fake.keys(BUCKET, "").into_iter().filter(|key| key.contains("_delta_log/") && key.ends_with(".json"));
    logs.map(|key| String::from_utf8(fake.get(BUCKET, &key).unwrap()).unwrap().matches("{\"add\":").count()).sum()
}

fn log_entries(fake: &S3Fake) -> usize {
    fake.keys(BUCKET, "").iter().filter(|key| key.contains("_delta_log/") && key.ends_with(".json")).count()
}

/// SQLite's method: the fault at the first request of a run, at the second, and so on until a run meets none; and each
/// time the end is that of an undisturbed run. The modes take turns over the requests.
#[tokio::test]
async fn a_run_ends_the_same_whichever_request_goes_wrong() {
    let modes = [
        Mode::ApplyThenRefuse(500),
        Mode::CutBody(10),
        Mode::ApplyThenCut,
        Mode::Refuse(503),
        Mode::Refuse(403),
        Mode::ApplyThenHang(Duration::from_secs(60)),
        Mode::Refuse(409),
    ];
    let all = "views: [revenue, ranking, lifetime, last_receipt]";
    let definitions = DEFINITIONS.replace("{max: 0,", "{max: 5,").replace(all, "views: [revenue, lifetime]");
    let (undisturbed, requests) = disturbed(&definitions, None).await;
    assert!(requests > 20, "a run makes {requests} requests");
    let cases = (0..requests + 2).zip(modes.into_iter().cycle()).map(|(n, mode)| {
        let (definitions, undisturbed) = (&definitions, &undisturbed);
        async move {
            let (end, struck) = disturbed(definitions, Some(Fault::new(mode).after(n).times(1))).await;
            assert_eq!(end, *undisturbed, "{mode:?} at request {n}");
            struck
        }
    });
    // Some of them wait for time-outs: so many at a time.
    let struck: Vec<u64> =
        futures::StreamExt::collect(futures::StreamExt::buffer_unordered(stream::iter(cases), 8)).await;
    assert!(struck.iter().sum::<u64>() >= requests - 2, "nearly every fault was met: {struck:?}");
}

/// How a run ends: all rows, the entries of all logs, how often they add a file.
type End = (Vec<String>, usize, usize);

/// A run of one day that meets `fault`; with how many requests it made, or how often the fault struck.
async fn disturbed(definitions: &str, fault: Option<Fault>) -> (End, u64) {
    let fake = testing::fake();
    let counts_requests = fault.is_none();
    // What is counted is not to be asked twice.
    let patience = if counts_requests { Patience::default() } else { testing::short() };
    let world = in_store(&fake.endpoint(), patience, definitions).await;
    let before = fake.requests();
    if let Some(fault) = fault {
        fake.inject(fault);
    }
    world.succeed(1, 0).await;
    let count = if counts_requests { fake.requests() - before } else { fake.strikes() };
    fake.heal();
    ((everything(&world).await, log_entries(&fake), named_files(&fake)), count)
}
