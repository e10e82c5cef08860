//! `tidegate snapshots`: what each recorded run left behind.

use std::collections::BTreeMap;

use tidegate_registry::care::Pin;
use tidegate_registry::ids::SnapshotId;
use tidegate_registry::restore::BadMark;
use tidegate_registry::store::{Snapshot, Store};

use self::report::Since;
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::progress::note;
use crate::select;

pub(crate) mod diff;
mod report;

pub use self::report::Report;

/// List snapshots, or show one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List snapshots, the newest first (what `tidegate snapshots` alone does)
    List(Filter),
    /// Show one snapshot with its views, what their run had read, and what became of it
    Show {
        /// The snapshot's id, or its beginning
        snapshot: String,
    },
    /// Show which entities differ between what two snapshots left, and how far their features moved
    Diff(diff::Arguments),
    /// Say that a snapshot is bad, so that `restore --last-good` passes it over, or that it is good after all
    Mark {
        /// The snapshot's id, or its beginning
        snapshot: String,
        #[command(flatten)]
        mark: MarkArguments,
        /// Why, for the audit trail and for whoever looks for a good one
        #[arg(long, value_name = "TEXT", required_unless_present = "good")]
        reason: Option<String>,
    },
    /// Keep a snapshot, whatever retention says
    Pin {
        /// The snapshot's id, or its beginning
        snapshot: String,
        /// Why, for whoever finds it later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Leave a snapshot to retention again
    Unpin {
        /// The snapshot's id, or its beginning
        snapshot: String,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct MarkArguments {
    /// It is bad
    #[arg(long)]
    bad: bool,
    /// It is good after all
    #[arg(long, conflicts_with = "reason")]
    good: bool,
}

/// Which snapshots to list
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only snapshots of this DAG
    #[arg(long, conflicts_with = "view")]
    pub dag: Option<String>,
    /// Only snapshots with this view: a name (its highest version) or name@vN
    #[arg(long)]
    pub view: Option<String>,
    /// At most this many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub limit: u32,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such snapshot.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let filter = match arguments.action {
        Some(Action::Show { snapshot }) => {
            let snapshot = find(&*registry.store, &snapshot).await?;
            let report = Report::whole(snapshot, &Since::read(&registry).await?, &*registry.store).await?;
            context.output.one(&report, &report.lines())?;
            return Ok(Exit::Done);
        }
        Some(Action::Diff(arguments)) => return diff::run(&arguments, &registry, context).await,
        Some(Action::Mark { snapshot, reason, .. }) => {
            let snapshot = find(&*registry.store, &snapshot).await?;
            mark(&snapshot, reason, &registry, context).await?;
            return Ok(Exit::Done);
        }
        Some(Action::Pin { snapshot, reason }) => {
            let snapshot = find(&*registry.store, &snapshot).await?;
            pin(&snapshot, reason, &registry, context).await?;
            return Ok(Exit::Done);
        }
        Some(Action::Unpin { snapshot }) => {
            let snapshot = find(&*registry.store, &snapshot).await?;
            registry.store.snapshot_unpin(snapshot.id, &context.actor(), registry.clock.now()).await?;
            note(format!("snapshot {} is left to retention", snapshot.id));
            return Ok(Exit::Done);
        }
        Some(Action::List(filter)) => filter,
        None => arguments.filter,
    };
    list(filtered(&filter, &registry).await?, &registry, context).await?;
    Ok(Exit::Done)
}

/// The snapshots that are chosen.
///
/// # Errors
/// When there is no such DAG or view, or the registry cannot be read.
async fn filtered(filter: &Filter, registry: &Registry) -> anyhow::Result<Vec<Snapshot>> {
    let dag = filter.dag.as_deref().map(|name| select::dag(&registry.project, name)).transpose()?;
    let view = filter.view.as_deref().map(|name| select::view(&registry.project, name)).transpose()?;
    Ok(registry.store.snapshots(dag.map(|dag| &dag.name), view.map(|view| &view.id), filter.limit).await?)
}

/// The snapshots that are chosen, as they are listed for programs, the newest first.
///
/// # Errors
/// When there is no such DAG or view, or the registry cannot be read.
pub async fn reports(filter: &Filter, registry: &Registry) -> anyhow::Result<Vec<Report>> {
    let since = Since::read(registry).await?;
    let mut reports = Vec::new();
    for snapshot in filtered(filter, registry).await? {
        reports.push(Report::of(snapshot, &since, &*registry.store).await?);
    }
    Ok(reports)
}

/// Marks a snapshot as bad, for a reason, or else as good again.
async fn mark(
    snapshot: &Snapshot,
    reason: Option<String>,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<()> {
    let (actor, now) = (context.actor(), registry.clock.now());
    if reason.as_ref().is_some_and(|reason| reason.trim().is_empty()) {
        return Err(UserError::new("the reason is empty").hint("say what is wrong with the snapshot").into());
    }
    let bad = reason.map(|reason| BadMark { marked_at: now, actor: actor.clone(), reason });
    let is_bad = bad.is_some();
    registry.store.snapshot_mark(snapshot.id, bad, &actor, now).await?;
    note(match is_bad {
        true => format!("snapshot {} is marked as bad: `restore --last-good` passes it over", snapshot.id),
        false => format!("snapshot {} is not marked as bad", snapshot.id),
    });
    Ok(())
}

/// Pins a snapshot with the list of the files that make it up.
async fn pin(snapshot: &Snapshot, reason: String, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let lake = engine::lake(&context.settings()?)?;
    let mut files = BTreeMap::new();
    for view in &snapshot.views {
        files.insert(view.view.clone(), lake.pinned_files(&view.view, view.delta_version).await?);
    }
    let count: usize = files.values().map(Vec::len).sum();
    let pin = Pin { pinned_at: registry.clock.now(), actor: context.actor(), reason, files };
    registry.store.snapshot_pin(snapshot.id, pin).await?;
    note(format!("snapshot {} with its {count} files is kept until `tidegate snapshots unpin`", snapshot.id));
    Ok(())
}

/// Prints `snapshots`.
///
/// # Errors
/// When the registry cannot be read, or standard output fails.
pub async fn list(snapshots: Vec<Snapshot>, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let since = Since::read(registry).await?;
    let mut reports = Vec::with_capacity(snapshots.len());
    for snapshot in snapshots {
        reports.push(match context.output.is_json() {
            true => Report::of(snapshot, &since, &*registry.store).await?,
            // A table does not show verdicts.
            false => Report::new(&snapshot, &since, &[]),
        });
    }
    if reports.is_empty() && !context.output.is_json() {
        note("no run has been recorded yet");
        return Ok(());
    }
    context.output.list(&reports)
}

/// The snapshot with this id, or the one whose id begins so.
///
/// # Errors
/// When there is none, or there are several.
pub async fn find(store: &dyn Store, asked: &str) -> anyhow::Result<Snapshot> {
    if let Ok(id) = asked.parse::<SnapshotId>() {
        return Ok(store.snapshot(id).await?);
    }
    let asked = asked.to_ascii_lowercase();
    let mut found = store.snapshots(None, None, 0).await?;
    found.retain(|snapshot| !asked.is_empty() && snapshot.id.to_string().starts_with(&asked));
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(UserError::new(format!("there is no snapshot `{asked}`"))
            .hint("`tidegate snapshots` lists them")
            .missing()
            .into()),
        _ => Err(UserError::new(format!("`{asked}` begins the ids of {} snapshots", found.len()))
            .hint("say more of it")
            .into()),
    }
}
