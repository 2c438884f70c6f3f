//! The health of stores: what readiness and liveness routes ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bentocache_driver::DriverError;

use super::BreakerState;

/// The health of all stores, from [`BentoCache::health`](crate::BentoCache::health).
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let cache = BentoCache::builder().store("m", store).build().await?;
/// let health = cache.health().await;
/// assert!(health.is_live() && health.is_ready() && !health.is_degraded());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Health {
    /// Each store, in the order of their names.
    pub stores: Vec<StoreHealth>,
}

/// The health of one store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreHealth {
    /// The name of the store.
    pub store: Arc<str>,
    /// Whether the store accepts calls: it was not disconnected, and its runtime has not ended.
    pub is_open: bool,
    /// Whether calls succeed while L2 fails: the store has no L2, or its option
    /// `suppress_l2_errors` is set.
    pub tolerates_l2_failures: bool,
    /// L2, if the store has one. L1 has no entry of its own: it is in this process and cannot fail.
    pub l2: Option<L2Health>,
    /// The bus, if the store has one.
    pub bus: Option<BusHealth>,
}

/// The health of an L2.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct L2Health {
    /// The driver's name.
    pub driver: &'static str,
    /// The failure of the round trip; `None` if L2 answered. In a store of several parts (the shards
    /// of a cluster): the failure of one of the parts that failed.
    pub error: Option<Arc<DriverError>>,
    /// How long the round trip took; the longest one of all parts.
    pub latency: Duration,
    /// The number of parts of the store that were asked; 1 in a store without parts.
    pub parts: usize,
    /// The number of parts that failed.
    pub failed_parts: usize,
    /// Since when L2 answers, or fails, as far as the calls of this process show.
    pub since: SystemTime,
    /// The circuit breaker after the round trip; the worst one of all parts. A successful round trip
    /// closes an open breaker.
    pub breaker: BreakerState,
    /// Failed changes that wait to be replayed.
    pub recovery_length: usize,
}

/// The health of a bus.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BusHealth {
    /// The driver's name.
    pub driver: &'static str,
    /// Whether messages of other processes arrive.
    pub is_linked: bool,
    /// Since when they arrive, or may be missed.
    pub since: SystemTime,
    /// Changed keys that the other processes have not been told about.
    pub outbox_length: usize,
    /// How long the oldest message has waited to be published.
    pub lag: Duration,
}

impl Health {
    /// Whether this process can go on, as [`BentoCache::is_live`](crate::BentoCache::is_live).
    pub fn is_live(&self) -> bool {
        self.stores.iter().all(|store| store.is_open)
    }

    /// Whether calls can succeed: each store is open, and its L2 answers or is not needed. For
    /// readiness routes.
    pub fn is_ready(&self) -> bool {
        self.stores.iter().all(StoreHealth::is_ready)
    }

    /// Whether something needs attention, although calls may succeed: see
    /// [`StoreHealth::is_degraded`].
    pub fn is_degraded(&self) -> bool {
        self.stores.iter().any(StoreHealth::is_degraded)
    }
}

impl StoreHealth {
    /// Whether calls can succeed: the store is open, and its L2 answers or is not needed.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) {
    /// if !cache.health().await.is_ready() {
    ///     println!("requests would fail");
    /// }
    /// # }
    /// ```
    pub fn is_ready(&self) -> bool {
        let answers = self.l2.as_ref().is_none_or(L2Health::is_reachable);
        self.is_open && (self.tolerates_l2_failures || answers)
    }

    /// Whether something needs attention: the store is closed, L2 fails or its breaker is not
    /// closed, the bus is down, or changes wait to be replayed.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) {
    /// let health = cache.health().await;
    /// if health.is_degraded() {
    ///     println!("{health:?}");
    /// }
    /// # }
    /// ```
    pub fn is_degraded(&self) -> bool {
        let l2 = |l2: &L2Health| {
            !l2.is_reachable() || l2.breaker > BreakerState::Closed || l2.recovery_length > 0
        };
        !self.is_open
            || self.l2.as_ref().is_some_and(l2)
            || self.bus.as_ref().is_some_and(|bus| !bus.is_linked)
    }
}

impl L2Health {
    /// Whether all parts of L2 answered.
    pub fn is_reachable(&self) -> bool {
        self.error.is_none()
    }
}

/// A state that is good or bad, and since when. Reading and confirming it is one load.
pub(crate) struct Since(AtomicU64);

impl Since {
    /// A state since this time, in ms since the epoch.
    pub(crate) fn new(is_good: bool, now: u64) -> Self {
        Self(AtomicU64::new(Self::packed(is_good, now)))
    }

    fn packed(is_good: bool, now: u64) -> u64 {
        now << 1 | u64::from(is_good)
    }

    /// Records the state. `now`, in ms since the epoch, is called only if it has changed.
    pub(crate) fn set(&self, is_good: bool, now: impl FnOnce() -> u64) {
        if self.0.load(Relaxed) & 1 != u64::from(is_good) {
            self.0.store(Self::packed(is_good, now()), Relaxed);
        }
    }

    /// When the state began.
    pub(crate) fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.load(Relaxed) >> 1)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_state_keeps_its_beginning_until_it_changes() {
        let ms = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let since = Since::new(true, 5);
        since.set(true, || 6);
        assert_eq!(since.time(), ms(5));
        since.set(false, || 7);
        since.set(false, || 8);
        assert_eq!(since.time(), ms(7));
        since.set(true, || 9);
        assert_eq!(since.time(), ms(9));
    }
}
