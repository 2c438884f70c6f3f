//! The engine: one per store.
//!
//! - [`read`]: get and get_or_set, the file to read first
//! - [`find`]: looking into the tiers
//! - [`write`]: what stores and invalidates
//! - [`many`]: get_or_set for many keys
//! - [`flight`]: one factory per key at a time
//! - [`lease`]: one factory per key of all processes, with a lock
//! - [`fence`]: invalidation never loses to a slow reader
//! - [`tags`]: what is known of tags
//! - [`bus`]: what other processes say
//! - [`recovery`]: what failed and is repeated

pub(crate) mod bus;
pub(crate) mod change;
pub(crate) mod fence;
pub(crate) mod find;
pub(crate) mod flight;
pub(crate) mod invalidate;
pub(crate) mod lease;
pub(crate) mod many;
pub(crate) mod read;
pub(crate) mod recovery;
pub(crate) mod tags;
pub(crate) mod write;

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::error::Error as StdError;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::time::Duration;

use bentocache_core::{
    Call, DriverError, DynL2, Entry, EntryLimit, Inserted, Life, NEVER, TagSeen, Value,
};
use bytes::Bytes;
use foldhash::fast::RandomState as KeyHasher;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::bus::Bus;
use self::fence::{Fence, Fences};
use self::flight::Flights;
use self::lease::Locks;
use self::recovery::Recovery;
use self::tags::Tags;
use crate::clock::Clock;
use crate::error::{BoxError, ClosedReason, Error, Result};
use crate::event::{Event, EventKind, Events};
use crate::options::{ErrorHook, Policy};
use crate::sync::Mutex;
use crate::tier::local::Local;
use crate::tier::remote::{Remote, Turn};
use crate::tier::timers::Timers;
use crate::wire::codec::{self, Codec, Format};

/// What can be cached: any owned type that serde can write and read.
///
/// `Clone` is called on every hit, while a part of the first tier is locked for reading: it must be
/// quick and must not use the cache. Keep big values in an `Arc`.
pub trait CacheValue: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}

impl<T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> CacheValue for T {}

/// As many as a call has keys, which is mostly one: that needs no allocation.
pub(crate) type Few<T> = SmallVec<[T; 1]>;

/// The latest time that every reader can hold exactly, the Node library included. What would
/// expire after it never does.
pub(crate) const LAST: u64 = (1 << 53) - 1;

pub(crate) struct Engine {
    pub(crate) name: Arc<str>,
    /// What all keys of the store start with: the prefix and a colon, or nothing.
    pub(crate) root: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) codec: Codec,
    pub(crate) enabled: bool,
    pub(crate) log_keys: bool,
    pub(crate) on_factory_error: Option<ErrorHook>,
    pub(crate) clock: Clock,
    pub(crate) runtime: Handle,
    /// For the limits of callers.
    pub(crate) timers: Timers,
    pub(crate) events: Arc<Events>,
    pub(crate) l1: Option<Local>,
    pub(crate) l2: Option<Remote>,
    pub(crate) bus: Option<Bus>,
    pub(crate) locks: Option<Locks>,
    pub(crate) fences: Fences,
    pub(crate) flights: Arc<Flights>,
    pub(crate) tags: Tags,
    pub(crate) recovery: Recovery,
    /// Of keys: quick, and two that meet do no harm.
    pub(crate) hasher: KeyHasher,
    /// Of stored bytes, to tell them apart.
    pub(crate) digester: RandomState,
    /// Factories and other work with an end.
    pub(crate) work: Tasks,
    /// What runs as long as the store.
    pub(crate) services: Tasks,
    /// Enabled and not disconnected. Anything else is off the hot path.
    pub(crate) open: AtomicBool,
    /// Set when the runtime ends.
    pub(crate) runtime_ended: Arc<AtomicBool>,
    /// How many values the first tier refused.
    pub(crate) refused: AtomicU64,
}

/// A complete key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) full: Arc<str>,
    /// Where the key begins that the caller gave, after prefix and namespaces.
    name_at: usize,
    /// Where it begins without the store's prefix.
    local_at: usize,
    pub(crate) hash: u64,
}

impl Key {
    /// The part before the caller's key, without its last colon.
    pub(crate) fn namespace(&self) -> &str {
        let before = &self.full[..self.name_at];
        before.strip_suffix(':').unwrap_or(before)
    }

    /// What the handle puts before its keys.
    pub(crate) fn prefix(&self) -> &str {
        &self.full[..self.name_at]
    }

    /// The key without the store's prefix, as the first tier has it.
    pub(crate) fn local(&self) -> &str {
        &self.full[self.local_at..]
    }

    /// The caller's key.
    pub(crate) fn name(&self) -> &str {
        &self.full[self.name_at..]
    }
}

/// The life of a new entry, in milliseconds; [`NEVER`] is no limit.
pub(crate) struct Span {
    /// Since the epoch.
    pub(crate) created_at: u64,
    /// From then.
    pub(crate) life: u64,
    /// From now.
    pub(crate) fresh_for: u64,
    /// From now, in the first tier.
    pub(crate) l1_ttl: u64,
    /// From now, until it is gone.
    pub(crate) end: u64,
    pub(crate) graced: bool,
    /// That of the first tier in which it is known to agree with the second.
    pub(crate) epoch: u32,
}

impl Engine {
    pub(crate) fn key(&self, prefix: &str, name: &str) -> Key {
        let full: Arc<str> = with_joined(prefix, name, |full| full.into());
        let hash = self.hash(&full);
        let local_at = if full.starts_with(&*self.root) { self.root.len() } else { 0 };
        Key { full, name_at: prefix.len(), local_at, hash }
    }

    pub(crate) fn hash(&self, full: &str) -> u64 {
        self.hasher.hash_one(full)
    }

    /// What tells stored bytes from others.
    pub(crate) fn digest(&self, bytes: &Bytes) -> u64 {
        self.digester.hash_one(bytes)
    }

    pub(crate) fn watch(&self, key: &Key) -> Fence {
        self.fences.watch(key.hash)
    }

    /// As [`watch`](Self::watch), for a flight that takes the place of a hung one if it `replaces`.
    pub(crate) fn watch_instead(&self, key: &Key, replaces: bool) -> Fence {
        if replaces { self.fences.change(key.hash, || ()).1 } else { self.watch(key) }
    }

    /// An error once the store is disconnected or its runtime has ended.
    pub(crate) fn check_open(&self) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let reason = if !self.open.load(Relaxed) {
            ClosedReason::Disconnected
        } else if self.runtime_ended.load(Relaxed) {
            ClosedReason::RuntimeEnded
        } else {
            return Ok(());
        };
        Err(Error::Closed { reason })
    }

    /// Notes when the runtime ends: it then drops this task, before anything else of it stops.
    pub(crate) fn watch_runtime(&self) -> impl Future<Output = ()> + Send + use<> {
        struct Mark(Arc<AtomicBool>);
        impl Drop for Mark {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let mark = Mark(self.runtime_ended.clone());
        async move {
            let _mark = mark;
            std::future::pending::<()>().await;
        }
    }

    /// Whether the cache is switched off; an error if it is disconnected.
    pub(crate) fn is_off(&self) -> Result<bool> {
        self.check_open()?;
        Ok(!self.enabled)
    }

    /// Tells whoever listens. `kind` is only called when somebody does.
    #[inline]
    pub(crate) fn emit<'a>(&'a self, kind: impl FnOnce() -> EventKind<'a>) {
        if self.events.is_active() {
            self.events.send(&Event { store: Cow::Borrowed(&self.name), kind: kind() });
        }
    }

    /// A complete key as events show it: without the store's prefix.
    pub(crate) fn shown<'a>(&self, full: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(full.strip_prefix(&*self.root).unwrap_or(full))
    }

    /// A key as errors show it.
    pub(crate) fn key_in_errors(&self, key: &Key) -> Arc<str> {
        self.shown(&key.full).into()
    }

    /// A complete key as logs show it.
    pub(crate) fn logged<'a>(&self, full: &'a str) -> &'a str {
        if self.log_keys { full } else { "(hidden)" }
    }

    /// One call of the second tier, with what it means for events and for recovery.
    pub(crate) async fn l2_call<'a, T>(
        &'a self,
        remote: &'a Remote,
        operation: &'static str,
        limit: u64,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Result<T, Arc<DriverError>> {
        let reply = remote.call(limit, call).await;
        match reply.turn {
            Some(Turn::Opened) => {
                tracing::warn!(store = %self.name, driver = remote.driver.name(),
                    "the second tier fails repeatedly and is left alone for a while");
                self.emit(|| EventKind::BreakerOpened);
            }
            Some(Turn::Closed) => {
                tracing::info!(store = %self.name, driver = remote.driver.name(),
                    "the second tier works again");
                self.emit(|| EventKind::BreakerClosed);
                self.recovery.kick();
            }
            None => {}
        }
        if let Err(error) = &reply.result {
            tracing::warn!(store = %self.name, operation, error = %chain(&**error),
                "the second tier failed");
            self.emit(|| EventKind::L2Failed { operation, error: error.clone() });
        }
        reply.result
    }

    /// The error of an operation that the second tier failed.
    pub(crate) fn l2_error(&self, operation: &'static str, source: Arc<DriverError>) -> Error {
        let driver = self.l2.as_ref().map_or("none", |remote| remote.driver.name());
        Error::L2 { operation, driver, source }
    }

    /// Puts an entry into the first tier. To be called under the key's fence; what comes back is
    /// to be handed to [`discard`](Self::discard) outside of it.
    pub(crate) fn l1_insert(&self, entry: Arc<Entry>, weight: u64) -> Inserted {
        match &self.l1 {
            Some(local) => local.driver.insert(entry, weight),
            None => Inserted::default(),
        }
    }

    /// Drops what the insertion of an entry of that weight pushed out, and tells of evictions and of
    /// a refusal.
    pub(crate) fn discard(&self, inserted: &Inserted, entry: &Entry, weight: u64) {
        for entry in &inserted.evicted {
            self.emit(|| EventKind::Evicted { key: Cow::Borrowed(entry.key()) });
        }
        if inserted.refused {
            self.tell_refused(entry, weight);
        }
    }

    #[cold]
    fn tell_refused(&self, entry: &Entry, weight: u64) {
        let (size, limit) = self.size_and_limit(entry, weight);
        self.emit(|| EventKind::Refused { key: Cow::Borrowed(entry.key()), size, limit });
        let count = self.refused.fetch_add(1, Relaxed) + 1;
        // Once, and then so seldom that it is no flood.
        if count.checked_ilog10().is_some_and(|digits| count == 10_u64.pow(digits)) {
            let option = self.entry_limit().map(|limit| limit.option);
            tracing::warn!(store = %self.name, key = self.logged(entry.key()), size, limit, option,
                count, "the first tier refused a value that is larger than its limit");
        }
    }

    fn entry_limit(&self) -> Option<EntryLimit> {
        self.l1.as_ref().and_then(|local| local.driver.entry_limit())
    }

    /// The size of an entry of that weight as the first tier counts it, and what that accepts.
    fn size_and_limit(&self, entry: &Entry, weight: u64) -> (u64, Option<u64>) {
        let limit = self.entry_limit();
        let beside = limit.map_or(0, |limit| limit.overhead + entry.key().len() as u64);
        (weight.saturating_add(beside), limit.map(|limit| limit.max))
    }

    /// The error of a value that was stored nowhere, because the first tier refused it.
    pub(crate) fn too_large(&self, key: &Key, entry: &Entry, weight: u64) -> Error {
        let (size, limit) = self.size_and_limit(entry, weight);
        let option = self.entry_limit().map(|limit| limit.option);
        Error::TooLarge { key: self.key_in_errors(key), size, limit, option }
    }

    /// Whether the first tier asks for the sizes of values.
    pub(crate) fn is_weighted(&self) -> bool {
        self.l1.as_ref().is_some_and(|local| local.driver.is_weighted())
    }

    /// How large the value is for the limits of the first tier, if it asks.
    pub(crate) fn weight(&self, entry: &Entry, encoded: Option<usize>) -> u64 {
        if !self.is_weighted() {
            return 0;
        }
        let measure = || {
            let mut bytes = Vec::new();
            // What cannot be encoded is only ever in this tier; its size stays unknown.
            let _ = entry.value().encode(self.codec.format().id(), &mut bytes);
            bytes.len()
        };
        encoded.unwrap_or_else(measure) as u64
    }

    /// A new entry, as the first tier holds it.
    pub(crate) fn entry<T: CacheValue>(
        &self,
        key: &Key,
        value: T,
        span: &Span,
        tags: Option<Box<[TagSeen]>>,
    ) -> Arc<Entry> {
        let now = self.clock.now();
        let life = Life {
            created_at: span.created_at,
            life: span.life,
            ends_at: now.saturating_add(span.fresh_for),
            fresh_until: now.saturating_add(span.fresh_for.min(span.l1_ttl)),
            dead_at: now.saturating_add(span.end),
            verified_at: now,
            epoch: span.epoch,
            graced: span.graced,
        };
        Arc::new(Entry::new(key.local(), Held(value), life, tags))
    }

    /// The epoch of the first tier.
    pub(crate) fn epoch(&self) -> u32 {
        self.l1.as_ref().map_or(1, Local::epoch)
    }

    /// Spawns work with an end.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.work.spawn(work, &self.runtime);
    }

    /// Ends everything at once.
    pub(crate) fn abort(&self) {
        self.open.store(false, Relaxed);
        self.services.abort();
        self.work.abort();
    }

    /// Ends everything in order: work gets a moment to finish, failed writes one more try.
    pub(crate) async fn disconnect(self: &Arc<Self>) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        self.check_open()?;
        if !self.open.swap(false, Relaxed) && self.enabled {
            return Err(Error::Closed { reason: ClosedReason::Disconnected });
        }
        let bounded = |ms| self.timers.until(Instant::now() + Duration::from_millis(ms));
        self.services.abort();
        tokio::select! {
            () = self.work.finished() => {}
            _ = bounded(PATIENCE.as_millis() as u64) => {}
        }
        self.work.abort();
        tokio::select! {
            _ = self.replay() => {}
            _ = bounded(PATIENCE.as_millis() as u64) => {}
        }
        // After what was repeated, which has to be told too.
        if let Some(bus) = &self.bus {
            tokio::select! {
                () = bus.flush(self) => {}
                _ = bounded(1_000) => {}
            }
        }
        let mut result = Ok(());
        if let Some(bus) = &self.bus {
            tokio::select! {
                closed = bus.driver.disconnect() => if let Err(error) = closed {
                    tracing::warn!(store = %self.name, error = %chain(&error), "closing the bus failed");
                },
                _ = bounded(PATIENCE.as_millis() as u64) => {}
            }
        }
        if let Some(remote) = &self.l2 {
            tokio::select! {
                closed = remote.driver.disconnect() => {
                    result = closed.map_err(|error| self.l2_error("disconnect", Arc::new(error)));
                }
                _ = bounded(PATIENCE.as_millis() as u64) => {}
            }
        }
        if let Some(locks) = &self.locks {
            tokio::select! {
                closed = locks.driver.disconnect() => if let Err(error) = closed {
                    tracing::warn!(store = %self.name, error = %chain(&error), "closing the lock failed");
                },
                _ = bounded(PATIENCE.as_millis() as u64) => {}
            }
        }
        if let Some(local) = &self.l1 {
            local.driver.clear("");
        }
        result
    }

    /// Calls the hook for a factory's failure: the call's, else the store's. A hook that panics
    /// harms nobody.
    pub(crate) fn report_failure(&self, error: &Error, hook: Option<&ErrorHook>) {
        let Some(hook) = hook.or(self.on_factory_error.as_ref()) else { return };
        if catch_unwind(AssertUnwindSafe(|| hook(error))).is_err() {
            tracing::error!(store = %self.name, "the on_factory_error hook panicked");
        }
    }
}

/// A value as the first tier holds it.
struct Held<T>(T);

impl<T: CacheValue> Value for Held<T> {
    fn encode(&self, codec: u8, out: &mut Vec<u8>) -> Result<(), BoxError> {
        let format = Format::from_id(codec).ok_or("unknown codec")?;
        codec::encode_value(format, &self.0, out)
    }
}

/// The value of an entry, if it is of that type.
#[inline]
pub(crate) fn value_of<T: CacheValue>(entry: &Entry) -> Option<&T> {
    let value: &dyn Any = entry.value();
    value.downcast_ref().map(|Held(value)| value)
}

/// The value of an entry as another type, if it can be read as one.
pub(crate) fn converted<T: CacheValue>(entry: &Entry, codec: Codec) -> Option<T> {
    convert(entry, codec).ok()
}

/// The value of an entry as another type: through the codec.
pub(crate) fn convert<T: CacheValue>(entry: &Entry, codec: Codec) -> Result<T, BoxError> {
    let mut bytes = Vec::new();
    entry.value().encode(codec.format().id(), &mut bytes)?;
    codec::decode_value(codec.format(), &bytes)
}

/// Calls `with` with the key in one piece, without allocating unless it is very long.
#[inline]
pub(crate) fn with_joined<R>(namespace: &str, name: &str, with: impl FnOnce(&str) -> R) -> R {
    /// What a thread keeps for keys.
    const ROOM: usize = 4 << 10;
    thread_local! {
        static BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
    }
    if namespace.is_empty() {
        return with(name);
    }
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) if namespace.len() + name.len() <= ROOM => {
            buffer.clear();
            buffer.push_str(namespace);
            buffer.push_str(name);
            with(&buffer)
        }
        // Or a driver that calls the cache.
        _ => with(&[namespace, name].concat()),
    })
}

/// An error with all its causes on one line.
pub(crate) fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl std::fmt::Display + 'a {
    struct Chain<'a>(&'a (dyn StdError + 'static));
    impl std::fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{}", self.0)?;
            let mut cause = self.0.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
            Ok(())
        }
    }
    Chain(error)
}

/// What is left of a span that ends then; [`NEVER`] stays.
pub(crate) fn until(end: u64, now: u64) -> u64 {
    if end == NEVER { NEVER } else { end.saturating_sub(now) }
}

/// Milliseconds as drivers take them; none for ever.
pub(crate) fn as_ttl(ms: u64) -> Option<Duration> {
    (ms != NEVER).then(|| Duration::from_millis(ms))
}

/// Owned tasks: they end with the store.
#[derive(Default)]
pub(crate) struct Tasks {
    set: Mutex<Option<JoinSet<()>>>,
    changes: Arc<Changes>,
}

/// Changes that are run by their callers.
#[derive(Default)]
struct Changes {
    running: AtomicUsize,
    idle: Notify,
}

/// A change that is run by its caller, until this is dropped.
pub(crate) struct Busy(Arc<Changes>);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self { set: Mutex::new(Some(JoinSet::new())), ..Self::default() }
    }

    /// Counts a change that is not a task.
    fn busy(&self) -> Busy {
        self.changes.running.fetch_add(1, SeqCst);
        Busy(self.changes.clone())
    }

    /// Spawns a task, unless the tasks were ended.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static, runtime: &Handle) {
        // A runtime that has ended drops the task at once. What that drops in turn may come back
        // here, so the task itself is dropped outside of the lock.
        let task = Arc::new(Mutex::new(Some(Box::pin(task))));
        let shared = task.clone();
        let run = async move {
            let task = shared.lock().take();
            if let Some(task) = task {
                task.await;
            }
        };
        if let Some(set) = &mut *self.set.lock() {
            set.spawn_on(run, runtime);
            while set.try_join_next().is_some() {}
        }
        drop(task);
    }

    /// Ends all tasks and refuses new ones.
    pub(crate) fn abort(&self) {
        // Dropped outside of the lock: a task's own drop may come back here.
        let set = self.set.lock().take();
        drop(set);
    }

    /// Waits until there are no tasks and no changes.
    async fn finished(&self) {
        loop {
            // First: a change whose caller goes away becomes a task.
            let mut idle = pin!(self.changes.idle.notified());
            idle.as_mut().enable();
            if self.changes.running.load(SeqCst) > 0 {
                idle.await;
                continue;
            }
            let Some(mut set) = self.set.lock().replace(JoinSet::new()) else { return };
            if set.is_empty() {
                return;
            }
            while set.join_next().await.is_some() {}
        }
    }
}
