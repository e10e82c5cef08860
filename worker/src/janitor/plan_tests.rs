//! Over random histories: nothing that anybody may ask for is ever deleted, and nothing is left over for ever.
//!
//! The model below is a table and its registry, as simple as can be: a log that is replayed from its beginning or a
//! checkpoint, and files. The janitor's plan is carried out on it up to a random step, as if the process died there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::TimeDelta;
use proptest::prelude::*;
use tidegate_registry::care::{KeptSnapshot, Pin, PinnedTableFile, ViewKeep};
use tidegate_registry::definitions::settings::Retention;
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::time::{Instant, Interval};

use super::plan::{Need, TableFacts, TablePlan, expendable, needed, plan, run_of};
use crate::lake::care::{LogEntry, LogListing, Object};

const AGE: Duration = Duration::from_secs(10 * 3_600);
const RETENTION: Retention =
    Retention { snapshots: Duration::from_secs(40 * 3_600), snapshots_min: 2, log: Duration::ZERO, staged: AGE };

fn view() -> ViewId {
    "a@v1".parse().unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    /// A run replaces a slice, from intent to record.
    Publish {
        slice: u8,
    },
    /// A run is bound to what is recorded, and stages a file.
    Open,
    /// The oldest open run ends without publishing, its file left behind.
    Fail,
    /// A run commits and dies before it records.
    CommitOnly {
        slice: u8,
    },
    /// What was committed is recorded.
    Record,
    Pin {
        which: u8,
    },
    Unpin,
    Pass {
        hours: u8,
    },
    /// The janitor comes, and dies after so many steps.
    Clean {
        dies_after: Option<u8>,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..6_u8).prop_map(|slice| Op::Publish { slice }),
        2 => Just(Op::Open),
        1 => Just(Op::Fail),
        1 => (0..6_u8).prop_map(|slice| Op::CommitOnly { slice }),
        1 => Just(Op::Record),
        1 => any::<u8>().prop_map(|which| Op::Pin { which }),
        1 => Just(Op::Unpin),
        3 => (1..20_u8).prop_map(|hours| Op::Pass { hours }),
        3 => proptest::option::of(0..12_u8).prop_map(|dies_after| Op::Clean { dies_after }),
    ]
}

/// The state of a table at a version: its files by slice.
type Files = BTreeMap<u8, String>;

#[derive(Debug, Clone)]
struct Model {
    now: Instant,
    /// What is in the store.
    entries: BTreeMap<u64, (LogEntry, Instant)>,
    checkpoints: BTreeMap<u64, (BTreeSet<String>, Instant)>,
    objects: BTreeMap<String, Instant>,
    /// What was ever true, whatever was deleted since.
    history: BTreeMap<u64, Files>,
    recorded: u64,
    /// Committed and not yet recorded, with the run that holds the view.
    unrecorded: Option<RunId>,
    snapshots: Vec<KeptSnapshot>,
    open: BTreeMap<RunId, u64>,
}

impl Model {
    fn new() -> Self {
        let now: Instant = "2024-01-01T00:00:00Z".parse().unwrap();
        Self {
            now,
            entries: BTreeMap::from([(0, (LogEntry::default(), now))]),
            checkpoints: BTreeMap::new(),
            objects: BTreeMap::new(),
            history: BTreeMap::from([(0, Files::new())]),
            recorded: 0,
            unrecorded: None,
            snapshots: Vec::new(),
            open: BTreeMap::new(),
        }
    }

    fn head(&self) -> u64 {
        *self.entries.last_key_value().unwrap().0
    }

    fn stage(&mut self, run: RunId) -> String {
        let path = format!("data/{run}/0-1h/part-0.parquet");
        self.objects.insert(path.clone(), self.now);
        path
    }

    fn commit(&mut self, run: RunId, slice: u8) {
        let path = self.stage(run);
        let mut files = self.history[&self.head()].clone();
        let removed = files.insert(slice, path.clone());
        let entry = LogEntry {
            adds: BTreeMap::from([(path, 1)]),
            removes: removed.into_iter().collect(),
            ..LogEntry::default()
        };
        let version = self.head() + 1;
        self.entries.insert(version, (entry, self.now));
        self.history.insert(version, files);
    }

    fn record(&mut self, run: RunId) {
        self.recorded = self.head();
        for snapshot in &mut self.snapshots {
            snapshot.live = false;
        }
        self.snapshots.push(KeptSnapshot {
            id: SnapshotId(run.0),
            created_at: self.now,
            interval: Interval::new(self.now, self.now + TimeDelta::hours(1)).unwrap(),
            delta_version: self.head(),
            quarantine_version: None,
            live: true,
            pin: None,
        });
    }

    fn keep(&self) -> ViewKeep {
        ViewKeep {
            delta_version: self.recorded,
            publish_number: self.head(),
            publishing: self.unrecorded,
            snapshots: self.snapshots.clone(),
            pinned_versions: self.open.clone(),
            ..ViewKeep::default()
        }
    }

    fn log(&self) -> LogListing {
        let object = |version: u64, ending: &str, modified: Instant| Object {
            path: format!("_delta_log/{version:020}.{ending}"),
            size: 1,
            modified,
        };
        LogListing {
            entries: self.entries.iter().map(|(version, (_, at))| (*version, object(*version, "json", *at))).collect(),
            checkpoints: self.checkpoints.keys().copied().collect(),
            beside: self
                .checkpoints
                .iter()
                .map(|(version, (_, at))| (*version, object(*version, "checkpoint.parquet", *at)))
                .collect(),
        }
    }

    /// What a reader of `version` is given, by what is in the store: `None` when the log no longer tells.
    fn load(&self, version: u64) -> Option<BTreeSet<String>> {
        let base = self.checkpoints.range(..=version).next_back();
        let (first, mut files) = match base {
            Some((at, (files, _))) => (at + 1, files.clone()),
            None => (0, BTreeSet::new()),
        };
        for version in first..=version {
            let (entry, _) = self.entries.get(&version)?;
            files.retain(|file| !entry.removes.contains(file));
            files.extend(entry.adds.keys().cloned());
        }
        Some(files)
    }

    fn facts(&self) -> TableFacts {
        let (keep, log) = (self.keep(), self.log());
        let oldest = *needed(&keep, &log, AGE, self.now).keys().next().unwrap();
        let base = self.load(oldest).unwrap_or_else(|| panic!("version {oldest} is needed and cannot be loaded"));
        TableFacts {
            keep,
            open_runs: self.open.keys().copied().chain(self.unrecorded).collect(),
            log,
            base_files: base.into_iter().map(|file| (file, 1)).collect(),
            entries: self.entries.range(oldest + 1..).map(|(version, (entry, _))| (*version, entry.clone())).collect(),
            objects: self
                .objects
                .iter()
                .map(|(path, modified)| Object { path: path.clone(), size: 1, modified: *modified })
                .collect(),
        }
    }

    fn clean(&mut self, dies_after: Option<u8>) -> TablePlan {
        let keep = self.keep();
        let expired = expendable([(&view(), &keep)], &RETENTION, self.now);
        self.snapshots.retain(|snapshot| !expired.contains(&snapshot.id));
        let plan = plan(&view(), &self.facts(), AGE, self.now);
        let mut steps = dies_after.map_or(usize::MAX, usize::from);
        let mut alive = || {
            let alive = steps > 0;
            steps = steps.saturating_sub(1);
            alive
        };
        for version in &plan.checkpoints {
            if alive() {
                let files = self.load(*version).unwrap();
                self.checkpoints.insert(*version, (files, self.now));
            }
        }
        for object in plan.log.iter().chain(&plan.files) {
            if !alive() {
                break;
            }
            if let Some(name) = object.path.strip_prefix("_delta_log/") {
                let version: u64 = name[..20].parse().unwrap();
                if name.ends_with(".json") {
                    self.entries.remove(&version);
                } else {
                    self.checkpoints.remove(&version);
                }
            } else {
                self.objects.remove(&object.path);
            }
        }
        plan
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Publish { slice } if self.unrecorded.is_none() => {
                let run = RunId::generate();
                self.commit(run, *slice);
                self.record(run);
            }
            Op::CommitOnly { slice } if self.unrecorded.is_none() => {
                let run = RunId::generate();
                self.commit(run, *slice);
                self.unrecorded = Some(run);
            }
            Op::Record => {
                if let Some(run) = self.unrecorded.take() {
                    self.record(run);
                }
            }
            Op::Open => {
                let run = RunId::generate();
                self.open.insert(run, self.recorded);
                self.stage(run);
            }
            Op::Fail => {
                self.open.pop_first();
            }
            Op::Pin { which } if !self.snapshots.is_empty() => {
                let which = usize::from(*which) % self.snapshots.len();
                let files = self.history[&self.snapshots[which].delta_version].values();
                let files = files.map(|path| PinnedTableFile { path: path.clone(), size: 1 }).collect();
                self.snapshots[which].pin = Some(Pin {
                    pinned_at: self.now,
                    actor: "ana".to_owned(),
                    reason: "audit".to_owned(),
                    files: BTreeMap::from([(view(), files)]),
                });
            }
            Op::Unpin => {
                if let Some(pinned) = self.snapshots.iter_mut().find(|snapshot| snapshot.pin.is_some()) {
                    pinned.pin = None;
                }
            }
            Op::Pass { hours } => self.now += TimeDelta::hours(i64::from(*hours)),
            Op::Clean { dies_after } => drop(self.clean(*dies_after)),
            Op::Publish { .. } | Op::CommitOnly { .. } | Op::Pin { .. } => {}
        }
    }

    /// The versions that somebody may ask for, told without the janitor's own reasoning.
    fn askable(&self) -> BTreeSet<u64> {
        let mut askable: BTreeSet<u64> = (self.recorded..=self.head()).collect();
        askable.extend(self.snapshots.iter().map(|snapshot| snapshot.delta_version));
        askable.extend(self.open.values());
        askable
    }

    fn check(&self) {
        for version in self.askable() {
            let files: BTreeSet<String> = self.history[&version].values().cloned().collect();
            assert_eq!(self.load(version), Some(files.clone()), "version {version} reads as it was");
            let gone: Vec<_> = files.iter().filter(|file| !self.objects.contains_key(*file)).collect();
            assert!(gone.is_empty(), "version {version} lost {gone:?}");
        }
        for run in self.open.keys() {
            assert!(self.objects.keys().any(|path| run_of(path) == Some(*run)), "the file of an open run is gone");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_needed_goes_and_nothing_stays_for_ever(ops in proptest::collection::vec(op(), 1..160)) {
        let mut model = Model::new();
        for op in &ops {
            model.apply(op);
            model.check();
        }
        // When all is quiet and a safety age has passed, what is left is exactly what is asked for.
        model.apply(&Op::Record);
        model.open.clear();
        // Expiring, then checkpointing, then shortening: each may need the one before.
        for _ in 0..6 {
            model.now += TimeDelta::from_std(AGE).unwrap() + TimeDelta::hours(1);
            model.clean(None);
            model.check();
        }
        let named: BTreeSet<String> =
            model.askable().iter().flat_map(|version| model.history[version].values().cloned()).collect();
        let left: BTreeSet<String> = model.objects.keys().cloned().collect();
        prop_assert_eq!(left, named, "orphans");
        let oldest = *model.askable().first().unwrap();
        let first = *model.entries.keys().next().unwrap();
        prop_assert!(oldest - first <= 2 * super::plan::CHECKPOINT_EVERY, "the log keeps {} entries too many", oldest - first);
        let idle = model.clone().clean(None);
        prop_assert!(idle.files.is_empty() && idle.log.is_empty() && idle.checkpoints.is_empty(), "idle: {:?}", idle);
    }
}

#[test]
fn the_newest_snapshots_and_those_of_other_views_stay() {
    let mut model = Model::new();
    for _ in 0..5 {
        model.apply(&Op::Publish { slice: 0 });
        model.now += TimeDelta::hours(1);
    }
    let keep = model.keep();
    let all: Vec<SnapshotId> = keep.snapshots.iter().map(|snapshot| snapshot.id).collect();
    let late = model.now + TimeDelta::days(30);
    assert_eq!(expendable([(&view(), &keep)], &RETENTION, model.now), []);
    assert_eq!(expendable([(&view(), &keep)], &RETENTION, late), all[..3]);
    // A snapshot is kept whole as long as one of its views needs it.
    let other = ViewKeep { snapshots: keep.snapshots[..2].to_vec(), ..ViewKeep::default() };
    let other_view: ViewId = "b@v1".parse().unwrap();
    assert_eq!(expendable([(&view(), &keep), (&other_view, &other)], &RETENTION, late), all[2..3]);
}

#[test]
fn every_version_says_why_it_is_needed() {
    let mut model = Model::new();
    model.apply(&Op::Publish { slice: 0 });
    model.apply(&Op::Pin { which: 0 });
    model.apply(&Op::Open);
    model.now += TimeDelta::hours(30);
    model.apply(&Op::Publish { slice: 1 });
    let needs = needed(&model.keep(), &model.log(), AGE, model.now);
    let run = *model.open.keys().next().unwrap();
    let pinned = model.snapshots[0].id;
    assert_eq!(needs[&1], BTreeSet::from([Need::Pinned(pinned), Need::Run(run), Need::Recent]));
    assert_eq!(needs[&2], BTreeSet::from([Need::Head, Need::Recorded, Need::Snapshot(model.snapshots[1].id)]));
    assert_eq!(needs.len(), 2, "the empty table is forgotten");
}
