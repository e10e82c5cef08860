//! An incident from end to end, as `docs/runbooks/restore.md` goes through it: a change lets bad data through, a check notices,
//! the night is taken back, the change is undone, the night is computed again.

use crate::world::World;

#[test]
fn what_a_bad_deploy_let_through_is_taken_back() {
    let mut world = World::example();
    // The bad deploy: what would stop the next file only warns.
    world.edit("flights_daily.yaml", |text| text.replacen("max: 1440}", "max: 1440, severity: warn}", 1));
    world.quietly("apply --yes");
    world.quietly("backfill flights_daily --from 2013-01-27 --to 2013-01-29");
    world.copy("bad/flights/2013-01-29.parquet", "data/flights/2013-01-29.parquet");
    world.quietly("run flights_daily --interval 2013-01-29T02:15/2013-01-30T02:15");
    let bad = world.json("snapshots")[0]["id"].as_str().unwrap().to_owned();
    let good = world.json("snapshots")[1]["id"].as_str().unwrap().to_owned();
    let wrong = world.json("online get carrier_delays carrier=UA");
    world.run("checks --failed");
    world.run("snapshots --limit 2");
    world.run(&format!("snapshots diff {good} {bad} --view carrier_delays --limit 1"));
    world.run("restore --dag flights_daily --last-good --dry-run");
    world.run("restore --dag flights_daily --last-good --reason INC-1");
    world.run("restore --dag flights_daily --last-good --reason INC-1 --yes");
    let right = world.json("online get carrier_delays carrier=UA");
    assert_eq!(right["snapshot"].as_str(), Some(good.as_str()));
    assert_ne!(right["features"], wrong["features"]);
    world.run("restores");
    world.run("holds");
    // The next night passes the held views by.
    world.run("run flights_daily");
    world.run(&format!("snapshots show {bad}"));
    // Mended: the check blocks again, and the right file is there.
    world.edit("flights_daily.yaml", |text| text.replacen("max: 1440, severity: warn}", "max: 1440}", 1));
    world.quietly("apply --yes");
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let file = "data/flights/2013-01-29.parquet";
    std::fs::copy(source.join("dags").join(file), world.folder.join(file)).unwrap();
    world.run("resume --view carrier_trend --yes --reason mended");
    world.quietly("resume --dag flights_daily --yes --reason mended");
    world.run("holds");
    world.quietly("run flights_daily --interval 2013-01-29T02:15/2013-01-30T02:15");
    let mended = world.json("online get carrier_delays carrier=UA");
    assert_eq!(mended["event_timestamp"], wrong["event_timestamp"], "the night is back");
    assert_ne!(mended["features"], wrong["features"], "with what is right");
    world.run("audit-log --action re --limit 6");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_restore_says_why_it_cannot_be() {
    let mut world = World::applied();
    world.run("restore --view carrier_delays --last-good");
    world.run("restore --last-good --reason because");
    world.run("restore --view carrier_delays --last-good --reason because --yes");
    world.run("restore --view carrier_delay --last-good --reason because --yes");
    world.run("restore --view carrier_delays --to 0000 --reason because --yes");
    world.run("restore --view carrier_delays --at yesterday --reason because --yes");
    world.run("restore --view carrier_delays --last-good --to 0000 --reason because");
    world.run("resume --view carrier_delays --yes");
    world.run("holds");
    world.run("hold --view carrier_delays --reason odd");
    world.run("resume --view carrier_trend --yes");
    world.run("holds --format json");
    world.run("restores --format json");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn a_restore_is_rehearsed_on_a_copy() {
    let mut world = World::example();
    world.edit("flights_daily.yaml", |text| text.replacen("    online: ", "    restore_target: 5m\n    online: ", 1));
    world.quietly("apply --yes");
    world.run("drill");
    world.run("drill --all");
    world.run("drills");
    world.quietly("backfill flights_daily --from 2013-01-27 --to 2013-01-29");
    world.run("status");
    let tidegate = world.folder.join(".tidegate");
    let lake = crate::world::files(&tidegate.join("lake"));
    world.run("drill --dag flights_daily --dry-run");
    world.run("drill --view carrier_delays --scenario bad_deploy --scenario online_store_lost");
    assert!(crate::world::files(&tidegate.join("lake")) == lake, "the lake was only read");
    world.quietly("drill --all");
    let drill = world.json("drills")[0]["drill"].as_str().unwrap().to_owned();
    let shown = world.json(&format!("drills show {drill}"));
    let outcomes = |shown: &serde_json::Value| -> Vec<String> {
        let scenarios = shown["scenarios"].as_array().unwrap().iter();
        scenarios
            .map(|one| format!("{} {}", one["scenario"].as_str().unwrap(), one["outcome"].as_str().unwrap()))
            .collect()
    };
    assert!(outcomes(&shown).iter().all(|one| one.ends_with(" passed")), "{:?}", outcomes(&shown));
    world.run(&format!("drills show {drill} --format json"));
    world.run("status --format json --search carrier_delays");
    world.run("drill --all --scenario bad_day");
    world.run("audit-log --action drill --limit 2");
    insta::assert_snapshot!(world.transcript());
}
