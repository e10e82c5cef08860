//! Online stores: the newest features of each entity, for readers in a hurry.
//!
//! A view is published as a whole: a run fills a **generation** that nobody reads, and [`OnlineStore::cut_over`] makes
//! the generations of all views of the run live in one atomic step. So readers never see half a run, and an entity that
//! a run no longer has is gone with the old generation. The publish number is the fence: a writer that was overtaken
//! changes nothing.
//!
//! ```text
//! begin_generation → write … write → finish_generation → cut_over      each step may be repeated, also all from the start
//! ```
//!
//! Begin with [`OnlineStore`]; [`open`] gives one, [`encode`] makes its rows, [`conformance`] is what every
//! implementation must keep.

mod encode;
mod redis;
mod serve;
mod several;
mod shadow;
mod sqlite;

pub mod conformance;

use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_registry::definitions::settings::{OnlineLocation, OnlineTarget};
use tidegate_registry::ids::{ProjectName, RegistryId, ViewId};
use tidegate_registry::switches::ViewSwitches;
use tidegate_registry::time::Instant;

pub use self::encode::{EncodeError, defaults, encode, encode_keys};
pub use self::redis::RedisOnline;
pub use self::serve::{Given, Served, bucket, given, serve};
pub use self::several::SeveralOnline;
pub(crate) use self::shadow::{ShadowOnline, ShadowPlaces};
pub use self::sqlite::SqliteOnline;

/// A superseded generation stays at least this long, so that a reader who asked which one is live can still read it.
pub const SUPERSEDED_AGE_MIN: Duration = Duration::from_secs(15 * 60);

/// Opens the online store of `project` at `location`, creating it when it does not exist. `simulated_clock` when project
/// time is not the time of the machines.
///
/// # Errors
/// When it cannot be opened, was written by a newer version of Tidegate, or is a Redis that would evict keys. A Redis that
/// does not answer is none: calls fail until it does.
pub async fn open(
    location: &OnlineLocation,
    project: &ProjectName,
    simulated_clock: bool,
) -> Result<Arc<dyn OnlineStore>> {
    match location {
        OnlineLocation::Sqlite(path) => Ok(Arc::new(SqliteOnline::open(path).await?)),
        OnlineLocation::Redis(location) => Ok(Arc::new(RedisOnline::open(location, project, simulated_clock).await?)),
    }
}

/// Opens the online stores of `project`, which are kept alike; `None` when it has none.
///
/// # Errors
/// As [`open`], and when none of several is required.
pub async fn open_all(
    targets: &[OnlineTarget],
    project: &ProjectName,
    simulated_clock: bool,
) -> Result<Option<Arc<dyn OnlineStore>>> {
    if let [target] = targets {
        return open(&target.location, project, simulated_clock).await.map(Some);
    }
    let mut members = Vec::new();
    for target in targets {
        members.push((open(&target.location, project, simulated_clock).await?, target.required));
    }
    if members.is_empty() { Ok(None) } else { Ok(Some(Arc::new(SeveralOnline::new(members)?))) }
}

/// What an online store answers.
pub type Result<T> = std::result::Result<T, OnlineError>;

/// Why an online store did not do what it was asked, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum OnlineError {
    /// A cut-over with a higher publish number came first; nothing was changed.
    #[error("`{view}` is already published under number {live}, and {asked} is not later")]
    Superseded {
        /// The view.
        view: ViewId,
        /// The number it is published under.
        live: u64,
        /// The number that was refused.
        asked: u64,
    },
    /// Another registry writes here.
    #[error(
        "the online store belongs to project `{project}` with registry {registry}: bring back that registry's file, or, \
         to begin anew, delete the online store and the lake with it"
    )]
    Owned {
        /// The project that claimed it.
        project: String,
        /// That project's registry.
        registry: String,
    },
    /// The generation does not stand where the call needs it: not begun, not finished, or already published.
    #[error("generation {generation} of `{view}` {problem}")]
    Generation {
        /// The view.
        view: ViewId,
        /// The generation.
        generation: u64,
        /// What is wrong with it, as in "was not begun".
        problem: String,
    },
    /// The store cannot be reached or is busy: the same call may work later.
    #[error("the online store is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Anything else.
    #[error("{doing} the online store failed")]
    Internal {
        /// What was being done, as in "writing rows to".
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// One entity's features, as text, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// The entity's key: see [`crate::entity_key`].
    pub entity_key: String,
    /// When the features became true.
    pub event_timestamp: Instant,
    /// From when on the row no longer counts; `None` for never.
    pub expires_at: Option<Instant>,
    /// Feature names and canonical texts (see [`crate::text`]), without those that are null.
    pub features: Vec<(String, String)>,
}

/// One entity's features, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineRow {
    /// When the features became true.
    pub event_timestamp: Instant,
    /// From when on the row no longer counts; `None` for never.
    pub expires_at: Option<Instant>,
    /// Feature names and canonical texts, without those that are null.
    pub features: Vec<(String, String)>,
}

/// One view's part of a cut-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutOver {
    /// The view.
    pub view: ViewId,
    /// The finished generation that becomes live: a new one, or (restoring) one that was live before.
    pub generation: u64,
    /// The fence: a cut-over with a lower number than the live one's is refused.
    pub publish_number: u64,
    /// What the content is, for readers: the snapshot.
    pub tag: String,
    /// What readers take for features that are absent: see [`defaults`]. Only stores that other programs read by
    /// themselves keep it.
    pub defaults: String,
}

/// What readers of a view are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The generation.
    pub generation: u64,
    /// The number under which it was published.
    pub publish_number: u64,
    /// What the content is: the snapshot.
    pub tag: String,
}

/// Changes of a generation that readers read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Rows of entities that it does not have.
    pub added: Vec<EncodedRow>,
    /// Rows, whole, of entities that it has.
    pub changed: Vec<EncodedRow>,
    /// Keys of entities that shall be gone.
    pub removed: Vec<String>,
}

impl Changes {
    /// How many entities they concern.
    pub fn len(&self) -> usize {
        self.added.len() + self.changed.len() + self.removed.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a generation stands after [`OnlineStore::begin_upsert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InPlace {
    /// It waits for changes.
    Ready,
    /// It is live under this publish number already: everything is written.
    Published,
    /// It is not what is live, or somebody left changes half done: a whole new generation is needed.
    Gone,
}

/// What a view should be live with, by the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The generation.
    pub generation: u64,
    /// The number under which it was published.
    pub publish_number: u64,
}

/// How a view stands against what was [`Expected`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// As expected, as far as can be seen cheaply.
    Whole,
    /// A later publication is live: the registry is about to hear of it.
    Ahead,
    /// Nothing is live, or something older.
    NotLive(String),
    /// The right generation is live, but rows of it are missing.
    Incomplete(String),
}

/// How a view stands when that shows by what is live; `None` when the right generation is.
fn stands(live: Option<&Live>, expected: Expected) -> Option<Standing> {
    match live {
        None => Some(Standing::NotLive("nothing is live".to_owned())),
        Some(live) if live.publish_number > expected.publish_number => Some(Standing::Ahead),
        Some(live) if live.publish_number < expected.publish_number || live.generation != expected.generation => {
            Some(Standing::NotLive(format!(
                "generation {} of publication {} is live instead of {} of {}",
                live.generation, live.publish_number, expected.generation, expected.publish_number
            )))
        }
        Some(_) => None,
    }
}

/// How a generation stands after [`OnlineStore::begin_generation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It is empty and waits for rows.
    Empty,
    /// It was live once or is so now: everything is written, nothing was touched, go on to the cut-over.
    Published,
}

/// Where a project's newest features are served from.
///
/// Calls are atomic unless they say otherwise, and may be repeated after an error of unknown outcome.
#[async_trait]
pub trait OnlineStore: Debug + Display + Send + Sync {
    /// The stores that this one keeps alike; empty for a store that is one.
    fn members(&self) -> &[Arc<dyn OnlineStore>] {
        &[]
    }

    /// Notes that this store belongs to `project` and its registry; harmless when it already does.
    ///
    /// # Errors
    /// [`OnlineError::Owned`] when it belongs to another project or another registry.
    async fn claim_owner(&self, project: &ProjectName, registry: RegistryId) -> Result<()>;

    /// Makes an empty generation. Rows of an earlier try that was not published are removed (in bounded steps, so not
    /// atomically: nobody reads them).
    async fn begin_generation(&self, view: &ViewId, generation: u64) -> Result<Begun>;

    /// Adds rows to a generation that was begun and not finished; an entity already in it is replaced. Durable when it
    /// returns; when it fails, some of the rows may have been added.
    ///
    /// # Errors
    /// [`OnlineError::Generation`] when the generation was not begun, or is finished.
    async fn write(&self, view: &ViewId, generation: u64, rows: &[EncodedRow]) -> Result<()>;

    /// Declares a generation complete, having counted that it holds `rows` rows. Harmless when it already is.
    ///
    /// # Errors
    /// [`OnlineError::Generation`] when it was not begun or holds another number of rows.
    async fn finish_generation(&self, view: &ViewId, generation: u64, rows: u64) -> Result<()>;

    /// Makes finished generations live, all in one step or none. A view whose live publish number is already the one
    /// given, for the same generation, is left as it is.
    ///
    /// # Errors
    /// [`OnlineError::Superseded`] for a publish number below the live one (or equal to it with another generation),
    /// [`OnlineError::Generation`] for a generation that is not finished.
    async fn cut_over(&self, views: &[CutOver]) -> Result<()>;

    /// Makes ready to change the live `generation` in place, for a publication under `publish_number`. From here on no
    /// publication with a lower number changes a row of it.
    ///
    /// After the changes, [`OnlineStore::finish_upsert`] and [`OnlineStore::cut_over`] with the same generation and this
    /// number follow. All of it may be repeated from here.
    ///
    /// # Errors
    /// [`OnlineError::Superseded`] when a later publication is live or has begun.
    async fn begin_upsert(&self, view: &ViewId, generation: u64, publish_number: u64) -> Result<InPlace>;

    /// Changes rows in place, each of them atomically: readers meanwhile see entities of two publications, and each entity
    /// of one.
    ///
    /// # Errors
    /// [`OnlineError::Superseded`] when a later publication has begun; then rows that it wrote were not touched.
    /// [`OnlineError::Generation`] when no upsert was begun.
    async fn upsert(&self, view: &ViewId, generation: u64, publish_number: u64, changes: &Changes) -> Result<()>;

    /// Notes that the generation now has `rows` rows.
    ///
    /// # Errors
    /// As [`OnlineStore::upsert`].
    async fn finish_upsert(&self, view: &ViewId, generation: u64, publish_number: u64, rows: u64) -> Result<()>;

    /// Puts rows right that differ from what was published: as [`OnlineStore::upsert`], but of what is live.
    ///
    /// # Errors
    /// [`OnlineError::Superseded`] when something else is live by now.
    async fn repair(&self, view: &ViewId, live: Expected, changes: &Changes) -> Result<()>;

    /// Says that `owner` fills `view` anew for the time being, so that others let it; renews it when it said so before. False
    /// while somebody else's claim lasts.
    async fn claim_care(&self, view: &ViewId, owner: &str, lasts: Duration) -> Result<bool>;

    /// Looks whether what should be live is so: cheap enough to be asked every minute, so a few lost rows of many may go
    /// unnoticed until an audit.
    async fn check(&self, view: &ViewId, expected: Expected) -> Result<Standing>;

    /// Makes these the switches of `view` that readers honour, unless the store was given some of a higher revision; returns
    /// the revision that it has now. Publishing, restoring and removing generations leave them as they are.
    async fn set_switches(&self, view: &ViewId, switches: &ViewSwitches) -> Result<u64>;

    /// The switches of `view` that readers honour; none, of revision 0, before they were first set.
    async fn switches(&self, view: &ViewId) -> Result<ViewSwitches>;

    /// What is live; `None` before the first cut-over.
    async fn live(&self, view: &ViewId) -> Result<Option<Live>>;

    /// The rows of several entities, each as of `now`, in one consistent read: views that were cut over together are
    /// seen together. `None` for an entity that the view does not have (or whose row has expired), and for a view that
    /// was never published.
    async fn get_many(&self, keys: &[(ViewId, String)], now: Instant) -> Result<Vec<Option<OnlineRow>>>;

    /// One entity's row as of `now`: see [`OnlineStore::get_many`].
    async fn get(&self, view: &ViewId, entity_key: &str, now: Instant) -> Result<Option<OnlineRow>> {
        let mut rows = self.get_many(&[(view.clone(), entity_key.to_owned())], now).await?;
        Ok(rows.pop().flatten())
    }

    /// Deletes the rows of a generation that this process began and will not finish now, since what they occupy may be just
    /// what is missing. Harmless when somebody else has begun it again or it is finished.
    async fn discard(&self, view: &ViewId, generation: u64) -> Result<()>;

    /// Removes generations that nobody needs, and returns them: superseded ones beyond the `keep` newest, each at least
    /// `age_min` after it was superseded (by the store's own clock; use [`SUPERSEDED_AGE_MIN`]), and ones below
    /// `dead_below` that were never published: with the publish number of a run that has just been recorded, those are
    /// leftovers of runs before it, while the next run may be filling its own already. Never the live one. Works in
    /// bounded steps, so an interrupted call leaves the rest to the next one.
    async fn prune(&self, view: &ViewId, keep: u32, age_min: Duration, dead_below: u64) -> Result<Vec<u64>>;

    /// How many rows a generation holds, expired ones included; 0 when there is no such generation.
    async fn count(&self, view: &ViewId, generation: u64) -> Result<u64>;

    /// How many rows a finished generation holds, as [`OnlineStore::count`], but as cheaply as [`OnlineStore::check`] looks:
    /// a few lost rows of many may go unnoticed where the store has not been restarted or replaced since it held all.
    async fn rows_kept(&self, view: &ViewId, generation: u64) -> Result<u64> {
        self.count(view, generation).await
    }

    /// Up to `limit` rows of a generation, expired ones included, with keys after `after` in byte order.
    async fn scan(
        &self,
        view: &ViewId,
        generation: u64,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(String, OnlineRow)>>;

    /// The keys of a generation in no order, page by page: begins with `None` and goes on with the cursor that came with
    /// the page before, until there is none. A key may come twice, and keys without a row may come.
    async fn keys(&self, view: &ViewId, generation: u64, cursor: Option<&str>)
    -> Result<(Vec<String>, Option<String>)>;

    /// The rows of several entities of a generation, live or not, expired ones included, in the order of `keys`.
    async fn rows(&self, view: &ViewId, generation: u64, keys: &[String]) -> Result<Vec<Option<OnlineRow>>>;

    /// Finishes what is under way and lets go of files and connections.
    async fn close(&self);
}
