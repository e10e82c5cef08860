//! Which entities a generation has.
//!
//! Redis has no folders: the keys of one generation could be found only by looking at every key of the server (SCAN), which
//! at ten million keys takes many seconds for each generation that is counted or removed. A sorted set of them would cost
//! about 100 bytes and one more command per row. So the writer leaves a list as it goes: one chunk per call of `write`, packed,
//! about the length of the keys themselves (13 MB per million entities where the rows take 290). It serves to count, to
//! verify that every row is still there, to remove, and to compare with the lake.

use futures::stream::{self, StreamExt, TryStreamExt};
use redis::Value;
use tidegate_registry::ids::ViewId;
use xxhash_rust::xxh3::xxh3_64;

use super::connection::Connections;
use super::errors::strange;
use super::keys::{Keys, Listed, decode_chunk, text};
use super::rows::{clock_ms, exist, sum_over};
use super::scripts::{self, Entry};
use crate::online::Result;

/// Chunks that are counted at once, so that neither side waits for the other.
const CHUNKS_IN_FLIGHT: usize = 2;

/// The names of a generation's chunks, sorted.
pub(super) async fn chunks(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    generation: u64,
) -> Result<Vec<String>> {
    let mut cmd = redis::cmd("HKEYS");
    cmd.arg(keys.index(view, generation));
    let Value::Array(names) = connections.query("reading", &cmd).await? else {
        return Err(strange("`HKEYS` answered no list"));
    };
    let mut names: Vec<String> = names.into_iter().map(text).collect::<std::result::Result<_, _>>().map_err(strange)?;
    names.sort_unstable();
    Ok(names)
}

/// The entities of a chunk; empty when it is gone.
pub(super) async fn chunk(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    generation: u64,
    name: &str,
) -> Result<Vec<Listed>> {
    let mut cmd = redis::cmd("HGET");
    cmd.arg(keys.index(view, generation)).arg(name);
    match connections.query("reading", &cmd).await? {
        Value::Nil => Ok(Vec::new()),
        Value::BulkString(bytes) => {
            decode_chunk(&bytes).ok_or_else(|| strange(format!("the list of entities of `{view}` is damaged")))
        }
        other => Err(strange(format!("`HGET` answered {other:?}"))),
    }
}

/// How many of a generation's entities have their rows, each counted once; one that Redis dropped because it expired
/// counts. Takes 8 bytes of memory per entity.
pub(super) async fn count(connections: &Connections, keys: &Keys, view: &ViewId, generation: u64) -> Result<u64> {
    let names = chunks(connections, keys, view, generation).await?;
    let mut seen: Vec<u64> = stream::iter(names)
        .map(|name| async move { there(connections, keys, view, generation, &name).await })
        .buffer_unordered(CHUNKS_IN_FLIGHT)
        .try_concat()
        .await?;
    seen.sort_unstable();
    seen.dedup();
    Ok(seen.len() as u64)
}

/// Hashes of the entities of a chunk that have their rows.
async fn there(connections: &Connections, keys: &Keys, view: &ViewId, generation: u64, name: &str) -> Result<Vec<u64>> {
    let prefix = keys.row_prefix(view, generation);
    let listed = chunk(connections, keys, view, generation, name).await?;
    let rows: Vec<String> = listed.iter().map(|listed| format!("{prefix}{}", listed.entity_key)).collect();
    let hash = |listed: &Listed| xxh3_64(listed.entity_key.as_bytes());
    if sum_over(connections, "counting rows of", "EXISTS", &rows).await? == rows.len() as u64 {
        return Ok(listed.iter().map(hash).collect());
    }
    let there = exist(connections, &rows).await?;
    let now = clock_ms(connections).await?;
    let counted = listed.iter().zip(there);
    let counted = counted.filter(|(listed, there)| *there || listed.expires_ms.is_some_and(|expires| expires <= now));
    Ok(counted.map(|(listed, _)| hash(listed)).collect())
}

/// Deletes the rows of a generation chunk by chunk, as long as its state is one of `states`, and with that token when one
/// is given; false when that changed.
pub(super) async fn wipe(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    generation: u64,
    states: &[&str],
    token: Option<&str>,
) -> Result<bool> {
    for name in chunks(connections, keys, view, generation).await? {
        let entry = scripts::entry(connections, keys, view, generation).await?;
        let as_meant =
            |entry: Entry| states.contains(&entry.state.as_str()) && token.is_none_or(|token| token == entry.token);
        if !entry.is_some_and(as_meant) {
            return Ok(false);
        }
        unlink_chunk(connections, keys, view, generation, &name).await?;
    }
    Ok(true)
}

/// Deletes the rows of a generation chunk by chunk, whatever its state.
pub(super) async fn unlink(connections: &Connections, keys: &Keys, view: &ViewId, generation: u64) -> Result<()> {
    for name in chunks(connections, keys, view, generation).await? {
        unlink_chunk(connections, keys, view, generation, &name).await?;
    }
    Ok(())
}

async fn unlink_chunk(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    generation: u64,
    name: &str,
) -> Result<()> {
    let prefix = keys.row_prefix(view, generation);
    let listed = chunk(connections, keys, view, generation, name).await?;
    let rows: Vec<String> = listed.into_iter().map(|listed| format!("{prefix}{}", listed.entity_key)).collect();
    sum_over(connections, "removing rows from", "UNLINK", &rows).await?;
    let mut cmd = redis::cmd("HDEL");
    cmd.arg(keys.index(view, generation)).arg(name);
    connections.query("removing rows from", &cmd).await.map(drop)
}
