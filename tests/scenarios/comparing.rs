//! A view beside what should hold the same: another version of it, an old pipeline's table, the online store.

use std::fs;

use crate::THREE_NIGHTS;
use crate::world::World;

/// As an old pipeline has it for the night that ended on the tenth: of EWR nearly the same, of JFK a few flights more and no
/// wind, of LGA nothing, and something of an airport that nobody knows.
const OLD: &str = "code,flights,wind,runways
EWR,336,7.28,3
JFK,296,,4
TTN,4,3.5,1
";

/// The example, and a second version of a view that takes more for bad weather.
fn two_versions() -> World {
    let world = World::example();
    world.edit("flights_daily.yaml", |text| {
        let first = text.split_once("  - name: airport_day\n").unwrap().1.to_owned();
        let second = first.replace("version: 1", "version: 2").replace("visib < 3", "visib < 8");
        assert_ne!(first, second);
        format!("{text}\n  - name: airport_day\n{second}")
    });
    world.quietly("apply --yes");
    world.quietly(THREE_NIGHTS);
    world
}

#[test]
fn a_view_is_compared_with_what_should_hold_the_same() {
    let mut world = two_versions();
    fs::write(world.folder.join("old.csv"), OLD).unwrap();
    world.run("compare airport_day --with airport_day@v1 --at 2013-01-10T07:15");
    world.run("compare airport_day --with airport_day@v1 --from 2013-01-09 --features flights_1d,bad_weather_flights_1d --limit 2 --min-agreement 99.9");
    let names = "--columns code=airport,flights=flights_1d,wind=avg_wind_speed_1d";
    world.run(&format!("compare airport_day@v1 --with old.csv --at 2013-01-10T07:15 {names} --tolerance 1%"));
    world.run(&format!(
        "compare airport_day@v1 --with old.csv --at 2013-01-10T07:15 {names} --common-only --limit 1 --format json"
    ));
    world.run("compare airport_day --with online --min-agreement 100");
    insta::assert_snapshot!(world.transcript());
}

#[test]
fn what_cannot_be_compared_is_said_with_what_to_do() {
    let mut world = two_versions();
    fs::write(world.folder.join("old.csv"), OLD).unwrap();
    world.run("compare airport_day --with airport_dya");
    world.run("compare airport_day --with airport_day@v3");
    world.run("compare airport_day --with airport_day");
    world.run("compare airport_day --with carrier_delays");
    world.run("compare airport_day --with flights --columns origin=airport");
    world.run("compare airport_day --with old.csv");
    world.run("compare airport_day --with old.csv --columns code=airport");
    world.run("compare airport_day --with old.parquet");
    world.run("compare airport_day --with airport_day@v1 --at 2013-01-01");
    world.run("compare airport_day --with online --tolerance 1%");
    world.run("compare airport_day --with airport_day@v1 --tolerance much --min-agreement 101");
    insta::assert_snapshot!(world.transcript());
}
