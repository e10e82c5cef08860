//! Rows that checks set aside: how many, for which check, and how much of what it may set aside that is.

use tidegate_registry::model::{Budget, Check};
use tidegate_registry::run::{CheckResult, RunState, Verdict};

use super::checks::Standing;
use super::html::{Element, Html, el};
use super::numbers::{count, counted, percent};
use super::{Facts, ViewFacts};

/// The section about them; `None` when no check of the run may set rows aside.
pub(super) fn section(facts: &Facts) -> Option<Element> {
    let published = facts.run.state == RunState::Succeeded;
    let views: Vec<Element> = facts.views.iter().filter_map(|view| of_view(view, published)).collect();
    if views.is_empty() {
        return None;
    }
    let kept = facts.views.iter().any(|view| view.now.as_ref().and_then(|now| now.aside).is_some_and(|rows| rows > 0));
    let how = (published && kept).then(|| {
        el("p")
            .class("note")
            .add("See them with ")
            .add(el("code").add(format!("tidegate quarantine show VIEW --run {}", facts.run.id)))
    });
    Some(el("section").class("aside").add(el("h2").add("Rows set aside")).all(views).add(how))
}

fn of_view(facts: &ViewFacts, published: bool) -> Option<Element> {
    let rows: Vec<Element> = facts
        .view
        .checks
        .iter()
        .filter_map(|check| {
            let budget = check.quarantine?;
            let result = facts.checks.iter().find(|result| result.check == check.name)?;
            Some(row(check, budget, result, computed(facts)))
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let id = facts.view.id.to_string();
    let head = el("p").add(el("a").at("href", format!("#{id}")).add(el("code").add(id.as_str())));
    let head = head.add(total(facts, published).map(|text| format!(" · {text}")));
    let counted_in_all: u64 = facts
        .checks
        .iter()
        .filter(|result| facts.view.checks.iter().any(|check| check.name == result.check && check.quarantine.is_some()))
        .map(|result| result.failing_rows)
        .sum();
    let several = facts.now.as_ref().and_then(|now| now.aside).is_some_and(|aside| counted_in_all > aside);
    let head = head.add(several.then_some("; a row that breaks several rules counts for each"));
    let names = ["check", "rows", "of all computed", "may set aside", "used"];
    let names = el("thead").add(el("tr").all(names.map(|name| el("th").add(name))));
    let table = el("table").class("samples budgets").add(names).add(el("tbody").all(rows));
    Some(el("div").class("card").add(head).add(el("div").class("scroll").add(table)))
}

/// How many rows the run computed of a view: those that are staged and those that are set aside.
fn computed(facts: &ViewFacts) -> Option<u64> {
    let now = facts.now.as_ref()?;
    Some(now.rows + now.aside?)
}

fn total(facts: &ViewFacts, published: bool) -> Option<String> {
    let aside = facts.now.as_ref()?.aside?;
    let all = computed(facts)?;
    if aside == 0 {
        return Some(format!("nothing of {} is kept out", counted(all, "computed row")));
    }
    let share = percent(aside as f64 / all as f64);
    Some(match (published, aside) {
        (false, _) => {
            format!(
                "{} of {} would be kept out ({share}); nothing is published",
                count(aside),
                counted(all, "computed row")
            )
        }
        (true, 1) => format!("1 of {} is kept out ({share})", counted(all, "computed row")),
        (true, _) => format!("{} of {} are kept out ({share})", count(aside), counted(all, "computed row")),
    })
}

fn row(check: &Check, budget: Budget, result: &CheckResult, all: Option<u64>) -> Element {
    let name = el("td").add(Standing::of(result).icon()).add(" ").add(el("code").add(check.name.as_str()));
    if result.verdict == Verdict::Error {
        return el("tr").add(name).add(el("td").at("colspan", 4).add("could not be computed"));
    }
    let failing = result.failing_rows;
    let share = all.filter(|all| *all > 0).map(|all| percent(failing as f64 / all as f64));
    el("tr")
        .add(name)
        .add(el("td").class("number").add(count(failing)))
        .add(el("td").class("number").add(share.unwrap_or_default()))
        .add(el("td").add(allowed(budget)))
        .add(el("td").class("used").add(used(budget, failing, all)))
}

/// `10 rows, 1 %`.
fn allowed(budget: Budget) -> String {
    let rows = budget.max_rows.map(|rows| counted(rows, "row"));
    let ratio = budget.max_ratio.map(percent);
    rows.into_iter().chain(ratio).collect::<Vec<_>>().join(", ")
}

/// How much of a budget `failing` rows are, as a bar that is full when no row more may go.
fn used(budget: Budget, failing: u64, all: Option<u64>) -> Option<Html> {
    let of_ratio = match (budget.max_ratio, all) {
        (None, _) => None,
        (Some(ratio), Some(all)) => Some((ratio * all as f64).floor() as u64),
        // What the share is of is not known any more.
        (Some(_), None) => return None,
    };
    let most = budget.max_rows.into_iter().chain(of_ratio).min()?;
    let over = failing > most;
    let part = if failing == 0 { 0.0 } else { failing as f64 / most as f64 };
    let class = if over { "measured outside" } else { "measured" };
    let width = if failing == 0 { 0.0 } else { (part * 100.0).clamp(1.5, 100.0) };
    let fill = el("i").class(class).at("style", format!("left:0;width:{width:.2}%"));
    let said = match (failing, over) {
        (0, _) => "none".to_owned(),
        (_, true) => format!("{} too many", count(failing - most)),
        (_, false) => format!("{} of {}", percent(part), count(most)),
    };
    let track = el("div").class("track").at("aria-hidden", "true").add(fill);
    Some([Html::from(track), el("span").add(said).into()].into_iter().collect())
}

/// How many rows a check set aside, beside what it may: for its card.
pub(super) fn gauge(check: &Check, result: &CheckResult, facts: &ViewFacts) -> Option<Element> {
    let budget = check.quarantine.filter(|_| result.failing_rows > 0)?;
    let all = computed(facts);
    let found = match all {
        Some(all) if all > 0 => {
            let share = percent(result.failing_rows as f64 / all as f64);
            format!("{} of {} ({share})", count(result.failing_rows), count(all))
        }
        _ => counted(result.failing_rows, "row"),
    };
    let verb = if result.verdict == Verdict::Quarantined { "set aside: " } else { "to be set aside: " };
    let legend = el("p")
        .add(el("span").add(verb).add(el("b").add(found)))
        .add(el("span").add("allowed: ").add(el("b").add(allowed(budget))));
    Some(el("div").class("gauge").add(el("div").class("used").add(used(budget, result.failing_rows, all))).add(legend))
}
