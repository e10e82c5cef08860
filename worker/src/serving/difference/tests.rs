//! Merging beside its plain definition, and whole runs over tables that are not as a run wrote them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, UInt32Array, new_null_array};
use datafusion::arrow::compute::{cast, take_record_batch};
use datafusion::arrow::datatypes::Int64Type;
use deltalake::parquet::arrow::ArrowWriter;
use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use deltalake::parquet::arrow::arrow_writer::ArrowWriterOptions;
use deltalake::parquet::file::metadata::KeyValue;
use deltalake::parquet::file::properties::{EnabledStatistics, WriterProperties};
use proptest::prelude::*;
use tidegate_registry::model::{ColumnType, Key};
use tidegate_registry::run::RunState;
use tidegate_registry::store::Store;
use tokio_util::sync::CancellationToken;

use super::super::tests::{NOW, STOCK, STOCK_ROWS, serving, view};
use super::keys::KeyMaker;
use super::merging::Batch;
use super::*;
use crate::tests::{World, at, features};
use crate::types::arrow_type;

/// Keys of a type, in the order of the numbers that they are made of.
fn written(kind: &ColumnType, keys: impl Iterator<Item = i64>) -> ArrayRef {
    match kind {
        ColumnType::String => Arc::new(keys.map(|key| Some(format!("{:03}", key + 100))).collect::<StringArray>()),
        _ => cast(&keys.map(Some).collect::<Int64Array>(), &arrow_type(kind)).unwrap(),
    }
}

/// Entities and hashes of what they have, in batches of `size`.
fn batches(rows: &BTreeMap<i64, u64>, size: usize, kind: &ColumnType) -> Vec<Batch> {
    let maker = KeyMaker::new(&[Key { name: "key".to_owned(), kind: kind.clone() }]).unwrap();
    let rows: Vec<_> = rows.iter().collect();
    let batches = rows.chunks(size).map(|rows| {
        let keys: Int64Array = rows.iter().map(|(key, _)| Some(**key)).collect();
        let batch = RecordBatch::try_from_iter([("key", Arc::new(keys) as _)]).unwrap();
        let keys = maker.keys(&[written(kind, rows.iter().map(|(key, _)| **key))]).unwrap();
        Batch::new(batch, keys, rows.iter().map(|(_, hash)| **hash).collect())
    });
    batches.collect()
}

/// What merging says of the entities of both, in order.
fn verdicts(old: Vec<Batch>, new: Vec<Batch>) -> [Vec<(i64, Was)>; 2] {
    let mut rest = [old.into_iter(), new.into_iter()];
    let mut at_hand = rest.each_mut().map(Iterator::next);
    let mut found = [Vec::new(), Vec::new()];
    while at_hand.iter().any(Option::is_some) {
        let [old, new] = &mut at_hand;
        merge(old.as_mut(), new.as_mut()).unwrap();
        assert!(at_hand.iter().flatten().any(Batch::is_done), "every step finishes a batch");
        for side in 0..2 {
            if let Some(done) = at_hand[side].take_if(|batch| batch.is_done()) {
                let keys = done.batch.column(0).as_primitive::<Int64Type>().values();
                found[side].extend(keys.iter().copied().zip(done.verdicts));
                at_hand[side] = rest[side].next();
            }
        }
    }
    found
}

/// What the definition says.
fn defined(rows: &BTreeMap<i64, u64>, others: &BTreeMap<i64, u64>) -> Vec<(i64, Was)> {
    let was = |(key, hash): (&i64, &u64)| match others.get(key) {
        None => (*key, Was::Alone),
        Some(other) if other == hash => (*key, Was::Same),
        Some(_) => (*key, Was::Other),
    };
    rows.iter().map(was).collect()
}

fn rows() -> impl Strategy<Value = BTreeMap<i64, u64>> {
    proptest::collection::btree_map(-20..20_i64, 0..3_u64, 0..30)
}

proptest! {
    #[test]
    fn merging_finds_what_is_alone_changed_and_the_same(
        old in rows(), new in rows(), old_size in 1..9_usize, new_size in 1..9_usize,
        kind in prop_oneof![Just(ColumnType::String), Just(ColumnType::Bigint), Just(ColumnType::Integer)],
    ) {
        let [before, now] = verdicts(batches(&old, old_size, &kind), batches(&new, new_size, &kind));
        prop_assert_eq!(before, defined(&old, &new));
        prop_assert_eq!(now, defined(&new, &old));
    }
}

#[test]
fn keys_that_do_not_ascend_are_noticed() {
    for kind in [ColumnType::String, ColumnType::Bigint, ColumnType::Integer] {
        let maker = KeyMaker::new(&[Key { name: "key".to_owned(), kind: kind.clone() }]).unwrap();
        let keys = |keys: &[i64]| maker.keys(&[written(&kind, keys.iter().copied())]).unwrap();
        let last = keys(&[1, 4]).last();
        for (numbers, ascend, follow) in [
            (&[5, 6, 9][..], true, true),
            (&[4, 5], true, false),
            (&[2, 3], true, false),
            (&[5, 5], false, false),
            (&[6, 5], false, false),
            (&[5], true, true),
            (&[], true, true),
        ] {
            let keys = keys(numbers);
            assert_eq!(
                (keys.ascend_from(None), keys.ascend_from(last.as_ref())),
                (ascend, follow),
                "{kind} {numbers:?}"
            );
        }
        assert!(maker.keys(&[new_null_array(&arrow_type(&kind), 1)]).is_err());
    }
}

/// Turns the rows of a file around, as another program may that rewrites it. Its size, which the table's log names, stays.
fn turn_around(path: &Path) {
    let size = usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let [batch] = reader.map(Result::unwrap).collect::<Vec<_>>().try_into().unwrap();
    let backwards: UInt32Array = (0..u32::try_from(batch.num_rows()).unwrap()).rev().map(Some).collect();
    let batch = take_record_batch(&batch, &backwards).unwrap();
    let written = |padding: usize| {
        let padding = KeyValue::new("padding".to_owned(), "x".repeat(padding));
        let properties = WriterProperties::builder()
            .set_statistics_enabled(EnabledStatistics::None)
            .set_dictionary_enabled(false)
            .set_key_value_metadata(Some(vec![padding]))
            .build();
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let mut file = Vec::new();
        let mut writer = ArrowWriter::try_new_with_options(&mut file, batch.schema(), options).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        file
    };
    let gap = size - written(0).len();
    // How long a text is takes more bytes to write when it is longer.
    let file = (gap - 8..=gap).map(written).find(|file| file.len() == size).unwrap();
    std::fs::write(path, file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_sorted_is_compared_all_the_same() {
    let world = World::over(STOCK, None).await;
    std::fs::write(world.folder.path().join("stock.csv"), STOCK_ROWS).unwrap();
    world.succeed(1, 0).await;
    let second = world.succeed(2, 0).await;
    let mut file = world.folder.path().join(format!("lake/features/level/v1/data/{}", second.id));
    while file.is_dir() {
        file = std::fs::read_dir(file).unwrap().next().unwrap().unwrap().path();
    }
    turn_around(&file);
    let serving = serving(&world, "another");
    let content = Content {
        project: Arc::clone(&world.project),
        view: view("level"),
        version: 2,
        interval: second.interval,
        at: second.interval.end(),
    };
    let mut as_stored = Reading::begin(&serving.engine, &serving.lake, &content, Order::AsStored).await.unwrap();
    let error = as_stored.next().await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Unfit::Order), "{error:#}");
    // Another process than the one that has read the file before.
    let worker = world.another_worker("another");
    let third = world.plan(3, 0).await;
    worker.run_only(&[third], CancellationToken::new()).await.unwrap();
    let (third, _) = world.store.run(third).await.unwrap();
    assert_eq!(third.state, RunState::Succeeded, "{:?}", third.reason);
    let live = world.online.live(&view("level")).await.unwrap().unwrap();
    assert_eq!((live.generation, live.publish_number), (1, 3), "changed in place");
    assert_eq!(world.online.count(&view("level"), 1).await.unwrap(), 2);
    assert_eq!(world.online("level@v1", "gone", NOW).await, features(&[("amount", "1"), ("note", "z")]));
    assert_eq!(world.online("level@v1", "new", NOW).await, None);
    let same = world.online.get(&view("level"), "same", at(NOW)).await.unwrap().unwrap();
    assert_eq!(same.event_timestamp, at("2024-01-02T00:00:00Z"), "not written again");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_entities_may_go_than_may_wait() {
    let world = World::over(STOCK, None).await;
    let shops: Vec<String> = (0..2 * GONE_WAITING_MAX).map(|shop| format!("shop{shop}")).collect();
    let day = |day: u32, shops: &[String]| -> String {
        shops.iter().map(|shop| format!("{shop},2024-01-0{day}T10:00:00Z,1,x\n")).collect()
    };
    let stock = format!("shop,at,amount,note\n{}{}", day(1, &shops), day(2, &shops[..1]));
    std::fs::write(world.folder.path().join("stock.csv"), stock).unwrap();
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    let live = world.online.live(&view("level")).await.unwrap().unwrap();
    assert_eq!((live.generation, live.publish_number), (1, 2), "changed in place");
    assert_eq!(world.online.count(&view("level"), 1).await.unwrap(), 1);
}
