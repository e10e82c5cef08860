//! Rows that are set aside: what readers see, what is kept, and what happens when a worker dies or a limit is passed.

use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::run::{CheckResult, RunState, Verdict};
use tidegate_registry::store::{CheckFilter, Decision, Store as _};
use tokio_util::sync::CancellationToken;

use super::rows;
use crate::engine::Engine;
use crate::tests::{DEFINITIONS, Place, World, at, features, in_every_place};

const NOW: &str = "2024-01-05T00:00:00Z";

in_every_place! {
    what_is_set_aside_reaches_no_reader_and_is_kept_with_its_reason,
    more_than_may_be_set_aside_stops_the_run_and_keeps_nothing,
    an_interval_computed_again_replaces_what_it_had_set_aside,
    all_rows_may_be_set_aside,
    readmitted_rows_are_published_by_a_run_of_their_own,
}

/// Receipts of which one in every day has a shop without a name or a total that is too good.
const RECEIPTS: &str = "shop,at,amount
a,2024-01-01T10:00:00Z,10
b,2024-01-01T12:00:00Z,70
c,2024-01-01T12:00:00Z,5000
,2024-01-01T13:00:00Z,-5
a,2024-01-02T09:00:00Z,50
b,2024-01-02T09:30:00Z,50
c,2024-01-02T09:30:00Z,50
";

/// [`DEFINITIONS`] whose first check sets rows aside, as does one for shops without a name.
fn definitions(most: &str) -> String {
    let aside = format!("on_fail: {{quarantine: {{{most}}}}}");
    let checks = format!(
        "- range: {{column: total, min: 0, max: 1000, {aside}}}\n      - not_null: {{columns: [shop], name: named, {aside}}}"
    );
    let text = DEFINITIONS.replace("- range: {column: total, min: 0, max: 1000}", &checks);
    // The last view would have the shop without a name, too.
    let text = text.replace(
        "features: [{name: largest,",
        &format!("checks: [not_null: {{columns: [shop], {aside}}}]\n    features: [{{name: largest,"),
    );
    text.replace("max_change: 0.5", "max_change: 0.9")
}

async fn world(place: Place, most: &str) -> World {
    let world = World::at(place, &definitions(most)).await;
    world.sell(RECEIPTS).await;
    world
}

fn revenue() -> ViewId {
    "revenue@v1".parse().unwrap()
}

/// What lies in the quarantine table of a view, one line a row: shop, total, rules, reasons, run.
async fn aside(world: &World, view: &str) -> Vec<String> {
    let id: ViewId = view.parse().unwrap();
    let states = world.store.view_states(std::slice::from_ref(&id)).await.unwrap();
    let Some(version) = states[&id].quarantine_version else { return Vec::new() };
    let engine = Engine::new(256 << 20, &world.folder.path().join("reader")).unwrap();
    let found = rows(&engine, &world.fresh_lake(), &id, version, None, &["shop".to_owned()], 100).await.unwrap();
    let text = |row: &serde_json::Map<String, serde_json::Value>| {
        let value = |name: &str| row.get(name).map(ToString::to_string).unwrap_or_default().replace('"', "");
        let shown = ["_interval_start", "shop", "total", "_rule", "_reason", "_run"].map(value);
        assert_eq!(value("_quarantined_at"), NOW);
        shown.join(" | ")
    };
    found.iter().map(text).collect()
}

async fn checks(world: &World, run: RunId, verdict: Verdict) -> Vec<CheckResult> {
    let filter = CheckFilter { run: Some(run), verdict: Some(verdict), ..CheckFilter::default() };
    world.store.checks(&filter).await.unwrap().into_iter().map(|row| row.result).collect()
}

async fn what_is_set_aside_reaches_no_reader_and_is_kept_with_its_reason(place: Place) {
    let world = world(place, "max_rows: 3").await;
    let run = world.succeed(1, 0).await;
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "10.0"), ("receipts", "1")]));
    assert_eq!(world.online("revenue@v1", "c", now).await, None);
    // A view of the same run that reads it does not see them either.
    assert_eq!(world.online("ranking@v1", "b", now).await, features(&[("share", "0.875")]));
    assert_eq!(world.online("ranking@v1", "c", now).await, None);
    let table = world.lake("revenue@v1", "SELECT count(*) AS rows, max(total) AS most FROM t").await;
    assert!(table.contains("| 2    | 70.0 |"), "{table}");
    let day = "2024-01-01T00:00:00Z";
    assert_eq!(
        aside(&world, "revenue@v1").await,
        [
            format!("{day} | c | 5000.0 | range(total) | total outside 0 to 1000 | {}", run.id),
            format!("{day} | null | -5.0 | range(total); named | total outside 0 to 1000; a null in shop | {}", run.id),
        ]
    );
    let snapshot = &world.store.snapshots(None, None, 0).await.unwrap()[0];
    let view = snapshot.views.iter().find(|view| view.view == revenue()).unwrap();
    assert_eq!((view.rows, view.quarantined), (2, 2), "what was computed is in one of both");
    let told = checks(&world, run.id, Verdict::Quarantined).await;
    assert_eq!(told[0].check, "range(total)");
    assert_eq!(told[0].message, "2 of 4 rows have total outside 0 to 1000; set aside");
    assert_eq!((told[1].check.as_str(), told[1].failing_rows), ("named", 1));
    assert_eq!(world.objects("quarantine/ranking").await, [""; 0], "nothing is touched where nothing is set aside");
}

async fn more_than_may_be_set_aside_stops_the_run_and_keeps_nothing(place: Place) {
    let world = world(place, "max_rows: 3, max_ratio: 0.25").await;
    let run = world.execute(1, 0).await;
    assert_eq!(run.state, RunState::Blocked);
    assert_eq!(
        run.reason.as_deref(),
        Some(
            "revenue@v1: range(total): 2 of 4 rows have total outside 0 to 1000; at most 3 and 25 % of all rows may be \
             set aside"
        )
    );
    assert_eq!(aside(&world, "revenue@v1").await, [""; 0]);
    assert_eq!(world.objects("quarantine/revenue/v1/data").await, [""; 0], "its files are gone");
    let failed = checks(&world, run.id, Verdict::Failed).await;
    assert_eq!(failed[0].samples.len(), 2, "the failing rows are shown");
    // One of four is not too many.
    assert_eq!(checks(&world, run.id, Verdict::Quarantined).await[0].check, "named");
}

async fn an_interval_computed_again_replaces_what_it_had_set_aside(place: Place) {
    let world = world(place, "max_rows: 3").await;
    world.succeed(1, 0).await;
    let second = world.succeed(2, 0).await;
    assert_eq!(aside(&world, "revenue@v1").await.len(), 2);
    world.sell(&RECEIPTS.replace("2024-01-02T09:30:00Z,50\nc", "2024-01-02T09:30:00Z,5000\nc")).await;
    let again = world.succeed(2, 1).await;
    let found = aside(&world, "revenue@v1").await;
    assert_eq!(found.len(), 3);
    assert!(found[0].contains("| b | 5000.0 |") && found[0].ends_with(&again.id.to_string()), "{found:?}");
    world.sell(&RECEIPTS.replace("c,2024-01-01T12:00:00Z,5000", "c,2024-01-01T12:00:00Z,50")).await;
    world.succeed(2, 2).await;
    world.succeed(1, 1).await;
    let found = aside(&world, "revenue@v1").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(!found[0].contains(&second.id.to_string()), "{found:?}");
}

async fn readmitted_rows_are_published_by_a_run_of_their_own(place: Place) {
    let world = world(place, "max_rows: 3").await;
    world.sell(&RECEIPTS.replace(",2024-01-01T13:00:00Z,-5\n", "d,2024-01-01T13:00:00Z,-5\n")).await;
    let run = world.succeed(1, 0).await;
    assert_eq!(aside(&world, "revenue@v1").await.len(), 2);
    // Another row goes wrong meanwhile: nobody has let that one through.
    world
        .sell(
            &RECEIPTS
                .replace("b,2024-01-01T12:00:00Z,70", "b,2024-01-01T12:00:00Z,7000")
                .replace("\n,2024", "\nd,2024"),
        )
        .await;
    let decision = Decision { actor: "ana".into(), reason: "a holiday".into(), now: at(NOW), attempts_max: 1 };
    let made = world.store.run_readmit(run.id, &revenue(), decision).await.unwrap();
    world.store.run_admit(made).await.unwrap();
    world.worker.run_only(&[made], CancellationToken::new()).await.unwrap();
    let made = world.store.run(made).await.unwrap().0;
    assert_eq!(made.state, RunState::Succeeded, "{:?}", made.reason);
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "c", now).await, features(&[("total", "5000.0"), ("receipts", "1")]));
    assert!(world.online("ranking@v1", "d", now).await.is_some(), "views that read it see them, too");
    let left = aside(&world, "revenue@v1").await;
    assert_eq!(left.len(), 1);
    assert!(left[0].contains("| b | 7000.0 |") && left[0].ends_with(&made.id.to_string()), "{left:?}");
    let snapshot = &world.store.snapshots(None, None, 1).await.unwrap()[0];
    assert_eq!(snapshot.decision.as_ref().map(|decision| decision.reason.as_str()), Some("a holiday"));
    // It held for that run.
    world.succeed(1, 1).await;
    assert_eq!(aside(&world, "revenue@v1").await.len(), 3);
}

async fn all_rows_may_be_set_aside(place: Place) {
    let world = world(place, "max_ratio: 1").await;
    world.sell("shop,at,amount\na,2024-01-01T10:00:00Z,-1\nb,2024-01-01T10:00:00Z,-1\n").await;
    world.succeed(1, 0).await;
    assert_eq!(aside(&world, "revenue@v1").await.len(), 2);
    let snapshot = &world.store.snapshots(None, None, 0).await.unwrap()[0];
    let view = snapshot.views.iter().find(|view| view.view == revenue()).unwrap();
    assert_eq!((view.rows, view.quarantined), (0, 2));
    assert_eq!(world.online("revenue@v1", "a", "2024-01-02T00:00:00Z").await, None);
}
