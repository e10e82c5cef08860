//! `tidegate drills`: what was rehearsed, and what it came to.

use anyhow::Context as _;
use serde::Serialize;
use tidegate_registry::drill::Drill;
use tidegate_registry::time::format_instant;

use crate::commands::drill::{Report, seconds};
use crate::context::Context;
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::note;

/// List drills, or show one
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
    /// List drills, the newest first (what `tidegate drills` alone does)
    List(Filter),
    /// Show one drill: what was rehearsed, how long each step took, what was found
    Show {
        /// Its id, or its beginning
        drill: String,
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
/// When the registry cannot be read, or there is no such drill.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let filter = match arguments.action {
        Some(Action::Show { drill }) => {
            let all = registry.store.drills(0).await.context("reading the drills")?;
            let report = Report::of(find(&all, &drill)?);
            context.output.one(&report, &report.lines())?;
            return Ok(Exit::Done);
        }
        Some(Action::List(filter)) => filter,
        None => arguments.filter,
    };
    let drills = registry.store.drills(filter.limit).await.context("reading the drills")?;
    if drills.is_empty() && !context.output.is_json() {
        note("nothing was ever rehearsed: `tidegate drill --all` does");
        return Ok(Exit::Done);
    }
    context.output.list(&drills.iter().map(Line::of).collect::<Vec<_>>())?;
    Ok(Exit::Done)
}

fn find<'a>(all: &'a [Drill], text: &str) -> anyhow::Result<&'a Drill> {
    let mut found = all.iter().filter(|drill| drill.id.to_string().starts_with(text));
    match (found.next(), found.next()) {
        (Some(drill), None) => Ok(drill),
        (Some(_), Some(_)) => Err(UserError::new(format!("several drills begin with `{text}`")).into()),
        (None, _) => {
            Err(UserError::new(format!("there is no drill `{text}`")).hint("`tidegate drills` lists them").into())
        }
    }
}

#[derive(Debug, Serialize)]
struct Line {
    drill: String,
    name: Option<String>,
    state: String,
    views: Vec<String>,
    scenarios: Vec<String>,
    actor: String,
    started_at: String,
    finished_at: Option<String>,
    took_ms: Option<u64>,
    slowest_ms: Option<u64>,
}

impl Line {
    fn of(drill: &Drill) -> Self {
        let proven = drill.report.as_ref().map(tidegate_registry::drill::DrillReport::proven).unwrap_or_default();
        Self {
            drill: drill.id.to_string(),
            name: drill.name.as_ref().map(ToString::to_string),
            state: drill.state.to_string(),
            views: drill.views.iter().map(ToString::to_string).collect(),
            scenarios: drill.scenarios.iter().map(ToString::to_string).collect(),
            actor: drill.actor.clone(),
            started_at: format_instant(drill.started_at),
            finished_at: drill.finished_at.map(format_instant),
            took_ms: drill.report.as_ref().map(|report| report.took_ms),
            slowest_ms: proven.values().copied().max(),
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] =
        &["DRILL", "NAME", "STATE", "VIEWS", "BY", "STARTED", "TOOK", "SLOWEST RESTORE"];

    fn cells(&self) -> Vec<String> {
        let time = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), seconds);
        vec![
            self.drill.clone(),
            self.name.clone().unwrap_or_else(|| "-".to_owned()),
            self.state.clone(),
            self.views.join(", "),
            self.actor.clone(),
            self.started_at.clone(),
            time(self.took_ms),
            time(self.slowest_ms),
        ]
    }
}
