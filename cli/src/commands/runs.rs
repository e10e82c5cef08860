//! `tidegate runs`: what ran, what came of it, and the three things a person can do about it.

use serde::Serialize;
use tidegate_registry::ids::RunId;
use tidegate_registry::run::{Run, RunState, Task, TaskOutput, TaskState};
use tidegate_registry::store::{Decision, LogLine, RunFilter, Store};
use tidegate_registry::time::{Instant, format_instant};

use crate::context::{Context, Registry};
use crate::error::{Exit, UserError};
use crate::output::{Row, grid};
use crate::progress::note;
use crate::roles;
use crate::select;
use crate::times::{TimeArgument, short};

/// List, show, cancel or retry runs, or read their logs
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List runs, the newest interval first
    List(Filter),
    /// Show one run with its tasks
    Show(One),
    /// Stop a run before it publishes
    Cancel(One),
    /// Make a blocked, failed or cancelled run anew, with the newest definitions
    Retry(One),
    /// Let a blocked run through: compute it anew, and publish it although the checks that stopped it fail
    ///
    /// Only these checks may fail, over the sources that the run had read, with its views as they were defined. What holds
    /// for every view (keys that are there and unique, times that are not in the future) cannot be let through. Who did it
    /// and why is kept, and shown wherever the run and its snapshot are.
    Override {
        /// The run's id, or its beginning
        run: String,
        /// Why, for whoever finds it later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Show what the tasks of a run wrote
    Logs(One),
}

#[derive(Debug, clap::Args)]
struct One {
    /// The run's id, or its beginning
    run: String,
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Only runs of this DAG
    #[arg(long)]
    dag: Option<String>,
    /// Only runs in this state (may be given several times)
    #[arg(long, value_name = "STATE")]
    state: Vec<RunState>,
    /// Only intervals that start at or after this
    #[arg(long, value_name = "TIME")]
    from: Option<TimeArgument>,
    /// Only intervals that start before this
    #[arg(long, value_name = "TIME")]
    to: Option<TimeArgument>,
    /// At most this many; 0 for all
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: u32,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read, there is no such run, or its state forbids what is asked.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let store = &*registry.store;
    match arguments.action {
        Action::List(filter) => list(filter, &registry, context).await?,
        Action::Show(one) => {
            let id = select::run_id(store, &one.run).await?;
            show(id, &registry, context).await?;
        }
        Action::Cancel(one) => {
            let id = select::run_id(store, &one.run).await?;
            store.run_cancel(id, &context.actor(), registry.clock.now()).await?;
            note(format!("cancelled {id}; its interval stays unpublished until `tidegate runs retry {id}`"));
            show(id, &registry, context).await?;
        }
        Action::Retry(one) => {
            let id = select::run_id(store, &one.run).await?;
            let (old, _) = store.run(id).await?;
            let (attempts_max, now) = (attempts_max(&old, &registry), registry.clock.now());
            let new = store.run_retry(id, attempts_max, &context.actor(), now).await?;
            note(format!("{new} takes the place of {id}; {}", who_computes(&old, store).await?));
            show(new, &registry, context).await?;
        }
        Action::Override { run, reason } => {
            let id = select::run_id(store, &run).await?;
            let (old, _) = store.run(id).await?;
            let new = store.run_override(id, decision(&old, reason, &registry, context)?).await?;
            note(format!("{new} takes the place of {id} and is let through; {}", who_computes(&old, store).await?));
            show(new, &registry, context).await?;
        }
        Action::Logs(one) => {
            let id = select::run_id(store, &one.run).await?;
            let lines: Vec<_> = store.run_logs(id).await?.into_iter().map(Line::from).collect();
            if lines.is_empty() && !context.output.is_json() {
                note(format!("no task of {id} has written anything"));
            } else {
                context.output.list(&lines)?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Who will compute a new run of the interval of `run`.
///
/// # Errors
/// When the registry cannot be read.
pub(super) async fn who_computes(run: &Run, store: &dyn Store) -> anyhow::Result<String> {
    Ok(match roles::workers_alive(store).await?.is_empty() {
        false => "workers take it up".to_owned(),
        true => format!(
            "no worker is alive: `tidegate up` computes it, or `tidegate run {} --interval {}`",
            run.dag, run.interval
        ),
    })
}

/// The decision of whoever runs this command, over `run`.
///
/// # Errors
/// When no reason is given.
pub(super) fn decision(run: &Run, reason: String, registry: &Registry, context: &Context) -> anyhow::Result<Decision> {
    if reason.trim().is_empty() {
        return Err(UserError::new("the reason is empty").hint("say why, for whoever finds it later").into());
    }
    let attempts_max = attempts_max(run, registry);
    Ok(Decision { actor: context.actor(), reason, now: registry.clock.now(), attempts_max })
}

fn attempts_max(run: &Run, registry: &Registry) -> u32 {
    registry.project.dags.get(&run.dag).map_or(0, |dag| dag.retries.max) + 1
}

async fn list(filter: Filter, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let dag = filter.dag.as_deref().map(|name| select::dag(&registry.project, name)).transpose()?;
    let zone = dag.map_or(chrono_tz::UTC, |dag| dag.schedule.timezone);
    let filter = RunFilter {
        dag: dag.map(|dag| dag.name.clone()),
        states: filter.state,
        from: filter.from.map(|at| at.in_zone(zone)),
        to: filter.to.map(|at| at.in_zone(zone)),
        cause: None,
        limit: filter.limit,
    };
    let mut rows = Vec::new();
    for run in registry.store.runs(&filter).await? {
        let (run, tasks) = registry.store.run(run.id).await?;
        rows.push(RunReport::new(&run, &tasks));
    }
    if rows.is_empty() && !context.output.is_json() {
        note("no run matches");
        return Ok(());
    }
    context.output.list(&rows)
}

/// Prints one run.
///
/// # Errors
/// When it cannot be read or printed.
pub async fn show(id: RunId, registry: &Registry, context: &Context) -> anyhow::Result<()> {
    let (run, tasks) = registry.store.run(id).await?;
    let report = RunReport::new(&run, &tasks);
    context.output.one(&report, &report.lines())
}

/// A run as it is shown.
#[derive(Debug, Serialize)]
pub struct RunReport {
    id: String,
    dag: String,
    interval_start: String,
    interval_end: String,
    revision: u32,
    cause: String,
    state: RunState,
    reason: Option<String>,
    definitions: i64,
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    decision: Option<crate::decision::Decision>,
    tasks: Vec<TaskReport>,
    #[serde(skip)]
    took: String,
    #[serde(skip)]
    rows: Option<u64>,
}

#[derive(Debug, Serialize)]
struct TaskReport {
    name: String,
    state: TaskState,
    attempts: u32,
    rows: Option<u64>,
    quarantined: u64,
    started_at: Option<String>,
    finished_at: Option<String>,
    error: Option<String>,
}

impl RunReport {
    /// What is shown of `run`.
    pub fn new(run: &Run, tasks: &[Task]) -> Self {
        let views = tasks.iter().filter(|task| matches!(task.kind, tidegate_registry::run::TaskKind::View(_)));
        Self {
            id: run.id.to_string(),
            dag: run.dag.to_string(),
            interval_start: format_instant(run.interval.start()),
            interval_end: format_instant(run.interval.end()),
            revision: run.revision,
            cause: run.cause.to_string(),
            state: run.state,
            reason: run.reason.clone(),
            definitions: run.definitions,
            created_at: format_instant(run.created_at),
            started_at: run.started_at.map(format_instant),
            finished_at: run.finished_at.map(format_instant),
            decision: run.overriding.as_ref().map(Into::into),
            tasks: tasks.iter().map(TaskReport::new).collect(),
            took: took(run.started_at, run.finished_at),
            rows: views.map(|task| task.rows).sum(),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let tasks = self.tasks.iter().map(|task| {
            vec![
                task.name.clone(),
                task.state.to_string(),
                task.attempts.to_string(),
                task.rows.map_or_else(|| "-".to_owned(), |rows| rows.to_string()),
                if task.quarantined == 0 { "-".to_owned() } else { task.quarantined.to_string() },
                task.error.clone().unwrap_or_default(),
            ]
        });
        let decided = self.decision.as_ref().map(crate::decision::Decision::sentence).unwrap_or_default();
        vec![
            ("run", self.id.clone()),
            ("dag", self.dag.clone()),
            ("interval", format!("{}/{}", self.interval_start, self.interval_end)),
            ("revision", self.revision.to_string()),
            ("cause", self.cause.clone()),
            ("state", self.state.to_string()),
            (self.decision.as_ref().map_or("override", |decision| decision.word()), decided),
            ("reason", self.reason.clone().unwrap_or_default()),
            ("definitions", format!("revision {}", self.definitions)),
            ("planned", self.created_at.clone()),
            ("started", self.started_at.clone().unwrap_or_default()),
            ("finished", self.finished_at.clone().unwrap_or_default()),
            ("took", self.took.clone()),
            ("tasks", grid(&["TASK", "STATE", "ATTEMPTS", "ROWS", "SET ASIDE", "ERROR"], tasks)),
        ]
    }
}

impl TaskReport {
    fn new(task: &Task) -> Self {
        Self {
            name: task.kind.to_string(),
            state: task.state,
            attempts: task.attempts,
            rows: task.rows,
            quarantined: match &task.output {
                Some(TaskOutput::Staged(staged)) => staged.quarantine.as_ref().map_or(0, |aside| aside.rows),
                _ => 0,
            },
            started_at: task.started_at.map(format_instant),
            finished_at: task.finished_at.map(format_instant),
            error: task.error.clone(),
        }
    }
}

impl Row for RunReport {
    const HEADINGS: &'static [&'static str] =
        &["RUN", "DAG", "INTERVAL START", "INTERVAL END", "REV", "CAUSE", "STATE", "ROWS", "TOOK", "REASON"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.dag.clone(),
            self.interval_start.clone(),
            self.interval_end.clone(),
            self.revision.to_string(),
            // A backfill's id would take half the line; JSON has it.
            self.cause.split(' ').next().unwrap_or_default().to_owned(),
            self.state.to_string(),
            self.rows.map_or_else(|| "-".to_owned(), |rows| rows.to_string()),
            self.took.clone(),
            self.reason.clone().unwrap_or_default(),
        ]
    }
}

fn took(started: Option<Instant>, finished: Option<Instant>) -> String {
    match (started, finished) {
        (Some(started), Some(finished)) => short(finished - started),
        _ => "-".to_owned(),
    }
}

#[derive(Debug, Serialize)]
struct Line {
    at: String,
    task: String,
    attempt: u32,
    level: String,
    message: String,
}

impl From<LogLine> for Line {
    fn from(line: LogLine) -> Self {
        Self {
            at: format_instant(line.at),
            task: line.task,
            attempt: line.attempt,
            level: line.level,
            message: line.message,
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["AT", "TASK", "ATTEMPT", "LEVEL", "MESSAGE"];

    fn cells(&self) -> Vec<String> {
        vec![self.at.clone(), self.task.clone(), self.attempt.to_string(), self.level.clone(), self.message.clone()]
    }
}
