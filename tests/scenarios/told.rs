//! A scoring job that waits to be told: when a run was published, a webhook learns where its rows are.

use std::path::Path;

use tidegate_registry::notice::NoticeEvent;

use super::world::World;
use super::{THREE_NIGHTS, receive};

const NIGHT: &str = "run flights_daily --interval 2013-01-08T07:15:00Z/2013-01-09T07:15:00Z";

/// The process that publishes ends before anything is sent, as if it had died: the outbox has it.
#[test]
fn a_scoring_job_is_told_once_its_rows_can_be_read() {
    let mut world = World::applied();
    let (port, receiving) = receive(1);
    let hook = |name: &str, events: &str| {
        format!(
            "    - {{name: {name}, url: \"http://127.0.0.1:{port}/{name}\", secret_env: SECRET, events: [{events}]}}\n"
        )
    };
    let webhooks = hook("scoring_job", "run.published") + &hook("oncall", "run.*");
    let notify =
        format!("notify:\n  allowed_hosts: [127.0.0.1]\n  allowed_private: [127.0.0.1]\n  webhooks:\n{webhooks}");
    world.edit("tidegate.yaml", |text| text + &notify);
    let told = "    on_published:\n      - webhook: scoring_jop\n        payload: {model: delay_predictor, tries: 3}\n";
    world.edit("flights_daily.yaml", |text| {
        text.replace("    max_active_runs: 1\n", &format!("    max_active_runs: 1\n{told}"))
    });
    world.run("validate");
    world.edit("flights_daily.yaml", |text| text.replace("scoring_jop", "scoring_job"));
    world.run("apply --yes");
    world.run("dags show flights_daily");
    world.run(NIGHT);
    world.run("notices list");
    world.variables.push(("SECRET", "between us"));
    world.run("notices send");
    world.run("notices send");
    world.run("notices list --event run.published --format json");
    let requests = receiving.join().unwrap();
    assert!(requests[0].starts_with("POST /scoring_job "), "{requests:?}");
    let event = NoticeEvent::RunPublished;
    assert!(
        requests[0].contains(&format!("tidegate-event: {event}\r\n")) && requests[0].contains("tidegate-signature: t=")
    );
    let body: serde_json::Value = serde_json::from_str(requests[0].split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["detail"]["payload"], serde_json::json!({ "model": "delay_predictor", "tries": 3 }));
    for table in body["detail"]["tables"].as_array().unwrap() {
        let folder = Path::new(table["uri"].as_str().unwrap().strip_prefix("file://").unwrap());
        assert!(folder.join("_delta_log").is_dir(), "{table}");
    }
    insta::assert_snapshot!(world.transcript());
}

/// A restore says so by itself, to whoever asked for `restore.*`: a job that computes from new rows is not started by it.
#[test]
fn every_run_is_told_and_no_restore() {
    let world = World::applied();
    let webhook =
        "{name: scoring_job, url: \"https://jobs.example.com/ready\", secret_env: SECRET, events: [run.published]}";
    let notify = format!("notify:\n  allowed_hosts: [jobs.example.com]\n  webhooks:\n    - {webhook}\n");
    world.edit("tidegate.yaml", |text| text + &notify);
    let told = "    max_active_runs: 1\n    on_published: [{webhook: scoring_job}]\n";
    world.edit("flights_daily.yaml", |text| text.replace("    max_active_runs: 1\n", told));
    world.quietly("apply --yes");
    world.quietly(THREE_NIGHTS);
    world.quietly("restore --view carrier_delays --last-good --reason bad --yes");
    let told = world.json("notices list --limit 0");
    let told = told.as_array().unwrap();
    let of = |event: &str| told.iter().filter(|notice| notice["event"] == event).collect::<Vec<_>>();
    let published = of("run.published");
    assert_eq!((published.len(), of("restore.finished").len()), (3, 1), "{told:#?}");
    for notice in &published {
        assert_eq!(notice["detail"]["newest"], true, "one night after the other: {notice:#}");
        assert_eq!(notice["deliveries"][0]["webhook"], "scoring_job");
    }
    let mut ends: Vec<_> = published.iter().map(|notice| notice["detail"]["interval_end"].as_str().unwrap()).collect();
    ends.sort_unstable();
    ends.dedup();
    assert_eq!(ends.len(), 3, "each interval");
}
