//! `tidegate online get`: what the online store answers.

use anyhow::Context as _;
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value;
use tidegate_registry::definitions::Settings;
use tidegate_registry::ids::SnapshotId;
use tidegate_registry::model::{ColumnType, FeatureView, Key};
use tidegate_registry::switches::Serve;
use tidegate_registry::time::format_instant;
use tidegate_worker::entity_key;
use tidegate_worker::online::{Given, Served, serve};

use super::{no_store, not_online};
use crate::commands::preview::plain;
use crate::context::{Context, Registry};
use crate::engine;
use crate::error::{Exit, UserError, did_you_mean};
use crate::progress::note;
use crate::select;

/// Runs the command.
///
/// # Errors
/// When the view is not published online, a key is missing or unknown, or the store cannot be read.
pub(super) async fn run(view: &str, keys: &[String], context: &Context) -> anyhow::Result<Exit> {
    let settings = context.settings()?;
    let registry = context.registry().await?;
    let answer = get(view, keys, &settings, &registry).await?;
    if answer.snapshot.is_none() {
        note(format!("nothing of `{}` is in the online store: the next run puts it there", answer.view));
    }
    context.output.one(&answer, &answer.lines())?;
    Ok(Exit::Done)
}

/// What a reader is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    view: String,
    entity: IndexMap<String, Value>,
    /// Whether the entity is there; its features are defaults otherwise.
    pub found: bool,
    /// When its features became true.
    pub event_timestamp: Option<String>,
    /// The features, in the order of their definition.
    pub features: IndexMap<String, Value>,
    snapshot: Option<String>,
    /// Features that are switched off for this entity, and what is given instead; absent when none is.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub switched: IndexMap<String, Serve>,
}

impl Answer {
    /// The answer for people.
    pub fn lines(&self) -> Vec<(&str, String)> {
        let joined = |values: &IndexMap<String, Value>, sign| {
            values.iter().map(|(name, value)| format!("{name}{sign}{}", plain(value))).collect::<Vec<_>>()
        };
        let mut lines = vec![
            ("view", self.view.clone()),
            ("entity", joined(&self.entity, "=").join(", ")),
            ("found", if self.found { "yes".to_owned() } else { "no, so these are defaults".to_owned() }),
            ("event timestamp", self.event_timestamp.clone().unwrap_or_default()),
            ("features", joined(&self.features, " = ").join("\n")),
            ("snapshot", self.snapshot.clone().unwrap_or_default()),
        ];
        if !self.switched.is_empty() {
            let switched = self.switched.iter().map(|(name, serve)| format!("{name}: {serve}"));
            lines.push(("switched off", switched.collect::<Vec<_>>().join("\n")));
        }
        lines
    }
}

/// Reads one entity's features.
///
/// # Errors
/// As [`super::run`].
pub async fn get(view: &str, keys: &[String], settings: &Settings, registry: &Registry) -> anyhow::Result<Answer> {
    let view = select::view(&registry.project, view)?;
    let store = engine::online(settings).await?.ok_or_else(no_store)?;
    if view.online.is_none() {
        return Err(not_online(view).into());
    }
    let entity = entity(registry.project.keys_of(view), &pairs(keys)?)?;
    let served = serve(&*store, view, &key_of(&entity), registry.clock.now()).await;
    let served = served.context("reading features")?;
    let features = features(view, &served)?;
    store.close().await;
    Ok(Answer {
        view: view.id.to_string(),
        entity,
        found: served.row.is_some(),
        event_timestamp: served.row.map(|row| format_instant(row.event_timestamp)),
        features,
        snapshot: served.live.map(|live| snapshot_of(&live.tag)),
        switched: served.switched,
    })
}

/// The snapshot's id, which ends the tag of what is live.
pub fn snapshot_of(tag: &str) -> String {
    let id = tag.rsplit_once('@').map(|(_, id)| id).filter(|id| id.parse::<SnapshotId>().is_ok());
    id.unwrap_or(tag).to_owned()
}

/// Keys as they stand on the command line.
fn pairs(given: &[String]) -> anyhow::Result<IndexMap<&str, &str>> {
    let mut values = IndexMap::new();
    for pair in given {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(UserError::new(format!("`{pair}` is not of the form KEY=VALUE"))
                .hint("write each key with its value, as in `carrier=UA`")
                .into());
        };
        if values.insert(name, value).is_some() {
            return Err(UserError::new(format!("`{name}` is given twice")).into());
        }
    }
    Ok(values)
}

/// The key under which the online store has an entity.
pub fn key_of(entity: &IndexMap<String, Value>) -> String {
    let texts: Vec<String> = entity.values().map(plain).collect();
    entity_key::join(&texts)
}

/// The entity's keys in declared order, each with a value of its type.
///
/// # Errors
/// When a key is missing, unknown, or no value of its type.
pub fn entity(keys: &[Key], values: &IndexMap<&str, &str>) -> anyhow::Result<IndexMap<String, Value>> {
    let wanted = || keys.iter().map(|key| format!("{}=…", key.name)).collect::<Vec<_>>().join(" ");
    for name in values.keys() {
        if !keys.iter().any(|key| key.name == *name) {
            let guess = did_you_mean(name, keys.iter().map(|key| key.name.as_str()));
            return Err(UserError::new(format!("the entity has no key `{name}`"))
                .hint(guess.unwrap_or_else(|| format!("write `{}`", wanted())))
                .into());
        }
    }
    keys.iter()
        .map(|key| match values.get(key.name.as_str()) {
            Some(value) => Ok((key.name.clone(), typed(key, value)?)),
            None => Err(UserError::new(format!("the key `{}` is missing", key.name))
                .hint(format!("write `{}`", wanted()))
                .into()),
        })
        .collect()
}

/// `text` as a value of the key's type, in its one canonical spelling.
fn typed(key: &Key, text: &str) -> anyhow::Result<Value> {
    let value = match key.kind {
        ColumnType::Boolean => text.parse::<bool>().ok().map(Value::from),
        ColumnType::Integer => text.parse::<i32>().ok().map(Value::from),
        ColumnType::Bigint => text.parse::<i64>().ok().map(Value::from),
        ColumnType::Date => text.parse::<chrono::NaiveDate>().ok().map(|day| Value::from(day.to_string())),
        ColumnType::Timestamp => {
            chrono::DateTime::parse_from_rfc3339(text).ok().map(|at| Value::from(format_instant(at.to_utc())))
        }
        _ => Some(Value::from(text)),
    };
    value.ok_or_else(|| {
        UserError::new(format!("`{text}` is not a {}, the type of the key `{}`", key.kind, key.name)).into()
    })
}

/// Every feature of the view as a value of its type.
fn features(view: &FeatureView, served: &Served) -> anyhow::Result<IndexMap<String, Value>> {
    view.features
        .iter()
        .map(|feature| {
            let value = match served.features.get(&feature.name) {
                Some(Given::Stored(text)) => value_of(&feature.kind, text)
                    .with_context(|| format!("`{}` of `{}` holds `{text}`", feature.name, view.id))?,
                Some(Given::Default) => feature.default.clone().unwrap_or(Value::Null),
                Some(Given::Null) | None => Value::Null,
            };
            Ok((feature.name.clone(), value))
        })
        .collect()
}

/// Canonical text as JSON; floats that JSON has no number for stay text.
fn value_of(kind: &ColumnType, text: &str) -> anyhow::Result<Value> {
    Ok(match kind {
        ColumnType::String | ColumnType::Date | ColumnType::Timestamp => Value::from(text),
        ColumnType::Boolean => Value::from(text.parse::<bool>()?),
        ColumnType::Integer | ColumnType::Bigint => Value::from(text.parse::<i64>()?),
        ColumnType::Float | ColumnType::Double => {
            let number = text.parse::<f64>()?;
            if number.is_finite() { Value::from(number) } else { Value::from(text) }
        }
        ColumnType::Array(_) => serde_json::from_str(text)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<Key> {
        let key = |name: &str, kind| Key { name: name.to_owned(), kind };
        vec![key("origin", ColumnType::String), key("number", ColumnType::Bigint)]
    }

    fn given(pairs: &[&str]) -> anyhow::Result<IndexMap<String, Value>> {
        let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        entity(&keys(), &super::pairs(&pairs)?)
    }

    #[test]
    fn keys_may_come_in_any_order_and_are_typed() {
        let entity = given(&["number=007", "origin=JF=K"]).unwrap();
        assert_eq!(serde_json::to_string(&entity).unwrap(), r#"{"origin":"JF=K","number":7}"#);
        for (pairs, message) in [
            (vec!["origin=JFK"], "the key `number` is missing"),
            (vec!["origin=JFK", "number=x"], "`x` is not a bigint, the type of the key `number`"),
            (vec!["orgin=JFK"], "the entity has no key `orgin`"),
            (vec!["JFK"], "`JFK` is not of the form KEY=VALUE"),
            (vec!["origin=A", "origin=B"], "`origin` is given twice"),
        ] {
            assert_eq!(given(&pairs).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn stored_text_becomes_values_of_the_declared_type() {
        let list = ColumnType::Array(Box::new(ColumnType::Double));
        for (kind, text, json) in [
            (ColumnType::Bigint, "9007199254740993", "9007199254740993"),
            (ColumnType::Double, "1.5", "1.5"),
            (ColumnType::Double, "NaN", "\"NaN\""),
            (ColumnType::Boolean, "true", "true"),
            (ColumnType::String, "7", "\"7\""),
            (list, "[1.5,null]", "[1.5,null]"),
        ] {
            assert_eq!(value_of(&kind, text).unwrap().to_string(), json);
        }
        assert!(value_of(&ColumnType::Bigint, "x").is_err());
    }
}
