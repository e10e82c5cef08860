//! What is particular to PostgreSQL: a server that goes away, sessions that stand in each other's way, many claimers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tidegate_registry::ids::RunId;
use tidegate_registry::run::{Claim, NewRun, TaskKind};
use tidegate_registry::store::{Change, ClaimRequest, Store, StoreError, TaskEnd};
use tidegate_servers::Postgres;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::conformance::world::{LONG, World, day, insist, pins, staged, succeeded};
use crate::db::{self, commit};
use crate::sql::query;
use crate::{PostgresStore, planning, runs};

async fn store(url: &str) -> PostgresStore {
    PostgresStore::open(url).await.unwrap()
}

/// A connection of somebody else.
async fn session(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn execute(session: &mut PgConnection, text: &'static str) {
    sqlx::raw_sql(text).execute(session).await.unwrap();
}

/// Plans `count` runs of three tasks each: pin, one view, publish.
async fn plan_runs(store: &PostgresStore, count: i64) -> Vec<RunId> {
    World::new(Arc::new(store.clone())).await;
    // Attempts enough for all that these tests do to them.
    let run = |number| NewRun { attempts_max: 1_000, ..World::new_run("other", number) };
    store.runs_create((0..count).map(run).collect(), day(10)).await.unwrap()
}

/// The same, admitted.
async fn admit(store: &PostgresStore, count: i64) -> Vec<RunId> {
    let ids = plan_runs(store, count).await;
    store.runs_admit(&ids).await.unwrap();
    ids
}

/// Claims and ends what it gets until every one of `runs` is claimed for publishing, and returns all its claims.
async fn work(
    store: PostgresStore,
    owner: String,
    lease: Duration,
    done: Arc<std::sync::Mutex<usize>>,
    runs: usize,
) -> Vec<Claim> {
    let request = ClaimRequest::new(owner, lease);
    let mut claims = Vec::new();
    while *done.lock().unwrap() < runs {
        let Some(claim) = insist(|| store.task_claim(&request, day(10))).await.pop() else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let end = match claim.kind {
            TaskKind::Pin => succeeded(pins()),
            TaskKind::View(_) => succeeded(staged(1, Vec::new())),
            TaskKind::Publish | TaskKind::Restore => TaskEnd::Superseded { reason: "that will do".to_owned() },
        };
        let last = claim.kind == TaskKind::Publish;
        // A worker whose lease ran out while the database was away has lost it, and another goes on.
        let ended = insist(|| async {
            match store.task_end(claim.token, end.clone(), day(10)).await {
                Ok(()) => Ok(true),
                Err(StoreError::LostLease) => Ok(false),
                Err(error) => Err(error),
            }
        });
        if ended.await && last {
            *done.lock().unwrap() += 1;
        }
        claims.push(claim);
    }
    claims
}

/// No attempt of a task was given to two.
fn assert_each_once(claims: &[Claim]) -> usize {
    let mut seen = HashMap::new();
    for claim in claims {
        *seen.entry((claim.run.id, claim.kind.clone(), claim.attempt)).or_insert(0) += 1;
    }
    assert!(seen.values().all(|times| *times == 1));
    seen.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thirty_two_claimers_get_each_task_once() {
    let url = Postgres::shared().database().unwrap();
    let here = store(&url).await;
    let runs = admit(&here, 700).await.len();
    let done = Arc::default();
    let mut workers = JoinSet::new();
    for process in 0..4 {
        let store = store(&url).await;
        for worker in 0..8 {
            workers.spawn(work(store.clone(), format!("{process}:{worker}"), LONG, Arc::clone(&done), runs));
        }
    }
    let claims = workers.join_all().await.concat();
    assert_eq!(assert_each_once(&claims), runs * 3);
    assert!(claims.iter().all(|claim| claim.attempt == 1));
}

/// Whatever a session was doing when it was ended: a claim or an end happened or did not, and a claim whose answer was
/// lost costs one attempt and a lease's time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sessions_that_are_ended_at_random_lose_no_task() {
    let url = Postgres::shared().database().unwrap();
    let here = store(&url).await;
    let ids = plan_runs(&here, 100).await;
    let done = Arc::default();
    let mut workers = JoinSet::new();
    for worker in 0..8 {
        let store = store(&url).await;
        workers.spawn(work(store, format!("w{worker}"), Duration::from_secs(2), Arc::clone(&done), ids.len()));
    }
    let mut killer = session(&url).await;
    // Little by little, so that not all is over before somebody was killed.
    let mut waiting = ids.chunks(20);
    let mut ended = 0;
    // Not for ever: on a slow machine sessions would be ended faster than work is done.
    while *done.lock().unwrap() < ids.len() && ended < 60 {
        if let Some(some) = waiting.next() {
            insist(|| here.runs_admit(some)).await;
        }
        ended += 1;
        execute(
            &mut killer,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
             AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1",
        )
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let claims = workers.join_all().await.concat();
    assert_each_once(&claims);
    assert!(insist(|| here.runs_open()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_crashes_and_comes_back_is_waited_for() {
    let server = Postgres::start().unwrap();
    let url = server.database().unwrap();
    let here = store(&url).await;
    let ids = plan_runs(&here, 200).await;
    let done: Arc<std::sync::Mutex<usize>> = Arc::default();
    let mut workers = JoinSet::new();
    for worker in 0..6 {
        let store = store(&url).await;
        workers.spawn(work(store, format!("w{worker}"), Duration::from_secs(3), Arc::clone(&done), ids.len()));
    }
    for (kill, some) in [false, true].into_iter().zip(ids.chunks(100)) {
        let before = *done.lock().unwrap();
        insist(|| here.runs_admit(some)).await;
        while *done.lock().unwrap() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if kill {
            server.kill().unwrap();
            let away = here.info().await.unwrap_err();
            assert!(matches!(away, StoreError::Unavailable(_)), "{away:?}");
            server.start_again().unwrap();
        } else {
            server.restart_immediate().unwrap();
        }
    }
    let claims = workers.join_all().await.concat();
    assert_each_once(&claims);
    assert!(insist(|| here.runs_open()).await.is_empty());
}

#[tokio::test]
async fn a_heartbeat_that_cannot_get_through_fails_in_time() {
    let url = Postgres::shared().database().unwrap();
    let here = store(&url).await;
    admit(&here, 1).await;
    let request = ClaimRequest::new("w", LONG);
    let claim = here.task_claim(&request, day(10)).await.unwrap().pop().unwrap();
    let mut other = session(&url).await;
    execute(&mut other, "BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE").await;
    let late = here.task_heartbeat(claim.token, Duration::from_secs(4)).await.unwrap_err();
    // A third of the lease ended it, and not one of the longer limits.
    assert!(matches!(&late, StoreError::Unavailable(why) if why.to_string() == "no answer within 1333 ms"), "{late:?}");
    execute(&mut other, "ROLLBACK").await;
    here.task_heartbeat(claim.token, LONG).await.unwrap();
}

#[tokio::test]
async fn no_session_of_ours_keeps_others_waiting_for_ever() {
    let url = Postgres::shared().database().unwrap();
    let here = store(&url).await;
    let mut tx = here.db.read().await.unwrap();
    for (setting, limit) in [
        ("SHOW idle_in_transaction_session_timeout", "10s"),
        ("SHOW lock_timeout", "8s"),
        ("SHOW statement_timeout", "30s"),
    ] {
        let row = query(setting).fetch_one(&mut tx).await.unwrap();
        let found: &str = row.get_as(setting.strip_prefix("SHOW ").unwrap()).unwrap();
        assert_eq!(found, limit, "{setting}");
    }
}

#[tokio::test]
async fn when_all_connections_are_taken_a_call_fails_in_time() {
    let url = Postgres::shared().database().unwrap() + "&connections=2";
    let here = store(&url).await;
    let held = (here.db.read().await.unwrap(), here.db.read().await.unwrap());
    let refused = here.info().await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
    drop(held);
    here.info().await.unwrap();
}

/// Two transactions that lock the same two runs in opposite order: one is given up, and done again.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_meet_head_on_are_done_again() {
    let url = Postgres::shared().database().unwrap();
    let here = store(&url).await;
    let ids = admit(&here, 2).await;
    let barrier = Barrier::new(2);
    let tries = std::sync::atomic::AtomicU32::new(0);
    let cross = |first: RunId, second: RunId| {
        let (barrier, tries, db) = (&barrier, &tries, &here.db);
        async move {
            db.run(LONG, || async move {
                let mut tx = db.write().await?;
                runs::lock_in_tx(&mut tx, first).await?;
                if tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 {
                    barrier.wait().await;
                }
                runs::lock_in_tx(&mut tx, second).await?;
                commit(tx).await
            })
            .await
        }
    };
    let (left, right) = tokio::join!(cross(ids[0], ids[1]), cross(ids[1], ids[0]));
    left.unwrap();
    right.unwrap();
    assert_eq!(tries.into_inner(), 3);
}

#[tokio::test]
async fn nothing_tells_the_password() {
    let server = Postgres::shared();
    let url = server.database().unwrap();
    let password = server.password();
    let store = store(&url).await;
    let mut texts = vec![format!("{store:?}")];
    let port = format!(":{}/", server.port());
    for wrong in [
        url.replace("tidegate:", "nobody:"),
        url.replace(&port, ":1/"),
        url.replace(&port, ":99999/"),
        url.replace("/db", "/no_such_db"),
        format!("{url}&schema=Wrong"),
        format!("{url}&no_such_parameter=1"),
        format!("{url}&sslrootcert=/no/such/file").replace("disable", "verify-full"),
        url.replace("postgres:", "mysql:"),
    ] {
        let error = PostgresStore::open(&wrong).await.unwrap_err();
        texts.push(format!("{error:?}"));
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            texts.push(error.to_string());
            cause = error.source();
        }
    }
    let escaped = password.replace('/', "%2F");
    let told = texts.iter().find(|text| text.contains(password) || text.contains(&escaped));
    assert_eq!(told, None);
}

#[tokio::test]
async fn connections_are_encrypted_when_the_url_says_so() {
    let server = Postgres::shared();
    let url = server.database().unwrap().replace("127.0.0.1", "localhost");
    let root = server.certificate();
    let by = |mode: &str, root: &Path| url.replace("disable", mode) + "&sslrootcert=" + root.to_str().unwrap();
    let here = store(&by("verify-full", &root)).await;
    let mut tx = here.db.read().await.unwrap();
    let row = query("SELECT CASE WHEN ssl THEN 'yes' END AS ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
    assert_eq!(row.fetch_one(&mut tx).await.unwrap().get_as::<&str>("ssl").unwrap(), "yes");
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.crt");
    std::fs::copy(Postgres::start().unwrap().certificate(), &other).unwrap();
    assert!(PostgresStore::open(&by("verify-full", &other)).await.is_err());
}

#[tokio::test]
async fn registries_in_one_database_do_not_know_each_other() {
    let url = Postgres::shared().database().unwrap();
    let (one, two) = (store(&(url.clone() + "&schema=one")).await, store(&(url.clone() + "&schema=two")).await);
    admit(&one, 1).await;
    assert_eq!(one.info().await.unwrap().project.as_deref(), Some("flights"));
    assert_eq!(two.info().await.unwrap().project, None);
    for wrong in ["", "a-b", "Upper", "pg_own", "1st", "a;b", "ä", &"x".repeat(64)] {
        let refused = PostgresStore::open(&format!("{url}&schema={wrong}")).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Refused(_)), "{wrong}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_together_make_one_registry() {
    let url = Postgres::shared().database().unwrap() + "&schema=fresh";
    let mut openers = JoinSet::new();
    for _ in 0..8 {
        let url = url.clone();
        openers.spawn(async move { store(&url).await.info().await.unwrap().id });
    }
    let ids = openers.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

/// How PostgreSQL answers a query when tables are large. Parameters need values there, so these have none.
async fn plan(session: &mut PgConnection, text: &str) -> String {
    use sqlx::Row;
    let rows = sqlx::query(AssertSqlSafe(format!("EXPLAIN {text}"))).fetch_all(session).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect()
}

/// The queries that run all the time must not grow with what lies finished in the tables.
#[tokio::test]
async fn claiming_and_planning_look_only_at_what_is_open() {
    let url = Postgres::shared().database().unwrap();
    let here = store(&url).await;
    let mut raw = session(&url).await;
    execute(
        &mut raw,
        "INSERT INTO runs (id, dag, interval_start, interval_end, views, views_key, cause, definitions, revision, \
         attempts_max, state, created_at, finished_at) SELECT 'r' || i, 'd', i, i + 1, '[]', '', 'tick', 1, 0, 1, \
         'succeeded', 0, 0 FROM generate_series(1, 20000) AS i; \
         INSERT INTO tasks (run, seq, kind, state, waits_for, attempts_max, interval_start, token) \
         SELECT 'r' || i, 0, 'pin', 'succeeded', '[]', 1, i, 't' || i FROM generate_series(1, 20000) AS i; \
         INSERT INTO dags (dag, due_at, created_at, changed) \
         SELECT 'd' || i, 1000000, 0, 1 FROM generate_series(1, 10000) AS i; ANALYZE",
    )
    .await;
    for (text, index) in [
        (crate::claims::NEXT.to_owned(), "tasks_ready"),
        (crate::claims::EXPIRED.to_owned(), "tasks_leased"),
        ("SELECT run, seq FROM tasks WHERE token = 't7'".to_owned(), "tasks_token"),
        (planning::DUE.replace("$1", "9").replace("$2", "10"), "dags_due"),
        ("SELECT * FROM runs WHERE finished_at IS NULL ORDER BY interval_start, dag, revision".to_owned(), "runs_open"),
    ] {
        let plan = plan(&mut raw, &text).await;
        assert!(
            plan.contains(index) && !plan.contains("Seq Scan on tasks") && !plan.contains("Seq Scan on runs"),
            "{plan}"
        );
        assert!(!plan.contains("Sort"), "{plan}");
    }
    drop(here);
}

/// A run that waited longer than the lead of those let in after it goes first, so nothing starves.
#[tokio::test]
async fn a_low_priority_costs_minutes_and_no_more() {
    let url = Postgres::shared().database().unwrap();
    let here = store(&url).await;
    let world = World::new(Arc::new(here.clone())).await;
    let mut ids = Vec::new();
    for (number, priority) in [(0, -100), (1, 100)] {
        let run = NewRun { priority, ..World::new_run("other", number) };
        let id = world.create(run).await;
        here.run_admit(id).await.unwrap();
        ids.push(id);
    }
    let first = async || here.tasks_waiting(1, LONG).await.unwrap()[0].run;
    assert_eq!(first().await, ids[1]);
    let mut raw = session(&url).await;
    // As if the first had been let in 200 minutes and a bit earlier.
    let earlier = "UPDATE tasks SET rank = rank - 12005000000 WHERE run = ";
    sqlx::raw_sql(AssertSqlSafe(format!("{earlier}'{}'", ids[0]))).execute(&mut raw).await.unwrap();
    assert_eq!(first().await, ids[0]);
}

/// Through the server, and again after the connection for it broke.
#[tokio::test(flavor = "multi_thread")]
async fn processes_wake_each_other() {
    let url = Postgres::shared().database().unwrap() + "&schema=awake";
    let (here, there) = (store(&url).await, store(&url).await);
    let world = World::new(Arc::new(here.clone())).await;
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    there.listen(Arc::new(move |change| sender.send(change).unwrap()));
    let mut killer = session(&url.replace("&schema=awake", "")).await;
    let mut numbers = 0..;
    for _ in 0..2 {
        // It hears of everything once it begins, and begins again after it was cut off. Only then there is a notice,
        // the last.
        let everything = async { while heard.recv().await.unwrap() != Change::Notices {} };
        tokio::time::timeout(Duration::from_secs(60), everything).await.unwrap();
        // Telling others is given up after a second, so it is told again until it is heard.
        let told = async {
            loop {
                world.create(World::new_run("other", numbers.next().unwrap())).await;
                if let Ok(change) = tokio::time::timeout(Duration::from_secs(2), heard.recv()).await {
                    break change;
                }
            }
        };
        let change = tokio::time::timeout(Duration::from_secs(60), told).await.unwrap();
        assert_eq!(change, Some(Change::Runs));
        execute(
            &mut killer,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
             AND query ILIKE 'LISTEN%'",
        )
        .await;
    }
}

#[tokio::test]
async fn a_standby_is_a_reason_to_try_again_later() {
    let url = Postgres::shared().database().unwrap();
    let here = store(&url).await;
    // What a server says that has become a standby.
    let name = url.rsplit('/').next().and_then(|rest| rest.split('?').next()).unwrap();
    Postgres::shared().execute(name, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).unwrap();
    let reader = store(&url).await;
    let mut tx = reader.db.read().await.unwrap();
    let refused = query("INSERT INTO workers (owner, heard_at) VALUES ('w', 1)").execute(&mut tx).await.unwrap_err();
    assert!(matches!(db::on("trying")(refused), StoreError::Unavailable(_)));
    here.info().await.unwrap();
}
