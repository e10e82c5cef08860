//! Drills: a restore, rehearsed on a copy of what is live, with the code that restores.
//!
//! ```text
//! take the duty → remove what dead drills left → write down the drill → copy → scenario by scenario → remove → write down
//! ```
//!
//! The copy (`shadow.rs`) has a registry of its own (an embedded copy of the real one, as of one instant), a lake below
//! `{lake}/_drills/{id}/` and an online store beside the real one, so nothing in it needs to know that it is rehearsed:
//! planning, checking, committing, going live and comparing are what a person's restore does. The real registry, lake and
//! online store are only read, but for the drill's record.
//!
//! Whoever drills has the duty [`DUTY`], so whatever copy is there beside its own was left by a process that died.

mod scenarios;
mod shadow;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use serde_json::json;
use tidegate_registry::definitions::settings::OnlineTarget;
use tidegate_registry::drill::{DUTY, Drill, DrillCost, DrillEnd, DrillReport, DrillState, ScenarioReport};
use tidegate_registry::ids::{DrillId, ProjectName, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::store::Store;
use tidegate_registry::time::Clock;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::lake::Lake;
use crate::objects::Stores;
use crate::online::{OnlineStore, ShadowPlaces};
use crate::timing::sleep;

use self::shadow::Shadow;

/// How long the duty lasts without being taken again.
const DUTY_LEASE: Duration = Duration::from_secs(60);

/// Opens a copy of a registry: a file that [`tidegate_registry::care::Care::backup`] wrote.
pub type OpenCopy = Arc<dyn Fn(PathBuf) -> BoxFuture<'static, Result<Arc<dyn Store>>> + Send + Sync>;

/// Where drills leave traces, beside the lake: what it takes to remove them.
#[derive(Debug, Clone)]
pub struct DrillPlaces {
    /// The project.
    pub project: ProjectName,
    /// Its online stores.
    pub online: Vec<OnlineTarget>,
    /// Whether project time is not the time of the machines.
    pub simulated_clock: bool,
    /// A folder of this machine for copies of the registry; nobody else's.
    pub scratch: PathBuf,
}

impl DrillPlaces {
    fn online(&self, id: DrillId) -> ShadowPlaces {
        ShadowPlaces {
            targets: self.online.clone(),
            project: self.project.clone(),
            simulated_clock: self.simulated_clock,
            id,
        }
    }
}

/// What a drill works with.
#[derive(Clone)]
pub struct DrillParts {
    /// The registry.
    pub store: Arc<dyn Store>,
    /// Project time.
    pub clock: Arc<dyn Clock>,
    /// The lake, claimed for the registry.
    pub lake: Lake,
    /// Where copies go.
    pub places: DrillPlaces,
    /// How object stores are reached.
    pub stores: Stores,
    /// What computes, for drills alone: so much memory is taken and no more.
    pub engine: Arc<Engine>,
    /// Unique per process, as in `host:pid:start`.
    pub owner: String,
    /// Opens the copy of the registry.
    pub open_copy: OpenCopy,
}

impl fmt::Debug for DrillParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrillParts").field("lake", &self.lake).field("places", &self.places).finish_non_exhaustive()
    }
}

/// What a drill of `views` would copy.
///
/// # Errors
/// When the registry, the lake or the online store cannot be read.
pub async fn cost(
    store: &dyn Store,
    lake: &Lake,
    online: Option<&dyn OnlineStore>,
    project: &Project,
    views: &[ViewId],
) -> Result<DrillCost> {
    let mut cost = DrillCost::default();
    for (view, state) in store.view_states(views).await? {
        if state.newest.is_none() {
            continue;
        }
        let table = lake.copy_cost(&view, state.delta_version).await?;
        cost.files += table.files;
        cost.bytes += table.bytes;
        if let Some(version) = state.quarantine_version {
            let aside = lake.quarantine().copy_cost(&view, version).await?;
            cost.files += aside.files;
            cost.bytes += aside.bytes;
        }
        let is_online = project.views.get(&view).is_some_and(|definition| definition.online.is_some());
        if let (Some(online), Some(generation)) = (online.filter(|_| is_online), state.online_generation) {
            cost.entities += online.rows_kept(&view, generation).await?;
        }
    }
    Ok(cost)
}

/// Removes what drills left whose processes died, and writes that down; how many. `None` while somebody drills.
///
/// # Errors
/// When a place cannot be reached: what is left there is found again by whoever drills next.
pub async fn sweep(
    store: &dyn Store,
    lake: &Lake,
    places: &DrillPlaces,
    owner: &str,
    clock: &dyn Clock,
) -> Result<Option<usize>> {
    if !store.duty_take(DUTY, owner, DUTY_LEASE).await.context("taking the duty of drills")? {
        return Ok(None);
    }
    let swept = sweep_on_duty(store, lake, places, owner, clock).await;
    store.duty_release(DUTY, owner).await.context("letting go of the duty of drills")?;
    swept.map(Some)
}

async fn sweep_on_duty(
    store: &dyn Store,
    lake: &Lake,
    places: &DrillPlaces,
    owner: &str,
    clock: &dyn Clock,
) -> Result<usize> {
    let open = store.drills_open().await.context("looking for drills that never ended")?;
    let mut left: Vec<DrillId> = open.iter().map(|drill| drill.id).collect();
    for id in lake.shadows().await? {
        if !left.contains(&id) {
            left.push(id);
        }
    }
    remove_folder(&places.scratch).await?;
    for id in &left {
        remove_copy(lake, places, *id).await?;
        tracing::info!(drill.id = %id, "What a drill left behind is removed.");
    }
    for drill in open {
        let (state, actor, now) = (DrillState::Abandoned, owner.to_owned(), clock.now());
        let end = DrillEnd { state, report: None, actor, now, notices: Vec::new() };
        store.drill_end(drill.id, end).await.context("writing down that a drill never ended")?;
    }
    Ok(left.len())
}

/// Removes the copies of lake and online store; harmless when there are none.
async fn remove_copy(lake: &Lake, places: &DrillPlaces, id: DrillId) -> Result<()> {
    places.online(id).remove().await.with_context(|| format!("removing the online store of drill {id}"))?;
    lake.remove_shadow(id).await
}

async fn remove_folder(folder: &Path) -> Result<()> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the folder `{}`", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Carries `drill` out, which must be new, and writes it down; what it came to. With `stop` it ends early, and leaves nothing
/// behind either way.
///
/// # Errors
/// When another drill is under way, or the registry cannot be written. Trouble with the copy is part of the report.
pub async fn drill(parts: &DrillParts, drill: Drill, stop: &CancellationToken) -> Result<Drill> {
    if !parts.store.duty_take(DUTY, &parts.owner, DUTY_LEASE).await.context("taking the duty of drills")? {
        bail!("another process drills just now, and one at a time is enough: try again when it is done");
    }
    let done = tokio::select! {
        done = drill_on_duty(parts, &drill, stop) => done,
        lost = keep_duty(parts) => Err(lost),
    };
    parts.store.duty_release(DUTY, &parts.owner).await.context("letting go of the duty of drills")?;
    done
}

/// Renews the duty for as long as it can.
async fn keep_duty(parts: &DrillParts) -> anyhow::Error {
    loop {
        sleep(DUTY_LEASE / 4).await;
        match parts.store.duty_take(DUTY, &parts.owner, DUTY_LEASE).await {
            Ok(true) => {}
            Ok(false) => return anyhow::anyhow!("another process took the duty of drills: this one stops"),
            Err(error) => tracing::debug!("The duty of drills was not renewed: {error}"),
        }
    }
}

async fn drill_on_duty(parts: &DrillParts, drill: &Drill, stop: &CancellationToken) -> Result<Drill> {
    let DrillParts { store, clock, lake, places, owner, .. } = parts;
    sweep_on_duty(&**store, lake, places, owner, &**clock).await.context("removing what earlier drills left")?;
    store.drill_begin(drill).await.context("writing down that a drill begins")?;
    let begun = tokio::time::Instant::now();
    let mut report = DrillReport::default();
    let rehearsed = stop.run_until_cancelled(rehearse(parts, drill, &mut report)).await;
    let is_stopped = rehearsed.is_none();
    match rehearsed {
        Some(Ok(())) => {}
        Some(Err(error)) => report.error = Some(crate::execute::chain(&error)),
        None => report.error = Some("it was stopped".to_owned()),
    }
    let removing = tokio::time::Instant::now();
    let removed = remove_copy(lake, places, drill.id).await;
    let removed = removed.and(remove_folder(&places.scratch).await);
    report.remove_ms = millis(removing);
    report.took_ms = millis(begun);
    if let Err(error) = &removed {
        let left =
            format!("its copy could not be removed, which the next drill does: {}", crate::execute::chain(error));
        report.error.get_or_insert(left);
    }
    let all_skipped = report.scenarios.iter().all(|scenario| scenario.outcome == DrillState::Skipped);
    let state = match report.passed() {
        _ if is_stopped => DrillState::Abandoned,
        true => DrillState::Passed,
        false if report.error.is_none() && all_skipped => DrillState::Skipped,
        false => DrillState::Failed,
    };
    if removed.is_err() {
        // Without an end, so that whoever drills next removes it.
        return Ok(Drill { state, report: Some(report), ..drill.clone() });
    }
    let (_, project) = store.project(None).await.context("reading the definitions")?;
    let notices = notices(drill, state, &report, &project, clock.now());
    let end = DrillEnd { state, report: Some(report.clone()), actor: drill.actor.clone(), now: clock.now(), notices };
    let now = end.now;
    store.drill_end(drill.id, end).await.context("writing down how a drill ended")?;
    Ok(Drill { state, finished_at: Some(now), report: Some(report), ..drill.clone() })
}

/// What somebody is told of a drill.
fn notices(
    drill: &Drill,
    state: DrillState,
    report: &DrillReport,
    project: &Project,
    now: tidegate_registry::time::Instant,
) -> Vec<NewNotice> {
    let mut notices = Vec::new();
    let subject = drill.name.as_ref().map_or_else(|| drill.id.to_string(), ToString::to_string);
    let notice = |event, message: String, detail| {
        NewNotice::new(event, subject.clone(), now, message).by(&drill.actor).with(detail)
    };
    if state == DrillState::Failed {
        let failed = report.scenarios.iter().filter(|scenario| scenario.outcome == DrillState::Failed);
        let failed: Vec<&str> = failed.map(|scenario| scenario.scenario.as_str()).collect();
        let why = report.error.clone().unwrap_or_else(|| format!("not as it was: {}", failed.join(", ")));
        let detail = json!({ "drill": drill.id, "scenarios": failed });
        notices.push(notice(NoticeEvent::DrillFailed, format!("drill {} failed: {why}", drill.id), detail));
    }
    let mut slow = Vec::new();
    for (view, took_ms) in report.proven() {
        let target = project.views.get(&view).and_then(|definition| definition.restore_target);
        if let Some(target) = target.filter(|target| u128::from(took_ms) > target.as_millis()) {
            slow.push(json!({ "view": view, "took_ms": took_ms, "target_ms": target.as_millis() as u64 }));
        }
    }
    if !slow.is_empty() && state != DrillState::Abandoned {
        let message = format!("restoring {} views took longer than their targets in drill {}", slow.len(), drill.id);
        notices.push(notice(NoticeEvent::DrillSlow, message, json!({ "drill": drill.id, "views": slow })));
    }
    notices
}

/// Copies, and rehearses one scenario after the other. After one that failed the copy is made anew: nobody knows what is in it.
async fn rehearse(parts: &DrillParts, drill: &Drill, report: &mut DrillReport) -> Result<()> {
    let mut shadow: Option<Shadow> = None;
    for scenario in drill.scenarios.iter().copied() {
        let copied = match shadow.take() {
            Some(shadow) => shadow,
            None => {
                let begun = tokio::time::Instant::now();
                let copied = Shadow::make(parts, drill.id, &drill.views).await?;
                report.copy_ms += millis(begun);
                report.cost = copied.cost;
                report.left_out.clone_from(&copied.left_out);
                copied
            }
        };
        if copied.views.is_empty() {
            copied.close().await;
            let why = "none of the views has anything published that could be taken back";
            report.scenarios = drill.scenarios.iter().map(|scenario| skipped(*scenario, why)).collect();
            return Ok(());
        }
        let (came, rehearsed) = scenarios::rehearse(copied, scenario).await;
        let failed = rehearsed.outcome == DrillState::Failed;
        tracing::info!(drill.id = %drill.id, scenario = %scenario, outcome = %rehearsed.outcome, "A scenario is rehearsed.");
        report.scenarios.push(rehearsed);
        match came {
            Some(came) if !failed => shadow = Some(came),
            came => {
                if let Some(came) = came {
                    came.close().await;
                }
                remove_copy(&parts.lake, &parts.places, drill.id).await?;
                remove_folder(&parts.places.scratch).await?;
            }
        }
    }
    if let Some(shadow) = shadow {
        shadow.close().await;
    }
    Ok(())
}

/// Milliseconds since then.
fn millis(since: tokio::time::Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A scenario that makes no sense here.
fn skipped(scenario: tidegate_registry::drill::Scenario, why: &str) -> ScenarioReport {
    let (outcome, findings) = (DrillState::Skipped, vec![why.to_owned()]);
    ScenarioReport { scenario, outcome, views: Vec::new(), phases: None, findings }
}
