//! Definitions: revisions, versions, and what an apply sets off.

use tidegate_registry::plan::DefinitionKind;
use tidegate_registry::store::{PlanStep, StoreError};

use super::Fixture;
use super::world::{World, apply_request, dag, dag_row, day, source_row, view, view_row};

/// A new registry has an id and nothing else.
pub async fn before_the_first_apply_the_project_is_empty(fixture: &Fixture) {
    let info = fixture.store.info().await.unwrap();
    assert_eq!((info.project, info.revision), (None, 0));
    assert_eq!(info.id, fixture.twin.info().await.unwrap().id, "the id is made once");
    let (revision, project) = fixture.store.project(None).await.unwrap();
    assert_eq!((revision, project.views.len(), project.dags.len()), (0, 0, 0));
    assert!(fixture.store.applies().await.unwrap().is_empty());
    assert!(matches!(fixture.store.project(Some(1)).await, Err(StoreError::NotFound { .. })));
}

/// Of two applies made on one revision, the second must plan again.
pub async fn an_apply_on_an_outdated_plan_changes_nothing(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let late = apply_request(0, vec![view_row("late@v1", &[], "")], Vec::new(), day(1));
    let refused = world.store.apply(late).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    let (revision, project) = world.store.project(None).await.unwrap();
    assert_eq!(revision, 1);
    assert!(!project.views.contains_key(&view("late@v1")));
    assert_eq!(world.store.applies().await.unwrap().len(), 1);
}

/// A registry that serves a project takes no other.
pub async fn a_registry_serves_one_project(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let mut other = apply_request(1, Vec::new(), Vec::new(), day(1));
    other.project = "trains".to_owned();
    let refused = world.store.apply(other).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(world.store.info().await.unwrap().project.as_deref(), Some("flights"));
}

/// Any revision can be read as it was; a definition that did not change has no new version.
pub async fn every_version_of_a_definition_is_kept(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let removals = vec![(DefinitionKind::Dag, "other".to_owned()), (DefinitionKind::FeatureView, "c@v1".to_owned())];
    let upserts = vec![view_row("a@v1", &[], "better"), view_row("b@v1", &["a@v1"], "second")];
    assert_eq!(world.apply(1, upserts, removals, day(1)).await, 2);

    let (_, old) = world.store.project(Some(1)).await.unwrap();
    let (revision, new) = world.store.project(None).await.unwrap();
    assert_eq!(revision, 2);
    assert_eq!(old.name.as_str(), "flights");
    let names = |project: &tidegate_registry::model::Project| -> Vec<String> {
        project.views.keys().map(ToString::to_string).collect()
    };
    assert_eq!(names(&old), ["a@v1", "b@v1", "c@v1"]);
    assert_eq!(names(&new), ["a@v1", "b@v1"], "a changed definition keeps its place");
    assert_eq!(old.views[&view("a@v1")].description, "first");
    assert_eq!(new.views[&view("a@v1")].description, "better");
    assert!(old.dags.contains_key(&dag("other")) && !new.dags.contains_key(&dag("other")));

    let spans = async |kind, name| -> Vec<(i64, Option<i64>)> {
        let versions = world.store.definition_versions(kind, name).await.unwrap();
        versions.iter().map(|version| (version.since, version.until)).collect()
    };
    assert_eq!(spans(DefinitionKind::FeatureView, "a@v1").await, [(2, None), (1, Some(2))]);
    assert_eq!(spans(DefinitionKind::FeatureView, "b@v1").await, [(1, None)]);
    assert_eq!(spans(DefinitionKind::FeatureView, "c@v1").await, [(1, Some(2))]);
    assert_eq!(spans(DefinitionKind::FeatureView, "x@v1").await, []);

    let applies = world.store.applies().await.unwrap();
    assert_eq!(applies.iter().map(|apply| apply.revision).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((applies[0].applied_at, applies[0].actor.as_str()), (day(1), "ana"));
    assert_eq!(applies[0].message.as_deref(), Some("because"));
}

/// A changed DAG, view or source makes exactly the DAGs due that it concerns.
pub async fn an_apply_makes_every_touched_dag_due(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let due = async || -> Vec<String> {
        let due = world.store.dags_due(day(5), 10).await.unwrap();
        due.iter().map(|state| state.dag.to_string()).collect()
    };
    let rest = async |revision: i64| {
        for state in world.store.dags().await.unwrap() {
            world.store.plan(step(&state.dag, revision), day(1)).await.unwrap();
        }
    };
    assert_eq!(due().await, ["daily", "other"], "added DAGs are due");
    rest(1).await;
    assert_eq!((due().await, world.store.next_due().await.unwrap()), (Vec::new(), None));

    world.apply(1, vec![dag_row("other", &["c@v1"], "@hourly")], Vec::new(), day(2)).await;
    assert_eq!(due().await, ["other"], "a changed DAG");
    assert_eq!(world.store.next_due().await.unwrap(), Some(day(2)));
    rest(2).await;

    world.apply(2, vec![view_row("b@v1", &["a@v1"], "new words")], Vec::new(), day(2)).await;
    assert_eq!(due().await, ["daily"], "the DAG of a changed view");
    rest(3).await;

    world.apply(3, vec![source_row("flights", "elsewhere.parquet")], Vec::new(), day(2)).await;
    assert_eq!(due().await, ["daily", "other"], "the DAGs whose views read a changed source");
    rest(4).await;

    world.apply(4, vec![source_row("airports", "airports.parquet")], Vec::new(), day(2)).await;
    assert_eq!(due().await, Vec::<String>::new(), "a source that nobody reads");
}

fn step(name: &tidegate_registry::ids::DagName, definitions: i64) -> PlanStep {
    PlanStep {
        dag: name.clone(),
        planned_until: None,
        definitions,
        ticks: Vec::new(),
        runs: Vec::new(),
        due_at: None,
        schedule_fingerprint: "s".to_owned(),
    }
}

/// A removed DAG is planned no more; its grid waits for it.
pub async fn a_dag_that_returns_goes_on_with_its_grid(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let other = dag("other");
    let planned = PlanStep { ticks: vec![day(0), day(1)], due_at: Some(day(2)), ..step(&other, 1) };
    world.store.plan(planned, day(1)).await.unwrap();
    let waiting = world.create(World::new_run("other", 0)).await;

    world.apply(1, Vec::new(), vec![(DefinitionKind::Dag, "other".to_owned())], day(2)).await;
    assert_eq!(world.store.dags().await.unwrap().len(), 1);
    assert_eq!(world.store.dags_due(day(9), 10).await.unwrap().len(), 1);
    assert!(matches!(world.store.plan(step(&other, 2), day(2)).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(world.store.dag_pause(&other, true, "ana", day(3)).await, Err(StoreError::NotFound { .. })));
    assert!(world.state(waiting).await.is_open(), "its runs are left alone");

    world.apply(2, vec![dag_row("other", &["c@v1"], "@daily")], Vec::new(), day(7)).await;
    let states = world.store.dags().await.unwrap();
    let state = states.iter().find(|state| state.dag == other).unwrap();
    assert_eq!((state.planned_until, state.due_at), (Some(day(1)), Some(day(7))));
    assert_eq!((state.created_at, state.definitions), (day(0), 3));
    assert_eq!(world.store.ticks(&other, day(0), day(9)).await.unwrap(), [day(0), day(1)]);
}

/// The table's version is known from the apply on, and an apply never moves that of a published view.
pub async fn a_view_begins_with_its_empty_table(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let version = async || world.store.view_states(&[view("c@v1")]).await.unwrap()[&view("c@v1")].delta_version;
    assert_eq!(version().await, 0);

    let mut changed = apply_request(1, vec![view_row("c@v1", &[], "another key")], Vec::new(), day(1));
    changed.tables.insert(view("c@v1"), 3);
    world.store.apply(changed).await.unwrap();
    assert_eq!(version().await, 3, "its table was made anew before anything was published");

    let run = world.admitted("other", 0).await;
    world.publish(run).await;
    let published = version().await;
    let mut changed = apply_request(2, vec![view_row("c@v1", &[], "more words")], Vec::new(), day(1));
    changed.tables.insert(view("c@v1"), 0);
    world.store.apply(changed).await.unwrap();
    assert_eq!(version().await, published);
}

/// Without a table the first run would race to create it.
pub async fn an_added_view_needs_a_table(fixture: &Fixture) {
    let world = World::new(fixture.store.clone()).await;
    let mut request = apply_request(1, vec![view_row("d@v1", &[], "")], Vec::new(), day(1));
    request.tables.clear();
    assert!(matches!(world.store.apply(request).await, Err(StoreError::Refused(_))));
    assert_eq!(world.store.info().await.unwrap().revision, 1);
}
