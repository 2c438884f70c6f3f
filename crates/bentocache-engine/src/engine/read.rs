//! Reading: `get`, and the algorithm of `get_or_set` from top to bottom.
//!
//! A fresh entry in the first tier never comes here: the request returns it at once (see
//! `hit.rs`). Everything else is [`get_or_set`]: the caller joins the key's flight, and waits
//! for it as long as it may. The flight is [`fly`], in a task of its own: it looks into the tiers,
//! takes the key's lease if processes share a lock, runs the factory, and stores what that produced.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use bentocache_driver::{Entry, NEVER, TagSeen};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::find::Found;
use super::flight::{self, Filled, Flight, Hit, Joined, Lead, Outcome, Outer, Stage};
use super::lease::Leased;
use super::tags::Seen;
use super::{CacheValue, Engine, Few, Key, chain, convert, value_of};
use crate::context::{Context, Overrides};
use crate::error::{BoxError, Error, FactoryPanic, Result, TimedOut, is_skip};
use crate::event::{EventKind, Tier};
use crate::options::{ErrorHook, Policy};
use crate::tier::local::{State, is_cleared};
use crate::timers::{Ended, Timers};

/// A factory, boxed: only calls that miss pay for it.
pub(crate) type Produce<T> =
    Box<dyn FnOnce(Context<T>) -> Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>> + Send>;

/// How long a process waits before it looks for what another produces, first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(100);

/// What a caller of `get_or_set` asks for.
pub(crate) struct Ask<T> {
    pub(crate) key: Key,
    /// What the handle puts before its keys and tags.
    pub(crate) prefix: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) tags: Vec<String>,
    pub(crate) hook: Option<ErrorHook>,
    pub(crate) produce: Produce<T>,
    /// Only when the fresh entry is still the one created then: a refresh ahead of expiry.
    pub(crate) refresh_of: Option<u64>,
}

impl Engine {
    /// `get`, when the first tier had nothing fresh.
    pub(crate) async fn get<T: CacheValue>(&self, key: &Key, policy: &Policy) -> Result<Option<T>> {
        self.check_open()?;
        if !self.enabled {
            self.missed(key);
            return Ok(None);
        }
        if self.l1.is_none() {
            return self.get_stored(key, policy).await;
        }
        let fence = self.watch(key);
        let found = self.find::<T>(key, policy, &fence).await?;
        Ok(self.got(key, found, policy))
    }

    /// The value that a `get` returns.
    pub(crate) fn got<T: CacheValue>(&self, key: &Key, found: Found, policy: &Policy) -> Option<T> {
        match found {
            Found::Fresh(hit) => self.served(key, &hit, false),
            Found::Stale(hit) if policy.grace > 0 => self.served(key, &hit, true),
            Found::Stale(_) | Found::Nothing => {
                self.missed(key);
                None
            }
        }
    }

    /// One value or none per key, in the order of the keys.
    pub(crate) async fn get_many<T: CacheValue>(
        &self,
        keys: &[Key],
        policy: &Policy,
    ) -> Result<Vec<Option<T>>> {
        self.check_open()?;
        if !self.enabled {
            keys.iter().for_each(|key| self.missed(key));
            return Ok(keys.iter().map(|_| None).collect());
        }
        let fences: Few<_> = keys.iter().map(|key| self.watch(key)).collect();
        let found = self
            .find_many::<T>(
                &keys.iter().collect::<Few<_>>(),
                policy,
                &fences.iter().collect::<Few<_>>(),
            )
            .await?;
        Ok(keys.iter().zip(found).map(|(key, found)| self.got(key, found, policy)).collect())
    }

    /// `get_or_set`, when the first tier had nothing fresh.
    pub(crate) async fn get_or_set<T: CacheValue>(self: &Arc<Self>, ask: Ask<T>) -> Result<T> {
        self.check_open()?;
        let key = ask.key.clone();
        if !self.enabled {
            self.missed(&key);
            return Box::pin(self.uncached(ask)).await;
        }
        self.check_tags(&ask.prefix, &ask.tags)?;
        let policy = ask.policy;
        let outer = Outer::current();
        if outer.produces(&self.flights, &key.full) {
            return Err(Error::Reentrant { key: self.key_in_errors(&key) });
        }
        let mut wait = Wait::new(self, &policy);
        let usable = |hit: &Hit| self.is_usable::<T>(hit);
        let mut hung: Option<Arc<Flight>> = None;
        loop {
            // 1. Join the key's flight, or start it.
            let watch = |replaces| self.watch_instead(&key, replaces);
            let (flight, lead) = match self.flights.join_instead(&key.full, hung.as_ref(), watch) {
                Joined::Leader(lead) => (lead.flight().clone(), Some(lead)),
                Joined::Follower(flight) => (flight, None),
            };
            // A flight that began before an invalidation is waited for, because there is only one
            // at a time, but what it brings is not for a caller that came after.
            let outdated = lead.is_none() && flight.is_outdated(self.clock.now());
            let is_early = !flight.has_begun();
            let Some(_waiting) = outer.wait_for(&flight) else {
                // Its factory waits for ours: a factory of our own is the only way on.
                let lead = Lead::solo(key.full.clone(), self.watch(&key));
                return Box::pin(self.run_alone(lead, ask, outer.clone())).await;
            };
            let mut stage = flight.watch();
            let own = if policy.force_fresh { None } else { self.at_hand(&key, State::Stale) };
            if let Some(lead) = lead {
                let (ask, engine, outer) = (ask, self.clone(), outer.clone());
                let fly = async move { engine.fly(lead, ask, outer).await };
                self.spawn(fly.in_current_span());
                // The second tier may have something better than one's own stale entry.
                let own = own.filter(|_| self.l2.is_none() || policy.skip_l2_read);
                return self.land(
                    &key,
                    &policy,
                    wait.on(&mut stage, false, own, false, &usable).await,
                );
            }

            // 2. Wait for it, as long as this call may.
            match wait.on(&mut stage, true, own, outdated, &usable).await {
                Waited::Done { outcome, .. }
                    if outdated || self.is_not_for::<T>(&outcome, &policy, &wait, is_early) =>
                {
                    hung = None;
                    // The flight may have stored a value that is good for us.
                    if !policy.force_fresh
                        && let Some(value) = self.value_now(&key)
                    {
                        return Ok(value);
                    }
                }
                Waited::LockTimeout { stale: None } => {
                    self.emit(|| EventKind::LockTimeout { key: self.shown(&key.full) });
                    hung = Some(flight.clone());
                    wait.lock_from = Instant::now();
                }
                waited => {
                    self.replace_if_hung(&flight, &waited, &policy, || ask);
                    return self.land(&key, &policy, waited);
                }
            }
        }
    }

    /// Starts a flight in the place of one that has made no progress within the lock timeout of a
    /// caller who gets a stale value. Such a caller never waits long enough to do so itself.
    pub(crate) fn replace_if_hung<T: CacheValue>(
        self: &Arc<Self>,
        hung: &Arc<Flight>,
        waited: &Waited,
        policy: &Policy,
        ask: impl FnOnce() -> Ask<T>,
    ) {
        let emits = match waited {
            Waited::SoftTimeout { .. } => true,
            // Whoever waited tells of it in any case.
            Waited::LockTimeout { stale: Some(_) } => false,
            _ => return,
        };
        if self.take_over(hung, policy, ask) && emits {
            self.emit(|| EventKind::LockTimeout { key: self.shown(&hung.key) });
        }
    }

    /// As [`replace_if_hung`](Self::replace_if_hung), whoever finds the flight. Nobody waits for
    /// the new one.
    fn take_over<T: CacheValue>(
        self: &Arc<Self>,
        hung: &Arc<Flight>,
        policy: &Policy,
        ask: impl FnOnce() -> Ask<T>,
    ) -> bool {
        let after = Duration::from_millis(policy.lock_timeout);
        if policy.lock_timeout == NEVER || hung.silent_for() < after {
            return false;
        }
        let ask = ask();
        let watch = |replaces| self.watch_instead(&ask.key, replaces);
        let joined = self.flights.join_instead(&ask.key.full, Some(hung), watch);
        let Joined::Leader(lead) = joined else { return false };
        tracing::warn!(store = %self.name, key = self.logged(&hung.key), ?after,
            "a factory hangs for longer than the lock timeout; another run takes its place");
        self.fly_unwatched(lead, ask);
        true
    }

    /// A flight that its starter does not wait for.
    fn fly_unwatched<T: CacheValue>(self: &Arc<Self>, lead: Lead, ask: Ask<T>) {
        let (engine, outer) = (self.clone(), Outer::current());
        self.spawn(async move { engine.fly(lead, ask, outer).await }.in_current_span());
    }

    /// A flight: looks into the tiers, runs the factory, stores what it produced.
    pub(crate) async fn fly<T: CacheValue>(
        self: &Arc<Self>,
        mut lead: Lead,
        ask: Ask<T>,
        outer: Outer,
    ) {
        // Boxed, here and below, where a future is large: every move of one copies all of it.
        match Box::pin(self.fill(&mut lead, ask, outer)).await {
            Flown::Landed(outcome) => lead.finish(outcome),
            Flown::RefreshDue(hit, ask) => {
                let refresh_of = Some(hit.entry.created_at());
                lead.finish(Ok(Filled::Found(hit)));
                self.refresh(Ask { refresh_of, ..*ask });
            }
        }
    }

    async fn fill<T: CacheValue>(
        self: &Arc<Self>,
        lead: &mut Lead,
        ask: Ask<T>,
        outer: Outer,
    ) -> Flown<T> {
        let (policy, refresh_of) = (ask.policy, ask.refresh_of);
        let lock_timeout = Duration::from_millis(policy.lock_timeout);
        let flight = lead.flight().clone();

        // 3. The first tier once more, since the last flight may just have ended, then the second.
        let look = Instant::now();
        let found = match self.find::<T>(&ask.key, &policy, flight.fence()).await {
            Ok(found) => found,
            Err(error) => return Flown::Landed(Err(error)),
        };
        let mut looked = look.elapsed();
        let is_wanted =
            |hit: &Hit| !policy.force_fresh && refresh_of != Some(hit.entry.created_at());
        let mut stale = match found {
            Found::Fresh(hit) if is_wanted(&hit) => {
                let due = is_refresh_due(&hit.entry, policy.early_refresh, self.clock.now());
                return match refresh_of {
                    None if due => Flown::RefreshDue(hit, Box::new(ask)),
                    _ => Flown::Landed(Ok(Filled::Found(hit))),
                };
            }
            Found::Fresh(hit) | Found::Stale(hit) => Some(hit),
            Found::Nothing => None,
        };
        lead.producing(stale.clone());

        // 4. Of all processes, one runs the factory; the others wait for what it stores.
        let (since, mut pause) = (Instant::now(), FIRST_LOOK);
        loop {
            let leased = self.lease(&ask.key, &flight, &policy).await;
            match (&leased, &stale) {
                (Leased::Open, _) => break,
                // Another process refreshes it, ahead of expiry: nobody waits for that.
                (Leased::Taken, Some(hit)) if refresh_of.is_some() => {
                    return Flown::Landed(Ok(Filled::Found(hit.clone())));
                }
                (Leased::Taken, _) if since.elapsed() >= lock_timeout => break,
                (Leased::Taken, _) => {
                    tokio::time::sleep(pause.min(lock_timeout)).await;
                    pause = (pause + pause / 2).min(LAST_LOOK);
                    // This wait has an end, so the flight does not hang.
                    if policy.lock_timeout != NEVER {
                        flight.is_alive();
                    }
                }
                // Whoever had it before may just have stored a value.
                (Leased::Ours, _) => {}
            }
            let look = Instant::now();
            let found = Box::pin(self.find::<T>(&ask.key, &policy, flight.fence())).await;
            looked = look.elapsed();
            match found {
                Ok(Found::Fresh(hit)) if is_wanted(&hit) => {
                    return Flown::Landed(Ok(Filled::Found(hit)));
                }
                Ok(Found::Fresh(hit) | Found::Stale(hit)) => stale = Some(hit),
                Ok(Found::Nothing) | Err(_) => {}
            }
            if matches!(leased, Leased::Ours) {
                break;
            }
        }
        Flown::Landed(Box::pin(self.produce(flight, ask, stale, looked, outer)).await)
    }

    async fn produce<T: CacheValue>(
        self: &Arc<Self>,
        flight: Arc<Flight>,
        ask: Ask<T>,
        stale: Option<Hit>,
        looked: Duration,
        outer: Outer,
    ) -> Outcome {
        let Ask { key, prefix, policy, tags, hook, produce, .. } = ask;

        // 5. The factory. What is known of the tags counts from before it runs. The last look and this
        // one stay within one limit of the second tier, what comes after the factory within another.
        let started = Instant::now();
        let created_at = self.clock.epoch();
        let tags = tags.iter().map(String::as_str);
        let sight = self.see(&prefix, tags, [&key], &policy.after(looked)).await;
        flight.begins(&sight.tags);
        let began = self.tags_at(created_at);
        let markers = markers_of(stale.as_ref());
        let overrides = Arc::new(Overrides::default());
        let value = stale.as_ref().and_then(|hit| self.read_value::<T>(hit).ok());
        let context = Context::new(key.clone(), value, overrides.clone());
        let run = caught(&self.timers, policy.factory_timeout, || produce(context));
        let produced = flight::inside(&self.flights, vec![flight.clone()], outer, run).await;
        let background = flight.is_deserted();
        let took = started.elapsed();

        // 6. Store what it produced, or spare the source.
        let error = match produced {
            Ok(value) => {
                self.emit(|| EventKind::FactorySucceeded {
                    key: self.shown(&key.full),
                    background,
                    took,
                });
                let (policy, added) = overrides.apply(policy)?;
                let policy = self.storable(policy, &prefix, &added).begun();
                let sight = self.see_more(&prefix, sight, &added, began, &policy).await;
                let value = vec![(key.clone(), value, flight.fence())];
                let entries = self.store_produced(value, created_at, &sight, &policy).await?;
                let entry = entries.into_iter().next();
                return entry.map(Filled::Produced).ok_or_else(|| self.abandoned(&key));
            }
            Err(error) if is_skip(&*error) => {
                if let Some(stale) = &stale {
                    // A refresh ahead of expiry is not to be tried again on every call.
                    let until = self.clock.now().saturating_add(policy.grace_backoff);
                    stale.entry.hold_refresh(until);
                }
                return Err(Error::Skipped { key: self.key_in_errors(&key) });
            }
            Err(error) => error,
        };
        // Without the key, which the error of the cache would name.
        tracing::warn!(store = %self.name, key = self.logged(&key.full), background,
            error = %chain(&*error), "a factory failed");
        let error = Error::of_factory(self.key_in_errors(&key), error.into());
        self.emit(|| EventKind::FactoryFailed { key: self.shown(&key.full), background, took });
        self.report_failure(&error, hook.as_ref());
        if let Some(stale) = stale {
            Box::pin(self.back_off(&key, &stale, &markers, &policy, flight.fence())).await;
        }
        Err(error)
    }

    /// Turns the end of a wait into the caller's result. One call is one hit or one miss.
    pub(crate) fn land<T: CacheValue>(
        &self,
        key: &Key,
        policy: &Policy,
        waited: Waited,
    ) -> Result<T> {
        let graced = |stale: Option<Hit>| {
            stale.filter(|_| policy.grace > 0).and_then(|hit| self.served(key, &hit, true))
        };
        match waited {
            Waited::Done { outcome: Ok(Filled::Found(hit)), .. } => {
                self.served(key, &hit, false).ok_or_else(|| self.abandoned(key))
            }
            Waited::Done { outcome: Ok(Filled::Produced(entry)), .. } => {
                self.missed(key);
                let hit = Hit { entry, tier: Tier::L1 };
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

    /// A flight that nobody else can join.
    async fn run_alone<T: CacheValue>(
        self: &Arc<Self>,
        lead: Lead,
        ask: Ask<T>,
        outer: Outer,
    ) -> Result<T> {
        let (key, policy) = (ask.key.clone(), ask.policy);
        let wait = Wait::new(self, &policy);
        let usable = |hit: &Hit| self.is_usable::<T>(hit);
        let mut stage = lead.flight().watch();
        // Others must not close a circle over this one. A new flight itself closes none.
        let _waiting = outer.wait_for(lead.flight());
        // What is there is no use to this caller.
        let ask = Ask { policy: Policy { force_fresh: true, ..policy }, ..ask };
        let engine = self.clone();
        let fly = async move { engine.fly(lead, ask, outer).await };
        self.spawn(fly.in_current_span());
        self.land(&key, &policy, wait.on(&mut stage, false, None, false, &usable).await)
    }

    /// Starts a refresh ahead of expiry, unless the key has a flight. Nobody waits for it.
    pub(crate) fn refresh<T: CacheValue>(self: &Arc<Self>, ask: Ask<T>) {
        match self.flights.join(&ask.key.full, || self.watch(&ask.key)) {
            Joined::Leader(lead) => self.fly_unwatched(lead, ask),
            Joined::Follower(flight) => {
                let policy = ask.policy;
                self.take_over(&flight, &policy, || ask);
            }
        }
    }

    /// The factory's value with the cache switched off.
    async fn uncached<T: CacheValue>(&self, ask: Ask<T>) -> Result<T> {
        let key = ask.key.clone();
        let context = Context::new(ask.key, None, Arc::default());
        let produce = ask.produce;
        caught(&self.timers, ask.policy.factory_timeout, || produce(context)).await.map_err(
            |error| {
                if is_skip(&*error) {
                    return Error::Skipped { key: self.key_in_errors(&key) };
                }
                let error = Error::of_factory(self.key_in_errors(&key), error.into());
                self.report_failure(&error, ask.hook.as_ref());
                error
            },
        )
    }

    /// Whether a follower must not take what a flight brought. One `is_early` that joined before the
    /// factory began.
    pub(crate) fn is_not_for<T: CacheValue>(
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
            Ok(Filled::Found(Hit { entry, .. }) | Filled::Produced(entry)) => {
                let now = self.clock.epoch();
                entry.tags().iter().any(|seen: &TagSeen| {
                    let (tag, marker) = (seen.tag(), seen.tag().invalidated_at());
                    // The new marker was not read yet.
                    let is_contested = !tag.is_known() && tag.contested_at() <= wait.moment;
                    // A marker from the future is from another clock, and may be older than the call.
                    let may_be_before = marker <= wait.since || marker > now;
                    is_contested || !seen.is_valid(entry.created_at()) && may_be_before
                })
            }
            Err(_) => false,
        }
    }

    /// The fresh value in the first tier, of which the listeners are told.
    pub(crate) fn value_now<T: CacheValue>(&self, key: &Key) -> Option<T> {
        let hit = self.at_hand(key, State::Fresh)?;
        let value = self.read_value(&hit).ok()?;
        self.hit(key, &hit, false);
        Some(value)
    }

    fn is_readable<T: CacheValue>(&self, filled: &Filled) -> bool {
        let (Filled::Found(Hit { entry, .. }) | Filled::Produced(entry)) = filled;
        self.is_readable_entry::<T>(entry)
    }

    fn is_readable_entry<T: CacheValue>(&self, entry: &Entry) -> bool {
        value_of::<T>(entry).is_some() || convert::<T>(entry, self.codec).is_ok()
    }

    /// The value of a hit, as the type asked for.
    pub(crate) fn read_value<T: CacheValue>(&self, hit: &Hit) -> Result<T, BoxError> {
        match value_of::<T>(&hit.entry) {
            Some(value) => Ok(value.clone()),
            None => convert(&hit.entry, self.codec),
        }
    }

    /// The value of a hit, of which the listeners are told.
    pub(crate) fn served<T: CacheValue>(&self, key: &Key, hit: &Hit, graced: bool) -> Option<T> {
        match self.read_value(hit) {
            Ok(value) => {
                self.hit(key, hit, graced);
                Some(value)
            }
            Err(error) => {
                self.unreadable::<T>(key, &*error);
                self.missed(key);
                None
            }
        }
    }

    /// Whether a stale entry can still be served to a caller of this type.
    pub(crate) fn is_usable<T: CacheValue>(&self, hit: &Hit) -> bool {
        self.clock.now() < hit.entry.dead_at()
            && !is_cleared(&hit.entry)
            && self.is_readable_entry::<T>(&hit.entry)
    }

    fn hit(&self, key: &Key, hit: &Hit, graced: bool) {
        self.emit(|| EventKind::Hit { key: self.shown(&key.full), tier: hit.tier, graced });
    }

    pub(crate) fn missed(&self, key: &Key) {
        self.emit(|| EventKind::Miss { key: self.shown(&key.full) });
    }

    fn abandoned(&self, key: &Key) -> Error {
        Error::Abandoned { key: self.key_in_errors(key) }
    }
}

/// Whether so little of the entry's life is left that it is to be refreshed.
pub(crate) fn is_refresh_due(entry: &Entry, share: f32, now: u64) -> bool {
    if share <= 0.0 || entry.life() == NEVER {
        return false;
    }
    let left = entry.ends_at().saturating_sub(now);
    left as f64 <= entry.life() as f64 * f64::from(share) && now >= entry.refresh_after()
}

/// The states of an entry's tags, as far as is known now.
pub(crate) fn markers_of(hit: Option<&Hit>) -> Vec<Seen> {
    hit.iter().flat_map(|hit| hit.entry.tags()).map(|seen| Seen::now(seen.tag())).collect()
}

/// How a flight ended.
enum Flown<T> {
    Landed(Outcome),
    /// With a fresh value that is to be refreshed, by a flight that nobody waits for.
    RefreshDue(Hit, Box<Ask<T>>),
}

/// How a caller's wait for a flight ended.
pub(crate) enum Waited {
    Done { outcome: Outcome, stale: Option<Hit> },
    SoftTimeout { stale: Hit },
    LockTimeout { stale: Option<Hit> },
    HardTimeout,
}

/// A caller's patience: all its timeouts, from the start of the call.
pub(crate) struct Wait<'a> {
    timers: &'a Timers,
    policy: Policy,
    start: Instant,
    /// The same in milliseconds since the epoch.
    since: u64,
    /// The same in the order of what happens to tags.
    moment: u64,
    /// From when on the lock timeout counts.
    pub(crate) lock_from: Instant,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(engine: &'a Engine, policy: &Policy) -> Self {
        Self {
            timers: &engine.timers,
            policy: *policy,
            start: Instant::now(),
            since: engine.clock.epoch(),
            moment: engine.tags.moment(),
            lock_from: Instant::now(),
        }
    }

    /// Waits for a flight, which a follower shares with the one who started it. `own` is a stale
    /// entry that the caller has itself; a flight that is `outdated` offers none.
    pub(crate) async fn on(
        &self,
        stage: &mut watch::Receiver<Stage>,
        follows: bool,
        own: Option<Hit>,
        outdated: bool,
        usable: &(impl Fn(&Hit) -> bool + Sync),
    ) -> Waited {
        let hard = self.after(self.start, self.policy.hard_timeout);
        let lock =
            if follows { self.after(self.lock_from, self.policy.lock_timeout) } else { None };
        let may_grace = self.policy.grace > 0 && !self.policy.force_fresh;
        loop {
            let (stale, since) = match &*stage.borrow_and_update() {
                Stage::Done { outcome, stale } => {
                    let stale = stale.clone().filter(|hit| !outdated && usable(hit));
                    let stale = stale.or_else(|| own.filter(usable));
                    return Waited::Done { outcome: outcome.clone(), stale };
                }
                Stage::Producing { since, stale } if !outdated => {
                    let stale = stale.clone().filter(usable).or_else(|| own.clone());
                    (stale, (*since).max(self.start))
                }
                _ => (own.clone(), self.start),
            };
            let at_hand = stale.filter(|hit| may_grace && usable(hit));
            let soft = at_hand.as_ref().and_then(|_| self.after(since, self.policy.timeout));
            let first = [soft, lock, hard].into_iter().flatten().min();
            let now = Instant::now();
            if first.is_none_or(|first| first > now) {
                let changed = match first {
                    None => stage.changed().await.is_ok(),
                    Some(first) => {
                        tokio::select! {
                            biased;
                            changed = stage.changed() => changed.is_ok(),
                            ended = self.timers.until(first) => ended == Ended::InTime,
                        }
                    }
                };
                if changed {
                    continue;
                }
            }
            // The value, if it is there at the very moment, goes before any timeout.
            match at_hand {
                Some(stale) if soft.is_some_and(|soft| soft <= now) => {
                    return Waited::SoftTimeout { stale };
                }
                _ if lock.is_some_and(|lock| lock <= now) => {
                    return Waited::LockTimeout { stale: at_hand };
                }
                _ => return Waited::HardTimeout,
            }
        }
    }

    /// That long after; none if it never comes.
    fn after(&self, start: Instant, ms: u64) -> Option<Instant> {
        if ms == NEVER { None } else { start.checked_add(Duration::from_millis(ms)) }
    }
}

/// Runs a factory, for `limit` ms at most: then it is dropped. A panic, also one before its first
/// `await`, is an error.
pub(crate) async fn caught<T, F>(
    timers: &Timers,
    limit: u64,
    start: impl FnOnce() -> F,
) -> Result<T, BoxError>
where
    F: Future<Output = Result<T, BoxError>>,
{
    let mut factory = match std::panic::catch_unwind(AssertUnwindSafe(start)) {
        Ok(future) => Contained(Some(Box::pin(future))),
        Err(panic) => return Err(panicked(&*panic)),
    };
    let run = std::future::poll_fn(move |cx| factory.poll(cx));
    if limit == NEVER {
        return run.await;
    }
    let limit = Duration::from_millis(limit);
    timers.within(limit, run).await.unwrap_or_else(|| Err(Box::new(TimedOut(limit))))
}

/// A factory whose panics, that of its drop included, go no further.
struct Contained<F>(Option<Pin<Box<F>>>);

impl<T, F: Future<Output = Result<T, BoxError>>> Contained<F> {
    fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<T, BoxError>> {
        let Some(factory) = &mut self.0 else { return Poll::Pending };
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| factory.as_mut().poll(cx)));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
    }
}

impl<F> Drop for Contained<F> {
    fn drop(&mut self) {
        let factory = self.0.take();
        if std::panic::catch_unwind(AssertUnwindSafe(|| drop(factory))).is_err() {
            tracing::error!("the future of a factory panicked when it was dropped");
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> BoxError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    Box::new(FactoryPanic(text.unwrap_or_else(|| "no message".to_owned())))
}
