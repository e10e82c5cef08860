//! What can be known of a query without an engine: that it is one query, which tables it names and where, and its tokens.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use sqlparser::ast::{
    ObjectName, ObjectNamePart, Query, Select, Spanned, Statement, TableFactor, Value, ValueWithSpan, Visit, Visitor,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer};

use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::ids::ViewId;
use crate::model::SqlText;

/// Longer queries are refused: the parser's memory and stack grow with them.
const SQL_BYTES_MAX: usize = 128 << 10;
/// The parser nests one level per operator of a chain (`a + b + c …`), and dropping the tree recurses.
const TOKENS_MAX: usize = 20_000;

/// The parameters that a query may use.
const PLACEHOLDERS: [&str; 2] = ["$interval_start", "$interval_end"];

/// A query that is known to be one.
#[derive(Debug)]
pub(crate) struct ParsedSql {
    /// Tables in order of appearance, repeats included; names of common table expressions are not tables.
    pub(crate) tables: Vec<NamedTable>,
    /// The text without comments and white space, identifiers folded to lower case unless quoted.
    pub(crate) tokens: Vec<String>,
}

/// A table as a query names it.
#[derive(Debug)]
pub(crate) struct NamedTable {
    /// Each part as SQL resolves it: folded to lower case unless quoted.
    pub(crate) parts: Vec<String>,
    /// Where.
    pub(crate) origin: Origin,
    /// The position of its first token in [`ParsedSql::tokens`].
    token: usize,
}

impl ParsedSql {
    /// The tokens with each table's name replaced by what `meaning` says of it (`None`: left as written). An alias that
    /// only repeats the replaced name is left out, so that `daily` and `"daily@v1" AS daily` are the same logic while
    /// both mean the same.
    pub(crate) fn tokens_with(&self, meaning: impl Fn(&NamedTable) -> Option<(String, String)>) -> Vec<String> {
        let mut tokens: Vec<Option<String>> = self.tokens.iter().cloned().map(Some).collect();
        for table in &self.tables {
            let Some((mark, plain_name)) = meaning(table) else { continue };
            let after = table.token + 2 * table.parts.len() - 1;
            for token in tokens.iter_mut().take(after).skip(table.token) {
                *token = None;
            }
            if let Some(first) = tokens.get_mut(table.token) {
                *first = Some(mark);
            }
            let word = |at: usize| self.tokens.get(at).map(String::as_str);
            let alias = if word(after) == Some("as") { after + 1 } else { after };
            if word(alias) == Some(plain_name.as_str()) {
                for token in tokens.iter_mut().take(alias + 1).skip(after) {
                    *token = None;
                }
            }
        }
        tokens.into_iter().flatten().collect()
    }
}

/// Parses `sql`; reports and returns `None` unless it is exactly one query that names tables only.
pub(crate) fn parse(sql: &SqlText, out: &mut Vec<Diagnostic>) -> Option<ParsedSql> {
    let dialect = PostgreSqlDialect {};
    if sql.text.len() > SQL_BYTES_MAX {
        out.push(too_large(&sql.origin));
        return None;
    }
    let tokens = match Tokenizer::new(&dialect, &sql.text).tokenize_with_location() {
        Ok(tokens) => tokens,
        Err(error) => {
            out.push(syntax_error(sql, &error.message, Some(error.location)));
            return None;
        }
    };
    let tokens: Vec<TokenWithSpan> =
        tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF)).collect();
    if tokens.len() > TOKENS_MAX {
        out.push(too_large(&sql.origin));
        return None;
    }
    if !is_one_statement(sql, &tokens, out) {
        return None;
    }
    let places = tokens.iter().enumerate().map(|(at, token)| (place(token.span.start), at)).collect();
    let normal = tokens.iter().map(|token| normalize(&token.token)).filter(|token| token != ";").collect();
    let mut statements = match Parser::new(&dialect).with_tokens_with_locations(tokens.clone()).parse_statements() {
        Ok(statements) => statements,
        Err(error) => {
            let text = error.to_string();
            let text = text.strip_prefix("sql parser error: ").unwrap_or(&text);
            let (message, location) = split_location(text);
            let location = location.or_else(|| tokens.last().map(|token| token.span.start));
            out.push(syntax_error(sql, message, location));
            return None;
        }
    };
    let first = tokens.first()?;
    let Some(Statement::Query(query)) = statements.pop() else {
        let word = first.token.to_string().to_uppercase();
        out.push(
            Diagnostic::error(ids::SQL_NOT_QUERY, inside(sql, first.span), format!("`{word}` is not a query"))
                .with_label("only a query can stand here")
                .with_help("write one `SELECT` (or `WITH … SELECT`): it only reads; Tidegate writes the result"),
        );
        return None;
    };
    let before = out.len();
    let mut walk = Walk { sql, places, tables: Vec::new(), scopes: Vec::new(), out };
    let _ = query.visit(&mut walk);
    let tables = walk.tables;
    (out.len() == before).then_some(ParsedSql { tables, tokens: normal })
}

/// How a token counts for the logic of a view. Fixed by golden fingerprints: it must outlive versions of the parser.
fn normalize(token: &Token) -> String {
    match token {
        Token::Word(word) if word.quote_style.is_none() => word.value.to_lowercase(),
        token => token.to_string(),
    }
}

fn is_one_statement(sql: &SqlText, tokens: &[TokenWithSpan], out: &mut Vec<Diagnostic>) -> bool {
    let end = tokens.iter().position(|token| token.token == Token::SemiColon).unwrap_or(tokens.len());
    if end == 0 {
        let origin = tokens.first().map_or_else(|| sql.origin.clone(), |token| inside(sql, token.span));
        out.push(Diagnostic::error(ids::SQL_SYNTAX, origin, "the query is empty").with_help("write a `SELECT`"));
        return false;
    }
    let Some(second) = tokens[end..].iter().find(|token| token.token != Token::SemiColon) else { return true };
    out.push(
        Diagnostic::error(ids::SQL_STATEMENTS, inside(sql, second.span), "more than one SQL statement")
            .with_label("a second statement begins here")
            .with_help("keep one query; intermediate steps go into `WITH name AS (…)`"),
    );
    false
}

fn too_large(origin: &Origin) -> Diagnostic {
    Diagnostic::error(ids::SQL_TOO_LARGE, origin.clone(), "the query is too long")
        .with_label(format!("at most {} KiB and {TOKENS_MAX} words", SQL_BYTES_MAX >> 10))
        .with_help("split it into views that read each other; long lists of values belong into a source")
}

fn syntax_error(sql: &SqlText, message: &str, location: Option<Location>) -> Diagnostic {
    let location = location.filter(|location| location.line > 0);
    let origin = location.map_or_else(
        || sql.origin.clone(),
        |at| sql.origin.inside(number(at.line), number(at.column), word_length(&sql.text, at)),
    );
    let mut diagnostic = Diagnostic::error(ids::SQL_SYNTAX, origin, "SQL syntax error").with_label(reword(message));
    diagnostic.help =
        location.and_then(|at| unquoted_version(&sql.text, at).or_else(|| misspelled_keyword(&sql.text, at)));
    diagnostic
}

/// The parser's message in our style: `Expected: ), found: AS` becomes "expected `)`, found `AS`".
fn reword(message: &str) -> String {
    let message = message.trim().trim_end_matches('.');
    if let Some((expected, found)) = message.strip_prefix("Expected").and_then(|rest| rest.rsplit_once(", found: ")) {
        let expected = expected.trim_start_matches(':').trim();
        let is_token = !expected.chars().any(char::is_lowercase);
        let expected = if is_token { format!("`{expected}`") } else { expected.to_owned() };
        return match found {
            "EOF" => format!("expected {expected}, found the end of the query"),
            found => format!("expected {expected}, found `{found}`"),
        };
    }
    let mut chars = message.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// A remedy when the line at `at` names a view's version without quotes.
fn unquoted_version(text: &str, at: Location) -> Option<String> {
    let line = text.split('\n').nth(at.line.saturating_sub(1) as usize)?;
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '@';
    line.split(|c: char| !is_name(c) && c != '"').find_map(|word| {
        let id: ViewId = word.parse().ok()?;
        Some(format!("write `\"{id}\"`: a name with `@` needs double quotes"))
    })
}

/// A remedy when the word at `at` or the one before is almost a keyword.
fn misspelled_keyword(text: &str, at: Location) -> Option<String> {
    const KEYWORDS: [&str; 16] = [
        "SELECT", "FROM", "WHERE", "GROUP", "ORDER", "HAVING", "LIMIT", "JOIN", "INNER", "OUTER", "CROSS", "UNION",
        "DISTINCT", "BETWEEN", "INTERVAL", "WINDOW",
    ];
    let skip = at.line.saturating_sub(1) as usize;
    let before = text.split('\n').take(skip).map(|line| line.chars().count() + 1).sum::<usize>();
    let end = before + at.column.saturating_sub(1) as usize + word_length(text, at) as usize;
    let read: String = text.chars().take(end).collect();
    let mut words = read.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).rev();
    words.by_ref().take(2).find_map(|word| {
        let word = word.to_uppercase();
        let near = |keyword: &&&str| word != ***keyword && strsim::osa_distance(&word, keyword) == 1;
        let keyword = KEYWORDS.iter().filter(|_| word.len() > 3).find(near)?;
        Some(format!("did you mean `{keyword}`?"))
    })
}

/// The characters of the word at `at`, so that the caret covers it.
fn word_length(text: &str, at: Location) -> u32 {
    let line = text.split('\n').nth(at.line.saturating_sub(1) as usize).unwrap_or_default();
    let rest = line.chars().skip(at.column.saturating_sub(1) as usize);
    number(rest.take_while(|c| c.is_alphanumeric() || *c == '_').count().max(1) as u64)
}

fn split_location(message: &str) -> (&str, Option<Location>) {
    let Some((head, tail)) = message.rsplit_once(" at Line: ") else { return (message, None) };
    let Some((line, column)) = tail.split_once(", Column: ") else { return (message, None) };
    match (line.parse(), column.parse()) {
        (Ok(line), Ok(column)) => (head, Some(Location { line, column })),
        _ => (message, None),
    }
}

fn place(at: Location) -> (u64, u64) {
    (at.line, at.column)
}

fn number(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn inside(sql: &SqlText, span: Span) -> Origin {
    if span.start.line == 0 {
        return sql.origin.clone();
    }
    let length = if span.end.line == span.start.line { span.end.column.saturating_sub(span.start.column) } else { 1 };
    sql.origin.inside(number(span.start.line), number(span.start.column), number(length.max(1)))
}

/// Finds tables, and refuses what a query may hold that is not reading tables.
struct Walk<'a> {
    sql: &'a SqlText,
    /// The position of the token that begins at a line and column.
    places: HashMap<(u64, u64), usize>,
    tables: Vec<NamedTable>,
    scopes: Vec<Scope>,
    out: &'a mut Vec<Diagnostic>,
}

/// The names that `WITH` gives, as one query sees them.
struct Scope {
    outer: HashSet<String>,
    recursive: bool,
    /// Each common table expression, by the address of its query, in order.
    ctes: Vec<(*const Query, String)>,
}

impl Scope {
    /// What is visible inside `query`: a common table expression sees those before it (and itself when recursive), so
    /// that `WITH flights AS (SELECT … FROM flights)` reads the table `flights`.
    fn visible(&self, query: &Query) -> HashSet<String> {
        let position = self.ctes.iter().position(|(address, _)| std::ptr::eq(*address, query));
        let known = position.map_or(self.ctes.len(), |index| index + usize::from(self.recursive));
        self.outer.iter().cloned().chain(self.ctes.iter().take(known).map(|(_, name)| name.clone())).collect()
    }

    fn knows(&self, name: &str) -> bool {
        self.outer.contains(name) || self.ctes.iter().any(|(_, cte)| cte == name)
    }
}

fn fold(value: &str, quote: Option<char>) -> String {
    if quote.is_some() { value.to_owned() } else { value.to_lowercase() }
}

impl Walk<'_> {
    fn table(&mut self, name: &ObjectName) {
        let mut parts = Vec::with_capacity(name.0.len());
        for part in &name.0 {
            match part {
                ObjectNamePart::Identifier(ident) => parts.push(fold(&ident.value, ident.quote_style)),
                ObjectNamePart::Function(_) => return self.refuse_function(name.span()),
            }
        }
        let is_cte = parts.len() == 1 && self.scopes.last().is_some_and(|scope| scope.knows(&parts[0]));
        if !is_cte {
            let span = name.span();
            let token = self.places.get(&place(span.start)).copied().unwrap_or(usize::MAX >> 1);
            self.tables.push(NamedTable { parts, origin: inside(self.sql, span), token });
        }
    }

    fn refuse_function(&mut self, span: Span) {
        self.out.push(
            Diagnostic::error(
                ids::SQL_TABLE_FUNCTION,
                inside(self.sql, span),
                "functions cannot stand in place of a table",
            )
            .with_label("only sources and feature views can be read")
            .with_help("define a source for it, or use `unnest(…)` or `VALUES (…)`"),
        );
    }

    fn refuse(&mut self, span: Span, title: &str) {
        self.out.push(
            Diagnostic::error(ids::SQL_NOT_QUERY, inside(self.sql, span), title)
                .with_help("a query only reads; Tidegate writes the result"),
        );
    }
}

impl Visitor for Walk<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let outer = self.scopes.last().map(|scope| scope.visible(query)).unwrap_or_default();
        let mut scope = Scope { outer, recursive: false, ctes: Vec::new() };
        if let Some(with) = &query.with {
            scope.recursive = with.recursive;
            scope.ctes = with
                .cte_tables
                .iter()
                .map(|cte| (&raw const *cte.query, fold(&cte.alias.name.value, cte.alias.name.quote_style)))
                .collect();
        }
        self.scopes.push(scope);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.scopes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        if let Some(into) = &select.into {
            self.refuse(into.name.span(), "`SELECT … INTO` writes a table");
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: None, .. } => self.table(name),
            TableFactor::Derived { .. }
            | TableFactor::NestedJoin { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::Pivot { .. }
            | TableFactor::Unpivot { .. } => {}
            other => self.refuse_function(other.span()),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        // Only statements inside the query come by here, as in `WITH x AS (DELETE …)`.
        self.refuse(statement.span(), "a statement that writes stands inside the query");
        ControlFlow::Break(())
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        if let Value::Placeholder(name) = &value.value
            && !PLACEHOLDERS.contains(&name.as_str())
        {
            self.out.push(
                Diagnostic::error(
                    ids::UNKNOWN_PLACEHOLDER,
                    inside(self.sql, value.span),
                    format!("there is no parameter `{name}`"),
                )
                .with_label("not a parameter")
                .with_help("the parameters are `$interval_start` and `$interval_end`"),
            );
        }
        ControlFlow::Continue(())
    }
}
