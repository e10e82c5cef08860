//! A registry in a schema of a PostgreSQL database, which many processes share.
//!
//! **One registry, one schema.** The URL is libpq's, TLS included (`sslmode`, `sslrootcert`), and may also say
//! `schema=name`: several projects can then live in one database. Without it the registry is in `public`. The schema is
//! made when it is missing. `connections=n` bounds how many connections this process opens (default 6).
//!
//! **What runs side by side.** Every transaction is READ COMMITTED: each statement sees what is committed when it
//! begins, and a statement that waited for a row judges the row as it is then. On that rests:
//! * *Who changes a run or its tasks locks the run's row first* (`FOR NO KEY UPDATE`, so that lines and snapshots may
//!   still refer to it), then reads the tasks, then writes them. Whatever it decides by is therefore as it was read. Several
//!   runs are locked in the order of their ids. The views of an intent or a record come after its run, in the order of
//!   their names.
//! * *A claim never waits for a run or a task.* It takes the first ready tasks whose run and task nobody else holds
//!   (`SKIP LOCKED`), so it can stand in no circle of waiting. Skipping is no loss: who holds a run is about to let go of
//!   it, and a claim that found only such tasks looks again.
//! * *A heartbeat touches one row and nothing else.* Taking back an expired lease locks the run and then looks at the
//!   lease once more, so a heartbeat that came in between keeps it.
//! * *What counts, numbers or looks for absence is done by one at a time* ([`super::Db::write_alone`]): applies, plans,
//!   new runs and admissions wait for one lock per registry (an advisory one). Claims, heartbeats, ends and lines never do.
//! * *The head of the audit trail is locked last*, so whoever holds it waits for nobody (`audit`).
//! * Should transactions still meet head-on, PostgreSQL ends one of them; the whole method is then done again, a bounded
//!   number of times.
//!
//! **A connection whose state is unknown is closed**, never reused: one whose transaction was not committed, or that was
//! given up in the middle of an answer. The server takes back what was open as soon as it notices; if this process
//! only froze, after [`IDLE_IN_TRANSACTION`]: nobody waits longer for a lock of the dead.
//!
//! **Every call ends.** No method waits longer than [`CALL_MAX`] for an answer (a heartbeat less: a third of its lease;
//! those that write very much longer, [`BULK_MAX`]), whatever the network does, and the server gives up by itself on a
//! lock or a statement that takes too long. What cannot be told is [`StoreError::Unavailable`]; a lost answer to a COMMIT is
//! one of those, so every method can be repeated.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool, Postgres};
use tidegate_registry::store::{Result, StoreError};
use tracing::debug;
use url::Url;

use super::{Conn, Link, on};
use crate::schema;
use crate::sql::query;
use crate::wakes::Wakes;

/// How long a method waits for the database.
pub(crate) const CALL_MAX: Duration = Duration::from_secs(10);

/// The same for methods that may write or read a hundred thousand rows.
pub(crate) const BULK_MAX: Duration = Duration::from_secs(300);

/// How long a statement waits for a lock.
const LOCK_MAX: Duration = Duration::from_secs(8);

/// How long a statement runs. Single statements are small, even in a bulk write.
const STATEMENT_MAX: Duration = Duration::from_secs(30);

/// How long a transaction of ours may do nothing before the server ends it: only a frozen process is that slow.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

/// How long a method waits for one of our own connections to become free, or for a new one.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);

/// Connections per process, unless the URL says otherwise.
const CONNECTIONS: u32 = 6;

/// A connection that rested so long is tried before it is used.
const RESTED: Duration = Duration::from_millis(500);

/// How often a method is done again because PostgreSQL gave it up for others' sake.
const AGAIN_MAX: u32 = 5;

/// The schema of a URL that names none.
const DEFAULT_SCHEMA: &str = "public";

/// Connections to one registry.
#[derive(Clone)]
pub(crate) struct PostgresDb {
    pool: PgPool,
    place: String,
}

/// Never the password.
impl fmt::Debug for PostgresDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresDb({})", self.place)
    }
}

/// What a URL says.
struct Target {
    options: PgConnectOptions,
    schema: String,
    connections: u32,
}

impl Target {
    /// # Errors
    /// [`StoreError::Refused`] with what is wrong; never with the password.
    fn parse(text: &str) -> Result<Self> {
        let mut url = Url::parse(text).map_err(|error| refused(&error))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(refused(&"it does not begin with `postgres://`"));
        }
        let mut schema = DEFAULT_SCHEMA.to_owned();
        let mut connections = CONNECTIONS;
        let mut others = Vec::new();
        for (key, value) in url.query_pairs() {
            match &*key {
                "schema" => schema = schema_name(&value)?,
                "connections" => {
                    let number = value.parse().ok().filter(|number| (2..=100).contains(number));
                    connections = number.ok_or_else(|| refused(&"`connections` is not a number from 2 to 100"))?;
                }
                _ if is_option(&key) => others.push((key.into_owned(), value.into_owned())),
                _ => return Err(refused(&format!("there is no parameter `{key}`"))),
            }
        }
        url.query_pairs_mut().clear().extend_pairs(others);
        let options = PgConnectOptions::from_str(url.as_str()).map_err(|error| refused(&error))?;
        let milliseconds = |limit: Duration| limit.as_millis().to_string();
        let named = options.get_application_name().is_some();
        let options = options
            .options([
                ("search_path", schema.clone()),
                ("lock_timeout", milliseconds(LOCK_MAX)),
                ("statement_timeout", milliseconds(STATEMENT_MAX)),
                ("idle_in_transaction_session_timeout", milliseconds(IDLE_IN_TRANSACTION)),
            ])
            .disable_statement_logging();
        let options = if named { options } else { options.application_name("tidegate") };
        Ok(Self { options, schema, connections })
    }

    /// Where that is, for people.
    fn place(&self) -> String {
        let host = match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => self.options.get_host().to_owned(),
        };
        let database = self.options.get_database().unwrap_or_else(|| self.options.get_username());
        format!("{host}:{}/{database}, schema {}", self.options.get_port(), self.schema)
    }
}

fn refused(what: &dyn fmt::Display) -> StoreError {
    StoreError::Refused(format!("the URL of the registry is wrong: {what}"))
}

/// Unquoted in SQL, so no more than a plain name.
fn schema_name(name: &str) -> Result<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins_well = !name.starts_with(|first: char| first.is_ascii_digit()) && !name.starts_with("pg_");
    if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) || !begins_well {
        return Err(refused(
            &"`schema` is not a name of up to 63 lower-case letters, digits and underscores that begins with a letter",
        ));
    }
    Ok(name.to_owned())
}

/// What the driver understands; it would only warn of anything else.
fn is_option(key: &str) -> bool {
    const KNOWN: [&str; 17] = [
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ];
    KNOWN.contains(&key) || key.starts_with("options[")
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("no connection to {place} within {} s", ACQUIRE_MAX.as_secs())]
    Connection { place: String },
    #[error("no answer within {} ms", within.as_millis())]
    Call { within: Duration },
}

impl PostgresDb {
    pub(crate) async fn open(url: &str) -> Result<(Self, Wakes)> {
        let target = Target::parse(url)?;
        let pool = PgPoolOptions::new()
            .max_connections(target.connections)
            .acquire_timeout(ACQUIRE_MAX)
            .idle_timeout(Duration::from_secs(60))
            // Trying every connection every time would cost a round trip; those in use are alive.
            .test_before_acquire(false)
            .before_acquire(|connection, about| {
                Box::pin(async move {
                    if about.idle_for > RESTED {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(target.options.clone());
        let db = Self { pool, place: target.place() };
        let session = match db.alone().await {
            Ok(session) => session,
            Err(error) => return Err(why_not(&target.options, error).await),
        };
        if !schema::is_current(&mut Conn::new(Link::Postgres(session))).await? {
            run(BULK_MAX, || db.migrate(&target.schema)).await?;
        }
        let ears = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_MAX);
        let wakes = Wakes::everywhere(db.pool.clone(), ears.connect_lazy_with(target.options), target.schema);
        Ok((db, wakes))
    }

    async fn migrate(&self, schema: &str) -> Result<()> {
        let mut tx = Conn::new(Link::Postgres(self.begin(BEGIN).await?));
        query("SELECT 1 FROM pg_advisory_xact_lock(hashtext('tidegate schema'), hashtext($1))")
            .bind(schema)
            .execute(&mut tx)
            .await
            .map_err(on("waiting for another process that migrates the registry"))?;
        let known = query("SELECT 1 FROM pg_namespace WHERE nspname = $1").bind(schema).fetch_optional(&mut tx).await;
        if known.map_err(on("looking for the schema"))?.is_none() {
            make_schema(&mut tx, schema).await.map_err(on("making the registry's schema"))?;
        }
        schema::migrate(&mut tx).await?;
        if let Link::Postgres(session) = tx.link {
            session.commit().await.map_err(on("committing"))?;
        }
        Ok(())
    }

    pub(crate) async fn write(&self) -> Result<Session> {
        self.begin(BEGIN).await
    }

    pub(crate) async fn write_alone(&self) -> Result<Session> {
        self.begin(BEGIN_ALONE).await
    }

    pub(crate) async fn read_together(&self) -> Result<Session> {
        self.begin(BEGIN_READING).await
    }

    /// A connection without a transaction: every statement is one.
    pub(crate) async fn alone(&self) -> Result<Session> {
        match self.pool.acquire().await {
            Ok(connection) => Ok(Session { connection: Some(connection), is_open: false, is_busy: false }),
            Err(sqlx::Error::PoolTimedOut) => {
                Err(StoreError::Unavailable(NoAnswer::Connection { place: self.place.clone() }.into()))
            }
            Err(error) => Err(on("connecting to the registry")(error)),
        }
    }

    /// A connection that broke while it rested is replaced: nothing has happened in it yet.
    async fn begin(&self, text: &'static str) -> Result<Session> {
        let mut attempt = 0;
        loop {
            let mut session = self.alone().await?;
            match session.begin(text).await {
                Ok(()) => return Ok(session),
                Err(error) if attempt < AGAIN_MAX && is_broken(&error) => attempt += 1,
                Err(error) => return Err(on("beginning a transaction")(error)),
            }
        }
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// `name` is a plain one: [`schema_name`] saw to that.
async fn make_schema(tx: &mut Conn, name: &str) -> sqlx::Result<()> {
    if let Link::Postgres(session) = &mut tx.link {
        let answer = sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {name}"))).execute(session.ask()).await;
        session.settle(answer)?;
    }
    Ok(())
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
const BEGIN_READING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// In one message, so that the lock costs no round trip.
const BEGIN_ALONE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
                           SELECT pg_advisory_xact_lock(hashtext('tidegate'), hashtext(current_schema()::text))";

/// A pool only says that time is up; a connection of its own says why.
async fn why_not(options: &PgConnectOptions, error: StoreError) -> StoreError {
    match tokio::time::timeout(ACQUIRE_MAX, PgConnection::connect_with(options)).await {
        Ok(Err(cause)) => on("connecting to the registry")(cause),
        Ok(Ok(_)) | Err(_) => error,
    }
}

/// A connection and what is known of it.
pub(crate) struct Session {
    /// Always there, until dropped.
    connection: Option<PoolConnection<Postgres>>,
    /// Whether a transaction is open.
    is_open: bool,
    /// Whether an answer may be outstanding, or the connection is broken.
    is_busy: bool,
}

impl Session {
    /// The connection, for one question, whose answer is to be handed to [`Self::settle`].
    pub(crate) fn ask(&mut self) -> &mut PgConnection {
        self.is_busy = true;
        self.connection.as_mut().expect("a session has its connection until it is dropped")
    }

    /// Takes note that an answer has arrived.
    pub(crate) fn settle<T>(&mut self, answer: sqlx::Result<T>) -> sqlx::Result<T> {
        self.is_busy = answer.as_ref().is_err_and(is_broken);
        answer
    }

    async fn begin(&mut self, text: &'static str) -> sqlx::Result<()> {
        self.is_open = true;
        let answer = sqlx::raw_sql(text).execute(self.ask()).await;
        self.settle(answer).map(drop)
    }

    pub(crate) async fn commit(mut self) -> sqlx::Result<()> {
        if self.is_open {
            let answer = sqlx::raw_sql("COMMIT").execute(self.ask()).await;
            self.settle(answer)?;
            self.is_open = false;
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| self.is_open || self.is_busy) {
            // Closes the socket; the pool opens another one when it needs it.
            drop(connection.detach());
        }
    }
}

/// See [`super::Db::run`].
pub(crate) async fn run<T, F: Future<Output = Result<T>>>(within: Duration, call: impl Fn() -> F) -> Result<T> {
    let repeating = async {
        let mut attempt = 0;
        loop {
            match call().await {
                Err(error) if attempt < AGAIN_MAX && is_crossed(&error) => {
                    attempt += 1;
                    debug!(attempt, "the database gave up a transaction for the sake of another: once more");
                    tokio::time::sleep(Duration::from_millis(5 << attempt)).await;
                }
                outcome => return outcome,
            }
        }
    };
    match tokio::time::timeout(within, repeating).await {
        Ok(outcome) => outcome,
        Err(_) => Err(StoreError::Unavailable(NoAnswer::Call { within }.into())),
    }
}

fn code(error: &sqlx::Error) -> Option<&str> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    Some(error.code())
}

/// A transaction that the database gave up for the sake of another one: a deadlock, or a serialization failure.
fn is_crossed(error: &StoreError) -> bool {
    let StoreError::Unavailable(source) = error else { return false };
    let code = source.downcast_ref::<sqlx::Error>().and_then(code);
    matches!(code, Some("40001" | "40P01"))
}

/// The connection is gone.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => code(error).is_some_and(|code| code.starts_with("57P") || code.starts_with("08")),
        sqlx::Error::RowNotFound | sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) => false,
        _ => true,
    }
}

/// Things that pass: a server that shuts down, starts, recovers, is a standby for now, has no connection, memory or disk
/// to spare, or was slower than it may be; and transactions that crossed.
pub(crate) fn is_passing(error: &sqlx::Error) -> bool {
    const CLASSES: [&str; 4] = ["08", "53", "58", "57P"];
    const CODES: [&str; 6] = ["25006", "25P03", "40001", "40P01", "55P03", "57014"];
    code(error).is_some_and(|code| CODES.contains(&code) || CLASSES.iter().any(|class| code.starts_with(class)))
}
