//! Named sets of features ([`FeatureService`]), and who uses which ([`Consumer`]).

use serde::{Deserialize, Serialize};

use crate::diagnostics::Origin;
use crate::features::Selection;
use crate::ids::{ConsumerName, OwnerName, ServiceName, ViewId};

/// A named set of features: what a model is trained on and served with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureService {
    /// The name that datasets and consumers refer to.
    pub name: ServiceName,
    /// Who is responsible.
    pub owner: OwnerName,
    /// What it is for.
    pub description: String,
    /// Labels to search by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Its features, in order. Patterns were resolved when it was applied: a view or feature that is defined later does not
    /// come in by itself.
    pub features: Selection,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

/// A model, application or report that reads features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Consumer {
    /// Its name.
    pub name: ConsumerName,
    /// What it is.
    pub kind: ConsumerKind,
    /// Who is responsible.
    pub owner: OwnerName,
    /// What it does.
    pub description: String,
    /// Which version of it this is about, in its owner's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Labels to search by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The feature services that it uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceName>,
    /// The features that it uses, those of its services included.
    pub features: Selection,
    /// Where it is defined.
    #[serde(skip)]
    pub origin: Origin,
}

impl Consumer {
    /// Whether it uses a feature of `view`.
    pub fn uses(&self, view: &ViewId) -> bool {
        self.features.views.contains_key(view)
    }

    /// Its name, with its version where it has one.
    pub fn label(&self) -> String {
        match &self.version {
            Some(version) => format!("{} ({version})", self.name),
            None => self.name.to_string(),
        }
    }
}

/// What reads features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerKind {
    /// A machine-learning model.
    #[default]
    Model,
    /// A program that reads features by itself.
    Application,
    /// A report or dashboard.
    Report,
}

impl ConsumerKind {
    /// The word that is written and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Application => "application",
            Self::Report => "report",
        }
    }
}
