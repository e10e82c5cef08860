//! `tidegate validate`: everything that is wrong with the files, at once.

use tidegate_registry::diagnostics::{has_errors, to_json};

use crate::checked;
use crate::commands::backfill::counted;
use crate::context::Context;
use crate::error::Exit;
use crate::progress::note;

/// Check all definitions against each other and against the sources
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the command.
///
/// # Errors
/// When there is no project or a source's folder cannot be read.
pub async fn run(_arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let checked = checked::load(context).await?;
    if context.output.is_json() {
        context.output.json(&to_json(&checked.diagnostics))?;
    } else {
        context.report(&checked.diagnostics, &checked.files);
    }
    if has_errors(&checked.diagnostics) {
        return Ok(Exit::Wrong);
    }
    if let Some(project) = &checked.project {
        let tests = match checked.tests.len() {
            0 => String::new(),
            tests => format!(", {}", counted(tests, "test")),
        };
        note(format!(
            "`{}` is valid: {}, {}, {}, {}{tests}",
            project.name,
            counted(project.sources.len(), "source"),
            if project.entities.len() == 1 {
                "1 entity".to_owned()
            } else {
                format!("{} entities", project.entities.len())
            },
            counted(project.views.len(), "feature view"),
            counted(project.dags.len(), "DAG"),
        ));
    }
    Ok(Exit::Done)
}
