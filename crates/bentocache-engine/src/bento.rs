//! The cache as a whole: named stores, one of them the default.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use bentocache_driver::{
    BusDriver, DriverError, DynBus, DynL2, DynLock, ErrorKind, L1Driver, L2Driver, Link, LockDriver,
};
use tokio::runtime::Handle;

use crate::cache::Cache;
use crate::clock::{Clock, TimeSource};
use crate::engine::bus::Bus;
use crate::engine::flight::Flights;
use crate::engine::lease::Locks;
use crate::engine::tags::{LONGEST_NAME, Tags};
use crate::engine::{Engine, Tasks, chain};
use crate::error::{BoxError, ClosedReason, Error, Result};
use crate::event::{Event, EventStream, Events, Listener, Observer};
use crate::fence::Fences;
use crate::l2::L2;
use crate::options::{
    self, BusDown, ByteSize, Options, Policy, RecoveryMode, TimeSpan, level_setters, share,
};
use crate::site::Site;
use crate::tier::local::{Driver, Local};
use crate::timers::Timers;
use crate::wire::codec::Codec;
use bentocache_driver::NEVER;

/// The cache: named stores, one of which is the default. A cheap handle, to be cloned.
///
/// It derefs to the [`Cache`] of its default store, so that every operation is there.
///
/// When the last handle of a store is dropped, its background work ends. To end it in order, with
/// writes that failed tried once more, call [`disconnect_all`](BentoCache::disconnect_all).
#[derive(Clone)]
pub struct BentoCache {
    default: Cache,
    all: Arc<All>,
}

/// What the clones share.
struct All {
    stores: BTreeMap<Box<str>, Cache>,
    events: Arc<Events>,
}

impl BentoCache {
    /// Starts to put a cache together.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The store of that name.
    ///
    /// # Errors
    /// [`Error::UnknownStore`], which names those there are.
    pub fn store(&self, name: &str) -> Result<Cache> {
        self.all.stores.get(name).cloned().ok_or_else(|| unknown(name, &self.all.stores))
    }

    /// The names of the stores.
    pub fn stores(&self) -> impl Iterator<Item = &str> {
        self.all.stores.keys().map(|name| &**name)
    }

    /// Clears all stores.
    ///
    /// # Errors
    /// The first failure; the other stores are cleared all the same.
    pub async fn clear_all(&self) -> Result<()> {
        let mut result = Ok(());
        for store in self.all.stores.values() {
            result = result.and(store.clear().await);
        }
        result
    }

    /// Ends all stores; see [`Cache::disconnect`].
    ///
    /// # Errors
    /// The first failure; the other stores are ended all the same.
    pub async fn disconnect_all(&self) -> Result<()> {
        let mut result = Ok(());
        for store in self.all.stores.values() {
            result = result.and(match store.disconnect().await {
                // Ended one by one before.
                Err(Error::Closed { reason: ClosedReason::Disconnected }) => Ok(()),
                other => other,
            });
        }
        result
    }

    /// The events of all stores from now on, to be read in one's own time.
    pub fn events(&self) -> EventStream {
        EventStream::new(self.all.events.subscribe())
    }

    /// Calls `listen` for every event from now on, on a thread of its own: it may be slow, and it
    /// may panic, without harm to the cache or to other listeners.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn on(&self, listen: impl Fn(&Event<'static>) + Send + 'static) -> Result<Listener> {
        Listener::start(self.all.events.subscribe(), listen)
            .map_err(|error| Error::config(format!("cannot start a listener: {error}")))
    }
}

impl Deref for BentoCache {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.default
    }
}

impl fmt::Debug for BentoCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BentoCache")
            .field("default", &self.default.name())
            .field("stores", &self.all.stores.keys())
            .finish_non_exhaustive()
    }
}

fn unknown<V>(name: &str, stores: &BTreeMap<Box<str>, V>) -> Error {
    Error::UnknownStore { name: name.into(), known: stores.keys().cloned().collect() }
}

/// Something that joins the cache when it is built, such as a metrics exporter.
pub trait Plugin: Send + 'static {
    /// What sees every event from the start.
    fn observer(&self) -> Option<Arc<dyn Observer>> {
        None
    }

    /// Called when the cache is built.
    ///
    /// # Errors
    /// Makes the build fail.
    fn installed(self: Box<Self>, cache: &BentoCache) -> Result<(), BoxError> {
        let _ = cache;
        Ok(())
    }
}

/// Puts a cache together; see [`BentoCache::builder`]. Options given here hold for all stores.
#[derive(Default)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    options: Options,
    default: Option<Box<str>>,
    stores: BTreeMap<Box<str>, Store>,
    observers: Vec<Arc<dyn Observer>>,
    plugins: Vec<Box<dyn Plugin>>,
    clock: Clock,
}

level_setters!(Builder);

impl Builder {
    /// Adds a store. The bus uses the name: processes that share a store must call it the same.
    pub fn store(mut self, name: impl Into<String>, store: Store) -> Self {
        let name = name.into().into_boxed_str();
        if let Some(_former) = self.stores.insert(name.clone(), store) {
            let message = format!("there are two stores named {name:?}; give each its own name");
            self.options.error.get_or_insert(Error::config(message));
        }
        self
    }

    /// Which store the operations of [`BentoCache`] itself use. Needed when there are several.
    pub fn default_store(mut self, name: impl Into<String>) -> Self {
        self.default = Some(name.into().into_boxed_str());
        self
    }

    /// Adds something that sees every event as it happens, for metrics.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Adds a plugin.
    pub fn plugin(mut self, plugin: impl Plugin) -> Self {
        self.observers.extend(plugin.observer());
        self.plugins.push(Box::new(plugin));
        self
    }

    /// Where to take the time from, for tests; see [`TokioTime`](crate::TokioTime).
    pub fn clock(mut self, source: impl TimeSource) -> Self {
        self.clock = Clock::custom(source);
        self
    }

    /// Builds the cache and connects its stores. A second tier or a bus that cannot be reached
    /// does not keep the cache from starting: it is tried again and again.
    ///
    /// # Errors
    /// A bad option, a store without tiers, an unclear default store, settings that a driver
    /// cannot work with, or no tokio runtime with time enabled.
    pub async fn build(self) -> Result<BentoCache> {
        if let Some(error) = self.options.error {
            return Err(error);
        }
        let runtime = runtime()?;
        let default = match (self.default, self.stores.len()) {
            (_, 0) => {
                return Err(Error::config("there is no store; add one with `.store(name, store)`"));
            }
            (Some(name), _) if self.stores.contains_key(&name) => name,
            (Some(name), _) => return Err(unknown(&name, &self.stores)),
            (None, 1) => self.stores.keys().next().cloned().unwrap_or_default(),
            (None, _) => {
                let message = "there are several stores; choose one with `.default_store(name)`";
                return Err(Error::config(message));
            }
        };
        let events = Arc::new(Events::new(self.observers));
        let mut stores = BTreeMap::new();
        for (name, store) in self.stores {
            let parts = Parts {
                options: &self.options,
                clock: self.clock.clone(),
                events: events.clone(),
                runtime: runtime.clone(),
            };
            let cache = store.open(&name, parts).await?;
            stores.insert(name, cache);
        }
        let Some(default) = stores.get(&default).cloned() else {
            return Err(unknown(&default, &stores));
        };
        let cache = BentoCache { default, all: Arc::new(All { stores, events }) };
        for plugin in self.plugins {
            plugin
                .installed(&cache)
                .map_err(|error| Error::config(format!("a plugin could not start: {error}")))?;
        }
        Ok(cache)
    }
}

/// The runtime to work in.
fn runtime() -> Result<Handle> {
    let handle = Handle::try_current().map_err(|_| {
        Error::config("there is no tokio runtime here; build the cache inside of one")
    })?;
    // Tokio tells only by a panic that a runtime has no timer.
    catch_unwind(AssertUnwindSafe(|| drop(tokio::time::sleep(Duration::ZERO)))).map_err(|_| {
        Error::config(
            "the tokio runtime has no timer; build it with `enable_time()` or `enable_all()`",
        )
    })?;
    Ok(handle)
}

/// A store in the making: a first tier, a second tier, or both, and a bus. Options given here hold
/// for this store.
#[derive(Default)]
#[must_use = "a store does nothing until it is added to a cache"]
pub struct Store {
    options: Options,
    l1: Option<Driver>,
    l2: Option<Arc<dyn DynL2>>,
    bus: Option<Arc<dyn DynBus>>,
    lock: Option<Arc<dyn DynLock>>,
}

level_setters!(Store);

/// What a store gets from the cache that it is a part of.
struct Parts<'a> {
    options: &'a Options,
    clock: Clock,
    events: Arc<Events>,
    runtime: Handle,
}

impl Store {
    /// A store without tiers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first tier: in this process. Usually a [`Memory`](crate::Memory).
    pub fn l1(mut self, driver: impl L1Driver) -> Self {
        self.l1 = Some(Driver::new(driver));
        self
    }

    /// The second tier: shared between processes.
    pub fn l2(mut self, driver: impl L2Driver) -> Self {
        self.l2 = Some(Arc::new(driver));
        self
    }

    /// The bus, which keeps the first tiers of all processes right.
    pub fn bus(mut self, driver: impl BusDriver) -> Self {
        self.bus = Some(Arc::new(driver));
        self
    }

    /// A lock between processes: of all nodes that miss a key, one runs the factory, and the others
    /// wait for what it stores in the second tier, at most for the lock timeout. When the lock
    /// fails, each node runs its own factory, as without it.
    pub fn lock(mut self, driver: impl LockDriver) -> Self {
        self.lock = Some(Arc::new(driver));
        self
    }

    async fn open(self, name: &str, parts: Parts<'_>) -> Result<Cache> {
        let Parts { options, clock, events, runtime } = parts;
        let options = self.options.or(options);
        if let Some(error) = options.error {
            return Err(error);
        }
        if self.l1.is_none() && self.l2.is_none() {
            return Err(Error::config(format!(
                "store {name:?} has no tier; give it one with `.l1(...)` or `.l2(...)`"
            )));
        }
        let enabled = options.enabled.unwrap_or(true);
        if let Some(l1) = &self.l1 {
            l1.open().map_err(|error| refused(name, &error))?;
        }
        if let Some(l2) = self.l2.as_ref().filter(|_| enabled) {
            connect(name, &**l2).await?;
        }
        let recovery = options.recovery();
        let breaker = options
            .breaker
            .unwrap_or(Some(options::Breaker { open_for: 1_000, after_failures: 5 }));
        let prefix = options.prefix.as_deref().unwrap_or("bentocache").trim_end_matches(':');
        let root: Arc<str> =
            if prefix.is_empty() { "".into() } else { format!("{prefix}:").into() };
        if let Some(l2) = &self.l2 {
            check_levels(name, &root, &**l2)?;
        }
        let bus_down = options.bus_down.unwrap_or_default();
        let site = Site {
            name: name.into(),
            root: root.clone(),
            clock,
            events,
            log_keys: options.log_keys.unwrap_or(false),
            hasher: Default::default(),
            digester: Default::default(),
        };
        let l2 = self.l2;
        let l2 = l2.map(|l2| L2::new(site.clone(), l2, breaker, recovery, runtime.clone()));
        let engine = Arc::new(Engine {
            policy: Policy::new(&options, self.l1.is_some()),
            codec: options.codec.unwrap_or_default(),
            enabled,
            on_factory_error: options.on_factory_error,
            l2,
            l1: self.l1.map(|driver| Local::new(driver, root, bus_down.longest_unchecked())),
            locks: self.lock.map(|driver| Locks::new(driver, options.lock_lease.unwrap_or(10_000))),
            bus: self.bus.map(|driver| Bus::new(driver, name, recovery, bus_down)),
            fences: Fences::new(),
            flights: Arc::new(Flights::new()),
            tags: Tags::new(options.tag_check_interval.unwrap_or(1_000), bus_down),
            work: Tasks::new(),
            services: Tasks::new(),
            open: AtomicBool::new(enabled),
            site,
            runtime_ended: Arc::default(),
            refused: AtomicU64::new(0),
            timers: Timers::new(runtime.clone()),
            runtime,
        });
        let cache = Cache::new(engine);
        if enabled {
            cache.engine.start().await?;
        }
        Ok(cache)
    }
}

/// A driver whose settings cannot work.
fn refused(store: &str, error: &DriverError) -> Error {
    let own = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Error>());
    own.cloned().unwrap_or_else(|| Error::config(format!("store {store:?}: {}", chain(error))))
}

/// A store that cannot clear by prefix must be able to hold the markers of clears.
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
                "the second tier cannot be reached; the cache starts without it");
        }
        Err(_) => {
            tracing::warn!(
                store,
                driver = l2.name(),
                "the second tier does not answer; the cache starts without it"
            );
        }
    }
    Ok(())
}

impl Engine {
    /// Starts what runs as long as the store.
    async fn start(self: &Arc<Self>) -> Result<()> {
        self.services.spawn(self.watch_runtime(), &self.runtime);
        if self.bus.is_some() {
            let stream = match self.subscribe().await {
                // An operator has to repair it, so the build must not succeed.
                Err(Some(error))
                    if matches!(error.kind(), ErrorKind::Config | ErrorKind::Denied) =>
                {
                    return Err(refused(&self.name, &error));
                }
                subscribed => {
                    subscribed.inspect_err(|error| self.not_subscribed(error.as_ref())).ok()
                }
            };
            self.services.spawn(self.clone().listen_forever(stream), &self.runtime);
            self.services.spawn(self.clone().publish_forever(), &self.runtime);
            self.services.spawn(self.clone().ask_forever(), &self.runtime);
        }
        if let Some(l2) = &self.l2 {
            let engine = self.clone();
            let replay = async move {
                if let Some(l2) = &engine.l2 {
                    l2.replay_forever(&*engine, engine.policy.l2_hard_timeout).await;
                }
            };
            self.services.spawn(replay, &self.runtime);
            if let Some(mut link) = l2.driver().link() {
                let engine = self.clone();
                let watch = async move {
                    while let Some(change) =
                        std::future::poll_fn(|cx| link.as_mut().poll_next(cx)).await
                    {
                        if change == Link::Restored {
                            engine.l2.iter().for_each(L2::is_back);
                        }
                    }
                };
                self.services.spawn(watch, &self.runtime);
            }
        }
        if self.l1.is_some() {
            self.services.spawn(self.clone().sweep_forever(), &self.runtime);
        }
        Ok(())
    }

    /// Reclaims dead entries of the first tier: often while there are many, seldom otherwise.
    async fn sweep_forever(self: Arc<Self>) {
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        let mut pause = shortest;
        loop {
            tokio::time::sleep(pause).await;
            let before = self.l1.as_ref().map_or(0, |local| local.driver.len());
            let swept = self.prune_local().await;
            pause = if swept * 20 > before { pause / 2 } else { pause * 2 };
            pause = pause.clamp(shortest, longest);
        }
    }
}
