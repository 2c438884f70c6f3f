//! The contract for databases.

use std::future::Future;

use bentocache_driver::DriverError;
use bytes::Bytes;

use crate::TableName;

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// The complete key.
    pub key: &'a str,
    /// The stored bytes.
    pub value: Bytes,
    /// The end of the row in milliseconds since 1970; `None` for never. It may be in the past.
    pub expires_at: Option<i64>,
}

/// The limits of an adapter. The driver splits batches, and refuses keys and values, by these
/// limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most rows or keys in one call; default 1,000. A statement has three parameters per row.
    pub batch: usize,
    /// The most bytes of keys and values in one call of `set`, unless a single row is larger;
    /// default 8 MiB.
    pub batch_bytes: usize,
    /// The longest key in bytes; default no limit.
    pub max_key: Option<usize>,
    /// The longest key in characters; default no limit.
    pub max_key_chars: Option<usize>,
    /// Whether a key may contain the character NUL; default yes.
    pub takes_nul: bool,
    /// The largest value in bytes; default no limit.
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
/// Implement this trait for a database or a library without an adapter; write its methods as plain
/// `async fn`. The guide (`docs/sql-adapter.md`) shows an adapter, and the SQL for two more
/// databases. For PostgreSQL, MySQL and SQLite over another library, implement
/// [`Database`](crate::Database) instead: it reuses the SQL of this crate.
///
/// Four rules apply to all methods:
///
/// - **Keys are exact.** No two keys share a row, even if the collation ignores case, accents or
///   trailing spaces; and no character of a key or a prefix is a pattern.
/// - **`now` decides.** It is the driver's clock, in milliseconds since 1970. A row that ends at
///   `now` or before is expired and counts as missing.
/// - **Atomic.** If a method compares and acts, no other writer may change the row in between.
/// - **Cancelled calls** do no harm: the future of a call may be dropped at any `await`.
///
/// The driver passes at least one key or row, no key twice, within [`limits`](Self::limits). Keys
/// are in ascending order, so that two writers lock rows in the same order.
pub trait DatabaseAdapter: Send + Sync + 'static {
    /// A short name for errors and logs, such as `postgres`.
    fn name(&self) -> &'static str;

    /// Whether the database is a file or memory of this machine, as opposed to a server; see
    /// [`Capabilities::local`](bentocache_driver::Capabilities::local). Default false.
    fn is_local(&self) -> bool {
        false
    }

    /// The limits. They may depend on the table that [`open_table`](Self::open_table) found.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Finds the table for all later calls. If it is missing, creates it if `create` is true. The
    /// driver calls this first, and again until it succeeds once. Many processes may do so at the
    /// same time.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`](bentocache_driver::ErrorKind::Denied) if the table cannot be used, or
    /// if it is missing and must not or may not be created: building the cache then fails. Other
    /// kinds if a retry may help.
    fn open_table(
        &self,
        table: &TableName,
        create: bool,
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Checks the rights for every kind of write. Called when the cache is built, with the table
    /// open: run writes that change nothing, such as a delete with a false condition.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`](bentocache_driver::ErrorKind::Denied) if a right is missing or the
    /// server is read-only: building the cache then fails.
    fn check_rights(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }

    /// The rows with these keys that have not expired, in any order.
    ///
    /// # Errors
    /// If the database fails.
    fn get(
        &self,
        keys: &[&str],
        now: i64,
    ) -> impl Future<Output = Result<Vec<(String, Bytes)>, DriverError>> + Send;

    /// Stores the rows, and replaces rows with the same keys. Use an upsert, so that a key never
    /// has two rows.
    ///
    /// # Errors
    /// If it is not certain that all rows were stored.
    fn set(&self, rows: &[Row<'_>]) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Stores the row if its key is missing or expired; returns whether it did.
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

    /// Gives the row this end, and keeps its value, unless it has expired; returns whether it is
    /// there. The default body deletes the row and inserts it again, so that a row that is deleted
    /// at that moment may come back.
    ///
    /// # Errors
    /// As `set`.
    fn touch(
        &self,
        key: &str,
        expires_at: Option<i64>,
        now: i64,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send {
        async move {
            let found = self.get(&[key], now).await?;
            let Some((_, value)) = found.into_iter().find(|(found, _)| found == key) else {
                return Ok(false);
            };
            if self.delete_if(key, &value, now).await? {
                return self.insert(Row { key, value, expires_at }, now).await.map(|_| true);
            }
            // A newer row has an end of its own.
            Ok(!self.get(&[key], now).await?.is_empty())
        }
    }

    /// Deletes the rows, expired or not, and returns how many of them had not expired.
    ///
    /// # Errors
    /// If it is not certain that all rows were deleted.
    fn delete(
        &self,
        keys: &[&str],
        now: i64,
    ) -> impl Future<Output = Result<u64, DriverError>> + Send;

    /// Deletes the row if its value is exactly this one and has not expired; returns whether it
    /// did.
    ///
    /// # Errors
    /// If the database fails.
    fn delete_if(
        &self,
        key: &str,
        value: &[u8],
        now: i64,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send;

    /// Deletes the row and returns its value, unless it has expired. Of two concurrent callers, one
    /// gets the value.
    ///
    /// # Errors
    /// If the database fails.
    fn pull(
        &self,
        key: &str,
        now: i64,
    ) -> impl Future<Output = Result<Option<Bytes>, DriverError>> + Send;

    /// Deletes the rows whose keys start with `prefix`; all rows if it is empty. Use the index:
    /// these keys are the range from `prefix` up to [`after_prefix`](crate::after_prefix). `LIKE`
    /// would treat `%` and `_` in the prefix as patterns.
    ///
    /// # Errors
    /// If it is not certain that all rows were deleted.
    fn clear(&self, prefix: &str) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// At most `limit` unexpired keys that start with `prefix` and come after `after`, if given, in
    /// byte order. Fewer than `limit` keys end the listing.
    ///
    /// # Errors
    /// If the database fails.
    fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: i64,
    ) -> impl Future<Output = Result<Vec<String>, DriverError>> + Send;

    /// Deletes expired rows and returns their number.
    ///
    /// # Errors
    /// If it could not check all rows.
    fn prune(&self, now: i64) -> impl Future<Output = Result<u64, DriverError>> + Send;

    /// The reason why statements wait, such as no free connection in the pool, if the library tells
    /// it.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Ends the adapter's own background work. Leave a pool of the application open.
    ///
    /// # Errors
    /// If something did not end in order; it is ended anyway.
    fn disconnect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }
}

/// The end of the range of keys that start with `prefix`: the first text after all of them in byte
/// order. `None` if there is none, as for the empty prefix.
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
        // Characters sort like their UTF-8 encoding. The surrogates in between are not characters.
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
