//! The bins that histograms count in. They depend on nothing but the value, so histograms of any two runs, columns or
//! partitions can be added and compared.
//!
//! **Numbers**: every power of two from 2⁻⁶⁴ to 2⁶⁴ is cut in half ([1, 1.5), [1.5, 2), [2, 3), [3, 4), [4, 6)…), for
//! either sign. Bin 0 is zero, bins ±1 hold what is nearer to zero than 2⁻⁶⁴, ±2 to ±257 the halves of the powers, ±258
//! what is 2⁶⁴ and more, infinities included. Bins ascend with their values.
//!
//! **Texts** are dealt to [`TEXT_BINS`] bins by the upper bits of their XXH3 hash (64 bits, seed 0).
//!
//! Both are what stored profiles are written in, and so may never change.

use std::ops::Range;

/// Bins of texts, numbered from 0.
pub const TEXT_BINS: usize = 32;

/// Bins of numbers of one sign.
pub(crate) const BINS_PER_SIGN: usize = 258;

/// Upper bits of a double: 11 of exponent, one of mantissa; those of 2⁻⁶⁴.
const FIRST: u64 = (1023 - 64) * 2;

/// The position of the bin of `value`'s magnitude, counted from 0; zeros go with what is nearest to zero.
#[inline]
pub(crate) fn position(value: f64) -> usize {
    let upper = (value.to_bits() >> 51) & 0xfff;
    upper.saturating_sub(FIRST - 1).min(BINS_PER_SIGN as u64 - 1) as usize
}

/// The bin of a number; NaN has none.
pub fn number_bin(value: f64) -> Option<i16> {
    if value.is_nan() {
        return None;
    }
    if value == 0.0 {
        return Some(0);
    }
    let bin = position(value) as i16 + 1;
    Some(if value < 0.0 { -bin } else { bin })
}

/// The numbers of a bin, from the smallest to below the end (0 stands for itself alone; of negative bins the end belongs
/// to the bin, and the start does not). `None` for what is no bin of numbers.
pub fn number_bin_edges(bin: i16) -> Option<Range<f64>> {
    let magnitude = bin.unsigned_abs() as usize;
    let edge = |position: usize| -> f64 {
        let octave = 2f64.powi((position / 2) as i32 - 64);
        if position.is_multiple_of(2) { octave } else { octave * 1.5 }
    };
    let range = match magnitude {
        0 => 0.0..0.0,
        1 => 0.0..edge(0),
        BINS_PER_SIGN => edge(256)..f64::INFINITY,
        2..BINS_PER_SIGN => edge(magnitude - 2)..edge(magnitude - 1),
        _ => return None,
    };
    Some(if bin < 0 { -range.end..-range.start } else { range })
}

/// The bin of a text by its hash (see the module's page).
pub(crate) fn text_bin(hash: u64) -> usize {
    (hash >> (64 - TEXT_BINS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bins_are_halves_of_powers_of_two() {
        for (value, bin) in [
            (0.0, 0),
            (-0.0, 0),
            (f64::MIN_POSITIVE, 1),
            (5e-324, 1),
            (-5e-324, -1),
            (1.0, 130),
            (1.49, 130),
            (1.5, 131),
            (2.0, 132),
            (-2.0, -132),
            (2f64.powi(64), 258),
            (f64::MAX, 258),
            (f64::INFINITY, 258),
            (f64::NEG_INFINITY, -258),
        ] {
            assert_eq!(number_bin(value), Some(bin), "{value}");
        }
        assert_eq!(number_bin(f64::NAN), None);
        assert_eq!(number_bin_edges(130), Some(1.0..1.5));
        assert_eq!(number_bin_edges(-131), Some(-2.0..-1.5));
        assert_eq!((number_bin_edges(259), number_bin_edges(i16::MIN)), (None, None));
    }

    #[test]
    fn bins_leave_no_gap() {
        for bin in 1..258 {
            assert_eq!(number_bin_edges(bin).unwrap().end, number_bin_edges(bin + 1).unwrap().start);
        }
    }

    proptest! {
        #[test]
        fn a_number_lies_in_its_bin(value in any::<f64>()) {
            prop_assume!(!value.is_nan() && value != 0.0);
            let bin = number_bin(value).unwrap();
            let edges = number_bin_edges(bin).unwrap();
            let (size, low, high) = (value.abs(), edges.start.abs().min(edges.end.abs()), edges.start.abs().max(edges.end.abs()));
            prop_assert!(low <= size && (size < high || high.is_infinite()), "{value} in {edges:?}");
        }

        #[test]
        fn bins_ascend_with_numbers(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(a <= b);
            prop_assert!(number_bin(a) <= number_bin(b));
        }
    }
}
