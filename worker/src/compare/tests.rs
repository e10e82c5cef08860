//! Comparisons: by hand on a real registry and lake, and of anything with a plain reference.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use deltalake::parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use serde_json::json;
use tidegate_registry::restore::Restoring as _;

use super::sides::KeyColumn;
use super::*;
use crate::sources::Sources;
use crate::tests::{DEFINITIONS, World, at};

/// The view of the day's revenue, and a second version that counts receipts otherwise and forgets shop `b` on the second.
fn two_versions() -> String {
    let (before, rest) = DEFINITIONS.split_once("  - name: revenue\n").unwrap();
    let (revenue, after) = rest.split_once("  - name: ranking\n").unwrap();
    let second = revenue
        .replace("    entity: shop\n", "    version: 2\n    entity: shop\n")
        .replace("count(*) AS receipts", "NULLIF(count(*) + 1, 3) AS receipts, max(amount) AS largest")
        .replace("GROUP BY shop", "AND NOT (shop = 'b' AND at < '2024-01-03' AND at >= '2024-01-02') GROUP BY shop")
        .replace("    features:\n", "    features:\n      - {name: largest, type: bigint, description: euros}\n")
        .replace("      - row_count: {max_change: 0.5}\n", "");
    let text = format!("{before}  - name: revenue\n{revenue}  - name: revenue\n{second}  - name: ranking\n{after}");
    text.replace(
        "SELECT shop, total / sum(total) OVER () AS share FROM revenue",
        "SELECT shop, total / sum(total) OVER () AS share FROM \"revenue@v1\"",
    )
    .replace("FROM history.revenue", "FROM history.\"revenue@v1\"")
}

async fn three_days() -> World {
    let world = World::with(&two_versions()).await;
    for day in 1..=3 {
        world.succeed(day, 0).await;
    }
    world
}

async fn request(world: &World, view: &str, with: With) -> CompareRequest {
    CompareRequest {
        project: Arc::clone(&world.project),
        view: view.parse().unwrap(),
        with,
        span: Span::AsOf(None),
        features: Vec::new(),
        renamed: Vec::new(),
        their_time: None,
        tolerance: Tolerance::Exact,
        examples: 5,
        number: world.store.number_at(at("2024-01-05T00:00:00Z")).await.unwrap(),
    }
}

fn version(text: &str) -> With {
    With::View(text.parse().unwrap())
}

async fn found(world: &World, request: &CompareRequest) -> Result<Comparison, CompareError> {
    let root = world.folder.path();
    let parts = DatasetParts {
        store: world.store.clone(),
        lake: world.fresh_lake(),
        sources: Sources::new(root, &[]).unwrap(),
        spines: Sources::new(root, &[]).unwrap(),
    };
    let engine = Engine::new(256 << 20, &root.join("spill")).unwrap();
    let mut seen = 0;
    let found = compare(&engine, &parts, request, &mut |rows| seen = rows).await;
    if let Ok(found) = &found {
        assert_eq!(seen, found.both + found.only_ours + found.only_theirs, "what was counted was told");
    }
    found
}

async fn wrong(world: &World, request: &CompareRequest) -> String {
    match found(world, request).await.unwrap_err() {
        CompareError::Wrong { message, hint } => format!("{message} ({hint})"),
        CompareError::Failed(error) => panic!("{error:#}"),
    }
}

/// As written by an old pipeline.
fn write(world: &World, name: &str, text: &str) -> With {
    std::fs::write(world.folder.path().join(name), text).unwrap();
    With::Place(name.to_owned())
}

fn counts(feature: &FeatureAgreement) -> (&str, [u64; 4]) {
    (&feature.name, [feature.equal, feature.different, feature.null_ours, feature.null_theirs])
}

#[tokio::test]
async fn two_versions_of_a_view_are_compared_feature_by_feature() {
    let world = three_days().await;
    let mut request = request(&world, "revenue@v2", version("revenue@v1")).await;
    request.span = Span::AsOf(Some(at("2024-01-02T00:00:00Z")));
    let first = found(&world, &request).await.unwrap();
    assert_eq!((first.both, first.only_ours, first.only_theirs), (2, 0, 0));
    let [total, receipts] = first.features.as_slice() else { panic!("{first:#?}") };
    assert_eq!(counts(total), ("total", [2, 0, 0, 0]));
    // Of a two receipts, which the second version calls 3 and so nothing; of b one, which it calls 2.
    assert_eq!(counts(receipts), ("receipts", [0, 1, 1, 0]));
    assert_eq!(receipts.distance, Some(Distance { rows: 1, largest: 1.0, mean: 1.0 }));
    assert_eq!(total.distance, Some(Distance { rows: 2, largest: 0.0, mean: 0.0 }));
    let examples: Vec<_> = receipts
        .examples
        .iter()
        .map(|one| (one.entity["shop"].clone(), one.ours.clone(), one.theirs.clone()))
        .collect();
    assert_eq!(examples, [(json!("b"), json!(2), json!(1)), (json!("a"), json!(null), json!(2))], "the farthest first");
    assert_eq!(
        (first.features_only_ours.as_slice(), first.features_only_theirs.as_slice()),
        (&["largest".to_owned()][..], &[][..])
    );
    assert_eq!(first.agreement(Missing::Disagrees), Some(50.0));
    assert_eq!((first.rows_equal, first.entity_agreement(Missing::Disagrees)), (0, Some(0.0)));

    request.span = Span::AsOf(None);
    request.features = vec!["total".to_owned()];
    let newest = found(&world, &request).await.unwrap();
    assert_eq!((newest.span, newest.both), (Span::AsOf(Some(at("2024-01-04T00:00:00Z"))), 1));
    assert_eq!(newest.features.iter().map(counts).collect::<Vec<_>>(), [("total", [1, 0, 0, 0])]);

    request.span = Span::History(None, Some(at("2024-01-04T00:00:00Z")));
    let history = found(&world, &request).await.unwrap();
    assert_eq!((history.both, history.only_ours, history.only_theirs), (3, 0, 1), "without the third day");
    let lonely = json!({ "shop": "b", "interval_end": "2024-01-03T00:00:00Z" });
    assert_eq!(json!(history.examples_only_theirs), json!([lonely]));
    assert_eq!(history.agreement(Missing::Disagrees), Some(75.0));
    assert_eq!(history.agreement(Missing::Ignored), Some(100.0));
    assert_eq!(history.agreement_of(&history.features[0], Missing::Disagrees), Some(75.0));
}

#[tokio::test]
async fn columns_of_another_view_may_swap_their_names() {
    let world = three_days().await;
    let mut request = request(&world, "revenue@v2", version("revenue@v1")).await;
    request.span = Span::AsOf(Some(at("2024-01-02T00:00:00Z")));
    let pair = |theirs: &str, ours: &str| (theirs.to_owned(), ours.to_owned());
    request.renamed = vec![pair("receipts", "total"), pair("total", "receipts")];
    let swapped = found(&world, &request).await.unwrap();
    let pairs: Vec<_> = swapped.features.iter().map(|found| (found.name.as_str(), found.theirs.as_str())).collect();
    assert_eq!(pairs, [("total", "receipts"), ("receipts", "total")]);
    assert_eq!(swapped.features_only_theirs, [""; 0]);
    request.renamed = vec![pair("receipts", "total"), pair("total", "total")];
    assert!(wrong(&world, &request).await.contains("names both `receipts` and `total` as `total`"));
}

#[tokio::test]
async fn an_old_pipelines_table_is_compared_in_its_own_names_and_types() {
    let world = three_days().await;
    let file = "Shop,revenue,receipts,region\na,30.004,2.0,north\nb,71,,south\nc,1,1,\n,5,5,nowhere\n";
    let mut request = request(&world, "revenue@v1", write(&world, "old.csv", file)).await;
    request.span = Span::AsOf(Some(at("2024-01-02T00:00:00Z")));
    request.renamed = vec![("Shop".to_owned(), "shop".to_owned()), ("revenue".to_owned(), "total".to_owned())];
    let exact = found(&world, &request).await.unwrap();
    assert_eq!((exact.both, exact.only_ours, exact.only_theirs), (2, 0, 2), "one of them has no shop at all");
    assert_eq!(
        exact.features.iter().map(counts).collect::<Vec<_>>(),
        [("total", [0, 2, 0, 0]), ("receipts", [1, 0, 0, 1])],
        "2.0 is the whole number 2"
    );
    assert_eq!(exact.features[0].theirs, "revenue");
    assert_eq!(exact.features[0].distance.unwrap().largest, 1.0);
    assert_eq!(exact.features[0].examples[0].entity["shop"], json!("b"), "the farthest apart");
    assert_eq!(exact.features_only_theirs, ["region"]);
    request.tolerance = "0.01".parse().unwrap();
    assert_eq!(counts(&found(&world, &request).await.unwrap().features[0]).1, [1, 1, 0, 0]);
    request.tolerance = "2%".parse().unwrap();
    assert_eq!(counts(&found(&world, &request).await.unwrap().features[0]).1, [2, 0, 0, 0]);
    request.with = With::Source("receipts".parse().unwrap());
    request.renamed = vec![("amount".to_owned(), "receipts".to_owned())];
    let text = wrong(&world, &request).await;
    assert!(text.starts_with("the source `receipts` has 4 rows of shop=a (leave one row of each"), "{text}");
}

#[tokio::test]
async fn a_table_with_many_times_is_a_history_or_its_newest_rows() {
    let world = three_days().await;
    let file = "shop,day,total\na,2024-01-02,30\nb,2024-01-02,70\na,2024-01-03,50\nb,2024-01-03,51\n";
    let mut request = request(&world, "revenue@v1", write(&world, "old.csv", file)).await;
    let text = wrong(&world, &request).await;
    assert!(text.contains("`old.csv` has 2 rows of shop=a") && text.contains("--event-timestamp"), "{text}");
    request.their_time = Some("day".to_owned());
    request.span = Span::AsOf(Some(at("2024-01-03T00:00:00Z")));
    let newest = found(&world, &request).await.unwrap();
    assert_eq!((newest.both, counts(&newest.features[0])), (2, ("total", [1, 1, 0, 0])));
    request.span = Span::History(None, None);
    let history = found(&world, &request).await.unwrap();
    assert_eq!((history.both, history.only_ours, history.only_theirs), (4, 1, 0), "the third day is not there yet");
    assert_eq!(counts(&history.features[0]), ("total", [3, 1, 0, 0]));
    let when = json!({ "shop": "b", "event_timestamp": "2024-01-03T00:00:00Z" });
    assert_eq!(json!(history.features[0].examples[0].entity), when);

    let twice = file.to_owned() + "a,2024-01-02T00:00:00Z,31\n";
    request.with = write(&world, "twice.csv", &twice.replace(",2024-01-02,", ",2024-01-02T00:00:00Z,"));
    let text = wrong(&world, &request).await;
    assert!(text.starts_with("`twice.csv` has 2 rows of shop=a event_timestamp=2024-01-02T00:00:00"), "{text}");
    request.their_time = None;
    assert!(wrong(&world, &request).await.contains("has no column `event_timestamp`"));
    request.their_time = Some("total".to_owned());
    assert!(wrong(&world, &request).await.contains("and not an instant"));
}

#[tokio::test]
async fn a_partial_view_is_compared_as_what_still_counts() {
    let world = three_days().await;
    // The newest receipts: of a from the second, whose two days are over on the fourth at nine.
    let file = "shop,largest\na,50\nb,60\n";
    let mut request = request(&world, "last_receipt@v1", write(&world, "old.csv", file)).await;
    request.span = Span::AsOf(Some(at("2024-01-04T08:59:59Z")));
    assert_eq!(counts(&found(&world, &request).await.unwrap().features[0]).1, [2, 0, 0, 0]);
    request.span = Span::AsOf(Some(at("2024-01-04T09:00:00Z")));
    let later = found(&world, &request).await.unwrap();
    assert_eq!((later.both, later.only_theirs), (1, 1));
}

#[tokio::test]
async fn what_cannot_be_compared_is_told_with_what_to_do() {
    let world = three_days().await;
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let numbers = RecordBatch::try_from_iter([("shop", Arc::clone(&numbers)), ("total", numbers)]).unwrap();
    let file = std::fs::File::create(world.folder.path().join("numbers.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, numbers.schema(), None).unwrap();
    writer.write(&numbers).unwrap();
    writer.close().unwrap();
    let mut said = Vec::new();
    let cases = [
        ("revenue@v1", version("revenue@v1")),
        ("revenue@v1", version("ranking@v1")),
        ("revenue@v1", write(&world, "texts.csv", "shop,total\na,many\n")),
        // The keys of a CSV file would be texts, as the entity says.
        ("revenue@v1", With::Place("numbers.parquet".to_owned())),
        ("revenue@v1", write(&world, "keyless.csv", "store,total\na,1\n")),
        ("revenue@v1", write(&world, "strange.csv", "shop,umsatz\na,1\n")),
        ("revenue@v1", With::Place("nothing.csv".to_owned())),
    ];
    for (view, with) in cases {
        let name = format!("{with:?}");
        said.push(format!("{name}: {}", wrong(&world, &request(&world, view, with).await).await));
    }
    let mut asked = request(&world, "revenue@v1", version("revenue@v2")).await;
    asked.features = vec!["largest".to_owned()];
    said.push(wrong(&world, &asked).await);
    asked.features = vec!["total".to_owned()];
    asked.renamed = vec![("sum".to_owned(), "total".to_owned())];
    said.push(wrong(&world, &asked).await);
    asked.renamed = vec![("total".to_owned(), "sum".to_owned())];
    said.push(wrong(&world, &asked).await);
    let folder = world.folder.path().display().to_string();
    insta::assert_snapshot!(said.join("\n").replace(&folder, "[FOLDER]"));

    let empty = World::with(&two_versions()).await;
    let request = request(&empty, "revenue@v2", version("revenue@v1")).await;
    assert!(wrong(&empty, &request).await.starts_with("nothing of `revenue@v2` is published"));
}

/// One side's row: two keys, a number, a whole or floating number, a text.
type Values = (Option<f64>, Option<i64>, Option<String>);
type Rows = BTreeMap<(i64, String), Values>;

fn rows() -> impl Strategy<Value = Rows> {
    let number = prop::sample::select(vec![
        None,
        Some(0.0),
        Some(-0.0),
        Some(1.5),
        Some(1.6),
        Some(f64::NAN),
        Some(f64::INFINITY),
    ]);
    let whole = prop::sample::select(vec![None, Some(0), Some(7), Some((1 << 53) + 1), Some(-7)]);
    let text = prop::sample::select(vec![None, Some(String::new()), Some("a".to_owned()), Some("ä".to_owned())]);
    let key = (0_i64..4, prop::sample::select(vec!["", "x", "y", "ü"])).prop_map(|(a, b)| (a, b.to_owned()));
    prop::collection::btree_map(key, (number, whole, text), 0..14)
}

fn side(ctx: &SessionContext, called: &str, rows: &Rows, floating: bool) -> Side {
    let first: ArrayRef = Arc::new(rows.keys().map(|(a, _)| Some(*a)).collect::<Int64Array>());
    let second: ArrayRef = Arc::new(rows.keys().map(|(_, b)| Some(b.as_str())).collect::<StringArray>());
    let number: ArrayRef = Arc::new(rows.values().map(|(number, _, _)| *number).collect::<Float64Array>());
    let whole: ArrayRef = if floating {
        Arc::new(rows.values().map(|(_, whole, _)| whole.map(|whole| whole as f64)).collect::<Float64Array>())
    } else {
        Arc::new(rows.values().map(|(_, whole, _)| *whole).collect::<Int64Array>())
    };
    let text: ArrayRef = Arc::new(rows.values().map(|(_, _, text)| text.clone()).collect::<StringArray>());
    let columns = [("a", first), ("b", second), ("number", number), ("whole", whole), ("text", text)];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap();
    let key = |name: &str| KeyColumn { name: name.to_owned(), column: name.to_owned() };
    let features = ["number", "whole", "text"].map(|name| (name.to_owned(), name.to_owned()));
    Side {
        called: called.to_owned(),
        rows: ctx.read_batch(batch).unwrap(),
        keys: vec![key("a"), key("b")],
        features: features.into_iter().collect(),
    }
}

/// The same by going through both sides.
fn plainly(ours: &Rows, theirs: &Rows) -> (u64, u64, u64, [[u64; 4]; 3]) {
    let mut found = [[0; 4]; 3];
    let mut both = 0;
    for (key, (number, whole, text)) in ours {
        let Some((their_number, their_whole, their_text)) = theirs.get(key) else { continue };
        both += 1;
        let same_number = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan();
        let mut note = |feature: usize, here: bool, there: bool, same: bool| {
            let at = match (here, there) {
                (false, false) => 0,
                (false, true) => 2,
                (true, false) => 3,
                (true, true) => usize::from(!same),
            };
            found[feature][at] += 1;
        };
        let same = number.zip(*their_number).is_some_and(|(a, b)| same_number(a, b));
        note(0, number.is_some(), their_number.is_some(), same);
        // As a double, which the largest of them is not.
        let same = whole.zip(*their_whole).is_some_and(|(a, b)| i128::from(a) == (b as f64) as i128);
        note(1, whole.is_some(), their_whole.is_some(), same);
        note(2, text.is_some(), their_text.is_some(), text == their_text);
    }
    (both, ours.len() as u64 - both, theirs.len() as u64 - both, found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_two_sides_agree_as_far_as_a_plain_look_says(ours in rows(), theirs in rows()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let spill = tempfile::tempdir().unwrap();
        let engine = Engine::new(64 << 20, spill.path()).unwrap();
        let ctx = context(&engine).unwrap();
        let (here, there) = (side(&ctx, "here", &ours, false), side(&ctx, "there", &theirs, true));
        let shared = ["number", "whole", "text"].map(|name| (name.to_owned(), name.to_owned())).to_vec();
        let pairs = Pairs { shared, only_ours: Vec::new(), only_theirs: Vec::new() };
        let layout = Layout { keys: vec!["a".to_owned(), "b".to_owned()], features: 3, tolerance: Tolerance::Exact, examples: 2 };
        let tally = runtime.block_on(async {
            count(joined(&here, &there, &pairs).unwrap(), &layout, "there", &mut |_| ()).await.unwrap()
        });
        let found = comparison(Span::AsOf(None), pairs, tally);
        let features = [0, 1, 2].map(|at: usize| counts(&found.features[at]).1);
        prop_assert_eq!((found.both, found.only_ours, found.only_theirs, features), plainly(&ours, &theirs));
        // Examples are the first by key of those that are missing.
        let lonely: Vec<_> = ours.keys().filter(|key| !theirs.contains_key(*key)).take(2)
            .map(|(a, b)| json!({ "a": a, "b": b })).collect();
        prop_assert_eq!(json!(found.examples_only_ours), json!(lonely));
    }
}

/// Many rows of about 130 bytes in no order.
fn large(ctx: &SessionContext, called: &str, ones: i64) -> Side {
    const ROWS: i64 = 400_000;
    let batches: Vec<RecordBatch> = (0..ROWS / 10_000)
        .map(|batch| {
            let numbers = || (0..10_000).map(move |row| ((batch * 10_000 + row) * 7_919) % ROWS);
            let first: ArrayRef = Arc::new(numbers().map(Some).collect::<Int64Array>());
            let text = "a key that is the same for all entities and takes some space";
            let second: ArrayRef = Arc::new(numbers().map(|_| Some(text)).collect::<StringArray>());
            let number: ArrayRef =
                Arc::new(numbers().map(|number| Some(number as f64 / 7.0)).collect::<Float64Array>());
            let whole: ArrayRef =
                Arc::new(numbers().map(|number| Some(i64::from(number < ones))).collect::<Int64Array>());
            let text: ArrayRef =
                Arc::new(numbers().map(|number| Some(format!("text {number}"))).collect::<StringArray>());
            let columns = [("a", first), ("b", second), ("number", number), ("whole", whole), ("text", text)];
            RecordBatch::try_from_iter(columns).unwrap()
        })
        .collect();
    let key = |name: &str| KeyColumn { name: name.to_owned(), column: name.to_owned() };
    let features = ["number", "whole", "text"].map(|name| (name.to_owned(), name.to_owned()));
    Side {
        called: called.to_owned(),
        rows: ctx.read_batches(batches).unwrap(),
        keys: vec![key("a"), key("b")],
        features: features.into_iter().collect(),
    }
}

/// The sides take 52 MB each, and operators have 64 MB: they sort on disk.
#[tokio::test]
async fn sides_larger_than_memory_are_compared() {
    let spill = tempfile::tempdir().unwrap();
    let engine = Engine::new(128 << 20, spill.path()).unwrap();
    let ctx = context(&engine).unwrap();
    let (here, there) = (large(&ctx, "here", 1_000), large(&ctx, "there", 1_500));
    let shared = ["number", "whole", "text"].map(|name| (name.to_owned(), name.to_owned())).to_vec();
    let pairs = Pairs { shared, only_ours: Vec::new(), only_theirs: Vec::new() };
    let keys = vec!["a".to_owned(), "b".to_owned()];
    let layout = Layout { keys, features: 3, tolerance: Tolerance::Exact, examples: 1 };
    let tally = count(joined(&here, &there, &pairs).unwrap(), &layout, "there", &mut |_| ()).await.unwrap();
    let found = comparison(Span::AsOf(None), pairs, tally);
    assert_eq!((found.both, found.only_ours, found.only_theirs, found.rows_equal), (400_000, 0, 0, 399_500));
    let features = [0, 1, 2].map(|at: usize| counts(&found.features[at]).1);
    assert_eq!(features, [[400_000, 0, 0, 0], [399_500, 500, 0, 0], [400_000, 0, 0, 0]]);
    assert_eq!(found.features[1].examples[0].entity["a"], json!(1_000));
}
