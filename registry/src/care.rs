//! What looking after a registry and its lake needs to know and to change: retention, pins, compaction, and making a
//! registry anew from the lake.
//!
//! [`Care`] stands beside [`crate::store::Store`], whose semantics hold here too: one method, one transaction; doing twice
//! is harmless. `janitor` and `rebuild` of the worker decide; here is only what they decide by.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::Serialize;

use crate::ids::{DagName, RegistryId, RunId, SnapshotId, ViewId};
use crate::restore::RestorePlan;
use crate::run::Cause;
use crate::store::Result;
use crate::time::{Instant, Interval};

/// Everything that the registry says must be kept of one view's table, in one consistent read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ViewKeep {
    /// The Delta version last recorded.
    pub delta_version: u64,
    /// The highest publish number given out.
    pub publish_number: u64,
    /// The run that is publishing the view now.
    pub publishing: Option<RunId>,
    /// Snapshots that are not expired, oldest first.
    pub snapshots: Vec<KeptSnapshot>,
    /// Versions that open runs are bound to.
    pub pinned_versions: BTreeMap<RunId, u64>,
    /// Versions of its table that open restores take files from.
    pub targets: BTreeSet<(RunId, u64)>,
    /// The same of its quarantine table.
    pub quarantine_targets: BTreeSet<(RunId, u64)>,
}

/// One snapshot of a view that may still be asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// When it was recorded, in project time.
    pub created_at: Instant,
    /// The interval that it published.
    pub interval: Interval,
    /// The Delta version that holds it.
    pub delta_version: u64,
    /// The version of the quarantine table that goes with it; `None` when nothing had been set aside by then.
    pub quarantine_version: Option<u64>,
    /// Whether the newest interval of the view, or a live generation, comes from it.
    pub live: bool,
    /// Why it is pinned, when it is.
    pub pin: Option<Pin>,
}

/// A pin: a snapshot that retention leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// When, in project time.
    pub pinned_at: Instant,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Per view the files of its table at the snapshot, relative to the table: kept even if the log were lost.
    pub files: BTreeMap<ViewId, Vec<PinnedTableFile>>,
}

/// One file of a pinned table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct PinnedTableFile {
    /// Relative to the table.
    pub path: String,
    /// In bytes.
    pub size: u64,
}

/// What was removed of old rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PrunedRows {
    /// Log lines of ended runs.
    pub log_lines: u64,
    /// Outputs of tasks of ended runs.
    pub outputs: u64,
    /// Notices that were delivered, or given up.
    pub notices: u64,
}

/// Rows of a registry, counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableRows {
    /// The table.
    pub table: String,
    /// Its rows.
    pub rows: u64,
}

/// What the lake says of one view, to be made true in the registry.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ViewRebuild {
    /// The publish number of the table's mark, and of the live generation when that is higher; 0 when there is neither.
    pub publish_number: u64,
    /// The publish number of the last commit that counts as recorded.
    pub recorded_number: u64,
    /// The Delta version that runs read from now on.
    pub delta_version: u64,
    /// The generation that is live online.
    pub online_generation: Option<u64>,
    /// The version of the quarantine table; `None` when there is none.
    pub quarantine_version: Option<u64>,
    /// Whether the table is another one than before: then no snapshot can give it back, and they no longer name it.
    pub table_lost: bool,
    /// Intervals that leave the ledger, whatever was found of them: the table does not hold them as one run made them.
    pub lost: Vec<Interval>,
    /// Intervals that restores took out of the ledger, each with the restore, in their order. Those that were not published
    /// since are in `lost`, too.
    pub left: Vec<(Interval, RunId)>,
    /// Publications as the table holds them, in the order in which they landed: the last one of an interval is what the
    /// ledger says.
    pub found: Vec<FoundInterval>,
}

/// One interval that the lake holds.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundInterval {
    /// The interval.
    pub interval: Interval,
    /// The run that published it, a key of [`Rebuild::runs`] or a run of the registry.
    pub run: RunId,
    /// The Delta version that holds it.
    pub delta_version: u64,
    /// The publish number of that commit.
    pub publish_number: u64,
    /// The definition that computed it.
    pub fingerprint: String,
    /// Rows of the slice.
    pub rows: u64,
    /// Digest of the slice.
    pub digest: String,
    /// Rows that its run set aside, where the lake tells.
    pub quarantined: u64,
    /// The version of the quarantine table that goes with it.
    pub quarantine_version: Option<u64>,
    /// The run by which it came into the ledger: `run`, or a restore that brought it back.
    pub by: RunId,
}

/// A run as the lake tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundRun {
    /// The DAG.
    pub dag: DagName,
    /// The interval.
    pub interval: Interval,
    /// Its views, in dependency order.
    pub views: Vec<ViewId>,
    /// Why it existed; `None` when the lake does not tell any more.
    pub cause: Option<Cause>,
    /// The revision that it had.
    pub revision: u32,
    /// When it committed last, by the store's clock.
    pub committed_at: Instant,
    /// Whether the versions that it left can be read: else its snapshot is made as an expired one.
    pub restorable: bool,
    /// What it took back, when it is a restore.
    pub restore: Option<FoundRestore>,
}

/// A restore as the lake tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundRestore {
    /// What was decided, as far as commits tell: nothing of quarantine tables and of the online store.
    pub plan: RestorePlan,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When it was decided, in project time; `None` when its commits do not tell.
    pub begun_at: Option<Instant>,
    /// Per view of the plan what it left.
    pub landed: IndexMap<ViewId, LandedRestore>,
}

/// What a restore left of one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LandedRestore {
    /// The version of its table.
    pub delta_version: u64,
    /// The fence that it was committed with.
    pub publish_number: u64,
    /// The version of its quarantine table by then; `None` when nothing had ever been set aside.
    pub quarantine_version: Option<u64>,
}

/// See [`Care::rebuild`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rebuild {
    /// Per view what is true in the lake.
    pub views: IndexMap<ViewId, ViewRebuild>,
    /// The runs that are named there.
    pub runs: BTreeMap<RunId, FoundRun>,
    /// Open runs with an intent that can never land: later publications overtook them.
    pub overtaken: Vec<RunId>,
    /// Per DAG its ticks up to the end of the last interval that the lake holds; those that are stored stay as they are.
    pub ticks: BTreeMap<DagName, Vec<Instant>>,
    /// Who, for the audit trail.
    pub actor: String,
}

/// Looking after a registry.
#[async_trait]
pub trait Care {
    /// What must be kept of each of `views`; views without a state are left out.
    async fn keep(&self, views: &[ViewId]) -> Result<IndexMap<ViewId, ViewKeep>>;

    /// The views that the registry knows, defined now or earlier.
    async fn known_views(&self) -> Result<Vec<ViewId>>;

    /// The open runs, whose staged files belong to them. Unlike [`crate::store::Store::runs_open`], ids only.
    async fn open_run_ids(&self) -> Result<Vec<RunId>>;

    /// Marks snapshots as expired, with an audit event: nobody may ask for them any more. Those that are pinned, or live now, and
    /// those that a restore under way goes back to, are left as they are. Returns those that are expired.
    async fn snapshots_expire(&self, ids: &[SnapshotId], now: Instant) -> Result<Vec<SnapshotId>>;

    /// Pins a snapshot; a pin that exists is replaced.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`], and [`crate::store::StoreError::Refused`] when it is expired.
    async fn snapshot_pin(&self, id: SnapshotId, pin: Pin) -> Result<()>;

    /// Takes a pin away; harmless when there is none.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`] when there is no such snapshot.
    async fn snapshot_unpin(&self, id: SnapshotId, actor: &str, now: Instant) -> Result<()>;

    /// The pins, by snapshot.
    async fn pins(&self) -> Result<BTreeMap<SnapshotId, Pin>>;

    /// Takes or extends the one lease of `name` for `owner`; false while another owner's has not run out.
    async fn duty_take(&self, name: &str, owner: &str, lease: Duration) -> Result<bool>;

    /// Lets go of it, if it is `owner`'s.
    async fn duty_release(&self, name: &str, owner: &str) -> Result<()>;

    /// The duties that are taken, each with its owner; by name.
    async fn duties(&self) -> Result<Vec<(String, String)>>;

    /// The next publish number of a view for a compaction; `None` while a run is publishing it. The number is used up
    /// whatever becomes of the compaction.
    async fn compaction_take(&self, view: &ViewId) -> Result<Option<u64>>;

    /// Records that a compaction landed: runs read the table at `delta_version` from now on. False, and nothing is
    /// changed, when something else was published since.
    async fn compaction_record(&self, view: &ViewId, publish_number: u64, delta_version: u64) -> Result<bool>;

    /// Removes log lines and task outputs of runs that ended before `before`, and notices from before it of which nothing
    /// is left to deliver.
    async fn rows_prune(&self, before: Instant) -> Result<PrunedRows>;

    /// Rows of each table.
    async fn row_counts(&self) -> Result<Vec<TableRows>>;

    /// The version of the schema.
    async fn schema_version(&self) -> Result<i64>;

    /// Writes a copy of everything, as of one instant, into a new SQLite file that any implementation can restore.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Refused`] when `file` exists.
    async fn backup(&self, file: &Path) -> Result<Vec<TableRows>>;

    /// Puts what [`Care::backup`] wrote in the place of everything here, the registry's id included. Leases are given up:
    /// what was under way is taken up again. The audit trail goes on from the copy's, with an event that tells where the
    /// one that was here had ended.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Refused`] when something was applied here and `replace` is not set, or the file is not a
    /// copy of a registry.
    async fn restore(&self, file: &Path, replace: bool, actor: &str, now: Instant) -> Result<Vec<TableRows>>;

    /// Gives a registry in which nothing was ever applied the id of one that is lost.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Refused`] when something was applied.
    async fn adopt_id(&self, id: RegistryId) -> Result<()>;

    /// Makes ledger, snapshots, view states, runs and grids say what the lake holds. Publish numbers never fall; DAGs with
    /// ticks are compared with their whole history at the next planning. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`] for a view without a state: apply it first.
    async fn rebuild(&self, rebuild: &Rebuild, now: Instant) -> Result<()>;
}
