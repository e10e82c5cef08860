//! `tidegate schema`: what editors need to help with definition files.

use tidegate_registry::definitions::json_schema;

use crate::context::Context;
use crate::error::Exit;

/// Print the JSON Schema of definition files, for editors
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the command.
///
/// # Errors
/// When standard output fails.
pub async fn run(_arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    context.output.json(&json_schema())?;
    Ok(Exit::Done)
}
