//! A registry in one SQLite file.
//!
//! SQLite has one writer at a time. All writes of this process go through one connection, so they queue here in order
//! instead of polling for the file's lock; other processes are waited for by `busy_timeout`. Every write begins with
//! `BEGIN IMMEDIATE`: a transaction that reads first and writes later could otherwise find that somebody wrote in
//! between, which fails at once however long the time-out.
//!
//! SQLite ends a transaction by itself when the disk is full or broken, and the client library, whose ROLLBACK then fails,
//! thinks for ever that it is open. Such a connection is thrown away.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteError, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, SqliteConnection, SqlitePool, Transaction};
use tidegate_registry::store::{Result, StoreError};

use super::{Conn, Link, on};
use crate::schema;

/// How long a write waits for another process's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const READERS: u32 = 4;

/// One writer and some readers on one file.
#[derive(Debug, Clone)]
pub(crate) struct SqliteDb {
    writer: SqlitePool,
    reader: SqlitePool,
}

impl SqliteDb {
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            tokio::fs::create_dir_all(folder).await.map_err(|source| StoreError::Internal {
                doing: format!("creating the folder `{}`", folder.display()),
                source: source.into(),
            })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full);
        enter_wal(&options).await?;
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options.clone())
            .await
            .map_err(on("opening the registry"))?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_lazy_with(options.read_only(true).create_if_missing(false));
        let db = Self { writer, reader };
        let mut conn = Conn::new(Link::Sqlite(db.write().await?));
        schema::migrate(&mut conn).await?;
        if let Link::Sqlite(tx) = conn.link {
            tx.commit().await.map_err(on("committing"))?;
        }
        Ok(db)
    }

    pub(crate) async fn write(&self) -> Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(on("beginning a write"))
    }

    pub(crate) async fn read(&self) -> Result<Transaction<'static, Sqlite>> {
        self.reader.begin().await.map_err(on("beginning a read"))
    }

    pub(crate) async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// Switches the file to write-ahead logging, which then stays with it. Two processes that open a new file together can
/// meet here, and SQLite answers that at once as busy, whatever the time-out: so it is tried again for as long.
async fn enter_wal(options: &SqliteConnectOptions) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(50);
    let options = options.clone().journal_mode(SqliteJournalMode::Wal);
    let mut attempt = 0;
    loop {
        attempt += 1;
        match SqliteConnection::connect_with(&options).await {
            Ok(connection) => return connection.close().await.map_err(on("opening the registry")),
            Err(error) if is_passing(&error) && PAUSE * attempt < BUSY_TIMEOUT => tokio::time::sleep(PAUSE).await,
            // Also what stays busy or cannot be opened: its own words say which.
            Err(error) => return Err(on("opening the registry")(error)),
        }
    }
}

/// Busy, locked, an input/output error, a full disk, or a file that cannot be opened: things that pass.
pub(crate) fn is_passing(error: &sqlx::Error) -> bool {
    const PASSING: [i32; 5] = [5, 6, 10, 13, 14];
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<SqliteError>())
        .and_then(sqlx::error::DatabaseError::code)
        .and_then(|code| code.parse::<i32>().ok())
        // The low byte is the primary code, the rest tells more.
        .is_some_and(|code| PASSING.contains(&(code & 0xff)))
}

#[cfg(test)]
mod tests {
    use sqlx::Row;

    use super::*;

    #[tokio::test]
    async fn a_full_disk_passes() {
        let folder = tempfile::tempdir().unwrap();
        let db = SqliteDb::open(&folder.path().join("registry.db")).await.unwrap();
        // For this connection alone.
        sqlx::query("PRAGMA max_page_count = 1").execute(&db.writer).await.unwrap();
        let mut tx = db.write().await.unwrap();
        let text = "x".repeat(1 << 20);
        let filled = sqlx::query("CREATE TABLE big AS SELECT $1 AS text").bind(text).execute(&mut *tx).await;
        assert!(is_passing(&filled.unwrap_err()));
        drop(tx);
        let tx = db.write().await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_committed_is_on_disk_and_readers_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let db = SqliteDb::open(&folder.path().join("registry.db")).await.unwrap();
        let row = sqlx::query(
            "SELECT journal_mode, synchronous, foreign_keys \
             FROM pragma_journal_mode, pragma_synchronous, pragma_foreign_keys",
        )
        .fetch_one(&db.writer)
        .await
        .unwrap();
        // 2 is FULL: synced with every commit.
        assert_eq!((row.get::<String, _>(0), row.get::<i64, _>(1), row.get::<i64, _>(2)), ("wal".to_owned(), 2, 1));
        assert!(sqlx::query("DELETE FROM workers").execute(&db.reader).await.is_err());
    }
}
