//! Data on standard output: the only place that writes there.
//!
//! Every table is made from the same values as its JSON, so the two cannot disagree. JSON keys are stable: they are
//! checked by golden files, and a list is one array of objects.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::OutputClosed;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; the keys are stable.
    Json,
    /// The same on one line; of a list each item on a line of its own.
    Jsonl,
}

/// A row of a table.
pub trait Row: Serialize {
    /// The column headings.
    const HEADINGS: &'static [&'static str];

    /// One text per column.
    fn cells(&self) -> Vec<String>;
}

/// Standard output.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Prints as `format` says.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether programs are reading.
    pub fn is_json(self) -> bool {
        matches!(self.format, Format::Json | Format::Jsonl)
    }

    /// Prints `text` as it is, ending the line.
    ///
    /// # Errors
    /// [`OutputClosed`] when nobody reads any more, and other failures to write.
    pub fn text(self, text: impl AsRef<str>) -> anyhow::Result<()> {
        let text = text.as_ref();
        let mut stdout = io::stdout().lock();
        let written = stdout
            .write_all(text.as_bytes())
            .and_then(|()| if text.ends_with('\n') { Ok(()) } else { stdout.write_all(b"\n") })
            .and_then(|()| stdout.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => OutputClosed.into(),
            _ => anyhow::Error::new(error).context("writing to standard output"),
        })
    }

    /// Prints one value as JSON.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub fn json(self, value: &impl Serialize) -> anyhow::Result<()> {
        match self.format {
            Format::Jsonl => self.text(serde_json::to_string(value)?),
            Format::Json | Format::Table => self.text(serde_json::to_string_pretty(value)?),
        }
    }

    /// Prints a list: a table, an array, or lines of JSON.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub fn list<R: Row>(self, rows: &[R]) -> anyhow::Result<()> {
        match self.format {
            Format::Table => self.text(table(rows)),
            Format::Json => self.json(&rows),
            Format::Jsonl => rows.iter().try_for_each(|row| self.json(row)),
        }
    }

    /// Prints one thing: labelled lines, or an object. `lines` skips labels whose text is empty.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub fn one(self, value: &impl Serialize, lines: &[(&str, String)]) -> anyhow::Result<()> {
        if self.is_json() { self.json(value) } else { self.text(labelled(lines)) }
    }
}

/// `rows` under their headings.
pub fn table<R: Row>(rows: &[R]) -> String {
    grid(R::HEADINGS, rows.iter().map(Row::cells))
}

/// Lines of cells under `headings`, aligned; wrapped to the terminal's width, when there is one.
pub fn grid(headings: &[&str], lines: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings.iter().copied());
    if io::stdout().is_terminal()
        && let Some((terminal_size::Width(width), _)) = terminal_size::terminal_size()
    {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    for line in lines {
        table.add_row(line);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table.to_string())
}

/// `lines` with their labels aligned; those without text are left out.
pub fn labelled(lines: &[(&str, String)]) -> String {
    let lines: Vec<_> = lines.iter().filter(|(_, text)| !text.is_empty()).collect();
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (label, value) in lines {
        for (index, line) in value.lines().enumerate() {
            let label = if index == 0 { *label } else { "" };
            text.push_str(format!("{label:width$}  {line}").trim_end());
            text.push('\n');
        }
    }
    text
}

/// A share in per cent, never rounded up: only what agrees in everything says 100 %. Nothing is a dash.
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.2} %", (share * 100.0).floor() / 100.0))
}

/// Without the spaces that alignment leaves at the ends of lines.
fn trimmed(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_agrees_in_everything_says_so() {
        let shown = [Some(100.0), Some(99.999), Some(0.0), Some(66.666_7), None].map(percent);
        assert_eq!(shown, ["100.00 %", "99.99 %", "0.00 %", "66.66 %", "-"]);
    }
}
