//! The lock between processes: one of many nodes runs the factory of a key, and the others wait for
//! the value that it stores in L2.
//!
//! It saves work and nothing depends on it for correctness: when the lock service fails, every node
//! continues alone, and two concurrent factories are as harmless as without a lock.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bentocache_driver::{DriverError, DynLock, ErrorKind};
use tokio::sync::oneshot;

use crate::event::EventKind;
use crate::site::{Key, Site, chain};
use crate::stats::Counter;

/// The pause after a failure before the lock service is called again, in ms.
const LEFT_ALONE: u64 = 1_000;
/// The time limit of one call of the lock service. The call precedes every factory run.
const PATIENCE: Duration = Duration::from_millis(500);

pub(crate) struct Locks {
    site: Site,
    driver: Arc<dyn DynLock>,
    lease: Duration,
    /// The lock service is not called before this time.
    again_at: AtomicU64,
}

/// Which node may run the factory.
pub(crate) enum Leased {
    /// This node, while it holds the lease.
    Ours(Lease),
    /// Another node holds the lease.
    Taken,
    /// Every node: there is no lock, or it does not work.
    Open,
}

/// The lease of a key. It is renewed until this is dropped, and released then.
pub(crate) struct Lease(#[allow(dead_code, reason = "held for its drop")] oneshot::Sender<()>);

/// The task that renews and releases a lease.
type Keeper = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Locks {
    pub(crate) fn new(site: Site, driver: Arc<dyn DynLock>, lease: u64) -> Self {
        let lease = Duration::from_millis(lease);
        Self { site, driver, lease, again_at: AtomicU64::new(0) }
    }

    /// The driver, for its shutdown.
    pub(crate) fn driver(&self) -> &dyn DynLock {
        &*self.driver
    }

    /// Tries to take the key's lease. A task does it, which releases the lease if the caller is
    /// dropped meanwhile.
    pub(crate) async fn lease(self: &Arc<Self>, key: &Key, spawn: impl FnOnce(Keeper)) -> Leased {
        if self.site.clock.now() < self.again_at.load(Relaxed) {
            return Leased::Open;
        }
        let (lease, dropped) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        spawn(Box::pin(self.clone().acquire(key.clone(), tell, dropped)));
        match told.await {
            Ok(Ok(true)) => Leased::Ours(Lease(lease)),
            Ok(Ok(false)) => Leased::Taken,
            Ok(Err(error)) => {
                self.failed(error, "the lock failed; this node goes on without it");
                Leased::Open
            }
            // The store is being closed.
            Err(_) => Leased::Open,
        }
    }

    /// Acquires a lease and keeps it until it is dropped.
    async fn acquire(
        self: Arc<Self>,
        key: Key,
        tell: oneshot::Sender<Result<bool, DriverError>>,
        dropped: oneshot::Receiver<()>,
    ) {
        let token = format!("{:032x}", fastrand::u128(..));
        let acquired = bounded(self.driver.acquire(&key.full, &token, self.lease)).await;
        // After a failure the service may have granted the lease nevertheless; it is released at
        // once then.
        let (is_ours, may_be_ours) = (acquired.is_ok(), !matches!(acquired, Ok(false)));
        let _ = tell.send(acquired);
        if may_be_ours {
            self.keep(key, token, dropped, is_ours).await;
        }
    }

    fn failed(&self, error: DriverError, consequence: &'static str) {
        self.again_at.store(self.site.clock.now().saturating_add(LEFT_ALONE), Relaxed);
        tracing::warn!(store = %self.site.name, driver = self.driver.name(),
            error = %chain(&error), "{consequence}");
        self.site
            .record(Counter::LockFailures, || EventKind::LockFailed { error: Arc::new(error) });
    }

    /// Renews a lease until it is dropped, then releases it. If the lease may not be ours, the
    /// failure was reported before.
    async fn keep(
        self: Arc<Self>,
        key: Key,
        token: String,
        mut dropped: oneshot::Receiver<()>,
        is_ours: bool,
    ) {
        loop {
            tokio::select! {
                _ = &mut dropped => break,
                () = tokio::time::sleep(self.lease / 3) => {
                    match bounded(self.driver.renew(&key.full, &token, self.lease)).await {
                        Ok(true) => {}
                        // The lease expired, and another node may hold it now.
                        Ok(false) => return,
                        Err(error) => self.failed(error, "a lease could not be renewed"),
                    }
                }
            }
        }
        if let Err(error) = bounded(self.driver.release(&key.full, &token)).await
            && is_ours
        {
            self.failed(error, "a lease could not be released; it ends by itself");
        }
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, DriverError>>) -> Result<T, DriverError> {
    tokio::time::timeout(PATIENCE, call)
        .await
        .unwrap_or_else(|_| Err(DriverError::new(ErrorKind::Timeout, "the lock does not answer")))
}
