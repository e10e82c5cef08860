//! `tidegate dataset`: training and scoring sets, built, found again, kept, and built once more.

mod build;

pub use self::build::{Wanted, here, parts, request, told};

use std::collections::BTreeMap;

use serde::Serialize;
use tidegate_registry::dataset::{Dataset, DatasetFilter, DatasetPin, Manifest, SpineFrom};
use tidegate_registry::ids::ViewId;
use tidegate_registry::store::Store;
use tidegate_registry::time::{Instant, format_instant};
use tidegate_worker::lake::Lake;

use crate::commands::snapshots;
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::note;
use crate::select;

/// Build training and scoring sets, and list what was built
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Join features to labels, each as it was known at the label's instant
    Build(build::Arguments),
    /// Build a dataset again from what its manifest names, and say whether the bytes are the same
    Rebuild(build::RebuildArguments),
    /// Record a dataset that is there, with its manifest, and is not known: its build died, or the registry was lost
    Import(build::ImportArguments),
    /// List datasets, the newest first
    List(Filter),
    /// Show one dataset with all that it was built from
    Show {
        /// Its name, its id, or the id's beginning
        dataset: String,
    },
    /// Keep what a dataset was built from, whatever retention says
    Pin {
        /// Its name, its id, or the id's beginning
        dataset: String,
        /// Why, for whoever finds it later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Leave what a dataset was built from to retention again
    Unpin {
        /// Its name, its id, or the id's beginning
        dataset: String,
    },
}

/// Which datasets to list
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only those that could see rows that this snapshot published
    #[arg(long, value_name = "SNAPSHOT")]
    pub built_from: Option<String>,
    /// Only those with features of this view: a name (its highest version) or name@vN
    #[arg(long)]
    pub view: Option<String>,
    /// At most this many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub limit: u32,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read, there is no such dataset, or it cannot be built.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    match arguments.action {
        Action::Build(arguments) => return build::run(arguments, &registry, context).await,
        Action::Rebuild(arguments) => return build::again(arguments, &registry, context).await,
        Action::Import(arguments) => return build::import(arguments, &registry, context).await,
        Action::List(filter) => list(&filter, &registry, context).await?,
        Action::Show { dataset } => {
            let dataset = find(&*registry.store, &dataset).await?;
            let report = Report::of(&dataset);
            context.output.one(&report, &report.lines())?;
        }
        Action::Pin { dataset, reason } => {
            let dataset = find(&*registry.store, &dataset).await?;
            let lake = engine::lake(&context.settings()?)?;
            let pin = pin(&dataset.manifest, &lake, context, registry.clock.now(), reason).await?;
            registry.store.dataset_pin(dataset.id, pin).await?;
            note(format!("what `{}` was built from is kept until `tidegate dataset unpin`", dataset.label()));
        }
        Action::Unpin { dataset } => {
            let dataset = find(&*registry.store, &dataset).await?;
            registry.store.dataset_unpin(dataset.id, &context.actor(), registry.clock.now()).await?;
            note(format!("what `{}` was built from is left to retention", dataset.label()));
        }
    }
    Ok(Exit::Done)
}

async fn list(filter: &Filter, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let reports = reports(filter, registry).await?;
    if reports.is_empty() && !context.output.is_json() {
        note("there is no such dataset");
        return Ok(());
    }
    context.output.list(&reports)
}

/// The datasets that are chosen, as they are listed, the newest first.
///
/// # Errors
/// When there is no such view or snapshot, or the registry cannot be read.
pub async fn reports(filter: &Filter, registry: &Registry) -> anyhow::Result<Vec<Report>> {
    let mut wanted = DatasetFilter { limit: filter.limit, ..DatasetFilter::default() };
    if let Some(name) = &filter.view {
        wanted.views.push(select::view(&registry.project, name)?.id.clone());
    }
    if let Some(snapshot) = &filter.built_from {
        let snapshot = snapshots::find(&*registry.store, snapshot).await?;
        wanted.built_from = Some(snapshot.views.iter().map(|view| (view.view.clone(), snapshot.id)).collect());
    }
    Ok(registry.store.datasets(&wanted).await?.iter().map(Report::of).collect())
}

/// The one dataset that is called so; of several with a name the newest.
async fn find(store: &dyn Store, asked: &str) -> anyhow::Result<Dataset> {
    let filter = DatasetFilter { called: Some(asked.to_owned()), ..DatasetFilter::default() };
    let mut found = store.datasets(&filter).await?;
    let named = found.iter().any(|dataset| dataset.name.as_deref() == Some(asked));
    match found.len() {
        0 => Err(UserError::new(format!("there is no dataset `{asked}`"))
            .hint("`tidegate dataset list` shows them")
            .missing()
            .into()),
        1 => Ok(found.remove(0)),
        _ if named => {
            found.retain(|dataset| dataset.name.as_deref() == Some(asked));
            Ok(found.remove(0))
        }
        many => {
            Err(UserError::new(format!("`{asked}` begins the ids of {many} datasets")).hint("say more of it").into())
        }
    }
}

/// Refuses a reason that says nothing.
fn has_words(reason: &str) -> Result<(), UserError> {
    match reason.trim().is_empty() {
        true => Err(UserError::new("the reason is empty").hint("say what it is kept for")),
        false => Ok(()),
    }
}

/// A pin with the files of every version that the manifest names.
async fn pin(
    manifest: &Manifest,
    lake: &Lake,
    context: &Context,
    now: Instant,
    reason: String,
) -> anyhow::Result<DatasetPin> {
    has_words(&reason)?;
    let mut files = BTreeMap::new();
    for (view, input) in &manifest.views {
        if let Some(version) = input.delta_version {
            files.insert(view.clone(), lake.pinned_files(view, version).await?);
        }
    }
    Ok(DatasetPin { pinned_at: now, actor: context.actor(), reason, files })
}

/// A dataset as it is listed.
#[derive(Debug, Serialize)]
pub struct Report {
    dataset: String,
    name: Option<String>,
    created_at: String,
    actor: String,
    out: String,
    rows: u64,
    digest: String,
    views: Vec<ViewId>,
    pinned: Option<DatasetPin>,
    manifest: Manifest,
}

impl Report {
    /// What is to be said of `dataset`.
    pub fn of(dataset: &Dataset) -> Self {
        Self {
            dataset: dataset.id.to_string(),
            name: dataset.name.clone(),
            created_at: format_instant(dataset.created_at),
            actor: dataset.actor.clone(),
            out: dataset.place.clone(),
            rows: dataset.manifest.output.rows,
            digest: dataset.manifest.output.digest.clone(),
            views: dataset.manifest.views.keys().cloned().collect(),
            pinned: dataset.pin.clone(),
            manifest: dataset.manifest.clone(),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let manifest = &self.manifest;
        let views = manifest.views.iter().map(|(view, input)| match (&input.snapshot, &input.covers) {
            (Some(snapshot), Some(covers)) => {
                format!(
                    "{view} at snapshot {snapshot}, {} intervals until {}",
                    input.intervals,
                    format_instant(*covers)
                )
            }
            _ => format!("{view}, of which nothing was published"),
        });
        let columns = manifest.output.columns.iter().map(|column| {
            let share = column.nulls as f64 / (manifest.output.rows.max(1)) as f64;
            format!("{} {}, {:.2} % null", column.name, column.kind, 100.0 * share)
        });
        let mut lines = vec![
            ("dataset", self.dataset.clone()),
            ("name", self.name.clone().unwrap_or_default()),
            ("out", self.out.clone()),
            ("created", format!("{} by {}", self.created_at, self.actor)),
            ("spine", spine(manifest)),
            ("views", views.collect::<Vec<_>>().join("\n")),
            ("rows", self.rows.to_string()),
            ("columns", columns.collect::<Vec<_>>().join("\n")),
            ("stale", stale(manifest).join("\n")),
            ("digest", self.digest.clone()),
        ];
        if let Some(pin) = &self.pinned {
            lines.push(("pinned", format!("{} by {}: {}", format_instant(pin.pinned_at), pin.actor, pin.reason)));
        }
        lines
    }
}

/// Per view the rows that are later than what it had by more than its `max_age`: readers would have been told that it is
/// late, and whoever trains or scores is not asked.
pub fn stale(manifest: &Manifest) -> Vec<String> {
    let rows = manifest.output.rows;
    let lines = manifest.output.stale.iter().map(|(view, stale)| {
        format!("{stale} of {rows} rows are later than what `{view}` had by more than its max_age")
    });
    lines.collect()
}

fn spine(manifest: &Manifest) -> String {
    let spine = &manifest.spine;
    let from = match &spine.from {
        SpineFrom::File { place, version: Some(version), .. } => format!("{place} at version {version}"),
        SpineFrom::File { place, .. } => place.clone(),
        SpineFrom::Sql { sql, .. } => sql.trim().to_owned(),
        SpineFrom::Entities { at } => format!("every entity at {}", format_instant(*at)),
        SpineFrom::Rows => "rows of a caller".to_owned(),
    };
    match spine.labels {
        Some((first, last)) => {
            format!("{from}\n{} rows, {} to {}", spine.rows, format_instant(first), format_instant(last))
        }
        None => format!("{from}\nno rows"),
    }
}

impl Row for Report {
    const HEADINGS: &'static [&'static str] = &["DATASET", "NAME", "CREATED", "ROWS", "VIEWS", "PINNED", "OUT"];

    fn cells(&self) -> Vec<String> {
        let views: Vec<String> = self.views.iter().map(ToString::to_string).collect();
        vec![
            self.dataset.clone(),
            self.name.clone().unwrap_or_else(|| "-".to_owned()),
            self.created_at.clone(),
            self.rows.to_string(),
            views.join(", "),
            if self.pinned.is_some() { "yes" } else { "-" }.to_owned(),
            self.out.clone(),
        ]
    }
}
