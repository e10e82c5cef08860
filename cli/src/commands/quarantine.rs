//! `tidegate quarantine`: the rows that checks have set aside, and letting them through.

use serde::Serialize;
use serde_json::{Map, Value};
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::model::FeatureView;
use tidegate_registry::run::{Cause, RunState, Verdict};
use tidegate_registry::store::{CheckFilter, CheckRow, RunFilter, Store, StoreError};
use tidegate_registry::time::{Interval, format_instant};
use tidegate_worker::engine::Engine;
use tidegate_worker::quarantine;

use super::preview::{Scratch, plain};
use super::runs;
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::{Row, grid};
use crate::progress::note;
use crate::select;

/// The tag of features whose values are not for everybody.
const PII: &str = "pii";
/// What is shown in their place.
const MASKED: &str = "(masked)";

/// List or show rows that checks have set aside, or let them through
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List which runs have set rows aside, the newest first
    List {
        /// Only of this view: a name (its highest version) or name@vN
        view: Option<String>,
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
    },
    /// Show the rows that are set aside now, with the rules that they broke
    Show {
        /// The view: a name (its highest version) or name@vN
        view: String,
        /// Only those of this run: its id, or the beginning of it
        #[arg(long)]
        run: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
        /// Show the values of features tagged `pii`, too
        #[arg(long)]
        reveal: bool,
    },
    /// Compute the interval of a run anew, letting through the rows that it has set aside
    ///
    /// The new run computes all views of that run, so that those that read this one see the rows, too. A row is let through
    /// when its entity (of a partial view: entity and time) is one of those set aside, whatever rules it breaks. This holds
    /// for that run: computing the interval once more sets them aside again, while the rules say so.
    Readmit {
        /// The view: a name (its highest version) or name@vN
        view: String,
        /// The run that has set the rows aside: its id, or the beginning of it
        #[arg(long)]
        run: String,
        /// Why, for whoever finds it later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry or the lake cannot be read, or there is no such view or run.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    match arguments.action {
        Action::List { view, limit } => list(view.as_deref(), limit, &registry, context).await?,
        Action::Show { view, run, limit, reveal } => {
            let view = select::view(&registry.project, &view)?;
            let run = match run {
                Some(prefix) => Some(select::run_id(&*registry.store, &prefix).await?),
                None => None,
            };
            show(view, run, limit, reveal, &registry, context).await?;
        }
        Action::Readmit { view, run, reason } => {
            let store = &*registry.store;
            let view = select::view(&registry.project, &view)?;
            let id = select::run_id(store, &run).await?;
            let (old, _) = store.run(id).await?;
            let decision = runs::decision(&old, reason, &registry, context)?;
            let new = store.run_readmit(id, &view.id, decision).await?;
            let (made, _) = store.run(new).await?;
            if made.state.is_open() {
                note(format!("{new} lets the rows through; {}", runs::who_computes(&old, store).await?));
            }
            runs::show(new, &registry, context).await?;
        }
    }
    Ok(Exit::Done)
}

async fn list(view: Option<&str>, limit: usize, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let store = &*registry.store;
    let view = view.map(|name| select::view(&registry.project, name)).transpose()?;
    let filter = CheckFilter {
        view: view.map(|view| view.id.clone()),
        verdict: Some(Verdict::Quarantined),
        ..CheckFilter::default()
    };
    let mut found: Vec<Line> = Vec::new();
    for verdict in store.checks(&filter).await? {
        let known = found.iter().rposition(|line| line.id == verdict.run && line.view_id == verdict.view);
        match known {
            Some(line) => found[line].rules.push(Rule::of(&verdict)),
            None if limit > 0 && found.len() == limit => break,
            None => found.push(Line::of(&verdict, store).await?),
        }
    }
    // What was not published holds nothing back.
    found.retain(|line| line.rows > 0);
    if found.is_empty() && !context.output.is_json() {
        note("no run has set a row aside");
        return Ok(());
    }
    context.output.list(&found)
}

/// What one run has set aside of one view.
#[derive(Debug, Serialize)]
struct Line {
    view: String,
    run: String,
    interval_start: String,
    interval_end: String,
    rows: u64,
    rules: Vec<Rule>,
    status: Status,
    #[serde(skip)]
    id: RunId,
    #[serde(skip)]
    view_id: ViewId,
}

#[derive(Debug, Serialize)]
struct Rule {
    check: String,
    rows: u64,
}

/// What has become of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// They lie in the quarantine table.
    SetAside,
    /// The run was not published.
    NotPublished,
    /// A later run let them through.
    Readmitted,
    /// A later run of the interval has computed it again.
    Replaced,
}

impl Rule {
    fn of(verdict: &CheckRow) -> Self {
        Self { check: verdict.result.check.clone(), rows: verdict.result.failing_rows }
    }
}

impl Line {
    async fn of(verdict: &CheckRow, store: &dyn Store) -> anyhow::Result<Self> {
        let (rows, status) = state(store, verdict.run, &verdict.view, verdict.interval).await?;
        Ok(Self {
            view: verdict.view.to_string(),
            run: verdict.run.to_string(),
            interval_start: format_instant(verdict.interval.start()),
            interval_end: format_instant(verdict.interval.end()),
            rows,
            rules: vec![Rule::of(verdict)],
            status,
            id: verdict.run,
            view_id: verdict.view.clone(),
        })
    }
}

/// How many rows `run` has set aside of `view`, and what has become of them.
async fn state(store: &dyn Store, run: RunId, view: &ViewId, interval: Interval) -> anyhow::Result<(u64, Status)> {
    let snapshot = match store.snapshot(SnapshotId(run.0)).await {
        Err(StoreError::NotFound { .. }) => return Ok((0, Status::NotPublished)),
        snapshot => snapshot?,
    };
    let rows = snapshot.views.iter().find(|of| of.view == *view).map_or(0, |of| of.quarantined);
    let cause = Cause::Readmit { run, view: view.clone() }.to_string();
    let states = vec![RunState::Succeeded];
    let readmitted = RunFilter { cause: Some(cause), states, limit: 1, ..RunFilter::default() };
    if !store.runs(&readmitted).await?.is_empty() {
        return Ok((rows, Status::Readmitted));
    }
    let newest = store.ledger(view, Some(interval.end()), 1).await?;
    let is_current = newest.first().is_some_and(|entry| entry.interval == interval && entry.run == run);
    Ok((rows, if is_current { Status::SetAside } else { Status::Replaced }))
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["VIEW", "RUN", "INTERVAL START", "ROWS", "RULES", "STATUS"];

    fn cells(&self) -> Vec<String> {
        let rules = self.rules.iter().map(|rule| format!("{} ({})", rule.check, rule.rows));
        let status = match self.status {
            Status::SetAside => "set aside",
            Status::NotPublished => "not published",
            Status::Readmitted => "readmitted",
            Status::Replaced => "replaced",
        };
        vec![
            self.view.clone(),
            self.run.clone(),
            self.interval_start.clone(),
            self.rows.to_string(),
            rules.collect::<Vec<_>>().join(", "),
            status.to_owned(),
        ]
    }
}

/// Shows the rows of a view that are set aside, or those of one run: at most `limit`.
///
/// # Errors
/// When they cannot be read.
pub(super) async fn show(
    view: &FeatureView,
    run: Option<RunId>,
    limit: usize,
    reveal: bool,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<()> {
    let rows = rows(view, run, limit, registry, context).await?;
    let masked: Vec<&str> = match reveal {
        true => Vec::new(),
        false => view
            .features
            .iter()
            .filter(|feature| feature.tags.iter().any(|tag| tag == PII))
            .map(|feature| feature.name.as_str())
            .collect(),
    };
    let rows: Vec<Map<String, Value>> = rows.into_iter().map(|row| mask(row, &masked)).collect();
    if context.output.is_json() {
        return context.output.json(&rows);
    }
    let Some(first) = rows.first() else {
        note(format!("nothing of `{}` is set aside", view.id));
        return Ok(());
    };
    let headings: Vec<&str> = first.keys().map(String::as_str).collect();
    context.output.text(grid(&headings, rows.iter().map(|row| row.values().map(plain).collect())))?;
    if !masked.is_empty() {
        note(format!("{} not shown, tagged `{PII}`: `--reveal` shows it", select::quoted(&masked)));
    }
    Ok(())
}

async fn rows(
    view: &FeatureView,
    run: Option<RunId>,
    limit: usize,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<quarantine::Rows> {
    let states = registry.store.view_states(std::slice::from_ref(&view.id)).await?;
    let Some(state) = states.get(&view.id) else {
        return Err(UserError::new(format!("`{}` has not been applied", view.id)).into());
    };
    let Some(version) = state.quarantine_version else { return Ok(quarantine::Rows::new()) };
    let settings = context.settings()?;
    let scratch = Scratch::new();
    let engine = Engine::new(settings.memory_bytes, &scratch.0)?;
    let keys: Vec<String> = registry.project.keys_of(view).iter().map(|key| key.name.clone()).collect();
    quarantine::rows(&engine, &engine::lake(&settings)?, &view.id, version, run, &keys, limit).await
}

fn mask(mut row: Map<String, Value>, masked: &[&str]) -> Map<String, Value> {
    for name in masked {
        if let Some(value) = row.get_mut(*name).filter(|value| !value.is_null()) {
            *value = MASKED.into();
        }
    }
    row
}
