//! A statement with its values, and the rows of its answer.

use std::sync::Arc;
use std::time::Duration;

/// A value for a placeholder.
#[derive(Debug, Clone, Copy)]
pub enum Param<'a> {
    /// Text.
    Text(&'a str),
    /// Bytes: `bytea` or `blob`.
    Bytes(&'a [u8]),
    /// A 64-bit integer, or null.
    Int(Option<i64>),
}

/// A statement with its values. The placeholders are `$1`, `$2`, … for PostgreSQL and `?` for the
/// others.
#[derive(Debug)]
pub struct Statement<'a> {
    /// The SQL text. It contains no data.
    pub sql: Arc<str>,
    /// The values, one per placeholder.
    pub params: Vec<Param<'a>>,
    /// Whether the same text will be used again, so that preparing it pays off.
    pub is_reused: bool,
    /// Whether the statement returns at most one row, so that the library need not wait for more.
    pub is_single: bool,
    /// Whether it may wait for the locks of other writers. Reserve connections for other
    /// statements; [`WriteSlots`](crate::WriteSlots) counts writes.
    pub is_write: bool,
    /// Whether it scans many rows, like a clear or a prune, and may take as long as it needs. All
    /// other statements should end within [`LIMIT`](Self::LIMIT).
    pub is_long: bool,
}

impl<'a> Statement<'a> {
    /// The time limit of the server for a statement, or for its wait for a lock if it [is
    /// long](Self::is_long). Statements for MariaDB contain the limit; for other servers the
    /// library sets it.
    pub const LIMIT: Duration = Duration::from_secs(10);

    /// A statement whose text is used once.
    pub(crate) fn once(sql: impl Into<Arc<str>>, params: Vec<Param<'a>>) -> Self {
        Self::new(sql.into(), params, false)
    }

    pub(crate) fn new(sql: Arc<str>, params: Vec<Param<'a>>, is_reused: bool) -> Self {
        let is_write = !sql.starts_with("select");
        Self { sql, params, is_reused, is_single: false, is_write, is_long: false }
    }
}

/// The rows of an answer: the bytes of two columns.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;
