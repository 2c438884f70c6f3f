//! L1: the in-process tier, synchronous.

use std::sync::Arc;

use crate::{DriverError, Entry};

/// An L1 store. The built-in one is `bentocache::Memory`.
///
/// A driver belongs to one store. Its keys omit the store's prefix, which is the same for all of them, and
/// include their namespaces (`users:42`).
///
/// The engine calls it concurrently from many threads, on the hot path, and sometimes while it
/// holds a lock of its own. So methods must block on nothing except the store's own locks, must not
/// call the cache, and must return entries ([`Inserted`], [`remove`](L1Driver::remove)) instead of
/// dropping them under a lock, because dropping a value runs user code.
pub trait L1Driver: Send + Sync + 'static {
    /// A short name for logs.
    fn name(&self) -> &'static str;

    /// Called once when the cache is built, to check settings.
    ///
    /// # Errors
    /// Any error makes the build fail. It should say which setting to change.
    fn open(&self) -> Result<(), DriverError> {
        Ok(())
    }

    /// The entry under this key, fresh or not. The engine judges it.
    fn get(&self, key: &str) -> Option<Arc<Entry>>;

    /// Calls `read` once with the entry under this key, if there is one. This is what a hit uses. A
    /// store may call it under a lock of its own, to avoid a reference-count increment per hit.
    fn read(&self, key: &str, read: &dyn Fn(&Arc<Entry>)) {
        if let Some(entry) = self.get(key) {
            read(&entry);
        }
    }

    /// Stores the entry under its [`key`](Entry::key) and replaces the existing entry. `weight` is
    /// the size of the encoded value in bytes if [`is_weighted`](L1Driver::is_weighted), else 0.
    ///
    /// A store that refuses the entry must still remove the one that it would have replaced.
    fn insert(&self, entry: Arc<Entry>, weight: u64) -> Inserted;

    /// Removes and returns the entry.
    fn remove(&self, key: &str) -> Option<Arc<Entry>>;

    /// Removes every entry whose key starts with `prefix`, taken literally. An empty prefix removes
    /// all.
    fn clear(&self, prefix: &str);

    /// Removes every entry whose [`dead_at`](Entry::dead_at) is not after `now`, and returns their
    /// number. Locks must be held for short moments only. Called in the background.
    fn prune(&self, now: u64) -> usize;

    /// The number of stored entries, dead ones included.
    fn len(&self) -> usize;

    /// Whether the store has no entries.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The largest number of entries, for statistics. `None`, the default, if there is no limit.
    fn max_entries(&self) -> Option<u64> {
        None
    }

    /// The size of all entries in bytes, for statistics: what [`insert`](L1Driver::insert) got as
    /// their weights, with the store's own overhead. `None`, the default, if the store does not
    /// measure it.
    fn bytes(&self) -> Option<u64> {
        None
    }

    /// The largest size of all entries in bytes, for statistics. `None`, the default, if there is
    /// no limit.
    fn max_bytes(&self) -> Option<u64> {
        None
    }

    /// Calls `visit` once for every entry, in any order, without holding a lock during the call.
    fn for_each(&self, visit: &mut dyn FnMut(&Arc<Entry>));

    /// Whether the store needs the sizes of values. To measure a value, the engine encodes it.
    fn is_weighted(&self) -> bool {
        false
    }

    /// The limit for one entry, if there is one. It is used in the error for an entry that is too
    /// large.
    fn entry_limit(&self) -> Option<EntryLimit> {
        None
    }
}

/// A tier that other code can inspect while a cache uses it.
impl<D: L1Driver> L1Driver for Arc<D> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn open(&self) -> Result<(), DriverError> {
        (**self).open()
    }
    fn get(&self, key: &str) -> Option<Arc<Entry>> {
        (**self).get(key)
    }
    fn read(&self, key: &str, read: &dyn Fn(&Arc<Entry>)) {
        (**self).read(key, read);
    }
    fn insert(&self, entry: Arc<Entry>, weight: u64) -> Inserted {
        (**self).insert(entry, weight)
    }
    fn remove(&self, key: &str) -> Option<Arc<Entry>> {
        (**self).remove(key)
    }
    fn clear(&self, prefix: &str) {
        (**self).clear(prefix);
    }
    fn prune(&self, now: u64) -> usize {
        (**self).prune(now)
    }
    fn len(&self) -> usize {
        (**self).len()
    }
    fn max_entries(&self) -> Option<u64> {
        (**self).max_entries()
    }
    fn bytes(&self) -> Option<u64> {
        (**self).bytes()
    }
    fn max_bytes(&self) -> Option<u64> {
        (**self).max_bytes()
    }
    fn for_each(&self, visit: &mut dyn FnMut(&Arc<Entry>)) {
        (**self).for_each(visit);
    }
    fn is_weighted(&self) -> bool {
        (**self).is_weighted()
    }
    fn entry_limit(&self) -> Option<EntryLimit> {
        (**self).entry_limit()
    }
}

/// The limit of an L1 for one entry; see [`L1Driver::entry_limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryLimit {
    /// The largest size of an entry in bytes: its value as encoded, its key, and the overhead.
    pub max: u64,
    /// The size of an entry in addition to its value and its key.
    pub overhead: u64,
    /// The option of the driver that sets the limit.
    pub option: &'static str,
}

/// The result of [`L1Driver::insert`].
#[derive(Debug, Default)]
pub struct Inserted {
    /// The replaced entry.
    pub replaced: Option<Arc<Entry>>,
    /// The entries that were evicted to make room.
    pub evicted: Vec<Arc<Entry>>,
    /// Whether the entry was refused because it is larger than the store accepts.
    pub refused: bool,
}
