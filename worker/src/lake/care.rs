//! What care asks of the lake: what lies there, what its logs say, and removing what nobody needs.
//!
//! Nothing here decides: see `janitor` and `rebuild`. Logs are read entry by entry, because what a table held at each of
//! many versions follows from one pass over them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FsPath, PathBuf};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use delta_kernel::expressions::Scalar;
use deltalake::DeltaTable;
use deltalake::kernel::Action;
use deltalake::protocol::checkpoints::create_checkpoint;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde_json::Value;
use tidegate_registry::care::PinnedTableFile;
use tidegate_registry::ids::{RegistryId, ViewId};
use tidegate_registry::time::{Instant, format_instant};

use super::commit::{CommitNote, NOTE, PUBLISH, RESTORE, RUN, RestoreNote, slice_of};
use super::{Lake, OwnerMark};
use crate::types::EVENT_TIMESTAMP;

/// Log entries read at the same time.
const READS_AHEAD: usize = 16;

/// Something that lies in a table's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    /// Relative to the table.
    pub(crate) path: String,
    /// In bytes.
    pub(crate) size: u64,
    /// When it was written, by the store's clock.
    pub(crate) modified: Instant,
}

/// What lies in a table's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogListing {
    /// Entries by version.
    pub(crate) entries: BTreeMap<u64, Object>,
    /// Versions with a checkpoint in one file, which is what we write.
    pub(crate) checkpoints: BTreeSet<u64>,
    /// Everything that belongs to one version beside its entry: checkpoints and checksums.
    pub(crate) beside: Vec<(u64, Object)>,
}

impl LogListing {
    /// The newest version.
    pub(crate) fn head(&self) -> Option<u64> {
        self.entries.last_key_value().map(|(version, _)| *version)
    }
}

/// What one log entry did.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct LogEntry {
    /// Files named, with their sizes.
    pub(crate) adds: BTreeMap<String, u64>,
    /// Files no longer named.
    pub(crate) removes: BTreeSet<String>,
    /// Whose commit it is, as noted.
    pub(crate) run: Option<String>,
    /// Its publish number.
    pub(crate) publish: Option<u64>,
    /// What else is noted.
    pub(crate) note: Option<CommitNote>,
    /// What is noted of a restore.
    pub(crate) restored: Option<RestoreNote>,
}

/// A file of a table, as its log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableFile {
    /// Relative to the table.
    pub(crate) path: String,
    /// In bytes.
    pub(crate) size: u64,
    /// The start of its interval, in microseconds since 1970.
    pub(crate) slice: i64,
    /// Its rows, where the log has statistics.
    pub(crate) rows: Option<u64>,
}

/// A data file of a view's table, and of when its rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DatedFile {
    /// In bytes.
    pub(crate) size: u64,
    /// The start of its interval, in microseconds since 1970.
    pub(crate) slice: i64,
    /// Between which instants its `event_timestamp`s are, in microseconds, where the log has statistics.
    pub(crate) events: Option<(i64, i64)>,
}

impl Lake {
    /// Whose lake this is; `None` when nobody has written here.
    ///
    /// # Errors
    /// When the mark cannot be read, or names another project.
    pub async fn owner(&self) -> Result<Option<RegistryId>> {
        let found = match self.store.get(&self.path_in_store("_tidegate/owner.json")).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.context("reading the lake's owner")?.bytes().await.context("reading the lake's owner")?,
        };
        let mark: OwnerMark = serde_json::from_slice(&found).context("reading the lake's owner")?;
        if mark.project != self.project {
            bail!("the lake `{}` belongs to the project `{}`, not `{}`", self.root, mark.project, self.project);
        }
        Ok(Some(mark.registry))
    }

    /// The present instant by the store's clock, to which the ages of its objects are compared.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn store_now(&self) -> Result<Instant> {
        let path = self.path_in_store("_tidegate/clock");
        self.store.put(&path, "tick".into()).await.context("asking the lake's store for the time")?;
        let found = self.store.head(&path).await.context("asking the lake's store for the time")?;
        Ok(found.last_modified)
    }

    /// Whether a view has a table.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn has_table(&self, view: &ViewId) -> Result<bool> {
        Ok(self.log_listing(view).await?.head().is_some())
    }

    /// The log of a view's table, empty when there is none.
    pub(crate) async fn log_listing(&self, view: &ViewId) -> Result<LogListing> {
        let mut listing = LogListing::default();
        for object in self.list_below(view, "_delta_log").await? {
            let Some(name) = object.path.strip_prefix("_delta_log/") else { continue };
            let (digits, ending) = name.split_once('.').unwrap_or((name, ""));
            let Some(version) = (digits.len() == 20).then(|| digits.parse::<u64>().ok()).flatten() else { continue };
            match ending {
                "json" => {
                    listing.entries.insert(version, object);
                }
                "checkpoint.parquet" => {
                    listing.checkpoints.insert(version);
                    listing.beside.push((version, object));
                }
                "crc" => listing.beside.push((version, object)),
                _ if ending.starts_with("checkpoint.") => listing.beside.push((version, object)),
                _ => {}
            }
        }
        Ok(listing)
    }

    /// What lies below `data/` of a view's table.
    pub(crate) async fn data_listing(&self, view: &ViewId) -> Result<Vec<Object>> {
        self.list_below(view, "data").await
    }

    /// On a local disk not through its store, which hides uploads that a dying process left unfinished.
    async fn list_below(&self, view: &ViewId, folder: &str) -> Result<Vec<Object>> {
        let doing = || format!("listing the table of `{view}`");
        if self.root.scheme() == "file" {
            let table = self.local_table(view)?;
            let below = table.join(folder);
            let walk = move || {
                let mut found = Vec::new();
                walk_local(&table, &below, &mut found).map(|()| found)
            };
            return tokio::task::spawn_blocking(walk).await.context("waiting for the disk")?.with_context(doing);
        }
        let table = self.table_prefix(view);
        let listed = self.store.list(Some(&table.clone().join(folder)));
        let objects = listed.map_ok(|meta| Object {
            path: meta
                .location
                .as_ref()
                .strip_prefix(table.as_ref())
                .unwrap_or_default()
                .trim_start_matches('/')
                .into(),
            size: meta.size,
            modified: meta.last_modified,
        });
        objects.try_collect().await.with_context(doing)
    }

    /// The entries of a log, read in the order of `versions`.
    pub(crate) async fn log_entries(&self, view: &ViewId, versions: Vec<u64>) -> Result<Vec<(u64, LogEntry)>> {
        let read = |version: u64| async move { Ok((version, self.log_entry(view, version).await?)) };
        futures::stream::iter(versions).map(read).buffered(READS_AHEAD).try_collect().await
    }

    async fn log_entry(&self, view: &ViewId, version: u64) -> Result<LogEntry> {
        let doing = || format!("reading version {version} of the log of `{view}`");
        let path = super::table::log_path(version).split('/').fold(self.table_prefix(view), Path::join);
        let text = self.store.get(&path).await.with_context(doing)?.bytes().await.with_context(doing)?;
        let mut entry = LogEntry::default();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            match serde_json::from_slice::<Action>(line) {
                Ok(Action::Add(add)) => {
                    entry.adds.insert(add.path, u64::try_from(add.size).unwrap_or_default());
                }
                Ok(Action::Remove(remove)) => {
                    entry.removes.insert(remove.path);
                }
                Ok(Action::CommitInfo(info)) => {
                    entry.run = info.info.get(RUN).and_then(Value::as_str).map(str::to_owned);
                    entry.publish = info.info.get(PUBLISH).and_then(Value::as_u64);
                    entry.note = info.info.get(NOTE).and_then(|note| serde_json::from_value(note.clone()).ok());
                    entry.restored = info.info.get(RESTORE).and_then(|note| serde_json::from_value(note.clone()).ok());
                }
                Ok(_) => {}
                Err(error) => return Err(error).with_context(doing),
            }
        }
        Ok(entry)
    }

    /// The files that a table names at the version that it was loaded at.
    ///
    /// # Errors
    /// When a file is in no interval: another program has written here.
    pub(crate) fn files_of(table: &DeltaTable) -> Result<Vec<TableFile>> {
        let file = |file: deltalake::kernel::LogicalFileView| {
            Ok(TableFile {
                path: file.path().into_owned(),
                size: u64::try_from(file.size()).unwrap_or_default(),
                slice: slice_of(&file)?,
                rows: file.num_records().map(|rows| rows as u64),
            })
        };
        table.snapshot()?.log_data().iter().map(file).collect()
    }

    /// The files that make up a view's table at `version`: what a pin protects.
    ///
    /// # Errors
    /// When that version cannot be read.
    pub async fn pinned_files(&self, view: &ViewId, version: u64) -> Result<Vec<PinnedTableFile>> {
        let files = Self::files_of(&self.load(view, Some(version)).await?)?;
        Ok(files.into_iter().map(|file| PinnedTableFile { path: file.path, size: file.size }).collect())
    }

    /// The files that make up a view's table at `version`, with what the log says of their time.
    pub(crate) async fn dated_files(&self, view: &ViewId, version: u64) -> Result<Vec<DatedFile>> {
        let table = self.load(view, Some(version)).await?;
        let event = |values: Option<Scalar>| {
            let Some(Scalar::Struct(values)) = values else { return None };
            let place = values.fields().iter().position(|field| field.name() == EVENT_TIMESTAMP)?;
            match values.values().get(place) {
                Some(Scalar::Timestamp(micros)) => Some(*micros),
                _ => None,
            }
        };
        let file = |file: deltalake::kernel::LogicalFileView| {
            Ok(DatedFile {
                size: u64::try_from(file.size()).unwrap_or_default(),
                slice: slice_of(&file)?,
                events: event(file.min_values()).zip(event(file.max_values())),
            })
        };
        table.snapshot()?.log_data().iter().map(file).collect()
    }

    /// Writes a checkpoint at `version`.
    pub(crate) async fn checkpoint(&self, view: &ViewId, version: u64) -> Result<()> {
        let table = self.load(view, Some(version)).await?;
        create_checkpoint(&table, None).await.with_context(|| format!("checkpointing the table of `{view}`"))?;
        self.sync(view, vec![format!("_delta_log/{version:020}.checkpoint.parquet")]).await
    }

    /// Deletes objects of a view's table (paths relative to it), in this order, and folders that are then empty. What is
    /// already gone is no error. Returns how many are gone.
    pub(crate) async fn delete(&self, view: &ViewId, paths: Vec<String>) -> Result<usize> {
        let doing = || format!("deleting objects of the table of `{view}`");
        let count = paths.len();
        if self.root.scheme() == "file" {
            let table = self.local_table(view)?;
            let delete = move || {
                paths.iter().try_for_each(|path| {
                    let done = delete_local(&table, &table.join(path));
                    fail::fail_point!("lake.delete.between");
                    done
                })
            };
            tokio::task::spawn_blocking(delete).await.context("waiting for the disk")?.with_context(doing)?;
            return Ok(count);
        }
        let table = self.table_prefix(view);
        let full: Vec<_> = paths.iter().map(|path| Ok(path.split('/').fold(table.clone(), Path::join))).collect();
        let mut outcomes = self.store.delete_stream(futures::stream::iter(full).boxed());
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => fail::fail_point!("lake.delete.between"),
                Err(error) => return Err(error).with_context(doing),
            }
        }
        Ok(count)
    }
}

fn walk_local(table: &FsPath, folder: &FsPath, found: &mut Vec<Object>) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let about = match std::fs::symlink_metadata(&path) {
            // A run's own tidying may come first.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            about => about?,
        };
        if about.is_dir() {
            walk_local(table, &path, found)?;
        } else if let Some(relative) = path.strip_prefix(table).ok().and_then(FsPath::to_str) {
            found.push(Object {
                path: relative.replace(std::path::MAIN_SEPARATOR, "/"),
                size: about.len(),
                modified: DateTime::<Utc>::from(about.modified()?),
            });
        }
    }
    Ok(())
}

fn delete_local(table: &FsPath, file: &FsPath) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Folders of runs; a run that writes into one just now makes it again.
    let data: PathBuf = table.join("data");
    for folder in file.ancestors().skip(1).take_while(|folder| folder.starts_with(&data) && **folder != data) {
        if std::fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes, {})", self.path, self.size, format_instant(self.modified))
    }
}
