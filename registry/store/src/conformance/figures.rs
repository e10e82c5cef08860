//! How a registry stands in numbers.

use std::time::Duration;

use tidegate_registry::figures::Figures;
use tidegate_registry::restore::Validation;
use tidegate_registry::restore::plan::Target;
use tidegate_registry::run::RunState;

use super::Fixture;
use super::approvals::approval;
use super::restoring::restored;
use super::world::{World, day};

/// Nothing is counted before anything is there, and everything once.
pub async fn figures_count_what_is_there(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let store = &*world.store;
    assert_eq!(store.figures(day(3)).await.unwrap(), Figures::default());
    for number in 0..2 {
        world.publish(world.admitted("daily", number).await).await;
    }
    world.create(World::new_run("daily", 2)).await;
    store.approval_request(&approval("restore a@v1")).await.unwrap();
    let restore = restored(&world, Target::LastGood).await;
    let figures = store.figures(day(10)).await.unwrap();
    assert_eq!(figures.approvals_waiting, 1);
    let [recorded] = figures.restores[..] else { panic!("{figures:?}") };
    assert!(recorded.took.is_some_and(|took| took < Duration::from_secs(60)), "{recorded:?}");
    assert_eq!((recorded.passed, recorded.under_way), (None, None));
    assert_eq!(figures.runs_ended.iter().find(|(state, _)| *state == RunState::Succeeded).map(|(_, n)| *n), Some(3));
    let open: u64 = figures.runs_open.iter().map(|(_, count)| count).sum();
    assert_eq!(open, store.runs_open().await.unwrap().len() as u64);
    let validation = |passed| Validation {
        passed,
        findings: vec!["\"passed\":true".to_owned()],
        took_ms: 1,
        commit_ms: None,
        online_ms: None,
    };
    store.restore_validated(restore.id, &validation(false), day(10)).await.unwrap();
    assert_eq!(store.figures(day(10)).await.unwrap().restores[0].passed, Some(false));
    store.restore_validated(restore.id, &validation(true), day(10)).await.unwrap();
    assert_eq!(store.figures(day(10)).await.unwrap().restores[0].passed, Some(false), "the first stands");
    // What ended long ago is not counted any more.
    assert_eq!(store.figures(day(40)).await.unwrap().runs_ended, []);
}
