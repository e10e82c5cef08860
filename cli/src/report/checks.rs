//! The verdicts, those first that ask for something to be done.

use tidegate_registry::model::{Check, Metric, Rule, Severity, Tolerance};
use tidegate_registry::profile::ColumnProfile;
use tidegate_registry::run::{CheckResult, RunState, Verdict};
use tidegate_worker::checks::{BEFORE_GROUPS, Measured};

use super::hidden::Hidden;
use super::html::{Element, Html, el};
use super::numbers::{count, cut, number, percent};
use super::{Facts, ViewFacts, aside};

/// Longer texts of samples are cut.
const SAMPLE_CHARACTERS: usize = 120;

/// A longer list of what passed is folded, so that the data below it is seen.
const LINES_OPEN: usize = 12;

/// What a verdict asks of whoever looks: the order is that of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It stops the run.
    Blocks,
    /// It failed and only warns, or rows were set aside for it.
    Warns,
    /// It was not judged.
    Open,
    /// It holds.
    Passed,
}

impl Standing {
    pub(super) fn of(result: &CheckResult) -> Self {
        match (result.verdict, result.severity) {
            (Verdict::Failed | Verdict::Error, Severity::Block) => Self::Blocks,
            (Verdict::Failed | Verdict::Error, Severity::Warn) | (Verdict::Quarantined, _) => Self::Warns,
            (Verdict::Skipped | Verdict::Pending, _) => Self::Open,
            (Verdict::Passed, _) => Self::Passed,
        }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Warns => "warns",
            Self::Open => "open",
            Self::Passed => "passed",
        }
    }

    /// Its shape, which says the same as its colour.
    pub(super) fn icon(self) -> Element {
        let id = match self {
            Self::Blocks => "#stop",
            Self::Warns => "#warn",
            Self::Open => "#open",
            Self::Passed => "#pass",
        };
        let class = format!("icon {}", self.class());
        el("svg").class(class).at("viewBox", "0 0 24 24").at("aria-hidden", "true").add(el("use").at("href", id))
    }

    fn word(self, verdict: Verdict) -> &'static str {
        match (self, verdict) {
            (Self::Blocks, Verdict::Error) => "could not be computed, blocks",
            (Self::Warns, Verdict::Error) => "could not be computed, warns",
            (Self::Blocks, _) => "failed, blocks",
            (Self::Warns, Verdict::Quarantined) => "rows were set aside",
            (Self::Warns, _) => "failed, warns",
            (Self::Open, Verdict::Pending) => "not judged",
            (Self::Open, _) => "skipped",
            (Self::Passed, _) => "passed",
        }
    }
}

/// One verdict with where it belongs.
pub(super) struct Judged<'a> {
    pub(super) view: &'a ViewFacts,
    pub(super) result: &'a CheckResult,
    pub(super) standing: Standing,
}

/// All verdicts: by standing, then as they are declared.
pub(super) fn judged(facts: &Facts) -> Vec<Judged<'_>> {
    let of_view = |view: &'_ ViewFacts| view.checks.len();
    debug_assert!(facts.views.iter().map(of_view).sum::<usize>() > 0, "a report has verdicts");
    let mut all: Vec<Judged<'_>> = facts
        .views
        .iter()
        .flat_map(|view| view.checks.iter().map(move |result| (view, result)))
        .map(|(view, result)| Judged { view, result, standing: Standing::of(result) })
        .collect();
    all.sort_by_key(|judged| judged.standing);
    all
}

/// The section of checks.
pub(super) fn section(facts: &Facts) -> Html {
    let all = judged(facts);
    let hidden = |view: &ViewFacts| Hidden::of(&view.view, facts.project.keys_of(&view.view));
    let of = |standing: Standing| all.iter().filter(move |judged| judged.standing == standing);
    let mut html = Html::default();
    let acting = of(Standing::Blocks).chain(of(Standing::Warns));
    let cards: Vec<Element> = acting.map(|judged| card(judged, &hidden(judged.view))).collect();
    let nothing_to_do = cards.is_empty();
    if !nothing_to_do {
        let cards = el("div").class("failures").all(cards);
        html.push(el("section").add(el("h2").add("What needs acting on")).add(cards));
    }
    let mut lists = el("section").add(el("h2").add(if nothing_to_do { "Checks" } else { "The other checks" }));
    for (standing, word) in [(Standing::Open, "not judged"), (Standing::Passed, "passed")] {
        let lines: Vec<Element> = of(standing).map(|judged| line(judged, &hidden(judged.view))).collect();
        if lines.is_empty() {
            continue;
        }
        let stopped = standing == Standing::Open && facts.run.state == RunState::Blocked;
        let why = if stopped { ": the run was stopped before, or there is too little history" } else { "" };
        let summary = el("summary").add(standing.icon()).add(format!("{} {word}{why}", count(lines.len() as u64)));
        let mut details = el("details");
        if standing == Standing::Open || nothing_to_do && lines.len() <= LINES_OPEN {
            details = details.at("open", "");
        }
        lists = lists.add(details.add(summary).add(el("ul").class("lines").all(lines)));
    }
    html.push(lists);
    html
}

fn line(judged: &Judged<'_>, hidden: &Hidden) -> Element {
    el("li")
        .add(el("code").add(judged.result.check.as_str()))
        .add(el("span").class("muted").add(judged.view.view.id.to_string()))
        .add(el("span").class("message").add(message(judged, hidden)))
}

fn card(judged: &Judged<'_>, hidden: &Hidden) -> Element {
    let Judged { view, result, standing } = judged;
    let check = definition(judged);
    let title = el("h3").add(standing.icon()).add(el("code").add(result.check.as_str()));
    let of = el("p")
        .class("of")
        .add(el("strong").add(if result.overridden { "failed, let through" } else { standing.word(result.verdict) }))
        .add(" · ")
        .add(el("a").at("href", format!("#{}", view.view.id)).add(view.view.id.to_string()))
        .add(format!(" · owner {}", view.view.owner));
    el("article")
        .class(format!("failure {}", standing.class()))
        .add(title)
        .add(of)
        .add(el("p").class("message").add(message(judged, hidden)))
        .add(check.and_then(|check| gauge(check, view, hidden)))
        .add(check.and_then(|check| aside::gauge(check, result, view)))
        .add(failing_share(judged, check))
        .add(samples(result, hidden))
}

fn definition<'a>(judged: &Judged<'a>) -> Option<&'a Check> {
    judged.view.view.checks.iter().find(|check| check.name == judged.result.check)
}

/// What the check found, without values of hidden columns.
fn message(judged: &Judged<'_>, hidden: &Hidden) -> String {
    let result = judged.result;
    if !hidden.any() {
        return result.message.clone();
    }
    if result.verdict == Verdict::Error {
        // What could not be computed may be told with the value at fault.
        return "could not be computed; why may hold values of columns that are tagged pii, and is hidden".to_owned();
    }
    let check = definition(judged);
    // The number of a group of one row is the value of that row.
    let of_groups = |check: &Check| {
        let about = match &check.rule {
            Rule::Bounds { metric, .. } if !check.group_by.is_empty() => metric.column(),
            _ => None,
        };
        check.group_by.iter().map(String::as_str).chain(about).any(|column| hidden.hides(column))
    };
    if check.is_some_and(of_groups) {
        return result.message.split(BEFORE_GROUPS).next().unwrap_or_default().to_owned();
    }
    match check.map(|check| &check.rule) {
        Some(Rule::Drift { column, .. }) if hidden.hides(column) => {
            result.message.split("; most of it:").next().unwrap_or_default().to_owned()
        }
        Some(
            Rule::Bounds { metric: Metric::Quantile { column, .. }, .. }
            | Rule::Anomaly { metric: Metric::Quantile { column, .. }, .. }
            | Rule::Monotonic { metric: Metric::Quantile { column, .. }, .. },
        ) if hidden.hides(column) => format!("what was found of {column} is hidden: it is tagged pii"),
        _ => result.message.clone(),
    }
}

/// What was measured beside what is allowed.
struct Gauge {
    what: String,
    allowed: (Option<f64>, Option<f64>),
    measured: (f64, f64),
}

fn gauge(check: &Check, facts: &ViewFacts, hidden: &Hidden) -> Option<Element> {
    // What a group has, and what was set aside, is in no profile; messages tell of both.
    if !check.group_by.is_empty() || check.quarantine.is_some() {
        return None;
    }
    let now = facts.now.as_ref()?;
    let column = |name: &str| now.columns.get(name).filter(|_| !hidden.hides(name));
    let ends = |profile: &ColumnProfile| Some((profile.quantile(0.0)?, profile.quantile(1.0)?));
    let found = match &check.rule {
        Rule::Range { column: name, min, max } => {
            Gauge { what: format!("values of {name}"), allowed: (*min, *max), measured: ends(column(name)?)? }
        }
        Rule::Length { column: name, min, max } => {
            let lengths = column(name)?.lengths?;
            let number = |length: Option<u64>| length.map(|length| length as f64);
            Gauge {
                what: format!("characters of {name}"),
                allowed: (number(*min), number(*max)),
                measured: (lengths.min as f64, lengths.max as f64),
            }
        }
        Rule::Bounds { metric, min, max } => {
            if metric.column().is_some_and(|column| hidden.hides(column)) {
                return None;
            }
            let value = Measured { rows: now.rows, profile: &now.columns }.value(metric)?;
            Gauge { what: metric.to_string(), allowed: (*min, *max), measured: (value, value) }
        }
        Rule::RowCount { min, max, max_change, season: None } => {
            let (mut low, mut high) = (min.map(|min| min as f64), max.map(|max| max as f64));
            if let (Some(change), Some(before)) = (max_change, &facts.before) {
                let before = before.rows as f64;
                let least = before * (1.0 - change).max(0.0);
                low = Some(low.map_or(least, |low| low.max(least)));
                let most = before * (1.0 + change);
                high = Some(high.map_or(most, |high| high.min(most)));
            }
            let rows = now.rows as f64;
            Gauge { what: "rows".to_owned(), allowed: (low, high), measured: (rows, rows) }
        }
        _ => return None,
    };
    (found.allowed != (None, None)).then(|| drawn(&found))
}

fn drawn(gauge: &Gauge) -> Element {
    let known: Vec<f64> = [gauge.allowed.0, gauge.allowed.1, Some(gauge.measured.0), Some(gauge.measured.1)]
        .into_iter()
        .flatten()
        .collect();
    let low = known.iter().copied().fold(f64::INFINITY, f64::min);
    let high = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = if high > low { high - low } else { low.abs().max(1.0) };
    // Some air on either side; what is allowed without end goes to the edge.
    let (from, width) = (low - span * 0.06, span * 1.12);
    let place = |value: f64| ((value - from) / width * 100.0).clamp(0.0, 100.0);
    let bar = |class: &'static str, from: f64, to: f64, least: f64| {
        let width = (to - from).max(least);
        el("i").class(class).at("style", format!("left:{:.2}%;width:{width:.2}%", from.min(100.0 - width)))
    };
    let allowed = (gauge.allowed.0.map_or(0.0, place), gauge.allowed.1.map_or(100.0, place));
    let (start, end) = (place(gauge.measured.0), place(gauge.measured.1));
    let track = el("div")
        .class("track")
        .at("aria-hidden", "true")
        .add(bar("allowed", allowed.0, allowed.1, 1.2))
        .add(bar("measured", start, end, 1.2))
        .add((end > allowed.1).then(|| bar("measured outside", start.max(allowed.1), end, 1.2)))
        .add((start < allowed.0).then(|| bar("measured outside", start, end.min(allowed.0), 1.2)));
    let said = match gauge.allowed {
        (Some(low), Some(high)) => format!("{} to {}", number(low), number(high)),
        (Some(low), None) => format!("from {}", number(low)),
        (None, Some(high)) => format!("up to {}", number(high)),
        (None, None) => String::new(),
    };
    let (least, most) = gauge.measured;
    let found = if least == most { number(least) } else { format!("{} to {}", number(least), number(most)) };
    let pair = |key: &'static str, what: String, value: String| {
        let key = el("i").class(format!("key {key}"));
        el("span").add(key).add(what).add(el("b").add(value))
    };
    let legend = el("p").add(pair("measured", format!("measured, {}: ", gauge.what), found)).add(pair(
        "allowed",
        "allowed: ".to_owned(),
        said,
    ));
    el("div").class("gauge").add(track).add(legend)
}

/// How large a part of the rows fails, and how large a part may.
fn failing_share(judged: &Judged<'_>, check: Option<&Check>) -> Option<Element> {
    let (failing, rows) = (judged.result.failing_rows, judged.view.now.as_ref()?.rows);
    // With a condition, how many rows were asked about is told in the message alone; what is set aside is in no profile.
    let elsewhere = |check: &Check| check.filter.is_some() || check.quarantine.is_some();
    if failing == 0 || failing > rows || check.is_some_and(elsewhere) {
        return None;
    }
    let share = failing as f64 / rows as f64;
    let in_groups = if check.is_some_and(|check| !check.group_by.is_empty()) { " of each group" } else { "" };
    let allowed = match check.and_then(|check| check.tolerance) {
        None => "none".to_owned(),
        Some(Tolerance::Rows(most)) => count(most) + in_groups,
        Some(Tolerance::Ratio(most)) => percent(most) + in_groups,
    };
    let fill = el("i").class("measured outside").at("style", format!("left:0;width:{:.2}%", (share * 100.0).max(0.8)));
    let found = format!("{} of {} ({})", count(failing), count(rows), percent(share));
    Some(
        el("div").class("gauge").add(el("div").class("track").at("aria-hidden", "true").add(fill)).add(
            el("p")
                .add(el("span").add(el("i").class("key outside")).add("failing rows: ").add(el("b").add(found)))
                .add(el("span").add("allowed: ").add(el("b").add(allowed))),
        ),
    )
}

/// Failing rows, or what may be shown of them.
fn samples(result: &CheckResult, hidden: &Hidden) -> Option<Element> {
    let mut names: Vec<&str> = Vec::new();
    for name in result.samples.iter().filter_map(|sample| sample.as_object()).flat_map(|row| row.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return None;
    }
    let head = el("thead").add(el("tr").all(names.iter().map(|name| el("th").add(*name))));
    let cell = |row: &serde_json::Map<String, serde_json::Value>, name: &str| match row.get(name) {
        _ if hidden.hides_sample(name) => el("td").class("masked").add("hidden"),
        None => el("td"),
        Some(serde_json::Value::Null) => el("td").class("null").add("null"),
        Some(serde_json::Value::Number(number)) => el("td").class("number").add(number.to_string()),
        Some(serde_json::Value::String(text)) => el("td").add(cut(text, SAMPLE_CHARACTERS)),
        Some(other) => el("td").add(cut(&other.to_string(), SAMPLE_CHARACTERS)),
    };
    let rows = result.samples.iter().filter_map(|sample| sample.as_object());
    let rows = rows.map(|row| el("tr").all(names.iter().map(|name| cell(row, name))));
    let caption = match (result.samples.len() as u64, result.failing_rows) {
        (shown, failing) if failing > shown => format!("{shown} of {} failing rows", count(failing)),
        _ => "failing rows".to_owned(),
    };
    let table = el("table").class("samples").add(el("caption").add(caption)).add(head).add(el("tbody").all(rows));
    Some(el("div").class("scroll").add(table))
}
