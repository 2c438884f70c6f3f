//! What a database must be able to do.

use std::future::Future;

use bentocache_driver::DriverError;
use bytes::Bytes;

use crate::TableName;

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// The complete key.
    pub key: &'a str,
    /// The bytes to store.
    pub value: Bytes,
    /// When the row ends, in milliseconds since 1970; `None` for never. It may be in the past.
    pub expires_at: Option<i64>,
}

/// What an adapter takes at once. The driver splits batches and refuses keys and values by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Rows or keys in one call; 1,000 by default. A statement has three parameters for a row.
    pub batch: usize,
    /// Bytes of keys and values in one call of `set`, unless a single row is larger; 8 MiB by
    /// default.
    pub batch_bytes: usize,
    /// The longest key in bytes; none by default.
    pub max_key: Option<usize>,
    /// The longest key in characters; none by default.
    pub max_key_chars: Option<usize>,
    /// Whether a key may hold the character NUL; yes by default.
    pub takes_nul: bool,
    /// The largest value in bytes; none by default.
    pub max_value: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch: 1_000,
            batch_bytes: 8 << 20,
            max_key: None,
            max_key_chars: None,
            takes_nul: true,
            max_value: None,
        }
    }
}

impl Limits {
    /// Sets [`batch`](Self::batch).
    #[must_use]
    pub fn with_batch(mut self, rows: usize) -> Self {
        self.batch = rows;
        self
    }

    /// Sets [`batch_bytes`](Self::batch_bytes).
    #[must_use]
    pub fn with_batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// Sets [`max_key`](Self::max_key), in bytes.
    #[must_use]
    pub fn with_max_key(mut self, bytes: usize) -> Self {
        self.max_key = Some(bytes);
        self
    }

    /// Sets [`max_key_chars`](Self::max_key_chars).
    #[must_use]
    pub fn with_max_key_chars(mut self, characters: usize) -> Self {
        self.max_key_chars = Some(characters);
        self
    }

    /// Unsets [`takes_nul`](Self::takes_nul).
    #[must_use]
    pub fn without_nul(mut self) -> Self {
        self.takes_nul = false;
        self
    }

    /// Sets [`max_value`](Self::max_value), in bytes.
    #[must_use]
    pub fn with_max_value(mut self, bytes: usize) -> Self {
        self.max_value = Some(bytes);
        self
    }
}

/// A table with the columns `key` (the primary key), `value` and `expires_at`, for
/// [`DatabaseDriver`](crate::DatabaseDriver).
///
/// This is the trait to implement for a database or a library that the project has no adapter
/// for; write its methods as plain `async fn`. The guide (`docs/sql-adapter.md`) shows one, and the SQL
/// for two more databases. For PostgreSQL, MySQL and SQLite over another library, implement
/// [`Database`](crate::Database) instead: the SQL is there already.
///
/// Four rules hold for all methods:
///
/// - **Keys are exact.** No two of them are the same row, whatever the collation says of case,
///   accents and spaces at the end; and nothing in a key or a prefix is a pattern.
/// - **`now` decides.** It is the driver's clock, in milliseconds since 1970. A row that ends at
///   `now` or before is expired, and as good as not there.
/// - **One step.** Where a method compares and acts, no other writer may come in between.
/// - **Abandoned calls** do no harm: the future of a call may be dropped at any `await`.
///
/// The driver calls with at least one key or row, with no key twice, in ascending order so that
/// two writers lock rows in the same one, and within [`limits`](Self::limits).
pub trait DatabaseAdapter: Send + Sync + 'static {
    /// A short name for errors and logs, such as `postgres`.
    fn name(&self) -> &'static str;

    /// What it takes at once. May depend on what [`open_table`](Self::open_table) has found.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Finds the table, for all later calls. If there is none, creates it when `create` is true.
    /// Called before all others, and again until it succeeds once. Many processes may do it at the
    /// same time.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`](bentocache_driver::ErrorKind::Denied) when the table cannot be used, or
    /// is missing and not to be created, or may not be created: building the cache then fails.
    /// Others when trying later may help.
    fn open_table(
        &self,
        table: &TableName,
        create: bool,
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Whether the rights suffice for every write. Called when the cache is built, with the table
    /// open: run writes that change nothing, such as a delete with a false condition.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`](bentocache_driver::ErrorKind::Denied) when a right is missing or the
    /// server is read-only: building the cache then fails.
    fn check_rights(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }

    /// The rows with these keys that have not expired, in any order.
    ///
    /// # Errors
    /// When the database cannot tell.
    fn get(
        &self,
        keys: &[&str],
        now: i64,
    ) -> impl Future<Output = Result<Vec<(String, Bytes)>, DriverError>> + Send;

    /// Stores the rows, in place of those that have their keys. Use an upsert, so that no key can
    /// be there twice.
    ///
    /// # Errors
    /// When not all were certainly stored.
    fn set(&self, rows: &[Row<'_>]) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Stores the row if its key is not there or has expired; returns whether it did.
    ///
    /// # Errors
    /// As `set`.
    fn insert(
        &self,
        row: Row<'_>,
        now: i64,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Replaces the value and keeps the expiry, if the value is exactly `expected` and has not
    /// expired; returns whether it did.
    ///
    /// # Errors
    /// As `set`.
    fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        now: i64,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Deletes the rows, expired or not, and returns how many of them had not expired.
    ///
    /// # Errors
    /// When not all are certainly gone.
    fn delete(
        &self,
        keys: &[&str],
        now: i64,
    ) -> impl Future<Output = Result<u64, DriverError>> + Send;

    /// Deletes the row if its value is exactly this one and has not expired; returns whether it
    /// did.
    ///
    /// # Errors
    /// When the database cannot tell.
    fn delete_if(
        &self,
        key: &str,
        value: &[u8],
        now: i64,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Deletes the row and returns its value, unless it has expired. Of two callers at once, one
    /// gets the value.
    ///
    /// # Errors
    /// When the database cannot tell.
    fn pull(
        &self,
        key: &str,
        now: i64,
    ) -> impl Future<Output = Result<Option<Bytes>, DriverError>> + Send;

    /// Deletes the rows whose keys start with `prefix`; all rows when it is empty. Use the index:
    /// they are those from `prefix` up to [`after_prefix`](crate::after_prefix). `LIKE` would take
    /// `%` and `_` in the prefix for patterns.
    ///
    /// # Errors
    /// When not all are certainly gone.
    fn clear(&self, prefix: &str) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// At most `limit` keys that start with `prefix`, come after `after` if it is given, and have
    /// not expired, in the order of their bytes. Fewer than `limit` are the last ones.
    ///
    /// # Errors
    /// When the database cannot tell.
    fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: i64,
    ) -> impl Future<Output = Result<Vec<String>, DriverError>> + Send;

    /// Deletes the rows that have expired and returns how many.
    ///
    /// # Errors
    /// When it could not look at all of them.
    fn prune(&self, now: i64) -> impl Future<Output = Result<u64, DriverError>> + Send;

    /// What statements wait for, such as a free connection of the pool, where the library can tell.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Ends what the adapter itself has started. Leave a pool of the application's open.
    ///
    /// # Errors
    /// When something could not be ended in order; it is ended all the same.
    fn disconnect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }
}

/// Where the keys that start with `prefix` end: the first text that comes after all of them in the
/// order of bytes. `None` when there is none, as for the empty prefix.
///
/// ```
/// use bentocache::sql::after_prefix;
///
/// assert_eq!(after_prefix("users:").as_deref(), Some("users;"));
/// assert_eq!(after_prefix(""), None);
/// ```
pub fn after_prefix(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // Characters are in the order of their UTF-8. The surrogates, in between, are none.
        let next = match u32::from(last) + 1 {
            0xD800 => Some('\u{E000}'),
            next => char::from_u32(next),
        };
        if let Some(next) = next {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_an_end() {
        assert_eq!(after_prefix("a").as_deref(), Some("b"));
        assert_eq!(after_prefix("app_1%").as_deref(), Some("app_1&"));
        assert_eq!(after_prefix("a\u{7f}").as_deref(), Some("a\u{80}"));
        assert_eq!(after_prefix("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(after_prefix("a\u{10ffff}\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(after_prefix("\u{10ffff}"), None);
    }

    #[test]
    fn every_key_with_the_prefix_is_before_its_end_and_no_other() {
        for prefix in ["a", "é", "z\u{10ffff}", "\u{d7ff}", "日", "\0"] {
            let end = after_prefix(prefix).unwrap();
            for rest in ["", "\0", "a", "\u{10ffff}\u{10ffff}"] {
                let key = format!("{prefix}{rest}");
                assert!(prefix <= &*key && *key < *end, "{key:?}");
            }
            assert!(!end.starts_with(prefix));
        }
    }
}
