//! `tidegate restores`: what was taken back, when, why and with what outcome.

use serde::Serialize;
use tidegate_registry::restore::Restore;
use tidegate_registry::time::format_instant;

use crate::commands::restore::Report;
use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::progress::note;
use crate::select;

/// List restores, or show one
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
    /// List restores, the newest first (what `tidegate restores` alone does)
    List(Filter),
    /// Show one restore: what left, what came back, what was found afterwards
    Show {
        /// Its id, or its beginning
        restore: String,
    },
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// At most this many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: u32,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read, or there is no such restore.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let filter = match arguments.action {
        Some(Action::Show { restore }) => {
            let id = select::run_id(&*registry.store, &restore).await?;
            let report = Report::of_done(&registry.store.restore_of(id).await?);
            context.output.one(&report, &report.lines())?;
            return Ok(Exit::Done);
        }
        Some(Action::List(filter)) => filter,
        None => arguments.filter,
    };
    let restores: Vec<Line> = registry.store.restores(filter.limit).await?.iter().map(Line::of).collect();
    if restores.is_empty() && !context.output.is_json() {
        note("nothing was ever restored");
        return Ok(Exit::Done);
    }
    context.output.list(&restores)?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Line {
    restore: String,
    asked: String,
    views: Vec<String>,
    actor: String,
    reason: String,
    begun_at: String,
    recorded_at: Option<String>,
    took_ms: Option<u64>,
    validated: Option<bool>,
}

impl Line {
    fn of(restore: &Restore) -> Self {
        Self {
            restore: restore.id.to_string(),
            asked: restore.plan.asked.clone(),
            views: restore.plan.views.keys().map(ToString::to_string).collect(),
            actor: restore.actor.clone(),
            reason: restore.reason.clone(),
            begun_at: format_instant(restore.begun_at),
            recorded_at: restore.recorded_at.map(format_instant),
            took_ms: restore.took_ms,
            validated: restore.validation.as_ref().map(|validation| validation.passed),
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] =
        &["RESTORE", "ASKED", "VIEWS", "BY", "BEGUN", "TOOK", "CHECKED", "REASON"];

    fn cells(&self) -> Vec<String> {
        let checked = match self.validated {
            None if self.recorded_at.is_some() => "not yet",
            None => "-",
            Some(true) => "as promised",
            Some(false) => "NOT as promised",
        };
        let took = match (self.took_ms, &self.recorded_at) {
            (Some(took), _) => format!("{:.2} s", took as f64 / 1e3),
            (None, Some(_)) => "-".to_owned(),
            (None, None) => "not recorded".to_owned(),
        };
        vec![
            self.restore.clone(),
            self.asked.clone(),
            self.views.join(", "),
            self.actor.clone(),
            self.begun_at.clone(),
            took,
            checked.to_owned(),
            self.reason.clone(),
        ]
    }
}
