//! `get_or_set` for many keys: each key has its own flight, and those that this call starts share
//! one read of the second tier and one run of the factory.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::find::Found;
use super::flight::{self, Filled, Flight, Hit, Joined, Lead, Outer, Stage};
use super::lease::Leased;
use super::read::{Ask, Produce, Wait, Waited, caught, markers_of};
use super::tags::Seen;
use super::{CacheValue, Engine, Key, chain};
use crate::context::{Context, ManyContext, Overrides};
use crate::error::{BoxError, Error, Result, is_skip};
use crate::event::EventKind;
use crate::options::{ErrorHook, Policy};
use crate::tier::local::State;

/// A factory for many keys, boxed.
pub(crate) type ProduceMany<T> = Arc<
    dyn Fn(
            ManyContext,
        ) -> Pin<Box<dyn Future<Output = Result<HashMap<String, T>, BoxError>> + Send>>
        + Send
        + Sync,
>;

/// What a caller of `get_or_set_many` asks for.
pub(crate) struct AskMany<T> {
    pub(crate) prefix: Arc<str>,
    pub(crate) policy: Policy,
    pub(crate) tags: Vec<String>,
    pub(crate) hook: Option<ErrorHook>,
    pub(crate) produce: ProduceMany<T>,
}

impl<T> Clone for AskMany<T> {
    fn clone(&self) -> Self {
        Self {
            prefix: self.prefix.clone(),
            policy: self.policy,
            tags: self.tags.clone(),
            hook: self.hook.clone(),
            produce: self.produce.clone(),
        }
    }
}

impl<T: CacheValue> AskMany<T> {
    /// The same for one of the keys alone.
    fn of(self, key: &Key) -> Ask<T> {
        let Self { prefix, policy, tags, hook, produce } = self;
        let name = key.name().to_owned();
        let produce: Produce<T> = Box::new(move |context: Context<T>| {
            Box::pin(async move {
                let skip = context.skip::<T>();
                let context = ManyContext::new(vec![name.clone()], context.overrides());
                let mut values = produce(context).await?;
                values.remove(&name).map_or_else(|| Ok(skip?), Ok)
            })
        });
        Ask { key: key.clone(), prefix, policy, tags, hook, produce, refresh_of: None }
    }
}

/// A key to produce a value for, with the stale entry and the markers of its tags.
type Missing = (Key, Lead, Option<(Hit, Vec<Seen>)>);

/// A key that this call waits for.
struct Awaited {
    at: usize,
    flight: Arc<Flight>,
    stage: watch::Receiver<Stage>,
    follows: bool,
    outdated: bool,
    is_early: bool,
    own: Option<Hit>,
    _waiting: Option<flight::Waiting>,
}

impl Engine {
    /// One value per key, in the order of the keys; none where the factory brought none.
    pub(crate) async fn get_or_set_many<T: CacheValue>(
        self: &Arc<Self>,
        keys: &[Key],
        ask: AskMany<T>,
    ) -> Result<Vec<Option<T>>> {
        self.check_open()?;
        let mut first: HashMap<&str, usize> = HashMap::new();
        let unique: Vec<usize> =
            (0..keys.len()).filter(|i| *first.entry(&*keys[*i].full).or_insert(*i) == *i).collect();
        if !self.enabled {
            let names = unique.iter().map(|at| keys[*at].name().to_owned()).collect();
            return self.uncached_many(keys, names, &ask).await;
        }
        self.check_tags(&ask.prefix, &ask.tags)?;
        let policy = ask.policy;
        let outer = Outer::current();
        let mut wait = Wait::new(self, &policy);
        let usable = |hit: &Hit| self.is_usable::<T>(hit);
        let mut values: HashMap<usize, Option<T>> = HashMap::new();
        let mut open = Vec::new();
        for at in unique {
            if outer.produces(&self.flights, &keys[at].full) {
                return Err(Error::Reentrant { key: self.key_in_errors(&keys[at]) });
            }
            let here = if policy.force_fresh { None } else { self.value_now(&keys[at]) };
            match here {
                Some(value) => drop(values.insert(at, Some(value))),
                None => open.push(at),
            }
        }
        let mut hung: HashMap<usize, Arc<Flight>> = HashMap::new();
        while !open.is_empty() {
            let (leads, awaited) = self.join_many(keys, &open, &hung, &outer, &policy);
            if !leads.is_empty() {
                let (engine, ask, outer) = (self.clone(), ask.clone(), outer.clone());
                let fly = async move { engine.fly_many(leads, ask, outer).await };
                self.spawn(fly.in_current_span());
            }
            // All at once is not needed: every wait counts from the start of the call.
            open.clear();
            let mut awaited = awaited.into_iter();
            while let Some(next) = awaited.next() {
                let Awaited { at, flight, mut stage, follows, outdated, is_early, own, _waiting } =
                    next;
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
                            let ask = || ask.clone().of(key);
                            self.replace_if_hung(&flight, &waited, &policy, ask);
                        }
                        let value = match self.land::<T>(key, &policy, waited) {
                            Ok(value) => Some(value),
                            Err(Error::Skipped { .. }) => None,
                            Err(error) => {
                                // Each key is one hit or one miss.
                                let rest = open.into_iter().chain(awaited.map(|next| next.at));
                                rest.for_each(|at| self.missed(&keys[at]));
                                return Err(error);
                            }
                        };
                        values.insert(at, value);
                    }
                }
            }
            wait.lock_from = Instant::now();
        }
        let value = |key: &Key| first.get(&*key.full).and_then(|at| values.get(at)?.clone());
        Ok(keys.iter().map(value).collect())
    }

    /// Joins the flights of the keys, or starts them.
    fn join_many(
        self: &Arc<Self>,
        keys: &[Key],
        open: &[usize],
        hung: &HashMap<usize, Arc<Flight>>,
        outer: &Outer,
        policy: &Policy,
    ) -> (Vec<(Key, Lead)>, Vec<Awaited>) {
        let (mut leads, mut awaited) = (Vec::new(), Vec::new());
        for &at in open {
            let key = &keys[at];
            let watch = |replaces| self.watch_instead(key, replaces);
            let own = if policy.force_fresh { None } else { self.at_hand(key, State::Stale) };
            let (mut flight, mut lead) =
                match self.flights.join_instead(&key.full, hung.get(&at), watch) {
                    Joined::Leader(lead) => (lead.flight().clone(), Some(lead)),
                    Joined::Follower(flight) => (flight, None),
                };
            let mut waiting = outer.wait_for(&flight);
            if waiting.is_none() {
                let solo = Lead::solo(key.full.clone(), self.watch(key));
                flight = solo.flight().clone();
                // Others must not close a circle over this one. A new flight itself closes none.
                waiting = outer.wait_for(&flight);
                lead = Some(solo);
            }
            let follows = lead.is_none();
            let outdated = follows && flight.is_outdated(self.clock.now());
            let is_early = !flight.has_begun();
            let at_once = follows || self.l2.is_none() || policy.skip_l2_read;
            let own = own.filter(|_| at_once);
            leads.extend(lead.map(|lead| (key.clone(), lead)));
            // From now on, so that nobody takes the flight for one that nobody waits for.
            let stage = flight.watch();
            awaited.push(Awaited {
                at,
                flight,
                stage,
                follows,
                outdated,
                is_early,
                own,
                _waiting: waiting,
            });
        }
        (leads, awaited)
    }

    /// The flights that one call started.
    async fn fly_many<T: CacheValue>(
        self: &Arc<Self>,
        leads: Vec<(Key, Lead)>,
        ask: AskMany<T>,
        outer: Outer,
    ) {
        let one = ask.clone();
        let AskMany { prefix, policy, tags, hook, produce } = ask;

        // The tiers.
        let flights: Vec<_> = leads.iter().map(|(_, lead)| lead.flight().clone()).collect();
        let fences: Vec<_> = flights.iter().map(|flight| flight.fence()).collect();
        let keys: Vec<_> = leads.iter().map(|(key, _)| key).collect();
        let look = Instant::now();
        let found = match self.find_many::<T>(&keys, &policy, &fences).await {
            Ok(found) => found,
            Err(error) => {
                for (_, lead) in leads {
                    lead.finish(Err(error.clone()));
                }
                return;
            }
        };
        let looked = look.elapsed();
        let mut missing = Vec::new();
        for ((key, mut lead), found) in leads.into_iter().zip(found) {
            let stale = match found {
                Found::Fresh(hit) if !policy.force_fresh => {
                    lead.finish(Ok(Filled::Found(hit)));
                    continue;
                }
                Found::Fresh(hit) | Found::Stale(hit) => Some(hit),
                Found::Nothing => None,
            };
            lead.producing(stale.clone());
            let leased = self.lease(&key, lead.flight(), &policy).await;
            if matches!(leased, Leased::Taken) {
                // Another process produces it: a flight of its own waits for that.
                let (ask, engine, outer) = (one.clone().of(&key), self.clone(), outer.clone());
                let fly = async move { engine.fly(lead, ask, outer).await };
                self.spawn(fly.in_current_span());
                continue;
            }
            if matches!(leased, Leased::Ours) {
                // Whoever had it before may just have stored a value.
                let found = self.find::<T>(&key, &policy, lead.flight().fence()).await;
                if let Ok(Found::Fresh(hit)) = found {
                    lead.finish(Ok(Filled::Found(hit)));
                    continue;
                }
            }
            let markers = markers_of(stale.as_ref());
            missing.push((key, lead, stale.map(|stale| (stale, markers))));
        }
        let Some((first, ..)) = missing.first() else { return };

        // The factory.
        let started = Instant::now();
        let created_at = self.clock.epoch();
        let tags = tags.iter().map(String::as_str);
        let keys = missing.iter().map(|(key, ..)| key);
        let sight = self.see(&prefix, tags, keys, &policy.after(looked)).await;
        for (_, lead, _) in &missing {
            lead.flight().begins(&sight.tags);
        }
        let began = self.tags_at(created_at);
        let overrides = Arc::new(Overrides::default());
        let names = missing.iter().map(|(key, ..)| key.name().to_owned()).collect();
        let context = ManyContext::new(names, overrides.clone());
        let flights: Vec<_> = missing.iter().map(|(_, lead, _)| lead.flight().clone()).collect();
        tracing::debug!(store = %self.name, key = self.logged(&first.full), keys = missing.len(),
            "producing values");
        let run = caught(&self.timers, policy.factory_timeout, || produce(context));
        let produced = flight::inside(&self.flights, flights.clone(), outer, run).await;
        let took = started.elapsed();

        // What it produced.
        let mut produced = match produced {
            Ok(produced) => produced,
            Err(error) => {
                self.fail_many(missing, error, took, &policy, hook.as_ref()).await;
                return;
            }
        };
        let (policy, added) = match overrides.apply(policy) {
            Ok(applied) => applied,
            Err(error) => {
                for (_, lead, _) in missing {
                    lead.finish(Err(error.clone()));
                }
                return;
            }
        };
        let policy = self.storable(policy, &prefix, &added).begun();
        let sight = self.see_more(&prefix, sight, &added, began, &policy).await;
        let (mut values, mut landing) = (Vec::new(), Vec::new());
        for ((key, lead, _), flight) in missing.into_iter().zip(&flights) {
            let background = flight.is_deserted();
            match produced.remove(key.name()) {
                Some(value) => {
                    self.emit(|| EventKind::FactorySucceeded {
                        key: self.shown(&flight.key),
                        background,
                        took,
                    });
                    values.push((key, value, flight.fence()));
                    landing.push(lead);
                }
                None => lead.finish(Err(Error::Skipped { key: self.key_in_errors(&key) })),
            }
        }
        match self.store_produced(values, created_at, &sight, &policy).await {
            Ok(entries) => {
                for (lead, entry) in landing.into_iter().zip(entries) {
                    lead.finish(Ok(Filled::Produced(entry)));
                }
            }
            Err(error) => {
                for lead in landing {
                    lead.finish(Err(error.clone()));
                }
            }
        }
    }

    /// The factory failed for all keys.
    async fn fail_many(
        &self,
        missing: Vec<Missing>,
        error: BoxError,
        took: Duration,
        policy: &Policy,
        hook: Option<&ErrorHook>,
    ) {
        let skipped = is_skip(&*error);
        let source: Arc<dyn std::error::Error + Send + Sync> = error.into();
        for (i, (key, lead, stale)) in missing.into_iter().enumerate() {
            if skipped {
                lead.finish(Err(Error::Skipped { key: self.key_in_errors(&key) }));
                continue;
            }
            let error = Error::of_factory(self.key_in_errors(&key), source.clone());
            let background = lead.flight().is_deserted();
            if i == 0 {
                tracing::warn!(store = %self.name, key = self.logged(&key.full), background,
                    error = %chain(&*source), "a factory failed");
                self.report_failure(&error, hook);
            }
            self.emit(|| EventKind::FactoryFailed { key: self.shown(&key.full), background, took });
            if let Some((stale, markers)) = stale {
                self.back_off(&key, &stale, &markers, policy, lead.flight().fence()).await;
            }
            lead.finish(Err(error));
        }
    }

    async fn uncached_many<T: CacheValue>(
        &self,
        keys: &[Key],
        names: Vec<String>,
        ask: &AskMany<T>,
    ) -> Result<Vec<Option<T>>> {
        keys.iter().for_each(|key| self.missed(key));
        let Some(first) = keys.first() else { return Ok(Vec::new()) };
        let context = ManyContext::new(names, Arc::default());
        match caught(&self.timers, ask.policy.factory_timeout, || (ask.produce)(context)).await {
            Ok(values) => Ok(keys.iter().map(|key| values.get(key.name()).cloned()).collect()),
            Err(error) if is_skip(&*error) => Ok(keys.iter().map(|_| None).collect()),
            Err(error) => {
                let error = Error::of_factory(self.key_in_errors(first), error.into());
                self.report_failure(&error, ask.hook.as_ref());
                Err(error)
            }
        }
    }
}
