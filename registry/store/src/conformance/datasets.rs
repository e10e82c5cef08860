//! Datasets: remembered with what they were built from, and found again when that turns out to be wrong.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use tidegate_registry::dataset::{
    ColumnNames, Dataset, DatasetFilter, DatasetPin, MANIFEST_FORMAT, Manifest, Output, Spine, SpineFrom, ViewInput,
};
use tidegate_registry::features::Selection;
use tidegate_registry::ids::{DatasetId, SnapshotId};
use tidegate_registry::restore::plan::Target;
use tidegate_registry::store::{Store, StoreError};

use super::Fixture;
use super::restoring::restored;
use super::world::{World, day, view};

/// A dataset of view `a`, as it was when `snapshot` had just been recorded.
pub(crate) async fn dataset(store: &dyn Store, name: &str, snapshot: SnapshotId) -> Dataset {
    let number = store.snapshot_number(snapshot).await.unwrap();
    let was = store.as_of(&view("a@v1"), number).await.unwrap();
    let input = ViewInput {
        fingerprint: "f".to_owned(),
        snapshot: was.snapshot,
        delta_version: was.delta_version,
        intervals: was.ledger.len() as u64,
        covers: was.ledger.first().map(|entry| entry.interval.end()),
    };
    Dataset {
        id: DatasetId::generate(),
        name: Some(name.to_owned()),
        place: format!("/data/{name}.parquet"),
        created_at: day(5),
        actor: "ana".to_owned(),
        manifest: Manifest {
            format: MANIFEST_FORMAT,
            tidegate: "0.1.0".to_owned(),
            project: "p".to_owned(),
            definitions: 1,
            number,
            known_at: None,
            spine: Spine {
                from: SpineFrom::Entities { at: day(3) },
                label_time: "event_timestamp".to_owned(),
                rows: 2,
                digest: "d".to_owned(),
                labels: None,
            },
            features: Selection::default(),
            names: ColumnNames::Full,
            views: IndexMap::from([(view("a@v1"), input)]),
            output: Output {
                format: "parquet".to_owned(),
                rows: 2,
                digest: "e".to_owned(),
                columns: Vec::new(),
                stale: IndexMap::from([(view("a@v1"), 1)]),
                files: Vec::new(),
            },
        },
        pin: None,
    }
}

fn called(name: &str) -> DatasetFilter {
    DatasetFilter { called: Some(name.to_owned()), ..DatasetFilter::default() }
}

async fn names(store: &dyn Store, filter: &DatasetFilter) -> Vec<String> {
    store.datasets(filter).await.unwrap().iter().map(Dataset::label).collect()
}

/// What a snapshot published counts for a dataset from when it was recorded until it was replaced or taken back.
pub async fn a_dataset_is_found_by_name_and_by_what_it_was_built_from(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    let first = world.publish(world.admitted("daily", 0).await).await;
    let early = dataset(store, "early", first).await;
    store.dataset_record(&early).await.unwrap();
    let second = world.publish(world.admitted("daily", 1).await).await;
    let late = dataset(store, "late", second).await;
    store.dataset_record(&late).await.unwrap();
    store.dataset_record(&late).await.unwrap();
    let back = restored(&world, Target::To(first)).await;
    let after = dataset(store, "after", SnapshotId(back.id.0)).await;
    store.dataset_record(&after).await.unwrap();

    assert_eq!(names(store, &DatasetFilter::default()).await, ["after", "late", "early"], "the newest first");
    assert_eq!(names(store, &DatasetFilter { limit: 1, ..DatasetFilter::default() }).await, ["after"]);
    assert_eq!(names(store, &called("late")).await, ["late"]);
    assert_eq!(names(store, &called(&early.id.to_string()[..23])).await, ["early"]);
    assert_eq!(names(store, &called("%")).await, [""; 0]);
    assert_eq!(store.datasets(&called("late")).await.unwrap(), [late]);
    let at = |place: &str| DatasetFilter { place: Some(place.to_owned()), ..DatasetFilter::default() };
    assert_eq!(names(store, &at(&early.place)).await, ["early"]);
    assert_eq!(names(store, &at("/data")).await, [""; 0]);
    let of = |view_name: &str| DatasetFilter { views: vec![view(view_name)], ..DatasetFilter::default() };
    assert_eq!(names(store, &of("a@v1")).await.len(), 3);
    assert_eq!(names(store, &of("b@v1")).await.len(), 0);
    let from = |pairs: Vec<SnapshotId>| DatasetFilter {
        built_from: Some(pairs.into_iter().map(|id| (view("a@v1"), id)).collect()),
        ..DatasetFilter::default()
    };
    assert_eq!(names(store, &from(vec![first])).await, ["after", "late", "early"]);
    assert_eq!(names(store, &from(vec![second])).await, ["late"], "others never saw what was taken back");
    assert_eq!(names(store, &from(vec![first, second])).await, ["after", "late", "early"], "each once");
    assert_eq!(names(store, &from(Vec::new())).await.len(), 0);
}

/// Retention lets go of a snapshot only when no dataset keeps it.
pub async fn a_pinned_dataset_keeps_its_snapshots(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    let first = world.publish(world.admitted("daily", 0).await).await;
    world.publish(world.admitted("daily", 1).await).await;
    let (one, two) = (dataset(store, "one", first).await, dataset(store, "two", first).await);
    let pin = DatasetPin {
        pinned_at: day(5),
        actor: "ana".to_owned(),
        reason: "audit".to_owned(),
        files: BTreeMap::from([(view("a@v1"), Vec::new())]),
    };
    store.dataset_record(&Dataset { pin: Some(pin.clone()), ..one.clone() }).await.unwrap();
    store.dataset_record(&two).await.unwrap();
    store.dataset_pin(two.id, pin.clone()).await.unwrap();

    let kept = async || {
        let keep = store.keep(&[view("a@v1")]).await.unwrap();
        let snapshot = keep[&view("a@v1")].snapshots.iter().find(|kept| kept.id == first);
        snapshot.and_then(|kept| kept.pin.as_ref().map(|pin| pin.reason.clone()))
    };
    assert_eq!(kept().await.as_deref(), Some("dataset `one`: audit"));
    assert_eq!(store.snapshots_expire(&[first], day(9)).await.unwrap(), []);
    store.dataset_unpin(one.id, "ana", day(6)).await.unwrap();
    store.dataset_unpin(one.id, "ana", day(6)).await.unwrap();
    assert_eq!(kept().await.as_deref(), Some("dataset `two`: audit"), "the other one still does");
    store.dataset_unpin(two.id, "ana", day(6)).await.unwrap();
    assert_eq!(store.datasets(&called("two")).await.unwrap()[0].pin, None);

    assert_eq!(store.snapshots_expire(&[first], day(9)).await.unwrap(), [first]);
    let refused = store.dataset_pin(two.id, pin.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused:?}");
    assert_eq!(store.datasets(&called("two")).await.unwrap()[0].pin, None, "and it is not half pinned");
    let unknown = store.dataset_pin(DatasetId::generate(), pin).await.unwrap_err();
    assert!(matches!(unknown, StoreError::NotFound { .. }), "{unknown:?}");
}
