//! `tidegate registry`: copies of it, and making it anew from the lake.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use tidegate_registry::care::TableRows;
use tidegate_registry::definitions::Settings;
use tidegate_registry::ids::DagName;
use tidegate_registry::model::Project;
use tidegate_registry::time::{Instant, Interval};
use tidegate_scheduler::grid::Grid;
use tidegate_worker::rebuild::{self, Finding, RebuildPlan};

use crate::checked;
use crate::commands::{apply, plan::Prepared};
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::note;

/// Look after the registry: copy it, restore it, make it anew from the lake
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show what the registry is and how much it holds
    Info,
    /// Write a copy of the registry into a new file
    ///
    /// The copy is one SQLite file, whatever database the registry is in, and shows one instant. It is also the way from
    /// one database to another: back up here, change `registry:`, restore there.
    Backup {
        /// The file to write
        file: PathBuf,
    },
    /// Put a copy in the place of the registry
    ///
    /// Stop all schedulers and workers first. What was published after the copy was made is in the lake: workers refuse to
    /// go on until `tidegate registry rebuild --from-lake` has taken it over.
    Restore {
        /// A file that `registry backup` has written
        file: PathBuf,
        /// Replace a registry to which something was applied
        #[arg(long)]
        force: bool,
    },
    /// Make the registry say what the lake holds
    ///
    /// After the registry was lost, an old copy was restored, or tables were lost. Stop all schedulers and workers first.
    /// Intervals that the lake holds enter the ledger; those that it no longer holds leave it, and a backfill computes them
    /// again. Definitions come from the project's files.
    Rebuild {
        /// Take the lake for the truth
        #[arg(long, required = true)]
        from_lake: bool,
        /// Let a new registry take the place of the one that the lake belongs to, which must be gone for good
        #[arg(long)]
        adopt: bool,
        /// Take over tables whose last rows were computed by another definition than the files hold
        #[arg(long)]
        accept_definitions: bool,
        /// Do it; else it is only shown
        #[arg(long, short)]
        yes: bool,
    },
    /// Make the registry's tables, or bring them up to date
    ///
    /// Every command does this by itself; this one does nothing else, so that a deployment can do it first.
    Migrate,
}

/// Runs the command.
///
/// # Errors
/// When the registry, the lake or a file cannot be read or written, and when something is refused.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    match arguments.action {
        Action::Info => info(context).await,
        Action::Backup { file } => {
            let registry = context.registry().await?;
            let begun = std::time::Instant::now();
            let rows = registry.store.backup(&file).await.context("copying the registry")?;
            let event = context.event(&registry, "registry_backup", "registry").took(begun.elapsed());
            let file_name = file.display().to_string();
            registry.store.audit(event.with(json!({ "file": file_name }))).await.context("noting the copy")?;
            tell_rows(&rows, &format!("`{}` holds a copy of the registry", file.display()), context)?;
            Ok(Exit::Done)
        }
        Action::Restore { file, force } => restore(&file, force, context).await,
        Action::Rebuild { from_lake: _, adopt, accept_definitions, yes } => {
            rebuild(adopt, accept_definitions, yes, context).await
        }
        Action::Migrate => {
            let settings = context.settings()?;
            let registry = context.open_registry(&settings).await?;
            let version = registry.store.schema_version().await.context("reading the schema's version")?;
            note(format!("the registry `{}` has schema version {version}", settings.registry));
            Ok(Exit::Done)
        }
    }
}

#[derive(Debug, Serialize)]
struct Info {
    id: String,
    place: String,
    project: Option<String>,
    revision: i64,
    schema_version: i64,
    rows: BTreeMap<String, u64>,
}

async fn info(context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let Some(registry) = context.registry_if_any(&settings).await? else {
        return Err(UserError::new(format!("there is no registry at `{}`", settings.registry))
            .hint("`tidegate apply` makes one; `tidegate registry rebuild --from-lake --adopt` after it was lost")
            .into());
    };
    let about = registry.store.info().await.context("reading what the registry is")?;
    let rows = registry.store.row_counts().await.context("counting the registry's rows")?;
    let info = Info {
        id: about.id.to_string(),
        place: settings.registry.to_string(),
        project: about.project,
        revision: about.revision,
        schema_version: registry.store.schema_version().await.context("reading the schema's version")?,
        rows: rows.into_iter().map(|table| (table.table, table.rows)).collect(),
    };
    let rows: Vec<String> = info.rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
    context.output.one(
        &info,
        &[
            ("registry", info.place.clone()),
            ("id", info.id.clone()),
            ("project", info.project.clone().unwrap_or_default()),
            ("revision", info.revision.to_string()),
            ("schema version", info.schema_version.to_string()),
            ("rows", rows.join("\n")),
        ],
    )?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Copied<'a>(&'a TableRows);

impl Row for Copied<'_> {
    const HEADINGS: &'static [&'static str] = &["TABLE", "ROWS"];

    fn cells(&self) -> Vec<String> {
        vec![self.0.table.clone(), self.0.rows.to_string()]
    }
}

fn tell_rows(rows: &[TableRows], done: &str, context: &Context) -> anyhow::Result<()> {
    context.output.list(&rows.iter().map(Copied).collect::<Vec<_>>())?;
    note(done);
    Ok(())
}

async fn restore(file: &std::path::Path, force: bool, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let registry = context.open_registry(&settings).await?;
    let rows = registry.store.restore(file, force, &context.actor(), registry.clock.now()).await;
    let rows = rows.context("restoring the registry")?;
    tell_rows(&rows, &format!("the registry `{}` is what `{}` held", settings.registry, file.display()), context)?;
    note("run `tidegate registry rebuild --from-lake` before anything else: what was published since is in the lake");
    Ok(Exit::Done)
}

/// What is found, as it is told.
#[derive(Debug, Serialize)]
struct Told<'a> {
    done: bool,
    views: &'a [Finding],
    overtaken_runs: Vec<String>,
    snapshots_lost: Vec<String>,
}

async fn rebuild(adopt: bool, accept_definitions: bool, yes: bool, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let registry = applied(&settings, adopt, yes, context).await?;
    let Some(registry) = registry else {
        note("nothing was changed: `--yes` makes the registry, applies the project's files and takes over the lake");
        return Ok(Exit::Done);
    };
    let parts = engine::rebuild(&settings, &registry).await?;
    let plan = rebuild::plan(&parts).await?;
    let told = Told {
        done: yes && !plan.is_empty(),
        views: &plan.findings,
        overtaken_runs: plan.rebuild.overtaken.iter().map(ToString::to_string).collect(),
        snapshots_lost: plan.snapshots_lost.iter().map(ToString::to_string).collect(),
    };
    if context.output.is_json() {
        context.output.json(&told)?;
    } else {
        context.output.list(&plan.findings.iter().map(Found).collect::<Vec<_>>())?;
        explain(&plan);
    }
    if plan.is_empty() {
        note("the registry says what the lake holds: there is nothing to do");
        return Ok(Exit::Done);
    }
    let changed: Vec<String> =
        plan.findings.iter().filter(|view| view.other_definition).map(|view| format!("`{}`", view.view)).collect();
    if !changed.is_empty() && !accept_definitions {
        return Err(UserError::new(format!(
            "the last rows of {} were computed by another definition than the project's files hold",
            changed.join(", ")
        ))
        .hint("bring back the files that were applied last, or take the rows over with `--accept-definitions`")
        .into());
    }
    if !yes {
        note("nothing was changed: `--yes` does it");
        return Ok(Exit::Done);
    }
    let ticks = ticks(&plan, &registry.project)?;
    let adopted: usize = plan.findings.iter().map(|view| view.adopted.len()).sum();
    let lost: usize = plan.findings.iter().map(|view| view.lost.len()).sum();
    plan.perform(&parts, ticks, &context.actor(), registry.clock.now()).await?;
    note(format!("the registry says what the lake holds: {adopted} intervals entered the ledger, {lost} left it"));
    if lost > 0 {
        note("`tidegate backfill` computes what is missing");
    }
    Ok(Exit::Done)
}

/// The registry with the project applied: as it is, or a new one in the place of the one that is lost. `None` when that
/// would have to be made and `yes` is not said.
async fn applied(settings: &Settings, adopt: bool, yes: bool, context: &Context) -> anyhow::Result<Option<Registry>> {
    let existing = context.registry_if_any(settings).await?;
    if let Some(registry) = existing.filter(|registry| registry.revision > 0) {
        return Ok(Some(registry));
    }
    let owner = engine::lake(settings)?.owner().await?.ok_or_else(|| {
        UserError::new(format!("the lake `{}` belongs to nobody: there is nothing to take over", settings.lake))
            .hint("`tidegate apply` begins anew")
    })?;
    if !adopt {
        return Err(UserError::new(format!(
            "nothing was applied to the registry `{}`, and the lake belongs to the registry {owner}",
            settings.registry
        ))
        .hint(
            "when that one is lost for good, `--adopt` lets this one take its place; as long as it is about, name it under \
             `registry:`, or bring it back with `tidegate registry restore FILE`",
        )
        .into());
    }
    if !yes {
        note(format!("the registry `{}` would take the place of {owner}", settings.registry));
        return Ok(None);
    }
    let registry = context.open_registry(settings).await?;
    registry.store.adopt_id(owner).await.context("taking the place of the registry that is lost")?;
    let registry = context.open_registry(settings).await?;
    let event = context.event(&registry, "registry_adopt", "registry").with(json!({ "id": owner }));
    registry.store.audit(event).await.context("noting whose place was taken")?;
    let prepared = Prepared::new(checked::load(context).await?, Some(&registry), context).await?;
    let message = Some("rebuilt from the lake".to_owned());
    apply::perform(&prepared, &registry, message, context).await?;
    context.registry().await.map(Some)
}

fn explain(plan: &RebuildPlan) {
    for view in &plan.findings {
        let name = &view.view;
        if view.head.is_none() {
            note(format!("{name}: its table is gone; an empty one takes its place"));
        }
        if view.quarantine_lost {
            note(format!("{name}: the table of rows that were set aside is gone, and with it these rows"));
        }
        if !view.half_published.is_empty() {
            note(format!(
                "{name}: {} intervals were being published when the registry was lost, and only some views have them: they \
                 count as missing",
                view.half_published.len()
            ));
        }
    }
    if !plan.rebuild.overtaken.is_empty() {
        note(format!("{} open runs were overtaken and end", plan.rebuild.overtaken.len()));
    }
    if !plan.snapshots_lost.is_empty() {
        note(format!("{} snapshots lost files and can no longer be restored", plan.snapshots_lost.len()));
    }
    if !std::io::stderr().is_terminal() {
        return;
    }
    note("schedulers and workers of this project must not run meanwhile");
}

/// The grid of each DAG up to the last interval that the lake holds: the schedule's, and where that was another once, the
/// borders of the intervals themselves.
fn ticks(plan: &RebuildPlan, project: &Project) -> anyhow::Result<BTreeMap<DagName, Vec<Instant>>> {
    let mut ticks = BTreeMap::new();
    for (dag, intervals) in plan.intervals() {
        let (Some(definition), Some(last)) = (project.dags.get(&dag), intervals.iter().map(Interval::end).max()) else {
            continue;
        };
        let grid = Grid::new(&definition.schedule).with_context(|| format!("reading the schedule of `{dag}`"))?;
        let inside = |at: &Instant| intervals.iter().any(|interval| interval.start() < *at && *at < interval.end());
        let mut all: Vec<Instant> = grid.ticks(None, last).filter(|at| !inside(at)).collect();
        all.extend(intervals.iter().flat_map(|interval| [interval.start(), interval.end()]));
        all.sort_unstable();
        all.dedup();
        ticks.insert(dag, all);
    }
    Ok(ticks)
}

#[derive(Debug, Serialize)]
struct Found<'a>(&'a Finding);

impl Row for Found<'_> {
    const HEADINGS: &'static [&'static str] =
        &["VIEW", "VERSION", "IN THE LAKE", "IN THE REGISTRY", "INTERVALS ENTER", "INTERVALS LEAVE"];

    fn cells(&self) -> Vec<String> {
        let Self(view) = self;
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        vec![
            view.view.to_string(),
            number(view.head),
            number(view.mark),
            view.known.to_string(),
            view.adopted.len().to_string(),
            view.lost.len().to_string(),
        ]
    }
}
