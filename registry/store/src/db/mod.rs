//! The database: its transactions, and what its errors mean to a caller. [`sqlite`] and [`postgres`] say how each is
//! opened and why what runs side by side stays right.

pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::error::ErrorKind;
use sqlx::{Sqlite, Transaction};
use tidegate_registry::store::{Result, StoreError};

use self::postgres::{PostgresDb, Session};
use self::sqlite::SqliteDb;
use crate::sql::query;

/// A database.
#[derive(Clone)]
pub(crate) enum Db {
    Sqlite(SqliteDb),
    Postgres(PostgresDb),
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(db) => db.fmt(f),
            Self::Postgres(db) => db.fmt(f),
        }
    }
}

/// What queries run on.
pub(crate) enum Conn {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Session),
}

/// The owner of a [`Conn`]: unless it is [`commit`]ted, what was written is taken back.
pub(crate) struct Tx(Conn);

impl Deref for Tx {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.0
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.0
    }
}

impl Db {
    /// A transaction that will write. On SQLite nobody else writes until it ends; on PostgreSQL it has to lock what its
    /// decisions rest on, see [`postgres`].
    pub(crate) async fn write(&self) -> Result<Tx> {
        match self {
            Self::Sqlite(db) => db.write().await.map(|tx| Tx(Conn::Sqlite(tx))),
            Self::Postgres(db) => db.write().await.map(|session| Tx(Conn::Postgres(session))),
        }
    }

    /// The same, one at a time per registry: for what decides by the highest number so far or by what is absent.
    pub(crate) async fn write_alone(&self) -> Result<Tx> {
        match self {
            Self::Sqlite(_) => self.write().await,
            Self::Postgres(db) => db.write_alone().await.map(|session| Tx(Conn::Postgres(session))),
        }
    }

    /// For a write of a single statement, which PostgreSQL commits by itself.
    pub(crate) async fn write_one(&self) -> Result<Tx> {
        match self {
            Self::Sqlite(_) => self.write().await,
            Self::Postgres(db) => db.alone().await.map(|session| Tx(Conn::Postgres(session))),
        }
    }

    /// For reading. On SQLite all queries see one state; on PostgreSQL each sees its own, so a query that must agree
    /// with an earlier one needs [`Self::read_together`].
    pub(crate) async fn read(&self) -> Result<Tx> {
        match self {
            Self::Sqlite(db) => db.read().await.map(|tx| Tx(Conn::Sqlite(tx))),
            Self::Postgres(db) => db.alone().await.map(|session| Tx(Conn::Postgres(session))),
        }
    }

    /// For reading with several queries that see one state. Ends with [`commit`].
    pub(crate) async fn read_together(&self) -> Result<Tx> {
        match self {
            Self::Sqlite(_) => self.read().await,
            Self::Postgres(db) => db.read_together().await.map(|session| Tx(Conn::Postgres(session))),
        }
    }

    /// Runs one method of the store: `call` is one whole transaction, begun anew when PostgreSQL gives it up for others'
    /// sake, and no longer waited for than `within`.
    pub(crate) async fn run<T, F: Future<Output = Result<T>>>(
        &self,
        within: Duration,
        call: impl Fn() -> F,
    ) -> Result<T> {
        match self {
            Self::Sqlite(_) => call().await,
            Self::Postgres(_) => postgres::run(within, call).await,
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(db) => db.close().await,
            Self::Postgres(db) => db.close().await,
        }
    }
}

impl Conn {
    /// From here on until the transaction ends, one at a time with whoever lines up for the same `what`.
    pub(crate) async fn line_up(&mut self, what: &'static str) -> Result<()> {
        if matches!(self, Self::Postgres(_)) {
            query("SELECT 1 FROM pg_advisory_xact_lock(hashtext($1), hashtext(current_schema()::text))")
                .bind(what)
                .execute(self)
                .await
                .map_err(on("waiting for our turn"))?;
        }
        Ok(())
    }

    /// Opens a part of the transaction that [`Self::part_keep`] keeps and [`Self::part_undo`] takes back.
    pub(crate) async fn part(&mut self) -> Result<()> {
        self.statement("SAVEPOINT part").await
    }

    pub(crate) async fn part_keep(&mut self) -> Result<()> {
        self.statement("RELEASE SAVEPOINT part").await
    }

    pub(crate) async fn part_undo(&mut self) -> Result<()> {
        self.statement("ROLLBACK TO SAVEPOINT part").await?;
        self.part_keep().await
    }

    async fn statement(&mut self, text: &'static str) -> Result<()> {
        query(text).execute(self).await.map_err(on("dividing a transaction"))?;
        Ok(())
    }
}

/// Ends a transaction for good.
pub(crate) async fn commit(tx: Tx) -> Result<()> {
    match tx.0 {
        Conn::Sqlite(tx) => tx.commit().await.map_err(on("committing")),
        Conn::Postgres(session) => session.commit().await.map_err(on("committing")),
    }
}

/// Gives a database error its meaning: `query.await.map_err(on("planning a DAG"))`.
pub(crate) fn on(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| match &error {
        sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed
        | sqlx::Error::Io(_) => StoreError::Unavailable(error.into()),
        _ if sqlite::is_passing(&error) || postgres::is_passing(&error) => StoreError::Unavailable(error.into()),
        sqlx::Error::Database(cause)
            if matches!(cause.kind(), ErrorKind::UniqueViolation | ErrorKind::ForeignKeyViolation) =>
        {
            StoreError::Conflict(format!("somebody else changed the registry at the same time, while {doing}"))
        }
        _ => StoreError::Internal { doing: doing.to_owned(), source: error.into() },
    }
}
