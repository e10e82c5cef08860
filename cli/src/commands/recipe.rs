//! `tidegate recipe`: named ways back, each made of the commands that it names.

use anyhow::Context as _;
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::firing::{Firing, FiringState};
use tidegate_registry::ids::{RecipeName, ViewId};
use tidegate_registry::model::{FeatureView, Project, Recipe, RecipeStep};
use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::restore::HoldPolicy;
use tidegate_registry::restore::plan::{Asked, Target};
use tidegate_registry::restore::policy::{Ask, announce};
use tidegate_registry::switches::{Off, Serve};
use tidegate_registry::time::format_instant;

use crate::commands::restore::{self, How};
use crate::commands::{feature, online};
use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::firing;
use crate::output::Row;
use crate::policy;
use crate::progress::{self, note};
use crate::select;

/// List recipes, or do what one says
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the recipes that are applied, with the views that each is for
    List,
    /// List what has triggered recipes, and how far each is, the newest first
    Firings {
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: u32,
    },
    /// See what has triggered recipes, and carry those out, as `up` and `scheduler` do by themselves every few seconds
    ///
    /// Exit code 1 when one of them stopped.
    Fire,
    /// Do the steps of a recipe, in their order
    ///
    /// Each step shows what its command would, goes through the same policy and leaves the same audit events. The first
    /// that fails ends the recipe; running it again repeats what is done without harm, and goes on.
    Run {
        /// The recipe's name
        name: String,
        /// Only these of its views: names (their highest version) or name@vN; may be given several times
        #[arg(long, value_name = "VIEW")]
        view: Vec<String>,
        /// Why, for the audit trail
        #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
        reason: Option<String>,
        /// Go ahead whatever the restore policy says; it is written down and told
        #[arg(long, requires = "reason")]
        break_glass: bool,
        /// Show what would be done and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Runs the command.
///
/// # Errors
/// When there is no such recipe, it is not for a view that is named, or one of its steps fails.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    match arguments.action {
        Action::List => list(&registry, context).await,
        Action::Firings { limit } => {
            let firings = registry.store.firings(limit).await.context("reading what triggered recipes")?;
            if firings.is_empty() && !context.output.is_json() {
                note("nothing has triggered a recipe yet");
                return Ok(Exit::Done);
            }
            context.output.list(&firings.iter().map(FiringLine::of).collect::<Vec<_>>())?;
            Ok(Exit::Done)
        }
        Action::Fire => {
            let mut registry = registry;
            let ended = firing::pass(&mut registry, context).await?;
            let stopped = ended.iter().any(|firing| firing.progress.state == FiringState::Stopped);
            if ended.is_empty() && !context.output.is_json() {
                note("nothing has triggered a recipe");
                return Ok(Exit::Done);
            }
            context.output.list(&ended.iter().map(FiringLine::of).collect::<Vec<_>>())?;
            Ok(if stopped { Exit::Wrong } else { Exit::Done })
        }
        Action::Run { name, view, reason, break_glass, dry_run, yes } => {
            let recipe = find(&registry.project, &name)?;
            let views = views(&registry.project, recipe, &view)?;
            let reason = reason.unwrap_or_default();
            if !dry_run && reason.trim().is_empty() {
                return Err(UserError::new("a recipe needs a reason").hint("say `--reason TEXT`").into());
            }
            let actor = context.actor();
            let how = How { actor: &actor, reason: &reason, dry_run, yes: true, break_glass, approved: false };
            let cooking = Cooking { recipe, views, how, cause: None, registry: &registry, context };
            cooking.all(yes).await
        }
    }
}

fn find<'a>(project: &'a Project, name: &str) -> anyhow::Result<&'a Recipe> {
    let found = project.recipes.values().find(|recipe| recipe.name.as_str() == name);
    Ok(select::named("recipe", name, found, project.recipes.keys().map(RecipeName::as_str))?)
}

/// The views that a recipe is for: all, or those of them that are named.
fn views<'a>(project: &'a Project, recipe: &Recipe, named: &[String]) -> anyhow::Result<Vec<&'a FeatureView>> {
    let all: Vec<&FeatureView> = project.views.values().filter(|view| recipe.matching.means(view)).collect();
    let mut views = Vec::new();
    for name in named {
        let view = select::view(project, name)?;
        if !all.iter().any(|meant| meant.id == view.id) {
            return Err(UserError::new(format!("the recipe `{}` is not for `{}`", recipe.name, view.id))
                .hint(format!("it is for {}", select::quoted(all.iter().map(|view| view.id.to_string()))))
                .into());
        }
        if !views.iter().any(|known: &&FeatureView| known.id == view.id) {
            views.push(view);
        }
    }
    let views = if named.is_empty() { all } else { views };
    if views.is_empty() {
        return Err(UserError::new(format!("the recipe `{}` is for no view that is applied", recipe.name)).into());
    }
    Ok(views)
}

/// A recipe under way.
pub(crate) struct Cooking<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) views: Vec<&'a FeatureView>,
    pub(crate) how: How<'a>,
    /// What triggered it; `None` when a person runs it.
    pub(crate) cause: Option<String>,
    pub(crate) registry: &'a Registry,
    pub(crate) context: &'a Context,
}

impl Cooking<'_> {
    async fn all(mut self, yes: bool) -> anyhow::Result<Exit> {
        let names = self.names();
        note(format!("recipe `{}` for {names}: {}", self.recipe.name, self.recipe.description));
        for (number, step) in self.recipe.steps.iter().enumerate() {
            note(format!("  {}. {}", number + 1, said(step)));
        }
        if !self.how.dry_run && !yes && !progress::agreed("recipe run")? {
            note("nothing was changed");
            return Ok(Exit::Wrong);
        }
        let begun = std::time::Instant::now();
        let mut done = Vec::new();
        let mut exit = Exit::Done;
        for step in &self.recipe.steps {
            let doing = said(step);
            let ended = self.step(step).await;
            let ended = ended.with_context(|| format!("the recipe stopped at `{doing}`"));
            match ended {
                Ok(Exit::Done) => done.push(doing),
                Ok(other) => {
                    exit = other;
                    note(format!("the recipe stopped at `{doing}`"));
                    break;
                }
                Err(error) => {
                    self.tell(&done, begun.elapsed(), false).await?;
                    return Err(error);
                }
            }
        }
        self.tell(&done, begun.elapsed(), exit == Exit::Done).await?;
        Ok(exit)
    }

    /// One event for the whole, beside those of its steps.
    async fn tell(&self, done: &[String], took: std::time::Duration, whole: bool) -> anyhow::Result<()> {
        if self.how.dry_run {
            return Ok(());
        }
        let (now, subject) = (self.registry.clock.now(), self.recipe.name.to_string());
        let event = NewAuditEvent::new(now, self.how.actor, "recipe_run", subject);
        let views: Vec<String> = self.views.iter().map(|view| view.id.to_string()).collect();
        let event = event.because(self.how.reason).took(took);
        let event = event.with(json!({ "views": views, "steps_done": done, "whole": whole }));
        self.registry.store.audit(event).await.context("noting what the recipe did")
    }

    async fn step(&mut self, step: &RecipeStep) -> anyhow::Result<Exit> {
        match step {
            RecipeStep::Disable { feature, serve, below } => self.disable(feature, *serve, *below).await?,
            RecipeStep::Restore { cascade, while_held } => {
                let asked =
                    Asked { views: self.ids(), target: Target::LastGood, cascade: *cascade, hold_policy: *while_held };
                return Box::pin(restore::restore_as_asked(&asked, self.how, self.registry, self.context)).await;
            }
            RecipeStep::Hold { while_held } => self.hold(*while_held).await?,
            RecipeStep::Validate { sample } => {
                let online = self.views.iter().filter(|view| view.online.is_some());
                let online: Vec<String> = online.map(|view| view.id.to_string()).collect();
                if !self.how.dry_run && !online.is_empty() {
                    return online::validate(&online, *sample, self.context).await;
                }
            }
            RecipeStep::Notify { message } => self.notify(message).await?,
            RecipeStep::RequireApproval { by } => {
                if self.how.dry_run {
                    return Ok(Exit::Done);
                }
                if self.how.break_glass {
                    let rules = [format!("recipe {}", self.recipe.name)];
                    announce(&*self.registry.store, &self.ask(), &rules).await?;
                } else {
                    self.approved(by, &format!("recipe {}", self.recipe.name)).await?;
                    self.how.approved = true;
                }
            }
        }
        Ok(Exit::Done)
    }

    pub(crate) async fn hold(&self, while_held: HoldPolicy) -> anyhow::Result<()> {
        if !self.how.dry_run {
            let (store, now) = (&self.registry.store, self.registry.clock.now());
            store.hold(&self.ids(), while_held, self.how.actor, self.how.reason, now).await?;
        }
        Ok(())
    }

    pub(crate) async fn notify(&self, message: &str) -> anyhow::Result<()> {
        if !self.how.dry_run {
            let subject = self.recipe.name.to_string();
            let message = format!("recipe `{subject}` for {}: {message}", self.names());
            let now = self.registry.clock.now();
            let notice = NewNotice::new(NoticeEvent::RecipeNotified, subject, now, message);
            self.registry.store.notify(notice.by(self.how.actor)).await?;
        }
        Ok(())
    }

    /// Goes on when one of `by` has approved it. The approval is used up for `what` before anything that it lets through: it
    /// serves once, however that ends.
    ///
    /// # Errors
    /// As [`policy::approved`].
    pub(crate) async fn approved(&self, by: &[String], what: &str) -> anyhow::Result<()> {
        if let Some(approval) = policy::approved(&self.ask(), by, self.registry).await? {
            let used = self.registry.store.approval_use(approval, what).await;
            used.context("noting that the approval was used")?;
        }
        Ok(())
    }

    /// In every view that has it.
    ///
    /// # Errors
    /// As [`feature::switch`].
    pub(crate) async fn disable(&self, name: &str, serve: Serve, below: u16) -> anyhow::Result<()> {
        for view in &self.views {
            let Some(known) = view.features.iter().find(|feature| feature.name == name) else { continue };
            let off: Off = feature::off(view, known, serve, below)?;
            if !self.how.dry_run {
                let (registry, context) = (self.registry, self.context);
                let who = (self.how.actor, self.how.reason);
                feature::switch(&view.id, name, Some(off), who, registry, context).await?;
                note(format!("readers of `{}.{name}` get {off}", view.id));
            }
        }
        Ok(())
    }

    /// This recipe, as it is written now, for these views.
    pub(crate) fn ask(&self) -> Ask<'_> {
        let steps: Vec<String> = self.recipe.steps.iter().map(said).collect();
        let cause = self.cause.as_ref().map_or_else(String::new, |cause| format!(", triggered by {cause}"));
        let summary = format!("recipe {} for {}{cause}", self.recipe.name, self.names());
        Ask {
            actor: self.how.actor,
            reason: self.how.reason,
            now: self.registry.clock.now(),
            ask: format!("{summary}: {}", steps.join("; ")),
            summary,
            takes_back: self.ids().into_iter().map(|view| (view, Vec::new())).collect::<IndexMap<_, _>>(),
            break_glass: self.how.break_glass,
            approved: false,
        }
    }

    pub(crate) fn ids(&self) -> Vec<ViewId> {
        self.views.iter().map(|view| view.id.clone()).collect()
    }

    fn names(&self) -> String {
        self.views.iter().map(|view| view.id.to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// A step in words.
pub(crate) fn said(step: &RecipeStep) -> String {
    match step {
        RecipeStep::Disable { feature, serve, below } => {
            format!("disable {feature}: readers get {}", Off { serve: *serve, below: *below })
        }
        RecipeStep::Restore { cascade, while_held } => {
            let cascade = if *cascade { " with what was computed from it" } else { "" };
            format!("restore the last good snapshot{cascade}, then {while_held}")
        }
        RecipeStep::Hold { while_held } => format!("hold: {while_held}"),
        RecipeStep::Validate { sample: None } => "compare what is online with the lake".to_owned(),
        RecipeStep::Validate { sample: Some(sample) } => {
            format!("compare about {sample} entities of each view online with the lake")
        }
        RecipeStep::Notify { message } => format!("tell: {message}"),
        RecipeStep::RequireApproval { by } if by.is_empty() => "ask for a second person's approval".to_owned(),
        RecipeStep::RequireApproval { by } => format!("ask for the approval of one of {}", by.join(", ")),
    }
}

async fn list(registry: &Registry, context: &Context) -> anyhow::Result<Exit> {
    let project = &registry.project;
    if project.recipes.is_empty() && !context.output.is_json() {
        note("no recipe is applied: `recipes:` in a definition file has them");
        return Ok(Exit::Done);
    }
    let firings = registry.store.firings(0).await.context("reading what triggered recipes")?;
    let lines = project.recipes.values().map(|recipe| {
        let views = project.views.values().filter(|view| recipe.matching.means(view));
        let last = firings.iter().find(|firing| firing.what.recipe == recipe.name);
        Line {
            recipe: recipe.name.to_string(),
            description: recipe.description.clone(),
            views: views.map(|view| view.id.to_string()).collect(),
            steps: recipe.steps.iter().map(said).collect(),
            on: recipe.on.iter().map(ToString::to_string).collect(),
            last: last.map(FiringLine::of),
        }
    });
    context.output.list(&lines.collect::<Vec<_>>())?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Line {
    recipe: String,
    description: String,
    views: Vec<String>,
    steps: Vec<String>,
    on: Vec<String>,
    last: Option<FiringLine>,
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["RECIPE", "VIEWS", "STEPS", "TRIGGERED BY", "LAST", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        let last = self.last.as_ref().map(|last| format!("{}: {}", last.fired_at, last.state));
        vec![
            self.recipe.clone(),
            self.views.join("\n"),
            self.steps.join("\n"),
            self.on.join("\n"),
            last.unwrap_or_default(),
            self.description.clone(),
        ]
    }
}

/// A recipe that was triggered.
#[derive(Debug, Serialize)]
struct FiringLine {
    id: String,
    recipe: String,
    event: String,
    subject: String,
    views: Vec<String>,
    reason: String,
    fired_at: String,
    state: FiringState,
    steps: usize,
    steps_done: u32,
    restore: Option<String>,
    outcome: Option<String>,
    ended_at: Option<String>,
}

impl FiringLine {
    fn of(firing: &Firing) -> Self {
        Self {
            id: firing.id.to_string(),
            recipe: firing.what.recipe.to_string(),
            event: firing.what.trigger.to_string(),
            subject: firing.what.subject.clone(),
            views: firing.what.views.iter().map(ToString::to_string).collect(),
            reason: firing.what.reason.clone(),
            fired_at: format_instant(firing.fired_at),
            state: firing.progress.state,
            steps: firing.what.steps.len(),
            steps_done: firing.progress.steps_done,
            restore: firing.progress.restore.map(|restore| restore.to_string()),
            outcome: firing.progress.outcome.clone(),
            ended_at: firing.ended_at.map(format_instant),
        }
    }
}

impl Row for FiringLine {
    const HEADINGS: &'static [&'static str] =
        &["RECIPE", "TRIGGERED BY", "OF", "VIEWS", "AT", "STATE", "STEPS", "REASON", "OUTCOME"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.recipe.clone(),
            self.event.clone(),
            self.subject.clone(),
            self.views.join("\n"),
            self.fired_at.clone(),
            self.state.to_string(),
            format!("{} of {}", self.steps_done, self.steps),
            self.reason.clone(),
            self.outcome.clone().unwrap_or_default(),
        ]
    }
}
