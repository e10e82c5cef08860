//! The database: its transactions, and what its errors mean to a caller. [`sqlite`] and [`postgres`] say how each is
//! opened and why what runs side by side stays right.

pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::ErrorKind;
use sqlx::{Sqlite, Transaction};
use tidegate_registry::store::{Change, Listener, Result, StoreError};

use self::postgres::{PostgresDb, Session};
use self::sqlite::SqliteDb;
use crate::sql::query;
use crate::wakes::{Changes, Wakes};

/// A database, and whom to tell of changes.
#[derive(Debug, Clone)]
pub(crate) struct Db {
    kind: Kind,
    wakes: Arc<Wakes>,
}

#[derive(Debug, Clone)]
enum Kind {
    Sqlite(SqliteDb),
    Postgres(PostgresDb),
}

/// What queries run on.
pub(crate) struct Conn {
    pub(crate) link: Link,
    changes: Changes,
}

pub(crate) enum Link {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Session),
}

/// The owner of a [`Conn`]: unless it is [`commit`]ted, what was written is taken back.
pub(crate) struct Tx {
    conn: Conn,
    wakes: Arc<Wakes>,
}

impl Deref for Tx {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

impl Db {
    pub(crate) async fn sqlite(path: &Path) -> Result<Self> {
        Ok(Self { kind: Kind::Sqlite(SqliteDb::open(path).await?), wakes: Arc::new(Wakes::here()) })
    }

    pub(crate) async fn postgres(url: &str) -> Result<Self> {
        let (db, wakes) = PostgresDb::open(url).await?;
        Ok(Self { kind: Kind::Postgres(db), wakes: Arc::new(wakes) })
    }

    fn tx(&self, link: Link) -> Tx {
        Tx { conn: Conn::new(link), wakes: Arc::clone(&self.wakes) }
    }

    /// A transaction that will write. On SQLite nobody else writes until it ends; on PostgreSQL it has to lock what its
    /// decisions rest on, see [`postgres`].
    pub(crate) async fn write(&self) -> Result<Tx> {
        Ok(self.tx(match &self.kind {
            Kind::Sqlite(db) => Link::Sqlite(db.write().await?),
            Kind::Postgres(db) => Link::Postgres(db.write().await?),
        }))
    }

    /// The same, one at a time per registry: for what decides by the highest number so far or by what is absent.
    pub(crate) async fn write_alone(&self) -> Result<Tx> {
        match &self.kind {
            Kind::Sqlite(_) => self.write().await,
            Kind::Postgres(db) => Ok(self.tx(Link::Postgres(db.write_alone().await?))),
        }
    }

    /// For a write of a single statement, which PostgreSQL commits by itself.
    pub(crate) async fn write_one(&self) -> Result<Tx> {
        match &self.kind {
            Kind::Sqlite(_) => self.write().await,
            Kind::Postgres(db) => Ok(self.tx(Link::Postgres(db.alone().await?))),
        }
    }

    /// For reading. On SQLite all queries see one state; on PostgreSQL each sees its own, so a query that must agree
    /// with an earlier one needs [`Self::read_together`].
    pub(crate) async fn read(&self) -> Result<Tx> {
        Ok(self.tx(match &self.kind {
            Kind::Sqlite(db) => Link::Sqlite(db.read().await?),
            Kind::Postgres(db) => Link::Postgres(db.alone().await?),
        }))
    }

    /// For reading with several queries that see one state. Ends with [`commit`].
    pub(crate) async fn read_together(&self) -> Result<Tx> {
        match &self.kind {
            Kind::Sqlite(_) => self.read().await,
            Kind::Postgres(db) => Ok(self.tx(Link::Postgres(db.read_together().await?))),
        }
    }

    /// See [`tidegate_registry::store::Store::listen`].
    pub(crate) fn listen(&self, listener: Listener) {
        self.wakes.listen(listener);
    }

    /// Runs one method of the store: `call` is one whole transaction, begun anew when PostgreSQL gives it up for others'
    /// sake, and no longer waited for than `within`.
    pub(crate) async fn run<T, F: Future<Output = Result<T>>>(
        &self,
        within: Duration,
        call: impl Fn() -> F,
    ) -> Result<T> {
        match &self.kind {
            Kind::Sqlite(_) => call().await,
            Kind::Postgres(_) => postgres::run(within, call).await,
        }
    }

    pub(crate) async fn close(&self) {
        self.wakes.close().await;
        match &self.kind {
            Kind::Sqlite(db) => db.close().await,
            Kind::Postgres(db) => db.close().await,
        }
    }
}

impl Conn {
    pub(crate) fn new(link: Link) -> Self {
        Self { link, changes: Changes::default() }
    }

    /// Tells whoever listens of `change`, once it is committed.
    pub(crate) fn has_changed(&mut self, change: Change) {
        self.changes.add(change);
    }

    /// From here on until the transaction ends, one at a time with whoever lines up for the same `what`.
    pub(crate) async fn line_up(&mut self, what: &'static str) -> Result<()> {
        if matches!(self.link, Link::Postgres(_)) {
            query("SELECT 1 FROM pg_advisory_xact_lock(hashtext($1), hashtext(current_schema()::text))")
                .bind(what)
                .execute(self)
                .await
                .map_err(on("waiting for our turn"))?;
        }
        Ok(())
    }
}

/// Ends a transaction for good.
pub(crate) async fn commit(tx: Tx) -> Result<()> {
    let Conn { link, changes } = tx.conn;
    match link {
        Link::Sqlite(tx) => tx.commit().await.map_err(on("committing"))?,
        Link::Postgres(session) => session.commit().await.map_err(on("committing"))?,
    }
    tx.wakes.wake(changes).await;
    Ok(())
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
