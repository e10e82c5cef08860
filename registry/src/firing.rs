//! Recipes that something triggers: what happened, which recipes wait for that, and how far each is.
//!
//! Nothing that happens knows of recipes. Whatever can trigger one leaves an audit event, and those come one after another
//! ([`crate::audit`]): so a look ([`look`]) reads the events since the last one, decides ([`triggered`], a pure function),
//! and stores what it found together with the place up to which it has looked. Nothing is missed, nothing is found twice,
//! whoever looks and however often. A [`Firing`] is then carried out step by step; each move is made on what was read
//! ([`Triggering::firing_move`]), and a restore is known by its id before it begins, so a crash in the middle goes on.
//!
//! What a recipe does never triggers one: its actor ([`actor`]) is nobody's.

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use crate::audit::AuditEvent;
use crate::ids::{FiringId, RecipeName, RunId, SnapshotId, ViewId};
use crate::model::{Project, Recipe, RecipeStep, Trigger, glob};
use crate::plan::DefinitionKind;
use crate::run::{CheckResult, Verdict};
use crate::store::{CheckFilter, Result, Store, StoreError};
use crate::time::Instant;

/// What was seen so long after it happened triggers nothing any more: by then somebody has gone about it by other means.
pub const STALE_AFTER: std::time::Duration = std::time::Duration::from_secs(3_600);

/// So many firings are looked back on for what has to cool down.
const KNOWN_MAX: u32 = 1_000;

/// Actions of the audit trail that can trigger a recipe, and `apply`, which says since when there is one.
pub const ACTIONS: &[&str] =
    &["publish", "restore_validate", "online_differ", "snapshot_mark_bad", "incident_open", "apply"];

/// What actors of triggered recipes begin with; no person's name has a space.
const ACTOR: &str = "recipe ";

/// Who acts when `trigger` has triggered `recipe`, in the audit trail and for the restore policy.
pub fn actor(recipe: &RecipeName, trigger: Trigger) -> String {
    format!("{ACTOR}{recipe} on {trigger}")
}

/// Something that can trigger recipes.
#[derive(Debug, Clone, PartialEq)]
pub struct Occurrence {
    /// What.
    pub trigger: Trigger,
    /// The audit event that tells of it.
    pub number: i64,
    /// What it happened to: a snapshot, a restore; `event N` where it is nothing that can be named.
    pub subject: String,
    /// The snapshot that it is about.
    pub snapshot: Option<SnapshotId>,
    /// The views, each with the checks that did not hold, where checks are what it is about.
    pub views: Vec<(ViewId, Vec<String>)>,
    /// In a sentence.
    pub reason: String,
    /// How long ago it was written down.
    pub age: std::time::Duration,
}

/// A recipe about to be triggered.
#[derive(Debug, Clone, PartialEq)]
pub struct NewFiring {
    /// The recipe.
    pub recipe: RecipeName,
    /// What triggers it.
    pub trigger: Trigger,
    /// See [`Occurrence::subject`]: together with recipe and trigger there is one firing of it.
    pub subject: String,
    /// See [`Occurrence::number`].
    pub number: i64,
    /// See [`Occurrence::snapshot`].
    pub snapshot: Option<SnapshotId>,
    /// Those of its views that it is about.
    pub views: Vec<ViewId>,
    /// What is done, as it was when the recipe was triggered.
    pub steps: Vec<RecipeStep>,
    /// Why.
    pub reason: String,
    /// Why it is not carried out after all.
    pub passed_over: Option<String>,
}

/// How far a recipe is that was triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FiringState {
    /// It is to be carried out, or under way.
    Due,
    /// It waits for a second person.
    Waiting,
    /// All its steps are done.
    Done,
    /// A step could not be done: a person has to look.
    Stopped,
    /// It was not carried out.
    PassedOver,
}

impl FiringState {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::PassedOver => "passed_over",
        }
    }

    /// Whether there is something left to do.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Due | Self::Waiting)
    }
}

impl std::fmt::Display for FiringState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for FiringState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Due, Self::Waiting, Self::Done, Self::Stopped, Self::PassedOver];
        all.into_iter().find(|state| state.as_str() == text).ok_or_else(|| format!("`{text}` is no state of a recipe"))
    }
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiringProgress {
    /// Its state.
    pub state: FiringState,
    /// Steps that are done, from the first.
    pub steps_done: u32,
    /// The restore that the next step is, from before it begins until it is done.
    pub restore: Option<RunId>,
    /// What it waits for, why it stopped, or what went wrong last.
    pub outcome: Option<String>,
}

/// A recipe that was triggered.
#[derive(Debug, Clone, PartialEq)]
pub struct Firing {
    /// Its id.
    pub id: FiringId,
    /// What triggered what.
    pub what: NewFiring,
    /// When, in project time.
    pub fired_at: Instant,
    /// How far it is.
    pub progress: FiringProgress,
    /// When it ended, in project time.
    pub ended_at: Option<Instant>,
}

impl Firing {
    /// Who acts.
    pub fn actor(&self) -> String {
        actor(&self.what.recipe, self.what.trigger)
    }
}

/// What happened since somebody looked last.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    /// Up to which event somebody has looked.
    pub seen: i64,
    /// Up to which event `events` reach.
    pub until: i64,
    /// Those whose action is one of [`ACTIONS`], oldest first.
    pub events: Vec<AuditEvent>,
    /// Now, by the database's clock.
    pub now: Instant,
}

/// The part of the registry that keeps what triggers recipes; beside [`Store`], whose semantics hold here too.
#[async_trait]
pub trait Triggering {
    /// What the audit trail has gained since the last look.
    async fn happened(&self) -> Result<Happened>;

    /// Notes that somebody has looked from `seen` to `until`, and what is triggered by it, each with audit event and notice.
    /// What was triggered before is left out.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when somebody else has looked since.
    async fn firings_add(&self, seen: i64, until: i64, firings: &[NewFiring], now: Instant) -> Result<()>;

    /// Recipes that were triggered, newest first; at most `limit` (0: all).
    async fn firings(&self, limit: u32) -> Result<Vec<Firing>>;

    /// Those of which something is left to do, oldest first.
    async fn firings_open(&self) -> Result<Vec<Firing>>;

    /// Notes how far `firing` is now, as it was read; its end with audit event and notice.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when somebody else has moved it since.
    async fn firing_move(&self, firing: &Firing, progress: &FiringProgress, now: Instant) -> Result<()>;
}

/// The recipes that `occurrence` triggers. `applied` says by which audit event a recipe came to be as it is, `latest` when it
/// was last triggered for a view.
pub fn triggered(
    project: &Project,
    occurrence: &Occurrence,
    applied: impl Fn(&Recipe) -> i64,
    latest: impl Fn(&Recipe, &ViewId) -> Option<Instant>,
    now: Instant,
) -> Vec<NewFiring> {
    let waiting = project.recipes.values().filter(|recipe| recipe.on.contains(&occurrence.trigger));
    let mut firings = Vec::new();
    for recipe in waiting.filter(|recipe| applied(recipe) < occurrence.number) {
        let about: Vec<&(ViewId, Vec<String>)> =
            occurrence.views.iter().filter(|about| means(project, recipe, about)).collect();
        let failed = about.iter().flat_map(|(view, failed)| failed.iter().map(move |name| format!("{name} of {view}")));
        let failed: Vec<String> = failed.collect();
        let reason = match failed.is_empty() {
            true => occurrence.reason.clone(),
            false => format!("{}: {}", occurrence.reason, failed.join(", ")),
        };
        let views: Vec<ViewId> = about.iter().map(|(view, _)| view.clone()).collect();
        if views.is_empty() {
            continue;
        }
        let cooldown = chrono::Duration::seconds(i64::try_from(recipe.cooldown_secs).unwrap_or(i64::MAX / 1_000));
        let hot = views.iter().filter_map(|view| latest(recipe, view)).max().filter(|last| now - *last < cooldown);
        let passed_over = if occurrence.age > STALE_AFTER {
            Some("nobody looked for more than an hour".to_owned())
        } else {
            hot.map(|_| format!("it was triggered for the same view less than {} s before", recipe.cooldown_secs))
        };
        firings.push(NewFiring {
            recipe: recipe.name.clone(),
            trigger: occurrence.trigger,
            subject: occurrence.subject.clone(),
            number: occurrence.number,
            snapshot: occurrence.snapshot,
            views,
            steps: recipe.steps.clone(),
            reason,
            passed_over,
        });
    }
    firings
}

/// Whether `recipe` is for this view; where checks failed and it names checks, for one of these.
fn means(project: &Project, recipe: &Recipe, (view, failed): &(ViewId, Vec<String>)) -> bool {
    let Some(view) = project.views.get(view) else { return false };
    let checks = &recipe.matching.checks;
    recipe.matching.means(view)
        && (failed.is_empty()
            || checks.is_empty()
            || failed.iter().any(|name| checks.iter().any(|pattern| glob(pattern, name))))
}

/// Looks at all that happened since the last look, and notes what is triggered by it, by the definitions in force. Returns
/// how much.
///
/// # Errors
/// When the registry cannot be read or written. That somebody else looks at the same time is none.
pub async fn look(store: &dyn Store, project: &Project, now: Instant) -> Result<usize> {
    let mut found = 0;
    loop {
        let happened = store.happened().await?;
        if happened.seen == happened.until {
            return Ok(found);
        }
        let firings = match project.recipes.values().any(|recipe| !recipe.on.is_empty()) {
            true => all_triggered(store, project, &happened, now).await?,
            false => Vec::new(),
        };
        match store.firings_add(happened.seen, happened.until, &firings, now).await {
            Ok(()) => found += firings.len(),
            Err(StoreError::Conflict(_)) => return Ok(found),
            Err(error) => return Err(error),
        }
    }
}

async fn all_triggered(
    store: &dyn Store,
    project: &Project,
    happened: &Happened,
    now: Instant,
) -> Result<Vec<NewFiring>> {
    let mut firings: Vec<NewFiring> = Vec::new();
    let applied = applied(store, project, happened).await?;
    let known = store.firings(KNOWN_MAX).await?;
    for event in &happened.events {
        let Some(occurrence) = occurrence(store, project, event, happened.now).await? else { continue };
        let latest = |recipe: &Recipe, view: &ViewId| {
            let of = |what: &NewFiring| {
                what.recipe == recipe.name && what.passed_over.is_none() && what.views.contains(view)
            };
            let before = known.iter().filter(|firing| of(&firing.what)).map(|firing| firing.fired_at);
            before.chain(firings.iter().filter(|new| of(new)).map(|_| now)).max()
        };
        let applied = |recipe: &Recipe| applied.get(&recipe.name).copied().unwrap_or(0);
        let new = triggered(project, &occurrence, applied, latest, now);
        firings.extend(new);
    }
    Ok(firings)
}

/// By which event of `happened` recipes came to be as they are; those that are older are left out.
async fn applied(
    store: &dyn Store,
    project: &Project,
    happened: &Happened,
) -> Result<std::collections::HashMap<RecipeName, i64>> {
    let applies: Vec<(i64, i64)> = happened
        .events
        .iter()
        .filter(|event| event.what.action == "apply")
        .filter_map(|event| Some((event.what.after.as_ref()?.get("revision")?.as_i64()?, event.number)))
        .collect();
    let mut found = std::collections::HashMap::new();
    if applies.is_empty() {
        return Ok(found);
    }
    for recipe in project.recipes.values().filter(|recipe| !recipe.on.is_empty()) {
        let versions = store.definition_versions(DefinitionKind::Recipe, recipe.name.as_str()).await?;
        let since = versions.first().map(|version| version.since);
        if let Some((_, number)) = applies.iter().find(|(revision, _)| Some(*revision) == since) {
            found.insert(recipe.name.clone(), *number);
        }
    }
    Ok(found)
}

/// What an audit event says has happened; `None` when it can trigger nothing.
async fn occurrence(
    store: &dyn Store,
    project: &Project,
    event: &AuditEvent,
    now: Instant,
) -> Result<Option<Occurrence>> {
    let what = &event.what;
    if what.actor.starts_with(ACTOR) {
        return Ok(None);
    }
    let reason = what.reason.clone().unwrap_or_default();
    let unnamed = format!("event {}", event.number);
    let plain = |views: Vec<ViewId>| views.into_iter().map(|view| (view, Vec::new())).collect::<Vec<_>>();
    let (trigger, subject, snapshot, views, reason) = match what.action.as_str() {
        "publish" => {
            let waited_for = |recipe: &Recipe| recipe.on.contains(&Trigger::CheckFailedAfterPublish);
            let (true, Ok(run)) = (project.recipes.values().any(waited_for), what.subject.parse::<RunId>()) else {
                return Ok(None);
            };
            let failed = failed_checks(store, run).await?;
            let snapshot = SnapshotId(run.0);
            let reason = "published though checks do not hold".to_owned();
            (Trigger::CheckFailedAfterPublish, snapshot.to_string(), Some(snapshot), failed, reason)
        }
        "restore_validate" if what.detail.get("passed") == Some(&Value::Bool(false)) => {
            let Ok(id) = what.subject.parse::<RunId>() else { return Ok(None) };
            let restore = match store.restore_of(id).await {
                Ok(restore) => restore,
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            if restore.actor.starts_with(ACTOR) {
                return Ok(None);
            }
            let views = plain(restore.plan.views.keys().cloned().collect());
            (Trigger::ValidationFailed, id.to_string(), None, views, format!("the restore {id} is not as promised"))
        }
        "online_differ" => {
            let views = plain(what.subject.parse().into_iter().collect());
            let reason = format!("online differs from the lake in {}", what.subject);
            (Trigger::OnlineDiffers, unnamed, None, views, reason)
        }
        "snapshot_mark_bad" => {
            let Ok(id) = what.subject.parse::<SnapshotId>() else { return Ok(None) };
            let snapshot = match store.snapshot(id).await {
                Ok(snapshot) => snapshot,
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let views = plain(snapshot.views.into_iter().map(|view| view.view).collect());
            let reason = format!("{} marked it as bad: {reason}", what.actor);
            (Trigger::MarkedBad, id.to_string(), Some(id), views, reason)
        }
        "incident_open" => {
            let named = what.detail.get("views").and_then(Value::as_array);
            let named = named.into_iter().flatten().filter_map(Value::as_str);
            let views = plain(named.filter_map(|name| name.parse().ok()).collect());
            (Trigger::Incident, unnamed, None, views, format!("{} says: {reason}", what.actor))
        }
        _ => return Ok(None),
    };
    let age = event.recorded_at.and_then(|at| (now - at).to_std().ok()).unwrap_or_default();
    Ok((!views.is_empty()).then_some(Occurrence {
        trigger,
        number: event.number,
        subject,
        snapshot,
        views,
        reason,
        age,
    }))
}

/// The views of a run with the checks that did not hold and let it through all the same.
async fn failed_checks(store: &dyn Store, run: RunId) -> Result<Vec<(ViewId, Vec<String>)>> {
    let filter = CheckFilter { run: Some(run), ..CheckFilter::default() };
    let failed = |result: &CheckResult| matches!(result.verdict, Verdict::Failed | Verdict::Error);
    let mut views: Vec<(ViewId, Vec<String>)> = Vec::new();
    // What a person let through was looked at by that person.
    for row in store.checks(&filter).await?.into_iter().filter(|row| failed(&row.result) && !row.result.overridden) {
        match views.iter_mut().find(|(view, _)| *view == row.view) {
            Some((_, checks)) => checks.push(row.result.check),
            None => views.push((row.view, vec![row.result.check])),
        }
    }
    Ok(views)
}
