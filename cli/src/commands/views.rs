//! `tidegate views`: the feature views that are applied.

use serde::Serialize;
use tidegate_registry::model::{Consumer, FeatureView, Output as ViewOutput, Project, Table};
use tidegate_registry::plan::DefinitionKind;

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::select::{self, Selection};
use crate::times::short_std;

/// List or show feature views
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List feature views
    List(Selection),
    /// Show one feature view with its SQL, features, checks and kept definitions
    Show {
        /// The view: a name (its highest version) or name@vN
        view: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such view.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    match arguments.action {
        Action::List(selection) => {
            context.output.list(&summaries(&registry.project, &selection))?;
        }
        Action::Show { view } => {
            let view = select::view(&registry.project, &view)?;
            let versions =
                registry.store.definition_versions(DefinitionKind::FeatureView, &view.id.to_string()).await?;
            let definitions: Vec<_> = versions
                .into_iter()
                .map(|version| Kept {
                    since: version.since,
                    until: version.until,
                    fingerprint: version.row.fingerprint,
                })
                .collect();
            let details = details(&registry.project, view, definitions);
            context.output.one(&details, &details.lines())?;
        }
    }
    Ok(Exit::Done)
}

/// The views that are chosen, as they are listed.
pub fn summaries(project: &Project, selection: &Selection) -> Vec<Summary> {
    let views = project.views.values().filter(|view| chosen(view, selection));
    views.map(|view| summary(project, view)).collect()
}

fn chosen(view: &FeatureView, selection: &Selection) -> bool {
    let id = view.id.to_string();
    let texts = [id.as_str(), &view.description, view.entity.as_str()]
        .into_iter()
        .chain(view.features.iter().map(|feature| feature.name.as_str()));
    selection.takes(texts, Some(view.owner.as_str()), &view.tags)
}

/// A view as it is listed.
#[derive(Debug, Serialize)]
pub struct Summary {
    view: String,
    name: String,
    version: u32,
    entity: String,
    owner: String,
    dag: Option<String>,
    output: &'static str,
    features: Vec<String>,
    tags: Vec<String>,
    online: Option<&'static str>,
    freshness_max_age: Option<String>,
    description: String,
}

fn summary(project: &Project, view: &FeatureView) -> Summary {
    Summary {
        view: view.id.to_string(),
        name: view.id.name.to_string(),
        version: view.id.version,
        entity: view.entity.to_string(),
        owner: view.owner.to_string(),
        dag: project.dag_of(&view.id).map(|dag| dag.name.to_string()),
        output: match view.output {
            ViewOutput::Full => "full",
            ViewOutput::Partial { .. } => "partial",
        },
        features: view.features.iter().map(|feature| feature.name.clone()).collect(),
        tags: view.tags.clone(),
        online: view.online.as_ref().map(|_| "swap"),
        freshness_max_age: view.freshness.as_ref().map(|freshness| short_std(freshness.max_age)),
        description: view.description.clone(),
    }
}

impl Row for Summary {
    const HEADINGS: &'static [&'static str] = &["VIEW", "ENTITY", "OWNER", "DAG", "FEATURES", "TAGS", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.view.clone(),
            self.entity.clone(),
            self.owner.clone(),
            self.dag.clone().unwrap_or_else(|| "-".to_owned()),
            self.features.len().to_string(),
            self.tags.join(", "),
            self.description.clone(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Details {
    #[serde(flatten)]
    summary: Summary,
    reads: Vec<String>,
    read_by: Vec<String>,
    consumers: Vec<String>,
    columns: Vec<Column>,
    checks: Vec<CheckLine>,
    fingerprint: String,
    definitions: Vec<Kept>,
    sql: String,
}

#[derive(Debug, Serialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    default: Option<serde_json::Value>,
    description: String,
}

#[derive(Debug, Serialize)]
struct CheckLine {
    check: String,
    severity: tidegate_registry::model::Severity,
}

/// One kept version of the definition, by the registry's revisions.
#[derive(Debug, Serialize)]
struct Kept {
    since: i64,
    until: Option<i64>,
    fingerprint: String,
}

fn details(project: &Project, view: &FeatureView, definitions: Vec<Kept>) -> Details {
    Details {
        summary: summary(project, view),
        reads: view.reads.iter().map(|read| table_name(&read.table)).collect(),
        read_by: project
            .views
            .values()
            .filter(|other| other.id != view.id && other.view_reads().any(|read| *read == view.id))
            .map(|other| other.id.to_string())
            .collect(),
        consumers: project.consumers_of(std::slice::from_ref(&view.id)).map(Consumer::label).collect(),
        columns: view
            .features
            .iter()
            .map(|feature| Column {
                name: feature.name.clone(),
                kind: feature.kind.to_string(),
                default: feature.default.clone(),
                description: feature.description.clone(),
            })
            .collect(),
        checks: view
            .checks
            .iter()
            .map(|check| CheckLine { check: check.name.clone(), severity: check.severity })
            .collect(),
        fingerprint: view.fingerprint.clone(),
        definitions,
        sql: view.sql.text.clone(),
    }
}

/// What a view reads, as one word.
pub(crate) fn table_name(table: &Table) -> String {
    match table {
        Table::Source(source) => source.to_string(),
        Table::State(view) => view.to_string(),
        Table::History(view) => format!("history.{view}"),
    }
}

impl Details {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let summary = &self.summary;
        let columns =
            self.columns.iter().map(|column| format!("{} {}: {}", column.name, column.kind, column.description));
        let checks = self.checks.iter().map(|check| match check.severity {
            tidegate_registry::model::Severity::Block => check.check.clone(),
            tidegate_registry::model::Severity::Warn => format!("{} (warn)", check.check),
        });
        let definitions = self.definitions.iter().map(|kept| match kept.until {
            None => format!("revision {} until now, logic {}", kept.since, kept.fingerprint),
            Some(until) => format!("revision {} until {until}, logic {}", kept.since, kept.fingerprint),
        });
        vec![
            ("view", summary.view.clone()),
            ("description", summary.description.clone()),
            ("entity", summary.entity.clone()),
            ("owner", summary.owner.clone()),
            ("dag", summary.dag.clone().unwrap_or_default()),
            ("output", summary.output.to_owned()),
            ("tags", summary.tags.join(", ")),
            ("online", summary.online.unwrap_or("no").to_owned()),
            ("max age", summary.freshness_max_age.clone().unwrap_or_default()),
            ("reads", self.reads.join(", ")),
            ("read by", self.read_by.join(", ")),
            ("consumers", self.consumers.join(", ")),
            ("features", columns.collect::<Vec<_>>().join("\n")),
            ("checks", checks.collect::<Vec<_>>().join("\n")),
            ("definitions", definitions.collect::<Vec<_>>().join("\n")),
            ("sql", self.sql.clone()),
        ]
    }
}
