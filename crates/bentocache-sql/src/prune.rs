//! Pruning in the background.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::DatabaseAdapter;
use crate::access::Access;
use crate::clock::now;

/// The running task. Dropping it ends the task at its next `await`.
pub(crate) struct Pruning(JoinHandle<()>);

impl Pruning {
    pub(crate) fn start<A: DatabaseAdapter>(access: Access<A>, interval: Duration) -> Self {
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let pruned = async { access.open().await?.prune(now()).await };
                let table = &access.options.table_name;
                match pruned.await {
                    Ok(rows) => tracing::debug!(rows, table, "pruned a cache table"),
                    Err(error) => tracing::warn!(%error, table, "cannot prune a cache table"),
                }
            }
        }))
    }
}

impl Drop for Pruning {
    fn drop(&mut self) {
        self.0.abort();
    }
}
