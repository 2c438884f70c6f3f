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
