//! Who does the work of a claimed task, apart from claiming it, keeping its lease and telling how it ended: the seam
//! between [`crate::Worker`]'s loop and the engine. The loop is the same for every executor, so simulations and benchmarks
//! of many workers run the real one over tasks that cost nothing.

use std::fmt::Debug;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::run::{Claim, StagedView};
use tidegate_registry::store::TaskEnd;

use crate::execute::{Parts, execute};
use crate::lake::CommitError;
use crate::publish::{discard_other_attempts, require_known};
use crate::restore::compare_pending;

/// How a task went.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each attempt of a task")]
pub enum Outcome {
    /// The attempt ends like this; the registry is yet to be told.
    End(TaskEnd),
    /// The registry has been told, with everything else.
    Recorded,
}

/// Executes tasks.
#[async_trait]
pub trait Executor: Debug + Send + Sync {
    /// Executes the task of `claim`, as the definitions in `project` say.
    ///
    /// # Errors
    /// [`tidegate_registry::store::StoreError::LostLease`] (somewhere in the chain): somebody else goes on. Every other
    /// failure is an [`Outcome`].
    async fn execute(&self, claim: &Claim, project: Arc<Project>) -> Result<Outcome>;

    /// Deletes what was staged for `views` by a run that ended without publishing. Harmless when there is nothing.
    async fn discard(&self, run: RunId, views: &[ViewId]);

    /// Deletes what other attempts staged for a view than the one that was published, which left `staged`.
    async fn discard_other_attempts(&self, run: RunId, view: &ViewId, staged: &StagedView);

    /// Compares what came of restores with what was promised, where whoever recorded them has not. Returns how many.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    async fn compare_restores(&self) -> Result<usize> {
        Ok(0)
    }
}

#[async_trait]
impl Executor for Parts {
    async fn execute(&self, claim: &Claim, project: Arc<Project>) -> Result<Outcome> {
        execute(self, claim, project).await
    }

    async fn discard(&self, run: RunId, views: &[ViewId]) {
        for view in views {
            // A registry that is older than the lake may believe of a run that it never published, and be wrong.
            if is_behind(self, view).await {
                tracing::warn!(run.id = %run, view = %view, "Staged files stay: the registry is older than the lake.");
                continue;
            }
            if let Err(error) = self.lake.discard_staged(view, run, &[]).await {
                tracing::warn!(run.id = %run, view = %view, "Staged files were left behind: {error:#}");
            }
            if let Err(error) = self.lake.quarantine().discard_staged(view, run, &[]).await {
                tracing::warn!(run.id = %run, view = %view, "Files set aside were left behind: {error:#}");
            }
        }
    }

    async fn discard_other_attempts(&self, run: RunId, view: &ViewId, staged: &StagedView) {
        if let Err(error) = discard_other_attempts(self, run, view, staged).await {
            tracing::warn!(run.id = %run, view = %view, "Staged files were left behind: {error:#}");
        }
    }

    async fn compare_restores(&self) -> Result<usize> {
        compare_pending(self).await
    }
}

/// Whether the table carries publications of which the registry knows nothing.
async fn is_behind(parts: &Parts, view: &ViewId) -> bool {
    // What cannot be asked is not deleted; the janitor comes later.
    let Ok(states) = parts.store.view_states(std::slice::from_ref(view)).await else { return true };
    let state = states.get(view).cloned().unwrap_or_default();
    let Err(error) = require_known(parts, view, &state).await else { return false };
    matches!(error.downcast_ref::<CommitError>(), Some(CommitError::RegistryBehind { .. }))
}
