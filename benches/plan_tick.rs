//! How long one pass takes when 100 of 10,000 DAGs are due, on a real registry. Prints, beside it, what the machine's
//! disk takes for as many bare transactions: most of a pass is waiting for the disk.
//!
//! `cargo bench -p tidegate-scheduler --bench plan_tick`; exits with 1 when the median exceeds 50 ms and five times the
//! machine's own figure.

#![expect(clippy::print_stdout, reason = "a benchmark's figures are its output")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as RealInstant};

use chrono::TimeDelta;
use indexmap::IndexMap;
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::store::{ApplyChanges, ApplyRequest, DefinitionRow, Store};
use tidegate_registry::time::{Clock, Instant};
use tidegate_scheduler::service::{Options, Scheduler};
use tidegate_store::SqliteStore;

const DAGS: usize = 10_000;
const DUE: usize = 100;
const ROUNDS: usize = 9;
const TARGET: Duration = Duration::from_millis(50);

fn main() -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench())
}

async fn bench() -> anyhow::Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.path().join("registry.db")).await?);
    let start: Instant = "2024-01-01T00:00:00Z".parse()?;
    apply(&*store, start).await?;
    // Within the first hour every hourly DAG has its first tick; from then on one sixtieth of them is due each minute.
    let mut now = start + TimeDelta::minutes(59);
    let clock = Arc::new(SetClock(Mutex::new(now)));
    let scheduler = Scheduler::new(Arc::clone(&store), clock.clone(), Options::default());
    let began = RealInstant::now();
    while pass(&scheduler, &clock, now).await?.0 > 0 {}
    println!("first planning of {DAGS} DAGs: {:.0} ms", millis(began.elapsed()));

    let mut passes = Vec::new();
    for _ in 0..ROUNDS {
        now += TimeDelta::minutes(1);
        let (planned, elapsed) = pass(&scheduler, &clock, now).await?;
        anyhow::ensure!(planned == DUE, "{planned} DAGs were due instead of {DUE}");
        passes.push(elapsed);
    }
    let yardstick = yardstick(&folder.path().join("yardstick.db")).await?;
    passes.sort();
    let median = passes[ROUNDS / 2];
    println!(
        "one pass with {DUE} of {DAGS} DAGs due: median {:.1} ms of {ROUNDS} (worst {:.1})",
        millis(median),
        millis(passes[ROUNDS - 1])
    );
    println!("{DUE} single-row transactions on this disk: {:.1} ms", millis(yardstick));
    Ok(if median <= TARGET.max(yardstick * 5) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One pass at `now`: how many DAGs it planned, and how long it took.
async fn pass(scheduler: &Scheduler, clock: &SetClock, now: Instant) -> anyhow::Result<(usize, Duration)> {
    *clock.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    let began = RealInstant::now();
    let summary = scheduler.step().await?;
    Ok((summary.dags_planned, began.elapsed()))
}

/// A clock that the benchmark sets.
#[derive(Debug)]
struct SetClock(Mutex<Instant>);

impl Clock for SetClock {
    fn now(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn real_until(&self, _at: Instant) -> Duration {
        Duration::MAX
    }
}

/// 6,000 hourly DAGs, a hundred at each minute, and 4,000 that are due at new year; each with one view.
async fn apply(store: &dyn Store, start: Instant) -> anyhow::Result<()> {
    let mut upserts = Vec::new();
    let mut tables = IndexMap::new();
    for index in 0..DAGS {
        let cron = if index < 6_000 { format!("{} * * * *", index % 60) } else { "@yearly".to_owned() };
        let view = format!("view_{index}@v1");
        let body = json!({
            "id": view, "entity": "e", "owner": "o", "description": "d", "sql": "SELECT 1", "reads": [],
            "output": "full", "features": [], "fingerprint": "f",
        });
        upserts.push(row(DefinitionKind::FeatureView, &view, body));
        let body = json!({
            "name": format!("dag_{index}"), "owner": "o", "views": [view], "max_active_runs": 4, "in_order": false,
            "schedule": {"cron": cron, "timezone": "America/New_York", "start": start, "catchup": "all"},
            "retries": {"max": 3, "backoff": 30.0}, "on_blocked": "continue", "publish": "together",
        });
        upserts.push(row(DefinitionKind::Dag, &format!("dag_{index}"), body));
        tables.insert(view.parse()?, 0);
    }
    let changes = ApplyChanges { upserts, removals: Vec::new() };
    let (project, actor) = ("bench".to_owned(), "bench".to_owned());
    store.apply(ApplyRequest { project, base: 0, changes, tables, actor, message: None, now: start }).await?;
    Ok(())
}

fn row(kind: DefinitionKind, name: &str, body: serde_json::Value) -> DefinitionRow {
    DefinitionRow { kind, name: name.to_owned(), fingerprint: "f".to_owned(), body }
}

/// As many transactions of one row as DAGs are due, each waiting for the disk as the registry does.
async fn yardstick(path: &Path) -> anyhow::Result<Duration> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = options.connect().await?;
    sqlx::query("CREATE TABLE t (x INTEGER)").execute(&mut connection).await?;
    let began = RealInstant::now();
    for _ in 0..DUE {
        sqlx::query("INSERT INTO t VALUES (1)").execute(&mut connection).await?;
    }
    let elapsed = began.elapsed();
    connection.close().await?;
    Ok(elapsed)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
