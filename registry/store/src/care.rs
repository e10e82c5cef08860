//! Looking after a registry: what must be kept, pins, duties, compaction, and making it say what the lake holds.

mod copy;
mod rebuild;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::care::{Care, KeptSnapshot, Pin, PrunedRows, Rebuild, TableRows, ViewKeep};
use tidegate_registry::ids::{RegistryId, RunId, SnapshotId, ViewId};
use tidegate_registry::restore::TableTarget;
use tidegate_registry::run::TaskOutput;
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::Instant;

use crate::SqlStore;
use crate::codec::{self, duration_micros, micros, number};
use crate::db::postgres::{BULK_MAX, CALL_MAX};
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, db_now, query};
use crate::{audit, datasets, notices, restoring};

/// Pinning, beginning a restore and expiring exclude each other.
pub(crate) const RETENTION_LINE: &str = "tidegate retention";

/// How long a copy may take.
const COPY_MAX: Duration = Duration::from_secs(6 * 3_600);

/// Whether anybody is given what a snapshot left: the newest interval of a view, or its live generation, comes from it. A
/// generation that is changed in place is that of the last one to write it.
macro_rules! is_live {
    ($snapshot:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM snapshot_views AS lv JOIN view_states AS ls ON ls.view = lv.view \
             LEFT JOIN ledger AS ll ON ll.view = lv.view AND ll.interval_end = ls.newest_end \
             AND ll.interval_start = ls.newest_start WHERE lv.snapshot = ",
            $snapshot,
            " AND (ll.snapshot = lv.snapshot OR (ls.online_generation = lv.online_generation \
             AND NOT EXISTS (SELECT 1 FROM snapshot_views AS lw WHERE lw.view = lv.view \
             AND lw.online_generation = lv.online_generation AND lw.flipped = 0 \
             AND lw.publish_number > lv.publish_number))))"
        )
    };
}

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Care for SqlStore<D> {
    async fn keep(&self, views: &[ViewId]) -> Result<IndexMap<ViewId, ViewKeep>> {
        self.db.run(BULK_MAX, || keep(&self.db, views)).await
    }

    async fn known_views(&self) -> Result<Vec<ViewId>> {
        self.db.run(CALL_MAX, || known_views(&self.db)).await
    }

    async fn open_run_ids(&self) -> Result<Vec<RunId>> {
        self.db.run(CALL_MAX, || open_run_ids(&self.db)).await
    }

    async fn snapshots_expire(&self, ids: &[SnapshotId], now: Instant) -> Result<Vec<SnapshotId>> {
        self.db.run(BULK_MAX, || snapshots_expire(&self.db, ids, now)).await
    }

    async fn snapshot_pin(&self, id: SnapshotId, pin: Pin) -> Result<()> {
        self.db.run(CALL_MAX, || snapshot_pin(&self.db, id, &pin)).await
    }

    async fn snapshot_unpin(&self, id: SnapshotId, actor: &str, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || snapshot_unpin(&self.db, id, actor, now)).await
    }

    async fn pins(&self) -> Result<BTreeMap<SnapshotId, Pin>> {
        self.db.run(CALL_MAX, || pins(&self.db)).await
    }

    async fn duty_take(&self, name: &str, owner: &str, lease: Duration) -> Result<bool> {
        self.db.run(CALL_MAX, || duty_take(&self.db, name, owner, lease)).await
    }

    async fn duty_release(&self, name: &str, owner: &str) -> Result<()> {
        self.db.run(CALL_MAX, || duty_release(&self.db, name, owner)).await
    }

    async fn duties(&self) -> Result<Vec<(String, String)>> {
        self.db.run(CALL_MAX, || duties(&self.db)).await
    }

    async fn compaction_take(&self, view: &ViewId) -> Result<Option<u64>> {
        self.db.run(CALL_MAX, || compaction_take(&self.db, view)).await
    }

    async fn compaction_record(&self, view: &ViewId, publish_number: u64, delta_version: u64) -> Result<bool> {
        self.db.run(CALL_MAX, || compaction_record(&self.db, view, publish_number, delta_version)).await
    }

    async fn rows_prune(&self, before: Instant) -> Result<PrunedRows> {
        self.db.run(BULK_MAX, || rows_prune(&self.db, before)).await
    }

    async fn row_counts(&self) -> Result<Vec<TableRows>> {
        self.db.run(BULK_MAX, || row_counts(&self.db)).await
    }

    async fn backup(&self, file: &Path) -> Result<Vec<TableRows>> {
        self.db.run(COPY_MAX, || copy::backup(&self.db, file)).await
    }

    async fn restore(&self, file: &Path, replace: bool, actor: &str, now: Instant) -> Result<Vec<TableRows>> {
        self.db.run(COPY_MAX, || copy::restore(&self.db, file, replace, actor, now)).await
    }

    async fn schema_version(&self) -> Result<i64> {
        self.db.run(CALL_MAX, || schema_version(&self.db)).await
    }

    async fn adopt_id(&self, id: RegistryId) -> Result<()> {
        self.db.run(CALL_MAX, || adopt_id(&self.db, id)).await
    }

    async fn rebuild(&self, request: &Rebuild, now: Instant) -> Result<()> {
        self.db.run(BULK_MAX, || rebuild::rebuild(&self.db, request, now)).await
    }
}

async fn known_views(db: &Db) -> Result<Vec<ViewId>> {
    let mut tx = db.read().await?;
    let rows = query("SELECT view FROM view_states ORDER BY view")
        .fetch_all(&mut tx)
        .await
        .map_err(on("listing what is known of views"))?;
    rows.iter().map(|row| row.parse("view")).collect()
}

async fn open_run_ids(db: &Db) -> Result<Vec<RunId>> {
    let mut tx = db.read().await?;
    let rows = query("SELECT id FROM runs WHERE finished_at IS NULL ORDER BY id")
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading the open runs"))?;
    rows.iter().map(|row| row.parse("id")).collect()
}

async fn pins(db: &Db) -> Result<BTreeMap<SnapshotId, Pin>> {
    let mut tx = db.read().await?;
    let rows = query("SELECT snapshot, pinned_at, actor, reason, files FROM snapshot_pins ORDER BY snapshot")
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading pins"))?;
    rows.iter()
        .map(|row| {
            let pin = Pin {
                pinned_at: row.instant("pinned_at")?,
                actor: row.get_as("actor")?,
                reason: row.get_as("reason")?,
                files: row.json("files")?,
            };
            Ok((row.parse("snapshot")?, pin))
        })
        .collect()
}

async fn duty_release(db: &Db, name: &str, owner: &str) -> Result<()> {
    let mut tx = db.write_one().await?;
    query("DELETE FROM duties WHERE name = $1 AND owner = $2")
        .bind(name)
        .bind(owner)
        .execute(&mut tx)
        .await
        .map_err(on("letting go of a duty"))?;
    commit(tx).await
}

async fn duties(db: &Db) -> Result<Vec<(String, String)>> {
    let mut tx = db.read().await?;
    let sql = concat!("SELECT name, owner FROM duties WHERE until > ", db_now!(), " ORDER BY name");
    let rows = query(sql).fetch_all(&mut tx).await.map_err(on("reading who has which duty"))?;
    rows.iter().map(|row| Ok((row.get_as("name")?, row.get_as("owner")?))).collect()
}

async fn schema_version(db: &Db) -> Result<i64> {
    let mut tx = db.read().await?;
    let row = query("SELECT coalesce(max(version), 0) AS version FROM schema_steps")
        .fetch_one(&mut tx)
        .await
        .map_err(on("reading the schema's version"))?;
    row.get_as("version")
}

async fn adopt_id(db: &Db, id: RegistryId) -> Result<()> {
    let mut tx = db.write_alone().await?;
    let row =
        query("SELECT revision FROM registry").fetch_one(&mut tx).await.map_err(on("reading what the registry is"))?;
    if row.get_as::<i64>("revision")? != 0 {
        return Err(StoreError::Refused(
            "something was applied to this registry, so it cannot take the place of another: use an empty one".into(),
        ));
    }
    query("UPDATE registry SET id = $1")
        .bind(id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("naming the registry"))?;
    commit(tx).await
}

async fn row_counts(db: &Db) -> Result<Vec<TableRows>> {
    let mut tx = db.read_together().await?;
    let mut counts = Vec::with_capacity(copy::TABLES.len());
    for (table, _) in copy::TABLES {
        counts.push(TableRows { table: (*table).to_owned(), rows: count_rows(&mut tx, table).await? });
    }
    commit(tx).await?;
    Ok(counts)
}

async fn count_rows(tx: &mut Conn, table: &'static str) -> Result<u64> {
    let mut query = Builder::new("SELECT count(*) AS rows FROM ");
    query.push(table);
    let row = query.build().fetch_one(tx).await.map_err(on("counting rows"))?;
    row.count("rows")
}

async fn keep(db: &Db, views: &[ViewId]) -> Result<IndexMap<ViewId, ViewKeep>> {
    let mut tx = db.read_together().await?;
    let mut keeps = IndexMap::with_capacity(views.len());
    for view in views {
        let row = query("SELECT delta_version, publish_number, publishing FROM view_states WHERE view = $1")
            .bind(view.to_string())
            .fetch_optional(&mut tx)
            .await
            .map_err(on("reading what is known of a view"))?;
        let Some(row) = row else { continue };
        keeps.insert(
            view.clone(),
            ViewKeep {
                delta_version: row.count("delta_version")?,
                publish_number: row.count("publish_number")?,
                publishing: row.parse_option("publishing")?,
                snapshots: kept_snapshots(&mut tx, view).await?,
                pinned_versions: BTreeMap::new(),
                targets: BTreeSet::new(),
                quarantine_targets: BTreeSet::new(),
            },
        );
    }
    let rows = query(
        "SELECT tasks.run, tasks.output FROM runs JOIN tasks ON tasks.run = runs.id \
         WHERE runs.finished_at IS NULL AND tasks.kind = 'pin' AND tasks.output IS NOT NULL",
    )
    .fetch_all(&mut tx)
    .await
    .map_err(on("reading what open runs are bound to"))?;
    for row in &rows {
        let run: RunId = row.parse("run")?;
        let TaskOutput::Pins(pins) = row.json::<TaskOutput>("output")? else { continue };
        for (view, pin) in pins.views {
            if let Some(keep) = keeps.get_mut(&view) {
                keep.pinned_versions.insert(run, pin.delta_version);
            }
        }
    }
    for (run, plan) in restoring::under_way_in_tx(&mut tx).await? {
        for (view, restore) in &plan.views {
            let Some(keep) = keeps.get_mut(view) else { continue };
            keep.targets.extend(restore.table.versions().map(|version| (run, version)));
            let aside = restore.quarantine.iter().flat_map(TableTarget::versions);
            keep.quarantine_targets.extend(aside.map(|version| (run, version)));
        }
    }
    commit(tx).await?;
    Ok(keeps)
}

async fn kept_snapshots(tx: &mut Conn, view: &ViewId) -> Result<Vec<KeptSnapshot>> {
    let rows = query(concat!(
        "SELECT s.id, s.created_at, s.interval_start, s.interval_end, v.delta_version, \
         v.quarantine_version, CASE WHEN ",
        is_live!("s.id"),
        " THEN CAST(1 AS BIGINT) ELSE 0 END AS live, p.pinned_at, p.actor, p.reason, p.files FROM snapshot_views AS v \
         JOIN snapshots AS s ON s.id = v.snapshot LEFT JOIN snapshot_pins AS p ON p.snapshot = s.id \
         WHERE v.view = $1 AND s.expired_at IS NULL ORDER BY s.number"
    ))
    .bind(view.to_string())
    .fetch_all(tx)
    .await
    .map_err(on("reading the snapshots of a view"))?;
    let mut of_datasets = datasets::pins_in_tx(tx, view).await?;
    rows.iter()
        .map(|row| {
            let id = row.parse("id")?;
            let pin = match row.instant_option("pinned_at")? {
                Some(pinned_at) => Some(Pin {
                    pinned_at,
                    actor: row.get_as("actor")?,
                    reason: row.get_as("reason")?,
                    files: row.json("files")?,
                }),
                None => of_datasets.remove(&id),
            };
            Ok(KeptSnapshot {
                id,
                created_at: row.instant("created_at")?,
                interval: row.interval()?,
                delta_version: row.count("delta_version")?,
                quarantine_version: row.count_option("quarantine_version")?,
                live: row.get_as("live")?,
                pin,
            })
        })
        .collect()
}

async fn snapshots_expire(db: &Db, ids: &[SnapshotId], now: Instant) -> Result<Vec<SnapshotId>> {
    let mut tx = db.write().await?;
    tx.line_up(RETENTION_LINE).await?;
    let needed = restoring::needed_in_tx(&mut tx).await?;
    let mut expired = Vec::new();
    for id in ids.iter().filter(|id| !needed.contains(id)) {
        // What made it expendable may have changed since it was decided.
        let done = query(concat!(
            "UPDATE snapshots SET expired_at = coalesce(expired_at, $1) WHERE id = $2 \
             AND id NOT IN (SELECT snapshot FROM snapshot_pins) AND NOT EXISTS (SELECT 1 FROM dataset_views AS dv \
             JOIN datasets AS d ON d.id = dv.dataset WHERE dv.snapshot = snapshots.id AND d.pinned_at IS NOT NULL) AND NOT ",
            is_live!("snapshots.id")
        ))
        .bind(micros(now))
        .bind(id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("expiring a snapshot"))?;
        if done > 0 {
            expired.push(*id);
        }
    }
    if !expired.is_empty() {
        let event = NewAuditEvent::new(now, "janitor", "snapshots_expire", "registry");
        audit::add_in_tx(&mut tx, &event.with(json!({ "snapshots": expired }))).await?;
    }
    commit(tx).await?;
    Ok(expired)
}

async fn snapshot_pin(db: &Db, id: SnapshotId, pin: &Pin) -> Result<()> {
    let mut tx = db.write().await?;
    tx.line_up(RETENTION_LINE).await?;
    if snapshot_expired(&mut tx, id).await? {
        return Err(StoreError::Refused(format!(
            "the snapshot `{id}` is expired: its files may be gone, so a pin could not keep its promise"
        )));
    }
    query(
        "INSERT INTO snapshot_pins (snapshot, pinned_at, actor, reason, files) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (snapshot) DO UPDATE SET pinned_at = excluded.pinned_at, actor = excluded.actor, \
         reason = excluded.reason, files = excluded.files",
    )
    .bind(id.to_string())
    .bind(micros(pin.pinned_at))
    .bind(&pin.actor)
    .bind(&pin.reason)
    .bind(codec::json(&pin.files)?)
    .execute(&mut tx)
    .await
    .map_err(on("pinning a snapshot"))?;
    let subject = id.to_string();
    let event = NewAuditEvent::new(pin.pinned_at, &pin.actor, "snapshot_pin", subject).because(&pin.reason);
    audit::add_in_tx(&mut tx, &event).await?;
    commit(tx).await
}

async fn snapshot_unpin(db: &Db, id: SnapshotId, actor: &str, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    snapshot_expired(&mut tx, id).await?;
    let done = query("DELETE FROM snapshot_pins WHERE snapshot = $1")
        .bind(id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("unpinning a snapshot"))?;
    if done > 0 {
        audit::add_in_tx(&mut tx, &NewAuditEvent::new(now, actor, "snapshot_unpin", id.to_string())).await?;
    }
    commit(tx).await
}

pub(crate) async fn snapshot_expired(tx: &mut Conn, id: SnapshotId) -> Result<bool> {
    let row = query("SELECT expired_at FROM snapshots WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("reading a snapshot"))?
        .ok_or_else(|| StoreError::NotFound { what: "snapshot", name: id.to_string() })?;
    Ok(row.instant_option("expired_at")?.is_some())
}

async fn duty_take(db: &Db, name: &str, owner: &str, lease: Duration) -> Result<bool> {
    let mut tx = db.write_one().await?;
    let done = query(concat!(
        "INSERT INTO duties (name, owner, until) VALUES ($1, $2, ",
        db_now!(),
        " + $3) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until \
         WHERE duties.owner = excluded.owner OR duties.until <= ",
        db_now!()
    ))
    .bind(name)
    .bind(owner)
    .bind(duration_micros(lease))
    .execute(&mut tx)
    .await
    .map_err(on("taking a duty"))?;
    commit(tx).await?;
    Ok(done > 0)
}

async fn compaction_take(db: &Db, view: &ViewId) -> Result<Option<u64>> {
    let mut tx = db.write_one().await?;
    let row = query(
        "UPDATE view_states SET publish_number = publish_number + 1 WHERE view = $1 AND publishing IS NULL \
         RETURNING publish_number",
    )
    .bind(view.to_string())
    .fetch_optional(&mut tx)
    .await
    .map_err(on("numbering a compaction"))?;
    commit(tx).await?;
    row.map(|row| row.count("publish_number")).transpose()
}

async fn compaction_record(db: &Db, view: &ViewId, publish_number: u64, delta_version: u64) -> Result<bool> {
    let mut tx = db.write_one().await?;
    let done = query(
        "UPDATE view_states SET recorded_number = $1, delta_version = $2 WHERE view = $3 AND publishing IS NULL \
         AND recorded_number <= $1 AND delta_version <= $2",
    )
    .bind(number(publish_number)?)
    .bind(number(delta_version)?)
    .bind(view.to_string())
    .execute(&mut tx)
    .await
    .map_err(on("recording a compaction"))?;
    commit(tx).await?;
    Ok(done > 0)
}

async fn rows_prune(db: &Db, before: Instant) -> Result<PrunedRows> {
    let mut tx = db.write().await?;
    let log_lines = query(
        "DELETE FROM task_logs WHERE run IN (SELECT id FROM runs WHERE finished_at IS NOT NULL AND finished_at < $1)",
    )
    .bind(micros(before))
    .execute(&mut tx)
    .await
    .map_err(on("removing old log lines"))?;
    let outputs = query(
        "UPDATE tasks SET output = NULL WHERE output IS NOT NULL \
         AND run IN (SELECT id FROM runs WHERE finished_at IS NOT NULL AND finished_at < $1)",
    )
    .bind(micros(before))
    .execute(&mut tx)
    .await
    .map_err(on("removing old outputs"))?;
    let notices = notices::prune_in_tx(&mut tx, before).await?;
    commit(tx).await?;
    Ok(PrunedRows { log_lines, outputs, notices })
}
