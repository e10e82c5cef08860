//! `tidegate status`: per view what is newest, how old it is, and what stands in its way.

use std::collections::BTreeMap;

use serde::Serialize;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{Dag, FeatureView};
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{RunFilter, ViewState};
use tidegate_registry::time::{Instant, Interval, format_instant};
use tidegate_scheduler::freshness::{self, FreshnessState};

use crate::context::{Context, Registry};
use crate::decision::Decision;
use crate::error::Exit;
use crate::output::Row;
use crate::progress::note;
use crate::roles;
use crate::select::{self, Selection};
use crate::times::short;

/// Show per view the newest interval, its age, open and blocked runs, and what is live online
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only views of this DAG
    #[arg(long)]
    dag: Option<String>,
    #[command(flatten)]
    selection: Selection,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such DAG.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let dag = arguments.dag.as_deref().map(|name| select::dag(&registry.project, name)).transpose()?;
    report(&registry, dag, &arguments.selection, context).await?;
    Ok(Exit::Done)
}

/// Prints how all views stand.
///
/// # Errors
/// When the registry cannot be read.
pub async fn show(registry: &Registry, context: &Context) -> anyhow::Result<()> {
    report(registry, None, &Selection::default(), context).await
}

async fn report(
    registry: &Registry,
    dag: Option<&Dag>,
    selection: &Selection,
    context: &Context,
) -> anyhow::Result<()> {
    let rows = rows(registry, dag, selection).await?;
    let workers = roles::workers_alive(&*registry.store).await?;
    if !context.output.is_json() {
        note(format!(
            "project time {}, revision {}, {}",
            format_instant(registry.clock.now()),
            registry.revision,
            match workers.len() {
                0 => "no worker is alive".to_owned(),
                1 => "1 worker is alive".to_owned(),
                several => format!("{several} workers are alive"),
            }
        ));
    }
    context.output.list(&rows)
}

async fn rows(registry: &Registry, only: Option<&Dag>, selection: &Selection) -> anyhow::Result<Vec<Line>> {
    let now = registry.clock.now();
    let paused: BTreeMap<_, _> =
        registry.store.dags().await?.into_iter().map(|state| (state.dag, state.paused)).collect();
    let switches = registry.store.switches().await?;
    let mut lines = Vec::new();
    for dag in registry.project.dags.values().filter(|dag| only.is_none_or(|only| only.name == dag.name)) {
        let views: Vec<&FeatureView> = dag
            .views
            .iter()
            .filter_map(|id| registry.project.views.get(id))
            .filter(|view| chosen(view, selection))
            .collect();
        if views.is_empty() {
            continue;
        }
        let ids: Vec<ViewId> = views.iter().map(|view| view.id.clone()).collect();
        let states = registry.store.view_states(&ids).await?;
        let filter = RunFilter { dag: Some(dag.name.clone()), ..RunFilter::default() };
        let latest = latest_per_interval(registry.store.runs(&filter).await?);
        for view in views {
            let state = states.get(&view.id).cloned().unwrap_or_default();
            let paused = paused.get(&dag.name).copied().unwrap_or(false);
            let off = switches.of(&view.id).off;
            let off = off.into_iter().map(|(feature, off)| (feature, off.to_string())).collect();
            lines.push(Line { switches: off, ..Line::new(dag, view, &state, &latest, paused, now) });
        }
    }
    Ok(lines)
}

/// `runs` are the newest interval first, then the newest revision: the first of each interval and views counts, and every
/// open one.
fn latest_per_interval(runs: Vec<Run>) -> Vec<Run> {
    let mut seen: Vec<(Interval, Vec<ViewId>)> = Vec::new();
    let mut kept = Vec::new();
    for run in runs {
        let key = (run.interval, run.views.clone());
        let first = seen.last() != Some(&key)
            && !seen.iter().rev().take_while(|(interval, _)| *interval == key.0).any(|known| *known == key);
        if first {
            seen.push(key);
        }
        if first || run.state.is_open() {
            kept.push(run);
        }
    }
    kept
}

fn chosen(view: &FeatureView, selection: &Selection) -> bool {
    let id = view.id.to_string();
    selection.takes([id.as_str(), &view.description], Some(view.owner.as_str()), &view.tags)
}

#[derive(Debug, Serialize)]
struct Line {
    dag: String,
    view: String,
    owner: String,
    newest_start: Option<String>,
    newest_end: Option<String>,
    age_seconds: Option<i64>,
    max_age_seconds: Option<u64>,
    freshness: Option<FreshnessState>,
    open_runs: usize,
    blocked_runs: usize,
    failed_runs: usize,
    delta_version: u64,
    online_generation: Option<u64>,
    paused: bool,
    decision: Option<Decision>,
    /// Features that are switched off, and what readers get.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    switches: BTreeMap<String, String>,
    #[serde(skip)]
    age: String,
}

impl Line {
    fn new(dag: &Dag, view: &FeatureView, state: &ViewState, runs: &[Run], paused: bool, now: Instant) -> Self {
        let age = state.newest.map(|newest| freshness::age(newest.end(), now));
        let count = |wanted: fn(RunState) -> bool| {
            runs.iter().filter(|run| wanted(run.state) && run.views.contains(&view.id)).count()
        };
        // What is published of the newest interval, when that run is still the latest.
        let newest = runs.iter().find(|run| {
            Some(run.interval) == state.newest && run.state == RunState::Succeeded && run.views.contains(&view.id)
        });
        Self {
            dag: dag.name.to_string(),
            view: view.id.to_string(),
            owner: view.owner.to_string(),
            newest_start: state.newest.map(|newest| format_instant(newest.start())),
            newest_end: state.newest.map(|newest| format_instant(newest.end())),
            age_seconds: age.map(|age| age.num_seconds()),
            max_age_seconds: view.freshness.as_ref().map(|freshness| freshness.max_age.as_secs()),
            freshness: view
                .freshness
                .as_ref()
                .map(|limits| freshness::state(limits, state.newest.map(|n| n.end()), now)),
            open_runs: count(RunState::is_open),
            blocked_runs: count(|state| state == RunState::Blocked),
            failed_runs: count(|state| state == RunState::Failed),
            delta_version: state.delta_version,
            online_generation: state.online_generation,
            paused,
            decision: newest.and_then(|run| run.overriding.as_ref()).map(Into::into),
            switches: BTreeMap::new(),
            age: age.map_or_else(|| "-".to_owned(), short),
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] =
        &["DAG", "VIEW", "NEWEST UNTIL", "AGE", "FRESHNESS", "OPEN", "BLOCKED", "FAILED", "ONLINE"];

    fn cells(&self) -> Vec<String> {
        let dag = if self.paused { format!("{} (paused)", self.dag) } else { self.dag.clone() };
        vec![
            dag,
            self.view.clone(),
            match (&self.newest_end, &self.decision) {
                (None, _) => "-".to_owned(),
                (Some(newest), None) => newest.clone(),
                (Some(newest), Some(decision)) => format!("{newest} ({})", decision.word()),
            },
            self.age.clone(),
            self.freshness.map_or_else(|| "-".to_owned(), |freshness| freshness.to_string()),
            self.open_runs.to_string(),
            self.blocked_runs.to_string(),
            self.failed_runs.to_string(),
            match (self.online_generation, self.switches.len()) {
                (None, _) => "-".to_owned(),
                (Some(generation), 0) => format!("generation {generation}"),
                (Some(generation), off) => format!("generation {generation}, {off} switched off"),
            },
        ]
    }
}
