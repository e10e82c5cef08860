//! Checks that compare with other tables, and what takes too long, in whole runs.

use std::fs;

use tidegate_registry::run::{Run, RunState, TaskKind, TaskState};
use tidegate_registry::store::{CheckFilter, Store as _};

use super::*;

/// The definitions with a list of shops beside them, and checks of the view `revenue` and of the view `lifetime`.
fn with(of_revenue: &str, of_lifetime: &str) -> String {
    let of_lifetime = if of_lifetime.is_empty() { String::new() } else { format!("    checks:\n{of_lifetime}") };
    DEFINITIONS
        .replace("feature_views:\n", "  - {name: shops, csv: shops.csv}\nfeature_views:\n")
        .replace("      - range: {column: total, min: 0, max: 1000}\n", of_revenue)
        .replace("description: days with revenue}\n", &format!("description: days with revenue}}\n{of_lifetime}"))
}

async fn world(definitions: &str) -> World {
    let world = World::with(definitions).await;
    fs::write(world.folder.path().join("shops.csv"), "shop,city\na,Rome\nb,Oslo\n").unwrap();
    world
}

async fn verdict(world: &World, run: &Run, check: &str) -> String {
    let filter = CheckFilter { run: Some(run.id), ..CheckFilter::default() };
    let rows = world.store.checks(&filter).await.unwrap();
    let row = rows.into_iter().find(|row| row.result.check == check).unwrap();
    format!("{} {}: {}", row.view, row.result.verdict, row.result.message)
}

#[tokio::test]
async fn a_value_that_a_source_does_not_have_stops_the_run() {
    let world = world(&with("      - referential: {columns: [shop], references: {source: shops}}\n", "")).await;
    let good = world.succeed(1, 0).await;
    assert_eq!(
        verdict(&world, &good, "referential(shop)").await,
        "revenue@v1 passed: none of 2 rows has a value in shop that is none in shop of source shops"
    );
    let staged = world.staged_files().await;
    // The source is pinned with all else that the run reads, though the view's query does not name it.
    fs::write(world.folder.path().join("shops.csv"), "shop,city\na,Rome\n").unwrap();
    let run = world.execute(2, 0).await;
    assert_eq!(
        (run.state, run.reason.as_deref()),
        (
            RunState::Blocked,
            Some("revenue@v1: referential(shop): 1 of 2 rows has a value in shop that is none in shop of source shops")
        )
    );
    assert_eq!(world.staged_files().await, staged, "nothing of it is left");
    let now = "2024-01-03T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, features(&[("total", "30.0"), ("receipts", "2")]));
}

#[tokio::test]
async fn doubled_entities_and_rows_without_counterpart_are_set_aside_and_the_rest_is_published() {
    let aside = "on_fail: {quarantine: {max_rows: 3}}";
    let checks = format!(
        "      - unique: {{columns: [shop], {aside}}}\n      - referential: {{columns: [shop], references: {{source: shops}}, {aside}}}\n"
    );
    // Every receipt is a row, so that a shop with two of them comes twice.
    let definitions = with(&checks, "")
        .replace(
            "CAST(sum(amount) AS DOUBLE) AS total, count(*) AS receipts",
            "CAST(amount AS DOUBLE) AS total, 1 AS receipts",
        )
        .replacen(" GROUP BY shop\n", "\n", 1);
    let world = world(&definitions).await;
    let receipt = |shop: &str, amount: u32| format!("{shop},2024-01-01T10:00:00Z,{amount}\n");
    let sold = |sales: &[(&str, u32)]| {
        sales.iter().fold("shop,at,amount\n".to_owned(), |all, (shop, amount)| all + &receipt(shop, *amount))
    };
    world.sell(&sold(&[("a", 10), ("a", 20), ("b", 5), ("c", 7)])).await;
    let run = world.succeed(1, 0).await;
    assert_eq!(
        verdict(&world, &run, "unique(shop)").await,
        "revenue@v1 quarantined: 2 of 4 rows have an entity that another row has; set aside"
    );
    assert_eq!(
        verdict(&world, &run, "referential(shop)").await,
        "revenue@v1 quarantined: 1 of 4 rows has a value in shop that is none in shop of source shops; set aside"
    );
    // What is left has no entity twice, so that the check of every view passes.
    let table = world.lake("revenue@v1", "SELECT count(*) AS rows, max(shop) AS shop FROM t").await;
    assert!(table.contains("| 1    | b    |"), "{table}");
    let now = "2024-01-02T00:00:00Z";
    assert_eq!(world.online("revenue@v1", "a", now).await, None);
    assert!(world.online("revenue@v1", "b", now).await.is_some());
    // Four rows of doubled shops are more than three.
    world.sell(&sold(&[("a", 10), ("a", 20), ("b", 5), ("b", 7)])).await;
    let run = world.execute(1, 1).await;
    assert_eq!(
        (run.state, run.reason.as_deref()),
        (
            RunState::Blocked,
            Some(
                "revenue@v1: unique(shop): 4 of 4 rows have an entity that another row has; at most 3 may be set aside"
            )
        )
    );
    assert!(world.online("revenue@v1", "b", now).await.is_some(), "what was published stays");
}

#[tokio::test]
async fn totals_are_compared_with_sources_and_with_views_of_the_same_run() {
    let of_day = "where: at >= $interval_start AND at < $interval_end";
    let of_revenue = format!(
        "      - reconciliation: {{of: sum, column: total, equals: {{source: receipts, column: amount, {of_day}}}}}\n"
    );
    // `last_receipt` has a row for every shop that sold something on the day, and is computed by the same run
    let of_lifetime = "      - reconciliation: {of: count, where: days > 0, equals: {view: last_receipt}}\n";
    let world = world(&with(&of_revenue, of_lifetime)).await;
    let run = world.succeed(1, 0).await;
    assert_eq!(
        verdict(&world, &run, "reconciliation(total)").await,
        "revenue@v1 passed: the sum of total is 100, the sum of amount of source receipts is 100"
    );
    assert_eq!(
        verdict(&world, &run, "reconciliation").await,
        "lifetime@v1 passed: the number of rows is 2, the number of rows of view last_receipt@v1 is 2"
    );
    let (_, tasks) = world.store.run(run.id).await.unwrap();
    let position = |name: &str| tasks.iter().position(|task| task.kind.to_string() == name).unwrap();
    assert!(position("last_receipt@v1") < position("lifetime@v1"), "it is computed after what it is compared with");
}

/// Slow by what it computes: it would not end before the machine does.
const SLOW: &str = "SELECT r0.shop FROM receipts AS r0, receipts AS r1, receipts AS r2, receipts AS r3, receipts AS r4, \
                    receipts AS r5, receipts AS r6, receipts AS r7, receipts AS r8, receipts AS r9, receipts AS r10, \
                    receipts AS r11 WHERE r0.amount + r11.amount < 0";

#[tokio::test]
async fn a_check_that_takes_too_long_is_stopped_and_stops_the_run() {
    let check = format!("      - sql: {{query: '{SLOW}', timeout: 1s, name: slow}}\n");
    let world = world(&with(&check, "")).await;
    let run = tokio::time::timeout(Duration::from_secs(60), world.execute(1, 0)).await.expect("the query is stopped");
    assert_eq!(run.state, RunState::Blocked, "{:?}", run.reason);
    assert_eq!(
        verdict(&world, &run, "slow").await,
        "revenue@v1 error: could not be computed: it took longer than 1s, which `timeout:` may set"
    );
    let (_, tasks) = world.store.run(run.id).await.unwrap();
    let publish = tasks.iter().find(|task| task.kind == TaskKind::Publish).unwrap();
    assert_eq!(publish.state, TaskState::Skipped);
    assert_eq!(world.staged_files().await, 0, "nothing of it is left");
    assert_eq!(world.online("revenue@v1", "a", "2024-01-02T00:00:00Z").await, None);
    assert!(world.store.snapshots(None, None, 0).await.unwrap().is_empty());
}
