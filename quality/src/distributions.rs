//! Tails of the two distributions that tests here need. (The crates that have them bring linear algebra along.)

use std::f64::consts::PI;

/// The chance that a chi-square variable of `degrees` degrees of freedom is `value` or more.
pub(crate) fn chi_square_tail(value: f64, degrees: f64) -> f64 {
    upper_gamma(degrees / 2.0, value / 2.0)
}

/// The chance that Kolmogorov's limit variable is `value` or more (Kolmogorov, 1933; for small values the same series
/// turned by Jacobi's identity, which converges there).
pub(crate) fn kolmogorov_tail(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    if value < 1.0 {
        let term = |k: i32| (-(f64::from(2 * k - 1) * PI / value).powi(2) / 8.0).exp();
        return (1.0 - (2.0 * PI).sqrt() / value * (1..=20).map(term).sum::<f64>()).clamp(0.0, 1.0);
    }
    let term = |k: i32| {
        let size = (-2.0 * (f64::from(k) * value).powi(2)).exp();
        if k % 2 == 1 { size } else { -size }
    };
    (2.0 * (1..=20).map(term).sum::<f64>()).clamp(0.0, 1.0)
}

/// The regularised upper incomplete gamma function Q(a, x), by series or continued fraction, whichever converges
/// (Press et al., "Numerical Recipes", 3rd edition, section 6.2).
fn upper_gamma(a: f64, x: f64) -> f64 {
    const ENOUGH: f64 = 1e-16;
    if x <= 0.0 {
        return 1.0;
    }
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        while term > sum * ENOUGH {
            n += 1.0;
            term *= x / n;
            sum += term;
        }
        return (1.0 - sum * front).clamp(0.0, 1.0);
    }
    // Lentz's method
    let mut b = x + 1.0 - a;
    let mut c = 1e300;
    let mut d = 1.0 / b;
    let mut fraction = d;
    for i in 1..10_000 {
        let an = -f64::from(i) * (f64::from(i) - a);
        b += 2.0;
        d = 1.0 / nonzero(an * d + b);
        c = nonzero(b + an / c);
        let factor = d * c;
        fraction *= factor;
        if (factor - 1.0).abs() <= ENOUGH {
            break;
        }
    }
    (fraction * front).clamp(0.0, 1.0)
}

fn nonzero(value: f64) -> f64 {
    if value.abs() < 1e-300 { 1e-300 } else { value }
}

/// The logarithm of the gamma function for `x` > 0 (Lanczos, 1964, with the coefficients of Godfrey for g = 7).
fn ln_gamma(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        return (PI / (PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let terms = COEFFICIENTS.iter().zip(1..).map(|(coefficient, i)| coefficient / (x + f64::from(i)));
    let sum = 0.999_999_999_999_809_9 + terms.sum::<f64>();
    let t = x + 7.5;
    (2.0 * PI).sqrt().ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= expected.abs() * 1e-11, "{found} instead of {expected}");
    }

    /// Expected values are scipy's (`chi2.sf`, `kstwobign.sf`).
    #[test]
    fn tails_are_those_of_scipy() {
        near(chi_square_tail(3.841_458_820_694_124, 1.0), 0.049_999_999_999_999_89);
        near(chi_square_tail(10.0, 10.0), 0.440_493_285_065_212_57);
        near(chi_square_tail(0.0, 3.0), 1.0);
        near(chi_square_tail(18.307_038_053_275_146, 10.0), 0.050_000_000_000_000_05);
        near(chi_square_tail(200.0, 10.0), 1.613_930_533_697_731_7e-37);
        near(chi_square_tail(5_000.0, 5_000.0), 0.497_340_378_892_345_1);
        near(kolmogorov_tail(0.5), 0.963_945_243_664_875_1);
        near(kolmogorov_tail(0.999_999_999), 0.269_999_672_749_303_03);
        near(kolmogorov_tail(1.0), 0.269_999_671_677_354_56);
        near(kolmogorov_tail(1.358_098_639_201_637_6), 0.050_000_000_032_840_816);
        assert_eq!((kolmogorov_tail(0.0), kolmogorov_tail(40.0)), (1.0, 0.0));
    }
}
