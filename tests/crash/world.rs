//! A small project in a folder of its own, processes that work on it, and what they left as one comparable text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::prelude::SessionContext;
use tempfile::TempDir;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{RunFilter, Store};
use tidegate_worker::lake::Lake;
use tidegate_worker::online::{self, OnlineStore};

use crate::place::{Backend, Place};

/// All kinds of reading and writing: a view over a source, one over its state, one over its history, and a partial one.
/// `day` is the same in all rows of a run, so that rows of two runs can be told apart wherever they meet.
const DEFINITIONS: &str = r"
owners: [{name: sales, primary: sales@example.com}]
entities:
  - {name: shop, keys: [{name: shop, type: string}]}
sources:
  - {name: receipts, csv: receipts.csv, event_time: at}
feature_views:
  - name: revenue
    entity: shop
    owner: sales
    description: Revenue of the day
    sql: |
      SELECT shop, CAST(sum(amount) AS DOUBLE) AS total, CAST(max(day) AS BIGINT) AS day
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features:
      - {name: total, type: double, description: euros}
      - {name: day, type: bigint, description: day of the month}
    checks:
      - range: {column: total, min: 0, max: 1000}
      - row_count: {max_change: 0.5}
    online: {strategy: swap}
  - name: ranking
    entity: shop
    owner: sales
    description: Share of the day's revenue, read from the state of another view
    sql: SELECT shop, total / sum(total) OVER () AS share, day FROM revenue
    features:
      - {name: share, type: double, description: 0 to 1}
      - {name: day, type: bigint, description: day of the month}
    online: {strategy: swap}
  - name: lifetime
    entity: shop
    owner: sales
    description: Revenue of all days, read from the history of another view
    sql: SELECT shop, sum(total) AS total, count(*) AS days, max(day) AS day FROM history.revenue GROUP BY shop
    features:
      - {name: total, type: double, description: euros}
      - {name: days, type: bigint, description: days with revenue}
      - {name: day, type: bigint, description: day of the month}
  - name: last_receipt
    entity: shop
    owner: sales
    description: The last receipt of shops that had one
    output: partial
    ttl: 365000d
    sql: |
      SELECT shop, max(at) AT TIME ZONE 'UTC' AS event_timestamp, CAST(max(day) AS BIGINT) AS day
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features: [{name: day, type: bigint, description: day of the month}]
    online: {strategy: swap}
dags:
  - name: daily
    owner: sales
    schedule: {cron: '0 0 * * *', timezone: UTC, start: 2024-01-01, end: 2024-02-01, catchup: none}
    views: [revenue, ranking, lifetime, last_receipt]
    retries: {max: 6, backoff: 1s}
";

/// The views of [`DEFINITIONS`].
pub(crate) const VIEWS: [&str; 4] = ["revenue@v1", "ranking@v1", "lifetime@v1", "last_receipt@v1"];

/// The day whose receipts no check lets through.
pub(crate) const BAD_DAY: u32 = 3;

/// Longer than any command here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);

/// What [`World::applied`] copies: applying takes as long as computing.
static APPLIED: LazyLock<World> = LazyLock::new(|| World::apply(&Backend::Embedded));
/// The same on servers.
static APPLIED_ON_SERVERS: LazyLock<World> = LazyLock::new(|| World::apply(&Backend::shared()));

/// See the module.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) place: Place,
}

impl World {
    /// The project's files and nothing else.
    pub(crate) fn bare(backend: &Backend) -> Self {
        let world = Self::at(Place::empty(backend));
        fs::write(world.folder.path().join("shop.yaml"), DEFINITIONS).unwrap();
        world.sell(3, 4, 0);
        world
    }

    fn at(place: Place) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tidegate.yaml"), format!("project: shop\n{}", place.settings())).unwrap();
        Self { folder, place }
    }

    fn apply(backend: &Backend) -> Self {
        let world = Self::bare(backend);
        let done = world.run(&["apply", "--yes"]);
        assert!(done.status.success(), "{}", told(&done));
        world
    }

    /// The project, applied.
    pub(crate) fn applied(backend: &Backend) -> Self {
        let pattern = match backend {
            Backend::Embedded => &APPLIED,
            Backend::Servers(_) => &APPLIED_ON_SERVERS,
        };
        let Some(place) = Place::copy_of(&pattern.place, backend) else { return Self::apply(backend) };
        let world = Self::at(place);
        for entry in ["shop.yaml", "receipts.csv", ".tidegate"] {
            copy(&pattern.folder.path().join(entry), &world.folder.path().join(entry));
        }
        world
    }

    /// Receipts of `shops` shops on each of `days` days; on the bad day they are too good to be true. `offset` is added to
    /// what the column `day` says.
    pub(crate) fn sell(&self, shops: u32, days: u32, offset: u32) {
        let mut text = "shop,at,amount,day\n".to_owned();
        for day in 1..=days {
            for shop in 0..shops {
                let (amount, hour) = (if day == BAD_DAY { 5_000 } else { day * 10 + shop % 7 }, 1 + shop % 20);
                let label = day + offset;
                writeln!(text, "{},2024-01-{day:02}T{hour:02}:00:00Z,{amount},{label}", Self::shop(shop)).unwrap();
            }
        }
        fs::write(self.folder.path().join("receipts.csv"), text).unwrap();
    }

    /// The name of a shop.
    pub(crate) fn shop(number: u32) -> String {
        format!("s{number:04}")
    }

    /// A command on this project that has not been started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("TIDEGATE_LOG", "info")
            .envs(self.place.environment())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_at(arguments, "")
    }

    /// Runs a command to its end with fail points armed.
    pub(crate) fn run_at(&self, arguments: &[&str], fail_points: &str) -> Output {
        self.start(arguments, fail_points).finish()
    }

    /// Starts a command with fail points armed.
    pub(crate) fn start(&self, arguments: &[&str], fail_points: &str) -> Running {
        self.start_in(arguments, &[("FAILPOINTS", fail_points)])
    }

    /// Starts a command with more in its environment.
    pub(crate) fn start_in(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Running {
        // Into files: a pipe that nobody reads would hold the process up.
        let said = tempfile::NamedTempFile::new().unwrap();
        let child = self
            .command(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(said.reopen().unwrap())
            .spawn()
            .unwrap();
        Running { child, said }
    }

    /// Computes days 1 to 4 of which one is bad, and is content with what a first or later start may answer.
    pub(crate) fn backfill(&self) {
        let done = self.run(&backfill());
        assert!(matches!(done.status.code(), Some(0 | 1)), "{}", told(&done));
    }

    /// What the lake, the registry and the online store hold, without what differs between any two runs: ids and times.
    pub(crate) fn outcome(&self) -> String {
        block_on(self.read_outcome())
    }

    /// The project's lake.
    pub(crate) fn lake(&self) -> Lake {
        self.place.lake(self.folder.path())
    }

    /// The project's online store.
    pub(crate) async fn online(&self) -> Arc<dyn OnlineStore> {
        let location = self.place.online(self.folder.path());
        online::open(&location, &"shop".parse().unwrap(), false).await.unwrap()
    }

    /// The project's registry.
    pub(crate) async fn registry(&self) -> Arc<dyn Store> {
        self.place.registry(self.folder.path()).await.unwrap()
    }

    async fn read_outcome(&self) -> String {
        let mut text = String::new();
        let (registry, online, lake) = (self.registry().await, self.online().await, self.lake());
        let runs = registry.runs(&RunFilter::default()).await.unwrap();
        let names: BTreeMap<RunId, String> = runs.iter().map(|run| (run.id, name(run))).collect();
        for run in &runs {
            let (run, tasks) = registry.run(run.id).await.unwrap();
            writeln!(text, "run {} is {} because {:?}", name(&run), run.state, run.reason).unwrap();
            // How far the others have come when a check stops the run is chance.
            for task in tasks.iter().filter(|_| run.state == RunState::Succeeded) {
                writeln!(text, "  {} is {} with {:?} rows", task.kind, task.state, task.rows).unwrap();
            }
        }
        for snapshot in registry.snapshots(None, None, 0).await.unwrap() {
            writeln!(text, "snapshot of {} is {}", names[&snapshot.run], snapshot.status).unwrap();
            for view in snapshot.views {
                writeln!(text, "  {view:?}").unwrap();
            }
        }
        for view in VIEWS {
            let id: ViewId = view.parse().unwrap();
            for entry in registry.ledger(&id, None, 0).await.unwrap() {
                let run = &names[&entry.run];
                writeln!(text, "ledger of {view}: {} by {run}: {} {}", entry.interval, entry.rows, entry.digest)
                    .unwrap();
            }
            let state = registry.view_states(std::slice::from_ref(&id)).await.unwrap();
            writeln!(text, "state of {view}: {:?}", state[&id]).unwrap();
            let head = lake.load(&id, None).await.unwrap().version();
            writeln!(text, "table of {view} at {head:?}").unwrap();
            for row in rows(&lake, view).await {
                writeln!(text, "  {row}").unwrap();
            }
            let live = online.live(&id).await.unwrap();
            writeln!(text, "live of {view}: {:?}", live.map(|live| (live.generation, live.publish_number))).unwrap();
            for generation in 0..10 {
                for (key, row) in online.scan(&id, generation, None, 1_000).await.unwrap() {
                    writeln!(text, "  {generation} {key} {row:?}").unwrap();
                }
            }
        }
        online.close().await;
        text
    }

    /// Waits until the runs are as `wanted`.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&[Run]) -> bool) {
        let begun = Instant::now();
        block_on(async {
            let registry = self.registry().await;
            while !wanted(&registry.runs(&RunFilter::default()).await.unwrap()) {
                assert!(begun.elapsed() < PATIENCE, "the runs never came to be as expected");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    /// How many runs have ended; `None` when the registry does not tell.
    pub(crate) fn ended(&self) -> Option<usize> {
        block_on(async {
            let registry = self.place.registry(self.folder.path()).await.ok()?;
            let runs = registry.runs(&RunFilter::default()).await.ok()?;
            Some(runs.iter().filter(|run| !run.state.is_open()).count())
        })
    }

    /// Waits until `count` workers are at work.
    pub(crate) fn wait_for_workers(&self, count: usize) {
        let begun = Instant::now();
        block_on(async {
            let registry = self.registry().await;
            while registry.workers_alive(PATIENCE).await.unwrap().len() != count {
                assert!(begun.elapsed() < PATIENCE, "the workers never came");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    /// Whether anybody holds a task.
    pub(crate) fn holds_leases(&self) -> bool {
        block_on(async { !self.registry().await.lease_owners().await.unwrap().is_empty() })
    }

    /// Files in the tables' folders that no table names, as paths below the lake.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        block_on(async {
            let lake = self.lake();
            let mut leftovers = Vec::new();
            for view in VIEWS {
                let (name, _) = view.split_once('@').unwrap();
                let table = lake.load(&view.parse().unwrap(), None).await.unwrap();
                let named: Vec<String> = table.get_file_uris().unwrap().collect();
                let found = self.place.files(self.folder.path(), &format!("features/{name}/v1/data"));
                leftovers.extend(found.into_iter().filter(|file| !named.iter().any(|uri| uri.ends_with(file))));
            }
            leftovers
        })
    }
}

/// The command that computes all of the small project.
pub(crate) fn backfill() -> [&'static str; 6] {
    ["backfill", "daily", "--from", "2024-01-01", "--to", "2024-01-05"]
}

/// A process at work.
pub(crate) struct Running {
    child: Child,
    said: tempfile::NamedTempFile,
}

impl Running {
    /// Waits until it ends.
    pub(crate) fn finish(mut self) -> Output {
        let status = self.wait(PATIENCE);
        let stderr = fs::read(self.said.path()).unwrap();
        Output { status, stdout: Vec::new(), stderr }
    }

    fn wait(&mut self, patience: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < patience, "it does not end: {}", fs::read_to_string(self.said.path()).unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still works.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.said.path()).unwrap()
    }

    /// Sends a signal, as in `-STOP`.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Rows of the head of a view's table as sorted text, run ids left out.
pub(crate) async fn rows(lake: &Lake, view: &str) -> Vec<String> {
    let ctx = SessionContext::new();
    let table = lake.load(&view.parse().unwrap(), None).await.unwrap();
    table.update_datafusion_session(&ctx.state()).unwrap();
    ctx.register_table("t", table.table_provider().await.unwrap()).unwrap();
    let provider = ctx.table_provider("t").await.unwrap();
    // Ids and times of computing differ from run to run.
    let schema = provider.schema();
    let told = schema.fields().iter().map(|field| field.name().clone());
    let told: Vec<String> =
        told.filter(|name| !["run_id", "_run", "_quarantined_at"].contains(&name.as_str())).collect();
    let frame = ctx.sql(&format!("SELECT {} FROM t", told.join(", "))).await.unwrap();
    let schema = Arc::clone(frame.schema().inner());
    let batches = frame.collect().await.unwrap();
    let batch = concat_batches(&schema, &batches).unwrap();
    let text =
        |row| batch.columns().iter().map(|column| array_value_to_string(column, row).unwrap()).collect::<Vec<_>>();
    let mut rows: Vec<String> = (0..batch.num_rows()).map(|row| text(row).join(" | ")).collect();
    rows.sort_unstable();
    rows
}

/// What is left of an outcome when an online store may have forgotten what is not live.
pub(crate) fn served(outcome: &str) -> String {
    let mut text = String::new();
    let mut live = None;
    for line in outcome.lines() {
        if let Some((_, what)) = line.strip_prefix("live of ").and_then(|rest| rest.split_once(": ")) {
            live =
                what.strip_prefix("Some((").and_then(|rest| rest.split_once(',')).map(|(number, _)| number.to_owned());
        }
        let of_generation = line.starts_with("  ") && line.contains(" OnlineRow ");
        if !of_generation || live.as_deref() == line.split_whitespace().next() {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// What a run is called in every world: without the id that a cause may have.
fn name(run: &Run) -> String {
    let cause = run.cause.to_string();
    let cause = cause.split_whitespace().next().unwrap_or_default();
    format!("{} {} revision {} by {cause}", run.dag, run.interval, run.revision)
}

/// How a command ended and what it said.
pub(crate) fn told(output: &Output) -> String {
    format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// Runs a future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A file or a folder with all below it; nothing where there is nothing.
pub(crate) fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            copy(&path, &to.join(path.file_name().unwrap()));
        }
    } else if from.exists() {
        fs::copy(from, to).unwrap();
    }
}
