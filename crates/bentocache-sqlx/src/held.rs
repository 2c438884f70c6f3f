//! Pool connections with a running statement, and their cleanup when the caller stops waiting.

use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::ErrorKind;
use bentocache_sql::{Failure, Statement, WriteSlot};
use sqlx::pool::PoolConnection;
use sqlx::{Connection, Pool};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use crate::server::{Abandoned, Server};

/// How long the server may continue a statement that nobody waits for. Then the statement is
/// cancelled and its connection closed, because it would return to the pool only with the answer.
const ABANDONED: Duration = Duration::from_secs(5);
/// The number of attempts to cancel a statement.
const ATTEMPTS: u32 = 5;

/// A connection that returns to the pool when the statement has an answer.
pub(crate) struct Held<DB: Server> {
    connection: Option<PoolConnection<DB>>,
    /// The slot of a write. It is released with the connection, not before, because it counts busy
    /// connections.
    slot: Option<WriteSlot>,
    pool: Pool<DB>,
    /// The running statement, if the session is known.
    running: Option<Abandoned>,
}

impl<DB: Server> Held<DB> {
    pub(crate) fn new(
        pool: &Pool<DB>,
        connection: PoolConnection<DB>,
        slot: Option<WriteSlot>,
    ) -> Self {
        Self { connection: Some(connection), slot, pool: pool.clone(), running: None }
    }

    pub(crate) fn connection(&mut self) -> Result<&mut DB::Connection, Failure> {
        let connection = self.connection.as_deref_mut();
        connection.ok_or_else(|| Failure::new(ErrorKind::Closed, "the connection was released"))
    }

    /// Records the statement that runs from now on.
    pub(crate) fn runs(&mut self, statement: &Statement<'_>, session: Option<i64>) {
        let (sql, is_long) = (&statement.sql, statement.is_long);
        let running = |session| Abandoned { session, sql: Arc::clone(sql), is_long };
        self.running = session.map(running);
    }

    /// Returns the connection to the pool, or closes it; the write slot follows.
    pub(crate) fn release(mut self, reuse: bool) -> Option<WriteSlot> {
        if let Some(connection) = self.connection.take()
            && !reuse
        {
            drop(connection.detach());
        }
        self.slot.take()
    }
}

impl<DB: Server> Drop for Held<DB> {
    fn drop(&mut self) {
        // Still held: the caller stopped waiting in the middle of a statement.
        let Some(mut connection) = self.connection.take() else { return };
        let (slot, running, pool) = (self.slot.take(), self.running.take(), self.pool.clone());
        let Ok(runtime) = Handle::try_current() else {
            // Returning it to the pool would need a task.
            return drop(connection.detach());
        };
        runtime.spawn(async move {
            match timeout(ABANDONED, connection.ping()).await {
                Ok(Ok(())) => drop(connection),
                _ => {
                    // This frees its place in the pool for the connection that cancels the
                    // statement.
                    let connection = connection.detach();
                    if let Some(running) = running {
                        cancel(&pool, &running).await;
                    }
                    drop(connection);
                }
            }
            drop(slot);
        });
    }
}

/// Cancels a statement that would wait on the server as long as a lock is held.
async fn cancel<DB: Server>(pool: &Pool<DB>, running: &Abandoned) {
    for _ in 0..ATTEMPTS {
        match timeout(ABANDONED, DB::cancel(pool, running)).await {
            Ok(Ok(())) | Ok(Err(sqlx::Error::PoolClosed)) => return,
            Ok(Err(error)) => tracing::debug!(%error, "cannot cancel an abandoned statement yet"),
            Err(_) => tracing::debug!("cannot cancel an abandoned statement yet"),
        }
        sleep(Duration::from_secs(1)).await;
    }
}
