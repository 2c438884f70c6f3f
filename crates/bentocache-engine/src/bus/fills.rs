//! The values that this node stored in L2 recently and that its own caller had not just provided.
//!
//! Nothing orders a message of another node and a write of this one. So when a message invalidates
//! a key for which this node has just stored a value, the node takes that value back. While the
//! node receives no messages, it remembers all values that its factories stored, and asks the other
//! nodes about them later.

use std::collections::{HashMap, VecDeque};

use crate::site::{Key, KeyVec};
use crate::sync::Mutex;
use crate::wire::message::Kind;

/// The largest delay, in ms, of a message that still takes back a value stored before it arrived.
const MESSAGE_DELAY: u64 = 2_000;
/// How long a link may be dead before its driver reports it, in ms.
const UNNOTICED: u64 = 30_000;
/// How long a value that was stored in a gap is remembered, in ms. The node that must be asked
/// about it may come back later than this one.
const REMEMBERED_FOR: u64 = 600_000;
/// The number of fills remembered while messages arrive. The oldest are forgotten first.
const MOST: usize = 10_000;
/// The number of fills remembered during a gap. A value that cannot be remembered is not stored.
const MOST_IN_GAP: usize = 100_000;
/// The number of values remembered per key.
const MOST_OF_KEY: usize = 8;

/// A value that this process stored.
pub(crate) struct Fill {
    pub(crate) key: Key,
    /// Digests of the stored bytes, which may be large. Several if other values of the key were
    /// stored earlier in a gap.
    pub(crate) digests: KeyVec<u64>,
    /// The entry's creation time, in ms since the epoch.
    pub(crate) created_at: u64,
    pub(super) source: FillSource,
    /// The time of the store operation, by the cache's clock.
    pub(super) at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FillSource {
    Factory,
    /// A `set` that was replayed late.
    Set {
        /// It replaced only something older, so a message about another value does not concern it.
        hides_nothing: bool,
    },
}

struct Remembered {
    fill: Fill,
    /// The sequence number in order of time.
    number: u64,
    /// The start of the gap in which the value was stored.
    gap: Option<u64>,
}

/// By the hash of the key.
#[derive(Default)]
pub(super) struct Fills(Mutex<FillTable>);

#[derive(Default)]
struct FillTable {
    fills: HashMap<u64, Remembered>,
    /// Hashes and sequence numbers, the oldest first. Pairs of forgotten fills are skipped.
    order: VecDeque<(u64, u64)>,
    next: u64,
    /// The start of the current gap: messages may have been missed since then.
    gap: Option<u64>,
}

impl Fills {
    /// Remembers a fill before it is stored. Returns false if there is no room; the value must not
    /// be stored then.
    pub(super) fn add(&self, fill: Fill) -> bool {
        self.0.lock().add(fill)
    }

    /// Remembers another form of a value, with another life, before it is stored. What this node
    /// knows of the value stays: whether its factory produced it, and when.
    pub(super) fn add_form(&self, form: Fill) {
        let mut table = self.0.lock();
        match table.fills.get_mut(&form.key.hash) {
            Some(known)
                if known.fill.key.full == form.key.full
                    && known.fill.created_at == form.created_at =>
            {
                known.fill.digests.insert_many(0, form.digests);
                known.fill.digests.truncate(MOST_OF_KEY);
            }
            _ => drop(table.add(form)),
        }
    }

    /// A gap begins: no messages arrive from now on, and possibly none have arrived for a while.
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

    /// Records a gap that is already over: some messages may have been missed just now.
    pub(super) fn gap(&self, now: u64) {
        self.0.lock().mark(now.saturating_sub(UNNOTICED));
    }

    /// The keys of the values that were stored in gaps, each with the start of its gap.
    pub(super) fn stored_in_gaps(&self, now: u64) -> Vec<(Key, u64)> {
        let mut table = self.0.lock();
        table.forget_old(now);
        let all = table.fills.values();
        all.filter_map(|known| Some((known.fill.key.clone(), known.gap?))).collect()
    }

    /// Takes the fill of a key that a message has just invalidated in this way.
    pub(super) fn take(&self, key: &Key, kind: Kind, now: u64) -> Option<Fill> {
        let mut table = self.0.lock();
        let known = table.fills.get(&key.hash)?;
        let is_meant =
            kind != Kind::Set || known.fill.source != FillSource::Set { hides_nothing: true };
        if is_meant && known.is_recent(now) && known.fill.key.full == key.full {
            return Some(table.fills.remove(&key.hash)?.fill);
        }
        None
    }

    /// Takes the fills of all keys under a prefix, as [`take`](Self::take).
    pub(super) fn take_under(&self, prefix: &str, now: u64) -> Vec<Fill> {
        let mut table = self.0.lock();
        let all = table
            .fills
            .extract_if(|_, known| known.is_recent(now) && known.fill.key.full.starts_with(prefix));
        all.map(|(_, known)| known.fill).collect()
    }

    /// Forgets one value of the key, which was not stored after all.
    pub(super) fn forget(&self, key: &Key, digest: u64) {
        let mut table = self.0.lock();
        let Some(known) = table.fills.get_mut(&key.hash) else { return };
        known.fill.digests.retain(|other| *other != digest);
        if known.fill.digests.is_empty() {
            table.fills.remove(&key.hash);
        }
    }

    /// Takes the fill if it was stored in a gap.
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

impl FillTable {
    fn add(&mut self, mut fill: Fill) -> bool {
        self.forget_old(fill.at);
        let is_known = self.fills.contains_key(&fill.key.hash);
        let gap = self.gap.filter(|_| fill.source == FillSource::Factory);
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
        // If the new value cannot be stored, the previous one is still there.
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

    /// Marks the values that factories stored since then as stored in a gap.
    fn mark(&mut self, since: u64) {
        for known in self.fills.values_mut() {
            if known.fill.at >= since && known.fill.source == FillSource::Factory {
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

#[cfg(all(test, not(shuttle)))]
pub(super) mod tests {
    use super::*;

    /// A complete key, which is also its name.
    pub(in crate::bus) fn key(full: &str) -> Key {
        thread_local! {
            static SITE: crate::site::Site = crate::site::Site::for_tests();
        }
        SITE.with(|site| site.key("", full))
    }

    fn fill(name: &str, digest: u64, at: u64) -> Fill {
        let digests = std::iter::once(digest).collect();
        Fill { key: key(name), digests, created_at: at, source: FillSource::Factory, at }
    }

    fn names(fills: &Fills, now: u64) -> Vec<String> {
        let mut names: Vec<_> =
            fills.stored_in_gaps(now).iter().map(|(key, _)| key.full.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_message_takes_what_was_stored_just_before_it() {
        let fills = Fills::default();
        fills.add(fill("k", 1, 1_000));
        assert!(fills.take(&key("l"), Kind::Delete, 1_000).is_none());
        assert!(fills.take(&key("k"), Kind::Delete, 1_001 + MESSAGE_DELAY).is_none());
        assert!(fills.take(&key("k"), Kind::Set, 1_000 + MESSAGE_DELAY).is_some());
        assert!(fills.take(&key("k"), Kind::Delete, 1_000).is_none(), "once");
    }

    #[test]
    fn a_set_that_hides_nothing_stays_when_another_value_is_set() {
        let fills = Fills::default();
        for (name, hides_nothing) in [("k", true), ("l", false)] {
            let source = FillSource::Set { hides_nothing };
            fills.add(Fill { source, ..fill(name, 1, 1_000) });
        }
        assert!(fills.take(&key("k"), Kind::Set, 1_000).is_none());
        assert!(fills.take(&key("k"), Kind::Delete, 1_000).is_some());
        assert!(fills.take(&key("l"), Kind::Set, 1_000).is_some());
    }

    #[test]
    fn a_gap_begins_before_it_is_noticed_and_is_only_about_factories() {
        let fills = Fills::default();
        fills.add(fill("long before", 1, 10_000));
        fills.add(fill("before", 1, 50_000));
        fills.begin_gap(60_000);
        fills.add(fill("in it", 1, 61_000));
        fills.add(Fill {
            source: FillSource::Set { hides_nothing: false },
            ..fill("set", 1, 61_000)
        });
        fills.end_gap();
        fills.add(fill("after", 1, 62_000));
        assert_eq!(names(&fills, 62_000), ["before", "in it"]);
        let gaps = fills.stored_in_gaps(62_000);
        assert!(gaps.iter().all(|(_, begun)| *begun == 60_000 - UNNOTICED));
        assert!(fills.take_of_gap(&key("after")).is_none());
        assert!(fills.take_of_gap(&key("in it")).is_some());
        assert_eq!(names(&fills, 62_000), ["before"]);
        assert!(names(&fills, 50_001 + REMEMBERED_FOR).is_empty());
    }

    #[test]
    fn a_second_loss_of_the_same_gap_does_not_shorten_it() {
        let fills = Fills::default();
        fills.begin_gap(100_000);
        fills.begin_gap(200_000);
        fills.add(fill("k", 1, 200_000));
        assert_eq!(fills.stored_in_gaps(200_000)[0].1, 100_000 - UNNOTICED);
        // A value that is stored after the gap does not change its start either.
        fills.end_gap();
        fills.add(fill("k", 2, 201_000));
        assert_eq!(fills.stored_in_gaps(201_000)[0].1, 100_000 - UNNOTICED);
        let both = fills.take_of_gap(&key("k")).unwrap();
        assert_eq!(both.digests[..], [2, 1]);
    }

    #[test]
    fn a_value_that_was_not_stored_leaves_the_one_before() {
        let fills = Fills::default();
        fills.begin_gap(100_000);
        fills.add(fill("k", 1, 100_000));
        fills.add(fill("k", 2, 100_001));
        fills.forget(&key("k"), 2);
        assert_eq!(fills.take_of_gap(&key("k")).unwrap().digests[..], [1]);
        fills.add(fill("l", 1, 100_000));
        fills.forget(&key("l"), 1);
        assert!(names(&fills, 100_001).is_empty());
        for digest in 0..20 {
            fills.add(fill("m", digest, 100_000));
        }
        assert_eq!(fills.take_of_gap(&key("m")).unwrap().digests.len(), MOST_OF_KEY);
    }

    #[test]
    fn the_room_is_bounded_and_in_a_gap_nothing_is_forgotten_for_it() {
        let fills = Fills::default();
        for i in 0..MOST as u64 + 5 {
            assert!(fills.add(fill(&i.to_string(), 1, 100_000)));
        }
        assert_eq!(fills.0.lock().fills.len(), MOST);
        assert!(fills.take(&key("4"), Kind::Delete, 100_000).is_none(), "the oldest went");
        assert!(fills.take(&key("5"), Kind::Delete, 100_000).is_some());
        let fills = Fills::default();
        fills.begin_gap(100_000);
        for i in 0..MOST_IN_GAP as u64 {
            assert!(fills.add(fill(&i.to_string(), 1, 100_000)));
        }
        assert!(!fills.add(fill("one more", 1, 100_000)));
        assert!(fills.add(fill("7", 2, 100_000)), "that has its place");
        assert_eq!(fills.stored_in_gaps(100_000).len(), MOST_IN_GAP);
        // Time frees room.
        assert!(fills.add(fill("one more", 1, 100_001 + REMEMBERED_FOR)));
        for _ in 0..100_000 {
            fills.add(fill("again and again", 1, 100_001 + REMEMBERED_FOR));
        }
        assert!(fills.0.lock().order.len() < 2_000, "nor does the order grow");
    }
}
