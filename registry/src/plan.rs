//! What an apply would change, as plain data: computed by comparing the project's files with the registry.
//!
//! [`diff`] decides, `Store::apply` does. A plan can be printed, tested and stored; it names every field that changes, and
//! tells a change of logic (other rows would come out) from one of metadata (nothing is recomputed).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::diagnostics::{Diagnostic, ids};
use crate::fingerprint;
use crate::ids::ViewId;
use crate::model::{FeatureView, Project, Table};
use crate::store::{ApplyChanges, DefinitionRow};

/// What an apply would change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The revision of the definitions that this was computed on.
    pub base: i64,
    /// Definitions that are new.
    pub added: Vec<Item>,
    /// Definitions whose own text changes.
    pub changed: Vec<Change>,
    /// Definitions that are gone.
    pub removed: Vec<Item>,
    /// Views whose own text stays but whose logic changes, because they read one whose logic changes.
    pub affected: Vec<ViewId>,
    #[serde(skip)]
    rows: ApplyChanges,
}

/// One definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it is.
    pub kind: DefinitionKind,
    /// Its name; for views `name@vN`.
    pub name: String,
}

/// One definition that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What it is.
    pub kind: DefinitionKind,
    /// Its name; for views `name@vN`.
    pub name: String,
    /// Whether the rows of a view would come out differently.
    pub logic: bool,
    /// Field by field.
    pub fields: Vec<FieldChange>,
}

/// One field that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Its path, as in `features.flights_7d.type`.
    pub field: String,
    /// The value before; `None` when there was none.
    pub before: Option<String>,
    /// The value after; `None` when it is removed.
    pub after: Option<String>,
}

impl Plan {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.rows.upserts.is_empty() && self.rows.removals.is_empty()
    }

    /// What the store has to write.
    pub fn changes(&self) -> ApplyChanges {
        self.rows.clone()
    }
}

/// Compares what the registry holds at revision `base` with what the files say. `published` are the versions of views
/// that have published at least one interval.
///
/// # Errors
/// When the logic of a published version would change: its rows would no longer be what its definition says.
pub fn diff(
    base: i64,
    current: &Project,
    wanted: &Project,
    published: &BTreeSet<ViewId>,
) -> Result<Plan, Vec<Diagnostic>> {
    let before: BTreeMap<(DefinitionKind, String), DefinitionRow> = rows(current).into_iter().map(keyed).collect();
    let mut plan = Plan {
        base,
        added: Vec::new(),
        changed: Vec::new(),
        removed: Vec::new(),
        affected: Vec::new(),
        rows: ApplyChanges::default(),
    };
    let wanted_rows = rows(wanted);
    let kept: BTreeSet<(DefinitionKind, &str)> = wanted_rows.iter().map(|row| (row.kind, row.name.as_str())).collect();
    let gone = before.values().filter(|row| !kept.contains(&(row.kind, row.name.as_str())));
    for row in gone {
        plan.removed.push(Item { kind: row.kind, name: row.name.clone() });
        plan.rows.removals.push((row.kind, row.name.clone()));
    }
    for row in wanted_rows {
        match before.get(&(row.kind, row.name.clone())) {
            None => plan.added.push(Item { kind: row.kind, name: row.name.clone() }),
            Some(old) => {
                let body = reread(&row.body);
                if old.body == row.body || old.body == body {
                    continue;
                }
                let logic = row.kind == DefinitionKind::FeatureView && old.fingerprint != row.fingerprint;
                let mut fields = Vec::new();
                compare(String::new(), &old.body, &body, &mut fields);
                fields.retain(|change| change.field != "fingerprint");
                if row.kind == DefinitionKind::FeatureView {
                    fields.extend(keys_change(&row.name, current, wanted));
                }
                if fields.is_empty() {
                    plan.affected.extend(row.name.parse());
                } else {
                    plan.changed.push(Change { kind: row.kind, name: row.name.clone(), logic, fields });
                }
            }
        }
        plan.rows.upserts.push(row);
    }
    let refused = published_changes(&plan, current, wanted, published);
    if refused.is_empty() { Ok(plan) } else { Err(refused) }
}

impl Plan {
    /// What this would make again as it was in `reverted`, where going back to `kept` has made it otherwise and it still is.
    pub fn brings_back(&self, current: &Project, reverted: &Project, kept: &Project) -> Vec<Item> {
        let of = |project: &Project| -> BTreeMap<_, _> { rows(project).into_iter().map(keyed).collect() };
        let (is, was, instead) = (of(current), of(reverted), of(kept));
        let body =
            |of: &BTreeMap<_, DefinitionRow>, key: &(DefinitionKind, String)| of.get(key).map(|row| reread(&row.body));
        let upserts = self.rows.upserts.iter().map(|row| ((row.kind, row.name.clone()), Some(reread(&row.body))));
        let removals = self.rows.removals.iter().map(|key| (key.clone(), None));
        upserts
            .chain(removals)
            .filter(|(key, wanted)| {
                let before = body(&was, key);
                *wanted == before && before != body(&instead, key) && before != body(&is, key)
            })
            .map(|((kind, name), _)| Item { kind, name })
            .collect()
    }
}

/// Every definition of `project` as the registry keeps it.
pub fn rows(project: &Project) -> Vec<DefinitionRow> {
    let mut rows = Vec::new();
    let mut add = |kind, name: String, body: Option<Value>, logic: Option<&str>| {
        // The model holds nothing that JSON cannot.
        let body = body.unwrap_or_default();
        let fingerprint = logic.map_or_else(|| fingerprint::of_body(&body), str::to_owned);
        rows.push(DefinitionRow { kind, name, fingerprint, body });
    };
    for (name, owner) in &project.owners {
        add(DefinitionKind::Owner, name.to_string(), serde_json::to_value(owner).ok(), None);
    }
    for (name, entity) in &project.entities {
        add(DefinitionKind::Entity, name.to_string(), serde_json::to_value(entity).ok(), None);
    }
    for (name, source) in &project.sources {
        add(DefinitionKind::Source, name.to_string(), serde_json::to_value(source).ok(), None);
    }
    for (name, pool) in &project.pools {
        add(DefinitionKind::Pool, name.to_string(), serde_json::to_value(pool).ok(), None);
    }
    for (id, view) in &project.views {
        add(DefinitionKind::FeatureView, id.to_string(), serde_json::to_value(view).ok(), Some(&view.fingerprint));
    }
    for (name, dag) in &project.dags {
        add(DefinitionKind::Dag, name.to_string(), serde_json::to_value(dag).ok(), None);
    }
    for (name, rule) in &project.restore_policy {
        add(DefinitionKind::RestoreRule, name.to_string(), serde_json::to_value(rule).ok(), None);
    }
    for (name, recipe) in &project.recipes {
        add(DefinitionKind::Recipe, name.to_string(), serde_json::to_value(recipe).ok(), None);
    }
    for (name, drill) in &project.drills {
        add(DefinitionKind::Drill, name.to_string(), serde_json::to_value(drill).ok(), None);
    }
    for (name, service) in &project.feature_services {
        add(DefinitionKind::FeatureService, name.to_string(), serde_json::to_value(service).ok(), None);
    }
    for (name, consumer) in &project.consumers {
        add(DefinitionKind::Consumer, name.to_string(), serde_json::to_value(consumer).ok(), None);
    }
    rows
}

fn keyed(row: DefinitionRow) -> ((DefinitionKind, String), DefinitionRow) {
    ((row.kind, row.name.clone()), row)
}

/// `body` as it will be read back: a number may lose its last bit on the way through text, which is no change.
fn reread(body: &Value) -> Value {
    serde_json::from_str(&body.to_string()).unwrap_or_else(|_| body.clone())
}

/// The keys of a view's entity stand in another definition, but are part of the view's logic.
fn keys_change(name: &str, current: &Project, wanted: &Project) -> Option<FieldChange> {
    let keys = |project: &Project| {
        let id: ViewId = name.parse().ok()?;
        let keys = project.keys_of(project.views.get(&id)?);
        Some(keys.iter().map(|key| format!("{} {}", key.name, key.kind)).collect::<Vec<_>>().join(", "))
    };
    let (before, after) = (keys(current), keys(wanted));
    (before != after).then(|| FieldChange { field: "entity.keys".to_owned(), before, after })
}

/// Adds every difference below `path`; lists of named things are compared name by name.
fn compare(path: String, before: &Value, after: &Value, out: &mut Vec<FieldChange>) {
    if before == after {
        return;
    }
    let (before_parts, after_parts) = (parts(before), parts(after));
    let (Some(before_parts), Some(after_parts)) = (before_parts, after_parts) else {
        out.push(FieldChange { field: path, before: show(before), after: show(after) });
        return;
    };
    let names: Vec<&String> =
        before_parts.keys().chain(after_parts.keys().filter(|name| !before_parts.contains_key(*name))).collect();
    let length = out.len();
    for name in names {
        let field = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let part =
            |parts: &indexmap::IndexMap<String, &Value>| parts.get(name).copied().unwrap_or(&Value::Null).clone();
        compare(field, &part(&before_parts), &part(&after_parts), out);
    }
    if out.len() == length {
        // The same parts in another order.
        let order = |parts: &indexmap::IndexMap<String, &Value>| {
            Some(parts.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        };
        let field = format!("{path} (order)");
        out.push(FieldChange { field, before: order(&before_parts), after: order(&after_parts) });
    }
}

/// The named parts of an object, or of a list whose items have names of their own.
fn parts(value: &Value) -> Option<indexmap::IndexMap<String, &Value>> {
    match value {
        Value::Object(fields) => Some(fields.iter().map(|(name, value)| (name.clone(), value)).collect()),
        Value::Array(items) if !items.is_empty() => {
            let named = items.iter().map(|item| Some((item.get("name")?.as_str()?.to_owned(), item)));
            named.collect::<Option<_>>()
        }
        _ => None,
    }
}

fn show(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// One diagnostic for each published version whose logic would change, except those that change only because they read one
/// that is reported.
fn published_changes(
    plan: &Plan,
    current: &Project,
    wanted: &Project,
    published: &BTreeSet<ViewId>,
) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    let mut reported: Vec<ViewId> = Vec::new();
    let mut inherited: Vec<ViewId> = plan.affected.clone();
    for change in plan.changed.iter().filter(|change| change.logic) {
        let Ok(id) = change.name.parse::<ViewId>() else { continue };
        let (Some(old), Some(new)) = (current.views.get(&id), wanted.views.get(&id)) else { continue };
        if !has_own_change(change, old, new) {
            inherited.push(id);
        } else if published.contains(&id) {
            out.push(published_change(&id, change, old, new, wanted));
            reported.push(id);
        }
    }
    let explained: BTreeSet<&ViewId> = wanted.descendants_of(&reported).into_iter().collect();
    for id in inherited.iter().filter(|id| published.contains(id) && !explained.contains(id)) {
        let Some(view) = wanted.views.get(id) else { continue };
        out.push(refusal(id, view.origin.clone(), wanted).with_label("the logic of a view that it reads changes"));
    }
    out
}

/// Whether a field that belongs to the logic of the view itself changes.
fn has_own_change(change: &Change, old: &FeatureView, new: &FeatureView) -> bool {
    change.fields.iter().any(|field| {
        let root = field.field.split(['.', ' ']).next().unwrap_or_default();
        match root {
            "sql" => fingerprint::tokens(&old.sql.text) != fingerprint::tokens(&new.sql.text),
            "features" => match field.field.matches('.').count() {
                0 => !field.field.ends_with("(order)"),
                1 => true,
                _ => field.field.ends_with(".type"),
            },
            "entity" | "output" | "reads" => true,
            _ => false,
        }
    })
}

fn published_change(
    id: &ViewId,
    change: &Change,
    old: &FeatureView,
    new: &FeatureView,
    wanted: &Project,
) -> Diagnostic {
    let moved = new.reads.iter().find_map(|read| {
        let before = old.reads.iter().find(|before| before.name == read.name)?;
        match (&before.table, &read.table) {
            (Table::State(from) | Table::History(from), Table::State(to) | Table::History(to)) if from != to => {
                Some((read.name.as_str(), from, to))
            }
            _ => None,
        }
    });
    if let Some((name, from, to)) = moved {
        let fixed = match name.strip_prefix("history.") {
            Some(_) => format!("history.\"{from}\""),
            None => format!("\"{from}\" AS {name}"),
        };
        return refusal(id, new.sql.origin.clone(), wanted)
            .with_label(format!("`{name}` meant `{from}` and would now mean `{to}`"))
            .with_help(format!(
                "fix the version that it reads, as `{fixed}`, or add a version of this view beside this one with `version: {}`",
                next_version(id, wanted)
            ));
    }
    let is_logic = |field: &&FieldChange| {
        let root = field.field.split('.').next().unwrap_or_default();
        matches!(root, "sql" | "features" | "entity" | "output" | "reads")
    };
    let fields: Vec<String> = change.fields.iter().filter(is_logic).map(|field| format!("`{}`", field.field)).collect();
    refusal(id, new.origin.clone(), wanted).with_label(format!("changed: {}", fields.join(", ")))
}

fn refusal(id: &ViewId, origin: crate::diagnostics::Origin, wanted: &Project) -> Diagnostic {
    Diagnostic::error(
        ids::PUBLISHED_LOGIC_CHANGE,
        origin,
        format!("the logic of `{id}` changes, and it has published rows that were computed by the old one"),
    )
    .with_help(format!(
        "keep this version as it was and add the new logic beside it with `version: {}`; changing a published version in \
         place (`--restate`, `--forward-only`) is not available yet",
        next_version(id, wanted)
    ))
}

fn next_version(id: &ViewId, wanted: &Project) -> u32 {
    wanted.highest_version(&id.name).map_or(id.version, |view| view.id.version) + 1
}

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
    /// [`crate::model::Pool`].
    Pool,
    /// [`crate::model::FeatureView`].
    FeatureView,
    /// [`crate::model::Dag`].
    Dag,
    /// [`crate::model::PolicyRule`].
    RestoreRule,
    /// [`crate::model::Recipe`].
    Recipe,
    /// [`crate::model::ScheduledDrill`].
    Drill,
    /// [`crate::model::FeatureService`].
    FeatureService,
    /// [`crate::model::Consumer`].
    Consumer,
}

impl DefinitionKind {
    /// The word that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Entity => "entity",
            Self::Source => "source",
            Self::Pool => "pool",
            Self::FeatureView => "feature_view",
            Self::Dag => "dag",
            Self::RestoreRule => "restore_rule",
            Self::Recipe => "recipe",
            Self::Drill => "drill",
            Self::FeatureService => "feature_service",
            Self::Consumer => "consumer",
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
            "pool" => Self::Pool,
            "feature_view" => Self::FeatureView,
            "dag" => Self::Dag,
            "restore_rule" => Self::RestoreRule,
            "recipe" => Self::Recipe,
            "drill" => Self::Drill,
            "feature_service" => Self::FeatureService,
            "consumer" => Self::Consumer,
            _ => return Err(format!("`{text}` is not a kind of definition")),
        })
    }
}
