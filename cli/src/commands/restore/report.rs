//! What a restore does, or did, for people and programs.

use std::sync::Arc;

use anyhow::Context as _;
use indexmap::IndexMap;
use serde::Serialize;
use tidegate_registry::dataset::DatasetFilter;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::Consumer;
use tidegate_registry::restore::plan::{Asked, Planned};
use tidegate_registry::restore::{Restore, Slice, Validation, ViewRestore};
use tidegate_registry::time::format_instant;
use tidegate_worker::engine::Engine;
use tidegate_worker::restore::{Effect, WayOnline};
use tidegate_worker::serving::{ViewState, compare_states};

use crate::commands::preview::Scratch;
use crate::context::{Context, Registry};
use crate::engine;
use crate::output::grid;

/// What a restore does, or did.
#[derive(Debug, Serialize)]
pub(in crate::commands) struct Report {
    restore: Option<String>,
    asked: String,
    state: &'static str,
    views: Vec<ViewReport>,
    holds: Vec<String>,
    while_held: String,
    downstream: Vec<DownstreamReport>,
    /// Who reads features of what is restored or held with it.
    consumers: Vec<String>,
    /// Datasets that could see rows which leave.
    datasets: Vec<DatasetReport>,
    superseded_runs: Vec<String>,
    stopped_runs: Vec<String>,
    actor: Option<String>,
    reason: Option<String>,
    begun_at: Option<String>,
    took_ms: Option<u64>,
    validation: Option<Validation>,
}

#[derive(Debug, Serialize)]
struct ViewReport {
    view: String,
    from_version: u64,
    to_version: Option<u64>,
    leaves: Vec<SliceReport>,
    comes_back: Vec<SliceReport>,
    newest: Option<SliceReport>,
    files_added: Option<u64>,
    files_removed: Option<u64>,
    rows_added: Option<u64>,
    rows_removed: Option<u64>,
    /// Of a dry run: how many entities readers would find added, removed and changed. `null` where it was not looked.
    entities_added: Option<u64>,
    entities_removed: Option<u64>,
    entities_changed: Option<u64>,
    online: Option<String>,
    only_unfinished: bool,
}

#[derive(Debug, Serialize)]
struct SliceReport {
    interval_start: String,
    interval_end: String,
    run: String,
    snapshot: String,
    rows: u64,
}

impl From<&Slice> for SliceReport {
    fn from(slice: &Slice) -> Self {
        Self {
            interval_start: format_instant(slice.interval.start()),
            interval_end: format_instant(slice.interval.end()),
            run: slice.run.to_string(),
            snapshot: slice.snapshot.to_string(),
            rows: slice.rows,
        }
    }
}

#[derive(Debug, Serialize)]
struct DownstreamReport {
    view: String,
    built_on_it: bool,
}

impl Report {
    pub(in crate::commands) fn nothing(asked: &Asked) -> Self {
        Self {
            restore: None,
            asked: asked.target.to_string(),
            state: "nothing_to_do",
            views: Vec::new(),
            holds: Vec::new(),
            while_held: asked.hold_policy.to_string(),
            downstream: Vec::new(),
            consumers: Vec::new(),
            datasets: Vec::new(),
            superseded_runs: Vec::new(),
            stopped_runs: Vec::new(),
            actor: None,
            reason: None,
            begun_at: None,
            took_ms: None,
            validation: None,
        }
    }

    pub(in crate::commands) fn of_plan(planned: &Planned, effects: &IndexMap<ViewId, Effect>, dry_run: bool) -> Self {
        let request = &planned.request;
        let views = request.plan.views.iter().map(|(view, what)| {
            let effect = effects.get(view);
            ViewReport {
                files_added: effect.map(|effect| effect.table.files_added),
                files_removed: effect.map(|effect| effect.table.files_removed),
                rows_added: effect.map(|effect| effect.table.rows_added),
                rows_removed: effect.map(|effect| effect.table.rows_removed),
                online: effect.and_then(|effect| way(effect.online)),
                ..ViewReport::of(view, what)
            }
        });
        let downstream = planned
            .downstream
            .iter()
            .map(|below| DownstreamReport { view: below.view.to_string(), built_on_it: below.built_on_it });
        Self {
            restore: None,
            asked: request.plan.asked.clone(),
            state: if dry_run { "dry_run" } else { "planned" },
            views: views.collect(),
            holds: request.plan.holds.iter().map(ToString::to_string).collect(),
            while_held: request.plan.hold_policy.to_string(),
            downstream: downstream.collect(),
            consumers: Vec::new(),
            datasets: Vec::new(),
            superseded_runs: request.supersedes.iter().map(ToString::to_string).collect(),
            stopped_runs: request.stops.iter().map(|(run, _)| run.to_string()).collect(),
            actor: None,
            reason: None,
            begun_at: None,
            took_ms: None,
            validation: None,
        }
    }

    /// Adds who was given what is taken back: consumers by their definitions, datasets by what they were built from.
    pub(in crate::commands) async fn find_reach(
        &mut self,
        planned: &Planned,
        registry: &Registry,
    ) -> anyhow::Result<()> {
        let touched: Vec<ViewId> = planned
            .request
            .plan
            .views
            .keys()
            .cloned()
            .chain(planned.downstream.iter().map(|below| below.view.clone()))
            .collect();
        self.consumers = registry.project.consumers_of(&touched).map(Consumer::label).collect();
        let leaving = planned
            .request
            .plan
            .views
            .iter()
            .flat_map(|(view, what)| what.leaves.iter().map(move |slice| (view.clone(), slice.snapshot)));
        let filter = DatasetFilter { built_from: Some(leaving.collect()), ..DatasetFilter::default() };
        let datasets = registry.store.datasets(&filter).await.context("looking for datasets")?;
        self.datasets = datasets
            .iter()
            .map(|dataset| DatasetReport {
                dataset: dataset.id.to_string(),
                name: dataset.name.clone(),
                created_at: format_instant(dataset.created_at),
                actor: dataset.actor.clone(),
                out: dataset.place.clone(),
            })
            .collect();
        Ok(())
    }

    /// Adds how many entities would change, by reading what they are and what they would be.
    pub(in crate::commands) async fn count_entities(
        &mut self,
        planned: &Planned,
        registry: &Registry,
        context: &Context,
    ) -> anyhow::Result<()> {
        let settings = context.settings()?;
        let scratch = Scratch::new();
        let engine = Arc::new(Engine::new(settings.memory_bytes, &scratch.0)?);
        let (lake, project) = (engine::lake(&settings)?, Arc::new(registry.project.clone()));
        for (report, (view, what)) in self.views.iter_mut().zip(&planned.request.plan.views) {
            let definition = project.views.get(view).with_context(|| format!("`{view}` is not defined"))?;
            let number = registry.store.snapshots(None, Some(view), 1).await?.first().map_or(0, |newest| newest.number);
            let now = ViewState::of(&registry.store.as_of(view, number).await?);
            // A state that is put together from several versions is not read beforehand.
            let Ok(then) = ViewState::after(what, definition.output) else { continue };
            let found = compare_states(&engine, &lake, &project, view, [now, then], 0).await;
            let found = found.with_context(|| format!("looking at what would change in `{view}`"))?;
            report.entities_added = Some(found.added);
            report.entities_removed = Some(found.removed);
            report.entities_changed = Some(found.changed);
        }
        Ok(())
    }

    /// A restore that was begun.
    pub(in crate::commands) fn of_done(restore: &Restore) -> Self {
        let views = restore.plan.views.iter().map(|(view, what)| ViewReport::of(view, what));
        Self {
            restore: Some(restore.id.to_string()),
            asked: restore.plan.asked.clone(),
            state: if restore.recorded_at.is_some() { "done" } else { "under_way" },
            views: views.collect(),
            holds: restore.plan.holds.iter().map(ToString::to_string).collect(),
            while_held: restore.plan.hold_policy.to_string(),
            downstream: Vec::new(),
            consumers: Vec::new(),
            datasets: Vec::new(),
            superseded_runs: Vec::new(),
            stopped_runs: Vec::new(),
            actor: Some(restore.actor.clone()),
            reason: Some(restore.reason.clone()),
            begun_at: Some(format_instant(restore.begun_at)),
            took_ms: restore.took_ms,
            validation: restore.validation.clone(),
        }
    }

    /// For people.
    pub(in crate::commands) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("restore", self.restore.clone().unwrap_or_default()),
            ("asked", self.asked.clone()),
            ("state", self.state.replace('_', " ")),
            ("reason", self.reason.clone().unwrap_or_default()),
            ("by", self.actor.clone().unwrap_or_default()),
            ("begun", self.begun_at.clone().unwrap_or_default()),
            ("took", self.took_ms.map(|took| format!("{} s", took as f64 / 1e3)).unwrap_or_default()),
        ];
        let views = self.views.iter().map(ViewReport::cells);
        lines.push(("views", grid(&["VIEW", "LEAVE", "COME BACK", "ROWS", "NEWEST UNTIL", "ONLINE"], views)));
        let changing = self.views.iter().filter_map(ViewReport::entities);
        lines.push(("entities", changing.collect::<Vec<_>>().join("\n")));
        let leaving = self.views.iter().flat_map(|view| {
            view.leaves.iter().map(|slice| {
                vec![
                    view.view.clone(),
                    format!("{}/{}", slice.interval_start, slice.interval_end),
                    slice.rows.to_string(),
                    slice.run.clone(),
                ]
            })
        });
        let leaving: Vec<_> = leaving.collect();
        if !leaving.is_empty() {
            lines.push(("leaves", grid(&["VIEW", "INTERVAL", "ROWS", "RUN"], leaving)));
        }
        lines.push(("held", format!("{} ({})", self.holds.join(", "), self.while_held)));
        let below = self.downstream.iter().map(|below| {
            let built = if below.built_on_it { "computed from what is taken back" } else { "not touched by it" };
            format!("{}: held with it; {built}", below.view)
        });
        lines.push(("downstream", below.collect::<Vec<_>>().join("\n")));
        if self.downstream.iter().any(|below| below.built_on_it) {
            lines.push(("", "`--cascade` takes those back, too, that were computed from it".to_owned()));
        }
        lines.push(("read by", self.consumers.join("\n")));
        let built: Vec<String> = self.datasets.iter().map(DatasetReport::line).collect();
        lines.push(("datasets", some_of(&built, "datasets")));
        lines.push(("superseded", some_of(&self.superseded_runs, "runs")));
        lines.push(("stopped", some_of(&self.stopped_runs, "runs")));
        if let Some(validation) = &self.validation {
            let verdict = if validation.passed { "everything is as promised" } else { "NOT as promised" };
            lines.push(("checked", format!("{verdict}\n{}", validation.findings.join("\n"))));
        }
        lines
    }
}

/// A dataset that was built from what is taken back.
#[derive(Debug, Serialize)]
struct DatasetReport {
    dataset: String,
    name: Option<String>,
    created_at: String,
    actor: String,
    out: String,
}

impl DatasetReport {
    fn line(&self) -> String {
        let called = self.name.as_ref().unwrap_or(&self.dataset);
        format!("{called} holds what leaves: built {} by {}, {}", self.created_at, self.actor, self.out)
    }
}

/// As many of `all` as one wants to read; they are `what`.
fn some_of(all: &[String], what: &str) -> String {
    const SHOWN_MAX: usize = 5;
    let mut lines: Vec<String> = all.iter().take(SHOWN_MAX).cloned().collect();
    if all.len() > SHOWN_MAX {
        lines.push(format!("and {} more {what}", all.len() - SHOWN_MAX));
    }
    lines.join("\n")
}

fn way(online: WayOnline) -> Option<String> {
    match online {
        WayOnline::Flip { generation } => Some(format!("generation {generation} is live again at once")),
        WayOnline::Republish { rows: Some(rows) } => Some(format!("written anew from the lake: {rows} entities")),
        WayOnline::Republish { rows: None } => Some("written anew from the lake".to_owned()),
        WayOnline::Not => None,
    }
}

impl ViewReport {
    fn of(view: &ViewId, what: &ViewRestore) -> Self {
        Self {
            view: view.to_string(),
            from_version: what.from_version,
            to_version: what.table.version,
            leaves: what.leaves.iter().map(Into::into).collect(),
            comes_back: what.comes_back.iter().map(Into::into).collect(),
            newest: what.newest.as_ref().map(Into::into),
            files_added: None,
            files_removed: None,
            rows_added: None,
            rows_removed: None,
            entities_added: None,
            entities_removed: None,
            entities_changed: None,
            online: None,
            only_unfinished: what.only_unfinished,
        }
    }

    fn entities(&self) -> Option<String> {
        let (added, removed, changed) = (self.entities_added?, self.entities_removed?, self.entities_changed?);
        Some(format!("{}: {added} added, {removed} removed, {changed} changed", self.view))
    }

    fn cells(&self) -> Vec<String> {
        let rows = match (self.rows_added, self.rows_removed) {
            (Some(added), Some(removed)) => format!("+{added} −{removed}"),
            _ => "-".to_owned(),
        };
        vec![
            self.view.clone(),
            if self.only_unfinished { "unfinished".to_owned() } else { self.leaves.len().to_string() },
            self.comes_back.len().to_string(),
            rows,
            self.newest.as_ref().map_or_else(|| "nothing".to_owned(), |slice| slice.interval_end.clone()),
            self.online.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}
