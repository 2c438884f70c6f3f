//! The operations on all entries: shard by shard, headers only.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bentocache_driver::DriverError;

use crate::dir::Dir;
use crate::error::{failed, is_absent, is_missing};
use crate::format::now;
use crate::layout::{Kind, Place, SHARDS, shard_path};
use crate::read::{self, Found};

/// No writer takes this long; a writer that does, because it was suspended, writes again if its
/// temporary file is gone.
const DEAD_AFTER: Duration = Duration::from_secs(3600);

/// The most files that are removed while the lock is held once.
const BATCH: usize = 64;

impl Dir {
    /// Removes the entries whose key starts with `prefix`, and dead files.
    pub(crate) fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.sweep(|key| key.starts_with(prefix), || false).map(drop)
    }

    /// Removes expired entries, incomplete files and leftovers of dead writers, and then the
    /// entries above the size limit; returns the number of expired ones. Calls `stop` now and then.
    pub(crate) fn prune(&self, stop: impl Fn() -> bool) -> Result<u64, DriverError> {
        let expired = self.sweep(|_| false, &stop)?;
        if let Some(limit) = &self.limit {
            limit.note(limit.most());
        }
        self.evict(0, stop)?;
        Ok(expired)
    }

    /// The keys of the live entries of a shard that start with `prefix`.
    pub(crate) fn keys(&self, shard: usize, prefix: &str) -> Result<Vec<String>, DriverError> {
        let mut keys = Vec::new();
        for path in self.entries(shard)? {
            if let Found::Live(key) = self.key_at(&path)?
                && key.starts_with(prefix)
            {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Continues after an error, and reports the last one.
    fn sweep(
        &self,
        doomed: impl Fn(&str) -> bool,
        stop: impl Fn() -> bool,
    ) -> Result<u64, DriverError> {
        let mut swept = Swept::default();
        swept.note(remove_dead_temporaries(self.root()));
        for shard in 0..SHARDS {
            self.sweep_shard(shard, &doomed, &stop, &mut swept);
        }
        swept.failed.map_or(Ok(swept.expired), Err)
    }

    fn sweep_shard(
        &self,
        shard: usize,
        doomed: &impl Fn(&str) -> bool,
        stop: &impl Fn() -> bool,
        swept: &mut Swept,
    ) {
        let goes = |found: &Found<String>| match found {
            Found::Live(key) => doomed(key),
            Found::Expired | Found::Foreign => true,
            Found::Nothing => false,
        };
        // Checked without the lock, so that writers wait only for actual removals.
        let mut candidates = Vec::new();
        for path in swept.note(self.entries(shard)).unwrap_or_default() {
            if stop() {
                return;
            }
            if swept.note(self.key_at(&path)).is_some_and(|found| goes(&found)) {
                candidates.push(path);
            }
        }
        for batch in candidates.chunks(BATCH) {
            let Some(_lock) = swept.note(self.lock(shard)) else { return };
            for path in batch {
                // Another process may have written a newer file meanwhile.
                let Some(found) = swept.note(self.key_at(path)) else { continue };
                if goes(&found) && swept.note(self.remove(path)) == Some(true) {
                    swept.expired += u64::from(matches!(found, Found::Expired));
                }
            }
        }
        let shard = shard_path(self.root(), shard);
        if !stop() && self.is_shard(&shard) {
            swept.note(remove_dead_temporaries(&shard));
        }
    }

    /// The files of a shard with an entry's name.
    pub(crate) fn entries(&self, shard: usize) -> Result<Vec<PathBuf>, DriverError> {
        let shard = shard_path(self.root(), shard);
        if !self.is_shard(&shard) {
            return Ok(Vec::new());
        }
        let names = names(&shard, Kind::Entry).map_err(|error| failed("list", &shard, error))?;
        Ok(names.into_iter().map(|name| shard.join(name)).collect())
    }

    /// An entry in the wrong place for its key, such as a copy, is foreign.
    fn key_at(&self, path: &Path) -> Result<Found<String>, DriverError> {
        let found = read::key(path, now()).map_err(|error| failed("read", path, error))?;
        Ok(match found {
            Found::Live(key) if Place::of(self.root(), &key)?.path != path => Found::Foreign,
            found => found,
        })
    }
}

/// The progress of a sweep.
#[derive(Debug, Default)]
struct Swept {
    expired: u64,
    failed: Option<DriverError>,
}

impl Swept {
    /// Records the error and continues. A file that is gone already needs no removal.
    fn note<T>(&mut self, result: Result<T, DriverError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if !is_missing(&error) {
                    self.failed = Some(error);
                }
                None
            }
        }
    }
}

fn remove_dead_temporaries(directory: &Path) -> Result<(), DriverError> {
    let names =
        names(directory, Kind::Temporary).map_err(|error| failed("list", directory, error))?;
    for path in names.into_iter().map(|name| directory.join(name)) {
        let age = fs::symlink_metadata(&path)
            .and_then(|metadata| metadata.modified())
            .map(|modified| SystemTime::now().duration_since(modified).unwrap_or_default());
        if age.is_ok_and(|age| age > DEAD_AFTER) {
            match fs::remove_file(&path) {
                Err(error) if !is_absent(&error) && !path.is_dir() => {
                    return Err(failed("remove", &path, error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The names of this kind. Only the names of one shard are in memory.
fn names(directory: &Path, kind: Kind) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    let files = match fs::read_dir(directory) {
        Err(error) if is_absent(&error) => return Ok(names),
        files => files?,
    };
    for file in files {
        let name = file?.file_name();
        if Kind::of(&name) == kind {
            names.push(name);
        }
    }
    Ok(names)
}
