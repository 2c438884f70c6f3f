//! A driver that leaves all it can to the contract's default bodies passes the suite. Its clock is
//! one of whole seconds, as that of some services is.

use std::time::{Duration, Instant};

use bentocache_driver::{Capabilities, DriverError, L2Driver};
use bentocache_testkit::MapL2;
use bytes::Bytes;

struct Plain {
    map: MapL2,
    clock: Instant,
}

impl L2Driver for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_ttl_precision(Duration::from_secs(1))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.map.get(key).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        // The end is rounded up to a whole second of the clock, so that nothing dies early.
        let now = self.clock.elapsed();
        let end = ttl.and_then(|ttl| now.checked_add(ttl)).and_then(|end| {
            let seconds = end.as_secs().checked_add(u64::from(end.subsec_nanos() > 0));
            seconds.map(Duration::from_secs)
        });
        self.map.set(key, value, end.map(|end| end.saturating_sub(now))).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.map.delete(keys).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.map.clear(prefix).await
    }
}

bentocache_testkit::l2_suite! {
    #[cfg(not(miri))]
    mod plain;
    open = {
        let (map, clock) = (MapL2::new(), Instant::now());
        async move || Plain { map: map.clone(), clock }
    },
    without = [atomic_pull, atomic_compare, keys, prune, fine_ttl, link],
}
