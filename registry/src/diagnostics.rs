//! Findings about an author's files, as data: id, where, what, and what to try. Rendered as text with a caret, or as JSON.
//!
//! A [`Diagnostic`] says the fact in its title, the place in its label and the remedy in its help. Ids are stable and each
//! has an entry in `docs/diagnostics.md`.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

pub mod ids;
mod render;

pub use render::{RenderStyle, SourceMap, render, summary, to_json};

/// A place in an author's file. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// Path relative to the project; empty when unknown (a definition read back from the registry).
    pub file: Arc<str>,
    /// Line, from 1; 0 when only the file is known.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// Length in characters on that line; at least 1 when rendered.
    pub length: u32,
}

impl Origin {
    /// A place of `length` characters.
    pub fn new(file: impl Into<Arc<str>>, line: u32, column: u32, length: u32) -> Self {
        Self { file: file.into(), line, column, length }
    }

    /// A whole file.
    pub fn file(file: impl Into<Arc<str>>) -> Self {
        Self::new(file, 0, 0, 0)
    }

    /// The place `line` lines and `column` characters (both from 1) into a text that begins here: how positions inside
    /// SQL become positions in the file.
    pub fn inside(&self, line: u32, column: u32, length: u32) -> Self {
        Self {
            file: Arc::clone(&self.file),
            line: self.line + line.saturating_sub(1),
            column: self.column + column.saturating_sub(1),
            length,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str(&self.file) } else { write!(f, "{}:{}:{}", self.file, self.line, self.column) }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing may run until it is mended.
    Error,
    /// Worth knowing.
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable kebab-case id, as in `unknown-source`.
    pub id: &'static str,
    /// Error or warning.
    pub level: Level,
    /// The fact, in one lower-case sentence without a full stop.
    pub title: String,
    /// Where.
    pub origin: Origin,
    /// What stands at `origin`.
    pub label: String,
    /// A second place, with what stands there ("first defined here").
    pub related: Option<(Origin, String)>,
    /// What to try.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error.
    pub fn error(id: &'static str, origin: Origin, title: impl Into<String>) -> Self {
        Self { id, level: Level::Error, title: title.into(), origin, label: String::new(), related: None, help: None }
    }

    /// A warning.
    pub fn warning(id: &'static str, origin: Origin, title: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::error(id, origin, title) }
    }

    /// Says what stands at the place.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Points at a second place.
    #[must_use]
    pub fn with_related(mut self, origin: Origin, label: impl Into<String>) -> Self {
        self.related = Some((origin, label.into()));
        self
    }

    /// Says what to try.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Whether any of `diagnostics` is an error.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|diagnostic| diagnostic.level == Level::Error)
}

/// Puts `diagnostics` into the order of their places (what has none comes first) and drops repeats: for findings of
/// several steps that are shown together.
pub fn sort(diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.sort_by(|a, b| {
        let place = |d: &Diagnostic| (Arc::clone(&d.origin.file), d.origin.line, d.origin.column);
        place(a).cmp(&place(b)).then_with(|| a.level.cmp(&b.level))
    });
    diagnostics.dedup();
}
