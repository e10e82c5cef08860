//! What is outside of the registry: a lake and an online store in memory that keep the same fences as the real ones
//! (`lake::commit` and `online`), the tables' files, and the dice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::time::{Clock, Instant, Interval};
use tokio::task::JoinSet;

use super::time::Time;

/// SplitMix64: the same seed, the same throws, on any machine.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `below - 1`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.throw() % below
    }
}

/// A number that depends on the text alone.
pub(crate) fn hash(text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

/// One commit of a table, as its change feed has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Commit {
    pub(crate) publish_number: u64,
    pub(crate) interval: Interval,
    pub(crate) run: RunId,
    pub(crate) file: String,
    pub(crate) digest: String,
}

/// A table: its log. The version is the number of commits, the mark the last publish number.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) log: Vec<Commit>,
}

impl Table {
    /// The file that each slice has now.
    pub(crate) fn slices(&self) -> BTreeMap<Interval, &Commit> {
        self.log.iter().map(|commit| (commit.interval, commit)).collect()
    }
}

/// What a look at a table's mark says.
pub(crate) enum Settled {
    /// This publication landed, at that version.
    Done(u64),
    /// It has yet to land, on that version.
    Open(u64),
    /// A later one has landed.
    Superseded,
}

/// What is live online.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Live {
    pub(crate) publish_number: u64,
    pub(crate) interval: Interval,
    pub(crate) digest: String,
}

/// One step of a cut-over.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    pub(crate) view: ViewId,
    pub(crate) publish_number: u64,
    pub(crate) interval: Interval,
}

#[derive(Debug, Default)]
pub(crate) struct Outside {
    pub(crate) tables: BTreeMap<ViewId, Table>,
    /// Staged files, by run.
    pub(crate) files: BTreeSet<(RunId, String)>,
    /// Finished generations.
    pub(crate) generations: BTreeMap<(ViewId, u64), String>,
    pub(crate) live: BTreeMap<ViewId, Live>,
    /// How often the source has changed.
    pub(crate) source: u64,
    /// What became of everything, for replays to be compared.
    pub(crate) history: Vec<String>,
    /// Promises that were broken. (A panic would end a task, as a crash does.)
    pub(crate) broken: Vec<String>,
}

impl Outside {
    /// As `Lake::settled`: the mark decides.
    pub(crate) fn settled(&mut self, view: &ViewId, ours: u64, run: RunId) -> Settled {
        let Some(table) = self.tables.get(view) else { return Settled::Open(0) };
        let version = table.log.len() as u64;
        match table.log.last() {
            Some(last) if last.publish_number > ours => Settled::Superseded,
            Some(last) if last.publish_number == ours => {
                if last.run != run {
                    self.broken.push(format!("publication {ours} of {view} was given to two runs"));
                }
                Settled::Done(version)
            }
            _ => Settled::Open(version),
        }
    }

    /// Lands as the version after `version` or not at all.
    pub(crate) fn commit(&mut self, view: &ViewId, version: u64, commit: Commit) -> bool {
        let table = self.tables.entry(view.clone()).or_default();
        if table.log.len() as u64 != version {
            return false;
        }
        if !self.files.contains(&(commit.run, commit.file.clone())) {
            self.broken.push(format!("{view} was committed with `{}`, which is gone", commit.file));
        }
        table.log.push(commit);
        true
    }

    /// All or none, and never backwards; false when a later publication is live.
    pub(crate) fn cut_over(&mut self, moves: &[Move]) -> bool {
        let is_behind = |step: &Move| self.live.get(&step.view).is_some_and(|l| l.publish_number > step.publish_number);
        if moves.iter().any(is_behind) {
            return false;
        }
        for step in moves {
            let digest = self.generations[&(step.view.clone(), step.publish_number)].clone();
            let live = Live { publish_number: step.publish_number, interval: step.interval, digest };
            if let Some(before) = self.live.insert(step.view.clone(), live)
                && before.interval > step.interval
            {
                self.broken
                    .push(format!("{} went back online from {} to {}", step.view, before.interval, step.interval));
            }
        }
        true
    }
}

/// Everything that the processes of one simulation share, beside the registry.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) time: Arc<Time>,
    pub(crate) dice: Mutex<Dice>,
    pub(crate) outside: Mutex<Outside>,
    /// Whether things still go wrong.
    pub(crate) storm: Mutex<bool>,
    /// How many calls there were, and a number that depends on all of them.
    calls: Mutex<(u64, u64)>,
    /// What the dead had sent.
    pub(crate) late: Mutex<JoinSet<()>>,
}

/// Project seconds in a second of virtual time: an hour passes in 10 seconds.
pub(crate) const SPEED: u32 = 366;
/// Project time ends here, so that everybody ends with the same grid whatever their clocks said.
pub(crate) const LENGTH: Duration = Duration::from_secs(3_600 + 60);

pub(crate) fn start() -> Instant {
    "2024-01-01T00:00:00Z".parse().unwrap()
}

impl World {
    pub(crate) fn new(seed: u64, time: Arc<Time>) -> Self {
        let dice = Mutex::new(Dice::new(seed));
        Self {
            seed,
            time,
            dice,
            calls: Mutex::default(),
            outside: Mutex::default(),
            storm: Mutex::new(true),
            late: Mutex::default(),
        }
    }

    /// From 0 to `below - 1`.
    pub(crate) fn dice(&self, below: u64) -> u64 {
        self.dice.lock().unwrap().below(below)
    }

    /// Once in `of` times, while the storm lasts.
    pub(crate) fn strikes(&self, of: u64) -> bool {
        *self.storm.lock().unwrap() && self.dice(of) == 0
    }

    /// Remembers that a call was made.
    pub(crate) fn count(&self, what: &str) {
        let mut calls = self.calls.lock().unwrap();
        let text = format!("{} {} {what}", calls.1, self.time.now().as_micros());
        *calls = (calls.0 + 1, hash(&text));
    }

    pub(crate) fn note_calls(&self) {
        let (number, all) = *self.calls.lock().unwrap();
        self.note(&format!("{number} calls, {all:016x}"));
    }

    pub(crate) fn note(&self, what: &str) {
        let at = self.time.now().as_micros();
        self.outside.lock().unwrap().history.push(format!("{at} {what}"));
    }
}

/// Project time of one process, which may be wrong by some minutes.
#[derive(Debug)]
pub(crate) struct SkewedClock {
    pub(crate) time: Arc<Time>,
    /// Project seconds.
    pub(crate) skew: Mutex<i64>,
}

impl Clock for SkewedClock {
    fn now(&self) -> Instant {
        let skew = chrono::TimeDelta::seconds(*self.skew.lock().unwrap());
        let passed = chrono::TimeDelta::from_std(self.time.now() * SPEED).unwrap() + skew;
        start() + passed.clamp(chrono::TimeDelta::zero(), chrono::TimeDelta::from_std(LENGTH).unwrap())
    }

    fn real_until(&self, at: Instant) -> Duration {
        (at - self.now()).to_std().unwrap_or_default() / SPEED
    }
}
