//! `tidegate scheduler`: decide when, and leave the computing to workers.

use crate::context::Context;
use crate::error::Exit;
use crate::health::Listen;
use crate::roles::{self, Roles};

/// Schedule only, until stopped; workers compute
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    listen: Listen,
}

/// Runs the command.
///
/// # Errors
/// When nothing was applied, or the registry cannot be opened.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    roles::play(Roles { scheduler: true, worker: None }, arguments.listen, context).await?;
    Ok(Exit::Done)
}
