//! Drills: written down when they begin, ended once, and what they prove of each view.

use indexmap::IndexMap;
use tidegate_registry::audit::AuditFilter;
use tidegate_registry::drill::{
    Drill, DrillEnd, DrillPhases, DrillReport, DrillState, Proven, ProvenRestore, Scenario, ScenarioReport,
};
use tidegate_registry::ids::{DrillId, DrillName, ViewId};
use tidegate_registry::notice::{NewNotice, NoticeEvent, NoticeFilter};
use tidegate_registry::store::StoreError;

use super::Fixture;
use super::world::day;

fn view(name: &str) -> ViewId {
    format!("{name}@v1").parse().unwrap()
}

pub(crate) fn drill(name: Option<&str>, started: i64) -> Drill {
    Drill {
        id: DrillId::generate(),
        name: name.map(|name| DrillName::new(name).unwrap()),
        views: vec![view("a"), view("b")],
        scenarios: vec![Scenario::BadDeploy, Scenario::OnlineStoreLost],
        actor: "ana@host".to_owned(),
        started_at: day(started),
        finished_at: None,
        state: DrillState::Running,
        report: None,
    }
}

/// The end of a drill in which each of `passed` took so long, and nothing else came back.
pub(crate) fn end(passed: &[(&str, u64)], failed: &[&str], now: i64) -> DrillEnd {
    let report = |names: &[&str], outcome, whole_ms| ScenarioReport {
        scenario: Scenario::BadDeploy,
        outcome,
        views: names.iter().map(|name| view(name)).collect(),
        phases: Some(DrillPhases { whole_ms, ..DrillPhases::default() }),
        findings: vec!["as it was".to_owned()],
    };
    let mut scenarios: Vec<_> = passed.iter().map(|(name, took)| report(&[*name], DrillState::Passed, *took)).collect();
    if !failed.is_empty() {
        scenarios.push(report(failed, DrillState::Failed, 1));
    }
    let state = if failed.is_empty() { DrillState::Passed } else { DrillState::Failed };
    let report = DrillReport { scenarios, took_ms: 9, ..DrillReport::default() };
    DrillEnd { state, report: Some(report), actor: "ana@host".to_owned(), now: day(now), notices: Vec::new() }
}

/// Ending it again, or beginning it again, changes nothing.
pub async fn a_drill_is_written_down_when_it_begins_and_when_it_ends(fixture: &Fixture) {
    let store = &*fixture.store;
    let nightly = DrillName::new("nightly").unwrap();
    assert_eq!(store.drilled_last(&nightly).await.unwrap(), None);
    let (first, second) = (drill(Some("nightly"), 3), drill(None, 4));
    for drill in [&first, &second, &first] {
        store.drill_begin(drill).await.unwrap();
    }
    assert_eq!(store.drills_open().await.unwrap(), [first.clone(), second.clone()], "the oldest first");
    assert_eq!(store.drilled_last(&nightly).await.unwrap(), Some(day(3)));

    let notice = NewNotice::new(NoticeEvent::DrillFailed, first.id.to_string(), day(4), "it failed");
    let failed = DrillEnd { notices: vec![notice], ..end(&[("a", 7)], &["b"], 4) };
    store.drill_end(first.id, failed.clone()).await.unwrap();
    store.drill_end(first.id, end(&[("a", 8)], &[], 5)).await.unwrap();
    let abandoned = DrillEnd { state: DrillState::Abandoned, report: None, ..end(&[], &[], 5) };
    store.drill_end(second.id, abandoned).await.unwrap();
    let unknown = store.drill_end(DrillId::generate(), failed.clone()).await.unwrap_err();
    assert!(matches!(unknown, StoreError::NotFound { .. }), "{unknown:?}");

    assert!(store.drills_open().await.unwrap().is_empty());
    let all = store.drills(0).await.unwrap();
    let ended = Drill { finished_at: Some(day(4)), state: DrillState::Failed, report: failed.report, ..first.clone() };
    assert_eq!(all[1], ended, "the newest first");
    assert_eq!((all[0].id, all[0].state, &all[0].report), (second.id, DrillState::Abandoned, &None));
    assert_eq!(store.drills(1).await.unwrap(), all[..1]);
    let told = store.notices(&NoticeFilter::default()).await.unwrap();
    assert_eq!(told.iter().map(|(notice, _)| notice.what.event).collect::<Vec<_>>(), [NoticeEvent::DrillFailed]);
    let filter = AuditFilter { action: Some("drill_".to_owned()), ..AuditFilter::default() };
    let actions: Vec<_> =
        store.audit_events(&filter).await.unwrap().into_iter().map(|event| event.what.action).collect();
    assert_eq!(actions.iter().filter(|action| *action == "drill_begin").count(), 2, "{actions:?}");
    assert_eq!(actions.iter().filter(|action| *action == "drill_end").count(), 2, "{actions:?}");
}

/// A later one in which it did not is told beside it.
pub async fn the_newest_drill_in_which_a_view_came_back_is_what_is_proven(fixture: &Fixture) {
    let store = &*fixture.store;
    let (a, b, c) = (view("a"), view("b"), view("c"));
    let asked = [a.clone(), b.clone(), c.clone()];
    assert!(store.proven(&asked).await.unwrap().is_empty());
    let drills: Vec<Drill> = (1..4).map(|started| drill(None, started)).collect();
    let ends = [end(&[("a", 10), ("b", 20)], &[], 1), end(&[("a", 30)], &["b"], 2), end(&[], &["a"], 3)];
    for (drill, end) in drills.iter().zip(ends) {
        store.drill_begin(drill).await.unwrap();
        store.drill_end(drill.id, end).await.unwrap();
    }
    let restore = |drill: usize, at, took_ms| Some(ProvenRestore { drill: drills[drill].id, at: day(at), took_ms });
    let expected = IndexMap::from([
        (a, Proven { restore: restore(1, 2, 30), failed: Some(drills[2].id) }),
        (b, Proven { restore: restore(0, 1, 20), failed: Some(drills[1].id) }),
    ]);
    assert_eq!(store.proven(&asked).await.unwrap(), expected);
    store.drill_begin(&drill(None, 4)).await.unwrap();
    let again = drill(None, 5);
    store.drill_begin(&again).await.unwrap();
    store.drill_end(again.id, end(&[("b", 5)], &[], 5)).await.unwrap();
    let proven = store.proven(&[view("b")]).await.unwrap();
    let newest = Some(ProvenRestore { drill: again.id, at: day(5), took_ms: 5 });
    assert_eq!(proven[&view("b")], Proven { restore: newest, failed: None });
}
