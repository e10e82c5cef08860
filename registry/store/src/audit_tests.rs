//! What is done to the trail behind the program's back is noticed, and where; on both databases.

use std::path::Path;

use tidegate_registry::audit::{AuditBreak, NewAuditEvent};
use tidegate_registry::store::Store;
use tidegate_servers::Postgres;

use super::*;
use crate::conformance::world::day;
use crate::{PostgresStore, SqliteStore};

/// A trail of so many events on each database.
async fn both(folder: &Path, events: i64) -> [Db; 2] {
    let sqlite = SqliteStore::open(&folder.join("registry.db")).await.unwrap();
    let postgres = PostgresStore::open(&Postgres::shared().database().unwrap()).await.unwrap();
    for number in 1..=events {
        let event = NewAuditEvent::new(day(number), "ana", "test", format!("subject {number}"));
        sqlite.audit(event.clone()).await.unwrap();
        postgres.audit(event).await.unwrap();
    }
    [sqlite.db, postgres.db]
}

/// Takes the guards away for good, and does `what`.
async fn tamper(db: &Db, what: &[&'static str]) {
    let mut tx = db.write().await.unwrap();
    for name in ["audit_events_keep", "audit_events_stay"] {
        let text = match name {
            "audit_events_keep" => Sql {
                sqlite: "DROP TRIGGER IF EXISTS audit_events_keep",
                postgres: "DROP TRIGGER IF EXISTS audit_events_keep ON audit_events",
            },
            _ => Sql { sqlite: "DROP TRIGGER IF EXISTS audit_events_stay", postgres: "SELECT 1" },
        };
        query(text).execute(&mut tx).await.unwrap();
    }
    for text in what {
        query(*text).execute(&mut tx).await.unwrap();
    }
    commit(tx).await.unwrap();
}

async fn is_found(what: &[&'static str], expected: AuditBreak) {
    let folder = tempfile::tempdir().unwrap();
    for db in both(folder.path(), 5).await {
        assert_eq!(verify(&db, None).await.unwrap().broken, None);
        tamper(&db, what).await;
        assert_eq!(verify(&db, None).await.unwrap().broken.as_ref(), Some(&expected), "{what:?}");
    }
}

#[tokio::test]
async fn a_changed_event_is_noticed() {
    for change in [
        "UPDATE audit_events SET actor = 'eve' WHERE id = 3",
        "UPDATE audit_events SET at = at + 1 WHERE id = 3",
        "UPDATE audit_events SET recorded_at = recorded_at + 1 WHERE id = 3",
        "UPDATE audit_events SET reason = '' WHERE id = 3",
        "UPDATE audit_events SET duration = 0 WHERE id = 3",
        "UPDATE audit_events SET detail = '{ }' WHERE id = 3",
        "UPDATE audit_events SET hash = 'f' WHERE id = 3",
    ] {
        is_found(&[change], AuditBreak::Changed { number: 3 }).await;
    }
}

#[tokio::test]
async fn a_removed_event_is_noticed() {
    is_found(&["DELETE FROM audit_events WHERE id = 1"], AuditBreak::Removed { from: 1, to: 1 }).await;
    is_found(&["DELETE FROM audit_events WHERE id IN (2, 3)"], AuditBreak::Removed { from: 2, to: 3 }).await;
    // The later ones moved up, so that no number is missing.
    let moved_up = [
        "DELETE FROM audit_events WHERE id = 3",
        "UPDATE audit_events SET id = 3 WHERE id = 4",
        "UPDATE audit_events SET id = 4 WHERE id = 5",
    ];
    is_found(&moved_up, AuditBreak::Changed { number: 3 }).await;
}

#[tokio::test]
async fn swapped_events_are_noticed() {
    let swapped = [
        "UPDATE audit_events SET id = 99 WHERE id = 2",
        "UPDATE audit_events SET id = 2 WHERE id = 4",
        "UPDATE audit_events SET id = 4 WHERE id = 99",
    ];
    is_found(&swapped, AuditBreak::Changed { number: 2 }).await;
}

#[tokio::test]
async fn an_event_that_was_put_in_is_noticed() {
    let put_in = "INSERT INTO audit_events (id, at, actor, action, subject, detail, hash) \
                  VALUES (6, 0, 'eve', 'apply', 'flights', '{}', 'f')";
    is_found(&[put_in], AuditBreak::Changed { number: 6 }).await;
}

#[tokio::test]
async fn missing_newest_events_are_noticed() {
    let removed = "DELETE FROM audit_events WHERE id > 3";
    is_found(&[removed], AuditBreak::Truncated { at: 3, written: 5 }).await;
    // Whoever also moves the head back is found out by the one that was noted elsewhere.
    let folder = tempfile::tempdir().unwrap();
    for db in both(folder.path(), 5).await {
        let noted = verify(&db, None).await.unwrap().head;
        let back = "UPDATE audit_head SET number = 3, hash = (SELECT hash FROM audit_events WHERE id = 3)";
        tamper(&db, &[removed, back]).await;
        assert_eq!(verify(&db, None).await.unwrap().broken, None);
        let verdict = verify(&db, Some(&noted)).await.unwrap();
        assert_eq!(verdict.broken, Some(AuditBreak::HeadUnknown { head: noted }));
    }
}

/// An older registry has events without a hash: its trail becomes a chain when it is brought up to date.
#[tokio::test]
async fn events_that_are_older_than_the_chain_are_chained() {
    let folder = tempfile::tempdir().unwrap();
    for db in both(folder.path(), 0).await {
        let old = "INSERT INTO audit_events (id, at, actor, action, subject, detail) \
                   VALUES (2, 0, 'ana', 'apply', 'flights', '{}'), (7, 1, 'ben', 'publish', 'x', '{\"a\":1}')";
        let refused = query(old).execute(&mut db.write().await.unwrap()).await.unwrap_err().to_string();
        assert!(refused.contains("use a newer version"), "an older program that still runs: {refused}");
        let mut tx = db.write().await.unwrap();
        query(Sql {
            sqlite: "DROP TRIGGER audit_events_chained",
            postgres: "DROP TRIGGER audit_events_chained ON audit_events",
        })
        .execute(&mut tx)
        .await
        .unwrap();
        query(old).execute(&mut tx).await.unwrap();
        begin_chain(&mut tx).await.unwrap();
        commit(tx).await.unwrap();
        add(&db, &NewAuditEvent::new(day(1), "ana", "test", "x")).await.unwrap();
        let verdict = verify(&db, None).await.unwrap();
        assert_eq!((verdict.events, verdict.number, &verdict.broken), (3, 8, &None), "numbers may be missing there");
        tamper(&db, &["UPDATE audit_events SET subject = 'y' WHERE id = 7"]).await;
        // What was numbered with gaps cannot tell one from the other.
        let broken = verify(&db, None).await.unwrap().broken;
        assert_eq!(broken, Some(AuditBreak::Removed { from: 3, to: 6 }));
    }
}
