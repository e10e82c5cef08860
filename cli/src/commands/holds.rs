//! `tidegate holds`: what is kept from being published, since when and why.

use serde::Serialize;
use tidegate_registry::restore::Hold;
use tidegate_registry::time::format_instant;

use crate::context::{Context, Registry};
use crate::error::Exit;
use crate::output::Row;
use crate::progress::note;
use crate::times::short;

/// List the holds in force, the oldest first
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read.
pub async fn run(_: Arguments, context: &Context) -> anyhow::Result<Exit> {
    list(&context.registry().await?, context).await?;
    Ok(Exit::Done)
}

/// Prints the holds in force.
///
/// # Errors
/// When the registry cannot be read.
pub(super) async fn list(registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let holds = registry.store.holds().await?.holds;
    if holds.is_empty() && !context.output.is_json() {
        note("nothing is held");
        return Ok(());
    }
    let lines: Vec<Line> = holds.iter().map(|hold| Line::of(hold, registry)).collect();
    context.output.list(&lines)
}

#[derive(Debug, Serialize)]
struct Line {
    view: String,
    with_it: Vec<String>,
    policy: String,
    actor: String,
    reason: String,
    placed_at: String,
    restore: Option<String>,
    definition_changed: bool,
    #[serde(skip)]
    age: String,
}

impl Line {
    fn of(hold: &Hold, registry: &Registry) -> Self {
        let project = &registry.project;
        let now = project.views.get(&hold.view).map(|view| view.fingerprint.as_str());
        Self {
            view: hold.view.to_string(),
            with_it: project.descendants_of(std::slice::from_ref(&hold.view)).iter().map(ToString::to_string).collect(),
            policy: hold.policy.to_string(),
            actor: hold.actor.clone(),
            reason: hold.reason.clone(),
            placed_at: format_instant(hold.placed_at),
            restore: hold.restore.map(|restore| restore.to_string()),
            definition_changed: hold.fingerprint.as_deref() != now,
            age: short(registry.clock.now() - hold.placed_at),
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["VIEW", "WITH IT", "RUNS", "BY", "SINCE", "AGE", "REASON"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.view.clone(),
            if self.with_it.is_empty() { "-".to_owned() } else { self.with_it.join(", ") },
            self.policy.clone(),
            self.actor.clone(),
            self.placed_at.clone(),
            self.age.clone(),
            self.reason.clone(),
        ]
    }
}
