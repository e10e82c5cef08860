//! Restores on a real registry, lake and online store: what was published comes back, all of it and nothing else.

mod foreign;
mod histories;
mod kept;
mod rebuilt;

use std::collections::BTreeMap;

use tidegate_registry::ids::{RunId, SnapshotId, ViewId};
use tidegate_registry::restore::plan::{Asked, Definitions, PlanError, Planned, Target, plan};
use tidegate_registry::restore::{HoldPolicy, Restore, RestoreRequest, Restoring as _, ResumeRequest};
use tidegate_registry::run::RunState;
use tidegate_registry::store::{LedgerEntry, Store as _};
use tidegate_registry::time::Interval;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::tests::{World, at};

const NOW: &str = "2024-01-05T00:00:00Z";

/// A view over a source that sets rows aside, one over its state that is changed online in place, and two that know only
/// what was touched, each as it goes online.
const DEFINITIONS: &str = r"
owners: [{name: sales, primary: sales@example.com}]
entities:
  - {name: shop, keys: [{name: shop, type: string}]}
sources:
  - {name: receipts, csv: receipts.csv, event_time: at}
feature_views:
  - name: revenue
    entity: shop
    owner: sales
    description: Revenue of the day
    sql: |
      SELECT shop, CAST(sum(amount) AS DOUBLE) AS total, count(*) AS receipts
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features:
      - {name: total, type: double, description: euros, default: 0.0}
      - {name: receipts, type: bigint, description: number of receipts}
    checks: [range: {column: total, min: 0, max: 1000, on_fail: {quarantine: {max_rows: 10}}}]
    online: {strategy: swap}
  - name: ranking
    entity: shop
    owner: sales
    description: Share of the day's revenue, read from the state of another view
    sql: SELECT shop, total / sum(total) OVER () AS share FROM revenue
    features: [{name: share, type: double, description: 0 to 1}]
    online: {strategy: upsert}
  - name: last_receipt
    entity: shop
    owner: sales
    description: The last receipt of shops that had one
    output: partial
    ttl: 2d
    sql: |
      SELECT shop, max(at) AS event_timestamp, max(amount) AS largest
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features: [{name: largest, type: bigint, description: euros}]
    online: {strategy: swap}
  - name: last_amount
    entity: shop
    owner: sales
    description: The last receipt of shops that had one, changed in place
    output: partial
    ttl: 3d
    sql: |
      SELECT shop, max(at) AS event_timestamp, min(amount) AS smallest
      FROM receipts WHERE at >= $interval_start AND at < $interval_end GROUP BY shop
    features: [{name: smallest, type: bigint, description: euros}]
    online: {strategy: upsert}
dags:
  - name: daily
    owner: sales
    schedule: {cron: '0 0 * * *', timezone: UTC, start: 2024-01-01}
    views: [revenue, ranking, last_receipt, last_amount]
    retries: {max: 0, backoff: 1s}
";

/// The views of [`DEFINITIONS`].
fn views() -> Vec<ViewId> {
    ["revenue@v1", "ranking@v1", "last_receipt@v1", "last_amount@v1"].map(|view| view.parse().unwrap()).into()
}

fn view(name: &str) -> ViewId {
    format!("{name}@v1").parse().unwrap()
}

/// Lets the source hold what was sold on one day: by those shops of `abcd` whose bit is set.
async fn sell(world: &World, day: u32, shops: u8, amount: u32) {
    // Something that no interval covers, so that the columns always have types.
    let mut text = "shop,at,amount\nz,2023-12-01T00:00:00Z,1\n".to_owned();
    for (position, shop) in (0_u32..).zip(["a", "b", "c", "d"]) {
        if shops & (1 << position) != 0 {
            let amount = amount * (position + 1);
            text += &format!("{shop},2024-01-{day:02}T1{position}:00:00Z,{amount}\n");
        }
    }
    world.sell(&text).await;
}

/// Everything that is published of one view.
#[derive(Debug, Clone, PartialEq, Default)]
struct Published {
    ledger: Vec<LedgerEntry>,
    newest: Option<Interval>,
    /// Rows of the table, by interval.
    rows: BTreeMap<String, Vec<String>>,
    /// Rows of the quarantine table, by interval.
    aside: BTreeMap<String, Vec<String>>,
    /// What readers get online.
    online: Vec<String>,
    tag: Option<String>,
}

impl Published {
    /// Without what names runs and snapshots: what was computed.
    fn values(&self) -> Self {
        let nobody = || RunId(uuid::Uuid::nil());
        let anonymous = |rows: &BTreeMap<String, Vec<String>>| {
            let without = |row: &String| row.rsplit_once(" | ").map_or(row.clone(), |(row, _)| row.to_owned());
            rows.iter().map(|(interval, rows)| (interval.clone(), rows.iter().map(without).collect())).collect()
        };
        Self {
            ledger: self
                .ledger
                .iter()
                .map(|entry| LedgerEntry { run: nobody(), snapshot: SnapshotId(nobody().0), ..entry.clone() })
                .collect(),
            rows: anonymous(&self.rows),
            aside: anonymous(&self.aside),
            tag: None,
            ..self.clone()
        }
    }
}

/// Cells of a printed table.
fn cells(table: &str) -> Vec<Vec<String>> {
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(1);
    lines.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What is published of `view`, having made sure that as many rows are set aside as the snapshots say.
async fn published(world: &World, view: &ViewId) -> Published {
    let store = &world.store;
    let state = store.view_states(std::slice::from_ref(view)).await.unwrap().swap_remove(view).unwrap();
    let ledger = store.ledger(view, None, 0).await.unwrap();
    let definition = &world.project.views[view];
    let features: Vec<String> = definition.features.iter().map(|feature| feature.name.clone()).collect();
    let select = format!(
        "SELECT interval_start, shop, event_timestamp, {}, run_id FROM t ORDER BY interval_start, shop",
        features.join(", ")
    );
    let mut found = Published { newest: state.newest, ledger, ..Published::default() };
    for row in cells(&world.lake(&view.to_string(), &select).await) {
        found.rows.entry(row[0].replace('Z', "")).or_default().push(row[1..].join(" | "));
    }
    if let Some(version) = state.quarantine_version {
        let head = world.fresh_lake().quarantine().load(view, None).await.unwrap();
        assert_eq!(head.version(), Some(version), "what is recorded is what is there");
        let engine = Engine::new(64 << 20, &world.folder.path().join("reader")).unwrap();
        let keys = ["shop".to_owned()];
        let rows = crate::quarantine::rows(&engine, &world.lake, view, version, None, &keys, 1_000).await.unwrap();
        for row in rows {
            let cell = |name: &str| row.get(name).map(ToString::to_string).unwrap_or_default().replace('"', "");
            let start = cell("_interval_start").replace('Z', "");
            let text = ["shop", "total", "_rule", "_run"].map(cell).join(" | ");
            found.aside.entry(start).or_default().push(text);
        }
    }
    for entry in &found.ledger {
        let snapshot = store.snapshot(entry.snapshot).await.unwrap();
        let of_view = snapshot.views.iter().find(|of_view| of_view.view == *view).unwrap();
        let start = tidegate_registry::time::format_instant(entry.interval.start()).replace('Z', "");
        let aside = found.aside.get(&start).map_or(0, Vec::len);
        assert_eq!(of_view.quarantined, aside as u64, "rows of {} that {view} set aside", entry.interval);
        assert_eq!(found.rows.get(&start).map_or(0, Vec::len) as u64, entry.rows, "{view} {}", entry.interval);
    }
    if let Some(live) = world.online.live(view).await.unwrap() {
        assert_eq!(Some(live.generation), state.online_generation, "what is recorded is what is live");
        for (key, row) in world.online.scan(view, live.generation, None, 1_000).await.unwrap() {
            // Of a row without a time of its own: since when it is so, which a detour may make later.
            let time = if features == ["share"] { String::new() } else { row.event_timestamp.to_string() };
            found.online.push(format!("{key} {time} {:?}", row.features));
        }
        found.tag = Some(live.tag);
    }
    found
}

async fn all_published(world: &World) -> BTreeMap<ViewId, Published> {
    let mut all = BTreeMap::new();
    for view in views() {
        all.insert(view.clone(), published(world, &view).await);
    }
    all
}

async fn planned(world: &World, views: &[ViewId], target: Target) -> Result<Planned, PlanError> {
    let (revision, project) = world.store.project(None).await.unwrap();
    let asked = Asked { views: views.to_vec(), target, cascade: false, hold_policy: HoldPolicy::SkipRuns };
    let definitions = Definitions { revision, project: &project };
    plan(&*world.store, definitions, &asked, RunId::generate(), at(NOW)).await
}

/// Whether it can be done, by what lake and online store have.
async fn checked(world: &World, planned: &Planned) -> anyhow::Result<()> {
    super::check(&*world.store, &world.lake, Some(&*world.online), planned).await.map(|_| ())
}

/// Decides a restore that is not carried out yet.
async fn begun(world: &World, planned: Planned) -> RestoreRequest {
    checked(world, &planned).await.unwrap();
    let request = RestoreRequest { actor: "ana".to_owned(), reason: "incident".to_owned(), ..planned.request };
    world.store.restore_begin(request.clone()).await.unwrap();
    request
}

/// Carries a restore out that was begun, and has nothing held afterwards.
async fn carried_out(world: &World, id: RunId) -> Restore {
    world.worker.run_only(&[id], CancellationToken::new()).await.unwrap();
    let (run, tasks) = world.store.run(id).await.unwrap();
    assert_eq!(run.state, RunState::Succeeded, "{:?} {tasks:?}", run.reason);
    let restore = world.store.restore_of(id).await.unwrap();
    let validation = restore.validation.clone().unwrap();
    assert!(validation.passed, "{:#?} of {:#?}", validation.findings, restore.plan);
    resume(world).await;
    restore
}

async fn resume(world: &World) {
    let holds = world.store.holds().await.unwrap();
    if holds.holds.is_empty() {
        return;
    }
    let mut views: Vec<ViewId> = holds.holds.into_iter().map(|hold| hold.view).collect();
    views.sort_unstable();
    views.dedup();
    let request = ResumeRequest {
        views,
        revision: holds.revision,
        runs: Vec::new(),
        actor: "ana".to_owned(),
        reason: "mended".to_owned(),
        now: at(NOW),
    };
    world.store.resume(request).await.unwrap();
}

async fn restored(world: &World, views: &[ViewId], target: Target) -> Restore {
    let planned = planned(world, views, target).await.unwrap();
    assert!(!planned.is_nothing(), "there is nothing to restore");
    let request = begun(world, planned).await;
    carried_out(world, request.id).await
}

async fn newest_snapshot(world: &World) -> SnapshotId {
    world.store.snapshots(None, None, 1).await.unwrap()[0].id
}
