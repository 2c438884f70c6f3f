//! The work of a flight, in its own task: look into the tiers, acquire the key's lease if processes
//! share a lock, run the factory, store its value, or let the stale value back off.

use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::NEVER;
use tokio::time::Instant;

use super::context::Overrides;
use super::factory::{Factory, caught};
use super::fetch::{FetchMany, FetchRequest};
use super::find::Found;
use super::flight::{Filled, Flight, FlightGuard, FlightOutcome, Located};
use super::nesting::{self, CallStack};
use super::places::Place;
use super::{CacheValue, Engine, Key, KeyVec, chain};
use crate::error::{BoxError, Error};
use crate::event::EventKind;
use crate::l1::fence::Fence;
use crate::l1::is_refresh_due;
use crate::lock::Leased;
use crate::options::{Hooks, Policy};
use crate::stats::Counter;
use crate::tags::{FactoryStart, ObservedTag, TagSnapshot};

/// The first and the longest pause between two lookups for a value that another process produces.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(100);

/// A key to produce a value for.
struct Wanted {
    key: Key,
    guard: FlightGuard,
    stale: Option<Located>,
}

/// What a factory returned, and what is needed to store it.
struct Produced<T> {
    wanted: KeyVec<Wanted>,
    values: Result<KeyVec<Option<T>>, BoxError>,
    prefix: Arc<str>,
    policy: Policy,
    hooks: Hooks,
    overrides: Arc<Overrides>,
    snapshot: TagSnapshot,
    began: FactoryStart,
    /// The states of the tags of each stale entry.
    markers: KeyVec<Vec<ObservedTag>>,
    created_at: u64,
    took: Duration,
}

/// The result of a flight's lookup before its factory runs.
enum Lookup {
    Done(FlightOutcome),
    /// A fresh value that is due for early refresh, in a flight without waiters.
    RefreshDue(Located),
    /// No fresh value. The stale entry may be served and will be replaced. The duration is that of
    /// the last lookup. The factory may run.
    Nothing(Option<Located>, Duration, Place),
}

impl Engine {
    /// The flight of one key.
    pub(super) async fn run_flight<T: CacheValue>(
        self: Arc<Self>,
        key: Key,
        mut guard: FlightGuard,
        request: FetchRequest<'static, T>,
        stack: CallStack,
    ) {
        // Large futures are boxed, here and below, because every move copies the whole future.
        let (policy, refresh_of) = (request.policy, request.refresh_of);
        match Box::pin(self.look::<T>(&key, &mut guard, &policy, refresh_of)).await {
            Lookup::Done(outcome) => guard.finish(outcome),
            Lookup::RefreshDue(found) => {
                let refresh_of = Some(found.entry.created_at());
                guard.finish(Ok(Filled::Found(found)));
                self.refresh(key, FetchRequest { refresh_of, ..request });
            }
            Lookup::Nothing(stale, looked, place) => {
                let wanted = std::iter::once(Wanted { key, guard, stale }).collect();
                Box::pin(self.produce(wanted, request, (looked, place), stack)).await;
            }
        }
    }

    /// The flight of one key, in the future of the caller that started it.
    pub(super) async fn run_scoped_flight<T: CacheValue>(
        self: Arc<Self>,
        key: Key,
        mut guard: FlightGuard,
        request: FetchRequest<'_, T>,
        stack: CallStack,
    ) {
        let policy = request.policy;
        match Box::pin(self.look::<T>(&key, &mut guard, &policy, None)).await {
            Lookup::Done(outcome) => guard.finish(outcome),
            Lookup::RefreshDue(found) => guard.finish(Ok(Filled::Found(found))),
            Lookup::Nothing(stale, looked, place) => {
                let wanted = std::iter::once(Wanted { key, guard, stale }).collect();
                let produced =
                    Box::pin(self.produced(wanted, request, (looked, place), stack)).await;
                // The caller may drop this future, but both tiers must agree.
                if let Some(produced) = produced {
                    let store = self.clone();
                    let end = Box::pin(async move { store.end_flights(produced).await });
                    self.to_the_end(end).await;
                }
            }
        }
    }

    /// Looks into L1 again, since the previous flight may just have ended, then into L2, and waits
    /// for a place and for the key's lease.
    async fn look<T: CacheValue>(
        self: &Arc<Self>,
        key: &Key,
        guard: &mut FlightGuard,
        policy: &Policy,
        refresh_of: Option<u64>,
    ) -> Lookup {
        let flight = guard.flight().clone();
        let look = Instant::now();
        let found = match self.find::<T>(key, policy, flight.fence()).await {
            Ok(found) => found,
            Err(error) => return Lookup::Done(Err(error)),
        };
        let looked = look.elapsed();
        let stale = match found {
            Found::Fresh(found) if is_wanted(&found, policy, refresh_of) => {
                let now = self.clock.now();
                let is_due = is_refresh_due(&found.entry, policy.early_refresh, now);
                return match refresh_of {
                    None if is_due => Lookup::RefreshDue(found),
                    _ => Lookup::Done(Ok(Filled::Found(found))),
                };
            }
            Found::Fresh(found) | Found::Stale(found) => Some(found),
            Found::Nothing => None,
        };
        guard.producing(stale.clone());
        self.wait_for_lease::<T>(key, &flight, policy, refresh_of, (stale, looked)).await
    }

    /// One process of all runs the factory; the others wait for the value that it stores. A flight
    /// that waits for the value of another process has no place, and one that waits for a place
    /// has no lease, so that neither keeps others from running.
    async fn wait_for_lease<T: CacheValue>(
        self: &Arc<Self>,
        key: &Key,
        flight: &Arc<Flight>,
        policy: &Policy,
        refresh_of: Option<u64>,
        (mut stale, mut looked): (Option<Located>, Duration),
    ) -> Lookup {
        let lock_timeout = Duration::from_millis(policy.lock_timeout);
        let (mut since, mut pause) = (None, FIRST_LOOK);
        loop {
            let place = self.places.take(&[flight]).await;
            let since = *since.get_or_insert_with(Instant::now);
            let ours = match (self.lease(key, policy).await, &stale) {
                (Leased::Open, _) => return Lookup::Nothing(stale, looked, place),
                // Another process refreshes the value early, so no caller waits.
                (Leased::Taken, Some(found)) if refresh_of.is_some() => {
                    return Lookup::Done(Ok(Filled::Found(found.clone())));
                }
                (Leased::Taken, _) if since.elapsed() >= lock_timeout => {
                    return Lookup::Nothing(stale, looked, place);
                }
                (Leased::Taken, _) => {
                    drop(place);
                    tracing::trace!(store = %self.name, key = self.logged(&key.full),
                        "another node produces the value");
                    tokio::time::sleep(pause.min(lock_timeout)).await;
                    pause = (pause + pause / 2).min(LAST_LOOK);
                    // This wait is bounded, so the flight does not hang.
                    if policy.lock_timeout != NEVER {
                        flight.is_alive();
                    }
                    None
                }
                // The process that held the lease before may just have stored a value.
                (Leased::Ours(lease), _) => {
                    flight.hold(lease);
                    Some(place)
                }
            };
            let look = Instant::now();
            let found = Box::pin(self.find::<T>(key, policy, flight.fence())).await;
            looked = look.elapsed();
            match found {
                Ok(Found::Fresh(found)) if is_wanted(&found, policy, refresh_of) => {
                    return Lookup::Done(Ok(Filled::Found(found)));
                }
                Ok(Found::Fresh(found) | Found::Stale(found)) => stale = Some(found),
                Ok(Found::Nothing) | Err(_) => {}
            }
            if let Some(place) = ours {
                return Lookup::Nothing(stale, looked, place);
            }
        }
    }

    /// Tries to take the key's lease.
    async fn lease(&self, key: &Key, policy: &Policy) -> Leased {
        // A call that needs its own value cannot use the value of another node, and without an L2
        // no call could.
        let shares = self.l2.is_some()
            && !(policy.force_fresh || policy.skip_l2_read || policy.skip_l2_write);
        match self.locks.as_ref().filter(|_| shares) {
            Some(locks) => locks.lease(key, |keeper| self.spawn(keeper)).await,
            None => Leased::Open,
        }
    }

    /// The work of the flights that one call started: one read of L2 and one factory run for all of
    /// them.
    pub(super) async fn run_flights<T: CacheValue>(
        self: Arc<Self>,
        guards: Vec<(Key, FlightGuard)>,
        request: FetchMany<T>,
        stack: CallStack,
    ) {
        let policy = request.policy;
        let flights: Vec<_> = guards.iter().map(|(_, guard)| guard.flight().clone()).collect();
        let fences: Vec<_> = flights.iter().map(|flight| flight.fence()).collect();
        let keys: Vec<_> = guards.iter().map(|(key, _)| key).collect();
        let look = Instant::now();
        let found = match self.find_many::<T>(&keys, &policy, &fences).await {
            Ok(found) => found,
            Err(error) => {
                guards.into_iter().for_each(|(_, guard)| guard.finish(Err(error.clone())));
                return;
            }
        };
        let looked = look.elapsed();
        let mut open: KeyVec<Wanted> = KeyVec::new();
        for ((key, mut guard), found) in guards.into_iter().zip(found) {
            let stale = match found {
                Found::Fresh(found) if !policy.force_fresh => {
                    guard.finish(Ok(Filled::Found(found)));
                    continue;
                }
                Found::Fresh(found) | Found::Stale(found) => Some(found),
                Found::Nothing => None,
            };
            guard.producing(stale.clone());
            open.push(Wanted { key, guard, stale });
        }
        if open.is_empty() {
            return;
        }
        let place = {
            let flights: KeyVec<_> = open.iter().map(|wanted| wanted.guard.flight()).collect();
            self.places.take(&flights).await
        };
        let mut wanted = KeyVec::new();
        for Wanted { key, guard, stale } in open {
            match self.lease(&key, &policy).await {
                Leased::Taken => {
                    // Another process produces the value: a separate flight waits for it.
                    let request = request.request();
                    let run = self.clone().run_flight(key, guard, request, stack.clone());
                    self.spawn_flight(run);
                    continue;
                }
                Leased::Ours(lease) => {
                    guard.flight().hold(lease);
                    // The process that held the lease before may just have stored a value.
                    let found = self.find::<T>(&key, &policy, guard.flight().fence()).await;
                    if let Ok(Found::Fresh(found)) = found {
                        guard.finish(Ok(Filled::Found(found)));
                        continue;
                    }
                }
                Leased::Open => {}
            }
            wanted.push(Wanted { key, guard, stale });
        }
        self.produce(wanted, request.request(), (looked, place), stack).await;
    }

    /// Runs the factory for these keys, stores the produced values, and ends the flights.
    async fn produce<T: CacheValue>(
        self: &Arc<Self>,
        wanted: KeyVec<Wanted>,
        request: FetchRequest<'_, T>,
        (looked, place): (Duration, Place),
        stack: CallStack,
    ) {
        if let Some(produced) = self.produced(wanted, request, (looked, place), stack).await {
            self.end_flights(produced).await;
        }
    }

    /// Runs the factory for these keys. The states of the tags are read before it runs. The last
    /// lookup in the tiers and this one share one L2 limit; the calls after the factory have
    /// another.
    async fn produced<T: CacheValue>(
        &self,
        wanted: KeyVec<Wanted>,
        request: FetchRequest<'_, T>,
        (looked, place): (Duration, Place),
        stack: CallStack,
    ) -> Option<Produced<T>> {
        let FetchRequest { prefix, policy, tags, hooks, factory, .. } = request;
        let Wanted { key: first, .. } = wanted.first()?;
        tracing::debug!(store = %self.name, key = self.logged(&first.full), keys = wanted.len(),
            "factory started");
        let started = Instant::now();
        let created_at = self.clock.epoch();
        let keys = wanted.iter().map(|wanted| &wanted.key);
        let tags = tags.iter().map(String::as_str);
        let before = policy.after(looked);
        let snapshot = self.tags.see(self.tag_call(&before), &prefix, tags, keys).await;
        for Wanted { guard, .. } in &wanted {
            guard.flight().begins(&snapshot.tags);
        }
        let began = self.tags.factory_begins(created_at);
        let markers = wanted.iter().map(|wanted| markers_of(wanted.stale.as_ref())).collect();
        let overrides = Arc::new(Overrides::default());
        let run = self.run_factory(&wanted, factory, policy.factory_timeout, stack, &overrides);
        let values = run.await;
        drop(place);
        let took = started.elapsed();
        self.count_time(Counter::FactoryRuns, Counter::FactoryNanos, took);
        Some(Produced {
            wanted,
            values,
            prefix,
            policy,
            hooks,
            overrides,
            snapshot,
            began,
            markers,
            created_at,
            took,
        })
    }

    /// Stores the produced values, or backs off to spare the source, and ends the flights.
    async fn end_flights<T: CacheValue>(self: &Arc<Self>, produced: Produced<T>) {
        let Produced { wanted, values, prefix, policy, took, created_at, .. } = produced;
        let (values, guards) = match values {
            Ok(values) => self.factory_succeeded(wanted, values, took),
            Err(error) => {
                let Produced { markers, hooks, .. } = produced;
                self.factory_failed(wanted, markers, error, took, &policy, &hooks).await;
                return;
            }
        };
        let Produced { overrides, snapshot, began, .. } = produced;
        let flights = guards.iter().map(|guard| guard.flight().clone());
        let stored = values.into_iter().zip(flights);
        let stored = stored.map(|((key, value), flight)| (key, value, flight)).collect();
        let entries = async {
            let (policy, added, validators) = overrides.apply(policy)?;
            let policy = self.storable(policy, &prefix, &added).begun();
            let snapshot =
                self.tags.see_more(self.tag_call(&policy), &prefix, snapshot, &added, began).await;
            let validators = validators.as_ref();
            self.store_produced(stored, created_at, &snapshot, validators, &policy).await
        };
        match entries.await {
            Ok(entries) => {
                for (guard, entry) in guards.into_iter().zip(entries) {
                    guard.finish(Ok(Filled::Produced(entry)));
                }
            }
            Err(error) => {
                guards.into_iter().for_each(|guard| guard.finish(Err(error.clone())));
            }
        }
    }

    async fn run_factory<T: CacheValue>(
        &self,
        wanted: &[Wanted],
        factory: Factory<'_, T>,
        limit: u64,
        stack: CallStack,
        overrides: &Arc<Overrides>,
    ) -> Result<KeyVec<Option<T>>, BoxError> {
        let inputs: KeyVec<_> = wanted
            .iter()
            .map(|Wanted { key, stale, .. }| {
                let value = |found: &Located| {
                    let value = self.read_value::<T>(found).ok()?;
                    Some((value, found.entry.validators().cloned().unwrap_or_default()))
                };
                (key.clone(), stale.as_ref().and_then(value))
            })
            .collect();
        let flights = wanted.iter().map(|wanted| wanted.guard.flight().clone()).collect();
        let run = caught(&self.timers, limit, || factory.run(inputs, overrides.clone()));
        nesting::inside(&self.flights, flights, stack, run).await
    }

    /// The values that a factory produced, with their flights. Ends the flights of keys that it
    /// left out.
    fn factory_succeeded<T: CacheValue>(
        &self,
        wanted: KeyVec<Wanted>,
        values: KeyVec<Option<T>>,
        took: Duration,
    ) -> (Vec<(Key, T)>, KeyVec<FlightGuard>) {
        let (mut produced, mut guards) = (Vec::with_capacity(wanted.len()), KeyVec::new());
        for (Wanted { key, guard, .. }, value) in wanted.into_iter().zip(values) {
            let Some(value) = value else {
                tracing::debug!(store = %self.name, key = self.logged(&key.full), ?took,
                    "factory skipped");
                guard.finish(Err(Error::Skipped { key: self.key_in_errors(&key) }));
                continue;
            };
            let background = guard.flight().is_deserted();
            self.emit(|| EventKind::FactorySucceeded {
                key: self.shown(&key.full),
                background,
                took,
            });
            produced.push((key, value));
            guards.push(guard);
        }
        (produced, guards)
    }

    /// The factory failed, or skipped, for all of these keys.
    async fn factory_failed(
        &self,
        wanted: KeyVec<Wanted>,
        markers: KeyVec<Vec<ObservedTag>>,
        error: BoxError,
        took: Duration,
        policy: &Policy,
        hooks: &Hooks,
    ) {
        let source: Arc<dyn std::error::Error + Send + Sync> = error.into();
        for (at, (Wanted { key, guard, stale }, markers)) in
            wanted.into_iter().zip(markers).enumerate()
        {
            let error = Error::of_factory(self.key_in_errors(&key), source.clone());
            if let Error::Skipped { .. } | Error::Gone { .. } = error {
                let gone = matches!(error, Error::Gone { .. });
                tracing::debug!(store = %self.name, key = self.logged(&key.full), gone, ?took,
                    "factory skipped");
                match stale {
                    Some(_) if gone => {
                        self.gone(&key, guard.flight().fence(), policy).await;
                    }
                    // A skipped early refresh must not be tried again on every call.
                    Some(stale) => {
                        let until = self.clock.now().saturating_add(policy.grace_backoff);
                        stale.entry.hold_refresh(until);
                    }
                    None => {}
                }
                guard.finish(Err(error));
                continue;
            }
            let background = guard.flight().is_deserted();
            self.emit(|| EventKind::FactoryFailed { key: self.shown(&key.full), background, took });
            if at == 0 {
                self.count(Counter::FactoryFailures);
                self.report_failure(&key, &error, &*source, (background, took), hooks);
            }
            match stale {
                Some(_) if error.is_not_found() => {
                    self.gone(&key, guard.flight().fence(), policy).await;
                }
                Some(stale) if hooks.allow_stale(&self.name, &error) => {
                    let fence = guard.flight().fence();
                    Box::pin(self.back_off(&key, &stale, &markers, policy, fence)).await;
                }
                _ => {}
            }
            guard.finish(Err(error));
        }
    }

    /// Reports a factory failure to the log and to the hook. Logs the cause only, because the
    /// cache's own error would name the key.
    fn report_failure(
        &self,
        key: &Key,
        error: &Error,
        source: &(dyn std::error::Error + Send + Sync + 'static),
        (background, took): (bool, Duration),
        hooks: &Hooks,
    ) {
        let key = self.logged(&key.full);
        if hooks.expect(&self.name, error) {
            tracing::debug!(store = %self.name, key, background, ?took, error = %chain(source),
                "a factory returned an expected error");
        } else {
            tracing::warn!(store = %self.name, key, background, ?took, error = %chain(source),
                "a factory failed");
        }
        hooks.report(&self.name, error);
    }

    /// The source has no value under the key any more: removes the stale value everywhere, unless
    /// the key was changed since the factory began.
    async fn gone(&self, key: &Key, fence: &Fence, policy: &Policy) {
        if !fence.holds() {
            return;
        }
        if let Err(error) = Box::pin(self.delete(std::slice::from_ref(key), policy)).await {
            tracing::warn!(store = %self.name, key = self.logged(&key.full), error = %chain(&error),
                "a value that its source no longer has could not be removed from L2");
        }
    }
}

/// Whether a fresh value ends the flight. It does not if the call wants another value than this
/// one.
fn is_wanted(found: &Located, policy: &Policy, refresh_of: Option<u64>) -> bool {
    !policy.force_fresh && refresh_of != Some(found.entry.created_at())
}

/// The current states of an entry's tags, as far as this process knows.
fn markers_of(found: Option<&Located>) -> Vec<ObservedTag> {
    found
        .iter()
        .flat_map(|found| found.entry.tags())
        .map(|seen| ObservedTag::now(seen.tag()))
        .collect()
}
