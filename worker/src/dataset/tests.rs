//! Datasets on a real registry and lake: what each label sees, and that the same can be made again.

use std::path::Path;
use std::sync::{Arc, Barrier};

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::util::pretty::pretty_format_batches;
use futures::TryStreamExt as _;
use tidegate_registry::dataset::{ColumnNames, Dataset, Datasets as _, Manifest, Output};
use tidegate_registry::features::Selection;
use tidegate_registry::ids::DatasetId;
use tidegate_registry::restore::{AsOf, Restoring as _};
use tidegate_servers::{Fault, Mode};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::inputs::Ages;
use super::{
    DatasetError, DatasetParts, DatasetRequest, LABEL_TIME, Place, PlaceFormat, Spine, build, collect, explain, failed,
    files, imported, open,
};
use crate::engine::Engine;
use crate::lake::Lake;
use crate::objects::testing::{self, BUCKET};
use crate::objects::{Patience, Stores};
use crate::sources::Sources;
use crate::tests::{World, at, interval};

/// Three days of sales, each published.
async fn three_days() -> World {
    let world = World::new().await;
    for day in 1..=3 {
        world.succeed(day, 0).await;
    }
    world
}

fn engine(world: &World) -> Engine {
    Engine::new(256 << 20, &world.folder.path().join("spill")).unwrap()
}

fn parts(world: &World) -> DatasetParts {
    let root = world.folder.path();
    DatasetParts {
        store: world.store.clone(),
        lake: world.fresh_lake(),
        sources: Sources::new(root, &[]).unwrap(),
        spines: Sources::new(root, &[]).unwrap(),
    }
}

async fn request(world: &World, spine: Spine, features: &[&str]) -> DatasetRequest {
    let asked: Vec<_> = features.iter().map(|asked| asked.parse().unwrap()).collect();
    DatasetRequest {
        project: Arc::clone(&world.project),
        definitions: 1,
        spine,
        label_time: LABEL_TIME.to_owned(),
        features: Selection::of(&world.project, &asked).unwrap(),
        names: ColumnNames::Short,
        number: world.store.number_at(at("2024-01-05T00:00:00Z")).await.unwrap(),
        known_at: None,
    }
}

/// Labels of shops.
fn labels(rows: &[(&str, &str)]) -> Spine {
    let shops: ArrayRef =
        Arc::new(rows.iter().map(|(shop, _)| (!shop.is_empty()).then_some(*shop)).collect::<StringArray>());
    let times = rows.iter().map(|(_, time)| Some(at(time).timestamp_micros()));
    let times: ArrayRef = Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC"));
    let batch = RecordBatch::try_from_iter_with_nullable([("shop", shops, true), (LABEL_TIME, times, true)]).unwrap();
    Spine::Rows(batch.schema(), vec![batch])
}

async fn rows(world: &World, request: &DatasetRequest) -> String {
    let opened = open(&engine(world), &parts(world), request, PlaceFormat::Parquet).await.unwrap();
    let batches: Vec<RecordBatch> = opened.rows.try_collect().await.unwrap();
    pretty_format_batches(&batches).unwrap().to_string()
}

/// Why it cannot be opened.
async fn attempt_open(world: &World, request: &DatasetRequest) -> DatasetError {
    open(&engine(world), &parts(world), request, PlaceFormat::Parquet).await.map(drop).unwrap_err()
}

fn wrong(error: DatasetError) -> String {
    match error {
        DatasetError::Wrong { message, hint } => format!("{message} ({hint})"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_label_sees_the_newest_interval_that_was_over_and_the_newest_row_that_counts() {
    let world = three_days().await;
    let spine = labels(&[
        ("b", "2024-01-03T00:00:00Z"),
        ("a", "2024-01-01T23:59:59.999999Z"),
        ("a", "2024-01-02T00:00:00Z"),
        ("a", "2024-01-03T23:59:59Z"),
        ("a", "2024-01-04T00:00:00Z"),
        ("a", "2024-01-04T08:59:59.999999Z"),
        ("a", "2024-01-04T09:00:00Z"),
        ("b", "2025-01-01T00:00:00Z"),
        ("nobody", "2024-01-03T00:00:00Z"),
        ("", "2024-01-03T00:00:00Z"),
    ]);
    let found = rows(&world, &request(&world, spine, &["revenue.total", "last_receipt.largest"]).await).await;
    insta::assert_snapshot!("labels_by_hand", found);
}

#[tokio::test]
async fn rows_at_hand_are_those_of_a_file_with_the_same_manifest() {
    let world = three_days().await;
    let spine = labels(&[("b", "2024-01-03T00:00:00Z"), ("a", "2024-01-04T00:00:00Z"), ("", "2024-01-03T00:00:00Z")]);
    let request = request(&world, spine, &["revenue.total", "last_receipt.largest"]).await;
    let collected = collect(&engine(&world), &parts(&world), &request).await.unwrap();
    assert_eq!(pretty_format_batches(&collected.batches).unwrap().to_string(), rows(&world, &request).await);
    let out = world.folder.path().join("out.parquet").display().to_string();
    let place = Place::new(&out, PlaceFormat::Parquet, &Stores::default()).unwrap();
    let stop = CancellationToken::new();
    let built = build(&engine(&world), &parts(&world), &request, &place, &stop, &mut |_| {}).await.unwrap();
    let output = Output { format: "arrow".to_owned(), files: Vec::new(), ..built.output.clone() };
    assert_eq!(collected.manifest, Manifest { output, ..built });
}

#[tokio::test]
async fn what_is_online_is_what_a_label_of_that_instant_sees() {
    let world = World::new().await;
    for day in 1..=3 {
        world.succeed(day, 0).await;
        let end = interval(day).end();
        for view in ["revenue", "ranking", "last_receipt"] {
            let request = request(&world, Spine::Entities(end), &[view]).await;
            let opened = open(&engine(&world), &parts(&world), &request, PlaceFormat::Parquet).await.unwrap();
            let names: Vec<String> = opened
                .columns
                .iter()
                .filter(|column| column.feature.is_some())
                .map(|column| column.name.clone())
                .collect();
            let batches: Vec<RecordBatch> = opened.rows.try_collect().await.unwrap();
            let mut known = Vec::new();
            for batch in &batches {
                let text = |name: &str| crate::text::TextColumn::new(batch.column_by_name(name).unwrap()).unwrap();
                for row in 0..batch.num_rows() {
                    let shop = text("shop").text(row).unwrap();
                    let features: Vec<(String, String)> =
                        names.iter().filter_map(|name| Some((name.clone(), text(name).text(row)?))).collect();
                    let online = world.online(&format!("{view}@v1"), &shop, &end.to_rfc3339()).await;
                    assert_eq!(online, Some(features), "{view} of {shop} at {end}");
                    known.push(shop);
                }
            }
            for shop in ["a", "b"].into_iter().filter(|shop| !known.iter().any(|known| known == shop)) {
                let online = world.online(&format!("{view}@v1"), shop, &end.to_rfc3339()).await;
                assert_eq!(online, None, "{view} of {shop} at {end}");
            }
        }
    }
}

async fn attempt(
    world: &World,
    request: &DatasetRequest,
    place: &Place,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<Manifest, DatasetError> {
    build(&engine(world), &parts(world), request, place, &CancellationToken::new(), told).await
}

async fn built(world: &World, request: &DatasetRequest, out: &str, format: PlaceFormat) -> Manifest {
    let place = Place::new(world.folder.path().join(out).to_str().unwrap(), format, &Stores::default()).unwrap();
    let mut told = 0;
    let manifest = attempt(world, request, &place, &mut |rows| told = rows).await.unwrap();
    assert!(told <= manifest.output.rows);
    manifest
}

#[tokio::test]
async fn the_same_request_gives_the_same_bytes_whatever_was_published_since() {
    let world = World::new().await;
    world.succeed(1, 0).await;
    world.succeed(2, 0).await;
    std::fs::write(
        world.folder.path().join("labels.csv"),
        "shop,event_timestamp,label\na,2024-01-02T00:00:00Z,1\nb,2024-01-03,0\nc,2024-01-03T05:00:00Z,\n",
    )
    .unwrap();
    let spine = Spine::File { place: "labels.csv".to_owned() };
    let asked = request(&world, spine, &["revenue", "last_receipt"]).await;
    let first = built(&world, &asked, "first.parquet", PlaceFormat::Parquet).await;
    world.succeed(3, 0).await;
    world.sell("shop,at,amount\na,2024-01-01T10:00:00Z,9\n").await;
    world.succeed(1, 1).await;
    let second = built(&world, &asked, "second.parquet", PlaceFormat::Parquet).await;
    let bytes = |name: &str| std::fs::read(world.folder.path().join(name)).unwrap();
    assert!(bytes("first.parquet") == bytes("second.parquet"));
    assert_eq!(first.output.files[0].sha256, second.output.files[0].sha256);
    assert_eq!((first.output.rows, &first.spine.digest), (3, &second.spine.digest));
    assert_eq!(first.views, second.views);
    let nulls: Vec<_> = first.output.columns.iter().map(|column| (column.name.as_str(), column.nulls)).collect();
    assert_eq!(nulls, [("shop", 0), (LABEL_TIME, 0), ("label", 1), ("total", 1), ("receipts", 1), ("largest", 1)]);
    let written: Manifest = serde_json::from_slice(&bytes("first.parquet.manifest.json")).unwrap();
    assert_eq!(written, first);

    let now = request(&world, Spine::File { place: "labels.csv".to_owned() }, &["revenue"]).await;
    let third = built(&world, &now, "third", PlaceFormat::Delta).await;
    assert_ne!(third.output.digest, first.output.digest, "the first day was computed again");
    let url = url::Url::from_directory_path(world.folder.path().join("third")).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    let ctx = datafusion::prelude::SessionContext::new();
    ctx.register_table("t", table.table_provider().await.unwrap()).unwrap();
    let found = ctx.sql("SELECT shop, label, total FROM t ORDER BY shop").await.unwrap().collect().await.unwrap();
    insta::assert_snapshot!("delta_table", pretty_format_batches(&found).unwrap().to_string());
}

/// More rows than one batch has.
const MANY: &str =
    "SELECT r1.shop, r1.at AS event_timestamp, n FROM receipts r1, (SELECT unnest(range(0, 9000)) AS n) AS many";

#[tokio::test]
async fn what_is_stopped_leaves_nothing() {
    let world = three_days().await;
    let asked = request(&world, Spine::Sql(MANY.to_owned()), &["revenue"]).await;
    for (out, format) in [("out.parquet", PlaceFormat::Parquet), ("table", PlaceFormat::Delta)] {
        let out = world.folder.path().join("datasets").join(out);
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        let place = Place::new(out.to_str().unwrap(), format, &Stores::default()).unwrap();
        let stop = CancellationToken::new();
        let mut told = 0;
        let mut tell = |rows| {
            told = rows;
            stop.cancel();
        };
        let stopped = build(&engine(&world), &parts(&world), &asked, &place, &stop, &mut tell).await;
        assert!(matches!(stopped, Err(DatasetError::Stopped)));
        assert!(told > 0);
        assert_eq!(files_below(out.parent().unwrap()), [""; 0]);
        assert!(wrong(imported(&place).await.unwrap_err()).contains("has no manifest"));
    }
}

/// Both have seen that nothing is there before either has written anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_builds_that_want_one_place_one_gets_it() {
    let world = three_days().await;
    let one = request(&world, Spine::Sql(MANY.to_owned()), &["revenue"]).await;
    let other = request(&world, Spine::Sql(MANY.to_owned()), &["last_receipt"]).await;
    let fake = testing::fake();
    let folder = (format!("{}/datasets/", world.folder.path().display()), Stores::default());
    let bucket = (testing::place().to_string(), testing::stores(&fake.endpoint(), Patience::default()));
    let places = [folder, bucket].into_iter().flat_map(|(root, stores)| {
        [("out.parquet", PlaceFormat::Parquet), ("table", PlaceFormat::Delta)]
            .map(|(out, format)| Place::new(&format!("{root}{out}"), format, &stores).unwrap())
    });
    for place in places {
        let both_are_here = Arc::new(Barrier::new(2));
        let mut builds = JoinSet::new();
        for request in [&one, &other] {
            let (engine, parts, request, place) = (engine(&world), parts(&world), request.clone(), place.clone());
            let both_are_here = Arc::clone(&both_are_here);
            builds.spawn(async move {
                let mut has_met = false;
                let mut meet = |_| {
                    if !std::mem::replace(&mut has_met, true) {
                        both_are_here.wait();
                    }
                };
                build(&engine, &parts, &request, &place, &CancellationToken::new(), &mut meet).await
            });
        }
        let (built, refused): (Vec<_>, Vec<_>) = builds.join_all().await.into_iter().partition(Result::is_ok);
        let [Ok(built)] = &built[..] else { panic!("{refused:?}") };
        assert!(refused.into_iter().all(|refused| wrong(refused.unwrap_err()).contains("exists")));
        assert_eq!(imported(&place).await.unwrap(), *built);
    }
    let files = files_below(&world.folder.path().join("datasets"));
    assert_eq!(files.len(), 3, "a file with its manifest, and a table: {files:?}");
    let keys = fake.keys(BUCKET, "");
    assert_eq!(keys.len(), 5, "a file with its manifest, and a table with data, manifest and log: {keys:?}");
}

/// Nobody knows whether the commit landed, so nothing that it names is removed.
#[tokio::test]
async fn a_table_whose_commit_was_not_answered_stays_whole() {
    let world = three_days().await;
    let fake = testing::fake();
    let stores = testing::stores(&fake.endpoint(), testing::short());
    let place = Place::new(&format!("{}table", testing::place()), PlaceFormat::Delta, &stores).unwrap();
    let asked = request(&world, labels(&[("a", "2024-01-03T00:00:00Z")]), &["revenue"]).await;
    fake.inject(Fault::new(Mode::ApplyThenRefuse(500)).on("PUT", "_delta_log"));
    let error = attempt(&world, &asked, &place, &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("may be whole: `tidegate dataset import s3://lake/"), "{error:?}");
    fake.heal();
    assert_eq!(imported(&place).await.unwrap().output.rows, 1);
}

#[tokio::test]
async fn a_table_that_cannot_be_read_is_no_folder_of_files() {
    let world = three_days().await;
    let asked = request(&world, labels(&[("a", "2024-01-03T00:00:00Z")]), &["revenue.total"]).await;
    built(&world, &asked, "labels", PlaceFormat::Delta).await;
    let mut asked = request(&world, Spine::File { place: "labels".to_owned() }, &["revenue.receipts"]).await;
    assert!(rows(&world, &asked).await.contains("receipts"));
    std::fs::write(world.folder.path().join("labels/_delta_log/00000000000000000001.json"), "{").unwrap();
    let broken = attempt_open(&world, &asked).await;
    assert!(wrong(broken).contains("the spine `labels` cannot be read"));

    std::fs::create_dir(world.folder.path().join("days")).unwrap();
    for (day, shop) in [(1, "007"), (2, "a")] {
        let text = format!("shop,event_timestamp,amount\n{shop},2024-01-0{day}T12:00:00Z,1.5\n");
        std::fs::write(world.folder.path().join(format!("days/{day}.csv")), text).unwrap();
    }
    asked.spine = Spine::File { place: "days".to_owned() };
    let found = rows(&world, &asked).await;
    assert!(found.contains("| 007 "), "a key is a text, as the entity says:\n{found}");
    std::fs::write(world.folder.path().join("days/3.parquet"), "").unwrap();
    let mixed = attempt_open(&world, &asked).await;
    assert!(wrong(mixed).contains("2 of its 3 files are called `.csv`"));
}

/// Types that no feature has, in a spine.
fn odd(amount: &str) -> Spine {
    Spine::Sql(format!(
        "SELECT shop, arrow_cast(arrow_cast(at, 'Timestamp(Nanosecond, Some(\"UTC\"))'), \
         'Timestamp(Nanosecond, Some(\"America/New_York\"))') AS event_timestamp, \
         CAST({amount} AS DECIMAL(10, 2)) AS amount, arrow_cast(18446744073709551615, 'UInt64') AS number FROM receipts"
    ))
}

#[tokio::test]
async fn types_that_features_do_not_have_count_and_are_stored_as_the_format_has_them() {
    let world = three_days().await;
    let mut digests = Vec::new();
    for (number, amount) in ["amount", "amount", "amount + 0.01"].into_iter().enumerate() {
        let asked = request(&world, odd(amount), &["revenue.total"]).await;
        let manifest = built(&world, &asked, &format!("{number}.parquet"), PlaceFormat::Parquet).await;
        digests.push((manifest.spine.digest, manifest.output.digest));
    }
    assert_eq!(digests[0], digests[1]);
    assert!(digests[0].0 != digests[2].0 && digests[0].1 != digests[2].1);

    let asked = request(&world, odd("amount"), &["revenue.total"]).await;
    let manifest = built(&world, &asked, "table", PlaceFormat::Delta).await;
    let kinds: Vec<_> = manifest.output.columns.iter().map(|column| column.kind.as_str()).collect();
    assert_eq!(kinds, ["Utf8", "Timestamp(µs, \"UTC\")", "Decimal128(10, 2)", "Decimal128(20, 0)", "Float64"]);
    assert_eq!(manifest.output.digest, digests[0].1, "the same values");
    let url = url::Url::from_directory_path(world.folder.path().join("table")).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    let ctx = datafusion::prelude::SessionContext::new();
    ctx.register_table("t", table.table_provider().await.unwrap()).unwrap();
    let sql = "SELECT DISTINCT number FROM t WHERE event_timestamp < '2024-01-01T10:30:00Z'";
    let found = ctx.sql(sql).await.unwrap().collect().await.unwrap();
    let found = pretty_format_batches(&found).unwrap().to_string();
    assert!(found.contains("18446744073709551615"), "{found}");

    let names: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let fields = ["shop", "shop"].map(|name| Field::new(name, DataType::Utf8, true)).to_vec();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), vec![Arc::clone(&names), names]).unwrap();
    let asked = request(&world, Spine::Rows(batch.schema(), vec![batch]), &["revenue"]).await;
    assert!(wrong(attempt_open(&world, &asked).await).contains("two columns `shop`"));
    let asked = request(&world, odd("amount"), &[]).await;
    assert!(wrong(attempt_open(&world, &asked).await).contains("no feature is asked for"));
}

/// A disk that is full is nobody's bad value.
#[test]
fn only_what_is_wrong_with_a_value_is_blamed_on_whoever_wrote_it() {
    use datafusion::arrow::error::ArrowError;
    use datafusion::error::DataFusionError;

    let of = |error: ArrowError| failed("computing", DataFusionError::ArrowError(Box::new(error), None));
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    assert!(matches!(of(ArrowError::IoError("spilling".to_owned(), full)), DatasetError::Failed(_)));
    assert!(wrong(of(ArrowError::CastError("`x` is no number".to_owned()))).contains("`x` is no number"));
}

/// A process died between the manifest and the file, or between a table's file and its first commit.
#[tokio::test]
async fn what_is_not_whole_is_neither_imported_nor_in_the_way() {
    let world = three_days().await;
    let asked = request(&world, labels(&[("a", "2024-01-03T00:00:00Z")]), &["revenue"]).await;
    let manifest = built(&world, &asked, "out.parquet", PlaceFormat::Parquet).await;
    let out = world.folder.path().join("out.parquet");
    let place = Place::new(out.to_str().unwrap(), PlaceFormat::Parquet, &Stores::default()).unwrap();
    assert_eq!(imported(&place).await.unwrap(), manifest);
    std::fs::remove_file(&out).unwrap();
    assert!(wrong(imported(&place).await.unwrap_err()).contains("does not have the bytes"));
    let early = wrong(attempt(&world, &asked, &place, &mut |_| {}).await.unwrap_err());
    assert!(early.contains("has a manifest of this minute"), "{early}");
    let left = std::fs::File::options().write(true).open(out.with_extension("parquet.manifest.json")).unwrap();
    left.set_modified(std::time::UNIX_EPOCH).unwrap();
    let manifest = built(&world, &asked, "out.parquet", PlaceFormat::Parquet).await;
    imported(&place).await.unwrap();

    // A dataset that was recorded had its file, so somebody has removed that one.
    let dataset = Dataset {
        id: DatasetId::generate(),
        name: None,
        place: place.name().to_owned(),
        created_at: at("2024-01-05T00:00:00Z"),
        actor: "ana".to_owned(),
        manifest,
        pin: None,
    };
    world.store.dataset_record(&dataset).await.unwrap();
    std::fs::remove_file(&out).unwrap();
    built(&world, &asked, "out.parquet", PlaceFormat::Parquet).await;
    imported(&place).await.unwrap();

    let manifest = built(&world, &asked, "table", PlaceFormat::Delta).await;
    let out = world.folder.path().join("table");
    let place = Place::new(out.to_str().unwrap(), PlaceFormat::Delta, &Stores::default()).unwrap();
    assert_eq!(imported(&place).await.unwrap(), manifest);
    std::fs::remove_dir_all(out.join("_delta_log")).unwrap();
    assert!(wrong(imported(&place).await.unwrap_err()).contains("is not a table yet"));
    assert!(wrong(attempt(&world, &asked, &place, &mut |_| {}).await.unwrap_err()).contains("exists"));
}

fn files_below(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap());
    entries.map(|entry| entry.path().display().to_string()).collect()
}

#[tokio::test]
async fn what_would_be_read_is_what_labels_can_see() {
    let world = three_days().await;
    let both = ["revenue.total", "last_receipt.largest"];
    let read = async |spine: Spine| {
        let asked = request(&world, spine, &both).await;
        let all = files(&engine(&world), &parts(&world), &asked).await.unwrap();
        all.iter().map(|of| (of.files, of.table_files)).collect::<Vec<_>>()
    };
    assert_eq!(read(labels(&[("a", "2024-01-01T00:00:00Z")])).await, [(0, 3), (0, 3)], "nothing was known");
    assert_eq!(read(labels(&[("a", "2024-01-02T00:00:00Z")])).await, [(1, 3), (1, 3)]);
    assert_eq!(read(labels(&[("a", "2024-01-05T00:00:00Z"), ("b", "2024-01-02T00:00:00Z")])).await, [(3, 3), (3, 3)]);
    assert_eq!(read(labels(&[("a", "2024-01-05T00:00:00Z")])).await, [(1, 3), (1, 3)]);
    assert_eq!(read(labels(&[("a", "2025-01-01T00:00:00Z")])).await, [(1, 3), (0, 3)], "rows of one view have expired");
    assert_eq!(read(Spine::Entities(at("2024-01-02T00:00:00Z"))).await, [(1, 3), (1, 3)]);
    assert_eq!(read(labels(&[])).await, [(0, 3), (0, 3)]);
    let lost = request(&world, Spine::File { place: "no.csv".to_owned() }, &both).await;
    let error = files(&engine(&world), &parts(&world), &lost).await.unwrap_err();
    assert!(wrong(error).contains("`no.csv` cannot be read"));

    // What is not counted is not opened.
    let asked = request(&world, labels(&[("a", "2024-01-02T00:00:00Z")]), &both).await;
    let found = rows(&world, &asked).await;
    let parts = parts(&world);
    for view in asked.features.views.keys() {
        let AsOf { delta_version, .. } = world.store.as_of(view, asked.number).await.unwrap();
        let table = parts.lake.load(view, delta_version).await.unwrap();
        let table_folder = parts.lake.table_url(view).to_file_path().unwrap();
        for file in Lake::files_of(&table)
            .unwrap()
            .iter()
            .filter(|file| file.slice > at("2024-01-01T00:00:00Z").timestamp_micros())
        {
            std::fs::remove_file(table_folder.join(&file.path)).unwrap();
        }
    }
    assert_eq!(rows(&world, &asked).await, found);
}

#[tokio::test]
async fn many_rows_keep_their_order_on_all_cores() {
    let world = three_days().await;
    let start = at("2024-01-02T00:00:00Z");
    let moments: Vec<String> =
        (0..60_000).map(|step| (start + chrono::Duration::seconds(step % 997 * 100)).to_rfc3339()).collect();
    let rows: Vec<(&str, &str)> =
        moments.iter().zip(["a", "b", "c"].iter().cycle()).map(|(at, shop)| (*shop, at.as_str())).collect();
    let asked = request(&world, labels(&rows), &["revenue", "last_receipt"]).await;
    let opened = open(&engine(&world), &parts(&world), &asked, PlaceFormat::Parquet).await.unwrap();
    let batches: Vec<RecordBatch> = opened.rows.try_collect().await.unwrap();
    let Spine::Rows(_, spine) = &asked.spine else { panic!("it is a spine of rows") };
    let schema = batches[0].schema();
    let joined = datafusion::arrow::compute::concat_batches(&schema, &batches).unwrap();
    for name in ["shop", LABEL_TIME] {
        assert_eq!(joined.column_by_name(name), spine[0].column_by_name(name), "{name}");
    }
    let asked = request(&world, Spine::Sql(MANY.to_owned()), &["revenue"]).await;
    let first = built(&world, &asked, "first.parquet", PlaceFormat::Parquet).await;
    for again in 0..3 {
        let again = built(&world, &asked, &format!("again{again}.parquet"), PlaceFormat::Parquet).await;
        assert_eq!(again.output, Output { files: again.output.files.clone(), ..first.output.clone() });
        assert_eq!(again.output.files[0].sha256, first.output.files[0].sha256);
    }
}

/// What is new replaces nothing then. Files are named by the runs that wrote them.
#[tokio::test]
async fn the_newest_files_of_a_view_are_read_first() {
    let world = three_days().await;
    let asked = request(&world, labels(&[("a", "2024-01-04T00:00:00Z")]), &["last_receipt"]).await;
    let plan = explain(&engine(&world), &parts(&world), &asked).await.unwrap();
    let scan = plan.lines().find(|line| line.contains("file_groups")).unwrap();
    let runs: Vec<&str> = scan.split("/data/").skip(1).filter_map(|rest| rest.split('/').next()).collect();
    assert_eq!(runs.len(), 3, "{scan}");
    assert!(runs.is_sorted_by(|a, b| a > b), "{scan}");
}

#[test]
fn a_label_is_stale_later_than_max_age_after_the_newest_interval_that_was_known() {
    // Intervals end at 100 and 200, and are known ten later.
    let ages = Ages { ends: vec![(110, 100), (210, 200)], max_age: 80 };
    let stale: Vec<i64> = (0..300).filter(|label| ages.is_stale(*label)).collect();
    let expected: Vec<i64> = (181..210).chain(281..300).collect();
    assert_eq!(stale, expected);
    assert!(!Ages { ends: Vec::new(), max_age: 0 }.is_stale(7), "what finds nothing finds nothing old");
}

#[tokio::test]
async fn a_spine_may_be_a_query_or_all_entities() {
    let world = three_days().await;
    let sql = "SELECT DISTINCT shop, at AS event_timestamp FROM receipts WHERE at < TIMESTAMP '2024-01-03T00:00:00Z'";
    let found = rows(&world, &request(&world, Spine::Sql(sql.to_owned()), &["lifetime.days"]).await).await;
    insta::assert_snapshot!("spine_of_a_query", found);
    let all = request(&world, Spine::Entities(at("2024-01-04T00:00:00Z")), &["lifetime", "ranking"]).await;
    let found = rows(&world, &all).await;
    insta::assert_snapshot!("spine_of_all_entities", found);
    let plan = request(&world, Spine::Entities(at("2024-01-04T00:00:00Z")), &["lifetime"]).await;
    let reads = files(&engine(&world), &parts(&world), &plan).await.unwrap();
    assert_eq!((reads[0].files, reads[0].table_files, reads[0].input.intervals), (1, 3, 3));
    let plan = explain(&engine(&world), &parts(&world), &plan).await.unwrap();
    assert!(plan.contains("PointInTime"), "{plan}");
}

#[tokio::test]
async fn what_is_wrong_is_told_and_nothing_is_left() {
    let world = three_days().await;
    let told = async |spine: Spine, features: &[&str]| {
        let asked = request(&world, spine, features).await;
        wrong(attempt_open(&world, &asked).await)
    };
    let of = |text: &str| {
        std::fs::write(world.folder.path().join("labels.csv"), text).unwrap();
        Spine::File { place: "labels.csv".to_owned() }
    };
    let mut texts = vec![
        told(of("store,event_timestamp\na,2024-01-02T00:00:00Z\n"), &["revenue"]).await,
        told(of("shop,at\na,2024-01-02T00:00:00Z\n"), &["revenue"]).await,
        told(of("shop,event_timestamp\na,7\n"), &["revenue"]).await,
        told(of("shop,event_timestamp,total\na,2024-01-02T00:00:00Z,1\n"), &["revenue"]).await,
        told(of("shop,event_timestamp\na,2024-01-02T00:00:00Z\n"), &["revenue", "lifetime"]).await,
        told(Spine::File { place: "nothing.parquet".to_owned() }, &["revenue"]).await,
        told(Spine::File { place: "../secret.csv".to_owned() }, &["revenue"]).await,
        told(Spine::Sql("SELECT shop FROM revenue".to_owned()), &["revenue"]).await,
        told(Spine::Sql("DROP TABLE receipts".to_owned()), &["revenue"]).await,
        told(Spine::Sql("SELECT shop, $interval_end AS event_timestamp FROM receipts".to_owned()), &["revenue"]).await,
    ];
    let asked = request(&world, of("shop,event_timestamp\na,2024-01-02T00:00:00Z\nb,\n"), &["revenue"]).await;
    let out = world.folder.path().join("out.parquet");
    let place = Place::new(out.to_str().unwrap(), PlaceFormat::Parquet, &Stores::default()).unwrap();
    let before: Vec<_> = std::fs::read_dir(world.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    texts.push(wrong(attempt(&world, &asked, &place, &mut |_| {}).await.unwrap_err()));
    let after: Vec<_> = std::fs::read_dir(world.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(after.len(), before.len(), "{after:?}");
    std::fs::write(&out, "mine").unwrap();
    texts.push(wrong(attempt(&world, &asked, &place, &mut |_| {}).await.unwrap_err()));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "mine");
    let folder = world.folder.path().canonicalize().unwrap().display().to_string();
    insta::assert_snapshot!(
        "what_is_wrong",
        texts.join("\n").replace(&folder, "…").replace(world.folder.path().to_str().unwrap(), "…")
    );
}
