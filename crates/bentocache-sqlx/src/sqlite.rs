//! A SQLite file, opened as a cache should be.

use std::path::Path;
use std::time::Duration;

use bentocache_sql::{DatabaseDriver, SqlAdapter};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::{SqliteDriver, Sqlx};

/// How long a writer waits for another one, of this or another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Readers at the same time. Writers take turns anyway.
const CONNECTIONS: u32 = 4;

/// The second tier in a SQLite file of its own, which is made when it is first needed; its
/// directory must be there. Any number of processes of one machine may use it.
///
/// The file is in WAL mode, so that readers and the one writer do not wait for each other, with
/// `synchronous = normal`: a power failure may undo the last writes, but does not damage the file.
/// A writer waits at most 5 seconds for another. For other settings make a pool, and use
/// [`sqlite`](crate::sqlite()).
///
/// When the disk is full, writes are [`ErrorKind::Full`](bentocache_driver::ErrorKind::Full). A delete
/// or a clear for which there is no room either empties the whole file, so that no invalidation is
/// lost.
///
/// Call it inside of a Tokio runtime. What is wrong with the path is an error of building the
/// cache.
pub fn open_sqlite(path: impl AsRef<Path>) -> SqliteDriver {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT);
    let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(options);
    DatabaseDriver::new(SqlAdapter::new(Sqlx::own(pool)))
}

#[cfg(test)]
mod tests {
    use bentocache_driver::{ErrorKind, L2Driver};
    use bentocache_sql::Dialect;

    use super::*;

    #[tokio::test]
    async fn a_delete_on_a_full_disk_empties_the_file_of_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let pool = SqlitePoolOptions::new().connect_lazy_with(options);
        let driver = DatabaseDriver::new(SqlAdapter::new(Sqlx::new(pool.clone())));
        driver.set("a", "1".into(), None).await.unwrap();

        let full = || Dialect::Sqlite.failure("13", "database or disk is full");
        // Whatever else is in it is the application's.
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
