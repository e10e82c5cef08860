use std::time::Duration;

use tidegate_registry::run::RunState;

use super::*;
use crate::testing::{at, dag, daily, day, project, run, view, view_id};

const PARTIAL: Output = Output::Partial { ttl: Duration::from_secs(86_400) };

/// Until when view `up` is needed: the interval of a run that ends then.
fn need(until: Instant, whole: bool) -> Need {
    Need { view: view_id("up"), until, whole }
}

/// View `up` of a daily DAG with ticks up to day `planned`, and these days published.
fn upstream(planned: i64, published: &[i64], change: impl FnOnce(&mut Dag)) -> Upstreams {
    let mut dag = dag("u", &["up"]);
    change(&mut dag);
    let ticks = (1..=planned).map(day).collect();
    let published = published.iter().map(|day| daily(*day)).collect();
    BTreeMap::from([(view_id("up"), Arc::new(Upstream::new(&dag, ticks, published).unwrap()))])
}

#[test]
fn a_run_needs_what_its_views_read_and_it_does_not_compute() {
    let views = vec![
        view("up", Output::Full, &[]),
        view("part", PARTIAL, &[]),
        view("own", Output::Full, &["up", "part", "history.up"]),
        view("next", Output::Full, &["own", "history.next"]),
    ];
    let project = project(views, vec![dag("d", &["own", "next"]), dag("u", &["up", "part"])]);
    let names = |views: &[&str]| -> Vec<(String, bool)> {
        let needs = needs(&run("d", daily(1), views, RunState::Waiting), &project);
        assert!(needs.iter().all(|need| need.until == day(2)));
        needs.into_iter().map(|need| (need.view.name.to_string(), need.whole)).collect()
    };
    let up_and_part = [("part".to_owned(), true), ("up".to_owned(), false), ("up".to_owned(), true)];
    assert_eq!(names(&["own", "next"]), up_and_part);
    // Published each on its own, a view waits for its neighbour's state, and never for itself.
    assert_eq!(names(&["next"]), [("own".to_owned(), false)]);
}

#[test]
fn inside_a_dag_holes_count_only_if_blocked_intervals_hold_later_ones() {
    let views = || vec![view("a", PARTIAL, &[]), view("b", Output::Full, &["history.a"])];
    for (on_blocked, whole) in [(OnBlocked::Continue, false), (OnBlocked::Wait, true)] {
        let mut dag = dag("d", &["a", "b"]);
        dag.on_blocked = on_blocked;
        let needs = needs(&run("d", daily(1), &["b"], RunState::Waiting), &project(views(), vec![dag]));
        assert!(needs.iter().all(|need| need.whole == whole), "{on_blocked:?}");
    }
}

#[test]
fn the_newest_interval_up_to_the_need_must_be_published() {
    let published = upstream(5, &[1, 3], |_| {});
    assert_eq!(check(&need(day(2), false), &published), Ok(()));
    assert_eq!(
        check(&need(day(3), false), &published).unwrap_err(),
        "waits for `up@v1` to publish the interval from 2024-01-02T00:00:00Z to 2024-01-03T00:00:00Z"
    );
    // Not the newest that happens to be there: at noon of the 5th the newest is the one that ended at midnight.
    assert_eq!(check(&need(at("2024-01-04T12:00"), false), &published), Ok(()));
    assert!(check(&need(at("2024-01-05T12:00"), false), &published).is_err());
}

#[test]
fn a_history_must_have_no_hole() {
    let published = upstream(6, &[1, 2, 4, 5], |_| {});
    assert_eq!(check(&need(day(3), true), &published), Ok(()));
    for late in [4, 5, 6] {
        assert_eq!(
            check(&need(day(late), true), &published).unwrap_err(),
            "waits for `up@v1` to publish the interval from 2024-01-03T00:00:00Z to 2024-01-04T00:00:00Z"
        );
    }
    assert_eq!(check(&need(day(5), false), &published), Ok(()));
}

#[test]
fn ticks_to_come_count_like_stored_ones() {
    // Planned until the 3rd: the interval that ends on the 4th is yet to be planned.
    let behind = upstream(3, &[1, 2], |_| {});
    assert_eq!(check(&need(day(3), false), &behind), Ok(()));
    for whole in [false, true] {
        assert_eq!(check(&need(at("2024-01-03T23:59"), whole), &behind), Ok(()));
        assert_eq!(
            check(&need(day(4), whole), &behind).unwrap_err(),
            "waits for `up@v1` to be planned until 2024-01-04T00:00:00Z"
        );
    }
    let never_planned = upstream(0, &[], |_| {});
    assert_eq!(check(&need(day(1), false), &never_planned), Ok(()), "its first interval ends later");
    assert!(check(&need(day(2), false), &never_planned).is_err());
}

#[test]
fn an_upstream_that_has_not_begun_or_has_ended_holds_nobody() {
    let later = upstream(0, &[], |dag| dag.schedule.start = day(9));
    assert_eq!(check(&need(day(5), true), &later), Ok(()));
    let ended = upstream(3, &[1, 2], |dag| dag.schedule.end = Some(day(3)));
    assert_eq!(check(&need(day(20), true), &ended), Ok(()));
    assert_eq!(check(&need(day(20), false), &ended), Ok(()));
}

#[test]
fn a_history_begins_where_catch_up_began() {
    for catchup in [Catchup::Latest, Catchup::None] {
        let since_third = upstream(6, &[3, 4], |dag| dag.schedule.catchup = catchup);
        assert_eq!(check(&need(day(5), true), &since_third), Ok(()));
        assert!(check(&need(day(6), true), &since_third).is_err());
        let nothing_yet = upstream(6, &[], |dag| dag.schedule.catchup = catchup);
        assert!(check(&need(day(6), true), &nothing_yet).is_err());
    }
}

#[test]
fn a_view_that_no_dag_runs_is_said_to_be_so() {
    assert_eq!(check(&need(day(2), false), &Upstreams::new()).unwrap_err(), "waits for `up@v1`, which no DAG runs");
}
