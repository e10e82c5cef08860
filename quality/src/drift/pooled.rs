//! One profile for several: the last runs as one reference.

use std::collections::BTreeMap;

use tidegate_registry::profile::{ColumnProfile, FrequentValue, Histogram, RANKS};

use super::NotComparable;
use super::cumulative::Cumulative;
use crate::profile::FREQUENT_MAX;

/// The profile of the rows of all `profiles` together, as far as drift is told from it: counts, histogram, quantiles,
/// frequent values; nothing else. Profiles without rows are passed over.
///
/// Quantiles are those of the mixture, and as sure as the least sure of the parts. Frequent values stay complete where
/// each part lists all of its own, and there are few enough together.
///
/// # Errors
/// When there is none with values, or their kinds differ.
pub fn pooled<'a>(profiles: impl IntoIterator<Item = &'a ColumnProfile>) -> Result<ColumnProfile, NotComparable> {
    let parts: Vec<&ColumnProfile> = profiles.into_iter().filter(|profile| profile.rows > 0).collect();
    let first = parts.first().ok_or(NotComparable::EmptyReference)?;
    if parts.iter().any(|part| part.kind != first.kind) {
        return Err(NotComparable::Kind);
    }
    let sum = |of: fn(&ColumnProfile) -> u64| parts.iter().map(|part| of(part)).sum::<u64>();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for value in parts.iter().flat_map(|part| &part.frequent) {
        *counts.entry(&value.value).or_default() += value.count;
    }
    let mut frequent: Vec<FrequentValue> =
        counts.into_iter().map(|(value, count)| FrequentValue { value: value.to_owned(), count }).collect();
    frequent.sort_by_key(|value| std::cmp::Reverse(value.count));
    frequent.truncate(FREQUENT_MAX);
    Ok(ColumnProfile {
        kind: first.kind,
        rows: sum(|part| part.rows),
        nulls: sum(|part| part.nulls),
        nans: sum(|part| part.nans),
        infinities: sum(|part| part.infinities),
        trues: first.trues.map(|_| sum(|part| part.trues.unwrap_or(0))),
        quantiles: mixed(&parts),
        frequent,
        frequent_error: sum(|part| part.frequent_error),
        histogram: Histogram::new(parts.iter().flat_map(|part| part.histogram.bins().iter().copied())),
        ..ColumnProfile::default()
    })
}

/// Quantiles of all parts together: between two kept quantiles each part is spread evenly.
fn mixed(parts: &[&ColumnProfile]) -> Vec<f64> {
    let known: Vec<(Cumulative<'_>, f64)> = parts
        .iter()
        .filter_map(|part| Some((Cumulative::of(part).ok()?, part.finite() as f64)))
        .filter(|(_, weight)| *weight > 0.0)
        .collect();
    let total: f64 = known.iter().map(|(_, weight)| weight).sum();
    let mut points: Vec<f64> = known.iter().flat_map(|(part, _)| part.points()).collect();
    points.sort_unstable_by(f64::total_cmp);
    points.dedup();
    let (Some(least), Some(most)) = (points.first().copied(), points.last().copied()) else { return Vec::new() };
    let share = |number: f64| known.iter().map(|(part, weight)| part.up_to(number) * weight).sum::<f64>() / total;
    let shares: Vec<f64> = points.iter().map(|point| share(*point)).collect();
    let at = |rank: f64| {
        if rank <= 0.0 {
            return least;
        }
        let above = shares.partition_point(|share| *share < rank - 1e-12);
        points.get(above).copied().unwrap_or(most)
    };
    RANKS.iter().map(|rank| at(*rank)).collect()
}
