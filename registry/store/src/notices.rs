//! The outbox: notices, and their deliveries under leases. See [`tidegate_registry::notice`].

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{LeaseToken, NoticeId};
use tidegate_registry::notice::{
    Addressed, Delivery, DeliveryClaim, DeliveryEnd, DeliveryState, NewNotice, Notice, NoticeFilter, Outbox,
    Subscription,
};
use tidegate_registry::run::{Run, RunState};
use tidegate_registry::store::{Change, Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::{self, duration_micros, limit_or_all, micros};
use crate::db::postgres::CALL_MAX;
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, Row, Sql, db_now, query};
use crate::{SqlStore, audit};

/// A text of somebody else's in a notice is cut after so many characters.
const TEXT_MAX: usize = 4_000;

/// Notices that are looked at together.
const ROUTED_MAX: u32 = 500;

macro_rules! notice_fields {
    () => {
        "notices.id, notices.key, notices.event, notices.subject, notices.at, notices.created_at, notices.actor, \
         notices.message, notices.detail"
    };
}

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Outbox for SqlStore<D> {
    async fn notify(&self, notice: NewNotice) -> Result<()> {
        self.db.run(CALL_MAX, || notify(&self.db, &notice)).await
    }

    async fn notices(&self, filter: &NoticeFilter) -> Result<Vec<(Notice, Vec<Delivery>)>> {
        self.db.run(CALL_MAX, || list(&self.db, filter)).await
    }

    async fn notices_route(&self, subscriptions: &[Subscription], age_max: Duration, now: Instant) -> Result<u64> {
        let made = self.db.run(CALL_MAX, || route(&self.db, subscriptions, age_max)).await?;
        self.db.run(CALL_MAX, || unclaimed(&self.db, subscriptions, age_max, now)).await?;
        Ok(made)
    }

    async fn delivery_claim(&self, webhooks: &[String], lease: Duration, limit: u32) -> Result<Vec<DeliveryClaim>> {
        self.db.run(CALL_MAX, || claim(&self.db, webhooks, lease, limit)).await
    }

    async fn delivery_end(&self, token: LeaseToken, end: DeliveryEnd, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || delivery_end(&self.db, token, &end, now)).await
    }

    async fn deliveries_retry(&self, notice: Option<NoticeId>, actor: &str, now: Instant) -> Result<u64> {
        self.db.run(CALL_MAX, || retry(&self.db, notice, actor, now)).await
    }
}

/// Writes a notice with what it tells of. Before any audit event of the same transaction: nothing is locked after those.
pub(crate) async fn notify_in_tx(tx: &mut Conn, notice: &NewNotice) -> Result<()> {
    insert(tx, notice, false).await.map(drop)
}

/// The same for a notice to one webhook. Its delivery is written with it, so nobody looks for who wants it, and a scheduler
/// that was started before its webhook was named does not let it go.
pub(crate) async fn addressed_in_tx(tx: &mut Conn, addressed: &Addressed) -> Result<()> {
    let Some(id) = insert(tx, &addressed.notice, true).await? else { return Ok(()) };
    query(concat!(
        "INSERT INTO notice_deliveries (notice, webhook, state, due_at) VALUES ($1, $2, 'due', ",
        db_now!(),
        ")"
    ))
    .bind(id)
    .bind(&addressed.webhook)
    .execute(tx)
    .await
    .map_err(on("addressing a notice"))?;
    Ok(())
}

/// Its id, unless there is one with its key already.
async fn insert(tx: &mut Conn, notice: &NewNotice, routed: bool) -> Result<Option<String>> {
    let id = NoticeId::generate().to_string();
    let written = query(concat!(
        "INSERT INTO notices (id, key, event, subject, at, actor, message, detail, routed, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, ",
        db_now!(),
        ") ON CONFLICT (key) DO NOTHING"
    ))
    .bind(&id)
    .bind(notice.key.as_ref().unwrap_or(&id))
    .bind(notice.event.as_str())
    .bind(&notice.subject)
    .bind(micros(notice.at))
    .bind(&notice.actor)
    .bind(cut(&notice.message))
    .bind(codec::json(&notice.detail)?)
    .bind(i64::from(routed))
    .execute(&mut *tx)
    .await
    .map_err(on("writing a notice"))?;
    tx.has_changed(Change::Notices);
    Ok((written > 0).then_some(id))
}

/// Tells that a run has come to nothing, if it has.
pub(crate) async fn run_ended_in_tx(
    tx: &mut Conn,
    run: &Run,
    state: RunState,
    reason: &str,
    now: Instant,
) -> Result<()> {
    use tidegate_registry::notice::NoticeEvent;
    let (event, what) = match state {
        RunState::Blocked => (NoticeEvent::RunBlocked, "was stopped by its checks"),
        RunState::Failed => (NoticeEvent::RunFailed, "failed"),
        _ => return Ok(()),
    };
    let reason = cut(reason);
    let message = format!("the run of `{}` over {} {what}: {reason}", run.dag, run.interval);
    let detail = json!({
        "dag": run.dag,
        "run": run.id,
        "interval_start": run.interval.start(),
        "interval_end": run.interval.end(),
        "views": run.views,
        "revision": run.revision,
        "cause": run.cause.to_string(),
        "reason": reason,
    });
    let notice = NewNotice::new(event, run.id.to_string(), now, message).with(detail);
    notify_in_tx(tx, &notice.once(format!("{event} {}", run.id))).await
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

async fn notify(db: &Db, notice: &NewNotice) -> Result<()> {
    let mut tx = db.write().await?;
    notify_in_tx(&mut tx, notice).await?;
    commit(tx).await
}

async fn list(db: &Db, filter: &NoticeFilter) -> Result<Vec<(Notice, Vec<Delivery>)>> {
    let mut tx = db.read_together().await?;
    let mut notices = Builder::new(concat!("SELECT ", notice_fields!(), " FROM notices WHERE 1 = 1"));
    if let Some(state) = filter.state {
        notices
            .push(" AND id IN (SELECT notice FROM notice_deliveries WHERE state = ")
            .push_bind(state.as_str())
            .push(")");
    }
    if let Some(event) = &filter.event {
        match event.strip_suffix('*') {
            None => notices.push(" AND event = ").push_bind(event),
            Some(begin) => {
                let length = i64::try_from(begin.chars().count()).unwrap_or(i64::MAX);
                notices.push(" AND substr(event, 1, CAST(").push_bind(length).push(" AS INTEGER)) = ").push_bind(begin)
            }
        };
    }
    notices.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(limit_or_all(filter.limit));
    let rows = notices.build().fetch_all(&mut tx).await.map_err(on("listing notices"))?;
    let notices = rows.iter().map(notice_from).collect::<Result<Vec<_>>>()?;
    let mut deliveries: HashMap<NoticeId, Vec<Delivery>> = HashMap::new();
    for some in notices.chunks(1_000) {
        let mut of = Builder::new(
            "SELECT notice, webhook, state, attempts, due_at, error FROM notice_deliveries WHERE notice IN ",
        );
        of.push_list(some.iter().map(|notice| notice.id.to_string())).push(" ORDER BY notice, webhook");
        for row in &of.build().fetch_all(&mut tx).await.map_err(on("listing deliveries"))? {
            deliveries.entry(row.parse("notice")?).or_default().push(delivery_from(row)?);
        }
    }
    commit(tx).await?;
    Ok(notices
        .into_iter()
        .map(|notice| {
            let of = deliveries.remove(&notice.id).unwrap_or_default();
            (notice, of)
        })
        .collect())
}

fn notice_from(row: &Row) -> Result<Notice> {
    let (id, key): (NoticeId, String) = (row.parse("id")?, row.get_as("key")?);
    Ok(Notice {
        id,
        what: NewNotice {
            event: row.parse("event")?,
            subject: row.get_as("subject")?,
            at: row.instant("at")?,
            message: row.get_as("message")?,
            actor: row.get_as("actor")?,
            detail: row.json("detail")?,
            key: Some(key).filter(|key| *key != id.to_string()),
        },
        created_at: row.instant("created_at")?,
    })
}

fn delivery_from(row: &Row) -> Result<Delivery> {
    let state: DeliveryState = row.parse("state")?;
    Ok(Delivery {
        webhook: row.get_as("webhook")?,
        state,
        attempts: row.count("attempts")?,
        due_at: Some(row.instant("due_at")?).filter(|_| state == DeliveryState::Due),
        error: row.get_as("error")?,
    })
}

async fn route(db: &Db, subscriptions: &[Subscription], age_max: Duration) -> Result<u64> {
    let mut made = 0;
    // Most of the time there is nothing, which is no reason to keep others from writing.
    let new = query(ANY_NEW).fetch_optional(&mut *db.read().await?).await;
    if new.map_err(on("reading new notices"))?.is_none() {
        return Ok(0);
    }
    loop {
        let mut tx = db.write().await?;
        let rows = query(Sql {
            sqlite: concat!(new_notices!(), " LIMIT $2"),
            postgres: concat!(new_notices!(), " LIMIT $2 FOR UPDATE SKIP LOCKED"),
        })
        .bind(duration_micros(age_max))
        .bind(ROUTED_MAX)
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading new notices"))?;
        let mut routed = Vec::with_capacity(rows.len());
        for row in &rows {
            let id: &str = row.get_as("id")?;
            let event: tidegate_registry::notice::NoticeEvent = row.parse("event")?;
            let is_old: bool = row.get_as("is_old")?;
            for wanting in subscriptions.iter().filter(|one| !is_old && one.wants(event)) {
                made += query(concat!(
                    "INSERT INTO notice_deliveries (notice, webhook, state, due_at) VALUES ($1, $2, 'due', ",
                    db_now!(),
                    ") ON CONFLICT (notice, webhook) DO NOTHING"
                ))
                .bind(id)
                .bind(&wanting.webhook)
                .execute(&mut tx)
                .await
                .map_err(on("addressing a notice"))?;
            }
            routed.push(id.to_owned());
        }
        if !routed.is_empty() {
            let mut mark = Builder::new("UPDATE notices SET routed = 1 WHERE id IN ");
            mark.push_list(routed);
            mark.build().execute(&mut tx).await.map_err(on("addressing notices"))?;
        }
        commit(tx).await?;
        if rows.len() < ROUTED_MAX as usize {
            return Ok(made);
        }
    }
}

macro_rules! new_notices {
    () => {
        concat!(
            "SELECT id, event, CAST(CASE WHEN created_at < ",
            db_now!(),
            " - $1 THEN 1 ELSE 0 END AS BIGINT) AS is_old FROM notices WHERE routed = 0 ORDER BY created_at, id"
        )
    };
}
use new_notices;

/// Gives up what nobody delivers: its webhook is none of `subscriptions`, and it has been due for `age_max`.
async fn unclaimed(db: &Db, subscriptions: &[Subscription], age_max: Duration, now: Instant) -> Result<()> {
    let doing = "looking for deliveries that nobody makes";
    let select = |locking: bool| {
        let mut of = Builder::new(concat!(
            "SELECT notice, webhook, attempts FROM notice_deliveries WHERE state = 'due' AND due_at <= ",
            db_now!(),
            " - "
        ));
        of.push_bind(duration_micros(age_max));
        if !subscriptions.is_empty() {
            of.push(" AND webhook NOT IN ").push_list(subscriptions.iter().map(|one| one.webhook.clone()));
        }
        of.push(" ORDER BY due_at, notice, webhook LIMIT ").push_bind(limit_or_all(ROUTED_MAX));
        if locking {
            of.push_end(Sql { sqlite: "", postgres: " FOR UPDATE SKIP LOCKED" });
        }
        of
    };
    // As above: most of the time there are none.
    let any = select(false).build().fetch_optional(&mut *db.read().await?).await.map_err(on(doing))?;
    if any.is_none() {
        return Ok(());
    }
    let mut tx = db.write().await?;
    let rows = select(true).build().fetch_all(&mut tx).await.map_err(on(doing))?;
    let error = "no process that sends knows a webhook of this name";
    for row in &rows {
        query(
            "UPDATE notice_deliveries SET state = 'given_up', error = $1, lease_until = NULL \
             WHERE notice = $2 AND webhook = $3",
        )
        .bind(error)
        .bind(row.get_as::<&str>("notice")?)
        .bind(row.get_as::<&str>("webhook")?)
        .execute(&mut tx)
        .await
        .map_err(on("giving up a delivery"))?;
    }
    for row in &rows {
        given_up_in_tx(&mut tx, row, error, now).await?;
    }
    commit(tx).await
}

/// Notes that the delivery in `row` was given up.
async fn given_up_in_tx(tx: &mut Conn, row: &Row, error: &str, now: Instant) -> Result<()> {
    let detail = json!({
        "webhook": row.get_as::<&str>("webhook")?,
        "attempts": row.count::<u32>("attempts")?,
        "error": error,
    });
    let notice: &str = row.get_as("notice")?;
    audit::add_in_tx(tx, &NewAuditEvent::new(now, "notices", "notice_give_up", notice).with(detail)).await
}

macro_rules! due {
    () => {
        concat!(
            "state = 'due' AND due_at <= ",
            db_now!(),
            " AND (lease_until IS NULL OR lease_until <= ",
            db_now!(),
            ")"
        )
    };
}

/// What every sender asks every few seconds.
pub(crate) const ANY_NEW: &str = "SELECT 1 FROM notices WHERE routed = 0 LIMIT 1";
pub(crate) const ANY_DUE: &str = concat!("SELECT 1 FROM notice_deliveries WHERE ", due!(), " LIMIT 1");

async fn claim(db: &Db, webhooks: &[String], lease: Duration, limit: u32) -> Result<Vec<DeliveryClaim>> {
    let any = query(ANY_DUE)
        .fetch_optional(&mut *db.read().await?)
        .await
        .map_err(on("looking for deliveries that are due"))?;
    if any.is_none() {
        return Ok(Vec::new());
    }
    let mut tx = db.write().await?;
    let mut due =
        Builder::new(concat!("SELECT notice, webhook FROM notice_deliveries WHERE ", due!(), " AND webhook IN "));
    due.push_list(webhooks).push(" ORDER BY due_at, notice, webhook LIMIT ").push_bind(limit_or_all(limit));
    due.push_end(Sql { sqlite: "", postgres: " FOR UPDATE SKIP LOCKED" });
    let rows = due.build().fetch_all(&mut tx).await.map_err(on("looking for deliveries that are due"))?;
    let mut claims = Vec::with_capacity(rows.len());
    for row in &rows {
        let (notice, webhook): (&str, String) = (row.get_as("notice")?, row.get_as("webhook")?);
        let token = LeaseToken::generate();
        let taken = query(concat!(
            "UPDATE notice_deliveries SET attempts = attempts + 1, token = $1, lease_until = $2 + ",
            db_now!(),
            " WHERE notice = $3 AND webhook = $4 RETURNING attempts"
        ))
        .bind(token.to_string())
        .bind(duration_micros(lease))
        .bind(notice)
        .bind(&webhook)
        .fetch_one(&mut tx)
        .await
        .map_err(on("claiming a delivery"))?;
        let row = query(concat!(
            "SELECT ",
            notice_fields!(),
            ", ",
            db_now!(),
            " - notices.created_at AS age FROM notices WHERE id = $1"
        ))
        .bind(notice)
        .fetch_one(&mut tx)
        .await
        .map_err(on("reading a notice"))?;
        let age = Duration::from_micros(row.get_as::<i64>("age")?.max(0).unsigned_abs());
        let attempt = taken.count("attempts")?;
        claims.push(DeliveryClaim { token, notice: notice_from(&row)?, webhook, attempt, age });
    }
    commit(tx).await?;
    Ok(claims)
}

async fn delivery_end(db: &Db, token: LeaseToken, end: &DeliveryEnd, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let row = query(Sql {
        sqlite: "SELECT notice, webhook, state, attempts FROM notice_deliveries WHERE token = $1",
        postgres: "SELECT notice, webhook, state, attempts FROM notice_deliveries WHERE token = $1 FOR UPDATE",
    })
    .bind(token.to_string())
    .fetch_optional(&mut tx)
    .await
    .map_err(on("looking for a delivery"))?
    .ok_or(StoreError::LostLease)?;
    let (notice, webhook): (&str, &str) = (row.get_as("notice")?, row.get_as("webhook")?);
    let (state, error, retry_in) = match end {
        DeliveryEnd::Sent => (DeliveryState::Sent, None, Duration::ZERO),
        DeliveryEnd::Failed { error, retry_in: Some(pause) } => (DeliveryState::Due, Some(cut(error)), *pause),
        DeliveryEnd::Failed { error, retry_in: None } => (DeliveryState::GivenUp, Some(cut(error)), Duration::ZERO),
    };
    // A token ends its attempt once: the same answer again finds no lease to end.
    let done = query(concat!(
        "UPDATE notice_deliveries SET state = $1, error = $2, lease_until = NULL, due_at = $3 + ",
        db_now!(),
        " WHERE notice = $4 AND webhook = $5 AND state = 'due' AND lease_until IS NOT NULL"
    ))
    .bind(state.as_str())
    .bind(&error)
    .bind(duration_micros(retry_in))
    .bind(notice)
    .bind(webhook)
    .execute(&mut tx)
    .await
    .map_err(on("ending a delivery"))?;
    if done > 0 && state == DeliveryState::GivenUp {
        given_up_in_tx(&mut tx, &row, error.as_deref().unwrap_or_default(), now).await?;
    }
    commit(tx).await
}

async fn retry(db: &Db, notice: Option<NoticeId>, actor: &str, now: Instant) -> Result<u64> {
    let mut tx = db.write().await?;
    if let Some(id) = notice {
        query("SELECT 1 FROM notices WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&mut tx)
            .await
            .map_err(on("looking for a notice"))?
            .ok_or_else(|| StoreError::NotFound { what: "notice", name: id.to_string() })?;
    }
    let mut due = Builder::new(concat!(
        "UPDATE notice_deliveries SET state = 'due', token = NULL, lease_until = NULL, due_at = ",
        db_now!(),
        " WHERE state = 'given_up'"
    ));
    if let Some(id) = notice {
        due.push(" AND notice = ").push_bind(id.to_string());
    }
    let made = due.build().execute(&mut tx).await.map_err(on("making deliveries due again"))?;
    if made > 0 {
        tx.has_changed(Change::Notices);
        let subject = notice.map_or_else(|| "registry".to_owned(), |id| id.to_string());
        let event = NewAuditEvent::new(now, actor, "notice_retry", subject).with(json!({ "deliveries": made }));
        audit::add_in_tx(&mut tx, &event).await?;
    }
    commit(tx).await?;
    Ok(made)
}

/// Removes notices from before `before` of which nothing is left to deliver.
pub(crate) async fn prune_in_tx(tx: &mut Conn, before: Instant) -> Result<u64> {
    let doing = "removing old notices";
    let old = "SELECT id FROM notices WHERE at < $1 AND routed = 1 AND NOT EXISTS (\
               SELECT 1 FROM notice_deliveries AS d WHERE d.notice = notices.id AND d.state = 'due')";
    let mut deliveries = Builder::new("DELETE FROM notice_deliveries WHERE notice IN (");
    deliveries.push(old).push(")");
    deliveries.build().bind(micros(before)).execute(&mut *tx).await.map_err(on(doing))?;
    query(
        "DELETE FROM notices WHERE at < $1 AND routed = 1 \
         AND NOT EXISTS (SELECT 1 FROM notice_deliveries AS d WHERE d.notice = notices.id)",
    )
    .bind(micros(before))
    .execute(tx)
    .await
    .map_err(on(doing))
}
