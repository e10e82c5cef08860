//! `tidegate restore`: take views back to what they were, offline and online together.

mod report;

use std::time::Duration;

use anyhow::Context as _;
use tidegate_registry::definitions::Settings;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::restore::plan::{self, Asked, Definitions, PlanError, Planned, Target};
use tidegate_registry::restore::policy::Ask;
use tidegate_registry::restore::{HoldPolicy, Restore};
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::StoreError;
use tidegate_worker::restore::check;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commands::snapshots;
use crate::commands::up::{Serving, Slots};
use crate::context::{Context, Registry, release_dead_leases};
use crate::engine::{self, Bells};
use crate::error::{Exit, UserError};
use crate::output::labelled;
use crate::policy;
use crate::progress::{self, note};
use crate::select;
use crate::shutdown::Stopped;
use crate::times::TimeArgument;

pub(super) use self::report::Report;

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
