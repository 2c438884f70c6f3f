//! What this node stored in the second tier a while ago, of values that it had not just been given.
//!
//! Nothing orders a message of another node and a write of this one. So when a message invalidates
//! a key for which this node has just stored a value, the node takes that value back. And while the
//! node hears nothing, it remembers all that its factories stored, to ask the others about it later.

use std::collections::{HashMap, VecDeque};

use crate::site::{Few, Key};
use crate::sync::Mutex;
use crate::wire::message::Kind;

/// How late a message may be to be about a value that was stored before it came, in ms.
const MESSAGE_DELAY: u64 = 2_000;
/// How long a link may be dead before its driver says so, in ms.
const UNNOTICED: u64 = 30_000;
/// How long a value that was stored in a gap is remembered, in ms: a node that has to be asked about
/// it may come back later than this one.
const REMEMBERED_FOR: u64 = 600_000;
/// Fills remembered at most while the node hears. The oldest go first.
const MOST: usize = 10_000;
/// Fills remembered at most while it does not. What cannot be remembered is not stored.
const MOST_IN_GAP: usize = 100_000;
/// Values of one key remembered at most.
const MOST_OF_KEY: usize = 8;

/// A value that this process stored.
pub(super) struct Fill {
    pub(super) key: Key,
    /// Of the bytes, which may be large. Of several values if others were stored before in a gap.
    pub(super) digests: Few<u64>,
    /// Of the entry, in ms since the epoch.
    pub(super) created_at: u64,
    pub(super) source: Source,
    /// When it was stored, by the cache's clock.
    pub(super) at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Factory,
    /// A `set` that was stored late.
    Set {
        /// It took only the place of something older: no message about another value is meant.
        hides_nothing: bool,
    },
}

struct Remembered {
    fill: Fill,
    /// Its place in the order of time.
    number: u64,
    /// The beginning of the gap in which it was stored.
    gap: Option<u64>,
}

/// By the hash of the key.
#[derive(Default)]
pub(super) struct Fills(Mutex<Table>);

#[derive(Default)]
struct Table {
    fills: HashMap<u64, Remembered>,
    /// Hashes and numbers, the oldest first. Those of fills that are gone are skipped.
    order: VecDeque<(u64, u64)>,
    next: u64,
    /// Since when messages may be missed, while the node does not hear.
    gap: Option<u64>,
}

impl Fills {
    /// Remembers a fill before it is stored. Returns false if there is no room: then it must not be
    /// stored.
    pub(super) fn add(&self, fill: Fill) -> bool {
        self.0.lock().add(fill)
    }

    /// From now on nothing is heard, and possibly since a while.
    pub(super) fn begin_gap(&self, now: u64) {
        let mut table = self.0.lock();
        if table.gap.is_none() {
            let since = now.saturating_sub(UNNOTICED);
            table.gap = Some(since);
            table.mark(since);
        }
    }

    /// Messages arrive again.
    pub(super) fn end_gap(&self) {
        self.0.lock().gap = None;
    }

    /// Some messages may have been missed just now.
    pub(super) fn gap(&self, now: u64) {
        self.0.lock().mark(now.saturating_sub(UNNOTICED));
    }

    /// The keys of what was stored in gaps, each with the beginning of its gap.
    pub(super) fn stored_in_gaps(&self, now: u64) -> Vec<(Key, u64)> {
        let mut table = self.0.lock();
        table.forget_old(now);
        let all = table.fills.values();
        all.filter_map(|known| Some((known.fill.key.clone(), known.gap?))).collect()
    }

    /// The fill of a key to which that happened, as a message says that has just come.
    pub(super) fn take(&self, key: &Key, kind: Kind, now: u64) -> Option<Fill> {
        let mut table = self.0.lock();
        let known = table.fills.get(&key.hash)?;
        let is_meant =
            kind != Kind::Set || known.fill.source != Source::Set { hides_nothing: true };
        if is_meant && known.is_recent(now) && known.fill.key.full == key.full {
            return Some(table.fills.remove(&key.hash)?.fill);
        }
        None
    }

    /// The fills of all keys under a prefix, as [`take`](Self::take).
    pub(super) fn take_under(&self, prefix: &str, now: u64) -> Vec<Fill> {
        let mut table = self.0.lock();
        let all = table
            .fills
            .extract_if(|_, known| known.is_recent(now) && known.fill.key.full.starts_with(prefix));
        all.map(|(_, known)| known.fill).collect()
    }

    /// A value of the key is not stored after all.
    pub(super) fn forget(&self, key: &Key, digest: u64) {
        let mut table = self.0.lock();
        let Some(known) = table.fills.get_mut(&key.hash) else { return };
        known.fill.digests.retain(|other| *other != digest);
        if known.fill.digests.is_empty() {
            table.fills.remove(&key.hash);
        }
    }

    /// The fill that was stored in a gap.
    pub(super) fn take_of_gap(&self, key: &Key) -> Option<Fill> {
        let mut table = self.0.lock();
        let known = table.fills.get(&key.hash)?;
        if known.gap.is_none() || known.fill.key.full != key.full {
            return None;
        }
        Some(table.fills.remove(&key.hash)?.fill)
    }
}

impl Remembered {
    fn is_recent(&self, now: u64) -> bool {
        self.fill.at + MESSAGE_DELAY >= now
    }

    fn is_needed(&self, now: u64) -> bool {
        let time = if self.gap.is_some() { REMEMBERED_FOR } else { UNNOTICED };
        self.fill.at + time >= now
    }
}

impl Table {
    fn add(&mut self, mut fill: Fill) -> bool {
        self.forget_old(fill.at);
        let is_known = self.fills.contains_key(&fill.key.hash);
        let gap = self.gap.filter(|_| fill.source == Source::Factory);
        if !is_known && self.fills.len() >= MOST {
            if gap.is_none() {
                self.forget_oldest();
            } else if self.fills.len() >= MOST_IN_GAP {
                return false;
            }
        }
        let number = self.next;
        self.next += 1;
        let hash = fill.key.hash;
        self.order.push_back((hash, number));
        // If this one cannot be stored, the one before is still there.
        let former = self.fills.get(&hash).filter(|known| known.gap.is_some());
        if let Some(former) = former {
            let digests = former.fill.digests.iter().take(MOST_OF_KEY - 1);
            fill.digests.extend(digests.copied());
        }
        let gap = former.and_then(|known| known.gap).or(gap);
        self.fills.insert(hash, Remembered { fill, number, gap });
        if self.order.len() > 2 * self.fills.len() + 1_000 {
            let fills = &self.fills;
            self.order.retain(|(hash, number)| is_at(fills, *hash, *number).is_some());
        }
        true
    }

    /// What factories stored since then is doubtful.
    fn mark(&mut self, since: u64) {
        for known in self.fills.values_mut() {
            if known.fill.at >= since && known.fill.source == Source::Factory {
                known.gap.get_or_insert(since);
            }
        }
    }

    fn forget_old(&mut self, now: u64) {
        while let Some((hash, number)) = self.order.front() {
            match is_at(&self.fills, *hash, *number) {
                Some(known) if known.is_needed(now) => return,
                Some(_) => self.forget_oldest(),
                None => drop(self.order.pop_front()),
            }
        }
    }

    fn forget_oldest(&mut self) {
        while let Some((hash, number)) = self.order.pop_front() {
            if is_at(&self.fills, hash, number).is_some() {
                self.fills.remove(&hash);
                return;
            }
        }
    }
}

fn is_at(fills: &HashMap<u64, Remembered>, hash: u64, number: u64) -> Option<&Remembered> {
    fills.get(&hash).filter(|known| known.number == number)
}
