//! A driver of L2 behind a timeout and a circuit breaker.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bentocache_driver::{Call, DriverError, DynL2, ErrorKind, NEVER};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::breaker::{Breaker, Turn};
use crate::clock::Clock;
use crate::options;
use crate::timers::Timers;

/// How many parts of a store have a breaker of their own; see [`L2Driver::part`].
///
/// [`L2Driver::part`]: bentocache_driver::L2Driver::part
const MOST_PARTS: usize = 64;

pub(super) struct Remote {
    pub(super) driver: Arc<dyn DynL2>,
    breakers: Option<Breakers>,
    clock: Clock,
    timers: Timers,
}

/// A part that fails must not have the others left alone.
struct Breakers {
    settings: options::Breaker,
    /// For calls that concern the whole store, and for a store without parts.
    whole: Breaker,
    parts: OnceLock<Box<[Breaker]>>,
}

impl Breakers {
    fn of(&self, part: Option<u32>) -> &Breaker {
        let Some(part) = part else { return &self.whole };
        let parts = self.parts.get_or_init(|| {
            std::iter::repeat_with(|| Breaker::new(self.settings)).take(MOST_PARTS).collect()
        });
        parts.get(part as usize % MOST_PARTS).unwrap_or(&self.whole)
    }

    fn all(&self) -> impl Iterator<Item = &Breaker> {
        std::iter::once(&self.whole).chain(self.parts.get().into_iter().flatten())
    }
}

/// How a call ended.
pub(super) struct Reply<T> {
    pub(super) result: Result<T, Arc<DriverError>>,
    pub(super) turn: Option<Turn>,
    /// The part of the store that was called, where it has parts.
    pub(super) part: Option<u32>,
    /// The driver was not called: the breaker was open, or the call had no time left.
    pub(super) skipped: bool,
}

/// The time that one call of the cache may spend on L2, however many calls of the
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
        let breakers = breaker.map(|settings| Breakers {
            settings,
            whole: Breaker::new(settings),
            parts: OnceLock::new(),
        });
        Self { driver, breakers, clock, timers: Timers::new(runtime) }
    }

    /// Whether a call for that part would be refused now.
    pub(super) fn is_open(&self, part: Option<u32>) -> bool {
        self.breakers.as_ref().is_some_and(|all| all.of(part).is_open(|| self.clock.now()))
    }

    /// The server seems to work again: the next call finds out.
    pub(super) fn half_open(&self) {
        self.breakers.iter().flat_map(Breakers::all).for_each(Breaker::half_open);
    }

    /// Runs one call of the driver, for at most `limit` ms, unless the breaker of that part is
    /// open. A `probe` passes an open breaker.
    pub(super) async fn call<'a, T>(
        &'a self,
        part: Option<u32>,
        limit: u64,
        probe: bool,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Reply<T> {
        if limit == 0 {
            let message = format!("{} had no time left in this call", self.driver.name());
            let error = DriverError::new(ErrorKind::Timeout, message);
            return Reply { result: Err(Arc::new(error)), turn: None, part, skipped: true };
        }
        let Some(breakers) = &self.breakers else {
            let result = self.bounded(limit, call).await;
            return Reply { result, turn: None, part, skipped: false };
        };
        let Some(pass) = breakers.of(part).enter(probe, || self.clock.now()) else {
            let name = self.driver.name();
            let error = DriverError::new(
                ErrorKind::Unavailable,
                format!("{name} failed repeatedly and is left alone until the breaker closes"),
            );
            return Reply { result: Err(Arc::new(error)), turn: None, part, skipped: true };
        };
        let result = self.bounded(limit, call).await;
        let failed = result.as_ref().is_err_and(|error| error.is_transient());
        Reply { result, turn: pass.leave(failed, || self.clock.now()), part, skipped: false }
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
                let mut message = format!("{name} did not answer within {limit:?}");
                // Whoever cuts a call cuts the driver's own words, too.
                if let Some(trouble) = self.driver.trouble() {
                    message.extend([": ", &*trouble]);
                }
                Err(DriverError::new(ErrorKind::Timeout, message))
            })
        };
        result.map_err(Arc::new)
    }
}
