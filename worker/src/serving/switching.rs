//! Switches on their way to the online stores: whenever a store is looked after and before anything goes live in it, so that
//! a store that lost its data never serves what is switched off.

use anyhow::{Context as _, Result};
use tidegate_registry::ids::ViewId;
use tidegate_registry::store::Store;

use super::Serving;
use crate::online::OnlineStore;

/// Gives `online` the registry's switches of those of `views` of which something was ever switched. Where it has them, or
/// later ones, nothing changes.
pub(crate) async fn bring(store: &dyn Store, online: &dyn OnlineStore, views: &[ViewId]) -> Result<()> {
    let switches = store.switches().await.context("reading the switches")?;
    for view in views {
        let of_view = switches.of(view);
        if of_view.revision > 0 {
            let set = online.set_switches(view, &of_view).await;
            set.with_context(|| format!("switching features of `{view}`"))?;
        }
    }
    Ok(())
}

impl Serving {
    /// Gives the online store the switches of `view`.
    ///
    /// # Errors
    /// When the registry or the online store cannot be reached.
    pub async fn bring_switches(&self, view: &ViewId) -> Result<()> {
        bring(&*self.store, &*self.online, std::slice::from_ref(view)).await
    }
}
