//! The views of a dataset: what each was at a snapshot number, and what a label may see of it.

use std::sync::Arc;

use anyhow::Context as _;
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use indexmap::IndexMap;
use tidegate_asof::{History, Period, Rule};
use tidegate_registry::dataset::ViewInput;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{FeatureView, Output};
use tidegate_registry::restore::AsOf;
use tidegate_registry::store::{LedgerEntry, Store};
use tidegate_registry::time::{Instant, format_instant};

use super::{DatasetError, DatasetRequest};
use crate::lake::Lake;
use crate::reads::{column, scan};
use crate::types::{EVENT_TIMESTAMP, INTERVAL_END, INTERVAL_START, arrow_type, timestamp};

/// One view as it is read.
pub(crate) struct Input {
    /// What the manifest says of it.
    pub(crate) noted: ViewInput,
    /// What was published, newest interval first.
    pub(crate) ledger: Vec<LedgerEntry>,
}

/// What each view is at the request's number.
///
/// # Errors
/// [`DatasetError::Wrong`] when retention has let go of it.
pub(crate) async fn of(store: &dyn Store, request: &DatasetRequest) -> Result<IndexMap<ViewId, Input>, DatasetError> {
    let mut inputs = IndexMap::with_capacity(request.features.views.len());
    for id in request.features.views.keys() {
        let view = view(request, id)?;
        let AsOf { snapshot, expired, delta_version, ledger, .. } =
            store.as_of(id, request.number).await.with_context(|| format!("looking up what `{id}` was"))?;
        if expired {
            return Err(DatasetError::wrong(
                format!("retention has let go of what `{id}` was then"),
                "choose a later snapshot; `tidegate dataset pin` keeps what a dataset was built from",
            ));
        }
        let noted = ViewInput {
            fingerprint: view.fingerprint.clone(),
            snapshot,
            delta_version,
            intervals: ledger.len() as u64,
            covers: ledger.first().map(|entry| entry.interval.end()),
        };
        inputs.insert(id.clone(), Input { noted, ledger });
    }
    Ok(inputs)
}

pub(crate) fn view<'a>(request: &'a DatasetRequest, id: &ViewId) -> Result<&'a FeatureView, DatasetError> {
    Ok(request.project.views.get(id).with_context(|| format!("`{id}` is not defined"))?)
}

/// The table of `id` as it was; one without rows when nothing had been published.
pub(crate) async fn table(
    ctx: &SessionContext,
    lake: &Lake,
    request: &DatasetRequest,
    id: &ViewId,
    input: &Input,
) -> Result<DataFrame, DatasetError> {
    let view = view(request, id)?;
    let schema = crate::types::view_schema(&request.project, view);
    let Some(version) = input.noted.delta_version else {
        let empty = datafusion::datasource::empty::EmptyTable::new(schema);
        return Ok(ctx.read_table(Arc::new(empty)).context("reading an empty table")?);
    };
    let reading = || format!("reading the table of `{id}` at version {version}");
    let table = lake.load(id, Some(version)).await.with_context(reading)?;
    let rows = scan(ctx, &table).await.with_context(reading)?;
    // Columns that the definition has got since then are null in older versions.
    let missing: Vec<_> =
        schema.fields().iter().filter(|field| !rows.schema().has_column_with_unqualified_name(field.name())).collect();
    let mut rows = rows;
    for field in missing {
        let null = ScalarValue::try_from(field.data_type()).context("making a null")?;
        rows = rows.with_column(field.name(), lit(null)).with_context(reading)?;
    }
    Ok(rows)
}

/// What the join reads: one history per view.
pub(super) async fn histories(
    ctx: &SessionContext,
    lake: &Lake,
    request: &DatasetRequest,
    inputs: &IndexMap<ViewId, Input>,
    taken: &[(String, ViewId, String)],
    spine: &DFSchema,
) -> Result<Vec<History>, DatasetError> {
    let mut histories = Vec::with_capacity(inputs.len());
    for (id, input) in inputs {
        let view = view(request, id)?;
        let mut keys = Vec::new();
        for key in request.project.keys_of(view) {
            if !spine.has_column_with_unqualified_name(&key.name) {
                let own = spine.fields().iter().filter(|field| !field.name().starts_with("__tidegate_"));
                let known: Vec<String> = own.map(|field| format!("`{}`", field.name())).collect();
                return Err(DatasetError::wrong(
                    format!("the spine has no column `{}`, by which `{id}` is found", key.name),
                    format!("it has {}: rename one, or leave the view out", known.join(", ")),
                ));
            }
            keys.push((Column::from_name(&key.name), Column::from_name(&key.name)));
        }
        let mut rows = table(ctx, lake, request, id, input).await?;
        if let (Output::Partial { .. }, Some(end)) =
            (&view.output, input.ledger.iter().map(|of| of.interval.end()).max())
        {
            // True of every row. But only of columns that a condition names does the scan know the files' statistics, by which
            // it leaves out, once the labels are known, what none of them sees.
            let condition = column(EVENT_TIMESTAMP).lt_eq(instant(end.timestamp_micros()));
            rows = rows.filter(condition).with_context(|| format!("reading the table of `{id}`"))?;
        }
        let mine: Vec<_> = taken.iter().filter(|(_, of, _)| of == id).collect();
        // Typed as declared, whatever an old table or an empty one holds.
        let mut columns: Vec<_> = keys.iter().map(|(_, key)| column(key.name())).collect();
        columns.extend([EVENT_TIMESTAMP, INTERVAL_START, INTERVAL_END].map(column));
        for (_, _, feature) in &mine {
            let declared = view.features.iter().find(|known| known.name == *feature);
            let declared = declared.with_context(|| format!("`{id}` has no feature `{feature}`"))?;
            let cast = datafusion::logical_expr::cast(column(feature), arrow_type(&declared.kind));
            columns.push(cast.alias(feature));
        }
        let rows = rows.select(columns).with_context(|| format!("reading the table of `{id}`"))?;
        let plan = LogicalPlanBuilder::from(rows.logical_plan().clone()).build().context("planning a view")?;
        histories.push(History {
            name: format!("`{id}`"),
            plan,
            keys,
            rule: rule(view, &input.ledger)?,
            take: mine.iter().map(|(name, _, feature)| (Column::from_name(feature), name.clone())).collect(),
        });
    }
    Ok(histories)
}

/// What a label may see of a view: the point-in-time rule.
pub(super) fn rule(view: &FeatureView, ledger: &[LedgerEntry]) -> Result<Rule, DatasetError> {
    Ok(match view.output {
        Output::Full => {
            // The start would do as well, but it is the partition's, and no column of a file: only of columns do the
            // statistics tell a scan, once the labels are known, which files it need not open.
            Rule::Interval { interval: Column::from_name(INTERVAL_END), published: periods(view, ledger)? }
        }
        Output::Partial { ttl } => Rule::Event {
            time: Column::from_name(EVENT_TIMESTAMP),
            delay: view.serving_delay,
            ttl: Some(ttl),
            tie_break: vec![Column::from_name(INTERVAL_START)],
        },
    })
}

/// When labels find what a view holds too old.
#[derive(Debug, Clone)]
pub(crate) struct Ages {
    /// Per published interval the instant from which it is known, and its end; ascending, in microseconds.
    pub(super) ends: Vec<(i64, i64)>,
    /// The view's `max_age`, in microseconds.
    pub(super) max_age: i64,
}

impl Ages {
    /// Those of a view that says how old it may be.
    pub(super) fn of(request: &DatasetRequest, id: &ViewId, input: &Input) -> Result<Option<Self>, DatasetError> {
        let view = view(request, id)?;
        let Some(freshness) = &view.freshness else { return Ok(None) };
        let micros = |duration: std::time::Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let delay = micros(view.serving_delay);
        let mut ends: Vec<_> = input.ledger.iter().map(|entry| entry.interval.end().timestamp_micros()).collect();
        ends.sort_unstable();
        let ends = ends.into_iter().map(|end| (end.saturating_add(delay), end)).collect();
        Ok(Some(Self { ends, max_age: micros(freshness.max_age) }))
    }

    /// Whether the newest interval that was known at `label` (microseconds) ended longer ago than the view's `max_age`. A
    /// label that comes before all of them finds nothing, and nothing is not old.
    pub(super) fn is_stale(&self, label: i64) -> bool {
        let known = self.ends.partition_point(|(from, _)| *from <= label);
        known.checked_sub(1).is_some_and(|newest| label.saturating_sub(self.ends[newest].1) > self.max_age)
    }
}

/// When each published interval is the newest one that is known.
fn periods(view: &FeatureView, ledger: &[LedgerEntry]) -> Result<Arc<[Period]>, DatasetError> {
    let delay = i64::try_from(view.serving_delay.as_micros()).context("the serving delay is too long")?;
    let from = |entry: &LedgerEntry| entry.interval.end().timestamp_micros().saturating_add(delay);
    // Newest first: each is replaced by the one before it in the list.
    let mut periods: Vec<Period> = ledger
        .iter()
        .enumerate()
        .map(|(at, entry)| Period {
            interval: entry.interval.end().timestamp_micros(),
            available_from: from(entry),
            available_until: at.checked_sub(1).map_or(i64::MAX, |later| from(&ledger[later])),
        })
        .collect();
    periods.reverse();
    Ok(periods.into())
}

/// An instant of so many microseconds since 1970.
fn instant(micros: i64) -> Expr {
    datafusion::logical_expr::cast(lit(ScalarValue::TimestampMicrosecond(Some(micros), None)), timestamp())
}

/// The rows of `id` that count at `at`: what is known of every entity then.
pub(crate) async fn state_at(
    ctx: &SessionContext,
    lake: &Lake,
    request: &DatasetRequest,
    id: &ViewId,
    input: &Input,
    at: Instant,
) -> Result<DataFrame, DatasetError> {
    let view = view(request, id)?;
    let rows = table(ctx, lake, request, id, input).await?;
    let micros = at.timestamp_micros();
    let delay = i64::try_from(view.serving_delay.as_micros()).context("the serving delay is too long")?;
    let rows = match view.output {
        Output::Full => {
            let periods = periods(view, &input.ledger)?;
            let now = periods.iter().find(|period| (period.available_from..period.available_until).contains(&micros));
            let is_now = |entry: &&LedgerEntry| {
                now.is_some_and(|period| entry.interval.end().timestamp_micros() == period.interval)
            };
            match input.ledger.iter().find(is_now) {
                Some(entry) => {
                    rows.filter(column(INTERVAL_START).eq(instant(entry.interval.start().timestamp_micros())))
                }
                None => rows.filter(lit(false)),
            }
        }
        Output::Partial { ttl } => {
            let ttl = i64::try_from(ttl.as_micros()).context("the ttl is too long")?;
            let time = || column(EVENT_TIMESTAMP);
            let oldest = instant(micros.saturating_sub(ttl));
            rows.filter(time().gt(oldest).and(time().lt_eq(instant(micros.saturating_sub(delay)))))
        }
    };
    Ok(rows.with_context(|| format!("reading `{id}` as of {}", format_instant(at)))?)
}
