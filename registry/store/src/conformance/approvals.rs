//! Approvals: asked for once, given once, used once, and told each time.

use tidegate_registry::audit::AuditFilter;
use tidegate_registry::ids::{ApprovalId, SnapshotId};
use tidegate_registry::notice::{NoticeEvent, NoticeFilter};
use tidegate_registry::restore::policy::Approval;
use tidegate_registry::store::StoreError;

use super::Fixture;
use super::world::{World, day};

/// A request of `ana@host`.
pub(crate) fn approval(ask: &str) -> Approval {
    Approval {
        id: ApprovalId::generate(),
        ask: ask.to_owned(),
        summary: "restore a@v1".to_owned(),
        views: vec!["a@v1".parse().unwrap()],
        approvers: vec!["ben".to_owned()],
        requester: "ana@host".to_owned(),
        reason: "odd".to_owned(),
        requested_at: day(3),
        approved_by: None,
        approved_at: None,
        used_for: None,
    }
}

/// Asking again is the same request as long as it waits.
pub async fn a_request_waits_for_one_approval_and_is_used_once(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    let asked = store.approval_request(&approval("x")).await.unwrap();
    let again = Approval { requester: "ana@elsewhere".to_owned(), ..approval("x") };
    assert_eq!(store.approval_request(&again).await.unwrap(), asked);
    let other = store.approval_request(&approval("y")).await.unwrap();
    let ids = |all: Vec<Approval>| all.into_iter().map(|known| known.id).collect::<Vec<_>>();
    assert_eq!(ids(store.approvals(0).await.unwrap()), [other.id, asked.id], "the newest first");
    assert_eq!(ids(store.approvals(1).await.unwrap()), [other.id]);

    let refused = store.approval_use(asked.id, "r").await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict(_)), "{refused:?}");
    store.approve(asked.id, "ben@host", day(4)).await.unwrap();
    store.approve(asked.id, "ben@host", day(5)).await.unwrap();
    let refused = store.approve(asked.id, "eve@host", day(5)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict(_)), "{refused:?}");
    let unknown = store.approve(ApprovalId::generate(), "ben@host", day(5)).await.unwrap_err();
    assert!(matches!(unknown, StoreError::NotFound { .. }), "{unknown:?}");
    let given = store.approvals(0).await.unwrap().pop().unwrap();
    assert_eq!((given.approved_by.as_deref(), given.approved_at), (Some("ben@host"), Some(day(4))));

    store.approval_use(asked.id, "r").await.unwrap();
    store.approval_use(asked.id, "r").await.unwrap();
    let refused = store.approval_use(asked.id, "s").await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict(_)), "{refused:?}");
    assert_ne!(store.approval_request(&approval("x")).await.unwrap().id, asked.id, "what was used is asked for anew");

    let filter = AuditFilter { action: Some("appro".to_owned()), ..AuditFilter::default() };
    assert_eq!(store.audit_events(&filter).await.unwrap().len(), 4);
    let told = store.notices(&NoticeFilter::default()).await.unwrap();
    let count = |event| told.iter().filter(|(notice, _)| notice.what.event == event).count();
    assert_eq!((count(NoticeEvent::ApprovalRequested), count(NoticeEvent::ApprovalGranted)), (3, 1));
}

/// In project time; what nobody knows has no age.
pub async fn the_age_of_what_is_taken_back_is_that_of_its_oldest_snapshot(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    assert_eq!(world.store.oldest_recorded(&[]).await.unwrap(), None);
    assert_eq!(world.store.oldest_recorded(&[SnapshotId::generate()]).await.unwrap(), None);
    let mut ids = Vec::new();
    for number in 0..2 {
        world.publish(world.admitted("daily", number).await).await;
        ids.push(world.store.snapshots(None, None, 1).await.unwrap()[0].clone());
    }
    let all: Vec<SnapshotId> = ids.iter().map(|snapshot| snapshot.id).collect();
    let oldest = ids.iter().map(|snapshot| snapshot.created_at).min();
    assert_eq!(world.store.oldest_recorded(&all).await.unwrap(), oldest);
}
