//! `get_or_set` and `get_or_set_many` from top to bottom, as their callers see them: join the key's
//! flight or start it, wait for it as long as the call may, and turn its end into a result.
//!
//! What a flight does is in `produce.rs`; it runs in a task of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{NEVER, TagSeen};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::context::Overrides;
use super::factory::{Factory, FactoryOfMany, caught};
use super::find::Located;
use super::flight::{Filled, Flight, FlightGuard, Joined, Outcome, Stage};
use super::nesting::{CallStack, Waiting};
use super::wait::{Wait, Waited};
use super::{CacheValue, Engine, Key, KeyVec};
use crate::error::{Error, Result, is_skip};
use crate::event::{EventKind, Tier};
use crate::l1::Verdict;
use crate::options::{ErrorHook, Policy};

/// What a caller asks for, beside its keys.
pub(crate) struct FetchRequest<T> {
    /// What the handle puts before its keys and tags.
    pub(crate) prefix: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) tags: Vec<String>,
    pub(crate) hook: Option<ErrorHook>,
    pub(crate) factory: Factory<T>,
    /// Only when the fresh entry is still the one created then: a refresh ahead of expiry.
    pub(crate) refresh_of: Option<u64>,
}

/// The same with a factory for many keys, from which requests are made.
pub(crate) struct FetchMany<T> {
    pub(crate) prefix: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) tags: Vec<String>,
    pub(crate) hook: Option<ErrorHook>,
    pub(crate) factory: FactoryOfMany<T>,
}

impl<T> FetchRequest<T> {
    /// The same request once more, where its factory can run more than once.
    pub(super) fn for_another(&self) -> Option<Self> {
        let Factory::Many(factory) = &self.factory else { return None };
        let Self { prefix, policy, tags, hook, refresh_of, .. } = self;
        let (prefix, tags, hook) = (prefix.clone(), tags.clone(), hook.clone());
        let factory = Factory::Many(factory.clone());
        Some(Self { prefix, policy: *policy, tags, hook, factory, refresh_of: *refresh_of })
    }
}

impl<T> FetchMany<T> {
    fn request(&self) -> FetchRequest<T> {
        FetchRequest {
            prefix: self.prefix.clone(),
            policy: self.policy,
            tags: self.tags.clone(),
            hook: self.hook.clone(),
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
    /// It began before an invalidation, so that what it brings is not for this caller.
    outdated: bool,
    /// This caller joined before its factory began.
    is_early: bool,
    /// The caller's own stale entry.
    own: Option<Located>,
    _waiting: Option<Waiting>,
}

impl Engine {
    /// `get_or_set`, when L1 had nothing fresh.
    pub(crate) async fn get_or_set<T: CacheValue>(
        self: &Arc<Self>,
        key: Key,
        request: FetchRequest<T>,
    ) -> Result<T> {
        self.check_open()?;
        if !self.enabled {
            let values = Box::pin(self.uncached(&[&key], request)).await?;
            let skipped = || Error::Skipped { key: self.key_in_errors(&key) };
            return values.into_iter().flatten().next().ok_or_else(skipped);
        }
        self.check_tags(&request.prefix, &request.tags)?;
        let policy = request.policy;
        let stack = CallStack::current();
        self.check_nesting(&stack, &key)?;
        let mut wait = Wait::new(self, &policy);
        let usable = |found: &Located| self.is_usable::<T>(found);
        let mut request = Some(request);
        let mut hung: Option<Arc<Flight>> = None;
        loop {
            let (awaited, guard) = self.join(&key, hung.take().as_ref(), &stack, &policy);
            let Awaited { flight, mut stage, follows, outdated, is_early, own, _waiting } = awaited;
            if let (Some(guard), Some(request)) = (guard, request.take()) {
                let (engine, key, stack) = (self.clone(), key.clone(), stack.clone());
                let run = async move { engine.run_flight(key, guard, request, stack).await };
                self.spawn(run.in_current_span());
            }
            match wait.on(&mut stage, follows, own, outdated, &usable).await {
                Waited::Done { outcome, .. }
                    if follows
                        && (outdated
                            || self.is_not_for::<T>(&outcome, &policy, &wait, is_early)) =>
                {
                    // The flight may have stored a value that is good for this call.
                    if !policy.force_fresh
                        && let Some(value) = self.value_now(&key)
                    {
                        return Ok(value);
                    }
                }
                Waited::LockTimeout { stale: None } => {
                    self.emit(|| EventKind::LockTimeout { key: self.shown(&key.full) });
                    hung = Some(flight);
                    wait.lock_from = Instant::now();
                }
                waited => {
                    if let Some(request) = request.take() {
                        self.replace_if_hung(&key, &flight, &waited, &policy, || request);
                    }
                    return self.result_of(&key, &policy, waited);
                }
            }
        }
    }

    /// One value per key, in the order of the keys; none where the factory brought none. Each key
    /// has its own flight. Those that this call starts share one read of L2 and one run of the
    /// factory.
    pub(crate) async fn get_or_set_many<T: CacheValue>(
        self: &Arc<Self>,
        keys: &[Key],
        request: FetchMany<T>,
    ) -> Result<Vec<Option<T>>> {
        self.check_open()?;
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
        // A key that is asked for twice has its value twice.
        Ok(keys.iter().map(|key| values[first[&*key.full]].clone()).collect())
    }

    /// Fetches the keys at these places, of which no two are the same.
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
        let usable = |found: &Located| self.is_usable::<T>(found);
        let mut open = Vec::new();
        for &at in unique {
            self.check_nesting(&stack, &keys[at])?;
            let here = if policy.force_fresh { None } else { self.value_now(&keys[at]) };
            match here {
                Some(value) => values[at] = Some(value),
                None => open.push(at),
            }
        }
        let mut hung: HashMap<usize, Arc<Flight>> = HashMap::new();
        while !open.is_empty() {
            let (mut guards, mut waits) = (Vec::new(), Vec::new());
            for at in open.drain(..) {
                let (awaited, guard) = self.join(&keys[at], hung.get(&at), &stack, &policy);
                guards.extend(guard.map(|guard| (keys[at].clone(), guard)));
                waits.push((at, awaited));
            }
            if !guards.is_empty() {
                let (engine, stack, request) = (self.clone(), stack.clone(), request.request());
                let run = async move { engine.run_flights(guards, request, stack).await };
                self.spawn(run.in_current_span());
            }
            // One after the other: every wait counts from the start of the call.
            let mut waits = waits.into_iter();
            while let Some((at, awaited)) = waits.next() {
                let Awaited { flight, mut stage, follows, outdated, is_early, own, _waiting } =
                    awaited;
                let key = &keys[at];
                match wait.on(&mut stage, follows, own, outdated, &usable).await {
                    Waited::Done { outcome, .. }
                        if follows
                            && (outdated
                                || self.is_not_for::<T>(&outcome, &policy, &wait, is_early)) =>
                    {
                        hung.remove(&at);
                        open.push(at);
                    }
                    Waited::LockTimeout { stale: None } => {
                        self.emit(|| EventKind::LockTimeout { key: self.shown(&key.full) });
                        hung.insert(at, flight);
                        open.push(at);
                    }
                    waited => {
                        if follows {
                            let again = || request.request();
                            self.replace_if_hung(key, &flight, &waited, &policy, again);
                        }
                        match self.result_of(key, &policy, waited) {
                            Ok(value) => values[at] = Some(value),
                            Err(Error::Skipped { .. }) => {}
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

    /// Refuses a call for a key from inside of the factory that produces it.
    fn check_nesting(&self, stack: &CallStack, key: &Key) -> Result<()> {
        if stack.produces(&self.flights, &key.full) {
            return Err(Error::Reentrant { key: self.key_in_errors(key) });
        }
        Ok(())
    }

    /// Joins the key's flight, or starts one, which comes with its guard. `hung` is a flight that
    /// the caller waits for no longer.
    fn join(
        &self,
        key: &Key,
        hung: Option<&Arc<Flight>>,
        stack: &CallStack,
        policy: &Policy,
    ) -> (Awaited, Option<FlightGuard>) {
        let watch = |replaces| self.watch_instead(key, replaces);
        let own = if policy.force_fresh { None } else { self.at_hand(key, Verdict::Stale) };
        let (mut flight, mut guard) = match self.flights.join_instead(&key.full, hung, watch) {
            Joined::Leader(guard) => (guard.flight().clone(), Some(guard)),
            Joined::Follower(flight) => (flight, None),
        };
        let mut waiting = stack.wait_for(&flight);
        if waiting.is_none() {
            // Its factory waits for ours: a flight of our own is the only way on.
            let solo = FlightGuard::solo(key.full.clone(), self.l1.watch(key));
            flight = solo.flight().clone();
            // Others must not close a circle over this one. A new flight itself closes none.
            waiting = stack.wait_for(&flight);
            guard = Some(solo);
        }
        let follows = guard.is_none();
        // A flight that began before an invalidation is waited for, because there is only one at a
        // time, but what it brings is not for a caller that came after.
        let outdated = follows && flight.is_outdated(self.clock.now());
        let is_early = !flight.has_begun();
        // L2 may have something better than the caller's own stale entry.
        let at_once = follows || self.l2.is_none() || policy.skip_l2_read;
        let own = own.filter(|_| at_once);
        // From now on, so that nobody takes the flight for one that nobody waits for.
        let stage = flight.watch();
        (Awaited { flight, stage, follows, outdated, is_early, own, _waiting: waiting }, guard)
    }

    /// Starts a flight in the place of one that has made no progress within the lock timeout of a
    /// caller who gets a stale value. Such a caller never waits long enough to do so itself.
    fn replace_if_hung<T: CacheValue>(
        self: &Arc<Self>,
        key: &Key,
        hung: &Arc<Flight>,
        waited: &Waited,
        policy: &Policy,
        request: impl FnOnce() -> FetchRequest<T>,
    ) {
        let emits = match waited {
            Waited::SoftTimeout { .. } => true,
            // Whoever waited tells of it in any case.
            Waited::LockTimeout { stale: Some(_) } => false,
            _ => return,
        };
        if self.take_over(key, hung, policy, request) && emits {
            self.emit(|| EventKind::LockTimeout { key: self.shown(&hung.key) });
        }
    }

    /// As [`replace_if_hung`](Self::replace_if_hung), whoever finds the flight. Nobody waits for
    /// the new one.
    fn take_over<T: CacheValue>(
        self: &Arc<Self>,
        key: &Key,
        hung: &Arc<Flight>,
        policy: &Policy,
        request: impl FnOnce() -> FetchRequest<T>,
    ) -> bool {
        let after = Duration::from_millis(policy.lock_timeout);
        if policy.lock_timeout == NEVER || hung.silent_for() < after {
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

    /// A flight that its starter does not wait for.
    fn start_unwatched<T: CacheValue>(
        self: &Arc<Self>,
        key: Key,
        guard: FlightGuard,
        request: FetchRequest<T>,
    ) {
        let (engine, stack) = (self.clone(), CallStack::current());
        let run = async move { engine.run_flight(key, guard, request, stack).await };
        self.spawn(run.in_current_span());
    }

    /// Starts a refresh ahead of expiry, unless the key has a flight. Nobody waits for it.
    pub(crate) fn refresh<T: CacheValue>(self: &Arc<Self>, key: Key, request: FetchRequest<T>) {
        match self.flights.join(&key.full, || self.l1.watch(&key)) {
            Joined::Leader(guard) => self.start_unwatched(key, guard, request),
            Joined::Follower(flight) => {
                let policy = request.policy;
                self.take_over(&key, &flight, &policy, || request);
            }
        }
    }

    /// What the factory produces with the cache switched off.
    async fn uncached<T: CacheValue>(
        &self,
        keys: &[&Key],
        request: FetchRequest<T>,
    ) -> Result<KeyVec<Option<T>>> {
        keys.iter().for_each(|key| self.missed(key));
        let Some(first) = keys.first() else { return Ok(KeyVec::new()) };
        let limit = request.policy.factory_timeout;
        let wanted: KeyVec<_> = keys.iter().map(|key| ((*key).clone(), None)).collect();
        let run = || request.factory.run(wanted, Arc::<Overrides>::default());
        match caught(&self.timers, limit, run).await {
            Ok(values) => Ok(values),
            Err(error) if is_skip(&*error) => Ok(keys.iter().map(|_| None).collect()),
            Err(error) => {
                let error = Error::of_factory(self.key_in_errors(first), error.into());
                self.report_failure(&error, request.hook.as_ref());
                Err(error)
            }
        }
    }

    /// Turns the end of a wait into the caller's result. One call is one hit or one miss.
    fn result_of<T: CacheValue>(&self, key: &Key, policy: &Policy, waited: Waited) -> Result<T> {
        let graced = |stale: Option<Located>| {
            stale.filter(|_| policy.grace > 0).and_then(|hit| self.served(key, &hit, true))
        };
        match waited {
            Waited::Done { outcome: Ok(Filled::Found(hit)), .. } => {
                self.served(key, &hit, false).ok_or_else(|| self.abandoned(key))
            }
            Waited::Done { outcome: Ok(Filled::Produced(entry)), .. } => {
                self.missed(key);
                let hit = Located { entry, tier: Tier::L1 };
                self.read_value(&hit).map_err(|_| self.abandoned(key))
            }
            Waited::Done {
                outcome: Err(error @ (Error::Skipped { .. } | Error::InvalidOption { .. })),
                ..
            } => {
                self.missed(key);
                Err(error)
            }
            Waited::Done { outcome: Err(error), stale } => graced(stale).ok_or_else(|| {
                self.missed(key);
                match error {
                    Error::Abandoned { .. } => self.abandoned(key),
                    error => error,
                }
            }),
            Waited::SoftTimeout { stale } => {
                if policy.timeout > 0 {
                    self.emit(|| EventKind::FactoryTimeout {
                        key: self.shown(&key.full),
                        hard: false,
                    });
                }
                self.served(key, &stale, true).ok_or_else(|| self.abandoned(key))
            }
            Waited::LockTimeout { stale } => {
                self.emit(|| EventKind::LockTimeout { key: self.shown(&key.full) });
                graced(stale).ok_or_else(|| {
                    self.missed(key);
                    let after = Duration::from_millis(policy.lock_timeout);
                    Error::LockTimeout { key: self.key_in_errors(key), after }
                })
            }
            Waited::HardTimeout => {
                self.emit(|| EventKind::FactoryTimeout { key: self.shown(&key.full), hard: true });
                self.missed(key);
                let after = Duration::from_millis(policy.hard_timeout);
                Err(Error::HardTimeout { key: self.key_in_errors(key), after })
            }
        }
    }

    /// Whether a follower must not take what a flight brought. One `is_early` that joined before
    /// the factory began.
    fn is_not_for<T: CacheValue>(
        &self,
        outcome: &Outcome,
        policy: &Policy,
        wait: &Wait<'_>,
        is_early: bool,
    ) -> bool {
        match outcome {
            // A value of another type, which cannot be read as this one.
            Ok(filled) if !self.is_readable::<T>(filled) => true,
            // Who asks for a fresh value does not take one that was there.
            Ok(Filled::Found(_)) if policy.force_fresh => true,
            // The factory knew of everything that was invalidated before this call began.
            Ok(Filled::Produced(_)) if is_early => false,
            // A tag of it was invalidated before this call began.
            Ok(Filled::Found(Located { entry, .. }) | Filled::Produced(entry)) => {
                let now = self.clock.epoch();
                entry.tags().iter().any(|seen: &TagSeen| {
                    let (tag, marker) = (seen.tag(), seen.tag().invalidated_at());
                    // The new marker was not read yet.
                    let is_contested = !tag.is_known() && tag.contested_at() <= wait.moment;
                    // A marker from the future is from another clock, and may be older than the
                    // call.
                    let may_be_before = marker <= wait.since || marker > now;
                    is_contested || !seen.is_valid(entry.created_at()) && may_be_before
                })
            }
            Err(_) => false,
        }
    }
}
