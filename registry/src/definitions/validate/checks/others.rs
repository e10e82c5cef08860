//! Checks that compare a view's rows with another table. Whether its columns exist is seen when its schema is known.

use super::{Known, bad, columns, sql_text};
use crate::definitions::read::{At, Field};
use crate::definitions::validate::Catalog;
use crate::definitions::validate::graph::{suggest_table, view_named};
use crate::definitions::written::{OtherTotalFile, ReconciliationCheck, ReferentialCheck, TotalWord, WithinFile};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::ids::SourceName;
use crate::model::{ColumnType, Rule, Table, Total, Within};

/// What rounding explains: sums of the same numbers differ by less when they are added in another order.
const ROUNDING: Within = Within::Ratio(1e-9);

pub(super) fn referential(
    file: &ReferentialCheck,
    known: Option<Known<'_>>,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<Rule> {
    let own = columns(&file.columns, known, out);
    let reference = file.references.get()?;
    let table = table(&reference.source, &reference.view, &reference.origin, catalog, out);
    let own = own?;
    let references = match reference.columns.get() {
        None => own.clone(),
        Some(written) if written.len() == own.len() => written.iter().map(|column| column.value.clone()).collect(),
        Some(written) => {
            let title = format!("{} columns cannot refer to {}", own.len(), written.len());
            out.push(bad(
                &written.origin,
                title,
                "name as many as under the check's own `columns:`, in the same order",
            ));
            return None;
        }
    };
    Some(Rule::Referential { columns: own, table: table?, references })
}

pub(super) fn reconciliation(
    file: &ReconciliationCheck,
    origin: &Origin,
    known: Option<Known<'_>>,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<Rule> {
    let equals = file.equals.get()?;
    let table = table(&equals.source, &equals.view, &equals.origin, catalog, out);
    let total = own_total(file, origin, known, out);
    let within = within(&file.within, out);
    let other = other_total(equals, file, out);
    let other_filter = sql_text(&equals.r#where);
    Some(Rule::Reconciliation { total: total?, table: table?, other: other?, other_filter, within: within? })
}

fn own_total(
    file: &ReconciliationCheck,
    origin: &Origin,
    known: Option<Known<'_>>,
    out: &mut Vec<Diagnostic>,
) -> Option<Total> {
    let of = file.of.get()?.value;
    if let (Some(column), Some(known)) = (file.column.get(), known) {
        if !known.check(column, out) {
            return None;
        }
        let fits = |kind: &ColumnType| of == TotalWord::Count || super::metrics::is_number(kind);
        if let Some(kind) = known.kind(&column.value).filter(|kind| !fits(kind)) {
            out.push(bad(&column.origin, format!("a column of type `{kind}` has no sum"), "sums are of numbers"));
            return None;
        }
    }
    total(of, &file.column, origin, out)
}

fn other_total(equals: &At<OtherTotalFile>, file: &ReconciliationCheck, out: &mut Vec<Diagnostic>) -> Option<Total> {
    match equals.of.get() {
        None if equals.column.is_missing() => total(file.of.value()?, &file.column, &equals.origin, &mut Vec::new()),
        None => total(file.of.value()?, &equals.column, &equals.origin, out),
        Some(of) => total(of.value, &equals.column, &equals.origin, out),
    }
}

fn total(of: TotalWord, column: &Field<String>, origin: &Origin, out: &mut Vec<Diagnostic>) -> Option<Total> {
    match (of, column) {
        (TotalWord::Count, Field::Missing) => Some(Total::Count(None)),
        (TotalWord::Sum, Field::Missing) => {
            out.push(bad(origin, "which column is summed is not said", "add `column:`"));
            None
        }
        (TotalWord::Count, column) => Some(Total::Count(Some(column.value()?))),
        (TotalWord::Sum, column) => Some(Total::Sum(column.value()?)),
    }
}

fn within(written: &Field<WithinFile>, out: &mut Vec<Diagnostic>) -> Option<Within> {
    let within = match written {
        Field::Missing => return Some(ROUNDING),
        Field::Bad => return None,
        Field::Is(written) => written,
    };
    let (WithinFile::Value(number) | WithinFile::Ratio(number)) = within.value;
    if number < 0.0 {
        out.push(bad(&within.origin, "the distance is below 0", "write for example `{ratio: 0.01}`"));
        return None;
    }
    Some(match within.value {
        WithinFile::Value(value) => Within::Value(value),
        WithinFile::Ratio(ratio) => Within::Ratio(ratio),
    })
}

/// The table that one of `source` and `view` names.
fn table(
    source: &Field<String>,
    view: &Field<String>,
    origin: &Origin,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) -> Option<Table> {
    let (name, found) = match (source, view) {
        (Field::Is(name), Field::Missing) => {
            let known = catalog.sources.contains_key(&name.value);
            (name, known.then(|| SourceName::new(name.value.clone()).ok().map(Table::Source)))
        }
        (Field::Missing, Field::Is(name)) => (name, view_named(&name.value, catalog).map(|id| Some(Table::State(id)))),
        (Field::Missing, Field::Missing) => {
            out.push(bad(origin, "the other table is not named", "add `source:` or `view:`"));
            return None;
        }
        (Field::Is(_), Field::Is(second)) => {
            let title = "both a source and a view are named";
            out.push(bad(&second.origin, title, "keep one of `source:` and `view:`"));
            return None;
        }
        _ => return None,
    };
    // A bad name is reported where it is defined.
    found.unwrap_or_else(|| {
        let what = if source.is_missing() { "feature view" } else { "source" };
        out.push(
            Diagnostic::error(ids::UNKNOWN_TABLE, name.origin.clone(), format!("there is no {what} `{}`", name.value))
                .with_label(format!("no {what} with this name"))
                .with_help(suggest_table(&name.value, catalog)),
        );
        None
    })
}
