//! The first tier: a driver, and the judgement of what it holds.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use bentocache_driver::{Entry, L1Driver, NEVER, Tag, TagSeen};

use crate::memory::Memory;
use crate::site::{LEVEL, has_part};

/// A first-tier driver. A hit calls the built-in one by its own type: through `dyn` it takes a fifth
/// longer. Everything else calls both as a `dyn L1Driver`.
#[derive(Clone)]
pub(crate) enum Driver {
    Memory(Arc<Memory>),
    Other(Arc<dyn L1Driver>),
}

impl Driver {
    pub(crate) fn new(driver: impl L1Driver) -> Self {
        let driver = Arc::new(driver);
        let any: Arc<dyn Any + Send + Sync> = driver.clone();
        any.downcast().map_or(Self::Other(driver), Self::Memory)
    }
}

impl Deref for Driver {
    type Target = dyn L1Driver;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Memory(memory) => &**memory,
            Self::Other(driver) => &**driver,
        }
    }
}

pub(crate) struct Local {
    pub(crate) driver: Driver,
    /// What all keys of the store start with. The driver does not see it: shorter keys are found
    /// faster, and those of a store without namespace need not be put together at all.
    root: Arc<str>,
    /// Rises when messages of other processes may have been missed: entries of an earlier epoch
    /// must be checked against the second tier.
    epoch: AtomicU32,
    /// The first epoch after the last change that is certain: entries of an earlier one are known to
    /// be out of date in part, and none is served unchecked.
    certain: AtomicU32,
    /// Entries that were not checked for this long must be. [`NEVER`] unless the bus is down.
    check_after: AtomicU64,
    /// The same for entries that cannot be checked, because the second tier fails.
    longest_unchecked: u64,
}

/// Why entries of the first tier must be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Messages may have been missed.
    Gap,
    /// Something is known to have changed.
    Change,
}

/// What an entry of the first tier is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Fresh,
    /// Stale, but may be served under grace.
    Stale,
    /// Must be checked against the second tier before it is used at all.
    Unverified,
    /// A tag of it must be looked up first.
    UnknownTag,
    /// Past its end, or cleared.
    Dead,
}

/// Whether the tag stands for a level of namespaces.
pub(crate) fn is_level(tag: &Tag) -> bool {
    has_part(tag.key(), LEVEL)
}

/// Whether the entry was cleared, in a second tier that cannot clear by itself.
pub(crate) fn is_cleared(entry: &Entry) -> bool {
    let is_invalid = |seen: &&TagSeen| seen.tag().is_known() && !seen.is_valid(entry.created_at());
    entry.tags().iter().filter(is_invalid).any(|seen| is_level(seen.tag()))
}

impl Local {
    pub(crate) fn new(driver: Driver, root: Arc<str>, longest_unchecked: u64) -> Self {
        Self {
            driver,
            root,
            epoch: AtomicU32::new(1),
            certain: AtomicU32::new(1),
            check_after: AtomicU64::new(NEVER),
            longest_unchecked,
        }
    }

    /// Whether an entry that should be checked is served as a fresh one while the second tier
    /// cannot be asked: the policy for the time without a bus holds until it answers.
    pub(crate) fn serves_unchecked(&self, entry: &Entry, now: u64) -> bool {
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
    pub(crate) fn judge(&self, entry: &Entry, now: u64) -> State {
        // Nothing is fresh past its end, so a hit need not look at it.
        let mut fresh = now < entry.fresh_until();
        if !fresh && now >= entry.dead_at() {
            return State::Dead;
        }
        if entry.epoch() != self.epoch.load(Relaxed) || self.is_overdue(entry, now) {
            return State::Unverified;
        }
        for seen in entry.tags() {
            if !seen.tag().is_believed(now) {
                return State::UnknownTag;
            }
            fresh &= seen.is_valid(entry.created_at());
        }
        match fresh {
            true => State::Fresh,
            false if is_cleared(entry) => State::Dead,
            false => State::Stale,
        }
    }

    /// Whether the entry was not checked for longer than it may be while the bus is down.
    #[inline]
    fn is_overdue(&self, entry: &Entry, now: u64) -> bool {
        let check_after = self.check_after.load(Relaxed);
        check_after != NEVER && entry.unverified_for(now) > check_after
    }

    #[inline]
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Relaxed)
    }

    /// No entry counts before it is checked against the second tier.
    pub(crate) fn distrust_all(&self, reason: Reason) {
        // 0 is for entries that are distrusted one by one.
        if self.epoch.fetch_add(1, Relaxed) == u32::MAX {
            self.epoch.store(1, Relaxed);
            self.certain.store(1, Relaxed);
        }
        if reason == Reason::Change {
            self.certain.store(self.epoch.load(Relaxed), Relaxed);
        }
    }

    pub(crate) fn check_after(&self, age: u64) {
        self.check_after.store(age, Relaxed);
    }

    /// The entry under a complete key.
    pub(crate) fn get(&self, full: &str) -> Option<Arc<Entry>> {
        self.driver.get(full.strip_prefix(&*self.root)?)
    }

    pub(crate) fn remove(&self, full: &str) -> Option<Arc<Entry>> {
        self.driver.remove(full.strip_prefix(&*self.root)?)
    }

    /// Removes everything whose complete key starts with that.
    pub(crate) fn clear(&self, prefix: &str) {
        if let Some(prefix) = prefix.strip_prefix(&*self.root) {
            self.driver.clear(prefix);
        } else if self.root.starts_with(prefix) {
            self.driver.clear("");
        }
    }
}
