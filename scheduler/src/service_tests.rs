use std::sync::Mutex as StdMutex;
use std::time::Instant as RealInstant;

use chrono::TimeDelta;
use indexmap::IndexMap;
use tempfile::TempDir;
use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::model::{OnBlocked, Output, Project};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::profile::ViewProfile;
use tidegate_registry::run::{Pins, StagedView, TaskKind, TaskOutput};
use tidegate_registry::store::{
    ApplyChanges, ApplyRequest, ClaimRequest, DefinitionRow, IntentRequest, Record, RunFilter, TaskEnd,
    ViewIntentRequest, ViewRecord,
};
use tidegate_store::SqliteStore;
use tokio::task::JoinSet;

use super::*;
use crate::testing::{dag, daily, day, project, view};

/// Project time that moves when it is told to.
#[derive(Debug)]
struct HandClock(StdMutex<Instant>);

impl Clock for HandClock {
    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    fn real_until(&self, at: Instant) -> Duration {
        if at <= self.now() { Duration::ZERO } else { Duration::MAX }
    }
}

/// A registry on disk, a clock, and a scheduler over both.
struct World {
    store: Arc<SqliteStore>,
    clock: Arc<HandClock>,
    scheduler: Arc<Scheduler>,
    _folder: TempDir,
}

impl World {
    async fn new(project: &Project) -> Self {
        Self::with(project, Options::default()).await
    }

    async fn with(project: &Project, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&folder.path().join("registry.db")).await.unwrap());
        let clock = Arc::new(HandClock(StdMutex::new(day(1))));
        apply(&store, project, day(1)).await;
        let scheduler = Arc::new(Scheduler::new(store.clone(), clock.clone(), options));
        Self { store, clock, scheduler, _folder: folder }
    }

    fn set(&self, now: Instant) {
        *self.clock.0.lock().unwrap() = now;
    }

    async fn step(&self) -> StepSummary {
        self.scheduler.step().await.unwrap()
    }

    /// Every run as `dag day state: reason`, by DAG, interval and revision.
    async fn runs(&self) -> Vec<String> {
        let mut runs = self.store.runs(&RunFilter::default()).await.unwrap();
        runs.sort_by_key(|run| (run.dag.clone(), run.interval, run.revision));
        runs.iter()
            .map(|run| {
                let reason = run.reason.as_ref().filter(|_| run.state == RunState::Waiting);
                let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                format!("{} {} {}{reason}", run.dag, run.interval.start().format("%d"), run.state)
            })
            .collect()
    }

    /// Works until nothing can be claimed. Runs of DAG `block` are blocked by their first view.
    async fn work(&self, block: &str) {
        let request = ClaimRequest::new("w", Duration::from_secs(60));
        let now = self.clock.now();
        while let Some(claim) = self.store.task_claim(&request, now).await.unwrap().pop() {
            let end = match &claim.kind {
                TaskKind::Pin => succeeded(TaskOutput::Pins(Pins::default())),
                TaskKind::View(_) if claim.run.dag.as_str() == block => {
                    TaskEnd::Blocked { output: None, reason: "too few rows".to_owned() }
                }
                TaskKind::View(_) => succeeded(TaskOutput::Staged(staged())),
                TaskKind::Publish | TaskKind::Restore => {
                    self.publish(claim.token, &claim.run.views, now).await;
                    continue;
                }
            };
            self.store.task_end(claim.token, end, now).await.unwrap();
        }
    }

    async fn publish(&self, token: tidegate_registry::ids::LeaseToken, views: &[ViewId], now: Instant) {
        let states = self.store.view_states(views).await.unwrap();
        let requests = states
            .iter()
            .map(|(view, state)| (view.clone(), ViewIntentRequest { records: state.records, checks: Vec::new() }))
            .collect();
        let intent = self.store.intent_take(token, IntentRequest { views: requests, holds: 0 }, now).await.unwrap();
        let record = |publish_number| ViewRecord {
            fingerprint: "f".to_owned(),
            publish_number,
            delta_version: publish_number,
            rows: 1,
            digest: "0".repeat(32),
            online_generation: None,
            profile: serde_json::json!({}),
            summary: ViewProfile::default(),
            quarantined: 0,
            quarantine_version: None,
        };
        let views = intent.views.iter().map(|(view, intent)| (view.clone(), record(intent.publish_number))).collect();
        let record = Record {
            snapshot: SnapshotId::generate(),
            views,
            manifest: Pins::default(),
            actor: "w".to_owned(),
            notices: Vec::new(),
        };
        self.store.record(token, record, now).await.unwrap();
    }
}

fn succeeded(output: TaskOutput) -> TaskEnd {
    TaskEnd::Succeeded { output, rows: Some(1) }
}

fn staged() -> StagedView {
    StagedView {
        adds: Vec::new(),
        rows: 1,
        bytes: 1,
        digest: "0".repeat(32),
        checks: Vec::new(),
        profile: IndexMap::new(),
        quarantine: None,
    }
}

async fn apply(store: &SqliteStore, project: &Project, now: Instant) {
    let row = |kind, name: String, body| DefinitionRow { kind, name, fingerprint: "f".to_owned(), body };
    let views = project
        .views
        .values()
        .map(|view| row(DefinitionKind::FeatureView, view.id.to_string(), serde_json::to_value(view).unwrap()));
    let dags = project
        .dags
        .values()
        .map(|dag| row(DefinitionKind::Dag, dag.name.to_string(), serde_json::to_value(dag).unwrap()));
    let request = ApplyRequest {
        project: "test".to_owned(),
        base: store.info().await.unwrap().revision,
        changes: ApplyChanges { upserts: views.chain(dags).collect(), removals: Vec::new() },
        tables: project.views.keys().map(|view| (view.clone(), 0)).collect(),
        actor: "ana".to_owned(),
        message: None,
        now,
    };
    store.apply(request).await.unwrap();
}

/// DAG `u` runs `up`; DAG `d` runs `a`, which reads it.
fn two_dags(change: impl FnOnce(&mut Dag)) -> Project {
    let views = vec![view("up", Output::Full, &[]), view("a", Output::Full, &["up"])];
    let mut d = dag("d", &["a"]);
    change(&mut d);
    project(views, vec![dag("u", &["up"]), d])
}

#[tokio::test]
async fn a_pass_plans_what_is_due_and_lets_in_what_is_ready() {
    let world = World::new(&two_dags(|_| {})).await;
    world.set(day(3));
    let summary = world.step().await;
    assert_eq!((summary.dags_planned, summary.ticks, summary.runs_planned), (2, 6, 4));
    let waits = |day: u32| {
        format!(
            "waits for `up@v1` to publish the interval from 2024-01-0{day}T00:00:00Z to 2024-01-0{}T00:00:00Z",
            day + 1
        )
    };
    let waiting = [format!("d 01 waiting: {}", waits(1)), format!("d 02 waiting: {}", waits(2))];
    assert_eq!(world.runs().await, [&waiting[0], &waiting[1], "u 01 queued", "u 02 queued"]);

    world.work("").await;
    assert_eq!(world.step().await.admitted, 2);
    world.work("").await;
    assert_eq!(world.runs().await, ["d 01 succeeded", "d 02 succeeded", "u 01 succeeded", "u 02 succeeded"]);

    // A new day: what is remembered of `up` does not hide that its newest interval is to come.
    world.set(day(4));
    world.step().await;
    assert_eq!(world.runs().await[2], format!("d 03 waiting: {}", waits(3)));
    world.work("").await;
    world.step().await;
    assert_eq!(world.runs().await[2], "d 03 queued");
}

#[tokio::test]
async fn passing_twice_is_passing_once() {
    let world = World::new(&two_dags(|_| {})).await;
    world.set(day(5));
    world.step().await;
    let before = world.store.runs(&RunFilter::default()).await.unwrap();
    let again = world.step().await;
    assert!(!again.did_anything() && !again.more && again.dags_planned == 0, "{again:?}");
    assert_eq!(world.store.runs(&RunFilter::default()).await.unwrap(), before);
    // A scheduler that begins anew finds nothing to do either.
    let fresh = Scheduler::new(world.store.clone(), world.clock.clone(), Options::default());
    assert!(!fresh.step().await.unwrap().did_anything());
}

#[tokio::test]
async fn schedulers_side_by_side_plan_once() {
    let world = World::new(&two_dags(|dag| dag.schedule.cron = "* * * * *".to_owned())).await;
    world.set(day(2) + TimeDelta::hours(3));
    let mut tasks = JoinSet::new();
    for _ in 0..3 {
        let scheduler = Scheduler::new(world.store.clone(), world.clock.clone(), Options::default());
        tasks.spawn(async move { while scheduler.step().await.unwrap().did_anything() {} });
    }
    tasks.join_all().await;
    while world.step().await.did_anything() {}
    let ticks = world.store.ticks(&"d".parse().unwrap(), day(1), day(9)).await.unwrap();
    assert_eq!(ticks.len(), 27 * 60 + 1);
    assert_eq!(world.runs().await.len(), 27 * 60 + 1, "1,620 of `d` and one of `u`");
}

/// The clock of a scheduler jumps an hour back and forth: what was planned stays, nothing is planned twice or left out.
#[tokio::test]
async fn a_clock_that_jumps_by_hours_plans_every_interval_once() {
    let world = World::new(&two_dags(|dag| dag.schedule.cron = "* * * * *".to_owned())).await;
    for hour in 1..6 {
        for jump in [0, 1, -1] {
            world.set(day(2) + TimeDelta::hours(hour + jump));
            while world.step().await.did_anything() {}
        }
    }
    let ticks = world.store.ticks(&"d".parse().unwrap(), day(1), day(9)).await.unwrap();
    // The farthest that the clock ever said is six hours into the second day.
    assert_eq!(ticks.len(), 30 * 60 + 1);
    assert!(ticks.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::minutes(1)));
    assert_eq!(world.runs().await.len(), 30 * 60 + 1, "1,800 of `d` and one of `u`");
}

#[tokio::test]
async fn a_blocked_interval_holds_later_ones_until_its_retry_has_published() {
    let world = World::new(&two_dags(|dag| dag.on_blocked = OnBlocked::Wait)).await;
    world.set(day(2));
    for _ in 0..2 {
        world.step().await;
        world.work("d").await;
    }
    world.set(day(3));
    for _ in 0..2 {
        world.step().await;
        world.work("").await;
    }
    let held = "d 02 waiting: waits until the earlier interval from 2024-01-01T00:00:00Z is settled: its last run published nothing";
    assert_eq!(world.runs().await[..2], ["d 01 blocked", held]);
    let blocked = world.store.latest_runs(&"d".parse().unwrap(), day(1), day(2)).await.unwrap();
    world.store.run_retry(blocked[0].id, 1, "ana", day(3)).await.unwrap();
    for _ in 0..2 {
        world.step().await;
        world.work("").await;
    }
    assert_eq!(world.runs().await[..3], ["d 01 blocked", "d 01 succeeded", "d 02 succeeded"]);
}

#[tokio::test]
async fn a_backfill_is_previewed_without_a_trace_and_then_planned() {
    let world = World::new(&two_dags(|dag| dag.schedule.catchup = tidegate_registry::model::Catchup::None)).await;
    let name: DagName = "d".parse().unwrap();
    world.store.dag_pause(&name, true, "ana", day(3)).await.unwrap();
    world.set(day(5));
    let chosen = |plan: &BackfillPlan| plan.selected().map(|chosen| chosen.interval).collect::<Vec<_>>();
    let preview = world.scheduler.backfill_preview(&name, day(2), day(99), Reprocess::Missing).await.unwrap();
    assert_eq!(chosen(&preview), [daily(2), daily(3), daily(4)]);
    assert!(world.runs().await.is_empty());
    assert!(world.store.ticks(&name, day(1), day(9)).await.unwrap().is_empty());

    let (id, plan) = world.scheduler.backfill(&name, day(2), day(99), Reprocess::Missing).await.unwrap();
    assert_eq!(plan, preview);
    let runs = world.store.runs(&RunFilter { dag: Some(name.clone()), ..RunFilter::default() }).await.unwrap();
    assert!(runs.len() == 3 && runs.iter().all(|run| run.cause.to_string() == format!("backfill {id}")));
    let again = world.scheduler.backfill_preview(&name, day(1), day(99), Reprocess::All).await.unwrap();
    assert_eq!(chosen(&again), [daily(1)], "the others are under way");
    let unknown = world.scheduler.backfill_preview(&"x".parse().unwrap(), day(1), day(2), Reprocess::All).await;
    assert_eq!(unknown.unwrap_err().to_string(), "there is no DAG `x`");
}

#[tokio::test]
async fn a_dag_that_cannot_be_planned_does_not_stop_the_others() {
    let mut broken = two_dags(|_| {});
    broken.dags[1].schedule.cron = "never".to_owned();
    let world = World::new(&broken).await;
    world.set(day(2));
    let summary = world.step().await;
    assert_eq!((summary.dags_planned, summary.dags_failed, summary.more), (1, 1, false));
    assert_eq!(world.runs().await, ["u 01 queued"]);
}

#[tokio::test]
async fn a_step_that_is_refused_leaves_no_trace_and_stops_no_other() {
    let project = two_dags(|_| {});
    let world = World::new(&project).await;
    let states = world.store.dags().await.unwrap();
    let decide = |index: usize| {
        let state: &DagState = &states[index];
        planning::plan(&project.dags[&state.dag], &[], state, &DagHistory::default(), day(3)).unwrap()
    };
    let (mut broken, good) = (decide(0), decide(1));
    // Its ticks are stored before its last run is found to compute nothing.
    broken.runs[1].views.clear();
    let mut outdated = decide(1);
    outdated.planned_until = Some(day(1));
    let verdicts = world.store.plan_all(&[broken, outdated, good], day(3)).await.unwrap();
    assert!(
        matches!(verdicts[..], [Err(StoreError::Refused(_)), Err(StoreError::Conflict(_)), Ok(())]),
        "{verdicts:?}"
    );
    assert_eq!(world.runs().await, ["u 01 waiting", "u 02 waiting"]);
    assert!(world.store.ticks(&states[0].dag, day(1), day(9)).await.unwrap().is_empty());
    assert_eq!(world.store.ticks(&states[1].dag, day(1), day(9)).await.unwrap().len(), 3);
}

/// Waits until `is` holds.
async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let began = RealInstant::now();
    while !is().await {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} never happens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_loop_looks_when_it_is_woken_and_stops_when_it_is_told() {
    let hour = Duration::from_secs(3600);
    let world = World::with(&two_dags(|_| {}), Options { poll: hour, ..Options::default() }).await;
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let (scheduler, cancel) = (Arc::clone(&world.scheduler), cancel.clone());
        async move { scheduler.run(cancel).await }
    });
    eventually("the first tick", async || {
        !world.store.ticks(&"u".parse().unwrap(), day(1), day(1)).await.unwrap().is_empty()
    })
    .await;
    world.set(day(2));
    let waker = world.scheduler.waker();
    eventually("a run", async || {
        waker.notify_one();
        world.runs().await.contains(&"u 01 queued".to_owned())
    })
    .await;
    cancel.cancel();
    tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await.unwrap();
}

#[tokio::test]
async fn the_loop_outlives_its_registrys_absence() {
    let world = World::with(&two_dags(|_| {}), Options { poll: Duration::from_millis(1), ..Options::default() }).await;
    world.store.close().await;
    assert!(world.scheduler.step().await.is_err());
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let (scheduler, cancel) = (Arc::clone(&world.scheduler), cancel.clone());
        async move { scheduler.run(cancel).await }
    });
    let ended = tokio::time::timeout(Duration::from_millis(300), tasks.join_next()).await;
    assert!(ended.is_err(), "the loop ended: {ended:?}");
    cancel.cancel();
    tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await.unwrap();
}

#[test]
fn the_pause_after_failures_grows_and_is_bounded() {
    let poll = Options::default().poll;
    assert_eq!(backoff(poll, 1), Duration::from_secs(1));
    assert_eq!(backoff(poll, 3), Duration::from_secs(4));
    assert_eq!(backoff(poll, u32::MAX), BACKOFF_MAX);
}
