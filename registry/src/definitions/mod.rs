//! From an author's YAML files to a [`crate::model::Project`], or to everything that is wrong with them.
//!
//! Begin with [`load`]. What may be written is declared in `written`, key by key; `yaml` and `read` turn text into those
//! types with a place for every value; `validate` turns them into the model. Nothing stops at the first mistake: each
//! step reports what it finds and hands on what is still known.

mod files;
mod read;
mod rules;
pub mod scalars;
mod schema;
pub mod settings;
pub(crate) mod sql;
mod validate;
mod written;
mod yaml;

use std::path::Path;
use std::sync::Arc;

pub use files::PROJECT_FILE;
pub use schema::json_schema;
pub use settings::{LoadOptions, Settings};

use files::Files;
pub(crate) use read::nearest;

use read::{At, Read};
use rules::Rules;
use settings::ProjectFile;
use validate::{Context, Written};
use written::DefinitionFile;

use crate::diagnostics::{self, Diagnostic, Level, Origin, SourceMap, has_errors, ids};
use crate::ids::ProjectName;
use crate::model::{DefinitionTest, Project};

/// What became of a project's files.
#[derive(Debug)]
pub struct Loaded {
    /// The settings, unless something is wrong with them.
    pub settings: Option<Settings>,
    /// The project, unless any error was found.
    pub project: Option<Project>,
    /// What is whole even if errors were found elsewhere: definitions without a mistake that need none with one. For
    /// finding more (planning the SQL against the sources), never for running.
    pub draft: Option<Project>,
    /// The tests without a mistake, of views without one.
    pub tests: Vec<DefinitionTest>,
    /// Everything found, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// The text of every file, for excerpts.
    pub files: SourceMap,
}

/// Reads and validates the project in the folder `root`.
///
/// Read are `tidegate.yaml` and every `*.yaml` and `*.yml` below the folder, except hidden files and folders and
/// folders that are projects of their own.
pub fn load(root: &Path, options: &LoadOptions<'_>) -> Loaded {
    load_from(root, &Files::disk(root), options)
}

/// Reads and validates a project that is in memory: paths relative to the project, with their content.
pub fn load_files(root: &Path, files: &[(&str, &[u8])], options: &LoadOptions<'_>) -> Loaded {
    load_from(root, &Files::memory(files), options)
}

fn load_from(root: &Path, files: &Files<'_>, options: &LoadOptions<'_>) -> Loaded {
    let mut out = Vec::new();
    let mut sources = SourceMap::default();
    let project_file = project_file(root, files, &mut sources, &mut out);
    let (settings, rules, webhooks) = match project_file {
        Some(file) => {
            let settings = settings::resolve(root, &file, options, &mut out);
            (settings, Rules::new(file.value.rules.value()), settings::webhook_names(&file.value))
        }
        None => (None, Rules::default(), Vec::new()),
    };
    let mut written = Written::default();
    for path in files.definitions(&mut out) {
        if let Some(file) = definition_file(&path, files, &mut sources, &mut out) {
            written.add(file);
        }
    }
    // Definitions are checked even when the settings are wrong; the name then stands for the one that is missing.
    let fallback = || ProjectName::new("project").ok();
    let name = settings.as_ref().map(|settings| settings.project.clone()).or_else(fallback);
    let (draft, tests) = name.map_or_else(Default::default, |name| {
        let allowed_roots = settings.as_ref().map_or(&[] as &[String], |settings| &settings.allowed_roots);
        let context = Context { project: name, files, allowed_roots, rules: &rules, webhooks: &webhooks };
        let (draft, tests) = validate::validate(&context, &written, &mut sources, &mut out);
        (Some(draft), tests)
    });
    diagnostics::sort(&mut out);
    let project = draft.clone().filter(|_| !has_errors(&out));
    Loaded { settings, project, draft, tests, diagnostics: out, files: sources }
}

fn project_file(
    root: &Path,
    files: &Files<'_>,
    sources: &mut SourceMap,
    out: &mut Vec<Diagnostic>,
) -> Option<At<ProjectFile>> {
    if !files.exists(PROJECT_FILE) {
        out.push(
            Diagnostic::error(
                ids::PROJECT_NOT_FOUND,
                Origin::default(),
                format!("there is no `{PROJECT_FILE}` in `{}`", root.display()),
            )
            .with_help(
                "go to the project's folder, name it with `--project DIR`, or make one with `tidegate init DIR`",
            ),
        );
        return None;
    }
    let text = files.read(PROJECT_FILE, None, sources, out)?;
    let node = node(&PROJECT_FILE.into(), &text, out)?;
    let lists = DefinitionFile::KEYS;
    let before = out.len();
    let file = At::read(&node, out);
    for diagnostic in &mut out[before..] {
        let is_list = |key: &&&str| diagnostic.title.contains(&format!("unknown key `{key}` "));
        if diagnostic.id == ids::UNKNOWN_KEY && lists.iter().any(|key| is_list(&key)) {
            diagnostic.help =
                Some("definitions stand in other files beside this one, for example `views.yaml`".to_owned());
        }
    }
    file
}

fn definition_file(
    path: &str,
    files: &Files<'_>,
    sources: &mut SourceMap,
    out: &mut Vec<Diagnostic>,
) -> Option<DefinitionFile> {
    let text = files.read(path, None, sources, out)?;
    let node = node(&path.into(), &text, out)?;
    DefinitionFile::read(&node, out)
}

/// The YAML of one file; a file without any is reported, since it looks like definitions that got lost.
fn node(file: &Arc<str>, text: &str, out: &mut Vec<Diagnostic>) -> Option<yaml::Node> {
    let before = out.len();
    let node = yaml::parse(file, text, out).filter(|node| !node.is_null());
    let failed = out[before..].iter().any(|diagnostic| diagnostic.level == Level::Error);
    if node.is_none() && !failed {
        out.push(
            Diagnostic::error(ids::EMPTY_FILE, Origin::file(Arc::clone(file)), "the file is empty")
                .with_help("write definitions into it, or delete it"),
        );
    }
    node
}
