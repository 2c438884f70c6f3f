//! The health of a store.

use std::sync::Arc;

use bentocache_driver::NEVER;

use super::Engine;
use crate::bus::Bus;
use crate::stats::StoreHealth;

/// The limit of a round trip to L2 in ms, if calls of L2 have none.
const LONGEST: u64 = 5_000;

impl Engine {
    /// Makes a round trip to L2, and collects the state of everything else.
    pub(crate) async fn health(&self) -> StoreHealth {
        let is_open = self.check_open().is_ok();
        // The drivers of a closed store are closed, and those of a disabled one are never called.
        let is_used = is_open && self.enabled;
        let limit = match self.policy.l2_hard_timeout {
            NEVER => LONGEST,
            limit => limit,
        };
        let l2 = match self.l2.as_ref().filter(|_| is_used) {
            Some(l2) => Some(l2.health(limit).await),
            None => None,
        };
        let bus = |bus: &Arc<Bus>| bus.health();
        StoreHealth {
            store: self.name.clone(),
            is_open,
            tolerates_l2_failures: self.l2.is_none() || self.policy.suppress_l2_errors,
            l2,
            bus: self.bus.as_ref().filter(|_| is_used).map(bus),
        }
    }
}
