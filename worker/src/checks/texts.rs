//! Rules about the texts of a column.

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::record_batch::RecordBatch;
use regex::Regex;
use tidegate_quality::formats::Format;
use tidegate_registry::model::TextFormat;

use super::rows::{Failing, RowRule, Unjudgeable, column, recast};

fn failing_texts(batch: &RecordBatch, name: &str, passes: impl Fn(&str) -> bool) -> Result<Failing, Unjudgeable> {
    let texts = recast(column(batch, name)?, name, &DataType::Utf8)?;
    let mut failing = Failing::default();
    for (row, text) in texts.as_string::<i32>().iter().enumerate() {
        if text.is_some_and(|text| !passes(text)) {
            failing.push(row);
        }
    }
    Ok(failing)
}

/// Every text matches.
#[derive(Debug)]
pub(super) struct Matches {
    column: [String; 1],
    pattern: String,
    regex: Option<Regex>,
}

impl Matches {
    pub(super) fn new(column: &str, pattern: &str) -> Self {
        Self { column: [column.to_owned()], pattern: pattern.to_owned(), regex: None }
    }
}

impl RowRule for Matches {
    fn columns(&self) -> &[String] {
        &self.column
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let regex = match &self.regex {
            Some(regex) => regex,
            None => {
                let regex = Regex::new(&self.pattern).map_err(|error| Unjudgeable(error.to_string()))?;
                self.regex.insert(regex)
            }
        };
        failing_texts(batch, &self.column[0], |text| regex.is_match(text))
    }

    fn complaint(&self) -> String {
        format!("a text in {} that does not match `{}`", self.column[0], self.pattern)
    }
}

/// Every text has a format.
#[derive(Debug)]
pub(super) struct Formatted {
    column: [String; 1],
    format: TextFormat,
}

impl Formatted {
    pub(super) fn new(column: &str, format: TextFormat) -> Self {
        Self { column: [column.to_owned()], format }
    }
}

impl RowRule for Formatted {
    fn columns(&self) -> &[String] {
        &self.column
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let format = match self.format {
            TextFormat::Uuid => Format::Uuid,
            TextFormat::Email => Format::Email,
            TextFormat::IsoDate => Format::IsoDate,
            TextFormat::IsoTimestamp => Format::IsoTimestamp,
        };
        let texts = column(batch, &self.column[0])?;
        let matches = format.matches(texts).map_err(|error| Unjudgeable(error.to_string()))?;
        Ok(Failing::where_false(&matches))
    }

    fn complaint(&self) -> String {
        let what = match self.format {
            TextFormat::Uuid => "a UUID",
            TextFormat::Email => "an e-mail address",
            TextFormat::IsoDate => "a day",
            TextFormat::IsoTimestamp => "an instant",
        };
        format!("a text in {} that is not {what}", self.column[0])
    }
}

/// Every text has so many characters.
#[derive(Debug)]
pub(super) struct Length {
    column: [String; 1],
    min: Option<u64>,
    max: Option<u64>,
}

impl Length {
    pub(super) fn new(column: &str, min: Option<u64>, max: Option<u64>) -> Self {
        Self { column: [column.to_owned()], min, max }
    }
}

impl RowRule for Length {
    fn columns(&self) -> &[String] {
        &self.column
    }

    fn failing(&mut self, batch: &RecordBatch) -> Result<Failing, Unjudgeable> {
        let (min, max) = (self.min.unwrap_or(0), self.max.unwrap_or(u64::MAX));
        failing_texts(batch, &self.column[0], |text| (min..=max).contains(&(text.chars().count() as u64)))
    }

    fn complaint(&self) -> String {
        let column = &self.column[0];
        match (self.min, self.max) {
            (Some(min), Some(max)) => format!("a text in {column} that has not {min} to {max} characters"),
            (Some(min), None) => format!("a text in {column} that has fewer than {min} characters"),
            (None, max) => format!("a text in {column} that has more than {} characters", max.unwrap_or(u64::MAX)),
        }
    }
}
