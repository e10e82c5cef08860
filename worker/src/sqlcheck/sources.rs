//! Checks of sources: whether the columns that they name are there, and are times.

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use tidegate_registry::diagnostics::{Diagnostic, Origin, ids};
use tidegate_registry::model::{Project, Source, SourceRule, Volume};

use super::SourceSchemas;
use super::places::nearest;
use crate::types::describe_one;

/// What is wrong with the checks of sources that can be read.
pub(super) fn check_sources(project: &Project, schemas: &SourceSchemas) -> Vec<Diagnostic> {
    let readable =
        schemas.iter().filter_map(|(name, schema)| Some((project.sources.get(name)?, schema.as_ref().ok()?)));
    readable.flat_map(|(source, schema)| check_source(source, schema)).collect()
}

fn check_source(source: &Source, schema: &SchemaRef) -> Vec<Diagnostic> {
    let times = source.checks.iter().filter_map(|check| match &check.rule {
        SourceRule::Freshness { column, .. } => Some((column.as_deref()?, &check.origin)),
        SourceRule::Volume { of: Volume::Rows, .. } => Some((source.event_time.as_deref()?, &check.origin)),
        SourceRule::Volume { .. } | SourceRule::Schema { .. } => None,
    });
    let what = format!("the source `{}`", source.name);
    times
        .filter_map(|(name, origin)| match field(schema, name, &what, origin) {
            Ok(kind) if is_time(kind) => None,
            Ok(kind) => Some(
                Diagnostic::error(
                    ids::BAD_CHECK,
                    origin.clone(),
                    format!("the column `{name}` of {what} is {}, not a time", describe_one(kind)),
                )
                .with_help(
                    "name a column with times: `column:` of a `freshness` check, or `event_time:` of the source",
                ),
            ),
            Err(unknown) => Some(*unknown),
        })
        .collect()
}

/// The type of a column, or that there is none.
pub(super) fn field<'a>(
    schema: &'a SchemaRef,
    name: &str,
    what: &str,
    origin: &Origin,
) -> Result<&'a DataType, Box<Diagnostic>> {
    if let Ok(field) = schema.field_with_name(name) {
        return Ok(field.data_type());
    }
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let help = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it has the columns `{}`", names.join("`, `")),
    };
    let title = format!("the check names `{name}`, which is not a column of {what}");
    let unknown = Diagnostic::error(ids::UNKNOWN_CHECK_COLUMN, origin.clone(), title);
    Err(Box::new(unknown.with_label(format!("no column `{name}`")).with_help(help)))
}

fn is_time(kind: &DataType) -> bool {
    matches!(kind, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64)
}
