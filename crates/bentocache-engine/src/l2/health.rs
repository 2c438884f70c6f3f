//! The health of the tier: a real round trip to each part of the store.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bentocache_driver::DriverError;

use super::tier::L2;
use crate::join::join_all;
use crate::stats::{BreakerState, L2Health};

/// The prefix of the keys that a round trip reads, after the store's prefix. Nobody writes them.
const HEALTH: &str = "___bc:h:";
/// The number of keys among which one is searched for each part of the store. It is many times the
/// number of parts of a large cluster.
const TRIES: usize = 512;

/// The answer of one part.
struct Answer {
    result: Result<(), Arc<DriverError>>,
    latency: Duration,
    /// When its present state began.
    since: SystemTime,
}

impl L2 {
    /// Reads one key of each part of the store, all at once, each for at most `limit` ms. An open
    /// breaker does not prevent that.
    pub(crate) async fn health(&self, limit: u64) -> L2Health {
        let keys = self.key_of_each_part();
        let calls = keys.iter().map(|(part, key)| self.round_trip(*part, key, limit)).collect();
        let answers: Vec<Answer> = join_all(calls).await;
        let failed: Vec<&Answer> = answers.iter().filter(|answer| answer.result.is_err()).collect();
        // It has failed since the first part failed, and works since the last part works.
        let since = match failed.is_empty() {
            true => answers.iter().map(|answer| answer.since).max(),
            false => failed.iter().map(|answer| answer.since).min(),
        };
        L2Health {
            driver: self.name(),
            error: failed.first().and_then(|answer| answer.result.clone().err()),
            latency: answers.iter().map(|answer| answer.latency).max().unwrap_or_default(),
            parts: answers.len(),
            failed_parts: failed.len(),
            since: since.unwrap_or(SystemTime::UNIX_EPOCH),
            breaker: self.breaker(),
            recovery_length: self.waiting(),
        }
    }

    async fn round_trip(&self, part: Option<u32>, key: &str, limit: u64) -> Answer {
        let reply = self.remote.call(part, limit, true, |driver| driver.get(key)).await;
        let latency = reply.took;
        let result = self.called("health", reply).map(drop);
        Answer { result, latency, since: self.remote.since(part).time() }
    }

    /// A key of each part; one key in a store without parts.
    fn key_of_each_part(&self) -> Vec<(Option<u32>, String)> {
        let mut keys: Vec<(Option<u32>, String)> = Vec::new();
        for number in 0..TRIES {
            let key = format!("{}{HEALTH}{number}", self.site.root);
            let part = self.part(&key);
            if keys.iter().all(|(known, _)| *known != part) {
                keys.push((part, key));
            }
            if part.is_none() {
                break;
            }
        }
        keys
    }

    /// The state of the breaker; the worst one of all parts.
    pub(super) fn breaker(&self) -> BreakerState {
        self.remote.breaker()
    }
}
