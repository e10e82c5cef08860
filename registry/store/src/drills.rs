//! Drills: what was rehearsed, and how long it took.

use async_trait::async_trait;
use indexmap::IndexMap;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::drill::{Drill, DrillEnd, DrillReport, DrillState, Drilling, Proven, ProvenRestore};
use tidegate_registry::ids::{DrillId, DrillName, ViewId};
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::{json, limit_or_all, micros, number_option};
use crate::db::postgres::{BULK_MAX, CALL_MAX};
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Arg, Builder, Row, query};
use crate::{SqlStore, audit, notices};

/// Values of one statement: below the limits of both databases.
const VIEWS_PER_QUERY: usize = 5_000;
/// Rows of one statement.
const ROWS_MAX: usize = 500;

#[async_trait]
impl<D: std::fmt::Debug + Send + Sync> Drilling for SqlStore<D> {
    async fn drill_begin(&self, drill: &Drill) -> Result<()> {
        self.db.run(CALL_MAX, || begin(&self.db, drill)).await
    }

    async fn drill_end(&self, id: DrillId, end: DrillEnd) -> Result<()> {
        self.db.run(CALL_MAX, || finish(&self.db, id, &end)).await
    }

    async fn drills(&self, limit: u32) -> Result<Vec<Drill>> {
        self.db.run(CALL_MAX, || list(&self.db, limit)).await
    }

    async fn drills_open(&self) -> Result<Vec<Drill>> {
        self.db.run(CALL_MAX, || open(&self.db)).await
    }

    async fn drilled_last(&self, drill: &DrillName) -> Result<Option<Instant>> {
        self.db.run(CALL_MAX, || last(&self.db, drill)).await
    }

    async fn proven(&self, views: &[ViewId]) -> Result<IndexMap<ViewId, Proven>> {
        self.db.run(BULK_MAX, || proven(&self.db, views)).await
    }
}

const COLUMNS: &str = "SELECT id, name, views, scenarios, actor, started_at, finished_at, state, report FROM drills";

fn drill_from(row: &Row) -> Result<Drill> {
    Ok(Drill {
        id: row.parse("id")?,
        name: row.parse_option("name")?,
        views: row.json("views")?,
        scenarios: row.json("scenarios")?,
        actor: row.get_as("actor")?,
        started_at: row.instant("started_at")?,
        finished_at: row.instant_option("finished_at")?,
        state: row.parse("state")?,
        report: row.json_option("report")?,
    })
}

async fn begin(db: &Db, drill: &Drill) -> Result<()> {
    let mut tx = db.write_alone().await?;
    let inserted = query(
        "INSERT INTO drills (id, name, views, scenarios, actor, started_at, state) VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(drill.id.to_string())
    .bind(drill.name.as_ref().map(ToString::to_string))
    .bind(json(&drill.views)?)
    .bind(json(&drill.scenarios)?)
    .bind(&drill.actor)
    .bind(micros(drill.started_at))
    .bind(DrillState::Running.as_str())
    .execute(&mut tx)
    .await
    .map_err(on("writing down a drill"))?;
    if inserted > 0 {
        let detail = json!({ "name": drill.name, "views": drill.views, "scenarios": drill.scenarios });
        let event = NewAuditEvent::new(drill.started_at, &drill.actor, "drill_begin", drill.id.to_string());
        audit::add_in_tx(&mut tx, &event.with(detail)).await?;
    }
    commit(tx).await
}

async fn finish(db: &Db, id: DrillId, end: &DrillEnd) -> Result<()> {
    let mut tx = db.write_alone().await?;
    let mut select = Builder::new(COLUMNS);
    select.push(" WHERE id = ").push_bind(id.to_string());
    let row = select.build().fetch_optional(&mut tx).await.map_err(on("reading a drill"))?;
    let known = drill_from(&row.ok_or_else(|| StoreError::NotFound { what: "drill", name: id.to_string() })?)?;
    if known.finished_at.is_some() {
        return commit(tx).await;
    }
    query("UPDATE drills SET finished_at = $1, state = $2, report = $3 WHERE id = $4")
        .bind(micros(end.now))
        .bind(end.state.as_str())
        .bind(end.report.as_ref().map(json).transpose()?)
        .bind(id.to_string())
        .execute(&mut tx)
        .await
        .map_err(on("writing down how a drill ended"))?;
    if let Some(report) = &end.report {
        insert_views(&mut tx, id, report, end.now).await?;
    }
    for notice in &end.notices {
        notices::notify_in_tx(&mut tx, notice).await?;
    }
    let report = end.report.as_ref();
    let detail = json!({
        "state": end.state,
        "took_ms": report.map(|report| report.took_ms),
        "proven_ms": report.map(DrillReport::proven),
        "error": report.and_then(|report| report.error.as_ref()),
    });
    let event = NewAuditEvent::new(end.now, &end.actor, "drill_end", id.to_string());
    audit::add_in_tx(&mut tx, &event.with(detail)).await?;
    commit(tx).await
}

/// What a drill says of each view that took part in it.
async fn insert_views(tx: &mut Conn, id: DrillId, report: &DrillReport, now: Instant) -> Result<()> {
    let proven = report.proven();
    let mut rows: IndexMap<&ViewId, Option<u64>> = IndexMap::new();
    for scenario in report.scenarios.iter().filter(|scenario| scenario.outcome != DrillState::Skipped) {
        for view in &scenario.views {
            let has_failed = scenario.outcome == DrillState::Failed;
            if has_failed || proven.contains_key(view) {
                rows.insert(view, proven.get(view).copied());
            }
        }
    }
    let mut cells: Vec<[Arg; 4]> = Vec::with_capacity(rows.len());
    for (view, took) in rows {
        let took = number_option(took)?;
        cells.push([view.to_string().into(), id.to_string().into(), micros(now).into(), took.into()]);
    }
    for rows in cells.chunks(ROWS_MAX) {
        let mut insert = Builder::new("INSERT INTO drill_views (view, drill, at, took_ms) VALUES ");
        insert.push_rows(rows.iter().cloned());
        insert.build().execute(&mut *tx).await.map_err(on("writing down what a drill proved"))?;
    }
    Ok(())
}

async fn list(db: &Db, limit: u32) -> Result<Vec<Drill>> {
    let mut tx = db.read().await?;
    let mut select = Builder::new(COLUMNS);
    select.push(" ORDER BY id DESC LIMIT ").push_bind(limit_or_all(limit));
    let rows = select.build().fetch_all(&mut tx).await.map_err(on("reading the drills"))?;
    rows.iter().map(drill_from).collect()
}

async fn open(db: &Db) -> Result<Vec<Drill>> {
    let mut tx = db.read().await?;
    let mut select = Builder::new(COLUMNS);
    select.push(" WHERE finished_at IS NULL ORDER BY id");
    let rows = select.build().fetch_all(&mut tx).await.map_err(on("reading the drills under way"))?;
    rows.iter().map(drill_from).collect()
}

async fn last(db: &Db, drill: &DrillName) -> Result<Option<Instant>> {
    let mut tx = db.read().await?;
    let row = query("SELECT max(started_at) AS last FROM drills WHERE name = $1")
        .bind(drill.to_string())
        .fetch_one(&mut tx)
        .await
        .map_err(on("reading when a drill was carried out last"))?;
    row.instant_option("last")
}

async fn proven(db: &Db, views: &[ViewId]) -> Result<IndexMap<ViewId, Proven>> {
    let mut tx = db.read_together().await?;
    let mut found: IndexMap<ViewId, Proven> = IndexMap::new();
    for views in views.chunks(VIEWS_PER_QUERY) {
        // Of each view its newest drill, and the newest that it came back in; ids sort by when they were made.
        let mut select = Builder::new(
            "SELECT v.view, v.drill, v.at, v.took_ms FROM drill_views AS v JOIN (\
             SELECT view, max(drill) AS newest, max(CASE WHEN took_ms IS NOT NULL THEN drill END) AS good \
             FROM drill_views WHERE view IN ",
        );
        select.push_list(views.iter().map(ToString::to_string));
        select.push(
            " GROUP BY view) AS n ON n.view = v.view AND (v.drill = n.newest OR v.drill = n.good) ORDER BY v.view, v.drill",
        );
        for row in select.build().fetch_all(&mut tx).await.map_err(on("reading what drills proved"))? {
            let entry = found.entry(row.parse("view")?).or_default();
            let drill = row.parse("drill")?;
            match row.count_option("took_ms")? {
                Some(took_ms) => {
                    entry.restore = Some(ProvenRestore { drill, at: row.instant("at")?, took_ms });
                }
                None => entry.failed = Some(drill),
            }
        }
    }
    commit(tx).await?;
    Ok(found)
}
