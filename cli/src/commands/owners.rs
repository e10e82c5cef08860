//! `tidegate owners`: who is responsible for what.

use serde::Serialize;
use tidegate_registry::ids::OwnerName;
use tidegate_registry::model::{Owner, Project};

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::select::{self, Selection};

/// List or show owners
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List owners
    List(Selection),
    /// Show one owner with everything owned
    Show {
        /// The owner's name
        owner: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such owner.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let project = context.registry().await?.project;
    match arguments.action {
        Action::List(selection) => {
            let owners: Vec<_> = project
                .owners
                .values()
                .filter(|owner| chosen(&project, owner, &selection))
                .map(|owner| Summary::of(&project, owner))
                .collect();
            context.output.list(&owners)?;
        }
        Action::Show { owner } => {
            let found = project.owners.values().find(|known| known.name.as_str() == owner);
            let owner = select::named("owner", &owner, found, project.owners.keys().map(OwnerName::as_str))?;
            let summary = Summary::of(&project, owner);
            context.output.one(&summary, &summary.lines())?;
        }
    }
    Ok(Exit::Done)
}

/// Owners have no tags: those of what they own count.
fn chosen(project: &Project, owner: &Owner, selection: &Selection) -> bool {
    let views = project.views.values().filter(|view| view.owner == owner.name).flat_map(|view| &view.tags);
    let dags = project.dags.values().filter(|dag| dag.owner == owner.name).flat_map(|dag| &dag.tags);
    let tags: Vec<String> = views.chain(dags).cloned().collect();
    let texts = [
        owner.name.as_str(),
        &owner.primary,
        owner.backup.as_deref().unwrap_or_default(),
        owner.description.as_deref().unwrap_or_default(),
    ];
    selection.takes(texts, Some(owner.name.as_str()), &tags)
}

#[derive(Debug, Serialize)]
struct Summary {
    owner: String,
    primary: String,
    backup: Option<String>,
    views: Vec<String>,
    dags: Vec<String>,
    sources: Vec<String>,
    description: Option<String>,
}

impl Summary {
    fn of(project: &Project, owner: &Owner) -> Self {
        let views = project.views.values().filter(|view| view.owner == owner.name);
        let dags = project.dags.values().filter(|dag| dag.owner == owner.name);
        let sources = project.sources.values().filter(|source| source.owner.as_ref() == Some(&owner.name));
        Self {
            owner: owner.name.to_string(),
            primary: owner.primary.clone(),
            backup: owner.backup.clone(),
            views: views.map(|view| view.id.to_string()).collect(),
            dags: dags.map(|dag| dag.name.to_string()).collect(),
            sources: sources.map(|source| source.name.to_string()).collect(),
            description: owner.description.clone(),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("owner", self.owner.clone()),
            ("description", self.description.clone().unwrap_or_default()),
            ("primary", self.primary.clone()),
            ("backup", self.backup.clone().unwrap_or_default()),
            ("dags", self.dags.join("\n")),
            ("views", self.views.join("\n")),
            ("sources", self.sources.join("\n")),
        ]
    }
}

impl Row for Summary {
    const HEADINGS: &'static [&'static str] = &["OWNER", "PRIMARY", "BACKUP", "DAGS", "VIEWS", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.owner.clone(),
            self.primary.clone(),
            self.backup.clone().unwrap_or_else(|| "-".to_owned()),
            self.dags.len().to_string(),
            self.views.len().to_string(),
            self.description.clone().unwrap_or_default(),
        ]
    }
}
