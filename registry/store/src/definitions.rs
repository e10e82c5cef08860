//! Definitions: every version of each is kept, in force from one revision until another.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{PoolName, ProjectName, QueueName, ViewId};
use tidegate_registry::model::{Project, Table, TableRef};
use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::store::{
    ApplyRecord, ApplyRequest, Change, DefinitionRow, DefinitionVersion, RegistryInfo, Result, StoreError,
};
use tidegate_registry::time::Instant;

use crate::codec::{self, internal, micros, number};
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, Row, query};
use crate::{audit, pools};

/// The name of the empty project that a registry serves before its first apply.
const NO_PROJECT: &str = "none";

pub(crate) async fn info(db: &Db) -> Result<RegistryInfo> {
    let mut tx = db.read().await?;
    info_in_tx(&mut tx).await
}

async fn info_in_tx(tx: &mut Conn) -> Result<RegistryInfo> {
    let row = query("SELECT id, project, revision FROM registry")
        .fetch_one(tx)
        .await
        .map_err(on("reading what the registry is"))?;
    Ok(RegistryInfo { id: row.parse("id")?, project: row.get_as("project")?, revision: row.get_as("revision")? })
}

/// The revision of the definitions in force.
pub(crate) async fn revision_in_tx(tx: &mut Conn) -> Result<i64> {
    Ok(info_in_tx(tx).await?.revision)
}

pub(crate) async fn apply(db: &Db, request: &ApplyRequest) -> Result<i64> {
    let mut tx = db.write_alone().await?;
    let info = info_in_tx(&mut tx).await?;
    if let Some(served) = info.project.as_deref().filter(|served| *served != request.project) {
        return Err(StoreError::Refused(format!(
            "this registry serves the project `{served}`, not `{}`: give each project a registry of its own",
            request.project
        )));
    }
    if info.revision != request.base {
        return Err(StoreError::Conflict(format!(
            "the definitions are at revision {} now, and this plan was made on revision {}: plan again",
            info.revision, request.base
        )));
    }
    let revision = info.revision + 1;
    let before = current_reads(&mut tx).await?;
    for (kind, name) in &request.changes.removals {
        retire(&mut tx, *kind, name, revision).await?;
        if *kind == DefinitionKind::Pool {
            pools::remove_in_tx(&mut tx, name).await?;
        }
        if *kind == DefinitionKind::Dag {
            query("UPDATE dags SET retired = 1, due_at = NULL, changed = $1 WHERE dag = $2")
                .bind(revision)
                .bind(name)
                .execute(&mut tx)
                .await
                .map_err(on("retiring a DAG"))?;
        }
    }
    for row in &request.changes.upserts {
        upsert(&mut tx, row, revision).await?;
        match row.kind {
            DefinitionKind::Dag => dag_due(&mut tx, &row.name, revision, request.now).await?,
            DefinitionKind::FeatureView => view_state_ensure(&mut tx, &row.name, request).await?,
            DefinitionKind::Pool => pools::upsert_in_tx(&mut tx, row).await?,
            DefinitionKind::Owner
            | DefinitionKind::Entity
            | DefinitionKind::Source
            | DefinitionKind::RestoreRule
            | DefinitionKind::Recipe
            | DefinitionKind::Drill
            | DefinitionKind::FeatureService
            | DefinitionKind::Consumer => {}
        }
    }
    for dag in dags_touched(&mut tx, request, &before).await? {
        dag_due(&mut tx, &dag, revision, request.now).await?;
    }
    query("UPDATE registry SET project = $1, revision = $2")
        .bind(&request.project)
        .bind(revision)
        .execute(&mut tx)
        .await
        .map_err(on("moving the revision"))?;
    query("INSERT INTO applies (revision, applied_at, actor, message) VALUES ($1, $2, $3, $4)")
        .bind(revision)
        .bind(micros(request.now))
        .bind(&request.actor)
        .bind(&request.message)
        .execute(&mut tx)
        .await
        .map_err(on("noting the apply"))?;
    let names = |rows: &mut dyn Iterator<Item = (DefinitionKind, &String)>| -> Vec<String> {
        rows.map(|(kind, name)| format!("{kind} {name}")).collect()
    };
    let detail = json!({
        "upserts": names(&mut request.changes.upserts.iter().map(|row| (row.kind, &row.name))),
        "removals": names(&mut request.changes.removals.iter().map(|(kind, name)| (*kind, name))),
    });
    tx.has_changed(Change::Runs);
    let event = NewAuditEvent {
        reason: request.message.clone(),
        ..NewAuditEvent::new(request.now, &request.actor, "apply", &request.project)
            .change(json!({ "revision": request.base }), json!({ "revision": revision }))
            .with(detail)
    };
    audit::add_in_tx(&mut tx, &event).await?;
    commit(tx).await?;
    Ok(revision)
}

async fn retire(tx: &mut Conn, kind: DefinitionKind, name: &str, revision: i64) -> Result<()> {
    query("UPDATE definitions SET until = $1 WHERE kind = $2 AND name = $3 AND until IS NULL")
        .bind(revision)
        .bind(kind.as_str())
        .bind(name)
        .execute(tx)
        .await
        .map_err(on("retiring a definition"))?;
    Ok(())
}

/// Adds a version, unless the current one is the same. A changed definition keeps its place among its kind.
async fn upsert(tx: &mut Conn, row: &DefinitionRow, revision: i64) -> Result<()> {
    let body = codec::json(&row.body)?;
    let current =
        query("SELECT position, fingerprint, body FROM definitions WHERE kind = $1 AND name = $2 AND until IS NULL")
            .bind(row.kind.as_str())
            .bind(&row.name)
            .fetch_optional(&mut *tx)
            .await
            .map_err(on("reading a definition"))?;
    let position = match &current {
        Some(current) => {
            if current.get_as::<&str>("fingerprint")? == row.fingerprint && current.get_as::<&str>("body")? == body {
                return Ok(());
            }
            Some(current.get_as::<i64>("position")?)
        }
        None => None,
    };
    retire(tx, row.kind, &row.name, revision).await?;
    query(
        "INSERT INTO definitions (kind, name, since, position, fingerprint, body) \
         VALUES ($1, $2, $3, coalesce($4, (SELECT coalesce(max(position), 0) + 1 FROM definitions)), $5, $6)",
    )
    .bind(row.kind.as_str())
    .bind(&row.name)
    .bind(revision)
    .bind(position)
    .bind(&row.fingerprint)
    .bind(body)
    .execute(tx)
    .await
    .map_err(on("writing a definition"))?;
    Ok(())
}

/// Makes a DAG due now. One that returns goes on with its grid.
async fn dag_due(tx: &mut Conn, dag: &str, revision: i64, now: Instant) -> Result<()> {
    query(
        "INSERT INTO dags (dag, due_at, created_at, changed) VALUES ($1, $2, $2, $3) \
         ON CONFLICT (dag) DO UPDATE SET due_at = $2, changed = $3, retired = 0",
    )
    .bind(dag)
    .bind(micros(now))
    .bind(revision)
    .execute(tx)
    .await
    .map_err(on("making a DAG due"))?;
    Ok(())
}

/// What is known of an added view begins with its empty table. A definition may still change its table for as long as
/// nothing was published to it.
async fn view_state_ensure(tx: &mut Conn, name: &str, request: &ApplyRequest) -> Result<()> {
    let view: ViewId = name.parse().map_err(|source| internal("reading the name of a view", source))?;
    let doing = "writing what is known of a view";
    match request.tables.get(&view) {
        Some(version) => {
            query(
                "INSERT INTO view_states (view, delta_version) VALUES ($1, $2) \
                 ON CONFLICT (view) DO UPDATE SET delta_version = excluded.delta_version \
                 WHERE view_states.records = 0 AND view_states.publish_number = 0",
            )
            .bind(name)
            .bind(number(*version)?)
            .execute(tx)
            .await
            .map_err(on(doing))?;
        }
        None => {
            let known = query("SELECT 1 FROM view_states WHERE view = $1")
                .bind(name)
                .fetch_optional(tx)
                .await
                .map_err(on(doing))?;
            if known.is_none() {
                return Err(StoreError::Refused(format!(
                    "no table was created for the added feature view `{name}`: its version is missing"
                )));
            }
        }
    }
    Ok(())
}

/// As much of a view's definition as the registry itself needs.
#[derive(Deserialize)]
struct ViewParts {
    reads: Vec<TableRef>,
    #[serde(default)]
    checked_against: Vec<Table>,
    #[serde(default)]
    queue: Option<QueueName>,
    #[serde(default)]
    pool: Option<PoolName>,
}

impl ViewParts {
    /// The tables that its query and its checks read.
    fn tables(self) -> Vec<Table> {
        self.reads.into_iter().map(|read| read.table).chain(self.checked_against).collect()
    }
}

/// What a run needs to know of a view to make its task.
#[derive(Debug, Clone)]
pub(crate) struct ViewTask {
    /// The views that it reads.
    pub(crate) reads: Vec<ViewId>,
    /// Who may claim it.
    pub(crate) queue: Option<QueueName>,
    /// Whose slot it takes.
    pub(crate) pool: Option<PoolName>,
}

/// As much of a DAG's definition as the registry itself needs.
#[derive(Deserialize)]
struct DagViews {
    views: Vec<ViewId>,
}

/// The current views with what each reads: (name, tables).
async fn current_reads(tx: &mut Conn) -> Result<Vec<(String, Vec<Table>)>> {
    let rows = query("SELECT name, body FROM definitions WHERE kind = 'feature_view' AND until IS NULL")
        .fetch_all(tx)
        .await
        .map_err(on("reading the views"))?;
    rows.iter().map(|row| Ok((row.get_as("name")?, row.json::<ViewParts>("body")?.tables()))).collect()
}

/// The DAGs that run a view that was added, changed or removed, or that reads a source of which that is true.
async fn dags_touched(tx: &mut Conn, request: &ApplyRequest, before: &[(String, Vec<Table>)]) -> Result<Vec<String>> {
    let changed = |kind: DefinitionKind| -> BTreeSet<&str> {
        let upserts = request.changes.upserts.iter().map(|row| (row.kind, row.name.as_str()));
        let removals = request.changes.removals.iter().map(|(kind, name)| (*kind, name.as_str()));
        upserts.chain(removals).filter(|(of, _)| *of == kind).map(|(_, name)| name).collect()
    };
    let sources = changed(DefinitionKind::Source);
    let mut views: BTreeSet<String> = changed(DefinitionKind::FeatureView).into_iter().map(str::to_owned).collect();
    if !sources.is_empty() {
        let after = current_reads(tx).await?;
        let reading = before.iter().chain(&after).filter(|(_, reads)| {
            reads.iter().any(|table| matches!(table, Table::Source(source) if sources.contains(source.as_str())))
        });
        views.extend(reading.map(|(name, _)| name.clone()));
    }
    if views.is_empty() {
        return Ok(Vec::new());
    }
    let rows = query("SELECT name, body FROM definitions WHERE kind = 'dag' AND until IS NULL ORDER BY name")
        .fetch_all(tx)
        .await
        .map_err(on("reading the DAGs"))?;
    let mut touched = Vec::new();
    for row in &rows {
        if row.json::<DagViews>("body")?.views.iter().any(|view| views.contains(&view.to_string())) {
            touched.push(row.get_as("name")?);
        }
    }
    Ok(touched)
}

/// What those of `views` that are defined at `revision` are to a run.
pub(crate) async fn view_tasks_in_tx(
    tx: &mut Conn,
    views: &[&ViewId],
    revision: i64,
) -> Result<Vec<(ViewId, ViewTask)>> {
    let mut bodies = Builder::new("SELECT name, body FROM definitions WHERE kind = 'feature_view' AND since <= ");
    bodies.push_bind(revision).push(" AND (until IS NULL OR until > ").push_bind(revision).push(") AND name IN ");
    bodies.push_list(views.iter().map(ToString::to_string));
    let rows = bodies.build().fetch_all(tx).await.map_err(on("reading the definitions of views"))?;
    let task = |row: &Row| -> Result<(ViewId, ViewTask)> {
        let mut parts: ViewParts = row.json("body")?;
        let (queue, pool) = (parts.queue.take(), parts.pool.take());
        let reads = parts.tables().into_iter().filter_map(|table| match table {
            Table::Source(_) => None,
            Table::State(view) | Table::History(view) => Some(view),
        });
        Ok((row.parse("name")?, ViewTask { reads: reads.collect(), queue, pool }))
    };
    rows.iter().map(task).collect()
}

pub(crate) async fn applies(db: &Db) -> Result<Vec<ApplyRecord>> {
    let mut tx = db.read().await?;
    let rows = query("SELECT revision, applied_at, actor, message FROM applies ORDER BY revision DESC")
        .fetch_all(&mut tx)
        .await
        .map_err(on("reading the applies"))?;
    rows.iter()
        .map(|row| {
            Ok(ApplyRecord {
                revision: row.get_as("revision")?,
                applied_at: row.instant("applied_at")?,
                actor: row.get_as("actor")?,
                message: row.get_as("message")?,
            })
        })
        .collect()
}

pub(crate) async fn project(db: &Db, revision: Option<i64>) -> Result<(i64, Project)> {
    let mut tx = db.read().await?;
    project_in_tx(&mut tx, revision).await
}

pub(crate) async fn project_in_tx(tx: &mut Conn, revision: Option<i64>) -> Result<(i64, Project)> {
    let info = info_in_tx(tx).await?;
    let revision = revision.unwrap_or(info.revision);
    if !(0..=info.revision).contains(&revision) {
        return Err(StoreError::NotFound { what: "revision", name: revision.to_string() });
    }
    let name = ProjectName::new(info.project.as_deref().unwrap_or(NO_PROJECT))
        .map_err(|source| internal("reading the project's name", source))?;
    let rows = query(
        "SELECT kind, name, body FROM definitions WHERE since <= $1 AND (until IS NULL OR until > $1) \
         ORDER BY position, since",
    )
    .bind(revision)
    .fetch_all(tx)
    .await
    .map_err(on("reading the definitions"))?;
    let mut project = Project::empty(name);
    for row in &rows {
        match row.parse::<DefinitionKind>("kind")? {
            DefinitionKind::Owner => _ = project.owners.insert(row.parse("name")?, row.json("body")?),
            DefinitionKind::Entity => _ = project.entities.insert(row.parse("name")?, row.json("body")?),
            DefinitionKind::Source => _ = project.sources.insert(row.parse("name")?, row.json("body")?),
            DefinitionKind::Pool => _ = project.pools.insert(row.parse("name")?, row.json("body")?),
            DefinitionKind::FeatureView => _ = project.views.insert(row.parse("name")?, row.json("body")?),
            DefinitionKind::Dag => _ = project.dags.insert(row.parse("name")?, row.json("body")?),
            DefinitionKind::RestoreRule => {
                _ = project.restore_policy.insert(row.parse("name")?, row.json("body")?);
            }
            DefinitionKind::Recipe => _ = project.recipes.insert(row.parse("name")?, row.json("body")?),
            DefinitionKind::Drill => _ = project.drills.insert(row.parse("name")?, row.json("body")?),
            DefinitionKind::FeatureService => {
                _ = project.feature_services.insert(row.parse("name")?, row.json("body")?);
            }
            DefinitionKind::Consumer => _ = project.consumers.insert(row.parse("name")?, row.json("body")?),
        }
    }
    Ok((revision, project))
}

pub(crate) async fn definition_versions(db: &Db, kind: DefinitionKind, name: &str) -> Result<Vec<DefinitionVersion>> {
    let mut tx = db.read().await?;
    let rows = query(
        "SELECT fingerprint, body, since, until FROM definitions WHERE kind = $1 AND name = $2 ORDER BY since DESC",
    )
    .bind(kind.as_str())
    .bind(name)
    .fetch_all(&mut tx)
    .await
    .map_err(on("reading the versions of a definition"))?;
    let version = |row: &Row| -> Result<DefinitionVersion> {
        Ok(DefinitionVersion {
            row: DefinitionRow {
                kind,
                name: name.to_owned(),
                fingerprint: row.get_as("fingerprint")?,
                body: row.json("body")?,
            },
            since: row.get_as("since")?,
            until: row.get_as("until")?,
        })
    };
    rows.iter().map(version).collect()
}

pub(crate) async fn clock_anchor(db: &Db, real_now: Instant, project_start: Instant) -> Result<(Instant, Instant)> {
    let mut tx = db.write_one().await?;
    let row = query(
        "UPDATE registry SET clock_project = CASE WHEN clock_real IS NULL THEN $2 ELSE clock_project END, \
         clock_real = coalesce(clock_real, $1) RETURNING clock_real, clock_project",
    )
    .bind(micros(real_now))
    .bind(micros(project_start))
    .fetch_one(&mut tx)
    .await
    .map_err(on("anchoring the clock"))?;
    let anchor = (row.instant("clock_real")?, row.instant("clock_project")?);
    commit(tx).await?;
    Ok(anchor)
}
