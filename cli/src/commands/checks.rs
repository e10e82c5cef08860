//! `tidegate checks`: the verdicts of all checks.

use serde::Serialize;
use tidegate_registry::model::Severity;
use tidegate_registry::run::Verdict;
use tidegate_registry::store::{CheckFilter, CheckRow};
use tidegate_registry::time::format_instant;

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::progress::note;
use crate::select;

/// List the verdicts of checks, the newest run first
#[derive(Debug, clap::Args)]
pub struct Arguments {
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
/// When the registry cannot be read or there is no such view or run.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
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
    Ok(Exit::Done)
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
            self.verdict.to_string(),
            self.message.clone(),
        ]
    }
}
