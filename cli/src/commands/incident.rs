//! `tidegate incident`: say that something is wrong, so that recipes which wait for that are triggered.

use anyhow::Context as _;
use serde_json::json;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::Trigger;
use tidegate_registry::notice::{NewNotice, NoticeEvent};

use crate::commands::restore::What;
use crate::context::Context;
use crate::error::{Exit, UserError};
use crate::progress::note;
use crate::select;

/// Say that something is wrong
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Say that something is wrong with views: for people, and for programs that watch what Tidegate does not see
    ///
    /// It is written to the audit log, told (`incident.opened`), and triggers recipes with `on: [incident]`. By itself it
    /// changes nothing.
    Open {
        #[command(flatten)]
        what: What,
        /// What is wrong
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When there is no such view, or the registry cannot be written.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let Action::Open { what, reason } = arguments.action;
    let registry = context.registry().await?;
    let views = what.views(&registry)?;
    if views.is_empty() {
        return Err(UserError::new("which views are meant?").hint("say `--view VIEW`, `--dag DAG` or `--all`").into());
    }
    if reason.trim().is_empty() {
        return Err(UserError::new("the reason is empty").hint("say what is wrong").into());
    }
    let names = views.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let event = context.event(&registry, "incident_open", &names).because(&reason).with(json!({ "views": views }));
    registry.store.audit(event).await.context("noting the incident")?;
    let (now, actor) = (registry.clock.now(), context.actor());
    let message = format!("{actor} says that something is wrong with {names}: {reason}");
    let notice = NewNotice::new(NoticeEvent::IncidentOpened, &names, now, message).by(actor);
    registry.store.notify(notice.with(json!({ "views": views }))).await.context("telling of the incident")?;
    let waits = |view: &ViewId| {
        let mut recipes = registry.project.recipes.values().filter(|recipe| recipe.on.contains(&Trigger::Incident));
        let view = registry.project.views.get(view);
        recipes
            .find(|recipe| view.is_some_and(|view| recipe.matching.means(view)))
            .map(|recipe| recipe.name.to_string())
    };
    let mut recipes: Vec<String> = views.iter().filter_map(waits).collect();
    recipes.sort_unstable();
    recipes.dedup();
    note(match recipes.is_empty() {
        true => "it is noted and told; no recipe waits for an incident of these views".to_owned(),
        false => format!("it is noted and told; it triggers {}", select::quoted(recipes)),
    });
    Ok(Exit::Done)
}
