//! The example project keeps showing what it is there to show. (That nothing is wrong with it stands in
//! `definitions.rs`; that its numbers are right, in `tests/oracle/`.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tidegate_registry::dataset::ColumnNames;
use tidegate_registry::definitions::settings::SettingKey;
use tidegate_registry::definitions::{LoadOptions, load};
use tidegate_registry::diagnostics::{RenderStyle, render};
use tidegate_registry::model::{FeatureView, Output, Project, Table};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dags")
}

fn example() -> Project {
    let loaded = load(&root(), &LoadOptions::default());
    let findings = render(&loaded.diagnostics, &loaded.files, RenderStyle::default());
    loaded.project.unwrap_or_else(|| panic!("{findings}"))
}

fn reads(view: &FeatureView, wanted: impl Fn(&Table) -> bool) -> bool {
    view.reads.iter().any(|read| wanted(&read.table))
}

#[test]
fn it_shows_every_kind_of_view() {
    let project = example();
    let views: Vec<_> = project.views.values().collect();
    let partial = |view: &FeatureView| matches!(view.output, Output::Partial { .. });

    assert!(views.len() >= 6);
    for days in ["1 day'", "7 days'", "30 days'"] {
        assert!(views.iter().any(|view| view.sql.text.contains(&format!("INTERVAL '{days}"))), "no window of {days}");
    }
    assert!(views.iter().any(|view| reads(view, |table| matches!(table, Table::State(_)))), "no reader of a state");
    assert!(views.iter().any(|view| reads(view, |table| matches!(table, Table::History(_)))), "no reader of a history");
    assert!(views.iter().any(|view| project.keys_of(view).len() == 2), "no composite key");
    assert!(views.iter().any(|view| view.source_reads().count() == 2), "no join of two sources");
    assert!(views.iter().any(|view| partial(view)), "no partial view");
    assert!(views.iter().any(|view| view.online.is_none()), "none that is kept in the lake only");
    for view in views {
        assert!(!view.checks.is_empty(), "{} has no checks", view.id);
        assert!(view.freshness.is_some(), "{} has no freshness", view.id);
        assert!(project.dag_of(&view.id).is_some(), "{} is in no DAG", view.id);
    }
}

#[test]
fn nights_may_overlap_and_hours_may_not() {
    let project = example();
    let in_order: Vec<_> = project.dags.values().map(|dag| (dag.name.as_str(), dag.in_order)).collect();
    assert_eq!(in_order, [("flights_daily", false), ("flights_hourly", true), ("flights_scoring", false)]);
    assert!(project.dags.values().all(|dag| dag.schedule.end.is_some()), "a schedule has no end");
}

#[test]
fn a_model_is_trained_and_scored_with_the_same_features() {
    let project = example();
    let model = project.feature_services.values().next().unwrap();
    let scored = project.views.values().find(|view| view.id.name.as_str() == "connection_scores").unwrap();
    let columns: Vec<_> = model.features.columns(ColumnNames::Full).unwrap();
    assert!(columns.iter().map(|(name, ..)| name).eq(scored.features.iter().map(|feature| &feature.name)));
    assert!(model.features.views.len() >= 3);
    let whole = project.keys_of(scored).len();
    assert!(model.features.views.keys().all(|view| project.keys_of(&project.views[view]).len() < whole));
    assert_eq!(project.consumers.len(), 2);
}

#[test]
fn without_an_online_store_it_is_the_same_project() {
    let flags = BTreeMap::from([(SettingKey::Online, "none".to_owned())]);
    let loaded = load(&root(), &LoadOptions { flags, ..LoadOptions::default() });
    assert_eq!(loaded.diagnostics, []);
    assert_eq!(loaded.settings.map(|settings| settings.online), Some(Vec::new()));
    assert_eq!(loaded.project, Some(example()));
}

#[test]
fn it_is_small_enough_to_travel_in_the_binary() -> std::io::Result<()> {
    let bytes = size_of(&root().join("data"))? + size_of(&root().join("bad"))?;
    assert!(bytes <= 2_500_000, "data and bad are {bytes} bytes");
    Ok(())
}

fn size_of(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size_of(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
