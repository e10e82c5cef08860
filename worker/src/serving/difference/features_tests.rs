//! Comparing states beside a plain definition of what differs, over whole runs; and what need not be read.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int64Array, ListArray, RecordBatch, StringArray,
};
use datafusion::arrow::datatypes::Int64Type;
use deltalake::parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use tidegate_registry::ids::{RunId, SnapshotId};
use tidegate_registry::restore::plan::{Asked, Definitions, Target, plan};
use tidegate_registry::restore::{HoldPolicy, Restoring};
use tidegate_registry::run::RunState;
use tokio_util::sync::CancellationToken;

use super::features::*;
use crate::engine::Engine;
use crate::tests::{World, at};

const THINGS: &str = "\
owners: [{name: sales, primary: sales@example.com}]
entities:
  - {name: thing, keys: [{name: id, type: bigint}]}
sources:
  - {name: things, parquet: things.parquet}
feature_views:
  - name: thing
    entity: thing
    owner: sales
    description: Features of every type
    sql: SELECT * FROM things
    features:
      - {name: wide, type: double, description: a number}
      - {name: narrow, type: float, description: a number}
      - {name: count, type: bigint, description: a count}
      - {name: word, type: string, description: a text}
      - {name: flag, type: boolean, description: yes or no}
      - {name: list, type: array<bigint>, description: numbers}
dags:
  - name: daily
    owner: sales
    schedule: {cron: '0 0 * * *', timezone: UTC, start: 2024-01-01}
    views: [thing]
    retries: {max: 0, backoff: 1s}
";

/// What a thing has, each or not.
#[derive(Debug, Clone, Default)]
struct Thing {
    wide: Option<f64>,
    narrow: Option<f32>,
    count: Option<i64>,
    word: Option<String>,
    flag: Option<bool>,
    list: Option<Vec<Option<i64>>>,
}

type Things = BTreeMap<i64, Thing>;

/// Numbers that look like chance, and are the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn perhaps<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.below(5) == 0 { None } else { Some(value(self)) }
    }

    fn thing(&mut self) -> Thing {
        const WIDE: [f64; 8] = [0.0, -0.0, 1.5, -2.25, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        const NARROW: [f32; 5] = [0.0, -1.5, 0.25, f32::NAN, f32::INFINITY];
        // Two that are the same as floats, and the two that are farthest apart.
        const COUNTS: [i64; 6] = [0, 7, -7, 9_007_199_254_740_993, 9_007_199_254_740_992, i64::MIN];
        Thing {
            wide: self.perhaps(|dice| WIDE[dice.below(8) as usize]),
            narrow: self.perhaps(|dice| NARROW[dice.below(5) as usize]),
            count: self.perhaps(|dice| COUNTS[dice.below(6) as usize]),
            word: self.perhaps(|dice| ["", "a", "null"][dice.below(3) as usize].to_owned()),
            flag: self.perhaps(|dice| dice.below(2) == 0),
            list: self.perhaps(|dice| (0..dice.below(3)).map(|_| dice.perhaps(|dice| dice.below(2) as i64)).collect()),
        }
    }

    /// Some things, many of which are as they were.
    fn things(&mut self, before: &Things) -> Things {
        let mut things = Things::new();
        for id in 0..self.below(40) as i64 {
            match (before.get(&id), self.below(4)) {
                (_, 0) => {}
                (Some(same), 1 | 2) => {
                    things.insert(id, same.clone());
                }
                _ => {
                    things.insert(id, self.thing());
                }
            }
        }
        // No run is allowed to compute nothing at all.
        things.insert(1_000, Thing::default());
        things
    }
}

fn write(world: &World, things: &Things) {
    let all = || things.values();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(things.keys().copied().map(Some).collect::<Int64Array>())),
        ("wide", Arc::new(all().map(|thing| thing.wide).collect::<Float64Array>())),
        ("narrow", Arc::new(all().map(|thing| thing.narrow).collect::<Float32Array>())),
        ("count", Arc::new(all().map(|thing| thing.count).collect::<Int64Array>())),
        ("word", Arc::new(all().map(|thing| thing.word.clone()).collect::<StringArray>())),
        ("flag", Arc::new(all().map(|thing| thing.flag).collect::<BooleanArray>())),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(all().map(|thing| thing.list.clone())))),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)));
    let batch = batch.unwrap();
    let file = File::create(world.folder.path().join("things.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// A value as text, in which two are the same exactly when readers find them the same.
fn texts(thing: &Thing) -> BTreeMap<&'static str, Option<String>> {
    // `Debug` tells -0.0 from 0.0, and no NaN from another.
    BTreeMap::from([
        ("wide", thing.wide.map(|value| format!("{value:?}"))),
        ("narrow", thing.narrow.map(|value| format!("{value:?}"))),
        ("count", thing.count.map(|value| value.to_string())),
        ("word", thing.word.clone()),
        ("flag", thing.flag.map(|value| value.to_string())),
        ("list", thing.list.as_ref().map(|value| format!("{value:?}"))),
    ])
}

/// From one finite number to another: how far, absolutely and relatively.
fn distance(name: &str, before: &Thing, after: &Thing) -> Option<(f64, Option<f64>)> {
    let (was, by) = match name {
        "wide" => (before.wide?, (after.wide? - before.wide?).abs()),
        "narrow" => (f64::from(before.narrow?), (f64::from(after.narrow?) - f64::from(before.narrow?)).abs()),
        "count" => {
            let by = i128::from(after.count?) - i128::from(before.count?);
            (before.count? as f64, by.unsigned_abs() as f64)
        }
        _ => return None,
    };
    // Neither infinities nor NaN are at a distance.
    by.is_finite().then(|| (by, (was != 0.0).then(|| by / was.abs())))
}

/// What differs, by comparing everything with everything.
fn defined(before: &Things, after: &Things) -> (u64, u64, u64, u64, BTreeMap<&'static str, FeatureDiff>) {
    let (mut added, mut removed, mut changed, mut unchanged) = (0, 0, 0, 0);
    let mut features: BTreeMap<&'static str, FeatureDiff> = BTreeMap::new();
    let mut moves: BTreeMap<&'static str, Vec<(f64, Option<f64>)>> = BTreeMap::new();
    for id in before.keys().chain(after.keys().filter(|id| !before.contains_key(id))) {
        let (was, is) = match (before.get(id), after.get(id)) {
            (Some(was), Some(is)) => (was, is),
            (None, _) => {
                added += 1;
                continue;
            }
            (_, None) => {
                removed += 1;
                continue;
            }
        };
        let (old, new) = (texts(was), texts(is));
        if old == new {
            unchanged += 1;
            continue;
        }
        changed += 1;
        for (name, old) in &old {
            let new = &new[name];
            if old != new {
                let feature = features.entry(name).or_default();
                feature.changed += 1;
                feature.to_null += u64::from(new.is_none());
                feature.from_null += u64::from(old.is_none());
                moves.entry(name).or_default().extend(distance(name, was, is));
            }
        }
    }
    for (name, feature) in &mut features {
        feature.name = (*name).to_owned();
        let absolute: Vec<f64> = moves[name].iter().map(|(by, _)| *by).collect();
        let relative: Vec<f64> = moves[name].iter().filter_map(|(_, by)| *by).collect();
        let mean = |all: &[f64]| (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64);
        let max = |all: &[f64]| all.iter().copied().reduce(f64::max);
        feature.numbers = mean(&absolute).map(|mean_absolute| Moved {
            count: absolute.len() as u64,
            mean_absolute,
            max_absolute: max(&absolute).unwrap(),
            mean_relative: mean(&relative),
            max_relative: max(&relative),
        });
    }
    (added, removed, changed, unchanged, features)
}

/// One world's comparisons.
struct Comparisons {
    world: World,
    engine: Arc<Engine>,
}

impl Comparisons {
    async fn new(definitions: &str) -> Self {
        let world = World::with(definitions).await;
        let engine = Arc::new(Engine::new(64 << 20, &world.folder.path().join("spill-diff")).unwrap());
        Self { world, engine }
    }

    /// What `view` was when a snapshot was recorded.
    async fn state(&self, view: &str, snapshot: SnapshotId) -> Option<ViewState> {
        let number = self.world.store.snapshot_number(snapshot).await.unwrap();
        ViewState::of(&self.world.store.as_of(&view.parse().unwrap(), number).await.unwrap())
    }

    async fn compare(&self, view: &str, states: [Option<ViewState>; 2], examples: usize) -> StateDiff {
        let (lake, view) = (self.world.fresh_lake(), view.parse().unwrap());
        compare_states(&self.engine, &lake, &self.world.project, &view, states, examples).await.unwrap()
    }

    async fn run(&self, day: u32) -> SnapshotId {
        SnapshotId(self.world.succeed(day, 0).await.id.0)
    }

    async fn restore(&self, view: &str, to: SnapshotId) -> (SnapshotId, Option<ViewState>) {
        let asked = Asked {
            views: vec![view.parse().unwrap()],
            target: Target::To(to),
            cascade: false,
            hold_policy: HoldPolicy::default(),
        };
        let definitions = Definitions { revision: 1, project: &self.world.project };
        let now = at("2024-01-05T00:00:00Z");
        let mut planned = plan(&*self.world.store, definitions, &asked, RunId::generate(), now).await.unwrap();
        planned.request.actor = "tester".to_owned();
        planned.request.reason = "to compare".to_owned();
        let id = planned.request.id;
        let definition = &self.world.project.views[&asked.views[0]];
        let after = ViewState::after(&planned.request.plan.views[&asked.views[0]], definition.output).unwrap();
        self.world.store.restore_begin(planned.request).await.unwrap();
        self.world.worker.run_only(&[id], CancellationToken::new()).await.unwrap();
        assert_eq!(
            tidegate_registry::store::Store::run(&*self.world.store, id).await.unwrap().0.state,
            RunState::Succeeded
        );
        (SnapshotId(id.0), after)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn states_of_chance_differ_as_the_plain_definition_says() {
    let mut dice = Dice(3);
    for _ in 0..4 {
        let comparisons = Comparisons::new(THINGS).await;
        let mut days: Vec<(SnapshotId, Things)> = Vec::new();
        for day in 1..=3 {
            let things = dice.things(days.last().map_or(&Things::new(), |(_, before)| before));
            write(&comparisons.world, &things);
            days.push((comparisons.run(day).await, things));
        }
        for (from, before) in &days {
            for (to, after) in &days {
                let states = [comparisons.state("thing@v1", *from).await, comparisons.state("thing@v1", *to).await];
                let found = comparisons.compare("thing@v1", states, 1_000).await;
                let (added, removed, changed, unchanged, features) = defined(before, after);
                assert_eq!((found.added, found.removed, found.changed), (added, removed, changed));
                assert_eq!(found.unchanged, (from != to).then_some(unchanged));
                assert_eq!(found.was_read, from != to, "the same is not read");
                assert_eq!(found.examples_added.len() as u64, added);
                assert_eq!(found.examples_removed.len() as u64, removed);
                assert_eq!(found.features.len(), features.len());
                for mut feature in found.features {
                    let examples = std::mem::take(&mut feature.examples);
                    let defined = &features[feature.name.as_str()];
                    // Sums depend on their order in the last digit.
                    let (found, wanted) = (feature.numbers.take(), defined.numbers);
                    assert_eq!(feature, FeatureDiff { numbers: None, ..defined.clone() });
                    assert_eq!(found.map(|numbers| numbers.count), wanted.map(|numbers| numbers.count));
                    if let (Some(found), Some(wanted)) = (found, wanted) {
                        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
                        assert!(near(found.mean_absolute, wanted.mean_absolute), "{found:?} {wanted:?}");
                        assert!(near(found.max_absolute, wanted.max_absolute), "{found:?} {wanted:?}");
                        assert_eq!(found.mean_relative.is_some(), wanted.mean_relative.is_some());
                        assert!(near(found.mean_relative.unwrap_or(1.0), wanted.mean_relative.unwrap_or(1.0)));
                        assert!(near(found.max_relative.unwrap_or(1.0), wanted.max_relative.unwrap_or(1.0)));
                    }
                    assert_eq!(examples.len() as u64, feature.changed);
                    for example in examples {
                        let id = example.entity["id"].as_i64().unwrap();
                        let texts = |things: &Things| texts(&things[&id])[feature.name.as_str()].is_none();
                        assert_eq!((example.before.is_null(), example.after.is_null()), (texts(before), texts(after)));
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_are_those_that_moved_farthest() {
    let comparisons = Comparisons::new(THINGS).await;
    let thing = |count: Option<i64>| Thing { count, ..Thing::default() };
    let counts = |counts: [Option<i64>; 6]| (0..).zip(counts.map(thing)).collect::<Things>();
    write(&comparisons.world, &counts([Some(1), Some(1), Some(1), Some(1), Some(1), None]));
    let first = comparisons.run(1).await;
    write(&comparisons.world, &counts([Some(1), Some(3), Some(-9), Some(2), None, None]));
    let second = comparisons.run(2).await;
    let states = [comparisons.state("thing@v1", first).await, comparisons.state("thing@v1", second).await];
    let found = comparisons.compare("thing@v1", states, 2).await;
    assert_eq!((found.changed, found.unchanged, found.features.len()), (4, Some(2), 1));
    let examples: Vec<_> = found.features[0]
        .examples
        .iter()
        .map(|example| json!([example.entity["id"], example.before, example.after]))
        .collect();
    assert_eq!(Value::from(examples), json!([[4, 1, null], [2, 1, -9]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_side_may_have_nothing() {
    let comparisons = Comparisons::new(THINGS).await;
    write(&comparisons.world, &(0..4).map(|id| (id, Thing::default())).collect());
    let first = comparisons.state("thing@v1", comparisons.run(1).await).await;
    assert!(first.is_some());
    let added = comparisons.compare("thing@v1", [None, first.clone()], 2).await;
    assert_eq!((added.added, added.removed, added.changed, added.examples_added.len()), (4, 0, 0, 2));
    assert!(!added.was_read, "how many there are is recorded");
    let removed = comparisons.compare("thing@v1", [first, None], 9).await;
    assert_eq!((removed.added, removed.removed, removed.changed, removed.examples_removed.len()), (0, 4, 0, 4));
    assert_eq!(comparisons.compare("thing@v1", [None, None], 9).await, StateDiff::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_view_is_compared_by_its_living_rows() {
    let comparisons = Comparisons::new(crate::tests::DEFINITIONS).await;
    let days = [comparisons.run(1).await, comparisons.run(2).await, comparisons.run(3).await];
    let view = "last_receipt@v1";
    let mut states = Vec::new();
    for day in days {
        states.push(comparisons.state(view, day).await);
    }
    // a: 20, later 50, alive until the fourth; b: 70, 50, 60.
    let found = comparisons.compare(view, [states[0].clone(), states[2].clone()], 5).await;
    assert_eq!((found.added, found.removed, found.changed, found.unchanged), (0, 0, 2, Some(0)));
    let names: Vec<&str> = found.features.iter().map(|feature| feature.name.as_str()).collect();
    assert_eq!(names, ["largest", "event_timestamp"]);
    let moved = found.features[0].numbers.unwrap();
    assert_eq!((moved.count, moved.mean_absolute, moved.max_absolute), (2, 20.0, 30.0));
    let found = comparisons.compare(view, [None, states[2].clone()], 5).await;
    assert_eq!((found.added, found.was_read), (2, true), "rows of several intervals live");
    let found = comparisons.compare(view, [states[1].clone(), states[1].clone()], 5).await;
    assert_eq!((found.changed, found.was_read), (0, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restore_left_is_compared_like_any_other_state() {
    let comparisons = Comparisons::new(crate::tests::DEFINITIONS).await;
    let (first, second) = (comparisons.run(1).await, comparisons.run(2).await);
    for view in ["revenue@v1", "last_receipt@v1"] {
        let now = comparisons.state(view, second).await;
        let before = comparisons.state(view, first).await;
        let there = comparisons.compare(view, [now.clone(), before.clone()], 0).await;
        let (restore, planned) = comparisons.restore(view, first).await;
        let foreseen = comparisons.compare(view, [now.clone(), planned], 0).await;
        assert_eq!(foreseen, there, "{view}: a plan foretells what differs");
        assert!(foreseen.changed > 0, "{view}");
        let after = comparisons.state(view, restore).await;
        let left = comparisons.compare(view, [before, after.clone()], 5).await;
        assert_eq!((left.added, left.removed, left.changed, left.was_read), (0, 0, 0, false), "{view}");
        assert_eq!(comparisons.compare(view, [now, after], 0).await, there, "{view}");
    }
}
