//! From intent to record: the part of a run during which its views belong to it alone.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{LeaseToken, RunId, ViewId};
use tidegate_registry::run::{Intent, Run, RunState, TaskKind, TaskOutput, TaskState, Verdict, ViewIntent};
use tidegate_registry::store::{IntentRequest, LedgerEntry, Record, Result, StoreError, ViewIntentRequest, ViewState};
use tidegate_registry::time::{Instant, Interval};

use crate::codec::{self, limit_or_all, micros, number, number_option};
use crate::db::{Conn, Db, commit, on};
use crate::moves::{self, Held};
use crate::sql::{Arg, Builder, Row, locked, query};
use crate::{audit, holds, notices, restoring, snapshots};

macro_rules! view_columns {
    () => {
        "SELECT view, publish_number, recorded_number, publishing, records, delta_version, online_generation, \
         quarantine_version, newest_start AS interval_start, newest_end AS interval_end FROM view_states"
    };
}

/// Views in one question.
const VIEWS_MAX: usize = 1_000;

pub(crate) async fn view_states(db: &Db, views: &[ViewId]) -> Result<IndexMap<ViewId, ViewState>> {
    let mut tx = db.read_together().await?;
    let mut found = HashMap::new();
    for some in views.chunks(VIEWS_MAX) {
        let mut rows = Builder::new(view_columns!());
        rows.push(" WHERE view IN ").push_list(some.iter().map(ToString::to_string));
        for row in rows.build().fetch_all(&mut tx).await.map_err(on("reading what is known of views"))? {
            found.insert(row.parse::<ViewId>("view")?, view_from(&row)?.state);
        }
    }
    commit(tx).await?;
    // In the order asked for.
    Ok(views.iter().filter_map(|view| Some((view.clone(), found.remove(view)?))).collect())
}

pub(crate) struct ViewRow {
    pub(crate) state: ViewState,
    pub(crate) recorded_number: u64,
}

fn view_from(row: &Row) -> Result<ViewRow> {
    let newest = row.instant_option("interval_end")?.map(|_| row.interval()).transpose()?;
    Ok(ViewRow {
        state: ViewState {
            publish_number: row.count("publish_number")?,
            publishing: row.parse_option("publishing")?,
            records: row.count("records")?,
            delta_version: row.count("delta_version")?,
            online_generation: row.count_option("online_generation")?,
            newest,
            quarantine_version: row.count_option("quarantine_version")?,
        },
        recorded_number: row.count("recorded_number")?,
    })
}

pub(crate) async fn ledger(db: &Db, view: &ViewId, until: Option<Instant>, limit: u32) -> Result<Vec<LedgerEntry>> {
    let mut tx = db.read().await?;
    let rows = query(
        "SELECT interval_start, interval_end, run, snapshot, rows, digest FROM ledger \
         WHERE view = $1 AND interval_end <= $2 ORDER BY interval_end DESC, interval_start DESC LIMIT $3",
    )
    .bind(view.to_string())
    .bind(until.map_or(i64::MAX, micros))
    .bind(limit_or_all(limit))
    .fetch_all(&mut tx)
    .await
    .map_err(on("reading a ledger"))?;
    rows.iter().map(ledger_entry).collect()
}

pub(crate) fn ledger_entry(row: &Row) -> Result<LedgerEntry> {
    Ok(LedgerEntry {
        interval: row.interval()?,
        run: row.parse("run")?,
        snapshot: row.parse("snapshot")?,
        rows: row.count("rows")?,
        digest: row.get_as("digest")?,
    })
}

pub(crate) async fn intent_take(db: &Db, token: LeaseToken, request: &IntentRequest, now: Instant) -> Result<Intent> {
    let mut tx = db.write().await?;
    let task = moves::held(&mut tx, token).await?;
    refuse_unless_publish(&task)?;
    let run = &task.run;
    if let Some(stored) = intent_in_tx(&mut tx, run.id).await? {
        commit(tx).await?;
        return Ok(stored);
    }
    refuse_unless_same_views(run, request.views.keys())?;
    let states = lock_views(&mut tx, &run.views).await?;
    // After the views are locked: whoever places a hold with a restore has taken them first.
    if holds::revision_in_tx(&mut tx).await? != request.holds {
        return Err(StoreError::Conflict("holds have changed since the run was judged".to_owned()));
    }
    let mut views = IndexMap::new();
    for (view, judged) in &request.views {
        refuse_unless_passed(run, view, judged)?;
        let publish_number = publish_number(run, view, judged, known(&states, view)?)?;
        let checks = judged.checks.clone();
        views.insert(view.clone(), ViewIntent { publish_number, online: true, checks });
    }
    for later in published_later(&mut tx, run).await? {
        if let Some(intent) = views.get_mut(&later) {
            intent.online = false;
        }
    }
    let intent = Intent { run: run.id, views };
    views_take(&mut tx, &intent).await?;
    intent_store(&mut tx, &intent, now).await?;
    query("UPDATE runs SET state = $1 WHERE id = $2")
        .bind(RunState::Publishing.as_str())
        .bind(run.id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("storing an intent"))?;
    commit(tx).await?;
    Ok(intent)
}

pub(crate) async fn intent_store(tx: &mut Conn, intent: &Intent, now: Instant) -> Result<()> {
    query("INSERT INTO intents (run, taken_at, views) VALUES ($1, $2, $3)")
        .bind(intent.run.to_string())
        .bind(micros(now))
        .bind(codec::json(&intent.views)?)
        .execute(tx)
        .await
        .map_err(on("storing an intent"))?;
    Ok(())
}

/// What is known of views, locked in an order that all runs share.
pub(crate) async fn lock_views(tx: &mut Conn, views: &[ViewId]) -> Result<HashMap<ViewId, ViewRow>> {
    let names = views;
    let mut views = Builder::new(concat!(view_columns!(), " WHERE view IN "));
    views.push_list(names.iter().map(ToString::to_string)).push(" ORDER BY view").push_end(locked!(""));
    let rows = views.build().fetch_all(tx).await.map_err(on("locking the views of a run"))?;
    rows.iter().map(|row| Ok((row.parse("view")?, view_from(row)?))).collect()
}

pub(crate) fn known<'a>(states: &'a HashMap<ViewId, ViewRow>, view: &ViewId) -> Result<&'a ViewRow> {
    states.get(view).ok_or_else(|| StoreError::NotFound { what: "feature view", name: view.to_string() })
}

/// The number under which the run publishes the view, if it may.
fn publish_number(run: &Run, view: &ViewId, judged: &ViewIntentRequest, known: &ViewRow) -> Result<u64> {
    let state = &known.state;
    if let Some(other) = state.publishing.filter(|other| *other != run.id) {
        return Err(StoreError::Conflict(format!("the run `{other}` is publishing `{view}`")));
    }
    if state.records != judged.records {
        return Err(StoreError::Conflict(format!("`{view}` was published since its history was judged")));
    }
    Ok(state.publish_number + 1)
}

/// Those of the run's views of which a later interval is published.
async fn published_later(tx: &mut Conn, run: &Run) -> Result<Vec<ViewId>> {
    let mut later = Builder::new("SELECT DISTINCT view FROM ledger WHERE interval_end > ");
    later.push_bind(micros(run.interval.end())).push(" AND view IN ");
    later.push_list(run.views.iter().map(ToString::to_string));
    let rows = later.build().fetch_all(tx).await.map_err(on("looking for later intervals"))?;
    rows.iter().map(|row| row.parse("view")).collect()
}

/// Takes the views for the run and notes their publish numbers and verdicts.
pub(crate) async fn views_take(tx: &mut Conn, intent: &Intent) -> Result<()> {
    let mut take = Builder::new("UPDATE view_states SET publish_number = taken.column2, publishing = ");
    take.push_bind(intent.run.to_string()).push(" FROM (VALUES ");
    let mut rows = Vec::with_capacity(intent.views.len());
    for (view, what) in &intent.views {
        rows.push([Arg::from(view.to_string()), number(what.publish_number)?.into()]);
        tracing::debug!(run.id = %intent.run, view = %view, publish_number = what.publish_number, "took the intent");
    }
    take.push_rows(rows).push(") AS taken WHERE view_states.view = taken.column1");
    take.build().execute(&mut *tx).await.map_err(on("taking views"))?;
    for (view, what) in &intent.views {
        moves::verdicts_store(tx, intent.run, view, &what.checks).await?;
    }
    Ok(())
}

fn refuse_unless_publish(task: &Held) -> Result<()> {
    if task.kind == TaskKind::Publish {
        return Ok(());
    }
    Err(StoreError::Refused(format!("the task `{}` does not publish its run", task.kind)))
}

pub(crate) fn refuse_unless_same_views<'a>(run: &Run, given: impl ExactSizeIterator<Item = &'a ViewId>) -> Result<()> {
    let count = given.len();
    if count == run.views.len() && given.into_iter().all(|view| run.views.contains(view)) {
        return Ok(());
    }
    Err(StoreError::Refused(format!("the run `{}` publishes exactly its own views", run.id)))
}

/// The last gate: whoever calls, nothing that a check stops gets an intent.
fn refuse_unless_passed(run: &Run, view: &ViewId, judged: &ViewIntentRequest) -> Result<()> {
    for check in &judged.checks {
        let decided = run.overriding.as_ref().is_some_and(|decision| decision.covers(view, &check.check));
        if check.does_not_hold() && (check.blocks() || check.is_built_in() || !decided) {
            return Err(StoreError::Refused(format!("the check `{}` of `{view}` stops the run", check.check)));
        }
        if check.verdict == Verdict::Pending {
            return Err(StoreError::Refused(format!("the check `{}` of `{view}` is not judged yet", check.check)));
        }
    }
    Ok(())
}

pub(crate) async fn intent(db: &Db, run: RunId) -> Result<Option<Intent>> {
    let mut tx = db.read().await?;
    intent_in_tx(&mut tx, run).await
}

pub(crate) async fn intent_in_tx(tx: &mut Conn, run: RunId) -> Result<Option<Intent>> {
    let row = query("SELECT views FROM intents WHERE run = $1")
        .bind(run.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("reading an intent"))?;
    row.map(|row| Ok(Intent { run, views: row.json("views")? })).transpose()
}

pub(crate) async fn record(db: &Db, token: LeaseToken, record: &Record, now: Instant) -> Result<()> {
    let mut tx = db.write().await?;
    let task = moves::by_token(&mut tx, token).await?.ok_or(StoreError::LostLease)?;
    refuse_unless_publish(&task)?;
    if task.state == TaskState::Succeeded {
        recorded_already(&mut tx, task.run.id, record).await?;
        return commit(tx).await;
    }
    if task.state != TaskState::Running {
        return Err(StoreError::LostLease);
    }
    let run = &task.run;
    let intent = intent_in_tx(&mut tx, run.id)
        .await?
        .ok_or_else(|| StoreError::Refused(format!("the run `{}` has not taken its intent", run.id)))?;
    refuse_unless_same_views(run, record.views.keys())?;
    let states = lock_views(&mut tx, &run.views).await?;
    for (view, what) in &record.views {
        refuse_unless_taken(&intent, view, what.publish_number, known(&states, view)?)?;
    }
    query("INSERT INTO manifests (run, pins) VALUES ($1, $2)")
        .bind(run.id.to_string())
        .bind(codec::json(&record.manifest)?)
        .execute(&mut tx)
        .await
        .map_err(on("recording a manifest"))?;
    let output = TaskOutput::Published(record.snapshot);
    let rows = record.views.values().map(|what| what.rows).sum();
    moves::task_end(&mut tx, &task, TaskState::Succeeded, None, Some(&output), Some(rows), now).await?;
    moves::run_end(&mut tx, run.id, RunState::Succeeded, "", now).await?;
    let numbers: IndexMap<&ViewId, u64> = record.views.iter().map(|(view, what)| (view, what.publish_number)).collect();
    let detail = json!({
        "dag": run.dag,
        "interval": run.interval,
        "snapshot": record.snapshot,
        "publish_numbers": numbers,
    });
    for addressed in &record.notices {
        notices::addressed_in_tx(&mut tx, addressed).await?;
    }
    // Late, since snapshots are numbered by one run at a time: from here on until the commit others wait.
    let number = snapshots::insert_in_tx(&mut tx, run, record, now).await?;
    views_record(&mut tx, run, record, &states, number).await?;
    let event = NewAuditEvent::new(now, &record.actor, "publish", run.id.to_string()).with(detail);
    audit::add_in_tx(&mut tx, &event).await?;
    commit(tx).await
}

async fn recorded_already(tx: &mut Conn, run: RunId, record: &Record) -> Result<()> {
    let same = query("SELECT 1 FROM snapshots WHERE run = $1 AND id = $2")
        .bind(run.to_string())
        .bind(record.snapshot.to_string())
        .fetch_optional(tx)
        .await
        .map_err(on("looking for a snapshot"))?;
    if same.is_some() {
        return Ok(());
    }
    Err(StoreError::Refused(format!("the run `{run}` is recorded already, as another snapshot")))
}

/// A record is of what the intent took, and of nothing that was overtaken.
pub(crate) fn refuse_unless_taken(intent: &Intent, view: &ViewId, publish_number: u64, known: &ViewRow) -> Result<()> {
    let given = intent.views.get(view).map(|intent| intent.publish_number);
    if given != Some(publish_number) {
        return Err(StoreError::Refused(format!("`{view}` was given another publish number than {publish_number}")));
    }
    if known.recorded_number > publish_number || known.state.publishing != Some(intent.run) {
        return Err(StoreError::Superseded { view: view.clone() });
    }
    Ok(())
}

/// Views in one statement.
const VIEWS_WRITTEN_MAX: usize = 500;

async fn views_record(
    tx: &mut Conn,
    run: &Run,
    record: &Record,
    states: &HashMap<ViewId, ViewRow>,
    number_of_snapshot: u64,
) -> Result<()> {
    let (mut ledger, mut views) = (Vec::new(), Vec::new());
    for (view, what) in &record.views {
        ledger.push([
            Arg::from(view.to_string()),
            micros(run.interval.end()).into(),
            micros(run.interval.start()).into(),
            run.id.to_string().into(),
            record.snapshot.to_string().into(),
            number(what.rows)?.into(),
            (&what.digest).into(),
        ]);
        let newest = newer(known(states, view)?.state.newest, run.interval);
        views.push([
            Arg::from(view.to_string()),
            number(what.publish_number)?.into(),
            number(what.delta_version)?.into(),
            number_option(what.online_generation)?.into(),
            micros(newest.start()).into(),
            micros(newest.end()).into(),
            number_option(what.quarantine_version)?.into(),
        ]);
    }
    for rows in ledger.chunks(VIEWS_WRITTEN_MAX) {
        let mut insert = Builder::new(
            "INSERT INTO ledger (view, interval_end, interval_start, run, snapshot, rows, digest) VALUES ",
        );
        insert.push_rows(rows.iter().cloned()).push(
            " ON CONFLICT (view, interval_end, interval_start) DO UPDATE SET run = excluded.run, \
             snapshot = excluded.snapshot, rows = excluded.rows, digest = excluded.digest",
        );
        insert.build().execute(&mut *tx).await.map_err(on("recording an interval"))?;
    }
    restoring::ledger_log_in_tx(tx, &ledger, number_of_snapshot).await?;
    for rows in views.chunks(VIEWS_WRITTEN_MAX) {
        let mut update = Builder::new(
            "UPDATE view_states SET recorded_number = done.column2, records = records + 1, \
             delta_version = done.column3, online_generation = coalesce(done.column4, online_generation), \
             newest_start = done.column5, newest_end = done.column6, \
             quarantine_version = coalesce(done.column7, quarantine_version) FROM (VALUES ",
        );
        update.push_rows(rows.iter().cloned()).push(") AS done WHERE view_states.view = done.column1");
        update.build().execute(&mut *tx).await.map_err(on("recording views"))?;
    }
    Ok(())
}

fn newer(known: Option<Interval>, recorded: Interval) -> Interval {
    known.filter(|known| known.end() > recorded.end()).unwrap_or(recorded)
}

#[cfg(test)]
mod tests {
    use tidegate_registry::ids::SnapshotId;
    use tidegate_registry::run::RunState;
    use tidegate_registry::store::{Store, StoreError, TaskEnd};

    use crate::SqliteStore;
    use crate::conformance::world::{World, day, view};
    use crate::sql::query;

    /// Only a restore can overtake a run that holds its views, and no method of the trait does that yet.
    #[tokio::test]
    async fn a_run_whose_number_was_overtaken_records_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("registry.db")).await.unwrap();
        let world = World::new(std::sync::Arc::new(store.clone())).await;
        let run = world.admitted("daily", 0).await;
        let claim = world.claim_publish(run).await;
        let intent = world.take(&claim).await;
        let mut tx = store.db.write().await.unwrap();
        query("UPDATE view_states SET recorded_number = 2, publish_number = 2 WHERE view = 'b@v1'")
            .execute(&mut tx)
            .await
            .unwrap();
        crate::db::commit(tx).await.unwrap();

        let record = World::record(SnapshotId::generate(), &intent);
        let refused = store.record(claim.token, record, day(10)).await;
        assert!(matches!(&refused, Err(StoreError::Superseded { view: of }) if *of == view("b@v1")), "{refused:?}");
        assert!(store.ledger(&view("a@v1"), None, 0).await.unwrap().is_empty(), "not even the other view");
        assert!(store.snapshots(None, None, 0).await.unwrap().is_empty());
        world.end(claim.token, TaskEnd::Superseded { reason: "overtaken".to_owned() }).await;
        assert_eq!(world.state(run).await, RunState::Superseded);
    }
}
