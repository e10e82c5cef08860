//! What is said of the distance between two profiles. (Figures are compared with scipy's in `tests/oracle/quality.py`.)

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, StringArray, types::Int32Type};
use proptest::prelude::*;
use tidegate_quality::drift::{
    Basis, NotComparable, chi_square, jensen_shannon, kolmogorov_smirnov, pooled, psi, shares,
};
use tidegate_quality::profile::ColumnProfiler;
use tidegate_registry::profile::{ColumnProfile, ProfileKind};

fn profile(array: impl Array + 'static) -> ColumnProfile {
    let mut profiler = ColumnProfiler::new(array.data_type());
    profiler.update(&(Arc::new(array) as ArrayRef)).unwrap();
    profiler.finish()
}

/// Numbers spread evenly over a range.
fn even(rows: u32, from: f64, to: f64) -> ColumnProfile {
    profile(Float64Array::from_iter_values(
        (0..rows).map(|row| from + (to - from) * f64::from(row * 7919 % rows) / f64::from(rows)),
    ))
}

fn texts(counts: &[(&str, usize)]) -> ColumnProfile {
    let rows: Vec<&str> = counts.iter().flat_map(|(text, count)| std::iter::repeat_n(*text, *count)).collect();
    profile(StringArray::from(rows))
}

#[test]
fn the_same_data_has_no_drift() {
    let numbers = even(10_000, 0.0, 100.0);
    let words = texts(&[("a", 50), ("b", 30), ("c", 1)]);
    for profile in [&numbers, &words] {
        assert_eq!(psi(profile, profile).unwrap().value, 0.0);
        assert_eq!(jensen_shannon(profile, profile).unwrap().value, 0.0);
        assert!(psi(profile, profile).unwrap().largest.is_empty());
    }
    let found = kolmogorov_smirnov(&numbers, &numbers).unwrap();
    assert_eq!((found.statistic, found.p_value), (0.0, 1.0));
    let found = chi_square(&words, &words).unwrap();
    assert!(found.statistic < 1e-12 && found.degrees == 2 && found.p_value > 0.999_999);
}

#[test]
fn another_unit_is_a_large_drift() {
    let (minutes, seconds) = (even(10_000, 1.0, 100.0), even(10_000, 60.0, 6000.0));
    let found = psi(&minutes, &seconds).unwrap();
    assert!(found.value > 2.0 && found.noise < 0.01 && found.basis == Basis::Sizes, "{found:?}");
    assert!(found.largest.len() == 3 && found.largest[0].current > found.largest[0].reference, "{found:?}");
    assert!(jensen_shannon(&minutes, &seconds).unwrap().value > 0.8);
    let found = kolmogorov_smirnov(&minutes, &seconds).unwrap();
    assert!(found.statistic > 0.9 && found.p_value < 1e-12 && found.threshold < 0.05, "{found:?}");
    assert!((60.0..=128.0).contains(&found.at), "{found:?}");
}

/// All in one bin of the histogram, so that quantiles must tell.
#[test]
fn a_shift_within_one_size_is_seen() {
    let (before, after) = (even(10_000, 1000.0, 1001.0), even(10_000, 1000.5, 1001.5));
    let found = psi(&before, &after).unwrap();
    assert!(found.basis == Basis::Tenths && found.value > 1.0, "{found:?}");
    let found = kolmogorov_smirnov(&before, &after).unwrap();
    assert!((found.statistic - 0.5).abs() < found.error, "{found:?}");
    assert!((found.statistic - 0.5).abs() < 0.05, "{found:?}");
}

#[test]
fn a_renamed_category_is_named() {
    let (before, after) = (texts(&[("UA", 60), ("B6", 40)]), texts(&[("UA", 60), ("JetBlue", 40)]));
    let found = chi_square(&before, &after).unwrap();
    assert_eq!((found.degrees, found.basis), (2, Basis::Values));
    assert!((found.statistic - 80.0).abs() < 1e-9 && found.p_value < 1e-15, "{found:?}");
    let mut named: Vec<&str> = found.largest.iter().map(|share| share.bin.as_str()).collect();
    named.sort_unstable();
    assert_eq!(named, ["B6", "JetBlue"]);
    assert!(psi(&before, &after).unwrap().value.is_finite());
}

#[test]
fn many_texts_are_compared_by_hash() {
    let names = |from: usize| profile(StringArray::from_iter_values((from..from + 100).map(|name| format!("n{name}"))));
    let found = shares(&names(0), &names(0)).unwrap();
    assert!(found.basis == Basis::Hashes && found.bins.len() > 16, "{found:?}");
    assert!(psi(&names(0), &names(1000)).unwrap().value > 0.1);
}

#[test]
fn booleans_and_few_integers_are_categories() {
    let flags = |trues: usize| profile(BooleanArray::from_iter((0..100).map(|row| Some(row < trues))));
    assert!(chi_square(&flags(50), &flags(90)).unwrap().p_value < 1e-6);
    assert_eq!(chi_square(&flags(100), &flags(100)).unwrap().degrees, 0);
    assert_eq!(chi_square(&flags(100), &flags(100)).unwrap().p_value, 1.0);
    let stops = |most: i64| profile(Int64Array::from_iter_values((0..100).map(|row| row % most)));
    assert_eq!(psi(&stops(3), &stops(4)).unwrap().basis, Basis::Values);
    assert_eq!(chi_square(&stops(90), &stops(90)), Err(NotComparable::NotApplicable));
}

#[test]
fn what_cannot_be_compared_says_why() {
    let numbers = even(100, 0.0, 1.0);
    let old = ColumnProfile { nulls: 1, min: Some("1".to_owned()), ..ColumnProfile::default() };
    let empty = profile(Float64Array::from(vec![None, Some(f64::NAN)]));
    let words = texts(&[("a", 1)]);
    let lists = profile(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]));
    for (reference, current, why) in [
        (&old, &numbers, NotComparable::NoDistribution),
        (&lists, &lists, NotComparable::NoDistribution),
        (&words, &numbers, NotComparable::Kind),
        (&empty, &numbers, NotComparable::EmptyReference),
        (&numbers, &empty, NotComparable::Empty),
    ] {
        assert_eq!(psi(reference, current).unwrap_err(), why);
        assert_eq!(jensen_shannon(reference, current).unwrap_err(), why);
        assert_eq!(kolmogorov_smirnov(reference, current).unwrap_err(), why);
        assert_eq!(chi_square(reference, current).unwrap_err(), why);
    }
    assert_eq!(kolmogorov_smirnov(&words, &words), Err(NotComparable::NotApplicable));
    let endless = profile(Float64Array::from(vec![f64::INFINITY; 3]));
    assert_eq!(kolmogorov_smirnov(&endless, &numbers), Err(NotComparable::NoDistribution));
    assert!(psi(&endless, &numbers).unwrap().value > 1.0);
}

#[test]
fn several_runs_are_one_reference() {
    let (low, high) = (even(5_000, 0.0, 50.0), even(15_000, 50.0, 100.0));
    let all = pooled([&low, &high, &ColumnProfile::default()]).unwrap();
    assert_eq!((all.rows, all.kind, all.histogram.total()), (20_000, ProfileKind::Float, 20_000));
    let same = profile(Float64Array::from_iter_values(
        (0..20_000).map(|row| if row % 4 == 0 { f64::from(row) / 400.0 } else { 50.0 + f64::from(row) / 400.0 }),
    ));
    let found = kolmogorov_smirnov(&all, &same).unwrap();
    assert!(found.statistic < 0.05, "{found:?}");
    assert!(psi(&all, &same).unwrap().value < 0.02);
    assert!(psi(&low, &same).unwrap().value > 1.0);

    let words = pooled([&texts(&[("a", 1), ("b", 2)]), &texts(&[("b", 3), ("c", 1)])]).unwrap();
    let counts: Vec<(&str, u64)> = words.frequent.iter().map(|value| (value.value.as_str(), value.count)).collect();
    assert_eq!((counts[0], counts.len()), (("b", 5), 3));
    assert_eq!(psi(&words, &texts(&[("b", 1)])).unwrap().basis, Basis::Values);
    assert_eq!(pooled([]).unwrap_err(), NotComparable::EmptyReference);
    assert_eq!(pooled([&low, &words]).unwrap_err(), NotComparable::Kind);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn distances_keep_their_bounds(
        a in prop::collection::vec(any::<f64>(), 1..400), b in prop::collection::vec(-10.0..10.0f64, 1..400),
    ) {
        let (a, b) = (profile(Float64Array::from(a)), profile(Float64Array::from(b)));
        for (reference, current) in [(&a, &b), (&b, &a)] {
            let Ok(found) = psi(reference, current) else { continue };
            prop_assert!(found.value >= 0.0 && found.value.is_finite());
            prop_assert!((0.0..=1.0 + 1e-9).contains(&jensen_shannon(reference, current).unwrap().value));
            let shares = shares(reference, current).unwrap();
            for sum in [shares.bins.iter().map(|bin| bin.reference).sum::<f64>(), shares.bins.iter().map(|bin| bin.current).sum()] {
                prop_assert!((sum - 1.0).abs() < 1e-9, "{sum}");
            }
            if let Ok(found) = kolmogorov_smirnov(reference, current) {
                prop_assert!((0.0..=1.0 + 1e-9).contains(&found.statistic) && (0.0..=1.0).contains(&found.p_value));
            }
        }
    }

    /// Against the statistic of the values themselves.
    #[test]
    fn kolmogorov_smirnov_is_within_its_error(
        a in prop::collection::vec(-10.0..10.0f64, 20..250), b in prop::collection::vec(-5.0..15.0f64, 20..250),
    ) {
        let below = |values: &[f64], number: f64| values.iter().filter(|value| **value <= number).count() as f64 / values.len() as f64;
        let real = a.iter().chain(&b).map(|number| (below(&a, *number) - below(&b, *number)).abs()).fold(0.0, f64::max);
        let found = kolmogorov_smirnov(&profile(Float64Array::from(a.clone())), &profile(Float64Array::from(b.clone()))).unwrap();
        // a rank of few rows is known to a row
        let rows = 1.0 / a.len() as f64 + 1.0 / b.len() as f64;
        prop_assert!((found.statistic - real).abs() <= found.error + rows, "{found:?}, really {real}");
    }
}
