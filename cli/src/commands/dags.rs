//! `tidegate dags`: what runs when, and the switch that stops a schedule.

use anyhow::Context as _;
use serde::Serialize;
use tidegate_registry::model::{Catchup, Dag};
use tidegate_registry::store::DagState;
use tidegate_registry::time::{Instant, format_instant};
use tidegate_scheduler::grid::next_fire_times;

use crate::context::{Context, Registry};
use crate::error::Exit;
use crate::output::{Row, grid};
use crate::progress::note;
use crate::select::{self, Selection};

/// List, show, pause or unpause DAGs
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List DAGs
    List(Selection),
    /// Show one DAG with its next fire times
    Show(One),
    /// Create no more runs of a DAG by its schedule; what is running goes on
    Pause(One),
    /// Create runs by the schedule again
    Unpause(One),
}

#[derive(Debug, clap::Args)]
struct One {
    /// The DAG's name
    dag: String,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read or there is no such DAG.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    match arguments.action {
        Action::List(selection) => {
            let states = registry.store.dags().await?;
            let mut rows = Vec::new();
            for dag in registry.project.dags.values().filter(|dag| chosen(dag, &selection)) {
                rows.push(Summary::new(dag, state_of(dag, &states), registry.clock.now())?);
            }
            context.output.list(&rows)?;
        }
        Action::Show(one) => show(select::dag(&registry.project, &one.dag)?, &registry, context).await?,
        Action::Pause(one) => pause(&one.dag, true, &registry, context).await?,
        Action::Unpause(one) => pause(&one.dag, false, &registry, context).await?,
    }
    Ok(Exit::Done)
}

async fn pause(name: &str, paused: bool, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let dag = select::dag(&registry.project, name)?;
    registry.store.dag_pause(&dag.name, paused, &context.actor(), registry.clock.now()).await?;
    note(if paused {
        format!("`{name}` is paused: its schedule creates no runs until `tidegate dags unpause {name}`")
    } else {
        format!("`{name}` is scheduled again")
    });
    if context.output.is_json() { show(dag, registry, context).await } else { Ok(()) }
}

async fn show(dag: &Dag, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let now = registry.clock.now();
    let states = registry.store.dags().await?;
    let summary = Summary::new(dag, state_of(dag, &states), now)?;
    let on_published = dag.on_published.iter().map(|told| told.webhook.clone()).collect();
    let details = Details { summary, next_fire_times: fire_times(dag, now, 10)?, in_order: dag.in_order, on_published };
    context.output.one(&details, &details.lines())
}

fn state_of<'a>(dag: &Dag, states: &'a [DagState]) -> Option<&'a DagState> {
    states.iter().find(|state| state.dag == dag.name)
}

fn chosen(dag: &Dag, selection: &Selection) -> bool {
    let views: Vec<String> = dag.views.iter().map(ToString::to_string).collect();
    let texts = [dag.name.as_str(), dag.description.as_deref().unwrap_or_default()];
    selection.takes(texts.into_iter().chain(views.iter().map(String::as_str)), Some(dag.owner.as_str()), &dag.tags)
}

/// One fire time as it is shown, in UTC and on the wall clock of the DAG's zone.
#[derive(Debug, Clone, Serialize)]
pub struct FireTime {
    /// RFC 3339 in UTC.
    pub utc: String,
    /// RFC 3339 with the zone's offset.
    pub local: String,
}

/// The next `count` fire times of `dag` after `now`.
///
/// # Errors
/// When the schedule cannot be read.
pub fn fire_times(dag: &Dag, now: Instant, count: usize) -> anyhow::Result<Vec<FireTime>> {
    let times = next_fire_times(&dag.schedule, now, count)
        .with_context(|| format!("reading the schedule of `{}`", dag.name))?;
    let shown = |(utc, local): (Instant, chrono::DateTime<chrono_tz::Tz>)| FireTime {
        utc: format_instant(utc),
        local: local.format("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    };
    Ok(times.into_iter().map(shown).collect())
}

#[derive(Debug, Serialize)]
struct Summary {
    dag: String,
    cron: String,
    timezone: String,
    start: String,
    end: Option<String>,
    catchup: &'static str,
    owner: String,
    views: Vec<String>,
    tags: Vec<String>,
    paused: bool,
    planned_until: Option<String>,
    next_fire_time: Option<String>,
    description: Option<String>,
}

impl Summary {
    fn new(dag: &Dag, state: Option<&DagState>, now: Instant) -> anyhow::Result<Self> {
        Ok(Self {
            dag: dag.name.to_string(),
            cron: dag.schedule.cron.clone(),
            timezone: dag.schedule.timezone.to_string(),
            start: format_instant(dag.schedule.start),
            end: dag.schedule.end.map(format_instant),
            catchup: match dag.schedule.catchup {
                Catchup::All => "all",
                Catchup::Latest => "latest",
                Catchup::None => "none",
            },
            owner: dag.owner.to_string(),
            views: dag.views.iter().map(ToString::to_string).collect(),
            tags: dag.tags.clone(),
            paused: state.is_some_and(|state| state.paused),
            planned_until: state.and_then(|state| state.planned_until).map(format_instant),
            next_fire_time: fire_times(dag, now, 1)?.into_iter().next().map(|time| time.utc),
            description: dag.description.clone(),
        })
    }

    fn state(&self) -> String {
        let next = self.next_fire_time.as_deref().unwrap_or("over");
        if self.paused { "paused".to_owned() } else { next.to_owned() }
    }
}

impl Row for Summary {
    const HEADINGS: &'static [&'static str] = &["DAG", "CRON", "TIMEZONE", "OWNER", "VIEWS", "NEXT", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.dag.clone(),
            self.cron.clone(),
            self.timezone.clone(),
            self.owner.clone(),
            self.views.len().to_string(),
            self.state(),
            self.description.clone().unwrap_or_default(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Details {
    #[serde(flatten)]
    summary: Summary,
    in_order: bool,
    /// Webhooks that are told of every run that was published.
    on_published: Vec<String>,
    next_fire_times: Vec<FireTime>,
}

impl Details {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let summary = &self.summary;
        let times = self.next_fire_times.iter().map(|time| vec![time.utc.clone(), time.local.clone()]);
        let order = if self.in_order {
            "one after another, since views read what earlier intervals left"
        } else {
            "in any order"
        };
        vec![
            ("dag", summary.dag.clone()),
            ("description", summary.description.clone().unwrap_or_default()),
            ("owner", summary.owner.clone()),
            ("tags", summary.tags.join(", ")),
            ("cron", summary.cron.clone()),
            ("timezone", summary.timezone.clone()),
            ("start", summary.start.clone()),
            ("end", summary.end.clone().unwrap_or_default()),
            ("catchup", summary.catchup.to_owned()),
            ("intervals", order.to_owned()),
            ("paused", if summary.paused { "yes".to_owned() } else { "no".to_owned() }),
            ("planned until", summary.planned_until.clone().unwrap_or_default()),
            ("views", summary.views.join("\n")),
            ("tells", self.on_published.join(", ")),
            ("next", if self.next_fire_times.is_empty() { String::new() } else { grid(&["UTC", "LOCAL"], times) }),
        ]
    }
}
