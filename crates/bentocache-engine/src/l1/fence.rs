//! Fences keep a slow reader from restoring a value that was invalidated while it was reading.
//!
//! A reader takes a *fence* for the key before it reads L2 or runs a factory. Every invalidation
//! advances that fence and updates L1 under the same shard lock. The reader later inserts its value
//! under that lock, and only if the fence has not advanced, so check and insert are atomic.
//!
//! Only watched keys use memory. The table identifies keys by a 64-bit hash. Two keys with the same
//! hash share a fence: this may cost an insertion, but never admits an outdated value.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::sync::Mutex;

const SHARDS: usize = 64;

pub(crate) struct Fences {
    /// One `Arc` per shard: a single reference count would be contended by every reader.
    shards: Box<[Shard]>,
}

type Shard = Arc<Mutex<Watched>>;

type Watched = HashMap<u64, KeyState, BuildHasherDefault<Prehashed>>;

#[derive(Default)]
struct KeyState {
    readers: usize,
    moves: u64,
    /// The number of `moves` that were changes of this key by this process.
    changes: u64,
    /// The latest of these changes that has reached L2.
    reached: u64,
}

/// A watch on a key. It ends when this is dropped.
pub(crate) struct Fence {
    shard: Shard,
    hash: u64,
    moves: u64,
    changes: u64,
    /// See [`Fence::replaces_fresh`].
    replaces_fresh: AtomicBool,
}

impl Fences {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }

    /// Starts to watch the key with this hash.
    pub(crate) fn watch(&self, hash: u64) -> Fence {
        let shard = self.shard(hash);
        let mut watched = shard.lock();
        let state = watched.entry(hash).or_default();
        state.readers += 1;
        Fence::new(shard, hash, state)
    }

    /// Advances the key's fence and runs `change`, which updates L1, in one step.
    pub(crate) fn invalidate<R>(&self, hash: u64, change: impl FnOnce() -> R) -> R {
        let mut shard = self.shard(hash).lock();
        if let Some(state) = shard.get_mut(&hash) {
            state.moves += 1;
        }
        change()
    }

    /// As [`invalidate`](Self::invalidate), and starts to watch the key, so that the change can
    /// detect whether another change followed.
    pub(crate) fn change<R>(&self, hash: u64, change: impl FnOnce() -> R) -> (R, Fence) {
        let shard = self.shard(hash);
        let mut watched = shard.lock();
        let state = watched.entry(hash).or_default();
        state.moves += 1;
        state.changes += 1;
        state.readers += 1;
        let fence = Fence::new(shard, hash, state);
        (change(), fence)
    }

    /// As [`change`](Self::change), unless `change` declines by `None`: then the fence stays.
    pub(crate) fn try_change<R>(
        &self,
        hash: u64,
        change: impl FnOnce() -> Option<R>,
    ) -> Option<(R, Fence)> {
        let shard = self.shard(hash);
        let mut watched = shard.lock();
        let result = change()?;
        let state = watched.entry(hash).or_default();
        state.moves += 1;
        state.changes += 1;
        state.readers += 1;
        Some((result, Fence::new(shard, hash, state)))
    }

    /// Advances all fences. A change of the whole L1 must come after this call: each reader has
    /// then either inserted its value already, so that the change finds it, or will not insert.
    pub(crate) fn invalidate_all(&self) {
        for shard in &self.shards {
            for state in shard.lock().values_mut() {
                state.moves += 1;
            }
        }
    }

    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[hash as usize % SHARDS]
    }

    #[cfg(all(test, not(shuttle)))]
    fn watched(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl Fence {
    fn new(shard: &Shard, hash: u64, state: &KeyState) -> Self {
        let replaces_fresh = AtomicBool::new(false);
        let KeyState { moves, changes, .. } = *state;
        Self { shard: shard.clone(), hash, moves, changes, replaces_fresh }
    }

    /// The reader found a value that is unusable here but may be fresh for other processes. They
    /// must be notified when it is replaced.
    pub(crate) fn found_fresh_for_others(&self) {
        self.replaces_fresh.store(true, Relaxed);
    }

    /// Whether the replaced value may be fresh for other processes.
    pub(crate) fn replaces_fresh(&self) -> bool {
        self.replaces_fresh.load(Relaxed)
    }

    /// Whether this process has not changed the key since the watch began, whatever messages
    /// arrived.
    pub(crate) fn is_unchanged(&self) -> bool {
        let shard = self.shard.lock();
        shard.get(&self.hash).is_some_and(|state| state.changes == self.changes)
    }

    /// The change that this fence watches has reached L2.
    pub(crate) fn has_reached(&self) {
        let mut shard = self.shard.lock();
        if let Some(state) = shard.get_mut(&self.hash) {
            state.reached = state.reached.max(self.changes);
        }
    }

    /// Whether a later change by this process has reached L2.
    pub(crate) fn is_outdone(&self) -> bool {
        let shard = self.shard.lock();
        shard.get(&self.hash).is_some_and(|state| state.reached > self.changes)
    }

    /// Whether the key was not invalidated since the watch began.
    pub(crate) fn holds(&self) -> bool {
        let shard = self.shard.lock();
        shard.get(&self.hash).is_some_and(|state| state.moves == self.moves)
    }

    /// Runs `insert`, which inserts into L1, unless the key was invalidated since the watch began.
    pub(crate) fn fill<R>(&self, insert: impl FnOnce() -> R) -> Option<R> {
        let shard = self.shard.lock();
        let held = shard.get(&self.hash).is_some_and(|state| state.moves == self.moves);
        let result = held.then(insert);
        drop(shard);
        result
    }
}

impl Fence {
    /// Ends a change that took time, during which readers may have restored the removed value:
    /// advances the fence once more and runs `settle`, unless another change of the key followed.
    pub(crate) fn settle<R>(&self, settle: impl FnOnce() -> R) -> Option<R> {
        let mut shard = self.shard.lock();
        let state = shard.get_mut(&self.hash)?;
        let last = state.moves == self.moves;
        state.moves += 1;
        let result = last.then(settle);
        drop(shard);
        result
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let mut shard = self.shard.lock();
        if let Some(state) = shard.get_mut(&self.hash) {
            state.readers -= 1;
            if state.readers == 0 {
                shard.remove(&self.hash);
            }
        }
    }
}

/// The keys of the table are hashes already, so they are not hashed again.
#[derive(Default)]
struct Prehashed(u64);

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_fence_that_has_moved_refuses_to_fill() {
        let fences = Arc::new(Fences::new());
        let slow = fences.watch(1);
        fences.invalidate(1, || ());
        let quick = fences.watch(1);
        assert!(slow.fill(|| ()).is_none() && !slow.holds());
        assert!(quick.fill(|| ()).is_some() && quick.holds());
        fences.invalidate_all();
        assert!(quick.fill(|| ()).is_none());
    }

    #[test]
    fn other_keys_do_not_move_a_fence() {
        let fences = Arc::new(Fences::new());
        let fence = fences.watch(1);
        fences.invalidate(2, || ());
        fences.invalidate(1 + SHARDS as u64, || ());
        assert!(fence.holds());
    }

    #[test]
    fn only_watched_keys_take_room() {
        let fences = Arc::new(Fences::new());
        fences.invalidate(7, || ());
        let (one, other) = (fences.watch(7), fences.watch(7));
        assert_eq!(fences.watched(), 1);
        drop(one);
        assert!(other.holds());
        drop(other);
        assert_eq!(fences.watched(), 0);
    }
}

/// Explored over many schedules: `RUSTFLAGS="--cfg shuttle" cargo test -p bentocache-engine --lib
/// shuttle`.
#[cfg(all(test, shuttle))]
mod shuttle_tests {
    use super::*;
    use shuttle::thread;

    /// A source, an L1 and the fence between them, as the engine uses them.
    #[derive(Default)]
    struct World {
        source: Mutex<u32>,
        l1: Mutex<Option<u32>>,
    }

    fn check(invalidations: u32, invalidate: fn(&Fences, &World)) {
        shuttle::check_random(
            move || {
                let fences = Arc::new(Fences::new());
                let world = Arc::new(World::default());
                let readers: Vec<_> = (0..2)
                    .map(|_| {
                        let (fences, world) = (fences.clone(), world.clone());
                        thread::spawn(move || {
                            let fence = fences.watch(1);
                            let value = *world.source.lock();
                            thread::yield_now();
                            fence.fill(|| *world.l1.lock() = Some(value));
                        })
                    })
                    .collect();
                for _ in 0..invalidations {
                    *world.source.lock() += 1;
                    invalidate(&fences, &world);
                    // From here on no reader may see the former value in L1.
                    let seen = *world.l1.lock();
                    let current = *world.source.lock();
                    assert!(seen.is_none_or(|seen| seen == current), "{seen:?} after {current}");
                }
                for reader in readers {
                    reader.join().unwrap();
                }
                let seen = *world.l1.lock();
                assert!(seen.is_none_or(|seen| seen == invalidations));
            },
            5_000,
        );
    }

    #[test]
    fn shuttle_a_slow_reader_never_brings_back_what_was_deleted() {
        check(2, |fences, world| fences.invalidate(1, || *world.l1.lock() = None));
    }

    #[test]
    fn shuttle_a_slow_reader_never_brings_back_what_was_cleared() {
        check(2, |fences, world| {
            fences.invalidate_all();
            *world.l1.lock() = None;
        });
    }

    #[test]
    fn shuttle_a_slow_reader_never_overwrites_a_set() {
        check(2, |fences, world| {
            let value = *world.source.lock();
            fences.invalidate(1, || *world.l1.lock() = Some(value));
        });
    }
}
