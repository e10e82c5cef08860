//! Worker processes: who was heard of, by the database's clock.

use std::time::Duration;

use tidegate_registry::store::Result;

use crate::codec::duration_micros;
use crate::db::{Db, commit, on};
use crate::sql::{db_now, query};

pub(crate) async fn heartbeat(db: &Db, owner: &str) -> Result<()> {
    let mut tx = db.write_one().await?;
    query(concat!(
        "INSERT INTO workers (owner, heard_at) VALUES ($1, ",
        db_now!(),
        ") ON CONFLICT (owner) DO UPDATE SET heard_at = excluded.heard_at"
    ))
    .bind(owner)
    .execute(&mut tx)
    .await
    .map_err(on("noting that a worker lives"))?;
    commit(tx).await
}

pub(crate) async fn goodbye(db: &Db, owner: &str) -> Result<()> {
    let mut tx = db.write_one().await?;
    query("DELETE FROM workers WHERE owner = $1")
        .bind(owner)
        .execute(&mut tx)
        .await
        .map_err(on("noting that a worker stopped"))?;
    commit(tx).await
}

pub(crate) async fn alive(db: &Db, within: Duration) -> Result<Vec<String>> {
    let mut tx = db.read().await?;
    let rows = query(concat!("SELECT owner FROM workers WHERE heard_at >= ", db_now!(), " - $1 ORDER BY owner"))
        .bind(duration_micros(within))
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading which workers live"))?;
    rows.iter().map(|row| row.get_as("owner")).collect()
}
