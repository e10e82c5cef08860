//! Where a world keeps what it computes: in files of its own, or on servers that it shares with other worlds.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use tidegate_registry::definitions::settings::{OnlineLocation, RedisLocation, StorageSettings};
use tidegate_registry::store::{Store, StoreError};
use tidegate_servers::{Postgres, Redis, RedisOptions, S3Fake};
use tidegate_store::{PostgresStore, SqliteStore};
use tidegate_worker::lake::Lake;
use tidegate_worker::objects::{Environment, Patience, Stores};

/// Databases of a Redis: one a world.
const REDIS_DATABASES: &str = "10000";

/// The parts that a world is built of.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    /// SQLite, a local folder, SQLite.
    Embedded,
    /// PostgreSQL, S3, Redis.
    Servers(Servers),
}

impl Backend {
    /// Servers that all worlds share: nobody may harm them.
    pub(crate) fn shared() -> Self {
        static SHARED: LazyLock<Servers> = LazyLock::new(|| Servers {
            postgres: Arc::new(Postgres::start().unwrap()),
            s3: Arc::new(S3Fake::start().unwrap()),
            redis: Arc::new(Mutex::new(redis(&[]))),
            whole: true,
        });
        Self::Servers(SHARED.clone())
    }

    /// As tables name it.
    pub(crate) fn parts(&self) -> &'static str {
        match self {
            Self::Embedded => "SQLite, folder, SQLite",
            Self::Servers(_) => "PostgreSQL, S3, Redis",
        }
    }

    /// The shared servers, but for a PostgreSQL that may be harmed.
    pub(crate) fn with_own_postgres() -> (Self, Arc<Postgres>) {
        let Self::Servers(mut servers) = Self::shared() else { unreachable!() };
        let own = Arc::new(Postgres::start().unwrap());
        servers.postgres = Arc::clone(&own);
        servers.whole = false;
        (Self::Servers(servers), own)
    }

    /// The shared servers, but for an S3 that may be harmed.
    pub(crate) fn with_own_s3() -> (Self, Arc<S3Fake>) {
        let Self::Servers(mut servers) = Self::shared() else { unreachable!() };
        let own = Arc::new(S3Fake::start().unwrap());
        servers.s3 = Arc::clone(&own);
        (Self::Servers(servers), own)
    }

    /// The shared servers, but for a Redis that may be harmed, with settings of its own.
    pub(crate) fn with_own_redis(settings: &[&str]) -> (Self, Arc<Mutex<Redis>>) {
        let Self::Servers(mut servers) = Self::shared() else { unreachable!() };
        let own = Arc::new(Mutex::new(redis(settings)));
        servers.redis = Arc::clone(&own);
        (Self::Servers(servers), own)
    }
}

fn redis(settings: &[&str]) -> Redis {
    let settings = ["--databases", REDIS_DATABASES].iter().chain(settings).map(|word| (*word).to_owned()).collect();
    Redis::start_with(RedisOptions { settings, ..RedisOptions::default() }).unwrap()
}

/// A registry's, a lake's and an online store's server.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) s3: Arc<S3Fake>,
    pub(crate) redis: Arc<Mutex<Redis>>,
    /// Whether the PostgreSQL is the one where the database to be copied is.
    whole: bool,
}

/// What one world has of a [`Backend`].
#[derive(Debug)]
pub(crate) enum Place {
    /// In the project's folder.
    Folder,
    /// A database, a bucket and a database.
    Servers {
        /// Where.
        servers: Servers,
        /// Tells it from those of other worlds.
        number: u32,
    },
}

impl Place {
    /// One that nobody else has, empty but for a database.
    pub(crate) fn empty(backend: &Backend) -> Self {
        let Backend::Servers(servers) = backend else { return Self::Folder };
        let place = Self::numbered(servers);
        servers.postgres.execute("postgres", &format!("CREATE DATABASE {}", place.name())).unwrap();
        place
    }

    /// One that holds what `other` does, or `None` when that cannot be copied to this backend. An online store is empty
    /// before the first run.
    pub(crate) fn copy_of(other: &Self, backend: &Backend) -> Option<Self> {
        match (other, backend) {
            (Self::Folder, Backend::Embedded) => Some(Self::Folder),
            (Self::Servers { servers: from, .. }, Backend::Servers(servers)) if servers.whole => {
                let place = Self::numbered(servers);
                let sql = format!("CREATE DATABASE {} TEMPLATE {}", place.name(), other.name());
                servers.postgres.execute("postgres", &sql).unwrap();
                for key in from.s3.keys(&other.name(), "") {
                    servers.s3.put(&place.name(), &key, &from.s3.get(&other.name(), &key).unwrap());
                }
                Some(place)
            }
            _ => None,
        }
    }

    fn numbered(servers: &Servers) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let place = Self::Servers { servers: servers.clone(), number: NEXT.fetch_add(1, Ordering::Relaxed) };
        servers.s3.create_bucket(&place.name());
        place
    }

    /// Of the database and of the bucket.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Folder => "shop".to_owned(),
            Self::Servers { number, .. } => format!("shop{number}"),
        }
    }

    /// Its part of `tidegate.yaml`.
    pub(crate) fn settings(&self) -> String {
        match self {
            Self::Folder => "online: sqlite://.tidegate/online.db\n".to_owned(),
            Self::Servers { .. } => format!(
                "registry: {}\nlake: s3://{}/lake\nonline: {}\n",
                self.registry_url(),
                self.name(),
                self.online_url()
            ),
        }
    }

    /// What processes must find in their environment.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        match self {
            Self::Folder => Vec::new(),
            Self::Servers { servers, .. } => servers.s3.endpoint().environment(),
        }
    }

    fn registry_url(&self) -> String {
        let Self::Servers { servers, .. } = self else { unreachable!() };
        servers.postgres.url(&self.name()) + "&connections=3"
    }

    fn online_url(&self) -> String {
        let Self::Servers { servers, number } = self else { unreachable!() };
        servers.redis.lock().unwrap().url().replace("/0", &format!("/{number}"))
    }

    /// Its registry.
    pub(crate) async fn registry(&self, folder: &Path) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::Folder => Arc::new(SqliteStore::open(&folder.join(".tidegate/registry.db")).await?),
            Self::Servers { .. } => Arc::new(PostgresStore::open(&self.registry_url()).await?),
        })
    }

    /// Its lake.
    pub(crate) fn lake(&self, folder: &Path) -> Lake {
        match self {
            Self::Folder => Lake::open(folder.join(".tidegate/lake").to_str().unwrap(), "shop").unwrap(),
            Self::Servers { .. } => {
                let environment = Environment::from_pairs(self.environment());
                let stores = Stores::with(StorageSettings::default(), environment, Patience::default());
                Lake::open_in(&format!("s3://{}/lake", self.name()).parse().unwrap(), &stores, "shop").unwrap()
            }
        }
    }

    /// Where its online store is.
    pub(crate) fn online(&self, folder: &Path) -> OnlineLocation {
        match self {
            Self::Folder => OnlineLocation::Sqlite(folder.join(".tidegate/online.db")),
            Self::Servers { .. } => OnlineLocation::Redis(RedisLocation::parse(&self.online_url()).unwrap()),
        }
    }

    /// The keys of its Redis that `pattern` means, in order; none where the online store is a file.
    pub(crate) fn online_keys(&self, pattern: &str) -> Vec<String> {
        let Self::Servers { servers, number } = self else { return Vec::new() };
        let said = servers.redis.lock().unwrap().cli(&["-n", &number.to_string(), "--scan", "--pattern", pattern]);
        let mut keys: Vec<String> = said.unwrap().lines().map(ToOwned::to_owned).collect();
        keys.sort();
        keys
    }

    /// The files in the folder `below` of the lake, what an interrupted write left included, as URIs end.
    pub(crate) fn files(&self, folder: &Path, below: &str) -> Vec<String> {
        match self {
            Self::Folder => {
                let lake = folder.join(".tidegate/lake");
                let found = files(&lake.join(below));
                found.iter().map(|file| file.strip_prefix(&lake).unwrap().to_str().unwrap().to_owned()).collect()
            }
            Self::Servers { servers, .. } => {
                let keys = servers.s3.keys(&self.name(), &format!("lake/{below}/"));
                keys.iter().map(|key| key.trim_start_matches("lake/").to_owned()).collect()
            }
        }
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
