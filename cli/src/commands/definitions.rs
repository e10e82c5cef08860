//! `tidegate definitions`: what was applied when, and going back to it.
//!
//! A revert is an apply of what the registry has kept, with the same plan and the same refusals. It is noted before it is
//! done (`definitions_revert` in the audit log), and counts once its revision is there. From then on the files still say
//! what was taken out of force, so the next apply would bring that back: `refuse_reverted` keeps one from doing so unasked.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use tidegate_registry::audit::AuditFilter;
use tidegate_registry::diagnostics::SourceMap;
use tidegate_registry::model::Project;
use tidegate_registry::plan::{DefinitionKind, Item, diff, rows};
use tidegate_registry::restore::Hold;
use tidegate_registry::store::ApplyRecord;
use tidegate_registry::time::{Instant, format_instant};

use crate::commands::apply;
use crate::commands::plan::{Prepared, Report, word};
use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::output::{self, Row};
use crate::progress::{self, note};

/// List what was applied, compare, and go back
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the revisions of the definitions, the newest first
    List {
        /// At most this many; 0 for all
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// List the definitions of a revision
    Show {
        /// The revision [default: the one in force]
        revision: Option<i64>,
    },
    /// Show what differs between two revisions
    Diff {
        /// The earlier one
        from: i64,
        /// The later one [default: the one in force]
        to: Option<i64>,
    },
    /// Make the definitions of an earlier revision the ones in force again
    ///
    /// As an apply of what the registry has kept: with its plan, its refusals, and a revision of its own. The files on disk
    /// stay as they are, and `tidegate apply` refuses to bring back what was taken out of force until they are changed, or
    /// somebody says `--bring-back`.
    Revert {
        /// That revision [default: the one before the one in force]
        #[arg(long, value_name = "REVISION")]
        to: Option<i64>,
        /// Why, for the audit trail
        #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
        reason: Option<String>,
        /// Show the plan and change nothing
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
/// When there is no such revision, or going back is refused.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    match arguments.action {
        Action::List { limit } => list(limit, &registry, context).await?,
        Action::Show { revision } => {
            let project = project_at(revision.unwrap_or(registry.revision), &registry).await?;
            let lines: Vec<Definition> = rows(&project)
                .into_iter()
                .map(|row| Definition { kind: row.kind, name: row.name, fingerprint: row.fingerprint, body: row.body })
                .collect();
            context.output.list(&lines)?;
        }
        Action::Diff { from, to } => {
            let to = to.unwrap_or(registry.revision);
            let report = difference(from, to, &registry).await?;
            let mut lines = vec![("definitions", format!("from revision {from} to {to}"))];
            if report.is_empty() {
                lines = vec![("definitions", format!("nothing differs between the revisions {from} and {to}"))];
            }
            lines.extend(report.differences());
            context.output.one(&report, &lines)?;
        }
        Action::Revert { to, reason, dry_run, yes } => {
            return revert(to, &reason.unwrap_or_default(), dry_run, yes, &registry, context).await;
        }
    }
    Ok(Exit::Done)
}

async fn project_at(revision: i64, registry: &Registry) -> anyhow::Result<Project> {
    if revision < 1 || revision > registry.revision {
        return Err(UserError::new(format!("there is no revision {revision} of the definitions"))
            .hint("`tidegate definitions list` lists them")
            .into());
    }
    let (_, project) = registry.store.project(Some(revision)).await.context("reading earlier definitions")?;
    Ok(project)
}

async fn difference(from: i64, to: i64, registry: &Registry) -> anyhow::Result<Report> {
    let (before, after) = (project_at(from, registry).await?, project_at(to, registry).await?);
    // Nothing is published here that could be refused.
    let plan = diff(from, &before, &after, &std::collections::BTreeSet::new());
    let plan = plan.map_err(|_| anyhow::anyhow!("the revisions {from} and {to} cannot be compared"))?;
    Ok(Report::of_difference(&plan, &after))
}

async fn revert(
    to: Option<i64>,
    reason: &str,
    dry_run: bool,
    yes: bool,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<Exit> {
    if !dry_run && reason.trim().is_empty() {
        return Err(UserError::new("going back needs a reason").hint("say `--reason TEXT`").into());
    }
    let from = registry.revision;
    let to = match to {
        Some(to) => to,
        None if from > 1 => from - 1,
        None => return Err(UserError::new("nothing was applied before what is in force").into()),
    };
    let project = project_at(to, registry).await?;
    let settings = context.settings()?;
    let prepared = Prepared::of(settings, project, &SourceMap::default(), Some(registry), context).await?;
    if prepared.report.is_empty() {
        note(format!("nothing changes: revision {from} is what revision {to} was"));
        return Ok(Exit::Done);
    }
    if dry_run || context.output.is_json() {
        context.output.one(&prepared.report, &prepared.report.lines())?;
    } else {
        note(output::labelled(&prepared.report.lines()));
    }
    if dry_run {
        return Ok(Exit::Done);
    }
    if !yes && !progress::agreed("definitions revert")? {
        note("nothing was changed");
        return Ok(Exit::Wrong);
    }
    let message = format!("revert to revision {to}: {reason}");
    let noted = Reverted { from, to, revision: from + 1 };
    let event = context.event(registry, REVERT, registry.project.name.to_string()).because(reason);
    let detail = json!({ "from": noted.from, "to": noted.to, "revision": noted.revision, "message": message });
    registry.store.audit(event.with(detail)).await.context("noting what is reverted")?;
    fail::fail_point!("definitions.revert.noted");
    let revision = apply::perform(&prepared, registry, Some(message), context).await?;
    note(format!("applied: revision {revision} is what revision {to} was"));
    note(
        "warning: the files still say what was in force before; `tidegate apply` refuses to bring it back, so mend them \
         before you apply something else",
    );
    Ok(Exit::Done)
}

/// Its event in the audit trail.
const REVERT: &str = "definitions_revert";
/// That of an apply with `--bring-back`.
const BRING_BACK: &str = "definitions_bring_back";

/// A revert that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reverted {
    from: i64,
    to: i64,
    revision: i64,
}

/// The reverts that were carried out, newest first, each with who, when and why.
async fn reverts(registry: &Registry) -> anyhow::Result<Vec<(Reverted, String, Instant, String)>> {
    let filter = AuditFilter { action: Some("definitions_".to_owned()), ..AuditFilter::default() };
    let events = registry.store.audit_events(&filter).await.context("reading what was reverted")?;
    let applies = registry.store.applies().await.context("reading what was applied")?;
    let mut found = Vec::new();
    for event in events {
        if event.what.action == BRING_BACK {
            break;
        }
        let number = |name: &str| event.what.detail.get(name).and_then(serde_json::Value::as_i64);
        let (Some(from), Some(to), Some(revision)) = (number("from"), number("to"), number("revision")) else {
            continue;
        };
        // Noted before it was done: another apply may have come in between.
        let message = event.what.detail.get("message").and_then(|message| message.as_str());
        if applies.iter().any(|apply| apply.revision == revision && apply.message.as_deref() == message) {
            let reason = event.what.reason.clone().unwrap_or_default();
            found.push((Reverted { from, to, revision }, event.what.actor, event.what.at, reason));
        }
    }
    Ok(found)
}

/// Lets nobody bring back unasked what the last revert has taken out of force: files that were not mended would.
///
/// # Errors
/// When `prepared` does, with what that is.
pub(super) async fn refuse_reverted(prepared: &Prepared, registry: &Registry) -> anyhow::Result<()> {
    let Some((reverted, actor, at, reason)) = reverts(registry).await?.into_iter().next() else { return Ok(()) };
    let back = brought_back(prepared, reverted, registry).await?;
    if back.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = back.iter().map(|item| format!("{} `{}`", word(item.kind), item.name)).collect();
    Err(UserError::new(format!(
        "nothing was changed: this brings back what {actor} took out of force at {} ({reason}): {}",
        format_instant(at),
        names.join(", ")
    ))
    .hint(format!(
        "mend the files (`tidegate definitions diff {} {}` shows what was reverted), or say `--bring-back`",
        reverted.to, reverted.from
    ))
    .into())
}

async fn brought_back(prepared: &Prepared, reverted: Reverted, registry: &Registry) -> anyhow::Result<Vec<Item>> {
    let (before, kept) = (project_at(reverted.from, registry).await?, project_at(reverted.to, registry).await?);
    Ok(prepared.plan.brings_back(&registry.project, &before, &kept))
}

/// Notes that somebody brings back what was reverted.
///
/// # Errors
/// When the registry cannot be written.
pub(super) async fn note_brought_back(
    prepared: &Prepared,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<()> {
    let Some((reverted, ..)) = reverts(registry).await?.into_iter().next() else { return Ok(()) };
    if brought_back(prepared, reverted, registry).await?.is_empty() {
        return Ok(());
    }
    let event = context.event(registry, BRING_BACK, registry.project.name.to_string());
    registry.store.audit(event.with(json!({ "from": reverted.from }))).await.context("noting what is brought back")
}

/// The revision before the one that brought the definition which was in force when `hold` was placed and still is, where
/// the view was defined before.
///
/// # Errors
/// When the registry cannot be read.
pub(super) async fn before(hold: &Hold, registry: &Registry) -> anyhow::Result<Option<i64>> {
    let name = hold.view.to_string();
    let versions = registry.store.definition_versions(DefinitionKind::FeatureView, &name).await;
    let versions = versions.with_context(|| format!("reading the definitions of `{name}`"))?;
    let [now, _earlier, ..] = &versions[..] else { return Ok(None) };
    let was_there = match hold.restore {
        Some(restore) => {
            registry.store.run(restore).await.context("reading the restore of a hold")?.0.definitions >= now.since
        }
        None => {
            let applies = registry.store.applies().await.context("reading what was applied")?;
            let applied = applies.iter().find(|apply| apply.revision == now.since);
            applied.is_some_and(|apply| apply.applied_at < hold.placed_at)
        }
    };
    Ok(was_there.then_some(now.since - 1))
}

async fn list(limit: usize, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let applies = registry.store.applies().await.context("reading what was applied")?;
    let reverts = reverts(registry).await?;
    let reverted = reverts.first().map(|(reverted, ..)| *reverted);
    let shown = if limit == 0 { applies.len() } else { limit };
    let mut lines = Vec::new();
    for apply in applies.iter().take(shown) {
        let changes = match apply.revision {
            1 => None,
            revision => Some(difference(revision - 1, revision, registry).await?.counts()),
        };
        lines.push(Line::of(apply, changes, reverted, registry.revision));
    }
    context.output.list(&lines)
}

#[derive(Debug, Serialize)]
struct Line {
    revision: i64,
    applied_at: String,
    actor: String,
    message: Option<String>,
    added: Option<usize>,
    changed: Option<usize>,
    removed: Option<usize>,
    in_force: bool,
    reverted: bool,
}

impl Line {
    fn of(
        apply: &ApplyRecord,
        changes: Option<(usize, usize, usize)>,
        reverted: Option<Reverted>,
        revision: i64,
    ) -> Self {
        Self {
            revision: apply.revision,
            applied_at: format_instant(apply.applied_at),
            actor: apply.actor.clone(),
            message: apply.message.clone(),
            added: changes.map(|(added, ..)| added),
            changed: changes.map(|(_, changed, _)| changed),
            removed: changes.map(|(.., removed)| removed),
            in_force: apply.revision == revision,
            reverted: reverted.is_some_and(|reverted| (reverted.to + 1..=reverted.from).contains(&apply.revision)),
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["REVISION", "APPLIED", "BY", "CHANGES", "STATE", "MESSAGE"];

    fn cells(&self) -> Vec<String> {
        let changes = match (self.added, self.changed, self.removed) {
            (Some(added), Some(changed), Some(removed)) => format!("+{added} ~{changed} -{removed}"),
            _ => "the first".to_owned(),
        };
        let state = match (self.in_force, self.reverted) {
            (true, _) => "in force",
            (false, true) => "reverted",
            (false, false) => "",
        };
        vec![
            self.revision.to_string(),
            self.applied_at.clone(),
            self.actor.clone(),
            changes,
            state.to_owned(),
            self.message.clone().unwrap_or_default(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Definition {
    kind: DefinitionKind,
    name: String,
    fingerprint: String,
    body: serde_json::Value,
}

impl Row for Definition {
    const HEADINGS: &'static [&'static str] = &["KIND", "NAME", "FINGERPRINT"];

    fn cells(&self) -> Vec<String> {
        vec![word(self.kind).to_owned(), self.name.clone(), self.fingerprint.clone()]
    }
}
