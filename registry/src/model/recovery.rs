//! What is agreed beforehand about taking data back: who may ([`PolicyRule`]), what is done step by step ([`Recipe`]), and when
//! it is rehearsed ([`ScheduledDrill`]).

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::FeatureView;
use crate::diagnostics::Origin;
use crate::drill::Scenario;
use crate::ids::{DrillName, OwnerName, RecipeName, RuleName};
use crate::restore::HoldPolicy;
use crate::switches::Serve;

/// Which views are meant. Every list that says something must mean the view; an empty one says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matching {
    /// Names, as `name` or `name@vN`; a `*` stands for any text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<String>,
    /// Their owners.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<OwnerName>,
    /// Tags, one of which the view or one of its features has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Names of checks, one of which the view has; a `*` stands for any text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
}

impl Matching {
    /// Whether `view` is meant.
    pub fn means(&self, view: &FeatureView) -> bool {
        let id = view.id.to_string();
        let named = |pattern: &String| glob(pattern, view.id.name.as_str()) || glob(pattern, &id);
        let tagged =
            |tag: &String| view.tags.contains(tag) || view.features.iter().any(|feature| feature.tags.contains(tag));
        let checked = |pattern: &String| view.checks.iter().any(|check| glob(pattern, &check.name));
        (self.views.is_empty() || self.views.iter().any(named))
            && (self.owners.is_empty() || self.owners.contains(&view.owner))
            && (self.tags.is_empty() || self.tags.iter().any(tagged))
            && (self.checks.is_empty() || self.checks.iter().any(checked))
    }
}

/// Whether `text` is what `pattern` says, in which every `*` stands for any text, also none.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Who may take what back. A restore must keep every rule that means one of its views.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Its name, by which a refusal calls it.
    pub name: RuleName,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The views.
    pub matching: Matching,
    /// Who may restore and approve: patterns of `user` or `user@host`; empty for anybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actors: Vec<String>,
    /// What is taken back may have been published so many seconds ago at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_secs: Option<u64>,
    /// When it may be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<Hours>,
    /// Whether a second person must approve.
    #[serde(default)]
    pub second_person: bool,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

/// Hours of the day on a zone's wall clock: from `from` until before `to`; over midnight when `to` is not later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours {
    /// Minutes after midnight.
    pub from_minutes: u32,
    /// Minutes after midnight.
    pub to_minutes: u32,
    /// Whose wall clock.
    pub timezone: Tz,
}

/// A named way back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Its name.
    pub name: RecipeName,
    /// When to use it.
    pub description: String,
    /// The views that it is for.
    pub matching: Matching,
    /// What triggers it by itself; empty for a recipe that only people run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<Trigger>,
    /// Triggered for a view, it is not triggered for it again within so many seconds.
    #[serde(default = "cooldown_default", skip_serializing_if = "is_cooldown_default")]
    pub cooldown_secs: u64,
    /// What is done, in this order.
    pub steps: Vec<RecipeStep>,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

/// A restore that is rehearsed regularly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduledDrill {
    /// Its name.
    pub name: DrillName,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The views that take part.
    pub matching: Matching,
    /// When, in crontab(5).
    pub cron: String,
    /// The zone on whose wall clock its fields are read.
    pub timezone: Tz,
    /// What is rehearsed; empty for everything that makes sense.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scenarios: Vec<Scenario>,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

/// [`Recipe::cooldown_secs`] where nothing is said.
pub const COOLDOWN_SECS: u64 = 3_600;

fn cooldown_default() -> u64 {
    COOLDOWN_SECS
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_cooldown_default(secs: &u64) -> bool {
    *secs == COOLDOWN_SECS
}

/// What can trigger a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A check with `severity: warn` does not hold in what was published.
    CheckFailedAfterPublish,
    /// After a restore something was not as promised.
    ValidationFailed,
    /// `tidegate online audit` found that the online store differs from the lake.
    OnlineDiffers,
    /// A person marked a snapshot as bad.
    MarkedBad,
    /// `tidegate incident open` says that something is wrong.
    Incident,
}

impl Trigger {
    /// All of them.
    pub const ALL: &[Self] =
        &[Self::CheckFailedAfterPublish, Self::ValidationFailed, Self::OnlineDiffers, Self::MarkedBad, Self::Incident];

    /// As written, stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CheckFailedAfterPublish => "check_failed_after_publish",
            Self::ValidationFailed => "validation_failed",
            Self::OnlineDiffers => "online_differs",
            Self::MarkedBad => "marked_bad",
            Self::Incident => "incident",
        }
    }
}

impl std::fmt::Display for Trigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Trigger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|trigger| trigger.as_str() == text);
        found.ok_or_else(|| format!("nothing called `{text}` triggers a recipe"))
    }
}

/// One step of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecipeStep {
    /// Switches a feature off, in every view that has it.
    Disable {
        /// The feature.
        feature: String,
        /// What readers get.
        serve: Serve,
        /// For entities in buckets below this: see [`crate::switches::Off`].
        below: u16,
    },
    /// Takes the views back to what was live before.
    Restore {
        /// Whether views that were computed from it go back with it.
        cascade: bool,
        /// What becomes of runs afterwards.
        while_held: HoldPolicy,
    },
    /// Holds the views.
    Hold {
        /// What becomes of runs meanwhile.
        while_held: HoldPolicy,
    },
    /// Compares what is online with the lake; a difference ends the recipe.
    Validate {
        /// About so many entities of each view; `None` for all.
        sample: Option<u64>,
    },
    /// Tells whoever listens.
    Notify {
        /// The sentence.
        message: String,
    },
    /// Goes on only when a second person has approved.
    RequireApproval {
        /// Who may: patterns of `user` or `user@host`; empty for anybody else.
        by: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a"),
            ("a*", "a"),
            ("a*c", "abc"),
            ("a*b*c", "a1b2c"),
            ("*@host", "ana@host"),
            ("ab", "ab"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a", "ab"), ("a*c", "ab"), ("ab*b", "ab"), ("a*bc*c", "abc"), ("*x", "xa")]
        {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
