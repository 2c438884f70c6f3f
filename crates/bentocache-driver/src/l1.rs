//! L1: in this process, synchronous.

use std::sync::Arc;

use crate::{DriverError, Entry};

/// An L1 store. The built-in one is `bentocache::Memory`.
///
/// It belongs to one store: its keys come without the store's prefix, which they all share, and
/// with their namespaces (`users:42`).
///
/// The engine calls it from many threads at once, on the hot path, and sometimes while it holds a
/// lock of its own: methods must not block on anything but the store's own locks, must not call
/// back into the cache, and must hand entries back ([`Inserted`], [`remove`](L1Driver::remove))
/// instead of dropping them under a lock, because dropping a value runs its owner's code.
pub trait L1Driver: Send + Sync + 'static {
    /// A short name for logs.
    fn name(&self) -> &'static str;

    /// Called once when the cache is built: check settings.
    ///
    /// # Errors
    /// Any error makes the build fail; it should say which setting to change.
    fn open(&self) -> Result<(), DriverError> {
        Ok(())
    }

    /// The entry under that key, fresh or not. The engine judges it.
    fn get(&self, key: &str) -> Option<Arc<Entry>>;

    /// Shows the entry under that key to `read`, once, if there is one: what a hit needs of it. A
    /// store may do that under a lock of its own, to spare the hit a count of references.
    fn read(&self, key: &str, read: &dyn Fn(&Arc<Entry>)) {
        if let Some(entry) = self.get(key) {
            read(&entry);
        }
    }

    /// Stores the entry under its [`key`](Entry::key), replacing what is there. `weight` is the
    /// size of the encoded value in bytes when [`is_weighted`](L1Driver::is_weighted), else 0.
    ///
    /// A store that refuses the entry must still remove the one it would have replaced.
    fn insert(&self, entry: Arc<Entry>, weight: u64) -> Inserted;

    /// Removes and returns the entry.
    fn remove(&self, key: &str) -> Option<Arc<Entry>>;

    /// Removes every entry whose key starts with `prefix`, taken literally; all with an empty one.
    fn clear(&self, prefix: &str);

    /// Removes every entry whose [`dead_at`](Entry::dead_at) is not after `now`, holding locks only
    /// for short moments, and returns how many there were. Called in the background.
    fn prune(&self, now: u64) -> usize;

    /// How many entries are stored, dead ones included.
    fn len(&self) -> usize;

    /// Whether nothing is stored.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shows every entry once, in any order, without holding a lock during `visit`.
    fn for_each(&self, visit: &mut dyn FnMut(&Arc<Entry>));

    /// Whether the store needs to know how large values are. Measuring costs an encoding of each.
    fn is_weighted(&self) -> bool {
        false
    }

    /// What it accepts for one entry, if there is a limit: for the message to whoever stores a
    /// larger one.
    fn entry_limit(&self) -> Option<EntryLimit> {
        None
    }
}

/// A tier that others can look into while a cache uses it.
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

/// What an L1 accepts for one entry; see [`L1Driver::entry_limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryLimit {
    /// The largest size of an entry in bytes: its value as encoded, its key, and the overhead.
    pub max: u64,
    /// What an entry costs beside its value and its key.
    pub overhead: u64,
    /// The option of the driver that sets the limit.
    pub option: &'static str,
}

/// What came of [`L1Driver::insert`].
#[derive(Debug, Default)]
pub struct Inserted {
    /// The entry that was under the key before.
    pub replaced: Option<Arc<Entry>>,
    /// Entries that had to go to make room.
    pub evicted: Vec<Arc<Entry>>,
    /// The entry itself was refused because it is larger than the store accepts.
    pub refused: bool,
}
