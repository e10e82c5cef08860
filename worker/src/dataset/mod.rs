//! Datasets: the features of many entities as they were known at many instants, in one table.
//!
//! A [`Spine`] says whose features are wanted and when; each of its rows comes out once, in its order, with the features
//! that a reader would have been given at that instant. The rule (`docs/datasets.md`): of a `full` view the newest
//! interval published by then, of a `partial` view the newest row that still counts. Both are stated to the point-in-time
//! join (`tidegate-asof`), which never sorts a history.
//!
//! Views are read as of one snapshot number, so a dataset is consistent across views, and can be made again as long as
//! these versions are kept. [`open`] gives the rows; [`build`] writes them down, with a manifest.

mod digests;
pub(crate) mod inputs;
mod memory;
mod order;
mod output;
mod place;
mod preview;
pub(crate) mod spine;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::common::Column;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::cast;
use datafusion::physical_plan::ExecutionPlanProperties as _;
use datafusion::prelude::{DataFrame, SessionContext};
use indexmap::IndexMap;
use tidegate_asof::point_in_time;
use tidegate_registry::dataset::{ColumnNames, OutputColumn, SpineFrom, ViewInput};
use tidegate_registry::features::Selection;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::Project;
use tidegate_registry::store::Store;
use tidegate_registry::time::Instant;

use crate::engine::{Engine, Joins};
use crate::lake::Lake;
use crate::reads::column;
use crate::sources::Sources;

pub use self::memory::{Collected, collect};
pub use self::output::build;
pub use self::place::{Place, PlaceFormat, imported};
pub use self::preview::{ViewFiles, files};

/// The column of a spine that says when, unless the request names another.
pub const LABEL_TIME: &str = "event_timestamp";

/// Whose features are wanted, and when.
#[derive(Debug, Clone)]
pub enum Spine {
    /// A file, a folder of files or a Delta table.
    File {
        /// A path of this machine or a URL in one of the allowed roots.
        place: String,
    },
    /// A query over the project's sources.
    Sql(String),
    /// Every entity that one of the views knows at an instant.
    Entities(Instant),
    /// Rows at hand.
    Rows(SchemaRef, Vec<RecordBatch>),
}

/// What to build.
#[derive(Debug, Clone)]
pub struct DatasetRequest {
    /// The definitions that the features are from.
    pub project: Arc<Project>,
    /// Their revision.
    pub definitions: i64,
    /// Whose features, and when.
    pub spine: Spine,
    /// The column of the spine that says when.
    pub label_time: String,
    /// The features.
    pub features: Selection,
    /// How their columns are named.
    pub names: ColumnNames,
    /// The number of the snapshot as of which views are read.
    pub number: u64,
    /// Only what had been published by then counts; already part of `number`, and noted in the manifest.
    pub known_at: Option<Instant>,
}

/// What building a dataset needs.
#[derive(Debug, Clone)]
pub struct DatasetParts {
    /// The registry.
    pub store: Arc<dyn Store>,
    /// The lake.
    pub lake: Lake,
    /// The project's sources, for spines that are queries.
    pub sources: Sources,
    /// Where spines that are files may lie.
    pub spines: Sources,
}

/// Why there is no dataset.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The request or the data is wrong: whoever asked can mend it.
    #[error("{message}")]
    Wrong {
        /// What is wrong.
        message: String,
        /// What to try.
        hint: String,
    },
    /// Whoever asked has changed their mind.
    #[error("stopped; nothing was written")]
    Stopped,
    /// Something else failed.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl DatasetError {
    /// The same as an error among others.
    fn into_anyhow(self) -> anyhow::Error {
        match self {
            Self::Failed(error) => error,
            other => anyhow!(other),
        }
    }

    pub(crate) fn wrong(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Wrong { message: message.into(), hint: hint.into() }
    }
}

/// The rows of a dataset, and what they are made of.
pub struct Opened {
    /// The rows: the columns of the spine, then those of the features.
    pub rows: SendableRecordBatchStream,
    /// Per column its name, type and feature; nulls are not counted yet.
    pub columns: Vec<OutputColumn>,
    /// The column of the rows that says when, as an instant. The last one of `rows`, and no column of the dataset, when
    /// the spine's own is none.
    pub(crate) label: usize,
    /// Where the spine comes from.
    pub spine: SpineFrom,
    /// Per view what is read.
    pub views: IndexMap<ViewId, ViewInput>,
    /// Per view that says how old it may be, which labels find it too old.
    pub(crate) ages: IndexMap<ViewId, inputs::Ages>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("columns", &self.columns).field("views", &self.views).finish_non_exhaustive()
    }
}

/// Begins to compute a dataset, with types that `format` has.
///
/// # Errors
/// [`DatasetError::Wrong`] when the spine cannot be read or lacks a column, two columns are called the same, or a view has
/// let go of what is asked for.
pub async fn open(
    engine: &Engine,
    parts: &DatasetParts,
    request: &DatasetRequest,
    format: PlaceFormat,
) -> Result<Opened, DatasetError> {
    let (ctx, rows, plan) = plan(engine, parts, request, format).await?;
    let task = ctx.task_ctx();
    let physical = rows.create_physical_plan().await.map_err(|error| failed("planning the dataset", error))?;
    if physical.output_partitioning().partition_count() != 1 {
        return Err(
            anyhow!("the dataset was planned for several streams, which would lose the order of its rows").into()
        );
    }
    let physical = order::newest_first(physical).map_err(|error| failed("planning the dataset", error))?;
    let rows = datafusion::physical_plan::execute_stream(physical, task)
        .map_err(|error| failed("computing the dataset", error))?;
    Ok(Opened { rows, ..plan })
}

/// The plan of a dataset, for `EXPLAIN` and benchmarks.
///
/// # Errors
/// Those of [`open`].
pub async fn explain(engine: &Engine, parts: &DatasetParts, request: &DatasetRequest) -> Result<String, DatasetError> {
    let (_ctx, rows, _) = plan(engine, parts, request, PlaceFormat::Parquet).await?;
    let plan = rows.create_physical_plan().await.and_then(order::newest_first);
    let plan = plan.map_err(|error| failed("planning the dataset", error))?;
    Ok(datafusion::physical_plan::displayable(plan.as_ref()).indent(true).to_string())
}

async fn plan(
    engine: &Engine,
    parts: &DatasetParts,
    request: &DatasetRequest,
    format: PlaceFormat,
) -> Result<(SessionContext, DataFrame, Opened), DatasetError> {
    if request.features.is_empty() {
        return Err(DatasetError::wrong("no feature is asked for", "name at least one, as in `view.feature`"));
    }
    let ctx = engine.context(Joins::Hash)?;
    // The engine would deal the joined rows out to all cores and gather them in whatever order they come.
    ctx.state_ref().write().config_mut().options_mut().optimizer.enable_round_robin_repartition = false;
    let inputs = inputs::of(&*parts.store, request).await?;
    let (spine, from) = spine::read(&ctx, parts, request, &inputs).await?;
    let Labels { spine, label, hidden } = labels(spine, request)?;
    let mut columns: Vec<OutputColumn> = spine
        .schema()
        .fields()
        .iter()
        .filter(|field| hidden.as_deref() != Some(field.name().as_str()))
        .map(|field| OutputColumn {
            name: field.name().clone(),
            kind: field.data_type().to_string(),
            feature: None,
            nulls: 0,
        })
        .collect();
    let taken = features(request, &columns)?;
    let histories = inputs::histories(&ctx, &parts.lake, request, &inputs, &taken, spine.schema()).await?;
    let joined = point_in_time(spine.logical_plan().clone(), Column::from_name(&label), histories)
        .map_err(|error| wrong_plan(&error))?;
    let rows = DataFrame::new(ctx.state(), joined);
    // The instant that was made for the join stays until it has been looked at, as the last column.
    let mut order = Vec::with_capacity(columns.len() + taken.len() + 1);
    for written in &mut columns {
        let field = rows.schema().field_with_unqualified_name(&written.name).context("finding a column")?;
        let own = field.data_type();
        order.push(match written_type(own, written.name == label, format) {
            Some(kind) => {
                written.kind = kind.to_string();
                // One `LargeUtf8` may hold more than the offsets of `Utf8` count, and a slice of it has the offsets of the whole.
                let value = match own {
                    DataType::LargeUtf8 => cast(column(&written.name), DataType::Utf8View),
                    _ => column(&written.name),
                };
                cast(value, kind).alias(&written.name)
            }
            None => column(&written.name),
        });
    }
    order.extend(taken.iter().map(|(name, _, _)| name.as_str()).chain(hidden.as_deref()).map(column));
    let rows = rows.select(order).context("naming the columns")?;
    for (name, view, feature) in &taken {
        let field = rows.schema().field_with_unqualified_name(name).context("finding a column")?;
        columns.push(OutputColumn {
            name: name.clone(),
            kind: field.data_type().to_string(),
            feature: Some(format!("{view}.{feature}")),
            nulls: 0,
        });
    }
    let label = rows.schema().index_of_column_by_name(None, &label).context("the label's column is gone")?;
    let mut ages = IndexMap::new();
    for (id, input) in &inputs {
        ages.extend(inputs::Ages::of(request, id, input)?.map(|of| (id.clone(), of)));
    }
    let views = inputs.into_iter().map(|(view, input)| (view, input.noted)).collect();
    let empty = Box::pin(datafusion::physical_plan::EmptyRecordBatchStream::new(Arc::clone(rows.schema().inner())));
    Ok((ctx, rows, Opened { rows: empty, columns, label, spine: from, views, ages }))
}

/// The type in which a spine's column is written, when that is not its own: one that the format has, and so every reader of
/// it knows. Labels are instants, so a zoneless one is one of UTC.
fn written_type(kind: &DataType, is_label: bool, format: PlaceFormat) -> Option<DataType> {
    use datafusion::arrow::datatypes::TimeUnit::{Microsecond, Millisecond, Second};
    let is_delta = format == PlaceFormat::Delta;
    Some(match kind {
        DataType::Timestamp(unit, zone) => {
            let fine = if is_delta || matches!(unit, Second | Millisecond) { Microsecond } else { *unit };
            let zone = match zone {
                Some(_) if is_delta => Some("UTC".into()),
                None if is_label => Some("UTC".into()),
                own => own.clone(),
            };
            DataType::Timestamp(fine, zone)
        }
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Dictionary(_, values) => written_type(values, is_label, format).unwrap_or_else(|| (**values).clone()),
        // Delta's integers have signs.
        DataType::UInt8 if is_delta => DataType::Int16,
        DataType::UInt16 if is_delta => DataType::Int32,
        DataType::UInt32 if is_delta => DataType::Int64,
        DataType::UInt64 if is_delta => DataType::Decimal128(20, 0),
        _ => return None,
    })
    .filter(|written| written != kind)
}

/// A spine whose labels the join can read.
struct Labels {
    spine: DataFrame,
    /// The column with the instants.
    label: String,
    /// The same when it was made here.
    hidden: Option<String>,
}

fn labels(spine: DataFrame, request: &DatasetRequest) -> Result<Labels, DatasetError> {
    let name = &request.label_time;
    let Ok(field) = spine.schema().field_with_unqualified_name(name) else {
        let known: Vec<String> = spine.schema().fields().iter().map(|field| format!("`{}`", field.name())).collect();
        return Err(DatasetError::wrong(
            format!("the spine has no column `{name}`, which says when each row's features are wanted"),
            format!("it has {}: rename one, or name it with `--event-timestamp`", known.join(", ")),
        ));
    };
    match field.data_type() {
        DataType::Timestamp(..) => Ok(Labels { spine, label: name.clone(), hidden: None }),
        DataType::Date32 | DataType::Date64 | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let hidden = "__tidegate_label".to_owned();
            let instant = cast(column(name), crate::types::timestamp());
            let spine = spine.with_column(&hidden, instant).context("reading the labels' instants")?;
            Ok(Labels { spine, label: hidden.clone(), hidden: Some(hidden) })
        }
        other => Err(DatasetError::wrong(
            format!("`{name}` of the spine is {}, and not an instant", crate::types::describe_one(other)),
            "make it a timestamp, a date or a text as in `2013-01-08T02:15:00Z`",
        )),
    }
}

/// The columns to add, each with its view and feature.
fn features(request: &DatasetRequest, spine: &[OutputColumn]) -> Result<Vec<(String, ViewId, String)>, DatasetError> {
    let taken =
        request.features.columns(request.names).map_err(|error| DatasetError::wrong(error.reason, error.help))?;
    for (name, view, feature) in &taken {
        if spine.iter().any(|column| column.name == *name) {
            return Err(DatasetError::wrong(
                format!("the spine has a column `{name}`, and `{view}.{feature}` would be called the same"),
                "rename the spine's column, or name columns of features in full (`view__feature`)",
            ));
        }
    }
    Ok(taken)
}

/// What the join refuses is wrong with the spine.
fn wrong_plan(error: &DataFusionError) -> DatasetError {
    DatasetError::wrong(
        error.message().into_owned(),
        "the spine's key columns are called and typed as the entity's keys: `tidegate entities list` shows them",
    )
}

/// An error of the engine: what is wrong with the data of a spine is its owner's.
pub(crate) fn failed(doing: &str, error: DataFusionError) -> DatasetError {
    match bad_value(&error) {
        Some(cause) => {
            DatasetError::wrong(format!("the spine cannot be read: {cause}"), "mend that value, or leave the row out")
        }
        None => DatasetError::Failed(anyhow!(error).context(doing.to_owned())),
    }
}

/// What is wrong with a value, when that is why the engine failed, and not a disk or a bug.
pub(crate) fn bad_value(error: &DataFusionError) -> Option<&ArrowError> {
    use ArrowError::{ArithmeticOverflow, CastError, ComputeError, CsvError, DivideByZero, ParseError};
    match error.find_root() {
        DataFusionError::ArrowError(cause, _) => match &**cause {
            CastError(_) | ParseError(_) | CsvError(_) | ComputeError(_) | ArithmeticOverflow(_) | DivideByZero => {
                Some(cause)
            }
            _ => None,
        },
        _ => None,
    }
}
