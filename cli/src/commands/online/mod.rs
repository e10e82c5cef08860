//! `tidegate online`: what the online store answers, and its upkeep.

mod audit;
mod get;
mod rebuild;

use std::sync::Arc;

use anyhow::Context as _;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::FeatureView;
use tidegate_worker::engine::Engine;
use tidegate_worker::serving::{AuditOptions, Serving};

pub use self::get::{Answer, entity, get, key_of, snapshot_of};
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::process;
use crate::select;

/// Read features from the online store, and look after it
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Read the features of one entity, as a model server would
    ///
    /// An entity that is not there has the features' defaults. Exit code 0 either way: `found` tells.
    Get {
        /// The view: a name (its highest version) or name@vN
        view: String,
        /// The entity's keys, as in carrier=UA
        #[arg(required = true, value_name = "KEY=VALUE")]
        keys: Vec<String>,
    },
    /// Fill an online store again that lost its data
    ///
    /// Brings back what the registry says is live, from the lake; no run is needed, and it is safe beside running workers,
    /// which do the same within a minute. What lost nothing is left alone.
    Rebuild {
        /// The views: names (their highest version) or name@vN; all that are published online when none is named
        views: Vec<String>,
    },
    /// Compare the online store with the lake
    ///
    /// Exit code 1 when something differs and was not repaired.
    Audit {
        /// The views: names (their highest version) or name@vN; all that are published online when none is named
        views: Vec<String>,
        /// Compare about so many entities of each view, evenly picked, instead of all
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        sample: Option<u64>,
        /// Put right what differs, and only that
        #[arg(long)]
        repair: bool,
    },
}

/// Runs the command.
///
/// # Errors
/// When a view is not published online, or the registry, the lake or the online store cannot be reached.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    match arguments.action {
        Action::Get { view, keys } => get::run(&view, &keys, context).await,
        Action::Rebuild { views } => rebuild::run(&views, context).await,
        Action::Audit { views, sample, repair } => audit::run(&views, sample, repair, context).await,
    }
}

/// Compares `views` with the lake, and repairs nothing; exit code 1 when they differ.
///
/// # Errors
/// As [`run`].
pub(super) async fn validate(views: &[String], sample: Option<u64>, context: &Context) -> anyhow::Result<Exit> {
    audit::run(views, sample, false, context).await
}

/// The views of `views` that differ from the lake, on behalf of `actor`; nothing is printed.
///
/// # Errors
/// As [`run`].
pub(crate) async fn differing(
    views: &[ViewId],
    sample: Option<u64>,
    actor: &str,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<Vec<String>> {
    let options = AuditOptions { sample, repair: false };
    let lines = audit::compare(views, options, actor, registry, context).await?;
    Ok(lines.into_iter().filter(audit::Line::differs).map(|line| line.view).collect())
}

/// The project has no online store.
pub fn no_store() -> UserError {
    UserError::new("the project has no online store")
        .hint("name one in tidegate.yaml, as in `online: sqlite://.tidegate/online.db`")
}

/// The view is not published online.
pub fn not_online(view: &FeatureView) -> UserError {
    UserError::new(format!("`{}` is not published online", view.id))
        .hint("give it `online: {strategy: swap}`, or read its table in the lake")
}

/// What brings features online, once for each store that the project keeps alike.
pub(super) async fn serving(context: &Context, registry: &Registry) -> anyhow::Result<Vec<Serving>> {
    let settings = context.settings()?;
    let online = engine::online(&settings).await?.ok_or_else(no_store)?;
    online.claim_owner(&settings.project, registry.id).await.context("claiming the online store")?;
    let engine = Engine::new(settings.memory_bytes, &settings.spill_dir).context("starting the engine")?;
    let serving = Serving {
        store: Arc::clone(&registry.store),
        clock: Arc::clone(&registry.clock),
        lake: engine::lake(&settings)?,
        online,
        engine: Arc::new(engine),
        owner: process::owner(),
    };
    Ok(serving.of_each_member())
}

/// The views that are named, or all that are published online.
fn chosen(registry: &Registry, names: &[String]) -> anyhow::Result<Vec<ViewId>> {
    if names.is_empty() {
        let online = registry.project.views.values().filter(|view| view.online.is_some());
        return Ok(online.map(|view| view.id.clone()).collect());
    }
    let named = names.iter().map(|name| {
        let view = select::view(&registry.project, name)?;
        if view.online.is_some() { Ok(view.id.clone()) } else { Err(not_online(view).into()) }
    });
    named.collect()
}
