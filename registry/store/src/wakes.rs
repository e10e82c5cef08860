//! Telling who waits that there may be something to do.
//!
//! A transaction notes what it changed; after its commit the listeners of this process are called, and on PostgreSQL those
//! of other processes by NOTIFY. That is sent after the commit and by itself: inside the transaction it would make all
//! commits of the database wait for each other's disk. A process that plays a role sends at most one per
//! [`GATHER`], whatever it commits; one that only writes now and then sends at once. What gets lost is found by whoever
//! looks from time to time.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tidegate_registry::store::{Change, Listener};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::debug;
use uuid::Uuid;

/// The channel of all registries of a database; what is sent says which.
const CHANNEL: &str = "tidegate";

/// Changes of so long are sent together.
const GATHER: Duration = Duration::from_millis(5);

/// Between attempts to listen again.
const PAUSE: Duration = Duration::from_secs(1);

/// A connection that said nothing for so long is tried.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long sending may take.
const SEND_MAX: Duration = Duration::from_secs(1);

/// A set of [`Change`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changes(u8);

impl Changes {
    const ALL: [(Change, u8, &str); 3] =
        [(Change::Tasks, 1, "tasks"), (Change::Runs, 2, "runs"), (Change::Notices, 4, "notices")];

    pub(crate) fn add(&mut self, change: Change) {
        self.0 |= Self::ALL.iter().find(|(of, ..)| *of == change).map_or(0, |(_, bit, _)| *bit);
    }

    fn each(self) -> impl Iterator<Item = (Change, &'static str)> {
        Self::ALL.into_iter().filter(move |(_, bit, _)| self.0 & bit != 0).map(|(change, _, word)| (change, word))
    }

    fn of(word: &str) -> Option<Change> {
        Self::ALL.into_iter().find(|(_, _, of)| *of == word).map(|(change, ..)| change)
    }
}

/// Whom to tell.
pub(crate) struct Wakes {
    shared: Arc<Shared>,
    /// Ends with the last owner of the store.
    background: Mutex<JoinSet<()>>,
}

struct Shared {
    listeners: Mutex<Vec<Listener>>,
    remote: Option<Remote>,
}

/// The processes beyond this one.
struct Remote {
    /// For sending.
    pool: PgPool,
    /// For listening: a connection of its own.
    ears: PgPool,
    schema: String,
    /// Tells our own messages from others'.
    own: String,
    pending: AtomicU8,
    kick: Notify,
}

impl fmt::Debug for Wakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wakes")
    }
}

impl Wakes {
    /// For a database whose other users cannot be told.
    pub(crate) fn here() -> Self {
        Self::new(None)
    }

    /// For a PostgreSQL registry in `schema`.
    pub(crate) fn everywhere(pool: PgPool, ears: PgPool, schema: String) -> Self {
        let own = Uuid::now_v7().to_string();
        Self::new(Some(Remote { pool, ears, schema, own, pending: AtomicU8::new(0), kick: Notify::new() }))
    }

    fn new(remote: Option<Remote>) -> Self {
        let shared = Arc::new(Shared { listeners: Mutex::default(), remote });
        Self { shared, background: Mutex::default() }
    }

    /// Adds a listener. With the first one this process begins to hear others.
    pub(crate) fn listen(&self, listener: Listener) {
        self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.remote.is_some() && background.is_empty() {
            let (hearing, sending) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
            background.spawn(async move { hearing.hear().await });
            background.spawn(async move { sending.send_gathered().await });
        }
    }

    /// Tells everybody.
    pub(crate) async fn wake(&self, changes: Changes) {
        if changes == Changes::default() {
            return;
        }
        changes.each().for_each(|(change, _)| self.shared.call(change));
        let Some(remote) = &self.shared.remote else { return };
        let gathers = !self.background.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if gathers {
            remote.pending.fetch_or(changes.0, Ordering::Relaxed);
            remote.kick.notify_one();
        } else {
            remote.send(changes).await;
        }
    }

    /// Lets go of the connection for listening.
    pub(crate) async fn close(&self) {
        self.background.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        if let Some(remote) = &self.shared.remote {
            remote.ears.close().await;
        }
    }
}

impl Shared {
    fn call(&self, change: Change) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        listeners.iter().for_each(|listener| listener(change));
    }

    async fn send_gathered(&self) {
        let Some(remote) = &self.remote else { return };
        loop {
            remote.kick.notified().await;
            tokio::time::sleep(GATHER).await;
            remote.send(Changes(remote.pending.swap(0, Ordering::Relaxed))).await;
        }
    }

    async fn hear(&self) {
        let Some(remote) = &self.remote else { return };
        loop {
            if let Err(error) = self.hear_until_lost(remote).await {
                debug!("not told of changes by other processes, looking for them from time to time: {error}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn hear_until_lost(&self, remote: &Remote) -> sqlx::Result<()> {
        let mut ears = PgListener::connect_with(&remote.ears).await?;
        ears.listen(CHANNEL).await?;
        // While nobody listened anything may have happened.
        Changes::ALL.iter().for_each(|(change, ..)| self.call(*change));
        loop {
            match tokio::time::timeout(SILENCE_MAX, ears.try_recv()).await {
                Ok(heard) => {
                    let Some(message) = heard? else { return Ok(()) };
                    if let Some(change) = remote.understand(message.payload()) {
                        self.call(change);
                    }
                }
                Err(_) => {
                    let alive = tokio::time::timeout(SEND_MAX, sqlx::raw_sql("SELECT 1").execute(&mut ears)).await;
                    alive.map_err(|_| sqlx::Error::PoolTimedOut)??;
                }
            }
        }
    }
}

impl Remote {
    /// Best effort: who misses it looks by itself.
    async fn send(&self, changes: Changes) {
        for (_, word) in changes.each() {
            let text = format!("{} {word} {}", self.schema, self.own);
            let sending = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(text).execute(&self.pool);
            match tokio::time::timeout(SEND_MAX, sending).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => debug!("other processes were not told of a change: {error}"),
                Err(_) => debug!("other processes were not told of a change in time"),
            }
        }
    }

    /// What others say of our registry.
    fn understand(&self, message: &str) -> Option<Change> {
        let mut words = message.split(' ');
        let (schema, word, sender) = (words.next()?, words.next()?, words.next()?);
        if schema != self.schema || sender == self.own {
            return None;
        }
        Changes::of(word)
    }
}
