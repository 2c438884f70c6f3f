//! The cache: named stores, one of them the default.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{BusDriver, L1Driver, L2Driver, LockDriver, NEVER};
use tokio::runtime::Handle;

use crate::advisor::{Advice, setup};
use crate::clock::{Clock, TimeSource};
use crate::engine::Engine;
use crate::engine::open::{Drivers, Shared};
use crate::error::{BoxError, ClosedReason, Error, Result};
use crate::event::{Event, EventStream, Events, Listener, Observer};
use crate::front::cache::Cache;
use crate::join::join_all;
use crate::l1::Driver;
use crate::options::{BusDown, ByteSize, Options, RecoveryMode, TagScope, TimeSpan, level_setters};
use crate::stats::{Health, Stats};
use crate::wire::codec::Codec;

/// The cache: named stores, one of which is the default. It is a handle that is cheap to clone.
///
/// It derefs to the [`Cache`] of its default store, so that every operation is available on it.
///
/// When the last handle of a store is dropped, its background work ends. To end it in order, with
/// one more try for failed changes, call [`disconnect_all`](BentoCache::disconnect_all).
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// let store = Store::new().l1(Memory::new().max_size("100mb")).ttl("10m");
/// let cache = BentoCache::builder().store("main", store).build().await?;
///
/// let user = cache.get_or_set("user:42", |_| async { Ok::<_, std::io::Error>("ann".to_owned()) });
/// assert_eq!(user.await?, "ann");
/// # Ok(()) }
/// ```
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
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// let cache = BentoCache::builder()
    ///     .store("main", Store::new().l1(Memory::new()))
    ///     .ttl("10m")
    ///     .build()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The store with this name.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = || Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder()
    /// #     .store("main", store())
    /// #     .store("sessions", store())
    /// #     .default_store("main")
    /// #     .build()
    /// #     .await?;
    /// let sessions = cache.store("sessions")?;
    /// sessions.set("s1", 42).await?;
    /// assert!(cache.missing("s1").await?, "another store");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownStore`], which names the existing stores.
    #[doc(alias("use"))]
    pub fn store(&self, name: &str) -> Result<Cache> {
        self.all.stores.get(name).cloned().ok_or_else(|| unknown(name, &self.all.stores))
    }

    /// The names of the stores.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = || Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder()
    /// #     .store("main", store())
    /// #     .store("sessions", store())
    /// #     .default_store("main")
    /// #     .build()
    /// #     .await?;
    /// assert!(cache.stores().eq(["main", "sessions"]));
    /// # Ok(()) }
    /// ```
    pub fn stores(&self) -> impl Iterator<Item = &str> {
        self.all.stores.keys().map(|name| &**name)
    }

    /// Clears all stores.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).await?;
    /// cache.clear_all().await?;
    /// assert!(cache.missing("a").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The first failure; the other stores are cleared nevertheless.
    #[doc(alias("flush", "clearAll"))]
    pub async fn clear_all(&self) -> Result<()> {
        let mut result = Ok(());
        for store in self.all.stores.values() {
            result = result.and(store.clear().await);
        }
        result
    }

    /// The statistics of all stores, in the order of their names; see [`Cache::stats`].
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// for stats in cache.stats_all() {
    ///     println!("{}: {} hits, {} misses", stats.store, stats.hits(), stats.misses);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn stats_all(&self) -> Vec<Stats> {
        self.all.stores.values().map(Cache::stats).collect()
    }

    /// The configurations of all stores that work and are probably wrong; see [`Cache::advice`].
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// for advice in cache.advice() {
    ///     println!("{advice}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn advice(&self) -> Vec<Advice> {
        self.all.stores.values().flat_map(Cache::advice).collect()
    }

    /// Whether this process can go on: no store was disconnected, and the runtime of the cache
    /// runs. For liveness routes: it asks no server and does not wait, because a restart does not
    /// repair a server.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// assert!(cache.is_live());
    /// cache.disconnect_all().await?;
    /// assert!(!cache.is_live());
    /// # Ok(()) }
    /// ```
    pub fn is_live(&self) -> bool {
        self.all.stores.values().all(|store| store.engine.check_open().is_ok())
    }

    /// The health of all stores, which are asked at the same time; see [`Cache::health`].
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let health = cache.health().await;
    /// assert!(health.is_live() && health.is_ready());
    /// # Ok(()) }
    /// ```
    #[doc(alias("ping"))]
    pub async fn health(&self) -> Health {
        let stores = self.all.stores.values().map(Cache::health).collect();
        Health { stores: join_all(stores).await }
    }

    /// Waits until every change of all stores has reached L2 and the other processes; see
    /// [`Cache::flush`].
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.flush_all().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The first failure.
    pub async fn flush_all(&self) -> Result<()> {
        let flushed = join_all(self.all.stores.values().map(Cache::flush).collect()).await;
        flushed.into_iter().collect()
    }

    /// Ends all stores; see [`Cache::disconnect`].
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.disconnect_all().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The first failure; the other stores are ended nevertheless.
    #[doc(alias("disconnectAll"))]
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
    ///
    /// ```
    /// # use bentocache::{BentoCache, EventKind, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let mut events = cache.events();
    /// cache.set("a", 1).await?;
    /// let event = events.next().await.expect("the cache is open");
    /// assert!(matches!(event.kind, EventKind::Written { .. }));
    /// # Ok(()) }
    /// ```
    pub fn events(&self) -> EventStream {
        EventStream::new(self.all.events.subscribe())
    }

    /// Calls `listen` for every event from now on, on a separate thread. So it may be slow, and it
    /// may panic, without harm to the cache or to other listeners.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let listener = cache.on(|event| println!("{}: {:?}", event.store, event.kind))?;
    /// cache.set("a", 1).await?;
    /// listener.stop();
    /// # Ok(()) }
    /// ```
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
///
/// ```
/// use std::sync::Arc;
///
/// use bentocache::{BentoCache, BoxError, Event, Observer, Plugin};
///
/// struct Printer;
///
/// impl Observer for Printer {
///     fn observe(&self, event: &Event<'_>) {
///         println!("{:?}", event.kind);
///     }
/// }
///
/// impl Plugin for Printer {
///     fn observer(&self) -> Option<Arc<dyn Observer>> {
///         Some(Arc::new(Printer))
///     }
///
///     fn installed(self: Box<Self>, cache: &BentoCache) -> Result<(), BoxError> {
///         println!("stores: {:?}", cache.stores().collect::<Vec<_>>());
///         Ok(())
///     }
/// }
/// ```
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
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// let store = Store::new().l1(Memory::new());
/// let cache = BentoCache::builder().store("main", store).prefix("shop").ttl("10m").build().await?;
/// # Ok(()) }
/// ```
#[derive(Default)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    options: Options,
    default: Option<Box<str>>,
    stores: BTreeMap<Box<str>, Store>,
    observers: Vec<Arc<dyn Observer>>,
    plugins: Vec<Box<dyn Plugin>>,
    clock: Clock,
    factory_runtime: Option<Handle>,
}

level_setters!(Builder);

impl Builder {
    /// Adds a store. The bus uses the name, so processes that share a store must use the same name.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// let store = Store::new().l1(Memory::new());
    /// let cache = BentoCache::builder().store("main", store).build().await?;
    /// assert_eq!(cache.name(), "main");
    /// # Ok(()) }
    /// ```
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
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// let store = || Store::new().l1(Memory::new());
    /// let cache = BentoCache::builder()
    ///     .store("main", store())
    ///     .store("sessions", store())
    ///     .default_store("main")
    ///     .build()
    ///     .await?;
    /// assert_eq!(cache.name(), "main");
    /// # Ok(()) }
    /// ```
    pub fn default_store(mut self, name: impl Into<String>) -> Self {
        self.default = Some(name.into().into_boxed_str());
        self
    }

    /// Adds an observer, which gets every event immediately; for metrics.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    ///
    /// use bentocache::{BentoCache, Event, EventKind, Observer};
    ///
    /// #[derive(Default)]
    /// struct Misses(AtomicU64);
    ///
    /// impl Observer for Misses {
    ///     fn observe(&self, event: &Event<'_>) {
    ///         if let EventKind::Miss { .. } = event.kind {
    ///             self.0.fetch_add(1, Relaxed);
    ///         }
    ///     }
    /// }
    ///
    /// let builder = BentoCache::builder().observer(Misses::default());
    /// ```
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// Adds a plugin.
    ///
    /// ```
    /// # use bentocache::{BentoCache, BoxError, Plugin};
    /// struct Announce;
    ///
    /// impl Plugin for Announce {
    ///     fn installed(self: Box<Self>, cache: &BentoCache) -> Result<(), BoxError> {
    ///         println!("the default store is {}", cache.name());
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let builder = BentoCache::builder().plugin(Announce);
    /// ```
    pub fn plugin(mut self, plugin: impl Plugin) -> Self {
        self.observers.extend(plugin.observer());
        self.plugins.push(Box::new(plugin));
        self
    }

    /// Sets the source of time, for tests; see [`TokioTime`](crate::TokioTime).
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store, TokioTime};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// let builder = BentoCache::builder().store("m", Store::new().l1(Memory::new()));
    /// let cache = builder.clock(TokioTime::new()).build().await?;
    /// cache.set("a", 1).ttl("1m").await?;
    /// // The cache's time follows tokio's, which a test can pause.
    /// tokio::time::pause();
    /// tokio::time::advance(std::time::Duration::from_secs(61)).await;
    /// assert!(cache.missing("a").await?);
    /// # Ok(()) }
    /// ```
    pub fn clock(mut self, source: impl TimeSource) -> Self {
        self.clock = Clock::custom(source);
        self
    }

    /// The runtime that runs the factories, by default the one that builds the cache. For services
    /// with several runtimes, such as one for each kind of work. If it ends, waiting callers get
    /// [`Error::Abandoned`].
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let work = tokio::runtime::Runtime::new().expect("a runtime");
    /// let builder = BentoCache::builder().store("m", Store::new().l1(Memory::new()));
    /// let cache = builder.factory_runtime(work.handle().clone()).build().await?;
    /// # work.shutdown_background();
    /// # Ok(()) }
    /// ```
    pub fn factory_runtime(mut self, runtime: Handle) -> Self {
        self.factory_runtime = Some(runtime);
        self
    }

    /// Builds the cache and connects its stores. An L2 or a bus that is unavailable does not
    /// prevent the start: the cache starts without it, and keeps trying to connect.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// let store = Store::new().l1(Memory::new());
    /// let cache = BentoCache::builder().store("main", store).build().await?;
    /// assert!(BentoCache::builder().build().await.is_err(), "there is no store");
    /// # Ok(()) }
    /// ```
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
        let factory_runtime = self.factory_runtime.unwrap_or_else(|| runtime.clone());
        let (clock, events) = (self.clock, events.clone());
        let shared = Shared { clock, events: events.clone(), runtime, factory_runtime };
        let mut stores = BTreeMap::new();
        for (name, store) in self.stores {
            let cache = store.open(&name, &self.options, shared.clone()).await?;
            stores.insert(name, cache);
        }
        advise_on_places(&stores);
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

/// Reports stores that share their keys with a store before them.
fn advise_on_places(stores: &BTreeMap<Box<str>, Cache>) {
    let mut before: Vec<(&Cache, String, &str)> = Vec::new();
    for store in stores.values() {
        let Some((l2, root)) = store.engine.place() else { continue };
        let same = before.iter().find(|(_, other, prefix)| (other, *prefix) == (&l2, root));
        if let Some((other, ..)) = same {
            let finding = setup::shared_prefix(other.name(), root.trim_end_matches(':'));
            if !other.engine.advisor.is_silenced(finding.code) {
                store.engine.advisor.report(finding);
            }
        }
        before.push((store, l2, root));
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
///
/// ```
/// # use bentocache::{Memory, Store};
/// let store = Store::new().l1(Memory::new().max_items(10_000)).ttl("10m").grace("6h");
/// ```
#[derive(Default)]
#[must_use = "a store does nothing until it is added to a cache"]
pub struct Store {
    options: Options,
    drivers: Drivers,
}

level_setters!(Store);

impl Store {
    /// A store without tiers yet.
    ///
    /// ```
    /// # use bentocache::{Memory, Store};
    /// let store = Store::new().l1(Memory::new());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets L1, the tier in this process. Usually a [`Memory`](crate::Memory).
    ///
    /// ```
    /// # use bentocache::{Memory, Store};
    /// let store = Store::new().l1(Memory::new().max_size("100mb"));
    /// ```
    pub fn l1(mut self, driver: impl L1Driver) -> Self {
        self.drivers.l1 = Some(Driver::new(driver));
        self
    }

    /// Sets L2, the tier that processes share.
    ///
    /// ```
    /// # use bentocache::redis::Redis;
    /// # use bentocache::{Memory, Store};
    /// let store = Store::new().l1(Memory::new()).l2(Redis::new("redis://localhost:6379"));
    /// ```
    pub fn l2(mut self, driver: impl L2Driver) -> Self {
        self.drivers.l2 = Some(Arc::new(driver));
        self
    }

    /// Sets the bus, which keeps the L1 of every process coherent.
    ///
    /// ```
    /// # use bentocache::{InProcessBus, Memory, Store};
    /// // Two caches of one process; `RedisBus`, `Nats` and others connect processes.
    /// let bus = InProcessBus::new();
    /// let one = Store::new().l1(Memory::new()).bus(bus.clone());
    /// let other = Store::new().l1(Memory::new()).bus(bus);
    /// ```
    pub fn bus(mut self, driver: impl BusDriver) -> Self {
        self.drivers.bus = Some(Arc::new(driver));
        self
    }

    /// Sets a lock between processes: of all nodes that miss a key, one runs the factory, and the
    /// others wait for the value that it stores in L2, at most for the lock timeout. If the lock
    /// fails, each node runs its own factory, as without a lock.
    ///
    /// ```
    /// # use bentocache::redis::{Redis, RedisLock};
    /// # use bentocache::{Memory, Store};
    /// let url = "redis://localhost:6379";
    /// let store = Store::new().l1(Memory::new()).l2(Redis::new(url)).lock(RedisLock::new(url));
    /// ```
    pub fn lock(mut self, driver: impl LockDriver) -> Self {
        self.drivers.lock = Some(Arc::new(driver));
        self
    }

    async fn open(self, name: &str, options: &Options, shared: Shared) -> Result<Cache> {
        let options = self.options.or(options);
        let version = options.version;
        let cache = Cache::new(Engine::open(name, options, self.drivers, shared).await?);
        Ok(version.map_or_else(|| cache.clone(), |version| cache.version(version)))
    }
}
