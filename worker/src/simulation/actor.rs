//! A process of the simulation: what goes wrong for it, and how its calls reach the registry.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection, Row, SqliteConnection};
use tidegate_registry::store::Store;
use tidegate_store::SqliteStore;
use tidegate_store::faults::{Answer, Carried, Effect, Fault, FaultStore, Script};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::world::{Outside, World};

/// Where SQLite's own tasks run, in real time.
static REAL: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

/// Sees `work` through while the simulation stands still: in virtual time it is one step that nothing divides.
pub(crate) fn at_once<F: Future>(work: F) -> F::Output {
    let _guard = REAL.enter();
    futures::executor::block_on(tokio::task::unconstrained(work))
}

/// Deadlines at or above this are virtual: this much more than the virtual time in microseconds.
const VIRTUAL: i64 = 100_000_000_000_000_000;

/// A real registry whose leases and retry delays are in virtual time. The store writes deadlines by the database's clock;
/// they are whole seconds from now, so they are known exactly, and are replaced by virtual ones that are far in the
/// future for the database, until they have come.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) store: Arc<dyn Store>,
    raw: Mutex<SqliteConnection>,
    /// The first virtual deadline to come.
    due: Mutex<i64>,
    /// Whether the machine stood still for so long that a deadline may have been taken for an earlier one.
    pub(crate) is_doubtful: AtomicBool,
}

/// Half of a second is rounded to a whole one.
const DOUBTFUL: Duration = Duration::from_millis(400);

impl Registry {
    pub(crate) fn open(path: &Path) -> Self {
        let store = at_once(SqliteStore::open(path)).unwrap();
        let raw = at_once(SqliteConnection::connect(&format!("sqlite://{}", path.display()))).unwrap();
        let (due, is_doubtful) = (Mutex::new(i64::MAX), AtomicBool::new(false));
        Self { store: Arc::new(store), raw: Mutex::new(raw), due, is_doubtful }
    }

    /// One number.
    pub(crate) fn number(&self, sql: &'static str) -> i64 {
        at_once(sqlx::query_scalar(sql).fetch_one(&mut *self.raw.lock().unwrap())).unwrap()
    }

    fn let_pass(&self, now: Duration) {
        let now = VIRTUAL + now.as_micros() as i64;
        if *self.due.lock().unwrap() > now {
            return;
        }
        for sql in [
            "UPDATE tasks SET lease_until = 0 WHERE lease_until BETWEEN $1 AND $2",
            "UPDATE tasks SET retry_at = 0 WHERE retry_at BETWEEN $1 AND $2",
        ] {
            at_once(sqlx::query(sql).bind(VIRTUAL).bind(now).execute(&mut *self.raw.lock().unwrap())).unwrap();
        }
        self.look();
    }

    fn make_virtual(&self, now: Duration) {
        let now = VIRTUAL + now.as_micros() as i64;
        for sql in [
            "UPDATE tasks SET lease_until = $1 + CAST(round(lease_until / 1e6 - unixepoch('subsec')) AS INTEGER) \
             * 1000000 WHERE lease_until > 0 AND lease_until < $2",
            "UPDATE tasks SET retry_at = $1 + CAST(round(retry_at / 1e6 - unixepoch('subsec')) AS INTEGER) * 1000000 \
             WHERE retry_at > 0 AND retry_at < $2",
        ] {
            at_once(sqlx::query(sql).bind(now).bind(VIRTUAL).execute(&mut *self.raw.lock().unwrap())).unwrap();
        }
        self.look();
    }

    fn look(&self) {
        let sql = "SELECT (SELECT min(lease_until) FROM tasks WHERE lease_until >= $1) AS lease, \
                   (SELECT min(retry_at) FROM tasks WHERE retry_at >= $1) AS retry";
        let row = at_once(sqlx::query(sql).bind(VIRTUAL).fetch_one(&mut *self.raw.lock().unwrap())).unwrap();
        let lease: Option<i64> = row.get("lease");
        let retry: Option<i64> = row.get("retry");
        *self.due.lock().unwrap() = lease.unwrap_or(i64::MAX).min(retry.unwrap_or(i64::MAX));
    }
}

/// One life of a process.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) world: Arc<World>,
    registry: Arc<Registry>,
    /// Nothing of it happens before.
    frozen_until: Mutex<Duration>,
    /// Notified when it has to die.
    pub(crate) death: Notify,
    /// Whether it is spared: people who look and repair.
    calm: bool,
}

impl Actor {
    pub(crate) fn new(name: String, world: &Arc<World>, registry: &Arc<Registry>, calm: bool) -> Arc<Self> {
        Arc::new(Self {
            name,
            world: Arc::clone(world),
            registry: Arc::clone(registry),
            frozen_until: Mutex::default(),
            death: Notify::new(),
            calm,
        })
    }

    /// The registry as this process reaches it. What was sent is kept, so that it arrives after the sender's death.
    pub(crate) fn store(self: &Arc<Self>) -> Arc<FaultStore> {
        Arc::new(FaultStore::new(Arc::clone(&self.registry.store), Arc::clone(self) as Arc<dyn Script>))
    }

    fn strikes(&self, of: u64) -> bool {
        !self.calm && self.world.strikes(of)
    }

    /// Up to `below` milliseconds, to the microsecond, so that hardly anything happens at the same moment.
    fn some(&self, below: u64) -> Duration {
        Duration::from_micros(1 + self.world.dice(below * 1_000))
    }

    /// What becomes of the next remote call.
    fn fate(&self, what: &str) -> Fault {
        self.world.count(&format!("{} {what}", self.name));
        let quick = Fault { before: self.some(20), after: self.some(10), ..Fault::NONE };
        if self.calm {
            return quick;
        }
        if self.strikes(400) {
            *self.frozen_until.lock().unwrap() = self.world.time.now() + self.some(6_000);
            self.world.note(&format!("{} freezes before {what}", self.name));
        }
        let fault = if self.strikes(300) {
            self.death.notify_one();
            let effect = if self.world.dice(2) == 0 { Effect::Now } else { Effect::Never };
            Fault { effect, answer: Answer::Silence, ..quick }
        } else if self.strikes(60) {
            Fault { before: quick.before, ..Fault::REFUSED }
        } else if self.strikes(60) {
            Fault { before: quick.before, ..Fault::ANSWER_LOST }
        } else if self.strikes(150) {
            Fault { before: quick.before, ..Fault::late(self.some(8_000)) }
        } else if self.strikes(150) {
            Fault { after: self.some(5_000), ..quick }
        } else {
            return quick;
        };
        self.world.note(&format!("{} {what}: {:?}, {:?}", self.name, fault.effect, fault.answer));
        fault
    }

    /// A call to the lake or the online store, with a fate of its own.
    pub(crate) async fn remote<T: Send + 'static>(
        self: &Arc<Self>,
        what: &'static str,
        effect: impl FnOnce(&mut Outside) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let fault = self.fate(what);
        self.pause(fault.before).await;
        let told = match fault.effect {
            Effect::Now => Some(effect(&mut self.world.outside.lock().unwrap())),
            Effect::Never => None,
            Effect::Late(delay) => {
                let actor = Arc::clone(self);
                self.world.late.lock().unwrap().spawn(async move {
                    actor.pause(delay).await;
                    drop(effect(&mut actor.world.outside.lock().unwrap()));
                });
                None
            }
        };
        self.pause(fault.after).await;
        match (fault.answer, told) {
            (Answer::Truth, Some(told)) => Ok(told),
            (Answer::Silence, _) => std::future::pending().await,
            _ => anyhow::bail!("`{what}` was meant to fail"),
        }
    }
}

#[async_trait]
impl Script for Actor {
    fn next(&self, method: &'static str) -> Fault {
        self.fate(method)
    }

    async fn pause(&self, pause: Duration) {
        self.world.time.sleep(pause).await;
        loop {
            let left = self.frozen_until.lock().unwrap().saturating_sub(self.world.time.now());
            if left.is_zero() {
                return;
            }
            self.world.time.sleep(left).await;
        }
    }

    async fn carry_out(&self, method: &'static str, effect: Carried<'_>) {
        let now = self.world.time.now();
        if method == "task_claim" {
            self.registry.let_pass(now);
        }
        let begun = std::time::Instant::now();
        at_once(effect);
        if matches!(method, "task_claim" | "task_heartbeat" | "task_end") {
            self.registry.make_virtual(now);
            self.registry.is_doubtful.fetch_or(begun.elapsed() > DOUBTFUL, Ordering::Relaxed);
        }
    }
}
