//! `tidegate wait`: for whatever comes after us, be it cron, Airflow or Prefect.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::Dag;
use tidegate_registry::store::Store;
use tidegate_registry::time::{Instant, format_instant};

use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::progress::note;
use crate::select;
use crate::times::TimeArgument;

/// How often the registry is asked.
const EVERY: Duration = Duration::from_secs(1);

/// Wait until what was asked for is published
///
/// A view covers a time when the interval that the time lies in, its end included, is published. Exit code 1 when that has
/// not happened before the time-out.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    what: What,
    /// The time that must be covered; without offset it is of the DAG's zone
    #[arg(long, value_name = "TIME")]
    covers: TimeArgument,
    /// How long to wait at most, in real time, as in `90s`, `15m` or `2h`
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// This view: a name (its highest version) or name@vN
    #[arg(long)]
    view: Option<String>,
    /// Every view of this DAG
    #[arg(long)]
    dag: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    tidegate_registry::definitions::scalars::parse_duration(text)
        .ok_or_else(|| "expected a number and a unit, as in `90s`, `15m` or `2h`".to_owned())
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read, there is no such view or DAG, or it takes too long.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let (views, dag) = views(&arguments.what, &registry)?;
    let zone = dag.map_or(chrono_tz::UTC, |dag| dag.schedule.timezone);
    let covers = arguments.covers.in_zone(zone);
    let mut missing = views.clone();
    let waited = tokio::time::timeout(arguments.timeout, async {
        let mut told = false;
        loop {
            missing = not_covering(&*registry.store, &missing, covers).await?;
            if missing.is_empty() {
                return anyhow::Ok(());
            }
            if !told {
                note(format!("waiting for {} to cover {}", select::quoted(names(&missing)), format_instant(covers)));
                told = true;
            }
            tokio::time::sleep(EVERY).await;
        }
    });
    match waited.await {
        Ok(found) => found?,
        Err(_) => return Err(late(&missing, dag, covers, &registry).await?.into()),
    }
    let states = registry.store.view_states(&views).await?;
    let newest = views.iter().map(|view| {
        let state = states.get(view).and_then(|state| state.newest);
        (view.to_string(), state.map(|interval| format_instant(interval.end())))
    });
    let covered = Covered { covers: format_instant(covers), views: newest.collect() };
    context.output.one(&covered, &covered.lines())?;
    Ok(Exit::Done)
}

fn views<'a>(what: &What, registry: &'a Registry) -> anyhow::Result<(Vec<ViewId>, Option<&'a Dag>)> {
    if let Some(name) = &what.dag {
        let dag = select::dag(&registry.project, name)?;
        return Ok((dag.views.clone(), Some(dag)));
    }
    let view = select::view(&registry.project, what.view.as_deref().unwrap_or_default())?;
    Ok((vec![view.id.clone()], registry.project.dag_of(&view.id)))
}

fn names(views: &[ViewId]) -> Vec<String> {
    views.iter().map(ToString::to_string).collect()
}

/// Those of `views` of which the interval with `at` is not published.
async fn not_covering(store: &dyn Store, views: &[ViewId], at: Instant) -> anyhow::Result<Vec<ViewId>> {
    let states = store.view_states(views).await?;
    let mut missing = Vec::new();
    for view in views {
        let newest = states.get(view).and_then(|state| state.newest);
        // The whole ledger is looked at only when the answer can be yes.
        let far_enough = newest.is_some_and(|newest| newest.end() >= at);
        let covers = far_enough && {
            let ledger = store.ledger(view, None, 0).await?;
            ledger.iter().any(|entry| entry.interval.start() < at && at <= entry.interval.end())
        };
        if !covers {
            missing.push(view.clone());
        }
    }
    Ok(missing)
}

/// Why it took too long, as far as the registry knows.
async fn late(missing: &[ViewId], dag: Option<&Dag>, at: Instant, registry: &Registry) -> anyhow::Result<UserError> {
    let text = format!("{} did not cover {} in time", select::quoted(names(missing)), format_instant(at));
    let mut error = UserError::new(text);
    if let Some(dag) = dag {
        let runs = registry.store.latest_runs(&dag.name, at - chrono::Duration::days(400), at).await?;
        let run = runs.iter().find(|run| run.interval.start() < at && at <= run.interval.end());
        error = error.hint(match run {
            Some(run) => format!("the run of that interval is {}: `tidegate runs why {}` says why", run.state, run.id),
            None => format!("no run of that interval is planned yet: `tidegate dags show {}` shows when", dag.name),
        });
    }
    Ok(error)
}

#[derive(Debug, Serialize)]
struct Covered {
    covers: String,
    /// Per view the end of its newest published interval.
    views: BTreeMap<String, Option<String>>,
}

impl Covered {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let views = self
            .views
            .iter()
            .map(|(view, newest)| format!("{view}, published until {}", newest.as_deref().unwrap_or("nothing")));
        vec![("covered", self.covers.clone()), ("views", views.collect::<Vec<_>>().join("\n"))]
    }
}
