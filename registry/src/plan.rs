//! What an apply would change, as plain data: computed by comparing the project's files with the registry.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The kinds of definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefinitionKind {
    /// [`crate::model::Owner`].
    Owner,
    /// [`crate::model::Entity`].
    Entity,
    /// [`crate::model::Source`].
    Source,
    /// [`crate::model::FeatureView`].
    FeatureView,
    /// [`crate::model::Dag`].
    Dag,
}

impl DefinitionKind {
    /// The word that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Entity => "entity",
            Self::Source => "source",
            Self::FeatureView => "feature_view",
            Self::Dag => "dag",
        }
    }
}

impl fmt::Display for DefinitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DefinitionKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "owner" => Self::Owner,
            "entity" => Self::Entity,
            "source" => Self::Source,
            "feature_view" => Self::FeatureView,
            "dag" => Self::Dag,
            _ => return Err(format!("`{text}` is not a kind of definition")),
        })
    }
}
