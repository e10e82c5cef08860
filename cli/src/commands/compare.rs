//! `tidegate compare`: how far a view agrees with another version of it, with the table of an old pipeline, or online.

mod online;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use chrono_tz::Tz;
use serde::Serialize;
use serde_json::{Map, Value};
use tidegate_registry::definitions::Settings;
use tidegate_registry::ids::{SourceName, ViewId};
use tidegate_registry::model::FeatureView;
use tidegate_registry::time::format_instant;
use tidegate_worker::compare::{
    CompareError, CompareRequest, Comparison, FeatureAgreement, Missing, Span, Tolerance, ValueExample, With, compare,
};
use tidegate_worker::engine::Engine;

use crate::commands::dataset;
use crate::commands::preview::{Scratch, plain};
use crate::commands::snapshots::diff::{MASKED, PII, entity, rounded};
use crate::context::{Context, Registry};
use crate::error::{Exit, UserError, did_you_mean};
use crate::output::{grid, labelled, percent};
use crate::progress::{Counter, note};
use crate::select;
use crate::times::TimeArgument;

/// Compare a view with another version of it, with an old pipeline's table, or with the online store
///
/// Feature by feature, over rows that are found by the view's keys. Exit code 1 when a feature agrees less than
/// `--min-agreement`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The view: a name (its highest version) or name@vN
    view: String,
    /// Another view (name@vN), a source of the project, a Parquet or CSV file, a folder of such, a Delta table; or: online
    #[arg(long, value_name = "VIEW|TABLE|online")]
    with: String,
    /// Compare what is known of every entity at this instant [default: the newest that is published]; without offset UTC
    #[arg(long, value_name = "TIME", conflicts_with_all = ["from", "to"])]
    at: Option<TimeArgument>,
    /// Compare whole histories, from this time on: ends of intervals, or with a table event_timestamp
    #[arg(long, value_name = "TIME")]
    from: Option<TimeArgument>,
    /// Compare whole histories, before this time
    #[arg(long, value_name = "TIME")]
    to: Option<TimeArgument>,
    /// The table's column that says when [default for histories: event_timestamp]
    #[arg(long, value_name = "COLUMN")]
    event_timestamp: Option<String>,
    /// Only these features
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    features: Vec<String>,
    /// What columns of the other side are called in the view
    #[arg(long, value_name = "THEIRS=OURS,…", value_delimiter = ',', value_parser = renaming)]
    columns: Vec<(String, String)>,
    /// How far apart numbers may be and still agree: 0.001 is absolute, 0.1% a share of the larger one
    #[arg(long, value_name = "X", default_value = "0")]
    tolerance: Tolerance,
    /// Count only rows that both sides have; otherwise a row that one side lacks agrees in nothing
    #[arg(long)]
    common_only: bool,
    /// Fail unless every feature agrees in so many per cent of the rows
    #[arg(long, value_name = "PERCENT", value_parser = percentage)]
    min_agreement: Option<f64>,
    /// Show at most this many examples of each kind
    #[arg(long, default_value_t = 3, value_name = "N")]
    limit: usize,
    /// Show the values of features tagged `pii`, too
    #[arg(long)]
    reveal: bool,
}

fn renaming(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((theirs, ours)) if !theirs.trim().is_empty() && !ours.trim().is_empty() => {
            Ok((theirs.trim().to_owned(), ours.trim().to_owned()))
        }
        _ => Err("expected THEIRS=OURS, as in delay_mean=avg_dep_delay_7d".to_owned()),
    }
}

fn percentage(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim().parse().ok();
    number.filter(|number| (0.0..=100.0).contains(number)).ok_or_else(|| "expected 0 to 100, as in 99.9".to_owned())
}

/// Runs the command.
///
/// # Errors
/// When there is no such view or table, the two cannot be compared, or the registry, the lake or the online store cannot be
/// read.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let settings = context.settings()?;
    let view = select::view(&registry.project, &arguments.view)?.clone();
    let missing = if arguments.common_only { Missing::Ignored } else { Missing::Disagrees };
    let (with, found) = if arguments.with == "online" {
        online::compare(&view, &arguments, &registry, context).await?
    } else {
        let with = with(&arguments.with, &registry)?;
        let name = match &with {
            With::View(id) => id.to_string(),
            With::Source(name) => format!("source {name}"),
            With::Place(_) => arguments.with.clone(),
        };
        (name, compared(&view.id, with, &arguments, &registry, &settings).await?)
    };
    if found.both + found.only_ours + found.only_theirs == 0 {
        let error = UserError::new(match found.span {
            Span::AsOf(None) => format!("there is nothing to compare: `{}` has no row that still counts", view.id),
            span => format!("there is nothing to compare: neither side has a row ({span})"),
        });
        return Err(error.hint("choose another time with `--at`, or `--from` and `--to`").into());
    }
    let report = Report::new(&view, with, &found, missing, &arguments);
    if context.output.is_json() {
        context.output.json(&report)?;
    } else {
        context.output.text(report.text())?;
    }
    Ok(verdict(&report, arguments.min_agreement))
}

fn verdict(report: &Report, least: Option<f64>) -> Exit {
    let Some(least) = least else { return Exit::Done };
    // Rows that only one side has leave nothing to count with `--common-only`: that agrees in nothing.
    let low: Vec<String> = report
        .features
        .iter()
        .filter(|feature| feature.agreement.unwrap_or_default() < least)
        .map(|feature| format!("`{}` {}", feature.feature, percent(feature.agreement)))
        .collect();
    if low.is_empty() {
        return Exit::Done;
    }
    note(format!("less than {least} % agree of {}", low.join(", ")));
    Exit::Wrong
}

/// What `--with` means: a view, a source, else a place.
fn with(text: &str, registry: &Registry) -> anyhow::Result<With> {
    let project = &registry.project;
    if let Ok(id) = text.parse::<ViewId>() {
        return Ok(With::View(select::view(project, &id.to_string())?.id.clone()));
    }
    if let Ok(name) = SourceName::new(text) {
        if let Some(source) = project.sources.keys().find(|source| **source == name) {
            return Ok(With::Source(source.clone()));
        }
        if project.views.keys().any(|id| id.name.as_str() == text) {
            return Ok(With::View(select::view(project, text)?.id.clone()));
        }
        if !Path::new(text).exists() {
            let known =
                project.views.keys().map(|id| id.name.as_str()).chain(project.sources.keys().map(SourceName::as_str));
            let error = UserError::new(format!("there is no view, source or file `{text}`"));
            let hint = did_you_mean(text, known.chain(["online"]));
            return Err(error
                .hint(hint.unwrap_or_else(|| {
                    "`tidegate views list` and `tidegate sources list` show what there is".to_owned()
                }))
                .into());
        }
    }
    Ok(With::Place(dataset::here(text)?))
}

async fn compared(
    view: &ViewId,
    with: With,
    arguments: &Arguments,
    registry: &Registry,
    settings: &Settings,
) -> anyhow::Result<Comparison> {
    let instant = |time: Option<TimeArgument>| time.map(|time| time.in_zone(Tz::UTC));
    let span = match (arguments.from, arguments.to) {
        (None, None) => Span::AsOf(instant(arguments.at)),
        (from, to) => Span::History(instant(from), instant(to)),
    };
    let now = registry.clock.now();
    let request = CompareRequest {
        project: Arc::new(registry.project.clone()),
        view: view.clone(),
        with,
        span,
        features: arguments.features.clone(),
        renamed: arguments.columns.clone(),
        their_time: arguments.event_timestamp.clone(),
        tolerance: arguments.tolerance,
        examples: arguments.limit,
        number: registry.store.number_at(now).await.context("looking up what is published")?,
    };
    let parts = dataset::parts(settings, registry)?;
    let scratch = Scratch::new();
    let engine = Arc::new(Engine::new(settings.memory_bytes, &scratch.0)?);
    let mut counter = Counter::start("rows compared");
    let working = Arc::clone(&engine);
    let comparing = async move { compare(&working, &parts, &request, &mut |rows| counter.set(rows)).await };
    engine.run(comparing).await?.map_err(|error| match error {
        CompareError::Wrong { message, hint } => UserError::new(message).hint(hint).into(),
        CompareError::Failed(error) => error,
    })
}

#[derive(Debug, Serialize)]
struct Report {
    view: String,
    with: String,
    /// The instant; of histories `null`.
    at: Option<String>,
    /// Of histories.
    from: Option<String>,
    to: Option<String>,
    rows_both: u64,
    rows_only_view: u64,
    rows_only_other: u64,
    /// Per cent of the values that agree; `null` when there are none.
    agreement: Option<f64>,
    /// Per cent of the rows that agree in every feature.
    entity_agreement: Option<f64>,
    features: Vec<FeatureReport>,
    features_only_view: Vec<String>,
    features_only_other: Vec<String>,
    examples_only_view: Vec<Map<String, Value>>,
    examples_only_other: Vec<Map<String, Value>>,
}

#[derive(Debug, Serialize)]
struct FeatureReport {
    feature: String,
    other: String,
    equal: u64,
    different: u64,
    null_view: u64,
    null_other: u64,
    /// Per cent of the rows in which it agrees.
    agreement: Option<f64>,
    largest_difference: Option<f64>,
    mean_difference: Option<f64>,
    examples: Vec<ExampleReport>,
}

#[derive(Debug, Serialize)]
struct ExampleReport {
    entity: Map<String, Value>,
    view: Value,
    other: Value,
}

impl Report {
    fn new(view: &FeatureView, with: String, found: &Comparison, missing: Missing, arguments: &Arguments) -> Self {
        let (at, from, to) = match found.span {
            Span::AsOf(at) => (at, None, None),
            Span::History(from, to) => (None, from, to),
        };
        let is_masked = |name: &str| {
            let feature = view.features.iter().find(|feature| feature.name == name);
            !arguments.reveal && feature.is_some_and(|feature| feature.tags.iter().any(|tag| tag == PII))
        };
        let feature = |feature: &FeatureAgreement| {
            FeatureReport::new(feature, found.agreement_of(feature, missing), is_masked(&feature.name))
        };
        Self {
            view: view.id.to_string(),
            with,
            at: at.map(format_instant),
            from: from.map(format_instant),
            to: to.map(format_instant),
            rows_both: found.both,
            rows_only_view: found.only_ours,
            rows_only_other: found.only_theirs,
            agreement: found.agreement(missing),
            entity_agreement: found.entity_agreement(missing),
            features: found.features.iter().map(feature).collect(),
            features_only_view: found.features_only_ours.clone(),
            features_only_other: found.features_only_theirs.clone(),
            examples_only_view: found.examples_only_ours.clone(),
            examples_only_other: found.examples_only_theirs.clone(),
        }
    }

    fn text(&self) -> String {
        let or_end = |time: &Option<String>, end: &str| time.clone().unwrap_or_else(|| end.to_owned());
        let history = format!("{} to {}", or_end(&self.from, "the first"), or_end(&self.to, "the last"));
        let entities = |entities: &[Map<String, Value>]| entities.iter().map(entity).collect::<Vec<_>>().join("\n");
        let mut text = labelled(&[
            ("view", self.view.clone()),
            ("with", self.with.clone()),
            ("as of", self.at.clone().unwrap_or_default()),
            ("history", if self.from.is_some() || self.to.is_some() { history } else { String::new() }),
            (
                "rows",
                format!(
                    "{} in both, {} only in the view, {} only in the other",
                    self.rows_both, self.rows_only_view, self.rows_only_other
                ),
            ),
            (
                "agreement",
                format!(
                    "{} of the values, {} of the rows in all features",
                    percent(self.agreement),
                    percent(self.entity_agreement)
                ),
            ),
            ("only in the view", entities(&self.examples_only_view)),
            ("only in the other", entities(&self.examples_only_other)),
            ("not in the other", self.features_only_view.join(", ")),
            ("not in the view", self.features_only_other.join(", ")),
        ]);
        let headings =
            ["FEATURE", "EQUAL", "DIFFERENT", "NULL IN VIEW", "NULL IN OTHER", "LARGEST", "MEAN", "AGREEMENT"];
        text.push('\n');
        text.push_str(&grid(&headings, self.features.iter().map(FeatureReport::cells)));
        let examples: Vec<Vec<String>> = self.features.iter().flat_map(FeatureReport::example_cells).collect();
        if !examples.is_empty() {
            text.push('\n');
            text.push_str(&grid(&["FEATURE", "ENTITY", "VIEW", "OTHER"], examples));
        }
        text
    }
}

impl FeatureReport {
    fn new(found: &FeatureAgreement, agreement: Option<f64>, masked: bool) -> Self {
        let shown = |value: &Value| match value {
            Value::Null => Value::Null,
            _ if masked => Value::from(MASKED),
            value => value.clone(),
        };
        let example = |example: &ValueExample| ExampleReport {
            entity: example.entity.clone(),
            view: shown(&example.ours),
            other: shown(&example.theirs),
        };
        Self {
            feature: found.name.clone(),
            other: found.theirs.clone(),
            equal: found.equal,
            different: found.different,
            null_view: found.null_ours,
            null_other: found.null_theirs,
            agreement,
            largest_difference: found.distance.map(|distance| distance.largest),
            mean_difference: found.distance.map(|distance| distance.mean),
            examples: found.examples.iter().map(example).collect(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), rounded);
        let name = if self.feature == self.other {
            self.feature.clone()
        } else {
            format!("{} ({})", self.feature, self.other)
        };
        vec![
            name,
            self.equal.to_string(),
            self.different.to_string(),
            self.null_view.to_string(),
            self.null_other.to_string(),
            number(self.largest_difference),
            number(self.mean_difference),
            percent(self.agreement),
        ]
    }

    fn example_cells(&self) -> impl Iterator<Item = Vec<String>> {
        self.examples.iter().map(|example| {
            vec![self.feature.clone(), entity(&example.entity), plain(&example.view), plain(&example.other)]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_shares_are_read_as_people_write_them() {
        assert_eq!(renaming(" a = b "), Ok(("a".to_owned(), "b".to_owned())));
        assert!(["a", "=b", "a="].iter().all(|text| renaming(text).is_err()));
        assert_eq!(percentage("99.9 %"), Ok(99.9));
        assert!(["101", "-1", "x", "nan"].iter().all(|text| percentage(text).is_err()));
    }
}
