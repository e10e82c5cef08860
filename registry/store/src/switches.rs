//! Feature switches: what is off, since when, and the revision by which online stores tell old from new.

use async_trait::async_trait;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::store::Result;
use tidegate_registry::switches::{Off, Switch, SwitchChange, Switches, Switching, ViewSwitches};

use crate::codec::{micros, number};
use crate::db::postgres::CALL_MAX;
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Row, query};
use crate::{SqlStore, audit, notices};

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Switching for SqlStore<D> {
    async fn switches(&self) -> Result<Switches> {
        self.db.run(CALL_MAX, || list(&self.db)).await
    }

    async fn switch_set(&self, change: &SwitchChange) -> Result<ViewSwitches> {
        self.db.run(CALL_MAX, || set(&self.db, change)).await
    }
}

async fn list(db: &Db) -> Result<Switches> {
    let mut tx = db.read_together().await?;
    let switches = in_tx(&mut tx).await?;
    commit(tx).await?;
    Ok(switches)
}

async fn in_tx(tx: &mut Conn) -> Result<Switches> {
    let rows = query(
        "SELECT view, feature, serve, below, actor, reason, changed_at, revision FROM feature_switches \
         ORDER BY view, feature",
    )
    .fetch_all(tx)
    .await
    .map_err(on("reading the switches"))?;
    let mut switches = Switches::default();
    for row in &rows {
        let revision: u64 = row.count("revision")?;
        let newest = switches.revisions.entry(row.parse("view")?).or_default();
        *newest = revision.max(*newest);
        switches.switches.extend(switch_from(row, revision)?);
    }
    Ok(switches)
}

fn switch_from(row: &Row, revision: u64) -> Result<Option<Switch>> {
    let Some(serve) = row.parse_option("serve")? else { return Ok(None) };
    Ok(Some(Switch {
        view: row.parse("view")?,
        feature: row.get_as("feature")?,
        off: Off { serve, below: row.count("below")? },
        actor: row.get_as("actor")?,
        reason: row.get_as("reason")?,
        changed_at: row.instant("changed_at")?,
        revision,
    }))
}

async fn set(db: &Db, change: &SwitchChange) -> Result<ViewSwitches> {
    let mut tx = db.write_alone().await?;
    let known = in_tx(&mut tx).await?;
    let is_it = |switch: &&Switch| switch.view == change.view && switch.feature == change.feature;
    let before = known.switches.iter().find(is_it).map(|switch| switch.off);
    let of_view = known.of(&change.view);
    if before == change.off && of_view.revision >= change.above {
        commit(tx).await?;
        return Ok(of_view);
    }
    let newest = known.revisions.values().copied().max().unwrap_or(0);
    let revision = newest.max(change.above) + 1;
    query(
        "INSERT INTO feature_switches (view, feature, serve, below, actor, reason, changed_at, revision) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (view, feature) DO UPDATE SET serve = excluded.serve, below = excluded.below, \
         actor = excluded.actor, reason = excluded.reason, changed_at = excluded.changed_at, revision = excluded.revision",
    )
    .bind(change.view.to_string())
    .bind(&change.feature)
    .bind(change.off.map(|off| off.serve.as_str()))
    .bind(change.off.map_or(0, |off| i64::from(off.below)))
    .bind(&change.actor)
    .bind(&change.reason)
    .bind(micros(change.now))
    .bind(number(revision)?)
    .execute(&mut tx)
    .await
    .map_err(on("storing a switch"))?;
    let now = in_tx(&mut tx).await?.of(&change.view);
    if before != change.off {
        tell_in_tx(&mut tx, change, before).await?;
    }
    commit(tx).await?;
    Ok(now)
}

async fn tell_in_tx(tx: &mut Conn, change: &SwitchChange, before: Option<Off>) -> Result<()> {
    let subject = format!("{}.{}", change.view, change.feature);
    let message = match change.off {
        Some(off) => format!("{} switches `{subject}` off, readers get {off}: {}", change.actor, change.reason),
        None => format!("{} switches `{subject}` on again", change.actor),
    };
    let detail = json!({ "view": change.view, "feature": change.feature, "off": change.off });
    let notice = NewNotice::new(NoticeEvent::SwitchChanged, &subject, change.now, message);
    notices::notify_in_tx(tx, &notice.by(&change.actor).with(detail)).await?;
    let action = if change.off.is_some() { "feature_disable" } else { "feature_enable" };
    let mut event =
        NewAuditEvent::new(change.now, &change.actor, action, subject).change(json!(before), json!(change.off));
    event.reason = Some(change.reason.clone()).filter(|reason| !reason.is_empty());
    audit::add_in_tx(tx, &event).await
}
