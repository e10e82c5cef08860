//! What authors write, key by key: the one place that says which keys exist. The JSON Schema for editors comes from here.

mod checks;
mod recovery;
mod services;
mod source_checks;
mod tests;

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

pub(super) use self::checks::*;
pub(super) use self::recovery::*;
pub(super) use self::services::*;
pub(super) use self::source_checks::*;
pub(super) use self::tests::*;
use super::read::{
    At, Field, Read, Sql, check_keys, described, key_name, missing, nearest, record, scalar, schema_of, suggestion,
    words,
};
use super::scalars::{self, WrittenDuration, WrittenTime};
use super::yaml::Node;
use crate::diagnostics::{Diagnostic, ids};
use crate::model::{Catchup, ColumnType, Gap, OnBlocked, Overlap, PublishUnit};

record! {
    /// A definition file: any of these lists.
    DefinitionFile "a definition file" {
        /// Who is responsible for what.
        owners: optional Vec<At<OwnerFile>>,
        /// Named join keys.
        entities: optional Vec<At<EntityFile>>,
        /// Tables that are read and not owned.
        sources: optional Vec<At<SourceFile>>,
        /// Limits on how many tasks of a kind run at once.
        pools: optional Vec<At<PoolFile>>,
        /// Versioned SQL queries that give features.
        feature_views: optional Vec<At<ViewFile>>,
        /// Schedules and the views that they run.
        dags: optional Vec<At<DagFile>>,
        /// Who may take what back: a restore must keep every rule that means one of its views.
        restore_policy: optional Vec<At<RestoreRuleFile>>,
        /// Named ways back, for `tidegate recipe run`.
        recipes: optional Vec<At<RecipeFile>>,
        /// Restores that are rehearsed regularly, on a copy of what is live.
        drills: optional Vec<At<DrillFile>>,
        /// Named sets of features: what a model is trained on and served with.
        feature_services: optional Vec<At<ServiceFile>>,
        /// Scoring sets, written by DAGs: a DAG names them under `views:`.
        datasets: optional Vec<At<DatasetFile>>,
        /// Models, applications and reports that read features.
        consumers: optional Vec<At<ConsumerFile>>,
        /// A few rows in, and the rows that a view shall make of them; run by `tidegate test`.
        tests: optional Vec<At<TestFile>>,
    }
}

record! {
    /// Who is responsible.
    OwnerFile "owner" {
        /// The name that definitions refer to.
        name: required String,
        /// The first address to tell.
        primary: required String,
        /// The next address, if the first does not answer.
        backup: optional String,
        /// Free text.
        description: optional String,
    }
}

record! {
    /// A limit on how many tasks of a kind run at once, over all workers and DAGs.
    PoolFile "pool" {
        /// The name that views refer to.
        name: required String,
        /// How many of its tasks may run at once.
        slots: required u32,
        /// Free text.
        description: optional String,
    }
}

record! {
    /// Named join keys.
    EntityFile "entity" {
        /// The name that views refer to.
        name: required String,
        /// The keys, in the order in which they form an online key.
        keys: required Vec<At<KeyFile>>,
        /// Free text.
        description: optional String,
    }
}

record! {
    /// One join key.
    KeyFile "key" {
        /// Column name in every view of the entity.
        name: required String,
        /// `string`, `boolean`, `integer`, `bigint`, `date` or `timestamp`.
        r#type: required ColumnType,
    }
}

record! {
    /// A table that is read and not owned; exactly one of `parquet`, `csv` and `delta`.
    SourceFile "source" {
        /// The name that SQL refers to.
        name: required String,
        /// Parquet files: a path relative to the project or a URI inside `allowed_roots`; a trailing `/` or a `*` in the last segment means several.
        parquet: optional String,
        /// CSV files with a header line; a place as for `parquet`.
        csv: optional String,
        /// A Delta table; a place as for `parquet`.
        delta: optional String,
        /// The column that says when a row happened.
        event_time: optional String,
        /// Free text.
        description: optional String,
        /// Who is responsible for it.
        owner: optional String,
        /// Labels to search by.
        tags: optional Vec<At<String>>,
        /// Rules that it must pass before a run computes anything from it.
        checks: optional Vec<At<SourceCheckFile>>,
    }
}

record! {
    /// A versioned SQL query that gives entity keys and features.
    ViewFile "feature view" {
        /// The name that SQL and DAGs refer to.
        name: required String,
        /// The version, from 1; 1 when left out.
        version: optional u32,
        /// Whose keys it gives.
        entity: required String,
        /// Who is responsible.
        owner: required String,
        /// What it holds.
        description: required String,
        /// Labels to search by.
        tags: optional Vec<At<String>>,
        /// The query, after `|`.
        sql: optional Sql,
        /// A file with the query, relative to the project; instead of `sql`.
        sql_file: optional String,
        /// `full` (a run's rows are every entity's state) or `partial` (only entities touched in the interval; needs `ttl`).
        output: optional OutputWord,
        /// How long a row of a `partial` view counts, as in `7d`.
        ttl: optional WrittenDuration,
        /// How long after an interval's end its rows count as known, when training sets are built.
        serving_delay: optional WrittenDuration,
        /// The typed columns beside the entity's keys.
        features: required Vec<At<FeatureFile>>,
        /// The rules that staged rows must pass.
        checks: optional Vec<At<CheckFile>>,
        /// How it is published online; left out for lake only.
        online: optional OnlineFile,
        /// How old it may get.
        freshness: optional FreshnessFile,
        /// How long restoring it may take, as in `2m`: `tidegate status` shows beside it what drills took.
        restore_target: optional WrittenDuration,
        /// Which workers compute it: those started with `--queues NAME`; any worker that serves `default` when left out.
        queue: optional String,
        /// A name under `pools:` whose slots its task takes while it runs.
        pool: optional String,
    }
}

record! {
    /// One typed column of a view.
    FeatureFile "feature" {
        /// Column name.
        name: required String,
        /// `string`, `boolean`, `integer`, `bigint`, `float`, `double`, `date`, `timestamp`, or a list as in `array<double>`.
        r#type: required ColumnType,
        /// What it means, with its unit.
        description: required String,
        /// What readers get for an absent entity or value.
        default: optional serde_json::Value,
        /// Labels, for example `pii`.
        tags: optional Vec<At<String>>,
    }
}

record! {
    /// How a view is published online.
    OnlineFile "online" {
        /// `swap` (default): a whole new generation, then one switch; `upsert`: what differs, in place.
        strategy: optional StrategyWord,
        /// A run is refused when a larger share (0 to 1) of the entities now online would vanish.
        max_deletes: optional f64,
        /// Superseded generations to keep for quick restores; 1 when left out.
        keep: optional u32,
    }
}

record! {
    /// How old a view may get: now − end of the newest published interval.
    FreshnessFile "freshness" {
        /// Breached above this age, as in `30h`.
        max_age: required WrittenDuration,
        /// A warning above this age.
        warn_age: optional WrittenDuration,
    }
}

record! {
    /// A schedule and the views that it runs.
    DagFile "DAG" {
        /// Its name.
        name: required String,
        /// Who is responsible.
        owner: required String,
        /// Free text.
        description: optional String,
        /// Labels to search by.
        tags: optional Vec<At<String>>,
        /// When.
        schedule: required ScheduleFile,
        /// What it runs: `name` for every defined version, `name@v2` for one.
        views: required Vec<At<String>>,
        /// What to do when a task fails for a reason that may pass.
        retries: optional RetriesFile,
        /// How long one attempt of a task may take, as in `15m`.
        timeout: optional WrittenDuration,
        /// Who goes first when there are not enough workers, from -100 to 100; each point counts like a minute of waiting.
        priority: optional i32,
        /// How many runs may be under way at once; 4 when left out.
        max_active_runs: optional u32,
        /// What later intervals do when one is blocked or failed: `continue` (default) or `wait`.
        on_blocked: optional OnBlocked,
        /// `together` (default): all views of an interval or none; `each`: one run per view.
        publish: optional PublishUnit,
        /// Webhooks that are told of every run that was published, once readers see its rows.
        on_published: optional Vec<At<OnPublishedFile>>,
    }
}

record! {
    /// A webhook that is told of every run of a DAG that was published.
    OnPublishedFile "on_published" {
        /// Its name under `notify:` in `tidegate.yaml`.
        webhook: required String,
        /// What it is told beside the run: names and plain values or lists, passed on as written.
        payload: optional Named<serde_json::Value>,
    }
}

record! {
    /// When a DAG runs.
    ScheduleFile "schedule" {
        /// crontab(5): five fields, or `@daily` and its kin.
        cron: required String,
        /// The zone on whose wall clock the cron is read, as in `America/New_York`; `UTC` when left out.
        timezone: optional String,
        /// Intervals start at or after this: a date (midnight in the zone) or RFC 3339.
        start: required WrittenTime,
        /// Intervals start before this.
        end: optional WrittenTime,
        /// Which missed intervals are computed: `all` (default), `latest` or `none`.
        catchup: optional Catchup,
        /// A tick in the hour that spring skips: `run_after` or `skip`.
        gap: optional Gap,
        /// A tick in the hour that autumn repeats: `first`, `second` or `both`.
        overlap: optional Overlap,
    }
}

record! {
    /// What to do when a task fails for a reason that may pass.
    RetriesFile "retries" {
        /// How often to try again; 2 when left out.
        max: optional u32,
        /// Delay before the first retry, doubled with each; `30s` when left out.
        backoff: optional WrittenDuration,
    }
}

/// `output:` as a word; the time to live stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputWord {
    Full,
    Partial,
}

/// `strategy:` as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StrategyWord {
    Swap,
    Upsert,
}

words!(OutputWord, "a kind of output" { "full" => Self::Full, "partial" => Self::Partial, });
words!(StrategyWord, "a strategy" { "swap" => Self::Swap, "upsert" => Self::Upsert, });
words!(Catchup, "a kind of catchup" { "all" => Self::All, "latest" => Self::Latest, "none" => Self::None, });
words!(Gap, "a choice for the skipped hour" { "run_after" => Self::RunAfter, "skip" => Self::Skip, });
words!(Overlap, "a choice for the repeated hour" {
    "first" => Self::First, "second" => Self::Second, "both" => Self::Both,
});
words!(OnBlocked, "a choice for blocked intervals" { "continue" => Self::Continue, "wait" => Self::Wait, });
words!(PublishUnit, "a unit of publishing" { "together" => Self::Together, "each" => Self::Each, });

schema_of!(OutputWord, "output", { "enum": ["full", "partial"] });
schema_of!(StrategyWord, "strategy", { "enum": ["swap", "upsert"] });
schema_of!(Catchup, "catchup", { "enum": ["all", "latest", "none"] });
schema_of!(Gap, "gap", { "enum": ["run_after", "skip"] });
schema_of!(Overlap, "overlap", { "enum": ["first", "second", "both"] });
schema_of!(OnBlocked, "on_blocked", { "enum": ["continue", "wait"] });
schema_of!(PublishUnit, "publish", { "enum": ["together", "each"] });
schema_of!(ColumnType, "type", {
    "type": "string",
    "pattern": "^(string|boolean|integer|bigint|float|double|date|timestamp|array<(string|boolean|integer|bigint|float|double|date|timestamp)>)$"
});
schema_of!(WrittenDuration, "duration", { "type": "string", "pattern": "^[0-9]+[smhd]$", "examples": ["90s", "15m", "30h", "7d"] });
schema_of!(WrittenTime, "time", { "type": "string", "examples": ["2013-01-08", "2013-01-08T02:15:00Z"] });

impl Read for ColumnType {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let text = &scalar(node, "a type", out)?.text;
        match text.parse() {
            Ok(kind) => Some(kind),
            Err(reason) => {
                let help = suggestion(text, Self::NAMES).unwrap_or_else(|| {
                    format!("types are `{}`, and lists as in `array<double>`", Self::NAMES.join("`, `"))
                });
                out.push(
                    Diagnostic::error(ids::UNKNOWN_WORD, node.origin.clone(), reason)
                        .with_label("not a type")
                        .with_help(help),
                );
                None
            }
        }
    }
}

impl Read for WrittenDuration {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let text = &scalar(node, "a duration", out)?.text;
        let duration = scalars::parse_duration(text);
        if duration.is_none() {
            out.push(
                Diagnostic::error(ids::BAD_DURATION, node.origin.clone(), format!("`{text}` is not a duration"))
                    .with_label("expected a number and a unit")
                    .with_help("write for example `90s`, `15m`, `30h` or `7d`"),
            );
        }
        duration.map(WrittenDuration)
    }
}

impl Read for WrittenTime {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let text = &scalar(node, "a date or time", out)?.text;
        let time = scalars::parse_time(text);
        if time.is_none() {
            out.push(
                Diagnostic::error(ids::BAD_TIME, node.origin.clone(), format!("`{text}` is not a date or time"))
                    .with_label("expected a date or an RFC 3339 time")
                    .with_help("write for example `2013-01-08` (midnight in the zone) or `2013-01-08T02:15:00Z`"),
            );
        }
        time
    }
}
