//! `tidegate hold`: keep views from being published, without taking anything back.

use tidegate_registry::restore::HoldPolicy;

use crate::commands::backfill::counted;
use crate::commands::restore::What;
use crate::context::Context;
use crate::error::{Exit, UserError};
use crate::progress::note;

/// Keep views, and what is computed from them, from being published until `tidegate resume`
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    what: What,
    /// Why, for the audit trail and for whoever finds the views held
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Let runs compute and check the views meanwhile, and end as held
    #[arg(long)]
    stage_only: bool,
}

/// Runs the command.
///
/// # Errors
/// When there is no such view, or the registry cannot be written.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let views = arguments.what.views(&registry)?;
    if views.is_empty() {
        return Err(UserError::new("which views are meant?").hint("say `--view VIEW`, `--dag DAG` or `--all`").into());
    }
    let policy = if arguments.stage_only { HoldPolicy::StageOnly } else { HoldPolicy::SkipRuns };
    registry.store.hold(&views, policy, &context.actor(), &arguments.reason, registry.clock.now()).await?;
    note(format!("{} held; `tidegate holds` lists all holds", counted(views.len(), "view")));
    Ok(Exit::Done)
}
