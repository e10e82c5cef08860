//! Switches: features that readers of the online store shall not be given for the time being, without any run.
//!
//! A switch is stored here, which is what counts, and travels to the online stores with a **revision** that only grows:
//! a store keeps the switches of a view with the highest revision it was ever given, so an older writer changes nothing.
//! Nothing that is published or restored touches a switch; it stays until a person lifts it.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::ids::ViewId;
use crate::store::Result;
use crate::time::Instant;

/// Entities are spread over so many buckets, by the hash of their key; a switch is for those below [`Off::below`].
pub const BUCKETS: u16 = 10_000;

/// What readers are given instead of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serve {
    /// The feature's default; null where it has none.
    Default,
    /// Null.
    Null,
}

impl Serve {
    /// The word that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Null => "null",
        }
    }
}

impl fmt::Display for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Serve {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            "null" => Ok(Self::Null),
            _ => Err(format!("`{text}` is neither `default` nor `null`")),
        }
    }
}

/// How a feature is switched off. This is also its form in online stores, which other programs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Off {
    /// What readers are given.
    pub serve: Serve,
    /// For entities in buckets below this, of [`BUCKETS`]; 10,000 for all.
    pub below: u16,
}

impl Off {
    /// For which share of the entities, in percent.
    pub fn percent(self) -> f64 {
        f64::from(self.below) * 100.0 / f64::from(BUCKETS)
    }
}

/// As in `default`, or `default for 2.5 %`.
impl fmt::Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.below >= BUCKETS {
            return write!(f, "{}", self.serve);
        }
        write!(f, "{} for {} %", self.serve, self.percent())
    }
}

/// The switches of one view, as they travel to online stores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ViewSwitches {
    /// Grows with every change: whoever has a lower one is behind. 0 when nothing of the view was ever switched.
    pub revision: u64,
    /// Features that are switched off, by name.
    pub off: IndexMap<String, Off>,
}

impl ViewSwitches {
    /// The features that are switched off as a JSON object, sorted by name: `{"avg":{"serve":"default","below":10000}}`.
    pub fn to_json(&self) -> String {
        let mut names: Vec<_> = self.off.iter().collect();
        names.sort_by_key(|(name, _)| *name);
        let object = names.into_iter().map(|(name, off)| {
            let off = serde_json::json!({ "serve": off.serve, "below": off.below });
            (name.clone(), off)
        });
        serde_json::Value::Object(object.collect()).to_string()
    }
}

/// A switch in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Switch {
    /// The view.
    pub view: ViewId,
    /// The feature.
    pub feature: String,
    /// How it is switched off.
    pub off: Off,
    /// Who switched it last.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in project time.
    pub changed_at: Instant,
    /// The revision of that change.
    pub revision: u64,
}

/// What is switched off.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Switches {
    /// The switches in force, by view and feature.
    pub switches: Vec<Switch>,
    /// The revision of every view of which something was ever switched.
    pub revisions: IndexMap<ViewId, u64>,
}

impl Switches {
    /// What online stores shall have of `view`.
    pub fn of(&self, view: &ViewId) -> ViewSwitches {
        let of_view = self.switches.iter().filter(|switch| switch.view == *view);
        ViewSwitches {
            revision: self.revisions.get(view).copied().unwrap_or(0),
            off: of_view.map(|switch| (switch.feature.clone(), switch.off)).collect(),
        }
    }
}

/// A change of one switch.
#[derive(Debug, Clone, PartialEq)]
pub struct SwitchChange {
    /// The view.
    pub view: ViewId,
    /// The feature.
    pub feature: String,
    /// How it is switched off; `None` to switch it on.
    pub off: Option<Off>,
    /// The highest revision that any online store has: the new one is higher, also after the registry was brought back
    /// from a copy.
    pub above: u64,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, in project time.
    pub now: Instant,
}

/// The part of the registry that keeps switches; beside [`crate::store::Store`], whose semantics hold here too.
#[async_trait]
pub trait Switching {
    /// What is switched off.
    async fn switches(&self) -> Result<Switches>;

    /// Switches one feature off or on, with an audit event and a notice, and returns what online stores shall have of its
    /// view. When it is so already, and no online store is ahead, nothing changes.
    async fn switch_set(&self, change: &SwitchChange) -> Result<ViewSwitches>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_that_other_programs_read_stays_as_it_is() {
        let off = |serve, below| Off { serve, below };
        let switches = ViewSwitches {
            revision: 3,
            off: [("b", off(Serve::Null, 250)), ("a", off(Serve::Default, BUCKETS))]
                .map(|(name, off)| (name.to_owned(), off))
                .into(),
        };
        let json: serde_json::Value = serde_json::from_str(&switches.to_json()).unwrap();
        let expected = serde_json::json!({
            "a": { "serve": "default", "below": 10_000 },
            "b": { "serve": "null", "below": 250 },
        });
        assert_eq!(json, expected);
        assert_eq!(off(Serve::Null, 250).to_string(), "null for 2.5 %");
        assert_eq!(off(Serve::Default, BUCKETS).to_string(), "default");
    }
}
