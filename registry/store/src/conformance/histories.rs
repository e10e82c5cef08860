//! Rules that hold whatever happens in whatever order: workers, cancellations, retries and deaths at random.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidegate_registry::ids::{LeaseToken, RunId, SnapshotId, ViewId};
use tidegate_registry::run::{Cause, Claim, NewRun, Run, RunState, TaskKind, TaskOutput, TaskState, Verdict};
use tidegate_registry::store::{RunFilter, StoreError, TaskEnd, ViewState};

use super::Fixture;
use super::world::{LONG, World, check, day, failed, pins, staged, succeeded, view};

const HISTORIES: u64 = 3;
const STEPS: u32 = 250;
const OWNERS: [&str; 3] = ["w0", "w1", "w2"];

/// Every run ends with all or nothing, every view belongs to one run from intent to record, every claim to one worker.
pub async fn no_history_breaks_the_rules(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let twin = World { store: fixture.twin.clone() };
    let mut history = History { days: 0, live: BTreeMap::new(), dead: Vec::new(), committed: BTreeSet::new() };
    for seed in 1..=HISTORIES {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for step in 0..STEPS {
            let place = if dice.roll(2) == 0 { &world } else { &twin };
            history.step(place, &mut dice).await;
            if step % 25 == 0 {
                history.check_leases(&world).await;
                check_rules(&world, &history.committed).await;
            }
        }
    }
    check_rules(&world, &history.committed).await;
    let ends: BTreeSet<RunState> = all_runs(&world).await.iter().map(|run| run.state).collect();
    for state in [RunState::Succeeded, RunState::Blocked, RunState::Failed, RunState::Cancelled, RunState::Superseded] {
        assert!(ends.contains(&state), "no history ended {state}: the dice are loaded");
    }
}

/// A generator of numbers (splitmix64): the same history for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }
}

/// What the test knows without asking the store.
struct History {
    days: i64,
    /// Claims that nobody has taken away.
    live: BTreeMap<LeaseToken, (Claim, &'static str)>,
    dead: Vec<LeaseToken>,
    /// Runs that took their intent.
    committed: BTreeSet<RunId>,
}

impl History {
    async fn step(&mut self, world: &World, dice: &mut Dice) {
        match dice.roll(20) {
            0..=2 => self.create(world, dice).await,
            3..=8 => self.claim(world, dice).await,
            9..=17 => self.work(world, dice).await,
            18 => self.interfere(world, dice).await,
            _ => {
                let owner = OWNERS[dice.roll(OWNERS.len())];
                world.store.leases_release(owner).await.unwrap();
                self.kill(|_, of| of == owner);
            }
        }
    }

    async fn create(&mut self, world: &World, dice: &mut Dice) {
        let views: &[&str] = [&["a@v1", "b@v1"][..], &["a@v1"], &["b@v1"], &["a@v1", "c@v1"]][dice.roll(4)];
        self.days += i64::try_from(dice.roll(2)).unwrap();
        let run = NewRun {
            views: views.iter().map(|id| view(id)).collect(),
            cause: Cause::Manual(u32::try_from(dice.roll(3)).unwrap()),
            ..World::new_run("daily", self.days)
        };
        let id = world.create(run).await;
        world.store.run_admit(id).await.unwrap();
    }

    async fn claim(&mut self, world: &World, dice: &mut Dice) {
        let owner = OWNERS[dice.roll(OWNERS.len())];
        if let Some(claim) = world.try_claim(owner, LONG, &[]).await {
            let twice = self.live.values().any(|(other, _)| other.run.id == claim.run.id && other.kind == claim.kind);
            assert!(!twice, "`{}` of {} is claimed twice", claim.kind, claim.run.id);
            self.live.insert(claim.token, (claim, owner));
        }
    }

    /// One of the claimed tasks goes on or ends.
    async fn work(&mut self, world: &World, dice: &mut Dice) {
        let Some((claim, _)) = self.live.values().nth(dice.roll(self.live.len().max(1))).cloned() else { return };
        let again = Some(Duration::ZERO);
        let end = match (dice.roll(24), &claim.kind) {
            (0, _) => failed(None),
            (1..=3, _) => failed(again),
            (4, _) => TaskEnd::Released { retry_in: Duration::ZERO, reason: None },
            (5, _) => TaskEnd::PinsChanged { reason: "changed".to_owned() },
            (6, _) => TaskEnd::Blocked { output: None, reason: "blocked".to_owned() },
            (7, TaskKind::Publish) => TaskEnd::Superseded { reason: "overtaken".to_owned() },
            (_, TaskKind::Pin) => succeeded(pins()),
            (_, TaskKind::View(_)) => succeeded(staged(7, vec![check("not_null", Verdict::Passed)])),
            (_, TaskKind::Publish | TaskKind::Restore) => return self.publish(world, &claim).await,
        };
        match world.store.task_end(claim.token, end.clone(), day(10)).await {
            Ok(()) => {
                self.live.remove(&claim.token);
                self.dead.push(claim.token);
                let state = world.state(claim.run.id).await;
                if !state.is_open() || matches!(end, TaskEnd::PinsChanged { .. }) {
                    self.kill(|other, _| other.run.id == claim.run.id);
                }
            }
            Err(StoreError::Refused(_)) => assert!(self.committed.contains(&claim.run.id), "{end:?}"),
            Err(other) => panic!("{end:?}: {other}"),
        }
    }

    async fn publish(&mut self, world: &World, claim: &Claim) {
        if let Some(intent) = world.store.intent(claim.run.id).await.unwrap() {
            let record = World::record(SnapshotId::generate(), &intent);
            world.store.record(claim.token, record, day(10)).await.unwrap();
            self.live.remove(&claim.token);
            self.dead.push(claim.token);
            return;
        }
        let request = world.intent_request(&claim.run).await;
        match world.store.intent_take(claim.token, request, day(10)).await {
            Ok(_) => _ = self.committed.insert(claim.run.id),
            Err(StoreError::Conflict(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// A person cancels or retries some run.
    async fn interfere(&mut self, world: &World, dice: &mut Dice) {
        let runs = all_runs(world).await;
        let Some(run) = runs.get(dice.roll(runs.len().max(1))) else { return };
        if dice.roll(2) == 0 {
            match world.store.run_cancel(run.id, "ana", day(10)).await {
                Ok(()) => self.kill(|other, _| other.run.id == run.id),
                Err(StoreError::Refused(_)) => assert!(!run.state.is_open() || run.state == RunState::Publishing),
                Err(other) => panic!("{other}"),
            }
        } else {
            match world.store.run_retry(run.id, 2, "ana", day(10)).await {
                Ok(new) => world.store.run_admit(new).await.unwrap(),
                Err(StoreError::Refused(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }

    fn kill(&mut self, dies: impl Fn(&Claim, &str) -> bool) {
        let dead: Vec<LeaseToken> =
            self.live.iter().filter(|(_, (claim, owner))| dies(claim, owner)).map(|(token, _)| *token).collect();
        self.live.retain(|token, _| !dead.contains(token));
        self.dead.extend(dead);
    }

    async fn check_leases(&mut self, world: &World) {
        for token in self.live.keys() {
            world.store.task_heartbeat(*token, LONG).await.unwrap();
        }
        for token in self.dead.drain(..) {
            let answer = world.store.task_heartbeat(token, LONG).await;
            assert!(matches!(answer, Err(StoreError::LostLease)), "{answer:?}");
        }
    }
}

async fn all_runs(world: &World) -> Vec<Run> {
    world.store.runs(&RunFilter::default()).await.unwrap()
}

async fn check_rules(world: &World, committed: &BTreeSet<RunId>) {
    let runs = all_runs(world).await;
    let states: BTreeMap<RunId, RunState> = runs.iter().map(|run| (run.id, run.state)).collect();
    let open: BTreeSet<RunId> = world.store.runs_open().await.unwrap().iter().map(|run| run.id).collect();
    for run in &runs {
        assert_eq!(run.state.is_open(), run.finished_at.is_none(), "{run:?}");
        assert_eq!(run.state.is_open(), open.contains(&run.id), "{run:?}");
        let may = [RunState::Publishing, RunState::Succeeded, RunState::Superseded];
        assert!(!committed.contains(&run.id) || may.contains(&run.state), "went back on its intent: {run:?}");
        assert!(committed.contains(&run.id) || run.state != RunState::Succeeded, "succeeded without intent: {run:?}");
        check_tasks(world, run).await;
    }
    for id in ["a@v1", "b@v1", "c@v1"].map(view) {
        let state = world.store.view_states(std::slice::from_ref(&id)).await.unwrap().swap_remove(&id).unwrap();
        let holders: Vec<RunId> = runs
            .iter()
            .filter(|run| run.state == RunState::Publishing && run.views.contains(&id))
            .map(|run| run.id)
            .collect();
        assert_eq!(state.publishing.into_iter().collect::<Vec<_>>(), holders, "who holds `{id}`");
        check_view(world, &id, &state, &states).await;
    }
}

async fn check_tasks(world: &World, run: &Run) {
    let tasks = world.run(run.id).await.1;
    for task in &tasks {
        let pending = matches!(task.state, TaskState::Queued | TaskState::Running);
        assert!(run.state.is_open() || !pending, "{run:?}: {task:?}");
        assert!(!run.state.is_open() || pending || task.state == TaskState::Succeeded, "{run:?}: {task:?}");
        assert_eq!(
            task.state == TaskState::Succeeded,
            matches!(&task.output, Some(output) if fits(&task.kind, output))
        );
    }
    let all_done = tasks.iter().all(|task| task.state == TaskState::Succeeded);
    assert_eq!(all_done, run.state == RunState::Succeeded, "{run:?}");
}

fn fits(kind: &TaskKind, output: &TaskOutput) -> bool {
    matches!(
        (kind, output),
        (TaskKind::Pin, TaskOutput::Pins(_))
            | (TaskKind::View(_), TaskOutput::Staged(_))
            | (TaskKind::Publish, TaskOutput::Published(_))
    )
}

/// Ledger, snapshots and counters of a view tell the same story.
async fn check_view(world: &World, id: &ViewId, state: &ViewState, runs: &BTreeMap<RunId, RunState>) {
    let snapshots = world.store.snapshots(None, Some(id), 0).await.unwrap();
    assert_eq!(state.records, u64::try_from(snapshots.len()).unwrap(), "`{id}`");
    let number = |snapshot: &tidegate_registry::store::Snapshot| {
        snapshot.views.iter().find(|of| of.view == *id).map(|of| of.publish_number).unwrap()
    };
    let numbers: Vec<u64> = snapshots.iter().map(number).collect();
    assert!(numbers.is_sorted_by(|later, earlier| later > earlier), "recorded in the order of the fence: {numbers:?}");
    assert!(numbers.first().is_none_or(|highest| *highest <= state.publish_number));

    let ledger = world.store.ledger(id, None, 0).await.unwrap();
    assert_eq!(state.newest, ledger.first().map(|entry| entry.interval));
    let intervals: BTreeSet<_> = snapshots.iter().map(|snapshot| snapshot.interval).collect();
    assert_eq!(ledger.iter().map(|entry| entry.interval).collect::<BTreeSet<_>>(), intervals);
    for entry in &ledger {
        let last = snapshots.iter().find(|snapshot| snapshot.interval == entry.interval).unwrap();
        assert_eq!((entry.run, entry.snapshot), (last.run, last.id), "`{id}` {}", entry.interval);
        assert_eq!(runs[&entry.run], RunState::Succeeded);
    }
    let last_online = snapshots
        .iter()
        .find_map(|snapshot| snapshot.views.iter().find(|of| of.view == *id).and_then(|of| of.online_generation));
    assert_eq!(state.online_generation, last_online);
    let live: Vec<_> = snapshots.iter().filter(|snapshot| snapshot.status == "live").collect();
    assert!(live.len() <= 1, "two live snapshots of `{id}`");
    assert!(live.iter().all(|snapshot| Some(snapshot.interval) == state.newest));
}
