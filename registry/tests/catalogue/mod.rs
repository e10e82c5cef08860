//! Walks a folder of bad projects: each subfolder holds the files that differ from a good base. Also used by the crates
//! that find more by planning the SQL, with a folder of their own.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be laid out should stop the test")]

use std::fs;
use std::path::{Path, PathBuf};

/// One bad project, laid out in a folder of its own.
pub(crate) struct Case {
    /// The subfolder's name: the id that it shows first, with what is special about it.
    pub(crate) name: String,
    /// Where the project is; removed with the case.
    pub(crate) folder: tempfile::TempDir,
}

/// Every case below `cases`, laid over `base`, by name.
pub(crate) fn cases(base: &Path, cases: &Path) -> Vec<Case> {
    let mut found: Vec<PathBuf> = fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
        .into_iter()
        .filter(|path| path.is_dir())
        .map(|path| {
            let folder = tempfile::tempdir().unwrap();
            copy(base, folder.path());
            copy(&path, folder.path());
            Case { name: path.file_name().unwrap().to_str().unwrap().to_owned(), folder }
        })
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
