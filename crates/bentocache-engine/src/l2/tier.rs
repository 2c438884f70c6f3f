//! The tier: its calls, its reads with the overlay, and what the engine may ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bentocache_driver::{Call, DriverError, DynL2, KeyStream};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::background::{Background, Contest, Ticket, UnderWay};
use super::breaker::Transition;
use super::change::NewDocument;
use super::queue::{Pending, Queue};
use super::remote::{Remote, Reply};
use super::trouble::Trouble;
use crate::event::EventKind;
use crate::join::join_all;
use crate::options::{BreakerOptions, RecoveryOptions};
use crate::site::{Key, KeyVec, Site};
use crate::stats::{Counter, L2Stats};
use crate::wire::message::Kind;

/// The limit of `clear` and `prune`, which scan the whole store, in ms.
pub(crate) const SCAN: u64 = 60_000;

/// L2 of a store.
pub(crate) struct L2 {
    pub(super) site: Site,
    pub(super) remote: Remote,
    pub(super) can_clear: bool,
    pub(super) queue: Queue,
    pub(super) background: Arc<Background>,
    pub(super) options: RecoveryOptions,
    pub(super) trouble: Trouble,
    /// A queued change may succeed now.
    pub(super) wake: Notify,
    /// The driver reported that its server is back: the next round passes an open breaker.
    pub(super) is_back: AtomicBool,
    /// One replay at a time.
    pub(super) replaying: tokio::sync::Mutex<()>,
}

impl L2 {
    pub(crate) fn new(
        site: Site,
        driver: Arc<dyn DynL2>,
        breaker: Option<BreakerOptions>,
        options: RecoveryOptions,
        runtime: Handle,
    ) -> Self {
        let parts = driver.clone();
        let part_of = Box::new(move |key: &str| parts.part(key));
        let can_clear = driver.capabilities().clear;
        let remote = Remote::new(driver, breaker, site.clock.clone(), runtime);
        Self {
            site,
            remote,
            can_clear,
            queue: Queue::new(options, part_of),
            background: Arc::default(),
            options,
            trouble: Trouble::default(),
            wake: Notify::new(),
            is_back: AtomicBool::new(false),
            replaying: tokio::sync::Mutex::default(),
        }
    }

    /// The driver's name.
    pub(crate) fn name(&self) -> &'static str {
        self.remote.driver.name()
    }

    /// The driver, for calls that concern no key: its link and its shutdown.
    pub(crate) fn driver(&self) -> &dyn DynL2 {
        &*self.remote.driver
    }

    /// Whether the driver can clear by prefix.
    pub(crate) fn can_clear(&self) -> bool {
        self.can_clear
    }

    /// The longest key in bytes.
    pub(crate) fn max_key(&self) -> Option<usize> {
        self.remote.driver.capabilities().max_key
    }

    /// Whether calls for the key would be refused now, because the breaker is open.
    pub(crate) fn is_skipped(&self, key: &str) -> bool {
        self.remote.is_open(self.part(key))
    }

    /// The part of the store that has the key, if the store has parts.
    pub(crate) fn part(&self, key: &str) -> Option<u32> {
        self.remote.driver.part(key)
    }

    /// Makes a call for many keys: one concurrent call for each part of the store that has some of
    /// them. A failing part does not affect the results of the others.
    pub(super) async fn for_each_part<K: Copy, R, F: Future<Output = Vec<R>>>(
        &self,
        keys: &[K],
        name: impl Fn(&K) -> &str,
        call: impl Fn(KeyVec<K>) -> F,
    ) -> Vec<R> {
        let mut groups: Vec<(Option<u32>, Vec<usize>)> = Vec::new();
        for (place, key) in keys.iter().enumerate() {
            let part = self.part(name(key));
            // In a store without parts, no key has a part.
            if place == 0 && part.is_none() {
                break;
            }
            match groups.iter_mut().find(|(known, _)| *known == part) {
                Some((_, places)) => places.push(place),
                None => groups.push((part, vec![place])),
            }
        }
        if groups.len() < 2 {
            return call(keys.iter().copied().collect()).await;
        }
        let calls =
            groups.iter().map(|(_, places)| call(places.iter().map(|i| keys[*i]).collect()));
        let results = join_all(calls.collect()).await;
        let mut sorted: Vec<Option<R>> = keys.iter().map(|_| None).collect();
        for ((_, places), results) in groups.iter().zip(results) {
            for (place, result) in places.iter().zip(results) {
                sorted[*place] = Some(result);
            }
        }
        sorted.into_iter().flatten().collect()
    }

    /// The number of queued changes.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.changes()
    }

    /// Takes tickets for writes whose callers do not wait; `None` if there is no room for them.
    pub(crate) fn begin_in_background(
        &self,
        puts: &[NewDocument<'_>],
        is_set: bool,
    ) -> Option<Vec<Ticket>> {
        let writes = puts.iter().map(|put| (&put.key.full, put.bytes));
        self.background.begin(writes, is_set, &self.options)
    }

    /// The writes of these keys whose callers did not wait.
    pub(crate) fn under_way<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) -> UnderWay {
        self.background.of_keys(keys.into_iter().map(|key| &*key.full))
    }

    /// As [`under_way`](Self::under_way), for all keys under a prefix.
    pub(crate) fn all_under_way(&self, prefix: &str) -> UnderWay {
        self.background.of_prefix(prefix)
    }

    /// The number of writes under way whose callers did not wait.
    pub(crate) fn in_background(&self) -> usize {
        self.background.len()
    }

    /// The statistics of the tier.
    pub(crate) fn stats(&self) -> L2Stats {
        let sum = |counter| self.site.counters.sum(counter);
        L2Stats {
            calls: sum(Counter::L2Calls),
            failures: sum(Counter::L2Failures),
            skipped: sum(Counter::L2Skipped),
            time: Duration::from_nanos(sum(Counter::L2Nanos)),
            breaker: self.breaker(),
            breaker_openings: sum(Counter::BreakerOpenings),
            background_writes: self.background.len(),
            recovery_length: self.waiting(),
            recovery_queued: sum(Counter::RecoveryQueued),
            recovery_done: sum(Counter::RecoveryDone),
            recovery_dropped: sum(Counter::RecoveryDropped),
        }
    }

    /// The driver reports that the server is back: replays the queue at once.
    pub(crate) fn is_back(&self) {
        self.is_back.store(true, SeqCst);
        self.remote.half_open();
        self.wake.notify_one();
    }

    /// Wakes the replay: something seems to work again.
    pub(crate) fn kick(&self) {
        self.wake.notify_one();
    }

    /// Makes one driver call for a key, or for keys of one part of the store (`key` is one of
    /// them), and emits the resulting events and log lines.
    pub(super) async fn call<'a, T>(
        &'a self,
        operation: &'static str,
        key: &str,
        limit: u64,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Result<T, Arc<DriverError>> {
        self.attempt(operation, key, limit, false, call).await
    }

    /// As [`call`](Self::call). A `probe` passes an open breaker.
    pub(super) async fn attempt<'a, T>(
        &'a self,
        operation: &'static str,
        key: &str,
        limit: u64,
        probe: bool,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Result<T, Arc<DriverError>> {
        self.called(operation, self.remote.call(self.part(key), limit, probe, call).await)
    }

    /// As [`attempt`](Self::attempt), for a keyspace scan.
    pub(super) async fn scan<'a, T>(
        &'a self,
        operation: &'static str,
        probe: bool,
        call: impl FnOnce(&'a dyn DynL2) -> Call<'a, T>,
    ) -> Result<T, Arc<DriverError>> {
        self.called(operation, self.remote.call(None, SCAN, probe, call).await)
    }

    pub(super) fn called<T>(
        &self,
        operation: &'static str,
        reply: Reply<T>,
    ) -> Result<T, Arc<DriverError>> {
        let (store, driver, part) = (&self.site.name, self.name(), reply.part);
        match reply.transition {
            Some(Transition::Opened) => {
                tracing::warn!(store = %store, driver, part,
                    "L2 fails repeatedly and is left alone for a while");
                self.site.record(Counter::BreakerOpenings, || EventKind::BreakerOpened);
            }
            Some(Transition::Closed) => {
                tracing::info!(store = %store, driver, part, "L2 works again");
                self.site.emit(|| EventKind::BreakerClosed);
                self.trouble.is_over();
                self.kick();
            }
            None => {}
        }
        if !reply.skipped {
            tracing::trace!(store = %store, driver, operation, part, took = ?reply.took,
                ok = reply.result.is_ok(), "L2 call");
            self.site.count_time(Counter::L2Calls, Counter::L2Nanos, reply.took);
            let works = !reply.result.as_ref().is_err_and(|error| error.is_transient());
            self.remote.since(part).set(works, || self.site.clock.epoch());
        }
        match &reply.result {
            Ok(_) => {}
            Err(_) if reply.skipped => {
                self.site.record(Counter::L2Skipped, || EventKind::L2Skipped { operation });
            }
            Err(error) => {
                self.trouble.report(&self.site, operation, error);
                self.site.record(Counter::L2Failures, || EventKind::L2Failed {
                    operation,
                    error: error.clone(),
                });
            }
        }
        reply.result
    }

    /// The document under the key, with the queued change as an overlay.
    pub(crate) async fn read_one(
        &self,
        key: &Key,
        limit: u64,
    ) -> Result<Option<Bytes>, Arc<DriverError>> {
        if let Some(bytes) = self.background.overlay(&key.full) {
            return Ok(Some(bytes));
        }
        let pending = self.queue.pending(&key.full);
        let stored = if pending.as_ref().is_none_or(Pending::needs_stored) {
            self.call("get", &key.full, limit, |driver| driver.get(&key.full)).await?
        } else {
            None
        };
        Ok(match pending {
            None => stored,
            Some(pending) => self.applied(pending, key, stored),
        })
    }

    /// As [`read_one`](Self::read_one) for many keys, in one round trip, with one result per key: a
    /// failing part of the store says nothing about keys in other parts.
    pub(crate) async fn read_each(
        &self,
        keys: &[&Key],
        limit: u64,
    ) -> KeyVec<Result<Option<Bytes>, Arc<DriverError>>> {
        if let [key] = keys {
            return std::iter::once(self.read_one(key, limit).await).collect();
        }
        let known: KeyVec<_> = keys.iter().map(|key| self.background.overlay(&key.full)).collect();
        let pending: KeyVec<_> = keys.iter().map(|key| self.queue.pending(&key.full)).collect();
        let wanted: KeyVec<&str> = keys
            .iter()
            .zip(&known)
            .zip(&pending)
            .filter(|((_, known), pending)| {
                known.is_none() && pending.as_ref().is_none_or(Pending::needs_stored)
            })
            .map(|((key, _), _)| &*key.full)
            .collect();
        let stored =
            self.for_each_part(&wanted, |key| key, |some| self.get_all(some, limit, false)).await;
        let mut stored = stored.into_iter();
        // One result for each requested key.
        let mut next = || stored.next().unwrap_or(Ok(None));
        keys.iter()
            .zip(known)
            .zip(pending)
            .map(|((key, known), pending)| {
                if known.is_some() {
                    return Ok(known);
                }
                let Some(pending) = pending else { return next() };
                let stored = if pending.needs_stored() { next()? } else { None };
                Ok(self.applied(pending, key, stored))
            })
            .collect()
    }

    pub(super) async fn get_all(
        &self,
        keys: KeyVec<&str>,
        limit: u64,
        probe: bool,
    ) -> Vec<Result<Option<Bytes>, Arc<DriverError>>> {
        let Some(first) = keys.first() else { return Vec::new() };
        match self.attempt("get", first, limit, probe, |driver| driver.get_many(&keys)).await {
            // Exactly one result per key, whatever the driver returns: a value must not move to
            // another key.
            Ok(stored) => {
                let stored = stored.into_iter().chain(std::iter::repeat(None));
                stored.take(keys.len()).map(Ok).collect()
            }
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    /// The document under the key after the replay of the queued change.
    pub(super) fn applied(
        &self,
        pending: Pending,
        key: &Key,
        stored: Option<Bytes>,
    ) -> Option<Bytes> {
        let now = self.site.clock.epoch();
        pending.applied_to(key, stored, now, |bytes| self.site.digest(bytes))
    }

    /// Removes expired entries if the store does not do so itself; returns how many.
    pub(crate) async fn prune(&self) -> Result<u64, Arc<DriverError>> {
        self.scan("prune", false, |driver| driver.prune()).await
    }

    /// The stored keys that start with the prefix. Queued changes are not considered.
    pub(crate) fn keys(&self, prefix: &str) -> KeyStream {
        self.remote.driver.keys(prefix)
    }

    /// The end of a listing of keys, which counts as one call of the driver.
    pub(crate) fn listed(
        &self,
        result: Result<(), DriverError>,
        took: Duration,
    ) -> Result<(), Arc<DriverError>> {
        let result = result.map_err(Arc::new);
        self.called("keys", Reply { result, transition: None, part: None, took, skipped: false })
    }

    /// Another process has changed the key; see [`Queue::mark_changed_elsewhere`].
    pub(crate) fn heard_of(&self, key: &Key, kind: Kind, now: u64, grace: u64) {
        self.background.heard_of(&key.full, Contest { kind, at: now, grace });
        self.queue.mark_changed_elsewhere(&key.full, kind, now, grace);
    }

    /// Another process has cleared everything under the prefix.
    pub(crate) fn heard_of_clear(&self, prefix: &str) {
        self.background.heard_of_clear(prefix, self.site.clock.epoch());
        self.queue.supersede_under(prefix);
    }

    /// This process has created another marker since `marker`; see [`Queue::follow`].
    pub(crate) fn follow(&self, key: &Key, marker: u64) {
        self.queue.follow(&key.full, marker);
    }
}
