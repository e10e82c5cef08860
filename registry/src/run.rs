//! Runs and what becomes of them: the rows in which scheduler and worker meet.
//!
//! A run is one transaction over one interval of one DAG. Its tasks are, in order: `pin` (fix every source version),
//! one task per view (stage and check), `publish` (intent, commits, online, cut over, record). Workers claim tasks by
//! lease; what a task leaves for the next one is stored with it, so any worker can go on.

use std::fmt;
use std::str::FromStr;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::ids::{BackfillId, DagName, LeaseToken, RunId, SnapshotId, ViewId};
use crate::model::Severity;
use crate::profile::{ColumnProfile, ViewProfile};
use crate::time::{Instant, Interval};

/// Why a run exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The schedule.
    Tick,
    /// A backfill.
    Backfill(BackfillId),
    /// A person, `tidegate run`; numbered, so that one can be asked for again.
    Manual(u32),
    /// A person who lets rows through that a run had set aside.
    Readmit {
        /// That run.
        run: RunId,
        /// The view whose rows they are.
        view: ViewId,
    },
    /// A restore: its own run, and those that take the place of runs which it stopped.
    Restore(RunId),
    /// A person who lifted holds at that time (named by an id of its own).
    Resume(RunId),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.pad("tick"),
            Self::Backfill(id) => f.pad(&format!("backfill {id}")),
            Self::Manual(number) => f.pad(&format!("manual {number}")),
            Self::Readmit { run, view } => f.pad(&format!("readmit {run} {view}")),
            Self::Restore(id) => f.pad(&format!("restore {id}")),
            Self::Resume(id) => f.pad(&format!("resume {id}")),
        }
    }
}

impl FromStr for Cause {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is not a cause");
        match text.split_once(' ') {
            None if text == "tick" => Ok(Self::Tick),
            Some(("backfill", id)) => id.parse().map(Self::Backfill).map_err(|_| unknown()),
            Some(("restore", id)) => id.parse().map(Self::Restore).map_err(|_| unknown()),
            Some(("resume", id)) => id.parse().map(Self::Resume).map_err(|_| unknown()),
            Some(("manual", number)) => number.parse().map(Self::Manual).map_err(|_| unknown()),
            Some(("readmit", what)) => {
                let (run, view) = what.split_once(' ').ok_or_else(unknown)?;
                let run = run.parse().map_err(|_| unknown())?;
                Ok(Self::Readmit { run, view: view.parse().map_err(|_| unknown())? })
            }
            _ => Err(unknown()),
        }
    }
}

impl Serialize for Cause {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

macro_rules! states {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+
        }

        impl $type {
            /// Every state.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word that is stored and shown.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is not one of {}", [$($text),+].join(", "))),
                }
            }
        }
    };
}

states!(
    /// Where a run stands. `waiting → queued → running → (publishing) → an end`.
    RunState {
        /// Planned; not all that it reads is ready, or its turn has not come.
        Waiting = "waiting",
        /// Its tasks may be claimed.
        Queued = "queued",
        /// A task has been claimed.
        Running = "running",
        /// The intent is taken: from here it only rolls forward.
        Publishing = "publishing",
        /// Recorded: everything is visible.
        Succeeded = "succeeded",
        /// A check stopped it; nothing is visible.
        Blocked = "blocked",
        /// A task failed more often than it may be retried; nothing is visible.
        Failed = "failed",
        /// A person stopped it before its intent.
        Cancelled = "cancelled",
        /// A later publish number overtook it.
        Superseded = "superseded",
        /// Everything passed, and a hold keeps its views from being published.
        Held = "held",
    }
);

impl RunState {
    /// Whether something may still happen to it.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Queued | Self::Running | Self::Publishing)
    }
}

states!(
    /// Where a task stands.
    TaskState {
        /// Not yet claimed, or to be tried again.
        Queued = "queued",
        /// Claimed.
        Running = "running",
        /// Done; its output is stored.
        Succeeded = "succeeded",
        /// A check of severity `block` failed.
        Blocked = "blocked",
        /// Tried as often as it may be.
        Failed = "failed",
        /// The run ended without it.
        Skipped = "skipped",
    }
);

/// What a task does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskKind {
    /// Fix the version of everything that the run reads.
    Pin,
    /// Stage and check one view.
    View(ViewId),
    /// Intent, commits, online, cut over, record.
    Publish,
    /// Of a restore, its only one: everything after the intent.
    Restore,
}

impl TaskKind {
    /// Whether it makes something visible.
    pub fn publishes(&self) -> bool {
        matches!(self, Self::Publish | Self::Restore)
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin => f.pad("pin"),
            Self::View(view) => view.fmt(f),
            Self::Publish => f.pad("publish"),
            Self::Restore => f.pad("restore"),
        }
    }
}

impl FromStr for TaskKind {
    type Err = crate::ids::InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "pin" => Self::Pin,
            "publish" => Self::Publish,
            "restore" => Self::Restore,
            view => Self::View(view.parse()?),
        })
    }
}

/// A run that shall exist. (DAG, interval, views, cause) is unique: creating it twice yields one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    /// The DAG.
    pub dag: DagName,
    /// The interval, of the DAG's stored grid.
    pub interval: Interval,
    /// The views to compute, in dependency order; the run's view tasks are these.
    pub views: Vec<ViewId>,
    /// Why.
    pub cause: Cause,
    /// The definitions that it uses to its end: a revision of the registry (see [`crate::store::Store::apply`]).
    pub definitions: i64,
    /// Attempts that each task has: 1 + retries.
    pub attempts_max: u32,
    /// Who goes first when there are not enough workers, −100 to 100: each point is worth a minute of waiting, so nothing
    /// waits for ever.
    pub priority: i32,
}

/// A run as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The DAG.
    pub dag: DagName,
    /// The interval.
    pub interval: Interval,
    /// The views, in dependency order.
    pub views: Vec<ViewId>,
    /// Why.
    pub cause: Cause,
    /// The definitions' revision.
    pub definitions: i64,
    /// Numbers the runs of one (DAG, interval) from 0.
    pub revision: u32,
    /// Where it stands.
    pub state: RunState,
    /// Why it is in this state, in a sentence (what it waits for, which check stopped it, who cancelled it).
    pub reason: Option<String>,
    /// When it was planned, in project time.
    pub created_at: Instant,
    /// When its first task was claimed, in project time.
    pub started_at: Option<Instant>,
    /// When it ended, in project time.
    pub finished_at: Option<Instant>,
    /// How often it was thrown back to step 1 because a pinned file had changed.
    pub restarts: u32,
    /// The decision of a person that it carries out, if there is one.
    pub overriding: Option<Override>,
}

impl Run {
    /// Whether it computes nothing and takes views back instead.
    pub fn is_restore(&self) -> bool {
        matches!(self.cause, Cause::Restore(id) if id == self.id)
    }
}

/// A person's decision over a run: that it publishes although checks fail, or (with no checks, and [`Cause::Readmit`])
/// that rows are let through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The run that was looked at.
    pub of: RunId,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in project time.
    pub at: Instant,
    /// The checks that may fail, by view. All others still block.
    pub checks: IndexMap<ViewId, Vec<String>>,
    /// The sources as that run read them: the decision is about nothing else. `None` when they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<IndexMap<String, SourcePin>>,
}

impl Override {
    /// Whether `check` of `view` may fail.
    pub fn covers(&self, view: &ViewId, check: &str) -> bool {
        self.checks.get(view).is_some_and(|checks| checks.iter().any(|name| name == check))
    }
}

/// A task as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What it does.
    pub kind: TaskKind,
    /// Where it stands.
    pub state: TaskState,
    /// Attempts begun.
    pub attempts: u32,
    /// Rows staged or published.
    pub rows: Option<u64>,
    /// When the last attempt was claimed, in project time.
    pub started_at: Option<Instant>,
    /// When the last attempt ended, in project time.
    pub finished_at: Option<Instant>,
    /// Why the last attempt failed: the chain of causes on one line.
    pub error: Option<String>,
    /// What it left for the tasks after it (JSON; see [`TaskOutput`]).
    pub output: Option<TaskOutput>,
}

/// What a task leaves behind for those after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskOutput {
    /// Of `pin`.
    Pins(Pins),
    /// Of a view's task.
    Staged(StagedView),
    /// Of `publish`.
    Published(SnapshotId),
    /// Of `publish`, when a check that compares with history stopped it: all verdicts per view, none pending. Of `pin`, when a
    /// check of a source stopped it: the verdicts on the sources that each view reads.
    Judged(IndexMap<ViewId, Vec<CheckResult>>),
}

/// The versions of everything that a run reads.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Pins {
    /// Sources by name.
    pub sources: IndexMap<String, SourcePin>,
    /// Views that are read or written, by id.
    pub views: IndexMap<ViewId, ViewPin>,
    /// What was seen of the sources that have checks, by name.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub seen: IndexMap<String, SourceSeen>,
}

/// What a run saw of a source as it was pinned. Later runs compare with it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SourceSeen {
    /// Data files.
    pub files: u64,
    /// Bytes of the data files.
    pub bytes: u64,
    /// When the newest file was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<Instant>,
    /// Columns with their types as messages call them.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub columns: IndexMap<String, String>,
    /// Rows of the interval (of a source without event time all rows), when a check counted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The verdicts of its checks; none is pending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
}

/// One source, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourcePin {
    /// A Delta table at a version.
    Delta {
        /// The version.
        version: u64,
    },
    /// A list of files.
    Files(Vec<PinnedFile>),
}

/// One file as it was when the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedFile {
    /// Full URL.
    pub url: String,
    /// Size in bytes.
    pub size: u64,
    /// Entity tag, where the store has one.
    pub etag: Option<String>,
    /// Last modification, in microseconds since 1970 (local files have no better tag).
    pub modified_micros: i64,
}

/// One view, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewPin {
    /// The Delta version last recorded; never the log's head.
    pub delta_version: u64,
    /// The newest published interval with end ≤ the run's interval end, at pin time; `None` when there is none.
    pub state: Option<Interval>,
}

/// What a view's task staged and found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagedView {
    /// Delta `add` actions of the staged files, exactly as they will be committed.
    pub adds: Vec<serde_json::Value>,
    /// Rows staged.
    pub rows: u64,
    /// Bytes staged.
    pub bytes: u64,
    /// Sum of the rows' hashes: 32 hexadecimal digits.
    pub digest: String,
    /// Verdicts; those that compare with history are still `pending` and are judged with the intent.
    pub checks: Vec<CheckResult>,
    /// Per-column statistics, by column name.
    pub profile: IndexMap<String, ColumnProfile>,
    /// What was set aside; `None` when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<SetAside>,
}

impl StagedView {
    /// What is known of the rows as a whole.
    pub fn summary(&self) -> ViewProfile {
        let events = self.profile.get("event_timestamp");
        let instant = |text: Option<&String>| text.and_then(|text| text.parse().ok());
        let unique =
            |result: &&CheckResult| result.check.starts_with("unique(") && result.check.ends_with(OF_EVERY_VIEW);
        ViewProfile {
            rows: self.rows,
            bytes: self.bytes,
            duplicate_keys: self.checks.iter().find(unique).map_or(0, |result| result.failing_rows),
            first_event: instant(events.and_then(|events| events.min.as_ref())),
            last_event: instant(events.and_then(|events| events.max.as_ref())),
        }
    }
}

/// Rows that were computed and are kept out of a view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetAside {
    /// Delta `add` actions of the view's quarantine table, exactly as they will be committed.
    pub adds: Vec<serde_json::Value>,
    /// How many rows.
    pub rows: u64,
}

states!(
    /// A check's verdict.
    Verdict {
        /// It holds.
        Passed = "passed",
        /// It holds for the rows that are staged: those that break it, few enough, were set aside.
        Quarantined = "quarantined",
        /// It does not.
        Failed = "failed",
        /// It could not be judged (no history yet), with the reason.
        Skipped = "skipped",
        /// It could not be computed; counts as failed.
        Error = "error",
        /// It will be judged with the intent.
        Pending = "pending",
    }
);

/// A check's verdict on one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckResult {
    /// The check's name.
    pub check: String,
    /// What its failure means.
    pub severity: Severity,
    /// The verdict.
    pub verdict: Verdict,
    /// What was found, in a sentence: `3 of 16 rows have a null in flights_7d`.
    pub message: String,
    /// Rows that broke the rule.
    #[serde(default)]
    pub failing_rows: u64,
    /// Up to five of them, as JSON objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<serde_json::Value>,
    /// It does not hold, and a person has let the run through (see [`Override`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overridden: bool,
}

/// How the names end of checks that hold for every view without being written.
pub const OF_EVERY_VIEW: &str = " of every view";

impl CheckResult {
    /// Whether it stops the run.
    pub fn blocks(&self) -> bool {
        self.does_not_hold() && !self.overridden
    }

    /// Whether it would stop the run if nobody had let it through.
    pub fn does_not_hold(&self) -> bool {
        self.severity == Severity::Block && matches!(self.verdict, Verdict::Failed | Verdict::Error)
    }

    /// Whether it holds for every view without being written: then nobody can let a run through that breaks it.
    pub fn is_built_in(&self) -> bool {
        self.check.ends_with(OF_EVERY_VIEW)
    }
}

/// A claimed task: everything that the worker needs, and the token that proves the claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Proves the claim.
    pub token: LeaseToken,
    /// The run.
    pub run: Run,
    /// The task.
    pub kind: TaskKind,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How many there may be.
    pub attempts_max: u32,
    /// Outputs of the tasks that came before it (`pin`, then views in dependency order).
    pub inputs: IndexMap<String, TaskOutput>,
}

/// What was decided at the point of no return: after it, recovery rolls forward with the same numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The run.
    pub run: RunId,
    /// Per view what will be committed and published.
    pub views: IndexMap<ViewId, ViewIntent>,
}

/// One view of an intent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewIntent {
    /// The fence: the version of the Delta `txn` mark, and the number of the online generation.
    pub publish_number: u64,
    /// Whether it goes online: not when a later interval is already recorded.
    pub online: bool,
    /// All verdicts, those against history included.
    pub checks: Vec<CheckResult>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_doubled_keys_and_tells_when_events_were() {
        let result = |check: &str, failing_rows| CheckResult {
            check: check.to_owned(),
            severity: Severity::Block,
            verdict: Verdict::Failed,
            message: String::new(),
            failing_rows,
            samples: Vec::new(),
            overridden: false,
        };
        let event = |text: &str| Some(text.to_owned());
        let events = ColumnProfile {
            min: event("2013-01-08T07:15:00Z"),
            max: event("2013-01-09T07:15:00.5Z"),
            ..ColumnProfile::default()
        };
        let staged = StagedView {
            adds: Vec::new(),
            rows: 9,
            bytes: 400,
            digest: String::new(),
            checks: vec![result("unique(tailnum)", 5), result("unique(carrier) of every view", 2)],
            profile: IndexMap::from([("event_timestamp".to_owned(), events)]),
            quarantine: None,
        };
        let expected = ViewProfile {
            rows: 9,
            bytes: 400,
            duplicate_keys: 2,
            first_event: "2013-01-08T07:15:00Z".parse().ok(),
            last_event: "2013-01-09T07:15:00.5Z".parse().ok(),
        };
        assert_eq!(staged.summary(), expected);
        assert!(expected.first_event < expected.last_event);
    }
}
