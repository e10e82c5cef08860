//! The fingerprint of a view changes with its logic and with nothing else, and outlives new versions of the program.

use std::path::Path;

use proptest::prelude::*;
use tidegate_registry::definitions::{LoadOptions, load_files};

/// A view whose parts can be exchanged.
fn project(sql: &str, description: &str, extra: &str, features: &str) -> String {
    let indented: String = sql.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "owners:\n  - {{name: delays, primary: a@example.com}}\n  - {{name: others, primary: b@example.com}}\n\
         entities:\n  - {{name: carrier, keys: [{{name: carrier, type: string}}]}}\n\
         sources:\n  - {{name: flights, parquet: data/f.parquet}}\n\
         feature_views:\n  - name: delays_7d\n    entity: carrier\n    description: {description}\n    sql: |\n{indented}{extra}\
         \n    features: {features}\n"
    )
}

const FEATURES: &str = "[{name: delay, type: double, description: minutes}, {name: n, type: bigint, description: x}]";
const OWNER: &str = "    owner: delays\n";
const SQL: &str =
    "SELECT carrier, avg(dep_delay) AS delay, count(*) AS n FROM flights WHERE origin = 'JFK' GROUP BY carrier";

fn fingerprint(views: &str) -> String {
    let files: [(&str, &[u8]); 2] = [("tidegate.yaml", b"project: flights\n"), ("views.yaml", views.as_bytes())];
    let loaded = load_files(Path::new("/flights"), &files, &LoadOptions::default());
    let project = loaded.project.unwrap_or_else(|| panic!("{:?}\n{views}", loaded.diagnostics));
    project.views[0].fingerprint.clone()
}

#[test]
fn the_stored_fingerprint_of_a_known_view_is_kept() {
    // Changing this line would recompute every view of every user: add an algorithm instead.
    assert_eq!(fingerprint(&project(SQL, "Delays", OWNER, FEATURES)), "v1:949ad650450a8e8dd4c06b08ea71d754");
}

#[test]
fn logic_changes_it() {
    let base = fingerprint(&project(SQL, "Delays", OWNER, FEATURES));
    let changed = [
        project(&SQL.replace("'JFK'", "'jfk'"), "Delays", OWNER, FEATURES),
        project(&SQL.replace("count(*)", "count(1)"), "Delays", OWNER, FEATURES),
        project(&SQL.replace("delay,", "\"Delay\","), "Delays", OWNER, FEATURES),
        project(SQL, "Delays", OWNER, &FEATURES.replace("bigint", "integer")),
        project(SQL, "Delays", &format!("{OWNER}    output: partial\n    ttl: 7d\n"), FEATURES),
        project(SQL, "Delays", &format!("{OWNER}    output: partial\n    ttl: 8d\n"), FEATURES),
        project(SQL, "Delays", OWNER, FEATURES).replace("name: carrier, type: string", "name: carrier, type: bigint"),
    ];
    let mut seen: Vec<String> = changed.iter().map(|views| fingerprint(views)).collect();
    seen.push(base);
    seen.sort();
    let all = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), all, "two of them are equal");
}

#[test]
fn metadata_does_not_change_it() {
    let base = fingerprint(&project(SQL, "Delays", OWNER, FEATURES));
    let extra = "    owner: others\n    tags: [a]\n    checks: [{row_count: {min: 1}}]\n    freshness: {max_age: 30h}\n    \
                 online: {keep: 3}\n    serving_delay: 1h\n";
    let features = "[{name: n, type: bigint, description: y, default: 1}, {name: delay, type: double, description: z}]";
    assert_eq!(fingerprint(&project(SQL, "Something else", extra, features)), base);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is put between two tokens, as long as SQL does not see it.
    #[test]
    fn comments_white_space_and_case_of_keywords_do_not_change_it(
        gaps in prop::collection::vec(prop_oneof![
            Just(" "), Just("   "), Just("\n"), Just(" -- why\n"), Just(" /* not\n now */ "), Just("\n\n"),
        ], 20),
        upper in any::<bool>(),
    ) {
        let sql = if upper { SQL.replace("SELECT", "select").replace("GROUP", "Group") } else { SQL.to_owned() };
        let words: Vec<&str> = sql.split(' ').collect();
        let mut text = String::new();
        for (at, word) in words.iter().enumerate() {
            if at > 0 {
                text.push_str(gaps[at % gaps.len()]);
            }
            text.push_str(word);
        }
        prop_assert_eq!(
            fingerprint(&project(&text, "Delays", OWNER, FEATURES)),
            fingerprint(&project(SQL, "Delays", OWNER, FEATURES))
        );
    }
}
