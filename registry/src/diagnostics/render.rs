//! Diagnostics as text with a caret, and as JSON.

use std::fmt;
use std::sync::Arc;

use indexmap::{IndexMap, IndexSet};
use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, ThemeCharacters, ThemeStyles,
};
use serde_json::{Value, json};

use super::{Diagnostic, Level, Origin};

/// The text of every file that diagnostics may point into.
#[derive(Debug, Clone, Default)]
pub struct SourceMap {
    files: IndexMap<Arc<str>, Arc<str>>,
}

impl SourceMap {
    /// Remembers a file; its path is as in [`Origin::file`].
    pub fn insert(&mut self, file: impl Into<Arc<str>>, text: impl Into<Arc<str>>) {
        self.files.insert(file.into(), text.into());
    }

    /// The text of `file`.
    pub fn get(&self, file: &str) -> Option<&Arc<str>> {
        self.files.get(file)
    }

    /// The files, in the order in which they were read.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(AsRef::as_ref)
    }
}

/// How diagnostics are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenderStyle {
    /// ANSI colours.
    pub color: bool,
    /// Box-drawing characters instead of ASCII.
    pub unicode: bool,
    /// Columns of the terminal.
    pub width: usize,
}

impl Default for RenderStyle {
    fn default() -> Self {
        Self { color: false, unicode: true, width: 120 }
    }
}

/// Excerpts beyond this number help nobody and take long; JSON has them all.
const SHOWN_MAX: usize = 500;

/// All of `diagnostics` (the first 500) with the lines they point at, and a summary as the last line. Empty when there
/// are none.
pub fn render(diagnostics: &[Diagnostic], files: &SourceMap, style: RenderStyle) -> String {
    if diagnostics.is_empty() {
        return String::new();
    }
    let theme = GraphicalTheme {
        characters: if style.unicode { ThemeCharacters::unicode() } else { ThemeCharacters::ascii() },
        styles: if style.color { ThemeStyles::ansi() } else { ThemeStyles::none() },
    };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(style.width.max(40))
        .with_links(false)
        .with_context_lines(1)
        .without_syntax_highlighting();
    let mut text = String::new();
    for diagnostic in diagnostics.iter().take(SHOWN_MAX) {
        render_one(&mut text, &handler, diagnostic, files);
        text.push('\n');
    }
    if diagnostics.len() > SHOWN_MAX {
        text.push_str(&format!("… and {} more\n\n", diagnostics.len() - SHOWN_MAX));
    }
    text.push_str(&summary(diagnostics));
    text.push('\n');
    text
}

fn render_one(text: &mut String, handler: &GraphicalReportHandler, diagnostic: &Diagnostic, files: &SourceMap) {
    let (mut primary, secondary) = Report::of(diagnostic, files);
    let Some(mut secondary) = secondary else {
        render_report(text, handler, &primary, false);
        return;
    };
    // The remedy stands last, after both places.
    secondary.help = primary.help.take();
    render_report(text, handler, &primary, false);
    // The heading would repeat what the label says; without an excerpt it is all there is.
    let excerpt_only = secondary.source.is_some();
    render_report(text, handler, &secondary, excerpt_only);
}

fn render_report(text: &mut String, handler: &GraphicalReportHandler, report: &Report, excerpt_only: bool) {
    let mut rendered = String::new();
    // Writing into a String cannot fail, and the spans were cut to the text.
    let _ = handler.render_report(&mut rendered, report);
    let skipped = |line: &&str| excerpt_only && !line.contains(&format!("[{}]", report.place));
    for line in rendered.trim_end().lines().skip_while(skipped) {
        text.push_str(line);
        text.push('\n');
    }
}

/// One excerpt of one file, as miette wants it.
#[derive(Debug)]
struct Report {
    id: Option<&'static str>,
    level: Level,
    title: String,
    help: Option<String>,
    source: Option<NamedSource<Arc<str>>>,
    labels: Vec<LabeledSpan>,
    /// How the excerpt is headed.
    place: String,
}

impl Report {
    /// The report of the place itself, and one of the related place when it stands in another file or cannot be shown.
    fn of(diagnostic: &Diagnostic, files: &SourceMap) -> (Self, Option<Self>) {
        let mut primary = Self {
            id: Some(diagnostic.id),
            level: diagnostic.level,
            title: diagnostic.title.clone(),
            help: diagnostic.help.clone(),
            source: None,
            labels: Vec::new(),
            place: diagnostic.origin.to_string(),
        };
        primary.show(&diagnostic.origin, &diagnostic.label, files, true);
        if primary.source.is_none() {
            // Without an excerpt the place and what stands there still have to be said.
            let place = &diagnostic.origin;
            if !place.file.is_empty() {
                primary.title = format!("{place}: {}", primary.title);
            }
            if !diagnostic.label.is_empty() {
                primary.title = format!("{} ({})", primary.title, diagnostic.label);
            }
        }
        let Some((origin, label)) = &diagnostic.related else { return (primary, None) };
        if origin.file == diagnostic.origin.file && primary.source.is_some() && origin.line > 0 {
            primary.show(origin, label, files, false);
            return (primary, None);
        }
        let mut secondary = Self {
            id: None,
            level: diagnostic.level,
            title: format!("{label} ({origin})"),
            help: None,
            source: None,
            labels: Vec::new(),
            place: origin.to_string(),
        };
        secondary.show(origin, label, files, true);
        (primary, Some(secondary))
    }

    fn show(&mut self, origin: &Origin, label: &str, files: &SourceMap, main: bool) {
        let Some(text) = files.get(&origin.file) else { return };
        let Some((offset, length)) = byte_range(text, origin) else { return };
        if self.source.is_none() {
            self.source = Some(NamedSource::new(&*origin.file, Arc::clone(text)));
        }
        let label = (!label.is_empty()).then(|| label.to_owned());
        self.labels.push(if main {
            LabeledSpan::new_primary_with_span(label, (offset, length))
        } else {
            LabeledSpan::new_with_span(label, (offset, length))
        });
    }
}

/// Where `origin` lies in `text`, in bytes. `None` when only the file is known or the place is not in the text.
fn byte_range(text: &str, origin: &Origin) -> Option<(usize, usize)> {
    if origin.line == 0 {
        return None;
    }
    let mut start = 0;
    for _ in 1..origin.line {
        start += text[start..].find('\n')? + 1;
    }
    let line = text[start..].split('\n').next().unwrap_or_default();
    let line = line.strip_suffix('\r').unwrap_or(line);
    let at = |chars: usize| line.char_indices().nth(chars).map_or(line.len(), |(offset, _)| offset);
    let from = at(origin.column.saturating_sub(1) as usize);
    let to = at(origin.column.saturating_sub(1) as usize + origin.length.max(1) as usize);
    Some((start + from, to - from))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)
    }
}

impl std::error::Error for Report {}

impl miette::Diagnostic for Report {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.id.map(|id| Box::new(id) as Box<dyn fmt::Display>)
    }

    fn severity(&self) -> Option<Severity> {
        Some(match self.level {
            Level::Error => Severity::Error,
            Level::Warning => Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.source.as_ref().map(|source| source as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        (!self.labels.is_empty()).then(|| Box::new(self.labels.iter().cloned()) as Box<dyn Iterator<Item = _>>)
    }
}

/// How much was found, as in `3 errors, 1 warning in 2 files`.
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    let count = |level| diagnostics.iter().filter(|diagnostic| diagnostic.level == level).count();
    let files: IndexSet<&str> =
        diagnostics.iter().map(|diagnostic| &*diagnostic.origin.file).filter(|file| !file.is_empty()).collect();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let mut parts = Vec::new();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    if errors > 0 || warnings == 0 {
        parts.push(plural(errors, "error"));
    }
    if warnings > 0 {
        parts.push(plural(warnings, "warning"));
    }
    let found = parts.join(", ");
    if files.is_empty() { found } else { format!("{found} in {}", plural(files.len(), "file")) }
}

/// An array of objects with the keys `id, level, title, file, line, column, length, label, help, related`; what is not
/// known is null.
pub fn to_json(diagnostics: &[Diagnostic]) -> Value {
    let known = |number: u32| (number > 0).then_some(number);
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    diagnostics
        .iter()
        .map(|diagnostic| {
            let origin = &diagnostic.origin;
            let related = diagnostic.related.as_ref().map(|(origin, label)| {
                json!({
                    "file": text(&origin.file), "line": known(origin.line), "column": known(origin.column),
                    "length": known(origin.length), "label": text(label),
                })
            });
            json!({
                "id": diagnostic.id, "level": diagnostic.level, "title": diagnostic.title,
                "file": text(&origin.file), "line": known(origin.line), "column": known(origin.column),
                "length": known(origin.length), "label": text(&diagnostic.label), "help": diagnostic.help,
                "related": related,
            })
        })
        .collect()
}
