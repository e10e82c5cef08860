//! `/metrics` of a process: how the project stands, as text that Prometheus and its kin read.
//!
//! [`METRICS`] says what there is; `docs/metrics.md` is made from it. Everything is read from the registry when somebody asks,
//! over indexes and small tables, so every process tells the same, and one of them is enough to scrape. Labels are
//! definitions and fixed words, and no more than [`VIEWS_MAX`] views have series of their own.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tidegate_registry::drill::Proven;
use tidegate_registry::figures::Figures;
use tidegate_registry::ids::ViewId;
use tidegate_registry::model::Project;
use tidegate_registry::restore::Holds;
use tidegate_registry::store::{PoolState, QueueState, ViewState};
use tidegate_registry::time::Instant;
use tidegate_scheduler::freshness::{self, FreshnessState};
use tidegate_scheduler::watch::STALLED_AFTER;
use tokio::sync::Mutex;

use crate::context::Registry;
use crate::roles::WORKER_SILENCE_MAX;

/// More views than this have no series of their own: sums tell of them.
pub const VIEWS_MAX: usize = 2_000;

/// Up to how many seconds a restore takes, by bucket.
const BUCKETS: [f64; 9] = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How many were how long.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal $kind:ident [$($label:literal),*] $help:literal;)+) => {
        $(const $constant: Metric =
            Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)+
        /// All that there is, in the order in which it is told.
        pub const METRICS: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    BUILD = "tidegate_build_info" Gauge ["version"] "1; the version of the program as a label";
    REVISION = "tidegate_definitions_revision" Gauge [] "the revision of the definitions in force";
    VIEWS = "tidegate_views" Gauge ["state"] "feature views by freshness: fresh, warn, breached, unknown (never published), held, unlimited (no max_age)";
    AGE = "tidegate_view_age_seconds" Gauge ["view"] "project time since the end of the newest published interval; absent while nothing is published";
    AGE_MAX = "tidegate_view_max_age_seconds" Gauge ["view"] "how old the view may be, of views that say so";
    ROLE = "tidegate_role_turned_seconds" Gauge ["role"] "time since the loop of a role of this process turned last";
    WORKERS = "tidegate_workers" Gauge ["state"] "workers heard of within a minute: active, drained";
    RUNS = "tidegate_runs" Gauge ["state"] "open runs by state";
    RUNS_ENDED = "tidegate_runs_ended_last_day" Gauge ["state"] "runs that ended within a day of project time, by state";
    TASKS = "tidegate_queue_tasks" Gauge ["queue", "state"] "tasks of a queue that could be claimed (waiting) or are (running)";
    POOLS = "tidegate_pool_slots" Gauge ["pool"] "how many tasks of a pool may run at once";
    POOLS_USED = "tidegate_pool_slots_used" Gauge ["pool"] "how many run";
    OUTBOX = "tidegate_outbox_deliveries" Gauge ["state"] "deliveries of notices that are not there yet: due, given_up";
    HOLDS = "tidegate_holds" Gauge [] "holds in force";
    HOLD_AGE = "tidegate_hold_age_seconds" Gauge ["view"] "project time since the view itself was held";
    SWITCHED = "tidegate_features_switched_off" Gauge [] "features that readers of the online store are not given as they are";
    APPROVALS = "tidegate_approvals_waiting" Gauge [] "requests that wait for a second person";
    RESTORES = "tidegate_restores_total" Counter ["outcome"] "restores that were recorded: as_promised, not_as_promised, not_compared (yet)";
    RESTORE_TOOK = "tidegate_restore_duration_seconds" Histogram [] "how long restores took, from the decision until they were recorded";
    RESTORES_PENDING = "tidegate_restores_pending" Gauge [] "restores under way";
    RESTORES_STALLED = "tidegate_restores_stalled" Gauge [] "restores under way for five minutes or more";
    RESTORE_OLDEST = "tidegate_restore_pending_seconds" Gauge [] "for how long the oldest restore under way has been; 0 when there is none";
    PROVEN = "tidegate_view_restore_proven_seconds" Gauge ["view"] "how long the last drill that brought the view back as it was took to restore it";
    TARGET = "tidegate_view_restore_target_seconds" Gauge ["view"] "how long restoring the view may take, of views that say so";
    FIRINGS = "tidegate_triggered_recipes" Gauge ["state"] "recipes that something has triggered: due, waiting (for approval), done, stopped, passed_over";
}

/// What is told of.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The definitions' revision.
    pub revision: i64,
    /// The definitions.
    pub project: &'a Project,
    /// Project time.
    pub now: Instant,
    /// Numbers of the registry.
    pub figures: Figures,
    /// What is known of each view.
    pub states: indexmap::IndexMap<ViewId, ViewState>,
    /// What drills have proven.
    pub proven: indexmap::IndexMap<ViewId, Proven>,
    /// Holds in force.
    pub holds: Holds,
    /// How many features are switched off.
    pub switched: usize,
    /// Queues in which something is.
    pub queues: Vec<QueueState>,
    /// Pools.
    pub pools: Vec<PoolState>,
    /// Workers heard of lately that are active, and that are drained.
    pub workers: (usize, usize),
    /// How long ago the roles of this process turned.
    pub roles: Vec<(&'static str, Duration)>,
}

/// Tells how the registry stands; keeps the definitions from one time to the next.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Of `registry`.
    pub fn of(registry: Registry) -> Self {
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// The text, with the roles of this process.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub async fn text(&self, roles: Vec<(&'static str, Duration)>) -> anyhow::Result<String> {
        // One at a time: whoever scrapes more often than the registry answers, waits.
        let mut registry = self.registry.lock().await;
        let store = Arc::clone(&registry.store);
        let revision = store.info().await.context("reading the registry")?.revision;
        if revision != registry.revision {
            (registry.revision, registry.project) = store.project(None).await.context("reading the definitions")?;
        }
        let now = registry.clock.now();
        let views: Vec<ViewId> = registry.project.views.keys().cloned().collect();
        let workers = store.workers(WORKER_SILENCE_MAX).await.context("reading who is about")?;
        let drained = workers.iter().filter(|worker| worker.drained).count();
        let facts = Facts {
            revision: registry.revision,
            now,
            figures: store.figures(now).await.context("counting")?,
            states: store.view_states(&views).await.context("reading how views stand")?,
            proven: store.proven(&views).await.context("reading what drills have proven")?,
            holds: store.holds().await.context("reading the holds")?,
            switched: store.switches().await.context("reading the switches")?.switches.len(),
            queues: store.queues().await.context("reading the queues")?,
            pools: store.pools().await.context("reading the pools")?,
            workers: (workers.len() - drained, drained),
            roles,
            project: &registry.project,
        };
        Ok(render(&facts))
    }
}

/// The text in Prometheus's format (version 0.0.4).
pub fn render(facts: &Facts<'_>) -> String {
    let mut text = Text::default();
    text.family(&BUILD).sample(&[env!("CARGO_PKG_VERSION")], 1.0);
    text.family(&REVISION).sample(&[], facts.revision as f64);
    views(facts, &mut text);
    text.family(&ROLE);
    for (role, age) in &facts.roles {
        text.sample(&[role], age.as_secs_f64());
    }
    text.family(&WORKERS).sample(&["active"], facts.workers.0 as f64).sample(&["drained"], facts.workers.1 as f64);
    text.family(&RUNS);
    for (state, count) in &facts.figures.runs_open {
        text.sample(&[state.as_str()], *count as f64);
    }
    text.family(&RUNS_ENDED);
    for (state, count) in &facts.figures.runs_ended {
        text.sample(&[state.as_str()], *count as f64);
    }
    text.family(&TASKS);
    for queue in &facts.queues {
        text.sample(&[queue.queue.as_str(), "waiting"], queue.waiting as f64);
        text.sample(&[queue.queue.as_str(), "running"], queue.running as f64);
    }
    text.family(&POOLS);
    for pool in &facts.pools {
        text.sample(&[pool.name.as_str()], f64::from(pool.slots));
    }
    text.family(&POOLS_USED);
    for pool in &facts.pools {
        text.sample(&[pool.name.as_str()], f64::from(pool.used));
    }
    let figures = &facts.figures;
    text.family(&OUTBOX).sample(&["due"], figures.deliveries_due as f64);
    text.sample(&["given_up"], figures.deliveries_given_up as f64);
    text.family(&HOLDS).sample(&[], facts.holds.holds.len() as f64);
    text.family(&HOLD_AGE);
    for hold in facts.holds.holds.iter().take(VIEWS_MAX) {
        text.sample(&[&hold.view.to_string()], seconds(facts.now - hold.placed_at));
    }
    text.family(&SWITCHED).sample(&[], facts.switched as f64);
    text.family(&APPROVALS).sample(&[], figures.approvals_waiting as f64);
    restores(figures, &mut text);
    let told = || facts.project.views.values().take(VIEWS_MAX).filter(|_| facts.project.views.len() <= VIEWS_MAX);
    text.family(&PROVEN);
    for (view, proven) in told().filter_map(|view| Some((view, facts.proven.get(&view.id)?.restore?))) {
        text.sample(&[&view.id.to_string()], proven.took_ms as f64 / 1e3);
    }
    text.family(&TARGET);
    for (view, target) in told().filter_map(|view| Some((view, view.restore_target?))) {
        text.sample(&[&view.id.to_string()], target.as_secs_f64());
    }
    text.family(&FIRINGS);
    for (state, count) in &figures.firings {
        text.sample(&[state.as_str()], *count as f64);
    }
    text.text
}

fn views(facts: &Facts<'_>, text: &mut Text) {
    let held = facts.holds.of(facts.project);
    let newest = |view: &ViewId| facts.states.get(view).and_then(|state| state.newest).map(|newest| newest.end());
    let state = |view: &tidegate_registry::model::FeatureView| match &view.freshness {
        _ if held.contains_key(&view.id) => FreshnessState::Held.as_str(),
        Some(limits) => freshness::state(limits, newest(&view.id), facts.now).as_str(),
        None if newest(&view.id).is_none() => FreshnessState::Unknown.as_str(),
        None => "unlimited",
    };
    text.family(&VIEWS);
    for word in ["fresh", "warn", "breached", "unknown", "held", "unlimited"] {
        let count = facts.project.views.values().filter(|view| state(view) == word).count();
        text.sample(&[word], count as f64);
    }
    let told = facts.project.views.values().take(VIEWS_MAX).filter(|_| facts.project.views.len() <= VIEWS_MAX);
    text.family(&AGE);
    for view in told.clone() {
        if let Some(newest) = newest(&view.id) {
            text.sample(&[&view.id.to_string()], seconds(freshness::age(newest, facts.now)));
        }
    }
    text.family(&AGE_MAX);
    for view in told {
        if let Some(limits) = &view.freshness {
            text.sample(&[&view.id.to_string()], limits.max_age.as_secs_f64());
        }
    }
}

fn restores(figures: &Figures, text: &mut Text) {
    let recorded: Vec<_> = figures.restores.iter().filter(|restore| restore.took.is_some()).collect();
    text.family(&RESTORES);
    for (word, passed) in [("as_promised", Some(true)), ("not_as_promised", Some(false)), ("not_compared", None)] {
        text.sample(&[word], recorded.iter().filter(|restore| restore.passed == passed).count() as f64);
    }
    let took: Vec<f64> = recorded.iter().filter_map(|restore| Some(restore.took?.as_secs_f64())).collect();
    text.family(&RESTORE_TOOK).histogram(&took);
    let pending: Vec<Duration> = figures.restores.iter().filter_map(|restore| restore.under_way).collect();
    text.family(&RESTORES_PENDING).sample(&[], pending.len() as f64);
    let stalled = pending.iter().filter(|under_way| **under_way >= STALLED_AFTER).count();
    text.family(&RESTORES_STALLED).sample(&[], stalled as f64);
    let oldest = pending.iter().max().copied().unwrap_or_default();
    text.family(&RESTORE_OLDEST).sample(&[], oldest.as_secs_f64());
}

fn seconds(duration: chrono::Duration) -> f64 {
    duration.num_microseconds().map_or(f64::MAX, |micros| micros as f64 / 1e6)
}

/// What was written so far, and the metric that samples belong to.
#[derive(Debug, Default)]
struct Text {
    text: String,
    metric: Option<Metric>,
}

impl Text {
    fn family(&mut self, metric: &Metric) -> &mut Self {
        let Metric { name, kind, help, .. } = metric;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
        self.metric = Some(*metric);
        self
    }

    fn sample(&mut self, values: &[&str], value: f64) -> &mut Self {
        if let Some(metric) = self.metric {
            self.line(metric.name, metric.labels, values, value);
        }
        self
    }

    fn histogram(&mut self, values: &[f64]) {
        let Some(Metric { name, .. }) = self.metric else { return };
        let up_to = |bound: f64| values.iter().filter(|value| **value <= bound).count() as f64;
        for bound in BUCKETS {
            self.line(&format!("{name}_bucket"), &["le"], &[&bound.to_string()], up_to(bound));
        }
        self.line(&format!("{name}_bucket"), &["le"], &["+Inf"], values.len() as f64);
        self.line(&format!("{name}_sum"), &[], &[], values.iter().sum());
        self.line(&format!("{name}_count"), &[], &[], values.len() as f64);
    }

    fn line(&mut self, name: &str, labels: &[&str], values: &[&str], value: f64) {
        let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().zip(values).map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests;
