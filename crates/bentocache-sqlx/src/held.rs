//! Connections of a pool while a statement runs, and what becomes of them when its caller gives up.

use std::time::Duration;

use bentocache_driver::ErrorKind;
use bentocache_sql::Failure;
use sqlx::pool::PoolConnection;
use sqlx::{Connection, Database};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// How long the server may go on with a statement that nobody waits for. After that its connection
/// is closed, because the pool would have it back only with the answer.
const ABANDONED: Duration = Duration::from_secs(5);

/// A connection that is given back when the statement has an answer.
pub(crate) struct Held<DB: Database> {
    connection: Option<PoolConnection<DB>>,
    /// Of a write: given back with the connection, and not before, as it counts those that are busy.
    permit: Option<OwnedSemaphorePermit>,
}

impl<DB: Database> Held<DB> {
    pub(crate) fn new(
        connection: PoolConnection<DB>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { connection: Some(connection), permit }
    }

    pub(crate) fn connection(&mut self) -> Result<&mut DB::Connection, Failure> {
        let connection = self.connection.as_deref_mut();
        connection.ok_or_else(|| Failure::new(ErrorKind::Closed, "the connection was released"))
    }

    /// Gives the connection back, or closes it.
    pub(crate) fn release(mut self, reuse: bool) {
        if let Some(connection) = self.connection.take()
            && !reuse
        {
            drop(connection.detach());
        }
    }
}

impl<DB: Database> Drop for Held<DB> {
    fn drop(&mut self) {
        // Not released: the caller has given up in the middle of a statement.
        let Some(mut connection) = self.connection.take() else { return };
        let permit = self.permit.take();
        let Ok(runtime) = Handle::try_current() else {
            // To give it back would take a task.
            return drop(connection.detach());
        };
        runtime.spawn(async move {
            match timeout(ABANDONED, connection.ping()).await {
                Ok(Ok(())) => drop(connection),
                _ => drop(connection.detach()),
            }
            drop(permit);
        });
    }
}
