//! One text of each query for two databases.
//!
//! SQLite takes `$1` as PostgreSQL does, and our columns hold whole numbers and text alone, so nearly every query is
//! written once. What differs is small and named: a [`Sql`] has a text for each, [`locked!`] adds the row lock that only
//! PostgreSQL needs, and [`db_now!`] is the database's clock on both (the schema on PostgreSQL brings a function of that
//! name). sqlx's own `Any` would do the same, but copies every value once more and hides the options of both drivers.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Column as _, Postgres, Row as _, SqlSafeStr, Sqlite, TypeInfo as _, ValueRef as _};

use crate::db::{Conn, Link};

/// The present instant of the database's own clock, in microseconds: leases, retry delays and liveness live by it. On
/// PostgreSQL it is when the statement arrived, so a write that waited for a lock promises no more than was asked for.
macro_rules! db_now {
    () => {
        "CAST(unixepoch('subsec') * 1000000 AS BIGINT)"
    };
}
pub(crate) use db_now;

/// A query that locks the rows it yields until the transaction ends. References to such a row may still be added.
macro_rules! locked {
    ($($text:expr),+ $(,)?) => {
        $crate::sql::Sql { sqlite: concat!($($text),+), postgres: concat!($($text,)+ " FOR NO KEY UPDATE") }
    };
}
pub(crate) use locked;

/// The text of a query for each database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self { sqlite: text, postgres: text }
    }
}

/// A value on its way into the database.
#[derive(Debug, Clone)]
pub(crate) enum Arg {
    Number(Option<i64>),
    Text(Option<String>),
}

macro_rules! args {
    ($($type:ty => |$value:ident| $arg:expr;)+) => {
        $(impl From<$type> for Arg {
            fn from($value: $type) -> Self {
                $arg
            }
        })+
    };
}

args! {
    i64 => |value| Self::Number(Some(value));
    i32 => |value| Self::Number(Some(i64::from(value)));
    u32 => |value| Self::Number(Some(i64::from(value)));
    bool => |value| Self::Number(Some(i64::from(value)));
    Option<i64> => |value| Self::Number(value);
    &str => |value| Self::Text(Some(value.to_owned()));
    String => |value| Self::Text(Some(value));
    &String => |value| Self::Text(Some(value.clone()));
    Option<&str> => |value| Self::Text(value.map(str::to_owned));
    Option<String> => |value| Self::Text(value);
    &Option<String> => |value| Self::Text(value.clone());
}

/// A connection keeps its last hundred statements prepared. Those with more values than this are as many as there are
/// numbers of rows, and would push out the others.
const ARGS_KEPT: usize = 40;

/// A query with its values: `query("SELECT …").bind(…).fetch_one(&mut tx)`.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    text: Text,
    args: Vec<Arg>,
}

#[derive(Debug, Clone)]
enum Text {
    Fixed(Sql),
    /// Put together from parts of this crate by [`Builder`].
    Built {
        text: String,
        end: Sql,
    },
}

/// A query whose text is fixed.
pub(crate) fn query(text: impl Into<Sql>) -> Query {
    Query { text: Text::Fixed(text.into()), args: Vec::new() }
}

impl Query {
    /// The next `$n`.
    pub(crate) fn bind(mut self, value: impl Into<Arg>) -> Self {
        self.args.push(value.into());
        self
    }

    /// How many rows it touched.
    pub(crate) async fn execute(self, conn: &mut Conn) -> sqlx::Result<u64> {
        match &mut conn.link {
            Link::Sqlite(tx) => Ok(self.sqlite().execute(&mut **tx).await?.rows_affected()),
            Link::Postgres(session) => {
                let answer = self.postgres().execute(session.ask()).await;
                Ok(session.settle(answer)?.rows_affected())
            }
        }
    }

    /// All rows.
    pub(crate) async fn fetch_all(self, conn: &mut Conn) -> sqlx::Result<Vec<Row>> {
        match &mut conn.link {
            Link::Sqlite(tx) => Ok(self.sqlite().fetch_all(&mut **tx).await?.into_iter().map(Row::Sqlite).collect()),
            Link::Postgres(session) => {
                let answer = self.postgres().fetch_all(session.ask()).await;
                Ok(session.settle(answer)?.into_iter().map(Row::Postgres).collect())
            }
        }
    }

    /// The row, if there is one. More than one is a mistake in the text.
    pub(crate) async fn fetch_optional(self, conn: &mut Conn) -> sqlx::Result<Option<Row>> {
        match &mut conn.link {
            Link::Sqlite(tx) => Ok(self.sqlite().fetch_optional(&mut **tx).await?.map(Row::Sqlite)),
            // All rows, so that nothing of the answer is left in the connection.
            Link::Postgres(_) => Ok(self.fetch_all(conn).await?.into_iter().next()),
        }
    }

    /// The row that is always there.
    pub(crate) async fn fetch_one(self, conn: &mut Conn) -> sqlx::Result<Row> {
        self.fetch_optional(conn).await?.ok_or(sqlx::Error::RowNotFound)
    }

    fn sqlite(self) -> sqlx::query::Query<'static, Sqlite, SqliteArguments> {
        let text = match self.text {
            Text::Fixed(sql) => sql.sqlite.into_sql_str(),
            Text::Built { text, end } => AssertSqlSafe(text + end.sqlite).into_sql_str(),
        };
        let query = sqlx::query(text).persistent(self.args.len() <= ARGS_KEPT);
        self.args.into_iter().fold(query, |query, arg| match arg {
            Arg::Number(value) => query.bind(value),
            Arg::Text(value) => query.bind(value),
        })
    }

    fn postgres(self) -> sqlx::query::Query<'static, Postgres, PgArguments> {
        let text = match self.text {
            Text::Fixed(sql) => sql.postgres.into_sql_str(),
            Text::Built { text, end } => AssertSqlSafe(text + end.postgres).into_sql_str(),
        };
        let query = sqlx::query(text).persistent(self.args.len() <= ARGS_KEPT);
        self.args.into_iter().fold(query, |query, arg| match arg {
            Arg::Number(value) => query.bind(value),
            Arg::Text(value) => query.bind(value),
        })
    }
}

/// A query whose text depends on what is asked for. Only fixed parts are pushed; values are always bound.
#[derive(Debug)]
pub(crate) struct Builder {
    text: String,
    args: Vec<Arg>,
    end: Sql,
}

impl Builder {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text: text.to_owned(), args: Vec::new(), end: Sql::from("") }
    }

    pub(crate) fn push(&mut self, text: &'static str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// The name of a column as the database told it: only letters, digits and `_` get through.
    pub(crate) fn push_column(&mut self, name: &str) -> &mut Self {
        self.text.extend(name.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '_'));
        self
    }

    pub(crate) fn push_bind(&mut self, value: impl Into<Arg>) -> &mut Self {
        self.args.push(value.into());
        self.text.push('$');
        self.text.push_str(&self.args.len().to_string());
        self
    }

    /// `($1, $2, …)`; an empty list is `(NULL)`, in which nothing is.
    pub(crate) fn push_list<T: Into<Arg>>(&mut self, values: impl IntoIterator<Item = T>) -> &mut Self {
        let mut separator = "(";
        for value in values {
            self.push(separator).push_bind(value);
            separator = ", ";
        }
        self.push(if separator == "(" { "(NULL)" } else { ")" })
    }

    /// `($1, $2), ($3, $4), …`, the rows of a `VALUES`; there must be one.
    pub(crate) fn push_rows<R: IntoIterator<Item = Arg>>(&mut self, rows: impl IntoIterator<Item = R>) -> &mut Self {
        for (number, row) in rows.into_iter().enumerate() {
            self.push(if number == 0 { "" } else { ", " }).push_list(row);
        }
        self
    }

    /// What stands at the very end, and differs.
    pub(crate) fn push_end(&mut self, end: Sql) -> &mut Self {
        self.end = end;
        self
    }

    pub(crate) fn build(self) -> Query {
        Query { text: Text::Built { text: self.text, end: self.end }, args: self.args }
    }
}

/// A row of an answer; see [`crate::codec`] for how its columns are read.
#[derive(Debug)]
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// Every column with its value: numbers and text are all that the schema holds.
    pub(crate) fn cells(&self) -> sqlx::Result<Vec<(String, Arg)>> {
        macro_rules! cells {
            ($row:ident, $number:literal) => {
                $row.columns()
                    .iter()
                    .map(|column| {
                        let place = column.ordinal();
                        // Of the value where there is one: a column of SQLite may say nothing.
                        let is_number = $row.try_get_raw(place)?.type_info().name() == $number;
                        let value =
                            if is_number { Arg::Number($row.try_get(place)?) } else { Arg::Text($row.try_get(place)?) };
                        Ok((column.name().to_owned(), value))
                    })
                    .collect()
            };
        }
        match self {
            Self::Sqlite(row) => cells!(row, "INTEGER"),
            Self::Postgres(row) => cells!(row, "INT8"),
        }
    }
}

/// A plain type that a column can be read as.
pub(crate) trait Cell<'r>: Sized {
    /// Of the column of that name.
    fn of(row: &'r Row, column: &str) -> sqlx::Result<Self>;
}

macro_rules! cells {
    ($($type:ty),+) => {
        $(impl<'r> Cell<'r> for $type {
            fn of(row: &'r Row, column: &str) -> sqlx::Result<Self> {
                match row {
                    Row::Sqlite(row) => row.try_get(column),
                    Row::Postgres(row) => row.try_get(column),
                }
            }
        })+
    };
}

cells!(i64, Option<i64>, &'r str, Option<&'r str>, String, Option<String>);

/// Stored as a number.
impl Cell<'_> for bool {
    fn of(row: &Row, column: &str) -> sqlx::Result<Self> {
        Ok(i64::of(row, column)? != 0)
    }
}
