//! Projects in, findings out: the catalogue of bad inputs, and what a good project means.

mod catalogue;

use std::path::Path;

use tidegate_registry::definitions::{LoadOptions, load, load_files};
use tidegate_registry::diagnostics::{RenderStyle, render};
use tidegate_registry::drill::Scenario;
use tidegate_registry::model::{Project, RecipeStep};
use tidegate_registry::restore::HoldPolicy;
use tidegate_registry::switches::Serve;

fn here() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

#[test]
fn every_bad_input_is_told_where_it_is_and_what_to_do() {
    let cases = catalogue::cases(&here().join("base"), &here().join("bad"));
    assert!(cases.len() >= 40, "only {} cases were found", cases.len());
    insta::with_settings!({ snapshot_path => "bad_snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        for case in &cases {
            let loaded = load(case.folder.path(), &LoadOptions::default());
            assert!(!loaded.diagnostics.is_empty(), "{}: nothing was found", case.name);
            let text = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
            insta::assert_snapshot!(case.name.as_str(), text);
            let first = loaded.diagnostics.iter().any(|diagnostic| case.name.starts_with(diagnostic.id));
            assert!(first || case.name.starts_with("several-"), "{}:\n{text}", case.name);
        }
    });
}

const SETTINGS: &str = "project: flights\nonline: sqlite://.tidegate/online.db\n";
const GOOD: &str = r#"# a good project
owners:
  - name: delays
    primary: ana@example.com
    backup: ben@example.com
entities:
  - name: carrier
    keys: [{name: carrier, type: string}]
sources:
  - name: flights
    parquet: data/flights.parquet
    event_time: time_hour
feature_views:
  - name: carrier_delays
    version: 1
    entity: carrier
    owner: delays
    description: Departure delays of each carrier over the last week
    sql: |
      SELECT carrier, avg(dep_delay) AS avg_dep_delay_7d, count(*) AS flights_7d
      FROM flights
      WHERE time_hour >= $interval_end - INTERVAL '7 days' AND time_hour < $interval_end
      GROUP BY carrier
    features:
      - {name: avg_dep_delay_7d, type: double, description: minutes, default: 0.0}
      - {name: flights_7d, type: bigint, description: scheduled departures, default: 0}
    checks:
      - not_null: {columns: [flights_7d]}
      - row_count: {min: 5, max_change: 0.5}
      - range: {column: avg_dep_delay_7d, min: -60, max: 600, severity: warn}
    online: {strategy: swap}
    freshness: {max_age: 30h}
dags:
  - name: flights_daily
    owner: delays
    schedule: {cron: "15 2 * * *", timezone: America/New_York, start: 2013-01-08, end: 2013-03-31, catchup: all}
    views: [carrier_delays]
    retries: {max: 3, backoff: 30s}
"#;

#[test]
fn a_good_project_has_no_findings() {
    let files = [("tidegate.yaml", SETTINGS.as_bytes()), ("flights.yaml", GOOD.as_bytes())];
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "");
    let project = loaded.project.unwrap();
    insta::assert_json_snapshot!("good_project", project);
}

const RECOVERY: &str = r#"
restore_policy:
  - name: by_day
    description: With somebody about
    match: {views: ["carrier_*"], owners: [delays]}
    actors: [ana, "oncall-*"]
    max_age: 7d
    hours: {from: "22:00", to: "06:30", timezone: Europe/Berlin}
    approval: required
recipes:
  - name: delays_look_wrong
    description: Delays drift after a deploy
    match: {checks: ["range(*)"]}
    steps:
      - disable: {feature: avg_dep_delay_7d, serve: default, percent: 2.5}
      - disable: {feature: flights_7d, serve: null}
      - require_approval: {by: [ben]}
      - restore: {to: last_good, cascade: with, while_held: stage_only}
      - hold: {}
      - validate: {sample: 100}
      - notify: {message: delays were taken back}
drills:
  - name: weekly
    match: {views: [carrier_delays]}
    schedule: {cron: "0 5 * * 0", timezone: Europe/Berlin}
    scenarios: [bad_deploy, online_store_lost]
"#;

#[test]
fn rules_recipes_and_drills_mean_views_and_say_what_is_done() {
    let text = format!("{GOOD}{RECOVERY}");
    let files = [("tidegate.yaml", SETTINGS.as_bytes()), ("flights.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "");
    let project = loaded.project.unwrap();
    let view = project.views.values().next().unwrap();
    let (rule, recipe) = (&project.restore_policy[0], &project.recipes[0]);
    assert!(rule.matching.means(view) && recipe.matching.means(view));
    let hours = rule.hours.unwrap();
    assert_eq!((rule.max_age_secs, rule.second_person), (Some(7 * 86_400), true));
    assert_eq!((hours.from_minutes, hours.to_minutes, hours.timezone.name()), (1_320, 390, "Europe/Berlin"));
    let while_held = HoldPolicy::StageOnly;
    let disable = |feature: &str, serve, below| RecipeStep::Disable { feature: feature.to_owned(), serve, below };
    assert_eq!(
        recipe.steps,
        [
            disable("avg_dep_delay_7d", Serve::Default, 250),
            disable("flights_7d", Serve::Null, 10_000),
            RecipeStep::RequireApproval { by: vec!["ben".to_owned()] },
            RecipeStep::Restore { cascade: true, while_held },
            RecipeStep::Hold { while_held: HoldPolicy::SkipRuns },
            RecipeStep::Validate { sample: Some(100) },
            RecipeStep::Notify { message: "delays were taken back".to_owned() },
        ]
    );
    let drill = &project.drills[0];
    assert!(drill.matching.means(view));
    assert_eq!((drill.cron.as_str(), drill.timezone.name()), ("0 5 * * 0", "Europe/Berlin"));
    assert_eq!(drill.scenarios, [Scenario::BadDeploy, Scenario::OnlineStoreLost]);
    // As the registry keeps it.
    let kept = serde_json::from_value::<Project>(serde_json::to_value(&project).unwrap()).unwrap();
    assert_eq!(kept.recipes[0].steps, recipe.steps);
    assert_eq!(kept.restore_policy[0].hours, rule.hours);
    assert_eq!(kept.drills[0].scenarios, drill.scenarios);
}

#[test]
fn the_example_project_has_no_findings() {
    let root = here().join("../../dags");
    let loaded = load(&root, &LoadOptions::default());
    assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "");
    assert!(loaded.project.unwrap().views.len() >= 6);
}
