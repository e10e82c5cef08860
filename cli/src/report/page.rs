//! The page as a whole: the verdict, what to do about it, then the data.

use tidegate_registry::run::RunState;

use super::checks::{self, Standing, judged};
use super::hidden::Hidden;
use super::html::{Element, Html, el};
use super::numbers::{count, counted, instant};
use super::{Facts, ViewFacts, aside, features};

const STYLE: &str = include_str!("style.css");

/// Shapes that say what their colours say.
const SHAPES: &str = concat!(
    r#"<svg width="0" height="0" class="shapes" aria-hidden="true">"#,
    r#"<symbol id="pass" viewBox="0 0 24 24"><circle cx="12" cy="12" r="11" class="fill"/>"#,
    r#"<path d="M6.5 12.5l3.8 3.8 7.2-8" class="mark"/></symbol>"#,
    r#"<symbol id="warn" viewBox="0 0 24 24"><path d="M12 1.5L23.5 22.5H.5z" class="fill"/>"#,
    r#"<path d="M12 9v6.2M12 18.6v.4" class="mark"/></symbol>"#,
    r#"<symbol id="stop" viewBox="0 0 24 24"><path d="M7.5 1h9L23 7.5v9L16.5 23h-9L1 16.5v-9z" class="fill"/>"#,
    r#"<path d="M8 8l8 8M16 8l-8 8" class="mark"/></symbol>"#,
    r#"<symbol id="open" viewBox="0 0 24 24"><circle cx="12" cy="12" r="10" class="ring"/>"#,
    r#"<path d="M7.5 12h9" class="mark"/></symbol></svg>"#,
);

/// The page.
pub fn render(facts: &Facts) -> String {
    let interval = facts.run.interval;
    let title = format!("{} {} · checks", facts.run.dag, instant(interval.start()));
    let head = el("head")
        .add(el("meta").at("charset", "utf-8"))
        .add(el("meta").at("name", "viewport").at("content", "width=device-width, initial-scale=1"))
        .add(el("meta").at("name", "color-scheme").at("content", "light dark"))
        // Even what escaped all escaping could load and run nothing.
        .add(
            el("meta")
                .at("http-equiv", "Content-Security-Policy")
                .at("content", "default-src 'none'; style-src 'unsafe-inline'"),
        )
        .add(el("title").add(title))
        .add(el("style").add(Html::markup(STYLE)));
    let sections = facts.views.iter().map(|view| features::section(view, &hidden(facts, view)));
    let main = el("main")
        .add(glance(facts))
        .add(checks::section(facts))
        .add(aside::section(facts))
        .add(el("h2").class("data").add("The data, what changed most first"))
        .all(sections);
    let footer = el("footer").add(format!(
        "tidegate {} · one page, nothing is loaded · a change is called one when it is more than chance makes of so many rows",
        env!("CARGO_PKG_VERSION")
    ));
    let body = el("body").add(Html::markup(SHAPES)).add(banner(facts)).add(main).add(footer);
    let page = el("html").at("lang", "en").add(head).add(body);
    format!("<!doctype html>\n{}\n", Html::from(page).into_string())
}

fn hidden(facts: &Facts, view: &ViewFacts) -> Hidden {
    Hidden::of(&view.view, facts.project.keys_of(&view.view))
}

/// What became of the run, in one word and one sentence.
struct Outcome {
    standing: Standing,
    word: String,
    sentence: String,
}

fn outcome(facts: &Facts) -> Outcome {
    let all = judged(facts);
    let number = |standing| all.iter().filter(|judged| judged.standing == standing).count();
    let (blocking, warning, open) = (number(Standing::Blocks), number(Standing::Warns), number(Standing::Open));
    let checks = |number: usize| counted(number as u64, "check");
    let reason = || {
        // Why a run failed may hold values of rows.
        let told = facts.views.iter().all(|view| !hidden(facts, view).any());
        facts.run.reason.clone().filter(|_| told).map_or_else(String::new, |reason| format!(" {reason}."))
    };
    let blamed = || match all.first() {
        Some(first) if blocking == 1 => format!("{} of {}", first.result.check, first.view.view.id),
        _ => checks(blocking),
    };
    // The decision over a run that lets rows through excuses no check.
    let readmits = matches!(facts.run.cause, tidegate_registry::run::Cause::Readmit { .. });
    let overridden = facts.run.overriding.as_ref().filter(|_| !readmits);
    let (standing, word, sentence) = match facts.run.state {
        RunState::Succeeded if overridden.is_some() => (
            Standing::Warns,
            "Published by override".to_owned(),
            overridden.map_or_else(String::new, |by| {
                format!("{} let it through although {} failed: {}", by.actor, checks(blocking), by.reason)
            }),
        ),
        RunState::Succeeded if blocking > 0 => (
            Standing::Warns,
            "Published in spite of failed checks".to_owned(),
            format!("{} that should have stopped this run failed.", checks(blocking)),
        ),
        RunState::Succeeded if warning > 0 => (
            Standing::Warns,
            format!("Published with {}", counted(warning as u64, "warning")),
            format!("All that stops a run passed; {} {} for attention.", checks(warning), ask(warning)),
        ),
        RunState::Succeeded => {
            let but = if open > 0 { format!(", {} could not be judged", count(open as u64)) } else { String::new() };
            let passed = checks(number(Standing::Passed));
            (Standing::Passed, "Published".to_owned(), format!("{passed} passed{but}."))
        }
        RunState::Blocked => (
            Standing::Blocks,
            "Blocked".to_owned(),
            format!("{} failed. Nothing of this run is published: readers keep what they had.", blamed()),
        ),
        RunState::Failed => (Standing::Blocks, "Failed".to_owned(), format!("Nothing is published.{}", reason())),
        RunState::Cancelled | RunState::Superseded | RunState::Held => {
            (Standing::Open, capital(facts.run.state.as_str()), format!("Nothing is published.{}", reason()))
        }
        RunState::Waiting | RunState::Queued | RunState::Running | RunState::Publishing => (
            Standing::Open,
            "Under way".to_owned(),
            format!("The run is {}; this is what was known when the page was written.", facts.run.state),
        ),
    };
    Outcome { standing, word, sentence }
}

fn ask(number: usize) -> &'static str {
    if number == 1 { "asks" } else { "ask" }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().collect::<String>() + letters.as_str()).unwrap_or_default()
}

fn banner(facts: &Facts) -> Element {
    let Outcome { standing, word, sentence } = outcome(facts);
    let run = &facts.run;
    let interval = run.interval;
    let all = judged(facts);
    let chips = [
        (Standing::Blocks, "blocking"),
        (Standing::Warns, "warning"),
        (Standing::Open, "not judged"),
        (Standing::Passed, "passed"),
    ]
    .into_iter()
    .filter_map(|(standing, word)| {
        let number = all.iter().filter(|judged| judged.standing == standing).count();
        (number > 0)
            .then(|| el("li").add(standing.icon()).add(el("b").add(count(number as u64))).add(format!(" {word}")))
    });
    let ended = run.finished_at.map_or_else(String::new, |at| format!(" · ended {} UTC", instant(at)));
    let about = el("div")
        .class("about")
        .add(el("p").add(el("b").add(run.dag.to_string())).add(format!(" of {}", facts.project.name)))
        .add(el("p").add(format!("{} to {} UTC", instant(interval.start()), instant(interval.end()))))
        .add(el("p").class("small").add(format!("run {} · {}{ended}", run.id, run.cause)));
    el("header").class(format!("banner {}", standing.class())).add(
        el("div")
            .class("inner")
            .add(standing.icon())
            .add(
                el("div")
                    .class("verdict")
                    .add(el("h1").add(word))
                    .add(el("p").add(sentence))
                    .add(el("ul").class("chips").all(chips)),
            )
            .add(about),
    )
}

/// Every check as a mark, a line per view.
fn glance(facts: &Facts) -> Element {
    let rows = facts.views.iter().map(|view| {
        let mut results: Vec<_> = view.checks.iter().map(|result| (Standing::of(result), result)).collect();
        results.sort_by_key(|(standing, _)| *standing);
        let mark = |(standing, result): &(Standing, &tidegate_registry::run::CheckResult)| {
            let title = format!("{}: {}", result.check, result.verdict);
            el("span").class("dot").at("title", title).add(standing.icon())
        };
        let marks = el("span").class("dots").all(results.iter().map(mark));
        let rows = view.now.as_ref().map(|now| counted(now.rows, "row"));
        let aside = view.now.as_ref().and_then(|now| now.aside).filter(|rows| *rows > 0);
        let aside = aside.map(|rows| el("small").add(format!("{} set aside", count(rows))));
        let nothing = view.checks.is_empty().then(|| el("span").class("muted").add("not computed"));
        el("li")
            .add(el("a").at("href", format!("#{}", view.view.id)).add(el("code").add(view.view.id.to_string())))
            .add(marks.add(nothing))
            .add(el("span").class("rows").add(rows.unwrap_or_default()).add(aside))
            .add(el("span").class("moved").add(features::most_changed(view, &hidden(facts, view))))
    });
    el("section").class("glance").add(el("h2").add("At a glance")).add(el("ul").all(rows))
}
