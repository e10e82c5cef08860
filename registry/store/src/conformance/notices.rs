//! The outbox: a notice is written with what it tells of, and delivered by one at a time until the receiver has it.

use std::time::Duration;

use serde_json::json;
use tidegate_registry::audit::AuditFilter;
use tidegate_registry::ids::{NoticeId, RunId, SnapshotId};
use tidegate_registry::notice::{
    Addressed, Delivery, DeliveryClaim, DeliveryEnd, DeliveryState, NewNotice, Notice, NoticeEvent, NoticeFilter,
    Subscription,
};
use tidegate_registry::store::{Store, StoreError, TaskEnd};
use tokio::task::JoinSet;

use super::Fixture;
use super::world::{LONG, World, day, failed};

fn notice(number: i64) -> NewNotice {
    NewNotice::new(NoticeEvent::HoldPlaced, "carrier_delays@v1", day(number), "publishing was stopped")
}

fn to(webhook: &str, events: &[&str]) -> Subscription {
    Subscription { webhook: webhook.to_owned(), events: events.iter().map(|event| (*event).to_owned()).collect() }
}

async fn all(store: &dyn Store) -> Vec<(Notice, Vec<Delivery>)> {
    store.notices(&NoticeFilter::default()).await.unwrap()
}

async fn claim(store: &dyn Store, lease: Duration) -> Vec<DeliveryClaim> {
    store.delivery_claim(&["oncall".to_owned(), "log".to_owned()], lease, 10).await.unwrap()
}

fn again(error: &str, retry_in: Option<Duration>) -> DeliveryEnd {
    DeliveryEnd::Failed { error: error.to_owned(), retry_in }
}

/// In one transaction: a run that is stopped or fails tells so once, and one that goes on tells nothing.
pub async fn a_run_that_comes_to_nothing_tells_so(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    world.publish(world.admitted("daily", 0).await).await;
    assert_eq!(all(&*world.store).await, []);
    let blocked = world.admitted("daily", 1).await;
    let claim = world.claim_publish(blocked).await;
    let end = TaskEnd::Blocked { output: None, reason: "too few rows".to_owned() };
    world.end(claim.token, end.clone()).await;
    world.end(claim.token, end).await;
    let broken = world.admitted("other", 0).await;
    world.end(world.claim(broken).await.token, failed(Some(LONG))).await;
    assert_eq!(all(&*world.store).await.len(), 1, "it is tried again");
    let last = world.admitted("other", 1).await;
    world.end(world.claim(last).await.token, failed(None)).await;
    let told = all(&*world.store).await;
    let events: Vec<_> = told.iter().map(|(notice, _)| (notice.what.event, notice.what.subject.clone())).collect();
    assert_eq!(
        events,
        [(NoticeEvent::RunFailed, last.to_string()), (NoticeEvent::RunBlocked, blocked.to_string())],
        "the newest first"
    );
    let what = &told[1].0.what;
    assert_eq!((what.at, &what.detail["dag"], &what.detail["run"]), (day(10), &json!("daily"), &json!(blocked)));
    assert!(what.message.contains("`daily`") && what.message.ends_with("too few rows"), "{}", what.message);
}

fn published(run: RunId, webhook: &str) -> Addressed {
    let notice = NewNotice::new(NoticeEvent::RunPublished, run.to_string(), day(10), "was published");
    Addressed { webhook: webhook.to_owned(), notice: notice.once(format!("run.published {run} {webhook}")) }
}

/// With what was published, or not at all: to exactly those that the record names, however often it is repeated.
pub async fn a_published_run_is_told_to_whom_its_dag_names(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    let intent = world.take(&claim).await;
    let mut record = World::record(SnapshotId::generate(), &intent);
    record.notices = vec![published(run, "log"), published(run, "scoring")];
    let mut of_another = record.clone();
    of_another.views.pop();
    assert!(store.record(claim.token, of_another, day(10)).await.is_err());
    assert_eq!(all(store).await, [], "nothing was published");
    for _ in 0..2 {
        store.record(claim.token, record.clone(), day(10)).await.unwrap();
        fixture.twin.record(claim.token, record.clone(), day(10)).await.unwrap();
    }
    let subscriptions = [to("oncall", &[]), to("log", &["run.*"])];
    assert_eq!(store.notices_route(&subscriptions, LONG, day(10)).await.unwrap(), 0, "it is for nobody else");
    let mut told: Vec<_> = all(store).await;
    told.sort_by_key(|(_, deliveries)| deliveries[0].webhook.clone());
    assert_eq!(told.len(), 2, "each once");
    for ((notice, deliveries), webhook) in told.iter().zip(["log", "scoring"]) {
        assert_eq!(notice.what, published(run, webhook).notice);
        let to: Vec<_> = deliveries.iter().map(|to| (to.webhook.as_str(), to.state, to.attempts)).collect();
        assert_eq!(to, [(webhook, DeliveryState::Due, 0)]);
    }
    let claims = store.delivery_claim(&["scoring".to_owned()], LONG, 10).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.notice.id).collect::<Vec<_>>(), [told[1].0.id]);
    store.delivery_end(claims[0].token, again("status 500", None), day(10)).await.unwrap();
    assert_eq!(store.deliveries_retry(None, "ana", day(10)).await.unwrap(), 1, "given up and retried like others");
}

/// It waits for a scheduler that knows its webhook, but not for ever.
pub async fn what_no_sender_knows_a_webhook_for_is_given_up(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    let run = world.admitted("daily", 0).await;
    let claim = world.claim_publish(run).await;
    let intent = world.take(&claim).await;
    let mut record = World::record(SnapshotId::generate(), &intent);
    record.notices = vec![published(run, "log"), published(run, "scoring")];
    store.record(claim.token, record, day(10)).await.unwrap();
    let known = [to("log", &["hold.*"])];
    store.notices_route(&known, LONG, day(11)).await.unwrap();
    let due = NoticeFilter { state: Some(DeliveryState::Due), ..NoticeFilter::default() };
    assert_eq!(store.notices(&due).await.unwrap().len(), 2, "a scheduler may come that knows it");
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..2 {
        store.notices_route(&known, Duration::from_millis(1), day(11)).await.unwrap();
    }
    let left = store.notices(&due).await.unwrap();
    assert_eq!((left.len(), left[0].1[0].webhook.as_str()), (1, "log"));
    let told = AuditFilter { action: Some("notice_give_up".to_owned()), ..AuditFilter::default() };
    let told = store.audit_events(&told).await.unwrap();
    assert_eq!((told.len(), told[0].what.at, &told[0].what.detail["webhook"]), (1, day(11), &json!("scoring")));
    assert_eq!(store.deliveries_retry(None, "ana", day(12)).await.unwrap(), 1);
    assert_eq!(store.delivery_claim(&["scoring".to_owned()], LONG, 10).await.unwrap().len(), 1);
    store.notices_route(&[], Duration::from_millis(1), day(12)).await.unwrap();
}

/// Whoever tells of the same thing again is not heard twice.
pub async fn a_notice_with_a_key_is_written_once(fixture: &Fixture) {
    let store = &fixture.store;
    for _ in 0..2 {
        store.notify(notice(1).once("hold 1")).await.unwrap();
        fixture.twin.notify(notice(2).by("ana").with(json!({ "reason": "bad deploy" }))).await.unwrap();
    }
    let told = all(&**store).await;
    assert_eq!(told.len(), 3);
    let keyed: Vec<_> = told.iter().filter(|(notice, _)| notice.what.key.as_deref() == Some("hold 1")).collect();
    assert_eq!(keyed.len(), 1);
    let other = told.iter().find(|(notice, _)| notice.what.key.is_none()).unwrap();
    assert_eq!(other.0.what, notice(2).by("ana").with(json!({ "reason": "bad deploy" })));
    let only = |pattern: &str| NoticeFilter { event: Some(pattern.to_owned()), limit: 2, ..NoticeFilter::default() };
    assert_eq!(store.notices(&only("hold.*")).await.unwrap().len(), 2);
    assert_eq!(store.notices(&only("hold.placed")).await.unwrap().len(), 2);
    assert_eq!(store.notices(&only("run.*")).await.unwrap(), []);
}

/// Each to those who asked for its event when it was first looked at; one that is too old to nobody.
pub async fn a_notice_goes_to_whoever_asked_for_its_event(fixture: &Fixture) {
    let store = &*fixture.store;
    store.notify(notice(1)).await.unwrap();
    let subscriptions = [to("oncall", &[]), to("log", &["hold.*", "test"]), to("runs", &["run.*"])];
    assert_eq!(store.notices_route(&subscriptions, LONG, day(1)).await.unwrap(), 2);
    assert_eq!(store.notices_route(&subscriptions, LONG, day(1)).await.unwrap(), 0, "looked at once");
    let told = all(store).await;
    let webhooks: Vec<_> = told[0].1.iter().map(|delivery| (delivery.webhook.as_str(), delivery.state)).collect();
    assert_eq!(webhooks, [("log", DeliveryState::Due), ("oncall", DeliveryState::Due)]);
    assert_eq!(store.delivery_claim(&["runs".to_owned()], LONG, 10).await.unwrap(), []);

    store.notify(notice(2)).await.unwrap();
    assert_eq!(store.notices_route(&[], LONG, day(1)).await.unwrap(), 0);
    assert_eq!(
        store.notices_route(&subscriptions, LONG, day(1)).await.unwrap(),
        0,
        "a webhook hears of what comes after it"
    );
    store.notify(notice(3)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(store.notices_route(&subscriptions, Duration::from_millis(1), day(1)).await.unwrap(), 0, "too old");
}

/// Many senders, each delivery claimed by one of them.
pub async fn a_delivery_is_claimed_by_one_at_a_time(fixture: &Fixture) {
    for number in 0..20 {
        fixture.store.notify(notice(number)).await.unwrap();
    }
    let mut routers = JoinSet::new();
    for store in [fixture.store.clone(), fixture.twin.clone()] {
        routers.spawn(
            async move { store.notices_route(&[to("oncall", &[]), to("log", &[])], LONG, day(1)).await.unwrap() },
        );
    }
    assert_eq!(routers.join_all().await.iter().sum::<u64>(), 40);
    let mut senders = JoinSet::new();
    for number in 0..8 {
        let store = if number % 2 == 0 { fixture.store.clone() } else { fixture.twin.clone() };
        senders.spawn(async move {
            let mut sent = Vec::new();
            let mut idle = 0;
            while idle < 3 {
                let claims = store.delivery_claim(&["oncall".into(), "log".into()], LONG, 3).await.unwrap();
                idle = if claims.is_empty() { idle + 1 } else { 0 };
                for claim in claims {
                    assert_eq!(claim.attempt, 1);
                    store.delivery_end(claim.token, DeliveryEnd::Sent, day(1)).await.unwrap();
                    sent.push((claim.notice.id, claim.webhook));
                }
            }
            sent
        });
    }
    let mut sent: Vec<(NoticeId, String)> = senders.join_all().await.concat();
    assert_eq!(sent.len(), 40);
    sent.sort_unstable();
    sent.dedup();
    assert_eq!(sent.len(), 40, "each once");
    let left = NoticeFilter { state: Some(DeliveryState::Due), ..NoticeFilter::default() };
    assert_eq!(fixture.store.notices(&left).await.unwrap(), []);
}

/// A sender that dies is replaced, and can do nothing any more.
pub async fn a_lost_delivery_is_claimed_again(fixture: &Fixture) {
    let store = &*fixture.store;
    store.notify(notice(1)).await.unwrap();
    store.notices_route(&[to("oncall", &[])], LONG, day(1)).await.unwrap();
    let lost = claim(store, Duration::from_millis(1)).await.remove(0);
    let next = loop {
        if let Some(next) = claim(&*fixture.twin, LONG).await.pop() {
            break next;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert_eq!((next.notice.id, next.attempt), (lost.notice.id, 2), "the same notice");
    assert!(next.age <= LONG);
    let late = store.delivery_end(lost.token, DeliveryEnd::Sent, day(1)).await;
    assert!(matches!(late, Err(StoreError::LostLease)), "{late:?}");
    store.delivery_end(next.token, DeliveryEnd::Sent, day(1)).await.unwrap();
    store.delivery_end(next.token, DeliveryEnd::Sent, day(1)).await.unwrap();
    store.delivery_end(next.token, again("late", None), day(1)).await.unwrap();
    assert_eq!(all(store).await[0].1[0].state, DeliveryState::Sent, "what was sent stays sent");
}

/// After its pause; and when it is given up, a person can have it tried again.
pub async fn a_failed_delivery_is_tried_again_until_it_is_given_up(fixture: &Fixture) {
    let store = &*fixture.store;
    store.notify(notice(1)).await.unwrap();
    store.notices_route(&[to("oncall", &[])], LONG, day(1)).await.unwrap();
    let first = claim(store, LONG).await.remove(0);
    store.delivery_end(first.token, again("status 500", Some(LONG)), day(1)).await.unwrap();
    assert_eq!(claim(store, LONG).await, [], "it pauses");
    let waiting = all(store).await.remove(0).1.remove(0);
    assert_eq!(
        (waiting.state, waiting.attempts, waiting.error.as_deref()),
        (DeliveryState::Due, 1, Some("status 500"))
    );
    assert!(waiting.due_at.is_some());

    store.notify(notice(2)).await.unwrap();
    store.notices_route(&[to("oncall", &[])], LONG, day(1)).await.unwrap();
    let second = claim(store, LONG).await.remove(0);
    store.delivery_end(second.token, again("no such host", None), day(4)).await.unwrap();
    let given_up = NoticeFilter { state: Some(DeliveryState::GivenUp), ..NoticeFilter::default() };
    let found = store.notices(&given_up).await.unwrap();
    assert_eq!((found.len(), found[0].0.id), (1, second.notice.id));
    let told = AuditFilter { action: Some("notice_give_up".to_owned()), ..AuditFilter::default() };
    let told = store.audit_events(&told).await.unwrap();
    assert_eq!((told[0].what.subject.clone(), told[0].what.at), (second.notice.id.to_string(), day(4)));
    assert_eq!(told[0].what.detail, json!({ "webhook": "oncall", "attempts": 1, "error": "no such host" }));

    let nothing = store.deliveries_retry(Some(NoticeId::generate()), "ana", day(5)).await;
    assert!(matches!(nothing, Err(StoreError::NotFound { .. })), "{nothing:?}");
    assert_eq!(store.deliveries_retry(Some(first.notice.id), "ana", day(5)).await.unwrap(), 0, "it is not given up");
    assert_eq!(store.deliveries_retry(None, "ana", day(5)).await.unwrap(), 1);
    let third = claim(store, LONG).await.remove(0);
    assert_eq!((third.notice.id, third.attempt), (second.notice.id, 2));
    assert_eq!(store.audit_verify(None).await.unwrap().broken, None);
}

/// With retention, once nothing is left to deliver.
pub async fn old_notices_are_removed(fixture: &Fixture) {
    let store = &*fixture.store;
    for number in [1, 2, 8] {
        store.notify(notice(number)).await.unwrap();
    }
    store.notices_route(&[to("oncall", &[])], LONG, day(1)).await.unwrap();
    let due = claim(store, LONG).await;
    let first = due.iter().find(|claim| claim.notice.what.at == day(1)).unwrap();
    store.delivery_end(first.token, DeliveryEnd::Sent, day(1)).await.unwrap();
    assert_eq!(store.rows_prune(day(5)).await.unwrap().notices, 1);
    let left: Vec<_> = all(store).await.into_iter().map(|(notice, _)| notice.what.at).collect();
    assert_eq!(left, [day(8), day(2)]);
}
