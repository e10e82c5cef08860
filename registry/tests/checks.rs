//! The page about checks: every kind is on it, with an example that is accepted.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::Value;
use tidegate_registry::definitions::{LoadOptions, json_schema, load_files};
use tidegate_registry::diagnostics::{RenderStyle, render};

/// Each kind with an example, of the view on the page.
const EXAMPLES: &[(&str, &str)] = &[
    ("not_null", "{columns: [flights_7d, avg_dep_delay_7d]}"),
    ("unique", "{columns: [tailnum]}"),
    ("range", "{column: avg_dep_delay_7d, min: -60, max: 600, severity: warn}"),
    ("accepted_values", "{column: alliance, values: [oneworld, SkyTeam, Star Alliance]}"),
    ("regex", "{column: tailnum, pattern: '^N[0-9]{1,5}[A-Z]{0,2}$', tolerate: {ratio: 0.01}}"),
    ("format", "{column: contact, is: email}"),
    ("length", "{column: tailnum, min: 2, max: 6}"),
    ("event_time", "{max_age: 7d, min_age: 0s}"),
    ("expression", "{condition: avg_dep_delay_7d <= worst_dep_delay_7d, where: flights_7d > 0}"),
    ("null_rate", "{column: avg_dep_delay_7d, max: 0.05}"),
    ("distinct_count", "{column: alliance, min: 2, max: 4}"),
    ("mean", "{column: avg_dep_delay_7d, min: -10, max: 60}"),
    ("stddev", "{column: avg_dep_delay_7d, max: 100}"),
    ("sum", "{column: flights_7d, min: 1}"),
    ("true_ratio", "{column: is_low_cost, max: 0.6}"),
    ("quantile", "{column: avg_dep_delay_7d, rank: 0.95, max: 120}"),
    ("anomaly", "{of: mean, column: avg_dep_delay_7d, last: 30, same: weekday}"),
    ("monotonic", "{of: sum, column: flights_7d, direction: up}"),
    ("drift", "{column: alliance, measure: psi, max: 0.2, last: 7}"),
    ("referential", "{columns: [carrier], references: {source: airlines, columns: [code]}}"),
    ("reconciliation", "{of: sum, column: flights_7d, equals: {source: flights, of: count}, within: {ratio: 0.01}}"),
    ("row_count", "{min: 5, max_change: 0.5, same: weekday}"),
    ("sql", "{query: SELECT carrier FROM carrier_delays WHERE flights_7d < 0}"),
];

/// Each kind of check of a source with an example.
const EXAMPLES_OF_SOURCES: &[(&str, &str)] = &[
    ("freshness", "{max_age: 2d}"),
    ("volume", "{min: 100, max_change: 0.5}"),
    ("schema", "{added: warn, removed: block, changed: block}"),
];

/// The pieces of YAML on the page.
fn examples() -> impl Iterator<Item = &'static str> {
    let page = include_str!("../../docs/checks.md");
    page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap())
}

/// A project whose view and whose source have these checks.
fn project(checks: &str, of_source: &str) -> String {
    let features = examples().find(|example| example.starts_with("features:")).unwrap();
    let features: String = features.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "owners: [{{name: ana, primary: ana@example.com}}]
entities: [{{name: carrier, keys: [{{name: carrier, type: string}}]}}]
sources:
  - name: flights
    parquet: data/flights.parquet
    event_time: time_hour
{of_source}  - {{name: airlines, csv: data/airlines.csv}}
feature_views:
  - name: carrier_delays
    entity: carrier
    owner: ana
    description: x
    sql: SELECT * FROM flights
{features}    checks:
{checks}dags: [{{name: daily, owner: ana, schedule: {{cron: '@daily', start: 2013-01-08}}, views: [carrier_delays]}}]
"
    )
}

/// What is wrong with the project.
fn findings(checks: &str, of_source: &str) -> String {
    let text = project(checks, of_source);
    let files = [("tidegate.yaml", &b"project: flights\n"[..]), ("views.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    render(&loaded.diagnostics, &loaded.files, RenderStyle::default())
}

/// Every kind of `type_name` in declared order: key, description, description and properties of its fields.
fn kinds(type_name: &str) -> Vec<(String, String, Value)> {
    let schema = json_schema();
    let of = |name: &str| schema["$defs"][name].clone();
    let kinds = of(type_name)["oneOf"].as_array().unwrap().clone();
    let kind = |kind: &Value| {
        let (key, kind) = kind["properties"].as_object().unwrap().iter().next().unwrap();
        let fields = kind["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        (key.clone(), kind["description"].as_str().unwrap().to_owned(), of(fields))
    };
    kinds.iter().map(kind).collect()
}

fn catalogue() -> String {
    let of_views = chapter(EXAMPLES, "CheckFile", "##", "- ");
    let of_sources = chapter(EXAMPLES_OF_SOURCES, "SourceCheckFile", "###", "checks:\n  - ");
    format!("{of_views}{OF_SOURCES}{of_sources}\n")
}

const OF_SOURCES: &str = "
## Checks of sources

A source has checks of its own, under `checks:` in its definition. They are judged when a run has pinned what it reads and before it
computes anything: of a run with a failed one that blocks no view is computed, and nothing is published. Their verdicts stand with
those of every view that reads the source. What runs saw of their sources is recorded when they are published, and only
then; later ones compare with that.
";

fn chapter(examples: &[(&str, &str)], type_name: &str, depth: &str, before: &str) -> String {
    let mut page = String::new();
    for ((key, description, fields), (example, text)) in kinds(type_name).into_iter().zip(examples) {
        assert_eq!(key, *example, "examples stand in the order of the kinds");
        page += &format!(
            "\n{depth} {key}\n\n{description}\n\n```yaml\n{before}{key}: {text}\n```\n\n| key | meaning |\n|---|---|\n"
        );
        let required: Vec<&str> = fields["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        for (name, field) in fields["properties"].as_object().unwrap() {
            let needed = if required.contains(&name.as_str()) { " (required)" } else { "" };
            let meaning = field["description"].as_str().unwrap().replace('\n', " ");
            page += &format!("| `{name}`{needed} | {} |\n", meaning.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    page
}

#[test]
fn every_kind_of_check_has_an_example() {
    for (examples, type_name) in [(EXAMPLES, "CheckFile"), (EXAMPLES_OF_SOURCES, "SourceCheckFile")] {
        let kinds: Vec<String> = kinds(type_name).into_iter().map(|(key, ..)| key).collect();
        assert_eq!(examples.iter().map(|(key, _)| *key).collect::<Vec<_>>(), kinds);
    }
}

#[test]
fn every_example_is_accepted() {
    for (key, text) in EXAMPLES {
        assert_eq!(findings(&format!("      - {key}: {text}\n"), ""), "");
    }
    for example in examples().filter(|example| example.starts_with("- ")) {
        let checks: String = example.lines().map(|line| format!("      {line}\n")).collect();
        assert_eq!(findings(&checks, ""), "", "{example}");
    }
    for example in examples().filter(|example| example.starts_with("checks:")) {
        let of_source: String = example.lines().map(|line| format!("    {line}\n")).collect();
        assert_eq!(findings("      - sql: {query: SELECT 1}\n", &of_source), "", "{example}");
    }
}

const GENERATED: (&str, &str) = (
    "<!-- Generated from the types, do not edit: UPDATE_DOCS=1 cargo test -p tidegate-registry --test checks -->\n",
    "<!-- End of what is generated. -->\n",
);

#[test]
#[expect(clippy::disallowed_methods, reason = "UPDATE_DOCS is for this test alone and no setting")]
fn the_page_of_checks_is_generated_from_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/checks.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(GENERATED.0).unwrap();
    let (found, after) = rest.split_once(GENERATED.1).unwrap();
    let wanted = catalogue();
    if std::env::var("UPDATE_DOCS").is_ok() {
        std::fs::write(&path, [before, GENERATED.0, &wanted, GENERATED.1, after].concat()).unwrap();
    } else {
        assert_eq!(found, wanted, "docs/checks.md is older than the types: UPDATE_DOCS=1 with this test renews it");
    }
}
