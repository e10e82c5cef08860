//! What a table shall hold after a restore: files of its older versions, all of them there.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use deltalake::DeltaTable;
use deltalake::kernel::Add;
use tidegate_registry::ids::ViewId;
use tidegate_registry::restore::TableTarget;

use super::Lake;
use super::commit::{CommitError, paths_of, refuse_deletion_vector, require_plain, slice_of};
use crate::reads::partition_value;

/// What becoming a [`TableTarget`] would change in a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableChange {
    /// Files that the table names again.
    pub files_added: u64,
    /// Files that it names no more.
    pub files_removed: u64,
    /// Rows of those that come back.
    pub rows_added: u64,
    /// Rows of those that leave.
    pub rows_removed: u64,
}

impl Lake {
    /// The files of `target`, as they will be committed.
    ///
    /// # Errors
    /// When a version can no longer be read, or another program has changed one of them.
    pub(crate) async fn target_files(&self, view: &ViewId, target: &TableTarget) -> Result<Vec<Add>> {
        let mut files = match target.version {
            Some(version) => self.files_by_slice(&self.load(view, Some(version)).await?)?,
            None => BTreeMap::new(),
        };
        for (interval, version) in &target.slices {
            let slice = interval.start().timestamp_micros();
            files.remove(&slice);
            if let Some(version) = version {
                let mut others = self.files_by_slice(&self.load(view, Some(*version)).await?)?;
                files.extend(others.remove_entry(&slice));
            }
        }
        Ok(files.into_values().flatten().collect())
    }

    #[expect(deprecated, reason = "delta-rs gives no other way from a file of a snapshot to the action that names it")]
    fn files_by_slice(&self, table: &DeltaTable) -> Result<BTreeMap<i64, Vec<Add>>> {
        let mut files: BTreeMap<i64, Vec<Add>> = BTreeMap::new();
        for file in table.snapshot()?.log_data().iter() {
            refuse_deletion_vector(&file)?;
            let slice = slice_of(&file)?;
            let start = DateTime::from_timestamp_micros(slice).context("a slice is out of range")?;
            let mut add = file.add_action();
            // As every run writes it: the typed value would be written without a zone.
            add.partition_values.insert(self.partition_column().to_owned(), Some(partition_value(start)));
            files.entry(slice).or_default().push(add);
        }
        Ok(files)
    }

    /// What restoring `target` would change in the table's head, having made sure that it can be done: everything that it
    /// takes is there, and nobody else has changed the table.
    ///
    /// # Errors
    /// With the reason why it cannot.
    pub async fn check_target(&self, view: &ViewId, recorded: u64, target: &TableTarget) -> Result<TableChange> {
        // By the store and not by what was read before: another program may have been here.
        self.forget(view);
        let head = self.load(view, None).await?;
        require_plain(&head)?;
        let known = self.load(view, Some(recorded)).await.with_context(|| {
            format!("the log of `{view}` no longer has version {recorded}, which the registry recorded last")
        })?;
        let (now, then) = (head.snapshot()?.schema(), known.snapshot()?.schema());
        ensure!(
            now == then,
            "another program has changed the columns of the table of `{view}` since version {recorded}: take that back first"
        );
        let files = self.target_files(view, target).await?;
        let named = paths_of(&head)?;
        let new: Vec<&Add> = files.iter().filter(|add| !named.contains(&add.path)).collect();
        match self.require_there(view, &new).await {
            Ok(()) => {}
            Err(CommitError::StagedMissing { path, .. }) => anyhow::bail!(
                "`{path}` of the table of `{view}` is gone, which what was published then needs: another program has \
                 vacuumed the table"
            ),
            Err(error) => return Err(error.into()),
        }
        let wanted: std::collections::HashSet<&str> = files.iter().map(|add| add.path.as_str()).collect();
        let mut change = TableChange::default();
        for add in new {
            change.files_added += 1;
            change.rows_added += rows_of(add);
        }
        for file in head.snapshot()?.log_data().iter() {
            refuse_deletion_vector(&file)?;
            if !wanted.contains(file.path().as_ref()) {
                change.files_removed += 1;
                change.rows_removed += file.num_records().map_or(0, |rows| rows as u64);
            }
        }
        Ok(change)
    }
}

/// Rows of a file by its statistics; 0 when it has none.
fn rows_of(add: &Add) -> u64 {
    let stats: Option<serde_json::Value> = add.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok());
    stats.and_then(|stats| stats.get("numRecords")?.as_u64()).unwrap_or(0)
}
