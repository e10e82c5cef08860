//! `tidegate preview`: a view's rows and verdicts before anything is applied. Writes nothing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use tidegate_registry::definitions::Settings;
use tidegate_registry::model::{FeatureView, Project, Severity};
use tidegate_registry::run::CheckResult;
use tidegate_registry::time::{Instant, Interval, format_instant};
use tidegate_scheduler::grid::{Grid, intervals};
use tidegate_worker::engine::Engine;
use tidegate_worker::preview::{Applied, Preview, PreviewRequest, preview};

use crate::checked;
use crate::commands::backfill::counted;
use crate::context::{self, Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::grid;
use crate::process;
use crate::progress::note;
use crate::select;
use crate::times::IntervalArgument;

/// Compute a view from the files as they are, with its checks, and write nothing
///
/// Parents that are not applied as they stand in the files are computed on the way. Exit code 1 when a check would stop
/// the run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The view: a name (its highest version) or name@vN
    view: String,
    /// The interval: START/END, times without offset being in the DAG's zone [default: the newest complete one of its DAG]
    #[arg(long, value_name = "START/END")]
    interval: Option<IntervalArgument>,
    /// How many rows to show; all are computed and checked
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
}

/// Runs the command.
///
/// # Errors
/// When the definitions have errors, there is no such view or interval, or a source cannot be read.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let (settings, project) = checked::load(context).await?.accepted(context)?;
    let view = select::view(&project, &arguments.view)?.clone();
    let registry = context.registry_if_any(&settings).await?.filter(|registry| registry.revision > 0);
    let now = context::now(&settings, registry.as_ref());
    let interval = match arguments.interval {
        Some(interval) => {
            let zone = project.dag_of(&view.id).map_or(chrono_tz::UTC, |dag| dag.schedule.timezone);
            interval.in_zone(zone)?
        }
        None => newest(&project, &view, now)?,
    };
    let request = PreviewRequest {
        view: view.id.clone(),
        interval,
        now,
        limit: arguments.limit,
        applied: registry.as_ref().map(|registry| applied(&settings, registry)).transpose()?,
        sources: engine::sources(&settings)?,
        project: Arc::new(project),
    };
    let scratch = Scratch::new();
    let engine = Engine::new(settings.memory_bytes, &scratch.0)?;
    let found = preview(&engine, &request).await?;
    show(&view, interval, &found, context)
}

fn applied(settings: &Settings, registry: &Registry) -> anyhow::Result<Applied> {
    Ok(Applied {
        project: Arc::new(registry.project.clone()),
        store: Arc::clone(&registry.store),
        lake: engine::lake(settings)?,
    })
}

fn newest(project: &Project, view: &FeatureView, now: Instant) -> anyhow::Result<Interval> {
    let Some(dag) = project.dag_of(&view.id) else {
        return Err(UserError::new(format!("no DAG runs `{}`, so it has no interval of its own", view.id))
            .hint("name one, as in `--interval 2013-01-08/2013-01-09`")
            .into());
    };
    let ticks: Vec<Instant> = Grid::new(&dag.schedule)
        .with_context(|| format!("reading the schedule of `{}`", dag.name))?
        .ticks(None, now)
        .collect();
    intervals(&ticks).last().ok_or_else(|| {
        UserError::new(format!("`{}` has no complete interval yet", dag.name))
            .hint("name one, as in `--interval 2013-01-08/2013-01-09`")
            .into()
    })
}

/// Where a query may spill, gone when the command is.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        let name = format!("tidegate-preview-{}", process::owner().replace(':', "-"));
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug, Serialize)]
struct Report {
    view: String,
    interval_start: String,
    interval_end: String,
    rows: Vec<serde_json::Map<String, Value>>,
    total_rows: u64,
    checks: Vec<CheckResult>,
    computed: Vec<String>,
}

fn show(view: &FeatureView, interval: Interval, found: &Preview, context: &Context) -> anyhow::Result<Exit> {
    if context.output.is_json() {
        let row = |row: &Vec<Value>| found.columns.iter().cloned().zip(row.iter().cloned()).collect();
        context.output.json(&Report {
            view: view.id.to_string(),
            interval_start: format_instant(interval.start()),
            interval_end: format_instant(interval.end()),
            rows: found.rows.iter().map(row).collect(),
            total_rows: found.total,
            checks: found.checks.clone(),
            computed: found.computed.iter().map(ToString::to_string).collect(),
        })?;
    } else {
        let headings: Vec<&str> = found.columns.iter().map(String::as_str).collect();
        context.output.text(grid(&headings, found.rows.iter().map(|row| row.iter().map(plain).collect())))?;
        note(format!(
            "`{}` over {interval}: {} of {}",
            view.id,
            found.rows.len(),
            counted(found.total as usize, "row")
        ));
        if !found.computed.is_empty() {
            let parents = select::quoted(found.computed.iter().map(ToString::to_string));
            note(format!("computed on the way, over this interval alone: {parents}"));
        }
        for check in &found.checks {
            let only = if check.severity == Severity::Warn { " (warns only)" } else { "" };
            note(format!("{} {}: {}{only}", check.verdict, check.check, check.message));
        }
    }
    let blocked = found.checks.iter().any(CheckResult::blocks);
    if blocked && !context.output.is_json() {
        note("its checks would stop this run");
    }
    Ok(if blocked { Exit::Wrong } else { Exit::Done })
}

/// Text without quotes, nothing for null.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
