//! House rules that a project gives itself in `tidegate.yaml`: what names look like and which tags are mandatory.

use std::borrow::Cow;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::read::{At, Field, Read, check_keys, described, key_name, missing, record, scalar, schema_of};
use super::yaml::Node;
use crate::diagnostics::{Diagnostic, Origin, ids};

/// A regular expression that the whole name must match.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Regex, String);

impl Read for Pattern {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let text = &scalar(node, "a regular expression", out)?.text;
        match Regex::new(&format!("^(?:{text})$")) {
            Ok(regex) => Some(Self(regex, text.clone())),
            Err(_) => {
                out.push(
                    Diagnostic::error(
                        ids::BAD_SETTING,
                        node.origin.clone(),
                        format!("`{text}` is not a regular expression"),
                    )
                    .with_help("write for example `[a-z]+_v?[0-9]*`; the whole name must match"),
                );
                None
            }
        }
    }
}
schema_of!(Pattern, "pattern", { "type": "string", "format": "regex" });

record! {
    /// House rules.
    RulesFile "rules" {
        /// What names must look like, per kind.
        names: optional NamesFile,
        /// Tags that must be there, per kind; `team:*` asks for any tag that begins with `team:`.
        required_tags: optional TagsFile,
    }
}

record! {
    /// A regular expression per kind of name.
    NamesFile "name rules" {
        /// Names of feature views.
        feature_view: optional Pattern,
        /// Names of features.
        feature: optional Pattern,
        /// Names of sources.
        source: optional Pattern,
        /// Names of entities.
        entity: optional Pattern,
        /// Names of DAGs.
        dag: optional Pattern,
    }
}

record! {
    /// Mandatory tags per kind.
    TagsFile "tag rules" {
        /// Tags of feature views.
        feature_view: optional Vec<At<String>>,
        /// Tags of features.
        feature: optional Vec<At<String>>,
        /// Tags of DAGs.
        dag: optional Vec<At<String>>,
    }
}

/// The rules in force; none by default.
#[derive(Debug, Default)]
pub(super) struct Rules(Option<RulesFile>);

impl Rules {
    pub(super) fn new(file: Option<RulesFile>) -> Self {
        Self(file)
    }

    /// Reports a name that breaks the rule of its kind.
    pub(super) fn name(&self, kind: &str, name: &Field<String>, out: &mut Vec<Diagnostic>) {
        let (Some(rules), Some(name)) = (self.0.as_ref().and_then(|rules| rules.names.get()), name.get()) else {
            return;
        };
        let pattern = match kind {
            "feature view" => &rules.feature_view,
            "feature" => &rules.feature,
            "source" => &rules.source,
            "entity" => &rules.entity,
            _ => &rules.dag,
        };
        let Some(pattern) = pattern.get() else { return };
        if !pattern.0.is_match(&name.value) {
            out.push(
                Diagnostic::error(
                    ids::RULE_BROKEN,
                    name.origin.clone(),
                    format!("the name of {kind} `{}` breaks a rule of this project", name.value),
                )
                .with_label(format!("must match `{}`", pattern.1))
                .with_related(pattern.origin.clone(), "the rule"),
            );
        }
    }

    /// Reports each mandatory tag that is missing.
    pub(super) fn tags(
        &self,
        kind: &str,
        name: &Field<String>,
        tags: &Field<Vec<At<String>>>,
        origin: &Origin,
        out: &mut Vec<Diagnostic>,
    ) {
        let Some(rules) = self.0.as_ref().and_then(|rules| rules.required_tags.get()) else { return };
        let required = match kind {
            "feature view" => &rules.feature_view,
            "feature" => &rules.feature,
            _ => &rules.dag,
        };
        let present = |wanted: &str| {
            tags.get().is_some_and(|tags| {
                tags.iter().any(|tag| match wanted.strip_suffix('*') {
                    Some(prefix) => tag.value.starts_with(prefix),
                    None => tag.value == wanted,
                })
            })
        };
        for wanted in required.get().into_iter().flat_map(|list| list.iter()).filter(|tag| !present(&tag.value)) {
            let shown = name.get().map_or("", |name| name.value.as_str());
            out.push(
                Diagnostic::error(
                    ids::RULE_BROKEN,
                    name.origin_or(origin),
                    format!("{kind} `{shown}` lacks the tag `{}`, which this project demands", wanted.value),
                )
                .with_label("a tag is missing")
                .with_related(wanted.origin.clone(), "the rule")
                .with_help(format!("add it, as in `tags: [{}]`", wanted.value.replace('*', "…"))),
            );
        }
    }
}
