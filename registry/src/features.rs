//! Which features are meant: `view.feature`, `view@v2.feature`, patterns of these, whole views, and named services.
//!
//! Feature services, consumers, datasets and the SDK all ask in these words, and all are answered here.

use std::fmt;
use std::str::FromStr;

use indexmap::{IndexMap, IndexSet};
use serde::{Deserialize, Serialize};

use crate::dataset::ColumnNames;
use crate::definitions::nearest;
use crate::ids::{ServiceName, ViewId};
use crate::model::{FeatureView, Project, glob};

/// Features of views, in the order in which they were asked for; each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selection {
    /// Per view its features.
    pub views: IndexMap<ViewId, IndexSet<String>>,
}

impl Selection {
    /// The features that `asked` means in `project`.
    ///
    /// # Errors
    /// When one of them means nothing.
    pub fn of(project: &Project, asked: &[Asked]) -> Result<Self, SelectionError> {
        let mut selection = Self::default();
        for one in asked {
            selection.add(project, one)?;
        }
        Ok(selection)
    }

    /// Adds what `asked` means.
    ///
    /// # Errors
    /// When it means nothing; the selection is then as before.
    pub fn add(&mut self, project: &Project, asked: &Asked) -> Result<(), SelectionError> {
        let whole = |view: &str| Asked { view: view.to_owned(), version: asked.version, feature: None };
        if let (None, None, Ok(name)) = (&asked.feature, asked.version, ServiceName::new(asked.view.clone()))
            && let Some(service) = project.feature_services.get(&name)
        {
            self.merge(&service.features);
            return Ok(());
        }
        let views = meant(project, asked);
        if views.is_empty() {
            return Err(unknown_view(project, asked));
        }
        let pattern = asked.feature.as_deref().unwrap_or("*");
        let mut any = false;
        for view in &views {
            for feature in view.features.iter().filter(|feature| glob(pattern, &feature.name)) {
                any = true;
                self.views.entry(view.id.clone()).or_default().insert(feature.name.clone());
            }
        }
        if any {
            return Ok(());
        }
        let known = views.iter().flat_map(|view| view.features.iter().map(|feature| feature.name.as_str()));
        let of = if views.len() == 1 { views[0].id.to_string() } else { whole(&asked.view).to_string() };
        Err(SelectionError {
            asked: asked.to_string(),
            reason: format!("`{of}` has no feature `{pattern}`"),
            help: nearest(pattern, known).map_or_else(
                || format!("`tidegate views show {of}` lists its features"),
                |near| format!("did you mean `{near}`?"),
            ),
        })
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (view, features) in &other.views {
            self.views.entry(view.clone()).or_default().extend(features.iter().cloned());
        }
    }

    /// The name of each feature's column, with its view and feature.
    ///
    /// # Errors
    /// When two are called the same.
    pub fn columns(&self, names: ColumnNames) -> Result<Vec<(String, ViewId, String)>, SelectionError> {
        let mut columns: IndexMap<String, (ViewId, String)> = IndexMap::with_capacity(self.len());
        for (view, features) in &self.views {
            let versions = self.views.keys().filter(|other| other.name == view.name).count();
            for feature in features {
                let column = names.column(view, feature, versions);
                if let Some((other, _)) = columns.insert(column.clone(), (view.clone(), feature.clone())) {
                    return Err(SelectionError {
                        asked: format!("{view}.{feature}"),
                        reason: format!("`{other}` and `{view}` would both give the column `{column}`"),
                        help: match names {
                            ColumnNames::Short => {
                                "choose one of them, or name columns in full: `view__feature`".to_owned()
                            }
                            ColumnNames::Full => "choose one of them".to_owned(),
                        },
                    });
                }
            }
        }
        Ok(columns.into_iter().map(|(column, (view, feature))| (column, view, feature)).collect())
    }

    /// How many features there are.
    pub fn len(&self) -> usize {
        self.views.values().map(IndexSet::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every feature as `view@vN.feature`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.views.iter().flat_map(|(view, features)| features.iter().map(move |feature| format!("{view}.{feature}")))
    }
}

/// What was asked for, in one word: `view`, `view@v2`, `view.feature`, `view@v2.feature` or a service. A `*` stands for any
/// text in names of views and features; a view without a version is its highest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The name of a view, a pattern of such, or the name of a service.
    view: String,
    version: Option<u32>,
    /// `None` for all.
    feature: Option<String>,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (view, feature) = match text.split_once('.') {
            Some((view, feature)) => (view, Some(feature)),
            None => (text, None),
        };
        let (view, version) = match view.split_once("@v") {
            Some((view, version)) => {
                let number = version.parse().ok().filter(|number| *number > 0 && !version.starts_with('+'));
                let number = number.ok_or_else(|| format!("`{text}`: a version is written as in `@v2`"))?;
                (view, Some(number))
            }
            None => (view, None),
        };
        let is_pattern = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'*')
        };
        // Features are columns, and those may have any name.
        if !is_pattern(view) || feature == Some("") {
            return Err(format!(
                "`{text}` names no feature: write `view.feature`, `view@v2.feature`, `view` for all of its features, or the \
                 name of a feature service"
            ));
        }
        Ok(Self { view: view.to_owned(), version, feature: feature.map(str::to_owned) })
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.view)?;
        if let Some(version) = self.version {
            write!(f, "@v{version}")?;
        }
        match &self.feature {
            Some(feature) => write!(f, ".{feature}"),
            None => Ok(()),
        }
    }
}

/// Why a feature cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SelectionError {
    /// As it was asked for.
    pub asked: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub help: String,
}

/// The views that are meant: of each name the highest version, or the one that was asked for.
fn meant<'a>(project: &'a Project, asked: &Asked) -> Vec<&'a FeatureView> {
    let named = project.views.values().filter(|view| glob(&asked.view, view.id.name.as_str()));
    named
        .filter(|view| match asked.version {
            Some(version) => view.id.version == version,
            None => project.highest_version(&view.id.name).is_some_and(|highest| highest.id == view.id),
        })
        .collect()
}

fn unknown_view(project: &Project, asked: &Asked) -> SelectionError {
    let versions: Vec<String> = project
        .views
        .values()
        .filter(|view| view.id.name.as_str() == asked.view)
        .map(|view| format!("`{}`", view.id))
        .collect();
    let (reason, help) = if versions.is_empty() {
        let what = if asked.feature.is_none() && asked.version.is_none() {
            "feature view or feature service"
        } else {
            "feature view"
        };
        let views = project.views.keys().map(|id| id.name.as_str());
        let services = project.feature_services.keys().map(ServiceName::as_str);
        let help = nearest(&asked.view, views.chain(services)).map_or_else(
            || "`tidegate features list` shows what there is".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        (format!("there is no {what} `{}`", asked.view), help)
    } else {
        let version = asked.version.unwrap_or_default();
        (format!("`{}` has no version {version}", asked.view), format!("there is {}", versions.join(", ")))
    };
    SelectionError { asked: asked.to_string(), reason, help }
}
