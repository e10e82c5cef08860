//! Rows in and out: pipelines of plain commands where nobody reads, scripts where somebody does.

use chrono::DateTime;
use futures::stream::{self, StreamExt, TryStreamExt};
use redis::{Cmd, Value};
use tidegate_registry::ids::ViewId;
use tidegate_registry::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::connection::{Batch, Connections, Keyed};
use super::errors::{on, strange};
use super::keys::{EVENT_TIMESTAMP, EXPIRES_AT, Keys, encode_chunk, expiry_ms, instant_text};
use super::scripts::{REPLACE, WRITE_ROWS};
use crate::online::{EncodedRow, Result};

/// Rows of one pipeline.
const ROWS_PER_PIPELINE: usize = 1_000;
/// Pipelines under way: with one connection, more gain nothing (measured).
const PIPELINES_IN_FLIGHT: usize = 4;
/// Rows of one script on a single server: other clients wait no longer than one of these takes.
const ROWS_PER_SCRIPT: usize = 50;

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
        let mut cmd = Cmd::with_capacity(2 * row.features.len() + 6, 32 * row.features.len() + 128);
        cmd.arg("HSET").arg(&key).arg(EVENT_TIMESTAMP).arg(times.text(row.event_timestamp));
        if let Some(expires_at) = row.expires_at {
            cmd.arg(EXPIRES_AT).arg(instant_text(expires_at));
        }
        for (name, value) in &row.features {
            cmd.arg(name).arg(value);
        }
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

async fn replace(target: Target<'_>, rows: impl Iterator<Item = &EncodedRow>) -> Result<()> {
    let prefix = target.keys.row_prefix(target.view, target.generation);
    let batch: Batch = rows
        .map(|row| {
            let key = format!("{prefix}{}", row.entity_key);
            let mut cmd = redis::cmd("EVAL");
            cmd.arg(REPLACE).arg(1).arg(&key).arg(target.ttl(row).unwrap_or(0));
            row_fields(row, &mut cmd);
            Keyed::new(&key, cmd)
        })
        .collect();
    if batch.is_empty() {
        return Ok(());
    }
    target.connections.all("writing to", &batch).await.map(drop)
}

fn row_fields(row: &EncodedRow, cmd: &mut Cmd) {
    cmd.arg(EVENT_TIMESTAMP).arg(instant_text(row.event_timestamp));
    if let Some(expires_at) = row.expires_at {
        cmd.arg(EXPIRES_AT).arg(instant_text(expires_at));
    }
    for (name, value) in &row.features {
        cmd.arg(name).arg(value);
    }
}

/// Writes and removes rows that are read meanwhile, each whole, and only those that no later publication wrote; how many it
/// had.
pub(super) async fn write_in_place(
    target: Target<'_>,
    publish_number: u64,
    rows: &[EncodedRow],
    removed: &[String],
) -> Result<u64> {
    let per_script = if target.connections.is_cluster() { 1 } else { ROWS_PER_SCRIPT };
    let prefix = target.keys.row_prefix(target.view, target.generation);
    let script = |count: usize, first: &str, keys: &[String]| {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(WRITE_ROWS).arg(2 * count);
        for key in keys {
            cmd.arg(key).arg(target.keys.fence(key));
        }
        cmd.arg(publish_number).arg(target.generation);
        (first.to_owned(), cmd)
    };
    let written = rows.chunks(per_script).map(|rows| {
        let keys: Vec<String> = rows.iter().map(|row| format!("{prefix}{}", row.entity_key)).collect();
        let (first, mut cmd) = script(rows.len(), &keys[0], &keys);
        for row in rows {
            cmd.arg(1 + usize::from(row.expires_at.is_some()) + row.features.len());
            cmd.arg(target.ttl(row).unwrap_or(0));
            row_fields(row, &mut cmd);
        }
        Keyed::new(&first, cmd)
    });
    let deleted = removed.chunks(per_script).map(|removed| {
        let keys: Vec<String> = removed.iter().map(|entity| format!("{prefix}{entity}")).collect();
        let (first, mut cmd) = script(removed.len(), &keys[0], &keys);
        for _ in removed {
            cmd.arg(0).arg(-1);
        }
        Keyed::new(&first, cmd)
    });
    let per_pipeline = (ROWS_PER_PIPELINE / per_script).max(1);
    let mut commands = written.chain(deleted);
    let batches = std::iter::from_fn(|| {
        let batch: Batch = commands.by_ref().take(per_pipeline).collect();
        (!batch.is_empty()).then_some(batch)
    });
    let answers: Vec<Vec<Value>> = stream::iter(batches)
        .map(|batch| async move { target.connections.all("changing", &batch).await })
        .buffer_unordered(PIPELINES_IN_FLIGHT)
        .try_collect()
        .await?;
    let mut late = 0;
    for answer in answers.into_iter().flatten() {
        match answer {
            Value::Int(count) => late += count.unsigned_abs(),
            other => return Err(strange(format!("a script answered {other:?}"))),
        }
    }
    Ok(late)
}

impl Target<'_> {
    /// When Redis shall drop the row, in milliseconds since 1970.
    pub(super) fn ttl(&self, row: &EncodedRow) -> Option<i64> {
        let expires = expiry_ms(row.expires_at?);
        self.expire_after.is_some_and(|after| expires > after).then_some(expires)
    }
}

/// The text of an instant: rows of a view mostly have the same.
struct Times {
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
