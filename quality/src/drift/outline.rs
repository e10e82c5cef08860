//! Two distributions of numbers over the same bins, to be drawn.

use tidegate_registry::profile::{ColumnProfile, ProfileKind, RANKS};

use super::NotComparable;
use super::cumulative::Cumulative;
use super::shares::{all_values, comparable};
use crate::histogram::{number_bin, number_bin_edges};

/// Quantiles of at most so many values name (nearly) each of them: what lies between two is empty.
const FEW: u64 = 256;

/// A linear scale on which one bin holds more than this of either side tells too little.
const CROWDED: f64 = 0.7;

/// How the bins of an [`Outline`] are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// All are equally wide.
    Linear,
    /// Each is half a power of two wide, or several of them; see [`crate::histogram`].
    BySize,
}

/// The numbers between two edges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutlineBin {
    /// Where it begins; what is smaller than all bins counts in the first.
    pub low: f64,
    /// Where it ends; what is larger than all bins counts in the last.
    pub high: f64,
    /// Its part of the reference, from 0 to 1.
    pub reference: f64,
    /// Its part of the current values.
    pub current: f64,
}

/// Two distributions over the same bins, for a picture of both. Shares are as exact as the sketches they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// How bins are spaced.
    pub scale: Scale,
    /// Ascending, at least one.
    pub bins: Vec<OutlineBin>,
}

/// The distributions of two profiles of numbers over at most `bins_max` bins that show both. With the same profile twice
/// it is a picture of one.
///
/// # Errors
/// When the profiles cannot be compared, and for values that are not numbers.
pub fn outline(reference: &ColumnProfile, current: &ColumnProfile, bins_max: usize) -> Result<Outline, NotComparable> {
    comparable(reference, current)?;
    if !reference.kind.is_numeric() {
        return Err(NotComparable::NotApplicable);
    }
    let (f, g) = (Cumulative::of(reference)?, Cumulative::of(current)?);
    let linear = over(&edges(reference, current, bins_max.max(1)), Scale::Linear, (reference, &f), (current, &g));
    let crowded = |outline: &Outline| outline.bins.iter().any(|bin| bin.reference > CROWDED || bin.current > CROWDED);
    if linear.bins.len() > 1 && crowded(&linear) {
        let by_size =
            over(&size_edges(reference, current, bins_max.max(1)), Scale::BySize, (reference, &f), (current, &g));
        if by_size.bins.len() > 2 && !crowded(&by_size) {
            return Ok(by_size);
        }
    }
    Ok(linear)
}

fn over(
    edges: &[f64],
    scale: Scale,
    reference: (&ColumnProfile, &Cumulative<'_>),
    current: (&ColumnProfile, &Cumulative<'_>),
) -> Outline {
    let (r, c) = (shares_between(edges, reference), shares_between(edges, current));
    let bins = edges.windows(2).zip(r.into_iter().zip(c));
    let bins = bins.map(|(edge, (reference, current))| OutlineBin { low: edge[0], high: edge[1], reference, current });
    Outline { scale, bins: bins.collect() }
}

/// The shares between neighbouring edges.
fn shares_between(edges: &[f64], (profile, cumulative): (&ColumnProfile, &Cumulative<'_>)) -> Vec<f64> {
    let bins = edges.len() - 1;
    let mut shares = vec![0.0; bins];
    let mut add = |value: f64, share: f64| {
        let after = edges[1..bins].partition_point(|edge| *edge <= value);
        shares[after] += share;
    };
    if let Some(values) = all_values(profile).and_then(|values| numbers(&values)) {
        let all: u64 = values.iter().map(|(_, count)| count).sum();
        values.into_iter().for_each(|(value, count)| add(value, count as f64 / all as f64));
    } else if profile.finite() <= FEW {
        for (ranks, values) in RANKS.windows(2).zip(profile.quantiles.windows(2)) {
            let half = (ranks[1] - ranks[0]) / 2.0;
            add(values[0], half);
            add(values[1], half);
        }
    } else {
        let below: Vec<f64> = edges[1..bins].iter().map(|edge| cumulative.below(*edge)).collect();
        let ends = below.iter().copied().chain([1.0]);
        let starts = [0.0].into_iter().chain(below.iter().copied());
        shares = starts.zip(ends).map(|(start, end)| (end - start).max(0.0)).collect();
    }
    shares
}

fn numbers(values: &[(&str, u64)]) -> Option<Vec<(f64, u64)>> {
    values.iter().map(|(value, count)| value.parse().ok().map(|value| (value, *count))).collect()
}

/// From the smallest to the largest number of either side, or of many, what nearly all lie between.
fn span(reference: &ColumnProfile, current: &ColumnProfile) -> (f64, f64) {
    let ends = |profile: &ColumnProfile| {
        let rank = if profile.finite() <= FEW { 0.0 } else { 0.01 };
        (profile.quantile(rank).unwrap_or(0.0), profile.quantile(1.0 - rank).unwrap_or(0.0))
    };
    let (r, c) = (ends(reference), ends(current));
    (r.0.min(c.0), r.1.max(c.1))
}

/// With few values, narrow bins show nothing but gaps.
fn bins_for(reference: &ColumnProfile, current: &ColumnProfile, bins_max: usize) -> usize {
    let values = reference.finite().min(current.finite()).max(1);
    ((2.0 * (values as f64).sqrt()).ceil() as usize).clamp(bins_max.min(6), bins_max)
}

fn edges(reference: &ColumnProfile, current: &ColumnProfile, bins_max: usize) -> Vec<f64> {
    let (low, high) = span(reference, current);
    let bins = bins_for(reference, current, bins_max);
    let whole = matches!(reference.kind, ProfileKind::Integer | ProfileKind::Date);
    if whole {
        // half-way between numbers, so that each bin holds equally many of them
        let width = ((high - low + 1.0) / bins as f64).ceil().max(1.0);
        let bins = ((high - low + 1.0) / width).ceil().max(1.0) as usize;
        return (0..=bins).map(|at| low - 0.5 + at as f64 * width).collect();
    }
    let width = (high - low) / bins as f64;
    if !(width.is_finite() && low + width > low) {
        return vec![low, high];
    }
    (0..=bins).map(|at| if at == bins { high } else { low + at as f64 * width }).collect()
}

fn size_edges(reference: &ColumnProfile, current: &ColumnProfile, bins_max: usize) -> Vec<f64> {
    let (low, high) = span(reference, current);
    let (Some(first), Some(last)) = (number_bin(low), number_bin(high)) else { return vec![low, high] };
    let all: Vec<f64> = (first..=last)
        .filter_map(number_bin_edges)
        .map(|edges| if edges.start.is_finite() { edges.start } else { edges.end })
        .collect();
    let bins = bins_for(reference, current, bins_max).max(bins_max.min(12));
    let step = all.len().div_ceil(bins).max(1);
    let mut edges: Vec<f64> = all.into_iter().step_by(step).collect();
    edges.dedup();
    let end = number_bin_edges(last).map_or(high, |edges| if edges.end.is_finite() { edges.end } else { edges.start });
    // Zero stands for itself alone, and begins the bin after it.
    if edges.last().is_some_and(|last| *last < end) || edges.len() < 2 {
        edges.push(end);
    }
    edges
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, StringArray};

    use super::*;
    use crate::profile::ColumnProfiler;

    fn profile(array: impl Array + 'static) -> ColumnProfile {
        let array: ArrayRef = Arc::new(array);
        let mut profiler = ColumnProfiler::new(array.data_type());
        profiler.update(&array).unwrap();
        profiler.finish()
    }

    fn whole(values: impl IntoIterator<Item = i64>) -> ColumnProfile {
        profile(values.into_iter().collect::<Int64Array>())
    }

    fn shown(outline: &Outline) -> Vec<(f64, f64, f64)> {
        let short = |share: f64| (share * 1000.0).round() / 1000.0;
        outline.bins.iter().map(|bin| (bin.low, short(bin.reference), short(bin.current))).collect()
    }

    #[test]
    fn few_whole_numbers_have_a_bin_each() {
        let found = outline(&whole([1, 1, 2, 4]), &whole([2, 2, 2, 3]), 24).unwrap();
        assert_eq!(found.scale, Scale::Linear);
        assert_eq!(shown(&found), [(0.5, 0.5, 0.0), (1.5, 0.25, 0.75), (2.5, 0.0, 0.25), (3.5, 0.25, 0.0)]);
    }

    #[test]
    fn shares_of_either_side_add_up_to_one_whatever_the_values_are() {
        let floats = |values: Vec<f64>| profile(Float64Array::from(values));
        let many = |factor: f64| floats((0..5_000).map(|n| f64::from(n) * factor - 100.0).collect());
        for (a, b) in [
            (many(1.0), many(1.5)),
            (many(0.001), many(1e6)),
            (floats(vec![7.0; 40]), floats(vec![7.0; 3])),
            (floats(vec![0.0]), floats(vec![-1e300, 1e300])),
            (floats(vec![0.0, f64::INFINITY, f64::NAN]), floats(vec![3.0, -2.0])),
            (whole([i64::MIN, i64::MAX]), whole([0, 1, 2])),
            (whole(0..20), whole((0..1000).map(|n| n * n * n))),
        ] {
            let found = outline(&a, &b, 24).unwrap();
            assert!((1..=26).contains(&found.bins.len()), "{found:?}");
            for side in [|bin: &OutlineBin| bin.reference, |bin: &OutlineBin| bin.current] {
                let sum: f64 = found.bins.iter().map(side).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{sum}: {found:?}");
            }
            assert!(found.bins.iter().all(|bin| bin.low <= bin.high), "{found:?}");
        }
    }

    #[test]
    fn numbers_of_other_sizes_are_shown_by_size() {
        let minutes = whole(20..120);
        let seconds = whole((20..120).map(|n| n * 60));
        let found = outline(&minutes, &seconds, 24).unwrap();
        assert_eq!(found.scale, Scale::BySize);
        assert!(found.bins.iter().all(|bin| bin.reference < 0.7 && bin.current < 0.7), "{found:?}");
        assert_eq!(outline(&minutes, &minutes, 24).unwrap().scale, Scale::Linear);
    }

    #[test]
    fn what_is_no_number_has_no_outline() {
        let texts = profile(StringArray::from(vec!["a"]));
        assert_eq!(outline(&texts, &texts, 24), Err(NotComparable::NotApplicable));
        assert_eq!(outline(&whole([]), &whole([1]), 24), Err(NotComparable::EmptyReference));
    }
}
