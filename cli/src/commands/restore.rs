//! `tidegate restore`: take views back to what they were, offline and online together.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use indexmap::IndexMap;
use serde::Serialize;
use tidegate_registry::dataset::DatasetFilter;
use tidegate_registry::definitions::Settings;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::Consumer;
use tidegate_registry::restore::plan::{self, Asked, Definitions, PlanError, Planned, Target};
use tidegate_registry::restore::policy::Ask;
use tidegate_registry::restore::{HoldPolicy, Restore, Slice, Validation};
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::StoreError;
use tidegate_registry::time::format_instant;
use tidegate_worker::engine::Engine;
use tidegate_worker::restore::{Effect, WayOnline, check};
use tidegate_worker::serving::{ViewState, compare_states};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commands::preview::Scratch;
use crate::commands::snapshots;
use crate::commands::up::{Serving, Slots};
use crate::context::{Context, Registry, release_dead_leases};
use crate::engine::{self, Bells};
use crate::error::{Exit, UserError};
use crate::output::{grid, labelled};
use crate::policy;
use crate::progress::{self, note};
use crate::select;
use crate::shutdown::Stopped;
use crate::times::TimeArgument;

/// How often a plan is made anew because something was published meanwhile.
const PLANS_MAX: u32 = 5;
/// How often a waiting command looks at its restore.
const LOOK: Duration = Duration::from_millis(50);

/// Take views back to what they were, offline and online together, and hold them there
///
/// The plan is shown first. Afterwards nothing of the views, and nothing that is computed from them, is published until
/// `tidegate resume`. Exit code 1 when what came of it is not what was promised, or nothing could be done.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    target: TargetArguments,
    /// Why, for the audit trail and for whoever finds the views held
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    reason: Option<String>,
    /// Also take back what was computed from what is taken back
    #[arg(long)]
    cascade: bool,
    /// What becomes of runs while the views are held
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    while_held: WhileHeld,
    /// Go ahead whatever the restore policy says; it is written down and told
    #[arg(long, requires = "reason")]
    break_glass: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Which views are meant.
#[derive(Debug, clap::Args)]
#[group(id = "views_meant", multiple = false)]
pub struct What {
    /// A view: a name (its highest version) or name@vN; may be given several times
    #[arg(long, value_name = "VIEW")]
    pub view: Vec<String>,
    /// All views of a DAG
    #[arg(long, value_name = "DAG")]
    pub dag: Option<String>,
    /// Every view
    #[arg(long)]
    pub all: bool,
}

impl What {
    /// The views; none when nothing was said.
    ///
    /// # Errors
    /// When there is no such view or DAG.
    pub fn views(&self, registry: &Registry) -> anyhow::Result<Vec<ViewId>> {
        let project = &registry.project;
        if let Some(dag) = &self.dag {
            return Ok(select::dag(project, dag)?.views.clone());
        }
        if self.all {
            return Ok(project.views.keys().cloned().collect());
        }
        let mut views = Vec::new();
        for name in &self.view {
            let view = select::view(project, name)?.id.clone();
            if !views.contains(&view) {
                views.push(view);
            }
        }
        Ok(views)
    }
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct TargetArguments {
    /// As it was when this snapshot was recorded: its id, or its beginning
    #[arg(long, value_name = "SNAPSHOT")]
    to: Option<String>,
    /// What was live at that time, by when it was recorded (without offset: UTC)
    #[arg(long, value_name = "TIME")]
    at: Option<TimeArgument>,
    /// What was live before what is live now: restores, what they took back and snapshots marked as bad are passed over
    #[arg(long)]
    last_good: bool,
    /// As it is, but for what this run published (its id, or its beginning): its intervals go back to their previous revision
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum WhileHeld {
    /// They leave the views out
    #[default]
    SkipRuns,
    /// They compute and check them, and end as held
    StageOnly,
}

/// Runs the command.
///
/// # Errors
/// When it cannot be done, with every reason; nothing was changed then.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let target = arguments.target.read(&registry).await?;
    let views = arguments.what.views(&registry)?;
    if views.is_empty() && !matches!(target, Target::Run(_)) {
        return Err(UserError::new("which views are meant?").hint("say `--view VIEW`, `--dag DAG` or `--all`").into());
    }
    let hold_policy = match arguments.while_held {
        WhileHeld::SkipRuns => HoldPolicy::SkipRuns,
        WhileHeld::StageOnly => HoldPolicy::StageOnly,
    };
    let asked = Asked { views, target, cascade: arguments.cascade, hold_policy };
    let actor = context.actor();
    let how = How {
        actor: &actor,
        reason: arguments.reason.as_deref().unwrap_or_default(),
        dry_run: arguments.dry_run,
        yes: arguments.yes,
        break_glass: arguments.break_glass,
        approved: false,
    };
    restore_as_asked(&asked, how, &registry, context).await
}

/// How a restore is gone about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How<'a> {
    pub(crate) actor: &'a str,
    pub(crate) reason: &'a str,
    /// Show the plan and change nothing.
    pub(crate) dry_run: bool,
    /// Do not ask.
    pub(crate) yes: bool,
    /// Whatever the policy says.
    pub(crate) break_glass: bool,
    /// A second person has approved what this is a part of.
    pub(crate) approved: bool,
}

/// Plans, asks, and sees it through: the way of every restore that a person wants.
///
/// # Errors
/// As [`run`].
pub(super) async fn restore_as_asked(
    asked: &Asked,
    how: How<'_>,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    if how.break_glass && how.reason.trim().is_empty() {
        return Err(UserError::new("breaking the glass needs a reason").hint("say `--reason TEXT`").into());
    }
    release_dead_leases(&*registry.store).await?;
    if !how.dry_run
        && let Some(begun) = under_way(asked, registry).await?
    {
        note(format!("restore {} of the same is under way: seeing it through", begun.id));
        return see_through(begun.id, registry, context).await;
    }
    if !how.dry_run {
        compare_pending(&settings, registry).await?;
    }
    let online = engine::online(&settings).await?;
    let lake = engine::claimed_lake(&settings, registry).await?;
    let mut shown = false;
    // One restore, however often it is planned: an approval is used for it once.
    let id = RunId::generate();
    let mut approved = None;
    for _ in 0..PLANS_MAX {
        let mut planned = prepare(asked, id, registry).await?;
        if planned.is_nothing() {
            context
                .output
                .one(&Report::nothing(asked), &[("restore", "nothing to do: it is so already".to_owned())])?;
            return Ok(Exit::Done);
        }
        let effects = check(&*registry.store, &lake, online.as_deref(), &planned).await;
        let effects = effects.map_err(|error| {
            UserError::new(format!("nothing was changed: {error:#}"))
                .hint("`tidegate snapshots list` shows what else there is")
        })?;
        let mut report = Report::of_plan(&planned, &effects, how.dry_run);
        report.find_reach(&planned, registry).await?;
        let ask = Ask {
            break_glass: how.break_glass,
            approved: how.approved,
            ..Ask::of(&planned, asked.cascade, how.actor, how.reason, registry.clock.now())?
        };
        if how.dry_run {
            report.count_entities(&planned, registry, context).await?;
            context.output.one(&report, &report.lines())?;
            policy::tell(&ask, registry).await?;
            return Ok(Exit::Done);
        }
        if !shown {
            note(labelled(&report.lines()));
            if !how.yes && !progress::agreed("restore")? {
                note("nothing was changed");
                return Ok(Exit::Wrong);
            }
            shown = true;
        }
        if approved.as_ref() != Some(&ask.ask) {
            admit(&ask, id, registry).await?;
            approved = Some(ask.ask);
        }
        how.actor.clone_into(&mut planned.request.actor);
        how.reason.clone_into(&mut planned.request.reason);
        match registry.store.restore_begin(planned.request).await {
            Ok(()) => {
                fail::fail_point!("restore.begun");
                return see_through(id, registry, context).await;
            }
            Err(StoreError::Conflict(what)) => note(format!("{what}: planning again")),
            Err(error) => return Err(error).context("beginning the restore"),
        }
    }
    Err(UserError::new("what is to be restored is published again and again: nothing was changed")
        .hint("`tidegate dags pause` its DAG first, or try again")
        .into())
}

impl TargetArguments {
    async fn read(&self, registry: &Registry) -> anyhow::Result<Target> {
        Ok(match (&self.to, &self.at, &self.run) {
            (Some(to), ..) => Target::To(snapshots::find(&*registry.store, to).await?.id),
            (None, Some(at), _) => Target::At(at.in_zone(chrono_tz::UTC)),
            (None, None, Some(run)) => Target::Run(select::run_id(&*registry.store, run).await?),
            (None, None, None) => Target::LastGood,
        })
    }
}

/// A restore that was begun, is not recorded, and does what is asked for.
async fn under_way(asked: &Asked, registry: &Registry) -> anyhow::Result<Option<Restore>> {
    let open = registry.store.runs_open().await?;
    let is_open = |run: &Run| run.is_restore() && run.state == RunState::Publishing;
    for run in open.iter().filter(|run| is_open(run)) {
        let restore = registry.store.restore_of(run.id).await?;
        let same_views = asked.views.iter().all(|view| restore.plan.views.contains_key(view));
        if restore.plan.asked == asked.target.to_string() && same_views {
            return Ok(Some(restore));
        }
    }
    Ok(None)
}

/// Makes up for the comparison of a restore whose process died before it, and says what it found.
async fn compare_pending(settings: &Settings, registry: &Registry) -> anyhow::Result<()> {
    let pending = |restore: &Restore| restore.recorded_at.is_some() && restore.validation.is_none();
    let restores = registry.store.restores(20).await.context("looking for restores to compare")?;
    let waiting: Vec<RunId> = restores.iter().filter(|restore| pending(restore)).map(|restore| restore.id).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let worker = engine::worker(settings, registry, Slots::default(), Serving::default(), &Bells::default()).await?;
    worker.compare_restores().await?;
    for id in waiting {
        if let Some(validation) = registry.store.restore_of(id).await?.validation {
            let verdict = if validation.passed { "as promised" } else { "NOT as promised" };
            note(format!("restore {id} was not compared yet: it is {verdict}; {}", validation.findings.join("; ")));
        }
    }
    Ok(())
}

/// Asks the policy. An approval that lets the restore through is used up before it begins: a person who dies in between asks
/// again, and no approval serves twice.
async fn admit(ask: &Ask<'_>, id: RunId, registry: &Registry) -> anyhow::Result<()> {
    if policy::used_for(ask, &id.to_string(), registry).await? {
        return Ok(());
    }
    if let Some(approval) = policy::admitted(ask, registry).await? {
        let used = registry.store.approval_use(approval, &id.to_string()).await;
        used.context("noting that the approval was used")?;
    }
    Ok(())
}

async fn prepare(asked: &Asked, id: RunId, registry: &Registry) -> anyhow::Result<Planned> {
    let definitions = Definitions { revision: registry.revision, project: &registry.project };
    let planned = plan::plan(&*registry.store, definitions, asked, id, registry.clock.now()).await;
    planned.map_err(|error| match error {
        PlanError::Refused(problems) => UserError::new(problems.join("; ")).into(),
        PlanError::Store(StoreError::NotFound { what, name }) => {
            UserError::new(format!("there is no {what} `{name}`")).into()
        }
        PlanError::Store(error) => anyhow::Error::new(error).context("planning the restore"),
    })
}

/// Does what is asked for without asking anybody, and nothing when it is so already. As the restore `id`, which is seen
/// through when it has begun.
///
/// # Errors
/// As the command.
pub(crate) async fn perform(
    asked: &Asked,
    id: RunId,
    how: How<'_>,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<Option<Restore>> {
    match registry.store.restore_of(id).await {
        Ok(_) => return carry_out(id, registry, context).await.map(Some),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error).context("looking for the restore"),
    }
    let settings = context.settings()?;
    let lake = engine::claimed_lake(&settings, registry).await?;
    let online = engine::online(&settings).await?;
    let mut planned = prepare(asked, id, registry).await?;
    if planned.is_nothing() {
        return Ok(None);
    }
    check(&*registry.store, &lake, online.as_deref(), &planned).await?;
    let now = registry.clock.now();
    let ask = Ask { approved: how.approved, ..Ask::of(&planned, asked.cascade, how.actor, how.reason, now)? };
    admit(&ask, id, registry).await?;
    how.actor.clone_into(&mut planned.request.actor);
    how.reason.clone_into(&mut planned.request.reason);
    registry.store.restore_begin(planned.request).await.context("beginning the restore")?;
    fail::fail_point!("restore.begun");
    carry_out(id, registry, context).await.map(Some)
}

/// Carries a restore out and shows what came of it.
async fn see_through(id: RunId, registry: &Registry, context: &Context) -> anyhow::Result<Exit> {
    let restore = carry_out(id, registry, context).await?;
    let report = Report::of_done(&restore);
    context.output.one(&report, &report.lines())?;
    if let Some(view) = restore.plan.holds.first() {
        note(format!("held until `tidegate resume --view {view}` (`tidegate holds` lists all)"));
    }
    Ok(match &restore.validation {
        Some(validation) if !validation.passed => Exit::Wrong,
        _ => Exit::Done,
    })
}

/// Carries a restore out in this process, beside any worker that is about: whoever claims it first.
async fn carry_out(id: RunId, registry: &Registry, context: &Context) -> anyhow::Result<Restore> {
    let settings = context.settings()?;
    let slots = Slots::default();
    let worker = engine::worker(&settings, registry, slots, Serving::default(), &Bells::default()).await?;
    let hands = CancellationToken::new();
    let mut working: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let stop = hands.clone();
    working.spawn(async move { worker.run_only(&[id], stop).await });
    let mut told = None;
    let ended = loop {
        let (run, tasks) = registry.store.run(id).await.context("reading the restore")?;
        if !run.state.is_open() {
            break Ok(run);
        }
        let trouble = tasks.first().and_then(|task| task.error.clone());
        if trouble.is_some() && trouble != told {
            note(format!("restore {id} tries again: {}", trouble.as_deref().unwrap_or_default()));
            told = trouble;
        }
        tokio::select! {
            () = context.shutdown.gentle.cancelled() => break Err(Stopped),
            () = tokio::time::sleep(LOOK) => {}
            Some(finished) = working.join_next() => finished.context("the worker ended unexpectedly")??,
        }
    };
    let run = match ended {
        Ok(run) => run,
        Err(stopped) => {
            hands.cancel();
            while working.join_next().await.is_some() {}
            note(format!("restore {id} is decided, and any worker finishes it; so does the same command again"));
            return Err(stopped.into());
        }
    };
    // What was found afterwards comes after the record.
    while let Some(finished) = working.join_next().await {
        finished.context("the worker ended unexpectedly")??;
    }
    if run.state != RunState::Succeeded {
        let why = run.reason.unwrap_or_default();
        return Err(UserError::new(format!("restore {id} is {}: {why}", run.state)).into());
    }
    Ok(registry.store.restore_of(id).await?)
}

/// What a restore does, or did.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    restore: Option<String>,
    asked: String,
    state: &'static str,
    views: Vec<ViewReport>,
    holds: Vec<String>,
    while_held: String,
    downstream: Vec<DownstreamReport>,
    /// Who reads features of what is restored or held with it.
    consumers: Vec<String>,
    /// Datasets that could see rows which leave.
    datasets: Vec<DatasetReport>,
    superseded_runs: Vec<String>,
    stopped_runs: Vec<String>,
    actor: Option<String>,
    reason: Option<String>,
    begun_at: Option<String>,
    took_ms: Option<u64>,
    validation: Option<Validation>,
}

#[derive(Debug, Serialize)]
struct ViewReport {
    view: String,
    from_version: u64,
    to_version: Option<u64>,
    leaves: Vec<SliceReport>,
    comes_back: Vec<SliceReport>,
    newest: Option<SliceReport>,
    files_added: Option<u64>,
    files_removed: Option<u64>,
    rows_added: Option<u64>,
    rows_removed: Option<u64>,
    /// Of a dry run: how many entities readers would find added, removed and changed. `null` where it was not looked.
    entities_added: Option<u64>,
    entities_removed: Option<u64>,
    entities_changed: Option<u64>,
    online: Option<String>,
    only_unfinished: bool,
}

#[derive(Debug, Serialize)]
struct SliceReport {
    interval_start: String,
    interval_end: String,
    run: String,
    snapshot: String,
    rows: u64,
}

impl From<&Slice> for SliceReport {
    fn from(slice: &Slice) -> Self {
        Self {
            interval_start: format_instant(slice.interval.start()),
            interval_end: format_instant(slice.interval.end()),
            run: slice.run.to_string(),
            snapshot: slice.snapshot.to_string(),
            rows: slice.rows,
        }
    }
}

#[derive(Debug, Serialize)]
struct DownstreamReport {
    view: String,
    built_on_it: bool,
}

impl Report {
    fn nothing(asked: &Asked) -> Self {
        Self {
            restore: None,
            asked: asked.target.to_string(),
            state: "nothing_to_do",
            views: Vec::new(),
            holds: Vec::new(),
            while_held: asked.hold_policy.to_string(),
            downstream: Vec::new(),
            consumers: Vec::new(),
            datasets: Vec::new(),
            superseded_runs: Vec::new(),
            stopped_runs: Vec::new(),
            actor: None,
            reason: None,
            begun_at: None,
            took_ms: None,
            validation: None,
        }
    }

    fn of_plan(planned: &Planned, effects: &IndexMap<ViewId, Effect>, dry_run: bool) -> Self {
        let request = &planned.request;
        let views = request.plan.views.iter().map(|(view, what)| {
            let effect = effects.get(view);
            ViewReport {
                files_added: effect.map(|effect| effect.table.files_added),
                files_removed: effect.map(|effect| effect.table.files_removed),
                rows_added: effect.map(|effect| effect.table.rows_added),
                rows_removed: effect.map(|effect| effect.table.rows_removed),
                online: effect.and_then(|effect| way(effect.online)),
                ..ViewReport::of(view, what)
            }
        });
        let downstream = planned
            .downstream
            .iter()
            .map(|below| DownstreamReport { view: below.view.to_string(), built_on_it: below.built_on_it });
        Self {
            restore: None,
            asked: request.plan.asked.clone(),
            state: if dry_run { "dry_run" } else { "planned" },
            views: views.collect(),
            holds: request.plan.holds.iter().map(ToString::to_string).collect(),
            while_held: request.plan.hold_policy.to_string(),
            downstream: downstream.collect(),
            consumers: Vec::new(),
            datasets: Vec::new(),
            superseded_runs: request.supersedes.iter().map(ToString::to_string).collect(),
            stopped_runs: request.stops.iter().map(|(run, _)| run.to_string()).collect(),
            actor: None,
            reason: None,
            begun_at: None,
            took_ms: None,
            validation: None,
        }
    }

    /// Adds who was given what is taken back: consumers by their definitions, datasets by what they were built from.
    async fn find_reach(&mut self, planned: &Planned, registry: &Registry) -> anyhow::Result<()> {
        let touched: Vec<ViewId> = planned
            .request
            .plan
            .views
            .keys()
            .cloned()
            .chain(planned.downstream.iter().map(|below| below.view.clone()))
            .collect();
        self.consumers = registry.project.consumers_of(&touched).map(Consumer::label).collect();
        let leaving = planned
            .request
            .plan
            .views
            .iter()
            .flat_map(|(view, what)| what.leaves.iter().map(move |slice| (view.clone(), slice.snapshot)));
        let filter = DatasetFilter { built_from: Some(leaving.collect()), ..DatasetFilter::default() };
        let datasets = registry.store.datasets(&filter).await.context("looking for datasets")?;
        self.datasets = datasets
            .iter()
            .map(|dataset| DatasetReport {
                dataset: dataset.id.to_string(),
                name: dataset.name.clone(),
                created_at: format_instant(dataset.created_at),
                actor: dataset.actor.clone(),
                out: dataset.place.clone(),
            })
            .collect();
        Ok(())
    }

    /// Adds how many entities would change, by reading what they are and what they would be.
    async fn count_entities(
        &mut self,
        planned: &Planned,
        registry: &Registry,
        context: &Context,
    ) -> anyhow::Result<()> {
        let settings = context.settings()?;
        let scratch = Scratch::new();
        let engine = Arc::new(Engine::new(settings.memory_bytes, &scratch.0)?);
        let (lake, project) = (engine::lake(&settings)?, Arc::new(registry.project.clone()));
        for (report, (view, what)) in self.views.iter_mut().zip(&planned.request.plan.views) {
            let definition = project.views.get(view).with_context(|| format!("`{view}` is not defined"))?;
            let number = registry.store.snapshots(None, Some(view), 1).await?.first().map_or(0, |newest| newest.number);
            let now = ViewState::of(&registry.store.as_of(view, number).await?);
            // A state that is put together from several versions is not read beforehand.
            let Ok(then) = ViewState::after(what, definition.output) else { continue };
            let found = compare_states(&engine, &lake, &project, view, [now, then], 0).await;
            let found = found.with_context(|| format!("looking at what would change in `{view}`"))?;
            report.entities_added = Some(found.added);
            report.entities_removed = Some(found.removed);
            report.entities_changed = Some(found.changed);
        }
        Ok(())
    }

    /// A restore that was begun.
    pub(super) fn of_done(restore: &Restore) -> Self {
        let views = restore.plan.views.iter().map(|(view, what)| ViewReport::of(view, what));
        Self {
            restore: Some(restore.id.to_string()),
            asked: restore.plan.asked.clone(),
            state: if restore.recorded_at.is_some() { "done" } else { "under_way" },
            views: views.collect(),
            holds: restore.plan.holds.iter().map(ToString::to_string).collect(),
            while_held: restore.plan.hold_policy.to_string(),
            downstream: Vec::new(),
            consumers: Vec::new(),
            datasets: Vec::new(),
            superseded_runs: Vec::new(),
            stopped_runs: Vec::new(),
            actor: Some(restore.actor.clone()),
            reason: Some(restore.reason.clone()),
            begun_at: Some(format_instant(restore.begun_at)),
            took_ms: restore.took_ms,
            validation: restore.validation.clone(),
        }
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("restore", self.restore.clone().unwrap_or_default()),
            ("asked", self.asked.clone()),
            ("state", self.state.replace('_', " ")),
            ("reason", self.reason.clone().unwrap_or_default()),
            ("by", self.actor.clone().unwrap_or_default()),
            ("begun", self.begun_at.clone().unwrap_or_default()),
            ("took", self.took_ms.map(|took| format!("{} s", took as f64 / 1e3)).unwrap_or_default()),
        ];
        let views = self.views.iter().map(ViewReport::cells);
        lines.push(("views", grid(&["VIEW", "LEAVE", "COME BACK", "ROWS", "NEWEST UNTIL", "ONLINE"], views)));
        let changing = self.views.iter().filter_map(ViewReport::entities);
        lines.push(("entities", changing.collect::<Vec<_>>().join("\n")));
        let leaving = self.views.iter().flat_map(|view| {
            view.leaves.iter().map(|slice| {
                vec![
                    view.view.clone(),
                    format!("{}/{}", slice.interval_start, slice.interval_end),
                    slice.rows.to_string(),
                    slice.run.clone(),
                ]
            })
        });
        let leaving: Vec<_> = leaving.collect();
        if !leaving.is_empty() {
            lines.push(("leaves", grid(&["VIEW", "INTERVAL", "ROWS", "RUN"], leaving)));
        }
        lines.push(("held", format!("{} ({})", self.holds.join(", "), self.while_held)));
        let below = self.downstream.iter().map(|below| {
            let built = if below.built_on_it { "computed from what is taken back" } else { "not touched by it" };
            format!("{}: held with it; {built}", below.view)
        });
        lines.push(("downstream", below.collect::<Vec<_>>().join("\n")));
        if self.downstream.iter().any(|below| below.built_on_it) {
            lines.push(("", "`--cascade` takes those back, too, that were computed from it".to_owned()));
        }
        lines.push(("read by", self.consumers.join("\n")));
        let built: Vec<String> = self.datasets.iter().map(DatasetReport::line).collect();
        lines.push(("datasets", some_of(&built)));
        lines.push(("superseded", some_of(&self.superseded_runs)));
        lines.push(("stopped", some_of(&self.stopped_runs)));
        if let Some(validation) = &self.validation {
            let verdict = if validation.passed { "everything is as promised" } else { "NOT as promised" };
            lines.push(("checked", format!("{verdict}\n{}", validation.findings.join("\n"))));
        }
        lines
    }
}

/// A dataset that was built from what is taken back.
#[derive(Debug, Serialize)]
struct DatasetReport {
    dataset: String,
    name: Option<String>,
    created_at: String,
    actor: String,
    out: String,
}

impl DatasetReport {
    fn line(&self) -> String {
        let called = self.name.as_ref().unwrap_or(&self.dataset);
        format!("{called} holds what leaves: built {} by {}, {}", self.created_at, self.actor, self.out)
    }
}

/// Runs, as many as one wants to read.
fn some_of(runs: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    let mut lines: Vec<String> = runs.iter().take(SHOWN_MAX).cloned().collect();
    if runs.len() > SHOWN_MAX {
        lines.push(format!("and {} more runs", runs.len() - SHOWN_MAX));
    }
    lines.join("\n")
}

fn way(online: WayOnline) -> Option<String> {
    match online {
        WayOnline::Flip { generation } => Some(format!("generation {generation} is live again at once")),
        WayOnline::Republish { rows: Some(rows) } => Some(format!("written anew from the lake: {rows} entities")),
        WayOnline::Republish { rows: None } => Some("written anew from the lake".to_owned()),
        WayOnline::Not => None,
    }
}

impl ViewReport {
    fn of(view: &ViewId, what: &tidegate_registry::restore::ViewRestore) -> Self {
        Self {
            view: view.to_string(),
            from_version: what.from_version,
            to_version: what.table.version,
            leaves: what.leaves.iter().map(Into::into).collect(),
            comes_back: what.comes_back.iter().map(Into::into).collect(),
            newest: what.newest.as_ref().map(Into::into),
            files_added: None,
            files_removed: None,
            rows_added: None,
            rows_removed: None,
            entities_added: None,
            entities_removed: None,
            entities_changed: None,
            online: None,
            only_unfinished: what.only_unfinished,
        }
    }

    fn entities(&self) -> Option<String> {
        let (added, removed, changed) = (self.entities_added?, self.entities_removed?, self.entities_changed?);
        Some(format!("{}: {added} added, {removed} removed, {changed} changed", self.view))
    }

    fn cells(&self) -> Vec<String> {
        let rows = match (self.rows_added, self.rows_removed) {
            (Some(added), Some(removed)) => format!("+{added} −{removed}"),
            _ => "-".to_owned(),
        };
        vec![
            self.view.clone(),
            if self.only_unfinished { "unfinished".to_owned() } else { self.leaves.len().to_string() },
            self.comes_back.len().to_string(),
            rows,
            self.newest.as_ref().map_or_else(|| "nothing".to_owned(), |slice| slice.interval_end.clone()),
            self.online.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}
