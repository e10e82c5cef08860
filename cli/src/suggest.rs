//! Checks that past runs of a view suggest, as YAML to paste.
//!
//! [`suggest`] is a pure function of what was recorded, so the same history suggests the same. Two things hold for whatever
//! it proposes: no run of the history would have failed it, and it says what it rests on. What held without exception
//! (no null ever, the same few values ever) blocks; bounds around what is usual leave a margin and only warn.
//!
//! A profile keeps few of the texts that it has seen, so a format can mostly be told from a part of them alone: `format` is
//! the one proposal that past runs may have failed, and it says of how many values it is told. `unique` needs a proof, which
//! profiles have of columns with few values; that the estimated number of different values is near that of the rows is none.

use std::collections::BTreeSet;

use serde::Serialize;
use tidegate_quality::anomaly::robust_z;
use tidegate_quality::{drift, formats};
use tidegate_registry::model::{Feature, FeatureView, Key, Metric, Rule, TextFormat};
use tidegate_registry::profile::{ColumnProfile, ProfileKind};
use tidegate_registry::store::Recorded;

use crate::report::Hidden;

/// Fewer runs than this suggest nothing.
pub const RUNS_MIN: usize = 5;
/// How many earlier runs a drift check compares with.
pub const DRIFT_LAST: usize = 7;
/// How many earlier runs a check of odd numbers compares with.
pub const ANOMALY_LAST: usize = 14;
/// How many of them there must be, and how far from their median a number may be: what such checks assume.
const ANOMALY_LEAST: usize = 7;
const ANOMALY_THRESHOLD: f64 = 3.5;
/// Of fewer texts nothing is said about all of them.
const TEXTS_MIN: usize = 20;
/// Fewer values may all be different by chance.
const UNIQUE_VALUES_MIN: u64 = 100;
/// So many pairs of equal numbers chance alone has to make on average, for their absence to mean something.
const UNIQUE_PAIRS_MIN: f64 = 5.0;
/// Of fewer rows chance alone moves more than drift checks allow.
const DRIFT_ROWS_MIN: u64 = 200;
/// Lists of values that are longer are no rule but an inventory.
const VALUES_MAX: usize = 12;
/// Each listed value has to be seen so often on average.
const VALUES_SEEN_MIN: u64 = 10;

/// One proposed check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// The check as an item of `checks:`, without the dash.
    pub check: String,
    /// What it rests on.
    pub why: String,
}

/// What there is to say to a history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Suggestions {
    /// In the order of the view's features; what is about the whole first.
    pub checks: Vec<Suggestion>,
    /// How many more the view has already.
    pub known: usize,
    /// Runs that were looked at.
    pub runs: usize,
    /// Their rows.
    pub rows: u64,
}

/// Suggests checks for `view` from `history`, newest first: from the newest `runs` of it; those before are only what drift
/// is measured from.
pub fn suggest(view: &FeatureView, keys: &[Key], history: &[Recorded], runs: usize) -> Suggestions {
    // A registry that was rebuilt from the lake, and older runs, know no profiles.
    let known: Vec<&Recorded> = history.iter().filter(|run| !run.profile.is_empty()).collect();
    let looked_at = &known[..runs.min(known.len())];
    let rows = looked_at.iter().map(|run| run.rows).sum();
    let mut found = Suggestions { runs: looked_at.len(), rows, ..Suggestions::default() };
    if looked_at.len() < RUNS_MIN {
        return found;
    }
    let proposer = Proposer { view, runs: looked_at, history: &known, hidden: Hidden::of(view, keys) };
    let (new, old): (Vec<_>, Vec<_>) =
        proposer.all().into_iter().partition(|proposal| !proposal.kinds.iter().any(|kind| has(view, kind)));
    found.known = old.len();
    found.checks = new.into_iter().map(|proposal| proposal.suggestion).collect();
    found
}

impl Suggestions {
    /// The checks as YAML, each below a comment that says why, indented by `indent` spaces.
    pub fn yaml(&self, indent: usize) -> String {
        let pad = " ".repeat(indent);
        let one = |suggestion: &Suggestion| format!("{pad}# {}\n{pad}- {}\n", suggestion.why, suggestion.check);
        self.checks.iter().map(one).collect()
    }
}

/// What a check is about, to find those that the view has already.
#[derive(Debug, Clone, PartialEq)]
enum About {
    Rows,
    Nulls(String),
    Values(String),
    Range(String),
    Length(String),
    Unique(String),
    Format(String),
    Number(Metric),
    Odd(Metric),
    Drift(String),
}

struct Proposal {
    suggestion: Suggestion,
    kinds: Vec<About>,
}

fn proposal(about: About, check: String, why: String) -> Proposal {
    Proposal { suggestion: Suggestion { check, why }, kinds: vec![about] }
}

fn has(view: &FeatureView, about: &About) -> bool {
    view.checks.iter().any(|check| match (&check.rule, about) {
        (Rule::RowCount { .. }, About::Rows) => true,
        (Rule::NotNull { columns }, About::Nulls(column)) => columns.contains(column),
        (Rule::Bounds { metric: Metric::NullRate(of), .. }, About::Nulls(column))
        | (Rule::AcceptedValues { column: of, .. }, About::Values(column))
        | (Rule::Range { column: of, .. }, About::Range(column))
        | (Rule::Length { column: of, .. }, About::Length(column))
        | (Rule::Format { column: of, .. }, About::Format(column))
        | (Rule::Drift { column: of, .. }, About::Drift(column)) => of == column,
        (Rule::Unique { columns }, About::Unique(column)) => columns.len() == 1 && columns.contains(column),
        (Rule::Bounds { metric, .. }, About::Number(about)) | (Rule::Anomaly { metric, .. }, About::Odd(about)) => {
            metric == about
        }
        _ => false,
    })
}

struct Proposer<'a> {
    view: &'a FeatureView,
    runs: &'a [&'a Recorded],
    history: &'a [&'a Recorded],
    hidden: Hidden,
}

impl Proposer<'_> {
    fn all(&self) -> Vec<Proposal> {
        let mut all: Vec<Proposal> = self.row_count().into_iter().collect();
        all.extend(self.odd(Metric::RowCount, "of: row_count", |run| Some(run.rows as f64)));
        let mut never_null = Vec::new();
        let mut of_columns = Vec::new();
        for feature in &self.view.features {
            // A column that some run did not have, or that had another type, has no history to rely on.
            let profiles: Vec<&ColumnProfile> =
                self.runs.iter().filter_map(|run| run.profile.get(&feature.name)).collect();
            let one_kind = profiles.windows(2).all(|pair| pair[0].kind == pair[1].kind);
            if profiles.len() < self.runs.len() || !one_kind {
                continue;
            }
            let column = Column { feature, profiles: &profiles, runs: self.runs.len() };
            if profiles.iter().all(|profile| profile.nulls == 0) && profiles.iter().any(|profile| profile.rows > 0) {
                never_null.push(feature.name.clone());
            }
            of_columns.extend(column.null_rate());
            let nulls = |run: &Recorded| run.profile.get(&feature.name).and_then(ColumnProfile::null_rate);
            let of_nulls = format!("of: null_rate, column: {}", feature.name);
            of_columns.extend(self.odd(Metric::NullRate(feature.name.clone()), &of_nulls, nulls));
            of_columns.extend(column.unique());
            of_columns.extend(column.format());
            if !self.hidden.hides(&feature.name) {
                of_columns.extend(column.accepted_values());
                of_columns.extend(column.length());
                of_columns.extend(column.range());
                of_columns.extend(column.mean());
                of_columns.extend(column.true_ratio());
            }
            of_columns.extend(self.drift(feature));
        }
        let unchecked: Vec<String> =
            never_null.iter().filter(|name| !has(self.view, &About::Nulls((*name).clone()))).cloned().collect();
        let of_nulls = |names: Vec<String>| Proposal {
            suggestion: Suggestion {
                check: format!("not_null: {{columns: [{}]}}", names.join(", ")),
                why: format!("no null in {}", self.told()),
            },
            kinds: names.into_iter().map(About::Nulls).collect(),
        };
        // One check for all columns that have none; should none be left, the view has it already.
        match (unchecked.is_empty(), never_null.is_empty()) {
            (false, _) => all.push(of_nulls(unchecked)),
            (true, false) => all.push(of_nulls(never_null)),
            (true, true) => {}
        }
        all.extend(of_columns);
        all
    }

    /// `20 runs (300 rows)`.
    fn told(&self) -> String {
        let rows: u64 = self.runs.iter().map(|run| run.rows).sum();
        format!("{} runs ({rows} rows)", self.runs.len())
    }

    fn row_count(&self) -> Option<Proposal> {
        let counts: Vec<u64> = self.runs.iter().map(|run| run.rows).collect();
        let (least, most) = (*counts.iter().min()?, *counts.iter().max()?);
        let seen = if least == most { format!("{least}") } else { format!("{least} to {most}") };
        let mut parts = Vec::new();
        // An interval without rows may be as right as one with many.
        if least > 0 {
            parts.push(format!("min: {}", (least as f64 * 0.7).floor().max(1.0)));
        }
        parts.push(format!("max: {}", (most as f64 * 1.3).ceil().max(most as f64 + 1.0)));
        let changes = counts.windows(2).map(|pair| pair[0].abs_diff(pair[1]) as f64 / pair[1].max(1) as f64);
        let change = changes.fold(0.0, f64::max);
        let allowed = ((change * 1.5).max(0.1) * 20.0).ceil() / 20.0;
        let mut why = format!("{seen} rows in {} runs", self.runs.len());
        if least > 0 && allowed < 1.0 {
            parts.push(format!("max_change: {allowed}"));
            why = format!("{why}, from one to the next at most {:.0} % more or fewer", (change * 100.0).ceil());
        }
        parts.push("severity: warn".to_owned());
        Some(proposal(About::Rows, format!("row_count: {{{}}}", parts.join(", ")), why))
    }

    /// That a number is not odd, where no run's would have been.
    fn odd(&self, metric: Metric, written: &str, of: impl Fn(&Recorded) -> Option<f64>) -> Option<Proposal> {
        let mut distances = Vec::new();
        for (at, run) in self.runs.iter().enumerate() {
            let earlier = self.history.get(at + 1..).unwrap_or_default();
            let earlier: Vec<f64> = earlier.iter().take(ANOMALY_LAST).filter_map(|run| of(run)).collect();
            let Some(value) = of(run) else { continue };
            let Ok(found) = robust_z(value, &earlier, ANOMALY_LEAST) else { continue };
            if found.deviation == 0.0 {
                // By how much what never varied may vary, nobody knows.
                return None;
            }
            distances.push(found.z.abs());
        }
        let most = distances.iter().copied().fold(0.0, f64::max);
        (distances.len() >= RUNS_MIN && most <= ANOMALY_THRESHOLD).then(|| {
            proposal(
                About::Odd(metric),
                format!("anomaly: {{{written}, last: {ANOMALY_LAST}, severity: warn}}"),
                format!(
                    "at most {} robust standard deviations from the median of up to {ANOMALY_LAST} runs before, in {} runs; \
                     {ANOMALY_THRESHOLD} are allowed",
                    short(most),
                    distances.len()
                ),
            )
        })
    }

    fn drift(&self, feature: &Feature) -> Option<Proposal> {
        let column = |run: &Recorded| run.profile.get(&feature.name).cloned();
        // What moves with time drifts by design.
        let moves = |profile: &ColumnProfile| matches!(profile.kind, ProfileKind::Date | ProfileKind::Instant);
        let mut distances = Vec::new();
        for (at, run) in self.runs.iter().enumerate() {
            let now = column(run)?;
            let earlier = self.history.get(at + 1..).unwrap_or_default();
            let earlier = &earlier[..earlier.len().min(DRIFT_LAST)];
            if moves(&now) || now.values() < DRIFT_ROWS_MIN {
                return None;
            }
            if earlier.is_empty() {
                continue;
            }
            let before: Vec<ColumnProfile> = earlier.iter().filter_map(|run| column(run)).collect();
            distances.push(drift::psi(&drift::pooled(&before).ok()?, &now).ok()?.value);
        }
        let most = distances.iter().copied().fold(0.0, f64::max);
        // A column that wanders by itself would warn every other day.
        let calm = distances.len() + 1 >= RUNS_MIN && most <= 0.15;
        calm.then(|| {
            proposal(
                About::Drift(feature.name.clone()),
                format!("drift: {{column: {}, measure: psi, max: 0.25, severity: warn}}", feature.name),
                format!("at most {most:.3} from the {DRIFT_LAST} runs before, in {} runs", distances.len()),
            )
        })
    }
}

/// One feature in all runs.
struct Column<'a> {
    feature: &'a Feature,
    profiles: &'a [&'a ColumnProfile],
    runs: usize,
}

impl Column<'_> {
    fn kind(&self) -> ProfileKind {
        self.profiles[0].kind
    }

    fn is_number(&self) -> bool {
        matches!(self.kind(), ProfileKind::Integer | ProfileKind::Float)
    }

    fn name(&self) -> &str {
        &self.feature.name
    }

    fn null_rate(&self) -> Option<Proposal> {
        let rates: Vec<f64> = self.profiles.iter().filter_map(|profile| profile.null_rate()).collect();
        let (least, most) = ends(&rates)?;
        let bound = ((most * 1.5 + 0.01) * 100.0).ceil() / 100.0;
        (most > 0.0 && bound < 1.0).then(|| {
            proposal(
                About::Nulls(self.name().to_owned()),
                format!("null_rate: {{column: {}, max: {bound}, severity: warn}}", self.name()),
                format!("{:.1} % to {:.1} % nulls in {} runs", least * 100.0, most * 100.0, self.runs),
            )
        })
    }

    fn accepted_values(&self) -> Option<Proposal> {
        if self.kind() != ProfileKind::Text {
            return None;
        }
        let mut values: BTreeSet<&str> = BTreeSet::new();
        let mut seen = 0;
        let mut newest = 0;
        // From the oldest run on: a list that still grew lately is not complete.
        for (at, profile) in self.profiles.iter().rev().enumerate() {
            let listed: u64 = profile.frequent.iter().map(|value| value.count).sum();
            // Long texts are listed cut.
            let whole = profile.lengths.is_none_or(|lengths| lengths.max <= 60);
            if profile.frequent_error > 0 || listed != profile.values() || !whole {
                return None;
            }
            seen += listed;
            for value in &profile.frequent {
                if values.insert(&value.value) {
                    newest = at;
                }
            }
        }
        let enough = seen >= VALUES_SEEN_MIN * values.len() as u64;
        if values.is_empty() || values.len() > VALUES_MAX || !enough || newest >= self.runs.div_ceil(2) {
            return None;
        }
        let listed: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        let are = if values.len() == 1 { "this value is" } else { "these values are" };
        Some(proposal(
            About::Values(self.name().to_owned()),
            format!("accepted_values: {{column: {}, values: [{}]}}", self.name(), listed.join(", ")),
            format!("{are} all there was in {} runs", self.runs),
        ))
    }

    /// That no value comes twice, where profiles have counted all values: so they do of a few hundred, and estimate beyond.
    fn unique(&self) -> Option<Proposal> {
        // Nulls would be equal, and that fractions differ is no wonder.
        if !matches!(self.kind(), ProfileKind::Text | ProfileKind::Integer) {
            return None;
        }
        let once = |profile: &&ColumnProfile| {
            let most = profile.frequent.iter().map(|value| value.count).max().unwrap_or(0);
            profile.nulls == 0 && profile.frequent_error == 0 && (most == 1 || profile.values() == 0)
        };
        if !self.profiles.iter().all(once) {
            return None;
        }
        let values: u64 = self.profiles.iter().map(|profile| profile.values()).sum();
        let bound = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<f64>().ok());
        // How many pairs were equal if numbers were dealt evenly between the smallest and the largest.
        let pairs = |profile: &&ColumnProfile| match (bound(&profile.min), bound(&profile.max)) {
            (Some(min), Some(max)) => (profile.values() as f64).powi(2) / (2.0 * (max - min + 1.0)),
            _ => 0.0,
        };
        let by_chance =
            self.kind() == ProfileKind::Integer && self.profiles.iter().map(pairs).sum::<f64>() < UNIQUE_PAIRS_MIN;
        (values >= UNIQUE_VALUES_MIN && !by_chance).then(|| {
            proposal(
                About::Unique(self.name().to_owned()),
                format!("unique: {{columns: [{}], severity: warn}}", self.name()),
                format!("all values were counted, and none came twice, in {} runs ({values} values)", self.runs),
            )
        })
    }

    /// What all texts are that profiles keep. It tells nothing of any one of them, so hidden ones have a format, too.
    fn format(&self) -> Option<Proposal> {
        if self.kind() != ProfileKind::Text {
            return None;
        }
        let mut kept: BTreeSet<&str> = BTreeSet::new();
        let mut all = true;
        for profile in self.profiles {
            kept.extend(profile.frequent.iter().map(|value| value.value.as_str()));
            kept.extend([&profile.min, &profile.max].into_iter().flatten().map(String::as_str));
            let listed: u64 = profile.frequent.iter().map(|value| value.count).sum();
            all &= profile.frequent_error == 0 && listed == profile.values();
        }
        // Few values are listed by themselves.
        if kept.len() < TEXTS_MIN {
            return None;
        }
        let lengths = |of: u64| {
            self.profiles
                .iter()
                .filter_map(|profile| profile.lengths)
                .all(|lengths| lengths.min == of && lengths.max == of)
        };
        let (format, called) = if lengths(36) && kept.iter().all(|text| formats::is_uuid(text)) {
            (TextFormat::Uuid, "UUIDs of 36 characters")
        } else if lengths(10) && kept.iter().all(|text| formats::is_iso_date(text)) {
            (TextFormat::IsoDate, "days of 10 characters")
        } else if kept.iter().all(|text| formats::is_email(text)) {
            (TextFormat::Email, "e-mail addresses")
        } else {
            return None;
        };
        let why = if all {
            format!("all {} different values of {} runs are {called}", kept.len(), self.runs)
        } else {
            format!(
                "the {} values that the profiles of {} runs keep are {called}; they keep only a part",
                kept.len(),
                self.runs
            )
        };
        Some(proposal(
            About::Format(self.name().to_owned()),
            format!("format: {{column: {}, is: {format}, severity: warn}}", self.name()),
            why,
        ))
    }

    fn length(&self) -> Option<Proposal> {
        let lengths: Vec<_> = self.profiles.iter().filter_map(|profile| profile.lengths).collect();
        let first = lengths.first()?.min;
        let enough = self.profiles.iter().map(|profile| profile.values()).sum::<u64>() >= 20;
        (enough && lengths.iter().all(|lengths| lengths.min == first && lengths.max == first)).then(|| {
            let characters = if first == 1 { "character" } else { "characters" };
            proposal(
                About::Length(self.name().to_owned()),
                format!("length: {{column: {}, min: {first}, max: {first}}}", self.name()),
                format!("always {first} {characters} in {} runs", self.runs),
            )
        })
    }

    fn range(&self) -> Option<Proposal> {
        // Infinities and NaN are out of any range.
        if !self.is_number() || self.profiles.iter().any(|profile| profile.nans + profile.infinities > 0) {
            return None;
        }
        let bound = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<f64>().ok());
        let lows: Vec<f64> = self.profiles.iter().filter_map(|profile| bound(&profile.min)).collect();
        let highs: Vec<f64> = self.profiles.iter().filter_map(|profile| bound(&profile.max)).collect();
        let (low, high) = (ends(&lows)?.0, ends(&highs)?.1);
        let why = format!("{} in {} runs", between(low, high), self.runs);
        let about = About::Range(self.name().to_owned());
        if self.kind() == ProfileKind::Float && low >= 0.0 && high <= 1.0 {
            let check = format!("range: {{column: {}, min: 0, max: 1, severity: warn}}", self.name());
            return Some(proposal(about, check, format!("{why}, as a share is")));
        }
        // As much again as there ever was between smallest and largest.
        let margin = if high > low { high - low } else { low.abs().max(1.0) };
        let min = if low >= 0.0 { 0.0 } else { down(low - margin) };
        let max = up(high + margin);
        (min.is_finite() && max.is_finite()).then(|| {
            let check = format!("range: {{column: {}, min: {min}, max: {max}, severity: warn}}", self.name());
            proposal(about, check, why)
        })
    }

    fn mean(&self) -> Option<Proposal> {
        if !self.is_number() {
            return None;
        }
        self.bounds(|profile| profile.mean, Metric::Mean(self.name().to_owned()), "mean", |value| value)
    }

    fn true_ratio(&self) -> Option<Proposal> {
        let metric = Metric::TrueRatio(self.name().to_owned());
        self.bounds(ColumnProfile::true_ratio, metric, "true_ratio", |value| value.clamp(0.0, 1.0))
    }

    /// Bounds around what a number was, as wide again on either side as it ever varied, and more where it hardly did.
    fn bounds(
        &self,
        of: impl Fn(&ColumnProfile) -> Option<f64>,
        metric: Metric,
        kind: &str,
        held: impl Fn(f64) -> f64,
    ) -> Option<Proposal> {
        let values: Vec<f64> = self.profiles.iter().filter_map(|profile| of(profile)).collect();
        if values.len() < RUNS_MIN {
            return None;
        }
        let (low, high) = ends(&values)?;
        if low == 0.0 && high == 0.0 {
            // By how much nothing may vary, nobody knows.
            return None;
        }
        let margin = (high - low).max((low.abs().max(high.abs()) * 0.1).max(f64::MIN_POSITIVE));
        let (min, max) = (held(down(low - margin)), held(up(high + margin)));
        // Nothing is outside of these.
        if !(min.is_finite() && max.is_finite()) || (min == held(f64::MIN) && max == held(f64::MAX)) {
            return None;
        }
        let check = format!("{kind}: {{column: {}, min: {min}, max: {max}, severity: warn}}", self.name());
        let why = format!("{} in {} runs", between(low, high), values.len());
        Some(proposal(About::Number(metric), check, why))
    }
}

fn ends(values: &[f64]) -> Option<(f64, f64)> {
    let low = values.iter().copied().reduce(f64::min)?;
    let high = values.iter().copied().reduce(f64::max)?;
    (low.is_finite() && high.is_finite()).then_some((low, high))
}

/// The next number below with two digits that matter.
fn down(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digit = value.abs().log10().floor() as i32 - 1;
    let mantissa = (value / 10f64.powi(digit)).floor();
    // By way of text, so that 0.3 is 0.3.
    format!("{mantissa}e{digit}").parse().ok().filter(|near: &f64| near.is_finite()).unwrap_or(value)
}

/// The next number above with two digits that matter.
fn up(value: f64) -> f64 {
    0.0 - down(-value)
}

fn between(low: f64, high: f64) -> String {
    let (low, high) = (short(low), short(high));
    if low == high { format!("always {low}") } else { format!("{low} to {high}") }
}

/// With four digits that matter.
fn short(value: f64) -> String {
    if value == 0.0 || value == value.trunc() && value.abs() < 1e9 {
        return format!("{value:.0}");
    }
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    format!("{value:.digits$}")
}

/// A text as a YAML scalar that is read as this text: a JSON string is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
