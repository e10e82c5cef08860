//! The lake: one Delta table per view version, and the rules by which a run's rows become visible in it.
//!
//! Three things are done here that delta-rs leaves to its callers, each because of a failure that happens:
//!
//! * **Staging** ([`crate::stage`]) writes Parquet files inside the table's folder that no log entry names, so no reader sees
//!   them.
//! * **Committing** ([`Lake::commit`]) is a compare-and-swap on a loaded snapshot, decided by the table's `txn` mark and never by
//!   the error that came back: the answer to a commit that landed can be lost.
//! * **Overlays** ([`Lake::overlay`]) commit the same actions into memory, so that a later view of the run reads the table as it
//!   would be.
//!
//! Nothing here checkpoints or cleans a log inside a commit: history is what restores are made of.

pub(crate) mod care;
mod commit;
mod overlay;
mod shadow;
mod table;
mod target;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableBuilder};
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use tidegate_registry::ids::{RegistryId, RunId, ViewId};
use url::Url;

pub(crate) use commit::{COMPACTION, CompactionRequest};
pub use commit::{CommitError, CommitNote, CommitRequest, Committed, DecidedNote, Replaces, RestoreNote};
pub use table::TableSchema;
pub use target::TableChange;

use crate::objects::{Stores, probe};

/// Tables whose state is kept in memory.
const TABLES_SEEN_MAX: usize = 256;
/// How often the owner's mark is written or read before a store that gives neither is given up.
const OWNER_ATTEMPTS_MAX: u32 = 6;

/// The lake of one project: a folder, or a place in an object store.
#[derive(Debug, Clone)]
pub struct Lake {
    /// Where it is, ending in `/`.
    root: Url,
    /// Rooted at "/" of `root`'s scheme, as delta-rs wants it.
    store: Arc<dyn ObjectStore>,
    /// The project, part of every commit mark.
    project: String,
    /// Which of a view's tables it means.
    area: Area,
    /// The newest state seen of each table: logs only grow, so reading on from there is enough.
    seen: Arc<Mutex<HashMap<(Area, ViewId), DeltaTableState>>>,
}

/// A view has two tables, to which the same rules apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Area {
    /// What readers get.
    Features,
    /// Rows that were computed and set aside, as of the same publications.
    Quarantine,
}

impl Area {
    fn folder(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Quarantine => "quarantine",
        }
    }
}

/// Who writes to a lake: `_tidegate/owner.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OwnerMark {
    registry: RegistryId,
    project: String,
}

impl Lake {
    /// Opens the lake at `place`: a folder (created if missing) or a `file://` URL. For object stores there is
    /// [`Lake::open_in`].
    ///
    /// # Errors
    /// When the folder cannot be made or the scheme is another one.
    pub fn open(place: &str, project: &str) -> Result<Self> {
        let folder = match Url::parse(place) {
            Ok(url) if url.scheme() == "file" => {
                url.to_file_path().map_err(|()| anyhow::anyhow!("`{place}` is not the URL of a local folder"))?
            }
            Ok(url) if url.scheme().len() > 1 => bail!("a lake at `{}://` is no local folder", url.scheme()),
            _ => PathBuf::from(place),
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("creating the lake `{}`", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("opening the lake `{}`", folder.display()))?;
        let root = Url::from_directory_path(&folder)
            .map_err(|()| anyhow::anyhow!("`{}` cannot be written as a URL", folder.display()))?;
        Ok(Self::with_store(root, Arc::new(LocalFileSystem::new()), project))
    }

    /// Opens the lake at `url` in an object store, as in `s3://bucket/prefix`. Nothing is sent to the store yet:
    /// [`Lake::claim`] finds out whether it will do.
    ///
    /// # Errors
    /// When the store cannot be opened ([`Stores::get`]) or the path is not one that tables can have.
    pub fn open_in(url: &Url, stores: &Stores, project: &str) -> Result<Self> {
        let store = stores.get(url)?;
        Path::from_url_path(url.path()).with_context(|| format!("`{}` is not a path for a lake", url.path()))?;
        let mut root = url.clone();
        root.set_path(&format!("{}/", url.path().trim_end_matches('/')));
        Ok(Self::with_store(root, store, project))
    }

    /// A lake at `root` (ending in `/`) in a store that is rooted at "/" of its scheme.
    pub fn with_store(root: Url, store: Arc<dyn ObjectStore>, project: &str) -> Self {
        Self { root, store, project: project.to_owned(), area: Area::Features, seen: Arc::default() }
    }

    /// The same lake, meaning by a view's table the one of rows that were set aside: `{lake}/quarantine/{view}/v{N}`. For
    /// every interval it holds what the run whose rows the view's own table has kept out of there, committed under the same
    /// publish number: the rows of both are what the run computed.
    pub fn quarantine(&self) -> Self {
        Self { area: Area::Quarantine, ..self.clone() }
    }

    /// Whether it means tables of rows that were set aside.
    pub(crate) fn is_quarantine(&self) -> bool {
        self.area == Area::Quarantine
    }

    /// Where the lake is.
    pub fn root(&self) -> &Url {
        &self.root
    }

    /// Where a view's table is.
    pub fn table_url(&self, view: &ViewId) -> Url {
        let mut url = self.root.clone();
        // Names are narrow (`ids::is_name`), so no escaping can be needed.
        url.set_path(&format!("{}{}/{}/v{}/", self.root.path(), self.area.folder(), view.name, view.version));
        url
    }

    /// The `txn` mark of a view's table: one per table, whose version is the publish number.
    pub fn mark(&self, view: &ViewId) -> String {
        match self.area {
            Area::Features => format!("tidegate/{}/{view}", self.project),
            Area::Quarantine => format!("tidegate/{}/{view}/quarantine", self.project),
        }
    }

    /// Makes `registry` the one that writes here, or finds that it already is. An object store is first asked whether
    /// its conditional puts are atomic ([`probe`]), at every start of a process that writes: a store can be replaced
    /// behind its address, and asking takes less than a second.
    ///
    /// # Errors
    /// When the lake belongs to another registry or project, or the store would lose commits.
    pub async fn claim(&self, registry: RegistryId) -> Result<()> {
        if self.root.scheme() != "file" {
            let prefix = self.path_in_store("_tidegate");
            probe(self.store.as_ref(), self.root.as_str(), &prefix).await?;
        }
        let mark = OwnerMark { registry, project: self.project.clone() };
        let found = self.write_or_read_owner(&mark).await?;
        if found != mark {
            bail!(
                "the lake `{}` belongs to project `{}` with registry {}, and this is project `{}` with registry \
                 {registry}: two registries must not write to one lake; bring back that registry's file, or, to begin anew, \
                 delete the lake and the online store with it",
                self.root,
                found.project,
                found.registry,
                self.project,
            );
        }
        Ok(())
    }

    /// Writes the owner's mark where there is none, and gives the one that stands there.
    async fn write_or_read_owner(&self, mark: &OwnerMark) -> Result<OwnerMark> {
        let path = self.path_in_store("_tidegate/owner.json");
        let body = serde_json::to_vec_pretty(mark).context("writing the lake's owner")?;
        for attempt in 0..OWNER_ATTEMPTS_MAX {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(20 << attempt)).await;
            }
            let options = PutOptions { mode: PutMode::Create, ..Default::default() };
            match self.store.put_opts(&path, body.clone().into(), options).await {
                Ok(_) => return Ok(mark.clone()),
                // Ours, whose answer was lost, or another's, or (409) somebody is about to: what stands there decides.
                Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error).context("claiming the lake"),
            }
            match self.store.get(&path).await {
                Ok(found) => {
                    let found = found.bytes().await.context("reading the lake's owner")?;
                    return serde_json::from_slice(&found).context("reading the lake's owner");
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error).context("reading the lake's owner"),
            }
        }
        bail!("the lake `{}` keeps refusing its owner's mark without having one", self.root)
    }

    /// A view's table at `version`, or at its head.
    ///
    /// # Errors
    /// When it does not exist or its log cannot be read.
    pub async fn load(&self, view: &ViewId, version: Option<u64>) -> Result<DeltaTable> {
        let reading = || match version {
            Some(version) => format!("reading version {version} of the table of `{view}`"),
            None => format!("reading the table of `{view}`"),
        };
        let mut table = self.open_table(view)?;
        table.state = self.seen(view, version);
        let known = table.state.is_some();
        if let Err(error) = table.update_incremental(version).await {
            // What was seen last may be so old that the log no longer has what followed it.
            if !known {
                return Err(error).with_context(reading);
            }
            self.forget(view);
            table = self.open_table(view)?;
            table.update_incremental(version).await.with_context(reading)?;
        }
        self.remember(view, table.snapshot().with_context(reading)?);
        Ok(table)
    }

    /// Makes sure that a view's table still has `version`, by asking the store and not by what was read before.
    ///
    /// # Errors
    /// When it is gone, or the store does not answer.
    pub async fn require(&self, view: &ViewId, version: u64) -> Result<()> {
        let entry = table::log_path(version).split('/').fold(self.table_prefix(view), Path::join);
        match self.store.head(&entry).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => {
                bail!("version {version} of the table of `{view}` is gone from the lake `{}`", self.root)
            }
            Err(error) => Err(error).with_context(|| format!("looking for version {version} of the table of `{view}`")),
        }
    }

    /// The newest known state of a table that is not newer than `version`.
    fn seen(&self, view: &ViewId, version: Option<u64>) -> Option<DeltaTableState> {
        let seen = self.seen.lock().ok()?;
        seen.get(&(self.area, view.clone()))
            .filter(|state| version.is_none_or(|version| state.version() <= version))
            .cloned()
    }

    /// Forgets what was seen of a table.
    pub(crate) fn forget(&self, view: &ViewId) {
        if let Ok(mut seen) = self.seen.lock() {
            seen.remove(&(self.area, view.clone()));
        }
    }

    fn remember(&self, view: &ViewId, state: &DeltaTableState) {
        if let Ok(mut seen) = self.seen.lock() {
            let table = (self.area, view.clone());
            let newest = seen.get(&table).is_none_or(|known| known.version() < state.version());
            if newest {
                let evicted =
                    (seen.len() >= TABLES_SEEN_MAX && !seen.contains_key(&table)).then(|| seen.keys().next().cloned());
                if let Some(evicted) = evicted.flatten() {
                    seen.remove(&evicted);
                }
                seen.insert(table, state.clone());
            }
        }
    }

    /// A view's table with nothing of its log read: good for its store.
    ///
    /// # Errors
    /// When the location is not one that delta-rs takes.
    pub fn open_table(&self, view: &ViewId) -> Result<DeltaTable> {
        self.builder(view)?.build().with_context(|| format!("opening the table of `{view}`"))
    }

    fn builder(&self, view: &ViewId) -> Result<DeltaTableBuilder> {
        let url = self.table_url(view);
        Ok(DeltaTableBuilder::from_url(url.clone())
            .with_context(|| format!("opening `{url}`"))?
            .with_storage_backend(Arc::clone(&self.store), url))
    }

    /// Deletes staged files of `run` in the table of `view`, but for those in `keep` (paths relative to the table).
    /// Returns how many.
    ///
    /// Only for a run that has ended: the files of a run that goes on belong to whoever holds its lease.
    ///
    /// # Errors
    /// When the store cannot list or delete.
    pub async fn discard_staged(&self, view: &ViewId, run: RunId, keep: &[String]) -> Result<usize> {
        let doing = || format!("deleting staged files of run {run} in the table of `{view}`");
        if self.root.scheme() == "file" {
            let table = self.local_table(view)?;
            let keep: HashSet<PathBuf> = keep.iter().map(|path| table.join(path)).collect();
            let folder = table.join("data").join(run.to_string());
            let deleted = tokio::task::spawn_blocking(move || delete_below(&folder, &keep)).await.context("waiting")?;
            return deleted.with_context(doing);
        }
        let table = self.table_prefix(view);
        let prefix = table.clone().join("data").join(run.to_string());
        let keep: HashSet<Path> = keep.iter().map(|path| path.split('/').fold(table.clone(), Path::join)).collect();
        // Uploads that a dying process left unfinished are not listed, and nobody can read them: they cost space until
        // the bucket's rule for unfinished uploads takes them.
        let found = self.store.list(Some(&prefix)).map_ok(|object| object.location);
        let doomed = found.try_filter(move |path| std::future::ready(!keep.contains(path))).boxed();
        let mut outcomes = self.store.delete_stream(doomed);
        let mut deleted = 0;
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => deleted += 1,
                Err(error) => return Err(error).with_context(doing),
            }
        }
        Ok(deleted)
    }

    /// Makes files durable before anything names them: a local file that was written is not yet on the disk.
    /// Other stores answer a write only when it is durable.
    pub(crate) async fn sync(&self, view: &ViewId, relative: Vec<String>) -> Result<()> {
        if self.root.scheme() != "file" {
            return Ok(());
        }
        let table = self.local_table(view)?;
        fail::fail_point!("lake.sync", |_| bail!("the disk does not take the files of `{view}`: input/output error"));
        let sync_all = move || -> std::io::Result<()> {
            let mut folders = std::collections::BTreeSet::new();
            for path in relative {
                let file = table.join(path);
                std::fs::File::open(&file)?.sync_all()?;
                for folder in file.ancestors().skip(1).take_while(|folder| folder.starts_with(&table)) {
                    folders.insert(folder.to_path_buf());
                }
            }
            folders.iter().try_for_each(|folder| std::fs::File::open(folder)?.sync_all())
        };
        tokio::task::spawn_blocking(sync_all)
            .await
            .context("waiting for the disk")?
            .with_context(|| format!("making the files of `{view}` durable"))
    }

    fn local_table(&self, view: &ViewId) -> Result<PathBuf> {
        let folder = self.table_url(view).to_file_path();
        folder.map_err(|()| anyhow::anyhow!("the table of `{view}` is not a local folder"))
    }

    fn table_prefix(&self, view: &ViewId) -> Path {
        self.path_in_store(&format!("{}/{}/v{}", self.area.folder(), view.name, view.version))
    }

    /// A path below the lake's root as the store knows it.
    fn path_in_store(&self, below: &str) -> Path {
        match self.root.to_file_path() {
            Ok(folder) if self.root.scheme() == "file" => Path::from_absolute_path(folder.join(below))
                .unwrap_or_else(|_| Path::from(format!("{}{below}", self.root.path()))),
            // Both are checked when the lake is opened; a path that is none is taken letter by letter.
            _ => Path::from_url_path(format!("{}{below}", self.root.path()))
                .unwrap_or_else(|_| Path::from(format!("{}{below}", self.root.path()))),
        }
    }
}

/// Deletes what is below `folder` but for `keep`, and the folders that are then empty; how many files. Done on the file
/// system and not through its store, which hides uploads that a dying process left unfinished.
fn delete_below(folder: &FsPath, keep: &HashSet<PathBuf>) -> std::io::Result<usize> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut deleted = 0;
    let mut kept = false;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            deleted += delete_below(&path, keep)?;
            kept |= path.exists();
        } else if keep.contains(&path) {
            kept = true;
        } else {
            std::fs::remove_file(&path)?;
            deleted += 1;
        }
    }
    if !kept {
        std::fs::remove_dir(folder)?;
    }
    Ok(deleted)
}
