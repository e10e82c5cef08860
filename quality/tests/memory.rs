//! What profilers hold in memory, counted by the allocator.

#![expect(unsafe_code, reason = "an allocator that counts is one that the language calls unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_array::{ArrayRef, Float64Array, Int64Array, StringArray};
use tidegate_quality::profile::{BYTES_MAX, ColumnProfiler};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it only counts, and leaves the work to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller has promised
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller has promised
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Arrays of every type of which nearly every value goes to every sketch: each occurs three times, as many as are never
/// dropped, and all are new in every round.
fn arrays(round: u64) -> [ArrayRef; 4] {
    let keys = || (0..768u64).map(move |row| (row / 3 + round * 256).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    [
        Arc::new(Int64Array::from_iter_values(keys().map(u64::cast_signed))),
        Arc::new(Float64Array::from_iter_values(keys().map(|key| key as f64))),
        Arc::new(StringArray::from_iter_values(keys().map(|key| format!("{key:0>64}")))),
        Arc::new(StringArray::from_iter_values(keys().map(|key| format!("{key:0>900}")))),
    ]
}

#[test]
fn two_thousand_columns_stay_within_the_bound() {
    const COLUMNS: usize = 2_000;
    let rounds = [arrays(0), arrays(1)];
    // what a thread works with is not the columns'
    ColumnProfiler::new(rounds[0][0].data_type()).update(&rounds[0][0]).unwrap();
    let before = HELD.load(Ordering::Relaxed);
    let mut profilers: Vec<ColumnProfiler> =
        (0..COLUMNS).map(|column| ColumnProfiler::new(rounds[0][column % 4].data_type())).collect();
    for (column, profiler) in profilers.iter_mut().enumerate() {
        for arrays in &rounds {
            profiler.update(&arrays[column % 4]).unwrap();
        }
    }
    let each = (HELD.load(Ordering::Relaxed) - before) / COLUMNS;
    assert!(each > 20_000 && each < BYTES_MAX, "{each} bytes a column");
    drop(profilers);

    // one column of each type, fed beyond where every value is looked at
    for (place, first) in rounds[0].iter().enumerate() {
        let before = HELD.load(Ordering::Relaxed);
        let mut profiler = ColumnProfiler::new(first.data_type());
        let mut most = 0;
        // texts have no quantiles, and stop growing sooner
        let rounds = if place < 2 { 400 } else { 40 };
        for round in 0..rounds {
            let array = arrays(round)[place].clone();
            profiler.update(&array).unwrap();
            drop(array);
            most = most.max(HELD.load(Ordering::Relaxed) - before);
        }
        assert!(most > 20_000 && most < BYTES_MAX, "{most} bytes for {}", first.data_type());
    }
}
