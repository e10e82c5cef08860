//! Training and scoring sets without an online store: built, found again, built once more, and named by a restore.

use std::fs;

use serde_json::json;

use crate::world::World;

/// A dataset in the DAG of the views that it is made of, as small projects have it.
const IN_ITS_PARENTS_DAG: &str = r#"
datasets:
  - name: carrier_scores
    entity: carrier
    owner: delays
    description: What predictions are made from every night
    features: [carrier_delays, carrier_trend.getting_worse]
    checks: [row_count: {min: 10}]
"#;

const LABELS: &str = "carrier,origin,dest,event_timestamp,delayed
UA,EWR,ORD,2013-01-09T12:00:00Z,1
ZZ,EWR,ORD,2013-01-09T12:00:00Z,0
UA,EWR,ORD,2013-01-10T07:14:59.999999Z,0
UA,EWR,ORD,2013-01-10T07:15:00Z,1
AA,JFK,LAX,2013-01-01,0
";

fn batch_only() -> World {
    let world = World::example();
    world.edit("tidegate.yaml", |text| {
        text.lines().filter(|line| !line.starts_with("online:")).map(|line| format!("{line}\n")).collect()
    });
    world.edit("flights_daily.yaml", |text| {
        text.replace("airport_day]", "airport_day, carrier_scores]") + IN_ITS_PARENTS_DAG
    });
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
    world.run("dataset build --all-entities --at 2013-02-01 --features carrier_trend.airline --out out/late.parquet");
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
    assert_eq!(plan["consumers"], json!(["delay_predictor (2013.1)"]));
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
    let mut world = batch_only();
    world.quietly("backfill flights_scoring --from 2013-01-08 --to 2013-01-10");
    world.run("wait --dag flights_scoring --covers 2013-01-10 --timeout 5s");
    world.run("wait --view carrier_scores --covers 2013-02-01 --timeout 1s");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn scores_are_what_their_views_hold() {
    let world = batch_only();
    let interval = "--interval 2013-01-09T07:15:00Z/2013-01-10T07:15:00Z";
    let scores = world.json(&format!("preview carrier_scores {interval}"));
    let parents = world.json(&format!("preview carrier_delays {interval}"));
    assert_eq!(scores["total"], parents["total"], "one row for each carrier");
    assert!(scores.to_string().contains("carrier_delays__avg_dep_delay_7d"), "{scores}");
}

/// As after a death between writing and recording, or a registry that was brought back from a copy.
#[test]
fn a_dataset_that_the_registry_does_not_know_is_imported() {
    let mut world = batch_only();
    world.quietly("registry backup copy.db");
    let build = "dataset build --spine labels.csv --features delay_model";
    world.quietly(&format!("{build} --out out/training.parquet"));
    world.quietly(&format!("{build} --out out/table"));
    world.quietly("registry restore copy.db --force");
    world.run(&format!("{build} --out out/training.parquet"));
    world.run("dataset import out/training.parquet --name training");
    world.quietly("dataset import out/table");
    world.quietly("dataset rebuild training --out out/again.parquet");
    world.run("dataset import out/table");
    let file = world.folder.join("out/training.parquet");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    world.run("dataset import out/training.parquet");
    world.run("dataset import labels.csv");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn nothing_is_built_that_cannot_be_recorded() {
    let world = batch_only();
    let unsaid =
        ["dataset", "build", "--all-entities", "--at", "2013-01-10", "--features", "carrier_delays", "--pin", " "];
    let unsaid = world.command(&[&unsaid[..], &["--out", "unsaid.parquet"]].concat()).output().unwrap();
    assert_eq!(unsaid.status.code(), Some(1));
    assert!(!world.folder.join("unsaid.parquet").exists());
}
