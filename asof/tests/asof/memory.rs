//! What does not fit into memory.

use std::sync::Arc;

use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool};
use datafusion::physical_plan::collect;
use futures::StreamExt;

use crate::plans::physical;
use crate::world::{Setting, World, block_on, context, expected, expected_by_key, rows};

/// Joins `world` with so much memory; the figures of the operator.
fn join_within(world: &World, bytes: usize) -> (Vec<Vec<String>>, usize) {
    let pool: Arc<dyn MemoryPool> = Arc::new(FairSpillPool::new(bytes));
    let setting = Setting { streams: 2, batch: 256, pool: Arc::clone(&pool) };
    block_on(async {
        let session = context(&setting);
        let physical = physical(&session, world.plan(&setting).unwrap()).await;
        let joined = collect(Arc::clone(&physical), session.task_ctx()).await.unwrap();
        assert_eq!(pool.reserved(), 0, "all memory is given back");
        (rows(&joined), physical.metrics().unwrap().spilled_bytes().unwrap())
    })
}

#[test]
fn labels_and_history_larger_than_memory_finish() {
    // about 0.5 MB of labels with what the join holds per label, 2 MB of history
    let world = World::large(8_000, 30_000, 2_000);
    let (joined, spilled) = join_within(&world, 160 << 10);
    assert_eq!(joined, expected_by_key(&world));
    assert!(spilled > 1 << 20, "only {spilled} bytes went to disk");
    let (joined, spilled) = join_within(&world, 64 << 20);
    assert_eq!(joined, expected_by_key(&world));
    assert_eq!(spilled, 0, "what fits stays in memory");
}

#[test]
fn one_key_with_all_labels_finishes_within_memory() {
    let world = World::large(8_000, 4_000, 1);
    let (joined, spilled) = join_within(&world, 160 << 10);
    assert_eq!(joined, expected(&world));
    assert!(spilled > 100 << 10, "only {spilled} bytes went to disk");
}

/// Who takes the output, such as a writer, finds half of the pool free; what was joined before waits on disk.
#[test]
fn half_of_the_memory_is_left_to_the_output() {
    let world = World::large(8_000, 8_000, 2_000);
    let pool: Arc<dyn MemoryPool> = Arc::new(FairSpillPool::new(1 << 20));
    let setting = Setting { streams: 2, batch: 256, pool: Arc::clone(&pool) };
    block_on(async {
        let session = context(&setting);
        let physical = physical(&session, world.plan(&setting).unwrap()).await;
        let mut output = physical.execute(0, session.task_ctx()).unwrap();
        let mut joined = vec![output.next().await.unwrap().unwrap()];
        assert!(pool.reserved() <= 512 << 10, "{} bytes are reserved", pool.reserved());
        while let Some(batch) = output.next().await {
            joined.push(batch.unwrap());
        }
        assert_eq!(rows(&joined), expected_by_key(&world));
    });
}
