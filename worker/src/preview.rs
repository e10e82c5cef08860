//! A view's rows and verdicts before anything is applied, over the real sources, writing nothing.
//!
//! Parents that have been applied unchanged and published are read from the lake; the others are computed on the way, as
//! part of the same query. So a preview of a whole new chain of views needs neither registry nor lake.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result};
use datafusion::catalog::TableProvider;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use futures::future::BoxFuture;
use indexmap::IndexMap;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::{FeatureView, Project, Rule, Table};
use tidegate_registry::run::{CheckResult, Pins, Verdict, ViewPin};
use tidegate_registry::store::Store;
use tidegate_registry::time::{Instant, Interval};

use crate::checks::{
    CheckRunner, Diverter, Measured, OtherTables, SourceLook, Split, judge_history, judge_source, read_others,
    run_sql_check,
};
use crate::engine::{Engine, Joins};
use crate::lake::{Lake, TableSchema};
use crate::reads::{RunReads, history_schema, register, state_schema};
use crate::sources::Sources;
use crate::stage::output;
use crate::text::TextColumn;

/// What to preview.
#[derive(Debug, Clone)]
pub struct PreviewRequest {
    /// The project as its files say.
    pub project: Arc<Project>,
    /// The view.
    pub view: ViewId,
    /// The interval.
    pub interval: Interval,
    /// Now, in project time.
    pub now: Instant,
    /// At most so many rows are returned; all are computed and checked.
    pub limit: usize,
    /// The registry's definitions, its store and the lake, once something has been applied.
    pub applied: Option<Applied>,
    /// The sources.
    pub sources: Sources,
}

/// What has been applied.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The definitions in force.
    pub project: Arc<Project>,
    /// The registry.
    pub store: Arc<dyn Store>,
    /// The lake.
    pub lake: Lake,
}

/// What a preview found.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    /// Names of the columns shown: keys, `event_timestamp`, features.
    pub columns: Vec<String>,
    /// The first rows that are not set aside, by entity: one JSON value per column.
    pub rows: Vec<Vec<serde_json::Value>>,
    /// All rows but those that are set aside.
    pub total: u64,
    /// Verdicts over all rows.
    pub checks: Vec<CheckResult>,
    /// Parents that were computed on the way because the lake does not have them.
    pub computed: Vec<ViewId>,
}

/// Computes and checks one view for one interval.
///
/// # Errors
/// When a source cannot be read or a query fails. Failed checks are verdicts, not errors.
pub async fn preview(engine: &Engine, request: &PreviewRequest) -> Result<Preview> {
    let project = request.project.as_ref();
    let view = project.views.get(&request.view).with_context(|| format!("`{}` is not defined", request.view))?;
    let base = engine.context(Joins::Hash)?;
    let mut resolver = Resolver { request, base: &base, engine, computed: BTreeSet::new(), pins: Pins::default() };
    let ctx = resolver.session_for(view).await?;
    let schema = TableSchema::of(project, &view.id)?;
    let rows = output(&ctx, project, view, &schema.file, request.interval, RunId::generate()).await?;
    let staged = rows.clone().into_view();
    let mut others = OtherTables::new();
    for table in &view.checked_against {
        others.insert(table.clone(), resolver.provider(&ctx, table).await?);
    }
    let mut others = read_others(&ctx, view, &schema.file, request.interval, &others).await?;
    let mut diverter = Diverter::new(view, project.keys_of(view), request.interval, &ctx.state());
    if let Some(diverter) = &mut diverter {
        diverter.compare_with(&mut others);
    }
    let runner = CheckRunner::new(view, project.keys_of(view), request.interval, &ctx.state());
    let mut runner = runner.compare_with(others);
    let shown = state_schema(project, view);
    let mut first = Vec::new();
    let mut stream = rows.execute_stream().await.with_context(|| format!("computing `{}`", view.id))?;
    let mut more = true;
    while more {
        let next = stream.next().await.transpose().with_context(|| format!("computing `{}`", view.id))?;
        more = next.is_some();
        let parts = match &mut diverter {
            None => next.into_iter().map(|kept| Split { kept, aside: None }).collect(),
            Some(diverter) => {
                diverter.split(next.as_ref()).with_context(|| format!("setting rows of `{}` aside", view.id))?
            }
        };
        for Split { kept: batch, .. } in parts {
            let wanted = request.limit.saturating_sub(first.len()).min(batch.num_rows());
            let head = batch.slice(0, wanted);
            let columns = shown
                .fields()
                .iter()
                .map(|field| {
                    let array =
                        head.column_by_name(field.name()).with_context(|| format!("no column `{}`", field.name()))?;
                    TextColumn::new(array).with_context(|| format!("printing `{}`", field.name()))
                })
                .collect::<Result<Vec<_>>>()?;
            first.extend((0..wanted).map(|row| columns.iter().map(|column| column.json(row)).collect()));
            drop(columns);
            runner.update(&batch);
        }
    }
    let (mut checks, profile, total) = runner.finish();
    checks.extend(diverter.map(Diverter::finish).into_iter().flatten());
    let measured = Measured { rows: total, profile: &profile };
    if checks.iter().any(|check| check.verdict == Verdict::Quarantined) {
        skip_sql_checks(view, &mut checks);
    }
    judge_pending(request, &ctx, view, staged, measured, &mut checks).await?;
    checks.splice(0..0, judge_sources(request, &ctx, view, &resolver.pins).await?);
    Ok(Preview {
        columns: shown.fields().iter().map(|field| field.name().clone()).collect(),
        rows: first,
        total,
        checks,
        computed: resolver.computed.into_iter().collect(),
    })
}

/// Queries would see rows that are set aside: nothing here holds those that are not.
fn skip_sql_checks(view: &FeatureView, checks: &mut [CheckResult]) {
    let sql = view.checks.iter().filter(|check| matches!(check.rule, Rule::Sql { .. }));
    for check in sql {
        if let Some(result) = checks.iter_mut().find(|result| result.check == check.name) {
            result.verdict = Verdict::Skipped;
            result.message = "a run judges it over the rows that are not set aside; a preview does not".to_owned();
        }
    }
}

async fn judge_pending(
    request: &PreviewRequest,
    ctx: &SessionContext,
    view: &FeatureView,
    staged: Arc<dyn TableProvider>,
    measured: Measured<'_>,
    checks: &mut [CheckResult],
) -> Result<()> {
    let store = request.applied.as_ref().map(|applied| &*applied.store);
    // The view's name may be taken by its own earlier state; checks mean the rows just computed.
    for name in [view.id.name.to_string(), view.id.to_string()] {
        ctx.deregister_table(name.as_str())?;
        register(ctx, &name, Arc::clone(&staged))?;
    }
    for check in &view.checks {
        let Some(result) = checks.iter_mut().find(|r| r.check == check.name && r.verdict == Verdict::Pending) else {
            continue;
        };
        *result = match check.rule {
            Rule::Sql { .. } => run_sql_check(ctx, check, request.interval, measured.rows).await,
            _ => {
                let start = request.interval.start();
                judge_history(check, &request.project, &view.id, start, measured, store).await?
            }
        };
    }
    Ok(())
}

/// The verdicts on the sources that the view itself reads.
async fn judge_sources(
    request: &PreviewRequest,
    ctx: &SessionContext,
    view: &FeatureView,
    pins: &Pins,
) -> Result<Vec<CheckResult>> {
    let store = request.applied.as_ref().map(|applied| &*applied.store);
    let seen_before = async |name: &str, before: Option<Instant>| {
        let Some(store) = store else { return anyhow::Ok(None) };
        Ok(store.manifest(&view.id, before).await?.and_then(|mut pins| pins.seen.swap_remove(name)))
    };
    let mut results = Vec::new();
    for name in view.source_reads() {
        let source = request.project.sources.get(name).with_context(|| format!("`{name}` is not defined"))?;
        let pin = pins.sources.get(name.as_str()).with_context(|| format!("`{name}` was not pinned"))?;
        if source.checks.is_empty() {
            continue;
        }
        let last = seen_before(name.as_str(), None).await?;
        let earlier = seen_before(name.as_str(), Some(request.interval.start())).await?;
        let (sources, interval, now) = (&request.sources, request.interval, request.now);
        let look = SourceLook { sources, source, pin, interval, now, last: last.as_ref(), earlier: earlier.as_ref() };
        results.extend(judge_source(ctx, look).await?.checks);
    }
    Ok(results)
}

/// Finds what table names mean: the lake where it has them, else another query.
struct Resolver<'a> {
    request: &'a PreviewRequest,
    /// Its runtime knows every object store, so that the plans of several sessions run in any of them.
    base: &'a SessionContext,
    engine: &'a Engine,
    computed: BTreeSet<ViewId>,
    pins: Pins,
}

impl Resolver<'_> {
    /// A session in which every table that `view` names is registered.
    fn session_for<'b>(&'b mut self, view: &'b FeatureView) -> BoxFuture<'b, Result<SessionContext>> {
        Box::pin(async move {
            let ctx = self.engine.context_beside(self.base);
            for read in &view.reads {
                register(&ctx, &read.name, self.provider(&ctx, &read.table).await?)?;
            }
            Ok(ctx)
        })
    }

    async fn provider(&mut self, ctx: &SessionContext, table: &Table) -> Result<Arc<dyn TableProvider>> {
        match table {
            Table::Source(name) => {
                let source = self.request.project.sources.get(name);
                let source = source.with_context(|| format!("`{name}` is not defined"))?;
                if !self.pins.sources.contains_key(name.as_str()) {
                    let pin = self.request.sources.pin(source).await?;
                    self.pins.sources.insert(name.to_string(), pin);
                }
                self.request.sources.provider(ctx, source, &self.pins.sources[name.as_str()]).await
            }
            Table::State(id) => self.view(ctx, id, false).await,
            Table::History(id) => self.view(ctx, id, true).await,
        }
    }

    async fn view(&mut self, ctx: &SessionContext, id: &ViewId, history: bool) -> Result<Arc<dyn TableProvider>> {
        let project = Arc::clone(&self.request.project);
        let view = project.views.get(id).with_context(|| format!("`{id}` is not defined"))?;
        if let Some(reads) = self.published(view).await? {
            return if history { reads.history(ctx, id).await } else { reads.state(ctx, id).await };
        }
        self.computed.insert(id.clone());
        let inner = self.session_for(view).await?;
        let schema = TableSchema::of(&project, id)?;
        let rows = output(&inner, &project, view, &schema.file, self.request.interval, RunId::generate()).await?;
        let rows = rows.with_column("interval_start", crate::reads::instant_literal(self.request.interval.start()))?;
        let wanted = if history { history_schema(&project, view) } else { state_schema(&project, view) };
        let columns: Vec<_> = wanted.fields().iter().map(|field| crate::reads::column(field.name())).collect();
        Ok(rows.select(columns)?.into_view())
    }

    /// How to read a view from the lake, if it was applied as it is now and has published something by then.
    async fn published(&self, view: &FeatureView) -> Result<Option<RunReads>> {
        let Some(applied) = &self.request.applied else { return Ok(None) };
        let unchanged =
            applied.project.views.get(&view.id).is_some_and(|applied| applied.fingerprint == view.fingerprint);
        if !unchanged {
            return Ok(None);
        }
        let newest = applied.store.ledger(&view.id, Some(self.request.interval.end()), 1).await?;
        let Some(newest) = newest.first() else { return Ok(None) };
        let states = applied.store.view_states(std::slice::from_ref(&view.id)).await?;
        let delta_version = states.get(&view.id).map_or(0, |state| state.delta_version);
        let pin = ViewPin { delta_version, state: Some(newest.interval) };
        Ok(Some(RunReads {
            project: Arc::clone(&self.request.project),
            lake: applied.lake.clone(),
            sources: self.request.sources.clone(),
            interval: self.request.interval,
            pins: Pins { views: IndexMap::from([(view.id.clone(), pin)]), ..Pins::default() },
            staged: IndexMap::new(),
        }))
    }
}
