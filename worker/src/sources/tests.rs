//! What a source may be, and what happens when it changes.

use datafusion::arrow::array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use datafusion::prelude::{col, lit};
use deltalake::parquet::arrow::ArrowWriter;
use tidegate_registry::definitions::{LoadOptions, load_files};

use super::*;

/// Why the source at `data/orders.csv` with this content cannot be read.
async fn reason(content: Option<&str>) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    if let Some(content) = content {
        std::fs::write(folder.path().join("data/orders.csv"), content).unwrap();
    }
    let files: [(&str, &[u8]); 2] =
        [("tidegate.yaml", b"project: shop"), ("shop.yaml", b"sources: [{name: orders, csv: data/orders.csv}]")];
    let project = load_files(folder.path(), &files, &LoadOptions::default()).project.unwrap();
    let schemas = Sources::new(folder.path(), &[]).unwrap().schemas(&project).await;
    schemas.values().next().unwrap().as_ref().unwrap_err().clone()
}

#[tokio::test]
async fn a_file_that_cannot_be_read_says_why_once() {
    let reading = "reading the source `orders` at `data/orders.csv`: ";
    assert_eq!(reason(None).await, format!("{reading}there is no such file or folder"));
    assert_eq!(reason(Some("")).await, format!("{reading}it has no columns (a CSV file needs a header line)"));
    let uneven = reason(Some("a;b\n1;2,5\n")).await;
    assert_eq!(uneven.matches("unequal lengths").count(), 1, "{uneven}");
}

/// A folder with one Parquet file per column `customer`.
async fn customers(columns: &[ArrayRef]) -> Result<usize> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    for (n, column) in columns.iter().enumerate() {
        let batch = RecordBatch::try_from_iter([("customer", Arc::clone(column))]).unwrap();
        let file = std::fs::File::create(folder.path().join(format!("data/{n}.parquet"))).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
    let files: [(&str, &[u8]); 2] =
        [("tidegate.yaml", b"project: shop"), ("shop.yaml", b"sources: [{name: customers, parquet: data/}]")];
    let project = load_files(folder.path(), &files, &LoadOptions::default()).project.unwrap();
    let sources = Sources::new(folder.path(), &[]).unwrap();
    let source = project.sources.values().next().unwrap();
    let ctx = SessionContext::new();
    let table = sources.provider(&ctx, source, &sources.pin(source).await?).await?;
    Ok(ctx.read_table(table)?.filter(col("customer").eq(lit("ann")))?.count().await?)
}

#[tokio::test]
async fn files_of_several_programs_are_one_table() {
    let texts = vec!["ann", "bob"];
    let written: [ArrayRef; 3] = [
        Arc::new(StringArray::from(texts.clone())),
        Arc::new(LargeStringArray::from(texts.clone())),
        Arc::new(StringViewArray::from(texts)),
    ];
    assert_eq!(customers(&written).await.unwrap(), 3);
    let other: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let error = format!("{:#}", customers(&[Arc::clone(&written[0]), other]).await.unwrap_err());
    assert!(error.contains("data/1.parquet` are not those of the files before it"), "{error}");
}

mod in_a_store {
    //! Sources in an object store: the same, pinned by entity tags.

    use tidegate_servers::{Fault, Mode, S3Fake};

    use super::*;
    use crate::objects::testing::{self, BUCKET};

    const ORDERS: &[u8] = b"shop,amount\na,1\nb,2\n";

    /// A project whose source is `place`, and what reads it.
    fn source(place: &str, kind: &str, fake: &S3Fake, roots: &[&str]) -> (tempfile::TempDir, Source, Sources) {
        let folder = tempfile::tempdir().unwrap();
        let settings = format!("project: shop\nallowed_roots: [s3://{BUCKET}, s3://elsewhere]");
        let definitions = format!("sources: [{{name: orders, {kind}: '{place}'}}]");
        let files: [(&str, &[u8]); 2] = [("tidegate.yaml", settings.as_bytes()), ("shop.yaml", definitions.as_bytes())];
        let loaded = load_files(folder.path(), &files, &LoadOptions::default());
        let project = loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        let roots: Vec<String> = roots.iter().map(|root| (*root).to_owned()).collect();
        let stores = testing::stores(&fake.endpoint(), testing::short());
        let sources = Sources::with_stores(folder.path(), &roots, stores).unwrap();
        let source = project.sources.values().next().unwrap().clone();
        (folder, source, sources)
    }

    async fn rows(source: &Source, sources: &Sources, pin: &SourcePin) -> Result<usize> {
        let ctx = SessionContext::new();
        let table = sources.provider(&ctx, source, pin).await?;
        Ok(ctx.read_table(table)?.count().await?)
    }

    #[tokio::test]
    async fn files_are_found_by_name_by_folder_and_by_pattern() {
        let fake = testing::fake();
        for name in ["data/1.csv", "data/2.csv", "data/3.txt", "data/_done", "data/old/4.csv", "data/a b%20.csv"] {
            fake.put(BUCKET, name, ORDERS);
        }
        fake.put(BUCKET, "data/", b"");
        let cases = [
            ("s3://lake/data/1.csv", 2),
            ("s3://lake/data/", 8),
            ("s3://lake/data", 8),
            ("s3://lake/data/*.csv", 6),
            ("s3://lake/data/a*", 2),
        ];
        for (place, expected) in cases {
            let (_folder, source, sources) = source(place, "csv", &fake, &["s3://lake/data"]);
            let pin = sources.pin(&source).await.unwrap();
            assert_eq!(rows(&source, &sources, &pin).await.unwrap(), expected, "{place}");
            assert_eq!(sources.changes(&source, &pin).await.unwrap(), None, "{place}");
        }
        let (_folder, source, sources) = source("s3://lake/data/none.csv", "csv", &fake, &["s3://lake"]);
        let error = chain(&sources.pin(&source).await.unwrap_err());
        assert_eq!(error, "reading the source `orders` at `s3://lake/data/none.csv`: there are no files");
    }

    #[tokio::test]
    async fn of_several_files_the_broken_one_is_named() {
        let fake = testing::fake();
        fake.put(BUCKET, "data/1.csv", ORDERS);
        fake.put(BUCKET, "data/2.csv", b"a,b\n1,2,3\n");
        let (_folder, source, sources) = source("s3://lake/data/", "csv", &fake, &["s3://lake"]);
        let pin = sources.pin(&source).await.unwrap();
        let error = chain(&rows(&source, &sources, &pin).await.unwrap_err());
        assert!(error.contains("the file `s3://lake/data/2.csv` cannot be read"), "{error}");
    }

    #[tokio::test]
    async fn a_place_that_nobody_allowed_is_refused() {
        let fake = testing::fake();
        for (place, root) in [
            ("s3://lake/data-secret/1.csv", "s3://lake/data"),
            ("s3://lake/1.csv", "s3://lake/data"),
            ("s3://elsewhere/data/1.csv", "s3://lake/data"),
        ] {
            let (_folder, source, sources) = source(place, "csv", &fake, &[root]);
            let error = chain(&sources.pin(&source).await.unwrap_err());
            assert!(error.contains("outside the `allowed_roots`"), "{error}");
        }
        assert_eq!(fake.requests(), 0, "nothing was asked for");
    }

    #[tokio::test]
    async fn a_file_that_changes_is_never_read_as_two() {
        for heeds_conditions in [true, false] {
            let fake = testing::fake();
            if !heeds_conditions {
                fake.ignore_get_conditions();
            }
            fake.put(BUCKET, "orders.csv", ORDERS);
            let (_folder, source, sources) = source("s3://lake/orders.csv", "csv", &fake, &["s3://lake"]);
            let pin = sources.pin(&source).await.unwrap();
            // as long as before, so that only the tag tells
            fake.put(BUCKET, "orders.csv", &ORDERS.to_ascii_uppercase());
            let error = rows(&source, &sources, &pin).await.unwrap_err();
            assert!(is_pin_violation(&error), "{error:#}");
            let change = sources.changes(&source, &pin).await.unwrap().unwrap();
            assert!(change.contains("`s3://lake/orders.csv`"), "{change}");
            fake.delete(BUCKET, "orders.csv");
            assert!(sources.changes(&source, &pin).await.unwrap().unwrap().contains("can no longer be read"));
            // a store that is down has changed nothing
            fake.inject(Fault::new(Mode::Refuse(503)));
            sources.changes(&source, &pin).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_delta_table_is_pinned_by_its_version() {
        let fake = testing::fake();
        let stores = testing::stores(&fake.endpoint(), testing::short());
        let url = Url::parse("s3://lake/tables/orders/").unwrap();
        let table = DeltaTableBuilder::from_url(url.clone()).unwrap();
        let table = table.with_storage_backend(stores.get(&url).unwrap(), url).build().unwrap();
        let column = deltalake::kernel::StructField::nullable("shop", deltalake::kernel::DataType::STRING);
        table.create().with_columns([column]).await.unwrap();
        let (_folder, source, sources) = source("s3://lake/tables/orders", "delta", &fake, &["s3://lake/tables"]);
        let pin = sources.pin(&source).await.unwrap();
        assert_eq!(pin, SourcePin::Delta { version: 0 });
        assert_eq!(rows(&source, &sources, &pin).await.unwrap(), 0);
    }
}
