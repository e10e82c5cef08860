//! Planning: what is due, and writing a plan only while it holds.

use tidegate_registry::run::RunState;
use tidegate_registry::store::{PlanStep, RunFilter, StoreError};
use tidegate_registry::time::Instant;

use super::Fixture;
use super::world::{World, dag, dag_row, day, interval, view};

fn step(planned_until: Option<Instant>, ticks: Vec<Instant>, due_at: Option<Instant>) -> PlanStep {
    PlanStep {
        dag: dag("daily"),
        planned_until,
        definitions: 1,
        ticks,
        runs: Vec::new(),
        due_at,
        schedule_fingerprint: "s".to_owned(),
    }
}

/// Nobody waits for ever, and what is not due is not shown.
pub async fn due_dags_come_longest_waiting_first(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    world.apply(1, vec![dag_row("third", &["c@v1"], "@daily")], Vec::new(), day(3)).await;
    world.store.plan(step(None, Vec::new(), Some(day(2))), day(0)).await.unwrap();
    let due = async |now, limit| -> Vec<String> {
        let due = world.store.dags_due(now, limit).await.unwrap();
        due.iter().map(|state| state.dag.to_string()).collect()
    };
    assert_eq!(due(day(3), 10).await, ["other", "daily", "third"]);
    assert_eq!(due(day(3), 2).await, ["other", "daily"]);
    assert_eq!(due(day(2), 10).await, ["other", "daily"], "due at that very instant");
    assert_eq!(due(day(1), 10).await, ["other"]);
    assert_eq!(world.store.next_due().await.unwrap(), Some(day(0)));
}

/// Two schedulers may plan the same DAG: one of them must look again. So must one that planned by old definitions.
pub async fn a_plan_holds_only_on_what_it_was_made_on(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let first = step(None, vec![day(0), day(1)], Some(day(2)));
    world.store.plan(first.clone(), day(1)).await.unwrap();
    let mut again = first.clone();
    again.runs = vec![World::new_run("daily", 0)];
    let refused = world.store.plan(again, day(1)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert!(world.store.runs(&RunFilter::default()).await.unwrap().is_empty());

    world.apply(1, vec![dag_row("daily", &["a@v1", "b@v1"], "@hourly")], Vec::new(), day(1)).await;
    let mut outdated = step(Some(day(1)), vec![day(2)], Some(day(3)));
    let refused = world.store.plan(outdated.clone(), day(2)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(world.store.ticks(&dag("daily"), day(0), day(9)).await.unwrap(), [day(0), day(1)]);
    assert_eq!(world.store.dags().await.unwrap()[0].due_at, Some(day(1)), "still due for what was applied");
    outdated.definitions = 2;
    world.store.plan(outdated, day(2)).await.unwrap();
}

/// Ticks, runs, due time and schedule of a plan are written at once.
pub async fn planning_stores_ticks_and_runs_together(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let mut first = step(None, vec![day(0), day(1), day(2)], Some(day(3)));
    first.runs = vec![World::new_run("daily", 0), World::new_run("daily", 1)];
    world.store.plan(first.clone(), day(2)).await.unwrap();

    let state = world.store.dags().await.unwrap().remove(0);
    assert_eq!((state.dag, state.planned_until, state.due_at), (dag("daily"), Some(day(2)), Some(day(3))));
    assert_eq!((state.schedule_fingerprint.as_deref(), state.created_at, state.definitions), (Some("s"), day(0), 1));
    assert_eq!(world.store.ticks(&dag("daily"), day(1), day(2)).await.unwrap(), [day(1), day(2)], "both ends inside");
    let open = world.store.runs_open().await.unwrap();
    assert_eq!(open.iter().map(|run| run.interval).collect::<Vec<_>>(), [interval(0), interval(1)]);
    assert!(open.iter().all(|run| run.state == RunState::Waiting && run.created_at == day(2)));

    // The same runs once more, now that nothing else is to be stored.
    world.store.plan(PlanStep { planned_until: Some(day(2)), ticks: Vec::new(), ..first }, day(2)).await.unwrap();
    assert_eq!(world.store.runs_open().await.unwrap(), open);
    assert_eq!(world.store.dags().await.unwrap()[0].planned_until, Some(day(2)));
}

/// A tick that is not after the last would make an empty or overlapping interval.
pub async fn a_plan_with_ticks_out_of_order_changes_nothing(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    for ticks in [vec![day(1), day(1)], vec![day(1), day(0)]] {
        let refused = world.store.plan(step(None, ticks, None), day(1)).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    assert!(world.store.ticks(&dag("daily"), day(0), day(9)).await.unwrap().is_empty());
    let unknown = PlanStep { dag: dag("nowhere"), ..step(None, Vec::new(), None) };
    assert!(matches!(world.store.plan(unknown, day(1)).await, Err(StoreError::NotFound { .. })));
}

/// A plan that is refused leaves no trace and takes no other back; a second plan of a DAG builds on the first.
pub async fn plans_of_many_dags_are_judged_each_for_itself(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    world.apply(1, vec![dag_row("third", &["c@v1"], "@daily")], Vec::new(), day(0)).await;
    let of = |name: &str, numbers: &[i64]| PlanStep {
        dag: dag(name),
        definitions: 2,
        runs: numbers.iter().map(|number| World::new_run(name, *number)).collect(),
        ..step(None, vec![day(0), day(1)], Some(day(2)))
    };
    let mut no_view = of("other", &[0, 1]);
    no_view.runs[1].views = vec![view("nowhere@v1")];
    let unordered = PlanStep { ticks: vec![day(1), day(0)], ..of("other", &[0]) };
    let outdated = PlanStep { definitions: 1, ..of("third", &[0]) };
    let next = PlanStep { planned_until: Some(day(1)), ticks: vec![day(2)], due_at: None, ..of("daily", &[0, 1]) };
    let steps = [of("daily", &[0]), no_view, of("nowhere", &[]), of("daily", &[7]), next, unordered, outdated];
    let verdicts = world.store.plan_all(&steps, day(2)).await.unwrap();
    let told: Vec<&str> = verdicts
        .iter()
        .map(|verdict| match verdict {
            Ok(()) => "stored",
            Err(StoreError::NotFound { what, .. }) => what,
            Err(StoreError::Conflict(_)) => "conflict",
            Err(StoreError::Refused(_)) => "refused",
            Err(_) => "failed",
        })
        .collect();
    assert_eq!(told, ["stored", "feature view", "DAG", "conflict", "stored", "refused", "conflict"]);

    let open = world.store.runs_open().await.unwrap();
    let found: Vec<_> = open.iter().map(|run| (run.dag.as_str(), run.interval, run.revision)).collect();
    assert_eq!(found, [("daily", interval(0), 0), ("daily", interval(1), 0)]);
    assert_eq!(world.store.ticks(&dag("daily"), day(0), day(9)).await.unwrap(), [day(0), day(1), day(2)]);
    let states = world.store.dags().await.unwrap();
    let planned: Vec<_> = states.iter().map(|state| (state.planned_until, state.due_at)).collect();
    assert_eq!(planned, [(Some(day(2)), None), (None, Some(day(0))), (None, Some(day(0)))]);
    assert!(world.store.plan_all(&[], day(2)).await.unwrap().is_empty());
}

/// Pausing does not stop the grid; unpausing catches up without waiting for the next tick.
pub async fn an_unpaused_dag_is_due_at_once(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    world.store.plan(step(None, vec![day(0)], Some(day(8))), day(1)).await.unwrap();
    world.store.dag_pause(&dag("daily"), true, "ana", day(3)).await.unwrap();
    let state = world.store.dags().await.unwrap().remove(0);
    assert_eq!((state.paused, state.due_at), (true, Some(day(8))));
    world.store.dag_pause(&dag("daily"), false, "ana", day(3)).await.unwrap();
    let due = world.store.dags_due(day(1), 10).await.unwrap();
    assert!(due.iter().any(|state| state.dag == dag("daily") && !state.paused), "{due:?}");
    assert!(matches!(
        world.store.dag_pause(&dag("nowhere"), true, "ana", day(3)).await,
        Err(StoreError::NotFound { .. })
    ));
}
