//! What is particular to a registry in a file.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::error::Error;
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Row, SqliteConnection};
use tidegate_registry::store::{ApplyRequest, Store, StoreError};
use tidegate_store::SqliteStore;
use tokio::task::JoinSet;

async fn connect(path: &Path) -> SqliteConnection {
    SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(path)).await.unwrap()
}

async fn schema(path: &Path) -> String {
    let rows = sqlx::query("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY tbl_name, type DESC, name")
        .fetch_all(&mut connect(path).await)
        .await
        .unwrap();
    rows.iter().map(|row| format!("{};\n", row.get::<String, _>("sql"))).collect()
}

#[tokio::test]
async fn migrating_from_nothing_yields_the_committed_schema() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let found = schema(&path).await;
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schema.sql");
    std::fs::write(&copy, &found).unwrap();
    let committed = include_str!("../schema.sql");
    assert!(found == committed, "if the change is meant, copy {} over schema.sql:\n{found}", copy.display());
}

#[tokio::test]
async fn a_registry_keeps_everything_when_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.apply(empty_apply(0)).await.unwrap();
    let info = store.info().await.unwrap();
    store.close().await;
    assert!(matches!(store.info().await, Err(StoreError::Unavailable(_))), "closed");
    let before = schema(&path).await;
    let again = SqliteStore::open(&path).await.unwrap();
    assert_eq!(again.info().await.unwrap(), info);
    assert_eq!(schema(&path).await, before);
}

fn empty_apply(base: i64) -> ApplyRequest {
    ApplyRequest {
        project: "flights".to_owned(),
        base,
        changes: Default::default(),
        tables: Default::default(),
        actor: "ana".to_owned(),
        message: None,
        now: chrono::DateTime::from_timestamp(0, 0).unwrap(),
    }
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    sqlx::query("INSERT INTO schema_steps (version, name) VALUES (999, 'from the future')")
        .execute(&mut connect(&path).await)
        .await
        .unwrap();
    let refused = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused:?}");
    assert!(refused.to_string().contains("schema version 999"), "{refused}");
}

#[tokio::test]
async fn what_is_no_registry_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    let text = "these are notes, and no database ".repeat(100);
    std::fs::write(&path, &text).unwrap();
    let refused = SqliteStore::open(&path).await.unwrap_err();
    assert!(refused.source().is_some(), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let below_a_file = SqliteStore::open(&path.join("registry.db")).await.unwrap_err();
    assert!(below_a_file.to_string().contains("creating the folder"), "{below_a_file}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_together_make_one_registry() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/registry.db");
    let mut openers = JoinSet::new();
    for _ in 0..8 {
        let path = path.clone();
        openers.spawn(async move { SqliteStore::open(&path).await.unwrap().info().await.unwrap().id });
    }
    let ids = openers.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn audit_events_are_only_ever_added() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.apply(empty_apply(0)).await.unwrap();
    let mut raw = connect(&path).await;
    for tampering in ["UPDATE audit_events SET actor = 'eve'", "DELETE FROM audit_events"] {
        let refused = sqlx::query(tampering).execute(&mut raw).await.unwrap_err();
        assert!(refused.to_string().contains("only ever added"), "{refused}");
    }
    let row = sqlx::query("SELECT actor, action, subject FROM audit_events").fetch_one(&mut raw).await.unwrap();
    let found: (String, String, String) = (row.get("actor"), row.get("action"), row.get("subject"));
    assert_eq!(found, ("ana".to_owned(), "apply".to_owned(), "flights".to_owned()));
}
