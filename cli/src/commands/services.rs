//! `tidegate services`: the named sets of features.

use serde::Serialize;
use tidegate_registry::ids::ServiceName;
use tidegate_registry::model::{FeatureService, Project};

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::select::{self, Selection};

/// List or show feature services
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List feature services
    List(Selection),
    /// Show one feature service with its features and consumers
    Show {
        /// The service's name
        service: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such service.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let project = context.registry().await?.project;
    match arguments.action {
        Action::List(selection) => {
            context.output.list(&summaries(&project, &selection))?;
        }
        Action::Show { service } => {
            let found = project.feature_services.values().find(|known| known.name.as_str() == service);
            let known = project.feature_services.keys().map(ServiceName::as_str);
            let summary = Summary::of(&project, select::named("feature service", &service, found, known)?);
            context.output.one(&summary, &summary.lines())?;
        }
    }
    Ok(Exit::Done)
}

/// The feature services that are chosen, as they are listed.
pub fn summaries(project: &Project, selection: &Selection) -> Vec<Summary> {
    let chosen = |service: &&FeatureService| {
        let texts = [service.name.as_str(), &service.description];
        selection.takes(texts, Some(service.owner.as_str()), &service.tags)
    };
    project.feature_services.values().filter(chosen).map(|service| Summary::of(project, service)).collect()
}

/// A feature service as it is listed.
#[derive(Debug, Serialize)]
pub struct Summary {
    service: String,
    owner: String,
    features: Vec<String>,
    consumers: Vec<String>,
    description: String,
    tags: Vec<String>,
}

impl Summary {
    fn of(project: &Project, service: &FeatureService) -> Self {
        let consumers = project.consumers.values().filter(|consumer| consumer.services.contains(&service.name));
        Self {
            service: service.name.to_string(),
            owner: service.owner.to_string(),
            features: service.features.names().collect(),
            consumers: consumers.map(|consumer| consumer.name.to_string()).collect(),
            description: service.description.clone(),
            tags: service.tags.clone(),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("service", self.service.clone()),
            ("description", self.description.clone()),
            ("owner", self.owner.clone()),
            ("tags", self.tags.join(", ")),
            ("features", self.features.join("\n")),
            ("consumers", self.consumers.join("\n")),
        ]
    }
}

impl Row for Summary {
    const HEADINGS: &'static [&'static str] = &["SERVICE", "OWNER", "FEATURES", "CONSUMERS", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.owner.clone(),
            self.features.len().to_string(),
            self.consumers.join(", "),
            self.description.clone(),
        ]
    }
}
