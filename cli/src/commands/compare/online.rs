//! `tidegate compare VIEW --with online`: what readers are given beside what the lake has.

use anyhow::Context as _;
use serde_json::{Map, Value};
use tidegate_registry::model::FeatureView;
use tidegate_worker::compare::{Comparison, FeatureAgreement, Span, ValueExample};
use tidegate_worker::serving::{Audit, AuditOptions, FeatureAudit};

use super::Arguments;
use crate::commands::online;
use crate::context::{Context, Registry};
use crate::error::UserError;

/// Compares in every store that the project keeps alike, all of them together.
pub(super) async fn compare(
    view: &FeatureView,
    arguments: &Arguments,
    registry: &Registry,
    context: &Context,
) -> anyhow::Result<(String, Comparison)> {
    let said = [
        ("--at", arguments.at.is_some()),
        ("--from", arguments.from.is_some()),
        ("--to", arguments.to.is_some()),
        ("--event-timestamp", arguments.event_timestamp.is_some()),
        ("--columns", !arguments.columns.is_empty()),
        ("--tolerance", arguments.tolerance != Default::default()),
    ];
    if let Some((option, _)) = said.iter().find(|(_, is_said)| *is_said) {
        return Err(UserError::new(format!("`{option}` says nothing of the online store"))
            .hint("it is compared as it is now, exactly, under the view's own names")
            .into());
    }
    if view.online.is_none() {
        return Err(online::not_online(view).into());
    }
    if let Some(unknown) = arguments.features.iter().find(|name| view.features.iter().all(|known| known.name != **name))
    {
        return Err(UserError::new(format!("`{}` has no feature `{unknown}`", view.id))
            .hint(format!("`tidegate views show {}` lists them", view.id))
            .into());
    }
    let options = AuditOptions { sample: None, repair: false };
    let (mut all, mut stores) = (None, Vec::new());
    for serving in online::serving(context, registry).await? {
        let audit = serving.audit(&view.id, options).await.with_context(|| format!("comparing `{}`", view.id))?;
        stores.push(serving.online.to_string());
        serving.online.close().await;
        all = Some(match all {
            None => audit,
            Some(others) => together(others, audit),
        });
    }
    let audit = all.context("there is no online store")?;
    if audit.snapshot.is_none() {
        return Err(UserError::new(format!("nothing of `{}` is published online", view.id))
            .hint("compute it first: `tidegate backfill DAG --from T --to T`")
            .into());
    }
    let wanted = |feature: &&FeatureAudit| arguments.features.is_empty() || arguments.features.contains(&feature.name);
    let example = |(key, lake, online): &(String, Option<String>, Option<String>)| {
        let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::from);
        let entity = Map::from_iter([("entity_key".to_owned(), Value::from(key.clone()))]);
        ValueExample { entity, ours: text(lake), theirs: text(online) }
    };
    let feature = |found: &FeatureAudit| FeatureAgreement {
        name: found.name.clone(),
        theirs: found.name.clone(),
        equal: found.equal,
        different: found.different,
        null_ours: found.null_lake,
        null_theirs: found.null_online,
        distance: None,
        examples: found.examples.iter().take(arguments.limit).map(example).collect(),
    };
    let found = Comparison {
        span: Span::AsOf(None),
        both: audit.compared - audit.missing,
        only_ours: audit.missing,
        only_theirs: audit.extra,
        examples_only_ours: Vec::new(),
        examples_only_theirs: Vec::new(),
        features: audit.features.iter().filter(wanted).map(feature).collect(),
        features_only_ours: Vec::new(),
        features_only_theirs: Vec::new(),
        rows_equal: audit.compared - audit.missing - audit.different,
    };
    Ok((format!("online ({})", stores.join(", ")), found))
}

/// What two stores have, as if they were one.
fn together(mut one: Audit, other: Audit) -> Audit {
    one.entities += other.entities;
    one.compared += other.compared;
    one.missing += other.missing;
    one.different += other.different;
    one.extra += other.extra;
    for (mine, more) in one.features.iter_mut().zip(other.features) {
        mine.equal += more.equal;
        mine.different += more.different;
        mine.null_lake += more.null_lake;
        mine.null_online += more.null_online;
        mine.examples.extend(more.examples);
    }
    one
}
