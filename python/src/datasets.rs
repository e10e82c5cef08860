//! Training and scoring sets: rows come from Python and go there as Arrow streams, which copies nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use arrow_array::ffi_stream::ArrowArrayStreamReader;
use arrow_array::{RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow_pyarrow::{FromPyArrow as _, IntoPyArrow as _};
use arrow_schema::ArrowError;
use chrono_tz::Tz;
use pyo3::prelude::*;
use tidegate::commands::dataset::{Wanted, here, parts, request, stale, told};
use tidegate::error::UserError;
use tidegate::times::TimeArgument;
use tidegate_registry::dataset::{ColumnNames, Dataset};
use tidegate_registry::ids::DatasetId;
use tidegate_registry::time::Instant;
use tidegate_worker::dataset::{Collected, Spine, collect};

use crate::client::{Client, Parts};
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

/// Joins features to labels. `kind` says what `given` is: `rows` (an Arrow stream), `file`, `sql`, or `entities` (an
/// instant). Gives a `pyarrow.RecordBatchReader`, the manifest as JSON, and what the caller is to be warned of.
pub(crate) fn dataset<'py>(
    client: &Client,
    py: Python<'py>,
    kind: &str,
    given: &Bound<'py, PyAny>,
    asked: Asked,
) -> PyResult<(Bound<'py, PyAny>, String, Vec<String>)> {
    let wanted = Wanted {
        spine: spine(py, kind, given)?,
        label_time: asked.event_timestamp,
        features: asked.features,
        names: if asked.short_names { ColumnNames::Short } else { ColumnNames::Full },
        at_snapshot: asked.at_snapshot,
        known_at: asked.known_at.as_deref().map(instant).transpose().map_err(|error| raise(&error))?,
    };
    let (Collected { schema, batches, manifest }, warnings) =
        client.wait(py, collected(&client.parts, wanted, asked.name))?;
    let manifest = serde_json::to_string(&manifest).context("writing the manifest").map_err(|error| raise(&error))?;
    let reader: Box<dyn RecordBatchReader + Send> =
        Box::new(RecordBatchIterator::new(batches.into_iter().map(Ok::<_, ArrowError>), schema));
    Ok((reader.into_pyarrow(py)?, manifest, warnings))
}

async fn collected(of: &Parts, wanted: Wanted, name: Option<String>) -> anyhow::Result<(Collected, Vec<String>)> {
    if wanted.at_snapshot.is_some() && wanted.known_at.is_some() {
        let both = UserError::new("a dataset is read at a snapshot or as it was known at a time, and not both");
        return Err(both.hint("leave `at_snapshot=` or `known_at=` out").into());
    }
    let registry = of.registry(Duration::ZERO).await?;
    let request = request(wanted, &registry).await?;
    let parts = parts(&of.settings, &registry)?;
    let engine = of.engine()?;
    let working = Arc::clone(&engine);
    let collected = engine.run(async move { collect(&working, &parts, &request).await }).await?.map_err(told)?;
    if name.is_some() {
        let dataset = Dataset {
            id: DatasetId::generate(),
            name,
            place: IN_MEMORY.to_owned(),
            created_at: registry.clock.now(),
            actor: of.context.actor(),
            manifest: collected.manifest.clone(),
            pin: None,
        };
        registry.store.dataset_record(&dataset).await.context("remembering the dataset")?;
    }
    let warnings = stale(&collected.manifest);
    Ok((collected, warnings))
}

/// Where labels come from.
fn spine(py: Python<'_>, kind: &str, given: &Bound<'_, PyAny>) -> PyResult<Spine> {
    Ok(match kind {
        "rows" => {
            let reader = ArrowArrayStreamReader::from_pyarrow_bound(given)?;
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

/// A time as people write it; without an offset it is one of UTC.
fn instant(text: &str) -> anyhow::Result<Instant> {
    let time: TimeArgument = text.parse().map_err(|reason| UserError::new(format!("`{text}` is no time: {reason}")))?;
    Ok(time.in_zone(Tz::UTC))
}
