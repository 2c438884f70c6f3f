//! The whole hit path: a fresh value in L1. It takes no lock except that of the driver's shard,
//! allocates nothing, and reads the clock once.

use std::borrow::Cow;
use std::cell::Cell;

use bentocache_driver::{Entry, NEVER};

use super::driver::Driver;
use super::freshness::{Freshness, Verdict};
use super::sliding::Uses;
use crate::event::{EventKind, Tier};
use crate::site::{Site, with_joined};
use crate::stats::Counter;
use crate::value::{CacheValue, value_of};

/// The value, and its creation time if it is due for early refresh.
pub(super) type Hit<T> = (T, Option<u64>);

/// The value under the key, if it is fresh and has this type.
#[inline(always)]
pub(super) fn hit<T: CacheValue>(
    driver: &Driver,
    (freshness, uses): (&Freshness, &Uses),
    site: &Site,
    (namespace, key): (&str, &str),
    early_refresh: f32,
) -> Option<Hit<T>> {
    let look = Look { driver, freshness, uses, now: site.clock.now(), early_refresh };
    let hit = match namespace {
        "" => look.at(key),
        namespace => look.in_namespace(namespace, key),
    }?;
    site.count(Counter::L1Hits);
    if site.events.is_active() {
        report_hit(site, namespace, key);
    }
    Some(hit)
}

#[cold]
fn report_hit(site: &Site, namespace: &str, key: &str) {
    let key = match namespace {
        "" => Cow::Borrowed(key),
        namespace => Cow::Owned([namespace, key].concat()),
    };
    site.emit(|| EventKind::Hit { key, tier: Tier::L1, graced: false });
}

#[derive(Clone, Copy)]
struct Look<'a> {
    driver: &'a Driver,
    freshness: &'a Freshness,
    uses: &'a Uses,
    now: u64,
    early_refresh: f32,
}

impl Look<'_> {
    #[inline(always)]
    fn at<T: CacheValue>(self, key: &str) -> Option<Hit<T>> {
        match self.driver {
            Driver::Memory(memory) => {
                let (shard, hash) = memory.shard_of(key);
                self.read(shard.get(hash, key)?)
            }
            Driver::Other(driver) => {
                let found = Cell::new(None);
                driver.read(key, &|entry| found.set(self.read(entry)));
                found.into_inner()
            }
        }
    }

    #[inline(never)]
    fn in_namespace<T: CacheValue>(self, namespace: &str, key: &str) -> Option<Hit<T>> {
        with_joined(namespace, key, |key| self.at(key))
    }

    #[inline(always)]
    fn read<T: CacheValue>(self, entry: &Entry) -> Option<Hit<T>> {
        if self.freshness.judge(entry, self.now) != Verdict::Fresh {
            return None;
        }
        let value = value_of::<T>(entry)?.clone();
        if let Some(sliding) = entry.sliding() {
            self.uses.note(entry, sliding, self.now);
        }
        let is_due =
            self.early_refresh > 0.0 && is_refresh_due(entry, self.early_refresh, self.now);
        Some((value, is_due.then(|| entry.created_at())))
    }
}

/// Whether the remaining life of the entry is at most this share, so that it is due for early
/// refresh.
pub(crate) fn is_refresh_due(entry: &Entry, share: f32, now: u64) -> bool {
    if share <= 0.0 || entry.life() == NEVER {
        return false;
    }
    let left = entry.ends_at().saturating_sub(now);
    left as f64 <= entry.life() as f64 * f64::from(share) && now >= entry.refresh_after()
}
