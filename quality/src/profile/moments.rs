//! Mean, spread and sum of a stream of finite numbers, exact up to rounding, whatever the parts.
//!
//! Of every chunk the mean and the squared distances from it are computed in two passes, which is both steadier and
//! faster than Welford's one step per value; chunks and partitions are joined by the formula of Chan, Golub and LeVeque,
//! "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).

#[derive(Debug, Clone, Default)]
pub(crate) struct Moments {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    /// Sum of the squared distances from the mean.
    squares: f64,
}

impl Moments {
    /// Adds finite values, whose sum is given.
    pub(crate) fn add(&mut self, values: &[f64], sum: f64) {
        if values.is_empty() {
            return;
        }
        let count = values.len() as f64;
        let mut mean = sum / count;
        if !mean.is_finite() {
            // the sum of huge numbers overflows where their mean does not, but for rounding
            let parts: f64 = values.iter().map(|value| value / count).sum();
            mean = parts.clamp(f64::MIN, f64::MAX);
        }
        let squares = lanes(values, |value| (value - mean) * (value - mean));
        self.merge(&Self { count: values.len() as u64, mean, squares });
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = other.clone();
            return;
        }
        let (ours, theirs) = (self.count as f64, other.count as f64);
        let all = ours + theirs;
        let apart = other.mean - self.mean;
        self.mean = if apart.is_finite() {
            self.mean + apart * (theirs / all)
        } else {
            self.mean * (ours / all) + other.mean * (theirs / all)
        };
        self.squares += other.squares + apart * apart * (ours / all) * theirs;
        self.count += other.count;
    }

    /// Of the sample; `None` below two values and where it overflows.
    pub(crate) fn stddev(&self) -> Option<f64> {
        let stddev = (self.squares / (self.count.checked_sub(1)? as f64)).sqrt();
        stddev.is_finite().then_some(stddev)
    }

    pub(crate) fn mean(&self) -> Option<f64> {
        (self.count > 0 && self.mean.is_finite()).then_some(self.mean)
    }
}

/// Sum of what `of` makes of each value, in eight sums side by side: the processor adds them at once, and each rounds
/// less than one long sum would.
#[inline]
pub(crate) fn lanes(values: &[f64], of: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        for (sum, value) in sums.iter_mut().zip(eight) {
            *sum += of(*value);
        }
    }
    let rest: f64 = rest.iter().map(|value| of(*value)).sum();
    ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])) + rest
}

/// A sum that keeps what rounding would lose (Neumaier, 1974).
#[derive(Debug, Clone, Default)]
pub(crate) struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    pub(crate) fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.add(other.sum);
        self.lost += other.lost;
    }

    /// `None` where it overflowed.
    pub(crate) fn value(&self) -> Option<f64> {
        let sum = self.sum + self.lost;
        sum.is_finite().then_some(sum)
    }
}
