//! Paths and URIs that authors write: a project reads below its own folder, and elsewhere only where
//! `allowed_roots` says so.

use super::Context;
use crate::definitions::read::At;
use crate::diagnostics::{Diagnostic, Origin, ids};

/// Whether a source may lie at `place`.
pub(super) fn source_place(place: &At<String>, context: &Context<'_>, out: &mut Vec<Diagnostic>) -> bool {
    let text = place.value.as_str();
    if !is_plain(text, &place.origin, out) {
        return false;
    }
    let folders = text.trim_end_matches('/').rsplit_once('/').map_or("", |(folders, _)| folders);
    if folders.contains('*') {
        out.push(
            Diagnostic::error(ids::BAD_PATH, place.origin.clone(), "`*` stands in a folder's name")
                .with_help("use `*` only in the last part, as in `data/flights-*.parquet`"),
        );
        return false;
    }
    if is_elsewhere(text) {
        return is_allowed(text, context.allowed_roots, &place.origin, out);
    }
    let help = "copy the file into the project, or name its full path and allow it under `allowed_roots:`";
    stays_inside(place, context, help, out)
}

/// Whether `place` is a relative path that stays inside the project, links included.
pub(super) fn project_file(place: &At<String>, context: &Context<'_>, out: &mut Vec<Diagnostic>) -> bool {
    if !is_plain(&place.value, &place.origin, out) {
        return false;
    }
    if is_elsewhere(&place.value) {
        out.push(
            Diagnostic::error(
                ids::PATH_LEAVES_PROJECT,
                place.origin.clone(),
                format!("`{}` is not below the project", place.value),
            )
            .with_label("must be relative to the project's folder")
            .with_help("move the file into the project"),
        );
        return false;
    }
    stays_inside(place, context, "move the file into the project", out)
}

fn is_plain(text: &str, origin: &Origin, out: &mut Vec<Diagnostic>) -> bool {
    let reason = if text.is_empty() {
        "a path is empty"
    } else if text.contains('\\') {
        "a path uses `\\`"
    } else if text.chars().any(char::is_control) {
        "a path holds a control character"
    } else {
        return true;
    };
    out.push(
        Diagnostic::error(ids::BAD_PATH, origin.clone(), reason)
            .with_help("write folders with `/`, as in `data/flights.parquet`"),
    );
    false
}

/// An absolute path or a URI.
fn is_elsewhere(text: &str) -> bool {
    let drive = text.as_bytes().get(1) == Some(&b':') && text.as_bytes()[0].is_ascii_alphabetic();
    text.starts_with('/') || text.starts_with('~') || drive || text.contains("://")
}

/// The parts of a path as a store would see them, which decodes percent signs.
fn decoded(text: &str) -> String {
    text.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/")
}

fn has_parent_part(text: &str) -> bool {
    decoded(text).split('/').any(|part| part == "..")
}

/// A `file:` URI and a path are the same place.
fn comparable(text: &str) -> &str {
    text.strip_prefix("file://").unwrap_or(text)
}

fn is_allowed(text: &str, roots: &[String], origin: &Origin, out: &mut Vec<Diagnostic>) -> bool {
    let inside = |root: &String| {
        let root = comparable(root).trim_end_matches('/');
        comparable(text).strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if !has_parent_part(text) && roots.iter().any(inside) {
        return true;
    }
    let label = if roots.is_empty() {
        "`allowed_roots` is empty".to_owned()
    } else {
        format!("outside of `{}`", roots.join("`, `"))
    };
    out.push(
        Diagnostic::error(ids::PATH_NOT_ALLOWED, origin.clone(), "a place outside the project is not allowed")
            .with_label(label)
            .with_help("add its folder to `allowed_roots:` in `tidegate.yaml`, or use a path below the project"),
    );
    false
}

fn stays_inside(place: &At<String>, context: &Context<'_>, help: &str, out: &mut Vec<Diagnostic>) -> bool {
    let mut depth = 0_i32;
    for part in decoded(&place.value).split('/') {
        depth += match part {
            "" | "." => 0,
            ".." => -1,
            _ => 1,
        };
        if depth < 0 {
            break;
        }
    }
    let reason = if depth < 0 {
        "`..` goes above the project's folder"
    } else if context.files.leads_outside(&place.value) {
        "a link on the way leads outside"
    } else {
        return true;
    };
    out.push(
        Diagnostic::error(
            ids::PATH_LEAVES_PROJECT,
            place.origin.clone(),
            format!("`{}` leaves the project", place.value),
        )
        .with_label(reason)
        .with_help(help),
    );
    false
}
