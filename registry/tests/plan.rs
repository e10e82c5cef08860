//! What an apply would change: from two texts of a project to a plan, or to a refusal.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::collections::BTreeSet;
use std::path::Path;

use tidegate_registry::definitions::{LoadOptions, Loaded, load_files};
use tidegate_registry::diagnostics::{RenderStyle, render};
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::Project;
use tidegate_registry::plan::{Plan, diff};

const VIEWS: &str = r#"
owners:
  - {name: delays, primary: ana@example.com}
entities:
  - name: carrier
    keys: [{name: carrier, type: string}]
sources:
  - {name: flights, parquet: data/flights.parquet}
feature_views:
  - name: daily
    entity: carrier
    owner: delays
    description: Departures of a day
    sql: |
      -- one day
      SELECT carrier, count(*) AS flights
      FROM flights WHERE time_hour >= $interval_start
      GROUP BY carrier
    features: [{name: flights, type: bigint, description: departures, default: 0}]
  - name: weekly
    entity: carrier
    owner: delays
    description: Departures of a week
    sql: SELECT carrier, sum(flights) AS flights_7d FROM history.daily GROUP BY carrier
    features: [{name: flights_7d, type: bigint, description: departures}]
dags:
  - name: flights_daily
    owner: delays
    schedule: {cron: "@daily", timezone: America/New_York, start: 2013-01-08}
    views: [weekly, daily]
"#;

fn read(views: &str) -> Loaded {
    let files: [(&str, &[u8]); 2] = [("tidegate.yaml", b"project: flights\n"), ("views.yaml", views.as_bytes())];
    load_files(Path::new("/flights"), &files, &LoadOptions::default())
}

fn project(views: &str) -> Project {
    let loaded = read(views);
    let text = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
    loaded.project.unwrap_or_else(|| panic!("{text}"))
}

/// What the registry would give back.
fn stored(project: &Project) -> Project {
    serde_json::from_str(&serde_json::to_string(project).unwrap()).unwrap()
}

fn published(ids: &[&str]) -> BTreeSet<ViewId> {
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

fn edit(from: &str, to: &str) -> String {
    assert!(VIEWS.contains(from), "`{from}` is not in the project");
    VIEWS.replace(from, to)
}

fn plan(views: &str, ids: &[&str]) -> Plan {
    diff(7, &stored(&project(VIEWS)), &project(views), &published(ids)).unwrap_or_else(|refused| panic!("{refused:?}"))
}

fn refusal(views: &str, ids: &[&str]) -> String {
    let loaded = read(views);
    let refused = diff(7, &stored(&project(VIEWS)), loaded.project.as_ref().unwrap(), &published(ids)).unwrap_err();
    render(&refused, &loaded.files, RenderStyle::default())
}

#[test]
fn the_stored_fingerprint_of_a_view_that_reads_another_is_kept() {
    // Changing this line would recompute every such view of every user: add an algorithm instead.
    assert_eq!(project(VIEWS).views[1].fingerprint, "v1:b525f0d24e097f4d090f4a7108dd6948");
}

const ALL: [&str; 2] = ["daily@v1", "weekly@v1"];

#[test]
fn a_first_apply_adds_everything_and_a_second_nothing() {
    let wanted = project(VIEWS);
    let empty = Project::empty(wanted.name.clone());
    let first = diff(0, &empty, &wanted, &BTreeSet::new()).unwrap();
    insta::assert_json_snapshot!(first);
    assert_eq!(first.changes().upserts.len(), 6);
    let second = diff(1, &stored(&wanted), &wanted, &published(&ALL)).unwrap();
    assert!(second.is_empty(), "{second:?}");
}

#[test]
fn metadata_of_published_views_may_change_and_recomputes_nothing() {
    let changed = edit("-- one day\n", "-- a whole day\n")
        .replace("Departures of a week", "Departures of seven days")
        .replace("default: 0", "default: 1")
        .replace(
            "GROUP BY carrier\n    features: [{name: flights_7d",
            "GROUP   BY\tcarrier\n    features: [{name: flights_7d",
        );
    let plan = plan(&changed, &ALL);
    assert!(plan.changed.iter().all(|change| !change.logic), "{plan:?}");
    assert_eq!(plan.affected, []);
    insta::assert_json_snapshot!(plan);
}

#[test]
fn a_change_of_logic_names_the_descendants() {
    let plan = plan(&edit("count(*)", "count(1)"), &[]);
    assert_eq!(plan.changed.iter().map(|c| (c.name.as_str(), c.logic)).collect::<Vec<_>>(), [("daily@v1", true)]);
    assert_eq!(plan.affected, [ALL[1].parse().unwrap()]);
    assert_eq!(plan.changes().upserts.len(), 2, "the descendant's fingerprint is stored, too");
}

#[test]
fn a_change_of_logic_of_a_published_version_is_refused_once() {
    insta::assert_snapshot!(refusal(&edit("count(*)", "count(1)"), &ALL));
}

#[test]
fn a_published_view_below_a_changed_one_is_protected() {
    insta::assert_snapshot!(refusal(&edit("count(*)", "count(1)"), &["weekly@v1"]));
}

#[test]
fn a_changed_key_of_the_entity_is_a_change_of_logic() {
    let text = refusal(&edit("keys: [{name: carrier, type: string}]", "keys: [{name: carrier, type: bigint}]"), &ALL);
    assert!(text.contains("entity.keys"), "{text}");
}

#[test]
fn a_new_version_moves_bare_names_and_the_plan_says_so() {
    let second = edit(
        "  - name: weekly\n",
        "  - name: daily\n    version: 2\n    entity: carrier\n    owner: delays\n    description: Without cancelled ones\n    \
         sql: SELECT carrier, 1 AS flights FROM flights\n    features: [{name: flights, type: bigint, description: x}]\n  \
         - name: weekly\n",
    );
    insta::assert_snapshot!(refusal(&second, &ALL));
    // While nothing is published it may move.
    let moved = plan(&second, &["daily@v1"]);
    let reads: Vec<_> = moved.changed.iter().flat_map(|c| &c.fields).map(|f| f.field.as_str()).collect();
    assert_eq!(reads, ["reads.history.daily.table.history", "views"]);
    // Taking the advice is no change of logic.
    for fixed in ["history.\"daily@v1\"", "history.\"daily@v1\" AS daily", "history.\"daily@v1\" daily"] {
        let plan = plan(&second.replace("history.daily", fixed), &ALL);
        let changed: Vec<_> = plan.changed.iter().map(|c| (c.name.as_str(), c.logic)).collect();
        assert_eq!(changed, [("weekly@v1", false), ("flights_daily", false)], "{fixed}");
    }
    let other = second.replace("history.daily", "history.\"daily@v2\"");
    assert!(refusal(&other, &ALL).contains("published-logic-change"));
}

#[test]
fn what_is_gone_is_removed() {
    let without = edit("    views: [weekly, daily]", "    views: [daily]");
    let start = without.find("  - name: weekly").unwrap();
    let end = without.find("dags:").unwrap();
    let plan = plan(&format!("{}{}", &without[..start], &without[end..]), &ALL);
    assert_eq!(plan.removed.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(), ["weekly@v1"]);
    assert_eq!(plan.changes().removals.len(), 1);
}

#[test]
fn what_a_revert_has_undone_is_known_when_it_comes_back() {
    let described = edit("Departures of a day", "Departures between two midnights");
    let (kept, reverted) = (stored(&project(VIEWS)), stored(&project(&described)));
    let brought = |current: &Project, wanted: &str| -> Vec<String> {
        let plan = diff(7, current, &project(wanted), &published(&[])).unwrap();
        plan.brings_back(current, &reverted, &kept).into_iter().map(|item| item.name).collect()
    };
    assert_eq!(brought(&kept, &described), ["daily@v1"]);
    // Beside something else, too; but not what was mended, and what the revert never touched.
    let both = described.replace("Departures of a week", "Departures of seven days");
    assert_eq!(brought(&kept, &both), ["daily@v1"]);
    assert_eq!(brought(&kept, &edit("Departures of a day", "Departures of one day")), [""; 0]);
    assert_eq!(brought(&kept, &edit("Departures of a week", "Departures of seven days")), [""; 0]);
    // What is there already is not brought back.
    assert_eq!(brought(&reverted, &both), [""; 0]);
    // A definition that the revert took away, or brought.
    let more = edit("dags:", "pools: [{name: slow, slots: 1}]\ndags:");
    let (fewer, many) = (stored(&project(VIEWS)), stored(&project(&more)));
    let names = |items: Vec<tidegate_registry::plan::Item>| items.into_iter().map(|item| item.name).collect::<Vec<_>>();
    let adds = diff(7, &fewer, &project(&more), &published(&[])).unwrap();
    assert_eq!(names(adds.brings_back(&fewer, &many, &fewer)), ["slow"]);
    let removes = diff(7, &many, &project(VIEWS), &published(&[])).unwrap();
    assert_eq!(names(removes.brings_back(&many, &fewer, &many)), ["slow"]);
}
