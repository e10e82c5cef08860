//! Drills of a real registry, lake and online store: everything comes back in the copy, and nothing else ever changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_registry::definitions::settings::{OnlineLocation, OnlineTarget};
use tidegate_registry::drill::{Drill, DrillState, Drilling as _, Scenario};
use tidegate_registry::ids::{DrillId, ProjectName, ViewId};
use tidegate_registry::store::Store;
use tidegate_store::SqliteStore;
use tokio_util::sync::CancellationToken;

use super::{DrillParts, DrillPlaces, cost, drill, sweep};
use crate::engine::Engine;
use crate::tests::{Place, World, at, in_every_place};

const NOW: &str = "2024-01-05T00:00:00Z";

fn places(world: &World) -> DrillPlaces {
    let online = OnlineLocation::Sqlite(world.folder.path().join("online.db"));
    DrillPlaces {
        project: ProjectName::new("shop").unwrap(),
        online: vec![OnlineTarget { location: online, required: true }],
        simulated_clock: true,
        scratch: world.folder.path().join("spill/drills"),
    }
}

fn parts(world: &World, places: DrillPlaces) -> DrillParts {
    let of_worker = world.parts("drills");
    let stores = match &world.place {
        Place::Folder => crate::objects::Stores::default(),
        Place::Store(stores, _) => (**stores).clone(),
    };
    DrillParts {
        store: of_worker.store,
        clock: of_worker.clock,
        lake: world.fresh_lake(),
        places,
        stores,
        engine: Arc::new(Engine::new(64 << 20, &world.folder.path().join("spill")).unwrap()),
        owner: "here:1:drills".to_owned(),
        open_copy: Arc::new(|file| {
            Box::pin(async move {
                let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&file).await?);
                Ok(store)
            })
        }),
    }
}

fn asked(views: &[&str], scenarios: &[Scenario]) -> Drill {
    Drill {
        id: DrillId::generate(),
        name: None,
        views: views.iter().map(|view| view.parse().unwrap()).collect(),
        scenarios: scenarios.to_vec(),
        actor: "ana@host".to_owned(),
        started_at: at(NOW),
        finished_at: None,
        state: DrillState::Running,
        report: None,
    }
}

const VIEWS: [&str; 4] = ["revenue@v1", "ranking@v1", "lifetime@v1", "last_receipt@v1"];

/// Everything there is but for the record of drills: the objects of the lake, what is live online, the registry's rows.
async fn everything(world: &World) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let folder = world.folder.path();
    for path in world.objects("").await {
        let mut bytes = String::new();
        if let Place::Folder = world.place {
            let content = std::fs::read(folder.join("lake").join(&path)).unwrap();
            bytes = format!("{:x}", xxhash_rust::xxh3::xxh3_128(&content));
        }
        found.insert(format!("lake {path}"), bytes);
    }
    for view in VIEWS.map(|view| view.parse::<ViewId>().unwrap()) {
        let live = world.online.live(&view).await.unwrap();
        let mut rows = Vec::new();
        if let Some(live) = &live {
            rows = world.online.scan(&view, live.generation, None, 100).await.unwrap();
        }
        found.insert(format!("online {view}"), format!("{live:?} {rows:?}"));
        let state = world.store.view_states(std::slice::from_ref(&view)).await.unwrap();
        let ledger = world.store.ledger(&view, None, 0).await.unwrap();
        found.insert(format!("registry {view}"), format!("{state:?} {ledger:?}"));
    }
    let counts = tidegate_registry::care::Care::row_counts(&*world.store).await.unwrap();
    for table in
        counts.into_iter().filter(|table| !matches!(table.table.as_str(), "drills" | "drill_views" | "audit_events"))
    {
        found.insert(format!("rows {}", table.table), table.rows.to_string());
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if !name.ends_with("-wal") && !name.ends_with("-shm") {
            found.insert(format!("file {name}"), String::new());
        }
    }
    found
}

async fn everything_comes_back_and_nothing_else_changes(place: Place) {
    let world = World::at(place, crate::tests::DEFINITIONS).await;
    for day in 1..=3 {
        world.succeed(day, 0).await;
    }
    let parts = parts(&world, places(&world));
    let before = everything(&world).await;
    let would = cost(&*world.store, &world.lake, Some(&*world.online), &world.project, &asked(&VIEWS, &[]).views)
        .await
        .unwrap();
    let done = drill(&parts, asked(&VIEWS, Scenario::ALL), &CancellationToken::new()).await.unwrap();
    let report = done.report.as_ref().unwrap();
    assert_eq!(done.state, DrillState::Passed, "{report:#?}");
    assert_eq!((report.cost, report.cost.files), (would, 12), "what was announced is what was copied");
    let outcomes: Vec<_> = report.scenarios.iter().map(|scenario| (scenario.scenario, scenario.outcome)).collect();
    let all: Vec<_> = Scenario::ALL.iter().map(|scenario| (*scenario, DrillState::Passed)).collect();
    assert_eq!(outcomes, all);
    for scenario in &report.scenarios {
        assert_eq!(scenario.phases.is_some(), scenario.scenario.restores(), "{scenario:?}");
        assert_eq!(scenario.views.len(), if scenario.scenario.needs_online() { 3 } else { 4 }, "{scenario:?}");
    }
    assert_eq!(report.proven().len(), 4);
    assert_eq!(everything(&world).await, before, "what is live was only read, and no copy is left");
    let known = world.store.drills(0).await.unwrap();
    assert_eq!((known.len(), known[0].state, known[0].finished_at), (1, DrillState::Passed, Some(at(NOW))));
    let proven = world.store.proven(&done.views).await.unwrap();
    assert!(proven.len() == 4 && proven.values().all(|proven| proven.restore.is_some() && proven.failed.is_none()));
    // What runs do next is as if nothing had been rehearsed.
    world.succeed(3, 1).await;
}

async fn what_a_dead_drill_left_is_removed_by_the_next(place: Place) {
    let world = World::at(place, crate::tests::DEFINITIONS).await;
    world.succeed(1, 0).await;
    let parts = parts(&world, places(&world));
    let before = everything(&world).await;
    // As far as one comes that dies right after it copied.
    let dead = asked(&VIEWS, Scenario::ALL);
    world.store.drill_begin(&dead).await.unwrap();
    let copy = super::Shadow::make(&parts, dead.id, &dead.views).await.unwrap();
    std::mem::forget(copy);
    assert!(everything(&world).await.len() > before.len() + 8, "there is something to remove");

    let swept = sweep(&*parts.store, &parts.lake, &parts.places, "here:2:janitor", &*parts.clock).await.unwrap();
    assert_eq!(swept, Some(1));
    assert_eq!(everything(&world).await, before);
    assert_eq!(world.store.drills(0).await.unwrap()[0].state, DrillState::Abandoned);
    let again = drill(&parts, asked(&["revenue@v1"], &[Scenario::BadDeploy]), &CancellationToken::new()).await.unwrap();
    assert_eq!(again.state, DrillState::Passed, "{again:#?}");
    assert_eq!(everything(&world).await, before);
}

in_every_place! {
    everything_comes_back_and_nothing_else_changes,
    what_a_dead_drill_left_is_removed_by_the_next,
}

#[tokio::test]
async fn one_drills_at_a_time_and_nobody_sweeps_meanwhile() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    let parts = parts(&world, places(&world));
    let lease = std::time::Duration::from_secs(60);
    let store = tidegate_registry::care::Care::duty_take(&*world.store, super::DUTY, "there:7:x", lease);
    assert!(store.await.unwrap());
    let refused = drill(&parts, asked(&VIEWS, Scenario::ALL), &CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("another process drills just now"), "{refused:#}");
    let swept = sweep(&*parts.store, &parts.lake, &parts.places, "here:2:janitor", &*parts.clock).await.unwrap();
    assert_eq!(swept, None);
    assert!(world.store.drills(0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_drill_that_is_stopped_leaves_nothing_and_tells_nobody() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    let parts = parts(&world, places(&world));
    let before = everything(&world).await;
    let stop = CancellationToken::new();
    stop.cancel();
    let done = drill(&parts, asked(&VIEWS, Scenario::ALL), &stop).await.unwrap();
    assert_eq!((done.state, done.report.unwrap().error.as_deref()), (DrillState::Abandoned, Some("it was stopped")));
    assert_eq!(everything(&world).await, before);
}

#[tokio::test]
async fn views_without_an_online_store_are_drilled_without_it() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    let batch_only = DrillPlaces { online: Vec::new(), ..places(&world) };
    let parts = parts(&world, batch_only);
    let done = drill(&parts, asked(&["lifetime@v1"], Scenario::ALL), &CancellationToken::new()).await.unwrap();
    let report = done.report.unwrap();
    assert_eq!(done.state, DrillState::Passed, "{report:#?}");
    for scenario in &report.scenarios {
        let expected = if scenario.scenario.needs_online() { DrillState::Skipped } else { DrillState::Passed };
        assert_eq!(scenario.outcome, expected, "{scenario:?}");
    }
}

#[tokio::test]
async fn a_table_that_lost_a_file_fails_the_drill_and_says_which() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    let lost = world.objects("features/revenue/v1/data").await.pop().unwrap();
    world.remove(&lost).await;
    let parts = parts(&world, places(&world));
    let done = drill(&parts, asked(&VIEWS, Scenario::ALL), &CancellationToken::new()).await.unwrap();
    let error = done.report.unwrap().error.unwrap();
    assert_eq!(done.state, DrillState::Failed);
    assert!(error.contains("copying the table of `revenue@v1`"), "{error}");
    let told = tidegate_registry::notice::Outbox::notices(&*world.store, &Default::default()).await.unwrap();
    let event = tidegate_registry::notice::NoticeEvent::DrillFailed;
    assert_eq!(told.iter().filter(|(notice, _)| notice.what.event == event).count(), 1);
}

#[tokio::test]
async fn a_view_of_which_nothing_is_published_takes_no_part() {
    let world = World::new().await;
    let parts = parts(&world, places(&world));
    let done = drill(&parts, asked(&VIEWS, Scenario::ALL), &CancellationToken::new()).await.unwrap();
    let report = done.report.unwrap();
    assert_eq!((done.state, report.error, report.left_out.len()), (DrillState::Skipped, None, 4));
    let told = tidegate_registry::notice::Outbox::notices(&*world.store, &Default::default()).await.unwrap();
    assert!(told.is_empty(), "{told:?}");
}
