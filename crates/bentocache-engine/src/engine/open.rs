//! How the engine of a store starts, and the services that run as long as the store.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bentocache_driver::{DriverError, DynBus, DynL2, DynLock, ErrorKind, L1Driver, Link};
use tokio::runtime::Handle;

use super::Engine;
use super::flight::Flights;
use super::places::Places;
use super::snapshot::Snapshots;
use super::tasks::Tasks;
use super::versions::Versions;
use crate::advisor::setup::Setup;
use crate::advisor::{Advisor, Search};
use crate::bus::Bus;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::event::Events;
use crate::l1::{Driver, L1};
use crate::l2::L2;
#[cfg(feature = "encryption")]
use crate::l2::Sealed;
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
            let every = l1.snapshot().and_then(|snapshot| snapshot.every);
            if every.is_some() && drivers.l2.is_none() {
                return Err(Error::config(format!(
                    "store {name:?}: `snapshot_interval` needs an L2, because without one a process \
                     that is killed would bring back values that were deleted since; leave it out, \
                     and `disconnect` writes the snapshot"
                )));
            }
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
        log_opened(name, &root, &drivers, enabled);
        shared.events.follow_log();
        let engine = Arc::new(Self::new(name, root, options, drivers, shared));
        if enabled {
            engine.load_snapshot().await;
            engine.start().await?;
            engine.advise().await;
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
        #[cfg(feature = "encryption")]
        let encrypts = options.encryption.is_some();
        #[cfg(not(feature = "encryption"))]
        let encrypts = false;
        #[cfg(feature = "encryption")]
        let seal = |l2| -> Arc<dyn DynL2> {
            match &options.encryption {
                Some(ring) => Arc::new(Sealed::new(l2, ring.clone())),
                None => l2,
            }
        };
        #[cfg(not(feature = "encryption"))]
        let seal = |l2| l2;
        let l2 = drivers
            .l2
            .map(|l2| L2::new(site.clone(), seal(l2), breaker, recovery, runtime.clone()));
        let advisor = Advisor::new(site.name.clone(), options.silenced.clone(), enabled);
        if drivers.l1.as_ref().is_none_or(|l1| !l1.has_default_limits()) {
            advisor.give_up(Search::LargeValues);
        }
        if options.tag_scope == Some(true) {
            advisor.give_up(Search::TagOfOtherScope);
        }
        let snapshots = drivers
            .l1
            .as_ref()
            .and_then(Driver::snapshot)
            .map(|snapshot| Snapshots::new(snapshot, l2.is_some(), drivers.bus.is_some()));
        #[cfg(feature = "encryption")]
        let snapshots = snapshots.map(|snapshots| snapshots.with_ring(options.encryption.clone()));
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
            places: Places::new(options.max_factories),
            tags: Tags::new(site.clone(), tag_check_interval, bus_down, has_levels),
            advisor,
            snapshots: snapshots.filter(|_| enabled),
            work: Tasks::new(),
            services: Tasks::new(),
            open: AtomicBool::new(enabled),
            hooks: options.hooks,
            shares_tags: options.tag_scope.unwrap_or(false),
            encrypts,
            versions: Versions::default(),
            site,
            runtime_ended: Arc::default(),
            factory_runtime,
            timers: Timers::new(runtime.clone()),
            runtime,
        }
    }

    /// Reports what is probably wrong with the configuration.
    async fn advise(&self) {
        let is_server = |l2: &&L2| !l2.driver().capabilities().local;
        let setup = Setup {
            has_l1: self.l1.is_there(),
            has_bus: self.bus.is_some(),
            server: self.l2.as_ref().filter(is_server).map(L2::name),
            has_prefix: !self.root.is_empty(),
            policy: &self.policy,
            hooks: &self.hooks,
        };
        setup.findings().into_iter().for_each(|finding| self.advisor.report(finding));
        self.ask_driver().await;
    }

    /// Reports what the driver of L2 advises.
    async fn ask_driver(&self) {
        /// Advice is not worth a longer start.
        const PATIENCE: Duration = Duration::from_secs(1);
        let Some(l2) = &self.l2 else { return };
        let findings = tokio::time::timeout(PATIENCE, l2.driver().findings()).await;
        findings.into_iter().flatten().for_each(|finding| self.advisor.report(finding));
    }

    /// The identity of L2 and the prefix: stores with the same place share their keys.
    pub(crate) fn place(&self) -> Option<(String, &str)> {
        let l2 = self.l2.as_ref().filter(|_| self.enabled)?;
        Some((l2.driver().identity()?, &self.root))
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
            if self.clock.must_be_told() {
                self.services.spawn(self.clone().watch_suspension(), &self.runtime);
            }
        }
        if let Some(every) = self.snapshots.as_ref().and_then(Snapshots::every) {
            self.services.spawn(self.clone().write_snapshots_forever(every), &self.runtime);
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
                self.ask_driver().await;
            }
        }
    }

    /// Notices that the machine was suspended, although there are only hits, which do not look.
    async fn watch_suspension(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.clock.epoch();
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
            self.events.follow_log();
            pause = if swept * 20 > before { pause / 2 } else { pause * 2 };
            pause = pause.clamp(shortest, longest);
        }
    }
}

fn log_opened(store: &str, root: &str, drivers: &Drivers, enabled: bool) {
    let Drivers { l1, l2, bus, lock } = drivers;
    tracing::debug!(store = %store, prefix = root.trim_end_matches(':'), enabled,
        l1 = l1.as_deref().map(L1Driver::name), l2 = l2.as_deref().map(DynL2::name),
        bus = bus.as_deref().map(DynBus::name), lock = lock.as_deref().map(DynLock::name),
        "store opened");
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
