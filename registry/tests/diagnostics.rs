//! Diagnostics as data and on paper.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tidegate_registry::diagnostics::{Diagnostic, Origin, RenderStyle, SourceMap, ids, render, summary, to_json};

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn every_id_is_explained_on_the_page_and_the_page_explains_no_other() {
    let page = fs::read_to_string(workspace().join("docs/diagnostics.md")).unwrap();
    let explained: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("### `")).filter_map(|line| line.strip_suffix('`')).collect();
    assert_eq!(explained, ids::ALL);
    assert_eq!(explained.iter().collect::<BTreeSet<_>>().len(), explained.len(), "an id is explained twice");
}

#[test]
fn every_diagnostic_in_the_code_has_an_id_of_the_list() {
    let mut files = Vec::new();
    for part in ["registry/src", "registry/store/src", "scheduler/src", "worker/src", "cli/src"] {
        sources(&workspace().join(part), &mut files);
    }
    assert!(files.len() > 20, "only {} files were found", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for call in ["Diagnostic::error(\"", "Diagnostic::warning(\""] {
            for rest in text.split(call).skip(1) {
                let id = rest.split('"').next().unwrap();
                assert!(ids::ALL.contains(&id), "{}: `{id}` is not in `diagnostics::ids`", file.display());
            }
        }
    }
}

fn sources(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.path().is_dir() {
            sources(&entry.path(), files);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            files.push(entry.path());
        }
    }
}

#[test]
fn json_has_stable_keys_and_null_for_what_is_not_known() {
    let found = [
        Diagnostic::error(ids::DUPLICATE_NAME, Origin::new("b.yaml", 2, 11, 4), "defined twice")
            .with_label("again here")
            .with_related(Origin::new("a.yaml", 7, 3, 4), "first here")
            .with_help("rename one"),
        Diagnostic::warning(ids::EMPTY_FILE, Origin::file("c.yaml"), "the file is empty"),
    ];
    insta::assert_json_snapshot!(to_json(&found));
    assert_eq!(summary(&found), "1 error, 1 warning in 2 files");
}

#[test]
fn places_outside_of_the_text_are_still_named() {
    let mut files = SourceMap::default();
    files.insert("a.yaml", "name: x\r\nower: y\r\n");
    let at =
        |line, column, length| Diagnostic::error(ids::BAD_NAME, Origin::new("a.yaml", line, column, length), "bad");
    for (line, column, length) in [(1, 1, 400), (1, 90, 1), (3, 1, 1), (400, 1, 1), (2, 4_000_000_000, u32::MAX)] {
        let text = render(&[at(line, column, length)], &files, RenderStyle::default());
        assert!(text.contains("a.yaml:"), "{text}");
    }
    let elsewhere = Diagnostic::error(ids::BAD_NAME, Origin::new("z.yaml", 3, 4, 1), "bad").with_label("here");
    assert!(render(&[elsewhere], &files, RenderStyle::default()).contains("z.yaml:3:4"));
}

#[test]
fn plain_characters_serve_terminals_without_unicode() {
    let mut files = SourceMap::default();
    files.insert("a.yaml", "name: x\n");
    let found = [Diagnostic::error(ids::BAD_NAME, Origin::new("a.yaml", 1, 7, 1), "bad").with_label("here")];
    let text = render(&found, &files, RenderStyle { unicode: false, ..RenderStyle::default() });
    assert!(text.is_ascii(), "{text}");
    let colored = render(&found, &files, RenderStyle { color: true, ..RenderStyle::default() });
    assert!(colored.contains("\u{1b}["));
    assert!(!text.contains('\u{1b}'));
}
