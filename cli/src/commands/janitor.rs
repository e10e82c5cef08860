//! `tidegate janitor`: one pass of it, or what that would do.

use serde::Serialize;
use tidegate_worker::janitor::{Need, Report, ViewReport};

use crate::context::{Context, release_dead_leases};
use crate::engine;
use crate::error::Exit;
use crate::output::Row;
use crate::progress::note;

/// Remove what retention no longer keeps: old snapshots, files that nothing names, old logs
///
/// A process with a scheduler does this by itself, every `janitor.every`. What live and pinned snapshots, open runs and
/// whoever reads an older version now may need is never touched.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only say what would be removed, and why the rest stays
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// When the registry or the lake cannot be reached. Trouble with a single view is told and exits with 2.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let registry = context.registry().await?;
    if !arguments.dry_run {
        release_dead_leases(&*registry.store).await?;
    }
    let janitor = engine::janitor(&settings, &registry).await?;
    let Some(report) = janitor.pass(arguments.dry_run).await? else {
        note("another process is the janitor now; it does the same");
        return Ok(Exit::Done);
    };
    if context.output.is_json() {
        context.output.json(&report)?;
    } else {
        context.output.list(&report.views.iter().map(Line::from).collect::<Vec<_>>())?;
        tell(&report);
    }
    let trouble = report.views.iter().any(|view| view.problem.is_some());
    Ok(if trouble { Exit::Failed } else { Exit::Done })
}

fn tell(report: &Report) {
    let would = if report.dry_run { "would be" } else { "are" };
    if !report.expired.is_empty() {
        note(format!("{} snapshots {would} expired: they can no longer be restored", report.expired.len()));
    }
    for view in &report.views {
        if let (Some(oldest), false) = (view.oldest_needed, view.oldest_why.is_empty()) {
            let why: Vec<String> = view.oldest_why.iter().map(why).collect();
            note(format!("{}: versions from {oldest} on are kept, which is {}", view.view, why.join(" and ")));
        }
        if !view.compacted.is_empty() {
            note(format!("{}: the files of {} intervals {would} put together", view.view, view.compacted.len()));
        }
        if let Some(problem) = &view.problem {
            note(format!("{}: left alone: {problem}", view.view));
        }
    }
    if report.rows.log_lines + report.rows.outputs > 0 {
        note(format!("{} old log lines and {} task outputs are removed", report.rows.log_lines, report.rows.outputs));
    }
}

fn why(need: &Need) -> String {
    match need {
        Need::Head => "what readers of the table get".to_owned(),
        Need::Recorded => "what runs read".to_owned(),
        Need::Snapshot(id) => format!("snapshot {id}"),
        Need::Pinned(id) => format!("the pinned snapshot {id}"),
        Need::Run(id) => format!("what the open run {id} is bound to"),
        Need::Recent => "what was read lately".to_owned(),
    }
}

/// One view in the table.
#[derive(Debug, Serialize)]
struct Line<'a>(&'a ViewReport);

impl<'a> From<&'a ViewReport> for Line<'a> {
    fn from(view: &'a ViewReport) -> Self {
        Self(view)
    }
}

impl Row for Line<'_> {
    const HEADINGS: &'static [&'static str] = &[
        "VIEW", "VERSION", "NEEDED", "FILES GO", "BYTES GO", "LOG GOES", "CURRENT", "OLDER", "PINNED", "IN RUNS",
        "YOUNG",
    ];

    fn cells(&self) -> Vec<String> {
        let Self(view) = self;
        let kept = &view.kept;
        vec![
            view.view.to_string(),
            view.head.map_or_else(|| "-".to_owned(), |head| head.to_string()),
            view.versions_needed.to_string(),
            view.removed.files.to_string(),
            view.removed.bytes.to_string(),
            view.log_removed.files.to_string(),
            kept.current.files.to_string(),
            kept.older.files.to_string(),
            kept.pinned.files.to_string(),
            kept.open_runs.files.to_string(),
            kept.young.files.to_string(),
        ]
    }
}
