//! The two sides of a comparison, each with one row per entity, or per entity and time.

use anyhow::Context as _;
use datafusion::arrow::array::{Array as _, ArrayRef};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt as _, cast, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use indexmap::IndexMap;
use std::sync::Arc;
use tidegate_registry::dataset::ColumnNames;
use tidegate_registry::features::Selection;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::Output;
use tidegate_registry::time::{Instant, format_instant};

use super::{CompareError, CompareRequest, Span, With, failed};
use crate::dataset::{DatasetParts, DatasetRequest, LABEL_TIME, Spine, inputs, spine};
use crate::reads::{column, instant_literal};
use crate::text::TextColumn;
use crate::types::{EVENT_TIMESTAMP, INTERVAL_END, INTERVAL_START, RUN_ID, timestamp};

/// A column by which rows find each other.
#[derive(Debug, Clone)]
pub(super) struct KeyColumn {
    /// As it is called in examples.
    pub(super) name: String,
    /// As it is called in the side's rows.
    pub(super) column: String,
}

/// One side.
pub(super) struct Side {
    /// In messages.
    pub(super) called: String,
    pub(super) rows: DataFrame,
    /// In the order of the view's.
    pub(super) keys: Vec<KeyColumn>,
    /// What can be compared, by the name that it has in the view, with its own.
    pub(super) features: IndexMap<String, String>,
}

impl Side {
    /// The type of a column.
    pub(super) fn kind(&self, name: &str) -> Result<DataType, CompareError> {
        let field = self.rows.schema().field_with_unqualified_name(name);
        Ok(field.with_context(|| format!("{} has lost its column `{name}`", self.called))?.data_type().clone())
    }
}

/// Both sides, and which of their rows they hold.
pub(super) async fn open(
    ctx: &SessionContext,
    parts: &DatasetParts,
    request: &CompareRequest,
) -> Result<(Span, Side, Side), CompareError> {
    if let With::View(other) = &request.with
        && *other == request.view
    {
        return Err(CompareError::wrong(
            format!("`{other}` would be compared with itself"),
            "name another version after `--with`; `tidegate snapshots diff` compares what a view was with what it is",
        ));
    }
    let views = Views::of(parts, request).await?;
    let span = views.span(request)?;
    let ours = views.side(ctx, parts, request, &request.view, span).await?;
    let theirs = match &request.with {
        With::View(other) => {
            let theirs = views.side(ctx, parts, request, other, span).await?;
            renamed(theirs, request, &ours)?
        }
        With::Source(_) | With::Place(_) => table(ctx, parts, request, &ours, span).await?,
    };
    Ok((span, ours, theirs))
}

/// The views that are compared, as they were at the request's number.
struct Views {
    request: DatasetRequest,
    inputs: IndexMap<ViewId, inputs::Input>,
}

impl Views {
    async fn of(parts: &DatasetParts, request: &CompareRequest) -> Result<Self, CompareError> {
        let mut project = (*request.project).clone();
        let mut features = Selection::default();
        let other = if let With::View(other) = &request.with { Some(other) } else { None };
        for id in std::iter::once(&request.view).chain(other) {
            let view = project.views.get_mut(id).with_context(|| format!("`{id}` is not defined"))?;
            // What a run computed is compared, not when it was there to be read.
            view.serving_delay = std::time::Duration::ZERO;
            features.views.insert(id.clone(), view.features.iter().map(|feature| feature.name.clone()).collect());
        }
        let request = DatasetRequest {
            project: Arc::new(project),
            definitions: 0,
            spine: Spine::Entities(Instant::UNIX_EPOCH),
            label_time: LABEL_TIME.to_owned(),
            features,
            names: ColumnNames::Short,
            number: request.number,
            known_at: None,
        };
        let inputs = inputs::of(&*parts.store, &request).await?;
        Ok(Self { request, inputs })
    }

    /// The instant that is meant: by itself the newest of which every view has an interval.
    fn span(&self, request: &CompareRequest) -> Result<Span, CompareError> {
        let mut newest: Option<Instant> = None;
        for (id, input) in &self.inputs {
            let Some(end) = input.ledger.first().map(|entry| entry.interval.end()) else {
                return Err(CompareError::wrong(
                    format!("nothing of `{id}` is published"),
                    "compute it first: `tidegate backfill DAG --from T --to T`",
                ));
            };
            newest = Some(newest.map_or(end, |newest| newest.min(end)));
        }
        Ok(match request.span {
            Span::AsOf(at) => Span::AsOf(at.or(newest)),
            history @ Span::History(..) => history,
        })
    }

    async fn side(
        &self,
        ctx: &SessionContext,
        parts: &DatasetParts,
        request: &CompareRequest,
        id: &ViewId,
        span: Span,
    ) -> Result<Side, CompareError> {
        let view = inputs::view(&self.request, id)?;
        let input = self.inputs.get(id).with_context(|| format!("`{id}` was not looked up"))?;
        let mut keys: Vec<KeyColumn> = self.request.project.keys_of(view).iter().map(|key| named(&key.name)).collect();
        let reading = || format!("reading `{id}`");
        let rows = match span {
            Span::AsOf(at) => {
                let at = at.context("no instant was found")?;
                let rows = inputs::state_at(ctx, &parts.lake, &self.request, id, input, at).await?;
                match view.output {
                    Output::Full => rows,
                    Output::Partial { .. } => newest(rows, &keys, EVENT_TIMESTAMP).with_context(reading)?,
                }
            }
            Span::History(from, to) => {
                // Views have one row per entity and interval. Their times are their own; two intervals may give one.
                let (time, by_time) = match request.with {
                    With::View(_) => (INTERVAL_END, false),
                    With::Source(_) | With::Place(_) => (EVENT_TIMESTAMP, true),
                };
                let rows = inputs::table(ctx, &parts.lake, &self.request, id, input).await?;
                let rows = between(rows, time, from, to).with_context(reading)?;
                keys.push(named(time));
                if by_time { newest(rows, &keys, INTERVAL_START).with_context(reading)? } else { rows }
            }
        };
        let features = view.features.iter().map(|feature| (feature.name.clone(), feature.name.clone())).collect();
        Ok(Side { called: format!("`{id}`"), rows, keys, features })
    }
}

fn named(name: &str) -> KeyColumn {
    KeyColumn { name: name.to_owned(), column: name.to_owned() }
}

/// The rows whose time is in [`from`, `to`).
fn between(
    rows: DataFrame,
    time: &str,
    from: Option<Instant>,
    to: Option<Instant>,
) -> datafusion::error::Result<DataFrame> {
    let rows = match from {
        Some(from) => rows.filter(column(time).gt_eq(instant_literal(from)))?,
        None => rows,
    };
    match to {
        Some(to) => rows.filter(column(time).lt(instant_literal(to))),
        None => Ok(rows),
    }
}

/// Of all rows with the same keys the one with the greatest `by`; of several the one of the latest interval, where there are
/// intervals.
fn newest(rows: DataFrame, keys: &[KeyColumn], by: &str) -> datafusion::error::Result<DataFrame> {
    let mut order = vec![column(by).sort(false, false)];
    if by != INTERVAL_START && rows.schema().has_column_with_unqualified_name(INTERVAL_START) {
        order.push(column(INTERVAL_START).sort(false, false));
    }
    let rank = row_number()
        .partition_by(keys.iter().map(|key| column(&key.column)).collect())
        .order_by(order)
        .build()?
        .alias("__tidegate_rank");
    rows.window(vec![rank])?.filter(column("__tidegate_rank").eq(lit(1_u64)))
}

/// What `--columns` says of the other side's features.
fn renamed(mut side: Side, request: &CompareRequest, ours: &Side) -> Result<Side, CompareError> {
    let names: Vec<String> = side.features.keys().cloned().collect();
    side.features = as_here(&names, &side.called, request, ours)?;
    for (ours, theirs) in ours.keys.iter().zip(&mut side.keys) {
        if ours.name != theirs.name {
            return Err(CompareError::wrong(
                format!("`{}` is found by `{}`, and {} by `{}`", request.view, ours.name, side.called, theirs.name),
                "only views of the same keys can be compared",
            ));
        }
    }
    if ours.keys.len() != side.keys.len() {
        return Err(CompareError::wrong(
            format!("`{}` and {} have different keys", request.view, side.called),
            "only views of the same keys can be compared",
        ));
    }
    Ok(side)
}

/// The columns `names` by what `--columns` calls them, which is what they are called here; the others by their own names.
fn as_here(
    names: &[String],
    called: &str,
    request: &CompareRequest,
    ours: &Side,
) -> Result<IndexMap<String, String>, CompareError> {
    let mut as_here: IndexMap<String, String> = IndexMap::new();
    for (theirs, name) in &request.renamed {
        if !names.contains(theirs) {
            return Err(unknown(called, theirs, names.iter()));
        }
        known_here(request, ours, name)?;
        if let Some(other) = as_here.insert(name.clone(), theirs.clone()) {
            return Err(CompareError::wrong(
                format!("`--columns` names both `{other}` and `{theirs}` as `{name}`"),
                "a feature is compared with one column",
            ));
        }
    }
    let taken: Vec<String> = as_here.values().cloned().collect();
    for name in names.iter().filter(|name| !taken.contains(name)) {
        as_here.entry(name.clone()).or_insert_with(|| name.clone());
    }
    Ok(as_here)
}

fn unknown<'a>(called: &str, name: &str, known: impl Iterator<Item = &'a String>) -> CompareError {
    let known: Vec<String> = known.map(|name| format!("`{name}`")).collect();
    CompareError::wrong(format!("{called} has no column `{name}`"), format!("it has {}", known.join(", ")))
}

fn known_here(request: &CompareRequest, ours: &Side, name: &str) -> Result<(), CompareError> {
    let is_key = ours.keys.iter().any(|key| key.name == name);
    if is_key || ours.features.contains_key(name) {
        return Ok(());
    }
    let known = ours.keys.iter().map(|key| &key.name).chain(ours.features.keys());
    Err(unknown(&format!("`{}`", request.view), name, known))
}

/// A table that is none of ours.
async fn table(
    ctx: &SessionContext,
    parts: &DatasetParts,
    request: &CompareRequest,
    ours: &Side,
    span: Span,
) -> Result<Side, CompareError> {
    let (called, rows) = match &request.with {
        With::Source(name) => {
            let source = request.project.sources.get(name).with_context(|| format!("`{name}` is not defined"))?;
            let pin = parts.sources.pin(source).await?;
            let table = parts.sources.provider(ctx, source, &pin).await?;
            (format!("the source `{name}`"), ctx.read_table(table).context("reading a source")?)
        }
        With::Place(place) => {
            let view = request.project.views.get(&request.view).context("the view is not defined")?;
            let types = request.project.keys_of(view).iter().map(|key| {
                let renamed = request.renamed.iter().find(|(_, name)| *name == key.name);
                let theirs = renamed.map_or(&key.name, |(theirs, _)| theirs);
                (theirs.clone(), crate::types::arrow_type(&key.kind))
            });
            let (rows, _) = spine::file(ctx, &parts.spines, place, "table", &types.collect()).await?;
            (format!("`{place}`"), rows)
        }
        With::View(_) => return Err(anyhow::anyhow!("a view is no table").into()),
    };
    let names: Vec<String> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
    let as_here = as_here(&names, &called, request, ours)?;
    let time = match (&request.their_time, span) {
        (Some(time), _) => Some(time.clone()),
        (None, Span::History(..)) => Some(as_here.get(EVENT_TIMESTAMP).cloned().unwrap_or(EVENT_TIMESTAMP.to_owned())),
        (None, Span::AsOf(_)) => None,
    };
    let mut keys = Vec::with_capacity(ours.keys.len());
    for key in &ours.keys {
        let is_time = key.name == EVENT_TIMESTAMP && matches!(span, Span::History(..));
        let theirs = if is_time { time.as_ref() } else { as_here.get(&key.name) };
        match theirs.filter(|theirs| names.contains(theirs)) {
            Some(theirs) => keys.push(KeyColumn { name: key.name.clone(), column: theirs.clone() }),
            None => {
                let mut wrong = unknown(&called, &key.name, names.iter());
                if let CompareError::Wrong { message, hint } = &mut wrong {
                    let how = if is_time {
                        "`--event-timestamp COLUMN`"
                    } else {
                        &format!("`--columns THEIRS={}`", key.name)
                    };
                    message.push_str(", by which rows are found");
                    *hint = format!("{hint}; {how} says which one it is");
                }
                return Err(wrong);
            }
        }
    }
    let rows = match &time {
        Some(time) => timed(rows, time, &called, &names)?,
        None => rows,
    };
    // Of all there are: one that stands there twice is a mistake at any time.
    let mut unique = keys.clone();
    if let (Some(time), Span::AsOf(_)) = (&time, span) {
        unique.push(named(time));
    }
    let rows = match (&time, span) {
        (Some(time), Span::History(from, to)) => {
            between(rows, time, from, to).map_err(|error| failed(&called, error))?
        }
        (Some(time), Span::AsOf(Some(at))) => {
            rows.filter(column(time).lt_eq(instant_literal(at))).map_err(|error| failed(&called, error))?
        }
        _ => rows,
    };
    refuse_doubles(&rows, &unique, &called, time.is_none()).await?;
    let rows = match (&time, span) {
        (Some(time), Span::AsOf(_)) => newest(rows, &keys, time).map_err(|error| failed(&called, error))?,
        _ => rows,
    };
    // What our own tables have beside features is nothing that an old pipeline could agree in.
    let beside = [EVENT_TIMESTAMP, INTERVAL_START, INTERVAL_END, RUN_ID];
    let is_feature = |(name, theirs): &(&String, &String)| {
        !keys.iter().any(|key| key.column == **theirs)
            && time.as_ref() != Some(theirs)
            && (ours.features.contains_key(*name) || !beside.contains(&name.as_str()))
    };
    let features = as_here.iter().filter(is_feature).map(|(name, theirs)| (name.clone(), theirs.clone())).collect();
    Ok(Side { called, rows, keys, features })
}

/// The rows with their times as instants; a zoneless one is one of UTC.
fn timed(rows: DataFrame, time: &str, called: &str, names: &[String]) -> Result<DataFrame, CompareError> {
    let Ok(field) = rows.schema().field_with_unqualified_name(time) else {
        return Err(unknown(called, time, names.iter()));
    };
    match field.data_type() {
        DataType::Timestamp(..)
        | DataType::Date32
        | DataType::Date64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View => {
            Ok(rows.with_column(time, cast(column(time), timestamp())).context("reading instants")?)
        }
        other => Err(CompareError::wrong(
            format!("`{time}` of {called} is {}, and not an instant", crate::types::describe_one(other)),
            "make it a timestamp, a date or a text as in `2013-01-08T02:15:00Z`",
        )),
    }
}

/// An entity that stands there twice has two values, of which nobody knows which one is meant.
async fn refuse_doubles(
    rows: &DataFrame,
    keys: &[KeyColumn],
    called: &str,
    is_timeless: bool,
) -> Result<(), CompareError> {
    let columns: Vec<Expr> = keys.iter().map(|key| column(&key.column)).collect();
    let planning = "looking for entities that stand there twice";
    let found = columns.iter().try_fold(rows.clone(), |rows, key| rows.filter(key.clone().is_not_null()));
    let found = found
        .and_then(|rows| rows.aggregate(columns.clone(), vec![count(lit(1)).alias("__tidegate_rows")]))
        .and_then(|rows| rows.filter(column("__tidegate_rows").gt(lit(ScalarValue::Int64(Some(1))))))
        .and_then(|rows| rows.sort(columns.iter().map(|key| key.clone().sort(true, false)).collect()))
        .and_then(|rows| rows.limit(0, Some(1)))
        .context(planning)?;
    let batches = found.collect().await.map_err(|error| failed(called, error))?;
    let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok(()) };
    let value = |array: &ArrayRef| {
        TextColumn::new(array).ok().and_then(|text| text.text(0)).unwrap_or_else(|| array.data_type().to_string())
    };
    let entity: Vec<String> =
        keys.iter().zip(batch.columns()).map(|(key, array)| format!("{}={}", key.name, value(array))).collect();
    let times = batch.columns().last().map(value).unwrap_or_default();
    let hint = if is_timeless {
        "leave one row of each; of a table with a row for each time, `--event-timestamp COLUMN` takes the newest"
    } else {
        "leave one row of each entity and time"
    };
    Err(CompareError::wrong(format!("{called} has {times} rows of {}", entity.join(" ")), hint))
}

/// What is compared, in words.
impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or_all = |at: &Option<Instant>, all: &str| at.map_or_else(|| all.to_owned(), format_instant);
        match self {
            Self::AsOf(at) => f.write_str(&or_all(at, "the newest")),
            Self::History(from, to) => write!(f, "{} to {}", or_all(from, "the first"), or_all(to, "the last")),
        }
    }
}
