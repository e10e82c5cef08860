//! The query engine's share of the machine: one memory pool, one spill folder and one thread pool for all tasks.
//!
//! The pool is half of the project's `memory:`, because what a process occupies exceeds what operators account for (by 130
//! to 230 MB at small limits). It is shared fairly between operators that can spill; what cannot spill fails its task with
//! the operators named, and the process lives.

use std::future::Future;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::DefaultObjectStoreRegistry;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::session::new_context;

/// How many of the largest consumers an out-of-memory error names.
const NAMED_CONSUMERS: NonZeroUsize = NonZeroUsize::new(5).expect("5 is not 0");
/// Spill files may take so much disk.
const SPILL_BYTES_MAX: u64 = 200 << 30;

/// Threads that read and write local files, per core. Tokio would start hundreds, each with a heap of its own that keeps what it
/// once held: a scan of 10 million rows took 820 to 1,150 MB with 512 of them, and 430 MB with few.
const BLOCKING_PER_CORE: usize = 4;

/// How joins are planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Joins {
    /// Hash joins: faster, but their build side must fit into memory.
    #[default]
    Hash,
    /// Sort-merge joins: about three times slower, but they spill.
    SortMerge,
}

/// The engine of one worker process.
#[derive(Debug)]
pub struct Engine {
    base: Arc<RuntimeEnv>,
    threads: Option<tokio::runtime::Runtime>,
    partitions: usize,
}

impl Engine {
    /// An engine for a process that may use `memory_bytes` in all, spilling below `spill_dir`.
    ///
    /// # Errors
    /// When the folder or the threads cannot be made.
    pub fn new(memory_bytes: u64, spill_dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(spill_dir)
            .with_context(|| format!("creating the spill folder `{}`", spill_dir.display()))?;
        let partitions = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let limit = usize::try_from(memory_bytes / 2).unwrap_or(usize::MAX).max(16 << 20);
        let pool = TrackConsumersPool::new(FairSpillPool::new(limit), NAMED_CONSUMERS);
        let base = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_temp_file_path(spill_dir)
            .with_max_temp_directory_size(SPILL_BYTES_MAX)
            .build_arc()
            .context("setting up the query engine")?;
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(partitions)
            .max_blocking_threads(partitions * BLOCKING_PER_CORE)
            .thread_name("engine")
            .enable_all()
            .build()
            .context("starting the engine's threads")?;
        Ok(Self { base, threads: Some(threads), partitions })
    }

    /// A fresh session: its own tables and object stores, the engine's memory and spill folder.
    ///
    /// # Errors
    /// When the engine refuses its own settings.
    pub fn context(&self, joins: Joins) -> Result<SessionContext> {
        self.session(self.config(joins))
    }

    /// [`Engine::context`] whose plans have one stream, so that a file's rows come in the file's order.
    ///
    /// # Errors
    /// When the engine refuses its own settings.
    pub fn context_in_order(&self) -> Result<SessionContext> {
        self.session(self.config(Joins::Hash).with_target_partitions(1))
    }

    fn session(&self, config: SessionConfig) -> Result<SessionContext> {
        let runtime = RuntimeEnvBuilder::from_runtime_env(&self.base)
            .with_object_store_registry(Arc::new(DefaultObjectStoreRegistry::new()))
            .build_arc()
            .context("setting up a session")?;
        Ok(new_context(config, runtime))
    }

    /// A session with its own tables that shares the object stores of `other`, so that a plan made here runs there.
    pub fn context_beside(&self, other: &SessionContext) -> SessionContext {
        new_context(self.config(Joins::Hash), other.runtime_env())
    }

    fn config(&self, joins: Joins) -> SessionConfig {
        let mut config = SessionConfig::new().with_target_partitions(self.partitions);
        config.options_mut().optimizer.prefer_hash_join = joins == Joins::Hash;
        config
    }

    /// The memory pool and spill folder that everything accounts in.
    pub fn runtime(&self) -> &Arc<RuntimeEnv> {
        &self.base
    }

    /// Runs `work` on the engine's threads, so that a query which hogs them delays no heartbeat. Dropping the returned
    /// future stops the work at its next await.
    ///
    /// # Errors
    /// When the work panicked: the panic's text.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let threads = self.threads.as_ref().context("the engine is shutting down")?;
        let mut handle = AbortOnDrop(threads.spawn(work));
        match (&mut handle.0).await {
            Ok(done) => Ok(done),
            Err(error) if error.is_panic() => {
                let payload = error.into_panic();
                let text = payload
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| payload.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                anyhow::bail!("the task panicked: {text}")
            }
            Err(_) => anyhow::bail!("the task was stopped"),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A runtime must not be dropped where async code runs; its tasks are aborted by their owners.
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
