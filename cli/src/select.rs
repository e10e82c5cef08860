//! Choosing from what is defined: by name, by search, by owner, by tag.

use tidegate_registry::ids::{DagName, RunId, ViewId, ViewName};
use tidegate_registry::model::{Dag, FeatureView, Project};
use tidegate_registry::store::Store;

use crate::error::{UserError, did_you_mean};

/// Which of a list to show.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Selection {
    /// Only those whose name, description or columns contain this (any case)
    #[arg(long, value_name = "TEXT")]
    pub search: Option<String>,
    /// Only those of this owner
    #[arg(long, value_name = "OWNER")]
    pub owner: Option<String>,
    /// Only those with this tag
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,
}

impl Selection {
    /// Whether something with these texts, owner and tags is chosen.
    pub fn takes<'a>(&self, texts: impl IntoIterator<Item = &'a str>, owner: Option<&str>, tags: &[String]) -> bool {
        let found = self.search.as_deref().is_none_or(|search| {
            let search = search.to_lowercase();
            texts.into_iter().any(|text| text.to_lowercase().contains(&search))
        });
        found
            && self.owner.as_deref().is_none_or(|wanted| owner == Some(wanted))
            && self.tag.as_deref().is_none_or(|wanted| tags.iter().any(|tag| tag == wanted))
    }
}

/// The thing called `name`, or an error that guesses what was meant.
///
/// # Errors
/// When there is none.
pub fn named<'a, 'k, T>(
    what: &str,
    name: &str,
    found: Option<&'a T>,
    known: impl IntoIterator<Item = &'k str>,
) -> Result<&'a T, UserError> {
    found.ok_or_else(|| {
        let mut known: Vec<&str> = known.into_iter().collect();
        known.dedup();
        let error = UserError::new(format!("there is no {what} `{name}`")).missing();
        match did_you_mean(name, known.iter().copied()) {
            Some(guess) => error.hint(guess),
            None if known.is_empty() => error.hint("nothing of that kind has been applied"),
            None if known.len() <= 20 => error.hint(format!("there is {}", quoted(&known))),
            None => error,
        }
    })
}

/// `names` in backticks, separated by commas.
pub fn quoted<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// The DAG called `name`.
///
/// # Errors
/// When there is none.
pub fn dag<'a>(project: &'a Project, name: &str) -> Result<&'a Dag, UserError> {
    let found = project.dags.values().find(|dag| dag.name.as_str() == name);
    named("DAG", name, found, project.dags.keys().map(DagName::as_str))
}

/// The view `name` (its highest version) or `name@vN`.
///
/// # Errors
/// When there is none.
pub fn view<'a>(project: &'a Project, name: &str) -> Result<&'a FeatureView, UserError> {
    let found = match name.parse::<ViewId>() {
        Ok(id) => project.views.get(&id),
        Err(_) => ViewName::new(name).ok().and_then(|name| project.highest_version(&name)),
    };
    if name.contains('@') {
        let ids: Vec<String> = project.views.keys().map(ToString::to_string).collect();
        return named("feature view", name, found, ids.iter().map(String::as_str));
    }
    named("feature view", name, found, project.views.keys().map(|id| id.name.as_str()))
}

/// The run whose id is, or alone begins with, `prefix`.
///
/// # Errors
/// When none or several do.
pub async fn run_id(store: &dyn Store, prefix: &str) -> anyhow::Result<RunId> {
    if let Ok(id) = prefix.parse() {
        return Ok(id);
    }
    let plain = !prefix.is_empty() && prefix.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let found = if plain { store.runs_by_prefix(&prefix.to_ascii_lowercase()).await? } else { Vec::new() };
    match found.as_slice() {
        [id] => Ok(*id),
        [] => Err(UserError::new(format!("there is no run `{prefix}`"))
            .hint("`tidegate runs list` shows the runs")
            .into()),
        several => Err(UserError::new(format!("`{prefix}` begins the ids of several runs"))
            .hint(format!("say more of it: {}", quoted(several.iter().map(ToString::to_string))))
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_needs_everything_it_names() {
        let selection = Selection { search: Some("DELAY".into()), owner: Some("ana".into()), tag: None };
        let tags = ["core".to_owned()];
        assert!(selection.takes(["carrier_delays", "x"], Some("ana"), &tags));
        assert!(!selection.takes(["carrier_delays"], Some("ben"), &tags));
        assert!(!selection.takes(["weather"], Some("ana"), &tags));
        let tagged = Selection { tag: Some("core".into()), ..Selection::default() };
        assert!(tagged.takes(["x"], None, &tags));
        assert!(!tagged.takes(["x"], None, &[]));
    }
}
