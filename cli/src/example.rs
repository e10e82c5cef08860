//! The example project, as it travels in the binary.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// Path and content of every file, by path.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/example.rs"));

/// Writes the example project into `folder`, which is made if need be.
///
/// # Errors
/// When a file cannot be written.
pub fn write_to(folder: &Path) -> anyhow::Result<()> {
    for (name, content) in FILES {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, content))
            .with_context(|| format!("writing `{}`", path.display()))?;
    }
    Ok(())
}

/// The content of one of its files, when it has it.
pub fn file(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, content)| *content)
}
