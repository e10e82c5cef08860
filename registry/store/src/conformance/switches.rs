//! Switches: what is off stays off until a person says otherwise, and every change is later than all before it.

use serde_json::json;
use tidegate_registry::audit::AuditFilter;
use tidegate_registry::notice::{NoticeEvent, NoticeFilter};
use tidegate_registry::store::Store;
use tidegate_registry::switches::{Off, Serve, SwitchChange, ViewSwitches};

use super::Fixture;
use super::world::{World, day};

fn change(feature: &str, off: Option<Off>) -> SwitchChange {
    SwitchChange {
        view: "a@v1".parse().unwrap(),
        feature: feature.to_owned(),
        off,
        above: 0,
        actor: "ana@host".to_owned(),
        reason: "it drifts".to_owned(),
        now: day(3),
    }
}

const OFF: Option<Off> = Some(Off { serve: Serve::Null, below: 10_000 });
const SOME: Option<Off> = Some(Off { serve: Serve::Default, below: 50 });

async fn told(store: &dyn Store) -> Vec<String> {
    let events = store.audit_events(&AuditFilter { oldest_first: true, ..AuditFilter::default() }).await.unwrap();
    let switched = events.into_iter().filter(|event| event.what.action.starts_with("feature_"));
    switched.map(|event| format!("{} {}", event.what.action, event.what.subject)).collect()
}

/// With who, why and since when; each change is told once.
pub async fn a_switch_stays_until_it_is_lifted(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    assert_eq!(store.switches().await.unwrap().switches, []);
    let first = store.switch_set(&change("x", OFF)).await.unwrap();
    assert_eq!(store.switch_set(&change("x", OFF)).await.unwrap(), first, "twice is harmless");
    let second = store.switch_set(&change("y", SOME)).await.unwrap();
    assert!(second.revision > first.revision);
    let switches = store.switches().await.unwrap();
    let view = "a@v1".parse().unwrap();
    assert_eq!(switches.of(&view), second);
    assert_eq!(second.off, [("x".to_owned(), OFF.unwrap()), ("y".to_owned(), SOME.unwrap())].into());
    assert_eq!(switches.of(&"b@v1".parse().unwrap()), ViewSwitches::default());
    let known = &switches.switches[0];
    assert_eq!((&*known.actor, &*known.reason, known.changed_at), ("ana@host", "it drifts", day(3)));
    store.switch_set(&change("x", SOME)).await.unwrap();
    let third = store.switch_set(&change("x", None)).await.unwrap();
    assert!(third.revision > second.revision);
    assert_eq!(third.off, [("y".to_owned(), SOME.unwrap())].into());
    let last = store.switch_set(&change("y", None)).await.unwrap();
    let switches = store.switches().await.unwrap();
    assert_eq!((&switches.switches[..], switches.of(&view).revision), (&[][..], last.revision), "the revision stays");
    assert_eq!(
        told(store).await,
        [
            "feature_disable a@v1.x",
            "feature_disable a@v1.y",
            "feature_disable a@v1.x",
            "feature_enable a@v1.x",
            "feature_enable a@v1.y"
        ]
    );
    let notices = store.notices(&NoticeFilter::default()).await.unwrap();
    let of_switches: Vec<_> =
        notices.iter().filter(|(notice, _)| notice.what.event == NoticeEvent::SwitchChanged).collect();
    assert_eq!(of_switches.len(), 5);
    assert_eq!(of_switches[4].0.what.detail["off"], json!({ "serve": "null", "below": 10_000 }));
}

/// A registry that was brought back from a copy is behind the online stores, and what a person says now counts.
pub async fn a_switch_is_later_than_every_store(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let first = world.store.switch_set(&change("x", OFF)).await.unwrap();
    let ahead = SwitchChange { above: first.revision + 7, ..change("x", OFF) };
    let again = world.store.switch_set(&ahead).await.unwrap();
    assert_eq!((again.revision, again.off), (first.revision + 8, first.off));
    assert_eq!(told(&*world.store).await.len(), 1, "nothing was switched");
    let other = SwitchChange { view: "b@v1".parse().unwrap(), ..change("x", OFF) };
    assert!(world.store.switch_set(&other).await.unwrap().revision > again.revision);
}
