//! The queries that run all the time must not grow with what lies finished in the tables.

use std::path::Path;
use std::time::Duration;

use chrono::DateTime;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
use tidegate_registry::store::{Store, StoreError};

use crate::{SqliteStore, claims, db, notices, planning};

async fn connect(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::ZERO);
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// The steps by which SQLite answers a query. Parameters need no values for that.
async fn steps(connection: &mut SqliteConnection, query: &str) -> Vec<String> {
    let rows = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"))).fetch_all(connection).await.unwrap();
    rows.iter().map(|row| row.get("detail")).collect()
}

#[tokio::test]
async fn ten_thousand_dags_cost_nothing_while_they_are_not_due() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let mut raw = connect(&path).await;
    sqlx::query(
        "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9999) \
         INSERT INTO dags (dag, due_at, created_at, changed) \
         SELECT 'dag_' || i, CASE i % 100 WHEN 0 THEN i ELSE 1000000000 END, 0, 1 FROM n",
    )
    .execute(&mut raw)
    .await
    .unwrap();
    let now = DateTime::from_timestamp_micros(999_999_999).unwrap();
    let due = store.dags_due(now, 1_000).await.unwrap();
    assert_eq!(due.len(), 100);
    assert!(due.is_sorted_by_key(|dag| dag.due_at));
    assert_eq!(store.next_due().await.unwrap(), DateTime::from_timestamp_micros(0));

    let plan = steps(&mut raw, planning::DUE).await;
    assert!(plan[0].starts_with("SEARCH dags USING INDEX dags_due (due_at<?)"), "{plan:?}");
    assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE") || step.contains("SCAN dags")), "{plan:?}");
    let plan = steps(&mut raw, "SELECT min(due_at) AS due_at FROM dags WHERE due_at IS NOT NULL").await;
    assert!(plan.iter().all(|step| step.contains("dags_due")), "{plan:?}");
}

#[tokio::test]
async fn claiming_looks_only_at_open_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let mut raw = connect(&path).await;
    // These indexes hold open rows only, and the order in which they hold them is the order of claiming.
    let plan = steps(&mut raw, claims::NEXT).await;
    assert_eq!(plan.len(), 2, "{plan:?}");
    assert_eq!(plan[0], "SCAN tasks USING INDEX tasks_ready");
    assert!(plan[1].starts_with("SEARCH runs USING INDEX") && plan[1].ends_with("(id=?)"), "{plan:?}");
    let plan = steps(&mut raw, claims::EXPIRED).await;
    assert_eq!(plan, ["SEARCH tasks USING INDEX tasks_leased (lease_until<?)"]);
    let plan = steps(&mut raw, "SELECT run, seq FROM tasks WHERE token = $1").await;
    assert!(plan[0].contains("USING INDEX tasks_token"), "{plan:?}");
    let plan =
        steps(&mut raw, "SELECT * FROM runs WHERE finished_at IS NULL ORDER BY interval_start, dag, revision").await;
    assert_eq!(plan, ["SCAN runs USING INDEX runs_open"]);
}

#[tokio::test]
async fn a_sender_looks_only_at_what_is_new_or_due() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    SqliteStore::open(&path).await.unwrap().close().await;
    let mut raw = connect(&path).await;
    let plan = steps(&mut raw, notices::ANY_NEW).await;
    assert_eq!(plan, ["SCAN notices USING COVERING INDEX notices_new"]);
    let plan = steps(&mut raw, notices::ANY_DUE).await;
    // Only what is still to be delivered, whichever of the two indexes is taken.
    assert!(plan[0].starts_with("SEARCH notice_deliveries USING INDEX notice_deliveries_"), "{plan:?}");
}

#[tokio::test]
async fn a_locked_file_is_a_reason_to_try_again_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal);
    let mut holder = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
    let mut other = connect(&path).await;
    let busy = sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap_err();
    assert!(matches!(db::on("trying")(busy), StoreError::Unavailable(_)));
}
