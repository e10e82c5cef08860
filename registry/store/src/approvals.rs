//! Approvals: what waits for a second person, who gave it, and what it was used for.

use async_trait::async_trait;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{ApprovalId, SnapshotId};
use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::restore::policy::{Approval, Approving, person};
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::{json, limit_or_all, micros};
use crate::db::postgres::{BULK_MAX, CALL_MAX};
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, Row, query};
use crate::{SqlStore, audit, notices};

/// Values of one statement: below the limits of both databases.
const IDS_PER_QUERY: usize = 5_000;

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Approving for SqlStore<D> {
    async fn approval_request(&self, asked: &Approval) -> Result<Approval> {
        self.db.run(CALL_MAX, || request(&self.db, asked)).await
    }

    async fn approvals(&self, limit: u32) -> Result<Vec<Approval>> {
        self.db.run(CALL_MAX, || list(&self.db, limit)).await
    }

    async fn approve(&self, id: ApprovalId, actor: &str, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || approve(&self.db, id, actor, now)).await
    }

    async fn approval_use(&self, id: ApprovalId, used_for: &str) -> Result<()> {
        self.db.run(CALL_MAX, || mark_used(&self.db, id, used_for)).await
    }

    async fn oldest_recorded(&self, snapshots: &[SnapshotId]) -> Result<Option<Instant>> {
        self.db.run(BULK_MAX, || oldest(&self.db, snapshots)).await
    }
}

const COLUMNS: &str = "SELECT id, ask, summary, views, approvers, requester, reason, requested_at, approved_by, \
                       approved_at, used_for FROM approvals";

async fn all_in_tx(tx: &mut Conn, limit: u32) -> Result<Vec<Approval>> {
    let mut select = Builder::new(COLUMNS);
    select.push(" ORDER BY id DESC LIMIT ").push_bind(limit_or_all(limit));
    let rows = select.build().fetch_all(tx).await.map_err(on("reading the approvals"))?;
    rows.iter().map(approval_from).collect()
}

fn approval_from(row: &Row) -> Result<Approval> {
    Ok(Approval {
        id: row.parse("id")?,
        ask: row.get_as("ask")?,
        summary: row.get_as("summary")?,
        views: row.json("views")?,
        approvers: row.json("approvers")?,
        requester: row.get_as("requester")?,
        reason: row.get_as("reason")?,
        requested_at: row.instant("requested_at")?,
        approved_by: row.get_as("approved_by")?,
        approved_at: row.instant_option("approved_at")?,
        used_for: row.get_as("used_for")?,
    })
}

async fn list(db: &Db, limit: u32) -> Result<Vec<Approval>> {
    let mut tx = db.read().await?;
    all_in_tx(&mut tx, limit).await
}

async fn request(db: &Db, asked: &Approval) -> Result<Approval> {
    let mut tx = db.write_alone().await?;
    let same = |known: &Approval| {
        known.id == asked.id
            || (known.is_waiting()
                && known.ask == asked.ask
                && known.approvers == asked.approvers
                && person(&known.requester) == person(&asked.requester))
    };
    if let Some(known) = all_in_tx(&mut tx, 0).await?.into_iter().find(same) {
        commit(tx).await?;
        return Ok(known);
    }
    query(
        "INSERT INTO approvals (id, ask, summary, views, approvers, requester, reason, requested_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(asked.id.to_string())
    .bind(&asked.ask)
    .bind(&asked.summary)
    .bind(json(&asked.views)?)
    .bind(json(&asked.approvers)?)
    .bind(&asked.requester)
    .bind(&asked.reason)
    .bind(micros(asked.requested_at))
    .execute(&mut tx)
    .await
    .map_err(on("storing a request for approval"))?;
    let message = format!(
        "{} asks for approval: {} ({}); `tidegate approve {}`",
        asked.requester, asked.summary, asked.reason, asked.id
    );
    let detail = json!({ "approval": asked.id, "summary": asked.summary, "views": asked.views });
    let notice = NewNotice::new(NoticeEvent::ApprovalRequested, asked.id.to_string(), asked.requested_at, message);
    notices::notify_in_tx(&mut tx, &notice.by(&asked.requester).with(detail.clone())).await?;
    let event = NewAuditEvent::new(asked.requested_at, &asked.requester, "approval_request", asked.id.to_string());
    audit::add_in_tx(&mut tx, &event.because(&asked.reason).with(detail)).await?;
    commit(tx).await?;
    Ok(asked.clone())
}

async fn approve(db: &Db, id: ApprovalId, actor: &str, now: Instant) -> Result<()> {
    let mut tx = db.write_alone().await?;
    let known = one_in_tx(&mut tx, id).await?;
    if let Some(by) = &known.approved_by {
        if by == actor {
            return commit(tx).await;
        }
        return Err(StoreError::Conflict(format!("{by} has approved it already")));
    }
    query("UPDATE approvals SET approved_by = $1, approved_at = $2 WHERE id = $3")
        .bind(actor)
        .bind(micros(now))
        .bind(id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("noting an approval"))?;
    let message = format!("{actor} approves what {} asked for: {}", known.requester, known.summary);
    let detail = json!({ "requester": known.requester, "summary": known.summary });
    let notice = NewNotice::new(NoticeEvent::ApprovalGranted, id.to_string(), now, message);
    notices::notify_in_tx(&mut tx, &notice.by(actor).with(detail.clone())).await?;
    audit::add_in_tx(&mut tx, &NewAuditEvent::new(now, actor, "approve", id.to_string()).with(detail)).await?;
    commit(tx).await
}

async fn one_in_tx(tx: &mut Conn, id: ApprovalId) -> Result<Approval> {
    let mut select = Builder::new(COLUMNS);
    select.push(" WHERE id = ").push_bind(id.to_string());
    let row = select.build().fetch_optional(tx).await.map_err(on("reading an approval"))?;
    let row = row.ok_or_else(|| StoreError::NotFound { what: "request for approval", name: id.to_string() })?;
    approval_from(&row)
}

async fn mark_used(db: &Db, id: ApprovalId, used_for: &str) -> Result<()> {
    let mut tx = db.write_alone().await?;
    let known = one_in_tx(&mut tx, id).await?;
    if known.used_for.as_deref() == Some(used_for) {
        return commit(tx).await;
    }
    if known.used_for.is_some() || known.approved_by.is_none() {
        return Err(StoreError::Conflict(format!("the approval `{id}` was used already, or never given")));
    }
    query("UPDATE approvals SET used_for = $1 WHERE id = $2")
        .bind(used_for)
        .bind(id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("noting what an approval was used for"))?;
    commit(tx).await
}

async fn oldest(db: &Db, snapshots: &[SnapshotId]) -> Result<Option<Instant>> {
    let mut tx = db.read_together().await?;
    let mut oldest: Option<Instant> = None;
    for ids in snapshots.chunks(IDS_PER_QUERY) {
        let mut select = Builder::new("SELECT min(created_at) AS oldest FROM snapshots WHERE id IN ");
        select.push_list(ids.iter().map(ToString::to_string));
        let row = select.build().fetch_one(&mut tx).await.map_err(on("reading when snapshots were recorded"))?;
        let found = row.instant_option("oldest")?;
        oldest = oldest.into_iter().chain(found).min();
    }
    commit(tx).await?;
    Ok(oldest)
}
