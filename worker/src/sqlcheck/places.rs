//! Where in an author's file the parts of a query stand.

use datafusion::logical_expr::sqlparser::ast::{
    Expr, Query, Select, SelectItem, SetExpr, Spanned, Statement as SqlStatement,
};
use datafusion::logical_expr::sqlparser::dialect::PostgreSqlDialect;
use datafusion::logical_expr::sqlparser::parser::Parser;
use datafusion::logical_expr::sqlparser::tokenizer::Span;
use tidegate_registry::diagnostics::Origin;
use tidegate_registry::model::SqlText;

/// Longer expressions are not repeated in a remedy.
const EXPRESSION_CHARACTERS_MAX: usize = 60;

/// The columns of a query's outermost SELECT (of a UNION: of its first).
#[derive(Debug)]
pub(super) struct Places<'a> {
    sql: &'a SqlText,
    items: Vec<SelectItem>,
}

impl<'a> Places<'a> {
    pub(super) fn of(sql: &'a SqlText) -> Self {
        let parsed = Parser::parse_sql(&PostgreSqlDialect {}, &sql.text).unwrap_or_default();
        let items = match parsed.into_iter().next() {
            Some(SqlStatement::Query(query)) => outermost(*query).map(|select| select.projection).unwrap_or_default(),
            _ => Vec::new(),
        };
        Self { sql, items }
    }

    /// The item that computes the column `name`, or the whole list.
    pub(super) fn of_column(&self, name: &str) -> Origin {
        self.item(name).map_or_else(|| self.of_columns(), |item| span_origin(self.sql, item.span()))
    }

    /// The first item of the list, which stands for the list; the beginning of the query when there is none.
    pub(super) fn of_columns(&self) -> Origin {
        self.items.first().map_or_else(|| self.sql.origin.clone(), |item| span_origin(self.sql, item.span()))
    }

    /// The expression behind the column `name`, as SQL; `…` when it is long or not known.
    pub(super) fn expression(&self, name: &str) -> String {
        let text = match self.item(name) {
            Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) => expr.to_string(),
            _ => return name.to_owned(),
        };
        if text.chars().count() <= EXPRESSION_CHARACTERS_MAX { text } else { "…".to_owned() }
    }

    fn item(&self, name: &str) -> Option<&SelectItem> {
        // The last one: `SELECT *, x AS y` names y explicitly.
        self.items.iter().rev().find(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } => folded(&alias.value, alias.quote_style) == name,
            SelectItem::UnnamedExpr(Expr::Identifier(ident)) => folded(&ident.value, ident.quote_style) == name,
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => {
                parts.last().is_some_and(|ident| folded(&ident.value, ident.quote_style) == name)
            }
            SelectItem::UnnamedExpr(expr) => expr.to_string().eq_ignore_ascii_case(name),
            _ => false,
        })
    }
}

fn outermost(query: Query) -> Option<Select> {
    let mut body = *query.body;
    loop {
        body = match body {
            SetExpr::Select(select) => return Some(*select),
            SetExpr::Query(query) => *query.body,
            SetExpr::SetOperation { left, .. } => *left,
            _ => return None,
        };
    }
}

fn folded(name: &str, quote: Option<char>) -> String {
    if quote.is_some() { name.to_owned() } else { name.to_lowercase() }
}

/// A span of the parser as a place in the author's file; the whole query when the parser does not know.
pub(super) fn span_origin(sql: &SqlText, span: Span) -> Origin {
    place(sql, (span.start.line, span.start.column), (span.end.line, span.end.column))
}

/// Lines and columns from 1, the end exclusive. A place of several lines is cut at the end of its first.
pub(super) fn place(sql: &SqlText, start: (u64, u64), end: (u64, u64)) -> Origin {
    if start.0 == 0 || start.1 == 0 {
        return sql.origin.clone();
    }
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let line = sql.text.lines().nth(number(start.0 - 1) as usize).unwrap_or_default();
    let line_end = line.chars().count() as u64 + 1;
    let end = if end.0 == start.0 { end.1.min(line_end) } else { line_end };
    sql.origin.inside(number(start.0), number(start.1), number(end.saturating_sub(start.1).max(1)))
}

/// The name of `known` that was most likely meant by `wanted`.
pub(crate) fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wanted.chars().count() / 3).max(1) + usize::from(wanted.len() > 4);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(wanted, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
