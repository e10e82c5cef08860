//! Errors as Python's exceptions, by what the caller can do about them.

use pyo3::prelude::*;
use tidegate::error::{Exit, exit_of, hint, is_missing, is_unavailable, story};

/// As they are defined in python/tidegate/_errors.py.
mod python {
    pyo3::import_exception!(tidegate._errors, WrongRequest);
    pyo3::import_exception!(tidegate._errors, NotFound);
    pyo3::import_exception!(tidegate._errors, Unavailable);
    pyo3::import_exception!(tidegate._errors, Failed);
}

/// The exception for `error`.
pub(crate) fn raise(error: &anyhow::Error) -> PyErr {
    let told = (story(error).trim_end().to_owned(), hint(error).map(|hint| in_python(&hint)));
    if is_missing(error) {
        python::NotFound::new_err(told)
    } else if is_unavailable(error) {
        python::Unavailable::new_err(told)
    } else if exit_of(error) == Exit::Wrong {
        python::WrongRequest::new_err(told)
    } else {
        python::Failed::new_err(told)
    }
}

/// The client was carried into another process, where none of its threads are.
pub(crate) fn forked() -> PyErr {
    python::Failed::new_err(("this client was opened by the process that this one was forked from", Some(AFTER_A_FORK)))
}

/// A client is opened in a process that was forked from one where another one is open.
pub(crate) fn unsafe_here() -> PyErr {
    python::Failed::new_err((
        "a client was open in the process that this one was forked from: what its threads held there is held here for ever",
        Some(AFTER_A_FORK),
    ))
}

const AFTER_A_FORK: &str = "open clients only in the processes that use them, after they have begun; a process that forks \
                            closes its own before, or starts others by `spawn` or `forkserver`";

/// The client has been closed.
pub(crate) fn closed() -> PyErr {
    python::WrongRequest::new_err(("this client is closed", Some("open another one")))
}

/// Hints speak of options of the command; the same are arguments here: `--known-at TIME` is `known_at=`.
fn in_python(hint: &str) -> String {
    let mut parts: Vec<String> = hint.split('`').map(str::to_owned).collect();
    for quoted in parts.iter_mut().skip(1).step_by(2) {
        if let Some(option) = quoted.strip_prefix("--") {
            let name = option.split([' ', '=']).next().unwrap_or_default();
            *quoted = format!("{}=", name.replace('-', "_"));
        }
    }
    parts.join("`")
}
