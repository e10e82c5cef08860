//! The product as its users meet it: scripts of commands against the real binary, with the transcript compared.
//!
//! `cargo insta review` shows what changed. Everything that a user can read is here, so a change of wording is a change of
//! a golden file, and a change of a JSON key is one that somebody's program will notice.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod comparing;
mod data_faults;
mod datasets;
mod incident;
mod recovery;
mod told;
mod world;

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tidegate_registry::definitions::settings::OnlineLocation;
use world::{World, eventually, files};

/// A small backfill.
const THREE_NIGHTS: &str = "backfill flights_daily --from 2013-01-08 --to 2013-01-11";
const BLOCKED: &str = "2013-01-29T07:15:00Z/2013-01-30T07:15:00Z";
const FLIGHTS: &str = "data/flights/2013-01-29.parquet";

#[test]
fn help_is_a_page_of_what_one_can_do() {
    let mut world = World::empty();
    world.run("--help");
    world.run("run --help");
    world.run("backfil");
    world.run("runs list --state finished");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_new_project_works_as_it_is() {
    let mut world = World::empty();
    world.run("init shop");
    world.run("init shop");
    world.folder.push("shop");
    world.edit("orders.yaml", |text| {
        text.replace("views: [customer_orders]", "views: [customer_orders]\n    max_active_runs: 1")
    });
    world.run("validate");
    world.run("preview customer_orders --interval 2026-01-08/2026-01-09");
    world.run("apply --yes");
    world.run("backfill orders_daily --from 2026-01-02 --to 2026-01-09");
    world.run("online get customer_orders customer_id=2");
    world.run("status");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn commands_say_what_they_miss() {
    let mut world = World::empty();
    world.run("status");
    world.run("plan --project elsewhere");
    world.quietly("init --example example");
    world.folder.push("example");
    world.run("runs list");
    world.run("apply");
    world.run("--profile staging status");
    assert!(!world.folder.join(".tidegate").exists(), "looking makes nothing");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn mistakes_are_shown_where_they_are_all_at_once() {
    let mut world = World::example();
    world.edit("flights_daily.yaml", |text| {
        text.replacen("owner: delays", "owner: delay", 1)
            .replacen("avg(dep_delay) AS avg_dep_delay_7d", "avg(dep_dely) AS avg_dep_delay_7d", 1)
            .replacen("timezone: America/New_York", "timezone: America/NewYork", 1)
    });
    world.run("validate");
    world.edit("flights_daily.yaml", |text| {
        text.replacen("owner: delay\n", "owner: delays\n", 1).replacen("America/NewYork", "America/New_York", 1)
    });
    world.run("validate");
    world.run("validate --format json");
    world.run("plan");
    world.run("apply --yes");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_plan_says_what_an_apply_then_does() {
    let mut world = World::example();
    world.run("validate");
    world.run("plan");
    assert!(!world.folder.join(".tidegate").exists(), "a plan writes nothing");
    world.run("apply --yes --message first");
    world.run("plan");
    world.run("apply --yes");
    world.edit("flights_daily.yaml", |text| {
        text.replacen("description: Departure delays of each carrier over the last week", "description: Delays", 1)
            .replacen("LEFT JOIN airlines ON", "LEFT JOIN airlines  -- names\n      ON", 1)
            .replacen(
                "flights.time_hour >= $interval_end - INTERVAL '1 day'",
                "flights.time_hour >= $interval_start",
                1,
            )
    });
    world.run("plan");
    world.run("plan --format json");
    world.run("apply --yes --message second");
    world.run("views show airport_day");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_published_version_keeps_its_logic() {
    let mut world = World::applied();
    world.quietly("run flights_daily --interval 2013-01-08T07:15:00Z/2013-01-09T07:15:00Z");
    world.edit("flights_daily.yaml", |text| {
        text.replacen(
            "flights.time_hour >= $interval_end - INTERVAL '1 day'",
            "flights.time_hour >= $interval_start",
            1,
        )
    });
    world.run("plan");
    world.run("apply --yes");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn lists_show_what_is_applied() {
    let mut world = World::applied();
    for list in ["views", "features", "sources", "entities", "dags", "owners"] {
        world.run(&format!("{list} list"));
    }
    world.run("views list --search WEATHER");
    world.run("views list --owner operations --tag hour --format json");
    world.run("features list --tag volume --owner operations");
    world.run("features show carrier_delays.flights_7d");
    world.run("features show flights_30d");
    world.run("sources show flights --format json");
    world.run("entities show route --format json");
    world.run("owners show operations");
    world.run("dags show flights_daily");
    world.run("dags show flights_hourly --format json");
    world.run("views show airport_pressure@v1 --format json");
    world.run("views show carrier_delay");
    world.run("views show carrier_delays@v2");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_schedule_can_be_stopped_and_started() {
    let mut world = World::applied();
    world.run("dags pause flights_daily");
    world.run("dags list");
    world.run("dags unpause flights_daily");
    world.run("dags unpause flights");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn definitions_are_tested_with_a_few_rows() {
    let mut world = World::example();
    world.run("test");
    assert!(!world.folder.join(".tidegate").exists(), "a test writes nothing");
    world.edit("flights_daily.yaml", |text| text.replacen("avg(dep_delay) AS", "avg(coalesce(dep_delay, 0)) AS", 1));
    world.run("test carrier_delays");
    world.run("test cancelled_flights_count_and_do_not_delay --format json");
    world.run("test carier_delays");
    world.edit("tests.yaml", |text| text.replacen("dep_delay: 5400", "dep_delay: 90", 1));
    world.run("test seconds_instead_of_minutes_are_stopped");
    world.run("test seconds_instead_of_minutes_are_stopped --format json");
    world.edit("tests.yaml", |text| text.replacen("range(worst", "rnge(worst", 1));
    world.run("test");
    world.edit("tests.yaml", |text| text.replacen("rnge(worst", "range(worst", 1));
    world.edit("tests.yaml", |text| {
        text.replacen("dep_delay: 31", "dep_dely: 31", 1).replacen("flights_30d: 3,", "flights_30d: three,", 1)
    });
    world.run("test");
    world.edit("tests.yaml", |text| text.replacen("dep_dely: 31", "dep_delay: 31", 1).replacen("three,", "3,", 1));
    std::fs::remove_dir_all(world.folder.join("data")).unwrap();
    world.run("test a_cancelled_flight_is_not_on_time");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_preview_computes_parents_on_the_way_and_writes_nothing() {
    let mut world = World::example();
    let before = files(&world.folder);
    world.run("preview carrier_trend --limit 3");
    world.run("preview route_reliability --limit 1 --interval 2013-01-08T07:15:00Z/2013-01-09T07:15:00Z --format json");
    world.run("preview carrier_tend");
    world.run("preview carrier_trend --interval 2013-01-09/2013-01-08");
    world.copy("bad/flights/2013-01-29.parquet", FLIGHTS);
    world.run(&format!("preview carrier_delays --limit 2 --interval {BLOCKED}"));
    world.quietly("init --example ../fresh");
    world.copy("../fresh/data/flights/2013-01-29.parquet", FLIGHTS);
    assert_eq!(before, files(&world.folder));
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_run_is_computed_published_and_found_again() {
    let mut world = World::applied();
    world.run("run flights_daily --interval 2013-01-08T07:15:00Z/2013-01-09T07:15:00Z");
    world.run("run flights_daily --interval 2013-01-08T07:15:00Z/2013-01-09T07:15:00Z --format json");
    world.run("runs list --limit 2 --to 2013-01-09");
    world.run("snapshots");
    world.run("snapshots list --view carrier_delays --limit 1 --format json");
    world.run("online get carrier_delays carrier=UA");
    world.run("online get carrier_delays carrier=UA --format json");
    world.run("online get carrier_delays carrier=ZZ --format json");
    world.run("online get route_reliability dest=LAX");
    world.run("online get airport_pressure airport=JFK");
    world.run("checks --view airport_day --limit 3");
    world.run("status --dag flights_daily");
    world.run("status --search carrier_delays --format json");
    let runs = world.json("runs list --limit 1 --state succeeded");
    let id = runs[0]["id"].as_str().unwrap().to_owned();
    world.run(&format!("runs show {id}"));
    world.run(&format!("runs logs {id}"));
    world.run(&format!("runs cancel {id}"));
    world.run(&format!("runs retry {id}"));
    world.run(&format!("snapshots show {}", world.json("snapshots")[0]["id"].as_str().unwrap().to_owned()));
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn snapshots_are_compared_marked_and_seen_beside_what_became_of_them() {
    let mut world = World::applied();
    let night = |night: u32| format!("2013-01-{night:02}T07:15:00Z/2013-01-{:02}T07:15:00Z", night + 1);
    let mut ids = Vec::new();
    for start in [8, 9, 10] {
        world.quietly(&format!("run flights_daily --interval {}", night(start)));
        ids.push(world.json("snapshots --limit 1")[0]["id"].as_str().unwrap().to_owned());
    }
    let [first, second, third] = ids.as_slice() else { unreachable!("three nights") };
    world.run(&format!("snapshots diff {first} {second} --view carrier_delays --limit 2"));
    world.run(&format!("snapshots diff {second} {third} --view carrier_trend --limit 1 --format json"));
    world.run(&format!("snapshots diff {third} {third} --view airport_day"));
    world.run(&format!("snapshots mark {third} --bad"));
    world.run(&format!("snapshots mark {third} --bad --reason wrong-delays"));
    world.run(&format!("snapshots mark {second} --bad --reason=too"));
    world.run(&format!("snapshots mark {second} --good"));
    world.run(&format!("snapshots pin {first} --reason the-last-week"));
    world.run("restore --view carrier_delays --last-good --dry-run");
    world.quietly("restore --view carrier_delays --last-good --reason wrong-delays --yes");
    world.run("snapshots");
    world.run("snapshots --limit 2 --format json");
    world.run(&format!("snapshots show {third}"));
    let restore = world.json("snapshots --limit 1")[0]["id"].as_str().unwrap().to_owned();
    world.run(&format!("snapshots show {restore}"));
    world.run(&format!("snapshots diff {third} {restore} --limit 1"));
    world.run(&format!("snapshots diff {second} {restore}"));
    world.run("status --dag flights_daily");
    world.run("status --search carrier_delays --format json");
    world.run("status --at 2013-01-01 --search carrier_delays");
    world.run("status --at 2013-03-10 --search carrier_delays --format json");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn only_intervals_of_the_grid_are_run() {
    let mut world = World::applied();
    world.run("run flights_daily --interval 2013-01-08/2013-01-09");
    world.run("run flights_daily --interval 2013-01-09");
    world.run("run flights_dayly");
    // Hours come one after another, and none of the earlier ones is there.
    world.run("run flights_hourly");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_backfill_is_shown_before_it_runs_and_done_once() {
    let mut world = World::applied();
    world.run(&format!("{THREE_NIGHTS} --dry-run"));
    world.run(THREE_NIGHTS);
    world.run(&format!("{THREE_NIGHTS} --dry-run"));
    world.run(THREE_NIGHTS);
    world.run(&format!("{THREE_NIGHTS} --reprocess all --dry-run --format json"));
    world.run("backfill flights_hourly --from 2013-03-08 --to 2013-03-08T02:00 --format json");
    world.run("backfill flights_daily --from 2013-02-01 --to 2013-02-03 --detach");
    world.run("backfill flights_daily --from 2013-01-11 --to 2013-01-08");
    world.run("status");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn bad_data_is_stopped_while_the_last_good_values_stay() {
    let mut world = World::applied();
    world.quietly("run flights_daily --interval 2013-01-28T07:15:00Z/2013-01-29T07:15:00Z");
    let before = world.json("online get carrier_delays carrier=UA");
    world.copy(FLIGHTS, "good.parquet");
    world.copy("bad/flights/2013-01-29.parquet", FLIGHTS);
    world.run(&format!("run flights_daily --interval {BLOCKED}"));
    assert_eq!(before, world.json("online get carrier_delays carrier=UA"));
    world.run("checks --failed");
    world.run("checks --failed --limit 1 --format json");
    world.run("status --dag flights_daily");
    let id = world.json("runs list --state blocked")[0]["id"].as_str().unwrap().to_owned();
    world.run(&format!("runs show {id} --format json"));
    world.copy("good.parquet", FLIGHTS);
    world.run(&format!("runs retry {id}"));
    // Nobody was about to take it up: the next `run` of that interval does.
    world.run(&format!("run flights_daily --interval {BLOCKED}"));
    let after = world.json("online get carrier_delays carrier=UA");
    assert!(after["event_timestamp"].as_str() > before["event_timestamp"].as_str(), "{after}");
    world.run("snapshots --limit 2");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn bad_rows_are_set_aside_while_the_others_are_published() {
    let mut world = World::applied();
    world.edit("flights_daily.yaml", |text| {
        text.replacen("min: -60, max: 1440}", "min: -60, max: 1440, on_fail: {quarantine: {max_rows: 8}}}", 1)
            .replace("min: 10, max: 30, max_change: 0.5", "min: 10, max: 30")
            .replace("row_count: {min: 10,", "row_count: {min: 5,")
            .replacen("max_deletes: 0.5", "max_deletes: 0.9", 1)
            .replacen("default: 0, tags: [volume]}", "default: 0, tags: [volume, pii]}", 1)
    });
    world.quietly("apply --yes");
    world.quietly("run flights_daily --interval 2013-01-28T07:15:00Z/2013-01-29T07:15:00Z");
    world.run("quarantine list");
    world.run("quarantine show carrier_delays");
    world.copy("bad/flights/2013-01-29.parquet", FLIGHTS);
    world.run(&format!("run flights_daily --interval {BLOCKED}"));
    world.run("checks --view carrier_delays --limit 8");
    world.run("quarantine list");
    world.run("quarantine list carrier_delays --format json");
    world.run("quarantine show carrier_delays --limit 2");
    world.run("quarantine show carrier_delays --limit 1 --reveal --format json");
    world.run("online get carrier_delays carrier=UA");
    world.run("snapshots --limit 1");
    let id = world.json("snapshots")[0]["id"].as_str().unwrap().to_owned();
    world.run(&format!("snapshots show {id}"));
    world.run(&format!("quarantine readmit carrier_delays --run {id} --reason snow"));
    world.quietly(&format!("run flights_daily --interval {BLOCKED}"));
    world.run("quarantine list");
    world.run("quarantine show carrier_delays");
    world.run("snapshots --limit 1");
    world.run("online get carrier_delays carrier=UA");
    world.run(&format!("quarantine readmit carrier_delays --run {id} --reason again --format json"));
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_person_lets_a_blocked_run_through() {
    let mut world = World::applied();
    world.copy("bad/flights/2013-01-29.parquet", FLIGHTS);
    world.run(&format!("run flights_daily --interval {BLOCKED}"));
    let id = world.json("runs list --state blocked")[0]["id"].as_str().unwrap().to_owned();
    world.run(&format!("runs override {id} --reason="));
    world.run(&format!("runs override {id} --reason late"));
    world.run(&format!("runs override {id} --reason again"));
    world.run(&format!("run flights_daily --interval {BLOCKED}"));
    world.run("checks --view carrier_delays --failed --limit 2");
    world.run("snapshots --limit 1");
    world.run("status --search carrier_delays");
    world.run(&format!("runs override {id} --reason again"));
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn the_audit_log_says_who_did_what_and_whether_it_is_still_so() {
    let mut world = World::applied();
    world.quietly("dags pause flights_daily");
    world.quietly("registry backup copy.db");
    world.quietly("dags unpause flights_daily");
    world.quietly("run flights_daily --interval 2013-01-08T07:15:00Z/2013-01-09T07:15:00Z");
    world.run("audit-log");
    world.run("audit-log --action dag --oldest-first --format jsonl");
    world.run("audit-log --actor tester --subject flights_daily --limit 1 --format json");
    world.run("audit-log --subject airport_day");
    world.run("audit-log --actor eve");
    world.run("audit-log --verify");
    let head = world.json("audit-log --verify")["head"].as_str().unwrap().to_owned();
    world.run(&format!("audit-log --verify --head {head} --format json"));
    // As somebody would who wants it not to have happened.
    world.quietly("registry restore copy.db --force");
    world.run("audit-log --verify");
    world.run(&format!("audit-log --verify --head {head}"));
    world.run("audit-log --limit 1");
    world.run("audit-log --verify --head abc");
    world.run("audit-log --head abc");
    insta::assert_snapshot!(world.transcript());
}

/// Takes so many requests, answers each with 200, and returns them.
fn receive(count: usize) -> (u16, std::thread::JoinHandle<Vec<String>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let receiving = std::thread::spawn(move || {
        let mut requests = Vec::new();
        while requests.len() < count {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            let is_whole = |request: &str| {
                let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                length.is_some_and(|length| body.len() >= length.parse().unwrap())
            };
            while !is_whole(&request) {
                let mut piece = [0; 4096];
                let read = stream.read(&mut piece).unwrap();
                request.push_str(std::str::from_utf8(&piece[..read]).unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            requests.push(request);
        }
        requests
    });
    (port, receiving)
}

#[test]
fn a_blocked_run_is_told_to_a_webhook() {
    let mut world = World::applied();
    let (port, receiving) = receive(2);
    let webhook =
        format!("{{name: oncall, url: \"http://127.0.0.1:{port}/hook\", secret_env: ONCALL, events: [run.*]}}");
    let notify = format!("notify:\n  allowed_hosts: [127.0.0.1]\n  webhooks:\n    - {webhook}\n");
    world.edit("tidegate.yaml", |text| text + &notify);
    world.run("validate");
    world.edit("tidegate.yaml", |text| text.replace("[127.0.0.1]\n", "[127.0.0.1]\n  allowed_private: [127.0.0.1]\n"));
    world.run("notices test oncal");
    world.run("notices test oncall");
    world.variables.push(("ONCALL", "between us"));
    world.run("notices test oncall");
    world.copy("bad/flights/2013-01-29.parquet", FLIGHTS);
    world.run(&format!("run flights_daily --interval {BLOCKED}"));
    world.run("notices list");
    world.run("notices send");
    world.run("notices send");
    world.run("notices list --event run.* --format json");
    world.run("notices list --state given_up");
    world.run("notices retry --all");
    world.run("notices retry abc");
    let requests = receiving.join().unwrap();
    assert!(requests[0].contains("tidegate-event: test\r\n"), "{requests:?}");
    assert!(requests[1].contains("tidegate-signature: t=") && requests[1].contains("\"event\":\"run.blocked\""));
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn without_an_online_store_all_else_is_the_same() {
    let mut world = World::example();
    world.edit("tidegate.yaml", |text| {
        text.lines().filter(|line| !line.starts_with("online:")).map(|line| line.to_owned() + "\n").collect()
    });
    world.run("apply --yes");
    world.run(THREE_NIGHTS);
    world.run("status --dag flights_daily");
    world.run("snapshots --limit 1 --format json");
    world.run("online get carrier_delays carrier=UA");
    assert!(!world.folder.join(".tidegate/online.db").exists());
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn the_schema_for_editors_knows_every_list() {
    let world = World::empty();
    let schema: serde_json::Value = serde_json::from_str(&world.quietly("schema")).unwrap();
    for list in ["owners", "entities", "sources", "feature_views", "dags", "tests"] {
        assert!(schema.to_string().contains(&format!("\"{list}\"")), "{list}");
    }
}

#[test]
fn a_reader_who_leaves_early_is_no_failure() {
    let world = World::applied();
    let mut child = world.command(&["schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Closed before anything is read, as by `| true`.
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
}

/// Signals are sent by the shell's `kill`, which every machine has.
#[cfg(unix)]
fn signal(child: &std::process::Child, name: &str) {
    let sent =
        std::process::Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Lets the online store of the example hold other than what was published: one carrier is gone, one has another value.
fn spoil(world: &World) {
    use tidegate_worker::online::{self, Changes, EncodedRow, Expected};
    let location = OnlineLocation::Sqlite(world.folder.join(".tidegate/online.db"));
    let view = "carrier_delays@v1".parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let online = online::open(&location, &"flights".parse().unwrap(), true).await.unwrap();
        let live = online.live(&view).await.unwrap().unwrap();
        let row = online.scan(&view, live.generation, Some("UA"), 1).await.unwrap().remove(0);
        let changed = EncodedRow {
            entity_key: row.0,
            event_timestamp: row.1.event_timestamp,
            expires_at: row.1.expires_at,
            features: vec![("flights_7d".to_owned(), "1".to_owned())],
        };
        let changes = Changes { changed: vec![changed], removed: vec!["UA".to_owned()], ..Changes::default() };
        let expected = Expected { generation: live.generation, publish_number: live.publish_number };
        online.repair(&view, expected, &changes).await.unwrap();
        online.close().await;
    });
}

#[test]
fn the_profile_of_a_run_is_shown_and_compared() {
    let mut world = World::applied();
    world.run("profile carrier_delays");
    world.quietly("run flights_daily --interval 2013-01-08T07:15:00Z/2013-01-09T07:15:00Z");
    world.quietly("run flights_daily --interval 2013-01-09T07:15:00Z/2013-01-10T07:15:00Z");
    world.run("profile carrier_delays");
    let snapshots = world.json("snapshots");
    let first = snapshots[1]["id"].as_str().unwrap().to_owned();
    world.run(&format!("profile carrier_delays --against {first}"));
    world.run(&format!("profile carrier_delays --snapshot {first} --against {first}"));
    world.run(&format!("profile airport_fleet --snapshot {first}"));
    world.run("profile carrier_delay");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_report_shows_what_a_run_was_stopped_for() {
    let mut world = World::applied();
    world.quietly("run flights_daily --interval 2013-01-28T07:15:00Z/2013-01-29T07:15:00Z");
    world.copy("bad/flights/2013-01-29.parquet", FLIGHTS);
    let run = format!("run flights_daily --interval {BLOCKED}");
    world.command(&run.split(' ').collect::<Vec<_>>()).output().unwrap();
    let id = |state: &str| world.json(&format!("runs list --state {state}"))[0]["id"].as_str().unwrap().to_owned();
    let (blocked, published, waiting) = (id("blocked"), id("succeeded"), id("waiting"));
    world.run(&format!("checks report {blocked} --html blocked.html"));
    world.run(&format!("checks report {published} --html published.html"));
    world.run(&format!("checks report {published} --html published.html"));
    world.run(&format!("checks report {waiting} --html waiting.html"));
    world.run("checks report nothing --html nothing.html");
    world.run(&format!("checks report {blocked} --html reports/blocked.html"));
    world.run(&format!("checks report {blocked} --html data"));
    world.run(&format!("checks report {blocked}"));
    let page = |name: &str| std::fs::read_to_string(world.folder.join(name)).unwrap();
    let blocked = page("blocked.html");
    for told in ["<h1>Blocked</h1>", "8 of 15 rows have worst_dep_delay_7d outside", "large change", "<svg"] {
        assert!(blocked.contains(told), "{told} is missing in\n{blocked}");
    }
    let published = page("published.html");
    assert!(published.contains("<h1>Published") && published.contains("carrier_trend@v1"), "{published}");
    let left: Vec<_> =
        files(&world.folder).into_iter().filter(|(path, _)| path.to_string_lossy().ends_with(".part")).collect();
    assert!(left.is_empty(), "{left:?}");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn suggested_checks_are_accepted_and_hold_for_the_runs_they_come_from() {
    let mut world = World::applied();
    world.run("checks suggest route_reliability");
    world.quietly("backfill flights_daily --from 2013-01-08 --to 2013-01-16");
    world.run("checks suggest route_reliability");
    world.run("checks suggest carrier_trend --runs 5 --format json");
    world.run("checks suggest carrier_trend --runs 4");
    world.run("checks suggest carrier_trends");
    // Pasted as they are, below the checks that each view has.
    for (view, last) in [
        ("carrier_delays", "WHERE flights_7d >= 100 AND avg_dep_delay_7d > 60\n"),
        ("carrier_trend", "WHERE getting_worse <> (dep_delay_change > 0)\n"),
        ("route_reliability", "- row_count: {min: 150, max_change: 0.2}\n"),
        ("airport_day", "WHERE bad_weather_flights_1d > flights_1d\n"),
    ] {
        let suggested = world.quietly(&format!("checks suggest {view}"));
        assert!(suggested.contains("- "), "{view}: {suggested}");
        world.edit("flights_daily.yaml", |text| text.replacen(last, &format!("{last}{suggested}"), 1));
    }
    world.run("validate");
    world.quietly("apply --yes");
    world.quietly("backfill flights_daily --from 2013-01-08 --to 2013-01-16 --reprocess all");
    world.run("checks --failed");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn what_an_online_store_lost_is_found_and_brought_back() {
    let mut world = World::applied();
    world.quietly("run flights_daily --interval 2013-01-08T07:15:00Z/2013-01-09T07:15:00Z");
    world.run("online audit");
    world.run("online rebuild");
    for file in ["online.db", "online.db-wal", "online.db-shm"] {
        let _ = std::fs::remove_file(world.folder.join(".tidegate").join(file));
    }
    world.run("online audit carrier_delays");
    world.run("online rebuild carrier_delays");
    world.run("online rebuild --format json");
    spoil(&world);
    world.run("online audit");
    world.run("online audit carrier_delays --repair");
    world.run("online audit carrier_delays --sample 3 --format json");
    world.run("online get carrier_delays carrier=UA");
    world.run("online audit carrier_delay");
    // Columns are as wide as the folder's name is long.
    insta::with_settings!({ filters => vec![(" {2,}", "  ")] }, { insta::assert_snapshot!(world.transcript()) });
}

#[cfg(unix)]
#[test]
fn up_computes_what_is_due_stops_cleanly_and_goes_on() {
    let world = World::applied();
    let succeeded = || world.json("runs list --state succeeded --limit 0").as_array().unwrap().len();
    for name in ["INT", "TERM"] {
        let before = succeeded();
        let mut up = world.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("another run", || succeeded() > before);
        signal(&up, name);
        let code = up.wait().unwrap().code();
        let mut said = String::new();
        up.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("stopping: finishing or handing back"), "{said}");
        let held = world.json("runs list --state publishing --limit 0");
        assert_eq!(held.as_array().unwrap().len(), 0, "{held}");
    }
}

/// Status and body of an HTTP GET; `None` while nobody listens.
fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

#[cfg(unix)]
#[test]
fn every_role_tells_whether_it_is_healthy_and_ready() {
    let world = World::applied();
    for (role, told) in
        [("up", vec!["scheduler", "worker"]), ("scheduler", vec!["scheduler"]), ("worker", vec!["worker"])]
    {
        let reserved = tidegate_servers::Port::reserve().unwrap();
        let port = reserved.number();
        let address = format!("127.0.0.1:{port}");
        let mut process =
            world.command(&[role, "--health", &address]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("readiness", || http_get(port, "/readyz").is_some_and(|(status, _)| status == 200));
        let (status, body) = http_get(port, "/healthz").unwrap();
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, body["status"].as_str()), (200, Some("healthy")), "{body}");
        let roles: Vec<&String> = body["roles"].as_object().unwrap().keys().collect();
        assert_eq!(roles, told);
        assert_eq!(http_get(port, "/").unwrap().0, 404, "nothing else is told");
        signal(&process, "TERM");
        assert_eq!(process.wait().unwrap().code(), Some(0));
    }
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = world.command(&["up", "--health", &address]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("listening for health checks"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_drained_worker_takes_no_more_until_it_may() {
    let world = World::applied();
    let mut up =
        world.command(&["up", "--queues", "default"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let workers = || world.json("workers list").as_array().unwrap().clone();
    eventually("a worker", || workers().len() == 1);
    let worker = workers()[0]["worker"].as_str().unwrap().to_owned();
    assert_eq!(workers()[0]["queues"], serde_json::json!(["default"]));
    world.quietly(&format!("workers drain {worker}"));
    eventually("rest", || world.json("runs list --state publishing").as_array().unwrap().is_empty());
    let running = |queue: &serde_json::Value| queue[0]["running"].as_u64() == Some(0);
    eventually("nothing claimed", || running(&world.json("queue depth")));
    let succeeded = || world.json("runs list --state succeeded --limit 0").as_array().unwrap().len();
    let before = succeeded();
    let next = world.json("queue list --limit 1");
    assert_eq!((next[0]["queue"].as_str(), next[0]["waits_for"].as_str()), (Some("default"), Some("queue")), "{next}");
    assert_eq!((succeeded(), workers()[0]["drained"].as_bool()), (before, Some(true)));
    world.quietly(&format!("workers undrain {worker}"));
    eventually("more runs", || succeeded() > before);
    signal(&up, "TERM");
    assert_eq!(up.wait().unwrap().code(), Some(0));
    let unknown = world.command(&["workers", "drain", "nobody"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(world.json("pools list"), serde_json::json!([]));
}

#[cfg(unix)]
#[test]
fn a_killed_process_holds_nobody_up() {
    let world = World::applied();
    let start = Instant::now();
    world.quietly("backfill flights_daily --from 2013-01-11 --to 2013-01-14");
    let usual = start.elapsed();
    let running = || !world.json("runs list --state running").as_array().unwrap().is_empty();
    let mut up = world.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("a run under way", running);
    up.kill().unwrap();
    up.wait().unwrap();
    // Its lease and its last sign of life count for a minute; the next start sees at once that it is gone.
    let start = Instant::now();
    world.quietly(THREE_NIGHTS);
    assert!(start.elapsed() < usual + Duration::from_secs(50), "{:?}, and otherwise {usual:?}", start.elapsed());
}

#[cfg(unix)]
#[test]
fn asked_twice_a_process_leaves_at_once_and_the_next_goes_on() {
    let world = World::applied();
    let running = || !world.json("runs list --state running").as_array().unwrap().is_empty();
    let mut backfill = world
        .command(&THREE_NIGHTS.split(' ').collect::<Vec<_>>())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("a run under way", running);
    signal(&backfill, "INT");
    std::thread::sleep(Duration::from_millis(50));
    signal(&backfill, "INT");
    let code = backfill.wait().unwrap().code();
    let mut said = String::new();
    backfill.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.ends_with("error: stopped; the next start goes on with what was running\n"), "{said}");
    world.quietly(THREE_NIGHTS);
    let succeeded = world.json("runs list --state succeeded --limit 0");
    assert_eq!(succeeded.as_array().unwrap().len(), 3, "{succeeded}");
}

#[cfg(unix)]
#[test]
fn a_run_is_followed_while_a_worker_is_about() {
    let mut world = World::applied();
    let mut up = world.command(&["up"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("a run under way", || !world.json("runs list --state running").as_array().unwrap().is_empty());
    let shown = world.run("run flights_daily --interval 2013-01-09T07:15:00Z/2013-01-10T07:15:00Z --format json");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((shown["state"].as_str(), shown["cause"].as_str()), (Some("succeeded"), Some("tick")));
    signal(&up, "TERM");
    assert_eq!(up.wait().unwrap().code(), Some(0));
}

#[test]
fn the_demo_shows_what_it_says_in_any_folder() {
    let world = World::empty();
    let output = world
        .command(&["demo", "--dir", "demo"])
        .env_remove("TIDEGATE_CLOCK_SPEED")
        .env_remove("TIDEGATE_SLOTS")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{told}");
    for claim in [
        "21 of 21 done",
        "blocked by its checks",
        "answers exactly as before",
        "passed all checks",
        "blocked.html",
        "all other routes are live; what was set aside",
        "in the lake and online together, after",
        "computed again from the right file",
    ] {
        assert!(told.contains(claim), "{claim} is missing in\n{told}");
    }
    let again = world.command(&["demo", "--dir", "demo"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
}
