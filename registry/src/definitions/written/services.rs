//! What may be written of feature services, of the datasets that are made of them, and of consumers.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{At, CheckFile, Field, FreshnessFile, Node, Read, Sql, check_keys, described, key_name, missing, record};
use crate::dataset::ColumnNames;
use crate::definitions::read::{nearest, scalar, schema_of, words};
use crate::definitions::scalars::WrittenDuration;
use crate::diagnostics::{Diagnostic, ids};
use crate::model::ConsumerKind;

record! {
    /// A named set of features.
    ServiceFile "feature service" {
        /// The name that datasets and consumers refer to.
        name: required String,
        /// Who is responsible.
        owner: required String,
        /// What it is for.
        description: required String,
        /// Labels to search by.
        tags: optional Vec<At<String>>,
        /// Its features, in order: `view.feature`, `view@v2.feature`, or `view` for all of its features; a `*` stands for any text.
        features: required Vec<At<String>>,
    }
}

record! {
    /// A model, application or report that reads features.
    ConsumerFile "consumer" {
        /// Its name.
        name: required String,
        /// `model` (default), `application` or `report`.
        kind: optional ConsumerKind,
        /// Who is responsible.
        owner: required String,
        /// What it does.
        description: required String,
        /// Which version of it this is about, in your words.
        version: optional String,
        /// Labels to search by.
        tags: optional Vec<At<String>>,
        /// What it uses: names of feature services, and features as there.
        uses: required Vec<At<String>>,
    }
}

record! {
    /// A scoring set: the features of a list of entities as of each interval's end, written as a run like any other.
    DatasetFile "dataset" {
        /// The name that DAGs refer to, and the name of its table in the lake.
        name: required String,
        /// The version, from 1; 1 when left out.
        version: optional u32,
        /// Whose features: one row for each.
        entity: required String,
        /// Who is responsible.
        owner: required String,
        /// What it is for.
        description: required String,
        /// Labels to search by.
        tags: optional Vec<At<String>>,
        /// Its features, in order: names of feature services, and features as there.
        features: required Vec<At<String>>,
        /// `full` (default): columns are called `view__feature`; `short`: `feature`.
        names: optional ColumnNames,
        /// A query that gives the keys of the entities, after `|`; every entity that the views know when left out.
        sql: optional Sql,
        /// The rules that staged rows must pass.
        checks: optional Vec<At<CheckFile>>,
        /// How old it may get.
        freshness: optional FreshnessFile,
        /// How long restoring it may take, as in `2m`.
        restore_target: optional WrittenDuration,
        /// Which workers compute it: those started with `--queues NAME`; any worker that serves `default` when left out.
        queue: optional String,
        /// A name under `pools:` whose slots its task takes while it runs.
        pool: optional String,
    }
}

words!(ColumnNames, "a way to name columns" { "full" => Self::Full, "short" => Self::Short, });
schema_of!(ColumnNames, "names", { "enum": ["full", "short"] });
words!(ConsumerKind, "a kind of consumer" {
    "model" => Self::Model, "application" => Self::Application, "report" => Self::Report,
});
schema_of!(ConsumerKind, "consumer_kind", { "enum": ["model", "application", "report"] });
