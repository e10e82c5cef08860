//! SQLite keeps every promise of the trait.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use tidegate_store::SqliteStore;
use tidegate_store::conformance::Fixture;

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/registry.db");
    Fixture {
        store: Arc::new(SqliteStore::open(&path).await.unwrap()),
        twin: Arc::new(SqliteStore::open(&path).await.unwrap()),
        guard: Box::new(folder),
    }
}

tidegate_store::conformance!(crate::fixture);
