//! What a library for databases must be able to do.

use std::future::Future;

use crate::{Dialect, Failure, Rows, Statement};

/// Runs statements on PostgreSQL, MySQL or SQLite through some library, for
/// [`SqlAdapter`](crate::SqlAdapter). It is all that an adapter for a library needs to have.
///
/// Each statement is a transaction of its own and may come over any connection of a pool. Rows
/// have two columns: the first is text, or bytes that are UTF-8 in MySQL; the second is bytes.
/// Neither is null.
pub trait Database: Send + Sync + 'static {
    /// Whose SQL it takes.
    fn dialect(&self) -> Dialect;

    /// Runs a statement and returns how many rows it inserted, deleted, or found to update.
    ///
    /// # Errors
    /// When the database does not answer, or with an error.
    fn execute(
        &self,
        statement: &Statement<'_>,
    ) -> impl Future<Output = Result<u64, Failure>> + Send;

    /// Runs a statement and returns its rows.
    ///
    /// # Errors
    /// As `execute`.
    fn query(
        &self,
        statement: &Statement<'_>,
    ) -> impl Future<Output = Result<Rows, Failure>> + Send;

    /// Whether the oldest rows make room when the database is full; no by default. SQLite only.
    fn evicts(&self) -> bool {
        false
    }

    /// What statements wait for, such as a free connection of the pool, where the library can tell.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Closes what is not the application's own.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}
