//! The room that the shards share. Each has a part of it, and what nobody has is in the pool, so
//! that all parts together are never more than the limits, and a shard that has more entries than
//! others gets more room.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Room for so many entries of so many bytes together.
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

    /// What of it is not in the other one.
    pub(super) fn without(self, other: Self) -> Self {
        Self {
            items: self.items.saturating_sub(other.items),
            weight: self.weight.saturating_sub(other.weight),
        }
    }
}

/// The room that no shard has.
#[derive(Debug)]
pub(super) struct Pool {
    items: AtomicU64,
    weight: AtomicU64,
    /// What a shard takes and keeps beyond its need, to come here less often: so little that what
    /// all of them do not use is a small part of everything.
    chunk: Room,
    /// An even part of everything.
    fair: Room,
}

impl Pool {
    /// All the room, for so many shards.
    pub(super) fn new(all: Room, shards: u64) -> Self {
        /// All chunks together are this part of everything at most.
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

    /// Takes what is lacking, if it is there, and a chunk if that is.
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

    /// What a shard with that much to spare should give back.
    pub(super) fn surplus(&self, spare: Room) -> Room {
        // Not for each entry that comes and goes.
        let surplus = |spare: u64, chunk: u64| if spare >= chunk * 2 { spare - chunk } else { 0 };
        Room {
            items: surplus(spare.items, self.chunk.items),
            weight: surplus(spare.weight, self.chunk.weight),
        }
    }
}

#[cfg(test)]
impl Pool {
    /// All the room, when the shards have that.
    pub(super) fn total(&self, mut of_shards: Room) -> Room {
        of_shards.add(Room { items: self.items.load(Relaxed), weight: self.weight.load(Relaxed) });
        of_shards
    }
}
