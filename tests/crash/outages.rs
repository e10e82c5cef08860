//! Servers that stop, refuse, lie and forget in the middle of runs, and a disk that is full.
//!
//! One process schedules and works while something is done to what it stands on, again and again, in whatever step it then
//! is: every fail point makes it dawdle, so that each step lasts long enough to be hit. It must come through without a
//! hand, to the same end as an undisturbed run.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate_servers::{Fault, Mode, Postgres, Redis, S3Fake};

use crate::place::Backend;
use crate::points::{POINTS, UNDISTURBED, assert_undisturbed};
use crate::seen::saw;
use crate::world::{Running, VIEWS, World, backfill, block_on, copy, served, told};

/// Runs of [`backfill`].
const RUNS: usize = 4;
/// After so many strikes a process is left alone.
const STRIKES_MAX: u32 = 12;
/// A test that struck less often would prove little: the last day waits for so many.
const STRIKES_MIN: u32 = 3;
/// Longer than all runs take with everything that is done to them.
const PATIENCE: Duration = Duration::from_secs(240);

/// Has the days of [`backfill`] from `from` to `to` computed by whoever works.
fn plan(world: &World, from: &str, to: &str) {
    let planned = world.run(&["backfill", "daily", "--from", from, "--to", to, "--detach"]);
    assert!(planned.status.success(), "{}", told(&planned));
}

/// Waits until the process has said one of `texts`.
fn wait_until_said(running: &Running, texts: &[&str]) {
    let begun = Instant::now();
    while !texts.iter().any(|text| running.said().contains(text)) {
        assert!(begun.elapsed() < PATIENCE, "it never said {texts:?}: {}", running.said());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets one process work through all runs and strikes every `pause`, until `quiet` runs have ended.
fn disturbed(world: &World, points: &str, pause: Duration, quiet: usize, mut strike: impl FnMut(u32, &Running)) {
    plan(world, "2024-01-01", "2024-01-04");
    let dawdling: String = POINTS.iter().map(|point| format!("{point}=sleep(40);")).collect();
    let mut up = world.start(&["up", "--lease", "5s"], &(points.to_owned() + &dawdling));
    world.wait_for(|runs| runs.iter().any(|run| run.state.as_str() == "running"));
    let begun = Instant::now();
    let mut strikes = 0;
    loop {
        // A registry that does not answer has not ended anything that counts.
        let ended = world.ended().unwrap_or(0);
        if ended == RUNS {
            break;
        }
        assert!(up.is_alive(), "it died: {}", up.said());
        assert!(begun.elapsed() < PATIENCE, "{ended} of {RUNS} runs have ended after {strikes} strikes: {}", up.said());
        if strikes < STRIKES_MIN || (strikes < STRIKES_MAX && ended < quiet) {
            strike(strikes, &up);
            strikes += 1;
            if strikes == STRIKES_MIN {
                plan(world, "2024-01-04", "2024-01-05");
            }
        }
        std::thread::sleep(pause);
    }
    up.signal("-TERM");
    let up = up.finish();
    assert!(up.status.success(), "{}", told(&up));
}

const PAUSE: Duration = Duration::from_millis(500);

fn postgres_goes(how: &str, strike: impl Fn(&Postgres)) {
    let (backend, postgres) = Backend::with_own_postgres();
    let world = World::applied(&backend);
    disturbed(&world, "", PAUSE, RUNS, |_, _| strike(&postgres));
    assert_undisturbed(&world);
    saw("F19", &backend, how, SAME);
}

/// What is seen when nothing is seen.
const SAME: &str = "all runs end by themselves, in the same state as undisturbed";

#[test]
fn postgresql_restarted_fast_again_and_again() {
    postgres_goes("PostgreSQL restarted (fast), up to 12 times in mid run", |postgres| {
        postgres.stop().unwrap();
        postgres.start_again().unwrap();
    });
}

#[test]
fn postgresql_crashed_again_and_again() {
    postgres_goes("PostgreSQL restarted (immediate), up to 12 times in mid run", |postgres| {
        postgres.restart_immediate().unwrap();
    });
}

/// Its connections are cut, now and then between a COMMIT and its answer.
#[test]
fn postgresql_sessions_ended_again_and_again() {
    let (backend, postgres) = Backend::with_own_postgres();
    let world = World::applied(&backend);
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
               AND backend_type = 'client backend'";
    disturbed(&world, "", PAUSE / 5, RUNS, |_, _| {
        postgres.execute("postgres", sql).unwrap();
    });
    assert_undisturbed(&world);
    saw("F20", &backend, "all connections to PostgreSQL cut, up to 12 times in mid run", SAME);
}

fn locked(redis: &Mutex<Redis>) -> std::sync::MutexGuard<'_, Redis> {
    redis.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn redis_killed_that_keeps_its_data() {
    let (backend, redis) = Backend::with_own_redis(&["--appendonly", "yes", "--appendfsync", "always"]);
    let world = World::applied(&backend);
    disturbed(&world, "", PAUSE, RUNS, |_, _| locked(&redis).restart().unwrap());
    assert_undisturbed(&world);
    saw("F51", &backend, "Redis with persistence killed and restarted, up to 12 times in mid run", SAME);
}

#[test]
fn redis_killed_that_forgets() {
    let (backend, redis) = Backend::with_own_redis(&[]);
    let world = World::applied(&backend);
    // The last run goes undisturbed: what is lost after all runs is for `tidegate online rebuild`.
    disturbed(&world, "", PAUSE, RUNS - 1, |_, _| locked(&redis).restart().unwrap());
    assert_eq!(served(&world.outcome()), served(&UNDISTURBED), "readers are given something else");
    let what = "the next publication fills it; tables, registry and what readers are given are as undisturbed";
    saw("F51", &backend, "Redis without persistence killed and restarted empty, up to 12 times in mid run", what);
}

#[test]
fn redis_that_forgets_between_runs() {
    let (backend, redis) = Backend::with_own_redis(&[]);
    let world = World::applied(&backend);
    world.backfill();
    locked(&redis).restart().unwrap();
    let worker = world.start_in(&["worker"], &[("TIDEGATE_RECONCILE_EVERY", "1s")]);
    let begun = Instant::now();
    block_on(async {
        let online = world.online().await;
        for view in VIEWS.iter().filter(|view| **view != "lifetime@v1") {
            while online.live(&view.parse().unwrap()).await.unwrap().is_none() {
                assert!(begun.elapsed() < PATIENCE, "`{view}` does not come back: {}", worker.said());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    worker.signal("-TERM");
    let ended = worker.finish();
    assert!(ended.status.success(), "{}", told(&ended));
    assert_eq!(served(&world.outcome()), served(&UNDISTURBED), "readers are given something else");
    let what = "a worker brings it back at its next look; readers are given what they were given before";
    saw("F51", &backend, "Redis without persistence restarted empty between runs, `reconcile.every` of a second", what);
}

#[test]
fn redis_full_again_and_again() {
    let (backend, redis) = Backend::with_own_redis(&[]);
    let world = World::applied(&backend);
    disturbed(&world, "", PAUSE, RUNS, |strikes, up| {
        let redis = locked(&redis);
        redis.cli(&["config", "set", "maxmemory", "1"]).unwrap();
        // For the first time until that is noticed.
        match strikes {
            0 => wait_until_said(up, &["Redis is full (`OOM`): raise its `maxmemory`"]),
            _ => std::thread::sleep(Duration::from_millis(800)),
        }
        redis.cli(&["config", "set", "maxmemory", "0"]).unwrap();
    });
    assert_undisturbed(&world);
    saw("F53", &backend, "Redis full (`maxmemory`) for a while, up to 12 times in mid run", SAME);
}

fn s3_misbehaves(fault: &str, how: &str, strike: impl Fn(&S3Fake, u32)) {
    let (backend, s3) = Backend::with_own_s3();
    let world = World::applied(&backend);
    disturbed(&world, "", PAUSE, RUNS, |strikes, _| strike(&s3, strikes));
    assert!(s3.struck() > 0, "nothing was struck");
    s3.heal();
    assert_undisturbed(&world);
    saw(fault, &backend, how, SAME);
}

#[test]
fn s3_asks_to_slow_down() {
    s3_misbehaves("F31", "S3 answers 503 for a second, up to 12 times in mid run", |s3, _| {
        s3.inject(Fault::new(Mode::Refuse(503)));
        std::thread::sleep(Duration::from_secs(1));
        s3.heal();
    });
}

#[test]
fn s3_is_slow() {
    s3_misbehaves("F32", "S3 answers late and in pieces, during all runs", |s3, strikes| {
        if strikes == 0 {
            s3.inject(Fault::new(Mode::SlowBody { bytes: 100, pause: Duration::from_millis(2) }).on("GET", ""));
            s3.inject(Fault::new(Mode::Delay(Duration::from_millis(30))));
        }
    });
}

#[test]
fn s3_cuts_bodies() {
    // Not for ever: some reads of an attempt are not repeated by the client, and a task has seven attempts.
    s3_misbehaves("F33", "S3 cuts every fifth body it sends, twenty times", |s3, strikes| {
        if strikes == 0 {
            s3.inject(Fault::new(Mode::CutBody(20)).on("GET", "/lake/features/").every(5).times(20));
        }
    });
}

#[test]
fn s3_loses_the_answer_to_every_log_entry() {
    s3_misbehaves("F27", "S3 writes every log entry and answers 500, during all runs", |s3, strikes| {
        if strikes == 0 {
            s3.inject(Fault::new(Mode::ApplyThenRefuse(500)).on("PUT", "_delta_log/").every(2));
        }
    });
}

#[test]
fn s3_cuts_the_connection_after_every_log_entry() {
    s3_misbehaves("F27", "S3 writes every log entry and cuts the connection, during all runs", |s3, strikes| {
        if strikes == 0 {
            s3.inject(Fault::new(Mode::ApplyThenCut).on("PUT", "_delta_log/").every(2));
        }
    });
}

#[test]
fn a_disk_that_fails_to_make_files_durable() {
    let backend = Backend::Embedded;
    let world = World::applied(&backend);
    let done = world.run_at(&backfill(), "lake.sync=1*return->2*off->1*return->off");
    assert_eq!(done.status.code(), Some(1), "one run is blocked: {}", told(&done));
    assert_eq!(told(&done).matches("input/output error").count(), 2, "{}", told(&done));
    assert_undisturbed(&world);
    saw("F43", &backend, "fsync of staged files fails twice", "the task is tried again; the same state as undisturbed");
}

/// A disk of some megabytes in memory, gone with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(folder: PathBuf) -> Result<Self, String> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tidegate-test"]).arg(&folder).output();
        match mount {
            Ok(done) if done.status.success() => Ok(Self(folder)),
            Ok(done) => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_while_staging() {
    full(".tidegate/lake", "F42", "the lake's disk full for a while, up to 12 times in mid run");
}

#[test]
fn a_full_disk_under_everything() {
    full(".tidegate", "F23", "the disk of registry, lake and online store full for a while, up to 12 times in mid run");
}

fn full(part: &str, fault: &str, how: &str) {
    let world = World::applied(&Backend::Embedded);
    let folder = world.folder.path().join(part);
    let aside = world.folder.path().join("aside");
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let disk = match SmallDisk::at(folder.clone()) {
        Ok(disk) => disk,
        Err(error) => {
            // Only root may mount. That nothing else is the reason is all that can be asserted.
            assert!(!is_root(), "root could not mount a tmpfs: {error}");
            return eprintln!("NOT TESTED: a full disk needs root, who may mount a tmpfs: {error}");
        }
    };
    for entry in std::fs::read_dir(&aside).unwrap() {
        let path = entry.unwrap().path();
        copy(&path, &folder.join(path.file_name().unwrap()));
    }
    let ballast = folder.join("ballast");
    disturbed(&world, "", Duration::from_millis(700), RUNS, |strikes, up| {
        // Stops where the disk ends.
        let _ = std::fs::write(&ballast, vec![7; 8 << 20]);
        // For the first time until that is noticed.
        match strikes {
            0 => wait_until_said(up, &["No space left on device", "disk is full"]),
            _ => std::thread::sleep(Duration::from_millis(700)),
        }
        std::fs::remove_file(&ballast).unwrap();
    });
    assert_undisturbed(&world);
    saw(fault, &Backend::Embedded, how, SAME);
    drop(disk);
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&id.stdout).trim() == "0"
}
