//! Training and scoring sets without an online store: built, found again, built once more, and named by a restore.

use std::fs;

use serde_json::json;

use crate::world::World;

const SERVICES: &str = r#"
feature_services:
  - name: delay_model
    owner: delays
    description: What the model of delays is trained on
    features: [carrier_delays.avg_dep_delay_7d, "carrier_*.flights_*"]
consumers:
  - name: delay_predictor
    version: "7"
    owner: delays
    description: Predicts delays
    uses: [delay_model]
datasets:
  - name: morning_scores
    entity: carrier
    owner: delays
    description: What predictions are made from every morning
    features: [delay_model]
    checks: [row_count: {min: 10}]
"#;

const LABELS: &str = "carrier,event_timestamp,delayed
UA,2013-01-09T12:00:00Z,1
ZZ,2013-01-09T12:00:00Z,0
UA,2013-01-10T07:14:59.999999Z,0
UA,2013-01-10T07:15:00Z,1
AA,2013-01-01,0
";

fn batch_only() -> World {
    let world = World::example();
    world.edit("tidegate.yaml", |text| {
        text.lines().filter(|line| !line.starts_with("online:")).map(|line| format!("{line}\n")).collect()
    });
    world.edit("flights_daily.yaml", |text| text.replace("airport_day]", "airport_day, morning_scores]") + SERVICES);
    world.quietly("apply --yes");
    world.quietly("backfill flights_daily --from 2013-01-08 --to 2013-01-10");
    fs::write(world.folder.join("labels.csv"), LABELS).unwrap();
    world
}

#[test]
fn a_training_set_is_built_found_again_and_made_once_more() {
    let mut world = batch_only();
    world.run("services list");
    world.run("consumers show delay_predictor");
    world.run("dataset build --spine labels.csv --features delay_model --out out/training.parquet --dry-run");
    world.run("dataset build --spine labels.csv --features delay_model --out out/training.parquet --name training");
    let first = fs::read(world.folder.join("out/training.parquet")).unwrap();
    assert!(world.folder.join("out/training.parquet.manifest.json").is_file());
    world.quietly("run flights_daily");
    world.run("datasets rebuild training --out out/again.parquet");
    assert!(fs::read(world.folder.join("out/again.parquet")).unwrap() == first, "the same bytes");
    fs::write(world.folder.join("labels.csv"), LABELS.replace("ZZ", "B6")).unwrap();
    world.run("dataset rebuild training --out out/other.parquet");
    world.run("dataset build --spine labels.csv --features delay_model --out out/training.parquet");
    world.run("dataset build --spine labels.csv --features carrier_delay.flights_7d --out out/no.parquet");
    world.run("dataset pin training --reason audit");
    world.run("dataset list");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_restore_names_who_reads_what_it_takes_back() {
    let world = batch_only();
    let snapshots = world.json("snapshots --dag flights_daily");
    let newest = snapshots[0]["id"].as_str().unwrap();
    world.quietly(
        "dataset build --all-entities --at 2013-01-10T12:00 --features carrier_delays --out scores --name scores",
    );
    let named = world.json(&format!("dataset list --built-from {newest}"));
    assert_eq!(named[0]["name"], json!("scores"));
    let plan = world.json("restore --view carrier_delays --last-good --reason odd --dry-run");
    assert_eq!(plan["consumers"], json!(["delay_predictor (7)"]));
    assert_eq!(plan["datasets"][0]["name"], json!("scores"));
    world.quietly("restore --view carrier_delays --last-good --reason odd --yes");
    let after = world.json("dataset build --all-entities --at 2013-01-10T12:00 --features carrier_delays --out after");
    assert!(
        after["manifest"]["views"]["carrier_delays@v1"]["covers"].as_str()
            < named[0]["manifest"]["views"]["carrier_delays@v1"]["covers"].as_str()
    );
    let named = world.json(&format!("dataset list --built-from {newest} --view carrier_delays"));
    assert_eq!(named.as_array().unwrap().len(), 1, "what is built now does not hold it");
}

#[test]
fn a_dag_writes_a_scoring_set_that_others_wait_for() {
    let world = batch_only();
    let covered = world.json("wait --view morning_scores --covers 2013-01-09T12:00:00Z --timeout 5s");
    assert_eq!(covered["views"], json!({ "morning_scores@v1": "2013-01-10T07:15:00Z" }));
    let unsaid =
        ["dataset", "build", "--all-entities", "--at", "2013-01-10", "--features", "carrier_delays", "--pin", " "];
    let unsaid = world.command(&[&unsaid[..], &["--out", "unsaid.parquet"]].concat()).output().unwrap();
    assert_eq!(unsaid.status.code(), Some(1));
    assert!(!world.folder.join("unsaid.parquet").exists(), "nothing is built that cannot be recorded");
    let late = world
        .command(&["wait", "--dag", "flights_daily", "--covers", "2013-02-01", "--timeout", "1s"])
        .output()
        .unwrap();
    assert_eq!(late.status.code(), Some(1));
    let told = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(told.contains("did not cover 2013-02-01T05:00:00Z in time"), "{told}");
    let scores = world.json("preview morning_scores --interval 2013-01-09T07:15:00Z/2013-01-10T07:15:00Z");
    let parents = world.json("preview carrier_delays --interval 2013-01-09T07:15:00Z/2013-01-10T07:15:00Z");
    assert_eq!(scores["total"], parents["total"], "one row for each carrier");
    assert!(scores.to_string().contains("carrier_delays__avg_dep_delay_7d"), "{scores}");
}
