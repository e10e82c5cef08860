//! Many DAGs, two schedulers, three workers, and a nemesis that kills, freezes and stops them for minutes; then an audit.
//!
//! Off unless `TIDEGATE_SOAK_SECONDS` says for how long: `tests/soak.sh` does. The audit asks for every interval that was to
//! be published whether it was, once, and whether what readers get is the newest.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tidegate_registry::ids::ViewId;
use tidegate_registry::run::RunState;
use tidegate_registry::store::RunFilter;

use crate::place::Backend;
use crate::world::{Running, World, block_on, rows, told};

const DAGS: usize = 200;
/// Between two strikes.
const PAUSE: Duration = Duration::from_millis(700);
/// Longer than a lease of five seconds.
const FROZEN: Duration = Duration::from_secs(9);
/// For what is left to do when the nemesis has gone.
const DRAIN_MAX: Duration = Duration::from_secs(1_800);

const SCHEDULER: [&str; 1] = ["scheduler"];
const WORKER: [&str; 5] = ["worker", "--lease", "5s", "--slots", "4"];

/// Each DAG has one view, which says up to when it was computed.
fn definitions(hours: u32) -> String {
    let mut text = "owners: [{name: sales, primary: sales@example.com}]\nentities:\n  - {name: shop, keys: [{name: shop, \
                    type: string}]}\nsources:\n  - {name: receipts, csv: receipts.csv, event_time: at}\nfeature_views:\n"
        .to_owned();
    for number in 0..DAGS {
        writeln!(
            text,
            "  - name: view{number}\n    entity: shop\n    owner: sales\n    description: Receipts up to now\n    sql: \
             SELECT shop, count(*) AS receipts, CAST(extract(epoch FROM $interval_end) AS BIGINT) AS upto FROM receipts \
             GROUP BY shop\n    features:\n      - {{name: receipts, type: bigint, description: receipts}}\n      - {{name: \
             upto, type: bigint, description: seconds since 1970}}\n    online: {{strategy: swap}}"
        )
        .unwrap();
    }
    text.push_str("dags:\n");
    for number in 0..DAGS {
        writeln!(
            text,
            "  - name: dag{number}\n    owner: sales\n    schedule: {{cron: '0 * * * *', timezone: UTC, start: \
             2024-01-01T00:00:00Z, end: 2024-01-01T{hours:02}:00:00Z}}\n    views: [view{number}]\n    retries: {{max: 30, \
             backoff: 1s}}"
        )
        .unwrap();
    }
    text
}

/// One of the processes, and when it is to wake if it is frozen.
struct Process {
    arguments: &'static [&'static str],
    running: Running,
    wakes: Option<Instant>,
}

#[derive(Debug, Default)]
struct Done {
    kills: u32,
    freezes: u32,
    stops: u32,
}

#[test]
fn nothing_is_lost_or_doubled_in_minutes_of_random_deaths() {
    #[expect(clippy::disallowed_methods, reason = "no setting of a project: whether to test for minutes")]
    let Some(seconds) = std::env::var("TIDEGATE_SOAK_SECONDS").ok().and_then(|text| text.parse::<u32>().ok()) else {
        return eprintln!("NOT RUN: TIDEGATE_SOAK_SECONDS does not say for how long; tests/soak.sh does");
    };
    let hours = (seconds / 30).clamp(3, 23);
    let world = World::bare(&Backend::shared());
    std::fs::write(world.folder.path().join("shop.yaml"), definitions(hours)).unwrap();
    // Two hours are due at once, and the others at even distances.
    let speed = 3_600 * (hours - 1) / seconds.max(1);
    let settings = world.folder.path().join("tidegate.yaml");
    let clock = format!("clock: {{start: 2024-01-01T02:00:00Z, speed: {}}}\n", speed.max(1));
    std::fs::write(&settings, std::fs::read_to_string(&settings).unwrap() + &clock).unwrap();
    let applied = world.run(&["apply", "--yes"]);
    assert!(applied.status.success(), "{}", told(&applied));
    let begun = Instant::now();
    let done = torment(&world, Duration::from_secs(seconds.into()));
    let drained = drain(&world, DAGS * hours as usize);
    let (runs, attempts) = block_on(audit(&world, hours as usize));
    eprintln!(
        "soak: {DAGS} DAGs, {hours} intervals each, {runs} runs in {:?} (of which {drained:?} after the last strike), \
         {attempts} attempts of tasks where {} would do; {done:?}",
        begun.elapsed(),
        runs * 3
    );
}

/// Kills, freezes and stops processes at random for so long.
fn torment(world: &World, time: Duration) -> Done {
    let start =
        |arguments: &'static [&'static str]| Process { arguments, running: world.start(arguments, ""), wakes: None };
    let mut processes: Vec<Process> =
        [&SCHEDULER[..], &SCHEDULER, &WORKER, &WORKER, &WORKER].into_iter().map(start).collect();
    let (begun, mut done) = (Instant::now(), Done::default());
    let mut random = 1_u64;
    let mut next = move |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    while begun.elapsed() < time {
        std::thread::sleep(PAUSE);
        for process in &mut processes {
            if process.wakes.is_some_and(|wakes| wakes < Instant::now()) {
                process.running.signal("-CONT");
                process.wakes = None;
            }
        }
        let index = next(processes.len());
        let process = &mut processes[index];
        assert!(process.running.is_alive(), "{:?} died by itself: {}", process.arguments, process.running.said());
        match next(4) {
            0 => {
                process.running.signal("-KILL");
                *process = start(process.arguments);
                done.kills += 1;
            }
            1 if process.wakes.is_none() => {
                process.running.signal("-STOP");
                process.wakes = Some(Instant::now() + FROZEN);
                done.freezes += 1;
            }
            2 if process.wakes.is_none() => {
                process.running.signal("-TERM");
                let arguments = process.arguments;
                let old = std::mem::replace(process, start(arguments)).running.finish();
                assert!(old.status.success(), "{}", told(&old));
                done.stops += 1;
            }
            _ => {}
        }
    }
    for process in processes {
        if process.wakes.is_some() {
            process.running.signal("-CONT");
        }
        process.running.signal("-TERM");
        let ended = process.running.finish();
        assert!(ended.status.success(), "{}", told(&ended));
    }
    done
}

/// Lets one process of each role finish what is left, undisturbed; how long that took.
fn drain(world: &World, expected: usize) -> Duration {
    let begun = Instant::now();
    let up = world.start(&["up", "--slots", "4"], "");
    while world.ended() != Some(expected) {
        assert!(begun.elapsed() < DRAIN_MAX, "{:?} of {expected} runs ended: {}", world.ended(), up.said());
        std::thread::sleep(Duration::from_millis(500));
    }
    up.signal("-TERM");
    let up = up.finish();
    assert!(up.status.success(), "{}", told(&up));
    begun.elapsed()
}

/// Every interval published once, nothing stale, nothing left over; the number of runs and of attempts of their tasks.
async fn audit(world: &World, hours: usize) -> (usize, u64) {
    let (registry, online, lake) = (world.registry().await, world.online().await, world.lake());
    let runs = registry.runs(&RunFilter::default()).await.unwrap();
    assert_eq!(runs.len(), DAGS * hours, "runs");
    let mut planned: BTreeMap<String, u32> = BTreeMap::new();
    let mut attempts = 0;
    for run in &runs {
        assert_eq!(run.state, RunState::Succeeded, "{run:?}");
        *planned.entry(format!("{} {}", run.dag, run.interval)).or_default() += 1;
        let (_, tasks) = registry.run(run.id).await.unwrap();
        attempts += tasks.iter().map(|task| u64::from(task.attempts)).sum::<u64>();
    }
    assert!(planned.len() == DAGS * hours && planned.values().all(|times| *times == 1), "an interval has several runs");
    let newest = format!("{}", 1_704_067_200 + 3_600 * hours);
    for number in 0..DAGS {
        let view = format!("view{number}@v1");
        let id: ViewId = view.parse().unwrap();
        assert_eq!(registry.ledger(&id, None, 0).await.unwrap().len(), hours, "{view}");
        let table = lake.load(&id, None).await.unwrap();
        assert_eq!(table.version(), Some(hours as u64), "{view}: one version per interval, and the empty one");
        assert_eq!(rows(&lake, &view).await.len(), 3 * hours, "{view}: three shops in every interval");
        let files: Vec<String> = table.get_file_uris().unwrap().collect();
        let found = world.place.files(world.folder.path(), &format!("features/view{number}/v1/data"));
        assert_eq!((files.len(), found.len()), (hours, hours), "{view}: {found:?}");
        let live = online.live(&id).await.unwrap().unwrap();
        let state = registry.view_states(std::slice::from_ref(&id)).await.unwrap()[&id].clone();
        assert_eq!(state.online_generation, Some(live.generation), "{view}");
        let served = online.scan(&id, live.generation, None, 10).await.unwrap();
        assert_eq!(served.len(), 3, "{view}");
        for (key, row) in served {
            let upto = row.features.iter().find(|(name, _)| name == "upto");
            assert_eq!(upto.map(|(_, text)| text.as_str()), Some(newest.as_str()), "{view}: {key} is stale");
        }
    }
    online.close().await;
    (runs.len(), attempts)
}
