//! The project's files, read, validated and checked against the sources: what `validate`, `plan` and `apply` begin with.

use tidegate_registry::definitions::Settings;
use tidegate_registry::diagnostics::{Diagnostic, SourceMap, has_errors, sort};
use tidegate_registry::model::{DefinitionTest, Project};
use tidegate_worker::definition_test::check_tests;
use tidegate_worker::sqlcheck::{SourceSchemas, check_project};

use crate::context::Context;
use crate::engine;
use crate::error::UserError;

/// What the files say, as far as they can be understood, and everything that is wrong with them.
#[derive(Debug)]
pub struct Checked {
    /// The settings, unless something is wrong with them.
    pub settings: Option<Settings>,
    /// The project, unless something is wrong with it.
    pub project: Option<Project>,
    /// The tests without a mistake that can be seen without the sources.
    pub tests: Vec<DefinitionTest>,
    /// The schema of every source, or why it cannot be read.
    pub schemas: SourceSchemas,
    /// Everything found, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// The text of every file, for excerpts.
    pub files: SourceMap,
}

/// Reads the files and plans every query against the schemas of its sources, so that what can be wrong with a column or a
/// type is found now and not in a run.
///
/// # Errors
/// When there is no project.
pub async fn load(context: &Context) -> anyhow::Result<Checked> {
    let loaded = context.load()?;
    let mut diagnostics = loaded.diagnostics;
    let mut schemas = SourceSchemas::new();
    // What is whole is planned even when something else is wrong, so that everything is told at once.
    if let (Some(settings), Some(draft)) = (&loaded.settings, &loaded.draft) {
        schemas = engine::sources(settings)?.schemas(draft).await;
        diagnostics.extend(check_project(draft, &schemas).await);
        diagnostics.extend(check_tests(draft, &schemas, &loaded.tests));
        sort(&mut diagnostics);
    }
    let (settings, project, tests, files) = (loaded.settings, loaded.project, loaded.tests, loaded.files);
    Ok(Checked { settings, project, tests, schemas, diagnostics, files })
}

impl Checked {
    /// Settings and project, once everything that is wrong has been shown and none of it was an error.
    ///
    /// # Errors
    /// When there was an error.
    pub fn accepted(self, context: &Context) -> anyhow::Result<(Settings, Project)> {
        context.report(&self.diagnostics, &self.files);
        match (self.settings, self.project) {
            (Some(settings), Some(project)) if !has_errors(&self.diagnostics) => Ok((settings, project)),
            _ => Err(UserError::new("the definitions have errors; nothing was changed").into()),
        }
    }
}
