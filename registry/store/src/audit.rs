//! The audit trail: who did what, as a chain ([`tidegate_registry::audit`]). Rows are only ever added; the database itself
//! refuses anything else.
//!
//! **One chain, no forks.** Whoever adds an event takes the row of `audit_head`, which holds the place and the hash of the
//! newest event, and keeps it until the transaction ends: the next event is written by somebody who has read this one's
//! hash. On PostgreSQL that is a row lock, and *always the last lock that a transaction takes* (nothing is locked after
//! [`add_in_tx`]): who holds it waits for nobody, so it stands in no circle of waiting and is held for two short
//! statements and the commit.

use tidegate_registry::audit::{AuditBreak, AuditEvent, AuditFilter, AuditLine, AuditVerdict, GENESIS, NewAuditEvent};
use tidegate_registry::store::{Result, StoreError};

use crate::codec::{duration_micros, json, limit_or_all, micros};
use crate::db::{Conn, Db, Link, commit, on};
use crate::sql::{Builder, Row, Sql, query};

/// The head, locked, and the present instant of the database's clock.
const HEAD: Sql = Sql {
    sqlite: "SELECT number, hash, CAST(unixepoch('subsec') * 1000000 AS BIGINT) AS now FROM audit_head",
    // The clock at this moment, not when the statement arrived: it may have waited for the row.
    postgres: "SELECT number, hash, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now \
               FROM audit_head FOR NO KEY UPDATE",
};

macro_rules! insert {
    () => {
        "INSERT INTO audit_events (id, at, recorded_at, actor, action, subject, reason, before, after, duration, detail, \
         hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
    };
}

/// On PostgreSQL it also moves the head, since others wait for every round trip from here on.
const ADD: Sql = Sql {
    sqlite: insert!(),
    postgres: concat!("WITH added AS (", insert!(), ") UPDATE audit_head SET number = $1, hash = $12"),
};

const COLUMNS: &str = "SELECT id, at, recorded_at, actor, action, subject, reason, before, after, duration, detail, hash FROM audit_events";

/// Rows read at once.
const PAGE: i64 = 2_000;

/// Adds an event to the trail. Everything else that the transaction locks is locked before.
pub(crate) async fn add_in_tx(tx: &mut Conn, event: &NewAuditEvent) -> Result<()> {
    let doing = "writing an audit event";
    let (before, after) = (event.before.as_ref().map(json).transpose()?, event.after.as_ref().map(json).transpose()?);
    let detail = json(&event.detail)?;
    let head =
        query(HEAD).fetch_optional(&mut *tx).await.map_err(on(doing))?.ok_or_else(|| {
            StoreError::Conflict("another registry was put in the place of this one meanwhile".into())
        })?;
    let line = AuditLine {
        number: head.get_as::<i64>("number")? + 1,
        at: micros(event.at),
        recorded_at: Some(head.get_as("now")?),
        actor: &event.actor,
        action: &event.action,
        subject: &event.subject,
        reason: event.reason.as_deref(),
        before: before.as_deref(),
        after: after.as_deref(),
        duration: event.duration.map(duration_micros),
        detail: &detail,
    };
    let hash = line.hash(head.get_as("hash")?);
    query(ADD)
        .bind(line.number)
        .bind(line.at)
        .bind(line.recorded_at)
        .bind(line.actor)
        .bind(line.action)
        .bind(line.subject)
        .bind(line.reason)
        .bind(line.before)
        .bind(line.after)
        .bind(line.duration)
        .bind(line.detail)
        .bind(&hash)
        .execute(&mut *tx)
        .await
        .map_err(on(doing))?;
    match tx.link {
        Link::Sqlite(_) => head_set(tx, line.number, &hash).await,
        Link::Postgres(_) => Ok(()),
    }
}

async fn head_set(tx: &mut Conn, number: i64, hash: &str) -> Result<()> {
    query("UPDATE audit_head SET number = $1, hash = $2")
        .bind(number)
        .bind(hash)
        .execute(tx)
        .await
        .map_err(on("moving the head of the audit trail"))?;
    Ok(())
}

/// See [`tidegate_registry::store::Store::audit`].
pub(crate) async fn add(db: &Db, event: &NewAuditEvent) -> Result<()> {
    let mut tx = db.write().await?;
    add_in_tx(&mut tx, event).await?;
    commit(tx).await
}

/// See [`tidegate_registry::store::Store::audit_events`].
pub(crate) async fn list(db: &Db, filter: &AuditFilter) -> Result<Vec<AuditEvent>> {
    let mut tx = db.read().await?;
    let mut query = Builder::new(COLUMNS);
    query.push(" WHERE 1 = 1");
    if let Some(since) = filter.since {
        query.push(" AND at >= ").push_bind(micros(since));
    }
    if let Some(until) = filter.until {
        query.push(" AND at < ").push_bind(micros(until));
    }
    if let Some(actor) = &filter.actor {
        query.push(" AND (actor = ").push_bind(actor).push(" OR ");
        begins(&mut query, "actor", &format!("{actor}@"));
        query.push(")");
    }
    if let Some(action) = &filter.action {
        query.push(" AND ");
        begins(&mut query, "action", action);
    }
    if let Some(subject) = &filter.subject {
        query.push(" AND (");
        begins(&mut query, "subject", subject);
        for column in ["detail", "before", "after"] {
            // As it stands in JSON: by itself, or a view's name before its version.
            for named in [format!("\"{subject}\""), format!("\"{subject}@v")] {
                query.push(" OR replace(").push(column).push(", ").push_bind(named).push(", '') <> ").push(column);
            }
        }
        query.push(")");
    }
    query.push(if filter.oldest_first { " ORDER BY id LIMIT " } else { " ORDER BY id DESC LIMIT " });
    query.push_bind(limit_or_all(filter.limit));
    let rows = query.build().fetch_all(&mut tx).await.map_err(on("reading the audit trail"))?;
    rows.iter().map(event_from).collect()
}

/// The events after the place `after` up to `until` with one of these actions, oldest first.
pub(crate) async fn between_in_tx(tx: &mut Conn, after: i64, until: i64, actions: &[&str]) -> Result<Vec<AuditEvent>> {
    let mut query = Builder::new(COLUMNS);
    query.push(" WHERE id > ").push_bind(after).push(" AND id <= ").push_bind(until).push(" AND action IN ");
    query.push_list(actions.iter().copied()).push(" ORDER BY id");
    let rows = query.build().fetch_all(tx).await.map_err(on("reading the audit trail"))?;
    rows.iter().map(event_from).collect()
}

/// The length is counted here: the databases agree on what a character is, and on little else.
fn begins(query: &mut Builder, column: &'static str, text: &str) {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    query.push("substr(").push(column).push(", 1, CAST(").push_bind(length).push(" AS INTEGER)) = ").push_bind(text);
}

fn event_from(row: &Row) -> Result<AuditEvent> {
    Ok(AuditEvent {
        number: row.get_as("id")?,
        recorded_at: row.instant_option("recorded_at")?,
        what: NewAuditEvent {
            at: row.instant("at")?,
            actor: row.get_as("actor")?,
            action: row.get_as("action")?,
            subject: row.get_as("subject")?,
            reason: row.get_as("reason")?,
            before: row.json_option("before")?,
            after: row.json_option("after")?,
            duration: row.count_option::<u64>("duration")?.map(std::time::Duration::from_micros),
            detail: row.json("detail")?,
        },
        hash: row.get_as("hash")?,
    })
}

fn line_from(row: &Row) -> Result<AuditLine<'_>> {
    Ok(AuditLine {
        number: row.get_as("id")?,
        at: row.get_as("at")?,
        recorded_at: row.get_as("recorded_at")?,
        actor: row.get_as("actor")?,
        action: row.get_as("action")?,
        subject: row.get_as("subject")?,
        reason: row.get_as("reason")?,
        before: row.get_as("before")?,
        after: row.get_as("after")?,
        duration: row.get_as("duration")?,
        detail: row.get_as("detail")?,
    })
}

/// The events after the place `after`, oldest first, a page of them.
async fn page(tx: &mut Conn, after: i64) -> Result<Vec<Row>> {
    let mut query = Builder::new(COLUMNS);
    query.push(" WHERE id > ").push_bind(after).push(" ORDER BY id LIMIT ").push_bind(PAGE);
    query.build().fetch_all(tx).await.map_err(on("reading the audit trail"))
}

/// See [`tidegate_registry::store::Store::audit_verify`].
pub(crate) async fn verify(db: &Db, noted: Option<&str>) -> Result<AuditVerdict> {
    let mut tx = db.read_together().await?;
    let noted = noted.map(str::to_ascii_lowercase);
    let mut is_known = noted.as_deref().is_none_or(|noted| noted == GENESIS);
    let mut verdict = AuditVerdict { events: 0, number: 0, head: GENESIS.to_owned(), broken: None };
    loop {
        let rows = page(&mut tx, verdict.number).await?;
        for row in &rows {
            let (line, hash) = (line_from(row)?, row.get_as::<&str>("hash")?);
            if verdict.broken.is_none() && line.hash(&verdict.head) != hash {
                let next = verdict.number + 1;
                verdict.broken = Some(if line.number > next {
                    AuditBreak::Removed { from: next, to: line.number - 1 }
                } else {
                    AuditBreak::Changed { number: line.number }
                });
            }
            is_known |= noted.as_deref() == Some(hash);
            verdict.events += 1;
            verdict.number = line.number;
            hash.clone_into(&mut verdict.head);
        }
        if (rows.len() as i64) < PAGE {
            break;
        }
    }
    let head = query("SELECT number, hash FROM audit_head")
        .fetch_optional(&mut tx)
        .await
        .map_err(on("reading the head of the audit trail"))?;
    let written = head.map(|head| Ok((head.get_as("number")?, head.get_as::<String>("hash")?))).transpose()?;
    commit(tx).await?;
    let ends_well = written.as_ref().is_some_and(|(number, hash)| (*number, hash) == (verdict.number, &verdict.head));
    if verdict.broken.is_none() && !ends_well {
        let (at, written) = (verdict.number, written.map_or(0, |(number, _)| number));
        verdict.broken =
            Some(if written > at { AuditBreak::Truncated { at, written } } else { AuditBreak::Changed { number: at } });
    }
    if let (None, false, Some(head)) = (&verdict.broken, is_known, noted) {
        verdict.broken = Some(AuditBreak::HeadUnknown { head });
    }
    Ok(verdict)
}

/// Lets the events be changed, for once; and what puts that right again.
const GUARD: [Sql; 2] = [
    Sql {
        sqlite: "DROP TRIGGER audit_events_keep",
        postgres: "ALTER TABLE audit_events DISABLE TRIGGER audit_events_keep",
    },
    Sql {
        sqlite: "CREATE TRIGGER audit_events_keep BEFORE UPDATE ON audit_events\n\
                 BEGIN SELECT RAISE(ABORT, 'audit events are only ever added'); END",
        postgres: "ALTER TABLE audit_events ENABLE TRIGGER audit_events_keep",
    },
];

/// Chains the events of a registry that is older than the chain: part of the step of the schema that makes it.
pub(crate) async fn begin_chain(tx: &mut Conn) -> Result<()> {
    let doing = "chaining the audit events that are there";
    let (mut number, mut head) = (0, GENESIS.to_owned());
    let [guard_off, guard_on] = GUARD;
    query(guard_off).execute(tx).await.map_err(on(doing))?;
    loop {
        let rows = page(tx, number).await?;
        for row in &rows {
            let line = line_from(row)?;
            (number, head) = (line.number, line.hash(&head));
            query("UPDATE audit_events SET hash = $1 WHERE id = $2")
                .bind(&head)
                .bind(number)
                .execute(&mut *tx)
                .await
                .map_err(on(doing))?;
        }
        if (rows.len() as i64) < PAGE {
            break;
        }
    }
    query(guard_on).execute(tx).await.map_err(on(doing))?;
    head_set(tx, number, &head).await
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
