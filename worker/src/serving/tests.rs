//! Runs of a small project over a real Redis: changed in place, lost and refilled, compared and repaired.

use std::sync::Arc;
use std::time::Duration;

use tidegate_registry::definitions::settings::RedisLocation;
use tidegate_registry::ids::ViewId;
use tidegate_registry::run::RunState;
use tidegate_registry::time::FixedClock;
use tidegate_servers::{Port, Redis};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::online::{RedisOnline, SeveralOnline, SqliteOnline};
use crate::tests::{DEFINITIONS, World, at, features};

/// The state of shops, some of which come, change and go.
pub(super) const STOCK: &str = "\
owners: [{name: sales, primary: sales@example.com}]
entities:
  - {name: shop, keys: [{name: shop, type: string}]}
sources:
  - {name: stock, csv: stock.csv, event_time: at}
feature_views:
  - name: level
    entity: shop
    owner: sales
    description: What the shops had last
    sql: |
      SELECT shop, sum(amount) AS amount, max(note) AS note
      FROM stock WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features:
      - {name: amount, type: bigint, description: pieces}
      - {name: note, type: string, description: remark}
    online: {strategy: upsert}
dags:
  - name: daily
    owner: sales
    schedule: {cron: '0 0 * * *', timezone: UTC, start: 2024-01-01}
    views: [level]
    retries: {max: 0, backoff: 1s}
";

pub(super) const STOCK_ROWS: &str = "shop,at,amount,note
same,2024-01-01T10:00:00Z,1,x
changed,2024-01-01T10:00:00Z,1,x
lost,2024-01-01T10:00:00Z,1,x
gone,2024-01-01T10:00:00Z,1,x
same,2024-01-02T10:00:00Z,1,x
changed,2024-01-02T10:00:00Z,2,x
lost,2024-01-02T10:00:00Z,1,
new,2024-01-02T10:00:00Z,5,y
same,2024-01-03T10:00:00Z,1,x
gone,2024-01-03T10:00:00Z,1,z
";

pub(super) const NOW: &str = "2024-01-05T00:00:00Z";

async fn redis(server: &Redis) -> Arc<dyn OnlineStore> {
    let location = RedisLocation::parse(&server.url()).unwrap();
    Arc::new(RedisOnline::open(&location, &"shop".parse().unwrap(), true).await.unwrap())
}

pub(super) fn serving(world: &World, folder: &str) -> Serving {
    Serving {
        store: Arc::<tidegate_store::SqliteStore>::clone(&world.store),
        clock: Arc::new(FixedClock(at(NOW))),
        lake: world.lake.clone(),
        online: Arc::clone(&world.online),
        engine: Arc::new(Engine::new(256 << 20, &world.folder.path().join(folder)).unwrap()),
        owner: format!("test {folder}"),
    }
}

pub(super) fn view(name: &str) -> ViewId {
    format!("{name}@v1").parse().unwrap()
}

async fn changes_in_place(online: Option<Arc<dyn OnlineStore>>) {
    let world = World::over(STOCK, online).await;
    std::fs::write(world.folder.path().join("stock.csv"), STOCK_ROWS).unwrap();
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    let live = world.online.live(&view("level")).await.unwrap().unwrap();
    assert_eq!((live.generation, live.publish_number), (1, 2), "changed in place");
    let level = async |shop: &str| world.online("level@v1", shop, NOW).await;
    assert_eq!(level("same").await, features(&[("amount", "1"), ("note", "x")]));
    assert_eq!(level("changed").await, features(&[("amount", "2"), ("note", "x")]));
    assert_eq!(level("lost").await, features(&[("amount", "1")]), "a value that became null is gone");
    assert_eq!(level("new").await, features(&[("amount", "5"), ("note", "y")]));
    assert_eq!(level("gone").await, None);
    assert_eq!(world.online.count(&view("level"), 1).await.unwrap(), 4);
    // A row without a time of its own keeps the time since when it is so.
    let same = world.online.get(&view("level"), "same", at(NOW)).await.unwrap().unwrap();
    assert_eq!(same.event_timestamp, at("2024-01-02T00:00:00Z"));
    world.succeed(3, 0).await;
    assert_eq!(level("gone").await, features(&[("amount", "1"), ("note", "z")]), "back again");
    assert_eq!(level("new").await, None);
    assert_eq!(world.online.count(&view("level"), 1).await.unwrap(), 2);
    let serving = serving(&world, "audit");
    let audit = serving.audit(&view("level"), AuditOptions::default()).await.unwrap();
    assert_eq!((audit.entities, audit.compared, audit.differing()), (2, 2, 0), "{audit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_changes_what_differs_in_redis() {
    let server = Redis::start().unwrap();
    changes_in_place(Some(redis(&server).await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_changes_what_differs_in_sqlite() {
    changes_in_place(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_with_nothing_to_start_from_writes_a_whole_generation() {
    let mut server = Redis::start().unwrap();
    let world = World::over(STOCK, Some(redis(&server).await)).await;
    std::fs::write(world.folder.path().join("stock.csv"), STOCK_ROWS).unwrap();
    world.succeed(1, 0).await;
    server.restart().unwrap();
    world.succeed(2, 0).await;
    let live = world.online.live(&view("level")).await.unwrap().unwrap();
    assert_eq!((live.generation, live.publish_number), (2, 2));
    assert_eq!(world.online("level@v1", "changed", NOW).await, features(&[("amount", "2"), ("note", "x")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_came_back_empty_is_filled_again_within_one_period() {
    let mut server = Redis::start().unwrap();
    let world = World::over(DEFINITIONS, Some(redis(&server).await)).await;
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    world.succeed(3, 0).await;
    let before = world.online("last_receipt@v1", "a", NOW).await;
    let live = world.online.live(&view("revenue")).await.unwrap();
    server.restart().unwrap();
    assert_eq!(world.online.live(&view("revenue")).await.unwrap(), None, "it came back empty");
    let period = Duration::from_millis(200);
    let World { worker, online, store, .. } = world;
    let worker = worker.reconcile_every(Some(period));
    let cancel = CancellationToken::new();
    let mut working = tokio::task::JoinSet::new();
    let stop = cancel.clone();
    working.spawn(async move { worker.run(stop).await });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let views = ["revenue", "ranking", "last_receipt"].map(view);
    for view in &views {
        while online.live(view).await.unwrap().is_none() {
            assert!(tokio::time::Instant::now() < deadline, "`{view}` was not filled again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    cancel.cancel();
    working.join_all().await;
    assert_eq!(online.live(&view("revenue")).await.unwrap(), live, "the same generation, number and snapshot");
    let row = online.get(&view("last_receipt"), "a", at("2024-01-04T00:00:00Z")).await.unwrap();
    assert!(row.is_some(), "{before:?}");
    drop(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_a_redis_that_lost_its_primary() {
    let server = Redis::start().unwrap();
    // Without retries of its own a publication waits for half a minute.
    let world = World::over(&DEFINITIONS.replace("{max: 0,", "{max: 5,"), Some(redis(&server).await)).await;
    world.succeed(1, 0).await;
    server.cli(&["config", "set", "replica-serve-stale-data", "no"]).unwrap();
    let nobody = Port::reserve().unwrap();
    server.cli(&["replicaof", "127.0.0.1", &nobody.number().to_string()]).unwrap();
    let id = world.plan(2, 0).await;
    let (ids, stop) = ([id], CancellationToken::new());
    let heal = async {
        let told = loop {
            let (_, tasks) = world.store.run(id).await.unwrap();
            if let Some(error) = tasks.iter().find_map(|task| task.error.clone()) {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        server.cli(&["replicaof", "no", "one"]).unwrap();
        told
    };
    let (done, told) = tokio::join!(world.worker.run_only(&ids, stop), heal);
    done.unwrap();
    assert!(told.contains("READONLY") || told.contains("MASTERDOWN"), "{told}");
    let (run, _) = world.store.run(id).await.unwrap();
    assert_eq!(run.state, RunState::Succeeded, "{:?}", run.reason);
    assert_eq!(world.online("revenue@v1", "a", NOW).await, features(&[("total", "50.0"), ("receipts", "1")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_finds_what_differs_and_repairs_only_that() {
    let server = Redis::start().unwrap();
    let world = World::over(DEFINITIONS, Some(redis(&server).await)).await;
    world.succeed(1, 0).await;
    let serving = serving(&world, "audit");
    let revenue = view("revenue");
    let clean = serving.audit(&revenue, AuditOptions::default()).await.unwrap();
    assert_eq!((clean.entities, clean.compared, clean.differing()), (2, 2, 0));
    let key = |shop: &str| format!("tg:shop:revenue@v1:g1:{shop}");
    server.cli(&["del", &key("a")]).unwrap();
    server.cli(&["hset", &key("b"), "total", "71.0"]).unwrap();
    let found = serving.audit(&revenue, AuditOptions::default()).await.unwrap();
    assert_eq!((found.missing, found.different, found.extra, found.repaired), (1, 1, 0, false), "{found:?}");
    assert!(found.examples.contains(&"`b` differs".to_owned()), "{found:?}");
    let repaired = serving.audit(&revenue, AuditOptions { sample: None, repair: true }).await.unwrap();
    assert_eq!((repaired.differing(), repaired.repaired), (2, true));
    assert_eq!(serving.audit(&revenue, AuditOptions::default()).await.unwrap().differing(), 0);
    assert_eq!(world.online("revenue@v1", "b", NOW).await, features(&[("total", "70.0"), ("receipts", "1")]));
    let never = serving.audit(&view("lifetime"), AuditOptions::default()).await.unwrap();
    assert_eq!(never.snapshot, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_lost_from_what_is_live_come_back_and_rebuilding_what_is_whole_does_nothing() {
    let server = Redis::start().unwrap();
    let world = World::over(DEFINITIONS, Some(redis(&server).await)).await;
    world.succeed(1, 0).await;
    let serving = serving(&world, "rebuild");
    assert_eq!(serving.rebuild(&view("revenue")).await.unwrap(), Rebuilt::Whole);
    assert_eq!(serving.rebuild(&view("lifetime")).await.unwrap(), Rebuilt::NeverPublished);
    server.cli(&["del", "tg:shop:revenue@v1:g1:a"]).unwrap();
    let rebuilt = serving.rebuild(&view("revenue")).await.unwrap();
    assert_eq!(rebuilt, Rebuilt::Filled { lost: "1 of 2 entities are there".to_owned(), rows: 2 });
    assert_eq!(world.online("revenue@v1", "a", NOW).await, features(&[("total", "30.0"), ("receipts", "2")]));
    assert_eq!(serving.rebuild(&view("revenue")).await.unwrap(), Rebuilt::Whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_process_fills_a_view_at_a_time() {
    let mut server = Redis::start().unwrap();
    let world = World::over(DEFINITIONS, Some(redis(&server).await)).await;
    world.succeed(1, 0).await;
    server.restart().unwrap();
    let (one, other) = (serving(&world, "one"), serving(&world, "other"));
    assert!(world.online.claim_care(&view("revenue"), &other.owner, Duration::from_secs(60)).await.unwrap());
    assert_eq!(one.rebuild(&view("revenue")).await.unwrap(), Rebuilt::Busy);
    assert!(matches!(other.rebuild(&view("revenue")).await.unwrap(), Rebuilt::Filled { rows: 2, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_missed_a_publication_is_brought_up_to_date() {
    let mut server = Redis::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sqlite: Arc<dyn OnlineStore> = Arc::new(SqliteOnline::open(&folder.path().join("online.db")).await.unwrap());
    let standby = redis(&server).await;
    let both = SeveralOnline::new(vec![(sqlite, true), (Arc::clone(&standby), false)]).unwrap();
    let world = World::over(DEFINITIONS, Some(Arc::new(both))).await;
    world.succeed(1, 0).await;
    server.kill();
    world.succeed(2, 0).await;
    server.restart().unwrap();
    for serving in serving(&world, "standby").of_each_member() {
        serving.reconcile_once().await.unwrap();
    }
    let live = standby.live(&view("revenue")).await.unwrap().unwrap();
    assert_eq!(Some(live), world.online.live(&view("revenue")).await.unwrap());
    let row = standby.get(&view("revenue"), "a", at(NOW)).await.unwrap().unwrap();
    assert_eq!(Some(row.features), features(&[("total", "50.0"), ("receipts", "1")]));
}
