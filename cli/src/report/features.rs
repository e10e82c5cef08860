//! The columns of each view as small pictures, those that changed most first.

use tidegate_quality::drift;
use tidegate_registry::model::{FeatureView, Output};
use tidegate_registry::profile::{ColumnProfile, ProfileKind};
use tidegate_registry::time::Interval;

use super::checks::Standing;
use super::hidden::Hidden;
use super::html::{Element, Html, el};
use super::numbers::{bytes, count, counted, cut, instant, number, percent, value};
use super::picture::picture;
use super::{Profiled, ViewFacts};

/// More pictures than this would be a page that nobody opens.
const PICTURES_MAX: usize = 240;
const EVENT_TIMESTAMP: &str = "event_timestamp";
/// Of so many columns, even those that hardly changed are shown at once.
const OPEN_MAX: usize = 12;

/// How much a column changed since the run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// As it was, as far as so many rows can tell.
    Steady,
    /// Nothing to compare with.
    Unknown,
    /// The run before did not have it.
    New,
    /// Worth a look.
    Some,
    /// Not the same any more.
    Large,
}

impl Level {
    fn badge(self) -> Element {
        let (class, text) = match self {
            Self::Large => ("badge large", "◆ large change"),
            Self::Some => ("badge some", "◈ some change"),
            Self::New => ("badge new", "＋ new"),
            Self::Unknown => ("badge steady", "not compared"),
            Self::Steady => ("badge steady", "◇ steady"),
        };
        el("span").class(class).add(text)
    }
}

/// One column with what is known of it.
struct Column<'a> {
    name: &'a str,
    kind: String,
    description: &'a str,
    hidden: bool,
    now: &'a ColumnProfile,
    before: Option<&'a ColumnProfile>,
    level: Level,
    /// Orders columns of one level.
    score: f64,
    /// What changed most.
    told: Option<String>,
}

/// The highest level among a view's columns, and how many have it.
pub(super) fn most_changed(facts: &ViewFacts, hidden: &Hidden) -> Option<Html> {
    let columns = columns(facts, facts.now.as_ref()?, hidden);
    let level = columns.iter().map(|column| column.level).filter(|level| *level >= Level::Some).max()?;
    let names: Vec<&str> = columns.iter().filter(|column| column.level == level).map(|column| column.name).collect();
    let more = if names.len() > 2 { format!(" and {} more", names.len() - 2) } else { String::new() };
    Some(
        [Html::from(level.badge()), format!(" {}{more}", names[..names.len().min(2)].join(", ")).into()]
            .into_iter()
            .collect(),
    )
}

/// The section of one view.
pub(super) fn section(facts: &ViewFacts, hidden: &Hidden) -> Html {
    let view = &facts.view;
    let head = el("header")
        .add(el("h2").at("id", view.id.to_string()).add(el("code").add(view.id.to_string())))
        .add(el("p").class("muted").add(view.description.as_str()));
    let section = el("section").class("view").add(head);
    let Some(now) = &facts.now else {
        let why = if facts.checks.is_empty() {
            "The run ended before this view was computed."
        } else {
            "What this run found out about its rows is no longer kept."
        };
        return section.add(el("p").class("note").add(why)).into();
    };
    let mut columns = columns(facts, now, hidden);
    let left = columns.len().saturating_sub(PICTURES_MAX);
    columns.truncate(PICTURES_MAX);
    let moved = columns.iter().filter(|column| column.level >= Level::New).count();
    let open = if columns.len() <= OPEN_MAX { columns.len() } else { moved.max(OPEN_MAX.min(columns.len())) };
    let steady = columns.split_off(open);
    let grid = |columns: &[Column<'_>]| el("div").class("grid").all(columns.iter().map(card));
    let folded = (!steady.is_empty()).then(|| {
        let what = format!("{} that hardly changed", counted(steady.len() as u64, "more column"));
        el("details").add(el("summary").add(what)).add(grid(&steady))
    });
    let left = (left > 0).then(|| {
        let what = counted(left as u64, "more column");
        el("p").class("note").add(format!("{what}: `tidegate profile {}` lists them all.", view.id))
    });
    section.add(summary(facts, now)).add(grid(&columns)).add(folded).add(left).into()
}

/// Whether an entity comes more than once.
fn doubled(facts: &ViewFacts, now: &Profiled) -> Option<Element> {
    let (once, key) = match facts.view.output {
        Output::Full => ("no entity twice", "the entity"),
        Output::Partial { .. } => ("no entity and time twice", "the entity and time"),
    };
    Some(match now.duplicate_keys.filter(|_| now.rows > 0)? {
        0 => el("span").add(once),
        1 => el("span").class("doubled").add(Standing::Blocks.icon()).add(format!("1 row has {key} of an earlier one")),
        rows => {
            let said = format!("{} rows have {key} of an earlier one", count(rows));
            el("span").class("doubled").add(Standing::Blocks.icon()).add(said)
        }
    })
}

/// How many rows and bytes, and with what they are compared.
fn summary(facts: &ViewFacts, now: &Profiled) -> Element {
    let line = el("p").class("legend");
    let size = now.bytes.map_or_else(String::new, |size| format!(", {}", bytes(size)));
    let as_of = now.columns.get(EVENT_TIMESTAMP).and_then(one_value);
    let size = as_of.map_or(size.clone(), |at| format!("{size}, all as of {}", value(ProfileKind::Instant, at)));
    let ours = [Html::from(el("i").class("key now")), format!("this run: {}{size}", counted(now.rows, "row")).into()];
    let line = line.add(el("span").all(ours)).add(doubled(facts, now));
    let Some(before) = &facts.before else {
        return line.add(el("span").add("no earlier interval is published to compare with"));
    };
    let change = match (before.rows, now.rows) {
        (0, _) => String::new(),
        (was, is) if was == is => " (as many)".to_owned(),
        (was, is) if is > was => format!(" (now {} more)", percent((is - was) as f64 / was as f64)),
        (was, is) => format!(" (now {} fewer)", percent((was - is) as f64 / was as f64)),
    };
    let text = format!(
        "the interval before, from {}: {}{change}",
        instant(before.interval.start()),
        counted(before.rows, "row")
    );
    line.add(el("span").add(el("i").class("key before")).add(text))
}

fn columns<'a>(facts: &'a ViewFacts, now: &'a Profiled, hidden: &Hidden) -> Vec<Column<'a>> {
    let before = facts.before.as_ref().map(|before| &before.profile).filter(|profile| !profile.is_empty());
    let apart = facts.before.as_ref().map_or(0.0, |before| distance(before.interval, facts.interval));
    let mut columns: Vec<Column<'_>> = now
        .columns
        .iter()
        .filter(|(name, profile)| !(*name == EVENT_TIMESTAMP && one_value(profile).is_some()))
        .map(|(name, profile)| {
            let was = before.and_then(|before| before.get(name));
            let (level, score, told) = match (was, before) {
                (Some(was), _) => change(was, profile, apart),
                (None, Some(_)) => (Level::New, 0.0, None),
                (None, None) => (Level::Unknown, 0.0, None),
            };
            let (kind, description) = about(&facts.view, name, profile);
            let hidden = hidden.hides(name);
            let told = told.filter(|_| !hidden);
            Column { name, kind, description, hidden, now: profile, before: was, level, score, told }
        })
        .collect();
    columns.sort_by(|a, b| b.level.cmp(&a.level).then(b.score.total_cmp(&a.score)));
    columns
}

fn about<'a>(view: &'a FeatureView, name: &str, profile: &ColumnProfile) -> (String, &'a str) {
    match view.features.iter().find(|feature| feature.name == name) {
        Some(feature) => (feature.kind.to_string(), feature.description.as_str()),
        None if name == EVENT_TIMESTAMP => ("timestamp".to_owned(), "when the row became true"),
        None => {
            let kind = match profile.kind {
                ProfileKind::Integer => "whole number",
                ProfileKind::Float => "number",
                ProfileKind::Boolean => "boolean",
                ProfileKind::Text => "string",
                ProfileKind::Date => "date",
                ProfileKind::Instant => "timestamp",
                ProfileKind::Other => "",
            };
            (kind.to_owned(), "key")
        }
    }
}

/// From the start of one interval to that of another, in microseconds.
fn distance(before: Interval, now: Interval) -> f64 {
    (now.start().timestamp_micros() - before.start().timestamp_micros()) as f64
}

/// The instant that all rows share.
fn one_value(profile: &ColumnProfile) -> Option<f64> {
    let (first, last) = (profile.quantile(0.0)?, profile.quantile(1.0)?);
    (first == last && profile.nulls == 0).then_some(first)
}

/// Whether days or instants moved about as far as the interval did, which is what they are expected to do.
fn moves_along(before: &ColumnProfile, now: &ColumnProfile, apart: f64) -> bool {
    let unit = match now.kind {
        ProfileKind::Date => 86_400e6,
        ProfileKind::Instant => 1.0,
        _ => return false,
    };
    let (Some(was), Some(is)) = (before.mean, now.mean) else { return false };
    (-0.5..=2.0).contains(&((is - was) * unit / apart.max(1.0)))
}

/// How far a column moved beyond what chance makes of so many rows, and what moved most; `apart` are the microseconds
/// between the intervals.
fn change(before: &ColumnProfile, now: &ColumnProfile, apart: f64) -> (Level, f64, Option<String>) {
    let nulls = now.null_rate().unwrap_or(0.0) - before.null_rate().unwrap_or(0.0);
    let by_nulls = match nulls.abs() {
        moved if moved >= 0.1 => Level::Large,
        moved if moved >= 0.02 => Level::Some,
        _ => Level::Steady,
    };
    let psi = drift::psi(before, now);
    let excess = psi.as_ref().map_or(0.0, |psi| psi.value - 2.0 * psi.noise);
    let by_shares = match excess {
        excess if excess >= 0.25 => Level::Large,
        excess if excess >= 0.1 => Level::Some,
        _ => Level::Steady,
    };
    // Of few rows the distance between shares says little, that between ranks more.
    let by_ranks = match drift::kolmogorov_smirnov(before, now) {
        Ok(found) if found.p_value < 0.001 && found.statistic > 0.3 => Level::Large,
        Ok(found) if found.p_value < 0.01 && found.statistic > 0.15 => Level::Some,
        _ => Level::Steady,
    };
    if matches!(psi, Err(drift::NotComparable::Kind)) {
        return (Level::Large, f64::INFINITY, Some("the type of its values changed".to_owned()));
    }
    let level = if moves_along(before, now, apart) {
        by_nulls
    } else {
        by_nulls.max(by_shares).max(by_ranks).max(by_spread(before, now))
    };
    let told = if by_nulls >= level && by_nulls > Level::Steady {
        let rate = |profile: &ColumnProfile| profile.null_rate().map(percent).unwrap_or_default();
        Some(format!("nulls {} → {}", rate(before), rate(now)))
    } else if level > Level::Steady {
        by_factor(before, now).or_else(|| {
            let share = psi.ok()?.largest.into_iter().next()?;
            let (was, is) = (percent(share.reference), percent(share.current));
            Some(format!("{}: {was} → {is}", cut(&share.bin, 60)))
        })
    } else {
        None
    };
    (level, excess + nulls.abs(), told)
}

/// A few rows can lie quite elsewhere with much the same ranks.
fn by_spread(before: &ColumnProfile, now: &ColumnProfile) -> Level {
    match (before.stddev, now.stddev) {
        (Some(was), Some(is)) if before.finite().min(now.finite()) >= 10 && was.max(is) > 4.0 * was.min(is) => {
            Level::Some
        }
        _ => Level::Steady,
    }
}

/// Said of numbers whose mean or spread became another by far.
fn by_factor(before: &ColumnProfile, now: &ColumnProfile) -> Option<String> {
    // Of days and instants the mean has no size.
    before.sum.and(now.sum)?;
    let (was, is) = (before.mean?, now.mean?);
    let factor = is / was;
    if by_spread(before, now) == Level::Some && (0.25..4.0).contains(&factor.abs()) || factor <= 0.0 {
        let (was, is) = (before.stddev?, now.stddev?);
        return (is > 2.0 * was || was > 2.0 * is)
            .then(|| format!("standard deviation {} → {}", number(was), number(is)));
    }
    if was == 0.0 || !factor.is_finite() || (0.5..2.0).contains(&factor) {
        return None;
    }
    Some(format!("mean {} → {} (× {})", number(was), number(is), number(factor)))
}

fn card(column: &Column<'_>) -> Element {
    let head = el("div").class("head").add(el("h3").add(el("code").add(column.name))).add(column.level.badge());
    let about = if column.description.is_empty() {
        column.kind.clone()
    } else {
        format!("{} · {}", column.kind, column.description)
    };
    let class = match column.level {
        Level::Large => "card large",
        Level::Some => "card some",
        _ => "card",
    };
    let told = column.told.as_deref().map(|told| el("p").class("told").add(told));
    let shown = if column.hidden {
        Html::from(el("p").class("masked").add("values are hidden: tagged pii"))
    } else {
        let nothing = match column.now.values() {
            0 => "no row has a value",
            _ => "hardly any value comes twice",
        };
        picture(column.now, column.before).unwrap_or_else(|| el("p").class("nothing").add(nothing).into())
    };
    el("article")
        .class(class)
        .add(head)
        .add(el("p").class("about").add(about))
        .add(told)
        .add(shown)
        .add(statistics(column))
}

fn statistics(column: &Column<'_>) -> Element {
    type Of = fn(&ColumnProfile) -> Option<String>;
    let any: [(&str, Of); 2] =
        [("nulls", |profile| profile.null_rate().map(percent)), ("distinct", |profile| profile.distinct.map(count))];
    let numeric: [(&str, Of); 4] = [
        ("min", |profile| profile.quantile(0.0).map(|number| value(profile.kind, number))),
        ("mean", |profile| profile.mean.map(|number| value(profile.kind, number))),
        ("max", |profile| profile.quantile(1.0).map(|number| value(profile.kind, number))),
        ("not finite", |profile| {
            let odd = profile.nans + profile.infinities;
            (odd > 0).then(|| count(odd))
        }),
    ];
    let texts: [(&str, Of); 1] = [("length", |profile| {
        profile.lengths.map(|lengths| match (lengths.min, lengths.max) {
            (least, most) if least == most => count(least),
            (least, most) => format!("{} to {}", count(least), count(most)),
        })
    })];
    let is_boolean = column.now.kind == ProfileKind::Boolean;
    let mut rows: Vec<(&str, Of)> = any.into_iter().filter(|(name, _)| !(is_boolean && *name == "distinct")).collect();
    if column.now.kind.is_numeric() && !column.hidden {
        rows.extend(numeric);
    }
    if column.now.kind == ProfileKind::Text && !column.hidden {
        rows.extend(texts);
    }
    let head = column.before.is_some().then(|| {
        let cells = ["", "before", "now"].map(|text| el("th").add(text));
        el("thead").add(el("tr").all(cells))
    });
    let rows = rows.into_iter().filter_map(|(name, of)| {
        let (was, is) = (column.before.and_then(of), of(column.now));
        was.as_ref().or(is.as_ref())?;
        let changed = column.before.is_some() && was != is;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        Some(
            el("tr")
                .class(if changed { "changed" } else { "same" })
                .add(el("th").add(name))
                .add(column.before.map(|_| el("td").add(or_dash(was))))
                .add(el("td").add(or_dash(is))),
        )
    });
    el("table").class("statistics").add(head).add(el("tbody").all(rows))
}
