//! Snapshots as they are shown: what the registry recorded, with what became of them since.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value, json};
use tidegate_registry::care::Pin;
use tidegate_registry::ids::{SnapshotId, ViewId};
use tidegate_registry::restore::{BadMark, HoldPolicy, Restore};
use tidegate_registry::run::{Pins, SourcePin, Verdict};
use tidegate_registry::store::{CheckFilter, CheckRow, Snapshot, SnapshotView, Store};
use tidegate_registry::time::format_instant;

use crate::context::Registry;
use crate::decision::Decision;
use crate::output::{Row, grid};

/// What became of snapshots, read once for all that are shown.
pub(super) struct Since {
    pins: BTreeMap<SnapshotId, Pin>,
    bad: IndexMap<SnapshotId, BadMark>,
    held: IndexMap<ViewId, HoldPolicy>,
    /// Newest first.
    restores: Vec<Restore>,
}

impl Since {
    /// # Errors
    /// When the registry cannot be read.
    pub(super) async fn read(registry: &Registry) -> anyhow::Result<Self> {
        let store = &registry.store;
        Ok(Self {
            pins: store.pins().await?.into_iter().collect(),
            bad: store.bad_marks().await?,
            held: store.holds().await?.of(&registry.project),
            restores: store.restores(0).await?,
        })
    }

    fn restore(&self, snapshot: &Snapshot) -> Option<&Restore> {
        self.restores.iter().find(|restore| restore.id == snapshot.run)
    }

    /// The last restore that took something of `snapshot` out of a ledger, of those that were recorded.
    fn taken_back(&self, snapshot: &Snapshot) -> Option<&Restore> {
        let takes = |restore: &&Restore| {
            let mut leaving = restore.plan.views.values().flat_map(|view| &view.leaves);
            restore.recorded_at.is_some() && leaving.any(|slice| slice.snapshot == snapshot.id)
        };
        self.restores.iter().find(takes)
    }
}

/// Something that a person did, and why.
#[derive(Debug, Serialize)]
struct Said {
    actor: String,
    reason: String,
    at: String,
}

impl Said {
    fn sentence(&self) -> String {
        format!("{} (by {}, {})", self.reason, self.actor, self.at)
    }
}

/// What a snapshot of a restore is.
#[derive(Debug, Serialize)]
struct OfRestore {
    asked: String,
    actor: String,
    reason: String,
    took_ms: Option<u64>,
}

/// The restore that took a snapshot back.
#[derive(Debug, Serialize)]
struct TakenBack {
    restore: String,
    asked: String,
    actor: String,
    reason: String,
    at: Option<String>,
}

/// A snapshot as it is shown.
#[derive(Debug, Serialize)]
pub struct Report {
    id: String,
    dag: String,
    run: String,
    interval_start: String,
    interval_end: String,
    created_at: String,
    status: String,
    decision: Option<Decision>,
    pinned: Option<Said>,
    bad: Option<Said>,
    held: bool,
    restore: Option<OfRestore>,
    restored_away_by: Option<TakenBack>,
    views: Vec<View>,
    /// In `show` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    reads: Option<Reads>,
}

#[derive(Debug, Serialize)]
struct View {
    view: String,
    delta_version: u64,
    rows: u64,
    digest: String,
    online_generation: Option<u64>,
    publish_number: u64,
    fingerprint: String,
    quarantined: u64,
    checks: Verdicts,
}

/// How many checks of a view had which verdict.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Verdicts {
    passed: u64,
    warned: u64,
    failed: u64,
    quarantined: u64,
    skipped: u64,
}

impl Verdicts {
    fn of(rows: &[CheckRow], view: &ViewId) -> Self {
        let mut verdicts = Self::default();
        for row in rows.iter().filter(|row| row.view == *view) {
            let count = match row.result.verdict {
                Verdict::Passed => &mut verdicts.passed,
                // What would have stopped the run was let through by a person.
                Verdict::Failed | Verdict::Error if row.result.does_not_hold() => &mut verdicts.failed,
                Verdict::Failed | Verdict::Error => &mut verdicts.warned,
                Verdict::Quarantined => &mut verdicts.quarantined,
                Verdict::Skipped | Verdict::Pending => &mut verdicts.skipped,
            };
            *count += 1;
        }
        verdicts
    }

    fn sentence(self) -> String {
        let Self { passed, warned, failed, quarantined, skipped } = self;
        let all = [
            (passed, "passed"),
            (warned, "warned"),
            (failed, "failed"),
            (quarantined, "set aside"),
            (skipped, "skipped"),
        ];
        let some = all.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
        some.collect::<Vec<_>>().join(", ")
    }
}

/// What a run had read.
#[derive(Debug, Serialize)]
struct Reads {
    sources: IndexMap<String, Value>,
    views: IndexMap<String, Value>,
}

impl Reads {
    fn of(pins: &Pins) -> Self {
        let sources = pins.sources.iter().map(|(name, pin)| {
            let pin = match pin {
                SourcePin::Delta { version } => json!({ "delta_version": version }),
                SourcePin::Files(files) => json!({
                    "files": files.len(),
                    "bytes": files.iter().map(|file| file.size).sum::<u64>(),
                    "newest": files.iter().max_by_key(|file| file.modified_micros).map(|file| &file.url),
                }),
            };
            (name.clone(), pin)
        });
        let views = pins.views.iter().map(|(view, pin)| {
            let until = pin.state.map(|interval| format_instant(interval.end()));
            (view.to_string(), json!({ "delta_version": pin.delta_version, "newest_end": until }))
        });
        Self { sources: sources.collect(), views: views.collect() }
    }

    fn lines(&self) -> String {
        let of = |what: &Value| match (what["delta_version"].as_u64(), what["files"].as_u64()) {
            (Some(version), _) => format!("version {version}"),
            (None, files) => {
                format!("{} files, {} bytes", files.unwrap_or_default(), what["bytes"].as_u64().unwrap_or_default())
            }
        };
        let all = self.sources.iter().chain(&self.views).map(|(name, what)| format!("{name}: {}", of(what)));
        all.collect::<Vec<_>>().join("\n")
    }
}

impl Report {
    /// # Errors
    /// When the registry cannot be read.
    pub(super) async fn of(snapshot: Snapshot, since: &Since, store: &dyn Store) -> anyhow::Result<Self> {
        let filter = CheckFilter { run: Some(snapshot.run), ..CheckFilter::default() };
        let checks = store.checks(&filter).await?;
        Ok(Self::new(&snapshot, since, &checks))
    }

    /// With what its run had read.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(super) async fn whole(snapshot: Snapshot, since: &Since, store: &dyn Store) -> anyhow::Result<Self> {
        let reads = store.reads_of(snapshot.run).await?;
        let report = Self::of(snapshot, since, store).await?;
        Ok(Self { reads: Some(Reads::of(&reads.unwrap_or_default())), ..report })
    }

    /// `checks` are the verdicts of its run.
    pub(super) fn new(snapshot: &Snapshot, since: &Since, checks: &[CheckRow]) -> Self {
        let view = |view: &SnapshotView| View {
            view: view.view.to_string(),
            delta_version: view.delta_version,
            rows: view.rows,
            digest: view.digest.clone(),
            online_generation: view.online_generation,
            publish_number: view.publish_number,
            fingerprint: view.fingerprint.clone(),
            quarantined: view.quarantined,
            checks: Verdicts::of(checks, &view.view),
        };
        let pinned = since.pins.get(&snapshot.id).map(|pin| Said {
            actor: pin.actor.clone(),
            reason: pin.reason.clone(),
            at: format_instant(pin.pinned_at),
        });
        let bad = since.bad.get(&snapshot.id).map(|mark| Said {
            actor: mark.actor.clone(),
            reason: mark.reason.clone(),
            at: format_instant(mark.marked_at),
        });
        let restore = since.restore(snapshot).map(|restore| OfRestore {
            asked: restore.plan.asked.clone(),
            actor: restore.actor.clone(),
            reason: restore.reason.clone(),
            took_ms: restore.took_ms,
        });
        let taken_back = (snapshot.status == "restored_away").then(|| since.taken_back(snapshot)).flatten();
        let restored_away_by = taken_back.map(|restore| TakenBack {
            restore: restore.id.to_string(),
            asked: restore.plan.asked.clone(),
            actor: restore.actor.clone(),
            reason: restore.reason.clone(),
            at: restore.recorded_at.map(format_instant),
        });
        Self {
            id: snapshot.id.to_string(),
            dag: snapshot.dag.to_string(),
            run: snapshot.run.to_string(),
            interval_start: format_instant(snapshot.interval.start()),
            interval_end: format_instant(snapshot.interval.end()),
            created_at: format_instant(snapshot.created_at),
            status: snapshot.status.clone(),
            decision: snapshot.decision.as_ref().map(Into::into),
            pinned,
            bad,
            held: snapshot.views.iter().any(|of| since.held.contains_key(&of.view)),
            restore,
            restored_away_by,
            views: snapshot.views.iter().map(view).collect(),
            reads: None,
        }
    }

    /// What else is to be said of it, a word each.
    fn flags(&self) -> Vec<&'static str> {
        let flags = [
            (self.restore.is_some(), "restore"),
            (self.pinned.is_some(), "pinned"),
            (self.bad.is_some(), "bad"),
            (self.held, "held"),
        ];
        let decision = self.decision.as_ref().map(Decision::word);
        decision.into_iter().chain(flags.into_iter().filter(|(is, _)| *is).map(|(_, word)| word)).collect()
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let views = self.views.iter().map(|view| {
            vec![
                view.view.clone(),
                view.delta_version.to_string(),
                view.rows.to_string(),
                view.quarantined.to_string(),
                view.online_generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string()),
                view.checks.sentence(),
                view.fingerprint.clone(),
                view.digest.clone(),
            ]
        });
        let headings = ["VIEW", "DELTA VERSION", "ROWS", "SET ASIDE", "GENERATION", "CHECKS", "DEFINITION", "DIGEST"];
        let decided = self.decision.as_ref().map(Decision::sentence).unwrap_or_default();
        let said = |said: &Option<Said>| said.as_ref().map(Said::sentence).unwrap_or_default();
        let restored = self.restore.as_ref().map(|restore| {
            let took = restore.took_ms.map(|took| format!(", in {:.2} s", took as f64 / 1e3)).unwrap_or_default();
            format!("{} (by {}{took}: {})", restore.asked, restore.actor, restore.reason)
        });
        let taken_back = self.restored_away_by.as_ref().map(|by| {
            let at = by.at.as_deref().unwrap_or_default();
            format!("by restore {} ({}, by {}, {at}: {})", by.restore, by.asked, by.actor, by.reason)
        });
        vec![
            ("snapshot", self.id.clone()),
            ("dag", self.dag.clone()),
            ("run", self.run.clone()),
            ("interval", format!("{}/{}", self.interval_start, self.interval_end)),
            ("recorded", self.created_at.clone()),
            ("status", self.status.clone()),
            (self.decision.as_ref().map_or("override", |decision| decision.word()), decided),
            ("pinned", said(&self.pinned)),
            ("bad", said(&self.bad)),
            ("held", if self.held { "yes: `tidegate holds` says why".to_owned() } else { String::new() }),
            ("restore", restored.unwrap_or_default()),
            ("taken back", taken_back.unwrap_or_default()),
            ("views", grid(&headings, views)),
            ("read", self.reads.as_ref().map(Reads::lines).unwrap_or_default()),
        ]
    }
}

impl Row for Report {
    const HEADINGS: &'static [&'static str] =
        &["SNAPSHOT", "DAG", "INTERVAL START", "INTERVAL END", "RECORDED", "STATUS", "VIEWS", "ROWS", "SET ASIDE"];

    fn cells(&self) -> Vec<String> {
        let flags = self.flags();
        vec![
            self.id.clone(),
            self.dag.clone(),
            self.interval_start.clone(),
            self.interval_end.clone(),
            self.created_at.clone(),
            if flags.is_empty() { self.status.clone() } else { format!("{} ({})", self.status, flags.join(", ")) },
            self.views.len().to_string(),
            self.views.iter().map(|view| view.rows).sum::<u64>().to_string(),
            self.views.iter().map(|view| view.quarantined).sum::<u64>().to_string(),
        ]
    }
}
