//! A driver of the second tier behind a timeout and a circuit breaker.

use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{Call, DriverError, DynL2, ErrorKind, NEVER};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::breaker::{Breaker, Turn};
use crate::clock::Clock;
use crate::options;
use crate::timers::Timers;

pub(super) struct Remote {
    pub(super) driver: Arc<dyn DynL2>,
    breaker: Option<Breaker>,
    clock: Clock,
    timers: Timers,
}

/// How a call ended.
pub(super) struct Reply<T> {
    pub(super) result: Result<T, Arc<DriverError>>,
    pub(super) turn: Option<Turn>,
    /// The driver was not called: the breaker was open, or the call had no time left.
    pub(super) skipped: bool,
}

/// The time that one call of the cache may spend on the second tier, however many calls of the
/// driver it needs.
#[derive(Clone, Copy)]
pub(crate) struct Budget {
    limit: u64,
    /// None: each call of the driver has the whole limit.
    start: Option<Instant>,
}

impl Budget {
    /// In milliseconds from now; [`NEVER`] is no limit.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, start: Some(Instant::now()) }
    }

    /// For work in the background, where nobody waits: each call of the driver has the limit.
    pub(super) fn for_each_call(limit: u64) -> Self {
        Self { limit, start: None }
    }

    /// The milliseconds that are left.
    pub(crate) fn left(&self) -> u64 {
        match self.start {
            Some(start) if self.limit != NEVER => {
                self.limit.saturating_sub(start.elapsed().as_millis() as u64)
            }
            _ => self.limit,
        }
    }
}

impl Remote {
    pub(super) fn new(
        driver: Arc<dyn DynL2>,
        breaker: Option<options::Breaker>,
        clock: Clock,
        runtime: Handle,
    ) -> Self {
        let breaker = breaker.map(Breaker::new);
        Self { driver, breaker, clock, timers: Timers::new(runtime) }
    }

    /// Whether a call would be refused now.
    pub(super) fn is_open(&self) -> bool {
        self.breaker.as_ref().is_some_and(|breaker| breaker.is_open(|| self.clock.now()))
    }

    /// The server seems to work again: the next call finds out.
    pub(super) fn half_open(&self) {
        self.breaker.iter().for_each(Breaker::half_open);
    }

    /// Runs one call of the driver, for at most `limit` ms, unless the breaker is open. A `probe`
    /// passes an open breaker.
    pub(super) async fn call<'a, T>(
        &'a self,
        limit: u64,
        probe: bool,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Reply<T> {
        if limit == 0 {
            let message = format!("{} had no time left in this call", self.driver.name());
            let error = DriverError::new(ErrorKind::Timeout, message);
            return Reply { result: Err(Arc::new(error)), turn: None, skipped: true };
        }
        let Some(breaker) = &self.breaker else {
            return Reply { result: self.bounded(limit, call).await, turn: None, skipped: false };
        };
        let Some(pass) = breaker.enter(probe, || self.clock.now()) else {
            let name = self.driver.name();
            let error = DriverError::new(
                ErrorKind::Unavailable,
                format!("{name} failed repeatedly and is left alone until the breaker closes"),
            );
            return Reply { result: Err(Arc::new(error)), turn: None, skipped: true };
        };
        let result = self.bounded(limit, call).await;
        let failed = result.as_ref().is_err_and(|error| error.is_transient());
        Reply { result, turn: pass.leave(failed, || self.clock.now()), skipped: false }
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
