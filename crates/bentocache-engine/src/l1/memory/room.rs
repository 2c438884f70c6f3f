//! The room that all shards share. Each shard owns a part, and the pool holds the rest. So the sum
//! of all parts never exceeds the limits, and a shard with more entries than others gets more room.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Room for a number of entries and a number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) items: u64,
    pub(super) weight: u64,
}

impl Room {
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }

    pub(super) fn add(&mut self, other: Self) {
        self.items += other.items;
        self.weight += other.weight;
    }

    /// The difference of both, at least 0.
    pub(super) fn without(self, other: Self) -> Self {
        Self {
            items: self.items.saturating_sub(other.items),
            weight: self.weight.saturating_sub(other.weight),
        }
    }
}

/// The room that no shard owns.
#[derive(Debug)]
pub(super) struct Pool {
    items: AtomicU64,
    weight: AtomicU64,
    /// The extra room that a shard takes and keeps to access the pool less often. It is so small
    /// that the unused chunks of all shards are a small part of the total.
    chunk: Room,
    /// The even share of one shard.
    fair: Room,
}

impl Pool {
    /// A pool with all the room, for this number of shards.
    pub(super) fn new(all: Room, shards: u64) -> Self {
        /// All chunks together are at most 1/400 of the total.
        const PARTS: u64 = 400;
        let part = |all: u64| (all / (shards * PARTS)).max(1);
        Self {
            items: AtomicU64::new(all.items),
            weight: AtomicU64::new(all.weight),
            chunk: Room { items: part(all.items), weight: part(all.weight) },
            fair: Room { items: all.items / shards, weight: all.weight / shards },
        }
    }

    pub(super) fn fair(&self) -> Room {
        self.fair
    }

    /// Takes the lacking room if the pool has it, and a whole chunk if the pool has that.
    pub(super) fn take(&self, lacking: Room) -> Room {
        let take = |pool: &AtomicU64, lacking: u64, chunk: u64| {
            if lacking == 0 {
                return 0;
            }
            let taken = |there: u64| lacking.max(chunk).min(there);
            let left = |there: u64| (there >= lacking).then(|| there - taken(there));
            pool.fetch_update(Relaxed, Relaxed, left).map_or(0, taken)
        };
        Room {
            items: take(&self.items, lacking.items, self.chunk.items),
            weight: take(&self.weight, lacking.weight, self.chunk.weight),
        }
    }

    pub(super) fn give(&self, room: Room) {
        if room.items > 0 {
            self.items.fetch_add(room.items, Relaxed);
        }
        if room.weight > 0 {
            self.weight.fetch_add(room.weight, Relaxed);
        }
    }

    /// The part of a shard's spare room that the shard should give back.
    pub(super) fn surplus(&self, spare: Room) -> Room {
        // A single entry that comes and goes must not move room to the pool and back.
        let surplus = |spare: u64, chunk: u64| if spare >= chunk * 2 { spare - chunk } else { 0 };
        Room {
            items: surplus(spare.items, self.chunk.items),
            weight: surplus(spare.weight, self.chunk.weight),
        }
    }
}

#[cfg(test)]
impl Pool {
    /// The total room, given the sum of the shards' parts.
    pub(super) fn total(&self, mut of_shards: Room) -> Room {
        of_shards.add(Room { items: self.items.load(Relaxed), weight: self.weight.load(Relaxed) });
        of_shards
    }
}
