//! A directory as the second tier of Bentocache, shared by the processes of one machine.
//!
//! ```
//! use std::time::Duration;
//!
//! use bentocache_driver::{DriverError, L2Driver};
//! use bentocache::file::File;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), DriverError> {
//! # let directory = std::env::temp_dir().join(format!("bentocache-doc-{}", std::process::id()));
//! let files = File::new(&directory).prune_interval("1h");
//! files.connect().await?;
//!
//! files.set("app:user:42", "Ada".into(), Some(Duration::from_secs(60))).await?;
//! assert_eq!(files.get("app:user:42").await?, Some("Ada".into()));
//!
//! files.clear("app:").await?;
//! assert_eq!(files.get("app:user:42").await?, None);
//!
//! files.disconnect().await?;
//! # std::fs::remove_dir_all(&directory).ok();
//! # Ok(()) }
//! ```
//!
//! It is used with `Store::new().l2(File::new("./cache"))`, mostly below a first tier in memory.
//! Any number of processes may use the same directory at once; it should be on a local disk,
//! because the advisory locks of network file systems differ.
//!
//! # What holds
//!
//! - A reader sees a complete value or none. A value is written to a temporary file beside its
//!   place and renamed, so a process killed at any point leaves the old value or the new one.
//! - [`pull`](L2Driver::pull) hands a value to one caller only, [`update`](L2Driver::update) and
//!   [`delete_if`](L2Driver::delete_if) compare and act in one step, and removing an expired file
//!   never takes a newer one along; all of it also between processes. Writers of one of the 256
//!   parts of the directory wait for each other, 2 seconds at most, which only a suspended process
//!   or a hung disk makes a [timeout](ErrorKind::Timeout); readers wait for nobody.
//! - A call whose future is dropped is done wholly or not at all; a `set` or `pull` that has not
//!   come to its turn by then is not done.
//! - After a power failure a file may be torn, unless [`durable`](File::durable) is on. A torn,
//!   corrupt or foreign file at the place of an entry is found by its checksum or its key, is a
//!   miss, and is removed.
//! - Keys may hold anything and be up to 1 MiB long; their hash names the file. Values have no
//!   limit but the file system's.
//! - Files and directories whose names are not those below are never touched, also not by
//!   `clear("")`, and symbolic links are not followed out of the directory. (The directory itself
//!   may be a link.)
//!
//! Expired files are removed when somebody asks for their key, by [`prune`](L2Driver::prune), and
//! every [`prune_interval`](File::prune_interval). The end of an entry is a time of the wall clock.
//! The total size is not limited. Files get the permissions that the process gives new files: set
//! its umask, or those of the directory, where values must not be read by others.
//!
//! # The files
//!
//! The SHA-256 of the key in lower-case hexadecimal gives the place: the first two digits name the
//! directory, the others the file.
//!
//! ```text
//! cache/ab/cdef….bento       an entry
//! cache/ab/0123….bento-tmp   being written; of a dead writer when over an hour old
//! cache/ab/.bento-lock       empty; locked while ab is changed, and kept for good
//! ```
//!
//! An entry, numbers in little endian, checksums CRC-32 (IEEE 802.3):
//!
//! ```text
//!  0   8 bytes  "bentofs" and the format's version, 1
//!  8   u64      expiry in milliseconds since 1970, or 2^64 - 1 for never
//! 16   u64      length of the value
//! 24   u32      length of the key
//! 28   u32      checksum of the value
//! 32   u32      checksum of bytes 0 to 31 and of the key
//! 36            the key, then the value
//! ```

mod call;
mod dir;
mod error;
mod evict;
mod format;
mod keys;
mod layout;
mod limit;
mod lock;
mod prune;
mod read;
mod sweep;
mod write;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bentocache_driver::{
    ByteSize, Capabilities, DriverError, ErrorKind, KeyStream, L2Driver, LastTrouble, LinkProbe,
    LinkStream, OptionErrors, TimeSpan, Write,
};
use bytes::Bytes;

use crate::call::Caller;
use crate::dir::Dir;
use crate::keys::Keys;
use crate::limit::Limit;
use crate::prune::Pruning;

/// The driver: a directory of files. See the [crate's page](crate) for what it guarantees.
///
/// Dropping it ends the background task of [`prune_interval`](File::prune_interval).
#[derive(Debug)]
pub struct File {
    dir: Arc<Dir>,
    prune_interval: Option<Duration>,
    errors: OptionErrors,
    pruning: Mutex<Option<Pruning>>,
    probe: LinkProbe,
    trouble: LastTrouble,
}

impl File {
    /// A store in `directory`, which [`connect`](L2Driver::connect) creates if it is missing.
    ///
    /// A relative path is resolved now, against the current directory of the process.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        let root = std::path::absolute(&directory).unwrap_or(directory);
        Self {
            dir: Arc::new(Dir::new(root)),
            prune_interval: None,
            errors: OptionErrors::default(),
            pruning: Mutex::new(None),
            probe: LinkProbe::default(),
            trouble: LastTrouble::default(),
        }
    }

    /// Removes expired files this often in the background, for the first time one interval after
    /// [`connect`](L2Driver::connect), until [`disconnect`](L2Driver::disconnect) or the drop of
    /// the driver. `None`, the default, leaves it to calls of [`prune`](L2Driver::prune).
    #[must_use]
    pub fn prune_interval(mut self, interval: impl Into<TimeSpan>) -> Self {
        self.errors.set(&mut self.prune_interval, interval.into().limit("prune_interval"));
        self
    }

    /// Whether a write returns only after its bytes are on the disk, so that it also survives a
    /// power failure. Off by default: it costs some milliseconds a write, and what a cache loses
    /// in a power failure is a miss.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        let dir = Dir::new(self.dir.root().to_owned()).durable(durable);
        self.dir = Arc::new(dir.limited(self.dir.max_size()));
        self
    }

    /// The largest size of all files together, in bytes; none by default, and 1 MiB at least. A file counts in blocks of
    /// 4 KiB, and may have a quarter of the limit. The files that were written first are removed when
    /// the limit comes near, expired or not. The driver looks at all files in the background when this
    /// process has written a twentieth of the limit since it last did, and in
    /// [`prune`](L2Driver::prune). So for each further process that writes at the same time there may
    /// be a tenth more.
    #[must_use]
    pub fn max_size(mut self, size: impl Into<ByteSize>) -> Self {
        let mut limit = self.dir.max_size();
        self.errors.set(&mut limit, size.into().bytes("max_size").map(Some));
        let dir = Dir::new(self.dir.root().to_owned()).durable(self.dir.is_durable());
        self.dir = Arc::new(dir.limited(limit));
        self
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Dir, &Caller) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        self.errors.check("file cache")?;
        let dir = Arc::clone(&self.dir);
        let probe = move || {
            let dir = Arc::clone(&dir);
            call::run(move |_| dir.try_write())
        };
        let dir = Arc::clone(&self.dir);
        // Whether a thread has begun with it.
        let begun = Arc::new(AtomicBool::new(false));
        let has_begun = Arc::clone(&begun);
        let work = call::run(move |caller| {
            has_begun.store(true, Relaxed);
            let done = work(&dir, caller);
            if dir.limit.as_ref().is_some_and(Limit::is_due) {
                // Nobody waits for it; what it does not do, the next write does.
                let _ = call::spawn(move || dir.evict(0, || false));
            }
            done
        });
        let work = self.probe.watch(work, probe);
        self.trouble.watch(work, || Some(self.dir.obstacle(begun.load(Relaxed)))).await
    }

    fn replace_pruning(&self, next: Option<Pruning>) -> Option<Pruning> {
        let mut pruning = self.pruning.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut pruning, next)
    }
}

impl L2Driver for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
            .with_atomic_pull()
            .with_atomic_compare()
            .with_max_key(format::MAX_KEY)
    }

    /// Creates the directory and tries whether files can be written and locked there.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when that cannot work, or when the prune interval is zero.
    async fn connect(&self) -> Result<(), DriverError> {
        if self.prune_interval == Some(Duration::ZERO) {
            return Err(DriverError::new(
                ErrorKind::Config,
                "file cache: a prune interval of zero; leave it out to turn it off",
            ));
        }
        self.run(|dir, _| dir.open()).await?;
        let pruning = match self.prune_interval {
            Some(interval) => Some(Pruning::start(Arc::clone(&self.dir), interval)?),
            None => None,
        };
        self.replace_pruning(pruning);
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let key = key.to_owned();
        self.run(move |dir, _| dir.get(&key)).await
    }

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        let keys = owned(keys);
        self.run(move |dir, caller| {
            keys.iter().map(|key| caller.still_waits().and_then(|()| dir.get(key))).collect()
        })
        .await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        let key = key.to_owned();
        self.run(move |dir, caller| dir.set(&key, &value, ttl, caller)).await
    }

    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        let writes: Vec<_> =
            writes.iter().map(|w| (w.key.to_owned(), w.value.clone(), w.ttl)).collect();
        self.run(move |dir, caller| {
            writes.iter().try_for_each(|(key, value, ttl)| dir.set(key, value, *ttl, caller))
        })
        .await
    }

    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let key = key.to_owned();
        self.run(move |dir, caller| dir.insert(&key, &value, ttl, caller)).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        let keys = owned(keys);
        self.run(move |dir, _| {
            keys.iter().try_fold(0, |deleted, key| Ok(deleted + u64::from(dir.delete(key)?)))
        })
        .await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let prefix = prefix.to_owned();
        self.run(move |dir, _| dir.clear(&prefix)).await
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let key = key.to_owned();
        self.run(move |dir, caller| dir.pull(&key, caller)).await
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        _remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let (key, expected) = (key.to_owned(), expected.to_owned());
        self.run(move |dir, _| dir.update(&key, &expected, &value)).await
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.run(move |dir, _| dir.delete_if(&key, &value)).await
    }

    async fn prune(&self) -> Result<u64, DriverError> {
        self.run(|dir, _| dir.prune(|| false)).await
    }

    fn link(&self) -> Option<LinkStream> {
        Some(self.probe.reports())
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.recent()
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        Box::pin(Keys::new(Arc::clone(&self.dir), prefix))
    }

    /// Ends the background task. The driver holds nothing else, so other calls go on working.
    async fn disconnect(&self) -> Result<(), DriverError> {
        match self.replace_pruning(None) {
            Some(pruning) => pruning.stop().await,
            None => Ok(()),
        }
    }
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    /// One thread, so that whatever blocks it blocks all.
    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).max_blocking_threads(1).enable_all().build().expect("a runtime")
    }

    #[tokio::test]
    async fn options_take_texts() {
        let file = File::new("cache").prune_interval("1h").max_size("4mb");
        assert_eq!(file.prune_interval, Some(Duration::from_secs(3600)));
        assert_eq!(file.dir.max_size(), Some(4 << 20));
        assert_eq!(file.prune_interval("off").prune_interval, None);
        assert_eq!(File::new("cache").max_size(1 << 20).dir.max_size(), Some(1 << 20));
    }

    #[tokio::test]
    async fn a_bad_text_fails_connect_and_the_first_call() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = || File::new(directory.path().join("cache"));
        for (file, named) in [
            (file().prune_interval("soon"), "`prune_interval`: cannot use \"soon\""),
            (file().prune_interval("-1h"), "`prune_interval`: cannot use \"-1h\""),
            (file().max_size("ten").max_size("1gb"), "`max_size`: cannot use \"ten\""),
            (file().max_size(-1), "`max_size`: cannot use \"-1\""),
        ] {
            for error in [file.connect().await.unwrap_err(), file.get("a").await.unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::Config);
                assert!(error.to_string().contains(named), "{error}");
            }
        }
        assert!(!directory.path().join("cache").exists());
    }

    #[test]
    fn a_call_that_is_cut_leaves_what_it_was_waiting_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = File::new(directory.path());
        let (go_on, gate) = mpsc::channel::<()>();
        runtime().block_on(async {
            let begun = Arc::new(tokio::sync::Notify::new());
            let begins = Arc::clone(&begun);
            // As a disk that does not answer.
            let work = file.run(move |_, _| {
                begins.notify_one();
                let _ = gate.recv();
                Ok(())
            });
            let mut work = Box::pin(work);
            tokio::select! {
                _ = &mut work => panic!("it is held up"),
                () = begun.notified() => {}
            }
            assert_eq!(file.trouble(), None);
            assert!(timeout(SHORT, file.get("a")).await.is_err());
            let why = file.trouble().expect("no thread is free");
            assert!(why.contains("max_blocking_threads"), "{why}");
            drop(work);
            let why = file.trouble().expect("the disk has not answered");
            assert!(why.contains("disk"), "{why}");
            go_on.send(()).expect("it waits");
            file.get("a").await.expect("it goes on");
            assert_eq!(file.trouble(), None);
        });
    }

    #[test]
    fn a_call_that_is_cut_while_it_waits_for_a_lock_says_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = File::new(directory.path());
        runtime().block_on(async {
            file.set("a", "1".into(), None).await.expect("set");
            let shard = layout::Place::of(directory.path(), "a").expect("a place").shard;
            let lock = file.dir.lock(shard).expect("the lock");
            let mut set = Box::pin(file.set("a", "2".into(), None));
            while !file.dir.waits_for_lock() {
                let _ = timeout(Duration::from_millis(1), &mut set).await;
            }
            drop(set);
            let why = file.trouble().expect("the lock is held");
            assert!(why.contains("holds a lock") && why.contains("suspended"), "{why}");
            drop(lock);
            file.set("a", "3".into(), None).await.expect("set");
            assert_eq!(file.trouble(), None);
        });
    }
}
