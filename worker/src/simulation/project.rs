//! The project that is simulated, and what must come of it whatever happens: worked out by plain arithmetic.

use std::time::Duration;

use chrono::TimeDelta;
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::ids::{ProjectName, ViewId};
use tidegate_registry::model::{
    Catchup, Dag, FeatureView, OnBlocked, Online, Output, Project, PublishUnit, Retries, Schedule, SqlText, Strategy,
    Table, TableRef,
};
use tidegate_registry::time::Interval;

use super::world::{hash, start};

/// DAGs: name, minutes between ticks, views, in order, each view published on its own.
const DAGS: [(&str, i64, &[&str], bool, bool); 4] = [
    ("base", 10, &["a@v1", "b@v1"], false, false),
    ("derived", 20, &["c@v1"], false, false),
    ("ordered", 15, &["d@v1"], true, false),
    ("each", 30, &["e@v1", "f@v1"], false, true),
];

/// What each view reads of others. (That `d` reads its own history makes its DAG run in order.)
const READS: [(&str, &[&str]); 6] =
    [("a@v1", &[]), ("b@v1", &["a@v1"]), ("c@v1", &["a@v1"]), ("d@v1", &[]), ("e@v1", &[]), ("f@v1", &["b@v1"])];

pub(crate) fn view_id(text: &str) -> ViewId {
    text.parse().unwrap()
}

pub(crate) fn project() -> Project {
    let mut project = Project::empty(ProjectName::new("simulated").unwrap());
    for (name, reads) in READS {
        project.views.insert(view_id(name), view(name, reads));
    }
    for (name, minutes, views, in_order, each) in DAGS {
        let dag = Dag {
            name: name.parse().unwrap(),
            owner: "ana".parse().unwrap(),
            description: None,
            tags: Vec::new(),
            schedule: Schedule {
                cron: format!("*/{minutes} * * * *"),
                timezone: "UTC".parse().unwrap(),
                start: start(),
                end: None,
                catchup: Catchup::All,
                gap: None,
                overlap: None,
            },
            views: views.iter().map(|id| view_id(id)).collect(),
            retries: Retries { max: 3, backoff: Duration::from_secs(1) },
            timeout: None,
            max_active_runs: 3,
            priority: 0,
            in_order,
            on_blocked: if in_order { OnBlocked::Wait } else { OnBlocked::Continue },
            publish: if each { PublishUnit::Each } else { PublishUnit::Together },
            on_published: Vec::new(),
            origin: Origin::default(),
        };
        project.dags.insert(dag.name.clone(), dag);
    }
    project
}

fn view(id: &str, reads: &[&str]) -> FeatureView {
    let state = |read: &&str| TableRef { name: (*read).to_owned(), table: Table::State(view_id(read)) };
    FeatureView {
        id: view_id(id),
        entity: "carrier".parse().unwrap(),
        owner: "ana".parse().unwrap(),
        description: "a view".to_owned(),
        tags: Vec::new(),
        sql: SqlText { text: "SELECT 1".to_owned(), origin: Origin::default() },
        reads: reads.iter().map(state).collect(),
        checked_against: Vec::new(),
        output: Output::Full,
        serving_delay: Duration::ZERO,
        features: Vec::new(),
        checks: Vec::new(),
        online: Some(Online { strategy: Strategy::Swap, max_deletes: None, keep: 1 }),
        freshness: None,
        restore_target: None,
        queue: None,
        pool: None,
        fingerprint: id.to_owned(),
        origin: Origin::default(),
    }
}

/// The minutes between two ticks of the DAG that runs `view`.
fn minutes_of(view: &ViewId) -> i64 {
    let dag = DAGS.iter().find(|dag| dag.2.contains(&view.to_string().as_str())).unwrap();
    dag.1
}

/// The intervals of the first hour, each `minutes` long.
fn intervals(minutes: i64) -> Vec<Interval> {
    let at = |number: i64| start() + TimeDelta::minutes(number * minutes);
    (0..60 / minutes).map(|number| Interval::new(at(number), at(number + 1)).unwrap()).collect()
}

/// What has to be published of `view`.
pub(crate) fn wanted(view: &ViewId) -> Vec<Interval> {
    intervals(minutes_of(view))
}

/// The views that `view` reads the state of.
pub(crate) fn parents(view: &ViewId) -> Vec<ViewId> {
    let reads = READS.iter().find(|(name, _)| *name == view.to_string()).unwrap().1;
    reads.iter().map(|read| view_id(read)).collect()
}

/// What a slice of `view` holds, given the slices of its parents.
pub(crate) fn content(view: &ViewId, interval: Interval, parents: &[String]) -> String {
    format!("{:016x}{:016x}", hash(&format!("{view} {interval}")), hash(&parents.join(" ")))
}

/// What a slice of `view` holds in a world without faults: each parent's newest interval that ends with it or earlier.
pub(crate) fn reference(view: &ViewId, interval: Interval) -> String {
    let parents: Vec<String> = parents(view)
        .iter()
        .map(|parent| {
            let newest = wanted(parent).into_iter().filter(|known| known.end() <= interval.end()).max();
            newest.map(|newest| reference(parent, newest)).unwrap_or_default()
        })
        .collect();
    content(view, interval, &parents)
}
