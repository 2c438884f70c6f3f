//! Evicts the oldest entries.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use bentocache_driver::{DriverError, ErrorKind};

use crate::dir::Dir;
use crate::error::{failed, is_absent, is_missing};
use crate::layout::SHARDS;
use crate::limit::on_disk;

/// The most files that are removed while the lock is held once.
const BATCH: usize = 64;

/// One entry: its time of writing and its size on disk.
struct Entry {
    written: SystemTime,
    size: u64,
}

impl Dir {
    /// Makes room before a write. Other processes that write at the same time may exceed the limit.
    pub(crate) fn make_room(&self, bytes: u64) -> Result<(), DriverError> {
        let Some(limit) = &self.limit else { return Ok(()) };
        if bytes > limit.most() / 4 {
            let most = limit.most() / 4;
            let message = format!(
                "file cache: an entry of {bytes} bytes; the limit is a quarter of max_size, {most} \
                 bytes: raise max_size, or do not cache it"
            );
            return Err(DriverError::new(ErrorKind::TooLarge, message));
        }
        // This happens only if the scan in the background is too slow.
        let size = on_disk(bytes);
        if limit.written.load(Relaxed).saturating_add(size) >= 2 * limit.step() {
            self.evict(size, || false)?;
        }
        limit.note(bytes);
        Ok(())
    }

    /// Removes the oldest entries until eight tenths of the limit are in use, if the entries and
    /// `room` more bytes exceed nine tenths. Ends early if `stop` returns true.
    pub(crate) fn evict(&self, room: u64, stop: impl Fn() -> bool) -> Result<(), DriverError> {
        let Some(limit) = &self.limit else { return Ok(()) };
        let _looking = limit.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let written = limit.written.load(Relaxed);
        if written.saturating_add(room) < limit.step() {
            // Another thread has scanned meanwhile.
            return Ok(());
        }
        let tenth = limit.most() / 10;
        let (total, mut entries) = self.sizes(&stop)?;
        if total.saturating_add(room) > 9 * tenth {
            entries.sort_unstable_by_key(|entry| entry.written);
            let mut excess = total.saturating_add(room).saturating_sub(8 * tenth);
            let goes = |entry: &&Entry| {
                let goes = excess > 0;
                excess = excess.saturating_sub(entry.size);
                goes
            };
            if let Some(last) = entries.iter().take_while(goes).last() {
                let removed = self.remove_until(last.written, &stop)?;
                tracing::debug!(removed, total, "made room in the file cache");
            }
        }
        limit.written.fetch_sub(written, Relaxed);
        Ok(())
    }

    fn sizes(&self, stop: &impl Fn() -> bool) -> Result<(u64, Vec<Entry>), DriverError> {
        let (mut total, mut entries) = (0, Vec::new());
        for shard in 0..SHARDS {
            for path in self.entries(shard)? {
                if stop() {
                    return Ok((0, Vec::new()));
                }
                if let Some(entry) = entry(&path)? {
                    total += entry.size;
                    entries.push(entry);
                }
            }
        }
        Ok((total, entries))
    }

    /// Removes the entries that were written until then, and returns their number.
    fn remove_until(&self, last: SystemTime, stop: &impl Fn() -> bool) -> Result<u64, DriverError> {
        let is_old = |path: &Path| Ok(entry(path)?.is_some_and(|entry| entry.written <= last));
        let mut removed = 0;
        for shard in 0..SHARDS {
            let mut old = Vec::new();
            for path in self.entries(shard)? {
                if is_old(&path)? {
                    old.push(path);
                }
            }
            for batch in old.chunks(BATCH) {
                if stop() {
                    return Ok(removed);
                }
                let _lock = match self.lock(shard) {
                    Err(error) if is_missing(&error) => break,
                    lock => lock?,
                };
                for path in batch {
                    // A newer entry may have replaced it.
                    if is_old(path)? && self.remove(path)? {
                        removed += 1;
                    }
                }
            }
        }
        Ok(removed)
    }
}

/// `None` if it is gone or not a file.
fn entry(path: &Path) -> Result<Option<Entry>, DriverError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Ok(None),
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(failed("look at", path, error)),
    };
    let written = metadata.modified().map_err(|error| failed("look at", path, error))?;
    Ok(Some(Entry { written, size: on_disk(metadata.len()) }))
}
