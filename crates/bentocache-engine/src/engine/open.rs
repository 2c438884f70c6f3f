//! How the engine of a store starts, and the services that run as long as the store.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bentocache_driver::{DriverError, DynBus, DynL2, DynLock, ErrorKind, Link};
use tokio::runtime::Handle;

use super::Engine;
use super::flight::Flights;
use super::tasks::Tasks;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::event::Events;
use crate::l1::{Driver, L1};
use crate::l2::L2;
use crate::lock::Locks;
use crate::options::{BreakerOptions, Options};
use crate::site::{Site, chain};
use crate::tags::{LONGEST_NAME, Tags};
use crate::timers::Timers;

/// The drivers of a store.
#[derive(Default)]
pub(crate) struct Drivers {
    pub(crate) l1: Option<Driver>,
    pub(crate) l2: Option<Arc<dyn DynL2>>,
    pub(crate) bus: Option<Arc<dyn DynBus>>,
    pub(crate) lock: Option<Arc<dyn DynLock>>,
}

/// State that all stores of a cache share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) events: Arc<Events>,
    pub(crate) runtime: Handle,
    pub(crate) factory_runtime: Handle,
}

impl Engine {
    /// Opens a store: checks its settings, connects its drivers and starts its services.
    pub(crate) async fn open(
        name: &str,
        options: Options,
        drivers: Drivers,
        shared: Shared,
    ) -> Result<Arc<Self>> {
        if let Some(error) = options.error {
            return Err(error);
        }
        if drivers.l1.is_none() && drivers.l2.is_none() {
            return Err(Error::config(format!(
                "store {name:?} has no tier; give it one with `.l1(...)` or `.l2(...)`"
            )));
        }
        let enabled = options.enabled.unwrap_or(true);
        if let Some(l1) = &drivers.l1 {
            l1.open().map_err(|error| refused(name, &error))?;
        }
        if let Some(l2) = drivers.l2.as_ref().filter(|_| enabled) {
            connect(name, &**l2).await?;
        }
        let prefix = options.prefix.as_deref().unwrap_or("bentocache").trim_end_matches(':');
        let root: Arc<str> =
            if prefix.is_empty() { "".into() } else { format!("{prefix}:").into() };
        if let Some(l2) = &drivers.l2 {
            check_levels(name, &root, &**l2)?;
        }
        let engine = Arc::new(Self::new(name, root, options, drivers, shared));
        if enabled {
            engine.start().await?;
        }
        Ok(engine)
    }

    fn new(name: &str, root: Arc<str>, options: Options, drivers: Drivers, shared: Shared) -> Self {
        let Shared { clock, events, runtime, factory_runtime } = shared;
        let site = Site {
            name: name.into(),
            root,
            clock,
            events,
            counters: Arc::default(),
            log_keys: options.log_keys.unwrap_or(false),
            hasher: Default::default(),
            digester: Default::default(),
        };
        let enabled = options.enabled.unwrap_or(true);
        let recovery = options.recovery();
        let breaker =
            options.breaker.unwrap_or(Some(BreakerOptions { open_for: 1_000, after_failures: 5 }));
        let bus_down = options.bus_down.unwrap_or_default();
        let tag_check_interval = options.tag_check_interval.unwrap_or(1_000);
        let lock_lease = options.lock_lease.unwrap_or(10_000);
        let l2 = drivers.l2.map(|l2| L2::new(site.clone(), l2, breaker, recovery, runtime.clone()));
        let has_levels = l2.as_ref().is_some_and(|l2| !l2.can_clear());
        Self {
            policy: options.policy(drivers.l1.is_some()),
            codec: options.codec.unwrap_or_default(),
            enabled,
            l1: L1::new(site.clone(), drivers.l1, bus_down.longest_unchecked(), l2.is_some()),
            l2,
            bus: drivers
                .bus
                .map(|driver| Arc::new(Bus::new(site.clone(), driver, recovery, runtime.clone()))),
            locks: drivers
                .lock
                .map(|driver| Arc::new(Locks::new(site.clone(), driver, lock_lease))),
            flights: Arc::new(Flights::new()),
            tags: Tags::new(site.clone(), tag_check_interval, bus_down, has_levels),
            work: Tasks::new(),
            services: Tasks::new(),
            open: AtomicBool::new(enabled),
            hooks: options.hooks,
            shares_tags: options.tag_scope.unwrap_or(false),
            site,
            runtime_ended: Arc::default(),
            factory_runtime,
            timers: Timers::new(runtime.clone()),
            runtime,
        }
    }

    /// Starts the services that run as long as the store.
    async fn start(self: &Arc<Self>) -> Result<()> {
        self.services.spawn(self.watch_runtime(), &self.runtime);
        if let Some(bus) = &self.bus {
            let stream = match bus.subscribe(self).await {
                // An operator has to repair it, so the build must not succeed.
                Err(Some(error))
                    if matches!(error.kind(), ErrorKind::Config | ErrorKind::Denied) =>
                {
                    return Err(refused(&self.name, &error));
                }
                subscribed => {
                    subscribed.inspect_err(|error| bus.not_subscribed(error.as_ref())).ok()
                }
            };
            self.services.spawn(bus.clone().listen_forever(stream, self.clone()), &self.runtime);
            self.services.spawn(bus.clone().publish_forever(self.clone()), &self.runtime);
            self.services.spawn(bus.clone().ask_forever(), &self.runtime);
        }
        if self.l2.is_some() {
            self.services.spawn(self.clone().replay_forever(), &self.runtime);
            self.services.spawn(self.clone().watch_link(), &self.runtime);
            self.services.spawn(self.clone().tell_of_uses_forever(), &self.runtime);
        }
        if self.l1.is_there() {
            self.services.spawn(self.clone().sweep_forever(), &self.runtime);
        }
        Ok(())
    }

    async fn replay_forever(self: Arc<Self>) {
        if let Some(l2) = &self.l2 {
            l2.replay_forever(&*self, self.policy.l2_hard_timeout).await;
        }
    }

    /// Replays the recovery queue whenever the driver reports that its server is back.
    async fn watch_link(self: Arc<Self>) {
        let Some(l2) = &self.l2 else { return };
        let Some(mut link) = l2.driver().link() else { return };
        while let Some(change) = std::future::poll_fn(|cx| link.as_mut().poll_next(cx)).await {
            if change == Link::Restored {
                l2.is_back();
            }
        }
    }

    /// Reclaims dead entries of L1: often while there are many, rarely otherwise.
    async fn sweep_forever(self: Arc<Self>) {
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        let mut pause = shortest;
        loop {
            tokio::time::sleep(pause).await;
            let before = self.l1.len();
            let swept = self.prune_local().await;
            pause = if swept * 20 > before { pause / 2 } else { pause * 2 };
            pause = pause.clamp(shortest, longest);
        }
    }
}

/// The error for a driver whose settings cannot work.
fn refused(store: &str, error: &DriverError) -> Error {
    let own = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Error>());
    own.cloned().unwrap_or_else(|| Error::config(format!("store {store:?}: {}", chain(error))))
}

/// Checks that a store which cannot clear by prefix can hold the markers of clears.
fn check_levels(store: &str, root: &str, l2: &dyn DynL2) -> Result<()> {
    let can = l2.capabilities();
    let needs = root.len() + LONGEST_NAME;
    match can.max_key.filter(|most| !can.clear && *most < needs) {
        Some(most) => Err(Error::config(format!(
            "store {store:?}: the {} driver takes keys of {most} bytes at most, but the markers by \
             which it is cleared need {needs} bytes with this prefix; use a prefix that is {} bytes \
             shorter",
            l2.name(),
            needs - most,
        ))),
        None => Ok(()),
    }
}

async fn connect(store: &str, l2: &dyn DynL2) -> Result<()> {
    /// A server that does not answer must not keep the service from starting.
    const PATIENCE: Duration = Duration::from_secs(5);
    match tokio::time::timeout(PATIENCE, l2.connect()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.kind() == ErrorKind::Config => return Err(refused(store, &error)),
        Ok(Err(error)) => {
            tracing::warn!(store, driver = l2.name(), error = %chain(&error),
                "L2 cannot be reached; the cache starts without it");
        }
        Err(_) => {
            tracing::warn!(
                store,
                driver = l2.name(),
                "L2 does not answer; the cache starts without it"
            );
        }
    }
    Ok(())
}
