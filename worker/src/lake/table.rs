//! Creating a view's table, and what its columns are.

use anyhow::{Context, Result, bail};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use delta_kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::{Action, StructType};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::SaveMode;
use deltalake::{DeltaTable, DeltaTableError};
use indexmap::IndexMap;
use std::sync::Arc;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::Project;

use super::commit::commit_properties;
use super::{Area, Lake};
use crate::types::{INTERVAL_START, QUARANTINE_START, quarantine_schema, view_schema};

/// The columns of a view's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSchema {
    /// All columns, the partition column last.
    pub table: SchemaRef,
    /// What stands in the files: all but the partition column.
    pub file: SchemaRef,
}

impl TableSchema {
    /// The columns of `view` in `project`.
    ///
    /// # Errors
    /// When the project does not define the view or its entity.
    pub fn of(project: &Project, view: &ViewId) -> Result<Self> {
        let view = project.views.get(view).with_context(|| format!("`{view}` is not defined"))?;
        Ok(Self::partitioned_by(INTERVAL_START, view_schema(project, view)))
    }

    /// The columns of the quarantine table of `view` in `project`.
    ///
    /// # Errors
    /// When the project does not define the view or its entity.
    pub fn of_quarantine(project: &Project, view: &ViewId) -> Result<Self> {
        let view = project.views.get(view).with_context(|| format!("`{view}` is not defined"))?;
        Ok(Self::partitioned_by(QUARANTINE_START, quarantine_schema(project, view)))
    }

    fn partitioned_by(partition: &str, table: SchemaRef) -> Self {
        let mut file_fields: Vec<Arc<Field>> = table.fields().iter().cloned().collect();
        file_fields.retain(|field| field.name() != partition);
        Self { table, file: Arc::new(Schema::new(file_fields)) }
    }
}

impl Lake {
    /// Creates the tables of `views` where they are missing, and gives the Delta version of each: `apply` does this, so
    /// that first runs never race to create one.
    ///
    /// # Errors
    /// When a table exists with other columns (and rows: an empty one is replaced), or the store fails.
    pub async fn ensure_tables(&self, project: &Project, views: &[ViewId]) -> Result<IndexMap<ViewId, u64>> {
        let mut versions = IndexMap::with_capacity(views.len());
        for view in views {
            let schema = TableSchema::of(project, view)?;
            versions.insert(view.clone(), self.ensure_table(view, &schema).await?);
        }
        Ok(versions)
    }

    /// Creates the quarantine table of `view` where it is missing. Any number may do this at the same time.
    ///
    /// # Errors
    /// When it holds rows with other columns, or the store fails.
    pub(crate) async fn ensure_quarantine(&self, view: &ViewId, schema: &TableSchema) -> Result<()> {
        self.quarantine().ensure_table(view, schema).await.context("making the quarantine table").map(drop)
    }

    async fn ensure_table(&self, view: &ViewId, schema: &TableSchema) -> Result<u64> {
        match self.create(view, schema, SaveMode::ErrorIfExists).await {
            Ok(table) => {
                fail::fail_point!("lake.table.created");
                let version = table.version().unwrap_or_default();
                self.sync(view, vec![log_path(version)]).await?;
                return Ok(version);
            }
            Err(error) if !self.exists(view).await? => {
                return Err(error).with_context(|| format!("creating the table of `{view}`"));
            }
            Err(_) => {}
        }
        let table = self.load(view, None).await?;
        let snapshot = table.snapshot()?;
        if same_columns(&snapshot.snapshot().arrow_schema(), &schema.table) {
            return Ok(snapshot.version());
        }
        if snapshot.log_data().num_files() > 0 {
            bail!("the table of `{view}` holds rows with other columns: give the changed view a new `version:`");
        }
        match self.create(view, schema, SaveMode::Overwrite).await {
            Ok(table) => {
                let version = table.version().unwrap_or_default();
                self.sync(view, vec![log_path(version)]).await?;
                Ok(version)
            }
            // Our answer was lost, or somebody else was first: what stands there decides.
            Err(error) => {
                let table = self.load(view, None).await?;
                let snapshot = table.snapshot()?;
                if same_columns(&snapshot.snapshot().arrow_schema(), &schema.table) {
                    return Ok(snapshot.version());
                }
                Err(error).with_context(|| format!("replacing the empty table of `{view}`"))
            }
        }
    }

    /// The column that says to which interval a row belongs.
    pub(super) fn partition_column(&self) -> &'static str {
        match self.area {
            Area::Features => INTERVAL_START,
            Area::Quarantine => QUARANTINE_START,
        }
    }

    async fn exists(&self, view: &ViewId) -> Result<bool> {
        let table = self.open_table(view)?;
        table.verify_deltatable_existence().await.with_context(|| format!("looking for the table of `{view}`"))
    }

    async fn create(&self, view: &ViewId, schema: &TableSchema, mode: SaveMode) -> Result<DeltaTable, DeltaTableError> {
        let kernel: StructType = schema.table.as_ref().try_into_kernel()?;
        let unread = self.open_table(view).map_err(|error| DeltaTableError::generic(format!("{error:#}")))?;
        let table = CreateBuilder::new()
            .with_log_store(unread.log_store())
            .with_columns(kernel.fields().cloned())
            .with_partition_columns([self.partition_column()])
            .with_table_name(match self.area {
                Area::Features => format!("{}_v{}", view.name, view.version),
                Area::Quarantine => format!("{}_v{}_quarantine", view.name, view.version),
            })
            .with_save_mode(mode)
            // Restores need the whole history: only the janitor may shorten a log.
            .with_configuration_property(deltalake::TableProperty::EnableExpiredLogCleanup, Some("false"))
            .with_commit_properties(commit_properties())
            .with_actions(Vec::<Action>::new())
            .await?;
        Ok(table)
    }
}

/// The log entry of a version, relative to the table.
pub(super) fn log_path(version: u64) -> String {
    format!("_delta_log/{version:020}.json")
}

/// Whether two schemas have the same columns by name and type; the engine's choice of string layout does not count.
fn same_columns(found: &Schema, wanted: &Schema) -> bool {
    fn plain(kind: &DataType) -> DataType {
        match kind {
            DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
            DataType::List(item) => DataType::List(Arc::new(Field::new("element", plain(item.data_type()), true))),
            other => other.clone(),
        }
    }
    found.fields().len() == wanted.fields().len()
        && wanted.fields().iter().all(|field| {
            found
                .field_with_name(field.name())
                .is_ok_and(|existing| plain(existing.data_type()) == plain(field.data_type()))
        })
}
