//! What is published: what an intent rests on, what is recorded, and what is known of it afterwards.

use indexmap::IndexMap;

use crate::ids::{DagName, RunId, SnapshotId, ViewId};
use crate::notice::Addressed;
use crate::profile::{ColumnProfile, ViewProfile};
use crate::run::{CheckResult, Override, Pins, Verdict};
use crate::time::{Instant, Interval};

/// What an intent rests on, per view: compared inside the transaction that takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct IntentRequest {
    /// Per view: the record number that history checks were judged against, and all verdicts.
    pub views: IndexMap<ViewId, ViewIntentRequest>,
    /// [`crate::restore::Holds::revision`] when none of the views was found held: a different number now is a
    /// [`super::StoreError::Conflict`].
    pub holds: u64,
}

/// One view of an [`IntentRequest`].
#[derive(Debug, Clone, PartialEq)]
pub struct ViewIntentRequest {
    /// [`ViewState::records`] when history was judged: a different number now is a [`super::StoreError::Conflict`].
    pub records: u64,
    /// Verdicts with nothing pending.
    pub checks: Vec<CheckResult>,
}

/// What the registry knows of a view's table and online content.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ViewState {
    /// The highest publish number given out; 0 before the first.
    pub publish_number: u64,
    /// The run that holds the view from intent to record.
    pub publishing: Option<RunId>,
    /// How often something was recorded.
    pub records: u64,
    /// The Delta version last recorded (the empty table's, after apply).
    pub delta_version: u64,
    /// The generation that is live online.
    pub online_generation: Option<u64>,
    /// The newest published interval.
    pub newest: Option<Interval>,
    /// The Delta version of the view's quarantine table last recorded; `None` while nothing was ever set aside.
    pub quarantine_version: Option<u64>,
}

/// One published interval of a view.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerEntry {
    /// The interval.
    pub interval: Interval,
    /// The run that published it last.
    pub run: RunId,
    /// The snapshot that it left.
    pub snapshot: SnapshotId,
    /// Rows of the slice.
    pub rows: u64,
    /// Digest of the slice.
    pub digest: String,
}

/// What a recorded run left behind; written with the ledger, the profile and the audit event in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The snapshot's id, chosen by the caller so that repeating the record is harmless.
    pub snapshot: SnapshotId,
    /// Per view what is now true.
    pub views: IndexMap<ViewId, ViewRecord>,
    /// What the run read.
    pub manifest: Pins,
    /// Who or what acted, for the audit trail.
    pub actor: String,
    /// Who is told that it was published: written with it.
    pub notices: Vec<Addressed>,
}

/// One view of a [`Record`].
#[derive(Debug, Clone, PartialEq)]
pub struct ViewRecord {
    /// Definition fingerprint.
    pub fingerprint: String,
    /// The fence that it was committed with.
    pub publish_number: u64,
    /// The Delta version that holds it.
    pub delta_version: u64,
    /// Rows of the slice.
    pub rows: u64,
    /// Digest of the slice.
    pub digest: String,
    /// The generation now live, when the run went online.
    pub online_generation: Option<u64>,
    /// Per-column statistics.
    pub profile: serde_json::Value,
    /// What is known of the rows as a whole.
    pub summary: ViewProfile,
    /// Rows that were set aside.
    pub quarantined: u64,
    /// The Delta version of the quarantine table that holds them; `None` when that table was not written.
    pub quarantine_version: Option<u64>,
}

/// What was found out about the rows of one view and interval when they were recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// The interval.
    pub interval: Interval,
    /// The snapshot that holds it.
    pub snapshot: SnapshotId,
    /// How many rows.
    pub rows: u64,
    /// Per-column statistics; empty when a registry that was rebuilt from the lake does not know them.
    pub profile: IndexMap<String, ColumnProfile>,
    /// What is known of the rows as a whole; `None` when it was recorded by an older version, and in a registry that was
    /// rebuilt from the lake.
    pub summary: Option<ViewProfile>,
}

/// A snapshot as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The DAG.
    pub dag: DagName,
    /// The run.
    pub run: RunId,
    /// The interval.
    pub interval: Interval,
    /// When it was recorded, in project time.
    pub created_at: Instant,
    /// Its place in the order of recording, over all views.
    pub number: u64,
    /// `live` when every view's newest ledger entry comes from it (of a restore: when nothing was recorded of its views
    /// since), `expired` when retention let go of it, `restored_away` when a restore took it back, else `superseded`.
    pub status: String,
    /// Per view.
    pub views: Vec<SnapshotView>,
    /// The decision of a person that its run carried out, if there was one.
    pub decision: Option<Override>,
}

/// One view of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotView {
    /// The view.
    pub view: ViewId,
    /// Definition fingerprint.
    pub fingerprint: String,
    /// Delta version.
    pub delta_version: u64,
    /// Publish number.
    pub publish_number: u64,
    /// Rows of the slice.
    pub rows: u64,
    /// Digest of the slice.
    pub digest: String,
    /// Generation made live by this snapshot.
    pub online_generation: Option<u64>,
    /// Rows that its run set aside.
    pub quarantined: u64,
    /// The version of the view's quarantine table; `None` when nothing had ever been set aside.
    pub quarantine_version: Option<u64>,
    /// The interval whose rows are meant: the snapshot's own; of a restore the newest one afterwards, `None` when there is
    /// none.
    pub interval: Option<Interval>,
}

/// One check's verdict with where it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckRow {
    /// The run.
    pub run: RunId,
    /// The DAG.
    pub dag: DagName,
    /// The interval.
    pub interval: Interval,
    /// The view.
    pub view: ViewId,
    /// The verdict.
    pub result: CheckResult,
}

/// Which verdicts to list.
#[derive(Debug, Clone, Default)]
pub struct CheckFilter {
    /// Of this view (every version when the version is 0 is not possible: give the id).
    pub view: Option<ViewId>,
    /// Of this run.
    pub run: Option<RunId>,
    /// With this verdict.
    pub verdict: Option<Verdict>,
    /// At most so many; 0 for all.
    pub limit: u32,
}
