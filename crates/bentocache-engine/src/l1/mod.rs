//! L1: the entries of this process, and the only interface through which they change.
//!
//! Invariant of this module: an entry is inserted or removed only while its key's fence is locked,
//! so that a slow reader never restores an invalidated value. [`Slot`] is the only type that can
//! insert and remove entries, and only [`L1`] creates one, while it holds the fence's lock. Removed
//! entries are dropped after the lock is released, because dropping a value runs user code.
//!
//! - [`driver`]: the built-in driver or another one
//! - [`fence`]: one counter for each key that is being read or changed
//! - [`freshness`]: judges whether an entry is fresh, stale, unverified or dead
//! - [`hit`]: the whole hit path
//! - [`memory`]: the built-in driver
//! - [`sliding`]: uses of entries that end when nobody uses them
//! - [`refusals`]: which values that the driver refuses are logged

mod driver;
pub(crate) mod fence;
mod freshness;
mod hit;
pub(crate) mod memory;
mod refusals;
mod sliding;

use std::borrow::Cow;
use std::sync::Arc;

use bentocache_driver::{Entry, EntryLimit, Inserted};

use self::fence::{Fence, Fences};
use self::freshness::Freshness;
use self::refusals::Refusals;
use self::sliding::Uses;
use crate::event::EventKind;
use crate::site::{Key, Site};
use crate::stats::{Counter, L1Stats};
use crate::value::CacheValue;

pub(crate) use self::driver::Driver;
pub(crate) use self::freshness::{Reason, Verdict, is_gone, is_level};
pub(crate) use self::hit::is_refresh_due;
pub(crate) use self::memory::SnapshotOptions;
pub(crate) use self::sliding::Use;

/// L1 of a store. A store without an L1 driver has fences too: they order reads of L2 against
/// changes of L2.
pub(crate) struct L1 {
    site: Site,
    driver: Option<Driver>,
    fences: Fences,
    freshness: Freshness,
    refusals: Refusals,
    pub(crate) uses: Uses,
}

impl L1 {
    pub(crate) fn new(
        site: Site,
        driver: Option<Driver>,
        longest_unchecked: u64,
        has_l2: bool,
    ) -> Self {
        Self {
            site,
            driver,
            fences: Fences::new(),
            freshness: Freshness::new(longest_unchecked),
            refusals: Refusals::default(),
            uses: Uses::new(has_l2),
        }
    }

    /// Calls `visit` for every entry, dead ones included.
    pub(crate) fn for_each(&self, visit: &mut dyn FnMut(&Arc<Entry>)) {
        if let Some(driver) = &self.driver {
            driver.for_each(visit);
        }
    }

    /// Whether the store has an L1.
    pub(crate) fn is_there(&self) -> bool {
        self.driver.is_some()
    }

    /// The entry under the key, whether fresh, stale or dead.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.driver.as_ref()?.get(key.local()?)
    }

    /// The value under the key, and its creation time if it is due for early refresh. Only a fresh
    /// value of this type is returned.
    #[inline(always)]
    pub(crate) fn hit<T: CacheValue>(
        &self,
        namespace: &str,
        key: &str,
        early_refresh: f32,
    ) -> Option<(T, Option<u64>)> {
        let driver = self.driver.as_ref()?;
        let rules = (&self.freshness, &self.uses);
        hit::hit(driver, rules, &self.site, (namespace, key), early_refresh)
    }

    /// Notes that a caller got the value of this entry.
    pub(crate) fn note_use(&self, entry: &Entry) {
        if let Some(sliding) = entry.sliding() {
            self.uses.note(entry, sliding, self.site.clock.now());
        }
    }

    pub(crate) fn judge(&self, entry: &Entry, now: u64) -> Verdict {
        self.freshness.judge(entry, now)
    }

    /// Whether an entry that needs a check is served as fresh while L2 is unavailable.
    pub(crate) fn serves_unchecked(&self, entry: &Entry, now: u64) -> bool {
        self.freshness.serves_unchecked(entry, now)
    }

    /// Inserts an entry that a snapshot has brought back. Returns false if L1 has no more room.
    pub(crate) fn restore(&self, key: &Key, entry: Arc<Entry>, weight: u64) -> bool {
        self.invalidate(key, |slot| {
            slot.insert(entry, weight);
            slot.inserted.as_ref().is_none_or(|(.., inserted)| inserted.evicted.is_empty())
        })
    }

    /// Starts to watch the key. The caller must do this before it reads anything other than L1.
    pub(crate) fn watch(&self, key: &Key) -> Fence {
        self.fences.watch(key.hash)
    }

    /// Applies a change made by this process: advances the key's fence and runs `change` in one
    /// step. The returned fence shows whether another change followed.
    pub(crate) fn change<R>(
        &self,
        key: &Key,
        change: impl FnOnce(&mut Slot<'_>) -> R,
    ) -> (R, Fence) {
        let mut slot = Slot::new(self, key);
        self.fences.change(key.hash, || change(&mut slot))
    }

    /// As [`change`](Self::change), but nothing happens if `change` returns `None`.
    pub(crate) fn try_change<R>(
        &self,
        key: &Key,
        change: impl FnOnce(&mut Slot<'_>) -> Option<R>,
    ) -> Option<(R, Fence)> {
        let mut slot = Slot::new(self, key);
        self.fences.try_change(key.hash, || change(&mut slot))
    }

    /// As [`change`](Self::change), for a change made by another process, and for an entry that
    /// only needs a check.
    pub(crate) fn invalidate<R>(&self, key: &Key, change: impl FnOnce(&mut Slot<'_>) -> R) -> R {
        let mut slot = Slot::new(self, key);
        self.fences.invalidate(key.hash, || change(&mut slot))
    }

    /// Runs `fill` unless the key was invalidated after the fence began to watch it.
    pub(crate) fn fill<R>(
        &self,
        key: &Key,
        fence: &Fence,
        fill: impl FnOnce(&mut Slot<'_>) -> R,
    ) -> Option<R> {
        let mut slot = Slot::new(self, key);
        fence.fill(|| fill(&mut slot))
    }

    /// Ends a change that took time, during which readers may have restored the removed value:
    /// advances the fence once more and runs `settle`, unless another change of the key followed.
    pub(crate) fn settle<R>(
        &self,
        key: &Key,
        fence: &Fence,
        settle: impl FnOnce(&mut Slot<'_>) -> R,
    ) -> Option<R> {
        let mut slot = Slot::new(self, key);
        fence.settle(|| settle(&mut slot))
    }

    /// The entry under the key must be checked against L2 before it is used again.
    pub(crate) fn mark_unverified(&self, key: &Key) {
        self.invalidate(key, |slot| slot.mark_unverified());
    }

    /// Every entry must be checked against L2 before it is used again.
    pub(crate) fn mark_all_unverified(&self, reason: Reason) {
        self.fences.invalidate_all();
        self.begin_epoch(reason);
    }

    /// As [`mark_all_unverified`](Self::mark_all_unverified), but readers that are in progress may
    /// fill L1 with entries of the previous epoch.
    pub(crate) fn begin_epoch(&self, reason: Reason) {
        self.freshness.begin_epoch(reason);
    }

    /// Advances all fences, so that no reader in progress fills L1.
    pub(crate) fn invalidate_all(&self) {
        self.fences.invalidate_all();
    }

    /// The current epoch: entries verified now get this number.
    pub(crate) fn epoch(&self) -> u32 {
        self.freshness.epoch()
    }

    /// Records whether a working bus reports changes from now on.
    pub(crate) fn set_bus_reports(&self, reports: bool) {
        self.freshness.set_bus_reports(reports);
    }

    /// The number of entries, dead ones included.
    pub(crate) fn len(&self) -> usize {
        self.driver.as_ref().map_or(0, |driver| driver.len())
    }

    /// The statistics of the tier, if the store has it.
    pub(crate) fn stats(&self) -> Option<L1Stats> {
        let driver = self.driver.as_ref()?;
        let sum = |counter| self.site.counters.sum(counter);
        Some(L1Stats {
            entries: driver.len(),
            max_entries: driver.max_entries(),
            bytes: driver.bytes(),
            max_bytes: driver.max_bytes(),
            evictions: sum(Counter::Evictions),
            refusals: sum(Counter::Refusals),
        })
    }

    /// Removes every entry whose complete key starts with `prefix`. Readers in progress do not fill
    /// L1.
    pub(crate) fn clear(&self, prefix: &str) {
        self.fences.invalidate_all();
        let Some(driver) = &self.driver else { return };
        let root = &*self.site.root;
        if let Some(prefix) = prefix.strip_prefix(root) {
            driver.clear(prefix);
        } else if root.starts_with(prefix) {
            driver.clear("");
        }
    }

    /// The complete keys that start with the prefix, of entries that can still be served.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let Some(driver) = &self.driver else { return Vec::new() };
        let (root, now) = (&*self.site.root, self.site.clock.now());
        let mut keys = Vec::new();
        driver.for_each(&mut |entry| {
            let full = [root, entry.key()].concat();
            if full.starts_with(prefix) && now < entry.dead_at() && !is_gone(entry) {
                keys.push(full);
            }
        });
        keys
    }

    /// Removes dead entries; returns their number.
    pub(crate) fn prune(&self) -> usize {
        let now = self.site.clock.now();
        self.driver.as_ref().map_or(0, |driver| driver.prune(now))
    }

    /// Whether the driver needs the sizes of values.
    pub(crate) fn is_weighted(&self) -> bool {
        self.driver.as_ref().is_some_and(|driver| driver.is_weighted())
    }

    fn entry_limit(&self) -> Option<EntryLimit> {
        self.driver.as_ref().and_then(|driver| driver.entry_limit())
    }

    /// The size of an entry of this weight as the driver counts it, the largest size that the
    /// driver accepts, and the option that sets this limit.
    pub(crate) fn size_and_limit(
        &self,
        entry: &Entry,
        weight: u64,
    ) -> (u64, Option<u64>, Option<&'static str>) {
        let limit = self.entry_limit();
        let beside = limit.map_or(0, |limit| limit.overhead + entry.key().len() as u64);
        let size = weight.saturating_add(beside);
        (size, limit.map(|limit| limit.max), limit.map(|limit| limit.option))
    }

    /// Emits the events of evictions and of a refusal.
    fn report(&self, inserted: &Inserted, entry: &Entry, weight: u64) {
        for entry in &inserted.evicted {
            self.site.record(Counter::Evictions, || EventKind::Evicted {
                key: Cow::Borrowed(entry.key()),
            });
        }
        if inserted.refused {
            self.report_refusal(entry, weight);
        }
    }

    #[cold]
    fn report_refusal(&self, entry: &Entry, weight: u64) {
        let (size, limit, option) = self.size_and_limit(entry, weight);
        let key = Cow::Borrowed(entry.key());
        self.site.record(Counter::Refusals, || EventKind::Refused { key, size, limit });
        if let Some(count) = self.refusals.add(entry.key()) {
            tracing::warn!(store = %self.site.name, key = self.site.logged(entry.key()), size,
                limit, option, count, "L1 refused a value that is larger than its limit");
        }
    }
}

/// The slot of one key in L1, while the key's fence is locked.
pub(crate) struct Slot<'a> {
    l1: &'a L1,
    key: &'a Key,
    /// The removed entry. It is dropped with the slot, which outlives the lock.
    removed: Option<Arc<Entry>>,
    /// The inserted entry, its weight, and the driver's answer, which lists the evicted entries.
    inserted: Option<(Arc<Entry>, u64, Inserted)>,
}

impl<'a> Slot<'a> {
    fn new(l1: &'a L1, key: &'a Key) -> Self {
        Self { l1, key, removed: None, inserted: None }
    }

    /// The current entry.
    pub(crate) fn entry(&self) -> Option<Arc<Entry>> {
        self.l1.get(self.key)
    }

    /// Inserts an entry. Returns false if the driver refuses it; the former entry is removed even
    /// then.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>, weight: u64) -> bool {
        let Some(driver) = &self.l1.driver else { return true };
        let inserted = driver.insert(entry.clone(), weight);
        let is_kept = !inserted.refused;
        self.inserted = Some((entry, weight, inserted));
        is_kept
    }

    /// Removes the entry.
    pub(crate) fn remove(&mut self) -> Option<&Arc<Entry>> {
        let driver = self.l1.driver.as_ref()?;
        self.removed = driver.remove(self.key.local()?);
        self.removed.as_ref()
    }

    /// The entry must be checked against L2 before it is used again.
    pub(crate) fn mark_unverified(&self) {
        if let Some(entry) = self.entry() {
            entry.mark_unverified();
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some((entry, weight, inserted)) = self.inserted.take() {
            self.l1.report(&inserted, &entry, weight);
        }
    }
}
