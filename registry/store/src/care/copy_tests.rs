//! A registry that outgrows one machine moves to PostgreSQL by a backup, and may come back the same way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tidegate_registry::care::{Care, Pin, TableRows};
use tidegate_registry::firing::NewFiring;
use tidegate_registry::ids::SnapshotId;
use tidegate_registry::model::Trigger;
use tidegate_registry::notice::Subscription;
use tidegate_registry::restore::BadMark;
use tidegate_registry::restore::plan::Target;
use tidegate_registry::run::{RunState, Verdict};
use tidegate_registry::store::{PlanStep, RunFilter, Store, TaskEnd};
use tidegate_registry::switches::{Off, Serve, SwitchChange};
use tidegate_servers::Postgres;

use super::{OF_PROCESSES, TABLES};
use crate::conformance::approvals::approval;
use crate::conformance::datasets::dataset;
use crate::conformance::drills::{drill, end};
use crate::conformance::restoring::restored;
use crate::conformance::world::{
    LONG, World, beat, check, dag, day, failed, pins, placed, pool_row, staged, succeeded, view_row,
};
use crate::db::{Db, commit};
use crate::sql::{Builder, Row, query};
use crate::{PostgresStore, SqlStore, SqliteStore};

#[test]
fn every_table_is_copied() {
    let made = include_str!("../../schema.sql").lines().filter_map(|line| line.strip_prefix("CREATE TABLE "));
    let mut made: Vec<&str> = made.filter_map(|rest| rest.split([' ', '(']).next()).collect();
    made.retain(|table| *table != "schema_steps");
    made.sort_unstable();
    let mut copied: Vec<&str> = TABLES.iter().map(|(table, _)| *table).collect();
    copied.sort_unstable();
    assert_eq!(copied, made, "a table that a backup would lose");
}

/// Something in every table: runs in every kind of state, verdicts, lines, a pin, a pool, a worker.
async fn fill(store: Arc<dyn Store>) {
    let world = World::new(store).await;
    let pooled = placed(view_row("c@v1", &[], "third, in `a` \"pool\"; ünïcode"), Some("slow"), Some("few"));
    world.apply(1, vec![pool_row("few", 2), pooled], Vec::new(), day(1)).await;
    let step = PlanStep {
        dag: dag("daily"),
        planned_until: None,
        definitions: 2,
        ticks: vec![day(0), day(1)],
        runs: Vec::new(),
        due_at: Some(day(2)),
        schedule_fingerprint: "s".to_owned(),
    };
    world.store.plan(step, day(1)).await.unwrap();
    let snapshot = world.publish(world.admitted("daily", 0).await).await;
    world.publish(world.admitted("daily", 1).await).await;
    let pin = Pin { pinned_at: day(3), actor: "ana".to_owned(), reason: "audit".to_owned(), files: BTreeMap::new() };
    world.store.snapshot_pin(snapshot, pin).await.unwrap();
    restored(&world, Target::To(snapshot)).await;
    let retried = world.claim(world.admitted("daily", 2).await).await;
    world.store.task_log(retried.token, &[("warn".to_owned(), "slow\nday".to_owned())], day(3)).await.unwrap();
    world.end(retried.token, failed(Some(LONG))).await;
    let blocked = world.claim_publish(world.admitted("daily", 3).await).await;
    world.end(blocked.token, TaskEnd::Blocked { output: None, reason: "too few rows".to_owned() }).await;
    let publishing = world.claim_publish(world.admitted("daily", 4).await).await;
    world.take(&publishing).await;
    let run = world.admitted("other", 0).await;
    world.end(world.claim(run).await.token, succeeded(pins())).await;
    let view = world.claim(run).await;
    world.end(view.token, succeeded(staged(9, vec![check("row_count", Verdict::Skipped)]))).await;
    world.create(World::new_run("other", 1)).await;
    let bad = BadMark { marked_at: day(3), actor: "ana".to_owned(), reason: "odd".to_owned() };
    world.store.snapshot_mark(snapshot, Some(bad), "ana", day(3)).await.unwrap();
    let off = SwitchChange {
        view: "a@v1".parse().unwrap(),
        feature: "x".to_owned(),
        off: Some(Off { serve: Serve::Null, below: 10_000 }),
        above: 0,
        actor: "ana".to_owned(),
        reason: "odd".to_owned(),
        now: day(3),
    };
    world.store.switch_set(&off).await.unwrap();
    world.store.approval_request(&approval("restore a@v1")).await.unwrap();
    let rehearsed = drill(Some("nightly"), 3);
    world.store.drill_begin(&rehearsed).await.unwrap();
    world.store.drill_end(rehearsed.id, end(&[("a", 7)], &[], 4)).await.unwrap();
    let built = dataset(&*world.store, "scores", snapshot).await;
    world.store.dataset_record(&built).await.unwrap();
    let firing = NewFiring {
        recipe: "back".parse().unwrap(),
        trigger: Trigger::Incident,
        subject: "event 1".to_owned(),
        number: 1,
        snapshot: None,
        views: vec!["a@v1".parse().unwrap()],
        steps: Vec::new(),
        reason: "odd".to_owned(),
        passed_over: None,
    };
    let seen = world.store.happened().await.unwrap().seen;
    world.store.firings_add(seen, seen + 1, &[firing], day(3)).await.unwrap();
    let all = [Subscription { webhook: "oncall".to_owned(), events: Vec::new() }];
    assert!(world.store.notices_route(&all, LONG, day(1)).await.unwrap() > 0);
    world.store.worker_heartbeat(&beat("w1", &["slow"])).await.unwrap();
    assert!(world.store.duty_take("janitor", "w1", LONG).await.unwrap());
}

/// Every row of every table that is copied, columns by name. A lease that was held counts as given up.
async fn contents(db: &Db) -> BTreeMap<&'static str, Vec<String>> {
    let mut found = BTreeMap::new();
    for (table, order) in TABLES.iter().filter(|(table, _)| !OF_PROCESSES.contains(table) && *table != "audit_head") {
        let mut all = Builder::new("SELECT * FROM ");
        all.push(table).push(" ORDER BY ").push(order);
        let mut rows = all.build().fetch_all(&mut db.read().await.unwrap()).await.unwrap();
        // What a restore writes itself.
        rows.retain(|row| *table != "audit_events" || row.get_as::<&str>("action").unwrap() != "registry_restore");
        let text = |row: &Row| {
            let mut cells = row.cells().unwrap();
            cells.sort_by(|(left, _), (right, _)| left.cmp(right));
            format!("{cells:?}")
        };
        found.insert(*table, rows.iter().map(text).collect());
    }
    found
}

async fn give_up_leases(db: &Db) {
    let mut tx = db.write().await.unwrap();
    query("UPDATE tasks SET lease_until = 0 WHERE lease_until IS NOT NULL").execute(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
}

/// From `one` to `other` and back into `third`.
async fn there_and_back<A, B>(one: &SqlStore<A>, other: &SqlStore<B>, third: &SqlStore<A>, folder: &Path)
where
    A: std::fmt::Debug + Send + Sync + Clone + 'static,
    B: std::fmt::Debug + Send + Sync + Clone + 'static,
{
    fill(Arc::new(one.clone())).await;
    let file = folder.join("there.db");
    let copied = one.backup(&file).await.unwrap();
    let empty: Vec<&str> = copied.iter().filter(|of| of.rows == 0).map(|of| of.table.as_str()).collect();
    assert_eq!(empty, OF_PROCESSES, "nothing of the rest goes untried");
    assert_eq!(other.restore(&file, false, "ana", day(3)).await.unwrap(), copied);
    let back = folder.join("back.db");
    let again = other.backup(&back).await.unwrap();
    let events = |rows: &[TableRows]| rows.iter().find(|of| of.table == "audit_events").unwrap().rows;
    assert_eq!(events(&again), events(&copied) + 1, "the restore itself");
    assert_eq!(third.restore(&back, false, "ana", day(3)).await.unwrap(), again);
    let (trail, there) = (one.audit_verify(None).await.unwrap(), other.audit_verify(None).await.unwrap());
    assert_eq!((trail.broken, &there.broken), (None, &None));
    let noted = third.audit_verify(Some(trail.head)).await.unwrap();
    assert_eq!((noted.broken, noted.events), (None, trail.events + 2), "the same chain, and two events more");

    give_up_leases(&one.db).await;
    let (before, there, here) = (contents(&one.db).await, contents(&other.db).await, contents(&third.db).await);
    for (table, rows) in &before {
        assert_eq!(&there[table], rows, "`{table}` there");
        assert_eq!(&here[table], rows, "`{table}` back again");
    }
    assert_eq!(other.info().await.unwrap(), one.info().await.unwrap());
    assert_eq!(other.project(None).await.unwrap(), one.project(None).await.unwrap());
    let all = RunFilter::default();
    assert_eq!(other.runs(&all).await.unwrap(), one.runs(&all).await.unwrap());
    assert_eq!(other.snapshots(None, None, 0).await.unwrap(), one.snapshots(None, None, 0).await.unwrap());
    assert_eq!(other.pins().await.unwrap(), one.pins().await.unwrap());
    goes_on(other).await;
}

/// What was under way is taken up, and new rows are numbered after those that came.
async fn goes_on<D: std::fmt::Debug + Send + Sync + Clone + 'static>(store: &SqlStore<D>) {
    let world = World { store: Arc::new(store.clone()) };
    let open = world.store.runs_open().await.unwrap();
    let under_way = open.iter().find(|run| run.state == RunState::Publishing).unwrap().id;
    let claim = world.claim(under_way).await;
    let lines = [("info".to_owned(), "goes on".to_owned())];
    world.store.task_log(claim.token, &lines, day(5)).await.unwrap();
    let intent = world.store.intent(under_way).await.unwrap().unwrap();
    let snapshot = SnapshotId::generate();
    world.store.record(claim.token, World::record(snapshot, &intent), day(10)).await.unwrap();
    assert_eq!(world.store.snapshots(None, None, 1).await.unwrap()[0].id, snapshot, "the newest");
}

#[tokio::test]
async fn a_backup_of_sqlite_is_restored_into_postgresql() {
    let folder = tempfile::tempdir().unwrap();
    let one = SqliteStore::open(&folder.path().join("one.db")).await.unwrap();
    let third = SqliteStore::open(&folder.path().join("third.db")).await.unwrap();
    let other = PostgresStore::open(&Postgres::shared().database().unwrap()).await.unwrap();
    there_and_back(&one, &other, &third, folder.path()).await;
}

#[tokio::test]
async fn a_backup_of_postgresql_is_restored_into_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = Postgres::shared().database().unwrap();
    let one = PostgresStore::open(&(url.clone() + "&schema=one")).await.unwrap();
    let third = PostgresStore::open(&(url + "&schema=third")).await.unwrap();
    let other = SqliteStore::open(&folder.path().join("other.db")).await.unwrap();
    there_and_back(&one, &other, &third, folder.path()).await;
}
