//! Reading files: what counts as a definition file, what leads outside, and what no input may do.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tidegate_registry::definitions::{LoadOptions, Loaded, json_schema, load, load_files};
use tidegate_registry::diagnostics::{RenderStyle, render};

const SETTINGS: &[u8] = b"project: flights\n";
const GOOD: &str = include_str!("base/base.yaml");

fn memory(files: &[(&str, &[u8])]) -> Loaded {
    let mut all = vec![("tidegate.yaml", SETTINGS)];
    all.extend(files);
    load_files(Path::new("/flights"), &all, &LoadOptions::default())
}

fn text(loaded: &Loaded) -> String {
    render(&loaded.diagnostics, &loaded.files, RenderStyle::default())
}

#[test]
fn hidden_folders_other_projects_and_links_inside_are_not_read_twice() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for sub in ["defs/deep", ".tidegate", "other", "data"] {
        fs::create_dir_all(root.join(sub)).unwrap();
    }
    fs::write(root.join("tidegate.yaml"), SETTINGS).unwrap();
    fs::write(root.join("defs/deep/base.yml"), GOOD).unwrap();
    fs::write(root.join(".tidegate/broken.yaml"), "[").unwrap();
    fs::write(root.join(".hidden.yaml"), "[").unwrap();
    fs::write(root.join("other/tidegate.yaml"), SETTINGS).unwrap();
    fs::write(root.join("other/broken.yaml"), "[").unwrap();
    fs::write(root.join("data/notes.txt"), "[").unwrap();
    std::os::unix::fs::symlink(root.join("defs"), root.join("again")).unwrap();
    let loaded = load(root, &LoadOptions::default());
    assert_eq!(text(&loaded), "");
    assert_eq!(loaded.project.unwrap().sources.len(), 2);
}

#[test]
fn a_mounted_config_map_is_read_through_its_links() {
    // As the kubelet lays it out, so that all files change at once: tidegate.yaml -> ..data/tidegate.yaml, ..data -> ..2026…
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("..2026_11_21")).unwrap();
    fs::write(root.join("..2026_11_21/tidegate.yaml"), SETTINGS).unwrap();
    fs::write(root.join("..2026_11_21/base.yaml"), GOOD).unwrap();
    std::os::unix::fs::symlink("..2026_11_21", root.join("..data")).unwrap();
    for name in ["tidegate.yaml", "base.yaml"] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), root.join(name)).unwrap();
    }
    let loaded = load(root, &LoadOptions::default());
    assert_eq!(text(&loaded), "");
    assert_eq!(loaded.project.unwrap().sources.len(), 2);
}

#[test]
fn links_that_leave_the_project_are_refused_wherever_they_are_met() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("tidegate.yaml"), SETTINGS).unwrap();
    fs::write(outside.path().join("secret.yaml"), "secret").unwrap();
    fs::write(outside.path().join("secret.sql"), "secret").unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret.yaml"), root.join("linked.yaml")).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.join("folder")).unwrap();
    fs::write(
        root.join("views.yaml"),
        format!(
            "{GOOD}  - {{name: far, csv: folder/far-*.csv}}\nfeature_views:\n  - name: delays\n    entity: carrier\n    \
             owner: delays\n    description: x\n    sql_file: folder/secret.sql\n    features: [{{name: a, type: bigint, \
             description: x}}]\ndags:\n  - {{name: d, owner: delays, schedule: {{cron: '@daily', start: 2013-01-01}}, views: [delays]}}\n"
        ),
    )
    .unwrap();
    let loaded = load(root, &LoadOptions::default());
    assert!(!text(&loaded).contains("secret\n"), "the content of a file outside was shown");
    insta::assert_snapshot!(text(&loaded));
}

#[test]
fn a_folder_without_a_project_says_how_to_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = load(folder.path(), &LoadOptions::default());
    assert!(loaded.settings.is_none() && loaded.project.is_none());
    assert_eq!(loaded.diagnostics.len(), 1);
    assert_eq!(loaded.diagnostics[0].id, "project-not-found");
}

#[test]
fn a_byte_order_mark_and_windows_lines_move_no_place() {
    let bad = GOOD.replace("type: string", "type: strnig");
    let windows = format!("\u{feff}{}", bad.replace('\n', "\r\n"));
    let place = |text: &str| {
        let loaded = memory(&[("a.yaml", text.as_bytes())]);
        let found = loaded.diagnostics.first().cloned().unwrap();
        (found.id, found.origin)
    };
    assert_eq!(place(&bad), place(&windows));
    assert_eq!(place(&bad).0, "unknown-word");
}

#[test]
fn sql_in_a_block_is_placed_on_every_line_however_it_is_indented() {
    for indicator in ["|", "|-", "|+", "|2-"] {
        for blank in [0, 1, 3] {
            let indent = if indicator.starts_with("|2") { 4 + 2 } else { 9 };
            let pad = " ".repeat(indent);
            let views = format!(
                "{GOOD}feature_views:\n  - name: v\n    entity: carrier\n    owner: delays\n    description: x\n    \
                 sql: {indicator}\n{}{pad}SELECT carrier, 1 AS a\n\n{pad}  FROM flights\n{pad} JOIN nowhere USING (carrier)\n    \
                 features: [{{name: a, type: bigint, description: x}}]\n",
                "\n".repeat(blank)
            );
            let loaded = memory(&[("a.yaml", views.as_bytes())]);
            let found = loaded.diagnostics.iter().find(|found| found.id == "unknown-table").unwrap();
            let line = views.lines().position(|line| line.contains("nowhere")).unwrap();
            let column = views.lines().nth(line).unwrap().find("nowhere").unwrap();
            assert_eq!(
                (found.origin.line as usize, found.origin.column as usize, found.origin.length),
                (line + 1, column + 1, 7),
                "{indicator} with {blank} blank lines\n{}",
                text(&loaded)
            );
        }
    }
}

#[test]
fn sql_on_one_line_is_read_in_any_notation_that_keeps_its_text() {
    let ids = |sql: &str| {
        let views = format!(
            "{GOOD}feature_views:\n  - name: v\n    entity: carrier\n    owner: delays\n    description: x\n    sql: {sql}\n    \
             features: [{{name: a, type: bigint, description: x}}]\n"
        );
        let loaded = memory(&[("a.yaml", views.as_bytes())]);
        loaded.diagnostics.iter().map(|found| found.id).filter(|id| id.starts_with("sql")).collect::<Vec<_>>()
    };
    assert!(ids("SELECT * FROM flights").is_empty());
    assert!(ids("'SELECT * FROM flights'").is_empty());
    assert!(ids("\"SELECT * FROM flights\"  # why").is_empty());
    assert_eq!(ids("\"\""), ["sql-syntax"]);
    assert_eq!(ids("'SELECT ''a'' FROM flights'"), ["sql-style"]);
    assert_eq!(ids("\"SELECT * FROM \\\"flights\\\"\""), ["sql-style"]);
    assert_eq!(ids("SELECT *\n      FROM flights"), ["sql-style"]);
}

#[test]
fn common_table_expressions_hide_tables_only_where_sql_says_so() {
    let reads = |sql: &str| {
        let views = format!(
            "{GOOD}feature_views:\n  - name: v\n    entity: carrier\n    owner: delays\n    description: x\n    sql: {sql}\n    \
             features: [{{name: a, type: bigint, description: x}}]\n"
        );
        let loaded = memory(&[("a.yaml", views.as_bytes())]);
        let project = loaded.project.as_ref().unwrap_or_else(|| panic!("{}", text(&loaded)));
        project.views[0].reads.iter().map(|read| read.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(reads("WITH flights AS (SELECT * FROM flights) SELECT * FROM flights"), ["flights"]);
    assert_eq!(reads("WITH a AS (SELECT * FROM weather), b AS (SELECT * FROM a) SELECT * FROM a, b"), ["weather"]);
    assert_eq!(
        reads("WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT * FROM r, FLIGHTS f"),
        ["flights"]
    );
    assert_eq!(
        reads("SELECT * FROM flights WHERE EXISTS (SELECT 1 FROM weather w WHERE w.a = flights.a)"),
        ["flights", "weather"]
    );
    assert_eq!(
        reads("SELECT (SELECT max(x) FROM weather) AS a FROM (VALUES (1)) AS t, unnest(ARRAY[1]) AS u"),
        ["weather"]
    );
}

#[test]
fn long_chains_and_deep_nesting_are_refused_or_read_but_never_crash() {
    let chain = |count: usize| format!("SELECT carrier, 1{} AS a FROM flights", " + 1".repeat(count));
    let nested =
        |count: usize| format!("SELECT carrier, {}1{} AS a FROM flights", "(".repeat(count), ")".repeat(count));
    let unions = |count: usize| {
        format!("SELECT carrier, 1 AS a FROM flights{}", " UNION ALL SELECT carrier, 1 FROM flights".repeat(count))
    };
    for sql in [chain(4_000), chain(9_000), chain(100_000), nested(5_000), unions(1_000), "NOT ".repeat(5_000)] {
        let views = format!(
            "{GOOD}feature_views:\n  - name: v\n    entity: carrier\n    owner: delays\n    description: x\n    sql: |\n      {sql}\n    \
             features: [{{name: a, type: bigint, description: x}}]\n"
        );
        let loaded = memory(&[("a.yaml", views.as_bytes())]);
        let errors = loaded.diagnostics.iter().filter(|found| found.id.starts_with("sql-")).count();
        assert_eq!(errors == 0, loaded.project.is_some());
    }
}

#[test]
fn a_thousand_views_in_fifty_files_are_one_project() {
    let files: Vec<(String, String)> = generated(50, 20);
    let borrowed: Vec<(&str, &[u8])> = files.iter().map(|(path, text)| (path.as_str(), text.as_bytes())).collect();
    let loaded = memory(&borrowed);
    assert_eq!(text(&loaded), "");
    assert_eq!(loaded.project.unwrap().views.len(), 1_000);
}

/// `files` files with `views` views each, every one of which reads the one before it.
fn generated(files: usize, views: usize) -> Vec<(String, String)> {
    let mut out = vec![("base.yaml".to_owned(), GOOD.to_owned())];
    for file in 0..files {
        let mut text = "feature_views:\n".to_owned();
        let mut names = Vec::new();
        for view in 0..views {
            let table = if view == 0 { "flights".to_owned() } else { format!("v_{file}_{}", view - 1) };
            text.push_str(&format!(
                "  - name: v_{file}_{view}\n    entity: carrier\n    owner: delays\n    description: View {view} of file {file}\n    \
                 sql: |\n      SELECT carrier, avg(dep_delay) AS delay, count(*) AS n\n      FROM {table}\n      \
                 WHERE time_hour >= $interval_end - INTERVAL '7 days'\n      GROUP BY carrier\n    features:\n      \
                 - {{name: delay, type: double, description: minutes, default: 0.0}}\n      \
                 - {{name: n, type: bigint, description: departures, default: 0}}\n    checks:\n      \
                 - not_null: {{columns: [n]}}\n      - row_count: {{min: 5}}\n    freshness: {{max_age: 30h}}\n"
            ));
            names.push(format!("v_{file}_{view}"));
        }
        text.push_str(&format!(
            "dags:\n  - name: dag_{file}\n    owner: delays\n    schedule: {{cron: '15 2 * * *', start: 2013-01-08}}\n    views: [{}]\n",
            names.join(", ")
        ));
        out.push((format!("views/{file}.yaml"), text));
    }
    out
}

#[test]
fn what_is_whole_can_be_checked_further_while_other_parts_are_broken() {
    let view = |name: &str, table: &str, more: &str| {
        format!(
            "  - name: {name}\n    entity: carrier\n    owner: delays\n    description: x\n    sql: SELECT * FROM {table}\n    \
             features: [{{name: a, type: bigint, description: x}}]\n{more}"
        )
    };
    let views = [
        view("good", "flights", ""),
        view("bad", "flights", "    ttl: 1d\n"),
        view("child", "bad", ""),
        view("grandchild", "child, good", ""),
        view("lost", "nowhere", ""),
        view("circle", "history.circle", ""),
        view("fine", "good", ""),
    ];
    let text = format!(
        "{GOOD}feature_views:\n{}dags:\n  - name: d\n    owner: delays\n    schedule: {{cron: '@daily', start: 2013-01-01}}\n    \
         views: [fine, good, bad, child, grandchild, lost, circle]\n",
        views.concat()
    );
    let loaded = memory(&[("a.yaml", text.as_bytes())]);
    assert!(loaded.project.is_none());
    let draft = loaded.draft.unwrap();
    assert_eq!(draft.views.keys().map(ToString::to_string).collect::<Vec<_>>(), ["good@v1", "fine@v1"]);
    assert_eq!(draft.dags[0].views.iter().map(ToString::to_string).collect::<Vec<_>>(), ["good@v1", "fine@v1"]);
}

#[test]
fn a_file_of_one_long_line_is_read_in_time() {
    let names: Vec<String> = (0..20_000).map(|number| format!("{{name: o{number}, primary: a@example.com}}")).collect();
    let text = format!("{{owners: [{}]}}", names.join(", "));
    let started = std::time::Instant::now();
    let loaded = memory(&[("a.yaml", text.as_bytes())]);
    assert_eq!(loaded.project.unwrap().owners.len(), 20_000);
    // Counting the line's characters at every value takes minutes.
    assert!(started.elapsed().as_secs() < 60);
}

#[test]
fn the_schema_for_editors_follows_the_declarations() {
    insta::assert_json_snapshot!(json_schema());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any bytes give a finding or nothing, and can be shown.
    #[test]
    fn no_bytes_make_the_loader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        text(&memory(&[("a.yaml", &bytes)]));
    }

    /// The same for texts that look like definitions: a good file with a piece cut out, doubled or replaced.
    #[test]
    fn no_edit_makes_the_loader_panic(from in 0..900_usize, length in 0..60_usize, piece in "[-:{}\\[\\]|>&*!'\"#\t\n a-z0-9é@$(),.]{0,12}", double in any::<bool>()) {
        let good = generated(1, 2).into_iter().nth(1).unwrap().1;
        let chars: Vec<char> = good.chars().collect();
        let from = from.min(chars.len());
        let to = (from + length).min(chars.len());
        let middle: String = if double { chars[from..to].iter().collect() } else { String::new() };
        let edited: String = chars[..from].iter().collect::<String>() + &middle + &piece + &middle + &chars[to..].iter().collect::<String>();
        let loaded = memory(&[("base.yaml", GOOD.as_bytes()), ("a.yaml", edited.as_bytes())]);
        text(&loaded);
        prop_assert_eq!(loaded.project.is_none(), loaded.diagnostics.iter().any(|found| found.level == tidegate_registry::diagnostics::Level::Error));
    }

    /// Whatever stands in the settings file.
    #[test]
    fn no_settings_make_the_loader_panic(value in "[ -~é]{0,30}", key in prop::sample::select(vec!["project", "registry", "lake", "online", "memory", "clock", "allowed_roots", "profiles", "rules"])) {
        let file = format!("project: flights\n{key}: {value}\n");
        let loaded = load_files(Path::new("/flights"), &[("tidegate.yaml", file.as_bytes())], &LoadOptions::default());
        text(&loaded);
    }
}
