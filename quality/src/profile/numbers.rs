//! Profiles of numbers, and of days and instants as numbers.

use arrow_array::{ArrowPrimitiveType, PrimitiveArray};
use tidegate_registry::profile::{ColumnProfile, FrequentValue, Histogram, ProfileKind, RANKS};
use tidegate_registry::text::{write_date, write_float, write_instant, write_integer};

use super::frequent::Frequent;
use super::moments::{Moments, Sum, lanes};
use super::quantiles::Quantiles;
use super::{Distinct, FREQUENT_MAX, Work, chunks};
use crate::histogram::{BINS_PER_SIGN, position};

/// What is told of finite numbers of every type.
#[derive(Debug)]
struct Finite {
    moments: Moments,
    sum: Sum,
    quantiles: Quantiles,
    zeros: u64,
    /// By position of the magnitude: of positive numbers, then of negative ones.
    bins: [u64; 2 * BINS_PER_SIGN],
}

impl Finite {
    fn new() -> Self {
        Self {
            moments: Moments::default(),
            sum: Sum::default(),
            quantiles: Quantiles::default(),
            zeros: 0,
            bins: [0; 2 * BINS_PER_SIGN],
        }
    }

    fn add(&mut self, values: &[f64]) {
        let sum = lanes(values, |value| value);
        self.moments.add(values, sum);
        self.sum.add(sum);
        self.quantiles.add(values);
        let mut zeros = [0; 2];
        for value in values {
            let negative = usize::from(value.is_sign_negative());
            self.bins[position(*value) + negative * BINS_PER_SIGN] += 1;
            zeros[negative] += u64::from(*value == 0.0);
        }
        // zeros were counted with what is nearest to them
        self.bins[0] -= zeros[0];
        self.bins[BINS_PER_SIGN] -= zeros[1];
        self.zeros += zeros[0] + zeros[1];
    }

    fn merge(&mut self, other: &Self) {
        self.moments.merge(&other.moments);
        self.sum.merge(&other.sum);
        self.quantiles.merge(&other.quantiles);
        self.zeros += other.zeros;
        for (ours, theirs) in self.bins.iter_mut().zip(&other.bins) {
            *ours += theirs;
        }
    }

    /// `ends` are the smallest and largest finite value; bounds what sketches say.
    fn finish(self, profile: ColumnProfile, ends: Option<(f64, f64)>, infinite: (u64, u64)) -> ColumnProfile {
        let (positive, negative) = self.bins.split_at(BINS_PER_SIGN);
        let bin = |(position, count): (usize, &u64)| (position as i16 + 1, *count);
        let counts = negative.iter().enumerate().map(bin).map(|(bin, count)| (-bin, count));
        let counts = counts.chain([(0, self.zeros)]).chain(positive.iter().enumerate().map(bin));
        let largest = BINS_PER_SIGN as i16;
        let histogram = Histogram::new(counts.chain([(-largest, infinite.0), (largest, infinite.1)]));
        let quantiles = match ends {
            Some((least, most)) => rounded(self.quantiles.at(&RANKS), least, most),
            None => Vec::new(),
        };
        let mean = self.moments.mean();
        // rounding must not carry the mean of equal values beyond them
        let mean = mean.map(|mean| ends.map_or(mean, |(least, most)| mean.clamp(least, most)));
        ColumnProfile { mean, stddev: self.moments.stddev(), quantiles, histogram, ..profile }
    }
}

/// Quantiles with about six digits of their spread, the ends as they are.
fn rounded(mut quantiles: Vec<f64>, least: f64, most: f64) -> Vec<f64> {
    let Some(last) = quantiles.len().checked_sub(1) else { return quantiles };
    (quantiles[0], quantiles[last]) = (least, most);
    let spread = (quantiles[last - 2] - quantiles[2]).max((most - least) * 1e-3);
    // of a spread of 0 or beyond all bounds this is far out of reach
    let digits = 5i32.saturating_sub(spread.log10().floor() as i32);
    for value in &mut quantiles[1..last] {
        *value = round(*value, digits).clamp(least, most);
    }
    quantiles
}

/// `value` with `digits` digits after the point (before it, when negative); as it is where that is out of reach.
fn round(value: f64, digits: i32) -> f64 {
    // powers of ten are exact up to here, so what comes out is the number nearest to the short decimal
    let result = match digits {
        0..=22 => (value * 10f64.powi(digits)).round() / 10f64.powi(digits),
        -22..0 => (value / 10f64.powi(-digits)).round() * 10f64.powi(-digits),
        _ => value,
    };
    if result.is_finite() { result } else { value }
}

fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).expect("numbers and times are written in ASCII")
}

/// Whole numbers, days since 1970, or microseconds since 1970.
#[derive(Debug)]
pub(super) struct Integers {
    kind: ProfileKind,
    distinct: Distinct,
    frequent: Frequent<i64>,
    range: Option<(i64, i64)>,
    sum: i128,
    finite: Finite,
}

impl Integers {
    pub(super) fn new(kind: ProfileKind) -> Self {
        Self {
            kind,
            distinct: Distinct::default(),
            frequent: Frequent::default(),
            range: None,
            sum: 0,
            finite: Finite::new(),
        }
    }

    pub(super) fn kind(&self) -> ProfileKind {
        self.kind
    }

    pub(super) fn update<T: ArrowPrimitiveType>(&mut self, array: &PrimitiveArray<T>, work: &mut Work)
    where
        T::Native: Into<i64>,
    {
        let Work { floats, integers, counts } = work;
        chunks(array, integers, Into::into, |values| {
            let Some(first) = values.first() else { return };
            let (mut least, mut most) = self.range.unwrap_or((*first, *first));
            let (mut upper, mut lower) = (0, 0);
            for value in values {
                (least, most) = (least.min(*value), most.max(*value));
                // halves, whose sums do not overflow
                upper += value >> 32;
                lower += value & 0xffff_ffff;
            }
            self.range = Some((least, most));
            self.sum += (i128::from(upper) << 32) + i128::from(lower);
            floats.clear();
            floats.extend(values.iter().map(|value| *value as f64));
            self.finite.add(floats);
            if self.kind == ProfileKind::Instant {
                // hardly ever repeated
                for value in values {
                    self.distinct.add(value.cast_unsigned());
                }
                return;
            }
            counts.clear();
            for value in values {
                counts.add(value.cast_unsigned(), 0, |_| true);
            }
            for entry in counts.entries() {
                self.distinct.add(entry.key);
            }
            self.frequent.add(counts.entries(), |entry| entry.key.cast_signed());
        });
    }

    pub(super) fn merge(&mut self, other: &Self) {
        assert_eq!(self.kind, other.kind, "profilers of one column merge");
        self.distinct.merge(&other.distinct);
        self.frequent.merge(&other.frequent);
        self.sum += other.sum;
        self.finite.merge(&other.finite);
        self.range = match (self.range, other.range) {
            (Some(ours), Some(theirs)) => Some((ours.0.min(theirs.0), ours.1.max(theirs.1))),
            (ours, theirs) => ours.or(theirs),
        };
    }

    pub(super) fn finish(self, profile: ColumnProfile) -> ColumnProfile {
        let kind = self.kind;
        let shown = |value: i64| {
            text(|out| match kind {
                ProfileKind::Date => write_date(value, out),
                ProfileKind::Instant => write_instant(value, 1_000_000, out),
                _ => write_integer(value, out),
            })
        };
        let values = profile.values();
        let sum = (values > 0 && kind == ProfileKind::Integer).then_some(self.sum as f64);
        let frequent = self.frequent.top(FREQUENT_MAX).into_iter();
        let frequent = frequent.map(|counted| FrequentValue { value: shown(counted.value), count: counted.count });
        let profile = ColumnProfile {
            kind,
            distinct: Some(self.distinct.estimate().min(values)),
            min: self.range.map(|(least, _)| shown(least)),
            max: self.range.map(|(_, most)| shown(most)),
            sum,
            frequent: frequent.collect(),
            frequent_error: self.frequent.error(),
            ..profile
        };
        let ends = self.range.map(|(least, most)| (least as f64, most as f64));
        let profile = self.finite.finish(profile, ends, (0, 0));
        // of whole numbers the sum is exact, and so is the mean
        let mean = profile.mean.map(|_| self.sum as f64 / values as f64);
        ColumnProfile { mean, ..profile }
    }
}

/// Numbers with a fraction.
#[derive(Debug)]
pub(super) struct Floats {
    single: bool,
    distinct: Distinct,
    nans: u64,
    /// Negative and positive.
    infinite: (u64, u64),
    range: Option<(f64, f64)>,
    finite: Finite,
}

impl Floats {
    /// `single`: values have 32 bits, and are shown so.
    pub(super) fn new(single: bool) -> Self {
        Self { single, distinct: Distinct::default(), nans: 0, infinite: (0, 0), range: None, finite: Finite::new() }
    }

    pub(super) fn update<T: ArrowPrimitiveType>(&mut self, array: &PrimitiveArray<T>, work: &mut Work)
    where
        T::Native: Into<f64>,
    {
        let mut finite = Vec::new();
        chunks(array, &mut work.floats, Into::into, |values| {
            if values.iter().fold(true, |all, value| all & value.is_finite()) {
                return self.add(values);
            }
            finite.clear();
            finite.extend(values.iter().filter(|value| value.is_finite()));
            let (mut nans, mut negative, mut positive) = (0, 0, 0);
            for value in values {
                nans += u64::from(value.is_nan());
                negative += u64::from(*value == f64::NEG_INFINITY);
                positive += u64::from(*value == f64::INFINITY);
            }
            self.nans += nans;
            self.infinite = (self.infinite.0 + negative, self.infinite.1 + positive);
            self.add(&finite);
        });
    }

    fn add(&mut self, values: &[f64]) {
        let Some(first) = values.first() else { return };
        let (least, most) = self.range.unwrap_or((*first, *first));
        let mut ends = [(least, most); 4];
        let (fours, rest) = values.as_chunks::<4>();
        for four in fours {
            for (end, value) in ends.iter_mut().zip(four) {
                *end = wider(*end, *value);
            }
        }
        let all = ends.into_iter().reduce(|a, b| wider(wider(a, b.0), b.1)).unwrap_or((least, most));
        self.range = Some(rest.iter().fold(all, |all, value| wider(all, *value)));
        self.finite.add(values);
        for value in values {
            // turns -0.0 into 0.0
            self.distinct.add((value + 0.0).to_bits());
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.distinct.merge(&other.distinct);
        self.nans += other.nans;
        self.infinite = (self.infinite.0 + other.infinite.0, self.infinite.1 + other.infinite.1);
        self.finite.merge(&other.finite);
        self.range = match (self.range, other.range) {
            (Some(ours), Some(theirs)) => Some(wider(wider(ours, theirs.0), theirs.1)),
            (ours, theirs) => ours.or(theirs),
        };
    }

    pub(super) fn finish(mut self, profile: ColumnProfile) -> ColumnProfile {
        let (negative, positive) = self.infinite;
        for (count, value) in [(negative, f64::NEG_INFINITY), (positive, f64::INFINITY)] {
            if count > 0 {
                self.distinct.add(value.to_bits());
            }
        }
        let shown =
            |value: f64| text(|out| if self.single { write_float(value as f32, out) } else { write_float(value, out) });
        let min = if negative > 0 { Some(f64::NEG_INFINITY) } else { self.range.map(|(least, _)| least) };
        let max = if positive > 0 { Some(f64::INFINITY) } else { self.range.map(|(_, most)| most) };
        let profile = ColumnProfile {
            kind: ProfileKind::Float,
            nans: self.nans,
            infinities: negative + positive,
            distinct: Some(self.distinct.estimate().min(profile.values())),
            min: min.or(max).map(shown),
            max: max.or(min).map(shown),
            sum: self.range.and_then(|_| self.finite.sum.value()),
            ..profile
        };
        self.finite.finish(profile, self.range, self.infinite)
    }
}

#[inline]
fn wider(ends: (f64, f64), value: f64) -> (f64, f64) {
    (if value < ends.0 { value } else { ends.0 }, if value > ends.1 { value } else { ends.1 })
}
