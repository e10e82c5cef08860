//! Copies of tables, for drills: below `{lake}/_drills/{id}/`, laid out as a lake of its own.
//!
//! A copy has the versions of the original, since its log is the original's from the newest checkpoint on; of the data it has
//! what the copied version names, and nothing older. No reader, janitor or rebuild looks below `_drills`.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tidegate_registry::ids::{DrillId, ViewId};

use super::Lake;

/// Where copies lie, relative to the lake.
const FOLDER: &str = "_drills";
/// Objects copied at the same time.
const COPIES_AHEAD: usize = 16;

/// What a copy of a table takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Data files.
    pub(crate) files: u64,
    /// Their size in bytes.
    pub(crate) bytes: u64,
}

impl Lake {
    /// The lake below this one that belongs to a drill.
    ///
    /// # Errors
    /// When a path cannot be made of it.
    pub(crate) fn shadow(&self, id: DrillId) -> Result<Self> {
        let mut root = self.root.clone();
        root.set_path(&format!("{}{FOLDER}/{id}/", self.root.path()));
        if root.scheme() == "file" {
            let folder = root.to_file_path().map_err(|()| anyhow::anyhow!("`{root}` is not a local folder"))?;
            std::fs::create_dir_all(&folder).with_context(|| format!("creating `{}`", folder.display()))?;
        }
        Ok(Self::with_store(root, Arc::clone(&self.store), &self.project))
    }

    /// What a table's copy at `version` would take.
    ///
    /// # Errors
    /// When that version cannot be read.
    pub(crate) async fn copy_cost(&self, view: &ViewId, version: u64) -> Result<Copied> {
        let files = Self::files_of(&self.load(view, Some(version)).await?)?;
        Ok(Copied { files: files.len() as u64, bytes: files.iter().map(|file| file.size).sum() })
    }

    /// Copies a table as of `version` into the lake `to`, which has the same store: by the store itself, or in a folder by
    /// linking, so that no byte travels.
    ///
    /// # Errors
    /// When that version cannot be read, a file of it is gone, or the store refuses.
    pub(crate) async fn copy_table(&self, to: &Self, view: &ViewId, version: u64) -> Result<Copied> {
        let files = Self::files_of(&self.load(view, Some(version)).await?)?;
        let log = self.log_listing(view).await?;
        let from = log.checkpoints.range(..=version).next_back().copied();
        let mut paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        paths.extend(log.entries.range(from.unwrap_or(0)..=version).map(|(_, entry)| entry.path.clone()));
        let beside = log.beside.iter().filter(|(of, object)| match from {
            Some(from) => *of == from && object.path.ends_with(".checkpoint.parquet"),
            // Nothing that we wrote: perhaps what others did.
            None => *of <= version,
        });
        paths.extend(beside.map(|(_, object)| object.path.clone()));
        let doing = || format!("copying the table of `{view}`");
        if self.root.scheme() == "file" {
            let (from, to) = (self.local_table(view)?, to.local_table(view)?);
            let link = move || paths.iter().try_for_each(|path| link(&from.join(path), &to.join(path)));
            tokio::task::spawn_blocking(link).await.context("waiting for the disk")?.with_context(doing)?;
        } else {
            let (from, to) = (self.table_prefix(view), to.table_prefix(view));
            let below = |prefix: &Path, path: &str| path.split('/').fold(prefix.clone(), Path::join);
            let pairs: Vec<(Path, Path)> = paths.iter().map(|path| (below(&from, path), below(&to, path))).collect();
            let copies = stream::iter(pairs).map(|(from, to)| {
                let store = Arc::clone(&self.store);
                async move { store.copy(&from, &to).await.with_context(|| format!("copying `{from}`")) }
            });
            copies.buffer_unordered(COPIES_AHEAD).try_collect::<()>().await.with_context(doing)?;
        }
        Ok(Copied { files: files.len() as u64, bytes: files.iter().map(|file| file.size).sum() })
    }

    /// The drills whose copies lie in this lake.
    ///
    /// # Errors
    /// When the store cannot list.
    pub(crate) async fn shadows(&self) -> Result<Vec<DrillId>> {
        let doing = "looking for what drills left in the lake";
        let names: Vec<String> = if let Some(folder) = self.shadow_folder() {
            let read = move || -> std::io::Result<Vec<String>> {
                let entries = match std::fs::read_dir(folder) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                    entries => entries?,
                };
                entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
            };
            tokio::task::spawn_blocking(read).await.context("waiting for the disk")?.context(doing)?
        } else {
            let listed = self.store.list_with_delimiter(Some(&self.path_in_store(FOLDER))).await.context(doing)?;
            listed.common_prefixes.iter().filter_map(|prefix| prefix.filename().map(ToOwned::to_owned)).collect()
        };
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Deletes the copies of a drill; harmless when there are none.
    ///
    /// # Errors
    /// When the store cannot list or delete.
    pub(crate) async fn remove_shadow(&self, id: DrillId) -> Result<()> {
        let doing = || format!("removing the copy of drill {id} from the lake");
        if let Some(folder) = self.shadow_folder() {
            let remove = move || match std::fs::remove_dir_all(folder.join(id.to_string())) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => {
                    // Only an empty one goes, and nobody misses it.
                    drop(std::fs::remove_dir(&folder));
                    Ok(())
                }
            };
            return tokio::task::spawn_blocking(remove).await.context("waiting for the disk")?.with_context(doing);
        }
        let prefix = self.path_in_store(&format!("{FOLDER}/{id}"));
        let found = self.store.list(Some(&prefix)).map_ok(|object| object.location).boxed();
        let mut outcomes = self.store.delete_stream(found);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error).with_context(doing),
            }
        }
        Ok(())
    }

    /// The folder of a lake on this machine.
    fn shadow_folder(&self) -> Option<PathBuf> {
        let local = self.root.to_file_path().ok().filter(|_| self.root.scheme() == "file")?;
        Some(local.join(FOLDER))
    }
}

/// A second name for a file that nobody changes; a copy where the file system has no second names.
fn link(from: &FsPath, to: &FsPath) -> std::io::Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::AlreadyExists) => {
            Err(error)
        }
        Err(_) => std::fs::copy(from, to).map(drop),
    }
}
