//! What is wrong with a project's SQL, found by planning it: before anything runs, and without reading a row.
//!
//! Every view's query and every query of its checks is planned against empty tables that have the sources' real columns
//! and the declared columns of other views. So one view's mistake is reported once, at its place, and not again in
//! everything that reads it. Planned in the same way as in a run ([`crate::session`]): what passes here means the same
//! there.

mod errors;
mod places;
mod sources;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
    SchemaProvider,
};
use datafusion::common::DFSchema;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::Result as PlanResult;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionConfig;
use indexmap::IndexMap;
use tidegate_registry::diagnostics::{Diagnostic, ids};
use tidegate_registry::ids::SourceName;
use tidegate_registry::model::{Check, ColumnType, Feature, FeatureView, Key, Project, Rule, SqlText, Table, Total};
use tidegate_registry::time::Interval;
use tokio::task::JoinSet;

use self::places::Places;
pub(crate) use self::places::nearest;
use crate::reads::{history_schema, state_schema};
use crate::session::{new_context, plan_condition, plan_in};
use crate::types::{
    Compat, EVENT_TIMESTAMP, INTERVAL_END, INTERVAL_START, RUN_ID, cast_expression, compatible, describe_one,
};

/// Planning is a few milliseconds of CPU for each view; more threads than this would not be felt.
const THREADS: usize = 2;

/// The schema of every source, or why it cannot be read, in a sentence.
pub type SourceSchemas = IndexMap<SourceName, Result<SchemaRef, String>>;

/// Everything that is wrong with the SQL of `project`: unreadable sources first, then views in declared order.
///
/// A view that reads an unreadable source is not planned; the source's finding stands for it.
pub async fn check_project(project: &Project, schemas: &SourceSchemas) -> Vec<Diagnostic> {
    let mut found = unreadable_sources(project, schemas);
    found.extend(sources::check_sources(project, schemas));
    let work = Arc::new(Work {
        state: new_context(SessionConfig::new(), Arc::new(RuntimeEnv::default())).state(),
        project: project.clone(),
        schemas: schemas.iter().filter_map(|(name, schema)| Some((name.clone(), schema.clone().ok()?))).collect(),
    });
    let mut threads = JoinSet::new();
    for first in 0..THREADS {
        let work = Arc::clone(&work);
        let runtime = tokio::runtime::Handle::current();
        threads.spawn_blocking(move || {
            let views = work.project.views.values().enumerate().skip(first).step_by(THREADS);
            views.map(|(position, view)| (position, runtime.block_on(work.check_view(view)))).collect::<Vec<_>>()
        });
    }
    let mut of_views: Vec<(usize, Vec<Diagnostic>)> = threads.join_all().await.into_iter().flatten().collect();
    of_views.sort_by_key(|(position, _)| *position);
    found.extend(of_views.into_iter().flat_map(|(_, diagnostics)| diagnostics));
    found
}

fn unreadable_sources(project: &Project, schemas: &SourceSchemas) -> Vec<Diagnostic> {
    let finding = |(name, schema): (&SourceName, &Result<SchemaRef, String>)| {
        let reason = schema.as_ref().err()?;
        let source = project.sources.get(name)?;
        let title = format!("the source `{name}` cannot be read");
        Some(
            Diagnostic::error(ids::SOURCE_UNREADABLE, source.origin.clone(), title)
                .with_label(reason.clone())
                .with_help(format!("make sure that `{}` exists and can be read", source.location.place())),
        )
    };
    schemas.iter().filter_map(finding).collect()
}

struct Work {
    state: SessionState,
    project: Project,
    schemas: HashMap<SourceName, SchemaRef>,
}

impl Work {
    async fn check_view(&self, view: &FeatureView) -> Vec<Diagnostic> {
        let Some(mut tables) = self.tables_of(view) else { return Vec::new() };
        let mut found = match self.plan(&tables, &view.sql).await {
            Ok(plan) => self.check_output(view, &plan),
            Err(error) => errors::explain(&view.sql, &error, &tables.columns()),
        };
        let queries = view.checks.iter().filter_map(|check| match &check.rule {
            Rule::Sql { query } => Some(query),
            _ => None,
        });
        // In a check, the view's own name means the staged rows.
        let own = state_schema(&self.project, view);
        for query in queries {
            for name in [view.id.name.to_string(), view.id.to_string()] {
                tables.0.insert(name, Arc::clone(&own));
            }
            if let Err(error) = self.plan(&tables, query).await {
                found.extend(errors::explain(query, &error, &tables.columns()));
            }
        }
        found.extend(view.checks.iter().flat_map(|check| self.check_other(check)));
        let columns: Vec<&str> = own.fields().iter().map(|field| field.name().as_str()).collect();
        for condition in view.checks.iter().flat_map(conditions) {
            if let Err(error) = self.plan_condition(&own, condition) {
                found.extend(errors::explain(condition, &error, &columns));
            }
        }
        found
    }

    fn plan_condition(&self, rows: &SchemaRef, condition: &SqlText) -> PlanResult<()> {
        let schema = DFSchema::try_from(Arc::clone(rows))?;
        plan_condition(&self.state, &condition.text, &schema, any_interval()).map(drop)
    }

    /// The columns of a table; `None` when it cannot be read.
    fn schema(&self, table: &Table) -> Option<SchemaRef> {
        match table {
            Table::Source(name) => self.schemas.get(name).cloned(),
            Table::State(id) => Some(state_schema(&self.project, self.project.views.get(id)?)),
            Table::History(id) => Some(history_schema(&self.project, self.project.views.get(id)?)),
        }
    }

    /// What is wrong with what a check says of another table.
    fn check_other(&self, check: &Check) -> Vec<Diagnostic> {
        let Some((table, schema)) = check.rule.other_table().and_then(|table| Some((table, self.schema(table)?)))
        else {
            return Vec::new();
        };
        let what = match table {
            Table::Source(name) => format!("the source `{name}`"),
            Table::State(id) | Table::History(id) => format!("the view `{id}`"),
        };
        let kind = |name: &str| sources::field(&schema, name, &what, &check.origin);
        match &check.rule {
            Rule::Referential { references, .. } => {
                references.iter().filter_map(|name| kind(name).err()).map(|unknown| *unknown).collect()
            }
            Rule::Reconciliation { other, other_filter, .. } => {
                let mut found = Vec::new();
                match other.column().map(|name| (name, kind(name))) {
                    Some((_, Err(unknown))) => found.push(*unknown),
                    Some((name, Ok(kind))) if matches!(other, Total::Sum(_)) && !kind.is_numeric() => {
                        let title = format!("the column `{name}` of {what} is {}, not a number", describe_one(kind));
                        found.push(
                            Diagnostic::error(ids::BAD_CHECK, check.origin.clone(), title)
                                .with_help("sums are of numbers"),
                        );
                    }
                    _ => {}
                }
                let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                if let Some(filter) = other_filter
                    && let Err(error) = self.plan_condition(&schema, filter)
                {
                    found.extend(errors::explain(filter, &error, &columns));
                }
                found
            }
            _ => Vec::new(),
        }
    }

    /// The tables that the view's SQL names; `None` when one of them cannot be read.
    fn tables_of(&self, view: &FeatureView) -> Option<Tables> {
        let tables = view.reads.iter().map(|read| Some((read.name.clone(), self.schema(&read.table)?)));
        tables.collect::<Option<_>>().map(Tables)
    }

    async fn plan(&self, tables: &Tables, sql: &SqlText) -> PlanResult<LogicalPlan> {
        let mut state = self.state.clone();
        let catalog = &self.state.config_options().catalog;
        state.register_catalog_list(tables.catalogs(&catalog.default_catalog, &catalog.default_schema)?);
        let plan = plan_in(&state, &sql.text, any_interval()).await?;
        // The analyzer finds what does not fit together; optimizing would cost more and find no more.
        state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})
    }

    /// Compares what the query gives with what the view declares.
    fn check_output(&self, view: &FeatureView, plan: &LogicalPlan) -> Vec<Diagnostic> {
        let mut computed: IndexMap<&str, &DataType> = IndexMap::new();
        let places = Places::of(&view.sql);
        let mut found = Vec::new();
        for field in plan.schema().fields() {
            if computed.insert(field.name(), field.data_type()).is_some() {
                let title = format!("the query gives two columns called `{}`", field.name());
                found.push(
                    Diagnostic::error(ids::SQL_INVALID, places.of_column(field.name()), title)
                        .with_label("which of them is meant is not known")
                        .with_help("give each column of the outermost SELECT a name of its own, with AS"),
                );
            }
        }
        let keys = self.project.keys_of(view);
        let unused: Vec<&str> = computed.keys().copied().filter(|name| !is_declared(view, keys, name)).collect();
        // Columns that a remedy speaks of already.
        let mut explained = HashSet::new();
        for key in keys {
            let near = nearest(&key.name, unused.iter().copied());
            match computed.get(key.name.as_str()) {
                Some(kind) => found.extend(check_key(key, kind, &places)),
                None => {
                    found.push(missing_key(view, key, near, &places));
                    explained.extend(near);
                }
            }
        }
        if let Some(kind) = computed.get(EVENT_TIMESTAMP) {
            found.extend(check_event_timestamp(kind, &places));
        }
        for feature in &view.features {
            let Some(kind) = computed.get(feature.name.as_str()) else {
                let near = nearest(&feature.name, unused.iter().copied());
                found.push(missing_feature(view, feature, near));
                explained.extend(near);
                continue;
            };
            if compatible(&feature.kind, kind) == Compat::No {
                let title = format!(
                    "`{}` is declared `{}`, the query computes {}",
                    feature.name,
                    feature.kind,
                    describe_one(kind)
                );
                found.push(
                    Diagnostic::error(ids::TYPE_MISMATCH, feature.origin.clone(), title)
                        .with_label(format!("declared `{}`", feature.kind))
                        .with_related(places.of_column(&feature.name), format!("computes {}", describe_one(kind)))
                        .with_help(cast_help(&feature.name, &feature.kind, kind, &places)),
                );
            }
        }
        let left = unused.iter().filter(|name| !explained.contains(**name));
        found.extend(left.map(|name| undeclared(name, &places)));
        found
    }
}

/// What a check says of single rows in SQL.
fn conditions(check: &Check) -> impl Iterator<Item = &SqlText> {
    let rule = match &check.rule {
        Rule::Expression { condition } => Some(condition),
        _ => None,
    };
    check.filter.iter().chain(rule)
}

fn is_declared(view: &FeatureView, keys: &[Key], name: &str) -> bool {
    name == EVENT_TIMESTAMP
        || keys.iter().any(|key| key.name == name)
        || view.features.iter().any(|feature| feature.name == name)
}

fn missing_key(view: &FeatureView, key: &Key, near: Option<&str>, places: &Places<'_>) -> Diagnostic {
    let title = format!("the query does not give the key `{}` of entity `{}`", key.name, view.entity);
    let help = match near {
        Some(near) => format!("did you mean the column `{near}`? then call it `{}`", key.name),
        None => format!("add `{}` to the outermost SELECT: rows are found by it", key.name),
    };
    Diagnostic::error(
        ids::MISSING_ENTITY_KEY,
        near.map_or_else(|| places.of_columns(), |near| places.of_column(near)),
        title,
    )
    .with_label(format!("no column `{}`", key.name))
    .with_help(help)
}

fn missing_feature(view: &FeatureView, feature: &Feature, near: Option<&str>) -> Diagnostic {
    let title = format!("the query of `{}` does not give the feature `{}`", view.id, feature.name);
    let help = match near {
        Some(near) => format!("did you mean the column `{near}`? then call both the same"),
        None => format!("add `… AS {}` to the outermost SELECT, or remove the feature", feature.name),
    };
    Diagnostic::error(ids::MISSING_COLUMN, feature.origin.clone(), title)
        .with_label("declared here")
        .with_related(view.sql.origin.clone(), "not among the columns of this query")
        .with_help(help)
}

fn check_key(key: &Key, kind: &DataType, places: &Places<'_>) -> Option<Diagnostic> {
    (compatible(&key.kind, kind) == Compat::No).then(|| {
        let title =
            format!("the key `{}` is declared `{}`, the query computes {}", key.name, key.kind, describe_one(kind));
        Diagnostic::error(ids::TYPE_MISMATCH, places.of_column(&key.name), title)
            .with_label(format!("computes {}", describe_one(kind)))
            .with_help(cast_help(&key.name, &key.kind, kind, places))
    })
}

fn check_event_timestamp(kind: &DataType, places: &Places<'_>) -> Option<Diagnostic> {
    (compatible(&ColumnType::Timestamp, kind) == Compat::No).then(|| {
        let title =
            format!("`{EVENT_TIMESTAMP}` must be a timestamp in UTC, the query computes {}", describe_one(kind));
        Diagnostic::error(ids::TYPE_MISMATCH, places.of_column(EVENT_TIMESTAMP), title)
            .with_label(format!("computes {}", describe_one(kind)))
            .with_help(cast_help(EVENT_TIMESTAMP, &ColumnType::Timestamp, kind, places))
    })
}

fn undeclared(name: &str, places: &Places<'_>) -> Diagnostic {
    let help = match name {
        INTERVAL_START | INTERVAL_END | RUN_ID => "Tidegate writes this column itself: leave it out".to_owned(),
        _ => "declare it under `features`, or leave it out of the outermost SELECT".to_owned(),
    };
    let title = format!("the query gives a column `{name}` that is not declared");
    Diagnostic::error(ids::UNDECLARED_COLUMN, places.of_column(name), title)
        .with_label("neither a key, nor a feature, nor `event_timestamp`")
        .with_help(help)
}

fn cast_help(name: &str, declared: &ColumnType, computed: &DataType, places: &Places<'_>) -> String {
    let cast = cast_expression(&places.expression(name), declared, computed);
    match crate::types::column_type(computed).filter(|_| name != EVENT_TIMESTAMP) {
        Some(kind) => format!("write `{cast} AS {name}`, or declare it as `{kind}`"),
        None => format!("write `{cast} AS {name}`"),
    }
}

fn any_interval() -> Interval {
    let at = chrono::DateTime::from_timestamp(946_684_800, 0).unwrap_or_default();
    Interval::new(at, at + chrono::Duration::days(1)).expect("a day is not empty")
}

/// Empty tables by the name that SQL uses.
struct Tables(IndexMap<String, SchemaRef>);

impl Tables {
    fn catalogs(&self, catalog_name: &str, schema_name: &str) -> PlanResult<Arc<dyn CatalogProviderList>> {
        let (bare, history) = (MemorySchemaProvider::new(), MemorySchemaProvider::new());
        for (name, schema) in &self.0 {
            let table = Arc::new(EmptyTable::new(Arc::clone(schema)));
            match name.strip_prefix("history.") {
                Some(name) => history.register_table(name.to_owned(), table)?,
                None => bare.register_table(name.clone(), table)?,
            };
        }
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(schema_name, Arc::new(bare))?;
        catalog.register_schema("history", Arc::new(history))?;
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(catalog_name.to_owned(), Arc::new(catalog));
        Ok(Arc::new(catalogs))
    }

    /// Every column of every table, once.
    fn columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = Vec::new();
        for name in self.0.values().flat_map(|schema| schema.fields()).map(|field| field.name().as_str()) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        columns
    }
}

#[cfg(test)]
mod tests;
