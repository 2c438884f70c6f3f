//! The merged options of a call.

use std::time::Duration;

use bentocache_driver::NEVER;
use tokio::time::Instant;

/// All options of a call, merged once per store and then changed by the call's setters. Times are
/// milliseconds; [`NEVER`] is no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) ttl: u64,
    pub(crate) l1_ttl: u64,
    /// Limits the fresh and the stale time together.
    pub(crate) l2_ttl: u64,
    /// 0 is off.
    pub(crate) grace: u64,
    pub(crate) grace_backoff: u64,
    pub(crate) timeout: u64,
    pub(crate) hard_timeout: u64,
    pub(crate) lock_timeout: u64,
    pub(crate) factory_timeout: u64,
    pub(crate) l2_soft_timeout: u64,
    pub(crate) l2_hard_timeout: u64,
    /// 0 is off.
    pub(crate) early_refresh: f32,
    pub(crate) jitter: u64,
    /// [`NEVER`] is off.
    pub(crate) sliding: u64,
    pub(crate) tag_ttl: u64,
    pub(crate) suppress_l2_errors: bool,
    pub(crate) announce_fills: bool,
    pub(crate) force_fresh: bool,
    pub(crate) skip_l2_write: bool,
    pub(crate) skip_l2_read: bool,
    pub(crate) skip_l1_read: bool,
    pub(crate) skip_l1_write: bool,
    pub(crate) skip_bus_notify: bool,
    pub(crate) l2_write_in_background: bool,
    /// The start of the part of the call whose L2 calls share one limit.
    pub(crate) l2_since: Option<Instant>,
}

impl Policy {
    /// The defaults.
    pub(crate) fn new(has_l1: bool) -> Self {
        const MINUTE: u64 = 60_000;
        const DAY: u64 = 24 * 60 * MINUTE;
        Self {
            ttl: 30 * MINUTE,
            l1_ttl: NEVER,
            l2_ttl: NEVER,
            grace: 0,
            grace_backoff: 10_000,
            timeout: 0,
            hard_timeout: NEVER,
            lock_timeout: NEVER,
            factory_timeout: NEVER,
            l2_soft_timeout: NEVER,
            l2_hard_timeout: 1_000,
            early_refresh: 0.0,
            jitter: 0,
            sliding: NEVER,
            tag_ttl: 30 * DAY,
            suppress_l2_errors: has_l1,
            announce_fills: false,
            force_fresh: false,
            skip_l2_write: false,
            skip_l2_read: false,
            skip_l1_read: false,
            skip_l1_write: false,
            skip_bus_notify: false,
            l2_write_in_background: false,
            l2_since: None,
        }
    }

    /// Whether a fresh value of L1 may be returned without a look into L2.
    pub(crate) fn takes_hits(&self) -> bool {
        !self.force_fresh && !self.skip_l1_read && self.l1_ttl > 0
    }

    /// The policy of an operation that starts now, unless it is part of one that has started: all
    /// its L2 calls together stay within one limit.
    pub(crate) fn begun(&self) -> Self {
        Self { l2_since: self.l2_since.or_else(|| Some(Instant::now())), ..*self }
    }

    /// The policy for the rest of an operation that has already spent this time on L2.
    pub(crate) fn after(&self, spent: Duration) -> Self {
        Self { l2_since: Instant::now().checked_sub(spent), ..*self }
    }

    /// The milliseconds left for the next L2 call.
    pub(crate) fn l2_limit(&self, has_stale: bool) -> u64 {
        let limit = if has_stale && self.grace > 0 {
            self.l2_soft_timeout.min(self.l2_hard_timeout)
        } else {
            self.l2_hard_timeout
        };
        match self.l2_since {
            Some(since) if limit != NEVER => {
                limit.saturating_sub(since.elapsed().as_millis() as u64)
            }
            _ => limit,
        }
    }
}
