//! Every minute (`reconcile.every`): is what was published still live?
//!
//! A Redis that restarted empty, failed over to a replica that lagged, or was flushed says nothing by itself. So every worker
//! asks for every view, cheaply, and whoever finds something missing fills it again. Workers that find it together agree by
//! a claim in the store.

use std::time::Duration;

use anyhow::Result;
use tidegate_registry::ids::ViewId;

use super::Serving;
use super::care::Rebuilt;

/// Looks after all views every `period`, until the future is dropped.
pub(crate) async fn reconcile(serving: Vec<Serving>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        for serving in &serving {
            if let Err(error) = serving.reconcile_once().await {
                tracing::warn!(
                    "The online store {} could not be looked after; trying again: {error:#}",
                    serving.online
                );
            }
        }
    }
}

impl Serving {
    /// Looks after all views once.
    ///
    /// # Errors
    /// When the registry cannot be reached. Trouble with a view is logged, and does not keep others waiting.
    pub async fn reconcile_once(&self) -> Result<()> {
        let (_, project) = self.store.project(None).await?;
        let views: Vec<ViewId> =
            project.views.values().filter(|view| view.online.is_some()).map(|view| view.id.clone()).collect();
        for view in views {
            match self.rebuild(&view).await {
                Ok(Rebuilt::Filled { lost, rows }) => {
                    tracing::warn!(view = %view, "The online store {} had lost `{view}` ({lost}): it was filled again with {rows} entities.", self.online);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(view = %view, "`{view}` could not be brought back online; trying again: {error:#}");
                }
            }
        }
        Ok(())
    }
}
