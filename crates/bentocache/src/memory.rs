//! The built-in first tier, on `quick_cache`.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bentocache_core::{DriverError, Entry, ErrorKind, Inserted, L1Driver};
use compact_str::CompactString;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Equivalent, Lifecycle, OptionsBuilder, Weighter};

use crate::error::Error;
use crate::options::ByteSize;

/// What an entry costs beside its key and its encoded value, in bytes.
const OVERHEAD: u64 = 100;
/// Weights are in 1/1024 bytes, so that a limit of items can be one of weight without rounding.
const SCALE: u64 = 1024;
/// `quick_cache` refuses what does not fit into the larger of a shard's two queues.
const LARGEST_SHARE_OF_SHARD: f64 = 0.97;
/// Limits are capped here, far above any memory, so that scaled weights cannot overflow.
const MAX_LIMIT: u64 = 1 << 50;

/// A first tier in this process's memory. All limits given hold together at all times.
///
/// The replacement keeps what is used often and recently (S3-FIFO, by `quick_cache`). Expired
/// entries are reclaimed in the background.
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
    /// The weight of an entry is at least this, so that the limit of items holds.
    least_weight: u64,
    /// What an entry may weigh, key and overhead included.
    largest: u64,
    cache: Cache<Kept, u64, ByWeight, DefaultHashBuilder, Discards>,
}

impl Memory {
    /// A store of at most 100,000 entries.
    pub fn new() -> Self {
        Self {
            max_items: 100_000,
            max_size: None,
            max_entry_size: None,
            error: None,
            least_weight: 0,
            largest: 0,
            cache: Cache::with(1, 1, ByWeight, DefaultHashBuilder::default(), Discards),
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

    /// Lays out the (still empty) cache for the limits.
    fn sized(mut self) -> Self {
        let items = self.max_items.max(1);
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        // Shards have their own limits, so a small cache has one: it then holds all it may.
        let most_shards = if items < 1024 { 1 } else { (threads * 4).next_power_of_two() };
        let (shards, capacity) = match self.max_size {
            None => {
                let shards = most_shards.min(prev_power_of_two(items / 32));
                self.least_weight = SCALE;
                self.largest = self.max_entry_size.map_or(u64::MAX, |bytes| bytes * SCALE);
                // A little more than the items weigh, and less than one more of them would: an
                // entry must fit into 97 % of its shard even when it is the only one.
                (shards, (items / shards * SCALE + SCALE / 2) * shards)
            }
            Some(size) => {
                let limit =
                    self.max_entry_size.unwrap_or(if size < 1 << 20 { size } else { size / 8 });
                let per_shard = size as f64 * LARGEST_SHARE_OF_SHARD / limit as f64;
                let shards = most_shards.min(prev_power_of_two(per_shard as u64));
                let capacity = size / shards * shards * SCALE;
                self.least_weight = capacity.div_ceil(items).max(1);
                let shard_limit = (capacity / shards) as f64 * LARGEST_SHARE_OF_SHARD;
                self.largest = (limit * SCALE).min(shard_limit as u64);
                (shards, capacity)
            }
        };
        let options = OptionsBuilder::new()
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .weight_capacity(capacity)
            .shards(shards as usize)
            .build();
        match options {
            Ok(options) => {
                self.cache =
                    Cache::with_options(options, ByWeight, DefaultHashBuilder::default(), Discards);
            }
            Err(error) => {
                self.error.get_or_insert(Error::config(format!("the memory tier: {error:?}")));
            }
        }
        self
    }
}

fn prev_power_of_two(n: u64) -> u64 {
    if n == 0 { 1 } else { 1 << n.ilog2() }
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
            .field("len", &self.cache.len())
            .finish_non_exhaustive()
    }
}

/// An entry and its key: what `quick_cache` takes for a key. Its value is only the entry's weight.
///
/// Whoever looks for a key is shown each candidate under the shard's lock. That is where a hit
/// reads the entry, without counting a reference to it ([`Read`]). Short keys lie in the table
/// itself. Both spare a hit the wait for a line of memory.
#[derive(Clone)]
struct Kept {
    key: CompactString,
    entry: Arc<Entry>,
}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.as_str().hash(state);
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Kept {}

/// Finds a key, and reads its entry as soon as it is found.
struct Read<'a> {
    key: &'a str,
    read: &'a dyn Fn(&Arc<Entry>),
}

impl Hash for Read<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl Equivalent<Kept> for Read<'_> {
    #[inline]
    fn equivalent(&self, kept: &Kept) -> bool {
        let found = *kept.key == *self.key;
        if found {
            (self.read)(&kept.entry);
        }
        found
    }
}

/// Finds a key, whatever its entry.
#[derive(Hash)]
struct Named<'a>(&'a str);

impl Equivalent<Kept> for Named<'_> {
    fn equivalent(&self, kept: &Kept) -> bool {
        *kept.key == *self.0
    }
}

/// Finds this very entry, not what has taken its place.
struct Same<'a>(&'a Kept);

impl Hash for Same<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<Kept> for Same<'_> {
    fn equivalent(&self, kept: &Kept) -> bool {
        Arc::ptr_eq(&kept.entry, &self.0.entry) && kept.key == self.0.key
    }
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<Kept, u64> for ByWeight {
    fn weight(&self, _: &Kept, weight: &u64) -> u64 {
        *weight
    }
}

/// Collects what an insertion pushes out, to be dropped outside of the shard's lock.
#[derive(Clone)]
struct Discards;

impl Lifecycle<Kept, u64> for Discards {
    type RequestState = Vec<Kept>;

    fn on_evict(&self, discards: &mut Self::RequestState, kept: Kept, _: u64) {
        discards.push(kept);
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
        let found = Cell::new(None);
        self.read(key, &|entry| found.set(Some(entry.clone())));
        found.into_inner()
    }

    #[inline]
    fn read(&self, key: &str, read: &dyn Fn(&Arc<Entry>)) {
        self.cache.get(&Read { key, read });
    }

    fn insert(&self, key: &str, entry: Arc<Entry>, weight: u64) -> Inserted {
        let bytes = weight.saturating_add(key.len() as u64).saturating_add(OVERHEAD);
        let exact = bytes.min(MAX_LIMIT) * SCALE;
        if exact > self.largest && self.is_weighted() {
            return Inserted { replaced: self.remove(key), refused: true, ..Inserted::default() };
        }
        let weight = if self.max_size.is_some() { exact } else { 0 }.max(self.least_weight);
        let mut discards = Vec::new();
        let kept = Kept { key: key.into(), entry: entry.clone() };
        self.cache.insert_with_lifecycle(kept, weight, &mut discards);
        let mut inserted = Inserted::default();
        // A replaced entry comes the same way as the evicted ones.
        for Kept { key: discarded, entry: old } in discards {
            if discarded != key {
                inserted.evicted.push((discarded.as_str().into(), old));
            } else if Arc::ptr_eq(&old, &entry) {
                inserted.refused = true;
            } else {
                inserted.replaced = Some(old);
            }
        }
        inserted
    }

    fn remove(&self, key: &str) -> Option<Arc<Entry>> {
        self.cache.remove(&Named(key)).map(|(kept, _)| kept.entry)
    }

    fn clear(&self, prefix: &str) {
        if prefix.is_empty() {
            // Each entry is dropped here, outside of the lock.
            self.cache.drain().for_each(drop);
            return;
        }
        for (kept, _) in self.cache.iter().filter(|(kept, _)| kept.key.starts_with(prefix)) {
            drop(self.cache.remove(&Named(&kept.key)));
        }
    }

    fn prune(&self, now: u64) -> usize {
        let dead = self.cache.iter().filter(|(kept, _)| kept.entry.dead_at() <= now);
        dead.filter(|(kept, _)| self.cache.remove(&Same(kept)).is_some()).count()
    }

    fn len(&self) -> usize {
        self.cache.len()
    }

    fn for_each(&self, visit: &mut dyn FnMut(&str, &Arc<Entry>)) {
        for (Kept { key, entry }, _) in self.cache.iter() {
            visit(&key, &entry);
        }
    }

    fn is_weighted(&self) -> bool {
        self.max_size.is_some() || self.max_entry_size.is_some()
    }
}
