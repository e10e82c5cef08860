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

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use chrono::DateTime;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, Row, Sqlite, SqliteConnection, SqlitePool, Transaction};
use tidegate_registry::ids::{ProjectName, RegistryId, ViewId};
use tidegate_registry::time::Instant;

use super::{
    Begun, Changes, CutOver, EncodedRow, Expected, InPlace, Live, OnlineError, OnlineRow, OnlineStore, Result,
    Standing, stands,
};

/// Version of the layout below, kept in the file as `user_version`. Readers of other makers rely on it.
const LAYOUT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS owner (
        one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
        project TEXT NOT NULL,
        registry TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS live (
        view TEXT NOT NULL PRIMARY KEY,
        generation INTEGER NOT NULL,
        publish_number INTEGER NOT NULL,
        tag TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS generations (
        view TEXT NOT NULL,
        generation INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('writing', 'finished', 'published', 'removing')),
        superseded_at INTEGER,
        PRIMARY KEY (view, generation)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS writers (
        view TEXT NOT NULL PRIMARY KEY,
        publish_number INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS care (
        view TEXT NOT NULL PRIMARY KEY,
        owner TEXT NOT NULL,
        expires_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS feature_rows (
        view TEXT NOT NULL,
        generation INTEGER NOT NULL,
        entity_key TEXT NOT NULL,
        event_timestamp INTEGER NOT NULL,
        expires_at INTEGER,
        features TEXT NOT NULL,
        PRIMARY KEY (view, generation, entity_key)
    ) STRICT, WITHOUT ROWID;
";

/// How long a write waits for another process's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;
/// Rows of one INSERT statement: fewer round trips to SQLite's thread, and well below its limit of 32,766 parameters.
const ROWS_PER_STATEMENT: usize = 250;
/// Rows of one transaction: other writers wait no longer than one of these takes.
const ROWS_PER_TRANSACTION: usize = 5_000;

/// An online store in one SQLite file.
#[derive(Debug)]
pub struct SqliteOnline {
    path: PathBuf,
    writer: SqlitePool,
    reader: SqlitePool,
}

impl SqliteOnline {
    /// Opens the file at `path`, creating it and its folder when they do not exist.
    ///
    /// # Errors
    /// When it cannot be opened, or its layout is newer than this program knows.
    pub async fn open(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let made = tokio::fs::create_dir_all(folder).await;
            made.map_err(|source| OnlineError::Internal { doing: "creating the folder of", source: source.into() })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .busy_timeout(BUSY_TIMEOUT)
            .synchronous(SqliteSynchronous::Full);
        enter_wal(&options).await?;
        // A full disk ends a transaction without the client library's knowledge: such a connection is thrown away.
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options.clone())
            .await;
        let writer = writer.map_err(on("opening"))?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_lazy_with(options.read_only(true).create_if_missing(false));
        let store = Self { path: path.to_owned(), writer, reader };
        store.lay_out().await?;
        Ok(store)
    }

    async fn lay_out(&self) -> Result<()> {
        let mut tx = self.begin_write().await?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *tx).await.map_err(on("opening"))?;
        if found > LAYOUT {
            let source = format!("its layout is version {found}, and this program knows versions up to {LAYOUT}");
            return Err(OnlineError::Internal { doing: "opening", source: source.into() });
        }
        sqlx::raw_sql(SCHEMA).execute(&mut *tx).await.map_err(on("laying out"))?;
        sqlx::raw_sql("PRAGMA user_version = 1").execute(&mut *tx).await.map_err(on("laying out"))?;
        commit(tx).await
    }

    /// A transaction that will write. `BEGIN IMMEDIATE`: one that reads first and writes later could find that somebody
    /// else wrote in between, which fails at once however long the time-out.
    async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(on("beginning a write to"))
    }

    /// Changes rows in place. Each transaction asks again who may, so a writer that was overtaken changes nothing.
    async fn change(
        &self,
        view: &ViewId,
        generation: u64,
        publish_number: u64,
        changes: &Changes,
        right: Right,
    ) -> Result<()> {
        let (name, number) = (view.to_string(), stored(view, generation)?);
        let rows: Vec<&[EncodedRow]> =
            changes.added.chunks(ROWS_PER_STATEMENT).chain(changes.changed.chunks(ROWS_PER_STATEMENT)).collect();
        let removed: Vec<&[String]> = changes.removed.chunks(ROWS_PER_STATEMENT).collect();
        const STEPS: usize = ROWS_PER_TRANSACTION / ROWS_PER_STATEMENT;
        let steps = rows.len().max(removed.len()).div_ceil(STEPS).max(1);
        for step in 0..steps {
            let mut tx = self.begin_write().await?;
            let live = read_live(&mut tx, &name).await?;
            let writer = writer_of(&mut tx, &name).await?;
            let live_number = live.as_ref().map_or(0, |live| live.publish_number);
            let latest = writer.map_or(live_number, |writer| writer.max(live_number));
            let is_live = live.is_some_and(|live| live.generation == generation);
            let allowed = match right {
                Right::Upsert => is_live && writer == Some(publish_number),
                Right::Repair => is_live && live_number == publish_number && latest == publish_number,
            };
            if !allowed && (latest > publish_number || matches!(right, Right::Repair)) {
                return Err(OnlineError::Superseded { view: view.clone(), live: latest, asked: publish_number });
            }
            if !allowed {
                return Err(refused(view, generation, "is not being changed"));
            }
            for rows in rows.iter().skip(step * STEPS).take(STEPS) {
                insert(&mut tx, &name, number, rows).await?;
            }
            let removed: Vec<&String> = removed.iter().skip(step * STEPS).take(STEPS).flat_map(|keys| *keys).collect();
            for entity_key in removed {
                sqlx::query("DELETE FROM feature_rows WHERE view = $1 AND generation = $2 AND entity_key = $3")
                    .bind(&name)
                    .bind(number)
                    .bind(entity_key)
                    .execute(&mut *tx)
                    .await
                    .map_err(on("removing rows from"))?;
            }
            commit(tx).await?;
        }
        Ok(())
    }

    /// Deletes the rows of a generation in bounded steps, while its state is `state`; false when that changed.
    async fn wipe(&self, view: &str, generation: i64, state: &str) -> Result<bool> {
        loop {
            let mut tx = self.begin_write().await?;
            if state_of(&mut tx, view, generation).await?.as_deref() != Some(state) {
                return Ok(false);
            }
            let deleted = sqlx::query(
                "DELETE FROM feature_rows WHERE view = $1 AND generation = $2 AND entity_key IN (
                     SELECT entity_key FROM feature_rows WHERE view = $1 AND generation = $2 LIMIT $3)",
            )
            .bind(view)
            .bind(generation)
            .bind(ROWS_PER_TRANSACTION as i64)
            .execute(&mut *tx)
            .await
            .map_err(on("removing rows from"))?
            .rows_affected();
            if deleted == 0 {
                return Ok(true);
            }
            commit(tx).await?;
        }
    }
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
        let (name, number) = (view.to_string(), stored(view, generation)?);
        let mut tx = self.begin_write().await?;
        if state_of(&mut tx, &name, number).await?.as_deref() == Some("published") {
            return Ok(Begun::Published);
        }
        sqlx::query(
            "INSERT INTO generations (view, generation, state) VALUES ($1, $2, 'writing')
             ON CONFLICT (view, generation) DO UPDATE SET state = 'writing', superseded_at = NULL",
        )
        .bind(&name)
        .bind(number)
        .execute(&mut *tx)
        .await
        .map_err(on("beginning a generation in"))?;
        commit(tx).await?;
        if self.wipe(&name, number, "writing").await? {
            Ok(Begun::Empty)
        } else {
            Err(refused(view, generation, "was taken over while it was emptied"))
        }
    }

    async fn write(&self, view: &ViewId, generation: u64, rows: &[EncodedRow]) -> Result<()> {
        let (name, number) = (view.to_string(), stored(view, generation)?);
        for part in rows.chunks(ROWS_PER_TRANSACTION) {
            let mut tx = self.begin_write().await?;
            match state_of(&mut tx, &name, number).await?.as_deref() {
                Some("writing") => {}
                Some(_) => return Err(refused(view, generation, "is finished, no rows can be added")),
                None => return Err(refused(view, generation, "was not begun")),
            }
            for rows in part.chunks(ROWS_PER_STATEMENT) {
                insert(&mut tx, &name, number, rows).await?;
            }
            commit(tx).await?;
        }
        Ok(())
    }

    async fn finish_generation(&self, view: &ViewId, generation: u64, rows: u64) -> Result<()> {
        let (name, number) = (view.to_string(), stored(view, generation)?);
        let mut tx = self.begin_write().await?;
        match state_of(&mut tx, &name, number).await?.as_deref() {
            Some("writing" | "finished" | "published") => {}
            _ => return Err(refused(view, generation, "was not begun")),
        }
        let found = count_rows(&mut tx, &name, number).await?;
        if found != rows {
            return Err(refused(view, generation, &format!("holds {found} rows where {rows} were expected")));
        }
        sqlx::query(
            "UPDATE generations SET state = 'finished' WHERE view = $1 AND generation = $2 AND state = 'writing'",
        )
        .bind(&name)
        .bind(number)
        .execute(&mut *tx)
        .await
        .map_err(on("finishing a generation in"))?;
        commit(tx).await
    }

    async fn cut_over(&self, views: &[CutOver]) -> Result<()> {
        let mut tx = self.begin_write().await?;
        for step in views {
            let (name, number) = (step.view.to_string(), stored(&step.view, step.generation)?);
            let live = read_live(&mut tx, &name).await?;
            if let Some(live) = &live {
                let same = live.publish_number == step.publish_number && live.generation == step.generation;
                if same {
                    continue;
                }
                if live.publish_number >= step.publish_number {
                    return Err(OnlineError::Superseded {
                        view: step.view.clone(),
                        live: live.publish_number,
                        asked: step.publish_number,
                    });
                }
            }
            match state_of(&mut tx, &name, number).await?.as_deref() {
                Some("finished" | "published") => {}
                Some("writing") => return Err(refused(&step.view, step.generation, "is not finished")),
                _ => return Err(refused(&step.view, step.generation, "does not exist")),
            }
            switch(&mut tx, &name, number, step).await?;
        }
        commit(tx).await
    }

    async fn begin_upsert(&self, view: &ViewId, generation: u64, publish_number: u64) -> Result<InPlace> {
        let name = view.to_string();
        let mut tx = self.begin_write().await?;
        let Some(live) = read_live(&mut tx, &name).await? else { return Ok(InPlace::Gone) };
        let superseded = |live: u64| OnlineError::Superseded { view: view.clone(), live, asked: publish_number };
        if live.generation != generation {
            return if live.publish_number >= publish_number {
                Err(superseded(live.publish_number))
            } else {
                Ok(InPlace::Gone)
            };
        }
        if live.publish_number == publish_number {
            return Ok(InPlace::Published);
        }
        let writer = writer_of(&mut tx, &name).await?;
        let latest = writer.map_or(live.publish_number, |writer| writer.max(live.publish_number));
        if latest > publish_number {
            return Err(superseded(latest));
        }
        // Somebody began to change rows and never came to cut over: nobody knows what they are like.
        if latest > live.publish_number && latest != publish_number {
            return Ok(InPlace::Gone);
        }
        sqlx::query(
            "INSERT INTO writers (view, publish_number) VALUES ($1, $2)
             ON CONFLICT (view) DO UPDATE SET publish_number = $2",
        )
        .bind(&name)
        .bind(stored(view, publish_number)?)
        .execute(&mut *tx)
        .await
        .map_err(on("beginning to change"))?;
        commit(tx).await?;
        Ok(InPlace::Ready)
    }

    async fn upsert(&self, view: &ViewId, generation: u64, publish_number: u64, changes: &Changes) -> Result<()> {
        self.change(view, generation, publish_number, changes, Right::Upsert).await
    }

    async fn finish_upsert(&self, view: &ViewId, generation: u64, publish_number: u64, _rows: u64) -> Result<()> {
        // Rows are counted when somebody asks.
        self.change(view, generation, publish_number, &Changes::default(), Right::Upsert).await
    }

    async fn repair(&self, view: &ViewId, live: Expected, changes: &Changes) -> Result<()> {
        self.change(view, live.generation, live.publish_number, changes, Right::Repair).await
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
        self.wipe(&view.to_string(), stored(view, generation)?, "writing").await.map(drop)
    }

    async fn prune(&self, view: &ViewId, keep: u32, age_min: Duration, dead_below: u64) -> Result<Vec<u64>> {
        let name = view.to_string();
        let mut tx = self.begin_write().await?;
        let listed: Vec<(i64, String, Option<i64>, i64)> = sqlx::query_as(
            "SELECT generation, state, superseded_at, CAST(unixepoch('subsec') * 1000000 AS INTEGER) - superseded_at
             FROM generations
             WHERE view = $1 AND generation NOT IN (SELECT generation FROM live WHERE view = $1)
             ORDER BY superseded_at DESC NULLS FIRST, generation DESC",
        )
        .bind(&name)
        .fetch_all(&mut *tx)
        .await
        .map_err(on("listing generations of"))?
        .iter()
        .map(|row: &(i64, String, Option<i64>, Option<i64>)| (row.0, row.1.clone(), row.2, row.3.unwrap_or(0)))
        .collect();
        let mut superseded = 0;
        let mut removed = Vec::new();
        for (generation, state, superseded_at, age) in listed {
            let unneeded = match (state.as_str(), superseded_at) {
                ("removing", _) => true,
                ("published", Some(_)) => {
                    superseded += 1;
                    let old_enough = age >= 0 && u128::from(age.unsigned_abs()) >= age_min.as_micros();
                    superseded > keep && old_enough
                }
                _ => generation.unsigned_abs() < dead_below,
            };
            if unneeded {
                sqlx::query("UPDATE generations SET state = 'removing' WHERE view = $1 AND generation = $2")
                    .bind(&name)
                    .bind(generation)
                    .execute(&mut *tx)
                    .await
                    .map_err(on("removing generations from"))?;
                removed.push(generation);
            }
        }
        commit(tx).await?;
        for &generation in &removed {
            fail::fail_point!("prune.doomed");
            if self.wipe(&name, generation, "removing").await? {
                fail::fail_point!("prune.wiped");
                sqlx::query(
                    "DELETE FROM generations WHERE view = $1 AND generation = $2 AND state = 'removing'
                     AND NOT EXISTS (SELECT 1 FROM feature_rows r WHERE r.view = $1 AND r.generation = $2)",
                )
                .bind(&name)
                .bind(generation)
                .execute(&self.writer)
                .await
                .map_err(on("removing generations from"))?;
            }
        }
        removed.sort_unstable();
        Ok(removed.into_iter().map(i64::unsigned_abs).collect())
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

/// By what a writer changes rows that are read.
#[derive(Clone, Copy)]
enum Right {
    /// It has begun an upsert, and nobody a later one.
    Upsert,
    /// What it puts right is live.
    Repair,
}

/// The publication that changes rows of the view in place, or did so last.
async fn writer_of(tx: &mut Transaction<'static, Sqlite>, view: &str) -> Result<Option<u64>> {
    let number: Option<i64> = sqlx::query_scalar("SELECT publish_number FROM writers WHERE view = $1")
        .bind(view)
        .fetch_optional(&mut **tx)
        .await
        .map_err(on("reading"))?;
    Ok(number.map(i64::unsigned_abs))
}

async fn insert(tx: &mut Transaction<'static, Sqlite>, view: &str, generation: i64, rows: &[EncodedRow]) -> Result<()> {
    // Built of placeholders alone; there are few different lengths, so SQLite keeps the statements prepared.
    let mut sql = String::from(
        "INSERT OR REPLACE INTO feature_rows (view, generation, entity_key, event_timestamp, expires_at, features) VALUES ",
    );
    for position in 0..rows.len() {
        let first = 3 + 4 * position;
        let comma = if position > 0 { "," } else { "" };
        sql.push_str(&format!("{comma}($1,$2,${first},${},${},${})", first + 1, first + 2, first + 3));
    }
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(view).bind(generation);
    for row in rows {
        query = query
            .bind(&row.entity_key)
            .bind(row.event_timestamp.timestamp_micros())
            .bind(row.expires_at.map(|at| at.timestamp_micros()))
            .bind(features_json(&row.features));
    }
    query.execute(&mut **tx).await.map_err(on("writing rows to"))?;
    Ok(())
}

async fn switch(tx: &mut Transaction<'static, Sqlite>, view: &str, generation: i64, step: &CutOver) -> Result<()> {
    let failed = on("cutting over");
    let publish_number = stored(&step.view, step.publish_number)?;
    let switched = async {
        sqlx::query(
            "UPDATE generations SET superseded_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER)
             WHERE view = $1 AND generation <> $2 AND generation = (SELECT generation FROM live WHERE view = $1)",
        )
        .bind(view)
        .bind(generation)
        .execute(&mut **tx)
        .await?;
        sqlx::query(
            "UPDATE generations SET state = 'published', superseded_at = NULL WHERE view = $1 AND generation = $2",
        )
        .bind(view)
        .bind(generation)
        .execute(&mut **tx)
        .await?;
        sqlx::query(
            "INSERT INTO live (view, generation, publish_number, tag) VALUES ($1, $2, $3, $4)
             ON CONFLICT (view) DO UPDATE SET generation = $2, publish_number = $3, tag = $4",
        )
        .bind(view)
        .bind(generation)
        .bind(publish_number)
        .bind(&step.tag)
        .execute(&mut **tx)
        .await
    };
    switched.await.map_err(failed)?;
    Ok(())
}

async fn state_of(tx: &mut Transaction<'static, Sqlite>, view: &str, generation: i64) -> Result<Option<String>> {
    sqlx::query_scalar("SELECT state FROM generations WHERE view = $1 AND generation = $2")
        .bind(view)
        .bind(generation)
        .fetch_optional(&mut **tx)
        .await
        .map_err(on("reading"))
}

async fn count_rows(tx: &mut Transaction<'static, Sqlite>, view: &str, generation: i64) -> Result<u64> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM feature_rows WHERE view = $1 AND generation = $2")
        .bind(view)
        .bind(generation)
        .fetch_one(&mut **tx)
        .await
        .map_err(on("counting rows of"))?;
    Ok(count.unsigned_abs())
}

async fn read_live(tx: &mut Transaction<'static, Sqlite>, view: &str) -> Result<Option<Live>> {
    let row: Option<(i64, i64, String)> =
        sqlx::query_as("SELECT generation, publish_number, tag FROM live WHERE view = $1")
            .bind(view)
            .fetch_optional(&mut **tx)
            .await
            .map_err(on("reading"))?;
    Ok(row.map(|(generation, publish_number, tag)| Live {
        generation: generation.unsigned_abs(),
        publish_number: publish_number.unsigned_abs(),
        tag,
    }))
}

fn features_json(features: &[(String, String)]) -> String {
    let object = features.iter().map(|(name, text)| (name.clone(), serde_json::Value::String(text.clone())));
    serde_json::Value::Object(object.collect()).to_string()
}

fn decode(row: &SqliteRow) -> Result<(String, OnlineRow)> {
    let strange = |source: Box<dyn std::error::Error + Send + Sync>| OnlineError::Internal {
        doing: "understanding a row of",
        source,
    };
    let instant =
        |micros: i64| DateTime::from_timestamp_micros(micros).ok_or_else(|| strange("a time out of range".into()));
    let features: String = row.try_get("features").map_err(|error| strange(error.into()))?;
    let features: indexmap::IndexMap<String, String> =
        serde_json::from_str(&features).map_err(|error| strange(error.into()))?;
    let expires_at: Option<i64> = row.try_get("expires_at").map_err(|error| strange(error.into()))?;
    let entity_key = row.try_get("entity_key").map_err(|error| strange(error.into()))?;
    let row = OnlineRow {
        event_timestamp: instant(row.try_get("event_timestamp").map_err(|error| strange(error.into()))?)?,
        expires_at: expires_at.map(instant).transpose()?,
        features: features.into_iter().collect(),
    };
    Ok((entity_key, row))
}

/// SQLite's integers are signed.
fn stored(view: &ViewId, number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| refused(view, number, "has a number beyond 2^63"))
}

fn refused(view: &ViewId, generation: u64, problem: &str) -> OnlineError {
    OnlineError::Generation { view: view.clone(), generation, problem: problem.to_owned() }
}

async fn commit(tx: Transaction<'static, Sqlite>) -> Result<()> {
    tx.commit().await.map_err(on("committing to"))
}

/// Switches the file to write-ahead logging, which then stays with it. Two processes that open a new file together can
/// meet here, and SQLite answers that at once as busy, whatever the time-out: so it is tried again for as long.
async fn enter_wal(options: &SqliteConnectOptions) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(50);
    let options = options.clone().journal_mode(SqliteJournalMode::Wal);
    for _ in 0..BUSY_TIMEOUT.as_millis() / PAUSE.as_millis() {
        match SqliteConnection::connect_with(&options).await {
            Ok(connection) => return connection.close().await.map_err(on("opening")),
            Err(error) if is_passing(&error) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(on("opening")(error)),
        }
    }
    Err(OnlineError::Unavailable("the database file stayed locked while it was opened".into()))
}

/// Gives a database error its meaning: `query.await.map_err(on("reading"))`.
fn on(doing: &'static str) -> impl FnOnce(sqlx::Error) -> OnlineError {
    move |error| match &error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) => {
            OnlineError::Unavailable(error.into())
        }
        _ if is_passing(&error) => OnlineError::Unavailable(error.into()),
        _ => OnlineError::Internal { doing, source: error.into() },
    }
}

/// Busy, locked, an input/output error, a full disk, or a file that cannot be opened: things that pass.
fn is_passing(error: &sqlx::Error) -> bool {
    const PASSING: [i32; 5] = [5, 6, 10, 13, 14];
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .and_then(|code| code.parse::<i32>().ok())
        // The low byte is the primary code, the rest tells more.
        .is_some_and(|code| PASSING.contains(&(code & 0xff)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::online::conformance::Fixture;
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
