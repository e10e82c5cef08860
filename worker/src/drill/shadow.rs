//! The copy that a drill works on: a registry, a lake and an online store in which nothing tells that they are not real.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indexmap::IndexMap;
use tidegate_registry::drill::DrillCost;
use tidegate_registry::ids::{DrillId, RunId, SnapshotId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{LedgerEntry, Store};
use tidegate_registry::time::Clock;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::DrillParts;
use crate::execute::Parts;
use crate::lake::Lake;
use crate::online::ShadowOnline;
use crate::serving::{AuditOptions, Rebuilt, Serving};
use crate::sources::Sources;
use crate::timing::sleep;
use crate::{Hands, Worker, WorkerOptions};

/// How often a copy is made anew because a run was publishing one of the views, and how long after the other.
const LOOKS_MAX: u32 = 60;
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a task of the copy stays with a worker that says nothing.
const LEASE: Duration = Duration::from_secs(60);
/// Entities that are compared online after each restore.
const SAMPLE: u64 = 10_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Shadow {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) lake: Lake,
    pub(super) online: Option<ShadowOnline>,
    /// The definitions as they were copied.
    pub(super) project: Project,
    /// What was recorded last when it was copied: whatever is restored, is restored to it. Of nobody when nothing ever was,
    /// and then no view takes part.
    pub(super) newest: SnapshotId,
    /// The views that take part, as they were copied.
    pub(super) views: IndexMap<ViewId, Baseline>,
    pub(super) left_out: Vec<(ViewId, String)>,
    pub(super) cost: DrillCost,
    /// Runs begun in it, so that each is told from the others.
    pub(super) runs: u32,
    parts: DrillParts,
}

/// What a view was when it was copied.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Baseline {
    pub(super) ledger: Vec<LedgerEntry>,
    pub(super) version: u64,
    /// The files of its table, and those of its quarantine table.
    files: BTreeSet<String>,
    aside: BTreeSet<String>,
    /// Whether it is online, and what readers are told that it is.
    pub(super) tag: Option<String>,
}

impl Shadow {
    /// Copies what is live of `views`.
    ///
    /// # Errors
    /// When something cannot be read or copied, or runs publish the views again and again.
    pub(super) async fn make(parts: &DrillParts, id: DrillId, views: &[ViewId]) -> Result<Self> {
        let store = copy_registry(parts, views).await?;
        let lake = parts.lake.shadow(id)?;
        let (_, project) = store.project(None).await.context("reading the definitions")?;
        let newest = store.snapshots(None, None, 1).await?;
        let mut shadow = Self {
            clock: Arc::clone(&parts.clock),
            lake,
            online: ShadowOnline::open(&parts.places.online(id)).await.context("opening an online store beside")?,
            newest: newest.first().map_or(SnapshotId(uuid::Uuid::nil()), |newest| newest.id),
            project,
            views: IndexMap::new(),
            left_out: Vec::new(),
            cost: DrillCost::default(),
            runs: 0,
            parts: parts.clone(),
            store,
        };
        for view in views {
            match shadow.copy_view(view).await.with_context(|| format!("copying `{view}`"))? {
                Ok(baseline) => _ = shadow.views.insert(view.clone(), baseline),
                Err(why) => shadow.left_out.push((view.clone(), why.to_owned())),
            }
        }
        Ok(shadow)
    }

    /// Copies one view; the reason when it takes no part.
    async fn copy_view(&mut self, view: &ViewId) -> Result<Result<Baseline, &'static str>> {
        let states = self.store.view_states(std::slice::from_ref(view)).await?;
        let Some(state) = states.get(view) else { return Ok(Err("it has no table yet")) };
        let Some(definition) = self.project.views.get(view) else { return Ok(Err("it is not defined")) };
        if self.project.dag_of(view).is_none() {
            return Ok(Err("no DAG runs it"));
        }
        let ledger = self.store.ledger(view, None, 0).await?;
        if ledger.is_empty() {
            return Ok(Err("nothing of it is published"));
        }
        let is_online = definition.online.is_some() && state.online_generation.is_some();
        let real = &self.parts.lake;
        let table = real.copy_table(&self.lake, view, state.delta_version).await?;
        self.cost.files += table.files;
        self.cost.bytes += table.bytes;
        if let Some(version) = state.quarantine_version {
            let aside = real.quarantine().copy_table(&self.lake.quarantine(), view, version).await?;
            self.cost.files += aside.files;
            self.cost.bytes += aside.bytes;
        }
        let mut tag = None;
        if let Some(serving) = self.serving().filter(|_| is_online) {
            self.cost.entities += fill(&serving, view).await?;
            tag = serving.online.live(view).await?.map(|live| live.tag);
        }
        let files = files(&self.lake, view, state.delta_version).await?;
        let aside = match state.quarantine_version {
            Some(version) => self::files(&self.lake.quarantine(), view, version).await?,
            None => BTreeSet::new(),
        };
        Ok(Ok(Baseline { ledger, version: state.delta_version, files, aside, tag }))
    }

    /// What executes tasks in the copy.
    pub(super) fn executor(&self) -> Result<Parts> {
        let root = self.lake.root().to_string();
        let scratch = &self.parts.places.scratch;
        // The only source of the copy is the copy.
        let sources = Sources::with_stores(scratch, &[root], self.parts.stores.clone())?;
        Ok(Parts {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            lake: self.lake.clone(),
            online: self.online.as_ref().map(|online| Arc::clone(&online.store)),
            sources,
            engine: Arc::clone(&self.parts.engine),
            owner: self.parts.owner.clone(),
        })
    }

    /// What brings the copy's features online.
    pub(super) fn serving(&self) -> Option<Serving> {
        Some(Serving {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            lake: self.lake.clone(),
            online: Arc::clone(&self.online.as_ref()?.store),
            engine: Arc::clone(&self.parts.engine),
            owner: self.parts.owner.clone(),
        })
    }

    /// Carries runs of the copy out, as any worker does.
    pub(super) async fn work(&self, runs: &[RunId]) -> Result<Vec<Run>> {
        let hands = Hands {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            executor: Arc::new(self.executor()?),
            wake: Arc::new(Notify::new()),
            progress: Arc::new(Notify::new()),
        };
        let options = WorkerOptions {
            owner: self.parts.owner.clone(),
            lease: LEASE,
            slots: 1,
            queues: Vec::new(),
            host: String::new(),
            memory_bytes: 0,
            spill_dir: self.parts.places.scratch.clone(),
        };
        Worker::with_hands(hands, options).run_only(runs, CancellationToken::new()).await?;
        let mut done = Vec::with_capacity(runs.len());
        for run in runs {
            done.push(self.store.run(*run).await?.0);
        }
        Ok(done)
    }

    /// What of a view is not as it was when it was copied.
    pub(super) async fn differs(&self, view: &ViewId, was: &Baseline) -> Result<Vec<String>> {
        let states = self.store.view_states(std::slice::from_ref(view)).await?;
        let state = states.get(view).context("it has no state")?;
        let mut wrong = Vec::new();
        if self.store.ledger(view, None, 0).await? != was.ledger {
            wrong.push(format!("{view}: other intervals are published than before"));
        }
        if files(&self.lake, view, state.delta_version).await? != was.files {
            wrong.push(format!("{view}: its table is made of other files than before"));
        }
        if let Some(version) = state.quarantine_version
            && files(&self.lake.quarantine(), view, version).await? != was.aside
        {
            wrong.push(format!("{view}: its quarantine table is made of other files than before"));
        }
        if let (Some(serving), Some(tag)) = (self.serving(), &was.tag) {
            let live = serving.online.live(view).await?;
            if live.as_ref().map(|live| &live.tag) != Some(tag) {
                let found = live.map_or_else(|| "nothing".to_owned(), |live| format!("`{}`", live.tag));
                wrong.push(format!("{view}: {found} is live online instead of `{tag}`"));
            }
            wrong.extend(audit(&serving, view, Some(SAMPLE)).await?.err());
        }
        Ok(wrong)
    }

    /// The copy with an online store that lost everything.
    pub(super) async fn online_lost(self) -> Result<Self> {
        let online = match self.online {
            Some(online) => online.lost().await.context("emptying the copy of the online store")?,
            None => None,
        };
        Ok(Self { online, ..self })
    }

    /// Lets go of everything, so that it can be removed.
    pub(super) async fn close(self) {
        if let Some(online) = self.online {
            online.store.close().await;
        }
    }
}

/// A copy of the registry in which no run is publishing one of the views: what such a run commits is not recorded yet.
async fn copy_registry(parts: &DrillParts, views: &[ViewId]) -> Result<Arc<dyn Store>> {
    let scratch = &parts.places.scratch;
    for look in 0..LOOKS_MAX {
        super::remove_folder(scratch).await?;
        tokio::fs::create_dir_all(scratch)
            .await
            .with_context(|| format!("creating the folder `{}`", scratch.display()))?;
        let file = scratch.join("registry.db");
        parts.store.backup(&file).await.context("copying the registry")?;
        let copy = (parts.open_copy)(file).await.context("opening the copy of the registry")?;
        let open = copy.runs_open().await?;
        let publishes = |run: &&Run| run.state == RunState::Publishing && run.views.iter().any(|id| views.contains(id));
        match open.iter().find(publishes) {
            None => return Ok(copy),
            Some(run) if look == 0 => tracing::info!(run.id = %run.id, "The drill waits until a run has published."),
            Some(_) => {}
        }
        drop(copy);
        sleep(LOOK_AGAIN).await;
    }
    bail!("the views are being published all the time: no moment was found at which to copy them")
}

/// Fills the copy of the online store with what should be live of a view; how many entities.
pub(super) async fn fill(serving: &Serving, view: &ViewId) -> Result<u64> {
    let mut entities = 0;
    for member in serving.of_each_member() {
        match member.rebuild(view).await.with_context(|| format!("filling the online store with `{view}`"))? {
            Rebuilt::Filled { rows, .. } => entities = rows,
            Rebuilt::Whole | Rebuilt::NeverPublished => {}
            Rebuilt::Ahead | Rebuilt::Busy => bail!("somebody else writes the copy of the online store"),
        }
    }
    Ok(entities)
}

/// Compares what is online with the lake; a sentence either way.
pub(super) async fn audit(serving: &Serving, view: &ViewId, sample: Option<u64>) -> Result<Result<String, String>> {
    let mut said = String::new();
    for member in serving.of_each_member() {
        let found = member.audit(view, AuditOptions { sample, repair: false }).await?;
        if found.differing() > 0 {
            let first = found.examples.first().cloned().unwrap_or_default();
            return Ok(Err(format!(
                "{view}: {} of {} entities differ online from the lake, as {first}",
                found.differing(),
                found.compared
            )));
        }
        said = format!("{view}: {} of {} entities compared, all online as in the lake", found.compared, found.entities);
    }
    ensure!(!said.is_empty(), "there is no online store");
    Ok(Ok(said))
}

async fn files(lake: &Lake, view: &ViewId, version: u64) -> Result<BTreeSet<String>> {
    let files = Lake::files_of(&lake.load(view, Some(version)).await?)?;
    Ok(files.into_iter().map(|file| file.path).collect())
}
