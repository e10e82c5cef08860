//! Recipes that something triggered: up to where somebody has looked, and how far each is. See
//! [`tidegate_registry::firing`].

use async_trait::async_trait;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::firing::{ACTIONS, Firing, FiringProgress, FiringState, Happened, NewFiring, Triggering, actor};
use tidegate_registry::ids::FiringId;
use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::{json, limit_or_all, micros};
use crate::db::postgres::CALL_MAX;
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, Row, db_now, locked, query};
use crate::{SqlStore, audit, notices};

/// Audit events that are looked at together.
const LOOKED_AT_MAX: i64 = 500;

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Triggering for SqlStore<D> {
    async fn happened(&self) -> Result<Happened> {
        self.db.run(CALL_MAX, || happened(&self.db)).await
    }

    async fn firings_add(&self, seen: i64, until: i64, firings: &[NewFiring], now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || add(&self.db, seen, until, firings, now)).await
    }

    async fn firings(&self, limit: u32) -> Result<Vec<Firing>> {
        self.db.run(CALL_MAX, || list(&self.db, limit)).await
    }

    async fn firings_open(&self) -> Result<Vec<Firing>> {
        self.db.run(CALL_MAX, || open(&self.db)).await
    }

    async fn firing_move(&self, firing: &Firing, progress: &FiringProgress, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || advance(&self.db, firing, progress, now)).await
    }
}

async fn happened(db: &Db) -> Result<Happened> {
    let doing = "reading what happened";
    let mut tx = db.read_together().await?;
    let row = query(concat!(
        "SELECT seen, (SELECT coalesce(max(number), 0) FROM audit_head) AS head, ",
        db_now!(),
        " AS now FROM recipe_looks"
    ))
    .fetch_one(&mut tx)
    .await
    .map_err(on(doing))?;
    let (seen, head): (i64, i64) = (row.get_as("seen")?, row.get_as("head")?);
    // A trail that was put in the place of a longer one begins anew.
    let until = if head < seen { head } else { head.min(seen + LOOKED_AT_MAX) };
    let events = audit::between_in_tx(&mut tx, seen, until, ACTIONS).await?;
    commit(tx).await?;
    Ok(Happened { seen, until, events, now: row.instant("now")? })
}

async fn add(db: &Db, seen: i64, until: i64, firings: &[NewFiring], now: Instant) -> Result<()> {
    let doing = "noting what triggers recipes";
    let mut tx = db.write().await?;
    let moved =
        query("UPDATE recipe_looks SET seen = $1 WHERE seen = $2").bind(until).bind(seen).execute(&mut tx).await;
    if moved.map_err(on(doing))? == 0 {
        return Err(StoreError::Conflict("somebody else has looked for what triggers recipes".to_owned()));
    }
    let mut events = Vec::new();
    for firing in firings {
        let id = FiringId::generate();
        let state = if firing.passed_over.is_some() { FiringState::PassedOver } else { FiringState::Due };
        let ended_at = firing.passed_over.as_ref().map(|_| micros(now));
        let added = query(
            "INSERT INTO recipe_firings (id, recipe, event, subject, audit_event, snapshot, views, steps, reason, \
             fired_at, state, outcome, ended_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
             ON CONFLICT (recipe, event, subject) DO NOTHING",
        )
        .bind(id.to_string())
        .bind(firing.recipe.as_str())
        .bind(firing.trigger.as_str())
        .bind(&firing.subject)
        .bind(firing.number)
        .bind(firing.snapshot.map(|snapshot| snapshot.to_string()))
        .bind(json(&firing.views)?)
        .bind(json(&firing.steps)?)
        .bind(&firing.reason)
        .bind(micros(now))
        .bind(state.as_str())
        .bind(&firing.passed_over)
        .bind(ended_at)
        .execute(&mut tx)
        .await
        .map_err(on(doing))?;
        if added == 0 || firing.passed_over.is_some() {
            continue;
        }
        let who = actor(&firing.recipe, firing.trigger);
        let detail = json!({ "firing": id, "subject": firing.subject, "views": firing.views });
        let message = format!("the recipe `{}` is triggered: {}", firing.recipe, firing.reason);
        let notice = NewNotice::new(NoticeEvent::RecipeTriggered, firing.recipe.as_str(), now, message).by(&who);
        notices::notify_in_tx(&mut tx, &notice.with(detail.clone())).await?;
        events.push(
            NewAuditEvent::new(now, who, "recipe_trigger", firing.recipe.as_str()).because(&firing.reason).with(detail),
        );
    }
    for event in &events {
        audit::add_in_tx(&mut tx, event).await?;
    }
    commit(tx).await
}

const COLUMNS: &str = "SELECT id, recipe, event, subject, audit_event, snapshot, views, steps, reason, fired_at, state, \
                       steps_done, restore, outcome, ended_at FROM recipe_firings ";

async fn list(db: &Db, limit: u32) -> Result<Vec<Firing>> {
    let mut select = Builder::new(COLUMNS);
    select.push("ORDER BY fired_at DESC, id DESC LIMIT ").push_bind(limit_or_all(limit));
    all(db, select).await
}

async fn open(db: &Db) -> Result<Vec<Firing>> {
    let mut select = Builder::new(COLUMNS);
    select.push("WHERE ended_at IS NULL ORDER BY id");
    all(db, select).await
}

async fn all(db: &Db, select: Builder) -> Result<Vec<Firing>> {
    let rows = select.build().fetch_all(&mut *db.read().await?).await;
    rows.map_err(on("reading what triggered recipes"))?.iter().map(firing_from).collect()
}

fn firing_from(row: &Row) -> Result<Firing> {
    let (state, outcome): (FiringState, Option<String>) = (row.parse("state")?, row.get_as("outcome")?);
    Ok(Firing {
        id: row.parse("id")?,
        what: NewFiring {
            recipe: row.parse("recipe")?,
            trigger: row.parse("event")?,
            subject: row.get_as("subject")?,
            number: row.get_as("audit_event")?,
            snapshot: row.parse_option("snapshot")?,
            views: row.json("views")?,
            steps: row.json("steps")?,
            reason: row.get_as("reason")?,
            passed_over: outcome.clone().filter(|_| state == FiringState::PassedOver),
        },
        fired_at: row.instant("fired_at")?,
        progress: FiringProgress {
            state,
            steps_done: row.count("steps_done")?,
            restore: row.parse_option("restore")?,
            outcome,
        },
        ended_at: row.instant_option("ended_at")?,
    })
}

async fn advance(db: &Db, firing: &Firing, progress: &FiringProgress, now: Instant) -> Result<()> {
    let doing = "noting how far a recipe is";
    let mut tx = db.write().await?;
    let row = query(locked!(
        "SELECT id, recipe, event, subject, audit_event, snapshot, views, steps, reason, fired_at, state, steps_done, restore, \
         outcome, ended_at FROM recipe_firings WHERE id = $1"
    ))
    .bind(firing.id.to_string())
    .fetch_optional(&mut tx)
    .await
    .map_err(on(doing))?
    .ok_or_else(|| StoreError::NotFound { what: "triggered recipe", name: firing.id.to_string() })?;
    let known = firing_from(&row)?.progress;
    if known == *progress {
        return commit(tx).await;
    }
    if known != firing.progress {
        return Err(StoreError::Conflict(format!("somebody else carries out the recipe `{}`", firing.what.recipe)));
    }
    query(
        "UPDATE recipe_firings SET state = $1, steps_done = $2, restore = $3, outcome = $4, ended_at = $5 WHERE id = $6",
    )
    .bind(progress.state.as_str())
    .bind(progress.steps_done)
    .bind(progress.restore.map(|restore| restore.to_string()))
    .bind(&progress.outcome)
    .bind(Some(micros(now)).filter(|_| !progress.state.is_open()))
    .bind(firing.id.to_string())
    .execute(&mut tx)
    .await
    .map_err(on(doing))?;
    if !progress.state.is_open() {
        tell_end(&mut tx, firing, progress, now).await?;
    }
    commit(tx).await
}

async fn tell_end(tx: &mut Conn, firing: &Firing, progress: &FiringProgress, now: Instant) -> Result<()> {
    let what = &firing.what;
    let outcome = progress.outcome.as_deref().unwrap_or_default();
    let told = match progress.state {
        FiringState::Done => Some((NoticeEvent::RecipeFinished, format!("has done all its steps ({})", what.reason))),
        FiringState::Stopped => Some((NoticeEvent::RecipeFailed, format!("stopped: {outcome}"))),
        _ => None,
    };
    let detail = json!({
        "firing": firing.id,
        "views": what.views,
        "steps_done": progress.steps_done,
        "whole": progress.state == FiringState::Done,
        "outcome": progress.outcome,
    });
    if let Some((event, end)) = told {
        let message = format!("the recipe `{}`, triggered by {}, {end}", what.recipe, what.trigger);
        let notice = NewNotice::new(event, what.recipe.as_str(), now, message).by(firing.actor());
        notices::notify_in_tx(tx, &notice.with(detail.clone())).await?;
    }
    let event = NewAuditEvent::new(now, firing.actor(), "recipe_run", what.recipe.as_str()).because(&what.reason);
    audit::add_in_tx(tx, &event.with(detail)).await
}
