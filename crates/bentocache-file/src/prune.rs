//! Pruning in the background.

use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::DriverError;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::dir::Dir;
use crate::error;

/// The running task. Dropping it ends the task soon; [`stop`](Pruning::stop) waits for the end.
#[derive(Debug)]
pub(crate) struct Pruning {
    task: JoinHandle<()>,
    /// The task runs while this sender exists.
    alive: watch::Sender<()>,
}

impl Pruning {
    pub(crate) fn start(dir: Arc<Dir>, interval: Duration) -> Result<Self, DriverError> {
        let runtime = Handle::try_current().map_err(error::no_runtime)?;
        let (alive, ended) = watch::channel(());
        Ok(Self { task: runtime.spawn(prune_every(interval, dir, ended)), alive })
    }

    pub(crate) async fn stop(self) -> Result<(), DriverError> {
        let Self { task, alive } = self;
        drop(alive);
        task.await.map_err(error::unfinished)
    }
}

async fn prune_every(interval: Duration, dir: Arc<Dir>, mut ended: watch::Receiver<()>) {
    // Nothing is ever sent: the wait ends with the interval or with the sender.
    while tokio::time::timeout(interval, ended.changed()).await.is_err() {
        let (dir, ended) = (Arc::clone(&dir), ended.clone());
        let pruned =
            tokio::task::spawn_blocking(move || dir.prune(|| ended.has_changed().is_err())).await;
        match pruned {
            Ok(Ok(expired)) => tracing::debug!(expired, "pruned the file cache"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot prune the file cache"),
            // The runtime is shutting down.
            Err(_) => return,
        }
    }
}
