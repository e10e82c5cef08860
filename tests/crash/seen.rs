//! What tests have seen, for `docs/faults.md`: each tells its line when all that it asserts has held.
//!
//! The lines are kept in `tests/faults/seen.tsv`. A test whose line is not there fails; with `UPDATE_DOCS=1` it puts it there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::place::Backend;

/// Notes that `fault` was done to a project on `backend` as `how` says, and that `what` came of it.
pub(crate) fn saw(fault: &str, backend: &Backend, how: &str, what: &str) {
    static FILE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/faults/seen.tsv");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let line = format!("{fault}\t{}\t{how}\t{what}", backend.parts());
    if text.lines().any(|known| known == line) {
        return;
    }
    #[expect(clippy::disallowed_methods, reason = "no setting of a project: how tests renew documents everywhere")]
    let update = std::env::var("UPDATE_DOCS").is_ok();
    assert!(update, "tests/faults/seen.tsv lacks this line, which UPDATE_DOCS=1 adds:\n{line}");
    // A case is told by all but what was seen.
    let case = line.rsplit_once('\t').unwrap().0;
    let mut lines: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    lines.retain(|known| known.rsplit_once('\t').is_none_or(|(other, _)| other != case));
    lines.insert(line);
    let number = |line: &String| line[1..].split('\t').next().unwrap().parse::<u32>().unwrap();
    let mut lines: Vec<String> = lines.into_iter().collect();
    lines.sort_by_key(number);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
}
