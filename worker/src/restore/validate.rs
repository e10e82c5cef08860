//! Whether what a restore led to is what was promised: rows, digests, online values. Everything when it is small, a bounded
//! part of it otherwise, so that looking takes no longer than restoring.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::StreamExt;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::{FeatureView, Project};
use tidegate_registry::restore::{Restore, Slice, Validation, ViewRestore};
use tidegate_registry::store::ViewState;
use tidegate_registry::time::Interval;

use super::content;
use crate::digest::Digester;
use crate::engine::Joins;
use crate::execute::Parts;
use crate::lake::Lake;
use crate::publish::view_of;
use crate::reads::{column, instant_literal, scan};
use crate::stage::digest_columns;

/// Rows of which digests are computed again, over all slices of a view.
const DIGEST_ROWS_MAX: u64 = 100_000;
/// Entities whose online values are compared: all of a view that has no more.
const ENTITIES_MAX: usize = 1_000;

/// Compares what is there with what the registry recorded. What cannot be compared counts as a difference.
pub(super) async fn validate(parts: &Parts, project: &Arc<Project>, restore: &Restore) -> Validation {
    let begun = tokio::time::Instant::now();
    let (mut wrong, mut right) = (Vec::new(), Vec::new());
    for (view, what) in &restore.plan.views {
        match validate_view(parts, project, view, what, &mut right).await {
            Ok(found) => wrong.extend(found),
            Err(error) => wrong.push(format!("{view}: could not be compared: {}", crate::execute::chain(&error))),
        }
    }
    let passed = wrong.is_empty();
    wrong.extend(right);
    let took_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    Validation { passed, findings: wrong, took_ms, commit_ms: None, online_ms: None }
}

async fn validate_view(
    parts: &Parts,
    project: &Arc<Project>,
    view: &ViewId,
    restore: &ViewRestore,
    right: &mut Vec<String>,
) -> Result<Vec<String>> {
    let definition = view_of(project, view)?;
    let states = parts.store.view_states(std::slice::from_ref(view)).await?;
    let state = states.get(view).context("the registry does not know it")?;
    let ledger: Vec<Slice> = parts.store.ledger(view, None, 0).await?.into_iter().map(Slice::from).collect();
    let mut wrong = rows(parts, view, state.delta_version, &ledger).await?;
    if wrong.is_empty() {
        right.push(format!("{view}: {} intervals hold as many rows as were published", ledger.len()));
    }
    let digests = digests(parts, project, definition, state.delta_version, &ledger, restore).await?;
    match digests {
        Ok(said) => right.push(said),
        Err(differ) => wrong.extend(differ),
    }
    if let (Some(target), Some(generation)) = (&restore.online, state.online_generation) {
        let online = Expected { generation, state, rows: target.rows };
        match compare_online(parts, project, definition, restore, &online).await? {
            Ok(said) => right.push(said),
            Err(differs) => wrong.push(differs),
        }
    }
    Ok(wrong)
}

/// Rows of each slice by the statistics in the log.
async fn rows(parts: &Parts, view: &ViewId, version: u64, ledger: &[Slice]) -> Result<Vec<String>> {
    let table = parts.lake.load(view, Some(version)).await?;
    let mut found: BTreeMap<i64, u64> = BTreeMap::new();
    for file in Lake::files_of(&table)? {
        *found.entry(file.slice).or_default() += file.rows.unwrap_or(0);
    }
    let mut wrong = Vec::new();
    for slice in ledger {
        let rows = found.remove(&slice.interval.start().timestamp_micros()).unwrap_or(0);
        if rows != slice.rows {
            wrong.push(format!("{view}: the interval {} has {rows} rows instead of {}", slice.interval, slice.rows));
        }
    }
    if !found.is_empty() {
        wrong.push(format!("{view}: its table holds {} intervals that were not published", found.len()));
    }
    Ok(wrong)
}

/// Digests of the newest interval and of those that came back, as far as they are not too large.
async fn digests(
    parts: &Parts,
    project: &Arc<Project>,
    view: &FeatureView,
    version: u64,
    ledger: &[Slice],
    restore: &ViewRestore,
) -> Result<Result<String, Vec<String>>> {
    let (mut left, mut chosen) = (DIGEST_ROWS_MAX, Vec::new());
    for slice in restore.newest.iter().chain(&restore.comes_back) {
        if slice.rows <= left && !chosen.contains(slice) && ledger.contains(slice) {
            left -= slice.rows;
            chosen.push(slice.clone());
        }
    }
    let mut differ = Vec::new();
    for slice in &chosen {
        if digest(parts, project, view, version, slice.interval).await? != slice.digest {
            differ.push(format!(
                "{}: the rows of the interval {} are not those that were published",
                view.id, slice.interval
            ));
        }
    }
    if !differ.is_empty() {
        return Ok(Err(differ));
    }
    let rest = if left == 0 || chosen.is_empty() && restore.newest.is_some() {
        " (others are too large to read again here)"
    } else {
        ""
    };
    Ok(Ok(format!("{}: the digests of {} intervals are as recorded{rest}", view.id, chosen.len())))
}

/// The digest of one interval's rows, as a version of the table has them.
pub(crate) async fn digest(
    parts: &Parts,
    project: &Project,
    view: &FeatureView,
    version: u64,
    interval: Interval,
) -> Result<String> {
    let (lake, engine, id) = (parts.lake.clone(), Arc::clone(&parts.engine), view.id.clone());
    let (columns, start) = (digest_columns(project, view), interval.start());
    let reading = parts.engine.run(async move {
        let ctx = engine.context(Joins::Hash)?;
        let table = lake.load(&id, Some(version)).await?;
        let rows = scan(&ctx, &table).await?.filter(column("interval_start").eq(instant_literal(start)))?;
        let mut digester = Digester::new(columns);
        let mut stream = rows.execute_stream().await?;
        while let Some(batch) = stream.next().await {
            digester.update(&batch?)?;
        }
        anyhow::Ok(digester.digest().to_string())
    });
    reading.await?
}

/// What should be online.
struct Expected<'a> {
    generation: u64,
    state: &'a ViewState,
    rows: Option<u64>,
}

async fn compare_online(
    parts: &Parts,
    project: &Arc<Project>,
    view: &FeatureView,
    restore: &ViewRestore,
    expected: &Expected<'_>,
) -> Result<Result<String, String>> {
    let Some(serving) = parts.serving() else { return Ok(Ok(format!("{}: is not online", view.id))) };
    let id = &view.id;
    let live = serving.online.live(id).await?;
    let Some(live) = live.filter(|live| live.generation == expected.generation) else {
        return Ok(Err(format!("{id}: generation {} is not live online", expected.generation)));
    };
    let count = serving.online.rows_kept(id, live.generation).await?;
    if let Some(rows) = expected.rows.filter(|rows| *rows != count) {
        return Ok(Err(format!("{id}: {count} entities are online instead of {rows}")));
    }
    let Some(newest) = &restore.newest else {
        return Ok(if count == 0 {
            Ok(format!("{id}: nothing is online, as nothing had been published"))
        } else {
            Err(format!("{id}: {count} entities are online, and none should be"))
        });
    };
    let content = content(project, id, expected.state.delta_version, newest.interval);
    let compared = serving.compare_some(&content, live.generation, ENTITIES_MAX).await?;
    Ok(match compared.differing.first() {
        Some(first) => Err(format!(
            "{id}: {} of {} entities compared differ online from the lake, as {first}",
            compared.differing.len(),
            compared.compared
        )),
        None => Ok(format!("{id}: {} entities compared, of {count}, are online as in the lake", compared.compared)),
    })
}
