//! What the page says and shows, and what it must not.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, Float64Array, Int64Array, StringArray};
use indexmap::IndexMap;
use serde_json::json;
use tidegate_quality::profile::ColumnProfiler;
use tidegate_registry::definitions::{LoadOptions, load_files};
use tidegate_registry::ids::{RunId, SnapshotId};
use tidegate_registry::model::{Budget, Project, Severity};
use tidegate_registry::profile::ColumnProfile;
use tidegate_registry::run::{Cause, CheckResult, Override, Run, RunState, Verdict};
use tidegate_registry::store::Recorded;
use tidegate_registry::time::Interval;

use super::{Facts, Profiled, ViewFacts, render};

const EVIL: &str = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>";

fn project(view_tags: &str) -> Project {
    let text = format!(
        "owners: [{{name: ana, primary: ana@example.com}}]\n\
         entities: [{{name: person, keys: [{{name: id, type: bigint}}]}}]\n\
         sources: [{{name: people, parquet: people.parquet}}]\n\
         feature_views:\n  \
         - name: persons\n    entity: person\n    owner: ana\n    description: \"{}\"\n    tags: [{view_tags}]\n    \
         sql: SELECT id, mail, city, amount FROM people\n    \
         features:\n      \
         - {{name: mail, type: string, description: address, tags: [PII]}}\n      \
         - {{name: city, type: string, description: town}}\n      \
         - {{name: amount, type: double, description: euros}}\n    \
         checks:\n      \
         - format: {{column: mail, is: email}}\n      \
         - range: {{column: amount, max: 100}}\n      \
         - length: {{column: city, max: 9, group_by: [mail]}}\n      \
         - distinct_count: {{column: mail, max: 5, name: mails of towns, group_by: [city]}}\n      \
         - drift: {{column: mail, name: mails, max: 0.2}}\n      \
         - sql: {{name: mails_differ, severity: warn, query: SELECT mail AS m FROM persons}}\n",
        EVIL.replace('"', "\\\"")
    );
    let files = [("tidegate.yaml", &b"project: shop\n"[..]), ("views.yaml", text.as_bytes())];
    let loaded = load_files(Path::new("/shop"), &files, &LoadOptions::default());
    loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics))
}

fn profile(array: impl Array + 'static) -> ColumnProfile {
    let array: ArrayRef = Arc::new(array);
    let mut profiler = ColumnProfiler::new(array.data_type());
    profiler.update(&array).unwrap();
    profiler.finish()
}

fn columns(factor: f64, city: &str) -> IndexMap<String, ColumnProfile> {
    let amounts = (0..60).map(|n| f64::from(n % 12) * factor).collect::<Vec<_>>();
    let cities = (0..60).map(|n| if n % 3 == 0 { city } else { "Bremen" }).collect::<Vec<_>>();
    let mails = (0..60).map(|n| if n % 2 == 0 { "secret@example.com" } else { "hush@example.com" });
    IndexMap::from([
        ("id".to_owned(), profile(Int64Array::from_iter_values(7_770_001..7_770_061))),
        ("mail".to_owned(), profile(mails.map(Some).collect::<StringArray>())),
        ("city".to_owned(), profile(StringArray::from(cities))),
        ("amount".to_owned(), profile(Float64Array::from(amounts))),
    ])
}

fn result(check: &str, severity: Severity, verdict: Verdict, sample: serde_json::Value) -> CheckResult {
    let samples = if sample.is_null() { Vec::new() } else { vec![sample] };
    let failing_rows = 7 * samples.len() as u64;
    let message = match check {
        "mails" => "it is 3, at most 0.2 is allowed; most of it: secret@example.com 0 % → 50 %".to_owned(),
        "length(city)" => "too long; in 1 of 2 groups of mail; worst: \"hush@example.com\" 20 of 30".to_owned(),
        "mails of towns" => "above 5 in 1 of 2 groups of city; worst: \"hush@example.com\" 20".to_owned(),
        _ => format!("what {check} found"),
    };
    CheckResult { check: check.to_owned(), severity, verdict, overridden: false, message, failing_rows, samples }
}

fn facts(state: RunState, project: Project) -> Facts {
    let view = project.views.values().next().unwrap().clone();
    let at = |text: &str| text.parse().unwrap();
    let interval = Interval::new(at("2026-01-02T00:00:00Z"), at("2026-01-03T00:00:00Z")).unwrap();
    let before = Interval::new(at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z")).unwrap();
    let run = Run {
        // By chance another would have the digits of a number that must not be on the page.
        id: "01900000-0000-7000-8000-000000000000".parse().unwrap(),
        dag: "people_daily".parse().unwrap(),
        interval,
        views: vec![view.id.clone()],
        cause: Cause::Tick,
        definitions: 1,
        revision: 0,
        state,
        reason: None,
        created_at: interval.end(),
        started_at: None,
        finished_at: Some(interval.end()),
        restarts: 0,
        overriding: None,
    };
    let blocked = state == RunState::Blocked;
    let verdict = if blocked { Verdict::Failed } else { Verdict::Passed };
    let only_if_blocked = |sample| if blocked { sample } else { serde_json::Value::Null };
    let sample = |mail: &str| json!({"id": 7_770_003, "mail": mail, "city": EVIL});
    let checks = vec![
        result("not_null(id) of every view", Severity::Block, Verdict::Passed, serde_json::Value::Null),
        result(EVIL, Severity::Warn, Verdict::Skipped, serde_json::Value::Null),
        result("mails", Severity::Block, verdict, serde_json::Value::Null),
        result("length(city)", Severity::Warn, Verdict::Passed, serde_json::Value::Null),
        result("mails of towns", Severity::Warn, verdict, serde_json::Value::Null),
        result("mails_differ", Severity::Warn, verdict, only_if_blocked(json!({"m": "alias@example.com"}))),
        result("format(mail)", Severity::Block, verdict, only_if_blocked(sample("nobody@"))),
        result("range(amount)", Severity::Block, verdict, only_if_blocked(json!({"id": 1, "amount": 660.0}))),
    ];
    let columns_now = columns(if blocked { 60.0 } else { 1.0 }, EVIL);
    let now = Profiled { rows: 60, bytes: Some(4_200), aside: Some(0), duplicate_keys: Some(0), columns: columns_now };
    let before = Recorded {
        interval: before,
        snapshot: SnapshotId::generate(),
        rows: 50,
        profile: columns(1.0, EVIL),
        summary: None,
    };
    let view = ViewFacts { view, interval, checks, now: Some(now), before: Some(before) };
    Facts { project, run, views: vec![view] }
}

#[test]
fn a_blocked_run_says_so_first_and_then_why() {
    let page = render(&facts(RunState::Blocked, project("")));
    let order =
        ["Blocked", "At a glance", "What needs acting on", "mails", "format(mail)", "mails_differ", "not judged"];
    let mut from = page.find("<body>").unwrap();
    for what in order {
        from += page[from..].find(what).unwrap_or_else(|| panic!("{what} does not come after the others"));
    }
    for told in [
        "3 checks failed. Nothing of this run is published",
        "failed, blocks",
        "failed, warns",
        "0 to 660",
        "up to 100",
        "7 of 60 (11.7 %)",
        "1 of 7 failing rows",
        "large change",
        "mean 5.5 → 330 (× 60)",
        "now 20 % more",
        "2026-01-02 00:00 to 2026-01-03 00:00 UTC",
        "prefers-color-scheme: dark",
        "name=\"viewport\"",
    ] {
        assert!(page.contains(told), "{told} is missing in\n{page}");
    }
    // what changed most comes first
    let cards: Vec<_> = ["amount", "city"].map(|name| page.find(&format!("<h3><code>{name}</code>")).unwrap()).into();
    assert!(cards.is_sorted(), "{cards:?}");
}

#[test]
fn a_published_run_says_so_and_what_was_not_judged() {
    let page = render(&facts(RunState::Succeeded, project("")));
    assert!(page.contains("<h1>Published</h1>") && page.contains("7 checks passed, 1 could not be judged"), "{page}");
    assert!(!page.contains("What needs acting on") && !page.contains("large change"), "{page}");
    let mut warned = facts(RunState::Succeeded, project(""));
    warned.views[0].checks[3].verdict = Verdict::Failed;
    let page = render(&warned);
    assert!(page.contains("Published with 1 warning") && page.contains("What needs acting on"), "{page}");
    warned.views[0].checks[3].verdict = Verdict::Quarantined;
    assert!(render(&warned).contains("rows were set aside"));
    warned.views[0].checks[3].verdict = Verdict::Failed;
    warned.run.overriding = Some(Override {
        of: RunId::generate(),
        actor: "ana@host".to_owned(),
        reason: EVIL.to_owned(),
        at: warned.run.interval.end(),
        checks: IndexMap::new(),
        sources: None,
    });
    let page = render(&warned);
    assert!(page.contains("<h1>Published by override</h1>") && page.contains("ana@host let it through"), "{page}");
    assert!(!page.contains("<script"), "{page}");
}

#[test]
fn nothing_in_the_data_becomes_markup_and_nothing_is_loaded() {
    let page = render(&facts(RunState::Blocked, project("")));
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    let lower = page.to_lowercase();
    for never in ["<script", "<img", "http:", "https:", "@import", "url(", "javascript:", "<link", "<iframe"] {
        assert!(!lower.contains(never), "{never}");
    }
    // Every element that is opened is closed, in order.
    let mut open: Vec<&str> = Vec::new();
    let body = page.split_once("</style>").unwrap().1;
    for tag in body.split('<').skip(1).map(|rest| rest.split_once('>').unwrap().0) {
        match tag.strip_prefix('/') {
            Some(name) if name == "head" || name == "html" => {}
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn what_is_tagged_pii_is_nowhere_on_the_page() {
    let page = render(&facts(RunState::Blocked, project("")));
    for secret in ["secret@example.com", "hush@example.com", "alias@example.com", "nobody@"] {
        assert!(!page.contains(secret), "{secret}");
    }
    assert!(page.contains("values are hidden: tagged pii"));
    for harmless in ["it is 3, at most 0.2 is allowed", "in 1 of 2 groups of mail<"] {
        assert!(page.contains(harmless), "{harmless}: what does not tell values stays");
    }
    assert!(page.contains("7770003"), "other columns of the sample stay");
    let page = render(&facts(RunState::Blocked, project("pii")));
    for secret in ["secret@example.com", "7770003", "7 770 003", "Bremen", "660", "330"] {
        assert!(!page.contains(secret), "{secret}");
    }
}

#[test]
fn a_view_that_was_not_computed_or_is_new_says_so() {
    let mut cut_short = facts(RunState::Blocked, project(""));
    let mut other = cut_short.views[0].clone();
    (other.now, other.checks) = (None, Vec::new());
    cut_short.views.push(other);
    cut_short.views[0].before = None;
    let page = render(&cut_short);
    assert!(page.contains("The run ended before this view was computed."), "{page}");
    assert!(page.contains("no earlier interval is published to compare with"), "{page}");
    assert!(page.contains("not compared"), "{page}");
}

/// The facts of a run in which a check may set rows aside, found `failing` of them, and the run's rows are told of.
fn with_aside(state: RunState, failing: u64, budget: Budget, verdict: Verdict) -> Facts {
    let mut facts = facts(state, project(""));
    let view = &mut facts.views[0];
    let check = view.view.checks.iter_mut().find(|check| check.name == "range(amount)").unwrap();
    check.quarantine = Some(budget);
    for result in &mut view.checks {
        if result.check == "range(amount)" {
            (result.verdict, result.failing_rows) = (verdict, failing);
        } else if result.verdict == Verdict::Failed {
            result.verdict = Verdict::Passed;
        }
    }
    let now = view.now.as_mut().unwrap();
    (now.aside, now.duplicate_keys) = (Some(failing), Some(0));
    facts
}

#[test]
fn rows_that_were_set_aside_are_counted_by_view_and_check_beside_their_budget() {
    let both = Budget { max_rows: Some(20), max_ratio: Some(0.5) };
    let page = render(&with_aside(RunState::Succeeded, 4, both, Verdict::Quarantined));
    for told in [
        "<h2>Rows set aside</h2>",
        "4 of 64 computed rows are kept out (6.2 %)",
        "<small>4 set aside</small>",
        "20 rows, 50 %",
        "20 % of 20",
        "set aside: <b>4 of 64 (6.2 %)</b>",
        "quarantine show VIEW --run",
        "no entity twice",
    ] {
        assert!(page.contains(told), "{told} is missing in\n{page}");
    }
    assert!(!page.contains("failing rows: <b>"), "what is set aside does not fail: {page}");
    assert!(!page.contains("counts for each"), "{page}");
    let mut overlapping = with_aside(RunState::Succeeded, 4, both, Verdict::Quarantined);
    overlapping.views[0].now.as_mut().unwrap().aside = Some(3);
    assert!(render(&overlapping).contains("are kept out (4.8 %); a row that breaks several rules counts for each"));
    // The share is of all rows that were computed.
    let ratio = Budget { max_rows: None, max_ratio: Some(0.125) };
    let page = render(&with_aside(RunState::Succeeded, 4, ratio, Verdict::Quarantined));
    assert!(page.contains("50 % of 8"), "{page}");
    // One row too many stops the run.
    let page = render(&with_aside(RunState::Blocked, 21, both, Verdict::Failed));
    for told in [
        "21 of 81 computed rows would be kept out (25.9 %); nothing is published",
        "1 too many",
        "to be set aside: <b>21 of 81 (25.9 %)</b>",
    ] {
        assert!(page.contains(told), "{told} is missing in\n{page}");
    }
    assert!(!page.contains("quarantine show"), "there is nothing to be seen: {page}");
}

#[test]
fn nothing_set_aside_and_nothing_known_are_told_apart() {
    let all = Budget { max_rows: None, max_ratio: Some(0.5) };
    let mut facts = with_aside(RunState::Succeeded, 0, all, Verdict::Passed);
    let page = render(&facts);
    assert!(page.contains("nothing of 60 computed rows is kept out") && page.contains("<span>none</span>"), "{page}");
    assert!(!page.contains("quarantine show") && !page.contains("<small>"), "{page}");
    // An older version did not record it.
    facts.views[0].checks.iter_mut().find(|result| result.check == "range(amount)").unwrap().failing_rows = 3;
    let now = facts.views[0].now.as_mut().unwrap();
    (now.aside, now.duplicate_keys) = (None, None);
    let page = render(&facts);
    assert!(
        page.contains("Rows set aside") && !page.contains("kept out") && !page.contains("no entity twice"),
        "{page}"
    );
    facts.views[0].now = None;
    assert!(render(&facts).contains("Rows set aside"));
    let plain = render(&self::facts(RunState::Succeeded, project("")));
    assert!(!plain.contains("Rows set aside"), "no check of it may: {plain}");
}

#[test]
fn doubled_keys_of_a_view_stand_with_its_rows() {
    let mut facts = facts(RunState::Blocked, project(""));
    facts.views[0].now.as_mut().unwrap().duplicate_keys = Some(3);
    let page = render(&facts);
    assert!(page.contains("3 rows have the entity of an earlier one"), "{page}");
    assert!(!page.contains("no entity twice"), "{page}");
    facts.views[0].now.as_mut().unwrap().duplicate_keys = Some(1);
    assert!(render(&facts).contains("1 row has the entity of an earlier one"));
}
