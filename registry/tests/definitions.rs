//! Projects in, findings out: the catalogue of bad inputs, and what a good project means.

mod catalogue;

use std::path::Path;

use tidegate_registry::definitions::{LoadOptions, load, load_files};
use tidegate_registry::diagnostics::{RenderStyle, render};
use tidegate_registry::drill::Scenario;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{Consumer, Project, RecipeStep, Trigger};
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

#[test]
fn what_a_webhook_is_told_beside_a_run_is_passed_on_as_written() {
    let notify = "notify:\n  webhooks: []\nprofiles:\n  night:\n    notify:\n      allowed_hosts: [jobs.example.com]\n      \
                  webhooks: [{name: scoring_job, url: \"https://jobs.example.com/ready\", secret_env: S}]\n";
    let told = "    on_published:\n      - webhook: scoring_job\n        payload: {model: \"${MODEL}\", tries: 3, \
                share: 0.5, only: [UA, AA], never: null, text: \"3\"}\n";
    let (settings, text) = (format!("{SETTINGS}{notify}"), format!("{GOOD}{told}"));
    let files = [("tidegate.yaml", settings.as_bytes()), ("flights.yaml", text.as_bytes())];
    // Without the profile nobody is told, and the definitions are right all the same.
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "");
    let project = loaded.project.unwrap();
    let told = &project.dags[0].on_published;
    assert_eq!((told.len(), told[0].webhook.as_str()), (1, "scoring_job"));
    let payload = r#"{"model":"${MODEL}","tries":3,"share":0.5,"only":["UA","AA"],"never":null,"text":"3"}"#;
    assert_eq!(serde_json::to_string(&told[0].payload).unwrap(), payload, "nothing of the environment");
    let many: String = (0..2_000).map(|n| format!("f{n}: abcdef, ")).collect();
    let text = text.replace("tries: 3", &format!("{many}tries: 3"));
    let files = [("tidegate.yaml", settings.as_bytes()), ("flights.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    let text = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
    assert!(text.contains("larger than 16 KiB"), "{text}");
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
    on: [marked_bad, incident, marked_bad]
    cooldown: 10m
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
    assert_eq!((&*recipe.on, recipe.cooldown_secs), (&[Trigger::MarkedBad, Trigger::Incident][..], 600));
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
    assert_eq!((&kept.recipes[0].steps, &kept.recipes[0].on), (&recipe.steps, &recipe.on));
    assert_eq!(kept.restore_policy[0].hours, rule.hours);
    assert_eq!(kept.drills[0].scenarios, drill.scenarios);
}

const SERVICES: &str = r#"
  - name: by_route
    entity: route
    owner: delays
    description: One view by a longer key
    sql: SELECT carrier, origin, count(*) AS flights FROM flights GROUP BY carrier, origin
    features: [{name: flights, type: bigint, description: departures, tags: [pii]}]
"#;
const CONSUMERS: &str = r#"
feature_services:
  - name: delay_model
    owner: delays
    description: What the model of delays is trained on
    features: ["*_delays.avg_*", by_route]
datasets:
  - name: scores
    entity: route
    owner: delays
    description: Whom to score every morning
    features: [delay_model]
    sql: |
      SELECT carrier, origin
      FROM flights -- of all time
      GROUP BY carrier, origin;
    freshness: {max_age: 30h}
  - name: carriers
    entity: carrier
    owner: delays
    description: All carriers
    features: [carrier_delays]
    names: short
consumers:
  - name: delay_predictor
    owner: delays
    description: Predicts
    version: "7"
    uses: [delay_model, carrier_delays@v1.flights_7d]
  - {name: board, kind: report, owner: delays, description: Shows, uses: [scores]}
"#;

#[test]
fn services_name_features_and_datasets_join_them() {
    let good = GOOD.replace("    keys: [{name: carrier, type: string}]", "    keys: [{name: carrier, type: string}]\n  - name: route\n    keys: [{name: carrier, type: string}, {name: origin, type: string}]");
    let good = good.replace("dags:", &format!("{}dags:", SERVICES.trim_start_matches('\n')));
    let text = format!("{good}{CONSUMERS}")
        .replace("views: [carrier_delays]", "views: [carrier_delays, by_route, scores, carriers]");
    let files = [("tidegate.yaml", SETTINGS.as_bytes()), ("flights.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "");
    let project = loaded.project.unwrap();
    let service = &project.feature_services[0];
    assert_eq!(
        service.features.names().collect::<Vec<_>>(),
        ["carrier_delays@v1.avg_dep_delay_7d", "by_route@v1.flights"]
    );
    let using = |view: &str| {
        let view = [view.parse().unwrap()];
        project.consumers_of(&view).map(Consumer::label).collect::<Vec<_>>()
    };
    assert_eq!(using("by_route@v1"), ["delay_predictor (7)"]);
    assert_eq!(using("scores@v1"), ["board"]);
    assert_eq!(project.consumers[0].services.len(), 1);
    assert_eq!(project.consumers[0].features.len(), 3);

    let view = |id: &str| &project.views[&id.parse::<ViewId>().unwrap()];
    let (scores, carriers) = (view("scores@v1"), view("carriers@v1"));
    insta::assert_snapshot!("dataset_of_a_query", scores.sql.text);
    insta::assert_snapshot!("dataset_of_all_entities", carriers.sql.text);
    let place = text.lines().nth(scores.sql.origin.line as usize).unwrap();
    assert_eq!(place.trim(), "SELECT carrier, origin", "line n of the text must be that of the file");
    assert_eq!(scores.features[1].tags, ["pii"], "what is sensitive stays so");
    let reads: Vec<_> = scores.view_reads().map(ToString::to_string).collect();
    assert_eq!(reads, ["carrier_delays@v1", "by_route@v1"]);
    assert!(!project.dags[0].in_order);
    assert_eq!(project.dags[0].views.len(), 4);
}

#[test]
fn the_example_project_has_no_findings() {
    let root = here().join("../../dags");
    let loaded = load(&root, &LoadOptions::default());
    assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "");
    assert!(loaded.project.unwrap().views.len() >= 6);
}
