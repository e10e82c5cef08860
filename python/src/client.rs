//! A project that Python has opened, and what can be looked up in it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Serialize;
use tidegate::cli::Shared;
use tidegate::commands::{consumers, dataset, features, services, snapshots, views};
use tidegate::context::{Context, Registry};
use tidegate::error::UserError;
use tidegate::output::Format;
use tidegate::process;
use tidegate::select::Selection;
use tidegate::shutdown::Shutdown;
use tidegate_registry::definitions::Settings;
use tidegate_registry::diagnostics::{RenderStyle, render};
use tidegate_worker::engine::Engine;
use tidegate_worker::online::OnlineStore;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::OnceCell;

use crate::errors::{closed, forked, raise, unsafe_here};
use crate::online::Cache;
use crate::{datasets, online};

/// How long Python's signals may wait while something is computed.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);
/// Threads of a client that only wait; computing has its own.
const WAITING_THREADS: usize = 2;
/// How long connections may take to end in good order, and threads after them: a server that hangs keeps nobody.
const CLOSING_MAX: Duration = Duration::from_secs(2);
/// What answers from the online store rest on is read from the registry so often.
const DEFINITIONS_AGE: Duration = Duration::from_secs(5);

/// How many clients have threads, and in which process.
static OPEN: (AtomicUsize, AtomicU32) = (AtomicUsize::new(0), AtomicU32::new(0));

/// A project, opened.
#[pyclass(frozen, module = "tidegate._native")]
pub(crate) struct Client {
    project: String,
    root: PathBuf,
    process: u32,
    /// `None` once it is closed. Only whoever has Python's lock looks here, so a fork never finds it locked.
    opened: Mutex<Option<Arc<Opened>>>,
}

/// What an open client holds. Each call holds it too, so that closing disturbs none: the last one lets go of everything.
pub(crate) struct Opened {
    pub(crate) parts: Parts,
    /// `None` only when all is let go of.
    runtime: Option<Runtime>,
    /// After both, whose threads it counts.
    _counted: Counted,
}

/// One of the clients that have threads.
struct Counted;

/// What calls work with.
pub(crate) struct Parts {
    pub(crate) context: Context,
    pub(crate) settings: Settings,
    registry: Mutex<(Arc<Registry>, std::time::Instant)>,
    computing: Mutex<Option<Arc<Computing>>>,
    scratch: PathBuf,
    online: OnceCell<Option<Arc<dyn OnlineStore>>>,
    pub(crate) cache: Cache,
}

/// What computes, and the folder that it spills into.
pub(crate) struct Computing {
    pub(crate) engine: Engine,
    /// After the engine, which writes there.
    _scratch: Scratch,
}

/// A folder that goes with its owner.
struct Scratch(PathBuf);

#[pymethods]
impl Client {
    /// Opens the project in a folder, or the nearest one upwards from the current folder.
    #[new]
    #[pyo3(signature = (project, profile, cache_seconds))]
    fn open(py: Python<'_>, project: Option<PathBuf>, profile: Option<String>, cache_seconds: f64) -> PyResult<Self> {
        let counted = Counted::new()?;
        let shared = Shared {
            project,
            profile,
            format: Format::Json,
            log_level: None,
            log_format: tidegate::logging::LogFormat::default(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WAITING_THREADS)
            .thread_name("tidegate")
            .enable_all()
            .build()
            .context("starting a client's threads")
            .map_err(|error| raise(&error))?;
        let parts = match wait(py, &runtime, Parts::open(Context::new(shared, Shutdown::default()), cache_seconds)) {
            Ok(parts) => parts,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        Ok(Self {
            project: parts.settings.project.to_string(),
            root: parts.settings.root.clone(),
            process: std::process::id(),
            opened: Mutex::new(Some(Arc::new(Opened { parts, runtime: Some(runtime), _counted: counted }))),
        })
    }

    /// The project's name.
    #[getter]
    fn project(&self) -> &str {
        &self.project
    }

    /// The project's folder.
    #[getter]
    fn root(&self) -> &Path {
        &self.root
    }

    /// Lets go of threads, connections and files, as soon as no call needs them any more.
    fn close(&self) {
        // In a fork there is nothing to close: see `drop`.
        if self.process == std::process::id() {
            let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(opened);
        }
    }

    /// Feature views as `tidegate views list --format json` prints them.
    #[pyo3(signature = (search, owner, tag))]
    fn views(
        &self,
        py: Python<'_>,
        search: Option<String>,
        owner: Option<String>,
        tag: Option<String>,
    ) -> PyResult<String> {
        let registry = self.registry(py)?;
        json(&views::summaries(&registry.project, &Selection { search, owner, tag }))
    }

    /// Features as `tidegate features list --format json` prints them.
    #[pyo3(signature = (search, owner, tag))]
    fn features(
        &self,
        py: Python<'_>,
        search: Option<String>,
        owner: Option<String>,
        tag: Option<String>,
    ) -> PyResult<String> {
        let registry = self.registry(py)?;
        json(&features::summaries(&registry.project, &Selection { search, owner, tag }))
    }

    /// Feature services as `tidegate services list --format json` prints them.
    #[pyo3(signature = (search, owner, tag))]
    fn services(
        &self,
        py: Python<'_>,
        search: Option<String>,
        owner: Option<String>,
        tag: Option<String>,
    ) -> PyResult<String> {
        let registry = self.registry(py)?;
        json(&services::summaries(&registry.project, &Selection { search, owner, tag }))
    }

    /// Consumers as `tidegate consumers list --format json` prints them.
    #[pyo3(signature = (search, owner, tag, view))]
    fn consumers(
        &self,
        py: Python<'_>,
        search: Option<String>,
        owner: Option<String>,
        tag: Option<String>,
        view: Option<&str>,
    ) -> PyResult<String> {
        let registry = self.registry(py)?;
        let found = consumers::summaries(&registry.project, &Selection { search, owner, tag }, view);
        json(&found.map_err(|error| raise(&error))?)
    }

    /// Snapshots as `tidegate snapshots list --format json` prints them.
    #[pyo3(signature = (dag, view, limit))]
    fn snapshots(&self, py: Python<'_>, dag: Option<String>, view: Option<String>, limit: u32) -> PyResult<String> {
        let opened = self.opened()?;
        let found = opened.wait(py, async {
            if dag.is_some() && view.is_some() {
                return Err(UserError::new("snapshots are asked for by DAG or by view")
                    .hint("give one of them")
                    .into());
            }
            let registry = opened.parts.registry(Duration::ZERO).await?;
            snapshots::reports(&snapshots::Filter { dag, view, limit }, &registry).await
        })?;
        json(&found)
    }

    /// Datasets as `tidegate dataset list --format json` prints them.
    #[pyo3(signature = (view, built_from, limit))]
    fn datasets(
        &self,
        py: Python<'_>,
        view: Option<String>,
        built_from: Option<String>,
        limit: u32,
    ) -> PyResult<String> {
        let opened = self.opened()?;
        let found = opened.wait(py, async {
            let registry = opened.parts.registry(Duration::ZERO).await?;
            dataset::reports(&dataset::Filter { built_from, view, limit }, &registry).await
        })?;
        json(&found)
    }

    /// Joins features to labels: see `datasets`.
    #[pyo3(signature = (kind, spine, *, features, event_timestamp, at_snapshot, known_at, short_names, name))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn dataset<'py>(
        &self,
        py: Python<'py>,
        kind: &str,
        spine: &Bound<'py, PyAny>,
        features: Vec<String>,
        event_timestamp: String,
        at_snapshot: Option<String>,
        known_at: Option<String>,
        short_names: bool,
        name: Option<String>,
    ) -> PyResult<datasets::Made<'py>> {
        let asked = datasets::Asked { features, event_timestamp, at_snapshot, known_at, short_names, name };
        datasets::dataset(&*self.opened()?, py, kind, spine, asked)
    }

    /// Reads features from the online store: see `online`.
    #[pyo3(signature = (view, keys, *, features, aged, anyhow, timeout))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn online<'py>(
        &self,
        py: Python<'py>,
        view: String,
        keys: Vec<Vec<(String, String)>>,
        features: Option<Vec<String>>,
        aged: bool,
        anyhow: bool,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyDict>> {
        // What no `Duration` can hold is no limit either.
        let timeout = timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        online::get(&*self.opened()?, py, &online::Asked { view, keys, features, aged, anyhow, timeout })
    }
}

impl Client {
    /// What calls work with, unless the client is closed or of another process.
    fn opened(&self) -> PyResult<Arc<Opened>> {
        if self.process != std::process::id() {
            return Err(forked());
        }
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)
    }

    fn registry(&self, py: Python<'_>) -> PyResult<Arc<Registry>> {
        let opened = self.opened()?;
        opened.wait(py, opened.parts.registry(Duration::ZERO))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let opened = self.opened.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.process != std::process::id() {
            // Threads do not survive a fork, and waiting for them would take forever. Connections and the folder to spill
            // into are in use by the process that this one was forked from.
            std::mem::forget(opened);
        }
    }
}

impl Opened {
    /// Waits for `work` with Python's lock released. Ctrl-C stops it.
    pub(crate) fn wait<T: Send>(
        &self,
        py: Python<'_>,
        work: impl Future<Output = anyhow::Result<T>> + Send,
    ) -> PyResult<T> {
        wait(py, self.runtime.as_ref().ok_or_else(closed)?, work)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let (parts, mut runtime) = (&self.parts, self.runtime.take());
        let mut let_go = || {
            let Some(runtime) = runtime.take() else { return };
            // Python collects garbage wherever it is called: a thread of another client's may not wait, so all is just dropped.
            if Handle::try_current().is_ok() {
                return runtime.shutdown_background();
            }
            let _ = runtime.block_on(async { tokio::time::timeout(CLOSING_MAX, parts.close()).await });
            runtime.shutdown_timeout(CLOSING_MAX);
        };
        // Other threads of Python need not wait for it. There is no lock to release when the interpreter is about to end.
        if Python::try_attach(|py| py.detach(&mut let_go)).is_none() {
            let_go();
        }
    }
}

impl Counted {
    /// Counts a client.
    ///
    /// # Errors
    /// When this process was forked from one where a client was open. Locks and queues that the threads there were in are
    /// copied as they were, with nobody left to leave them; threads that are started here would come upon them, now and then.
    fn new() -> PyResult<Self> {
        let ((open, process), here) = (&OPEN, std::process::id());
        if process.swap(here, Ordering::Relaxed) != here && open.load(Ordering::Relaxed) > 0 {
            process.store(0, Ordering::Relaxed);
            return Err(unsafe_here());
        }
        open.fetch_add(1, Ordering::Relaxed);
        Ok(Self)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Parts {
    async fn open(context: Context, cache_seconds: f64) -> anyhow::Result<Self> {
        let loaded = context.load_settings()?;
        let Some(settings) = loaded.settings else {
            let style = RenderStyle { color: false, unicode: true, width: 120 };
            let told = render(&loaded.diagnostics, &loaded.files, style);
            return Err(UserError::new(format!("the project's settings are wrong\n{}", told.trim_end())).into());
        };
        let registry = applied(&context, &settings).await?;
        static OPENED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        let scratch = format!("tidegate-python-{}-{number}", process::owner().replace(':', "-"));
        Ok(Self {
            context,
            settings,
            registry: Mutex::new((Arc::new(registry), std::time::Instant::now())),
            computing: Mutex::default(),
            scratch: std::env::temp_dir().join(scratch),
            online: OnceCell::new(),
            cache: Cache::new(Duration::try_from_secs_f64(cache_seconds).unwrap_or(Duration::MAX)),
        })
    }

    /// The registry with definitions that were read at most `age` ago.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(crate) async fn registry(&self, age: Duration) -> anyhow::Result<Arc<Registry>> {
        let (known, read_at) = {
            let held = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
            (Arc::clone(&held.0), held.1)
        };
        if read_at.elapsed() <= age {
            return Ok(known);
        }
        let (revision, project) = known.store.project(None).await.context("reading the definitions")?;
        let registry = Arc::new(Registry { revision, project, ..Registry::clone(&known) });
        *self.registry.lock().unwrap_or_else(PoisonError::into_inner) =
            (Arc::clone(&registry), std::time::Instant::now());
        Ok(registry)
    }

    /// The registry for an answer that is wanted at once: with what is known of it, should it not answer within `limit`.
    pub(crate) async fn known_registry(&self, limit: Duration) -> Arc<Registry> {
        match tokio::time::timeout(limit, self.registry(DEFINITIONS_AGE)).await {
            Ok(Ok(registry)) => registry,
            _ => {
                let mut held = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
                // It is asked again in a while, and not by every call.
                held.1 = std::time::Instant::now();
                Arc::clone(&held.0)
            }
        }
    }

    /// What computes: threads and memory are taken when first something is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn computing(&self) -> anyhow::Result<Arc<Computing>> {
        // Two that begin at once must not make the same folder twice.
        let mut computing = self.computing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(computing) = &*computing {
            return Ok(Arc::clone(computing));
        }
        let scratch = Scratch(self.scratch.clone());
        let started = Computing { engine: Engine::new(self.settings.memory_bytes, &scratch.0)?, _scratch: scratch };
        Ok(Arc::clone(computing.insert(Arc::new(started))))
    }

    /// The project's online store.
    ///
    /// # Errors
    /// When it has none, or it cannot be opened.
    pub(crate) async fn online(&self) -> anyhow::Result<&Arc<dyn OnlineStore>> {
        let opened = self.online.get_or_try_init(|| tidegate::engine::online(&self.settings)).await?;
        opened.as_ref().ok_or_else(|| tidegate::commands::online::no_store().into())
    }

    /// Waits for what is under way and lets go of connections and files.
    async fn close(&self) {
        if let Some(Some(online)) = self.online.get() {
            online.close().await;
        }
        let store = Arc::clone(&self.registry.lock().unwrap_or_else(PoisonError::into_inner).0.store);
        store.close().await;
    }
}

/// The registry, in which something must have been applied.
async fn applied(context: &Context, settings: &Settings) -> anyhow::Result<Registry> {
    match context.registry_if_any(settings).await? {
        Some(registry) if registry.revision > 0 => Ok(registry),
        _ => Err(UserError::new("nothing has been applied yet").hint("`tidegate apply` does it").into()),
    }
}

/// Waits for `work` with Python's lock released, looking for signals now and then.
fn wait<T: Send>(
    py: Python<'_>,
    runtime: &Runtime,
    work: impl Future<Output = anyhow::Result<T>> + Send,
) -> PyResult<T> {
    let mut work = Box::pin(work);
    loop {
        let ended = py.detach(|| {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    ended = &mut work => Some(ended),
                    () = tokio::time::sleep(SIGNALS_EVERY) => None,
                }
            })
        });
        match ended {
            Some(ended) => return ended.map_err(|error| raise(&error)),
            None => {
                if let Err(stopped) = py.check_signals() {
                    // Dropping ends the work; a connection that it holds goes back to its pool by way of the runtime.
                    let _entered = runtime.enter();
                    drop(work);
                    return Err(stopped);
                }
            }
        }
    }
}

/// `found` as Python reads it.
fn json(found: &impl Serialize) -> PyResult<String> {
    serde_json::to_string(found).map_err(|error| raise(&anyhow!(error)))
}
