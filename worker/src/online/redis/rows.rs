//! Rows into a generation that nobody reads yet, and rows out: pipelines of plain commands.

use chrono::DateTime;
use futures::stream::{self, StreamExt, TryStreamExt};
use redis::{Cmd, Value};
use tidegate_registry::ids::ViewId;
use tidegate_registry::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::connection::{Batch, Connections, Keyed};
use super::errors::{on, strange};
use super::keys::{EVENT_TIMESTAMP, EXPIRES_AT, Keys, encode_chunk, expiry_ms, instant_text};
use super::scripts::REPLACE;
use crate::online::{EncodedRow, Result};

/// Rows of one pipeline.
pub(super) const ROWS_PER_PIPELINE: usize = 1_000;
/// Pipelines under way: with one connection, more gain nothing (measured).
pub(super) const PIPELINES_IN_FLIGHT: usize = 4;

/// Where rows go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) connections: &'a Connections,
    pub(super) keys: &'a Keys,
    pub(super) view: &'a ViewId,
    pub(super) generation: u64,
    /// Redis drops rows by itself that expire after this instant of its clock, in milliseconds since 1970; `None` for no
    /// row. One that is past is left alone: Redis would delete it at once, and a reader whose time is another one, or
    /// whoever counts, would miss it.
    pub(super) expire_after: Option<i64>,
}

/// Lists the entities of `rows`, before any of them is written, so that no row can be left behind unlisted. A chunk's name
/// follows from its content: repeating it lists nothing twice.
pub(super) async fn list(target: Target<'_>, rows: &[EncodedRow]) -> Result<()> {
    let chunk = encode_chunk(rows.iter().map(|row| (row.entity_key.as_str(), target.ttl(row))));
    let name = format!("{:032x}", xxh3_128(&chunk));
    let mut cmd = redis::cmd("HSET");
    cmd.arg(target.keys.index(target.view, target.generation)).arg(name).arg(chunk);
    target.connections.query("writing to", &cmd).await.map(drop)
}

/// Writes rows that nobody reads yet.
pub(super) async fn write(target: Target<'_>, rows: &[EncodedRow]) -> Result<()> {
    stream::iter((0..rows.len()).step_by(ROWS_PER_PIPELINE))
        .map(move |from| write_pipeline(target, &rows[from..rows.len().min(from + ROWS_PER_PIPELINE)]))
        .buffer_unordered(PIPELINES_IN_FLIGHT)
        .try_collect::<()>()
        .await
}

async fn write_pipeline(target: Target<'_>, rows: &[EncodedRow]) -> Result<()> {
    let prefix = target.keys.row_prefix(target.view, target.generation);
    let mut times = Times::default();
    let mut batch = Batch::with_capacity(rows.len());
    // How many fields each answer must report as new; `None` for the answers to other commands.
    let mut expected: Vec<Option<(usize, i64)>> = Vec::with_capacity(rows.len());
    for (position, row) in rows.iter().enumerate() {
        let key = format!("{prefix}{}", row.entity_key);
        let cmd = set(&key, row, &mut times);
        let fields = 1 + i64::from(row.expires_at.is_some()) + row.features.len() as i64;
        batch.push(Keyed::new(&key, cmd));
        expected.push(Some((position, fields)));
        if let Some(ms) = target.ttl(row) {
            let mut cmd = redis::cmd("PEXPIREAT");
            cmd.arg(&key).arg(ms);
            batch.push(Keyed::new(&key, cmd));
            expected.push(None);
        }
    }
    let answers = target.connections.all("writing to", &batch).await?;
    // A row of which not every field is new stood there before: from a first try whose answer was lost, or with other
    // content. Fields that it no longer has must go.
    let stood = expected.iter().zip(answers).filter_map(|(expected, answer)| {
        let (position, fields) = (*expected)?;
        (answer != Value::Int(fields)).then(|| &rows[position])
    });
    replace(target, stood).await
}

/// The command that sets the fields of a row.
pub(super) fn set(key: &str, row: &EncodedRow, times: &mut Times) -> Cmd {
    let mut cmd = Cmd::with_capacity(2 * row.features.len() + 6, 32 * row.features.len() + 128);
    cmd.arg("HSET").arg(key);
    fields(row, times, &mut cmd);
    cmd
}

/// The fields of a row.
pub(super) fn fields(row: &EncodedRow, times: &mut Times, cmd: &mut Cmd) {
    cmd.arg(EVENT_TIMESTAMP).arg(times.text(row.event_timestamp));
    if let Some(expires_at) = row.expires_at {
        cmd.arg(EXPIRES_AT).arg(instant_text(expires_at));
    }
    for (name, value) in &row.features {
        cmd.arg(name).arg(value);
    }
}

async fn replace(target: Target<'_>, rows: impl Iterator<Item = &EncodedRow>) -> Result<()> {
    let prefix = target.keys.row_prefix(target.view, target.generation);
    let batch: Batch = rows
        .map(|row| {
            let key = format!("{prefix}{}", row.entity_key);
            let mut cmd = redis::cmd("EVAL");
            cmd.arg(REPLACE).arg(1).arg(&key).arg(target.ttl(row).unwrap_or(0));
            fields(row, &mut Times::default(), &mut cmd);
            Keyed::new(&key, cmd)
        })
        .collect();
    if batch.is_empty() {
        return Ok(());
    }
    target.connections.all("writing to", &batch).await.map(drop)
}

impl Target<'_> {
    /// When Redis shall drop the row, in milliseconds since 1970.
    pub(super) fn ttl(&self, row: &EncodedRow) -> Option<i64> {
        let expires = expiry_ms(row.expires_at?);
        self.expire_after.is_some_and(|after| expires > after).then_some(expires)
    }
}

/// The text of an instant: rows of a view mostly have the same.
pub(super) struct Times {
    at: Instant,
    text: String,
}

impl Default for Times {
    fn default() -> Self {
        Self { at: DateTime::UNIX_EPOCH, text: instant_text(DateTime::UNIX_EPOCH) }
    }
}

impl Times {
    fn text(&mut self, at: Instant) -> &str {
        if self.at != at {
            self.text = instant_text(at);
            self.at = at;
        }
        &self.text
    }
}

/// Reads rows by their keys, in order: the answers to HGETALL.
pub(super) async fn read(connections: &Connections, keys: &[String]) -> Result<Vec<Value>> {
    let mut answers = Vec::with_capacity(keys.len());
    for keys in keys.chunks(ROWS_PER_PIPELINE) {
        let batch: Batch = keys
            .iter()
            .map(|key| {
                let mut cmd = redis::cmd("HGETALL");
                cmd.arg(key);
                Keyed::new(key, cmd)
            })
            .collect();
        answers.extend(connections.all("reading", &batch).await?);
    }
    Ok(answers)
}

/// Sends `name key` for every key, or, on a single server, `name key key …`; the sum of the numbers answered.
pub(super) async fn sum_over(
    connections: &Connections,
    doing: &'static str,
    name: &str,
    keys: &[String],
) -> Result<u64> {
    let per_command = if connections.is_cluster() { 1 } else { 500 };
    let batch: Batch = keys
        .chunks(per_command)
        .map(|keys| {
            let mut cmd = redis::cmd(name);
            cmd.arg(keys);
            Keyed::new(&keys[0], cmd)
        })
        .collect();
    let mut sum = 0;
    for answer in connections.all(doing, &batch).await? {
        match answer {
            Value::Int(count) => sum += count.unsigned_abs(),
            other => return Err(strange(format!("`{name}` answered {other:?}"))),
        }
    }
    Ok(sum)
}

/// Which of `keys` exist.
pub(super) async fn exist(connections: &Connections, keys: &[String]) -> Result<Vec<bool>> {
    let batch: Batch = keys
        .iter()
        .map(|key| {
            let mut cmd = redis::cmd("EXISTS");
            cmd.arg(key);
            Keyed::new(key, cmd)
        })
        .collect();
    let answers = connections.all("reading", &batch).await?;
    Ok(answers.into_iter().map(|answer| answer == Value::Int(1)).collect())
}

/// Redis's clock, in milliseconds since 1970.
pub(super) async fn clock_ms(connections: &Connections) -> Result<i64> {
    let answer = connections.query("reading", &redis::cmd("TIME")).await?;
    let (secs, micros): (i64, i64) = redis::from_redis_value(answer).map_err(|error| on("reading")(error.into()))?;
    Ok(secs * 1_000 + micros / 1_000)
}
