//! Feature views: everything about one that can be said without the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;

use super::{Catalog, Context, ParsedViews, Written, checks, owner_ref, parse_name, paths, tables, tags, unknown};
use crate::definitions::read::{At, Field};
use crate::definitions::scalars::WrittenDuration;
use crate::definitions::sql;
use crate::definitions::written::{FeatureFile, FreshnessFile, OnlineFile, OutputWord, StrategyWord, ViewFile};
use crate::diagnostics::{Diagnostic, Origin, SourceMap, ids};
use crate::ids::{EntityName, PoolName, QueueName, ViewId, ViewName};
use crate::model::{ColumnType, Entity, Feature, FeatureView, Freshness, Online, Output, Project, SqlText, Strategy};

/// Adds every view of `written` to `project`, with its reads still to be resolved from the queries returned.
pub(super) fn views(
    written: &Written,
    context: &Context<'_>,
    catalog: &Catalog,
    project: &mut Project,
    sources: &mut SourceMap,
    out: &mut Vec<Diagnostic>,
) -> ParsedViews {
    let mut parsed = IndexMap::new();
    for file in &written.views {
        add(file, context, catalog, project, &mut parsed, sources, out);
    }
    parsed
}

/// Adds one view, when it is right.
pub(super) fn add(
    file: &At<ViewFile>,
    context: &Context<'_>,
    catalog: &Catalog,
    project: &mut Project,
    parsed: &mut ParsedViews,
    sources: &mut SourceMap,
    out: &mut Vec<Diagnostic>,
) {
    if let Some((view, query)) = view(file, context, catalog, &project.entities, sources, out)
        && !project.views.contains_key(&view.id)
    {
        if let Some(query) = query {
            parsed.insert(view.id.clone(), Arc::new(query));
        }
        project.views.insert(view.id.clone(), view);
    }
}

fn view(
    file: &At<ViewFile>,
    context: &Context<'_>,
    catalog: &Catalog,
    entities: &IndexMap<EntityName, Entity>,
    sources: &mut SourceMap,
    out: &mut Vec<Diagnostic>,
) -> Option<(FeatureView, Option<sql::ParsedSql>)> {
    let origin = file.name.origin_or(&file.origin);
    let name = parse_name(&file.name, ViewName::new, out);
    context.rules.name("feature view", &file.name, out);
    context.rules.tags("feature view", &file.name, &file.tags, &file.origin, out);
    let version = version(&file.version, out);
    let owner = owner_ref(&file.owner, catalog, out);
    not_blank(&file.description, out);
    let entity = entity_ref(&file.entity, catalog, out);
    let keys: Vec<&str> = entity
        .as_ref()
        .and_then(|name| entities.get(name))
        .map(|entity| entity.keys.iter().map(|key| key.name.as_str()).collect())
        .unwrap_or_default();
    let text = query_text(file, &origin, context, sources, out);
    let query = text.as_ref().and_then(|text| sql::parse(text, out));
    let output = output(file, out);
    let (features, columns) = features(file, &keys, context, out);
    let checks = checks::checks(file, &columns, &keys, catalog, out);
    let online = file.online.get().and_then(|online| self::online(online, out));
    let freshness = file.freshness.get().and_then(|freshness| self::freshness(freshness, out));
    if let Some(target) = file.restore_target.get().filter(|target| target.0.is_zero()) {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, target.origin.clone(), "nothing is restored within `0s`")
                .with_help("write for example `restore_target: 2m`, or leave it out"),
        );
    }
    let view = FeatureView {
        id: ViewId::new(name?, version?),
        entity: entity?,
        owner: owner?,
        description: file.description.value()?,
        tags: tags(&file.tags),
        sql: text?,
        reads: Vec::new(),
        checked_against: Vec::new(),
        output: output?,
        serving_delay: file.serving_delay.value().map(Duration::from).unwrap_or_default(),
        features,
        checks,
        online,
        freshness,
        restore_target: file.restore_target.value().map(Duration::from),
        queue: file.queue.get().and_then(|_| parse_name(&file.queue, QueueName::new, out)),
        pool: pool_ref(&file.pool, catalog, out),
        fingerprint: String::new(),
        origin,
    };
    Some((view, query))
}

fn pool_ref(field: &Field<String>, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<PoolName> {
    let name = field.get()?;
    if !catalog.pools.contains_key(&name.value) {
        unknown(ids::UNKNOWN_POOL, "pool", name, catalog.pools.keys().map(String::as_str), "pools", out);
        return None;
    }
    // A bad name is reported where it is defined.
    PoolName::new(name.value.clone()).ok()
}

fn version(field: &Field<u32>, out: &mut Vec<Diagnostic>) -> Option<u32> {
    match field {
        Field::Missing => Some(1),
        Field::Bad => None,
        Field::Is(version) if version.value == 0 => {
            out.push(
                Diagnostic::error(ids::OUT_OF_RANGE, version.origin.clone(), "versions count from 1")
                    .with_help("write `version: 1`"),
            );
            None
        }
        Field::Is(version) => Some(version.value),
    }
}

pub(super) fn not_blank(field: &Field<String>, out: &mut Vec<Diagnostic>) {
    if let Some(text) = field.get().filter(|text| text.trim().is_empty()) {
        out.push(
            Diagnostic::error(ids::MISSING_DESCRIPTION, text.origin.clone(), "the description is empty")
                .with_help("say what it holds, with its unit"),
        );
    }
}

fn entity_ref(field: &Field<String>, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<EntityName> {
    let name = field.get()?;
    if !catalog.entities.contains_key(&name.value) {
        unknown(ids::UNKNOWN_ENTITY, "entity", name, catalog.entities.keys().map(String::as_str), "entities", out);
        return None;
    }
    EntityName::new(name.value.clone()).ok()
}

fn query_text(
    file: &At<ViewFile>,
    origin: &Origin,
    context: &Context<'_>,
    sources: &mut SourceMap,
    out: &mut Vec<Diagnostic>,
) -> Option<SqlText> {
    match (&file.sql, &file.sql_file) {
        (Field::Missing, Field::Missing) => {
            out.push(
                Diagnostic::error(ids::MISSING_FIELD, origin.clone(), "a feature view has no query")
                    .with_label("`sql` or `sql_file` is missing")
                    .with_help("add `sql: |` with the query on the lines below"),
            );
            None
        }
        (Field::Missing, path) => {
            let path = path.get()?;
            if !paths::project_file(path, context, out) {
                return None;
            }
            let text = context.files.read(&path.value, Some(&path.origin), sources, out)?;
            Some(SqlText { text, origin: Origin::new(path.value.as_str(), 1, 1, 1) })
        }
        (sql, Field::Missing) => {
            let sql = sql.get()?;
            Some(SqlText { text: sql.0.clone(), origin: sql.origin.clone() })
        }
        (_, path) => {
            out.push(
                Diagnostic::error(ids::EXCLUSIVE_FIELDS, path.origin_or(origin), "a feature view has two queries")
                    .with_label("`sql` is given too")
                    .with_help("keep `sql` or `sql_file`"),
            );
            None
        }
    }
}

fn output(file: &At<ViewFile>, out: &mut Vec<Diagnostic>) -> Option<Output> {
    let partial = file.output.get().is_some_and(|word| word.value == OutputWord::Partial);
    match (&file.output, &file.ttl) {
        (Field::Bad, _) | (_, Field::Bad) => None,
        (_, Field::Is(ttl)) if partial && ttl.0.is_zero() => {
            out.push(
                Diagnostic::error(ids::OUT_OF_RANGE, ttl.origin.clone(), "`ttl` must be longer than nothing")
                    .with_help("write for example `ttl: 7d`"),
            );
            None
        }
        (_, Field::Is(ttl)) if partial => Some(Output::Partial { ttl: ttl.value.into() }),
        (_, Field::Is(ttl)) => {
            out.push(
                Diagnostic::error(
                    ids::TTL_WITHOUT_PARTIAL,
                    ttl.origin.clone(),
                    "`ttl` has no meaning for `output: full`",
                )
                .with_label("rows of a `full` view count until the next interval")
                .with_help("remove `ttl:`, or add `output: partial`"),
            );
            None
        }
        (Field::Is(word), Field::Missing) if partial => {
            out.push(
                Diagnostic::error(ids::TTL_MISSING, word.origin.clone(), "a `partial` view needs a `ttl`")
                    .with_label("rows would count for ever")
                    .with_help("add for example `ttl: 7d`"),
            );
            None
        }
        (_, Field::Missing) => Some(Output::Full),
    }
}

/// The features, and every column name with its place and declared type (`None`: a bad one).
type Columns = HashMap<String, Option<ColumnType>>;

fn features(
    file: &At<ViewFile>,
    keys: &[&str],
    context: &Context<'_>,
    out: &mut Vec<Diagnostic>,
) -> (Vec<Feature>, Columns) {
    let mut columns = Columns::new();
    let Some(written) = file.features.get() else { return (Vec::new(), columns) };
    if written.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, written.origin.clone(), "a feature view needs at least one feature")
                .with_help("write for example `features: [{name: flights_7d, type: bigint, description: flights}]`"),
        );
    }
    let mut seen = HashMap::new();
    let mut features = Vec::with_capacity(written.len());
    for feature in written.iter() {
        if let Some(name) = feature.name.get() {
            columns.insert(name.value.clone(), feature.r#type.value());
            if keys.contains(&name.value.as_str()) {
                out.push(
                    Diagnostic::error(
                        ids::KEY_AS_FEATURE,
                        name.origin.clone(),
                        format!("`{}` is a key of the entity and cannot be a feature too", name.value),
                    )
                    .with_label("already given by `entity`")
                    .with_help("remove it from `features:`; the query must still return it"),
                );
            }
        }
        context.rules.name("feature", &feature.name, out);
        context.rules.tags("feature", &feature.name, &feature.tags, &feature.origin, out);
        features.extend(self::feature(feature, &mut seen, out));
    }
    (features, columns)
}

fn feature(file: &At<FeatureFile>, seen: &mut HashMap<String, Origin>, out: &mut Vec<Diagnostic>) -> Option<Feature> {
    let name = tables::column_name(&file.name, "feature", seen, out);
    not_blank(&file.description, out);
    let kind = file.r#type.value()?;
    let default = match file.default.get() {
        None => None,
        Some(default) => match typed(&default.value, &kind) {
            Some(value) => Some(value),
            None => {
                out.push(
                    Diagnostic::error(
                        ids::BAD_DEFAULT,
                        default.origin.clone(),
                        format!("the default is not a value of type `{kind}`"),
                    )
                    .with_label(format!("must be a `{kind}`"))
                    .with_help("leave `default:` out to give readers a null"),
                );
                return None;
            }
        },
    };
    Some(Feature {
        name: name?,
        kind,
        description: file.description.value()?,
        default,
        tags: tags(&file.tags),
        origin: file.name.origin_or(&file.origin),
    })
}

/// `value` as the JSON form of a value of `kind`; `None` when it is none.
pub(super) fn typed(value: &serde_json::Value, kind: &ColumnType) -> Option<serde_json::Value> {
    use serde_json::Value;
    Some(match kind {
        ColumnType::String => value.as_str()?.into(),
        ColumnType::Boolean => value.as_bool()?.into(),
        ColumnType::Integer => i32::try_from(value.as_i64()?).ok()?.into(),
        ColumnType::Bigint => value.as_i64()?.into(),
        ColumnType::Float => value.as_f64().filter(|value| value.abs() <= f64::from(f32::MAX))?.into(),
        ColumnType::Double => value.as_f64()?.into(),
        ColumnType::Date => {
            let text = value.as_str()?;
            chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| text.len() == 10)?;
            text.into()
        }
        ColumnType::Timestamp => {
            let at = chrono::DateTime::parse_from_rfc3339(value.as_str()?).ok()?;
            crate::time::format_instant(at.with_timezone(&chrono::Utc)).into()
        }
        ColumnType::Array(item) => {
            Value::Array(value.as_array()?.iter().map(|value| typed(value, item)).collect::<Option<_>>()?)
        }
    })
}

fn online(file: &At<OnlineFile>, out: &mut Vec<Diagnostic>) -> Option<Online> {
    if let Some(share) = file.max_deletes.get().filter(|share| !(0.0..=1.0).contains(&share.value)) {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, share.origin.clone(), "`max_deletes` is a share between 0 and 1")
                .with_help("write `0.1` for a tenth of the entities"),
        );
        return None;
    }
    if let Some(keep) = file.keep.get().filter(|keep| keep.value > 100) {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, keep.origin.clone(), "`keep` is at most 100")
                .with_label("each generation is a whole copy")
                .with_help("older snapshots can still be restored from the lake"),
        );
        return None;
    }
    let strategy = match file.strategy.get().map(|strategy| strategy.value) {
        Some(StrategyWord::Upsert) => Strategy::Upsert,
        Some(StrategyWord::Swap) | None => Strategy::Swap,
    };
    Some(Online { strategy, max_deletes: file.max_deletes.value(), keep: file.keep.value().unwrap_or(1) })
}

fn freshness(file: &At<FreshnessFile>, out: &mut Vec<Diagnostic>) -> Option<Freshness> {
    let max_age = file.max_age.get()?;
    let bad = |at: &At<WrittenDuration>, title: &str, help: &str| {
        Diagnostic::error(ids::BAD_FRESHNESS, at.origin.clone(), title).with_help(help)
    };
    if max_age.0.is_zero() {
        out.push(bad(max_age, "`max_age` must be longer than nothing", "write for example `max_age: 30h`"));
        return None;
    }
    if let Some(warn_age) = file.warn_age.get().filter(|warn_age| warn_age.value >= max_age.value) {
        out.push(
            bad(warn_age, "`warn_age` is not below `max_age`", "a warning must come before the breach")
                .with_label("would warn only after the breach")
                .with_related(max_age.origin.clone(), "breached above this age"),
        );
        return None;
    }
    Some(Freshness { max_age: max_age.value.into(), warn_age: file.warn_age.value().map(Duration::from) })
}
