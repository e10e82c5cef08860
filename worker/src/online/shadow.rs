//! Stores beside the real ones, for drills: a Redis's is another namespace (`tg:{project}~drill-{id}:`, which no project can
//! have, since names hold no `~`), a SQLite file's is another file next to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_registry::definitions::settings::{OnlineLocation, OnlineTarget};
use tidegate_registry::ids::{DrillId, ProjectName};

use super::{OnlineError, OnlineStore, RedisOnline, Result, SeveralOnline, SqliteOnline};

/// The online stores of a drill.
#[derive(Debug)]
pub(crate) struct ShadowOnline {
    /// What is written to and read from: all of them.
    pub(crate) store: Arc<dyn OnlineStore>,
    places: ShadowPlaces,
}

/// Where the online stores of a drill are.
#[derive(Debug, Clone)]
pub(crate) struct ShadowPlaces {
    pub(crate) targets: Vec<OnlineTarget>,
    pub(crate) project: ProjectName,
    pub(crate) simulated_clock: bool,
    pub(crate) id: DrillId,
}

impl ShadowOnline {
    /// Opens empty stores beside those of a project; `None` when it has none.
    ///
    /// # Errors
    /// As [`super::open_all`].
    pub(crate) async fn open(places: &ShadowPlaces) -> Result<Option<Self>> {
        let mut members: Vec<(Arc<dyn OnlineStore>, bool)> = Vec::new();
        for target in &places.targets {
            let store: Arc<dyn OnlineStore> = match &target.location {
                OnlineLocation::Sqlite(path) => Arc::new(SqliteOnline::open(&beside(path, places.id)).await?),
                OnlineLocation::Redis(_) => Arc::new(places.redis(target).await?),
            };
            members.push((store, target.required));
        }
        let store = match members.len() {
            0 => return Ok(None),
            1 => members.swap_remove(0).0,
            _ => Arc::new(SeveralOnline::new(members)?),
        };
        Ok(Some(Self { store, places: places.clone() }))
    }

    /// The same stores after they lost everything.
    ///
    /// # Errors
    /// When they cannot be emptied or opened again.
    pub(crate) async fn lost(self) -> Result<Option<Self>> {
        self.store.close().await;
        self.places.remove().await?;
        Self::open(&self.places).await
    }
}

impl ShadowPlaces {
    async fn redis(&self, target: &OnlineTarget) -> Result<RedisOnline> {
        match &target.location {
            OnlineLocation::Redis(location) => {
                RedisOnline::open_beside(location, &self.project, self.id, self.simulated_clock).await
            }
            OnlineLocation::Sqlite(_) => Err(OnlineError::Unavailable("it is not a Redis".into())),
        }
    }

    /// Removes everything that these stores hold; harmless when there is nothing.
    ///
    /// # Errors
    /// When one of them cannot be reached.
    pub(crate) async fn remove(&self) -> Result<()> {
        for target in &self.targets {
            match &target.location {
                OnlineLocation::Sqlite(path) => remove_file(&beside(path, self.id)).await?,
                OnlineLocation::Redis(_) => {
                    let store = self.redis(target).await?;
                    let erased = store.erase().await;
                    store.close().await;
                    erased?;
                }
            }
        }
        Ok(())
    }
}

/// The file of a drill: next to the real one, so that it lies on the same disk.
fn beside(path: &Path, id: DrillId) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".drill-{id}"));
    path.with_file_name(name)
}

async fn remove_file(path: &Path) -> Result<()> {
    for ending in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_os_string();
        name.push(ending);
        match tokio::fs::remove_file(PathBuf::from(name)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(OnlineError::Internal { doing: "removing the copy of", source: error.into() });
            }
            _ => {}
        }
    }
    Ok(())
}
