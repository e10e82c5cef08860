//! Quantiles of a stream by KLL sketches, which are mergeable and err by rank whatever the distribution.
//!
//! The sketch of Apache DataSketches costs several times what all other statistics of a number cost together. So only the
//! first [`EXACT`] values of a part go to a sketch one by one; of those after, one of every [`STRIDE`] neighbours, drawn
//! evenly, goes to a second sketch, where each stands for [`STRIDE`] (the sampler below KLL's sketches, as in Karnin, Lang
//! and Liberty, "Optimal Quantile Approximation in Streams", 2016, section 4).
//!
//! What a rank may be off, with 99 % confidence: [`SKETCH_ERROR`] by the sketches, and by the draws, of which there are
//! `m` for the `16 m` values after the first, `16 m / n × √(ln 200 / 2 m)` (Hoeffding), which is largest when half of all
//! is drawn from: [`DRAW_ERROR`].

use datasketches::common::SearchCriteria;
use datasketches::kll::{KllFloat, KllSketch};

/// Size of the sketches.
const K: u16 = 256;

/// By how much a rank of a sketch of this size is off, at most, with 99 % confidence: 2.296 / K^0.9723.
pub const SKETCH_ERROR: f64 = 0.0105;

/// Values of a part that are all looked at.
const EXACT: u64 = 1 << 18;

/// Of how many values one is looked at afterwards.
const STRIDE: u64 = 16;

/// By how much drawing one value of several puts a rank off, at most, with 99 % confidence.
pub const DRAW_ERROR: f64 = 0.0064;

/// How many points of each sketch are looked at when both are joined.
const POINTS: u64 = 2048;

type Kll = KllSketch<KllFloat<f64>>;

#[derive(Debug, Clone)]
pub(crate) struct Quantiles {
    exact: Kll,
    drawn: Option<Kll>,
    /// Values seen by this part.
    seen: u64,
    /// How many values are passed over before the next one is taken,
    until: usize,
    /// and its place among its neighbours.
    place: usize,
    random: u64,
}

impl Default for Quantiles {
    fn default() -> Self {
        // A fixed start: draws do not depend on the data, which is all that matters.
        let mut random = 0x9e37_79b9_7f4a_7c15;
        let place = draw(&mut random);
        Self { exact: sketch(), drawn: None, seen: 0, until: place, place, random }
    }
}

fn sketch() -> Kll {
    KllSketch::new(K).expect("the size is one of those allowed")
}

#[inline]
fn item(value: f64) -> KllFloat<f64> {
    KllFloat::<f64>::new(value).expect("values are finite")
}

impl Quantiles {
    /// Adds finite values.
    pub(crate) fn add(&mut self, values: &[f64]) {
        let left = EXACT.saturating_sub(self.seen).min(values.len() as u64) as usize;
        let (first, rest) = values.split_at(left);
        self.seen += values.len() as u64;
        for value in first {
            self.exact.update(item(*value));
        }
        if rest.is_empty() {
            return;
        }
        let drawn = self.drawn.get_or_insert_with(sketch);
        let mut until = self.until;
        while let Some(value) = rest.get(until) {
            drawn.update(item(*value));
            let place = draw(&mut self.random);
            until += STRIDE as usize - self.place + place;
            self.place = place;
        }
        self.until = until - rest.len();
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.seen += other.seen;
        join(&mut self.exact, &other.exact);
        match (&mut self.drawn, &other.drawn) {
            (Some(ours), Some(theirs)) => join(ours, theirs),
            (ours @ None, Some(theirs)) => *ours = Some(theirs.clone()),
            (_, None) => {}
        }
    }

    /// The values at `ranks`; empty when there are no values. Exact while no more than a sketch's size was added.
    pub(crate) fn at(&self, ranks: &[f64]) -> Vec<f64> {
        let plain = |sketch: &Kll, ranks: &[f64]| -> Vec<f64> {
            let found = sketch.quantiles(ranks, SearchCriteria::Inclusive).ok().flatten().unwrap_or_default();
            found.into_iter().map(KllFloat::into_inner).collect()
        };
        let Some(drawn) = &self.drawn else { return plain(&self.exact, ranks) };
        let mut points: Vec<(f64, f64)> = Vec::new();
        for (sketch, weight) in [(&self.exact, 1.0), (drawn, STRIDE as f64)] {
            let count = sketch.n().min(POINTS);
            let middles: Vec<f64> = (0..count).map(|point| (point as f64 + 0.5) / count as f64).collect();
            let weight = weight * sketch.n() as f64 / count as f64;
            points.extend(plain(sketch, &middles).into_iter().map(|value| (value, weight)));
        }
        points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let total: f64 = points.iter().map(|(_, weight)| weight).sum();
        let (mut found, mut below, mut point) = (Vec::with_capacity(ranks.len()), 0.0, 0);
        // ranks ascend, and so does what lies below
        for rank in ranks {
            while point + 1 < points.len() && below + points[point].1 < rank * total {
                below += points[point].1;
                point += 1;
            }
            found.extend(points.get(point).map(|(value, _)| *value));
        }
        found
    }
}

fn join(ours: &mut Kll, theirs: &Kll) {
    ours.merge(theirs).expect("sketches of one size merge, and fewer than 2^64 values were seen");
}

/// An even draw from the places among neighbours (xorshift64).
#[inline]
fn draw(random: &mut u64) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> (64 - STRIDE.trailing_zeros())) as usize
}
