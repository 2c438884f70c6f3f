//! An L2 driver behind a timeout and a circuit breaker.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bentocache_driver::{Call, DriverError, DynL2, ErrorKind, NEVER};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::breaker::{Breaker, Transition};
use crate::clock::Clock;
use crate::options;
use crate::stats::{BreakerState, Since};
use crate::timers::Timers;

/// The number of parts of a store with their own breaker; see [`L2Driver::part`].
///
/// [`L2Driver::part`]: bentocache_driver::L2Driver::part
const MOST_PARTS: usize = 64;

pub(super) struct Remote {
    pub(super) driver: Arc<dyn DynL2>,
    breakers: Option<Breakers>,
    /// Since when each part works or fails. The first one is for calls that concern no part.
    since: Box<[Since]>,
    clock: Clock,
    timers: Timers,
}

/// One breaker per part, so that a failing part does not block calls to the others.
struct Breakers {
    settings: options::BreakerOptions,
    /// For calls that concern the whole store, and for stores without parts.
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

/// The result of a call.
pub(super) struct Reply<T> {
    pub(super) result: Result<T, Arc<DriverError>>,
    pub(super) transition: Option<Transition>,
    /// The part of the store that was called, if the store has parts.
    pub(super) part: Option<u32>,
    /// How long the driver took.
    pub(super) took: Duration,
    /// The driver was not called: the breaker was open, or the call had no time left.
    pub(super) skipped: bool,
}

impl<T> Reply<T> {
    fn skipped(part: Option<u32>, error: DriverError) -> Self {
        let result = Err(Arc::new(error));
        Self { result, transition: None, part, took: Duration::ZERO, skipped: true }
    }
}

/// The time that one call of the cache may spend on L2, however many driver calls it needs.
#[derive(Clone, Copy)]
pub(crate) struct Budget {
    limit: u64,
    /// `None`: each driver call has the whole limit.
    start: Option<Instant>,
}

impl Budget {
    /// In milliseconds from now; [`NEVER`] is no limit.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, start: Some(Instant::now()) }
    }

    /// For background work, where no caller waits: each driver call has the whole limit.
    pub(super) fn for_each_call(limit: u64) -> Self {
        Self { limit, start: None }
    }

    /// The remaining milliseconds.
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
        breaker: Option<options::BreakerOptions>,
        clock: Clock,
        runtime: Handle,
    ) -> Self {
        let breakers = breaker.map(|settings| Breakers {
            settings,
            whole: Breaker::new(settings),
            parts: OnceLock::new(),
        });
        let since = (0..=MOST_PARTS).map(|_| Since::new(true, clock.epoch())).collect();
        Self { driver, breakers, since, clock, timers: Timers::new(runtime) }
    }

    /// Whether a call to this part would be refused now.
    pub(super) fn is_open(&self, part: Option<u32>) -> bool {
        self.breakers.as_ref().is_some_and(|all| all.of(part).is_open(|| self.clock.now()))
    }

    /// Since when the part works or fails.
    pub(super) fn since(&self, part: Option<u32>) -> &Since {
        &self.since[part.map_or(0, |part| part as usize % MOST_PARTS + 1)]
    }

    /// The state of the breaker, or the worst state if there are several.
    pub(super) fn breaker(&self) -> BreakerState {
        let Some(breakers) = &self.breakers else { return BreakerState::Off };
        let states = breakers.all().map(|breaker| breaker.state(|| self.clock.now()));
        states.max().unwrap_or(BreakerState::Closed)
    }

    /// The server seems to work again: the next call is a probe.
    pub(super) fn half_open(&self) {
        self.breakers.iter().flat_map(Breakers::all).for_each(Breaker::half_open);
    }

    /// Makes one driver call, for at most `limit` ms, unless the breaker of the part is open. A
    /// `probe` passes an open breaker.
    pub(super) async fn call<'a, T>(
        &'a self,
        part: Option<u32>,
        limit: u64,
        probe: bool,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Reply<T> {
        if limit == 0 {
            let message = format!("{} had no time left in this call", self.driver.name());
            return Reply::skipped(part, DriverError::new(ErrorKind::Timeout, message));
        }
        let started = Instant::now();
        let Some(breakers) = &self.breakers else {
            let result = self.bounded(limit, call).await;
            let took = started.elapsed();
            return Reply { result, transition: None, part, took, skipped: false };
        };
        let Some(permit) = breakers.of(part).enter(probe, || self.clock.now()) else {
            let name = self.driver.name();
            let error = DriverError::new(
                ErrorKind::Unavailable,
                format!("{name} failed repeatedly and is left alone until the breaker closes"),
            );
            return Reply::skipped(part, error);
        };
        let result = self.bounded(limit, call).await;
        let failed = result.as_ref().is_err_and(|error| error.is_transient());
        Reply {
            result,
            transition: permit.leave(failed, || self.clock.now()),
            part,
            took: started.elapsed(),
            skipped: false,
        }
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
                // The timeout also discards the driver's own error, so the driver's last known
                // reason is appended.
                if let Some(trouble) = self.driver.trouble() {
                    message.extend([": ", &*trouble]);
                }
                Err(DriverError::new(ErrorKind::Timeout, message))
            })
        };
        result.map_err(Arc::new)
    }
}
