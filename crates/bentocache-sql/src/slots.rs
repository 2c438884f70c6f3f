//! The share of a pool's connections for writes.

use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::Failure;

/// Limits the connections of a pool that the cache's writes may hold at once, for a
/// [`Database`](crate::Database): half of them, so that writes which wait for a lock leave the
/// other half to reads and to the application.
///
/// ```
/// use std::time::Duration;
///
/// use bentocache::sql::WriteSlots;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::sql::Failure> {
/// let slots = WriteSlots::of(3);
/// let [one, _two] = [slots.take(Duration::ZERO).await?, slots.take(Duration::ZERO).await?];
/// assert!(slots.take(Duration::ZERO).await.is_err());
/// drop(one);
/// slots.take(Duration::ZERO).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct WriteSlots(Arc<Semaphore>);

/// A slot for a write. Keep it until the connection is free again, also if the caller has stopped
/// waiting.
#[derive(Debug)]
pub struct WriteSlot {
    _permit: OwnedSemaphorePermit,
}

impl WriteSlots {
    /// The reason why a write waits for a slot.
    pub const EXHAUSTED: &str = "writes of the cache hold all connections that they may hold, and \
                                 the database finishes none of them: look for a lock on the table, \
                                 or let the pool have more connections";

    /// Half of this many connections, rounded up; one of two; the only one.
    pub fn of(connections: usize) -> Self {
        let most = connections.div_ceil(2).min(connections.saturating_sub(1)).max(1);
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Waits for a free slot.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if there is none within this time.
    pub async fn take(&self, patience: Duration) -> Result<WriteSlot, Failure> {
        match timeout(patience, Arc::clone(&self.0).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(WriteSlot { _permit: permit }),
            // The semaphore is never closed.
            Ok(Err(_)) => Err(Failure::new(ErrorKind::Closed, "the driver was dropped")),
            Err(_) => Err(Failure::new(ErrorKind::Timeout, Self::EXHAUSTED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_hold_half_of_the_connections_and_never_all() {
        for (connections, most) in [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (10, 5)] {
            assert_eq!(WriteSlots::of(connections).0.available_permits(), most, "{connections}");
        }
    }
}
