use super::*;
use datafusion::arrow::datatypes::{Field, Schema, TimeUnit};
use std::path::Path;
use tidegate_registry::definitions::{LoadOptions, load_files};
use tidegate_registry::diagnostics::{RenderStyle, SourceMap, render};

/// A view `v` of entity `carrier` with the given SQL (one line each), features and checks.
fn project(sql: &str, features: &str, checks: &str) -> String {
    let sql = sql.lines().map(|line| format!("      {line}\n")).collect::<String>();
    let features = features.lines().map(|line| format!("      - {{{line}, description: x}}\n")).collect::<String>();
    let checks = if checks.is_empty() { String::new() } else { format!("    checks:\n      - {checks}\n") };
    format!(
        "owners: [{{name: ana, primary: ana@example.com, backup: ben@example.com}}]\n\
         entities: [{{name: carrier, keys: [{{name: carrier, type: string}}]}}]\n\
         sources:\n\
         \x20 - {{name: flights, parquet: data/flights.parquet}}\n\
         \x20 - {{name: carriers, csv: data/carriers.csv}}\n\
         feature_views:\n\
         \x20 - name: v\n\
         \x20   version: 1\n\
         \x20   entity: carrier\n\
         \x20   owner: ana\n\
         \x20   description: x\n\
         \x20   sql: |\n{sql}\
         \x20   features:\n{features}{checks}\
         dags: [{{name: d, owner: ana, schedule: {{cron: \"@daily\", timezone: UTC, start: 2013-01-08}}, views: [v]}}]\n"
    )
}

fn schemas() -> SourceSchemas {
    let flights = Schema::new(vec![
        Field::new("carrier", DataType::Utf8View, true),
        Field::new("dep_delay", DataType::Float64, true),
        Field::new("distance", DataType::Int32, true),
        Field::new("time_hour", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("local_time", DataType::Timestamp(TimeUnit::Microsecond, None), true),
    ]);
    let carriers =
        Schema::new(vec![Field::new("carrier", DataType::Utf8, true), Field::new("name", DataType::Utf8, true)]);
    IndexMap::from([
        ("flights".parse().unwrap(), Ok(Arc::new(flights))),
        ("carriers".parse().unwrap(), Ok(Arc::new(carriers))),
    ])
}

async fn find(text: &str, schemas: &SourceSchemas) -> (Vec<Diagnostic>, SourceMap) {
    let files = [("tidegate.yaml", &b"project: flights\n"[..]), ("flights.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    assert_eq!(render(&loaded.diagnostics, &loaded.files, RenderStyle::default()), "", "{text}");
    (check_project(&loaded.project.unwrap(), schemas).await, loaded.files)
}

#[tokio::test]
async fn good_sql_has_no_findings() {
    let sql = "SELECT f.carrier, avg(dep_delay) AS delay, count(*) AS n, max(c.name) AS name,\n\
               max(time_hour) AS event_timestamp, array_agg(distance) AS distances, row_number() OVER () AS place\n\
               FROM flights f LEFT JOIN carriers c ON f.carrier = c.carrier\n\
               WHERE time_hour >= $interval_end - INTERVAL '7 days' AND time_hour < $interval_end\n\
               GROUP BY f.carrier";
    let features = "name: delay, type: double\nname: n, type: bigint\nname: name, type: string\n\
                    name: distances, type: array<integer>\nname: place, type: bigint";
    let check = "sql: {query: \"SELECT carrier FROM v WHERE n < 0 AND event_timestamp > $interval_end\"}";
    let (found, files) = find(&project(sql, features, check), &schemas()).await;
    assert_eq!(render(&found, &files, RenderStyle::default()), "");
    let check = "expression: {condition: delay < n OR event_timestamp = $interval_end, where: length(name) > 0}";
    let (found, files) = find(&project(sql, features, check), &schemas()).await;
    assert_eq!(render(&found, &files, RenderStyle::default()), "");
}

/// Name (its beginning is the expected id), SQL, features, checks.
const BAD: &[(&str, &str, &str, &str)] = &[
    (
        "unknown-column",
        "SELECT carrier,\n  avg(dep_dely) AS delay\nFROM flights GROUP BY carrier",
        "name: delay, type: double",
        "",
    ),
    ("unknown-column-in-table", "SELECT f.carrier, f.zzz AS x FROM flights f", "name: x, type: double", ""),
    (
        "unknown-column-in-check",
        "SELECT carrier, 1.0 AS x FROM carriers",
        "name: x, type: double",
        "sql: {query: SELECT y FROM v}",
    ),
    (
        "unknown-column-in-condition",
        "SELECT carrier, 1.0 AS delay FROM carriers",
        "name: delay, type: double",
        "expression: {condition: dely > 0}",
    ),
    (
        "unknown-function-in-condition",
        "SELECT carrier, 1.0 AS delay FROM carriers",
        "name: delay, type: double",
        "not_null: {columns: [delay], where: lenght(carrier) = 2}",
    ),
    (
        "sql-invalid-table-in-condition",
        "SELECT carrier, 1.0 AS delay FROM carriers",
        "name: delay, type: double",
        "expression: {condition: carrier IN (SELECT carrier FROM carriers)}",
    ),
    (
        "sql-invalid-condition",
        "SELECT carrier, 1.0 AS delay FROM carriers",
        "name: delay, type: double",
        "expression: {condition: delay + 1}",
    ),
    (
        "sql-invalid-condition-over-rows",
        "SELECT carrier, 1.0 AS delay FROM carriers",
        "name: delay, type: double",
        "expression: {condition: delay < max(delay)}",
    ),
    (
        "sql-invalid-condition-placeholder",
        "SELECT carrier, 1.0 AS delay FROM carriers",
        "name: delay, type: double",
        "expression: {condition: event_timestamp < $now}",
    ),
    (
        "ambiguous-column",
        "SELECT carrier, dep_delay AS x\nFROM flights JOIN carriers ON flights.carrier = carriers.carrier",
        "name: x, type: double",
        "",
    ),
    (
        "unknown-function",
        "SELECT carrier, avrg(dep_delay) AS x FROM flights GROUP BY carrier",
        "name: x, type: double",
        "",
    ),
    ("unknown-function-far", "SELECT carrier, dateadd_to_it(dep_delay) AS x FROM flights", "name: x, type: double", ""),
    ("volatile-function", "SELECT carrier, random() AS x FROM flights", "name: x, type: double", ""),
    (
        "volatile-function-now",
        "SELECT carrier, dep_delay AS x\nFROM flights\nWHERE time_hour < now()",
        "name: x, type: double",
        "",
    ),
    ("not-grouped", "SELECT carrier, dep_delay AS x\nFROM flights\nGROUP BY carrier", "name: x, type: double", ""),
    (
        "incompatible-types-argument",
        "SELECT carrier,\n       sum(carrier) AS x\nFROM flights GROUP BY carrier",
        "name: x, type: double",
        "",
    ),
    (
        "sql-invalid-nested",
        "SELECT carrier, max(sum(dep_delay)) AS x FROM flights GROUP BY carrier",
        "name: x, type: double",
        "",
    ),
    ("incompatible-types", "SELECT carrier, time_hour * dep_delay AS x FROM flights", "name: x, type: double", ""),
    ("incompatible-types-scalar", "SELECT carrier, round(carrier) AS x FROM flights", "name: x, type: double", ""),
    ("incompatible-types-plus", "SELECT carrier, carrier + local_time AS x FROM flights", "name: x, type: double", ""),
    (
        "sql-invalid-case",
        "SELECT carrier, CASE WHEN dep_delay > 1 THEN time_hour ELSE dep_delay END AS x FROM flights",
        "name: x, type: double",
        "",
    ),
    ("sql-invalid-where", "SELECT carrier, dep_delay AS x FROM flights WHERE dep_delay", "name: x, type: double", ""),
    (
        "sql-invalid-in",
        "SELECT carrier, dep_delay AS x FROM flights WHERE time_hour IN (true)",
        "name: x, type: double",
        "",
    ),
    ("unknown-column-order", "SELECT carrier, dep_delay AS x FROM flights ORDER BY zz", "name: x, type: double", ""),
    (
        "sql-invalid-union",
        "SELECT carrier, 1 AS x FROM flights\nUNION ALL\nSELECT carrier FROM carriers",
        "name: x, type: bigint",
        "",
    ),
    (
        "sql-invalid-twice",
        "SELECT f.carrier, c.carrier, 1.5 AS x FROM flights f, carriers c",
        "name: x, type: double",
        "",
    ),
    ("missing-entity-key", "SELECT carrier AS carier, dep_delay AS x FROM flights", "name: x, type: double", ""),
    ("missing-column", "SELECT carrier, dep_delay AS dellay FROM flights", "name: delay, type: double", ""),
    ("undeclared-column", "SELECT carrier, dep_delay AS x, distance FROM flights", "name: x, type: double", ""),
    (
        "undeclared-column-own",
        "SELECT carrier, dep_delay AS x, $interval_end AS interval_end FROM flights",
        "name: x, type: double",
        "",
    ),
    ("type-mismatch", "SELECT carrier,\n  count(*) AS x\nFROM flights GROUP BY carrier", "name: x, type: double", ""),
    (
        "type-mismatch-narrower",
        "SELECT carrier, avg(dep_delay) AS x FROM flights GROUP BY carrier",
        "name: x, type: integer",
        "",
    ),
    (
        "type-mismatch-zone",
        "SELECT carrier, max(local_time) AS x FROM flights GROUP BY carrier",
        "name: x, type: timestamp",
        "",
    ),
    ("type-mismatch-key", "SELECT distance AS carrier, dep_delay AS x FROM flights", "name: x, type: double", ""),
    (
        "type-mismatch-event-timestamp",
        "SELECT carrier, dep_delay AS x, local_time AS event_timestamp FROM flights",
        "name: x, type: double",
        "",
    ),
    (
        "type-mismatch-list",
        "SELECT carrier, array_agg(distance) AS x FROM flights GROUP BY carrier",
        "name: x, type: array<double>",
        "",
    ),
];

#[tokio::test]
async fn every_bad_query_is_told_where_it_is_and_what_to_do() {
    let mut catalogue = String::new();
    for (name, sql, features, checks) in BAD {
        let (found, files) = find(&project(sql, features, checks), &schemas()).await;
        let text = render(&found, &files, RenderStyle::default());
        assert!(found.iter().any(|diagnostic| name.starts_with(diagnostic.id)), "{name}:\n{text}");
        catalogue.push_str(&format!("## {name}\n{text}\n"));
    }
    insta::assert_snapshot!(catalogue);
}

#[tokio::test]
async fn an_unreadable_source_is_said_once() {
    let mut schemas = schemas();
    schemas.insert("flights".parse().unwrap(), Err("no file matches `data/flights.parquet`".to_owned()));
    let text = project("SELECT carrier, nothing AS x FROM flights", "name: x, type: double", "");
    let (found, files) = find(&text, &schemas).await;
    insta::assert_snapshot!(render(&found, &files, RenderStyle::default()));
}

/// Views read each other by what they declare: a mistake in one is not repeated in those that read it.
#[tokio::test]
async fn a_mistake_is_reported_where_it_is_and_not_downstream() {
    let reader = "\
\x20 - name: w
\x20   version: 1
\x20   entity: carrier
\x20   owner: ana
\x20   description: x
\x20   sql: |
\x20     SELECT v.carrier, v.delay AS later, h.interval_end AS event_timestamp
\x20     FROM v JOIN history.v AS h ON h.carrier = v.carrier JOIN \"v@v1\" AS o ON o.carrier = v.carrier
\x20   features: [{name: later, type: double, description: x}]
";
    let text = project("SELECT carrier, dep_dely AS delay FROM flights", "name: delay, type: double", "")
        .replace("dags:", &format!("{reader}dags:"))
        .replace("views: [v]", "views: [v, w]");
    let (found, _) = find(&text, &schemas()).await;
    let ids: Vec<_> = found.iter().map(|diagnostic| (diagnostic.id, diagnostic.origin.to_string())).collect();
    assert_eq!(ids, [("unknown-column", "flights.yaml:13:23".to_owned())]);
}

#[tokio::test]
async fn findings_come_in_declared_order_whatever_the_threads_do() {
    let views: String = (0..60)
        .map(|i| {
            format!(
                "  - {{name: v{i}, version: 1, entity: carrier, owner: ana, description: x, sql: \"SELECT carrier, no_{i} \
                 AS a FROM flights\", features: [{{name: a, type: double, description: x}}]}}\n"
            )
        })
        .collect();
    let names: Vec<_> = (0..60).map(|i| format!("v{i}")).collect();
    let good = "SELECT carrier, avg(dep_delay) AS x FROM flights GROUP BY carrier";
    let text = project(good, "name: x, type: double", "")
        .replace("dags:", &format!("{views}dags:"))
        .replace("views: [v]", &format!("views: [v, {}]", names.join(", ")));
    let (found, _) = find(&text, &schemas()).await;
    let titles: Vec<_> = found.iter().map(|diagnostic| diagnostic.title.clone()).collect();
    assert_eq!(titles, (0..60).map(|i| format!("there is no column `no_{i}`")).collect::<Vec<_>>());
}

#[tokio::test]
async fn checks_of_sources_name_times_that_are_there() {
    let text = project("SELECT carrier, 1.0 AS x FROM flights", "name: x, type: double", "").replace(
        "  - {name: flights, parquet: data/flights.parquet}\n",
        "  - name: flights
    parquet: data/flights.parquet
    event_time: time_hours
    checks:
      - freshness: {max_age: 1d, column: time_hour}
      - freshness: {max_age: 1d}
      - freshness: {max_age: 1d, column: carrier}
      - volume: {min: 1}
      - volume: {min: 1, of: files}\n",
    );
    let (found, files) = find(&text, &schemas()).await;
    insta::assert_snapshot!(render(&found, &files, RenderStyle::default()));
}

#[tokio::test]
async fn checks_name_columns_of_other_tables_that_are_there() {
    let checks = "referential: {columns: [carrier], references: {source: carriers}}
      - referential: {columns: [carrier], references: {source: carriers, columns: [carier]}}
      - reconciliation: {of: sum, column: x, equals: {source: flights, column: dep_delay, where: distance > 0}}
      - reconciliation: {of: sum, column: x, equals: {source: flights, column: delay}}
      - reconciliation: {of: sum, column: x, equals: {source: carriers, column: name}}
      - reconciliation: {of: count, equals: {source: carriers, where: nam = 'x'}}";
    let text = project("SELECT carrier, 1.0 AS x FROM flights", "name: x, type: double", checks);
    let (found, files) = find(&text, &schemas()).await;
    insta::assert_snapshot!(render(&found, &files, RenderStyle::default()));
}
