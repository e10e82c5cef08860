//! Taking views back to what they were: the vocabulary of restores and holds, and what the registry must be able to do for
//! them.
//!
//! A restore is a run: it is decided as a whole ([`RestorePlan`]), takes an intent for every view it touches, and from
//! there on only rolls forward. What a view was at any time follows from the order in which snapshots were recorded
//! ([`Restoring::as_of`]); so a restore is itself a snapshot, and can be undone by another one.
//!
//! A [`Hold`] keeps what was taken back from being published again: runs leave the view and all that is computed from it
//! out until a person resumes it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::ids::{DagName, LeaseToken, RunId, SnapshotId, ViewId};
use crate::run::NewRun;
use crate::store::{LedgerEntry, Result};
use crate::time::{Instant, Interval};

pub mod plan;
pub mod policy;

/// What a view was right after a snapshot was recorded (of any view: snapshots are numbered across all of them).
#[derive(Debug, Clone, PartialEq)]
pub struct AsOf {
    /// The newest snapshot of the view up to there, restores included; `None` when nothing had been recorded of it.
    pub snapshot: Option<SnapshotId>,
    /// Whether retention let go of that snapshot: then nothing can bring it back.
    pub expired: bool,
    /// The version of its table.
    pub delta_version: Option<u64>,
    /// The version of its quarantine table; `None` when nothing had ever been set aside.
    pub quarantine_version: Option<u64>,
    /// What was live online; `None` when nothing was.
    pub online: Option<OnlineAsOf>,
    /// What was published, newest interval first.
    pub ledger: Vec<LedgerEntry>,
}

/// What was live online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlineAsOf {
    /// The generation.
    pub generation: u64,
    /// The publish number under which its rows were written last by then.
    pub written: u64,
    /// The snapshot whose publication that was.
    pub snapshot: SnapshotId,
}

/// One published interval, as a restore brings it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The interval.
    pub interval: Interval,
    /// The run that had published it.
    pub run: RunId,
    /// The snapshot that it left.
    pub snapshot: SnapshotId,
    /// Its rows.
    pub rows: u64,
    /// Their digest.
    pub digest: String,
}

impl From<LedgerEntry> for Slice {
    fn from(entry: LedgerEntry) -> Self {
        let LedgerEntry { interval, run, snapshot, rows, digest } = entry;
        Self { interval, run, snapshot, rows, digest }
    }
}

/// What a table shall hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableTarget {
    /// All that this version holds, but for `slices`; `None` for nothing.
    pub version: Option<u64>,
    /// Intervals that are taken from other versions; `None` for no rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<(Interval, Option<u64>)>,
}

impl TableTarget {
    /// The versions whose files it takes.
    pub fn versions(&self) -> impl Iterator<Item = u64> {
        self.version.into_iter().chain(self.slices.iter().filter_map(|(_, version)| *version))
    }
}

/// How a view gets its old content back online.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnlineTarget {
    /// A generation that held the content when it was superseded, and was not changed since: when the store still has it,
    /// it is made live again as it is.
    pub generation: Option<u64>,
    /// How many entities that generation held, where it is known.
    pub rows: Option<u64>,
    /// The tag under which the content goes live: of the snapshot that it comes from.
    pub tag: String,
}

/// What becomes of one view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewRestore {
    /// The version of its table that the registry has recorded.
    pub from_version: u64,
    /// What its table shall hold.
    pub table: TableTarget,
    /// What its quarantine table shall hold; `None` when it has none.
    pub quarantine: Option<TableTarget>,
    /// How it goes online; `None` when it does not.
    pub online: Option<OnlineTarget>,
    /// Intervals that leave the ledger, newest first; those in `comes_back` may be among them.
    pub leaves: Vec<Slice>,
    /// Intervals as they are in the ledger afterwards, where that is not as now; newest first.
    pub comes_back: Vec<Slice>,
    /// The newest published interval afterwards.
    pub newest: Option<Slice>,
    /// The fingerprint of the definition that computed it.
    pub fingerprint: String,
    /// Rows and digest of nothing but this view's unfinished publication change: another view of its run is restored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_unfinished: bool,
}

impl ViewRestore {
    /// Whether nothing of what is recorded changes.
    pub fn is_unchanged(&self) -> bool {
        self.leaves.is_empty() && self.comes_back.is_empty()
    }
}

/// A restore as it was decided: what executes it, today or after a crash, needs nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// As it was asked for: `--to …`.
    pub asked: String,
    /// Per view, parents first.
    pub views: IndexMap<ViewId, ViewRestore>,
    /// Views from which publishing is held afterwards; all that is computed from them is held with them.
    pub holds: Vec<ViewId>,
    /// How.
    pub hold_policy: HoldPolicy,
}

/// What becomes of runs while a view is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldPolicy {
    /// Runs leave the view and its descendants out.
    #[default]
    SkipRuns,
    /// They are computed and checked in runs of their own, which end as `held`.
    StageOnly,
}

impl HoldPolicy {
    /// The word that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SkipRuns => "skip_runs",
            Self::StageOnly => "stage_only",
        }
    }
}

impl std::fmt::Display for HoldPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for HoldPolicy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "skip_runs" => Ok(Self::SkipRuns),
            "stage_only" => Ok(Self::StageOnly),
            _ => Err(format!("`{text}` is neither `skip_runs` nor `stage_only`")),
        }
    }
}

/// A stop on publishing a view and its descendants. It never lapses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// The view.
    pub view: ViewId,
    /// What becomes of runs meanwhile.
    pub policy: HoldPolicy,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Since when, in project time.
    pub placed_at: Instant,
    /// The restore that placed it; `None` for one that a person placed by itself.
    pub restore: Option<RunId>,
    /// The definition that was in force when it was placed: as long as it still is, what it did can happen again.
    pub fingerprint: Option<String>,
}

/// All holds, as of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    /// Grows with every hold that is placed or lifted: decisions that rest on holds are compared with it.
    pub revision: u64,
    /// Those in force, oldest first.
    pub holds: Vec<Hold>,
}

impl Holds {
    /// What is held, descendants included, and how: `stage_only` only where every hold says so.
    pub fn of(&self, project: &crate::model::Project) -> IndexMap<ViewId, HoldPolicy> {
        let mut held: IndexMap<ViewId, HoldPolicy> = IndexMap::new();
        for hold in &self.holds {
            let root = std::slice::from_ref(&hold.view);
            for view in root.iter().chain(project.descendants_of(root)) {
                let policy = held.entry(view.clone()).or_insert(hold.policy);
                if hold.policy == HoldPolicy::SkipRuns {
                    *policy = HoldPolicy::SkipRuns;
                }
            }
        }
        held
    }

    /// `dag` as it is planned: without the views that are held, and beside it those that are computed all the same.
    pub fn apart(&self, project: &crate::model::Project, dag: &crate::model::Dag) -> (crate::model::Dag, Vec<ViewId>) {
        let held = if self.holds.is_empty() { IndexMap::new() } else { self.of(project) };
        let (aside, views): (Vec<_>, Vec<_>) = dag.views.iter().cloned().partition(|view| held.contains_key(view));
        let staged = aside.into_iter().filter(|view| held.get(view) == Some(&HoldPolicy::StageOnly)).collect();
        (crate::model::Dag { views, ..dag.clone() }, staged)
    }

    /// The hold on `view` or on one of its ancestors.
    pub fn on<'a>(&'a self, project: &crate::model::Project, view: &ViewId) -> Option<&'a Hold> {
        self.holds
            .iter()
            .find(|hold| hold.view == *view || project.descendants_of(std::slice::from_ref(&hold.view)).contains(&view))
    }
}

/// What it takes to begin a restore.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The run that it will be; generated by the caller, so that beginning twice is harmless.
    pub id: RunId,
    /// The DAG that it is listed under.
    pub dag: DagName,
    /// The interval that it is listed under.
    pub interval: Interval,
    /// The revision of the definitions by which it was planned.
    pub definitions: i64,
    /// What shall become of which view.
    pub plan: RestorePlan,
    /// Per view of the plan the number of records that it rests on ([`crate::store::ViewState::records`]).
    pub records: IndexMap<ViewId, u64>,
    /// Runs (restores, too) that have taken their intent and not been recorded: all their views are in the plan.
    pub supersedes: BTreeSet<RunId>,
    /// Open runs without an intent that write or read what is restored, each with the run that takes its place for the views
    /// that are not held.
    pub stops: Vec<(RunId, Option<NewRun>)>,
    /// The views that are restored and all that is computed from them: runs of these are in `stops`.
    pub affected: BTreeSet<ViewId>,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in project time.
    pub now: Instant,
}

/// What executing a restore has led to, per view.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoredView {
    /// The fence that it was committed with.
    pub publish_number: u64,
    /// The version of its table.
    pub delta_version: u64,
    /// The version of its quarantine table, where that was written.
    pub quarantine_version: Option<u64>,
    /// The generation now live.
    pub online_generation: Option<u64>,
    /// Whether that generation was made live as it was, and not written.
    pub flipped: bool,
}

/// What [`Restoring::restore_record`] records.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoreRecord {
    /// Per view of the plan.
    pub views: IndexMap<ViewId, RestoredView>,
    /// Who or what acted, for the audit trail.
    pub actor: String,
}

/// What was found after a restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Whether everything was as it should be.
    pub passed: bool,
    /// What was compared, in sentences; what differs comes first.
    pub findings: Vec<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How long committing the tables took, in milliseconds. Of the last attempt, where one of the restore's processes died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_ms: Option<u64>,
    /// How long bringing the content online took, up to and with the one step in which all views change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online_ms: Option<u64>,
}

/// A restore, under way or done.
#[derive(Debug, Clone, PartialEq)]
pub struct Restore {
    /// Its run, whose id is also that of the snapshot it leaves.
    pub id: RunId,
    /// What was decided.
    pub plan: RestorePlan,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When it was decided, in project time.
    pub begun_at: Instant,
    /// When it was recorded, in project time; `None` while it is under way.
    pub recorded_at: Option<Instant>,
    /// How long that took, in milliseconds of the database's clock.
    pub took_ms: Option<u64>,
    /// How long it has been under way, in milliseconds of the database's clock; `None` when its run has ended.
    pub under_way_ms: Option<u64>,
    /// What was found afterwards.
    pub validation: Option<Validation>,
}

/// See [`Restoring::resume`].
#[derive(Debug, Clone)]
pub struct ResumeRequest {
    /// Views whose holds are lifted.
    pub views: Vec<ViewId>,
    /// [`Holds::revision`] that this was decided by.
    pub revision: u64,
    /// Runs to create: what was missed meanwhile.
    pub runs: Vec<NewRun>,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in project time.
    pub now: Instant,
}

/// What a person thinks of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadMark {
    /// Since when, in project time.
    pub marked_at: Instant,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// The part of the registry that restores need; beside [`crate::store::Store`], whose semantics hold here too.
#[async_trait]
pub trait Restoring {
    /// The place of a snapshot in the order of recording.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`].
    async fn snapshot_number(&self, id: SnapshotId) -> Result<u64>;

    /// The number of the last snapshot that was recorded at or before `at`, in project time; 0 when there was none.
    async fn number_at(&self, at: Instant) -> Result<u64>;

    /// What `view` was when the snapshot with that number had just been recorded.
    async fn as_of(&self, view: &ViewId, number: u64) -> Result<AsOf>;

    /// The last publish number under which rows of an online generation were written (not: it was made live as it was).
    async fn generation_written(&self, view: &ViewId, generation: u64) -> Result<Option<u64>>;

    /// The numbers of snapshots of any of `views` that can be gone back to, newest first: runs (no restores) recorded before
    /// what those views are now, of which nothing was restored away, marked bad, or expired.
    async fn good_numbers(&self, views: &[ViewId], limit: u32) -> Result<Vec<(u64, SnapshotId)>>;

    /// Decides a restore: takes its intent for every view of the plan, ends the runs that it stops, and places its holds.
    /// Its one task can be claimed from then on. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Conflict`] when something that the plan rests on has moved: plan again.
    async fn restore_begin(&self, request: RestoreRequest) -> Result<()>;

    /// One restore.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`].
    async fn restore_of(&self, id: RunId) -> Result<Restore>;

    /// Restores, newest first; at most `limit` (0: all).
    async fn restores(&self, limit: u32) -> Result<Vec<Restore>>;

    /// Records a restore as done: snapshot, ledger, view states, audit event; ends its run. Repeating it changes nothing.
    async fn restore_record(&self, token: LeaseToken, record: RestoreRecord, now: Instant) -> Result<()>;

    /// What a recorded run read; `None` of a restore, and when it is not known.
    async fn reads_of(&self, run: RunId) -> Result<Option<crate::run::Pins>>;

    /// Notes what was found after a restore. What was noted first stands: two that compare at the same time see the same.
    async fn restore_validated(&self, id: RunId, validation: &Validation, now: Instant) -> Result<()>;

    /// The holds in force.
    async fn holds(&self) -> Result<Holds>;

    /// Holds views without restoring anything; those that are held already keep their hold. Open runs are left alone: none
    /// of a held view gets an intent.
    async fn hold(&self, views: &[ViewId], policy: HoldPolicy, actor: &str, reason: &str, now: Instant) -> Result<()>;

    /// Lifts holds and creates runs for what was missed; returns the ids of these.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Conflict`] when holds have changed since. [`crate::store::StoreError::Refused`] when one
    /// of the views is not held itself, or its restore is still under way.
    async fn resume(&self, request: ResumeRequest) -> Result<Vec<RunId>>;

    /// Marks a snapshot as bad, or (`None`) as good again.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`].
    async fn snapshot_mark(&self, id: SnapshotId, bad: Option<BadMark>, actor: &str, now: Instant) -> Result<()>;

    /// The snapshots that are marked as bad.
    async fn bad_marks(&self) -> Result<IndexMap<SnapshotId, BadMark>>;
}
