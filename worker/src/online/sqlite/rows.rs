//! Rows as the file has them, and the row that says what is live.

use chrono::DateTime;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, Sqlite, Transaction};

use super::file::on;
use crate::online::{EncodedRow, Live, OnlineError, OnlineRow, Result};

/// Rows of one INSERT statement: fewer round trips to SQLite's thread, and well below its limit of 32,766 parameters.
pub(super) const ROWS_PER_STATEMENT: usize = 250;
/// Rows of one transaction: other writers wait no longer than one of these takes.
pub(super) const ROWS_PER_TRANSACTION: usize = 5_000;

pub(super) async fn insert(
    tx: &mut Transaction<'static, Sqlite>,
    view: &str,
    generation: i64,
    rows: &[EncodedRow],
) -> Result<()> {
    // Built of placeholders alone; there are few different lengths, so SQLite keeps the statements prepared.
    let mut sql = String::from(
        "INSERT OR REPLACE INTO feature_rows (view, generation, entity_key, event_timestamp, expires_at, features) VALUES ",
    );
    for position in 0..rows.len() {
        let first = 3 + 4 * position;
        let comma = if position > 0 { "," } else { "" };
        sql.push_str(&format!("{comma}($1,$2,${first},${},${},${})", first + 1, first + 2, first + 3));
    }
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(view).bind(generation);
    for row in rows {
        query = query
            .bind(&row.entity_key)
            .bind(row.event_timestamp.timestamp_micros())
            .bind(row.expires_at.map(|at| at.timestamp_micros()))
            .bind(features_json(&row.features));
    }
    query.execute(&mut **tx).await.map_err(on("writing rows to"))?;
    Ok(())
}

pub(super) async fn count_rows(tx: &mut Transaction<'static, Sqlite>, view: &str, generation: i64) -> Result<u64> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM feature_rows WHERE view = $1 AND generation = $2")
        .bind(view)
        .bind(generation)
        .fetch_one(&mut **tx)
        .await
        .map_err(on("counting rows of"))?;
    Ok(count.unsigned_abs())
}

pub(super) async fn read_live(tx: &mut Transaction<'static, Sqlite>, view: &str) -> Result<Option<Live>> {
    let row: Option<(i64, i64, String)> =
        sqlx::query_as("SELECT generation, publish_number, tag FROM live WHERE view = $1")
            .bind(view)
            .fetch_optional(&mut **tx)
            .await
            .map_err(on("reading"))?;
    Ok(row.map(|(generation, publish_number, tag)| Live {
        generation: generation.unsigned_abs(),
        publish_number: publish_number.unsigned_abs(),
        tag,
    }))
}

pub(super) fn decode(row: &SqliteRow) -> Result<(String, OnlineRow)> {
    let strange = |source: Box<dyn std::error::Error + Send + Sync>| OnlineError::Internal {
        doing: "understanding a row of",
        source,
    };
    let instant =
        |micros: i64| DateTime::from_timestamp_micros(micros).ok_or_else(|| strange("a time out of range".into()));
    let features: String = row.try_get("features").map_err(|error| strange(error.into()))?;
    let features: indexmap::IndexMap<String, String> =
        serde_json::from_str(&features).map_err(|error| strange(error.into()))?;
    let expires_at: Option<i64> = row.try_get("expires_at").map_err(|error| strange(error.into()))?;
    let entity_key = row.try_get("entity_key").map_err(|error| strange(error.into()))?;
    let row = OnlineRow {
        event_timestamp: instant(row.try_get("event_timestamp").map_err(|error| strange(error.into()))?)?,
        expires_at: expires_at.map(instant).transpose()?,
        features: features.into_iter().collect(),
    };
    Ok((entity_key, row))
}

fn features_json(features: &[(String, String)]) -> String {
    let object = features.iter().map(|(name, text)| (name.clone(), serde_json::Value::String(text.clone())));
    serde_json::Value::Object(object.collect()).to_string()
}
