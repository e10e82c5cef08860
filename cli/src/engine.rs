//! The parts that compute and hold data, opened as the settings say: worker, lake, online store, sources.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tidegate_registry::definitions::Settings;
use tidegate_registry::definitions::settings::LakeLocation;
use tidegate_registry::store::Store;
use tidegate_store::SqliteStore;
use tidegate_worker::drill::{DrillParts, DrillPlaces};
use tidegate_worker::engine::Engine;
use tidegate_worker::janitor::{Janitor, JanitorParts};
use tidegate_worker::lake::Lake;
use tidegate_worker::objects::Stores;
use tidegate_worker::online::OnlineStore;
use tidegate_worker::rebuild::RebuildParts;
use tidegate_worker::sources::Sources;
use tidegate_worker::{Worker, WorkerOptions, WorkerParts};
use tokio::sync::Notify;

use crate::commands::up::{Serving, Slots};
use crate::context::Registry;
use crate::process;

/// How long a task stays with a worker that says nothing.
const LEASE: Duration = Duration::from_secs(60);

/// Who tells whom inside one process; between processes everybody looks often enough.
#[derive(Debug, Clone, Default)]
pub struct Bells {
    /// There may be something to compute.
    pub work: Arc<Notify>,
    /// Something was computed: there may be something to let in.
    pub progress: Arc<Notify>,
}

/// A worker of this process.
///
/// # Errors
/// When the lake or the online store cannot be opened, or belongs to another registry.
pub async fn worker(
    settings: &Settings,
    registry: &Registry,
    slots: Slots,
    serving: Serving,
    bells: &Bells,
) -> anyhow::Result<Worker> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let online = online(settings).await?;
    if let Some(online) = &online {
        online.claim_owner(&settings.project, registry.id).await.context("claiming the online store")?;
    }
    let worker = Worker::new(WorkerParts {
        store: Arc::clone(&registry.store),
        clock: Arc::clone(&registry.clock),
        lake: claimed_lake(settings, registry).await?,
        online,
        sources: sources(settings)?,
        options: WorkerOptions {
            owner: process::owner(),
            lease: slots.lease.unwrap_or(LEASE),
            slots: slots.slots.unwrap_or(cores.clamp(1, 4)),
            queues: serving.queues,
            host: process::host(),
            memory_bytes: settings.memory_bytes,
            spill_dir: settings.spill_dir.clone(),
        },
        wake: Arc::clone(&bells.work),
        progress: Arc::clone(&bells.progress),
    })
    .context("starting a worker")?;
    Ok(worker.reconcile_every(settings.reconcile_every))
}

/// The janitor of this process.
///
/// # Errors
/// When the lake or the online store cannot be opened, or belongs to another registry.
pub async fn janitor(settings: &Settings, registry: &Registry) -> anyhow::Result<Janitor> {
    let online = online(settings).await?;
    if let Some(online) = &online {
        online.claim_owner(&settings.project, registry.id).await.context("claiming the online store")?;
    }
    Ok(Janitor::new(JanitorParts {
        store: Arc::clone(&registry.store),
        clock: Arc::clone(&registry.clock),
        lake: claimed_lake(settings, registry).await?,
        online,
        engine: Some(care_engine(settings)?),
        retention: settings.retention,
        drills: Some(drill_places(settings, registry)),
        owner: process::owner(),
    }))
}

/// What rehearses restores: with a share of the memory, since workers may be at it beside.
///
/// # Errors
/// As [`janitor`].
pub async fn drills(settings: &Settings, registry: &Registry) -> anyhow::Result<DrillParts> {
    Ok(DrillParts {
        store: Arc::clone(&registry.store),
        clock: Arc::clone(&registry.clock),
        lake: claimed_lake(settings, registry).await?,
        places: drill_places(settings, registry),
        stores: stores(settings),
        engine: care_engine(settings)?,
        owner: process::owner(),
        open_copy: Arc::new(|file| {
            Box::pin(async move {
                let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&file).await?);
                Ok(store)
            })
        }),
    })
}

/// Where drills of this project leave traces.
fn drill_places(settings: &Settings, registry: &Registry) -> DrillPlaces {
    DrillPlaces {
        project: settings.project.clone(),
        online: settings.online.clone(),
        simulated_clock: settings.clock.is_some(),
        // Projects may share a folder to spill into.
        scratch: settings.spill_dir.join(format!("drills-{}", registry.id)),
    }
}

/// What makes a registry anew from the lake.
///
/// # Errors
/// As [`janitor`].
pub async fn rebuild(settings: &Settings, registry: &Registry) -> anyhow::Result<RebuildParts> {
    Ok(RebuildParts {
        store: Arc::clone(&registry.store),
        lake: claimed_lake(settings, registry).await?,
        online: online(settings).await?,
        engine: care_engine(settings)?,
        project: Arc::new(registry.project.clone()),
    })
}

/// An engine for care, beside that of a worker: a share of the memory, since both may be at work.
fn care_engine(settings: &Settings) -> anyhow::Result<Arc<Engine>> {
    let engine = Engine::new(settings.memory_bytes / 4, &settings.spill_dir).context("starting an engine")?;
    Ok(Arc::new(engine))
}

/// Where the spines of datasets may lie: whoever runs a command may name any file that they can read; object stores as for
/// sources.
///
/// # Errors
/// Those of [`sources`].
pub fn spines(settings: &Settings) -> anyhow::Result<Sources> {
    let mut roots = settings.allowed_roots.clone();
    roots.push("/".to_owned());
    Sources::with_stores(&settings.root, &roots, stores(settings)).context("opening the folders of spines")
}

/// How this process reaches object stores.
pub fn stores(settings: &Settings) -> Stores {
    Stores::new(settings.storage.clone())
}

/// The project's lake, for reading.
///
/// # Errors
/// When it cannot be opened.
pub fn lake(settings: &Settings) -> anyhow::Result<Lake> {
    let project = settings.project.as_str();
    let opened = match &settings.lake {
        LakeLocation::Directory(path) => Lake::open(&path.display().to_string(), project),
        LakeLocation::Object(url) => Lake::open_in(url, &stores(settings), project),
    };
    opened.with_context(|| format!("opening the lake `{}`", settings.lake))
}

/// The project's lake, for writing.
///
/// # Errors
/// When it cannot be opened or belongs to another registry.
pub async fn claimed_lake(settings: &Settings, registry: &Registry) -> anyhow::Result<Lake> {
    let lake = lake(settings)?;
    lake.claim(registry.id).await.context("claiming the lake")?;
    Ok(lake)
}

/// The project's online store; `None` when the project is batch-only.
///
/// # Errors
/// When it cannot be opened.
pub async fn online(settings: &Settings) -> anyhow::Result<Option<Arc<dyn OnlineStore>>> {
    let stores = tidegate_worker::online::open_all(&settings.online, &settings.project, settings.clock.is_some());
    stores.await.context("opening the online store")
}

/// The project's sources.
///
/// # Errors
/// When one of the allowed folders does not exist, or one of the allowed stores cannot be one.
pub fn sources(settings: &Settings) -> anyhow::Result<Sources> {
    Sources::with_stores(&settings.root, &settings.allowed_roots, stores(settings))
        .context("opening the folders of sources")
}
