//! The native half of the Python package `tidegate`: a project opened inside of the Python process.
//!
//! It is thin on purpose. What is computed and read is what the command computes and reads, by the same functions; this crate
//! lends them to Python: Arrow streams in and out without copies (`datasets`), features for a model that is asked now
//! (`online`), errors as exceptions (`errors`). What is comfortable about the package (names, defaults, types) is written
//! in Python, in `python/tidegate/`.
//!
//! While something is computed or waited for, Python's lock is released; Ctrl-C stops it.

mod client;
mod datasets;
mod errors;
mod online;
mod values;

use pyo3::prelude::*;

/// What `tidegate/__init__.py` is built on; not to be used by others.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::client::Client;

    /// The version of Tidegate that this is.
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
