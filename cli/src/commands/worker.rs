//! `tidegate worker`: compute what a scheduler has let in.

use crate::commands::up::{Serving, Slots};
use crate::context::Context;
use crate::error::Exit;
use crate::health::Listen;
use crate::roles::{self, Roles};

/// Compute only, until stopped; a scheduler decides when
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    slots: Slots,
    #[command(flatten)]
    serving: Serving,
    #[command(flatten)]
    listen: Listen,
}

/// Runs the command.
///
/// # Errors
/// When nothing was applied, or a part cannot be opened.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let Arguments { slots, serving, listen } = arguments;
    roles::play(Roles { scheduler: false, worker: Some((slots, serving)) }, listen, context).await?;
    Ok(Exit::Done)
}
