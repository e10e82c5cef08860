//! How the registry stands in numbers. See [`tidegate_registry::figures`].

use std::time::Duration;

use async_trait::async_trait;
use tidegate_registry::figures::{ENDED_WITHIN, Figures, Measuring, RestoreFigure};
use tidegate_registry::store::Result;
use tidegate_registry::time::Instant;

use crate::SqlStore;
use crate::codec::{duration_micros, micros};
use crate::db::postgres::CALL_MAX;
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Query, Row, db_now, query};

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Measuring for SqlStore<D> {
    async fn figures(&self, now: Instant) -> Result<Figures> {
        self.db.run(CALL_MAX, || figures(&self.db, now)).await
    }
}

async fn figures(db: &Db, now: Instant) -> Result<Figures> {
    let mut tx = db.read_together().await?;
    let open = query("SELECT state, count(*) AS n FROM runs WHERE finished_at IS NULL GROUP BY state ORDER BY state");
    let ended = query("SELECT state, count(*) AS n FROM runs WHERE finished_at > $1 GROUP BY state ORDER BY state")
        .bind(micros(now) - duration_micros(ENDED_WITHIN));
    let fired = query("SELECT state, count(*) AS n FROM recipe_firings GROUP BY state ORDER BY state");
    let deliveries =
        query("SELECT state, count(*) AS n FROM notice_deliveries WHERE state IN ('due', 'given_up') GROUP BY state");
    let deliveries: Vec<(String, u64)> = counts(&mut tx, deliveries).await?;
    let of = |state: &str| deliveries.iter().find(|(known, _)| known == state).map_or(0, |(_, count)| *count);
    let figures = Figures {
        runs_open: counts(&mut tx, open).await?,
        runs_ended: counts(&mut tx, ended).await?,
        deliveries_due: of("due"),
        deliveries_given_up: of("given_up"),
        restores: restores(&mut tx).await?,
        approvals_waiting: approvals_waiting(&mut tx).await?,
        firings: counts(&mut tx, fired).await?,
    };
    commit(tx).await?;
    Ok(figures)
}

async fn counts<S>(tx: &mut Conn, of: Query) -> Result<Vec<(S, u64)>>
where
    S: std::str::FromStr,
    S::Err: std::fmt::Display,
{
    let rows = of.fetch_all(tx).await.map_err(on("counting"))?;
    rows.iter().map(|row| Ok((row.parse("state")?, row.count("n")?))).collect()
}

async fn approvals_waiting(tx: &mut Conn) -> Result<u64> {
    let waiting = query("SELECT count(*) AS n FROM approvals WHERE approved_by IS NULL AND used_for IS NULL");
    waiting.fetch_one(tx).await.map_err(on("counting approvals"))?.count("n")
}

/// What a validation says is its first field.
async fn restores(tx: &mut Conn) -> Result<Vec<RestoreFigure>> {
    let rows = query(concat!(
        "SELECT took, CAST(CASE WHEN validation IS NULL THEN NULL WHEN validation LIKE '{\"passed\":true%' THEN 1 ELSE 0 \
         END AS BIGINT) AS passed, (SELECT ",
        db_now!(),
        " - begun_real FROM runs WHERE runs.id = run AND runs.finished_at IS NULL) AS under_way FROM restores"
    ))
    .fetch_all(tx)
    .await
    .map_err(on("counting restores"))?;
    let lasted = |row: &Row, column| -> Result<Option<Duration>> {
        Ok(row.get_as::<Option<i64>>(column)?.map(|micros| Duration::from_micros(micros.max(0).unsigned_abs())))
    };
    rows.iter()
        .map(|row| {
            Ok(RestoreFigure {
                took: lasted(row, "took")?,
                passed: row.get_as::<Option<i64>>("passed")?.map(|passed| passed != 0),
                under_way: lasted(row, "under_way")?,
            })
        })
        .collect()
}
