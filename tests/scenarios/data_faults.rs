//! Which check catches which fault of a supplier: departures of March 2013, with one day spoiled in several ways.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{ParquetReadOptions, SessionContext};

use super::world::World;

const DEFINITIONS: &str = include_str!("data_faults.yaml");
/// The file that is spoiled, and a day that it covers.
const FILE: &str = "data/flights/2013-03-26.parquet";
const DAY: &str = "2013-03-27T00:00:00Z/2013-03-28T00:00:00Z";

/// What the supplier does wrong, what it is called in the page, and a query of the rows `good` for the bad ones.
const FAULTS: [(&str, &str, &str); 6] = [
    ("nothing", "nothing", "SELECT * FROM good"),
    (
        "seconds",
        "delays in seconds",
        "SELECT time_hour, carrier, flight, tailnum, origin, dest, dep_delay * 60 AS dep_delay, arr_delay * 60 AS arr_delay, \
         distance FROM good",
    ),
    (
        "renamed",
        "an airline renamed",
        "SELECT time_hour, CASE carrier WHEN 'UA' THEN 'UAL' ELSE carrier END AS carrier, flight, tailnum, origin, dest, \
         dep_delay, arr_delay, distance FROM good",
    ),
    (
        "nulls",
        "no delays of one airport",
        "SELECT time_hour, carrier, flight, tailnum, origin, dest, CASE WHEN origin <> 'JFK' THEN dep_delay END AS dep_delay, \
         CASE WHEN origin <> 'JFK' THEN arr_delay END AS arr_delay, distance FROM good",
    ),
    ("doubled", "every row twice", "SELECT * FROM good UNION ALL SELECT * FROM good"),
    (
        "shifted",
        "clock five hours ahead",
        "SELECT time_hour + INTERVAL '5 hours' AS time_hour, carrier, flight, tailnum, origin, dest, dep_delay, arr_delay, \
         distance FROM good",
    ),
];

/// Checks and their verdicts.
type Verdicts = Vec<(String, String)>;

/// What must be caught, whatever else is; and that a good day passes all.
const MUST_CATCH: [(&str, &[&str]); 6] = [
    ("nothing", &[]),
    ("seconds", &["nobody is a day late", "mean delay", "delay as lately", "delays as lately (KS)"]),
    ("renamed", &["known airlines", "codes have two letters", "airlines as lately (PSI)"]),
    ("nulls", &["few are cancelled", "cancellations as lately"]),
    ("doubled", &["unique(carrier, flight, origin, event_timestamp) of every view"]),
    ("shifted", &["nobody leaves in the night", "hours as lately (JS)"]),
];

#[test]
fn what_a_supplier_does_wrong_is_caught_by_several_checks() {
    let clean = computed_so_far();
    let mut found: Vec<Verdicts> = Vec::new();
    let mut checks: Vec<String> = Vec::new();
    for (fault, _, query) in FAULTS {
        let world = clean.twin();
        spoil(&world.folder.join(FILE), query);
        let run = world.json(&format!("run nightly --interval {DAY}"));
        let state = if fault == "doubled" { "blocked" } else { "succeeded" };
        assert_eq!(run["state"], state, "{fault}: {run:#}");
        let run = run["id"].as_str().unwrap();
        let verdicts = world.json(&format!("checks --run {run} --limit 0"));
        let verdicts: Verdicts = verdicts
            .as_array()
            .unwrap()
            .iter()
            .map(|check| (check["check"].as_str().unwrap().to_owned(), check["verdict"].as_str().unwrap().to_owned()))
            .collect();
        // What compares with earlier days is not asked when the run is stopped already.
        let known =
            |verdict: &str| verdict == "passed" || verdict == "failed" || (verdict == "pending" && state == "blocked");
        assert!(verdicts.iter().all(|(_, verdict)| known(verdict)), "{fault}: {verdicts:?}");
        if checks.is_empty() {
            checks = verdicts.iter().map(|(check, _)| check.clone()).collect();
        }
        let failed: BTreeSet<&str> =
            verdicts.iter().filter(|(_, verdict)| verdict == "failed").map(|(check, _)| check.as_str()).collect();
        let (_, must) = MUST_CATCH.iter().find(|(name, _)| *name == fault).unwrap();
        for check in *must {
            assert!(failed.contains(check), "`{check}` does not catch {fault}, only {failed:?}");
        }
        assert_eq!(failed.is_empty(), must.is_empty(), "{fault}: {failed:?}");
        found.push(verdicts);
    }
    compare_page(&page(&checks, &found));
}

/// The project with the days before computed.
fn computed_so_far() -> World {
    let world = World::example();
    for file in ["flights_daily.yaml", "flights_hourly.yaml", "flights_scoring.yaml", "tests.yaml"] {
        fs::remove_file(world.folder.join(file)).unwrap();
    }
    fs::write(world.folder.join("nightly.yaml"), DEFINITIONS).unwrap();
    world.edit("sources.yaml", |text| {
        // Its other entities are of views that are gone.
        let (before, rest) = text.split_once("entities:\n").unwrap();
        format!("{before}sources:\n{}", rest.split_once("\nsources:\n").unwrap().1)
    });
    world.edit("tidegate.yaml", |text| text.replace("2013-03-09T12:00:00-05:00", "2013-04-02T00:00:00-04:00"));
    world.quietly("apply --yes");
    world.quietly("backfill nightly --from 2013-03-13 --to 2013-03-27");
    world
}

#[tokio::main(flavor = "current_thread")]
async fn spoil(file: &Path, query: &str) {
    let ctx = SessionContext::new();
    ctx.register_parquet("good", file.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    let bad = ctx.sql(query).await.unwrap();
    let written = file.with_extension("bad");
    bad.write_parquet(written.to_str().unwrap(), DataFrameWriteOptions::new().with_single_file_output(true), None)
        .await
        .unwrap();
    fs::rename(written, file).unwrap();
}

fn page(checks: &[String], found: &[Verdicts]) -> String {
    let mut page = String::from(
        "# Which check catches which fault\n\n<!-- Generated by a test, do not edit: UPDATE_DOCS=1 cargo test --workspace \
         --features tidegate/failpoints --test scenarios what_a_supplier -->\n\nA day of departures (27 March 2013, of the \
         example's data) is spoiled in several ways, after two weeks of good days. The checks are those of\n\
         `tests/scenarios/data_faults.yaml`; those *of every view* need not be written. A good day passes them all.\nRows that come twice stop \
         the run at once: what compares with earlier days is not asked any more.\n\n| check |",
    );
    for (_, name, _) in FAULTS {
        let _ = write!(page, " {name} |");
    }
    page.push_str("\n|---|");
    page.push_str(&"---|".repeat(FAULTS.len()));
    for check in checks {
        let _ = write!(page, "\n| {check} |");
        for verdicts in found {
            let verdict = verdicts.iter().find(|(name, _)| name == check).map(|(_, verdict)| verdict.as_str());
            page.push_str(match verdict {
                Some("failed") => " **caught** |",
                Some("passed") => " |",
                _ => " not asked |",
            });
        }
    }
    page.push('\n');
    page
}

#[expect(clippy::disallowed_methods, reason = "UPDATE_DOCS is for this test alone and no setting")]
fn compare_page(wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/data-faults.md");
    if std::env::var("UPDATE_DOCS").is_ok() {
        fs::write(path, wanted).unwrap();
    } else {
        assert_eq!(
            fs::read_to_string(path).unwrap(),
            wanted,
            "UPDATE_DOCS=1 with this test renews docs/data-faults.md"
        );
    }
}
