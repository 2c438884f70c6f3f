//! The built-in first tier.

mod ghosts;
mod shard;

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bentocache_core::{DriverError, Entry, ErrorKind, Inserted, L1Driver};
use foldhash::quality::RandomState;

use self::shard::{Limits, Shard, Walk};
use crate::error::Error;
use crate::options::ByteSize;

/// What an entry costs beside its key and its encoded value, in bytes.
const OVERHEAD: u64 = 100;
/// Limits are capped here, far above any memory, so that weights cannot overflow.
const MAX_LIMIT: u64 = 1 << 50;
/// A shard is for so many entries at least: some are full before others, so that the fewer each
/// holds the fewer of all there is room for are used.
const SMALLEST_SHARD: u64 = 1 << 9;
/// And for up to so many: while it grows, its hits wait.
const LARGEST_SHARD: u64 = 1 << 14;
const MOST_SHARDS: u64 = 1 << 12;
/// Whoever looks at all cells of a shard looks at so many at a time, and lets others in between.
const STRIDE: usize = 1 << 8;

/// A first tier in this process's memory. All limits given hold together at all times.
///
/// The replacement keeps what is used often and recently (S3-FIFO). Expired entries are reclaimed in
/// the background.
///
/// ```
/// # use bentocache::Memory;
/// let memory = Memory::new().max_items(100_000).max_size("100mb").max_entry_size("1mb");
/// ```
pub struct Memory {
    max_items: u64,
    max_size: Option<u64>,
    max_entry_size: Option<u64>,
    error: Option<Error>,
    /// What an entry may weigh, key and overhead included.
    largest: u64,
    /// Their number is a power of two.
    shards: Box<[Line]>,
    hasher: RandomState,
}

impl Memory {
    /// A store of at most 100,000 entries.
    pub fn new() -> Self {
        Self {
            max_items: 100_000,
            max_size: None,
            max_entry_size: None,
            error: None,
            largest: 0,
            shards: Box::default(),
            hasher: RandomState::default(),
        }
        .sized()
    }

    /// The largest number of entries. Default 100,000. Fewer are stored when `max_size` is reached
    /// first.
    #[must_use]
    pub fn max_items(mut self, items: usize) -> Self {
        self.max_items = (items as u64).min(MAX_LIMIT);
        if items == 0 {
            self.error.get_or_insert(Error::InvalidOption {
                option: "max_items",
                given: "0".into(),
                expected: "at least 1, or leave out the first tier",
            });
        }
        self.sized()
    }

    /// The largest total size: of the values as encoded, of the keys, and about 100 bytes for each
    /// entry. Measuring costs an encoding of every value that is not encoded for a second tier
    /// anyway. Default: not limited.
    #[must_use]
    pub fn max_size(mut self, size: impl Into<ByteSize>) -> Self {
        self.max_size = self.bytes("max_size", size.into());
        self.sized()
    }

    /// The largest size of a single entry, as in `max_size`; a larger one is not kept in this
    /// tier. Default: with a `max_size`, an eighth of it (all of it below 1 MiB).
    #[must_use]
    pub fn max_entry_size(mut self, size: impl Into<ByteSize>) -> Self {
        self.max_entry_size = self.bytes("max_entry_size", size.into());
        self.sized()
    }

    fn bytes(&mut self, option: &'static str, size: ByteSize) -> Option<u64> {
        match size.bytes(option) {
            Ok(0) => {
                self.error.get_or_insert(Error::InvalidOption {
                    option,
                    given: "0".into(),
                    expected: "at least 1 byte",
                });
                None
            }
            Ok(bytes) => Some(bytes.min(MAX_LIMIT)),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// Lays out the shards, which are still empty, for the limits.
    fn sized(mut self) -> Self {
        let items = self.max_items.max(1);
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let shards = (threads * 4).min(items / SMALLEST_SHARD).max(items / LARGEST_SHARD);
        let mut shards = shards.clamp(1, MOST_SHARDS).next_power_of_two();
        let mut weight = u64::MAX;
        self.largest = self.max_entry_size.unwrap_or(u64::MAX);
        if let Some(size) = self.max_size {
            let largest = if size < 1 << 20 { size } else { size / 8 };
            self.largest = self.max_entry_size.unwrap_or(largest).min(size).min(Shard::HEAVIEST);
            // Shards have limits of their own, and the largest entry must fit into each.
            shards = shards.min(1 << (size / self.largest).checked_ilog2().unwrap_or(0));
            weight = size / shards;
        }
        let of_shard = |shard| Limits {
            items: (items / shards + u64::from(shard < items % shards)).min(Shard::MOST_ITEMS),
            weight,
        };
        self.shards = (0..shards).map(|at| Line(RwLock::new(Shard::new(of_shard(at))))).collect();
        self
    }

    #[inline(always)]
    fn hash(&self, key: &str) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        hasher.finish()
    }

    /// The shard of the upper half of a hash; the lower one is for the shard.
    #[inline(always)]
    fn shard(&self, hash: u64) -> &Line {
        &self.shards[(hash >> 32) as usize & (self.shards.len() - 1)]
    }

    /// Where the key is, if it is anywhere, and what to look for there.
    #[inline(always)]
    pub(crate) fn shard_of(&self, key: &str) -> (RwLockReadGuard<'_, Shard>, u32) {
        let hash = self.hash(key);
        (self.shard(hash).read(), hash as u32)
    }

    /// Removes the entries that are to go; returns how many.
    fn sweep(&self, is_to_go: impl Fn(&Entry) -> bool) -> usize {
        self.shards.iter().map(|shard| shard.sweep(&is_to_go)).sum()
    }
}

/// A shard, on lines of memory of its own.
#[repr(align(64))]
struct Line(RwLock<Shard>);

impl Line {
    // No user's code runs while a shard is changed, so it is whole even if a reader has panicked.
    #[inline(always)]
    fn read(&self) -> RwLockReadGuard<'_, Shard> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shard> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self, is_to_go: impl Fn(&Entry) -> bool) -> usize {
        let (mut swept, mut walk) = (0, Walk::default());
        loop {
            let shard = self.read();
            let Some(entries) = shard.step(&mut walk, STRIDE) else { return swept };
            let found: Vec<(u32, Arc<Entry>)> = entries
                .filter(|(_, entry)| is_to_go(entry))
                .map(|(hash, entry)| (hash, entry.clone()))
                .collect();
            drop(shard);
            if !found.is_empty() {
                let mut shard = self.write();
                swept +=
                    found.iter().filter(|(hash, entry)| shard.remove_same(*hash, entry)).count();
            }
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("max_items", &self.max_items)
            .field("max_size", &self.max_size)
            .field("max_entry_size", &self.max_entry_size)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl L1Driver for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn open(&self) -> Result<(), DriverError> {
        let Some(error) = &self.error else { return Ok(()) };
        Err(DriverError::new(ErrorKind::Config, error.to_string()).with_source(error.clone()))
    }

    fn get(&self, key: &str) -> Option<Arc<Entry>> {
        let (shard, hash) = self.shard_of(key);
        shard.get(hash, key).cloned()
    }

    /// Reads the entry under the shard's lock.
    #[inline]
    fn read(&self, key: &str, read: &dyn Fn(&Arc<Entry>)) {
        let (shard, hash) = self.shard_of(key);
        if let Some(entry) = shard.get(hash, key) {
            read(entry);
        }
    }

    fn insert(&self, entry: Arc<Entry>, weight: u64) -> Inserted {
        let size = entry.key().len() as u64 + OVERHEAD;
        let weight = weight.saturating_add(size);
        if weight > self.largest {
            let replaced = self.remove(entry.key());
            return Inserted { replaced, refused: true, ..Inserted::default() };
        }
        let weight = if self.max_size.is_some() { weight } else { 0 };
        let (hash, mut evicted) = (self.hash(entry.key()), Vec::new());
        let replaced = self.shard(hash).write().insert(hash as u32, entry, weight, &mut evicted);
        Inserted { replaced, evicted, refused: false }
    }

    fn remove(&self, key: &str) -> Option<Arc<Entry>> {
        let hash = self.hash(key);
        self.shard(hash).write().remove(hash as u32, key)
    }

    fn clear(&self, prefix: &str) {
        if !prefix.is_empty() {
            self.sweep(|entry| entry.key().starts_with(prefix));
            return;
        }
        for shard in &self.shards {
            let cleared = shard.write().clear();
            drop(cleared);
        }
    }

    fn prune(&self, now: u64) -> usize {
        self.sweep(|entry| entry.dead_at() <= now)
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    fn for_each(&self, visit: &mut dyn FnMut(&Arc<Entry>)) {
        for shard in &self.shards {
            let shard = shard.read();
            let mut walk = Walk::default();
            let all = shard.step(&mut walk, usize::MAX).into_iter().flatten();
            let all: Vec<Arc<Entry>> = all.map(|(_, entry)| entry.clone()).collect();
            drop(shard);
            all.iter().for_each(&mut *visit);
        }
    }

    fn is_weighted(&self) -> bool {
        self.max_size.is_some() || self.max_entry_size.is_some()
    }
}
