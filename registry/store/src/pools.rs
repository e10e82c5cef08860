//! Pools: so many tasks of a kind at once, whoever computes them.
//!
//! A slot is not written anywhere: a task holds one while it is leased, so slots end with their leases and nothing can
//! leak. Whoever claims a task of a pool locks the pool's row first and then counts, so that two never see the same last
//! slot. A lease that has expired still counts until it is taken back, which every claim does before it counts.

use std::collections::HashMap;

use serde::Deserialize;
use tidegate_registry::store::{Change, DefinitionRow, PoolState, Result};

use crate::codec::internal;
use crate::db::{Conn, Db, on};
use crate::sql::{Builder, Sql, locked, query};

macro_rules! used {
    () => {
        "(SELECT count(*) FROM tasks WHERE tasks.pool = pools.name AND tasks.lease_until IS NOT NULL)"
    };
}

/// As much of a pool's definition as claiming needs.
#[derive(Deserialize)]
struct Slots {
    slots: u32,
}

/// Writes a pool as it is defined now.
pub(crate) async fn upsert_in_tx(tx: &mut Conn, row: &DefinitionRow) -> Result<()> {
    let Slots { slots } =
        serde_json::from_value(row.body.clone()).map_err(|source| internal("reading the slots of a pool", source))?;
    query("INSERT INTO pools (name, slots) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET slots = excluded.slots")
        .bind(&row.name)
        .bind(slots)
        .execute(&mut *tx)
        .await
        .map_err(on("writing a pool"))?;
    tx.has_changed(Change::Tasks);
    Ok(())
}

/// Tasks that are still in it have no limit from now on.
pub(crate) async fn remove_in_tx(tx: &mut Conn, name: &str) -> Result<()> {
    query("DELETE FROM pools WHERE name = $1").bind(name).execute(&mut *tx).await.map_err(on("removing a pool"))?;
    tx.has_changed(Change::Tasks);
    Ok(())
}

/// Pools without a free slot, as of now.
pub(crate) async fn full(conn: &mut Conn) -> Result<Vec<String>> {
    let rows = query(concat!("SELECT name FROM pools WHERE slots <= ", used!()))
        .fetch_all(conn)
        .await
        .map_err(on("looking for full pools"))?;
    rows.iter().map(|row| row.get_as("name")).collect()
}

/// How many slots are free in each of `names` that is defined. Nobody else takes one until the transaction ends.
pub(crate) async fn lock_free(tx: &mut Conn, names: &[String]) -> Result<HashMap<String, i64>> {
    let doing = "counting the slots of pools";
    let mut lock = Builder::new("SELECT name FROM pools WHERE name IN ");
    lock.push_list(names).push(" ORDER BY name").push_end(locked!(""));
    lock.build().fetch_all(&mut *tx).await.map_err(on(doing))?;
    // A statement of its own: it sees what others committed while we waited for the lock.
    let mut count = Builder::new(concat!("SELECT name, slots - ", used!(), " AS free FROM pools WHERE name IN "));
    count.push_list(names);
    let rows = count.build().fetch_all(tx).await.map_err(on(doing))?;
    rows.iter().map(|row| Ok((row.get_as("name")?, row.get_as("free")?))).collect()
}

pub(crate) async fn states(db: &Db) -> Result<Vec<PoolState>> {
    states_on(&mut *db.read().await?).await
}

pub(crate) async fn states_on(conn: &mut Conn) -> Result<Vec<PoolState>> {
    let rows = query(Sql::from(concat!(
        "SELECT name, slots, ",
        used!(),
        " AS used, (SELECT count(*) FROM tasks WHERE tasks.pool = pools.name AND tasks.ready = 1) AS waiting \
         FROM pools ORDER BY name"
    )))
    .fetch_all(conn)
    .await
    .map_err(on("listing the pools"))?;
    rows.iter()
        .map(|row| {
            Ok(PoolState {
                name: row.parse("name")?,
                slots: row.count("slots")?,
                used: row.count("used")?,
                waiting: row.count("waiting")?,
            })
        })
        .collect()
}
