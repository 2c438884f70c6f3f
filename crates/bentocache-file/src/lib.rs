//! A directory as L2 of Bentocache, shared by the processes of one machine.
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
//! Use it with `Store::new().l2(File::new("./cache"))`, mostly below an L1 in memory. Any number of
//! processes may use the same directory at once; it should be on a local disk, because the advisory
//! locks of network file systems differ.
//!
//! # What holds
//!
//! - A reader sees a complete value or none. A value is written to a temporary file in the same
//!   directory and renamed, so a process that is killed at any point leaves the old value or the
//!   new one.
//! - [`pull`](L2Driver::pull) returns a value to one caller only, [`update`](L2Driver::update) and
//!   [`delete_if`](L2Driver::delete_if) are atomic, and the removal of an expired file never
//!   removes a newer one; all of this also between processes. Writers of one of the 256 parts of
//!   the directory wait for each other for at most 2 seconds; only a suspended process or a hung
//!   disk makes that a [timeout](ErrorKind::Timeout). Readers never wait.
//! - A call whose future is dropped is executed completely or not at all; a `set` or `pull` that
//!   has not started by then is not executed.
//! - After a power failure a file may be torn, unless [`durable`](File::durable) is on. A torn,
//!   corrupt or foreign file in an entry's place is detected by its checksum or its key, is a miss,
//!   and is removed.
//! - Keys may contain any character and be up to 1 MiB long; their hash is the name of the file.
//!   Only the file system limits values.
//! - Files and directories with other names than those below are never touched, not even by
//!   `clear("")`, and symbolic links are not followed out of the directory. (The directory itself
//!   may be a link.)
//!
//! Expired files are removed when their key is read, by [`prune`](L2Driver::prune), and every
//! [`prune_interval`](File::prune_interval). Expiry times are those of the wall clock.
//! [`max_size`](File::max_size) limits the total size. Files get the permissions that the process
//! gives new files: set its umask, or the permissions of the directory, if others must not read
//! values.
//!
//! # The files
//!
//! The SHA-256 of the key in lower-case hexadecimal is the path: the first two digits are the
//! directory, the others the file.
//!
//! ```text
//! cache/ab/cdef….bento       an entry
//! cache/ab/0123….bento-tmp   being written; of a dead writer when over an hour old
//! cache/ab/.bento-lock       empty; locked while ab is changed, and kept for good
//! ```
//!
//! The layout of an entry; numbers are little-endian, checksums CRC-32 (IEEE 802.3):
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

/// The driver: a directory of files. The [crate's page](crate) lists its guarantees.
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
    /// A driver on `directory`, which [`connect`](L2Driver::connect) creates if it is missing.
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

    /// How often to remove expired files in the background, such as `"1h"`; the first time is one
    /// interval after [`connect`](L2Driver::connect). It ends with
    /// [`disconnect`](L2Driver::disconnect) or the drop of the driver. `"off"` or `None`, the
    /// default, leaves it to calls of [`prune`](L2Driver::prune). If the interval is 0
    /// or an invalid text, `connect` fails with [`ErrorKind::Config`]. After an invalid text, every
    /// call fails with it too.
    #[must_use]
    pub fn prune_interval(mut self, interval: impl Into<TimeSpan>) -> Self {
        self.errors.set(&mut self.prune_interval, interval.into().limit("prune_interval"));
        self
    }

    /// Whether a write returns only after its bytes are on the disk, so that it survives a power
    /// failure. Default false: it costs some milliseconds per write, and an entry that is lost in a
    /// power failure is only a miss.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        let dir = Dir::new(self.dir.root().to_owned()).durable(durable);
        self.dir = Arc::new(dir.limited(self.dir.max_size()));
        self
    }

    /// The largest size of all files together: a number of bytes or a text such as `"10gb"`.
    /// Default: no limit; at least 1 MiB. A file counts in blocks of 4 KiB, and may take a quarter
    /// of the limit. Near the limit the oldest files are removed, expired or not. The driver scans
    /// all files in the background after this process has written a twentieth of the limit, and in
    /// [`prune`](L2Driver::prune). Each further process that writes at the same time may exceed the
    /// limit by a tenth. An invalid text is an [`ErrorKind::Config`] of `connect` or of the first
    /// call.
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
        // Whether a thread has started the work.
        let begun = Arc::new(AtomicBool::new(false));
        let has_begun = Arc::clone(&begun);
        let work = call::run(move |caller| {
            has_begun.store(true, Relaxed);
            let done = work(&dir, caller);
            if dir.limit.as_ref().is_some_and(Limit::is_due) {
                // Nobody waits for it; the next write continues an incomplete eviction.
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
            .with_local()
    }

    fn identity(&self) -> Option<String> {
        let root = self.dir.root();
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        Some(format!("file {}", root.display()))
    }

    /// Creates the directory, and checks that files can be written and locked there.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if that is impossible, if the prune interval is zero, or if an option
    /// is invalid.
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

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        let key = key.to_owned();
        self.run(move |dir, _| dir.touch(&key, ttl)).await
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

    /// Ends the background task. The driver has no other resources, so other calls still work.
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

    /// One thread, so that one blocked call blocks all others.
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
            // Like a disk that does not answer.
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
