//! What may go and what must stay: pure decisions over what was read.
//!
//! One rule carries everything: a file stays as long as a *needed* version of its table names it. Needed are the head,
//! what the registry has recorded, every snapshot that is not expired (pinned ones never are), what open runs are bound
//! to and open restores go back to, and whatever was the head a safety age ago (somebody may still be reading it). Beside that stay files of open runs,
//! files of pins by their own list, and everything younger than the safety age. The log is shortened to the newest
//! checkpoint from which every needed version can be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use tidegate_registry::care::{KeptSnapshot, ViewKeep};
use tidegate_registry::definitions::settings::Retention;
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::time::Instant;

use crate::lake::care::{LogEntry, LogListing, Object};

/// A checkpoint is written when a reader would replay this many entries after the last one.
pub(crate) const CHECKPOINT_EVERY: u64 = 20;

/// What is known of one view's table.
#[derive(Debug, Clone, Default)]
pub(crate) struct TableFacts {
    /// What the registry says.
    pub(crate) keep: ViewKeep,
    /// Runs that are open: their files are theirs.
    pub(crate) open_runs: BTreeSet<RunId>,
    /// The log.
    pub(crate) log: LogListing,
    /// The files that the oldest needed version names.
    pub(crate) base_files: BTreeMap<String, u64>,
    /// The entries after the oldest needed version, up to the head.
    pub(crate) entries: Vec<(u64, LogEntry)>,
    /// What lies below `data/`; listed before anything else was read.
    pub(crate) objects: Vec<Object>,
}

/// Why a version is needed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// It is what readers of the table get.
    Head,
    /// Runs read it, or it came after what runs read and is not recorded yet.
    Recorded,
    /// A snapshot that can be restored.
    Snapshot(SnapshotId),
    /// A pinned snapshot.
    Pinned(SnapshotId),
    /// An open run is bound to it.
    Run(RunId),
    /// It was the head within the safety age.
    Recent,
}

/// What shall become of one view's table.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TablePlan {
    /// Every needed version and why.
    pub(crate) needed: BTreeMap<u64, BTreeSet<Need>>,
    /// Versions at which to write a checkpoint, ascending.
    pub(crate) checkpoints: Vec<u64>,
    /// Objects of the log to delete, in this order.
    pub(crate) log: Vec<Object>,
    /// Data files to delete.
    pub(crate) files: Vec<Object>,
    /// Data files that stay, by reason.
    pub(crate) kept: KeptFiles,
}

/// Data files that stay, and why: each is counted once, under the first reason that holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct KeptFiles {
    /// The table's head names them.
    pub current: Size,
    /// An older version that is needed names them.
    pub older: Size,
    /// A pin lists them.
    pub pinned: Size,
    /// They belong to a run that is open.
    pub open_runs: Size,
    /// Nothing names them, and they are younger than the safety age.
    pub young: Size,
    /// They are not where a run writes: not ours to delete.
    pub foreign: Size,
}

/// A number of files and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    /// How many.
    pub files: u64,
    /// In bytes.
    pub bytes: u64,
}

impl Size {
    /// All of `objects`.
    pub(crate) fn of<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Self {
        let mut size = Self::default();
        objects.into_iter().for_each(|object| size.add(object));
        size
    }

    /// Adds all of `objects`.
    pub(crate) fn add_all(&mut self, objects: &[Object]) {
        objects.iter().for_each(|object| self.add(object));
    }

    fn add(&mut self, object: &Object) {
        self.files += 1;
        self.bytes += object.size;
    }
}

/// The snapshots of all views that retention lets go of at `now` (project time). Pins and live ones never are among them;
/// neither is one of the newest `snapshots_min` of any of its views.
pub(crate) fn expendable<'a>(
    views: impl IntoIterator<Item = (&'a ViewId, &'a ViewKeep)>,
    retention: &Retention,
    now: Instant,
) -> Vec<SnapshotId> {
    let mut old = BTreeSet::new();
    let mut kept = BTreeSet::new();
    for (_, keep) in views {
        let newest = keep.snapshots.len().saturating_sub(retention.snapshots_min as usize);
        for (position, snapshot) in keep.snapshots.iter().enumerate() {
            let stays = position >= newest || snapshot.live || snapshot.pin.is_some();
            if stays || !is_older(snapshot.created_at, retention.snapshots, now) {
                kept.insert(snapshot.id);
            } else {
                old.insert(snapshot.id);
            }
        }
    }
    old.difference(&kept).copied().collect()
}

fn is_older(at: Instant, than: Duration, now: Instant) -> bool {
    chrono::Duration::from_std(than).is_ok_and(|than| at + than <= now)
}

/// The versions of a table that somebody may still ask for, and why. `age` is the safety age, `now` the store's clock.
pub(crate) fn needed(keep: &ViewKeep, log: &LogListing, age: Duration, now: Instant) -> BTreeMap<u64, BTreeSet<Need>> {
    let mut needed: BTreeMap<u64, BTreeSet<Need>> = BTreeMap::new();
    let mut need = |version: u64, why: Need| {
        needed.entry(version).or_default().insert(why);
    };
    let Some(head) = log.head() else { return needed };
    need(head, Need::Head);
    for version in keep.delta_version..=head {
        need(version, Need::Recorded);
    }
    for snapshot in &keep.snapshots {
        need(snapshot.delta_version, why_kept(snapshot));
    }
    for (run, version) in &keep.pinned_versions {
        need(*version, Need::Run(*run));
    }
    for (restore, version) in &keep.targets {
        need(*version, Need::Run(*restore));
    }
    // A version was the head until the next entry was written.
    for (version, entry) in &log.entries {
        if !is_older(entry.modified, age, now) && *version > 0 && log.entries.contains_key(&(version - 1)) {
            need(version - 1, Need::Recent);
        }
    }
    needed
}

fn why_kept(snapshot: &KeptSnapshot) -> Need {
    match snapshot.pin {
        Some(_) => Need::Pinned(snapshot.id),
        None => Need::Snapshot(snapshot.id),
    }
}

/// What may go. `age` is the safety age, `now` the store's clock.
pub(crate) fn plan(view: &ViewId, facts: &TableFacts, age: Duration, now: Instant) -> TablePlan {
    let needed = needed(&facts.keep, &facts.log, age, now);
    let mut plan = TablePlan { needed, ..TablePlan::default() };
    let (Some(head), Some(oldest)) = (facts.log.head(), plan.needed.keys().next().copied()) else { return plan };
    let names = named(facts, &plan.needed, head);
    let pinned = pinned_files(view, &facts.keep);
    for object in &facts.objects {
        let kept = &mut plan.kept;
        let place = match names.get(object.path.as_str()) {
            Some(true) => &mut kept.current,
            Some(false) => &mut kept.older,
            None if pinned.contains(object.path.as_str()) => &mut kept.pinned,
            None => match run_of(&object.path) {
                None => &mut kept.foreign,
                Some(run) if facts.open_runs.contains(&run) => &mut kept.open_runs,
                Some(_) if !is_older(object.modified, age, now) => &mut kept.young,
                Some(_) => {
                    plan.files.push(object.clone());
                    continue;
                }
            },
        };
        place.add(object);
    }
    plan_log(facts, oldest, head, (age, now), &mut plan);
    plan
}

/// Which files needed versions name; true for those that the head names.
fn named<'a>(facts: &'a TableFacts, needed: &BTreeMap<u64, BTreeSet<Need>>, head: u64) -> BTreeMap<&'a str, bool> {
    let oldest = needed.keys().next().copied().unwrap_or(head);
    // When each file that is named now was first named.
    let mut since: BTreeMap<&str, u64> = facts.base_files.keys().map(|path| (path.as_str(), oldest)).collect();
    let mut names: BTreeMap<&str, bool> = BTreeMap::new();
    for (version, entry) in &facts.entries {
        for path in &entry.removes {
            // A path that is removed and added by one entry stays named.
            if let Some(first) = since.remove(path.as_str())
                && needed.range(first..*version).next().is_some()
            {
                names.insert(path, false);
            }
        }
        for path in entry.adds.keys() {
            since.entry(path).or_insert(*version);
        }
    }
    names.extend(since.into_keys().map(|path| (path, true)));
    names
}

fn pinned_files<'a>(view: &ViewId, keep: &'a ViewKeep) -> BTreeSet<&'a str> {
    let pins = keep.snapshots.iter().filter_map(|snapshot| snapshot.pin.as_ref());
    pins.filter_map(|pin| pin.files.get(view)).flatten().map(|file| file.path.as_str()).collect()
}

/// The run whose file this is, by its path.
pub(crate) fn run_of(path: &str) -> Option<RunId> {
    path.strip_prefix("data/")?.split('/').next()?.parse().ok()
}

/// Where checkpoints are missing, and what of the log is older than everything that is needed.
fn plan_log(facts: &TableFacts, oldest: u64, head: u64, (age, now): (Duration, Instant), plan: &mut TablePlan) {
    let log = &facts.log;
    let base = log.checkpoints.range(..=oldest).next_back().copied();
    let first = log.entries.keys().next().copied().unwrap_or(head);
    // One at the oldest version that is needed lets everything before it go.
    if oldest.saturating_sub(base.unwrap_or(first)) >= CHECKPOINT_EVERY {
        plan.checkpoints.push(oldest);
    }
    let newest = log.checkpoints.last().copied().max(plan.checkpoints.last().copied());
    if head.saturating_sub(newest.unwrap_or(first)) >= CHECKPOINT_EVERY {
        plan.checkpoints.push(head);
    }
    // Only checkpoints that exist: those of this plan serve the next one.
    let Some(base) = base else { return };
    let is_old = |object: &&Object| is_older(object.modified, age, now);
    let beside = log.beside.iter().filter(|(version, _)| *version < base).map(|(_, object)| object);
    let entries = log.entries.range(..base).map(|(_, object)| object);
    // Checkpoints first, and entries from the oldest on: whenever this stops, what is left is a whole log.
    plan.log.extend(beside.filter(is_old).cloned());
    plan.log.extend(entries.take_while(is_old).cloned());
}
