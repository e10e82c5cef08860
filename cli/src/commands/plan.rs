//! `tidegate plan`: what an apply would change, and what would be computed because of it. Changes nothing.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde::Serialize;
use tidegate_registry::definitions::Settings;
use tidegate_registry::diagnostics::SourceMap;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{Dag, Project};
use tidegate_registry::plan::{Change, DefinitionKind, Item, Plan, diff};
use tidegate_registry::store::{DagHistory, DagState, Store};
use tidegate_registry::time::{Instant, format_instant};
use tidegate_scheduler::planning;

use crate::checked::{self, Checked};
use crate::commands::backfill::counted;
use crate::commands::dags::{FireTime, fire_times};
use crate::context::{self, Context, Registry};
use crate::error::{Exit, UserError};
use crate::output::grid;
use crate::roles;

/// Show what an apply would change, and what would be computed
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs the command.
///
/// # Errors
/// When the definitions have errors or the registry cannot be read.
pub async fn run(_arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let checked = checked::load(context).await?;
    let settings = checked.settings.clone().ok_or_else(|| wrong(&checked, context))?;
    let registry = context.registry_if_any(&settings).await?;
    let prepared = Prepared::new(checked, registry.as_ref(), context).await?;
    context.output.one(&prepared.report, &prepared.report.lines())?;
    Ok(Exit::Done)
}

fn wrong(checked: &Checked, context: &Context) -> anyhow::Error {
    context.report(&checked.diagnostics, &checked.files);
    UserError::new("the project's settings are wrong").into()
}

/// A plan, with what is told of it.
#[derive(Debug)]
pub struct Prepared {
    /// The settings.
    pub settings: Settings,
    /// What the files say.
    pub project: Project,
    /// What changes.
    pub plan: Plan,
    /// What is told.
    pub report: Report,
}

impl Prepared {
    /// Compares the files with `registry`; none means that nothing was ever applied.
    ///
    /// # Errors
    /// When the definitions have errors, a change is refused, or the registry cannot be read.
    pub async fn new(checked: Checked, registry: Option<&Registry>, context: &Context) -> anyhow::Result<Self> {
        let files = checked.files.clone();
        let (settings, project) = checked.accepted(context)?;
        Self::of(settings, project, &files, registry, context).await
    }

    /// Compares `project`, written in `files`, with `registry`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn of(
        settings: Settings,
        project: Project,
        files: &SourceMap,
        registry: Option<&Registry>,
        context: &Context,
    ) -> anyhow::Result<Self> {
        let nothing = Project::empty(project.name.clone());
        let (base, current) = registry.map_or((0, &nothing), |registry| (registry.revision, &registry.project));
        let published = match registry {
            Some(registry) => published(&*registry.store, current).await?,
            None => BTreeSet::new(),
        };
        let plan = diff(base, current, &project, &published).map_err(|refused| {
            context.report(&refused, files);
            UserError::new("these changes cannot be applied; nothing was changed")
        })?;
        let report = Report::new(&plan, &project, &settings, registry).await?;
        Ok(Self { settings, project, plan, report })
    }
}

async fn published(store: &dyn Store, current: &Project) -> anyhow::Result<BTreeSet<ViewId>> {
    let ids: Vec<ViewId> = current.views.keys().cloned().collect();
    let states = store.view_states(&ids).await.context("reading what is published")?;
    Ok(states.into_iter().filter(|(_, state)| state.records > 0).map(|(id, _)| id).collect())
}

/// A plan as it is shown.
#[derive(Debug, Serialize)]
pub struct Report {
    project: String,
    base: i64,
    added: Vec<Named>,
    changed: Vec<Changed>,
    removed: Vec<Named>,
    affected: Vec<String>,
    intervals: Vec<Computed>,
    fire_times: Vec<Fires>,
}

#[derive(Debug, Serialize)]
struct Named {
    kind: DefinitionKind,
    name: String,
}

#[derive(Debug, Serialize)]
struct Changed {
    kind: DefinitionKind,
    name: String,
    logic: bool,
    fields: Vec<Field>,
}

#[derive(Debug, Serialize)]
struct Field {
    field: String,
    before: Option<String>,
    after: Option<String>,
}

/// What the schedule of a DAG computes because of the change.
#[derive(Debug, Serialize)]
struct Computed {
    dag: String,
    intervals: usize,
    first_start: Option<String>,
    last_end: Option<String>,
}

#[derive(Debug, Serialize)]
struct Fires {
    dag: String,
    timezone: String,
    next: Vec<FireTime>,
}

const FIRE_TIMES: usize = 10;

impl Report {
    async fn new(
        plan: &Plan,
        project: &Project,
        settings: &Settings,
        registry: Option<&Registry>,
    ) -> anyhow::Result<Self> {
        let now = context::now(settings, registry);
        let mut intervals = Vec::new();
        let mut fires = Vec::new();
        for dag in project.dags.values().filter(|dag| is_touched(plan, dag)) {
            intervals.push(computed(dag, registry, now).await?);
            fires.push(Fires {
                dag: dag.name.to_string(),
                timezone: dag.schedule.timezone.to_string(),
                next: fire_times(dag, now, FIRE_TIMES)?,
            });
        }
        Ok(Self { intervals, fire_times: fires, ..Self::of_difference(plan, project) })
    }

    /// Nothing but what differs between two projects.
    pub(super) fn of_difference(plan: &Plan, project: &Project) -> Self {
        let named = |item: &Item| Named { kind: item.kind, name: item.name.clone() };
        Self {
            project: project.name.to_string(),
            base: plan.base,
            added: plan.added.iter().map(named).collect(),
            changed: plan.changed.iter().map(changed).collect(),
            removed: plan.removed.iter().map(named).collect(),
            affected: plan.affected.iter().map(ToString::to_string).collect(),
            intervals: Vec::new(),
            fire_times: Vec::new(),
        }
    }

    /// Whether an apply would change nothing.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty() && self.affected.is_empty()
    }

    /// The report for people, label by label.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        if self.is_empty() {
            return vec![("plan", format!("nothing changes; revision {} is what the files say", self.base))];
        }
        let mut lines =
            vec![("plan", format!("revision {} of `{}` on top of {}", self.base + 1, self.project, self.base))];
        lines.extend(self.differences());
        lines.extend([
            ("to compute", self.intervals.iter().map(Computed::text).collect::<Vec<_>>().join("\n")),
            ("next fire times", self.fire_times.iter().map(Fires::text).collect::<Vec<_>>().join("\n")),
        ]);
        lines
    }

    /// How many definitions are added, changed and removed.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.added.len(), self.changed.len() + self.affected.len(), self.removed.len())
    }

    /// What differs, for people.
    pub(super) fn differences(&self) -> [(&'static str, String); 4] {
        let signed = |sign: char, items: &[Named]| {
            items.iter().map(|item| format!("{sign} {} {}", word(item.kind), item.name)).collect::<Vec<_>>().join("\n")
        };
        [
            ("added", signed('+', &self.added)),
            ("changed", self.changed.iter().map(Changed::text).collect::<Vec<_>>().join("\n")),
            ("removed", signed('-', &self.removed)),
            ("affected", self.affected.join("\n")),
        ]
    }
}

/// Whether the DAG or one of its views is added, changed or affected.
fn is_touched(plan: &Plan, dag: &Dag) -> bool {
    let is_dag = |kind, name: &str| kind == DefinitionKind::Dag && name == dag.name.as_str();
    let is_view =
        |kind, name: &str| kind == DefinitionKind::FeatureView && dag.views.iter().any(|view| view.to_string() == name);
    plan.added.iter().any(|item| is_dag(item.kind, &item.name) || is_view(item.kind, &item.name))
        || plan.changed.iter().any(|change| is_dag(change.kind, &change.name) || is_view(change.kind, &change.name))
        || plan.affected.iter().any(|view| dag.views.contains(view))
}

async fn computed(dag: &Dag, registry: Option<&Registry>, now: Instant) -> anyhow::Result<Computed> {
    let mut state = None;
    let mut history = DagHistory::default();
    if let Some(registry) = registry {
        state = registry.store.dags().await?.into_iter().find(|state| state.dag == dag.name);
        if state.is_some() {
            history = roles::scheduler(registry).history(dag).await?;
        }
    }
    let new = DagState {
        dag: dag.name.clone(),
        paused: false,
        planned_until: None,
        due_at: Some(now),
        schedule_fingerprint: None,
        created_at: now,
        definitions: 0,
    };
    let runs = planning::preview(dag, state.unwrap_or(new), history, now)
        .with_context(|| format!("reading the schedule of `{}`", dag.name))?;
    let intervals: BTreeSet<_> = runs.into_iter().map(|(interval, _)| interval).collect();
    Ok(Computed {
        dag: dag.name.to_string(),
        intervals: intervals.len(),
        first_start: intervals.first().map(|interval| format_instant(interval.start())),
        last_end: intervals.last().map(|interval| format_instant(interval.end())),
    })
}

fn changed(change: &Change) -> Changed {
    let fields = change.fields.iter().map(|field| Field {
        field: field.field.clone(),
        before: field.before.clone(),
        after: field.after.clone(),
    });
    Changed { kind: change.kind, name: change.name.clone(), logic: change.logic, fields: fields.collect() }
}

impl Changed {
    fn text(&self) -> String {
        let effect = match (self.kind, self.logic) {
            (DefinitionKind::FeatureView, true) => " (logic)",
            (DefinitionKind::FeatureView, false) => " (recomputes nothing)",
            _ => "",
        };
        let mut text = format!("~ {} {}{effect}", word(self.kind), self.name);
        for field in &self.fields {
            text.push_str("\n    ");
            text.push_str(&field.text());
        }
        text
    }
}

impl Field {
    fn text(&self) -> String {
        if let (Some(before), Some(after)) = (&self.before, &self.after)
            && (before.contains('\n') || after.contains('\n'))
        {
            return format!("{}:{}", self.field, changed_lines(before, after));
        }
        let shown = |value: &Option<String>| value.as_deref().map_or_else(|| "nothing".to_owned(), in_a_line);
        format!("{}: {} → {}", self.field, shown(&self.before), shown(&self.after))
    }
}

/// The lines between the first and the last that differ.
fn changed_lines(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let shorter = before.len().min(after.len());
    let same_start = before.iter().zip(&after).take_while(|(b, a)| b == a).count();
    let same_end = before.iter().rev().zip(after.iter().rev()).take_while(|(b, a)| b == a).count();
    let same_end = same_end.min(shorter - same_start);
    let mut text = String::new();
    for (sign, lines) in [('-', &before), ('+', &after)] {
        for line in &lines[same_start..lines.len() - same_end] {
            text.push_str(&format!("\n      {sign} {line}"));
        }
    }
    text
}

/// `value` on one line, cut where it is long.
fn in_a_line(value: &str) -> String {
    const LONGEST: usize = 60;
    let line = value.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LONGEST {
        return line;
    }
    line.chars().take(LONGEST - 1).chain(['…']).collect()
}

impl Computed {
    fn text(&self) -> String {
        match (&self.first_start, &self.last_end) {
            (Some(first), Some(last)) => {
                format!("{}: {} from {first} to {last}", self.dag, counted(self.intervals, "interval"))
            }
            _ => format!("{}: nothing that is complete now", self.dag),
        }
    }
}

impl Fires {
    fn text(&self) -> String {
        if self.next.is_empty() {
            return format!("{}: its schedule is over", self.dag);
        }
        let lines = self.next.iter().map(|time| vec![time.utc.clone(), time.local.clone()]);
        format!("{}\n{}", self.dag, grid(&["UTC", &self.timezone], lines))
    }
}

pub(super) fn word(kind: DefinitionKind) -> &'static str {
    match kind {
        DefinitionKind::FeatureView => "feature view",
        DefinitionKind::Dag => "DAG",
        DefinitionKind::RestoreRule => "restore rule",
        DefinitionKind::FeatureService => "feature service",
        other => other.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_that_differ_are_shown() {
        for (before, after, shown) in [
            ("a\nb\nc", "a\nx\nc", "\n      - b\n      + x"),
            ("a\nb", "a\nb\nb", "\n      + b"),
            ("a\na\na", "a\na", "\n      - a"),
            ("a", "b\nc", "\n      - a\n      + b\n      + c"),
        ] {
            assert_eq!(changed_lines(before, after), shown);
        }
    }
}
