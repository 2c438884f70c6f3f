//! The cache: named stores, one of them the default.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{BusDriver, L1Driver, L2Driver, LockDriver, NEVER};
use tokio::runtime::Handle;

use crate::clock::{Clock, TimeSource};
use crate::engine::Engine;
use crate::engine::open::{Drivers, Shared};
use crate::error::{BoxError, ClosedReason, Error, Result};
use crate::event::{Event, EventStream, Events, Listener, Observer};
use crate::front::cache::Cache;
use crate::l1::Driver;
use crate::options::{BusDown, ByteSize, Options, RecoveryMode, TimeSpan, level_setters};
use crate::wire::codec::Codec;

/// The cache: named stores, one of which is the default. It is a handle that is cheap to clone.
///
/// It derefs to the [`Cache`] of its default store, so that every operation is available on it.
///
/// When the last handle of a store is dropped, its background work ends. To end it in order, with
/// one more try for failed changes, call [`disconnect_all`](BentoCache::disconnect_all).
#[derive(Clone)]
pub struct BentoCache {
    default: Cache,
    all: Arc<All>,
}

/// State that all clones share.
struct All {
    stores: BTreeMap<Box<str>, Cache>,
    events: Arc<Events>,
}

impl BentoCache {
    /// Starts to configure a cache.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The store with this name.
    ///
    /// # Errors
    /// [`Error::UnknownStore`], which names the existing stores.
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
    /// The first failure; the other stores are cleared nevertheless.
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
    /// The first failure; the other stores are ended nevertheless.
    pub async fn disconnect_all(&self) -> Result<()> {
        let mut result = Ok(());
        for store in self.all.stores.values() {
            result = result.and(match store.disconnect().await {
                // This store was disconnected before.
                Err(Error::Closed { reason: ClosedReason::Disconnected }) => Ok(()),
                other => other,
            });
        }
        result
    }

    /// A stream of the events of all stores from now on.
    pub fn events(&self) -> EventStream {
        EventStream::new(self.all.events.subscribe())
    }

    /// Calls `listen` for every event from now on, on a separate thread. So it may be slow, and it
    /// may panic, without harm to the cache or to other listeners.
    ///
    /// # Errors
    /// If the system cannot start a thread.
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

/// An extension that is installed when the cache is built, such as a metrics exporter.
pub trait Plugin: Send + 'static {
    /// An observer that gets every event from the start.
    fn observer(&self) -> Option<Arc<dyn Observer>> {
        None
    }

    /// Called when the cache is built.
    ///
    /// # Errors
    /// An error makes the build fail.
    fn installed(self: Box<Self>, cache: &BentoCache) -> Result<(), BoxError> {
        let _ = cache;
        Ok(())
    }
}

/// The configuration of a cache; see [`BentoCache::builder`]. Options set here apply to all stores.
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
    /// Adds a store. The bus uses the name, so processes that share a store must use the same name.
    pub fn store(mut self, name: impl Into<String>, store: Store) -> Self {
        let name = name.into().into_boxed_str();
        if let Some(_former) = self.stores.insert(name.clone(), store) {
            let message = format!("there are two stores named {name:?}; give each its own name");
            self.options.error.get_or_insert(Error::config(message));
        }
        self
    }

    /// Sets the store that the operations of [`BentoCache`] itself use. Required if there are
    /// several stores.
    pub fn default_store(mut self, name: impl Into<String>) -> Self {
        self.default = Some(name.into().into_boxed_str());
        self
    }

    /// Adds an observer, which gets every event immediately; for metrics.
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

    /// Sets the source of time, for tests; see [`TokioTime`](crate::TokioTime).
    pub fn clock(mut self, source: impl TimeSource) -> Self {
        self.clock = Clock::custom(source);
        self
    }

    /// Builds the cache and connects its stores. An L2 or a bus that is unavailable does not
    /// prevent the start: the cache starts without it, and keeps trying to connect.
    ///
    /// # Errors
    /// An invalid option, a store without tiers, an ambiguous default store, settings with which a
    /// driver cannot work, or no tokio runtime with time enabled.
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
        let shared = Shared { clock: self.clock, events: events.clone(), runtime };
        let mut stores = BTreeMap::new();
        for (name, store) in self.stores {
            let cache = store.open(&name, &self.options, shared.clone()).await?;
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

/// The runtime of the cache.
fn runtime() -> Result<Handle> {
    let handle = Handle::try_current().map_err(|_| {
        Error::config("there is no tokio runtime here; build the cache inside of one")
    })?;
    // A panic is tokio's only sign that a runtime has no timer.
    catch_unwind(AssertUnwindSafe(|| drop(tokio::time::sleep(Duration::ZERO)))).map_err(|_| {
        Error::config(
            "the tokio runtime has no timer; build it with `enable_time()` or `enable_all()`",
        )
    })?;
    Ok(handle)
}

/// The configuration of a store: an L1, an L2, or both, a bus and a lock. Options set here apply to
/// this store.
#[derive(Default)]
#[must_use = "a store does nothing until it is added to a cache"]
pub struct Store {
    options: Options,
    drivers: Drivers,
}

level_setters!(Store);

impl Store {
    /// A store without tiers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets L1, the tier in this process. Usually a [`Memory`](crate::Memory).
    pub fn l1(mut self, driver: impl L1Driver) -> Self {
        self.drivers.l1 = Some(Driver::new(driver));
        self
    }

    /// Sets L2, the tier that processes share.
    pub fn l2(mut self, driver: impl L2Driver) -> Self {
        self.drivers.l2 = Some(Arc::new(driver));
        self
    }

    /// Sets the bus, which keeps the L1 of every process coherent.
    pub fn bus(mut self, driver: impl BusDriver) -> Self {
        self.drivers.bus = Some(Arc::new(driver));
        self
    }

    /// Sets a lock between processes: of all nodes that miss a key, one runs the factory, and the
    /// others wait for the value that it stores in L2, at most for the lock timeout. If the lock
    /// fails, each node runs its own factory, as without a lock.
    pub fn lock(mut self, driver: impl LockDriver) -> Self {
        self.drivers.lock = Some(Arc::new(driver));
        self
    }

    async fn open(self, name: &str, options: &Options, shared: Shared) -> Result<Cache> {
        let options = self.options.or(options);
        Ok(Cache::new(Engine::open(name, options, self.drivers, shared).await?))
    }
}
