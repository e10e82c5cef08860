//! `tidegate consumers`: the models, applications and reports that read features.

use serde::Serialize;
use tidegate_registry::ids::ConsumerName;
use tidegate_registry::model::{Consumer, Project};

use crate::context::Context;
use crate::error::Exit;
use crate::output::Row;
use crate::select::{self, Selection};

/// List or show who reads features
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List consumers
    List {
        #[command(flatten)]
        selection: Selection,
        /// Only those that use this view: a name (its highest version) or name@vN
        #[arg(long)]
        view: Option<String>,
    },
    /// Show one consumer with the features that it uses
    Show {
        /// The consumer's name
        consumer: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such consumer or view.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let project = context.registry().await?.project;
    match arguments.action {
        Action::List { selection, view } => {
            context.output.list(&summaries(&project, &selection, view.as_deref())?)?;
        }
        Action::Show { consumer } => {
            let found = project.consumers.values().find(|known| known.name.as_str() == consumer);
            let known = project.consumers.keys().map(ConsumerName::as_str);
            let summary = Summary::of(select::named("consumer", &consumer, found, known)?);
            context.output.one(&summary, &summary.lines())?;
        }
    }
    Ok(Exit::Done)
}

/// The consumers that are chosen, as they are listed; with `view` only those that use it.
///
/// # Errors
/// When there is no such view.
pub fn summaries(project: &Project, selection: &Selection, view: Option<&str>) -> anyhow::Result<Vec<Summary>> {
    let view = view.map(|name| select::view(project, name)).transpose()?;
    let chosen = |consumer: &&Consumer| {
        let texts = [consumer.name.as_str(), &consumer.description];
        view.is_none_or(|view| consumer.uses(&view.id))
            && selection.takes(texts, Some(consumer.owner.as_str()), &consumer.tags)
    };
    Ok(project.consumers.values().filter(chosen).map(Summary::of).collect())
}

/// A consumer as it is listed.
#[derive(Debug, Serialize)]
pub struct Summary {
    consumer: String,
    kind: &'static str,
    version: Option<String>,
    owner: String,
    feature_services: Vec<String>,
    views: Vec<String>,
    features: Vec<String>,
    description: String,
    tags: Vec<String>,
}

impl Summary {
    fn of(consumer: &Consumer) -> Self {
        Self {
            consumer: consumer.name.to_string(),
            kind: consumer.kind.as_str(),
            version: consumer.version.clone(),
            owner: consumer.owner.to_string(),
            feature_services: consumer.services.iter().map(ToString::to_string).collect(),
            views: consumer.features.views.keys().map(ToString::to_string).collect(),
            features: consumer.features.names().collect(),
            description: consumer.description.clone(),
            tags: consumer.tags.clone(),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("consumer", self.consumer.clone()),
            ("description", self.description.clone()),
            ("kind", self.kind.to_owned()),
            ("version", self.version.clone().unwrap_or_default()),
            ("owner", self.owner.clone()),
            ("tags", self.tags.join(", ")),
            ("services", self.feature_services.join("\n")),
            ("features", self.features.join("\n")),
        ]
    }
}

impl Row for Summary {
    const HEADINGS: &'static [&'static str] = &["CONSUMER", "KIND", "VERSION", "OWNER", "VIEWS", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.consumer.clone(),
            self.kind.to_owned(),
            self.version.clone().unwrap_or_else(|| "-".to_owned()),
            self.owner.clone(),
            self.views.join(", "),
            self.description.clone(),
        ]
    }
}
