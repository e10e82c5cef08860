//! Rows that are changed while they are read: who may, and doing it.

use sqlx::{Sqlite, Transaction};
use tidegate_registry::ids::ViewId;

use super::file::{commit, on};
use super::rows::{ROWS_PER_STATEMENT, ROWS_PER_TRANSACTION, insert, read_live};
use super::{SqliteOnline, refused, stored};
use crate::online::{Changes, EncodedRow, InPlace, OnlineError, Result};

/// By what a writer changes rows that are read.
#[derive(Clone, Copy)]
pub(super) enum Right {
    /// It has begun an upsert, and nobody a later one.
    Upsert,
    /// What it puts right is live.
    Repair,
}

/// [`OnlineStore::begin_upsert`](crate::online::OnlineStore::begin_upsert).
pub(super) async fn begin(
    store: &SqliteOnline,
    view: &ViewId,
    generation: u64,
    publish_number: u64,
) -> Result<InPlace> {
    let name = view.to_string();
    let mut tx = store.begin_write().await?;
    let Some(live) = read_live(&mut tx, &name).await? else { return Ok(InPlace::Gone) };
    let superseded = |live: u64| OnlineError::Superseded { view: view.clone(), live, asked: publish_number };
    if live.generation != generation {
        return if live.publish_number >= publish_number {
            Err(superseded(live.publish_number))
        } else {
            Ok(InPlace::Gone)
        };
    }
    if live.publish_number == publish_number {
        return Ok(InPlace::Published);
    }
    let writer = writer_of(&mut tx, &name).await?;
    let latest = writer.map_or(live.publish_number, |writer| writer.max(live.publish_number));
    if latest > publish_number {
        return Err(superseded(latest));
    }
    // Somebody began to change rows and never came to cut over: nobody knows what they are like.
    if latest > live.publish_number && latest != publish_number {
        return Ok(InPlace::Gone);
    }
    sqlx::query(
        "INSERT INTO writers (view, publish_number) VALUES ($1, $2)
         ON CONFLICT (view) DO UPDATE SET publish_number = $2",
    )
    .bind(&name)
    .bind(stored(view, publish_number)?)
    .execute(&mut *tx)
    .await
    .map_err(on("beginning to change"))?;
    commit(tx).await?;
    Ok(InPlace::Ready)
}

/// Changes rows in place. Each transaction asks again who may, so a writer that was overtaken changes nothing.
pub(super) async fn change(
    store: &SqliteOnline,
    view: &ViewId,
    generation: u64,
    publish_number: u64,
    changes: &Changes,
    right: Right,
) -> Result<()> {
    let (name, number) = (view.to_string(), stored(view, generation)?);
    let rows: Vec<&[EncodedRow]> =
        changes.added.chunks(ROWS_PER_STATEMENT).chain(changes.changed.chunks(ROWS_PER_STATEMENT)).collect();
    let removed: Vec<&[String]> = changes.removed.chunks(ROWS_PER_STATEMENT).collect();
    const STEPS: usize = ROWS_PER_TRANSACTION / ROWS_PER_STATEMENT;
    let steps = rows.len().max(removed.len()).div_ceil(STEPS).max(1);
    for step in 0..steps {
        let mut tx = store.begin_write().await?;
        let live = read_live(&mut tx, &name).await?;
        let writer = writer_of(&mut tx, &name).await?;
        let live_number = live.as_ref().map_or(0, |live| live.publish_number);
        let latest = writer.map_or(live_number, |writer| writer.max(live_number));
        let is_live = live.is_some_and(|live| live.generation == generation);
        let allowed = match right {
            Right::Upsert => is_live && writer == Some(publish_number),
            Right::Repair => is_live && live_number == publish_number && latest == publish_number,
        };
        if !allowed && (latest > publish_number || matches!(right, Right::Repair)) {
            return Err(OnlineError::Superseded { view: view.clone(), live: latest, asked: publish_number });
        }
        if !allowed {
            return Err(refused(view, generation, "is not being changed"));
        }
        for rows in rows.iter().skip(step * STEPS).take(STEPS) {
            insert(&mut tx, &name, number, rows).await?;
        }
        let removed: Vec<&String> = removed.iter().skip(step * STEPS).take(STEPS).flat_map(|keys| *keys).collect();
        for entity_key in removed {
            sqlx::query("DELETE FROM feature_rows WHERE view = $1 AND generation = $2 AND entity_key = $3")
                .bind(&name)
                .bind(number)
                .bind(entity_key)
                .execute(&mut *tx)
                .await
                .map_err(on("removing rows from"))?;
        }
        commit(tx).await?;
    }
    Ok(())
}

/// The publication that changes rows of the view in place, or did so last.
async fn writer_of(tx: &mut Transaction<'static, Sqlite>, view: &str) -> Result<Option<u64>> {
    let number: Option<i64> = sqlx::query_scalar("SELECT publish_number FROM writers WHERE view = $1")
        .bind(view)
        .fetch_optional(&mut **tx)
        .await
        .map_err(on("reading"))?;
    Ok(number.map(i64::unsigned_abs))
}
