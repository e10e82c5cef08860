//! The same bins for two profiles, and what part of the rows each holds.

use std::collections::BTreeMap;

use tidegate_registry::profile::{ColumnProfile, ProfileKind};
use tidegate_registry::text;

use super::NotComparable;
use super::cumulative::Cumulative;
use crate::histogram::number_bin_edges;

/// Bins of sizes are joined with their neighbours until they hold this part of the rows, on average of both sides: by the
/// reference alone, values where it has none would all be joined to what it has.
const SHARE_MIN: f64 = 0.05;

/// With fewer joined bins than this the sizes tell too little, and quantiles of the reference are the bins.
const SIZES_MIN: usize = 6;

/// What bins are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The values themselves, of which there are few.
    Values,
    /// Texts by hash.
    Hashes,
    /// Numbers by size, in bins of [`crate::histogram`] joined until each holds 5 % or more, on average of both sides;
    /// exact.
    Sizes,
    /// Numbers between the tenths of the reference, when nearly all lie in the same few bins by size; as exact as
    /// the sketches of quantiles.
    Tenths,
}

/// One bin.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// What it holds, to be read by people: a value, `2.0 to 3.0`, `below 4.0`.
    pub bin: String,
    /// Its part of the reference, from 0 to 1.
    pub reference: f64,
    /// Its part of the current rows.
    pub current: f64,
}

/// Two profiles over the same bins. Bins that are empty on both sides are left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    /// What the bins are.
    pub basis: Basis,
    /// At least one.
    pub bins: Vec<Share>,
    /// Values of the reference.
    pub reference_rows: u64,
    /// Values of the current rows.
    pub current_rows: u64,
}

/// Whether both have values, and of the same kind.
pub(super) fn comparable(reference: &ColumnProfile, current: &ColumnProfile) -> Result<(), NotComparable> {
    if reference.kind == ProfileKind::Other || current.kind == ProfileKind::Other {
        return Err(NotComparable::NoDistribution);
    }
    if reference.kind != current.kind {
        return Err(NotComparable::Kind);
    }
    let values = |profile: &ColumnProfile| profile.values() - profile.nans.min(profile.values());
    if values(reference) == 0 {
        return Err(NotComparable::EmptyReference);
    }
    if values(current) == 0 {
        return Err(NotComparable::Empty);
    }
    Ok(())
}

/// Both profiles over the same bins.
///
/// # Errors
/// When they cannot be compared.
pub fn shares(reference: &ColumnProfile, current: &ColumnProfile) -> Result<Shares, NotComparable> {
    comparable(reference, current)?;
    if let (Some(ours), Some(theirs)) = (all_values(reference), all_values(current)) {
        return Ok(count(Basis::Values, ours.into_iter(), theirs.into_iter(), str::to_owned));
    }
    let binned = |profile: &ColumnProfile| profile.histogram.bins().to_vec().into_iter();
    match reference.kind {
        ProfileKind::Text if reference.histogram.is_empty() || current.histogram.is_empty() => {
            Err(NotComparable::NoDistribution)
        }
        ProfileKind::Text => {
            Ok(count(Basis::Hashes, binned(reference), binned(current), |bin| format!("texts of group {bin}")))
        }
        _ if reference.histogram.is_empty() || current.histogram.is_empty() => Err(NotComparable::NoDistribution),
        _ => {
            let sizes = by_size(reference, current);
            if sizes.bins.len() >= SIZES_MIN {
                return Ok(sizes);
            }
            Ok(by_tenths(reference, current)
                .ok()
                .filter(|tenths| tenths.bins.len() > sizes.bins.len())
                .unwrap_or(sizes))
        }
    }
}

/// All values with their counts, where a profile lists them all.
pub(super) fn all_values(profile: &ColumnProfile) -> Option<Vec<(&str, u64)>> {
    let listed: u64 = profile.frequent.iter().map(|value| value.count).sum();
    let all = profile.frequent_error == 0 && listed == profile.values() && profile.kind != ProfileKind::Float;
    all.then(|| profile.frequent.iter().map(|value| (value.value.as_str(), value.count)).collect())
}

fn count<K: Ord + Copy>(
    basis: Basis,
    reference: impl Iterator<Item = (K, u64)>,
    current: impl Iterator<Item = (K, u64)>,
    shown: impl Fn(K) -> String,
) -> Shares {
    let mut bins: BTreeMap<K, (u64, u64)> = BTreeMap::new();
    for (key, count) in reference {
        bins.entry(key).or_default().0 += count;
    }
    for (key, count) in current {
        bins.entry(key).or_default().1 += count;
    }
    of_counts(basis, bins.into_iter().map(|(key, counts)| (shown(key), counts)).collect())
}

fn of_counts(basis: Basis, counts: Vec<(String, (u64, u64))>) -> Shares {
    let reference_rows: u64 = counts.iter().map(|(_, (count, _))| count).sum();
    let current_rows: u64 = counts.iter().map(|(_, (_, count))| count).sum();
    let share = |(bin, (reference, current)): (String, (u64, u64))| Share {
        bin,
        reference: reference as f64 / reference_rows as f64,
        current: current as f64 / current_rows as f64,
    };
    Shares { basis, bins: counts.into_iter().map(share).collect(), reference_rows, current_rows }
}

fn by_size(reference: &ColumnProfile, current: &ColumnProfile) -> Shares {
    let (n, m) = (reference.histogram.total() as f64, current.histogram.total() as f64);
    let mut bins: BTreeMap<i16, (u64, u64)> = BTreeMap::new();
    for (bin, count) in reference.histogram.bins() {
        bins.entry(*bin).or_default().0 += count;
    }
    for (bin, count) in current.histogram.bins() {
        bins.entry(*bin).or_default().1 += count;
    }
    // first and last bin of each group, with its counts
    let mut groups: Vec<(i16, i16, (u64, u64))> = Vec::new();
    let mut open = false;
    for (bin, counts) in bins {
        match groups.last_mut() {
            Some(group) if open => {
                group.1 = bin;
                group.2 = (group.2.0 + counts.0, group.2.1 + counts.1);
            }
            _ => groups.push((bin, bin, counts)),
        }
        open = groups.last().is_some_and(|group| group.2.0 as f64 / n + group.2.1 as f64 / m < 2.0 * SHARE_MIN);
    }
    // what is left at the end is too small to stand alone
    if open && groups.len() > 1 {
        let rest = groups.pop();
        if let (Some(rest), Some(last)) = (rest, groups.last_mut()) {
            last.1 = rest.1;
            last.2 = (last.2.0 + rest.2.0, last.2.1 + rest.2.1);
        }
    }
    let number = |value| shown(reference.kind, value);
    let told = |first: i16, last: i16| {
        let (low, high) =
            (number_bin_edges(first).map(|edges| edges.start), number_bin_edges(last).map(|edges| edges.end));
        if first == 0 && last == 0 {
            return "0".to_owned();
        }
        format!("{} to {}", low.map_or_else(String::new, number), high.map_or_else(String::new, number))
    };
    of_counts(Basis::Sizes, groups.into_iter().map(|(first, last, counts)| (told(first, last), counts)).collect())
}

fn by_tenths(reference: &ColumnProfile, current: &ColumnProfile) -> Result<Shares, NotComparable> {
    let number = |value| shown(reference.kind, value);
    let (f, g) = (Cumulative::of(reference)?, Cumulative::of(current)?);
    let mut edges: Vec<f64> = (1..10).filter_map(|tenth| reference.quantile(f64::from(tenth) / 10.0)).collect();
    edges.dedup();
    let mut bins = Vec::new();
    let (mut before, mut low) = ((0.0, 0.0), None);
    for edge in edges.into_iter().map(Some).chain([None]) {
        let up_to = edge.map_or((1.0, 1.0), |edge| (f.up_to(edge), g.up_to(edge)));
        let bin = match (low, edge) {
            (Some(low), Some(high)) => format!("above {} to {}", number(low), number(high)),
            (Some(low), None) => format!("above {}", number(low)),
            (None, Some(high)) => format!("up to {}", number(high)),
            (None, None) => "all".to_owned(),
        };
        let share = Share { bin, reference: up_to.0 - before.0, current: up_to.1 - before.1 };
        if share.reference > 0.0 || share.current > 0.0 {
            bins.push(share);
        }
        (before, low) = (up_to, edge);
    }
    let (reference_rows, current_rows) = (reference.histogram.total(), current.histogram.total());
    Ok(Shares { basis: Basis::Tenths, bins, reference_rows, current_rows })
}

/// A number as the values that it stands for: days and instants are counted.
fn shown(kind: ProfileKind, value: f64) -> String {
    let mut out = Vec::new();
    match kind {
        ProfileKind::Date => text::write_date(value.floor() as i64, &mut out),
        ProfileKind::Instant => text::write_instant(value.floor() as i64, 1_000_000, &mut out),
        _ => text::write_float(value, &mut out),
    }
    String::from_utf8_lossy(&out).into_owned()
}
