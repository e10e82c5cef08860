//! What a run found out about the data that it staged: statistics per column and per view, as they are kept for good.
//!
//! Only the data and its JSON live here; `tidegate-quality` computes it and knows what follows from it. Every field but
//! `nulls` may be missing: profiles of older runs have only nulls, smallest and largest value, and must stay readable.

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// The ranks of [`ColumnProfile::quantiles`]: the ends, one and ninety-nine in a hundred, and every fortieth between.
pub const RANKS: [f64; 43] = [
    0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.275, 0.3, 0.325, 0.35, 0.375, 0.4,
    0.425, 0.45, 0.475, 0.5, 0.525, 0.55, 0.575, 0.6, 0.625, 0.65, 0.675, 0.7, 0.725, 0.75, 0.775, 0.8, 0.825, 0.85,
    0.875, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0,
];

/// What the values of a profiled column are; profiles of different kinds are not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileKind {
    /// Lists, and profiles written before kinds were: nothing but rows, nulls, smallest and largest value is known.
    #[default]
    Other,
    /// Whole numbers.
    Integer,
    /// Numbers with a fraction.
    Float,
    /// True or false.
    Boolean,
    /// Texts.
    Text,
    /// Days; numbers of the profile are days since 1970.
    Date,
    /// Instants; numbers of the profile are microseconds since 1970.
    Instant,
}

impl ProfileKind {
    /// Whether mean, quantiles and histogram are about numbers (or days and instants counted as numbers).
    pub fn is_numeric(self) -> bool {
        matches!(self, Self::Integer | Self::Float | Self::Date | Self::Instant)
    }
}

/// Statistics of one staged column.
///
/// Mean, spread, sum and quantiles are about the finite values: neither nulls, NaN nor infinities count in them. They are
/// absent where there is no such value, and where they would not be finite themselves.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ColumnProfile {
    /// What the values are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: ProfileKind,
    /// Rows, nulls included.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rows: u64,
    /// Nulls.
    pub nulls: u64,
    /// Values that are not a number, though their type is one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nans: u64,
    /// Values that are infinite, of either sign.
    #[serde(default, skip_serializing_if = "is_default")]
    pub infinities: u64,
    /// How many different values there are, estimated; NaN is none, the zeros are one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct: Option<u64>,
    /// Smallest value as canonical text, cut at 200 characters; absent for lists, and when all are null or NaN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// Largest value as canonical text, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// Mean; for days and instants since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// Standard deviation of the sample (divisor n − 1); absent below two values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stddev: Option<f64>,
    /// Sum; not of days and instants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<f64>,
    /// The values at [`RANKS`], or nothing. Rounded to about six digits of their spread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantiles: Vec<f64>,
    /// The most frequent values, most frequent first: those whose count surpasses what is unsure about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frequent: Vec<FrequentValue>,
    /// How many occurrences the counts of `frequent` may lack, each; what is not listed because of it is no rarer than
    /// this. 0: the counts are exact.
    #[serde(default, skip_serializing_if = "is_default")]
    pub frequent_error: u64,
    /// Lengths of texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Lengths>,
    /// How many booleans are true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trues: Option<u64>,
    /// Counts in bins that do not depend on the data: of numbers by size, of texts by hash.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub histogram: Histogram,
}

impl ColumnProfile {
    /// Rows that have a value.
    pub fn values(&self) -> u64 {
        self.rows.saturating_sub(self.nulls)
    }

    /// Values that are finite numbers, which is what numeric statistics are about.
    pub fn finite(&self) -> u64 {
        self.values().saturating_sub(self.nans).saturating_sub(self.infinities)
    }

    /// Share of rows that are null; `None` without rows.
    pub fn null_rate(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.nulls as f64 / self.rows as f64)
    }

    /// Share of values that are true; `None` without values, and for other kinds than booleans.
    pub fn true_ratio(&self) -> Option<f64> {
        self.trues.filter(|_| self.values() > 0).map(|trues| trues as f64 / self.values() as f64)
    }

    /// The value below which `rank` (from 0 to 1) of the finite values lie: as kept for one of [`RANKS`], in between on
    /// the line between its neighbours.
    pub fn quantile(&self, rank: f64) -> Option<f64> {
        if self.quantiles.len() != RANKS.len() || !(0.0..=1.0).contains(&rank) {
            return None;
        }
        let above = RANKS.partition_point(|known| *known < rank - 1e-9).min(RANKS.len() - 1);
        if above == 0 || (RANKS[above] - rank).abs() < 1e-9 {
            return Some(self.quantiles[above]);
        }
        let (low, high) = (self.quantiles[above - 1], self.quantiles[above]);
        let part = (rank - RANKS[above - 1]) / (RANKS[above] - RANKS[above - 1]);
        // rounding must not carry it beyond its neighbours
        Some((low * (1.0 - part) + high * part).max(low).min(high))
    }
}

/// One of the most frequent values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrequentValue {
    /// The value as canonical text; a long text is cut, and a hash of the whole follows the cut.
    pub value: String,
    /// How often it occurs at least; at most by the profile's `frequent_error` more often.
    pub count: u64,
}

/// Lengths of texts in characters (Unicode scalar values).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// Of the shortest.
    pub min: u64,
    /// Of the longest.
    pub max: u64,
    /// Mean.
    pub mean: f64,
}

/// Counts by bin. Bins are the same for every column and every run, so histograms of one kind can be added and compared;
/// which values a bin holds is decided in `tidegate-quality` (`histogram`) and never changes.
///
/// As JSON a list of runs of neighbouring bins: the number of the first bin, then the counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<i64>>", into = "Vec<Vec<i64>>")]
pub struct Histogram {
    bins: Vec<(i16, u64)>,
}

/// Stored text that is no histogram.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a histogram has runs of a first bin and counts, in ascending order of bins")]
pub struct NoHistogram;

impl Histogram {
    /// From bins and their counts in any order; counts of the same bin are added.
    pub fn new(counts: impl IntoIterator<Item = (i16, u64)>) -> Self {
        let mut bins: Vec<(i16, u64)> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        bins.sort_unstable_by_key(|(bin, _)| *bin);
        bins.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 += later.1;
            }
            same
        });
        Self { bins }
    }

    /// Bins that hold something, ascending, with their counts.
    pub fn bins(&self) -> &[(i16, u64)] {
        &self.bins
    }

    /// Whether no bin holds anything.
    pub fn is_empty(&self) -> bool {
        self.bins.is_empty()
    }

    /// All counts added.
    pub fn total(&self) -> u64 {
        self.bins.iter().map(|(_, count)| count).sum()
    }
}

impl From<Histogram> for Vec<Vec<i64>> {
    fn from(histogram: Histogram) -> Self {
        let mut runs: Self = Vec::new();
        let mut next = None;
        for (bin, count) in histogram.bins {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            match (runs.last_mut(), next) {
                // a zero or two is shorter than a new run
                (Some(run), Some(next)) if (0..=2).contains(&(i32::from(bin) - next)) => {
                    run.extend((next..i32::from(bin)).map(|_| 0));
                    run.push(count);
                }
                _ => runs.push(vec![i64::from(bin), count]),
            }
            next = Some(i32::from(bin) + 1);
        }
        runs
    }
}

impl TryFrom<Vec<Vec<i64>>> for Histogram {
    type Error = NoHistogram;

    fn try_from(runs: Vec<Vec<i64>>) -> Result<Self, NoHistogram> {
        let mut bins: Vec<(i16, u64)> = Vec::new();
        for run in runs {
            let (first, counts) = run.split_first().ok_or(NoHistogram)?;
            for (bin, count) in (*first..).zip(counts) {
                let bin = i16::try_from(bin).map_err(|_| NoHistogram)?;
                let count = u64::try_from(*count).map_err(|_| NoHistogram)?;
                if bins.last().is_some_and(|(before, _)| *before >= bin) {
                    return Err(NoHistogram);
                }
                if count > 0 {
                    bins.push((bin, count));
                }
            }
        }
        Ok(Self { bins })
    }
}

/// Statistics of the rows of one staged view.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ViewProfile {
    /// Rows staged.
    pub rows: u64,
    /// Bytes staged.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bytes: u64,
    /// Rows whose entity key another row has too, beyond the first of each key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub duplicate_keys: u64,
    /// The earliest event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_event: Option<Instant>,
    /// The latest event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<Instant>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_of_older_runs_are_read() {
        let old: ColumnProfile = serde_json::from_str(r#"{"nulls":3,"min":"1","max":"7"}"#).unwrap();
        assert_eq!(
            old,
            ColumnProfile { nulls: 3, min: Some("1".into()), max: Some("7".into()), ..ColumnProfile::default() }
        );
        assert_eq!(serde_json::to_string(&old).unwrap(), r#"{"nulls":3,"min":"1","max":"7"}"#);
        let older: ColumnProfile = serde_json::from_str(r#"{"nulls":0}"#).unwrap();
        assert_eq!((older.null_rate(), older.quantile(0.5), older.true_ratio()), (None, None, None));
    }

    #[test]
    fn histograms_are_short_in_json_and_come_back() {
        let histogram = Histogram::new([(7, 2), (-3, 5), (-2, 1), (9, 4), (200, 1), (7, 1)]);
        assert_eq!(histogram.bins(), [(-3, 5), (-2, 1), (7, 3), (9, 4), (200, 1)]);
        assert_eq!(histogram.total(), 14);
        let json = serde_json::to_string(&histogram).unwrap();
        assert_eq!(json, "[[-3,5,1],[7,3,0,4],[200,1]]");
        assert_eq!(serde_json::from_str::<Histogram>(&json).unwrap(), histogram);
        for wrong in ["[[]]", "[[1,2],[1,3]]", "[[1,-2]]", "[[40000,1]]"] {
            assert!(serde_json::from_str::<Histogram>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quantiles_are_found_by_rank() {
        let quantiles = RANKS.iter().map(|rank| rank * 100.0).collect();
        let profile = ColumnProfile { quantiles, ..ColumnProfile::default() };
        for rank in [0.0, 0.01, 0.05, 0.25, 0.5, 0.501, 0.75, 0.95, 0.99, 0.999, 1.0] {
            let found = profile.quantile(rank).unwrap();
            assert!((found - rank * 100.0).abs() < 1e-6, "{rank}: {found}");
        }
        assert_eq!(profile.quantile(1.1), None);
        assert_eq!(profile.quantile(f64::NAN), None);

        let one = ColumnProfile { quantiles: vec![14006.33184909752; RANKS.len()], ..ColumnProfile::default() };
        for rank in 0..=1_000 {
            assert_eq!(one.quantile(f64::from(rank) / 1e3), Some(14006.33184909752), "{rank}");
        }
    }
}
