//! Statements in Diesel's form.

use std::sync::Arc;

use bentocache_sql::{Param, Statement};
use diesel::QueryResult;
use diesel::backend::Backend;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::serialize::ToSql;
use diesel::sql_types::{BigInt, Binary, HasSqlType, Nullable, Text};

/// A statement that owns its values, because it may outlive its caller.
pub(crate) struct Owned {
    sql: Arc<str>,
    values: Vec<Value>,
    pub(crate) is_reused: bool,
}

enum Value {
    Text(String),
    Bytes(Vec<u8>),
    Int(Option<i64>),
}

impl From<&Statement<'_>> for Owned {
    fn from(statement: &Statement<'_>) -> Self {
        let value = |param: &Param<'_>| match *param {
            Param::Text(text) => Value::Text(text.to_owned()),
            Param::Bytes(bytes) => Value::Bytes(bytes.to_owned()),
            Param::Int(number) => Value::Int(number),
        };
        Self {
            sql: Arc::clone(&statement.sql),
            values: statement.params.iter().map(value).collect(),
            is_reused: statement.is_reused,
        }
    }
}

/// Diesel writes placeholders itself: these are the texts between the placeholders of the
/// statement.
fn pieces(sql: &str) -> impl Iterator<Item = &str> {
    // A placeholder is `?`, or `$` with a number. These statements use both characters for nothing
    // else.
    let mut pieces = sql.split(['?', '$']);
    let first = pieces.next();
    first
        .into_iter()
        .chain(pieces.map(|piece| piece.trim_start_matches(|c: char| c.is_ascii_digit())))
}

impl QueryId for Owned {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Owned {
    // Text is also read as its bytes.
    type SqlType = (Binary, Binary);
}

#[cfg(feature = "sqlite")]
impl diesel::RunQueryDsl<diesel::SqliteConnection> for Owned {}

impl<DB> QueryFragment<DB> for Owned
where
    DB: Backend + HasSqlType<Text> + HasSqlType<Binary> + HasSqlType<BigInt>,
    str: ToSql<Text, DB>,
    [u8]: ToSql<Binary, DB>,
    i64: ToSql<BigInt, DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        if !self.is_reused {
            out.unsafe_to_cache_prepared();
        }
        if self.values.is_empty() {
            out.push_sql(&self.sql);
            return Ok(());
        }
        let mut values = self.values.iter();
        for (at, piece) in pieces(&self.sql).enumerate() {
            if at > 0 {
                match values.next() {
                    Some(Value::Text(text)) => out.push_bind_param::<Text, str>(text)?,
                    Some(Value::Bytes(bytes)) => out.push_bind_param::<Binary, [u8]>(bytes)?,
                    Some(Value::Int(number)) => {
                        out.push_bind_param::<Nullable<BigInt>, Option<i64>>(number)?;
                    }
                    None => {}
                }
            }
            out.push_sql(piece);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_left_out() {
        let all = |sql| pieces(sql).collect::<Vec<_>>();
        assert_eq!(
            all("a = $1::bigint and b in ($2, $13)"),
            ["a = ", "::bigint and b in (", ", ", ")"]
        );
        assert_eq!(all("? and ?"), ["", " and ", ""]);
        assert_eq!(all("a = 1"), ["a = 1"]);
    }
}
