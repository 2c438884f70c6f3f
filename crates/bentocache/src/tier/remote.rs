//! The second tier: a driver behind a timeout and a circuit breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bentocache_core::{Call, DriverError, DynL2, ErrorKind, NEVER};
use tokio::runtime::Handle;

use super::timers::Timers;
use crate::clock::Clock;
use crate::options;

pub(crate) struct Remote {
    pub(crate) driver: Arc<dyn DynL2>,
    breaker: Option<Breaker>,
    clock: Clock,
    timers: Timers,
}

/// What a call changed about the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Opened,
    Closed,
}

/// How a call ended.
pub(crate) struct Reply<T> {
    pub(crate) result: Result<T, Arc<DriverError>>,
    pub(crate) turn: Option<Turn>,
}

impl Remote {
    pub(crate) fn new(
        driver: Arc<dyn DynL2>,
        breaker: Option<options::Breaker>,
        clock: Clock,
        runtime: Handle,
    ) -> Self {
        let breaker = breaker.map(Breaker::new);
        Self { driver, breaker, clock, timers: Timers::new(runtime) }
    }

    /// Runs one call of the driver, for at most `limit` ms, unless the breaker is open.
    pub(crate) async fn call<'a, T>(
        &'a self,
        limit: u64,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Reply<T> {
        let Some(breaker) = &self.breaker else {
            return Reply { result: self.bounded(limit, call).await, turn: None };
        };
        let Some(pass) = breaker.enter(|| self.clock.now()) else {
            let name = self.driver.name();
            let error = DriverError::new(
                ErrorKind::Unavailable,
                format!("{name} failed repeatedly and is left alone until the breaker closes"),
            );
            return Reply { result: Err(Arc::new(error)), turn: None };
        };
        let result = self.bounded(limit, call).await;
        let failed = result.as_ref().is_err_and(|error| error.is_transient());
        Reply { result, turn: pass.leave(failed, || self.clock.now()) }
    }

    async fn bounded<'a, T>(
        &'a self,
        limit: u64,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Result<T, Arc<DriverError>> {
        let call = call(&*self.driver);
        let result = if limit == NEVER {
            call.await
        } else {
            let limit = Duration::from_millis(limit);
            self.timers.within(limit, call).await.unwrap_or_else(|| {
                let name = self.driver.name();
                Err(DriverError::new(
                    ErrorKind::Timeout,
                    format!("{name} did not answer within {limit:?}"),
                ))
            })
        };
        result.map_err(Arc::new)
    }
}

/// Closed, open, or half-open: then one call at a time finds out.
struct Breaker {
    settings: options::Breaker,
    failures: AtomicU32,
    /// 0 when closed.
    open_until: AtomicU64,
    probing: AtomicBool,
}

/// Leave to make a call. A call that is given up without an answer changes nothing.
struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    fn new(settings: options::Breaker) -> Self {
        Self {
            settings,
            failures: AtomicU32::new(0),
            open_until: AtomicU64::new(0),
            probing: AtomicBool::new(false),
        }
    }

    /// `now` is only asked for the time when the breaker is open.
    fn enter(&self, now: impl FnOnce() -> u64) -> Option<Pass<'_>> {
        match self.open_until.load(Relaxed) {
            0 => Some(Pass { breaker: self, probe: false }),
            until if now() < until => None,
            _ => {
                let free = !self.probing.swap(true, Relaxed);
                free.then(|| Pass { breaker: self, probe: true })
            }
        }
    }
}

impl Pass<'_> {
    /// `now` is only asked for the time of a failure.
    fn leave(self, failed: bool, now: impl FnOnce() -> u64) -> Option<Turn> {
        let breaker = self.breaker;
        if !failed {
            // Only looked at where there is nothing to change: all calls share it.
            if breaker.failures.load(Relaxed) > 0 {
                breaker.failures.store(0, Relaxed);
            }
            let was_open = self.probe && breaker.open_until.swap(0, Relaxed) != 0;
            return was_open.then_some(Turn::Closed);
        }
        let failures = breaker.failures.fetch_add(1, Relaxed).saturating_add(1);
        if self.probe || failures >= breaker.settings.after_failures {
            let until = now().saturating_add(breaker.settings.open_for);
            let was_closed = breaker.open_until.swap(until, Relaxed) == 0;
            return was_closed.then_some(Turn::Opened);
        }
        None
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.probing.store(false, Relaxed);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(options::Breaker { open_for: 100, after_failures: 2 })
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_success_starts_the_count_anew() {
        let breaker = breaker();
        assert_eq!(breaker.enter(|| 1).unwrap().leave(true, || 1), None);
        assert_eq!(breaker.enter(|| 1).unwrap().leave(false, || 1), None);
        assert_eq!(breaker.enter(|| 1).unwrap().leave(true, || 1), None);
        assert_eq!(breaker.enter(|| 1).unwrap().leave(true, || 1), Some(Turn::Opened));
        assert!(breaker.enter(|| 100).is_none());
    }

    #[test]
    fn half_open_it_lets_one_call_at_a_time_decide() {
        let breaker = breaker();
        for _ in 0..2 {
            breaker.enter(|| 1).unwrap().leave(true, || 1);
        }
        let probe = breaker.enter(|| 101).unwrap();
        assert!(breaker.enter(|| 101).is_none());
        assert_eq!(probe.leave(true, || 101), None);
        assert!(breaker.enter(|| 200).is_none());
        // A probe that is given up lets the next one try.
        drop(breaker.enter(|| 201).unwrap());
        assert_eq!(breaker.enter(|| 201).unwrap().leave(false, || 201), Some(Turn::Closed));
        assert!(breaker.enter(|| 201).is_some_and(|pass| !pass.probe));
    }
}
