//! The same SQL on two databases: statements with `$1` placeholders, and rows of text, whole numbers and bytes.
//!
//! Both databases understand the subset that the statements use. (`sqlx::Any` would not do: it writes `?` for the
//! placeholders of dynamic statements, which PostgreSQL does not know.) It does not know what the statements are about.

use std::borrow::Cow;

use sqlx::postgres::{PgPool, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, ColumnIndex, Decode, Row as _, Type};
use zunft_protocol::ids::IdError;

use super::MetadataError;

/// Connections to one of the databases.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Statements that take effect together or not at all; dropped without a commit, not at all.
#[derive(Debug)]
pub(super) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// Where a statement runs.
pub(super) enum Place<'a> {
    Pool(&'a Pool),
    Transaction(&'a mut Transaction),
}

/// One row of an answer.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What a placeholder stands for; `None` is NULL.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(Option<String>),
    Number(Option<i64>),
    Bytes(Option<Vec<u8>>),
}

/// A statement with its values.
#[derive(Debug)]
pub(super) struct Statement {
    sql: Cow<'static, str>,
    values: Vec<Value>,
}

/// A statement whose text never changes.
pub(super) fn query(sql: &'static str) -> Statement {
    Statement { sql: Cow::Borrowed(sql), values: Vec::new() }
}

impl Pool {
    /// A transaction that may write from its first statement on.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        Ok(match self {
            // A read that turns into a write later would fail at once when another process writes.
            Self::Sqlite(pool) => Transaction::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres(pool) => Transaction::Postgres(pool.begin().await?),
        })
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Transaction {
    /// Makes everything in it durable.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
    }
}

impl<'a> From<&'a Pool> for Place<'a> {
    fn from(pool: &'a Pool) -> Self {
        Self::Pool(pool)
    }
}

impl<'a> From<&'a mut Transaction> for Place<'a> {
    fn from(transaction: &'a mut Transaction) -> Self {
        Self::Transaction(transaction)
    }
}

/// The placeholders of a statement that was put together, for SQLite: they stand in their order, and it would look each
/// number up among all that came before.
fn unnumbered(sql: Cow<'static, str>) -> Cow<'static, str> {
    let Cow::Owned(sql) = sql else { return sql };
    let mut parts = sql.split('$');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push('?');
        plain.push_str(part.trim_start_matches(|letter: char| letter.is_ascii_digit()));
    }
    Cow::Owned(plain)
}

/// Gives `$statement` its values, for the database of the place where it runs.
macro_rules! bound {
    ($statement:expr, $placeholders:expr) => {{
        let Statement { sql, values } = $statement;
        let query = match $placeholders(sql) {
            Cow::Borrowed(sql) => sqlx::query(sql),
            // The text is put together from literals alone; everything else is a value. Such statements are too many
            // to be worth keeping prepared.
            Cow::Owned(sql) => sqlx::query(AssertSqlSafe(sql)).persistent(false),
        };
        values.into_iter().fold(query, |query, value| match value {
            Value::Text(value) => query.bind(value),
            Value::Number(value) => query.bind(value),
            Value::Bytes(value) => query.bind(value),
        })
    }};
}

impl Statement {
    /// Gives the next placeholder its value.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Begins a statement that is put together from parts.
    pub(super) fn begin(sql: &'static str) -> Self {
        Self { sql: Cow::Owned(sql.to_owned()), values: Vec::new() }
    }

    /// Adds a part.
    pub(super) fn push(&mut self, sql: &'static str) -> &mut Self {
        self.sql.to_mut().push_str(sql);
        self
    }

    /// Adds a placeholder with its value.
    pub(super) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        let placeholder = format!("${}", self.values.len());
        self.sql.to_mut().push_str(&placeholder);
        self
    }

    /// Adds `(a, b, c)` of placeholders.
    pub(super) fn push_list(&mut self, values: impl IntoIterator<Item = impl Into<Value>>) -> &mut Self {
        for (index, value) in values.into_iter().enumerate() {
            self.push(if index == 0 { "(" } else { ", " }).push_bind(value);
        }
        self.push(")")
    }

    /// All rows.
    pub(super) async fn fetch_all(self, place: impl Into<Place<'_>>) -> Result<Vec<Row>, sqlx::Error> {
        match place.into() {
            Place::Pool(Pool::Sqlite(pool)) => sqlite(bound!(self, unnumbered).fetch_all(pool).await),
            Place::Pool(Pool::Postgres(pool)) => postgres(bound!(self, std::convert::identity).fetch_all(pool).await),
            Place::Transaction(Transaction::Sqlite(open)) => {
                sqlite(bound!(self, unnumbered).fetch_all(&mut **open).await)
            }
            Place::Transaction(Transaction::Postgres(open)) => {
                postgres(bound!(self, std::convert::identity).fetch_all(&mut **open).await)
            }
        }
    }

    /// The first row, where there is one.
    pub(super) async fn fetch_optional(self, place: impl Into<Place<'_>>) -> Result<Option<Row>, sqlx::Error> {
        Ok(self.fetch_all(place).await?.into_iter().next())
    }

    /// The first row.
    pub(super) async fn fetch_one(self, place: impl Into<Place<'_>>) -> Result<Row, sqlx::Error> {
        self.fetch_optional(place).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// No rows.
    pub(super) async fn execute(self, place: impl Into<Place<'_>>) -> Result<(), sqlx::Error> {
        self.fetch_all(place).await.map(drop)
    }
}

fn sqlite(rows: Result<Vec<SqliteRow>, sqlx::Error>) -> Result<Vec<Row>, sqlx::Error> {
    rows.map(|rows| rows.into_iter().map(Row::Sqlite).collect())
}

fn postgres(rows: Result<Vec<PgRow>, sqlx::Error>) -> Result<Vec<Row>, sqlx::Error> {
    rows.map(|rows| rows.into_iter().map(Row::Postgres).collect())
}

impl Row {
    /// A column as it is.
    pub(super) fn try_get<'r, T>(&'r self, column: &'static str) -> Result<T, MetadataError>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>,
        &'static str: ColumnIndex<SqliteRow> + ColumnIndex<PgRow>,
    {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }

    /// Reads a name.
    pub(super) fn name<T: std::str::FromStr<Err = IdError>>(&self, column: &'static str) -> Result<T, MetadataError> {
        let found: String = self.try_get(column)?;
        found.parse().map_err(|_| MetadataError::Damaged { column, found })
    }

    /// Reads a number that is never negative.
    pub(super) fn count(&self, column: &'static str) -> Result<u64, MetadataError> {
        let found: i64 = self.try_get(column)?;
        found.try_into().map_err(|_| MetadataError::Damaged { column, found: found.to_string() })
    }

    /// Reads an id of `N` bytes.
    pub(super) fn bytes<const N: usize>(&self, column: &'static str) -> Result<[u8; N], MetadataError> {
        let found: Vec<u8> = self.try_get(column)?;
        let len = found.len();
        found.try_into().map_err(|_| MetadataError::Damaged { column, found: format!("{len} bytes") })
    }

    /// Reads JSON that this program wrote.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, MetadataError> {
        let found: String = self.try_get(column)?;
        serde_json::from_str(&found).map_err(|_| MetadataError::Damaged { column, found })
    }

    /// Reads one of a few words.
    pub(super) fn word<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, MetadataError> {
        let found: String = self.try_get(column)?;
        let value = serde_json::Value::String(found.clone());
        serde_json::from_value(value).map_err(|_| MetadataError::Damaged { column, found })
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.clone()))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Number(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Number(value)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(Some(value.to_vec()))
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Some(value))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(value: Option<Vec<u8>>) -> Self {
        Self::Bytes(value)
    }
}
