//! The planner's errors in an author's words, at an author's places.
//!
//! DataFusion attaches a place and notes to most of its errors; what each is about shows only in its text. What is not
//! recognised here is handed on in DataFusion's words as `sql-invalid`, so a new wording costs precision and nothing else.

use datafusion::common::error::add_possible_columns_to_diag;
use datafusion::common::{Diagnostic as Found, SchemaError, Span};
use datafusion::error::DataFusionError;
use tidegate_registry::diagnostics::{Diagnostic, Origin, ids};
use tidegate_registry::model::SqlText;

use super::places::{nearest, place};
use crate::session::is_volatile_function;

/// What `error`, from planning `sql`, says. `columns` are those of all tables that the query reads.
pub(super) fn explain(sql: &SqlText, error: &DataFusionError, columns: &[&str]) -> Vec<Diagnostic> {
    let mut found: Vec<Diagnostic> = Vec::new();
    for error in error.iter() {
        let diagnostic = match error.diagnostic() {
            Some(known) => located(sql, known, error, columns),
            None => vague(sql, error, columns),
        };
        // The planner comes by the same expression more than once, as in SELECT and GROUP BY.
        if !found.contains(&diagnostic) {
            found.push(diagnostic);
        }
    }
    found
}

fn located(sql: &SqlText, known: &Found, error: &DataFusionError, columns: &[&str]) -> Diagnostic {
    let origin = span_place(sql, known.span);
    let message = known.message.as_str();
    let names = quoted(message);
    let name = names.first().copied().unwrap_or_default();
    if message.starts_with("column '") && message.contains("not found") {
        return unknown_column(origin, name, names.get(1).copied(), known, columns);
    }
    if message.starts_with("column '") && message.ends_with("is ambiguous") {
        let choices: Vec<String> = notes(known, "possible column ").map(|note| format!("`{note}`")).collect();
        let help = if choices.is_empty() { "put the table's name before it".to_owned() } else { choices.join(" or ") };
        return Diagnostic::error(ids::AMBIGUOUS_COLUMN, origin, format!("`{name}` is in several tables"))
            .with_label("which one is meant")
            .with_help(format!("say which one: {help}"));
    }
    if message.starts_with("Invalid function '") {
        return unknown_function(origin, name, known);
    }
    if message.contains("GROUP BY clause") || message.contains("GROUP BY") {
        let title = format!("{} is neither grouped by nor aggregated", ticked(message));
        return Diagnostic::error(ids::NOT_GROUPED, origin, title)
            .with_label("a group has many values of this")
            .with_help("add it to GROUP BY, or take one value of each group, as with `max(…)`");
    }
    if message == "expressions have incompatible types" {
        let types: Vec<_> = known.notes.iter().filter_map(|note| note.message.strip_prefix("has type ")).collect();
        let title = match types.as_slice() {
            [left, right] => format!("a {} and a {} do not go together", words(left), words(right)),
            _ => "the types of this expression do not go together".to_owned(),
        };
        return Diagnostic::error(ids::INCOMPATIBLE_TYPES, origin, title)
            .with_label("here")
            .with_help("convert one of them with CAST(… AS …)");
    }
    let diagnostic = Diagnostic::error(ids::SQL_INVALID, origin, sentence(message)).with_label("here");
    let help = known.helps.first().map(|help| sentence(&help.message));
    match help.or_else(|| details(error)) {
        Some(help) => diagnostic.with_help(help),
        None => diagnostic,
    }
}

fn unknown_column(origin: Origin, name: &str, table: Option<&str>, known: &Found, columns: &[&str]) -> Diagnostic {
    let title = match table {
        Some(table) => format!("`{table}` has no column `{name}`"),
        None => format!("there is no column `{name}`"),
    };
    let possible: Vec<&str> =
        notes(known, "possible column ").map(|note| note.rsplit('.').next().unwrap_or(note)).collect();
    let near = nearest(name, possible.iter().copied()).or_else(|| nearest(name, columns.iter().copied()));
    const LISTED_MAX: usize = 16;
    let diagnostic = Diagnostic::error(ids::UNKNOWN_COLUMN, origin, title).with_label("no column with this name");
    match near.or_else(|| possible.first().copied()) {
        Some(near) => diagnostic.with_help(format!("did you mean `{near}`?")),
        None if (1..=LISTED_MAX).contains(&columns.len()) => {
            let list = columns.iter().map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ");
            diagnostic.with_help(format!("there are {list}"))
        }
        None => diagnostic,
    }
}

fn unknown_function(origin: Origin, name: &str, known: &Found) -> Diagnostic {
    if is_volatile_function(name) {
        let help = match name.to_lowercase().as_str() {
            "random" | "uuid" => "derive it from the row's own values, for example with `md5`",
            _ => "use `$interval_end`: the instant up to which the run looks",
        };
        return Diagnostic::error(
            ids::VOLATILE_FUNCTION,
            origin,
            format!("`{name}` gives another answer each time, so a run could not be repeated"),
        )
        .with_label("not available in views")
        .with_help(help);
    }
    let diagnostic = Diagnostic::error(ids::UNKNOWN_FUNCTION, origin, format!("there is no function `{name}`"))
        .with_label("no function with this name");
    let near = known.notes.iter().find_map(|note| quoted(&note.message).first().copied());
    // DataFusion always names the nearest one, however far.
    let near = near.filter(|near| strsim::osa_distance(&name.to_lowercase(), near) <= (name.len() / 3).max(1));
    match near {
        Some(near) => diagnostic.with_help(format!("did you mean `{near}`?")),
        None => diagnostic.with_help("https://datafusion.apache.org/user-guide/sql lists the functions"),
    }
}

/// An error without a place: what it names, if the query names it once, else the whole query.
fn vague(sql: &SqlText, error: &DataFusionError, columns: &[&str]) -> Diagnostic {
    if let DataFusionError::SchemaError(schema_error, _) = error.find_root()
        && let SchemaError::FieldNotFound { field, valid_fields } = schema_error.as_ref()
    {
        let origin = match field.spans().first() {
            Some(span) => span_place(sql, Some(span)),
            None => word(sql, &field.name).unwrap_or_else(|| sql.origin.clone()),
        };
        let mut known = Found::new_error(String::new(), None);
        add_possible_columns_to_diag(&mut known, field, valid_fields);
        return unknown_column(origin, &field.name, None, &known, columns);
    }
    let message = message_of(error);
    let first = message.lines().next().unwrap_or_default();
    if let Some((name, types)) = message.split('\'').find_map(signature) {
        let types = types.iter().map(|kind| words(kind)).collect::<Vec<_>>().join(", ");
        let origin = call_of(sql, name).unwrap_or_else(|| sql.origin.clone());
        let title = format!("`{name}` does not take ({types})");
        return Diagnostic::error(ids::INCOMPATIBLE_TYPES, origin, title)
            .with_label("this call")
            .with_help("convert what it is given with CAST(… AS …)");
    }
    let called = quoted(first).iter().find_map(|name| call_of(sql, name));
    let label = if called.is_some() { "here" } else { "in this query" };
    let origin = called.unwrap_or_else(|| sql.origin.clone());
    let diagnostic = Diagnostic::error(ids::SQL_INVALID, origin, sentence(first)).with_label(label);
    match details(error) {
        Some(help) => diagnostic.with_help(help),
        None => diagnostic,
    }
}

/// A call with the types that it was given, as in `sum(Utf8)`.
fn signature(text: &str) -> Option<(&str, Vec<&str>)> {
    let (name, types) = text.strip_suffix(')')?.split_once('(')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then(|| (name, types.split(", ").collect()))
}

/// Where `name(` stands, when it stands there once.
fn call_of(sql: &SqlText, name: &str) -> Option<Origin> {
    once(sql, name, |after| after.starts_with('('))
}

/// Where the word `name` stands, when it stands there once.
fn word(sql: &SqlText, name: &str) -> Option<Origin> {
    once(sql, name, |after| !after.starts_with(is_word))
}

fn once(sql: &SqlText, name: &str, fits: impl Fn(&str) -> bool) -> Option<Origin> {
    let (text, name) = (sql.text.to_lowercase(), name.to_lowercase());
    if name.is_empty() {
        return None;
    }
    let mut found =
        text.match_indices(&name).filter(|(at, _)| !text[..*at].ends_with(is_word) && fits(&text[at + name.len()..]));
    let (at, _) = found.next()?;
    if found.next().is_some() {
        return None;
    }
    let line_start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let line = text[..at].matches('\n').count() as u64 + 1;
    let column = text[line_start..at].chars().count() as u64 + 1;
    Some(place(sql, (line, column), (line, column + name.chars().count() as u64)))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn span_place(sql: &SqlText, span: Option<Span>) -> Origin {
    span.map_or_else(
        || sql.origin.clone(),
        |span| place(sql, (span.start.line, span.start.column), (span.end.line, span.end.column)),
    )
}

fn notes<'a>(known: &'a Found, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    known.notes.iter().filter_map(move |note| note.message.strip_prefix(prefix))
}

/// The texts between single quotes.
fn quoted(message: &str) -> Vec<&str> {
    message.split('\'').skip(1).step_by(2).collect()
}

fn ticked(message: &str) -> String {
    match message.split(['\'', '"']).nth(1) {
        Some(name) => format!("`{name}`"),
        None => "this column".to_owned(),
    }
}

fn message_of(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let text = text.strip_prefix("Error during planning: ").unwrap_or(&text);
    let text = text.strip_prefix("This feature is not implemented: ").unwrap_or(text);
    text.strip_prefix("Schema error: ").unwrap_or(text).to_owned()
}

/// The lines of the planner's message after the first: candidates, advice.
fn details(error: &DataFusionError) -> Option<String> {
    let message = message_of(error);
    let rest: Vec<_> = message.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
    (!rest.is_empty()).then(|| sentence(&rest.join("; ")))
}

/// As our own messages begin and end: lower case, no full stop.
fn sentence(text: &str) -> String {
    let text = text.trim().trim_end_matches('.').replace('\'', "`");
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return text };
    let second_is_lower = characters.clone().next().is_some_and(|c| c.is_lowercase() || c == ' ');
    if second_is_lower { first.to_lowercase().chain(characters).collect() } else { text }
}

/// A type that a message spells as Arrow does, in the words of definitions.
fn words(arrow: &str) -> &str {
    match arrow {
        "Utf8" | "Utf8View" | "LargeUtf8" => "string",
        "Boolean" => "boolean",
        "Int8" | "Int16" | "Int32" => "integer",
        "Int64" => "bigint",
        "Float32" => "float",
        "Float64" => "double",
        "Date32" => "date",
        _ if arrow.starts_with("Timestamp") => "timestamp",
        _ if arrow.starts_with("Interval") || arrow.starts_with("Duration") => "interval",
        _ => arrow,
    }
}
