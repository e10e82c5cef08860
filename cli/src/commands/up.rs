//! `tidegate up`: all roles in one process.

use crate::context::Context;
use crate::error::Exit;
use crate::roles::{self, Roles};

/// Schedule and compute, until stopped
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    slots: Slots,
}

/// How much is computed at once.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Slots {
    /// Tasks computed at once by this process [default: one per core, at most 4]
    #[arg(long, value_name = "N", value_parser = slots, env = "TIDEGATE_SLOTS", hide_env_values = true)]
    pub slots: Option<usize>,
}

/// At least one slot, and not more than any machine has use for.
fn slots(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|slots| (1..=256).contains(slots))
        .ok_or_else(|| "expected a number from 1 to 256".to_owned())
}

/// Runs the command.
///
/// # Errors
/// When nothing was applied, or a part cannot be opened.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    roles::play(Roles { scheduler: true, worker: true }, arguments.slots.slots, context).await?;
    Ok(Exit::Done)
}
