//! One commit that replaces one slice, exactly once.
//!
//! The table carries one mark (`txn` action) whose version is the publish number of the last publication. A commit loads a
//! snapshot, compares its mark with the number in hand and commits **on that snapshot** with no retries: it lands as the
//! very next version or not at all. Whatever comes back, the mark of a freshly loaded snapshot decides:
//! equal is ours and done, higher is superseded, lower is not yet done. So an answer that was lost, a writer that slept
//! and two workers with the same intent all end in one version with the right content.
//!
//! Tempting and wrong: delta-rs's own retry. It rebases a stale writer over a newer run, and when the log PUT lands but
//! the answer is lost it appends twice or denies what landed.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context;
use delta_kernel::expressions::Scalar;
use deltalake::DeltaTable;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidegate_registry::ids::{DagName, RunId, ViewId};
use tidegate_registry::restore::{HoldPolicy, Slice, TableTarget};
use tidegate_registry::time::{Instant, Interval};

use super::Lake;
use super::table::log_path;
use crate::types::{INTERVAL_START, QUARANTINE_START};

/// How often a commit is tried before the trouble is handed up (rivals are only compactions and our own lost answers).
const ATTEMPTS_MAX: u32 = 20;
/// How long one try may take; after it the mark is read again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(120);
/// No try begins later than this after the first: a store that is down for longer fails the task, which is tried again
/// for as long as it takes, and leaves its slot to others meanwhile.
const ATTEMPTS_FOR: Duration = Duration::from_secs(300);
/// Keys of a commit's information: whose it is, its publish number, and a [`CommitNote`].
pub(super) const RUN: &str = "tidegate.run";
pub(super) const PUBLISH: &str = "tidegate.publish";
pub(super) const NOTE: &str = "tidegate.note";
/// The key of a [`RestoreNote`].
pub(super) const RESTORE: &str = "tidegate.restore";
/// What stands in the place of a run in the commit of a compaction.
pub(crate) const COMPACTION: &str = "compaction";
/// How far back a commit that already landed is looked for.
const HISTORY_MAX: usize = 1_000;

/// What to commit.
#[derive(Debug, Clone)]
pub struct CommitRequest<'a> {
    /// The view.
    pub view: &'a ViewId,
    /// The fence.
    pub publish_number: u64,
    /// The highest publish number that the registry has given out for the view: a higher mark means that the registry is
    /// older than the lake.
    pub publish_number_max: u64,
    /// What is replaced.
    pub replaces: Replaces,
    /// Its new content, whole.
    pub adds: &'a [Add],
    /// The run, noted in the commit.
    pub run: RunId,
    /// What else is noted there, so that a registry that is lost can be made anew from the lake.
    pub note: Option<&'a CommitNote>,
    /// What a restore changed, noted for the same reason.
    pub restored: Option<&'a RestoreNote>,
}

/// What a commit replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaces {
    /// The slice of an interval.
    Slice(Interval),
    /// The whole table: files that it has already stay as they are.
    Table,
}

/// What a publication writes into its commit beside the run and the publish number. Stored in the lake for good: keys are
/// only ever added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommitNote {
    /// The DAG.
    pub dag: DagName,
    /// The interval.
    pub interval: Interval,
    /// All views of the run, in dependency order: it is whole when each table has its commit.
    pub views: Vec<ViewId>,
    /// Why the run existed, as printed.
    pub cause: String,
    /// Numbers the runs of the interval.
    pub revision: u32,
    /// The view's definition fingerprint.
    pub fingerprint: String,
    /// Rows of the slice.
    pub rows: u64,
    /// Digest of the slice.
    pub digest: String,
    /// Rows that the run set aside.
    #[serde(default, skip_serializing_if = "is_none")]
    pub quarantined: u64,
}

/// What a restore writes into its commit. Stored in the lake for good: keys are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreNote {
    /// The DAG that it is listed under.
    pub dag: DagName,
    /// The interval that it is listed under.
    pub interval: Interval,
    /// All views of the restore, parents first.
    pub views: Vec<ViewId>,
    /// The fingerprint of the definition that computed `newest`.
    pub fingerprint: String,
    /// The newest published interval afterwards.
    pub newest: Option<Slice>,
    /// Intervals that left the ledger.
    pub leaves: Vec<Slice>,
    /// Intervals that are in the ledger anew, or from another run than before.
    pub comes_back: Vec<Slice>,
    /// The version of the table that it was decided on.
    #[serde(default)]
    pub from_version: u64,
    /// What the table holds since; `None` in commits of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableTarget>,
    /// Who decided it, and how; `None` in commits of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<DecidedNote>,
}

/// How a restore was decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecidedNote {
    /// As it was asked for.
    pub asked: String,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in project time.
    pub begun_at: Instant,
    /// Views that it held.
    pub holds: Vec<ViewId>,
    /// How.
    pub hold_policy: HoldPolicy,
}

fn is_none(rows: &u64) -> bool {
    *rows == 0
}

/// What a compaction commits: other files with the same rows.
#[derive(Debug, Clone)]
pub(crate) struct CompactionRequest<'a> {
    /// The view.
    pub(crate) view: &'a ViewId,
    /// The fence.
    pub(crate) publish_number: u64,
    /// The slice.
    pub(crate) interval: Interval,
    /// Its new files.
    pub(crate) adds: &'a [Add],
}

/// A commit that landed, now or earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The Delta version.
    pub version: u64,
    /// Whether it had landed before this call.
    pub before: bool,
}

/// Features of Delta that change nothing about how the rows of a file are read.
const HARMLESS: [&str; 3] = ["timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"];

/// Refuses a table whose rows are no longer what its files hold: deletion vectors, mapped columns and what may come.
pub(super) fn require_plain(table: &DeltaTable) -> anyhow::Result<()> {
    let protocol = serde_json::to_value(table.snapshot()?.protocol()).context("reading the protocol")?;
    let features = protocol["readerFeatures"].as_array().into_iter().flatten().filter_map(|name| name.as_str());
    let mut foreign: Vec<&str> = features.filter(|name| !HARMLESS.contains(name)).collect();
    if protocol["minReaderVersion"] == 2 {
        foreign.push("columnMapping");
    }
    anyhow::ensure!(
        foreign.is_empty(),
        "another writer has upgraded the table to `{}`, which Tidegate does not write: restore the version before with the \
         tool that upgraded it, or remove the feature there",
        foreign.join("`, `")
    );
    Ok(())
}

/// Why a commit did not land.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The table's mark is higher: a later publication overtook this one.
    #[error("publication {mark} of `{view}` overtook publication {ours}")]
    Superseded {
        /// The view.
        view: ViewId,
        /// The table's mark.
        mark: u64,
        /// The number in hand.
        ours: u64,
    },
    /// The table's mark is higher than anything the registry ever gave out.
    #[error(
        "the table of `{view}` carries publication {mark}, but this registry has given out only {given_out}: the \
         registry is older than the lake (restored from a backup?), so nothing is written; stop all workers and run \
         `tidegate registry rebuild --from-lake`"
    )]
    RegistryBehind {
        /// The view.
        view: ViewId,
        /// The table's mark.
        mark: u64,
        /// What the registry gave out.
        given_out: u64,
    },
    /// The table carries this very publish number, given out by another registry (or this one before it was restored).
    #[error(
        "publication {mark} of the table of `{view}` was made by {by}, of which this registry knows nothing: the registry \
         is older than the lake (restored from a backup?), so nothing is written; stop all workers and run \
         `tidegate registry rebuild --from-lake`"
    )]
    Foreign {
        /// The view.
        view: ViewId,
        /// The number.
        mark: u64,
        /// Whose commit carries it.
        by: String,
    },
    /// A staged file is not there: committing would publish a broken table.
    #[error("the staged file `{path}` of `{view}` is missing")]
    StagedMissing {
        /// The view.
        view: ViewId,
        /// The path in the table.
        path: String,
    },
    /// The store failed; trying again is right, and harmless.
    #[error("committing to the table of `{view}` failed")]
    Store {
        /// The view.
        view: ViewId,
        /// The cause.
        #[source]
        source: anyhow::Error,
    },
}

impl Lake {
    /// Replaces the slice of `request.interval` by `request.adds`.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, request: &CommitRequest<'_>) -> Result<Committed, CommitError> {
        let view = request.view;
        let failed = |source: anyhow::Error| CommitError::Store { view: view.clone(), source };
        let mut last_error = None;
        let begun = tokio::time::Instant::now();
        let (mut complete, mut tried) = (false, false);
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                if begun.elapsed() > ATTEMPTS_FOR {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20 << attempt.min(7))).await;
            }
            let table = match self.load(view, None).await {
                Ok(table) => table,
                Err(error) => {
                    last_error = Some(error);
                    continue;
                }
            };
            let settled = match self.settled(&table, request).await {
                Err(CommitError::Store { source, .. }) => {
                    last_error = Some(source);
                    continue;
                }
                settled => settled?,
            };
            if let Some(version) = settled {
                self.sync(view, vec![log_path(version)]).await.map_err(failed)?;
                return Ok(Committed { version, before: !tried });
            }
            if !complete {
                match self.require_files(&table, request).await {
                    Err(CommitError::Store { source, .. }) => {
                        last_error = Some(source);
                        continue;
                    }
                    required => required?,
                }
                complete = true;
            }
            fail::fail_point!("lake.commit.loaded");
            tried = true;
            match tokio::time::timeout(ATTEMPT_TIMEOUT, self.try_commit(&table, request)).await {
                Ok(Ok(version)) => {
                    fail::fail_point!("lake.commit.landed");
                    self.sync(view, vec![log_path(version)]).await.map_err(failed)?;
                    return Ok(Committed { version, before: false });
                }
                // Lost the race, or our answer was lost: the mark decides, never the error.
                Ok(Err(error)) => last_error = Some(error),
                Err(_) => last_error = Some(anyhow::anyhow!("the store did not answer in time")),
            }
        }
        Err(failed(last_error.unwrap_or_else(|| anyhow::anyhow!("no attempt was made"))))
    }

    /// Reads the table's mark: the version at which this publication landed, or `None` when it has yet to land.
    async fn settled(&self, table: &DeltaTable, request: &CommitRequest<'_>) -> Result<Option<u64>, CommitError> {
        let view = request.view;
        let failed = |source: anyhow::Error| CommitError::Store { view: view.clone(), source };
        let mark = self.mark_of(table, view).await.map_err(failed)?;
        match mark {
            Some(mark) if mark > request.publish_number_max => {
                Err(CommitError::RegistryBehind { view: view.clone(), mark, given_out: request.publish_number_max })
            }
            Some(mark) if mark > request.publish_number => {
                Err(CommitError::Superseded { view: view.clone(), mark, ours: request.publish_number })
            }
            Some(mark) if mark == request.publish_number => {
                let (version, by) = version_of(table, request.publish_number).await.map_err(failed)?;
                // A registry that was restored gives out numbers a second time.
                if by != request.run.to_string() {
                    return Err(CommitError::Foreign { view: view.clone(), mark, by: format!("run `{by}`") });
                }
                Ok(Some(version))
            }
            _ => Ok(None),
        }
    }

    /// Makes sure that the table of `view` carries no publication of which the registry knows nothing: `known` is the
    /// highest publish number that it has given out. Asked before an intent, because a run could only wait after it.
    ///
    /// # Errors
    /// [`CommitError::RegistryBehind`] when it does. [`CommitError::Store`] when another writer has upgraded the table to
    /// features of Delta that Tidegate does not write.
    pub async fn require_known(&self, view: &ViewId, known: u64) -> Result<(), CommitError> {
        let failed = |source: anyhow::Error| CommitError::Store { view: view.clone(), source };
        let table = self.load(view, None).await.map_err(failed)?;
        require_plain(&table).map_err(failed)?;
        match self.mark_of(&table, view).await.map_err(failed)? {
            Some(mark) if mark > known => {
                Err(CommitError::RegistryBehind { view: view.clone(), mark, given_out: known })
            }
            _ => Ok(()),
        }
    }

    /// The publish number of the last publication in `table`.
    pub(crate) async fn mark_of(&self, table: &DeltaTable, view: &ViewId) -> anyhow::Result<Option<u64>> {
        let mark = table
            .snapshot()?
            .transaction_version(table.log_store().as_ref(), self.mark(view))
            .await
            .with_context(|| format!("reading the mark of `{view}`"))?;
        mark.map(|mark| u64::try_from(mark).context("the mark is negative")).transpose()
    }

    async fn require_files(&self, table: &DeltaTable, request: &CommitRequest<'_>) -> Result<(), CommitError> {
        let failed = |source: anyhow::Error| CommitError::Store { view: request.view.clone(), source };
        let known = match request.replaces {
            Replaces::Slice(_) => HashSet::new(),
            Replaces::Table => paths_of(table).map_err(failed)?,
        };
        let new: Vec<&Add> = request.adds.iter().filter(|add| !known.contains(&add.path)).collect();
        self.require_there(request.view, &new).await
    }

    /// Makes sure that files of a view's table are there, whole.
    ///
    /// # Errors
    /// [`CommitError::StagedMissing`] when one is not.
    pub(crate) async fn require_there(&self, view: &ViewId, files: &[&Add]) -> Result<(), CommitError> {
        let prefix = self.table_prefix(view);
        let looks: Vec<_> = files.iter().map(|add| self.require_file(view, &prefix, add)).collect();
        futures::stream::iter(looks).buffer_unordered(32).try_collect().await
    }

    async fn require_file(&self, view: &ViewId, table: &Path, add: &Add) -> Result<(), CommitError> {
        let path = add.path.split('/').fold(table.clone(), Path::join);
        match self.store.head(&path).await {
            Ok(found) if i64::try_from(found.size).is_ok_and(|size| size == add.size) => Ok(()),
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {
                Err(CommitError::StagedMissing { view: view.clone(), path: add.path.clone() })
            }
            Err(error) => Err(CommitError::Store { view: view.clone(), source: error.into() }),
        }
    }

    /// Replaces the files of a slice by others with the same rows, on `table` exactly as it was read. The version at which
    /// that landed, or `None` when something else was committed first: then nothing has changed.
    ///
    /// # Errors
    /// When the store fails and the table cannot be asked whether the commit landed.
    pub(crate) async fn commit_compaction(
        &self,
        table: &DeltaTable,
        request: &CompactionRequest<'_>,
    ) -> anyhow::Result<Option<u64>> {
        let view = request.view;
        let state = table.snapshot()?;
        if self.mark_of(table, view).await?.is_some_and(|mark| mark >= request.publish_number) {
            return Ok(None);
        }
        let number = i64::try_from(request.publish_number).context("the publish number is too large")?;
        let properties = commit_properties()
            .with_application_transaction(Transaction::new(self.mark(view), number))
            .with_metadata([
                (RUN.to_owned(), json!(COMPACTION)),
                (PUBLISH.to_owned(), json!(request.publish_number)),
                ("readVersion".to_owned(), json!(state.version())),
            ]);
        let mut actions = replace_slice(table, request.interval, request.adds)?;
        for action in &mut actions {
            match action {
                Action::Remove(remove) => remove.data_change = false,
                Action::Add(add) => add.data_change = false,
                _ => {}
            }
        }
        let operation = DeltaOperation::Optimize { predicate: None, target_size: 0 };
        let committing =
            CommitBuilder::from(properties).with_actions(actions).build(Some(state), table.log_store(), operation);
        let error = match tokio::time::timeout(ATTEMPT_TIMEOUT, committing).await {
            Ok(Ok(done)) => {
                self.remember(view, &done.snapshot());
                self.sync(view, vec![log_path(done.version())]).await?;
                return Ok(Some(done.version()));
            }
            Ok(Err(error)) => anyhow::Error::new(error),
            Err(_) => anyhow::anyhow!("the store did not answer in time"),
        };
        // Lost the race, or our answer was lost: the mark decides.
        let table = self.load(view, None).await?;
        match self.mark_of(&table, view).await? {
            Some(mark) if mark == request.publish_number => {
                let (version, by) = version_of(&table, mark).await?;
                Ok((by == COMPACTION).then_some(version))
            }
            Some(mark) if mark > request.publish_number => Ok(None),
            _ if table.version() > Some(state.version()) => Ok(None),
            _ => Err(error).with_context(|| format!("committing a compaction of `{view}`")),
        }
    }

    async fn try_commit(&self, table: &DeltaTable, request: &CommitRequest<'_>) -> anyhow::Result<u64> {
        let state = table.snapshot()?;
        let publish_number = i64::try_from(request.publish_number).context("the publish number is too large")?;
        let mark = Transaction::new(self.mark(request.view), publish_number);
        let note = request.note.map(|note| (NOTE.to_owned(), json!(note)));
        let restored = request.restored.map(|note| (RESTORE.to_owned(), json!(note)));
        let metadata = [
            (RUN.to_owned(), json!(request.run.to_string())),
            (PUBLISH.to_owned(), json!(request.publish_number)),
            ("readVersion".to_owned(), json!(state.version())),
        ];
        let properties = commit_properties()
            .with_application_transaction(mark)
            .with_metadata(metadata.into_iter().chain(note).chain(restored));
        let operation = DeltaOperation::Write {
            mode: SaveMode::Overwrite,
            partition_by: Some(vec![self.partition_column().to_owned()]),
            predicate: None,
        };
        let actions = match request.replaces {
            Replaces::Slice(interval) => replace_slice(table, interval, request.adds)?,
            Replaces::Table => replace_table(table, request.adds)?,
        };
        let done = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(state), table.log_store(), operation)
            .await?;
        self.remember(request.view, &done.snapshot());
        Ok(done.version())
    }
}

/// No retries (a commit is a compare-and-swap), no checkpoint and no log clean-up inside it: a hook that fails would turn a
/// commit that landed into an error.
pub(super) fn commit_properties() -> CommitProperties {
    CommitProperties::default().with_max_retries(0).with_create_checkpoint(false).with_cleanup_expired_logs(Some(false))
}

/// The actions that replace the slice of `interval` in `table` by `adds`.
pub(super) fn replace_slice(table: &DeltaTable, interval: Interval, adds: &[Add]) -> anyhow::Result<Vec<Action>> {
    let added: HashSet<&str> = adds.iter().map(|add| add.path.as_str()).collect();
    let mut actions = Vec::with_capacity(adds.len() + 1);
    for file in table.snapshot()?.log_data().iter() {
        if slice_of(&file)? == interval.start().timestamp_micros() && !added.contains(file.path().as_ref()) {
            refuse_deletion_vector(&file)?;
            actions.push(Action::Remove(file.remove_action(true)));
        }
    }
    actions.extend(adds.iter().cloned().map(Action::Add));
    Ok(actions)
}

/// The actions that make `table` hold exactly `adds`.
fn replace_table(table: &DeltaTable, adds: &[Add]) -> anyhow::Result<Vec<Action>> {
    let wanted: HashSet<&str> = adds.iter().map(|add| add.path.as_str()).collect();
    let (mut actions, mut known) = (Vec::new(), HashSet::new());
    for file in table.snapshot()?.log_data().iter() {
        refuse_deletion_vector(&file)?;
        if wanted.contains(file.path().as_ref()) {
            known.insert(file.path().into_owned());
        } else {
            actions.push(Action::Remove(file.remove_action(true)));
        }
    }
    actions.extend(adds.iter().filter(|add| !known.contains(&add.path)).cloned().map(Action::Add));
    Ok(actions)
}

pub(super) fn refuse_deletion_vector(file: &deltalake::kernel::LogicalFileView) -> anyhow::Result<()> {
    anyhow::ensure!(
        file.deletion_vector_descriptor().is_none(),
        "`{}` has a deletion vector, which Tidegate never writes: another program has changed this table",
        file.path()
    );
    Ok(())
}

/// The files that a table names.
pub(super) fn paths_of(table: &DeltaTable) -> anyhow::Result<HashSet<String>> {
    Ok(table.snapshot()?.log_data().iter().map(|file| file.path().into_owned()).collect())
}

/// The interval start of a file, in microseconds since 1970.
pub(super) fn slice_of(file: &deltalake::kernel::LogicalFileView) -> anyhow::Result<i64> {
    let values = file.partition_values().context("a file of the table has no partition value")?;
    let index =
        values.fields().iter().position(|field| [INTERVAL_START, QUARANTINE_START].contains(&field.name().as_str()));
    match index.and_then(|index| values.values().get(index)) {
        Some(Scalar::Timestamp(micros)) => Ok(*micros),
        other => anyhow::bail!("the partition value of `{}` is {other:?}, not a timestamp", file.path()),
    }
}

/// The version at which a publication landed and whose it is, newest first through the table's history.
async fn version_of(table: &DeltaTable, publish_number: u64) -> anyhow::Result<(u64, String)> {
    let head = table.snapshot()?.version();
    let mut infos = table.history(Some(HISTORY_MAX)).enumerate();
    while let Some((age, info)) = infos.next().await {
        let info = info.context("reading the table's history")?;
        if info.info.get(PUBLISH).and_then(serde_json::Value::as_u64) == Some(publish_number) {
            let by = info.info.get(RUN).and_then(serde_json::Value::as_str).unwrap_or("nobody").to_owned();
            let version = head.checked_sub(age as u64).context("the table's history is longer than its log")?;
            return Ok((version, by));
        }
    }
    anyhow::bail!("publication {publish_number} is marked as landed, but none of the last {HISTORY_MAX} commits is it")
}
