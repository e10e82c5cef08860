//! The join against a reference that looks at every pair of rows.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::execution::memory_pool::{FairSpillPool, GreedyMemoryPool, MemoryPool, UnboundedMemoryPool};
use proptest::prelude::*;

use crate::world::{Setting, World, block_on, expected, rows, world};

fn unbounded() -> Arc<dyn MemoryPool> {
    Arc::new(UnboundedMemoryPool::default())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// The values are those of the reference, in the order of the spine, whatever the number of streams.
    #[test]
    fn every_label_sees_what_the_rule_says(world in world(40, 60), streams in 1usize..5, batch in 1usize..20) {
        let setting = Setting { streams, batch, pool: unbounded() };
        let joined = block_on(world.join(&setting)).unwrap();
        prop_assert_eq!(rows(&joined), expected(&world));
    }

    /// With next to no memory the values are the same: everything goes through files.
    #[test]
    fn files_give_what_memory_gives(world in world(120, 200), streams in 1usize..4, kilobytes in 10usize..40) {
        let pool = Arc::new(GreedyMemoryPool::new(kilobytes << 10));
        match block_on(world.join(&Setting { streams, batch: 16, pool })) {
            Ok(joined) => prop_assert_eq!(rows(&joined), expected(&world)),
            // what is too small even for files is refused by name
            Err(error) => {
                prop_assert!(kilobytes < 20, "{} KB suffice: {}", kilobytes, error);
                prop_assert!(error.to_string().contains("PointInTimeExec"), "{}", error);
            }
        }
    }

    /// No label sees a row that lies one microsecond in its future.
    #[test]
    fn nothing_leaks_from_the_future(world in world(20, 30), row in any::<prop::sample::Index>()) {
        let setting = Setting { streams: 2, batch: 8, pool: unbounded() };
        let Some(seen) = world.seen_by_time(row.index(world.spine.len().max(1))) else { return Ok(()) };
        let column = world.word_column(seen.history);
        // the row that the label sees, marked
        let here = world.with_fact(&seen, None, "seen");
        let joined = rows(&block_on(here.join(&setting)).unwrap());
        prop_assert_eq!(&joined[seen.label][column], "seen");
        // and the same row one microsecond after the label
        let moved = world.with_fact(&seen, Some(seen.label_micros + 1), "seen");
        let joined = rows(&block_on(moved.join(&setting)).unwrap());
        for (label, joined) in moved.spine.iter().zip(&joined) {
            if label.micros().is_some_and(|micros| micros <= seen.label_micros) {
                prop_assert_ne!(&joined[column], "seen");
            }
        }
    }
}

/// The bytes of the output are the same for any number of streams and any memory.
#[test]
fn output_is_the_same_on_any_machine() {
    let world = World::large(3_000, 9_000, 300);
    let join = |streams, batch, pool| {
        let batches: Vec<RecordBatch> = block_on(world.join(&Setting { streams, batch, pool })).unwrap();
        rows(&batches)
    };
    let one = join(1, 8192, unbounded());
    assert_eq!(one, expected(&world));
    // batches of 16 rows make many small chunks
    for (streams, batch) in [(2, 8192), (4, 100), (3, 16), (7, 1024)] {
        assert_eq!(one, join(streams, batch, unbounded()));
        assert_eq!(one, join(streams, batch, Arc::new(FairSpillPool::new(96 << 10))));
    }
}
