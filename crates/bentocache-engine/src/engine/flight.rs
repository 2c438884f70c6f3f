//! Flights (single-flight): one run of a factory per key at a time.
//!
//! A flight runs in its own task, and every caller only waits for it, including the one that
//! started it. So dropping one caller's future does not affect the others, and a caller that is not
//! polled does not delay them.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bentocache_driver::Entry;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::error::{Error, ErrorKey, Result};
use crate::event::Tier;
use crate::l1::fence::Fence;
use crate::lock::Lease;
use crate::sync::Mutex;
use crate::tags::ObservedTag;

const SHARDS: usize = 64;

/// An entry and where it was found.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) entry: Arc<Entry>,
    pub(super) tier: Tier,
}

/// The result of a flight.
#[derive(Clone, Debug)]
pub(super) enum Filled {
    /// A fresh entry was found after all.
    Found(Located),
    /// The factory produced a value.
    Produced(Arc<Entry>),
}

pub(super) type FlightOutcome = Result<Filled>;

/// The progress of a flight.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// Looking into the tiers.
    Looking,
    /// Runs the factory since this instant, with this stale entry as a fallback.
    Producing { since: Instant, stale: Option<Located> },
    /// Over. If the outcome is an error, callers with a grace may use the stale entry.
    Done { outcome: FlightOutcome, stale: Option<Located> },
}

pub(super) struct Flight {
    pub(super) key: Arc<str>,
    pub(super) id: u64,
    stage: watch::Sender<Stage>,
    /// Taken before the flight's first lookup.
    fence: Fence,
    /// The states of the value's tags before the factory began. Set when it begins.
    seen: OnceLock<Vec<ObservedTag>>,
    /// The time of the last progress.
    alive_at: Mutex<Instant>,
    lease: Mutex<Holding>,
    /// It runs in the future of the caller that started it, and ends when that is dropped.
    belongs_to_caller: AtomicBool,
    /// Its factory waits for a place.
    is_queued: AtomicBool,
    /// Its factory has a place.
    has_place: AtomicBool,
    /// A factory that has a place waits for it, directly or through other flights.
    is_needed: AtomicBool,
    becomes_needed: Notify,
}

/// The flight's part in the lock between processes.
enum Holding {
    Nothing,
    Lease(#[allow(dead_code, reason = "held for its drop")] Lease),
    /// Another flight has replaced this one and needs the lease.
    Replaced,
}

type ByKey = HashMap<Arc<str>, Arc<Flight>>;

pub(super) struct Flights {
    hasher: RandomState,
    shards: Box<[Mutex<ByKey>]>,
}

/// The role of a caller in the key's flight.
pub(super) enum Joined {
    /// No flight existed: the caller starts the work.
    Leader(FlightGuard),
    /// A flight exists: the caller waits for it.
    Follower(Arc<Flight>),
}

impl Flights {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Joins the key's flight, or starts one. `watch` takes the key's fence.
    pub(super) fn join(self: &Arc<Self>, key: &Arc<str>, watch: impl FnOnce() -> Fence) -> Joined {
        self.join_instead(key, None, |_| watch())
    }

    /// As [`join`](Self::join), but does not wait for `hung`: if that is still the key's flight, a
    /// new one replaces it. `watch` gets whether it does. It then advances the fence first, so that
    /// the old flight can no longer store a value.
    pub(super) fn join_instead(
        self: &Arc<Self>,
        key: &Arc<str>,
        hung: Option<&Arc<Flight>>,
        watch: impl FnOnce(bool) -> Fence,
    ) -> Joined {
        let mut shard = self.shard(key).lock();
        match shard.entry(key.clone()) {
            MapEntry::Occupied(place)
                if hung.is_none_or(|hung| !Arc::ptr_eq(hung, place.get())) =>
            {
                Joined::Follower(place.get().clone())
            }
            place => {
                let replaces = match &place {
                    MapEntry::Occupied(place) => {
                        place.get().is_replaced();
                        true
                    }
                    MapEntry::Vacant(_) => false,
                };
                let flight = Flight::new(key.clone(), watch(replaces));
                place.insert_entry(flight.clone());
                drop(shard);
                Joined::Leader(FlightGuard {
                    flights: Some(self.clone()),
                    flight,
                    stale: None,
                    over: false,
                })
            }
        }
    }

    fn remove(&self, flight: &Arc<Flight>) {
        let mut shard = self.shard(&flight.key).lock();
        if shard.get(&flight.key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            shard.remove(&flight.key);
        }
    }

    fn shard(&self, key: &Arc<str>) -> &Mutex<ByKey> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The number of flights.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl Flight {
    fn new(key: Arc<str>, fence: Fence) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let stage = watch::Sender::new(Stage::Looking);
        Arc::new(Self {
            key,
            id: IDS.fetch_add(1, Relaxed),
            stage,
            fence,
            seen: OnceLock::new(),
            alive_at: Mutex::new(Instant::now()),
            lease: Mutex::new(Holding::Nothing),
            belongs_to_caller: AtomicBool::new(false),
            is_queued: AtomicBool::new(false),
            has_place: AtomicBool::new(false),
            is_needed: AtomicBool::new(false),
            becomes_needed: Notify::new(),
        })
    }

    pub(super) fn watch(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    pub(super) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The factory is about to start. `seen` holds the current states of the tags.
    pub(super) fn begins(&self, seen: &[ObservedTag]) {
        self.is_alive();
        let _ = self.seen.set(seen.to_vec());
    }

    /// Whether the factory has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.seen.get().is_some()
    }

    /// Whether the flight began before an invalidation of its key or of one of its tags, so that
    /// its result is not valid for a caller that joins now.
    pub(super) fn is_outdated(&self, now: u64) -> bool {
        let tags = self.seen.get().map(Vec::as_slice).unwrap_or_default();
        !self.fence.holds()
            || tags.iter().any(|seen| !seen.tag.is_believed(now) || seen.tag.marker() != seen.state)
    }

    /// Records progress of the flight.
    pub(super) fn is_alive(&self) {
        *self.alive_at.lock() = Instant::now();
    }

    /// The time since the last progress of the flight.
    pub(super) fn silent_for(&self) -> Duration {
        self.alive_at.lock().elapsed()
    }

    /// Holds the key's lease until the flight ends or is replaced.
    pub(super) fn hold(&self, lease: Lease) {
        let mut holding = self.lease.lock();
        if !matches!(*holding, Holding::Replaced) {
            *holding = Holding::Lease(lease);
        }
    }

    /// Records that the flight runs in the future of the caller that started it.
    pub(super) fn is_of_its_caller(&self) {
        self.belongs_to_caller.store(true, Relaxed);
    }

    /// Whether the flight ends when the caller that started it is dropped.
    pub(super) fn belongs_to_caller(&self) -> bool {
        self.belongs_to_caller.load(Relaxed)
    }

    /// Records whether its factory waits for a place.
    pub(super) fn set_queued(&self, is_queued: bool) {
        self.is_queued.store(is_queued, Relaxed);
    }

    /// Whether its factory waits for a place, so that the flight does not hang.
    pub(super) fn is_queued(&self) -> bool {
        self.is_queued.load(Relaxed)
    }

    /// Records that its factory has a place.
    pub(super) fn has_place(&self) {
        self.has_place.store(true, SeqCst);
    }

    /// Records that a factory that has a place waits for this flight.
    pub(super) fn make_needed(&self) {
        self.is_needed.store(true, SeqCst);
        self.becomes_needed.notify_waiters();
    }

    pub(super) fn is_needed(&self) -> bool {
        self.is_needed.load(SeqCst)
    }

    /// Waits until a factory that has a place waits for this flight.
    pub(super) async fn until_needed(&self) {
        let mut needed = pin!(self.becomes_needed.notified());
        needed.as_mut().enable();
        if !self.is_needed() {
            needed.await;
        }
    }

    /// Whether the flights that its factory waits for need no place.
    pub(super) fn lends_its_place(&self) -> bool {
        self.has_place.load(SeqCst) || self.is_needed()
    }

    /// Records that another flight has replaced this one.
    fn is_replaced(&self) {
        *self.lease.lock() = Holding::Replaced;
    }

    /// Whether no caller waits for the flight any more.
    pub(super) fn is_deserted(&self) -> bool {
        self.stage.receiver_count() == 0
    }
}

/// The duty to end a flight. If it is dropped before that, it ends the flight with an error.
pub(super) struct FlightGuard {
    flights: Option<Arc<Flights>>,
    flight: Arc<Flight>,
    stale: Option<Located>,
    over: bool,
}

impl FlightGuard {
    /// A flight that no other caller can join, for a caller that must not wait for another flight.
    pub(super) fn solo(key: Arc<str>, fence: Fence) -> Self {
        Self { flights: None, flight: Flight::new(key, fence), stale: None, over: false }
    }

    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Records that the lookups are over and the factory is next.
    pub(super) fn producing(&mut self, stale: Option<Located>) {
        self.stale.clone_from(&stale);
        self.flight.stage.send_replace(Stage::Producing { since: Instant::now(), stale });
    }

    /// Ends the flight: frees the key, then wakes all waiters with the outcome.
    pub(super) fn finish(mut self, outcome: FlightOutcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: FlightOutcome) {
        self.over = true;
        *self.flight.lease.lock() = Holding::Nothing;
        if let Some(flights) = &self.flights {
            flights.remove(&self.flight);
        }
        self.flight.stage.send_replace(Stage::Done { outcome, stale: self.stale.take() });
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        if !self.over {
            self.end(Err(Error::Abandoned { key: ErrorKey::new(self.flight.key.clone(), false) }));
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::l1::fence::Fences;

    fn table() -> (Arc<Flights>, Arc<Fences>, Arc<str>) {
        (Arc::new(Flights::new()), Arc::new(Fences::new()), "k".into())
    }

    fn lead(joined: Joined) -> FlightGuard {
        match joined {
            Joined::Leader(lead) => lead,
            Joined::Follower(_) => panic!("somebody else leads"),
        }
    }

    #[test]
    fn a_flight_that_is_dropped_frees_its_key_and_tells_who_waits() {
        let (flights, fences, key) = table();
        let first = lead(flights.join(&key, || fences.watch(1)));
        let Joined::Follower(flight) = flights.join(&key, || fences.watch(1)) else {
            panic!("two leaders");
        };
        let stage = flight.watch();
        drop(first);
        assert!(matches!(
            &*stage.borrow(),
            Stage::Done { outcome: Err(Error::Abandoned { .. }), .. }
        ));
        assert_eq!(flights.len(), 0);
        lead(flights.join(&key, || fences.watch(1)));
    }

    #[test]
    fn the_first_who_gives_up_on_a_hung_flight_takes_its_place_and_the_next_join_that_one() {
        let (flights, fences, key) = table();
        let hung = lead(flights.join(&key, || fences.watch(1)));
        let old = hung.flight().clone();
        let new = lead(flights.join_instead(&key, Some(&old), |_| fences.watch(1)));
        assert!(matches!(
            flights.join_instead(&key, Some(&old), |_| fences.watch(1)),
            Joined::Follower(flight) if Arc::ptr_eq(&flight, new.flight())
        ));
        // The end of the old flight does not free the key of the new one.
        drop(hung);
        assert_eq!(flights.len(), 1);
    }
}

/// Explored over many schedules: `RUSTFLAGS="--cfg shuttle" cargo test -p bentocache-engine --lib
/// shuttle`.
#[cfg(all(test, shuttle))]
mod shuttle_tests {
    use super::*;
    use crate::l1::fence::Fences;
    use bentocache_driver::{Life, NEVER};
    use shuttle::future::block_on;
    use shuttle::sync::atomic::{AtomicU64 as Counter, Ordering::SeqCst};
    use shuttle::thread;

    #[derive(Clone)]
    struct Number(u64);

    impl bentocache_driver::Value for Number {
        fn encode(&self, _: u8, _: &mut Vec<u8>) -> Result<(), crate::BoxError> {
            Ok(())
        }
    }

    fn produced(number: u64) -> Arc<Entry> {
        let life = Life {
            created_at: 0,
            fingerprint: 0,
            life: NEVER,
            ends_at: NEVER,
            fresh_until: NEVER,
            dead_at: NEVER,
            verified_at: 0,
            epoch: 1,
            graced: false,
        };
        Arc::new(Entry::new("k", Number(number), life, None))
    }

    fn number(entry: &Arc<Entry>) -> u64 {
        let value: &dyn std::any::Any = entry.value();
        let Number(number) = value.downcast_ref().unwrap();
        *number
    }

    /// `get_or_set` and `delete`, reduced to the tables that they rely on.
    struct World {
        flights: Arc<Flights>,
        fences: Arc<Fences>,
        key: Arc<str>,
        source: Counter,
        l1: Mutex<Option<Arc<Entry>>>,
        running: Counter,
        runs: Counter,
    }

    impl World {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                flights: Arc::new(Flights::new()),
                fences: Arc::new(Fences::new()),
                key: "k".into(),
                source: Counter::new(0),
                l1: Mutex::default(),
                running: Counter::new(0),
                runs: Counter::new(0),
            })
        }

        fn get_or_set(self: &Arc<Self>) -> Result<u64> {
            loop {
                if let Some(entry) = &*self.l1.lock() {
                    return Ok(number(entry));
                }
                match self.flights.join(&self.key, || self.fences.watch(1)) {
                    Joined::Leader(lead) => {
                        let world = self.clone();
                        let mut stage = lead.flight().watch();
                        thread::spawn(move || world.run_flight(lead));
                        return Self::result_of(&mut stage);
                    }
                    Joined::Follower(flight) => {
                        let outdated = !flight.fence().holds();
                        let result = Self::result_of(&mut flight.watch());
                        if !outdated {
                            return result;
                        }
                    }
                }
            }
        }

        fn run_flight(&self, mut guard: FlightGuard) {
            let flight = guard.flight().clone();
            if let Some(entry) = &*self.l1.lock() {
                let hit = Located { entry: entry.clone(), tier: Tier::L1 };
                return guard.finish(Ok(Filled::Found(hit)));
            }
            guard.producing(None);
            assert_eq!(self.running.fetch_add(1, SeqCst), 0, "two factories at once");
            self.runs.fetch_add(1, SeqCst);
            let entry = produced(self.source.load(SeqCst));
            thread::yield_now();
            self.running.fetch_sub(1, SeqCst);
            flight.fence().fill(|| *self.l1.lock() = Some(entry.clone()));
            guard.finish(Ok(Filled::Produced(entry)));
        }

        fn result_of(stage: &mut watch::Receiver<Stage>) -> Result<u64> {
            block_on(async {
                loop {
                    if let Stage::Done { outcome, .. } = &*stage.borrow_and_update() {
                        return match outcome.clone()? {
                            Filled::Found(Located { entry, .. }) | Filled::Produced(entry) => {
                                Ok(number(&entry))
                            }
                        };
                    }
                    stage.changed().await.unwrap();
                }
            })
        }

        fn update_source_and_delete(&self) -> u64 {
            let version = self.source.fetch_add(1, SeqCst) + 1;
            self.fences.invalidate(1, || *self.l1.lock() = None);
            version
        }
    }

    #[test]
    fn shuttle_callers_share_one_run() {
        shuttle::check_random(
            || {
                let world = World::new();
                let callers: Vec<_> = (0..4)
                    .map(|_| {
                        let world = world.clone();
                        thread::spawn(move || assert_eq!(world.get_or_set().unwrap(), 0))
                    })
                    .collect();
                for caller in callers {
                    caller.join().unwrap();
                }
                assert_eq!(world.runs.load(SeqCst), 1);
                assert_eq!(world.flights.len(), 0);
            },
            3_000,
        );
    }

    #[test]
    fn shuttle_nobody_gets_what_was_invalidated_before_the_call() {
        shuttle::check_random(
            || {
                let world = World::new();
                let readers: Vec<_> = (0..2)
                    .map(|_| {
                        let world = world.clone();
                        thread::spawn(move || world.get_or_set().unwrap())
                    })
                    .collect();
                for _ in 0..2 {
                    let version = world.update_source_and_delete();
                    let read = world.get_or_set().unwrap();
                    assert!(read >= version, "{read} after {version} was announced");
                }
                for reader in readers {
                    reader.join().unwrap();
                }
            },
            5_000,
        );
    }

    #[test]
    fn shuttle_a_lost_leader_has_exactly_one_successor() {
        shuttle::check_random(
            || {
                let world = World::new();
                let Joined::Leader(lost) = world.flights.join(&world.key, || world.fences.watch(1))
                else {
                    panic!("somebody leads already");
                };
                let callers: Vec<_> = (0..3)
                    .map(|_| {
                        let world = world.clone();
                        thread::spawn(move || match world.get_or_set() {
                            Ok(value) => assert_eq!(value, 0),
                            Err(error) => assert!(matches!(error, Error::Abandoned { .. })),
                        })
                    })
                    .collect();
                drop(lost);
                for caller in callers {
                    caller.join().unwrap();
                }
                assert!(world.runs.load(SeqCst) <= 1);
                assert_eq!(world.flights.len(), 0);
            },
            3_000,
        );
    }
}
