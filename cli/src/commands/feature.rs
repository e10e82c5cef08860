//! `tidegate feature`: switch features off online at once, for all entities or some, and on again.

use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{Feature, FeatureView, Project};
use tidegate_registry::switches::{BUCKETS, Off, Serve, Switch, SwitchChange, Switches, ViewSwitches};
use tidegate_registry::time::format_instant;
use tidegate_worker::online::OnlineStore;

use crate::commands::online::{no_store, not_online};
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::note;
use crate::select;

/// Switch features off online at once, and on again
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Let readers of the online store have something else than what is stored
    ///
    /// Takes effect at once and computes nothing; the lake stays as it is. It outlives runs and restores, until
    /// `tidegate feature enable`. Saying it again with another share or another way replaces the first.
    Disable {
        /// The feature: VIEW.FEATURE, where VIEW is a name (its highest version) or name@vN
        #[arg(value_name = "VIEW.FEATURE")]
        feature: String,
        /// What readers get instead
        #[arg(long, value_enum, value_name = "WHAT")]
        serve: ServeArgument,
        /// Why, for the audit trail and for whoever finds it switched off
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// For so many percent of the entities (steps of 0.01); a larger share keeps those of a smaller one
        #[arg(long, value_name = "P", default_value = "100")]
        percent: String,
    },
    /// Let readers have what is stored again
    Enable {
        /// The feature: VIEW.FEATURE, where VIEW is a name (its highest version) or name@vN
        #[arg(value_name = "VIEW.FEATURE")]
        feature: String,
        /// Why, for the audit trail
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// List what is switched off
    List,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ServeArgument {
    /// The feature's default
    Default,
    /// Null
    Null,
}

/// Runs the command.
///
/// # Errors
/// When there is no such feature, its view is not published online, or the registry or an online store cannot be written.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    match arguments.action {
        Action::Disable { feature, serve, reason, percent } => {
            let (view, found) = find(&registry.project, &feature)?;
            if reason.trim().is_empty() {
                return Err(UserError::new("a switch needs a reason").hint("say `--reason TEXT`").into());
            }
            let serve = match serve {
                ServeArgument::Default => Serve::Default,
                ServeArgument::Null => Serve::Null,
            };
            let off = off(view, found, serve, share(&percent)?)?;
            let view = view.id.clone();
            let name = found.name.clone();
            switch(&view, &name, Some(off), (&context.actor(), &reason), &registry, context).await?;
            note(format!(
                "readers of `{view}.{name}` get {off} from now on, until `tidegate feature enable {view}.{name}`"
            ));
        }
        Action::Enable { feature, reason } => {
            let (view, name) = find_switched(&registry.store.switches().await?, &registry.project, &feature)?;
            switch(&view, &name, None, (&context.actor(), &reason), &registry, context).await?;
            note(format!("readers of `{view}.{name}` get what is stored"));
        }
        Action::List => list(&registry, context).await?,
    }
    Ok(Exit::Done)
}

/// How `feature` of `view` is switched off.
///
/// # Errors
/// When the view is not published online, or there is no default to serve.
pub(super) fn off(view: &FeatureView, feature: &Feature, serve: Serve, below: u16) -> anyhow::Result<Off> {
    if view.online.is_none() {
        return Err(not_online(view).into());
    }
    if serve == Serve::Default && feature.default.is_none() {
        return Err(UserError::new(format!("`{}.{}` has no default", view.id, feature.name))
            .hint("serve nothing instead with `--serve null`, or give it a `default:` and apply that")
            .into());
    }
    Ok(Off { serve, below })
}

/// Switches one feature: in the registry, which counts, and then in every online store. Repeating it is harmless.
///
/// # Errors
/// When the registry or a required online store cannot be written; in the latter case workers bring the switch there as
/// soon as they can.
pub(super) async fn switch(
    view: &ViewId,
    feature: &str,
    off: Option<Off>,
    (actor, reason): (&str, &str),
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let online = engine::online(&settings).await?.ok_or_else(no_store)?;
    online.claim_owner(&settings.project, registry.id).await.context("claiming the online store")?;
    let change = SwitchChange {
        view: view.clone(),
        feature: feature.to_owned(),
        off,
        above: revision_online(&online, view).await,
        actor: actor.to_owned(),
        reason: reason.to_owned(),
        now: registry.clock.now(),
    };
    let mut switches = registry.store.switch_set(&change).await.context("storing the switch")?;
    fail::fail_point!("switch.stored");
    // A store that did not answer above, or that another registry wrote, may be ahead.
    let there = write(&*online, view, &switches).await?;
    if there > switches.revision {
        let known = registry.store.switches().await.context("reading the switches")?.of(view);
        if known.revision < there {
            let above = SwitchChange { above: there, ..change };
            switches = registry.store.switch_set(&above).await.context("storing the switch")?;
            write(&*online, view, &switches).await?;
        }
    }
    online.close().await;
    Ok(())
}

async fn write(online: &dyn OnlineStore, view: &ViewId, switches: &ViewSwitches) -> anyhow::Result<u64> {
    online.set_switches(view, switches).await.with_context(|| {
        format!(
            "the switch is stored, but the online store {online} did not take it: workers bring it there within a \
             minute of its return, and repeating the command does so at once"
        )
    })
}

/// The highest revision that a store has of the view; 0 where none answers, which a later comparison finds.
async fn revision_online(online: &Arc<dyn OnlineStore>, view: &ViewId) -> u64 {
    let members = online.members();
    let stores = if members.is_empty() { std::slice::from_ref(online) } else { members };
    let mut newest = 0;
    for store in stores {
        if let Ok(switches) = store.switches(view).await {
            newest = switches.revision.max(newest);
        }
    }
    newest
}

fn find<'a>(project: &'a Project, asked: &str) -> anyhow::Result<(&'a FeatureView, &'a Feature)> {
    let Some((view, name)) = asked.split_once('.') else {
        return Err(UserError::new(format!("`{asked}` is not of the form VIEW.FEATURE")).into());
    };
    let view = select::view(project, view)?;
    let found = view.features.iter().find(|feature| feature.name == name);
    let known = view.features.iter().map(|feature| feature.name.as_str());
    Ok((view, select::named(&format!("feature in `{}`", view.id), name, found, known)?))
}

/// What is switched off can be switched on also when its definition is gone.
fn find_switched(switches: &Switches, project: &Project, asked: &str) -> anyhow::Result<(ViewId, String)> {
    let is_it = |switch: &&Switch| format!("{}.{}", switch.view, switch.feature) == asked;
    if let Some(switch) = switches.switches.iter().find(is_it) {
        return Ok((switch.view.clone(), switch.feature.clone()));
    }
    let (view, feature) = find(project, asked)?;
    Ok((view.id.clone(), feature.name.clone()))
}

/// A share in percent as the number of buckets that it takes.
///
/// # Errors
/// When it is not above 0 and at most 100, or finer than 0.01.
pub(super) fn share(percent: &str) -> anyhow::Result<u16> {
    let wrong = || {
        UserError::new(format!("`{percent}` is no share in percent"))
            .hint("say a number above 0 and up to 100 with at most two decimals; `tidegate feature enable` is for 0")
    };
    let (whole, decimals) = percent.split_once('.').unwrap_or((percent, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 3 || decimals.len() > 2 || !digits(whole) || !digits(decimals) {
        return Err(wrong().into());
    }
    let below: u32 = format!("{whole}{decimals:0<2}").parse().map_err(|_| wrong())?;
    match u16::try_from(below) {
        Ok(below @ 1..=BUCKETS) => Ok(below),
        _ => Err(wrong().into()),
    }
}

async fn list(registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let switches = registry.store.switches().await.context("reading the switches")?.switches;
    if switches.is_empty() && !context.output.is_json() {
        note("nothing is switched off");
        return Ok(());
    }
    context.output.list(&switches.iter().map(Line::from).collect::<Vec<_>>())
}

#[derive(Debug, Serialize)]
struct Line {
    feature: String,
    view: String,
    name: String,
    serve: Serve,
    percent: f64,
    actor: String,
    reason: String,
    changed_at: String,
    revision: u64,
}

impl From<&Switch> for Line {
    fn from(switch: &Switch) -> Self {
        Self {
            feature: format!("{}.{}", switch.view, switch.feature),
            view: switch.view.to_string(),
            name: switch.feature.clone(),
            serve: switch.off.serve,
            percent: switch.off.percent(),
            actor: switch.actor.clone(),
            reason: switch.reason.clone(),
            changed_at: format_instant(switch.changed_at),
            revision: switch.revision,
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["FEATURE", "READERS GET", "ENTITIES", "BY", "SINCE", "REASON"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.feature.clone(),
            self.serve.to_string(),
            format!("{} %", self.percent),
            self.actor.clone(),
            self.changed_at.clone(),
            self.reason.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_number_of_buckets() {
        for (percent, below) in [("100", 10_000), ("5", 500), ("2.5", 250), ("0.01", 1), ("099.99", 9_999)] {
            assert_eq!(share(percent).unwrap(), below, "{percent}");
        }
        for percent in ["0", "0.00", "100.01", "101", "0.001", "-5", "1e2", "", ".5", "5,5", "+1"] {
            assert!(share(percent).is_err(), "{percent}");
        }
    }
}
