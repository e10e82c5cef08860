//! One view of a run goes online: written where nobody reads, or changed in place. The run then cuts all its views over.

use anyhow::Result;
use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::model::{FeatureView, Output, Strategy};
use tidegate_registry::restore;
use tidegate_registry::store::SnapshotView;

use super::Serving;
use super::content::Content;
use super::difference::upsert;
use super::fill::fill;
use crate::online::{Begun, InPlace, Live};

/// Snapshots that are looked through for what is live.
const SNAPSHOTS_LOOKED_AT: u32 = 20;

/// A view that is ready to be cut over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    /// What to cut over to.
    pub(crate) generation: u64,
    /// What was done, for the run's log; `None` when all was done before.
    pub(crate) note: Option<String>,
}

/// What readers are told the content of a view is: which definition, and which snapshot.
pub(crate) fn tag(view: &FeatureView, snapshot: SnapshotId) -> String {
    restore::plan::tag(&view.id, &view.fingerprint, snapshot)
}

impl Serving {
    /// Brings `content` into the store, to go live under `publish_number`. May be repeated, by any process.
    pub(crate) async fn publish(&self, content: &Content, publish_number: u64) -> Result<Published> {
        let (serving, content) = (self.clone(), content.clone());
        self.engine.run(async move { serving.publish_here(&content, publish_number).await }).await?
    }

    async fn publish_here(&self, content: &Content, publish_number: u64) -> Result<Published> {
        let view = content.view()?;
        let in_place = view.online.as_ref().is_some_and(|online| online.strategy == Strategy::Upsert);
        if in_place
            && view.output == Output::Full
            && let Some(published) = self.publish_in_place(content, publish_number).await?
        {
            return Ok(published);
        }
        let (id, generation) = (&content.view, publish_number);
        let note = match self.online.begin_generation(id, generation).await? {
            Begun::Published => None,
            Begun::Empty => {
                let rows = fill(self, content, generation).await?;
                Some(format!("{id} is written online as generation {generation}: {rows} entities."))
            }
        };
        Ok(Published { generation, note })
    }

    /// `None` when there is nothing to start from, so that a whole new generation is needed.
    async fn publish_in_place(&self, content: &Content, publish_number: u64) -> Result<Option<Published>> {
        let id = &content.view;
        let Some(live) = self.online.live(id).await? else { return Ok(None) };
        let generation = live.generation;
        if live.publish_number == publish_number {
            return Ok(Some(Published { generation, note: None }));
        }
        let Some(from) = self.content_of(content, &live).await? else { return Ok(None) };
        match self.online.begin_upsert(id, generation, publish_number).await? {
            InPlace::Gone => return Ok(None),
            InPlace::Published => return Ok(Some(Published { generation, note: None })),
            InPlace::Ready => {}
        }
        let found = upsert(self, &from, content, generation, publish_number).await?;
        self.online.finish_upsert(id, generation, publish_number, found.rows).await?;
        let note = format!(
            "{id} is changed online in generation {generation}: {} entities added, {} changed, {} removed, {} in all.",
            found.added, found.changed, found.removed, found.rows
        );
        Ok(Some(Published { generation, note: Some(note) }))
    }

    /// What is live, as a content of the lake; `None` when the registry does not know, or it was made by another
    /// definition.
    async fn content_of(&self, content: &Content, live: &Live) -> Result<Option<Content>> {
        // Not by the tag, which after a restore names the snapshot that the content comes from. It is nearly always the
        // newest.
        let snapshots = self.store.snapshots(None, Some(&content.view), SNAPSHOTS_LOOKED_AT).await?;
        let mut of_views = snapshots.iter().flat_map(|snapshot| &snapshot.views);
        let of_view = of_views.find(|of_view| of_view.view == content.view && is_of(of_view, live));
        let Some((of_view, interval)) = of_view.and_then(|of_view| Some((of_view, of_view.interval?))) else {
            return Ok(None);
        };
        let is_ours = of_view.fingerprint == content.view()?.fingerprint;
        if !is_ours || !self.is_there(&content.view, of_view.delta_version).await {
            return Ok(None);
        }
        let from = Content { version: of_view.delta_version, interval, at: interval.end(), ..content.clone() };
        Ok(Some(from))
    }

    /// Whether a version of a view's table can still be read: the janitor removes old ones.
    async fn is_there(&self, view: &ViewId, version: u64) -> bool {
        self.lake.load(view, Some(version)).await.is_ok()
    }
}

fn is_of(of_view: &SnapshotView, live: &Live) -> bool {
    of_view.online_generation == Some(live.generation) && of_view.publish_number == live.publish_number
}
