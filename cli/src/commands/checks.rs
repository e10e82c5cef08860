//! `tidegate checks`: the verdicts of all checks, the report of one run's, and checks that past runs suggest.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tidegate_registry::ids::RunId;
use tidegate_registry::model::Severity;
use tidegate_registry::run::Verdict;
use tidegate_registry::store::{CheckFilter, CheckRow};
use tidegate_registry::time::{Instant, format_instant};

use crate::commands::backfill::counted;
use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::note;
use crate::report;
use crate::select;
use crate::suggest;

/// List the verdicts of checks, the newest run first; report on those of one run; suggest new ones
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the verdicts of checks, the newest run first (what `tidegate checks` alone does)
    List(Filter),
    /// Write a page that shows the verdicts of a run and what changed in its data
    ///
    /// One file that loads nothing: it can be mailed, kept, and opened anywhere. Values of features tagged `pii` (of views
    /// tagged `pii`, all values) are not in it.
    Report {
        /// The run's id, or its beginning
        run: String,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        html: PathBuf,
    },
    /// Propose checks for a view from what its past runs have found out, as YAML to paste below `checks:`
    ///
    /// No run that was looked at would have failed what is proposed, unless the comment says that it rests on a part of the
    /// values. What held without exception blocks; bounds around what is usual leave a margin and warn. Keep what you know to
    /// be right.
    Suggest {
        /// The view: a name (its highest version) or name@vN
        view: String,
        /// How many of its newest intervals to look at
        #[arg(long, default_value_t = 20, value_name = "N")]
        runs: u32,
    },
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Only of this view: a name (its highest version) or name@vN
    #[arg(long)]
    view: Option<String>,
    /// Only of this run: its id, or the beginning of it
    #[arg(long)]
    run: Option<String>,
    /// Only those that failed
    #[arg(long)]
    failed: bool,
    /// At most this many; 0 for all
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: u32,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read, there is no such view or run, or the report cannot be written.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    match arguments.action {
        Some(Action::Report { run, html }) => {
            let id = select::run_id(&*registry.store, &run).await?;
            write_report(id, &html, &registry).await?;
            note(format!("wrote `{}`", html.display()));
        }
        Some(Action::Suggest { view, runs }) => propose(&view, runs, &registry, context).await?,
        Some(Action::List(filter)) => list(filter, &registry, context).await?,
        None => list(arguments.filter, &registry, context).await?,
    }
    Ok(Exit::Done)
}

/// Writes the page about a run's checks.
///
/// # Errors
/// When the run has no verdicts, and when the registry cannot be read or the file cannot be written.
pub(crate) async fn write_report(run: RunId, file: &Path, registry: &Registry) -> anyhow::Result<()> {
    let facts = report::gather(&*registry.store, run).await?;
    let page = report::render(&facts);
    write_whole(file, page.as_bytes())
}

/// Where a view's checks are usually written.
const INDENT: usize = 6;

async fn propose(view: &str, runs: u32, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let view = select::view(&registry.project, view)?;
    let limit = runs.saturating_add(suggest::DRIFT_LAST.max(suggest::ANOMALY_LAST) as u32);
    let history = registry.store.recorded(&view.id, Instant::MAX_UTC, None, limit).await?;
    let found = suggest::suggest(view, registry.project.keys_of(view), &history, runs as usize);
    if context.output.is_json() {
        return context.output.json(&found.checks);
    }
    if found.runs < suggest::RUNS_MIN {
        note(format!(
            "too little history to suggest checks for `{}`: {} of at least {} runs with a profile",
            view.id,
            found.runs,
            suggest::RUNS_MIN
        ));
        return Ok(());
    }
    let known = match found.known {
        0 => String::new(),
        known => format!("; {known} more would be about what the view checks already"),
    };
    note(format!(
        "{} for `{}` from {} runs ({} rows){known}",
        counted(found.checks.len(), "suggestion"),
        view.id,
        found.runs,
        found.rows
    ));
    if !found.checks.is_empty() {
        context.output.text(found.yaml(INDENT))?;
    }
    Ok(())
}

/// Writes a file so that whoever opens it sees all of it or what was there before.
fn write_whole(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let refused = |error: std::io::Error| {
        UserError::new(format!("`{}` cannot be written: {error}", file.display()))
            .hint("name a file in a folder that exists and may be written to")
    };
    let name = file.file_name().ok_or_else(|| refused(std::io::ErrorKind::IsADirectory.into()))?;
    if file.is_dir() {
        return Err(refused(std::io::ErrorKind::IsADirectory.into()).into());
    }
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(format!(".{}.part", std::process::id()));
    let part = file.with_file_name(part);
    let written = fs::File::create(&part)
        .and_then(|mut open| open.write_all(content).and_then(|()| open.sync_all()))
        .and_then(|()| fs::rename(&part, file));
    written.map_err(|error| {
        let _ = fs::remove_file(&part);
        refused(error).into()
    })
}

async fn list(arguments: Filter, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let view = arguments.view.as_deref().map(|name| select::view(&registry.project, name)).transpose()?;
    let run = match arguments.run.as_deref() {
        Some(prefix) => Some(select::run_id(&*registry.store, prefix).await?),
        None => None,
    };
    let filter = CheckFilter {
        view: view.map(|view| view.id.clone()),
        run,
        verdict: arguments.failed.then_some(Verdict::Failed),
        limit: arguments.limit,
    };
    let mut rows = registry.store.checks(&filter).await?;
    if arguments.failed {
        // A check that could not be computed counts as failed.
        rows.extend(registry.store.checks(&CheckFilter { verdict: Some(Verdict::Error), ..filter }).await?);
    }
    let rows: Vec<_> = rows.into_iter().map(Report::from).collect();
    if rows.is_empty() && !context.output.is_json() {
        note(if arguments.failed { "no check has failed" } else { "no verdict matches" });
    } else {
        context.output.list(&rows)?;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Report {
    run: String,
    dag: String,
    interval_start: String,
    interval_end: String,
    view: String,
    check: String,
    severity: Severity,
    verdict: Verdict,
    overridden: bool,
    failing_rows: u64,
    message: String,
    samples: Vec<serde_json::Value>,
}

impl From<CheckRow> for Report {
    fn from(row: CheckRow) -> Self {
        Self {
            run: row.run.to_string(),
            dag: row.dag.to_string(),
            interval_start: format_instant(row.interval.start()),
            interval_end: format_instant(row.interval.end()),
            view: row.view.to_string(),
            check: row.result.check,
            severity: row.result.severity,
            verdict: row.result.verdict,
            overridden: row.result.overridden,
            failing_rows: row.result.failing_rows,
            message: row.result.message,
            samples: row.result.samples,
        }
    }
}

impl Row for Report {
    const HEADINGS: &'static [&'static str] =
        &["RUN", "INTERVAL START", "VIEW", "CHECK", "SEVERITY", "VERDICT", "MESSAGE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.run.clone(),
            self.interval_start.clone(),
            self.view.clone(),
            self.check.clone(),
            match self.severity {
                Severity::Block => "block".to_owned(),
                Severity::Warn => "warn".to_owned(),
            },
            if self.overridden { format!("{} (override)", self.verdict) } else { self.verdict.to_string() },
            self.message.clone(),
        ]
    }
}
