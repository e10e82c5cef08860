//! What Redis does to us, done to it on purpose: after each fault what was live is live, the error says what to do, and
//! trying again succeeds.

use std::sync::Arc;

use chrono::DateTime;
use tidegate_servers::{Port, Redis, RedisCluster, RedisOptions, RedisSentinel};
use tokio::task::JoinSet;

use super::tests::{open, project};
use super::*;

fn view() -> ViewId {
    "a@v1".parse().unwrap()
}

fn rows(count: usize, value: &str) -> Vec<EncodedRow> {
    let row = |i| EncodedRow {
        entity_key: format!("k{i}"),
        event_timestamp: DateTime::UNIX_EPOCH,
        expires_at: None,
        features: vec![("value".to_owned(), value.to_owned())],
    };
    (0..count).map(row).collect()
}

async fn fill(store: &RedisOnline, generation: u64, rows: &[EncodedRow]) -> Result<()> {
    assert_eq!(store.begin_generation(&view(), generation).await?, Begun::Empty);
    store.write(&view(), generation, rows).await?;
    store.finish_generation(&view(), generation, rows.len() as u64).await
}

async fn cut_over(store: &RedisOnline, generation: u64) -> Result<()> {
    let step = CutOver {
        view: view(),
        generation,
        publish_number: generation,
        tag: "s".to_owned(),
        defaults: "{}".to_owned(),
    };
    store.cut_over(&[step]).await
}

async fn value(store: &RedisOnline) -> Option<String> {
    let row = store.get(&view(), "k1", DateTime::UNIX_EPOCH).await.unwrap()?;
    Some(row.features[0].1.clone())
}

/// The whole chain of an error that passes.
fn passes(error: OnlineError) -> String {
    assert!(matches!(error, OnlineError::Unavailable(_)), "{error:?}");
    format!("{:#}", anyhow::Error::from(error))
}

async fn fresh(server: &Redis) -> Arc<RedisOnline> {
    open(&server.url(), &project()).await
}

/// Settings of a Redis that outlives a kill with all that it answered for, but no power cut: no disk is waited for.
fn append_only() -> Vec<String> {
    ["--appendonly", "yes", "--appendfsync", "no"].map(str::to_owned).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_go_live_with_the_rows() {
    let server = Redis::start().unwrap();
    let project = project();
    let store = open(&server.url(), &project).await;
    fill(&store, 1, &rows(1, "1")).await.unwrap();
    let defaults = r#"{"x":"0.0"}"#.to_owned();
    let step = CutOver { view: view(), generation: 1, publish_number: 1, tag: "s".to_owned(), defaults };
    store.cut_over(&[step]).await.unwrap();
    let (live, field) = (format!("tg:{project}:live"), format!("{}:defaults", view()));
    assert_eq!(server.cli(&["hget", &live, &field]).unwrap().trim(), r#"{"x":"0.0"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_keeps_what_is_live() {
    let server = Redis::start().unwrap();
    let store = fresh(&server).await;
    fill(&store, 1, &rows(100, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    let used: u64 = server
        .cli(&["info", "memory"])
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok())
        .unwrap();
    server.cli(&["config", "set", "maxmemory", &(used + 2_000_000).to_string()]).unwrap();
    let error = passes(fill(&store, 2, &rows(50_000, "2")).await.unwrap_err());
    assert!(error.contains("Redis is full (`OOM`): raise its `maxmemory`"), "{error}");
    assert_eq!(value(&store).await.as_deref(), Some("1"));
    assert_eq!(store.live(&view()).await.unwrap().unwrap().generation, 1);
    // What was written of the new generation goes although Redis takes no more: it holds what others could use.
    store.discard(&view(), 2).await.unwrap();
    assert_eq!(store.count(&view(), 2).await.unwrap(), 0);
    server.cli(&["config", "set", "maxmemory", "0"]).unwrap();
    fill(&store, 2, &rows(50_000, "2")).await.unwrap();
    cut_over(&store, 2).await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_overtaken_in_the_middle_changes_no_row_of_the_next() {
    let server = Redis::start().unwrap();
    let earlier = fresh(&server).await;
    let later = open(&server.url(), earlier.keys.project()).await;
    let count = 4_000;
    fill(&earlier, 1, &rows(count, "1")).await.unwrap();
    cut_over(&earlier, 1).await.unwrap();
    let mut overtaken = 0;
    for number in (2..2_000).step_by(2) {
        if number >= 42 && overtaken > 0 {
            break;
        }
        let changes = move |number: u64| Changes { changed: rows(count, &number.to_string()), ..Changes::default() };
        let live = earlier.live(&view()).await.unwrap().unwrap();
        assert_eq!(earlier.begin_upsert(&view(), live.generation, number).await.unwrap(), InPlace::Ready);
        let mut writing = JoinSet::new();
        let store = Arc::clone(&earlier);
        writing.spawn(async move { store.upsert(&view(), live.generation, number, &changes(number)).await });
        tokio::time::sleep(Duration::from_micros(500 * (number % 40))).await;
        // The later one writes all it has in one step, so that it falls between a look and a write of the earlier one.
        let script = "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
            for i = 0, ARGV[4] - 1 do redis.call('HSET', ARGV[3] .. 'k' .. i, 'value', ARGV[2]) end";
        let prefix = earlier.keys.row_prefix(&view(), live.generation);
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(script)
            .arg(1)
            .arg(earlier.keys.live())
            .arg(writer_field(&view()))
            .arg(number + 1)
            .arg(prefix)
            .arg(count);
        later.connections.query("changing", &cmd).await.unwrap();
        match writing.join_next().await.unwrap().unwrap() {
            Ok(()) => {}
            Err(OnlineError::Superseded { .. }) => overtaken += 1,
            Err(error) => panic!("{error:?}"),
        }
        let keys: Vec<String> = (0..count).map(|i| format!("k{i}")).collect();
        for row in later.rows(&view(), live.generation, &keys).await.unwrap() {
            assert_eq!(row.unwrap().features[0].1, (number + 1).to_string());
        }
        later.finish_upsert(&view(), live.generation, number + 1, count as u64).await.unwrap();
        let step = CutOver {
            view: view(),
            generation: live.generation,
            publish_number: number + 1,
            tag: "s".to_owned(),
            defaults: "{}".to_owned(),
        };
        later.cut_over(&[step]).await.unwrap();
    }
    assert!(overtaken > 0, "the two never met");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_evicts_is_refused_by_name() {
    let settings = ["--maxmemory-policy", "allkeys-lru"].map(str::to_owned).to_vec();
    let server = Redis::start_with(RedisOptions { settings, ..RedisOptions::default() }).unwrap();
    let location = RedisLocation::parse(&server.url()).unwrap();
    let error = RedisOnline::open(&location, &project(), false).await.unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(error.contains("`maxmemory-policy` is `allkeys-lru`"), "{error}");
    let location = RedisLocation { allow_eviction: true, ..location };
    RedisOnline::open(&location, &project(), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_evicted_rows_is_found_out_before_the_cut_over() {
    let settings = ["--maxmemory-policy", "allkeys-random"].map(str::to_owned).to_vec();
    let server = Redis::start_with(RedisOptions { settings, ..RedisOptions::default() }).unwrap();
    let store = open(&format!("{}?allow_eviction=true", server.url()), &project()).await;
    store.begin_generation(&view(), 1).await.unwrap();
    store.write(&view(), 1, &rows(10_000, "1")).await.unwrap();
    let key = store.keys.row_prefix(&view(), 1) + "k77";
    server.cli(&["del", &key]).unwrap();
    let error = store.finish_generation(&view(), 1, 10_000).await.unwrap_err();
    assert!(error.to_string().contains("holds 9999 rows where 10000 were expected"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_replica_is_said_to_be_one() {
    let (server, primary) = (Redis::start().unwrap(), Redis::start().unwrap());
    let store = fresh(&server).await;
    fill(&store, 1, &rows(10, "1")).await.unwrap();
    server.cli(&["replicaof", "127.0.0.1", &primary.port().to_string()]).unwrap();
    let error = passes(fill(&store, 2, &rows(10, "2")).await.unwrap_err());
    assert!(error.contains("READONLY"), "{error}");
}

/// Publishes once; lets `breaks` take Redis away, which must then be told as `says`; and when `heals` has brought it back, what
/// was live is live as if nothing had happened, and the next generation goes online.
async fn is_ridden_out<S>(
    (mut server, store): (S, Arc<RedisOnline>),
    breaks: impl FnOnce(&mut S),
    says: &str,
    heals: impl FnOnce(&mut S),
) {
    fill(&store, 1, &rows(300, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    fill(&store, 2, &rows(300, "2")).await.unwrap();
    let live = store.live(&view()).await.unwrap();
    breaks(&mut server);
    // Row by row over all nodes, and the cut-over in the one place that says what is live.
    for error in [fill(&store, 3, &rows(300, "3")).await.unwrap_err(), cut_over(&store, 2).await.unwrap_err()] {
        let error = passes(error);
        assert!(error.contains(says), "{error}");
    }
    heals(&mut server);
    assert_eq!(store.live(&view()).await.unwrap(), live);
    assert_eq!(value(&store).await.as_deref(), Some("1"));
    cut_over(&store, 2).await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_reads_its_data_back_is_waited_for() {
    // So many keys that it takes a minute, unless it is told to hurry.
    let settings = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let settings = settings.map(str::to_owned).to_vec();
    let server = Redis::start_with(RedisOptions { settings, ..RedisOptions::default() }).unwrap();
    let store = fresh(&server).await;
    server.cli(&["debug", "populate", "60000", "other", "100"]).unwrap();
    let is_loading = |server: &Redis| server.cli(&["info", "persistence"]).unwrap().contains("\nloading:1");
    is_ridden_out(
        (server, store),
        |server| {
            server.cli(&["save"]).unwrap();
            server.start_again().unwrap();
            assert!(is_loading(server));
        },
        "reading its data from disk (`LOADING`)",
        |server| {
            server.cli(&["config", "set", "key-load-delay", "0"]).unwrap();
            while is_loading(server) {
                std::thread::sleep(Duration::from_millis(50));
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_its_primary_is_waited_for() {
    let settings = ["--replica-serve-stale-data", "no", "--replica-read-only", "no"].map(str::to_owned).to_vec();
    let server = Redis::start_with(RedisOptions { settings, ..RedisOptions::default() }).unwrap();
    let store = fresh(&server).await;
    let nobody = Port::reserve().unwrap();
    is_ridden_out(
        (server, store),
        |server| drop(server.cli(&["replicaof", "127.0.0.1", &nobody.number().to_string()]).unwrap()),
        "has lost its primary (`MASTERDOWN`)",
        |server| drop(server.cli(&["replicaof", "no", "one"]).unwrap()),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_a_node_serves_nothing_until_it_is_back() {
    let options = RedisOptions { settings: append_only(), ..RedisOptions::default() };
    let cluster = RedisCluster::start_with(&options).unwrap();
    let store = open(&cluster.url(), &project()).await;
    // Not the one that says what is live: that would only be out of reach.
    let live = keys::slot(store.keys.live().as_bytes());
    let lost = if live > 5_460 { 0 } else { 1 };
    let wait_until = |node: &Redis, state: &str| {
        while !node.cli(&["cluster", "info"]).unwrap().contains(&format!("cluster_state:{state}")) {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    // Soon only while it is gone: a machine that stands still for a second takes no node away.
    let others_miss_it_after = |cluster: &mut RedisCluster, milliseconds: &str| {
        for (_, node) in cluster.nodes().iter().enumerate().filter(|(number, _)| *number != lost) {
            node.cli(&["config", "set", "cluster-node-timeout", milliseconds]).unwrap();
        }
    };
    is_ridden_out(
        (cluster, store),
        |cluster| {
            cluster.nodes()[lost].kill();
            others_miss_it_after(cluster, "500");
            let others = cluster.nodes().iter().enumerate().filter(|(number, _)| *number != lost);
            others.for_each(|(_, node)| wait_until(node, "fail"));
        },
        "does not serve all slots (`CLUSTERDOWN`)",
        |cluster| {
            cluster.nodes()[lost].restart().unwrap();
            cluster.nodes().iter().for_each(|node| wait_until(node, "ok"));
            others_miss_it_after(cluster, "15000");
            cluster.nodes().iter().for_each(|node| wait_until(node, "ok"));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_writes_pass_and_say_what_to_do() {
    let server = Redis::start().unwrap();
    let store = fresh(&server).await;
    fill(&store, 1, &rows(10, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    server.cli(&["config", "set", "min-replicas-to-write", "1"]).unwrap();
    let error = passes(fill(&store, 2, &rows(10, "2")).await.unwrap_err());
    assert!(error.contains("too few replicas are in step (`NOREPLICAS`)"), "{error}");
    assert_eq!(value(&store).await.as_deref(), Some("1"));
    server.cli(&["config", "set", "min-replicas-to-write", "0"]).unwrap();
    fill(&store, 2, &rows(10, "2")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_a_key_of_another_kind_do_not_pass() {
    let options = RedisOptions { password: Some("open".to_owned()), ..RedisOptions::default() };
    let server = Redis::start_with(options).unwrap();
    let wrong = RedisLocation::parse(&server.url().replace(":open@", ":sesame@")).unwrap();
    let error = RedisOnline::open(&wrong, &project(), false).await.unwrap_err();
    assert!(matches!(error, OnlineError::Internal { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains("sesame"), "{error:?}");
    let store = fresh(&server).await;
    server.cli(&["set", &store.keys.live(), "not a hash"]).unwrap();
    let error = store.live(&view()).await.unwrap_err();
    assert!(matches!(error, OnlineError::Internal { .. }), "{error:?}");
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("WRONGTYPE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_lost_rows_is_found_out() {
    let mut server = Redis::start().unwrap();
    let store = fresh(&server).await;
    fill(&store, 1, &rows(10, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    assert_eq!(store.check(&view(), Expected { generation: 1, publish_number: 1 }).await.unwrap(), Standing::Whole);
    store.begin_generation(&view(), 2).await.unwrap();
    store.write(&view(), 2, &rows(5_000, "2")).await.unwrap();
    server.restart().unwrap();
    let error = store.write(&view(), 2, &rows(10_000, "2")).await.unwrap_err();
    assert!(error.to_string().contains("was not begun"), "{error}");
    let standing = store.check(&view(), Expected { generation: 1, publish_number: 1 }).await.unwrap();
    assert!(matches!(standing, Standing::NotLive(_)), "{standing:?}");
    assert_eq!(store.rows_kept(&view(), 1).await.unwrap(), 0, "nobody takes it for kept");
    fill(&store, 2, &rows(10_000, "2")).await.unwrap();
    cut_over(&store, 2).await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_restart_lost_between_finish_and_cut_over_hold_it_back() {
    let options = RedisOptions { settings: append_only(), ..RedisOptions::default() };
    let mut server = Redis::start_with(options).unwrap();
    let store = fresh(&server).await;
    fill(&store, 1, &rows(1_000, "1")).await.unwrap();
    server.restart().unwrap();
    let lost = store.keys.row_prefix(&view(), 1) + "k77";
    server.cli(&["del", &lost]).unwrap();
    let error = cut_over(&store, 1).await.unwrap_err();
    assert!(error.to_string().contains("holds 999 of 1000"), "{error}");
    assert_eq!(store.live(&view()).await.unwrap(), None);
    fill(&store, 1, &rows(1_000, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_vanish_after_the_cut_over_are_noticed() {
    let server = Redis::start().unwrap();
    let store = fresh(&server).await;
    fill(&store, 1, &rows(50, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    let lost = store.keys.row_prefix(&view(), 1) + "k7";
    server.cli(&["del", &lost]).unwrap();
    let standing = store.check(&view(), Expected { generation: 1, publish_number: 1 }).await.unwrap();
    assert_eq!(standing, Standing::Incomplete("49 of 50 entities are there".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_killed_in_mid_pipeline_are_replaced() {
    let server = Arc::new(Redis::start().unwrap());
    let store = fresh(&server).await;
    let killing = Arc::clone(&server);
    let mut killer = JoinSet::new();
    // Each time in the middle of other rows, because what is cut off three times is given up.
    killer.spawn_blocking(move || {
        let begun = std::time::Instant::now();
        for rows in [10_000, 25_000, 40_000] {
            let written = || killing.cli(&["dbsize"]).unwrap().parse::<u32>().unwrap();
            while written() < rows && begun.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(5));
            }
            killing.cli(&["client", "kill", "type", "normal"]).unwrap();
        }
    });
    fill(&store, 1, &rows(60_000, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    assert_eq!(store.count(&view(), 1).await.unwrap(), 60_000);
    killer.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_redis_is_given_up_and_what_it_did_meanwhile_does_no_harm() {
    let server = Redis::start().unwrap();
    let store = fresh(&server).await;
    let location = RedisLocation::parse(&server.url()).unwrap();
    let mut hasty = RedisOnline::new(&location, store.keys.project(), false).unwrap();
    hasty.connections.set_answer_max(Duration::from_millis(300));
    for _ in 0..100 {
        if hasty.begin_generation(&view(), 1).await.is_ok() {
            break;
        }
    }
    let frozen = server.freeze().unwrap();
    let error = passes(hasty.write(&view(), 1, &rows(10, "1")).await.unwrap_err());
    assert!(error.contains("Redis did not answer in time"), "{error}");
    drop(frozen);
    fill(&store, 1, &rows(20, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_down_is_waited_for() {
    let mut server = Redis::start().unwrap();
    let url = server.url();
    server.kill();
    let store = open(&url, &project()).await;
    let error = passes(store.live(&view()).await.unwrap_err());
    assert!(error.contains("nothing answers at the address of Redis"), "{error}");
    server.restart().unwrap();
    assert_eq!(store.live(&view()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_in_the_middle_is_followed() {
    let mut set = RedisSentinel::start().unwrap();
    let store = open(&set.url(), &project()).await;
    fill(&store, 1, &rows(1_000, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    fill(&store, 2, &rows(1_000, "2")).await.unwrap();
    // (`WAIT` on a connection that wrote nothing waits for nothing.)
    let offset = |redis: &Redis| {
        let told = redis.cli(&["info", "replication"]).unwrap();
        told.lines().find_map(|line| line.strip_prefix("master_repl_offset:").map(|at| at.trim().to_owned())).unwrap()
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while offset(&set.primary) != offset(&set.replica) {
        assert!(tokio::time::Instant::now() < deadline, "the replica is never in step");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    // The replica misses one row of the finished generation, as if the last writes had not reached it.
    let lost = store.keys.row_prefix(&view(), 2) + "k77";
    set.primary.kill();
    set.wait_for_failover().unwrap();
    set.replica.cli(&["del", &lost]).unwrap();
    let error = cut_over(&store, 2).await.unwrap_err();
    assert!(error.to_string().contains("when Redis changed its server: it holds 999 of 1000"), "{error}");
    assert_eq!(value(&store).await.as_deref(), Some("1"));
    fill(&store, 2, &rows(1_000, "2")).await.unwrap();
    cut_over(&store, 2).await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_between_nodes_are_followed() {
    let mut cluster = RedisCluster::start().unwrap();
    let url = cluster.url();
    let store = open(&url, &project()).await;
    fill(&store, 1, &rows(2_000, "1")).await.unwrap();
    cut_over(&store, 1).await.unwrap();
    let nodes = cluster.nodes();
    let ids: Vec<String> = nodes.iter().map(|node| node.cli(&["cluster", "myid"]).unwrap()).collect();
    // The slot of one row of the next generation, in which nothing is yet, from whichever node has it to the next.
    let count = |node: usize, slot: &str| nodes[node].cli(&["cluster", "countkeysinslot", slot]).unwrap();
    let slots = (0..2_000).map(|row| keys::slot(format!("{}k{row}", store.keys.row_prefix(&view(), 2)).as_bytes()));
    let mut places = slots.map(|slot| ([5_460, 10_922].iter().filter(|last| slot > **last).count(), slot.to_string()));
    let (from, number) = places.find(|(node, slot)| count(*node, slot) == "0").unwrap();
    let to = (from + 1) % 3;
    nodes[to].cli(&["cluster", "setslot", &number, "importing", &ids[from]]).unwrap();
    nodes[from].cli(&["cluster", "setslot", &number, "migrating", &ids[to]]).unwrap();
    // Half way the old node sends what it does not have to the new one (ASK).
    fill(&store, 2, &rows(2_000, "2")).await.unwrap();
    assert_eq!(count(from, &number), "0");
    for node in [to, from, 3 - from - to] {
        nodes[node].cli(&["cluster", "setslot", &number, "node", &ids[to]]).unwrap();
    }
    // Now it is the new one's (MOVED).
    cut_over(&store, 2).await.unwrap();
    assert_eq!(store.count(&view(), 2).await.unwrap(), 2_000);
    fill(&store, 3, &rows(2_000, "3")).await.unwrap();
    cut_over(&store, 3).await.unwrap();
    assert_eq!(value(&store).await.as_deref(), Some("3"));
    assert_eq!(store.prune(&view(), 0, Duration::ZERO, 3).await.unwrap(), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_overtaken_neither_writes_nor_finishes() {
    let server = Redis::start().unwrap();
    let project = project();
    let (frozen, other) = (open(&server.url(), &project).await, open(&server.url(), &project).await);
    frozen.begin_generation(&view(), 1).await.unwrap();
    frozen.write(&view(), 1, &rows(10, "1")).await.unwrap();
    other.begin_generation(&view(), 1).await.unwrap();
    let error = frozen.write(&view(), 1, &rows(10, "1")).await.unwrap_err();
    assert!(error.to_string().contains("was begun again by another worker"), "{error}");
    other.write(&view(), 1, &rows(10, "1")).await.unwrap();
    let error = frozen.finish_generation(&view(), 1, 10).await.unwrap_err();
    assert!(error.to_string().contains("was begun again by another worker"), "{error}");
    other.finish_generation(&view(), 1, 10).await.unwrap();
    cut_over(&other, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_frozen_writer_leaves_in_a_removed_generation_goes_too() {
    let server = Redis::start().unwrap();
    let store = fresh(&server).await;
    fill(&store, 1, &rows(10, "1")).await.unwrap();
    fill(&store, 2, &rows(10, "2")).await.unwrap();
    cut_over(&store, 2).await.unwrap();
    assert_eq!(store.prune(&view(), 0, Duration::ZERO, 2).await.unwrap(), [1]);
    // As a frozen attempt would that had asked before and woke up after.
    let rows = rows(10, "1");
    let view = view();
    let target = store.target(&view, 1, &rows).await.unwrap();
    rows::list(target, &rows).await.unwrap();
    rows::write(target, &rows).await.unwrap();
    assert_eq!(store.count(&view, 1).await.unwrap(), 10);
    assert_eq!(store.prune(&view, 0, Duration::ZERO, 2).await.unwrap(), [0; 0]);
    assert_eq!(store.count(&view, 1).await.unwrap(), 0);
    let error = store.begin_generation(&view, 1).await.unwrap_err();
    assert!(matches!(error, OnlineError::Superseded { live: 2, asked: 1, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_expire_by_the_clock_of_redis_too() {
    let server = Redis::start().unwrap();
    let store = fresh(&server).await;
    let key = store.keys.row_prefix(&view(), 1) + "k0";
    let mut rows = rows(3, "1");
    for milliseconds in [400, 2_000, 10_000] {
        let soon = rows::clock_ms(&store.connections).await.unwrap() + milliseconds;
        rows[0].expires_at = DateTime::from_timestamp_millis(soon);
        store.begin_generation(&view(), 1).await.unwrap();
        store.write(&view(), 1, &rows).await.unwrap();
        // One that comes too late is past when it is written, and stays.
        if server.cli(&["pttl", &key]).unwrap() != "-1" {
            break;
        }
    }
    while server.cli(&["exists", &key]).unwrap() != "0" {
        assert_ne!(server.cli(&["pttl", &key]).unwrap(), "-1", "it would stay for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A row that went by itself is no row that was lost.
    store.finish_generation(&view(), 1, 3).await.unwrap();
}
