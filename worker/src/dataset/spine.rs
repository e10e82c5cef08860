//! Where labels come from: a file, a query, every entity there is, or rows at hand.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use datafusion::common::{ScalarValue, TableReference};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{cast, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use indexmap::IndexMap;
use tidegate_registry::dataset::SpineFrom;
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::ids::{SourceName, ViewId};
use tidegate_registry::model::{Key, Source, SourceLocation};
use tidegate_registry::run::{PinnedFile, SourcePin};
use tidegate_registry::time::{Instant, Interval, format_instant};

use super::inputs::{Input, state_at, view};
use super::{DatasetError, DatasetParts, DatasetRequest, Spine};
use crate::reads::{column, register};
use crate::session::plan_query;
use crate::sources::{ColumnTypes, Sources, is_outage};
use crate::types::timestamp;

/// The rows of the spine in an order that is the same each time, and where they come from.
pub(super) async fn read(
    ctx: &SessionContext,
    parts: &DatasetParts,
    request: &DatasetRequest,
    inputs: &IndexMap<ViewId, Input>,
) -> Result<(DataFrame, SpineFrom), DatasetError> {
    match &request.spine {
        Spine::File { place } => {
            let views = request.features.views.keys().map(|id| view(request, id)).collect::<Result<Vec<_>, _>>()?;
            let keys = views.iter().flat_map(|view| request.project.keys_of(view));
            let types = keys.map(|key| (key.name.clone(), crate::types::arrow_type(&key.kind))).collect();
            file(ctx, &parts.spines, place, "spine", &types).await
        }
        Spine::Sql(sql) => query(ctx, parts, request, sql).await,
        Spine::Entities(at) => Ok((entities(ctx, parts, request, inputs, *at).await?, SpineFrom::Entities { at: *at })),
        Spine::Rows(schema, batches) => {
            let mut names = HashSet::new();
            if let Some(twice) = schema.fields().iter().find(|field| !names.insert(field.name())) {
                return Err(DatasetError::wrong(
                    format!("the spine has two columns `{}`", twice.name()),
                    "rename one of them, or leave it out",
                ));
            }
            let table = MemTable::try_new(Arc::clone(schema), vec![batches.clone()]).context("reading the spine")?;
            Ok((ctx.read_table(Arc::new(table)).context("reading the spine")?, SpineFrom::Rows))
        }
    }
}

/// The rows of a Parquet or CSV file, a folder of such, or a Delta table, `what` being its part in messages. A CSV file does
/// not say what its values are: `types` does for some of its columns.
pub(crate) async fn file(
    ctx: &SessionContext,
    spines: &Sources,
    place: &str,
    what: &str,
    types: &ColumnTypes,
) -> Result<(DataFrame, SpineFrom), DatasetError> {
    let cannot = |error: anyhow::Error| {
        if is_outage(&error) {
            return DatasetError::Failed(error.context(format!("reading the {what} `{place}`")));
        }
        DatasetError::wrong(
            format!("the {what} `{place}` cannot be read: {}", error.root_cause()),
            "name a Parquet or CSV file, a folder of such, or a Delta table",
        )
    };
    let name = SourceName::new(what).context("naming a table")?;
    let source = |location: SourceLocation| Source {
        name: name.clone(),
        location,
        event_time: None,
        description: None,
        owner: None,
        tags: Vec::new(),
        checks: Vec::new(),
        origin: Origin::default(),
    };
    let is_table = !place.contains('*') && spines.is_table(place).await.map_err(cannot)?;
    let location = if is_table { SourceLocation::Delta } else { SourceLocation::Parquet };
    let mut source = source(location(place.to_owned()));
    let pin = spines.pin(&source).await.map_err(cannot)?;
    let format = match &pin {
        SourcePin::Delta { .. } => "delta",
        SourcePin::Files(files) => {
            let is_csv = |file: &&PinnedFile| file.url.to_lowercase().ends_with(".csv");
            match files.iter().filter(is_csv).count() {
                0 => "parquet",
                some if some == files.len() => {
                    source.location = SourceLocation::Csv(place.to_owned());
                    "csv"
                }
                some => {
                    return Err(cannot(anyhow!(
                        "{some} of its {} files are called `.csv`, and the others are not",
                        files.len()
                    )));
                }
            }
        }
    };
    let table = spines.provider_with(ctx, &source, &pin, types).await.map_err(cannot)?;
    let version = match pin {
        SourcePin::Delta { version } => Some(version),
        SourcePin::Files(_) => None,
    };
    let rows = ctx.read_table(table).with_context(|| format!("reading the {what}"))?;
    Ok((rows, SpineFrom::File { place: place.to_owned(), format: format.to_owned(), version }))
}

/// A query has no order of its own, so its rows are sorted by all that they hold.
async fn query(
    ctx: &SessionContext,
    parts: &DatasetParts,
    request: &DatasetRequest,
    sql: &str,
) -> Result<(DataFrame, SpineFrom), DatasetError> {
    let wrong = |reason: String| {
        DatasetError::wrong(
            format!("the spine's query is wrong: {reason}"),
            "it is one query over sources of the project; `tidegate sources list` shows them",
        )
    };
    if sql.contains("$interval") {
        return Err(wrong(
            "a spine has no interval, so there is no `$interval_start` and no `$interval_end`".to_owned(),
        ));
    }
    let mut pins = BTreeMap::new();
    let named = named_tables(ctx, sql).map_err(|error| wrong(reason(&error)))?;
    for source in request.project.sources.values().filter(|source| named.contains(&source.name.to_string())) {
        let pin = parts.sources.pin(source).await?;
        register(ctx, source.name.as_str(), parts.sources.provider(ctx, source, &pin).await?)?;
        pins.insert(source.name.clone(), pin);
    }
    let never = Interval::new(Instant::UNIX_EPOCH, Instant::UNIX_EPOCH + chrono::Duration::days(1))
        .context("making an interval")?;
    let plan = plan_query(ctx, sql, never).await.map_err(|error| wrong(reason(&error)))?;
    let rows = DataFrame::new(ctx.state(), plan);
    let order = rows.schema().columns().into_iter();
    let order = order.map(|column| datafusion::logical_expr::Expr::Column(column).sort(true, false)).collect();
    let rows = rows.sort(order).context("ordering the spine")?;
    Ok((rows, SpineFrom::Sql { sql: sql.to_owned(), sources: pins }))
}

/// What a planner says, without its prefix.
fn reason(error: &DataFusionError) -> String {
    error.find_root().message().into_owned()
}

fn named_tables(ctx: &SessionContext, sql: &str) -> datafusion::error::Result<Vec<String>> {
    let state = ctx.state();
    let statement = state.sql_to_statement(sql, &datafusion::config::Dialect::PostgreSQL)?;
    let tables = state.resolve_table_references(&statement)?;
    Ok(tables.into_iter().map(|table: TableReference| table.table().to_owned()).collect())
}

/// Every entity that one of the views knows at `at`, once, in the order of its keys.
async fn entities(
    ctx: &SessionContext,
    parts: &DatasetParts,
    request: &DatasetRequest,
    inputs: &IndexMap<ViewId, Input>,
    at: Instant,
) -> Result<DataFrame, DatasetError> {
    let keys = all_keys(request)?;
    let mut all: Option<DataFrame> = None;
    for (id, input) in inputs {
        if request.project.keys_of(view(request, id)?).len() < keys.len() {
            continue; // it knows only parts of the entities
        }
        let known = state_at(ctx, &parts.lake, request, id, input, at).await?;
        let columns: Vec<_> = keys
            .iter()
            .map(|key| cast(column(&key.name), crate::types::arrow_type(&key.kind)).alias(&key.name))
            .collect();
        let known = known.select(columns).context("reading entities")?;
        all = Some(match all {
            None => known,
            Some(others) => others.union(known).context("collecting entities")?,
        });
    }
    let all = all.context("no view knows which entities there are")?;
    let order = keys.iter().map(|key| column(&key.name).sort(true, false)).collect();
    let label = cast(lit(ScalarValue::TimestampMicrosecond(Some(at.timestamp_micros()), None)), timestamp());
    let rows = all.distinct().context("collecting entities")?.sort(order).context("ordering entities")?;
    tracing::debug!(at = %format_instant(at), "The spine is every entity known then.");
    Ok(rows.with_column(&request.label_time, label).context("dating entities")?)
}

/// The keys of all views together; one of the views must have them all.
fn all_keys(request: &DatasetRequest) -> Result<Vec<Key>, DatasetError> {
    let project = &request.project;
    let views = request.features.views.keys().map(|id| view(request, id)).collect::<Result<Vec<_>, _>>()?;
    let longest = views.iter().max_by_key(|view| project.keys_of(view).len());
    let keys: Vec<Key> = longest.map(|view| project.keys_of(view).to_vec()).unwrap_or_default();
    for view in &views {
        if let Some(key) = project.keys_of(view).iter().find(|key| !keys.contains(key)) {
            return Err(DatasetError::wrong(
                format!("no view says which entities there are: `{}` is found by `{}` as well", view.id, key.name),
                "give a spine with all keys, as a file or a query",
            ));
        }
    }
    Ok(keys)
}
