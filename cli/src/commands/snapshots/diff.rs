//! `tidegate snapshots diff`: which entities differ between two snapshots, and how far their features moved.

use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Map, Value};
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::FeatureView;
use tidegate_registry::store::Snapshot;
use tidegate_registry::time::format_instant;
use tidegate_worker::engine::Engine;
use tidegate_worker::serving::{Example, FeatureDiff, StateDiff, ViewState, compare_states};

use super::find;
use crate::commands::preview::{Scratch, plain};
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError};
use crate::output::{grid, labelled};
use crate::select;

/// The tag of features whose values are not for everybody.
pub(crate) const PII: &str = "pii";
/// What is shown in their place.
pub(crate) const MASKED: &str = "(masked)";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The earlier snapshot: its id, or its beginning
    a: String,
    /// The later snapshot: its id, or its beginning
    b: String,
    /// Only this view: a name (its highest version) or name@vN; also when only one of the snapshots has it
    #[arg(long)]
    view: Option<String>,
    /// Show at most this many entities of each kind
    #[arg(long, default_value_t = 5, value_name = "N")]
    limit: usize,
    /// Show the values of features tagged `pii`, too
    #[arg(long)]
    reveal: bool,
}

/// Runs the command.
///
/// # Errors
/// When there is no such snapshot or view, or what it was can no longer be read.
pub(super) async fn run(arguments: &Arguments, registry: &Registry, context: &Context) -> anyhow::Result<Exit> {
    let snapshots = [find(&*registry.store, &arguments.a).await?, find(&*registry.store, &arguments.b).await?];
    let settings = context.settings()?;
    let scratch = Scratch::new();
    let engine = Arc::new(Engine::new(settings.memory_bytes, &scratch.0)?);
    let lake = engine::lake(&settings)?;
    let project = Arc::new(registry.project.clone());
    let mut views = Vec::new();
    for view in views_of(&snapshots, arguments.view.as_deref(), registry)? {
        let definition = project.views.get(&view).with_context(|| format!("`{view}` is not defined"))?;
        let mut states = [None, None];
        for (state, snapshot) in states.iter_mut().zip(&snapshots) {
            let then = registry.store.as_of(&view, snapshot.number).await?;
            if then.expired {
                return Err(UserError::new(format!("what `{view}` was at snapshot {} has expired", snapshot.id))
                    .hint("retention let go of it; `tidegate snapshots pin` keeps others")
                    .into());
            }
            *state = ViewState::of(&then);
        }
        let intervals = [0, 1].map(|side: usize| states[side].as_ref().map(Side::of));
        let found = compare_states(&engine, &lake, &project, &view, states, arguments.limit).await;
        let found = found.with_context(|| format!("comparing `{view}`"))?;
        views.push(ViewReport::new(definition, intervals, found, arguments.reveal));
    }
    let [a, b] = snapshots.map(|snapshot| snapshot.id.to_string());
    let report = Report { a, b, views };
    if context.output.is_json() {
        context.output.json(&report)?;
    } else {
        context.output.text(report.text())?;
    }
    Ok(Exit::Done)
}

/// The view that is asked for, or those that both snapshots have.
fn views_of(snapshots: &[Snapshot; 2], asked: Option<&str>, registry: &Registry) -> anyhow::Result<Vec<ViewId>> {
    if let Some(name) = asked {
        return Ok(vec![select::view(&registry.project, name)?.id.clone()]);
    }
    let [a, b] = snapshots;
    let in_both = a.views.iter().filter(|of_view| b.views.iter().any(|other| other.view == of_view.view));
    let views: Vec<ViewId> = in_both.map(|of_view| of_view.view.clone()).collect();
    let Some(gone) = views.iter().find(|view| !registry.project.views.contains_key(*view)) else {
        if views.is_empty() {
            return Err(UserError::new("the two snapshots have no view in common")
                .hint("`--view VIEW` compares what a view was at either")
                .into());
        }
        return Ok(views);
    };
    Err(UserError::new(format!("`{gone}` is no longer defined")).hint("name another view with `--view`").into())
}

#[derive(Debug, Serialize)]
struct Report {
    a: String,
    b: String,
    views: Vec<ViewReport>,
}

#[derive(Debug, Serialize)]
struct ViewReport {
    view: String,
    before: Option<Side>,
    after: Option<Side>,
    added: u64,
    removed: u64,
    changed: u64,
    /// `null` when that was found without reading them: then nothing differs.
    unchanged: Option<u64>,
    /// Whether rows were read.
    read: bool,
    features: Vec<FeatureReport>,
    examples_added: Vec<Map<String, Value>>,
    examples_removed: Vec<Map<String, Value>>,
}

/// What a view was.
#[derive(Debug, Serialize)]
struct Side {
    snapshot: String,
    interval_start: String,
    interval_end: String,
    delta_version: u64,
}

impl Side {
    fn of(state: &ViewState) -> Self {
        Self {
            snapshot: state.newest.snapshot.to_string(),
            interval_start: format_instant(state.newest.interval.start()),
            interval_end: format_instant(state.newest.interval.end()),
            delta_version: state.version,
        }
    }
}

#[derive(Debug, Serialize)]
struct FeatureReport {
    feature: String,
    changed: u64,
    to_null: u64,
    from_null: u64,
    /// How many moved from one finite number to another; `null` when none did.
    moved: Option<u64>,
    mean_absolute: Option<f64>,
    max_absolute: Option<f64>,
    mean_relative: Option<f64>,
    max_relative: Option<f64>,
    examples: Vec<ExampleReport>,
}

#[derive(Debug, Serialize)]
struct ExampleReport {
    entity: Map<String, Value>,
    before: Value,
    after: Value,
}

impl ViewReport {
    fn new(view: &FeatureView, sides: [Option<Side>; 2], found: StateDiff, reveal: bool) -> Self {
        let is_masked = |name: &str| {
            let feature = view.features.iter().find(|feature| feature.name == name);
            !reveal && feature.is_some_and(|feature| feature.tags.iter().any(|tag| tag == PII))
        };
        let [before, after] = sides;
        let features = found.features.into_iter().map(|feature| {
            let masked = is_masked(&feature.name);
            FeatureReport::new(feature, masked)
        });
        Self {
            view: view.id.to_string(),
            before,
            after,
            added: found.added,
            removed: found.removed,
            changed: found.changed,
            unchanged: found.unchanged,
            read: found.was_read,
            features: features.collect(),
            examples_added: found.examples_added,
            examples_removed: found.examples_removed,
        }
    }

    fn text(&self) -> String {
        let until = |side: &Option<Side>| match side {
            Some(side) => format!("{} (snapshot {})", side.interval_end, side.snapshot),
            None => "nothing".to_owned(),
        };
        let unchanged = match self.unchanged {
            Some(unchanged) => format!(", {unchanged} the same"),
            None => ": the same without looking at them".to_owned(),
        };
        let mut text = labelled(&[
            ("view", self.view.clone()),
            ("before", format!("until {}", until(&self.before))),
            ("after", format!("until {}", until(&self.after))),
            (
                "entities",
                format!("{} added, {} removed, {} changed{unchanged}", self.added, self.removed, self.changed),
            ),
            ("added", entities(&self.examples_added)),
            ("removed", entities(&self.examples_removed)),
        ]);
        if !self.features.is_empty() {
            let headings =
                ["FEATURE", "CHANGED", "TO NULL", "FROM NULL", "MEAN CHANGE", "MAX", "MEAN REL", "MAX REL", "AS IN"];
            text.push('\n');
            text.push_str(&grid(&headings, self.features.iter().map(FeatureReport::cells)));
        }
        text
    }
}

impl Report {
    fn text(&self) -> String {
        self.views.iter().map(|view| view.text().trim_end().to_owned()).collect::<Vec<_>>().join("\n\n")
    }
}

impl FeatureReport {
    fn new(found: FeatureDiff, masked: bool) -> Self {
        let shown = |value: Value| match value {
            Value::Null => Value::Null,
            _ if masked => Value::from(MASKED),
            value => value,
        };
        let example =
            |Example { entity, before, after }| ExampleReport { entity, before: shown(before), after: shown(after) };
        let moved = found.numbers;
        Self {
            feature: found.name,
            changed: found.changed,
            to_null: found.to_null,
            from_null: found.from_null,
            moved: moved.map(|moved| moved.count),
            mean_absolute: moved.map(|moved| moved.mean_absolute),
            max_absolute: moved.map(|moved| moved.max_absolute),
            mean_relative: moved.and_then(|moved| moved.mean_relative),
            max_relative: moved.and_then(|moved| moved.max_relative),
            examples: found.examples.into_iter().map(example).collect(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), rounded);
        let percent = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |n| format!("{:.1} %", n * 100.0));
        let example = self.examples.first().map_or_else(String::new, |example| {
            format!("{}: {} → {}", entity(&example.entity), plain(&example.before), plain(&example.after))
        });
        vec![
            self.feature.clone(),
            self.changed.to_string(),
            self.to_null.to_string(),
            self.from_null.to_string(),
            number(self.mean_absolute),
            number(self.max_absolute),
            percent(self.mean_relative),
            percent(self.max_relative),
            example,
        ]
    }
}

/// Four digits that count.
pub(crate) fn rounded(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let digits = (3 - number.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{number:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

pub(crate) fn entity(keys: &Map<String, Value>) -> String {
    keys.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect::<Vec<_>>().join(" ")
}

fn entities(examples: &[Map<String, Value>]) -> String {
    examples.iter().map(entity).collect::<Vec<_>>().join("\n")
}
