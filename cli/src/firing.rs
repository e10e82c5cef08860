//! Carrying out recipes that something has triggered: looking for what did, and doing their steps one by one.
//!
//! One process at a time does so (a duty of the registry). What is done is noted step by step, so whoever comes after a crash
//! goes on: a step that was done twice is harmless, and a restore is known by the id that was noted before it began.

use std::time::Duration;

use anyhow::Context as _;
use tidegate_registry::firing::{self, Firing, FiringProgress, FiringState};
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::{FeatureView, Recipe, RecipeStep};
use tidegate_registry::restore::plan::{Asked, Target};
use tidegate_registry::store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::commands::online;
use crate::commands::recipe::{Cooking, said};
use crate::commands::restore::{self, How};
use crate::context::{Context, Registry, release_dead_leases};
use crate::error::{self, Exit, UserError};
use crate::process;
use crate::shutdown::Stopped;

/// How often somebody looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Which duty it is.
const DUTY: &str = "recipes";
/// For how long a process has it that says nothing.
const LEASE: Duration = Duration::from_secs(60);

/// Looks every few seconds until `cancel`.
pub async fn run(mut registry: Registry, context: Context, cancel: CancellationToken) {
    while !cancel.is_cancelled() {
        match pass(&mut registry, &context).await {
            Ok(_) => {}
            Err(error) if error.is::<Stopped>() => break,
            Err(error) => tracing::warn!("Triggered recipes could not be carried out; trying again: {error:#}"),
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Looks once, and carries out what is to be done. Returns what was triggered and open before, as it is now.
///
/// # Errors
/// When the registry cannot be reached, or the process was asked to stop. What goes wrong with a recipe is noted with it.
pub async fn pass(registry: &mut Registry, context: &Context) -> anyhow::Result<Vec<Firing>> {
    let revision = registry.store.info().await.context("reading the registry")?.revision;
    if revision != registry.revision {
        (registry.revision, registry.project) =
            registry.store.project(None).await.context("reading the definitions")?;
    }
    let looked = firing::look(&*registry.store, &registry.project, registry.clock.now()).await;
    looked.context("looking for what triggers recipes")?;
    let open = registry.store.firings_open().await.context("reading the triggered recipes")?;
    if open.is_empty() {
        return Ok(Vec::new());
    }
    release_dead_leases(&*registry.store).await?;
    if !take_duty(registry).await? {
        return Ok(Vec::new());
    }
    let worked = tokio::select! {
        worked = carry_out_all(open, registry, context) => worked,
        lost = keep_duty(registry) => lost.map(|()| Vec::new()),
    };
    registry.store.duty_release(DUTY, &process::owner()).await.context("ending the duty of carrying out recipes")?;
    worked
}

async fn take_duty(registry: &Registry) -> anyhow::Result<bool> {
    let taken = registry.store.duty_take(DUTY, &process::owner(), LEASE).await;
    taken.context("taking the duty of carrying out recipes")
}

/// Until somebody else has it.
async fn keep_duty(registry: &Registry) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(LEASE / 3).await;
        if !take_duty(registry).await? {
            return Ok(());
        }
    }
}

async fn carry_out_all(open: Vec<Firing>, registry: &Registry, context: &Context) -> anyhow::Result<Vec<Firing>> {
    let mut ended = Vec::with_capacity(open.len());
    for mut firing in open {
        carry_out(&mut firing, registry, context).await?;
        ended.push(firing);
    }
    Ok(ended)
}

/// Does step after step, until there is none or it has to wait.
async fn carry_out(firing: &mut Firing, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    while firing.progress.state.is_open() {
        let next = Box::pin(next(firing, registry, context)).await;
        let (progress, goes_on) = match next {
            Ok(progress) => (progress, true),
            Err(error) if error.is::<Stopped>() => return Err(error),
            Err(error) => (after(firing, &error, registry), false),
        };
        let now = registry.clock.now();
        match registry.store.firing_move(firing, &progress, now).await {
            Ok(()) => {}
            // Somebody else is further.
            Err(StoreError::Conflict(_)) => return Ok(()),
            Err(error) => return Err(error).context("noting how far a recipe is"),
        }
        firing.ended_at = Some(now).filter(|_| !progress.state.is_open());
        firing.progress = progress;
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// What becomes of a recipe whose step did not succeed.
fn after(firing: &Firing, error: &anyhow::Error, registry: &Registry) -> FiringProgress {
    let outcome = Some(error::chain(error));
    let before = firing.progress.clone();
    if error::waits(error) {
        return FiringProgress { state: FiringState::Waiting, outcome, ..before };
    }
    // What moved meanwhile, and outages, are tried again; for as long as anybody would want it.
    let moved = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(StoreError::Conflict(_))));
    let waited = (registry.clock.now() - firing.fired_at).to_std().unwrap_or_default();
    let stops = (error::exit_of(error) == Exit::Wrong && !moved) || waited > firing::STALE_AFTER;
    let state = if stops { FiringState::Stopped } else { FiringState::Due };
    tracing::warn!(recipe = %firing.what.recipe, state = %state, "A triggered recipe did not go on: {error:#}");
    FiringProgress { state, outcome, ..before }
}

/// Does the next step; how far it is then.
async fn next(firing: &Firing, registry: &Registry, context: &Context) -> anyhow::Result<FiringProgress> {
    let (what, before) = (&firing.what, firing.progress.clone());
    let ends = |state, outcome: Option<&str>| FiringProgress {
        state,
        outcome: outcome.map(str::to_owned),
        restore: None,
        ..before.clone()
    };
    let begun = before.steps_done > 0 || before.restore.is_some();
    let off = if begun { FiringState::Stopped } else { FiringState::PassedOver };
    let Some(recipe) = registry.project.recipes.get(&what.recipe).filter(|recipe| recipe.on.contains(&what.trigger))
    else {
        return Ok(ends(off, Some("it is no longer defined to be triggered by this")));
    };
    let Some(step) = what.steps.get(before.steps_done as usize) else {
        return Ok(ends(FiringState::Done, None));
    };
    let views = views(firing, registry).await?;
    if views.is_empty() {
        return Ok(ends(off, Some("what it is about is no longer live")));
    }
    let (actor, cause) = (firing.actor(), format!("{} of {}", what.trigger, what.subject));
    let done = what.steps.iter().take(before.steps_done as usize);
    let approved = done.into_iter().any(|step| matches!(step, RecipeStep::RequireApproval { .. }));
    let how = How { actor: &actor, reason: &what.reason, dry_run: false, yes: true, break_glass: false, approved };
    let recipe = Recipe { steps: what.steps.clone(), ..recipe.clone() };
    let cooking = Cooking { recipe: &recipe, views, how, cause: Some(cause), registry, context };
    let doing = || format!("at `{}`", said(step));
    match step {
        RecipeStep::Disable { feature, serve, below } => {
            cooking.disable(feature, *serve, *below).await.with_context(doing)?;
        }
        RecipeStep::Hold { while_held } => cooking.hold(*while_held).await.with_context(doing)?,
        RecipeStep::Notify { message } => cooking.notify(message).await.with_context(doing)?,
        RecipeStep::RequireApproval { by } => {
            let used_for = format!("recipe {} {}", recipe.name, firing.id);
            if !crate::policy::used_for(&cooking.ask(), &used_for, registry).await? {
                cooking.approved(by, &used_for).await.with_context(doing)?;
            }
        }
        RecipeStep::Validate { sample } => {
            let online = cooking.views.iter().filter(|view| view.online.is_some()).map(|view| view.id.clone());
            let online: Vec<ViewId> = online.collect();
            if !online.is_empty() {
                let differing = online::differing(&online, *sample, &actor, registry, context).await;
                let differing = differing.with_context(doing)?;
                if !differing.is_empty() {
                    let told = format!("online and lake differ in {}", differing.join(", "));
                    return Err(anyhow::Error::new(UserError::new(told)).context(doing()));
                }
            }
        }
        RecipeStep::Restore { cascade, while_held } => {
            let Some(id) = before.restore else {
                // Known before it begins, so that a crash goes on with it.
                return Ok(FiringProgress { restore: Some(RunId::generate()), ..before });
            };
            fail::fail_point!("recipe.restore.before");
            let asked =
                Asked { views: cooking.ids(), target: Target::LastGood, cascade: *cascade, hold_policy: *while_held };
            let restored = restore::perform(&asked, id, how, registry, context).await.with_context(doing)?;
            fail::fail_point!("recipe.restore.after");
            let validation = restored.and_then(|restore| restore.validation);
            if let Some(validation) = validation.filter(|validation| !validation.passed) {
                let told = format!("the restore is not as promised: {}", validation.findings.join("; "));
                return Err(anyhow::Error::new(UserError::new(told)).context(doing()));
            }
        }
    }
    let steps_done = before.steps_done + 1;
    Ok(FiringProgress { state: FiringState::Due, steps_done, restore: None, outcome: None })
}

/// The views that it is about, as they are defined now; where a snapshot triggered it, those in which that is live. After
/// a restore it is not any more, and before one that has begun nobody asks again.
async fn views<'a>(firing: &Firing, registry: &'a Registry) -> anyhow::Result<Vec<&'a FeatureView>> {
    let (what, progress) = (&firing.what, &firing.progress);
    let mut views: Vec<&FeatureView> = what.views.iter().filter_map(|view| registry.project.views.get(view)).collect();
    let mut done = what.steps.iter().take(progress.steps_done as usize);
    let restored = done.any(|step| matches!(step, RecipeStep::Restore { .. }));
    let begun = match progress.restore {
        Some(id) => match registry.store.restore_of(id).await {
            Ok(_) => true,
            Err(StoreError::NotFound { .. }) => false,
            Err(error) => return Err(error).context("looking for the restore of a recipe"),
        },
        None => false,
    };
    if let Some(snapshot) = what.snapshot.filter(|_| !restored && !begun) {
        let mut live = Vec::with_capacity(views.len());
        for view in views {
            let newest = registry.store.ledger(&view.id, None, 1).await.context("reading what is live")?;
            if newest.first().is_some_and(|newest| newest.snapshot == snapshot) {
                live.push(view);
            }
        }
        views = live;
    }
    Ok(views)
}
