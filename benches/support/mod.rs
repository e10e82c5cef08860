//! What several benchmarks need: a project in a folder of which one view is staged, and a way to compare times.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use tidegate_registry::definitions::{LoadOptions, load};
use tidegate_registry::ids::{RunId, ViewId};
use tidegate_registry::model::Project;
use tidegate_registry::run::{Pins, StagedView, ViewPin};
use tidegate_registry::time::Interval;
use tidegate_worker::engine::Engine;
use tidegate_worker::lake::Lake;
use tidegate_worker::reads::RunReads;
use tidegate_worker::sources::Sources;
use tidegate_worker::stage::{StageRequest, stage};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A project with one view over one source.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) reads: RunReads,
    pub(crate) view: ViewId,
}

impl World {
    /// A project `name` in `folder` with these definitions; its source reads `source`, a file in `folder`. `memory` is in
    /// bytes.
    pub(crate) async fn new(folder: &Path, name: &str, source: &str, definitions: &str, memory: u64) -> Self {
        let root = folder.join(name);
        std::fs::create_dir_all(&root).unwrap();
        std::fs::hard_link(folder.join(source), root.join(source)).unwrap();
        std::fs::write(root.join("tidegate.yaml"), "project: bench\n").unwrap();
        std::fs::write(root.join("bench.yaml"), definitions).unwrap();
        let loaded = load(&root, &LoadOptions::default());
        let project: Arc<Project> = Arc::new(loaded.project.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics)));
        let view = project.views.keys().next().unwrap().clone();
        let lake = Lake::open(root.join("lake").to_str().unwrap(), "bench").unwrap();
        lake.ensure_tables(&project, std::slice::from_ref(&view)).await.unwrap();
        let sources = Sources::new(&root, &[]).unwrap();
        let (name, source) = project.sources.iter().next().unwrap();
        let pins = Pins {
            sources: IndexMap::from([(name.to_string(), sources.pin(source).await.unwrap())]),
            views: IndexMap::from([(view.clone(), ViewPin { delta_version: 0, state: None })]),
            ..Pins::default()
        };
        let interval = Interval::new(at("2024-01-01T00:00:00Z"), at("2024-01-02T00:00:00Z")).unwrap();
        let reads = RunReads { project, lake, sources, interval, pins, staged: IndexMap::new() };
        Self { engine: Engine::new(memory, &root.join("spill")).unwrap(), reads, view }
    }

    /// What a run does with a view: compute, sort, check, hash, write. `look` sees the files before they are removed.
    pub(crate) async fn stage(&self, profile: bool, look: impl FnOnce(&StagedView)) {
        let run = RunId::generate();
        let (reads, view, attempt) = (self.reads.clone(), self.view.clone(), "0-1".to_owned());
        let now = reads.interval.end();
        let request = StageRequest { reads, view, run, attempt, readmit: None, now, profile };
        let staged = stage(&self.engine, &request).await.unwrap();
        let failed: Vec<_> = staged.checks.iter().filter(|check| check.blocks()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        look(&staged);
        self.reads.lake.discard_staged(&self.view, run, &[]).await.unwrap();
    }
}

pub(crate) fn at(text: &str) -> tidegate_registry::time::Instant {
    text.parse().unwrap()
}

/// The same numbers every time: a linear congruential generator.
pub(crate) fn numbers() -> impl FnMut() -> u64 {
    let mut state = 1_u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

pub(crate) async fn timed(work: impl Future<Output = ()>) -> Duration {
    let started = Instant::now();
    work.await;
    started.elapsed()
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

pub(crate) fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// The kernel's own figure for the peak of this process's memory.
pub(crate) fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}
