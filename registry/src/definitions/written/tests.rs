//! What may be written of tests of definitions.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{At, Field, Node, Read, check_keys, described, key_name, missing, record};
use crate::definitions::read::{nearest, scalar, schema_of, words, wrong_type};
use crate::definitions::yaml::Value;
use crate::diagnostics::{Diagnostic, ids};
use crate::run::Verdict;

record! {
    /// A test: a few rows in, and the rows that a view shall make of them.
    TestFile "test" {
        /// Its name.
        name: required String,
        /// The view that is computed: `name` (its highest version) or `name@v2`.
        view: required String,
        /// `START/END`: dates (midnight in the zone of the view's DAG) or RFC 3339.
        interval: required String,
        /// Rows by the name of the source or view that they stand in for; every source that is read needs some, or `[]`.
        given: required Named<Vec<At<RowFile>>>,
        /// The rows that shall come out, in any order; only columns that one of them names are compared. May be left out where
        /// there are `checks:`.
        expect: optional Vec<At<RowFile>>,
        /// The verdicts that checks of the view shall give on the rows that come out, by the checks' names: `passed`,
        /// `failed`, `quarantined` or `skipped`.
        checks: optional Named<VerdictWord>,
    }
}

/// The word for a verdict that can be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::definitions) enum VerdictWord {
    Passed,
    Failed,
    Quarantined,
    Skipped,
}

words!(VerdictWord, "a verdict" {
    "passed" => Self::Passed, "failed" => Self::Failed, "quarantined" => Self::Quarantined, "skipped" => Self::Skipped,
});
schema_of!(VerdictWord, "verdict", { "enum": ["passed", "failed", "quarantined", "skipped"] });

impl From<VerdictWord> for Verdict {
    fn from(word: VerdictWord) -> Self {
        match word {
            VerdictWord::Passed => Self::Passed,
            VerdictWord::Failed => Self::Failed,
            VerdictWord::Quarantined => Self::Quarantined,
            VerdictWord::Skipped => Self::Skipped,
        }
    }
}

/// A row: values by column.
pub(in crate::definitions) type RowFile = Named<serde_json::Value>;

/// A map whose keys are the author's, in the order as written.
#[derive(Debug, Clone)]
pub(in crate::definitions) struct Named<T>(pub(in crate::definitions) Vec<(At<String>, At<T>)>);

impl<T: Read> Read for Named<T> {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            out.push(
                wrong_type(node, "a map").with_help("write names and values, as in `{carrier: UA, dep_delay: 10}`"),
            );
            return None;
        };
        let entry = |(key, value), out: &mut Vec<Diagnostic>| {
            let (key, value): (&super::super::yaml::Key, &Node) = (key, value);
            Some((At { value: key.name.clone(), origin: key.origin.clone() }, At::read(value, out)?))
        };
        // All of them are looked at, so that every mistake is told.
        let read: Vec<_> = entries.iter().map(|(key, value)| entry((key, value), out)).collect();
        read.into_iter().collect::<Option<_>>().map(Self)
    }
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("named_{}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let of = generator.subschema_for::<T>();
        json_schema!({ "type": "object", "additionalProperties": of })
    }
}
