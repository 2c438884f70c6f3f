//! The operations on single entries. All of them block.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind};
use bytes::Bytes;

use crate::call::Caller;
use crate::error::{failed, is_absent, is_missing, unusable};
use crate::format::{self, Expiry, now};
use crate::layout::{Place, SHARDS, shard_path};
use crate::limit::Limit;
use crate::lock::Lock;
use crate::read::{self, Content, Found};
use crate::write::{Temporary, sync_directory};

/// The directory of a store.
#[derive(Debug)]
pub(crate) struct Dir {
    root: PathBuf,
    durable: bool,
    pub(crate) limit: Option<Limit>,
    /// One per shard, see [`Lock`].
    gates: Box<[Mutex<()>]>,
    /// How many threads wait for a lock.
    waiting: AtomicUsize,
}

impl Dir {
    pub(crate) fn new(root: PathBuf) -> Self {
        let gates = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Self { root, durable: false, limit: None, gates, waiting: AtomicUsize::new(0) }
    }

    pub(crate) fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable
    }

    pub(crate) fn limited(mut self, max_size: Option<u64>) -> Self {
        self.limit = max_size.map(Limit::new);
        self
    }

    pub(crate) fn max_size(&self) -> Option<u64> {
        self.limit.as_ref().map(Limit::most)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Checks that the directory is usable.
    pub(crate) fn open(&self) -> Result<(), DriverError> {
        let root = self.root();
        if root.as_os_str().is_empty() {
            return Err(DriverError::new(
                ErrorKind::Config,
                "file cache: an empty path; use \".\" for the current directory",
            ));
        }
        fs::create_dir_all(root).map_err(|error| unusable("create", root, error))?;
        let (file, probe) =
            Temporary::create(root).map_err(|error| unusable("write in", root, error))?;
        file.lock().map_err(|error| unusable("lock", probe.path(), error))
    }

    /// Checks that a value of moderate size can be written.
    pub(crate) fn try_write(&self) -> Result<(), DriverError> {
        self.open()?;
        Temporary::write(self.root(), &[&[0; 64 << 10]], false).map(drop)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let place = Place::of(&self.root, key)?;
        match self.content(&place, key)? {
            Found::Live(content) => Ok(Some(content.value)),
            Found::Nothing => Ok(None),
            Found::Expired | Found::Foreign => {
                self.take_away(&place, key);
                Ok(None)
            }
        }
    }

    pub(crate) fn set(
        &self,
        key: &str,
        value: &[u8],
        ttl: Option<Duration>,
        caller: &Caller,
    ) -> Result<(), DriverError> {
        if ttl == Some(Duration::ZERO) {
            return self.delete(key).map(drop);
        }
        self.put(key, value, ttl, caller, |_| Ok(true)).map(drop)
    }

    /// As `set`, if there is no entry; returns whether it stored the value.
    pub(crate) fn insert(
        &self,
        key: &str,
        value: &[u8],
        ttl: Option<Duration>,
        caller: &Caller,
    ) -> Result<bool, DriverError> {
        let is_vacant = |place: &Place| Ok(!matches!(self.content(place, key)?, Found::Live(_)));
        self.put(key, value, ttl, caller, is_vacant)
    }

    /// Stores the value if `may` returns true under the lock; returns whether it did.
    fn put(
        &self,
        key: &str,
        value: &[u8],
        ttl: Option<Duration>,
        caller: &Caller,
        may: impl Fn(&Place) -> Result<bool, DriverError>,
    ) -> Result<bool, DriverError> {
        let place = Place::of(&self.root, key)?;
        let shard = self.shard(&place);
        let head = format::encode(key, value, Expiry::after(ttl, now()));
        self.make_room((head.len() + value.len()) as u64)?;
        let try_set = || {
            self.make_shard(&shard)?;
            let temporary = Temporary::write(&shard, &[&head, value], self.durable)?;
            let _lock = self.lock(place.shard)?;
            caller.still_waits()?;
            if !may(&place)? {
                return Ok(false);
            }
            temporary.move_to(&place.path)?;
            self.changed(&shard)?;
            Ok(true)
        };
        // Another process may remove the directory between any two steps, but not endlessly.
        let mut retries = 3;
        loop {
            match try_set() {
                Err(error) if is_missing(&error) && retries > 0 => retries -= 1,
                done => return done,
            }
        }
    }

    /// Returns whether there was an entry.
    pub(crate) fn delete(&self, key: &str) -> Result<bool, DriverError> {
        self.change(key, |place| {
            // An unreadable file can still be deleted.
            let found = read::key(&place.path, now());
            let there = matches!(found, Ok(Found::Live(current)) if current == key);
            self.remove(&place.path)?;
            Ok(there)
        })
    }

    pub(crate) fn pull(&self, key: &str, caller: &Caller) -> Result<Option<Bytes>, DriverError> {
        self.change(key, |place| {
            caller.still_waits()?;
            let found = self.content(place, key)?;
            self.remove(&place.path)?;
            Ok(if let Found::Live(content) = found { Some(content.value) } else { None })
        })
    }

    pub(crate) fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: &[u8],
    ) -> Result<bool, DriverError> {
        // Not under the lock of the shard, because the removal of other files takes it.
        self.make_room((format::HEADER + key.len() + value.len()) as u64)?;
        self.change(key, |place| {
            let expiry = match self.content(place, key)? {
                Found::Live(current) if current.value == expected => current.expiry,
                _ => return Ok(false),
            };
            let head = format::encode(key, value, expiry);
            let shard = self.shard(place);
            Temporary::write(&shard, &[&head, value], self.durable)?.move_to(&place.path)?;
            self.changed(&shard)?;
            Ok(true)
        })
    }

    /// Writes the file again, because a header that is changed in its place could be read half
    /// changed.
    pub(crate) fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        self.change(key, |place| {
            let Found::Live(Content { value, .. }) = self.content(place, key)? else {
                return Ok(false);
            };
            let head = format::encode(key, &value, Expiry::after(ttl, now()));
            let shard = self.shard(place);
            Temporary::write(&shard, &[&head, &value], self.durable)?.move_to(&place.path)?;
            self.changed(&shard)?;
            Ok(true)
        })
    }

    pub(crate) fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        self.change(key, |place| match self.content(place, key)? {
            Found::Live(current) if current.value == value => self.remove(&place.path),
            _ => Ok(false),
        })
    }

    /// Runs `change` under the lock of the key's shard, if there is a file. Returns the default of
    /// `T` if there is none, or none any more.
    fn change<T: Default>(
        &self,
        key: &str,
        change: impl FnOnce(&Place) -> Result<T, DriverError>,
    ) -> Result<T, DriverError> {
        let place = Place::of(&self.root, key)?;
        if !self.is_shard(&self.shard(&place)) || is_vacant(&place.path) {
            return Ok(T::default());
        }
        match self.lock(place.shard).and_then(|_lock| change(&place)) {
            Err(error) if is_missing(&error) => Ok(T::default()),
            done => done,
        }
    }

    /// Removes an expired or foreign file, if it still is one under the lock. This is optional
    /// cleanup: it does not wait for the lock, and without it the entry stays a miss.
    fn take_away(&self, place: &Place, key: &str) {
        let Some(_lock) = Lock::try_acquire(&self.shard(place), &self.gates[place.shard]) else {
            return;
        };
        let path = &place.path;
        match self.content(place, key) {
            Ok(Found::Expired) => {}
            Ok(Found::Foreign) => {
                tracing::warn!(path = %path.display(), "not a whole cache entry; removing it");
            }
            Ok(Found::Live(_) | Found::Nothing) | Err(_) => return,
        }
        if let Err(error) = self.remove(path) {
            tracing::debug!(%error, "cannot remove a dead cache entry");
        }
    }

    fn content(&self, place: &Place, key: &str) -> Result<Found<Content>, DriverError> {
        if !self.is_shard(&self.shard(place)) {
            return Ok(Found::Nothing);
        }
        read::content(&place.path, key, now()).map_err(|error| failed("read", &place.path, error))
    }

    /// Removes the file and returns whether it was there. The caller holds the lock.
    pub(crate) fn remove(&self, path: &Path) -> Result<bool, DriverError> {
        match fs::remove_file(path) {
            Ok(()) => {
                if let Some(shard) = path.parent() {
                    self.changed(shard)?;
                }
                Ok(true)
            }
            Err(error) if is_absent(&error) => Ok(false),
            // A directory in an entry's place is not an entry, and its contents are foreign.
            Err(_) if path.is_dir() => Ok(false),
            Err(error) => Err(failed("remove", path, error)),
        }
    }

    pub(crate) fn lock(&self, shard: usize) -> Result<Lock<'_>, DriverError> {
        self.waiting.fetch_add(1, Relaxed);
        let lock = Lock::acquire(&shard_path(&self.root, shard), &self.gates[shard]);
        self.waiting.fetch_sub(1, Relaxed);
        lock
    }

    /// Whether a thread waits for a lock.
    pub(crate) fn waits_for_lock(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// The reason why a call waits; it may not have begun yet.
    pub(crate) fn obstacle(&self, has_begun: bool) -> String {
        let root = self.root.display();
        if !has_begun {
            "the Tokio runtime has no free thread for blocking work; raise its \
             max_blocking_threads, or find out what blocks its threads"
                .to_owned()
        } else if self.waits_for_lock() {
            format!(
                "another process or task holds a lock below {root}: see whether a process that \
                 uses the directory is suspended"
            )
        } else {
            format!(
                "the file system of {root} has not finished the operation: see whether its disk \
                 is overloaded or its network is gone"
            )
        }
    }

    fn shard(&self, place: &Place) -> PathBuf {
        shard_path(&self.root, place.shard)
    }

    /// Whether the shard's directory exists and is not a link.
    pub(crate) fn is_shard(&self, shard: &Path) -> bool {
        fs::symlink_metadata(shard).is_ok_and(|metadata| metadata.is_dir())
    }

    /// Creates the shard's directory if it is missing.
    fn make_shard(&self, shard: &Path) -> Result<(), DriverError> {
        match fs::symlink_metadata(shard) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) => Err(DriverError::new(
                ErrorKind::Denied,
                format!(
                    "file cache: {} is not a directory, and links are not followed: remove it",
                    shard.display()
                ),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(shard).map_err(|error| failed("create", shard, error))?;
                self.changed(&self.root)
            }
            Err(error) => Err(failed("look at", shard, error)),
        }
    }

    fn changed(&self, directory: &Path) -> Result<(), DriverError> {
        if self.durable { sync_directory(directory) } else { Ok(()) }
    }
}

fn is_vacant(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| is_absent(&error))
}
