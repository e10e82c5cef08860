//! What every online store must keep, on real servers of every arrangement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tidegate_registry::definitions::settings::RedisLocation;
use tidegate_servers::{Redis, RedisCluster, RedisOptions, RedisSentinel};
use tokio::sync::OnceCell;

use super::*;
use crate::online::conformance::Fixture;

/// A project of its own, so that tests share a server.
pub(super) fn project() -> ProjectName {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("flights{}", NEXT.fetch_add(1, Ordering::Relaxed)).parse().unwrap()
}

pub(super) async fn open(url: &str, project: &ProjectName) -> Arc<RedisOnline> {
    Arc::new(RedisOnline::open(&RedisLocation::parse(url).unwrap(), project, false).await.unwrap())
}

async fn fixture_at(url: &str) -> Fixture {
    let project = project();
    Fixture { store: open(url, &project).await, twin: open(url, &project).await, project, guard: Box::new(()) }
}

mod standalone {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVER: OnceCell<Redis> = OnceCell::const_new();
        let server = SERVER.get_or_init(async || Redis::start().unwrap()).await;
        fixture_at(&server.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::standalone::fixture);
}

mod encrypted {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVER: OnceCell<Redis> = OnceCell::const_new();
        let options = || RedisOptions { password: Some("p@ss".to_owned()), tls: true, settings: Vec::new() };
        let server = SERVER.get_or_init(async || Redis::start_with(options()).unwrap()).await;
        fixture_at(&server.url().replace("p@ss", "p%40ss")).await
    }

    crate::online_conformance!(crate::online::redis::tests::encrypted::fixture);
}

mod behind_a_sentinel {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVERS: OnceCell<RedisSentinel> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || RedisSentinel::start().unwrap()).await;
        fixture_at(&servers.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::behind_a_sentinel::fixture);
}

mod cluster {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVERS: OnceCell<RedisCluster> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || RedisCluster::start().unwrap()).await;
        fixture_at(&servers.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::cluster::fixture);
}

/// The servers of a cluster and those behind a sentinel speak encrypted with us and with each other, and ask for a password.
fn guarded() -> RedisOptions {
    RedisOptions { password: Some("open".to_owned()), tls: true, settings: Vec::new() }
}

mod encrypted_behind_a_sentinel {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVERS: OnceCell<RedisSentinel> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || RedisSentinel::start_with(&guarded()).unwrap()).await;
        fixture_at(&servers.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::encrypted_behind_a_sentinel::fixture);
}

mod encrypted_cluster {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVERS: OnceCell<RedisCluster> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || RedisCluster::start_with(&guarded()).unwrap()).await;
        fixture_at(&servers.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::encrypted_cluster::fixture);
}

/// The five lines of `docs/online-layout.md`, run as they are by the Python of this machine when it has a client for Redis, and
/// step by step with `redis-cli` in any case, against what this program gives its own readers.
mod other_readers {
    use std::process::Command;

    use indexmap::IndexMap;
    use serde_json::{Value as Json, json};
    use tidegate_registry::model::{Feature, FeatureView, Output};
    use tidegate_registry::switches::{Off, Serve, ViewSwitches};
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::online::{CutOver, EncodedRow, Given, bucket, defaults, serve};

    const PAGE: &str = include_str!("../../../../docs/online-layout.md");
    const KEYS: [&str; 4] = ["AA", "UA", r"EWR:B\:6", "nobody"];

    fn view() -> FeatureView {
        let mut view = crate::online::encode::tests::view(Output::Full);
        view.id = "delays@v2".parse().unwrap();
        let like = view.features[0].clone();
        let defaults = [
            ("kept", json!(1.5)),
            ("zeroed", json!(0)),
            ("gone", Json::Null),
            ("some", json!(-1.0)),
            ("absent", json!(9)),
        ];
        let feature = |(name, default): (&str, Json)| Feature {
            name: name.to_owned(),
            default: Some(default).filter(|default| !default.is_null()),
            ..like.clone()
        };
        view.features = defaults.map(feature).into();
        view
    }

    fn lines() -> &'static str {
        let section = PAGE.split("### Defaults and switches").nth(1).unwrap();
        section.split("```python\n").nth(1).unwrap().split("```").next().unwrap()
    }

    /// As the library gives it, with nulls.
    async fn ours(store: &RedisOnline, view: &FeatureView, key: &str) -> IndexMap<String, Json> {
        let of_defaults: IndexMap<String, Json> = serde_json::from_str(&defaults(view)).unwrap();
        let served = serve(store, view, key, chrono::DateTime::UNIX_EPOCH).await.unwrap();
        let given = served.features.into_iter().map(|(name, given)| {
            let value = match given {
                Given::Stored(text) => Json::from(text),
                Given::Default => of_defaults.get(&name).cloned().unwrap_or(Json::Null),
                Given::Null => Json::Null,
            };
            (name, value)
        });
        given.collect()
    }

    /// The five steps with nothing but two commands of Redis.
    fn by_hand(server: &Redis, project: &ProjectName, key: &str) -> IndexMap<String, Json> {
        let live = |field: &str| server.cli(&["hget", &format!("tg:{project}:live"), field]).unwrap();
        let object = |text: String| -> IndexMap<String, Json> {
            serde_json::from_str(if text.is_empty() { "{}" } else { &text }).unwrap()
        };
        let (generation, defaults) = (live("delays@v2"), object(live("delays@v2:defaults")));
        let switches = object(live("delays@v2:switches"));
        let row = server.cli(&["hgetall", &format!("tg:{project}:delays@v2:g{generation}:{key}")]).unwrap();
        let row: Vec<&str> = row.lines().collect();
        let mut features = defaults.clone();
        for pair in row.chunks(2).filter(|pair| pair.len() == 2 && !pair[0].starts_with('_')) {
            features.insert(pair[0].to_owned(), Json::from(pair[1]));
        }
        for (name, off) in switches {
            if u64::from(bucket(key)) < off["below"].as_u64().unwrap() {
                let default = defaults.get(&name).cloned().unwrap_or(Json::Null);
                features.insert(name, if off["serve"] == "default" { default } else { Json::Null });
            }
        }
        features
    }

    /// Nulls and what is absent are the same to a reader.
    fn without_nulls(features: IndexMap<String, Json>) -> std::collections::BTreeMap<String, Json> {
        features.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }

    fn python_has(module: &str) -> bool {
        let asked = Command::new("python3").args(["-c", &format!("import {module}")]).output();
        asked.is_ok_and(|output| output.status.success())
    }

    fn by_python(url: &str, project: &ProjectName, key: &str) -> IndexMap<String, Json> {
        // The hash is the only thing that may be missing; that ours is the same is another test.
        let hash = if python_has("xxhash") {
            "from xxhash import xxh3_64_intdigest".to_owned()
        } else {
            format!("xxh3_64_intdigest = lambda text: {}", xxh3_64(key.as_bytes()))
        };
        let script = format!(
            "import json, redis\n{hash}\nr = redis.Redis.from_url({url:?}, decode_responses=True)\n\
             view, key, live = 'delays@v2', {key:?}, 'tg:{project}:live'\n{}print(json.dumps(features))\n",
            lines()
        );
        let output = Command::new("python3").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_five_lines_of_the_page_give_what_we_give() {
        let server = Redis::start().unwrap();
        let (project, view) = (project(), view());
        let store = open(&server.url(), &project).await;
        let row = |key: &&str| EncodedRow {
            entity_key: (*key).to_owned(),
            event_timestamp: chrono::DateTime::UNIX_EPOCH,
            expires_at: None,
            features: ["kept", "zeroed", "gone", "some"]
                .map(|name| (name.to_owned(), format!("{name} of {key}")))
                .into(),
        };
        let rows: Vec<_> = KEYS[..3].iter().map(row).collect();
        store.begin_generation(&view.id, 1).await.unwrap();
        store.write(&view.id, 1, &rows).await.unwrap();
        store.finish_generation(&view.id, 1, 3).await.unwrap();
        let (tag, defaults) = ("s".to_owned(), defaults(&view));
        store
            .cut_over(&[CutOver { view: view.id.clone(), generation: 1, publish_number: 1, tag, defaults }])
            .await
            .unwrap();
        let off = |serve, below| Off { serve, below };
        let switched = ViewSwitches {
            revision: 1,
            off: [
                ("zeroed", off(Serve::Default, 10_000)),
                ("gone", off(Serve::Null, 10_000)),
                // Between the buckets of `UA` and `AA`.
                ("some", off(Serve::Default, 2_000)),
            ]
            .map(|(name, off)| (name.to_owned(), off))
            .into(),
        };
        let python = python_has("redis");
        for switches in [None, Some(switched)] {
            if let Some(switches) = &switches {
                store.set_switches(&view.id, switches).await.unwrap();
            }
            for key in KEYS {
                let given = without_nulls(ours(&store, &view, key).await);
                assert_eq!(without_nulls(by_hand(&server, &project, key)), given, "{key}");
                if python {
                    assert_eq!(without_nulls(by_python(&server.url(), &project, key)), given, "{key}");
                }
            }
            let some = |key| ours(&store, &view, key);
            let expected = if switches.is_some() { json!("-1.0") } else { json!("some of UA") };
            assert_eq!(some("UA").await["some"], expected);
            assert_eq!(some("AA").await["some"], json!("some of AA"), "its bucket is above the share");
        }
    }
}
