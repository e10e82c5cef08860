//! Copies of a registry: into a SQLite file, and back from one.
//!
//! A copy is itself a registry of the schema that this program knows, so one that an older program made is brought up to
//! date by opening it (a copy of it: nobody's backup is written to). Rows travel as numbers and text, which is all that
//! the schema holds, and in an order in which each finds what it refers to.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{Connection as _, SqliteConnection};
use tidegate_registry::audit::NewAuditEvent;
use tidegate_registry::care::TableRows;
use tidegate_registry::store::{Result, StoreError};
use tidegate_registry::time::Instant;

use crate::audit;
use crate::codec::internal;
use crate::db::{Conn, Db, commit, on};
use crate::sql::{Builder, Row, Sql, query};

/// Every table but `schema_steps`, each after those that it refers to, with what orders its rows.
pub(super) const TABLES: &[(&str, &str)] = &[
    ("registry", "one"),
    ("applies", "revision"),
    ("definitions", "kind, name, since"),
    ("pools", "name"),
    ("dags", "dag"),
    ("ticks", "dag, at"),
    ("runs", "id"),
    ("tasks", "run, seq"),
    ("task_logs", "id"),
    ("view_states", "view"),
    ("intents", "run"),
    ("snapshots", "id"),
    ("snapshot_views", "snapshot, position"),
    ("snapshot_pins", "snapshot"),
    ("manifests", "run"),
    ("ledger", "view, interval_end, interval_start"),
    ("ledger_log", "view, interval_end, interval_start, since"),
    ("restores", "run"),
    ("holds", "id"),
    ("bad_snapshots", "snapshot"),
    ("feature_switches", "view, feature"),
    ("approvals", "id"),
    ("drills", "id"),
    ("drill_views", "drill, view"),
    ("datasets", "id"),
    ("dataset_views", "dataset, view"),
    ("checks", "run, seq, position"),
    ("notices", "id"),
    ("notice_deliveries", "notice, webhook"),
    ("audit_events", "id"),
    ("audit_head", "one"),
    ("recipe_firings", "id"),
    ("recipe_looks", "one"),
    ("workers", "owner"),
    ("duties", "name"),
];

/// Who is about, and who has which duty: true of processes and not of a registry, so not copied.
const OF_PROCESSES: [&str; 2] = ["workers", "duties"];

/// Rows read at once.
const PAGE: i64 = 2_000;

pub(super) async fn backup(db: &Db, file: &Path) -> Result<Vec<TableRows>> {
    if file.exists() {
        return Err(StoreError::Refused(format!(
            "`{}` exists, and a backup never overwrites: name a new file",
            file.display()
        )));
    }
    // Whole or not there: under another name until it is done.
    let partial = beside(file, "partial");
    remove(&partial)?;
    let copied = write_copy(db, &partial).await;
    match copied {
        Ok(rows) => {
            std::fs::rename(&partial, file).map_err(|source| internal("naming the backup", source))?;
            Ok(rows)
        }
        Err(error) => {
            remove(&partial)?;
            Err(error)
        }
    }
}

async fn write_copy(db: &Db, file: &Path) -> Result<Vec<TableRows>> {
    let copy = Db::sqlite(file).await?;
    let mut from = db.read_together().await?;
    let mut to = copy.write().await?;
    let rows = copy_all(&mut from, &mut to).await?;
    commit(to).await?;
    commit(from).await?;
    copy.close().await;
    // One file that can be carried away: no log beside it.
    let options = SqliteConnectOptions::new().filename(file).journal_mode(SqliteJournalMode::Delete);
    let connection = SqliteConnection::connect_with(&options).await.map_err(on("finishing the backup"))?;
    connection.close().await.map_err(on("finishing the backup"))?;
    Ok(rows)
}

pub(super) async fn restore(db: &Db, file: &Path, replace: bool, actor: &str, now: Instant) -> Result<Vec<TableRows>> {
    require_copy(file).await?;
    let copied = tempfile_beside(file)?;
    let restored = restore_from(db, &copied, replace, actor, now).await;
    remove(&copied)?;
    restored
}

async fn restore_from(db: &Db, file: &Path, replace: bool, actor: &str, now: Instant) -> Result<Vec<TableRows>> {
    let copy = Db::sqlite(file).await?;
    let mut from = copy.read_together().await?;
    let mut to = db.write_alone().await?;
    let info = query("SELECT project, revision FROM registry")
        .fetch_one(&mut to)
        .await
        .map_err(on("reading what the registry is"))?;
    if info.get_as::<i64>("revision")? != 0 && !replace {
        let project: Option<String> = info.get_as("project")?;
        return Err(StoreError::Refused(format!(
            "this registry serves the project `{}`: with `--force` everything in it is replaced",
            project.unwrap_or_default()
        )));
    }
    let replaced = head(&mut to).await?;
    let rows = copy_all(&mut from, &mut to).await?;
    // Whoever held a lease when the copy was made holds none here.
    query("UPDATE tasks SET lease_until = 0 WHERE lease_until IS NOT NULL")
        .execute(&mut to)
        .await
        .map_err(on("giving up leases"))?;
    // The trail is the copy's from here on: this event tells where the one that it replaces had ended.
    let event = NewAuditEvent::new(now, actor, "registry_restore", "registry");
    audit::add_in_tx(&mut to, &event.change(replaced, head(&mut from).await?)).await?;
    commit(to).await?;
    commit(from).await?;
    copy.close().await;
    Ok(rows)
}

/// Where an audit trail ends.
async fn head(tx: &mut Conn) -> Result<Value> {
    let row = query("SELECT number, hash FROM audit_head")
        .fetch_one(tx)
        .await
        .map_err(on("reading the head of the audit trail"))?;
    Ok(json!({ "events_up_to": row.get_as::<i64>("number")?, "head": row.get_as::<&str>("hash")? }))
}

/// The audit trail refuses changes by a trigger of its own, which is put back in the same transaction.
const GUARD_OFF: Sql = Sql {
    sqlite: "DROP TRIGGER audit_events_stay",
    postgres: "ALTER TABLE audit_events DISABLE TRIGGER audit_events_keep",
};
const GUARD_ON: [Sql; 2] = [
    Sql {
        sqlite: "CREATE TRIGGER audit_events_stay BEFORE DELETE ON audit_events\n\
                 BEGIN SELECT RAISE(ABORT, 'audit events are only ever added'); END",
        postgres: "ALTER TABLE audit_events ENABLE TRIGGER audit_events_keep",
    },
    // The next rows are numbered after those that were copied.
    Sql {
        sqlite: "SELECT 1",
        postgres: "SELECT setval(pg_get_serial_sequence('audit_events', 'id'), \
                   (SELECT coalesce(max(id), 0) + 1 FROM audit_events), false), \
                   setval(pg_get_serial_sequence('task_logs', 'id'), \
                   (SELECT coalesce(max(id), 0) + 1 FROM task_logs), false)",
    },
];

/// Empties the tables of `to` and fills them from `from`.
async fn copy_all(from: &mut Conn, to: &mut Conn) -> Result<Vec<TableRows>> {
    query(GUARD_OFF).execute(to).await.map_err(on("preparing the registry for a copy"))?;
    for (table, _) in TABLES.iter().rev() {
        let mut empty = Builder::new("DELETE FROM ");
        empty.push(table);
        empty.build().execute(to).await.map_err(on("emptying the registry for a copy"))?;
    }
    let mut copied = Vec::with_capacity(TABLES.len());
    for (table, order) in TABLES {
        let rows = if OF_PROCESSES.contains(table) { 0 } else { copy_table(from, to, table, order).await? };
        copied.push(TableRows { table: (*table).to_owned(), rows });
    }
    for text in GUARD_ON {
        query(text).fetch_all(to).await.map_err(on("finishing a copy"))?;
    }
    Ok(copied)
}

async fn copy_table(from: &mut Conn, to: &mut Conn, table: &'static str, order: &'static str) -> Result<u64> {
    let mut copied = 0;
    loop {
        let mut page = Builder::new("SELECT * FROM ");
        page.push(table).push(" ORDER BY ").push(order).push(" LIMIT ").push_bind(PAGE).push(" OFFSET ");
        page.push_bind(copied);
        let rows = page.build().fetch_all(from).await.map_err(on("reading what is to be copied"))?;
        for row in &rows {
            insert(to, table, row).await?;
        }
        copied += rows.len() as i64;
        if (rows.len() as i64) < PAGE {
            return Ok(copied.unsigned_abs());
        }
    }
}

async fn insert(to: &mut Conn, table: &'static str, row: &Row) -> Result<()> {
    let cells = row.cells().map_err(on("reading what is to be copied"))?;
    let mut insert = Builder::new("INSERT INTO ");
    insert.push(table);
    let mut separator = " (";
    for (name, _) in &cells {
        insert.push(separator).push_column(name);
        separator = ", ";
    }
    insert.push(") VALUES ").push_list(cells.into_iter().map(|(_, value)| value));
    insert.build().execute(to).await.map_err(on("writing a copied row"))?;
    Ok(())
}

/// Refuses what is no copy of a registry, without writing to it.
async fn require_copy(file: &Path) -> Result<()> {
    let refused =
        || StoreError::Refused(format!("`{}` is not a copy of a registry made by `registry backup`", file.display()));
    let options = SqliteConnectOptions::new().filename(file).read_only(true).immutable(true);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(|_| refused())?;
    let rows = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name IN ('schema_steps', 'registry', 'view_states')")
        .fetch_all(&mut connection)
        .await;
    connection.close().await.map_err(on("looking at the copy"))?;
    match rows {
        Ok(rows) if rows.len() == 3 => Ok(()),
        _ => Err(refused()),
    }
}

/// A copy of `file` that may be written to.
fn tempfile_beside(file: &Path) -> Result<PathBuf> {
    let folder = std::env::temp_dir();
    let name = format!("tidegate-restore-{}-{}.db", std::process::id(), tidegate_registry::ids::RunId::generate());
    let copy = folder.join(name);
    std::fs::copy(file, &copy)
        .map_err(|source| internal(format!("reading the backup `{}`", file.display()), source))?;
    Ok(copy)
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Removes a database file and what SQLite keeps beside it.
fn remove(file: &Path) -> Result<()> {
    for path in [file.to_owned(), with_suffix(file, "-wal"), with_suffix(file, "-shm"), with_suffix(file, "-journal")] {
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(internal(format!("removing `{}`", path.display()), error)),
        }
    }
    Ok(())
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
