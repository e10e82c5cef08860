//! What a store must keep to hold a lake, and what a client of it never says.

use std::time::Duration;

use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tidegate_registry::definitions::settings::StorageSettings;
use tidegate_servers::{Fault, Mode, S3Endpoint};
use url::Url;

use super::testing::{BUCKET, caught, fake, moto, place, racy, short, stores};
use super::{Environment, Patience, ProbeError, Stores, probe};

fn url(text: &str) -> Url {
    text.parse().unwrap()
}

async fn probed(endpoint: &S3Endpoint) -> Result<(), ProbeError> {
    probed_with(endpoint, short()).await
}

async fn probed_with(endpoint: &S3Endpoint, patience: Patience) -> Result<(), ProbeError> {
    let place = place();
    let store = stores(endpoint, patience).get(&place).unwrap();
    probe(&*store, place.as_str(), &Path::from_url_path(place.path()).unwrap()).await
}

#[tokio::test]
async fn stores_whose_conditional_puts_are_atomic_pass_and_are_left_clean() {
    let fake = fake();
    probed(&fake.endpoint()).await.unwrap();
    assert_eq!(fake.keys(BUCKET, ""), Vec::<String>::new());
    let begun = std::time::Instant::now();
    probed(&fake.endpoint()).await.unwrap();
    eprintln!("probing the fake: {:?}", begun.elapsed());
    let begun = std::time::Instant::now();
    probed(&moto()).await.unwrap();
    eprintln!("probing moto: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_store_that_lets_several_win_is_refused_by_name() {
    let racy = racy();
    let several = |error: &ProbeError| matches!(error, ProbeError::SeveralWinners { winners: 2.., .. });
    let error = caught(async || probed(&racy.endpoint()).await.err().filter(several)).await;
    assert!(error.to_string().contains("`s3://lake/"), "{error}");
}

#[tokio::test]
async fn a_store_that_ignores_the_condition_of_a_put_or_a_get_is_refused() {
    let ignoring = fake();
    ignoring.ignore_put_conditions();
    let error = probed_with(&ignoring.endpoint(), Patience::default()).await.unwrap_err();
    assert!(matches!(error, ProbeError::SeveralWinners { winners: 16, .. }), "{error}");
    let ignoring = fake();
    ignoring.ignore_get_conditions();
    let error = probed(&ignoring.endpoint()).await.unwrap_err();
    assert!(matches!(error, ProbeError::Unsupported { what: "conditional reads", .. }), "{error}");
    let without = fake();
    without.inject(Fault::new(Mode::Refuse(501)).on("PUT", "/probe-"));
    let error = probed(&without.endpoint()).await.unwrap_err();
    assert!(matches!(error, ProbeError::Unsupported { what: "conditional puts", .. }), "{error}");
}

#[tokio::test]
async fn a_lost_answer_is_not_blamed_on_the_store() {
    let fake = fake();
    fake.inject(Fault::new(Mode::ApplyThenRefuse(500)).on("PUT", "/probe-").times(1));
    probed(&fake.endpoint()).await.unwrap();
    // and one that is down is an error, never a pass
    fake.heal();
    fake.inject(Fault::new(Mode::Refuse(503)));
    let error = probed(&fake.endpoint()).await.unwrap_err();
    assert!(matches!(error, ProbeError::Store { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_that_died_without_a_word_ends() {
    let fake = fake();
    fake.put(BUCKET, "a", b"1");
    fake.inject(Fault::new(Mode::Hang(Duration::from_secs(60))).on("GET", "/a").times(1));
    let store = stores(&fake.endpoint(), short()).get(&url("s3://lake/")).unwrap();
    let begun = std::time::Instant::now();
    // reading is repeated, since reading twice is harmless
    assert_eq!(store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap(), "1");
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    // creating is not: nobody knows whether it was done
    fake.inject(Fault::new(Mode::ApplyThenHang(Duration::from_secs(60))).on("PUT", "/b"));
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(&Path::from("b"), "2".into(), create).await.unwrap_err();
    assert_eq!((fake.strikes(), fake.get(BUCKET, "b")), (2, Some(b"2".to_vec())));
}

#[tokio::test]
async fn a_body_that_is_cut_or_slow_or_short_is_continued_or_an_error_and_never_wrong() {
    let fake = fake();
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
    fake.put(BUCKET, "a", &content);
    let store = stores(&fake.endpoint(), short()).get(&url("s3://lake/")).unwrap();
    for mode in [Mode::CutBody(0), Mode::CutBody(70_001), Mode::CutBody(799_999)] {
        fake.inject(Fault::new(mode).on("GET", "/a").times(1));
        assert_eq!(store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap(), content, "{mode:?}");
    }
    assert_eq!(fake.strikes(), 3);
    fake.inject(
        Fault::new(Mode::SlowBody { bytes: 200_000, pause: Duration::from_millis(50) }).on("GET", "/a").times(1),
    );
    assert_eq!(store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap(), content);
    // slower than the deadline of a request: continued in another, as long as there are repetitions
    fake.inject(Fault::new(Mode::SlowBody { bytes: 300_000, pause: Duration::from_secs(1) }).on("GET", "/a").times(1));
    assert_eq!(store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap(), content);
    // a part whose body is short though its head says otherwise
    fake.inject(Fault::new(Mode::Truncate(10)).on("GET", "/a").times(1));
    let error = store.get_range(&Path::from("a"), 5..50).await.unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(error.contains("`s3://lake/a`") && error.contains("ended at byte 15 and not at 50"), "{error}");
}

#[tokio::test]
async fn a_long_body_comes_in_pieces_of_one_object() {
    let fake = fake();
    let content: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_be_bytes).collect();
    fake.put(BUCKET, "a", &content);
    let store = stores(&fake.endpoint(), Patience::default()).get(&url("s3://lake/")).unwrap();
    let a = Path::from("a");
    assert_eq!(store.get(&a).await.unwrap().bytes().await.unwrap(), content);
    assert_eq!(store.get_range(&a, 7..18_000_000).await.unwrap(), content[7..18_000_000]);
    let beyond = GetOptions { range: Some(GetRange::Bounded(9_000_000..90_000_000)), ..GetOptions::default() };
    let found = store.get_opts(&a, beyond).await.unwrap();
    assert_eq!((found.range.clone(), found.meta.size), (9_000_000..20_000_000, 20_000_000));
    assert_eq!(found.bytes().await.unwrap(), content[9_000_000..]);
    let last = GetOptions { range: Some(GetRange::Suffix(19_000_000)), ..GetOptions::default() };
    assert_eq!(store.get_opts(&a, last).await.unwrap().bytes().await.unwrap(), content[1_000_000..]);
    // replaced between two pieces: an error, never a mixture
    let mut body = store.get(&a).await.unwrap().into_stream();
    let first = futures::StreamExt::next(&mut body).await.unwrap().unwrap();
    assert_eq!(first, content[..first.len()]);
    fake.put(BUCKET, "a", &vec![0; content.len()]);
    let rest: Result<Vec<_>, _> = futures::TryStreamExt::try_collect(body).await;
    assert!(matches!(rest, Err(object_store::Error::Precondition { .. })), "{rest:?}");
    fake.put(BUCKET, "empty", b"");
    assert_eq!(store.get(&Path::from("empty")).await.unwrap().bytes().await.unwrap(), "");
}

#[tokio::test]
async fn what_is_refused_for_a_while_succeeds_and_what_is_forbidden_says_so_at_once() {
    let fake = fake();
    fake.put(BUCKET, "a", b"1");
    let store = stores(&fake.endpoint(), short()).get(&url("s3://lake/")).unwrap();
    fake.inject(Fault::new(Mode::Refuse(503)).times(3));
    assert_eq!(store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap(), "1");
    fake.inject(Fault::new(Mode::Refuse(403)).on("GET", "/a"));
    fake.forget();
    let error = store.get(&Path::from("a")).await.unwrap_err();
    assert!(matches!(error, object_store::Error::PermissionDenied { .. }), "{error}");
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn a_listing_in_small_pages_is_the_whole_listing() {
    let fake = fake();
    fake.set_page_size(2);
    for name in ["x/1", "x/2", "x/b/1", "x/b/2", "x/b/3", "x/c", "x/d/1", "y"] {
        fake.put(BUCKET, name, b"");
    }
    let store = stores(&fake.endpoint(), short()).get(&url("s3://lake/")).unwrap();
    let listed = store.list_with_delimiter(Some(&Path::from("x"))).await.unwrap();
    let objects: Vec<&str> = listed.objects.iter().map(|object| object.location.as_ref()).collect();
    let folders: Vec<&str> = listed.common_prefixes.iter().map(Path::as_ref).collect();
    assert_eq!((objects, folders), (vec!["x/1", "x/2", "x/c"], vec!["x/b", "x/d"]));
    let all: Vec<_> = futures::TryStreamExt::try_collect(store.list(None)).await.unwrap();
    assert_eq!(all.len(), 8);
    let after: Vec<_> =
        futures::TryStreamExt::try_collect(store.list_with_offset(None, &Path::from("x/b/2"))).await.unwrap();
    assert_eq!(after.len(), 4);
}

#[tokio::test]
async fn credentials_are_never_shown() {
    let fake = fake();
    let stores = stores(&fake.endpoint(), short());
    let store = stores.get(&url("s3://lake/")).unwrap();
    fake.inject(Fault::new(Mode::Refuse(403)));
    let error = store.get(&Path::from("a")).await.unwrap_err();
    let shown = format!("{stores:?} {store:?} {store} {error:?} {error}");
    assert!(!shown.contains(S3Endpoint::SECRET_KEY), "{shown}");
    for secret in ["s3://key:hidden@lake/x", "s3://hidden@lake/x"] {
        let error = format!("{:#}", stores.get(&url(secret)).unwrap_err());
        assert!(error.contains("holds credentials") && !error.contains("hidden"), "{error}");
    }
}

fn opened(settings: StorageSettings, environment: &[(&str, &str)], at: &str) -> Result<(), String> {
    let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let pairs = keys.iter().chain(environment).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let stores = Stores::with(settings, Environment::from_pairs(pairs), Patience::default());
    stores.get(&url(at)).map(drop).map_err(|error| format!("{error:#}"))
}

#[test]
fn an_endpoint_is_encrypted_or_of_this_machine_or_allowed() {
    let at = |endpoint: &str, allow_http: bool| {
        let settings =
            StorageSettings { endpoint: Some(endpoint.to_owned()), allow_http, ..StorageSettings::default() };
        opened(settings, &[], "s3://lake/x")
    };
    for good in ["https://minio.example.com", "http://127.0.0.1:9000", "http://localhost:9000/", "http://[::1]:9000"] {
        at(good, false).unwrap();
    }
    let error = at("http://minio.example.com", false).unwrap_err();
    assert!(error.contains("`http://minio.example.com/` is not encrypted"), "{error}");
    at("http://minio.example.com", true).unwrap();
    let error = at("https://me:hidden@minio.example.com", false).unwrap_err();
    assert!(error.contains("holds credentials") && !error.contains("hidden"), "{error}");
    let environment = [("AWS_ENDPOINT_URL", "http://minio.example.com")];
    assert!(opened(StorageSettings::default(), &environment, "s3://lake/x").unwrap_err().contains("not encrypted"));
}

#[test]
fn the_bucket_stands_in_the_path_of_other_services_unless_told() {
    let stores = Stores::default();
    let endpoint = |endpoint, style| stores.endpoint(endpoint, "lake", style).unwrap();
    assert_eq!(endpoint("https://minio.example.com", None), ("https://minio.example.com".to_owned(), false));
    assert_eq!(endpoint("https://minio.example.com", Some(false)), ("https://lake.minio.example.com".to_owned(), true));
    // a number has no subdomains
    assert_eq!(endpoint("http://127.0.0.1:9000", Some(false)), ("http://127.0.0.1:9000".to_owned(), false));
}

#[test]
fn other_kinds_of_stores_open_without_a_word_to_them() {
    let none = StorageSettings::default();
    opened(none.clone(), &[], "gs://lake/x").unwrap();
    let account = [("AZURE_STORAGE_ACCOUNT_NAME", "me"), ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")];
    opened(none.clone(), &account, "az://lake/x").unwrap();
    opened(none.clone(), &account, "abfss://lake@me.dfs.core.windows.net/x").unwrap();
    for unknown in ["ftp://lake/x", "http://lake/x"] {
        assert!(opened(none.clone(), &[], unknown).unwrap_err().contains("not a kind of store"), "{unknown}");
    }
    let half = Environment::from_pairs([("AWS_ACCESS_KEY_ID".to_owned(), "id".to_owned())]);
    let stores = Stores::with(none, half, Patience::default());
    let error = format!("{:#}", stores.get(&url("s3://lake/x")).unwrap_err());
    assert!(error.contains("opening the object store at `s3://lake`"), "{error}");
}
