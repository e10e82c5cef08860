//! Making a registry say what the lake holds: after it was lost, after an old copy was restored, after tables were.
//!
//! The lake is the truth about what was published. A commit notes its run, interval, publish number, rows, digest and
//! definition; where the log was shortened, a slice's own rows tell. First a [`RebuildPlan`] is made, which changes nothing
//! and can be shown; [`RebuildPlan::perform`] then writes it. Both may be repeated.
//!
//! A restore notes which intervals left the ledger and which came back, each with the run that it is from. The log is
//! followed in the order in which it was written, so an interval that was taken back does not come back by this.
//!
//! A run counts when all its tables have its commit. One that committed some of its tables only, and is known to no
//! registry that could finish it, leaves its interval out of the ledger of all its views: it is missing, and computing it
//! again makes it whole.

mod fates;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use futures::StreamExt;
use indexmap::IndexMap;
use serde::Serialize;
use tidegate_registry::care::{FoundInterval, FoundRun, Rebuild, ViewRebuild};
use tidegate_registry::ids::{DagName, RunId, SnapshotId, ViewId};
use tidegate_registry::model::{FeatureView, Project};
use tidegate_registry::restore::Slice;
use tidegate_registry::run::Cause;
use tidegate_registry::store::Store;
use tidegate_registry::time::{Instant, Interval};

use self::fates::{Fate, fates, open_intents};
use self::table::{Commit, RestoreCommit, Table, read, slices_at};
use crate::digest::Digester;
use crate::engine::{Engine, Joins};
use crate::lake::Lake;
use crate::lake::care::TableFile;
use crate::online::OnlineStore;
use crate::reads::{column, instant_literal, scan};
use crate::stage::digest_columns;

/// What a rebuild works with.
#[derive(Debug, Clone)]
pub struct RebuildParts {
    /// The registry, to which the project is applied.
    pub store: Arc<dyn Store>,
    /// The lake, claimed for the registry.
    pub lake: Lake,
    /// The online store; `None` for batch-only projects.
    pub online: Option<Arc<dyn OnlineStore>>,
    /// Reads rows where the log no longer tells.
    pub engine: Arc<Engine>,
    /// The definitions in force.
    pub project: Arc<Project>,
}

/// What would be made true, and why.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RebuildPlan {
    /// What is written.
    pub rebuild: Rebuild,
    /// Per view, for people.
    pub findings: Vec<Finding>,
    /// Views whose table is gone: an empty one is made.
    pub tables_lost: Vec<ViewId>,
    /// Snapshots whose files are gone: they expire, pinned ones too.
    pub snapshots_lost: Vec<SnapshotId>,
}

/// What was found about one view.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The view.
    pub view: ViewId,
    /// The newest version of its table; `None` when the table is gone.
    pub head: Option<u64>,
    /// The publish number that the table carries, or that of rows that were set aside when it is higher.
    pub mark: Option<u64>,
    /// The highest publish number that the registry had given out.
    pub known: u64,
    /// Intervals that the ledger did not have, or had from another run.
    pub adopted: Vec<Interval>,
    /// Intervals that leave the ledger.
    pub lost: Vec<Interval>,
    /// Of these, those of which some tables have the run's rows and others have not.
    pub half_published: Vec<Interval>,
    /// The table of rows that were set aside is gone, and with it these rows.
    pub quarantine_lost: bool,
    /// The table's last rows were computed by another definition than the project's files hold.
    pub other_definition: bool,
}

impl RebuildPlan {
    /// Whether the registry says already what the lake holds.
    pub fn is_empty(&self) -> bool {
        let same = |finding: &Finding| {
            finding.adopted.is_empty()
                && finding.lost.is_empty()
                && finding.mark.unwrap_or(0) <= finding.known
                && !finding.quarantine_lost
        };
        self.findings.iter().all(same)
            && self.rebuild.overtaken.is_empty()
            && self.tables_lost.is_empty()
            && self.snapshots_lost.is_empty()
    }

    /// The intervals of each DAG that the lake holds.
    pub fn intervals(&self) -> BTreeMap<DagName, BTreeSet<Interval>> {
        let mut intervals: BTreeMap<DagName, BTreeSet<Interval>> = BTreeMap::new();
        for run in self.rebuild.runs.values() {
            intervals.entry(run.dag.clone()).or_default().insert(run.interval);
        }
        intervals
    }

    /// Writes the plan. `ticks` are the grids of DAGs up to the last interval that was found.
    ///
    /// # Errors
    /// When a table cannot be made or the registry cannot be written: then all of this may be done again.
    pub async fn perform(
        mut self,
        parts: &RebuildParts,
        ticks: BTreeMap<DagName, Vec<Instant>>,
        actor: &str,
        now: Instant,
    ) -> Result<()> {
        let made = parts.lake.ensure_tables(&parts.project, &self.tables_lost).await?;
        for (view, version) in made {
            self.rebuild.views.entry(view).or_default().delta_version = version;
        }
        actor.clone_into(&mut self.rebuild.actor);
        self.rebuild.ticks = ticks;
        parts.store.rebuild(&self.rebuild, now).await.context("writing what the lake holds into the registry")?;
        for lost in &self.snapshots_lost {
            parts.store.snapshot_unpin(*lost, actor, now).await.context("letting go of a pin")?;
        }
        parts.store.snapshots_expire(&self.snapshots_lost, now).await.context("expiring snapshots")?;
        Ok(())
    }
}

/// Looks at every view of the project and decides what the registry must say.
///
/// # Errors
/// When registry, lake or online store cannot be read.
pub async fn plan(parts: &RebuildParts) -> Result<RebuildPlan> {
    let mut plan = RebuildPlan::default();
    let mut tables: IndexMap<ViewId, Option<Table>> = IndexMap::new();
    for view in parts.project.views.keys() {
        let table = read(parts, view, &mut plan.rebuild.runs).await.with_context(|| format!("looking at `{view}`"))?;
        tables.insert(view.clone(), table);
    }
    let open = open_intents(parts).await?;
    let fates = fates(&plan.rebuild.runs, &tables, &open);
    plan.rebuild.overtaken = fates.iter().filter(|(_, fate)| **fate == Fate::Overtaken).map(|(run, _)| *run).collect();
    for (id, table) in &tables {
        view(parts, id, table.as_ref(), &fates, &mut plan).await.with_context(|| format!("looking at `{id}`"))?;
    }
    settle_half_published(&fates, &tables, &mut plan);
    let of_view = |view: &ViewRebuild| -> Vec<RunId> {
        let found = view.found.iter().flat_map(|found| [found.run, found.by]);
        found.chain(view.left.iter().map(|(_, restore)| *restore)).collect()
    };
    let named: HashSet<RunId> = plan.rebuild.views.values().flat_map(of_view).collect();
    plan.rebuild.runs.retain(|run, _| named.contains(run));
    Ok(plan)
}

/// What was read of a view's quarantine table.
struct Aside {
    head: u64,
    mark: Option<u64>,
    /// Publish numbers and the versions at which they landed, as far as the log tells.
    versions: Vec<(u64, u64)>,
}

/// A view's quarantine table; `None` when there is none.
async fn read_aside(parts: &RebuildParts, id: &ViewId) -> Result<Option<Aside>> {
    let tables = parts.lake.quarantine();
    let log = tables.log_listing(id).await?;
    let Some(head) = log.head() else { return Ok(None) };
    tables.forget(id);
    let mark = tables.mark_of(&tables.load(id, None).await?, id).await?;
    let entries = tables.log_entries(id, log.entries.keys().copied().collect()).await?;
    let versions = entries.iter().filter_map(|(version, entry)| Some((entry.publish?, *version))).collect();
    Ok(Some(Aside { head, mark, versions }))
}

/// Decides about one view.
async fn view(
    parts: &RebuildParts,
    id: &ViewId,
    table: Option<&Table>,
    fates: &BTreeMap<RunId, Fate>,
    plan: &mut RebuildPlan,
) -> Result<()> {
    let definition = parts.project.views.get(id).context("it is not defined")?;
    let keep = parts.store.keep(std::slice::from_ref(id)).await?.shift_remove(id);
    let keep = keep.with_context(|| format!("the registry knows nothing of `{id}`: run `tidegate apply` first"))?;
    let live = match &parts.online {
        Some(online) => online.live(id).await.context("asking what is live online")?,
        None => None,
    };
    let live_number = live.as_ref().map_or(0, |live| live.publish_number);
    let aside = read_aside(parts, id).await?;
    let states = parts.store.view_states(std::slice::from_ref(id)).await?;
    let known_aside = states.get(id).and_then(|state| state.quarantine_version);
    let mut finding = Finding {
        view: id.clone(),
        head: table.map(|table| table.head),
        mark: table.and_then(|table| table.mark).max(aside.as_ref().and_then(|aside| aside.mark)),
        known: keep.publish_number,
        adopted: Vec::new(),
        lost: Vec::new(),
        half_published: Vec::new(),
        quarantine_lost: known_aside.is_some() && aside.is_none(),
        other_definition: false,
    };
    let mut what = ViewRebuild {
        publish_number: live_number.max(finding.mark.unwrap_or(0)),
        quarantine_version: aside.as_ref().map(|aside| aside.head),
        ..ViewRebuild::default()
    };
    // A table that the registry has published to and that carries no mark is another one, made since.
    match table.filter(|table| table.mark.is_some() || table.ledger.is_empty()) {
        Some(table) => {
            let all = table.all();
            let is_in_flight = |run: &RunId| fates.get(run) == Some(&Fate::InFlight);
            let first_in_flight = all.iter().find(|(_, _, run)| is_in_flight(run));
            what.delta_version = first_in_flight.map_or(table.head, |(version, ..)| version - 1);
            let recorded = all.iter().rfind(|(_, _, run)| !is_in_flight(run));
            what.recorded_number = match first_in_flight {
                Some(_) => recorded.map_or(0, |(_, number, _)| *number),
                None => table.mark.unwrap_or(0),
            };
            what.online_generation = live.map(|live| live.generation);
            let told = followed(id, table, fates, &mut plan.rebuild.runs);
            (what.found, what.left) = (told.found, told.left);
            for found in &mut what.found {
                let aside =
                    aside.iter().flat_map(|aside| &aside.versions).rfind(|(mark, _)| *mark <= found.publish_number);
                found.quarantine_version = aside.map(|(_, version)| *version);
            }
            // A restore that is under way may have changed more than the interval that it is listed under.
            let counted = match first_in_flight {
                Some(_) => slices_at(parts, id, what.delta_version).await?,
                None => table.slices.clone(),
            };
            for found in content_only(parts, definition, table, &counted, &mut plan.rebuild.runs).await? {
                what.found.insert(0, found);
            }
            for found in &what.found {
                if !table.whole.contains(&found.delta_version)
                    && let Some(run) = plan.rebuild.runs.get_mut(&found.run)
                {
                    run.restorable = false;
                }
            }
            for restore in &table.restores {
                let Some(run) = plan.rebuild.runs.get_mut(&restore.run) else { continue };
                run.restorable &= table.whole.contains(&restore.version);
                if let Some(landed) = run.restore.as_mut().and_then(|restore| restore.landed.get_mut(id)) {
                    let mut aside = aside.iter().flat_map(|aside| &aside.versions);
                    let by_then = aside.rfind(|(mark, _)| *mark <= restore.publish_number);
                    landed.quarantine_version = by_then.map(|(_, version)| *version);
                }
            }
            // Empty slices have no files, so only those with rows can be missed.
            let gone = table
                .ledger
                .values()
                .filter(|entry| entry.rows > 0 && !counted.contains_key(&entry.interval.start().timestamp_micros()));
            what.lost = gone.map(|entry| entry.interval).chain(told.gone).collect();
            what.lost.sort_unstable_by_key(|lost| (lost.start(), lost.end()));
            what.lost.dedup();
            let mut last: BTreeMap<Interval, RunId> =
                what.found.iter().map(|found| (found.interval, found.run)).collect();
            last.retain(|interval, _| !what.lost.contains(interval));
            if last.is_empty() && table.ledger.values().all(|entry| what.lost.contains(&entry.interval)) {
                // Nothing is published any more: what is live is empty, and no snapshot tells of it.
                what.online_generation = None;
            }
            let known = |interval: &Interval, run: &RunId| {
                table.ledger.get(&interval.start().timestamp_micros()).is_some_and(|entry| entry.run == *run)
            };
            let new = last.iter().filter(|(interval, run)| !known(interval, run));
            finding.adopted = new.map(|(interval, _)| *interval).collect();
            let newest =
                what.found.iter().max_by_key(|found| found.delta_version).filter(|_| !table.commits.is_empty());
            finding.other_definition = newest.is_some_and(|found| found.fingerprint != definition.fingerprint);
            // A live one cannot expire: that its files are gone is for the janitor to say, again and again.
            let unreadable = keep
                .snapshots
                .iter()
                .filter(|snapshot| !snapshot.live && !table.whole.contains(&snapshot.delta_version));
            plan.snapshots_lost.extend(unreadable.map(|snapshot| snapshot.id));
        }
        None => {
            let ledger = parts.store.ledger(id, None, 0).await?;
            what.lost = ledger.into_iter().map(|entry| entry.interval).collect();
            what.delta_version = table.map_or(0, |table| table.head);
            what.table_lost = true;
            if table.is_none() {
                plan.tables_lost.push(id.clone());
            }
        }
    }
    let known =
        |lost: &&Interval| table.is_none_or(|table| table.ledger.values().any(|entry| entry.interval == **lost));
    finding.lost = what.lost.iter().filter(known).copied().collect();
    plan.snapshots_lost.sort_unstable();
    plan.snapshots_lost.dedup();
    plan.rebuild.views.insert(id.clone(), what);
    plan.findings.push(finding);
    Ok(())
}

/// What following a log led to.
struct Followed {
    /// Publications in their order; of an interval the last one counts.
    found: Vec<FoundInterval>,
    /// Intervals that were taken back, and not published since.
    gone: BTreeSet<Interval>,
    /// Every interval that was taken back, with its restore.
    left: Vec<(Interval, RunId)>,
}

/// Follows the publications and restores of a view's log that count.
fn followed(
    id: &ViewId,
    table: &Table,
    fates: &BTreeMap<RunId, Fate>,
    runs: &mut BTreeMap<RunId, FoundRun>,
) -> Followed {
    let counts = |run: RunId| fates.get(&run) == Some(&Fate::Whole);
    let mut followed = Followed { found: Vec::new(), gone: BTreeSet::new(), left: Vec::new() };
    let mut restores =
        table.restores.iter().filter(|restore| fates.get(&restore.run) != Some(&Fate::InFlight)).peekable();
    for Commit { found } in table.commits.iter().filter(|commit| counts(commit.found.run)) {
        while let Some(restore) = restores.next_if(|restore| restore.version < found.delta_version) {
            follow_restore(id, restore, runs, &mut followed);
        }
        followed.gone.remove(&found.interval);
        followed.found.push(found.clone());
    }
    for restore in restores {
        follow_restore(id, restore, runs, &mut followed);
    }
    followed
}

fn follow_restore(id: &ViewId, restore: &RestoreCommit, runs: &mut BTreeMap<RunId, FoundRun>, followed: &mut Followed) {
    let RestoreCommit { run, version, publish_number, note } = restore;
    followed.gone.extend(note.leaves.iter().map(|slice| slice.interval));
    followed.left.extend(note.leaves.iter().map(|slice| (slice.interval, *run)));
    let of = |slice: &Slice| FoundInterval {
        interval: slice.interval,
        run: slice.run,
        delta_version: *version,
        publish_number: *publish_number,
        fingerprint: note.fingerprint.clone(),
        rows: slice.rows,
        digest: slice.digest.clone(),
        quarantined: 0,
        quarantine_version: None,
        by: *run,
    };
    for slice in note.comes_back.iter().chain(&note.newest) {
        followed.gone.remove(&slice.interval);
        let known = followed.found.iter().rfind(|found| found.interval == slice.interval && found.run == slice.run);
        let found = known.map_or_else(|| of(slice), |known| FoundInterval { by: *run, ..known.clone() });
        let of_run = runs.entry(slice.run).or_insert_with(|| FoundRun {
            dag: note.dag.clone(),
            interval: slice.interval,
            views: Vec::new(),
            cause: None,
            revision: 0,
            committed_at: DateTime::UNIX_EPOCH,
            restorable: false,
            restore: None,
        });
        if !of_run.views.contains(id) {
            of_run.views.push(id.clone());
        }
        followed.found.push(found);
    }
}

/// Intervals that only some of a run's tables have leave the ledger of all of them.
fn settle_half_published(
    fates: &BTreeMap<RunId, Fate>,
    tables: &IndexMap<ViewId, Option<Table>>,
    plan: &mut RebuildPlan,
) {
    for (run, fate) in fates {
        if !matches!(fate, Fate::Half | Fate::Overtaken) {
            continue;
        }
        let Some(found) = plan.rebuild.runs.get(run).cloned() else { continue };
        if found.cause == Some(Cause::Restore(*run)) {
            continue; // what it notes of each table holds for that table
        }
        for view in &found.views {
            let Some(what) = plan.rebuild.views.get_mut(view) else { continue };
            // Whoever published the interval after it has made it whole again.
            let later = what.found.iter().any(|other| {
                other.interval == found.interval
                    && plan.rebuild.runs.get(&other.run).is_some_and(|other| other.committed_at > found.committed_at)
            });
            if later {
                continue;
            }
            if !what.lost.contains(&found.interval) {
                what.lost.push(found.interval);
            }
            if let Some(finding) = plan.findings.iter_mut().find(|finding| finding.view == *view) {
                finding.half_published.push(found.interval);
                let table = tables.get(view).and_then(Option::as_ref);
                let known = table.and_then(|table| table.ledger.get(&found.interval.start().timestamp_micros()));
                if known.is_some_and(|entry| entry.interval == found.interval) {
                    finding.lost.push(found.interval);
                }
                finding.adopted.retain(|interval| *interval != found.interval);
            }
        }
    }
}

/// Slices of which the log no longer tells and the registry does not know: their own rows tell.
async fn content_only(
    parts: &RebuildParts,
    view: &FeatureView,
    table: &Table,
    slices: &BTreeMap<i64, Vec<TableFile>>,
    runs: &mut BTreeMap<RunId, FoundRun>,
) -> Result<Vec<FoundInterval>> {
    let of_runs = table.commits.iter().map(|commit| commit.found.interval);
    let of_restores =
        table.restores.iter().flat_map(|restore| restore.note.comes_back.iter().chain(&restore.note.newest));
    let told: HashSet<i64> = of_runs
        .chain(of_restores.map(|slice| slice.interval))
        .map(|interval| interval.start().timestamp_micros())
        .collect();
    let mut found = Vec::new();
    for (slice, files) in slices.iter().filter(|(slice, _)| !told.contains(slice)) {
        let is_known = table.ledger.get(slice).is_some_and(|entry| {
            let run = entry.run.to_string();
            files.iter().any(|file| file.path.split('/').nth(1) == Some(run.as_str()))
        });
        if is_known {
            continue;
        }
        let interval = read_slice(parts, view, table.head, *slice).await?;
        if table.ledger.get(slice).is_some_and(|entry| entry.digest == interval.digest) {
            continue;
        }
        let dag = parts.project.dags.values().find(|dag| dag.views.contains(&view.id));
        let run = runs.entry(interval.run).or_insert_with(|| FoundRun {
            dag: dag.map_or_else(unknown_dag, |dag| dag.name.clone()),
            interval: interval.interval,
            views: Vec::new(),
            cause: None,
            revision: 0,
            committed_at: DateTime::UNIX_EPOCH,
            restorable: false,
            restore: None,
        });
        if !run.views.contains(&view.id) {
            run.views.push(view.id.clone());
        }
        found.push(interval);
    }
    Ok(found)
}

fn unknown_dag() -> DagName {
    DagName::new("unknown").expect("a narrow name")
}

async fn read_slice(parts: &RebuildParts, view: &FeatureView, head: u64, slice: i64) -> Result<FoundInterval> {
    let start = DateTime::from_timestamp_micros(slice).context("a slice is out of range")?;
    let (parts, view) = (parts.clone(), view.clone());
    let engine = Arc::clone(&parts.engine);
    let work = async move {
        let ctx = parts.engine.context(Joins::Hash)?;
        let table = parts.lake.load(&view.id, Some(head)).await?;
        let rows = scan(&ctx, &table).await?.filter(column("interval_start").eq(instant_literal(start)))?;
        let mut digest = Digester::new(digest_columns(&parts.project, &view));
        let (mut count, mut about) = (0, None);
        let mut stream = rows.execute_stream().await?;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            if about.is_none() && batch.num_rows() > 0 {
                about = Some((text_of(&batch, "interval_end")?, text_of(&batch, "run_id")?));
            }
            digest.update(&batch)?;
            count += batch.num_rows() as u64;
        }
        let (end, run) = about.context("a slice has no rows")?;
        let end: Instant = end.parse().context("reading the end of an interval")?;
        let run: RunId = run.parse().context("reading the id of a run")?;
        anyhow::Ok(FoundInterval {
            interval: Interval::new(start, end)?,
            run,
            delta_version: head,
            publish_number: 0,
            fingerprint: view.fingerprint.clone(),
            rows: count,
            digest: digest.digest().to_string(),
            quarantined: 0,
            quarantine_version: None,
            by: run,
        })
    };
    engine.run(work).await?
}

/// The first value of a column as text.
fn text_of(batch: &datafusion::arrow::array::RecordBatch, name: &str) -> Result<String> {
    let column = batch.column_by_name(name).with_context(|| format!("the rows have no column `{name}`"))?;
    ensure!(!column.is_null(0), "the column `{name}` holds a null");
    let text = crate::text::TextColumn::new(column).with_context(|| format!("reading the column `{name}`"))?;
    let mut bytes = Vec::new();
    text.write(0, &mut bytes);
    String::from_utf8(bytes).with_context(|| format!("reading the column `{name}`"))
}
