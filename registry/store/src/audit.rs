//! The audit trail: who did what. Rows are only ever added; the database itself refuses anything else.

use tidegate_registry::store::Result;
use tidegate_registry::time::Instant;

use crate::codec::{json, micros};
use crate::db::{Conn, on};
use crate::sql::query;

/// Something that a person or a process did.
pub(crate) struct Event<'a> {
    /// In project time.
    pub(crate) at: Instant,
    pub(crate) actor: &'a str,
    pub(crate) action: &'static str,
    /// The project, run or snapshot.
    pub(crate) subject: &'a str,
}

pub(crate) async fn add_in_tx(tx: &mut Conn, event: &Event<'_>, detail: &serde_json::Value) -> Result<()> {
    query("INSERT INTO audit_events (at, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5)")
        .bind(micros(event.at))
        .bind(event.actor)
        .bind(event.action)
        .bind(event.subject)
        .bind(json(detail)?)
        .execute(tx)
        .await
        .map_err(on("writing an audit event"))?;
    Ok(())
}
