//! `tidegate run`: one interval of one DAG, now.

use anyhow::Context as _;
use serde_json::json;
use tidegate_registry::ids::RunId;
use tidegate_registry::model::{Dag, PublishUnit};
use tidegate_registry::run::{Cause, Run, RunState};
use tidegate_registry::store::{CheckFilter, RunFilter};
use tidegate_registry::time::{Interval, format_instant};
use tidegate_scheduler::grid::intervals;
use tidegate_scheduler::planning::new_runs;

use crate::commands::runs;
use crate::commands::up::Slots;
use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::progress::note;
use crate::roles;
use crate::select;
use crate::times::IntervalArgument;

/// Compute one interval of a DAG and wait for it
///
/// Computes in this process when no worker is alive. Exit code 1 when a check stopped the run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The DAG's name
    dag: String,
    /// The interval, one of the DAG's own: START/END, times without offset being in the DAG's zone [default: the newest
    /// complete one]
    #[arg(long, value_name = "START/END")]
    interval: Option<IntervalArgument>,
    #[command(flatten)]
    slots: Slots,
}

/// Runs the command.
///
/// # Errors
/// When there is no such DAG or interval, the process is stopped first, or a part cannot be opened.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let registry = context.registry().await?;
    let dag = select::dag(&registry.project, &arguments.dag)?;
    let asked = arguments.interval.map(|interval| interval.in_zone(dag.schedule.timezone)).transpose()?;
    let ids = planned(dag, asked, &registry, context).await?;
    let mut told = None;
    roles::see_through(&ids, arguments.slots, &settings, &registry, context, |sight| {
        if let Some(run) = sight.open.first() {
            let now = (run.state, run.reason.clone());
            if told.as_ref() != Some(&now) {
                note(match &run.reason {
                    Some(reason) if run.state == RunState::Waiting => format!("run {} {reason}", run.id),
                    Some(reason) => format!("run {} is {}: {reason}", run.id, run.state),
                    None => format!("run {} is {}", run.id, run.state),
                });
                told = Some(now);
            }
        }
    })
    .await?;
    finish(&ids, &registry, context).await
}

fn reason(run: &Run) -> String {
    run.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// The runs that compute the interval: open ones as they are, else new ones. Several only where views are published each
/// on its own.
async fn planned(
    dag: &Dag,
    asked: Option<Interval>,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<Vec<RunId>> {
    roles::scheduler(registry).extend_grid(&dag.name, registry.clock.now()).await?;
    let interval = on_the_grid(dag, asked, registry).await?;
    let filter = RunFilter {
        dag: Some(dag.name.clone()),
        from: Some(interval.start()),
        to: Some(interval.end()),
        ..RunFilter::default()
    };
    let runs = registry.store.runs(&filter).await.context("reading the runs of the interval")?;
    let open: Vec<RunId> = runs.iter().filter(|run| run.state.is_open()).map(|run| run.id).collect();
    if !open.is_empty() {
        note(format!("`{}` over {interval} is planned already; seeing that run through", dag.name));
        return Ok(open);
    }
    let number = runs.iter().filter_map(|run| match run.cause {
        Cause::Manual(number) => Some(number + 1),
        _ => None,
    });
    let cause = Cause::Manual(number.max().unwrap_or(1));
    let holds = registry.store.holds().await.context("reading what is held")?;
    let (unheld, _) = holds.apart(&registry.project, dag);
    if unheld.views.is_empty() && !dag.views.is_empty() {
        return Err(UserError::new(format!("all views of `{}` are held", dag.name))
            .hint("`tidegate holds` says why; `tidegate resume` lifts holds and computes what was missed")
            .into());
    }
    if unheld.views.len() < dag.views.len() {
        note(format!("{} of its views are held and left out", dag.views.len() - unheld.views.len()));
    }
    let new = new_runs(dag, registry.revision, interval, unheld.views, &cause);
    debug_assert!(dag.publish == PublishUnit::Each || new.len() == 1);
    note(format!("computing `{}` over {interval}", dag.name));
    let ids = registry.store.runs_create(new, registry.clock.now()).await.context("creating the run")?;
    let event = context.event(registry, "run_create", dag.name.as_str());
    let event = event.with(json!({ "interval": interval, "runs": ids, "cause": cause.to_string() }));
    registry.store.audit(event).await.context("noting the run")?;
    Ok(ids)
}

async fn on_the_grid(dag: &Dag, asked: Option<Interval>, registry: &Registry) -> anyhow::Result<Interval> {
    let now = registry.clock.now();
    let ticks = registry.store.ticks(&dag.name, chrono::DateTime::<chrono::Utc>::MIN_UTC, now).await?;
    let known: Vec<Interval> = intervals(&ticks).collect();
    let Some(newest) = known.last().copied() else {
        return Err(UserError::new(format!("`{}` has no complete interval yet", dag.name))
            .hint(format!(
                "its schedule starts at {}; it is {} now",
                format_instant(dag.schedule.start),
                format_instant(now)
            ))
            .into());
    };
    let Some(asked) = asked else { return Ok(newest) };
    if known.contains(&asked) {
        return Ok(asked);
    }
    let near = known.iter().filter(|known| known.end() > asked.start()).take(3);
    let near: Vec<String> = near.chain(known.last()).map(ToString::to_string).collect();
    let mut shown = near.clone();
    shown.dedup();
    Err(UserError::new(format!("{asked} is not an interval of `{}`", dag.name))
        .hint(format!(
            "its schedule cuts time at `{}` in {}; there is {}",
            dag.schedule.cron,
            dag.schedule.timezone,
            select::quoted(shown)
        ))
        .into())
}

/// Shows how the runs ended, and says whose turn it is.
async fn finish(ids: &[RunId], registry: &Registry, context: &Context) -> anyhow::Result<Exit> {
    let mut exit = Exit::Done;
    for id in ids {
        runs::show(*id, registry, context).await?;
        let (run, _) = registry.store.run(*id).await?;
        explain(&run, registry).await?;
        exit = worse(exit, exit_of(run.state));
    }
    Ok(exit)
}

/// What stopped a run, on standard error.
///
/// # Errors
/// When the registry cannot be read.
pub async fn explain(run: &Run, registry: &Registry) -> anyhow::Result<()> {
    match run.state {
        RunState::Blocked => {
            let filter = CheckFilter { run: Some(run.id), ..CheckFilter::default() };
            let verdicts = registry.store.checks(&filter).await?;
            let failed: Vec<_> = verdicts.iter().filter(|row| row.result.blocks()).collect();
            let reason = if failed.is_empty() { reason(run) } else { String::new() };
            note(format!("blocked by its checks; nothing of it was published{reason}"));
            for row in failed {
                note(format!("  {} {}: {}", row.view, row.result.check, row.result.message));
            }
            note(format!("hint: mend the data or the check, then `tidegate runs retry {}`", run.id));
            note(format!("hint: `tidegate runs override {} --reason …` publishes it all the same", run.id));
        }
        RunState::Held => {
            note(format!("computed and checked, and not published{}", reason(run)));
            note("hint: `tidegate holds` lists what is held");
        }
        RunState::Failed => {
            note(format!("failed; nothing of it was published{}", reason(run)));
            note(format!("hint: `tidegate runs logs {}` shows what its tasks wrote", run.id));
        }
        _ => {}
    }
    Ok(())
}

/// Whose turn it is after a run that ended so.
pub fn exit_of(state: RunState) -> Exit {
    match state {
        RunState::Succeeded => Exit::Done,
        RunState::Blocked | RunState::Cancelled | RunState::Superseded | RunState::Held => Exit::Wrong,
        _ => Exit::Failed,
    }
}

/// The worse of two.
pub fn worse(one: Exit, other: Exit) -> Exit {
    if one.code() >= other.code() { one } else { other }
}
