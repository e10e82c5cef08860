//! The steps of a run, over the lake and the online store of the simulation: the same protocol as `execute` and
//! `publish`, with content that can be foretold.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use indexmap::IndexMap;
use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::model::{Project, Severity};
use tidegate_registry::profile::ViewProfile;
use tidegate_registry::run::{
    CheckResult, Claim, Intent, PinnedFile, Pins, SourcePin, StagedView, TaskKind, TaskOutput, Verdict, ViewPin,
};
use tidegate_registry::store::{IntentRequest, Record, Store, StoreError, TaskEnd, ViewIntentRequest, ViewRecord};
use tidegate_registry::time::Clock;

use super::actor::Actor;
use super::project::{content, parents};
use super::world::{Commit, Move, Settled, hash};
use crate::execute::{chain, is_lost_lease, is_registry_outage};
use crate::executor::{Executor, Outcome};
use crate::publish::pins_of;
use crate::timing::sleep;

const SECOND: Duration = Duration::from_secs(1);

/// Executes tasks in no time, when nothing goes wrong.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) actor: Arc<Actor>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
}

#[async_trait]
impl Executor for Model {
    async fn execute(&self, claim: &Claim, _project: Arc<Project>) -> Result<Outcome> {
        let done = match &claim.kind {
            TaskKind::Pin => self.pin(claim).await,
            TaskKind::View(view) => self.stage(claim, view).await,
            TaskKind::Publish => self.publish(claim).await,
            TaskKind::Restore => Err(anyhow::anyhow!("nothing is restored here")),
        };
        match done {
            Ok(outcome) => Ok(outcome),
            Err(error) if is_lost_lease(&error) => Err(error),
            Err(error) if is_registry_outage(&error) => {
                Ok(Outcome::End(TaskEnd::Released { retry_in: SECOND, reason: Some(chain(&error)) }))
            }
            Err(error) => Ok(Outcome::End(TaskEnd::Failed { error: chain(&error), retry_in: Some(SECOND) })),
        }
    }

    async fn discard(&self, run: RunId, _views: &[ViewId]) {
        let gone = self.actor.remote("discard", move |outside| outside.files.retain(|(of, _)| *of != run)).await;
        drop(gone);
    }

    async fn discard_other_attempts(&self, run: RunId, view: &ViewId, staged: &StagedView) {
        if let Ok(file) = file_of(staged) {
            let folder = format!("{view}/");
            let keep = move |of: RunId, path: &String| of != run || !path.starts_with(&folder) || *path == file;
            let gone =
                self.actor.remote("discard others", move |outside| outside.files.retain(|(of, path)| keep(*of, path)));
            drop(gone.await);
        }
    }
}

fn file_of(staged: &StagedView) -> Result<String> {
    let path = staged.adds.first().and_then(|add| add["path"].as_str());
    path.map(str::to_owned).context("nothing was staged")
}

fn ended(end: TaskEnd) -> Result<Outcome> {
    Ok(Outcome::End(end))
}

impl Model {
    async fn pin(&self, claim: &Claim) -> Result<Outcome> {
        let mut pins = Pins::default();
        let version = self.actor.remote("look at the source", |outside| outside.source).await?;
        pins.sources.insert("source".to_owned(), pin_of(version));
        let mut views = claim.run.views.clone();
        for view in &claim.run.views {
            views.extend(parents(view));
        }
        views.dedup();
        let states = self.store.view_states(&views).await?;
        for view in views {
            let newest = self.store.ledger(&view, Some(claim.run.interval.end()), 1).await?;
            let state = newest.first().map(|entry| entry.interval);
            let delta_version = states[&view].delta_version;
            pins.views.insert(view, ViewPin { delta_version, state });
        }
        ended(TaskEnd::Succeeded { output: TaskOutput::Pins(pins), rows: None })
    }

    async fn stage(&self, claim: &Claim, view: &ViewId) -> Result<Outcome> {
        let interval = claim.run.interval;
        let mut read = Vec::new();
        for parent in parents(view) {
            read.push(match claim.inputs.get(&parent.to_string()) {
                Some(TaskOutput::Staged(staged)) => staged.digest.clone(),
                _ => self.read(claim, parent).await?,
            });
        }
        if *self.actor.world.storm.lock().unwrap() && self.actor.world.dice(25) == 0 {
            anyhow::bail!("out of luck");
        }
        let digest = content(view, interval, &read);
        let file = format!("{view}/{}-{}", claim.run.restarts, claim.attempt);
        let (run, path) = (claim.run.id, file.clone());
        self.actor.remote("stage", move |outside| outside.files.insert((run, path))).await?;
        let seed = self.actor.world.seed;
        let is_bad = claim.run.revision == 0 && hash(&format!("{seed} {view} {interval}")).is_multiple_of(8);
        let check = CheckResult {
            check: "luck".to_owned(),
            severity: Severity::Block,
            verdict: if is_bad { Verdict::Failed } else { Verdict::Passed },
            message: "as the seed will have it".to_owned(),
            failing_rows: 0,
            samples: Vec::new(),
            overridden: false,
        };
        let staged = StagedView {
            adds: vec![serde_json::json!({ "path": file })],
            rows: 1,
            bytes: 1,
            digest,
            checks: vec![check],
            profile: IndexMap::new(),
            quarantine: None,
        };
        if is_bad {
            let reason = "a check said so".to_owned();
            return ended(TaskEnd::Blocked { output: Some(TaskOutput::Staged(staged)), reason });
        }
        ended(TaskEnd::Succeeded { output: TaskOutput::Staged(staged), rows: Some(1) })
    }

    /// The pinned state of `parent`, by the pinned version of its table.
    async fn read(&self, claim: &Claim, parent: ViewId) -> Result<String> {
        let pins = pins_of(claim);
        let pin = pins.views.get(&parent).with_context(|| format!("`{parent}` is not pinned"))?.clone();
        let of = pin.state.with_context(|| format!("`{parent}` has published nothing yet"))?;
        let found = self.actor.remote("read", move |outside| {
            let log = &outside.tables.get(&parent)?.log;
            let log = log.get(..usize::try_from(pin.delta_version).ok()?)?;
            log.iter().rev().find(|commit| commit.interval == of).map(|commit| commit.digest.clone())
        });
        found.await?.context("what was recorded is not in the table")
    }

    async fn publish(&self, claim: &Claim) -> Result<Outcome> {
        let staged = self.staged(claim)?;
        let intent = match self.store.intent(claim.run.id).await? {
            Some(intent) => intent,
            None => match self.take_intent(claim, &staged).await? {
                Ok(intent) => intent,
                Err(end) => return ended(end),
            },
        };
        let mut versions = IndexMap::new();
        for (view, what) in &intent.views {
            match self.commit(claim, view, what.publish_number, &staged[view]).await? {
                Some(version) => versions.insert(view.clone(), version),
                None => return ended(TaskEnd::Superseded { reason: format!("{view} was overtaken") }),
            };
        }
        let Some(generations) = self.go_online(claim, &intent, &staged).await? else {
            return ended(TaskEnd::Superseded { reason: "a later publication is live".to_owned() });
        };
        for (view, staged) in &staged {
            self.discard_other_attempts(claim.run.id, view, staged).await;
        }
        let record = self.record_of(claim, &intent, &staged, &versions, &generations);
        match self.store.record(claim.token, record, self.clock.now()).await {
            Ok(()) => Ok(Outcome::Recorded),
            Err(StoreError::Superseded { view }) => {
                ended(TaskEnd::Superseded { reason: format!("{view} was overtaken") })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn staged(&self, claim: &Claim) -> Result<IndexMap<ViewId, StagedView>> {
        let of = |view: &ViewId| match claim.inputs.get(&view.to_string()) {
            Some(TaskOutput::Staged(staged)) => Ok((view.clone(), staged.clone())),
            _ => anyhow::bail!("`{view}` was not staged"),
        };
        claim.run.views.iter().map(of).collect()
    }

    async fn take_intent(
        &self,
        claim: &Claim,
        staged: &IndexMap<ViewId, StagedView>,
    ) -> Result<Result<Intent, TaskEnd>> {
        let version = self.actor.remote("look at the source", |outside| outside.source).await?;
        if pins_of(claim).sources.get("source") != Some(&pin_of(version)) {
            return Ok(Err(TaskEnd::PinsChanged { reason: "the source changed".to_owned() }));
        }
        for _ in 0..10 {
            let states = self.store.view_states(&claim.run.views).await?;
            if states.values().any(|state| state.publishing.is_some_and(|run| run != claim.run.id)) {
                break;
            }
            let request = |(view, staged): (&ViewId, &StagedView)| {
                (view.clone(), ViewIntentRequest { records: states[view].records, checks: staged.checks.clone() })
            };
            let request = IntentRequest { views: staged.iter().map(request).collect(), holds: 0 };
            match self.store.intent_take(claim.token, request, self.clock.now()).await {
                Ok(intent) => return Ok(Ok(intent)),
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let reason = Some("waiting for other publications".to_owned());
        Ok(Err(TaskEnd::Released { retry_in: SECOND, reason }))
    }

    /// The version at which it landed; `None` when it was overtaken.
    async fn commit(&self, claim: &Claim, view: &ViewId, number: u64, staged: &StagedView) -> Result<Option<u64>> {
        let commit = Commit {
            publish_number: number,
            interval: claim.run.interval,
            run: claim.run.id,
            file: file_of(staged)?,
            digest: staged.digest.clone(),
        };
        let mut last = None;
        for _ in 0..5 {
            let (of, run) = (view.clone(), claim.run.id);
            match self.actor.remote("load", move |outside| outside.settled(&of, number, run)).await {
                Ok(Settled::Done(version)) => return Ok(Some(version)),
                Ok(Settled::Superseded) => return Ok(None),
                Ok(Settled::Open(version)) => {
                    let (of, commit) = (view.clone(), commit.clone());
                    match self.actor.remote("commit", move |outside| outside.commit(&of, version, commit)).await {
                        Ok(true) => return Ok(Some(version + 1)),
                        Ok(false) => {}
                        Err(error) => last = Some(error),
                    }
                }
                Err(error) => last = Some(error),
            }
            sleep(Duration::from_millis(40)).await;
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("rivals were always first")))
    }

    /// The generations that are live then; `None` when a later one is.
    async fn go_online(
        &self,
        claim: &Claim,
        intent: &Intent,
        staged: &IndexMap<ViewId, StagedView>,
    ) -> Result<Option<IndexMap<ViewId, u64>>> {
        let mut generations = IndexMap::new();
        let mut moves = Vec::new();
        for (view, what) in intent.views.iter().filter(|(_, what)| what.online) {
            let (of, number, digest) = (view.clone(), what.publish_number, staged[view].digest.clone());
            self.actor.remote("fill", move |outside| outside.generations.insert((of, number), digest)).await?;
            moves.push(Move { view: view.clone(), publish_number: number, interval: claim.run.interval });
            generations.insert(view.clone(), number);
        }
        let is_done = self.actor.remote("cut over", move |outside| outside.cut_over(&moves)).await?;
        Ok(is_done.then_some(generations))
    }

    fn record_of(
        &self,
        claim: &Claim,
        intent: &Intent,
        staged: &IndexMap<ViewId, StagedView>,
        versions: &IndexMap<ViewId, u64>,
        generations: &IndexMap<ViewId, u64>,
    ) -> Record {
        let of = |(view, what): (&ViewId, &tidegate_registry::run::ViewIntent)| {
            let record = ViewRecord {
                fingerprint: view.to_string(),
                publish_number: what.publish_number,
                delta_version: versions[view],
                rows: 1,
                digest: staged[view].digest.clone(),
                online_generation: generations.get(view).copied(),
                profile: serde_json::json!({}),
                summary: ViewProfile::default(),
                quarantined: 0,
                quarantine_version: None,
            };
            (view.clone(), record)
        };
        Record {
            snapshot: SnapshotId(claim.run.id.0),
            views: intent.views.iter().map(of).collect(),
            manifest: pins_of(claim),
            actor: self.actor.name.clone(),
            notices: Vec::new(),
        }
    }
}

fn pin_of(version: u64) -> SourcePin {
    let file = PinnedFile { url: "memory:///source".to_owned(), size: version, etag: None, modified_micros: 0 };
    SourcePin::Files(vec![file])
}
