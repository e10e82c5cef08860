//! The promises of a lake, kept on a folder and on object stores alike.

use datafusion::arrow::array::AsArray;
use datafusion::prelude::SessionContext;
use tidegate_registry::ids::RunId;

use super::faulty::{Fault, FaultyLog};
use super::{On, World, commit, day, project, publisher, read, rows, view};
use crate::lake::Replaces;
use crate::lake::{CommitError, CommitRequest};
use crate::reads::{slice, state_schema};

/// Every promise below, on every kind of store.
macro_rules! on_every_store {
    ($($name:ident),+ $(,)?) => {
        mod local {
            $(#[tokio::test] async fn $name() { super::$name(super::On::Folder).await; })+
        }
        mod fake {
            $(#[tokio::test] async fn $name() { super::$name(super::On::Fake).await; })+
        }
        mod moto {
            $(#[tokio::test] async fn $name() { super::$name(super::On::Moto).await; })+
        }
    };
}

on_every_store!(
    staged_rows_are_invisible_until_they_are_committed_and_then_stand_once,
    a_commit_replaces_its_slice_and_no_other,
    committing_the_same_publication_again_finds_it_done,
    an_older_run_that_wakes_after_a_newer_one_committed_changes_nothing,
    two_workers_with_the_same_intent_make_one_version,
    two_runs_of_different_slices_both_land,
    a_commit_whose_answer_is_lost_is_recognised_as_done,
    a_commit_that_fails_before_it_lands_is_tried_again,
    a_missing_staged_file_is_never_committed,
    discarding_keeps_what_is_named,
    a_registry_that_is_older_than_the_lake_writes_nothing,
    an_overlay_shows_the_future_of_an_old_version_and_moves_nothing,
    a_lake_has_one_registry,
    a_table_is_made_once_and_an_empty_one_may_change_its_columns,
    a_file_that_is_uploaded_in_parts_is_read_whole,
);

async fn staged_rows_are_invisible_until_they_are_committed_and_then_stand_once(on: On) {
    let world = World::new(on).await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    assert_eq!(world.content().await, rows(&[]));
    assert_eq!(adds[0].partition_values["interval_start"].as_deref(), Some("2013-01-08T07:15:00.000000Z"));
    let done = world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!((done.version, done.before), (1, false));
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

async fn a_commit_replaces_its_slice_and_no_other(on: On) {
    let world = World::new(on).await;
    for (number, (d, flights)) in [(8, 10), (9, 20), (8, 30)].into_iter().enumerate() {
        let adds = world.stage(RunId::generate(), day(d), flights).await;
        world.commit(number as u64 + 1, day(d), &adds).await.unwrap();
    }
    assert_eq!(world.content().await, rows(&[(8, 30), (9, 20)]));
    // an empty slice removes what was there
    world.commit(4, day(9), &[]).await.unwrap();
    assert_eq!(world.content().await, rows(&[(8, 30)]));
}

async fn committing_the_same_publication_again_finds_it_done(on: On) {
    let world = World::new(on).await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    let first = world.commit(1, day(8), &adds).await.unwrap();
    let again = world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!((again.version, again.before), (first.version, true));
    assert_eq!(world.head().await, 1);
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

async fn an_older_run_that_wakes_after_a_newer_one_committed_changes_nothing(on: On) {
    let world = World::new(on).await;
    let old = world.stage(RunId::generate(), day(8), 10).await;
    let new = world.stage(RunId::generate(), day(8), 20).await;
    world.commit(2, day(8), &new).await.unwrap();
    let error = world.commit(1, day(8), &old).await.unwrap_err();
    assert!(matches!(error, CommitError::Superseded { mark: 2, ours: 1, .. }), "{error}");
    assert_eq!((world.head().await, world.content().await), (1, rows(&[(8, 20)])));
}

async fn two_workers_with_the_same_intent_make_one_version(on: On) {
    let world = World::new(on).await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    let (one, two) = (world.lake.clone(), world.lake.clone());
    let (one, two) = tokio::join!(commit(&one, 1, day(8), &adds), commit(&two, 1, day(8), &adds));
    assert_eq!((one.unwrap().version, two.unwrap().version), (1, 1));
    assert_eq!((world.head().await, world.content().await), (1, rows(&[(8, 10)])));
}

async fn two_runs_of_different_slices_both_land(on: On) {
    let world = World::new(on).await;
    // publish numbers are exclusive per view, so the second waits for the first; rivals are compactions and the like
    for number in 1..=5 {
        let adds = world.stage(RunId::generate(), day(7 + number), i64::from(number)).await;
        world.commit(u64::from(number), day(7 + number), &adds).await.unwrap();
    }
    assert_eq!(world.content().await, rows(&[(8, 1), (9, 2), (10, 3), (11, 4), (12, 5)]));
}

async fn a_commit_whose_answer_is_lost_is_recognised_as_done(on: On) {
    let world = World::new(on).await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    for fault in [Fault::AnswerLost, Fault::AnswerSaysExists] {
        let world_adds =
            if fault == Fault::AnswerLost { adds.clone() } else { world.stage(RunId::generate(), day(8), 20).await };
        let number = if fault == Fault::AnswerLost { 1 } else { 2 };
        let lake = world.lake_over(|store| FaultyLog::new(store, fault, 1));
        let done = commit(&lake, number, day(8), &world_adds).await.unwrap();
        assert_eq!(done.version, number, "{fault:?}");
        assert_eq!(world.head().await, number, "{fault:?}: one version for one commit");
    }
    assert_eq!(world.content().await, rows(&[(8, 20)]));
}

async fn a_commit_that_fails_before_it_lands_is_tried_again(on: On) {
    let world = World::new(on).await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    let lake = world.lake_over(|store| FaultyLog::new(store, Fault::RequestLost, 3));
    assert_eq!(commit(&lake, 1, day(8), &adds).await.unwrap().version, 1);
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

async fn a_missing_staged_file_is_never_committed(on: On) {
    let world = World::new(on).await;
    let run = RunId::generate();
    let adds = world.stage(run, day(8), 10).await;
    assert_eq!(world.lake.discard_staged(&view(), run, &[]).await.unwrap(), 1);
    let error = world.commit(1, day(8), &adds).await.unwrap_err();
    assert!(matches!(error, CommitError::StagedMissing { .. }), "{error}");
    assert_eq!(world.head().await, 0);
}

async fn discarding_keeps_what_is_named(on: On) {
    let world = World::new(on).await;
    let run = RunId::generate();
    let adds = world.stage(run, day(8), 10).await;
    assert_eq!(world.lake.discard_staged(&view(), run, &[adds[0].path.clone()]).await.unwrap(), 0);
    world.commit(1, day(8), &adds).await.unwrap();
    assert_eq!(world.content().await, rows(&[(8, 10)]));
}

async fn a_registry_that_is_older_than_the_lake_writes_nothing(on: On) {
    let world = World::new(on).await;
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    world.commit(9, day(8), &adds).await.unwrap();
    let (view, run) = (view(), RunId::generate());
    let request = CommitRequest {
        view: &view,
        publish_number: 3,
        publish_number_max: 3,
        replaces: Replaces::Slice(day(8)),
        adds: &adds,
        run,
        note: None,
        restored: None,
    };
    let error = world.lake.commit(&request).await.unwrap_err();
    assert!(matches!(error, CommitError::RegistryBehind { mark: 9, given_out: 3, .. }), "{error}");
    assert!(matches!(world.lake.require_known(&view, 3).await, Err(CommitError::RegistryBehind { .. })));
    world.lake.require_known(&view, 9).await.unwrap();
    // The same number, given out a second time, to another run.
    let again = CommitRequest { publish_number: 9, publish_number_max: 9, ..request };
    let error = world.lake.commit(&again).await.unwrap_err();
    assert!(matches!(error, CommitError::Foreign { mark: 9, .. }), "{error}");
    assert!(error.to_string().contains(&publisher(9).to_string()), "{error}");
}

async fn an_overlay_shows_the_future_of_an_old_version_and_moves_nothing(on: On) {
    let world = World::new(on).await;
    for (number, (d, flights)) in [(8, 10), (9, 20), (10, 30)].into_iter().enumerate() {
        let adds = world.stage(RunId::generate(), day(d), flights).await;
        world.commit(number as u64 + 1, day(d), &adds).await.unwrap();
    }
    let staged = world.stage(RunId::generate(), day(9), 99).await;
    // version 2 is what a run pinned; version 3 came later and must not show
    let overlay = world.lake.overlay(&view(), 2, day(9), &staged).await.unwrap();
    assert_eq!(read(&overlay).await, rows(&[(8, 10), (9, 99)]));
    assert_eq!((world.head().await, world.content().await), (3, rows(&[(8, 10), (9, 20), (10, 30)])));

    let ctx = SessionContext::new();
    let schema = state_schema(&project(0), &project(0).views[&view()]);
    let state = slice(&ctx, &overlay, day(9), &schema).await.unwrap();
    assert_eq!(ctx.read_table(state).unwrap().count().await.unwrap(), 2);
}

async fn a_lake_has_one_registry(on: On) {
    let world = World::new(on).await;
    let ours = tidegate_registry::ids::RegistryId::generate();
    world.lake.claim(ours).await.unwrap();
    world.lake.claim(ours).await.unwrap();
    let error = world.lake.claim(tidegate_registry::ids::RegistryId::generate()).await.unwrap_err();
    assert!(error.to_string().contains("belongs to project `test`"), "{error}");
}

async fn a_table_is_made_once_and_an_empty_one_may_change_its_columns(on: On) {
    let world = World::new(on).await;
    let versions = world.lake.ensure_tables(&project(0), &[view()]).await.unwrap();
    assert_eq!(versions[&view()], 0);
    let mut changed = project(0);
    changed.views[&view()].features[0].name = "departures".to_owned();
    assert_eq!(world.lake.ensure_tables(&changed, &[view()]).await.unwrap()[&view()], 1);
    let back = world.lake.ensure_tables(&project(0), &[view()]).await.unwrap();
    assert_eq!(back[&view()], 2);
    let adds = world.stage(RunId::generate(), day(8), 10).await;
    world.commit(1, day(8), &adds).await.unwrap();
    let error = world.lake.ensure_tables(&changed, &[view()]).await.unwrap_err();
    assert!(error.to_string().contains("give the changed view a new `version:`"), "{error}");
}

async fn a_file_that_is_uploaded_in_parts_is_read_whole(on: On) {
    let world = World::new(on).await;
    // keys that do not compress: 2^18 of 32 digits are more than a part of an upload, which has 10 MiB
    let eight = (0..8).map(|n| format!("({n})")).collect::<Vec<_>>().join(", ");
    let joined = (0..6).map(|n| format!("(VALUES {eight}) AS t{n} (n)")).collect::<Vec<_>>().join(" CROSS JOIN ");
    let digits = (0..6).map(|n| format!("CAST(t{n}.n AS TEXT)")).collect::<Vec<_>>().join(" || ");
    let sql =
        format!("SELECT md5({digits}) || md5({digits} || 'x') AS carrier, 1 AS flights, 0.5 AS half FROM {joined}");
    let staged = world.stage_sql(RunId::generate(), day(8), &sql).await.unwrap();
    assert_eq!(staged.rows, 1 << 18);
    let adds: Vec<_> = staged.adds.into_iter().map(|add| serde_json::from_value(add).unwrap()).collect();
    let bytes: i64 = adds.iter().map(|add: &deltalake::kernel::Add| add.size).sum();
    assert!(bytes > 8 << 20, "{bytes} bytes are one part");
    world.commit(1, day(8), &adds).await.unwrap();
    let ctx = SessionContext::new();
    let table = crate::reads::scan(&ctx, &world.fresh_lake().load(&view(), None).await.unwrap()).await.unwrap();
    let distinct = datafusion::functions_aggregate::expr_fn::count_distinct(crate::reads::column("carrier"));
    let counted = table.aggregate(Vec::new(), vec![distinct]).unwrap().collect().await.unwrap();
    let counted = counted[0].column(0).as_primitive::<datafusion::arrow::datatypes::Int64Type>().value(0);
    assert_eq!(counted, 1 << 18);
    if let Some(fake) = &world.fake {
        assert!(fake.seen().iter().any(|seen| seen.target.contains("partNumber=2")), "it went in one part");
        assert_eq!(fake.open_uploads(), 0);
    }
}
