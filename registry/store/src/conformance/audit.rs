//! The audit trail: one chain, whoever writes; every action of a person in it; found again by what it tells.

use std::time::Duration;

use serde_json::json;
use tidegate_registry::audit::{AuditBreak, AuditEvent, AuditFilter, GENESIS, NewAuditEvent};
use tidegate_registry::ids::{RunId, SnapshotId};
use tidegate_registry::run::Verdict;
use tidegate_registry::store::{Decision, Store, TaskEnd};
use tokio::task::JoinSet;

use super::Fixture;
use super::world::{World, beat, check, dag, day, insist, staged};

async fn all(store: &dyn Store) -> Vec<AuditEvent> {
    store.audit_events(&AuditFilter { oldest_first: true, ..AuditFilter::default() }).await.unwrap()
}

/// Through two processes, some by themselves and some within the transaction of what they tell of.
pub async fn parallel_appends_make_one_chain(fixture: &Fixture) {
    World::new(fixture.store.clone()).await;
    let mut appenders = JoinSet::new();
    for number in 0..32_i64 {
        let store = if number % 2 == 0 { fixture.store.clone() } else { fixture.twin.clone() };
        appenders.spawn(async move {
            for step in 0..4 {
                if number % 8 == 0 {
                    let alive = beat(&format!("w{number}"), &[]);
                    insist(|| store.worker_heartbeat(&alive)).await;
                    insist(|| store.worker_drain(&alive.owner, step % 2 == 0, "ana", day(step))).await;
                } else {
                    let event = NewAuditEvent::new(day(step), format!("actor{number}"), "test", number.to_string());
                    insist(|| store.audit(event.clone())).await;
                }
            }
        });
    }
    appenders.join_all().await;
    let verdict = fixture.store.audit_verify(None).await.unwrap();
    assert_eq!((verdict.events, verdict.number, &verdict.broken), (129, 129, &None), "with the apply");
    assert_eq!(fixture.twin.audit_verify(Some(verdict.head.clone())).await.unwrap(), verdict);
    let events = all(&*fixture.store).await;
    assert_eq!(events.iter().map(|event| event.number).collect::<Vec<_>>(), (1..=129).collect::<Vec<_>>());
    assert_eq!(events.last().unwrap().hash, verdict.head);
    for number in 0..32_i64 {
        let own = AuditFilter { actor: Some(format!("actor{number}")), oldest_first: true, ..AuditFilter::default() };
        let own = fixture.store.audit_events(&own).await.unwrap();
        let times: Vec<_> = own.iter().map(|event| event.what.at).collect();
        assert!(times.is_sorted(), "each one's own events stay in their order");
    }
}

/// Everything that a person does through the registry.
pub async fn events_say_who_did_what_and_what_it_changed(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    store.dag_pause(&dag("daily"), true, "ana", day(1)).await.unwrap();
    store.dag_pause(&dag("daily"), true, "ana", day(1)).await.unwrap();
    store.dag_pause(&dag("daily"), false, "ben", day(2)).await.unwrap();
    let run = world.admitted("daily", 0).await;
    store.run_cancel(run, "ana", day(3)).await.unwrap();
    let again = store.run_retry(run, 3, "ben", day(4)).await.unwrap();
    store.run_admit(again).await.unwrap();
    let snapshot: SnapshotId = world.publish(again).await;
    let blocked = world.admitted("other", 0).await;
    world.end(world.claim(blocked).await.token, super::world::succeeded(super::world::pins())).await;
    let stage = world.claim(blocked).await;
    let end = TaskEnd::Blocked {
        output: Some(staged(1, vec![check("row_count", Verdict::Failed)])),
        reason: "too few".to_owned(),
    };
    world.end(stage.token, end).await;
    let decision = Decision { actor: "ana".to_owned(), reason: "it is so".to_owned(), now: day(5), attempts_max: 1 };
    let through = store.run_override(blocked, decision).await.unwrap();

    let events = all(store).await;
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.what.actor.as_str(), event.what.action.as_str(), event.what.subject.clone()))
        .collect();
    let id = |run: RunId| run.to_string();
    assert_eq!(
        told,
        [
            ("ana", "apply", "flights".to_owned()),
            ("ana", "dag_pause", "daily".to_owned()),
            ("ben", "dag_unpause", "daily".to_owned()),
            ("ana", "run_cancel", id(run)),
            ("ben", "run_retry", id(run)),
            ("worker", "publish", id(again)),
            ("ana", "run_override", id(blocked)),
        ]
    );
    assert_eq!(events[0].what.reason.as_deref(), Some("because"));
    assert_eq!(events[0].what.after, Some(json!({ "revision": 1 })));
    assert_eq!((&events[3].what.before, &events[3].what.after), (&Some(json!("queued")), &Some(json!("cancelled"))));
    assert_eq!(events[4].what.after, Some(json!({ "run": again })));
    assert_eq!(events[5].what.detail["snapshot"], json!(snapshot));
    assert_eq!(events[6].what.reason.as_deref(), Some("it is so"));
    assert_eq!(events[6].what.after, Some(json!({ "run": through })));
    assert!(events.iter().all(|event| event.recorded_at.is_some() && event.hash.len() == 64));
}

/// By time, by person, by action, and by what it was done to or names.
pub async fn events_are_found_by_what_they_tell(fixture: &Fixture) {
    let store = &*fixture.store;
    let run = RunId::generate();
    let restore = NewAuditEvent::new(day(1), "ana@host", "restore", "carrier_delays@v1")
        .because("bad \"deploy\", 100 %")
        .change(json!({ "snapshot": "s2" }), json!({ "snapshot": "s1" }))
        .took(Duration::from_millis(1_500))
        .with(json!({ "dag": "daily", "run": run }));
    store.audit(restore.clone()).await.unwrap();
    store.audit(NewAuditEvent::new(day(2), "anabel@host", "run_cancel", run.to_string())).await.unwrap();
    store.audit(NewAuditEvent::new(day(3), "ben@host", "run_retry", "ünïcode_run")).await.unwrap();
    let found = async |filter: AuditFilter| -> Vec<i64> {
        store.audit_events(&filter).await.unwrap().iter().map(|event| event.number).collect()
    };
    let none = AuditFilter::default;
    assert_eq!(found(none()).await, [3, 2, 1], "the newest first");
    assert_eq!(found(AuditFilter { limit: 2, ..none() }).await, [3, 2]);
    assert_eq!(found(AuditFilter { limit: 2, oldest_first: true, ..none() }).await, [1, 2]);
    assert_eq!(found(AuditFilter { since: Some(day(2)), until: Some(day(3)), ..none() }).await, [2]);
    let by = |actor: &str| AuditFilter { actor: Some(actor.to_owned()), ..none() };
    assert_eq!(found(by("ana")).await, [1], "and not anabel");
    assert_eq!(found(by("anabel@host")).await, [2]);
    let done = |action: &str| AuditFilter { action: Some(action.to_owned()), ..none() };
    assert_eq!(found(done("run")).await, [3, 2]);
    assert_eq!(found(done("run_retry")).await, [3]);
    let about = |subject: &str| AuditFilter { subject: Some(subject.to_owned()), ..none() };
    assert_eq!(found(about("carrier_delays")).await, [1]);
    assert_eq!(found(about("daily")).await, [1]);
    assert_eq!(found(about("dail")).await, Vec::<i64>::new(), "what an event names, it names as a whole");
    assert_eq!(found(about(&run.to_string())).await, [2, 1]);
    assert_eq!(found(about("ünïc")).await, [3]);
    assert_eq!(found(about("%")).await, Vec::<i64>::new());
    assert_eq!(store.audit_events(&about("carrier_delays@v1")).await.unwrap()[0].what, restore);
}

/// Whoever noted a head finds out whether what they saw is still there.
pub async fn a_head_that_was_noted_is_found_again(fixture: &Fixture) {
    let store = &*fixture.store;
    let empty = store.audit_verify(None).await.unwrap();
    assert_eq!((empty.events, empty.head.as_str(), empty.broken), (0, GENESIS, None));
    let add = async |number: i64| store.audit(NewAuditEvent::new(day(number), "ana", "test", "x")).await.unwrap();
    add(1).await;
    let noted = store.audit_verify(None).await.unwrap().head;
    add(2).await;
    let later = store.audit_verify(Some(noted.to_ascii_uppercase())).await.unwrap();
    assert_eq!((later.events, later.broken), (2, None));
    assert_ne!(later.head, noted);
    assert_eq!(store.audit_verify(Some(GENESIS.to_owned())).await.unwrap().broken, None);
    let unknown = "a".repeat(64);
    let other = store.audit_verify(Some(unknown.clone())).await.unwrap();
    assert_eq!(other.broken, Some(AuditBreak::HeadUnknown { head: unknown }));
}
