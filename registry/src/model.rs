//! What is true of a project once its files have been read and validated: plain data, every reference resolved.
//!
//! These types are what the registry stores (as JSON, one row per definition) and what the scheduler and the worker
//! read. Places in the author's files ([`Origin`]) ride along for diagnostics and are not stored.

mod checks;
mod definition_tests;
mod recovery;
mod services;
mod source_checks;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use chrono_tz::Tz;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::diagnostics::Origin;
use crate::ids::{
    ConsumerName, DagName, DrillName, EntityName, OwnerName, PoolName, ProjectName, QueueName, RecipeName, RuleName,
    ServiceName, SourceName, ViewId, ViewName,
};
use crate::time::Instant;

pub use self::checks::{
    Alike, Budget, Check, Direction, DriftMeasure, Edge, GROUPS_MAX, Metric, Rule, Season, Severity, TIMEOUT,
    TextFormat, Tolerance, Total, Within,
};
pub use self::definition_tests::{DefinitionTest, ExpectedVerdict, GivenTable, TestRow, TestValue};
pub use self::recovery::{
    COOLDOWN_SECS, Hours, Matching, PolicyRule, Recipe, RecipeStep, ScheduledDrill, Trigger, glob,
};
pub use self::services::{Consumer, ConsumerKind, FeatureService};
pub use self::source_checks::{OnDifference, SourceCheck, SourceRule, Volume};

/// Everything a project defines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Project {
    /// The namespace of everything in it.
    pub name: ProjectName,
    /// Who is responsible for what.
    pub owners: IndexMap<OwnerName, Owner>,
    /// Named join keys.
    pub entities: IndexMap<EntityName, Entity>,
    /// Tables that are read and not owned.
    pub sources: IndexMap<SourceName, Source>,
    /// Limits on how many tasks of a kind run at once.
    pub pools: IndexMap<PoolName, Pool>,
    /// Every version of every feature view.
    pub views: IndexMap<ViewId, FeatureView>,
    /// Schedules and the views that they run.
    pub dags: IndexMap<DagName, Dag>,
    /// Who may take what back.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub restore_policy: IndexMap<RuleName, PolicyRule>,
    /// Named ways back.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub recipes: IndexMap<RecipeName, Recipe>,
    /// Restores that are rehearsed regularly.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub drills: IndexMap<DrillName, ScheduledDrill>,
    /// Named sets of features.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub feature_services: IndexMap<ServiceName, FeatureService>,
    /// Who reads which features.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub consumers: IndexMap<ConsumerName, Consumer>,
}

impl Project {
    /// A project that defines nothing yet.
    pub fn empty(name: ProjectName) -> Self {
        Self {
            name,
            owners: IndexMap::new(),
            entities: IndexMap::new(),
            sources: IndexMap::new(),
            pools: IndexMap::new(),
            views: IndexMap::new(),
            dags: IndexMap::new(),
            restore_policy: IndexMap::new(),
            recipes: IndexMap::new(),
            drills: IndexMap::new(),
            feature_services: IndexMap::new(),
            consumers: IndexMap::new(),
        }
    }

    /// The DAG that runs `view`, if any does.
    pub fn dag_of(&self, view: &ViewId) -> Option<&Dag> {
        self.dags.values().find(|dag| dag.views.contains(view))
    }

    /// How intervals of `view` that have `season` in common are told from others: by the clock of its DAG.
    pub fn alike(&self, view: &ViewId, season: Season) -> Alike {
        Alike { season, zone: self.dag_of(view).map_or(Tz::UTC, |dag| dag.schedule.timezone) }
    }

    /// The highest defined version of `name`.
    pub fn highest_version(&self, name: &ViewName) -> Option<&FeatureView> {
        self.views.values().filter(|view| view.id.name == *name).max_by_key(|view| view.id.version)
    }

    /// The join keys of `view`, in declared order. Empty only if the project was not validated.
    pub fn keys_of(&self, view: &FeatureView) -> &[Key] {
        self.entities.get(&view.entity).map_or(&[], |entity| &entity.keys)
    }

    /// The consumers of any of `views`.
    pub fn consumers_of<'a>(&'a self, views: &'a [ViewId]) -> impl Iterator<Item = &'a Consumer> {
        self.consumers.values().filter(|consumer| views.iter().any(|view| consumer.uses(view)))
    }

    /// `views` ordered so that each comes after those of `views` that it reads; ties keep the given order.
    ///
    /// Validation has refused cycles; should one remain, its members come last in the given order.
    pub fn in_dependency_order<'a>(&self, views: &'a [ViewId]) -> Vec<&'a ViewId> {
        let position: HashMap<&ViewId, usize> = views.iter().enumerate().map(|(at, id)| (id, at)).collect();
        let mut waits = vec![0_usize; views.len()];
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); views.len()];
        for (at, id) in views.iter().enumerate() {
            let reads: BTreeSet<&ViewId> =
                self.views.get(id).into_iter().flat_map(FeatureView::view_reads).filter(|read| *read != id).collect();
            for read in reads.into_iter().filter_map(|read| position.get(read)) {
                waits[at] += 1;
                readers[*read].push(at);
            }
        }
        let mut ready: BTreeSet<usize> = (0..views.len()).filter(|&at| waits[at] == 0).collect();
        let mut ordered = Vec::with_capacity(views.len());
        while let Some(at) = ready.pop_first() {
            ordered.push(&views[at]);
            for &reader in &readers[at] {
                waits[reader] -= 1;
                if waits[reader] == 0 {
                    ready.insert(reader);
                }
            }
        }
        ordered.extend((0..views.len()).filter(|&at| waits[at] > 0).map(|at| &views[at]));
        ordered
    }

    /// Every view that reads one of `roots`, directly or through others; without the roots themselves.
    pub fn descendants_of<'a>(&'a self, roots: &[ViewId]) -> Vec<&'a ViewId> {
        let mut readers: HashMap<&ViewId, Vec<&'a ViewId>> = HashMap::new();
        for view in self.views.values() {
            for read in view.view_reads() {
                readers.entry(read).or_default().push(&view.id);
            }
        }
        let mut reached: HashSet<&ViewId> = HashSet::new();
        let mut next: Vec<&ViewId> = roots.iter().collect();
        while let Some(id) = next.pop() {
            next.extend(readers.get(id).into_iter().flatten().copied().filter(|reader| reached.insert(*reader)));
        }
        self.views.keys().filter(|id| reached.contains(id) && !roots.contains(id)).collect()
    }
}

/// Who is responsible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The name that definitions refer to.
    pub name: OwnerName,
    /// The first address to tell.
    pub primary: String,
    /// The next address, if the first does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A limit on how many tasks of a kind run at once, over all workers and DAGs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The name that views refer to.
    pub name: PoolName,
    /// How many of its tasks may run at once; at least 1.
    pub slots: u32,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Named join keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    /// The name that views refer to.
    pub name: EntityName,
    /// The keys, in the order in which they are joined into an online key. Never empty.
    pub keys: Vec<Key>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// One join key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Column name in every view of the entity.
    pub name: String,
    /// Its type; only types with one spelling per value can be keys (no floating point, no lists).
    #[serde(rename = "type")]
    pub kind: ColumnType,
}

/// The type of a key or feature.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// UTF-8 text.
    String,
    /// `true` or `false`.
    Boolean,
    /// 32-bit signed integer.
    Integer,
    /// 64-bit signed integer.
    Bigint,
    /// 32-bit floating point.
    Float,
    /// 64-bit floating point.
    Double,
    /// A day without a time.
    Date,
    /// An instant in UTC, in microseconds.
    Timestamp,
    /// A list of one of the above.
    Array(Box<ColumnType>),
}

impl ColumnType {
    /// The names that definitions may use; lists are written `array<double>`.
    pub const NAMES: [&'static str; 8] =
        ["string", "boolean", "integer", "bigint", "float", "double", "date", "timestamp"];

    /// Whether values of this type can be a join key.
    pub fn can_be_key(&self) -> bool {
        !matches!(self, Self::Float | Self::Double | Self::Array(_))
    }
}

impl std::str::FromStr for ColumnType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(item) = text.strip_prefix("array<").and_then(|rest| rest.strip_suffix('>')) {
            return match item.parse()? {
                Self::Array(_) => Err("a list of lists is not supported".to_owned()),
                item => Ok(Self::Array(Box::new(item))),
            };
        }
        Ok(match text {
            "string" => Self::String,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "bigint" => Self::Bigint,
            "float" => Self::Float,
            "double" => Self::Double,
            "date" => Self::Date,
            "timestamp" => Self::Timestamp,
            _ => return Err(format!("there is no type `{text}`")),
        })
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::String => "string",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Bigint => "bigint",
            Self::Float => "float",
            Self::Double => "double",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::Array(item) => return write!(f, "array<{item}>"),
        };
        f.pad(name)
    }
}

impl Serialize for ColumnType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ColumnType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A table that Tidegate reads and does not own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The name that SQL refers to.
    pub name: SourceName,
    /// Where and in what format.
    pub location: SourceLocation,
    /// The column that says when a row happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_time: Option<String>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Who is responsible for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerName>,
    /// Labels to search by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The rules that it must pass before a run computes anything from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<SourceCheck>,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

/// Format and place of a source. The place is a path relative to the project (never leaving it) or a URI inside
/// `allowed_roots`; a trailing `/` or a `*` in the last segment means several files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceLocation {
    /// Parquet files.
    Parquet(String),
    /// CSV files with a header line.
    Csv(String),
    /// A Delta table.
    Delta(String),
}

impl SourceLocation {
    /// The path or URI.
    pub fn place(&self) -> &str {
        match self {
            Self::Parquet(place) | Self::Csv(place) | Self::Delta(place) => place,
        }
    }
}

/// A versioned SQL query that gives entity keys and features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureView {
    /// Name and version.
    pub id: ViewId,
    /// Which entity's keys it gives.
    pub entity: EntityName,
    /// Who is responsible.
    pub owner: OwnerName,
    /// What it holds.
    pub description: String,
    /// Labels to search by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The query.
    pub sql: SqlText,
    /// The tables that the query names, resolved; each once, in order of first use.
    pub reads: Vec<TableRef>,
    /// The tables that its checks compare its rows with; each once. A run pins them, and waits for them, as for those that it
    /// reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checked_against: Vec<Table>,
    /// Whether a run's rows are every entity's state or only those touched.
    pub output: Output,
    /// How long after an interval's end its rows count as known, when training sets are built.
    #[serde(default, with = "secs", skip_serializing_if = "Duration::is_zero")]
    pub serving_delay: Duration,
    /// The columns beside the keys, in declared order.
    pub features: Vec<Feature>,
    /// The rules that staged rows must pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// How it is published online; `None` for lake only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<Online>,
    /// How old it may get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<Freshness>,
    /// How long restoring it may take, to which drills are compared.
    #[serde(default, with = "secs_option", skip_serializing_if = "Option::is_none")]
    pub restore_target: Option<Duration>,
    /// Which workers compute it: those that serve this queue; `None` for the default queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// Whose slots its task takes while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Identifies the logic: see [`crate::fingerprint`].
    pub fingerprint: String,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

impl FeatureView {
    /// The tables that its query reads and those that its checks do; one may come twice.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.reads.iter().map(|read| &read.table).chain(&self.checked_against)
    }

    /// The views that it reads, as state or history, its checks included.
    pub fn view_reads(&self) -> impl Iterator<Item = &ViewId> {
        self.tables().filter_map(|table| match table {
            Table::Source(_) => None,
            Table::State(view) | Table::History(view) => Some(view),
        })
    }

    /// The sources that it reads, its checks included.
    pub fn source_reads(&self) -> impl Iterator<Item = &SourceName> {
        self.tables().filter_map(|table| match table {
            Table::Source(source) => Some(source),
            Table::State(_) | Table::History(_) => None,
        })
    }
}

/// SQL as the author wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SqlText {
    /// The text; its first character stands at `origin`.
    pub text: String,
    /// Where the text begins. Line n of the text is line `origin.line + n - 1` of the file, and its columns are shifted
    /// by `origin.column - 1` (a literal block or a file keeps this true for every line).
    #[serde(skip)]
    pub origin: Origin,
}

/// One table named by a query.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableRef {
    /// The name exactly as SQL resolves it (`flights`, `history.carrier_delays`, `carrier_delays@v2`): the name under
    /// which the engine must register the table. `history.x` is table `x` in schema `history`.
    pub name: String,
    /// What it means.
    pub table: Table,
}

/// What a table name in SQL means.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// A source, pinned by the run.
    Source(SourceName),
    /// A view's state as of interval end.
    State(ViewId),
    /// All rows of a view up to interval end.
    History(ViewId),
}

/// Whether a run's rows are every entity's state at interval end, or only those touched in the interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// Every entity's state at interval end; an absent entity is gone.
    Full,
    /// Only entities touched in the interval; a row counts until `event_timestamp + ttl`.
    Partial {
        /// How long a row counts.
        #[serde(with = "secs")]
        ttl: Duration,
    },
}

/// One typed column of a view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Column name.
    pub name: String,
    /// Declared type; the computed one must agree.
    #[serde(rename = "type")]
    pub kind: ColumnType,
    /// What it means, with its unit.
    pub description: String,
    /// What readers get for an absent entity or value: a JSON value of the declared type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<serde_json::Value>,
    /// Labels, for example `pii`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

/// How a view is published online.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Online {
    /// How one generation replaces another.
    pub strategy: Strategy,
    /// The run is refused when a larger share (0 to 1) of the entities now online would vanish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_deletes: Option<f64>,
    /// Superseded generations to keep for quick restores.
    pub keep: u32,
}

/// How one generation replaces another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// A whole new generation, then one switch.
    Swap,
    /// What changed since the last snapshot, in place.
    Upsert,
}

/// How old a view may get: now − end of the newest published interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// Breached above this age.
    #[serde(with = "secs")]
    pub max_age: Duration,
    /// A warning above this age.
    #[serde(default, with = "secs_option", skip_serializing_if = "Option::is_none")]
    pub warn_age: Option<Duration>,
}

/// A schedule and the views that it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dag {
    /// Its name.
    pub name: DagName,
    /// Who is responsible.
    pub owner: OwnerName,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels to search by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// When.
    pub schedule: Schedule,
    /// What: every version that the DAG runs, in dependency order.
    pub views: Vec<ViewId>,
    /// What to do when a task fails.
    pub retries: Retries,
    /// How long one attempt of a task may take.
    #[serde(default, with = "secs_option", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Who goes first when there are not enough workers: -100 to 100, 0 by default. Each point counts like a minute of
    /// waiting.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// How many runs may be under way at once; at least 1.
    pub max_active_runs: u32,
    /// Intervals must be computed in order, because a view reads the history (or the state of a `partial` view) of
    /// this same DAG. Derived, not written.
    pub in_order: bool,
    /// What later intervals do when one is blocked or failed.
    pub on_blocked: OnBlocked,
    /// Whether the views of a run are published together.
    pub publish: PublishUnit,
    /// Who is told of every run that was published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_published: Vec<OnPublished>,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

/// A webhook that is told of every run of a DAG that was published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnPublished {
    /// Its name in `notify:` of `tidegate.yaml`.
    pub webhook: String,
    /// What the author wants it to be told beside the run, as written.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub payload: serde_json::Map<String, serde_json::Value>,
}

/// When a DAG runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// crontab(5): five fields, or `@daily` and its kin.
    pub cron: String,
    /// The zone on whose wall clock the fields are read.
    pub timezone: Tz,
    /// Intervals start at or after this.
    pub start: Instant,
    /// Intervals start before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Instant>,
    /// Which of the intervals missed until now are computed.
    pub catchup: Catchup,
    /// A tick that falls into the hour skipped in spring. `None`: by the shape of the cron (see `scheduler`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// A tick that falls into the hour repeated in autumn. `None`: by the shape of the cron.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
}

/// Which missed intervals are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Catchup {
    /// All since `start`.
    #[default]
    All,
    /// Only the newest complete one.
    Latest,
    /// None: from now on.
    None,
}

/// What becomes of a tick whose wall-clock time does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gap {
    /// It happens at the first instant after the gap; ticks that meet there are one.
    RunAfter,
    /// It does not happen.
    Skip,
}

/// What becomes of a tick whose wall-clock time exists twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// The earlier of the two.
    First,
    /// The later of the two.
    Second,
    /// Both.
    Both,
}

/// What to do when a task fails for a reason that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// How often to try again; 0 for never.
    pub max: u32,
    /// Delay before the first retry; doubles with each one, up to an hour.
    #[serde(with = "secs")]
    pub backoff: Duration,
}

/// What later intervals do when one is blocked or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBlocked {
    /// They go on.
    #[default]
    Continue,
    /// They wait until it is settled.
    Wait,
}

/// Whether the views of a run are published together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishUnit {
    /// All views of an interval in one run, all or none.
    #[default]
    Together,
    /// One run per view.
    Each,
}

/// Durations as fractional seconds in stored JSON.
pub(crate) mod secs {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The same for optional ones.
pub(crate) mod secs_option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_some(&value.as_secs_f64()),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(deserializer)?
            .map(|secs| Duration::try_from_secs_f64(secs).map_err(serde::de::Error::custom))
            .transpose()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}
