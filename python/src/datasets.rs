//! Training and scoring sets: rows come from Python and go there as Arrow streams, which copies nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use arrow_array::ffi_stream::ArrowArrayStreamReader;
use arrow_array::{RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow_pyarrow::{FromPyArrow as _, IntoPyArrow as _};
use arrow_schema::ArrowError;
use chrono_tz::Tz;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tidegate::commands::dataset::{Wanted, here, parts, request, stale, told};
use tidegate::context::Registry;
use tidegate::error::{UserError, chain};
use tidegate::times::TimeArgument;
use tidegate_registry::dataset::{ColumnNames, Dataset, Manifest};
use tidegate_registry::ids::DatasetId;
use tidegate_registry::store::StoreError;
use tidegate_registry::time::Instant;
use tidegate_worker::dataset::{Collected, Spine, collect};

use crate::client::{Opened, Parts};
use crate::errors::raise;

/// Where a dataset is that was made in Python, for lists.
const IN_MEMORY: &str = "(in memory)";

/// What Python asks for.
pub(crate) struct Asked {
    pub(crate) features: Vec<String>,
    pub(crate) event_timestamp: String,
    pub(crate) at_snapshot: Option<String>,
    pub(crate) known_at: Option<String>,
    pub(crate) short_names: bool,
    /// The name under which the registry shall remember it.
    pub(crate) name: Option<String>,
}

/// A dataset on its way to Python.
///
/// A `pyarrow.RecordBatchReader`; the manifest as JSON; views that labels were too late for, as a warning each; and why the
/// registry does not remember the dataset although it was told to.
pub(crate) type Made<'py> = (Bound<'py, PyAny>, String, Vec<String>, Option<String>);

/// Joins features to labels. `kind` says what `given` is: `rows` (an Arrow stream), `file`, `sql`, or `entities` (an
/// instant).
pub(crate) fn dataset<'py>(
    opened: &Opened,
    py: Python<'py>,
    kind: &str,
    given: &Bound<'py, PyAny>,
    asked: Asked,
) -> PyResult<Made<'py>> {
    let wanted = Wanted {
        spine: spine(py, kind, given)?,
        label_time: asked.event_timestamp,
        features: asked.features,
        names: if asked.short_names { ColumnNames::Short } else { ColumnNames::Full },
        at_snapshot: asked.at_snapshot,
        known_at: asked.known_at.as_deref().map(instant).transpose().map_err(|error| raise(&error))?,
    };
    let (Collected { schema, batches, manifest }, forgotten) =
        opened.wait(py, collected(&opened.parts, wanted, asked.name))?;
    let late = stale(&manifest);
    let manifest = serde_json::to_string(&manifest).context("writing the manifest").map_err(|error| raise(&error))?;
    let reader: Box<dyn RecordBatchReader + Send> =
        Box::new(RecordBatchIterator::new(batches.into_iter().map(Ok::<_, ArrowError>), schema));
    Ok((reader.into_pyarrow(py)?, manifest, late, forgotten))
}

/// The dataset, and why it is not remembered under its name.
async fn collected(of: &Parts, wanted: Wanted, name: Option<String>) -> anyhow::Result<(Collected, Option<String>)> {
    if wanted.at_snapshot.is_some() && wanted.known_at.is_some() {
        let both = UserError::new("a dataset is read at a snapshot or as it was known at a time, and not both");
        return Err(both.hint("leave `at_snapshot=` or `known_at=` out").into());
    }
    let registry = of.registry(Duration::ZERO).await?;
    let request = request(wanted, &registry).await?;
    let parts = parts(&of.settings, &registry)?;
    if let Some(name) = &name {
        memorable(name, of, &registry).await?;
    }
    let computing = of.computing()?;
    let working = Arc::clone(&computing);
    let collecting = computing.engine.run(async move { collect(&working.engine, &parts, &request).await });
    let collected = collecting.await?.map_err(told)?;
    let forgotten = match name {
        Some(name) => remember(name, of, &registry, &collected.manifest).await.err(),
        None => None,
    };
    Ok((collected, forgotten))
}

/// Looks whether a dataset can be remembered, before time is spent on it.
async fn memorable(name: &str, of: &Parts, registry: &Registry) -> anyhow::Result<()> {
    if name.trim().is_empty() {
        let empty = UserError::new("the dataset's name is empty");
        return Err(empty.hint("leave `name=` out when the registry shall not remember it").into());
    }
    // No dataset has this id yet, so nothing changes; but a registry that cannot be written does not get as far as that.
    match registry.store.dataset_unpin(DatasetId::generate(), &of.context.actor(), registry.clock.now()).await {
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(anyhow!(error).context(format!("looking whether `{name}` can be remembered"))),
    }
}

/// Lets the registry remember a dataset. What was computed is worth more than its name, so an error is but a warning.
async fn remember(name: String, of: &Parts, registry: &Registry, manifest: &Manifest) -> Result<(), String> {
    let dataset = Dataset {
        id: DatasetId::generate(),
        name: Some(name.clone()),
        place: IN_MEMORY.to_owned(),
        created_at: registry.clock.now(),
        actor: of.context.actor(),
        manifest: manifest.clone(),
        pin: None,
    };
    registry.store.dataset_record(&dataset).await.map_err(|error| {
        format!(
            "the dataset is whole, but the registry does not remember it as `{name}`: {}. Lists and restores do not know \
             of it, and what it was made of cannot be pinned: make it again under this name when the registry can be written",
            chain(&anyhow!(error))
        )
    })
}

/// Where labels come from.
fn spine(py: Python<'_>, kind: &str, given: &Bound<'_, PyAny>) -> PyResult<Spine> {
    Ok(match kind {
        "rows" => {
            let reader = ArrowArrayStreamReader::from_pyarrow_bound(given).map_err(|error| no_table(py, error))?;
            let schema = reader.schema();
            // A stream may be one of Python's own, and then takes the lock when it needs it.
            let batches = py.detach(|| reader.collect::<Result<Vec<RecordBatch>, ArrowError>>());
            Spine::Rows(schema, batches.map_err(|error| raise(&anyhow!(error).context("reading the spine")))?)
        }
        "file" => Spine::File { place: here(&given.extract::<String>()?).map_err(|error| raise(&error))? },
        "sql" => Spine::Sql(given.extract()?),
        _ => Spine::Entities(instant(&given.extract::<String>()?).map_err(|error| raise(&error))?),
    })
}

/// Arrow's own word for a stream that has no columns is a bare `ValueError`.
fn no_table(py: Python<'_>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyValueError>(py) {
        return error;
    }
    let wrong = UserError::new(format!("the labels are no table: {}", error.value(py)));
    raise(&wrong.hint("give a frame or a table: several columns, each with its name").into())
}

/// A time as people write it; without an offset it is one of UTC.
fn instant(text: &str) -> anyhow::Result<Instant> {
    let time: TimeArgument = text.parse().map_err(|reason| UserError::new(format!("`{text}` is no time: {reason}")))?;
    Ok(time.in_zone(Tz::UTC))
}
