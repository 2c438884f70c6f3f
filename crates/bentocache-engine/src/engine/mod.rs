//! The engine: one per store. It uses the two tiers, the bus and the lock through one interface
//! each, and decides which of them each operation needs.
//!
//! Read these modules first, in this order:
//!
//! - [`fetch`]: `get_or_set` as its callers see it; [`get`] has the plain reads
//! - [`produce`]: the work of a flight; [`flight`]: one flight per key at a time
//! - [`find`]: lookups in the tiers
//! - [`set`]: stores values; [`add`]: only where none is fresh; [`remove`]: delete, expire, clear, delete by tag, pull and prune
//!
//! Supporting modules:
//!
//! - [`open`]: the start of a store's engine; [`tasks`]: background work and its end
//! - [`places`]: the limit of factories that run at the same time
//! - [`wait`]: the timeouts of a caller; [`factory`]: runs a caller's function
//! - [`context`]: the argument of a factory; [`nesting`]: the factories that a call is made from
//! - [`sliding`]: tells L2 of the uses of sliding values
//! - [`touch`]: another life for a value
//! - [`change`]: changes of both tiers that run to completion when their caller is dropped
//! - [`messages`]: announcements on the bus, and the effects of messages from there
//! - [`replayed`]: the effects of a replayed L2 change on the other modules
//! - [`snapshot`]: L1 outlives its process
//! - [`stats`]: the statistics of the store; [`health`]: its health
//! - [`keys`]: lists keys; [`inspect`]: what is known of one entry

mod add;
mod background;
pub(crate) mod change;
pub(crate) mod context;
pub(crate) mod factory;
pub(crate) mod fetch;
mod find;
mod flight;
mod get;
mod health;
mod inspect;
pub(crate) mod keys;
mod messages;
pub(crate) mod nesting;
pub(crate) mod open;
mod places;
mod produce;
mod remove;
mod replayed;
mod set;
mod sliding;
mod snapshot;
mod stats;
mod tasks;
mod touch;
mod versions;
mod wait;

use std::borrow::Cow;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
    fence,
};
use std::time::Duration;

use bentocache_driver::{DriverError, Entry, Life, TagSeen, Validators};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::Instrument;

use self::flight::Flights;
use self::places::Places;
use self::snapshot::Snapshots;
use self::tasks::Tasks;
use crate::advisor::Advisor;
use crate::bus::Bus;
use crate::error::{ClosedReason, Error, Result};
use crate::l1::L1;
use crate::l1::fence::Fence;
use crate::l2::L2;
use crate::lock::Locks;
use crate::options::{Hooks, Policy};
use crate::tags::{TagCall, Tags};
use crate::timers::{Ended, Timers};
use crate::value::Held;
use crate::wire::codec::Codec;

use self::versions::Versions;
use crate::site::unversioned;
pub(crate) use crate::site::{Key, KeyVec, LAST, Site, chain, until};
pub(crate) use crate::value::{CacheValue, FactoryError, convert, value_of};

/// The time that each step of the end of a store gets.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Engine {
    site: Site,
    policy: Policy,
    codec: Codec,
    enabled: bool,
    hooks: Hooks,
    /// Whether all namespaces share their tags.
    shares_tags: bool,
    /// Whether values are encrypted in L2.
    encrypts: bool,
    versions: Versions,
    runtime: Handle,
    /// Runs the flights.
    factory_runtime: Handle,
    /// Timers for the timeouts of callers.
    timers: Timers,
    l1: L1,
    l2: Option<L2>,
    bus: Option<Arc<Bus>>,
    locks: Option<Arc<Locks>>,
    flights: Arc<Flights>,
    places: Places,
    tags: Tags,
    pub(crate) advisor: Advisor,
    snapshots: Option<Snapshots>,
    /// Factories and other work that ends.
    work: Tasks,
    /// Services that run as long as the store.
    services: Tasks,
    /// Enabled and not disconnected. If false, no call takes the hot path.
    open: AtomicBool,
    /// Set when the runtime ends.
    runtime_ended: Arc<AtomicBool>,
}

/// The engine answers for its store.
impl Deref for Engine {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

/// The life of a new entry, in milliseconds; [`NEVER`] is no limit.
#[derive(Default)]
pub(crate) struct Lifetime {
    /// Since the epoch.
    pub(crate) created_at: u64,
    /// The fingerprint of the stored form.
    pub(crate) fingerprint: u32,
    /// From the creation time.
    pub(crate) life: u64,
    /// From now.
    pub(crate) fresh_for: u64,
    /// From now, in L1.
    pub(crate) l1_ttl: u64,
    /// From now, until it is gone.
    pub(crate) end: u64,
    pub(crate) graced: bool,
    /// The time without a use after which it is gone, if it has one.
    pub(crate) idle: Option<u64>,
    /// L2 has just got it with its whole idle time.
    pub(crate) is_told: bool,
    /// The epoch of L1 in which the entry is known to agree with L2.
    pub(crate) epoch: u32,
}

impl Engine {
    /// Takes the key's fence for a flight. With `replaces`, the flight replaces a hung one, so the
    /// fence advances first.
    pub(crate) fn watch_instead(&self, key: &Key, replaces: bool) -> Fence {
        if replaces { self.l1.change(key, |_| ()).1 } else { self.l1.watch(key) }
    }

    /// The fresh value of L1 under the key, and its creation time if it is due for early refresh.
    #[inline(always)]
    pub(crate) fn hit<T: CacheValue>(
        &self,
        namespace: &str,
        key: &str,
        early_refresh: f32,
    ) -> Option<(T, Option<u64>)> {
        if !self.open.load(Relaxed) {
            return None;
        }
        self.l1.hit(namespace, key, early_refresh)
    }

    /// The policy of a call that sets no options.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The hooks of a call that sets none.
    pub(crate) fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
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

    /// Records the end of the runtime: the runtime drops this task before it stops anything else.
    pub(crate) fn watch_runtime(&self) -> impl Future<Output = ()> + Send + use<> {
        struct SetOnDrop(Arc<AtomicBool>);
        impl Drop for SetOnDrop {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let mark = SetOnDrop(self.runtime_ended.clone());
        async move {
            let _mark = mark;
            std::future::pending::<()>().await;
        }
    }

    /// Whether the cache is disabled; an error if it is disconnected.
    pub(crate) fn is_off(&self) -> Result<bool> {
        self.check_open()?;
        Ok(!self.enabled)
    }

    /// The prefix of the tags of a handle with this prefix.
    pub(crate) fn tag_prefix<'a>(&'a self, prefix: &'a str) -> Cow<'a, str> {
        if self.shares_tags { Cow::Borrowed(&*self.root) } else { unversioned(prefix) }
    }

    /// What tags need of a call with this policy.
    fn tag_call<'a>(&'a self, policy: &'a Policy) -> TagCall<'a> {
        TagCall { l1: &self.l1, l2: self.l2.as_ref(), policy }
    }

    /// The error of an operation that failed in L2.
    pub(crate) fn l2_error(&self, operation: &'static str, source: Arc<DriverError>) -> Error {
        let driver = self.l2.as_ref().map_or("none", L2::name);
        Error::L2 { operation, driver, source }
    }

    /// The error of a value that was stored nowhere, because L1 refused it.
    pub(crate) fn too_large(&self, key: &Key, entry: &Entry, weight: u64) -> Error {
        let (size, limit, option) = self.l1.size_and_limit(entry, weight);
        Error::TooLarge { key: self.key_in_errors(key), size, limit, option }
    }

    /// The weight of the value for the limits of L1, if L1 has such limits.
    pub(crate) fn weight(&self, entry: &Entry, encoded: Option<usize>) -> u64 {
        if !self.l1.is_weighted() {
            return 0;
        }
        let measure = || {
            let mut bytes = Vec::new();
            match entry.value().encode(self.codec.format().id(), &mut bytes) {
                Ok(()) => bytes.len(),
                // Such a value is only ever in L1. What it owns elsewhere is not counted.
                Err(_) => std::mem::size_of_val(entry.value()),
            }
        };
        encoded.unwrap_or_else(measure) as u64
    }

    /// A new entry, as L1 holds it.
    pub(crate) fn entry<T: CacheValue>(
        &self,
        key: &Key,
        value: T,
        span: &Lifetime,
        tags: Option<Box<[TagSeen]>>,
        validators: Option<&Validators>,
    ) -> Arc<Entry> {
        let now = self.clock.now();
        let life = Life {
            created_at: span.created_at,
            fingerprint: span.fingerprint,
            life: span.life,
            ends_at: now.saturating_add(span.fresh_for),
            fresh_until: now.saturating_add(span.fresh_for.min(span.l1_ttl)),
            dead_at: now.saturating_add(span.end),
            verified_at: now,
            epoch: span.epoch,
            graced: span.graced,
        };
        let entry = Entry::new(key.local().unwrap_or(&key.full), Held(value), life, tags);
        let entry = entry.with_validators(validators.cloned().unwrap_or_default());
        match span.idle {
            Some(idle) => {
                Arc::new(entry.with_sliding(idle, now, if span.is_told { now } else { 0 }))
            }
            None => Arc::new(entry),
        }
    }

    /// Spawns work that ends.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.work.spawn(work, &self.runtime);
    }

    /// Spawns a flight.
    fn spawn_flight(&self, flight: impl Future<Output = ()> + Send + 'static) {
        self.work.spawn(flight.in_current_span(), &self.factory_runtime);
    }

    /// Ends everything at once.
    pub(crate) fn abort(&self) {
        self.open.store(false, Relaxed);
        self.services.abort();
        self.work.abort();
    }

    /// Ends everything in order: running work gets time to finish, and failed changes are retried
    /// until they succeed or the time is over.
    pub(crate) async fn disconnect(self: &Arc<Self>) -> Result<()> {
        self.check_open()?;
        if !self.open.swap(false, Relaxed) && self.enabled {
            return Err(Error::Closed { reason: ClosedReason::Disconnected });
        }
        // A change that has seen the store open is counted.
        fence(SeqCst);
        self.timers.within(PATIENCE, pin!(self.work.finished())).await;
        let lost = self.l2.as_ref().map_or(0, L2::in_background);
        let is_quiet = !self.work.has_changes();
        self.work.abort();
        // The bus still listens, because a replay may have to prove that no message was missed.
        self.timers.within(PATIENCE, pin!(self.flush_l2())).await;
        self.services.abort();
        // The bus is last: the replayed changes must be published too.
        if let Some(bus) = &self.bus {
            self.timers.within(Duration::from_secs(1), pin!(bus.flush(self))).await;
        }
        let flushed = self.all_flushed(lost);
        let result = self.close_drivers().await;
        self.write_last_snapshot(is_quiet).await;
        self.l1.clear("");
        if let Err(error) = &flushed {
            tracing::error!(store = %self.name, "{error}");
        }
        tracing::debug!(store = %self.name, "disconnected");
        flushed.and(result)
    }

    /// Closes the drivers. Returns the error of L2.
    async fn close_drivers(&self) -> Result<()> {
        let mut result = Ok(());
        if let Some(bus) = &self.bus
            && let Some(Err(error)) = self.timers.within(PATIENCE, bus.driver().disconnect()).await
        {
            tracing::warn!(store = %self.name, error = %chain(&error), "closing the bus failed");
        }
        if let Some(l2) = &self.l2
            && let Some(Err(error)) = self.timers.within(PATIENCE, l2.driver().disconnect()).await
        {
            result = Err(self.l2_error("disconnect", Arc::new(error)));
        }
        if let Some(locks) = &self.locks
            && let Some(Err(error)) =
                self.timers.within(PATIENCE, locks.driver().disconnect()).await
        {
            tracing::warn!(store = %self.name, error = %chain(&error), "closing the lock failed");
        }
        result
    }

    /// Replays the recovery queue until it is empty.
    async fn flush_l2(&self) {
        let Some(l2) = &self.l2 else { return };
        while !l2.replay(self, self.policy.l2_hard_timeout).await && l2.waiting() > 0 {
            let pause = Instant::now() + Duration::from_millis(200);
            if self.timers.until(pause).await == Ended::WithRuntime {
                return;
            }
        }
    }
}
