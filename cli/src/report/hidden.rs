//! What a report must not show: values of what is tagged `pii`.

use std::collections::BTreeSet;

use tidegate_registry::model::{FeatureView, Key};

/// The tag of what tells about persons.
const PII: &str = "pii";

/// Which columns of a view are hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    columns: BTreeSet<String>,
    shown: BTreeSet<String>,
}

impl Hidden {
    /// Features tagged `pii`; of a view that has the tag itself, all columns, its keys included.
    pub fn of(view: &FeatureView, keys: &[Key]) -> Self {
        let is_pii = |tags: &[String]| tags.iter().any(|tag| tag.eq_ignore_ascii_case(PII));
        let whole = is_pii(&view.tags);
        let names = keys
            .iter()
            .map(|key| (&key.name, whole))
            .chain(view.features.iter().map(|feature| (&feature.name, whole || is_pii(&feature.tags))));
        let (hidden, shown): (Vec<_>, Vec<_>) = names.partition(|(_, hidden)| *hidden);
        let owned = |names: Vec<(&String, bool)>| names.into_iter().map(|(name, _)| name.clone()).collect();
        Self { columns: owned(hidden), shown: owned(shown) }
    }

    /// Whether there is anything to hide.
    pub fn any(&self) -> bool {
        !self.columns.is_empty()
    }

    /// Whether a column of the view is hidden.
    pub fn hides(&self, column: &str) -> bool {
        self.columns.contains(column)
    }

    /// Whether a column of a sample is hidden: a query may have given a hidden column any name, so that in views with
    /// hidden columns only what is known to be harmless is shown.
    pub fn hides_sample(&self, column: &str) -> bool {
        self.any() && column != "event_timestamp" && !self.shown.contains(column)
    }
}
