//! What an author waits for: `tidegate validate` of 1,000 views in 50 files, and `tidegate --help`.
//!
//! The yardstick printed beside them is the start of an empty process on this machine (`/bin/true`).
//!
//! `cargo bench -p tidegate --bench validate`

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its figures and stops at the first surprise"
)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const FILES: usize = 50;
const VIEWS_PER_FILE: usize = 20;
const ROUNDS: usize = 5;
const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");

fn main() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path());
    let empty = median(|| run(&mut Command::new("/bin/true")));
    let help = median(|| run(Command::new(TIDEGATE).arg("--help")));
    let validate = median(|| run(Command::new(TIDEGATE).arg("--project").arg(folder.path()).arg("validate")));
    println!("an empty process                     {:>8.1} ms", millis(empty));
    println!("tidegate --help                      {:>8.1} ms (target: under 50 ms)", millis(help));
    println!(
        "tidegate validate, {} views        {:>8.1} ms (target: under 2000 ms), {:.2} ms a view",
        FILES * VIEWS_PER_FILE,
        millis(validate),
        millis(validate) / (FILES * VIEWS_PER_FILE) as f64
    );
}

fn run(command: &mut Command) -> Duration {
    let started = Instant::now();
    let done = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    started.elapsed()
}

fn median(mut work: impl FnMut() -> Duration) -> Duration {
    work();
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| work()).collect();
    times.sort();
    times[ROUNDS / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Views of every shape that planning has to work for: windows, joins, subqueries, views that read views.
fn generate(root: &Path) {
    std::fs::write(root.join("tidegate.yaml"), "project: big\n").unwrap();
    std::fs::write(root.join("events.csv"), "id,at,amount,kind\n1,2024-01-01T00:00:00Z,1.5,a\n").unwrap();
    std::fs::write(
        root.join("base.yaml"),
        "owners: [{name: me, primary: me@example.com}]
entities: [{name: thing, keys: [{name: id, type: bigint}]}]
sources: [{name: events, csv: events.csv, event_time: at}]
",
    )
    .unwrap();
    for file in 0..FILES {
        let mut text = String::from("feature_views:\n");
        let mut names = Vec::new();
        for view in 0..VIEWS_PER_FILE {
            let name = format!("view_{file}_{view}");
            text.push_str(&definition(&name, names.last()));
            names.push(name);
        }
        text.push_str(&format!(
            "dags:\n  - {{name: dag_{file}, owner: me, views: [{}], schedule: {{cron: '@daily', timezone: UTC, start: 2024-01-01}}}}\n",
            names.join(", ")
        ));
        std::fs::write(root.join(format!("views_{file}.yaml")), text).unwrap();
    }
}

fn definition(name: &str, before: Option<&String>) -> String {
    let join = before.map_or(String::new(), |before| format!("LEFT JOIN {before} AS p ON p.id = e.id"));
    let more = if before.is_some() { "max(p.total)" } else { "CAST(NULL AS DOUBLE)" };
    format!(
        "  - name: {name}
    entity: thing
    owner: me
    description: generated
    sql: |
      WITH recent AS (
        SELECT id, kind, CAST(amount AS DOUBLE) AS amount FROM events
        WHERE at >= $interval_end - INTERVAL '7 days' AND at < $interval_end
      )
      SELECT e.id, sum(e.amount) AS total, avg(e.amount) AS mean, count(*) AS events,
        count(DISTINCT e.kind) AS kinds, {more} AS parent
      FROM recent AS e {join}
      WHERE e.amount > (SELECT min(amount) FROM recent)
      GROUP BY e.id
    features:
      - {{name: total, type: double, description: sum}}
      - {{name: mean, type: double, description: mean}}
      - {{name: events, type: bigint, description: count}}
      - {{name: kinds, type: bigint, description: distinct kinds}}
      - {{name: parent, type: double, description: of the view before}}
    checks:
      - not_null: {{columns: [events]}}
      - sql: {{query: SELECT * FROM {name} WHERE events < 0}}
"
    )
}
