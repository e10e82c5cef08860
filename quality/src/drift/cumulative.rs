//! The share of a profile's finite numbers below a number.

use tidegate_registry::profile::{ColumnProfile, Histogram, RANKS};

use super::NotComparable;
use crate::histogram::{number_bin, number_bin_edges};
use crate::profile::{DRAW_ERROR, SKETCH_ERROR};

/// Quantiles of fewer values are exact.
const EXACT: u64 = 256;

/// The widest gap between two kept ranks.
const GAP: f64 = 0.025;

pub(super) struct Cumulative<'a> {
    quantiles: &'a [f64],
    histogram: &'a Histogram,
    values: u64,
}

impl<'a> Cumulative<'a> {
    pub(super) fn of(profile: &'a ColumnProfile) -> Result<Self, NotComparable> {
        if profile.quantiles.len() != RANKS.len() || profile.histogram.is_empty() {
            return Err(NotComparable::NoDistribution);
        }
        let histogram = &profile.histogram;
        Ok(Self { quantiles: &profile.quantiles, histogram, values: histogram.total() })
    }

    /// Numbers at which something is known.
    pub(super) fn points(&self) -> impl Iterator<Item = f64> {
        self.quantiles.iter().copied()
    }

    /// The share of numbers that are less than `number`.
    pub(super) fn below(&self, number: f64) -> f64 {
        let above = self.quantiles.partition_point(|quantile| *quantile < number);
        self.held(self.between(above, number), number)
    }

    /// The share of numbers that are `number` or less.
    pub(super) fn up_to(&self, number: f64) -> f64 {
        let above = self.quantiles.partition_point(|quantile| *quantile <= number);
        self.held(self.between(above, number), number)
    }

    /// The rank of `number`, which lies between the quantile at `above` and the one before.
    fn between(&self, above: usize, number: f64) -> f64 {
        let Some(high) = self.quantiles.get(above) else { return 1.0 };
        let Some(before) = above.checked_sub(1) else { return 0.0 };
        let low = self.quantiles[before];
        let part = if *high > low { ((number - low) / (high - low)).clamp(0.0, 1.0) } else { 1.0 };
        RANKS[before] + part * (RANKS[above] - RANKS[before])
    }

    /// `rank`, held to what the number's bin allows.
    fn held(&self, rank: f64, number: f64) -> f64 {
        let Some(bin) = number_bin(number) else { return rank };
        let (low, high) = (self.before(bin), self.before(bin.saturating_add(1)));
        rank.clamp(low, high)
    }

    /// The share of numbers in bins before `bin`.
    fn before(&self, bin: i16) -> f64 {
        let bins = self.histogram.bins();
        let before = &bins[..bins.partition_point(|(other, _)| *other < bin)];
        before.iter().map(|(_, count)| count).sum::<u64>() as f64 / self.values as f64
    }

    /// At the end of every bin of either side: where it is, and the difference of the shares up to there.
    pub(super) fn exact_differences(&self, other: &Self) -> Vec<(f64, f64)> {
        let bins = self.histogram.bins().iter().chain(other.histogram.bins());
        bins.map(|(bin, _)| {
            let edges = number_bin_edges(*bin).unwrap_or(0.0..0.0);
            let at = if edges.end.is_finite() { edges.end } else { edges.start };
            (at, self.before(bin.saturating_add(1)) - other.before(bin.saturating_add(1)))
        })
        .collect()
    }

    /// By how much a share is off at most.
    pub(super) fn error(&self) -> f64 {
        let fullest = self.histogram.bins().iter().map(|(_, count)| *count).max().unwrap_or(0);
        let sketch = if self.values <= EXACT { 0.0 } else { SKETCH_ERROR + DRAW_ERROR };
        (sketch + GAP).min(fullest as f64 / self.values as f64)
    }
}
