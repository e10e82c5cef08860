//! `tidegate entities`: the join keys of the applied project.

use serde::Serialize;
use tidegate_registry::ids::EntityName;
use tidegate_registry::model::{Entity, Project};

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::select::{self, Selection};

/// List or show entities
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List entities
    List(Selection),
    /// Show one entity
    Show {
        /// The entity's name
        entity: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such entity.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let project = context.registry().await?.project;
    match arguments.action {
        Action::List(selection) => {
            let entities: Vec<_> = project
                .entities
                .values()
                .filter(|entity| chosen(&project, entity, &selection))
                .map(|entity| Summary::of(&project, entity))
                .collect();
            context.output.list(&entities)?;
        }
        Action::Show { entity } => {
            let found = project.entities.values().find(|known| known.name.as_str() == entity);
            let entity = select::named("entity", &entity, found, project.entities.keys().map(EntityName::as_str))?;
            let summary = Summary::of(&project, entity);
            context.output.one(&summary, &summary.lines())?;
        }
    }
    Ok(Exit::Done)
}

/// Entities have neither owner nor tags of their own: those of the views that describe them count.
fn chosen(project: &Project, entity: &Entity, selection: &Selection) -> bool {
    let keys = entity.keys.iter().map(|key| key.name.as_str());
    let texts: Vec<_> =
        [entity.name.as_str(), entity.description.as_deref().unwrap_or_default()].into_iter().chain(keys).collect();
    if selection.owner.is_none() && selection.tag.is_none() {
        return selection.takes(texts, None, &[]);
    }
    let mut views = project.views.values().filter(|view| view.entity == entity.name);
    views.any(|view| selection.takes(texts.iter().copied(), Some(view.owner.as_str()), &view.tags))
}

#[derive(Debug, Serialize)]
struct Summary {
    entity: String,
    keys: Vec<KeySummary>,
    views: Vec<String>,
    description: Option<String>,
}

#[derive(Debug, Serialize)]
struct KeySummary {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Summary {
    fn of(project: &Project, entity: &Entity) -> Self {
        let keys = entity.keys.iter().map(|key| KeySummary { name: key.name.clone(), kind: key.kind.to_string() });
        let views = project.views.values().filter(|view| view.entity == entity.name);
        Self {
            entity: entity.name.to_string(),
            keys: keys.collect(),
            views: views.map(|view| view.id.to_string()).collect(),
            description: entity.description.clone(),
        }
    }

    fn keys_text(&self) -> String {
        self.keys.iter().map(|key| format!("{} {}", key.name, key.kind)).collect::<Vec<_>>().join(", ")
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("entity", self.entity.clone()),
            ("description", self.description.clone().unwrap_or_default()),
            ("keys", self.keys_text()),
            ("views", self.views.join("\n")),
        ]
    }
}

impl Row for Summary {
    const HEADINGS: &'static [&'static str] = &["ENTITY", "KEYS", "VIEWS", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.entity.clone(),
            self.keys_text(),
            self.views.len().to_string(),
            self.description.clone().unwrap_or_default(),
        ]
    }
}
