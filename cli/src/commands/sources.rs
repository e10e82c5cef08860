//! `tidegate sources`: the tables that the applied project reads.

use serde::Serialize;
use tidegate_registry::ids::SourceName;
use tidegate_registry::model::{Project, Source, SourceLocation};

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::select::{self, Selection};

/// List or show sources
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List sources
    List(Selection),
    /// Show one source
    Show {
        /// The source's name
        source: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such source.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let project = context.registry().await?.project;
    match arguments.action {
        Action::List(selection) => {
            let sources: Vec<_> = project
                .sources
                .values()
                .filter(|source| {
                    let description = source.description.as_deref().unwrap_or_default();
                    let texts = [source.name.as_str(), description, source.location.place()];
                    selection.takes(
                        texts,
                        source.owner.as_ref().map(tidegate_registry::ids::OwnerName::as_str),
                        &source.tags,
                    )
                })
                .map(|source| Summary::of(&project, source))
                .collect();
            context.output.list(&sources)?;
        }
        Action::Show { source } => {
            let found = project.sources.values().find(|known| known.name.as_str() == source);
            let source = select::named("source", &source, found, project.sources.keys().map(SourceName::as_str))?;
            let summary = Summary::of(&project, source);
            context.output.one(&summary, &summary.lines())?;
        }
    }
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Summary {
    source: String,
    format: &'static str,
    place: String,
    event_time: Option<String>,
    owner: Option<String>,
    tags: Vec<String>,
    read_by: Vec<String>,
    description: Option<String>,
}

impl Summary {
    fn of(project: &Project, source: &Source) -> Self {
        let readers = project.views.values().filter(|view| view.source_reads().any(|read| *read == source.name));
        Self {
            source: source.name.to_string(),
            format: match source.location {
                SourceLocation::Parquet(_) => "parquet",
                SourceLocation::Csv(_) => "csv",
                SourceLocation::Delta(_) => "delta",
            },
            place: source.location.place().to_owned(),
            event_time: source.event_time.clone(),
            owner: source.owner.as_ref().map(ToString::to_string),
            tags: source.tags.clone(),
            read_by: readers.map(|view| view.id.to_string()).collect(),
            description: source.description.clone(),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("source", self.source.clone()),
            ("description", self.description.clone().unwrap_or_default()),
            ("format", self.format.to_owned()),
            ("place", self.place.clone()),
            ("event time", self.event_time.clone().unwrap_or_default()),
            ("owner", self.owner.clone().unwrap_or_default()),
            ("tags", self.tags.join(", ")),
            ("read by", self.read_by.join("\n")),
        ]
    }
}

impl Row for Summary {
    const HEADINGS: &'static [&'static str] = &["SOURCE", "FORMAT", "PLACE", "EVENT TIME", "READ BY", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.source.clone(),
            self.format.to_owned(),
            self.place.clone(),
            self.event_time.clone().unwrap_or_else(|| "-".to_owned()),
            self.read_by.len().to_string(),
            self.description.clone().unwrap_or_default(),
        ]
    }
}
