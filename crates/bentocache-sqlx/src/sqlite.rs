//! A SQLite file with settings for a cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bentocache_driver::{ByteSize, OptionErrors};
use bentocache_sql::{DatabaseDriver, SqlAdapter};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::Sqlx;

/// L2 on SQLite.
pub type SqliteDriver = DatabaseDriver<SqlAdapter<Sqlx<sqlx::Sqlite>>>;

/// How long a writer waits for another writer of this or another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent readers. Writers take turns anyway.
const CONNECTIONS: u32 = 4;
/// The size of a page, in bytes.
const PAGE: u64 = 4_096;
/// The smallest limit of a file: it must hold the table and some rows.
const LEAST: u64 = 256 << 10;

/// L2 in a SQLite file of its own, which the first use creates; its directory must exist. Any
/// number of processes of one machine may use it.
///
/// The file is in WAL mode, so that readers and the one writer do not wait for each other, with
/// `synchronous = normal`: a power failure may lose the last writes, but does not damage the file.
/// A writer waits at most 5 seconds for another one. For other settings make a pool, and use
/// [`sqlite`](crate::sqlite()).
///
/// On a full disk, writes are [`ErrorKind::Full`](bentocache_driver::ErrorKind::Full). A delete or
/// a clear that has no room empties the whole file instead, so that no invalidation is lost.
///
/// Call it inside of a Tokio runtime. An invalid path fails the build of the cache. [`SqliteFile`]
/// has an option for the size of the file.
pub fn open_sqlite(path: impl AsRef<Path>) -> SqliteDriver {
    SqliteFile::new(path).open()
}

/// L2 in a SQLite file, with options for the file; [`open_sqlite`] lists its guarantees.
///
/// ```no_run
/// use bentocache::sqlx::SqliteFile;
///
/// let table = SqliteFile::new("./cache.db").max_size("1gb").open();
/// # drop(table);
/// ```
#[derive(Debug, Clone)]
pub struct SqliteFile {
    path: PathBuf,
    max_size: Option<u64>,
    errors: OptionErrors,
}

impl SqliteFile {
    /// A file without a size limit.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        Self { path, max_size: None, errors: OptionErrors::default() }
    }

    /// The largest size of the file: a number of bytes or a text such as `"1gb"`. Default: no
    /// limit; at least 256 KiB. SQLite itself enforces the limit; when a write reaches it, the
    /// oldest rows are deleted. The write-ahead log takes some MiB in addition. A file that is
    /// larger already keeps its size, and its oldest rows are replaced. A value may take a quarter
    /// of the limit. An invalid text fails the build of the cache, or the first call.
    #[must_use]
    pub fn max_size(mut self, size: impl Into<ByteSize>) -> Self {
        let bytes = size.into().bytes("max_size").map(|bytes| Some(bytes.max(LEAST)));
        self.errors.set(&mut self.max_size, bytes);
        self
    }

    /// The L2 driver. Call it inside of a Tokio runtime.
    pub fn open(self) -> SqliteDriver {
        let mut options = SqliteConnectOptions::new()
            .filename(self.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT);
        if let Some(bytes) = self.max_size {
            let pages = (bytes / PAGE).to_string();
            options = options.pragma("page_size", PAGE.to_string()).pragma("max_page_count", pages);
        }
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(options);
        let database = Sqlx::own(pool).evicting(self.max_size.is_some());
        let driver = DatabaseDriver::new(SqlAdapter::new(database)).option_errors(self.errors);
        match self.max_size.and_then(|bytes| usize::try_from(bytes / 4).ok()) {
            Some(bytes) => driver.max_value(bytes),
            None => driver,
        }
    }
}

#[cfg(test)]
mod tests {
    use bentocache_driver::{ErrorKind, L2Driver};
    use bentocache_sql::Dialect;

    use super::*;

    #[tokio::test]
    async fn the_largest_size_may_be_a_text() {
        assert_eq!(SqliteFile::new("a").max_size("1gb").max_size, Some(1 << 30));
        assert_eq!(SqliteFile::new("a").max_size(1 << 20).max_size, Some(1 << 20));

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache.db");
        let driver = SqliteFile::new(&path).max_size("ten").open();
        for error in [driver.connect().await.unwrap_err(), driver.get("a").await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("`max_size`: cannot use \"ten\""), "{error}");
        }
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_delete_on_a_full_disk_empties_the_file_of_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let pool = SqlitePoolOptions::new().connect_lazy_with(options);
        let driver = DatabaseDriver::new(SqlAdapter::new(Sqlx::new(pool.clone())));
        driver.set("a", "1".into(), None).await.unwrap();

        let full = || Dialect::Sqlite.failure("13", "database or disk is full");
        // The rest of the file belongs to the application.
        let failure = Sqlx::new(pool.clone()).emptied(full());
        assert_eq!(failure.kind(), ErrorKind::Full);
        assert_eq!(driver.get("a").await.unwrap(), Some("1".into()));

        let failure = Sqlx::own(pool).emptied(full());
        assert!(failure.is_missing_table());
        assert!(!path.exists());
        assert_eq!(driver.get("a").await.unwrap(), None, "the file is made again");
        driver.set("a", "2".into(), None).await.unwrap();
        assert_eq!(driver.get("a").await.unwrap(), Some("2".into()));
    }
}
