//! Rows that are read meanwhile: each is written whole, and only when no later publication was begun.
//!
//! A single server does it in transactions of plain commands, which hold while the project's `live` hash stays as it was
//! looked at. In a cluster that hash is on another node than most rows: there every row carries the number of the
//! publication that wrote it, what was removed leaves that number beside it for a day, and a script compares.

use futures::stream::{self, StreamExt, TryStreamExt};
use redis::{Pipeline, Value};

use super::connection::{Batch, Keyed};
use super::errors::strange;
use super::keys::{publish_field, writer_field};
use super::rows::{PIPELINES_IN_FLIGHT, ROWS_PER_PIPELINE, Target, Times, fields, set};
use super::scripts::WRITE_ROW;
use super::{optional_number, refused};
use crate::online::{EncodedRow, OnlineError, Result};

/// Rows of one transaction: other clients wait no longer than one takes, about a millisecond.
const ROWS_PER_TRANSACTION: usize = 250;
/// Transactions under way, each on a connection of its own.
const TRANSACTIONS_IN_FLIGHT: usize = 2;

/// Writes `rows` and removes the entities `removed`, for a publication that may change the generation in place.
///
/// # Errors
/// [`OnlineError::Superseded`] when a later publication was begun; some rows may be written then, none over its own.
pub(super) async fn write(
    target: Target<'_>,
    publish_number: u64,
    rows: &[EncodedRow],
    removed: &[String],
) -> Result<()> {
    if target.connections.is_cluster() {
        compared(target, publish_number, rows, removed).await
    } else {
        watched(target, publish_number, rows, removed).await
    }
}

async fn watched(target: Target<'_>, publish_number: u64, rows: &[EncodedRow], removed: &[String]) -> Result<()> {
    let prefix = target.keys.row_prefix(target.view, target.generation);
    let live = target.keys.live();
    let mut question = redis::cmd("HMGET");
    question.arg(&live).arg(target.view.to_string()).arg(publish_field(target.view)).arg(writer_field(target.view));
    let may = |answer: Value| may_change(target, publish_number, answer);
    let commands = |from: usize| {
        let to = from + ROWS_PER_TRANSACTION;
        let written = &rows[from.min(rows.len())..to.min(rows.len())];
        let beyond = |position: usize| position.saturating_sub(rows.len()).min(removed.len());
        let deleted = &removed[beyond(from)..beyond(to)];
        let mut commands = Pipeline::with_capacity(written.len() + 1);
        commands.atomic();
        let keys: Vec<String> = written.iter().map(|row| format!("{prefix}{}", row.entity_key)).collect();
        // Of rows that change too: fields that they no longer have must go.
        commands
            .cmd("DEL")
            .arg(&keys)
            .arg(deleted.iter().map(|entity| format!("{prefix}{entity}")).collect::<Vec<_>>());
        let mut times = Times::default();
        for (key, row) in keys.iter().zip(written) {
            commands.add_command(set(key, row, &mut times));
            if let Some(ms) = target.ttl(row) {
                commands.cmd("PEXPIREAT").arg(key).arg(ms);
            }
        }
        commands
    };
    stream::iter((0..rows.len() + removed.len()).step_by(ROWS_PER_TRANSACTION))
        .map(|from| {
            let (commands, live, question, may) = (commands(from), &live, &question, &may);
            async move { target.connections.transact("changing", (live, question), may, &commands).await }
        })
        .buffer_unordered(TRANSACTIONS_IN_FLIGHT)
        .try_collect()
        .await
}

/// Whether the generation is live and no later publication was begun, by what `live` says of the view.
fn may_change(target: Target<'_>, publish_number: u64, answer: Value) -> Result<()> {
    let Value::Array(answers) = answer else { return Err(strange("`HMGET` answered no list")) };
    let numbers = answers.into_iter().map(optional_number).collect::<Result<Vec<_>>>()?;
    let &[live, number, writer] = numbers.as_slice() else {
        return Err(strange("`HMGET` answered another number of values"));
    };
    match number.max(writer) {
        Some(later) if later > publish_number => {
            Err(OnlineError::Superseded { view: target.view.clone(), live: later, asked: publish_number })
        }
        _ if live == Some(target.generation) => Ok(()),
        _ => Err(refused(target.view, target.generation, "is not live, so it is not changed in place")),
    }
}

async fn compared(target: Target<'_>, publish_number: u64, rows: &[EncodedRow], removed: &[String]) -> Result<()> {
    let prefix = target.keys.row_prefix(target.view, target.generation);
    let script = |key: &str| {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(WRITE_ROW).arg(2).arg(key).arg(target.keys.fence(key)).arg(publish_number).arg(target.generation);
        cmd
    };
    let written = rows.iter().map(|row| {
        let key = format!("{prefix}{}", row.entity_key);
        let mut cmd = script(&key);
        cmd.arg(target.ttl(row).unwrap_or(0));
        fields(row, &mut Times::default(), &mut cmd);
        Keyed::new(&key, cmd)
    });
    let deleted = removed.iter().map(|entity| {
        let key = format!("{prefix}{entity}");
        let mut cmd = script(&key);
        cmd.arg(-1);
        Keyed::new(&key, cmd)
    });
    let mut commands = written.chain(deleted);
    let batches = std::iter::from_fn(|| {
        let batch: Batch = commands.by_ref().take(ROWS_PER_PIPELINE).collect();
        (!batch.is_empty()).then_some(batch)
    });
    let answers: Vec<Vec<Value>> = stream::iter(batches)
        .map(|batch| async move { target.connections.all("changing", &batch).await })
        .buffer_unordered(PIPELINES_IN_FLIGHT)
        .try_collect()
        .await?;
    let mut late = false;
    for answer in answers.into_iter().flatten() {
        match answer {
            Value::Int(count) => late |= count != 0,
            other => return Err(strange(format!("a script answered {other:?}"))),
        }
    }
    if late {
        return Err(OnlineError::Superseded {
            view: target.view.clone(),
            live: publish_number + 1,
            asked: publish_number,
        });
    }
    Ok(())
}
