//! Profiles of texts.
//!
//! Everything is done once per different text of a chunk, told apart by hash and bytes. Texts are kept cut: extremes to
//! what a profile shows, frequent ones to [`KEY_BYTES`] with a hash of the whole behind, so that memory stays bounded
//! whatever they hold.

use arrow_array::{Array, ArrayAccessor};
use tidegate_registry::profile::{ColumnProfile, FrequentValue, Histogram, Lengths, ProfileKind};
use xxhash_rust::xxh3::xxh3_64;

use super::counting::CHUNK;
use super::frequent::Frequent;
use super::{Distinct, FREQUENT_MAX, Work};
use crate::histogram::{TEXT_BINS, text_bin};

/// Longer texts are cut in profiles: they are for people, and kept for every run.
const EXTREME_CHARACTERS: usize = 200;

/// Longer texts are known by their beginning and their hash when they are counted.
const KEY_BYTES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Texts {
    distinct: Distinct,
    frequent: Frequent<String>,
    range: Option<(Extreme, Extreme)>,
    /// Shortest and longest in characters, and all characters.
    lengths: Option<(u64, u64)>,
    characters: u64,
    bins: [u64; TEXT_BINS],
}

/// The beginning of a text, and whether there is more of it. Beginnings ascend as the texts do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Extreme {
    start: Box<str>,
    cut: bool,
}

impl Extreme {
    fn of(text: &str) -> Self {
        match text.char_indices().nth(EXTREME_CHARACTERS) {
            Some((end, _)) => Self { start: text[..end].into(), cut: true },
            None => Self { start: text.into(), cut: false },
        }
    }

    fn shown(&self) -> String {
        if self.cut { format!("{}…", self.start) } else { self.start.to_string() }
    }
}

impl Texts {
    pub(super) fn update<'a, A: Array>(&mut self, array: &'a A, work: &mut Work)
    where
        &'a A: ArrayAccessor<Item = &'a str>,
    {
        let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
        let counts = &mut work.counts;
        for start in (0..array.len()).step_by(CHUNK) {
            counts.clear();
            for row in start..array.len().min(start + CHUNK) {
                if nulls.is_some_and(|nulls| nulls.is_null(row)) {
                    continue;
                }
                let text = array.value(row);
                counts.add(xxh3_64(text.as_bytes()), (row - start) as u32, |other| {
                    array.value(start + other as usize) == text
                });
            }
            for entry in counts.entries() {
                self.add(array.value(start + entry.row as usize), entry.key, u64::from(entry.count));
            }
            self.frequent.add(counts.entries(), |entry| key(array.value(start + entry.row as usize), entry.key));
        }
    }

    fn add(&mut self, text: &str, hash: u64, count: u64) {
        self.distinct.add(hash);
        self.bins[text_bin(hash)] += count;
        let length = text.chars().count() as u64;
        self.characters += length * count;
        let (shortest, longest) = self.lengths.unwrap_or((length, length));
        self.lengths = Some((shortest.min(length), longest.max(length)));
        match &mut self.range {
            None => self.range = Some((Extreme::of(text), Extreme::of(text))),
            Some((min, max)) => {
                if *text < *min.start || (min.cut && text == &*min.start) {
                    *min = Extreme::of(text);
                }
                if *text > *max.start {
                    *max = Extreme::of(text);
                }
            }
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.distinct.merge(&other.distinct);
        self.frequent.merge(&other.frequent);
        self.characters += other.characters;
        self.lengths = match (self.lengths, other.lengths) {
            (Some(ours), Some(theirs)) => Some((ours.0.min(theirs.0), ours.1.max(theirs.1))),
            (ours, theirs) => ours.or(theirs),
        };
        self.range = match (self.range.take(), other.range) {
            (Some(ours), Some(theirs)) => Some((ours.0.min(theirs.0), ours.1.max(theirs.1))),
            (ours, theirs) => ours.or(theirs),
        };
        for (ours, theirs) in self.bins.iter_mut().zip(other.bins) {
            *ours += theirs;
        }
    }

    pub(super) fn finish(self, profile: ColumnProfile) -> ColumnProfile {
        let values = profile.values();
        let frequent = self.frequent.top(FREQUENT_MAX).into_iter();
        let frequent = frequent.map(|counted| FrequentValue { value: counted.value, count: counted.count });
        let lengths = self.lengths.map(|(min, max)| Lengths { min, max, mean: self.characters as f64 / values as f64 });
        ColumnProfile {
            kind: ProfileKind::Text,
            distinct: Some(self.distinct.estimate().min(values)),
            min: self.range.as_ref().map(|(min, _)| min.shown()),
            max: self.range.as_ref().map(|(_, max)| max.shown()),
            frequent: frequent.collect(),
            frequent_error: self.frequent.error(),
            lengths,
            histogram: Histogram::new(self.bins.into_iter().enumerate().map(|(bin, count)| (bin as i16, count))),
            ..profile
        }
    }
}

/// What a text is counted by.
fn key(text: &str, hash: u64) -> String {
    if text.len() <= KEY_BYTES {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(KEY_BYTES - "…0123456789abcdef".len());
    format!("{}…{hash:016x}", &text[..end])
}
