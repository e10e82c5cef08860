//! From the lake to the online store, and back to compare.
//!
//! What a view is online follows from a version of its table: `content` reads it. A run writes a whole new generation
//! (`fill`) or, with `strategy: upsert`, what differs from what is live (`difference`). Without any run `care` fills a
//! store anew that lost its data, and compares it with the lake; `reconcile` does so by itself whenever it is needed.

mod care;
mod content;
mod difference;
mod fill;
mod publication;
mod reconcile;
mod switching;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tidegate_registry::store::Store;
use tidegate_registry::time::Clock;

pub use self::care::{Audit, AuditOptions, FeatureAudit, Rebuilt};
pub(crate) use self::content::Content;
pub use self::difference::{Example, FeatureDiff, Mixed, Moved, StateDiff, ViewState, compare_states};
pub(crate) use self::publication::tag;
pub(crate) use self::reconcile::reconcile;
pub(crate) use self::switching::bring as bring_switches;
use crate::engine::Engine;
use crate::lake::Lake;
use crate::online::OnlineStore;

/// What it takes to bring features from the lake to an online store.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The registry, which knows what should be live.
    pub store: Arc<dyn Store>,
    /// Project time.
    pub clock: Arc<dyn Clock>,
    /// The lake.
    pub lake: Lake,
    /// The online store.
    pub online: Arc<dyn OnlineStore>,
    /// What reads the lake.
    pub engine: Arc<Engine>,
    /// Who acts, as in `host:pid:start`.
    pub owner: String,
}

impl Serving {
    /// One for each store that is kept alike with others, since each may lose its data by itself.
    pub fn of_each_member(&self) -> Vec<Self> {
        let members = self.online.members();
        if members.is_empty() {
            return vec![self.clone()];
        }
        members.iter().map(|member| Self { online: Arc::clone(member), ..self.clone() }).collect()
    }
}
