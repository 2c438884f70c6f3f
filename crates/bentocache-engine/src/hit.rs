//! The whole path of a hit: a fresh value of the first tier. No lock but that of the driver's shard, no
//! allocation, one look at the clock.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use bentocache_driver::Entry;

use crate::cache::Cache;
use crate::engine::read::is_refresh_due;
use crate::engine::{CacheValue, value_of, with_joined};
use crate::event::{EventKind, Tier};
use crate::tier::local::{Driver, Local, State};

/// The value, and when it was created, if so little of its life is left that it is to be refreshed.
pub(crate) type Hit<T> = (T, Option<u64>);

impl Cache {
    /// What is in the first tier under the key, if it is fresh and of this type.
    #[inline(always)]
    pub(crate) fn hit<T: CacheValue>(&self, key: &str, early_refresh: f32) -> Option<Hit<T>> {
        let engine = &*self.engine;
        let local = engine.l1.as_ref()?;
        if !engine.open.load(Relaxed) {
            return None;
        }
        let look = Look { local, now: engine.clock.now(), early_refresh };
        let hit = match self.namespace_prefix() {
            "" => look.at(key),
            namespace => look.in_namespace(namespace, key),
        }?;
        if engine.events.is_active() {
            self.tell_hit(key);
        }
        Some(hit)
    }

    #[cold]
    fn tell_hit(&self, key: &str) {
        let key = match self.namespace_prefix() {
            "" => Cow::Borrowed(key),
            namespace => Cow::Owned([namespace, key].concat()),
        };
        self.engine.emit(|| EventKind::Hit { key, tier: Tier::L1, graced: false });
    }
}

#[derive(Clone, Copy)]
struct Look<'a> {
    local: &'a Local,
    now: u64,
    early_refresh: f32,
}

impl Look<'_> {
    #[inline(always)]
    fn at<T: CacheValue>(self, key: &str) -> Option<Hit<T>> {
        match &self.local.driver {
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
        if self.local.judge(entry, self.now) != State::Fresh {
            return None;
        }
        let value = value_of::<T>(entry)?.clone();
        let is_due =
            self.early_refresh > 0.0 && is_refresh_due(entry, self.early_refresh, self.now);
        Some((value, is_due.then(|| entry.created_at())))
    }
}
