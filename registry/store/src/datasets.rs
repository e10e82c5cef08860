//! Datasets: what was built, from which snapshots, and which of these are kept for it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::care::Pin;
use tidegate_registry::dataset::{Dataset, DatasetFilter, DatasetPin, Datasets};
use tidegate_registry::ids::{DatasetId, SnapshotId, ViewId};
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::Instant;

use crate::care::{RETENTION_LINE, snapshot_expired};
use crate::codec::{json, limit_or_all, micros, number};
use crate::db::postgres::{BULK_MAX, CALL_MAX};
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, Row, query};
use crate::{SqlStore, audit};

/// Values of one statement: below the limits of both databases.
const PAIRS_PER_QUERY: usize = 2_000;

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Datasets for SqlStore<D> {
    async fn dataset_record(&self, dataset: &Dataset) -> Result<()> {
        self.db.run(CALL_MAX, || record(&self.db, dataset)).await
    }

    async fn datasets(&self, filter: &DatasetFilter) -> Result<Vec<Dataset>> {
        self.db.run(BULK_MAX, || list(&self.db, filter)).await
    }

    async fn dataset_pin(&self, id: DatasetId, pin: DatasetPin) -> Result<()> {
        self.db.run(CALL_MAX, || set_pin(&self.db, id, &pin)).await
    }

    async fn dataset_unpin(&self, id: DatasetId, actor: &str, now: Instant) -> Result<()> {
        self.db.run(CALL_MAX, || unpin(&self.db, id, actor, now)).await
    }
}

async fn record(db: &Db, dataset: &Dataset) -> Result<()> {
    let mut tx = db.write().await?;
    tx.line_up(RETENTION_LINE).await?;
    let manifest = &dataset.manifest;
    let pin = dataset.pin.as_ref();
    let done = query(
        "INSERT INTO datasets (id, name, place, created_at, actor, manifest, pinned_at, pin_actor, pin_reason, pin_files) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO NOTHING",
    )
    .bind(dataset.id.to_string())
    .bind(dataset.name.as_deref())
    .bind(&dataset.place)
    .bind(micros(dataset.created_at))
    .bind(&dataset.actor)
    .bind(json(manifest)?)
    .bind(pin.map(|pin| micros(pin.pinned_at)))
    .bind(pin.map(|pin| pin.actor.as_str()))
    .bind(pin.map(|pin| pin.reason.as_str()))
    .bind(pin.map(|pin| json(&pin.files)).transpose()?)
    .execute(&mut tx)
    .await
    .map_err(on("recording a dataset"))?;
    if done == 0 {
        return commit(tx).await; // recorded before
    }
    for (view, input) in &manifest.views {
        query("INSERT INTO dataset_views (dataset, view, number, snapshot) VALUES ($1, $2, $3, $4)")
            .bind(dataset.id.to_string())
            .bind(view.to_string())
            .bind(number(manifest.number)?)
            .bind(input.snapshot.map(|snapshot| snapshot.to_string()))
            .execute(&mut tx)
            .await
            .map_err(on("recording what a dataset was built from"))?;
    }
    if pin.is_some() {
        not_expired(&mut tx, dataset.id).await?;
    }
    let views: Vec<&ViewId> = manifest.views.keys().collect();
    let detail = json!({
        "name": dataset.name, "place": dataset.place, "rows": manifest.output.rows, "digest": manifest.output.digest,
        "views": views, "pinned": pin.is_some(),
    });
    let event = NewAuditEvent::new(dataset.created_at, &dataset.actor, "dataset_build", dataset.id.to_string());
    audit::add_in_tx(&mut tx, &event.with(detail)).await?;
    commit(tx).await
}

async fn list(db: &Db, filter: &DatasetFilter) -> Result<Vec<Dataset>> {
    let mut tx = db.read_together().await?;
    let mut found: BTreeMap<String, Dataset> = BTreeMap::new();
    let of_none = [None];
    let pairs: Vec<Option<&[(ViewId, SnapshotId)]>> = match &filter.built_from {
        None => of_none.to_vec(),
        Some(pairs) => pairs.chunks(PAIRS_PER_QUERY).map(Some).collect(),
    };
    for pairs in pairs {
        let rows = select(filter, pairs).build().fetch_all(&mut tx).await.map_err(on("reading the datasets"))?;
        for row in &rows {
            let dataset = dataset_from(row)?;
            found.insert(dataset.id.to_string(), dataset);
        }
    }
    commit(tx).await?;
    let all = found.into_values().rev();
    Ok(if filter.limit == 0 { all.collect() } else { all.take(filter.limit as usize).collect() })
}

fn select(filter: &DatasetFilter, pairs: Option<&[(ViewId, SnapshotId)]>) -> Builder {
    let mut select = Builder::new(
        "SELECT d.id, d.name, d.place, d.created_at, d.actor, d.manifest, d.pinned_at, d.pin_actor, d.pin_reason, d.pin_files \
         FROM datasets AS d WHERE 1 = 1",
    );
    if let Some(called) = &filter.called {
        select.push(" AND (d.name = ").push_bind(called.clone());
        // Ids hold nothing that LIKE reads as a pattern; what does is no beginning of an id.
        if !called.is_empty() && called.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            select.push(" OR d.id LIKE ").push_bind(format!("{}%", called.to_lowercase()));
        }
        select.push(")");
    }
    if let Some(place) = &filter.place {
        select.push(" AND d.place = ").push_bind(place.clone());
    }
    if !filter.views.is_empty() {
        select.push(" AND EXISTS (SELECT 1 FROM dataset_views AS v WHERE v.dataset = d.id AND v.view IN ");
        select.push_list(filter.views.iter().map(ToString::to_string)).push(")");
    }
    if let Some(pairs) = pairs {
        select.push(
            " AND EXISTS (SELECT 1 FROM dataset_views AS v JOIN ledger_log AS l ON l.view = v.view AND l.since <= v.number \
             AND (l.until IS NULL OR l.until > v.number) WHERE v.dataset = d.id AND (l.view, l.snapshot) IN (VALUES ",
        );
        select.push_rows(pairs.iter().map(|(view, snapshot)| [view.to_string().into(), snapshot.to_string().into()]));
        select.push("))");
    }
    select.push(" ORDER BY d.id DESC LIMIT ").push_bind(limit_or_all(filter.limit));
    select
}

fn dataset_from(row: &Row) -> Result<Dataset> {
    let pin = match row.instant_option("pinned_at")? {
        Some(pinned_at) => Some(DatasetPin {
            pinned_at,
            actor: row.get_as("pin_actor")?,
            reason: row.get_as("pin_reason")?,
            files: row.json("pin_files")?,
        }),
        None => None,
    };
    Ok(Dataset {
        id: row.parse("id")?,
        name: row.get_as("name")?,
        place: row.get_as("place")?,
        created_at: row.instant("created_at")?,
        actor: row.get_as("actor")?,
        manifest: row.json("manifest")?,
        pin,
    })
}

async fn set_pin(db: &Db, id: DatasetId, pin: &DatasetPin) -> Result<()> {
    let mut tx = db.write().await?;
    tx.line_up(RETENTION_LINE).await?;
    let done =
        query("UPDATE datasets SET pinned_at = $1, pin_actor = $2, pin_reason = $3, pin_files = $4 WHERE id = $5")
            .bind(micros(pin.pinned_at))
            .bind(&pin.actor)
            .bind(&pin.reason)
            .bind(json(&pin.files)?)
            .bind(id.to_string())
            .execute(&mut tx)
            .await
            .map_err(on("pinning a dataset"))?;
    if done == 0 {
        return Err(StoreError::NotFound { what: "dataset", name: id.to_string() });
    }
    not_expired(&mut tx, id).await?;
    let event = NewAuditEvent::new(pin.pinned_at, &pin.actor, "dataset_pin", id.to_string());
    audit::add_in_tx(&mut tx, &event.because(&pin.reason)).await?;
    commit(tx).await
}

/// Refuses a pin that could not keep its promise.
async fn not_expired(tx: &mut Conn, id: DatasetId) -> Result<()> {
    let rows =
        query("SELECT view, snapshot FROM dataset_views WHERE dataset = $1 AND snapshot IS NOT NULL ORDER BY view")
            .bind(id.to_string())
            .fetch_all(tx)
            .await
            .map_err(on("reading what a dataset was built from"))?;
    for row in &rows {
        let snapshot: SnapshotId = row.parse("snapshot")?;
        if snapshot_expired(tx, snapshot).await? {
            return Err(StoreError::Refused(format!(
                "the snapshot `{snapshot}` of {} is expired: its files may be gone, so a pin could not keep its promise",
                row.get_as::<String>("view")?
            )));
        }
    }
    Ok(())
}

async fn unpin(db: &Db, id: DatasetId, actor: &str, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let row = query("SELECT pinned_at FROM datasets WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&mut tx)
        .await
        .map_err(on("reading a dataset"))?
        .ok_or_else(|| StoreError::NotFound { what: "dataset", name: id.to_string() })?;
    if row.instant_option("pinned_at")?.is_some() {
        query(
            "UPDATE datasets SET pinned_at = NULL, pin_actor = NULL, pin_reason = NULL, pin_files = NULL WHERE id = $1",
        )
        .bind(id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("unpinning a dataset"))?;
        audit::add_in_tx(&mut tx, &NewAuditEvent::new(now, actor, "dataset_unpin", id.to_string())).await?;
    }
    commit(tx).await
}

/// The snapshots of `view` that pinned datasets keep, each with the oldest pin.
pub(crate) async fn pins_in_tx(tx: &mut Conn, view: &ViewId) -> Result<BTreeMap<SnapshotId, Pin>> {
    let rows = query(
        "SELECT v.snapshot, d.id, d.name, d.pinned_at, d.pin_actor, d.pin_reason, d.pin_files FROM dataset_views AS v \
         JOIN datasets AS d ON d.id = v.dataset WHERE v.view = $1 AND v.snapshot IS NOT NULL AND d.pinned_at IS NOT NULL \
         ORDER BY d.pinned_at DESC, d.id DESC",
    )
    .bind(view.to_string())
    .fetch_all(tx)
    .await
    .map_err(on("reading what datasets keep"))?;
    rows.iter()
        .map(|row| {
            let name: Option<String> = row.get_as("name")?;
            let called = name.map_or_else(|| row.get_as::<String>("id"), Ok)?;
            let pin = Pin {
                pinned_at: row.instant("pinned_at")?,
                actor: row.get_as("pin_actor")?,
                reason: format!("dataset `{called}`: {}", row.get_as::<String>("pin_reason")?),
                files: row.json("pin_files")?,
            };
            Ok((row.parse("snapshot")?, pin))
        })
        .collect()
}
