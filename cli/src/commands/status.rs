//! `tidegate status`: per view what is newest, how old it is, and what stands in its way.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tidegate_registry::drill::Proven;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{Dag, FeatureView};
use tidegate_registry::restore::{AsOf, Hold};
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{RunFilter, ViewState};
use tidegate_registry::time::{Instant, Interval, format_instant};
use tidegate_scheduler::freshness::{self, FreshnessState};

use crate::commands::drill::seconds;
use crate::context::{Context, Registry};
use crate::decision::Decision;
use crate::error::Exit;
use crate::output::{Row, grid};
use crate::progress::note;
use crate::roles;
use crate::select::{self, Selection};
use crate::times::{TimeArgument, short};

/// Show per view the newest interval, its age, open and blocked runs, and what is live online
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only views of this DAG
    #[arg(long)]
    dag: Option<String>,
    #[command(flatten)]
    selection: Selection,
    /// Instead, what was live at that time, by when it was recorded (without offset: UTC)
    #[arg(long, value_name = "TIME")]
    at: Option<TimeArgument>,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such DAG.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let dag = arguments.dag.as_deref().map(|name| select::dag(&registry.project, name)).transpose()?;
    match arguments.at {
        Some(at) => look_back(&registry, dag, &arguments.selection, at.in_zone(chrono_tz::UTC), context).await?,
        None => report(&registry, dag, &arguments.selection, context).await?,
    }
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
    context.output.list(&rows)?;
    let rehearsed: Vec<_> = rows.iter().filter_map(|row| Some(row.restore.as_ref()?.cells(&row.view))).collect();
    if !context.output.is_json() && !rehearsed.is_empty() {
        context.output.text(format!("\n{}", grid(&REHEARSED, rehearsed)))?;
    }
    Ok(())
}

/// Prints what was live at `at`.
async fn look_back(
    registry: &Registry,
    only: Option<&Dag>,
    selection: &Selection,
    at: Instant,
    context: &Context,
) -> anyhow::Result<()> {
    let number = registry.store.number_at(at).await?;
    let mut lines = Vec::new();
    for dag in registry.project.dags.values().filter(|dag| only.is_none_or(|only| only.name == dag.name)) {
        let views = dag.views.iter().filter_map(|id| registry.project.views.get(id));
        for view in views.filter(|view| chosen(view, selection)) {
            lines.push(PastLine::new(dag, view, &registry.store.as_of(&view.id, number).await?));
        }
    }
    if !context.output.is_json() {
        note(format!("as of {}, by when it was recorded; {number} snapshots by then", format_instant(at)));
    }
    context.output.list(&lines)
}

async fn rows(registry: &Registry, only: Option<&Dag>, selection: &Selection) -> anyhow::Result<Vec<Line>> {
    let now = registry.clock.now();
    let paused: BTreeMap<_, _> =
        registry.store.dags().await?.into_iter().map(|state| (state.dag, state.paused)).collect();
    let switches = registry.store.switches().await?;
    let holds = registry.store.holds().await?;
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
        let proven = registry.store.proven(&ids).await?;
        let filter = RunFilter { dag: Some(dag.name.clone()), ..RunFilter::default() };
        let latest = latest_per_interval(registry.store.runs(&filter).await?);
        for view in views {
            let state = states.get(&view.id).cloned().unwrap_or_default();
            let paused = paused.get(&dag.name).copied().unwrap_or(false);
            let off = switches.of(&view.id).off;
            let off = off.into_iter().map(|(feature, off)| (feature, off.to_string())).collect();
            let restore = Rehearsed::of(view, proven.get(&view.id), now);
            let line = Line { switches: off, restore, ..Line::new(dag, view, &state, &latest, paused, now) };
            lines.push(line.held_by(holds.on(&registry.project, &view.id)));
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
    held: Option<Held>,
    /// How long restoring it took in a drill, and may take; left out where there is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    restore: Option<Rehearsed>,
    #[serde(skip)]
    age: String,
}

/// The columns of what was rehearsed.
const REHEARSED: [&str; 5] = ["VIEW", "RESTORED IN", "REHEARSED", "TARGET", "RESTORE"];

/// What is known of how long it takes to restore a view.
#[derive(Debug, Serialize)]
struct Rehearsed {
    /// How long it may take.
    target_ms: Option<u64>,
    /// How long it took in the newest drill in which it came back as it was.
    proven_ms: Option<u64>,
    proven_at: Option<String>,
    drill: Option<String>,
    /// Whether that is within the target; `null` where one of them is not known.
    within_target: Option<bool>,
    /// The newest drill, when it did not come back in it.
    failed_drill: Option<String>,
    #[serde(skip)]
    ago: Option<String>,
}

impl Rehearsed {
    /// `None` when nobody asks for it and nobody drilled.
    fn of(view: &FeatureView, proven: Option<&Proven>, now: Instant) -> Option<Self> {
        let target = view.restore_target.map(|target| u64::try_from(target.as_millis()).unwrap_or(u64::MAX));
        let restore = proven.and_then(|proven| proven.restore);
        if target.is_none() && proven.is_none() {
            return None;
        }
        Some(Self {
            target_ms: target,
            proven_ms: restore.map(|restore| restore.took_ms),
            proven_at: restore.map(|restore| format_instant(restore.at)),
            drill: restore.map(|restore| restore.drill.to_string()),
            within_target: target.zip(restore).map(|(target, restore)| restore.took_ms <= target),
            failed_drill: proven.and_then(|proven| proven.failed).map(|drill| drill.to_string()),
            ago: restore.map(|restore| short(now - restore.at)),
        })
    }

    /// One text per column of [`REHEARSED`].
    fn cells(&self, view: &str) -> Vec<String> {
        let target = self.target_ms.map(|target| humantime::format_duration(Duration::from_millis(target)).to_string());
        let verdict = match (&self.failed_drill, self.proven_ms, self.within_target) {
            (Some(drill), ..) => format!("NOT in the newest drill, {drill}"),
            (None, None, _) => "never rehearsed: `tidegate drill` does".to_owned(),
            (None, Some(_), Some(false)) => "TOO SLOW".to_owned(),
            (None, Some(_), Some(true)) => "within target".to_owned(),
            (None, Some(_), None) => "no target".to_owned(),
        };
        vec![
            view.to_owned(),
            self.proven_ms.map_or_else(|| "-".to_owned(), seconds),
            self.ago.as_ref().map_or_else(|| "-".to_owned(), |ago| format!("{ago} ago")),
            target.unwrap_or_else(|| "-".to_owned()),
            verdict,
        ]
    }
}

/// Why a view is not published.
#[derive(Debug, Serialize)]
struct Held {
    /// The view that the hold is on: this one, or one that it is computed from.
    view: String,
    reason: String,
    actor: String,
    since: String,
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
            held: None,
            restore: None,
            age: age.map_or_else(|| "-".to_owned(), short),
        }
    }

    fn held_by(self, hold: Option<&Hold>) -> Self {
        let Some(hold) = hold else { return self };
        let held = Held {
            view: hold.view.to_string(),
            reason: hold.reason.clone(),
            actor: hold.actor.clone(),
            since: format_instant(hold.placed_at),
        };
        Self { freshness: Some(FreshnessState::Held), held: Some(held), ..self }
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

/// What was live of a view at some time.
#[derive(Debug, Serialize)]
struct PastLine {
    dag: String,
    view: String,
    owner: String,
    newest_start: Option<String>,
    newest_end: Option<String>,
    run: Option<String>,
    rows: Option<u64>,
    snapshot: Option<String>,
    expired: bool,
    delta_version: Option<u64>,
    online_generation: Option<u64>,
}

impl PastLine {
    fn new(dag: &Dag, view: &FeatureView, then: &AsOf) -> Self {
        let newest = then.ledger.first();
        Self {
            dag: dag.name.to_string(),
            view: view.id.to_string(),
            owner: view.owner.to_string(),
            newest_start: newest.map(|newest| format_instant(newest.interval.start())),
            newest_end: newest.map(|newest| format_instant(newest.interval.end())),
            run: newest.map(|newest| newest.run.to_string()),
            rows: newest.map(|newest| newest.rows),
            snapshot: then.snapshot.map(|snapshot| snapshot.to_string()),
            expired: then.expired,
            delta_version: then.delta_version,
            online_generation: then.online.map(|online| online.generation),
        }
    }
}

impl Row for PastLine {
    const HEADINGS: &'static [&'static str] = &["DAG", "VIEW", "NEWEST UNTIL", "RUN", "ROWS", "SNAPSHOT", "ONLINE"];

    fn cells(&self) -> Vec<String> {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            self.dag.clone(),
            self.view.clone(),
            or_none(&self.newest_end),
            or_none(&self.run),
            self.rows.map_or_else(|| "-".to_owned(), |rows| rows.to_string()),
            match &self.snapshot {
                Some(snapshot) if self.expired => format!("{snapshot} (expired)"),
                snapshot => or_none(snapshot),
            },
            self.online_generation.map_or_else(|| "-".to_owned(), |generation| format!("generation {generation}")),
        ]
    }
}
