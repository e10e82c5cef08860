//! Recipes that something triggers: each once, by what happened after they were applied, carried out by one at a time.

use indexmap::IndexMap;
use serde_json::json;
use tidegate_registry::audit::{AuditFilter, NewAuditEvent};
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::firing::{FiringProgress, FiringState, actor};
use tidegate_registry::ids::RunId;
use tidegate_registry::model::{Matching, Recipe, RecipeStep, Trigger};
use tidegate_registry::notice::{NoticeEvent, NoticeFilter};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::restore::BadMark;
use tidegate_registry::store::{ApplyChanges, ApplyRequest, DefinitionRow, Result, Snapshot, Store, StoreError};
use tidegate_registry::time::Instant;

use super::Fixture;
use super::world::{World, day};

/// A recipe for everything, triggered by bad marks and incidents.
fn recipe() -> DefinitionRow {
    let definition = Recipe {
        name: "back".parse().unwrap(),
        description: "back".to_owned(),
        matching: Matching::default(),
        on: vec![Trigger::MarkedBad, Trigger::Incident],
        cooldown_secs: 3_600,
        steps: vec![RecipeStep::Notify { message: "taken back".to_owned() }],
        origin: Origin::default(),
    };
    let body = serde_json::to_value(&definition).unwrap();
    DefinitionRow { kind: DefinitionKind::Recipe, name: "back".to_owned(), fingerprint: body.to_string(), body }
}

async fn apply(store: &dyn Store) {
    let request = ApplyRequest {
        project: store.info().await.unwrap().project.unwrap(),
        base: store.info().await.unwrap().revision,
        changes: ApplyChanges { upserts: vec![recipe()], removals: Vec::new() },
        tables: IndexMap::new(),
        actor: "ana".to_owned(),
        message: None,
        now: day(3),
    };
    store.apply(request).await.unwrap();
}

async fn look(store: &dyn Store, now: Instant) -> Result<usize> {
    let (_, project) = store.project(None).await?;
    tidegate_registry::firing::look(store, &project, now).await
}

async fn published(world: &World, number: i64) -> Snapshot {
    world.publish(world.admitted("daily", number).await).await;
    world.store.snapshots(None, None, 1).await.unwrap().remove(0)
}

async fn mark(store: &dyn Store, snapshot: &Snapshot, by: &str) {
    let bad = BadMark { marked_at: day(4), actor: by.to_owned(), reason: "odd".to_owned() };
    store.snapshot_mark(snapshot.id, Some(bad), by, day(4)).await.unwrap();
}

/// Neither what happened before anybody looked, nor before the recipe was applied.
pub async fn what_was_before_the_first_look_triggers_nothing(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    let snapshot = published(&world, 0).await;
    mark(store, &snapshot, "ana").await;
    apply(store).await;
    assert_eq!(look(store, day(4)).await.unwrap(), 0);
    assert_eq!(store.firings(0).await.unwrap(), []);
    let happened = store.happened().await.unwrap();
    assert_eq!((happened.seen, happened.events.len()), (happened.until, 0), "nothing is left to look at");
}

/// However often the same is said, and whoever looks; for the same view not again before it has cooled down.
pub async fn what_happens_triggers_a_recipe_once(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    apply(store).await;
    let (first, second) = (published(&world, 0).await, published(&world, 1).await);
    mark(store, &first, "ana").await;
    let (one, other) = tokio::join!(look(store, day(4)), look(&*fixture.twin, day(4)));
    assert!(one.unwrap() + other.unwrap() >= 1);
    assert_eq!(look(store, day(4)).await.unwrap(), 0);
    store.snapshot_mark(first.id, None, "ana", day(4)).await.unwrap();
    mark(store, &first, "ana").await;
    look(store, day(4)).await.unwrap();
    let known = store.firings(0).await.unwrap();
    let [firing] = &known[..] else { panic!("{known:?}") };
    assert_eq!((firing.what.trigger, &firing.what.subject), (Trigger::MarkedBad, &first.id.to_string()));
    assert_eq!((firing.what.snapshot, firing.progress.state), (Some(first.id), FiringState::Due));
    assert_eq!(firing.what.views, first.views.iter().map(|view| view.view.clone()).collect::<Vec<_>>());

    mark(store, &second, "ana").await;
    look(store, day(4)).await.unwrap();
    let known = store.firings(0).await.unwrap();
    assert_eq!(known.len(), 2);
    let hot = known.iter().find(|firing| firing.what.snapshot == Some(second.id)).unwrap();
    assert_eq!(hot.progress.state, FiringState::PassedOver, "{hot:?}");
    assert_eq!(store.firings_open().await.unwrap().len(), 1);

    let incident = NewAuditEvent::new(day(5), "ben", "incident_open", "x").because("late");
    store.audit(incident.with(json!({ "views": [first.views[0].view, "gone@v1"] }))).await.unwrap();
    look(store, day(5)).await.unwrap();
    let known = store.firings_open().await.unwrap();
    assert_eq!((known.len(), known[1].what.trigger), (2, Trigger::Incident), "it has cooled down: {known:?}");
    assert_eq!(known[1].what.reason, "ben says: late");
    let told = store.notices(&NoticeFilter::default()).await.unwrap();
    let count = |event| told.iter().filter(|(notice, _)| notice.what.event == event).count();
    assert_eq!(count(NoticeEvent::RecipeTriggered), 2);
}

/// A recipe must not set off another, nor itself.
pub async fn what_a_recipe_does_triggers_none(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    apply(store).await;
    let snapshot = published(&world, 0).await;
    mark(store, &snapshot, &actor(&"other".parse().unwrap(), Trigger::Incident)).await;
    look(store, day(4)).await.unwrap();
    assert_eq!(store.firings(0).await.unwrap(), []);
}

/// Who moves it has read how it is now; moving it to where it is is harmless. Its end is told.
pub async fn a_triggered_recipe_is_moved_by_one_at_a_time(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    apply(store).await;
    let snapshot = published(&world, 0).await;
    mark(store, &snapshot, "ana").await;
    look(store, day(4)).await.unwrap();
    let before = store.firings_open().await.unwrap().remove(0);
    let restoring = FiringProgress { restore: Some(RunId::generate()), ..before.progress.clone() };
    store.firing_move(&before, &restoring, day(4)).await.unwrap();
    store.firing_move(&before, &restoring, day(4)).await.unwrap();
    let other = FiringProgress { restore: Some(RunId::generate()), ..before.progress.clone() };
    let refused = fixture.twin.firing_move(&before, &other, day(4)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict(_)), "{refused:?}");
    let under_way = store.firings_open().await.unwrap().remove(0);
    assert_eq!((&under_way.progress, under_way.ended_at), (&restoring, None));
    let done = FiringProgress { state: FiringState::Done, steps_done: 1, restore: None, outcome: None };
    store.firing_move(&under_way, &done, day(5)).await.unwrap();
    assert_eq!(store.firings_open().await.unwrap(), []);
    let ended = store.firings(1).await.unwrap().remove(0);
    assert_eq!((&ended.progress, ended.ended_at), (&done, Some(day(5))));
    let filter = AuditFilter { action: Some("recipe_".to_owned()), ..AuditFilter::default() };
    let events = store.audit_events(&filter).await.unwrap();
    let said: Vec<_> = events.iter().map(|event| (event.what.action.as_str(), event.what.actor.as_str())).collect();
    assert_eq!(said, [("recipe_run", "recipe back on marked_bad"), ("recipe_trigger", "recipe back on marked_bad")]);
}
