//! Checks of a source: their bounds, columns and names. Whether the columns exist is seen when the source is read.

use std::collections::{BTreeSet, HashMap};

use super::checks::{bad, bounds, free_name};
use super::duplicate;
use crate::definitions::read::{At, Field};
use crate::definitions::written::{
    FreshnessWord, SchemaCheck, SourceCheckFile, SourceFile, SourceFreshnessCheck, VolumeCheck,
};
use crate::diagnostics::{Diagnostic, Origin};
use crate::model::{OnDifference, Severity, SourceCheck, SourceRule, Volume};

/// The checks of `file`, each with a name of its own.
pub(super) fn checks(file: &At<SourceFile>, out: &mut Vec<Diagnostic>) -> Vec<SourceCheck> {
    let Some(written) = file.checks.get() else { return Vec::new() };
    let mut named: HashMap<String, Origin> = HashMap::new();
    let mut checks = Vec::with_capacity(written.len());
    for check in written.iter() {
        let (name, severity, timeout) = match &check.value {
            SourceCheckFile::Freshness(check) => (&check.name, check.severity.value(), &check.timeout),
            SourceCheckFile::Volume(check) => (&check.name, check.severity.value(), &check.timeout),
            SourceCheckFile::Schema(check) => (&check.name, None, &check.timeout),
        };
        if let Some(name) = name.get() {
            if let Some(first) = named.get(&name.value) {
                out.push(duplicate(&format!("check `{}`", name.value), &name.origin, first));
            }
            named.entry(name.value.clone()).or_insert_with(|| name.origin.clone());
        }
        let timeout = super::checks::timeout(timeout, out);
        let rule = match &check.value {
            SourceCheckFile::Freshness(check) => freshness(check, &file.event_time, out),
            SourceCheckFile::Volume(written) => volume(written, &check.origin, out),
            SourceCheckFile::Schema(written) => schema(written, &check.origin, out),
        };
        let Some(rule) = rule else { continue };
        let name = name.value().unwrap_or_default();
        let severity = severity.unwrap_or(Severity::Block);
        checks.push(SourceCheck { name, rule, severity, timeout, origin: check.origin.clone() });
    }
    // The author's names go first, so that a made one never takes one of them.
    let mut taken: BTreeSet<String> = named.into_keys().collect();
    for check in checks.iter_mut().filter(|check| check.name.is_empty()) {
        let made = match &check.rule {
            SourceRule::Freshness { .. } => "freshness".to_owned(),
            SourceRule::Volume { of, .. } => format!("volume({of})"),
            SourceRule::Schema { .. } => "schema".to_owned(),
        };
        check.name = free_name(&made, &taken);
        taken.insert(check.name.clone());
    }
    checks
}

fn freshness(file: &SourceFreshnessCheck, event_time: &Field<String>, out: &mut Vec<Diagnostic>) -> Option<SourceRule> {
    let max_age = file.max_age.get()?;
    if max_age.0.is_zero() {
        out.push(bad(&max_age.origin, "`max_age` must be longer than nothing", "write for example `max_age: 2d`"));
        return None;
    }
    let column = file.column.value().or_else(|| event_time.value());
    let column = match file.of.get() {
        None => column,
        Some(of) if of.value == FreshnessWord::Rows => {
            if column.is_none() {
                let help = "add `column:`, or `event_time:` to the source";
                out.push(bad(&of.origin, "which column says when a row happened is not known", help));
                return None;
            }
            column
        }
        Some(_) => {
            if let Some(column) = file.column.get() {
                out.push(bad(&column.origin, "the age of files is not that of a column", "leave `column:` out"));
                return None;
            }
            None
        }
    };
    Some(SourceRule::Freshness { column, max_age: max_age.value.into() })
}

fn volume(file: &VolumeCheck, origin: &Origin, out: &mut Vec<Diagnostic>) -> Option<SourceRule> {
    if file.min.is_missing() && file.max.is_missing() && file.max_change.is_missing() {
        out.push(bad(origin, "`volume` has no bounds", "add `min:`, `max:` or `max_change:`"));
        return None;
    }
    if let Some(change) = file.max_change.get().filter(|change| change.value < 0.0) {
        out.push(bad(&change.origin, "`max_change` is below 0", "write `0.5` for half of it"));
        return None;
    }
    let (min, max) = bounds(&file.min, &file.max, "no size can pass", out)?;
    let of = file.of.value().unwrap_or(Volume::Rows);
    Some(SourceRule::Volume { of, min, max, max_change: file.max_change.value() })
}

fn schema(file: &SchemaCheck, origin: &Origin, out: &mut Vec<Diagnostic>) -> Option<SourceRule> {
    let added = file.added.value().unwrap_or(OnDifference::Ignore);
    let removed = file.removed.value().unwrap_or(OnDifference::Block);
    let changed = file.changed.value().unwrap_or(OnDifference::Block);
    if [added, removed, changed] == [OnDifference::Ignore; 3] {
        out.push(bad(
            origin,
            "`schema` ignores every difference",
            "let one of them `warn` or `block`, or leave it out",
        ));
        return None;
    }
    Some(SourceRule::Schema { added, removed, changed })
}
