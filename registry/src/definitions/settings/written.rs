//! `tidegate.yaml`, key by key.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::definitions::read::{
    At, Field, Read, check_keys, described, key_name, missing, nearest, record, scalar, schema_of, words, wrong_type,
};
use crate::definitions::rules::RulesFile;
use crate::definitions::yaml::{self, Node, Value};
use crate::diagnostics::{Diagnostic, ids};

record! {
    /// `tidegate.yaml`: where a project keeps what it has. Each setting has an environment variable, too.
    ProjectFile "`tidegate.yaml`" {
        /// The project's name: the namespace of everything in it.
        project: optional String,
        /// Where the registry is: `sqlite://PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`; `sqlite://.tidegate/registry.db`
        /// when left out.
        registry: optional String,
        /// Where the lake is: a folder or a place in an object store; `.tidegate/lake` when left out.
        lake: optional String,
        /// Where the online store is, as in `sqlite://.tidegate/online.db` or `redis://HOST`, or a list of several; left out
        /// for batch only.
        online: optional OnlineStores,
        /// How much memory the engine may use; `2GiB` when left out.
        memory: optional TextOrNumber,
        /// Where queries spill that need more memory than they have; `.tidegate/spill` when left out.
        spill_dir: optional String,
        /// A simulated clock, so that old data behaves as on its day.
        clock: optional ClockFile,
        /// URIs and absolute paths below which sources outside the project may lie.
        allowed_roots: optional Vec<At<String>>,
        /// How long what is no longer current is kept.
        retention: optional RetentionFile,
        /// The janitor, which removes what retention no longer keeps.
        janitor: optional JanitorFile,
        /// The loop that brings back what an online store lost.
        reconcile: optional ReconcileFile,
        /// How object stores are reached.
        storage: optional StorageFile,
        /// Whom notices are sent to.
        notify: optional NotifyFile,
        /// Sections by name that override these settings, chosen with `--profile`.
        profiles: optional Profiles,
        /// House rules for definitions.
        rules: optional RulesFile,
    }
}

record! {
    /// A profile: settings that override those of `tidegate.yaml`.
    ProfileFile "a profile" {
        /// The project's name.
        project: optional String,
        /// Where the registry is.
        registry: optional String,
        /// Where the lake is.
        lake: optional String,
        /// Where the online store is; `none` for batch only.
        online: optional OnlineStores,
        /// How much memory the engine may use.
        memory: optional TextOrNumber,
        /// Where queries spill that need more memory than they have.
        spill_dir: optional String,
        /// A simulated clock.
        clock: optional ClockFile,
        /// URIs and absolute paths below which sources outside the project may lie.
        allowed_roots: optional Vec<At<String>>,
        /// How long what is no longer current is kept.
        retention: optional RetentionFile,
        /// The janitor, which removes what retention no longer keeps.
        janitor: optional JanitorFile,
        /// The loop that brings back what an online store lost.
        reconcile: optional ReconcileFile,
        /// How object stores are reached.
        storage: optional StorageFile,
        /// Whom notices are sent to.
        notify: optional NotifyFile,
    }
}

record! {
    /// Whom notices are sent to: blocked and failed runs, restores, holds.
    NotifyFile "notify" {
        /// The hosts that notices may be sent to, as in `hooks.example.com` or `*.example.com`; no other is ever spoken to.
        allowed_hosts: optional Vec<At<String>>,
        /// Of these the ones that are not on the open internet: hosts, addresses, or networks as in `10.1.0.0/16`.
        allowed_private: optional Vec<At<String>>,
        /// A notice that could not be delivered for so long is given up; `3d` when left out.
        give_up_after: optional String,
        /// Whom notices are sent to.
        webhooks: optional Vec<At<WebhookFile>>,
    }
}

record! {
    /// A program that is told of what happens, by HTTP.
    WebhookFile "webhook" {
        /// Its name.
        name: required String,
        /// Where it is: `https://…`; `${NAME}` stands for an environment variable.
        url: required String,
        /// The environment variable that holds the secret which signs what is sent.
        secret_env: required String,
        /// The events that it wants, as in `run.blocked` or `restore.*`; all when left out.
        events: optional Vec<At<String>>,
    }
}

record! {
    /// How object stores are reached. Credentials come from the environment only.
    StorageFile "storage" {
        /// The URL of an S3-compatible service; AWS itself when left out.
        endpoint: optional String,
        /// The region.
        region: optional String,
        /// Whether the bucket stands in the path and not in the host name.
        path_style: optional TextOrFlag,
        /// Whether `http://` endpoints other than this machine's are allowed.
        allow_http: optional TextOrFlag,
    }
}

/// One online store, or several that are kept alike.
#[derive(Debug, Clone)]
pub(in crate::definitions) enum OnlineStores {
    One(At<String>),
    Several(Vec<At<OnlineStoreFile>>),
}

impl Read for OnlineStores {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        match &node.value {
            Value::List(_) => Read::read(node, out).map(Self::Several),
            _ => Read::read(node, out).map(Self::One),
        }
    }
}

impl JsonSchema for OnlineStores {
    fn schema_name() -> Cow<'static, str> {
        "OnlineStores".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let several = generator.subschema_for::<Vec<At<OnlineStoreFile>>>();
        json_schema!({ "oneOf": [{ "type": "string" }, several] })
    }
}

record! {
    /// One of several online stores.
    OnlineStoreFile "online store" {
        /// Where it is.
        url: required String,
        /// `required`: a run waits for it. `best_effort`: a run goes on without it, and it is brought up to date later.
        mode: optional OnlineMode,
    }
}

/// What a run does when an online store is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) enum OnlineMode {
    Required,
    BestEffort,
}
words!(OnlineMode, "what a run does without the store" {
    "required" => Self::Required,
    "best_effort" => Self::BestEffort,
});
schema_of!(OnlineMode, "online_mode", { "enum": ["required", "best_effort"] });

record! {
    /// A simulated clock, on embedded parts only.
    ClockFile "clock" {
        /// Project time when the project is first started: a date (midnight UTC) or RFC 3339.
        start: required TextOrNumber,
        /// Project seconds per real second; 1 when left out.
        speed: optional TextOrNumber,
    }
}

record! {
    /// How long what is no longer current is kept.
    RetentionFile "retention" {
        /// How long a snapshot can be restored after it was recorded; `30d` when left out.
        snapshots: optional String,
        /// The newest snapshots of each view that are kept whatever their age; 3 when left out.
        min_snapshots: optional TextOrNumber,
        /// How long log lines and outputs of ended runs are kept; `90d` when left out.
        log: optional String,
        /// How long files in the lake that nothing names are kept; `24h` when left out. Must be longer than any task runs.
        staged: optional String,
    }
}

record! {
    /// The janitor, which removes what retention no longer keeps.
    JanitorFile "janitor" {
        /// How often it looks, in a process with a scheduler; `off` for only by `tidegate janitor`; `1h` when left out.
        every: optional String,
    }
}

record! {
    /// The loop that brings back what an online store lost.
    ReconcileFile "reconcile" {
        /// How often every worker looks; `off` for only by `tidegate online rebuild`; `1m` when left out.
        every: optional String,
    }
}

/// A value that YAML may take for a number.
#[derive(Debug, Clone)]
pub(in crate::definitions) struct TextOrNumber(pub(super) String);

impl Read for TextOrNumber {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        String::read(node, out).map(Self)
    }
}
schema_of!(TextOrNumber, "text_or_number", { "type": ["string", "number"] });

/// A flag, which may come as a text where `${NAME}` gives it.
#[derive(Debug, Clone)]
pub(in crate::definitions) struct TextOrFlag(pub(super) String);

impl Read for TextOrFlag {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        String::read(node, out).map(Self)
    }
}
schema_of!(TextOrFlag, "text_or_flag", { "type": ["string", "boolean"] });

/// Profiles by name.
#[derive(Debug, Clone)]
pub(in crate::definitions) struct Profiles(pub(super) Vec<(String, ProfileFile)>);

impl Read for Profiles {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            out.push(wrong_type(node, "a map from profile names to settings"));
            return None;
        };
        let read = |(key, node): &(yaml::Key, Node)| Some((key.name.clone(), ProfileFile::read(node, out)?));
        Some(Self(entries.iter().filter_map(read).collect()))
    }
}

impl JsonSchema for Profiles {
    fn schema_name() -> Cow<'static, str> {
        "Profiles".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let profile = generator.subschema_for::<ProfileFile>();
        json_schema!({ "type": "object", "additionalProperties": profile })
    }
}
