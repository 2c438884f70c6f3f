//! Statistics and health of a store: the counters, and the snapshots that users read.
//!
//! - [`counters`]: counts without contention
//! - [`health`]: the health of stores
//! - [`inspection`]: what is known of one entry

mod counters;
mod health;
mod inspection;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::counters::{Counter, Counters};
pub(crate) use self::health::Since;
pub use self::health::{BusHealth, Health, L2Health, StoreHealth};
pub use self::inspection::{EntryState, InspectedEntry, InspectedTag, Inspection};

/// A snapshot of the counters and gauges of one store, since the cache was built.
///
/// Counters only grow; a rate is the difference of two snapshots. Gauges, which are named as such,
/// are the values at this moment.
///
/// One call of a read operation is one hit or one miss for each of its keys: `hits()` is the sum of
/// [`l1_hits`](Self::l1_hits), [`l2_hits`](Self::l2_hits) and [`graced_hits`](Self::graced_hits). A
/// read that returns an error of the cache itself (a closed cache, an invalid option, a failure of L2
/// that is not suppressed) is neither. `has`, `missing`, and lookups of tags count nothing.
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let cache = BentoCache::builder().store("m", store).build().await?;
/// cache.set("a", 1).await?;
/// cache.get::<i32>("a").await?;
/// cache.get::<i32>("b").await?;
/// let stats = cache.stats();
/// assert_eq!((stats.l1_hits, stats.misses, stats.writes), (1, 1, 1));
/// assert_eq!(stats.hit_ratio(), Some(0.5));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stats {
    /// The name of the store.
    pub store: Arc<str>,
    /// Reads that found a fresh value in L1.
    pub l1_hits: u64,
    /// Reads that found a fresh value in L2.
    pub l2_hits: u64,
    /// Reads that were served a stale value of either tier.
    pub graced_hits: u64,
    /// Reads that found no value. The caller of a `get_or_set` got the value of the factory, or an
    /// error.
    pub misses: u64,
    /// Keys whose value was stored, by a call or from a factory.
    pub writes: u64,
    /// Keys that calls deleted, `pull` included, whether they existed or not.
    pub deletes: u64,
    /// Keys that calls made stale.
    pub expirations: u64,
    /// Values to which calls gave another ttl.
    pub touches: u64,
    /// Clears of the store or of a namespace.
    pub clears: u64,
    /// Tags that calls invalidated.
    pub tag_invalidations: u64,
    /// Stored values that could not be decoded. The read counts as a miss.
    pub decode_failures: u64,
    /// Runs of factories that ended, however many keys a run was for.
    pub factory_runs: u64,
    /// Runs of factories that failed, panicked or exceeded the `factory_timeout`. Skips are no
    /// failures.
    pub factory_failures: u64,
    /// The time that all runs of factories took together, with the lookup of their tags.
    pub factory_time: Duration,
    /// Reads that joined the flight of another call instead of starting one.
    pub coalesced: u64,
    /// Reads that were served a stale value because of the soft timeout. A timeout of 0 (stale while
    /// revalidate) does not count.
    pub soft_timeouts: u64,
    /// Reads that ended with an error because of the hard timeout.
    pub hard_timeouts: u64,
    /// How often a read stopped waiting for another call's flight because of the lock timeout.
    pub lock_timeouts: u64,
    /// Failed calls of the lock between processes.
    pub lock_failures: u64,
    /// Gauge: keys whose value is being looked up or produced for `get_or_set`, in the background
    /// too.
    pub flights: usize,
    /// Gauge: factories that wait because `max_factories` of them run. A factory for many keys is
    /// one.
    pub factories_waiting: usize,
    /// L1, if the store has one.
    pub l1: Option<L1Stats>,
    /// L2, if the store has one.
    pub l2: Option<L2Stats>,
    /// The bus, if the store has one.
    pub bus: Option<BusStats>,
}

/// L1 in the [`Stats`] of a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct L1Stats {
    /// Gauge: the number of entries, with stale ones and with dead ones that are not reclaimed yet.
    pub entries: usize,
    /// The largest number of entries; `None` if the driver has no such limit.
    pub max_entries: Option<u64>,
    /// Gauge: the size of the entries in bytes, as the driver counts it; `None` if it does not
    /// measure sizes. `Memory` measures them if it has a `max_size`.
    pub bytes: Option<u64>,
    /// The largest size of all entries in bytes; `None` if the driver has no such limit.
    pub max_bytes: Option<u64>,
    /// Entries that were removed to make room for others.
    pub evictions: u64,
    /// Values that were not stored because they are larger than the limit for one entry.
    pub refusals: u64,
}

/// L2 in the [`Stats`] of a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct L2Stats {
    /// Calls of the driver that ended, with an answer, an error or a timeout. A call for many keys
    /// is one call, or one for each part of the store (the shards of a cluster).
    pub calls: u64,
    /// Calls that ended with an error or a timeout.
    pub failures: u64,
    /// Calls that were not made: the breaker was open, or the operation had no time left.
    pub skipped: u64,
    /// The time that all calls took together. Calls overlap, so it may exceed the elapsed time.
    pub time: Duration,
    /// Gauge: the circuit breaker. In a store of several parts: the worst of theirs.
    pub breaker: BreakerState,
    /// How often a circuit breaker opened.
    pub breaker_openings: u64,
    /// Gauge: writes under way whose callers did not wait (`l2_write_in_background`).
    pub background_writes: usize,
    /// Gauge: failed changes that wait to be replayed.
    pub recovery_length: usize,
    /// Failed changes that were queued. A later change of a key takes the place of an earlier one
    /// and counts again.
    pub recovery_queued: u64,
    /// Queued changes that were replayed, or that a later change made unnecessary.
    pub recovery_done: u64,
    /// Failed changes that were given up.
    pub recovery_dropped: u64,
}

/// The bus in the [`Stats`] of a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BusStats {
    /// Gauge: whether messages of other processes arrive.
    pub is_linked: bool,
    /// How often the link was lost.
    pub losses: u64,
    /// Messages that were published. A message has up to 1,000 keys.
    pub published: u64,
    /// Messages of other processes that arrived.
    pub received: u64,
    /// Messages that could not be decoded.
    pub rejected: u64,
    /// Gauge: changed keys that the other processes have not been told about.
    pub outbox_length: usize,
    /// Gauge: how long the oldest message has waited to be published.
    pub lag: Duration,
}

/// The state of a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum BreakerState {
    /// The store has no breaker.
    Off,
    /// All calls are made.
    Closed,
    /// One call at a time is made, to find out whether L2 works again.
    HalfOpen,
    /// No calls are made for a while.
    Open,
}

impl BreakerState {
    /// `off`, `closed`, `half-open` or `open`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

impl Stats {
    /// Reads that found a value: fresh ones of both tiers, and stale ones.
    pub fn hits(&self) -> u64 {
        self.l1_hits + self.l2_hits + self.graced_hits
    }

    /// All reads: hits and misses.
    pub fn reads(&self) -> u64 {
        self.hits() + self.misses
    }

    /// The share of the reads that found a value, from 0 to 1. `None` if there was no read.
    pub fn hit_ratio(&self) -> Option<f64> {
        let reads = self.reads();
        (reads > 0).then(|| self.hits() as f64 / reads as f64)
    }

    /// The mean time of a factory run. `None` if no factory has run.
    pub fn mean_factory_time(&self) -> Option<Duration> {
        mean(self.factory_time, self.factory_runs)
    }
}

impl L2Stats {
    /// The mean time of a call. `None` if there was no call.
    pub fn mean_time(&self) -> Option<Duration> {
        mean(self.time, self.calls)
    }
}

fn mean(total: Duration, count: u64) -> Option<Duration> {
    (count > 0).then(|| total.div_f64(count as f64))
}

impl Stats {
    /// The counters of a store, without its parts.
    pub(crate) fn new(store: Arc<str>, counters: &Counters, flights: usize) -> Self {
        let sum = |counter| counters.sum(counter);
        Self {
            store,
            l1_hits: sum(Counter::L1Hits),
            l2_hits: sum(Counter::L2Hits),
            graced_hits: sum(Counter::GracedHits),
            misses: sum(Counter::Misses),
            writes: sum(Counter::Writes),
            deletes: sum(Counter::Deletes),
            expirations: sum(Counter::Expirations),
            touches: sum(Counter::Touches),
            clears: sum(Counter::Clears),
            tag_invalidations: sum(Counter::TagInvalidations),
            decode_failures: sum(Counter::DecodeFailures),
            factory_runs: sum(Counter::FactoryRuns),
            factory_failures: sum(Counter::FactoryFailures),
            factory_time: Duration::from_nanos(sum(Counter::FactoryNanos)),
            coalesced: sum(Counter::Coalesced),
            soft_timeouts: sum(Counter::SoftTimeouts),
            hard_timeouts: sum(Counter::HardTimeouts),
            lock_timeouts: sum(Counter::LockTimeouts),
            lock_failures: sum(Counter::LockFailures),
            flights,
            factories_waiting: 0,
            l1: None,
            l2: None,
            bus: None,
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn ratios_and_means_of_nothing_are_none() {
        let counters = Counters::default();
        let stats = || Stats::new("s".into(), &counters, 0);
        assert_eq!((stats().hit_ratio(), stats().mean_factory_time()), (None, None));
        for (counter, by) in [
            (Counter::L1Hits, 1),
            (Counter::L2Hits, 1),
            (Counter::GracedHits, 1),
            (Counter::Misses, 1),
            (Counter::FactoryRuns, 2),
            (Counter::FactoryNanos, 3_000),
        ] {
            counters.add(counter, by);
        }
        assert_eq!((stats().reads(), stats().hit_ratio()), (4, Some(0.75)));
        assert_eq!(stats().mean_factory_time(), Some(Duration::from_nanos(1_500)));
    }
}
