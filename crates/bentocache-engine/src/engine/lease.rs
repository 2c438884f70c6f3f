//! The lock between processes: one of many nodes runs the factory of a key, and the others wait for
//! the value that it stores in L2.
//!
//! It saves work and nothing depends on it for correctness: when the lock service fails, every node
//! continues alone, and two concurrent factories are as harmless as without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bentocache_driver::{DriverError, DynLock};
use tokio::sync::oneshot;

use super::flight::Flight;
use super::{Engine, Key, chain};
use crate::event::EventKind;
use crate::options::Policy;
use crate::stats::Counter;

/// The pause after a failure before the lock service is called again, in ms.
const LEFT_ALONE: u64 = 1_000;
/// The time limit of one call of the lock service. The call precedes every factory run.
const PATIENCE: Duration = Duration::from_millis(500);

pub(super) struct Locks {
    pub(super) driver: Arc<dyn DynLock>,
    lease: Duration,
    /// The lock service is not called before this time.
    again_at: AtomicU64,
}

/// Which node may run the factory.
pub(super) enum Leased {
    /// This node, while the flight holds the lease.
    Ours,
    /// Another node holds the lease.
    Taken,
    /// Every node: there is no lock, or it does not work.
    Open,
}

/// The lease of a key. It is renewed until this is dropped, and released then.
pub(super) struct Lease(#[allow(dead_code, reason = "held for its drop")] oneshot::Sender<()>);

impl Locks {
    pub(super) fn new(driver: Arc<dyn DynLock>, lease: u64) -> Self {
        let lease = Duration::from_millis(lease);
        Self { driver, lease, again_at: AtomicU64::new(0) }
    }
}

impl Engine {
    /// Tries to take the key's lease for the flight.
    pub(super) async fn lease(
        self: &Arc<Self>,
        key: &Key,
        flight: &Flight,
        policy: &Policy,
    ) -> Leased {
        // A call that needs its own value cannot use the value of another node, and without an L2
        // no call could.
        let shares = self.l2.is_some()
            && !(policy.force_fresh || policy.skip_l2_read || policy.skip_l2_write);
        let Some(locks) = self.locks.as_ref().filter(|_| shares) else { return Leased::Open };
        if self.clock.now() < locks.again_at.load(Relaxed) {
            return Leased::Open;
        }
        let token = format!("{:032x}", fastrand::u128(..));
        let acquired = bounded(locks.driver.acquire(&key.full, &token, locks.lease)).await;
        if matches!(acquired, Ok(false)) {
            return Leased::Taken;
        }
        let (lease, dropped) = oneshot::channel();
        // After a failure the service may have granted the lease nevertheless; it is released at
        // once then.
        let keeps = self.clone().keep_lease(key.clone(), token, dropped, acquired.is_ok());
        self.spawn(keeps);
        match acquired {
            Ok(_) => {
                flight.hold(Lease(lease));
                Leased::Ours
            }
            Err(error) => {
                self.lock_failed(locks, error, "the lock failed; this node goes on without it");
                Leased::Open
            }
        }
    }

    fn lock_failed(&self, locks: &Locks, error: DriverError, consequence: &'static str) {
        locks.again_at.store(self.clock.now().saturating_add(LEFT_ALONE), Relaxed);
        tracing::warn!(store = %self.name, driver = locks.driver.name(),
            error = %chain(&error), "{consequence}");
        self.record(Counter::LockFailures, || EventKind::LockFailed { error: Arc::new(error) });
    }

    /// Renews a lease until it is dropped, then releases it. If the lease may not be ours, the
    /// failure was reported before.
    async fn keep_lease(
        self: Arc<Self>,
        key: Key,
        token: String,
        mut dropped: oneshot::Receiver<()>,
        is_ours: bool,
    ) {
        let Some(locks) = &self.locks else { return };
        loop {
            tokio::select! {
                _ = &mut dropped => break,
                () = tokio::time::sleep(locks.lease / 3) => {
                    let renewed = locks.driver.renew(&key.full, &token, locks.lease);
                    match bounded(renewed).await {
                        Ok(true) => {}
                        // The lease expired, and another node may hold it now.
                        Ok(false) => return,
                        Err(error) => self.lock_failed(locks, error, "a lease could not be renewed"),
                    }
                }
            }
        }
        if let Err(error) = bounded(locks.driver.release(&key.full, &token)).await
            && is_ours
        {
            self.lock_failed(locks, error, "a lease could not be released; it ends by itself");
        }
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, DriverError>>) -> Result<T, DriverError> {
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| {
        Err(DriverError::new(bentocache_driver::ErrorKind::Timeout, "the lock does not answer"))
    })
}
