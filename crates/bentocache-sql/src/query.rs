//! A statement with its values, and the rows that it returns.

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
    /// The text. It holds no data.
    pub sql: Arc<str>,
    /// The values, one for each placeholder.
    pub params: Vec<Param<'a>>,
    /// Whether the same text will come again, so that preparing it pays.
    pub is_reused: bool,
    /// Whether there is at most one row to return, so that nobody needs to wait for more.
    pub is_single: bool,
    /// Whether it may have to wait for the locks of other writers. Leave connections for those that
    /// do not; [`WriteSlots`](crate::WriteSlots) counts them.
    pub is_write: bool,
    /// Whether it goes over many rows, as a clear or a prune, and may take as long as it needs. All
    /// others should end within [`LIMIT`](Self::LIMIT).
    pub is_long: bool,
}

impl<'a> Statement<'a> {
    /// How long the server should work on a statement, or wait for a lock where it
    /// [is long](Self::is_long). The statements for MariaDB say so themselves; for other servers it is
    /// a matter of the library.
    pub const LIMIT: Duration = Duration::from_secs(10);

    /// A statement whose text will not come again.
    pub(crate) fn once(sql: impl Into<Arc<str>>, params: Vec<Param<'a>>) -> Self {
        Self::new(sql.into(), params, false)
    }

    pub(crate) fn new(sql: Arc<str>, params: Vec<Param<'a>>, is_reused: bool) -> Self {
        let is_write = !sql.starts_with("select");
        Self { sql, params, is_reused, is_single: false, is_write, is_long: false }
    }
}

/// The rows that a statement returns: the bytes of two columns.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;
