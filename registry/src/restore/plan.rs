//! What a restore would do: [`plan`], over what the registry knows. Whether the lake still has what it takes is asked by
//! whoever executes it, before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::{IndexMap, IndexSet};

use super::{AsOf, HoldPolicy, OnlineTarget, RestorePlan, RestoreRequest, Slice, TableTarget, ViewRestore};
use crate::ids::{DagName, RunId, SnapshotId, ViewId};
use crate::model::{FeatureView, Output, Project, Strategy};
use crate::run::{Cause, NewRun, Pins, Run, RunState};
use crate::store::{LedgerEntry, Snapshot, SnapshotView, Store, StoreError, ViewState};
use crate::time::{Instant, Interval, format_instant};

/// Later than every snapshot: what is now.
const NOW: u64 = i64::MAX as u64;

/// Where to go back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// What was when this snapshot was recorded.
    To(SnapshotId),
    /// What was live at that time, by when it was recorded.
    At(Instant),
    /// What was live before, restores and bad snapshots aside.
    LastGood,
    /// What is now, but for the intervals that this run published.
    Run(RunId),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::To(snapshot) => write!(f, "--to {snapshot}"),
            Self::At(at) => write!(f, "--at {}", format_instant(*at)),
            Self::LastGood => f.write_str("--last-good"),
            Self::Run(run) => write!(f, "--run {run}"),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The views; of a run that is taken back, those of it that are meant (empty: all).
    pub views: Vec<ViewId>,
    /// Where to.
    pub target: Target,
    /// Whether views that were computed from what is taken back go back with it.
    pub cascade: bool,
    /// What becomes of runs afterwards.
    pub hold_policy: HoldPolicy,
}

impl Asked {
    fn means(&self, view: &ViewId) -> bool {
        self.views.is_empty() || self.views.contains(view)
    }
}

/// A view that is computed from what is restored, and is not restored itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downstream {
    /// The view.
    pub view: ViewId,
    /// Whether something that it publishes now was computed from what is taken back.
    pub built_on_it: bool,
}

/// A restore as it could be begun.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The request, but for who and why.
    pub request: RestoreRequest,
    /// Views computed from what is restored.
    pub downstream: Vec<Downstream>,
}

impl Planned {
    /// Whether everything is already as asked for.
    pub fn is_nothing(&self) -> bool {
        self.request.plan.views.is_empty()
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It cannot be done, with every reason.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// The registry did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The definitions by which a restore is planned.
#[derive(Debug, Clone, Copy)]
pub struct Definitions<'a> {
    /// Their revision.
    pub revision: i64,
    /// What they are.
    pub project: &'a Project,
}

/// Plans a restore, which will be the run `id`.
///
/// # Errors
/// [`PlanError::Refused`] with everything that stands in the way.
pub async fn plan(
    store: &dyn Store,
    definitions: Definitions<'_>,
    asked: &Asked,
    id: RunId,
    now: Instant,
) -> Result<Planned, PlanError> {
    let project = definitions.project;
    let mut planning = Planning { store, project, id, views: BTreeMap::new(), problems: Vec::new() };
    match &asked.target {
        Target::Run(run) => planning.take_back(*run, asked).await?,
        target => planning.go_back(target, asked).await?,
    }
    planning.settle()?;
    let changed: Vec<ViewId> = planning.views.keys().cloned().collect();
    let supersedes = planning.unfinished(asked).await?;
    planning.settle()?;
    let views = planning.in_order();
    let descendants: Vec<ViewId> = project.descendants_of(&changed).into_iter().cloned().collect();
    let affected: BTreeSet<ViewId> = changed.iter().chain(&descendants).cloned().collect();
    let mut downstream = Vec::new();
    for view in descendants.into_iter().filter(|view| !changed.contains(view)) {
        let built_on_it = planning.first_built_on(&view).await?.is_some();
        downstream.push(Downstream { view, built_on_it });
    }
    let states = store.view_states(&views.keys().cloned().collect::<Vec<_>>()).await?;
    let (dag, interval) = listed(store, project, &views).await?;
    let request = RestoreRequest {
        id,
        dag,
        interval,
        definitions: definitions.revision,
        plan: RestorePlan {
            asked: asked.target.to_string(),
            holds: changed.into_iter().filter(|view| asked.means(view)).collect(),
            hold_policy: asked.hold_policy,
            views,
        },
        records: states.iter().map(|(view, state)| (view.clone(), state.records)).collect(),
        supersedes,
        stops: stops(store, definitions, id, &affected).await?,
        affected,
        actor: String::new(),
        reason: String::new(),
        now,
    };
    Ok(Planned { request, downstream })
}

/// The DAG and the interval that a restore is listed under.
async fn listed(
    store: &dyn Store,
    project: &Project,
    views: &IndexMap<ViewId, ViewRestore>,
) -> Result<(DagName, Interval), PlanError> {
    let nobody = || PlanError::Refused(vec!["nothing of this was ever published".to_owned()]);
    let Some((view, restore)) = views.first() else {
        // Nothing changes, and nothing will be listed.
        let dag = project.dags.keys().next().cloned().ok_or_else(nobody)?;
        let (start, end) = (Instant::UNIX_EPOCH, Instant::UNIX_EPOCH + chrono::Duration::seconds(1));
        return Ok((dag, Interval::new(start, end).map_err(|_| nobody())?));
    };
    let interval = match restore.newest.as_ref().or_else(|| restore.leaves.first()) {
        Some(slice) => slice.interval,
        // Only an unfinished first publication is taken back.
        None => {
            let open = store.runs_open().await?.into_iter().find(|run| run.views.contains(view));
            open.ok_or_else(nobody)?.interval
        }
    };
    let dag = match project.dag_of(view) {
        Some(dag) => dag.name.clone(),
        None => store.snapshots(None, Some(view), 1).await?.pop().ok_or_else(nobody)?.dag,
    };
    Ok((dag, interval))
}

/// Open runs without an intent that write or read what is restored, with those that take their places.
async fn stops(
    store: &dyn Store,
    definitions: Definitions<'_>,
    id: RunId,
    affected: &BTreeSet<ViewId>,
) -> Result<Vec<(RunId, Option<NewRun>)>, StoreError> {
    let project = definitions.project;
    let stays = |view: &&ViewId| !affected.contains(*view) && project.views.contains_key(*view);
    let replaced = |run: Run| {
        let views: Vec<ViewId> = run.views.iter().filter(stays).cloned().collect();
        let dag = project.dags.get(&run.dag).filter(|_| !views.is_empty());
        let new = dag.map(|dag| NewRun {
            dag: run.dag.clone(),
            interval: run.interval,
            views,
            cause: Cause::Restore(id),
            definitions: definitions.revision,
            attempts_max: 1 + dag.retries.max,
            priority: dag.priority,
        });
        (run.id, new)
    };
    let is_hit = |run: &Run| run.state != RunState::Publishing && run.views.iter().any(|view| affected.contains(view));
    Ok(store.runs_open().await?.into_iter().filter(is_hit).map(replaced).collect())
}

struct Planning<'a> {
    store: &'a dyn Store,
    project: &'a Project,
    id: RunId,
    views: BTreeMap<ViewId, ViewRestore>,
    problems: Vec<String>,
}

impl Planning<'_> {
    fn settle(&mut self) -> Result<(), PlanError> {
        if self.problems.is_empty() { Ok(()) } else { Err(PlanError::Refused(std::mem::take(&mut self.problems))) }
    }

    /// Parents first.
    fn in_order(&self) -> IndexMap<ViewId, ViewRestore> {
        let names: Vec<ViewId> = self.views.keys().cloned().collect();
        let order = self.project.in_dependency_order(&names).into_iter();
        order.filter_map(|view| Some((view.clone(), self.views.get(view)?.clone()))).collect()
    }

    async fn go_back(&mut self, target: &Target, asked: &Asked) -> Result<(), PlanError> {
        let number = match target {
            Target::To(snapshot) => self.store.snapshot_number(*snapshot).await?,
            Target::At(at) => self.store.number_at(*at).await?,
            Target::LastGood | Target::Run(_) => {
                let good = self.store.good_numbers(&asked.views, 1).await?;
                let Some((number, _)) = good.first() else {
                    let names: Vec<String> = asked.views.iter().map(|view| format!("`{view}`")).collect();
                    self.problems.push(format!(
                        "there is no good snapshot of {} before what is live: `tidegate snapshots list` shows all",
                        names.join(", ")
                    ));
                    return Ok(());
                };
                *number
            }
        };
        for view in &asked.views {
            self.view_as_of(view, number).await?;
        }
        if asked.cascade {
            let roots: Vec<ViewId> = self.views.keys().cloned().collect();
            let below: Vec<ViewId> = self.project.descendants_of(&roots).into_iter().cloned().collect();
            for view in self.project.in_dependency_order(&below) {
                if !asked.views.contains(view)
                    && let Some(first) = self.first_built_on(view).await?
                {
                    self.view_as_of(view, first - 1).await?;
                }
            }
        }
        Ok(())
    }

    /// The number of the first snapshot of `view`, of those that are published now, that was computed from something that
    /// is taken back.
    async fn first_built_on(&self, view: &ViewId) -> Result<Option<u64>, StoreError> {
        let Some(definition) = self.project.views.get(view) else { return Ok(None) };
        let parents: IndexSet<&ViewId> =
            definition.view_reads().filter(|read| self.views.contains_key(*read)).collect();
        if parents.is_empty() {
            return Ok(None);
        }
        let published: BTreeSet<SnapshotId> =
            self.store.ledger(view, None, 0).await?.into_iter().map(|entry| entry.snapshot).collect();
        let mut first = None;
        // Newest first.
        for snapshot in self.store.snapshots(None, Some(view), 0).await? {
            if published.contains(&snapshot.id) {
                let reads = self.store.reads_of(snapshot.run).await?.unwrap_or_default();
                if parents.iter().any(|parent| self.is_built_on(&snapshot, &reads, parent)) {
                    first = Some(snapshot.number);
                }
            }
        }
        Ok(first)
    }

    fn is_built_on(&self, snapshot: &Snapshot, reads: &Pins, parent: &ViewId) -> bool {
        let Some(restore) = self.views.get(parent) else { return false };
        if restore.leaves.iter().any(|slice| slice.snapshot == snapshot.id) {
            return true; // computed in one run with its parent
        }
        let Some(pin) = reads.views.get(parent) else { return false };
        match restore.table.slices.as_slice() {
            [] => restore.table.version.is_none_or(|version| pin.delta_version > version),
            // Of one run that is taken back: whoever read its interval since.
            slices => slices.iter().any(|(interval, before)| {
                pin.state == Some(*interval) && before.is_none_or(|before| pin.delta_version > before)
            }),
        }
    }

    async fn state(&mut self, view: &ViewId) -> Result<Option<(FeatureView, ViewState)>, StoreError> {
        let Some(definition) = self.project.views.get(view) else {
            self.problems.push(format!("`{view}` is no longer defined: apply a definition of it first"));
            return Ok(None);
        };
        let mut states = self.store.view_states(std::slice::from_ref(view)).await?;
        let Some(state) = states.swap_remove(view) else {
            self.problems.push(format!("`{view}` has no table yet: run `tidegate apply`"));
            return Ok(None);
        };
        Ok(Some((definition.clone(), state)))
    }

    /// Takes `view` back to what it was when the snapshot numbered `number` was recorded.
    async fn view_as_of(&mut self, view: &ViewId, number: u64) -> Result<(), PlanError> {
        let Some((definition, state)) = self.state(view).await? else { return Ok(()) };
        let then = self.store.as_of(view, number).await?;
        let now = self.store.ledger(view, None, 0).await?;
        let (leaves, comes_back) = difference(&now, &then.ledger);
        if leaves.is_empty() && comes_back.is_empty() {
            return Ok(());
        }
        if then.expired {
            self.problems.push(format!(
                "what `{view}` was then has expired, and retention let go of it: `tidegate snapshots list --view {view}` \
                 shows what there is"
            ));
            return Ok(());
        }
        let newest = then.ledger.first().cloned().map(Slice::from);
        let restore = ViewRestore {
            from_version: state.delta_version,
            table: TableTarget { version: then.delta_version, slices: Vec::new() },
            quarantine: state
                .quarantine_version
                .map(|_| TableTarget { version: then.quarantine_version, slices: Vec::new() }),
            online: self.online(&definition, &state, &then).await?,
            leaves,
            comes_back,
            fingerprint: self.fingerprint(newest.as_ref(), &definition).await?,
            newest,
            only_unfinished: false,
        };
        self.views.insert(view.clone(), restore);
        Ok(())
    }

    /// Takes the intervals back that one run published.
    async fn take_back(&mut self, run: RunId, asked: &Asked) -> Result<(), PlanError> {
        if asked.cascade {
            self.problems.push("`--cascade` goes with `--to`, `--at` and `--last-good`".to_owned());
            return Ok(());
        }
        let (of_run, _) = self.store.run(run).await?;
        if matches!(of_run.cause, Cause::Restore(id) if id == run) {
            let problem = format!("the run `{run}` is a restore: go back to the snapshot before it with `--to`");
            self.problems.push(problem);
            return Ok(());
        }
        let number = match self.store.snapshot_number(SnapshotId(run.0)).await {
            Ok(number) => number,
            Err(StoreError::NotFound { .. }) => {
                self.problems.push(format!("the run `{run}` has published nothing: it is {}", of_run.state));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for view in &of_run.views {
            if asked.means(view) {
                self.view_without(view, &of_run, number).await?;
            }
        }
        if let Some(stranger) = asked.views.iter().find(|view| !of_run.views.contains(view)) {
            self.problems.push(format!("the run `{run}` does not compute `{stranger}`"));
        }
        Ok(())
    }

    /// Takes back what `run`, whose snapshot has that number, published of `view`.
    async fn view_without(&mut self, view: &ViewId, run: &Run, number: u64) -> Result<(), PlanError> {
        let Some((definition, state)) = self.state(view).await? else { return Ok(()) };
        let of = run.interval;
        let now = self.store.as_of(view, NOW).await?;
        let before = self.store.as_of(view, number - 1).await?;
        let earlier = before.ledger.iter().find(|entry| entry.interval == of).cloned();
        let Some(current) = now.ledger.iter().find(|entry| entry.interval == of) else {
            return Ok(()); // taken back already
        };
        if current.run != run.id {
            if earlier.is_none_or(|earlier| earlier.run != current.run) {
                self.problems.push(format!(
                    "what the run `{}` published of `{view}` was replaced by the run `{}`: take that one back first",
                    run.id, current.run
                ));
            }
            return Ok(());
        }
        if earlier.is_some() && before.expired {
            let problem =
                format!("what `{view}` was before the run `{}` has expired, and retention let go of it", run.id);
            self.problems.push(problem);
            return Ok(());
        }
        let mut after: Vec<&LedgerEntry> = now.ledger.iter().filter(|entry| entry.interval != of).collect();
        after.extend(&earlier);
        let newest = after.iter().max_by_key(|entry| (entry.interval.end(), entry.interval.start()));
        let newest = newest.map(|entry| Slice::from((*entry).clone()));
        let is_newest = now.ledger.first().is_some_and(|entry| entry.interval == of);
        let online = if now.snapshot == Some(SnapshotId(run.id.0)) {
            self.online(&definition, &state, &before).await?
        } else if is_newest || matches!(definition.output, Output::Partial { .. }) {
            self.republish(&definition, &state, newest.as_ref())
        } else {
            self.unchanged_online(&definition, &state, &now).await?
        };
        let without = |version: Option<u64>, before: Option<u64>| TableTarget {
            version,
            slices: vec![(of, earlier.as_ref().and(before))],
        };
        let restore = ViewRestore {
            from_version: state.delta_version,
            table: without(Some(state.delta_version), before.delta_version),
            quarantine: state.quarantine_version.map(|version| without(Some(version), before.quarantine_version)),
            online,
            leaves: vec![current.clone().into()],
            comes_back: earlier.clone().map(Slice::from).into_iter().collect(),
            fingerprint: self.fingerprint(newest.as_ref(), &definition).await?,
            newest,
            only_unfinished: false,
        };
        self.views.insert(view.clone(), restore);
        Ok(())
    }

    /// How the view goes back to what was online then.
    async fn online(
        &self,
        definition: &FeatureView,
        state: &ViewState,
        then: &AsOf,
    ) -> Result<Option<OnlineTarget>, StoreError> {
        let newest = then.ledger.first().cloned().map(Slice::from);
        let Some(republish) = self.republish(definition, state, newest.as_ref()) else { return Ok(None) };
        let Some(online) = then.online else { return Ok(Some(republish)) };
        let written = self.store.generation_written(&definition.id, online.generation).await?;
        let snapshot = self.store.snapshot(online.snapshot).await?;
        let of_view = snapshot.views.iter().find(|of_view| of_view.view == definition.id);
        let fingerprint = of_view.map_or(&definition.fingerprint, |of_view| &of_view.fingerprint);
        if !self.is_whole(definition, then, of_view, snapshot.number).await? {
            return Ok(Some(republish));
        }
        Ok(Some(OnlineTarget {
            generation: (written == Some(online.written)).then_some(online.generation),
            rows: of_view.map(|of_view| of_view.rows).filter(|_| definition.output == Output::Full),
            tag: match self.tag_given(&definition.id, online.snapshot).await? {
                Some(tag) => tag,
                None => tag(&definition.id, fingerprint, online.snapshot),
            },
        }))
    }

    /// Whether what the snapshot numbered `number` wrote online is what was published `then`. A partial view is made of all
    /// its intervals, and one that was computed after a later one went into the table only. And a registry that was made
    /// anew does not know of every snapshot what it had online.
    async fn is_whole(
        &self,
        definition: &FeatureView,
        then: &AsOf,
        written: Option<&SnapshotView>,
        number: u64,
    ) -> Result<bool, StoreError> {
        if definition.output == Output::Full {
            let newest = then.ledger.first().map(|newest| (newest.interval, newest.digest.as_str()));
            let written = written.and_then(|written| Some((written.interval?, written.digest.as_str())));
            return Ok(newest == written);
        }
        let (left, came) = difference(&self.store.as_of(&definition.id, number).await?.ledger, &then.ledger);
        Ok(left.is_empty() && came.is_empty())
    }

    /// The tag of what a restore had written: of the snapshot that the content came from. `None` when it was no restore.
    async fn tag_given(&self, view: &ViewId, snapshot: SnapshotId) -> Result<Option<String>, StoreError> {
        match self.store.restore_of(RunId(snapshot.0)).await {
            Ok(restore) => {
                let online = restore.plan.views.get(view).and_then(|restored| restored.online.as_ref());
                Ok(online.map(|online| online.tag.clone()))
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Written from the lake.
    fn republish(&self, definition: &FeatureView, state: &ViewState, newest: Option<&Slice>) -> Option<OnlineTarget> {
        definition.online.as_ref()?;
        state.online_generation?;
        let snapshot = newest.map_or(SnapshotId(self.id.0), |slice| slice.snapshot);
        let tag = tag(&definition.id, &definition.fingerprint, snapshot);
        // A partial view is made of all its intervals, so its newest one does not say how many entities it has.
        let rows = newest.map(|slice| slice.rows).filter(|_| definition.output == Output::Full);
        Some(OnlineTarget { generation: None, rows, tag })
    }

    /// As it is, under a later number.
    async fn unchanged_online(
        &self,
        definition: &FeatureView,
        state: &ViewState,
        now: &AsOf,
    ) -> Result<Option<OnlineTarget>, StoreError> {
        let live = now.online.filter(|online| Some(online.generation) == state.online_generation);
        let Some(online) = live.filter(|_| definition.online.is_some()) else { return Ok(None) };
        let tag = match self.tag_given(&definition.id, online.snapshot).await? {
            Some(tag) => tag,
            None => tag(&definition.id, &definition.fingerprint, online.snapshot),
        };
        Ok(Some(OnlineTarget { generation: Some(online.generation), rows: None, tag }))
    }

    async fn fingerprint(&self, newest: Option<&Slice>, definition: &FeatureView) -> Result<String, StoreError> {
        let Some(newest) = newest else { return Ok(definition.fingerprint.clone()) };
        let snapshot = self.store.snapshot(newest.snapshot).await?;
        let of_view = snapshot.views.into_iter().find(|of_view| of_view.view == definition.id);
        Ok(of_view.map_or_else(|| definition.fingerprint.clone(), |of_view| of_view.fingerprint))
    }

    /// Adds what runs are publishing just now that write one of the views: what they have not recorded is taken back in all
    /// of their views. Returns them.
    async fn unfinished(&mut self, asked: &Asked) -> Result<BTreeSet<RunId>, PlanError> {
        let mut found = BTreeSet::new();
        let mut publishing = self.store.runs_open().await?;
        publishing.retain(|run| run.state == RunState::Publishing);
        loop {
            let touches = |view: &ViewId| self.views.contains_key(view) || asked.views.contains(view);
            let more = publishing.iter().find(|run| !found.contains(&run.id) && run.views.iter().any(touches));
            let Some(run) = more else { return Ok(found) };
            found.insert(run.id);
            for view in &run.views {
                self.leave_unfinished(view).await?;
            }
        }
    }

    async fn leave_unfinished(&mut self, view: &ViewId) -> Result<(), PlanError> {
        let Some((definition, state)) = self.state(view).await? else { return Ok(()) };
        let in_place = definition.online.as_ref().is_some_and(|online| online.strategy == Strategy::Upsert);
        if !self.views.contains_key(view) {
            let now = self.store.as_of(view, NOW).await?;
            let newest = now.ledger.first().cloned().map(Slice::from);
            let as_it_is = |version| TableTarget { version: Some(version), slices: Vec::new() };
            let restore = ViewRestore {
                from_version: state.delta_version,
                table: as_it_is(state.delta_version),
                quarantine: state.quarantine_version.map(as_it_is),
                online: self.unchanged_online(&definition, &state, &now).await?.or_else(|| {
                    // A first publication may be live already.
                    let tag = tag(view, &definition.fingerprint, SnapshotId(self.id.0));
                    definition.online.as_ref().map(|_| OnlineTarget { generation: None, rows: None, tag })
                }),
                leaves: Vec::new(),
                comes_back: Vec::new(),
                fingerprint: self.fingerprint(newest.as_ref(), &definition).await?,
                newest,
                only_unfinished: true,
            };
            self.views.insert(view.clone(), restore);
        }
        // What was begun in place may have changed any row.
        let online = self.views.get_mut(view).and_then(|restore| restore.online.as_mut());
        if let Some(online) = online.filter(|_| in_place) {
            online.generation = None;
        }
        Ok(())
    }
}

/// What readers are told the content of a view is: which definition, and which snapshot.
pub fn tag(view: &ViewId, fingerprint: &str, snapshot: SnapshotId) -> String {
    format!("{view}#{fingerprint}@{snapshot}")
}

/// What leaves a ledger, and what is in it afterwards that is not so now.
fn difference(now: &[LedgerEntry], then: &[LedgerEntry]) -> (Vec<Slice>, Vec<Slice>) {
    let missing = |from: &[LedgerEntry], of: &[LedgerEntry]| -> Vec<Slice> {
        let known: BTreeSet<_> = of.iter().map(|entry| (entry.interval, entry.snapshot, &entry.digest)).collect();
        let is_new = |entry: &&LedgerEntry| !known.contains(&(entry.interval, entry.snapshot, &entry.digest));
        from.iter().filter(is_new).cloned().map(Slice::from).collect()
    };
    (missing(now, then), missing(then, now))
}
