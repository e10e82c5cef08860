//! Drills: restores that are rehearsed on a copy of what is live, so that how long one takes, and whether it works, is known
//! before it is needed.
//!
//! A [`Drill`] is written when it begins ([`Drilling::drill_begin`]) and gets its end ([`Drilling::drill_end`]): one without an
//! end that nobody carries out any more has left a copy behind, which whoever drills next removes.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::ids::{DrillId, DrillName, ViewId};
use crate::notice::NewNotice;
use crate::store::Result;
use crate::time::Instant;

/// The duty of the registry ([`crate::care::Care::duty_take`]) that whoever drills, or removes what drills left, has alone.
pub const DUTY: &str = "drill";

macro_rules! scenarios {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// What is rehearsed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Scenario {
            $($(#[$doc])* $variant,)+
        }

        impl Scenario {
            /// All of them, in the order in which they are rehearsed.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word that is written, stored and shown.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

scenarios! {
    /// A definition that computes wrong values is published, and taken back.
    BadDeploy = "bad_deploy",
    /// A run that lost rows is published, and taken back.
    PartialData = "partial_data",
    /// The online store holds another snapshot than the registry says: noticed, and put right.
    TagMismatch = "tag_mismatch",
    /// What was read at a snapshot that is taken back is named, and can still be read as it was.
    TrainingSetOutOfStep = "training_set_out_of_step",
    /// The online store is empty: noticed, and filled again from the lake.
    OnlineStoreLost = "online_store_lost",
}

impl Scenario {
    /// Whether it makes sense only for what is online.
    pub fn needs_online(self) -> bool {
        matches!(self, Self::TagMismatch | Self::OnlineStoreLost)
    }

    /// Whether a restore is carried out in it, so that it tells how long one takes.
    pub fn restores(self) -> bool {
        !self.needs_online()
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Scenario {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|scenario| scenario.as_str() == text);
        found.ok_or_else(|| {
            let known: Vec<String> = Self::ALL.iter().map(|scenario| format!("`{scenario}`")).collect();
            format!("there is no scenario `{text}`, only {}", known.join(", "))
        })
    }
}

/// How a drill, or a scenario of one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrillState {
    /// It is under way, or its process is gone.
    Running,
    /// Everything came back as it was.
    Passed,
    /// Something did not, or could not be tried.
    Failed,
    /// It makes no sense here.
    Skipped,
    /// Its process died; what it left is removed.
    Abandoned,
}

impl DrillState {
    /// The word that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Abandoned => "abandoned",
        }
    }
}

impl fmt::Display for DrillState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DrillState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Running, Self::Passed, Self::Failed, Self::Skipped, Self::Abandoned];
        let found = all.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| format!("there is no state `{text}` of a drill"))
    }
}

/// What a drill copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillCost {
    /// Files of tables, the entries of their logs aside.
    pub files: u64,
    /// Their size in bytes. In a folder files are linked and take no room a second time.
    pub bytes: u64,
    /// Entities that are written to the copy of the online store, each with all features of its view.
    pub entities: u64,
}

/// How long the steps of one restore took, in milliseconds of the process's own clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillPhases {
    /// Planning it.
    pub plan_ms: u64,
    /// Making sure that the lake has what it takes, and deciding it.
    pub check_ms: u64,
    /// Committing the tables.
    pub commit_ms: u64,
    /// Bringing the old content online, up to and with the one step in which all views change.
    pub online_ms: u64,
    /// Comparing what came of it with what was promised.
    pub validate_ms: u64,
    /// Everything, from asking to knowing that it is right.
    pub whole_ms: u64,
}

/// What one scenario came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// Which.
    pub scenario: Scenario,
    /// Passed, failed or skipped.
    pub outcome: DrillState,
    /// The views that took part.
    pub views: Vec<ViewId>,
    /// How long its restore took; `None` when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phases: Option<DrillPhases>,
    /// What was found, in sentences; what is wrong comes first.
    pub findings: Vec<String>,
}

/// What a drill came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillReport {
    /// What was copied.
    pub cost: DrillCost,
    /// How long copying took, in milliseconds.
    pub copy_ms: u64,
    /// How long removing the copy took, in milliseconds.
    pub remove_ms: u64,
    /// How long all of it took, in milliseconds.
    pub took_ms: u64,
    /// Scenario by scenario.
    pub scenarios: Vec<ScenarioReport>,
    /// Views that took no part, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<(ViewId, String)>,
    /// Why it ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl DrillReport {
    /// Whether something was rehearsed, and all of that went well.
    pub fn passed(&self) -> bool {
        let went = |state: DrillState| self.scenarios.iter().any(|scenario| scenario.outcome == state);
        self.error.is_none() && went(DrillState::Passed) && !went(DrillState::Failed)
    }

    /// How long it takes to restore each view, by the slowest restore that it took part in; only of views with which nothing
    /// failed.
    pub fn proven(&self) -> IndexMap<ViewId, u64> {
        let mut proven: IndexMap<ViewId, u64> = IndexMap::new();
        for scenario in &self.scenarios {
            let Some(phases) = scenario.phases.filter(|_| scenario.scenario.restores()) else { continue };
            for view in &scenario.views {
                let slowest = proven.entry(view.clone()).or_default();
                *slowest = phases.whole_ms.max(*slowest);
            }
        }
        for scenario in self.scenarios.iter().filter(|scenario| scenario.outcome == DrillState::Failed) {
            proven.retain(|view, _| !scenario.views.contains(view));
        }
        proven
    }
}

/// A drill, under way or done.
#[derive(Debug, Clone, PartialEq)]
pub struct Drill {
    /// Its id; generated by whoever begins it.
    pub id: DrillId,
    /// The definition that asked for it; `None` for one that a person began.
    pub name: Option<DrillName>,
    /// The views that were asked for.
    pub views: Vec<ViewId>,
    /// The scenarios that were asked for.
    pub scenarios: Vec<Scenario>,
    /// Who.
    pub actor: String,
    /// When it began, in project time.
    pub started_at: Instant,
    /// When it ended, in project time.
    pub finished_at: Option<Instant>,
    /// How it stands.
    pub state: DrillState,
    /// What it came to; `None` until it ended.
    pub report: Option<DrillReport>,
}

/// The end of a drill.
#[derive(Debug, Clone, PartialEq)]
pub struct DrillEnd {
    /// How it ended.
    pub state: DrillState,
    /// What it came to; `None` of one whose process died.
    pub report: Option<DrillReport>,
    /// Who noticed.
    pub actor: String,
    /// When, in project time.
    pub now: Instant,
    /// Told in the same step.
    pub notices: Vec<NewNotice>,
}

/// What is known of how long it takes to restore a view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proven {
    /// By the newest drill in which it came back as it was; `None` when there was none.
    pub restore: Option<ProvenRestore>,
    /// The newest drill, when the view did not come back in it.
    pub failed: Option<DrillId>,
}

/// A restore that was rehearsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvenRestore {
    /// In which drill.
    pub drill: DrillId,
    /// When that ended, in project time.
    pub at: Instant,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// The part of the registry that drills need; beside [`crate::store::Store`], whose semantics hold here too.
#[async_trait]
pub trait Drilling {
    /// Writes down that a drill begins, with an audit event. Repeating it changes nothing.
    async fn drill_begin(&self, drill: &Drill) -> Result<()>;

    /// Writes down how a drill ended, with an audit event and notices. One that has ended already is left as it is.
    ///
    /// # Errors
    /// [`crate::store::StoreError::NotFound`].
    async fn drill_end(&self, id: DrillId, end: DrillEnd) -> Result<()>;

    /// Drills, newest first; at most `limit` (0: all).
    async fn drills(&self, limit: u32) -> Result<Vec<Drill>>;

    /// Drills that were begun and have no end, oldest first.
    async fn drills_open(&self) -> Result<Vec<Drill>>;

    /// When the drill that a definition asks for was begun last, in project time; `None` when it never was.
    async fn drilled_last(&self, drill: &DrillName) -> Result<Option<Instant>>;

    /// What is known of each of `views`; those that no drill looked at are left out.
    async fn proven(&self, views: &[ViewId]) -> Result<IndexMap<ViewId, Proven>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(name: &str) -> ViewId {
        name.parse().unwrap()
    }

    fn scenario(scenario: Scenario, outcome: DrillState, views: &[&str], whole_ms: u64) -> ScenarioReport {
        let phases = Some(DrillPhases { whole_ms, ..DrillPhases::default() });
        let views = views.iter().map(|name| view(name)).collect();
        ScenarioReport { scenario, outcome, views, phases, findings: Vec::new() }
    }

    #[test]
    fn the_slowest_restore_counts_and_nothing_of_a_view_with_which_something_failed() {
        let mut report = DrillReport {
            scenarios: vec![
                scenario(Scenario::BadDeploy, DrillState::Passed, &["a@v1", "b@v1"], 10),
                scenario(Scenario::PartialData, DrillState::Passed, &["a@v1", "b@v1"], 30),
                scenario(Scenario::OnlineStoreLost, DrillState::Passed, &["a@v1", "b@v1"], 500),
            ],
            ..DrillReport::default()
        };
        assert!(report.passed());
        assert_eq!(report.proven(), IndexMap::from([(view("a@v1"), 30), (view("b@v1"), 30)]));
        report.scenarios.push(scenario(Scenario::TagMismatch, DrillState::Failed, &["b@v1"], 1));
        assert!(!report.passed());
        assert_eq!(report.proven(), IndexMap::from([(view("a@v1"), 30)]));
    }

    #[test]
    fn a_drill_of_which_nothing_applied_has_proven_nothing() {
        let mut report = DrillReport::default();
        assert!(!report.passed());
        report.scenarios.push(scenario(Scenario::TagMismatch, DrillState::Skipped, &[], 0));
        assert!(!report.passed());
        assert!(report.proven().is_empty());
    }

    #[test]
    fn scenarios_and_states_read_back_as_they_print() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.as_str().parse(), Ok(*scenario));
            assert_eq!(serde_json::to_value(scenario).unwrap(), scenario.as_str());
        }
        let unknown = "bad_day".parse::<Scenario>().unwrap_err();
        assert!(unknown.contains("`bad_deploy`, `partial_data`"), "{unknown}");
    }
}
