//! `tidegate backfill`: many intervals of one DAG.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use tidegate_registry::ids::RunId;
use tidegate_registry::model::Dag;
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::RunFilter;
use tidegate_registry::time::{Instant, format_instant};
use tidegate_scheduler::backfill::{BackfillPlan, Reprocess};

use crate::commands::run::{exit_of, explain, worse};
use crate::commands::up::Slots;
use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::{Progress, note};
use crate::roles;
use crate::select;
use crate::times::TimeArgument;

/// Compute the missing intervals of a DAG
///
/// Takes the intervals whose start lies in [from, to). Waits with a progress bar, computing in this process when no worker
/// is alive. Stopped half-way, the same command goes on where it was.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The DAG's name
    dag: String,
    /// The first start of an interval; a date is midnight in the DAG's zone
    #[arg(long, value_name = "TIME")]
    from: TimeArgument,
    /// Intervals start before this
    #[arg(long, value_name = "TIME")]
    to: TimeArgument,
    /// Which intervals: those missing, also those whose run ended without publishing, or all
    #[arg(long, value_enum, default_value_t)]
    reprocess: ReprocessArgument,
    /// Show what would be computed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Plan the runs and leave the waiting and computing to others
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    #[command(flatten)]
    slots: Slots,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum ReprocessArgument {
    #[default]
    Missing,
    Failed,
    All,
}

impl From<ReprocessArgument> for Reprocess {
    fn from(argument: ReprocessArgument) -> Self {
        match argument {
            ReprocessArgument::Missing => Self::Missing,
            ReprocessArgument::Failed => Self::Failed,
            ReprocessArgument::All => Self::All,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When there is no such DAG, the range is empty, the process is stopped first, or a part cannot be opened.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let dag = select::dag(&registry.project, &arguments.dag)?;
    let zone = dag.schedule.timezone;
    let (from, to) = (arguments.from.in_zone(zone), arguments.to.in_zone(zone));
    if from >= to {
        return Err(UserError::new(format!(
            "nothing lies between {} and {}",
            format_instant(from),
            format_instant(to)
        ))
        .hint("`--to` is not inside the range and comes after `--from`")
        .into());
    }
    let scheduler = roles::scheduler(&registry);
    if arguments.dry_run {
        let plan = scheduler.backfill_preview(&dag.name, from, to, arguments.reprocess.into()).await?;
        let runs = in_range(dag, from, to, &registry).await?;
        return show_plan(&plan, &runs, from, to, context);
    }
    let (id, plan) = scheduler.backfill(&dag.name, from, to, arguments.reprocess.into()).await?;
    if plan.selected().next().is_some() {
        let event = context.event(&registry, "backfill", dag.name.as_str()).with(json!({
            "backfill": id,
            "from": format_instant(from),
            "to": format_instant(to),
            "intervals": plan.selected().count(),
        }));
        registry.store.audit(event).await.context("noting the backfill")?;
    }
    let runs = in_range(dag, from, to, &registry).await?;
    let ours: Vec<RunId> = runs.iter().filter(|run| run.state.is_open()).map(|run| run.id).collect();
    if ours.is_empty() {
        note(format!("no interval of `{}` in that range is left to compute", dag.name));
        return finish(&[], &registry, context).await;
    }
    let planned = counted(ours.len(), "run");
    if plan.selected().next().is_some() {
        note(format!("backfill {id}: {planned} of `{}` to compute", dag.name));
    } else {
        note(format!("{planned} of `{}` to compute, all planned by its schedule already", dag.name));
    }
    if arguments.detach {
        note("planned; `tidegate up` computes them, `tidegate runs list` shows how they stand");
        return Ok(Exit::Done);
    }
    see_through(&ours, arguments.slots, &registry, context).await?;
    finish(&ours, &registry, context).await
}

/// Sees the runs of a backfill through, with a progress bar.
///
/// # Errors
/// As [`roles::see_through`].
pub async fn see_through(ours: &[RunId], slots: Slots, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let mut progress = Progress::start("intervals", ours.len() as u64);
    roles::see_through(ours, slots, &settings, registry, context, |sight| {
        let next = sight.open.iter().find(|run| run.state != RunState::Waiting);
        progress.set(sight.ended as u64, &next.map(|run| format_instant(run.interval.start())).unwrap_or_default());
    })
    .await
}

async fn in_range(dag: &Dag, from: Instant, to: Instant, registry: &Registry) -> anyhow::Result<Vec<Run>> {
    let filter = RunFilter { dag: Some(dag.name.clone()), from: Some(from), to: Some(to), ..RunFilter::default() };
    let mut runs = registry.store.runs(&filter).await.context("reading the runs of the range")?;
    runs.sort_by_key(|run| run.interval);
    Ok(runs)
}

/// `3 runs`, `1 run`.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[derive(Debug, Serialize)]
struct PlannedInterval {
    dag: String,
    interval_start: String,
    interval_end: String,
    compute: bool,
    views: Vec<String>,
    reason: &'static str,
}

impl Row for PlannedInterval {
    const HEADINGS: &'static [&'static str] = &["INTERVAL START", "INTERVAL END", "COMPUTE", "REASON"];

    fn cells(&self) -> Vec<String> {
        let compute = if self.compute { counted(self.views.len(), "view") } else { "-".to_owned() };
        vec![self.interval_start.clone(), self.interval_end.clone(), compute, self.reason.to_owned()]
    }
}

/// A run that is planned and has not ended is waited for, so its interval counts as one to compute.
fn show_plan(plan: &BackfillPlan, runs: &[Run], from: Instant, to: Instant, context: &Context) -> anyhow::Result<Exit> {
    let planned = |interval| {
        let open = runs.iter().find(|run| run.interval == interval && run.state.is_open());
        open.map(|run| (run.views.clone(), "planned already"))
    };
    let rows: Vec<_> = plan
        .intervals
        .iter()
        .map(|row| {
            let (views, reason) = planned(row.interval).unwrap_or_else(|| (row.views.clone(), row.reason));
            PlannedInterval {
                dag: plan.dag.to_string(),
                interval_start: format_instant(row.interval.start()),
                interval_end: format_instant(row.interval.end()),
                compute: !views.is_empty(),
                views: views.iter().map(ToString::to_string).collect(),
                reason,
            }
        })
        .collect();
    context.output.list(&rows)?;
    note(format!(
        "{} of {} that start in [{}, {}) would be computed; nothing was changed",
        rows.iter().filter(|row| row.compute).count(),
        counted(rows.len(), "interval"),
        format_instant(from),
        format_instant(to)
    ));
    Ok(Exit::Done)
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    runs: usize,
    succeeded: usize,
    blocked: usize,
    failed: usize,
    cancelled: usize,
}

/// Counts how the runs ended and explains those that published nothing.
async fn finish(ids: &[RunId], registry: &Registry, context: &Context) -> anyhow::Result<Exit> {
    let mut summary = Summary { runs: ids.len(), ..Summary::default() };
    let mut exit = Exit::Done;
    for id in ids {
        let (run, _) = registry.store.run(*id).await?;
        match run.state {
            RunState::Succeeded => summary.succeeded += 1,
            RunState::Blocked => summary.blocked += 1,
            RunState::Cancelled | RunState::Superseded => summary.cancelled += 1,
            _ => summary.failed += 1,
        }
        if run.state != RunState::Succeeded && !context.output.is_json() {
            note(format!("run {} over {}", run.id, run.interval));
            explain(&run, registry).await?;
        }
        exit = worse(exit, exit_of(run.state));
    }
    let lines = [
        ("runs", summary.runs.to_string()),
        ("succeeded", summary.succeeded.to_string()),
        ("blocked", summary.blocked.to_string()),
        ("failed", summary.failed.to_string()),
        ("cancelled", summary.cancelled.to_string()),
    ];
    context.output.one(&summary, &lines)?;
    Ok(exit)
}
