//! The built-in L1.

mod ghosts;
mod room;
mod shard;

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bentocache_driver::{DriverError, Entry, EntryLimit, ErrorKind, Inserted, L1Driver};
use foldhash::quality::RandomState;

use self::room::{Pool, Room};
use self::shard::{Scan, Shard};
use crate::error::Error;
use crate::options::{self, ByteSize, TimeSpan};

/// The overhead of an entry in bytes, in addition to its key and its encoded value.
const OVERHEAD: u64 = 100;
/// The default number of entries.
const DEFAULT_ITEMS: u64 = 100_000;
/// Upper bound of all limits, far above any real memory size, so that sums of weights cannot
/// overflow.
const MAX_LIMIT: u64 = 1 << 50;
/// The smallest number of entries per shard. In a smaller shard, eviction order has little meaning.
const SMALLEST_SHARD: u64 = 1 << 9;
/// The smallest number of bytes per shard.
const SMALLEST_SIZE: u64 = 1 << 18;
/// The largest number of entries per shard. While a shard grows, its hits wait.
const LARGEST_SHARD: u64 = 1 << 14;
const MOST_SHARDS: u64 = 1 << 12;
/// The number of cells that a scan of a shard reads under one lock, before it lets other threads
/// in.
const STRIDE: usize = 1 << 8;
/// How often an insertion asks for room before the entry is refused, because other insertions
/// always took the room first.
const MOST_ROUNDS: usize = 1_000;

/// An in-process L1. All limits hold together at all times.
///
/// The eviction policy is S3-FIFO, which keeps entries that are used often and recently. Expired
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
    snapshot: Option<SnapshotOptions>,
    error: Option<Error>,
    /// The largest weight of one entry, key and overhead included.
    largest: u64,
    pool: Pool,
    /// The number of shards is a power of two.
    shards: Box<[PaddedShard]>,
    hasher: RandomState,
}

/// The file that keeps the entries of L1 while no process runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotOptions {
    /// Empty if only the interval was set.
    pub(crate) path: PathBuf,
    /// How often the file is written while the store runs.
    pub(crate) every: Option<Duration>,
}

impl Memory {
    /// A memory tier for at most 100,000 entries.
    pub fn new() -> Self {
        Self {
            max_items: DEFAULT_ITEMS,
            max_size: None,
            max_entry_size: None,
            snapshot: None,
            error: None,
            largest: 0,
            pool: Pool::new(Room::default(), 1),
            shards: Box::default(),
            hasher: RandomState::default(),
        }
        .sized()
    }

    /// The largest number of entries. Default 100,000. The tier holds fewer entries if `max_size`
    /// is reached first.
    #[must_use]
    pub fn max_items(mut self, items: usize) -> Self {
        self.max_items = (items as u64).min(MAX_LIMIT);
        if items == 0 {
            self.error.get_or_insert(Error::InvalidOption {
                option: "max_items",
                given: "0".into(),
                expected: "at least 1, or leave out L1",
            });
        }
        self.sized()
    }

    /// The largest total size: encoded values, keys, and about 100 bytes per entry. To measure it,
    /// every value is encoded once, if it is not encoded for an L2 anyway. Default: no limit.
    #[must_use]
    pub fn max_size(mut self, size: impl Into<ByteSize>) -> Self {
        self.max_size = self.limit_of("max_size", size);
        self.sized()
    }

    /// The largest size of one entry, measured as for `max_size`. L1 refuses a larger entry.
    /// Default: the `max_size`. No entry may be larger than 8 GiB.
    #[must_use]
    pub fn max_entry_size(mut self, size: impl Into<ByteSize>) -> Self {
        self.max_entry_size = self.limit_of("max_entry_size", size);
        self.sized()
    }

    /// Whether the only limit is the default number of entries.
    pub(crate) fn has_default_limits(&self) -> bool {
        (self.max_items, self.max_size, self.max_entry_size) == (DEFAULT_ITEMS, None, None)
    }

    /// A file in which the entries outlive the process. `disconnect` writes it, and `build` loads
    /// it, for at most five seconds. Default: none.
    ///
    /// - In a store with an L2, each loaded entry is compared with L2 before it is used. While L2
    ///   cannot be asked, it is stale.
    /// - In a store with neither an L2 nor a bus, the entries have the life that was left when they
    ///   were written, less the time since. A file is used once: a process that is killed leaves none,
    ///   so that no value comes back that was deleted after the file was written.
    /// - In a store with a bus and no L2, loaded entries are stale.
    ///
    /// Values without a stored form, such as those of [`local`](crate::Cache::local), are left out, and
    /// without an L2 those that slide. The file has the values in clear, unless the store encrypts
    /// them, and only its owner may read it. Each store, and each
    /// process, needs a path of its own. A file that is damaged, that another store wrote, or that
    /// comes from the future, is a warning, and so is a file that cannot be written.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("l1.snapshot");
    /// let store = || Store::new().l1(Memory::new().snapshot(&path));
    /// let cache = BentoCache::builder().store("main", store()).build().await?;
    /// cache.set("a", 1).await?;
    /// cache.disconnect_all().await?;
    ///
    /// // The next process.
    /// let cache = BentoCache::builder().store("main", store()).build().await?;
    /// assert_eq!(cache.get("a").await?, Some(1));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn snapshot(mut self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        if path.as_os_str().is_empty() {
            self.error.get_or_insert(Error::InvalidOption {
                option: "snapshot",
                given: "\"\"".into(),
                expected: "the path of a file",
            });
        }
        self.snapshot.get_or_insert_default().path = path;
        self
    }

    /// How often the file of [`snapshot`](Self::snapshot) is written while the store runs, so that a
    /// process that is killed leaves one too. Only for a store with an L2, which knows what was
    /// deleted since. Default: only at `disconnect`.
    ///
    /// ```
    /// # use bentocache::Memory;
    /// let memory = Memory::new().snapshot("/var/lib/service/l1.snapshot").snapshot_interval("5m");
    /// ```
    #[must_use]
    pub fn snapshot_interval(mut self, every: impl Into<TimeSpan>) -> Self {
        match options::limit_above_0(every, "snapshot_interval") {
            Ok(options::NEVER) => self.snapshot.get_or_insert_default().every = None,
            Ok(every) => {
                self.snapshot.get_or_insert_default().every = Some(Duration::from_millis(every));
            }
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self
    }

    pub(crate) fn snapshot_options(&self) -> Option<&SnapshotOptions> {
        self.snapshot.as_ref().filter(|options| !options.path.as_os_str().is_empty())
    }

    fn limit_of(&mut self, option: &'static str, size: impl Into<ByteSize>) -> Option<u64> {
        match options::bytes(size, option) {
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

    /// Divides the limits among shards. The shards must still be empty.
    fn sized(mut self) -> Self {
        let items = self.max_items.max(1);
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let shards = (threads * 4).min(items / SMALLEST_SHARD).max(items / LARGEST_SHARD);
        let weight = self.max_size.unwrap_or(u64::MAX);
        let shards = shards.min(weight / SMALLEST_SIZE).clamp(1, MOST_SHARDS).next_power_of_two();
        self.largest = self.max_entry_size.unwrap_or(u64::MAX);
        if let Some(size) = self.max_size {
            self.largest = self.largest.min(size).min(Shard::HEAVIEST);
        }
        self.pool =
            Pool::new(Room { items: items.min(shards * Shard::MOST_ITEMS), weight }, shards);
        self.shards = (0..shards).map(|_| PaddedShard(RwLock::new(Shard::new()))).collect();
        self
    }

    #[inline(always)]
    fn hash(&self, key: &str) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        hasher.finish()
    }

    /// The shard of a hash. The upper half of the hash selects the shard; the shard itself uses the
    /// lower half.
    #[inline(always)]
    fn shard(&self, hash: u64) -> &PaddedShard {
        &self.shards[self.place(hash)]
    }

    #[inline(always)]
    fn place(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.shards.len() - 1)
    }

    /// The shard that can hold the key, and the hash to look for in it.
    #[inline(always)]
    pub(crate) fn shard_of(&self, key: &str) -> (RwLockReadGuard<'_, Shard>, u32) {
        let hash = self.hash(key);
        (self.shard(hash).read(), hash as u32)
    }

    /// Removes the entries that match; returns their number.
    fn sweep(&self, is_to_go: impl Fn(&Entry) -> bool) -> usize {
        self.shards.iter().map(|shard| shard.sweep(&self.pool, &is_to_go)).sum()
    }

    /// Takes room from all shards except `but`, a little from each, until it is enough or no shard
    /// can give more. Locks only one shard at a time.
    fn collect(&self, but: usize, lacking: Room, evicted: &mut Vec<Arc<Entry>>) -> Room {
        let (mut room, mut before) = (Room::default(), None);
        let start = fastrand::usize(..self.shards.len());
        while before != Some(room) {
            before = Some(room);
            for at in (start..self.shards.len()).chain(0..start).filter(|at| *at != but) {
                let lacking = lacking.without(room);
                if lacking.is_none() {
                    return room;
                }
                room.add(self.shards[at].write().yield_room(lacking, &self.pool, evicted));
            }
        }
        room
    }
}

/// A shard in its own cache lines, so that locks of different shards do not share one.
#[repr(align(64))]
struct PaddedShard(RwLock<Shard>);

impl PaddedShard {
    // No user code runs while a shard changes, so the shard is consistent even if a reader has
    // panicked.
    #[inline(always)]
    fn read(&self) -> RwLockReadGuard<'_, Shard> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shard> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self, pool: &Pool, is_to_go: impl Fn(&Entry) -> bool) -> usize {
        let (mut swept, mut scan) = (0, Scan::default());
        loop {
            let shard = self.read();
            let Some(entries) = shard.step(&mut scan, STRIDE) else { return swept };
            let found: Vec<(u32, Arc<Entry>)> = entries
                .filter(|(_, entry)| is_to_go(entry))
                .map(|(hash, entry)| (hash, entry.clone()))
                .collect();
            drop(shard);
            if !found.is_empty() {
                let mut shard = self.write();
                swept +=
                    found.iter().filter(|(hash, entry)| shard.remove_same(*hash, entry)).count();
                shard.release(pool);
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
        let without_file = Error::InvalidOption {
            option: "snapshot_interval",
            given: "an interval".into(),
            expected: "a file too: `Memory::new().snapshot(path)`",
        };
        let lacks_file =
            self.snapshot.as_ref().is_some_and(|options| options.path.as_os_str().is_empty());
        let error = self.error.as_ref().or(lacks_file.then_some(&without_file));
        let Some(error) = error else { return Ok(()) };
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
        let weight = weight.saturating_add(entry.key().len() as u64 + OVERHEAD);
        let refused = || Inserted { refused: true, ..Inserted::default() };
        if weight > self.largest {
            return Inserted { replaced: self.remove(entry.key()), ..refused() };
        }
        let weight = if self.max_size.is_some() { weight } else { 0 };
        let hash = self.hash(entry.key());
        let (place, mut room, mut inserted) =
            (self.place(hash), Room::default(), Inserted::default());
        let mut alone = self.shards.len() == 1;
        for _ in 0..MOST_ROUNDS {
            let mut shard = self.shards[place].write();
            shard.grant(room);
            let stored =
                shard.insert((hash as u32, &entry), weight, &self.pool, alone, &mut inserted);
            drop(shard);
            let Err(lacking) = stored else { return inserted };
            room = self.collect(place, lacking, &mut inserted.evicted);
            // If the other shards can give nothing, this shard evicts its own entries.
            alone = room.is_none();
        }
        self.pool.give(room);
        Inserted { refused: true, ..inserted }
    }

    fn remove(&self, key: &str) -> Option<Arc<Entry>> {
        let hash = self.hash(key);
        let mut shard = self.shard(hash).write();
        let removed = shard.remove(hash as u32, key);
        shard.release(&self.pool);
        removed
    }

    fn entry_limit(&self) -> Option<EntryLimit> {
        let option = if self.max_entry_size.is_some() { "max_entry_size" } else { "max_size" };
        (self.largest != u64::MAX).then_some(EntryLimit {
            max: self.largest,
            overhead: OVERHEAD,
            option,
        })
    }

    fn max_entries(&self) -> Option<u64> {
        Some(self.max_items)
    }

    fn bytes(&self) -> Option<u64> {
        let sum = || self.shards.iter().map(|shard| shard.read().weight()).sum();
        self.max_size.map(|_| sum())
    }

    fn max_bytes(&self) -> Option<u64> {
        self.max_size
    }

    fn clear(&self, prefix: &str) {
        if !prefix.is_empty() {
            self.sweep(|entry| entry.key().starts_with(prefix));
            return;
        }
        for shard in &self.shards {
            let cleared = shard.write().clear(&self.pool);
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
            let mut scan = Scan::default();
            let all = shard.step(&mut scan, usize::MAX).into_iter().flatten();
            let all: Vec<Arc<Entry>> = all.map(|(_, entry)| entry.clone()).collect();
            drop(shard);
            all.iter().for_each(&mut *visit);
        }
    }

    fn is_weighted(&self) -> bool {
        self.max_size.is_some() || self.max_entry_size.is_some()
    }
}
