//! What building a dataset would read, without building it.

use std::collections::HashMap;

use datafusion::arrow::array::{Array as _, AsArray as _};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use datafusion::functions_aggregate::expr_fn::{max, min};
use datafusion::logical_expr::cast;
use datafusion::prelude::SessionContext;
use indexmap::IndexMap;
use tidegate_asof::Rule;
use tidegate_registry::dataset::ViewInput;
use tidegate_registry::ids::ViewId;
use tidegate_registry::store::LedgerEntry;

use super::inputs::{self, Input};
use super::{DatasetError, DatasetParts, DatasetRequest, Labels, PlaceFormat, Spine, failed, labels, plan, spine};
use crate::engine::{Engine, Joins};
use crate::lake::care::DatedFile;
use crate::reads::column;
use crate::types::timestamp;

/// What is read of one view.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewFiles {
    /// The view.
    pub view: ViewId,
    /// What the manifest will say of it.
    pub input: ViewInput,
    /// Data files that may hold a row which a label sees.
    pub files: u64,
    /// Their bytes, of which only the columns asked for are read.
    pub bytes: u64,
    /// All data files of that version.
    pub table_files: u64,
}

/// What building the dataset would read. The labels' instants are read for that, and so is all of a spine that is a query.
///
/// # Errors
/// Those of [`super::open`].
pub async fn files(
    engine: &Engine,
    parts: &DatasetParts,
    request: &DatasetRequest,
) -> Result<Vec<ViewFiles>, DatasetError> {
    // For what it finds wrong.
    plan(engine, parts, request, PlaceFormat::Parquet).await?;
    let inputs = inputs::of(&*parts.store, request).await?;
    let span = span(&engine.context(Joins::Hash)?, parts, request, &inputs).await?;
    let mut all = Vec::with_capacity(inputs.len());
    for (view, input) in inputs {
        let files = match input.noted.delta_version {
            Some(version) => parts.lake.dated_files(&view, version).await?,
            None => Vec::new(),
        };
        let rule = inputs::rule(inputs::view(request, &view)?, &input.ledger)?;
        let ends: HashMap<i64, i64> = input
            .ledger
            .iter()
            .map(|LedgerEntry { interval, .. }| {
                (interval.start().timestamp_micros(), interval.end().timestamp_micros())
            })
            .collect();
        let seen = files.iter().filter(|file| {
            span.zip(ends.get(&file.slice)).is_some_and(|(span, end)| may_be_seen(file, *end, &rule, span))
        });
        let (count, bytes) = seen.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.size));
        all.push(ViewFiles { view, input: input.noted, files: count, bytes, table_files: files.len() as u64 });
    }
    Ok(all)
}

/// The first and the last label, in microseconds; `None` without labels.
async fn span(
    ctx: &SessionContext,
    parts: &DatasetParts,
    request: &DatasetRequest,
    inputs: &IndexMap<ViewId, Input>,
) -> Result<Option<(i64, i64)>, DatasetError> {
    if let Spine::Entities(at) = &request.spine {
        return Ok(Some((at.timestamp_micros(), at.timestamp_micros())));
    }
    let (spine, _) = spine::read(ctx, parts, request, inputs).await?;
    let Labels { spine, label, .. } = labels(spine, request)?;
    let reading = |error| failed("reading the labels' instants", error);
    let instant = || cast(column(&label), timestamp());
    let ends = vec![min(instant()).alias("first"), max(instant()).alias("last")];
    let ends = spine.aggregate(Vec::new(), ends).map_err(reading)?.collect().await.map_err(reading)?;
    let end = |place: usize| {
        let mut values = ends.iter().map(|batch| batch.column(place).as_primitive::<TimestampMicrosecondType>());
        values.find_map(|values| (!values.is_empty() && values.is_valid(0)).then(|| values.value(0)))
    };
    Ok(end(0).zip(end(1)))
}

/// Whether a label between `first` and `last` may see a row of `file`, whose interval ends at `end`: what the join tells the
/// scans, too.
fn may_be_seen(file: &DatedFile, end: i64, rule: &Rule, (first, last): (i64, i64)) -> bool {
    let micros = |duration: std::time::Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    match rule {
        Rule::Event { delay, ttl, .. } => file.events.is_none_or(|(oldest, newest)| {
            ttl.is_none_or(|ttl| newest >= first.saturating_sub(micros(ttl)))
                && oldest <= last.saturating_sub(micros(*delay))
        }),
        Rule::Interval { published, .. } => published
            .iter()
            .any(|period| period.interval == end && period.available_from <= last && period.available_until > first),
    }
}
