//! Rules about the texts of a column.

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::record_batch::RecordBatch;
use regex::Regex;
use tidegate_quality::formats::Format;
use tidegate_registry::model::TextFormat;
use xxhash_rust::xxh3::xxh3_64;

use super::rows::{Failing, RowRule, Unjudgeable, column, recast};

fn failing_texts(
    batch: &RecordBatch,
    name: &str,
    mut passes: impl FnMut(&str) -> bool,
) -> Result<Failing, Unjudgeable> {
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
    known: Known,
}

/// What was found of texts lately: columns that are matched against patterns repeat few of them, mostly.
#[derive(Debug, Default)]
struct Known {
    /// By hash: the text, and whether it passes.
    places: Vec<(Box<str>, bool)>,
    asked: u32,
    found: u32,
}

impl Known {
    const PLACES: usize = 512;
    /// Longer texts are not kept.
    const BYTES_MAX: usize = 64;
    /// After so many texts it is known whether keeping them pays.
    const TRIAL: u32 = 1 << 14;

    fn passes(&mut self, text: &str, compute: impl Fn(&str) -> bool) -> bool {
        if text.len() > Self::BYTES_MAX || (self.asked >= Self::TRIAL && self.found < Self::TRIAL / 2) {
            return compute(text);
        }
        if self.places.is_empty() {
            // the empty text is asked about like any other
            self.places.resize(Self::PLACES, (Box::default(), compute("")));
        }
        let place = &mut self.places[xxh3_64(text.as_bytes()) as usize % Self::PLACES];
        let found = *place.0 == *text;
        if !found {
            *place = (text.into(), compute(text));
        }
        if self.asked < Self::TRIAL {
            self.asked += 1;
            self.found += u32::from(found);
        }
        place.1
    }
}

impl Matches {
    pub(super) fn new(column: &str, pattern: &str) -> Self {
        Self { column: [column.to_owned()], pattern: pattern.to_owned(), regex: None, known: Known::default() }
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
        failing_texts(batch, &self.column[0], |text| self.known.passes(text, |text| regex.is_match(text)))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn remembering_texts_changes_no_verdict(
            texts in prop::collection::vec("[ab]{0,3}|[a-z]{60,70}", 1..200),
            rounds in 1..200_usize,
        ) {
            let plain = |text: &str| text.starts_with('a') && !text.ends_with('b');
            let mut known = Known::default();
            for text in texts.iter().cycle().take(texts.len() * rounds) {
                prop_assert_eq!(known.passes(text, plain), plain(text));
            }
        }
    }

    #[test]
    fn texts_that_hardly_repeat_are_not_kept() {
        let mut known = Known::default();
        for number in 0..2 * Known::TRIAL {
            known.passes(&number.to_string(), |_| true);
        }
        let before = known.places.clone();
        known.passes("something new", |_| true);
        assert_eq!(known.places, before, "after the trial nothing is written down any more");
    }
}
