//! `get_or_set` and `get_or_set_many` from top to bottom, as their callers see them: join the key's
//! flight or start it, wait for it within the call's timeouts, and turn its end into a result.
//!
//! The work of a flight is in `produce.rs`; it runs in its own task.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{NEVER, TagSeen};
use tokio::sync::watch;
use tokio::time::Instant;

use super::context::Overrides;
use super::factory::{Factory, FactoryOfMany, caught};
use super::flight::{Filled, Flight, FlightGuard, FlightOutcome, Joined, Located, Stage};
use super::nesting::{CallStack, Waiting};
use super::set::check_name;
use super::wait::{Wait, Waited};
use super::{CacheValue, Engine, Key, KeyVec};
use crate::error::{Error, Mark, Result, mark_of};
use crate::event::{EventKind, Tier};
use crate::l1::Verdict;
use crate::options::{Hooks, Policy};
use crate::stats::Counter;

/// Where a value of [`get_or_set`](crate::Cache::get_or_set) came from; see
/// [`with_source`](crate::request::GetOrSet::with_source).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// A fresh value in the memory of this process.
    L1,
    /// A fresh value in the shared tier.
    L2,
    /// An expired value within its grace, because the factory failed or was slower than the
    /// [`timeout`](crate::request::GetOrSet::timeout).
    Stale,
    /// The factory of this call.
    Factory,
    /// The factory of another call for the same key, which this call waited for.
    Waited,
}

/// A value and its source.
pub(crate) type Sourced<T> = (T, Source);

/// The request of a caller, without its keys.
pub(crate) struct FetchRequest<'f, T> {
    /// The prefix of its tags.
    pub(crate) prefix: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) tags: Vec<String>,
    pub(crate) hooks: Hooks,
    pub(crate) factory: Factory<'f, T>,
    /// An early refresh: produce a value only if the fresh entry is still the one created at this
    /// time.
    pub(crate) refresh_of: Option<u64>,
}

/// A request with a factory for many keys, from which single requests are made.
#[derive(Clone)]
pub(crate) struct FetchMany<T> {
    pub(crate) prefix: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) tags: Vec<String>,
    pub(crate) hooks: Hooks,
    pub(crate) factory: FactoryOfMany<T>,
}

impl<T> FetchMany<T> {
    /// A request for some of the keys.
    pub(super) fn request(&self) -> FetchRequest<'static, T> {
        FetchRequest {
            prefix: self.prefix.clone(),
            policy: self.policy,
            tags: self.tags.clone(),
            hooks: self.hooks.clone(),
            factory: Factory::Many(self.factory.clone()),
            refresh_of: None,
        }
    }
}

/// A flight that a caller waits for.
struct Awaited {
    flight: Arc<Flight>,
    stage: watch::Receiver<Stage>,
    /// Another call started it.
    follows: bool,
    /// It began before an invalidation, so its result is not valid for this caller.
    outdated: bool,
    /// This caller joined before the factory began.
    is_early: bool,
    /// The caller's own stale entry.
    own: Option<Located>,
    _waiting: Option<Waiting>,
}

/// How a caller goes on after its wait for a flight.
enum Next {
    /// The flight's outcome is not valid for this caller: it joins the next flight.
    Again,
    /// The flight hangs: the caller joins one that replaces it.
    Instead(Arc<Flight>),
    /// The call ends.
    End(Arc<Flight>, Waited),
}

impl Engine {
    /// `get_or_set`, when L1 had no fresh value.
    pub(crate) async fn get_or_set<T: CacheValue>(
        self: &Arc<Self>,
        key: Key,
        request: FetchRequest<'static, T>,
    ) -> Result<Sourced<T>> {
        self.check_open()?;
        check_name(&key)?;
        if !self.enabled {
            return self.uncached_value(&key, request).await;
        }
        self.check_tags(&request.prefix, &request.tags)?;
        let (policy, hooks) = (request.policy, request.hooks.clone());
        let stack = CallStack::current();
        self.check_nesting(&stack, &key)?;
        let mut wait = Wait::new(self, &policy);
        let mut request = Some(request);
        let mut hung: Option<Arc<Flight>> = None;
        loop {
            let (awaited, guard) = self.join(&key, hung.take().as_ref(), &stack, &policy);
            if let Some(guard) = guard
                && let Some(request) = request.take()
            {
                let run = self.clone().run_flight(key.clone(), guard, request, stack.clone());
                self.spawn_flight(run);
            }
            let follows = awaited.follows;
            match self.wait_for::<T>(&key, awaited, &wait, &policy).await {
                Next::Again => {
                    self.check_open()?;
                    // The flight may have stored a value that is valid for this call.
                    if policy.takes_hits()
                        && let Some(value) = self.value_now(&key)
                    {
                        return Ok((value, Source::L1));
                    }
                }
                Next::Instead(flight) => {
                    hung = Some(flight);
                    wait.lock_from = Instant::now();
                }
                Next::End(flight, waited) => {
                    if let Some(request) = request.take() {
                        self.replace_if_hung(&key, &flight, &waited, &policy, || request);
                    }
                    return self.result_of(&key, &policy, &hooks, waited, follows);
                }
            }
        }
    }

    /// As [`get_or_set`](Self::get_or_set), with a factory that runs in the caller's future. If that
    /// is dropped, the flight ends, and one of the callers that wait for it starts the next one.
    pub(crate) async fn get_or_set_scoped<T: CacheValue>(
        self: &Arc<Self>,
        key: Key,
        request: FetchRequest<'_, T>,
    ) -> Result<Sourced<T>> {
        self.check_open()?;
        check_name(&key)?;
        if !self.enabled {
            return self.uncached_value(&key, request).await;
        }
        self.check_tags(&request.prefix, &request.tags)?;
        // A caller that gets a stale value while the factory runs would drop the factory.
        let policy = Policy { timeout: NEVER, early_refresh: 0.0, ..request.policy };
        let hooks = request.hooks.clone();
        let mut request = Some(FetchRequest { policy, ..request });
        let stack = CallStack::current();
        self.check_nesting(&stack, &key)?;
        let mut wait = Wait::new(self, &policy);
        let mut hung: Option<Arc<Flight>> = None;
        loop {
            let (awaited, guard) = self.join(&key, hung.take().as_ref(), &stack, &policy);
            let follows = awaited.follows;
            let mut flight = None;
            if let Some(guard) = guard
                && let Some(request) = request.take()
            {
                guard.flight().is_of_its_caller();
                let run =
                    self.clone().run_scoped_flight(key.clone(), guard, request, stack.clone());
                flight = Some(Box::pin(run));
            }
            let next = {
                let mut waiting = pin!(self.wait_for::<T>(&key, awaited, &wait, &policy));
                match flight {
                    // The end of the wait, such as a timeout, drops the flight.
                    Some(flight) => tokio::select! {
                        biased;
                        next = &mut waiting => next,
                        () = flight => waiting.await,
                    },
                    None => waiting.await,
                }
            };
            match next {
                Next::Again => self.check_open()?,
                Next::Instead(flight) => {
                    hung = Some(flight);
                    wait.lock_from = Instant::now();
                }
                Next::End(_, waited) => {
                    return self.result_of(&key, &policy, &hooks, waited, follows);
                }
            }
        }
    }

    /// One value per key, in the order of the keys; `None` for keys that the factory left out. Each
    /// key has its own flight. The flights that this call starts share one read of L2 and one run
    /// of the factory.
    pub(crate) async fn get_or_set_many<T: CacheValue>(
        self: &Arc<Self>,
        keys: &[Key],
        request: FetchMany<T>,
    ) -> Result<Vec<Option<T>>> {
        self.check_open()?;
        keys.iter().try_for_each(check_name)?;
        let mut first: HashMap<&str, usize> = HashMap::new();
        let unique: Vec<usize> =
            (0..keys.len()).filter(|i| *first.entry(&*keys[*i].full).or_insert(*i) == *i).collect();
        let mut values: Vec<Option<T>> = keys.iter().map(|_| None).collect();
        let result = if self.enabled {
            self.fetch_unique(keys, &unique, &request, &mut values).await
        } else {
            let wanted: KeyVec<&Key> = unique.iter().map(|at| &keys[*at]).collect();
            let produced = self.uncached(&wanted, request.request()).await;
            produced.map(|produced| {
                unique.iter().zip(produced).for_each(|(at, value)| values[*at] = value);
            })
        };
        result?;
        // A key that is requested twice returns its value twice.
        Ok(keys.iter().map(|key| values[first[&*key.full]].clone()).collect())
    }

    /// Fetches the keys at these indices, which are all different.
    async fn fetch_unique<T: CacheValue>(
        self: &Arc<Self>,
        keys: &[Key],
        unique: &[usize],
        request: &FetchMany<T>,
        values: &mut [Option<T>],
    ) -> Result<()> {
        self.check_tags(&request.prefix, &request.tags)?;
        let policy = request.policy;
        let stack = CallStack::current();
        let mut wait = Wait::new(self, &policy);
        let mut open = Vec::new();
        for &at in unique {
            self.check_nesting(&stack, &keys[at])?;
            let here = policy.takes_hits().then(|| self.value_now(&keys[at])).flatten();
            match here {
                Some(value) => values[at] = Some(value),
                None => open.push(at),
            }
        }
        let mut hung: HashMap<usize, Arc<Flight>> = HashMap::new();
        while !open.is_empty() {
            let joined = open.drain(..).map(|at| (at, &keys[at], hung.get(&at)));
            let waits = self.join_all(joined, &stack, request);
            // Sequential waits are enough, because every wait counts from the start of the call.
            let mut waits = waits.into_iter();
            while let Some((at, awaited)) = waits.next() {
                let (key, follows) = (&keys[at], awaited.follows);
                match self.wait_for::<T>(key, awaited, &wait, &policy).await {
                    Next::Again => {
                        hung.remove(&at);
                        open.push(at);
                    }
                    Next::Instead(flight) => {
                        hung.insert(at, flight);
                        open.push(at);
                    }
                    Next::End(flight, waited) => {
                        if follows {
                            let again = || request.request();
                            self.replace_if_hung(key, &flight, &waited, &policy, again);
                        }
                        match self.result_of(key, &policy, &request.hooks, waited, follows) {
                            Ok((value, _)) => values[at] = Some(value),
                            Err(Error::Skipped { .. } | Error::Gone { .. }) => {}
                            Err(error) => {
                                // Each key is one hit or one miss.
                                let rest = open.into_iter().chain(waits.map(|(at, _)| at));
                                rest.for_each(|at| self.missed(&keys[at]));
                                return Err(error);
                            }
                        }
                    }
                }
            }
            wait.lock_from = Instant::now();
        }
        Ok(())
    }

    /// Joins the flights of these keys, each with its place and a hung flight. Flights that are new
    /// share one task.
    fn join_all<'a, T: CacheValue>(
        self: &Arc<Self>,
        keys: impl Iterator<Item = (usize, &'a Key, Option<&'a Arc<Flight>>)>,
        stack: &CallStack,
        request: &FetchMany<T>,
    ) -> Vec<(usize, Awaited)> {
        let (mut guards, mut waits) = (Vec::new(), Vec::new());
        for (at, key, hung) in keys {
            let (awaited, guard) = self.join(key, hung, stack, &request.policy);
            guards.extend(guard.map(|guard| (key.clone(), guard)));
            waits.push((at, awaited));
        }
        if !guards.is_empty() {
            let run = self.clone().run_flights(guards, request.clone(), stack.clone());
            self.spawn_flight(run);
        }
        waits
    }

    /// Waits for a flight, and decides what its end means to this caller.
    async fn wait_for<T: CacheValue>(
        &self,
        key: &Key,
        awaited: Awaited,
        wait: &Wait<'_>,
        policy: &Policy,
    ) -> Next {
        let Awaited { flight, mut stage, follows, outdated, is_early, own, _waiting } = awaited;
        let usable = |found: &Located| self.is_usable::<T>(found);
        match wait.on(&mut stage, follows, own, outdated, &usable).await {
            Waited::Done { outcome, .. }
                if follows
                    && (outdated || self.is_not_for::<T>(&outcome, policy, wait, is_early)) =>
            {
                Next::Again
            }
            // Its caller dropped the flight.
            Waited::Done { outcome: Err(Error::Abandoned { .. }), .. }
                if follows && flight.belongs_to_caller() =>
            {
                Next::Again
            }
            // A flight that waits for a place would be replaced by one that waits behind it.
            Waited::LockTimeout { stale: None } if !flight.is_queued() => {
                self.record(Counter::LockTimeouts, || EventKind::LockTimeout {
                    key: self.shown(&key.full),
                });
                Next::Instead(flight)
            }
            waited => Next::End(flight, waited),
        }
    }

    /// Rejects a call for a key from inside the factory that produces it.
    fn check_nesting(&self, stack: &CallStack, key: &Key) -> Result<()> {
        if stack.produces(&self.flights, &key.full) {
            return Err(Error::Reentrant { key: self.key_in_errors(key) });
        }
        Ok(())
    }

    /// Joins the key's flight, or starts one and returns its guard. `hung` is a flight that the
    /// caller no longer waits for.
    fn join(
        &self,
        key: &Key,
        hung: Option<&Arc<Flight>>,
        stack: &CallStack,
        policy: &Policy,
    ) -> (Awaited, Option<FlightGuard>) {
        let watch = |replaces| self.watch_instead(key, replaces);
        let may_read = !policy.force_fresh && !policy.skip_l1_read;
        let own = may_read.then(|| self.entry_in_l1(key, Verdict::Stale)).flatten();
        let (mut flight, mut guard) = match self.flights.join_instead(&key.full, hung, watch) {
            Joined::Leader(guard) => (guard.flight().clone(), Some(guard)),
            Joined::Follower(flight) => (flight, None),
        };
        let mut waiting = stack.wait_for(&flight);
        if waiting.is_none() {
            // The factory of that flight waits for ours, so only a separate flight can make
            // progress.
            let solo = FlightGuard::solo(key.full.clone(), self.l1.watch(key));
            flight = solo.flight().clone();
            // Other calls must not close a cycle over this flight. A new flight closes none itself.
            waiting = stack.wait_for(&flight);
            guard = Some(solo);
        }
        let follows = guard.is_none();
        if follows {
            self.count(Counter::Coalesced);
            tracing::debug!(store = %self.name, key = self.logged(&key.full), "flight joined");
        }
        // The caller waits for a flight that began before an invalidation, because only one may run
        // at a time, but its result is not valid for a caller that came later.
        let outdated = follows && flight.is_outdated(self.clock.now());
        let is_early = !flight.has_begun();
        // L2 may have a better value than the caller's own stale entry.
        let at_once = follows || self.l2.is_none() || policy.skip_l2_read;
        let own = own.filter(|_| at_once);
        // Subscribed from now on, so that the flight does not seem to have no waiters.
        let stage = flight.watch();
        (Awaited { flight, stage, follows, outdated, is_early, own, _waiting: waiting }, guard)
    }

    /// Replaces a flight that made no progress within the lock timeout of a caller that gets a
    /// stale value. Such a caller never waits long enough to replace it in the normal way.
    fn replace_if_hung<T: CacheValue>(
        self: &Arc<Self>,
        key: &Key,
        hung: &Arc<Flight>,
        waited: &Waited,
        policy: &Policy,
        request: impl FnOnce() -> FetchRequest<'static, T>,
    ) {
        let emits = match waited {
            Waited::SoftTimeout { .. } => true,
            // A caller that reached its lock timeout emits the event in any case.
            Waited::LockTimeout { stale: Some(_) } => false,
            _ => return,
        };
        if self.take_over(key, hung, policy, request) && emits {
            self.record(Counter::LockTimeouts, || EventKind::LockTimeout {
                key: self.shown(&hung.key),
            });
        }
    }

    /// As [`replace_if_hung`](Self::replace_if_hung), for any caller that finds the flight. No
    /// caller waits for the new flight.
    fn take_over<T: CacheValue>(
        self: &Arc<Self>,
        key: &Key,
        hung: &Arc<Flight>,
        policy: &Policy,
        request: impl FnOnce() -> FetchRequest<'static, T>,
    ) -> bool {
        let after = Duration::from_millis(policy.lock_timeout);
        if policy.lock_timeout == NEVER || hung.is_queued() || hung.silent_for() < after {
            return false;
        }
        let watch = |replaces| self.watch_instead(key, replaces);
        let joined = self.flights.join_instead(&key.full, Some(hung), watch);
        let Joined::Leader(guard) = joined else { return false };
        tracing::warn!(store = %self.name, key = self.logged(&hung.key), ?after,
            "a factory hangs for longer than the lock timeout; another run takes its place");
        self.start_unwatched(key.clone(), guard, request());
        true
    }

    /// Starts a flight that its caller does not wait for.
    fn start_unwatched<T: CacheValue>(
        self: &Arc<Self>,
        key: Key,
        guard: FlightGuard,
        request: FetchRequest<'static, T>,
    ) {
        let run = self.clone().run_flight(key, guard, request, CallStack::current());
        self.spawn_flight(run);
    }

    /// Starts an early refresh, unless the key has a flight. No caller waits for it.
    pub(crate) fn refresh<T: CacheValue>(
        self: &Arc<Self>,
        key: Key,
        request: FetchRequest<'static, T>,
    ) {
        match self.flights.join(&key.full, || self.l1.watch(&key)) {
            Joined::Leader(guard) => self.start_unwatched(key, guard, request),
            Joined::Follower(flight) => {
                let policy = request.policy;
                self.take_over(&key, &flight, &policy, || request);
            }
        }
    }

    /// Runs the factory for one key with the cache disabled.
    async fn uncached_value<T: CacheValue>(
        &self,
        key: &Key,
        request: FetchRequest<'_, T>,
    ) -> Result<Sourced<T>> {
        let values = Box::pin(self.uncached(&[key], request)).await?;
        let skipped = || Error::Skipped { key: self.key_in_errors(key) };
        let value = values.into_iter().flatten().next().ok_or_else(skipped)?;
        Ok((value, Source::Factory))
    }

    /// Runs the factory with the cache disabled.
    async fn uncached<T: CacheValue>(
        &self,
        keys: &[&Key],
        request: FetchRequest<'_, T>,
    ) -> Result<KeyVec<Option<T>>> {
        keys.iter().for_each(|key| self.missed(key));
        let Some(first) = keys.first() else { return Ok(KeyVec::new()) };
        let limit = request.policy.factory_timeout;
        let wanted: KeyVec<_> = keys.iter().map(|key| ((*key).clone(), None)).collect();
        let run = || request.factory.run(wanted, Arc::<Overrides>::default());
        let started = Instant::now();
        let produced = caught(&self.timers, limit, run).await;
        self.count_time(Counter::FactoryRuns, Counter::FactoryNanos, started.elapsed());
        match produced {
            Ok(values) => Ok(values),
            Err(error) if matches!(mark_of(&*error), Some(Mark::Skip)) => {
                Ok(keys.iter().map(|_| None).collect())
            }
            Err(error) => {
                self.count(Counter::FactoryFailures);
                let error = Error::of_factory(self.key_in_errors(first), error.into());
                request.hooks.report(&self.name, &error);
                Err(error)
            }
        }
    }

    /// Turns the end of a wait into the caller's result. One call is one hit or one miss.
    fn result_of<T: CacheValue>(
        &self,
        key: &Key,
        policy: &Policy,
        hooks: &Hooks,
        waited: Waited,
        follows: bool,
    ) -> Result<Sourced<T>> {
        let served = |hit: &Located| Some((self.served(key, hit, true)?, Source::Stale));
        let graced = |stale: Option<Located>| {
            stale.filter(|_| policy.grace > 0).and_then(|hit| served(&hit))
        };
        match waited {
            Waited::Done { outcome: Ok(Filled::Found(hit)), .. } => {
                let source = if hit.tier == Tier::L1 { Source::L1 } else { Source::L2 };
                let value = self.served(key, &hit, false).ok_or_else(|| self.abandoned(key))?;
                Ok((value, source))
            }
            Waited::Done { outcome: Ok(Filled::Produced(entry)), .. } => {
                self.missed(key);
                let hit = Located { entry, tier: Tier::L1 };
                let value = self.read_value(&hit).map_err(|_| self.abandoned(key))?;
                Ok((value, if follows { Source::Waited } else { Source::Factory }))
            }
            Waited::Done {
                outcome:
                    Err(
                        error @ (Error::Skipped { .. }
                        | Error::Gone { .. }
                        | Error::InvalidOption { .. }),
                    ),
                ..
            } => {
                self.missed(key);
                Err(error)
            }
            Waited::Done { outcome: Err(error), stale } => {
                let stale = stale.filter(|_| hooks.allow_stale(&self.name, &error));
                graced(stale).ok_or_else(|| {
                    self.missed(key);
                    match error {
                        Error::Abandoned { .. } => self.abandoned(key),
                        error => error,
                    }
                })
            }
            Waited::SoftTimeout { stale } => {
                if policy.timeout > 0 {
                    self.record(Counter::SoftTimeouts, || EventKind::FactoryTimeout {
                        key: self.shown(&key.full),
                        hard: false,
                    });
                }
                served(&stale).ok_or_else(|| self.abandoned(key))
            }
            Waited::LockTimeout { stale } => {
                self.record(Counter::LockTimeouts, || EventKind::LockTimeout {
                    key: self.shown(&key.full),
                });
                graced(stale).ok_or_else(|| {
                    self.missed(key);
                    let after = Duration::from_millis(policy.lock_timeout);
                    Error::LockTimeout { key: self.key_in_errors(key), after }
                })
            }
            Waited::HardTimeout => {
                self.record(Counter::HardTimeouts, || EventKind::FactoryTimeout {
                    key: self.shown(&key.full),
                    hard: true,
                });
                self.missed(key);
                let after = Duration::from_millis(policy.hard_timeout);
                Err(Error::HardTimeout { key: self.key_in_errors(key), after })
            }
        }
    }

    /// Whether a follower must not use the outcome of a flight. A follower `is_early` if it joined
    /// before the factory began.
    fn is_not_for<T: CacheValue>(
        &self,
        outcome: &FlightOutcome,
        policy: &Policy,
        wait: &Wait<'_>,
        is_early: bool,
    ) -> bool {
        match outcome {
            // A value of another type, which cannot be read as this one.
            Ok(filled) if !self.is_readable::<T>(filled) => true,
            // A call that forces a fresh value does not use a value that was found.
            Ok(Filled::Found(_)) if policy.force_fresh => true,
            Ok(Filled::Found(Located { tier: Tier::L1, .. })) if !policy.takes_hits() => true,
            // The factory began after everything that was invalidated before this call.
            Ok(Filled::Produced(_)) if is_early => false,
            // One of its tags was invalidated before this call began.
            Ok(Filled::Found(Located { entry, .. }) | Filled::Produced(entry)) => {
                let now = self.clock.epoch();
                entry.tags().iter().any(|seen: &TagSeen| {
                    let (tag, marker) = (seen.tag(), seen.tag().invalidated_at());
                    // The new marker has not been read yet.
                    let is_contested = !tag.is_known() && tag.contested_at() <= wait.moment;
                    // A marker in the future comes from another clock and may be older than this
                    // call.
                    let may_be_before = marker <= wait.since || marker > now;
                    is_contested || !seen.is_valid(entry.created_at()) && may_be_before
                })
            }
            Err(_) => false,
        }
    }
}
