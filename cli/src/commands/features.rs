//! `tidegate features`: the columns of the applied views, one by one.

use serde::Serialize;
use tidegate_registry::model::{Feature, FeatureView, Project};

use crate::commands::views::table_name;
use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::select::{self, Selection};

/// List or show features
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List features
    List(Selection),
    /// Show one feature
    Show {
        /// The feature: VIEW.FEATURE, where VIEW is a name or name@vN
        feature: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such feature.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let project = context.registry().await?.project;
    match arguments.action {
        Action::List(selection) => {
            context.output.list(&summaries(&project, &selection))?;
        }
        Action::Show { feature } => {
            let (view, feature) = find(&project, &feature)?;
            let details = Details {
                feature: summary(view, feature),
                entity: view.entity.to_string(),
                dag: project.dag_of(&view.id).map(|dag| dag.name.to_string()),
                reads: view.reads.iter().map(|read| table_name(&read.table)).collect(),
                view_description: view.description.clone(),
            };
            context.output.one(&details, &details.lines())?;
        }
    }
    Ok(Exit::Done)
}

/// The features that are chosen, as they are listed.
pub fn summaries(project: &Project, selection: &Selection) -> Vec<Summary> {
    let all = project.views.values().flat_map(|view| view.features.iter().map(move |feature| (view, feature)));
    all.filter(|(view, feature)| chosen(view, feature, selection))
        .map(|(view, feature)| summary(view, feature))
        .collect()
}

fn chosen(view: &FeatureView, feature: &Feature, selection: &Selection) -> bool {
    let id = view.id.to_string();
    // A feature carries the tags of its view besides its own.
    let tags: Vec<String> = feature.tags.iter().chain(&view.tags).cloned().collect();
    selection.takes([feature.name.as_str(), &feature.description, &id], Some(view.owner.as_str()), &tags)
}

fn find<'a>(project: &'a Project, asked: &str) -> anyhow::Result<(&'a FeatureView, &'a Feature)> {
    if let Some((view, name)) = asked.split_once('.') {
        let view = select::view(project, view)?;
        let found = view.features.iter().find(|feature| feature.name == name);
        let known = view.features.iter().map(|feature| feature.name.as_str());
        return Ok((view, select::named(&format!("feature in `{}`", view.id), name, found, known)?));
    }
    let known = project.views.values().flat_map(|view| view.features.iter().map(|feature| feature.name.as_str()));
    let mut having = project
        .views
        .values()
        .filter_map(|view| Some((view, view.features.iter().find(|feature| feature.name == asked)?)));
    match (having.next(), having.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(select::named::<Feature>("feature", asked, None, known)
            .err()
            .map_or_else(|| anyhow::anyhow!("there is no feature `{asked}`"), Into::into)),
        (Some((first, _)), Some(_)) => {
            Err(crate::error::UserError::new(format!("several views have a feature `{asked}`"))
                .hint(format!("name the view too, as in `{}.{asked}`", first.id))
                .into())
        }
    }
}

/// A feature as it is listed.
#[derive(Debug, Serialize)]
pub struct Summary {
    feature: String,
    view: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    default: Option<serde_json::Value>,
    owner: String,
    tags: Vec<String>,
    description: String,
}

fn summary(view: &FeatureView, feature: &Feature) -> Summary {
    Summary {
        feature: format!("{}.{}", view.id, feature.name),
        view: view.id.to_string(),
        name: feature.name.clone(),
        kind: feature.kind.to_string(),
        default: feature.default.clone(),
        owner: view.owner.to_string(),
        tags: feature.tags.clone(),
        description: feature.description.clone(),
    }
}

impl Row for Summary {
    const HEADINGS: &'static [&'static str] = &["FEATURE", "TYPE", "DEFAULT", "OWNER", "TAGS", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.feature.clone(),
            self.kind.clone(),
            self.default.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            self.owner.clone(),
            self.tags.join(", "),
            self.description.clone(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Details {
    #[serde(flatten)]
    feature: Summary,
    entity: String,
    dag: Option<String>,
    reads: Vec<String>,
    view_description: String,
}

impl Details {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let feature = &self.feature;
        vec![
            ("feature", feature.feature.clone()),
            ("description", feature.description.clone()),
            ("type", feature.kind.clone()),
            ("default", feature.default.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("tags", feature.tags.join(", ")),
            ("entity", self.entity.clone()),
            ("owner", feature.owner.clone()),
            ("dag", self.dag.clone().unwrap_or_default()),
            ("view reads", self.reads.join(", ")),
            ("view holds", self.view_description.clone()),
        ]
    }
}
