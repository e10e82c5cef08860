//! "It worked, but the caller saw a failure": what a lost, late or broken answer of an object store may do to a table.
//!
//! The faults strike below the client's own retries, on the wire: that is where the harm is done.

use std::time::Duration;

use deltalake::DeltaTable;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use object_store::path::Path;
use tidegate_registry::ids::RunId;
use tidegate_servers::{Fault, Mode};

use super::{On, World, commit, day, read, rows, view};
use crate::execute::chain;
use crate::lake::{CommitError, Lake};
use crate::objects::testing::{self, BUCKET};

/// Longer than any test waits.
const FOR_EVER: Duration = Duration::from_secs(600);

/// What delta-rs does when it is left to itself.
async fn append(lake: &Lake, adds: &[Add], mark: Option<Transaction>) -> deltalake::DeltaResult<u64> {
    let table = lake.load(&view(), None).await.unwrap();
    let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
    let mut properties = CommitProperties::default();
    if let Some(mark) = mark {
        properties = properties.with_application_transaction(mark);
    }
    let done = CommitBuilder::from(properties)
        .with_actions(adds.iter().cloned().map(Action::Add).collect())
        .build(Some(table.snapshot().unwrap()), table.log_store(), operation)
        .await?;
    Ok(done.version())
}

/// How many entries of the log add the file.
fn times_added(world: &World, add: &Add) -> usize {
    let fake = world.fake.as_ref().unwrap();
    let logs = fake.keys(BUCKET, "").into_iter().filter(|key| key.contains("_delta_log/"));
    logs.filter(|key| String::from_utf8(fake.get(BUCKET, key).unwrap()).unwrap().contains(&add.path)).count()
}

/// The reason for our own commit loop. Should this fail after an update of delta-rs, read whether it learnt to look for
/// its own commit: then the loop may become simpler.
#[tokio::test]
async fn delta_rs_alone_appends_twice_or_denies_what_landed_when_an_answer_is_lost() {
    // No other answer may be lost, so it is waited for.
    let world = World::new(On::Fake).await;
    let fake = world.fake.as_ref().unwrap();
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    fake.inject(Fault::new(Mode::ApplyThenRefuse(500)).on("PUT", "_delta_log/").times(1));
    assert_eq!(append(&world.lake, &adds, None).await.unwrap(), 2, "one append became versions 1 and 2");
    assert_eq!(times_added(&world, &adds[0]), 2, "a change feed tells of twice as many rows");

    let world = World::new(On::Fake).await;
    let fake = world.fake.as_ref().unwrap();
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    fake.inject(Fault::new(Mode::ApplyThenRefuse(500)).on("PUT", "_delta_log/").times(1));
    append(&world.lake, &adds, Some(Transaction::new("mine", 1))).await.unwrap_err();
    assert_eq!((world.head().await, world.content().await), (1, rows(&[(8, 10)])), "and yet it landed");
}

/// Every way in which the write of a log entry can go wrong, twice: alone, and three times in a row.
#[tokio::test]
async fn a_commit_lands_exactly_once_whatever_happens_to_its_answer() {
    let modes = [
        Mode::ApplyThenRefuse(500),
        Mode::ApplyThenCut,
        Mode::ApplyThenHang(FOR_EVER),
        Mode::ApplyThenRefuse(409),
        Mode::ApplyThenRefuse(412),
        Mode::Refuse(500),
        Mode::Refuse(503),
        Mode::Refuse(409),
        Mode::Refuse(412),
        Mode::Cut,
        Mode::Hang(FOR_EVER),
    ];
    // At the same time, because some of them wait.
    let cases = modes.into_iter().flat_map(|mode| [lands_once(mode, 1), lands_once(mode, 3)]);
    futures::future::join_all(cases).await;
}

async fn lands_once(mode: Mode, times: u64) {
    let world = World::on_fake().await;
    let fake = world.fake.as_ref().unwrap();
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    fake.inject(Fault::new(mode).on("PUT", "_delta_log/").times(times));
    let done = world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!((done.version, done.before), (1, false), "{mode:?} × {times}");
    assert!(fake.strikes() > 0, "{mode:?}");
    // A request that hung may still land: after all is said, there is one version, and one with this file.
    assert_eq!((world.head().await, times_added(&world, &adds[0])), (1, 1), "{mode:?} × {times}");
    assert_eq!(world.content().await, rows(&[(8, 10)]), "{mode:?} × {times}");
    let again = world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!((again.version, again.before), (1, true), "{mode:?} × {times}");
}

#[tokio::test]
async fn two_writers_whose_answers_are_lost_make_one_version() {
    for mode in
        [Mode::ApplyThenRefuse(500), Mode::ApplyThenCut, Mode::Refuse(409), Mode::Delay(Duration::from_millis(200))]
    {
        let world = World::on_fake().await;
        let fake = world.fake.as_ref().unwrap();
        let adds = world.stage(RunId::generate(), day(8), 10).await;
        // Two processes: neither knows what the other has read.
        let other = world.fresh_lake();
        fake.inject(Fault::new(mode).on("PUT", "_delta_log/").times(2));
        let (one, two) = tokio::join!(commit(&world.lake, 1, day(8), &adds), commit(&other, 1, day(8), &adds));
        assert_eq!((one.unwrap().version, two.unwrap().version), (1, 1), "{mode:?}");
        assert_eq!((world.head().await, times_added(&world, &adds[0])), (1, 1), "{mode:?}");
    }
}

#[tokio::test]
async fn a_store_that_is_down_for_a_while_is_ridden_out_and_one_that_stays_down_fails_the_task() {
    let world = World::on_fake().await;
    let fake = world.fake.as_ref().unwrap();
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    fake.inject(Fault::new(Mode::Refuse(503)).times(12));
    assert_eq!(world.commit(1, day(8), &adds).await.unwrap().version, 1);
    let next = world.stage(RunId::generate(), day(9), 20).await;
    fake.heal();
    fake.inject(Fault::new(Mode::Refuse(403)));
    let error = world.commit(2, day(9), &next).await.unwrap_err();
    assert!(matches!(error, CommitError::Store { .. }), "{error}");
    let error = chain(&error.into());
    assert!(error.contains("403"), "{error}");
    fake.heal();
    assert_eq!(world.commit(2, day(9), &next).await.unwrap().version, 2);
    assert_eq!(world.content().await, rows(&[(8, 10), (9, 20)]));
}

#[tokio::test]
async fn credentials_that_run_out_while_staging_leave_nothing_to_see() {
    let world = World::on_fake().await;
    let fake = world.fake.as_ref().unwrap();
    fake.inject(Fault::new(Mode::Refuse(403)).on("PUT", ".parquet"));
    let error = world.try_stage(RunId::generate(), day(8), 10).await.unwrap_err();
    let error = chain(&error);
    assert!(error.contains("staging `carrier_delays@v1`") && error.contains("403"), "{error}");
    assert_eq!((world.head().await, fake.open_uploads()), (0, 0));
    fake.heal();
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

#[tokio::test]
async fn reads_that_break_give_what_was_written_or_an_error() {
    let world = World::on_fake().await;
    let fake = world.fake.as_ref().unwrap();
    for number in 1..=4 {
        let adds = world.stage(RunId::generate(), day(7 + number), i64::from(number)).await;
        world.commit(u64::from(number), day(7 + number), &adds).await.unwrap();
    }
    let expected = rows(&[(8, 1), (9, 2), (10, 3), (11, 4)]);
    let modes = [
        Mode::CutBody(0),
        Mode::CutBody(100),
        Mode::Cut,
        Mode::Refuse(500),
        Mode::Refuse(503),
        Mode::Hang(FOR_EVER),
        Mode::SlowBody { bytes: 200, pause: Duration::from_millis(20) },
        Mode::Delay(Duration::from_millis(300)),
    ];
    for mode in modes {
        for what in [".json", ".parquet", "list-type"] {
            fake.heal();
            fake.inject(Fault::new(mode).on("GET", what).times(2));
            // A lake that has read nothing yet.
            match world.fresh_lake().load(&view(), None).await {
                Ok(table) => assert_eq!(read(&table).await, expected, "{mode:?} of {what}"),
                // The client does not ask again for a listing whose body was cut: the task does.
                Err(error) => {
                    assert!(what == "list-type" && matches!(mode, Mode::CutBody(_)), "{mode:?} of {what}: {error:#}");
                }
            }
            assert!(fake.strikes() > 0, "{mode:?} of {what}");
        }
    }
}

/// The rows of the table's head as a process sees them that has read nothing yet, or why it sees none.
async fn fresh_rows(world: &World) -> Result<usize, String> {
    let lake = world.fresh_lake();
    let table = lake.load(&view(), None).await.map_err(|error| chain(&error))?;
    count(&table).await.map_err(|error| chain(&error))
}

async fn count(table: &DeltaTable) -> anyhow::Result<usize> {
    let ctx = datafusion::prelude::SessionContext::new();
    let batches = crate::reads::scan(&ctx, table).await?.collect().await?;
    Ok(batches.iter().map(datafusion::arrow::array::RecordBatch::num_rows).sum())
}

#[tokio::test]
async fn a_broken_file_is_an_error_that_names_it() {
    let world = World::on_fake().await;
    let fake = world.fake.as_ref().unwrap();
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    let key = fake.keys(BUCKET, "").into_iter().find(|key| key.ends_with(&adds[0].path)).unwrap();
    let whole = fake.get(BUCKET, &key).unwrap();
    // cut before it is committed: never committed
    fake.put(BUCKET, &key, &whole[..whole.len() / 2]);
    let error = world.commit(1, day(8), &adds).await.unwrap_err();
    assert!(matches!(&error, CommitError::StagedMissing { path, .. } if *path == adds[0].path), "{error}");
    fake.put(BUCKET, &key, &whole);
    world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!(fresh_rows(&world).await, Ok(2));

    let file = adds[0].path.rsplit('/').next().unwrap();
    let broken: [(&str, Vec<u8>); 3] =
        [("cut", whole[..whole.len() / 2].to_vec()), ("empty", Vec::new()), ("of zeros", vec![0; whole.len()])];
    for (how, content) in broken {
        fake.put(BUCKET, &key, &content);
        let error = fresh_rows(&world).await.unwrap_err();
        assert!(error.contains(file) || how == "of zeros", "{how}: {error}");
    }
    fake.delete(BUCKET, &key);
    let error = fresh_rows(&world).await.unwrap_err();
    assert!(error.contains(file), "{error}");
    // an answer of status 200 that is too short, though the file is whole
    fake.put(BUCKET, &key, &whole);
    fake.inject(Fault::new(Mode::Truncate(5)).on("GET", ".parquet"));
    let error = fresh_rows(&world).await.unwrap_err();
    assert!(error.contains(file) && error.contains("ended at byte"), "{error}");
}

#[tokio::test]
async fn a_log_that_is_broken_is_an_error_and_never_another_table() {
    let world = World::on_fake().await;
    let fake = world.fake.as_ref().unwrap();
    for number in 1..=3 {
        let adds = world.stage(RunId::generate(), day(7 + number), i64::from(number)).await;
        world.commit(u64::from(number), day(7 + number), &adds).await.unwrap();
    }
    assert_eq!(fresh_rows(&world).await, Ok(6));
    let entry = fake.keys(BUCKET, "").into_iter().find(|key| key.ends_with("0002.json")).unwrap();
    let whole = fake.get(BUCKET, &entry).unwrap();
    for broken in [whole[..whole.len() - 20].to_vec(), b"{\"add\":".to_vec()] {
        fake.put(BUCKET, &entry, &broken);
        fresh_rows(&world).await.unwrap_err();
    }
    // a hole in the log
    fake.delete(BUCKET, &entry);
    fresh_rows(&world).await.unwrap_err();
    fake.put(BUCKET, &entry, &whole);
    assert_eq!(fresh_rows(&world).await, Ok(6));
    // a hint at the newest checkpoint that cannot be read is left aside, and one at a checkpoint that is gone refuses
    let log = entry.rsplit_once('/').unwrap().0;
    for hint in ["{", ""] {
        fake.put(BUCKET, &format!("{log}/_last_checkpoint"), hint.as_bytes());
        assert_eq!(fresh_rows(&world).await, Ok(6), "{hint}");
    }
    fake.put(BUCKET, &format!("{log}/_last_checkpoint"), b"{\"version\":2,\"size\":3}");
    let error = fresh_rows(&world).await.unwrap_err();
    assert!(error.contains("_last_checkpoint"), "{error}");
}

#[tokio::test]
async fn listings_in_pages_of_two_hide_nothing() {
    let world = World::on_fake().await;
    let fake = world.fake.as_ref().unwrap();
    fake.set_page_size(2);
    let run = RunId::generate();
    for number in 1..=5 {
        let adds = world.stage(run, day(7 + number), i64::from(number)).await;
        world.commit(u64::from(number), day(7 + number), &adds).await.unwrap();
    }
    assert_eq!(fresh_rows(&world).await, Ok(10));
    assert_eq!(world.lake.discard_staged(&view(), run, &[]).await.unwrap(), 5);
}

#[tokio::test]
async fn uploads_that_a_dying_process_left_are_in_nobodys_way() {
    let world = World::on_fake().await;
    let fake = world.fake.as_ref().unwrap();
    let run = RunId::generate();
    let at = world.lake.table_prefix(&view()).join("data").join(run.to_string()).join("part.parquet");
    let mut upload = object_store::ObjectStoreExt::put_multipart(&world.lake.store, &at).await.unwrap();
    upload.put_part(vec![1; 1 << 10].into()).await.unwrap();
    drop(upload);
    assert_eq!(fake.open_uploads(), 1);
    let adds = world.stage(run, day(8), 10).await;
    world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!(world.lake.discard_staged(&view(), run, &[adds[0].path.clone()]).await.unwrap(), 0);
    assert_eq!(fresh_rows(&world).await, Ok(2));
}

#[tokio::test]
async fn the_owners_mark_survives_a_lost_answer_and_a_conflict() {
    for mode in [Mode::ApplyThenRefuse(500), Mode::ApplyThenCut, Mode::Refuse(409), Mode::ApplyThenRefuse(409)] {
        let world = World::on_fake().await;
        let fake = world.fake.as_ref().unwrap();
        fake.inject(Fault::new(mode).on("PUT", "owner.json").times(1));
        let ours = tidegate_registry::ids::RegistryId::generate();
        world.lake.claim(ours).await.unwrap();
        let error = world.lake.claim(tidegate_registry::ids::RegistryId::generate()).await.unwrap_err();
        assert!(error.to_string().contains("belongs to project `test`"), "{mode:?}: {error}");
        let left = fake.keys(BUCKET, "").into_iter().filter(|key| key.contains("_tidegate/")).count();
        assert_eq!(left, 1, "{mode:?}: the mark, and nothing of the probe");
    }
}

#[tokio::test]
async fn a_store_that_lets_several_win_gets_no_lake() {
    let racy = testing::racy();
    let stores = testing::stores(&racy.endpoint(), testing::short());
    let lake = testing::caught(async || {
        let lake = Lake::open_in(&testing::place(), &stores, "test").unwrap();
        let error = lake.claim(tidegate_registry::ids::RegistryId::generate()).await.err()?;
        error.to_string().contains("several writers win").then_some(lake)
    })
    .await;
    let owner = Path::from_url_path(format!("{}_tidegate/owner.json", lake.root().path())).unwrap();
    let missing = object_store::ObjectStoreExt::head(&lake.store, &owner).await;
    assert!(matches!(missing, Err(object_store::Error::NotFound { .. })), "{missing:?}");
}

#[tokio::test]
async fn a_table_is_created_once_whatever_happens_to_the_answer() {
    for mode in [Mode::ApplyThenRefuse(500), Mode::ApplyThenCut, Mode::Refuse(503)] {
        let world = World::on_fake().await;
        let fake = world.fake.as_ref().unwrap();
        let lake =
            Lake::open_in(&testing::place(), &testing::stores(&fake.endpoint(), testing::short()), "test").unwrap();
        fake.inject(Fault::new(mode).on("PUT", "_delta_log/").times(1));
        let versions = lake.ensure_tables(&super::project(0), &[view()]).await.unwrap();
        assert_eq!((versions[&view()], fake.strikes()), (0, 1), "{mode:?}");
        assert_eq!(lake.load(&view(), None).await.unwrap().version(), Some(0), "{mode:?}");
        // and so is one that takes the place of an empty one
        let mut changed = super::project(0);
        changed.views[&view()].features[0].name = "departures".to_owned();
        fake.inject(Fault::new(mode).on("PUT", "_delta_log/").times(1));
        assert_eq!(lake.ensure_tables(&changed, &[view()]).await.unwrap()[&view()], 1, "{mode:?}");
        assert_eq!(lake.load(&view(), None).await.unwrap().version(), Some(1), "{mode:?}");
    }
}
