//! Checks of sources as authors write them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::definitions::read::{
    Field, Read, check_keys, described, key_name, missing, nearest, one_key, record, scalar, schema_of, words,
};
use crate::definitions::scalars::WrittenDuration;
use crate::definitions::yaml::{Node, Value};
use crate::diagnostics::{Diagnostic, ids};
use crate::model::{OnDifference, Severity, Volume};

one_key! {
    /// A rule over a source, judged before anything is computed from it.
    SourceCheckFile "check of a source" {
        /// The newest row, or the newest file, is not too old.
        Freshness = "freshness": SourceFreshnessCheck,
        /// There is as much as expected.
        Volume = "volume": VolumeCheck,
        /// The columns are those that the last recorded run saw.
        Schema = "schema": SchemaCheck,
    }
}

record! {
    /// A rule about how old the newest of a source is.
    SourceFreshnessCheck "check of a source" {
        /// The oldest age that passes, as in `2d`.
        max_age: required WrittenDuration,
        /// `rows` (default for a source with `event_time:`): from the newest time before the interval's end to that end.
        /// `files` (default without): from when the newest file was written to now.
        of: optional FreshnessWord,
        /// The column with the times of rows; the source's `event_time` when left out.
        column: optional String,
        /// How long it may take; `1h` when left out. A check that takes longer counts as failed.
        timeout: optional WrittenDuration,
        /// Unique in its source; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about how much a source holds.
    VolumeCheck "check of a source" {
        /// `rows` (default; those of the interval, by the source's `event_time`, else all), `files` or `bytes`.
        of: optional Volume,
        /// At least.
        min: optional u64,
        /// At most.
        max: optional u64,
        /// Largest allowed share of change, as in `0.5`: of the rows of an interval from those of the interval before, of all
        /// else from the run recorded last.
        max_change: optional f64,
        /// How long it may take; `1h` when left out. A check that takes longer counts as failed.
        timeout: optional WrittenDuration,
        /// Unique in its source; made from the rule when left out.
        name: optional String,
        /// `block` (default) or `warn`.
        severity: optional Severity,
    }
}

record! {
    /// A rule about the columns of a source, compared with those that the run recorded last saw.
    SchemaCheck "check of a source" {
        /// What a new column means: `ignore` (default), `warn` or `block`.
        added: optional OnDifference,
        /// What a column that is gone means: `ignore`, `warn` or `block` (default).
        removed: optional OnDifference,
        /// What a column of another type means: `ignore`, `warn` or `block` (default).
        changed: optional OnDifference,
        /// How long it may take; `1h` when left out. A check that takes longer counts as failed.
        timeout: optional WrittenDuration,
        /// Unique in its source; made from the rule when left out.
        name: optional String,
    }
}

/// What the age of a source is that of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) enum FreshnessWord {
    Rows,
    Files,
}

words!(FreshnessWord, "what a source's age is that of" { "rows" => Self::Rows, "files" => Self::Files, });
words!(Volume, "what a source's size is measured by" {
    "rows" => Self::Rows, "files" => Self::Files, "bytes" => Self::Bytes,
});
words!(OnDifference, "what a difference may mean" {
    "ignore" => Self::Ignore, "warn" => Self::Warn, "block" => Self::Block,
});

schema_of!(FreshnessWord, "freshness_of", { "enum": ["rows", "files"] });
schema_of!(Volume, "volume_of", { "enum": ["rows", "files", "bytes"] });
schema_of!(OnDifference, "on_difference", { "enum": ["ignore", "warn", "block"] });
