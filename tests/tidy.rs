//! House rules that no lint knows: licences of what is linked, and what the sources may not contain.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Licences that ask for no more than a notice.
const PERMISSIVE: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Exceptions, each with its reason.
const EXCEPTIONS: [(&str, &str); 1] =
    // file-level copyleft that asks nothing of programs which use it unchanged; delta-rs cannot be built without it
    [("option-ext", "MPL-2.0")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

#[test]
fn every_dependency_has_a_permissive_licence_and_comes_from_the_registry() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "cargo metadata lists the dependencies");
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or("none");
        if !is_permissive(licence) && !EXCEPTIONS.contains(&(name, licence)) {
            wrong.push(format!("{name}: {licence}"));
        }
        // our own packages have no source
        let source = package["source"].as_str().unwrap_or(CRATES_IO);
        if source != CRATES_IO {
            wrong.push(format!("{name} comes from {source}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether an SPDX expression can be satisfied by permissive licences alone.
fn is_permissive(expression: &str) -> bool {
    let expression = expression.replace(" / ", " OR ").replace('/', " OR ");
    // AND binds tighter, but parentheses only ever group ORs below an AND in what is published.
    let parts = split_top(&expression, " AND ");
    if parts.len() > 1 {
        return parts.iter().all(|part| is_permissive(part));
    }
    let alternatives = split_top(&expression, " OR ");
    if alternatives.len() > 1 {
        return alternatives.iter().any(|part| is_permissive(part));
    }
    let bare = expression.trim();
    match bare.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => is_permissive(inner),
        None => PERMISSIVE.contains(&bare),
    }
}

/// Splits at `separator` outside of parentheses.
fn split_top(text: &str, separator: &str) -> Vec<String> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= start && text[at..].starts_with(separator) => {
                parts.push(text[start..at].to_owned());
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(text[start..].to_owned());
    parts
}

#[test]
fn expressions_are_read_as_spdx_says() {
    for good in
        ["MIT", "MIT OR GPL-3.0", "(MIT OR Apache-2.0) AND Unicode-3.0", "MIT/Apache-2.0", "ISC AND (GPL-3.0 OR ISC)"]
    {
        assert!(is_permissive(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "none", "(GPL-3.0 OR LGPL-2.1) AND MIT"] {
        assert!(!is_permissive(bad), "{bad}");
    }
}

#[test]
fn nothing_unfinished_is_in_the_sources() {
    let unfinished = ["todo!(", "unimplemented!(", "FIXME", "#[ignore"];
    let mut found = Vec::new();
    for path in sources(&root()) {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            if unfinished.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn crates_know_only_what_they_may() {
    let forbidden: [(&str, &[&str]); 6] = [
        ("registry", &["sqlx", "datafusion", "deltalake", "reqwest", "axum", "tidegate-"]),
        ("registry/store", &["datafusion", "deltalake", "reqwest", "axum", "tidegate-worker", "tidegate-scheduler"]),
        ("quality", &["sqlx", "datafusion", "deltalake", "object_store", "tokio", "reqwest", "axum", "tidegate-store"]),
        ("scheduler", &["sqlx", "datafusion", "deltalake", "reqwest", "axum", "tidegate-worker", "tidegate-store"]),
        (
            "notify",
            &[
                "sqlx",
                "datafusion",
                "deltalake",
                "object_store",
                "tidegate-worker",
                "tidegate-scheduler",
                "tidegate-store",
            ],
        ),
        ("worker", &["reqwest", "axum", "tidegate-scheduler", "tidegate-store"]),
    ];
    for (folder, names) in forbidden {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for name in names {
            let line = dependencies.lines().find(|line| line.starts_with(name));
            assert!(line.is_none(), "`{folder}` may not know `{name}`: {line:?}");
        }
    }
}

/// The lines of a table of tab-separated texts in `tests/faults`, comments left out.
fn table(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("tests/faults").join(name)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn every_fault_of_the_catalogue_names_tests_that_exist() {
    let rows = &table("catalogue.tsv")[1..];
    let numbers: Vec<String> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!(numbers, (1..=72).map(|number| format!("F{number}")).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for row in rows {
        let [number, what, expected, tests, why_not] = &row[..] else { panic!("not five columns: {row:?}") };
        if what.is_empty() || expected.is_empty() || (tests.is_empty() && why_not.is_empty()) {
            wrong.push(format!("{number}: it needs tests, or a reason why there are none"));
        }
        for test in tests.split("; ").filter(|test| !test.is_empty()) {
            let (path, name) = test.split_once("::").unwrap_or((test, ""));
            let text = text_of(&root().join(path));
            // Some tests are rows of a table that a macro makes functions of.
            let forms = ["\"", "Object(", "Write(", "Online {", "Registry(", "1 on"].map(|of| format!(" {name}: {of}"));
            let is_there = |form: &String| text.contains(form);
            if name.is_empty() || !(is_there(&format!("fn {name}(")) || forms.iter().any(is_there)) {
                wrong.push(format!("{number}: there is no test `{test}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `docs/faults.md`, from the catalogue and from what tests noted when they passed.
#[test]
fn the_page_of_faults_is_what_tests_say() {
    let mut page = std::fs::read_to_string(root().join("tests/faults/page.md")).unwrap();
    let mut seen = String::from("| fault | parts | what was done | what was seen |\n|---|---|---|---|\n");
    for row in table("seen.tsv") {
        let [fault, parts, done, what] = &row[..] else { panic!("not four columns: {row:?}") };
        seen.push_str(&format!("| {fault} | {parts} | {done} | {what} |\n"));
    }
    let mut catalogue = String::from("| | what goes wrong | what is expected | tests |\n|---|---|---|---|\n");
    for row in &table("catalogue.tsv")[1..] {
        let [number, what, expected, tests, why_not] = &row[..] else { panic!("not five columns: {row:?}") };
        let tests = tests.split("; ").filter(|test| !test.is_empty()).map(|test| format!("`{test}`"));
        let mut shown: Vec<String> = tests.collect();
        if !why_not.is_empty() {
            shown.push(format!("*not tested:* {why_not}"));
        }
        catalogue.push_str(&format!("| {number} | {what} | {expected} | {} |\n", shown.join("<br>")));
    }
    page = page.replace("{seen}\n", &seen).replace("{catalogue}\n", &catalogue);
    let path = root().join("docs/faults.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == page, "docs/faults.md is old: UPDATE_DOCS=1 cargo test -p tidegate-registry --test tidy renews it");
}

/// The text of a file, or of all Rust files below a folder.
fn text_of(path: &Path) -> String {
    if path.is_file() {
        return std::fs::read_to_string(path).unwrap();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries
        .filter(|entry| entry.is_dir() || entry.extension().is_some_and(|end| end == "rs"))
        .map(|e| text_of(&e))
        .collect()
}

fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> =
        ["registry", "scheduler", "worker", "cli", "tests", "benches"].iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}
