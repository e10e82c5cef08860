//! The files of a project: on disk, or in memory for tests and for the example that travels in the binary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::settings::redact;
use super::yaml::FILE_BYTES_MAX;
use crate::diagnostics::{Diagnostic, Origin, SourceMap, ids};

/// The file that makes a folder a project.
pub const PROJECT_FILE: &str = "tidegate.yaml";

/// Where the files of a project are.
pub(super) enum Files<'a> {
    Disk { root: &'a Path, real: PathBuf },
    Memory(BTreeMap<&'a str, &'a [u8]>),
}

impl<'a> Files<'a> {
    pub(super) fn disk(root: &'a Path) -> Self {
        Self::Disk { root, real: root.canonicalize().unwrap_or_else(|_| root.to_owned()) }
    }

    pub(super) fn memory(files: &[(&'a str, &'a [u8])]) -> Self {
        Self::Memory(files.iter().copied().collect())
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        match self {
            Self::Disk { root, .. } => root.join(path).is_file(),
            Self::Memory(files) => files.contains_key(path),
        }
    }

    /// Every definition file, sorted: `*.yaml` and `*.yml` below the project, except [`PROJECT_FILE`], hidden files and
    /// folders, and folders that are projects of their own.
    pub(super) fn definitions(&self, out: &mut Vec<Diagnostic>) -> Vec<String> {
        let mut found = Vec::new();
        match self {
            Self::Disk { root, real } => walk(root, real, "", &mut found, out),
            Self::Memory(files) => {
                found.extend(files.keys().filter(|path| is_definition(path)).map(|p| (*p).to_owned()));
            }
        }
        found.sort();
        found
    }

    /// Whether a link on the way of a relative path leads out of the project. False for what does not exist (yet).
    pub(super) fn leads_outside(&self, path: &str) -> bool {
        let Self::Disk { root, real } = self else { return false };
        // The part before a pattern is what can be looked up.
        let fixed = path.split('/').take_while(|part| !part.contains('*')).collect::<Vec<_>>().join("/");
        root.join(fixed).canonicalize().is_ok_and(|target| !target.starts_with(real))
    }

    /// The text of a file, without a byte order mark; `sources` keeps a copy to show, without passwords. `from` is the
    /// place that names the file.
    pub(super) fn read(
        &self,
        path: &str,
        from: Option<&Origin>,
        sources: &mut SourceMap,
        out: &mut Vec<Diagnostic>,
    ) -> Option<String> {
        let place = || from.cloned().unwrap_or_else(|| Origin::file(path));
        let bytes = match self.bytes(path) {
            Ok(bytes) => bytes,
            Err(reason) => {
                out.push(
                    Diagnostic::error(ids::FILE_UNREADABLE, place(), format!("cannot read `{path}`"))
                        .with_label(reason)
                        .with_help(
                            "paths are relative to the folder of `tidegate.yaml`; check spelling and permissions",
                        ),
                );
                return None;
            }
        };
        if bytes.len() > FILE_BYTES_MAX {
            out.push(
                Diagnostic::error(ids::FILE_TOO_LARGE, place(), format!("`{path}` is larger than 8 MiB"))
                    .with_help("split it into several files"),
            );
            return None;
        }
        match String::from_utf8(bytes) {
            Ok(text) => {
                let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
                sources.insert(path, redact(&text));
                Some(text)
            }
            Err(error) => {
                let bytes = error.as_bytes();
                if !is_utf16(bytes) {
                    sources.insert(path, redact(&String::from_utf8_lossy(bytes)));
                }
                out.push(not_utf8(path, bytes, error.utf8_error().valid_up_to()));
                None
            }
        }
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::Memory(files) => files.get(path).map(|bytes| bytes.to_vec()).ok_or_else(|| "no such file".to_owned()),
            Self::Disk { root, .. } => {
                let full = root.join(path);
                let metadata = full.metadata().map_err(|error| short(&error))?;
                if !metadata.is_file() {
                    return Err("not a file".to_owned());
                }
                if metadata.len() > FILE_BYTES_MAX as u64 {
                    // Not read: the caller reports by length.
                    return Ok(vec![0; FILE_BYTES_MAX + 1]);
                }
                std::fs::read(full).map_err(|error| short(&error))
            }
        }
    }
}

/// The error in our words: the operating system's differ between platforms.
fn short(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "no permission".to_owned(),
        _ => error.to_string().to_lowercase(),
    }
}

fn is_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF])
}

fn not_utf8(path: &str, bytes: &[u8], valid: usize) -> Diagnostic {
    let before = &bytes[..valid];
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    let column =
        1 + before.iter().rev().take_while(|byte| **byte != b'\n').filter(|byte| (**byte & 0xC0) != 0x80).count();
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let help =
        if is_utf16(bytes) { "this looks like UTF-16: save the file as UTF-8" } else { "save the file as UTF-8" };
    let origin = Origin::new(path, number(line), number(column), 1);
    Diagnostic::error(ids::NOT_UTF8, origin, "the file is not UTF-8 text")
        .with_label(format!("byte 0x{:02X}", bytes[valid]))
        .with_help(help)
}

fn is_definition(path: &str) -> bool {
    path != PROJECT_FILE && (path.ends_with(".yaml") || path.ends_with(".yml"))
}

fn walk(root: &Path, real: &Path, folder: &str, found: &mut Vec<String>, out: &mut Vec<Diagnostic>) {
    let entries = match std::fs::read_dir(root.join(folder)) {
        Ok(entries) => entries,
        Err(error) => {
            out.push(
                Diagnostic::error(ids::FILE_UNREADABLE, Origin::file(folder), format!("cannot read folder `{folder}`"))
                    .with_label(short(&error)),
            );
            return;
        }
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if name.starts_with('.') {
            continue;
        }
        let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        if kind.is_symlink() {
            let Ok(target) = entry.path().canonicalize() else { continue };
            match target.strip_prefix(real) {
                // What a link inside the project points at is found at its own place, unless that is hidden: Kubernetes
                // mounts a ConfigMap as links into a folder `..data`.
                Ok(inside) if is_hidden(inside) && is_definition(&path) && target.is_file() => found.push(path),
                Ok(_) => {}
                Err(_) if is_definition(&path) || target.is_dir() => {
                    out.push(link_leaves(&path, is_definition(&path)));
                }
                Err(_) => {}
            }
        } else if kind.is_dir() {
            if !root.join(&path).join(PROJECT_FILE).exists() {
                walk(root, real, &path, found, out);
            }
        } else if is_definition(&path) {
            found.push(path);
        }
    }
}

/// Whether a file below the project lies in a folder that [`walk`] does not enter.
fn is_hidden(path: &Path) -> bool {
    path.iter().any(|part| part.to_string_lossy().starts_with('.'))
}

fn link_leaves(path: &str, is_file: bool) -> Diagnostic {
    let title = format!("`{path}` is a link that leaves the project");
    let diagnostic = if is_file {
        Diagnostic::error(ids::LINK_LEAVES_PROJECT, Origin::file(path), title)
    } else {
        Diagnostic::warning(ids::LINK_LEAVES_PROJECT, Origin::file(path), title)
    };
    diagnostic.with_help("definitions are read from inside the project only: copy them, or remove the link")
}
