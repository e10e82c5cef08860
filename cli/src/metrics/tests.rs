//! The text reads back as what was told, the page and the rules speak of metrics that there are.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::TimeDelta;
use tidegate_registry::drill::ProvenRestore;
use tidegate_registry::figures::RestoreFigure;
use tidegate_registry::firing::FiringState;
use tidegate_registry::ids::DrillId;
use tidegate_registry::restore::{Hold, HoldPolicy};
use tidegate_registry::run::RunState;
use tidegate_registry::time::Interval;

use super::*;

/// Reads the text as a scraper does: series and values, by name and labels as written.
fn parsed(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let mut declared: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let (word, rest) = rest.split_once(' ').unwrap();
            let (name, rest) = rest.split_once(' ').unwrap();
            match word {
                "HELP" => assert!(!rest.is_empty(), "{line}"),
                "TYPE" => declared.push((name.to_owned(), rest.to_owned())),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap();
        let name = key.split('{').next().unwrap();
        let (family, kind) = declared.last().unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"].map(|end| format!("{family}{end}"));
        assert!(name == family || (kind == "histogram" && of_histogram.contains(&name.to_owned())), "{line}");
        assert!(series.insert(key.to_owned(), value.parse().unwrap()).is_none(), "{line} is told twice");
    }
    let names: Vec<&str> = declared.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, METRICS.iter().map(|metric| metric.name).collect::<Vec<_>>());
    series
}

fn now() -> Instant {
    "2026-03-09T12:00:00Z".parse().unwrap()
}

/// The example project, of which one view was published an hour ago and is held.
fn facts(project: &Project) -> Facts<'_> {
    let held: ViewId = "carrier_delays@v1".parse().unwrap();
    let newest = Interval::new(now() - TimeDelta::hours(25), now() - TimeDelta::hours(1)).unwrap();
    let took = |secs| RestoreFigure { took: Some(Duration::from_secs(secs)), passed: Some(true), under_way: None };
    let hold = Hold {
        view: held.clone(),
        policy: HoldPolicy::SkipRuns,
        actor: "ana".to_owned(),
        reason: "odd".to_owned(),
        placed_at: now() - TimeDelta::hours(30),
        restore: None,
        fingerprint: None,
    };
    let proven: ViewId = "carrier_delays@v1".parse().unwrap();
    let restore = ProvenRestore { drill: DrillId::generate(), at: now(), took_ms: 1_500 };
    Facts {
        revision: 3,
        project,
        now: now(),
        figures: Figures {
            runs_open: vec![(RunState::Waiting, 2)],
            runs_ended: vec![(RunState::Blocked, 1)],
            deliveries_due: 4,
            deliveries_given_up: 1,
            restores: vec![
                took(1),
                took(7),
                RestoreFigure { passed: Some(false), ..took(400) },
                RestoreFigure { passed: None, ..took(3) },
                RestoreFigure { took: None, passed: None, under_way: Some(Duration::from_secs(301)) },
                RestoreFigure { took: None, passed: None, under_way: Some(Duration::from_secs(2)) },
            ],
            approvals_waiting: 1,
            firings: vec![(FiringState::Stopped, 1)],
        },
        states: [(held, ViewState { newest: Some(newest), ..ViewState::default() })].into_iter().collect(),
        proven: [(proven, Proven { restore: Some(restore), failed: None })].into_iter().collect(),
        holds: Holds { revision: 1, holds: vec![hold] },
        switched: 0,
        queues: vec![QueueState { queue: "default".parse().unwrap(), waiting: 3, running: 1 }],
        pools: vec![PoolState { name: "slow".parse().unwrap(), slots: 2, used: 1, waiting: 0 }],
        workers: (2, 1),
        roles: vec![("scheduler", Duration::from_millis(500))],
    }
}

fn example() -> Project {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("dags");
    tidegate_registry::definitions::load(&root, &Default::default()).project.unwrap()
}

#[test]
fn what_is_told_reads_back() {
    let project = example();
    let series = parsed(&render(&facts(&project)));
    for (key, value) in [
        ("tidegate_definitions_revision", 3.0),
        (
            "tidegate_views{state=\"held\"}",
            (1 + project.descendants_of(&["carrier_delays@v1".parse().unwrap()]).len()) as f64,
        ),
        ("tidegate_view_age_seconds{view=\"carrier_delays@v1\"}", 3_600.0),
        ("tidegate_role_turned_seconds{role=\"scheduler\"}", 0.5),
        ("tidegate_workers{state=\"active\"}", 2.0),
        ("tidegate_runs{state=\"waiting\"}", 2.0),
        ("tidegate_runs_ended_last_day{state=\"blocked\"}", 1.0),
        ("tidegate_queue_tasks{queue=\"default\",state=\"waiting\"}", 3.0),
        ("tidegate_pool_slots_used{pool=\"slow\"}", 1.0),
        ("tidegate_outbox_deliveries{state=\"given_up\"}", 1.0),
        ("tidegate_hold_age_seconds{view=\"carrier_delays@v1\"}", 108_000.0),
        ("tidegate_restores_total{outcome=\"as_promised\"}", 2.0),
        ("tidegate_restores_total{outcome=\"not_as_promised\"}", 1.0),
        ("tidegate_restores_total{outcome=\"not_compared\"}", 1.0),
        ("tidegate_restore_duration_seconds_bucket{le=\"1\"}", 1.0),
        ("tidegate_restore_duration_seconds_bucket{le=\"5\"}", 2.0),
        ("tidegate_restore_duration_seconds_bucket{le=\"300\"}", 3.0),
        ("tidegate_restore_duration_seconds_bucket{le=\"+Inf\"}", 4.0),
        ("tidegate_restore_duration_seconds_count", 4.0),
        ("tidegate_restore_duration_seconds_sum", 411.0),
        ("tidegate_restores_pending", 2.0),
        ("tidegate_restores_stalled", 1.0),
        ("tidegate_restore_pending_seconds", 301.0),
        ("tidegate_view_restore_proven_seconds{view=\"carrier_delays@v1\"}", 1.5),
        ("tidegate_triggered_recipes{state=\"stopped\"}", 1.0),
    ] {
        assert_eq!(series.get(key), Some(&value), "{key}");
    }
    let states: f64 = series.iter().filter(|(key, _)| key.starts_with("tidegate_views{")).map(|(_, count)| count).sum();
    assert_eq!(states, project.views.len() as f64, "every view is in one state");
    assert_eq!(series.keys().filter(|key| key.starts_with("tidegate_view_age_seconds")).count(), 1);
}

#[test]
fn many_views_are_told_of_in_sum() {
    let mut project = example();
    let one = project.views.values().next().unwrap().clone();
    for version in 100..=u32::try_from(VIEWS_MAX).unwrap() + 100 {
        let id: ViewId = format!("many@v{version}").parse().unwrap();
        project.views.insert(id.clone(), tidegate_registry::model::FeatureView { id, ..one.clone() });
    }
    let series = parsed(&render(&facts(&project)));
    assert!(!series.keys().any(|key| key.starts_with("tidegate_view_")));
    assert!(series.len() < 100, "{}", series.len());
}

#[test]
fn values_of_labels_cannot_break_out() {
    let mut text = Text::default();
    text.family(&BUILD).sample(&["a\"b\\c\nd"], 1.0);
    assert!(text.text.ends_with("tidegate_build_info{version=\"a\\\"b\\\\c\\nd\"} 1\n"), "{}", text.text);
}

const TABLE: &str = "| metric | type | labels | what it means |";

#[test]
fn the_page_lists_what_there_is() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/metrics.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let mut table = format!("{TABLE}\n|---|---|---|---|\n");
    for Metric { name, kind, labels, help } in METRICS {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        table.push_str(&format!("| `{name}` | {} | {} | {help} |\n", kind.as_str(), labels.join(", ")));
    }
    let (before, rest) = text.split_once(TABLE).unwrap();
    let after = rest.split_once("\n\n").unwrap().1;
    let wanted = format!("{before}{table}\n{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&page, &wanted).unwrap();
    } else {
        assert!(text == wanted, "run this with UPDATE_DOCS=1");
    }
}

#[test]
fn alerts_watch_metrics_that_there_are() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("infra/prometheus/tidegate.rules.yaml");
    let text = std::fs::read_to_string(rules).unwrap();
    let mut seen = 0;
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        for word in line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            if word.starts_with("tidegate_") {
                assert!(METRICS.iter().any(|metric| word == metric.name), "{word}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 8, "{seen}");
}
