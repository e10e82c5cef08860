use chrono::TimeDelta;
use proptest::prelude::*;
use tidegate_registry::ids::BackfillId;

use super::*;
use crate::backfill::{Reprocess, plan_backfill};
use crate::testing::{Model, dag, daily, day, view_id};

fn model(change: impl FnOnce(&mut Dag)) -> Model {
    let mut dag = dag("d", &["a", "b"]);
    change(&mut dag);
    Model::new(dag)
}

/// An hour after that day began.
fn hour_into(number: i64) -> Instant {
    day(number) + TimeDelta::hours(1)
}

#[test]
fn an_interval_becomes_due_at_its_end() {
    let mut model = model(|_| {});
    assert_eq!(model.plan(day(1)), [""; 0], "the first tick only begins an interval");
    assert_eq!(model.state.due_at, Some(day(2)));
    assert_eq!(model.plan(day(2) - TimeDelta::microseconds(1)), [""; 0]);
    assert_eq!(model.plan(day(2)), ["01-02"]);
    assert_eq!(model.plan(day(2)), [""; 0], "planning twice is planning once");
    assert_eq!(model.plan(hour_into(4)), ["02-03", "03-04"]);
    let run = &model.decide(hour_into(5)).runs[0];
    assert_eq!((run.attempts_max, run.definitions, &run.cause), (3, 1, &Cause::Tick));
    assert_eq!(run.views, [view_id("a"), view_id("b")]);
}

#[test]
fn catch_up_computes_all_the_newest_or_none_of_the_past() {
    for (catchup, expected, later) in [
        (Catchup::All, vec!["01-02", "02-03", "03-04", "04-05"], vec!["05-06", "06-07"]),
        (Catchup::Latest, vec!["04-05"], vec!["06-07"]),
        (Catchup::None, vec![], vec!["05-06", "06-07"]),
    ] {
        let mut model = model(|dag| dag.schedule.catchup = catchup);
        model.state.created_at = hour_into(5);
        assert_eq!(model.plan(hour_into(5)), expected, "{catchup:?}");
        // The scheduler was down for two days.
        assert_eq!(model.plan(hour_into(7)), later, "{catchup:?}");
    }
}

#[test]
fn after_the_end_nothing_is_due() {
    let mut model = model(|dag| dag.schedule.end = Some(day(3)));
    assert_eq!(model.plan(hour_into(9)), ["01-02", "02-03"]);
    assert_eq!(model.state.due_at, None);
    assert_eq!(model.history.ticks, [day(1), day(2), day(3)]);
}

#[test]
fn a_step_is_small_and_the_next_one_is_due_at_once() {
    for (catchup, runs) in [(Catchup::All, 2_500), (Catchup::Latest, 1), (Catchup::None, 0)] {
        let mut model = model(|dag| {
            dag.schedule.cron = "* * * * *".to_owned();
            dag.schedule.catchup = catchup;
        });
        let now = day(1) + TimeDelta::minutes(2_500);
        model.state.created_at = now;
        let mut steps = 0;
        while model.state.due_at.is_some_and(|due| due <= now) {
            let step = model.decide(now);
            assert!(step.ticks.len() <= TICKS_MAX && step.runs.len() <= RUNS_MAX);
            assert!(model.write(step));
            steps += 1;
        }
        assert_eq!((steps, model.history.runs.len()), (3, runs), "{catchup:?}");
        if catchup == Catchup::Latest {
            assert_eq!(model.history.runs[0].interval.end(), now);
        }
        assert_eq!(model.state.due_at, Some(now + TimeDelta::minutes(1)));
    }
}

#[test]
fn a_pause_stores_ticks_and_its_end_makes_up_for_it_as_catch_up_says() {
    for (catchup, expected) in
        [(Catchup::All, vec!["02-03", "03-04", "04-05"]), (Catchup::Latest, vec!["04-05"]), (Catchup::None, vec![])]
    {
        let mut model = model(|dag| dag.schedule.catchup = catchup);
        model.plan(day(1));
        assert_eq!(model.plan(day(2)), ["01-02"]);
        model.pause(true);
        assert_eq!(model.plan(hour_into(5)), [""; 0]);
        assert_eq!(model.history.ticks.len(), 5);
        model.pause(false);
        assert_eq!(model.plan(hour_into(5)), expected, "{catchup:?}");
        assert_eq!(model.plan(hour_into(6)), ["05-06"], "{catchup:?}");
    }
}

#[test]
fn the_end_of_a_pause_leaves_alone_what_is_published_open_or_closed() {
    let mut model = model(|_| {});
    model.plan(hour_into(5));
    model.end(0, RunState::Succeeded);
    model.end(1, RunState::Blocked);
    model.end(2, RunState::Cancelled);
    model.pause(true);
    model.plan(hour_into(6));
    model.pause(false);
    assert_eq!(model.plan(hour_into(6)), ["05-06"]);
}

#[test]
fn an_added_view_is_computed_for_the_intervals_that_lack_it() {
    let mut model = model(|_| {});
    model.plan(hour_into(4));
    model.end(0, RunState::Succeeded);
    model.end(1, RunState::Blocked);
    let mut dag = model.dag.clone();
    dag.views.push(view_id("c"));
    model.apply(dag);
    assert_eq!(model.plan(hour_into(4)), ["01-02", "02-03", "03-04"]);
    for run in &model.history.runs[3..] {
        assert_eq!(run.views, [view_id("c")]);
    }
    assert_eq!(model.plan(hour_into(4)), [""; 0]);
}

#[test]
fn views_published_each_on_its_own_get_a_run_each() {
    let mut model = model(|dag| dag.publish = PublishUnit::Each);
    assert_eq!(model.plan(hour_into(2)), ["01-02", "01-02"]);
    let views: Vec<_> = model.history.runs.iter().map(|run| run.views.clone()).collect();
    assert_eq!(views, [[view_id("a")], [view_id("b")]]);
    // One is done, the other blocked: neither comes back when the pause ends.
    model.end(0, RunState::Succeeded);
    model.end(1, RunState::Blocked);
    model.pause(true);
    model.plan(hour_into(3));
    model.pause(false);
    assert_eq!(model.plan(hour_into(3)), ["02-03", "02-03"]);
}

#[test]
fn a_changed_schedule_goes_on_where_the_old_one_ended() {
    let mut model = model(|_| {});
    model.plan(hour_into(3));
    let mut dag = model.dag.clone();
    dag.schedule.cron = "0 */12 * * *".to_owned();
    model.apply(dag);
    assert_eq!(model.plan(hour_into(4)), ["03-03", "03-04"]);
    let mut dag = model.dag.clone();
    dag.schedule.cron = "30 6 * * *".to_owned();
    model.apply(dag);
    // The bridge runs from the last old tick to the first new one.
    assert_eq!(model.plan(day(6)), ["04-04", "04-05"]);
    let cut: Vec<Interval> = intervals(&model.history.ticks).collect();
    assert_eq!(cut.iter().map(Interval::length).sum::<TimeDelta>(), cut[cut.len() - 1].end() - day(1));
    let runs: Vec<Interval> = model.history.runs.iter().map(|run| run.interval).collect();
    assert_eq!(runs, cut);
}

#[test]
fn a_bridge_that_begins_before_the_new_start_is_not_wanted() {
    let mut model = model(|_| {});
    model.plan(hour_into(3));
    let mut dag = model.dag.clone();
    dag.schedule.start = day(6);
    model.apply(dag);
    // The history is compared with the new start as well, and nothing before it is wanted.
    assert_eq!(model.plan(hour_into(8)), ["06-07", "07-08"]);
}

#[test]
fn an_unchanged_dag_needs_no_history() {
    let mut model = model(|_| {});
    assert!(!needs_history(&model.dag, &model.state));
    model.plan(hour_into(3));
    assert!(!needs_history(&model.dag, &model.state));
    model.pause(true);
    model.plan(hour_into(3));
    assert!(!needs_history(&model.dag, &model.state), "no tick passed during this pause");
    model.plan(hour_into(4));
    model.pause(false);
    assert!(needs_history(&model.dag, &model.state));
    model.plan(hour_into(4));
    assert!(!needs_history(&model.dag, &model.state));
}

#[test]
fn a_long_history_is_made_up_for_in_several_steps() {
    let mut model = model(|dag| dag.schedule.cron = "* * * * *".to_owned());
    model.pause(true);
    let now = day(1) + TimeDelta::minutes(2_300);
    model.plan(now);
    model.pause(false);
    assert_eq!(model.plan(now).len(), 2_300);
    assert!(!needs_history(&model.dag, &model.state));
}

/// What may happen to a DAG, in any order.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// Time passes, and the scheduler looks: as often as it is due, or once and dies before it writes.
    Plan {
        hours: u32,
        dies: bool,
    },
    Pause(bool),
    /// The nth open run ends.
    End(usize, RunState),
    Backfill {
        from: i64,
        days: i64,
        reprocess: Reprocess,
        dies_after: usize,
    },
}

fn any_event() -> impl Strategy<Value = Event> {
    let ended = prop::sample::select(vec![
        RunState::Succeeded,
        RunState::Succeeded,
        RunState::Succeeded,
        RunState::Blocked,
        RunState::Failed,
        RunState::Cancelled,
        RunState::Superseded,
    ]);
    let reprocess = prop::sample::select(vec![Reprocess::Missing, Reprocess::Failed, Reprocess::All]);
    prop_oneof![
        4 => (0..60_u32, any::<bool>()).prop_map(|(hours, dies)| Event::Plan { hours, dies }),
        1 => any::<bool>().prop_map(Event::Pause),
        6 => (0..20_usize, ended).prop_map(|(index, state)| Event::End(index, state)),
        2 => (-2..30_i64, 0..20_i64, reprocess, 0..8_usize)
            .prop_map(|(from, days, reprocess, dies_after)| Event::Backfill { from, days, reprocess, dies_after }),
    ]
}

fn happens(model: &mut Model, now: &mut Instant, event: Event) {
    match event {
        Event::Plan { hours, dies } => {
            *now += TimeDelta::hours(i64::from(hours));
            if dies {
                model.decide(*now);
            } else {
                // Another scheduler decided the same and writes second: refused, or changing nothing.
                let late = model.decide(*now);
                model.plan(*now);
                let before = (model.history.ticks.clone(), model.history.runs.len());
                if !late.ticks.is_empty() {
                    assert!(!model.write(late), "a step is written once");
                }
                assert_eq!((model.history.ticks.clone(), model.history.runs.len()), before);
            }
        }
        Event::Pause(paused) => model.pause(paused),
        Event::End(index, state) => {
            let open = model.open();
            if !open.is_empty() {
                model.end(open[index % open.len()], state);
            }
        }
        Event::Backfill { from, days, reprocess, dies_after } => {
            model.plan(*now);
            backfill(model, day(from), day(from + days), reprocess, dies_after);
        }
    }
}

fn backfill(model: &mut Model, from: Instant, to: Instant, reprocess: Reprocess, dies_after: usize) {
    let plan = plan_backfill(&model.dag, &model.history, from, to, reprocess);
    let mut runs = plan.runs(&model.dag, 1, BackfillId::generate());
    runs.truncate(dies_after);
    model.create(runs);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever happened, in whatever order and however often it was interrupted: once the schedule has caught up and a
    /// backfill has redone what failed, every wanted interval is in the ledger, and nothing else is.
    #[test]
    fn every_history_ends_in_the_same_ledger(
        events in prop::collection::vec(any_event(), 0..60),
        each in any::<bool>(),
        end in prop::option::of(1..30_i64),
    ) {
        let mut model = model(|dag| {
            dag.publish = if each { PublishUnit::Each } else { PublishUnit::Together };
            dag.schedule.end = end.map(day);
        });
        let mut now = day(1);
        for event in events {
            happens(&mut model, &mut now, event);
            let mut open: Vec<_> = model.open().iter().flat_map(|index| {
                let run = &model.history.runs[*index];
                run.views.iter().map(|view| (run.interval, view.clone())).collect::<Vec<_>>()
            }).collect();
            open.sort();
            prop_assert!(open.windows(2).all(|pair| pair[0] != pair[1]), "one open run per interval and view");
        }
        model.pause(false);
        model.plan(now);
        for index in model.open() {
            model.end(index, RunState::Succeeded);
        }
        backfill(&mut model, day(-9), now + TimeDelta::days(9), Reprocess::Failed, usize::MAX);
        for index in model.open() {
            model.end(index, RunState::Succeeded);
        }
        let last = end.map_or(now, |end| now.min(day(end)));
        let wanted: BTreeSet<Interval> = (1..).map(daily).take_while(|interval| interval.end() <= last).collect();
        for view in &model.dag.views {
            prop_assert_eq!(model.ledger().remove(view).unwrap_or_default(), wanted.clone());
        }
        prop_assert_eq!(model.plan(now), [""; 0]);
        backfill(&mut model, day(-9), now, Reprocess::Failed, usize::MAX);
        prop_assert!(model.open().is_empty(), "there is nothing left to do");
    }
}

#[test]
fn a_preview_says_what_planning_then_does() {
    let shown = |model: &Model, now| {
        let runs = preview(&model.dag, model.state.clone(), model.history.clone(), now).unwrap();
        runs.into_iter()
            .map(|(interval, _)| interval.start().format("%d-").to_string() + &interval.end().format("%d").to_string())
            .collect::<Vec<_>>()
    };
    for catchup in [Catchup::All, Catchup::Latest, Catchup::None] {
        let mut model = model(|dag| dag.schedule.catchup = catchup);
        assert_eq!(shown(&model, hour_into(5)), model.clone().plan(hour_into(5)), "{catchup:?}");
        model.plan(hour_into(5));
        assert_eq!(shown(&model, hour_into(5)), [""; 0], "{catchup:?}: nothing new");
        // A view more: every interval lacks it.
        model.dag.views.push(view_id("c"));
        assert_eq!(shown(&model, hour_into(7)), model.clone().plan(hour_into(7)), "{catchup:?}");
    }
    let mut long = model(|dag| dag.schedule.cron = "* * * * *".to_owned());
    let now = day(1) + TimeDelta::minutes(2_500);
    assert_eq!(shown(&long, now).len(), 2_500);
    while long.state.due_at.is_some_and(|due| due <= now) {
        let step = long.decide(now);
        assert!(long.write(step));
    }
    // And when all of it has to be compared with what is there.
    long.dag.views.push(view_id("c"));
    assert_eq!(shown(&long, now).len(), 2_500, "more than one step");
}
