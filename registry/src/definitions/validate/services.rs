//! Feature services and consumers: that they name features that exist.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::views::not_blank;
use super::{Catalog, Written, define, owner_ref, parse_name, tags};
use crate::definitions::read::{At, Field};
use crate::definitions::written::{ConsumerFile, ServiceFile};
use crate::diagnostics::{Diagnostic, ids};
use crate::features::{Asked, Selection};
use crate::ids::{ConsumerName, ServiceName};
use crate::model::{Consumer, FeatureService, Project};

/// Adds the feature services that are right to `project`, whose feature views are known.
pub(super) fn services(written: &Written, project: &mut Project, catalog: &Catalog, out: &mut Vec<Diagnostic>) {
    let (mut names, mut found) = (HashMap::new(), IndexMap::new());
    for file in &written.services {
        define("feature service", &file.name, &mut names, out);
        if let Some(service) = service(file, written, project, catalog, out) {
            found.entry(service.name.clone()).or_insert(service);
        }
    }
    // Only now: one service in another would make it hard to say what a model reads.
    project.feature_services = found;
}

/// Adds the consumers that are right to `project`, of which all else is known.
pub(super) fn consumers(written: &Written, project: &mut Project, catalog: &Catalog, out: &mut Vec<Diagnostic>) {
    let mut names = HashMap::new();
    for file in &written.consumers {
        define("consumer", &file.name, &mut names, out);
        if let Some(consumer) = consumer(file, written, project, catalog, out) {
            project.consumers.entry(consumer.name.clone()).or_insert(consumer);
        }
    }
}

fn service(
    file: &At<ServiceFile>,
    written: &Written,
    project: &Project,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<FeatureService> {
    let name = parse_name(&file.name, ServiceName::new, out);
    let owner = owner_ref(&file.owner, catalog, out);
    not_blank(&file.description, out);
    if let Some(written) = file.name.get()
        && let Some(view) = catalog.views.get(&written.value).and_then(|versions| versions.values().next())
    {
        out.push(
            Diagnostic::error(
                ids::DUPLICATE_NAME,
                written.origin.clone(),
                format!("feature service `{}` has the name of a feature view", written.value),
            )
            .with_label("named again here")
            .with_related(view.clone(), "the feature view")
            .with_help("rename one: `--features` takes the names of both"),
        );
        return None;
    }
    let features = selection(&file.features, project, written.views.len() == project.views.len(), out);
    Some(FeatureService {
        name: name?,
        owner: owner?,
        description: file.description.value()?,
        tags: tags(&file.tags),
        features: features?,
        origin: file.name.origin_or(&file.origin),
    })
}

fn consumer(
    file: &At<ConsumerFile>,
    written: &Written,
    project: &Project,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<Consumer> {
    let name = parse_name(&file.name, ConsumerName::new, out);
    let owner = owner_ref(&file.owner, catalog, out);
    not_blank(&file.description, out);
    let features = selection(&file.uses, project, all_known(written, project), out);
    let uses = file.uses.get()?;
    let services = uses.iter().filter_map(|name| ServiceName::new(name.value.clone()).ok());
    Some(Consumer {
        name: name?,
        kind: file.kind.value().unwrap_or_default(),
        owner: owner?,
        description: file.description.value()?,
        version: file.version.value(),
        tags: tags(&file.tags),
        services: services.filter(|name| project.feature_services.contains_key(name)).collect(),
        features: features?,
        origin: file.name.origin_or(&file.origin),
    })
}

/// Whether all that features can be asked of is right: with a mistake in a view or service nobody knows what would be meant.
pub(super) fn all_known(written: &Written, project: &Project) -> bool {
    written.views.len() + written.datasets.len() == project.views.len()
        && written.services.len() == project.feature_services.len()
}

/// The features that a list means.
pub(super) fn selection(
    field: &Field<Vec<At<String>>>,
    project: &Project,
    all_known: bool,
    out: &mut Vec<Diagnostic>,
) -> Option<Selection> {
    let written = field.get()?;
    if written.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, written.origin.clone(), "an empty list names no feature")
                .with_help("name at least one, as in `[carrier_delays.flights_7d]`"),
        );
        return None;
    }
    let (mut selection, mut good) = (Selection::default(), true);
    for item in written.iter() {
        let asked: Asked = match item.value.parse() {
            Ok(asked) => asked,
            Err(reason) => {
                out.push(Diagnostic::error(ids::UNKNOWN_FEATURE, item.origin.clone(), reason));
                good = false;
                continue;
            }
        };
        if let Err(error) = selection.add(project, &asked) {
            if all_known {
                out.push(
                    Diagnostic::error(ids::UNKNOWN_FEATURE, item.origin.clone(), error.reason)
                        .with_label("no such feature")
                        .with_help(error.help),
                );
            }
            good = false;
        }
    }
    good.then_some(selection)
}
