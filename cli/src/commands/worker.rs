//! `tidegate worker`: compute what a scheduler has let in.

use crate::commands::up::slots;
use crate::context::Context;
use crate::error::Exit;
use crate::roles::{self, Roles};

/// Compute only, until stopped; a scheduler decides when
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tasks computed at once [default: one per core, at most 4]
    #[arg(long, value_name = "N", value_parser = slots)]
    slots: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// When nothing was applied, or a part cannot be opened.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    roles::play(Roles { scheduler: false, worker: true }, arguments.slots, context).await?;
    Ok(Exit::Done)
}
