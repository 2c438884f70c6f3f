//! Judges entries of L1: fresh, stale, unverified or dead.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use bentocache_driver::{Entry, NEVER, Tag, TagSeen};

use crate::site::{LEVEL, has_part};

/// The rules by which the entries of a store are judged.
pub(super) struct Freshness {
    /// Incremented when messages of other processes may have been missed: entries of an earlier
    /// epoch must be checked against L2. Epoch 0 marks single entries as unverified.
    epoch: AtomicU32,
    /// The first epoch after the last known change. Some entries of earlier epochs are out of date,
    /// so no entry of an earlier epoch is served unchecked.
    certain: AtomicU32,
    /// The age, in ms since the last check, from which an entry must be checked again. [`NEVER`]
    /// unless the bus is down.
    check_after: AtomicU64,
    /// The age up to which an entry is served unchecked while the bus is down or L2 fails.
    longest_unchecked: u64,
}

/// Why the entries of L1 must be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Messages may have been missed, but no change is known.
    Gap,
    /// At least one entry is known to have changed.
    Change,
}

/// The state of an entry of L1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Fresh,
    /// May be served under grace.
    Stale,
    /// Must be checked against L2 before it is used at all.
    Unverified,
    /// One of its tags must be looked up first.
    UnknownTag,
    /// Past its end, deleted by a tag, or cleared.
    Dead,
}

/// Whether the tag is the hidden tag of a namespace level.
pub(crate) fn is_level(tag: &Tag) -> bool {
    has_part(tag.key(), LEVEL)
}

/// Whether the entry was deleted together with one of its tags, or was cleared in an L2 that cannot
/// clear by prefix.
#[cold]
pub(crate) fn is_gone(entry: &Entry) -> bool {
    let at = entry.created_at();
    let is_cleared =
        |seen: &TagSeen| seen.tag().is_known() && !seen.is_valid(at) && is_level(seen.tag());
    entry.tags().iter().any(|seen| seen.is_gone(at) || is_cleared(seen))
}

impl Freshness {
    pub(super) fn new(longest_unchecked: u64) -> Self {
        Self {
            epoch: AtomicU32::new(1),
            certain: AtomicU32::new(1),
            check_after: AtomicU64::new(NEVER),
            longest_unchecked,
        }
    }

    #[inline(always)]
    pub(super) fn judge(&self, entry: &Entry, now: u64) -> Verdict {
        // `fresh_until` never exceeds the end, so a hit need not read the end.
        let mut fresh = now < entry.fresh_until();
        if !fresh && now >= entry.dead_at() {
            return Verdict::Dead;
        }
        if entry.sliding().is_some_and(|sliding| now >= sliding.ends_at()) {
            return Verdict::Dead;
        }
        if entry.epoch() != self.epoch.load(Relaxed) || self.is_overdue(entry, now) {
            return Verdict::Unverified;
        }
        for seen in entry.tags() {
            if !seen.tag().is_believed(now) {
                return Verdict::UnknownTag;
            }
            fresh &= seen.is_valid(entry.created_at());
        }
        match fresh {
            true => Verdict::Fresh,
            false if is_gone(entry) => Verdict::Dead,
            false => Verdict::Stale,
        }
    }

    /// Whether the last check is older than the limit for the time while the bus is down.
    #[inline]
    fn is_overdue(&self, entry: &Entry, now: u64) -> bool {
        let check_after = self.check_after.load(Relaxed);
        check_after != NEVER && entry.unverified_for(now) > check_after
    }

    /// Whether an entry that needs a check is served as fresh while L2 is unavailable: the policy
    /// for a bus outage holds until L2 answers again.
    pub(super) fn serves_unchecked(&self, entry: &Entry, now: u64) -> bool {
        let is_named = entry.epoch() == 0 || entry.epoch() < self.certain.load(Relaxed);
        !is_named
            && now < entry.fresh_until()
            && entry.unverified_for(now) <= self.longest_unchecked
            && entry
                .tags()
                .iter()
                .all(|seen| seen.tag().is_believed(now) && seen.is_valid(entry.created_at()))
    }

    #[inline]
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Relaxed)
    }

    /// Begins an epoch.
    pub(super) fn begin_epoch(&self, reason: Reason) {
        if self.epoch.fetch_add(1, Relaxed) == u32::MAX {
            self.epoch.store(1, Relaxed);
            self.certain.store(1, Relaxed);
        }
        if reason == Reason::Change {
            self.certain.store(self.epoch.load(Relaxed), Relaxed);
        }
    }

    pub(super) fn set_bus_reports(&self, reports: bool) {
        self.check_after.store(if reports { NEVER } else { self.longest_unchecked }, Relaxed);
    }
}
