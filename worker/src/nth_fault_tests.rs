//! The N-th fault: one small run with a fault at its first remote call, one with a fault at its second, and so on until a
//! run meets none; for every way in which a call can fail. After each the run must have ended as if nothing had
//! happened, without a hand.
//!
//! Remote are the calls of the object store (struck on the wire, below the client's own retries), of the online store and of
//! the registry.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::prelude::{SessionContext, col};
use futures::future::join_all;
use tidegate_registry::ids::{ProjectName, RegistryId, RunId, ViewId};
use tidegate_registry::run::RunState;
use tidegate_registry::store::Store as _;
use tidegate_registry::switches::ViewSwitches;
use tidegate_registry::time::Instant;
use tidegate_servers::{Fault, Mode, S3Endpoint, S3Fake};
use tidegate_store::SqliteStore;
use tidegate_store::faults::{self, FaultStore, Script};
use tokio_util::sync::CancellationToken;

use crate::lake::Lake;
use crate::objects::{Patience, testing};
use crate::online::{
    Begun, Changes, CutOver, EncodedRow, Expected, InPlace, Live, OnlineError, OnlineRow, OnlineStore, Result,
    SqliteOnline, Standing,
};
use crate::tests::{Place, World, only};
use crate::{Worker, WorkerOptions, WorkerParts};

/// A view over a source and one over its history, both online: every kind of step, and little else.
fn definitions() -> String {
    let features = "    features:\n";
    let (before, lifetime) = {
        let text = only(&["revenue", "lifetime"]).replace("{max: 0,", "{max: 4,");
        let at = text.rfind(features).unwrap();
        (text[..at].to_owned(), text[at..].to_owned())
    };
    format!("{before}    online: {{strategy: swap}}\n{lifetime}")
}

/// What both views say after the first day.
const ROWS: [(&str, &str); 2] = [("a", "30.0"), ("b", "70.0")];

/// So many runs at the same time: most of what they do is wait.
const AT_ONCE: u64 = 8;

/// No run has so many calls: one that has goes round in circles.
const CALLS_MAX: u64 = 400;

/// Shorter than what hangs.
fn impatient() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        request: Duration::from_millis(700),
        retries: 3,
        retry_for: Duration::from_secs(5),
        backoff: Duration::from_millis(5),
        backoff_max: Duration::from_millis(20),
    }
}

/// Longer than any request is waited for.
const HANG: Duration = Duration::from_secs(2);

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Strike {
    /// A request to the object store.
    Object(Mode),
    /// One that changes something there.
    Write(Mode),
    /// A call of the online store, before it is done or after.
    Online { after: bool },
    /// A call of the registry.
    Registry(faults::Fault),
}

/// A project that is applied, to be copied.
struct Pattern {
    world: World,
    fake: S3Fake,
}

impl Pattern {
    /// With lake and source in a store, unless nothing shall happen there: then a folder is quicker.
    async fn of(strike: Strike) -> Self {
        let fake = testing::fake();
        let place = match strike {
            Object(_) | Write(_) => Place::in_store(&fake.endpoint(), impatient()),
            Online { .. } | Registry(_) => Place::Folder,
        };
        let world = World::at(place, &definitions()).await;
        world.store.close().await;
        world.online.close().await;
        Self { world, fake }
    }
}

/// A folder with all below it.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&path, &to);
        } else {
            std::fs::copy(&path, to).unwrap();
        }
    }
}

/// Decides about the calls of the registry: all is well, but for one.
#[derive(Debug)]
struct Nth {
    calls: AtomicU64,
    /// Which, from 0, and what becomes of it.
    fault: Option<(u64, faults::Fault)>,
}

impl Script for Nth {
    fn next(&self, _method: &'static str) -> faults::Fault {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        self.fault.filter(|(wanted, _)| *wanted == number).map_or(faults::Fault::NONE, |(_, fault)| fault)
    }
}

/// What one run is made of.
struct Trial {
    world: World,
    fake: S3Fake,
    online: Arc<FaultyOnline>,
    registry: Arc<Nth>,
    /// A claim whose answer was lost is waited for.
    lease: Duration,
}

impl Trial {
    /// A copy of `pattern` in which call number `call`, from 0, goes wrong.
    async fn new(pattern: &Pattern, strike: Strike, call: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(pattern.world.folder.path(), folder.path());
        let fake = testing::fake();
        for key in pattern.fake.keys(testing::BUCKET, "") {
            fake.put(testing::BUCKET, &key, &pattern.fake.get(testing::BUCKET, &key).unwrap());
        }
        let place = match &pattern.world.place {
            Place::Folder => Place::Folder,
            Place::Store(_, root) => {
                Place::Store(Box::new(testing::stores(&fake.endpoint(), impatient())), root.clone())
            }
        };
        let inner = SqliteOnline::open(&folder.path().join("online.db")).await.unwrap();
        let mut online = FaultyOnline { inner, calls: AtomicU64::new(0), fault: None };
        let mut registry = Nth { calls: AtomicU64::new(0), fault: None };
        let mut lease = Duration::from_secs(30);
        match strike {
            Object(mode) => fake.inject(Fault::new(mode).after(call).times(1)),
            Write(mode) => fake.inject(Fault::new(mode).on_writes().after(call).times(1)),
            Online { after } => online.fault = Some((call, after)),
            Registry(fault) => {
                registry.fault = Some((call, fault));
                lease = Duration::from_secs(3);
            }
        }
        let world = World::open(folder, place, Arc::clone(&pattern.world.project), None).await;
        Self { world, fake, online: Arc::new(online), registry: Arc::new(registry), lease }
    }

    /// One run of the first day from its plan to its end, and whether it met the fault.
    async fn run(&self, strike: Strike, call: u64) -> (RunId, bool) {
        let run = self.world.plan(1, 0).await;
        let parts = self.world.parts("one");
        let worker = Worker::new(WorkerParts {
            store: Arc::new(FaultStore::new(parts.store, Arc::<Nth>::clone(&self.registry))),
            online: Some(Arc::<FaultyOnline>::clone(&self.online)),
            options: WorkerOptions { lease: self.lease, slots: 1, ..parts.options },
            ..parts
        })
        .unwrap();
        let ids = [run];
        let done = tokio::time::timeout(Duration::from_secs(90), worker.run_only(&ids, CancellationToken::new()));
        done.await.expect("I2: a run that met one fault is stuck").unwrap();
        let met = match strike {
            Object(_) | Write(_) => self.fake.strikes() > 0,
            Online { .. } => self.online.calls.load(Ordering::Relaxed) > call,
            Registry(_) => self.registry.calls.load(Ordering::Relaxed) > call,
        };
        (run, met)
    }

    /// The invariants, as far as one run can break them. (I5, ticks, is the scheduler's; I3 is `tests/crash/readers.rs`.)
    async fn assert_whole(&self, run: RunId, what: &str) {
        self.fake.heal();
        let world = &self.world;
        // I7: what was acknowledged is read from the file by somebody else.
        let store = SqliteStore::open(&world.folder.path().join("registry.db")).await.unwrap();
        let (ended, tasks) = store.run(run).await.unwrap();
        assert_eq!(ended.state, RunState::Succeeded, "{what}: {:?} {tasks:?}", ended.reason);
        // I9: one fault costs one attempt at most.
        assert!(tasks.iter().all(|task| task.attempts <= 2), "{what}: {tasks:?}");
        let views: Vec<ViewId> = world.project.views.keys().cloned().collect();
        let states = store.view_states(&views).await.unwrap();
        let snapshots = store.snapshots(None, None, 0).await.unwrap();
        assert_eq!((snapshots.len(), snapshots[0].status.as_str()), (1, "live"), "{what}");
        let lake = world.fresh_lake();
        for view in &views {
            // I1: the slice is there once, in the table and in the ledger; two versions, the empty one and the run's.
            let rows = rows_of(&lake, view).await;
            assert_eq!(rows, ROWS.map(|(shop, total)| format!("{shop} {total}")), "{what}: {view}");
            let ledger = store.ledger(view, None, 0).await.unwrap();
            assert_eq!((ledger.len(), ledger[0].run, ledger[0].rows), (1, run, 2), "{what}: {view}");
            let table = lake.load(view, None).await.unwrap();
            assert_eq!(table.version(), Some(1), "{what}: {view}");
            // I4: registry, log and online store agree.
            let recorded = snapshots[0].views.iter().find(|recorded| recorded.view == *view).unwrap();
            assert_eq!((states[view].delta_version, recorded.delta_version), (1, 1), "{what}: {view}");
            let live = world.online.live(view).await.unwrap().expect("it is live");
            assert_eq!(
                (Some(live.generation), live.publish_number),
                (states[view].online_generation, recorded.publish_number),
                "{what}: {view}"
            );
            let online = world.online.scan(view, live.generation, None, 10).await.unwrap();
            let online: Vec<(&str, &str)> =
                online.iter().map(|(key, row)| (key.as_str(), row.features[0].1.as_str())).collect();
            assert_eq!(online, ROWS, "{what}: {view}");
            // I6: nothing referenced is missing, nothing else is there.
            let named = table.get_file_uris().unwrap();
            let named: BTreeSet<String> = named.map(|uri| uri.rsplit_once("/lake/").unwrap().1.to_owned()).collect();
            let found = world.objects(&format!("features/{}/v1/data", view.name)).await;
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), named, "{what}: {view}");
        }
        // I8: the key stands nowhere.
        let told = format!("{tasks:?}{:?}", store.run_logs(run).await.unwrap());
        assert!(!told.contains(S3Endpoint::SECRET_KEY), "{what}: {told}");
    }
}

/// Shop and total of each row of a table's head.
async fn rows_of(lake: &Lake, view: &ViewId) -> Vec<String> {
    let ctx = SessionContext::new();
    let table = lake.load(view, None).await.unwrap();
    let rows = crate::reads::scan(&ctx, &table).await.unwrap();
    let rows = rows.select_columns(&["shop", "total"]).unwrap().sort_by(vec![col("shop")]).unwrap();
    let mut found = Vec::new();
    for batch in rows.collect().await.unwrap() {
        for row in 0..batch.num_rows() {
            let text = |column| array_value_to_string(batch.column(column), row).unwrap();
            found.push(format!("{} {}", text(0), text(1)));
        }
    }
    found
}

/// Strikes the first call, the second, and so on, until a run meets no fault; there are `calls_min` calls at least.
async fn every_call(strike: Strike, calls_min: u64) {
    let pattern = &Pattern::of(strike).await;
    let trial = |call| async move {
        let trial = Trial::new(pattern, strike, call).await;
        let (run, met) = trial.run(strike, call).await;
        trial.assert_whole(run, &format!("{strike:?} at call {call}")).await;
        met
    };
    let mut calls = 0;
    loop {
        let met = join_all((calls..calls + AT_ONCE).map(trial)).await;
        if let Some(index) = met.iter().position(|met| !met) {
            calls += index as u64;
            break;
        }
        calls += AT_ONCE;
        assert!(calls < CALLS_MAX, "it calls for ever");
    }
    assert!(calls >= calls_min, "{strike:?}: only {calls} calls");
}

macro_rules! at_every_call {
    ($($(#[doc = $doc:literal])* $name:ident: $strike:expr, of $calls_min:literal;)+) => {
        $($(#[doc = $doc])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
            every_call($strike, $calls_min).await;
        })+
    };
}

use Strike::{Object, Online, Registry, Write};

at_every_call! {
    /// What the client does not try again by itself: so the task must.
    every_object_call_may_fail_before: Object(Mode::Refuse(403)), of 20;
    every_object_call_may_fail_after_success: Object(Mode::ApplyThenRefuse(500)), of 20;
    every_object_call_may_hang: Object(Mode::ApplyThenHang(HANG)), of 20;
    /// (Whether a request that only reads was done before it is lost makes no difference.)
    every_object_write_may_lose_its_connection_after_success: Write(Mode::ApplyThenCut), of 4;
    every_object_write_may_hang_undone: Write(Mode::Hang(HANG)), of 4;
    every_object_call_may_be_cut_in_its_body: Object(Mode::CutBody(10)), of 20;
    every_online_call_may_fail_before: Online { after: false }, of 7;
    every_online_call_may_fail_after_success: Online { after: true }, of 7;
    every_registry_call_may_fail_before: Registry(faults::Fault::REFUSED), of 20;
    every_registry_call_may_fail_after_success: Registry(faults::Fault::ANSWER_LOST), of 20;
}

/// An online store one call of which fails: before it is done, or after.
#[derive(Debug)]
struct FaultyOnline {
    inner: SqliteOnline,
    calls: AtomicU64,
    /// Which, from 0, and whether it is done.
    fault: Option<(u64, bool)>,
}

impl FaultyOnline {
    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Some((wanted, after)) if wanted == number => {
                if after {
                    call.await?;
                }
                Err(OnlineError::Unavailable("the answer is lost".into()))
            }
            _ => call.await,
        }
    }
}

impl fmt::Display for FaultyOnline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

macro_rules! faulty_calls {
    ($($(#[$attribute:meta])* $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)+) => {
        #[async_trait]
        impl OnlineStore for FaultyOnline {
            $($(#[$attribute])* async fn $name(&self, $($argument: $kind),*) -> Result<$answer> {
                self.call(self.inner.$name($($argument),*)).await
            })+

            async fn close(&self) {
                self.inner.close().await;
            }
        }
    };
}

faulty_calls! {
    claim_owner(project: &ProjectName, registry: RegistryId) -> ();
    claim_care(view: &ViewId, owner: &str, lasts: Duration) -> bool;
    begin_generation(view: &ViewId, generation: u64) -> Begun;
    write(view: &ViewId, generation: u64, rows: &[EncodedRow]) -> ();
    finish_generation(view: &ViewId, generation: u64, rows: u64) -> ();
    cut_over(views: &[CutOver]) -> ();
    begin_upsert(view: &ViewId, generation: u64, publish_number: u64) -> InPlace;
    upsert(view: &ViewId, generation: u64, publish_number: u64, changes: &Changes) -> ();
    finish_upsert(view: &ViewId, generation: u64, publish_number: u64, rows: u64) -> ();
    repair(view: &ViewId, live: Expected, changes: &Changes) -> ();
    check(view: &ViewId, expected: Expected) -> Standing;
    set_switches(view: &ViewId, switches: &ViewSwitches) -> u64;
    switches(view: &ViewId) -> ViewSwitches;
    live(view: &ViewId) -> Option<Live>;
    get_many(keys: &[(ViewId, String)], now: Instant) -> Vec<Option<OnlineRow>>;
    discard(view: &ViewId, generation: u64) -> ();
    prune(view: &ViewId, keep: u32, age_min: Duration, dead_below: u64) -> Vec<u64>;
    count(view: &ViewId, generation: u64) -> u64;
    scan(view: &ViewId, generation: u64, after: Option<&str>, limit: u32) -> Vec<(String, OnlineRow)>;
    keys(view: &ViewId, generation: u64, cursor: Option<&str>) -> (Vec<String>, Option<String>);
    rows(view: &ViewId, generation: u64, keys: &[String]) -> Vec<Option<OnlineRow>>;
}
