//! Whole generations: written where nobody reads, cut over in one transaction, removed in bounded steps.

use std::time::Duration;

use sqlx::{Sqlite, Transaction};
use tidegate_registry::ids::ViewId;

use super::file::{commit, on};
use super::rows::{ROWS_PER_STATEMENT, ROWS_PER_TRANSACTION, count_rows, insert, read_live};
use super::{SqliteOnline, refused, stored};
use crate::online::{Begun, CutOver, EncodedRow, OnlineError, Result};

/// [`OnlineStore::begin_generation`](crate::online::OnlineStore::begin_generation).
pub(super) async fn begin(store: &SqliteOnline, view: &ViewId, generation: u64) -> Result<Begun> {
    let (name, number) = (view.to_string(), stored(view, generation)?);
    let mut tx = store.begin_write().await?;
    if state_of(&mut tx, &name, number).await?.as_deref() == Some("published") {
        return Ok(Begun::Published);
    }
    sqlx::query(
        "INSERT INTO generations (view, generation, state) VALUES ($1, $2, 'writing')
         ON CONFLICT (view, generation) DO UPDATE SET state = 'writing', superseded_at = NULL",
    )
    .bind(&name)
    .bind(number)
    .execute(&mut *tx)
    .await
    .map_err(on("beginning a generation in"))?;
    commit(tx).await?;
    if wipe(store, &name, number, "writing").await? {
        Ok(Begun::Empty)
    } else {
        Err(refused(view, generation, "was taken over while it was emptied"))
    }
}

/// [`OnlineStore::write`](crate::online::OnlineStore::write).
pub(super) async fn write(store: &SqliteOnline, view: &ViewId, generation: u64, rows: &[EncodedRow]) -> Result<()> {
    let (name, number) = (view.to_string(), stored(view, generation)?);
    for part in rows.chunks(ROWS_PER_TRANSACTION) {
        let mut tx = store.begin_write().await?;
        match state_of(&mut tx, &name, number).await?.as_deref() {
            Some("writing") => {}
            Some(_) => return Err(refused(view, generation, "is finished, no rows can be added")),
            None => return Err(refused(view, generation, "was not begun")),
        }
        for rows in part.chunks(ROWS_PER_STATEMENT) {
            insert(&mut tx, &name, number, rows).await?;
        }
        commit(tx).await?;
    }
    Ok(())
}

/// [`OnlineStore::finish_generation`](crate::online::OnlineStore::finish_generation).
pub(super) async fn finish(store: &SqliteOnline, view: &ViewId, generation: u64, rows: u64) -> Result<()> {
    let (name, number) = (view.to_string(), stored(view, generation)?);
    let mut tx = store.begin_write().await?;
    match state_of(&mut tx, &name, number).await?.as_deref() {
        Some("writing" | "finished" | "published") => {}
        _ => return Err(refused(view, generation, "was not begun")),
    }
    let found = count_rows(&mut tx, &name, number).await?;
    if found != rows {
        return Err(refused(view, generation, &format!("holds {found} rows where {rows} were expected")));
    }
    sqlx::query("UPDATE generations SET state = 'finished' WHERE view = $1 AND generation = $2 AND state = 'writing'")
        .bind(&name)
        .bind(number)
        .execute(&mut *tx)
        .await
        .map_err(on("finishing a generation in"))?;
    commit(tx).await
}

/// [`OnlineStore::cut_over`](crate::online::OnlineStore::cut_over).
pub(super) async fn cut_over(store: &SqliteOnline, views: &[CutOver]) -> Result<()> {
    let mut tx = store.begin_write().await?;
    for step in views {
        let (name, number) = (step.view.to_string(), stored(&step.view, step.generation)?);
        let live = read_live(&mut tx, &name).await?;
        if let Some(live) = &live {
            let same = live.publish_number == step.publish_number && live.generation == step.generation;
            if same {
                continue;
            }
            if live.publish_number >= step.publish_number {
                return Err(OnlineError::Superseded {
                    view: step.view.clone(),
                    live: live.publish_number,
                    asked: step.publish_number,
                });
            }
        }
        match state_of(&mut tx, &name, number).await?.as_deref() {
            Some("finished" | "published") => {}
            Some("writing") => return Err(refused(&step.view, step.generation, "is not finished")),
            _ => return Err(refused(&step.view, step.generation, "does not exist")),
        }
        switch(&mut tx, &name, number, step).await?;
    }
    commit(tx).await
}

/// [`OnlineStore::prune`](crate::online::OnlineStore::prune).
pub(super) async fn prune(
    store: &SqliteOnline,
    view: &ViewId,
    keep: u32,
    age_min: Duration,
    dead_below: u64,
) -> Result<Vec<u64>> {
    let name = view.to_string();
    let mut tx = store.begin_write().await?;
    let listed: Vec<(i64, String, Option<i64>, i64)> = sqlx::query_as(
        "SELECT generation, state, superseded_at, CAST(unixepoch('subsec') * 1000000 AS INTEGER) - superseded_at
         FROM generations
         WHERE view = $1 AND generation NOT IN (SELECT generation FROM live WHERE view = $1)
         ORDER BY superseded_at DESC NULLS FIRST, generation DESC",
    )
    .bind(&name)
    .fetch_all(&mut *tx)
    .await
    .map_err(on("listing generations of"))?
    .iter()
    .map(|row: &(i64, String, Option<i64>, Option<i64>)| (row.0, row.1.clone(), row.2, row.3.unwrap_or(0)))
    .collect();
    let mut superseded = 0;
    let mut removed = Vec::new();
    for (generation, state, superseded_at, age) in listed {
        let unneeded = match (state.as_str(), superseded_at) {
            ("removing", _) => true,
            ("published", Some(_)) => {
                superseded += 1;
                let old_enough = age >= 0 && u128::from(age.unsigned_abs()) >= age_min.as_micros();
                superseded > keep && old_enough
            }
            _ => generation.unsigned_abs() < dead_below,
        };
        if unneeded {
            sqlx::query("UPDATE generations SET state = 'removing' WHERE view = $1 AND generation = $2")
                .bind(&name)
                .bind(generation)
                .execute(&mut *tx)
                .await
                .map_err(on("removing generations from"))?;
            removed.push(generation);
        }
    }
    commit(tx).await?;
    for &generation in &removed {
        fail::fail_point!("prune.doomed");
        if wipe(store, &name, generation, "removing").await? {
            fail::fail_point!("prune.wiped");
            sqlx::query(
                "DELETE FROM generations WHERE view = $1 AND generation = $2 AND state = 'removing'
                 AND NOT EXISTS (SELECT 1 FROM feature_rows r WHERE r.view = $1 AND r.generation = $2)",
            )
            .bind(&name)
            .bind(generation)
            .execute(&store.writer)
            .await
            .map_err(on("removing generations from"))?;
        }
    }
    removed.sort_unstable();
    Ok(removed.into_iter().map(i64::unsigned_abs).collect())
}

/// Deletes the rows of a generation in bounded steps, while its state is `state`; false when that changed.
pub(super) async fn wipe(store: &SqliteOnline, view: &str, generation: i64, state: &str) -> Result<bool> {
    loop {
        let mut tx = store.begin_write().await?;
        if state_of(&mut tx, view, generation).await?.as_deref() != Some(state) {
            return Ok(false);
        }
        let deleted = sqlx::query(
            "DELETE FROM feature_rows WHERE view = $1 AND generation = $2 AND entity_key IN (
                 SELECT entity_key FROM feature_rows WHERE view = $1 AND generation = $2 LIMIT $3)",
        )
        .bind(view)
        .bind(generation)
        .bind(ROWS_PER_TRANSACTION as i64)
        .execute(&mut *tx)
        .await
        .map_err(on("removing rows from"))?
        .rows_affected();
        if deleted == 0 {
            return Ok(true);
        }
        commit(tx).await?;
    }
}

async fn switch(tx: &mut Transaction<'static, Sqlite>, view: &str, generation: i64, step: &CutOver) -> Result<()> {
    let failed = on("cutting over");
    let publish_number = stored(&step.view, step.publish_number)?;
    let switched = async {
        sqlx::query(
            "UPDATE generations SET superseded_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER)
             WHERE view = $1 AND generation <> $2 AND generation = (SELECT generation FROM live WHERE view = $1)",
        )
        .bind(view)
        .bind(generation)
        .execute(&mut **tx)
        .await?;
        sqlx::query(
            "UPDATE generations SET state = 'published', superseded_at = NULL WHERE view = $1 AND generation = $2",
        )
        .bind(view)
        .bind(generation)
        .execute(&mut **tx)
        .await?;
        sqlx::query(
            "INSERT INTO live (view, generation, publish_number, tag) VALUES ($1, $2, $3, $4)
             ON CONFLICT (view) DO UPDATE SET generation = $2, publish_number = $3, tag = $4",
        )
        .bind(view)
        .bind(generation)
        .bind(publish_number)
        .bind(&step.tag)
        .execute(&mut **tx)
        .await?;
        sqlx::query(
            "INSERT INTO defaults (view, features) VALUES ($1, $2)
             ON CONFLICT (view) DO UPDATE SET features = excluded.features",
        )
        .bind(view)
        .bind(&step.defaults)
        .execute(&mut **tx)
        .await
    };
    switched.await.map_err(failed)?;
    Ok(())
}

async fn state_of(tx: &mut Transaction<'static, Sqlite>, view: &str, generation: i64) -> Result<Option<String>> {
    sqlx::query_scalar("SELECT state FROM generations WHERE view = $1 AND generation = $2")
        .bind(view)
        .bind(generation)
        .fetch_optional(&mut **tx)
        .await
        .map_err(on("reading"))
}
