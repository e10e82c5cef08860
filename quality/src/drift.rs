//! How far the values of a column are from those of a reference, told from their profiles alone.
//!
//! | measure | of | 0 means | reads as |
//! |---|---|---|---|
//! | [`psi`] | bins | the same | from 0.1 a small, from 0.25 a large shift (Siddiqi, "Credit Risk Scorecards", 2006) |
//! | [`jensen_shannon`] | bins | the same | 1 is nothing in common |
//! | [`kolmogorov_smirnov`] | numbers | the same | the largest difference between the shares below any number |
//! | [`chi_square`] | categories | as expected | a p-value: how often chance alone would differ so much |
//!
//! The first two compare [`shares`]. Only rows with a value count: what became null is for the null rate to tell, and NaN
//! counts as none.
//!
//! A p-value of millions of rows is small for shifts that do not matter; distances are the better gates there.

mod cumulative;
mod outline;
mod pooled;
mod shares;

use tidegate_registry::profile::ColumnProfile;

use self::cumulative::Cumulative;
pub use self::outline::{Outline, OutlineBin, Scale, outline};
pub use self::pooled::pooled;
pub use self::shares::{Basis, Share, Shares, shares};
use crate::distributions::{chi_square_tail, kolmogorov_tail};

/// Why two profiles cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotComparable {
    /// There is nothing in the reference.
    #[error("the reference has no values to compare with")]
    EmptyReference,
    /// There is nothing in the profile.
    #[error("there are no values to compare")]
    Empty,
    /// They describe values of different kinds.
    #[error("the column's type has changed")]
    Kind,
    /// One of them was written before distributions were, or the column's type has none.
    #[error("the profile holds no distribution of this column")]
    NoDistribution,
    /// Numbers are asked for and these are none, or categories and there are too many.
    #[error("the measure does not apply to the column's values")]
    NotApplicable,
}

/// A distance between shares, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Distance {
    /// The distance.
    pub value: f64,
    /// What chance alone makes of it on average, when nothing has changed but the rows drawn.
    pub noise: f64,
    /// What was compared.
    pub basis: Basis,
    /// Those that contribute most, at most three, largest contribution first.
    pub largest: Vec<Share>,
}

/// The population stability index: `Σ (c − r) ln (c / r)` over the shares `c` of the current rows and `r` of the reference.
///
/// Half a row is added to every bin of either side, so that an empty bin weighs the more the more rows there are, and
/// never infinitely. Chance alone gives about `(bins − 1) (1 / n + 1 / m)` for `n` and `m` rows (Yurdakul, "Statistical
/// Properties of Population Stability Index", 2018), which is the `noise`.
///
/// # Errors
/// When the profiles cannot be compared.
pub fn psi(reference: &ColumnProfile, current: &ColumnProfile) -> Result<Distance, NotComparable> {
    let shares = shares(reference, current)?;
    let bins = shares.bins.len() as f64;
    let (n, m) = (shares.reference_rows as f64, shares.current_rows as f64);
    let smooth = |share: f64, rows: f64| (share * rows + 0.5) / (rows + 0.5 * bins);
    let term = |share: &Share| {
        let (r, c) = (smooth(share.reference, n), smooth(share.current, m));
        (c - r) * (c / r).ln()
    };
    let noise = (bins - 1.0) * shares.noise();
    Ok(shares.distance(term, noise, |sum| sum))
}

/// The Jensen–Shannon distance with logarithms to base 2, from 0 to 1: the root of the mean of the divergences (Kullback
/// and Leibler's) of either side from the mean of both (Endres and Schindelin, "A New Metric for Probability
/// Distributions", 2003). Its `noise` is the root of `(bins − 1) (1 / n + 1 / m) / (8 ln 2)`.
///
/// # Errors
/// When the profiles cannot be compared.
pub fn jensen_shannon(reference: &ColumnProfile, current: &ColumnProfile) -> Result<Distance, NotComparable> {
    let shares = shares(reference, current)?;
    let half = |share: f64, mean: f64| if share > 0.0 { share * (share / mean).log2() / 2.0 } else { 0.0 };
    let term = |share: &Share| {
        let mean = (share.reference + share.current) / 2.0;
        half(share.reference, mean) + half(share.current, mean)
    };
    let noise = ((shares.bins.len() as f64 - 1.0) * shares.noise() / (8.0 * std::f64::consts::LN_2)).sqrt();
    Ok(shares.distance(term, noise, |sum| sum.max(0.0).sqrt()))
}

impl Shares {
    fn noise(&self) -> f64 {
        1.0 / self.reference_rows as f64 + 1.0 / self.current_rows as f64
    }

    fn distance(self, term: impl Fn(&Share) -> f64, noise: f64, of: impl Fn(f64) -> f64) -> Distance {
        let value = of(self.bins.iter().map(&term).sum());
        let basis = self.basis;
        let mut largest: Vec<Share> = self.bins.into_iter().filter(|share| term(share) > 0.0).collect();
        largest.sort_by(|a, b| term(b).total_cmp(&term(a)));
        largest.truncate(3);
        Distance { value, noise, basis, largest }
    }
}

/// What the test of Kolmogorov and Smirnov says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KolmogorovSmirnov {
    /// The largest difference found between the shares of both sides that lie below the same number.
    pub statistic: f64,
    /// By how much that may differ from the statistic of the rows themselves: half a percent to a few percent.
    pub error: f64,
    /// Where the difference is.
    pub at: f64,
    /// How often chance alone gives such a statistic, by Kolmogorov's limit distribution; right for some hundred rows and
    /// more, and no surer than the statistic is.
    pub p_value: f64,
    /// The statistic that chance surpasses once in twenty times.
    pub threshold: f64,
}

/// The two-sample statistic of Kolmogorov and Smirnov, `max |F − G|`, from what profiles know of the distributions.
///
/// At the borders of the histogram's bins both are exact. Between them the share below a number is taken from the kept
/// quantiles (in between on the line), held to what the bins allow. So on each side a share is off by at most what the
/// quantiles err by — the sketch's 1.05 % and the draws' 0.64 %, with 99 % confidence, plus the 2.5 % between two
/// quantiles — and by at most what the fullest bin holds. `error` adds both sides.
///
/// # Errors
/// When the profiles cannot be compared, and for values that are not numbers.
pub fn kolmogorov_smirnov(
    reference: &ColumnProfile,
    current: &ColumnProfile,
) -> Result<KolmogorovSmirnov, NotComparable> {
    shares::comparable(reference, current)?;
    if !reference.kind.is_numeric() {
        return Err(NotComparable::NotApplicable);
    }
    let (f, g) = (Cumulative::of(reference)?, Cumulative::of(current)?);
    let (mut statistic, mut at) = (0.0, f64::NAN);
    let mut look = |apart: f64, number: f64| {
        if apart.abs() > statistic || at.is_nan() {
            (statistic, at) = (apart.abs(), number);
        }
    };
    for number in f.points().chain(g.points()) {
        look(f.up_to(number) - g.up_to(number), number);
        look(f.below(number) - g.below(number), number);
    }
    for (number, apart) in f.exact_differences(&g) {
        look(apart, number);
    }
    let (n, m) = (reference.finite() as f64, current.finite() as f64);
    let size = (n * m / (n + m)).sqrt();
    Ok(KolmogorovSmirnov {
        statistic,
        error: (f.error() + g.error()).min(1.0),
        at,
        p_value: kolmogorov_tail(size * statistic),
        threshold: (-(0.05f64 / 2.0).ln() / 2.0).sqrt() / size,
    })
}

/// What the chi-square test of homogeneity says.
#[derive(Debug, Clone, PartialEq)]
pub struct ChiSquare {
    /// Pearson's statistic.
    pub statistic: f64,
    /// Degrees of freedom: categories that occur, less one.
    pub degrees: u32,
    /// How often chance alone gives such a statistic.
    pub p_value: f64,
    /// What was compared.
    pub basis: Basis,
    /// Categories that contribute most, at most three, largest contribution first.
    pub largest: Vec<Share>,
}

/// Pearson's test whether two sides draw from the same categories with the same chances: `Σ (observed − expected)² /
/// expected` over both sides and all categories, without Yates's correction.
///
/// Categories are the values themselves when profiles list them all (booleans always; texts and whole numbers of up to
/// [`FREQUENT_MAX`](crate::profile::FREQUENT_MAX) different values), else the bins that texts are dealt to by hash. Those
/// tell of texts with up to some hundred different values; of thousands each bin holds a mixture, and even new ones in the
/// place of all move little.
///
/// # Errors
/// When the profiles cannot be compared, and for numbers of more different values.
pub fn chi_square(reference: &ColumnProfile, current: &ColumnProfile) -> Result<ChiSquare, NotComparable> {
    let shares = shares(reference, current)?;
    if !matches!(shares.basis, Basis::Values | Basis::Hashes) {
        return Err(NotComparable::NotApplicable);
    }
    let (n, m) = (shares.reference_rows as f64, shares.current_rows as f64);
    let term = |share: &Share| {
        let (r, c) = (share.reference * n, share.current * m);
        let chance = (r + c) / (n + m);
        let (expected_r, expected_c) = (chance * n, chance * m);
        (r - expected_r).powi(2) / expected_r + (c - expected_c).powi(2) / expected_c
    };
    let degrees = shares.bins.len().saturating_sub(1) as u32;
    let distance = shares.distance(term, f64::from(degrees), |sum| sum);
    let p_value = if degrees == 0 { 1.0 } else { chi_square_tail(distance.value, f64::from(degrees)) };
    Ok(ChiSquare { statistic: distance.value, degrees, p_value, basis: distance.basis, largest: distance.largest })
}
