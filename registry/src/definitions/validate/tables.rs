//! Owners, pools, entities and sources.

use std::collections::HashMap;

use super::{Catalog, Context, owner_ref, parse_name, paths, source_checks, tags};
use crate::definitions::read::{At, Field};
use crate::definitions::rules::Rules;
use crate::definitions::written::{EntityFile, KeyFile, OwnerFile, PoolFile, SourceFile};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::ids::{EntityName, NAME_PATTERN, OwnerName, PoolName, SourceName, is_name};
use crate::model::{Entity, Key, Owner, Pool, Source, SourceLocation};

/// Columns that Tidegate adds to every view's table.
pub(super) const RESERVED_COLUMNS: [&str; 4] = ["interval_start", "interval_end", "run_id", "event_timestamp"];

pub(super) fn owner(file: &At<OwnerFile>, out: &mut Vec<Diagnostic>) -> Option<Owner> {
    for address in [&file.primary, &file.backup] {
        if let Some(at) = address.get().filter(|at| at.trim().is_empty()) {
            out.push(
                Diagnostic::error(ids::MISSING_FIELD, at.origin.clone(), "an address is empty")
                    .with_help("write an e-mail address or a channel"),
            );
        }
    }
    let name = parse_name(&file.name, OwnerName::new, out);
    Some(Owner {
        name: name?,
        primary: file.primary.value()?,
        backup: file.backup.value(),
        description: file.description.value(),
    })
}

pub(super) fn pool(file: &At<PoolFile>, out: &mut Vec<Diagnostic>) -> Option<Pool> {
    let name = parse_name(&file.name, PoolName::new, out);
    if let Some(slots) = file.slots.get().filter(|slots| slots.value == 0) {
        out.push(
            Diagnostic::error(ids::OUT_OF_RANGE, slots.origin.clone(), "`slots: 0` would never let anything run")
                .with_help("write at least 1"),
        );
    }
    Some(Pool { name: name?, slots: file.slots.value()?, description: file.description.value() })
}

pub(super) fn entity(file: &At<EntityFile>, rules: &Rules, out: &mut Vec<Diagnostic>) -> Option<Entity> {
    let name = parse_name(&file.name, EntityName::new, out);
    rules.name("entity", &file.name, out);
    let written = file.keys.get()?;
    if written.is_empty() {
        out.push(
            Diagnostic::error(ids::EMPTY_LIST, written.origin.clone(), "an entity needs at least one key")
                .with_help("write for example `keys: [{name: carrier, type: string}]`"),
        );
        return None;
    }
    let mut seen = HashMap::new();
    let keys: Vec<Key> = written.iter().filter_map(|key| join_key(key, &mut seen, out)).collect();
    Some(Entity { name: name?, keys, description: file.description.value() })
}

fn join_key(file: &At<KeyFile>, seen: &mut HashMap<String, Origin>, out: &mut Vec<Diagnostic>) -> Option<Key> {
    let name = column_name(&file.name, "key", seen, out);
    let kind = file.r#type.get()?;
    if !kind.can_be_key() {
        out.push(
            Diagnostic::error(ids::BAD_KEY_TYPE, kind.origin.clone(), format!("type `{}` cannot be a key", kind.value))
                .with_label("equal values of this type can be spelled in several ways")
                .with_help("use `string`, `boolean`, `integer`, `bigint`, `date` or `timestamp`"),
        );
        return None;
    }
    Some(Key { name: name?, kind: kind.value.clone() })
}

/// A column name that is valid, not reserved and not in `seen`, to which it is added.
pub(super) fn column_name(
    field: &Field<String>,
    kind: &str,
    seen: &mut HashMap<String, Origin>,
    out: &mut Vec<Diagnostic>,
) -> Option<String> {
    let name = field.get()?;
    if !is_name(&name.value) {
        out.push(
            Diagnostic::error(
                ids::BAD_NAME,
                name.origin.clone(),
                format!("`{}` is not a valid column name", name.value),
            )
            .with_label(format!("expected {NAME_PATTERN}")),
        );
        return None;
    }
    if RESERVED_COLUMNS.contains(&name.value.as_str()) {
        out.push(
            Diagnostic::error(
                ids::RESERVED_NAME,
                name.origin.clone(),
                format!("`{}` is a reserved column", name.value),
            )
            .with_label("Tidegate adds this column itself")
            .with_help("choose another name"),
        );
        return None;
    }
    if let Some(first) = seen.get(&name.value) {
        out.push(super::duplicate(&format!("{kind} `{}`", name.value), &name.origin, first));
        return None;
    }
    seen.insert(name.value.clone(), name.origin.clone());
    Some(name.value.clone())
}

pub(super) fn source(
    file: &At<SourceFile>,
    context: &Context<'_>,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<Source> {
    let name = parse_name(&file.name, SourceName::new, out);
    context.rules.name("source", &file.name, out);
    let owner = owner_ref(&file.owner, catalog, out);
    let location = location(file, context, out);
    let checks = source_checks::checks(file, out);
    Some(Source {
        name: name?,
        location: location?,
        event_time: file.event_time.value(),
        description: file.description.value(),
        owner,
        tags: tags(&file.tags),
        checks,
        origin: file.name.origin_or(&file.origin),
    })
}

fn location(file: &At<SourceFile>, context: &Context<'_>, out: &mut Vec<Diagnostic>) -> Option<SourceLocation> {
    type Make = fn(String) -> SourceLocation;
    let written: [(&Field<String>, Make); 3] = [
        (&file.parquet, SourceLocation::Parquet),
        (&file.csv, SourceLocation::Csv),
        (&file.delta, SourceLocation::Delta),
    ];
    let mut given: Vec<_> = written.iter().filter(|(field, _)| !field.is_missing()).collect();
    let origin = file.name.origin_or(&file.origin);
    given.sort_by_key(|(field, _)| field.get().map(|at| (at.origin.line, at.origin.column)));
    match given.as_slice() {
        [] => {
            out.push(
                Diagnostic::error(ids::MISSING_FIELD, origin, "a source has no place")
                    .with_label("`parquet`, `csv` or `delta` is missing")
                    .with_help("add for example `parquet: data/flights.parquet`"),
            );
            None
        }
        [_, (second, _), ..] => {
            out.push(
                Diagnostic::error(ids::EXCLUSIVE_FIELDS, second.origin_or(&origin), "a source has more than one place")
                    .with_label("a second place")
                    .with_help("keep one of `parquet`, `csv` and `delta`; define a source for each table"),
            );
            None
        }
        [(field, make)] => {
            let at = field.get()?;
            paths::source_place(at, context, out).then(|| make(at.value.clone()))
        }
    }
}
