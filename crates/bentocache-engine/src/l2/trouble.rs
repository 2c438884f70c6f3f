//! Log lines about an L2 that fails: changes of state, not every call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bentocache_driver::{DriverError, ErrorKind};

use crate::site::{Site, chain};
use crate::sync::Mutex;

/// A failure of the same kind is logged again after this long, in ms.
const AGAIN_AFTER: u64 = 60_000;

/// The failures that were logged last.
#[derive(Default)]
pub(super) struct Trouble {
    told: Mutex<Vec<LoggedFailure>>,
    /// Whether a failure was logged, so that a success need not take the lock.
    any: AtomicBool,
    /// The time when a full queue was logged; 0 for never.
    full_at: AtomicU64,
}

struct LoggedFailure {
    kind: ErrorKind,
    operation: &'static str,
    at: u64,
    /// The number of repetitions since then.
    since: u64,
}

impl Trouble {
    /// Logs the first failure of its kind and operation, and then one per minute.
    pub(super) fn report(&self, site: &Site, operation: &'static str, error: &Arc<DriverError>) {
        if let Some(since) = self.is_news(operation, error.kind(), site.clock.now()) {
            tracing::warn!(store = %site.name, operation, error = %chain(&**error),
                more_since_last = since, "L2 failed");
        } else {
            tracing::debug!(store = %site.name, operation, error = %chain(&**error),
                "L2 failed");
        }
    }

    /// Whether the failure must be logged; then the number of repetitions since the last log line.
    fn is_news(&self, operation: &'static str, kind: ErrorKind, now: u64) -> Option<u64> {
        let mut told = self.told.lock();
        self.any.store(true, Relaxed);
        // Login, permissions and storage space are a state of the server, whatever the operation.
        let is_same = |told: &&mut LoggedFailure| {
            told.kind == kind && (told.operation == operation || kind != ErrorKind::TooLarge)
        };
        if let Some(told) = told.iter_mut().find(is_same) {
            if now.saturating_sub(told.at) < AGAIN_AFTER {
                told.since += 1;
                return None;
            }
            told.at = now;
            return Some(std::mem::take(&mut told.since));
        }
        told.push(LoggedFailure { kind, operation, at: now, since: 0 });
        Some(0)
    }

    /// Logs that the recovery queue is full, once a minute.
    pub(super) fn report_full(&self, site: &Site, queued: usize) {
        let (now, told_at) = (site.clock.now(), self.full_at.load(Relaxed));
        if told_at > 0 && now.saturating_sub(told_at) < AGAIN_AFTER {
            return;
        }
        self.full_at.store(now, Relaxed);
        tracing::warn!(store = %site.name, queued,
            "changes that failed to reach L2 are given up, because too many wait; \
             see the option `recovery`");
    }

    /// L2 works again: the next failure is logged at once.
    pub(super) fn is_over(&self) {
        if self.any.swap(false, Relaxed) {
            self.told.lock().clear();
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_news_once_a_minute_and_another_one_at_once() {
        let trouble = Trouble::default();
        let news = |kind, now| trouble.is_news("get", kind, now);
        assert_eq!(news(ErrorKind::Unavailable, 1), Some(0));
        assert_eq!(news(ErrorKind::Unavailable, 2), None);
        assert_eq!(trouble.is_news("set", ErrorKind::Unavailable, 3), None);
        assert_eq!(news(ErrorKind::Denied, 3), Some(0));
        assert_eq!(news(ErrorKind::Denied, 4), None);
        assert_eq!(news(ErrorKind::Unavailable, AGAIN_AFTER + 1), Some(2));
        trouble.is_over();
        assert_eq!(news(ErrorKind::Unavailable, AGAIN_AFTER + 2), Some(0));
    }
}
