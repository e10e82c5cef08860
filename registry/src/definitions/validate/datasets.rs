//! Datasets that DAGs write: from a list of features to a view whose query joins them.
//!
//! A dataset is a feature view in everything but its query, which is made here. So its runs, checks, snapshots, freshness
//! and restores are those of any view. Its rows are the views' states as of interval end, which is what the point-in-time
//! rule gives a label at that instant, and what is online then.

use std::collections::BTreeMap;

use super::services::selection;
use super::{Catalog, Context, ParsedViews, Written, views};
use crate::dataset::ColumnNames;
use crate::definitions::read::{At, Field, Sql};
use crate::definitions::written::{DatasetFile, FeatureFile, ViewFile};
use crate::diagnostics::{Diagnostic, Origin, SourceMap, ids};
use crate::features::Selection;
use crate::ids::{EntityName, ViewId};
use crate::model::{Entity, FeatureView, Project};

/// Adds the datasets that are right to `project`, whose feature views and services are known.
pub(super) fn datasets(
    written: &Written,
    context: &Context<'_>,
    catalog: &Catalog,
    project: &mut Project,
    parsed: &mut ParsedViews,
    sources: &mut SourceMap,
    out: &mut Vec<Diagnostic>,
) {
    let known = written.views.len() == project.views.len() && written.services.len() == project.feature_services.len();
    let files: Vec<_> = written.datasets.iter().filter_map(|file| as_view(file, project, known, out)).collect();
    for file in &files {
        views::add(file, context, catalog, project, parsed, sources, out);
    }
}

/// The view that `file` stands for.
fn as_view(
    file: &At<DatasetFile>,
    project: &Project,
    all_known: bool,
    out: &mut Vec<Diagnostic>,
) -> Option<At<ViewFile>> {
    let selection = selection(&file.features, project, all_known, out)?;
    let list = file.features.get()?;
    let origin = &list.origin;
    let entity = file.entity.get();
    // An entity that does not exist is reported as for any view.
    let entity = entity.and_then(|name| project.entities.get(&EntityName::new(name.value.clone()).ok()?));
    let views: Vec<&FeatureView> = selection.views.keys().filter_map(|id| project.views.get(id)).collect();
    if let Some(entity) = entity {
        keys_are_there(entity, &views, project, file, out)?;
    }
    let features = columns(&selection, project, file.names.value().unwrap_or_default(), origin, out)?;
    let at = |text: String| Field::Is(At { value: text, origin: origin.clone() });
    let features: Vec<At<FeatureFile>> = features
        .into_iter()
        .map(|(name, _, feature)| At {
            value: FeatureFile {
                name: at(name),
                r#type: Field::Is(At { value: feature.kind.clone(), origin: origin.clone() }),
                description: at(feature.description.clone()),
                // What is missing here is null: a default is for readers online.
                default: Field::Missing,
                tags: Field::Is(At {
                    value: feature.tags.iter().map(|tag| At { value: tag.clone(), origin: origin.clone() }).collect(),
                    origin: origin.clone(),
                }),
            },
            origin: origin.clone(),
        })
        .collect();
    let sql = match entity {
        Some(entity) => query(entity, &views, &selection, file, project),
        None => Field::Bad,
    };
    Some(At {
        value: ViewFile {
            name: file.name.clone(),
            version: file.version.clone(),
            entity: file.entity.clone(),
            owner: file.owner.clone(),
            description: file.description.clone(),
            tags: file.tags.clone(),
            sql,
            sql_file: Field::Missing,
            output: Field::Missing,
            ttl: Field::Missing,
            serving_delay: Field::Missing,
            features: Field::Is(At { value: features, origin: origin.clone() }),
            checks: file.checks.clone(),
            online: Field::Missing,
            freshness: file.freshness.clone(),
            restore_target: file.restore_target.clone(),
            queue: file.queue.clone(),
            pool: file.pool.clone(),
        },
        origin: file.origin.clone(),
    })
}

/// Every view must be found by the keys of the dataset's entity; some view must have all of them when there is no query.
fn keys_are_there(
    entity: &Entity,
    views: &[&FeatureView],
    project: &Project,
    file: &At<DatasetFile>,
    out: &mut Vec<Diagnostic>,
) -> Option<()> {
    let origin = file.features.origin_or(&file.origin);
    for view in views {
        let missing = project.keys_of(view).iter().find(|key| !entity.keys.contains(key));
        if let Some(key) = missing {
            out.push(
                Diagnostic::error(
                    ids::UNKNOWN_ENTITY,
                    origin,
                    format!("`{}` is found by `{}`, which entity `{}` does not have", view.id, key.name, entity.name),
                )
                .with_label("one of these features cannot be joined")
                .with_help("choose an entity that has the keys of every view, or leave the view out"),
            );
            return None;
        }
    }
    if file.sql.is_missing() && !views.iter().any(|view| project.keys_of(view).len() == entity.keys.len()) {
        out.push(
            Diagnostic::error(
                ids::MISSING_FIELD,
                origin,
                format!("no view says which entities `{}` there are", entity.name),
            )
            .with_label("each of these has only some of the keys")
            .with_help("add `sql: |` with a query that gives the keys, one row for each entity"),
        );
        return None;
    }
    Some(())
}

/// The name of each column, with its view and feature; refused when two are called the same.
fn columns<'a>(
    selection: &Selection,
    project: &'a Project,
    names: ColumnNames,
    origin: &Origin,
    out: &mut Vec<Diagnostic>,
) -> Option<Vec<(String, ViewId, &'a crate::model::Feature)>> {
    match selection.columns(names) {
        Ok(columns) => Some(
            columns
                .into_iter()
                .filter_map(|(name, view, feature)| {
                    let feature = project.views.get(&view)?.features.iter().find(|known| known.name == feature)?;
                    Some((name, view, feature))
                })
                .collect(),
        ),
        Err(error) => {
            out.push(
                Diagnostic::error(ids::DUPLICATE_NAME, origin.clone(), error.reason)
                    .with_label("in this list")
                    .with_help(error.help),
            );
            None
        }
    }
}

/// The query: the keys, and beside them each view's state.
fn query(
    entity: &Entity,
    views: &[&FeatureView],
    selection: &Selection,
    file: &At<DatasetFile>,
    project: &Project,
) -> Field<Sql> {
    let names = file.names.value().unwrap_or_default();
    let aliases: BTreeMap<&ViewId, String> =
        views.iter().enumerate().map(|(at, view)| (&view.id, format!("v{}", at + 1))).collect();
    let mut select: Vec<String> = entity.keys.iter().map(|key| format!("spine.{}", quoted(&key.name))).collect();
    // Two columns of one name were refused before.
    for (column, view, feature) in selection.columns(names).unwrap_or_default() {
        let alias = aliases.get(&view).map_or("", String::as_str);
        select.push(format!("{alias}.{} AS {}", quoted(&feature), quoted(&column)));
    }
    let keys: Vec<String> = entity.keys.iter().map(|key| quoted(&key.name)).collect();
    let (spine, origin) = match &file.sql {
        Field::Bad => return Field::Bad,
        Field::Is(sql) => {
            // The author's text begins on the second line, so the whole begins one line earlier.
            let origin = Origin { line: sql.origin.line.saturating_sub(1), ..sql.origin.clone() };
            (sql.value.0.trim_end().trim_end_matches(';').to_owned(), origin)
        }
        Field::Missing => {
            let whole = views.iter().filter(|view| project.keys_of(view).len() == entity.keys.len());
            let each: Vec<String> =
                whole.map(|view| format!("SELECT {} FROM {}", keys.join(", "), quoted(&view.id.to_string()))).collect();
            (each.join(" UNION "), file.features.origin_or(&file.origin))
        }
    };
    let mut text = format!("SELECT {} FROM (\n{spine}\n) AS spine", select.join(", "));
    for view in views {
        let alias = &aliases[&view.id];
        let on: Vec<String> = project
            .keys_of(view)
            .iter()
            .map(|key| format!("{alias}.{} = spine.{}", quoted(&key.name), quoted(&key.name)))
            .collect();
        text += &format!(" LEFT JOIN {} AS {alias} ON {}", quoted(&view.id.to_string()), on.join(" AND "));
    }
    Field::Is(At { value: Sql(text), origin })
}

/// `name` as an identifier of SQL, whatever it holds.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
