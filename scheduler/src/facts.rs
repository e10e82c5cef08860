//! Reads what admission decides over, and keeps what has not changed since the last pass: definitions by revision (they
//! never change), and what is known of views that others read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::Context;
use chrono::TimeDelta;
use tidegate_registry::ids::{DagName, ViewId};
use tidegate_registry::model::{OnBlocked, Project};
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{DagHistory, RunFilter, Store};
use tidegate_registry::time::{Instant, Interval};

use crate::admission::Situation;

use crate::readiness::{self, Upstream, Upstreams};

/// The definitions of one revision.
#[derive(Debug)]
pub(crate) struct Definitions {
    pub(crate) project: Arc<Project>,
    /// Which DAG runs a view.
    dag_of: HashMap<ViewId, DagName>,
}

/// What is remembered between passes.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    definitions: BTreeMap<i64, Arc<Definitions>>,
    ticks: HashMap<DagName, Vec<Instant>>,
    upstreams: HashMap<ViewId, KnownUpstream>,
}

/// An [`Upstream`] and what it was made from: it holds for as long as none of this changes.
#[derive(Debug)]
struct KnownUpstream {
    revision: i64,
    records: u64,
    ticks: usize,
    upstream: Arc<Upstream>,
}

impl Facts {
    /// The definitions of `revision`.
    pub(crate) async fn definitions(&mut self, store: &dyn Store, revision: i64) -> anyhow::Result<Arc<Definitions>> {
        if let Some(known) = self.definitions.get(&revision) {
            return Ok(Arc::clone(known));
        }
        let (_, project) = store
            .project(Some(revision))
            .await
            .with_context(|| format!("reading the definitions of revision {revision}"))?;
        let dag_of = project
            .dags
            .values()
            .flat_map(|dag| dag.views.iter().map(|view| (view.clone(), dag.name.clone())))
            .collect();
        let definitions = Arc::new(Definitions { project: Arc::new(project), dag_of });
        self.definitions.insert(revision, Arc::clone(&definitions));
        Ok(definitions)
    }

    /// Everything that admission needs to know about `runs`, which are all the open ones.
    pub(crate) async fn situation(&mut self, store: &dyn Store, runs: Vec<Run>) -> anyhow::Result<Situation> {
        let newest = store.info().await.context("reading the registry's revision")?.revision;
        let mut used: BTreeSet<i64> = runs.iter().map(|run| run.definitions).collect();
        used.insert(newest);
        self.definitions.retain(|revision, _| used.contains(revision));
        let mut projects = BTreeMap::new();
        for revision in used {
            projects.insert(revision, Arc::clone(&self.definitions(store, revision).await?.project));
        }
        let closed = closed(store, &runs, &projects).await?;
        let upstreams = self.upstreams(store, newest, &runs, &projects).await?;
        Ok(Situation { runs, projects, closed, upstreams, only: None })
    }

    async fn upstreams(
        &mut self,
        store: &dyn Store,
        revision: i64,
        runs: &[Run],
        projects: &BTreeMap<i64, Arc<Project>>,
    ) -> anyhow::Result<Upstreams> {
        let needed: BTreeSet<ViewId> = waiting(runs)
            .filter_map(|run| Some(readiness::needs(run, projects.get(&run.definitions)?)))
            .flatten()
            .map(|need| need.view)
            .collect();
        self.upstreams.retain(|view, _| needed.contains(view));
        if needed.is_empty() {
            self.ticks.clear();
            return Ok(Upstreams::new());
        }
        let definitions = self.definitions(store, revision).await?;
        let dags: BTreeSet<&DagName> = needed.iter().filter_map(|view| definitions.dag_of.get(view)).collect();
        self.ticks.retain(|dag, _| dags.contains(dag));
        for dag in dags {
            self.read_ticks(store, dag).await?;
        }
        let needed: Vec<ViewId> = needed.into_iter().collect();
        let states = store.view_states(&needed).await.context("reading the states of views")?;
        let mut upstreams = Upstreams::new();
        for view in needed {
            let records = states.get(&view).map_or(0, |state| state.records);
            if let Some(upstream) = self.upstream(store, &definitions, revision, &view, records).await? {
                upstreams.insert(view, upstream);
            }
        }
        Ok(upstreams)
    }

    /// Ticks are only ever added at the end.
    async fn read_ticks(&mut self, store: &dyn Store, dag: &DagName) -> anyhow::Result<()> {
        let known = self.ticks.entry(dag.clone()).or_default();
        let from = known.last().map_or(Instant::MIN_UTC, |last| *last + TimeDelta::microseconds(1));
        let added =
            store.ticks(dag, from, Instant::MAX_UTC).await.with_context(|| format!("reading the ticks of `{dag}`"))?;
        known.extend(added);
        Ok(())
    }

    async fn upstream(
        &mut self,
        store: &dyn Store,
        definitions: &Definitions,
        revision: i64,
        view: &ViewId,
        records: u64,
    ) -> anyhow::Result<Option<Arc<Upstream>>> {
        let Some(dag) = definitions.dag_of.get(view).and_then(|dag| definitions.project.dags.get(dag)) else {
            return Ok(None);
        };
        let ticks = self.ticks.get(&dag.name).map_or(&[][..], Vec::as_slice);
        if let Some(known) = self.upstreams.get(view)
            && (known.revision, known.records, known.ticks) == (revision, records, ticks.len())
        {
            return Ok(Some(Arc::clone(&known.upstream)));
        }
        let ledger = store.ledger(view, None, 0).await.with_context(|| format!("reading the ledger of `{view}`"))?;
        let published = ledger.into_iter().map(|entry| entry.interval).collect();
        let upstream = Upstream::new(dag, ticks.to_vec(), published)
            .with_context(|| format!("reading the schedule of `{}`", dag.name))?;
        let upstream = Arc::new(upstream);
        let known = KnownUpstream { revision, records, ticks: ticks.len(), upstream: Arc::clone(&upstream) };
        self.upstreams.insert(view.clone(), known);
        Ok(Some(upstream))
    }
}

fn waiting(runs: &[Run]) -> impl Iterator<Item = &Run> {
    runs.iter().filter(|run| run.state == RunState::Waiting)
}

/// Intervals whose latest run ended without publishing, of the DAGs that wait for those to be settled.
async fn closed(
    store: &dyn Store,
    runs: &[Run],
    projects: &BTreeMap<i64, Arc<Project>>,
) -> anyhow::Result<BTreeMap<DagName, BTreeSet<Interval>>> {
    let waits = |run: &&Run| {
        let dag = projects.get(&run.definitions).and_then(|project| project.dags.get(&run.dag));
        dag.is_some_and(|dag| dag.on_blocked == OnBlocked::Wait)
    };
    let dags: BTreeSet<&DagName> = waiting(runs).filter(waits).map(|run| &run.dag).collect();
    let mut closed = BTreeMap::new();
    for dag in dags {
        let reading = || format!("reading the runs of `{dag}`");
        let states = vec![RunState::Blocked, RunState::Failed, RunState::Cancelled, RunState::Superseded];
        let filter = RunFilter { dag: Some(dag.clone()), states, ..RunFilter::default() };
        let ended = store.runs(&filter).await.with_context(reading)?;
        let Some(from) = ended.iter().map(|run| run.interval.start()).min() else { continue };
        let filter = RunFilter { dag: Some(dag.clone()), from: Some(from), ..RunFilter::default() };
        let history = DagHistory { runs: store.runs(&filter).await.with_context(reading)?, ..DagHistory::default() };
        let is_closed = |run: &Run| !run.state.is_open() && run.state != RunState::Succeeded;
        let intervals =
            history.latest().into_iter().filter(|(_, run)| is_closed(run)).map(|((interval, _), _)| interval);
        closed.insert(dag.clone(), intervals.collect());
    }
    Ok(closed)
}
