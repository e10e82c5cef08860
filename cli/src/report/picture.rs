//! The distribution of a column as a picture: this run in colour over the run before, wider and in grey.

use std::collections::BTreeMap;

use tidegate_quality::drift::{self, Scale};
use tidegate_registry::profile::{ColumnProfile, ProfileKind};

use super::html::{Element, Html, el};
use super::numbers::{cut, percent, value};

/// Bars of a histogram at most.
const BINS: usize = 24;
/// Rows of a bar chart at most.
const CATEGORIES: usize = 7;
/// Of a histogram, in its own units, which are stretched to the width of its card.
const HEIGHT: f64 = 100.0;

/// The picture of a column; nothing where neither run has a distribution.
pub(super) fn picture(now: &ColumnProfile, before: Option<&ColumnProfile>) -> Option<Html> {
    let before = before.filter(|before| before.kind == now.kind && before.values() > 0);
    match now.kind {
        _ if now.values() == 0 && before.is_none() => None,
        ProfileKind::Boolean => Some(categories(&booleans(now), before.map(booleans).as_ref())),
        ProfileKind::Text => texts(now, before),
        ProfileKind::Other => None,
        _ => numbers(now, before),
    }
}

fn numbers(now: &ColumnProfile, before: Option<&ColumnProfile>) -> Option<Html> {
    let has_before = before.is_some();
    let outline = drift::outline(before.unwrap_or(now), now, BINS).ok()?;
    let reference = |bin: &drift::OutlineBin| if has_before { bin.reference } else { 0.0 };
    let most = outline.bins.iter().map(|bin| bin.current.max(reference(bin))).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let count = outline.bins.len() as f64;
    let shown = |number: f64| value(now.kind, number);
    let bar = |class: &'static str, at: usize, inset: f64, share: f64| {
        // What is there at all is seen.
        let height = if share > 0.0 { (share / most * (HEIGHT - 2.0)).max(1.5) } else { 0.0 };
        (height > 0.0).then(|| {
            let width = 1.0 - 2.0 * inset;
            el("rect")
                .class(class)
                .at("x", round((at as f64 + inset) * 10.0))
                .at("y", round(HEIGHT - height))
                .at("width", round(width * 10.0))
                .at("height", round(height))
        })
    };
    let mut bars = Html::default();
    for (at, bin) in outline.bins.iter().enumerate() {
        bars.push(bar("before", at, 0.03, reference(bin)));
        bars.push(bar("now", at, 0.24, bin.current));
        let told = format!(
            "{} to {}: {}{}",
            shown(bin.low),
            shown(bin.high),
            percent(bin.current),
            if has_before { format!(", before {}", percent(bin.reference)) } else { String::new() }
        );
        let whole = el("rect").class("whole").at("x", at * 10).at("y", 0).at("width", 10).at("height", HEIGHT);
        bars.push(whole.add(el("title").add(told)));
    }
    let (first, last) = (outline.bins.first()?, outline.bins.last()?);
    let svg = el("svg")
        .class("histogram")
        .at("viewBox", format!("0 0 {} {HEIGHT}", count * 10.0))
        .at("preserveAspectRatio", "none")
        .at("role", "img")
        .at("aria-label", format!("histogram from {} to {}", shown(first.low), shown(last.high)))
        .add(bars);
    // Bins of whole numbers begin half-way between two of them.
    let half = if matches!(now.kind, ProfileKind::Integer | ProfileKind::Date) && outline.scale == Scale::Linear {
        0.5
    } else {
        0.0
    };
    let axis = el("div")
        .class("axis")
        .add(el("span").add(shown(first.low + half)))
        .add((outline.scale == Scale::BySize).then(|| el("span").class("scale").add("scale by size")))
        .add((first.low < last.high).then(|| el("span").add(shown(last.high - half))));
    Some([el("div").class("plot").add(svg), axis].into_iter().collect())
}

/// Shares by value, and whether they are all.
struct Categories {
    shares: Vec<(String, f64)>,
    complete: bool,
}

fn booleans(profile: &ColumnProfile) -> Categories {
    let ratio = profile.true_ratio();
    let shares = ratio.map(|ratio| vec![("true".to_owned(), ratio), ("false".to_owned(), 1.0 - ratio)]);
    Categories { shares: shares.unwrap_or_default(), complete: true }
}

fn frequent(profile: &ColumnProfile) -> Categories {
    let values = profile.values() as f64;
    let shares = profile.frequent.iter().map(|value| (value.value.clone(), value.count as f64 / values)).collect();
    let listed: u64 = profile.frequent.iter().map(|value| value.count).sum();
    Categories { shares, complete: profile.frequent_error == 0 && listed == profile.values() }
}

/// Of texts that come once each, as keys do, which are new and which are gone is all there is to see.
fn each_once(now: &Categories, before: Option<&Categories>) -> Html {
    let names = |some: &Categories, others: &Categories| -> Option<String> {
        let is_known = |name: &str| others.shares.iter().any(|(other, _)| other == name);
        let names: Vec<_> = some.shares.iter().map(|(name, _)| name).filter(|name| !is_known(name)).collect();
        let more = if names.len() > CATEGORIES { ", …" } else { "" };
        let told: Vec<_> = names.iter().take(CATEGORIES).map(|name| cut(name, 24)).collect();
        (!names.is_empty()).then(|| format!("{}{more}", told.join(", ")))
    };
    let line = |text: String| el("p").class("nothing").add(text);
    let Some(before) = before.filter(|before| before.complete) else {
        return line("each value comes once".to_owned()).into();
    };
    let told = match (names(now, before), names(before, now)) {
        (None, None) => "each value comes once; none is new, none is gone".to_owned(),
        (Some(new), None) => format!("each value comes once; new: {new}"),
        (None, Some(gone)) => format!("each value comes once; gone: {gone}"),
        (Some(new), Some(gone)) => format!("each value comes once; new: {new}; gone: {gone}"),
    };
    line(told).into()
}

fn texts(profile: &ColumnProfile, before: Option<&ColumnProfile>) -> Option<Html> {
    let (now, before) = (frequent(profile), before.map(frequent));
    let most = now.shares.first().map_or(0.0, |(_, share)| *share);
    // Of texts that hardly ever come twice, a few by name tell nothing.
    let telling = now.complete || most > 0.02;
    if now.complete && now.shares.len() as u64 == profile.values() && now.shares.len() > 1 {
        return Some(each_once(&now, before.as_ref()));
    }
    (telling && !now.shares.is_empty()).then(|| categories(&now, before.as_ref()))
}

fn categories(now: &Categories, before: Option<&Categories>) -> Html {
    let mut shares: BTreeMap<&str, (f64, Option<f64>)> = BTreeMap::new();
    for (name, share) in &now.shares {
        shares.entry(name).or_default().0 = *share;
    }
    for (name, share) in before.into_iter().flat_map(|before| &before.shares) {
        shares.entry(name).or_default().1 = Some(*share);
    }
    let mut rows: Vec<_> = shares.into_iter().collect();
    // Those that moved most, when not all can be shown.
    let apart = |(share, was): (f64, Option<f64>)| (share - was.unwrap_or(0.0)).abs();
    let by_change = before.is_some() && rows.len() > CATEGORIES;
    if by_change {
        rows.sort_by(|a, b| apart(b.1).total_cmp(&apart(a.1)).then(b.1.0.total_cmp(&a.1.0)).then(a.0.cmp(b.0)));
    } else {
        rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0).then(a.0.cmp(b.0)));
    }
    let left = rows.len().saturating_sub(CATEGORIES);
    rows.truncate(CATEGORIES);
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0).then(a.0.cmp(b.0)));
    let most = rows.iter().map(|(_, (share, was))| share.max(was.unwrap_or(0.0))).fold(f64::MIN_POSITIVE, f64::max);
    let bar = |class: &'static str, share: f64| -> Element {
        let width = if share > 0.0 { (share / most * 100.0).max(0.8) } else { 0.0 };
        el("i").class(class).at("style", format!("width:{}%", round(width)))
    };
    let known_before = before.is_some_and(|before| before.complete);
    let row = |(name, (share, was)): (&str, (f64, Option<f64>))| {
        let was = was.or(known_before.then_some(0.0));
        let said = match was {
            Some(was) => format!("{name}: {}, before {}", percent(share), percent(was)),
            None => format!("{name}: {}", percent(share)),
        };
        let label = if name.is_empty() { "(empty)".to_owned() } else { cut(name, 40) };
        let bars = el("span").class("bars").add(was.map(|was| bar("before", was))).add(bar("now", share));
        el("li")
            .at("title", cut(&said, 200))
            .add(el("span").class("name").add(label))
            .add(bars)
            .add(el("span").class("share").add(percent(share)))
    };
    let list = el("ul").class("categories").all(rows.into_iter().map(row));
    let more = match (left, now.complete) {
        (0, true) => None,
        (0, false) => Some("and rarer values".to_owned()),
        (left, _) if by_change => Some(format!("and {left} more that moved less")),
        (left, _) => Some(format!("and {left} more")),
    };
    [Html::from(list), more.map(|more| el("p").class("more").add(more)).into()].into_iter().collect()
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
