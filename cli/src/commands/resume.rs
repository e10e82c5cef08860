//! `tidegate resume`: lift holds, and compute what was missed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde::Serialize;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::restore::{Hold, Holds, ResumeRequest};
use tidegate_registry::run::{Cause, NewRun};
use tidegate_registry::store::StoreError;
use tidegate_registry::time::{Interval, format_instant};
use tidegate_scheduler::planning::new_runs;
use tidegate_scheduler::resume::missed;

use crate::commands::definitions;
use crate::commands::restore::What;
use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::output::{Row, table};
use crate::progress::{self, note};
use crate::roles;

/// Lift holds: views are published again, and what was missed meanwhile is computed anew
///
/// Shows first what will be computed, and warns when the definition that was in force when the hold was placed still is.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    what: What,
    /// Why, for the audit trail
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Show what would be computed and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Runs the command.
///
/// # Errors
/// When none of the views is held, or the registry cannot be written.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let holds = registry.store.holds().await?;
    let asked = arguments.what.views(&registry)?;
    if asked.is_empty() {
        return Err(UserError::new("which views are meant?").hint("say `--view VIEW`, `--dag DAG` or `--all`").into());
    }
    let views = held_of(&asked, &holds, &registry)?;
    let missed = what_was_missed(&views, &holds, &registry).await?;
    warn_of_the_same(&views, &holds.holds, &registry).await?;
    let lines: Vec<Line> = missed.iter().map(Line::of).collect();
    if arguments.dry_run {
        context.output.list(&lines)?;
        return Ok(Exit::Done);
    }
    if !arguments.yes {
        let missed = if lines.is_empty() { "nothing was missed".to_owned() } else { table(&lines) };
        note(format!("will be computed anew:\n{missed}"));
        if !progress::agreed("resume")? {
            note("nothing was changed");
            return Ok(Exit::Wrong);
        }
    }
    let request = ResumeRequest {
        views,
        revision: holds.revision,
        runs: missed.into_iter().map(|missed| missed.run).collect(),
        actor: context.actor(),
        reason: arguments.reason.unwrap_or_default(),
        now: registry.clock.now(),
    };
    let made = registry.store.resume(request).await.map_err(|error| match error {
        StoreError::Conflict(what) => UserError::new(what).hint("run `tidegate resume` again").into(),
        other => anyhow::Error::new(other).context("lifting the holds"),
    })?;
    note(format!("resumed; {} runs are planned", made.len()));
    context.output.list(&lines)?;
    Ok(Exit::Done)
}

/// Those of `asked` that are held themselves. Whoever names a view that is only held with another is told which.
fn held_of(asked: &[ViewId], holds: &Holds, registry: &Registry) -> anyhow::Result<Vec<ViewId>> {
    let held: Vec<ViewId> =
        asked.iter().filter(|view| holds.holds.iter().any(|hold| hold.view == **view)).cloned().collect();
    if !held.is_empty() {
        return Ok(held);
    }
    let with = asked.iter().find_map(|view| Some((view, holds.on(&registry.project, view)?)));
    Err(match with {
        Some((view, hold)) => UserError::new(format!("`{view}` is held only because `{}` is", hold.view))
            .hint(format!("`tidegate resume --view {}` lifts that hold", hold.view))
            .into(),
        None => UserError::new("none of these views is held").hint("`tidegate holds` lists what is").into(),
    })
}

/// Lifts the holds on `views`, whatever the definitions are; the runs that compute what was missed.
///
/// # Errors
/// As the command.
pub(super) async fn perform(
    views: &[ViewId],
    reason: &str,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<Vec<RunId>> {
    let holds = registry.store.holds().await?;
    let missed = what_was_missed(views, &holds, registry).await?;
    let request = ResumeRequest {
        views: views.to_vec(),
        revision: holds.revision,
        runs: missed.into_iter().map(|missed| missed.run).collect(),
        actor: context.actor(),
        reason: reason.to_owned(),
        now: registry.clock.now(),
    };
    registry.store.resume(request).await.context("lifting the holds")
}

/// A run that makes up for what a hold kept from being computed.
struct Missed {
    run: NewRun,
}

async fn what_was_missed(views: &[ViewId], holds: &Holds, registry: &Registry) -> anyhow::Result<Vec<Missed>> {
    let project = &registry.project;
    let rest = Holds {
        holds: holds.holds.iter().filter(|hold| !views.contains(&hold.view)).cloned().collect(),
        ..holds.clone()
    };
    let still_held = rest.of(project);
    let lifted: BTreeSet<ViewId> =
        holds.of(project).into_keys().filter(|view| !still_held.contains_key(view)).collect();
    let since = holds.holds.iter().filter(|hold| views.contains(&hold.view)).map(|hold| hold.placed_at).min();
    let Some(since) = since else { return Ok(Vec::new()) };
    let cause = Cause::Resume(RunId::generate());
    let mut runs = Vec::new();
    for dag in project.dags.values().filter(|dag| dag.views.iter().any(|view| lifted.contains(view))) {
        roles::scheduler(registry).extend_grid(&dag.name, registry.clock.now()).await?;
        let history = registry.store.dag_history(&dag.name, &dag.views).await.context("reading what was published")?;
        for (interval, views) in missed(dag, &lifted, &history, since) {
            let new = new_runs(dag, registry.revision, interval, views, &cause);
            runs.extend(new.into_iter().map(|run| Missed { run }));
        }
    }
    Ok(runs)
}

/// What did the damage may do it again: says so, and how to get the definition before it, if there is one.
async fn warn_of_the_same(views: &[ViewId], holds: &[Hold], registry: &Registry) -> anyhow::Result<()> {
    let mut said: BTreeMap<&ViewId, ()> = BTreeMap::new();
    let mut before = BTreeSet::new();
    for hold in holds.iter().filter(|hold| views.contains(&hold.view)) {
        let Some(now) = registry.project.views.get(&hold.view) else { continue };
        if hold.fingerprint.as_deref() == Some(now.fingerprint.as_str()) && said.insert(&hold.view, ()).is_none() {
            note(format!(
                "warning: the definition of `{}` is the one that was in force when it was held on {} ({}): unless its data \
                 was mended, the same comes out again",
                hold.view,
                format_instant(hold.placed_at),
                hold.reason
            ));
            before.extend(definitions::before(hold, registry).await?);
        }
    }
    for revision in before {
        note(format!(
            "hint: `tidegate definitions revert --to {revision}` brings back what was defined before that; `tidegate definitions \
             diff {revision}` shows what has changed since"
        ));
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Line {
    dag: String,
    interval_start: String,
    interval_end: String,
    views: Vec<String>,
}

impl Line {
    fn of(missed: &Missed) -> Self {
        let interval: Interval = missed.run.interval;
        Self {
            dag: missed.run.dag.to_string(),
            interval_start: format_instant(interval.start()),
            interval_end: format_instant(interval.end()),
            views: missed.run.views.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["DAG", "INTERVAL START", "INTERVAL END", "VIEWS"];

    fn cells(&self) -> Vec<String> {
        vec![self.dag.clone(), self.interval_start.clone(), self.interval_end.clone(), self.views.join(", ")]
    }
}
