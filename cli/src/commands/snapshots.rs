//! `tidegate snapshots`: what each recorded run left behind.

use std::collections::BTreeMap;

use serde::Serialize;
use tidegate_registry::care::Pin;
use tidegate_registry::ids::SnapshotId;
use tidegate_registry::store::{Snapshot, Store};
use tidegate_registry::time::format_instant;

use crate::context::{Context, Registry};
use crate::decision::Decision;
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::{Row, grid};
use crate::progress::note;
use crate::select;

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
    /// Show one snapshot with its views
    Show {
        /// The snapshot's id, or its beginning
        snapshot: String,
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
struct Filter {
    /// Only snapshots of this DAG
    #[arg(long, conflicts_with = "view")]
    dag: Option<String>,
    /// Only snapshots with this view: a name (its highest version) or name@vN
    #[arg(long)]
    view: Option<String>,
    /// At most this many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: u32,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such snapshot.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let filter = match arguments.action {
        Some(Action::Show { snapshot }) => {
            let report = Report::from(find(&*registry.store, &snapshot).await?);
            let mut lines = report.lines();
            if let Some(pin) = registry.store.pins().await?.get(&report.id.parse()?) {
                let at = format_instant(pin.pinned_at);
                lines.push(("pinned", format!("{} (by {}, {at})", pin.reason, pin.actor)));
            }
            context.output.one(&report, &lines)?;
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
    let dag = filter.dag.as_deref().map(|name| select::dag(&registry.project, name)).transpose()?;
    let view = filter.view.as_deref().map(|name| select::view(&registry.project, name)).transpose()?;
    let snapshots = registry.store.snapshots(dag.map(|dag| &dag.name), view.map(|view| &view.id), filter.limit).await?;
    list(snapshots, context)?;
    Ok(Exit::Done)
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
/// When standard output fails.
pub fn list(snapshots: Vec<Snapshot>, context: &Context) -> anyhow::Result<()> {
    let reports: Vec<_> = snapshots.into_iter().map(Report::from).collect();
    if reports.is_empty() && !context.output.is_json() {
        note("no run has been recorded yet");
        return Ok(());
    }
    context.output.list(&reports)
}

pub(super) async fn find(store: &dyn Store, asked: &str) -> anyhow::Result<Snapshot> {
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
            .into()),
        _ => Err(UserError::new(format!("`{asked}` begins the ids of {} snapshots", found.len()))
            .hint("say more of it")
            .into()),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    id: String,
    dag: String,
    run: String,
    interval_start: String,
    interval_end: String,
    created_at: String,
    status: String,
    decision: Option<Decision>,
    views: Vec<View>,
}

#[derive(Debug, Serialize)]
struct View {
    view: String,
    delta_version: u64,
    rows: u64,
    digest: String,
    online_generation: Option<u64>,
    publish_number: u64,
    fingerprint: String,
    quarantined: u64,
}

impl From<Snapshot> for Report {
    fn from(snapshot: Snapshot) -> Self {
        let views = snapshot.views.into_iter().map(|view| View {
            view: view.view.to_string(),
            delta_version: view.delta_version,
            rows: view.rows,
            digest: view.digest,
            online_generation: view.online_generation,
            publish_number: view.publish_number,
            fingerprint: view.fingerprint,
            quarantined: view.quarantined,
        });
        Self {
            id: snapshot.id.to_string(),
            dag: snapshot.dag.to_string(),
            run: snapshot.run.to_string(),
            interval_start: format_instant(snapshot.interval.start()),
            interval_end: format_instant(snapshot.interval.end()),
            created_at: format_instant(snapshot.created_at),
            status: snapshot.status,
            decision: snapshot.decision.as_ref().map(Into::into),
            views: views.collect(),
        }
    }
}

impl Report {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let views = self.views.iter().map(|view| {
            vec![
                view.view.clone(),
                view.delta_version.to_string(),
                view.rows.to_string(),
                view.quarantined.to_string(),
                view.online_generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string()),
                view.digest.clone(),
            ]
        });
        let decided = self.decision.as_ref().map(Decision::sentence).unwrap_or_default();
        vec![
            ("snapshot", self.id.clone()),
            ("dag", self.dag.clone()),
            ("run", self.run.clone()),
            ("interval", format!("{}/{}", self.interval_start, self.interval_end)),
            ("recorded", self.created_at.clone()),
            ("status", self.status.clone()),
            (self.decision.as_ref().map_or("override", |decision| decision.word()), decided),
            ("views", grid(&["VIEW", "DELTA VERSION", "ROWS", "SET ASIDE", "GENERATION", "DIGEST"], views)),
        ]
    }
}

impl Row for Report {
    const HEADINGS: &'static [&'static str] =
        &["SNAPSHOT", "DAG", "INTERVAL START", "INTERVAL END", "RECORDED", "STATUS", "VIEWS", "ROWS", "SET ASIDE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.dag.clone(),
            self.interval_start.clone(),
            self.interval_end.clone(),
            self.created_at.clone(),
            match &self.decision {
                None => self.status.clone(),
                Some(decision) => format!("{} ({})", self.status, decision.word()),
            },
            self.views.len().to_string(),
            self.views.iter().map(|view| view.rows).sum::<u64>().to_string(),
            self.views.iter().map(|view| view.quarantined).sum::<u64>().to_string(),
        ]
    }
}
