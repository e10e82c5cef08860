use tidegate_registry::ids::BackfillId;
use tidegate_registry::model::Output;

use super::*;
use crate::readiness::Upstream;
use crate::testing::{dag, daily, day, project, run, view, view_id};

/// Runs of DAG `d` (views `a` and `b`) with its definition changed.
fn situation(runs: Vec<Run>, change: impl FnOnce(&mut Dag)) -> Situation {
    let mut dag = dag("d", &["a", "b"]);
    change(&mut dag);
    let views = vec![view("a", Output::Full, &[]), view("b", Output::Full, &["a"])];
    let mut situation = Situation { runs, ..Situation::default() };
    situation.projects.insert(1, Arc::new(project(views, vec![dag])));
    situation
}

fn waiting(number: i64) -> Run {
    run("d", daily(number), &["a", "b"], RunState::Waiting)
}

fn backfill(number: i64) -> Run {
    Run { cause: Cause::Backfill(BackfillId::generate()), ..waiting(number) }
}

fn in_state(state: RunState, run: Run) -> Run {
    Run { state, ..run }
}

/// What becomes of each waiting run, by the day of its interval.
fn judged(situation: &Situation, turns: &mut Turns) -> Vec<String> {
    let day_of =
        |id: RunId| situation.runs.iter().find(|run| run.id == id).unwrap().interval.start().format("%d").to_string();
    decide(situation, &Limits::default(), turns)
        .into_iter()
        .map(|(id, decision)| match decision {
            Decision::Admit => day_of(id),
            Decision::Wait(reason) => format!("{} {reason}", day_of(id)),
        })
        .collect()
}

fn once(situation: &Situation) -> Vec<String> {
    judged(situation, &mut Turns::default())
}

#[test]
fn a_dag_runs_no_more_than_its_limit() {
    let runs = vec![in_state(RunState::Publishing, waiting(1)), waiting(2), waiting(3), waiting(4)];
    let situation = situation(runs, |dag| dag.max_active_runs = 2);
    assert_eq!(
        once(&situation),
        ["02", "03 waits its turn: `d` runs 2 at a time", "04 waits its turn: `d` runs 2 at a time"]
    );
}

#[test]
fn in_order_lets_in_one_interval_after_the_other() {
    let runs = vec![waiting(1), waiting(2), waiting(3)];
    let late = "waits for the earlier interval from 2024-01-01T00:00:00Z";
    assert_eq!(
        once(&situation(runs, |dag| dag.in_order = true)),
        ["01".to_owned(), format!("02 {late}"), format!("03 {late}")]
    );
    let runs = vec![in_state(RunState::Running, waiting(1)), waiting(2)];
    assert_eq!(once(&situation(runs, |dag| dag.in_order = true)), [format!("02 {late}")]);
    // An earlier interval that a backfill has taken up again counts as well.
    let runs = vec![backfill(1), waiting(2)];
    assert_eq!(once(&situation(runs, |dag| dag.in_order = true)), ["01".to_owned(), format!("02 {late}")]);
}

#[test]
fn a_blocked_interval_holds_later_ones_only_if_the_author_says_so() {
    for (on_blocked, expected) in [
        (OnBlocked::Continue, vec!["01", "03"]),
        (
            OnBlocked::Wait,
            vec![
                "01",
                "03 waits until the earlier interval from 2024-01-02T00:00:00Z is settled: its last run published nothing",
            ],
        ),
    ] {
        let mut situation = situation(vec![waiting(1), waiting(3)], |dag| dag.on_blocked = on_blocked);
        situation.closed.insert("d".parse().unwrap(), BTreeSet::from([daily(2)]));
        assert_eq!(once(&situation), expected, "{on_blocked:?}");
    }
}

#[test]
fn two_runs_of_an_interval_share_no_view_while_under_way() {
    let tick = in_state(RunState::Running, waiting(1));
    let other = Run { views: vec![view_id("c")], ..waiting(1) };
    let id = tick.id;
    let situation_ = situation(vec![tick, backfill(1), other], |_| {});
    assert_eq!(once(&situation_), [format!("01 waits for the tick run of the same interval, `{id}`"), "01".to_owned()]);
    // Of two that wait, one goes.
    let runs = vec![waiting(1), backfill(1)];
    let id = runs[0].id;
    assert_eq!(
        once(&situation(runs, |_| {})),
        ["01".to_owned(), format!("01 waits for the tick run of the same interval, `{id}`")]
    );
}

#[test]
fn a_run_waits_for_what_it_reads_without_taking_a_place() {
    let mut situation = situation(vec![waiting(1), waiting(2), waiting(3)], |dag| dag.max_active_runs = 1);
    let views = vec![view("up", Output::Full, &[]), view("a", Output::Full, &["up"])];
    let mut d = dag("d", &["a"]);
    d.max_active_runs = 1;
    let u = dag("u", &["up"]);
    let ticks = (1..5).map(day).collect();
    let upstream = Upstream::new(&u, ticks, BTreeSet::from([daily(2)])).unwrap();
    situation.upstreams.insert(view_id("up"), Arc::new(upstream));
    situation.projects.insert(1, Arc::new(project(views, vec![d, u])));
    assert_eq!(
        once(&situation),
        [
            "01 waits for `up@v1` to publish the interval from 2024-01-01T00:00:00Z to 2024-01-02T00:00:00Z",
            "02",
            "03 waits its turn: `d` runs 1 at a time",
        ]
    );
}

#[test]
fn a_run_whose_definition_is_gone_says_so() {
    let run = Run { definitions: 7, ..waiting(1) };
    assert_eq!(once(&situation(vec![run], |_| {})), ["01 waits for the definition of `d`, which is gone"]);
}

/// Serves a DAG's runs one at a time, oldest interval first as workers do, and returns the causes in order.
fn served(mut situation: Situation, count: usize) -> String {
    let mut turns = Turns::default();
    let mut order = String::new();
    for _ in 0..count {
        for (id, decision) in decide(&situation, &Limits { backfill_runs_max: 2 }, &mut turns) {
            if decision == Decision::Admit {
                situation.runs.iter_mut().find(|run| run.id == id).unwrap().state = RunState::Queued;
            }
        }
        let claimed = situation.runs.iter().position(|run| run.state == RunState::Queued).unwrap();
        order.push(if matches!(situation.runs[claimed].cause, Cause::Tick) { 't' } else { 'b' });
        situation.runs.remove(claimed);
    }
    order
}

#[test]
fn ticks_and_backfills_take_turns_within_a_dag() {
    let runs = || (1..10).map(backfill).chain((20..29).map(waiting)).collect::<Vec<_>>();
    assert_eq!(served(situation(runs(), |dag| dag.max_active_runs = 1), 8), "tbtbtbtb");
}

#[test]
fn a_backfill_starves_no_other_dag_and_is_not_starved() {
    let mut runs: Vec<Run> = (1..20).map(backfill).collect();
    runs.extend((20..40).map(|day| Run { dag: "e".parse().unwrap(), ..waiting(day) }));
    let mut situation = situation(runs, |_| {});
    let (d, e) = (dag("d", &["a", "b"]), dag("e", &["a", "b"]));
    situation.projects.insert(1, Arc::new(project(Vec::new(), vec![d, e])));
    let order = served(situation, 36);
    let ticks_done = order.rfind('t').unwrap();
    let before = &order[..ticks_done];
    // While ticks wait, backfill runs go between them, and never hold them up for long.
    assert!(before.contains('b'), "{order}");
    assert!(!before.contains("bbbb"), "{order}");
}

#[test]
fn backfills_keep_to_their_own_limit() {
    let runs: Vec<Run> = (1..9).map(backfill).collect();
    let admitted = once(&situation(runs, |_| {})).into_iter().filter(|judged| judged.len() == 2).count();
    assert_eq!(admitted, Limits::default().backfill_runs_max);
}

#[test]
fn deciding_again_about_the_same_changes_nothing() {
    let runs = vec![in_state(RunState::Running, waiting(1)), waiting(2), backfill(2), waiting(3)];
    let situation = situation(runs, |dag| dag.max_active_runs = 2);
    let mut turns = Turns::default();
    // Reasons are compared as texts to see whether they are to be written again.
    let first = judged(&situation, &mut turns);
    assert_eq!(first, judged(&situation, &mut Turns::default()));
}

#[test]
fn a_process_that_computes_a_few_runs_lets_in_no_others() {
    let mut late = situation(vec![waiting(1), waiting(2), waiting(3)], |dag| dag.max_active_runs = 1);
    late.only = Some(BTreeSet::from([late.runs[2].id]));
    assert_eq!(once(&late), ["03"], "older runs that nobody here computes take no place");
    let mut in_order = situation(vec![waiting(1), waiting(2)], |dag| dag.in_order = true);
    in_order.only = Some(BTreeSet::from([in_order.runs[1].id]));
    assert_eq!(once(&in_order), ["02 waits for the earlier interval from 2024-01-01T00:00:00Z"]);
}
