//! Without any run: filling a store anew that lost its data, and comparing it with the lake.
//!
//! What should be live is what the registry recorded. Nothing here takes a publish number: a rebuilt generation goes live
//! under the number it had, so whatever was published later, or is about to be, wins.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::restore::Restore;
use tidegate_registry::store::{Snapshot, SnapshotView, StoreError};
use xxhash_rust::xxh3::xxh3_128;

use super::Serving;
use super::content::Content;
use super::fill::{encoded, fill};
use super::publication::tag;
use crate::online::{Begun, Changes, CutOver, EncodedRow, Expected, OnlineRow, Standing, defaults, encode};

/// Entities that are compared at once.
const ENTITIES_PER_STEP: usize = 1_000;
/// Entities that an audit names as examples.
const EXAMPLES: usize = 5;
/// Snapshots that are looked through first for the one that is live: it is nearly always the newest.
const SNAPSHOTS_FIRST: u32 = 20;
/// How long a process that fills a view anew may be silent before another may begin.
pub(super) const CLAIM: Duration = Duration::from_secs(120);

/// What became of a view that was to be rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebuilt {
    /// It had lost something, and has everything again.
    Filled {
        /// What was missing.
        lost: String,
        /// How many entities it has.
        rows: u64,
    },
    /// Nothing was missing, as far as can be seen without an audit.
    Whole,
    /// Nothing of it was ever published online.
    NeverPublished,
    /// A run is about to publish something newer.
    Ahead,
    /// Another process is filling it.
    Busy,
}

/// How an audit looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuditOptions {
    /// Compare about so many entities; `None` for all.
    pub sample: Option<u64>,
    /// Put right what differs.
    pub repair: bool,
}

/// What an audit of one view found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The view.
    pub view: ViewId,
    /// The snapshot it should hold; `None` when nothing was ever published online.
    pub snapshot: Option<SnapshotId>,
    /// Entities in the lake that count now.
    pub entities: u64,
    /// Entities compared.
    pub compared: u64,
    /// Entities that the online store lacks.
    pub missing: u64,
    /// Entities with other features, or other times.
    pub different: u64,
    /// Entities that only the online store has.
    pub extra: u64,
    /// Some of them: their keys, each with what is wrong.
    pub examples: Vec<String>,
    /// Feature by feature, over the entities that were compared and are in both.
    pub features: Vec<FeatureAudit>,
    /// Whether all of that was put right.
    pub repaired: bool,
}

/// One feature in an audit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeatureAudit {
    /// Its name.
    pub name: String,
    /// Entities of which both have the same, or nothing.
    pub equal: u64,
    /// Entities of which both have a value, and not the same.
    pub different: u64,
    /// Entities of which only the online store has one.
    pub null_lake: u64,
    /// Entities of which only the lake has one.
    pub null_online: u64,
    /// Some of them: the key, the lake's text and the online store's.
    pub examples: Vec<(String, Option<String>, Option<String>)>,
}

impl FeatureAudit {
    fn add(&mut self, key: &str, lake: Option<&String>, online: Option<&String>) {
        match (lake, online) {
            (lake, online) if lake == online => {
                self.equal += 1;
                return;
            }
            (None, _) => self.null_lake += 1,
            (_, None) => self.null_online += 1,
            (Some(_), Some(_)) => self.different += 1,
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push((key.to_owned(), lake.cloned(), online.cloned()));
        }
    }
}

impl Audit {
    /// Nothing was ever published online.
    fn nothing(view: &ViewId) -> Self {
        Self {
            view: view.clone(),
            snapshot: None,
            entities: 0,
            compared: 0,
            missing: 0,
            different: 0,
            extra: 0,
            examples: Vec::new(),
            features: Vec::new(),
            repaired: false,
        }
    }

    /// Per cent of the entities that are online as in the lake, of those that either has; `None` when there are none.
    pub fn entity_agreement(&self) -> Option<f64> {
        let all = self.compared + self.extra;
        (all > 0).then(|| 100.0 * (all - self.differing().min(all)) as f64 / all as f64)
    }

    /// Per cent of the values that are online as in the lake, those of missing entities included; `None` when there are none.
    pub fn value_agreement(&self) -> Option<f64> {
        let all = (self.compared + self.extra) * self.features.len() as u64;
        let equal: u64 = self.features.iter().map(|feature| feature.equal).sum();
        (all > 0).then(|| 100.0 * equal as f64 / all as f64)
    }

    /// How many entities differ.
    pub fn differing(&self) -> u64 {
        self.missing + self.different + self.extra
    }
}

/// What [`Serving::compare_some`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Entities compared.
    pub(crate) compared: u64,
    /// Those that differ: the key and how.
    pub(crate) differing: Vec<String>,
}

/// What should be live of a view, by the registry.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) content: Content,
    pub(super) expected: Expected,
    pub(super) snapshot: SnapshotId,
    /// Rows of the snapshot's slice.
    pub(super) rows: u64,
    pub(super) tag: String,
}

impl Serving {
    /// What should be live; `None` when nothing of the view was ever published online, or it is published there no more.
    pub(super) async fn recorded(&self, view: &ViewId) -> Result<Option<Recorded>> {
        let states = self.store.view_states(std::slice::from_ref(view)).await?;
        let Some(state) = states.get(view) else { return Ok(None) };
        let Some(generation) = state.online_generation else { return Ok(None) };
        let of = |snapshots: Vec<Snapshot>| {
            snapshots.into_iter().find_map(|snapshot| {
                let is_it =
                    |of_view: &&SnapshotView| of_view.view == *view && of_view.online_generation == Some(generation);
                let of_view = snapshot.views.iter().find(is_it)?.clone();
                Some((snapshot, of_view))
            })
        };
        let mut found = of(self.store.snapshots(None, Some(view), SNAPSHOTS_FIRST).await?);
        if found.is_none() {
            found = of(self.store.snapshots(None, Some(view), 0).await?);
        }
        let (snapshot, of_view) =
            found.with_context(|| format!("no snapshot published generation {generation} of `{view}`"))?;
        let (run, _) = self.store.run(snapshot.run).await?;
        let (_, project) = self.store.project(Some(run.definitions)).await?;
        let Some(definition) = project.views.get(view) else { return Ok(None) };
        if definition.online.is_none() {
            return Ok(None);
        }
        // Nothing is published any more.
        let Some(interval) = of_view.interval else { return Ok(None) };
        let tag = match self.online.live(view).await? {
            // After a restore it names the snapshot that the content comes from.
            Some(live) if live.publish_number == of_view.publish_number => live.tag,
            _ => match self.store.restore_of(snapshot.run).await {
                Ok(restore) => restored_tag(&restore, view).unwrap_or_else(|| tag(definition, snapshot.id)),
                Err(StoreError::NotFound { .. }) => tag(definition, snapshot.id),
                Err(error) => return Err(error.into()),
            },
        };
        let at = state.newest.map_or(interval.end(), |newest| newest.end().max(interval.end()));
        Ok(Some(Recorded {
            content: Content {
                project: Arc::new(project),
                view: view.clone(),
                version: of_view.delta_version,
                interval,
                at,
            },
            expected: Expected { generation, publish_number: of_view.publish_number },
            snapshot: snapshot.id,
            rows: of_view.rows,
            tag,
        }))
    }

    /// Fills `view` anew in the online store when something of it is missing there.
    ///
    /// # Errors
    /// When the registry, the lake or the online store cannot be reached, or the lake no longer has the version.
    pub async fn rebuild(&self, view: &ViewId) -> Result<Rebuilt> {
        let (serving, view) = (self.clone(), view.clone());
        self.engine.run(async move { serving.rebuild_here(&view).await }).await?
    }

    async fn rebuild_here(&self, view: &ViewId) -> Result<Rebuilt> {
        // First, so that nothing goes live without them.
        self.bring_switches(view).await?;
        let Some(recorded) = self.recorded(view).await? else { return Ok(Rebuilt::NeverPublished) };
        let standing = self.online.check(view, recorded.expected).await?;
        let lost = match standing {
            Standing::Whole => return Ok(Rebuilt::Whole),
            Standing::Ahead => return Ok(Rebuilt::Ahead),
            Standing::NotLive(lost) | Standing::Incomplete(lost) => lost,
        };
        if !self.online.claim_care(view, &self.owner, CLAIM).await? {
            return Ok(Rebuilt::Busy);
        }
        // Filling may take longer than a claim lasts.
        let filled = tokio::select! {
            filled = self.fill_again(&recorded) => filled,
            lost = self.keep_claim(view) => Err(lost),
        };
        Ok(Rebuilt::Filled { lost, rows: filled? })
    }

    async fn keep_claim(&self, view: &ViewId) -> anyhow::Error {
        loop {
            tokio::time::sleep(CLAIM / 4).await;
            match self.online.claim_care(view, &self.owner, CLAIM).await {
                Ok(true) => {}
                Ok(false) => return anyhow::anyhow!("another process took over filling `{view}`"),
                Err(error) => tracing::debug!(view = %view, "The claim on filling a view was not renewed: {error}"),
            }
        }
    }

    async fn fill_again(&self, recorded: &Recorded) -> Result<u64> {
        let (view, generation) = (&recorded.content.view, recorded.expected.generation);
        let rows = match self.online.begin_generation(view, generation).await? {
            Begun::Empty => fill(self, &recorded.content, generation).await?,
            // It was live, so it may be so now: its rows are put right one by one.
            Begun::Published => {
                self.cut_over(recorded).await?;
                let options = AuditOptions { sample: None, repair: true };
                return Ok(self.compare(recorded, options).await?.entities);
            }
        };
        self.cut_over(recorded).await?;
        Ok(rows)
    }

    async fn cut_over(&self, recorded: &Recorded) -> Result<()> {
        let Expected { generation, publish_number } = recorded.expected;
        let view = recorded.content.view.clone();
        let (tag, defaults) = (recorded.tag.clone(), defaults(recorded.content.view()?));
        self.online.cut_over(&[CutOver { view, generation, publish_number, tag, defaults }]).await?;
        Ok(())
    }

    /// Compares what is live of `view` with the lake.
    ///
    /// # Errors
    /// When something else is live than the registry says (rebuild first; or a run is publishing: try again), or the
    /// registry, the lake or the online store cannot be reached.
    pub async fn audit(&self, view: &ViewId, options: AuditOptions) -> Result<Audit> {
        let (serving, view) = (self.clone(), view.clone());
        self.engine.run(async move { serving.audit_here(&view, options).await }).await?
    }

    async fn audit_here(&self, view: &ViewId, options: AuditOptions) -> Result<Audit> {
        let Some(recorded) = self.recorded(view).await? else { return Ok(Audit::nothing(view)) };
        match self.online.live(view).await? {
            Some(live)
                if live.generation == recorded.expected.generation
                    && live.publish_number == recorded.expected.publish_number => {}
            Some(live) if live.publish_number > recorded.expected.publish_number => {
                bail!("a run is publishing `{view}` just now: try again when it is done")
            }
            _ => bail!(
                "`{view}` is not live online as it was published: `tidegate online rebuild {view}` fills it again"
            ),
        }
        let audit = self.compare(&recorded, options).await?;
        let live = self.online.live(view).await?;
        if live.is_none_or(|live| live.publish_number != recorded.expected.publish_number) {
            bail!("`{view}` was published anew while it was compared: try again");
        }
        Ok(audit)
    }

    /// Compares up to `limit` entities of a content with a generation.
    pub(crate) async fn compare_some(&self, content: &Content, generation: u64, limit: usize) -> Result<Compared> {
        let (serving, content) = (self.clone(), content.clone());
        let comparing = async move {
            let rows = content.some_rows(&serving.engine, &serving.lake, limit).await?;
            let mut compared = Compared::default();
            let now = serving.clock.now();
            for batch in rows {
                let mut rows = encode(content.view()?, content.keys()?, &batch)?;
                rows.retain(|row| row.expires_at.is_none_or(|expires_at| expires_at > now));
                let keys: Vec<String> = rows.iter().map(|row| row.entity_key.clone()).collect();
                let found = serving.online.rows(&content.view, generation, &keys).await?;
                compared.compared += rows.len() as u64;
                for (row, found) in rows.iter().zip(found) {
                    let problem = match found {
                        None => "is missing",
                        Some(found) if !is_same(row, &found, content.interval.end()) => "has other features",
                        Some(_) => continue,
                    };
                    compared.differing.push(format!("`{}` {problem}", row.entity_key));
                }
            }
            anyhow::Ok(compared)
        };
        self.engine.run(comparing).await?
    }

    async fn compare(&self, recorded: &Recorded, options: AuditOptions) -> Result<Audit> {
        let mut comparison = Comparison::new(self, recorded, options)?;
        let (mut batches, mut encoding) = encoded(self, &recorded.content).await?;
        while let Some(rows) = batches.recv().await {
            for rows in rows.chunks(ENTITIES_PER_STEP) {
                comparison.rows(rows).await?;
            }
        }
        encoding.join_next().await.context("encoding was not begun")?.context("encoding was stopped")??;
        comparison.extra().await?;
        comparison.repair().await?;
        comparison.audit.repaired = options.repair && comparison.audit.differing() > 0;
        Ok(comparison.audit)
    }
}

/// The tag that a restore gave a view: of the snapshot that the content comes from.
fn restored_tag(restore: &Restore, view: &ViewId) -> Option<String> {
    Some(restore.plan.views.get(view)?.online.as_ref()?.tag.clone())
}

/// One audit under way.
struct Comparison<'a> {
    serving: &'a Serving,
    recorded: &'a Recorded,
    options: AuditOptions,
    /// Entities whose hash is a multiple of this are compared.
    one_in: u128,
    /// Every entity of the lake: 16 bytes each.
    known: HashSet<u128>,
    changes: Changes,
    audit: Audit,
}

impl<'a> Comparison<'a> {
    fn new(serving: &'a Serving, recorded: &'a Recorded, options: AuditOptions) -> Result<Self> {
        let features = recorded.content.view()?.features.iter();
        let features = features.map(|feature| FeatureAudit { name: feature.name.clone(), ..FeatureAudit::default() });
        let audit = Audit {
            snapshot: Some(recorded.snapshot),
            features: features.collect(),
            ..Audit::nothing(&recorded.content.view)
        };
        // Whether a row is compared follows from its key, so a sample is spread evenly whatever the order.
        let one_in = options.sample.map_or(1, |sample| u128::from(recorded.rows / sample.max(1)).max(1));
        Ok(Self { serving, recorded, options, one_in, known: HashSet::new(), changes: Changes::default(), audit })
    }

    fn generation(&self) -> u64 {
        self.recorded.expected.generation
    }

    async fn rows(&mut self, rows: &[EncodedRow]) -> Result<()> {
        let now = self.serving.clock.now();
        // Expired rows may be there or not: nobody reads them.
        let alive: Vec<&EncodedRow> =
            rows.iter().filter(|row| row.expires_at.is_none_or(|expires_at| expires_at > now)).collect();
        self.audit.entities += alive.len() as u64;
        let mut compared: Vec<&EncodedRow> = Vec::new();
        for row in alive {
            let hash = xxh3_128(row.entity_key.as_bytes());
            self.known.insert(hash);
            if hash.is_multiple_of(self.one_in) {
                compared.push(row);
            }
        }
        // Rows that expired count as known: they are no strangers.
        self.known
            .extend(rows.iter().filter(|row| row.expires_at.is_some()).map(|row| xxh3_128(row.entity_key.as_bytes())));
        let keys: Vec<String> = compared.iter().map(|row| row.entity_key.clone()).collect();
        let found = self.serving.online.rows(&self.recorded.content.view, self.generation(), &keys).await?;
        self.audit.compared += compared.len() as u64;
        let interval_end = self.recorded.content.interval.end();
        for (row, found) in compared.into_iter().zip(found) {
            if let Some(found) = &found {
                self.features(row, found);
            }
            match found {
                None => {
                    self.audit.missing += 1;
                    self.example(&row.entity_key, "is missing");
                    self.changes.added.push(row.clone());
                }
                Some(found) if !is_same(row, &found, interval_end) => {
                    self.audit.different += 1;
                    self.example(&row.entity_key, "differs");
                    self.changes.changed.push(row.clone());
                }
                Some(_) => {}
            }
        }
        if self.changes.len() >= ENTITIES_PER_STEP {
            self.repair().await?;
        }
        Ok(())
    }

    async fn extra(&mut self) -> Result<()> {
        let (view, generation) = (&self.recorded.content.view, self.generation());
        let mut cursor: Option<String> = None;
        loop {
            let (keys, next) = self.serving.online.keys(view, generation, cursor.as_deref()).await?;
            let strange: Vec<String> = keys
                .into_iter()
                .filter(|key| {
                    let hash = xxh3_128(key.as_bytes());
                    hash.is_multiple_of(self.one_in) && !self.known.contains(&hash)
                })
                .collect();
            for keys in strange.chunks(ENTITIES_PER_STEP) {
                let found = self.serving.online.rows(view, generation, keys).await?;
                for (key, found) in keys.iter().zip(found) {
                    if found.is_some() {
                        self.audit.extra += 1;
                        self.example(key, "is not in the lake");
                        self.changes.removed.push(key.clone());
                    }
                }
                self.repair().await?;
            }
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
    }

    fn features(&mut self, row: &EncodedRow, online: &OnlineRow) {
        let of = |features: &[(String, String)]| features.iter().cloned().collect::<BTreeMap<String, String>>();
        let (lake, online) = (of(&row.features), of(&online.features));
        for feature in &mut self.audit.features {
            feature.add(&row.entity_key, lake.get(&feature.name), online.get(&feature.name));
        }
    }

    fn example(&mut self, entity_key: &str, problem: &str) {
        if self.audit.examples.len() < EXAMPLES {
            self.audit.examples.push(format!("`{entity_key}` {problem}"));
        }
    }

    async fn repair(&mut self) -> Result<()> {
        let changes = std::mem::take(&mut self.changes);
        if self.options.repair && !changes.is_empty() {
            self.serving.online.repair(&self.recorded.content.view, self.recorded.expected, &changes).await?;
        }
        Ok(())
    }
}

/// Whether a row is online as the lake has it. One that has no time of its own, only that of its interval's end, keeps
/// online the time since when it is so; or, where a restore went back in time over values that stayed, a later one.
fn is_same(row: &EncodedRow, online: &OnlineRow, interval_end: tidegate_registry::time::Instant) -> bool {
    let time = row.event_timestamp == online.event_timestamp || row.event_timestamp == interval_end;
    let sorted = |features: &[(String, String)]| -> BTreeMap<String, String> { features.iter().cloned().collect() };
    time && row.expires_at == online.expires_at && sorted(&row.features) == sorted(&online.features)
}
