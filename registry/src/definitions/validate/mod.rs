//! From what was written to what is true: every name resolved, every rule of `docs/diagnostics.md` checked.
//!
//! Each step reports what it finds and goes on; the project comes into being only when no step found an error. A
//! definition with a mistake still counts as defined, so that one mistake is not reported again at every use.

mod checks;
mod dags;
mod datasets;
mod graph;
mod paths;
mod recovery;
mod services;
mod source_checks;
mod tables;
mod tests;
mod views;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use indexmap::IndexMap;

use super::files::Files;
use super::read::{At, Field, nearest};
use super::rules::Rules;
use super::written::{
    ConsumerFile, DagFile, DatasetFile, DefinitionFile, DrillFile, EntityFile, OwnerFile, PoolFile, RecipeFile,
    RestoreRuleFile, ServiceFile, SourceFile, TestFile, ViewFile,
};
use crate::diagnostics::{Diagnostic, Origin, SourceMap, ids};
use crate::ids::{InvalidName, OwnerName, ProjectName, ViewId, ViewName};
use crate::model::{DefinitionTest, Project};

/// What validation needs to know beside the definitions.
pub(super) struct Context<'a> {
    pub(super) project: ProjectName,
    pub(super) files: &'a Files<'a>,
    pub(super) allowed_roots: &'a [String],
    pub(super) rules: &'a Rules,
    /// The names of all webhooks, whatever the profile.
    pub(super) webhooks: &'a [String],
}

/// Everything written, of all files.
#[derive(Default)]
pub(super) struct Written {
    owners: Vec<At<OwnerFile>>,
    entities: Vec<At<EntityFile>>,
    sources: Vec<At<SourceFile>>,
    pools: Vec<At<PoolFile>>,
    views: Vec<At<ViewFile>>,
    dags: Vec<At<DagFile>>,
    tests: Vec<At<TestFile>>,
    restore_policy: Vec<At<RestoreRuleFile>>,
    recipes: Vec<At<RecipeFile>>,
    drills: Vec<At<DrillFile>>,
    services: Vec<At<ServiceFile>>,
    datasets: Vec<At<DatasetFile>>,
    consumers: Vec<At<ConsumerFile>>,
}

impl Written {
    pub(super) fn add(&mut self, file: DefinitionFile) {
        fn items<T: Clone>(field: Field<Vec<At<T>>>) -> Vec<At<T>> {
            match field {
                Field::Is(list) => list.value,
                Field::Missing | Field::Bad => Vec::new(),
            }
        }
        self.owners.extend(items(file.owners));
        self.entities.extend(items(file.entities));
        self.sources.extend(items(file.sources));
        self.pools.extend(items(file.pools));
        self.views.extend(items(file.feature_views));
        self.dags.extend(items(file.dags));
        self.tests.extend(items(file.tests));
        self.restore_policy.extend(items(file.restore_policy));
        self.recipes.extend(items(file.recipes));
        self.drills.extend(items(file.drills));
        self.services.extend(items(file.feature_services));
        self.datasets.extend(items(file.datasets));
        self.consumers.extend(items(file.consumers));
    }
}

/// The names that exist, whatever else is wrong with what they name.
struct Catalog {
    owners: HashMap<String, Origin>,
    entities: HashMap<String, Origin>,
    sources: HashMap<String, Origin>,
    pools: HashMap<String, Origin>,
    views: HashMap<String, BTreeMap<u32, Origin>>,
}

/// What `written` defines, without the definitions that have a mistake and those that need one of them; and the tests of
/// what is left.
pub(super) fn validate(
    context: &Context<'_>,
    written: &Written,
    sources: &mut SourceMap,
    out: &mut Vec<Diagnostic>,
) -> (Project, Vec<DefinitionTest>) {
    let catalog = catalog(written, out);
    let mut project = Project::empty(context.project.clone());
    for owner in &written.owners {
        if let Some(owner) = tables::owner(owner, out) {
            project.owners.entry(owner.name.clone()).or_insert(owner);
        }
    }
    for entity in &written.entities {
        if let Some(entity) = tables::entity(entity, context.rules, out) {
            project.entities.entry(entity.name.clone()).or_insert(entity);
        }
    }
    for source in &written.sources {
        if let Some(source) = tables::source(source, context, &catalog, out) {
            project.sources.entry(source.name.clone()).or_insert(source);
        }
    }
    for pool in &written.pools {
        if let Some(pool) = tables::pool(pool, out) {
            project.pools.entry(pool.name.clone()).or_insert(pool);
        }
    }
    let mut parsed = views::views(written, context, &catalog, &mut project, sources, out);
    services::services(written, &mut project, &catalog, out);
    datasets::datasets(written, context, &catalog, &mut project, &mut parsed, sources, out);
    let dags = dags::dags(written, context, &catalog, out);
    graph::finish(&mut project, &parsed, dags, &catalog, out);
    recovery::recovery(written, &mut project, &catalog, out);
    services::consumers(written, &mut project, &catalog, out);
    let tests = tests::tests(written, &project, &catalog, out);
    (project, tests)
}

/// The first definition of every name; later ones are reported.
fn catalog(written: &Written, out: &mut Vec<Diagnostic>) -> Catalog {
    let mut catalog = Catalog {
        owners: HashMap::new(),
        entities: HashMap::new(),
        sources: HashMap::new(),
        pools: HashMap::new(),
        views: HashMap::new(),
    };
    for owner in &written.owners {
        define("owner", &owner.name, &mut catalog.owners, out);
    }
    for entity in &written.entities {
        define("entity", &entity.name, &mut catalog.entities, out);
    }
    for source in &written.sources {
        define("source", &source.name, &mut catalog.sources, out);
    }
    for pool in &written.pools {
        define("pool", &pool.name, &mut catalog.pools, out);
    }
    let mut dags = HashMap::new();
    for dag in &written.dags {
        define("DAG", &dag.name, &mut dags, out);
    }
    for view in &written.views {
        define_view("feature view", &view.name, &view.version, &mut catalog, out);
    }
    for dataset in &written.datasets {
        define_view("dataset", &dataset.name, &dataset.version, &mut catalog, out);
    }
    catalog
}

fn define(kind: &str, name: &Field<String>, known: &mut HashMap<String, Origin>, out: &mut Vec<Diagnostic>) {
    let Some(name) = name.get() else { return };
    match known.get(&name.value) {
        Some(first) => out.push(duplicate(&format!("{kind} `{}`", name.value), &name.origin, first)),
        None => {
            known.insert(name.value.clone(), name.origin.clone());
        }
    }
}

/// Datasets are views in everything but how their query comes to be.
fn define_view(
    what: &str,
    name: &Field<String>,
    version: &Field<u32>,
    catalog: &mut Catalog,
    out: &mut Vec<Diagnostic>,
) {
    let Some(name) = name.get() else { return };
    let version = version.value().unwrap_or(1);
    if let Some(source) = catalog.sources.get(&name.value) {
        out.push(
            Diagnostic::error(
                ids::DUPLICATE_NAME,
                name.origin.clone(),
                format!("{what} `{}` has the name of a source", name.value),
            )
            .with_label("named again here")
            .with_related(source.clone(), "the source")
            .with_help("rename one: SQL refers to both in the same way"),
        );
    }
    let versions = catalog.views.entry(name.value.clone()).or_default();
    match versions.get(&version) {
        Some(first) => out.push(
            duplicate(&format!("{what} `{}` version {version}", name.value), &name.origin, first)
                .with_help("give it the next `version:`, or another name"),
        ),
        None => {
            versions.insert(version, name.origin.clone());
        }
    }
}

fn duplicate(what: &str, origin: &Origin, first: &Origin) -> Diagnostic {
    Diagnostic::error(ids::DUPLICATE_NAME, origin.clone(), format!("{what} is defined twice"))
        .with_label("defined again here")
        .with_related(first.clone(), "first defined here")
        .with_help("rename or remove one of the two")
}

/// A name of its kind, or a report of why it is none.
fn parse_name<T>(
    name: &Field<String>,
    parse: impl FnOnce(String) -> Result<T, InvalidName>,
    out: &mut Vec<Diagnostic>,
) -> Option<T> {
    let name = name.get()?;
    match parse(name.value.clone()) {
        Ok(parsed) => Some(parsed),
        Err(invalid) => {
            out.push(bad_name(&invalid, &name.origin));
            None
        }
    }
}

fn bad_name(invalid: &InvalidName, origin: &Origin) -> Diagnostic {
    let mut diagnostic = Diagnostic::error(
        ids::BAD_NAME,
        origin.clone(),
        format!("`{}` is not a valid {}", invalid.value, invalid.kind),
    )
    .with_label(format!("expected {}", invalid.expected));
    let repaired: String = invalid
        .value
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .skip_while(|c| !c.is_ascii_lowercase())
        .collect();
    if crate::ids::is_name(&repaired) {
        diagnostic = diagnostic.with_help(format!("for example `{repaired}`"));
    }
    diagnostic
}

/// Reports a reference to something that does not exist.
fn unknown<'a>(
    id: &'static str,
    kind: &str,
    name: &At<String>,
    known: impl Iterator<Item = &'a str>,
    plural: &str,
    out: &mut Vec<Diagnostic>,
) {
    let help = nearest(&name.value, known).map_or_else(
        || format!("add it to `{plural}:`, or name one that is there"),
        |near| format!("did you mean `{near}`?"),
    );
    out.push(
        Diagnostic::error(id, name.origin.clone(), format!("there is no {kind} `{}`", name.value))
            .with_label(format!("no {kind} with this name"))
            .with_help(help),
    );
}

/// The owner that `field` names.
fn owner_ref(field: &Field<String>, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<OwnerName> {
    let name = field.get()?;
    if !catalog.owners.contains_key(&name.value) {
        unknown(ids::UNKNOWN_OWNER, "owner", name, catalog.owners.keys().map(String::as_str), "owners", out);
        return None;
    }
    // A bad name is reported where it is defined.
    OwnerName::new(name.value.clone()).ok()
}

fn tags(field: &Field<Vec<At<String>>>) -> Vec<String> {
    field.get().map(|tags| tags.iter().map(|tag| tag.value.clone()).collect()).unwrap_or_default()
}

impl Catalog {
    /// The highest version of a view.
    fn highest(&self, name: &str) -> Option<ViewId> {
        let version = *self.views.get(name)?.keys().next_back()?;
        Some(ViewId::new(ViewName::new(name).ok()?, version))
    }
}

/// Per view what is needed once all views are known.
type ParsedViews = IndexMap<ViewId, Arc<crate::definitions::sql::ParsedSql>>;
