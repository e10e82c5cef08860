//! Holds: what keeps views from being published until a person resumes them.

use serde_json::json;
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::notice::{NewNotice, NoticeEvent};
use tidegate_registry::restore::{Hold, HoldPolicy, Holds, RestoreRequest, ResumeRequest};
use tidegate_registry::store::{Change, Result, StoreError};
use tidegate_registry::time::Instant;

use crate::codec::micros;
use crate::creation::Creation;
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, Row, query};
use crate::{audit, definitions, notices};

/// Holds about to be placed.
pub(crate) struct Placing<'a> {
    pub(crate) views: &'a [ViewId],
    pub(crate) policy: HoldPolicy,
    pub(crate) actor: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) restore: Option<RunId>,
    pub(crate) now: Instant,
}

impl<'a> Placing<'a> {
    pub(crate) fn of(request: &'a RestoreRequest) -> Self {
        Self {
            views: &request.plan.holds,
            policy: request.plan.hold_policy,
            actor: &request.actor,
            reason: &request.reason,
            restore: Some(request.id),
            now: request.now,
        }
    }
}

pub(crate) async fn list(db: &Db) -> Result<Holds> {
    let mut tx = db.read_together().await?;
    let holds = in_tx(&mut tx).await?;
    commit(tx).await?;
    Ok(holds)
}

async fn in_tx(tx: &mut Conn) -> Result<Holds> {
    let rows = query(
        "SELECT view, policy, actor, reason, placed_at, restore, fingerprint FROM holds WHERE lifted_at IS NULL \
         ORDER BY placed_at, id",
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(on("reading the holds"))?;
    Ok(Holds { revision: revision_in_tx(tx).await?, holds: rows.iter().map(hold_from).collect::<Result<_>>()? })
}

/// What decisions that rest on holds are compared with.
pub(crate) async fn revision_in_tx(tx: &mut Conn) -> Result<u64> {
    let row = query("SELECT holds FROM registry").fetch_one(tx).await.map_err(on("reading the holds"))?;
    row.count("holds")
}

fn hold_from(row: &Row) -> Result<Hold> {
    Ok(Hold {
        view: row.parse("view")?,
        policy: row.parse::<HoldPolicy>("policy")?,
        actor: row.get_as("actor")?,
        reason: row.get_as("reason")?,
        placed_at: row.instant("placed_at")?,
        restore: row.parse_option("restore")?,
        fingerprint: row.get_as("fingerprint")?,
    })
}

async fn bump(tx: &mut Conn) -> Result<()> {
    query("UPDATE registry SET holds = holds + 1").execute(&mut *tx).await.map_err(on("noting a change of holds"))?;
    // Planning looks at what is held: every DAG is due.
    query("UPDATE dags SET due_at = 0 WHERE retired = 0").execute(&mut *tx).await.map_err(on("making DAGs due"))?;
    tx.has_changed(Change::Runs);
    Ok(())
}

pub(crate) async fn place_in_tx(tx: &mut Conn, placing: &Placing<'_>) -> Result<()> {
    if placing.views.is_empty() {
        return Ok(());
    }
    let (_, project) = definitions::project_in_tx(tx, None).await?;
    for view in placing.views {
        query(
            "INSERT INTO holds (id, view, policy, actor, reason, placed_at, restore, fingerprint) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(RunId::generate().to_string())
        .bind(view.to_string())
        .bind(placing.policy.as_str())
        .bind(placing.actor)
        .bind(placing.reason)
        .bind(micros(placing.now))
        .bind(placing.restore.map(|run| run.to_string()))
        .bind(project.views.get(view).map(|view| view.fingerprint.as_str()))
        .execute(&mut *tx)
        .await
        .map_err(on("placing a hold"))?;
    }
    let message = format!("{} holds {}: {}", placing.actor, names(placing.views), placing.reason);
    let notice = NewNotice::new(NoticeEvent::HoldPlaced, names(placing.views), placing.now, message);
    notices::notify_in_tx(tx, &notice.by(placing.actor)).await?;
    bump(tx).await
}

pub(crate) async fn place(
    db: &Db,
    views: &[ViewId],
    policy: HoldPolicy,
    actor: &str,
    reason: &str,
    now: Instant,
) -> Result<()> {
    let mut tx = db.write_alone().await?;
    let held: Vec<ViewId> = in_tx(&mut tx).await?.holds.into_iter().map(|hold| hold.view).collect();
    let views: Vec<ViewId> = views.iter().filter(|view| !held.contains(view)).cloned().collect();
    if !views.is_empty() {
        place_in_tx(&mut tx, &Placing { views: &views, policy, actor, reason, restore: None, now }).await?;
        let event = NewAuditEvent::new(now, actor, "hold", names(&views)).because(reason);
        audit::add_in_tx(&mut tx, &event.with(json!({ "policy": policy }))).await?;
    }
    commit(tx).await
}

fn names(views: &[ViewId]) -> String {
    views.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub(crate) async fn resume(db: &Db, request: &ResumeRequest) -> Result<Vec<RunId>> {
    let mut tx = db.write_alone().await?;
    let holds = in_tx(&mut tx).await?;
    if holds.revision != request.revision {
        return Err(StoreError::Conflict("holds have changed since: look again".to_owned()));
    }
    for view in &request.views {
        let of_view: Vec<_> = holds.holds.iter().filter(|hold| hold.view == *view).collect();
        if of_view.is_empty() {
            return Err(StoreError::Refused(format!("`{view}` is not held itself")));
        }
        for restore in of_view.iter().filter_map(|hold| hold.restore) {
            let open = query("SELECT 1 FROM runs WHERE id = $1 AND finished_at IS NULL")
                .bind(restore.to_string())
                .fetch_optional(&mut tx)
                .await
                .map_err(on("looking for a restore"))?;
            if open.is_some() {
                return Err(StoreError::Refused(format!("the restore `{restore}` of `{view}` is still under way")));
            }
        }
    }
    let mut lift = Builder::new("UPDATE holds SET lifted_at = ");
    lift.push_bind(micros(request.now)).push(" WHERE lifted_at IS NULL AND view IN ");
    lift.push_list(request.views.iter().map(ToString::to_string));
    lift.build().execute(&mut tx).await.map_err(on("lifting holds"))?;
    bump(&mut tx).await?;
    let mut creation = Creation::read(&mut tx, &request.runs.iter().collect::<Vec<_>>()).await?;
    let mut made = Vec::with_capacity(request.runs.len());
    for run in &request.runs {
        creation.refuse_unless_possible(run)?;
        made.push(creation.add(run));
    }
    creation.write(&mut tx, request.now).await?;
    let message = format!("{} resumes {}", request.actor, names(&request.views));
    let notice = NewNotice::new(NoticeEvent::HoldLifted, names(&request.views), request.now, message);
    notices::notify_in_tx(&mut tx, &notice.by(&request.actor)).await?;
    let mut event = NewAuditEvent::new(request.now, &request.actor, "resume", names(&request.views));
    event.reason = Some(request.reason.clone()).filter(|reason| !reason.is_empty());
    audit::add_in_tx(&mut tx, &event.with(json!({ "runs": made.len() }))).await?;
    commit(tx).await?;
    Ok(made)
}
