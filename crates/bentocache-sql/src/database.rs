//! The contract for database libraries.

use std::future::Future;

use crate::{Dialect, Failure, Rows, Statement};

/// Runs statements on PostgreSQL, MySQL or SQLite through a library, for
/// [`SqlAdapter`](crate::SqlAdapter). An adapter for a library needs nothing else.
///
/// Each statement is a transaction of its own and may use any connection of a pool. Rows have two
/// columns: the first is text, or UTF-8 bytes in MySQL; the second is bytes. Neither is null.
pub trait Database: Send + Sync + 'static {
    /// The SQL dialect.
    fn dialect(&self) -> Dialect;

    /// Runs a statement and returns the number of rows that it inserted, deleted, or matched for an
    /// update.
    ///
    /// # Errors
    /// If the database does not answer or answers with an error.
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

    /// Whether the oldest rows are evicted when the database is full; default no. SQLite only.
    fn evicts(&self) -> bool {
        false
    }

    /// The reason why statements wait, such as no free connection in the pool, if the library tells
    /// it.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Closes resources that do not belong to the application.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}
