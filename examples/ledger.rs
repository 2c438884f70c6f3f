//! A complete L2 driver:
//!
//! ```text
//! cargo run --release --example ledger
//! ```
//!
//! The driver is called `Ledger`. It stores everything in one append-only file and has an index of
//! that file in memory, like a small Bitcask. It passes the conformance suite of
//! `bentocache-testkit`; the suite is called at the end of this file, and
//! `cargo test -p examples --example ledger` runs it.
//!
//! `bentocache_driver` documents the contract that it implements. Namespaces, tags, grace, timeouts,
//! stampede protection and recovery are the engine's work.

// The output is for people.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

// A crate with a driver depends on `bentocache-driver` only; `bentocache::driver` is the same.
use bentocache::driver::{Capabilities, DriverError, ErrorKind, L2Driver};
use bentocache::{BentoCache, BoxError, Memory, Store};
use bytes::Bytes;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("cache.ledger");

    // Use it like any other driver.
    let cache = open(&path).await?;
    let capital = cache
        .get_or_set("capital:fr", |_| async { Ok::<_, BoxError>("Paris".to_owned()) })
        .ttl("1h")
        .await?;
    println!("asked the source: {capital}");
    cache.set("capital:de", "Bonn".to_owned()).await?;
    cache.set("capital:de", "Berlin".to_owned()).await?;
    cache.disconnect_all().await?;

    // Another process, say after a restart: its memory is empty, the ledger is not.
    let cache = open(&path).await?;
    for key in ["capital:fr", "capital:de"] {
        let capital: Option<String> = cache.get(key).await?;
        println!("after a restart, {key} is {capital:?}");
    }
    println!("the ledger has {} bytes", path.metadata()?.len());
    cache.prune().await?;
    println!("pruned, it has {} bytes", path.metadata()?.len());
    cache.disconnect_all().await?;
    Ok(())
}

async fn open(path: &Path) -> Result<BentoCache, bentocache::Error> {
    let store = Store::new().l1(Memory::new()).l2(Ledger::new(path));
    BentoCache::builder().store("ledger", store).build().await
}

// ------------------------------------------------------------------------------------------------
// 1. The type of the driver and its settings. The constructor does no I/O.

/// An L2 in one file, for one process at a time. Clones share the ledger.
#[derive(Clone)]
pub struct Ledger {
    path: PathBuf,
    /// `None` until `connect`.
    book: Arc<Mutex<Option<Book>>>,
}

impl Ledger {
    /// A ledger in this file. `connect` creates the file if it is missing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), book: Arc::default() }
    }

    /// Runs `work` on the book, on a thread that may block.
    ///
    /// The engine drops the future of a call that takes too long, and may then write the same key
    /// again. If the first call has not started by then, it must not overwrite the newer value, so it
    /// checks whether its caller still waits. A call that has started holds the lock and completes.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Book) -> io::Result<T> + Send + 'static,
    ) -> Result<T, DriverError> {
        let book = self.book.clone();
        let waiting = Arc::new(());
        let caller = Arc::downgrade(&waiting);
        let done = runtime()?
            .spawn_blocking(move || {
                let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
                if caller.strong_count() == 0 {
                    return Err(DriverError::new(ErrorKind::Timeout, "nobody waits any more"));
                }
                // An error says what was tried and what to do. Its kind tells the engine how to react: it
                // queues a change that failed as `Unavailable` and replays it.
                let Some(book) = book.as_mut() else {
                    return Err(DriverError::new(ErrorKind::Closed, "the ledger is not connected"));
                };
                work(book).map_err(|error| {
                    DriverError::unavailable("the ledger's file cannot be read or written", error)
                })
            })
            .await;
        drop(waiting);
        done.map_err(|error| DriverError::unavailable("the ledger was interrupted", error))?
    }
}

/// Where Tokio would panic, because there is no runtime, a driver returns an error. On the next runtime
/// it works again.
fn runtime() -> Result<tokio::runtime::Handle, DriverError> {
    tokio::runtime::Handle::try_current()
        .map_err(|_| DriverError::new(ErrorKind::Closed, "the ledger needs a Tokio runtime"))
}

// ------------------------------------------------------------------------------------------------
// 2. The contract. Keys arrive complete, with prefix and namespaces; values are opaque bytes.

impl L2Driver for Ledger {
    fn name(&self) -> &'static str {
        "ledger"
    }

    /// The atomic operations and the limits of the store. The suite tests each claim.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
            .with_atomic_pull()
            .with_atomic_compare()
            .with_max_key(MAX_KEY)
            .with_max_value(MAX_VALUE)
            .with_local()
    }

    /// Called by `build`. An error of the kind `Config` makes the build fail; any other error is
    /// logged, and the cache starts without the tier.
    async fn connect(&self) -> Result<(), DriverError> {
        let (path, book) = (self.path.clone(), self.book.clone());
        let open = runtime()?.spawn_blocking(move || {
            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
            if book.is_none() {
                *book = Some(Book::open(&path)?);
            }
            Ok::<_, io::Error>(())
        });
        let opened = open.await.unwrap_or_else(|error| Err(error.into()));
        opened.map_err(|error| {
            let message = format!("the ledger {} cannot be opened", self.path.display());
            DriverError::new(ErrorKind::Config, message).with_source(error)
        })
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let key = key.to_owned();
        self.run(move |book| book.get(&key)).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        refuse_what_is_too_large(key, &value)?;
        let key = key.to_owned();
        self.run(move |book| book.set(&key, &value, end(ttl))).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        let keys: Vec<_> = keys.iter().map(|&key| key.to_owned()).collect();
        self.run(move |book| {
            keys.iter().try_fold(0, |deleted, key| Ok(deleted + u64::from(book.delete(key)?)))
        })
        .await
    }

    /// The prefix is literal. All records in the file are our own, so an empty prefix may clear
    /// everything.
    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let prefix = prefix.to_owned();
        self.run(move |book| {
            let matching = book.index.range(prefix.clone()..).map(|(key, _)| key);
            let keys: Vec<_> =
                matching.take_while(|key| key.starts_with(&prefix)).cloned().collect();
            keys.iter().try_for_each(|key| book.delete(key).map(drop))
        })
        .await
    }

    // The methods above are required. The others have default bodies that are correct, but slower or
    // less atomic than this store. `set_many` and `keys` keep the default.

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        let keys: Vec<_> = keys.iter().map(|&key| key.to_owned()).collect();
        self.run(move |book| keys.iter().map(|key| book.get(key)).collect()).await
    }

    /// Two callers never both get the value: they hold the lock one after the other.
    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let key = key.to_owned();
        self.run(move |book| {
            let value = book.get(&key)?;
            book.delete(&key)?;
            Ok(value)
        })
        .await
    }

    /// One of two concurrent callers stores its value. The default body reads and writes in two steps.
    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        refuse_what_is_too_large(key, &value)?;
        let key = key.to_owned();
        self.run(move |book| {
            let is_free = book.get(&key)?.is_none();
            if is_free {
                book.set(&key, &value, end(ttl))?;
            }
            Ok(is_free)
        })
        .await
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        _remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        refuse_what_is_too_large(key, &value)?;
        let (key, expected) = (key.to_owned(), expected.to_owned());
        self.run(move |book| {
            let Some(end) = book.index.get(&key).map(|record| record.end) else { return Ok(false) };
            if book.get(&key)?.is_none_or(|current| current != expected) {
                return Ok(false);
            }
            book.set(&key, &value, end)?;
            Ok(true)
        })
        .await
    }

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        let key = key.to_owned();
        self.run(move |book| {
            let Some(value) = book.get(&key)? else { return Ok(false) };
            book.set(&key, &value, end(ttl))?;
            Ok(true)
        })
        .await
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.run(move |book| match book.get(&key)? {
            Some(current) if current == value => book.delete(&key),
            _ => Ok(false),
        })
        .await
    }

    /// Removes expired entries, and writes a new file without superseded records.
    async fn prune(&self) -> Result<u64, DriverError> {
        let path = self.path.clone();
        self.run(move |book| book.prune(&path)).await
    }
}

const MAX_KEY: usize = 1 << 20;
const MAX_VALUE: usize = 256 << 20;

/// A limit is an error that names it, not a truncated key.
fn refuse_what_is_too_large(key: &str, value: &[u8]) -> Result<(), DriverError> {
    let refused = |what, size, limit| {
        let message =
            format!("the ledger takes {what} of up to {limit} bytes; this one has {size}");
        Err(DriverError::new(ErrorKind::TooLarge, message))
    };
    match (key.len(), value.len()) {
        (size, _) if size > MAX_KEY => refused("keys", size, MAX_KEY),
        (_, size) if size > MAX_VALUE => refused("values", size, MAX_VALUE),
        _ => Ok(()),
    }
}

/// The expiry of an entry with this ttl, in milliseconds since 1970; [`NEVER`] without an expiry.
fn end(ttl: Option<Duration>) -> u64 {
    ttl.and_then(|ttl| now().checked_add(u64::try_from(ttl.as_millis()).ok()?)).unwrap_or(NEVER)
}

const NEVER: u64 = u64::MAX;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

// ------------------------------------------------------------------------------------------------
// 3. The store itself, which is independent of caches.

/// The file, and the position of the latest record of each key.
///
/// A record is a head of 24 bytes, the key, and the value. The head, in little endian: a checksum
/// of all that follows (u64), the end of the entry (u64; 0 marks a deletion), and the lengths of
/// the key and of the value (u32 each).
struct Book {
    file: File,
    index: BTreeMap<String, Record>,
    length: u64,
}

#[derive(Clone, Copy)]
struct Record {
    end: u64,
    value_at: u64,
    value_length: u32,
}

const HEAD: usize = 24;
/// Ends a key whose value was deleted. No entry ends in 1970.
const DELETED: u64 = 0;

impl Book {
    fn open(path: &Path) -> io::Result<Self> {
        let options = OpenOptions::new().read(true).append(true).create(true).clone();
        let mut book = Self { file: options.open(path)?, index: BTreeMap::new(), length: 0 };
        book.read_all()?;
        // A killed process may have left a partial record. It is truncated, or its bytes would be read
        // as the head of the next record.
        book.file.set_len(book.length)?;
        Ok(book)
    }

    fn read_all(&mut self) -> io::Result<()> {
        let mut file = BufReader::new(self.file.try_clone()?);
        while let Some((end, key, value_length)) = read_record(&mut file)? {
            let value_at = self.length + (HEAD + key.len()) as u64;
            self.length = value_at + u64::from(value_length);
            if end == DELETED {
                self.index.remove(&key);
            } else {
                self.index.insert(key, Record { end, value_at, value_length });
            }
        }
        Ok(())
    }

    fn get(&mut self, key: &str) -> io::Result<Option<Bytes>> {
        let Some(record) = self.index.get(key) else { return Ok(None) };
        if record.end <= now() {
            return Ok(None);
        }
        let mut value = vec![0; record.value_length as usize];
        self.file.seek(SeekFrom::Start(record.value_at))?;
        self.file.read_exact(&mut value)?;
        Ok(Some(value.into()))
    }

    fn set(&mut self, key: &str, value: &[u8], end: u64) -> io::Result<()> {
        self.append(key, value, end)?;
        let value_length = value.len() as u32;
        let value_at = self.length - u64::from(value_length);
        self.index.insert(key.to_owned(), Record { end, value_at, value_length });
        Ok(())
    }

    /// Returns whether the key existed.
    fn delete(&mut self, key: &str) -> io::Result<bool> {
        let Some(end) = self.index.get(key).map(|record| record.end) else { return Ok(false) };
        self.append(key, &[], DELETED)?;
        self.index.remove(key);
        Ok(end > now())
    }

    fn append(&mut self, key: &str, value: &[u8], end: u64) -> io::Result<()> {
        let mut record = Vec::with_capacity(HEAD + key.len() + value.len());
        record.extend(0_u64.to_le_bytes());
        record.extend(end.to_le_bytes());
        record.extend((key.len() as u32).to_le_bytes());
        record.extend((value.len() as u32).to_le_bytes());
        record.extend(key.as_bytes());
        record.extend(value);
        let sum = checksum(record[8..].iter());
        record[..8].copy_from_slice(&sum.to_le_bytes());
        if let Err(error) = self.file.write_all(&record) {
            // The next record must not follow a partial one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += record.len() as u64;
        Ok(())
    }

    fn prune(&mut self, path: &Path) -> io::Result<u64> {
        let now = now();
        let before = self.index.len();
        self.index.retain(|_, record| record.end > now);
        let gone = before - self.index.len();
        // Write a new file, then rename it: a process that is killed meanwhile leaves one of the two.
        let new_path = path.with_extension("new");
        match std::fs::remove_file(&new_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut new = Self::open(&new_path)?;
        for (key, record) in self.index.clone() {
            if let Some(value) = self.get(&key)? {
                new.set(&key, &value, record.end)?;
            }
        }
        std::fs::rename(&new_path, path)?;
        *self = new;
        Ok(gone as u64)
    }
}

/// Reads the next record: its expiry, its key and the length of its value. `None` at the end of the
/// file, or before a partial or corrupt record.
fn read_record(file: &mut impl Read) -> io::Result<Option<(u64, String, u32)>> {
    let mut head = [0; HEAD];
    let read = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    };
    if !read(file.read_exact(&mut head))? {
        return Ok(None);
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, e0, e1, e2, e3, e4, e5, e6, e7, ..] = head;
    let sum = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let end = u64::from_le_bytes([e0, e1, e2, e3, e4, e5, e6, e7]);
    let [.., k0, k1, k2, k3, v0, v1, v2, v3] = head;
    let key_length = u32::from_le_bytes([k0, k1, k2, k3]);
    let value_length = u32::from_le_bytes([v0, v1, v2, v3]);
    // `take` prevents a corrupt length from allocating more memory than the file has bytes.
    let mut rest = Vec::new();
    let length = u64::from(key_length) + u64::from(value_length);
    file.take(length).read_to_end(&mut rest)?;
    if rest.len() as u64 != length || checksum(head[8..].iter().chain(&rest)) != sum {
        return Ok(None);
    }
    rest.truncate(key_length as usize);
    Ok(String::from_utf8(rest).ok().map(|key| (end, key, value_length)))
}

/// FNV-1a. It detects accidental damage, not tampering.
fn checksum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

// ------------------------------------------------------------------------------------------------
// 4. The tests. In a crate of its own this would be a file under `tests/`.

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_runs_to_its_end() {
        main().unwrap();
    }

    // One `#[test]` for each case of the suite that all drivers of the project pass.
    bentocache_testkit::l2_suite! {
        // Evaluated for each test: a ledger of its own. Every call of the closure opens one more
        // driver on the same data.
        open = {
            let directory = tempfile::tempdir().unwrap();
            let ledger = Ledger::new(directory.path().join("test.ledger"));
            async move || {
                let _until_the_test_ends = &directory;
                ledger.clone()
            }
        },
        // Operations with a default body, and that there is no server. Their cases are shown as
        // ignored.
        without = [keys, link],
    }

    // Tests of properties that only this driver has.

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.ledger");
        let ledger = Ledger::new(&path);
        ledger.connect().await.unwrap();
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
            ledger.set(key, value.into(), None).await.unwrap();
        }
        ledger.delete(&["b"]).await.unwrap();

        let again = Ledger::new(&path);
        again.connect().await.unwrap();
        assert_eq!(again.get_many(&["a", "b"]).await.unwrap(), [Some("3".into()), None]);
    }

    #[tokio::test]
    async fn half_a_record_at_the_end_costs_that_record_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.ledger");
        let ledger = Ledger::new(&path);
        ledger.connect().await.unwrap();
        ledger.set("a", "1".into(), None).await.unwrap();
        let whole = path.metadata().unwrap().len();
        ledger.set("b", "2".into(), None).await.unwrap();
        drop(ledger);
        let written = std::fs::read(&path).unwrap();
        for cut in whole as usize..written.len() {
            std::fs::write(&path, &written[..cut]).unwrap();
            let again = Ledger::new(&path);
            again.connect().await.unwrap();
            assert_eq!(again.get_many(&["a", "b"]).await.unwrap(), [Some("1".into()), None]);
            again.set("c", "3".into(), None).await.unwrap();
            assert_eq!(again.get("c").await.unwrap(), Some("3".into()));
        }
    }

    #[tokio::test]
    async fn pruning_gives_the_space_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.ledger");
        let ledger = Ledger::new(&path);
        ledger.connect().await.unwrap();
        for n in 0..100 {
            ledger.set("a", n.to_string().into(), None).await.unwrap();
        }
        let before = path.metadata().unwrap().len();
        assert_eq!(ledger.prune().await.unwrap(), 0);
        assert!(path.metadata().unwrap().len() * 50 < before);
        assert_eq!(ledger.get("a").await.unwrap(), Some("99".into()));
        ledger.set("b", "1".into(), None).await.unwrap();
        assert_eq!(ledger.get("b").await.unwrap(), Some("1".into()));
    }
}
