//! The circuit breaker of L2: it rejects calls that would most likely fail.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::options;
use crate::stats::BreakerState;

/// The transition that a call caused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    Opened,
    Closed,
}

/// Closed, open, or half-open: then one call at a time is a probe.
pub(super) struct Breaker {
    settings: options::BreakerOptions,
    failures: AtomicU32,
    /// 0 when closed.
    open_until: AtomicU64,
    probing: AtomicBool,
}

/// Permission to make a call. A call that is dropped without a result changes nothing.
pub(super) struct Permit<'a> {
    breaker: &'a Breaker,
    /// The breaker is open, and this call decides whether it closes.
    probe: bool,
    /// This call holds the only place of a half-open breaker.
    holds: bool,
}

impl Breaker {
    pub(super) fn new(settings: options::BreakerOptions) -> Self {
        Self {
            settings,
            failures: AtomicU32::new(0),
            open_until: AtomicU64::new(0),
            probing: AtomicBool::new(false),
        }
    }

    /// `now` is only called when the breaker is open. A `probe` passes an open breaker.
    pub(super) fn enter(&self, probe: bool, now: impl FnOnce() -> u64) -> Option<Permit<'_>> {
        match self.open_until.load(Relaxed) {
            0 => Some(Permit { breaker: self, probe: false, holds: false }),
            _ if probe => Some(Permit { breaker: self, probe: true, holds: false }),
            until if now() < until => None,
            _ => {
                let free = !self.probing.swap(true, Relaxed);
                free.then(|| Permit { breaker: self, probe: true, holds: true })
            }
        }
    }

    /// Whether calls are rejected at this time.
    pub(super) fn is_open(&self, now: impl FnOnce() -> u64) -> bool {
        match self.open_until.load(Relaxed) {
            0 => false,
            until => now() < until,
        }
    }

    /// The state for statistics. An open breaker whose time is over is half-open.
    pub(super) fn state(&self, now: impl FnOnce() -> u64) -> BreakerState {
        match self.open_until.load(Relaxed) {
            0 => BreakerState::Closed,
            until if now() < until => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Makes an open breaker half-open: the server seems to work again.
    pub(super) fn half_open(&self) {
        let _ = self.open_until.fetch_update(Relaxed, Relaxed, |until| (until > 1).then_some(1));
    }
}

impl Permit<'_> {
    /// `now` is only called after a failure.
    pub(super) fn leave(self, failed: bool, now: impl FnOnce() -> u64) -> Option<Transition> {
        let breaker = self.breaker;
        if !failed {
            // Written only on a change, because all calls share it.
            if breaker.failures.load(Relaxed) > 0 {
                breaker.failures.store(0, Relaxed);
            }
            let was_open = self.probe && breaker.open_until.swap(0, Relaxed) != 0;
            return was_open.then_some(Transition::Closed);
        }
        let failures = breaker.failures.fetch_add(1, Relaxed).saturating_add(1);
        if self.probe || failures >= breaker.settings.after_failures {
            let until = now().saturating_add(breaker.settings.open_for);
            let was_closed = breaker.open_until.swap(until, Relaxed) == 0;
            return was_closed.then_some(Transition::Opened);
        }
        None
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.holds {
            self.breaker.probing.store(false, Relaxed);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(options::BreakerOptions { open_for: 100, after_failures: 2 })
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_success_starts_the_count_anew() {
        let breaker = breaker();
        assert_eq!(breaker.enter(false, || 1).unwrap().leave(true, || 1), None);
        assert_eq!(breaker.enter(false, || 1).unwrap().leave(false, || 1), None);
        assert_eq!(breaker.enter(false, || 1).unwrap().leave(true, || 1), None);
        assert!(!breaker.is_open(|| 1));
        assert_eq!(breaker.enter(false, || 1).unwrap().leave(true, || 1), Some(Transition::Opened));
        assert!(breaker.is_open(|| 100));
        assert!(breaker.enter(false, || 100).is_none());
    }

    #[test]
    fn half_open_it_lets_one_call_at_a_time_decide() {
        let breaker = breaker();
        for _ in 0..2 {
            breaker.enter(false, || 1).unwrap().leave(true, || 1);
        }
        let probe = breaker.enter(false, || 101).unwrap();
        assert!(breaker.enter(false, || 101).is_none());
        assert_eq!(probe.leave(true, || 101), None);
        assert!(breaker.enter(false, || 200).is_none());
        // A probe that is dropped lets the next one try.
        drop(breaker.enter(false, || 201).unwrap());
        assert_eq!(
            breaker.enter(false, || 201).unwrap().leave(false, || 201),
            Some(Transition::Closed)
        );
        assert!(breaker.enter(false, || 201).is_some_and(|permit| !permit.probe));
    }

    #[test]
    fn a_probe_passes_an_open_breaker_and_closes_it() {
        let breaker = breaker();
        for _ in 0..2 {
            breaker.enter(false, || 1).unwrap().leave(true, || 1);
        }
        let (one, other) = (breaker.enter(true, || 2).unwrap(), breaker.enter(true, || 2).unwrap());
        assert!(breaker.enter(false, || 2).is_none());
        assert_eq!(one.leave(false, || 2), Some(Transition::Closed));
        assert_eq!(other.leave(false, || 2), None);
        assert!(breaker.enter(false, || 2).is_some_and(|permit| !permit.probe));
    }

    #[test]
    fn a_report_that_the_server_is_back_lets_the_next_call_through() {
        let breaker = breaker();
        breaker.half_open();
        assert!(!breaker.is_open(|| 0), "a closed breaker stays closed");
        for _ in 0..2 {
            breaker.enter(false, || 1).unwrap().leave(true, || 1);
        }
        breaker.half_open();
        let probe = breaker.enter(false, || 2).unwrap();
        assert!(breaker.enter(false, || 2).is_none(), "one at a time");
        assert_eq!(probe.leave(false, || 2), Some(Transition::Closed));
    }
}
