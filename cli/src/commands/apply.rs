//! `tidegate apply`: make the registry what the files say.

use anyhow::Context as _;
use tidegate_registry::ids::ViewId;
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::store::{ApplyRequest, StoreError};

use crate::checked;
use crate::commands::definitions;
use crate::commands::plan::Prepared;
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output;
use crate::progress::{self, note};

/// Make the registry what the files say, after showing the plan
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Why, for the audit trail
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Also what `tidegate definitions revert` has taken out of force
    #[arg(long)]
    bring_back: bool,
}

/// Runs the command.
///
/// # Errors
/// When the definitions have errors, nobody can be asked, the registry changed meanwhile, or a part cannot be written.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let checked = checked::load(context).await?;
    let existing = match &checked.settings {
        Some(settings) => context.registry_if_any(settings).await?,
        None => None,
    };
    let prepared = Prepared::new(checked, existing.as_ref(), context).await?;
    if context.output.is_json() {
        context.output.json(&prepared.report)?;
    } else {
        note(output::labelled(&prepared.report.lines()));
    }
    if prepared.report.is_empty() {
        return Ok(Exit::Done);
    }
    if let Some(registry) = existing.as_ref().filter(|_| !arguments.bring_back) {
        definitions::refuse_reverted(&prepared, registry).await?;
    }
    if !arguments.yes && !progress::agreed("apply")? {
        note("nothing was changed");
        return Ok(Exit::Wrong);
    }
    let registry = match existing {
        Some(registry) => registry,
        None => context.open_registry(&prepared.settings).await?,
    };
    if arguments.bring_back {
        definitions::note_brought_back(&prepared, &registry, context).await?;
    }
    let revision = perform(&prepared, &registry, arguments.message, context).await?;
    note(format!("applied: revision {revision}"));
    Ok(Exit::Done)
}

/// Writes the plan: first the empty tables of new views, so that no first run has to race for that, then the definitions.
///
/// # Errors
/// When the lake cannot be written, or the registry is no longer what the plan was made on.
pub async fn perform(
    prepared: &Prepared,
    registry: &Registry,
    message: Option<String>,
    context: &Context,
) -> anyhow::Result<i64> {
    // Also those that change: while nothing of a view is published, its columns may.
    let changes = prepared.plan.changes();
    let views = changes.upserts.iter().filter(|row| row.kind == DefinitionKind::FeatureView);
    let views: Vec<ViewId> = views.filter_map(|row| row.name.parse().ok()).collect();
    let lake = engine::claimed_lake(&prepared.settings, registry).await?;
    let tables = lake.ensure_tables(&prepared.project, &views).await.context("creating the tables of new views")?;
    fail::fail_point!("apply.tables");
    let request = ApplyRequest {
        project: prepared.project.name.to_string(),
        base: prepared.plan.base,
        changes,
        tables,
        actor: context.actor(),
        message,
        now: registry.clock.now(),
    };
    let revision = registry.store.apply(request).await.map_err(|error| match error {
        StoreError::Conflict(_) => UserError::new("somebody else applied changes since this plan was made")
            .hint("run `tidegate plan` again and look at what is left to change")
            .into(),
        other => anyhow::Error::new(other).context("writing the definitions"),
    });
    fail::fail_point!("apply.after");
    revision
}
