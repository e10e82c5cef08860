//! What a person decided over a run, as it is shown wherever the run or what it left is.

use indexmap::IndexMap;
use serde::Serialize;
use tidegate_registry::run::Override;
use tidegate_registry::time::format_instant;

/// See the module.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    kind: Kind,
    of: String,
    actor: String,
    reason: String,
    at: String,
    checks: IndexMap<String, Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Override,
    Readmit,
}

impl From<&Override> for Decision {
    fn from(decision: &Override) -> Self {
        let checks = decision.checks.iter().map(|(view, checks)| (view.to_string(), checks.clone()));
        Self {
            kind: if decision.checks.is_empty() { Kind::Readmit } else { Kind::Override },
            of: decision.of.to_string(),
            actor: decision.actor.clone(),
            reason: decision.reason.clone(),
            at: format_instant(decision.at),
            checks: checks.collect(),
        }
    }
}

impl Decision {
    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self.kind {
            Kind::Override => "override",
            Kind::Readmit => "readmit",
        }
    }

    /// All of it on one line.
    pub fn sentence(&self) -> String {
        let Self { of, actor, reason, at, .. } = self;
        let checks = self.checks.iter().map(|(view, checks)| format!("{view}: {}", checks.join(", ")));
        let what = match self.kind {
            Kind::Override => format!("of run {of}, for {}", checks.collect::<Vec<_>>().join("; ")),
            Kind::Readmit => format!("of rows that run {of} had set aside"),
        };
        format!("{what} (by {actor}, {at}: {reason})")
    }
}
