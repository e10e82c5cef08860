//! The janitor: expires snapshots, shortens logs, deletes what nobody needs, compacts, prunes.
//!
//! A pass goes through the views one by one: read ([`facts`](self)), decide (`plan`), act. It is safe beside workers and
//! schedulers and may die anywhere: everything that it deletes is, at that moment, named by nothing that anybody may ask
//! for, so what a dead pass left undone is simply found again. Three things make that so:
//!
//! * Objects are listed *before* the registry and the log are read: whatever is named later was already there.
//! * What somebody could still name (files of open runs, snapshots that could be pinned or restored) is kept; a snapshot
//!   is expired in the registry before anything of it goes, and from then on nobody can ask for it.
//! * Right before deleting, registry and head are looked at again.
//!
//! A view's quarantine table is looked after in the same way: a snapshot names a version of both, since a restore brings
//! back what was set aside, too.
//!
//! delta-rs's own vacuum is not used: it knows neither staged files nor snapshots, and writes two commits.

mod compact;
mod plan;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::care::{PrunedRows, ViewKeep};
use tidegate_registry::definitions::settings::Retention;
use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::store::Store;
use tidegate_registry::time::{Clock, Instant};
use tokio_util::sync::CancellationToken;

use crate::drill::{self, DrillPlaces};
use crate::engine::Engine;
use crate::lake::Lake;
use crate::online::{OnlineStore, SUPERSEDED_AGE_MIN};
use plan::{TableFacts, TablePlan, expendable, needed};

pub use plan::{KeptFiles, Need, Size};

/// The duty of the registry that only one janitor has at a time.
const DUTY: &str = "janitor";
/// How long the duty lasts without being taken again, which happens before every view.
const DUTY_LEASE: Duration = Duration::from_secs(600);
/// How often a view is looked at again because it changed meanwhile, before it is left to the next pass.
const LOOKS_MAX: u32 = 3;
/// Objects deleted between two looks at the registry.
const DELETE_BATCH: usize = 1_000;

/// What a janitor works with.
#[derive(Debug, Clone)]
pub struct JanitorParts {
    /// The registry.
    pub store: Arc<dyn Store>,
    /// Project time.
    pub clock: Arc<dyn Clock>,
    /// The lake, claimed for the registry.
    pub lake: Lake,
    /// The online store; `None` for batch-only projects.
    pub online: Option<Arc<dyn OnlineStore>>,
    /// For compaction; without it none is done.
    pub engine: Option<Arc<Engine>>,
    /// What to keep.
    pub retention: Retention,
    /// Where drills that died left their copies; `None` to leave those alone.
    pub drills: Option<DrillPlaces>,
    /// Unique per process, as in `host:pid:start`.
    pub owner: String,
}

/// Removes what nobody needs.
#[derive(Debug, Clone)]
pub struct Janitor {
    parts: JanitorParts,
}

/// What a pass did, or with a dry run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Snapshots that can no longer be restored.
    pub expired: Vec<SnapshotId>,
    /// Per view.
    pub views: Vec<ViewReport>,
    /// Old rows of the registry (not counted by a dry run).
    pub rows: PrunedRows,
}

impl Report {
    /// What the audit trail tells of the pass: what is gone, view by view. `None` when nothing is.
    fn told(&self) -> Option<Value> {
        let mut views = serde_json::Map::new();
        for view in &self.views {
            let (files, log) = (view.removed.files, view.log_removed.files);
            if files + log > 0 || !view.compacted.is_empty() || !view.generations.is_empty() {
                let told = json!({
                    "files": files, "log": log, "compacted": view.compacted.len(), "generations": view.generations,
                });
                views.insert(view.view.to_string(), told);
            }
        }
        let PrunedRows { log_lines, outputs, notices } = self.rows;
        (!views.is_empty() || log_lines + outputs + notices > 0)
            .then(|| json!({ "views": views, "log_lines": log_lines, "outputs": outputs, "notices": notices }))
    }
}

/// What became of one view.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewReport {
    /// The view.
    pub view: ViewId,
    /// The newest version of its table; `None` when it has none.
    pub head: Option<u64>,
    /// Versions that can be asked for.
    pub versions_needed: usize,
    /// The oldest of them.
    pub oldest_needed: Option<u64>,
    /// Why that one is needed.
    pub oldest_why: Vec<Need>,
    /// Data files that go.
    pub removed: Size,
    /// Log entries and checkpoints that go.
    pub log_removed: Size,
    /// Data files that stay, by reason.
    pub kept: KeptFiles,
    /// Versions at which a checkpoint is written.
    pub checkpoints: Vec<u64>,
    /// Intervals whose files are put together.
    pub compacted: Vec<Instant>,
    /// Online generations that go (not known to a dry run).
    pub generations: Vec<u64>,
    /// Why nothing was done here, or not all of it.
    pub problem: Option<String>,
}

impl ViewReport {
    fn empty(view: &ViewId) -> Self {
        Self {
            view: view.clone(),
            head: None,
            versions_needed: 0,
            oldest_needed: None,
            oldest_why: Vec::new(),
            removed: Size::default(),
            log_removed: Size::default(),
            kept: KeptFiles::default(),
            checkpoints: Vec::new(),
            compacted: Vec::new(),
            generations: Vec::new(),
            problem: None,
        }
    }
}

impl Janitor {
    /// A janitor that has done nothing yet.
    pub fn new(parts: JanitorParts) -> Self {
        Self { parts }
    }

    /// One pass over everything. `None` when another process is at it.
    ///
    /// Trouble with one view is part of its report and stops no other.
    ///
    /// # Errors
    /// When the registry or the lake cannot be reached.
    pub async fn pass(&self, dry_run: bool) -> Result<Option<Report>> {
        self.pass_until(dry_run, &CancellationToken::new()).await
    }

    /// [`Janitor::pass`] that leaves the rest undone when `stop` says so: wherever it is then, the next pass goes on, as
    /// after its death.
    async fn pass_until(&self, dry_run: bool, stop: &CancellationToken) -> Result<Option<Report>> {
        let Parts { store, owner, .. } = &self.parts;
        // A dry run changes nothing, so it may look beside another.
        if !dry_run && !store.duty_take(DUTY, owner, DUTY_LEASE).await.context("taking the janitor's duty")? {
            return Ok(None);
        }
        let done = self.pass_on_duty(dry_run, stop).await;
        if !dry_run {
            store.duty_release(DUTY, owner).await.context("letting go of the janitor's duty")?;
        }
        done.map(Some)
    }

    async fn pass_on_duty(&self, dry_run: bool, stop: &CancellationToken) -> Result<Report> {
        let Parts { store, clock, lake, retention, owner, .. } = &self.parts;
        let begun = std::time::Instant::now();
        if let Some(places) = self.parts.drills.as_ref().filter(|_| !dry_run) {
            // What is left costs room, and nothing else.
            if let Err(error) = drill::sweep(&**store, lake, places, owner, &**clock).await {
                tracing::warn!("What drills left behind was not removed: {error:#}");
            }
        }
        let views = store.known_views().await.context("listing the views")?;
        let (_, project) = store.project(None).await.context("reading the definitions")?;
        let keeps = store.keep(&views).await.context("reading what must be kept")?;
        let mut expired = expendable(&keeps, retention, clock.now());
        if !dry_run && !expired.is_empty() {
            expired = store.snapshots_expire(&expired, clock.now()).await.context("expiring snapshots")?;
            fail::fail_point!("janitor.expired");
        }
        let now = lake.store_now().await?;
        let mut reports = Vec::with_capacity(views.len());
        for view in &views {
            if !dry_run {
                let ours = store.duty_take(DUTY, owner, DUTY_LEASE).await.context("keeping the janitor's duty")?;
                ensure!(ours, "another process took the janitor's duty: this pass stops");
            }
            let mut report = ViewReport::empty(view);
            let pretend: &[SnapshotId] = if dry_run { &expired } else { &[] };
            let seen_to = self.view(&project, view, pretend, dry_run, now, &mut report);
            match stop.run_until_cancelled(seen_to).await {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(view = %view, "The janitor left a view alone: {error:#}");
                    report.problem = Some(format!("{error:#}"));
                }
            }
            reports.push(report);
        }
        let mut rows = PrunedRows::default();
        if let Ok(age) = chrono::Duration::from_std(retention.log)
            && !dry_run
            && !stop.is_cancelled()
        {
            rows = store.rows_prune(clock.now() - age).await.context("removing old rows")?;
            fail::fail_point!("janitor.rows");
        }
        let report = Report { dry_run, expired, views: reports, rows };
        if let Some(told) = report.told().filter(|_| !dry_run) {
            let event = NewAuditEvent::new(clock.now(), owner, "janitor_pass", "registry");
            store.audit(event.took(begun.elapsed()).with(told)).await.context("noting what was removed")?;
        }
        Ok(report)
    }

    async fn view(
        &self,
        project: &Project,
        view: &ViewId,
        pretend_expired: &[SnapshotId],
        dry_run: bool,
        now: Instant,
        report: &mut ViewReport,
    ) -> Result<()> {
        let lake = &self.parts.lake;
        self.settle_compaction(view, dry_run).await?;
        let Some((facts, plan)) = self.table(lake, view, pretend_expired, dry_run, now).await? else { return Ok(()) };
        describe(&facts, &plan, report);
        if let Some((_, plan)) = self.table(&lake.quarantine(), view, pretend_expired, dry_run, now).await? {
            report.removed.add_all(&plan.files);
            report.log_removed.add_all(&plan.log);
        }
        if dry_run {
            report.compacted = compact::candidates(lake, view, &facts).await?;
            return Ok(());
        }
        self.prune_online(project, view, report).await?;
        if let (Some(engine), Some(_)) = (&self.parts.engine, project.views.get(view)) {
            report.compacted = compact::compact(&self.parts, engine, project, view).await?;
        }
        Ok(())
    }

    /// Decides over one of a view's tables in `lake`, and does it unless this is a dry run. `None` when there is none.
    async fn table(
        &self,
        lake: &Lake,
        view: &ViewId,
        pretend_expired: &[SnapshotId],
        dry_run: bool,
        now: Instant,
    ) -> Result<Option<(TableFacts, TablePlan)>> {
        let Parts { store, retention, .. } = &self.parts;
        for look in 1.. {
            let Some(facts) = self.facts(lake, view, pretend_expired, now).await? else { return Ok(None) };
            let plan = plan::plan(view, &facts, retention.staged, now);
            if dry_run {
                return Ok(Some((facts, plan)));
            }
            if !self.unchanged(lake, view, &facts).await? {
                ensure!(look < LOOKS_MAX, "`{view}` changes all the time: the next pass tries again");
                continue;
            }
            for version in &plan.checkpoints {
                lake.checkpoint(view, *version).await?;
            }
            lake.delete(view, plan.log.iter().map(|object| object.path.clone()).collect()).await?;
            if !plan.log.is_empty() {
                // What is remembered of the table may begin before the log does.
                lake.forget(view);
            }
            for batch in plan.files.chunks(DELETE_BATCH) {
                let open: BTreeSet<_> = store.open_run_ids().await?.into_iter().collect();
                let batch =
                    batch.iter().filter(|object| plan::run_of(&object.path).is_none_or(|run| !open.contains(&run)));
                lake.delete(view, batch.map(|object| object.path.clone()).collect()).await?;
                fail::fail_point!("janitor.deleted");
            }
            return Ok(Some((facts, plan)));
        }
        Ok(None)
    }

    /// Everything that the decision needs; `None` when the view has no table.
    async fn facts(
        &self,
        lake: &Lake,
        view: &ViewId,
        pretend_expired: &[SnapshotId],
        now: Instant,
    ) -> Result<Option<TableFacts>> {
        let Parts { store, retention, .. } = &self.parts;
        // The order matters: see the module.
        let objects = lake.data_listing(view).await?;
        let open_runs: BTreeSet<_> = store.open_run_ids().await?.into_iter().collect();
        let Some(mut keep) = self.keep(lake, view).await? else { return Ok(None) };
        keep.snapshots.retain(|snapshot| !pretend_expired.contains(&snapshot.id));
        let log = lake.log_listing(view).await?;
        let Some(head) = log.head() else { return Ok(None) };
        // A registry that is older than the lake does not know what must be kept.
        lake.require_known(view, keep.publish_number).await?;
        let oldest = needed(&keep, &log, retention.staged, now).keys().next().copied().unwrap_or(head);
        let base = lake.load(view, Some(oldest)).await.with_context(|| {
            format!("version {oldest} of `{view}` is needed and cannot be read, so nothing of it is touched")
        })?;
        let base_files = Lake::files_of(&base)?.into_iter().map(|file| (file.path, file.size)).collect();
        let entries = lake.log_entries(view, (oldest + 1..=head).collect()).await?;
        Ok(Some(TableFacts { keep, open_runs, log, base_files, entries, objects }))
    }

    /// What the registry says must be kept of one of a view's tables.
    async fn keep(&self, lake: &Lake, view: &ViewId) -> Result<Option<ViewKeep>> {
        let store = &self.parts.store;
        let keep = store.keep(std::slice::from_ref(view)).await?.shift_remove(view);
        let Some(mut keep) = keep else { return Ok(None) };
        if !lake.is_quarantine() {
            return Ok(Some(keep));
        }
        let states = store.view_states(std::slice::from_ref(view)).await?;
        let recorded = states.get(view).and_then(|state| state.quarantine_version);
        keep.delta_version = recorded.unwrap_or_default();
        keep.snapshots.retain_mut(|snapshot| {
            snapshot.delta_version = snapshot.quarantine_version.unwrap_or_default();
            snapshot.quarantine_version.is_some()
        });
        keep.pinned_versions.clear();
        keep.targets = std::mem::take(&mut keep.quarantine_targets);
        Ok(Some(keep))
    }

    /// Whether registry and head are still as `facts` says.
    async fn unchanged(&self, lake: &Lake, view: &ViewId, facts: &TableFacts) -> Result<bool> {
        let keep = self.keep(lake, view).await?;
        let head = lake.load(view, None).await?.version();
        Ok(keep.as_ref() == Some(&facts.keep) && head == facts.log.head())
    }

    /// Records a compaction that landed and whose recording did not.
    async fn settle_compaction(&self, view: &ViewId, dry_run: bool) -> Result<()> {
        let Parts { lake, store, .. } = &self.parts;
        if !dry_run
            && let Some(keep) = store.keep(std::slice::from_ref(view)).await?.shift_remove(view)
            && keep.publishing.is_none()
            && let Some(head) = lake.log_listing(view).await?.head()
            && let Some((number, version)) = compact::unrecorded(lake, view, keep.delta_version, head).await?
        {
            store.compaction_record(view, number, version).await?;
        }
        Ok(())
    }

    async fn prune_online(&self, project: &Project, view: &ViewId, report: &mut ViewReport) -> Result<()> {
        let Some(online) = &self.parts.online else { return Ok(()) };
        // Below the number that is live nobody fills a generation any more.
        let Some(live) = online.live(view).await.with_context(|| format!("asking what is live of `{view}`"))? else {
            return Ok(());
        };
        let keep = project.views.get(view).and_then(|view| view.online.as_ref()).map_or(0, |online| online.keep);
        report.generations = online
            .prune(view, keep, superseded_age(), live.publish_number)
            .await
            .with_context(|| format!("removing old generations of `{view}`"))?;
        Ok(())
    }

    /// Passes again and again, `every` so often, until `cancel`. Trouble is logged and tried again.
    pub async fn run(&self, every: Duration, cancel: CancellationToken) {
        loop {
            match self.pass_until(false, &cancel).await {
                Ok(_) if cancel.is_cancelled() => {
                    tracing::debug!("The janitor stopped; the next one goes on.");
                    return;
                }
                Ok(Some(report)) => tracing::info!(
                    expired = report.expired.len(),
                    files = report.views.iter().map(|view| view.removed.files).sum::<u64>(),
                    bytes = report.views.iter().map(|view| view.removed.bytes).sum::<u64>(),
                    views_left_alone = report.views.iter().filter(|view| view.problem.is_some()).count(),
                    "The janitor has been."
                ),
                Ok(None) => tracing::debug!("Another process is the janitor now."),
                Err(error) => tracing::warn!("The janitor could not do its work and tries again: {error:#}"),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
        }
    }
}

use JanitorParts as Parts;

/// How long a generation stays online after another took its place; tests do not wait for it.
fn superseded_age() -> Duration {
    fail::fail_point!("prune.now", |_| Duration::ZERO);
    SUPERSEDED_AGE_MIN
}

fn describe(facts: &TableFacts, plan: &TablePlan, report: &mut ViewReport) {
    report.head = facts.log.head();
    report.versions_needed = plan.needed.len();
    report.oldest_needed = plan.needed.keys().next().copied();
    report.oldest_why = plan.needed.values().next().map(|why| why.iter().cloned().collect()).unwrap_or_default();
    report.removed = Size::of(&plan.files);
    report.log_removed = Size::of(&plan.log);
    report.kept = plan.kept;
    report.checkpoints.clone_from(&plan.checkpoints);
}
