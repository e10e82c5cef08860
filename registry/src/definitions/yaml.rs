//! YAML text as a tree in which every key and value knows its place.
//!
//! The tree is built from the parser's events rather than through serde, because serde stops at the first error of a
//! file and loses places under enums. What a definition file never needs is refused here: aliases (a bomb in one line),
//! tags, several documents, deep nesting.

use std::collections::HashMap;
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span, StructureStyle};

use crate::diagnostics::{Diagnostic, Origin, ids};

/// Larger files are refused: nobody writes them by hand, and all of it is kept in memory.
pub(super) const FILE_BYTES_MAX: usize = 8 << 20;

/// Nesting beyond this is refused; a definition file needs about six levels.
const DEPTH_MAX: usize = 32;

/// A value and its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) style: ScalarStyle,
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) origin: Origin,
}

impl Node {
    /// Plain `null`, `~` or nothing at all.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar)
            if scalar.style == ScalarStyle::Plain && matches!(scalar.text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The value of `key`, when this is a map.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(name, _)| name.name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// What this is, for messages.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(_) if self.is_null() => "nothing".to_owned(),
            Value::Scalar(scalar) => {
                let first = scalar.text.lines().next().unwrap_or_default();
                let short: String = first.chars().take(40).collect();
                if short.len() < scalar.text.trim_end().len() { format!("`{short}…`") } else { format!("`{short}`") }
            }
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

/// Parses the one document of `text`. `None` when there is nothing in it or it cannot be parsed, which is reported.
pub(super) fn parse(file: &Arc<str>, text: &str, out: &mut Vec<Diagnostic>) -> Option<Node> {
    let mut options = granit_parser::options! {
        disallow_directives: true,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    options.set_emit_comments(false);
    let mut builder = Builder { file, lines: Lines::new(text), out, stack: Vec::new(), root: None, documents: 0 };
    for event in Parser::new_from_str_with_options(text, options) {
        let step = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => Err(Box::new(syntax_error(file, &builder.lines, &error))),
        };
        if let Err(diagnostic) = step {
            builder.out.push(*diagnostic);
            return None;
        }
    }
    builder.root
}

/// The characters of each line: the parser counts in characters, and lengths must not run over a line's end.
struct Lines<'a> {
    lines: Vec<&'a str>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self { lines: text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect() }
    }

    fn line(&self, number: usize) -> &'a str {
        number.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or_default()
    }

    /// Characters from `column` (from 0) to the end of the line.
    fn rest(&self, line: usize, column: usize) -> usize {
        self.line(line).trim_end().chars().count().saturating_sub(column)
    }
}

enum Frame {
    List {
        start: Marker,
        style: StructureStyle,
        items: Vec<Node>,
    },
    Map {
        start: Marker,
        style: StructureStyle,
        entries: Vec<(Key, Node)>,
        seen: HashMap<String, Origin>,
        key: Option<Key>,
    },
}

struct Builder<'a> {
    file: &'a Arc<str>,
    lines: Lines<'a>,
    out: &'a mut Vec<Diagnostic>,
    stack: Vec<Frame>,
    root: Option<Node>,
    documents: usize,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Box<Diagnostic>> {
        if let Some(tag) = event.tag() {
            return Err(Diagnostic::error(
                ids::YAML_TAG,
                self.origin(span.tag_start().unwrap_or(span.start), span.start),
                format!("YAML tag `{}` is not supported", tag.original()),
            )
            .with_help("write the plain value; the key already says its type")
            .into());
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let origin = self.origin(span.start, span.end);
                    return Err(Diagnostic::error(ids::YAML_DOCUMENTS, origin, "a file holds one YAML document")
                        .with_label("a second document begins here")
                        .with_help("remove the `---` line, or move what follows into a file of its own")
                        .into());
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                let origin = self.origin(span.start, span.end);
                return Err(Diagnostic::error(ids::YAML_ALIAS, origin, "YAML aliases are not supported")
                    .with_help("write the value out where it is used")
                    .into());
            }
            Event::Scalar(text, style, _, _) => {
                let origin = self.scalar_origin(&text, style, span);
                self.put(Node { origin, value: Value::Scalar(Scalar { text: text.into_owned(), style }) });
            }
            Event::SequenceStart(style, ..) => {
                self.open(Frame::List { start: span.start, style, items: Vec::new() }, span)?;
            }
            Event::MappingStart(style, ..) => {
                let (entries, seen) = (Vec::new(), HashMap::new());
                self.open(Frame::Map { start: span.start, style, entries, seen, key: None }, span)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, frame: Frame, span: Span) -> Result<(), Box<Diagnostic>> {
        if self.stack.len() >= DEPTH_MAX {
            return Err(too_deep(self.origin(span.start, span.end)).into());
        }
        if matches!(self.stack.last(), Some(Frame::Map { key: None, .. })) {
            let origin = self.origin(span.start, span.end);
            return Err(
                Diagnostic::error(ids::YAML_SYNTAX, origin, "a key must be plain text, not a list or a map").into()
            );
        }
        self.stack.push(frame);
        Ok(())
    }

    fn close(&mut self, span: Span) {
        // The parser's events are balanced, so a frame is there.
        let node = match self.stack.pop() {
            Some(Frame::List { start, style, items }) => {
                let block = style == StructureStyle::Block;
                let origin = items.first().filter(|_| block).map(|item| item.origin.clone());
                Node { origin: origin.unwrap_or_else(|| self.origin(start, span.end)), value: Value::List(items) }
            }
            Some(Frame::Map { start, style, entries, .. }) => {
                let block = style == StructureStyle::Block;
                let origin = entries.first().filter(|_| block).map(|(key, _)| key.origin.clone());
                Node { origin: origin.unwrap_or_else(|| self.origin(start, span.end)), value: Value::Map(entries) }
            }
            None => return,
        };
        self.put(node);
    }

    fn put(&mut self, node: Node) {
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::List { items, .. }) => items.push(node),
            Some(Frame::Map { entries, seen, key, .. }) => match key.take() {
                None => {
                    let Value::Scalar(scalar) = node.value else { return };
                    *key = Some(Key { name: scalar.text, origin: node.origin });
                }
                Some(key) => match seen.get(&key.name) {
                    Some(first) => self.out.push(
                        Diagnostic::error(
                            ids::DUPLICATE_KEY,
                            key.origin,
                            format!("key `{}` is written twice in one map", key.name),
                        )
                        .with_label("again here")
                        .with_related(first.clone(), "first written here")
                        .with_help("keep one of the two"),
                    ),
                    None => {
                        seen.insert(key.name.clone(), key.origin.clone());
                        entries.push((key, node));
                    }
                },
            },
        }
    }

    fn origin(&self, start: Marker, end: Marker) -> Origin {
        // Counting the characters of the line each time would take for ever on a file of one long line.
        let length = if end.line() == start.line() {
            end.col().saturating_sub(start.col())
        } else {
            self.lines.rest(start.line(), start.col())
        };
        place(self.file, start.line(), start.col(), length.max(1))
    }

    /// The place of a scalar's first character, so that line n of its text is n - 1 lines further down.
    fn scalar_origin(&self, text: &str, style: ScalarStyle, span: Span) -> Origin {
        match style {
            ScalarStyle::Plain => self.origin(span.start, span.end),
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                let mut origin = self.origin(span.start, span.end);
                if origin.length >= 2 && span.start.line() == span.end.line() && !text.is_empty() {
                    origin.column += 1;
                    origin.length -= 2;
                }
                origin
            }
            ScalarStyle::Literal => self.block_origin(text, span),
            // Its lines are joined, so that no place inside can be told.
            ScalarStyle::Folded => self.origin(span.start, span.start),
        }
    }

    fn block_origin(&self, text: &str, span: Span) -> Origin {
        let blank = text.split('\n').take_while(|line| line.trim().is_empty()).count();
        let Some(first) = text.split('\n').nth(blank).filter(|_| !text.trim().is_empty()) else {
            return self.origin(span.start, span.end);
        };
        // Whether the span begins at the `|` or at the text, the first line that is not blank is the first of the text.
        let header = self.lines.line(span.start.line()).trim();
        let mut line = span.start.line();
        if header != first.trim() {
            line += 1;
            while line < self.lines.lines.len() && self.lines.line(line).trim().is_empty() {
                line += 1;
            }
        }
        let indent_of = |text: &str| text.chars().take_while(|c| *c == ' ').count();
        let indent = indent_of(self.lines.line(line)).saturating_sub(indent_of(first));
        place(self.file, line - blank.min(line - 1), indent, first.chars().count().max(1))
    }
}

fn place(file: &Arc<str>, line: usize, column: usize, length: usize) -> Origin {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Origin::new(Arc::clone(file), number(line), number(column + 1), number(length))
}

fn too_deep(origin: Origin) -> Diagnostic {
    Diagnostic::error(ids::YAML_TOO_DEEP, origin, format!("nested more than {DEPTH_MAX} levels deep"))
        .with_help("no definition needs that; look for an unclosed `[` or `{`")
}

fn syntax_error(file: &Arc<str>, lines: &Lines<'_>, error: &ScanError) -> Diagnostic {
    let marker = *error.marker();
    let (mut line, mut column) = (marker.line().max(1), marker.col());
    // The end of the file is shown at the end of its last line with text.
    while line > 1 && (line > lines.lines.len() || lines.line(line).trim().is_empty()) {
        line -= 1;
        column = lines.line(line).trim_end().chars().count();
    }
    // The parser often stumbles over the text before the tab, so the line after counts as well.
    let tab_in = |line: usize| lines.line(line).chars().take_while(|c| c.is_whitespace()).position(|c| c == '\t');
    if let Some((line, tab)) = [line, line + 1].into_iter().find_map(|line| Some((line, tab_in(line)?))) {
        return Diagnostic::error(ids::YAML_TAB, place(file, line, tab, 1), "a tab is used for indentation")
            .with_label("tab")
            .with_help("indent with spaces: YAML does not allow tabs here");
    }
    let origin = place(file, line, column, 1);
    match error.kind() {
        ErrorKind::RecursionLimitExceeded => too_deep(origin),
        ErrorKind::UnknownAnchor => Diagnostic::error(ids::YAML_ALIAS, origin, "YAML aliases are not supported")
            .with_help("write the value out where it is used; quote text that begins with `*`"),
        kind => {
            let mut title = kind.to_string().replace('\'', "`");
            if let Some(rest) = title.strip_prefix("while ") {
                title = format!("cannot read this as YAML: while {rest}");
            } else {
                title = format!("cannot read this as YAML: {title}");
            }
            Diagnostic::error(ids::YAML_SYNTAX, origin, title).with_help(
                "check the indentation, that quotes and brackets are closed, and that text with `: ` is quoted",
            )
        }
    }
}
