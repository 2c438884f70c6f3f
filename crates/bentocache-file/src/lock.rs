//! The lock of a shard: a mutex between threads, an advisory file lock between processes. Every
//! change of an entry's file holds it. It ends with its process.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError as TryMutexError};
use std::time::{Duration, Instant};

use bentocache_driver::kit::Backoff;
use bentocache_driver::{DriverError, ErrorKind};

use crate::error::failed;
use crate::layout::LOCK_FILE;

/// Longer than any holder needs; only a suspended process or a hung disk reaches it.
const WAIT: Duration = Duration::from_secs(2);

/// Pauses between attempts. The lock is mostly held for microseconds.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// The held lock of one shard's directory.
#[derive(Debug)]
pub(crate) struct Lock<'a> {
    file: fs::File,
    _gate: MutexGuard<'a, ()>,
}

impl<'a> Lock<'a> {
    /// Waits for the lock of the directory `shard`; `gate` is the same for all threads.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if another process holds it too long.
    pub(crate) fn acquire(shard: &Path, gate: &'a Mutex<()>) -> Result<Self, DriverError> {
        let deadline = Instant::now() + WAIT;
        // Every thread ahead of this one has its own deadline, and after its own deadline this
        // thread tries only once, so the waits of a queue do not add up.
        let gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let path = shard.join(LOCK_FILE);
        let file = open(&path).map_err(|error| failed("open the lock", &path, error))?;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file, _gate: gate }),
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path, error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(DriverError::new(
                        ErrorKind::Timeout,
                        format!(
                            "file cache: another process has held {} for {WAIT:?}: see whether \
                             it is suspended or its disk hangs",
                            path.display()
                        ),
                    ));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(backoff.next_pause()),
            }
        }
    }

    /// The lock, if it is free and nothing fails.
    pub(crate) fn try_acquire(shard: &Path, gate: &'a Mutex<()>) -> Option<Self> {
        let gate = match gate.try_lock() {
            Ok(gate) => gate,
            Err(TryMutexError::Poisoned(gate)) => gate.into_inner(),
            Err(TryMutexError::WouldBlock) => return None,
        };
        let file = open(&shard.join(LOCK_FILE)).ok()?;
        file.try_lock().ok()?;
        Some(Self { file, _gate: gate })
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Closing the file releases the lock only if no child process that is being started shares
        // the file.
        let _ = self.file.unlock();
    }
}

/// Opens or creates the file without following a link.
fn open(path: &Path) -> io::Result<fs::File> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => OpenOptions::new().write(true).open(path),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match OpenOptions::new().write(true).create_new(true).open(path) {
                // Another process was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    OpenOptions::new().write(true).open(path)
                }
                opened => opened,
            }
        }
        Err(error) => Err(error),
    }
}
