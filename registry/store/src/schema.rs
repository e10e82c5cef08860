//! The schema and its steps.
//!
//! A deploy has old programs and new ones on one registry for a while. So a step only adds: tables, indexes, columns
//! with a default. Each step says the oldest schema version that a program may know and still work with it
//! (`compatible_from`); a program accepts a newer schema when every step that it does not know allows that, and refuses it
//! otherwise. All missing steps are one transaction behind a lock: processes that start together make one schema, and one
//! that dies in the middle leaves nothing.

use tidegate_registry::ids::RegistryId;
use tidegate_registry::store::{Result, StoreError};

use crate::audit;
use crate::db::{Conn, Link, on};
use crate::sql::{Sql, query};

/// One step of the schema. Never edit one that was released: add another.
pub(crate) struct Step {
    name: &'static str,
    /// Programs that know the schema from this version on can work with it.
    compatible_from: i64,
    /// Statements separated by semicolons.
    text: Sql,
}

/// The steps, oldest first; the first one makes version 1.
pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "0001_registry",
        compatible_from: 1,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0001_registry.sql"),
            postgres: include_str!("../migrations/postgres/0001_registry.sql"),
        },
    },
    Step {
        name: "0002_care",
        compatible_from: 1,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0002_care.sql"),
            postgres: include_str!("../migrations/postgres/0002_care.sql"),
        },
    },
    Step {
        name: "0003_placement",
        // Older programs claim whatever is there: they know no queues and no pools.
        compatible_from: 3,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0003_placement.sql"),
            postgres: include_str!("../migrations/postgres/0003_placement.sql"),
        },
    },
    Step {
        name: "0004_quarantine",
        // Older programs would publish rows that are to be set aside, and do not know the verdict.
        compatible_from: 4,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0004_quarantine.sql"),
            postgres: include_str!("../migrations/postgres/0004_quarantine.sql"),
        },
    },
    Step {
        name: "0005_summary",
        // Older programs leave it out, which is read as unknown.
        compatible_from: 4,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0005_summary.sql"),
            postgres: include_str!("../migrations/postgres/0005_summary.sql"),
        },
    },
    Step {
        name: AUDIT_CHAIN,
        // Older programs add events that are no part of the chain; the database refuses them.
        compatible_from: 6,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0006_audit_chain.sql"),
            postgres: include_str!("../migrations/postgres/0006_audit_chain.sql"),
        },
    },
    Step {
        name: "0007_notices",
        // Older programs tell nobody.
        compatible_from: 6,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0007_notices.sql"),
            postgres: include_str!("../migrations/postgres/0007_notices.sql"),
        },
    },
    Step {
        name: "0008_restore",
        // Older programs know neither holds nor restores.
        compatible_from: 8,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0008_restore.sql"),
            postgres: include_str!("../migrations/postgres/0008_restore.sql"),
        },
    },
    Step {
        name: "0009_switches",
        // Older programs bring no switches to a store that lost them; they take none away.
        compatible_from: 8,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0009_switches.sql"),
            postgres: include_str!("../migrations/postgres/0009_switches.sql"),
        },
    },
    Step {
        name: "0010_approvals",
        // Older programs would restore against the policy, and cannot read projects that have one.
        compatible_from: 10,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0010_approvals.sql"),
            postgres: include_str!("../migrations/postgres/0010_approvals.sql"),
        },
    },
    Step {
        name: "0011_drills",
        // Older programs cannot read projects that schedule drills.
        compatible_from: 11,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0011_drills.sql"),
            postgres: include_str!("../migrations/postgres/0011_drills.sql"),
        },
    },
    Step {
        name: "0012_datasets",
        // Older programs would let go of what a dataset keeps, and cannot read projects that have services or consumers.
        compatible_from: 12,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0012_datasets.sql"),
            postgres: include_str!("../migrations/postgres/0012_datasets.sql"),
        },
    },
    Step {
        name: "0013_firings",
        // Older programs trigger no recipes.
        compatible_from: 12,
        text: Sql {
            sqlite: include_str!("../migrations/sqlite/0013_firings.sql"),
            postgres: include_str!("../migrations/postgres/0013_firings.sql"),
        },
    },
];

/// The step that chains the events that are there, which no SQL can do.
const AUDIT_CHAIN: &str = "0006_audit_chain";

/// Brings the schema up to date and names a new registry. The caller holds the lock and commits.
///
/// # Errors
/// [`StoreError::Refused`] when a newer program has changed the schema beyond what this one can work with.
pub(crate) async fn migrate(tx: &mut Conn) -> Result<()> {
    migrate_by(tx, STEPS).await
}

async fn migrate_by(tx: &mut Conn, steps: &[Step]) -> Result<()> {
    prepare(tx).await?;
    let known = steps.len() as i64;
    let row = query(
        "SELECT coalesce(max(version), 0) AS version, \
         max(CASE WHEN version > $1 THEN coalesce(compatible_from, version) END) AS needed FROM schema_steps",
    )
    .bind(known)
    .fetch_one(&mut *tx)
    .await
    .map_err(on("reading the schema's version"))?;
    let at: i64 = row.get_as("version")?;
    let needed: Option<i64> = row.get_as("needed")?;
    if needed.is_some_and(|needed| needed > known) {
        return Err(StoreError::Refused(format!(
            "the registry has schema version {at}, and this program knows versions up to {known}: use a newer version \
             of Tidegate"
        )));
    }
    for (version, step) in (1..).zip(steps) {
        if version > at {
            run_text(tx, step.text).await?;
            if step.name == AUDIT_CHAIN {
                audit::begin_chain(tx).await?;
            }
            query("INSERT INTO schema_steps (version, name, compatible_from) VALUES ($1, $2, $3)")
                .bind(version)
                .bind(step.name)
                .bind(step.compatible_from)
                .execute(&mut *tx)
                .await
                .map_err(on("noting the schema's version"))?;
        }
    }
    query("INSERT INTO registry (one, id) VALUES (1, $1) ON CONFLICT (one) DO NOTHING")
        .bind(RegistryId::generate().to_string())
        .execute(&mut *tx)
        .await
        .map_err(on("naming the registry"))?;
    Ok(())
}

/// Whether there is nothing to do, which is so for nearly everybody who opens a registry on PostgreSQL: they need no lock.
pub(crate) async fn is_current(conn: &mut Conn) -> Result<bool> {
    let doing = "reading the schema's version";
    let made = query("SELECT 1 WHERE to_regclass('schema_steps') IS NOT NULL").fetch_optional(&mut *conn).await;
    if made.map_err(on(doing))?.is_none() {
        return Ok(false);
    }
    let row = query("SELECT max(version) AS version FROM schema_steps").fetch_one(conn).await.map_err(on(doing))?;
    Ok(row.get_as::<Option<i64>>("version")? == Some(STEPS.len() as i64))
}

async fn prepare(tx: &mut Conn) -> Result<()> {
    query(Sql {
        sqlite: "CREATE TABLE IF NOT EXISTS schema_steps (version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, \
                 compatible_from INTEGER) STRICT",
        postgres: "CREATE TABLE IF NOT EXISTS schema_steps (version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, \
                   compatible_from BIGINT)",
    })
    .execute(&mut *tx)
    .await
    .map_err(on("preparing the schema"))?;
    if let Link::Sqlite(_) = tx.link {
        // Registries of the first version do not have the column.
        let column = query("SELECT 1 FROM pragma_table_info('schema_steps') WHERE name = 'compatible_from'")
            .fetch_optional(&mut *tx)
            .await
            .map_err(on("reading the schema's steps"))?;
        if column.is_none() {
            query("ALTER TABLE schema_steps ADD COLUMN compatible_from INTEGER")
                .execute(&mut *tx)
                .await
                .map_err(on("preparing the schema"))?;
        }
    }
    Ok(())
}

async fn run_text(tx: &mut Conn, text: Sql) -> Result<()> {
    let done = match &mut tx.link {
        Link::Sqlite(tx) => sqlx::raw_sql(text.sqlite).execute(&mut **tx).await.map(drop),
        Link::Postgres(session) => {
            let answer = sqlx::raw_sql(text.postgres).execute(session.ask()).await;
            session.settle(answer).map(drop)
        }
    };
    done.map_err(on("migrating the registry"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use tidegate_registry::store::Store;
    use tidegate_servers::Postgres;

    use super::*;
    use crate::db::{Db, commit};
    use crate::{PostgresStore, SqliteStore};

    const TABLES: Sql = Sql {
        sqlite: "SELECT t.name || '.' || c.name AS found FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c \
                 WHERE t.type = 'table'",
        postgres: "SELECT CAST(table_name || '.' || column_name AS TEXT) AS found FROM information_schema.columns \
                   WHERE table_schema = current_schema()",
    };

    async fn found(db: &Db, text: Sql) -> BTreeSet<String> {
        let rows = query(text).fetch_all(&mut db.read().await.unwrap()).await.unwrap();
        rows.iter().map(|row| row.get_as("found").unwrap()).collect()
    }

    /// A store on each database, by what opens it again.
    async fn both(folder: &Path) -> [(Db, String); 2] {
        let path = folder.join("registry.db").to_str().unwrap().to_owned();
        let url = Postgres::shared().database().unwrap() + "&schema=registry";
        let sqlite = SqliteStore::open(Path::new(&path)).await.unwrap();
        [(sqlite.db, path), (PostgresStore::open(&url).await.unwrap().db, url)]
    }

    async fn open(place: &str) -> Result<RegistryId> {
        if place.starts_with("postgres:") {
            Ok(PostgresStore::open(place).await?.info().await?.id)
        } else {
            Ok(SqliteStore::open(Path::new(place)).await?.info().await?.id)
        }
    }

    #[tokio::test]
    async fn both_databases_have_the_same_tables_and_columns() {
        let folder = tempfile::tempdir().unwrap();
        let [(sqlite, _), (postgres, _)] = both(folder.path()).await;
        let (left, right) = (found(&sqlite, TABLES).await, found(&postgres, TABLES).await);
        assert!(left.len() > 50);
        assert_eq!(left, right);
    }

    /// Types, defaults, keys and indexes; the text of `pg_dump` differs from version to version.
    #[tokio::test]
    async fn migrating_from_nothing_yields_the_committed_schema_on_postgresql() {
        let folder = tempfile::tempdir().unwrap();
        let [_, (postgres, _)] = both(folder.path()).await;
        let parts = found(
            &postgres,
            Sql::from(
                "SELECT concat_ws(' ', table_name, column_name, data_type, collation_name, column_default, \
                 CASE is_nullable WHEN 'NO' THEN 'not null' END, CASE is_identity WHEN 'YES' THEN 'identity' END) \
                 AS found FROM information_schema.columns WHERE table_schema = current_schema() \
                 UNION ALL SELECT replace(indexdef, current_schema() || '.', '') FROM pg_indexes \
                 WHERE schemaname = current_schema() \
                 UNION ALL SELECT concat_ws(' ', c.relname, pg_get_constraintdef(p.oid)) FROM pg_constraint AS p \
                 JOIN pg_class AS c ON c.oid = p.conrelid \
                 WHERE p.connamespace = current_schema()::regnamespace",
            ),
        )
        .await;
        let text: String = parts.into_iter().map(|part| part + "\n").collect();
        let committed = include_str!("../schema.postgres.txt");
        assert!(text == committed, "if the change is meant, write this to schema.postgres.txt:\n{text}");
    }

    #[tokio::test]
    async fn a_newer_schema_is_accepted_when_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        for (db, place) in both(folder.path()).await {
            let known = STEPS.len() as i64;
            let id = open(&place).await.unwrap();
            for (version, compatible_from) in [(known + 1, Some(known)), (known + 2, Some(1))] {
                add(&db, version, compatible_from).await;
                assert_eq!(open(&place).await.unwrap(), id);
            }
            add(&db, known + 3, Some(known + 1)).await;
            let refused = open(&place).await.unwrap_err();
            assert!(matches!(&refused, StoreError::Refused(why) if why.contains("newer version")), "{refused:?}");
        }
    }

    async fn add(db: &Db, version: i64, compatible_from: Option<i64>) {
        let mut tx = db.write().await.unwrap();
        query("INSERT INTO schema_steps (version, name, compatible_from) VALUES ($1, 'from the future', $2)")
            .bind(version)
            .bind(compatible_from)
            .execute(&mut tx)
            .await
            .unwrap();
        commit(tx).await.unwrap();
    }

    #[tokio::test]
    async fn a_migration_that_dies_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for (db, place) in both(folder.path()).await {
            let before = found(&db, TABLES).await;
            let step = |text| Step { name: "next", compatible_from: 1, text: Sql::from(text) };
            let mut steps: Vec<Step> = STEPS.iter().map(|known| Step { ..*known }).collect();
            steps.push(step("CREATE TABLE half (n BIGINT); INSERT INTO half VALUES (1)"));
            steps.push(step("INSERT INTO no_such_table VALUES (1)"));
            let mut tx = db.write().await.unwrap();
            assert!(migrate_by(&mut tx, &steps).await.is_err());
            drop(tx);
            assert_eq!(found(&db, TABLES).await, before);
            steps.pop();
            let mut tx = db.write().await.unwrap();
            migrate_by(&mut tx, &steps).await.unwrap();
            commit(tx).await.unwrap();
            assert!(found(&db, TABLES).await.contains("half.n"));
            open(&place).await.unwrap();
        }
    }

    /// Registries of the first version knew nothing of compatibility.
    #[tokio::test]
    async fn a_registry_of_the_first_version_is_brought_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.db");
        let store = SqliteStore::open(&path).await.unwrap();
        let mut tx = store.db.write().await.unwrap();
        query("ALTER TABLE schema_steps DROP COLUMN compatible_from").execute(&mut tx).await.unwrap();
        commit(tx).await.unwrap();
        let again = SqliteStore::open(&path).await.unwrap();
        assert_eq!(again.info().await.unwrap(), store.info().await.unwrap());
        assert!(found(&again.db, TABLES).await.contains("schema_steps.compatible_from"));
    }
}
