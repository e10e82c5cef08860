//! Datasets: training and scoring sets as they were built, and what the registry remembers of each.
//!
//! A [`Manifest`] names all that went into a dataset, so that the same can be made again byte for byte, or be told what is
//! gone. The registry keeps it with the snapshots whose rows it could see, so that a restore can say which datasets were
//! built from what it takes back.

use std::collections::BTreeMap;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::care::PinnedTableFile;
use crate::features::Selection;
use crate::ids::{DatasetId, SnapshotId, SourceName, ViewId};
use crate::run::SourcePin;
use crate::store::Result;
use crate::time::Instant;

/// The version of [`Manifest`] that this program writes.
pub const MANIFEST_FORMAT: u32 = 1;

/// Everything that a dataset was built from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`] of the program that wrote it.
    pub format: u32,
    /// The version of that program: another one may write other bytes for the same rows.
    pub tidegate: String,
    /// The project.
    pub project: String,
    /// The revision of its definitions.
    pub definitions: i64,
    /// The place of the snapshot as of which views are read, in the order of recording.
    pub number: u64,
    /// Only what had been published by then counts: the option `--known-at`, in project time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_at: Option<Instant>,
    /// Whose features are wanted, and when.
    pub spine: Spine,
    /// The features, in order.
    pub features: Selection,
    /// How their columns are named.
    pub names: ColumnNames,
    /// Per view what was read.
    pub views: IndexMap<ViewId, ViewInput>,
    /// What came out.
    pub output: Output,
}

/// Whose features are wanted, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spine {
    /// Where it comes from.
    pub from: SpineFrom,
    /// Its column that says when.
    pub label_time: String,
    /// Its rows.
    pub rows: u64,
    /// The digest of its rows: their order does not count, doubled rows do.
    pub digest: String,
    /// Its earliest and latest label; `None` without rows.
    pub labels: Option<(Instant, Instant)>,
}

/// Where a spine comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpineFrom {
    /// A file or table that the caller named.
    File {
        /// As it was named.
        place: String,
        /// `parquet`, `csv` or `delta`.
        format: String,
        /// The version of a Delta table.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
    },
    /// A query over sources.
    Sql {
        /// The query.
        sql: String,
        /// The sources that it reads, as they were.
        sources: BTreeMap<SourceName, SourcePin>,
    },
    /// Every entity that any of the views knows at an instant.
    Entities {
        /// The instant.
        at: Instant,
    },
    /// Rows that a caller handed over.
    Rows,
}

/// How the columns of features are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnNames {
    /// `view__feature`: the same whatever else is asked for.
    #[default]
    Full,
    /// `feature`: refused when two views have it.
    Short,
}

impl ColumnNames {
    /// The column of `feature` of `view`; `versions` says how many versions of that view are asked for.
    pub fn column(self, view: &ViewId, feature: &str, versions: usize) -> String {
        match self {
            Self::Short => feature.to_owned(),
            Self::Full if versions > 1 => format!("{}_v{}__{feature}", view.name, view.version),
            Self::Full => format!("{}__{feature}", view.name),
        }
    }
}

/// What was read of one view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewInput {
    /// The definition in force when the dataset was built.
    pub fingerprint: String,
    /// The newest snapshot of the view that counts; `None` when nothing of it had been published.
    pub snapshot: Option<SnapshotId>,
    /// The version of its table that goes with it.
    pub delta_version: Option<u64>,
    /// How many published intervals that version holds.
    pub intervals: u64,
    /// The end of the newest of them.
    pub covers: Option<Instant>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// `parquet` or `delta`.
    pub format: String,
    /// Rows.
    pub rows: u64,
    /// The digest of the rows.
    pub digest: String,
    /// Its columns, in order.
    pub columns: Vec<OutputColumn>,
    /// Per view the rows whose instant was later than its newest interval by more than its `max_age`; none when left out.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub stale: IndexMap<ViewId, u64>,
    /// The data files, relative to the dataset's place; for one file its name.
    pub files: Vec<OutputFile>,
}

/// One column of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputColumn {
    /// Its name.
    pub name: String,
    /// Its type, in Arrow's words.
    #[serde(rename = "type")]
    pub kind: String,
    /// The feature that it holds, as `view@vN.feature`; `None` for a column of the spine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    /// Rows in which it is null.
    pub nulls: u64,
}

/// One data file of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Relative to the dataset's place.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// Of its bytes, in hexadecimal.
    pub sha256: String,
}

/// A dataset as the registry remembers it.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Its id.
    pub id: DatasetId,
    /// The name that it was given.
    pub name: Option<String>,
    /// Where it was written: an absolute path, or a URL.
    pub place: String,
    /// When, in project time.
    pub created_at: Instant,
    /// Who.
    pub actor: String,
    /// What it was built from.
    pub manifest: Manifest,
    /// Why its snapshots are kept, when they are.
    pub pin: Option<DatasetPin>,
}

impl Dataset {
    /// What people call it.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.id.to_string())
    }
}

/// Keeps what a dataset was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatasetPin {
    /// When, in project time.
    pub pinned_at: Instant,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Per view the files of its table at its snapshot, relative to the table.
    #[serde(skip)]
    pub files: BTreeMap<ViewId, Vec<PinnedTableFile>>,
}

/// Which datasets are wanted. Every field that says something must hold.
#[derive(Debug, Clone, Default)]
pub struct DatasetFilter {
    /// Built when rows of any of these (view, snapshot) were part of the view.
    pub built_from: Option<Vec<(ViewId, SnapshotId)>>,
    /// Built from any of these views, when the list is not empty.
    pub views: Vec<ViewId>,
    /// Exactly these names or ids, or ids that begin so, when it is there.
    pub called: Option<String>,
    /// Written at exactly this place, when it is there.
    pub place: Option<String>,
    /// At most so many, newest first; 0 for all.
    pub limit: u32,
}

/// The part of the registry that datasets need; beside [`crate::store::Store`], whose semantics hold here too.
#[async_trait]
pub trait Datasets {
    /// Records a dataset, with an audit event. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Refused`] when it comes with a pin and something that it was built from has expired.
    async fn dataset_record(&self, dataset: &Dataset) -> Result<()>;

    /// Datasets, newest first.
    async fn datasets(&self, filter: &DatasetFilter) -> Result<Vec<Dataset>>;

    /// Keeps what a dataset was built from, until it is let go; a pin that exists is replaced.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`], and [`crate::store::StoreError::Refused`] when something that it was built
    /// from has expired.
    async fn dataset_pin(&self, id: DatasetId, pin: DatasetPin) -> Result<()>;

    /// Lets go of it; harmless when it is not pinned.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`].
    async fn dataset_unpin(&self, id: DatasetId, actor: &str, now: Instant) -> Result<()>;
}
