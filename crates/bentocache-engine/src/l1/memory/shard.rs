//! One shard of the memory tier, with its own part of the limits.
//!
//! **Storage.** A hash table with open addressing and linear probing: an entry is in the first free
//! cell after the home cell of its hash. A cell holds the hash and the state that eviction needs;
//! the rest of the data of a hit is in the entry. So a hit reads two memory locations, where
//! separate tables of numbers, places and keys would need four. After a removal the following
//! entries move up, so the table has no gaps.
//!
//! **Eviction.** S3-FIFO (Yang and others, SOSP 2023): a new entry starts on probation, in a short
//! queue. If it is used there, it moves to the main queue. Otherwise it is evicted and becomes a
//! ghost; if its key returns, the new entry goes to the main queue at once. An entry that reaches
//! the end of the main queue and was used goes round once more. A hit records the use and moves
//! nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bentocache_driver::{Entry, Inserted};

use super::ghosts::Ghosts;
use super::room::{Pool, Room};

/// No cell.
const NONE: u32 = u32::MAX;
/// A tenth of all entries is on probation. A small store has at least this many there, but at most
/// half of its entries, so that each has time to be used.
const LEAST_ON_PROBATION: usize = 32;
/// The largest number of entries that one eviction sends round again. Other threads wait for the
/// eviction.
const MOST_CHANCES: usize = 1_000;

// Field order matters: a hit reads the first fields, which are next to the lock.
#[repr(C)]
pub(crate) struct Shard {
    /// At least a fifth of the cells is empty.
    cells: Box<[Cell]>,
    probation: EvictionQueue,
    main: EvictionQueue,
    ghosts: Ghosts,
    weight: u64,
    /// This shard's part of the shared room.
    room: Room,
    /// Incremented when an entry moves to a cell after its own, which a scan may then miss.
    shuffles: u64,
}

/// Half a cache line.
struct Cell {
    /// `None` in an empty cell.
    entry: Option<Arc<Entry>>,
    hash: u32,
    newer: u32,
    older: u32,
    state: CellState,
}

/// Packed state: two bits for the number of uses (at most 3), one bit for the main queue, and the
/// rest for the weight.
struct CellState(AtomicU32);

/// A scan over all cells, from the last to the first. An entry that moves during the scan moves
/// towards the cells that were not scanned yet; any other move increments `shuffles`, and the scan
/// restarts.
#[derive(Default)]
pub(super) struct Scan {
    end: usize,
    shuffles: Option<u64>,
}

#[derive(Clone, Copy)]
struct EvictionQueue {
    newest: u32,
    oldest: u32,
    len: usize,
}

impl CellState {
    const USES: u32 = 3;
    const PROVEN: u32 = 4;
    const WEIGHT_AT: u32 = 3;
    /// Weights are rounded down to multiples of this many bytes.
    const UNIT: u64 = 16;

    fn new(weight: u64, is_proven: bool) -> Self {
        let mut state = Self(AtomicU32::new(if is_proven { Self::PROVEN } else { 0 }));
        state.set_weight(weight);
        state
    }

    fn set_weight(&mut self, weight: u64) {
        let state = self.0.get_mut();
        let rest = *state & (Self::PROVEN | Self::USES);
        *state = ((weight / Self::UNIT) as u32) << Self::WEIGHT_AT | rest;
    }

    /// Records a use. Two concurrent uses may count as one.
    #[inline(always)]
    fn note_use(&self) {
        let state = self.0.load(Relaxed);
        if state & Self::USES != Self::USES {
            self.0.store(state + 1, Relaxed);
        }
    }

    fn uses(&self) -> u32 {
        self.0.load(Relaxed) & Self::USES
    }

    fn is_proven(&self) -> bool {
        self.0.load(Relaxed) & Self::PROVEN != 0
    }

    fn weight(&self) -> u64 {
        u64::from(self.0.load(Relaxed) >> Self::WEIGHT_AT) * Self::UNIT
    }
}

impl EvictionQueue {
    const EMPTY: Self = Self { newest: NONE, oldest: NONE, len: 0 };
}

impl Cell {
    fn empty() -> Self {
        Self { entry: None, hash: 0, newer: NONE, older: NONE, state: CellState::new(0, false) }
    }
}

/// Whether both slices are equal. Slices of common key lengths are compared inline, because a call
/// to `memcmp` costs as much as the rest of the search.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    #[inline(always)]
    fn ends<const N: usize>(a: &[u8], b: &[u8]) -> bool {
        a.first_chunk::<N>() == b.first_chunk::<N>() && a.last_chunk::<N>() == b.last_chunk::<N>()
    }
    a.len() == b.len()
        && match a.len() {
            4..8 => ends::<4>(a, b),
            8..=16 => ends::<8>(a, b),
            17..=32 => ends::<16>(a, b),
            _ => a == b,
        }
}

impl Shard {
    /// The largest number of items: a cell index has 32 bits.
    pub(super) const MOST_ITEMS: u64 = 1 << 31;
    /// The largest weight that the state can represent.
    pub(super) const HEAVIEST: u64 = (u32::MAX >> CellState::WEIGHT_AT) as u64 * CellState::UNIT;

    pub(super) fn new() -> Self {
        Self {
            cells: Self::cells(8),
            probation: EvictionQueue::EMPTY,
            main: EvictionQueue::EMPTY,
            ghosts: Ghosts::default(),
            weight: 0,
            room: Room::default(),
            shuffles: 0,
        }
    }

    fn cells(count: usize) -> Box<[Cell]> {
        (0..count).map(|_| Cell::empty()).collect()
    }

    /// Removes all entries and returns them.
    pub(super) fn clear(&mut self, pool: &Pool) -> Self {
        let empty = Self { shuffles: self.shuffles + 1, ..Self::new() };
        let cleared = std::mem::replace(self, empty);
        pool.give(cleared.room);
        cleared
    }

    /// Adds room that other shards gave.
    pub(super) fn grant(&mut self, room: Room) {
        self.room.add(room);
    }

    /// The unused part of this shard's room.
    fn spare(&self) -> Room {
        self.room.without(Room { items: self.len() as u64, weight: self.weight })
    }

    /// Returns surplus room to the pool.
    pub(super) fn release(&mut self, pool: &Pool) {
        let surplus = pool.surplus(self.spare());
        self.room = self.room.without(surplus);
        pool.give(surplus);
    }

    /// Gives room to another shard: its unused room, and the room of one evicted entry if that is
    /// not enough.
    pub(super) fn yield_room(
        &mut self,
        lacking: Room,
        pool: &Pool,
        evicted: &mut Vec<Arc<Entry>>,
    ) -> Room {
        let enough = |spare: Room| lacking.without(spare).is_none();
        if !enough(self.spare())
            && let Some(entry) = self.evict()
        {
            evicted.push(entry);
        }
        let spare = self.spare();
        let room = Room {
            items: spare.items.min(lacking.items),
            weight: spare.weight.min(lacking.weight),
        };
        self.room = self.room.without(room);
        self.release(pool);
        room
    }

    pub(super) fn len(&self) -> usize {
        self.probation.len + self.main.len
    }

    /// The weight of all entries.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// The entry under the key, which counts as used.
    #[inline(always)]
    pub(crate) fn get(&self, hash: u32, key: &str) -> Option<&Arc<Entry>> {
        let cell = &self.cells[self.find(hash, key)?];
        cell.state.note_use();
        cell.entry.as_ref()
    }

    /// Stores an entry. Adds the entry that it replaces, and the evicted entries, to `inserted`.
    ///
    /// # Errors
    /// The lacking room, which other shards must give. With `alone`, the shard evicts its own
    /// entries instead, and fails only if it has none left.
    pub(super) fn insert(
        &mut self,
        (hash, entry): (u32, &Arc<Entry>),
        weight: u64,
        pool: &Pool,
        alone: bool,
        inserted: &mut Inserted,
    ) -> Result<(), Room> {
        let weight = weight / CellState::UNIT * CellState::UNIT;
        if let Some(at) = self.find(hash, entry.key()) {
            let old = self.cells[at].state.weight();
            let lacking = (self.weight - old + weight).saturating_sub(self.room.weight);
            self.room.add(pool.take(Room { items: 0, weight: lacking }));
            if self.weight - old + weight <= self.room.weight {
                self.weight = self.weight - old + weight;
                let cell = &mut self.cells[at];
                cell.state.set_weight(weight);
                inserted.replaced = cell.entry.replace(entry.clone());
                return Ok(());
            }
        }
        // The former entry is removed even if the new one does not fit.
        if let Some(old) = self.find(hash, entry.key()).and_then(|at| self.take(at)) {
            inserted.replaced = Some(old);
        }
        loop {
            let lacking = Room { items: 1, weight }.without(self.spare());
            let taken = pool.take(lacking);
            self.room.add(taken);
            let lacking = lacking.without(taken);
            if lacking.is_none() {
                break;
            }
            if !(alone || self.has_its_part(lacking, pool.fair())) {
                return Err(lacking);
            }
            inserted.evicted.push(self.evict().ok_or(lacking)?);
        }
        let is_proven = self.ghosts.remove(hash);
        if (self.len() + 1) * 5 > self.cells.len() * 4 {
            self.grow(pool.fair());
        }
        self.put(Cell {
            entry: Some(entry.clone()),
            hash,
            state: CellState::new(weight, is_proven),
            ..Cell::empty()
        });
        self.weight += weight;
        self.release(pool);
        Ok(())
    }

    /// Whether this shard uses so much of the lacking resource that it evicts its own entries. Some
    /// shards have more entries than others by chance, and each should reclaim its own.
    fn has_its_part(&self, lacking: Room, fair: Room) -> bool {
        let has = |used: u64, fair: u64| used.saturating_mul(4) >= fair.saturating_mul(3);
        self.len() > 0
            && (lacking.items == 0 || has(self.len() as u64, fair.items))
            && (lacking.weight == 0 || has(self.weight, fair.weight))
    }

    pub(super) fn remove(&mut self, hash: u32, key: &str) -> Option<Arc<Entry>> {
        let at = self.find(hash, key)?;
        self.take(at)
    }

    /// The entries in the next cells of a scan, at most `stride`; `None` at its end. An entry that
    /// is present during the whole scan is returned, whatever else changes between two steps.
    pub(super) fn step(
        &self,
        scan: &mut Scan,
        stride: usize,
    ) -> Option<impl Iterator<Item = (u32, &Arc<Entry>)>> {
        match scan.shuffles {
            Some(_) if scan.end == 0 => return None,
            Some(shuffles) if shuffles == self.shuffles => {}
            _ => *scan = Scan { end: self.cells.len(), shuffles: Some(self.shuffles) },
        }
        let start = scan.end.saturating_sub(stride);
        let cells = &self.cells[start..scan.end];
        scan.end = start;
        Some(cells.iter().filter_map(|cell| Some((cell.hash, cell.entry.as_ref()?))))
    }

    /// Removes exactly this entry, not one that has replaced it.
    pub(super) fn remove_same(&mut self, hash: u32, entry: &Arc<Entry>) -> bool {
        let found = self.find(hash, entry.key()).filter(|at| {
            self.cells[*at].entry.as_ref().is_some_and(|found| Arc::ptr_eq(found, entry))
        });
        found.and_then(|at| self.take(at)).is_some()
    }

    /// Evicts one entry.
    fn evict(&mut self) -> Option<Arc<Entry>> {
        let mut chances = MOST_CHANCES;
        loop {
            let all = self.len();
            let short = (all / 10).max(LEAST_ON_PROBATION).min(all / 2);
            let on_probation = self.probation.len > short;
            let at = if on_probation { self.probation.oldest } else { self.main.oldest } as usize;
            let cell = self.cells.get(at)?;
            if chances == 0 || cell.state.uses() == 0 {
                if on_probation {
                    self.ghosts.insert(cell.hash, all);
                }
                return self.take(at);
            }
            chances -= 1;
            self.unlink(at);
            let state = self.cells[at].state.0.get_mut();
            if on_probation {
                *state = *state & !CellState::USES | CellState::PROVEN;
            } else {
                *state -= 1;
            }
            self.link(at);
        }
    }

    /// The home cell of a hash. Homes are spread evenly over all cells.
    #[inline(always)]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.cells.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn next(&self, at: usize) -> usize {
        if at + 1 == self.cells.len() { 0 } else { at + 1 }
    }

    /// The number of steps from one cell to the other.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.cells.len() - from }
    }

    #[inline(always)]
    fn find(&self, hash: u32, key: &str) -> Option<usize> {
        let mut at = self.home(hash);
        loop {
            let cell = &self.cells[at];
            let entry = cell.entry.as_ref()?;
            if cell.hash == hash && same(entry.key().as_bytes(), key.as_bytes()) {
                return Some(at);
            }
            at = self.next(at);
        }
    }

    /// Adds an entry as the newest one of its queue.
    fn put(&mut self, cell: Cell) {
        let mut at = self.home(cell.hash);
        while self.cells[at].entry.is_some() {
            at = self.next(at);
        }
        self.cells[at] = cell;
        self.link(at);
    }

    fn take(&mut self, at: usize) -> Option<Arc<Entry>> {
        self.unlink(at);
        self.weight -= self.cells[at].state.weight();
        let entry = self.cells[at].entry.take();
        // The following entries move up, but never before their home cell.
        let (mut hole, mut at) = (at, self.next(at));
        while self.cells[at].entry.is_some() {
            let home = self.home(self.cells[at].hash);
            if self.distance(home, at) >= self.distance(hole, at) {
                self.shuffles += u64::from(hole > at);
                self.cells.swap(hole, at);
                self.relink(hole);
                hole = at;
            }
            at = self.next(at);
        }
        entry
    }

    /// Grows the table, but not far beyond the cells that an even share of all entries needs.
    fn grow(&mut self, fair: Room) {
        let enough = |items: usize| items.saturating_mul(5) / 4 + 1;
        let fair = usize::try_from(fair.items).unwrap_or(usize::MAX);
        let most = enough(fair.saturating_add(fair / 16));
        let now = self.cells.len();
        let size = (now * 2).min(most).max(now + now / 8 + 1);
        let mut old = std::mem::replace(&mut self.cells, Self::cells(size));
        self.shuffles += 1;
        let queues = [&mut self.probation, &mut self.main];
        for queue in queues.map(|queue| std::mem::replace(queue, EvictionQueue::EMPTY)) {
            let mut at = queue.oldest;
            while let Some(cell) = old.get_mut(at as usize) {
                at = cell.newer;
                self.put(std::mem::replace(cell, Cell::empty()));
            }
        }
    }

    fn queue_of(&mut self, at: usize) -> &mut EvictionQueue {
        if self.cells[at].state.is_proven() { &mut self.main } else { &mut self.probation }
    }

    /// Makes the cell the newest of its queue.
    fn link(&mut self, at: usize) {
        let queue = self.queue_of(at);
        let older = std::mem::replace(&mut queue.newest, at as u32);
        if older == NONE {
            queue.oldest = at as u32;
        }
        queue.len += 1;
        let cell = &mut self.cells[at];
        (cell.newer, cell.older) = (NONE, older);
        if let Some(older) = self.cells.get_mut(older as usize) {
            older.newer = at as u32;
        }
    }

    /// Removes the cell from its queue.
    fn unlink(&mut self, at: usize) {
        let (newer, older) = (self.cells[at].newer, self.cells[at].older);
        self.point(at, newer, older, older, newer);
        self.queue_of(at).len -= 1;
    }

    /// Updates the neighbours in the queue after the cell has moved to `at`.
    fn relink(&mut self, at: usize) {
        let (newer, older) = (self.cells[at].newer, self.cells[at].older);
        self.point(at, newer, older, at as u32, at as u32);
    }

    /// Makes `older_one` the predecessor of `newer`, and `newer_one` the successor of `older`.
    fn point(&mut self, at: usize, newer: u32, older: u32, older_one: u32, newer_one: u32) {
        match self.cells.get_mut(newer as usize) {
            Some(cell) => cell.older = older_one,
            None => self.queue_of(at).newest = older_one,
        }
        match self.cells.get_mut(older as usize) {
            Some(cell) => cell.newer = newer_one,
            None => self.queue_of(at).oldest = newer_one,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bentocache_driver::NEVER;
    use proptest::prelude::*;

    use super::*;

    fn entry(key: &str) -> Arc<Entry> {
        bentocache_testkit::entry(key, "", NEVER)
    }

    /// Few home cells, some at the end of the table, so that keys collide and a search wraps
    /// around.
    fn hash(key: u8) -> u32 {
        const HASHES: [u32; 7] = [0, 1, 1 << 31, 3 << 30, u32::MAX - 2, u32::MAX - 1, u32::MAX];
        HASHES[key as usize % HASHES.len()]
    }

    /// A single shard with this much room.
    fn alone(items: u64, weight: u64) -> (Shard, Pool) {
        (Shard::new(), Pool::new(Room { items, weight }, 1))
    }

    fn put(shard: &mut Shard, pool: &Pool, hash: u32, entry: &Arc<Entry>, weight: u64) -> Inserted {
        let mut inserted = Inserted::default();
        shard.insert((hash, entry), weight, pool, true, &mut inserted).expect("there is room");
        inserted
    }

    impl Shard {
        /// Checks that all parts of the state agree.
        fn check(&self) {
            let (mut linked, mut weight) = (BTreeSet::new(), 0);
            for (queue, is_proven) in [(self.probation, false), (self.main, true)] {
                let (mut at, mut older, mut len) = (queue.oldest, NONE, 0);
                while at != NONE {
                    let cell = &self.cells[at as usize];
                    assert!(linked.insert(at), "it is in the queues twice");
                    assert_eq!((cell.older, cell.state.is_proven()), (older, is_proven));
                    let key = cell.entry.as_ref().unwrap().key();
                    assert_eq!(self.find(cell.hash, key), Some(at as usize), "{key} is lost");
                    weight += cell.state.weight();
                    len += 1;
                    (older, at) = (at, cell.newer);
                }
                assert_eq!((queue.newest, queue.len), (older, len));
            }
            let used = self.cells.iter().filter(|cell| cell.entry.is_some()).count();
            assert_eq!((used, weight), (linked.len(), self.weight));
            assert!(self.len() as u64 <= self.room.items && weight <= self.room.weight);
            assert!(used < self.cells.len(), "a search has no end");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u64),
        Get(u8),
        Remove(u8),
        Scan,
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0_u8..80, 0_u64..100).prop_map(|(key, weight)| Step::Insert(key, weight * 16)),
            4 => (0_u8..80).prop_map(Step::Get),
            3 => (0_u8..80).prop_map(Step::Remove),
            6 => Just(Step::Scan),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        /// Compared with a map: the shard holds what was inserted and neither removed nor handed
        /// back. A concurrent scan returns every entry that was present during the whole scan.
        #[test]
        fn it_loses_nothing_and_keeps_to_its_limits(
            steps in steps(),
            items in 1_u64..60,
            weight in 1_600_u64..20_000,
        ) {
            let (mut shard, pool) = alone(items, weight);
            let mut model: BTreeMap<u8, Arc<Entry>> = BTreeMap::new();
            let mut scan = Scan::default();
            let mut to_be_seen: Option<BTreeSet<u8>> = None;
            for step in steps {
                let mut gone = Vec::new();
                match step {
                    Step::Insert(key, weight) => {
                        let new = entry(&key.to_string());
                        let inserted = put(&mut shard, &pool, hash(key), &new, weight);
                        let Inserted { replaced: old, evicted, .. } = inserted;
                        let model_old = model.insert(key, new);
                        prop_assert!(same_entry(old.as_ref(), model_old.as_ref()));
                        if old.is_some() {
                            gone.push(key);
                        }
                        for entry in evicted {
                            let key: u8 = entry.key().parse().unwrap();
                            let model_old = model.remove(&key);
                            prop_assert!(same_entry(Some(&entry), model_old.as_ref()));
                            gone.push(key);
                        }
                    }
                    Step::Get(key) => {
                        let found = shard.get(hash(key), &key.to_string());
                        prop_assert!(same_entry(found, model.get(&key)));
                    }
                    Step::Remove(key) => {
                        let old = shard.remove(hash(key), &key.to_string());
                        shard.release(&pool);
                        prop_assert!(same_entry(old.as_ref(), model.remove(&key).as_ref()));
                        gone.push(key);
                    }
                    Step::Scan => {
                        let expected =
                            to_be_seen.get_or_insert_with(|| model.keys().copied().collect());
                        if let Some(entries) = shard.step(&mut scan, 3) {
                            for (_, entry) in entries {
                                expected.remove(&entry.key().parse().unwrap());
                            }
                        } else {
                            prop_assert!(expected.is_empty(), "not shown: {expected:?}");
                            (scan, to_be_seen) = (Scan::default(), None);
                        }
                    }
                    Step::Clear => {
                        let cleared = shard.clear(&pool);
                        prop_assert_eq!(cleared.len(), model.len());
                        gone.extend(std::mem::take(&mut model).into_keys());
                    }
                }
                if let Some(expected) = &mut to_be_seen {
                    gone.iter().for_each(|key| {
                        expected.remove(key);
                    });
                }
                shard.check();
                prop_assert_eq!(pool.total(shard.room), Room { items, weight });
                prop_assert_eq!(shard.len(), model.len());
            }
        }
    }

    #[test]
    fn keys_of_any_length_are_told_apart_by_every_byte() {
        for len in 0..50 {
            let key = vec![b'a'; len];
            assert!(same(&key, &key.clone()));
            assert!(!same(&key, &vec![b'a'; len + 1]));
            for at in 0..len {
                let mut other = key.clone();
                other[at] = b'b';
                assert!(!same(&key, &other), "byte {at} of {len}");
            }
        }
    }

    fn same_entry(a: Option<&Arc<Entry>>, b: Option<&Arc<Entry>>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }

    /// A shard for ten entries, whose keys are numbers.
    struct Ten(Shard, Pool);

    impl Ten {
        /// With the entries 0 to 9.
        fn full() -> Self {
            let (shard, pool) = alone(10, 10_000);
            let mut ten = Self(shard, pool);
            (0..10).for_each(|key| assert!(ten.insert(key).is_empty()));
            ten
        }

        fn hash(key: u8) -> u32 {
            u32::from(key) << 24
        }

        /// Returns the evicted keys.
        fn insert(&mut self, key: u8) -> Vec<String> {
            let entry = entry(&key.to_string());
            let inserted = put(&mut self.0, &self.1, Self::hash(key), &entry, 160);
            inserted.evicted.iter().map(|entry| entry.key().to_owned()).collect()
        }

        fn used(&self, key: u8, times: usize) {
            for _ in 0..times {
                assert!(self.0.get(Self::hash(key), &key.to_string()).is_some());
            }
        }

        /// The number of uses, and whether the entry is in the main queue.
        fn state(&self, key: u8) -> Option<(u32, bool)> {
            let state = &self.0.cells[self.0.find(Self::hash(key), &key.to_string())?].state;
            Some((state.uses(), state.is_proven()))
        }
    }

    #[test]
    fn who_was_not_used_on_probation_has_to_go_first() {
        let mut ten = Ten::full();
        [0, 1, 3].into_iter().for_each(|key| ten.used(key, 1));
        assert_eq!(ten.insert(10), ["2"]);
        assert_eq!(ten.insert(11), ["4"]);
    }

    #[test]
    fn who_comes_back_soon_is_not_on_probation_again() {
        let mut ten = Ten::full();
        assert_eq!(ten.insert(10), ["0"]);
        assert_eq!(ten.insert(0), ["1"]);
        assert_eq!(ten.state(0), Some((0, true)));
        // All other entries are evicted before it.
        (20..50).for_each(|key| drop(ten.insert(key)));
        assert!(ten.state(0).is_some());
    }

    #[test]
    fn uses_on_probation_do_not_count_in_the_main_queue() {
        let mut ten = Ten::full();
        (0..10).for_each(|key| ten.used(key, 1));
        ten.used(0, 5);
        // All move to the main queue with their uses reset: the oldest is evicted.
        assert_eq!(ten.insert(10), ["0"]);
        assert_eq!(ten.state(1), Some((0, true)));
        // An entry evicted from the main queue starts on probation when it returns.
        ten.insert(0);
        assert_eq!(ten.state(0), Some((0, false)));
    }

    #[test]
    fn who_was_used_in_the_main_queue_goes_round_once_more_for_each_use() {
        let mut ten = Ten::full();
        (0..10).for_each(|key| ten.used(key, 1));
        assert_eq!(ten.insert(10), ["0"]);
        (1..10).for_each(|key| ten.used(key, 1));
        ten.used(1, 9);
        // The main queue has 1, which counts as used three times, and 2 to 4, each used once. From
        // probation, 5 moves behind them, as the first one that was not used there.
        assert_eq!(ten.insert(11), ["5"]);
        assert_eq!((ten.state(1), ten.state(2)), (Some((2, true)), Some((0, true))));
        // 6 moves behind them.
        assert_eq!(ten.insert(12), ["2"]);
        assert_eq!((ten.state(1), ten.state(3)), (Some((1, true)), Some((0, true))));
    }

    #[test]
    fn a_new_value_keeps_the_place_and_the_uses_of_the_old() {
        let mut ten = Ten::full();
        ten.used(0, 2);
        assert!(ten.insert(0).is_empty());
        assert_eq!(ten.state(0), Some((2, false)));
        assert_eq!(ten.insert(10), ["1"]);
    }

    #[test]
    fn only_this_very_entry_is_removed() {
        let mut ten = Ten::full();
        let hash = Ten::hash(3);
        let old = ten.0.get(hash, "3").unwrap().clone();
        ten.insert(3);
        assert!(!ten.0.remove_same(hash, &old));
        let new = ten.0.get(hash, "3").unwrap().clone();
        assert!(ten.0.remove_same(hash, &new) && !ten.0.remove_same(hash, &new));
        assert_eq!(ten.0.len(), 9);
    }

    #[test]
    fn a_tenth_is_on_probation_but_in_a_small_store_more() {
        for (items, on_probation) in [(1_u32, 0), (40, 20), (200, 32), (1_000, 100)] {
            let (mut shard, pool) = alone(items.into(), u64::MAX);
            let hash = |key: u32| key.wrapping_mul(2_654_435_761);
            for key in 0..items {
                put(&mut shard, &pool, hash(key), &entry(&key.to_string()), 0);
                shard.get(hash(key), &key.to_string());
            }
            put(&mut shard, &pool, hash(items), &entry("new"), 0);
            // The new entry joins them.
            assert_eq!(shard.probation.len, on_probation + 1, "of {items}");
        }
    }

    /// An eviction does not scan all of a large shard, however many entries were used.
    #[test]
    fn an_eviction_ends_soon_even_if_all_were_used() {
        const ITEMS: u32 = 5_000;
        let (mut shard, pool) = alone(ITEMS.into(), u64::MAX);
        let hash = |key: u32| key.wrapping_mul(2_654_435_761);
        for key in 0..ITEMS {
            put(&mut shard, &pool, hash(key), &entry(&key.to_string()), 0);
            shard.get(hash(key), &key.to_string());
        }
        let inserted = put(&mut shard, &pool, hash(ITEMS), &entry("new"), 0);
        assert_eq!(inserted.evicted.len(), 1);
        assert_eq!(shard.main.len, MOST_CHANCES);
    }
}
