//! The file: its layout, how it is opened and written, and what its errors mean.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, SqliteConnection, Transaction};

use super::SqliteOnline;
use crate::online::{OnlineError, Result};

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
    CREATE TABLE IF NOT EXISTS defaults (
        view TEXT NOT NULL PRIMARY KEY,
        features TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS switches (
        view TEXT NOT NULL PRIMARY KEY,
        revision INTEGER NOT NULL,
        features TEXT NOT NULL
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
    pub(super) async fn begin_write(&self) -> Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(on("beginning a write to"))
    }
}

pub(super) async fn commit(tx: Transaction<'static, Sqlite>) -> Result<()> {
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
pub(super) fn on(doing: &'static str) -> impl FnOnce(sqlx::Error) -> OnlineError {
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
