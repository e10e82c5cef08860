//! `tidegate demo`: the main job on the example project, from nothing, with every claim checked.
//!
//! It does what a person would do, with the same code as the commands, in a fresh copy of the example project. Should
//! something not happen as told, the demo fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant as Stopwatch;

use anyhow::{Context as _, bail, ensure};
use tidegate_registry::definitions::Settings;
use tidegate_registry::ids::{RunId, SnapshotId};
use tidegate_registry::restore::HoldPolicy;
use tidegate_registry::restore::plan::{Asked, Target};
use tidegate_registry::run::{Cause, Run, RunState};
use tidegate_registry::store::RunFilter;
use tidegate_registry::time::{Instant, Interval};
use tidegate_scheduler::backfill::Reprocess;
use tidegate_scheduler::planning::new_runs;

use crate::checked;
use crate::commands::apply;
use crate::commands::backfill::{self, counted};
use crate::commands::checks::write_report;
use crate::commands::online::{self, Answer};
use crate::commands::plan::Prepared;
use crate::commands::restore::How;
use crate::commands::run::explain;
use crate::commands::up::Slots;
use crate::commands::{holds, quarantine, restore, resume, snapshots, status};
use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::example;
use crate::progress::note;
use crate::roles;
use crate::select;
use crate::times::{TimeArgument, short_std};

/// Show the main job on real flights: define, backfill, block bad data, set bad rows aside, serve, take back
///
/// Works in a fresh folder and leaves it there to go on with.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder to work in; must be empty or not exist [default: a new one for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

const DAG: &str = "flights_daily";
const FROM: &str = "2013-01-08";
/// The first interval that reads the bad file begins on this day.
const TO: &str = "2013-01-29";
const INTERVALS: usize = 21;
/// The night of the bad file and the one after it, too; that one was taken back and computed again.
const SNAPSHOTS: usize = INTERVALS + 4;
/// A week whose delays the supplier once delivers in seconds.
const WEEK: &str = "flights/2013-01-29.parquet";
/// A week with three garbled destinations in the supplier's other version of it.
const GARBLED_WEEK: &str = "flights/2013-01-22.parquet";
const ROUTES: &str = "route_reliability";
const GARBLED: usize = 3;
const VIEW: &str = "carrier_delays";
const KEY: &str = "carrier=UA";

/// Runs the command.
///
/// # Errors
/// When a step fails, or does not do what the demo says of it.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let stopwatch = Stopwatch::now();
    let folder = folder(arguments.dir)?;
    example::write_to(&folder)?;
    let context = context.in_folder(&folder);
    note(format!(
        "Tidegate turns SQL over raw tables into features, on a schedule, and lets through only what passes its checks.\n\
         This is the example project: delays of flights from New York, January to March 2013, in\n  {}",
        folder.display()
    ));
    let demo = Demo::apply(&context).await?;
    demo.backfill().await?;
    let before = demo.read().await?;
    let blocked = demo.bad_data(&folder, &before).await?;
    let night = demo.good_data(&folder, blocked, &before).await?;
    let garbled = demo.few_bad_rows(&folder, night).await?;
    demo.incident(garbled).await?;
    demo.look_back().await?;
    note(format!(
        "\nDone in {}. Everything is still there; go on with:\n{}",
        short_std(stopwatch.elapsed()),
        next(&folder)
    ));
    Ok(Exit::Done)
}

fn folder(asked: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let folder = asked.unwrap_or_else(|| std::env::temp_dir().join(format!("tidegate-demo-{}", RunId::generate())));
    if fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(UserError::new(format!("`{}` is not empty", folder.display()))
            .hint("name a folder that does not exist yet, or leave `--dir` out")
            .into());
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating `{}`", folder.display()))?;
    std::path::absolute(&folder).with_context(|| format!("finding `{}`", folder.display()))
}

fn step(number: u32, text: &str) {
    note(format!("\n{number}. {text}"));
}

struct Demo<'a> {
    context: &'a Context,
    settings: Settings,
    registry: Registry,
}

impl<'a> Demo<'a> {
    /// Validates and applies.
    async fn apply(context: &'a Context) -> anyhow::Result<Self> {
        step(1, "Validate the definitions and apply them (`tidegate validate`, `plan`, `apply`)");
        let checked = checked::load(context).await?;
        let settings = checked.settings.clone().context("the example's settings are wrong")?;
        let prepared = Prepared::new(checked, None, context).await?;
        let project = &prepared.project;
        note(format!(
            "valid: {}, {}, {}",
            counted(project.sources.len(), "source"),
            counted(project.views.len(), "feature view"),
            counted(project.dags.len(), "DAG")
        ));
        let registry = context.open_registry(&settings).await?;
        let revision = apply::perform(&prepared, &registry, Some("the demo".to_owned()), context).await?;
        note(format!("applied as revision {revision}; every view has an empty Delta table now"));
        let registry = context.registry().await?;
        Ok(Self { context, settings, registry })
    }

    /// Computes three weeks.
    async fn backfill(&self) -> anyhow::Result<()> {
        step(2, &format!("Compute {INTERVALS} nights (`tidegate backfill {DAG} --from {FROM} --to {TO}`)"));
        let dag = select::dag(&self.registry.project, DAG)?;
        let zone = dag.schedule.timezone;
        let time = |text: &str| text.parse::<TimeArgument>().map_err(anyhow::Error::msg).map(|at| at.in_zone(zone));
        let (from, to) = (time(FROM)?, time(TO)?);
        roles::scheduler(&self.registry).backfill(&dag.name, from, to, Reprocess::Missing).await?;
        let filter = RunFilter { dag: Some(dag.name.clone()), from: Some(from), to: Some(to), ..RunFilter::default() };
        let runs: Vec<RunId> = self.registry.store.runs(&filter).await?.iter().map(|run| run.id).collect();
        ensure!(runs.len() == INTERVALS, "{} runs were planned instead of {INTERVALS}", runs.len());
        let stopwatch = Stopwatch::now();
        backfill::see_through(&runs, Slots::default(), &self.registry, self.context).await?;
        for id in &runs {
            let (run, _) = self.registry.store.run(*id).await?;
            if run.state != RunState::Succeeded {
                explain(&run, &self.registry).await?;
                bail!("run {id} over {} is {} instead of succeeded", run.interval, run.state);
            }
        }
        note(format!(
            "{INTERVALS} nights of {} computed, checked, committed to Delta and published online in {}",
            counted(dag.views.len(), "view"),
            short_std(stopwatch.elapsed())
        ));
        Ok(())
    }

    /// Reads what is live.
    async fn read(&self) -> anyhow::Result<Answer> {
        step(3, &format!("Read features as a model server would (`tidegate online get {VIEW} {KEY}`)"));
        let answer = self.get().await?;
        ensure!(answer.found, "`{KEY}` is not online");
        self.context.output.one(&answer, &answer.lines())?;
        Ok(answer)
    }

    async fn get(&self) -> anyhow::Result<Answer> {
        online::get(VIEW, &[KEY.to_owned()], &self.settings, &self.registry).await
    }

    /// Lets a supplier deliver a bad file and runs the next night.
    async fn bad_data(&self, folder: &Path, before: &Answer) -> anyhow::Result<RunId> {
        step(4, "The supplier's next file has delays in seconds instead of minutes; run the next night on it");
        put(folder, "bad", WEEK)?;
        let dag = select::dag(&self.registry.project, DAG)?;
        let start = TO.parse::<TimeArgument>().map_err(anyhow::Error::msg)?.in_zone(dag.schedule.timezone);
        let id = self.planned(self.interval_from(start).await?).await?;
        let run = self.see_through(id).await?;
        ensure!(run.state == RunState::Blocked, "the run on bad data is {} instead of blocked", run.state);
        explain(&run, &self.registry).await?;
        let page = folder.join("blocked.html");
        write_report(id, &page, &self.registry).await?;
        note(format!("what that looks like (`tidegate checks report`): open {}", page.display()));
        let after = self.get().await?;
        ensure!(after == *before, "the online values changed although the run was blocked: {after:?}");
        note(format!("meanwhile `{VIEW}` of `{KEY}` answers exactly as before: the last good values are live"));
        Ok(id)
    }

    async fn interval_from(&self, start: Instant) -> anyhow::Result<Interval> {
        let now = self.registry.clock.now();
        let ticks = self.registry.store.ticks(&DAG.parse()?, start, now).await?;
        tidegate_scheduler::grid::intervals(&ticks).next().context("the next interval is not planned")
    }

    /// The open run of an interval, or a new one.
    async fn planned(&self, interval: Interval) -> anyhow::Result<RunId> {
        if let Some(id) = self.open_run(interval).await? {
            return Ok(id);
        }
        let dag = select::dag(&self.registry.project, DAG)?;
        let new = new_runs(dag, self.registry.revision, interval, dag.views.clone(), &Cause::Manual(1));
        let ids = self.registry.store.runs_create(new, self.registry.clock.now()).await?;
        ids.first().copied().context("no run was created")
    }

    /// Computes a run; how it ended.
    async fn see_through(&self, id: RunId) -> anyhow::Result<Run> {
        roles::see_through(&[id], Slots::default(), &self.settings, &self.registry, self.context, |_| {}).await?;
        Ok(self.registry.store.run(id).await?.0)
    }

    /// Computes a run that shall succeed.
    async fn succeeds(&self, id: RunId) -> anyhow::Result<Run> {
        let run = self.see_through(id).await?;
        if run.state != RunState::Succeeded {
            explain(&run, &self.registry).await?;
            bail!("the run over {} is {} instead of succeeded", run.interval, run.state);
        }
        Ok(run)
    }

    async fn open_run(&self, interval: Interval) -> anyhow::Result<Option<RunId>> {
        let filter = RunFilter {
            dag: Some(DAG.parse()?),
            from: Some(interval.start()),
            to: Some(interval.end()),
            ..RunFilter::default()
        };
        let runs = self.registry.store.runs(&filter).await?;
        Ok(runs.iter().find(|run| run.state.is_open()).map(|run| run.id))
    }

    /// Lets the supplier deliver again, and retries the run; its interval.
    async fn good_data(&self, folder: &Path, blocked: RunId, before: &Answer) -> anyhow::Result<Interval> {
        step(5, "The supplier delivers the right file; retry the run (`tidegate runs retry …`)");
        put(folder, "data", WEEK)?;
        let dag = select::dag(&self.registry.project, DAG)?;
        let now = self.registry.clock.now();
        let id = self.registry.store.run_retry(blocked, 1 + dag.retries.max, &self.context.actor(), now).await?;
        let run = self.succeeds(id).await?;
        let after = self.get().await?;
        ensure!(
            after.event_timestamp > before.event_timestamp,
            "the online values are still those from before the retry"
        );
        note("it passed all checks and went live, in the lake and online together");
        self.context.output.one(&after, &after.lines())?;
        Ok(run.interval)
    }

    /// Lets a few rows be wrong where the view says that such rows are to be set aside, and runs the night after `night`.
    async fn few_bad_rows(&self, folder: &Path, night: Interval) -> anyhow::Result<Interval> {
        step(
            6,
            &format!("{GARBLED} flights go to places that do not exist; `{ROUTES}` sets such rows aside and goes on"),
        );
        put(folder, "bad", GARBLED_WEEK)?;
        let id = self.planned(self.interval_from(night.end()).await?).await?;
        let run = self.succeeds(id).await?;
        put(folder, "data", GARBLED_WEEK)?;
        let view = select::view(&self.registry.project, ROUTES)?;
        let snapshot = self.registry.store.snapshot(SnapshotId(id.0)).await?;
        let aside = snapshot.views.iter().find(|of| of.view == view.id).map_or(0, |of| of.quarantined);
        ensure!(aside == GARBLED as u64, "{aside} rows were set aside instead of {GARBLED}");
        note(format!("all other routes are live; what was set aside (`tidegate quarantine show {ROUTES}`):"));
        quarantine::show(view, Some(id), GARBLED, false, &self.registry, self.context).await?;
        Ok(run.interval)
    }

    /// Takes the newest night back although it passed its checks, and computes it anew when its data is mended.
    async fn incident(&self, night: Interval) -> anyhow::Result<()> {
        step(
            7,
            &format!(
                "That file was wrong in more ways than the checks know: take the night back \
                 (`tidegate restore --dag {DAG} --last-good --reason …`)"
            ),
        );
        let dag = select::dag(&self.registry.project, DAG)?;
        let published = self.get().await?;
        let asked = Asked {
            views: dag.views.clone(),
            target: Target::LastGood,
            cascade: false,
            hold_policy: HoldPolicy::default(),
        };
        let how = How {
            actor: &self.context.actor(),
            reason: "the file of that week was garbled",
            dry_run: false,
            yes: true,
            break_glass: false,
            approved: false,
        };
        let restore = restore::perform(&asked, RunId::generate(), how, &self.registry, self.context).await?;
        let restore = restore.context("there was nothing to take back")?;
        let validation = restore.validation.as_ref().context("nobody looked at what came of the restore")?;
        ensure!(validation.passed, "the restore is not as promised: {}", validation.findings.join("; "));
        let before = self.get().await?;
        ensure!(before.event_timestamp < published.event_timestamp, "the night is still online");
        note(format!(
            "{} are back at {}, in the lake and online together, after {} ms; rows, digests and online values compared",
            counted(restore.plan.views.len(), "view"),
            before.event_timestamp.clone().unwrap_or_default(),
            restore.took_ms.unwrap_or_default()
        ));
        holds::list(&self.registry, self.context).await?;
        note(
            "held: no run publishes these views meanwhile. The data is mended by now; `tidegate resume` computes anew:",
        );
        let runs =
            resume::perform(&dag.views, "the supplier has delivered the right file", &self.registry, self.context)
                .await?;
        // Later nights are planned with it, and wait for whoever goes on with this project.
        let redone = self.open_run(night).await?.filter(|id| runs.contains(id));
        self.succeeds(redone.context("the night is not computed anew")?).await?;
        let again = self.get().await?;
        ensure!(again.event_timestamp == published.event_timestamp, "the night is not online again");
        note("the night is computed again from the right file, checked, and live");
        Ok(())
    }

    /// Every recorded run can be found again.
    async fn look_back(&self) -> anyhow::Result<()> {
        step(
            8,
            "Each run left a snapshot: what was read, what was written, and with which definitions (`tidegate snapshots`)",
        );
        let recorded = self.registry.store.snapshots(None, None, 0).await?;
        ensure!(recorded.len() == SNAPSHOTS, "there are {} snapshots instead of {SNAPSHOTS}", recorded.len());
        snapshots::list(recorded.into_iter().take(5).collect(), &self.registry, self.context).await?;
        note(format!("… and {} older ones. How all views stand (`tidegate status`):", SNAPSHOTS - 5));
        status::show(&self.registry, self.context).await
    }
}

/// Puts a file of the example's `data` or `bad` where flights are read from.
fn put(folder: &Path, from: &str, file: &str) -> anyhow::Result<()> {
    let content =
        example::file(&format!("{from}/{file}")).with_context(|| format!("the example has no `{from}/{file}`"))?;
    let target = folder.join("data").join(file);
    fs::write(&target, content).with_context(|| format!("writing `{}`", target.display()))
}

fn next(folder: &Path) -> String {
    let program = std::env::args_os().next().map_or_else(|| "tidegate".into(), PathBuf::from);
    let rows = [
        ("up", "goes on as on 9 March 2013, a day in 144 seconds; Ctrl-C stops"),
        ("status", "what is fresh and what is not"),
        ("checks --failed", "what was wrong with the bad file"),
        ("views list", "what is defined"),
        ("dags show flights_daily", "when it runs next, across the change to daylight saving time"),
        ("preview route_reliability", "rows before anything is applied"),
        ("backfill flights_daily --from 2013-01-30 --to 2013-02-10", "more nights"),
    ];
    let command = |arguments: &str| format!("{} --project {} {arguments}", program.display(), folder.display());
    let lines = rows.map(|(arguments, what)| format!("  {}\n      {what}\n", command(arguments)));
    format!("{}\nThe definitions are the YAML files there; change one, then `plan` and `apply`.", lines.concat())
}
