//! What profiles say, against what is computed from all values at once.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Date32Array, DictionaryArray, Float32Array, Float64Array, Int8Array, Int32Array,
    Int64Array, LargeStringArray, StringArray, StringViewArray, TimestampMicrosecondArray, TimestampMillisecondArray,
};
use arrow_schema::DataType;
use proptest::prelude::*;
use tidegate_quality::profile::{ColumnProfiler, DISTINCT_ERROR, DRAW_ERROR, SKETCH_ERROR};
use tidegate_registry::profile::{ColumnProfile, ProfileKind, RANKS};

fn profile(array: impl Array + 'static) -> ColumnProfile {
    profile_of(&[Arc::new(array)])
}

fn profile_of(parts: &[ArrayRef]) -> ColumnProfile {
    let mut profiler = ColumnProfiler::new(parts[0].data_type());
    for part in parts {
        profiler.update(part).unwrap();
    }
    profiler.finish()
}

/// A repeatable stream of numbers.
fn random(count: usize, seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed | 1;
    (0..count).map(move |_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    })
}

fn near(found: Option<f64>, expected: f64, tolerance: f64) {
    let found = found.expect("there is a number");
    assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-300), "{found} instead of {expected}");
}

fn values(profile: &ColumnProfile) -> Vec<(&str, u64)> {
    profile.frequent.iter().map(|value| (value.value.as_str(), value.count)).collect()
}

#[test]
fn integers() {
    let found = profile(Int32Array::from(vec![Some(3), None, Some(-7), Some(3), Some(0), None]));
    assert_eq!((found.kind, found.rows, found.nulls, found.distinct), (ProfileKind::Integer, 6, 2, Some(3)));
    assert_eq!((found.min.as_deref(), found.max.as_deref(), found.sum), (Some("-7"), Some("3"), Some(-1.0)));
    assert_eq!(found.mean, Some(-0.25));
    near(found.stddev, 4.716_990_566, 1e-9);
    assert_eq!((values(&found), found.frequent_error), (vec![("3", 2), ("-7", 1), ("0", 1)], 0));
    assert_eq!(found.histogram.bins(), [(-135, 1), (0, 1), (133, 2)]);
    assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|rank| found.quantile(rank).unwrap()), [-7.0, -7.0, 0.0, 3.0, 3.0]);
    assert_eq!((found.true_ratio(), found.lengths, found.nans), (None, None, 0));
}

#[test]
fn floats() {
    let found = profile(Float64Array::from(vec![
        Some(1.5),
        Some(f64::NAN),
        None,
        Some(f64::INFINITY),
        Some(-0.0),
        Some(0.0),
        Some(-2.5),
    ]));
    assert_eq!((found.kind, found.rows, found.nulls, found.nans), (ProfileKind::Float, 7, 1, 1));
    assert_eq!((found.infinities, found.finite(), found.distinct), (1, 4, Some(4)));
    assert_eq!((found.min.as_deref(), found.max.as_deref()), (Some("-2.5"), Some("Infinity")));
    assert_eq!((found.mean, found.sum), (Some(-0.25), Some(-1.0)));
    assert_eq!(found.histogram.bins(), [(-132, 1), (0, 2), (131, 1), (258, 1)]);
    assert_eq!((found.quantile(0.0), found.quantile(1.0)), (Some(-2.5), Some(1.5)));
    let single = profile(Float32Array::from(vec![0.1f32, 3.4e38]));
    assert_eq!((single.min.as_deref(), single.max.as_deref()), (Some("0.1"), Some("3.4e38")));
    let only = profile(Float64Array::from(vec![f64::NEG_INFINITY]));
    assert_eq!((only.min.as_deref(), only.max.as_deref(), only.mean), (Some("-Infinity"), Some("-Infinity"), None));
    assert!(only.quantiles.is_empty());
}

#[test]
fn numbers_at_the_edge_of_what_can_be_held() {
    let huge = profile(Float64Array::from(vec![f64::MAX, f64::MAX, f64::MAX]));
    assert_eq!((huge.mean, huge.stddev, huge.sum), (Some(f64::MAX), Some(0.0), None));
    let apart = profile(Float64Array::from(vec![f64::MAX, -f64::MAX]));
    assert_eq!((apart.mean, apart.stddev, apart.sum), (Some(0.0), None, Some(0.0)));
    let tiny = profile(Float64Array::from(vec![5e-324, 5e-324, -5e-324, 1e-310]));
    assert_eq!(tiny.histogram.bins(), [(-1, 1), (1, 3)]);
    assert_eq!((tiny.min.as_deref(), tiny.distinct), (Some("-5e-324"), Some(3)));
    assert_eq!(tiny.quantile(1.0), Some(1e-310));
    let long = profile(Int64Array::from(vec![i64::MAX, i64::MAX, i64::MIN]));
    assert_eq!((long.min.as_deref(), long.max.as_deref()), (Some("-9223372036854775808"), Some("9223372036854775807")));
    assert_eq!(long.sum, Some((i128::from(i64::MAX) - 1) as f64));
    let json = serde_json::to_string(&[huge, apart, tiny, long]).unwrap();
    assert!(!json.contains(":null") && !json.contains(",null"), "{json}");
}

#[test]
fn nothing_and_next_to_nothing() {
    let types: [ArrayRef; 6] = [
        Arc::new(Int64Array::from(vec![None::<i64>; 3])),
        Arc::new(Float64Array::from(vec![None::<f64>; 3])),
        Arc::new(StringArray::from(vec![None::<&str>; 3])),
        Arc::new(BooleanArray::from(vec![None::<bool>; 3])),
        Arc::new(Date32Array::from(vec![None::<i32>; 3])),
        Arc::new(Float64Array::from(vec![f64::NAN; 3])),
    ];
    for array in types {
        for rows in [0, 3] {
            let found = profile_of(&[array.slice(0, rows)]);
            assert_eq!((found.rows, found.distinct), (rows as u64, Some(0)), "{}", array.data_type());
            assert_eq!(found.finite(), 0);
            assert_eq!((&found.min, &found.max, found.mean, found.stddev, found.sum), (&None, &None, None, None, None));
            assert!(found.quantiles.is_empty() && found.frequent.is_empty() && found.histogram.is_empty());
            assert_eq!((found.lengths, found.true_ratio()), (None, None));
        }
    }
    let one = profile(Float64Array::from(vec![42.5]));
    assert_eq!((one.mean, one.stddev, one.distinct), (Some(42.5), None, Some(1)));
    assert_eq!(one.quantiles, vec![42.5; RANKS.len()]);
    let constant = profile(Float64Array::from(vec![0.1; 10_000]));
    assert_eq!((constant.mean, constant.distinct, constant.quantile(0.5)), (Some(0.1), Some(1), Some(0.1)));
    assert!(constant.stddev.unwrap() < 1e-15);
}

#[test]
fn booleans() {
    let found = profile(BooleanArray::from(vec![Some(true), None, Some(true), Some(false)]));
    assert_eq!((found.kind, found.trues, found.true_ratio()), (ProfileKind::Boolean, Some(2), Some(2.0 / 3.0)));
    assert_eq!((found.min.as_deref(), found.max.as_deref(), found.distinct), (Some("false"), Some("true"), Some(2)));
    assert_eq!(values(&found), [("true", 2), ("false", 1)]);
}

#[test]
fn texts_of_every_layout() {
    let texts = [Some("EV"), None, Some("Zürich"), Some(""), Some("EV")];
    let words = StringArray::from(vec!["Zürich", "", "EV"]);
    let keys = Int32Array::from(vec![Some(2), None, Some(0), Some(1), Some(2)]);
    let arrays: [ArrayRef; 4] = [
        Arc::new(StringArray::from(texts.to_vec())),
        Arc::new(LargeStringArray::from(texts.to_vec())),
        Arc::new(StringViewArray::from(texts.to_vec())),
        Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(words))),
    ];
    let first = profile_of(&arrays[..1]);
    assert_eq!((first.kind, first.nulls, first.distinct), (ProfileKind::Text, 1, Some(3)));
    assert_eq!((first.min.as_deref(), first.max.as_deref()), (Some(""), Some("Zürich")));
    assert_eq!(values(&first), [("EV", 2), ("", 1), ("Zürich", 1)]);
    let lengths = first.lengths.unwrap();
    assert_eq!((lengths.min, lengths.max, lengths.mean), (0, 6, 2.5));
    for array in &arrays {
        assert_eq!(profile_of(std::slice::from_ref(array)), first, "{}", array.data_type());
    }
    // layouts may change within a column
    assert_eq!(profile_of(&arrays).nulls, 4);
    assert_eq!(profile_of(&arrays).distinct, Some(3));
}

#[test]
fn long_texts_are_cut_and_still_told_apart() {
    let long = |end: &str| format!("{}{end}", "ä".repeat(300));
    let texts = [long("1"), long("2"), long("2"), "b".repeat(65)];
    let found = profile(StringArray::from_iter_values(&texts));
    assert_eq!((found.distinct, found.frequent.len(), found.frequent[0].count), (Some(3), 3, 2));
    assert!(found.frequent.iter().all(|value| value.value.len() <= 64 && value.value.contains('…')));
    let max = found.max.unwrap();
    assert!(max.starts_with("ää") && max.ends_with('…') && max.chars().count() == 201, "{max}");
    assert_eq!(found.min.unwrap(), "b".repeat(65));
    assert_eq!(found.lengths.unwrap().max, 301);
}

#[test]
fn days_and_instants_are_told_as_such() {
    let days = profile(Date32Array::from(vec![Some(15_706), Some(15_708), None]));
    assert_eq!(
        (days.kind, days.min.as_deref(), days.max.as_deref()),
        (ProfileKind::Date, Some("2013-01-01"), Some("2013-01-03"))
    );
    assert_eq!(
        (days.mean, days.sum, values(&days)),
        (Some(15_707.0), None, vec![("2013-01-01", 1), ("2013-01-03", 1)])
    );
    let micros =
        TimestampMicrosecondArray::from(vec![1_357_000_000_500_000, 1_357_000_001_500_000]).with_timezone("UTC");
    let instants = profile(micros);
    assert_eq!(instants.kind, ProfileKind::Instant);
    assert_eq!((instants.min.as_deref(), instants.distinct), (Some("2013-01-01T00:26:40.500Z"), Some(2)));
    assert_eq!((instants.mean, instants.frequent.len()), (Some(1_357_000_001_000_000.0), 0));
    let millis =
        profile(TimestampMillisecondArray::from(vec![1_357_000_000_500, 1_357_000_001_500]).with_timezone("UTC"));
    assert_eq!(millis, instants);
}

#[test]
fn of_lists_only_nulls_are_known() {
    let mut lists = ListBuilder::new(Int32Builder::new());
    lists.append_value([Some(1), None]);
    lists.append_null();
    let found = profile(lists.finish());
    assert_eq!(found, ColumnProfile { rows: 2, nulls: 1, ..ColumnProfile::default() });
}

#[test]
fn what_is_no_such_value_is_an_error_and_not_added() {
    let mut profiler = ColumnProfiler::new(&DataType::Int64);
    profiler.update(&(Arc::new(Int8Array::from(vec![1, 2])) as ArrayRef)).unwrap();
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["1", "two"]));
    assert!(profiler.update(&texts).unwrap_err().to_string().contains("two"));
    assert_eq!(profiler.finish().rows, 2);
}

/// 600,000 values in three parts: beyond where every value is looked at.
#[test]
fn sketches_keep_their_bounds() {
    let whole: Vec<f64> = random(600_000, 7).map(|bits| (bits as f64 / (1u64 << 53) as f64).powi(3) * 1000.0).collect();
    let mut sorted = whole.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let mut merged = ColumnProfiler::new(&DataType::Float64);
    for part in whole.chunks(400_000) {
        let mut profiler = ColumnProfiler::new(&DataType::Float64);
        profiler.update(&(Arc::new(Float64Array::from(part.to_vec())) as ArrayRef)).unwrap();
        merged.merge(profiler);
    }
    for found in [profile(Float64Array::from(whole.clone())), merged.finish()] {
        let distinct = found.distinct.unwrap() as f64 / 600_000.0;
        assert!((distinct - 1.0).abs() < 4.0 * DISTINCT_ERROR, "{distinct}");
        for (rank, quantile) in RANKS.iter().zip(&found.quantiles) {
            let below = sorted.partition_point(|value| value < quantile) as f64 / 600_000.0;
            // the stated errors hold with 99 %; twice them, practically always
            assert!((below - rank).abs() < 2.0 * (SKETCH_ERROR + DRAW_ERROR), "{rank}: {below}");
        }
        assert_eq!(found.histogram.total(), 600_000);
        near(found.mean, sorted.iter().sum::<f64>() / 600_000.0, 1e-12);
    }
}

/// A few hundred heavy values among many that occur once or twice.
#[test]
fn counts_of_frequent_values_are_bounded() {
    let stream: Vec<i64> = random(300_000, 3)
        .map(|bits| match bits % 10 {
            0..4 => (bits / 16 % 12).pow(2) as i64,
            4..7 => (bits / 16 % 3_000) as i64 + 1_000,
            _ => (bits >> 8) as i64,
        })
        .collect();
    let mut exact: BTreeMap<i64, u64> = BTreeMap::new();
    for value in &stream {
        *exact.entry(*value).or_default() += 1;
    }
    let texts = StringArray::from_iter_values(stream.iter().map(i64::to_string));
    let halves = stream.chunks(150_000).map(|half| {
        let mut profiler = ColumnProfiler::new(&DataType::Int64);
        profiler.update(&(Arc::new(Int64Array::from(half.to_vec())) as ArrayRef)).unwrap();
        profiler
    });
    let merged = halves.reduce(|mut first, second| {
        first.merge(second);
        first
    });
    for found in [profile(Int64Array::from(stream.clone())), profile(texts), merged.unwrap().finish()] {
        let error = found.frequent_error;
        assert!(error > 0 && error as f64 <= 300_000.0 * (1.0 / 257.0 + 3.5 / 512.0), "{error}");
        for value in &found.frequent {
            let really = exact[&value.value.parse::<i64>().unwrap()];
            assert!(value.count <= really && really <= value.count + error, "{value:?}: {really}");
        }
        // the twelve heavy ones, each above twice the error
        let listed: BTreeSet<&str> = found.frequent.iter().map(|value| value.value.as_str()).collect();
        assert!((0..12i64).all(|root| listed.contains((root * root).to_string().as_str())), "{found:?}");
    }
}

#[test]
fn a_profile_is_short_in_json() {
    let normal = |mut bits: Vec<u64>| {
        let unit = |bits: u64| (bits as f64 + 0.5) / (1u64 << 53) as f64;
        let second = bits.split_off(bits.len() / 2);
        let pairs = bits.into_iter().zip(second);
        pairs.map(|(a, b)| (-2.0 * unit(a).ln()).sqrt() * (std::f64::consts::TAU * unit(b)).cos()).collect::<Vec<f64>>()
    };
    let numbers = normal(random(400_000, 5).collect());
    let size = |profile: &ColumnProfile| serde_json::to_string(profile).unwrap().len();
    let spread = size(&profile(Float64Array::from(numbers.clone())));
    let prices =
        size(&profile(Float64Array::from_iter_values(numbers.iter().map(|n| 100.0 + (n * 100.0).round() / 100.0))));
    let counts = size(&profile(Int64Array::from_iter_values(numbers.iter().map(|n| (n * 20.0) as i64))));
    let names =
        size(&profile(StringArray::from_iter_values(numbers.iter().map(|n| format!("carrier {}", (n * 4.0) as i64)))));
    let flags = size(&profile(BooleanArray::from_iter(numbers.iter().map(|n| Some(*n > 1.0)))));
    let sizes = [spread, prices, counts, names, flags];
    assert!(sizes.iter().sum::<usize>() / sizes.len() < 1024 && sizes.iter().all(|size| *size < 1536), "{sizes:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn merged_parts_of_numbers_are_the_whole(
        values in prop::collection::vec(prop::option::weighted(0.9, -1e6..1e6f64), 0..5000), cut in 0.0..1.0f64,
    ) {
        let whole: ArrayRef = Arc::new(Float64Array::from(values));
        same_in_parts(&whole, (whole.len() as f64 * cut) as usize);
    }

    #[test]
    fn merged_parts_of_integers_are_the_whole(
        values in prop::collection::vec(prop::option::weighted(0.9, -40i64..40), 0..5000), cut in 0.0..1.0f64,
    ) {
        let whole: ArrayRef = Arc::new(Int64Array::from(values));
        same_in_parts(&whole, (whole.len() as f64 * cut) as usize);
    }

    #[test]
    fn merged_parts_of_texts_are_the_whole(
        values in prop::collection::vec(prop::option::weighted(0.9, "[a-cä]{0,4}"), 0..3000), cut in 0.0..1.0f64,
    ) {
        let whole: ArrayRef = Arc::new(StringArray::from(values));
        same_in_parts(&whole, (whole.len() as f64 * cut) as usize);
    }

    #[test]
    fn any_float_is_profiled(values in prop::collection::vec(prop::option::of(any::<f64>()), 0..300)) {
        let found = profile(Float64Array::from(values.clone()));
        let numbers: Vec<f64> = values.iter().flatten().copied().filter(|value| value.is_finite()).collect();
        prop_assert_eq!(found.finite(), numbers.len() as u64);
        prop_assert_eq!(found.histogram.total(), found.finite() + found.infinities);
        if let Some(mean) = found.mean {
            let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
            let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert!((least..=most).contains(&mean), "{mean} of {least} to {most}");
            prop_assert_eq!((found.quantile(0.0), found.quantile(1.0)), (Some(least), Some(most)));
            prop_assert!(found.quantiles.is_sorted());
        }
        let json = serde_json::to_string(&found).unwrap();
        // numbers may come back off by their last bit
        let back = serde_json::from_str::<ColumnProfile>(&json).unwrap();
        prop_assert_eq!((back.histogram, back.min, back.nans), (found.histogram, found.min, found.nans));
    }
}

/// Exact statistics are equal, sums up to rounding, sketches within their bounds.
fn same_in_parts(whole: &ArrayRef, cut: usize) {
    let part = |from: usize, to: usize| {
        let mut profiler = ColumnProfiler::new(whole.data_type());
        profiler.update(&whole.slice(from, to - from)).unwrap();
        profiler
    };
    let one = part(0, whole.len()).finish();
    let mut parts = part(0, cut);
    parts.merge(part(cut, whole.len()));
    let two = parts.finish();
    let close = |a: Option<f64>, b: Option<f64>, scale: f64| match (a, b) {
        (Some(a), Some(b)) => assert!((a - b).abs() <= scale * 1e-9, "{a} and {b}"),
        (a, b) => assert_eq!(a, b),
    };
    close(one.mean, two.mean, 1e6);
    close(one.stddev, two.stddev, 1e6);
    close(one.sum, two.sum, 1e9);
    let (a, b) = (one.distinct.unwrap() as f64, two.distinct.unwrap() as f64);
    assert!((a - b).abs() <= 1.0 + a * 5.0 * DISTINCT_ERROR, "{a} and {b}");
    for (rank, (a, b)) in RANKS.iter().zip(one.quantiles.iter().zip(&two.quantiles)) {
        let low = one.quantile((rank - 4.0 * SKETCH_ERROR - 0.03).max(0.0)).unwrap();
        let high = one.quantile((rank + 4.0 * SKETCH_ERROR + 0.03).min(1.0)).unwrap();
        assert!((low..=high).contains(b), "{rank}: {a} and {b}");
    }
    assert_eq!(one.quantiles.len(), two.quantiles.len());
    let bare = |profile: ColumnProfile| ColumnProfile {
        mean: None,
        stddev: None,
        sum: None,
        distinct: None,
        quantiles: Vec::new(),
        ..profile
    };
    assert_eq!(bare(one), bare(two));
}
