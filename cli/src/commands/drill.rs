//! `tidegate drill`: rehearse a restore on a copy of what is live.

use serde::Serialize;
use tidegate_registry::drill::{Drill, DrillCost, DrillPhases, DrillReport, DrillState, Scenario, ScenarioReport};
use tidegate_registry::ids::{DrillId, DrillName, ViewId};
use tidegate_registry::time::format_instant;
use tidegate_worker::drill::{cost, drill};

use crate::commands::restore::What;
use crate::context::{Context, Registry, release_dead_leases};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::{grid, labelled};
use crate::progress::note;

/// Rehearse a restore on a copy of what is live, measure it, and remove the copy
///
/// What is live is only read. The copy has a registry, a lake and an online store of its own; each scenario breaks it, carries a
/// real restore out, and compares with what was there before. `tidegate drills` lists what was rehearsed, `tidegate status` how
/// long restoring each view took. Exit code 1 when something did not come back as it was.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    what: What,
    /// What is rehearsed; may be given several times [default: everything that makes sense]
    #[arg(long, value_name = "NAME", value_parser = scenario)]
    scenario: Vec<Scenario>,
    /// Say what would be copied, and do nothing
    #[arg(long)]
    dry_run: bool,
}

fn scenario(text: &str) -> Result<Scenario, String> {
    text.parse()
}

/// Runs the command.
///
/// # Errors
/// When no view is named, another drill is under way, or the registry cannot be written.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let registry = context.registry().await?;
    let views = arguments.what.views(&registry)?;
    if views.is_empty() {
        return Err(UserError::new("which views are meant?").hint("say `--view VIEW`, `--dag DAG` or `--all`").into());
    }
    let new = new(None, views, &arguments.scenario, context.actor(), &registry);
    if arguments.dry_run {
        let lake = engine::lake(&settings)?;
        let online = engine::online(&settings).await?;
        let cost = cost(&*registry.store, &lake, online.as_deref(), &registry.project, &new.views).await?;
        let plan = Planned::of(&new, cost, &registry);
        context.output.one(&plan, &plan.lines())?;
        return Ok(Exit::Done);
    }
    release_dead_leases(&*registry.store).await?;
    let parts = engine::drills(&settings, &registry).await?;
    let done = drill(&parts, new, &context.shutdown.gentle).await?;
    let report = Report::of(&done);
    context.output.one(&report, &report.lines())?;
    if let Some(error) = done.report.as_ref().and_then(|report| report.error.as_ref()) {
        note(format!("the drill ended early: {error}"));
    }
    Ok(match done.state {
        DrillState::Passed => Exit::Done,
        _ => Exit::Wrong,
    })
}

/// A drill about to begin.
pub fn new(
    name: Option<DrillName>,
    views: Vec<ViewId>,
    scenarios: &[Scenario],
    actor: String,
    registry: &Registry,
) -> Drill {
    // In one order whatever was said, and each once.
    let wanted = |scenario: &Scenario| scenarios.is_empty() || scenarios.contains(scenario);
    Drill {
        id: DrillId::generate(),
        name,
        views,
        scenarios: Scenario::ALL.iter().copied().filter(wanted).collect(),
        actor,
        started_at: registry.clock.now(),
        finished_at: None,
        state: DrillState::Running,
        report: None,
    }
}

/// What a drill would do.
#[derive(Debug, Serialize)]
struct Planned {
    views: Vec<String>,
    scenarios: Vec<&'static str>,
    files: u64,
    bytes: u64,
    entities: u64,
    copied_by: &'static str,
}

impl Planned {
    fn of(drill: &Drill, cost: DrillCost, registry: &Registry) -> Self {
        let online = |view: &ViewId| registry.project.views.get(view).is_some_and(|view| view.online.is_some());
        let any = drill.views.iter().any(online);
        let apply = drill.scenarios.iter().filter(|scenario| any || !scenario.needs_online());
        Self {
            views: drill.views.iter().map(ToString::to_string).collect(),
            scenarios: apply.map(|scenario| scenario.as_str()).collect(),
            files: cost.files,
            bytes: cost.bytes,
            entities: cost.entities,
            copied_by: "a folder links files and copies none; an object store copies them by itself",
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("drill", "nothing is done: this is what would be".to_owned()),
            ("views", self.views.join(", ")),
            ("scenarios", self.scenarios.join(", ")),
            ("lake", format!("{} files, {} bytes ({})", self.files, self.bytes, self.copied_by)),
            ("online", format!("{} entities are written beside the real ones", self.entities)),
        ]
    }
}

/// What a drill came to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    drill: String,
    name: Option<String>,
    state: DrillState,
    views: Vec<String>,
    actor: String,
    started_at: String,
    finished_at: Option<String>,
    cost: DrillCost,
    copy_ms: u64,
    remove_ms: u64,
    took_ms: u64,
    scenarios: Vec<ScenarioReport>,
    proven_ms: indexmap::IndexMap<ViewId, u64>,
    left_out: Vec<LeftOut>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    view: String,
    why: String,
}

impl Report {
    pub(super) fn of(drill: &Drill) -> Self {
        let report = drill.report.clone().unwrap_or_default();
        let DrillReport { cost, copy_ms, remove_ms, took_ms, .. } = report;
        let left_out = report.left_out.iter();
        Self {
            drill: drill.id.to_string(),
            name: drill.name.as_ref().map(ToString::to_string),
            state: drill.state,
            views: drill.views.iter().map(ToString::to_string).collect(),
            actor: drill.actor.clone(),
            started_at: format_instant(drill.started_at),
            finished_at: drill.finished_at.map(format_instant),
            cost,
            copy_ms,
            remove_ms,
            took_ms,
            proven_ms: report.proven(),
            left_out: left_out.map(|(view, why)| LeftOut { view: view.to_string(), why: why.clone() }).collect(),
            error: report.error.clone(),
            scenarios: report.scenarios,
        }
    }

    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let cost = &self.cost;
        let mut lines = vec![
            ("drill", self.drill.clone()),
            ("name", self.name.clone().unwrap_or_default()),
            ("state", self.state.to_string()),
            ("error", self.error.clone().unwrap_or_default()),
            ("by", self.actor.clone()),
            ("started", self.started_at.clone()),
            ("took", seconds(self.took_ms)),
            (
                "copied",
                format!(
                    "{} files of {} bytes and {} entities in {}, removed in {}",
                    cost.files,
                    cost.bytes,
                    cost.entities,
                    seconds(self.copy_ms),
                    seconds(self.remove_ms)
                ),
            ),
        ];
        let rows = self.scenarios.iter().map(row);
        let headings = ["SCENARIO", "OUTCOME", "PLAN", "CHECK", "COMMIT", "ONLINE", "COMPARE", "WHOLE"];
        lines.push(("scenarios", grid(&headings, rows)));
        let proven = self.proven_ms.iter().map(|(view, took)| format!("{view}: restored in {}", seconds(*took)));
        lines.push(("proven", proven.collect::<Vec<_>>().join("\n")));
        let left_out = self.left_out.iter().map(|left| format!("{}: {}", left.view, left.why));
        lines.push(("left out", left_out.collect::<Vec<_>>().join("\n")));
        for scenario in self.scenarios.iter().filter(|scenario| !scenario.findings.is_empty()) {
            lines.push(("", labelled(&[(scenario.scenario.as_str(), scenario.findings.join("\n"))])));
        }
        lines
    }
}

fn row(scenario: &ScenarioReport) -> Vec<String> {
    let mut cells = vec![scenario.scenario.to_string(), scenario.outcome.to_string()];
    cells.extend(match scenario.phases {
        Some(DrillPhases { plan_ms, check_ms, commit_ms, online_ms, validate_ms, whole_ms }) => {
            [plan_ms, check_ms, commit_ms, online_ms, validate_ms, whole_ms].map(seconds)
        }
        None => [(); 6].map(|()| "-".to_owned()),
    });
    cells
}

/// Milliseconds, for people.
pub(super) fn seconds(ms: u64) -> String {
    format!("{:.2} s", ms as f64 / 1e3)
}
