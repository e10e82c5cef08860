//! PostgreSQL keeps every promise of the trait.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use tidegate_servers::Postgres;
use tidegate_store::PostgresStore;
use tidegate_store::conformance::Fixture;

async fn fixture() -> Fixture {
    let url = Postgres::shared().database().unwrap() + "&schema=registry";
    Fixture {
        store: Arc::new(PostgresStore::open(&url).await.unwrap()),
        twin: Arc::new(PostgresStore::open(&url).await.unwrap()),
        guard: Box::new(()),
    }
}

tidegate_store::conformance!(crate::fixture);
