//! Where a project keeps what it has: resolved once, from flags, environment, profile, file and defaults, in this order.
//!
//! Every value remembers where it came from ([`Settings::origins`]), so that `tidegate` can say why a setting is what
//! it is. Passwords are never part of a message: see [`redact`].

mod locations;
mod notify;
mod redis;
mod resolve;
mod retention;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use locations::{LakeLocation, OnlineLocation, OnlineTarget, RegistryLocation, Secret, StorageSettings};
pub(in crate::definitions) use notify::webhook_names;
pub use notify::{NotifySettings, WebhookSettings};
pub use redis::{RedisLocation, RedisNode, RedisTopology};
pub(super) use resolve::resolve;
pub use retention::Retention;
pub(super) use written::ProjectFile;

use crate::ids::ProjectName;
use crate::time::Instant;

/// A setting that flags and the environment may override.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SettingKey {
    /// The project's name.
    Project,
    /// Where the registry is.
    Registry,
    /// Where the lake is.
    Lake,
    /// Where the online store is; `none` for batch only.
    Online,
    /// How much memory the engine may use.
    Memory,
    /// Where queries spill that need more memory than they have.
    SpillDir,
    /// Where project time begins.
    ClockStart,
    /// Project seconds per real second.
    ClockSpeed,
    /// Where sources outside the project may lie, separated by commas.
    AllowedRoots,
    /// How long a snapshot can be restored.
    RetentionSnapshots,
    /// How many snapshots of each view are kept whatever their age.
    RetentionMinSnapshots,
    /// How long the logs of ended runs are kept.
    RetentionLog,
    /// How long files that nothing names are kept.
    RetentionStaged,
    /// How often the janitor looks; `off` for never.
    JanitorEvery,
    /// How often workers look whether what was published is still online; `off` for never.
    ReconcileEvery,
    /// The URL of an S3-compatible service.
    StorageEndpoint,
    /// The region of object stores.
    StorageRegion,
    /// Whether the bucket stands in the path.
    StoragePathStyle,
    /// Whether unencrypted endpoints are allowed.
    StorageAllowHttp,
}

/// The environment variable that names the profile, when no flag does.
pub const PROFILE_VARIABLE: &str = "TIDEGATE_PROFILE";

impl SettingKey {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Project,
        Self::Registry,
        Self::Lake,
        Self::Online,
        Self::Memory,
        Self::SpillDir,
        Self::ClockStart,
        Self::ClockSpeed,
        Self::AllowedRoots,
        Self::RetentionSnapshots,
        Self::RetentionMinSnapshots,
        Self::RetentionLog,
        Self::RetentionStaged,
        Self::JanitorEvery,
        Self::ReconcileEvery,
        Self::StorageEndpoint,
        Self::StorageRegion,
        Self::StoragePathStyle,
        Self::StorageAllowHttp,
    ];

    /// The key in `tidegate.yaml`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Registry => "registry",
            Self::Lake => "lake",
            Self::Online => "online",
            Self::Memory => "memory",
            Self::SpillDir => "spill_dir",
            Self::ClockStart => "clock.start",
            Self::ClockSpeed => "clock.speed",
            Self::AllowedRoots => "allowed_roots",
            Self::RetentionSnapshots => "retention.snapshots",
            Self::RetentionMinSnapshots => "retention.min_snapshots",
            Self::RetentionLog => "retention.log",
            Self::RetentionStaged => "retention.staged",
            Self::JanitorEvery => "janitor.every",
            Self::ReconcileEvery => "reconcile.every",
            Self::StorageEndpoint => "storage.endpoint",
            Self::StorageRegion => "storage.region",
            Self::StoragePathStyle => "storage.path_style",
            Self::StorageAllowHttp => "storage.allow_http",
        }
    }

    /// The environment variable.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Project => "TIDEGATE_PROJECT_NAME",
            Self::Registry => "TIDEGATE_REGISTRY",
            Self::Lake => "TIDEGATE_LAKE",
            Self::Online => "TIDEGATE_ONLINE",
            Self::Memory => "TIDEGATE_MEMORY",
            Self::SpillDir => "TIDEGATE_SPILL_DIR",
            Self::ClockStart => "TIDEGATE_CLOCK_START",
            Self::ClockSpeed => "TIDEGATE_CLOCK_SPEED",
            Self::AllowedRoots => "TIDEGATE_ALLOWED_ROOTS",
            Self::RetentionSnapshots => "TIDEGATE_RETENTION_SNAPSHOTS",
            Self::RetentionMinSnapshots => "TIDEGATE_RETENTION_MIN_SNAPSHOTS",
            Self::RetentionLog => "TIDEGATE_RETENTION_LOG",
            Self::RetentionStaged => "TIDEGATE_RETENTION_STAGED",
            Self::JanitorEvery => "TIDEGATE_JANITOR_EVERY",
            Self::ReconcileEvery => "TIDEGATE_RECONCILE_EVERY",
            Self::StorageEndpoint => "TIDEGATE_STORAGE_ENDPOINT",
            Self::StorageRegion => "TIDEGATE_STORAGE_REGION",
            Self::StoragePathStyle => "TIDEGATE_STORAGE_PATH_STYLE",
            Self::StorageAllowHttp => "TIDEGATE_STORAGE_ALLOW_HTTP",
        }
    }

    /// What it means, for the page of settings (Markdown, one line).
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Project => "the project's name, the namespace of everything in it",
            Self::Registry => {
                "where definitions, runs and snapshots are kept: `sqlite://PATH` for one machine, \
                 `postgres://USER:PASSWORD@HOST/DATABASE` for several"
            }
            Self::Lake => {
                "where the Delta tables are: a folder, or `s3://BUCKET/PREFIX` (`gs://`, `az://`); credentials \
                 come from the environment"
            }
            Self::Online => {
                "the online store, as in `sqlite://.tidegate/online.db` or `redis://:${PASSWORD}@HOST/0`; left out \
                 or `none` for batch only"
            }
            Self::Memory => {
                "how much memory the engine may use (`B`, `kB`, `MB`, `GB`, `TB`, `KiB`, `MiB`, `GiB`, `TiB`)"
            }
            Self::SpillDir => "the folder for queries that need more memory than they have; best on a fast local disk",
            Self::ClockStart => {
                "project time when the project is first started: a date (midnight UTC) or RFC 3339; without it \
                 project time is real time"
            }
            Self::ClockSpeed => "project seconds per real second, above 0",
            Self::AllowedRoots => {
                "URIs and absolute paths below which sources outside the project may lie; in the variable, \
                 separated by commas"
            }
            Self::RetentionSnapshots => {
                "how long a snapshot can be restored after it was recorded, in project time (`s`, `m`, `h`, `d`); \
                 live and pinned ones stay"
            }
            Self::RetentionMinSnapshots => "the newest snapshots of each view that are kept whatever their age",
            Self::RetentionLog => "how long log lines and task outputs of ended runs are kept, in project time",
            Self::RetentionStaged => {
                "how long files in the lake that nothing names are kept, by the store's clock; must be longer than \
                 any task runs"
            }
            Self::JanitorEvery => {
                "how often a process with a scheduler removes what retention no longer keeps; `off` leaves it to \
                 `tidegate janitor`"
            }
            Self::ReconcileEvery => {
                "how often every worker looks whether what was published is still online, and brings back what was lost; \
                 `off` leaves it to `tidegate online rebuild`"
            }
            Self::StorageEndpoint => "the URL of an S3-compatible service; without it `AWS_ENDPOINT_URL` or AWS itself",
            Self::StorageRegion => "the region; without it `AWS_REGION`",
            Self::StoragePathStyle => {
                "`true` when the bucket stands in the path and not in the host name, as most services but AWS want \
                 it"
            }
            Self::StorageAllowHttp => "whether `http://` endpoints other than this machine's are allowed",
        }
    }

    /// What it is when nobody says anything, as one would write it.
    pub fn default(self) -> Option<&'static str> {
        match self {
            Self::Registry => Some("sqlite://.tidegate/registry.db"),
            Self::Lake => Some(".tidegate/lake"),
            Self::Memory => Some("2GiB"),
            Self::SpillDir => Some(".tidegate/spill"),
            Self::ClockSpeed => Some("1"),
            Self::StorageAllowHttp => Some("false"),
            Self::RetentionSnapshots => Some("30d"),
            Self::RetentionMinSnapshots => Some("3"),
            Self::RetentionLog => Some("90d"),
            Self::RetentionStaged => Some("24h"),
            Self::JanitorEvery => Some("1h"),
            Self::ReconcileEvery => Some("1m"),
            Self::Project
            | Self::Online
            | Self::ClockStart
            | Self::AllowedRoots
            | Self::StorageEndpoint
            | Self::StorageRegion
            | Self::StoragePathStyle => None,
        }
    }
}

/// Where a setting's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueOrigin {
    /// A flag of the command.
    Flag,
    /// An environment variable.
    Environment(&'static str),
    /// A profile in `tidegate.yaml`.
    Profile(String),
    /// `tidegate.yaml` itself.
    File,
    /// Nobody said anything.
    Default,
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.pad("flag"),
            Self::Environment(variable) => write!(f, "environment ({variable})"),
            Self::Profile(profile) => write!(f, "profile ({profile})"),
            Self::File => f.pad(super::PROJECT_FILE),
            Self::Default => f.pad("default"),
        }
    }
}

/// What a command hands in: everything that decides settings beside the file.
pub struct LoadOptions<'a> {
    /// The profile chosen by a flag.
    pub profile: Option<String>,
    /// Settings given by flags.
    pub flags: BTreeMap<SettingKey, String>,
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Default for LoadOptions<'_> {
    /// No flags and an empty environment.
    fn default() -> Self {
        Self { profile: None, flags: BTreeMap::new(), env: &|_| None }
    }
}

impl LoadOptions<'_> {
    /// No flags, and the environment of this process.
    pub fn from_process() -> Self {
        Self { env: &process_variable, ..Self::default() }
    }
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may hold passwords.
        let flags: Vec<_> = self.flags.keys().collect();
        f.debug_struct("LoadOptions").field("profile", &self.profile).field("flags", &flags).finish_non_exhaustive()
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place where settings read the environment")]
fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A project's settings, all resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The folder of `tidegate.yaml`.
    pub root: PathBuf,
    /// The project's name.
    pub project: ProjectName,
    /// Where the registry is.
    pub registry: RegistryLocation,
    /// Where the lake is.
    pub lake: LakeLocation,
    /// Where the online stores are: the first answers `tidegate online get`. Empty for batch only, else one is required.
    pub online: Vec<OnlineTarget>,
    /// How much memory the engine may use, in bytes.
    pub memory_bytes: u64,
    /// Where queries spill that need more memory than they have.
    pub spill_dir: PathBuf,
    /// A simulated clock, when the project has one.
    pub clock: Option<ClockSettings>,
    /// Where sources outside the project may lie: URIs and absolute paths.
    pub allowed_roots: Vec<String>,
    /// How long what is no longer current is kept.
    pub retention: Retention,
    /// How often the janitor looks; `None` for never by itself.
    pub janitor_every: Option<Duration>,
    /// How often workers look whether what was published is still online; `None` for never by themselves.
    pub reconcile_every: Option<Duration>,
    /// How object stores are reached.
    pub storage: StorageSettings,
    /// Whom notices are sent to.
    pub notify: NotifySettings,
    /// The profile in force.
    pub profile: Option<String>,
    /// Where each value came from.
    pub origins: BTreeMap<SettingKey, ValueOrigin>,
}

/// A simulated clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClockSettings {
    /// Project time when the project is first started.
    pub start: Instant,
    /// Project seconds per real second; greater than 0.
    pub speed: f64,
}

/// `text` with the password of every URL in it replaced by as many asterisks, so that columns stay right.
pub fn redact(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        redacted.push_str(head);
        let end = tail.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | ',')).unwrap_or(tail.len());
        let (authority, after) = tail.split_at(end);
        match authority.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?, host))) {
            // A variable's name is no secret.
            Some(((user, password), host)) if !password.starts_with("${") => {
                redacted.push_str(user);
                redacted.push(':');
                redacted.extend(password.chars().map(|_| '*'));
                redacted.push('@');
                redacted.push_str(host);
            }
            _ => redacted.push_str(authority),
        }
        rest = after;
    }
    redacted.push_str(rest);
    redacted
}
