//! The embedded online store: one SQLite file, which any program with SQLite can read.
//!
//! ```sql
//! SELECT r.features FROM live JOIN feature_rows r USING (view, generation)
//! WHERE view = 'carrier_delays@v1' AND entity_key = 'AA';    -- {"avg_dep_delay_7d":"8.6","flights_7d":"612"}
//! ```
//!
//! `features` is a JSON object of feature name → canonical text, a null being absent; `event_timestamp` and
//! `expires_at` are microseconds since 1970 in UTC. Entities of two views are read from one run when both are read in one
//! transaction. SQLite has one writer at a time: all writes of this process queue for one connection, those of other
//! processes wait for the file's lock, and reads wait for nobody.

mod file;
mod in_place;
mod rows;
mod swap;
mod switches;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqlitePool;
use tidegate_registry::ids::{ProjectName, RegistryId, ViewId};
use tidegate_registry::switches::ViewSwitches;
use tidegate_registry::time::Instant;

use self::file::{commit, on};
use self::in_place::Right;
use self::rows::{ROWS_PER_TRANSACTION, count_rows, decode, read_live};
use super::{
    Begun, Changes, CutOver, EncodedRow, Expected, InPlace, Live, OnlineError, OnlineRow, OnlineStore, Result,
    Standing, stands,
};

/// An online store in one SQLite file.
#[derive(Debug)]
pub struct SqliteOnline {
    path: PathBuf,
    writer: SqlitePool,
    reader: SqlitePool,
}

impl fmt::Display for SqliteOnline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite://{}", self.path.display())
    }
}

#[async_trait]
impl OnlineStore for SqliteOnline {
    async fn claim_owner(&self, project: &ProjectName, registry: RegistryId) -> Result<()> {
        let mut tx = self.begin_write().await?;
        sqlx::query("INSERT INTO owner (one, project, registry) VALUES (1, $1, $2) ON CONFLICT (one) DO NOTHING")
            .bind(project.as_str())
            .bind(registry.to_string())
            .execute(&mut *tx)
            .await
            .map_err(on("claiming"))?;
        let owner: (String, String) =
            sqlx::query_as("SELECT project, registry FROM owner").fetch_one(&mut *tx).await.map_err(on("claiming"))?;
        if owner != (project.to_string(), registry.to_string()) {
            return Err(OnlineError::Owned { project: owner.0, registry: owner.1 });
        }
        commit(tx).await
    }

    async fn begin_generation(&self, view: &ViewId, generation: u64) -> Result<Begun> {
        swap::begin(self, view, generation).await
    }

    async fn write(&self, view: &ViewId, generation: u64, rows: &[EncodedRow]) -> Result<()> {
        swap::write(self, view, generation, rows).await
    }

    async fn finish_generation(&self, view: &ViewId, generation: u64, rows: u64) -> Result<()> {
        swap::finish(self, view, generation, rows).await
    }

    async fn cut_over(&self, views: &[CutOver]) -> Result<()> {
        swap::cut_over(self, views).await
    }

    async fn begin_upsert(&self, view: &ViewId, generation: u64, publish_number: u64) -> Result<InPlace> {
        in_place::begin(self, view, generation, publish_number).await
    }

    async fn upsert(&self, view: &ViewId, generation: u64, publish_number: u64, changes: &Changes) -> Result<()> {
        in_place::change(self, view, generation, publish_number, changes, Right::Upsert).await
    }

    async fn finish_upsert(&self, view: &ViewId, generation: u64, publish_number: u64, _rows: u64) -> Result<()> {
        // Rows are counted when somebody asks.
        in_place::change(self, view, generation, publish_number, &Changes::default(), Right::Upsert).await
    }

    async fn repair(&self, view: &ViewId, live: Expected, changes: &Changes) -> Result<()> {
        in_place::change(self, view, live.generation, live.publish_number, changes, Right::Repair).await
    }

    async fn claim_care(&self, view: &ViewId, owner: &str, lasts: Duration) -> Result<bool> {
        let claimed = sqlx::query(
            "INSERT INTO care (view, owner, expires_at) VALUES ($1, $2, CAST(unixepoch('subsec') * 1000 AS INTEGER) + $3)
             ON CONFLICT (view) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
             WHERE owner = excluded.owner OR expires_at <= CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        )
        .bind(view.to_string())
        .bind(owner)
        .bind(i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX))
        .execute(&self.writer)
        .await
        .map_err(on("claiming"))?;
        Ok(claimed.rows_affected() > 0)
    }

    async fn check(&self, view: &ViewId, expected: Expected) -> Result<Standing> {
        // One file holds all of it: where the right generation is live, its rows are.
        Ok(stands(self.live(view).await?.as_ref(), expected).unwrap_or(Standing::Whole))
    }

    async fn set_switches(&self, view: &ViewId, switches: &ViewSwitches) -> Result<u64> {
        switches::set(self, view, switches).await
    }

    async fn switches(&self, view: &ViewId) -> Result<ViewSwitches> {
        switches::read(self, view).await
    }

    async fn live(&self, view: &ViewId) -> Result<Option<Live>> {
        let mut tx = self.reader.begin().await.map_err(on("reading"))?;
        read_live(&mut tx, &view.to_string()).await
    }

    async fn get_many(&self, keys: &[(ViewId, String)], now: Instant) -> Result<Vec<Option<OnlineRow>>> {
        let mut tx = self.reader.begin().await.map_err(on("reading"))?;
        let mut found = Vec::with_capacity(keys.len());
        for (view, entity_key) in keys {
            let row = sqlx::query(
                "SELECT entity_key, event_timestamp, expires_at, features
                 FROM live JOIN feature_rows USING (view, generation)
                 WHERE view = $1 AND entity_key = $2 AND coalesce(expires_at > $3, TRUE)",
            )
            .bind(view.to_string())
            .bind(entity_key)
            .bind(now.timestamp_micros())
            .fetch_optional(&mut *tx)
            .await
            .map_err(on("reading"))?;
            found.push(row.map(|row| decode(&row)).transpose()?.map(|(_, row)| row));
        }
        Ok(found)
    }

    async fn discard(&self, view: &ViewId, generation: u64) -> Result<()> {
        swap::wipe(self, &view.to_string(), stored(view, generation)?, "writing").await.map(drop)
    }

    async fn prune(&self, view: &ViewId, keep: u32, age_min: Duration, dead_below: u64) -> Result<Vec<u64>> {
        swap::prune(self, view, keep, age_min, dead_below).await
    }

    async fn count(&self, view: &ViewId, generation: u64) -> Result<u64> {
        let mut tx = self.reader.begin().await.map_err(on("reading"))?;
        count_rows(&mut tx, &view.to_string(), stored(view, generation)?).await
    }

    async fn scan(
        &self,
        view: &ViewId,
        generation: u64,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, OnlineRow)>> {
        let rows = sqlx::query(
            "SELECT entity_key, event_timestamp, expires_at, features FROM feature_rows
             WHERE view = $1 AND generation = $2 AND ($3 IS NULL OR entity_key > $3) ORDER BY entity_key LIMIT $4",
        )
        .bind(view.to_string())
        .bind(stored(view, generation)?)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.reader)
        .await
        .map_err(on("reading"))?;
        rows.iter().map(decode).collect()
    }

    async fn keys(
        &self,
        view: &ViewId,
        generation: u64,
        cursor: Option<&str>,
    ) -> Result<(Vec<String>, Option<String>)> {
        let keys: Vec<String> = sqlx::query_scalar(
            "SELECT entity_key FROM feature_rows
             WHERE view = $1 AND generation = $2 AND ($3 IS NULL OR entity_key > $3) ORDER BY entity_key LIMIT $4",
        )
        .bind(view.to_string())
        .bind(stored(view, generation)?)
        .bind(cursor)
        .bind(ROWS_PER_TRANSACTION as i64)
        .fetch_all(&self.reader)
        .await
        .map_err(on("reading"))?;
        let cursor = keys.last().cloned();
        Ok((keys, cursor))
    }

    async fn rows(&self, view: &ViewId, generation: u64, keys: &[String]) -> Result<Vec<Option<OnlineRow>>> {
        let mut tx = self.reader.begin().await.map_err(on("reading"))?;
        let mut found = Vec::with_capacity(keys.len());
        for entity_key in keys {
            let row = sqlx::query(
                "SELECT entity_key, event_timestamp, expires_at, features FROM feature_rows
                 WHERE view = $1 AND generation = $2 AND entity_key = $3",
            )
            .bind(view.to_string())
            .bind(stored(view, generation)?)
            .bind(entity_key)
            .fetch_optional(&mut *tx)
            .await
            .map_err(on("reading"))?;
            found.push(row.map(|row| decode(&row)).transpose()?.map(|(_, row)| row));
        }
        Ok(found)
    }

    async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// SQLite's integers are signed.
fn stored(view: &ViewId, number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| refused(view, number, "has a number beyond 2^63"))
}

fn refused(view: &ViewId, generation: u64, problem: &str) -> OnlineError {
    OnlineError::Generation { view: view.clone(), generation, problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::online::conformance::Fixture;
    use chrono::DateTime;
    use std::sync::Arc;

    async fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/online.db");
        let store = Arc::new(SqliteOnline::open(&path).await.unwrap());
        let twin = Arc::new(SqliteOnline::open(&path).await.unwrap());
        Fixture { store, twin, project: "flights".parse().unwrap(), guard: Box::new(folder) }
    }

    crate::online_conformance!(crate::online::sqlite::tests::fixture);

    #[tokio::test]
    async fn a_newer_layout_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("online.db");
        let store = SqliteOnline::open(&path).await.unwrap();
        sqlx::raw_sql("PRAGMA user_version = 9").execute(&store.writer).await.unwrap();
        store.close().await;
        let error = SqliteOnline::open(&path).await.unwrap_err();
        assert!(matches!(error, OnlineError::Internal { doing: "opening", .. }), "{error:?}");
    }

    #[tokio::test]
    async fn any_program_with_sqlite_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteOnline::open(&folder.path().join("online.db")).await.unwrap();
        let view: ViewId = "carrier_delays@v1".parse().unwrap();
        let row = EncodedRow {
            entity_key: "AA".into(),
            event_timestamp: DateTime::from_timestamp_micros(5).unwrap(),
            expires_at: None,
            features: vec![("avg_dep_delay_7d".into(), "8.6".into()), ("flights_7d".into(), "612".into())],
        };
        store.begin_generation(&view, 1).await.unwrap();
        store.write(&view, 1, &[row]).await.unwrap();
        store.finish_generation(&view, 1, 1).await.unwrap();
        let step = CutOver { view, generation: 1, publish_number: 1, tag: "s".into(), defaults: "{}".to_owned() };
        store.cut_over(&[step]).await.unwrap();
        let features: String = sqlx::query_scalar(
            "SELECT r.features FROM live JOIN feature_rows r USING (view, generation)
             WHERE view = 'carrier_delays@v1' AND entity_key = 'AA'",
        )
        .fetch_one(&store.reader)
        .await
        .unwrap();
        assert_eq!(features, r#"{"avg_dep_delay_7d":"8.6","flights_7d":"612"}"#);
    }
}
