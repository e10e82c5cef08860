//! Definitions that compute something wrong from what is published: a view of which every value is another one, or half of the
//! rows are missing.
//!
//! They read the copy's own table, as a source at a fixed version, so that no real source is read, and what it takes does not
//! depend on what the real query does.

use anyhow::{Context, Result};
use indexmap::IndexMap;
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::ids::{SourceName, ViewId};
use tidegate_registry::model::{
    ColumnType, Feature, FeatureView, Project, Source, SourceLocation, SqlText, Table, TableRef,
};
use tidegate_registry::plan::diff;
use tidegate_registry::store::ApplyRequest;

use crate::drill::shadow::Shadow;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Every value.
    Values,
    /// Every second row is missing.
    Rows,
}

/// Applies definitions to the copy that do `damage`; their revision.
pub(super) async fn apply(shadow: &Shadow, damage: Damage) -> Result<i64> {
    let (base, current) = shadow.store.project(None).await?;
    let mut wanted = shadow.project.clone();
    for (number, id) in shadow.views.keys().enumerate() {
        let name = SourceName::new(format!("tidegate_drill_{number}"))?;
        wanted.sources.insert(name.clone(), source(shadow, id, name.clone()));
        let keys: Vec<String> = keys(&wanted, id)?;
        let view = wanted.views.get_mut(id).context("it is not defined")?;
        break_view(view, &keys, name, damage);
    }
    // Nothing counts as published: this is what `apply` refuses to a person.
    let plan = diff(base, &current, &wanted, &std::collections::BTreeSet::new());
    let plan = plan.map_err(|refused| anyhow::anyhow!("{} definitions were refused", refused.len()))?;
    if plan.is_empty() {
        return Ok(base);
    }
    let request = ApplyRequest {
        project: wanted.name.to_string(),
        base,
        changes: plan.changes(),
        tables: IndexMap::new(),
        actor: super::REASON.to_owned(),
        message: None,
        now: shadow.clock.now(),
    };
    Ok(shadow.store.apply(request).await?)
}

fn source(shadow: &Shadow, view: &ViewId, name: SourceName) -> Source {
    Source {
        name,
        location: SourceLocation::Delta(shadow.lake.table_url(view).to_string()),
        event_time: None,
        description: None,
        owner: None,
        tags: Vec::new(),
        checks: Vec::new(),
        origin: Origin::default(),
    }
}

fn keys(project: &Project, id: &ViewId) -> Result<Vec<String>> {
    let view = project.views.get(id).context("it is not defined")?;
    Ok(project.keys_of(view).iter().map(|key| key.name.clone()).collect())
}

fn break_view(view: &mut FeatureView, keys: &[String], source: SourceName, damage: Damage) {
    let quoted = |names: &[String]| names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ");
    let features: Vec<String> = view
        .features
        .iter()
        .map(|feature| match damage {
            Damage::Values => format!("{} AS {}", wrong(feature), quote(&feature.name)),
            Damage::Rows => quote(&feature.name),
        })
        .collect();
    let (keys, features) = (quoted(keys), features.join(", "));
    let from = format!("\"{source}\" WHERE interval_start = $interval_start");
    view.sql = SqlText {
        text: match damage {
            Damage::Values => format!("SELECT {keys}, event_timestamp, {features} FROM {from}"),
            Damage::Rows => format!(
                "SELECT {keys}, event_timestamp, {features} FROM (SELECT *, row_number() OVER (ORDER BY {keys}) AS \
                 tidegate_drill_row FROM {from}) WHERE tidegate_drill_row % 2 = 0"
            ),
        },
        origin: Origin::default(),
    };
    view.reads = vec![TableRef { name: source.to_string(), table: Table::Source(source) }];
    view.checked_against = Vec::new();
    view.checks = Vec::new();
    // Whoever holds a slot of the real pool holds it in the copy of the registry, too.
    view.pool = None;
    view.queue = None;
    if let Some(online) = &mut view.online {
        online.max_deletes = None;
    }
    view.fingerprint = format!("drill:{damage:?}:{}", view.fingerprint);
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Another value of the feature's type, for every value.
fn wrong(feature: &Feature) -> String {
    let name = quote(&feature.name);
    let whole = |kind: &str| {
        format!("CAST(CASE WHEN {name} IS NULL THEN 0 WHEN {name} > 0 THEN {name} - 1 ELSE {name} + 1 END AS {kind})")
    };
    let real = |kind: &str| format!("CAST(CASE WHEN {name} IS NULL OR {name} = 0 THEN 1 ELSE -{name} END AS {kind})");
    match feature.kind {
        ColumnType::String => format!("coalesce({name}, '') || '~'"),
        ColumnType::Boolean => format!("NOT coalesce({name}, false)"),
        ColumnType::Integer => whole("INT"),
        ColumnType::Bigint => whole("BIGINT"),
        ColumnType::Float => real("FLOAT"),
        ColumnType::Double => real("DOUBLE"),
        // Missing is wrong, too, and possible for every type.
        ColumnType::Date | ColumnType::Timestamp | ColumnType::Array(_) => {
            format!("CASE WHEN false THEN {name} END")
        }
    }
}
