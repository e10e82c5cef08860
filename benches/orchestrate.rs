//! What orchestration costs when the work itself costs nothing: the real scheduler and two real workers over one PostgreSQL
//! (which waits for its disk), with an executor that only keeps the protocol.
//!
//! 1. 2,000 no-op tasks in chains of 10 over 20 DAGs, end to end, beside what the same server takes for bare commits.
//! 2. From tick to start with 10,000 DAGs registered, a hundred of them due in every minute of project time.
//!
//! `cargo bench -p tidegate-worker --bench orchestrate`; exits with 1 when a target is missed.

#![expect(clippy::print_stdout, reason = "a benchmark's figures are its output")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant as RealInstant};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use indexmap::IndexMap;
use tidegate_registry::definitions::{LoadOptions, load_files};
use tidegate_registry::ids::{ProjectName, RunId, SnapshotId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::plan;
use tidegate_registry::profile::ViewProfile;
use tidegate_registry::run::{Claim, Pins, StagedView, TaskKind, TaskOutput};
use tidegate_registry::store::{
    ApplyRequest, Change, IntentRequest, Record, Store, StoreError, TaskEnd, ViewIntentRequest, ViewRecord,
};
use tidegate_registry::time::{Clock, FixedClock, Instant, SimulatedClock, SystemClock, format_instant};
use tidegate_scheduler::service::{Options, Scheduler};
use tidegate_servers::Postgres;
use tidegate_store::PostgresStore;
use tidegate_worker::{Executor, Hands, Outcome, Worker, WorkerOptions};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DAGS: usize = 20;
const CHAIN: usize = 10;
const INTERVALS: usize = 10;
const SLOTS: usize = 8;
const TASKS_PER_SECOND_MIN: f64 = 500.0;

const DAGS_REGISTERED: usize = 10_000;
/// Project seconds per real second: a minute, in which a hundred DAGs are due, takes ten seconds.
const SPEED: f64 = 6.0;
const WATCHED: Duration = Duration::from_secs(30);
const START_P99_MAX: Duration = Duration::from_secs(1);

fn main() -> Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench())
}

async fn bench() -> Result<ExitCode> {
    let server = Postgres::start()?;
    // Tests do without; here a commit is durable, as in production.
    for setting in ["fsync", "full_page_writes"] {
        server.execute("postgres", &format!("ALTER SYSTEM SET {setting} = on"))?;
    }
    server.execute("postgres", "SELECT pg_reload_conf()")?;
    let throughput = throughput(&server).await?;
    let p99 = tick_to_start(&server).await?;
    let good = throughput >= TASKS_PER_SECOND_MIN && p99 <= START_P99_MAX;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn throughput(server: &Postgres) -> Result<f64> {
    let url = server.database()?;
    let start: Instant = "2024-01-01T00:00:00Z".parse()?;
    let store: Arc<dyn Store> = Arc::new(PostgresStore::open(&url).await?);
    apply(&*store, &chains(), start).await?;
    let clock: Arc<dyn Clock> = Arc::new(FixedClock(start + chrono::TimeDelta::hours(INTERVALS as i64)));
    let began = RealInstant::now();
    let processes = Processes::start(&url, &clock, 2).await?;
    let runs = DAGS * INTERVALS;
    while processes.log.published() < runs {
        anyhow::ensure!(
            began.elapsed() < Duration::from_secs(300),
            "{} of {runs} runs ended",
            processes.log.published()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let elapsed = began.elapsed();
    processes.stop().await;
    let tasks = (runs * CHAIN) as f64;
    let all = (runs * (CHAIN + 2)) as f64;
    let commits = bare_commits(server).await?;
    let rate = tasks / elapsed.as_secs_f64();
    println!(
        "{tasks} no-op tasks in chains of {CHAIN} over {DAGS} DAGs, two workers: {:.2} s, {rate:.0} tasks/s \
         (with pin and publish of each run {:.0}/s); target {TASKS_PER_SECOND_MIN}",
        elapsed.as_secs_f64(),
        all / elapsed.as_secs_f64()
    );
    println!(
        "bare commits of one row, one after the other, on this server: {commits:.0}/s; ratio {:.2}",
        rate / commits
    );
    Ok(rate)
}

async fn tick_to_start(server: &Postgres) -> Result<Duration> {
    let url = server.database()?;
    let start: Instant = "2024-01-01T00:00:00Z".parse()?;
    let store: Arc<dyn Store> = Arc::new(PostgresStore::open(&url).await?);
    apply(&*store, &hourly(), start).await?;
    // The first interval of the DAGs of minute 0 ends an hour later.
    let project_start = start + chrono::TimeDelta::minutes(60) - chrono::TimeDelta::seconds(30);
    let planned = Scheduler::new(Arc::clone(&store), Arc::new(FixedClock(project_start)), Options::default());
    let began = RealInstant::now();
    while planned.step().await?.dags_planned > 0 {}
    println!("first planning of {DAGS_REGISTERED} DAGs: {:.1} s", began.elapsed().as_secs_f64());
    let clock: Arc<dyn Clock> = Arc::new(SimulatedClock { real_start: SystemClock.now(), project_start, speed: SPEED });
    let processes = Processes::start(&url, &clock, 2).await?;
    tokio::time::sleep(WATCHED).await;
    let started = processes.log.delays();
    processes.stop().await;
    let mut minutes: BTreeMap<Instant, Vec<Duration>> = BTreeMap::new();
    for (tick, delay) in &started {
        minutes.entry(*tick).or_default().push(*delay);
    }
    for (tick, delays) in &minutes {
        let (first, last) = (delays.iter().min().copied(), delays.iter().max().copied());
        println!(
            "  due at {}: {} runs, the first after {:.0} ms, the last after {:.0} ms",
            format_instant(*tick),
            delays.len(),
            millis(first.unwrap_or_default()),
            millis(last.unwrap_or_default())
        );
    }
    let mut delays: Vec<Duration> = started.into_iter().map(|(_, delay)| delay).collect();
    delays.sort();
    anyhow::ensure!(delays.len() >= 100, "only {} runs started", delays.len());
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    println!(
        "from tick to start with {DAGS_REGISTERED} DAGs registered, {} runs: p50 {:.0} ms, p99 {:.0} ms, worst {:.0} ms; \
         target {} ms",
        delays.len(),
        millis(at(0.5)),
        millis(at(0.99)),
        millis(at(1.0)),
        START_P99_MAX.as_millis()
    );
    Ok(at(0.99))
}

/// A scheduler and workers, each with connections of its own, as processes would have them.
struct Processes {
    roles: JoinSet<()>,
    stop: CancellationToken,
    log: Arc<Log>,
}

impl Processes {
    async fn start(url: &str, clock: &Arc<dyn Clock>, workers: usize) -> Result<Self> {
        let (mut roles, stop, log) = (JoinSet::new(), CancellationToken::new(), Arc::new(Log::default()));
        for number in 0..workers {
            let store: Arc<dyn Store> = Arc::new(PostgresStore::open(url).await?);
            let wake = Arc::new(Notify::new());
            let bell = Arc::clone(&wake);
            store.listen(Arc::new(move |change| {
                if change == Change::Tasks {
                    bell.notify_waiters();
                }
            }));
            let executor = NoOp { store: Arc::clone(&store), clock: Arc::clone(clock), log: Arc::clone(&log) };
            let hands = Hands {
                store,
                clock: Arc::clone(clock),
                executor: Arc::new(executor),
                wake,
                progress: Arc::new(Notify::new()),
            };
            let options = WorkerOptions {
                owner: format!("bench:{number}"),
                lease: Duration::from_secs(60),
                slots: SLOTS,
                queues: Vec::new(),
                host: "bench".to_owned(),
                memory_bytes: 0,
                spill_dir: std::env::temp_dir(),
            };
            let stop = stop.clone();
            roles.spawn(async move {
                if let Err(error) = Worker::with_hands(hands, options).run(stop).await {
                    println!("a worker ended: {error:#}");
                }
            });
        }
        let store: Arc<dyn Store> = Arc::new(PostgresStore::open(url).await?);
        let scheduler = Scheduler::new(Arc::clone(&store), Arc::clone(clock), Options::default());
        let bell = scheduler.waker();
        store.listen(Arc::new(move |change| {
            if change == Change::Runs {
                bell.notify_waiters();
            }
        }));
        let stopping = stop.clone();
        roles.spawn(async move { scheduler.run(stopping).await });
        Ok(Self { roles, stop, log })
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while self.roles.join_next().await.is_some() {}
    }
}

/// What happened.
#[derive(Debug, Default)]
struct Log(Mutex<(Vec<(Instant, Duration)>, usize)>);

impl Log {
    fn started(&self, tick: Instant, delay: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.push((tick, delay));
    }

    fn recorded(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
    }

    fn published(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn delays(&self) -> Vec<(Instant, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// Keeps the protocol of a run and does nothing else.
#[derive(Debug)]
struct NoOp {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    log: Arc<Log>,
}

#[async_trait]
impl Executor for NoOp {
    async fn execute(&self, claim: &Claim, _project: Arc<Project>) -> Result<Outcome> {
        let output = match &claim.kind {
            TaskKind::Pin => {
                let tick = claim.run.interval.end();
                let project = (self.clock.now() - tick).as_seconds_f64().max(0.0);
                self.log.started(tick, Duration::from_secs_f64(project / SPEED));
                TaskOutput::Pins(Pins::default())
            }
            TaskKind::View(_) => TaskOutput::Staged(staged()),
            TaskKind::Publish | TaskKind::Restore => return self.publish(claim).await,
        };
        Ok(Outcome::End(TaskEnd::Succeeded { output, rows: Some(0) }))
    }

    async fn discard(&self, _run: RunId, _views: &[ViewId]) {}

    async fn discard_other_attempts(&self, _run: RunId, _view: &ViewId, _staged: &StagedView) {}
}

impl NoOp {
    async fn publish(&self, claim: &Claim) -> Result<Outcome> {
        let states = self.store.view_states(&claim.run.views).await?;
        let views = states
            .iter()
            .map(|(view, state)| (view.clone(), ViewIntentRequest { records: state.records, checks: Vec::new() }));
        let request = IntentRequest { views: views.collect(), holds: 0 };
        let intent = match self.store.intent_take(claim.token, request, self.clock.now()).await {
            Ok(intent) => intent,
            // Another interval of the same views is being published.
            Err(StoreError::Conflict(_)) => {
                let retry_in = Duration::from_millis(5);
                return Ok(Outcome::End(TaskEnd::Released { retry_in, reason: None }));
            }
            Err(error) => return Err(error.into()),
        };
        let record_of = |publish_number| ViewRecord {
            fingerprint: "f".to_owned(),
            publish_number,
            delta_version: publish_number,
            rows: 0,
            digest: "0".repeat(32),
            online_generation: None,
            profile: serde_json::Value::Null,
            summary: ViewProfile::default(),
            quarantined: 0,
            quarantine_version: None,
        };
        let views = intent.views.iter().map(|(view, what)| (view.clone(), record_of(what.publish_number)));
        let record = Record {
            snapshot: SnapshotId(claim.run.id.0),
            views: views.collect(),
            manifest: Pins::default(),
            actor: "bench".to_owned(),
            notices: Vec::new(),
        };
        self.store.record(claim.token, record, self.clock.now()).await?;
        self.log.recorded();
        Ok(Outcome::Recorded)
    }
}

fn staged() -> StagedView {
    let (adds, checks) = (Vec::new(), Vec::new());
    StagedView { adds, rows: 0, bytes: 0, digest: "0".repeat(32), checks, profile: IndexMap::new(), quarantine: None }
}

const HEAD: &str = "owners: [{name: o, primary: o@example.com}]
entities: [{name: e, keys: [{name: k, type: string}]}]
sources: [{name: s, parquet: s.parquet}]
";

fn view(text: &mut String, name: &str, reads: &str) {
    let _ = write!(
        text,
        "  - name: {name}\n    entity: e\n    owner: o\n    description: nothing\n    \
         sql: SELECT k, x FROM {reads}\n    features: [{{name: x, type: bigint, description: nothing}}]\n"
    );
}

/// Chains of views, ten intervals of which have passed.
fn chains() -> String {
    let mut text = format!("{HEAD}feature_views:\n");
    for dag in 0..DAGS {
        for link in 0..CHAIN {
            let reads = if link == 0 { "s".to_owned() } else { format!("d{dag}_v{}", link - 1) };
            view(&mut text, &format!("d{dag}_v{link}"), &reads);
        }
    }
    text.push_str("dags:\n");
    for dag in 0..DAGS {
        let views: Vec<String> = (0..CHAIN).map(|link| format!("d{dag}_v{link}")).collect();
        let _ = write!(
            text,
            "  - name: d{dag}\n    owner: o\n    views: [{}]\n    max_active_runs: {INTERVALS}\n    \
             schedule: {{cron: \"0 * * * *\", start: 2024-01-01}}\n",
            views.join(", ")
        );
    }
    text
}

/// DAGs of one view, some hourly (a hundred at each minute) and the rest far in the future.
fn hourly() -> String {
    let mut text = format!("{HEAD}feature_views:\n");
    for dag in 0..DAGS_REGISTERED {
        view(&mut text, &format!("v{dag}"), "s");
    }
    text.push_str("dags:\n");
    for dag in 0..DAGS_REGISTERED {
        let cron = if dag < 6_000 { format!("{} * * * *", dag % 60) } else { "@yearly".to_owned() };
        let _ = write!(
            text,
            "  - name: d{dag}\n    owner: o\n    views: [v{dag}]\n    schedule: {{cron: \"{cron}\", start: 2024-01-01}}\n"
        );
    }
    text
}

async fn apply(store: &dyn Store, definitions: &str, now: Instant) -> Result<()> {
    // A file may have 8 MiB; this is one project, whatever it is cut into.
    let files: [(&str, &[u8]); 2] = [("tidegate.yaml", b"project: bench\n"), ("all.yaml", definitions.as_bytes())];
    let loaded = load_files(Path::new("/bench"), &files, &LoadOptions::default());
    let first = loaded.diagnostics.first().map(|found| found.title.clone()).unwrap_or_default();
    let project = loaded.project.with_context(|| format!("the definitions are wrong: {first}"))?;
    let empty = Project::empty(ProjectName::new("bench")?);
    let planned = plan::diff(0, &empty, &project, &Default::default())
        .map_err(|refused| anyhow::anyhow!("{} changes are refused", refused.len()))?;
    let tables = project.views.keys().map(|view| (view.clone(), 0)).collect();
    let (actor, name) = ("bench".to_owned(), "bench".to_owned());
    let request =
        ApplyRequest { project: name, base: 0, changes: planned.changes(), tables, actor, message: None, now };
    store.apply(request).await?;
    Ok(())
}

/// Transactions of one row, each durable before the next, per second.
async fn bare_commits(server: &Postgres) -> Result<f64> {
    use sqlx::{ConnectOptions as _, Connection as _};
    const COMMITS: u32 = 2_000;
    let options: sqlx::postgres::PgConnectOptions = server.database()?.parse()?;
    let mut connection = options.connect().await?;
    sqlx::query("CREATE TABLE t (x BIGINT)").execute(&mut connection).await?;
    let began = RealInstant::now();
    for _ in 0..COMMITS {
        sqlx::query("INSERT INTO t VALUES (1)").execute(&mut connection).await?;
    }
    let rate = f64::from(COMMITS) / began.elapsed().as_secs_f64();
    connection.close().await?;
    Ok(rate)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
