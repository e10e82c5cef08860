//! `tidegate profile`: what was found out about the rows of a view, and how they differ from others.

use indexmap::IndexMap;
use serde::Serialize;
use tidegate_quality::drift::{self, NotComparable};
use tidegate_registry::model::FeatureView;
use tidegate_registry::profile::{ColumnProfile, ViewProfile};
use tidegate_registry::store::{Recorded, Store};
use tidegate_registry::time::{Instant, format_instant};

use super::snapshots;
use crate::context::Context;
use crate::error::{Exit, UserError};
use crate::output::Row;
use crate::progress::note;
use crate::select;

/// Show what a run found out about each column of a view, or compare two runs
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The view: a name (its highest version) or name@vN
    view: String,
    /// The snapshot whose rows are meant, by its id or the beginning of it [default: that of the newest interval]
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Compare with the rows of this snapshot
    #[arg(long, value_name = "SNAPSHOT")]
    against: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When the registry cannot be read, there is no such view or snapshot, or nothing of the view is published.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let registry = context.registry().await?;
    let (store, view) = (&*registry.store, select::view(&registry.project, &arguments.view)?);
    let now = match &arguments.snapshot {
        Some(snapshot) => recorded_in(store, snapshot, view).await?,
        None => newest(store, view).await?,
    };
    let Some(against) = &arguments.against else {
        show(&now, view, context)?;
        return Ok(Exit::Done);
    };
    let before = recorded_in(store, against, view).await?;
    compare(&now, &before, view, context)?;
    Ok(Exit::Done)
}

async fn newest(store: &dyn Store, view: &FeatureView) -> anyhow::Result<Recorded> {
    let recorded = store.recorded(&view.id, Instant::MAX_UTC, None, 1).await?;
    let none = || UserError::new(format!("nothing of `{}` is published yet", view.id));
    Ok(recorded.into_iter().next().ok_or_else(none)?)
}

async fn recorded_in(store: &dyn Store, snapshot: &str, view: &FeatureView) -> anyhow::Result<Recorded> {
    let snapshot = snapshots::find(store, snapshot).await?;
    Ok(store.recorded_in(snapshot.id, &view.id).await?)
}

#[derive(Debug, Serialize)]
struct Profiled<'a> {
    view: String,
    snapshot: String,
    interval_start: String,
    interval_end: String,
    rows: u64,
    /// Absent, as what follows, when an older version recorded it.
    bytes: Option<u64>,
    duplicate_keys: Option<u64>,
    first_event: Option<String>,
    last_event: Option<String>,
    columns: &'a IndexMap<String, ColumnProfile>,
}

impl<'a> Profiled<'a> {
    fn of(recorded: &'a Recorded, view: &FeatureView) -> Self {
        let summary = recorded.summary.as_ref();
        let event = |of: fn(&ViewProfile) -> Option<Instant>| summary.and_then(of).map(format_instant);
        Self {
            view: view.id.to_string(),
            bytes: summary.map(|summary| summary.bytes),
            duplicate_keys: summary.map(|summary| summary.duplicate_keys),
            first_event: event(|summary| summary.first_event),
            last_event: event(|summary| summary.last_event),
            snapshot: recorded.snapshot.to_string(),
            interval_start: format_instant(recorded.interval.start()),
            interval_end: format_instant(recorded.interval.end()),
            rows: recorded.rows,
            columns: &recorded.profile,
        }
    }

    fn told(&self) -> String {
        let rows = if self.rows == 1 { "1 row".to_owned() } else { format!("{} rows", self.rows) };
        let bytes = self.bytes.map_or_else(String::new, |bytes| format!(" ({bytes} bytes)"));
        let double = match self.duplicate_keys {
            None | Some(0) => String::new(),
            Some(double) => format!(", {double} with the key of another"),
        };
        let events = match (&self.first_event, &self.last_event) {
            (Some(first), Some(last)) if first == last => format!(", all as of {first}"),
            (Some(first), Some(last)) => format!(", events from {first} to {last}"),
            _ => String::new(),
        };
        format!("{rows}{bytes} of {}, snapshot {}{events}{double}", self.interval_start, self.snapshot)
    }
}

fn show(recorded: &Recorded, view: &FeatureView, context: &Context) -> anyhow::Result<()> {
    let profiled = Profiled::of(recorded, view);
    if context.output.is_json() {
        return context.output.json(&profiled);
    }
    note(profiled.told());
    let columns: Vec<_> = recorded.profile.iter().map(|(name, profile)| Column { name, profile }).collect();
    context.output.list(&columns)
}

#[derive(Debug, Serialize)]
struct Column<'a> {
    name: &'a str,
    profile: &'a ColumnProfile,
}

impl Row for Column<'_> {
    const HEADINGS: &'static [&'static str] =
        &["COLUMN", "NULLS", "DISTINCT", "MIN", "MEDIAN", "MAX", "MEAN", "STDDEV", "MOST FREQUENT"];

    fn cells(&self) -> Vec<String> {
        let profile = self.profile;
        let is_number = profile.sum.is_some();
        let of_numbers = |value: Option<f64>| value.filter(|_| is_number).map(short).unwrap_or_default();
        let frequent = profile.frequent.iter().take(3).map(|value| format!("{} ({})", value.value, value.count));
        vec![
            self.name.to_owned(),
            profile.null_rate().map(percent).unwrap_or_default(),
            profile.distinct.map(|distinct| distinct.to_string()).unwrap_or_default(),
            profile.min.clone().unwrap_or_default(),
            of_numbers(profile.quantile(0.5)),
            profile.max.clone().unwrap_or_default(),
            of_numbers(profile.mean),
            of_numbers(profile.stddev),
            match profile.true_ratio() {
                Some(ratio) => format!("true ({})", percent(ratio)),
                None => frequent.collect::<Vec<_>>().join(", "),
            },
        ]
    }
}

#[derive(Debug, Serialize)]
struct Comparison<'a> {
    snapshot: Profiled<'a>,
    against: Profiled<'a>,
    columns: Vec<Compared<'a>>,
}

fn compare(now: &Recorded, before: &Recorded, view: &FeatureView, context: &Context) -> anyhow::Result<()> {
    let columns: Vec<_> =
        now.profile.iter().filter_map(|(name, now)| Some(Compared::of(name, now, before.profile.get(name)?))).collect();
    let (snapshot, against) = (Profiled::of(now, view), Profiled::of(before, view));
    if context.output.is_json() {
        return context.output.json(&Comparison { snapshot, against, columns });
    }
    note(format!("{}, against {}", snapshot.told(), against.told()));
    context.output.list(&columns)
}

/// One column of two runs.
#[derive(Debug, Serialize)]
struct Compared<'a> {
    name: &'a str,
    #[serde(skip)]
    now: &'a ColumnProfile,
    #[serde(skip)]
    before: &'a ColumnProfile,
    /// The population stability index; absent when the columns cannot be compared.
    psi: Option<f64>,
    jensen_shannon: Option<f64>,
    /// Why there is no distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_comparable: Option<String>,
    /// The parts that differ most: what they hold, their share before, their share now.
    moved: Vec<(String, f64, f64)>,
}

impl<'a> Compared<'a> {
    fn of(name: &'a str, now: &'a ColumnProfile, before: &'a ColumnProfile) -> Self {
        let (psi, why) = match drift::psi(before, now) {
            Ok(distance) => (Some(distance), None),
            // Without any values on either side nothing has moved.
            Err(NotComparable::Empty | NotComparable::EmptyReference) if now.values() == before.values() => {
                (None, None)
            }
            Err(why) => (None, Some(why.to_string())),
        };
        let moved = psi.iter().flat_map(|distance| &distance.largest);
        Self {
            name,
            now,
            before,
            jensen_shannon: drift::jensen_shannon(before, now).ok().map(|distance| distance.value),
            not_comparable: why,
            moved: moved.map(|share| (share.bin.clone(), share.reference, share.current)).collect(),
            psi: psi.map(|distance| distance.value),
        }
    }
}

impl Row for Compared<'_> {
    const HEADINGS: &'static [&'static str] = &["COLUMN", "NULLS", "DISTINCT", "MEAN", "MEDIAN", "PSI", "MOVED MOST"];

    fn cells(&self) -> Vec<String> {
        let (before, now) = (self.before, self.now);
        let is_number = before.sum.is_some() && now.sum.is_some();
        let of_numbers = |of: &dyn Fn(&ColumnProfile) -> Option<f64>| {
            if is_number { change(of(before).map(short), of(now).map(short)) } else { String::new() }
        };
        let count = |profile: &ColumnProfile| profile.distinct.map(|distinct| distinct.to_string());
        let moved = self.moved.iter().take(2);
        let moved = moved.map(|(bin, before, now)| format!("{bin}: {} → {}", percent(*before), percent(*now)));
        vec![
            self.name.to_owned(),
            change(before.null_rate().map(percent), now.null_rate().map(percent)),
            change(count(before), count(now)),
            of_numbers(&|profile| profile.mean),
            of_numbers(&|profile| profile.quantile(0.5)),
            self.psi.map(|psi| format!("{psi:.3}")).unwrap_or_default(),
            self.not_comparable.clone().unwrap_or_else(|| moved.collect::<Vec<_>>().join(", ")),
        ]
    }
}

fn change(before: Option<String>, now: Option<String>) -> String {
    match (before, now) {
        (before, now) if before == now => now.unwrap_or_default(),
        (before, now) => format!("{} → {}", before.unwrap_or_default(), now.unwrap_or_default()),
    }
}

fn percent(share: f64) -> String {
    let text = format!("{:.1}", share * 100.0);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}

/// With four digits that matter.
fn short(value: f64) -> String {
    if value == 0.0 || value == value.trunc() && value.abs() < 1e9 {
        return format!("{value:.0}");
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    if !(-6..=9).contains(&digits) {
        return format!("{value:.3e}");
    }
    format!("{value:.*}", digits.max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown: Vec<_> =
            [0.0, 12.0, 1.0 / 3.0, 1234.5678, 0.000_123_45, 1e12, -2.5].into_iter().map(short).collect();
        assert_eq!(shown, ["0", "12", "0.3333", "1235", "0.0001234", "1.000e12", "-2.500"]);
        assert_eq!([0.0, 0.125, 1.0].map(percent), ["0 %", "12.5 %", "100 %"]);
    }
}
