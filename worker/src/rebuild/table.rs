//! What one view's table and its log tell: which runs and restores landed, in which order, and what is still there.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Result;
use chrono::DateTime;
use deltalake::DeltaTable;
use indexmap::IndexMap;
use tidegate_registry::care::{FoundInterval, FoundRestore, FoundRun, LandedRestore};
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::restore::{HoldPolicy, RestorePlan, TableTarget, ViewRestore};
use tidegate_registry::run::Cause;
use tidegate_registry::store::LedgerEntry;

use super::RebuildParts;
use crate::lake::care::{LogEntry, LogListing, TableFile};
use crate::lake::{DecidedNote, Lake, RestoreNote};

/// What was read of one view's table.
pub(super) struct Table {
    pub(super) head: u64,
    pub(super) mark: Option<u64>,
    pub(super) log: LogListing,
    /// The files of the head by slice.
    pub(super) slices: BTreeMap<i64, Vec<TableFile>>,
    /// Publications that the log tells of, in the order in which they landed.
    pub(super) commits: Vec<Commit>,
    /// Restores that it tells of, in the same order.
    pub(super) restores: Vec<RestoreCommit>,
    /// Versions all of whose files are there.
    pub(super) whole: BTreeSet<u64>,
    pub(super) ledger: BTreeMap<i64, LedgerEntry>,
}

pub(super) struct Commit {
    pub(super) found: FoundInterval,
}

/// What the log tells of a restore.
pub(super) struct RestoreCommit {
    pub(super) run: RunId,
    pub(super) version: u64,
    pub(super) publish_number: u64,
    pub(super) note: RestoreNote,
}

impl Table {
    /// Whether a run's commit is in the log.
    pub(super) fn has(&self, run: RunId) -> bool {
        self.commits.iter().any(|commit| commit.found.run == run)
            || self.restores.iter().any(|commit| commit.run == run)
    }

    /// Every publication and restore that the log tells of: its version, its publish number and its run; in order.
    pub(super) fn all(&self) -> Vec<(u64, u64, RunId)> {
        let runs = self.commits.iter().map(|Commit { found }| (found.delta_version, found.publish_number, found.run));
        let restores = self.restores.iter().map(|restore| (restore.version, restore.publish_number, restore.run));
        let mut all: Vec<_> = runs.chain(restores).collect();
        all.sort_unstable();
        all
    }
}

/// Reads one view's table; `None` when it is gone. Runs that its log tells of are noted in `runs`.
pub(super) async fn read(
    parts: &RebuildParts,
    id: &ViewId,
    runs: &mut BTreeMap<RunId, FoundRun>,
) -> Result<Option<Table>> {
    let log = parts.lake.log_listing(id).await?;
    let Some(head) = log.head() else { return Ok(None) };
    parts.lake.forget(id);
    let table = parts.lake.load(id, None).await?;
    let slices = by_slice(&table)?;
    let entries = parts.lake.log_entries(id, log.entries.keys().copied().collect()).await?;
    let (mut commits, mut restores) = (Vec::new(), Vec::new());
    for (version, entry) in &entries {
        commits.extend(commit_of(*version, entry, &log, runs));
        restores.extend(restore_of(id, *version, entry, &log, runs));
    }
    let ledger = parts.store.ledger(id, None, 0).await?;
    let ledger = ledger.into_iter().map(|entry| (entry.interval.start().timestamp_micros(), entry)).collect();
    let mark = parts.lake.mark_of(&table, id).await?;
    let whole = whole_versions(parts, id, &log, &entries).await?;
    Ok(Some(Table { head, mark, log, slices, commits, restores, whole, ledger }))
}

pub(super) fn by_slice(table: &DeltaTable) -> Result<BTreeMap<i64, Vec<TableFile>>> {
    let mut slices: BTreeMap<i64, Vec<TableFile>> = BTreeMap::new();
    for file in Lake::files_of(table)? {
        slices.entry(file.slice).or_default().push(file);
    }
    Ok(slices)
}

pub(super) async fn slices_at(
    parts: &RebuildParts,
    id: &ViewId,
    version: u64,
) -> Result<BTreeMap<i64, Vec<TableFile>>> {
    by_slice(&parts.lake.load(id, Some(version)).await?)
}

pub(super) fn commit_of(
    version: u64,
    entry: &LogEntry,
    log: &LogListing,
    runs: &mut BTreeMap<RunId, FoundRun>,
) -> Option<Commit> {
    let (note, publish_number) = (entry.note.as_ref()?, entry.publish?);
    let run: RunId = entry.run.as_deref()?.parse().ok()?;
    let at = log.entries.get(&version)?.modified;
    let known = runs.entry(run).or_insert_with(|| FoundRun {
        dag: note.dag.clone(),
        interval: note.interval,
        views: note.views.clone(),
        cause: note.cause.parse::<Cause>().ok(),
        revision: note.revision,
        committed_at: at,
        restorable: true,
        restore: None,
    });
    known.committed_at = known.committed_at.max(at);
    let found = FoundInterval {
        interval: note.interval,
        run,
        delta_version: version,
        publish_number,
        fingerprint: note.fingerprint.clone(),
        rows: note.rows,
        digest: note.digest.clone(),
        quarantined: note.quarantined,
        quarantine_version: None,
        by: run,
    };
    Some(Commit { found })
}

pub(super) fn restore_of(
    id: &ViewId,
    version: u64,
    entry: &LogEntry,
    log: &LogListing,
    runs: &mut BTreeMap<RunId, FoundRun>,
) -> Option<RestoreCommit> {
    let (note, publish_number) = (entry.restored.as_ref()?, entry.publish?);
    let run: RunId = entry.run.as_deref()?.parse().ok()?;
    let at = log.entries.get(&version)?.modified;
    let known = runs.entry(run).or_insert_with(|| FoundRun {
        dag: note.dag.clone(),
        interval: note.interval,
        views: note.views.clone(),
        cause: Some(Cause::Restore(run)),
        revision: 0,
        committed_at: at,
        restorable: true,
        restore: None,
    });
    known.committed_at = known.committed_at.max(at);
    let restore = known.restore.get_or_insert_with(|| decided(note));
    restore.plan.views.insert(
        id.clone(),
        ViewRestore {
            from_version: note.from_version,
            table: note.table.clone().unwrap_or(TableTarget { version: Some(version), slices: Vec::new() }),
            quarantine: None,
            online: None,
            leaves: note.leaves.clone(),
            comes_back: note.comes_back.clone(),
            newest: note.newest.clone(),
            fingerprint: note.fingerprint.clone(),
            only_unfinished: false,
        },
    );
    // Parents first, whichever table was looked at first.
    restore.plan.views.sort_by_cached_key(|view, _| note.views.iter().position(|known| known == view));
    let landed = LandedRestore { delta_version: version, publish_number, quarantine_version: None };
    restore.landed.insert(id.clone(), landed);
    Some(RestoreCommit { run, version, publish_number, note: note.clone() })
}

/// What is known of a restore as a whole.
pub(super) fn decided(note: &RestoreNote) -> FoundRestore {
    let unknown = DecidedNote {
        asked: "found in the lake".to_owned(),
        actor: "unknown".to_owned(),
        reason: "found in the lake".to_owned(),
        begun_at: DateTime::UNIX_EPOCH,
        holds: Vec::new(),
        hold_policy: HoldPolicy::default(),
    };
    let begun_at = note.decided.as_ref().map(|decided| decided.begun_at);
    let DecidedNote { asked, actor, reason, holds, hold_policy, .. } = note.decided.clone().unwrap_or(unknown);
    let plan = RestorePlan { asked, views: IndexMap::new(), holds, hold_policy };
    FoundRestore { plan, actor, reason, begun_at, landed: IndexMap::new() }
}

/// The versions that can be read with all their files.
pub(super) async fn whole_versions(
    parts: &RebuildParts,
    id: &ViewId,
    log: &LogListing,
    entries: &[(u64, LogEntry)],
) -> Result<BTreeSet<u64>> {
    let there: HashSet<String> = parts.lake.data_listing(id).await?.into_iter().map(|object| object.path).collect();
    let first = if log.entries.contains_key(&0) { Some(0) } else { log.checkpoints.first().copied() };
    let Some(first) = first else { return Ok(BTreeSet::new()) };
    let base = parts.lake.load(id, Some(first)).await?;
    let files = Lake::files_of(&base)?.into_iter().map(|file| file.path);
    let mut missing: BTreeSet<String> = files.filter(|path| !there.contains(path)).collect();
    let mut whole = BTreeSet::new();
    if missing.is_empty() {
        whole.insert(first);
    }
    for (version, entry) in entries.iter().filter(|(version, _)| *version > first) {
        missing.retain(|path| !entry.removes.contains(path));
        missing.extend(entry.adds.keys().filter(|path| !there.contains(*path)).cloned());
        if missing.is_empty() {
            whole.insert(*version);
        }
    }
    Ok(whole)
}
