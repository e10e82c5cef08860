//! Which features readers shall not be given: one row for each view, replaced whole and only by a later revision.

use tidegate_registry::ids::ViewId;
use tidegate_registry::switches::ViewSwitches;

use super::file::{commit, on};
use super::{SqliteOnline, stored};
use crate::online::serve::parse_switches;
use crate::online::{OnlineError, Result};

/// [`OnlineStore::set_switches`](crate::online::OnlineStore::set_switches).
pub(super) async fn set(store: &SqliteOnline, view: &ViewId, switches: &ViewSwitches) -> Result<u64> {
    let mut tx = store.begin_write().await?;
    sqlx::query(
        "INSERT INTO switches (view, revision, features) VALUES ($1, $2, $3)
         ON CONFLICT (view) DO UPDATE SET revision = excluded.revision, features = excluded.features
         WHERE switches.revision < excluded.revision",
    )
    .bind(view.to_string())
    .bind(stored(view, switches.revision)?)
    .bind(switches.to_json())
    .execute(&mut *tx)
    .await
    .map_err(on("switching features in"))?;
    let revision: i64 = sqlx::query_scalar("SELECT revision FROM switches WHERE view = $1")
        .bind(view.to_string())
        .fetch_one(&mut *tx)
        .await
        .map_err(on("switching features in"))?;
    commit(tx).await?;
    Ok(revision.unsigned_abs())
}

/// [`OnlineStore::switches`](crate::online::OnlineStore::switches).
pub(super) async fn read(store: &SqliteOnline, view: &ViewId) -> Result<ViewSwitches> {
    let row: Option<(i64, String)> = sqlx::query_as("SELECT revision, features FROM switches WHERE view = $1")
        .bind(view.to_string())
        .fetch_optional(&store.reader)
        .await
        .map_err(on("reading"))?;
    let Some((revision, features)) = row else { return Ok(ViewSwitches::default()) };
    let strange = |source: serde_json::Error| OnlineError::Internal {
        doing: "understanding the switches of",
        source: source.into(),
    };
    Ok(ViewSwitches { revision: revision.unsigned_abs(), off: parse_switches(&features).map_err(strange)? })
}
